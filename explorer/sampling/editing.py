"""Zero-shot editing by a model that returns clean samples: inpainting, colourisation, super-resolution, denoising,
interpolation, strokes.

One algorithm serves all. Some coordinates of an image are known, after an orthogonal change of coordinates A (none for
inpainting, colours to grey and the rest for colourisation, patches to their means and the rest for super-resolution).
Jump to data, put the known coordinates back, add noise, jump again. After every projection the known coordinates are
those of the reference, so they are in the result.

Any `Model` will do: a flow map, whose jump is a sample, is meant; a plain denoiser's mean blurs. All work in float64.
Source: Song et al. 2023, arXiv 2303.01469, Sec. 4.3, Algorithm 4 and Appendix D.

B batch, C channels, H W height width, P patch side.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from explorer.errors import BadValue
from explorer.models.base import Cond, Model
from explorer.process.paths import EDM
from explorer.sampling.base import check_noise
from explorer.sampling.grids import TimeGrid
from explorer.sampling.seeds import Seeds, fresh_noise

LUMA = (0.2989, 0.5870, 0.1140)
"""Weights of red, green and blue in grey. arXiv 2303.01469, Appendix D."""


def default_levels(n: int = 40, sigma_min: float = 0.002, sigma_max: float = 80.0) -> tuple[float, ...]:
    """The noise levels of Algorithm 4, descending: all of a grid of n but its last, from which nothing would change."""
    return TimeGrid.karras(n - 1, sigma_min, sigma_max, to_zero=False).times[:-1]


class Known(ABC):
    """Which part of an image is known: an orthogonal change of coordinates and a mask. Finals are frozen dataclasses."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A x, of whatever shape."""

    @abstractmethod
    def inverse(self, z: Tensor, shape: torch.Size) -> Tensor:
        """A^-1 z, images (B, C, H, W)."""

    @abstractmethod
    def unknown(self, z: Tensor) -> Tensor:
        """Omega: True where coordinates A x are to be made up, broadcastable to them."""

    def project(self, x: Tensor, reference: Tensor) -> Tensor:
        """x with the known coordinates of the reference."""
        z, known = self.forward(x), self.forward(reference)
        return self.inverse(torch.where(self.unknown(z), z, known), x.shape)

    def blank(self, reference: Tensor) -> Tensor:
        """The reference with its unknown coordinates set to 0: all that an edit may look at."""
        return self.project(torch.zeros_like(reference), reference)


@dataclass(frozen=True, eq=False)
class Inpainting(Known):
    """Pixels outside a mask are known. `mask`: True where to paint, (H, W), (C, H, W) or (B, C, H, W)."""

    mask: Tensor

    def forward(self, x):
        return x

    def inverse(self, z, shape):
        return z

    def unknown(self, z):
        try:
            return self.mask.to(device=z.device, dtype=torch.bool).expand(z.shape)
        except RuntimeError:
            raise BadValue(f"a mask of shape {tuple(self.mask.shape)} does not fit images {tuple(z.shape)}.") from None


@dataclass(frozen=True)
class Colourisation(Known):
    """The grey value of each pixel is known, along a unit vector of colour space; the two coordinates across it are not."""

    weights: tuple[float, float, float] = LUMA

    def forward(self, x):
        if x.shape[1] != 3:
            raise BadValue(f"colourisation needs red, green and blue, got images of shape {tuple(x.shape[1:])}.")
        return torch.einsum("bchw,cd->bdhw", x, self._axes(x))

    def inverse(self, z, shape):
        return torch.einsum("bdhw,cd->bchw", z, self._axes(z))

    def unknown(self, z):
        return torch.tensor([False, True, True], device=z.device)[:, None, None]

    def _axes(self, x: Tensor) -> Tensor:
        return orthogonal(torch.tensor(self.weights, dtype=torch.float64)).to(x)


