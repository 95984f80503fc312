"""Trajectories on disk: netCDF files and zarr directories, written whole or not at all, read back exactly.

A recording may also be written batch by batch (`Stream`): until it is complete its name carries ".part", and what is
there can be read at any time. A basis (`principal_basis`) is stored the same way as a trajectory.

Reading executes nothing: netCDF holds numbers and text, and of zarr only the plain codecs are accepted.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import xarray as xr

from explorer.errors import BadFile, BadValue, MissingExtra
from explorer.files import write_atomic
from explorer.trajectory.dataset import validate
from explorer.trajectory.subspace import BASIS, validate_basis

NETCDF = (".nc", ".netcdf", ".nc4")
ZARR = (".zarr",)
# zarr can name codecs that unpickle; these cannot
ZARR_CODECS = {"bytes", "zstd", "blosc", "gzip", "crc32c", "transpose", "vlen-utf8", "vlen-bytes"}


def save(ds: xr.Dataset, file: str | os.PathLike) -> Path:
    """Writes a trajectory (or a basis) to `*.nc` (one netCDF file) or `*.zarr` (a directory), replacing what is there, and returns
    the path.

    The data go to a neighbouring temporary name first: a reader sees the old file or the new one, never a part (a
    directory is absent for the instant of the exchange).
    Raises:
        MissingExtra: h5netcdf with h5py, or zarr, is not installed.
        BadValue: another suffix, or a dataset that is not a trajectory.
    """
    file = Path(file)
    kind = _kind(file)
    try:
        _validated(ds)
    except BadFile as error:
        raise BadValue(str(error)) from error
    file.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=f".{file.name}.", dir=file.parent))
    try:
        part = holder / file.name
        if kind == "netcdf":
            ds.to_netcdf(part, engine="h5netcdf")
        else:
            ds.to_zarr(part, mode="w", zarr_format=3, consolidated=False)
            if file.is_dir():
                os.rename(file, holder / "old")
        os.replace(part, file)
    finally:
        shutil.rmtree(holder, ignore_errors=True)
    return file


def load(file: str | os.PathLike, *, lazy: bool = False) -> xr.Dataset:
    """The trajectory or basis that `save` wrote, in memory; of an unfinished recording (*.part.*) its finished samples.

    Args: lazy: leave the arrays on disk until they are used; the file must stay where it is.
    Raises:
        BadFile: missing, truncated, or not a trajectory of a schema this version reads.
        MissingExtra, BadValue: as in `save`.
    """
    file = Path(file)
    kind = _kind(file)
    if not file.exists():
        part = part_of(file)
        more = ""
        if part.exists():
            state = _state(part)
            more = (
                f" There is an unfinished one: load({part.name!r}) reads its {state['done']} of {state['n']} samples, "
                "and the call that began it goes on."
            )
        raise BadFile(f"no trajectory at {file}.{more}")
    try:
        if kind == "netcdf" and file.is_dir():
            pieces = [load(piece, lazy=lazy) for piece in _pieces(file, _state(file)["done"])]
            ds = (
                xr.concat(pieces, "sample", data_vars="minimal", coords="minimal", compat="override")
                if pieces
                else None
            )
        elif kind == "netcdf":
            ds = _opened(xr.open_dataset(file, engine="h5netcdf"), lazy)
        else:
            _check_codecs(file)
            ds = _opened(xr.open_zarr(file, consolidated=False, chunks=None), lazy, _state(file).get("done"))
    except BadFile:
        raise
    except Exception as error:  # h5py, zarr and the codecs each raise their own kinds
        raise BadFile(f"{file} cannot be read as {kind}: {error}") from error
    if ds is None or not ds.sizes.get("sample", 1):
        raise BadFile(f"{file} is an unfinished recording without a single finished batch.")
    ds.attrs = {k: v.item() if isinstance(v, np.generic) else v for k, v in ds.attrs.items()}
    for name in ds.variables:
        ds[name].encoding = {}
    ds.encoding = {}
    return _validated(ds)


def _opened(stored: xr.Dataset, lazy: bool, n: int | None = None) -> xr.Dataset:
    stored = stored if n is None else stored.isel(sample=slice(n))
    if lazy:
        return stored
    with stored:
        return stored.load()


def _validated(ds: xr.Dataset) -> xr.Dataset:
    return validate_basis(ds) if ds.attrs.get("schema") == BASIS else validate(ds)


def part_of(file: str | os.PathLike) -> Path:
    """Where a recording to this file is until it is complete: run.zarr -> run.part.zarr."""
    file = Path(file)
    return file.with_name(f"{file.stem}.part{file.suffix}")


def folder_of(file: str | os.PathLike) -> Path:
    """The nearest folder above a file that exists."""
    folder = Path(file).absolute().parent
    while not folder.exists():
        folder = folder.parent
    return folder


class Stream:
    """A trajectory of n samples written batch by batch, in order, that can be read and taken up again at any time.

    A zarr directory has its full size from the first batch on and is filled chunk by chunk; one chunk is one batch, so
    finished samples are never written again. A netCDF file cannot be interrupted without risk: its batches are files in a
    folder, joined at the end, which for a moment needs the space twice.

    Args:
        file: where the complete trajectory goes.
        key: plain values that say which recording this is.
        batch: samples in all but the last batch; one that is taken up again keeps the batch it began with.
    Attributes: done, the samples that are safely on disk; part, where they are.
    Raises: BadValue where the unfinished file belongs to another recording, or the name has another suffix.
    """

    def __init__(self, file: str | os.PathLike, n: int, key: dict, batch: int):
        self.file, self.part, self.kind = Path(file), part_of(file), _kind(Path(file))
        self.n, self.key, self.batch, self.done = n, json.loads(json.dumps(key)), batch, 0
        self.part.parent.mkdir(parents=True, exist_ok=True)
        if self.part.exists():
            state = _state(self.part)
            if not state and any(self.part.iterdir()):
                raise BadValue(f"{self.part} is in the way and is no unfinished recording: give another name.")
            other = [name for name in self.key if state.get("key", {}).get(name) != self.key[name]]
            if state and other:
                raise BadValue(
                    f"{self.part} is an unfinished recording with another {', '.join(other)}: give another name, or "
                    "delete it."
                )
            self.done, self.batch = state.get("done", 0), state.get("batch", batch)
        if not self.done:
            shutil.rmtree(self.part, ignore_errors=True)
            self.part.mkdir()
            self._tell(0)

    @staticmethod
    def copies(file: str | os.PathLike) -> int:
        """How often the recording lies on disk at the moment of its completion."""
        return 2 if _kind(Path(file)) == "netcdf" else 1

    def append(self, ds: xr.Dataset) -> None:
        """Adds the next batch; it counts once all of it is on disk."""
        n = ds.sizes["sample"]
        if self.kind == "netcdf":
            save(ds, self.part / f"{self.done:09d}.nc")
        elif not self.done:
            chunks = {
                name: {"chunks": (n, *ds[name].shape[1:])} for name in ds.variables if ds[name].dims[:1] == ("sample",)
            }
            ds.to_zarr(self.part, mode="a", zarr_format=3, consolidated=False, encoding=chunks)
            self._resize(ds)
        else:
            import zarr

            group = zarr.open_group(self.part, mode="r+")
            for name in self._by_sample(ds):
                group[name][self.done : self.done + n] = ds[name].values
        self._tell(self.done + n)

    def finish(self) -> Path:
        """Gives the complete trajectory its name, replacing what is there, and returns it."""
        if self.done != self.n:
            raise BadValue(f"{self.done} of {self.n} samples are written; this recording is not complete.")
        if self.kind == "netcdf":
            whole = self.part / "whole.nc"
            self._join(whole)
            os.replace(whole, self.file)
            shutil.rmtree(self.part)
            _state_file(self.part).unlink()
            return self.file
        old = self.part.with_name(f".{self.file.name}.old")
        if self.file.is_dir():
            os.rename(self.file, old)
        os.replace(self.part, self.file)
        shutil.rmtree(old, ignore_errors=True)
        _state_file(self.part).unlink()
        return self.file

    def _by_sample(self, ds: xr.Dataset) -> list[str]:
        return [name for name in ds.variables if ds[name].dims[:1] == ("sample",)]

    def _resize(self, ds: xr.Dataset) -> None:
        import zarr

        group = zarr.open_group(self.part, mode="r+")
        for name in self._by_sample(ds):
            group[name].resize((self.n, *group[name].shape[1:]))

    def _join(self, whole: Path) -> None:
        import h5netcdf

        pieces, at = _pieces(self.part, self.done), 0
        first = load(pieces[0])
        first.to_netcdf(whole, engine="h5netcdf", unlimited_dims=("sample",))
        with h5netcdf.File(whole, "a") as joined:
            joined.resize_dimension("sample", self.n)
            for piece in pieces:
                ds = load(piece)
                for name in self._by_sample(ds):
                    joined.variables[name][at : at + ds.sizes["sample"]] = ds[name].values
                at += ds.sizes["sample"]

    def _tell(self, done: int) -> None:
        text = json.dumps({"done": done, "n": self.n, "batch": self.batch, "key": self.key})
        write_atomic(_state_file(self.part), lambda part: part.write_text(text))
        self.done = done


def _state_file(part: Path) -> Path:
    """Beside the unfinished recording, not in it: a zarr directory knows its own files only."""
    return part.with_name(f"{part.name}.json")


def _state(part: Path) -> dict:
    """What an unfinished recording says of itself; {} for anything else."""
    try:
        return json.loads(_state_file(part).read_text())
    except (OSError, ValueError):
        return {}


def _pieces(part: Path, done: int | float = math.inf) -> list[Path]:
    return [file for file in sorted(part.glob("*.nc")) if file.stem.isdigit() and int(file.stem) < done]


def _kind(file: Path) -> str:
    if file.suffix in NETCDF:
        for module in ("h5netcdf", "h5py"):
            if find_spec(module) is None:
                raise MissingExtra(module, "data", "netCDF")
        return "netcdf"
    if file.suffix in ZARR:
        if find_spec("zarr") is None:
            raise MissingExtra("zarr", "data", "zarr")
        return "zarr"
    raise BadValue(f"{file.name}: trajectories are stored as {NETCDF[0]} (netCDF) or {ZARR[0]} (a zarr directory).")


def _check_codecs(folder: Path) -> None:
    if not (folder / "zarr.json").is_file():
        raise BadFile(f"{folder} is not a zarr (version 3) directory.")
    for node in folder.rglob("zarr.json"):
        for codec in json.loads(node.read_text()).get("codecs", ()):
            name = codec if isinstance(codec, str) else codec.get("name")
            if name not in ZARR_CODECS:
                raise BadFile(f"{folder} uses the codec {name!r}; only {', '.join(sorted(ZARR_CODECS))} are read.")
