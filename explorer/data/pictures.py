"""A user's own images: zips in EDM's format, folders of pictures, numpy arrays.

EDM's zip (Karras et al. 2022, arXiv 2206.00364) holds PNG files in folders and `dataset.json` with {"labels": [[file, class], ...]}
or null; a folder of the same content reads the same. Without `dataset.json` the folder a picture lies in is its class, counted
alphabetically. Images come in the order of their sorted names, as every tool for this format has them.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from explorer.data.batches import image_dataset
from explorer.data.dataset import Dataset
from explorer.data.gathered import pixels_of, signs_of
from explorer.errors import BadFile, BadValue

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
MAX_IMAGE_BYTES = 64 * 2**20
MAX_PIXELS = 64 * 10**6
MAX_JSON_BYTES = 2**29
Fit = Literal["exact", "centre-crop", "squash"]


def pictures(
    source: str | Path,
    *,
    side: int | None = None,
    fit: Fit = "exact",
    name: str | None = None,
    split: str = "train",
    cache: Path | None = None,
) -> Dataset:
    """A data set from a zip or a folder of pictures.

    Args:
        source: a .zip file or a folder.
        side: height and width of the result; None takes what the pictures have, which must be the same for all.
        fit: how a picture of another size becomes side x side: not at all ("exact"), by the largest centred square and
            Lanczos ("centre-crop", as EDM prepares ImageNet-64), or by Lanczos alone ("squash", as it prepares FFHQ-64).
        name, split: for captions.
        cache: a folder into which the pixels of a set of more than a gigabyte are collected once, and from which they are mapped;
            without it they are kept in memory.
    Raises:
        BadFile: no pictures, one that cannot be read, sizes or channels that differ, labels that do not fit, paths that
            lead out of the archive.
    """
    source = Path(source)
    if fit not in ("exact", "centre-crop", "squash"):
        raise BadValue(f"unknown fit {fit!r}; use 'exact', 'centre-crop' or 'squash'.")
    if source.is_dir():
        files = sorted(str(f.relative_to(source).as_posix()) for f in source.rglob("*") if f.is_file())
        return _read(source, files, lambda file: _bytes_of(source / file), side, fit, name, split, cache)
    if not source.is_file():
        raise BadFile(f"there is no {str(source)!r}; expected a zip file or a folder of pictures.")
    try:
        with zipfile.ZipFile(source) as archive:
            members = {info.filename: info for info in archive.infolist() if not info.is_dir()}

            def read(file: str) -> bytes:
                limit = MAX_JSON_BYTES if file.endswith(".json") else MAX_IMAGE_BYTES
                if members[file].file_size > limit:
                    raise BadFile(f"{source.name}:{file} claims {members[file].file_size} bytes; refused.")
                with archive.open(members[file]) as stream:
                    return stream.read(limit)

            return _read(source, sorted(members), read, side, fit, name, split, cache)
    except BadFile:
        raise
    except Exception as error:  # zipfile and zlib raise what they like on damaged archives
        raise BadFile(f"{source.name} is not a readable zip archive (half downloaded?): {str(error)[:120]}.") from None


def array_dataset(x: np.ndarray | Tensor, labels=None, *, name: str = "array", split: str = "train") -> Dataset:
    """A data set from images (N, C, H, W) or (N, H, W, C): uint8 pixels, or floats in [-1, 1]; C is 1, 3 or 4.

    Raises:
        BadValue: another shape, another type, values out of range, labels that are not (N,) whole numbers from 0.
    """
    x = torch.as_tensor(np.asarray(x))
    if x.ndim == 4 and x.shape[1] not in (1, 3, 4) and x.shape[3] in (1, 3, 4):
        x = x.permute(0, 3, 1, 2).contiguous()
    if x.ndim != 4 or x.shape[1] not in (1, 3, 4) or len(x) == 0:
        raise BadValue(f"expected images (N, C, H, W) or (N, H, W, C) of 1, 3 or 4 channels, got {tuple(x.shape)}.")
    n_classes = 0
    if labels is not None:
        labels = torch.as_tensor(np.asarray(labels))
        if labels.shape != (len(x),) or labels.is_floating_point() or int(labels.min()) < 0:
            raise BadValue(
                f"expected {len(x)} whole numbers from 0 as labels, got {labels.dtype} {tuple(labels.shape)}."
            )
        labels, n_classes = labels.long(), int(labels.max()) + 1
    card = {"about": "images from an array", "split": split}
    if x.dtype == torch.uint8:
        return image_dataset(name, split, x, labels, n_classes, card)
    if not x.is_floating_point() or not bool((x.abs() <= 1).all()):
        raise BadValue(
            f"expected uint8 pixels or floats in [-1, 1], got {x.dtype} in {float(x.min())}..{float(x.max())}."
        )
    x = x.float()
    return Dataset(name, x, labels, n_classes, float(x.std()), {"n": len(x), "shape": list(x.shape[1:]), **card})


def write_zip(file: str | Path, pixels: Tensor, labels: Tensor | None = None) -> Path:
    """Images (N, C, H, W) uint8 as a zip in EDM's format: stored, uncompressed PNG; what `pictures` reads back bit for bit."""
    from PIL import Image

    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        raise BadValue(f"expected pixels (N, 1 or 3, H, W) uint8, got {pixels.dtype} {tuple(pixels.shape)}.")
    file, names = Path(file), [f"{i // 1000:05d}/img{i:08d}.png" for i in range(len(pixels))]
    partial = file.with_name(f".{file.name}.partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for name, image in zip(names, pixels.permute(0, 2, 3, 1).numpy(), strict=True):
            out = io.BytesIO()
            Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0]).save(out, "png", compress_level=0)
            archive.writestr(name, out.getvalue())
        table = None if labels is None else [[n, int(k)] for n, k in zip(names, labels, strict=True)]
        archive.writestr("dataset.json", json.dumps({"labels": table}))
    partial.replace(file)
    return file


