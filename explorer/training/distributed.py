"""Data-parallel training: this process among those of the run. In a single process everything here is the identity.

torchrun --nproc-per-node 4 -m explorer train edm --data cifar10
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def active() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Index of this process; process 0 writes the files and prints."""
    return dist.get_rank() if active() else 0


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if active() else 1


@contextlib.contextmanager
def from_env(device: torch.device | str = "cpu") -> Iterator[torch.device]:
    """Join the processes that torchrun started, inside the block, and yield this one's device.

    Reads RANK, WORLD_SIZE and LOCAL_RANK; without them, or with a group that is already there, nothing is joined.

    Args:
        device: kind of device; of several GPUs each process takes the one of its local rank.
    """
    device = torch.device(device)
    if active() or int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def average_(loss: Tensor, params: list[nn.Parameter]) -> Tensor:
    """Mean loss over processes; gradients are replaced by theirs, in the same flat all-reduce.

    Gradients in shards have been averaged on their way (see `sharding`).
    """
    if not active():
        return loss
    if any(map(in_shards, params)):
        loss = loss.clone()
        dist.all_reduce(loss)
        return loss / world()
    # Parameters without a gradient here may have one elsewhere: every process sends the same layout.
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
    flat = torch.cat([loss.reshape(1).to(grads[0].dtype), *(g.reshape(-1) for g in grads)])
    dist.all_reduce(flat)
    flat /= world()
    for p, piece in zip(params, flat[1:].split([g.numel() for g in grads]), strict=True):
        if p.grad is None:
            p.grad = torch.empty_like(p)
        p.grad.copy_(piece.view_as(p))  # in the memory layout of p, which fused optimizers take for granted
    return flat[0].to(loss.dtype)


def shared(value: Any) -> Any:
    """Process 0's value on every process; a small picklable object."""
    if not active():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def agree_(module: nn.Module) -> None:
    """Give every process the weights and buffers of process 0; what is in shards stays as it is."""
    if active():
        where = place()
        for value in (*module.parameters(), *module.buffers()):
            if not in_shards(value):
                sent = value.detach().to(where)
                dist.broadcast(sent, src=0)
                value.detach().copy_(sent)


def in_shards(value: Any) -> bool:
    """Whether this is one process's part of a tensor; see `sharding`."""
    return type(value).__name__ == "DTensor"


def place() -> torch.device:
    """Where tensors must lie to be sent between the processes."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def barrier() -> None:
    """Wait until every process is here."""
    if active():
        shared(None)
