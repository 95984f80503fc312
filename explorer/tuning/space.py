"""What a search may change, as a box of numbers: which dimensions there are, where the start lies, and which setting a point means.

A `Space` is a recipe, a frozen dataclass; `Space.box(model, start)` is the box around one setting of one model. Continuous tuners walk the
unit cube: every dimension is scaled to [0, 1], logarithmic ones in their logarithm.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from explorer.errors import BadValue, UnknownName
from explorer.knobs import check_guide
from explorer.models.base import FlowMap, Model
from explorer.models.wrappers import skip_schedule
from explorer.sampling.grids import GRIDS, TimeGrid
from explorer.sampling.restart import Restart, RestartSampler
from explorer.sampling.samplers import OdeSampler
from explorer.sampling.solve import Solver
from explorer.sampling.solvers import SOLVERS
from explorer.tuning.setting import EVERYWHERE, Guidance, Setting, Skips


@dataclass(frozen=True)
class Dim:
    """One number or one choice.

    Args:
        low, high: its range; a choice has `choices` instead.
        log: the unit interval is spread over the logarithm.
        whole: only whole numbers.
    """

    name: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    whole: bool = False
    choices: tuple = ()

    def __post_init__(self):
        if not self.choices and not self.low <= self.high:
            raise BadValue(f"{self.name} runs from {self.low:g} to {self.high:g}: the first must not be larger")
        if self.log and not self.low > 0:
            raise BadValue(f"{self.name} is logarithmic and must be positive, got {self.low:g}")

    @property
    def n_points(self) -> float:
        """How many values there are to try."""
        if self.choices:
            return len(self.choices)
        if self.low == self.high:
            return 1
        return int(self.high) - int(self.low) + 1 if self.whole else math.inf

    def at(self, u: float) -> Any:
        """The value at a place in [0, 1]."""
        u = min(max(float(u), 0.0), 1.0)
        if self.choices:
            return self.choices[min(int(u * len(self.choices)), len(self.choices) - 1)]
        if self.whole:
            return min(int(self.low) + int(u * self.n_points), int(self.high))
        if self.log:
            return math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low)))
        return self.low + u * (self.high - self.low)

    def unit(self, value: Any) -> float:
        """The place of a value in [0, 1]; `at(unit(v))` is v, or the nearest end."""
        if self.choices:
            if value not in self.choices:
                raise UnknownName(self.name, value, map(str, self.choices))
            return (self.choices.index(value) + 0.5) / len(self.choices)
        if self.low == self.high:
            return 0.5
        value = min(max(value, self.low), self.high)
        if self.whole:
            return (value - self.low + 0.5) / self.n_points
        if self.log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Box:
    """The neighbourhood of one setting.

    Attributes:
        dims: what may change; start: the values there; build: values in the order of `dims` -> setting.
    Raises:
        BadValue: nothing may change.
    """

    dims: tuple[Dim, ...]
    start: tuple[Any, ...]
    build: Callable[[Sequence[Any]], Setting]

    def __post_init__(self):
        if math.prod(d.n_points for d in self.dims) <= 1:
            raise BadValue(
                "this space has one point, and a search needs at least two: widen a range, or take more steps so that there are inner nodes"
            )

    @property
    def unit(self) -> np.ndarray:
        """The start in the unit cube."""
        return np.array([d.unit(v) for d, v in zip(self.dims, self.start, strict=True)])

    def values(self, u: Sequence[float]) -> tuple[Any, ...]:
        return tuple(d.at(x) for d, x in zip(self.dims, u, strict=True))

    def at(self, u: Sequence[float]) -> Setting:
        """The setting at a point of the unit cube.

        Raises: BadValue where the values there contradict each other.
        """
        return self.build(self.values(u))


class Space(ABC):
    @abstractmethod
    def box(self, model: Model, start: Setting) -> Box:
        """Raises BadValue where the model or the setting has nothing of the kind to change."""


def grid_of(setting: Setting) -> TimeGrid:
    """The grid of the setting's sampler, in sigma."""
    grid = getattr(setting.sampler, "grid", None)
    if grid is None or grid.coordinate != "sigma":
        raise BadValue(
            f"a time grid in sigma is needed, and {type(setting.sampler).__name__} has "
            f"{'none' if grid is None else 'one in t: convert it with grid.to(sigma, path)'}"
        )
    return grid


