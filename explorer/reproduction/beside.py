"""What a paper printed and what is here, in lists that are not mixed: for the end of a notebook, for a log."""

from __future__ import annotations

from explorer.metrics.base import Estimate
from explorer.models import bundled
from explorer.reproduction.evidence import Evidence, evidence_of
from explorer.reproduction.recipe import Paper

Curve = list[tuple[int, Estimate]]


def quality_by_nfe(*models: str, metric: str = "FD[digits-cnn]") -> dict[str, Curve]:
    """Bundled model -> (network calls, estimate) for every sampler its card states the metric with, fewest calls first."""
    out: dict[str, Curve] = {}
    for name in models:
        rows = [row for row in bundled.card(name)["metrics"] if row["metric"] == metric and row.get("nfe")]
        points = [(row["nfe"], Estimate(row["value"], row["std_error"], row["n"], metric)) for row in rows]
        out[name] = sorted(points, key=lambda point: point[0])
    return out


def beside(paper: Paper, *models: str, metric: str = "FD[digits-cnn]", published: int | None = None) -> str:
    """Lines of text: the paper's printed numbers, bundled models by their cards, then every claim with its verdict.

    Args:
        models: names of bundled models; `metric` is the one shown.
        published: only the first so many.
    """
    lines = []
    for row in paper.published[:published]:
        nfe = "" if row.nfe is None else f" at {row.nfe} NFE"
        lines.append(f"published, {row.dataset}: {row.metric} {row.value:g}{nfe}, {row.method} ({row.where})")
    for name, points in quality_by_nfe(*models, metric=metric).items():
        lines += [
            f"bundled, {name}: {metric} {e.value:.3f} ± {e.std_error:.3f} at {n} NFE, n = {e.n}" for n, e in points
        ]
    record = evidence_of(paper.slug)
    return "\n".join(lines + [_line(e) for claim in paper.claims if (e := record.of(claim)) is not None and e.outcomes])


def _line(e: Evidence) -> str:
    verdict = "holds" if e.holds else "FAILS"
    about = f"{e.scale}, {e.seeds} seed{'s' * (e.seeds > 1)}"
    value = f"{e.measured.value:.3g} ± {e.measured.std_error:.1g}, threshold {e.threshold:.3g}"
    return f"measured, {about}: {e.claim}: {value}, {verdict}"
