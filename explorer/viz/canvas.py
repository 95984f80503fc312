"""A small drawing surface with two hands: every figure is written once and comes out as plotly or as matplotlib.

Panels take plain arrays; NaN breaks a line. Neither library is imported before a canvas of its kind is made.
"""

from __future__ import annotations

import textwrap
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np

from explorer.errors import MissingExtra, UnknownName
from explorer.viz.theme import Theme, matplotlib_rc, mix, plotly_layout, rgba, theme_of

Backend = Literal["plotly", "matplotlib"]
BACKENDS = ("plotly", "matplotlib")
DASHES = {"solid": ("solid", "-"), "dash": ("dash", "--"), "dot": ("dot", ":")}
MARKS = {
    "circle": ("circle", "o"),
    "ring": ("circle-open", "o"),
    "cross": ("x-thin-open", "x"),
    "tick": ("line-ns-open", "|"),
}
SIGMA = "σ, log scale"


class Panel(ABC):
    """One pair of axes. x and y are arrays of equal length; colours are CSS hex strings."""

    @abstractmethod
    def line(
        self, x, y, color: str, *, label: str = "", width: float = 2.0, dash: str = "solid", opacity: float = 1.0
    ) -> None:
        """A polygon through the points; with a label it has a legend entry."""

    @abstractmethod
    def band(self, x, low, high, color: str) -> None:
        """The area between two curves at 20 % opacity."""

    @abstractmethod
    def points(
        self,
        x,
        y,
        color: str | Sequence[str],
        *,
        label: str = "",
        size: float = 5.0,
        mark: str = "circle",
        texts: Sequence[str] = (),
    ) -> None:
        """Marks; `color` one for all or one each, `texts` what hovering over each says."""

    @abstractmethod
    def bars(self, x, height, color: str | Sequence[str], *, width: float, base=0.0) -> None: ...

    @abstractmethod
    def heat(self, x, y, z, *, label: str) -> None:
        """A field of numbers z (len(y), len(x)) on a perceptually uniform scale, NaN left blank."""

    @abstractmethod
    def density(self, x, y, z, *, levels: int = 7) -> None:
        """Filled contours of a density z (len(y), len(x)), behind the data."""

    @abstractmethod
    def image(self, pixels: np.ndarray) -> None:
        """A picture (H, W, 3) uint8, square pixels, no axes."""

    @abstractmethod
    def text(
        self,
        x: float,
        y: float,
        words: str,
        color: str,
        *,
        anchor: Literal["left", "center", "right"] = "left",
        shift: tuple[int, int] = (0, 0),
    ) -> None:
        """Words at a point, moved right and up by `shift` pixels."""

    @abstractmethod
    def axes(
        self,
        x: str = "",
        y: str = "",
        *,
        log_x: bool = False,
        log_y: bool = False,
        equal: bool = False,
        reverse_x: bool = False,
        x_range: tuple[float, float] | None = None,
        y_range: tuple[float, float] | None = None,
        x_ticks: tuple[Sequence[float], Sequence[str]] | None = None,
        y_ticks: tuple[Sequence[float], Sequence[str]] | None = None,
        hide: bool = False,
    ) -> None:
        """Titles (symbol and unit), scales and ranges. Ranges are in data units, also on a log scale."""


class Canvas(ABC):
    """A figure in the making: `panel(i)` to draw, `finish` to get the native figure."""

    theme: Theme

    @abstractmethod
    def panel(self, i: int = 0) -> Panel: ...

    @abstractmethod
    def finish(self, caption: str = "") -> Any:
        """The plotly Figure or matplotlib Figure, with a caption below."""


def canvas(
    backend: Backend,
    theme: str | Theme = "light",
    *,
    titles: Sequence[str] = ("",),
    columns: int = 1,
    size: tuple[int, int] = (720, 420),
    share_x: bool = False,
    heights: Sequence[float] | None = None,
) -> Canvas:
    """A canvas of one panel per title, filled row by row; size in pixels.

    Raises: UnknownName; MissingExtra when the library is not installed.
    """
    if backend not in BACKENDS:
        raise UnknownName("figure backend", backend, BACKENDS)
    if find_spec(backend) is None:
        raise MissingExtra(backend, "app", f"a {backend} figure")
    made = PlotlyCanvas if backend == "plotly" else MatplotlibCanvas
    return made(theme_of(theme), titles, columns, size, share_x, heights)


