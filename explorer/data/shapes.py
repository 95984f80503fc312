"""Small colour pictures of one shape on a ground, with every factor known: class, colour, size, place, background.

Factors are independent unless correlations are asked for, so a model's picture can be read back and compared with the exact
law of the data: which colours a class has, how large it is, where it lies.

Two kinds. Flat: an even shape on an even grey. Lit: light falls from the upper left on a tilted shape, which throws a shadow
on a tinted ground that changes over the picture. With a the coverage, everything that light adds is grey,
    x = (1 - a) (ground(p) - SHADOW a(p - s) 1) + a (colour + SHADE h(p) 1),
so that the part of x orthogonal to 1 is that of (1 - a) ground + a colour, and reads back as exactly as in a flat picture.

Legend: N pictures, K classes, S side in pixels, p place in units of the side, s the shadow's offset.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from explorer.data.dataset import Dataset
from explorer.errors import BadValue

CLASSES = ("disc", "square", "triangle", "cross", "ring", "star")
COLOURS = {
    "red": (0.9, -0.7, -0.6),
    "green": (-0.7, 0.6, -0.5),
    "blue": (-0.6, -0.4, 0.95),
    "yellow": (0.95, 0.75, -0.7),
    "cyan": (-0.7, 0.6, 0.85),
    "pink": (0.85, -0.55, 0.75),
}
N_FLAT = 4
"""Flat pictures have the first so many classes and colours, lit ones all."""
SIZES = (0.14, 0.21)
"""Radius of the disc of the same area, as a share of the side: small and large, each give or take `JITTER` of itself."""
JITTER = 0.05
GROUND = (-0.9, 0.1)
"""The grey of the background is uniform between these."""
LIT_GROUND = (-0.2, 0.4)
"""The same of the grey in the middle of a lit picture."""
SLOPE = 0.2
"""The grey of a lit ground changes by up to this from the middle to each edge, along x and along y."""
TINT = 0.2
WARM = (1.0, 0.0, -1.0)
"""To the upper and to the lower edge of a lit ground up to +-`TINT` times this is added, in between what lies between."""
SATURATION = 0.7
"""A lit shape has this times the colour, which leaves room for light and shade: no value leaves [-1, 1]."""
SHADE, SHADOW = 0.28, 0.4
SHADOW_OFFSET = 0.25
"""How far down and to the right a shadow falls, in units of the radius."""
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
        ground: (N,) grey of the background, of a lit one in the middle.
        slope: (N, 2) change of that grey from the left to the right edge and from the upper to the lower; 0 where flat.
        tint: (N, 2) how warm the ground is at its upper and lower edge; 0 where flat.
    """

    label: Tensor
    colour: Tensor
    large: Tensor
    radius: Tensor
    centre: Tensor
    ground: Tensor
    slope: Tensor
    tint: Tensor

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
        lit: light, shadow and a tinted ground, and six classes in six colours instead of four in four.

    Attributes:
        classes, colours: their names.
        palette: (colours, 3) float64, as they appear in a picture.
    """

    side: int = 16
    colour_correlation: float = 0.0
    size_correlation: float = 0.0
    lit: bool = False

    def __post_init__(self):
        if not isinstance(self.side, int) or self.side < 8:
            raise BadValue(f"shapes need a side of at least 8 pixels, got {self.side!r}.")
        if not 0 <= self.colour_correlation <= 1 or not -1 <= self.size_correlation <= 1:
            raise BadValue(
                "colour_correlation must lie in 0..1 and size_correlation in -1..1, got "
                f"{self.colour_correlation} and {self.size_correlation}."
            )

    @property
    def classes(self) -> tuple[str, ...]:
        return CLASSES if self.lit else CLASSES[:N_FLAT]

    @property
    def colours(self) -> tuple[str, ...]:
        return tuple(COLOURS) if self.lit else tuple(COLOURS)[:N_FLAT]

    @property
    def palette(self) -> Tensor:
        full = torch.tensor([COLOURS[name] for name in self.colours], dtype=torch.float64)
        return SATURATION * full if self.lit else full

    @property
    def p_colour(self) -> Tensor:
        """(K, colours) exact P(colour | class)."""
        c, n = self.colour_correlation, len(self.colours)
        return c * torch.eye(len(self.classes), n, dtype=torch.float64) + (1 - c) / n

    @property
    def p_large(self) -> Tensor:
        """(K,) exact P(large | class)."""
        sign = 1.0 - 2.0 * (torch.arange(len(self.classes), dtype=torch.float64) % 2)
        return 0.5 + 0.5 * self.size_correlation * sign

    def factors(self, n: int, generator: torch.Generator) -> Factors:
        """What is in n random pictures."""
        if n < 1:
            raise BadValue(f"cannot draw {n} pictures; n must be at least 1.")
        u = torch.rand(7, n, dtype=torch.float64, generator=generator)
        label = (u[0] * len(self.classes)).long()
        colour = (u[1][:, None] >= self.p_colour[label].cumsum(1)[:, :-1]).sum(1)
        large = (u[2] < self.p_large[label]).long()
        radius = torch.tensor(SIZES, dtype=torch.float64)[large] * (1 + JITTER * (2 * u[3] - 1))
        margin = REACH * SIZES[1] * (1 + JITTER)  # the same for all, so that the place tells nothing else
        centre = (margin + (1 - 2 * margin) * u[4:6]).T
        if not self.lit:
            none = torch.zeros(n, 2, dtype=torch.float64)
            return Factors(label, colour, large, radius, centre, _between(GROUND, u[6]), none, none)
        v = 2 * torch.rand(4, n, dtype=torch.float64, generator=generator) - 1
        return Factors(
            label, colour, large, radius, centre, _between(LIT_GROUND, u[6]), 2 * SLOPE * v[:2].T, TINT * v[2:].T
        )

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n fresh pictures (n, 3, S, S) float32 in [-1, 1] and their classes (n,)."""
        what = self.factors(n, generator)
        return self.render(what), what.label

    def render(self, what: Factors) -> Tensor:
        """The pictures (N, 3, S, S) float32 of given factors: ground + coverage (colour - ground)."""
        colour = self.palette.float()[what.colour][:, :, None, None]
        if not self.lit:
            return torch.lerp(what.ground.float()[:, None, None, None], colour, self.coverage(what)[:, None])
        away = what.centre + SHADOW_OFFSET * what.radius[:, None]
        ground = self._ground(what) - SHADOW * self.coverage(replace(what, centre=away))[:, None]
        return torch.lerp(ground, colour + SHADE * self._light(what)[:, None], self.coverage(what)[:, None])

    def _ground(self, what: Factors) -> Tensor:
        """(N, 3, S, S) float32, what lies behind a lit shape, without its shadow."""
        at = self._pixels()
        across, down = what.slope.float()[:, :, None].unbind(1)  # (N, 1)
        grey = what.ground.float()[:, None, None] + (across * (at - 0.5))[:, None, :] + (down * (at - 0.5))[:, :, None]
        upper, lower = what.tint.float()[:, :, None].unbind(1)
        tint = (upper + (lower - upper) * at)[:, None, :, None]  # (N, 1, S, 1)
        return grey[:, None] + tint * torch.tensor(WARM)[:, None, None]

    def _light(self, what: Factors) -> Tensor:
        """(N, S, S) float32, how much lighter a lit shape is: from -1 at most in its lower right to 1 in its upper left."""
        offset = (self._pixels() - what.centre.float()[:, :, None]) / what.radius.float()[:, None, None]  # (N, 2, S)
        return ((offset[:, 0, None, :] + offset[:, 1, :, None]) / (-math.sqrt(2) * REACH)).clamp(-1, 1)

    def _pixels(self) -> Tensor:
        """(S,) float32, the middle of each pixel in units of the side."""
        return (torch.arange(self.side, dtype=torch.float32) + 0.5) / self.side

    def coverage(self, what: Factors) -> Tensor:
        """(N, S, S) float32, the share of each pixel that the shape covers.

        Exact for squares and crosses; for discs to 0.04 and triangles to 0.01 in single pixels at S = 16; rings to 0.05
        and stars to 0.1 at S = 32, but for the area of all together, which is right to 0.5 %.
        """
        out = torch.empty(len(what), self.side, self.side)
        pixel = torch.arange(self.side, dtype=torch.float32) + 0.5
        for k in range(len(self.classes)):
            rows = (what.label == k).nonzero()[:, 0]
            offset = pixel - self.side * what.centre[rows].float()[:, :, None]  # (n, 2, S)
            x, y = offset[:, 0, None, :], offset[:, 1, :, None]
            out[rows] = _COVER[k](x, y, self.side * what.radius[rows].float()[:, None, None])
        return out

    @torch.no_grad()
    def read(self, x: Tensor) -> tuple[Factors, Tensor]:
        """Factors of pictures x (N, 3, S, S), and the root mean square by which each differs from what they would look like.

        Right on every clean picture of 16x16 or more, lit ones of 32x32; on a model's samples the second result says how far
        to trust the first.
        """
        if x.ndim != 4 or x.shape[1:] != (3, self.side, self.side):
            raise BadValue(f"expected pictures (N, 3, {self.side}, {self.side}), got {tuple(x.shape)}.")
        parts = [self._read(part) for part in x.float().split(512)]
        columns = (torch.cat([getattr(what, f.name) for what, _ in parts]) for f in fields(Factors))
        return Factors(*columns), torch.cat([misfit for _, misfit in parts])

    def _read(self, x: Tensor) -> tuple[Factors, Tensor]:
        ground, slope, tint = self._lit_ground(x) if self.lit else self._flat_ground(x)
        blank = torch.zeros(len(x), dtype=torch.int64)
        what = Factors(blank, blank, blank, torch.ones(len(x)), torch.zeros(len(x), 2), ground, slope, tint)
        behind = self._ground(what)
        contrast = self.palette.float()[:, :, None, None] - behind[:, None]  # (N, colours, 3, S, S)
        delta = x - behind
        if self.lit:  # light and shadow are grey: only what is orthogonal to grey tells of colour and coverage
            contrast, delta = contrast - contrast.mean(2, keepdim=True), delta - delta.mean(1, keepdim=True)
        size = contrast.square().sum(2)  # (N, colours, S, S)
        cover = torch.einsum("nchw,nkchw->nkhw", delta, contrast) / size
        colour = (cover.square() * size).sum((2, 3)).argmax(1)  # the one that explains most
        cover = cover[torch.arange(len(x)), colour].clamp(0, 1)
        area = cover.sum((1, 2)).clamp_min(1e-6)
        centre = torch.stack([cover.sum(1) @ self._pixels(), cover.sum(2) @ self._pixels()], dim=1) / area[:, None]
        radius = (area / math.pi).sqrt() / self.side
        large = (radius > sum(SIZES) / 2).long()
        what = replace(what, colour=colour, large=large, radius=radius, centre=centre)
        guesses = [replace(what, label=torch.full_like(colour, k)) for k in range(len(self.classes))]
        misfit = torch.stack([(self.render(guess) - x).square().mean((1, 2, 3)) for guess in guesses], dim=1)
        best = misfit.min(1)
        return replace(what, label=best.indices), best.values.sqrt()

    def _flat_ground(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Grey (N,) of flat pictures, and no slope and no tint (N, 2): from the edge of the picture."""
        edge = torch.cat([x[:, :, 0], x[:, :, -1], x[:, :, 1:-1, 0], x[:, :, 1:-1, -1]], dim=2)
        none = torch.zeros(len(x), 2)
        return edge.mean(1).median(1).values, none, none

    def _lit_ground(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Grey (N,), slope and tint (N, 2) by least squares over the upper and the left edge, where no shadow falls."""
        edge = torch.cat([x[:, :, 0], x[:, :, 1:, 0]], dim=2)  # (N, 3, 2 S - 1)
        at, corner = self._pixels(), self._pixels()[:1]
        across = torch.cat([at, corner.expand(self.side - 1)])
        down = torch.cat([corner.expand(self.side), at[1:]])
        grey = edge.mean(1) @ torch.linalg.pinv(torch.stack([torch.ones_like(across), across - 0.5, down - 0.5], 1)).T
        warm = torch.tensor(WARM)
        tint = (warm @ edge) / warm.square().sum() @ torch.linalg.pinv(torch.stack([1 - down, down], 1)).T
        return grey[:, 0], grey[:, 1:], tint


def shapes_dataset(
    split: str = "train", shapes: Shapes | None = None, *, n: int | None = None, seed: int = 0
) -> Dataset:
    """A fixed sample of the pictures, which also draws fresh ones without end.

    Args:
        split: "train" or "test", two samples of different seeds.
        shapes: size, kind and correlations; the default is flat and 16x16 without any.
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
    margin = REACH * SIZES[1] * (1 + JITTER)
    card = {
        "about": f"one {'lit shape that throws a shadow' if shapes.lit else 'shape on a grey ground'}, all factors known",
        "classes": list(shapes.classes),
        "factors": {
            "class": list(shapes.classes),
            "colour": list(shapes.colours),
            "radius": [*SIZES],
            "centre": [margin, 1 - margin],
            "ground": [*(LIT_GROUND if shapes.lit else GROUND)],
        },
        **asdict(shapes),
        "p_colour": shapes.p_colour.tolist(),
        "p_large": shapes.p_large.tolist(),
        "split": split,
        "seed": seed,
        "n": n,
    }
    name = "shapes" if shapes.side == 16 and not shapes.lit else f"shapes{shapes.side}"
    name += "" if split == "train" else "-test"
    sigma_data = LIT_SIGMA_DATA if shapes.lit else SIGMA_DATA
    return Dataset(name, x, what.label, len(shapes.classes), sigma_data, card, shapes.draw)


SIGMA_DATA, LIT_SIGMA_DATA = 0.36, 0.26
"""Standard deviation of all values, rounded from 0.361 (flat, 16x16) and from 0.261 (lit, 32x32)."""


def _between(ends: tuple[float, float], u: Tensor) -> Tensor:
    return ends[0] + (ends[1] - ends[0]) * u


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


def _ring(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return _disc(x, y, 1.25 * r) - _disc(x, y, 0.75 * r)  # of radii 3 : 5, and 25 - 9 = 16


STAR = 0.45
"""Inner over outer radius of the star."""


def _star(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Five points, one up: along x the signed sum of what lies to the right of each edge, four lines down each pixel."""
    outer = r * math.sqrt(
        math.pi / (10 / 2 * STAR * math.sin(math.pi / 5))
    )  # ten triangles of area 1/2 STAR outer^2 sin 36
    turn = [math.pi * k / 5 for k in range(11)]
    corners = [
        (math.sin(a) * (STAR if k % 2 else 1), -math.cos(a) * (STAR if k % 2 else 1)) for k, a in enumerate(turn)
    ]
    out = torch.zeros(torch.broadcast_shapes(x.shape, y.shape, r.shape))
    for i in range(4):
        row = y + (i + 0.5) / 4 - 0.5
        for (x1, y1), (x2, y2) in pairwise(corners):
            low, high = min(y1, y2) * outer, max(y1, y2) * outer
            crossed = (row >= low) & (row < high)
            at = outer * x1 + (row - outer * y1) * ((x2 - x1) / (y2 - y1))
            out += crossed * math.copysign(0.25, y1 - y2) * (x + 0.5 - at).clamp(0, 1)
    return out


_COVER = (_disc, _square, _triangle, _cross, _ring, _star)
