"""Augmentation that does not leak into the samples: random geometry, and nine numbers that tell the network what was done.

A network that reads the numbers (`n_augment=9`) learns the augmented images as classes of their own; sampling with zeros asks for
images as they are. Flips are exact. Everything else is one affine map, resampled between a two-fold up- and downsampling by the
sym6 wavelet filter with the image mirrored at its border.

Source: Karras et al. 2022, arXiv 2206.00364, appendix F.2 and table 6; the filter: Daubechies 1992, table 6.3 (least asymmetric,
N = 6).

Legend: B batch, H W height width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from explorer.errors import BadValue

N_LABELS = 9
LABELS = ("xflip", "yflip", "scale", "rotate cos - 1", "rotate sin", "aniso cos", "aniso sin", "shift x", "shift y")
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
_CENTRE = sum(i * h for i, h in enumerate(SYM6)) / math.sqrt(2)
_PAD = 6


@dataclass(frozen=True)
class NonLeaking:
    """EDM's augmentation, for `Loader(augment=...)`; calling it gives augmented images and their labels (B, 9).

    Args:
        p: probability of each change but the left-right flip: 0.12 for CIFAR-10, 0.15 for FFHQ and AFHQv2.
        xflip: flip half of the images left-right, whatever p is.
        yflip: flip upside down, half of those chosen.
        scale, aniso: standard deviations of log2 of the size, and of the ratio of two perpendicular axes, half the time along the
            image's own.
        rotate: largest angle in units of pi.
        shift: standard deviation of the translation in units of the size.
    """

    p: float = 0.12
    xflip: bool = True
    yflip: bool = True
    scale: float = 0.2
    aniso: float = 0.2
    rotate: float = 1.0
    shift: float = 0.125

    def __post_init__(self):
        if not 0 <= self.p <= 1:
            raise BadValue(f"p is a probability, got {self.p}.")

    def __call__(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and labels (B, 9) in the order of `LABELS`, zero where nothing was done."""
        if x.ndim != 4 or min(x.shape[2:]) <= _PAD:
            raise BadValue(
                f"augmentation needs images (B, C, H, W) of at least {_PAD + 1} pixels, got {tuple(x.shape)}."
            )
        labels, inverse = (drawn.to(x.device) for drawn in self.draw(len(x), generator))
        for column, axis in ((0, 3), (1, 2)):
            x = torch.where(labels[:, column, None, None, None] > 0, x.flip(axis), x)
        moved = (labels[:, 2:] != 0).any(1).nonzero()[:, 0]
        if len(moved):
            x = x.index_copy(0, moved, affine(x[moved], inverse[moved], labels[moved, 7:] * self.shift))
        return x, labels

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Labels (n, 9), and the linear maps (n, 2, 2) from a place in the result to the place it is taken from."""
        u, z = torch.rand(n, 10, generator=generator), torch.randn(n, 4, generator=generator)
        on = u[:, :5] < self.p
        x_flipped = ((u[:, 5] < 0.5) & self.xflip).float()
        y_flipped = ((u[:, 6] < 0.5) & on[:, 0] & self.yflip).float()
        size = z[:, 0] * on[:, 1] * (self.scale > 0)
        angle = (2 * u[:, 7] - 1) * math.pi * self.rotate * on[:, 2]
        ratio = z[:, 1] * on[:, 3] * (self.aniso > 0)
        axis = torch.where(u[:, 8] < 0.5, (2 * u[:, 9] - 1) * math.pi, 0.0)
        shift = z[:, 2:] * on[:, 4, None] * (self.shift > 0)
        stretch = torch.exp2(self.aniso * ratio)
        along = torch.diag_embed(torch.stack([1 / stretch, stretch], dim=1))
        inverse = torch.exp2(-self.scale * size)[:, None, None] * (
            _rotation(angle) @ _rotation(-axis) @ along @ _rotation(axis)
        )
        columns = [x_flipped, y_flipped, size, angle.cos() - 1, angle.sin(), ratio * axis.cos(), ratio * axis.sin()]
        return torch.cat([torch.stack(columns, dim=1), shift], dim=1), inverse


def affine(x: Tensor, inverse: Tensor, shift: Tensor) -> Tensor:
    """Images resampled so that the value at place p is that of x at inverse (p - shift size), places from the centre.

    Args:
        x: (B, C, H, W).
        inverse: (B, 2, 2) in pixels, x to the right and y down.
        shift: (B, 2) in units of width and height.
    Returns:
        (B, C, H, W); away from the border the identity gives x back exactly, since the filter is orthonormal to its shifts by two.
    """
    n, channels, height, width = x.shape
    rows, columns = (_filters(side, x.dtype, x.device) for side in (height, width))
    fine = rows.up @ x @ columns.up.T
    inverse, size = inverse.to(x), x.new_tensor([width, height])
    start = ((shift.to(x) * size)[:, None, :] @ inverse.mT)[:, 0] - (
        size - 1
    ) / 2  # of the place where the sum below begins
    at = []
    for axis, (side, filters) in enumerate(((width, columns), (height, rows))):
        along = inverse[:, axis, 0, None] * columns.places - start[:, axis, None]
        across = inverse[:, axis, 1, None] * rows.places
        period = 2 * (side - 1)
        place = torch.remainder(across[:, :, None] + along[:, None, :], period)
        place = torch.minimum(place, period - place)  # mirrored at the outermost pixels
        at.append(
            place.mul_(4 / (filters.up.shape[0] - 1)).add_(2 * (2 * _PAD + _CENTRE) / (filters.up.shape[0] - 1) - 1)
        )
    sampled = F.grid_sample(fine, torch.stack(at, dim=-1), mode="bilinear", align_corners=True)
    return rows.down @ sampled @ columns.down.T


class Filters(NamedTuple):
    """What doubles and halves one axis of n pixels; as matrices, since a product of matrices costs less than many short sums."""

    up: Tensor  # (fine, n): mirrored by `_PAD` pixels on both sides, then doubled
    down: Tensor  # (n, read): halved
    places: Tensor  # (read,) of the fine grid that the halving reads, in pixels from the centre


@lru_cache(maxsize=32)
def _filters(n: int, dtype: torch.dtype, device: torch.device) -> Filters:
    with torch.inference_mode(False):
        h, taps = torch.tensor(SYM6, dtype=torch.float64), len(SYM6)
        mirrored = F.pad(torch.eye(n, dtype=torch.float64)[:, None], (_PAD, _PAD), mode="reflect")
        up = F.conv_transpose1d(mirrored, h.view(1, 1, -1), stride=2)[:, 0].T
        read = 2 * n + taps - 2
        down = F.conv1d(torch.eye(read, dtype=torch.float64)[:, None], h.view(1, 1, -1), stride=2)[:, 0].T
        places = (torch.arange(read, dtype=torch.float64) - _CENTRE) / 2 - (n - 1) / 2
        return Filters(*(m.to(device, dtype).contiguous() for m in (up, down, places)))


def _rotation(angle: Tensor) -> Tensor:
    c, s = angle.cos(), angle.sin()
    return torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)