def joined(lines: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Many polylines (k, 2) as one x and y with NaN between them."""
    gap = np.full((1, 2), np.nan)
    parts = [part for line in lines for part in (line, gap)]
    xy = np.concatenate(parts[:-1]) if parts else np.zeros((0, 2))
    return xy[:, 0], xy[:, 1]


def wrapped(caption: str, width: int) -> list[str]:
    """The caption in lines that fit a figure of that many pixels."""
    return textwrap.wrap(caption, max(20, int(width / 6.9)))


def _runs(*arrays: np.ndarray) -> list[slice]:
    """Stretches where all arrays are finite."""
    good = np.all([np.isfinite(a) for a in arrays], axis=0)
    edges = np.flatnonzero(np.diff(np.concatenate(([0], good.astype(int), [0]))))
    return [slice(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True)]


class PlotlyCanvas(Canvas):
    def __init__(self, theme: Theme, titles, columns, size, share_x, heights):
        from plotly.subplots import make_subplots

        self.theme, self.columns = theme, columns
        rows = -(-len(titles) // columns)
        self.height = size[1]
        gap = (56 if any(titles) else 36) / max(size[1] - 110, 1)  # a share of the height inside the margins
        self.figure = make_subplots(
            rows,
            columns,
            subplot_titles=list(titles) if any(titles) else None,
            shared_xaxes=share_x,
            vertical_spacing=min(gap, 0.9 / max(rows - 1, 1)) if rows > 1 else 0,
            horizontal_spacing=0.09 if columns > 1 else 0,
            row_heights=list(heights) if heights else None,
        )
        self.figure.update_layout(**plotly_layout(theme), width=size[0], height=size[1], showlegend=False)
        for title in self.figure.layout.annotations:
            title.update(font={"size": 13, "color": theme.text}, xanchor="left", yshift=2)
        self.size, self.share_x, self.rows = size, share_x, rows
        self.panels = [PlotlyPanel(self, i // columns + 1, i % columns + 1) for i in range(len(titles))]
        for panel, title in zip(self.panels, self.figure.layout.annotations, strict=False):
            title.x = panel.domain("x")[0]

    def panel(self, i: int = 0) -> Panel:
        return self.panels[i]

    def finish(self, caption: str = ""):
        shown = any(getattr(trace, "showlegend", None) for trace in self.figure.data)
        titled = len(self.figure.layout.annotations) > 0
        top = 12 + (24 if shown else 0) + (24 if titled else 0)
        if shown and titled:
            self.figure.update_layout(legend={"y": 1 + 26 / self.height})
        self.figure.update_layout(showlegend=shown, margin={"l": 56, "r": 20, "t": top, "b": 50})
        if caption:
            lines = wrapped(caption, self.size[0])
            self.figure.layout.margin.b = 64 + 14 * len(lines)
            self.figure.add_annotation(
                text="<br>".join(lines),
                xref="paper", yref="paper", x=0, y=0, xanchor="left", yanchor="top", yshift=-46, align="left",
                showarrow=False, font={"size": 11, "color": self.theme.muted},
            )  # fmt: skip
        return self.figure


class PlotlyPanel(Panel):
    def __init__(self, owner: PlotlyCanvas, row: int, column: int):
        self.owner, self.place = owner, {"row": row, "col": column}
        number = (row - 1) * owner.columns + column
        self.suffix = "" if number == 1 else str(number)

    def domain(self, axis: str) -> tuple[float, float]:
        return self.owner.figure.layout[f"{axis}axis{self.suffix}"].domain or (0.0, 1.0)

    def _add(self, trace) -> None:
        self.owner.figure.add_trace(trace, **self.place)

    def line(self, x, y, color, *, label="", width=2.0, dash="solid", opacity=1.0):
        import plotly.graph_objects as go

        self._add(
            go.Scatter(
                x=x, y=y, mode="lines", name=label, legendgroup=label, showlegend=bool(label), opacity=opacity,
                line={"color": color, "width": width, "dash": DASHES[dash][0]}, connectgaps=False,
                hoverinfo="all" if label else "skip",
            )
        )  # fmt: skip

    def band(self, x, low, high, color):
        import plotly.graph_objects as go

        x, low, high = (np.asarray(a, dtype=float) for a in (x, low, high))
        for run in _runs(x, low, high):
            self._add(
                go.Scatter(
                    x=np.concatenate((x[run], x[run][::-1])),
                    y=np.concatenate((low[run], high[run][::-1])),
                    fill="toself", fillcolor=rgba(color, 0.2), line={"width": 0}, mode="lines", hoverinfo="skip", showlegend=False,
                )
            )  # fmt: skip

    def points(self, x, y, color, *, label="", size=5.0, mark="circle", texts=()):
        import plotly.graph_objects as go

        outline = {"width": 1.5, "color": color} if mark != "circle" else {"width": 0}
        self._add(
            go.Scatter(
                x=x, y=y, mode="markers", name=label, legendgroup=label, showlegend=bool(label), text=list(texts) or None,
                marker={"color": color, "size": size, "symbol": MARKS[mark][0], "line": outline},
                hoverinfo="text" if len(texts) else "x+y",
            )
        )  # fmt: skip

    def bars(self, x, height, color, *, width, base=0.0):
        import plotly.graph_objects as go

        self._add(
            go.Bar(
                x=x, y=height, base=base, width=width, marker={"color": color, "line": {"width": 0}}, showlegend=False
            )
        )
        self.owner.figure.update_layout(barmode="overlay")

    def heat(self, x, y, z, *, label):
        import plotly.graph_objects as go

        (_, right), (low, high) = self.domain("x"), self.domain("y")  # one bar beside each panel, not all at the right
        bar = {"title": {"text": label, "side": "right"}, "thickness": 12, "outlinewidth": 0}
        bar |= {"x": right + 0.01, "y": (low + high) / 2, "len": high - low, "xanchor": "left", "yanchor": "middle"}
        self._add(go.Heatmap(x=x, y=y, z=z, colorscale="Viridis", colorbar=bar, hoverongaps=False))

    def density(self, x, y, z, *, levels=7):
        import plotly.graph_objects as go

        th, top = self.owner.theme, float(np.nanmax(z))
        scale = [[0.0, rgba(th.high, 0.0)], [1.0, rgba(th.high, 0.75)]]
        contours = {"start": top / levels, "end": top, "size": top / levels}
        self._add(
            go.Contour(
                x=x, y=y, z=z, colorscale=scale, zmin=0, zmax=top, contours=contours, line={"width": 0}, showscale=False,
                hoverinfo="skip",
            )
        )  # fmt: skip

    def image(self, pixels):
        import plotly.graph_objects as go

        from explorer.viz.images import data_uri

        self._add(go.Image(source=data_uri(pixels), hoverinfo="skip"))

    def text(self, x, y, words, color, *, anchor="left", shift=(0, 0)):
        figure = self.owner.figure
        logs = [figure.layout[f"{a}axis{self.suffix}"].type == "log" for a in "xy"]
        x, y = (float(np.log10(v)) if log else v for v, log in zip((x, y), logs, strict=True))
        figure.add_annotation(
            x=x, y=y, text=words, showarrow=False, xanchor=anchor, xshift=shift[0], yshift=shift[1],
            font={"color": color, "size": 11}, **self.place,
        )  # fmt: skip

    def axes(
        self, x="", y="", *, log_x=False, log_y=False, equal=False, reverse_x=False, x_range=None, y_range=None,
        x_ticks=None, y_ticks=None, hide=False,
    ):  # fmt: skip
        figure = self.owner.figure
        along = {"title": {"text": x}, "type": "log" if log_x else "linear", "visible": not hide}
        up = {"title": {"text": y}, "type": "log" if log_y else "linear", "visible": not hide}
        if log_x:
            along |= {"exponentformat": "none", "dtick": 1, "minor": {"dtick": "D1", "ticks": "outside", "ticklen": 2}}
        if log_y:
            up |= {"exponentformat": "e"}
        if x_range is not None:
            ends = tuple(np.log10(x_range)) if log_x else x_range
            along["range"] = ends[::-1] if reverse_x else ends
        elif reverse_x:
            along["autorange"] = "reversed"
        if y_range is not None:
            up["range"] = tuple(np.log10(y_range)) if log_y else y_range
        for axis, ticks in ((along, x_ticks), (up, y_ticks)):
            if ticks is not None:
                axis |= {"tickvals": list(ticks[0]), "ticktext": list(ticks[1])}
        if equal:
            up |= {"scaleanchor": f"x{self.suffix}", "scaleratio": 1}
            along |= {"constrain": "domain"}
            up |= {"constrain": "domain"}
        figure.update_xaxes(**along, **self.place)
        figure.update_yaxes(**up, **self.place)


class MatplotlibCanvas(Canvas):
    def __init__(self, theme: Theme, titles, columns, size, share_x, heights):
        import matplotlib
        from matplotlib.figure import Figure

        self.theme, self.size = theme, size
        rows = -(-len(titles) // columns)
        with matplotlib.rc_context(matplotlib_rc(theme)):
            # a bare Figure: nothing is registered with pyplot, nothing has to be closed
            self.figure = Figure(figsize=(size[0] / 100, size[1] / 100), layout="constrained")
            grid = self.figure.subplots(
                rows, columns, squeeze=False, sharex="col" if share_x else False, height_ratios=heights or [1] * rows
            )
        self.panels = []
        for ax, title in zip(grid.flat, titles, strict=False):
            ax.set_title(title, loc="left", fontsize=10.5, color=theme.text)
            self.panels.append(MatplotlibPanel(self, ax))
        for ax in list(grid.flat)[len(titles) :]:
            ax.remove()

    def panel(self, i: int = 0) -> Panel:
        return self.panels[i]

    def finish(self, caption: str = ""):
        handles, labels = self.panels[0].ax.get_legend_handles_labels()
        if labels:
            style = {"labelcolor": self.theme.text, "frameon": False, "fontsize": 9}
            self.figure.legend(handles, labels, ncols=min(4, len(labels)), loc="outside upper left", **style)
        if caption:
            words = wrapped(caption, self.size[0])
            self.figure.supxlabel("\n".join(words), x=0.01, ha="left", fontsize=8.5, color=self.theme.muted)
        return self.figure


class MatplotlibPanel(Panel):
    def __init__(self, owner: MatplotlibCanvas, ax):
        self.owner, self.ax = owner, ax

    def line(self, x, y, color, *, label="", width=2.0, dash="solid", opacity=1.0):
        self.ax.plot(
            x, y, color=color, label=label or None, linewidth=0.75 * width, linestyle=DASHES[dash][1], alpha=opacity
        )

    def band(self, x, low, high, color):
        self.ax.fill_between(
            np.asarray(x, float), np.asarray(low, float), np.asarray(high, float), color=color, alpha=0.2, linewidth=0
        )

    def points(self, x, y, color, *, label="", size=5.0, mark="circle", texts=()):
        face = {"facecolors": "none", "edgecolors": color} if mark == "ring" else {"c": color}
        edge = 0 if mark == "circle" else 1.2
        self.ax.scatter(
            x, y, s=(0.75 * size) ** 2, marker=MARKS[mark][1], linewidths=edge, label=label or None, zorder=3, **face
        )

    def bars(self, x, height, color, *, width, base=0.0):
        self.ax.bar(x, height, bottom=base, width=width, color=color, linewidth=0)

    def heat(self, x, y, z, *, label):
        mesh = self.ax.pcolormesh(x, y, np.ma.masked_invalid(z), cmap="viridis", shading="nearest")
        bar = self.owner.figure.colorbar(mesh, ax=self.ax)
        bar.set_label(label, color=self.owner.theme.text)
        bar.ax.tick_params(colors=self.owner.theme.muted)
        bar.outline.set_visible(False)
        self.ax.grid(False)

    def density(self, x, y, z, *, levels=7):
        th, top = self.owner.theme, float(np.nanmax(z))
        colors = [mix(th.low, th.high, 0.75 * (i + 1) / levels) for i in range(levels)]
        self.ax.contourf(x, y, z, levels=np.linspace(top / levels, top * 1.0001, levels + 1), colors=colors, zorder=0)

    def image(self, pixels):
        self.ax.imshow(pixels, interpolation="nearest")
        self.ax.axis("off")

    def text(self, x, y, words, color, *, anchor="left", shift=(0, 0)):
        points = tuple(0.75 * s for s in shift)
        style = {"color": color, "ha": anchor, "va": "center", "fontsize": 9}
        self.ax.annotate(words, (x, y), xytext=points, textcoords="offset points", **style)

    def axes(
        self, x="", y="", *, log_x=False, log_y=False, equal=False, reverse_x=False, x_range=None, y_range=None,
        x_ticks=None, y_ticks=None, hide=False,
    ):  # fmt: skip
        ax = self.ax
        ax.set_xlabel(x)
        ax.set_ylabel(y)
        if log_x:
            ax.set_xscale("log")
            ax.xaxis.set_major_formatter("{x:g}")
        if log_y:
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter("{x:g}")
        if x_range is not None:
            ax.set_xlim(*(x_range[::-1] if reverse_x else x_range))
        elif reverse_x and not ax.xaxis_inverted():
            ax.invert_xaxis()
        if y_range is not None:
            ax.set_ylim(*y_range)
        if x_ticks is not None:
            ax.set_xticks([], minor=True)
            ax.set_xticks(list(x_ticks[0]), list(x_ticks[1]))
        if y_ticks is not None:
            ax.set_yticks(list(y_ticks[0]), list(y_ticks[1]))
        if equal:
            ax.set_aspect("equal", adjustable="box")
        if hide:
            ax.axis("off")
