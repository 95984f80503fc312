"""Trajectories on disk: netCDF files and zarr directories, written whole or not at all, read back exactly.

Reading executes nothing: netCDF holds numbers and text, and of zarr only the plain codecs are accepted.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import xarray as xr

from explorer.errors import BadFile, BadValue, MissingExtra
from explorer.trajectory.dataset import validate

NETCDF = (".nc", ".netcdf", ".nc4")
ZARR = (".zarr",)
# zarr can name codecs that unpickle; these cannot
ZARR_CODECS = {"bytes", "zstd", "blosc", "gzip", "crc32c", "transpose", "vlen-utf8", "vlen-bytes"}


def save(ds: xr.Dataset, file: str | os.PathLike) -> Path:
    """Writes a trajectory to `*.nc` (one netCDF file) or `*.zarr` (a directory), replacing what is there, and returns
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
        validate(ds)
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


def load(file: str | os.PathLike) -> xr.Dataset:
    """The trajectory that `save` wrote, in memory.

    Raises:
        BadFile: missing, truncated, or not a trajectory of a schema this version reads.
        MissingExtra, BadValue: as in `save`.
    """
    file = Path(file)
    kind = _kind(file)
    if not file.exists():
        raise BadFile(f"no trajectory at {file}.")
    try:
        if kind == "netcdf":
            with xr.open_dataset(file, engine="h5netcdf") as stored:
                ds = stored.load()
        else:
            _check_codecs(file)
            with xr.open_zarr(file, consolidated=False, chunks=None) as stored:
                ds = stored.load()
    except BadFile:
        raise
    except Exception as error:  # h5py, zarr and the codecs each raise their own kinds
        raise BadFile(f"{file} cannot be read as {kind}: {error}") from error
    ds.attrs = {k: v.item() if isinstance(v, np.generic) else v for k, v in ds.attrs.items()}
    for name in ds.variables:
        ds[name].encoding = {}
    ds.encoding = {}
    return validate(ds)


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
