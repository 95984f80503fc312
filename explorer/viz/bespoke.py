"""A solver's own time and scale, as curves with their speeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from explorer.errors import BadValue
from explorer.viz.canvas import Backend, canvas
from explorer.viz.steps import setting_colors
from explorer.viz.theme import Theme, theme_of


class Warp(Protocol):
    """What is needed of `explorer.sampling.Warp`."""

    t: Sequence[float]
    t_dot: Sequence[float]
    s: Sequence[float]
    s_dot: Sequence[float]


def warps(
    found: Mapping[str, Warp],
    *,
    pinned: str | None = None,
    log_s: bool = True,
    caption: str = "",
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] = (760, 360),
) -> Any:
    """Figure of time t_r and scale s_r against r, noise left, a dot at every node and through it a stroke with the slope the solver uses.

    Where the strokes lie along the curve the numbers are those of one smooth schedule; a trained solver's need not be.

    Args:
        found: name -> warp. pinned: the one in the text's colour.
    """
    if not found:
        raise BadValue("no warp to draw.")
    th = theme_of(theme)
    colors = setting_colors(list(found), th, pinned)
    c = canvas(backend, th, titles=["time t", "scale s" + (", log scale" if log_s else "")], columns=2, size=size)
    for name, warp in found.items():
        color, m = colors[name], len(warp.t_dot)
        r = np.arange(m + 1) / m
        for i, (value, slope) in enumerate(((warp.t, warp.t_dot), (warp.s, warp.s_dot))):
            panel, value, slope = c.panel(i), np.asarray(value, float), np.asarray(slope, float)
            panel.line(r, value, color, width=1.2, opacity=0.7, label=name if i == 0 else "")
            says = [f"{name}, node {j} of {m}: {v:.4g}" for j, v in enumerate(value)]
            panel.points(r, value, color, size=5, texts=says)
            for at, v, d in zip(r, value, slope, strict=False):
                reach = 0.3 / m
                ends = v + reach * d * np.array([-1.0, 1.0])
                if not (i == 1 and log_s) or ends.min() > 0:
                    panel.line([at - reach, at + reach], ends, color, width=2.6)
    c.panel(0).axes("r, from noise to data", "t of the path", x_range=(-0.05, 1.05))
    c.panel(1).axes("r, from noise to data", "s", log_y=log_s, x_range=(-0.05, 1.05))
    return c.finish(caption or "strokes: the slopes t' and s' that the solver uses at its nodes")
