"""What the panes of the Atlas page are handed: plain JSON, every number with its error, nothing computed here but words."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

from explorer import papers
from explorer.apps.atlas.state import Atlas
from explorer.metrics.base import plus_minus
from explorer.models import bundled
from explorer.reproduction.catalogue import STATUS, Entry, Point, Row

NOTEBOOKS = Path(__file__).resolve().parents[3] / "notebooks"


def table_data(store: Atlas) -> dict[str, Any]:
    """All rows and what they can be filtered by."""
    families = Counter(e.family for e in store.entries)
    states = Counter(e.status for e in store.entries)
    return {
        "loading": not store.entries and store.error is None,
        "failed": not store.entries and store.error is not None,
        "rows": [entry_data(e, i) for i, e in enumerate(store.entries)],
        "families": [{"name": name, "n": families[name]} for name in sorted(families)],
        "statuses": [{"name": k, "about": v, "n": states[k]} for k, v in STATUS.items() if states[k]],
    }


def entry_data(entry: Entry, place: int) -> dict[str, Any]:
    held = sum(row.verdict == "holds" for row in entry.claims)
    return {
        "place": place,
        "slug": entry.slug,
        "title": entry.title,
        "authors": entry.authors,
        "year": entry.year,
        "arxiv": entry.arxiv,
        "family": entry.family,
        "role": entry.role,
        "idea": entry.idea,
        "nfe": entry.nfe,
        "status": entry.status,
        "rank": list(STATUS).index(entry.status),
        "held": held,
        "published": [vars(p) for p in entry.published],
        "claims": [claim_data(row) for row in entry.claims],
        "parts": list(entry.parts),
        "models": [] if entry.module is None else models_of(entry.module, entry.recipes, bundled.stamp()),
        "presets": [{"words": words, "link": f"./{address}"} for words, address in entry.presets],
        "commands": commands_of(entry),
    }


def claim_data(row: Row) -> dict[str, Any]:
    """A claim; "seen" says what was measured at each seed, as far as it can be drawn."""
    plain = {"number": row.number, "text": row.text, "where": row.where, "scale": row.scale, "verdict": row.verdict}
    e = row.evidence
    if e is None or not e.outcomes:
        return plain | {"error": "" if e is None else e.error}
    dots = [{"seed": o.seed, "value": o.value, "error": o.std_error, "holds": o.holds} for o in e.outcomes]
    return plain | {
        "quantity": e.quantity,
        "measured": plus_minus(e.measured.value, e.measured.std_error),
        "threshold": f"{e.threshold:.4g}",
        "limit": e.threshold,
        "n": e.measured.n,
        "seeds": e.seeds,
        "seen": dots,
        "notes": [f"seed {o.seed}: {o.text}" for o in e.outcomes if o.text],
        "date": e.date,
        "error": e.error,
    }


@lru_cache(maxsize=256)
def models_of(slug: str, recipes: tuple[str, ...], stamp: object) -> list[dict[str, str]]:
    """Bundled models that a paper's recipes lead to, with their addresses in the Labs; `stamp` tells when there are others."""
    there, out = bundled.names(), {}
    for name in recipes:
        model = papers.paper(slug).recipe(name).name
        if model not in there or model in out:
            continue
        about = bundled.card(model)
        if about["kind"] not in ("denoiser", "consistency"):
            continue
        data = str(about.get("data", ""))
        trajectory = f"./trajectory#trajectory?a.model={model}"
        out[model] = {"name": model, "data": data, "lab": f"./lab#lab?model={model}", "trajectory": trajectory}
    return list(out.values())


def commands_of(entry: Entry) -> list[dict[str, str]]:
    """What to type: training, measuring, the notebook."""
    if entry.module is None:
        return []
    slug = entry.module
    recipe = "digits" if "digits" in entry.recipes else entry.recipes[0] if entry.recipes else ""
    found = [{"what": "train", "text": f"explorer train {slug} --data {recipe}"}] if recipe else []
    if entry.claims:
        found.append({"what": "measure the claims", "text": f"explorer claims {slug}"})
    found += [{"what": what, "text": text} for what, text in entry.commands]
    pattern = f"{entry.notebook}.ipynb" if entry.notebook else f"[0-9][0-9]_{slug}.ipynb"
    notebook = next(iter(sorted(NOTEBOOKS.glob(pattern))), None)
    if notebook is not None:
        found.append({"what": "notebook", "text": f"jupyter lab notebooks/{notebook.name}"})
    return found


def picture_data(store: Atlas) -> dict[str, Any]:
    """Cost and quality of bundled models, one series for each model."""
    series: dict[str, list[Point]] = {}
    for point in store.points:
        series.setdefault(point.model, []).append(point)
    first = store.points[0] if store.points else None
    return {
        "loading": not store.entries and store.error is None,
        "metric": "" if first is None else first.metric,
        "reference": "" if first is None else first.reference,
        "n": sorted({p.n for p in store.points}),
        "series": [
            {
                "model": model,
                "points": [
                    {
                        "nfe": p.nfe,
                        "value": p.value,
                        "error": p.std_error,
                        "text": plus_minus(p.value, p.std_error),
                        "n": p.n,
                    }
                    for p in points
                ],
            }
            for model, points in series.items()
        ],
    }


def top_data(store: Atlas) -> dict[str, Any]:
    return {
        "counts": [{"status": k, "n": sum(e.status == k for e in store.entries)} for k in STATUS],
        "error": None if store.error is None else {"text": store.error.text, "details": store.error.details},
        "running": store.running,
    }