def with_grid(setting: Setting, grid: TimeGrid) -> Setting:
    return dataclasses.replace(setting, sampler=dataclasses.replace(setting.sampler, grid=grid))


@dataclass(frozen=True)
class Nodes(Space):
    """The noise levels of the grid, each anywhere between the model's lowest and the start of sampling; they are sorted.

    Args: free_start: also where sampling starts, from the highest level down to a twentieth of it.
    """

    free_start: bool = False

    def box(self, model, start):
        grid = grid_of(start)
        ends_at_zero = grid.times[-1] == 0
        free = [s for s in grid.times[1:] if s > 0][: None if ends_at_zero else -1]
        low, high = min((s for s in (model.sigma_range[0], *free) if s > 0), default=0.0), grid.times[0]
        dims = [Dim(f"sigma_{i}", low, high, log=True) for i in range(1, len(free) + 1)]
        if self.free_start:
            dims = [Dim("sigma_0", high / 20, high, log=True), *dims]
            free = [high, *free]
        last = (0.0,) if ends_at_zero else (grid.times[-1],)
        first = () if self.free_start else (high,)

        def build(values):
            return with_grid(start, TimeGrid((*first, *sorted(values, reverse=True), *last)))

        return Box(tuple(dims), tuple(free), build)


@dataclass(frozen=True)
class SkipScales(Space):
    """Skip factors: one for each connection, or the two ends of a line over depth, and the noise levels between which they act.

    Args:
        low, high: range of a factor.
        linear: the paper's schedule from the lowest to the highest resolution, two numbers. Ma et al. 2024, arXiv 2402.15170.
        interval: also search where in sigma they act.
    """

    low: float = 0.5
    high: float = 1.3
    linear: bool = False
    interval: bool = False

    def box(self, model, start):
        if model.n_skips == 0:
            raise BadValue(f"{model.name or 'this model'} has no skip connections to scale: choose a U-Net")
        now = start.wrapper(Skips) or Skips((1.0,) * model.n_skips)
        names = ("bottom", "top") if self.linear else [f"{i}" for i in range(model.n_skips)]
        at = (now.scales[0], now.scales[-1]) if self.linear else now.scales
        dims = [Dim(f"rho_{name}", self.low, self.high) for name in names]
        if self.interval:
            dims, ends = _interval_dims(dims, "skip", model, now.interval)
            at = (*at, *ends)

        def build(values):
            scales = skip_schedule(model.n_skips, *values[:2]) if self.linear else values[: model.n_skips]
            where = _interval_of(values[-2:], model) if self.interval else now.interval
            return start.using(Skips(tuple(scales), where))

        return Box(tuple(dims), tuple(at), build)


@dataclass(frozen=True)
class GuidanceSpace(Space):
    """Weight of guidance and the noise levels between which it acts; steps are taken away where it would cost more than the start.

    Args:
        low, high: range of the weight.
        interval: also search where in sigma it acts.
        guide: a bundled model to move away from; "" is the model without a class.
        nfe: most evaluations a sample; None is as many as the start takes.
    """

    low: float = 1.0
    high: float = 4.0
    interval: bool = True
    guide: str = ""
    nfe: int | None = None

    def box(self, model, start):
        if isinstance(model, FlowMap):
            raise BadValue(f"guidance mixes denoisers, and {model.name or 'this model'} is a flow map")
        if not self.guide and model.n_classes == 0:
            raise BadValue(
                f"guidance needs classes or a guide, and {model.name or 'this model'} has no classes: name a guide"
            )
        if self.guide:
            check_guide(model, self.guide)
        limit = self.nfe or start.nfe(model)
        now = start.wrapper(Guidance) or Guidance(1.0, guide=self.guide)
        dims, at = [Dim("guidance", self.low, self.high)], (now.scale,)
        if self.interval:
            dims, ends = _interval_dims(dims, "guidance", model, now.interval)
            at = (*at, *ends)

        def build(values):
            if values[0] == 1.0:
                return fitted(dataclasses.replace(start, wrappers=_without(start, Guidance)), model, limit)
            where = _interval_of(values[1:], model) if self.interval else now.interval
            return fitted(start.using(Guidance(values[0], where, self.guide)), model, limit)

        return Box(tuple(dims), at, build)


