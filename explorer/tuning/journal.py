"""A file of JSON lines that grows by one line per trial and survives a kill: what was flushed is kept, a torn last line is dropped."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from explorer.errors import BadFile

FORMAT, VERSION = "explorer.tuning", 1


class Journal:
    """The header and rows of a journal, and the place where the next row goes; one process at a time.

    Args:
        file: made where it does not exist.
        about: what the rows belong to; a file whose header says otherwise is refused.
    Raises:
        BadFile: unreadable, damaged before its last line, of another search (naming what differs), or open elsewhere.
    """

    def __init__(self, file: Path | str, about: dict[str, Any]):
        self.file, self.about = Path(file), json.loads(json.dumps(about))
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._stream = open(self.file, "a+b")  # noqa: SIM115
        except OSError as error:
            raise BadFile(f"{file} cannot be opened: {error.strerror or error}") from None
        try:
            self._lock()
            self.rows = self._read()
        except BaseException:
            self._stream.close()
            raise

    def append(self, row: dict[str, Any]) -> None:
        """Write one row and wait until it is on disk."""
        self._write(row)
        self.rows.append(row)

    def close(self) -> None:
        self._stream.close()

    def _lock(self) -> None:
        with contextlib.suppress(ImportError):  # Windows has no fcntl
            import fcntl

            try:
                fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise BadFile(
                    f"{self.file} is in use by another search: wait for it, or name another journal"
                ) from None

    def _read(self) -> list[dict[str, Any]]:
        self._stream.seek(0)
        lines = self._stream.read().split(b"\n")
        whole, torn = lines[:-1], lines[-1]  # what follows the last newline was cut off in the middle
        if torn:
            self._stream.truncate(sum(len(line) + 1 for line in whole))
        if not whole:
            self._write({"format": FORMAT, "version": VERSION, **self.about})
            return []
        rows = []
        for number, line in enumerate(whole, 1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("not an object")
            except ValueError as error:
                raise BadFile(
                    f"line {number} of {self.file} is damaged ({error}): remove that line and those after it, or start a new journal"
                ) from None
            rows.append(row)
        head = rows[0]
        if head.get("format") != FORMAT or head.get("version") != VERSION:
            raise BadFile(
                f"{self.file} is of format {head.get('format')!r}, version {head.get('version')}; this reads {FORMAT!r} {VERSION}"
            )
        if gap := difference({k: v for k, v in head.items() if k not in ("format", "version")}, self.about):
            raise BadFile(f"{self.file} belongs to another search: {gap}. Name another journal, or repeat its command")
        return rows[1:]

    def _write(self, row: dict[str, Any]) -> None:
        try:
            self._stream.write(json.dumps(row, allow_nan=False).encode() + b"\n")
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise BadFile(
                f"{self.file} could not be written: {error.strerror or error}; what it held is kept"
            ) from None


def difference(old: Any, new: Any, where: str = "") -> str:
    """The first place where two JSON values differ, in words; empty where they agree."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*new, *(k for k in old if k not in new)]:
            if gap := difference(old.get(key), new.get(key), f"{where}.{key}" if where else str(key)):
                return gap
        return ""
    return "" if old == new else f"{where} is {_short(old)} there and {_short(new)} here"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
