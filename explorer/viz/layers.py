"""Which blocks of a network each step of a sampler leaves out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from explorer.errors import BadValue
from explorer.viz.canvas import Backend, canvas
from explorer.viz.theme import Theme, theme_of

Levels = Sequence[tuple[float, Sequence[int]]]
"""(sigma, numbers of the blocks left out there), as `explorer.tuning.Layers` holds them."""


def layers_left_out(
    found: Mapping[str, Levels],
    blocks: Sequence[str],
    *,
    caption: str = "",
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] | None = None,
) -> Any:
    """Figure of steps (noise left) against blocks (the first to act on top), one panel for each setting; coloured blocks are left out.

    Args:
        found: name -> levels. blocks: names of all blocks in the order in which they act, `UNet.layer_names` say.
    Raises: BadValue: nothing to draw, or a block that does not exist.
    """
    if not found or not all(found.values()) or not blocks:
        raise BadValue(
            "no step to draw: pass the levels of a setting with layers left out, and the names of the blocks."
        )
    wrong = sorted(i for levels in found.values() for _, out in levels for i in out if not 0 <= i < len(blocks))
    if wrong:
        raise BadValue(f"there are blocks 0 to {len(blocks) - 1}, and {wrong[0]} is none of them.")
    th, n = theme_of(theme), len(blocks)
    most = max(map(len, found.values()))
    size = size or (130 + min(max(50 * most, 220), 640) * len(found), 125 + 17 * n)
    room = (size[0] - 130) / len(found)
    c = canvas(backend, th, titles=list(found), columns=len(found), size=size)
    counts = []
    for p, (name, levels) in enumerate(found.items()):
        panel, levels = c.panel(p), sorted(levels, key=lambda level: -level[0])
        steps, out = np.arange(len(levels)), np.zeros((len(levels), n), bool)
        for k, (_, left) in enumerate(levels):
            out[k, list(left)] = True
        for here, color in ((~out, th.grid), (out, th.color(3))):
            k, i = np.nonzero(here)
            panel.bars(steps[k], np.full(len(k), 0.84), color, width=0.9, base=-i - 0.42)
        k, i = np.nonzero(out)
        says = [f"{blocks[b]} left out at σ = {levels[a][0]:.3g}" for a, b in zip(k, i, strict=True)]
        panel.points(steps[k], -i.astype(float), th.color(3), size=4, texts=says)
        named = list(blocks) if p == 0 else [""] * n
        shown = steps[:: math.ceil(46 * len(levels) / room)]  # a label is up to 40 pixels wide
        panel.axes(
            "σ of each step",
            x_range=(-0.5, len(levels) - 0.5),
            y_range=(-n + 0.5, 0.5),
            x_ticks=(shown.tolist(), [f"{levels[k][0]:.2g}" for k in shown]),
            y_ticks=((-np.arange(n)).tolist(), named),
        )
        words = f"{len(levels)} steps, {int((~out).sum())} of {out.size} blocks act"
        counts.append(f"{name}: {words}" if len(found) > 1 else words)
    return c.finish(caption or "; ".join(counts))
