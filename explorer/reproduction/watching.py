"""How far a long step has come, told by the layers it has passed and the gradients that have arrived."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from torch import nn

SHARE = 0.99
"""Of the whole at most: the optimizers' share, of which nothing is heard, is small."""


@contextlib.contextmanager
def watched(networks: Mapping[str, nn.Module], show: Callable[[float, str], None]) -> Iterator[None]:
    """Calls show(fraction, words) inside the block as the networks are run and as gradients arrive.

    Layers and gradients are weighed by their parameters, gradients twice. How often a step runs each network is not known
    beforehand: once is expected, and what is run again counts no more.

    Args:
        networks: by the name that is shown; the trainable parameters are expected to receive a gradient.
    """
    layers = {m: (name, _own(m)) for name, net in networks.items() for m in net.modules() if _own(m)}
    parameters = {p: name for name, net in networks.items() for p in net.parameters() if p.requires_grad}
    total = sum(n for _, n in layers.values()) + 2 * sum(p.numel() for p in parameters)
    seen: set[nn.Module | nn.Parameter] = set()
    done = 0

    def passed(thing: nn.Module | nn.Parameter, weight: int, words: str) -> None:
        nonlocal done
        if thing not in seen:
            seen.add(thing)
            done += weight
            show(SHARE * done / total, words)

    def forward(module: nn.Module, *_) -> None:
        if module in layers:  # a copy made inside the block has the hook too
            name, weight = layers[module]
            passed(module, weight, f"one step: forward through {name}")

    def backward(p: nn.Parameter) -> None:
        passed(p, 2 * p.numel(), f"one step: back through {parameters[p]}")

    hooks = [module.register_forward_hook(forward) for module in layers]
    hooks += [p.register_post_accumulate_grad_hook(backward) for p in parameters]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _own(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters(recurse=False))
