"""Runs as a page knows them: read from their folders again and again, only what has changed since."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from explorer.apps.training.folder import ACTIVE, RunFiles, listed, root
from explorer.apps.training.kept import keepable, kept_as
from explorer.models.bundled import user_folder
from explorer.training.levels import N_LEVELS

PLAIN = {"step", "n_images", "seconds", "levels", "estimate", "notices", "stopped", "skipped"}


@dataclass(frozen=True)
class Card:
    """What a run says of itself."""

    name: str
    request: dict[str, Any]
    status: dict[str, Any]
    kept: tuple[str, ...] = ()
    unkeepable: str = ""

    @property
    def state(self) -> str:
        return self.status["state"]

    @property
    def active(self) -> bool:
        return self.state in ACTIVE

    @property
    def fraction(self) -> float:
        return float(self.status.get("fraction") or 0.0)

    @property
    def measured(self) -> dict[str, Any] | None:
        found = self.status.get("measured")
        return found if isinstance(found, dict) and isinstance(found.get("estimate"), dict) else None

    @property
    def resumable(self) -> bool:
        return self.state in ("stopped", "killed", "failed") and bool(self.request)


@dataclass
class History:
    """The course of a run: rows of its log as columns, its measurements, and its pictures.

    T rows of the log. Arrays grow as the run goes; what is handed to views is never changed in place.
    """

    name: str
    steps: list[int] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    scalars: dict[str, list[float]] = field(default_factory=dict)
    levels: dict[str, list[dict]] = field(default_factory=dict)
    measures: list[dict[str, Any]] = field(default_factory=list)
    pictures: tuple[Path, ...] = ()

    def add(self, row: dict[str, Any]) -> None:
        n = len(self.steps)
        self.steps.append(int(row.get("step", 0)))
        self.images.append(int(row.get("n_images", 0)))
        self.seconds.append(float(row.get("seconds", 0.0)))
        for key, value in row.items():
            if key not in PLAIN and isinstance(value, int | float | None):
                column = self.scalars.setdefault(key, [np.nan] * n)
                column.append(np.nan if value is None else float(value))
        for key, value in (row.get("levels") or {}).items():
            self.levels.setdefault(key, [{}] * n).append(value)
        for column in self.scalars.values():
            if len(column) <= n:
                column.append(np.nan)
        for column in self.levels.values():
            if len(column) <= n:
                column.append({})

    @property
    def nets(self) -> list[str]:
        return [name.removeprefix("grad_norm/") for name in self.scalars if name.startswith("grad_norm/")]

    @property
    def losses(self) -> list[str]:
        """Losses of updates, without the parts that a method logs besides."""
        known = set(self.nets)
        return [n for n in self.scalars if n.startswith("loss/") and set(n[5:].split("+")) <= known]

    @property
    def others(self) -> list[str]:
        named = {*self.losses, *(f"grad_norm/{net}" for net in self.nets)}
        return [name for name in self.scalars if name not in named]

    def axis(self, by: str) -> np.ndarray:
        return np.asarray(self.images if by == "images" else self.seconds, float)

    def binned(self, values: Sequence[float], most: int) -> np.ndarray:
        """Means over equal groups of rows, at most `most` of them; NaN where a group has none."""
        values = np.asarray(values, float)
        return _grouped(values, most)

    def level_means(self, net: str, most: int) -> tuple[np.ndarray, np.ndarray]:
        """(groups, 30) each: mean loss by noise level, NaN where no sample fell, and how many fell there."""
        rows = self.levels.get(net, ())
        group = -(-len(rows) // most) if rows else 1
        total = np.zeros((-(-len(rows) // group), N_LEVELS))
        count = np.zeros_like(total)
        for i, row in enumerate(rows):
            with contextlib.suppress(KeyError, TypeError, ValueError, IndexError):
                bins, n = np.asarray(row["bins"], int), np.asarray(row["n"], float)
                mean = np.array([np.nan if v is None else v for v in row["mean"]], float)
                good = np.isfinite(mean)
                total[i // group, bins[good]] += mean[good] * n[good]
                count[i // group, bins[good]] += n[good]
        with np.errstate(invalid="ignore", divide="ignore"):
            return total / np.where(count > 0, count, np.nan), count


def _grouped(values: np.ndarray, most: int) -> np.ndarray:
    group = -(-len(values) // most) if len(values) else 1
    if group == 1:
        return values
    padded = np.full((-(-len(values) // group)) * group, np.nan)
    padded[: len(values)] = values
    parts = padded.reshape(-1, group)
    known = np.isfinite(parts)
    with np.errstate(invalid="ignore"):
        return np.where(known.any(1), np.where(known, parts, 0).sum(1) / np.maximum(known.sum(1), 1), np.nan)


class Reader:
    """Reads what is new in a folder of runs. Not for two threads at once."""

    def __init__(self, folder: Path | None = None):
        self._folder = folder
        self._cards: dict[str, tuple[tuple, Card]] = {}
        self._lines: dict[str, _Lines] = {}
        self.histories: dict[str, History] = {}

    @property
    def folder(self) -> Path:
        return self._folder or root()

    def cards(self) -> list[Card]:
        """All runs, newest first."""
        names = listed(self.folder)
        self._cards = {name: self._cards[name] for name in names if name in self._cards}
        return [self._card(name) for name in names]

    def history(self, name: str) -> History:
        """The run's course up to now; the same object as long as the run only grows."""
        files = RunFiles(self.folder / name)
        lines = self._lines.setdefault(name, _Lines(files.log, files.measures))
        if lines.begun_anew():
            lines = self._lines[name] = _Lines(files.log, files.measures)
            self.histories.pop(name, None)
        history = self.histories.setdefault(name, History(name))
        for row in lines.log.new():
            history.add(row)
        history.measures.extend(lines.measures.new())
        history.pictures = tuple(sorted(files.previews.glob("step-*.safetensors")))
        return history

    def forget(self, keep: Iterable[str]) -> None:
        """Drops the courses of all but these runs."""
        for name in set(self.histories) - set(keep):
            self.histories.pop(name, None)
            self._lines.pop(name, None)

    def _card(self, name: str) -> Card:
        files = RunFiles(self.folder / name)
        watched = [files.path / file for file in ("status.json", "last-words.json", "request.json")]
        mark = tuple(map(_mtime, [*watched, user_folder(), files.model, files.path]))
        known = self._cards.get(name)
        if known is not None and known[0] == mark and not known[1].active:
            return known[1]
        if known is not None and known[0] == mark and known[1].active and files.alive:
            return known[1]
        card = Card(name, files.request, files.status(), tuple(kept_as(files)), keepable(files))
        self._cards[name] = (mark, card)
        return card


