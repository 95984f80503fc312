"""Evidence: what each claim of a paper measured over seeds, in a file that grows with every result.

A claim is measured once per seed and not again until the lines of code it consists of change. Every result is on disk before
the next measurement begins, so a run that is stopped goes on where it was.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from explorer.errors import BadFile, BadValue, UnknownName
from explorer.files import write_atomic
from explorer.metrics.base import Estimate
from explorer.models.bundled import asset_folders
from explorer.reproduction.bench import Bench
from explorer.reproduction.recipe import Claim, Paper, Verdict
from explorer.reproduction.run import machine
from explorer.reproduction.source import source_of

FOLDER = Path("runs") / "claims"
"""Where models trained for claims are kept, unless told otherwise."""


@dataclass(frozen=True)
class Outcome:
    """A claim at one seed.

    Attributes:
        value, std_error, n: of the measured quantity.
        threshold: what it was held against.
        text: the rest of what was seen.
        minutes: wall-clock time, trainings included.
    """

    seed: int
    holds: bool
    value: float
    std_error: float
    n: int
    threshold: float
    text: str = ""
    minutes: float = 0.0

    @classmethod
    def of(cls, seed: int, verdict: Verdict, minutes: float) -> Outcome:
        m = verdict.measured
        seen = float(m.value), float(m.std_error), int(m.n), float(verdict.threshold)
        return cls(seed, bool(verdict.holds), *seen, verdict.text, round(minutes, 2))


@dataclass(frozen=True)
class Evidence:
    """All that one claim measured.

    Attributes:
        claim, where, scale: as the paper's file states it.
        quantity: name of the measured number.
        outcomes: by seed, in order.
        source: of the code that measured, see `source_of`.
        machine, date: of the last measurement.
        error: why a measurement came to no end; empty otherwise.
    """

    claim: str
    where: str
    scale: str
    quantity: str = ""
    outcomes: tuple[Outcome, ...] = ()
    source: str = ""
    machine: str = ""
    date: str = ""
    error: str = ""

    @property
    def seeds(self) -> int:
        return len(self.outcomes)

    @property
    def holds(self) -> bool:
        """Whether the claim was measured and held at every seed."""
        return bool(self.outcomes) and all(o.holds for o in self.outcomes)

    @property
    def measured(self) -> Estimate:
        """Mean over seeds; its error is their spread over the root of their number, or that of the one seed there is."""
        values = [o.value for o in self.outcomes]
        if not values or not all(map(math.isfinite, values)):
            return Estimate(math.nan, math.nan, 0, self.quantity)
        spread = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else self.outcomes[0].std_error
        return Estimate(statistics.fmean(values), spread, min(o.n for o in self.outcomes), self.quantity)

    @property
    def threshold(self) -> float:
        """Mean over seeds, for thresholds that are themselves measured."""
        return statistics.fmean(o.threshold for o in self.outcomes) if self.outcomes else math.nan

    @property
    def minutes(self) -> float:
        return round(sum(o.minutes for o in self.outcomes), 2)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: the combined numbers, then those of every seed."""
        m = self.measured
        return {
            "claim": self.claim,
            "scale": self.scale,
            "measured": _number(m.value),
            "std_error": _number(m.std_error),
            "threshold": _number(self.threshold),
            "holds": self.holds,
            "seeds": self.seeds,
            "quantity": self.quantity,
            "n": m.n,
            "where": self.where,
            "values": [{k: _number(v) for k, v in vars(o).items()} for o in self.outcomes],
            "minutes": self.minutes,
            "machine": self.machine,
            "date": self.date,
            "source": self.source,
            **({"error": self.error} if self.error else {}),
        }

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Evidence:
        names = ("claim", "where", "scale", "quantity", "source", "machine", "date")
        floats = ("value", "std_error", "threshold")
        outcomes = (
            Outcome(**{**one, **{k: math.nan for k in floats if one.get(k) is None}}) for one in given["values"]
        )
        return cls(**{k: str(given[k]) for k in names}, outcomes=tuple(outcomes), error=str(given.get("error", "")))


