"""Time grids: where a solver stops on its way from noise to data. A grid is data, apart from the solver that walks it.

Every builder takes (n_steps, sigma_min, sigma_max), starts exactly at sigma_max and ends exactly at 0, or at sigma_min with
`to_zero=False`. Two families end in two ways. Grids of noise levels ("karras", "log-snr", "beta", ...) step down to sigma_min and
then to 0; grids of times ("uniform-t", "cosine", "polynomial", "sigmoid", "laplace") run evenly all the way to t = 0, and sigma_min
matters only with `to_zero=False`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from numbers import Real
from typing import Literal

import torch

from explorer.errors import BadValue, UnknownName
from explorer.process.paths import VP, CosineVP, Linear, Path
from explorer.process.precondition import IDDPMPrecondition

Coordinate = Literal["t", "sigma"]


@dataclass(frozen=True)
class TimeGrid:
    """Strictly decreasing times from noise to data.

    Args:
        times: at least two, non-negative and finite; a last value of 0 means the solver ends at data.
        coordinate: "sigma" (EDM's sigma, the same grid on every path) or "t" (time of the path the sampler runs on).
    Raises:
        BadValue: too few, not finite, negative or not strictly decreasing; the message names the first offending pair.
    """

    times: tuple[float, ...]
    coordinate: Coordinate = "sigma"

    def __post_init__(self):
        object.__setattr__(self, "times", _numbers(self.times))
        if self.coordinate not in ("t", "sigma"):
            raise UnknownName("grid coordinate", self.coordinate, ("t", "sigma"))
        if len(self.times) < 2:
            raise BadValue(f"a time grid needs at least one step (two times), got {len(self.times)} time(s)")
        for i, (a, b) in enumerate(pairwise(self.times)):
            if not (math.isfinite(a) and math.isfinite(b) and a > b >= 0):
                raise BadValue(
                    f"grid times must be finite, non-negative and strictly decreasing; got {_shown(a, b)} "
                    f"(nodes {i} and {i + 1}): {_advice(a, b)}"
                )

    @property
    def n_steps(self) -> int:
        return len(self.times) - 1

    # Noise levels

    @classmethod
    def karras(
        cls, n_steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0, *, to_zero: bool = True
    ) -> TimeGrid:
        """sigma^(1/rho) evenly spaced. Karras et al. 2022, arXiv 2206.00364, Eq. 5.

        `to_zero` (the usual form): n_steps values from sigma_max to sigma_min, then 0. Otherwise n_steps + 1 values ending at sigma_min.
        """
        n_steps = _check(n_steps, sigma_min, sigma_max)
        _positive("rho", rho)
        low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
        return cls._spaced(n_steps, sigma_min, sigma_max, lambda u: (high + u * (low - high)) ** rho, to_zero)

    @classmethod
    def karras_t(
        cls,
        n_steps: int,
        sigma_min: float,
        sigma_max: float,
        rho: float = 7.0,
        path: Path | None = None,
        *,
        to_zero: bool = True,
    ) -> TimeGrid:
        """t^(1/rho) evenly spaced in the time of a path (the linear one by default): the warp of `karras` on any clock.

        On EDM's own path it is `karras`. Expressed in sigma; ends as `karras` does.
        """
        n_steps = _check(n_steps, sigma_min, sigma_max)
        _positive("rho", rho)
        path = path or Linear()
        low, high = path.time_at(sigma_min) ** (1 / rho), path.time_at(sigma_max) ** (1 / rho)
        sigma_of = lambda u: path.ratio_at((high + u * (low - high)) ** rho)  # noqa: E731
        return cls._spaced(n_steps, sigma_min, sigma_max, sigma_of, to_zero)

    @classmethod
    def log_snr(
        cls, n_steps: int, sigma_min: float, sigma_max: float, power: float = 1.0, *, to_zero: bool = True
    ) -> TimeGrid:
        """ln sigma evenly spaced: uniform in log signal-to-noise ratio, the limit of `karras` for large rho.

        Also called exponential. `power` is the rho of k-diffusion's polyexponential grid: ln sigma is linear in v^power for v evenly
        spaced from 1 to 0, so that more than 1 puts more steps near sigma_min.
        """
        n_steps = _check(n_steps, sigma_min, sigma_max)
        _positive("power", power)
        ratio = sigma_min / sigma_max
        return cls._spaced(
            n_steps, sigma_min, sigma_max, lambda u: sigma_max * ratio ** (1 - (1 - u) ** power), to_zero
        )

    @classmethod
    def uniform_sigma(cls, n_steps: int, sigma_min: float, sigma_max: float, *, to_zero: bool = True) -> TimeGrid:
        """sigma evenly spaced (karras with rho = 1)."""
        return cls.karras(n_steps, sigma_min, sigma_max, 1.0, to_zero=to_zero)

    @classmethod
    def beta(
        cls,
        n_steps: int,
        sigma_min: float,
        sigma_max: float,
        a: float = 0.6,
        b: float = 0.6,
        path: Path | None = None,
        *,
        to_zero: bool = True,
    ) -> TimeGrid:
        """Times at evenly spaced quantiles of a Beta(a, b) distribution: below 1, dense at both ends.

        The time is that of `path`, the VP path by default, whose clock is that of the discrete diffusion models of the paper. With
        `path=EDM()` the quantiles are those of sigma itself, which is what diffusers' `use_beta_sigmas` computes.
        Source: Lee et al. 2024, arXiv 2407.12173 (time steps by the probability integral transform; a = b = 0.6).
        """
        from scipy.special import betaincinv

        n_steps = _check(n_steps, sigma_min, sigma_max)
        _positive("a", a)
        _positive("b", b)
        path = path or VP()
        low, high = path.time_at(sigma_min), path.time_at(sigma_max)
        sigma_of = lambda u: path.ratio_at(low + float(betaincinv(a, b, 1 - u)) * (high - low))  # noqa: E731
        return cls._spaced(n_steps, sigma_min, sigma_max, sigma_of, to_zero)

    @classmethod
    def discrete(
        cls,
        n_steps: int,
        sigma_min: float,
        sigma_max: float,
        levels: str | Sequence[float] = "iddpm",
        *,
        to_zero: bool = True,
    ) -> TimeGrid:
        """Every k-th noise level of a discrete-time model: evenly spaced in the index, rounded. DDIM's and iDDPM's spacing.

        Args:
            levels: "iddpm", "ddpm", "scaled-linear" (see `noise_levels`) or the model's own sigmas, in any order.
        The inner nodes are levels of the model. The two ends are sigma_max and sigma_min as given; take them from the levels, too
        (`u = noise_levels()`; sigma_max = u[8], sigma_min = u[-1] is EDM's j_0 = 8), and every node is one.
        Raises:
            BadValue: more steps than there are levels between sigma_min and sigma_max.
        Source: Karras et al. 2022, arXiv 2206.00364, Table 1 (iDDPM + DDIM); Song et al. 2020, arXiv 2010.02502.
        """
        n_steps = _check(n_steps, sigma_min, sigma_max)
        every = [s for s in _levels(levels) if sigma_min < s < sigma_max]
        nodes, n = [sigma_max, *every, sigma_min], n_steps if to_zero else n_steps + 1
        if n > len(nodes):
            raise BadValue(
                f"{n_steps} steps need {n} different noise levels, but the model has {len(every)} between sigma_min = "
                f"{sigma_min:g} and sigma_max = {sigma_max:g}: ask for at most {len(nodes) - (not to_zero)} steps, or for a grid "
                "that is not discrete"
            )
        last = max(n - 1, 1)
        picked = [
            nodes[(2 * i * (len(nodes) - 1) + last) // (2 * last)] for i in range(n)
        ]  # round half up, in integers
        return cls((*picked, *((0.0,) if to_zero else ())))

    # Times

    @classmethod
    def uniform_t(
        cls,
        n_steps: int,
        sigma_min: float,
        sigma_max: float,
        path: Path | None = None,
        *,
        power: float = 1.0,
        to_zero: bool = True,
    ) -> TimeGrid:
        """Evenly spaced in t^(1/power) of `path` (the linear path by default), expressed in sigma.

        With `to_zero` the spacing runs all the way to t = 0 and sigma_min is not used.
        """
        n_steps = _check(n_steps, sigma_min, sigma_max)
        _positive("power", power)
        path = path or Linear()
        high = path.time_at(sigma_max) ** (1 / power)
        low = 0.0 if to_zero else path.time_at(sigma_min) ** (1 / power)
        return cls._timed(
            n_steps, sigma_min, sigma_max, lambda u: path.ratio_at((high + u * (low - high)) ** power), to_zero
        )

    @classmethod
    def cosine(cls, n_steps: int, sigma_min: float, sigma_max: float, *, to_zero: bool = True) -> TimeGrid:
        """Evenly spaced in the angle arctan(sigma): uniform t of the plain cosine and trigonometric paths."""
        return cls.uniform_t(n_steps, sigma_min, sigma_max, CosineVP(offset=0.0), to_zero=to_zero)

    @classmethod
    def polynomial(
        cls, n_steps: int, sigma_min: float, sigma_max: float, power: float = 2.0, *, to_zero: bool = True
    ) -> TimeGrid:
        """t = t_max u^power of the linear path, u evenly spaced: power 2 is the quadratic grid of DDIM (Song et al. 2020)."""
        return cls.uniform_t(n_steps, sigma_min, sigma_max, power=power, to_zero=to_zero)

    @classmethod
    def sigmoid(
        cls,
        n_steps: int,
        sigma_min: float,
        sigma_max: float,
        start: float = -3.0,
        end: float = 3.0,
        tau: float = 1.0,
        *,
        to_zero: bool = True,
    ) -> TimeGrid:
        """Uniform t of the sigmoid noise schedule, whose alpha^2 falls along a piece of the logistic curve.

        alpha^2(t) = (s(end) - s(start + t (end - start))) / (s(end) - s(start)) with s(v) = 1 / (1 + exp(-v / tau)); sigma goes from 0 at
        t = 0 to infinity at t = 1. Source: Jabri et al. 2022, arXiv 2212.11972; Chen 2023, arXiv 2301.10972, Algorithm 1.
        """
        n_steps = _check(n_steps, sigma_min, sigma_max)
        _positive("tau", tau)
        if not start < end:
            raise BadValue(f"the sigmoid runs from start to a larger end, got start = {start} and end = {end}")
        a, b = start / (2 * tau), end / (2 * tau)
        # With w = (v - start) / (2 tau) in [0, b - a], sigma^2 = sinh(w) cosh(b) / (sinh(b - a - w) cosh(a)).
        scale = math.exp(_log_cosh(a) - _log_cosh(b))

        def angle_of(sigma: float) -> float:
            r = sigma * sigma * scale
            return 0.5 * (math.log1p(r * math.exp(b - a)) - math.log1p(r * math.exp(a - b)))

        def sigma_of(w: float) -> float:
            return math.sqrt(math.sinh(w) / (math.sinh(b - a - w) * scale))

        high, low = angle_of(sigma_max), 0.0 if to_zero else angle_of(sigma_min)
        return cls._timed(n_steps, sigma_min, sigma_max, lambda u: sigma_of(high + u * (low - high)), to_zero)

    @classmethod
    def laplace(
        cls,
        n_steps: int,
        sigma_min: float,
        sigma_max: float,
        mu: float = 0.0,
        b: float = 0.5,
        *,
        to_zero: bool = True,
    ) -> TimeGrid:
        """Log signal-to-noise ratios at evenly spaced quantiles of a Laplace(mu, b) distribution: dense about SNR = exp(mu).

        Source: Hang & Gu 2024, arXiv 2407.03297 (the Laplace noise schedule; mu = 0, b = 0.5).
        """
        n_steps = _check(n_steps, sigma_min, sigma_max)
        _positive("b", b)
        if not math.isfinite(mu):
            raise BadValue(f"mu must be finite, got {mu}")

        def tails(sigma: float) -> tuple[float, float]:  # P(less noise), P(more noise), each exact where it is small
            z = (2 * math.log(sigma) + mu) / b
            small = 0.5 * math.exp(-abs(z))
            return (small, 1 - small) if z < 0 else (1 - small, small)

        less, more = zip((0.0, 1.0) if to_zero else tails(sigma_min), tails(sigma_max), strict=True)

        def sigma_of(u: float) -> float:
            below, above = (low + (1 - u) * (high - low) for low, high in (less, more))
            z = math.log(2 * below) if below < above else -math.log(2 * above)
            return math.exp(0.5 * (b * z - mu))

        return cls._timed(n_steps, sigma_min, sigma_max, sigma_of, to_zero)

    @classmethod
    def explicit(cls, times: Iterable[float], coordinate: Coordinate = "sigma", *, dedupe: bool = False) -> TimeGrid:
        """The given times as they are; with `dedupe` a time that repeats the one before it is dropped."""
        times = _numbers(times)
        if dedupe:
            times = tuple(t for i, t in enumerate(times) if i == 0 or t != times[i - 1])
        return cls(times, coordinate)

    @classmethod
    def _spaced(cls, n_steps, sigma_min, sigma_max, sigma_of, to_zero: bool) -> TimeGrid:
        """sigma_of(u) for u from 0 to 1, the ends exactly as given; then 0 with `to_zero`."""
        last = n_steps - 1 if to_zero else n_steps
        inner = [sigma_of(i / last) for i in range(1, last)]
        ends = [sigma_min] if last > 0 else []
        return cls._built((sigma_max, *inner, *ends, *((0.0,) if to_zero else ())))

    @classmethod
    def _timed(cls, n_steps, sigma_min, sigma_max, sigma_of, to_zero: bool) -> TimeGrid:
        """sigma_of(u) for u from 0 to 1, the ends exactly sigma_max and either 0 or sigma_min."""
        inner = [sigma_of(i / n_steps) for i in range(1, n_steps)]
        return cls._built((sigma_max, *inner, 0.0 if to_zero else sigma_min))

    @classmethod
    def _built(cls, sigmas: tuple[float, ...]) -> TimeGrid:
        for i, (a, b) in enumerate(pairwise(sigmas)):
            if not a > b >= 0:
                raise BadValue(
                    f"this many steps of this spacing run into each other: got {_shown(a, b)} (nodes {i} and {i + 1} of {len(sigmas)}); "
                    "take fewer steps, a wider range of sigma, or a milder spacing"
                )
        return cls(sigmas)

    # Editing: each returns a new grid

    def insert(self, *times: float) -> TimeGrid:
        """The grid with these nodes added, anywhere; they need not be in order.

        Raises: BadValue where a node exists already, names it.
        """
        new = _numbers(times)
        for t in new:
            if t in self.times:
                raise BadValue(f"{t:.9g} is already node {self.times.index(t)} of the grid: insert another value")
            if not 0 <= t < math.inf:
                raise BadValue(f"a node must be finite and not negative, got {t:g}")
        return TimeGrid(tuple(sorted({*self.times, *new}, reverse=True)), self.coordinate)

    def move(self, index: int, time: float) -> TimeGrid:
        """The grid with node `index` (negative from the end) at `time`, which must stay between its neighbours."""
        i, (time,) = self._index(index), _numbers((time,))
        above = self.times[i - 1] if i > 0 else math.inf
        below = self.times[i + 1] if i < self.n_steps else -math.inf
        if not (below < time < above and 0 <= time < math.inf):
            low = f"above node {i + 1} at {below:.9g}" if i < self.n_steps else "not below 0"
            high = f" and below node {i - 1} at {above:.9g}" if i > 0 else ""
            raise BadValue(
                f"node {i} can move to a value {low}{high}, got {time:.9g}: remove that node first to pass it"
            )
        return TimeGrid((*self.times[:i], time, *self.times[i + 1 :]), self.coordinate)

    def remove(self, index: int) -> TimeGrid:
        """The grid without node `index` (negative from the end)."""
        i = self._index(index)
        if self.n_steps == 1:
            raise BadValue("a time grid needs at least one step: the last two nodes cannot be removed")
        return TimeGrid((*self.times[:i], *self.times[i + 1 :]), self.coordinate)

    def refine(self, factor: int = 2, *, rho: float = 7.0) -> TimeGrid:
        """Each step cut into `factor` steps, even in the 1/rho-th power of the time; all nodes are kept.

        With rho = 7 the last step to 0 is resolved as it is approached; rho = 1 cuts into equal parts.
        """
        factor = _whole("factor", factor, 1)
        _positive("rho", rho)
        out = [self.times[0]]
        for a, b in pairwise(self.times):
            high, low = a ** (1 / rho), b ** (1 / rho)
            out += [(high + i / factor * (low - high)) ** rho for i in range(1, factor)] + [b]
        if any(a <= b for a, b in pairwise(out)):
            raise BadValue(f"steps this short cannot be cut into {factor}: float64 does not tell the parts apart")
        return TimeGrid(tuple(out), self.coordinate)

    def coarsen(self, factor: int = 2) -> TimeGrid:
        """Every `factor`-th node from the start, and the last: `g.refine(k).coarsen(k) == g`."""
        factor = _whole("factor", factor, 1)
        kept = self.times[:-1:factor]
        return TimeGrid((*kept, self.times[-1]), self.coordinate)

    def merge(self, other: TimeGrid, *, rtol: float = 1e-9) -> TimeGrid:
        """All nodes of both grids; those that agree to `rtol` count once, with this grid's value.

        Raises: BadValue where the two are in different coordinates.
        """
        if other.coordinate != self.coordinate:
            raise BadValue(
                f"a grid in {self.coordinate!r} cannot be merged with one in {other.coordinate!r}: convert one with "
                "grid.to('sigma', path) first"
            )
        new = {t for t in other.times if not any(math.isclose(t, own, rel_tol=rtol) for own in self.times)}
        return TimeGrid(tuple(sorted({*self.times, *new}, reverse=True)), self.coordinate)

    def shifted(self, shift: float) -> TimeGrid:
        """The grid with every sigma multiplied by `shift`: t -> shift t / (1 + (shift - 1) t) on the linear path.

        Source: Esser et al. 2024, arXiv 2403.03206, Eq. 23 (resolution-dependent shifting).
        Raises: BadValue for a grid in "t"; convert it first.
        """
        _positive("shift", shift)
        return TimeGrid(tuple(shift * s for s in self._as_sigma("shifted")))

    def snapped(self, levels: str | Sequence[float] = "iddpm") -> TimeGrid:
        """The grid with each sigma replaced by the nearest noise level of a discrete-time model; 0 stays.

        Args:
            levels: as in `discrete`.
        Raises:
            BadValue: two nodes fall on one level; names them and the level.
        """
        known, out = sorted(_levels(levels)), []
        for s in self._as_sigma("snapped to noise levels"):
            near = 0.0 if s == 0 else min(known, key=lambda u, s=s: abs(u - s))
            if out and near == out[-1]:
                raise BadValue(
                    f"sigma = {self.times[len(out) - 1]:.6g} and {s:.6g} (nodes {len(out) - 1} and {len(out)}) fall on the same level "
                    f"{near:.6g} of the {len(known)}: take fewer steps, or keep them further apart"
                )
            out.append(near)
        return TimeGrid(tuple(out))

    def _index(self, index: int) -> int:
        if isinstance(index, bool) or int(index) != index or not -len(self.times) <= index < len(self.times):
            raise BadValue(f"the grid has nodes 0 to {self.n_steps}, got {index!r}")
        return int(index) % len(self.times)

    def _as_sigma(self, doing: str) -> tuple[float, ...]:
        if self.coordinate != "sigma":
            raise BadValue(f"a grid in 't' cannot be {doing}: convert it with grid.to('sigma', path) first")
        return self.times

    # Coordinates

    def to(self, coordinate: Coordinate, path: Path, *, of: Path | None = None) -> TimeGrid:
        """The same noise levels in "sigma" or in the time "t" of `path`; there and back agrees to 1e-12.

        Args:
            of: the path whose time a grid in "t" is in; `path` itself by default. Naming another moves the grid between paths.
        Raises:
            BadValue: a time at which the path is pure noise (no sigma), beyond the path, or where float64 cannot tell nodes apart.
        """
        if coordinate not in ("t", "sigma"):
            raise UnknownName("grid coordinate", coordinate, ("t", "sigma"))
        own = of or path
        if self.coordinate == "t":
            _within(self, own)
            if coordinate == "t" and own == path:
                return self
        sigmas = self.sigmas(own)
        if math.isinf(sigmas[0]):
            raise BadValue(f"t = {self.times[0]:g} of {own} is pure noise and has no sigma: start the grid below it")
        if coordinate == "sigma":
            return TimeGrid(_apart(sigmas, f"sigma of {own}"))
        return TimeGrid(_apart([path.time_at(s) for s in sigmas], f"the time of {path}"), "t")

    def sigmas(self, path: Path) -> list[float]:
        """The grid in EDM's sigma; `path` says what "t" means."""
        return list(self.times) if self.coordinate == "sigma" else [path.ratio_at(t) for t in self.times]

    def on(self, path: Path) -> list[float]:
        """The grid as times of `path`, Python floats (float64)."""
        return list(_times_on(self, path))

    def tensor(self, path: Path, device=None) -> torch.Tensor:
        """`on` as a float64 tensor (n_steps + 1,)."""
        return torch.tensor(self.on(path), dtype=torch.float64, device=device)

    # Storage

    def to_dict(self) -> dict:
        return {"times": list(self.times), "coordinate": self.coordinate}

    @classmethod
    def from_dict(cls, data: dict) -> TimeGrid:
        if not isinstance(data, Mapping) or "times" not in data:
            raise BadValue(
                'a stored time grid is {"times": [...], "coordinate": "sigma" or "t"}, got ' + repr(data)[:80]
            )
        return cls(_numbers(data["times"]), data.get("coordinate", "sigma"))

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> TimeGrid:
        try:
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise BadValue(f"not JSON: {error}") from None


@lru_cache(maxsize=4096)
def _times_on(grid: TimeGrid, path: Path) -> tuple[float, ...]:
    if grid.coordinate == "sigma":
        return _apart([path.time_at(s) for s in grid.times], f"the time of {path}")
    _within(grid, path)
    return grid.times


def _within(grid: TimeGrid, path: Path) -> None:
    if grid.times[0] > path.t_max:
        raise BadValue(f"the grid starts at t = {grid.times[0]:g}, beyond t_max = {path.t_max:g} of {path}")


def _apart(times: Sequence[float], where: str) -> tuple[float, ...]:
    for i, (a, b) in enumerate(pairwise(times)):
        if not a > b:
            raise BadValue(
                f"in {where}, float64 cannot tell nodes {i} and {i + 1} of the grid apart ({_shown(a, b)}): start at a smaller sigma, or "
                "take fewer steps"
            )
    return tuple(times)


def noise_levels(name: str = "iddpm", n_levels: int = 1000) -> tuple[float, ...]:
    """sigma of each discrete time of a model trained on that many, from noise to data, without 0.

    "iddpm": the cosine schedule with its cap, as EDM writes it (u_0 ... u_{M-1}; Karras et al. 2022, Table 1; Nichol & Dhariwal 2021).
    "ddpm": beta linear from 1e-4 to 0.02 (Ho et al. 2020, arXiv 2006.11239). "scaled-linear": sqrt(beta) linear, 0.00085 to 0.012 (latent
    diffusion: Rombach et al. 2022, arXiv 2112.10752).
    """
    n_levels = _whole("n_levels", n_levels, 2)
    if name == "iddpm":
        return tuple(IDDPMPrecondition(n_levels).levels()[:-1].tolist())
    if name not in LEVELS:
        raise UnknownName("set of noise levels", name, LEVELS)
    power = 1.0 if name == "ddpm" else 2.0
    low, high = (b ** (1 / power) for b in ((1e-4, 0.02) if name == "ddpm" else (0.00085, 0.012)))
    beta = torch.linspace(low, high, n_levels, dtype=torch.float64) ** power
    snr = torch.expm1(-torch.log1p(-beta).cumsum(0))  # 1 / prod(1 - beta) - 1
    return tuple(snr.sqrt().flip(0).tolist())


LEVELS = ("iddpm", "ddpm", "scaled-linear")


def _levels(levels: str | Sequence[float]) -> list[float]:
    if isinstance(levels, str):
        return list(noise_levels(levels))
    found = sorted(set(_numbers(levels)), reverse=True)
    if not found or not all(0 < s < math.inf for s in found):
        raise BadValue("noise levels must be at least one positive, finite sigma")
    return found


def _check(n_steps: int, sigma_min: float, sigma_max: float) -> int:
    n_steps = _whole("the number of steps", n_steps, 1)
    if not 0 < sigma_min < sigma_max or not math.isfinite(sigma_max):
        raise BadValue(
            f"sigma_min must be positive and below sigma_max, got sigma_min = {sigma_min:g} and sigma_max = {sigma_max:g}"
        )
    return n_steps


def _whole(what: str, value: int, least: int) -> int:
    if not isinstance(value, Real) or not math.isfinite(value) or int(value) != value or value < least:
        raise BadValue(f"{what} must be a whole number of at least {least}, got {value}")
    return int(value)


def _positive(what: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise BadValue(f"{what} must be positive and finite, got {value}")


def _numbers(values: Iterable[float]) -> tuple[float, ...]:
    try:
        return tuple(float(v) for v in values)
    except (TypeError, ValueError):
        raise BadValue(f"a time grid is a sequence of numbers, got {repr(values)[:80]}") from None


def _shown(a: float, b: float) -> str:
    digits = 6 if f"{a:g}" != f"{b:g}" or a == b else 17
    return f"{a:.{digits}g} followed by {b:.{digits}g}"


def _advice(a: float, b: float) -> str:
    if not (math.isfinite(a) and math.isfinite(b)):
        return "replace what is not finite"
    if b < 0:
        return "end at 0, which is data"
    if a == b:
        return "remove one of the two, or let TimeGrid.explicit(times, dedupe=True) do it"
    return "times run from noise to data, so sort them from large to small"


def _log_cosh(x: float) -> float:
    return abs(x) + math.log1p(math.exp(-2 * abs(x))) - math.log(2)


GRIDS: dict[str, Callable[..., TimeGrid]] = {
    "karras": TimeGrid.karras,
    "log-snr": TimeGrid.log_snr,
    "uniform-sigma": TimeGrid.uniform_sigma,
    "uniform-t": TimeGrid.uniform_t,
    "cosine": TimeGrid.cosine,
    "polynomial": TimeGrid.polynomial,
    "sigmoid": TimeGrid.sigmoid,
    "laplace": TimeGrid.laplace,
    "beta": TimeGrid.beta,
    "discrete": TimeGrid.discrete,
    "karras-t": TimeGrid.karras_t,
}
WARPED = frozenset({"karras", "karras-t"})
"""Grids whose fourth argument is rho."""


def grid(name: str, n_steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> TimeGrid:
    """A grid by name; `rho` is used by "karras" and "karras-t" alone."""
    if name not in GRIDS:
        raise UnknownName("time grid", name, GRIDS)
    return GRIDS[name](n_steps, sigma_min, sigma_max, *((rho,) if name in WARPED else ()))
