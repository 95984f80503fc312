"""Checkpoints that survive a crash and cannot run code.

Weights are safetensors; optimizer state is a torch file read with `weights_only=True`. Both carry the step in their
names and are complete before `checkpoint.json`, which names them with their hashes, is replaced: a reader sees the old
pair or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from explorer.errors import BadFile


class Checkpoint(NamedTuple):
    """A saved run.

    Attributes:
        info: JSON-able facts: step, counters, plan.
        weights: flat tensors by name.
        optimizers: state dict of each network's optimizer.
    """

    info: dict[str, Any]
    weights: dict[str, Tensor]
    optimizers: dict[str, Any]


def write_atomic(file: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file in the same folder, flush it to disk, and move it over `file`."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    os.close(handle)
    try:
        write(Path(temporary))
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    finally:
        Path(temporary).unlink(missing_ok=True)


def sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def save_checkpoint(
    run_dir: Path,
    info: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    optimizers: Mapping[str, Any],
    *,
    keep: int | None = 1,
) -> None:
    """Write a checkpoint of `info["step"]` and drop all but the `keep` newest (None: keep all)."""
    run_dir = Path(run_dir)
    stem = f"step-{info['step']:09d}"
    plain = {name: value.detach().cpu().clone().contiguous() for name, value in weights.items()}
    write_atomic(run_dir / f"{stem}.safetensors", lambda file: save_file(plain, file))
    write_atomic(run_dir / f"{stem}.optim.pt", lambda file: torch.save(dict(optimizers), file))
    files = {name: sha256(run_dir / name) for name in (f"{stem}.safetensors", f"{stem}.optim.pt")}
    text = json.dumps({**info, "files": files}, indent=1)
    write_atomic(run_dir / "checkpoint.json", lambda file: file.write_text(text))
    if keep is not None:
        for old in snapshots(run_dir)[:-keep]:
            old.unlink(missing_ok=True)
            old.with_name(old.name.replace(".safetensors", ".optim.pt")).unlink(missing_ok=True)


def snapshots(run_dir: Path) -> list[Path]:
    """Weight files of a run, oldest first."""
    return sorted(Path(run_dir).glob("step-*.safetensors"))


def load_checkpoint(run_dir: Path) -> Checkpoint | None:
    """The newest complete checkpoint of a run, or None when there is none.

    Raises:
        BadFile: a file is missing, or its hash is not the recorded one; nothing of it has been used then.
    """
    index = Path(run_dir) / "checkpoint.json"
    if not index.exists():
        return None
    try:
        info = json.loads(index.read_text())
        files = info.pop("files")
        weights_file, optim_file = (index.parent / Path(name).name for name in files)
        for file, expected in zip((weights_file, optim_file), files.values(), strict=True):
            if not file.exists() or sha256(file) != expected:
                raise BadFile(f"{file} is missing or not the file that {index.name} recorded; use a new folder.")
        return Checkpoint(info, load_file(weights_file), torch.load(optim_file, map_location="cpu", weights_only=True))
    except BadFile:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RuntimeError) as problem:
        raise BadFile(f"{index} is not a checkpoint of this package: {problem}") from problem
    except (safetensors.SafetensorError, pickle.UnpicklingError) as problem:
        raise BadFile(f"a file named by {index} cannot be read: {problem}") from problem
