"""Trajectories as labelled data: the schema, and the two forms of what is measured on them.

A trajectory is an `xarray.Dataset`:

| variable | dims | what |
| --- | --- | --- |
| `x` | sample, time, feature dims | states on the path of the sampler, first the scaled noise, last the samples |
| `slope` | sample, step, feature dims | dx/dt at the start of each step (after any added noise) |
| `x0_hat` | sample, step, feature dims | E[x0 | x] at the start of each step |
| `error` | sample, step, feature dims | the solver's embedded error estimate, NaN where it has none |

Coordinates: `t`, `sigma` (EDM's), `alpha` on time; `t_mid`, `nfe` (evaluations up to and including the step) on step; `seed` and `label`
(-1: none) on sample. Attributes: `schema_version`, `path` and `sampler` (JSON), `model` (name), `nfe`. Feature dims are `feature` for
vectors and `channel, row, col` for images (`x` and `y` would collide with the variable).

Two result forms. *Per sample*: a DataArray with a `sample` dimension. *By step*: a Dataset with `<name>` and
`<name>_se` over `step`, the mean and its standard error over samples, with coordinates `t` and `sigma` of the place
the number belongs to and `n` in the attributes; `RunningGeometry` gives the same form. A quantity on step i belongs
to the start of that step; curvature and turning belong to the inner points, so they begin at step 1.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from explorer.errors import BadFile, BadValue, UnknownName
from explorer.process.paths import PATHS, Path
from explorer.trajectory import geometry

SCHEMA = "explorer.trajectory"
SCHEMA_VERSION = 1
ON_TIME, ON_STEP = ("x",), ("slope", "x0_hat", "error")
STORED = (*ON_TIME, *ON_STEP)


def feature_dims(shape: Sequence[int]) -> tuple[str, ...]:
    """Names of the dimensions of one sample: feature | channel, row, col | dim_0, dim_1, ..."""
    if len(shape) == 1:
        return ("feature",)
    return ("channel", "row", "col") if len(shape) == 3 else tuple(f"dim_{i}" for i in range(len(shape)))


def path_to_json(path: Path) -> str:
    """A path as text; `path_from_json` reads it back."""
    for name, cls in PATHS.items():
        if type(path) is cls:
            return json.dumps({"name": name, **dataclasses.asdict(path)})
    raise BadValue(f"{type(path).__name__} has no stored form; known: {', '.join(PATHS)}.")


def path_from_json(text: str) -> Path:
    fields = json.loads(text)
    name = fields.pop("name", None)
    if name not in PATHS:
        raise UnknownName("path", name, PATHS)
    return PATHS[name](**fields)


def trajectory(
    variables: Mapping[str, Tensor | np.ndarray],
    t: Sequence[float],
    path: Path,
    *,
    seeds: Sequence[int] | None = None,
    labels: Sequence[int] | None = None,
    nfe: Sequence[int] | None = None,
    sampler: str = "",
    model: str = "",
    total_nfe: int | None = None,
    turning: bool = False,
) -> xr.Dataset:
    """A trajectory dataset from arrays (no copies are made).

    Args:
        variables: `x` (S, T, ...) and any of `slope`, `x0_hat`, `error` (S, T - 1, ...).
        t: T times of `path`, from noise to data or back, strictly monotone.
        seeds, labels: S integers each; by default 0, 1, ... and -1.
        nfe: evaluations spent by the end of each step; by default unknown (-1).
        sampler: JSON of the sampler; model: name; total_nfe: evaluations per sample of a whole run.
        turning: allow times that go up again, as those of a sampler with restarts; see `pieces`.
    Raises:
        UnknownName, BadValue: a variable outside the schema, shapes that do not fit each other, or times that turn
            back.
    """
    for name in variables:
        if name not in STORED:
            raise UnknownName("trajectory variable", name, STORED)
    if "x" not in variables:
        raise BadValue("a trajectory needs its states x (samples, times, ...).")
    arrays = {k: v.numpy(force=True) if isinstance(v, Tensor) else np.asarray(v) for k, v in variables.items()}
    n, n_times, *shape = arrays["x"].shape
    dims = feature_dims(shape)
    times = np.asarray(t, dtype=np.float64)
    if times.shape != (n_times,):
        raise BadValue(f"x has {n_times} time points, so t must have as many, got shape {times.shape}.")
    if not turning:
        geometry.time_weights(torch.from_numpy(times))
    for name in arrays.keys() & set(ON_STEP):
        if arrays[name].shape != (n, n_times - 1, *shape):
            raise BadValue(f"{name} must be {(n, n_times - 1, *shape)} to fit x, got {arrays[name].shape}.")
    alpha = np.array([path.at(float(s))[0] for s in times])
    sigma = np.array([path.ratio_at(float(s)) for s in times])
    coords = {
        "t": ("time", times),
        "sigma": ("time", sigma),
        "alpha": ("time", alpha),
        "t_mid": ("step", (times[:-1] + times[1:]) / 2),
        "nfe": ("step", np.full(n_times - 1, -1, dtype=np.int64) if nfe is None else np.asarray(nfe, dtype=np.int64)),
        "seed": ("sample", np.arange(n) if seeds is None else np.asarray(seeds, dtype=np.int64)),
        "label": ("sample", np.full(n, -1, dtype=np.int64) if labels is None else np.asarray(labels, dtype=np.int64)),
    }
    attrs = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "path": path_to_json(path),
        "sampler": sampler,
        "model": model,
        "nfe": -1 if total_nfe is None else int(total_nfe),
    }
    data = {k: (("sample", "time" if k in ON_TIME else "step", *dims), v) for k, v in arrays.items()}
    return xr.Dataset(data, coords, attrs)


def validate(ds: xr.Dataset) -> xr.Dataset:
    """The dataset itself when it follows the schema.

    Raises:
        BadFile: it is not a trajectory, or of a newer schema; the message says what is missing.
    """
    if ds.attrs.get("schema") != SCHEMA:
        raise BadFile(f"not a trajectory: attribute schema is {ds.attrs.get('schema')!r}, expected {SCHEMA!r}.")
    if int(ds.attrs.get("schema_version", 0)) > SCHEMA_VERSION:
        raise BadFile(
            f"trajectory schema {ds.attrs['schema_version']} is newer than this version reads ({SCHEMA_VERSION}): upgrade explorer."
        )
    missing = [name for name in ("x",) if name not in ds.data_vars]
    missing += [name for name in ("t", "sigma", "alpha", "t_mid", "nfe", "seed", "label") if name not in ds.coords]
    missing += [name for name in ("path", "sampler", "model", "nfe") if name not in ds.attrs]
    if missing:
        raise BadFile(f"this trajectory lacks {', '.join(missing)}.")
    for name in ds.data_vars:
        if name not in STORED:
            raise BadFile(f"unknown trajectory variable {name!r}; known: {', '.join(STORED)}.")
        expected = ("sample", "time" if name in ON_TIME else "step")
        if ds[name].dims[:2] != expected:
            raise BadFile(f"{name} has dimensions {ds[name].dims}, expected {expected} first.")
    if ds.sizes["time"] != ds.sizes.get("step", 0) + 1:
        raise BadFile(
            f"{ds.sizes['time']} time points need {ds.sizes['time'] - 1} steps, got {ds.sizes.get('step', 0)}."
        )
    return ds


def path_of(ds: xr.Dataset) -> Path:
    """The path the states live on."""
    return path_from_json(ds.attrs["path"])


def tensor(ds: xr.Dataset, name: str) -> Tensor:
    """A variable as a torch tensor (S, T or N, ...), sharing memory.

    Raises: BadValue when it was not recorded; the message says how to get it.
    """
    if name not in ds:
        raise BadValue(
            f"{name!r} was not recorded: record(..., keep=(..., {name!r})). Present: {', '.join(ds.data_vars)}."
        )
    return torch.as_tensor(ds[name].values)


def noise_of(ds: xr.Dataset) -> Tensor:
    """The standard normal noise that each run started from: (S, ...)."""
    return tensor(ds, "x")[:, 0].double() / path_of(ds).at(float(ds.t[0]))[1]


def data_of(ds: xr.Dataset) -> Tensor:
    """The end of each run in data units: (S, ...), x / alpha at the last time."""
    return tensor(ds, "x")[:, -1].double() / path_of(ds).at(float(ds.t[-1]))[0]


def along(values: Sequence[float] | Tensor, like: Tensor) -> Tensor:
    """Numbers by time or step, shaped to broadcast against (S, T, ...)."""
    values = values if isinstance(values, Tensor) else torch.tensor(list(values), dtype=torch.float64)
    return values.reshape(-1, *(1,) * (like.ndim - 2))


def pieces(ds: xr.Dataset) -> list[xr.Dataset]:
    """The parts of a run along which time falls, in order: the run itself where it never turns.

    A restart's jump back to noise lies inside the first step of its repeat, which belongs to no part.
    """
    falls = np.diff(ds.t.values) < 0
    edges = np.flatnonzero(np.diff(np.concatenate(([False], falls, [False])).astype(int)))
    return [
        ds.isel(time=slice(a, b + 1), step=slice(a, b)) for a, b in zip(edges[::2], edges[1::2], strict=True) if b > a
    ]


def denoised(ds: xr.Dataset) -> Tensor:
    """E[x0 | x] at the start of each step, (S, N, ...) float64, recorded or from the recorded slopes.

    Raises: BadValue where neither was recorded.
    """
    if "x0_hat" in ds:
        return tensor(ds, "x0_hat").double()
    if "slope" not in ds:
        raise BadValue("neither 'x0_hat' nor 'slope' was recorded: record(..., keep=('x', 'x0_hat')).")
    path, x, slope = path_of(ds), tensor(ds, "x").double(), tensor(ds, "slope").double()
    a, b = zip(*(path.convert("velocity", "x0", float(t)) for t in ds.t[:-1]), strict=True)
    return along(a, x) * x[:, :-1] + along(b, x) * slope


def moved(ds: xr.Dataset, path: Path) -> xr.Dataset:
    """The same trajectory drawn on another path: equal sigma/alpha, x times alpha'/alpha, times and slopes to match.

    Raises: BadValue where one of the paths is pure noise (alpha = 0), which carries no sigma.
    """
    old = path_of(ds)
    if old == path:
        return ds
    ratios = [old.ratio_at(float(t)) for t in ds.t]
    times = [path.time_at(r) for r in ratios]
    scale = [path.at(new)[0] / alpha if alpha else math.nan for new, alpha in zip(times, ds.alpha.values, strict=True)]
    if not all(map(math.isfinite, [*ratios, *scale])) or 0.0 in scale:
        raise BadValue(f"{old} at t = {float(ds.t[0]):g} is pure noise and cannot be moved to {path}.")

    x = tensor(ds, "x").double()
    variables = {"x": x * along(scale, x)}
    if "x0_hat" in ds:
        variables["x0_hat"] = denoised(ds)
    if "slope" in ds:
        a, b = zip(*(path.convert("x0", "velocity", t) for t in times[:-1]), strict=True)
        variables["slope"] = along(a, x) * variables["x"][:, :-1] + along(b, x) * denoised(ds)
    out = trajectory(
        variables,
        times,
        path,
        seeds=ds.seed.values,
        labels=ds.label.values,
        nfe=ds.nfe.values,
        sampler=ds.attrs["sampler"],
        model=ds.attrs["model"],
        total_nfe=ds.attrs["nfe"],
    )
    return out.assign_attrs({k: v for k, v in ds.attrs.items() if k not in out.attrs})


def mean_and_error(values: xr.DataArray) -> xr.Dataset:
    """Mean over samples and its standard error: `<name>` and `<name>_se`, with `n` in the attributes."""
    n = values.sizes["sample"]
    error = values.std("sample", ddof=1) / math.sqrt(n) if n > 1 else values.mean("sample") * math.nan
    out = xr.Dataset({values.name: values.mean("sample"), f"{values.name}_se": error})
    for name in out.data_vars:
        out[name].attrs = dict(values.attrs)
    return out.assign_attrs(n=n)


def merged(parts: Sequence[xr.Dataset | xr.DataArray]) -> xr.Dataset:
    """Results over the same run as one dataset."""
    return xr.merge(parts, compat="override", join="outer", combine_attrs="drop_conflicts")


By = Literal["step"] | None


def on_path(ds: xr.Dataset, path: Path | None) -> xr.Dataset:
    return ds if path is None else moved(ds, path)


def of_samples(ds: xr.Dataset, name: str, values: Tensor | geometry.Guarded, long_name: str, unit: str) -> xr.DataArray:
    clamped = None
    if isinstance(values, geometry.Guarded):
        values, clamped = values
    attrs = {"long_name": long_name, "units": unit}
    if clamped is not None:
        attrs["n_clamped"] = int(clamped.sum())
    coords = {"seed": ds.seed, "label": ds.label}
    return xr.DataArray(values.numpy(), dims="sample", coords=coords, name=name, attrs=attrs)


def on_steps(
    ds: xr.Dataset,
    name: str,
    values: Tensor | geometry.Guarded,
    long_name: str,
    unit: str,
    by: By,
    first: int = 0,
    slots: slice = slice(None, -1),
) -> xr.DataArray | xr.Dataset:
    """(S, n) numbers labelled with the steps first, first + 1, ... and the time points in `slots`."""
    clamped = None
    if isinstance(values, geometry.Guarded):
        values, clamped = values
    attrs = {"long_name": long_name, "units": unit}
    if clamped is not None:
        attrs["n_clamped"] = int(clamped.sum())
    coords = {
        "step": np.arange(first, first + values.shape[1]),
        "t": ("step", ds.t.values[slots]),
        "sigma": ("step", ds.sigma.values[slots]),
        "seed": ds.seed,
        "label": ds.label,
    }
    out = xr.DataArray(values.numpy(), dims=("sample", "step"), coords=coords, name=name, attrs=attrs)
    if by is None:
        return out
    if by != "step":
        raise UnknownName("grouping", by, ("step",))
    return mean_and_error(out)
