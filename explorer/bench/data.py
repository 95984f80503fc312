"""data-*: images a second out of a data set that is mapped from disk, and into one that is rendered."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from explorer.bench.clock import Effort, Work, installed, rounds, threads
from explorer.bench.peers import edm
from explorer.bench.rows import Row
from explorer.data import Dataset, Fractals, Loader, NonLeaking
from explorer.data.gathered import gathered

BATCH = 512
SHAPE = (3, 32, 32)


def loader(name: str, effort: Effort, *, augment: bool = False) -> Row:
    """Shuffled batches of 512 from CIFAR-10's number of pixels, mapped from a file, as float32; one thread.

    Args:
        augment: with EDM's non-leaking augmentation at p = 0.12.
    """
    n, batches = (2_000, 2) if effort.quick else (50_000, 20)
    draw = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, threads(1):

        def parts():
            for _ in range(n // 1000):
                pixels = torch.randint(256, (1000, *SHAPE), dtype=torch.uint8, generator=draw)
                yield pixels, torch.randint(10, (1000,), generator=draw)

        pixels, labels = gathered(parts, ["bench"], Path(folder))
        data = Dataset("bench", pixels, labels, 10)
        order = torch.randperm(n, generator=draw)
        stream = iter(Loader(data, BATCH, augment=NonLeaking() if augment else None))

        def ours() -> None:
            for _ in range(batches):
                next(stream)

        def limit() -> None:
            for i in range(batches):
                rows = order[(i * BATCH) % n :][:BATCH]
                pixels[rows].float().div_(127.5).sub_(1)

        def torchs() -> Work:
            from torch.utils.data import DataLoader, TensorDataset

            class Scaled(TensorDataset):
                def __getitem__(self, i):
                    x, label = super().__getitem__(i)
                    return x.float() / 127.5 - 1, label

            def endless():
                while True:
                    yield from DataLoader(Scaled(pixels, labels), BATCH, shuffle=True, drop_last=True)

            shown = endless()
            return lambda: [next(shown) for _ in range(batches)] and None

        def edms() -> Work:
            pipe = edm("training.augment").AugmentPipe(
                p=0.12, xflip=1e8, yflip=1, scale=1, rotate_frac=1, aniso=1, translate_frac=1
            )

            def run() -> None:
                for i in range(batches):
                    rows = order[(i * BATCH) % n :][:BATCH]
                    pipe(pixels[rows].float().div_(127.5).sub_(1))

            return run

        wanted = {"NVlabs/edm AugmentPipe": edms} if augment else {"torch DataLoader, one worker": torchs}
        peers, absent = installed(wanted)
        times, _ = rounds({"ours": ours, "limit": limit, **peers}, effort, clock=time.thread_time)
    what = ", augmented" if augment else ""
    row = Row.of(
        name,
        times,
        unit="s",
        limit_is="the rows read and scaled, no shuffling",
        absent=absent,
        note=f"{n} pictures of 32x32 in colour, mapped uint8 to float32 in batches of {BATCH}{what}; one thread.",
    )
    return row.as_rate(batches * BATCH, "images/s")


def fractals(name: str, effort: Effort) -> Row:
    """Fractals rendered at 32x32 by one core, systems, points, colours and ground included."""
    n, kind = (64 if effort.quick else 256), Fractals()
    labels, indices = torch.arange(n) % kind.n_classes, torch.arange(n)
    with threads(1):
        kind.render(labels[:8], indices[:8])  # the systems of the classes are found once
        times, _ = rounds({"ours": lambda: kind.render(labels, indices, workers=1)}, effort, clock=time.thread_time)
    note = f"{n} pictures, {kind.chains} chains of {kind.steps} steps each, one core."
    return Row.of(name, times, unit="s", limit_is="", note=note).as_rate(n, "images/s")
