"""Small colour pictures of one shape on a grey ground, with every factor known: class, colour, size, place, background.

Factors are independent unless correlations are asked for, so a model's picture can be read back and compared with the exact
law of the data: which colours a class has, how large it is, where it lies.

Legend: N pictures, K classes, S side in pixels.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from functools import lru_cache

import torch
from torch import Tensor

from explorer.data.dataset import Dataset
from explorer.errors import BadValue

CLASSES = ("disc", "square", "triangle", "cross")
COLOURS = {
    "red": (0.9, -0.7, -0.6),
    "green": (-0.7, 0.6, -0.5),
    "blue": (-0.6, -0.4, 0.95),
    "yellow": (0.95, 0.75, -0.7),
}
SIZES = (0.14, 0.21)
"""Radius of the disc of the same area, as a share of the side: small and large, each give or take `JITTER` of itself."""
JITTER = 0.05
GROUND = (-0.9, 0.1)
"""The grey of the background is uniform between these."""
REACH = 1.6
"""No shape reaches further from its centre than this, in units of its radius: the triangle's upper corner, 1.56."""
N_TRAIN, N_TEST = 10_000, 2_000


@dataclass(frozen=True)
class Factors:
    """What is in N pictures.

    Args:
        label: (N,) int64, class 0..3 in the order of `CLASSES`.
        colour: (N,) int64, in the order of `COLOURS`.
        large: (N,) int64, 0 small, 1 large.
        radius: (N,) of the disc of the same area, in units of the side.
        centre: (N, 2) x to the right and y down, in units of the side.
        ground: (N,) grey of the background.
    """

    label: Tensor
    colour: Tensor
    large: Tensor
    radius: Tensor
    centre: Tensor
    ground: Tensor

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, rows) -> Factors:
        return Factors(*(getattr(self, f.name)[rows] for f in fields(self)))


