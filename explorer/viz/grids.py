"""Time grids: where their nodes are, how wide their steps, how dense along sigma, and the costs a computed one was chosen from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from explorer.errors import BadValue
from explorer.viz.canvas import SIGMA, Backend, canvas
from explorer.viz.steps import draw_grids, setting_colors, sigma_spread
from explorer.viz.theme import Theme, theme_of

Sigmas = Mapping[str, Sequence[float]]


def grid_steps(
    grids: Sigmas,
    *,
    pinned: str | None = None,
    sigma_range: tuple[float, float] | None = None,
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] | None = None,
) -> Any:
    """Figure of time grids as rows of ticks on the sigma axis, and below it the width of each step in ln sigma.

    Args:
        grids: name -> falling sigmas, as `TimeGrid.sigmas(path)` gives them; a last 0 is a ring, and its step has no width in ln sigma.
        pinned: the grid drawn in the colour of the text.
    """
    th, arrays = theme_of(theme), _checked(grids)
    colors = setting_colors(list(arrays), th, pinned)
    sigma_range = sigma_range or sigma_spread(list(arrays.values()))
    heights = [0.25 + 0.13 * len(arrays), 1.0]
    c = canvas(
        backend,
        th,
        titles=("nodes", "width of each step"),
        share_x=True,
        heights=heights,
        size=size or (720, 130 + round(210 * sum(heights))),
    )
    draw_grids(c.panel(0), arrays, colors, sigma_range, names=True)
    rows = ([-i for i in range(len(arrays))], list(arrays))
    shape = {"log_x": True, "reverse_x": True, "x_range": sigma_range}
    c.panel(0).axes("", "", **shape, y_range=(-len(arrays) + 0.3, 0.7), y_ticks=rows)  # the axis below names both
    panel, widest = c.panel(1), 0.0
    for name, sigma in arrays.items():
        inside = sigma[sigma > 0]
        width, middle = -np.diff(np.log(inside)), np.sqrt(inside[:-1] * inside[1:])
        widest = max(widest, width.max(initial=0.0))
        panel.line(middle, width, colors[name])
        panel.points(
            middle,
            width,
            colors[name],
            texts=[
                f"{name}: σ {a:.4g} to {b:.4g}, {w:.3g} in ln σ"
                for a, b, w in zip(inside, inside[1:], width, strict=False)
            ],
        )
    top = 1.08 * widest if widest else 1.0
    panel.axes(SIGMA, "Δ ln σ", **shape, y_range=(0, top))
    return c.finish(_counts(arrays))


def step_density(
    grids: Sigmas,
    *,
    pinned: str | None = None,
    sigma_range: tuple[float, float] | None = None,
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] | None = None,
) -> Any:
    """Figure of how many steps a grid spends per decade of sigma, constant over each step; the area is the number of steps.

    Args: as in `grid_steps`. The step to sigma = 0 lies beyond every decade and is left out.
    """
    th, arrays = theme_of(theme), _checked(grids)
    colors = setting_colors(list(arrays), th, pinned)
    c = canvas(backend, th, size=size or (720, 340))
    panel, alone, most = c.panel(), len(arrays) == 1, 1.0
    for name, sigma in arrays.items():
        inside = sigma[sigma > 0]
        if len(inside) < 2:
            continue
        density = 1 / -np.diff(np.log10(inside))
        most = max(most, 1.06 * density.max())
        panel.line(np.repeat(inside, 2)[1:-1], np.repeat(density, 2), colors[name], label="" if alone else name)
    shape = {"log_x": True, "reverse_x": True, "x_range": sigma_range or sigma_spread(list(arrays.values()))}
    panel.axes(SIGMA, "steps per decade of σ", **shape, y_range=(0, most))
    return c.finish(_counts(arrays))


def cost_matrix(
    costs: xr.Dataset,
    routes: Sigmas | None = None,
    *,
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] = (640, 600),
) -> Any:
    """Figure of what a step from one noise level to another costs, with the steps of grids drawn in as staircases.

    Args:
        costs: `Search.mean()`: `cost` (start, end) with `sigma_start` and `sigma_end`; only steps towards the data have one.
        routes: name -> sigmas on these nodes. The outer corner of each stair is a step, read as (end, start); a final 0 that is no node
            is left out.
    Raises: BadValue where a route has a sigma that is no node.
    """
    th, nodes, z = theme_of(theme), costs.sigma_start.values, costs.cost.values.copy()
    z[np.tril_indices(len(nodes))] = np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(z > 0, np.log10(z), np.nan)
    c = canvas(backend, th, size=size)
    panel, index = c.panel(), np.arange(len(nodes))
    name, unit = costs.cost.attrs.get("long_name", "cost"), costs.cost.attrs.get("units", "")
    panel.heat(index, index, z, label=f"log₁₀ {name}" + (f", {unit}" if unit else ""))
    arrays = {} if not routes else _checked(routes)
    colors = dict(zip(arrays, (th.color(i) for i in (4, 5, 0, 3, 1)), strict=False))
    for route, sigma in arrays.items():
        sigma = sigma[:-1] if sigma[-1] == 0 and nodes[-1] > 0 else sigma
        at = np.array([np.abs(nodes - s).argmin() for s in sigma])
        off = ~np.isclose(nodes[at], sigma, rtol=1e-6, atol=0)
        if off.any():
            raise BadValue(f"sigma = {sigma[off][0]:.6g} of {route} is no node of these costs: use grid.snapped(nodes)")
        x, y = np.repeat(at, 2)[1:], np.repeat(at, 2)[:-1]
        color = colors.get(route, th.text)
        panel.line(x, y, "#ffffff", width=4.5)
        panel.line(x, y, color, label=route, width=2.0)
        texts = [f"{route}: σ {a:.4g} to {b:.4g}" for a, b in zip(sigma, sigma[1:], strict=False)]
        panel.points(at[1:], at[:-1], color, size=6, texts=texts)
    shown = np.unique(np.linspace(0, len(nodes) - 1, 6).round().astype(int))
    ticks = (shown.tolist(), [f"{nodes[i]:.3g}" for i in shown])
    last = len(nodes) - 0.5
    panel.axes(
        "σ at the end of the step",
        "σ at its start",
        x_range=(-0.5, last),
        y_range=(last, -0.5),
        x_ticks=ticks,
        y_ticks=ticks,
    )
    words = [f"n = {costs.attrs.get('n', '?')} samples, {len(nodes)} nodes", _counts(arrays)]
    return c.finish("; ".join(w for w in words if w))


def _checked(grids: Sigmas) -> dict[str, np.ndarray]:
    if not grids:
        raise BadValue("no time grid was given.")
    arrays = {name: np.asarray(sigma, dtype=float) for name, sigma in grids.items()}
    for name, sigma in arrays.items():
        if sigma.ndim != 1 or len(sigma) < 2 or not (np.diff(sigma) < 0).all() or not np.isfinite(sigma).all():
            raise BadValue(f"{name} is not a grid: expected at least two finite, falling values of sigma.")
    return arrays


def _counts(grids: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{name}: {len(sigma) - 1} steps" for name, sigma in grids.items())
