"""Time grids: where a solver stops on its way from noise to data. A grid is data, apart from the solver that walks it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from explorer.errors import BadValue, UnknownName
from explorer.process.paths import CosineVP, Linear, Path


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
    coordinate: Literal["t", "sigma"] = "sigma"

    def __post_init__(self):
        object.__setattr__(self, "times", tuple(float(t) for t in self.times))
        if self.coordinate not in ("t", "sigma"):
            raise UnknownName("grid coordinate", self.coordinate, ("t", "sigma"))
        if len(self.times) < 2:
            raise BadValue(f"a time grid needs at least one step (two times), got {len(self.times)} time(s)")
        for a, b in zip(self.times[:-1], self.times[1:], strict=True):
            if not (math.isfinite(a) and math.isfinite(b) and a > b >= 0):
                raise BadValue(
                    f"grid times must be finite, non-negative and strictly decreasing; got {a:g} followed by {b:g}"
                )

    @property
    def n_steps(self) -> int:
        return len(self.times) - 1

    @classmethod
    def karras(
        cls, n_steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0, *, to_zero: bool = True
    ) -> TimeGrid:
        """sigma^(1/rho) evenly spaced. Karras et al. 2022, arXiv 2206.00364, Eq. 5.

        `to_zero` (the usual form): n_steps values from sigma_max to sigma_min, then 0. Otherwise n_steps + 1 values ending at sigma_min.
        """
        if not rho > 0:
            raise BadValue(f"rho must be positive, got {rho}")
        low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
        return cls._spaced(n_steps, sigma_min, sigma_max, lambda u: (high + u * (low - high)) ** rho, to_zero)

    @classmethod
    def log_snr(cls, n_steps: int, sigma_min: float, sigma_max: float, *, to_zero: bool = True) -> TimeGrid:
        """ln sigma evenly spaced: uniform in log signal-to-noise ratio, the limit of `karras` for large rho."""
        return cls._spaced(n_steps, sigma_min, sigma_max, lambda u: sigma_max * (sigma_min / sigma_max) ** u, to_zero)

    @classmethod
    def uniform_sigma(cls, n_steps: int, sigma_min: float, sigma_max: float, *, to_zero: bool = True) -> TimeGrid:
        """sigma evenly spaced (karras with rho = 1)."""
        return cls.karras(n_steps, sigma_min, sigma_max, 1.0, to_zero=to_zero)

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
        path = path or Linear()
        high = path.time_at(sigma_max) ** (1 / power)
        low = 0.0 if to_zero else path.time_at(sigma_min) ** (1 / power)
        _check(n_steps, sigma_min, sigma_max)
        times = [(high + i / n_steps * (low - high)) ** power for i in range(n_steps + 1)]
        sigmas = [sigma_max, *(path.ratio_at(t) for t in times[1:])]
        return cls(tuple(sigmas))

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
    def explicit(cls, times, coordinate: Literal["t", "sigma"] = "sigma") -> TimeGrid:
        """The given times as they are."""
        return cls(tuple(times), coordinate)

    @classmethod
    def _spaced(cls, n_steps, sigma_min, sigma_max, sigma_of, to_zero: bool) -> TimeGrid:
        _check(n_steps, sigma_min, sigma_max)
        last = n_steps - 1 if to_zero else n_steps
        inner = [sigma_of(i / last) for i in range(1, last)]
        ends = [sigma_min] if last > 0 else []
        return cls((sigma_max, *inner, *ends, *((0.0,) if to_zero else ())))

    def sigmas(self, path: Path) -> list[float]:
        """The grid in EDM's sigma; `path` says what "t" means."""
        return list(self.times) if self.coordinate == "sigma" else [path.ratio_at(t) for t in self.times]

    def on(self, path: Path) -> list[float]:
        """The grid as times of `path`, Python floats (float64)."""
        return list(_times_on(self, path))

    def tensor(self, path: Path, device=None) -> torch.Tensor:
        """`on` as a float64 tensor (n_steps + 1,)."""
        return torch.tensor(self.on(path), dtype=torch.float64, device=device)

    def to_dict(self) -> dict:
        return {"times": list(self.times), "coordinate": self.coordinate}

    @classmethod
    def from_dict(cls, data: dict) -> TimeGrid:
        return cls(tuple(data["times"]), data.get("coordinate", "sigma"))

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> TimeGrid:
        return cls.from_dict(json.loads(text))


@lru_cache(maxsize=4096)
def _times_on(grid: TimeGrid, path: Path) -> tuple[float, ...]:
    if grid.coordinate == "sigma":
        return tuple(path.time_at(s) for s in grid.times)
    if grid.times[0] > path.t_max:
        raise BadValue(f"the grid starts at t = {grid.times[0]:g}, beyond t_max = {path.t_max:g} of {path}")
    return grid.times


def _check(n_steps: int, sigma_min: float, sigma_max: float) -> None:
    if int(n_steps) != n_steps or n_steps < 1:
        raise BadValue(f"the number of steps must be a whole number of at least 1, got {n_steps}")
    if not 0 < sigma_min < sigma_max or not math.isfinite(sigma_max):
        raise BadValue(
            f"sigma_min must be positive and below sigma_max, got sigma_min = {sigma_min:g} and sigma_max = {sigma_max:g}"
        )


GRIDS: dict[str, Callable[..., TimeGrid]] = {
    "karras": TimeGrid.karras,
    "log-snr": TimeGrid.log_snr,
    "uniform-sigma": TimeGrid.uniform_sigma,
    "uniform-t": TimeGrid.uniform_t,
    "cosine": TimeGrid.cosine,
    "polynomial": TimeGrid.polynomial,
}


def grid(name: str, n_steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> TimeGrid:
    """A grid by name; `rho` is used by "karras" alone."""
    if name not in GRIDS:
        raise UnknownName("time grid", name, GRIDS)
    if name == "karras":
        return TimeGrid.karras(n_steps, sigma_min, sigma_max, rho)
    return GRIDS[name](n_steps, sigma_min, sigma_max)
