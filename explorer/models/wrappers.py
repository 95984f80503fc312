"""Denoisers made of denoisers: another path, guidance, scaled skips. The interface that goes in comes out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from explorer.errors import BadValue
from explorer.models.base import Cond, Denoiser, Preconditioned
from explorer.process.broadcast import like
from explorer.process.paths import Kind, Path, Time


class Moved(Denoiser):
    """A model seen on another path: x on the new path is x' = (alpha'/alpha) x on the model's own, at equal sigma/alpha.

    The denoiser is unchanged; Euler steps give the same end point on every path at equal grids (DDIM's invariance), higher orders do not.
    Undefined where the new path has alpha = 0 (pure noise carries no sigma); grids end before it.
    """

    def __init__(self, base: Denoiser, path: Path):
        super().__init__()
        self.base, self.path = base, path
        self.shape, self.n_classes, self.name, self.n_skips = base.shape, base.n_classes, base.name, base.n_skips
        low, high = base.t_range
        self.t_range = path.time_at(base.path.ratio_at(low)), path.time_at(base.path.ratio_at(high))

    def calls_at(self, t: float) -> int:
        return self.base.calls_at(self.base.path.time_at(self.path.ratio_at(t)))

    def predict(self, x_t, t, cond=None):
        if isinstance(t, Tensor):
            own = self.base.path.time(self.path.ratio(t))
            scale = self.base.path.alpha(own) / self.path.alpha(t)
            return self.base.denoise(like(scale, x_t) * x_t, own, cond), "x0"
        own = self.base.path.time_at(self.path.ratio_at(t))
        alpha = self.path.at(t)[0]
        if alpha == 0.0:
            raise BadValue(
                f"time {t} of {self.path} is pure noise (alpha = 0): {self.name!r} on {self.base.path} has no such state"
            )
        scale = self.base.path.at(own)[0] / alpha
        return self.base.denoise(x_t if scale == 1.0 else x_t * scale, own, cond), "x0"


class Guided(Denoiser):
    """Guidance: D = D_guide + scale (D_base - D_guide) inside an interval of sigma, D_base outside it.

    Args:
        base: the model to follow, asked with the given class.
        scale: 1 means none; above 1 moves away from the guide.
        guide: the model to move away from; by default `base` asked without a class (classifier-free guidance).
        interval: (low, high) in sigma where guidance acts; elsewhere one evaluation is spent, not two.
    Raises:
        BadValue: no guide was given and the base has no classes; shapes or paths differ.
    Source: Ho & Salimans 2022, arXiv 2207.12598; a separate guide: Karras et al. 2024, arXiv 2406.02507; the interval: Kynkaanniemi et
    al. 2024, arXiv 2404.07724.
    """

    def __init__(
        self,
        base: Denoiser,
        scale: float,
        guide: Denoiser | None = None,
        interval: tuple[float, float] = (0.0, math.inf),
    ):
        super().__init__()
        if guide is None and base.n_classes == 0:
            raise BadValue(
                f"guidance {scale:g} needs a class-conditional model, and {base.name!r} is unconditional: "
                "choose a conditional model, give a guide model, or set guidance to 1"
            )
        if guide is not None and guide.shape != base.shape:
            raise BadValue(f"the guide makes samples of shape {guide.shape}, the model {base.shape}")
        if not 0 <= interval[0] <= interval[1]:
            raise BadValue(f"the guidance interval must be 0 <= low <= high in sigma, got {interval}")
        self.base, self.scale, self.interval = base, float(scale), (float(interval[0]), float(interval[1]))
        self.guide = guide.on(base.path) if guide is not None else None
        self.path, self.shape, self.n_classes, self.t_range = base.path, base.shape, base.n_classes, base.t_range
        self.name, self.n_skips = base.name, base.n_skips

    def _acts(self, t: float) -> bool:
        return self.scale != 1.0 and self.interval[0] <= self.path.ratio_at(t) <= self.interval[1]

    def calls_at(self, t: float) -> int:
        if not self._acts(t):
            return self.base.calls_at(t)
        return self.base.calls_at(t) + (self.guide or self.base).calls_at(t)

    def predict(self, x_t, t, cond=None):
        if self.guide is None and cond is None and self.scale != 1.0:
            raise BadValue(
                f"guidance {self.scale:g} needs class labels for the samples; give cond, or set guidance to 1"
            )
        if not isinstance(t, Tensor):
            positive = self.base.denoise(x_t, t, cond)
            if not self._acts(t):
                return positive, "x0"
            return torch.lerp(self._negative(x_t, t, cond), positive, self.scale), "x0"
        positive, negative = self.base.denoise(x_t, t, cond), self._negative(x_t, t, cond)
        sigma = self.path.ratio(t)
        inside = (sigma >= self.interval[0]) & (sigma <= self.interval[1])
        scale = torch.where(inside, self.scale, 1.0).to(x_t.dtype)
        return negative + like(scale, x_t) * (positive - negative), "x0"

    def _negative(self, x_t: Tensor, t: Time, cond: Cond) -> Tensor:
        return self.base.denoise(x_t, t, None) if self.guide is None else self.guide.denoise(x_t, t, cond)


def skip_schedule(n_skips: int, rho_bottom: float, rho_top: float) -> list[float]:
    """Coefficients from the bottom (lowest resolution) to the top: rho_i = rho_bottom + (rho_top - rho_bottom) i / k for i = 1..k.

    With this indexing the topmost skip has exactly rho_top and rho_bottom is the value one level below the lowest skip.
    Source: Ma et al. 2024, arXiv 2402.15170 (linear schedule over depth).
    """
    return [rho_bottom + (rho_top - rho_bottom) * i / n_skips for i in range(1, n_skips + 1)]


class SkipTuned(Denoiser):
    """A frozen U-Net whose skip features are multiplied by coefficients at inference. Ma et al. 2024, arXiv 2402.15170.

    Args:
        base: a `Preconditioned` model whose network has skips (`n_skips` > 0).
        scales: one coefficient per skip, from the bottom up; or give `rho_bottom` and `rho_top` for the paper's linear schedule.
        interval: (low, high) in sigma where the coefficients act.
    Raises:
        BadValue: the network has no skip connections, or the number of coefficients is wrong.
    """

    def __init__(
        self,
        base: Denoiser,
        scales: Sequence[float] | None = None,
        *,
        rho_bottom: float = 1.0,
        rho_top: float = 1.0,
        interval: tuple[float, float] = (0.0, math.inf),
    ):
        super().__init__()
        if base.n_skips == 0 or not isinstance(base, Preconditioned):
            raise BadValue(
                f"skip-tuning needs a U-Net with skip connections, and {base.name or type(base).__name__!r} has none"
            )
        scales = skip_schedule(base.n_skips, rho_bottom, rho_top) if scales is None else [float(s) for s in scales]
        if len(scales) != base.n_skips:
            raise BadValue(f"{base.name!r} has {base.n_skips} skip connections, got {len(scales)} coefficients")
        self.base, self.interval, self.scales = base, interval, tuple(scales)
        self.register_buffer("skip_scale", torch.tensor(scales, dtype=torch.float32), persistent=False)
        self.path, self.shape, self.n_classes, self.t_range = base.path, base.shape, base.n_classes, base.t_range
        self.name, self.n_skips = base.name, base.n_skips

    def calls_at(self, t: float) -> int:
        return self.base.calls_at(t)

    def _scale(self, x_t: Tensor, t: Time) -> Tensor | None:
        scale = self.skip_scale.to(x_t.device)
        if isinstance(t, Tensor):
            sigma = self.path.ratio(t).expand(len(x_t))
            inside = (sigma >= self.interval[0]) & (sigma <= self.interval[1])
            return torch.where(inside[:, None], scale, 1.0)
        return scale if self.interval[0] <= self.path.ratio_at(t) <= self.interval[1] else None

    def predict(self, x_t, t, cond=None):
        return self.base.predict(x_t, t, cond, skip_scale=self._scale(x_t, t))

    def _as(self, kind: Kind, x_t, t, cond):
        return self.base._as(kind, x_t, t, cond, skip_scale=self._scale(x_t, t))