@dataclass(frozen=True)
class Record:
    """The evidence of a paper: what is complete, and what is begun.

    Attributes:
        rows: claims measured at as many seeds as were asked for.
        unfinished: claims measured at fewer, or that stopped with an error.
    """

    slug: str
    rows: tuple[Evidence, ...] = ()
    unfinished: tuple[Evidence, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    def of(self, claim: Claim) -> Evidence | None:
        """What there is on a claim, found by its text."""
        return next((e for e in (*self.rows, *self.unfinished) if e.claim == claim.text), None)

    def with_(self, evidence: Evidence, seeds: int) -> Record:
        """The record with one claim's evidence put in place of what it had."""
        done = evidence.seeds >= seeds and not evidence.error
        kept = (
            [e for e in self.rows if e.claim != evidence.claim],
            [e for e in self.unfinished if e.claim != evidence.claim],
        )
        kept[0 if done else 1].append(evidence)
        return replace(self, rows=tuple(kept[0]), unfinished=tuple(kept[1]), versions=_versions())

    def to_dict(self) -> dict[str, Any]:
        everything = (*self.rows, *self.unfinished)
        return {
            "slug": self.slug,
            "seeds": min((e.seeds for e in self.rows), default=0),
            "machine": ", ".join(dict.fromkeys(e.machine for e in everything if e.machine)),
            "minutes": round(sum(e.minutes for e in everything), 2),
            "versions": dict(self.versions),
            "claims": [e.to_dict() for e in self.rows],
            **({"unfinished": [e.to_dict() for e in self.unfinished]} if self.unfinished else {}),
        }

    def in_order(self, paper: Paper) -> Record:
        """Rows as the paper lists and words its claims now; what it no longer claims is dropped.

        A claim that was only put in other words is known by its code.
        """
        place = {claim.text: i for i, claim in enumerate(paper.claims)}
        by_source = {source_of(claim.check): claim for claim in paper.claims}

        def now(e: Evidence) -> Claim | None:
            return paper.claims[place[e.claim]] if e.claim in place else by_source.get(e.source)

        def sort(rows: Iterable[Evidence]) -> tuple[Evidence, ...]:
            kept = {c.text: replace(e, claim=c.text, where=c.where, scale=c.scale) for e in rows if (c := now(e))}
            return tuple(sorted(kept.values(), key=lambda e: place[e.claim]))

        return replace(self, rows=sort(self.rows), unfinished=sort(self.unfinished))


class Measured(NamedTuple):
    """What `gather` yields after each claim and seed.

    Attributes:
        evidence: all that the claim has by now.
        seed: the one that was just measured.
        fraction: of the planned time that is spent.
    """

    claim: Claim
    evidence: Evidence
    seed: int
    fraction: float


def gather(
    paper: Paper,
    seeds: int = 3,
    *,
    file: Path | str | None = None,
    folder: Path | str | None = FOLDER,
    claims: Iterable[Claim] | None = None,
    again: bool = False,
    device: torch.device | str = "cpu",
    show: Callable[[str, float], None] | None = None,
) -> Iterator[Measured]:
    """Measure what is missing of a paper's evidence, one claim and seed at a time, and write the file after each.

    Args:
        seeds: each claim is measured at seeds 0 to this number - 1.
        file: where evidence is read from and written to; None for `default_file`.
        folder: of the trained models, see `Bench`.
        claims: which; None for all.
        again: measure also what is there and unchanged.
        show: (words, fraction of the planned time) is called while something is trained.
    Yields:
        a `Measured` for every new result; nothing for what was there. A check that raises is recorded with its error, and
            the next one follows.
    Raises:
        BadFile: the evidence there is cannot be read.
    """
    if seeds < 1:
        raise BadValue(f"seeds is {seeds}; a claim is measured at one seed or more.")
    file = default_file(paper.slug) if file is None else Path(file)
    show = show or (lambda words, fraction: None)
    there = read(file, paper.slug)
    record = there.in_order(paper)
    if record != there:
        write(record, file)
    todo = list(_missing(record, paper.claims if claims is None else claims, seeds, again))
    total, spent = sum(claim.minutes for claim, *_ in todo) or 1.0, 0.0
    benches: dict[int, Bench] = {}
    for claim, seed, anew in todo:
        where = f"{paper.slug}: claim {paper.claims.index(claim) + 1}, seed {seed}"
        bench = benches.setdefault(seed, Bench(folder, seed=seed, device=device))
        bench.show = lambda words, part, where=where, at=spent, m=claim.minutes: show(
            f"{where}: {words}", (at + 0.9 * part * m) / total
        )
        show(where, spent / total)
        evidence = _measure(claim, bench, None if anew else record.of(claim))
        # Another process may have written other claims of this paper meanwhile.
        record = read(file, paper.slug).in_order(paper).with_(evidence, seeds).in_order(paper)
        write(record, file)
        spent += claim.minutes
        yield Measured(claim, evidence, seed, spent / total)


def _missing(record: Record, claims: Iterable[Claim], seeds: int, again: bool) -> Iterator[tuple[Claim, int, bool]]:
    """Claim, seed, and whether what there is on the claim no longer counts."""
    for claim in claims:
        known = record.of(claim)
        fresh = known is not None and known.source == source_of(claim.check) and not again
        there = {o.seed for o in known.outcomes} if fresh else set()
        yield from ((claim, seed, not fresh and seed == 0) for seed in range(seeds) if seed not in there)


def _measure(claim: Claim, bench: Bench, known: Evidence | None) -> Evidence:
    known = known or Evidence(claim.text, claim.where, claim.scale, source=source_of(claim.check))
    began, failed = time.monotonic(), f"seed {bench.seed}: "
    now = {"machine": machine(bench.device), "date": datetime.datetime.now(datetime.UTC).date().isoformat()}
    try:
        verdict = claim.check(bench)
    except Exception as problem:  # one broken check must not cost the others their night
        return replace(known, error=f"{failed}{type(problem).__name__}: {problem}", **now)
    outcome = Outcome.of(bench.seed, verdict, (time.monotonic() - began) / 60)
    outcomes = tuple(sorted((*(o for o in known.outcomes if o.seed != bench.seed), outcome), key=lambda o: o.seed))
    left = "" if known.error.startswith(failed) else known.error
    return replace(known, quantity=verdict.measured.name, outcomes=outcomes, error=left, **now)


def choose(paper: Paper, scale: str | None = None, only: Iterable[str] = ()) -> tuple[Claim, ...]:
    """The claims of a paper at a scale, or those picked by number from 1 or by a part of their text.

    Raises:
        UnknownName: no claim of that scale, or none that a pick fits; the message lists what there is.
    """
    numbered = {f"{i}": claim for i, claim in enumerate(paper.claims, 1)}
    if scale is not None:
        numbered = {i: claim for i, claim in numbered.items() if claim.scale == scale}
        if not numbered:
            raise UnknownName(f"scale of {paper.slug}'s claims", scale, {claim.scale for claim in paper.claims})
    picked = []
    for pick in only:
        found = [c for i, c in numbered.items() if pick == i or (not pick.isdigit() and pick.lower() in c.text.lower())]
        if not found:
            raise UnknownName(f"claim of {paper.slug}", pick, (f"{i} ({c.text})" for i, c in numbered.items()))
        picked += [c for c in found if c not in picked]
    return tuple(picked) if only else tuple(numbered.values())


def default_file(slug: str) -> Path:
    """assets/claims/SLUG.json in a checkout; runs/claims/SLUG.json beside an installed package."""
    checkout = Path(__file__).resolve().parents[2] / "assets"
    root = Path(os.environ.get("EXPLORER_ASSETS", checkout))
    return (root / "claims" if root.is_dir() else FOLDER) / f"{slug}.json"


def evidence_of(slug: str) -> Record:
    """The bundled evidence of a paper; empty when there is none."""
    return read(next((f for d in asset_folders("claims") if (f := d / f"{slug}.json").is_file()), None), slug)


def read(file: Path | None, slug: str) -> Record:
    """The evidence in a file; empty when there is no such file.

    Raises:
        BadFile: it is not a record of this paper's evidence.
    """
    if file is None or not Path(file).exists():
        return Record(slug)
    try:
        about = json.loads(Path(file).read_text(encoding="utf-8"))
        rows, begun = ([Evidence.from_dict(row) for row in about.get(k, ())] for k in ("claims", "unfinished"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise BadFile(f"{file} holds no evidence that can be read ({problem}); move it away to measure anew.") from None
    if about.get("slug") != slug:
        raise BadFile(f"{file} holds the evidence of {about.get('slug')!r}, not of {slug!r}.")
    return Record(slug, tuple(rows), tuple(begun), dict(about.get("versions", {})))


def write(record: Record, file: Path) -> None:
    """Put a record into a file, whole or not at all."""
    text = json.dumps(record.to_dict(), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomic(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _number(value: Any) -> Any:
    """A number as JSON can hold it, six digits; what is not finite becomes None."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _versions() -> dict[str, str]:
    from explorer import __version__

    return {
        "explorer": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
