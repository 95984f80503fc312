"""Measured numbers with their bands: how an estimate settles, and cost against quality."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from explorer.errors import BadValue
from explorer.viz.canvas import Backend, canvas
from explorer.viz.steps import setting_colors
from explorer.viz.theme import Theme, mix, theme_of


class Estimate(Protocol):
    """What is needed of `explorer.metrics.Estimate`."""

    value: float
    std_error: float
    n: int
    name: str
    raw: float | None

    def interval(self, level: float = 0.95) -> tuple[float, float]: ...


History = Sequence[Estimate] | Mapping[str, Sequence[Estimate]]


def history(
    estimates: History,
    *,
    level: float = 0.95,
    pinned: str | None = None,
    y_range: tuple[float, float] | None = None,
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] = (560, 320),
) -> Any:
    """Figure of one or several estimates against the number of samples: corrected bold with its band, raw faint.

    Args:
        estimates: in order of n, or several such by setting; ones without a value yet (NaN) leave a gap.
        level: coverage of the band, pointwise.
    """
    settings = dict(estimates) if isinstance(estimates, Mapping) else {"": list(estimates)}
    settings = {k: list(v) for k, v in settings.items() if len(v)}
    if not settings:
        raise BadValue("no estimate yet.")
    th = theme_of(theme)
    colors = setting_colors(list(settings), th, pinned)
    c = canvas(backend, th, size=size)
    panel = c.panel()
    for label, run in settings.items():
        n = np.array([e.n for e in run], dtype=float)
        value = np.array([e.value for e in run], dtype=float)
        band = np.array(
            [e.interval(level) if math.isfinite(e.value) else (math.nan, math.nan) for e in run], dtype=float
        )
        raw = np.array([math.nan if e.raw is None else e.raw for e in run], dtype=float)
        if np.isfinite(raw).any():
            panel.line(n, raw, mix(colors[label], th.background, 0.45), width=1.2, dash="dot")
        panel.band(n, band[:, 0], band[:, 1], colors[label])
        panel.line(n, value, colors[label], label=label, width=2.4)
        panel.points(n, value, colors[label], size=5)
    runs = list(settings.values())
    panel.axes("samples n", runs[0][-1].name or "metric", y_range=y_range)
    counts = ", ".join(
        f"n = {run[-1].n}" + (f" ({k})" if k and len(settings) > 1 else "") for k, run in settings.items()
    )
    raw_said = "; dotted: raw" if any(e.raw is not None for run in runs for e in run) else ""
    return c.finish(f"{counts}; band: {100 * level:g} % pointwise{raw_said}")


def pareto(
    points: Mapping[str, tuple[int, Estimate]],
    *,
    level: float = 0.95,
    pinned: str | None = None,
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] = (560, 360),
) -> Any:
    """Figure of quality against cost: one dot with its band per setting, and the front no other setting beats.

    Args: points: setting -> (network evaluations per sample, estimate); lower is better.
    """
    known = {k: p for k, p in points.items() if math.isfinite(p[1].value)}
    if not known:
        raise BadValue("no setting has a value yet.")
    th = theme_of(theme)
    colors = setting_colors(list(known), th, pinned)
    c = canvas(backend, th, size=size)
    panel = c.panel()
    front = pareto_front([(nfe, e.value) for nfe, e in known.values()])
    if len(front) > 1:
        xs, ys = zip(*front, strict=True)
        stairs = [(x, y) for i, x in enumerate(xs) for y in ((ys[i - 1], ys[i]) if i else (ys[0],))]
        panel.line(*map(list, zip(*stairs, strict=True)), th.muted, width=1, dash="dash")
    costs = [nfe for nfe, _ in known.values()]
    for label, (nfe, e) in known.items():
        low, high = e.interval(level)
        panel.line([nfe, nfe], [low, high], colors[label], width=3, opacity=0.45)
        panel.points(
            [nfe],
            [e.value],
            colors[label],
            size=9,
            texts=[f"{label}: {e.value:.4g} ± {e.std_error:.2g}, {nfe} NFE, n = {e.n}"],
        )
    span = (min(costs) / 1.35, max(costs) * 1.6)
    panel.axes(
        "NFE per sample, log scale",
        next(iter(known.values()))[1].name or "metric",
        log_x=True,
        x_range=span,
        x_ticks=_nfe_ticks(span),
    )
    for label, (nfe, e) in known.items():
        right = nfe < math.sqrt(span[0] * span[1])
        panel.text(
            nfe, e.value, label, colors[label], anchor="left" if right else "right", shift=(8, 9) if right else (-8, -9)
        )
    ns = sorted({e.n for _, e in known.values()})
    n_said = f"n = {ns[0]}" if len(ns) == 1 else f"n = {ns[0]} to {ns[-1]}"
    return c.finish(f"{n_said}; bars: {100 * level:g} % intervals; dashed: not beaten at equal or lower cost")


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both coordinates, in order of the first."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not front or y < front[-1][1]:
            front.append((x, y))
    return front


def _nfe_ticks(span: tuple[float, float]) -> tuple[list[float], list[str]]:
    ticks = [
        t for t in (1, 2, 3, 5, 7, 10, 15, 20, 35, 50, 79, 100, 150, 200, 350, 500, 1000) if span[0] <= t <= span[1]
    ]
    return [float(t) for t in ticks], [str(t) for t in ticks]
