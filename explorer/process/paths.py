"""Paths from data to noise: x_t = alpha(t) x0 + sigma(t) eps, with data at t = 0 and time growing with noise.

The bare word `sigma` elsewhere in the package means the *ratio* sigma(t) / alpha(t), EDM's sigma: the coordinate in which models, time
grids and papers meet. Every kind of prediction is one row (p, q) of numbers with pred = p x0 + q eps; together with x_t that is a
2x2 linear system, so two methods (`split`, `combine`) replace the twenty pairwise conversion formulas, and `convert` gives the same thing
as one affine map of (x_t, pred) for the inner loop of a solver.

Derivatives are written in closed form (autodiff of alpha and sigma fails on expanded time tensors) and tested against autodiff.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from explorer.errors import UnknownName
from explorer.process.broadcast import like

Kind = Literal["x0", "eps", "velocity", "v", "score"]
KINDS: tuple[str, ...] = get_args(Kind)
Time = float | Tensor


class Path(ABC):
    """x_t = alpha(t) x0 + sigma(t) eps for t in [0, t_max], eps ~ N(0, I).

    Subclasses are frozen dataclasses (hashable, comparable) and give alpha, sigma, their time derivatives and the inverse of the ratio
    sigma/alpha, all on float64 tensors of any shape.
    """

    t_max: ClassVar[float]

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def alpha_dot(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def sigma_dot(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def time(self, ratio: Tensor) -> Tensor:
        """Inverse of `ratio`: the time at which sigma/alpha has this value (0 -> 0, inf -> t_max)."""

    def ratio(self, t: Tensor) -> Tensor:
        """sigma(t) / alpha(t): EDM's sigma. Infinite where alpha is 0."""
        return self.sigma(t) / self.alpha(t)

    def at(self, t: float) -> tuple[float, float, float, float]:
        """(alpha, sigma, alpha_dot, sigma_dot) at one time as Python floats; cached."""
        return _at(self, float(t))

    def ratio_at(self, t: float) -> float:
        """EDM's sigma at one time as a Python float; inf where alpha is 0."""
        alpha, sigma, _, _ = _at(self, float(t))
        return sigma / alpha if alpha != 0 else math.inf

    def time_at(self, ratio: float) -> float:
        """`time` of one value as a Python float."""
        return _time_at(self, float(ratio))

    def perturb(self, x0: Tensor, eps: Tensor, t: Time) -> Tensor:
        """x_t for clean data and standard noise of the same shape (B, ...); t a number or (B,)."""
        alpha, sigma, _, _ = self._four(t)
        return like(alpha, x0) * x0 + like(sigma, eps) * eps

    def split(self, pred: Tensor, kind: Kind, x_t: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """(x0, eps) implied by a prediction of this kind at (x_t, t).

        A prediction that already is x0 or eps is returned untouched in its place, so that nothing is divided by 0 on the way; the other
        half may still be infinite or NaN where the path does not determine it (eps at sigma = 0, x0 at alpha = 0).
        """
        parts = []
        for dst in ("x0", "eps"):
            a, b = self.convert(kind, dst, t)
            parts.append(_affine(a, x_t, b, pred))
        return parts[0], parts[1]

    def combine(self, x0: Tensor, eps: Tensor, kind: Kind, t: Time) -> Tensor:
        """The quantity `kind` for known x0 and eps (B, ...) at t."""
        p, q = self._row(kind, *self._four(t))
        return like(p, x0) * x0 + like(q, eps) * eps

    def convert(self, src: Kind, dst: Kind, t: Time) -> tuple[Time, Time]:
        """(a, b) with pred_dst = a x_t + b pred_src at time t.

        A number t gives Python floats (cached, float64); a tensor (B,) gives tensors (B,); src = dst gives 0.0, 1.0. Coefficients
        are infinite or NaN exactly where the conversion does not exist (to the velocity at sigma = 0 from x0, say).
        """
        if src == dst:
            return 0.0, 1.0
        if not isinstance(t, Tensor):
            return _convert(self, src, dst, float(t))
        return self._solve(src, dst, *self._four(t))

    def _solve(self, src: Kind, dst: Kind, alpha, sigma, alpha_dot, sigma_dot):
        if src == dst:
            return 0.0, 1.0
        ps, qs = self._row(src, alpha, sigma, alpha_dot, sigma_dot)
        pd, qd = self._row(dst, alpha, sigma, alpha_dot, sigma_dot)
        det = alpha * qs - sigma * ps  # of [[alpha, sigma], [ps, qs]], which maps (x0, eps) to (x_t, pred)
        return (pd * qs - qd * ps) / det, (qd * alpha - pd * sigma) / det

    def _row(self, kind: Kind, alpha, sigma, alpha_dot, sigma_dot):
        match kind:
            case "x0":
                return 1.0, 0.0
            case "eps":
                return 0.0, 1.0
            case "velocity":  # dx_t/dt
                return alpha_dot, sigma_dot
            case "v":  # Salimans & Ho 2022, arXiv 2202.00512: alpha eps - sigma x0, on any path
                return -sigma, alpha
            case "score":  # grad log p(x_t | x0) = -eps / sigma; its posterior mean is the marginal score
                return 0.0, -1.0 / sigma
        raise UnknownName("kind of prediction", kind, KINDS)

    def _four(self, t: Time):
        if isinstance(t, Tensor):
            return self.alpha(t), self.sigma(t), self.alpha_dot(t), self.sigma_dot(t)
        return self.at(t)


def _affine(a, x: Tensor, b, y: Tensor) -> Tensor:
    if isinstance(a, float) and a == 0.0:  # also where x is not finite
        return y if isinstance(b, float) and b == 1.0 else like(b, y) * y
    return like(a, x) * x + like(b, y) * y


@lru_cache(maxsize=65536)
def _at(path: Path, t: float) -> tuple[float, float, float, float]:
    s = torch.tensor(t, dtype=torch.float64)
    return tuple(float(f(s)) for f in (path.alpha, path.sigma, path.alpha_dot, path.sigma_dot))


@lru_cache(maxsize=65536)
def _time_at(path: Path, ratio: float) -> float:
    return float(path.time(torch.tensor(ratio, dtype=torch.float64)))


@lru_cache(maxsize=65536)
def _convert(path: Path, src: Kind, dst: Kind, t: float) -> tuple[float, float]:
    four = [torch.tensor(c, dtype=torch.float64) for c in path.at(t)]  # tensors: 0-division gives inf, not an exception
    a, b = path._solve(src, dst, *four)
    return float(a), float(b)


@dataclass(frozen=True)
class EDM(Path):
    """alpha = 1, sigma = t: variance exploding, time is the noise level. Karras et al. 2022, arXiv 2206.00364."""

    t_max = math.inf

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t * 1.0

    def alpha_dot(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def time(self, ratio: Tensor) -> Tensor:
        return ratio * 1.0


@dataclass(frozen=True)
class VP(Path):
    """Variance preserving with linear beta: alpha = exp(-(beta_d t^2 / 2 + beta_min t) / 2), sigma^2 = 1 - alpha^2, t in [0, 1].

    Source: Song et al. 2021, arXiv 2011.13456 (beta from 0.1 to 20); the form with beta_d = 19.9 is Karras et al. 2022, Table 1.
    """

    beta_min: float = 0.1
    beta_d: float = 19.9
    t_max = 1.0

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * (0.5 * self.beta_d * t**2 + self.beta_min * t)

    def alpha(self, t: Tensor) -> Tensor:
        return self._log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self._log_alpha(t))).sqrt()

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -0.5 * (self.beta_d * t + self.beta_min) * self.alpha(t)

    def sigma_dot(self, t: Tensor) -> Tensor:  # sigma sigma' = -alpha alpha'; infinite at t = 0
        return -self.alpha(t) * self.alpha_dot(t) / self.sigma(t)

    def time(self, ratio: Tensor) -> Tensor:
        log = torch.log1p(ratio**2)  # = beta_d t^2 / 2 + beta_min t
        return 2 * log / (self.beta_min + (self.beta_min**2 + 2 * self.beta_d * log).sqrt())


