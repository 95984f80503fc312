"""`explorer list`: what there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from explorer.cli.options import Json, starting
from explorer.cli.output import emit, first_line, measured, table
from explorer.errors import UnknownName

LISTED = ("models", "data", "samplers", "solvers", "grids", "metrics", "protocols", "papers")


def list_(
    what: Annotated[
        str, typer.Argument(metavar="|".join(LISTED), help="What to list.", autocompletion=starting(LISTED))
    ],
    as_json: Json = False,
) -> None:
    """List what there is: models, data, samplers that a search has kept, solvers, grids, metrics, protocols or papers.

    Examples:
      explorer list models
      explorer list solvers --json
    """
    if what not in LISTED:
        raise UnknownName("kind of thing to list", what, LISTED)
    rows = globals()[f"rows_of_{what}"]()
    if as_json:
        emit(rows)
        return
    if rows:
        table(rows)
    else:
        typer.echo(f"no {what}")


def rows_of_models() -> list[dict]:
    from explorer.models.bundled import card, names

    rows = []
    for name in names():
        about = card(name)
        best = next((m for m in about.get("metrics", ()) if str(m.get("metric", "")).startswith("FD[")), {})
        score = measured(best) if best else ""
        what = {"kind": about.get("kind", ""), "shape": about.get("shape", ()), "classes": about.get("n_classes", 0)}
        rows.append({"name": name, **what, "data": about.get("data", ""), "measured": score})
    return rows


def rows_of_data() -> list[dict]:
    from explorer.data import load_dataset, names

    rows = []
    for name in names():
        data = load_dataset(name)
        rows.append(
            {
                "name": name,
                "n": len(data),
                "shape": data.shape,
                "classes": data.n_classes,
                "sigma": round(data.sigma_data, 4),
            }
        )
    return rows


def rows_of_samplers() -> list[dict]:
    from explorer.apps.tuning.kept import kept
    from explorer.reproduction.evaluate import row as row_of

    rows = []
    for one in kept():
        score, gain = measured(row_of(one.score)), "yes" if one.tuned.gained else "no"
        rows.append(
            {"name": one.name, "model": one.model, "nfe": one.nfe, "measured": score, "better than its start": gain}
        )
    return rows


def rows_of_solvers() -> list[dict]:
    from explorer.sampling.solvers import SOLVERS

    return [
        {"name": name, "order": make().order, "nfe": cost_formula(make().n_evals), "about": first_line(make)}
        for name, make in SOLVERS.items()
    ]


def cost_formula(n_evals: Callable[[int], int]) -> str:
    """Evaluations for n steps as "a n + b", read off the solver itself."""
    slope = n_evals(11) - n_evals(10)
    rest = n_evals(10) - 10 * slope
    return f"{'' if slope == 1 else slope}n" + (f" {'+' if rest > 0 else '-'} {abs(rest)}" if rest else "")


def rows_of_grids() -> list[dict]:
    from explorer.sampling.grids import GRIDS

    return [{"name": name, "about": first_line(build)} for name, build in GRIDS.items()]


def rows_of_papers() -> list[dict]:
    from explorer.papers import names, paper
    from explorer.reproduction.catalogue import entries

    rows = []
    for entry in entries(names, paper):
        if entry.module is None:
            continue
        held = sum(row.verdict == "holds" for row in entry.claims)
        status = f"{entry.status}, {held} of {len(entry.claims)} claims" if entry.claims else entry.status
        about = {"name": entry.module, "title": entry.title, "arxiv": entry.arxiv, "status": status}
        rows.append({**about, "recipes": list(entry.recipes)})
    return rows


def rows_of_metrics() -> list[dict]:
    from explorer.live import METRICS

    return [{"name": name, "about": first_line(make)} for name, make in METRICS.items()]


def rows_of_protocols() -> list[dict]:
    from explorer.metrics.protocols import PROTOCOLS

    return [
        {"name": p.name, "n": p.n, "blocks": p.n_blocks, "rounding": p.rounding, "resize": p.resize, "about": p.about}
        for p in PROTOCOLS.values()
    ]
