"""Divergences between two diffused densities, as gradients on the samples of the second: pure formulas, no networks.

p is the target (a teacher, or data), q the law of a generator x = g(z); p_s and q_s are both after blurring with noise of standard
deviation s, x_s = x + s n. With r = p_s / q_s at x_s, l = ln r and u = grad l = score_p - score_q, every f-divergence
E_q f(r) moves the sample by

    grad_theta E_q f(r) = E[ h(r) (score_q - score_p)(x_s) . dg/dtheta ],    h(r) = r^2 f''(r).

One number h per sample tells reverse from forward Kullback-Leibler, Jensen-Shannon, chi-square and the game of a GAN. Denoisers stand for
scores: score = (D - x_s) / s^2, so score_q - score_p = (D_q - D_p) / s^2.

The same h weighs the squared score difference: the derivative of E_q f(r) with respect to s^2 is -1/2 E_q[h |u|^2]
(de Bruijn), so the integral over s^2 of E_q[h |u|^2] / 2 is the divergence at zero noise. Its gradient has three parts,
`expanded`; `score_identity` is the one that matters in practice (score identity distillation).

Sources: Yin et al. 2023, arXiv 2311.18828 (reverse KL, normaliser); Jayashankar et al. 2025, arXiv 2502.09609 (skew
Jensen-Shannon); Zhou et al. 2024, arXiv 2404.04057 (score identity); Wang et al. 2025, arXiv 2505.20755 (expansion).
The formulas here are derived anew and tested against quadrature.

B batch; samples (B, *shape); ratios and weights (B,).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from explorer.errors import BadValue
from explorer.process.broadcast import like


class Curvature(NamedTuple):
    """h = r^2 f'', and r h', r^2 h'': (B,) each."""

    h: Tensor
    rh1: Tensor
    r2h2: Tensor


class Divergence(ABC):
    """An f-divergence E_q f(p/q) seen through log-ratios. Finals are frozen dataclasses."""

    needs_ratio = True

    @abstractmethod
    def f(self, log_ratio: Tensor) -> Tensor:
        """f(r) with f(1) = 0: the divergence is its mean under q."""

    @abstractmethod
    def curvature(self, log_ratio: Tensor) -> Curvature:
        """h = r^2 f''(r) and its derivatives."""

    def weight(self, log_ratio: Tensor) -> Tensor:
        """h(r): the factor on the score difference that makes it the gradient of this divergence."""
        return self.curvature(log_ratio).h


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """KL(q | p), f = -ln r: seeks modes, needs no ratio. Diff-Instruct, DMD and DMD2."""

    needs_ratio = False

    def f(self, log_ratio):
        return -log_ratio

    def curvature(self, log_ratio):
        one, zero = torch.ones_like(log_ratio), torch.zeros_like(log_ratio)
        return Curvature(one, zero, zero)


@dataclass(frozen=True)
class ForwardKL(Divergence):
    """KL(p | q), f = r ln r: covers modes; the weight is the ratio itself."""

    def f(self, log_ratio):
        return log_ratio.exp() * log_ratio

    def curvature(self, log_ratio):
        r = log_ratio.exp()
        return Curvature(r, r, torch.zeros_like(r))


@dataclass(frozen=True)
class Jeffreys(Divergence):
    """KL(q | p) + KL(p | q)."""

    def f(self, log_ratio):
        return torch.expm1(log_ratio) * log_ratio

    def curvature(self, log_ratio):
        r = log_ratio.exp()
        return Curvature(r + 1, r, torch.zeros_like(r))


@dataclass(frozen=True)
class ChiSquare(Divergence):
    """E_q (r - 1)^2."""

    def f(self, log_ratio):
        return torch.expm1(log_ratio) ** 2

    def curvature(self, log_ratio):
        r2 = (2 * log_ratio).exp()
        return Curvature(2 * r2, 4 * r2, 4 * r2)


@dataclass(frozen=True)
class JensenShannon(Divergence):
    """KL(p | m) + KL(q | m) with m = (p + q) / 2: what the saturating game of a GAN descends."""

    def f(self, log_ratio):
        r, two = log_ratio.exp(), math.log(2)
        return r * (log_ratio + two) + two - (1 + r) * torch.nn.functional.softplus(log_ratio)

    def curvature(self, log_ratio):
        s = log_ratio.sigmoid()
        return Curvature(s, s * (1 - s), -2 * s**2 * (1 - s))


@dataclass(frozen=True)
class SkewJensenShannon(Divergence):
    """KL(q | m) / alpha + KL(p | m) / (1 - alpha) with m = alpha p + (1 - alpha) q: from forward (0) to reverse KL (1).

    Its direction is (score_q - score_m) / alpha: a score of the mixture serves as well as a ratio.
    Source: Jayashankar et al. 2025, arXiv 2502.09609.
    """

    alpha: float = 0.5

    def __post_init__(self):
        if not 0 < self.alpha < 1:
            raise BadValue(
                f"the skew alpha must lie in (0, 1), got {self.alpha}; its ends are ForwardKL and ReverseKL."
            )

    @property
    def _logit(self) -> float:
        return math.log(self.alpha / (1 - self.alpha))

    def f(self, log_ratio):
        a = self.alpha
        log_m = torch.nn.functional.softplus(log_ratio + self._logit) + math.log1p(-a)  # ln(alpha r + 1 - alpha)
        return -log_m / a + log_ratio.exp() * (log_ratio - log_m) / (1 - a)

    def curvature(self, log_ratio):
        s = (log_ratio + self._logit).sigmoid()
        return Curvature(*(v / self.alpha for v in (s, s * (1 - s), -2 * s**2 * (1 - s))))


