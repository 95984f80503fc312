"""What the panes of the Training page show, from its store: plain dicts; no drawing, no measuring."""

from __future__ import annotations

import json
import math
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from explorer.apps.training import choices
from explorer.apps.training.folder import ACTIVE
from explorer.apps.training.own import ENDINGS, SIDES, kept_names
from explorer.apps.training.reading import Card, History, title
from explorer.apps.training.state import EXTRA, Trainings
from explorer.apps.trajectory.views import palette
from explorer.apps.views import SETTLED_FROM, clock, parts, thousands
from explorer.data import load_dataset
from explorer.errors import ExplorerError
from explorer.metrics.base import Estimate
from explorer.reproduction.own import scale_words

MOST_COLUMNS = 240
LETTERS = "AB"
WORDS = {
    "starting": "starting",
    "preparing": "preparing",
    "running": "training",
    "paused": "paused",
    "measuring": "last measurement",
    "done": "done",
    "stopped": "stopped",
    "failed": "failed",
    "killed": "ended without a word",
    "unwatched": "trained without an account",
}
KILLED = (
    "Its process is gone without a word: it was killed, or the machine was restarted. The last checkpoint is whole."
)
QUALITY = {
    "SW2": ("sliced 2-Wasserstein distance", "held-out points"),
    "FD": ("Fréchet distance", "the training split"),
}


def top_data(store: Trainings) -> dict:
    error = store.error
    return {
        "runs": [{"name": c.name, "title": title(c), "state": c.state} for c in store.cards],
        "shown": list(store.shown),
        "by": store.by,
        "notice": store.notice,
        "undo": store.removed is not None,
        "error": None if error is None else {"text": error.text, "details": error.details},
        "texts": store.texts(),
    }


def form_data(store: Trainings) -> dict:
    recipe, given = store.recipe, store.given
    own, unfit = given.data, {} if given.fit is None else given.fit.unfit
    groups: dict[str, list[dict]] = {}
    for knob in store.knobs:
        value = store.changes.get(knob.name, knob.value)
        groups.setdefault(knob.group, []).append(
            {
                "name": knob.name,
                "title": knob.title,
                "kind": knob.kind,
                "value": value,
                "default": knob.value,
                "doc": knob.doc,
                "unit": knob.unit,
                "optional": knob.optional,
                "reason": knob.reason,
                "options": list(knob.options),
                "differs": knob.name in store.changes,
            }
        )
    return {
        "papers": [
            {"name": slug, "title": _short(paper.title), "full": paper.title} for slug, paper in store.papers.items()
        ],
        "paper": store.paper_slug,
        "recipes": [{"name": name, "why": unfit.get(name, "")} for name in _offered(store)],
        "recipe": store.recipe_name,
        "groups": [{"title": name, "knobs": knobs} for name, knobs in groups.items()],
        "changed": bool(store.changes),
        "cost": recipe.cost,
        "about": recipe.notes,
        "scaled": ""
        if own is None
        else scale_words(store.bare_recipe, recipe).replace("--set settings.p_mean=", "p mean = "),
        "data": _data_words(recipe.data),
        "needs": choices.preparations(recipe),
        "blocked": given.doing or given.unfit or _blocked(recipe.data),
        "own": None if own is None else {"name": own.name, "words": list(own.words), "preview": own.preview},
        "kept": kept_names(store.folder),
        "roles": given.roles(),
        "sides": list(SIDES),
        "endings": ",".join(ENDINGS),
    }


def _offered(store: Trainings) -> list[str]:
    names = choices.recipes(store.paper)
    return names if store.recipe_name in names else [store.recipe_name, *names]


def arrived_data(store: Trainings) -> dict:
    """How far a file of the user's has come: small, as it is sent for every part of it."""
    given = store.given
    return {**given.arrived, "doing": given.doing, "refused": given.refused}


def _short(text: str) -> str:
    return text if len(text) <= 46 else text[:45].rstrip() + "…"


_READABLE: set[str] = set()