@dataclass(frozen=True)
class CosineVP(Path):
    """alpha(t) = cos(u(t)) / cos(u(0)) with u(t) = pi/2 (t + s)/(1 + s), sigma^2 = 1 - alpha^2, t in [0, 1].

    `offset` is s = 0.008 of Nichol & Dhariwal 2021, arXiv 2102.09672, Eq. 17; offset 0 is the plain cosine path.
    """

    offset: float = 0.008
    t_max = 1.0

    def _u(self, t: Tensor) -> Tensor:
        return 0.5 * math.pi * (t + self.offset) / (1 + self.offset)

    @property
    def _u0(self) -> float:
        return 0.5 * math.pi * self.offset / (1 + self.offset)

    def alpha(self, t: Tensor) -> Tensor:
        return (self._u(t).cos() / math.cos(self._u0)).clamp_min(0.0) * (
            t < self.t_max
        )  # cos(pi/2) is 6e-17 in float64

    def sigma(self, t: Tensor) -> Tensor:
        # 1 - (cos u / cos u0)^2 = sin(u - u0) sin(u + u0) / cos^2 u0, free of cancellation at small t
        u, u0 = self._u(t), self._u0
        up = 0.5 * math.pi * t / (1 + self.offset)
        return (up.sin() * (u + u0).sin()).clamp_min(0.0).sqrt() / math.cos(u0)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -0.5 * math.pi / (1 + self.offset) * self._u(t).sin() / math.cos(self._u0)

    def sigma_dot(self, t: Tensor) -> Tensor:
        if self.offset == 0:
            return 0.5 * math.pi * self._u(t).cos()
        return -self.alpha(t) * self.alpha_dot(t) / self.sigma(t)

    def time(self, ratio: Tensor) -> Tensor:
        c0, s0 = math.cos(self._u0), math.sin(self._u0)
        finite = ratio.clamp_max(1e150)
        cos, sin = c0 / (1 + finite**2).sqrt(), ((finite**2 + s0**2) / (1 + finite**2)).sqrt()  # of u
        # sin(u - u0) without the cancellation of u - u0 at small ratios
        sin_gap = c0**2 * (finite**2 / (1 + finite**2)) / (sin * c0 + cos * s0).clamp_min(1e-300)
        return torch.atan2(sin_gap, cos * c0 + sin * s0) * 2 / math.pi * (1 + self.offset)


