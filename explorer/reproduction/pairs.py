"""Pairs that recipes need: made by a teacher from noise, or by inverting one on real data.

Each store is made once in the bench's folder, goes on when it was killed, and is found again by what determines it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from explorer.data import Dataset, load_dataset
from explorer.data.pairs import PairLoader, PairStore, seal_pairs, write_pairs
from explorer.process.couplings import Pairs, pairs_of
from explorer.reproduction.bench import Bench
from explorer.reproduction.recipe import Need
from explorer.sampling.samplers import OdeSampler, Sampler, device_of, sample
from explorer.sampling.seeds import Seeds
from explorer.training import distributed
from explorer.training.plan import Plan
from explorer.trajectory.inversion import encode

FIRST_SEED = 1 << 40
"""Pairs are made from seeds from here on, 2^36 further for each seed of the bench: never those of a card or of the dashboard."""


@dataclass(frozen=True)
class PairsOf(Need):
    """n pairs (noise, sample) of a model: what its next rectified flow, or its student, is trained on.

    A model with classes is asked for all of them in turn, and the pairs carry the labels.

    Attributes:
        model: whose samples.
        sampler: deterministic, and fine enough: its error becomes part of the pairs.
        n: how many.
        first_seed: of the noise, at seed 0 of the bench.
    """

    model: Need
    sampler: Sampler
    n: int
    first_seed: int = FIRST_SEED

    def describe(self):
        return {
            "pairs_of": self.model.describe(),
            "sampler": self.sampler.to_dict(),
            "n": self.n,
            "first_seed": self.first_seed,
        }

    def make(self, bench):
        model, first = bench.need(self.model), self.first_seed + (bench.seed << 36)
        shape = tuple(model.shape)

        def pairs(start: int, count: int) -> Pairs:
            seeds = Seeds(range(first + start, first + start + count))
            x = sample(model, self.sampler, seeds, batch=min(count, 4096 if len(shape) == 1 else 256)).cpu()
            labels = seeds.labels(model.n_classes) if model.n_classes else None
            return pairs_of(seeds.fresh().normal(shape), x, labels)

        name = f"pairs-{model.name or 'model'}"
        return _stored(bench, name, self.describe(), self.n, pairs, shape, first_seed=first)

    def stand_in(self, bench):
        model = bench.need(self.model)
        return _unrelated(tuple(model.shape), model.n_classes)

    def on(self, data):
        return dataclasses.replace(self, model=self.model.on(data))

    @property
    def source(self):
        return self.model.source

    def swapped(self, old, new):
        return dataclasses.replace(self, model=self.model.swapped(old, new))


@dataclass(frozen=True)
class Encoded(Need):
    """Real data with their own codes: pairs whose data side is exactly the training split (forward pairs).

    Attributes:
        model: whose ODE is run from data to noise.
        data: name of the data set.
        sampler: its grid is walked upwards from its lowest positive time, see `explorer.trajectory.inversion`.
        n: the first n of the split; None for all.
    Source: Lee, Lin & Fanti 2024, arXiv 2405.20320 (forward pairs of real data).
    """

    model: Need
    data: str
    sampler: OdeSampler
    n: int | None = None

    def describe(self):
        return {
            "codes_of": self.data,
            "by": self.model.describe(),
            "sampler": self.sampler.to_dict(),
            "n": self.n,
        }

    def make(self, bench):
        model, data = bench.need(self.model), load_dataset(self.data)
        device, n = device_of(model), len(data) if self.n is None else min(self.n, len(data))
        labelled = bool(model.n_classes) and data.labels is not None

        def pairs(start: int, count: int) -> Pairs:
            x = data.x[start : start + count]
            labels = data.labels[start : start + count] if labelled else None
            cond = None if labels is None else labels.to(device)
            return pairs_of(encode(model, x.to(device), self.sampler, cond).cpu(), x.double(), labels)

        name = f"codes-{data.name}-{model.name or 'model'}"
        return _stored(bench, name, self.describe() | {"checksum": data.checksum}, n, pairs, data.shape)

    def stand_in(self, bench):
        model = bench.need(self.model)
        return _unrelated(tuple(model.shape), model.n_classes)

    def on(self, data):
        return dataclasses.replace(self, model=self.model.on(data), data=data)

    @property
    def source(self):
        return self.model.source

    def swapped(self, old, new):
        return dataclasses.replace(self, model=self.model.swapped(old, new))


def _unrelated(shape: tuple[int, ...], n_classes: int, n: int = 64) -> PairStore:
    """Pairs of noise and noise, for a rehearsal."""
    seeds = Seeds(range(n))
    labels = seeds.labels(n_classes) if n_classes else None
    return PairStore.of(pairs_of(seeds.fresh().normal(shape), 0.5 * Seeds(range(n, 2 * n)).normal(shape), labels))


def stored(
    data: Dataset, plan: Plan, *, pairs: PairStore, real: PairStore | None = None, share: float = 0.0, **others
) -> PairLoader:
    """A recipe's stream of stored pairs, shared out over the processes of a run; `share` of each batch from `real`, if given."""
    place = {"seed": plan.seed, "rank": distributed.rank(), "world": distributed.world()}
    return PairLoader(pairs, plan.batch_size, second=real, share=0.0 if real is None else share, **place)


def _stored(
    bench: Bench,
    name: str,
    about: dict[str, Any],
    n: int,
    make: Callable[[int, int], Pairs],
    shape: Sequence[int],
    *,
    first_seed: int | None = None,
) -> PairStore:
    """The store in the bench's folder, made or completed now; in memory where the bench keeps nothing on disk."""
    folder = bench.place(name, about)
    if folder is None:
        return PairStore.of(make(0, n))
    place = {"rank": distributed.rank(), "world": distributed.world()}

    def show(share: float) -> None:
        bench.show(f"making {name}, seed {bench.seed}", share)

    # Small shards where samples are slow to make: progress is shown, and a killed generation resumes, shard by shard.
    write_pairs(
        folder, about, n, make, shape=shape, first_seed=first_seed, shard=max(1, min(n, SHARD)), show=show, **place
    )
    distributed.barrier()
    if place["rank"] == 0:
        seal_pairs(folder)
    distributed.barrier()
    return PairStore.open(folder, about, draw=lambda seeds: Seeds(seeds).normal(tuple(shape)))


SHARD = 4096
"""Pairs per shard: 50 MiB of 32x32 images."""