def _blocked(name: str) -> str:
    """Why this data set cannot be trained on here; empty where it can."""
    if name not in _READABLE:
        try:
            load_dataset(name)
        except ExplorerError as error:
            return str(error)
        _READABLE.add(name)
    return ""


def _data_words(name: str) -> str:
    return "" if _blocked(name) else _known_words(name)


@lru_cache(maxsize=64)
def _known_words(name: str) -> str:
    data = load_dataset(name)
    shape = (
        ("points of the plane" if data.shape == (2,) else f"points of {data.shape[0]} coordinates")
        if len(data.shape) == 1
        else " × ".join(map(str, data.shape[1:] or data.shape)) + (" images" if len(data.shape) == 3 else "")
    )
    return f"{Path(name).name}: " + (
        f"fresh {shape} in every batch" if data.draw is not None else f"{thousands(len(data))} {shape}"
    )


def runs_data(store: Trainings) -> dict:
    return {
        "runs": [_card(store, card) for card in store.cards],
        "folder": str(store.folder),
        "any_active": any(card.active for card in store.cards),
    }


def _card(store: Trainings, card: Card) -> dict:
    found = card.measured
    number = None
    if found is not None:
        value, error = parts(Estimate.from_dict(found["estimate"]))
        number = {"name": found["estimate"].get("name", ""), "value": value, "error": error}
    slot = store.shown.index(card.name) if card.name in store.shown else None
    changes = card.request.get("changes") or {}
    return {
        "name": card.name,
        "title": title(card),
        "state": card.state,
        "words": WORDS[card.state],
        "fraction": card.fraction,
        "eta": _eta(card),
        "number": number,
        "letter": "" if slot is None else LETTERS[slot],
        "color": "" if slot is None else f"var(--c{slot})",
        "changes": ", ".join(f"{k.removeprefix(choices.SETTING)} {v}" for k, v in changes.items()),
        "kept": list(card.kept),
        "age": _age(card),
    }


def _eta(card: Card) -> str:
    eta = card.status.get("eta")
    if card.state == "running" and isinstance(eta, int | float) and math.isfinite(eta):
        return f"{clock(eta)} left"
    return ""


def _age(card: Card) -> str:
    created = card.request.get("created")
    if not isinstance(created, int | float):
        return ""
    seconds = max(0.0, time.time() - created)
    for size, word in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {word} ago"
    return "just now"


def stage_data(store: Trainings) -> dict:
    panels = [_panel(store, slot, name) for slot, name in enumerate(store.shown) if name]
    return {
        "panels": panels,
        "palette": palette(),
        "empty": "" if panels or not store.cards else "Choose a run on the left.",
        "none": not store.cards,
        "first": store.recipe_name + (f" on {store.given.data.name}" if store.given.data is not None else ""),
    }


def _panel(store: Trainings, slot: int, name: str) -> dict:
    card, color = store.card(name), f"var(--c{slot})"
    blank = {"slot": slot, "letter": LETTERS[slot], "color": color, "name": name}
    if card is None:
        return {**blank, "title": name, "state": "starting", "words": WORDS["starting"], "facts": [], "acts": []}
    status = card.status
    return {
        **blank,
        "title": title(card),
        "state": card.state,
        "words": _doing(card),
        "fraction": card.fraction if card.state != "preparing" else float(status.get("preparing") or 0.0),
        "eta": _eta(card),
        "facts": _facts(card),
        "hero": _hero(store, card),
        "error": _error(card),
        "notices": [] if _error(card) else [str(text) for text in status.get("notices") or ()][-2:],
        "acts": _acts(card),
        "kept": list(card.kept),
        "unkeepable": card.unkeepable,
        "pictures": _why_no_pictures(card),
    }


def _doing(card: Card) -> str:
    if card.state == "preparing" and card.status.get("words"):
        return f"preparing: {card.status['words']}"
    why = card.status.get("stopped")
    return f"stopped early: {why}" if card.state == "done" and why and card.fraction < 1 else WORDS[card.state]


