"""What a raw network output F means: pred = c_skip x + c_out F(c_in x; c_noise).

Each preconditioning names the kind of prediction `pred` is, so that one conversion (`Path.convert`) serves all of them.
Coefficients are given on the state x_t of the model's own path, whatever that path is: `scale` is alpha(t), `sigma` is sigma(t).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from explorer.process.paths import Kind, Path, Time


class Precondition(ABC):
    """(c_skip, c_out, c_in, c_noise) at a time of a path, and the kind of what they produce. Finals are frozen dataclasses."""

    kind: ClassVar[Kind]

    @abstractmethod
    def coefficients(self, t: Tensor, path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four coefficients for times t (B,) of `path`, each (B,)."""

    def at(self, t: Time, path: Path) -> tuple[Time, Time, Time, Time]:
        """`coefficients` for a number as cached Python floats, for a tensor as tensors."""
        if isinstance(t, Tensor):
            return self.coefficients(t, path)
        return _at(self, float(t), path)


@lru_cache(maxsize=65536)
def _at(precondition: Precondition, t: float, path: Path) -> tuple[float, float, float, float]:
    return tuple(float(c) for c in precondition.coefficients(torch.tensor(t, dtype=torch.float64), path))


@dataclass(frozen=True)
class EDMPrecondition(Precondition):
    """Unit variance of the network's input and training target at every noise level. Karras et al. 2022, arXiv 2206.00364, Table 1.

    On a path other than EDM's the state is divided by alpha(t) first, which c_in and c_skip absorb.
    """

    sigma_data: float = 0.5
    kind = "x0"

    def coefficients(self, t, path):
        sigma, alpha, sd = path.ratio(t), path.alpha(t), self.sigma_data
        total = sigma**2 + sd**2
        c_skip = sd**2 / total / alpha
        c_out = sigma * sd / total.sqrt()
        c_in = 1 / total.sqrt() / alpha
        c_noise = sigma.log() / 4
        return c_skip, c_out, c_in, c_noise


@dataclass(frozen=True)
class ConsistencyPrecondition(Precondition):
    """EDM's, moved so that the result is exactly x at sigma_min: the boundary condition of consistency models.

    c_skip = sd^2 / ((sigma - sigma_min)^2 + sd^2), c_out = sd (sigma - sigma_min) / sqrt(sigma^2 + sd^2); c_in and c_noise as in EDM.
    Source: Song et al. 2023, arXiv 2303.01469, Appendix C.
    """

    sigma_data: float = 0.5
    sigma_min: float = 0.002
    kind = "x0"

    def coefficients(self, t, path):
        sigma, alpha, sd = path.ratio(t), path.alpha(t), self.sigma_data
        above, total = sigma - self.sigma_min, sigma**2 + sd**2
        c_skip = sd**2 / (above**2 + sd**2) / alpha
        return c_skip, sd * above / total.sqrt(), 1 / total.sqrt() / alpha, sigma.log() / 4


@dataclass(frozen=True)
class FlowPrecondition(Precondition):
    """F is the velocity itself; the network sees `time_scale` t. Liu et al. 2022 feed 999 t on images, 1 on toys."""

    time_scale: float = 1.0
    kind = "velocity"

    def coefficients(self, t, path):
        one = torch.ones_like(t)
        return torch.zeros_like(t), one, one, self.time_scale * t


@dataclass(frozen=True)
class VPrecondition(Precondition):
    """F is v = alpha eps - sigma x0. Salimans & Ho 2022, arXiv 2202.00512."""

    time_scale: float = 1.0
    kind = "v"

    def coefficients(self, t, path):
        one = torch.ones_like(t)
        return torch.zeros_like(t), one, one, self.time_scale * t


@dataclass(frozen=True)
class TrigFlowPrecondition(Precondition):
    """velocity = sigma_data F(x / sigma_data; t) on the trigonometric path. Lu & Song 2024, arXiv 2410.11081, Eq. 4."""

    sigma_data: float = 0.5
    kind = "velocity"

    def coefficients(self, t, path):
        one = torch.ones_like(t)
        return torch.zeros_like(t), self.sigma_data * one, one / self.sigma_data, t * 1.0


@dataclass(frozen=True)
class IDDPMPrecondition(Precondition):
    """F is eps at the nearest of M discrete noise levels of the cosine schedule; sigma is rounded to that level.

    c_noise = M - 1 - j for the nearest u_j. Nichol & Dhariwal 2021, arXiv 2102.09672, as rewritten in Karras et al. 2022, Table 1.
    """

    n_levels: int = 1000
    c1: float = 0.001
    c2: float = 0.008
    kind = "x0"

    def levels(self) -> Tensor:
        """u_0 > u_1 > ... > u_M = 0: (M + 1,) float64."""
        return _iddpm_levels(self.n_levels, self.c1, self.c2)

    def coefficients(self, t, path):
        sigma, alpha = path.ratio(t), path.alpha(t)
        u = self.levels().to(sigma.device)[:-1]
        index = (sigma.reshape(-1, 1) - u).abs().argmin(dim=1).reshape(sigma.shape)
        rounded = u[index]
        return 1 / alpha, -rounded, 1 / (rounded**2 + 1).sqrt() / alpha, (self.n_levels - 1 - index).to(sigma.dtype)


@lru_cache(maxsize=8)
def _iddpm_levels(n: int, c1: float, c2: float) -> Tensor:
    def alpha_bar(j: int) -> float:
        return math.sin(0.5 * math.pi * j / (n * (c2 + 1))) ** 2

    u = [0.0]
    for j in range(n, 0, -1):
        u.append(math.sqrt((u[-1] ** 2 + 1) / max(alpha_bar(j - 1) / alpha_bar(j), c1) - 1))
    return torch.tensor(u[::-1], dtype=torch.float64)


PRECONDITIONS: dict[str, type[Precondition]] = {
    "edm": EDMPrecondition,
    "consistency": ConsistencyPrecondition,
    "flow": FlowPrecondition,
    "v": VPrecondition,
    "trigflow": TrigFlowPrecondition,
    "iddpm": IDDPMPrecondition,
}
