"""What a raw network output F means: pred = c_skip x + c_out F(c_in x; c_noise).

Each preconditioning names the kind of prediction `pred` is, so that one conversion (`Path.convert`) serves all of them.
Coefficients are given on the state x_t of the model's own path, whatever that path is: `scale` is alpha(t), `sigma` is sigma(t).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from explorer.errors import BadValue, UnknownName
from explorer.process.paths import Kind, Path, Time


class Precondition(ABC):
    """(c_skip, c_out, c_in, c_noise) at a time of a path, and the kind of what they produce. Finals are frozen dataclasses."""

    kind: ClassVar[Kind]

    @abstractmethod
    def coefficients(self, t: Tensor, path: Path) -> tuple[Time, Time, Time, Tensor]:
        """The four coefficients for times t (B,) of `path`, each (B,), or the number where it is the same at all times."""

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
    """F is the velocity itself; the network sees `time_scale` t. Liu et al. 2022 feed 999 t on images, 1 on toys.

    With `backward` the network runs from noise to data, as published ones do: it sees `time_scale` (1 - t), and F is minus the
    velocity.
    """

    time_scale: float = 1.0
    backward: bool = False
    kind = "velocity"

    def coefficients(self, t, path):
        if self.backward:
            return 0.0, -1.0, 1.0, self.time_scale * (1 - t)
        return 0.0, 1.0, 1.0, self.time_scale * t


@dataclass(frozen=True)
class EpsPrecondition(Precondition):
    """F is the noise eps; the network sees x_t of its own path as it is, and `time_scale` t.

    On the VP path with 999: the continuous DDPM++ of Song et al. 2021, arXiv 2011.13456, in the form of Karras et al. 2022, Table 1.
    """

    time_scale: float = 999.0
    kind = "eps"

    def coefficients(self, t, path):
        return 0.0, 1.0, 1.0, self.time_scale * t


@dataclass(frozen=True)
class VEPrecondition(Precondition):
    """F is minus the noise and the network sees the unscaled state: D = x + sigma F(x; ln(sigma / 2)).

    Source: Song et al. 2021, arXiv 2011.13456 (NCSN++, whose sigma is of data in [0, 1], half of ours), as Karras et al. 2022, Table 1.
    """

    kind = "x0"

    def coefficients(self, t, path):
        sigma, alpha = path.ratio(t), path.alpha(t)
        return 1 / alpha, sigma, 1 / alpha, (sigma / 2).log()


@dataclass(frozen=True)
class VPrecondition(Precondition):
    """F is v = alpha eps - sigma x0. Salimans & Ho 2022, arXiv 2202.00512."""

    time_scale: float = 1.0
    kind = "v"

    def coefficients(self, t, path):
        return 0.0, 1.0, 1.0, self.time_scale * t


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


Predicts = Literal["eps", "v", "x0"]
Betas = Literal["linear", "scaled_linear", "cosine"]


@dataclass(frozen=True)
class DDPMPrecondition(Precondition):
    """A network trained at M discrete noise levels, which sees the index of the level: 0 is the least noise.

    Between two levels the index is interpolated in ln sigma, so that solvers may go anywhere; beyond the ends it stays.

    Args:
        betas: how the variance added per level grows: "linear", "scaled_linear" (in its square root) or "cosine".
        beta_min, beta_max: its first and last value; "cosine" has none.
        predicts: what F is.
    Source: Ho et al. 2020, arXiv 2006.11239; cosine: Nichol & Dhariwal 2021, arXiv 2102.09672, Eq. 17, beta at most 0.999.
    """

    betas: Betas = "linear"
    n_levels: int = 1000
    beta_min: float = 1e-4
    beta_max: float = 0.02
    predicts: Predicts = "eps"
    kind = "x0"

    def __post_init__(self):
        for what, value, valid in (("schedule of betas", self.betas, Betas), ("prediction", self.predicts, Predicts)):
            if value not in get_args(valid):
                raise UnknownName(what, value, get_args(valid))
        if not (0 < self.beta_min <= self.beta_max < 1) or not 2 <= self.n_levels <= 100_000:
            raise BadValue(
                f"{self.n_levels} levels with beta from {self.beta_min:g} to {self.beta_max:g} are no noise schedule: beta lies in (0, 1)."
            )

    def levels(self) -> Tensor:
        """sigma of each level, rising: (M,) float64."""
        return _ddpm_levels(self.betas, self.n_levels, self.beta_min, self.beta_max)

    def coefficients(self, t, path):
        sigma, alpha = path.ratio(t), path.alpha(t)
        known = self.levels().log().to(sigma.device)
        wanted = sigma.log().clamp(known[0], known[-1]).reshape(-1)
        low = (torch.searchsorted(known, wanted, right=True) - 1).clamp(0, self.n_levels - 2)
        index = low + (wanted - known[low]) / (known[low + 1] - known[low])
        scale = (1 + sigma**2).rsqrt()  # F sees a state of unit variance
        c_in, c_noise = scale / alpha, index.reshape(sigma.shape)
        match self.predicts:
            case "eps":
                return 1 / alpha, -sigma, c_in, c_noise
            case "v":
                return scale**2 / alpha, -sigma * scale, c_in, c_noise
        return torch.zeros_like(sigma), torch.ones_like(sigma), c_in, c_noise


@lru_cache(maxsize=8)
def _ddpm_levels(betas: Betas, n: int, low: float, high: float) -> Tensor:
    if betas == "cosine":
        steps = torch.arange(n + 1, dtype=torch.float64) / n
        product = torch.cos((steps + 0.008) / 1.008 * math.pi / 2) ** 2
        beta = (1 - product[1:] / product[:-1]).clamp_max(0.999)
    elif betas == "linear":
        beta = torch.linspace(low, high, n, dtype=torch.float64)
    else:
        beta = torch.linspace(low**0.5, high**0.5, n, dtype=torch.float64) ** 2
    log = torch.log1p(-beta).cumsum(0)  # of alpha^2
    return (-torch.expm1(log) / log.exp()).sqrt()


PRECONDITIONS: dict[str, type[Precondition]] = {
    "edm": EDMPrecondition,
    "consistency": ConsistencyPrecondition,
    "flow": FlowPrecondition,
    "eps": EpsPrecondition,
    "ve": VEPrecondition,
    "v": VPrecondition,
    "trigflow": TrigFlowPrecondition,
    "iddpm": IDDPMPrecondition,
    "ddpm": DDPMPrecondition,
}
