"""One random generator per sample, so that a picture depends on its seed and not on its batch, its place in it, or the device."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from explorer.errors import BadValue

AHEAD = 4096
"""Numbers per sample that may be drawn before they are asked for."""


class Seeds:
    """A batch of integer seeds, each with its own stream of normal numbers.

    Args:
        ids: non-negative integers below 2**63; repeated ones give identical samples.
    Draws are made on the CPU, sample by sample, and moved to the device afterwards: the same seed gives the same noise everywhere.
    Each call of `normal` takes the *next* numbers of every stream; `fresh()` starts them again. From the second call on, several
    draws of one shape are made ahead: 256 generators called for a few numbers each would cost more than a small network.
    """

    def __init__(self, ids: Iterable[int]):
        self.ids = tuple(int(i) for i in ids)
        if any(not 0 <= i < 2**63 for i in self.ids):
            raise BadValue("seeds must be integers from 0 to 2**63 - 1")
        self._generators: list[torch.Generator] | None = None
        self._drawn: list[tuple[int, ...]] = []
        self._ahead: tuple[tuple[int, ...], list[Tensor]] = ((), [])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, which: slice) -> Seeds:
        """A fresh `Seeds` of a slice of the ids."""
        return Seeds(self.ids[which])

    def __repr__(self) -> str:
        return f"Seeds({self.ids[0]}..{self.ids[-1]}, n={len(self)})" if self.ids else "Seeds()"

    def fresh(self) -> Seeds:
        """The same seeds at the start of their streams."""
        return Seeds(self.ids)

    def normal(self, shape: tuple[int, ...], device=None, dtype=torch.float64) -> Tensor:
        """Standard normal numbers (n, *shape): the next ones of each sample's stream."""
        shape, first = tuple(shape), self._generators is None
        self._drawn.append(shape)
        if first:
            return self._draw(shape).to(device=device, dtype=dtype)
        if not (self._ahead[0] == shape and self._ahead[1]):
            n = max(1, min(16, AHEAD // max(math.prod(shape), 1)))
            self._ahead = (shape, list(self._draw((n, *shape)).movedim(1, 0).contiguous().unbind())[::-1])
        return self._ahead[1].pop().to(device=device, dtype=dtype)

    def _draw(self, shape: tuple[int, ...]) -> Tensor:
        if self._generators is None:
            self._generators = [torch.Generator().manual_seed(i) for i in self.ids]
        out = torch.empty(len(self), *shape, dtype=torch.float64)
        for row, generator in zip(out, self._generators, strict=True):
            row.normal_(generator=generator)
        return out

    @property
    def n_draws(self) -> int:
        """How often `normal` was called."""
        return len(self._drawn)

    def rewound(self, n_draws: int) -> Seeds:
        """The same seeds as they were after that many draws."""
        out = self.fresh()
        for shape in self._drawn[:n_draws]:
            out.normal(shape)
        return out

    def labels(self, n_classes: int, device=None) -> Tensor:
        """Class seed mod n_classes of each sample, (n,) int64: balanced over consecutive seeds."""
        return torch.tensor([i % n_classes for i in self.ids], dtype=torch.int64, device=device)


def fresh_noise(x: Tensor, rng: Seeds | None) -> Tensor:
    """Standard normal noise of x's shape, the next numbers of each sample's own stream."""
    if rng is None:
        raise BadValue("a stochastic solver needs the seeds of its samples: pass rng=Seeds(...)")
    return rng.normal(tuple(x.shape[1:]), device=x.device, dtype=x.dtype)
