"""What the panes of the Tuning page show, from its store: plain dicts; no drawing, no measuring."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from typing import Any

from explorer.apps import catalogue, choices
from explorer.apps.tuning.exports import EXPORTS
from explorer.apps.tuning.measured import BEST, number
from explorer.apps.tuning.plan import N_CHOICES, WHATS, methods, objectives, whats
from explorer.apps.tuning.records import Record
from explorer.apps.tuning.searches import Running
from explorer.apps.tuning.state import Tunings
from explorer.apps.views import clock, minus, parts, thousands
from explorer.errors import ExplorerError
from explorer.knobs import GROUPS
from explorer.metrics.base import Estimate, plus_minus
from explorer.tuning import Trial, Tuned

BASE = "var(--pinned)"
N_ROWS = 40
MOST_DOTS = 2000
LEFT_OUT = ("Class",)
WORDS = {"done": "done", "stopped": "stopped", "failed": "failed", "broken": "cannot be read"}


def top_data(store: Tunings) -> dict:
    error, live, record = store.error, store.live, store.record
    state = state_of(store, store.shown)
    link, why = store.link_of(store.trial) if store.shown else ("", "There is no search yet.")
    return {
        "name": store.shown,
        "title": title_of(store, store.shown),
        "state": state,
        "words": _words(store, state),
        "running": live is not None,
        "fraction": live.fraction if live is not None else record.fraction if record is not None else 0.0,
        "acts": _acts(store, state),
        "link": link,
        "why": why,
        "picked": store.picked,
        "exports": EXPORTS,
        "notice": store.notice,
        "error": None if error is None else {"text": error.text, "details": error.details},
    }


def state_of(store: Tunings, name: str) -> str:
    """What a search is doing, in one word; "" where there is none."""
    live = store.searches.get(name)
    if live is not None:
        return live.state
    record = next((r for r in store.records if r.name == name), None)
    if name in store.searches.failures:
        return "failed"
    if record is None:
        return ""
    if record.broken:
        return "broken"
    ended = record.tuned is not None and len(record.tuned.history) == len(record.trials)
    return "done" if ended else "stopped"


def title_of(store: Tunings, name: str) -> str:
    plan = _plan(store, name)
    if plan is None:
        record = next((r for r in store.records if r.name == name), None)
        return f"{record.model or 'unknown model'} · {name}" if record is not None else ""
    nfe = plan.nfe()
    what = "bespoke solver" if plan.method == "bespoke" else WHATS[plan.what][0]
    return f"{catalogue.title(plan.model)} · {what}" + (f" · {nfe} NFE" if nfe else "")


def _plan(store: Tunings, name: str):
    live: Running | None = store.searches.get(name)
    record: Record | None = next((r for r in store.records if r.name == name), None)
    return live.plan if live is not None else record.plan if record is not None else None


def _words(store: Tunings, state: str) -> str:
    live, record = store.live, store.record
    if live is not None:
        return live.words + ("" if live.eta is None else f" · {clock(live.eta)} left")
    if record is None:
        return ""
    done = max(len(record.trials) - 1, 0)
    if state == "broken":
        return record.broken
    if state == "stopped" and record.tuned is None:
        return f"stopped after {done} trials, without a number on held-out noise"
    return f"{done} trials"


def _acts(store: Tunings, state: str) -> list[str]:
    record = store.record
    if state in ("starting", "running", "reporting"):
        return ["stop"]
    if record is None:
        return []
    out = []
    if record.plan is not None and not record.broken:
        out.append("more" if state == "done" or record.fraction >= 1 else "resume")
    if record.tuned is not None and not record.kept and state == "done":
        out.append("keep")
    return out


def form_data(store: Tunings) -> dict:
    plan = store.plan
    try:
        nfe, problem = plan.nfe(), ""
    except ExplorerError as error:
        nfe, problem = None, str(error)
    chosen = [
        o
        for offers, name in (
            (whats(plan), plan.what),
            (objectives(plan), plan.objective),
            (methods(plan), plan.method),
        )
        for o in offers
        if o.name == name
    ]
    blocked = problem or next((o.reason for o in chosen if o.reason), "")
    if (
        not blocked
        and plan.objective == "metric"
        and plan.n < (least := getattr(catalogue.metric(plan.model), "n_min", 2))
    ):
        blocked = f"{catalogue.metric_name(plan.model)} needs at least {least} samples to give a number: choose more."
    cost = None if problem else plan.cost()
    return {
        "refused": store.refused,
        "models": catalogue.groups(),
        "model": plan.model,
        "nfe": nfe,
        "whats": [asdict(o) for o in whats(plan)],
        "what": plan.what,
        "objectives": [asdict(o) for o in objectives(plan)],
        "objective": plan.objective,
        "methods": [asdict(o) for o in methods(plan)],
        "method": plan.method,
        "n": plan.n,
        "n_choices": list(N_CHOICES),
        "trials": plan.trials,
        "minutes": plan.minutes,
        "seed": plan.seed,
        "about": f"{thousands(plan.n)} samples a trial; at the end {thousands(len(plan.report))} others, which no trial saw.",
        "cost": "" if cost is None else f"≈ {_many(cost)} evaluations × samples",
        "blocked": blocked,
    }


def knobs_data(store: Tunings) -> dict:
    """The baseline's knobs, as the knobs pane takes them."""
    model, knobs = store.model, store.knobs
    base = catalogue.defaults(store.plan.model)
    active = knobs.active()
    groups = [g for g in GROUPS if g not in LEFT_OUT]
    controls = []
    for c in knobs.controls(model):
        if c.group not in groups:
            continue
        item = {k: (list(v) if isinstance(v, tuple) else v) for k, v in asdict(c).items()}
        if c.kind == "choice":
            item["options"] = choices.options(c, knobs, model)
        item["differs"] = getattr(knobs, c.name) != base.get(c.name) and not c.reason
        item["set"] = c.name == "skip_bank" and knobs.skip_bank is not None
        controls.append(item)
    gists = {}
    for group in groups:
        members = [c for c in controls if c["group"] == group]
        used = [
            c for c in members if c["name"] in active and not c["reason"] and c["kind"] not in ("bank", "nodes", "text")
        ]
        gists[group] = "at rest" if all(c["reason"] for c in members) else " · ".join(map(_gist, used))
    if knobs.nodes is not None:
        gists["Schedule"] = f"own σ, {len(knobs.nodes)} steps"
    if model.n_skips and knobs.skip_bank is not None:
        gists["Skip-tuning"] = "own bank"
    if knobs.own:
        gists |= {"Solver": knobs.said_own(), "Schedule": "in the own sampler"}
    if knobs.layers:
        gists["Layers"] = "some left out"
    return {
        "groups": groups,
        "controls": controls,
        "open": ["Solver", *(["Skip-tuning"] if model.n_skips else [])],
        "gists": gists,
    }


