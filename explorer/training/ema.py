"""Running averages of network weights."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from explorer.training.plan import EmaPlan


def exponential_beta(n_images: int, batch: int, half_life: float, ramp_up: float | None) -> float:
    """Weight of the old average in one update, `n_images` counted before the step (so the first step copies).

    Source: Karras et al. 2022, arXiv 2206.00364: beta = 0.5^(B / h), h = min(half_life, ramp_up * n_images).
    """
    h = half_life if ramp_up is None else min(half_life, ramp_up * n_images)
    return 0.5 ** (batch / max(h, 1e-8))


def power_gamma(sigma_rel: float) -> float:
    """Exponent of the power-function profile of relative width `sigma_rel`.

    Source: Karras et al. 2023, arXiv 2312.02696: sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), the real root
    above -1.
    """
    t = sigma_rel**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def power_beta(step: int, gamma: float) -> float:
    """Weight of the old average at 1-based `step`: (1 - 1/step)^(gamma + 1). Source: arXiv 2312.02696, Sec. 3.1."""
    return (1 - 1 / step) ** (gamma + 1)


@torch.no_grad()
def ema_(target: nn.Module, source: nn.Module, beta: float) -> None:
    """target <- beta * target + (1 - beta) * source, in place; buffers are copied."""
    old, new = list(target.parameters()), [p.detach() for p in source.parameters()]
    if old:
        torch._foreach_lerp_(old, new, 1 - beta)
    for mine, theirs in zip(target.buffers(), source.buffers(), strict=True):
        mine.copy_(theirs)


class Ema:
    """Averages of some networks under one plan; `nets[name]` is ready to be exported."""

    def __init__(self, plan: EmaPlan, nets: nn.ModuleDict):
        self.plan = plan
        self.nets = nn.ModuleDict({name: copy.deepcopy(net) for name, net in nets.items()})
        self.nets.eval().requires_grad_(False)
        self._gamma = None if plan.sigma_rel is None else power_gamma(plan.sigma_rel)

    def update(self, name: str, net: nn.Module, *, step: int, n_images: int, batch: int) -> None:
        """Average in `net` after its step; `step` is 0-based and `n_images` counts before it."""
        if self._gamma is None:
            beta = exponential_beta(n_images, batch, self.plan.half_life, self.plan.ramp_up)
        else:
            beta = power_beta(step + 1, self._gamma)
        ema_(self.nets[name], net, beta)