@dataclass(frozen=True)
class NonSaturating(Divergence):
    """KL(q | p) - 2 JS(p, q): what -ln D of an optimal discriminator descends. Weight 1 / (1 + r): nothing pulls towards lost modes."""

    def f(self, log_ratio):
        return ReverseKL().f(log_ratio) - JensenShannon().f(log_ratio)

    def curvature(self, log_ratio):
        return Curvature(
            *(a - b for a, b in zip(*(d().curvature(log_ratio) for d in (ReverseKL, JensenShannon)), strict=True))
        )


DIVERGENCES: Mapping[str, type[Divergence]] = MappingProxyType({
    "reverse-kl": ReverseKL, "forward-kl": ForwardKL, "jeffreys": Jeffreys, "jensen-shannon": JensenShannon, "chi-square": ChiSquare,
    "skew": SkewJensenShannon, "non-saturating": NonSaturating,
})  # fmt: skip


# Directions on samples, and losses whose gradient they are


def distance_scale(x: Tensor, denoised_p: Tensor) -> Tensor:
    """mean |x - D_p| over each sample's features, (B,): the normaliser of DMD. x is the clean sample. Yin et al. 2023, Eq. 8."""
    return (x - denoised_p).detach().abs().flatten(1).mean(1)


def direction(
    denoised_p: Tensor, denoised_q: Tensor, *, weight: Tensor | None = None, scale: Tensor | None = None
) -> Tensor:
    """weight (D_q - D_p) / scale, what to subtract from each sample, (B, *shape); not finite entries become 0.

    Args:
        weight: (B,) h(r) of a divergence; None is 1, the reverse KL.
        scale: (B,) sigma^2 gives the score difference itself, `distance_scale` DMD's normalised direction; None is 1.
    """
    delta = denoised_q - denoised_p
    if weight is not None:
        delta = like(weight.to(delta.dtype), delta) * delta
    if scale is not None:
        delta = delta / like(scale.to(delta.dtype), delta)
    return torch.nan_to_num(delta, nan=0.0, posinf=0.0, neginf=0.0)


def pushed(x: Tensor, delta: Tensor) -> Tensor:
    """1/2 mean (x - sg[x - delta])^2 over features, (B,): autograd hands delta / n_features to x, and nothing else."""
    target = (x - delta).detach()
    return 0.5 * (x - target).square().flatten(1).mean(1)


def score_identity(x: Tensor, denoised_p: Tensor, denoised_q: Tensor, a: float = 1.0) -> Tensor:
    """(1 - a) |U|^2 + U . (D_q - x), U = D_p - D_q, summed over features, (B,): the Fisher divergence without the derivative of q.

    Gradients must reach x through both denoisers (their weights frozen) and directly. With a = 1 it is s^4 / 2 times the gradient of
    E_q |u|^2 at a frozen law of x_s; with a = 1/2 of all of it. Practice uses a from 1 to 1.2. The value is no measure of progress.
    Source: Zhou et al. 2024, arXiv 2404.04057.
    """
    gap = denoised_p - denoised_q
    return ((1 - a) * gap.square() + gap * (denoised_q - x)).flatten(1).sum(1)


class Expanded(NamedTuple):
    """Three losses (B,) whose gradients add up to that of E_q[h |u|^2]; see `expanded`."""

    ratio: Tensor
    sampling: Tensor
    identity: Tensor


def expanded(
    x: Tensor,
    denoised_p: Tensor,
    denoised_q: Tensor,
    log_ratio: Tensor,
    sigma: float | Tensor,
    divergence: Divergence,
    weight_grad: Literal["full", "detach"] = "full",
) -> Expanded:
    """Losses for the weighted score difference E_q[h(r) |u|^2] at one noise level.

    Args:
        x: (B, *shape) samples with graph.
        denoised_p, denoised_q: at x_s, with graph to x.
        log_ratio: (B,) ln p_s / q_s at x_s, with graph to x (its gradient is u).
        sigma: noise level, a number or (B,).
        weight_grad: "full" lets the gradient also flow through the weight of the identity part, as the exact gradient does; "detach" is
            cheaper and biased wherever the weight and the generator's derivative are correlated.
    Source: the decomposition of Wang et al. 2025, arXiv 2505.20755, derived anew: -r^2 h'' |u|^2 u . dx, (h - r h') grad |u|^2 . dx, and
    2 h / s^4 times `score_identity`.
    """
    if weight_grad not in ("full", "detach"):
        raise BadValue(f"weight_grad is {weight_grad!r}; use 'full' or 'detach'.")
    s2 = like(sigma, x) ** 2
    u = (denoised_p - denoised_q) / s2
    squared = u.square().flatten(1).sum(1)
    h, rh1, r2h2 = divergence.curvature(log_ratio if weight_grad == "full" else log_ratio.detach())
    ratio = -((r2h2 * squared).detach() * (u.detach() * x).flatten(1).sum(1))
    sampling = (h - rh1).detach() * squared
    identity = 2 * h * score_identity(x / s2, denoised_p / s2, denoised_q / s2)
    return Expanded(ratio, sampling, identity)
