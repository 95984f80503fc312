"""A user's own distribution in the plane: a file of points, or a density drawn by hand.

N points, D columns, H W height and width of a drawing.
"""

from __future__ import annotations

import csv
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from explorer.data.dataset import Dataset
from explorer.errors import BadFile, BadValue

SIGMA_DATA = 0.5
MAX_BYTES = 200_000_000


def load_points(file: str | Path, *, labels: bool = False, standardise: bool = True) -> Dataset:
    """A data set from a CSV, NPZ or NPY file of points.

    CSV: one point per line, comma, semicolon, tab or space between numbers, an optional header line. NPZ: an array `x` (N, D),
    or the only array of the file, and optionally `labels` (N,). NPY: the array. Nothing in the file is executed (no pickles).

    Args:
        file: ending in .csv, .txt, .npz or .npy.
        labels: the last column of a CSV holds integer classes from 0.
        standardise: shift and scale to mean 0 and sigma_data = 0.5; the card keeps both constants.
    Raises:
        BadFile: a missing or malformed file; the message names the line.
        BadValue: fewer than two points, values that are not finite, classes that are not 0, 1, 2, ...
    """
    path = Path(file)
    if not path.is_file():
        raise BadFile(f"there is no file {str(path)!r}; expected a CSV or NPZ file of points.")
    if path.stat().st_size > MAX_BYTES:
        raise BadFile(
            f"{path.name} has {path.stat().st_size} bytes; at most {MAX_BYTES} are read. Thin the points out."
        )
    if path.suffix in (".npz", ".npy"):
        x, classes = _read_npz(path) if path.suffix == ".npz" else (_read_npy(path), None)
    elif path.suffix in (".csv", ".txt"):
        x, classes = _read_csv(path, labels)
    else:
        raise BadFile(f"cannot read {path.name}: expected a file ending in .csv, .txt, .npz or .npy.")
    return points_dataset(path.stem, x, classes, standardise=standardise, source=path.name)


def points_dataset(name: str, x, labels=None, *, standardise: bool = True, source: str = "array") -> Dataset:
    """A data set from an array of points (N, D) and optional integer classes (N,). See `load_points`."""
    x = torch.as_tensor(x, dtype=torch.float64)
    if x.ndim != 2 or x.shape[0] < 2 or x.shape[1] < 1:
        raise BadValue(f"{source}: expected at least two points of shape (N, D), got shape {tuple(x.shape)}.")
    if not torch.isfinite(x).all():
        row = int((~torch.isfinite(x)).any(1).nonzero()[0])
        raise BadValue(f"{source}: point {row} is not finite: {x[row].tolist()}. Remove it or fill it in.")
    mean, scale, sigma = torch.zeros(x.shape[1], dtype=x.dtype), 1.0, math.sqrt(float(x.var(0, correction=0).mean()))
    if sigma == 0:
        raise BadValue(f"{source}: all {len(x)} points are the same; there is nothing to learn.")
    if standardise:
        mean, scale = x.mean(0), SIGMA_DATA / sigma
        x, sigma = (x - mean) * scale, SIGMA_DATA
    n_classes = 0
    if labels is not None:
        labels = torch.as_tensor(labels, dtype=torch.int64)
        if labels.shape != (len(x),) or int(labels.min()) < 0:
            raise BadValue(f"{source}: expected {len(x)} classes from 0 up, got shape {tuple(labels.shape)}.")
        n_classes = int(labels.max()) + 1
        if n_classes > len(x):
            raise BadValue(f"{source}: class {n_classes - 1} with {len(x)} points; number the classes 0, 1, 2, ...")
    card = {"about": f"points from {source}", "n": len(x), "raw_mean": mean.tolist(), "scale": scale}
    return Dataset(name, x.float(), labels, n_classes, sigma, card)


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive.files)
            key = "x" if "x" in names else next((n for n in names if n != "labels"), None)
            if key is None or ("x" not in names and len(names) - ("labels" in names) != 1):
                raise BadFile(f"{path.name}: expected an array named 'x', found {', '.join(names) or 'no arrays'}.")
            size = sum(info.file_size for info in archive.zip.infolist())
            if size > MAX_BYTES:  # a small file can claim to hold anything
                raise BadFile(
                    f"{path.name} unpacks to {size} bytes; at most {MAX_BYTES} are read. Thin the points out."
                )
            x, labels = archive[key], archive["labels"] if "labels" in names else None
    except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile) as error:
        if isinstance(error, BadFile):
            raise
        raise BadFile(f"{path.name} is not a readable NPZ file of plain arrays: {error}.") from None
    if x.dtype.kind not in "fiu" or (labels is not None and labels.dtype.kind not in "iu"):
        raise BadFile(
            f"{path.name}: expected numbers (and integer labels), got {x.dtype} and {getattr(labels, 'dtype', None)}."
        )
    return x, labels


