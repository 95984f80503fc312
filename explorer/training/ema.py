"""Running averages of network weights."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from explorer.training import sharding
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


def power_beta(step: int, gamma: float, previous: int | None = None) -> float:
    """Weight of the old average at 1-based `step`, which was last updated at `previous` (default: the step before).

    Source: arXiv 2312.02696, Sec. 3.1: (1 - 1/step)^(gamma + 1); over several steps the product of their weights.
    """
    return ((step - 1 if previous is None else previous) / step) ** (gamma + 1)


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
        self._sources = dict(nets)
        self._pairs: dict[str, Any] = {}

    @torch.no_grad()
    def update(self, name: str, *, step: int, n_images: int, batch: int, previous: tuple[int, int]) -> None:
        """Average in a network after its step.

        Args:
            step: 0-based index of the step; `n_images` counts before it, `batch` is what it adds.
            previous: steps and images done at this network's last averaging, which may be several steps ago for a network
                that is not updated at every one; (0, 0) before its first.
        """
        if self._gamma is None:
            beta = exponential_beta(n_images, n_images + batch - previous[1], self.plan.half_life, self.plan.ramp_up)
        else:
            beta = power_beta(step + 1, self._gamma, previous[0])
        if name not in self._pairs:
            # Looked up once: walking a U-Net's modules takes longer than averaging its weights on a GPU.
            self._pairs[name] = _pairs(self.nets[name], self._sources[name])
        (old, new), buffers = self._pairs[name]
        if old:
            torch._foreach_lerp_(old, new, 1 - beta)
        for mine, theirs in buffers:
            mine.copy_(theirs)


def _pairs(target: nn.Module, source: nn.Module):
    parameters = sharding.parts(target.parameters()), sharding.parts(p.detach() for p in source.parameters())
    return parameters, list(zip(target.buffers(), source.buffers(), strict=True))