@dataclass(frozen=True)
class RestartSpace(Space):
    """One restart interval: its ends, its repeats, its points; the main grid gets the evaluations that are left.

    Args: nfe: most evaluations a sample; None is as many as the start takes. most: repeats and points allowed.
    """

    nfe: int | None = None
    most: int = 4

    def box(self, model, start):
        grid, limit = grid_of(start), self.nfe or start.nfe(model)
        solver, low = getattr(start.sampler, "solver", SOLVERS["heun"]()), model.sigma_range[0]
        dims = (
            Dim("sigma_min", max(low, 0.01), 2.0, log=True),
            Dim("factor", 1.2, 50.0, log=True),
            Dim("n_repeats", 0, self.most, whole=True),
            Dim("n_points", 2, self.most, whole=True),
        )

        def build(values):
            bottom, factor, repeats, points = values
            if repeats == 0:
                return fitted(dataclasses.replace(start, sampler=OdeSampler(solver, grid)), model, limit)
            interval = Restart(points, repeats, bottom, min(bottom * factor, grid.times[0]))

            def made(n):
                return dataclasses.replace(start, sampler=RestartSampler(stretched(grid, n), (interval,), solver))

            return most_steps(made, model, limit)

        now = start.sampler.intervals[0] if isinstance(start.sampler, RestartSampler) and start.sampler.active else None
        if now is None:
            return Box(dims, (0.1, 4.0, 0, 2), build)
        return Box(dims, (now.sigma_min, now.sigma_max / now.sigma_min, now.n_repeats, now.n_points), build)


@dataclass(frozen=True)
class Joint(Space):
    """Solver, Karras grid, skip factors and guidance together, with the number of steps that the evaluations allow.

    Args:
        nfe: most evaluations a sample; None makes the number of steps a dimension, for a front of quality against cost.
        solvers: names to choose from; those that draw noise may be among them.
        steps: range of the number of steps where nfe is None.
        skips, guidance: whether these are searched; left out anyway where the model has none.
    """

    nfe: int | None = None
    solvers: tuple[str, ...] = ("euler", "heun", "dpmpp-2m", "dpmpp-3m", "unipc", "deis", "ipndm")
    steps: tuple[int, int] = (3, 18)
    skips: bool = True
    guidance: bool = True

    def box(self, model, start):
        for name in self.solvers:
            if name not in SOLVERS:
                raise UnknownName("solver", name, SOLVERS)
        grid, (low, high) = grid_of(start), model.sigma_range
        positive = [s for s in grid.times if s > 0]
        own = type(getattr(start.sampler, "solver", None))
        solver = next((n for n in self.solvers if SOLVERS[n] is own), self.solvers[0])
        skips, guided = self.skips and model.n_skips > 0, self.guidance and model.n_classes > 0
        dims = [Dim("solver", choices=self.solvers), Dim("rho", 1.0, 15.0, log=True)]
        dims += [Dim("sigma_max", high / 20, high, log=True), Dim("sigma_min", low, min(1.0, high / 40), log=True)]
        at: list[Any] = [solver, 7.0, positive[0], positive[-1]]
        if self.nfe is None:
            dims.append(Dim("n_steps", *self.steps, whole=True))
            at.append(grid.n_steps)
        if skips:
            dims += [Dim("rho_bottom", 0.6, 1.2), Dim("rho_top", 0.8, 1.2)]
            at += [1.0, 1.0]
        if guided:  # half of the range means none
            dims += [Dim("guidance", 0.0, 2.0), Dim("guidance_hi", 0.2, high, log=True)]
            at += [0.5, high]

        def build(values):
            given = dict(zip((d.name for d in dims), values, strict=True))
            setting = Setting(start.sampler)
            if skips and not given["rho_bottom"] == given["rho_top"] == 1.0:
                setting = setting.using(
                    Skips(tuple(skip_schedule(model.n_skips, given["rho_bottom"], given["rho_top"])))
                )
            if guided and given["guidance"] > 1:
                setting = setting.using(Guidance(given["guidance"], (0.0, given["guidance_hi"])))

            def made(n):
                karras = TimeGrid.karras(n, given["sigma_min"], given["sigma_max"], given["rho"])
                return dataclasses.replace(setting, sampler=OdeSampler(SOLVERS[given["solver"]](), karras))

            return made(given["n_steps"]) if self.nfe is None else most_steps(made, model, self.nfe)

        return Box(tuple(dims), tuple(at), build)