class _Tail:
    """New lines of a file that grows."""

    def __init__(self, file: Path):
        self.file, self.at, self.inode = file, 0, None

    def replaced(self) -> bool:
        """Whether the file is another one than before, or shorter: a resumed run has rewritten it."""
        try:
            stat = self.file.stat()
        except OSError:
            return self.at > 0
        return self.at > 0 and (stat.st_ino != self.inode or stat.st_size < self.at)

    def new(self) -> list[dict[str, Any]]:
        try:
            with self.file.open("rb") as stream:
                self.inode = os.fstat(stream.fileno()).st_ino
                stream.seek(self.at)
                content = stream.read()
        except OSError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self.at += len(whole)
        rows = []
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict):
                    rows.append(row)
        return rows


class _Lines:
    def __init__(self, log: Path, measures: Path):
        self.log, self.measures = _Tail(log), _Tail(measures)

    def begun_anew(self) -> bool:
        return self.log.replaced() or self.measures.replaced()


def _mtime(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def title(card: Card) -> str:
    """The run in words: "edm · toy-8gaussians", "edm · toy on my-ring", or its folder's name."""
    request = card.request
    if not request.get("paper"):
        return card.name
    stem = f"{request['paper']}-{request.get('recipe', '')}"
    number = re.search(r"-(\d+)$", card.name.removeprefix(stem)) if not request.get("data") else None
    on = f" on {Path(str(request['data'])).stem}" if request.get("data") else ""
    return f"{request['paper']} · {request.get('recipe', '')}{on}" + (f" #{number[1]}" if number else "")
