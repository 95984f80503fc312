"""The run's log: one JSON object per tick."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class RunLog:
    """Appends ticks to `log.jsonl`; a resumed run drops the lines written after its checkpoint."""

    def __init__(self, run_dir: Path, *, resume_step: int = 0):
        self.file = Path(run_dir) / "log.jsonl"
        kept = [row for row in read_log(run_dir) if row["step"] <= resume_step]
        self.file.write_text("".join(_line(row) for row in kept))

    def write(self, row: Mapping[str, Any]) -> None:
        with self.file.open("a") as stream:
            stream.write(_line(row))


def read_log(run_dir: Path) -> list[dict[str, Any]]:
    """Rows of a run's log, oldest first; a last line cut short by a crash is left out."""
    file, rows = Path(run_dir) / "log.jsonl", []
    if file.exists():
        for line in file.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def _line(row: Mapping[str, Any]) -> str:
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(plain) + "\n"
