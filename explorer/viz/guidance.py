"""Densities of the plane and their ratio: where a better model sees more than a worse one, and guidance pushes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from explorer.errors import BadValue
from explorer.viz.canvas import Backend, canvas
from explorer.viz.theme import Theme, theme_of


def density_maps(
    fields: Mapping[str, Any],
    x: Sequence[float],
    y: Sequence[float],
    *,
    points: Any = None,
    range_of: tuple[float, float] | None = None,
    label: str = "ln p, less its maximum",
    caption: str = "",
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: int = 320,
) -> Any:
    """Figure of log-densities, or their differences, on a grid of the plane, one panel each; a constant is taken off so that the top is 0.

    Args:
        fields: name -> (len(y), len(x)) logarithms up to a constant.
        points: (N, 2) drawn over every panel.
        range_of: (low, high) to which logarithms are cut after that, so that far tails do not take the whole scale.
    """
    grids = {name: np.asarray(field, float) for name, field in fields.items()}
    if not grids or any(g.shape != (len(y), len(x)) for g in grids.values()):
        raise BadValue(f"density_maps draws fields of shape {(len(y), len(x))}, one value for each y and x.")
    th, columns = theme_of(theme), min(3, len(grids))
    c = canvas(
        backend, th, titles=list(grids), columns=columns, size=(size * columns, (size + 40) * -(-len(grids) // columns))
    )
    for i, grid in enumerate(grids.values()):
        panel, shown = c.panel(i), grid - np.nanmax(grid)
        panel.heat(x, y, shown if range_of is None else np.clip(shown, *range_of), label=label)
        if points is not None:
            at = np.asarray(points, float)
            panel.points(at[:, 0], at[:, 1], th.text, size=1.2)
        panel.axes(equal=True, x_range=(min(x), max(x)), y_range=(min(y), max(y)))
    return c.finish(caption)
