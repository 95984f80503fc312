"""Grey pictures of one rendered character, with every factor known: which character, how large, how turned, where.

A character is drawn once, large, in a font of the DejaVu family that comes with matplotlib; every picture then samples that drawing
under its own similarity map, K x K places per pixel. A place s in the picture (units of the side, from the centre of mass c of the
ink) is read at
    R(-angle) (s - c) M / size,   R a rotation, M the height of capitals in the drawing,
so size, angle and centre of what is seen are exactly those asked for, to the resolution of the drawing.

Legend: N pictures, S side in pixels, K places per pixel and axis, M height of capitals in the drawing.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from explorer.data.dataset import Dataset
from explorer.errors import BadValue

CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
STYLES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono")
DRAWN = 64
"""M, the height of a capital in the large drawing, in pixels; in a picture of 32 it has 10 to 14."""
PLACES = 3
"""K."""
N_TRAIN, N_TEST = 5_200, 1_300
SIGMA_DATA = 0.5
"""Standard deviation of all values of the default set, rounded from 0.495."""


@dataclass(frozen=True)
class GlyphFactors:
    """What is in N pictures.

    Args:
        label: (N,) int64, the character's place among those of the set.
        size: (N,) height of a capital, in units of the side.
        angle: (N,) in radians, clockwise on the screen.
        centre: (N, 2) of the ink's mass, x to the right and y down, in units of the side.
    """

    label: Tensor
    size: Tensor
    angle: Tensor
    centre: Tensor

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, rows) -> GlyphFactors:
        return GlyphFactors(*(getattr(self, f.name)[rows] for f in fields(self)))


@dataclass(frozen=True)
class Glyphs:
    """The distribution of the pictures: each factor uniform, all independent.

    Args:
        characters: the classes, all different and in the font.
        side: S, at least 12.
        sizes: range of the size; as large as the longest of the characters fits in any turn.
        turn: largest angle, in radians.
        style: one of `STYLES`.
    """

    characters: str = CAPITALS
    side: int = 32
    sizes: tuple[float, float] = (0.32, 0.44)
    turn: float = math.pi / 8
    style: str = "DejaVuSans-Bold"

    def __post_init__(self):
        if not isinstance(self.side, int) or self.side < 12:
            raise BadValue(f"glyphs need a side of at least 12 pixels, got {self.side!r}.")
        if self.style not in STYLES:
            raise BadValue(f"unknown style {self.style!r}; use one of {', '.join(STYLES)}.")
        if not self.characters or len(set(self.characters)) < len(self.characters):
            raise BadValue(f"characters must be different and at least one, got {self.characters!r}.")
        low, high = self.sizes
        if not 0 < low <= high or not 0 <= self.turn <= math.pi:
            raise BadValue(f"sizes must rise from above 0 and turn lie in 0..pi, got {self.sizes} and {self.turn}.")
        if self.margin > 0.5:
            raise BadValue(
                f"a capital of {high:g} of the side does not fit: the longest character reaches {self.margin / high:.2f} times that "
                f"from its centre; use at most {0.5 * high / self.margin:.2f}."
            )

    @property
    def margin(self) -> float:
        """Least distance of a centre from the border, in units of the side; the same for all, so that the place tells nothing else."""
        return self.sizes[1] * max(reach(self.style, c) for c in self.characters)

    def factors(self, n: int, generator: torch.Generator) -> GlyphFactors:
        """What is in n random pictures."""
        if n < 1:
            raise BadValue(f"cannot draw {n} pictures; n must be at least 1.")
        u = torch.rand(5, n, dtype=torch.float64, generator=generator)
        low, high = self.sizes
        label = (u[0] * len(self.characters)).long()
        margin = self.margin
        return GlyphFactors(
            label, low + (high - low) * u[1], (2 * u[2] - 1) * self.turn, (margin + (1 - 2 * margin) * u[3:]).T
        )

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n fresh pictures (n, 1, S, S) float32 in [-1, 1] and their classes (n,)."""
        what = self.factors(n, generator)
        return self.render(what), what.label

    def render(self, what: GlyphFactors) -> Tensor:
        """The pictures (N, 1, S, S) float32 of given factors: -1 without ink, 1 where all is ink."""
        out = torch.empty(len(what), 1, self.side, self.side)
        at = (torch.arange(PLACES * self.side, dtype=torch.float32) + 0.5) / (PLACES * self.side)
        for k, character in enumerate(self.characters):
            rows = (what.label == k).nonzero()[:, 0]
            for part in rows.split(256):
                out[part] = 2 * self._ink(what[part], drawing(self.style, character), at) - 1
        return out

    def _ink(self, what: GlyphFactors, large: Tensor, at: Tensor) -> Tensor:
        """(n, 1, S, S) share of each pixel that is ink."""
        n, scale = len(what), DRAWN / what.size.float()[:, None, None]
        x = at[None, None, :] - what.centre[:, 0, None, None].float()
        y = at[None, :, None] - what.centre[:, 1, None, None].float()
        c, s = what.angle.float().cos()[:, None, None], what.angle.float().sin()[:, None, None]
        places = torch.stack([(c * x + s * y) * scale, (c * y - s * x) * scale], dim=-1)  # (n, K S, K S, 2) in pixels
        size = large.shape[-1]
        seen = F.grid_sample(large.expand(n, 1, size, size), places * (2 / size), mode="bilinear", align_corners=False)
        return F.avg_pool2d(seen, PLACES)


