"""What the panes of the grid and of the map show, from the store: plain dicts; no drawing, no measuring."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from explorer.apps import catalogue
from explorer.apps.tuning import measure
from explorer.apps.tuning.bridge import lab_link
from explorer.apps.tuning.state import Tunings
from explorer.apps.views import clock, minus, parts, thousands
from explorer.errors import ExplorerError
from explorer.models.base import Model
from explorer.sampling import AdaptiveSampler, ChainSampler, ScaleTimeSampler, sigmas_of
from explorer.tuning import Layers
from explorer.tuning import Setting as Tunable
from explorer.tuning.genome import layers_used

BEST = "var(--c0)"


def steps_data(store: Tunings) -> dict:
    """The grid that can be dragged with the error of each step, and the one found lying under it."""
    try:
        setting = store.start_setting
        nodes = _levels(setting, store.model)
    except ExplorerError as error:
        return {"missing": str(error)}
    low, high = store.model.sigma_range
    other, trial = store.other(), store.trial
    return {
        "model": store.plan.model,
        "nodes": nodes,
        "own": store.knobs.nodes is not None,
        "fixed": _fixed(store, setting),
        "dragged": store.ghost is not None,
        "errors": _errors(store, setting),
        "preview": _preview(store, setting),
        "range": [max(low, 5e-4), min(high, max(160.0, nodes[0]))],
        "other": None
        if other is None or other == setting
        else {
            "label": f"trial {trial.number}" if trial.number else "the baseline of the search",
            "color": BEST,
            "nodes": _levels(other, store.model),
            "fixed": _fixed(store, other),
            "errors": _errors(store, other),
            "preview": _preview(store, other),
        },
        "link": lab_link(store.plan.start),
    }


def _levels(setting: Tunable, model: Model) -> list[float]:
    """Positive noise levels where its steps begin, falling."""
    return [s for s in sigmas_of(setting.sampler, model) if s > 0]


def _fixed(store: Tunings, setting: Tunable) -> str:
    """Why the levels of a sampler cannot be dragged, or taken as a grid; "" where they can."""
    sampler, n = setting.sampler, len(_levels(setting, store.model))
    if isinstance(sampler, ScaleTimeSampler):
        scales = sampler.solver.warp.s
        return (
            f"A scale-time solver ({sampler.solver.base}, {n} steps) steps where it was learnt to, in a scale of its own "
            f"(s from 1 to {scales[-1]:.3g}): its {4 * len(scales) - 5} numbers belong together, and no tick can be moved alone."
        )
    if isinstance(sampler, ChainSampler):
        steps = " ".join(map(str, sampler.steps))
        return (
            f"The steps are times of a chain of {sampler.n_levels} ({steps}): levels between two of them do not exist."
        )
    if isinstance(sampler, AdaptiveSampler):
        return "Adaptive steps choose their own places: shown is the grid they report at."
    if store.knobs.own and setting == store.start_setting:
        return "The baseline's sampler is one of its own: clear it (own, under Solver) to drag ticks."
    return ""


def _errors(store: Tunings, setting: Tunable) -> dict | None:
    found = store.errors_of(setting)
    if found is None:
        return None
    total = "" if found.total is None else minus(" ± ".join(parts(found.total)))
    mean, se = ([number(v) for v in values] for values in (found.mean, found.se))
    return {"mean": mean, "se": se, "n": found.n, "total": total, "reason": found.reason}


def _preview(store: Tunings, setting: Tunable) -> dict | None:
    drawn = store.preview_of(setting)
    return None if drawn is None else asdict(drawn)


def layers_data(store: Tunings) -> dict:
    """What each step of the trial that is looked at leaves out of the network; {} where all blocks act."""
    trial, record = store.trial, store.record
    layers = None if trial is None else trial.setting.wrapper(Layers)
    if layers is None or record is None or record.model not in catalogue.names():
        return {}
    model = catalogue.model(record.model)
    names = getattr(getattr(model, "net", None), "layer_names", ()) or [f"block {i}" for i in range(model.n_layers)]
    n_steps = trial.setting.sampler.n_steps(model)
    return {
        "trial": trial.number,
        "blocks": list(names),
        "levels": [{"sigma": sigma, "out": list(out)} for sigma, out in layers.levels],
        "acting": layers_used(trial.setting, model.n_layers),
        "full": n_steps * model.n_layers,
    }


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
