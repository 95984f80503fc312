"""`explorer tune`: better samples at the same cost, without training."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from explorer.cli.options import DataName, Device, FeatureName, Json, Model, denoisers, device_named, starting
from explorer.cli.output import emit, note, progress
from explorer.errors import BadValue, UnknownName

if TYPE_CHECKING:
    from explorer.tuning import Objective, Setting, Tuned, Tuner

WHATS = ("schedule", "solver", "skip", "guidance", "restart", "joint")
METHODS = ("coordinate", "cma", "tpe", "nsga2", "halving", "dp", "ays")
OBJECTIVES = ("truncation", "fd", "kid", "w2", "sw2", "local")
EXPORTS = ("python", "k-diffusion", "diffusers")
FIRST_SEED = 1_000_000_000
"""Searches draw from here on, ten million seeds apart; reports and other commands from 0."""


def tune(
    model: Model,
    what: Annotated[str, typer.Option(help=f"One of {', '.join(WHATS)}.", autocompletion=starting(WHATS))] = "schedule",
    nfe: Annotated[int, typer.Option(min=1, help="Network evaluations per sample, guidance included.")] = 5,
    budget: Annotated[int, typer.Option(min=0, help="Settings to try.")] = 200,
    minutes: Annotated[float | None, typer.Option(help="Stop searching after this long, if sooner.")] = None,
    objective: Annotated[
        str, typer.Option(help=f"What to lower: one of {', '.join(OBJECTIVES)}.", autocompletion=starting(OBJECTIVES))
    ] = "truncation",
    method: Annotated[
        str | None,
        typer.Option(
            help=f"One of {', '.join(METHODS)}. Default: what suits --what.", autocompletion=starting(METHODS)
        ),
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", "-n", min=1, help="Samples of each trial. Default: 128, or 640 for a metric.")
    ] = None,
    report: Annotated[
        int, typer.Option(min=2, help="Samples of the final number, on noise the search did not see.")
    ] = 2000,
    guide: Annotated[
        str | None,
        typer.Option(
            help="With --what guidance: the worse model to move away from. Default: the model without a class.",
            autocompletion=denoisers,
        ),
    ] = None,
    solver: Annotated[str, typer.Option(help="Where to start: a solver, see explorer list solvers.")] = "dpmpp-2m",
    start: Annotated[
        Path | None, typer.Option(help="Start from a sampler or a tuned one in a JSON file instead.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The tuned sampler; its journal is kept beside it.")] = Path(
        "tuned.json"
    ),
    export: Annotated[
        list[str] | None, typer.Option(help=f"Also write it as {', '.join(EXPORTS)}, beside the file. May be repeated.")
    ] = None,
    data: DataName = None,
    features: FeatureName = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the search: its draws and its noise.")] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Search for a better schedule, solver, skip factors, guidance or all of them at a fixed cost, without training.

    All settings are compared on the same noise; the number at the end is measured on other noise, beside the one the search believed.
    Interrupted, the same command goes on from its journal; with a smaller --budget it ends with what is there.

    Examples:
      explorer tune digits --what schedule --nfe 5 --budget 100
      explorer tune digits --what joint --nfe 8 --objective fd --out best8.json --export python
      explorer tune oracle-8gaussians --method cma --objective sw2 --json
      explorer tune shapes32 --what guidance --guide shapes32-early --nfe 34 --objective fd --budget 12
      explorer eval digits --tuned tuned.json --n 2000
    """
    from explorer.models.bundled import load
    from explorer.tuning import Budget, Study

    for kind, given, valid in (("thing to tune", what, WHATS), ("objective", objective, OBJECTIVES)):
        if given not in valid:
            raise UnknownName(kind, given, valid)
    for name in export or ():
        if name not in EXPORTS:
            raise UnknownName("form to export to", name, EXPORTS)
    if guide is not None and what != "guidance":
        raise BadValue(f"--guide belongs to --what guidance, not to {what}")
    limit = Budget(trials=budget, minutes=minutes)
    bare = load(model).to(device_named(device))
    first = first_setting(bare, what, nfe, solver, start)
    goal = goal_of(bare, model, objective, n, seed, data, features)
    study = Study(
        bare,
        first,
        goal,
        tuner_of(bare, what, method, nfe, budget, first, guide or ""),
        limit,
        seed,
        out.with_suffix(".journal.jsonl"),
    )
    try:
        search(study)
        with progress("measuring on held-out noise"):
            tuned = study.finish(report)
    except KeyboardInterrupt:
        note(
            f"{len(study.trials)} trials are kept in {study.journal}: the same command goes on from there, "
            f"and with --budget {max(len(study.trials) - 1, 1)} ends with them"
        )
        raise
    tuned.save(out)
    written = [str(out), *exported(tuned, out, export or ())]
    if as_json:
        about = {k: v for k, v in tuned.to_dict().items() if k not in ("history", "format", "version")}
        emit(
            {"files": written, "trials": len(tuned.history) - 1, "curse": tuned.curse, "gained": tuned.gained, **about}
        )
        return
    typer.echo(str(tuned))
    typer.echo(
        f"{tuned.setting.describe()}\n{', '.join(written)}: {tuned.n_evals:.3g} evaluations, {tuned.seconds:.0f} s"
    )