def _gist(control: dict) -> str:
    value = control["value"]
    if control["kind"] == "choice":
        return str(control["names"][control["choices"].index(value)])
    return f"{control['title']} {value:.3g}"


def searches_data(store: Tunings) -> dict:
    rows = []
    names = [name for name in sorted(store.searches.busy) if all(r.name != name for r in store.records)]
    for name in [*names, *(r.name for r in store.records)]:
        live, record = store.searches.get(name), next((r for r in store.records if r.name == name), None)
        trials = live.trials if live is not None and live.trials else list(record.trials) if record is not None else []
        state = state_of(store, name)
        rows.append(
            {
                "name": name,
                "title": title_of(store, name),
                "state": state,
                "words": WORDS.get(state, live.words if live is not None else state),
                "fraction": live.fraction if live is not None else 0.0,
                "gain": _gain(trials, record.tuned if record is not None and live is None else None),
                "age": "" if live is not None or record is None else _age(time.time() - record.changed),
                "shown": name == store.shown,
                "kept": record is not None and record.kept,
                "busy": live is not None,
            }
        )
    return {"rows": rows, "folder": str(store.folder)}


def _gain(trials: list[Trial], tuned: Tuned | None) -> str:
    """By how much the best is below the baseline, held out where that is known; else in brackets."""
    if tuned is not None:
        return _below(tuned.score.value, tuned.baseline)
    whole = [t for t in trials if t.n == trials[0].n and not t.failed] if trials else []
    if len(whole) < 2:
        return ""
    return f"({_below(min(t.value for t in whole), trials[0].estimate)})"


