"""A user's own samples as a folder that keeps a part of them back: read once, checked, divided, and from then on read without a question.

    data.json   what it is made of, in words and numbers
    train.npz   what is learnt: `x` and perhaps `labels`; points as they were given, pictures as bytes
    test.npz    what is held out; absent where there are too few

N samples, D coordinates.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import zipfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from explorer.data.dataset import Dataset
from explorer.data.pictures import ENDINGS, array_dataset, picture, pictures
from explorer.data.points import load_points, points_dataset
from explorer.data.sources import holds_images, opened
from explorer.errors import BadFile, BadValue

ABOUT, TRAIN, TEST = "data.json", "train.npz", "test.npz"
FORMAT = "trajectory-explorer data, 1"
HELD_OUT = 0.1
"""Share of the samples that is kept back for measuring."""

FEWEST = 20
"""Samples from which a part is kept back."""

MOST_HELD = 5000
MAX_VALUES = 2**30
"""Numbers that a set may hold; larger ones are read from where they lie, see `load_dataset`."""

SEED = 0  # of the division
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,47}")


def is_own(folder: str | Path) -> bool:
    """Whether this is a folder that `keep` has made."""
    return (Path(folder) / ABOUT).is_file() and (Path(folder) / TRAIN).is_file()


def keep(source: str | Path, within: str | Path, *, side: int | None = None, name: str | None = None) -> Path:
    """The folder that now holds these samples, a tenth of them kept back by lot; the same samples get the same folder again.

    It appears whole or not at all, in `within`, and nothing of the source is executed.

    Args:
        source: points (.csv, .txt, .npz, .npy), or pictures (.zip, a folder, .npz, .npy); see `load_dataset`.
        within: where such folders lie.
        side: cut every picture to its largest centred square and scale it to this many pixels; None takes them as they are.
        name: of the folder; by default the file's.
    Raises:
        BadFile: unreadable, damaged, empty, or too large to be held in memory; BadValue: numbers that cannot be learnt.
    """
    source, within = Path(source), Path(within)
    x, labels, n_classes = _read(source, side)
    title = _slug(name or source.name)
    mark = hashlib.sha256(x.tobytes() + (b"" if labels is None else labels.tobytes())).hexdigest()
    for there in sorted(within.glob(f"{title}*")):
        if is_own(there) and _about(there).get("sha256") == mark:
            return there
    order = np.random.default_rng(SEED).permutation(len(x))
    n_held = min(round(HELD_OUT * len(x)), MOST_HELD) if len(x) >= FEWEST else 0
    parts = {TEST: np.sort(order[:n_held]), TRAIN: np.sort(order[n_held:])}
    about = {
        "format": FORMAT,
        "source": name or source.name,
        "kind": "pictures" if x.ndim == 4 else "points",
        "n": len(x),
        "held_out": n_held,
        "n_classes": n_classes,
        "side": side,
        "sha256": mark,
    }
    try:
        within.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=within, prefix=".keeping-"))
        try:
            for file, rows in parts.items():
                if len(rows):
                    held = {"x": x[rows]} if labels is None else {"x": x[rows], "labels": labels[rows]}
                    np.savez(partial / file, **held)
            (partial / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            own(partial)  # whoever learns it finds it readable
            os.chmod(partial, 0o755)
            return _placed(partial, within, title)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except BadFile:
        raise
    except OSError as problem:
        raise BadFile(f"{source.name} could not be kept in {within}: {problem.strerror or problem}.") from None


def own(folder: str | Path, split: str = "train") -> Dataset:
    """One part of a folder that `keep` has made. Points are shifted and scaled by the numbers of the part that is learnt.

    Raises:
        BadFile: it is damaged; BadValue: nothing was kept back.
    """
    folder = Path(folder)
    try:
        mark = (folder / ABOUT).stat().st_mtime_ns
    except OSError as problem:
        raise BadFile(f"{folder} holds no data that were kept: {problem.strerror}.") from None
    return _own(folder, split, mark)


@lru_cache(maxsize=4)
def _own(folder: Path, split: str, mark: int) -> Dataset:
    about = _about(folder)
    if split == "test" and not (folder / TEST).is_file():
        raise BadValue(f"{folder.name} has no test split: of {about.get('n')} samples none were kept back.")
    x, labels = _part(folder / TRAIN)
    card = {"about": f"{about['kind']} of {about['source']}", "parts": str(folder), "source": about["source"]}
    if about["kind"] == "points":
        data = points_dataset(folder.name, x, labels, source=about["source"])
        card |= {"raw_mean": data.card["raw_mean"], "scale": data.card["scale"]}
        if split == "test":
            y, labels = _part(folder / TEST)
            mean = torch.tensor(card["raw_mean"], dtype=torch.float64)
            moved = (torch.as_tensor(y, dtype=torch.float64) - mean) * card["scale"]
            kept = None if labels is None else torch.as_tensor(labels).long()
            data = Dataset(folder.name, moved.float(), kept, about["n_classes"], data.sigma_data)
    else:
        data = array_dataset(x, labels, name=folder.name)
        sigma = measured_sigma(data)
        if split == "test":
            data = array_dataset(*_part(folder / TEST), name=folder.name)
        data = replace(data, sigma_data=sigma)
    name = folder.name if split == "train" else f"{folder.name}-test"
    card |= {"n": len(data), "held_out": about["held_out"], "split": split}
    return replace(data, name=name, n_classes=about["n_classes"] if labels is not None else 0, card=card)


def measured_sigma(data: Dataset) -> float:
    """Standard deviation of the samples, all coordinates pooled, to three significant digits; of at most 20 000 of them."""
    x = data.take(slice(None, None, 1 + len(data) // 20_000))
    return float(f"{float(x.double().std(correction=0)):.3g}") or data.sigma_data


def _read(source: Path, side: int | None) -> tuple[np.ndarray, np.ndarray | None, int]:
    """Samples as they will be kept, their classes, and how many classes there are."""
    if not source.exists():
        raise BadFile(f"there is no {str(source)!r} on this machine; expected points (.csv, .npz, .npy) or pictures.")
    ending = source.suffix.lower()
    flat = ending in (".csv", ".txt") or (ending in (".npz", ".npy") and not holds_images(source))
    if flat:
        data = load_points(source, standardise=False)
        if len(data) * data.shape[0] > MAX_VALUES:
            raise _too_large(source, len(data), data.shape)
        points_dataset(source.stem, data.x, source=source.name)  # there is something to learn
        return data.x.numpy(), None if data.labels is None else data.labels.numpy(), data.n_classes
    _measure(source, side)
    square = ending == ".zip" or (source.is_dir() and side is not None)
    data = pictures(source, side=side, fit="centre-crop" if side else "exact") if square else opened(source)
    if side is not None and data.shape[1:] != (side, side):
        raise BadValue(
            f"{source.name} holds arrays of {data.shape[1]} x {data.shape[2]}; only pictures in a zip or folder are scaled."
        )
    if data.x.numel() > MAX_VALUES:
        raise _too_large(source, len(data), data.shape)
    x = data.x if data.x.dtype == torch.uint8 else _as_bytes(data.x)
    if bool((x == x[:1]).all()) and float(x.double().std()) == 0:
        raise BadValue(f"{source.name}: all {len(x)} pictures are one flat colour; there is nothing to learn.")
    return x.numpy(), None if data.labels is None else data.labels.numpy(), data.n_classes


def _as_bytes(x: Tensor) -> Tensor:
    """Pixels as bytes where they were bytes, else as they are."""
    pixels = ((x + 1) * 127.5).round()
    exact = bool((pixels.div(127.5).sub(1) == x).all()) and float(pixels.min()) >= 0 and float(pixels.max()) <= 255
    return pixels.to(torch.uint8) if exact else x


def _measure(source: Path, side: int | None) -> None:
    """Refuses what would not fit into memory: arrays by what they claim, pictures by their number and the size of the first."""
    if source.is_dir():
        files = sorted(str(f) for f in source.rglob("*") if f.suffix.lower() in ENDINGS)
        content = Path(files[0]).read_bytes() if files and Path(files[0]).stat().st_size < 2**26 else b""
    else:
        try:
            with zipfile.ZipFile(source) as archive:
                if source.suffix.lower() == ".npz" and sum(i.file_size for i in archive.infolist()) > 4 * MAX_VALUES:
                    raise BadFile(f"{source.name} unpacks to more than {4 * MAX_VALUES} bytes; thin the pictures out.")
                infos = [i for i in archive.infolist() if PurePosixPath(i.filename).suffix.lower() in ENDINGS]
                files = sorted(i.filename for i in infos)
                first = next((i for i in infos if files and i.filename == files[0]), None)
                content = b"" if first is None or first.file_size > 2**26 else archive.read(first)
        except BadFile:
            raise
        except Exception:  # no zip, or damaged: whoever reads it says what is wrong with it
            return
    if not content:
        return
    try:
        height, width, channels = picture(content, files[0]).shape
    except BadFile:
        return
    shape = (channels, side or height, side or width)
    if len(files) * int(np.prod(shape)) > MAX_VALUES:
        raise _too_large(source, len(files), shape)


def _too_large(source: Path, n: int, shape: tuple[int, ...]) -> BadFile:
    size = " x ".join(map(str, shape))
    return BadFile(
        f"{source.name} holds {n} samples of {size}: more than 2^30 numbers, which is what is read here. Thin them out, or choose a "
        "smaller size."
    )


def _part(file: Path) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        with np.load(file, allow_pickle=False) as held:
            return held["x"], held["labels"] if "labels" in held.files else None
    except Exception as problem:  # zipfile, zlib and numpy each have their own
        raise BadFile(f"{file} is damaged: {str(problem)[:120]}. Give the data again.") from None


def _about(folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if about["format"] != FORMAT or about["kind"] not in ("points", "pictures"):
            raise ValueError("another format")
        return {**about, "held_out": int(about["held_out"]), "n_classes": int(about["n_classes"])}
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise BadFile(f"{folder / ABOUT} is damaged: {problem}. Give the data again.") from None


def _placed(partial: Path, within: Path, title: str) -> Path:
    """The folder under its own name: the title, or the title with the first free number."""
    for k in range(1, 10**4):
        target = within / (title if k == 1 else f"{title}-{k}")
        if not target.exists():
            os.rename(partial, target)
            return target
    raise BadFile(f"{within} holds too many folders named {title}.")


def _slug(name: str) -> str:
    """A name for a folder: nothing of a path, nothing that another data set is called."""
    stem = PurePosixPath(name.replace("\\", "/")).name
    stem = stem[: -len(PurePosixPath(stem).suffix)] if PurePosixPath(stem).suffix else stem
    title = re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._")[:44] or "own"
    return title if NAME.fullmatch(title) else "own"
