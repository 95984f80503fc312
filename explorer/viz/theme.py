"""Colours and type, once, for plotly and matplotlib, light and dark.

Settings and methods take the colours of Okabe and Ito (2008), told apart by every common kind of colour vision; the
pinned setting is the colour of the text. Angles take hues of equal lightness and chroma, so no direction looks
heavier.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from explorer.errors import UnknownName

OKABE_ITO = ("#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#F0E442")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
ThemeName = Literal["light", "dark"]


@dataclass(frozen=True)
class Theme:
    """A set of colours.

    Attributes:
        background, text, muted, grid: of the page, what is read, what is secondary, lines behind the data.
        accent: the one colour of a figure that has no settings to tell apart.
        settings: colours of settings in order; the pinned one is `text`.
        low, high: ends of a one-hue scale for densities, from nothing to much.
        lightness: of the hues that stand for angles.
    """

    name: ThemeName
    background: str
    text: str
    muted: str
    grid: str
    accent: str
    settings: tuple[str, ...]
    low: str
    high: str
    lightness: float

    def color(self, i: int) -> str:
        """Colour of setting i; after seven they repeat, so give such settings names as well."""
        return self.settings[i % len(self.settings)]


LIGHT = Theme(
    "light", "#ffffff", "#1b1f24", "#667079", "#e6e9ec", "#0072B2",
    (*OKABE_ITO[:6], "#B8A900"),  # yellow darkened: the published one has contrast 1.3 on white
    "#ffffff", "#8fa9bd", 0.62,
)  # fmt: skip
DARK = Theme(
    "dark", "#14171b", "#e8eaed", "#98a2ad", "#2b3036", "#56B4E9",
    (*OKABE_ITO[:3], "#3D9BE0", *OKABE_ITO[4:]),  # blue lightened: the published one has contrast 3.4 here
    "#14171b", "#4c6a82", 0.74,
)  # fmt: skip
THEMES = {"light": LIGHT, "dark": DARK}


def theme_of(theme: str | Theme) -> Theme:
    """The theme of that name."""
    if isinstance(theme, Theme):
        return theme
    if theme not in THEMES:
        raise UnknownName("theme", theme, THEMES)
    return THEMES[theme]


def mix(a: str, b: str, share: float) -> str:
    """The colour `share` of the way from a to b, in sRGB."""
    one, two = _rgb(a), _rgb(b)
    return "#" + "".join(f"{round(x + share * (y - x)):02x}" for x, y in zip(one, two, strict=True))


def rgba(color: str, opacity: float) -> str:
    """CSS colour with opacity."""
    return f"rgba({','.join(map(str, _rgb(color)))},{opacity:g})"


def _rgb(color: str) -> tuple[int, int, int]:
    return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))


def angle_colors(angles: Sequence[float] | np.ndarray, theme: str | Theme = "light", n: int = 24) -> list[str]:
    """One colour per angle in radians, from n hues of equal lightness and chroma (OKLCH), cyclic."""
    wheel = [_oklch(theme_of(theme).lightness, 0.125, 2 * math.pi * (i + 0.5) / n) for i in range(n)]
    turns = np.asarray(angles, dtype=float) / (2 * math.pi)
    return [wheel[int(k)] for k in np.floor((turns % 1.0) * n).astype(int) % n]


def ramp(
    values: Sequence[float] | np.ndarray, theme: str | Theme = "light", n: int = 24
) -> tuple[list[str], float, float]:
    """One colour per number on a perceptually uniform scale (viridis), and the numbers at its ends."""
    values = np.asarray(values, dtype=float)
    low, high = (float(np.nanmin(values)), float(np.nanmax(values))) if len(values) else (0.0, 1.0)
    share = (values - low) / (high - low) if high > low else np.zeros(len(values))
    stops = VIRIDIS if theme_of(theme).name == "light" else VIRIDIS[2:]
    scale = [_between(stops, i / (n - 1)) for i in range(n)]
    return [scale[round(float(s) * (n - 1))] for s in share], low, high


# Nine stops of viridis (Smith and van der Walt, CC0); on dark paper its two darkest stops are left out.
VIRIDIS = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#d8e219")


def _between(stops: Sequence[str], share: float) -> str:
    at = share * (len(stops) - 1)
    k = min(int(at), len(stops) - 2)
    return mix(stops[k], stops[k + 1], at - k)


def _oklch(lightness: float, chroma: float, hue: float) -> str:
    """sRGB of an OKLCH colour. Source: Ottosson 2020, the OKLab colour space."""
    a, b = chroma * math.cos(hue), chroma * math.sin(hue)
    lms = [
        (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3,
        (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3,
        (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3,
    ]
    linear = (
        4.0767416621 * lms[0] - 3.3077115913 * lms[1] + 0.2309699292 * lms[2],
        -1.2684380046 * lms[0] + 2.6097574011 * lms[1] - 0.3413193965 * lms[2],
        -0.0041960863 * lms[0] - 0.7034186147 * lms[1] + 1.7076147010 * lms[2],
    )
    out = []
    for c in linear:
        c = min(max(c, 0.0), 1.0)
        out.append(12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055)
    return "#" + "".join(f"{round(255 * c):02x}" for c in out)


def plotly_layout(theme: str | Theme) -> dict[str, Any]:
    """The part of a plotly layout that every figure shares."""
    th = theme_of(theme)
    axis = {
        "gridcolor": th.grid,
        "linecolor": th.muted,
        "tickcolor": th.muted,
        "zeroline": False,
        "showline": True,
        "ticks": "outside",
        "ticklen": 4,
        "title": {"standoff": 8, "font": {"size": 13}},
        "automargin": True,
    }
    return {
        "template": {"layout": {"xaxis": axis, "yaxis": axis, "colorway": list(th.settings)}},
        "paper_bgcolor": th.background,
        "plot_bgcolor": th.background,
        "font": {"family": FONT, "size": 12, "color": th.text},
        "hoverlabel": {"bgcolor": th.background, "bordercolor": th.grid, "font": {"color": th.text}},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "bgcolor": "rgba(0,0,0,0)"},
        "uirevision": "explorer",  # zoom and hidden traces survive an update
    }


def matplotlib_rc(theme: str | Theme) -> dict[str, Any]:
    """rcParams for `matplotlib.rc_context`."""
    th = theme_of(theme)
    return {
        "figure.facecolor": th.background,
        "axes.facecolor": th.background,
        "savefig.facecolor": th.background,
        "text.color": th.text,
        "axes.labelcolor": th.text,
        "axes.edgecolor": th.muted,
        "axes.titlecolor": th.text,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": th.grid,
        "grid.linewidth": 0.8,
        "xtick.color": th.muted,
        "ytick.color": th.muted,
        "legend.frameon": False,
        "font.size": 10,
        "figure.dpi": 110,
    }
