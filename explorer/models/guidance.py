"""Guidance by several models at once, and what it is often mistaken for: scaling the score.

For one guide see `explorer.models.wrappers.Guided`; with one guide everywhere, `MultiGuided` is the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from explorer.errors import BadValue
from explorer.models.base import Cond, Denoiser
from explorer.process.broadcast import like
from explorer.process.paths import Time

Guide = tuple[Denoiser | None, float]
"""A model to move away from, and the weight; None is the base model asked without a class."""


def blended(weight: float, share: float) -> tuple[float, float]:
    """Weights (w_u, w_c) of classifier-free guidance and autoguidance with a total strength `weight`, of which `share` is the latter's.

    w_u = (1 - share)(weight - 1) + 1, w_c = share (weight - 1) + 1.
    Source: Karras et al. 2024, arXiv 2406.02507, Appendix B (several guides).
    """
    if not 0 <= share <= 1:
        raise BadValue(f"share is {share:g}; it must lie between 0 (classifier-free) and 1 (autoguidance).")
    return (1 - share) * (weight - 1) + 1, share * (weight - 1) + 1


class MultiGuided(Denoiser):
    """Guidance away from several models: D = D_m + sum_i (w_i - 1)(D_m - D_i) inside an interval of sigma, D_m outside it.

    Args:
        base: the model to follow, asked with the given class.
        guides: models to move away from, each with its weight; 1 means none and costs nothing. Those that have
            classes are asked with the given one; None is the base without one.
        interval: (low, high) in sigma where guidance acts.
    Raises:
        BadValue: no guide, None for a model without classes, a guide of another shape.
    Source: Karras et al. 2024, arXiv 2406.02507, Appendix B; the interval: Kynkaanniemi et al. 2024, arXiv 2404.07724.
    """

    def __init__(self, base: Denoiser, guides: Sequence[Guide], interval: tuple[float, float] = (0.0, math.inf)):
        super().__init__()
        if not guides:
            raise BadValue("give at least one guide, as (model, weight); None is the model itself without a class")
        for guide, weight in guides:
            if guide is None and base.n_classes == 0:
                raise BadValue(
                    f"{base.name!r} has no classes, so it cannot guide itself without one: give a guide model"
                )
            if guide is not None and guide.shape != base.shape:
                raise BadValue(f"the guide makes samples of shape {guide.shape}, the model {base.shape}")
            if not math.isfinite(weight):
                raise BadValue(f"a guide's weight must be finite, got {weight}")
        if not 0 <= interval[0] <= interval[1]:
            raise BadValue(f"the guidance interval must be 0 <= low <= high in sigma, got {interval}")
        self.base, self.interval = base, (float(interval[0]), float(interval[1]))
        self.weights = tuple(float(weight) for _, weight in guides)
        self.guides = nn.ModuleList([base if guide is None else guide.on(base.path) for guide, _ in guides])
        self.without_class = tuple(guide is None for guide, _ in guides)
        self.path, self.shape, self.n_classes, self.t_range = base.path, base.shape, base.n_classes, base.t_range
        self.name, self.n_skips = base.name, base.n_skips

    def _acting(self, t: float | None) -> list[tuple[Denoiser, float, bool]]:
        """Guides that act at a time, all that ever act for None."""
        if t is not None and not self.interval[0] <= self.path.ratio_at(t) <= self.interval[1]:
            return []
        every = zip(self.guides, self.weights, self.without_class, strict=True)
        return [each for each in every if each[1] != 1.0]

    def calls_at(self, t: float) -> int:
        return self.base.calls_at(t) + sum(guide.calls_at(t) for guide, _, _ in self._acting(t))

    def predict(self, x_t: Tensor, t: Time, cond: Cond = None):
        main = self.base.denoise(x_t, t, cond)
        acting, push = self._acting(None if isinstance(t, Tensor) else t), torch.zeros_like(main)
        for guide, weight, classless in acting:
            if classless and cond is None:
                raise BadValue(f"guidance {weight:g} by no class needs class labels for the samples; give cond")
            push = push + (weight - 1) * (
                main - guide.denoise(x_t, t, None if classless or not guide.n_classes else cond)
            )
        if acting and isinstance(t, Tensor):
            sigma = self.path.ratio(t)
            inside = (sigma >= self.interval[0]) & (sigma <= self.interval[1])
            push = like(inside.to(x_t.dtype), x_t) * push
        return (main + push if acting else main), "x0"


class Truncated(Denoiser):
    """Naive truncation: the score multiplied by a constant, D = x/alpha + factor (D_m - x/alpha).

    Not guidance: it shrinks every mode towards its centre and loses variety, which is what a contrast with guidance must show.

    Args:
        factor: 1 means none; above 1 concentrates.
    Source: Karras et al. 2024, arXiv 2406.02507, Fig. 1 ("naive truncation", factor 1.4).
    """

    def __init__(self, base: Denoiser, factor: float):
        super().__init__()
        if not (math.isfinite(factor) and factor > 0):
            raise BadValue(f"the score must be multiplied by a positive number, got {factor}")
        self.base, self.factor = base, float(factor)
        self.path, self.shape, self.n_classes, self.t_range = base.path, base.shape, base.n_classes, base.t_range
        self.name, self.n_skips = base.name, base.n_skips

    def calls_at(self, t: float) -> int:
        return self.base.calls_at(t)

    def predict(self, x_t, t, cond=None):
        main = self.base.denoise(x_t, t, cond)
        scaled = x_t / (like(self.path.alpha(t), x_t) if isinstance(t, Tensor) else self.path.at(t)[0])
        return torch.lerp(scaled, main, self.factor), "x0"