def _read(
    source: Path,
    files: list[str],
    read: Callable[[str], bytes],
    side: int | None,
    fit: Fit,
    name: str | None,
    split: str,
    cache: Path | None,
) -> Dataset:
    for file in files:
        if file.startswith("/") or "\\" in file or ".." in PurePosixPath(file).parts:
            raise BadFile(f"{source.name} holds the path {file!r}, which leads out of it; nothing was read.")
    images = [file for file in files if file.lower().endswith(ENDINGS)]
    if not images:
        raise BadFile(f"{source.name} holds no pictures ({', '.join(ENDINGS)}).")
    labels, n_classes, space = _labels(source, files, images, read)
    first = picture(read(images[0]), images[0], side, fit)

    def one_by_one() -> Iterator[np.ndarray]:
        for file in images:
            image = picture(read(file), file, side, fit)
            if image.shape != first.shape:
                raise BadFile(
                    f"{source.name}: {file} is {_size(image)} where {images[0]} is {_size(first)}; give a side and a fit, "
                    "or sort them apart."
                )
            yield image

    inside = [source / file for file in files] if source.is_dir() else [source]
    signs = [side, fit, *signs_of(inside)] if cache is not None else None
    kept = pixels_of(len(images), one_by_one, cache=cache, sources=signs)
    card = {
        "about": f"pictures of {source.name}",
        "source": source.name,
        "resize": fit if side else "as they are",
        "label_space": space,
        "split": split,
    }
    return image_dataset(name or source.stem, split, kept, labels, n_classes, card)


def _labels(
    source: Path, files: list[str], images: list[str], read: Callable[[str], bytes]
) -> tuple[Tensor | None, int, str]:
    """Class of each image, number of classes, and where they come from."""
    if "dataset.json" in files:
        try:
            table = json.loads(read("dataset.json"))["labels"]
            known = None if table is None else dict(table)
        except (ValueError, TypeError, KeyError, RecursionError):
            raise BadFile(
                f'{source.name}: dataset.json must hold {{"labels": [[file, class], ...]}} or null.'
            ) from None
        if known is None:
            return None, 0, "none"
        if missing := [file for file in images if file not in known]:
            raise BadFile(f"{source.name}: dataset.json gives no label for {missing[0]} ({len(missing)} in all).")
        values = [known[file] for file in images]
        if not all(type(v) is int and 0 <= v < 2**31 for v in values):
            odd = next(v for v in values if not (type(v) is int and 0 <= v < 2**31))
            raise BadFile(
                f"{source.name}: dataset.json has the label {str(odd)[:40]}; classes are whole numbers from 0."
            )
        return torch.tensor(values), max(values) + 1, "dataset.json"
    folders = sorted({PurePosixPath(file).parts[0] for file in images if "/" in file})
    if len(folders) < 2 or any("/" not in file for file in images):
        return None, 0, "none"
    rank = {folder: i for i, folder in enumerate(folders)}
    return torch.tensor([rank[PurePosixPath(file).parts[0]] for file in images]), len(folders), "sorted folders"


def picture(content: bytes, file: str, side: int | None = None, fit: Fit = "exact") -> np.ndarray:
    """The picture (H, W, 1 or 3) uint8 in the bytes of a PNG, JPEG, BMP or WEBP file, which errors call `file`."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "BMP", "WEBP")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadFile(f"{file} has {image.width} x {image.height} pixels; refused.")
            if image.mode not in ("L", "RGB", "P", "1"):
                raise BadFile(
                    f"{file} is a picture of mode {image.mode}; expected grey, RGB or palette without transparency."
                )
            if "transparency" in image.info:
                raise BadFile(f"{file} is partly transparent; put it on a background first.")
            image = image.convert("RGB" if image.mode == "P" else "L" if image.mode == "1" else image.mode)
    except BadFile:
        raise
    except Exception as error:  # a damaged picture can fail anywhere in its decoder
        raise BadFile(f"{file} cannot be read as a picture: {str(error).partition(' <')[0][:120]}.") from None
    if side is not None and (image.width, image.height) != (side, side):
        if fit == "exact":
            raise BadFile(f"{file} has {image.width} x {image.height} pixels, not {side} x {side}; choose a fit.")
        if fit == "centre-crop":
            edge = min(image.size)
            left, top = (image.width - edge) // 2, (image.height - edge) // 2
            image = image.crop((left, top, left + edge, top + edge))
        image = image.resize((side, side), Image.Resampling.LANCZOS)
    array = np.asarray(image)
    return array if array.ndim == 3 else array[:, :, None]


def _bytes_of(file: Path) -> bytes:
    if file.stat().st_size > (MAX_JSON_BYTES if file.suffix == ".json" else MAX_IMAGE_BYTES):
        raise BadFile(f"{file.name} has {file.stat().st_size} bytes; refused.")
    return file.read_bytes()


def _size(image: np.ndarray) -> str:
    height, width, channels = image.shape
    return f"{width} x {height} in {'colour' if channels == 3 else 'grey'}"
