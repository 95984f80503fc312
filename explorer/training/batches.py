"""What a training step sees: a batch of data, and an endless stream of batches that can start anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from explorer.errors import BadValue


@dataclass(frozen=True)
class Batch:
    """One training batch; every field that is set has the same leading dimension.

    Args:
        x0: (B, *shape) data.
        labels: (B,) int64 class labels, or None.
        noise: (B, *shape) the noise paired with `x0`, for methods trained on stored pairs; None elsewhere.
    """

    x0: Tensor
    labels: Tensor | None = None
    noise: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x0)

    def _map(self, fn) -> Batch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return type(self)(**{name: None if v is None else fn(v) for name, v in values.items()})

    def to(self, device: torch.device | str) -> Batch:
        return self._map(lambda v: v.to(device, non_blocking=True))

    def chunk(self, n: int) -> list[Batch]:
        """`n` equal micro-batches, so that the mean of their mean losses is the mean loss of the batch."""
        if n == 1:
            return [self]
        if len(self) % n:
            raise BadValue(f"a batch of {len(self)} cannot be cut into {n} equal micro-batches; choose a divisor.")
        size = len(self) // n
        return [self._map(lambda v, i=i: v[i * size : (i + 1) * size]) for i in range(n)]


class Shuffled:
    """Endless shuffled batches of an in-memory data set, a function of (seed, position) alone.

    Every epoch is a fresh permutation; batches run on across its end, so each image is seen equally often. Because
    nothing is remembered, `start(i)` continues exactly where an interrupted run stopped.

    Args:
        x0: (N, *shape) data.
        labels: (N,) int64 or None.
        batch_size: images per batch.
        seed: of the permutations.
        rank, world: this process's share of every batch in data-parallel training.
    """

    def __init__(
        self,
        x0: Tensor,
        labels: Tensor | None = None,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ):
        if len(x0) == 0 or batch_size < 1 or batch_size % world:
            raise BadValue(
                f"need data and a batch size divisible by {world} processes; got {len(x0)} rows, batch {batch_size}."
            )
        self.x0, self.labels, self.batch_size = x0, labels, batch_size
        self.seed, self.rank, self.world = seed, rank, world
        self._epoch: tuple[int, Tensor] | None = None

    def _order(self, epoch: int) -> Tensor:
        if self._epoch is None or self._epoch[0] != epoch:
            generator = torch.Generator().manual_seed(mix(self.seed, epoch))
            self._epoch = epoch, torch.randperm(len(self.x0), generator=generator)
        return self._epoch[1]

    def batch(self, i: int) -> Batch:
        """The i-th batch of the stream (this process's share of it)."""
        first, size = i * self.batch_size, len(self.x0)
        positions = range(first, first + self.batch_size)[self.rank :: self.world]
        index, taken = [], 0
        while taken < len(positions):
            epoch, offset = divmod(positions[taken], size)
            order = self._order(epoch)[offset :: self.world][: len(positions) - taken]
            index.append(order)
            taken += len(order)
        rows = torch.cat(index).to(self.x0.device)
        return Batch(self.x0[rows], None if self.labels is None else self.labels[rows])

    def start(self, i: int) -> Iterator[Batch]:
        while True:
            yield self.batch(i)
            i += 1

    def __iter__(self) -> Iterator[Batch]:
        return self.start(0)


def mix(*parts: int) -> int:
    """A 63-bit seed from several integers (splitmix64), so that neighbouring seeds and steps share no stream."""
    mask, state = (1 << 64) - 1, 0x9E3779B97F4A7C15
    for part in parts:
        state = (state ^ (int(part) & mask)) & mask
        state = (state + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state >> 1
