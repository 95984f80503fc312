"""Networks in shards: each process keeps its part of every weight, gradient, average and optimizer state, and layers are put together
for as long as they compute (FSDP2, Zhao et al. 2023, arXiv 2304.11277).

Elementwise work (optimizers, averages, scaling) is done on the parts; what a file holds is whole.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from explorer.training import distributed
from explorer.training.distributed import in_shards


def shard_(nets: nn.ModuleDict) -> None:
    """Cut every network into as many parts as there are processes, block by block; each keeps its own.

    A network may then only be called (or asked for `features`), not read: a method that copies or differentiates weights itself
    cannot be trained in this way. Networks may come on the CPU and go to this process's device block by block, so that none is ever
    whole there. Weights lie contiguously afterwards, whatever memory format they had.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(distributed.place().type, (distributed.world(),))
    for net in nets.values():
        net.to(memory_format=torch.contiguous_format)
        for p in net.parameters():
            p.data = p.data.contiguous()
        for block in _blocks(net):
            fully_shard(block, mesh=mesh)
        fully_shard(net, mesh=mesh)
        if hasattr(net, "features"):
            register_fsdp_forward_method(net, "features")


def parts(values: Iterable[Tensor]) -> list[Tensor]:
    """What lies in this process of each tensor, sharing its memory: the tensor itself where it is whole."""
    with torch.no_grad():
        return [v.to_local() if in_shards(v) else v for v in values]


def whole(value: Any) -> Any:
    """A tensor put together from all processes, which must all ask; containers likewise, anything else as it is."""
    if in_shards(value):
        return value.detach().full_tensor()
    if isinstance(value, Mapping):
        return {name: whole(v) for name, v in value.items()}
    return [whole(v) for v in value] if isinstance(value, list) else value


def load_(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """`load_state_dict` from whole tensors; each process takes its part."""
    ours = module.state_dict()
    if set(ours) != set(values):
        odd = sorted(set(ours) ^ set(values))
        raise RuntimeError(f"missing or unexpected keys: {', '.join(odd[:4])}")
    with torch.no_grad():
        for name, mine in ours.items():
            if mine.shape != values[name].shape:
                raise RuntimeError(f"size mismatch for {name}: {tuple(values[name].shape)} for {tuple(mine.shape)}")
            mine.copy_(like(values[name], mine))


def like(value: Tensor, mine: Tensor) -> Tensor:
    """A whole tensor, cut as `mine` is."""
    if not in_shards(mine) or value.shape != mine.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    value = value.to(mine.device)
    return distribute_tensor(value, mine.device_mesh, mine.placements, src_data_rank=None)


def optimizer_state(saved: Mapping[str, Any], params: list[nn.Parameter]) -> dict[str, Any]:
    """A whole optimizer's state dict, cut as its parameters are."""
    state = {
        i: {k: like(v, params[i]) if isinstance(v, Tensor) else v for k, v in each.items()}
        for i, each in saved["state"].items()
    }
    return {**saved, "state": state}


def norm(grads: list[Tensor]) -> Tensor:
    """2-norm of all gradients together, over all processes where they are in shards."""
    if not any(in_shards(g) for g in grads):
        return torch.nn.utils.get_total_norm(grads)
    square = torch.nn.utils.get_total_norm(parts(grads)).square().reshape(1)
    dist.all_reduce(square)
    return square[0].sqrt()


def clip_(params: list[nn.Parameter], limit: float, total: Tensor) -> None:
    """Shrink gradients of the norm `total` to at most `limit`."""
    if not any(in_shards(p) for p in params):
        torch.nn.utils.clip_grads_with_norm_(params, limit, total)
        return
    factor = float((limit / (total + 1e-6)).clamp(max=1.0))  # as torch has it
    if factor < 1.0:
        torch._foreach_mul_(parts(p.grad for p in params if p.grad is not None), factor)


def skeleton(nets: nn.ModuleDict) -> nn.ModuleDict:
    """The same networks without memory, from which `together` makes whole ones."""
    with torch.no_grad():
        return copy.deepcopy(nets).to("meta")


def together(bones: nn.ModuleDict, nets: nn.ModuleDict) -> nn.ModuleDict:
    """Whole networks on the CPU in process 0; in the others, which must ask too, the sharded ones."""
    names, values = [], []
    for name, value in (*nets.named_parameters(), *nets.named_buffers()):
        full = whole(value)
        if distributed.rank() == 0:
            names.append(name)
            values.append(full.detach().cpu().clone())
    if distributed.rank() != 0:
        return nets
    out = copy.deepcopy(bones).to_empty(device="cpu").eval().requires_grad_(False)
    own = dict((*out.named_parameters(), *out.named_buffers()))
    with torch.no_grad():
        for name, value in zip(names, values, strict=True):
            own[name].copy_(value)
    return out


def _blocks(net: nn.Module) -> list[nn.Module]:
    """Members of lists and dictionaries of modules, the innermost ones, that hold a fair part of the weights."""
    holders = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
    total = sum(p.numel() for p in net.parameters())
    found = [
        child
        for part in net.modules()
        if isinstance(part, holders)
        for child in part.children()
        if not isinstance(child, holders) and sum(p.numel() for p in child.parameters()) >= total / 1000
    ]
    inside = {id(m) for block in found for m in block.modules() if m is not block}
    return [block for i, block in enumerate(found) if id(block) not in inside and block not in found[:i]]
