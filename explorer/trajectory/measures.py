"""The geometry of `geometry.py` measured on recorded trajectories, with names on its axes.

Time integrals run over unit time (see geometry.py) of the path the states live on. `straightness` on EDM's path
weighs time by sigma and is not the published number of rectified flow: pass `path=Linear()` (or use `moved`) to
compare with it.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import xarray as xr
from torch import Tensor

from explorer.errors import BadValue, UnknownName
from explorer.process.paths import Path
from explorer.trajectory import geometry
from explorer.trajectory.dataset import By, data_of, denoised, noise_of, of_samples, on_path, on_steps, tensor

Of = Literal["x", "x0_hat"]


def _points(ds: xr.Dataset, of: Of, path: Path | None) -> tuple[Tensor, str, str]:
    """Points of the path of the states, or of that of the denoised predictions; prefixes of their names."""
    if of == "x":
        return tensor(on_path(ds, path), "x"), "", ""
    if of != "x0_hat":
        raise UnknownName("what moves", of, ("x", "x0_hat"))
    return denoised(ds), "denoised_", "denoised "  # the same on every path


def curvature(
    ds: xr.Dataset,
    by: By = None,
    *,
    kind: Literal["menger", "tangent"] = "menger",
    path: Path | None = None,
    of: Of = "x",
) -> xr.DataArray | xr.Dataset:
    """Geometric curvature at the inner points: (sample, step), or its mean by step.

    Args:
        kind: "menger" from triples of states, or "tangent" from recorded slopes (a reversal shows as a spike).
        path: measure on this path instead of the recorded one.
        of: "x0_hat" measures the path of the denoised predictions instead, `denoised_curvature` (menger only).
    Returns: per data unit of length; steps 1 to N - 1 (one less of the denoised path).
    """
    if kind not in ("menger", "tangent"):
        raise UnknownName("kind of curvature", kind, ("menger", "tangent"))
    x, name, words = _points(ds, of, path)
    if kind == "menger":
        values = geometry.menger_curvature(x)
    elif of == "x":
        values = geometry.tangent_curvature(tensor(on_path(ds, path), "slope"), x)
    else:
        raise BadValue("the denoised path has no recorded slopes; use kind='menger'.")
    ds, slots = on_path(ds, path), slice(1, x.shape[1] - 1)
    return on_steps(ds, f"{name}curvature", values, f"{words}curvature", "1 / data unit", by, 1, slots)


def straightness(
    ds: xr.Dataset, by: By = None, *, path: Path | None = None, per_dim: bool = False
) -> xr.DataArray | xr.Dataset:
    """S = int |D - dx/dt|^2 over unit time: (sample), 0 exactly at constant velocity.

    Args:
        by: "step" gives the integrand |D - dx/dt|^2 on each step instead, `velocity_gap`; its time mean is S.
        path: measure on this path instead of the recorded one; S depends on it, the published form is on Linear().
        per_dim: divided by the number of dimensions.
    Returns: data units squared. From the points, so biased low on few steps (0 for a single one).
    Source: Liu et al. 2022, arXiv 2209.03003.
    """
    ds = on_path(ds, path)
    x, t = tensor(ds, "x"), torch.as_tensor(ds.t.values)
    scale = 1 / _n_dims(ds) if per_dim else 1.0
    unit = "data unit^2 / dimension" if per_dim else "data unit^2"
    if by is None:
        return of_samples(ds, "straightness", geometry.straightness(x, t) * scale, "straightness S", unit)
    return on_steps(ds, "velocity_gap", geometry.velocity_gap(x, t) * scale, "squared gap to the chord", unit, by)


def turning_angle(
    ds: xr.Dataset, by: By = None, *, path: Path | None = None, of: Of = "x"
) -> xr.DataArray | xr.Dataset:
    """Total turning of each path in radians (sample), or by="step" the mean angle at the inner points.

    Args: of: "x0_hat" measures the path of the denoised predictions instead, `denoised_turning_angle`.
    """
    x, name, words = _points(ds, of, path)
    ds, (angles, clamped) = on_path(ds, path), geometry.turning_angle(x)
    if by is None:
        total = geometry.Guarded(angles.sum(dim=1), clamped)
        return of_samples(ds, f"{name}total_turning", total, f"{words}total turning", "rad")
    values, slots = geometry.Guarded(angles, clamped), slice(1, x.shape[1] - 1)
    return on_steps(ds, f"{name}turning_angle", values, f"{words}turning", "rad", by, 1, slots)


def step_length(ds: xr.Dataset, by: By = None, *, path: Path | None = None, of: Of = "x") -> xr.DataArray | xr.Dataset:
    """Distance moved in each step: (sample, step), or its mean by step, in data units.

    Args: of: "x0_hat" measures from one denoised prediction to the next, one step less: `denoised_step_length`.
    """
    x, name, words = _points(ds, of, path)
    lengths, slots = geometry.norm(geometry.flat(x).diff(dim=1)), slice(0, x.shape[1] - 1)
    return on_steps(on_path(ds, path), f"{name}step_length", lengths, f"{words}step length", "data unit", by, 0, slots)


def arc_chord(ds: xr.Dataset, *, path: Path | None = None) -> xr.DataArray:
    """Arc length over chord: (sample), at least 1."""
    ds = on_path(ds, path)
    return of_samples(ds, "arc_chord", geometry.arc_chord(tensor(ds, "x")), "arc / chord", "1")


def nfss(ds: xr.Dataset, *, path: Path | None = None) -> xr.DataArray:
    """2 (1 - mean cosine between chord and velocity) over time: (sample), in [0, 4]."""
    ds = on_path(ds, path)
    values = geometry.nfss(tensor(ds, "x"), torch.as_tensor(ds.t.values))
    return of_samples(ds, "nfss", values, "normalised flow straightness", "1")


def coupling_cost(ds: xr.Dataset, *, per_dim: bool = False) -> xr.DataArray:
    """|eps - x0|^2 between the noise a run started from and its end in data units: (sample), summed over dimensions.

    Args: per_dim: divided by the number of dimensions.
    """
    cost = geometry.coupling_cost(noise_of(ds), data_of(ds))
    if per_dim:
        return of_samples(
            ds, "coupling_cost", cost / _n_dims(ds), "coupling cost |eps - x0|^2 / D", "data unit^2 / dimension"
        )
    return of_samples(ds, "coupling_cost", cost, "coupling cost |eps - x0|^2", "data unit^2")


def sampling_discrepancy(ds: xr.Dataset, *, per_dim: bool = False) -> xr.DataArray:
    """|x_multi - x_one|, the end of each run against a single Euler step from the same noise: (sample), data units.

    One step of Euler to sigma = 0, on the EDM and the linear path alike, lands on the denoised prediction at the start,
    which the recording has: nothing is run again. Two recordings are compared by `end_distance`.

    Args: per_dim: the root mean square over dimensions instead of the norm.
    Source: the discrepancy between one and many steps of Liu et al. 2022, arXiv 2209.03003.
    """
    one, many = denoised(ds.isel(time=slice(2), step=slice(1)))[:, 0], data_of(ds)
    gap = (geometry.flat(many, 1) - geometry.flat(one, 1)).norm(dim=1)
    scale = 1 / math.sqrt(_n_dims(ds)) if per_dim else 1.0
    unit = "data unit / sqrt(dimension)" if per_dim else "data unit"
    return of_samples(ds, "sampling_discrepancy", gap * scale, "distance of one step from all", unit)


def _n_dims(ds: xr.Dataset) -> int:
    return math.prod(ds.x.shape[2:])


def crossings(ds: xr.Dataset) -> xr.Dataset:
    """Where the straight lines from noise to sample cross, counted exactly in the plane.

    Returns:
        `pair` (crossing, end) sample positions, `where` (crossing, end) position on each line from noise 0 to data 1,
        `point` (crossing, feature); attributes n (samples), n_crossings and fraction of all pairs.
    """
    found = geometry.line_crossings(noise_of(ds), data_of(ds))
    n = ds.sizes["sample"]
    return xr.Dataset(
        {
            "pair": (("crossing", "end"), found.pairs.numpy()),
            "where": (("crossing", "end"), found.where.numpy()),
            "point": (("crossing", "feature"), found.points.numpy()),
        },
        attrs={"n": n, "n_crossings": len(found.pairs), "fraction": len(found.pairs) / max(1, n * (n - 1) // 2)},
    )


def conflict(ds: xr.Dataset, n_times: int = 20, *, n_neighbours: int = 1) -> xr.Dataset:
    """Conflict of the coupling (noise, sample) by time of the linear path, from nearest neighbours: `conflict` (time).

    An estimate of E|(eps - x0) - E[eps - x0 | x_t]|^2 that needs no model; its mean over t estimates the degree of
    intersection V. Memory S^2.
    """
    noise, data = geometry.flat(noise_of(ds), 1), geometry.flat(data_of(ds), 1)
    t = (torch.arange(n_times, dtype=torch.float64) + 0.5) / n_times
    x_t = (1 - t)[None, :, None] * data[:, None] + t[None, :, None] * noise[:, None]
    value, n_pairs = geometry.neighbour_conflict(x_t, noise - data, n_neighbours=n_neighbours)
    attrs = {"long_name": "conditional variance of eps - x0", "units": "data unit^2"}
    return xr.Dataset(
        {"conflict": ("time", value.numpy(), attrs), "n_pairs": ("time", n_pairs.numpy())},
        coords={"t": ("time", t.numpy()), "sigma": ("time", (t / (1 - t)).numpy())},
        attrs={"n": ds.sizes["sample"], "mean": float(value.mean())},
    )


def angle_proxy(ds: xr.Dataset, *, path: Path | None = None, n: int | None = 1000) -> xr.Dataset:
    """Angle between the slope at one time and the mean velocity to each later time: `angle`, `angle_se` (start, end).

    Args: n: over at most the first n samples, since the work grows with the square of the number of times; None is all.
    Source: Re-MeanFlow, arXiv 2511.23342, Curv(r, t).
    """
    ds = on_path(ds.isel(sample=slice(n)), path)
    mean, error, clamped = geometry.angle_proxy(tensor(ds, "x"), tensor(ds, "slope"), torch.as_tensor(ds.t.values))
    return xr.Dataset(
        {"angle": (("start", "end"), mean.numpy(), {"units": "rad"}), "angle_se": (("start", "end"), error.numpy())},
        coords={
            "t_start": ("start", ds.t.values),
            "t_end": ("end", ds.t.values),
            "sigma_start": ("start", ds.sigma.values),
            "sigma_end": ("end", ds.sigma.values),
        },
        attrs={"n": ds.sizes["sample"], "n_clamped": int(clamped.sum())},
    )
