"""Commands that run for a while: serve, train, bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from explorer.cli.options import Device, Json, device_named
from explorer.cli.output import emit, measured, note, progress, table
from explorer.errors import BadValue, MissingExtra


def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free port.")] = 5006,
    address: Annotated[
        str, typer.Option(help="Interface to listen on. Anyone who can reach it can use the page.")
    ] = "localhost",
    show: Annotated[bool, typer.Option("--show/--no-show", help="Open a browser where there is one.")] = True,
    demo: Annotated[
        bool, typer.Option("--demo", help="Open on a comparison that is set up: two solvers at the same cost.")
    ] = False,
) -> None:
    """Serve the dashboard and print its address.

    Examples:
      explorer serve
      explorer serve --port 5007 --no-show
      explorer serve --demo
    """
    try:
        from explorer.apps.serve import serve as run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("explorer"):
            raise
        raise MissingExtra(error.name or "panel", "app", "the dashboard") from None
    run(port=port, address=address, show=show, demo=demo)


def train(
    paper: Annotated[str, typer.Argument(help="One of explorer list papers.", metavar="PAPER")],
    data: Annotated[
        str | None,
        typer.Option(
            help="A recipe of the paper, by the data it is for, or data of your own: points (.csv, .npz), a folder or zip of "
            "pictures, any name of explorer list data. Default: digits.",
            show_default=False,
        ),
    ] = None,
    named: Annotated[
        str | None,
        typer.Option(
            "--recipe", help="Which recipe your data are for. Default: the smallest that fits.", show_default=False
        ),
    ] = None,
    given: Annotated[
        list[str] | None,
        typer.Option("--with", help="A model in place of the recipe's own: teacher=runs/mine, or a name or a file."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder. Default: runs/PAPER-RECIPE.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Finish the learning-rate schedule within this time.")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="Another value for a field of the recipe: plan.batch_size=256, settings.p_mean=-1."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything random. Default: the recipe's own.")] = None,
    half: Annotated[
        bool, typer.Option("--half", help="Round the weights to float16 before measuring and writing: half the size.")
    ] = False,
    previews: Annotated[
        bool,
        typer.Option(
            "--previews", help="Draw and measure samples meanwhile, for the Training page; costs up to half a core."
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only build the networks and take one step on made-up data; needs no data set."),
    ] = False,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the networks: slow to start, faster steps on a GPU.")
    ] = False,
    shard: Annotated[
        bool, typer.Option("--shard", help="With torchrun: each process keeps its part of the weights only (FSDP2).")
    ] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train a paper's recipe and write the model with its card. Run again on the same folder, it resumes.

    Examples:
      explorer train edm --data digits --minutes 10 --out runs/digits
      explorer train edm --data toy-moons --set plan.optimizer.lr=5e-4
      explorer train edm --data my-pictures/ --minutes 30 --out runs/mine
      explorer train rectified_flow --recipe toy-2rf --data points.csv
      explorer train consistency_models --recipe toy --data points.csv --with teacher=runs/points
      explorer train edm --data cifar10 --dry-run
      torchrun --nproc-per-node 4 -m explorer train edm --data cifar10
      torchrun --nproc-per-node 8 -m explorer train edm --data imagenet64 --shard --compile
    """
    from explorer.apps.training.choices import SETTING, recipe_of
    from explorer.apps.training.process import on_record
    from explorer.data import load_dataset
    from explorer.papers import paper as find
    from explorer.reproduction.own import chosen, located, scale_words
    from explorer.reproduction.rehearsal import ELSEWHERE, missing
    from explorer.reproduction.run import method_of, publish, train_recipe
    from explorer.training import distributed

    sets: dict[str, Any] = dict(assignment(text) for text in change or ())
    models = {
        role: located(model)
        for role, model in (assignment(text, "--with NEED=MODEL, such as teacher=runs/mine") for text in given or ())
    }
    if "data" in sets:
        named, data = named or data, sets.pop("data")
    name, other = chosen(find(paper), named, data, models)
    if other and not named:
        note(f"recipe {name} fits these data; its numbers are those of its own, and --recipe names another one.")
    asked = {"seed": seed, "minutes": minutes, "compile": compiled or None, "shard": shard or None}
    sets |= {f"plan.{k}": v for k, v in asked.items() if v is not None}
    own = {SETTING + k.removeprefix("settings."): sets.pop(k) for k in list(sets) if k.startswith("settings.")}
    request = {"paper": paper, "recipe": name, "data": other, "models": models, "changes": own, "sets": sets}
    recipe = recipe_of(request)
    if other and not recipe.needs and not dry_run:
        method_of(
            recipe, load_dataset(other), {}, recipe.plan.seed
        )  # what does not fit is said before a folder is made
    if other and (moved := scale_words(find(paper).recipe(name), recipe)):
        note(moved)
    out, where = out or Path("runs") / f"{paper}-{recipe.name if other else name}", device_named(device)
    if dry_run:
        rehearse(paper, recipe, where, as_json)
        return
    if recipe.data in ELSEWHERE:
        raise missing(recipe.data)
    with distributed.from_env(where) as where:
        speaks = distributed.rank() == 0
        if recipe.cost and speaks:
            note(f"the recipe says: {recipe.cost}")
        tick = None
        if distributed.world() > 1:
            course = train_recipe(recipe, out, device=where)
        else:
            course = on_record(recipe, out, request, where, previews=previews)
        with progress(f"training {recipe.name}", show=speaks) as show:
            for tick in course:
                losses = [f"{name} {value:.4g}" for name, value in tick.logs.items() if name.startswith("loss/")]
                skipped = f", {tick.logs['skipped']} updates skipped" if tick.logs["skipped"] else ""
                show(tick.fraction, f"step {tick.step}, {', '.join(losses[:2])}{skipped}")
    if not speaks:
        return
    if tick is None or (tick.fraction < 1 and not tick.stopped):
        note(f"stopped from outside; run the same command again, or explorer runs {out.name} resume, to go on.")
        return
    with progress("measuring the model") as show:
        weights = publish(recipe, tick, out, half=half, show=lambda share: show(share, "samples"))
    about = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
    if as_json:
        emit(
            {"file": str(weights), "steps": tick.step, "images": tick.n_images, "seconds": tick.seconds, "card": about}
        )
        return
    typer.echo(f"{weights}: {tick.step} steps, {tick.n_images} images, {tick.seconds / 60:.1f} min")
    for row in about.get("metrics", ()):
        typer.echo(f"  {measured(row)}")


