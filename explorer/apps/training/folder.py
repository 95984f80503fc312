"""A training run as files: what was asked for, what the process says of itself, what it is told, and whether it lives.

The process that trains and the pages that watch it share nothing but the run's folder, so either may end without the other.

    request.json    paper, recipe and changed values: enough to train it again
    status.json     the process's own account, replaced several times a second
    control.json    what the process is wanted to do: run, pause or stop
    lock            held by the process for as long as it lives, released by the system however it ends
    log.jsonl       one line per tick, written by the training loop
    measures.jsonl  quality as training goes
    previews/       samples from the averaged weights at fixed noise, one safetensors file each
    model/          the weights that were measured last, with their card

A run that is removed lies in the folder `.removed` among the runs until that is deleted by hand.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from explorer.errors import BadFile, BadValue

try:
    import fcntl
except ImportError:  # no such locks on this system: a run lives while its status is fresh
    fcntl = None

ACTIVE = ("starting", "preparing", "running", "paused", "measuring")
"""States in which there should be a process."""

STATES = (*ACTIVE, "done", "stopped", "failed", "killed", "unwatched")
WANTS = ("run", "pause", "stop")
REMOVED = ".removed"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
STALE = 300.0  # seconds without a sign of life that a process may take to start, on a machine with other work
SPARE_BYTES = 4096  # kept on disk for the last words of a run whose disk is full


def root() -> Path:
    """Where runs live: the variable EXPLORER_RUNS, or `runs` in the present folder."""
    return Path(os.environ.get("EXPLORER_RUNS") or "runs")


def new_name(stem: str, folder: Path | None = None) -> str:
    """A name for a run that no run in `folder` has: the stem, or the stem with a number."""
    folder, stem = folder or root(), re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._")[:56] or "run"
    taken = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return next(name for name in (stem, *(f"{stem}-{k}" for k in range(2, 10**6))) if name not in taken)


class RunFiles:
    """The files of one run; every write replaces a file at once, every read takes what is whole."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.name = self.path.name
        self.previews, self.model = self.path / "previews", self.path / "model"
        self.log, self.measures = self.path / "log.jsonl", self.path / "measures.jsonl"

    @classmethod
    def named(cls, name: str, folder: Path | None = None) -> RunFiles:
        """The run of that name.

        Raises:
            BadValue: no run has it, or it is no name of a folder.
        """
        folder = folder or root()
        if not NAME.fullmatch(name) or not (folder / name).is_dir():
            raise BadValue(f"there is no run {name!r} in {folder}; there are {', '.join(listed(folder)) or 'none'}.")
        return cls(folder / name)

    # What was asked for

    def ask(self, request: Mapping[str, Any]) -> None:
        """Makes the folder with what its process is to train."""
        self.path.mkdir(parents=True, exist_ok=True)
        _replace(self.path / "request.json", {**request, "created": time.time()})
        self.want("run")
        self.say(state="starting", pid=None, beat=time.time())

    @property
    def request(self) -> dict[str, Any]:
        return _read(self.path / "request.json")

    # What it is told

    def want(self, what: str) -> None:
        if what not in WANTS:
            raise BadValue(f"a run can be wanted to {', '.join(WANTS)}, not {what!r}.")
        _replace(self.path / "control.json", {"want": what})

    @property
    def wanted(self) -> str:
        want = _read(self.path / "control.json").get("want")
        return want if want in WANTS else "run"

    # What it says of itself

    def say(self, **status: Any) -> None:
        _replace(self.path / "status.json", status)

    def last_words(self, status: Mapping[str, Any]) -> None:
        """Says it in room that was set aside, where a full disk takes no new file."""
        try:
            self.say(**status)
        except BadFile:
            text = json.dumps(status)[: SPARE_BYTES - 1]
            with contextlib.suppress(OSError), open(self.path / "last-words.json", "r+b") as spare:
                spare.write(text.encode()[:SPARE_BYTES].ljust(SPARE_BYTES))

    def set_room_aside(self) -> None:
        with contextlib.suppress(OSError):
            (self.path / "last-words.json").write_bytes(b" " * SPARE_BYTES)

    def status(self) -> dict[str, Any]:
        """The newest status, its "state" one of STATES: a process that is gone without a word is "killed"."""
        said = _read(self.path / "last-words.json") or _read(self.path / "status.json")
        if said.get("state") not in STATES:
            said = self._from_log()
        there = self.alive or (said["state"] == "starting" and _starting(said))
        return {**said, "state": "killed"} if said["state"] in ACTIVE and not there else said

    def _from_log(self) -> dict[str, Any]:
        """What can be told of a run that was trained without a status: what its last checkpoint says."""
        indexes = sorted(self.path.glob("step-*.json"))
        info = _read(indexes[-1]) if indexes else {}
        plan = info.get("plan") or {}
        step, n_steps = info.get("step", 0), plan.get("n_steps", 0)
        done = bool(n_steps) and step >= n_steps
        return {
            "state": "done" if done else "unwatched",
            "step": step,
            "n_steps": n_steps,
            "n_images": info.get("n_images", 0),
            "fraction": step / n_steps if n_steps else 0.0,
            "seconds": info.get("seconds", 0.0),
        }

    # Whether it lives

    @property
    def alive(self) -> bool:
        """Whether a process holds the lock."""
        if fcntl is None:
            return time.time() - _read(self.path / "status.json").get("beat", 0) < STALE
        try:
            with open(self.path / "lock", "rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
        except FileNotFoundError:
            return False
        except OSError:
            return True

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run for this process.

        Raises:
            BadValue: another process trains in this folder.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / "lock", "ab") as file:
            for attempt in range(20):  # somebody who only looks holds it for a moment
                if fcntl is None:
                    break
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if attempt == 19:
                        raise BadValue(
                            f"{self.path} is being trained in by another process; stop it, or choose another folder."
                        ) from None
                    time.sleep(0.05)
            yield

    def drop_after(self, step: int) -> dict[str, Any] | None:
        """Forgets previews and measures of steps that a resumed run does again; the last measure that stays."""
        for file in self.previews.glob("step-*.safetensors"):
            if step_of(file) > step:
                file.unlink(missing_ok=True)
        kept = [row for row in read_rows(self.measures) if row.get("step", 0) <= step]
        if self.measures.exists():
            _put(self.measures, "".join(json.dumps(row) + "\n" for row in kept))
        return kept[-1] if kept else None

    def add_measure(self, row: Mapping[str, Any]) -> None:
        try:
            with self.measures.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
        except OSError as problem:
            raise BadFile(f"{self.measures} could not be written: {problem}.") from None


