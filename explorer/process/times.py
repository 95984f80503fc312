"""Distributions of the training time (or noise level): sample, density, distribution function.

Each states the coordinate it is meant for; the transformation to another coordinate is the path's (`Path.time`, `Path.ratio`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from explorer.errors import BadValue


class TimeDistribution(ABC):
    """A density on a line, sampled by its inverse distribution function so that stratified or quasi-random draws are possible."""

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """Inverse distribution function at u in (0, 1), any shape."""

    @abstractmethod
    def pdf(self, t: Tensor) -> Tensor:
        """Density at t, 0 outside the support."""

    def sample(self, n: int, *, generator: torch.Generator | None = None, device=None, dtype=torch.float32) -> Tensor:
        """n independent draws, (n,). The draw happens on the generator's device in float64 and is then cast."""
        source = generator.device if generator is not None else device
        u = torch.rand(n, generator=generator, device=source, dtype=torch.float64)
        tiny = torch.finfo(torch.float64).tiny
        return self.quantile(u.clamp(tiny, 1 - 2**-53)).to(device=device, dtype=dtype)


@dataclass(frozen=True)
class LogNormal(TimeDistribution):
    """ln sigma ~ N(p_mean, p_std^2). Coordinate: sigma. Karras et al. 2022, arXiv 2206.00364, Table 1 (-1.2, 1.2)."""

    p_mean: float = -1.2
    p_std: float = 1.2

    def quantile(self, u):
        return (self.p_mean + self.p_std * torch.special.ndtri(u)).exp()

    def pdf(self, t):
        z = (t.clamp_min(1e-300).log() - self.p_mean) / self.p_std
        return torch.where(t > 0, (-0.5 * z**2).exp() / (t * self.p_std * math.sqrt(2 * math.pi)), 0.0)


@dataclass(frozen=True)
class Uniform(TimeDistribution):
    """Uniform on [low, high]. Coordinate: t."""

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        if not self.low < self.high:
            raise BadValue(f"a uniform distribution needs low < high, got {self.low} and {self.high}")

    def quantile(self, u):
        return self.low + (self.high - self.low) * u

    def pdf(self, t):
        return ((t >= self.low) & (t <= self.high)).to(t.dtype) / (self.high - self.low)


@dataclass(frozen=True)
class LogUniform(TimeDistribution):
    """ln sigma uniform between ln low and ln high. Coordinate: sigma. The VE training distribution of Karras et al. 2022, Table 1."""

    low: float = 0.02
    high: float = 100.0

    def __post_init__(self):
        if not 0 < self.low < self.high:
            raise BadValue(f"a log-uniform distribution needs 0 < low < high, got {self.low} and {self.high}")

    def quantile(self, u):
        return self.low * (self.high / self.low) ** u

    def pdf(self, t):
        inside = (t >= self.low) & (t <= self.high)
        return torch.where(inside, 1 / (t * math.log(self.high / self.low)), 0.0)


@dataclass(frozen=True)
class KarrasUniform(TimeDistribution):
    """sigma^(1/rho) uniform: position u in [start, stop] along Karras et al.'s grid, 0 at `low` and 1 at `high`. Coordinate: sigma.

    Distribution matching draws an index of a grid of 1000 such levels, 20 to 980 for the generator: start 0.02, stop 0.98. A continuous
    draw differs by less than one cell. Karras et al. 2022, arXiv 2206.00364, Eq. 5; Yin et al. 2023, arXiv 2311.18828, Sec. 3.2.
    """

    low: float = 0.002
    high: float = 80.0
    rho: float = 7.0
    start: float = 0.0
    stop: float = 1.0

    def __post_init__(self):
        if not (0 < self.low < self.high and self.rho > 0 and 0 <= self.start < self.stop <= 1):
            raise BadValue(
                f"a Karras distribution needs 0 < low < high, rho > 0 and 0 <= start < stop <= 1, got {self}"
            )

    def quantile(self, u):
        a, b = self.low ** (1 / self.rho), self.high ** (1 / self.rho)
        return (a + (b - a) * (self.start + (self.stop - self.start) * u)) ** self.rho

    def pdf(self, t):
        a, b = self.low ** (1 / self.rho), self.high ** (1 / self.rho)
        root = t.clamp_min(0.0) ** (1 / self.rho)
        place = (root - a) / (b - a)
        inside = (place >= self.start - 1e-12) & (place <= self.stop + 1e-12)
        density = root / (self.rho * t * (b - a) * (self.stop - self.start))
        return torch.where(inside & (t > 0), density, 0.0)


@dataclass(frozen=True)
class LogitNormal(TimeDistribution):
    """logit t ~ N(mean, std^2) on (0, 1). Coordinate: t of the linear path. Esser et al. 2024, arXiv 2403.03206, Sec. 3.1."""

    mean: float = 0.0
    std: float = 1.0

    def quantile(self, u):
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))

    def pdf(self, t):
        inside = (t > 0) & (t < 1)
        s = torch.where(inside, t, torch.full_like(t, 0.5))
        z = (torch.logit(s) - self.mean) / self.std
        return torch.where(inside, (-0.5 * z**2).exp() / (s * (1 - s) * self.std * math.sqrt(2 * math.pi)), 0.0)


@dataclass(frozen=True)
class UShaped(TimeDistribution):
    """p(t) proportional to cosh(a (t - 1/2)) on [0, 1]. Coordinate: t of the linear path. Lee et al. 2024, arXiv 2405.20320 (a = 4)."""

    a: float = 4.0

    def quantile(self, u):
        return 0.5 + torch.asinh((2 * u - 1) * math.sinh(0.5 * self.a)) / self.a

    def pdf(self, t):
        inside = (t >= 0) & (t <= 1)
        return torch.where(inside, torch.cosh(self.a * (t - 0.5)) * self.a / (2 * math.sinh(0.5 * self.a)), 0.0)
