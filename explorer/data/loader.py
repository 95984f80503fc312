"""Endless shuffled batches, a function of (seed, position) alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from explorer.data.dataset import Dataset
from explorer.errors import BadValue

Augment = Callable[[Tensor, torch.Generator], Tensor | tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Batch:
    """One training batch; every field that is set has the same leading dimension.

    Args:
        x0: (B, *shape) data.
        labels: (B,) int64 class labels, or None.
        noise: (B, *shape) the noise paired with `x0`, for methods trained on stored pairs; None elsewhere.
        augment: (B, n) labels of the augmentation of each sample, for networks that read them; None without.
    """

    x0: Tensor
    labels: Tensor | None = None
    noise: Tensor | None = None
    augment: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x0)

    def to(self, device: torch.device | str) -> Batch:
        return self._map(lambda v: v.to(device, non_blocking=True))

    def chunk(self, n: int) -> list[Batch]:
        """`n` equal micro-batches, so that the mean of their mean losses is the mean loss of the batch."""
        if len(self) % n:
            raise BadValue(f"a batch of {len(self)} cannot be cut into {n} equal micro-batches; choose a divisor.")
        size = len(self) // n
        return [self._map(lambda v, i=i: v[i * size : (i + 1) * size]) for i in range(n)]

    def _map(self, fn: Callable[[Tensor], Tensor]) -> Batch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Batch(**{name: None if v is None else fn(v) for name, v in values.items()})


class Stream(ABC):
    """Endless batches, shared out over data-parallel processes, that can begin anywhere.

    Args:
        batch_size: samples per batch over all processes, divisible by `world`.
        seed: of everything random; batch i depends on (seed, i) only.
        rank, world: this process and the number of them.

    Attributes:
        position: index of the next batch.
    """

    def __init__(self, batch_size: int, seed: int, rank: int, world: int):
        if batch_size < 1 or world < 1 or batch_size % world or not 0 <= rank < world:
            raise BadValue(
                f"batch_size={batch_size} must be a positive multiple of world={world}, and rank={rank} one of 0..world-1."
            )
        self.batch_size, self.seed, self.rank, self.world, self.position = batch_size, seed, rank, world, 0

    @abstractmethod
    def batch(self, i: int) -> Batch:
        """This process's share of batch i."""

    def __iter__(self) -> Iterator[Batch]:
        """Batches from `position` on."""
        while True:
            self.position += 1
            yield self.batch(self.position - 1)

    def start(self, position: int) -> Iterator[Batch]:
        """Batches from the given position on."""
        self.position = position
        return iter(self)


class Loader(Stream):
    """Endless batches of a data set, shared out over data-parallel processes.

    A finite data set is shuffled anew every epoch and batches run on across its end, so every sample is seen equally often.
    With `fresh=True` a data set that knows its distribution is drawn anew for each batch. Either way batch i depends on
    (seed, i) only, so a loader restored at a position continues bit for bit.

    Args:
        dataset: what to draw from.
        batch_size: samples per batch over all processes, divisible by `world`.
        seed: of the permutations and draws.
        rank, world: this process and the number of them; process r has every world-th sample of the batch, from r.
        augment: (x (B, *shape), generator) -> x, or x and labels of what was done to it, applied to each batch.
        fresh: draw new samples instead of shuffling stored ones.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        augment: Augment | None = None,
        fresh: bool = False,
    ):
        super().__init__(batch_size, seed, rank, world)
        if fresh and dataset.draw is None:
            raise BadValue(f"data set {dataset.name!r} is finite and cannot be drawn anew; use fresh=False.")
        self.dataset, self.augment, self.fresh = dataset, augment, fresh
        self._shuffle = Shuffle(len(dataset), seed)

    def batch(self, i: int) -> Batch:
        if self.fresh:
            whole, labels = self.dataset.draw(self.batch_size, self._generator(i, 0))
            x, labels = whole[self.rank :: self.world], None if labels is None else labels[self.rank :: self.world]
        else:
            rows = self._shuffle.rows(range(i * self.batch_size + self.rank, (i + 1) * self.batch_size, self.world))
            x = self.dataset.take(rows)
            labels = None if self.dataset.labels is None else self.dataset.labels[rows]
        done = None
        if self.augment is not None:
            x = self.augment(x, self._generator(i, 1 + self.rank))
            x, done = x if isinstance(x, tuple) else (x, None)
        return Batch(x, labels, augment=done)

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a saved position.

        Raises:
            BadValue: the state belongs to another data set, batch size, seed or number of processes.
        """
        for key, ours in self._identity().items():
            if state.get(key) != ours:
                raise BadValue(f"cannot resume: the saved loader had {key}={state.get(key)!r}, this one has {ours!r}.")
        self.position = int(state["position"])

    def _identity(self) -> dict[str, Any]:
        return {
            "checksum": self.dataset.checksum,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "world": self.world,
            "fresh": self.fresh,
        }

    def _generator(self, i: int, purpose: int) -> torch.Generator:
        return torch.Generator().manual_seed(mix(self.seed, i, purpose, 1))


class Shuffle:
    """Endless shuffled indices 0..size-1: a new permutation every epoch, each a function of (seed, epoch)."""

    def __init__(self, size: int, seed: int):
        self.size, self.seed = size, seed
        self._epoch: tuple[int, Tensor] | None = None

    def rows(self, positions: range) -> Tensor:
        """Indices at positions in the stream, (len(positions),) int64."""
        place = torch.tensor(positions)
        epochs = place // self.size
        return torch.cat([self._order(e)[place[epochs == e] % self.size] for e in epochs.unique().tolist()])

    def _order(self, epoch: int) -> Tensor:
        if self._epoch is None or self._epoch[0] != epoch:
            generator = torch.Generator().manual_seed(mix(self.seed, epoch))
            self._epoch = epoch, torch.randperm(self.size, generator=generator)
        return self._epoch[1]


def mix(*parts: int) -> int:
    """A 63-bit seed from several integers (splitmix64), so that neighbouring seeds and positions share no stream."""
    mask, state = (1 << 64) - 1, 0x9E3779B97F4A7C15
    for part in parts:
        state = ((state ^ (int(part) & mask)) + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state >> 1
