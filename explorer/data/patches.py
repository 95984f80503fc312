"""Patches of the two photographs that come with scikit-learn, a temple and a flower: real texture in colour, without any download.

Train and test patches lie in disjoint regions: the right fifth of each photograph is for testing alone, and no patch reaches across.
Neighbouring patches overlap, so a set holds far fewer independent pictures than patches.

Legend: N patches, S side in pixels, f the factor by which the photographs are shrunk first.
"""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from explorer.data.dataset import Dataset
from explorer.errors import BadFile, BadValue

PHOTOGRAPHS = ("china", "flower")
TEST_SHARE = 0.2
"""Of the width of each photograph, at its right."""
N_TRAIN, N_TEST = 10_000, 2_000
SIGMA_DATA = 0.64
"""Standard deviation of all values of the default training set, rounded from 0.639; 0.70 in the test region."""


@dataclass(frozen=True)
class PatchFactors:
    """Where N patches come from.

    Args:
        label: (N,) int64, the photograph, in the order of `PHOTOGRAPHS`.
        row, column: (N,) int64 of the upper left pixel, in the shrunk photograph.
        mirrored: (N,) bool, left and right exchanged.
    """

    label: Tensor
    row: Tensor
    column: Tensor
    mirrored: Tensor

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, rows) -> PatchFactors:
        return PatchFactors(*(getattr(self, f.name)[rows] for f in fields(self)))


@dataclass(frozen=True)
class Patches:
    """The distribution of the patches: either photograph, any place of the region, mirrored or not.

    Args:
        side: S.
        shrink: f, by averages of f x f pixels: 1 shows texture, 4 shows things.
        split: "train" or "test", whose region it is.
    """

    side: int = 32
    shrink: int = 2
    split: str = "train"

    def __post_init__(self):
        if self.split not in ("train", "test"):
            raise BadValue(f"unknown split {self.split!r} of the patches; use 'train' or 'test'.")
        if not isinstance(self.side, int) or not isinstance(self.shrink, int) or self.side < 1 or self.shrink < 1:
            raise BadValue(f"side and shrink are whole numbers from 1, got {self.side!r} and {self.shrink!r}.")
        _, height, width = photographs(self.shrink)[0].shape
        first, last = self.region
        if self.side > height or self.side > last - first:
            raise BadValue(
                f"a patch of {self.side} pixels does not fit into the {self.split} region, {last - first} x {height} at shrink="
                f"{self.shrink}."
            )

    @property
    def region(self) -> tuple[int, int]:
        """First column and the one behind the last, in the shrunk photographs."""
        width = photographs(self.shrink)[0].shape[2]
        border = width - round(TEST_SHARE * width)
        return (0, border) if self.split == "train" else (border, width)

    def factors(self, n: int, generator: torch.Generator) -> PatchFactors:
        """Where n random patches come from."""
        if n < 1:
            raise BadValue(f"cannot draw {n} patches; n must be at least 1.")
        height, (first, last) = photographs(self.shrink)[0].shape[1], self.region
        u = torch.rand(4, n, dtype=torch.float64, generator=generator)
        row, column = (u[1] * (height - self.side + 1)).long(), first + (u[2] * (last - first - self.side + 1)).long()
        return PatchFactors((u[0] * len(PHOTOGRAPHS)).long(), row, column, u[3] < 0.5)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n fresh patches (n, 3, S, S) float32 in [-1, 1] and their photographs (n,)."""
        where = self.factors(n, generator)
        return self.cut(where), where.label

    def cut(self, where: PatchFactors) -> Tensor:
        """The patches (N, 3, S, S) float32 of given places."""
        whole = torch.stack(photographs(self.shrink))  # (2, 3, H, W)
        at = torch.arange(self.side)
        columns = torch.where(where.mirrored[:, None], self.side - 1 - at, at) + where.column[:, None]  # (N, S)
        rows = where.row[:, None] + at
        return (
            whole[where.label[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
        )


def patches_dataset(
    split: str = "train", patches: Patches | None = None, *, n: int | None = None, seed: int = 0
) -> Dataset:
    """A fixed sample of the patches, which also draws fresh ones of its region without end.

    Args:
        split: "train" or "test": of disjoint regions.
        patches: side and shrinking; its own split is not asked. The default is 32x32 at half resolution.
        n: patches; by default 10 000 to train and 2 000 to test.
        seed: of the sample.
    """
    given = patches or Patches()
    return _dataset(Patches(given.side, given.shrink, split), n or (N_TRAIN if split == "train" else N_TEST), seed)


def patch_factors(
    split: str = "train", patches: Patches | None = None, *, n: int | None = None, seed: int = 0
) -> PatchFactors:
    """Where the patches of `patches_dataset` with the same arguments come from."""
    given = patches or Patches()
    n = n or (N_TRAIN if split == "train" else N_TEST)
    return Patches(given.side, given.shrink, split).factors(n, _generator(split, seed))


def _generator(split: str, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(2 * seed + (split == "test"))


@lru_cache(maxsize=4)
def _dataset(patches: Patches, n: int, seed: int) -> Dataset:
    where = patches.factors(n, _generator(patches.split, seed))
    x = patches.cut(where)
    card = {
        "about": "patches of scikit-learn's photographs china.jpg and flower.jpg",
        "classes": list(PHOTOGRAPHS),
        "factors": {"class": list(PHOTOGRAPHS), "column": [*patches.region], "mirrored": [False, True]},
        **asdict(patches),
        "test_share": TEST_SHARE,
        "seed": seed,
        "n": n,
    }
    default = (patches.side, patches.shrink) == (32, 2)
    name = ("patches" if default else f"patches{patches.side}") + ("" if patches.split == "train" else "-test")
    sigma = SIGMA_DATA if default else round(float(x.std()), 2)
    return Dataset(name, x, where.label, len(PHOTOGRAPHS), sigma, card, patches.draw)


@lru_cache(maxsize=8)
def photographs(shrink: int = 1) -> tuple[Tensor, ...]:
    """The two photographs (3, H, W) float32 in [-1, 1], shrunk by averages of `shrink` x `shrink` pixels; 640 x 427 at 1."""
    from PIL import Image

    found = importlib.util.find_spec("sklearn")  # its folder; the package itself is slow to import
    home = Path(next(iter(found.submodule_search_locations or ()), "")) if found else Path()
    out = []
    for name in PHOTOGRAPHS:
        file = home / "datasets" / "images" / f"{name}.jpg"
        if not file.is_file():
            raise BadFile(f"{name}.jpg comes with scikit-learn, which is not installed whole here: install it again.")
        with Image.open(file) as image:
            x = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1
        out.append(F.avg_pool2d(x[None], shrink)[0] if shrink > 1 else x)
    return tuple(out)