@dataclass(frozen=True)
class Linear(Path):
    """alpha = 1 - t, sigma = t, t in [0, 1]: rectified flow, conditional optimal transport.

    Source: Liu et al. 2022, arXiv 2209.03003; Lipman et al. 2023, arXiv 2210.02747 (both run time the other way).
    """

    t_max = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t * 1.0

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def time(self, ratio: Tensor) -> Tensor:
        return torch.where(torch.isinf(ratio), torch.ones_like(ratio), ratio / (1.0 + ratio))


@dataclass(frozen=True)
class Trig(Path):
    """alpha = cos t, sigma = sigma_data sin t, t in [0, pi/2]: TrigFlow. Lu & Song 2024, arXiv 2410.11081, Sec. 3.1.

    With sigma_data equal to the standard deviation of the data, x_t has that standard deviation at every t.
    """

    sigma_data: float = 1.0
    t_max = 0.5 * math.pi

    def alpha(self, t: Tensor) -> Tensor:
        return t.cos() * (t < self.t_max)  # cos(pi/2) is 6e-17 in float64

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_data * t.sin()

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -t.sin()

    def sigma_dot(self, t: Tensor) -> Tensor:
        return self.sigma_data * t.cos()

    def time(self, ratio: Tensor) -> Tensor:
        return torch.atan2(ratio, torch.full_like(ratio, self.sigma_data))