def _below(value: float, baseline: Estimate) -> str:
    """The change as a share of the baseline, or as it is where the baseline is not surely above 0 (a corrected distance)."""
    if _surely_positive(baseline):
        return minus(f"{100 * (value / baseline.value - 1):+.0f} %")
    return minus(f"{value - baseline.value:+.2g}")


def _surely_positive(e: Estimate) -> bool:
    return e.value > 2 * e.std_error


def _age(seconds: float) -> str:
    for size, word in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {word} ago"
    return "just now"


def outcome_data(store: Tunings) -> dict:
    """The number that counts, the number that was hoped for, and what both mean."""
    trials, tuned, live = store.trials, store.tuned(), store.live
    if not trials:
        if live is not None:
            return {"empty": live.words + "…"}
        return {
            "empty": "Choose what to tune and press Start. Trials appear here as they are measured, all on the same noise."
        }
    best, base = store.best, trials[0]
    rows = [_row("tuned", best, tuned and tuned.score, BEST), _row("baseline", base, tuned and tuned.baseline, BASE)]
    out: dict[str, Any] = {"rows": rows if best is not base else rows[1:], "name": base.estimate.name, "note": ""}
    if tuned is None:
        if best is base:
            out["verdict"] = {
                "kind": "same",
                "text": f"Nothing better than the baseline in {len(trials) - 1} trials so far.",
            }
        else:
            shown = _signed(best.difference)
            out["verdict"] = {
                "kind": "",
                "text": f"Best so far: {shown} from the baseline, on the noise it was chosen by.",
            }
        out["note"] = (
            "The best of many trials is also the luckiest one. When the search ends, or is stopped, the winner and the baseline are "
            "measured once more on noise that no trial saw."
        )
        return out
    return out | {"verdict": _verdict(tuned), "note": _curse(tuned)}


def _row(who: str, trial: Trial, held: Estimate | None, color: str) -> dict:
    return {
        "who": who,
        "what": trial.setting.describe(),
        "color": color,
        "nfe": trial.nfe,
        "search": list(parts(trial.estimate)),
        "n_search": thousands(trial.n),
        "held": None if held is None else list(parts(held)),
        "n_held": "" if held is None else thousands(held.n),
    }


def _verdict(tuned: Tuned) -> dict:
    d = tuned.difference
    if tuned.setting == tuned.start:
        return {
            "kind": "same",
            "text": f"Nothing better than the baseline was found in {len(tuned.history) - 1} trials{tuned.few_samples}.",
        }
    if not (math.isfinite(d.value) and math.isfinite(d.std_error)):
        return {"kind": "same", "text": f"The two cannot be compared: {d.note or 'no finite difference'}."}
    low, high = d.interval()
    band = minus(f"{low:+.3g} to {high:+.3g}")
    fine = f"paired, held-out noise, n = {thousands(d.n)}; ± one standard error, 95 % band {band}"
    shown = plus_minus(abs(d.value), d.std_error)
    if not d.differs_from(0.0):
        return {"kind": "same", "text": f"On held-out noise not distinguishable: {_signed(d)}.", "fine": fine}
    if d.value < 0:
        share = f", {100 * -d.value / tuned.baseline.value:.0f} %" if _surely_positive(tuned.baseline) else ""
        return {"kind": "better", "text": f"Better than the baseline by {shown}{share}.", "fine": fine}
    return {"kind": "worse", "text": f"Worse than the baseline by {shown} on held-out noise.", "fine": fine}


