"""Published image sets that a user keeps on disk: what they are called, where they are looked for, which reader reads them."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from explorer.data.batches import cifar10, imagenet
from explorer.data.dataset import Dataset
from explorer.data.gathered import FLOAT_BYTES, cache_folder
from explorer.data.huggingface import fits, huggingface
from explorer.data.pictures import array_dataset, pictures
from explorer.errors import BadFile, BadValue, UnknownName


@dataclass(frozen=True)
class Source:
    """A published set.

    Args:
        about: one line, with where its authors publish it.
        shape, n_classes: as the papers use it; 0 classes where there are none.
        kept: names of files or folders that hold it, the preferred one first.
    """

    about: str
    shape: tuple[int, int, int]
    n_classes: int
    kept: tuple[str, ...]


_IMAGENET = "downsampled ImageNet of 2017 (image-net.org, an account is needed), or EDM's own zip, another resizing"
SOURCES: dict[str, Source] = {
    "cifar10": Source(
        "CIFAR-10, python version (www.cs.toronto.edu/~kriz/cifar.html)",
        (3, 32, 32),
        10,
        ("cifar-10-batches-py", "cifar-10-python.tar.gz", "cifar10-32x32.zip"),
    ),
    "imagenet16": Source(_IMAGENET, (3, 16, 16), 1000, ("imagenet16", "Imagenet16")),
    "imagenet32": Source(_IMAGENET, (3, 32, 32), 1000, ("imagenet32", "Imagenet32")),
    "imagenet64": Source(_IMAGENET, (3, 64, 64), 1000, ("imagenet64", "Imagenet64", "imagenet-64x64.zip")),
    "ffhq64": Source("FFHQ at 64x64, a zip made by EDM's dataset tool", (3, 64, 64), 0, ("ffhq-64x64.zip",)),
    "afhqv2-64": Source("AFHQv2 at 64x64, a zip made by EDM's dataset tool", (3, 64, 64), 0, ("afhqv2-64x64.zip",)),
}


def named(name: str, split: str = "train", source: str | Path | None = None) -> Dataset:
    """A published set from the user's disk.

    Args:
        name: a key of `SOURCES`.
        split: "train" or "test"; zips hold no test split.
        source: the file or folder itself; by default it is looked for in the folder that EXPLORER_DATA names.
    Raises:
        BadFile: it is not there (the message says where to get it and where to put it), or damaged.
    """
    if name not in SOURCES:
        raise UnknownName("published image set", name, SOURCES)
    found, about = Path(source) if source is not None else _find(name), SOURCES[name]
    if not found.exists():
        raise BadFile(f"there is no {str(found)!r}; expected {about.about}.")
    if found.suffix == ".zip":
        if split == "test":
            raise BadValue(f"{found.name} has no test split; use split='train'.")
        data = pictures(found, name=name, cache=cache_folder(f"{name}-zip"))
    elif name == "cifar10":
        data = cifar10(found, split)
    elif name.startswith("imagenet"):
        held = sum(file.stat().st_size for file in found.iterdir() if file.is_file()) if found.is_dir() else 0
        cache = cache_folder(f"{name}-{split}") if held > FLOAT_BYTES else None
        data = imagenet(found, split, side=about.shape[-1], cache=cache)
    else:
        data = pictures(found, side=about.shape[-1], name=name)
    if data.shape != about.shape:
        raise BadFile(f"{found.name} holds images of {data.shape}; {name} has {about.shape}.")
    return data


def opened(source: str | Path, split: str = "train") -> Dataset:
    """A data set from any file or folder of images, by what is in it.

    Known are: a zip or folder of pictures, the CIFAR-10 archive or folder, a folder of downsampled-ImageNet batches, a folder of
    Hugging Face datasets or one of its parquet or arrow files, and .npy or .npz files with images (`data`, `images`, `x` or
    `arr_0`) and perhaps `labels`.
    """
    found = Path(source)
    if found.is_dir():
        held = {file.name for file in found.iterdir()}
        if {"data_batch_1", "test_batch"} & held:
            return cifar10(found, split)
        if any(name.startswith(("train_data_batch_", "val_data")) for name in held):
            return imagenet(found, split)
        if fits(found):
            return huggingface(found, split)
    elif found.suffix in (".parquet", ".arrow"):
        return huggingface(found, split)
    elif found.name.endswith((".tar.gz", ".tgz", ".tar")):
        return cifar10(found, split)
    if split == "test":
        raise BadValue(f"{found.name} has no test split; use split='train'.")
    if found.suffix in (".npy", ".npz"):
        return _arrays(found)
    return pictures(found)


def holds_images(file: str | Path) -> bool:
    """Whether an npz or npy file holds an array of four axes, so that it is of images and not of points; False when unreadable."""
    try:
        if Path(file).suffix == ".npy":
            with open(file, "rb") as stream:
                return len(_shape_in(stream)) == 4
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                with archive.open(name) as stream:
                    if len(_shape_in(stream)) == 4:
                        return True
    except Exception:  # whoever reads the file says what is wrong with it
        return False
    return False


def _shape_in(stream) -> tuple[int, ...]:
    """Shape of the array whose npy bytes begin here."""
    old = np.lib.format.read_magic(stream) == (1, 0)
    return (np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0)(stream)[0]


def _arrays(file: Path) -> Dataset:
    if not file.is_file():
        raise BadFile(f"there is no file {str(file)!r}; expected images in a .npy or .npz file.")
    try:
        content = np.load(file, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return array_dataset(content, name=file.stem)
        with content as archive:
            key = next((k for k in ("data", "images", "x", "arr_0") if k in archive.files), None)
            if key is None:
                raise BadFile(f"{file.name}: expected images under 'data', 'images' or 'x', found {archive.files}.")
            labels = next((archive[k] for k in ("labels", "arr_1") if k in archive.files), None)
            return array_dataset(archive[key], labels, name=file.stem)
    except (BadFile, BadValue):
        raise
    except Exception as error:  # zipfile, zlib, struct and numpy each have their own
        raise BadFile(f"{file.name} is not a readable file of plain arrays: {str(error)[:120]}.") from None


def _find(name: str) -> Path:
    about, root = SOURCES[name], os.environ.get("EXPLORER_DATA")
    if root:
        for kept in about.kept:
            if (Path(root) / kept).exists():
                return Path(root) / kept
        if Path(root).name in about.kept and Path(root).exists():
            return Path(root)
    where = (
        f"EXPLORER_DATA is {root!r}, which holds none of {', '.join(about.kept)}"
        if root
        else "EXPLORER_DATA is not set"
    )
    raise BadFile(
        f"the data set {name} is not on this machine: {where}. Get {about.about}, put {about.kept[0]} into a folder and set "
        "EXPLORER_DATA to that folder."
    )