@dataclass(frozen=True)
class VE(Path):
    """Variance exploding: alpha = 1, sigma = sqrt(t), t >= 0: the path of EDM's with the clock of a heat equation.

    Source: Song et al. 2021, arXiv 2011.13456, in the time of Karras et al. 2022, arXiv 2206.00364, Table 1.
    """

    t_max = math.inf

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t.sqrt()

    def alpha_dot(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma_dot(self, t: Tensor) -> Tensor:  # infinite at t = 0
        return 0.5 / t.sqrt()

    def time(self, ratio: Tensor) -> Tensor:
        return ratio**2


Schedule = Literal["linear", "ve", "vp"]
Scaling = Literal["none", "vp"]


@dataclass(frozen=True)
class Factored(Path):
    """x_t = s(t) (x0 + sigma(t) eps) with noise schedule and scaling chosen apart; the ablation of EDM.

    Args:
        schedule: sigma(t) = t ("linear"), sqrt(t) ("ve") or sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1) ("vp", t in [0, 1]).
        scaling: s = 1 ("none") or 1 / sqrt(1 + sigma(t)^2) ("vp", unit variance for data of unit variance).
    Three of the six combinations have names: linear-none is EDM, ve-none is VE, vp-vp is VP.
    Source: Karras et al. 2022, arXiv 2206.00364, Table 1 and Eq. 4.
    """

    schedule: Schedule = "linear"
    scaling: Scaling = "vp"
    beta_min: float = 0.1
    beta_d: float = 19.9

    def __post_init__(self):
        if self.schedule not in get_args(Schedule):
            raise UnknownName("noise schedule", self.schedule, get_args(Schedule))
        if self.scaling not in get_args(Scaling):
            raise UnknownName("scaling", self.scaling, get_args(Scaling))

    @property
    def t_max(self) -> float:
        return 1.0 if self.schedule == "vp" else math.inf

    def ratio(self, t: Tensor) -> Tensor:
        if self.schedule == "vp":
            return torch.expm1(0.5 * self.beta_d * t**2 + self.beta_min * t).sqrt()
        return t * 1.0 if self.schedule == "linear" else t.sqrt()

    def _growth(self, t: Tensor) -> Tensor:
        """sigma(t) dsigma/dt, finite at t = 0."""
        if self.schedule == "vp":
            return 0.5 * (self.beta_d * t + self.beta_min) * (1 + self.ratio(t) ** 2)
        return t * 1.0 if self.schedule == "linear" else torch.full_like(t, 0.5)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t) if self.scaling == "none" else (1 + self.ratio(t) ** 2).rsqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return self.alpha(t) * self.ratio(t)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t) if self.scaling == "none" else -self._growth(t) * self.alpha(t) ** 3

    def sigma_dot(self, t: Tensor) -> Tensor:
        ratio_dot = torch.ones_like(t) if self.schedule == "linear" else self._growth(t) / self.ratio(t)
        return ratio_dot if self.scaling == "none" else ratio_dot * self.alpha(t) ** 3

    def time(self, ratio: Tensor) -> Tensor:
        if self.schedule == "vp":
            log = torch.log1p(ratio**2)
            return 2 * log / (self.beta_min + (self.beta_min**2 + 2 * self.beta_d * log).sqrt())
        return ratio * 1.0 if self.schedule == "linear" else ratio**2


PATHS: dict[str, type[Path]] = {
    "edm": EDM, "vp": VP, "cosine": CosineVP, "linear": Linear, "trig": Trig, "ve": VE, "factored": Factored,
}  # fmt: skip