def _read_npy(path: Path) -> np.ndarray:
    try:
        x = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise BadFile(f"{path.name} is not a readable NPY file of plain numbers: {error}.") from None
    if not isinstance(x, np.ndarray) or x.dtype.kind not in "fiu":
        raise BadFile(f"{path.name}: expected an array of numbers, got {getattr(x, 'dtype', type(x).__name__)}.")
    return x


def _read_csv(path: Path, with_labels: bool) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise BadFile(f"{path.name} is not a text file in UTF-8; expected one point per line.") from None
    rows: list[list[float]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        delimiter = next((d for d in ",;\t" if d in line), None)
        cells = line.split() if delimiter is None else next(csv.reader([line], delimiter=delimiter))
        try:
            row = [float(cell) for cell in cells]
        except ValueError:
            if not rows and number == 1:  # a header
                continue
            raise BadFile(f"{path.name}, line {number}: expected numbers, got {line.strip()[:60]!r}.") from None
        if rows and len(row) != len(rows[0]):
            raise BadFile(f"{path.name}, line {number}: {len(row)} numbers where the lines above have {len(rows[0])}.")
        rows.append(row)
    if not rows:
        raise BadFile(f"{path.name} holds no points; expected one per line, for example '0.1, -0.7'.")
    table = np.array(rows, dtype=np.float64)
    if not with_labels:
        return table, None
    classes = table[:, -1]
    if table.shape[1] < 2 or not np.array_equal(classes, np.round(classes)):
        raise BadFile(f"{path.name}: with labels the last of at least two columns must hold whole numbers.")
    return table[:, :-1], classes.astype(np.int64)


@dataclass(frozen=True, eq=False)
class Drawing:
    """A density given by a grey-scale picture: probability proportional to the pixel, uniform inside it.

    Pixels are unit squares, the first row at the top; points are standardised by the exact mean and variance of that
    density, so that sigma_data is 0.5.

    Args:
        pixels: (H, W) non-negative, bright is likely.
        dark_is_likely: reverse that, for ink on paper.
    Raises:
        BadValue: not two-dimensional, not finite, negative, or empty of ink.
    """

    pixels: Tensor
    dark_is_likely: bool = False

    def __post_init__(self):
        pixels = torch.as_tensor(self.pixels, dtype=torch.float64)
        if pixels.ndim != 2 or pixels.numel() == 0:
            raise BadValue(f"a drawing must be a grey-scale array (height, width), got shape {tuple(pixels.shape)}.")
        if not torch.isfinite(pixels).all() or (pixels < 0).any():
            raise BadValue("a drawing must hold finite values from 0 up.")
        if self.dark_is_likely:
            pixels = pixels.max() - pixels
        if float(pixels.sum()) <= 0:
            raise BadValue("the drawing is empty; draw something first.")
        object.__setattr__(self, "pixels", pixels / pixels.sum())

    def moments(self) -> tuple[Tensor, float]:
        """Exact mean (2,) and variance averaged over both coordinates, in pixels, y upwards."""
        p, centres = self.pixels.flatten(), self._centres()
        mean = p @ centres
        return mean, float((p @ (centres - mean) ** 2).mean()) + 1 / 12  # 1/12: uniform inside the pixel

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, None]:
        """n standardised points (n, 2) float32."""
        if n < 1:
            raise BadValue(f"cannot draw {n} points; n must be at least 1.")
        cumulative = self.pixels.flatten().cumsum(0)  # torch.multinomial stops at 2^24 pixels and is slower
        u = torch.rand(n, dtype=torch.float64, generator=generator) * cumulative[-1]
        index = torch.searchsorted(cumulative, u, right=True).clamp_max(len(cumulative) - 1)
        jitter = torch.rand(n, 2, dtype=torch.float64, generator=generator) - 0.5
        mean, variance = self.moments()
        raw = self._centres()[index] + jitter
        return ((raw - mean) * (SIGMA_DATA / math.sqrt(variance))).float(), None

    def dataset(self, n: int = 8192, seed: int = 0, name: str = "drawn") -> Dataset:
        """A fixed sample, which also draws fresh points without end."""
        x, _ = self.draw(n, torch.Generator().manual_seed(seed))
        mean, variance = self.moments()
        card = {
            "about": "points of a drawing",
            "pixels": list(self.pixels.shape),
            "seed": seed,
            "n": n,
            "raw_mean": mean.tolist(),
            "scale": SIGMA_DATA / math.sqrt(variance),
        }
        return Dataset(name, x, None, 0, SIGMA_DATA, card, self.draw)

    def _centres(self) -> Tensor:
        """(H * W, 2) pixel centres, x to the right, y upwards."""
        height, width = self.pixels.shape
        rows = torch.arange(height, dtype=torch.float64)
        columns = torch.arange(width, dtype=torch.float64)
        y, x = torch.meshgrid(height - 0.5 - rows, columns + 0.5, indexing="ij")
        return torch.stack([x.flatten(), y.flatten()], dim=1)