@dataclass(frozen=True)
class Shapes:
    """The distribution of the pictures.

    Args:
        side: S, at least 8.
        colour_correlation: with this probability the colour is the one with the number of the class; else any, evenly.
            0 makes them independent; 0.9 is the usual biased set. The colours stay even over all classes together.
        size_correlation: P(large | class) is 1/2 + this/2 for even classes and 1/2 - this/2 for odd ones; -1 to 1.
    """

    side: int = 16
    colour_correlation: float = 0.0
    size_correlation: float = 0.0

    def __post_init__(self):
        if not isinstance(self.side, int) or self.side < 8:
            raise BadValue(f"shapes need a side of at least 8 pixels, got {self.side!r}.")
        if not 0 <= self.colour_correlation <= 1 or not -1 <= self.size_correlation <= 1:
            raise BadValue(
                "colour_correlation must lie in 0..1 and size_correlation in -1..1, got "
                f"{self.colour_correlation} and {self.size_correlation}."
            )

    @property
    def p_colour(self) -> Tensor:
        """(K, 4) exact P(colour | class)."""
        c = self.colour_correlation
        return c * torch.eye(len(CLASSES), len(COLOURS), dtype=torch.float64) + (1 - c) / len(COLOURS)

    @property
    def p_large(self) -> Tensor:
        """(K,) exact P(large | class)."""
        sign = 1.0 - 2.0 * (torch.arange(len(CLASSES), dtype=torch.float64) % 2)
        return 0.5 + 0.5 * self.size_correlation * sign

    def factors(self, n: int, generator: torch.Generator) -> Factors:
        """What is in n random pictures."""
        if n < 1:
            raise BadValue(f"cannot draw {n} pictures; n must be at least 1.")
        u = torch.rand(7, n, dtype=torch.float64, generator=generator)
        label = (u[0] * len(CLASSES)).long()
        colour = (u[1][:, None] >= self.p_colour[label].cumsum(1)[:, :-1]).sum(1)
        large = (u[2] < self.p_large[label]).long()
        radius = torch.tensor(SIZES, dtype=torch.float64)[large] * (1 + JITTER * (2 * u[3] - 1))
        margin = REACH * SIZES[1] * (1 + JITTER)  # the same for all, so that the place tells nothing else
        centre = (margin + (1 - 2 * margin) * u[4:6]).T
        return Factors(label, colour, large, radius, centre, GROUND[0] + (GROUND[1] - GROUND[0]) * u[6])

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n fresh pictures (n, 3, S, S) float32 in [-1, 1] and their classes (n,)."""
        what = self.factors(n, generator)
        return self.render(what), what.label

    def render(self, what: Factors) -> Tensor:
        """The pictures (N, 3, S, S) float32 of given factors: ground + coverage (colour - ground)."""
        colour = _palette()[what.colour].float()[:, :, None, None]
        ground = what.ground.float()[:, None, None, None]
        return torch.lerp(ground, colour, self.coverage(what)[:, None])

    def coverage(self, what: Factors) -> Tensor:
        """(N, S, S) float32, the share of each pixel that the shape covers.

        Exact for squares and crosses; for discs to 0.04 and triangles to 0.01 in single pixels at S = 16.
        """
        out = torch.empty(len(what), self.side, self.side)
        pixel = torch.arange(self.side, dtype=torch.float32) + 0.5
        for k in range(len(CLASSES)):
            rows = (what.label == k).nonzero()[:, 0]
            offset = pixel - self.side * what.centre[rows].float()[:, :, None]  # (n, 2, S)
            x, y = offset[:, 0, None, :], offset[:, 1, :, None]
            out[rows] = _COVER[k](x, y, self.side * what.radius[rows].float()[:, None, None])
        return out

    @torch.no_grad()
    def read(self, x: Tensor) -> tuple[Factors, Tensor]:
        """Factors of pictures x (N, 3, S, S), and the root mean square by which each differs from what they would look like.

        Right on every clean picture of 16x16 or more; on a model's samples the second result says how far to trust the first.
        """
        if x.ndim != 4 or x.shape[1:] != (3, self.side, self.side):
            raise BadValue(f"expected pictures (N, 3, {self.side}, {self.side}), got {tuple(x.shape)}.")
        x = x.float()
        edge = torch.cat([x[:, :, 0], x[:, :, -1], x[:, :, 1:-1, 0], x[:, :, 1:-1, -1]], dim=2)
        ground = edge.mean(1).median(1).values
        contrast = _palette().float() - ground[:, None, None]  # (N, colours, 3)
        size = contrast.square().sum(2)  # (N, colours)
        delta = x - ground[:, None, None, None]
        cover = torch.einsum("nchw,nkc->nkhw", delta, contrast) / size[:, :, None, None]
        explained = cover.square().sum((2, 3)) * size
        colour = explained.argmax(1)
        cover = cover[torch.arange(len(x)), colour].clamp(0, 1)
        area = cover.sum((1, 2)).clamp_min(1e-6)
        pixel = (torch.arange(self.side) + 0.5) / self.side
        centre = torch.stack([cover.sum(1) @ pixel, cover.sum(2) @ pixel], dim=1) / area[:, None]
        radius = (area / math.pi).sqrt() / self.side
        large = (radius > sum(SIZES) / 2).long()
        guesses = [
            Factors(torch.full_like(colour, k), colour, large, radius, centre, ground) for k in range(len(CLASSES))
        ]
        misfit = torch.stack([(self.render(guess) - x).square().mean((1, 2, 3)) for guess in guesses], dim=1)
        best = misfit.min(1)
        return Factors(best.indices, colour, large, radius, centre, ground), best.values.sqrt()


def shapes_dataset(
    split: str = "train", shapes: Shapes | None = None, *, n: int | None = None, seed: int = 0
) -> Dataset:
    """A fixed sample of the pictures, which also draws fresh ones without end.

    Args:
        split: "train" or "test", two samples of different seeds.
        shapes: size and correlations; the default is 16x16 without any.
        n: pictures; by default 10 000 to train and 2 000 to test.
        seed: of the sample.
    """
    if split not in ("train", "test"):
        raise BadValue(f"unknown split {split!r} of the shapes; use 'train' or 'test'.")
    return _dataset(split, shapes or Shapes(), n or (N_TRAIN if split == "train" else N_TEST), seed)


def shapes_factors(
    split: str = "train", shapes: Shapes | None = None, *, n: int | None = None, seed: int = 0
) -> Factors:
    """What is in the pictures of `shapes_dataset` with the same arguments."""
    n = n or (N_TRAIN if split == "train" else N_TEST)
    return (shapes or Shapes()).factors(n, torch.Generator().manual_seed(2 * seed + (split == "test")))


@lru_cache(maxsize=4)
def _dataset(split: str, shapes: Shapes, n: int, seed: int) -> Dataset:
    what = shapes_factors(split, shapes, n=n, seed=seed)
    x = shapes.render(what)
    card = {
        "about": "one shape on a grey ground, all factors known",
        "factors": {
            "class": list(CLASSES),
            "colour": list(COLOURS),
            "radius": [*SIZES],
            "centre": [REACH * SIZES[1] * (1 + JITTER), 1 - REACH * SIZES[1] * (1 + JITTER)],
            "ground": [*GROUND],
        },
        **asdict(shapes),
        "p_colour": shapes.p_colour.tolist(),
        "p_large": shapes.p_large.tolist(),
        "split": split,
        "seed": seed,
        "n": n,
    }
    name = "shapes" if shapes.side == 16 else f"shapes{shapes.side}"
    name += "" if split == "train" else "-test"
    return Dataset(name, x, what.label, len(CLASSES), SIGMA_DATA, card, shapes.draw)


SIGMA_DATA = 0.36
"""Standard deviation of all values, rounded from 0.361."""


def _palette() -> Tensor:
    """(4, 3)."""
    return torch.tensor(list(COLOURS.values()), dtype=torch.float64)


def _overlap(x: Tensor, half: Tensor) -> Tensor:
    """Share of the unit interval around x that lies in [-half, half]."""
    return (torch.minimum(x + 0.5, half) - torch.maximum(x - 0.5, -half)).clamp(0, 1)


def _square(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    half = r * (math.sqrt(math.pi) / 2)  # (2 half)^2 = pi r^2
    return _overlap(x, half) * _overlap(y, half)


def _rows(x: Tensor, y: Tensor, top: Tensor, bottom: Tensor, half) -> Tensor:
    """Coverage by a region between two heights that is |x| <= half(y): exact along x, four points down each pixel."""
    low, high = ((y + side).clamp(top, bottom) for side in (-0.5, 0.5))
    at = (low + (high - low) * (i + 0.5) / 4 for i in range(4))
    return sum(_overlap(x, half(row)) for row in at) * (high - low) / 4


def _disc(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return _rows(x, y, -r, r, lambda row: (r * r - row * row).clamp_min(0).sqrt())


def _triangle(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Equilateral, one corner up, around its centroid."""
    inner = r * math.sqrt(math.pi / (3 * math.sqrt(3)))  # its area is 3 sqrt(3) inner^2
    return _rows(x, y, -2 * inner, inner, lambda row: (row + 2 * inner) / math.sqrt(3))


def _cross(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    half = r * math.sqrt(math.pi / 20)  # arms three times as long as they are wide: area 20 half^2
    across, along = (_overlap(x, half), _overlap(y, half)), (_overlap(x, 3 * half), _overlap(y, 3 * half))
    return along[0] * across[1] + across[0] * along[1] - across[0] * across[1]


_COVER = (_disc, _square, _triangle, _cross)
