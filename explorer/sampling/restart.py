"""Restart sampling: down the ODE, up again in one jump of fresh noise, down again. The jump forgets errors, the ODE makes few.

Source: Xu et al. 2023, arXiv 2306.14878, Alg. 1 (its t is EDM's sigma, its t_min and t_max are sigma_min and sigma_max here).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from explorer.errors import BadValue, NonFinite, UnknownName
from explorer.models.base import Cond, Denoiser
from explorer.process.paths import Path
from explorer.sampling.base import Sampler, built, built_path, check_noise, described, described_path
from explorer.sampling.grids import TimeGrid
from explorer.sampling.seeds import Seeds, fresh_noise
from explorer.sampling.solve import Observer, Solver, Step, solve
from explorer.sampling.solvers import SOLVERS, Heun
from explorer.sampling.solvers.stochastic import noised

HEUN = Heun()


@dataclass(frozen=True)
class Restart:
    """One restart interval: the noise is raised to sigma_max and removed again down to sigma_min, n_repeats times.

    Args:
        n_points: times of each way down, both ends counted (the paper's N_Restart): n_points - 1 steps.
        n_repeats: the paper's K; 0 switches the interval off.
        sigma_min: where it fires, moved to the nearest node of the main grid.
        sigma_max: where the jump leads; kept as it is.
        rho: spacing of the way down, as in `TimeGrid.karras`.
    """

    n_points: int
    n_repeats: int
    sigma_min: float
    sigma_max: float
    rho: float = 7.0

    def __post_init__(self):
        if not 0 < self.sigma_min < self.sigma_max or not math.isfinite(self.sigma_max):
            raise BadValue(
                f"a restart goes up from sigma_min to a larger sigma_max, both positive; got {self.sigma_min:g} and {self.sigma_max:g}"
            )
        if int(self.n_points) != self.n_points or self.n_points < 2:
            raise BadValue(
                f"a restart needs at least 2 points, the two ends of [{self.sigma_min:g}, {self.sigma_max:g}]; got {self.n_points}"
            )
        if int(self.n_repeats) != self.n_repeats or self.n_repeats < 0:
            raise BadValue(f"the number of repeats must be a whole number of at least 0, got {self.n_repeats}")
        if not self.rho > 0:
            raise BadValue(f"rho must be positive, got {self.rho}")


class Leg(NamedTuple):
    """A stretch of a restart run in which time only falls."""

    times: tuple[float, ...]  # of the path, at least two
    interval: Restart | None = None  # None: the main way down
    repeat: int = 0  # counted from 1
    t_from: float | None = None  # where the jump to times[0] starts, the snapped sigma_min in the path's time


@dataclass(frozen=True)
class RestartSampler(Sampler):
    """A deterministic solver on a main grid that goes back up each time it reaches the lower end of an interval.

    Args:
        solver: for the main grid and the intervals; its memory is cleared by each jump.
        grid: the main grid; evaluations for N steps to sigma = 0 with Heun are (2 N - 1) + sum K 2 (n_points - 1).
        intervals: any number, in any order; they may overlap, but not fire at the same node.
        s_noise: factor on the standard deviation of the jump's noise, sqrt(sigma_max^2 - sigma_min^2).
        path: path of the ODE; None is the model's own.
    A jump takes no evaluation. Its noise comes from each sample's own seed, fresh numbers in every repeat. An observer sees one
    unbroken chain of states: the jump is inside the first step of a repeat (`Step.t_from` and `x_from` are the place it leads to),
    which therefore may end where it began or higher.
    Raises:
        BadValue: an interval outside the grid, two at one node, or a stochastic solver.
    """

    grid: TimeGrid
    intervals: tuple[Restart, ...] = ()
    solver: Solver = HEUN
    s_noise: float = 1.0
    path: Path | None = None

    def __post_init__(self):
        object.__setattr__(self, "intervals", tuple(self.intervals))
        if not self.s_noise > 0:
            raise BadValue(
                f"S_noise must be positive (1 is the plain jump; without noise a restart repeats itself), got {self.s_noise}"
            )
        if self.solver.stochastic:
            raise BadValue(
                f"a restart adds its noise in the jumps; {type(self.solver).__name__} adds noise in every step. "
                "Choose a deterministic solver, Heun say"
            )
        if self.grid.coordinate == "sigma":
            self._fires(self.grid.times)

    @property
    def active(self) -> tuple[Restart, ...]:
        """The intervals that are repeated at least once."""
        return tuple(interval for interval in self.intervals if interval.n_repeats)

    @property
    def stochastic(self):
        return bool(self.active)

    @property
    def monotone(self):
        return not self.active

    def path_on(self, model):
        return self.path or model.path

    def snapped(self, path: Path) -> dict[int, Restart]:
        """Grid index at whose node each active interval fires -> the interval."""
        return self._fires(self.grid.sigmas(path))

    def legs(self, path: Path) -> Iterator[Leg]:
        """The run in order: stretches of the main grid, and after each the repeats that fire at its end."""
        times, fires, start = self.grid.on(path), self.snapped(path), 0
        for index in sorted(fires):
            yield Leg(tuple(times[start : index + 1]))
            yield from _repeats(path, times[index], fires[index])
            start = index
        if start < len(times) - 1:
            yield Leg(tuple(times[start:]))

    def sample(self, model, noise, cond=None, *, rng=None, observe=None):
        check_noise(model, noise)
        model = model.on(self.path_on(model))
        x = model.path.at(self.grid.on(model.path)[0])[1] * noise
        return _walk(model, self.solver, x, self.legs(model.path), self.s_noise, cond, rng, observe)

    def nfe(self, model):
        model = model.on(self.path_on(model))
        evals = (t for leg in self.legs(model.path) for t in self.solver.eval_times(leg.times, model.path))
        return sum(model.calls_at(t) for t in evals)

    def n_steps(self, model):
        return sum(len(leg.times) - 1 for leg in self.legs(self.path_on(model)))

    def to_dict(self):
        return {
            "sampler": "restart",
            "grid": self.grid.to_dict(),
            "intervals": [dataclasses.asdict(interval) for interval in self.intervals],
            "solver": described(self.solver, SOLVERS),
            "s_noise": self.s_noise,
            "path": described_path(self.path),
        }

    @classmethod
    def from_dict(cls, data):
        return cls(
            TimeGrid.from_dict(data["grid"]),
            tuple(Restart(**interval) for interval in data["intervals"]),
            built("solver", data["solver"], SOLVERS),
            data.get("s_noise", 1.0),
            built_path(data.get("path")),
        )

    def _fires(self, sigmas: Iterable[float]) -> dict[int, Restart]:
        sigmas = list(sigmas)
        found: dict[int, Restart] = {}
        for interval in self.active:
            name = f"the restart interval [{interval.sigma_min:g}, {interval.sigma_max:g}]"
            last = len(sigmas) - 1 if sigmas[-1] > 0 else len(sigmas) - 2
            if interval.sigma_max > sigmas[0] * (1 + 1e-9) or interval.sigma_min < 0.5 * sigmas[last]:
                raise BadValue(
                    f"{name} is outside the main grid, whose positive sigmas run from {sigmas[0]:g} to {sigmas[last]:g}"
                )
            index = min(range(len(sigmas)), key=lambda i: abs(sigmas[i] - interval.sigma_min))
            index = min(index, last)
            if index == 0:
                raise BadValue(
                    f"{name} would fire at the first node, sigma = {sigmas[0]:g}, before any step was taken: "
                    "use more main steps or a smaller sigma_min"
                )
            if sigmas[index] >= interval.sigma_max:
                raise BadValue(
                    f"{name} has no way down: the main grid's node nearest to its lower end is sigma = {sigmas[index]:g}. "
                    "Use more main steps or a larger sigma_max"
                )
            if index in found:
                other = found[index]
                raise BadValue(
                    f"{name} and [{other.sigma_min:g}, {other.sigma_max:g}] both fire at the node sigma = {sigmas[index]:g}: "
                    "use more main steps, or one interval with more repeats"
                )
            found[index] = interval
        return found


def repeated(
    model: Denoiser,
    x: Tensor,
    interval: Restart,
    solver: Solver = HEUN,
    *,
    s_noise: float = 1.0,
    cond: Cond = None,
    rng: Seeds | None = None,
    observe: Observer | None = None,
) -> Tensor:
    """The states (B, *shape) after the repeats of one interval, from and at sigma_min of the model's own path."""
    legs = _repeats(model.path, model.path.time_at(interval.sigma_min), interval)
    return _walk(model, solver, x, legs, s_noise, cond, rng, observe)


def _repeats(path: Path, t: float, interval: Restart) -> Iterator[Leg]:
    """The ways down of one interval that fires at time t."""
    steps = int(interval.n_points) - 1
    down = TimeGrid.karras(steps, path.ratio_at(t), interval.sigma_max, interval.rho, to_zero=False).times
    times = (*(path.time_at(sigma) for sigma in down[:-1]), t)
    for repeat in range(1, int(interval.n_repeats) + 1):
        yield Leg(times, interval, repeat, t)


def _walk(model, solver, x, legs, s_noise, cond, rng, observe) -> Tensor:
    done = 0
    for leg in legs:
        watch, before = None, x
        if leg.interval is not None:
            x = noised(model.path, x, leg.t_from, leg.times[0], fresh_noise(x, rng), s_noise)
        if observe is not None:
            watch = _chained(observe, done, leg, before, x)
        try:
            x = solve(model, solver, x, leg.times, cond=cond, rng=rng, observe=watch)
        except NonFinite as error:
            raise _placed(error, leg, done) from None
        done += len(leg.times) - 1
    return x


def _chained(observe: Observer, done: int, leg: Leg, before, after) -> Observer:
    """An observer of one leg that passes steps on as part of the whole run, the jump told as where the first step started."""

    def watch(i: int, t: float, t_next: float, x, step: Step) -> None:
        if i == 0 and leg.t_from is not None:
            observe(done, leg.t_from, t_next, before, step._replace(t_from=t, x_from=after))
        else:
            observe(done + i, t, t_next, x, step)

    return watch


def _placed(error: NonFinite, leg: Leg, done: int) -> NonFinite:
    where = "on the main grid"
    if leg.interval is not None:
        where = f"in repeat {leg.repeat} of [{leg.interval.sigma_min:g}, {leg.interval.sigma_max:g}]"
    return NonFinite(f"{where}: {error}", step=done + error.step, samples=error.samples, t=error.t, kept=error.kept)


_CIFAR_VP, _TOP, _MID, _LOW, _LOWER, _END = (
    (0.06, 0.30), (19.35, 40.79), (1.09, 1.92), (0.59, 1.09), (0.30, 0.59), (0.06, 0.30)
)  # fmt: skip

PRESETS: dict[str, tuple[int, tuple[tuple[int, int, float, float], ...], float]] = {
    "cifar10-vp-43": (18, ((3, 2, *_CIFAR_VP),), 1.0),
    "cifar10-vp-55": (18, ((3, 5, *_CIFAR_VP),), 1.0),
    "cifar10-vp-75": (18, ((3, 10, *_CIFAR_VP),), 1.0),
    "cifar10-vp-115": (18, ((3, 20, *_CIFAR_VP),), 1.0),
    "cifar10-vp-519": (20, ((9, 30, 0.06, 0.20),), 1.0),
    "cifar10-edm-43": (18, ((3, 2, 0.14, 0.30),), 1.0),
    "imagenet64-39": (14, ((3, 1, *_TOP), (3, 1, *_MID), (3, 1, *_END)), 1.003),
    "imagenet64-67": (18, ((5, 1, *_TOP), (5, 1, *_MID), (5, 1, *_LOW), (5, 1, *_END)), 1.003),
    "imagenet64-99": (18, ((3, 1, *_TOP), (4, 1, *_MID), (4, 4, *_LOW), (4, 1, *_LOWER), (4, 4, *_END)), 1.003),
    "imagenet64-165": (18, ((3, 1, *_TOP), (4, 1, *_MID), (4, 5, *_LOW), (4, 5, *_LOWER), (4, 10, *_END)), 1.003),
    "imagenet64-203": (36, ((4, 1, *_TOP), (4, 1, *_MID), (4, 5, *_LOW), (4, 5, *_LOWER), (6, 6, *_END)), 1.003),
    "imagenet64-385": (36, ((3, 1, *_TOP), (6, 1, *_MID), (6, 5, *_LOW), (6, 5, *_LOWER), (6, 20, *_END)), 1.003),
    "imagenet64-535": (36, ((6, 1, *_TOP), (6, 1, *_MID), (7, 6, *_LOW), (7, 6, *_LOWER), (7, 25, *_END)), 1.003),
    "imagenet64-623": (36, ((10, 3, *_TOP), (10, 3, *_MID), (7, 6, *_LOW), (7, 6, *_LOWER), (7, 25, *_END)), 1.003),
}  # fmt: skip
"""name-NFE -> (main steps, (n_points, n_repeats, sigma_min, sigma_max) of each interval, s_noise). Xu et al. 2023, Tables 3 and 5.

Made for those data sets with a main grid from 80 to 0.002; the number at the end is the evaluations with Heun. The paper's
ImageNet runs also add a little churn within the intervals, which is left out here.
"""


def restart_preset(
    name: str,
    solver: Solver | None = None,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    path: Path | None = None,
) -> RestartSampler:
    """A restart sampler of the paper's tables, by name (PRESETS), on the Karras grid from sigma_max to sigma_min and 0."""
    if name not in PRESETS:
        raise UnknownName("restart preset", name, PRESETS)
    n_main, intervals, s_noise = PRESETS[name]
    grid = TimeGrid.karras(n_main, sigma_min, sigma_max)
    return RestartSampler(grid, tuple(Restart(*i) for i in intervals), solver or HEUN, s_noise, path)