@dataclass(frozen=True)
class SuperResolution(Known):
    """The mean of each P x P patch is known: a picture of 1/P of the size."""

    factor: int = 2

    def __post_init__(self):
        if self.factor < 2:
            raise BadValue(f"the factor of super-resolution is {self.factor}; it must be at least 2.")

    def forward(self, x):
        return self._patches(x) @ self._axes(x)  # (B, C, H/P, W/P, P^2)

    def inverse(self, z, shape):
        b, c, h, w = shape
        p = self.factor
        patches = (z @ self._axes(z).T).reshape(b, c, h // p, w // p, p, p)
        return patches.permute(0, 1, 2, 4, 3, 5).reshape(b, c, h, w)

    def unknown(self, z):
        return torch.arange(self.factor**2, device=z.device) > 0

    def enlarge(self, small: Tensor) -> Tensor:
        """(B, C, H, W) with the given patch means (B, C, H/P, W/P), constant in each patch: the reference of an edit."""
        return small.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)

    def _patches(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        p = self.factor
        if h % p or w % p:
            raise BadValue(
                f"images of {h}x{w} cannot be cut into patches of {p}x{p}; choose a factor that divides both."
            )
        return x.reshape(b, c, h // p, p, w // p, p).permute(0, 1, 2, 4, 3, 5).reshape(b, c, h // p, w // p, p * p)

    def _axes(self, x: Tensor) -> Tensor:
        return orthogonal(torch.ones(self.factor**2, dtype=torch.float64)).to(x)


def orthogonal(first: Tensor) -> Tensor:
    """An orthogonal matrix (D, D) float64 whose first column is the given vector (D,) over its length, by QR with positive sign."""
    seed = torch.eye(len(first), dtype=torch.float64)
    seed[:, 0] = first.double()
    q, _ = torch.linalg.qr(seed)
    return q * torch.where((q[:, 0] * first).sum() < 0, -1.0, 1.0)


@torch.no_grad()
def edit_steps(
    model: Model,
    reference: Tensor,
    known: Known,
    rng: Seeds,
    *,
    levels: Sequence[float] | None = None,
    start: Tensor | None = None,
    cond: Cond = None,
    clamp: float | None = 1.0,
    sigma_min: float = 0.002,
) -> Iterator[Tensor]:
    """The image after each jump and projection of Algorithm 4, (B, *shape) float64; the last one is the result.

    Args:
        reference: (B, *shape); only its known coordinates are looked at.
        rng: one seed per image.
        levels: sigma of the jumps, descending; `default_levels` of the model's range by default.
        start: what the first noise is added to; what is known of the reference by default.
        cond: class labels (B,).
        clamp: the model's answers are cut to [-clamp, clamp] before the projection, as in the official sampler; None:
        as they are. sigma_min: noise left in the model's answers.
    """
    check_noise(model, reference)
    model = model.on(EDM())
    levels = tuple(levels or default_levels(40, *model.sigma_range))
    if any(a <= b for a, b in zip(levels, levels[1:], strict=False)) or levels[-1] <= 0:
        raise BadValue(f"the levels of an edit must be positive and descending, got {levels}.")
    if len(rng) != len(reference):
        raise BadValue(f"{len(reference)} images need as many seeds, got {len(rng)}.")
    reference = known.blank(reference.double())
    x, std = reference if start is None else start.double(), levels[0]
    for sigma, lower in zip(levels, (*levels[1:], 0.0), strict=True):
        x = model.denoise(x + std * fresh_noise(x, rng), sigma, cond)
        x = known.project(x if clamp is None else x.clamp(-clamp, clamp), reference)
        yield x
        std = math.sqrt(max(lower**2 - sigma_min**2, 0.0))


def edit(model: Model, reference: Tensor, known: Known, rng: Seeds, **settings) -> Tensor:
    """The image made of what is known of the reference, (B, *shape) float64; see `edit_steps` for the settings."""
    for x in edit_steps(model, reference, known, rng, **settings):  # noqa: B007
        pass
    return x


def inpaint(model: Model, image: Tensor, mask: Tensor, rng: Seeds, **settings) -> Tensor:
    """The image painted anew where the mask is True; its other pixels are returned as they came."""
    return edit(model, image, Inpainting(mask), rng, **settings)


def colourise(model: Model, image: Tensor, rng: Seeds, **settings) -> Tensor:
    """A coloured image (B, 3, H, W) of the grey values of the given one: only those are looked at."""
    return edit(model, image, Colourisation(), rng, **settings)


def super_resolve(model: Model, small: Tensor, factor: int, rng: Seeds, **settings) -> Tensor:
    """An image (B, C, factor H, factor W) whose patch means are the pixels of the small one (B, C, H, W)."""
    known = SuperResolution(factor)
    return edit(model, known.enlarge(small), known, rng, **settings)


@torch.no_grad()
def denoise(model: Model, noisy: Tensor, sigma: float, cond: Cond = None) -> Tensor:
    """The clean image of x0 + sigma eps in one jump, for any sigma in the model's range."""
    model = model.on(EDM())
    low, high = model.sigma_range
    if not low <= sigma <= high:
        raise BadValue(f"the noise is {sigma:g}; {model.name or 'this model'} knows {low:g} to {high:g}.")
    return model.denoise(noisy.double(), float(sigma), cond)


@torch.no_grad()
def interpolate(model: Model, z0: Tensor, z1: Tensor, weights: Sequence[float], cond: Cond = None) -> Tensor:
    """Images between two, (W, *shape): one jump from the spherical interpolation of their noises (*shape).

    x = sin((1 - a) phi) / sin(phi) z0 + sin(a phi) / sin(phi) z1, phi the angle between them: weight 0 is z0, 1 is z1.
    """
    model = model.on(EDM())
    sigma = model.sigma_range[1]
    a, b = z0.double().flatten(), z1.double().flatten()
    angle = torch.acos((a @ b / (a.norm() * b.norm())).clamp(-1, 1))
    if float(angle.sin()) < 1e-6:
        raise BadValue("the two noises are parallel, so no arc between them is singled out; choose another one.")
    w = torch.tensor(weights, dtype=torch.float64, device=a.device)[:, None]
    z = (((1 - w) * angle).sin() * a + (w * angle).sin() * b) / angle.sin()
    return model.denoise(sigma * z.reshape(-1, *z0.shape), sigma, cond)


def refine_strokes(
    model: Model, strokes: Tensor, rng: Seeds, *, levels: Sequence[float] = (5.38, 2.24), **settings
) -> Tensor:
    """An image guided by a rough painting: noise covers its detail, jumps replace it. Nothing is held fixed.

    The levels are the paper's for 256 x 256 bedrooms; less noise stays nearer to the strokes. As SDEdit, Meng et al.
    2021, arXiv 2108.01073.
    """
    return edit(
        model, strokes, Inpainting(torch.ones((), dtype=torch.bool)), rng, start=strokes, levels=levels, **settings
    )


def intermediate_levels(
    badness: Callable[[tuple[float, ...]], float], candidates: Sequence[float], n_jumps: int
) -> tuple[tuple[float, ...], float]:
    """Levels of a sampler of `n_jumps` jumps, found one at a time by ternary search, and how bad it is with them.

    Args:
        badness: of jumping at these levels (descending): say an FD on held-out noise, the same for every candidate.
        Lower is better. candidates: descending; the first is where sampling starts, and the last bounds the search from
        below. Each further
            level is looked for below the ones before, which stay as they are: greedy. A ternary search assumes one
            minimum.
    Source: arXiv 2303.01469, Sec. 4.1 ("ternary search") and its official code.
    """
    levels = [float(s) for s in candidates]
    if n_jumps < 1 or len(levels) < n_jumps + 1 or any(a <= b for a, b in zip(levels, levels[1:], strict=False)):
        raise BadValue(f"{n_jumps} jumps need more than {n_jumps} descending candidates, got {len(levels)}.")
    known: dict[tuple[int, ...], float] = {}

    def value(chosen: tuple[int, ...]) -> float:
        if chosen not in known:
            known[chosen] = float(badness(tuple(levels[i] for i in chosen)))
        return known[chosen]

    chosen: tuple[int, ...] = (0,)
    for left in range(n_jumps - 1, 0, -1):
        low, high = chosen[-1] + 1, len(levels) - left  # room for those still to come
        while high - low > 2:
            third = (high - low) // 3
            if value((*chosen, low + third)) < value((*chosen, high - third)):
                high -= third
            else:
                low += third
        chosen = min(((*chosen, i) for i in range(low, high + 1)), key=value)
    return tuple(levels[i] for i in chosen), value(chosen)
