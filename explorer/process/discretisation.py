"""Discrete noise levels of consistency training: how many, which pair is drawn, how a pair is weighed, and what the
spacing costs.

A consistency model f is trained to agree at two neighbouring levels of one trajectory. Levels are EDM's sigma,
ascending: sigma_1 = sigma_min to sigma_N = sigma_max, so interval n runs from sigma_n up to sigma_{n+1} and there are N
- 1 of them. "N" counts levels, as the papers' N(k).

Sources: Song et al. 2023, arXiv 2303.01469 (grid, CT's schedules); Song & Dhariwal 2023, arXiv 2310.14189 (iCT's
curriculum, index law, weight).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from explorer.errors import BadValue, UnknownName

SIGMA_RANGE = (0.002, 80.0)
"""Where consistency models of images live: sigma_min (epsilon in the papers) and sigma_max (T)."""


def karras_levels(
    n: int, sigma_min: float = SIGMA_RANGE[0], sigma_max: float = SIGMA_RANGE[1], rho: float = 7.0
) -> Tensor:
    """sigma_1 < ... < sigma_n with sigma^(1/rho) evenly spaced, (n,) float64; both ends are exact.

    In float32 neighbours near sigma_min would agree to two digits at n = 1281, and 1 / gap with them.
    Source: Karras et al. 2022, arXiv 2206.00364, Eq. 5; in ascending order as in arXiv 2303.01469, Sec. 3.
    """
    if n < 2 or not 0 < sigma_min < sigma_max:
        raise BadValue(f"a grid needs n >= 2 and 0 < sigma_min < sigma_max, got n={n} from {sigma_min} to {sigma_max}.")
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    levels = torch.linspace(low, high, n, dtype=torch.float64) ** rho
    levels[0], levels[-1] = sigma_min, sigma_max
    return levels


# How many levels, as training proceeds


class Curriculum(ABC):
    """Number of levels N as a function of the fraction of training done. Finals are frozen dataclasses."""

    @abstractmethod
    def __call__(self, fraction: float) -> int:
        """N at this fraction (k / K) of training, in [0, 1]."""

    def stages(self, n_steps: int) -> list[tuple[int, int]]:
        """(first step, N) of every stage of a run of `n_steps` steps."""
        out: list[tuple[int, int]] = []
        for k in range(n_steps):
            n = self(k / n_steps)
            if not out or out[-1][1] != n:
                out.append((k, n))
        return out


@dataclass(frozen=True)
class Fixed(Curriculum):
    """The same N throughout, as in consistency distillation."""

    n: int = 18

    def __post_init__(self):
        if self.n < 2:
            raise BadValue(f"two levels at least are needed to compare, got n={self.n}.")

    def __call__(self, fraction):
        return self.n


@dataclass(frozen=True)
class SquareRoot(Curriculum):
    """N(k) = ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1: from s0 levels to s1 + 1. arXiv 2303.01469, Appendix C."""

    s0: int = 2
    s1: int = 150

    def __call__(self, fraction):
        return math.ceil(math.sqrt(fraction * ((self.s1 + 1) ** 2 - self.s0**2) + self.s0**2) - 1) + 1


@dataclass(frozen=True)
class Doubling(Curriculum):
    """N(k) = min(s0 2^floor(k / K'), s1) + 1, K' = floor(K / (log2 floor(s1 / s0) + 1)): the intervals double at equal
    distances.

    Here k / K' is taken as fraction * number of stages: the same wherever K is a multiple of that number, and else
    within as many steps of it. arXiv 2310.14189, Sec. 3.4.
    """

    s0: int = 10
    s1: int = 1280

    def __post_init__(self):
        if not 1 <= self.s0 <= self.s1:
            raise BadValue(f"a doubling curriculum needs 1 <= s0 <= s1, got {self.s0} and {self.s1}.")

    @property
    def n_stages(self) -> float:
        return math.log2(self.s1 // self.s0) + 1

    def __call__(self, fraction):
        stage = math.floor(fraction * self.n_stages + 1e-9)  # 3/8 K / K * 8 may fall short of 3 by rounding
        return min(self.s0 * 2**stage, self.s1) + 1


@dataclass(frozen=True)
class TargetDecay:
    """mu(k) = exp(s0 ln mu0 / (N(k) - 1)): decay of the target network's average, nearer 1 as levels get denser.

    The paper prints N(k) in the denominator; the authors' code has the number of intervals N(k) - 1, and so have we.
    Source: arXiv 2303.01469, Appendix C, and its official code.
    """

    s0: int = 2
    mu0: float = 0.9

    def __call__(self, n: int) -> float:
        return math.exp(self.s0 * math.log(self.mu0) / (n - 1))


# Which interval is drawn


class IndexLaw(ABC):
    """Probabilities of the intervals of a grid. Finals are frozen dataclasses."""

    @abstractmethod
    def probabilities(self, levels: Tensor) -> Tensor:
        """(N - 1,) from ascending levels (N,), float64, summing to 1."""

    def draw(self, n: int, levels: Tensor, generator: torch.Generator | None = None, device=None) -> Tensor:
        """n interval indices from 0, (n,) int64, drawn on the generator's device by inverting the distribution function."""
        source = generator.device if generator is not None else device
        u = torch.rand(n, generator=generator, device=source, dtype=torch.float64)
        above = self.probabilities(levels).cumsum(0).to(source)[:-1]
        return torch.searchsorted(above, u, right=True).to(device)


@dataclass(frozen=True)
class UniformIndex(IndexLaw):
    """Every interval alike. arXiv 2303.01469, Alg. 2 and 3."""

    def probabilities(self, levels):
        return levels.new_full((len(levels) - 1,), 1 / (len(levels) - 1), dtype=torch.float64)


@dataclass(frozen=True)
class LogNormalIndex(IndexLaw):
    """Mass of ln sigma ~ N(p_mean, p_std^2) in each interval, renormalised to the grid: differences of erf. arXiv 2310.14189, Sec. 3.5."""

    p_mean: float = -1.1
    p_std: float = 2.0

    def probabilities(self, levels):
        z = (levels.double().log() - self.p_mean) / (math.sqrt(2) * self.p_std)
        mass = torch.special.erf(z).diff()
        return mass / mass.sum()


# How a pair is weighed


def equal_weight(low: Tensor, high: Tensor) -> Tensor:
    """lambda = 1, as in every released run of arXiv 2303.01469."""
    return torch.ones_like(high)


def inverse_gap(low: Tensor, high: Tensor) -> Tensor:
    """lambda(sigma_i) = 1 / (sigma_{i+1} - sigma_i): large where levels are dense. arXiv 2310.14189, Sec. 3.2. Give float64 levels."""
    return 1 / (high - low)


# What the spacing costs: exact, for Gaussian data and a linear map

TargetSolver = Literal["euler", "heun"]


def linear_gains(levels: Tensor, sigma_data: float, solver: TargetSolver = "euler") -> Tensor:
    """Factor k_n by which a converged linear f falls short of f at the level below, for each interval, (N - 1,)
    float64.

    For x0 ~ N(0, s^2), mean squared error and a target without lag the optimum at sigma_{n+1} is a regression on
    f(x at sigma_n), so f(x, sigma_{n+1}) = k_n f(x, sigma_n) x-wise and f(x, sigma_n) = x prod_{j<n} k_j. Consistency
    training and distillation by one Euler step of the exact score have the same k_n = (s^2 + r t) / (s^2 + t^2), r =
    sigma_n, t = sigma_{n+1}; Heun's is that of its own step. No weight and no index law enters: every level is a
    regression of its own.
    """
    if solver not in ("euler", "heun"):
        raise UnknownName("target solver", solver, ("euler", "heun"))
    r, t, v = levels[:-1].double(), levels[1:].double(), sigma_data**2
    euler = (v + r * t) / (v + t**2)  # 1 + (r - t) t / (s^2 + t^2)
    if solver == "euler":
        return euler
    return 1 + 0.5 * (r - t) * (t / (v + t**2) + euler * r / (v + r**2))


def bias_ratio(levels: Tensor, sigma_data: float, solver: TargetSolver = "euler") -> float:
    """Standard deviation of one-step samples over the true one, for Gaussian data and a converged linear f: the price
    of N levels.

    One-step samples are f(sigma_max z, sigma_max); the exact map multiplies by sqrt((s^2 + sigma_min^2) / (s^2 +
    sigma_max^2)). For s = 0.5 and the usual range: 0.195 at N = 3, 0.548 at 6, 0.846 at 18, 0.965 at 80, 0.998 at 1281;
    Heun's 1.055 at 18.
    """
    low, high, v = float(levels[0]), float(levels[-1]), sigma_data**2
    exact = math.sqrt((v + low**2) / (v + high**2))
    return float(linear_gains(levels, sigma_data, solver).prod()) / exact


def gaussian_map(x: Tensor, t: Tensor | float, mean: float, std: float, sigma_min: float = SIGMA_RANGE[0]) -> Tensor:
    """End at sigma_min of the probability-flow ODE from (x, t) for x0 ~ N(mean, std^2 I): m + (x - m) sqrt((s^2 + e^2) / (s^2 + t^2))."""
    t = torch.as_tensor(t, dtype=x.dtype)
    gain = ((std**2 + sigma_min**2) / (std**2 + t**2)).sqrt()
    return mean + (x - mean) * (gain.reshape(-1, *(1,) * (x.ndim - 1)) if gain.ndim else gain)
