"""Restarts: what processes forget and what they add, and what one repeat does to a difference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from explorer.errors import BadValue
from explorer.viz.canvas import Backend, canvas
from explorer.viz.few_steps import Estimate
from explorer.viz.metrics import pareto_front
from explorer.viz.steps import setting_colors
from explorer.viz.theme import Theme, theme_of

Point = tuple[str, Mapping[str, Estimate], int]
"""A process: its short name ("K 5"), its errors ("contracted", "additional", "total"), its evaluations."""


def two_errors(
    families: Mapping[str, Sequence[Point]],
    *,
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] = (900, 420),
) -> Any:
    """Figure of processes by family: contracted against additional error, and total error against cost; bars are one standard error.

    Args: families: name -> its processes in order, joined by a line, e.g. "Restart" with K rising.
    """
    if not families or not all(families.values()):
        raise BadValue("no process to draw.")
    th = theme_of(theme)
    colors = setting_colors(list(families), th)
    c = canvas(backend, th, titles=("two errors", "total error and cost"), columns=2, size=size)
    left, right = c.panel(0), c.panel(1)
    front = pareto_front([(float(nfe), e["total"].value) for run in families.values() for _, e, nfe in run])
    if len(front) > 1:
        right.line(*map(list, zip(*front, strict=True)), th.muted, width=1, dash="dash")
    for family, run in families.items():
        color = colors[family]
        x, y = ([e[k].value for _, e, _ in run] for k in ("additional", "contracted"))
        left.line(x, y, color, width=1.4, label=family)
        left.points(x, y, color, size=6, texts=[f"{family}, {name}" for name, _, _ in run])
        for _, e, _ in run:
            _bar(left, e["additional"].value, e["contracted"], color)
        left.text(x[-1], y[-1], run[-1][0], color, shift=(7, 7))
        costs, totals = [nfe for *_, nfe in run], [e["total"].value for _, e, _ in run]
        right.line(costs, totals, color, width=1.4)
        right.points(costs, totals, color, size=6, texts=[f"{family}, {name}: {nfe} NFE" for name, _, nfe in run])
        for _, e, nfe in run:
            _bar(right, nfe, e["total"], color)
    left.axes("additional error, W₁", "contracted error, W₁")
    every = [nfe for run in families.values() for *_, nfe in run]
    ticks = [t for t in (25, 35, 50, 75, 100, 150, 200, 300, 500) if min(every) * 0.9 <= t <= max(every) * 1.1]
    right.axes("NFE per sample, log scale", "total error, W₁", log_x=True, x_ticks=(ticks, [str(t) for t in ticks]))
    first = next(iter(families.values()))[0][1]["total"]
    return c.finish(
        f"n = {first.n} points matched exactly, {first.note or 'one draw'}; bars: one standard error; dashed: not beaten at its cost"
    )


def _bar(panel, x: float, e: Estimate, color: str) -> None:
    if math.isfinite(e.std_error):
        panel.line([x, x], [e.value - e.std_error, e.value + e.std_error], color, width=2, opacity=0.6)


def forgetting(
    ds: xr.Dataset,
    *,
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] = (880, 380),
) -> Any:
    """Figure of `tuning.forgetting`: the share of a difference that survives one repeat, and the error it adds, for each interval."""
    c = canvas(backend, theme_of(theme), titles=("survives one repeat", "added by it"), columns=2, size=size)
    low, factor = np.arange(ds.sizes["low"]), np.arange(ds.sizes["factor"])
    points = int(ds.n_points[-1])
    with np.errstate(divide="ignore"):
        fields = (ds.survival.values, np.log10(ds.added.values[..., -1]))
    ticks = [
        (list(map(float, at)), [f"{v:.3g}" for v in names.values]) for at, names in ((factor, ds.factor), (low, ds.low))
    ]
    for i, (z, label) in enumerate(
        zip(fields, ("share of a difference", f"log₁₀ added error, {points} points"), strict=True)
    ):
        panel = c.panel(i)
        panel.heat(factor, low, z, label=label)
        panel.axes("σ_max / σ_min", "σ_min", x_ticks=ticks[0], y_ticks=ticks[1])
    return c.finish(f"n = {ds.attrs['n']} states, the same jump for both of a pair; blank: beyond the model's range")