def every_solver(
    model: Model,
    nfe: int,
    solvers: Sequence[str] | None = None,
    grids: Sequence[str] | None = None,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> tuple[Setting, ...]:
    """Every solver on every kind of grid with as many steps as `nfe` evaluations allow, untouched otherwise: what there is to beat.

    Args: solvers, grids: names; by default all deterministic solvers that follow the ODE, and all grids.
    """
    low, high = model.sigma_range
    low, high = sigma_min or low, sigma_max or high
    if solvers is None:
        solvers = [n for n, make in SOLVERS.items() if not make().stochastic and make().order > 0 and n != "chord"]
        if isinstance(model, FlowMap):
            solvers = ["jump"]
    out = []
    for name in solvers:
        if name not in SOLVERS:
            raise UnknownName("solver", name, SOLVERS)
        solver: Solver = SOLVERS[name]()
        for spacing in GRIDS if grids is None else grids:
            if spacing not in GRIDS:
                raise UnknownName("time grid", spacing, GRIDS)

            def made(n, spacing=spacing, solver=solver):
                return Setting(OdeSampler(solver, GRIDS[spacing](n, low, high)))

            try:
                out.append(most_steps(made, model, nfe))
            except (
                BadValue
            ):  # fewer evaluations than this solver's first step, or a grid that does not exist at so few steps
                continue
    if not out:
        raise BadValue(f"no solver can sample with {nfe} evaluations: allow more")
    return tuple(dict.fromkeys(out))


def spread(settings: Sequence[Setting], n: int) -> tuple[Setting, ...]:
    """At most n of the settings, evenly over their order; all where they fit."""
    n = max(n, 1)
    return tuple(settings) if len(settings) <= n else tuple(settings[i * len(settings) // n] for i in range(n))


def most_steps(made: Callable[[int], Setting], model: Model, nfe: int) -> Setting:
    """`made(n)` with the largest n that takes at most `nfe` evaluations a sample.

    Raises: BadValue where even one step takes more, or the number cannot be told beforehand.
    """
    best, problem = None, None
    for n in range(1, nfe + 2):
        try:
            setting = made(n)
            cost = setting.nfe(model)
        except BadValue as error:
            problem = error
            continue
        if cost is None:
            raise BadValue("the cost of adaptive steps is known only after a run: give a sampler on a grid")
        if cost > nfe:
            break
        best = setting
    if best is None:
        raise problem or BadValue(f"one step of this setting takes more than {nfe} network evaluations: allow more")
    return best


def fitted(setting: Setting, model: Model, nfe: int) -> Setting:
    """The setting itself where it takes at most `nfe` evaluations, else with fewer steps on a grid of the same shape."""
    cost = setting.nfe(model)
    if cost is None or cost <= nfe:
        return setting
    grid = grid_of(setting)
    return most_steps(lambda n: with_grid(setting, stretched(grid, min(n, grid.n_steps))), model, nfe)


def stretched(grid: TimeGrid, n_steps: int) -> TimeGrid:
    """A grid of n steps with the spacing of another: ln sigma interpolated over the node's place; a last 0 stays."""
    if n_steps == grid.n_steps:
        return grid
    positive, last = [s for s in grid.times if s > 0], grid.times[-1:] if grid.times[-1] == 0 else ()
    n = n_steps + 1 - len(last)
    if n == 1:
        return TimeGrid((positive[0], *last))
    places = np.linspace(0, len(positive) - 1, n)
    inner = np.exp(np.interp(places, np.arange(len(positive)), np.log(positive)))[1:-1]
    return TimeGrid((positive[0], *map(float, inner), positive[-1], *last))


def _interval_dims(dims: list[Dim], name: str, model: Model, interval) -> tuple[list[Dim], tuple[float, float]]:
    """Two logarithmic dimensions more; the ends of the model's range stand for no limit."""
    low, high = model.sigma_range
    low = max(low, 1e-3)
    ends = tuple(Dim(f"{name}_{end}", low, high, log=True) for end in ("lo", "hi"))
    return [*dims, *ends], (min(max(interval[0], low), high), min(max(interval[1], low), high))


def _interval_of(values, model: Model) -> tuple[float, float]:
    low, high = sorted(values)
    least, most = max(model.sigma_range[0], 1e-3), model.sigma_range[1]
    return (
        EVERYWHERE[0] if low <= least * (1 + 1e-9) else low,
        EVERYWHERE[1] if high >= most * (1 - 1e-9) else high,
    )


def _without(setting: Setting, kind: type) -> tuple:
    return tuple(w for w in setting.wrappers if type(w) is not kind)
