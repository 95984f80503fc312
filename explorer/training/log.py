"""The run's log: one JSON object per tick, and the same numbers for TensorBoard when asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from explorer.errors import MissingExtra
from explorer.files import unwritten, write_atomic


class RunLog:
    """Appends ticks to `log.jsonl`; a resumed run drops the lines written after its checkpoint.

    Args:
        tensorboard: also write the scalars as TensorBoard events to `run_dir/tensorboard`.
    """

    def __init__(self, run_dir: Path, *, resume_step: int = 0, tensorboard: bool = False):
        self.file = Path(run_dir) / "log.jsonl"
        kept = [row for row in read_log(run_dir) if row["step"] <= resume_step]
        write_atomic(self.file, lambda file: file.write_text("".join(_line(row) for row in kept)))
        self.board = _board(Path(run_dir) / "tensorboard", resume_step) if tensorboard else None

    def write(self, row: Mapping[str, Any]) -> None:
        try:
            with self.file.open("a") as stream:
                stream.write(_line(row))
        except OSError as problem:
            raise unwritten(self.file, problem) from problem
        if self.board is not None:
            for name, value in row.items():
                if name == "estimate":
                    name, value = f"estimate/{value['name']}", value["value"]
                if isinstance(value, int | float) and name not in ("step", "seconds"):
                    self.board.add_scalar(name, value, row["step"])
            self.board.flush()

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def read_log(run_dir: Path | str) -> list[dict[str, Any]]:
    """Rows of a run's log, oldest first; a last line cut short by a crash is left out.

    Each row has "step", "n_images", "seconds" and the tick's logs by name; "levels" (see `level_history`), "estimate",
    "notices" and "stopped" where the tick had them.
    """
    file, rows = Path(run_dir) / "log.jsonl", []
    if file.exists():
        for line in file.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def _board(folder: Path, resume_step: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtra("tensorboard", "train", "Plan.tensorboard=True") from None
    return SummaryWriter(str(folder), purge_step=resume_step + 1)


def _line(row: Mapping[str, Any]) -> str:
    kept = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(kept) + "\n"
