"""Stored pairs of noise and data: what reflow, distillation and forward-pair training read.

A store is a folder: shards `pairs-00000.safetensors` with tensors "x0" (n, *shape) float32, "labels" (n,) int64 where there are
classes, and "noise" where it cannot be drawn again; and `pairs.json`, which says what the pairs are (whose samples, which sampler,
how many, which seeds) and, once all are there, the SHA-256 of each shard. Shards are written whole or not at all, so a generation
that was killed goes on with the first that is missing. Noise of seeded samples is not stored: it is drawn again from the
seeds, and each shard keeps the hash of what its samples were made from, so that pairs can never come apart unnoticed.

P pairs in all. Shards are mapped into memory, not read: a store may be larger than the memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from explorer.data.loader import Batch, Shuffle, Stream
from explorer.errors import BadFile, BadValue
from explorer.files import sha256, sweep, write_atomic
from explorer.process.couplings import Pairs, pairs_of

INDEX = "pairs.json"
FORMAT = 1
SHARD_BYTES = 64 * 2**20
"""Samples of about this size go into one shard: what a killed generation loses at most."""

KEPT_BYTES = 256 * 2**20
"""Noise up to this size is drawn once, when a store is opened, and kept; above, batch by batch."""

Draw = Callable[[Sequence[int]], Tensor]
"""From the seeds of samples to the standard normal noise (n, *shape) they were made from."""
Make = Callable[[int, int], Pairs]
"""make(first, count): pairs first, ..., first + count - 1 of the store."""


class PairStore:
    """P pairs of noise and data, row by row. `open` reads a folder, `of` takes pairs in memory.

    Attributes:
        about: what the pairs are, as given when they were written; empty for pairs in memory.
        labelled: whether they carry classes.
        checksum: 16 hex digits of the pairs' hashes.
    """

    def __init__(
        self,
        shards: Sequence[Mapping[str, Tensor]],
        *,
        seeds: tuple[int, Draw] | None = None,
        about: Mapping[str, Any] | None = None,
        checksum: str = "",
    ):
        self._shards, self._seeds, self.about, self.checksum = list(shards), seeds, dict(about or {}), checksum
        self._size = len(self._shards[0]["x0"])  # of every shard but the last
        self._n = sum(len(shard["x0"]) for shard in self._shards)
        self.shape = tuple(self._shards[0]["x0"].shape[1:])
        self.labelled = "labels" in self._shards[0]

    @classmethod
    def of(cls, pairs: Pairs) -> PairStore:
        """A store in memory, as float32."""
        shard = {"x0": pairs.data.float(), "noise": pairs.noise.float()}
        if pairs.labels is not None:
            shard["labels"] = pairs.labels
        return cls([shard], checksum=_hash(*shard.values())[:16])

    @classmethod
    def open(
        cls,
        folder: Path | str,
        about: Mapping[str, Any] | None = None,
        *,
        draw: Draw | None = None,
        verify: bool = True,
    ) -> PairStore:
        """The store in a folder, checked.

        Args:
            about: what the pairs must be; None takes what is there.
            draw: noise of seeds; needed where the noise was not stored.
            verify: hash every shard and every shard's noise; without, only their presence and shapes are checked.
        Raises:
            BadFile: unfinished, damaged, other pairs than `about`, or noise that is not what the samples were made from.
            BadValue: noise must be drawn from seeds and no `draw` was given.
        """
        folder = Path(folder)
        index = _index(folder)
        if about is not None:
            _same(index["about"], about, folder)
        if set(index["shards"]) != set(_names(index)):
            raise BadFile(
                f"the pairs in {folder} are unfinished: make them again with the same settings, and they are completed."
            )
        if index["noise"] == "seeds" and draw is None:
            raise BadValue(
                f"the noise of the pairs in {folder} is drawn from their seeds: give draw=, as they were made with."
            )
        shards, small = [], 4 * index["n"] * torch.Size(index["shape"]).numel() <= KEPT_BYTES
        for k, name in enumerate(_names(index)):
            file = folder / name
            remedy = f"delete {name} and make the pairs again with the same settings: only it is made anew"
            if not file.exists() or (verify and sha256(file) != index["shards"][name]):
                raise BadFile(f"{file} is {'damaged' if file.exists() else 'missing'}: {remedy}.")
            try:
                shard = load_file(file)
                with safetensors.safe_open(file, "pt") as stored:
                    header = stored.metadata() or {}
                if tuple(shard["x0"].shape) != (_count(index, k), *index["shape"]):
                    raise ValueError(f"samples of shape {tuple(shard['x0'].shape)}")
            except (safetensors.SafetensorError, OSError, ValueError, KeyError) as problem:
                raise BadFile(f"{file} holds no pairs ({problem}): {remedy}.") from None
            if index["noise"] == "seeds" and (verify or small):
                noise = draw(_seeds(index, k)).float()
                if verify and _hash(noise) != header.get("noise"):
                    raise BadFile(
                        f"the noise drawn from the seeds of {file} is not what its samples were made from: the seeds or the way "
                        "noise is drawn have changed. Make the pairs again in another folder."
                    )
                if small:
                    shard["noise"] = noise
            shards.append(shard)
        checksum = hashlib.sha256("".join(index["shards"].values()).encode()).hexdigest()[:16]
        seeds = (index["first_seed"], draw) if index["noise"] == "seeds" and not small else None
        return cls(shards, seeds=seeds, about=index["about"], checksum=checksum)

    def __len__(self) -> int:
        return self._n

    def rows(self, rows: Tensor | Sequence[int]) -> Batch:
        """The pairs at these positions, in this order."""
        rows = torch.as_tensor(rows, dtype=torch.int64)
        which, place = rows // self._size, rows % self._size
        out: dict[str, Tensor] = {}
        for k in which.unique().tolist():
            here = which == k
            for name, value in self._shards[k].items():
                if name not in out:
                    out[name] = value.new_empty(len(rows), *value.shape[1:])
                out[name][here] = value[place[here]]
        if self._seeds is not None:
            first, draw = self._seeds
            out["noise"] = draw([first + i for i in rows.tolist()]).float()
        return Batch(out["x0"], out.get("labels"), out["noise"])

    def pairs(self) -> Pairs:
        """All of them in memory."""
        every = self.rows(torch.arange(len(self)))
        return pairs_of(every.noise, every.x0, every.labels)


class PairLoader(Stream):
    """Endless shuffled batches of a store with `Batch.noise` set; batch i is a function of (seed, i), shared out over processes.

    Args:
        batch_size: pairs per batch over all processes, divisible by `world`.
        rank, world: this process and the number of them.
        second, share: another store (forward pairs of real data, say) that gives `share` of every batch, rounded.
    """

    def __init__(
        self,
        store: PairStore,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        second: PairStore | None = None,
        share: float = 0.0,
    ):
        super().__init__(batch_size, seed, rank, world)
        if not 0 <= share <= 1 or (share > 0 and second is None):
            raise BadValue(f"share={share} of a batch comes from a second store: a number in [0, 1], 0 without one.")
        if second is not None and (second.shape, second.labelled) != (store.shape, store.labelled):
            raise BadValue(f"the two stores hold {store.shape} and {second.shape}, or only one of them has labels.")
        n = round(share * batch_size / world) * world
        self._parts = [
            (part, Shuffle(len(part), seed + k), size)
            for k, (part, size) in enumerate([(store, batch_size - n), (second, n)])
            if size
        ]

    def batch(self, i: int) -> Batch:
        parts = [
            store.rows(order.rows(range(i * size + self.rank, (i + 1) * size, self.world)))
            for store, order, size in self._parts
        ]
        if len(parts) == 1:
            return parts[0]
        joined = (None if a is None else torch.cat([a, b]) for a, b in zip(*(_three(p) for p in parts), strict=True))
        return Batch(*joined)


def write_pairs(
    folder: Path | str,
    about: Mapping[str, Any],
    n: int,
    make: Make,
    *,
    shape: Sequence[int],
    first_seed: int | None = None,
    shard: int | None = None,
    rank: int = 0,
    world: int = 1,
    show: Callable[[float], None] | None = None,
) -> None:
    """Make the shards of a store that are not there yet; `seal_pairs` then completes it.

    Args:
        about: what determines the pairs, plain JSON: whose samples, sampler, seeds.
        n: P.
        make: called once per missing shard.
        first_seed: pair i was made from the noise of seed first_seed + i, which is then not stored; None stores the noise.
        shard: pairs per shard; None for about 64 MiB of samples.
        rank, world: process r of several makes every world-th shard, from r.
        show: given the share that is done, after every shard.
    Raises:
        BadFile: other pairs are in the folder, or it cannot be written.
    """
    folder, shape = Path(folder), [int(k) for k in shape]
    if n < 1:
        raise BadValue(f"a store holds at least one pair, got n={n}.")
    numel = torch.Size(shape).numel()
    index = {
        "format": FORMAT,
        "n": int(n),
        "shape": shape,
        "noise": "stored" if first_seed is None else "seeds",
        "first_seed": first_seed,
        "shard": int(shard or max(1, min(n, SHARD_BYTES // (4 * numel)))),
        "about": json.loads(json.dumps(about)),
        "shards": {},
    }
    if (folder / INDEX).exists():
        found = _index(folder)
        _same(found["about"], about, folder)
        _same(*({k: of[k] for k in ("n", "shape", "noise", "first_seed")} for of in (found, index)), folder)
        index = found
        there = {name: known for name, known in index["shards"].items() if (folder / name).exists()}
        if rank == 0 and there != index["shards"]:  # made anew, a shard's bytes may differ
            index["shards"] = there
            write_atomic(folder / INDEX, lambda file: file.write_text(json.dumps(index, indent=1)))
    elif rank == 0:
        write_atomic(folder / INDEX, lambda file: file.write_text(json.dumps(index, indent=1)))
    if world == 1:
        sweep(folder)
    names = _names(index)
    for done, k in enumerate(range(rank, len(names), world)):
        if not (folder / names[k]).exists():
            pairs = make(k * index["shard"], _count(index, k))
            tensors = {"x0": pairs.data.float().cpu().contiguous()}
            noise = pairs.noise.float().cpu().contiguous()
            if first_seed is None:
                tensors["noise"] = noise
            if pairs.labels is not None:
                tensors["labels"] = pairs.labels.cpu().contiguous()
            if not all(bool(v.isfinite().all()) for v in (noise, tensors["x0"])):
                raise BadValue(f"pairs {k * index['shard']} and on are not finite: take more steps or another sampler.")
            header = {"noise": _hash(noise), "first": str(k * index["shard"])}
            write_atomic(folder / names[k], lambda file, t=tensors, h=header: save_file(t, file, metadata=h))
        if show is not None:
            show((done * world + 1) / len(names))


def seal_pairs(folder: Path | str) -> None:
    """Write the hashes of all shards into the index: the store is complete. Sealing again leaves what was sealed as it is."""
    folder = Path(folder)
    index = _index(folder)
    known = dict(index["shards"])
    for name in _names(index):
        if name not in known:
            known[name] = sha256(folder / name)
    if known != index["shards"]:
        write_atomic(folder / INDEX, lambda file: file.write_text(json.dumps(index | {"shards": known}, indent=1)))


def _three(batch: Batch) -> tuple[Tensor, Tensor | None, Tensor | None]:
    return batch.x0, batch.labels, batch.noise


def _names(index: Mapping[str, Any]) -> list[str]:
    return [f"pairs-{k:05d}.safetensors" for k in range(-(-index["n"] // index["shard"]))]


def _count(index: Mapping[str, Any], k: int) -> int:
    return min(index["shard"], index["n"] - k * index["shard"])


def _seeds(index: Mapping[str, Any], k: int) -> range:
    first = index["first_seed"] + k * index["shard"]
    return range(first, first + _count(index, k))


def _index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if index["format"] != FORMAT or not all(
            isinstance(index[k], t) for k, t in (("n", int), ("shard", int), ("shards", dict), ("about", dict))
        ):
            raise ValueError("not of this format")
    except FileNotFoundError:
        raise BadFile(f"{folder} holds no pairs: it has no {INDEX}. Make them first.") from None
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise BadFile(
            f"{folder / INDEX} is not readable as the index of pairs: {problem}. Delete the folder."
        ) from None
    return index


def _same(found: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    wanted = json.loads(json.dumps(wanted))
    other = sorted(k for k in found.keys() | wanted.keys() if found.get(k) != wanted.get(k))
    if other:
        shown = "; ".join(f"{k} is {_short(found.get(k))}, not {_short(wanted.get(k))}" for k in other[:3])
        raise BadFile(f"{folder} holds other pairs ({shown}): choose another folder, or delete it to make these pairs.")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _hash(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for value in tensors:
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
