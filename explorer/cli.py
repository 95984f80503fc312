"""The `explorer` command: serve, sample, eval, record, train, list, bench.

Torch takes seconds to import, so this module imports nothing heavy: each command imports what it needs when it runs,
and the options of the sampler's knobs, which are generated from `SamplerKnobs`, are made when a command that has them
is called. With --json only JSON goes to standard output; progress, notes and errors go to standard error.
"""

from __future__ import annotations

import inspect
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from explorer.errors import BadValue, ExplorerError, MissingExtra, UnknownName

if TYPE_CHECKING:
    from explorer.models.base import Denoiser
    from explorer.sampling.samplers import Sampler

KNOBBED: dict[str, Callable] = {}
LISTED = ("models", "data", "solvers", "grids", "metrics", "papers")
ALIASES = {"solver": "--sampler", "n_steps": "--steps", "label": "--class"}


class Commands(TyperGroup):
    """The group of all commands: adds the knob options to those that sample, and prints our errors as one sentence."""

    def resolve_command(self, ctx, args):
        name, command, rest = super().resolve_command(ctx, args)
        if name in KNOBBED:
            command = with_knobs(name, KNOBBED[name])
        return name, command, rest

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except ExplorerError as error:
            typer.secho(f"error: {error}", fg="red", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.secho("interrupted", fg="yellow", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(cls=Commands, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False)


def show_version(asked: bool) -> None:
    if asked:
        from explorer import __version__

        typer.echo(f"explorer {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """See, measure and tune the sampling trajectories of few-step generative models."""


def main() -> None:
    # Threads that spin while they wait make torch 20 times slower on a machine that has other work; read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app(prog_name="explorer")


# Options shared by several commands

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on standard output.")]
Device = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute; auto takes a GPU when there is one.")
]
Batch = Annotated[int, typer.Option(min=1, help="Samples per pass through the network. Does not change the result.")]
Model = Annotated[
    str, typer.Argument(help="A bundled model, toy or oracle: see explorer list models.", metavar="MODEL")
]


def with_knobs(name: str, function: Callable):
    """The command `name`: the options of `function` and one for every knob of `SamplerKnobs`.

    `function` receives the knobs that were given on the command line as the dict `given`.
    """
    own = inspect.signature(function, eval_str=True)
    knobs = {p.name: p for p in knob_parameters()}

    def command(**values):
        given = {k: v for k in knobs if (v := values.pop(k)) is not None}
        if "skip_bank" in given:
            given["skip_bank"] = numbers("skip_bank", given["skip_bank"])
        function(**values, given=given)

    command.__doc__ = function.__doc__
    parameters = [p for p in own.parameters.values() if p.name != "given"]
    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    command.__signature__ = inspect.Signature([*keyword, *knobs.values()])
    alone = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    alone.command(name)(command)
    return typer.main.get_command(alone)


def knob_parameters() -> Iterator[inspect.Parameter]:
    """A keyword parameter with typer's annotation for every knob: type, range, meaning and group come from the knob."""
    import param

    from explorer.knobs import GROUPS, SamplerKnobs, names

    group_of = {name: group for group, members in GROUPS.items() for name in members}
    for name in names():
        knob = SamplerKnobs.param[name]
        kind, say, complete = str, "", None
        if isinstance(knob, param.Selector):
            choices = [str(o) for o in knob.objects]
            say, complete = f"One of {', '.join(choices)}.", starting(choices)
        elif isinstance(knob, param.List):
            say = "Numbers separated by commas."
        else:
            kind = int if isinstance(knob, param.Integer) else float
            low, high = knob.bounds
            say = f"From {low:g} to {high:g}." if high < 1e4 else ""
        if name in ("sigma_min", "sigma_max"):
            say += " Default: the end of the model's own range."
        elif knob.default is not None:
            say += f" Default: {knob.default:.4g}." if isinstance(knob.default, float) else f" Default: {knob.default}."
        flags = ["--" + name.replace("_", "-"), *([ALIASES[name]] if name in ALIASES else [])]
        option = typer.Option(
            *flags,
            help=f"{knob.doc} {say}".strip(),
            rich_help_panel=group_of.get(name, "Randomness"),
            autocompletion=complete,
            show_default=False,
        )
        yield inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
        )


def starting(choices: Iterable[str]) -> Callable:
    """Shell completion from a fixed set of words."""

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


def numbers(name: str, text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise BadValue(f"{name} must be numbers separated by commas, such as 0.8,0.9,1; got {text!r}.") from None


def knobbed(function: Callable) -> Callable:
    """Register a command whose knob options are made when it is called; the list of commands shows its docstring."""

    def listed():
        pass

    name = function.__name__.rstrip("_")
    listed.__doc__ = function.__doc__
    app.command(name)(listed)
    KNOBBED[name] = function
    return function


# What commands share


def emit(document: Any) -> None:
    """Print JSON to standard output; numbers that JSON has no word for become null."""
    typer.echo(json.dumps(plain(document), indent=2, allow_nan=False))


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    return value if value is None or isinstance(value, str | bool | int) else str(value)


def note(text: str) -> None:
    typer.secho(f"note: {text}", fg="yellow", err=True)


def device_named(name: str):
    """The torch device of --device.

    Raises:
        BadValue: a GPU was asked for and torch sees none.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    elif name == "cuda" and not torch.cuda.is_available():
        why = "is a CPU build" if torch.version.cuda is None else "sees no NVIDIA GPU"
        raise BadValue(f"device cuda is not available, because torch {torch.__version__} {why}: use cpu or auto.")
    return torch.device(name)


@contextmanager
def progress(what: str):
    """A bar with the time left on standard error; yields show(fraction, text="")."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    screen = Console(stderr=True)
    columns = (*columns, TextColumn("left"), TimeRemainingColumn())
    bar = Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal)
    with bar:
        task = bar.add_task(what, total=1.0)
        yield lambda fraction, text="": bar.update(task, completed=fraction, description=text or what)


def prepare(model: str, device: str, given: dict) -> tuple[Denoiser, Denoiser, Sampler, Any]:
    """The bare model on its device, the model and sampler that the knobs make of it, and the knobs.

    A knob that was given but cannot act on this model with this solver is named in a note.
    """
    from explorer.knobs import SamplerKnobs
    from explorer.models.bundled import load

    bare = load(model).to(device_named(device))
    knobs = SamplerKnobs.for_model(bare, **given)
    built, sampler = knobs.build(bare)
    for name, reason in knobs.inapplicable(bare).items():
        if name in given:
            note(f"{name.replace('_', '-')} has no effect. {reason}")
    return bare, built, sampler, knobs


def settings_of(model: str, knobs: Any, sampler: Sampler, n: int, device: Any) -> dict:
    """What a JSON document says about how its numbers or files were made."""
    import platform

    import numpy as np
    import torch

    from explorer import __version__

    versions = {"explorer": __version__, "torch": torch.__version__, "numpy": np.__version__}
    return {
        "model": model,
        "knobs": knobs.to_dict(),
        "sampler": sampler.to_dict(),
        "seeds": [knobs.seed, knobs.seed + n],
        "device": str(device),
        "versions": {**versions, "python": platform.python_version()},
    }


# Commands that sample


@knobbed
def eval_(
    model: Model,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Number of samples.")] = 2000,
    metric: Annotated[
        str | None, typer.Option(help="Default: what suits the model. See explorer list metrics.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="What to compare with, a name or a file. Default: what the model was made from.")
    ] = None,
    features: Annotated[
        str | None, typer.Option(help="Feature space of the comparison. Default: what suits the data.")
    ] = None,
    batch: Batch = 256,
    device: Device = "auto",
    as_json: Json = False,
    *,
    given: dict,
) -> None:
    """Measure a sampler: a metric of n samples, with its standard error.

    Examples:
      explorer eval digits --sampler heun --steps 18 --n 2000
      explorer eval digits --steps 5 --guidance 2 --json
    """
    from explorer.live import metric_for, quality
    from explorer.models.bundled import card

    bare, built, sampler, knobs = prepare(model, device, given)
    measure = metric_for(bare, metric, data=data or card(model).get("data"), features=features)
    live = None
    with progress(f"{model}, {sampler.nfe(built)} NFE") as show:
        runs = quality(built, sampler, measure, n, batch, knobs.seed, label=knobs.label, geometry=False, between=show)
        for live in runs:
            show(live.n_done / n, str(live.estimate))
    estimate = live.estimate
    if not as_json:
        raw = "" if estimate.raw is None else f", uncorrected {estimate.raw:.4g}"
        typer.echo(f"{estimate}{raw}, {live.nfe} NFE, {live.seconds:.1f} s")
        return
    settings = settings_of(model, knobs, sampler, n, device_named(device))
    found = {"metric": estimate.name, "raw": None, **estimate.to_dict(), "nfe": live.nfe, "seconds": live.seconds}
    found.pop("name", None)
    emit({**found, **settings})


@knobbed
def sample(
    model: Model,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="A .png picture, or .npz or .safetensors with the numbers. Default: MODEL.png."
        ),
    ] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Number of samples.")] = 64,
    batch: Batch = 256,
    device: Device = "auto",
    as_json: Json = False,
    *,
    given: dict,
) -> None:
    """Draw samples and write them to a file.

    Examples:
      explorer sample digits --n 64 --out grid.png
      explorer sample digits --steps 4 --class 7 --n 1000 --out sevens.npz
    """
    from explorer.sampling.samplers import labels_for
    from explorer.sampling.samplers import sample as draw
    from explorer.sampling.seeds import Seeds

    out = out or Path(f"{Path(model).stem}.png")
    writer = WRITERS.get(out.suffix)
    if writer is None:
        raise BadValue(f"{out.name} must end in one of {', '.join(WRITERS)}.")
    _, built, sampler, knobs = prepare(model, device, given)
    seeds, labels = Seeds(range(knobs.seed, knobs.seed + n)), knobs.labels
    began, steps = time.perf_counter(), sampler.grid.n_steps * -(-n // batch)
    with progress(f"{n} samples, {sampler.nfe(built)} NFE") as show:
        x = draw(built, sampler, seeds, labels, batch=batch, observe=counted(show, steps)).cpu()
    seconds, classes = time.perf_counter() - began, labels_for(built, seeds, labels)
    arrays = {"x": x.numpy(), "seed": list(seeds.ids)}
    if classes is not None:
        arrays["label"] = classes.tolist()
    out.parent.mkdir(parents=True, exist_ok=True)
    writer(out, arrays)
    report = {"file": str(out), "n": n, "shape": list(x.shape[1:]), "nfe": sampler.nfe(built), "seconds": seconds}
    if as_json:
        emit({**report, **settings_of(model, knobs, sampler, n, device_named(device))})
    else:
        typer.echo(f"{out}: {n} samples of {model}, {report['nfe']} NFE, {seconds:.1f} s")


@knobbed
def record(
    model: Model,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A .nc file (netCDF) or a .zarr folder. Default: MODEL.nc.")
    ] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Number of samples.")] = 64,
    keep: Annotated[str, typer.Option(help="What to store besides the states: slope, x0_hat, error.")] = "slope",
    limit: Annotated[float, typer.Option(help="Refuse a recording above this many GiB.")] = 2.0,
    batch: Batch = 256,
    device: Device = "auto",
    as_json: Json = False,
    *,
    given: dict,
) -> None:
    """Record trajectories: every state of every sample, as a labelled dataset.

    Examples:
      explorer record digits --n 64 --out trajectories.nc
      explorer record oracle-8gaussians --steps 30 --keep slope,x0_hat --out paths.nc
    """
    from explorer.sampling.seeds import Seeds
    from explorer.trajectory import storage
    from explorer.trajectory.record import GIB
    from explorer.trajectory.record import record as run

    out = out or Path(f"{Path(model).stem}.nc")
    if out.suffix not in storage.NETCDF + storage.ZARR:
        raise BadValue(f"{out.name} must end in {storage.NETCDF[0]} or {storage.ZARR[0]}.")
    _, built, sampler, knobs = prepare(model, device, given)
    seeds, labels = Seeds(range(knobs.seed, knobs.seed + n)), knobs.labels
    variables = ("x", *(word.strip() for word in keep.split(",") if word.strip()))
    began, steps = time.perf_counter(), sampler.grid.n_steps * -(-n // batch)
    with progress(f"recording {n} samples") as show:
        watch, ceiling = counted(show, steps), int(limit * GIB)
        ds = run(built, sampler, seeds, labels, keep=variables, batch=batch, limit=ceiling, observe=watch)
    storage.save(ds, out)
    size, seconds = sum(f.stat().st_size for f in [out, *out.rglob("*")] if f.is_file()), time.perf_counter() - began
    sizes = {str(k): int(v) for k, v in ds.sizes.items()}
    report = {"file": str(out), "n": n, "nfe": sampler.nfe(built), "sizes": sizes, "bytes": size, "seconds": seconds}
    if as_json:
        emit({**report, **settings_of(model, knobs, sampler, n, device_named(device))})
    else:
        shape = " x ".join(f"{k} {v}" for k, v in sizes.items())
        typer.echo(f"{out}: {shape}, {size / 2**20:.1f} MiB, {report['nfe']} NFE, {seconds:.1f} s")


def counted(show: Callable, steps: int) -> Callable:
    """An observer that shows which share of `steps` solver steps is done."""
    done = 0

    def observe(*_) -> None:
        nonlocal done
        done += 1
        show(done / steps)

    return observe


def write_png(file: Path, arrays: dict) -> None:
    """Images in rows, every pixel an equal square; points of the plane, or the first two coordinates of others, as marks."""
    from explorer.viz import OKABE_ITO, grid, png
    from explorer.viz.canvas import canvas

    x = arrays["x"]
    if x.ndim == 4:
        columns = -(-(len(x) ** 0.5) // 1)
        file.write_bytes(png(grid(x, int(columns), scale=max(1, int(480 // (columns * x.shape[3]))))))
        return
    board = canvas("matplotlib", size=(520, 560))
    colors = [OKABE_ITO[label % len(OKABE_ITO)] for label in arrays.get("label", [0] * len(x))]
    board.panel().points(x[:, 0], x[:, 1], colors, size=3.0)
    board.panel().axes("x", "y", equal=True)
    board.finish(f"n = {len(x)}").savefig(file, dpi=120, format="png")


def write_npz(file: Path, arrays: dict) -> None:
    import numpy as np

    np.savez(file, **arrays)


def write_safetensors(file: Path, arrays: dict) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, file)


WRITERS = {".png": write_png, ".npz": write_npz, ".safetensors": write_safetensors}


# Commands without knobs


@app.command("list")
def list_(
    what: Annotated[
        str, typer.Argument(metavar="|".join(LISTED), help="What to list.", autocompletion=starting(LISTED))
    ],
    as_json: Json = False,
) -> None:
    """List what there is: models, data, solvers, grids, metrics or papers.

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


def table(rows: list[dict]) -> None:
    """Print rows as a table; the keys of the first are its head."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in rows[0]:
        shown.add_column(column, overflow="fold", no_wrap=column == "name")
    for row in rows:
        shown.add_row(*(cell(value) for value in row.values()))
    Console(highlight=False, markup=False).print(shown)


def cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return (" x " if all(isinstance(v, int) for v in value) else ", ").join(map(str, value))
    return "" if value is None else str(value)


def first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").split("\n")[0].rstrip(".")


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


def measured(row: dict) -> str:
    """A card's row as "FD[digits-cnn] 0.42 ± 0.06 (n=500), 35 NFE"."""
    from explorer.metrics.base import Estimate

    text = str(Estimate(row["value"], row["std_error"], row["n"], row["metric"]))
    return f"{text}, {row['nfe']} NFE" if row.get("nfe") else text


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

    papers = [paper(slug) for slug in names()]
    return [{"name": p.slug, "title": p.title, "arxiv": p.arxiv, "recipes": list(p.recipes)} for p in papers]


def rows_of_metrics() -> list[dict]:
    from explorer.live import METRICS

    return [{"name": name, "about": first_line(make)} for name, make in METRICS.items()]


@app.command()
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


@app.command()
def train(
    paper: Annotated[str, typer.Argument(help="One of explorer list papers.", metavar="PAPER")],
    data: Annotated[str, typer.Option("--data", "--recipe", help="Which of the paper's recipes.")] = "digits",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder. Default: runs/PAPER-RECIPE.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Finish the learning-rate schedule within this time.")
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Another value for a field of the recipe: plan.batch_size=256.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything random. Default: the recipe's own.")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train a paper's recipe and write the model with its card. Run again on the same folder, it resumes.

    Examples:
      explorer train edm --data digits --minutes 10 --out runs/digits
      explorer train edm --data toy-moons --set plan.optimizer.lr=5e-4
    """
    from explorer.papers import paper as find
    from explorer.training.run import override, publish, train_recipe

    changes: dict[str, Any] = dict(assignment(text) for text in change or ())
    changes |= {f"plan.{k}": v for k, v in (("seed", seed), ("minutes", minutes)) if v is not None}
    recipe = override(find(paper).recipe(data), changes)
    out, where = out or Path("runs") / f"{paper}-{data}", device_named(device)
    if recipe.cost:
        note(f"the recipe says: {recipe.cost}")
    tick = None
    with progress(f"training {recipe.name}") as show:
        for tick in train_recipe(recipe, out, device=where):
            losses = [f"{name} {value:.4g}" for name, value in tick.logs.items() if name.startswith("loss/")]
            show(tick.fraction, f"step {tick.step}, {', '.join(losses[:2])}")
    with progress("measuring the model"):
        weights = publish(recipe, tick, out)
    about = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
    if as_json:
        emit(
            {"file": str(weights), "steps": tick.step, "images": tick.n_images, "seconds": tick.seconds, "card": about}
        )
        return
    typer.echo(f"{weights}: {tick.step} steps, {tick.n_images} images, {tick.seconds / 60:.1f} min")
    for row in about.get("metrics", ()):
        typer.echo(f"  {measured(row)}")


def assignment(text: str) -> tuple[str, str]:
    field, equals, value = text.partition("=")
    if not equals:
        raise BadValue(f"--set takes FIELD=VALUE, such as plan.batch_size=256; got {text!r}.")
    return field.strip(), value.strip()


@app.command()
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
        rows = run(names or (), show, runs=runs, quick=quick)
    if out is not None:
        save(rows, out)
    if as_json:
        emit([row.to_dict() for row in rows])
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