def search(study) -> None:
    """Run it with a bar, the time left, and a line on standard error for each improvement."""
    began, done = time.monotonic(), 0
    with progress(study.tuner.name) as bar:
        for trial in study:
            best = study.best
            bar(min(study.fraction, 1.0), f"trial {trial.number}, best {best.estimate.value:.4g}")
            if trial is best:
                spent = time.monotonic() - began
                done = max(study.fraction, 1e-9)
                left = f", {spent * (1 / done - 1):.0f} s left" if trial.number else ""
                typer.echo(f"{trial}{left}", err=True)


def first_setting(model, what: str, nfe: int, solver: str, file: Path | None) -> Setting:
    """The baseline: a file's setting, or a solver on its Karras grid with as many steps as the cost allows."""
    from explorer.cli.sampling import json_in, stored_sampler
    from explorer.tuning import Setting, Tuned, every_solver

    if file is None:
        return every_solver(model, nfe, (solver,), ("karras",))[0]
    if json_in(file).get("format") == "explorer.tuned":
        tuned = Tuned.load(file)
        tuned.on(model)
        found = tuned.setting
    else:
        found = Setting(stored_sampler(file))
    cost = found.nfe(model)
    if cost is not None and cost > nfe:
        raise BadValue(
            f"{file} takes {cost} evaluations a sample, more than --nfe {nfe}: allow as many, or start elsewhere"
        )
    return found


def goal_of(
    model, name: str, objective: str, n: int | None, seed: int, data: str | None, features: str | None
) -> Objective:
    from explorer.live import metric_for
    from explorer.models.bundled import card
    from explorer.tuning import LocalError, MetricObjective, TruncationError

    begin = FIRST_SEED + 10_000_000 * seed
    if objective == "truncation":
        return TruncationError(model, range(begin, begin + (n or 128)))
    if objective == "local":
        return LocalError(range(begin, begin + (n or 64)))
    metric = metric_for(model, objective, data=data or card(name).get("data"), features=features)
    goal = MetricObjective(metric, range(begin, begin + (n or max(640, getattr(metric, "n_min", 0)))))
    if n is not None and n < goal.least:
        raise BadValue(f"{metric.name} needs at least {goal.least} samples to give a number: --n {n} is too few")
    return goal


def tuner_of(model, what: str, method: str | None, nfe: int, budget: int, first: Setting, guide: str = "") -> Tuner:
    """The search that suits the question, or the one asked for."""
    from explorer import tuning as t

    if method is not None and method not in METHODS:
        raise UnknownName("search method", method, METHODS)
    if what == "solver":
        if method not in (None, "halving"):
            raise BadValue(
                f"solvers are tried one by one and the better ones on more samples: leave out --method {method}"
            )
        return t.Halving(settings=t.every_solver(model, nfe))
    if method in ("dp", "ays"):
        if what != "schedule":
            raise BadValue(f"--method {method} computes schedules: use it with --what schedule")
        return t.DynamicProgram() if method == "dp" else t.AlignSteps()
    front = method == "nsga2"
    space = {
        "schedule": lambda: t.Nodes(free_start=True),
        "skip": lambda: t.SkipScales(interval=True),
        "guidance": lambda: t.GuidanceSpace(nfe=nfe, guide=guide),
        "restart": lambda: t.RestartSpace(nfe=nfe),
        "joint": lambda: t.Joint(nfe=None if front else nfe, steps=(2, max(nfe, 3))),
    }[what]()
    space.box(model, first)  # refuses here what the model has nothing of
    if method is not None:
        makes = {"coordinate": t.Coordinate, "cma": t.CMA, "tpe": t.Optuna, "halving": t.Halving}
        return t.Optuna(space, "nsga2") if front else makes[method](space)
    if what == "schedule":
        return t.Chain((t.DynamicProgram(), t.Coordinate(space)))
    if what == "joint":
        parts = [t.Halving(space, candidates=max(budget // 2, 1)), t.Coordinate(t.Nodes(free_start=True), step=0.05)]
        if model.n_skips:
            parts.append(t.Coordinate(t.SkipScales()))
        return t.Chain(tuple(parts), (0, max(budget // 6, 1)))
    return t.Optuna(space) if what == "restart" else t.Coordinate(space)


def exported(tuned: Tuned, out: Path, forms: list[str]) -> list[str]:
    """Writes the forms asked for beside the file; one that cannot be is named in a note."""
    from explorer.tuning import export

    written = []
    for form in dict.fromkeys(forms):
        try:
            if form == "python":
                file, text = out.with_suffix(".py"), export.to_python(tuned.setting, tuned.model["name"])
            else:
                make = export.to_k_diffusion if form == "k-diffusion" else export.to_diffusers
                file, text = out.with_suffix(f".{form}.json"), json.dumps(make(tuned.setting), indent=1) + "\n"
        except BadValue as error:
            note(f"not written as {form}: {error}")
            continue
        file.write_text(text, encoding="utf-8")
        written.append(str(file))
    return written
