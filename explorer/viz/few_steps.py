"""Learnt maps of noise beside the exact one, a measured number against a setting, ingredients against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from explorer.errors import BadValue
from explorer.viz.canvas import Backend, canvas, joined
from explorer.viz.steps import setting_colors
from explorer.viz.theme import Theme, ramp, theme_of


class Estimate(Protocol):
    """What is needed of `explorer.metrics.Estimate`."""

    value: float
    std_error: float


Curve = Sequence[tuple[float, "float | Estimate"]]


def learnt_maps(
    exact: Any,
    learnt: Mapping[str, Any],
    *,
    n: int = 400,
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: int = 320,
) -> Any:
    """Figure of where maps send the same noise: an exact end in grey, the learnt one coloured by how far off, a line between.

    Args:
        exact: (N, 2) ends of the exact map.
        learnt: name -> (N, 2) ends of the same noise; one panel each.
        n: noises drawn, the first ones; the error in the caption is over all.
    """
    truth = np.asarray(exact, float)
    ends = {name: np.asarray(x, float) for name, x in learnt.items()}
    if not ends or any(x.shape != truth.shape or x.shape[1:] != (2,) for x in ends.values()):
        raise BadValue("learnt_maps compares ends (N, 2) of equal number with the exact ones.")
    th, columns = theme_of(theme), min(3, len(ends))
    off = {name: np.linalg.norm(x - truth, axis=1) for name, x in ends.items()}
    c = canvas(
        backend, th, titles=list(ends), columns=columns, size=(size * columns, (size + 50) * -(-len(ends) // columns))
    )
    every = np.concatenate([o[:n] for o in off.values()])
    colors, low, high = ramp(np.minimum(every, np.quantile(every, 0.95)), th)
    span = 1.08 * max(np.abs(truth).max(), *(np.quantile(np.abs(x), 0.995) for x in ends.values()))
    for i, (name, x) in enumerate(ends.items()):
        panel, mine, colors = c.panel(i), colors[: len(off[name][:n])], colors[len(off[name][:n]) :]
        panel.line(*joined([np.stack((a, b)) for a, b in zip(truth[:n], x[:n], strict=True)]), th.grid, width=1.0)
        panel.points(truth[:n, 0], truth[:n, 1], th.muted, size=3, mark="ring")
        panel.points(x[:n, 0], x[:n, 1], mine, size=4, texts=[f"{d:.3g} off" for d in off[name][:n]])
        panel.axes(equal=True, x_range=(-span, span), y_range=(-span, span))
    said = ", ".join(f"{name} {np.sqrt((o**2).mean()):.3f}" for name, o in off.items())
    return c.finish(f"RMSE to the exact ends over {len(truth)} noises: {said}; rings: exact ends")


def curves(
    found: Mapping[str, Curve],
    *,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    floor: float | None = None,
    dashed: Sequence[str] = (),
    caption: str = "",
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] = (560, 360),
) -> Any:
    """Figure of one measured number against a setting, one line each, with one-standard-error bars where there are errors.

    Args:
        found: name -> (setting, number or estimate) pairs.
        x, y: titles of the axes.
        floor: what a perfect model would show, dotted.
        dashed: curves that are computed and not measured.
    """
    if not found or not all(found.values()):
        raise BadValue("no curve, or one without a point.")
    th = theme_of(theme)
    colors = setting_colors(list(found), th)
    c = canvas(backend, th, size=size)
    panel = c.panel()
    for name, curve in found.items():
        at = np.array([a for a, _ in curve], float)
        value = np.array([getattr(e, "value", e) for _, e in curve], float)
        error = np.array([getattr(e, "std_error", 0.0) for _, e in curve], float)
        panel.line(at, value, colors[name], label=name, dash="dash" if name in dashed else "solid")
        if name not in dashed:
            panel.points(at, value, colors[name], size=5)
        for a, v, e in zip(at, value, error, strict=True):
            if e > 0:
                panel.line([a, a], [v - e, v + e], colors[name], width=2, opacity=0.6)
    settings = sorted({a for curve in found.values() for a, _ in curve})
    if floor is not None:
        panel.line([settings[0], settings[-1]], [floor, floor], th.muted, label="floor", width=1.2, dash="dot")
    ticks = (settings, [f"{s:g}" for s in settings]) if len(settings) <= 8 else None
    panel.axes(x, y, log_x=log_x, log_y=log_y, x_ticks=ticks)
    return c.finish(caption)


def ranked(
    found: Mapping[str, Estimate],
    *,
    y: str,
    pinned: str,
    floor: float | None = None,
    caption: str = "",
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] = (680, 360),
) -> Any:
    """Figure of bars, one for each setting in the order given, the pinned one in the text's colour, errors as lines."""
    if pinned not in found:
        raise BadValue(f"{pinned!r} is none of the settings {', '.join(found)}.")
    th = theme_of(theme)
    c = canvas(backend, th, size=size)
    panel, at = c.panel(), np.arange(len(found), dtype=float)
    height = np.array([e.value for e in found.values()], float)
    panel.bars(at, height, [th.text if name == pinned else th.accent for name in found], width=0.62)
    for a, e in zip(at, found.values(), strict=True):
        panel.line([a, a], [e.value - e.std_error, e.value + e.std_error], th.muted, width=3)
        panel.text(a, e.value + e.std_error, f"{e.value:.3f}", th.text, anchor="center", shift=(0, 8))
    if floor is not None:
        panel.line([-0.5, len(found) - 0.5], [floor, floor], th.muted, width=1.2, dash="dot")
    top = 1.15 * float(max(e.value + e.std_error for e in found.values()))
    panel.axes("", y, x_ticks=(at.tolist(), [name.replace(" ", "\n") for name in found]), y_range=(0.0, top))
    return c.finish(caption)
