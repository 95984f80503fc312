"""Three axes with the two hands of `canvas`: lines and points in space, plotly or matplotlib."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from explorer.errors import MissingExtra, UnknownName
from explorer.viz.canvas import BACKENDS, Backend, wrapped
from explorer.viz.theme import Theme, matplotlib_rc, plotly_layout

NAMES = ("component 1", "component 2", "component 3")


class Canvas3D(ABC):
    """A figure with one set of three axes in the making."""

    @abstractmethod
    def line(self, lines: Sequence[np.ndarray], color: str) -> None:
        """Polygons (k, 3) of one colour."""

    @abstractmethod
    def points(self, at: np.ndarray, colors: Sequence[str], size: float) -> None:
        """Dots at (k, 3)."""

    @abstractmethod
    def finish(self, caption: str) -> Any:
        """The native figure."""


def canvas3d(backend: Backend, theme: Theme, title: str, size: tuple[int, int]) -> Canvas3D:
    """A canvas in space.

    Raises: UnknownName; MissingExtra when the library is not installed.
    """
    if backend not in BACKENDS:
        raise UnknownName("figure backend", backend, BACKENDS)
    if find_spec(backend) is None:
        raise MissingExtra(backend, "app", f"a {backend} figure")
    return (PlotlySpace if backend == "plotly" else MatplotlibSpace)(theme, title, size)


class PlotlySpace(Canvas3D):
    def __init__(self, theme: Theme, title: str, size: tuple[int, int]):
        import plotly.graph_objects as go

        self.theme, self.size, self.figure = theme, size, go.Figure()
        axis = {
            "backgroundcolor": theme.background,
            "gridcolor": theme.grid,
            "zerolinecolor": theme.grid,
            "color": theme.muted,
        }
        self.figure.update_layout(
            **plotly_layout(theme), width=size[0], height=size[1], showlegend=False,
            scene={f"{a}axis": {**axis, "title": {"text": name}} for a, name in zip("xyz", NAMES, strict=True)}
            | {"aspectmode": "data", "camera": {"eye": {"x": 1.6, "y": 1.6, "z": 0.9}}},
        )  # fmt: skip
        if title:
            self._say(title, 1.0, "bottom", 4, 13, theme.text)

    def line(self, lines, color):
        import plotly.graph_objects as go

        gap = np.full((1, 3), np.nan)
        xyz = np.concatenate([part for line in lines for part in (line, gap)])
        self.figure.add_trace(
            go.Scatter3d(
                x=xyz[:, 0], y=xyz[:, 1], z=xyz[:, 2], mode="lines", line={"color": color, "width": 2}, hoverinfo="skip",
                connectgaps=False,
            )
        )  # fmt: skip

    def points(self, at, colors, size):
        import plotly.graph_objects as go

        marker = {"color": list(colors), "size": size, "line": {"width": 0}}
        self.figure.add_trace(
            go.Scatter3d(x=at[:, 0], y=at[:, 1], z=at[:, 2], mode="markers", marker=marker, hoverinfo="skip")
        )

    def finish(self, caption):
        lines = wrapped(caption, self.size[0])
        self.figure.update_layout(margin={"l": 8, "r": 8, "t": 34, "b": 20 + 14 * len(lines)})
        self._say("<br>".join(lines), 0.0, "top", -6, 11, self.theme.muted)
        return self.figure

    def _say(self, words: str, y: float, anchor: str, shift: int, points: int, color: str) -> None:
        self.figure.add_annotation(
            text=words, xref="paper", yref="paper", x=0, y=y, xanchor="left", yanchor=anchor, yshift=shift, align="left",
            showarrow=False, font={"size": points, "color": color},
        )  # fmt: skip


class MatplotlibSpace(Canvas3D):
    def __init__(self, theme: Theme, title: str, size: tuple[int, int]):
        import matplotlib
        from matplotlib.figure import Figure

        self.theme, self.size = theme, size
        with matplotlib.rc_context(matplotlib_rc(theme)):
            self.figure = Figure(figsize=(size[0] / 100, size[1] / 100), layout="constrained")
            self.ax = self.figure.add_subplot(projection="3d", computed_zorder=False)
        self.ax.set_title(title, loc="left", fontsize=10.5, color=theme.text)
        self.ax.view_init(elev=22, azim=45)
        for axis, name in zip((self.ax.xaxis, self.ax.yaxis, self.ax.zaxis), NAMES, strict=True):
            axis.set_pane_color(theme.background)
            axis.line.set_color(theme.muted)
            axis._axinfo["grid"].update(color=theme.grid, linewidth=0.6)
            axis.set_label_text(name)
            axis.set_tick_params(labelsize=8)

    def line(self, lines, color):
        for line in lines:
            self.ax.plot(*line.T, color=color, linewidth=0.8, alpha=0.75)

    def points(self, at, colors, size):
        self.ax.scatter(*at.T, c=list(colors), s=(1.6 * size) ** 2, linewidths=0, depthshade=False)

    def finish(self, caption):
        self.ax.set_aspect("equal", adjustable="datalim")
        self.ax.set_box_aspect(None, zoom=0.88)  # else the label of the third axis is cut off
        words = wrapped(caption, self.size[0])
        self.figure.supxlabel("\n".join(words), x=0.01, ha="left", fontsize=8.5, color=self.theme.muted)
        return self.figure
