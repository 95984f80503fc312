"""What lies in the folder of searches: NAME.jsonl, the journal; NAME.plan.json, what was asked; NAME.found.json, what came of it.

A search that is kept is NAME.tuned.json, a copy of the outcome that nothing here changes again. Reading takes no lock, so that a search
that runs in another process can be looked at.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from explorer.apps.training.folder import root
from explorer.apps.tuning.plan import Plan
from explorer.errors import BadFile, BadValue, ExplorerError
from explorer.files import write_atomic
from explorer.tuning import Budget, Trial, Tuned
from explorer.tuning.journal import FORMAT

JOURNAL, PLAN, FOUND, KEPT = ".jsonl", ".plan.json", ".found.json", ".tuned.json"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")


@dataclass(frozen=True)
class Record:
    """A search as its files have it.

    Attributes:
        plan: None where it was not started on this page.
        model: name of its model.
        trials: the baseline first.
        tuned: None before the numbers on held-out noise.
        changed: when its journal grew last, seconds since the epoch.
        broken: why it cannot be read; "" where it can.
    """

    name: str
    plan: Plan | None
    model: str
    trials: tuple[Trial, ...]
    tuned: Tuned | None
    kept: bool
    changed: float
    broken: str = ""

    @property
    def fraction(self) -> float:
        """Share of the plan's budget that is spent."""
        if self.plan is None or not self.trials:
            return 0.0
        budget = Budget(trials=self.plan.trials, minutes=self.plan.minutes)
        return min(budget.spent(len(self.trials) - 1, 0, sum(t.seconds for t in self.trials) / 60), 1.0)


def folder() -> Path:
    """Where searches lie: `tuning` beside the runs."""
    return root() / "tuning"


def named(name: str, where: Path) -> str:
    """The name itself.

    Raises: BadValue where no search has it, or none could.
    """
    if not NAME.fullmatch(name) or not (where / (name + JOURNAL)).is_file():
        raise BadValue(f"there is no search {name!r} in {where}.")
    return name


def new_name(stem: str, where: Path) -> str:
    stem = re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._")[:60] or "search"
    taken = {path.name for path in where.iterdir()} if where.is_dir() else set()
    return next(n for n in (stem, *(f"{stem}-{k}" for k in range(2, 10**6))) if not {n + JOURNAL, n + PLAN} & taken)


def write_plan(plan: Plan, name: str, where: Path) -> None:
    text = json.dumps({"format": "explorer.tuning.plan", "version": 1, **plan.to_dict()}, indent=1) + "\n"
    write_atomic(where / (name + PLAN), lambda file: file.write_text(text, encoding="utf-8"))


class Reader:
    """Reads what has changed since it last looked."""

    def __init__(self):
        self._known: dict[str, tuple[tuple, Record]] = {}

    def all(self, where: Path, leave: frozenset[str] = frozenset()) -> list[Record]:
        """Every search, the one that grew last first; those in `leave` as they were read before, if they were."""
        names = [p.name.removesuffix(JOURNAL) for p in where.glob("*" + JOURNAL)] if where.is_dir() else []
        old = {name: self._known[name][1] for name in leave if name in self._known}
        found = [old.get(name) or self.one(name, where) for name in names if NAME.fullmatch(name)]
        self._known = {r.name: self._known[r.name] for r in found}
        return sorted(found, key=lambda r: (-r.changed, r.name))

    def one(self, name: str, where: Path) -> Record:
        files = [where / (name + end) for end in (JOURNAL, PLAN, FOUND, KEPT)]
        stamp = tuple(stamp_of(file) for file in files)
        if self._known.get(name, ((), None))[0] != stamp:
            self._known[name] = (stamp, read(name, where))
        return self._known[name][1]


def read(name: str, where: Path) -> Record:
    """A search as its files have it; damage is named in `broken`, and what is whole is there."""
    journal, broken, plan, tuned = where / (name + JOURNAL), "", None, None
    trials: list[Trial] = []
    head: dict[str, Any] = {}
    try:
        lines = journal.read_bytes().split(b"\n")[:-1]  # what follows the last newline was cut off, or is being written
        rows = [json.loads(line) for line in lines]
        if rows:
            head = rows[0] if isinstance(rows[0], dict) else {}
            if head.get("format") != FORMAT:
                raise BadFile(f"{journal} is no journal of a search")
            trials = [Trial.from_dict(row) for row in rows[1:]]
        if (where / (name + PLAN)).is_file():
            given = json.loads((where / (name + PLAN)).read_text(encoding="utf-8"))
            plan = Plan.from_dict({k: v for k, v in given.items() if k not in ("format", "version")})
        if (where / (name + FOUND)).is_file():
            tuned = Tuned.load(where / (name + FOUND))
    except (ExplorerError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        broken = str(error) if isinstance(error, ExplorerError) else f"{name} cannot be read: {error!r}"
    model = plan.model if plan is not None else str((head.get("model") or {}).get("name", ""))
    kept, changed = (where / (name + KEPT)).is_file(), stamp_of(journal)[0]
    return Record(name, plan, model, tuple(trials), tuned, kept, changed, broken)


def remove(name: str, where: Path) -> Path:
    """Moves a search's files out of sight, into `removed` beside them, and returns where they are."""
    out = where / "removed"
    out.mkdir(parents=True, exist_ok=True)
    for end in (JOURNAL, PLAN, FOUND, KEPT):
        file = where / (name + end)
        if file.is_file():
            file.replace(out / file.name)
    return out


def stamp_of(file: Path) -> tuple[float, int]:
    """Changes whenever the file does: its time and size."""
    try:
        about = file.stat()
    except OSError:
        return (0.0, -1)
    return (about.st_mtime, about.st_size)
