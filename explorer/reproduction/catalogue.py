"""The atlas: every paper of this field that the toolkit means to reproduce, with what is here, measured, and what is not.

Ideas and published numbers are written down in atlas.json; the state of a reproduction never is. It follows from the code that is
here and from the evidence in assets/claims, each time it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

from explorer.errors import BadFile, UnknownName
from explorer.models import bundled
from explorer.reproduction.evidence import Evidence, Record, evidence_of
from explorer.reproduction.recipe import Paper, Published
from explorer.reproduction.source import source_of

STATUS = {
    "here": "its method is here and every claim was measured and holds",
    "claims failing": "its method is here; at least one claim does not hold",
    "unmeasured": "its method is here; not every claim has been measured",
    "no claims": "its method is here; there is nothing that it claims",
    "planned": "not here yet",
    "not for this toolkit": "nothing of it can be reproduced here",
}
"""Every state a paper can be in, best first."""


@dataclass(frozen=True)
class Row:
    """A claim as it stands: what the paper's file says, and what was measured of it, if anything.

    Attributes:
        stale: the claim's code has changed since it was measured.
    """

    number: int
    text: str
    where: str
    scale: str
    evidence: Evidence | None
    stale: bool = False

    @property
    def verdict(self) -> str:
        """ "holds", "fails", "not measured" or, where the code has changed since, "measured before it changed"."""
        if self.evidence is None or not self.evidence.outcomes:
            return "not measured"
        if self.stale:
            return "measured before it changed"
        return "holds" if self.evidence.holds else "fails"


@dataclass(frozen=True)
class Entry:
    """A paper of the atlas.

    Attributes:
        slug: of `explorer list papers` where its method is here, with dashes.
        idea: what it does, in a few sentences.
        published: its printed numbers with their protocol.
        parts: modules of this package that serve it already.
        presets: what to open, in words, and its address below the dashboard's root ("lab#lab?model=digits&restarts=2").
        commands: what to type besides training and measuring, each with a word for it.
        notebook: name of the file in `notebooks`, without its ending; "" where there is none.
        role: "method", "tool" for papers that only lend one, "nothing to reproduce", "part" for what is no paper but of this toolkit.
        module: slug of its file in `explorer.papers`; None where there is none.
        recipes: names for `explorer train`.
        claims: with their evidence; empty where there is no module.
        status: a key of `STATUS`.
    """

    slug: str
    title: str
    authors: str
    year: int | None
    arxiv: str
    family: str
    idea: str
    published: tuple[Published, ...]
    parts: tuple[str, ...]
    presets: tuple[tuple[str, str], ...]
    commands: tuple[tuple[str, str], ...]
    notebook: str
    role: str
    module: str | None
    recipes: tuple[str, ...]
    claims: tuple[Row, ...]
    status: str

    @property
    def nfe(self) -> int | None:
        """The fewest evaluations it printed a number for; None where it printed none."""
        return min((p.nfe for p in self.published if p.nfe is not None), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: one row of a table, claims with measured value, error, threshold and verdict."""
        claims = []
        for row in self.claims:
            e = row.evidence
            known = {} if e is None else {k: e.to_dict()[k] for k in ("measured", "std_error", "threshold", "seeds")}
            claims.append({"claim": row.text, "where": row.where, "scale": row.scale, "verdict": row.verdict, **known})
        plain = {k: getattr(self, k) for k in ("slug", "title", "authors", "year", "arxiv", "family", "role", "status")}
        return {
            **plain,
            "nfe": self.nfe,
            "idea": self.idea,
            "published": [vars(p) for p in self.published],
            "recipes": list(self.recipes),
            "claims": claims,
        }


def entries(names: Callable[[], tuple[str, ...]], paper: Callable[[str], Paper]) -> tuple[Entry, ...]:
    """The whole atlas in its own order, then papers of this package that it does not list.

    Args:
        names, paper: the registry, `explorer.papers.names` and `explorer.papers.paper`, which lies on a higher floor.
    """
    here, listed = dict.fromkeys(names()), []
    for about in _written():
        module = about["slug"].replace("-", "_")
        found = paper(module) if module in here else None
        here.pop(module, None)
        listed.append(_entry(about, found))
    own = ({"slug": slug.replace("_", "-"), "idea": "", "published": [], "role": "part"} for slug in here)
    return (*listed, *(_entry(about, paper(about["slug"].replace("-", "_"))) for about in own))


