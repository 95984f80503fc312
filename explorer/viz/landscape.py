"""Weights as a plane: the metric over a slice through three snapshots, and the coefficients of a combination."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from explorer.errors import BadValue
from explorer.viz.canvas import Backend, canvas
from explorer.viz.steps import setting_colors
from explorer.viz.theme import Theme, theme_of


def landscape(
    ds: xr.Dataset,
    *,
    log: bool = True,
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] = (640, 520),
) -> Any:
    """Figure of a slice from `tuning.landscape`: the metric as colour, snapshots in the order of the run, averages, marks by name.

    Points off the plane are drawn at their feet; how far off they are is said where one hovers, and for the marks in the caption.

    Args: log: colour by the logarithm; nodes that are not positive stay blank.
    """
    th, z = theme_of(theme), ds.value.values
    if not np.isfinite(z).any():
        raise BadValue("no node of this slice has a value.")
    with np.errstate(invalid="ignore", divide="ignore"):
        shown = np.where(z > 0, np.log10(z), np.nan) if log else z
    c = canvas(backend, th, size=size)
    panel = c.panel()
    label = ds.attrs["objective"]
    panel.heat(ds.x.values, ds.y.values, shown, label=f"log₁₀ {label}" if log else label)
    half = (float(np.diff(ds.x)[0]) / 2, float(np.diff(ds.y)[0]) / 2) if min(z.shape) > 1 else (0.5, 0.5)
    ends = [(float(v[0]) - h, float(v[-1]) + h) for v, h in zip((ds.x.values, ds.y.values), half, strict=True)]

    def of(kind: str) -> xr.Dataset:
        return ds.isel(name=np.flatnonzero(ds.kind.values == kind))

    for kind, color, dash in (("average", "#ff9da7", "dot"), ("snapshot", "#ffffff", "solid")):
        part = of(kind)
        texts = [f"{n}, {off:.2g} off the plane" for n, off in zip(part.name.values, part.off.values, strict=True)]
        panel.line(
            part.at_x.values,
            part.at_y.values,
            color,
            width=1.4,
            dash=dash,
            label="averages" if kind == "average" else "",
        )
        panel.points(part.at_x.values, part.at_y.values, color, size=4, texts=texts)
        if kind == "snapshot":
            for i in (0, -1):
                panel.text(float(part.at_x[i]), float(part.at_y[i]), str(part.name.values[i]), color, shift=(8, -8))
    marks = of("mark")
    for name, x, y in zip(marks.name.values, marks.at_x.values, marks.at_y.values, strict=True):
        panel.points([x], [y], "#ffffff", size=9, mark="cross", texts=[str(name)])
        panel.text(x, y, str(name), "#ffffff", shift=(8, 8))
    steps = ds.attrs["corners"]
    panel.axes(
        f"x: from step {steps[0]} to step {steps[1]}",
        f"y: from step {steps[0]} to step {steps[2]}",
        x_range=ends[0],
        y_range=ends[1],
    )
    j, i = np.unravel_index(np.nanargmin(z), z.shape)
    off = "".join(f"; {n} lies {o:.2g} off the plane" for n, o in zip(marks.name.values, marks.off.values, strict=True))
    error = float(ds.std_error[j, i])
    said = f"{z[j, i]:.3g}" + (f" ± {error:.1g}" if np.isfinite(error) else "")
    best = f"white: the run; least {said} at ({float(ds.x[i]):.2g}, {float(ds.y[j]):.2g})"
    noisy = f"n = {ds.attrs['n']} samples of the same noise at each node; " if np.isfinite(ds.std_error).any() else ""
    return c.finish(f"{noisy}{best}{off}")


def coefficients(
    steps: Sequence[int],
    combinations: Mapping[str, Sequence[float]],
    *,
    caption: str = "",
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] = (680, 340),
) -> Any:
    """Figure of the coefficients of snapshots: bars for the first combination, lines through dots for the others.

    Args: steps: of the snapshots; combinations: name -> coefficients, one for each.
    """
    if not combinations:
        raise BadValue("no combination to draw.")
    for name, a in combinations.items():
        if len(a) != len(steps):
            raise BadValue(f"{name} has {len(a)} coefficients for {len(steps)} snapshots")
    th = theme_of(theme)
    c = canvas(backend, th, size=size)
    panel = c.panel()
    colors = setting_colors(list(combinations), th)
    width = 0.7 * float(np.diff(steps).min()) if len(steps) > 1 else 1.0
    for k, (name, a) in enumerate(combinations.items()):
        if k == 0:
            panel.bars(list(steps), list(a), th.accent, width=width)
            panel.points([steps[0]], [a[0]], th.accent, size=5, label=name)
        else:
            panel.line(list(steps), list(a), colors[name], label=name, width=1.8)
            panel.points(list(steps), list(a), colors[name], size=4)
    panel.line([steps[0], steps[-1]], [0, 0], th.text, width=1)
    panel.axes("training step of the snapshot", "coefficient")
    return c.finish(caption or f"{len(steps)} snapshots; every combination sums to 1")
