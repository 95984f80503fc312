"""A search as it went, and what its numbers are worth on noise it never saw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from explorer.errors import BadValue
from explorer.viz.canvas import Backend, canvas
from explorer.viz.few_steps import Estimate
from explorer.viz.steps import setting_colors
from explorer.viz.theme import Theme, theme_of


class Trial(Protocol):
    """What is needed of `explorer.tuning.Trial`."""

    number: int
    estimate: Estimate
    difference: Estimate
    failed: str
    note: str


def search_progress(
    trials: Sequence[Trial],
    *,
    held: Mapping[str, Estimate] | None = None,
    log_y: bool = False,
    caption: str = "",
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] = (680, 380),
) -> Any:
    """Figure of every trial's value, the best so far with its one-standard-error band, failed trials as crosses at the top.

    Args:
        trials: of one study, the baseline first; those on fewer samples than the baseline are left out.
        held: name -> estimate on held-out noise, drawn at the right edge with its error ("tuned", "baseline").
    """
    whole = [t for t in trials if t.failed or t.estimate.n == trials[0].estimate.n]
    good = [t for t in whole if not t.failed]
    if not good:
        raise BadValue("a search without a measured trial cannot be drawn.")
    th = theme_of(theme)
    c = canvas(backend, th, size=size)
    panel = c.panel()
    at, value = (np.array(v, float) for v in ([t.number for t in good], [t.estimate.value for t in good]))
    says = [f"trial {t.number}: {t.estimate.value:.4g}, {t.note or 'baseline'}" for t in good]
    panel.points(at, value, th.muted, size=4, texts=says)
    leads = np.minimum.accumulate(value)
    lead = [good[int(np.flatnonzero(value[: i + 1] == leads[i])[0])] for i in range(len(good))]
    error = np.array([t.estimate.std_error if math.isfinite(t.estimate.std_error) else 0.0 for t in lead])
    panel.band(at, leads - error, leads + error, th.accent)
    panel.line(at, leads, th.accent, label="best so far")
    last = max(t.number for t in whole)
    panel.line([0, last], [value[0], value[0]], th.text, label="baseline", width=1.2, dash="dot")
    failed = [t.number for t in whole if t.failed]
    if failed:
        panel.points(failed, [float(value.max())] * len(failed), th.text, size=6, mark="cross", label="failed")
    end = last * 1.04 + 1
    colors = {"baseline": th.text, "tuned": th.accent}
    for name, e in (held or {}).items():
        color = colors.get(name, th.muted)
        panel.line([end, end], [e.value - e.std_error, e.value + e.std_error], color, width=3)
        panel.points([end], [e.value], color, size=7)
        panel.text(end, e.value, f"{name}, held out", color, shift=(9, 0))
    room = 1.28 if held else 1.02
    panel.axes("trial", good[0].estimate.name or "objective", log_y=log_y, x_range=(-0.02 * end, room * end))
    return c.finish(
        caption or f"n = {good[0].estimate.n} samples of the same noise each; band: one standard error of the best"
    )


def winners_curse(
    found: Mapping[str, tuple[Estimate, Estimate]],
    *,
    y: str = "change of the objective",
    caption: str = "",
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] = (620, 360),
) -> Any:
    """Figure of what a search believed it gained beside what it gained on held-out noise, two standard errors as lines; 0 is no change.

    Args:
        found: search -> (difference on the search's noise, difference on held-out noise), tuned minus baseline.
    """
    if not found:
        raise BadValue("no search to draw.")
    th = theme_of(theme)
    c = canvas(backend, th, size=size)
    panel = c.panel()
    colors = setting_colors(["believed by the search", "on held-out noise"], th)
    for k, (name, color) in enumerate(colors.items()):
        at = np.arange(len(found)) + (k - 0.5) * 0.24
        pairs = [pair[k] for pair in found.values()]
        panel.points(at, [e.value for e in pairs], color, size=8, label=name)
        for a, e in zip(at, pairs, strict=True):
            panel.line([a, a], [e.value - 2 * e.std_error, e.value + 2 * e.std_error], color, width=2.5)
    panel.line([-0.6, len(found) - 0.4], [0, 0], th.text, width=1.2, dash="dot")
    panel.axes("", y, x_ticks=(list(range(len(found))), list(found)), x_range=(-0.6, len(found) - 0.4))
    return c.finish(caption)