def _entry(about: dict[str, Any], paper: Paper | None) -> Entry:
    published = tuple(Published(**row) for row in about["published"])
    role = about.get("role", "method")
    if paper is not None and paper.published:
        published = paper.published
    rows = () if paper is None else rows_of(paper, evidence_of(paper.slug))
    return Entry(
        slug=about["slug"],
        title=about.get("title") or paper.title,
        authors=about.get("authors", ""),
        year=about.get("year"),
        arxiv=about.get("arxiv") or ("" if paper is None else paper.arxiv),
        family=about.get("family") or paper.family,
        idea=about["idea"],
        published=published,
        parts=tuple(part for part in about.get("parts", ()) if find_spec(part) is not None),
        presets=() if paper is None else _pairs(about, "presets"),
        commands=() if paper is None else _pairs(about, "commands"),
        notebook=about.get("notebook", ""),
        role=role,
        module=None if paper is None else paper.slug,
        recipes=() if paper is None else tuple(paper.recipes),
        claims=rows,
        status=status_of(role, paper, rows),
    )


def _pairs(about: dict[str, Any], key: str) -> tuple[tuple[str, str], ...]:
    return tuple((words, text) for words, text in about.get(key, ()))


def rows_of(paper: Paper, record: Record) -> tuple[Row, ...]:
    """A paper's claims with what its evidence says about each."""
    out = []
    for number, claim in enumerate(paper.claims, 1):
        known = record.of(claim)
        stale = known is not None and known.source != source_of(claim.check)
        out.append(Row(number, claim.text, claim.where, claim.scale, known, stale))
    return tuple(out)


def status_of(role: str, paper: Paper | None, rows: tuple[Row, ...]) -> str:
    """A key of `STATUS`: "here" asks for a method, at least one claim, and every claim measured as it stands and holding."""
    if role == "nothing to reproduce":
        return "not for this toolkit"
    if paper is None:
        return "planned"
    if not rows and not paper.arxiv:
        return "no claims"
    verdicts = {row.verdict for row in rows}
    if "fails" in verdicts:
        return "claims failing"
    return "here" if verdicts == {"holds"} else "unmeasured"


@lru_cache(maxsize=1)
def _written() -> tuple[dict[str, Any], ...]:
    try:
        about = json.loads(files("explorer.reproduction").joinpath("atlas.json").read_text(encoding="utf-8"))
        return tuple(about["papers"])
    except (OSError, ValueError, KeyError) as problem:
        raise BadFile(f"the atlas that comes with this package cannot be read ({problem}): install it again.") from None


def find(slug: str, everything: tuple[Entry, ...]) -> Entry:
    """Raises UnknownName: no paper of that slug in the atlas."""
    for entry in everything:
        if slug in (entry.slug, entry.module):
            return entry
    raise UnknownName("paper", slug, [entry.slug for entry in everything])


@dataclass(frozen=True)
class Point:
    """A bundled model's measured quality at one cost, from its card.

    Attributes:
        metric: with its feature space; reference: the data it is compared with.
    """

    model: str
    metric: str
    nfe: int
    value: float
    std_error: float
    n: int
    reference: str


def quality_against_cost(data: str = "digits") -> tuple[Point, ...]:
    """NFE and Fréchet distance of every bundled model of a data set, from the cards, by model and cost.

    Rows whose distance is corrected for the number of samples, against the training split.
    """
    points = []
    for name in bundled.names():
        card = bundled.card(name)
        if card.get("data") != data:
            continue
        for row in card.get("metrics", ()):
            metric = str(row.get("metric", ""))
            corrected = metric.startswith("FD[") and metric.endswith("]")
            if corrected and isinstance(row.get("nfe"), int) and row.get("model", name) == name:
                points.append(
                    Point(
                        name,
                        metric,
                        row["nfe"],
                        float(row["value"]),
                        float(row["std_error"]),
                        int(row["n"]),
                        str(row.get("reference", "")),
                    )
                )
    return tuple(sorted(set(points), key=lambda p: (p.model, p.nfe, p.value)))