def _facts(card: Card) -> list[dict]:
    status = card.status
    facts = [
        ("step", f"{thousands(int(status.get('step') or 0))} of {thousands(int(status.get('n_steps') or 0))}"),
        ("images seen", thousands(int(status.get("n_images") or 0))),
        ("training time", clock(float(status.get("seconds") or 0.0))),
    ]
    speed = status.get("images_per_second")
    if isinstance(speed, int | float):
        facts.append(("images / s", thousands(round(speed)) if speed >= 10 else f"{speed:.2g}"))
    nets = status.get("n_parameters")
    if isinstance(nets, dict):
        facts.append(
            ("parameters", ", ".join(f"{count(n)}" + (f" {net}" if len(nets) > 1 else "") for net, n in nets.items()))
        )
    changes = card.request.get("changes") or {}
    if changes:
        facts.append(("changed", ", ".join(f"{k.removeprefix(choices.SETTING)} {v}" for k, v in changes.items())))
    return [{"name": name, "value": value} for name, value in facts]


def count(n: float) -> str:
    """A number of parameters: "1.2 M"."""
    for size, word in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.3g} {word}"
    return f"{n:.0f}"


def _hero(store: Trainings, card: Card) -> dict | None:
    found = card.measured
    if found is None:
        return None
    e = Estimate.from_dict(found["estimate"])
    value, error = parts(e)
    dim = 0 if e.name.endswith("[xy]") else 32 if "-cnn]" in e.name else 0
    return {
        "name": e.name,
        "value": value,
        "error": error,
        "n": thousands(e.n),
        "nfe": found.get("nfe"),
        "step": thousands(int(found.get("step", 0))),
        "note": e.note,
        "against": found.get("against") if card.request.get("data") else "",
        "settled": math.isfinite(e.value) and e.n >= SETTLED_FROM * dim,
        "title": next(
            (
                f"{what} to {found.get('against') or to}"
                for key, (what, to) in QUALITY.items()
                if e.name.startswith(key)
            ),
            e.name,
        ),
    }


def _error(card: Card) -> dict | None:
    if card.state == "killed":
        return {"text": KILLED, "details": card.name, "kind": "killed"}
    error = card.status.get("error")
    if card.state != "failed" or not isinstance(error, dict):
        return None
    return {"text": str(error.get("text", "")), "details": str(error.get("details", "")), "kind": error.get("kind", "")}


def _acts(card: Card) -> list[str]:
    acts = {"running": ["pause", "stop"], "paused": ["resume", "stop"], "preparing": ["stop"], "measuring": ["stop"]}
    out = list(acts.get(card.state, ()))
    if card.resumable:
        out.append("resume")
    if card.state == "failed" and (card.status.get("error") or {}).get("kind") == "nan":
        out.append("slower")
    if card.state not in ACTIVE:
        out += ["again", "remove"] if card.request else ["remove"]
    return out


def _why_no_pictures(card: Card) -> str:
    if not card.request:
        return "Trained without an account of its own: there are curves, and no pictures."
    return _unpictured(json.dumps(card.request, sort_keys=True))


@lru_cache(maxsize=64)
def _unpictured(request: str) -> str:
    try:
        recipe = choices.recipe_of(json.loads(request))
    except ExplorerError:
        return ""
    if recipe.sampler is None:
        return "This recipe trains a network that is not sampled from: there are curves, and no pictures."
    if "sets" in json.loads(request):
        return "Trained from the command line without --previews: there are curves, and no pictures."
    return ""


# Curves


def curves_data(store: Trainings) -> dict:
    shown = [(slot, store.histories[name]) for slot, name in enumerate(store.shown) if name in store.histories]
    extras = [EXTRA, *dict.fromkeys(name for _, history in shown for name in history.others)]
    extra = store.extra if store.extra in extras else EXTRA
    active = {name for name in store.shown if (card := store.card(name)) is not None and card.active}
    unmeasured = "measured every few seconds" if active else "not measured while it trained"
    charts = [
        _measure_chart(shown, store.by, unmeasured),
        _chart("loss", shown, store.by),
        _chart("gradient norm", shown, store.by),
        _straight_chart(shown, store.by, unmeasured) if extra == EXTRA else _chart(extra, shown, store.by),
    ]
    return {
        "by": store.by,
        "unit": "images seen" if store.by == "images" else "training time, s",
        "charts": charts,
        "extras": extras,
        "extra": extra,
        "waiting": bool(active),
        "runs": [history.name for _, history in shown],
        "reach": [_reach(store, history.name) for _, history in shown],
    }