def remove(files: RunFiles) -> Path:
    """Moves a run out of sight, into the folder `.removed` beside it, and returns where it lies now.

    Raises:
        BadValue: a process trains it; BadFile: it cannot be moved.
    """
    if files.status()["state"] in ACTIVE:
        raise BadValue(f"{files.name} is {files.status()['state']}: stop it before you remove it.")
    aside = files.path.parent / REMOVED
    target = aside / new_name(files.name, aside)
    return _moved(files.path, target)


def put_back(path: Path) -> str:
    """Moves a removed run back among the others and returns its name.

    Raises:
        BadValue: it is not there any more; BadFile: it cannot be moved.
    """
    if not path.is_dir():
        raise BadValue(f"{path} is not there any more.")
    folder = path.parent.parent
    return _moved(path, folder / new_name(path.name, folder)).name


def _moved(path: Path, target: Path) -> Path:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(path, target)
    except OSError as problem:
        raise BadFile(f"{path} could not be moved to {target}: {problem.strerror or problem}.") from None
    return target


def listed(folder: Path | None = None) -> list[str]:
    """Names of the runs in a folder, newest first."""
    folder, found = folder or root(), []
    if folder.is_dir():
        for path in folder.iterdir():
            if NAME.fullmatch(path.name) and path.is_dir():
                marks = [path / "request.json", path / "log.jsonl"]
                times = [mark.stat().st_mtime for mark in marks if mark.is_file()]
                if times:
                    found.append((_read(marks[0]).get("created") or min(times), path.name))
    return [name for _, name in sorted(found, reverse=True)]


def step_of(file: Path) -> int:
    digits = file.name.removeprefix("step-").partition(".")[0]
    return int(digits) if digits.isdigit() else 0


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Rows of a file of JSON lines; what a crash has cut short is left out."""
    rows = []
    with contextlib.suppress(OSError):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                break
            if isinstance(row, dict):
                rows.append(row)
    return rows


def _starting(said: Mapping[str, Any]) -> bool:
    """Whether a process that has not taken its lock yet may still be on its way."""
    if time.time() - float(said.get("beat") or 0) > STALE:
        return False
    pid = said.get("pid")
    if not isinstance(pid, int) or os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _replace(file: Path, content: Mapping[str, Any]) -> None:
    _put(file, json.dumps(content))


def _put(file: Path, text: str) -> None:
    """At once, but not flushed to the disk: after a power failure an old account is no worse than none."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, file)
    except OSError as problem:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise BadFile(f"{file} could not be written: {problem}.") from None
