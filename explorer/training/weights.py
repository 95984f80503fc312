"""Weights kept beside the resume checkpoint: snapshots along the run, and the best by the plan's metric.

One safetensors file each, whose header says of which step it is, so that a reader sees a whole file or none.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from explorer.errors import BadFile, BadValue, UnknownName
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

    def tensor(self, net: str, key: str, ema: str | None = "ema") -> Tensor:
        """One tensor of one network, nothing else read."""
        name = f"method.nets.{net}.{key}" if ema is None else f"ema.{ema}.{net}.{key}"
        with _opened(self.file) as stored:
            if name not in stored.keys():  # noqa: SIM118
                raise UnknownName(f"tensor in {self.file.name}", name, stored.keys())
            return stored.get_tensor(name)

    def networks(self, ema: str | None = "ema") -> tuple[str, ...]:
        """Names of the networks whose average, or raw weights with `ema=None`, are there."""
        prefix = "method.nets." if ema is None else f"ema.{ema}."
        with _opened(self.file) as stored:
            found = {key[len(prefix) :].split(".")[0] for key in stored.keys() if key.startswith(prefix)}  # noqa: SIM118
        return tuple(sorted(found))

    def shapes(self, net: str, ema: str | None = "ema") -> dict[str, tuple[int, ...]]:
        """Name -> shape of one network's tensors, read off the header; empty where it is not there."""
        prefix = f"method.nets.{net}." if ema is None else f"ema.{ema}.{net}."
        with _opened(self.file) as stored:
            found = [key for key in stored.keys() if key.startswith(prefix)]  # noqa: SIM118
            return {key[len(prefix) :]: tuple(stored.get_slice(key).get_shape()) for key in found}

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


def merged(
    kept: Sequence[Snapshot], coefficients: Sequence[float], net: str, averaged: Collection[str], ema: str | None = None
) -> dict[str, Tensor]:
    """State dict of sum_i c_i theta_i over the snapshots of one network, summed in float64 one snapshot after another.

    Never more than one snapshot is held beside the sum. What is not in `averaged` (buffers: counters, running statistics) is that of
    the last snapshot that takes part. One coefficient of 1 gives that snapshot to the bit.

    Args:
        averaged: names of the tensors to combine, the parameters.
        ema: of which average; None for raw weights.
    Raises: BadFile where the snapshots are of different architectures; UnknownName where one lacks these weights.
    """
    if len(kept) != len(coefficients) or not any(coefficients):
        raise BadValue(f"{len(kept)} snapshots need as many coefficients, not all 0; got {list(coefficients)}")
    total: dict[str, Tensor] = {}
    state: dict[str, Tensor] = {}
    for snapshot, c in zip(kept, coefficients, strict=True):
        if c == 0:
            continue
        state = snapshot.state(net, ema)
        if total:
            _check_alike(total, state, snapshot)
        for key, value in state.items():
            if key in averaged:
                part = value.double().mul_(float(c)) if c != 1 else value.double()
                total[key] = part if key not in total else total[key].add_(part)
            else:
                total[key] = value
    return {key: value.to(state[key].dtype) for key, value in total.items()}


def gram(kept: Sequence[Snapshot], net: str, averaged: Collection[str], ema: str | None = None) -> Tensor:
    """Inner products (K, K) float64 of the snapshots' differences from the last one; held at a time: one tensor of each."""
    total = torch.zeros(len(kept), len(kept), dtype=torch.float64)
    for key in sorted(averaged):
        rows = torch.stack([snapshot.tensor(net, key, ema).double().flatten() for snapshot in kept])
        rows -= rows[-1].clone()
        total += rows @ rows.T
    return total


def _check_alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor], snapshot: Snapshot) -> None:
    """Raises BadFile naming the first difference in names or shapes."""
    if gap := sorted(set(one) ^ set(other)):
        raise BadFile(
            f"{snapshot.file.name} is of another architecture than the snapshots before: {gap[0]!r} is in only one of them"
        )
    for key, value in one.items():
        if value.shape != other[key].shape:
            shapes = f"{tuple(other[key].shape)}, not {tuple(value.shape)}"
            raise BadFile(
                f"{snapshot.file.name} is of another architecture than the snapshots before: {key!r} is {shapes}"
            )


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
