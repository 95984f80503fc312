"""The page's state as fields of an address. The baseline's are those of the Sampler Lab; the page's own begin with "u."."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from explorer.apps import catalogue, settings
from explorer.apps.tuning.plan import WHATS, Plan

SETTABLE = ("what", "objective", "method", "n", "trials", "minutes", "seed")
KINDS = {"n": int, "trials": int, "seed": int, "minutes": float}
AXES = ("x", "y")


def spell(plan: Plan) -> dict[str, Any]:
    """The baseline, and what differs from the plan that the page opens its model with."""
    plain = Plan.of(plan.model)
    own = {f"u.{k}": getattr(plan, k) for k in SETTABLE if k == "what" or getattr(plan, k) != getattr(plain, k)}
    return {**settings.spell(plan.start), **own}


def read(fields: Mapping[str, str]) -> tuple[Plan, str]:
    """What `spell` wrote, and what had to be changed, in words; another page's link gives the baseline.

    Raises: ExplorerError or ValueError for values that cannot be.
    """
    setting = settings.read(fields)
    knobs, notes = setting.knobs.fitted(catalogue.model(setting.model))
    bare = set(settings.spell(setting)) == {"model"} and not any(k.startswith("u.") for k in fields)
    plan = Plan.of(setting.model, None if bare else knobs)
    given: dict[str, Any] = {k: fields[f"u.{k}"] for k in SETTABLE if f"u.{k}" in fields}
    for name, kind in KINDS.items():
        if name in given:
            given[name] = None if given[name] == "None" else kind(given[name])
    plan = replace(plan, **given)
    if plan.what in WHATS and not {"objective", "method"} <= set(given):
        plan = plan.fitted()  # what is not said suits what is
    return plan.checked(), " ".join(notes)


def spell_axes(axes: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The knobs of the map and their ends, where they were chosen."""
    return {
        f"u.{which}": ",".join(str(given[k]) for k in ("knob", "low", "high") if given.get(k) is not None)
        for which, given in axes.items()
        if given
    }


def read_axes(fields: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """What `spell_axes` wrote.

    Raises: ValueError for ends that are no numbers.
    """
    out: dict[str, dict[str, Any]] = {}
    for which in AXES:
        knob, *ends = fields.get(f"u.{which}", "").split(",")
        out[which] = {"knob": knob, **dict(zip(("low", "high"), map(float, ends), strict=False))} if knob else {}
    return out