def glyphs_dataset(
    split: str = "train", glyphs: Glyphs | None = None, *, n: int | None = None, seed: int = 0
) -> Dataset:
    """A fixed sample of the pictures, which also draws fresh ones without end.

    Args:
        split: "train" or "test", two samples of different seeds.
        glyphs: characters, size and turn; the default is the capitals at 32x32.
        n: pictures; by default about 200 and 50 of a character.
        seed: of the sample.
    """
    if split not in ("train", "test"):
        raise BadValue(f"unknown split {split!r} of the glyphs; use 'train' or 'test'.")
    return _dataset(split, glyphs or Glyphs(), n or (N_TRAIN if split == "train" else N_TEST), seed)


def glyph_factors(
    split: str = "train", glyphs: Glyphs | None = None, *, n: int | None = None, seed: int = 0
) -> GlyphFactors:
    """What is in the pictures of `glyphs_dataset` with the same arguments."""
    n = n or (N_TRAIN if split == "train" else N_TEST)
    return (glyphs or Glyphs()).factors(n, torch.Generator().manual_seed(2 * seed + (split == "test")))


@lru_cache(maxsize=4)
def _dataset(split: str, glyphs: Glyphs, n: int, seed: int) -> Dataset:
    what = glyph_factors(split, glyphs, n=n, seed=seed)
    x = glyphs.render(what)
    card = {
        "about": "one rendered character, all factors known",
        "classes": list(glyphs.characters),
        "factors": {
            "class": list(glyphs.characters),
            "size": [*glyphs.sizes],
            "angle": [-glyphs.turn, glyphs.turn],
            "centre": [glyphs.margin, 1 - glyphs.margin],
        },
        **asdict(glyphs),
        "font": "DejaVu, as it comes with matplotlib",
        "split": split,
        "seed": seed,
        "n": n,
    }
    default = glyphs == Glyphs()
    name = ("glyphs" if default else f"glyphs{glyphs.side}") + ("" if split == "train" else "-test")
    sigma = SIGMA_DATA if default else round(float(x.std()), 2)
    return Dataset(name, x, what.label, len(glyphs.characters), sigma, card, glyphs.draw)


@lru_cache(maxsize=512)
def drawing(style: str, character: str) -> Tensor:
    """(1, 1, D, D) float32 ink in 0..1 of a character whose capitals are `DRAWN` pixels high, its centre of mass in the middle.

    Raises:
        BadValue: the font has no such character, or it leaves no ink.
    """
    from PIL import Image, ImageDraw

    font, size = _font(style), 6 * DRAWN
    ink = Image.new("L", (size, size))
    ImageDraw.Draw(ink).text((size / 2, size / 2), character, fill=255, font=font, anchor="mm")
    x = torch.frombuffer(bytearray(ink.tobytes()), dtype=torch.uint8).view(size, size).float() / 255
    if not bool(x.any()):
        raise BadValue(f"{character!r} leaves no ink; choose characters that are seen.")
    if bytes(font.getmask(character)) == bytes(font.getmask("\uffff")):
        raise BadValue(f"{style} has no character {character!r}.")
    at = torch.arange(size) + 0.5
    total = x.sum()
    middle = (float((x.sum(0) * at).sum() / total), float((x.sum(1) * at).sum() / total))
    rows = (at - size / 2)[:, None].expand(size, size) + middle[1]
    columns = (at - size / 2)[None, :].expand(size, size) + middle[0]
    places = torch.stack([columns, rows], dim=-1)[None] * (2 / size) - 1
    return F.grid_sample(x[None, None], places, mode="bilinear", align_corners=False)


@lru_cache(maxsize=512)
def reach(style: str, character: str) -> float:
    """How far the ink of a character lies from its centre of mass at most, in units of the height of a capital."""
    ink = drawing(style, character)[0, 0]
    rows, columns = (ink > 0.002).nonzero().unbind(1)
    middle = (len(ink) - 1) / 2
    return float(((rows - middle).square() + (columns - middle).square()).max().sqrt() + 1) / DRAWN


@lru_cache(maxsize=8)
def _font(style: str):
    """The font at the size at which its capitals are `DRAWN` pixels high."""
    from PIL import ImageFont

    found = importlib.util.find_spec("matplotlib")
    home = next(iter(found.submodule_search_locations or ()), "") if found else ""
    file = Path(home) / "mpl-data" / "fonts" / "ttf" / f"{style}.ttf"
    if not file.is_file():
        raise BadValue(f"the font {style} comes with matplotlib, which is not installed whole here: install it again.")
    trial = ImageFont.truetype(str(file), 1000)
    _, top, _, bottom = trial.getbbox("H", anchor="ls")
    return ImageFont.truetype(str(file), DRAWN * 1000 / (bottom - top))