def _curse(tuned: Tuned) -> str:
    if tuned.setting == tuned.start:
        return ""
    believed, held = _signed(tuned.search_difference), _signed(tuned.difference)
    if not math.isfinite(tuned.curse):
        return f"The search believed {believed}."
    if tuned.curse > 0:
        return f"Winner's curse: the search believed {believed}; on noise it never saw it is {held}."
    return f"No winner's curse here: the search believed {believed}; on noise it never saw it is {held}."


def _signed(d: Estimate) -> str:
    shown = plus_minus(d.value, d.std_error)
    return minus(shown if d.value < 0 else f"+{shown}")


def course_data(store: Tunings) -> dict:
    """Every trial as a dot, and the front of cost against value."""
    trials, tuned, live = store.trials, store.tuned(), store.live
    if not trials:
        return {"dots": [], "planned": store.plan.trials}
    plan = _plan(store, store.shown)
    whole = trials[0].n
    held = [] if tuned is None else [(p.nfe, p.score) for p in tuned.front]
    if tuned is not None and not held:
        held = [(tuned.nfe[0], tuned.score), (tuned.nfe[1], tuned.baseline)]
    trial = store.trial
    return {
        "search": store.shown,
        "name": trials[0].estimate.name,
        "n": thousands(whole),
        "dots": [_dot(t, whole) for t in trials[-MOST_DOTS:]],
        "front": [t.number for t in store.front],
        "held": [{"nfe": nfe, "value": number(e.value), "se": number(e.std_error)} for nfe, e in held if nfe],
        "best": store.best.number if store.best is not None else 0,
        "picked": trial.number if trial is not None else None,
        "planned": plan.trials if plan is not None else len(trials) - 1,
        "running": live is not None,
    }


def _dot(t: Trial, whole: int) -> dict:
    return {
        "number": t.number,
        "value": None if t.failed else number(t.value),
        "se": number(t.estimate.std_error),
        "nfe": t.nfe,
        "whole": t.n == whole,
        "text": "" if t.failed else " ± ".join(parts(t.estimate)),
        "what": t.setting.describe(),
        "note": t.note,
        "failed": t.failed,
    }


def trials_data(store: Tunings) -> dict:
    """The best trials, then those that failed."""
    trials = store.trials
    if not trials:
        return {"rows": [], "count": 0}
    whole = trials[0].n
    good = sorted((t for t in trials if t.n == whole and not t.failed), key=lambda t: (t.value, t.number))
    bad = [t for t in trials if t.failed]
    shown = good[: N_ROWS - min(len(bad), 5)]
    if trials[0] in good and trials[0] not in shown:
        shown.append(trials[0])
    trial = store.trial
    rows = []
    for t in [*shown, *bad[:5]]:
        rows.append(
            {
                "number": t.number,
                "what": t.setting.describe(),
                "note": t.note,
                "nfe": t.nfe,
                "value": None if t.failed else list(parts(t.estimate)),
                "change": "" if t.failed or not t.number else _signed(t.difference),
                "sure": bool(not t.failed and t.number and abs(t.difference.value) > 2 * t.difference.std_error),
                "failed": t.failed,
                "baseline": t.number == 0,
                "shown": trial is not None and t.number == trial.number,
            }
        )
    fewer = sum(1 for t in trials if t.n != whole)
    return {"rows": rows, "count": len(trials) - 1, "fewer": fewer, "failed": len(bad), "name": trials[0].estimate.name}


def _many(count: int) -> str:
    return f"{count / 1e6:.2g} M" if count >= 1e6 else f"{count / 1e3:.3g} k" if count >= 1e3 else str(count)
