"""Where an adaptive solver spends its steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from explorer.errors import BadValue
from explorer.viz.canvas import SIGMA, Backend, canvas
from explorer.viz.steps import Settings, setting_colors, sigma_spread
from explorer.viz.theme import Theme, theme_of


def adaptive_effort(
    data: Settings,
    *,
    pinned: str | None = None,
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] = (720, 480),
) -> Any:
    """Figure of adaptive runs against sigma, noise left: steps per sample above, the size of a step below.

    Solid: accepted; dotted: refused attempts, which cost as much. Where the lower curve dips, the ODE is stiff.

    Args: data: `trajectory.adaptive_effort(report, path)`, or several by their setting.
    """
    settings = {"": data} if isinstance(data, xr.Dataset) else dict(data)
    if not settings or any("rejected" not in ds for ds in settings.values()):
        raise BadValue("this figure needs trajectory.adaptive_effort(report, path), or several by their setting.")
    th = theme_of(theme)
    colors = setting_colors(list(settings), th, pinned)
    c = canvas(backend, th, titles=["steps per sample", "size of an accepted step, Δ ln σ"], size=size, share_x=True)
    low, high = sigma_spread([ds.sigma.values for ds in settings.values()])
    for label, ds in settings.items():
        color, at = colors[label], ds.sigma.values
        c.panel(0).line(at, ds.accepted.values, color, label=label or "accepted")
        c.panel(0).line(at, ds.rejected.values, color, dash="dot", label="" if label else "refused", width=1.4)
        c.panel(1).line(at, ds["size"].values, color)
    top = max(float(np.nanmax(ds.accepted.values)) for ds in settings.values())
    axis = dict(log_x=True, reverse_x=True, x_range=(low, high))
    c.panel(0).axes("", "per bin of ln σ", y_range=(0, 1.08 * max(top, 1e-9)), **axis)
    c.panel(1).axes(SIGMA, "Δ ln σ", **axis)
    cost = "; ".join(
        f"{label + ': ' if label else ''}NFE {ds.attrs['nfe']:.1f} on average, at most {ds.attrs['nfe_max']} (n = {ds.attrs['n']})"
        for label, ds in settings.items()
    )
    return c.finish(f"{cost}; dotted: refused attempts")