def rehearse(paper: str, recipe: Any, device: Any, as_json: bool) -> None:
    """Print what one step of a recipe at full size shows."""
    from explorer.reproduction.rehearsal import BATCH
    from explorer.reproduction.rehearsal import rehearse as run

    with progress(f"building {recipe.name}") as show:
        seen = run(recipe, device=device, seed=recipe.plan.seed, show=show)
    if as_json:
        emit({"paper": paper, **seen.to_dict()})
        return
    theirs = ""
    if seen.paper_parameters:
        gap = seen.parameters / seen.paper_parameters - 1
        theirs = f", the paper says {millions(seen.paper_parameters)} ({gap:+.1%})"
    classes = f", {seen.n_classes} classes" if seen.n_classes else ""
    typer.echo(f"{paper} {seen.recipe}: {' x '.join(map(str, seen.shape))}{classes}")
    typer.echo(f"  parameters       {millions(seen.parameters)}{theirs}")
    typer.echo(f"  networks         {', '.join(f'{k} {millions(v)}' for k, v in seen.networks.items())}")
    typer.echo(f"  effective batch  {seen.effective_batch} images a step, {recipe.plan.n_steps} steps")
    logs = ", ".join(f"{name} {value:.4g}" for name, value in seen.logs.items())
    typer.echo(f"  one step at {BATCH}    {seen.step_seconds:.1f} s of {seen.seconds:.1f} s: {logs}")


def millions(n: float) -> str:
    return f"{n / 1e6:.2f} M" if n < 1e8 else f"{n / 1e6:.1f} M"


def assignment(text: str, form: str = "--set FIELD=VALUE, such as plan.batch_size=256") -> tuple[str, str]:
    field, equals, value = text.partition("=")
    if not equals:
        option, _, rest = form.partition(" ")
        raise BadValue(f"{option} takes {rest}; got {text!r}.")
    return field.strip(), value.strip()


def bench(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Rows, or families of rows. Default: all.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the rows here too, as JSON with machine and versions.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Rounds of which the median is taken.")] = 7,
    quick: Annotated[bool, typer.Option("--quick", help="Short turns and smaller problems, to try it out.")] = False,
    as_json: Json = False,
) -> None:
    """Time what must be fast beside its peers, each row with the bare cost that bounds it.

    Examples:
      explorer bench --out bench.json
      explorer bench solver-overhead frechet --json
    """
    from explorer.bench import run, save

    with progress("timing") as show:
        kept = None if out is None else lambda rows: save(rows, out)
        rows = run(names or (), show, runs=runs, quick=quick, found=kept)
    if kept is not None:
        kept(rows)
    if as_json:
        emit([row.to_dict() for row in rows])
        return
    if not rows:
        note(
            "nothing was measured. Rows of the browser need a Chromium (CHROMIUM can name one); of others a warning says why."
        )
        return
    table(
        [
            {
                "name": row.name,
                "ours": f"{row.ours:.4g} {row.unit}",
                "limit": "" if row.limit is None else f"{row.limit:.4g}",
                "ours / limit": "" if row.ratio is None else f"{row.ratio:.3g}",
                "peers": ", ".join(f"{peer} {value:.4g}" for peer, value in row.peers.items()),
            }
            for row in rows
        ]
    )
