"""CIFAR-10 and downsampled ImageNet as their authors publish them: batches of planes, pickled or in npz files.

A row of `data` holds the red plane, then the green, then the blue, each row by row. CIFAR-10 (Krizhevsky 2009) counts its classes
from 0. Downsampled ImageNet (Chrabaszcz et al. 2017, arXiv 1707.08819) counts from 1, in the order of the ILSVRC development kit,
which is not the alphabetical order of the synsets that classifiers and the zips of EDM use; `sorted_labels` translates. It is also
another resizing (the whole picture squashed by a box filter) than EDM's centre crop, and another set than the unlabelled one of
van den Oord et al. 2016: scores on the three are not comparable, so the card says which it is.

Legend: N images, S side in pixels.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from explorer.data.dataset import Dataset
from explorer.data.gathered import FLOAT_BYTES, gathered, signs_of
from explorer.data.unpickle import MAX_BYTES, read_batch
from explorer.errors import BadFile, BadValue

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIGMA_DATA = 0.5
"""Of natural images in [-1, 1], as EDM's preconditioning takes it."""


def cifar10(source: str | Path, split: str = "train") -> Dataset:
    """CIFAR-10 from `cifar-10-python.tar.gz` or the folder it unpacks to: 50 000 images to train, 10 000 to test.

    Raises:
        BadFile: batches that are missing, damaged, of another format, or that would run code.
    """
    source = Path(source)
    wanted = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    streams = _from_tar(source, wanted) if source.is_file() else _from_folder(source, wanted)
    parts = [_images(content, name, 0, 10) for name, content in streams]
    pixels, labels = torch.cat([p for p, _ in parts]), torch.cat([n for _, n in parts])
    if pixels.shape[1:] != (3, 32, 32):
        raise BadFile(f"{source.name}: CIFAR-10 has images of 3 x 32 x 32, these have {tuple(pixels.shape[1:])}.")
    card = {
        "about": "CIFAR-10",
        "classes": list(CIFAR10),
        "split": split,
        "source": source.name,
        "resize": "as published",
    }
    return image_dataset("cifar10", split, pixels, labels, 10, card)


def imagenet(
    source: str | Path, split: str = "train", *, side: int | None = None, cache: Path | None = None
) -> Dataset:
    """Downsampled ImageNet of 2017 from a folder of `train_data_batch_1` ... `_10` or `val_data`, pickled or .npz.

    Args:
        source: the folder.
        split: "train" or "test", which is the published validation set.
        side: expected S; None takes what the files hold.
        cache: a folder into which the pixels are gathered once, one batch in memory at a time, and from which they are
            mapped. Without it all are kept in memory (16 GB at 64x64).
    Returns:
        labels 0..999 in the order of the development kit: the published label minus one. See `sorted_labels`.
    Raises:
        BadFile: see `cifar10`.
    """
    source = Path(source)
    pattern = r"train_data_batch_(\d+)(\.npz)?" if split == "train" else r"val_data(\.npz)?"
    files = [f for f in source.iterdir() if re.fullmatch(pattern, f.name)] if source.is_dir() else []
    files.sort(key=lambda f: [int(n) for n in re.findall(r"\d+", f.stem)])
    expected = "train_data_batch_1 ... train_data_batch_10" if split == "train" else "val_data"
    if not files:
        raise BadFile(f"{str(source)!r} holds no {expected}; give the folder that the published archive unpacks to.")
    numbers = [int(re.findall(r"\d+", f.stem)[0]) for f in files] if split == "train" else [1]
    if numbers != list(range(1, len(files) + 1)):
        raise BadFile(f"{source.name}: expected {expected} without gaps or doubles, found numbers {numbers}.")
    if cache is None:
        parts = list(_parts(files, side))
        pixels, labels = torch.cat([p for p, _ in parts]), torch.cat([n for _, n in parts])
    else:
        pixels, labels = gathered(lambda: _parts(files, side), signs_of(files), Path(cache))
    card = {
        "about": "downsampled ImageNet (2017)",
        "variant": "2017-squashed",
        "resize": "whole picture squashed, box filter",
        "label_space": "devkit",
        "split": split,
        "source": source.name,
        "batches": len(files),
    }
    return image_dataset(f"imagenet{pixels.shape[-1]}", split, pixels, labels, 1000, card)


def sorted_labels(labels: Tensor, synsets: Sequence[str]) -> Tensor:
    """Labels 0..K-1 by alphabetical synset, from labels in the order of the development kit.

    Args:
        labels: (N,) int64 in 0..K-1.
        synsets: the K synset names in the kit's order, e.g. the first column of its map_clsloc.txt ("n02119789" first).
    """
    if len(set(synsets)) != len(synsets) or not all(re.fullmatch(r"n\d{8}", s) for s in synsets):
        raise BadValue("synsets must be different names such as 'n01440764', in the order of the development kit.")
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= len(synsets)):
        raise BadValue(f"labels must lie in 0..{len(synsets) - 1}, got up to {int(labels.max())}.")
    rank = {name: i for i, name in enumerate(sorted(synsets))}
    return torch.tensor([rank[name] for name in synsets])[labels]


