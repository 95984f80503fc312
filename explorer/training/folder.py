"""What a run writes to its folder, by process 0 alone."""

from __future__ import annotations

import functools
import platform
import subprocess
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from explorer import __version__
from explorer.files import sweep
from explorer.training import distributed
from explorer.training.checkpoint import Checkpoint, load_checkpoint, prune, save_checkpoint, set_aside
from explorer.training.log import RunLog
from explorer.training.plan import Plan
from explorer.training.weights import BEST, save_weights


class RunFolder:
    """Checkpoints, snapshots, best weights and log of one run; without a folder, or in other processes, writes nothing.

    Attributes:
        saved: the checkpoint to resume, None for a new run.
    """

    def __init__(self, run_dir: Path | str | None, plan: Plan):
        self.plan = plan
        self.dir = None if run_dir is None else Path(run_dir)
        self.writes = self.dir is not None and distributed.rank() == 0
        self.log: RunLog | None = None
        self.saved: Checkpoint | None = None
        if self.dir is not None:
            self.saved = load_checkpoint(self.dir)
            distributed.barrier()  # nobody changes the folder before all have read it
        self.saved_step = -1 if self.saved is None else self.saved.info["step"]

    def begin(self) -> None:
        """Clear away what a killed process left, and open the log at the step the run continues from."""
        if self.saved is not None and self.saved.notice:
            warnings.warn(self.saved.notice, stacklevel=3)
        if self.writes:
            self.dir.mkdir(parents=True, exist_ok=True)
            sweep(self.dir)
            if self.saved is not None and self.saved.notice:
                set_aside(self.dir, self.saved_step)
            prune(self.dir, self.plan.keep)
            self.log = RunLog(self.dir, resume_step=max(self.saved_step, 0), tensorboard=self.plan.tensorboard)
        self.saved = None  # as large as the networks

    def row(self, row: Mapping[str, Any]) -> None:
        if self.writes:
            self.log.write(row)

    def checkpoint(self, info: Mapping[str, Any], weights: Mapping[str, Tensor], optimizers: Mapping[str, Any]) -> None:
        self.saved_step = info["step"]
        if self.writes:
            save_checkpoint(self.dir, {**info, **_surroundings()}, weights, optimizers, keep=self.plan.keep)

    def snapshot(self, about: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Weights by their names in a checkpoint, of which the averages are kept, and the raw ones if the plan says so."""
        if self.writes:
            kinds = ("ema.", "method.nets.") if self.plan.snapshot_raw else ("ema.",)
            kept = {name: value for name, value in weights.items() if name.startswith(kinds)}
            save_weights(self.dir / f"snapshot-{about['step']:09d}.safetensors", kept, about)

    def best(self, about: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        if self.writes:
            kept = {name: value for name, value in weights.items() if name.startswith(("ema.", "method.nets."))}
            save_weights(self.dir / BEST, kept, about)

    def close(self) -> None:
        if self.log is not None:
            self.log.close()


def _surroundings() -> dict[str, Any]:
    versions = {
        "explorer": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    return {"git": git_state(), "versions": versions, "processes": distributed.world()}


@functools.cache
def git_state() -> dict[str, Any] | None:
    """Commit of the checkout this package is imported from and whether files were changed since; None outside of one."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ("git", "-C", str(here), *arguments), capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", Path(__file__).name
        )  # not someone else's checkout around an installed package
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None
