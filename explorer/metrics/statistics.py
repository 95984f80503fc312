"""Reference statistics in the files that others publish, and in ours: read with every doubt named, written so that both can read them.

    EDM, pytorch-fid, clean-fid  .npz with `mu` (D,) and `sigma` (D, D)
    guided-diffusion             the same, with `mu_s`, `sigma_s` of the spatial features; or pictures `arr_0` (N, H, W, 3) uint8
    here                         `mu` and `sigma`, and beside them the feature space, the hash of its weights, n and the data

Only the last kind says what it was made with. For the others the caller says so, by the protocol he reads them under.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from explorer.errors import BadFile, BadValue
from explorer.files import write_atomic
from explorer.metrics.features import FeatureSpace
from explorer.metrics.frechet import Reference

MAX_BYTES = 2**32
"""No single array of statistics is larger; pictures are read in pieces and may be."""

NEGATIVE = 1e-6
"""Share of the trace that the negative eigenvalues of a covariance may have; rounding leaves far less."""

LABELS = ("features", "hash", "n", "data")


def read_statistics(file: str | os.PathLike, space: FeatureSpace, *, n: int = 0, data: str = "") -> Reference:
    """The reference in a published .npz, as one of the given feature space.

    Args:
        space: what the generated samples are measured in. A file that names its own must agree; of another it is taken on trust.
        n, data: what a foreign file does not say.
    Raises:
        BadFile: missing, damaged, of another size or space, or with a covariance that is none.
    """
    file = Path(file)
    archive, arrays = _opened(file)
    with archive:
        if "format" in arrays:
            reference = Reference.load(file)
        elif "mu" in arrays or "sigma" in arrays:
            reference = _moments(file, archive, arrays, space, n, data)
        elif "arr_0" in arrays:
            reference = Reference.of(space, _pictures(file, archive, arrays["arr_0"]), data=data or file.stem)
        else:
            held = ", ".join(sorted(arrays)[:6]) or "nothing"
            raise BadFile(f"{file} holds {held}; statistics are mu and sigma, pictures arr_0.")
    _check(file, reference, space)
    return reference


def _opened(file: Path) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    try:
        archive = zipfile.ZipFile(file)
        return archive, {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    except Exception as error:  # a damaged archive fails in many ways; none is worth a traceback
        raise BadFile(f"{file} cannot be read as statistics (.npz): {str(error)[:160]}.") from None


def write_statistics(file: str | os.PathLike, reference: Reference) -> None:
    """Write `mu` and `sigma` as everyone reads them, with what they are beside them; whole or not at all."""
    about = {name: np.array(getattr(reference, name)) for name in LABELS}

    def write(partial: Path) -> None:
        with open(partial, "wb") as out:
            np.savez(out, mu=reference.mean, sigma=reference.cov, **about)

    write_atomic(file, write)


def _moments(
    file: Path, archive: zipfile.ZipFile, arrays: dict[str, zipfile.ZipInfo], space: FeatureSpace, n: int, data: str
) -> Reference:
    ending = "_s" if space.name.endswith("#spatial") else ""
    names = (f"mu{ending}", f"sigma{ending}")
    if not all(name in arrays for name in names):
        raise BadFile(f"{file} lacks {' or '.join(name for name in names if name not in arrays)}.")
    mean, cov = (_array(file, archive, arrays[name]) for name in names)
    said: dict[str, Any] = {k: _array(file, archive, arrays[k]).item() for k in LABELS if k in arrays}
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)) or mean.dtype.kind != "f" or cov.dtype.kind != "f":
        raise BadFile(f"{file}: mu {mean.shape} and sigma {cov.shape} are no mean and covariance of one feature space.")
    if len(mean) != space.dim:
        raise BadFile(
            f"{file} has statistics of {len(mean)} features, but {space.name!r} has {space.dim}: they cannot be compared."
        )
    try:
        count = int(said.get("n", n))
        return Reference(
            str(said.get("features", space.name)),
            str(said.get("hash", space.hash)),
            count,
            mean,
            cov,
            str(said.get("data", data)),
        )
    except (BadValue, ValueError) as error:
        raise BadFile(f"{file}: {error}") from None


def _check(file: Path, reference: Reference, space: FeatureSpace) -> None:
    """Raises BadFile unless the reference belongs to the space and has a covariance."""
    if (reference.features, reference.hash, reference.dim) != (space.name, space.hash, space.dim):
        other = (
            "the same space with other weights"
            if reference.features == space.name
            else f"features {reference.features!r}"
        )
        raise BadFile(
            f"{file} was made in {other} (D={reference.dim}, hash {reference.hash or 'none'}), and samples are measured in {space.name!r} "
            f"(D={space.dim}, hash {space.hash or 'none'}): the distance would mean nothing. Make the reference under the same protocol."
        )
    if np.trace(reference.cov) <= 0:
        raise BadFile(f"{file}: the covariance has no positive trace; its data did not vary.")
    if reference.root.clipped > NEGATIVE * np.trace(reference.cov):
        raise BadFile(
            f"{file}: the covariance is not positive semi-definite; its negative eigenvalues add up to {reference.root.clipped:.3g} of a "
            f"trace of {np.trace(reference.cov):.3g}."
        )


def _array(file: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    if info.file_size > MAX_BYTES:
        raise BadFile(f"{file}: {info.filename} claims {info.file_size} bytes; statistics are smaller.")
    try:
        with archive.open(info) as stream:
            shape, _, dtype = _header(stream)
            claimed = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if dtype.hasobject or claimed > info.file_size:
            raise ValueError(
                "Python objects" if dtype.hasobject else f"{claimed} bytes claimed, {info.file_size} there"
            )
        with archive.open(info) as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)
    except Exception as error:  # as above
        raise BadFile(f"{file}: {info.filename} is damaged or no array of numbers: {str(error)[:160]}.") from None


def _header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"array format {version}")


def _pictures(file: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, batch: int = 64) -> Iterator[Tensor]:
    """Batches (B, 3, H, W) uint8 of an array of pictures, never more than one in memory."""
    try:
        with archive.open(info) as stream:
            shape, fortran, dtype = _header(stream)
            if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or fortran or 0 in shape:
                raise BadFile(f"{file}: arr_0 is {dtype} {shape}; pictures are uint8 (N, H, W, 3).")
            size = int(np.prod(shape[1:], dtype=object))
            if size > MAX_BYTES // batch or size * shape[0] > info.file_size:
                raise BadFile(f"{file}: arr_0 claims {shape}, which is more than the file holds.")
            for start in range(0, shape[0], batch):
                n = min(batch, shape[0] - start)
                raw = stream.read(n * size)
                if len(raw) != n * size:
                    raise BadFile(f"{file}: arr_0 ends after {start + len(raw) // size} of {shape[0]} pictures.")
                pictures = np.frombuffer(raw, np.uint8).reshape(n, *shape[1:])
                yield torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2)
    except BadFile:
        raise
    except Exception as error:  # as above
        raise BadFile(f"{file}: arr_0 is damaged: {str(error)[:160]}.") from None