def image_dataset(
    name: str, split: str, pixels: Tensor, labels: Tensor | None, n_classes: int, card: dict[str, Any]
) -> Dataset:
    """A data set of pixels (N, C, H, W) uint8: as float32 in [-1, 1] where that is not too large, else as they are."""
    small = 4 * pixels.numel() <= FLOAT_BYTES
    x = pixels.float().div_(127.5).sub_(1) if small else pixels
    name = name if split == "train" else f"{name}-{split}"
    return Dataset(name, x, labels, n_classes, SIGMA_DATA, {"n": len(x), "shape": list(x.shape[1:]), **card})


def _images(content: dict[str, Any], name: str, first: int, n_classes: int) -> tuple[Tensor, Tensor]:
    """Pixels (N, 3, S, S) uint8 and labels 0..n_classes-1 of one batch."""
    data, labels = content.get("data"), content.get("labels")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or labels is None:
        raise BadFile(f"{name}: expected 'data' (images, 3 S S) uint8 and 'labels', found {sorted(content)}.")
    side = round((data.shape[1] / 3) ** 0.5)
    if len(data) == 0 or 3 * side * side != data.shape[1] or side == 0:
        raise BadFile(f"{name}: {len(data)} rows of {data.shape[1]} bytes are no square images of three planes.")
    try:
        numbers = torch.as_tensor(np.asarray(labels).astype(np.int64, casting="safe")) - first
    except (TypeError, ValueError):
        raise BadFile(f"{name}: the labels are not whole numbers.") from None
    if numbers.shape != (len(data),):
        raise BadFile(f"{name}: {tuple(numbers.shape)} labels for {len(data)} images.")
    if int(numbers.min()) < 0 or int(numbers.max()) >= n_classes:
        low, high = int(numbers.min()) + first, int(numbers.max()) + first
        raise BadFile(f"{name}: labels lie in {low}..{high} where {first}..{n_classes - 1 + first} were expected.")
    return torch.from_numpy(np.array(data)).view(-1, 3, side, side), numbers


def _pickled(stream, name: str, size: int) -> dict[str, Any]:
    if size > MAX_BYTES:
        raise BadFile(f"{name} has {size} bytes; no published batch is that large.")
    with stream:
        return read_batch(stream, name)


def _npz(file: Path) -> dict[str, Any]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in ("data", "labels") if key in archive.files}
    except Exception as error:  # zipfile, zlib, struct and numpy each have their own
        raise BadFile(f"{file.name} is not a readable npz file of plain arrays: {str(error)[:120]}.") from None


def _from_folder(folder: Path, wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in wanted:
        file = folder / name
        if not file.is_file():
            raise BadFile(f"{str(folder)!r} holds no {name}; expected the folder cifar-10-batches-py or its tar.gz.")
        yield name, _pickled(file.open("rb"), name, file.stat().st_size)


def _from_tar(file: Path, wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The wanted members, by their last name; nothing is unpacked to disk."""
    found: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(file, "r:*") as archive:
            for i, member in enumerate(archive):
                name = member.name.rsplit("/", 1)[-1]
                if i > 100 or member.size > MAX_BYTES:
                    raise BadFile(f"{file.name} is not the CIFAR-10 archive: too many or too large members.")
                if name in wanted and member.isfile():
                    stream = archive.extractfile(member)
                    found[name] = _pickled(io.BytesIO(stream.read()), f"{file.name}:{name}", member.size)
    except (tarfile.TarError, EOFError, ValueError, OSError) as error:
        if isinstance(error, BadFile):
            raise
        raise BadFile(f"{file.name} is not a readable tar archive (half downloaded?): {error}.") from None
    except Exception as error:  # zlib.error, lzma.LZMAError
        raise BadFile(f"{file.name} cannot be unpacked (half downloaded?): {error}.") from None
    if missing := [name for name in wanted if name not in found]:
        raise BadFile(f"{file.name} lacks {', '.join(missing)}; expected cifar-10-python.tar.gz.")
    return iter([(name, found[name]) for name in wanted])


def _parts(files: Sequence[Path], side: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Pixels and labels of one ImageNet batch after the other, all of one size."""
    for file in files:
        content = _npz(file) if file.suffix == ".npz" else _pickled(file.open("rb"), file.name, file.stat().st_size)
        pixels, labels = _images(content, file.name, 1, 1000)
        side = side or pixels.shape[-1]
        if pixels.shape[-1] != side:
            raise BadFile(f"{file.name}: images have {pixels.shape[-1]} pixels a side where {side} were expected.")
        yield pixels, labels
