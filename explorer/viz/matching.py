"""Distribution matching in the plane: which way samples are pushed, and where they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from explorer.errors import BadValue
from explorer.viz.canvas import Backend, canvas, joined
from explorer.viz.steps import setting_colors
from explorer.viz.theme import Theme, theme_of


def arrows(
    at: Any,
    fields: Mapping[str, Any],
    *,
    data: Any = None,
    longest: float = 0.35,
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: int = 380,
) -> Any:
    """Figure of vector fields at the same points (n, 2), side by side, all drawn to one scale.

    Args:
        fields: (n, 2) each, by name.
        data: (m, 2) points in the background.
        longest: length of the longest arrow, in units of the axes.
    """
    th, at = theme_of(theme), np.asarray(at, float)
    vectors = {name: np.asarray(v, float) for name, v in fields.items()}
    if not vectors or any(v.shape != at.shape or at.ndim != 2 or at.shape[1] != 2 for v in vectors.values()):
        raise BadValue(f"arrows need points (n, 2) and as many vectors in each field, got {at.shape} points.")
    largest = max(float(np.linalg.norm(v, axis=1).max()) for v in vectors.values()) or 1.0
    c = canvas(backend, th, titles=tuple(vectors), columns=len(vectors), size=(size * len(vectors), size + 60))
    span = _frame(at if data is None else np.concatenate([at, np.asarray(data, float)]))
    for i, (vector, color) in enumerate(zip(vectors.values(), setting_colors(list(vectors), th).values(), strict=True)):
        panel, tips = c.panel(i), at + longest / largest * vector
        if data is not None:
            panel.points(*np.asarray(data, float).T, th.grid, size=3)
        panel.line(*joined([np.stack(ends) for ends in zip(at, tips, strict=True)]), color, width=1.4)
        panel.points(*at.T, th.muted, size=2.5)
        panel.points(*tips.T, color, size=3)
        panel.axes("x₁", "x₂", equal=True, x_range=span, y_range=span)
    return c.finish(f"n = {len(at)} samples; arrows end in a dot, the longest stands for {largest:.3g}")


def clouds(
    samples: Mapping[str, Any],
    *,
    data: Any = None,
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: int = 340,
) -> Any:
    """Figure of several sets of points (n, 2) side by side on the same axes, `data` (m, 2) behind each."""
    th = theme_of(theme)
    sets = {name: np.asarray(x, float) for name, x in samples.items()}
    if not sets or any(x.ndim != 2 or x.shape[1] != 2 for x in sets.values()):
        raise BadValue("clouds need sets of points in the plane, (n, 2) each.")
    c = canvas(backend, th, titles=tuple(sets), columns=len(sets), size=(size * len(sets), size + 60))
    span = _frame(np.concatenate([*sets.values(), *([] if data is None else [np.asarray(data, float)])]))
    for i, (x, color) in enumerate(zip(sets.values(), setting_colors(list(sets), th).values(), strict=True)):
        panel = c.panel(i)
        if data is not None:
            panel.points(*np.asarray(data, float).T, th.grid, size=3)
        panel.points(*x.T, color, size=2.5)
        panel.axes("x₁", "x₂", equal=True, x_range=span, y_range=span)
    counts = sorted({len(x) for x in sets.values()})
    return c.finish(f"n = {', '.join(map(str, counts))} points a panel{'' if data is None else '; grey: data'}")


def repeated(
    curves: Mapping[str, Any],
    *,
    target: float,
    axis: str,
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] = (640, 380),
) -> Any:
    """Figure of repeated runs, one colour a setting: {setting: [(steps (T,), values (T,)), ...]}, the target dashed.

    Values are cut at a hundred times the target and a hundredth of it, where runs have failed.
    """
    th = theme_of(theme)
    c = canvas(backend, th, size=size)
    panel, end = c.panel(), 0.0
    for (name, several), color in zip(curves.items(), setting_colors(list(curves), th).values(), strict=True):
        for i, (steps, values) in enumerate(several):
            shown = np.nan_to_num(np.abs(np.asarray(values, float)), nan=np.inf).clip(target / 100, target * 100)
            panel.line(np.asarray(steps, float), shown, color, label=name if i == 0 else "", width=1.6)
            end = max(end, float(np.max(steps)))
    panel.line([0.0, end], [target, target], th.text, width=1.2, dash="dash")
    panel.axes("step", axis, log_y=True)
    return c.finish(
        f"n = {max(map(len, curves.values()))} runs a setting; dashed: the data; cut at 100 and 1/100 of it"
    )


def _frame(points: np.ndarray) -> tuple[float, float]:
    reach = 1.08 * float(np.abs(points).max())
    return -reach, reach
