"""Weights kept beside the resume checkpoint: snapshots along the run, and the best by the plan's metric.

One safetensors file each, whose header says of which step it is, so that a reader sees a whole file or none.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save_file
from torch import Tensor, nn

from explorer.errors import BadFile, UnknownName
from explorer.files import write_atomic
from explorer.training.checkpoint import plain

BEST = "best.safetensors"


@dataclass(frozen=True)
class Snapshot:
    """Weights of one moment of a run, on disk.

    Attributes:
        file: safetensors; tensors "ema.EMA.NET.KEY" and, where raw weights were kept, "method.nets.NET.KEY".
        about: its header: "step", "n_images"; "averaged" (network -> steps at its last averaging); "sigma_rel" (EMA ->
            width of its power-function profile, None for an exponential one); "estimate" in the best file.
    """

    file: Path
    about: Mapping[str, Any]

    @property
    def step(self) -> int:
        return self.about["step"]

    @property
    def emas(self) -> tuple[str, ...]:
        return tuple(self.about["sigma_rel"])

    def state(self, net: str, ema: str | None = "ema") -> dict[str, Tensor]:
        """State dict of one network: of an average, or raw with `ema=None`."""
        prefix = f"method.nets.{net}." if ema is None else f"ema.{ema}.{net}."
        with _opened(self.file) as stored:
            out = {k[len(prefix) :]: stored.get_tensor(k) for k in stored.keys() if k.startswith(prefix)}  # noqa: SIM118
            if not out:
                raise UnknownName(f"weights in {self.file.name}", prefix[:-1], {_group(k) for k in stored.keys()})  # noqa: SIM118
        return out

    def nets(self, like: nn.ModuleDict, ema: str | None = "ema") -> nn.ModuleDict:
        """Copies of a method's networks with these weights, in evaluation mode, as `Method.export` takes them."""
        return filled(like, lambda name: self.state(name, ema))


def filled(like: nn.ModuleDict, state: Callable[[str], Mapping[str, Tensor]]) -> nn.ModuleDict:
    """Copies of networks with other weights, frozen and in evaluation mode."""
    out = nn.ModuleDict({name: copy.deepcopy(net) for name, net in like.items()})
    for name, net in out.items():
        try:
            net.load_state_dict(state(name))
        except RuntimeError as problem:
            raise BadFile(f"the stored weights are of another network than {name!r}: {problem}") from problem
    return out.eval().requires_grad_(False)


def snapshots(run_dir: Path | str) -> list[Snapshot]:
    """Snapshots of a run, oldest first: what post-hoc averages and searches in weight space start from."""
    return [_read(file) for file in sorted(Path(run_dir).glob("snapshot-*.safetensors"))]


def best(run_dir: Path | str) -> Snapshot | None:
    """The weights with the lowest estimate so far; None before the first evaluation."""
    file = Path(run_dir) / BEST
    return _read(file) if file.exists() else None


def save_weights(file: Path, weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    header = {"about": json.dumps(about)}
    write_atomic(file, lambda temporary: save_file(plain(weights), temporary, metadata=header))


def _read(file: Path) -> Snapshot:
    with _opened(file) as stored:
        about = (stored.metadata() or {}).get("about")
    if about is None:
        raise BadFile(f"{file} does not say of which step it is; it was not written by a training run.")
    return Snapshot(file, json.loads(about))


def _opened(file: Path):
    try:
        return safetensors.safe_open(file, "pt")
    except (safetensors.SafetensorError, OSError) as problem:
        raise BadFile(f"{file} cannot be read as safetensors: {problem}") from problem


def _group(key: str) -> str:
    return ".".join(key.split(".")[:3])
