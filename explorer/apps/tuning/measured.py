"""What the panes of the grid and of the map show, from the store: plain dicts; no drawing, no measuring."""

from __future__ import annotations

import math
from typing import Any

from explorer.apps import catalogue
from explorer.apps.tuning import measure
from explorer.apps.tuning.bridge import lab_link
from explorer.apps.tuning.state import Tunings
from explorer.apps.views import clock, minus, parts, thousands
from explorer.errors import ExplorerError
from explorer.tuning import Setting as Tunable

BEST = "var(--c0)"


def steps_data(store: Tunings) -> dict:
    """The grid that can be dragged with the error of each step, and the one found lying under it."""
    try:
        setting = store.start_setting
        nodes = [s for s in setting.sampler.grid.times if s > 0]
    except ExplorerError as error:
        return {"missing": str(error)}
    low, high = store.model.sigma_range
    other, trial = store.other(), store.trial
    return {
        "model": store.plan.model,
        "nodes": nodes,
        "own": store.knobs.nodes is not None,
        "dragged": store.ghost is not None,
        "errors": _errors(store, setting),
        "range": [max(low, 5e-4), min(high, max(160.0, nodes[0]))],
        "other": None
        if other is None or other == setting
        else {
            "label": f"trial {trial.number}" if trial.number else "baseline",
            "color": BEST,
            "nodes": [s for s in other.sampler.grid.times if s > 0],
            "errors": _errors(store, other),
        },
        "link": lab_link(store.plan.start),
    }


def _errors(store: Tunings, setting: Tunable) -> dict | None:
    found = store.errors_of(setting)
    if found is None:
        return None
    total = "" if found.total is None else minus(" ± ".join(parts(found.total)))
    mean, se = ([number(v) for v in values] for values in (found.mean, found.se))
    return {"mean": mean, "se": se, "n": found.n, "total": total, "reason": found.reason}


def map_data(store: Tunings) -> dict:
    """The map as it is, and what the next one would be."""
    model, knobs = store.model, store.knobs
    offers = [{"name": c.name, "title": c.title, "doc": c.doc} for c in measure.choices(knobs, model)]
    out: dict[str, Any] = {"offers": offers, "running": bool(store.running), "missing": ""}
    try:
        axes = {which: store.axis(which) for which in ("x", "y")}
    except ExplorerError as error:
        return out | {"missing": str(error), "axes": {}, "map": None}
    titles = {c.name: c.title for c in knobs.controls(model)}
    out["axes"] = {k: {"knob": a.knob, "low": a.values[0], "high": a.values[-1]} for k, a in axes.items()}
    made = store.map
    if made is None:
        return out | {"map": None}
    best = made.best
    cells = []
    for (i, j), cell in made.cells.items():
        item = {"i": i, "j": j, "failed": cell.failed, "nfe": cell.nfe, "link": lab_link(cell.setting)}
        if cell.found is not None:
            e = cell.found.estimate
            item |= {"value": number(e.value), "text": " ± ".join(parts(e)), "tie": (i, j) in made.ties}
        cells.append(item)
    goal = next((c.found.estimate for c in made.cells.values() if c.found is not None), None)
    return out | {
        "map": {
            "x": {"knob": made.x.knob, "title": titles.get(made.x.knob, made.x.knob), "values": list(made.x.values)},
            "y": {"knob": made.y.knob, "title": titles.get(made.y.knob, made.y.knob), "values": list(made.y.values)},
            "cells": cells,
            "best": list(best) if best is not None else None,
            "name": goal.name if goal is not None else "",
            "n": thousands(made.plan.n),
            "done": len(made.cells),
            "count": made.count,
            "stale": made.plan.start != store.plan.start or made.plan.objective != store.plan.objective,
            "of": f"{catalogue.title(made.plan.model)}: {made.plan.knobs.describe(catalogue.model(made.plan.model))}",
        }
    }


def job_data(store: Tunings) -> dict:
    eta = "" if store.eta is None else f" · {clock(store.eta)} left"
    return {
        "running": bool(store.running),
        "fraction": store.fraction,
        "text": f"{store.running}{eta}" if store.running else "",
    }


def number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
