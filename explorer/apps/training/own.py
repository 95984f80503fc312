"""A user's own data on the Training page: files that arrive in parts, what is said of them, and the recipe that fits them.

What was given lies divided in `runs/data`, see `explorer.data.keep`; a name that the browser sends is never a path.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import tempfile
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from explorer.data import PROJECTED, TOYS, TREES, Dataset, is_own, keep, load_dataset, test_split
from explorer.errors import BadFile, BadValue, ExplorerError
from explorer.models import bundled
from explorer.reproduction.own import fitting
from explorer.reproduction.recipe import Paper

MAX_UPLOAD = 200 * 2**20
ENDINGS = (".csv", ".txt", ".npz", ".npy", ".zip")
N_POINTS, N_PICTURES, COLUMNS = 500, 16, 8
SIDES = (8, 16, 32, 64)
"""Sizes to which pictures can be brought."""

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
STALE = 24 * 3600.0  # seconds after which what a vanished page has left counts as rubbish


def folder(runs: Path) -> Path:
    """Where data lie that were given here."""
    return runs / "data"


def kept_names(runs: Path) -> list[str]:
    """Data that were given before, in alphabetical order."""
    there = folder(runs)
    return sorted(p.name for p in there.iterdir() if NAME.fullmatch(p.name) and is_own(p)) if there.is_dir() else []


class Upload:
    """A file on its way from the browser; it arrives in order, in a place of its own, and is never run.

    Raises:
        BadValue: an ending that nothing reads, or more bytes than are taken.
    """

    def __init__(self, runs: Path, name: str, size: int):
        self.name, self.size, self.at = Path(name.replace("\\", "/")).name[:120] or "file", int(size), 0
        ending = Path(self.name).suffix.lower()
        if ending not in ENDINGS:
            raise BadValue(f"{self.name}: expected points (.csv, .txt, .npz, .npy) or pictures (.zip, .npz, .npy).")
        if not 0 < self.size <= MAX_UPLOAD:
            many = (
                f"has {self.size / 2**20:.0f} MB, and {MAX_UPLOAD // 2**20} are taken" if self.size > 0 else "is empty"
            )
            hint = ": put it on this machine and give its path" if self.size > 0 else ""
            raise BadValue(f"{self.name} {many}{hint}.")
        within = folder(runs)
        try:
            within.mkdir(parents=True, exist_ok=True)
            for left in within.glob(".upload-*"):
                if time.time() - left.stat().st_mtime > STALE:
                    left.unlink(missing_ok=True)
            handle, self._file = tempfile.mkstemp(dir=within, prefix=".upload-", suffix=ending)
        except OSError as problem:
            raise BadFile(f"{self.name} cannot be taken: {problem.strerror or problem}.") from None
        self._stream = os.fdopen(handle, "wb")

    def add(self, at: int, part: str) -> None:
        """The next bytes, as base64.

        Raises:
            BadValue: they are not the next ones, or more than were announced; BadFile: the disk takes no more.
        """
        try:
            content = base64.b64decode(part, validate=True)
        except (binascii.Error, ValueError):
            raise BadValue(f"{self.name} arrived damaged; give it again.") from None
        if at != self.at or self.at + len(content) > self.size or not content:
            raise BadValue(f"{self.name} arrived out of order; give it again.")
        try:
            self._stream.write(content)
            if self.at + len(content) == self.size:
                self._stream.close()
        except OSError as problem:
            raise BadFile(f"{self.name} cannot be taken: {problem.strerror or problem}.") from None
        self.at += len(content)

    @property
    def whole(self) -> bool:
        return self.at == self.size

    @property
    def file(self) -> Path:
        return Path(self._file)

    def drop(self) -> None:
        """Forgets what has arrived."""
        self._stream.close()
        self.file.unlink(missing_ok=True)


@dataclass(frozen=True)
class Own:
    """Data of the user's, as they were read.

    Attributes:
        path: of the folder in which they lie, as recipes name them.
        shape: of one sample.
        words: what was read: how many, of what shape, in which range, how many are held out.
        preview: {"kind": "points", "x": [[x, y], ...], "extent"} or {"kind": "pictures", "png": a data URL, "width", "height"}.
    """

    path: str
    shape: tuple[int, ...]
    n_classes: int
    words: tuple[str, ...]
    preview: dict[str, Any]

    @property
    def name(self) -> str:
        return Path(self.path).name


def taken(runs: Path, source: Path, name: str | None = None, side: int | None = None) -> Own:
    """Reads a user's file or folder, keeps it among the runs, and says what it is.

    Raises:
        BadFile, BadValue: one sentence for the user.
    """
    where = source if is_own(source) else keep(source, folder(runs), side=side, name=name)
    return described(str(where.resolve()))


def typed(runs: Path, text: str, side: int | None = None) -> Own:
    """The same for a path that the user has typed."""
    text = text.strip().strip("'\"")
    if not text:
        raise BadValue("type the path of a file or folder on the machine that serves this page.")
    try:
        return taken(runs, Path(text).expanduser(), side=side)
    except (OSError, ValueError, RuntimeError) as problem:
        if isinstance(problem, ExplorerError):
            raise
        raise BadFile(f"{text[:80]!r} cannot be read: {getattr(problem, 'strerror', None) or problem}.") from None


def named(runs: Path, name: str) -> Own:
    """Data that were given before.

    Raises:
        BadValue: there are none of that name.
    """
    where = folder(runs) / name
    if not NAME.fullmatch(name) or not is_own(where):
        raise BadValue(
            f"there are no data {name!r} in {folder(runs)}; there are {', '.join(kept_names(runs)) or 'none'}."
        )
    return described(str(where.resolve()))


def addressed(runs: Path, text: str) -> Own:
    """Data as an address says them: by name, or by the path of a folder of kept data that lies elsewhere."""
    return described(text) if os.path.isabs(text) and is_own(text) else named(runs, text)


@lru_cache(maxsize=8)
def described(path: str) -> Own:
    """What lies in a folder of kept data."""
    data, held = load_dataset(path), test_split(path)
    words = _of_points(data) if len(data.shape) == 1 else _of_pictures(data)
    classes = [f"{data.n_classes} classes"] if data.n_classes else []
    kept = f"{len(held)} held out to measure with" if held is not None else "too few to hold any out"
    preview = _scatter(data) if len(data.shape) == 1 else _sheet(data)
    return Own(path, data.shape, data.n_classes, (*words, *classes, kept), preview)


def _grouped(n: int) -> str:
    return f"{n:,}".replace(",", "\u202f")


def _of_points(data: Dataset) -> list[str]:
    x = data.x.double() / data.card["scale"] + torch.tensor(data.card["raw_mean"], dtype=torch.float64)
    low, high, (d,) = x.amin(0).tolist(), x.amax(0).tolist(), data.shape
    names = "xy" if d == 2 else [f"x{k + 1}" for k in range(d)]
    ranges = [f"{names[k]} {low[k]:.3g} to {high[k]:.3g}" for k in range(min(d, 3))] + ["…"] * (d > 3)
    n = len(data) + data.card["held_out"]
    return [
        f"{_grouped(n)} points of {d} coordinate{'s' * (d > 1)}",
        ", ".join(ranges),
        f"learnt around their mean, times {data.card['scale']:.3g}: standard deviation {data.sigma_data:.3g}",
    ]


def _of_pictures(data: Dataset) -> list[str]:
    channels, height, width = data.shape
    some = data.take(slice(None, None, 1 + len(data) // 2000))
    n = len(data) + data.card["held_out"]
    return [
        f"{_grouped(n)} pictures of {width} × {height}, {'grey' if channels == 1 else 'colour'}",
        f"values {float(some.min()):.2g} to {float(some.max()):.2g}, standard deviation {data.sigma_data:.3g}",
    ]


def _scatter(data: Dataset) -> dict[str, Any]:
    x = data.x[:: 1 + len(data) // N_POINTS]
    flat = flattened(data)
    x = flat(x.float())
    return {
        "kind": "points",
        "x": [[round(float(v), 3) for v in row] for row in x],
        "extent": round(float(x.abs().amax()) * 1.08, 3),
    }


def flattened(data: Dataset):
    """What shows points in the plane: (n, D) -> (n, 2), their first two principal components where there are more coordinates.

    One coordinate is spread over a strip, in the order of the points.
    """
    (d,) = data.shape
    if d == 2:
        return lambda x: x
    if d == 1:
        return lambda x: torch.cat([x, (torch.arange(len(x)) * 0.6180339887 % 1 - 0.5)[:, None] * 0.4], 1)
    some = data.x[:: 1 + len(data) // 5000].double()
    mean = some.mean(0)
    axes = torch.linalg.eigh((some - mean).T @ (some - mean)).eigenvectors[:, -2:].flip(1)
    axes = axes * torch.where(
        axes.abs().amax(0) == axes.amax(0), 1.0, -1.0
    )  # a sign that does not depend on the library
    return lambda x: ((x.double() - mean) @ axes).float()


def _sheet(data: Dataset) -> dict[str, Any]:
    """Pictures evenly from the whole set, as one PNG."""
    from PIL import Image

    rows = torch.linspace(0, len(data) - 1, min(N_PICTURES, len(data))).long().unique()
    x = ((data.take(rows)[:, :3].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    n, c, h, w = x.shape
    columns = min(COLUMNS, n)
    lines = -(-n // columns)
    sheet = torch.full((lines * (h + 1) - 1, columns * (w + 1) - 1, c), 128, dtype=torch.uint8)
    for i in range(n):
        top, left = (i // columns) * (h + 1), (i % columns) * (w + 1)
        sheet[top : top + h, left : left + w] = x[i].permute(1, 2, 0)
    out = io.BytesIO()
    array = sheet.numpy()
    Image.fromarray(array[:, :, 0] if c == 1 else array).save(out, "png")
    url = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
    return {"kind": "pictures", "png": url, "width": sheet.shape[1], "height": sheet.shape[0]}


# The recipe


@dataclass(frozen=True)
class Fit:
    """Which of a paper's recipes suits some data.

    Attributes:
        recipe: the smallest that fits; where none does, the first for samples of as many axes.
        why_not: why none fits as it is; empty where one does.
        unfit: recipes that cannot, with the reason.
    """

    recipe: str
    why_not: str
    unfit: dict[str, str]


def fit(paper: Paper, own: Own, models: dict[str, str]) -> Fit:
    """The recipe that these data are learnt with."""
    unfit = {name: why for name in paper.recipes if (why := _other_kind(paper, name, own))}
    try:
        return Fit(fitting(paper, own.path, models), "", unfit)
    except ExplorerError as problem:
        first = next((name for name in paper.recipes if name not in unfit), paper.recipes[0])
        return Fit(first, str(problem), unfit)


def _other_kind(paper: Paper, name: str, own: Own) -> str:
    flat = paper.recipe(name).data in (*TOYS, *TREES, *PROJECTED)  # by name: some pictures would be rendered first
    if flat == (len(own.shape) == 1):
        return ""
    return "for points, and these are pictures" if flat else "for pictures, and these are points"


def teachers(own_shape: tuple[int, ...], runs: list[Path]) -> list[dict[str, str]]:
    """Models for samples of this shape that may stand for what a recipe needs: kept and bundled ones by name, those of runs by folder."""
    out = []
    for name in bundled.names():
        if shape_made(name) == own_shape:
            out.append({"value": name, "title": name})
    for path in runs:
        if shape_made(path) == own_shape:
            out.append({"value": str(path.resolve()), "title": f"run {path.name}"})
    return out


def shape_made(name: str | Path) -> tuple[int, ...] | None:
    try:
        card = bundled.card(name)
    except ExplorerError:
        return None
    shape = card.get("shape")
    return tuple(shape) if isinstance(shape, list) and card["kind"] in ("denoiser", "consistency") else None
