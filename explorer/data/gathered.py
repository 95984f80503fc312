"""Pixels of a set that is too large for memory, collected once into a file and mapped from it."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from explorer.errors import BadFile
from explorer.files import sweep, write_atomic

FLOAT_BYTES = 2**30
"""Sets that would take more than this as float32 keep their pixels as bytes."""
PART = 1024
"""Pictures collected at a time."""

Parts = Iterable[tuple[Tensor, Tensor | None]]
"""Pixels (n, C, H, W) uint8, all of one shape, and labels (n,) int64 or None, one part of the set after the other."""


def gathered(parts: Callable[[], Parts], sources: Any, cache: Path) -> tuple[Tensor, Tensor | None]:
    """Pixels (N, C, H, W) uint8, mapped, and labels (N,) of all parts.

    Several processes may ask at once: one collects, the others wait. What a killed process leaves is not taken for whole.

    Args:
        parts: called where nothing is kept yet; one part is in memory at a time.
        sources: what the parts are read from, as plain JSON (names, sizes, times); when it changes they are collected anew.
        cache: the folder to keep them in.
    Raises:
        BadFile: the disk is full or not writable.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with _alone(cache):
        found = _kept(sources, cache)
        if found is None:
            _collect(parts, sources, cache)
            found = _kept(sources, cache)
    shape, labels = found
    pixels = np.memmap(cache / "pixels.bin", np.uint8, mode="c", shape=shape)
    return torch.from_numpy(pixels), None if labels is None else torch.from_numpy(labels)


def pixels_of(
    n: int, pictures: Callable[[], Iterator[np.ndarray]], *, cache: Path | None = None, sources: Any = None
) -> Tensor:
    """(n, C, H, W) uint8 of n pictures (H, W, C) uint8 that are read one after the other, all of one shape.

    Args:
        cache, sources: see `gathered`; used where the set is large. Without a cache it is kept in memory.
    """
    with contextlib.closing(pictures()) as once:
        first = next(once)
    if cache is not None and 4 * n * first.size > FLOAT_BYTES:
        return gathered(lambda: _in_parts(pictures()), sources, cache)[0]
    out = np.empty((n, *first.shape), np.uint8)
    for i, picture in enumerate(pictures()):
        out[i] = picture
    return _planes(out)


def _in_parts(pictures: Iterator[np.ndarray]) -> Parts:
    while part := list(itertools.islice(pictures, PART)):
        yield _planes(np.stack(part)), None


def _planes(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def signs_of(files: Iterable[Path]) -> list[list]:
    """What tells whether a file has changed: its name, size and time."""
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def cache_folder(name: str) -> Path:
    """Where sets are kept: in the folder that EXPLORER_CACHE names, or the user's."""
    root = os.environ.get("EXPLORER_CACHE") or Path.home() / ".cache" / "trajectory-explorer"
    return Path(root) / name


def _kept(sources: Any, cache: Path) -> tuple[tuple[int, ...], np.ndarray | None] | None:
    try:
        about = json.loads((cache / "index.json").read_text(encoding="utf-8"))
        shape = tuple(about["shape"])
        if about["sources"] != json.loads(json.dumps(sources)):
            return None
        if (cache / "pixels.bin").stat().st_size != math.prod(shape):
            return None
        labels = np.load(cache / "labels.npy", allow_pickle=False) if about["labelled"] else None
        return (shape, labels) if labels is None or labels.shape == shape[:1] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _collect(parts: Callable[[], Parts], sources: Any, cache: Path) -> None:
    sweep(cache)
    (cache / "index.json").unlink(missing_ok=True)  # until all is written
    about: dict[str, Any] = {}
    bad: list[BadFile] = []

    def write(file: Path) -> None:
        n, labels, shape = 0, [], ()
        with file.open("wb") as out:
            for pixels, label in _noting(parts(), bad):
                out.write(pixels.contiguous().numpy().data)
                n, shape = n + len(pixels), tuple(pixels.shape[1:])
                if label is not None:
                    labels.append(label)
        about.update(shape=[n, *shape], labelled=bool(labels), labels=torch.cat(labels).numpy() if labels else None)

    try:
        write_atomic(cache / "pixels.bin", write)
    except BadFile:
        if bad:
            raise bad[0] from None
        raise
    if about["labelled"]:
        write_atomic(cache / "labels.npy", lambda file: _save(file, about["labels"]))
    text = json.dumps({"shape": about["shape"], "labelled": about["labelled"], "sources": sources})
    write_atomic(cache / "index.json", lambda file: file.write_text(text, encoding="utf-8"))


def _noting(parts: Parts, bad: list[BadFile]) -> Parts:
    """The parts; what is wrong with the source is told apart from what is wrong with the disk."""
    try:
        yield from parts
    except BadFile as problem:
        bad.append(problem)
        raise


def _save(file: Path, values: np.ndarray) -> None:
    with file.open("wb") as out:  # np.save would add an ending to the name
        np.save(out, values)


@contextlib.contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """Whoever comes second waits, where the system has locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
