"""Curves by step on one spine, sigma from noise (left) to data (right): curvature, straightness, errors, grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from explorer.errors import BadValue
from explorer.viz.canvas import SIGMA, Backend, Panel, canvas
from explorer.viz.theme import Theme, theme_of

Settings = xr.Dataset | Mapping[str, xr.Dataset]


def by_step(
    data: Settings,
    quantities: Sequence[str] | None = None,
    *,
    pinned: str | None = None,
    ticks: bool = True,
    sigma_range: tuple[float, float] | None = None,
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] | None = None,
) -> Any:
    """Figure of numbers by step against sigma, one panel per quantity, bands of one standard error over samples.

    Args:
        data: what `curvature(ds, by="step")` and the like or `RunningGeometry.result` return, or several by their
            setting.
        quantities: which and in which order; by default all that are by step.
        pinned: the setting drawn in the colour of the text.
        ticks: a last panel with the grid of each setting.
        sigma_range: (low, high) of the axis, to keep the frame when data change.
    """
    settings = {"": data} if isinstance(data, xr.Dataset) else dict(data)
    th = theme_of(theme)
    names = list(quantities or dict.fromkeys(name for ds in settings.values() for name in by_step_names(ds)))
    if not settings or not names:
        raise BadValue("nothing is by step here: pass curvature(ds, by='step') or RunningGeometry(path).result().")
    for label, ds in settings.items():
        if "sigma" not in ds.coords:
            raise BadValue(
                f"{label or 'the data'} has no sigma: make RunningGeometry with path=sampler.path_on(model)."
            )
    first = next(iter(settings.values()))
    titles = [_title(next((ds[n] for ds in settings.values() if n in ds), first)) for n in names]
    heights = [1.0] * len(names)
    if ticks:
        titles.append("time grid")
        heights.append(0.16 + 0.1 * len(settings))
    sigma_range = sigma_range or sigma_spread([ds.sigma.values for ds in settings.values()])
    size = size or (720, 80 + round(170 * sum(heights)))
    c = canvas(backend, th, titles=titles, share_x=True, heights=heights, size=size)
    colors = setting_colors(list(settings), th, pinned)
    for i, name in enumerate(names):
        panel, drawn = c.panel(i), []
        for label, ds in settings.items():
            if name in ds:
                drawn.append(_curve(panel, ds, name, colors[label], label if i == 0 else ""))
        values = np.concatenate([v[np.isfinite(v)] for v in drawn]) if drawn else np.zeros(0)
        positive = values[values > 0]
        log_y = len(positive) > 1 and len(positive) == len(values) and positive.max() > 300 * positive.min()
        # What is rounding is not worth the height: eight decades are shown at most.
        deep = log_y and positive.min() < 1e-8 * positive.max()
        y_range = (1e-8 * positive.max(), 2 * positive.max()) if deep else None
        unit = next((ds[name].attrs.get("units", "") for ds in settings.values() if name in ds), "")
        unit = unit.replace("^2", "²")
        last = i == len(titles) - 1
        panel.axes(
            SIGMA if last else "", unit, log_x=True, log_y=log_y, reverse_x=True, x_range=sigma_range, y_range=y_range
        )
    if ticks:
        draw_grids(c.panel(len(names)), {k: ds.sigma.values for k, ds in settings.items()}, colors, sigma_range)
    counts = ", ".join(
        f"n = {ds.attrs['n']}" + (f" ({label})" if len(settings) > 1 else "") for label, ds in settings.items()
    )
    return c.finish(f"{counts}; bands: ± 1 standard error over samples")


def by_step_names(ds: xr.Dataset) -> list[str]:
    """Quantities of the dataset that are by step (or by time point) and come with their error."""
    return [n for n in ds.data_vars if f"{n}_se" in ds and ds[n].dims in (("step",), ("time",))]


def setting_colors(labels: Sequence[str], theme: Theme, pinned: str | None = None) -> dict[str, str]:
    """Colour of each setting: the accent when there is one, Okabe-Ito otherwise, the text's for the pinned one."""
    if len(labels) == 1 and labels[0] != pinned:
        return {labels[0]: theme.accent}
    others = [k for k in labels if k != pinned]
    return {k: theme.color(i) for i, k in enumerate(others)} | ({pinned: theme.text} if pinned in labels else {})


def _curve(panel: Panel, ds: xr.Dataset, name: str, color: str, label: str) -> np.ndarray:
    sigma, mean, error = (np.asarray(a, dtype=float) for a in (ds.sigma, ds[name], ds[f"{name}_se"]))
    at = np.where(sigma > 0, sigma, np.nan)
    low = np.where(mean > 0, np.maximum(mean - error, 0.02 * mean), mean - error)  # stays drawable on a log axis
    panel.band(at, low, mean + error, color)
    panel.line(at, mean, color, label=label)
    panel.points(at, mean, color, size=4)
    return mean


def sigma_spread(sigmas: Sequence[np.ndarray]) -> tuple[float, float]:
    """Ends of a sigma axis with a margin; room for the mark of sigma = 0 where a grid reaches it."""
    inside = np.concatenate([v[(v > 0) & np.isfinite(v)] for v in sigmas])
    low, high = float(inside.min()), float(inside.max())
    margin = max(high / low, 10.0) ** 0.03
    return low / margin / (2.5 if any((v == 0).any() for v in sigmas) else 1.0), high * margin


def _title(values: xr.DataArray) -> str:
    return values.attrs.get("long_name", values.name)


def schedules(
    grids: Mapping[str, Sequence[float]],
    *,
    pinned: str | None = None,
    sigma_range: tuple[float, float] | None = None,
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] | None = None,
) -> Any:
    """Figure of time grids as rows of ticks on the sigma axis, noise left; a ring at the right end is sigma = 0.

    Args: grids: name -> sigmas, as `TimeGrid.sigmas(path)` gives them.
    """
    if not grids:
        raise BadValue("no time grid was given.")
    th = theme_of(theme)
    c = canvas(backend, th, size=size or (720, 110 + 34 * len(grids)))
    arrays = {k: np.asarray(v, dtype=float) for k, v in grids.items()}
    colors = setting_colors(list(grids), th, pinned)
    draw_grids(c.panel(), arrays, colors, sigma_range, names=True)
    return c.finish(", ".join(f"{name}: {len(v) - 1} steps" for name, v in arrays.items()))


def draw_grids(
    panel: Panel,
    grids: Mapping[str, np.ndarray],
    colors: Mapping[str, str],
    sigma_range: tuple[float, float] | None,
    *,
    names: bool = False,
) -> None:
    low, high = sigma_range or sigma_spread(list(grids.values()))
    zero = low * (high / low) ** 0.02
    for row, (label, sigma) in enumerate(grids.items()):
        inside = sigma[(sigma > 0) & np.isfinite(sigma)]
        panel.line([high, low], [-row, -row], colors[label], width=0.6, opacity=0.5)
        panel.points(
            inside,
            np.full(len(inside), -row),
            colors[label],
            size=13,
            mark="tick",
            texts=[f"σ = {s:.4g}" for s in inside],
        )
        if (sigma == 0).any():
            panel.points([zero], [-row], colors[label], size=7, mark="ring", texts=["σ = 0"])
    rows = ([-i for i in range(len(grids))], list(grids) if names else [""] * len(grids))
    panel.axes(
        SIGMA,
        log_x=True,
        reverse_x=True,
        x_range=(low, high),
        y_range=(-len(grids) + 0.3, 0.7),
        y_ticks=rows,
    )
