"""Denoisers made of denoisers: another path, guidance, scaled skips. The interface that goes in comes out."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

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
        guide: the model to move away from, asked with the given class if it has classes; by default `base` asked without one
            (classifier-free guidance).
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
        if self.guide is None:
            return self.base.denoise(x_t, t, None)
        return self.guide.denoise(x_t, t, cond if self.guide.n_classes else None)


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
        if base.n_skips == 0 or not isinstance(base, Preconditioned | LayersLeftOut):
            raise BadValue(
                f"skip-tuning needs a U-Net with skip connections, and {base.name or type(base).__name__!r} has none"
            )
        scales = skip_schedule(base.n_skips, rho_bottom, rho_top) if scales is None else [float(s) for s in scales]
        if len(scales) != base.n_skips:
            raise BadValue(f"{base.name!r} has {base.n_skips} skip connections, got {len(scales)} coefficients")
        self.base, self.interval, self.scales = base, interval, tuple(scales)
        self.register_buffer("skip_scale", torch.tensor(scales, dtype=torch.float32), persistent=False)
        self.path, self.shape, self.n_classes, self.t_range = base.path, base.shape, base.n_classes, base.t_range
        self.name, self.n_skips, self.n_layers = base.name, base.n_skips, base.n_layers

    def calls_at(self, t: float) -> int:
        return self.base.calls_at(t)

    def _scale(self, x_t: Tensor, t: Time) -> Tensor | None:
        scale = self.skip_scale.to(x_t.device)
        if isinstance(t, Tensor):
            sigma = self.path.ratio(t).expand(len(x_t))
            inside = (sigma >= self.interval[0]) & (sigma <= self.interval[1])
            return torch.where(inside[:, None], scale, 1.0)
        return scale if self.interval[0] <= self.path.ratio_at(t) <= self.interval[1] else None

    def predict(self, x_t, t, cond=None, **inside):
        return self.base.predict(x_t, t, cond, skip_scale=self._scale(x_t, t), **inside)

    def _as(self, kind: Kind, x_t, t, cond, **inside):
        return self.base._as(kind, x_t, t, cond, skip_scale=self._scale(x_t, t), **inside)


class LayersLeftOut(Denoiser):
    """A frozen U-Net asked without some of its blocks, others at each noise level. Li et al. 2023, arXiv 2309.10438.

    Args:
        base: a `Preconditioned` model whose network numbers its blocks (`n_layers` > 0), or one with scaled skips.
        levels: (sigma, numbers of the blocks left out there), any order. A prediction is made without the blocks of the level nearest
            in ln sigma, so that each step of a sampler has its own where the levels are the sigmas at which it asks.
    Raises:
        BadValue: the network numbers no blocks, one of them does not exist, two levels are the same, or there are none.
    """

    def __init__(self, base: Denoiser, levels: Sequence[tuple[float, Sequence[int]]]):
        super().__init__()
        if base.n_layers == 0 or not isinstance(base, Preconditioned | SkipTuned):
            raise BadValue(
                f"layers can be left out of a UNet or an EDMUNet, and {base.name or type(base).__name__!r} is neither"
            )
        levels = sorted(((float(s), frozenset(map(int, out))) for s, out in levels), key=lambda level: level[0])
        if not levels or not levels[0][0] > 0 or any(a == b for (a, _), (b, _) in pairwise(levels)):
            raise BadValue("layers are left out at one or more different noise levels above 0")
        wrong = sorted(i for _, out in levels for i in out if not 0 <= i < base.n_layers)
        if wrong:
            raise BadValue(f"{base.name!r} has layers 0 to {base.n_layers - 1}, and {wrong[0]} is none of them")
        self.base, self.levels = base, tuple(levels)
        self.path, self.shape, self.n_classes, self.t_range = base.path, base.shape, base.n_classes, base.t_range
        self.name, self.n_skips, self.n_layers = base.name, base.n_skips, base.n_layers
        self._edges = [math.sqrt(a * b) for (a, _), (b, _) in pairwise(levels)]

    def calls_at(self, t: float) -> int:
        return self.base.calls_at(t)

    def left_out_at(self, t: float) -> frozenset[int]:
        """Numbers of the blocks that a prediction at this time is made without."""
        return self.levels[bisect_left(self._edges, self.path.ratio_at(t))][1]

    def predict(self, x_t, t, cond=None, **inside):
        return self._asked(self.base.predict, x_t, t, cond, inside)

    def _as(self, kind: Kind, x_t, t, cond, **inside):
        return self._asked(partial(self.base._as, kind), x_t, t, cond, inside)

    def _asked(self, ask, x_t, t, cond, inside):
        if not isinstance(t, Tensor):
            return ask(x_t, t, cond, skip_layers=self.left_out_at(t), **inside)
        each = [self.left_out_at(float(s)) for s in t.reshape(-1)]
        if len(set(each)) > 1:
            raise BadValue(
                "the samples of this batch are at noise levels that leave out different layers: ask for each alone"
            )
        return ask(x_t, t, cond, skip_layers=each[0], **inside)


class AskedElsewhere(Denoiser):
    """A frozen denoiser asked at other noise levels than those where its answers are used. Tong et al. 2024, arXiv 2405.15506.

    At (x_t, t) the noise E[eps | x] of the base at another level is taken for that at t; the state keeps its size in units of
    sqrt(alpha^2 + sigma^2), so that the same is asked on every path. Equal levels change nothing.

    Args:
        base: the model.
        levels: (sigma, the sigma asked instead), any order; elsewhere sigma is multiplied by what the nearest level in ln sigma is.
    Raises: BadValue: no levels, two for one sigma, or one that is not positive.
    """

    def __init__(self, base: Denoiser, levels: Sequence[tuple[float, float]]):
        super().__init__()
        levels = sorted((float(s), float(asked)) for s, asked in levels)
        if not levels or any(not 0 < v < math.inf for pair in levels for v in pair):
            raise BadValue("a model is asked elsewhere at one or more positive noise levels")
        if any(a == b for (a, _), (b, _) in pairwise(levels)):
            raise BadValue("each noise level has one other level at which the model is asked")
        self.base, self.levels = base, tuple(levels)
        self.path, self.shape, self.n_classes, self.t_range = base.path, base.shape, base.n_classes, base.t_range
        self.name = base.name
        self._edges = [math.sqrt(a * b) for (a, _), (b, _) in pairwise(levels)]

    def asked_at(self, sigma: float) -> float:
        """The sigma at which the base is asked."""
        at, asked = self.levels[bisect_left(self._edges, sigma)]
        return asked if at == sigma else sigma * (asked / at)

    def calls_at(self, t: float) -> int:
        return self.base.calls_at(self.path.time_at(self.asked_at(self.path.ratio_at(t))))

    def predict(self, x_t, t, cond=None):
        if not isinstance(t, Tensor):
            sigma = self.path.ratio_at(t)
            if not 0 < sigma < math.inf:
                return self.base.eps(x_t, t, cond), "eps"
            asked = self.asked_at(sigma)
            return noise_asked_at(self.base, x_t, t, self.path.time_at(asked), cond), "eps"
        sigma = self.path.ratio(t)
        factors = sigma.new_tensor([asked / at for at, asked in self.levels])
        factor = factors[torch.bucketize(sigma, sigma.new_tensor(self._edges))]
        return noise_asked_at(self.base, x_t, t, self.path.time(sigma * factor), cond), "eps"


def noise_asked_at(model: Denoiser, x_t: Tensor, t: Time, asked: Time, cond: Cond = None) -> Tensor:
    """E[eps | x] of the model at time `asked`, for the state that has x_t's size there: (B, *shape), differentiable in both times."""
    if isinstance(t, Tensor):
        size = lambda at: torch.hypot(model.path.alpha(at), model.path.sigma(at))  # noqa: E731
        return model.eps(like(size(asked) / size(t), x_t) * x_t, asked, cond)
    scale = math.hypot(*model.path.at(asked)[:2]) / math.hypot(*model.path.at(t)[:2])
    return model.eps(x_t * scale, asked, cond)
