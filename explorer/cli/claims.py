"""`explorer claims`: measure what papers say."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from explorer.cli.options import Device, Json, device_named
from explorer.cli.output import emit, note, progress, table
from explorer.errors import BadValue

if TYPE_CHECKING:
    from explorer.reproduction.evidence import Evidence, Record
    from explorer.reproduction.recipe import Claim, Paper


def claims(
    paper: Annotated[
        str | None, typer.Argument(help="One of explorer list papers.", metavar="[PAPER]", show_default=False)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every paper that has claims.")] = False,
    scale: Annotated[str | None, typer.Option(help="Only claims on toy, digits or shapes.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only the claim of this number, or those with this text. May be repeated.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Measure each claim at this many seeds.")] = 3,
    again: Annotated[bool, typer.Option("--again", help="Measure also what is there and unchanged.")] = False,
    folder: Annotated[Path, typer.Option(help="Where what is trained for claims is kept.")] = Path("runs/claims"),
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Evidence file. Default: assets/claims/PAPER.json.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 1 when a claim does not hold.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a paper's claims over seeds, trainings included, and write the evidence. Stopped, the same command goes on.

    What is in the evidence file already is not measured again unless the claim's code has changed. A claim that fails is printed and
    kept as failing; one that could not be measured ends the command with code 1.

    Examples:
      explorer claims edm
      explorer claims edm --only 2 --only churn --seeds 5
      explorer claims --all --scale toy --json
    """
    from explorer.papers import names
    from explorer.papers import paper as find
    from explorer.reproduction.evidence import choose

    if everything == (paper is not None):
        raise BadValue("name one paper, or give --all: explorer claims edm.")
    if everything and (out is not None or only):
        raise BadValue("--out and --only are for one paper, not for --all.")
    found = [find(slug) for slug in (names() if everything else (paper,))]
    found = [p for p in found if p.claims and (not everything or scale in (None, *(c.scale for c in p.claims)))]
    if not found:
        raise BadValue(f"{paper or 'no paper'} has claims{'' if scale is None else f' at scale {scale}'} to measure.")
    where, records, held, measured = device_named(device), [], True, True
    for one in found:
        picked = choose(one, scale, only or ())
        record = gather_all(one, picked, seeds, out, folder, again, where)
        records.append(record)
        if not as_json:
            show(one, picked, record, seeds)
        complete = {e.claim: e for e in record.rows if e.seeds >= seeds}
        measured &= all(c.text in complete for c in picked)
        held &= all(complete[c.text].holds for c in picked if c.text in complete)
    if as_json:
        documents = [record.to_dict() for record in records]
        emit(documents if everything else documents[0])
    if not measured or (strict and not held):
        raise typer.Exit(1)


def gather_all(
    paper: Paper, picked: tuple[Claim, ...], seeds: int, out: Path | None, folder: Path, again: bool, device
) -> Record:
    """Run what is missing, with a bar and a line for each result on standard error."""
    from explorer.metrics.base import plus_minus
    from explorer.reproduction.evidence import default_file, gather, read

    file, began = out or default_file(paper.slug), time.monotonic()
    with progress(paper.slug) as bar:
        runs = gather(
            paper,
            seeds,
            file=file,
            folder=folder,
            claims=picked,
            again=again,
            device=device,
            show=lambda words, part: bar(part, words),
        )
        for done in runs:
            spent = time.monotonic() - began
            left = spent * (1 / done.fraction - 1) / 60
            bar(done.fraction)
            e = done.evidence
            now = next((o for o in e.outcomes if o.seed == done.seed), None)
            if now is None or e.error.startswith(f"seed {done.seed}:"):
                words = f"could not be measured: {e.error}"
            else:
                words = f"{plus_minus(now.value, now.std_error)}, {'holds' if now.holds else 'FAILS'}; {now.text}"
            number = paper.claims.index(done.claim) + 1
            line = f"{paper.slug} {number}, seed {done.seed}: {words} ({spent / 60:.1f} min, {left:.1f} left)"
            typer.echo(line, err=True)
    record = read(file, paper.slug)
    if record.rows or record.unfinished:
        note(f"{file}: {len(record.rows)} of {len(paper.claims)} claims measured, {record.to_dict()['minutes']:g} min")
    return record


def show(paper: Paper, picked: tuple[Claim, ...], record: Record, seeds: int) -> None:
    from explorer.metrics.base import plus_minus

    typer.echo(f"{paper.title} (arXiv {paper.arxiv})" if paper.arxiv else paper.title)
    rows = []
    for claim in picked:
        e, number = record.of(claim), paper.claims.index(claim) + 1
        known = e is not None and e.seeds > 0
        rows.append(
            {
                "": number,
                "claim": f"{claim.text} ({claim.where})",
                "scale": claim.scale,
                "quantity": e.quantity if known else "",
                "measured": plus_minus(e.measured.value, e.measured.std_error) if known else "",
                "threshold": f"{e.threshold:.4g}" if known else "",
                "verdict": verdict(e, seeds),
            }
        )
    table(rows)


def verdict(evidence: Evidence | None, seeds: int) -> str:
    """Text like "holds, 3 seeds", "FAILS at seeds 1, 2" or "2 of 3 seeds measured"."""
    if evidence is None or (evidence.error and not evidence.outcomes):
        return "not measured" if evidence is None else "ERROR"
    failing = [str(o.seed) for o in evidence.outcomes if not o.holds]
    if failing:
        return f"FAILS at seed{'s' * (len(failing) > 1)} {', '.join(failing)}"
    if evidence.seeds < seeds:
        return f"{evidence.seeds} of {seeds} seeds measured"
    return f"holds, {evidence.seeds} seed{'s' * (evidence.seeds > 1)}"
