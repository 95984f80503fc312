"""The protocol behind published FIDs: blocks of seeds, each measured on n samples, and the least of them.

The samples of a block are cut into batches, and batch j belongs to lane j mod n_lanes. A lane's sums grow in the order of its
batches, and lanes are added up in their own order, so the result is the same to the last bit on any number of processes, and after
any interruption: every lane is a file that is replaced whole. The lanes are also the groups of the jackknife.

    torchrun --nproc-per-node 8 -m explorer eval MODEL --protocol edm --n 50000

N samples of a block, D features.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from explorer.errors import BadFile, BadValue
from explorer.files import sweep, write_atomic
from explorer.metrics.accumulate import Accumulator
from explorer.metrics.base import Estimate, jackknife
from explorer.metrics.features import FeatureSpace, weights_hash
from explorer.metrics.frechet import (
    JACKKNIFE_FROM,
    Moments,
    Reference,
    distance_name,
    finite_sample_bias,
    frechet_distance,
    spectrum,
)
from explorer.metrics.statistics import write_statistics
from explorer.models.base import Model
from explorer.sampling.samplers import Labels, Sampler, device_of, sample
from explorer.sampling.seeds import Seeds
from explorer.training import distributed

FORMAT = 1
LEAST_OF = {1: 0.0, 2: 0.5642, 3: 0.8463, 4: 1.0294, 5: 1.1630}
"""How many standard deviations the least of k normal draws lies below their mean, on average."""


@dataclass(frozen=True)
class BlockPlan:
    """Which samples are drawn, and in which order their features are added up.

    Attributes:
        n: samples of a block.
        n_blocks: blocks of consecutive seeds: first_seed to first_seed + n - 1, and so on.
        batch: samples per pass; smaller where n is too small for two batches a lane.
        n_lanes: groups of batches; no more processes than these can share the work. Also part of the last bits of the result.
    """

    n: int = 50000
    n_blocks: int = 3
    first_seed: int = 0
    batch: int = 64
    n_lanes: int = 8

    def __post_init__(self):
        if self.n_lanes < 2 or self.n_blocks < 1 or self.batch < 1 or self.first_seed < 0:
            raise BadValue(f"{self}: at least two lanes, one block, one sample a batch and no negative seed.")
        if self.n < 2 * self.n_lanes:
            raise BadValue(
                f"{self.n} samples are too few for {self.n_lanes} lanes of two batches: take at least {2 * self.n_lanes}."
            )

    @property
    def size(self) -> int:
        """Samples of a batch."""
        return max(1, min(self.batch, self.n // (2 * self.n_lanes)))

    def batches(self, block: int, lane: int) -> list[range]:
        """Seeds of a lane's batches, in order."""
        first, end = self.first_seed + block * self.n, self.first_seed + (block + 1) * self.n
        starts = range(first + lane * self.size, end, self.n_lanes * self.size)
        return [range(start, min(start + self.size, end)) for start in starts]


@dataclass(frozen=True)
class BlockScores:
    """Distances of the blocks, each the plain value that implementations print, with what is to be known about it.

    Attributes:
        estimates: one by block; `value` is not corrected for finite n, `bias` says by how much it is expected to be too high.
        protocol: name of the protocol, "" for none. reference: what the samples were compared with.
        seconds: of computing in all, on this process.
    """

    estimates: tuple[Estimate, ...]
    protocol: str
    reference: str
    seconds: float = 0.0

    @property
    def least(self) -> Estimate:
        """The smallest, as EDM and many after it report."""
        return min(self.estimates, key=lambda e: e.value)

    @property
    def mean(self) -> Estimate:
        """Mean over blocks, its error from their scatter (two degrees of freedom for three blocks)."""
        return self._mean([e.value for e in self.estimates], "mean of blocks")

    @property
    def corrected(self) -> Estimate:
        """Mean over blocks of the distance less its expected bias: of an infinite sample, to first order."""
        values = [e.value - (e.bias or 0.0) for e in self.estimates]
        return self._mean(values, "mean of blocks, corrected for finite n")

    def _mean(self, values: Sequence[float], what: str) -> Estimate:
        first, k = self.estimates[0], len(values)
        if k == 1:
            return Estimate(values[0], first.std_error, first.n, first.name, dof=first.dof, note=what)
        error = float(np.std(values, ddof=1)) / math.sqrt(k)
        return Estimate(float(np.mean(values)), error, first.n * k, first.name, dof=k - 1, note=what)

    @property
    def note(self) -> str:
        """What a reader must know before he compares the least with another number."""
        k, first = len(self.estimates), self.estimates[0]
        parts = [f"plain values at n = {first.n}, expected to be {first.bias or 0:.2g} too high for that n alone"]
        parts += [f"n is {first.note}"] if first.note else []
        if k > 1:
            spread = float(np.std([e.value for e in self.estimates], ddof=1))
            below = (
                f"about {LEAST_OF.get(k, math.sqrt(2 * math.log(k))) * spread:.2g} below their mean by selection alone"
            )
            parts.append(f"the least of {k} lies {below}")
        rule = f"protocol {self.protocol!r}" if self.protocol else "the same implementation"
        return "; ".join(parts) + f". Compare with numbers of {rule}, the same reference and the same n only."

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        named = {"least": self.least, "mean": self.mean, "corrected": self.corrected}
        return {
            "protocol": self.protocol,
            "blocks": [e.to_dict() for e in self.estimates],
            **{k: e.to_dict() for k, e in named.items()},
            "reference": self.reference,
            "seconds": self.seconds,
            "note": self.note,
        }


