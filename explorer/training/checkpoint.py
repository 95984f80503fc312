"""Checkpoints that survive a crash and cannot run code.

A checkpoint is three files: weights (safetensors), optimizer state (a torch file read with `weights_only=True`), and an
index that is written last and names both with their hashes. A reader takes the newest index whose files are whole, so a
run killed at any moment resumes from the checkpoint before, and damage to the newest costs no more than the steps since.
"""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from explorer.errors import BadFile
from explorer.files import sha256, write_atomic

OLD_INDEX = "checkpoint.json"  # of runs saved before each checkpoint had an index of its own


class Checkpoint(NamedTuple):
    """A saved run.

    Attributes:
        info: JSON-able facts: step, counters, plan, state of the code and versions.
        weights: flat tensors by name.
        optimizers: state dict of each network's optimizer.
        notice: what was wrong with newer checkpoints that had to be passed over; empty otherwise.
    """

    info: dict[str, Any]
    weights: dict[str, Tensor]
    optimizers: dict[str, Any]
    notice: str = ""


def plain(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU that share no memory, as safetensors wants them."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in weights.items()}


def save_checkpoint(
    run_dir: Path,
    info: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    optimizers: Mapping[str, Any],
    *,
    keep: int | None = 2,
) -> None:
    """Write a checkpoint of `info["step"]` and drop all but the `keep` newest (None: keep all).

    Raises:
        BadFile: the disk is full or not writable; older checkpoints are intact.
    """
    run_dir = Path(run_dir)
    stem = f"step-{info['step']:09d}"
    copies = plain(weights)
    write_atomic(run_dir / f"{stem}.safetensors", lambda file: save_file(copies, file))
    write_atomic(run_dir / f"{stem}.optim.pt", lambda file: torch.save(dict(optimizers), file))
    files = {name: sha256(run_dir / name) for name in (f"{stem}.safetensors", f"{stem}.optim.pt")}
    text = json.dumps({**info, "files": files}, indent=1)
    write_atomic(run_dir / f"{stem}.json", lambda file: file.write_text(text))
    prune(run_dir, keep)


def prune(run_dir: Path, keep: int | None) -> None:
    """Remove all but the `keep` newest checkpoints (None: keep all) and what belongs to none."""
    run_dir = Path(run_dir)
    if not (kept := {file.stem for file in _indexes(run_dir)[-(keep or 0) :]}):
        return
    # Indexes go first: what a killed process leaves behind is then a file without an index, removed the next time.
    for old in sorted(run_dir.glob("step-*"), key=lambda file: file.suffix != ".json"):
        if old.name.split(".")[0] not in kept and old.name.endswith((".json", ".safetensors", ".optim.pt")):
            old.unlink(missing_ok=True)
    (run_dir / OLD_INDEX).unlink(missing_ok=True)


def load_checkpoint(run_dir: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a run, or None when there is none.

    Raises:
        BadFile: there are checkpoints but none is whole; nothing of them has been used then.
    """
    run_dir, damaged = Path(run_dir), []
    old = [run_dir / OLD_INDEX] if (run_dir / OLD_INDEX).exists() else []
    for index in (*reversed(_indexes(run_dir)), *old):
        try:
            found = _load(index)
        except BadFile as problem:
            damaged.append((index, problem))
            continue
        if not damaged:
            return found
        return found._replace(
            notice=f"{damaged[0][1]} Went back to the checkpoint before, of step {found.info['step']}."
        )
    if damaged:
        raise BadFile(f"{damaged[0][1]} No older checkpoint is left; use a new folder.")
    return None


def set_aside(run_dir: Path, step: int) -> None:
    """Take the indexes of checkpoints after `step` out of the way, when a resumed run had to go back before them."""
    for index in _indexes(run_dir):
        if int(index.stem.removeprefix("step-")) > step:
            with contextlib.suppress(FileNotFoundError):
                index.rename(index.with_suffix(".json.damaged"))


def _indexes(run_dir: Path) -> list[Path]:
    return sorted(Path(run_dir).glob("step-*.json"))


def _load(index: Path) -> Checkpoint:
    with _readable(index):
        info = json.loads(index.read_text())
        files = info.pop("files")
        weights_file, optim_file = (index.parent / Path(name).name for name in files)
        for file, expected in zip((weights_file, optim_file), files.values(), strict=True):
            if not file.exists() or sha256(file) != expected:
                raise BadFile(f"{file} is missing or not the file that {index.name} recorded.")
        return Checkpoint(info, load_file(weights_file), torch.load(optim_file, map_location="cpu", weights_only=True))


@contextlib.contextmanager
def _readable(index: Path) -> Iterator[None]:
    try:
        yield
    except BadFile:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RuntimeError) as problem:
        raise BadFile(f"{index} is not a checkpoint of this package: {problem}.") from problem
    except (safetensors.SafetensorError, pickle.UnpicklingError) as problem:
        raise BadFile(f"a file named by {index} cannot be read: {problem}.") from problem
