"""Solvers against each other: error and its order by number of steps, and quality for the work it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from explorer.errors import BadValue
from explorer.viz.canvas import Backend, Panel, canvas
from explorer.viz.metrics import Estimate, pareto_front
from explorer.viz.steps import setting_colors
from explorer.viz.theme import Theme, theme_of

Curve = Sequence[tuple[float, float]]
Points = Sequence[tuple[float, float | Estimate]]
Families = Mapping[str, Sequence[str]]


def measured_order(curve: Curve, *, floor: float = 1e-12) -> float:
    """The order that (steps, error) pairs show: minus the slope of ln error against ln steps, by least squares over the last three.

    Errors below `floor`, where rounding takes over, are left out; NaN where fewer than two pairs remain.
    """
    kept = [(math.log(n), math.log(e)) for n, e in sorted(curve) if math.isfinite(e) and e > floor][-3:]
    if len(kept) < 2:
        return math.nan
    x, y = np.array(kept).T
    return -float(np.polyfit(x, y, 1)[0])


def order_plot(
    curves: Mapping[str, Curve],
    *,
    families: Families | None = None,
    error: str = "RMSE of end points",
    caption: str = "",
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] | None = None,
) -> Any:
    """Figure of error against steps, both logarithmic, each curve named with its measured order; dotted slopes 1 to 4 to compare.

    Args:
        curves: solver -> (number of steps, error) pairs.
        families: title -> solvers of one panel; by default one panel for all. More than seven in a panel share colours.
        error: title of the vertical axis, with its unit.
        caption: what was measured: problem, n, reference.
    """
    known = _drawable(curves)
    panels = _panels(known, families)
    th, columns = theme_of(theme), min(2, len(panels))
    rows = -(-len(panels) // columns)
    size = size or ((720 if columns == 2 else 520), 80 + 330 * rows)
    c = canvas(backend, th, titles=list(panels), columns=columns, size=size)
    steps = [n for curve in known.values() for n, _ in curve]
    errors = [e for curve in known.values() for _, e in curve]
    span = (min(steps) / 1.15, max(steps) * (max(steps) / min(steps)) ** _room(known, 4, size[0] / columns))
    y_range = (min(errors) / 2, max(errors) * 2)
    height = (size[1] - 80) / rows - 60
    for i, members in enumerate(panels.values()):
        panel = c.panel(i)
        _slopes(panel, (min(steps), max(steps)), y_range, th)
        labels = []
        for name, color in setting_colors(list(members), th).items():
            n, e = np.array(sorted(known[name]), dtype=float).T
            panel.line(n, e, color)
            panel.points(
                n, e, color, size=5, texts=[f"{name}: {v:.3g} at {int(k)} steps" for k, v in zip(n, e, strict=True)]
            )
            labels.append((n[-1], e[-1], f"{name} {measured_order(known[name]):.1f}", color))
        left, bottom = i % columns == 0, i >= len(panels) - columns
        ticks = _ticks(span, max(steps), size[0] / columns)
        panel.axes(
            "steps N, log scale" if bottom else "", error if left else "", log_x=True, log_y=True, x_range=span, y_range=y_range,
            x_ticks=ticks,
        )  # fmt: skip
        _name_ends(panel, labels, y_range, height)
    said = "numbers: measured order; dotted: slopes 1 to 4"
    return c.finish(f"{caption}; {said}" if caption else said)


def work_precision(
    points: Mapping[str, Points],
    *,
    families: Families | None = None,
    quality: str = "",
    level: float = 0.95,
    caption: str = "",
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] | None = None,
) -> Any:
    """Figure of error, or of a metric with its interval, against network evaluations per sample; lower left is better.

    The points that no other beats at equal or lower cost are ringed and joined by a dashed line, the same in every panel.

    Args:
        points: solver -> (evaluations per sample, number or estimate) pairs; an estimate draws its interval.
        families: title -> solvers of one panel; by default one panel for all.
        quality: title of the vertical axis; by default the estimates' own name.
        level: coverage of the intervals.
        caption: what was measured.
    """
    known = {
        name: sorted(((c, v) for c, v in run if math.isfinite(_value(v))), key=lambda p: p[0])
        for name, run in points.items()
    }
    known = {name: run for name, run in known.items() if run}
    if not known:
        raise BadValue(
            "nothing to draw: every solver needs at least one (evaluations, value) pair with a finite value."
        )
    panels = _panels(known, families)
    th, columns = theme_of(theme), min(2, len(panels))
    rows = -(-len(panels) // columns)
    size = size or ((720 if columns == 2 else 560), 80 + 330 * rows)
    every = [(cost, v) for run in known.values() for cost, v in run]
    estimate = next((v for _, v in every if not isinstance(v, float | int)), None)
    costs, bounds = [cost for cost, _ in every], [b for _, v in every for b in _interval(v, level)]
    log_y = min(bounds) > 0 and max(bounds) > 20 * min(bounds)
    y_range = (min(bounds) / 1.5, max(bounds) * 1.5) if log_y else _padded(min(bounds), max(bounds))
    aside = 0.0 if estimate is None else 0.02  # intervals stand beside each other, this share of their cost apart
    right = max(costs) * (1 + 0.5 * aside * max(map(len, panels.values())))
    span = (min(costs) / 1.15, right * (max(costs) / min(costs)) ** _room(known, 0, size[0] / columns))
    front = pareto_front([(cost, _value(v)) for cost, v in every])
    c = canvas(backend, th, titles=list(panels), columns=columns, size=size)
    height = (size[1] - 80) / rows - 60
    for i, members in enumerate(panels.values()):
        panel, labels = c.panel(i), []
        stairs = [(x, y) for k, (x, y) in enumerate(front) for y in ((front[k - 1][1], y) if k else (y,))]
        panel.line([x for x, _ in stairs], [y for _, y in stairs], th.muted, width=1, dash="dash")
        for k, (name, color) in enumerate(setting_colors(list(members), th).items()):
            run = known[name]
            cost, value = [x for x, _ in run], [_value(v) for _, v in run]
            shift = 1 + aside * (k - (len(members) - 1) / 2)
            at = [x * shift for x in cost]
            for x, (_, v) in zip(at, run, strict=True):
                if not isinstance(v, float | int):
                    panel.line([x, x], list(_interval(v, level)), color, width=3, opacity=0.4)
            panel.line(at, value, color)
            texts = [f"{name}: {v:.3g} at {x:g} NFE" for x, v in zip(cost, value, strict=True)]
            panel.points(at, value, color, size=5, texts=texts)
            best = [(x * shift, v) for x, v in zip(cost, value, strict=True) if (x, v) in front]
            if best:
                panel.points([x for x, _ in best], [v for _, v in best], color, size=12, mark="ring")
            labels.append((at[-1], value[-1], name, color))
        left, bottom = i % columns == 0, i >= len(panels) - columns
        title = quality or (estimate.name if estimate is not None else "error")
        panel.axes(
            "NFE per sample, log scale" if bottom else "", title if left else "", log_x=True, log_y=log_y, x_range=span, y_range=y_range,
            x_ticks=_ticks(span, max(costs), size[0] / columns),
        )  # fmt: skip
        _name_ends(panel, labels, y_range, height, log_y=log_y)
    said = "ringed and dashed: not beaten at equal or lower cost"
    if estimate is not None:
        said = f"n = {estimate.n}; bars: {100 * level:g} % intervals; {said}"
    return c.finish(f"{caption}; {said}" if caption else said)


def _drawable(curves: Mapping[str, Curve]) -> dict[str, list[tuple[float, float]]]:
    known = {name: sorted((n, e) for n, e in curve if math.isfinite(e) and e > 0) for name, curve in curves.items()}
    known = {name: curve for name, curve in known.items() if curve}
    if not known:
        raise BadValue("nothing to draw: every solver needs at least one (steps, error) pair with a positive error.")
    return known


def _panels(known: Mapping[str, Any], families: Families | None) -> dict[str, list[str]]:
    """Title -> solvers that have something to draw."""
    if families is None:
        return {"": list(known)}
    missing = [name for members in families.values() for name in members if name not in known]
    if missing:
        raise BadValue(f"nothing was measured for {', '.join(missing)}; known: {', '.join(known)}.")
    return {title: list(members) for title, members in families.items() if len(members)}


def _value(v: float | Estimate) -> float:
    return float(v) if isinstance(v, float | int) else v.value


def _interval(v: float | Estimate, level: float) -> tuple[float, float]:
    return (float(v), float(v)) if isinstance(v, float | int) else v.interval(level)


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = 0.05 * (high - low or abs(high) or 1.0)
    return low - margin, high + margin


def _room(names: Sequence[str], more: int, width: float) -> float:
    """Space for the longest name and `more` characters right of the curves, in lengths of the curves, in a panel that wide in pixels."""
    words, inside = 18 + 7.6 * (max(map(len, names)) + more), width - 70
    return min(words / max(inside - words, 1.0), 1.5)


def _slopes(panel: Panel, steps: tuple[float, float], y_range: tuple[float, float], th: Theme) -> None:
    """Dotted lines of slope -1 to -4 from the upper left corner, cut at the frame."""
    n0, n1 = steps
    top, bottom = 0.6 * y_range[1], y_range[0]
    for order in (1, 2, 3, 4):
        end = min(n1, n0 * (top / bottom) ** (1 / order))
        panel.line([n0, end], [top, top * (n0 / end) ** order], th.muted, width=0.8, dash="dot", opacity=0.7)


def _name_ends(
    panel: Panel, labels: Sequence[tuple[float, float, str, str]], y_range, height: float, *, log_y: bool = True
) -> None:
    """Names beside the last points, (x, y, words, colour) each, moved apart where they would overlap."""
    low, high = (math.log(v) for v in y_range) if log_y else y_range
    pixel = [height * ((math.log(y) if log_y else y) - low) / (high - low) for _, y, _, _ in labels]
    last, first = max(x for x, *_ in labels), min(x for x, *_ in labels)
    for (x, y, words, color), at, to in zip(labels, pixel, spread(pixel, 13.0, 4.0, height - 4.0), strict=True):
        panel.text(last if last < 1.4 * first else x, y, words, color, shift=(11, round(to - at)))


def spread(at: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near `at`, in the same order, at least `gap` apart where there is room, within [low, high]."""
    order = sorted(range(len(at)), key=lambda i: at[i])
    gap = min(gap, (high - low) / max(len(at) - 1, 1))
    blocks: list[list] = []  # [sum of wanted first positions, members]
    for i in order:
        blocks.append([at[i], [i]])
        while True:
            first = [_first(block, gap, low, high) for block in blocks]
            if len(blocks) < 2 or first[-1] >= first[-2] + gap * len(blocks[-2][1]) - 1e-9:
                break
            wanted, members = blocks.pop()
            blocks[-1][0] += wanted - gap * len(blocks[-1][1]) * len(members)
            blocks[-1][1] += members
    out = [0.0] * len(at)
    for block in blocks:
        start = _first(block, gap, low, high)
        for k, i in enumerate(block[1]):
            out[i] = start + k * gap
    return out


def _first(block: list, gap: float, low: float, high: float) -> float:
    """Where the lowest of a block of touching labels goes: at the mean of what its members want."""
    wanted, members = block
    return min(max(wanted / len(members), low), high - gap * (len(members) - 1))


def _ticks(span: tuple[float, float], last: float, width: float) -> tuple[list[float], list[str]]:
    """Ticks from the left to `last`, fewer where they would touch in a panel that wide in pixels."""
    inside = lambda values: [t for t in values if span[0] <= t <= last * 1.01]  # noqa: E731
    ticks = inside(2**k for k in range(16))
    if len(ticks) < 3:
        ticks = inside((*range(1, 11), *range(12, 31, 2), *range(35, 101, 5), *range(120, 1001, 20)))
    share = math.log(last / span[0]) / math.log(span[1] / span[0])
    while len(ticks) > 3 and (width - 70) * share / len(ticks) < 32:
        ticks = ticks[::2]
    return [float(t) for t in ticks], [str(t) for t in ticks]
