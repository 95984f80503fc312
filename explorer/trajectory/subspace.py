"""How many dimensions a run lives in: principal components of its points, distance from its chord, torsion.

Sampling paths of images stay close to a few dimensions of the thousands they could use. Here is how close: of each path
by itself, of all together, and where in the run. A `basis` is a small dataset that can be stored and used again, so that
runs of different samplers are drawn in one frame.

Every recorded point counts alike, so the numbers belong to a grid: compare runs over the same one.
Legend: S samples, T time points, D features, K components.
Source: Chen et al. 2024, arXiv 2405.11326 (deviation from the chord, principal components and torsion of sampling
trajectories).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from explorer.errors import BadFile, BadValue, UnknownName
from explorer.process.paths import Path
from explorer.trajectory import geometry
from explorer.trajectory.dataset import By, feature_dims, mean_and_error, of_samples, on_path, on_steps, tensor
from explorer.trajectory.geometry import Guarded, flat

BASIS = "explorer.basis"
BASIS_VERSION = 1
Of = Literal["points", "ends"]


def path_spectrum(x: Tensor) -> Tensor:
    """Variances of each path's own points along its principal axes: (S, T, ...) -> (S, min(T, D)), falling.

    About the path's own mean, in data units squared; their sum is the total variance of the points.
    """
    x = flat(x)
    return _variances(x)


def _variances(points: Tensor) -> Tensor:
    """Variances along the principal axes of point sets (..., n, D), falling."""
    centred = points - points.mean(dim=-2, keepdim=True)
    return torch.linalg.svdvals(centred).square() / points.shape[-2]


def spectrum(points: Tensor) -> Tensor:
    """Variances of points along their principal axes: (n, ...) -> (min(n, D),), falling."""
    return _variances(flat(points, 1))


def participation_ratio(variances: Tensor) -> Tensor:
    """(sum v)^2 / sum v^2 along the last dimension, from 1 (a line) to the number of equal variances; 0 for a point."""
    total, squares = variances.sum(dim=-1), variances.square().sum(dim=-1)
    return torch.where(squares > 0, total.square() / squares.clamp_min(torch.finfo(squares.dtype).tiny), 0.0)


def n_components(variances: Tensor, share: float) -> Tensor:
    """How many of the leading variances make up this share of their sum: (..., K) falling -> (...) int64; 0 for a point."""
    if not 0 < share <= 1:
        raise BadValue(f"a share of the variance lies between 0 and 1, got {share}.")
    total = variances.sum(dim=-1, keepdim=True)
    reached = variances.cumsum(dim=-1) >= share * total * (1 - 1e-12)
    return torch.where(total.squeeze(-1) > 0, reached.to(torch.int64).argmax(dim=-1) + 1, 0)


def chord_distance(x: Tensor) -> Guarded:
    """Distance of each point from the line through the two ends of its path: (S, T, ...) -> (S, T), data units.

    0 everywhere on straight paths, at any speed. A closed path has no chord: the distance from its start, counted.
    """
    x = flat(x)
    along, closed = geometry._units(geometry.chord(x), geometry._rounding(x).squeeze(1))
    away = x - x[:, :1]
    away = away - geometry.dot(away, along[:, None])[:, :, None] * along[:, None]
    return Guarded(geometry.norm(away), closed.to(torch.int64))


def torsion(x: Tensor) -> Guarded:
    """How fast the plane of the path turns: (S, T, ...) -> (S, T - 3), radians per data unit, at the inner steps.

    The angle between the planes of two successive triples of points over the arc between their middles, O(step^2). Three
    edges span three dimensions whatever D is, so this is defined in all of them; in D = 3 it has the sign of the
    right-handed screw, elsewhere none. 0 on plane curves. Where three points lie on a line (no plane) 0, counted.
    """
    x = flat(x)
    edges = x.diff(dim=1)
    if edges.shape[1] < 3:
        raise BadValue(f"torsion needs at least four points, got {x.shape[1]}.")
    if edges.shape[2] == 1:
        none = torch.ones(len(x), edges.shape[1] - 2, dtype=torch.bool, device=x.device)
        return Guarded(torch.zeros_like(none, dtype=x.dtype), none.sum(dim=1))
    size, tiny = geometry.norm(edges), geometry._rounding(x)
    middle, resting = geometry._units(edges[:, 1:-1], tiny)

    def across(edge: Tensor) -> Tensor:
        return edge - geometry.dot(edge, middle)[..., None] * middle

    before, after = across(edges[:, :-2]), across(edges[:, 2:])
    first, none = geometry._units(-before, tiny)
    second, also = geometry._units(after, tiny)
    turn = geometry.angle(first, second)
    if x.shape[2] == 3:
        side = torch.linalg.vecdot(middle, torch.linalg.cross(first, second))
        turn = torch.where(side < 0, -turn, turn)
    none = none | also | resting
    length = (size[:, :-2] + size[:, 1:-1] + size[:, 2:]) / 3
    return Guarded(torch.where(none, 0.0, turn / length.clamp_min(torch.finfo(x.dtype).tiny)), none.sum(dim=1))


def effective_dimension(ds: xr.Dataset, by: Literal["all"] | None = None, *, path: Path | None = None) -> xr.Dataset:
    """How many dimensions the paths use, each by itself (sample), or by="all" its means and those of all points together.

    Args:
        path: measure on this path instead of the recorded one. The share of the noise in the points, and with it the
            spectrum, depends on it.
    Returns:
        `participation` (participation ratio), `n90` and `n99` (components for 90 and 99 % of the variance), `variance`
        (component) the share of each component of a path's own points, in per sample form (sample, component).
        by="all": their means with `<name>_se`, and of all points of all paths about one mean `pooled_participation`,
        `pooled_n90`, `pooled_n99`, `pooled_variance` (component).
    """
    ds = on_path(ds, path)
    x = tensor(ds, "x")
    variances = path_spectrum(x)
    shares = variances / variances.sum(dim=1, keepdim=True).clamp_min(torch.finfo(variances.dtype).tiny)
    numbers = {
        "participation": (participation_ratio(variances), "participation ratio"),
        "n90": (n_components(variances, 0.9).double(), "components for 90 % of the variance"),
        "n99": (n_components(variances, 0.99).double(), "components for 99 % of the variance"),
    }
    arrays = [of_samples(ds, key, value, name, "1") for key, (value, name) in numbers.items()]
    out = xr.Dataset({a.name: a if by is None else mean_and_error(a)[a.name] for a in arrays})
    rank = {"component": np.arange(1, shares.shape[1] + 1)}
    attrs = {"long_name": "share of the variance", "units": "1"}
    per_path = xr.DataArray(shares.numpy(), dims=("sample", "component"), coords=rank, name="variance", attrs=attrs)
    if by is None:
        return out.assign(variance=per_path).assign_attrs(n=ds.sizes["sample"])
    if by != "all":
        raise UnknownName("grouping", by, ("all",))
    for array in arrays:
        out[f"{array.name}_se"] = mean_and_error(array)[f"{array.name}_se"]
    out = out.assign(dict(mean_and_error(per_path).data_vars))
    together = spectrum(flat(x).flatten(0, 1))
    share = together / together.sum().clamp_min(torch.finfo(together.dtype).tiny)
    out["pooled_participation"] = float(participation_ratio(together))
    out["pooled_n90"], out["pooled_n99"] = (int(n_components(together, s)) for s in (0.9, 0.99))
    out["pooled_variance"] = ("pooled", share.numpy(), attrs)
    return out.assign_coords(pooled=np.arange(1, len(share) + 1)).assign_attrs(n=ds.sizes["sample"])


def deviation(ds: xr.Dataset, by: By = None, *, path: Path | None = None) -> xr.DataArray | xr.Dataset:
    """Distance from the chord at the start of each step: (sample, step), data units, or its mean by step."""
    ds = on_path(ds, path)
    values, clamped = chord_distance(tensor(ds, "x"))
    return on_steps(ds, "deviation", Guarded(values[:, :-1], clamped), "distance from the chord", "data unit", by)


def torsion_of(
    ds: xr.Dataset, by: By = None, *, basis: xr.Dataset | None = None, path: Path | None = None
) -> xr.DataArray | xr.Dataset:
    """Torsion at the inner steps 1 to N - 2: (sample, step), radians per data unit, or its mean by step.

    Args:
        basis: of three components: measure in it, with a sign; None measures in all dimensions, without.
    """
    ds = on_path(ds, path)
    if basis is not None:
        ds = project(ds, basis)
    return on_steps(ds, "torsion", torsion(tensor(ds, "x")), "torsion", "rad / data unit", by, 1, slice(1, -2))


def principal_basis(
    runs: xr.Dataset | Sequence[xr.Dataset], k: int = 3, *, of: Of = "points", path: Path | None = None
) -> xr.Dataset:
    """The K axes along which the points of one or several runs vary most: a basis to draw them all in.

    Args:
        of: "points" of all paths, or their "ends" (the samples) alone.
        path: the path on which the axes are found, and on which they should be used; None is the recorded one.
    Returns:
        `axes` (component, feature dims) orthonormal, the entry of largest size of each positive; `centre` (feature
        dims) the mean, `variance` (component) along each axis and `share` of the whole; attribute n (points).
        `save` and `load` keep it.
    Raises: BadValue for more components than dimensions or points.
    """
    runs = [on_path(ds, path) for ds in ([runs] if isinstance(runs, xr.Dataset) else runs)]
    if not runs or len({tuple(ds.x.shape[2:]) for ds in runs}) != 1:
        raise BadValue("a shared basis needs runs of one shape.")
    if of not in ("points", "ends"):
        raise UnknownName("what a basis is made of", of, ("points", "ends"))
    shape = runs[0].x.shape[2:]
    points = torch.cat([flat(tensor(ds, "x"))[:, slice(None) if of == "points" else slice(-1, None)] for ds in runs])
    points = points.flatten(0, 1)
    centre = points.mean(dim=0)
    n, d = points.shape
    if not 1 <= k <= min(n, d):
        raise BadValue(f"{n} points in {d} dimensions have 1 to {min(n, d)} components, got k={k}.")
    centred = points - centre
    if n > d:  # the smaller of the two products; the axes are wanted, not the last digits of small variances
        values, vectors = torch.linalg.eigh(centred.mT @ centred / n)
        variances, axes = values.flip(0).clamp_min(0.0), vectors.flip(1).mT
    else:
        _, sizes, axes = torch.linalg.svd(centred, full_matrices=False)
        variances = sizes.square() / n
    axes = axes[:k]
    axes = axes * axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)).sign()
    dims = feature_dims(shape)
    total = max(float(centred.square().sum()) / n, torch.finfo(torch.float64).tiny)
    return xr.Dataset(
        {
            "axes": (("component", *dims), axes.reshape(k, *shape).numpy()),
            "centre": (dims, centre.reshape(tuple(shape)).numpy()),
            "variance": ("component", variances[:k].numpy(), {"units": "data unit^2"}),
            "share": ("component", (variances[:k] / total).numpy(), {"long_name": "share of the variance"}),
        },
        attrs={"schema": BASIS, "schema_version": BASIS_VERSION, "n": n, "of": of},
    )


def validate_basis(basis: xr.Dataset) -> xr.Dataset:
    """The basis itself when it is one.

    Raises: BadFile.
    """
    if basis.attrs.get("schema") != BASIS or int(basis.attrs.get("schema_version", 0)) > BASIS_VERSION:
        raise BadFile(f"not a basis of version {BASIS_VERSION}: {basis.attrs.get('schema')!r}.")
    for name in ("axes", "centre"):
        if name not in basis:
            raise BadFile(f"this basis lacks {name}.")
    if basis.axes.shape[1:] != basis.centre.shape:
        raise BadFile(f"axes {basis.axes.shape} and centre {basis.centre.shape} of this basis do not fit.")
    return basis


def axes_of(basis: xr.Dataset, shape: Sequence[int]) -> Tensor:
    """The axes (K, D) for samples of this shape.

    Raises: BadValue where the basis belongs to another.
    """
    axes = torch.as_tensor(validate_basis(basis).axes.values, dtype=torch.float64)
    if tuple(axes.shape[1:]) != tuple(shape):
        raise BadValue(f"this basis is for samples of shape {tuple(axes.shape[1:])}, these have {tuple(shape)}.")
    return axes.flatten(1)


def project(ds: xr.Dataset, basis: xr.Dataset) -> xr.Dataset:
    """The run seen in a basis: a trajectory of K features, by the linear map alone (the centre is not taken away).

    Linear, so that slopes, denoised points, chords and moves to other paths are those of the projected run.
    """
    shape = ds.x.shape[2:]
    axes = axes_of(basis, shape).numpy()
    out = ds.drop_vars(list(ds.data_vars))
    for name, values in ds.data_vars.items():
        lead = values.dims[:2]
        out[name] = ((*lead, "feature"), values.values.reshape(*values.shape[:2], math.prod(shape)) @ axes.T)
    return out.assign_attrs(projected_from=str(list(shape)))
