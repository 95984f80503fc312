"""A training method is a generator of updates: which networks move, by which loss, in which order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Update(NamedTuple):
    """One optimizer step, requested by a method.

    Attributes:
        on: names in `Method.nets` whose optimizers step.
        loss: scalar, mean over the (micro-)batch.
        logs: further scalars to average and log, detached by the loop.
        levels: (sigma (B,), loss (B,)): noise level of each sample and its part of `loss` before the mean. The loop
            averages them on a fixed grid of log sigma (`explorer.training.levels`), puts them on the tick and in the
            log, and names the level when a loss is not finite. Bare sigma = sigma_t / alpha_t, so t / (1 - t) on the
            linear path and tan t on the trigonometric one; 0 and infinity are allowed. Costs nothing per step: pass
            the tensors as they are, on any device, attached or not.
    """

    on: tuple[str, ...]
    loss: Tensor
    logs: Mapping[str, Tensor] = MappingProxyType({})
    levels: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Progress:
    """Where training stands at the start of a step.

    Attributes:
        step: index of the step, from 0.
        n_images: images seen so far.
        fraction: of the planned length (or time budget) that is spent, in [0, 1].
        generator: source of this step's randomness, on the method's device. It is seeded by (seed, step, micro-batch),
            so a resumed run draws what the uninterrupted one would have drawn.
    """

    step: int
    n_images: int
    fraction: float
    generator: torch.Generator | None = field(default=None, compare=False)


class Method(nn.Module, ABC):
    """The losses of a paper, in the order in which they are applied.

    `nets` holds what optimizers and EMA may touch; its names are the checkpoint keys. Frozen teachers, target copies
    and encoders are ordinary attributes: saved with the method, never stepped. Whatever else a run must find again when it
    is resumed (a running mean, a learned weight) belongs in a buffer or a parameter; the rest is built anew.

    `updates` yields one `Update` after another. Code after a `yield` runs after that optimizer has stepped. No graph
    may cross a yield: compute each loss from the current weights. Micro-batches run in lockstep, so what is yielded may
    depend on `progress` but not on the data.
    """

    nets: nn.ModuleDict

    @abstractmethod
    def updates(self, batch: Any, progress: Progress) -> Iterator[Update]: ...

    @abstractmethod
    def export(self, nets: Mapping[str, nn.Module]) -> nn.Module:
        """What one samples from, built on raw or averaged networks."""