@dataclass
class _Lane:
    """Sums of one lane, and how many of its batches are in them."""

    file: Path
    sums: Accumulator
    done: int = 0
    dirty: bool = field(default=False, repr=False)

    def save(self) -> None:
        if self.dirty:
            state = {"done": np.array(self.done), **self.sums.state()}
            write_atomic(self.file, lambda partial: _savez(partial, state))
            self.dirty = False

    @classmethod
    def at(cls, file: Path, dim: int) -> _Lane:
        if not file.exists():
            return cls(file, Accumulator(dim))
        try:
            with np.load(file, allow_pickle=False) as stored:
                state = {name: stored[name] for name in stored.files}
            lane = cls(file, Accumulator.resume(state), int(state["done"]))
            if lane.sums.dim != dim or lane.done < 0:
                raise ValueError(f"{lane.sums.dim} features, {lane.done} batches")
        except Exception as error:  # whatever is wrong with it, the way out is the same
            raise BadFile(
                f"{file} cannot be resumed from ({error}): delete it, and its share of the work is done again."
            ) from None
        return lane


def _savez(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with open(file, "wb") as out:
        np.savez(out, **arrays)


def seed_blocks(
    model: Model,
    sampler: Sampler,
    space: FeatureSpace,
    reference: Reference,
    plan: BlockPlan,
    folder: str | os.PathLike,
    *,
    labels: Labels = "balanced",
    protocol: str = "",
    about: Mapping[str, Any] | None = None,
    every: float = 30.0,
    show: Callable[[float, str], None] | None = None,
) -> BlockScores:
    """Distances of `plan.n_blocks` blocks of samples to a reference, by all processes of the run together.

    Args:
        space: the feature space, with the protocol's treatment of pictures in it.
        folder: where lanes and results are kept; the same call on it goes on, and a finished one is read and not measured again.
        about: what else decides the samples, such as the knobs; a folder of another run is refused.
        every: seconds between two savings; a kill loses no more than these.
        show: told the fraction done and what is being done.
    Returns:
        the same on every process. The statistics of each block stay in the folder as block<i>.npz, mu and sigma.
    Raises:
        BadValue: more processes than lanes, or the folder is of another run. BadFile: a damaged lane.
    """
    reference.check(space)
    folder = Path(folder)
    if distributed.world() > plan.n_lanes:
        raise BadValue(f"{distributed.world()} processes for {plan.n_lanes} lanes: raise n_lanes, or start fewer.")
    identity = {
        "format": FORMAT,
        "plan": asdict(plan),
        "model": weights_hash(model),
        "sampler": sampler.to_dict(),
        "labels": labels.tolist() if isinstance(labels, Tensor) else labels,
        "features": [space.name, space.hash, space.dim],
        "reference": [reference.digest, reference.data],
        "protocol": protocol,
        **dict(about or {}),
    }
    _claim(folder, identity)
    estimates, began = [], time.perf_counter()
    for block in range(plan.n_blocks):
        done = folder / f"block{block}.json"
        finished = distributed.shared(done.exists())
        if not finished:
            lanes = _draw(model, sampler, space, plan, block, folder, labels, every, show)
            estimate = _measured([lane.sums.moments() for lane in lanes], reference, protocol) if lanes else None
            if distributed.rank() == 0:
                _keep(estimate, lanes, space, plan, block, folder, done)
        estimates.append(distributed.shared(_read(done) if distributed.rank() == 0 else None))
    return BlockScores(tuple(estimates), protocol, reference.data, time.perf_counter() - began)


def _claim(folder: Path, identity: Mapping[str, Any]) -> None:
    """Write down whose folder this is, or check that it is ours."""
    text = json.dumps(identity, indent=1, sort_keys=True, default=str)
    problem = None
    if distributed.rank() == 0:
        file = folder / "run.json"
        if file.exists():
            try:
                stored = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                stored, problem = {}, f"{file} cannot be read: {error}. Delete the folder to measure anew."
            ours = json.loads(text)
            changed = [key for key in {*stored, *ours} if stored.get(key) != ours.get(key)]
            if not problem and changed:
                problem = f"{folder} holds another measurement ({', '.join(sorted(changed))} differ): choose another folder, or delete it."
        else:
            write_atomic(file, lambda partial: partial.write_text(text + "\n", encoding="utf-8"))
        sweep(folder)
    problem = distributed.shared(problem)
    if problem:
        raise BadValue(problem)


def _draw(model, sampler, space, plan, block, folder, labels, every, show) -> list[_Lane]:
    """The lanes of a block once all samples are in them: all of them on process 0, none elsewhere."""
    world, rank = distributed.world(), distributed.rank()
    mine = {i: _Lane.at(folder / f"block{block}-lane{i}.npz", space.dim) for i in range(rank, plan.n_lanes, world)}
    work = {i: plan.batches(block, i) for i in mine}
    total, saved = sum(map(len, work.values())), time.monotonic()
    for i, lane in mine.items():
        if lane.done > len(work[i]):
            raise BadFile(f"{lane.file} has more batches than its plan: delete it.")
    for step in range(max(map(len, work.values()))):
        for i, lane in mine.items():
            if not lane.done <= step < len(work[i]):
                continue
            seeds = work[i][step]
            lane.sums.update(space(sample(model, sampler, Seeds(seeds), _part(labels, seeds, plan), batch=len(seeds))))
            lane.done, lane.dirty = step + 1, True
            if show is not None:
                finished = sum(other.done for other in mine.values()) / max(total, 1)
                show((block + finished) / plan.n_blocks, f"block {block + 1} of {plan.n_blocks}")
            if time.monotonic() - saved >= every:
                for other in mine.values():
                    other.save()
                saved = time.monotonic()
    for lane in mine.values():
        lane.save()
    distributed.barrier()
    return _gathered(mine, plan, block, folder, space.dim, device_of(model))


def _part(labels: Labels, seeds: range, plan: BlockPlan) -> Labels:
    """The labels of a batch, where a tensor gives one for every seed of the run."""
    return (
        labels[seeds.start - plan.first_seed : seeds.stop - plan.first_seed] if isinstance(labels, Tensor) else labels
    )


def _gathered(mine: dict[int, _Lane], plan, block, folder, dim, device) -> list[_Lane]:
    """Lanes of all processes on process 0, as sums and not through files: folders need not be shared between machines."""
    if distributed.world() == 1:
        return [mine[i] for i in range(plan.n_lanes)]
    place = device if dist.get_backend() == "nccl" else torch.device("cpu")
    lanes = []
    for i in range(plan.n_lanes):
        own = mine[i].sums.state() if i in mine else None
        sizes = [len(own["waiting"]), int(own["n"])] if own else [0, 0]
        sizes = _summed(torch.tensor(sizes, dtype=torch.int64), place).tolist()
        shapes = {"shift": (dim,), "sum": (dim,), "lower": (dim * (dim + 1) // 2,), "waiting": (sizes[0], dim)}
        state = {"n": np.array(sizes[1])}
        for name, shape in shapes.items():
            value = (
                torch.from_numpy(np.ascontiguousarray(own[name])) if own else torch.zeros(shape, dtype=torch.float64)
            )
            state[name] = _summed(value, place).numpy()
        if distributed.rank() == 0:
            lanes.append(_Lane(folder / f"block{block}-lane{i}.npz", Accumulator.resume(state)))
    return lanes


def _summed(value: Tensor, place: torch.device) -> Tensor:
    """Sum over processes; all but one hold zeros, so nothing is rounded."""
    value = value.clone().to(place)
    dist.all_reduce(value)
    return value.cpu()


def _measured(lanes: Iterable[Moments], reference: Reference, protocol: str) -> Estimate:
    """Plain distance of the union of the lanes, its error by leaving out one at a time, and the bias expected of its n."""
    lanes = list(lanes)
    total = sum(lanes, Moments.zero(reference.dim))
    value = frechet_distance(total.mean, total.cov, reference.mean, reference.root)
    rest = [total - lane for lane in lanes]
    left_out = np.array([frechet_distance(m.mean, m.cov, reference.mean, reference.root) for m in rest])
    _, error, dof = jackknife(value, left_out)
    bias = finite_sample_bias(spectrum(total.cov, reference.root).s, float(np.trace(total.cov)), total.n)
    name = distance_name(reference.features)
    name = f"FID[{protocol}]" if protocol and name.startswith("FID") else name
    few = total.n < JACKKNIFE_FROM * reference.dim
    note = f"too few for {reference.dim} features: much of the value is bias, its correction crude" if few else ""
    return Estimate(value, error, total.n, name, value, bias, dof, note)


def _keep(estimate: Estimate, lanes: list[_Lane], space, plan, block, folder: Path, done: Path) -> None:
    """Result and statistics of a block, then its lanes go: in this order, so that a kill in between loses nothing."""
    total = sum((lane.sums.moments() for lane in lanes), Moments.zero(space.dim))
    seeds = f"seeds {plan.first_seed + block * plan.n} to {plan.first_seed + (block + 1) * plan.n - 1}"
    write_statistics(
        folder / f"block{block}.npz", Reference(space.name, space.hash, total.n, total.mean, total.cov, seeds)
    )
    text = json.dumps(estimate.to_dict(), indent=1)
    write_atomic(done, lambda partial: partial.write_text(text + "\n", encoding="utf-8"))
    for lane in lanes:
        lane.file.unlink(missing_ok=True)


def _read(file: Path) -> Estimate:
    try:
        return Estimate.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise BadFile(f"{file} cannot be read: {error}. Delete it to measure the block anew.") from None
