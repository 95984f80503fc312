"""Paths in the plane: particles from noise to data, with what surrounds them; other data in their principal plane."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import xarray as xr

from explorer.errors import BadValue, UnknownName
from explorer.process.paths import Linear, Path
from explorer.trajectory.coupling import endpoints
from explorer.trajectory.dataset import moved
from explorer.viz.canvas import Backend, Panel, canvas, joined
from explorer.viz.space import canvas3d
from explorer.viz.theme import Theme, angle_colors, ramp, theme_of

Coloring = Literal["angle", "label", "cost"]


def trajectories(
    ds: xr.Dataset,
    *,
    n: int = 150,
    path: Path | None = Linear(),  # noqa: B008 - frozen
    color: Coloring = "angle",
    until: int | None = None,
    field: xr.Dataset | None = None,
    density: xr.Dataset | None = None,
    extent: tuple[float, float, float, float] | None = None,
    title: str = "",
    axes: tuple[str, str] = ("x₁", "x₂"),
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: int = 520,
) -> Any:
    """Figure of two-dimensional paths: rings where they start, dots where they are.

    Args:
        ds: a recording of two-dimensional samples.
        n: at most this many paths, the first ones.
        path: drawn on this path, whose states stay of data size; None draws the recorded states as they are.
        color: by the starting angle (so that couplings can be read), by class, or by |eps - x0|^2.
        until: last time index drawn; None is the end.
        field: from `velocity_field`, drawn as faint arrows; density: from `point_density`, drawn as contours.
        extent: (left, right, bottom, top); by default all recorded points fit, whatever `until` is.
    """
    if ds.x.ndim != 3 or ds.x.shape[2] != 2:
        raise BadValue(f"paths are drawn in the plane, samples have shape {ds.x.shape[2:]}: use projected(ds).")
    th = theme_of(theme)
    drawn = (moved(ds, path) if path is not None else ds).isel(sample=slice(n))
    x = drawn.x.values
    last = ds.sizes["time"] - 1 if until is None else until % ds.sizes["time"]
    colors = _colors(ds.isel(sample=slice(n)), color, th)
    c = canvas(backend, th, titles=(title,), size=(size, size + 40))
    panel = c.panel()
    left, right, bottom, top = extent or _extent(x)
    if density is not None:
        panel.density(density.px.values, density.py.values, density.density.values)
    if field is not None:
        _arrows(panel, field, th)
    for hue in sorted(set(colors)):
        rows = [k for k, h in enumerate(colors) if h == hue]
        panel.line(*joined([x[k, : last + 1] for k in rows]), hue, width=1.2, opacity=0.7)
    panel.points(x[:, 0, 0], x[:, 0, 1], th.muted, size=3.5, mark="ring")
    texts = [
        f"seed {int(s)}" + (f", class {int(k)}" if k >= 0 else "") for s, k in zip(drawn.seed, drawn.label, strict=True)
    ]
    panel.points(x[:, last, 0], x[:, last, 1], colors, size=5.5, texts=texts)
    panel.axes(*axes, equal=True, x_range=(left, right), y_range=(bottom, top))
    at = f", at σ = {float(ds.sigma[last]):.3g}" if until is not None else ""
    return c.finish(f"n = {len(x)} of {ds.sizes['sample']}, NFE {ds.attrs['nfe']}{at}; colour: {_meaning(color)}")


def projected(
    ds: xr.Dataset,
    *,
    basis: xr.Dataset | None = None,
    path: Path | None = Linear(),  # noqa: B008 - frozen
    **options: Any,
) -> Any:
    """The same figure for samples of any shape, seen in the plane of the two largest variations of their end points.

    Args: basis: from `principal_basis`, whose first two components are the plane instead: one frame for several runs.
    """
    drawn = moved(ds, path) if path is not None else ds
    if basis is not None:
        share = float(basis.share[:2].sum())
        options.setdefault("axes", ("component 1", "component 2"))
        title = options.pop("title", f"principal plane ({100 * share:.0f} % of the variance)")
        return trajectories(seen_in(drawn, basis.isel(component=slice(2))), path=None, title=title, **options)
    x = drawn.x.values.reshape(*drawn.x.shape[:2], -1)
    ends = x[:, -1]
    centre = ends.mean(axis=0)
    _, spread, axes = np.linalg.svd(ends - centre, full_matrices=False)
    if len(axes) < 2:
        raise BadValue("a plane needs at least two dimensions and two samples.")
    share = float((spread[:2] ** 2).sum() / max((spread**2).sum(), np.finfo(float).tiny))
    flat = drawn.drop_vars([v for v in drawn.data_vars]).assign(
        x=(("sample", "time", "feature"), (x - centre) @ axes[:2].T)
    )
    options.setdefault("axes", ("component 1", "component 2"))
    title = options.pop("title", f"principal plane of the end points ({100 * share:.0f} % of their variance)")
    return trajectories(flat, path=None, title=title, **options)


def seen_in(ds: xr.Dataset, basis: xr.Dataset) -> xr.Dataset:
    """The states in the coordinates of a basis, from its centre."""
    axes = basis.axes.values.reshape(basis.sizes["component"], -1)
    x = ds.x.values.reshape(*ds.x.shape[:2], -1)
    if x.shape[2] != axes.shape[1]:
        raise BadValue(
            f"this basis is for samples of shape {basis.axes.shape[1:]}, these have {tuple(ds.x.shape[2:])}."
        )
    flat = ds.drop_vars(list(ds.data_vars))
    return flat.assign(x=(("sample", "time", "feature"), (x - basis.centre.values.ravel()) @ axes.T))


def space(
    ds: xr.Dataset,
    basis: xr.Dataset,
    *,
    n: int = 100,
    path: Path | None = Linear(),  # noqa: B008 - frozen
    color: Coloring = "angle",
    until: int | None = None,
    title: str = "",
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: int = 560,
) -> Any:
    """Figure of paths in the three leading components of a basis, to be turned with the mouse (plotly) or seen from a
    corner (matplotlib).

    Args:
        basis: of three components or more, made on the same `path`; see `principal_basis`.
        n, color, until: as in `trajectories`; angles are those of the first two components.
    """
    if basis.sizes["component"] < 3:
        raise BadValue(
            f"space has three dimensions, this basis {basis.sizes['component']}: principal_basis(runs, k=3)."
        )
    th = theme_of(theme)
    drawn = seen_in((moved(ds, path) if path is not None else ds).isel(sample=slice(n)), basis.isel(component=slice(3)))
    x = drawn.x.values
    last = ds.sizes["time"] - 1 if until is None else until % ds.sizes["time"]
    colors = _colors(ds.isel(sample=slice(n)).assign(x=drawn.x), color, th)
    share = 100 * float(basis.share[:3].sum())
    c = canvas3d(backend, th, title or f"three components ({share:.0f} % of the variance)", (size, size))
    for hue in sorted(set(colors)):
        c.line([x[k, : last + 1] for k, h in enumerate(colors) if h == hue], hue)
    c.points(x[:, 0], [th.muted] * len(x), 2.0)
    c.points(x[:, last], colors, 3.5)
    at = f", at σ = {float(ds.sigma[last]):.3g}" if until is not None else ""
    return c.finish(f"n = {len(x)} of {ds.sizes['sample']}, NFE {ds.attrs['nfe']}{at}; colour: {_meaning(color)}")


def _colors(ds: xr.Dataset, color: Coloring, theme: Theme) -> list[str]:
    if color == "angle":
        start = ds.x.values[:, 0]
        return angle_colors(np.arctan2(start[:, 1], start[:, 0]), theme)
    if color == "label":
        return [theme.muted if k < 0 else theme.color(int(k)) for k in ds.label.values]
    if color == "cost":
        return ramp(endpoints(ds).cost.values, theme)[0]
    raise UnknownName("colouring", color, ("angle", "label", "cost"))


def _meaning(color: Coloring) -> str:
    return {"angle": "direction of the noise", "label": "class", "cost": "|ε − x₀|², dark to bright"}[color]


def _extent(x: np.ndarray) -> tuple[float, float, float, float]:
    """A square that holds all points with a margin."""
    low, high = np.nanmin(x, axis=(0, 1)), np.nanmax(x, axis=(0, 1))
    centre, half = (low + high) / 2, max(float((high - low).max()) / 2 * 1.06, 1e-9)
    return centre[0] - half, centre[0] + half, centre[1] - half, centre[1] + half


def _arrows(panel: Panel, field: xr.Dataset, theme: Theme) -> None:
    """Arrows of the field, the longest one cell long: direction and relative speed, heads as two short strokes."""
    px, py = np.meshgrid(field.px.values, field.py.values)
    u, v = field.u.values, field.v.values
    speed = np.hypot(u, v)
    cell = min(np.diff(field.px.values).min(), np.diff(field.py.values).min())
    scale = 0.9 * cell / max(float(np.nanmax(speed)), np.finfo(float).tiny)
    u, v = -u * scale, -v * scale  # toward data: time falls along a run
    lines = []
    for x, y, a, b in zip(px.ravel(), py.ravel(), u.ravel(), v.ravel(), strict=True):
        tip = np.array([x + a / 2, y + b / 2])
        lines.append(np.array([[x - a / 2, y - b / 2], tip]))
        for side in (1, -1):
            lines.append(np.array([tip, tip - 0.3 * np.array([a - side * 0.6 * b, b + side * 0.6 * a])]))
    panel.line(*joined(lines), theme.muted, width=1.0, opacity=0.6)