def _reach(store: Trainings, name: str) -> float | None:
    """Where the run will end on the axis, as far as that is known."""
    card = store.card(name)
    if card is None or not card.active or card.fraction <= (0.0 if store.by == "images" else 0.02):
        return None
    now = card.status.get("n_images" if store.by == "images" else "seconds") or 0
    return float(now) / card.fraction


def _measure_chart(shown: list[tuple[int, History]], by: str, unmeasured: str) -> dict:
    lines, name = [], ""
    for slot, history in shown:
        rows = [row for row in history.measures if isinstance(row.get("estimate"), dict)]
        estimates = [Estimate.from_dict(row["estimate"]) for row in rows]
        name = name or (estimates[0].name if estimates else "")
        x = [row["n_images" if by == "images" else "seconds"] for row in rows]
        lines.append(_line(slot, "", x, [e.value for e in estimates], [e.std_error for e in estimates], dots=True))
    n = max((row["estimate"].get("n", 0) for _, h in shown for row in h.measures[-1:]), default=0)
    about = f"n {thousands(n)}, bands ± 1 standard error" if n else ""
    return {
        "key": "quality",
        "title": name or "quality",
        "about": about,
        "log": True,
        "lines": lines,
        "missing": unmeasured,
    }


def _straight_chart(shown: list[tuple[int, History]], by: str, unmeasured: str) -> dict:
    lines = []
    for slot, history in shown:
        rows = [row for row in history.measures if isinstance(row.get("straightness"), list)]
        x = [row["n_images" if by == "images" else "seconds"] for row in rows]
        lines.append(_line(slot, "", x, *(([row["straightness"][k] for row in rows]) for k in (0, 1)), dots=True))
    return {
        "key": EXTRA,
        "title": "straightness S",
        "about": "0 for straight paths at even speed; data units²",
        "log": False,
        "lines": lines,
        "missing": "only what follows an ODE has one" if any(h.measures for _, h in shown) else unmeasured,
    }


def _chart(key: str, shown: list[tuple[int, History]], by: str) -> dict:
    lines = []
    for slot, history in shown:
        names = (
            history.losses
            if key == "loss"
            else [f"grad_norm/{n}" for n in history.nets]
            if key == "gradient norm"
            else [key]
        )
        x = history.binned(history.axis(by), MOST_COLUMNS)
        for i, name in enumerate(n for n in names if n in history.scalars):
            y = history.binned(history.scalars[name], MOST_COLUMNS)
            label = name.partition("/")[2] if len(names) > 1 else ""
            lines.append(_line(slot, label, x, y, dash=i))
    words = {"loss": "as the optimizer sees it, mean between two ticks", "gradient norm": "by network, before clipping"}
    return {
        "key": "extra" if key not in words else key,
        "title": key,
        "about": words.get(key, "as logged"),
        "log": key in words or key.startswith("loss/"),
        "lines": lines,
        "missing": "with the first steps",
    }


def _line(slot: int, label: str, x, y, se=None, *, dash: int = 0, dots: bool = False) -> dict:
    return {
        "slot": slot,
        "letter": LETTERS[slot],
        "color": f"var(--c{slot})",
        "label": label,
        "dash": dash,
        "dots": dots,
        "x": _numbers(x),
        "y": _numbers(y),
        "se": None if se is None else _numbers(se),
    }


def _numbers(values) -> list[float | None]:
    return [None if v is None or not math.isfinite(v) else float(f"{v:.5g}") for v in map(_float, values)]


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)
