"""`explorer tune`: better samples at the same cost, without training."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from explorer.cli.options import DataName, Device, FeatureName, Json, Model, denoisers, device_named, starting
from explorer.cli.output import emit, note, progress
from explorer.errors import BadValue, MissingExtra, UnknownName

if TYPE_CHECKING:
    from explorer.tuning import Objective, Setting, SharedStudy, Study, Trial, Tuned, Tuner

WHATS = ("schedule", "solver", "skip", "layers", "guidance", "restart", "weights", "joint")
METHODS = (
    "coordinate",
    "cma",
    "tpe",
    "nsga2",
    "halving",
    "dp",
    "ays",
    "gradient",
    "decoupled",
    "bespoke",
    "autodiffusion",
)
SHARED = ("tpe", "nsga2")
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
        str | None,
        typer.Option(
            help=f"What to lower: one of {', '.join(OBJECTIVES)}. Default: truncation; for restarts and weights fd, or sw2 for points.",
            autocompletion=starting(OBJECTIVES),
        ),
    ] = None,
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
    run: Annotated[
        Path | None,
        typer.Option(
            "--run", "--snapshots", help="With --what weights: the run whose snapshots are combined, the model's own."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that share the search; on Dask, tasks. Default: this one; Dask: all."),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Share the search with whoever gives the same storage and command: journal:FILE, or a database such as "
            "sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME."
        ),
    ] = None,
    study: Annotated[str, typer.Option(help="Name of the search in the storage.")] = "explorer",
    dask: Annotated[
        str | None,
        typer.Option(help="Let a Dask cluster's workers share it: the scheduler's address, tcp://HOST:8786."),
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
    Interrupted, the same command goes on from its journal; with a smaller --budget it ends with what is there. With --workers, --storage
    or --dask any number of processes and machines share one search; a trial whose worker dies is begun again, once.

    Examples:
      explorer tune digits --what schedule --nfe 5 --budget 100
      explorer tune digits --what joint --nfe 8 --objective fd --out best8.json --export python
      explorer tune oracle-8gaussians --method cma --objective sw2 --json
      explorer tune shapes32 --what guidance --guide shapes32-early --nfe 34 --objective fd --budget 12
      explorer tune digits --what joint --objective fd --workers 4 --storage journal:/mnt/lab/joint.log
      explorer eval digits --tuned tuned.json --n 2000
    """
    objective = objective or default_objective(model, what)
    for kind, given, valid in (("thing to tune", what, WHATS), ("objective", objective, OBJECTIVES)):
        if given not in valid:
            raise UnknownName(kind, given, valid)
    for name in export or ():
        if name not in EXPORTS:
            raise UnknownName("form to export to", name, EXPORTS)
    for option, value, owner in (("--guide", guide, "guidance"), ("--run", run, "weights")):
        if value is not None and what != owner:
            raise BadValue(f"{option} belongs to --what {owner}, not to {what}")
    together = storage is not None or dask is not None or (workers or 1) > 1
    if together:
        method = method or "tpe"
        storage = storage or f"journal:{out.with_suffix('.study.log').resolve()}"
    asked = Asked(
        model, what, nfe, budget, minutes, objective, method, n, solver, start and str(start), guide or "", run and str(run),
        data, features, seed, device, storage, study,
    )  # fmt: skip
    search = asked.shared() if together else asked.alone(out.with_suffix(".journal.jsonl"))
    try:
        if not together:
            show(search, iter(search))
        elif dask is not None:
            with on_dask(asked, dask, workers) as working:
                show(search, watched(search, working))
        elif (workers or 1) > 1:
            with in_processes(asked, workers) as working:
                show(search, watched(search, working))
        else:
            show(search, search.work())
        with progress("measuring on held-out noise"):
            tuned = search.finish(report, **ranked_again(search, what, seed, together))
    except KeyboardInterrupt:
        kept = len(search.trials)
        note(
            f"{kept} trials are kept in {storage if together else search.journal}: the same command goes on from there, "
            f"and with --budget {max(kept - 1, 1)} ends with them"
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


@dataclass(frozen=True)
class Asked:
    """What a search is asked, as plain values: another process or machine makes the same search of them."""

    model: str
    what: str
    nfe: int
    budget: int
    minutes: float | None
    objective: str
    method: str | None
    n: int | None
    solver: str
    start: str | None
    guide: str
    run: str | None
    data: str | None
    features: str | None
    seed: int
    device: str
    storage: str | None
    study: str

    def parts(self) -> dict[str, Any]:
        """The arguments that both kinds of study take."""
        from explorer.models.bundled import load
        from explorer.tuning import Budget

        limit = Budget(trials=self.budget, minutes=self.minutes)
        bare = load(self.model).to(device_named(self.device))
        first = first_setting(bare, self.what, self.nfe, self.solver, self.start and Path(self.start))
        goal = goal_of(bare, self.model, self.objective, self.n, self.seed, self.data, self.features)
        tuner = tuner_of(bare, self.what, self.method, self.nfe, self.budget, first, self.guide, self.run)
        return {"model": bare, "start": first, "objective": goal, "tuner": tuner, "budget": limit, "seed": self.seed}

    def alone(self, journal: Path) -> Study:
        """The search of one process."""
        from explorer.tuning import Study

        return Study(**self.parts(), journal=journal)

    def shared(self) -> SharedStudy:
        """The search of several.

        Raises: BadValue for a method that goes from one answer to the next.
        """
        from explorer.tuning import SharedStudy

        if self.method not in SHARED or self.what in ("solver", "layers"):
            name = f"--what {self.what}" if self.what in ("solver", "layers") else f"--method {self.method}"
            raise BadValue(
                f"{name} goes from one answer to the next: leave out --workers, --storage and --dask, or search with --method tpe or nsga2"
            )
        return SharedStudy(**self.parts(), storage=self.storage, name=self.study)


def show(study: Study | SharedStudy, trials: Iterator[Trial]) -> None:
    """Runs it with a bar, the time left, and a line on standard error for each improvement."""
    began, best, whole = time.monotonic(), None, len(study.objective.seeds)
    with progress(study.tuner.name) as bar:
        if hasattr(study, "tell"):
            study.tell = lambda words, share: bar(min(study.fraction, 1.0), f"{words}, {share:.0%}")
        for trial in trials:
            if trial.n == whole and not trial.failed and (best is None or trial.value < best.value):
                best = trial
                done = max(study.fraction, 1e-9)
                left = f", {(time.monotonic() - began) * (1 / done - 1):.0f} s left" if done > 1e-9 else ""
                typer.echo(f"{trial}{left}", err=True)
            value = "none yet" if best is None else f"{best.estimate.value:.4g}"
            bar(min(study.fraction, 1.0), f"trial {trial.number}, best {value}")


def watched(study: SharedStudy, working: Callable[[], bool]) -> Iterator[Trial]:
    """Trials as others finish them; when nobody works any more, what they left is done here."""
    seen: set[int] = set()
    while True:
        going = working()
        for trial in study.trials:
            if trial.number not in seen:
                seen.add(trial.number)
                yield trial
        if not going:
            yield from study.work()
            return
        time.sleep(0.3)


def join(asked: Asked) -> int:
    """Works on a shared search until it is done; the number of trials measured here."""
    return sum(1 for _ in asked.shared().work())


@contextlib.contextmanager
def in_processes(asked: Asked, n: int) -> Iterator[Callable[[], bool]]:
    """Starts n processes that join, and yields whether one still works; what is still there at the end is ended."""
    threads = str(max((os.cpu_count() or 1) // n, 1))
    env = {"OMP_NUM_THREADS": threads, **os.environ}
    with tempfile.TemporaryFile("w+") as said:
        command = [sys.executable, "-m", "explorer.cli.tuning"]
        helpers = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=said, text=True, env=env) for _ in range(n)]
        for helper in helpers:
            with contextlib.suppress(BrokenPipeError):  # it has ended already, which is said below
                helper.stdin.write(json.dumps(asdict(asked)))
                helper.stdin.close()
        try:
            yield lambda: any(helper.poll() is None for helper in helpers)
            said.seek(0)
            words = said.read().strip().splitlines()
            for helper in helpers:
                if helper.returncode:
                    note(f"worker {helper.pid} ended with {helper.returncode}" + (f": {words[-1]}" if words else ""))
        finally:
            for helper in helpers:
                if helper.poll() is None:
                    helper.terminate()
                helper.wait()


@contextlib.contextmanager
def on_dask(asked: Asked, address: str, n: int | None) -> Iterator[Callable[[], bool]]:
    """Submits n tasks that join, one for each of the cluster's workers by default, and yields whether one still works."""
    try:
        from distributed import Client
    except ImportError:
        raise MissingExtra("distributed", "dask", "a search on a Dask cluster") from None
    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        raise BadValue(
            f"no Dask scheduler answers at {address} ({str(error).splitlines()[0]}): start one with dask scheduler"
        ) from None
    with client:
        n = n or len(client.scheduler_info(n_workers=-1)["workers"])
        if n == 0:
            raise BadValue(f"the Dask cluster at {address} has no workers yet: start some with dask worker {address}")
        tasks = [client.submit(join, asked, pure=False) for _ in range(n)]
        try:
            yield lambda: any(not task.done() for task in tasks)
            for task in tasks:
                if task.status == "error":
                    note(f"a worker of the cluster ended: {task.exception()}")
        finally:
            client.cancel(tasks)


def default_objective(model: str, what: str) -> str:
    """Samples that draw noise on the way, or come from other weights, do not end where the model's own ODE does."""
    from explorer.models.bundled import card

    if what not in ("restart", "weights"):
        return "truncation"
    return "fd" if len(card(model).get("shape", ())) > 1 else "sw2"


def ranked_again(search, what: str, seed: int, together: bool) -> dict[str, range]:
    """Combined weights are many and near each other: the leaders of their search are ranked on noise of their own."""
    if what != "weights" or together:
        return {}
    begin = FIRST_SEED + 10_000_000 * seed + 5_000_000
    return {"rerank": range(begin, begin + 2 * len(search.objective.seeds))}


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


def tuner_of(
    model, what: str, method: str | None, nfe: int, budget: int, first: Setting, guide: str = "", run: str | None = None
) -> Tuner:
    """The search that suits the question, or the one asked for."""
    from explorer import tuning as t

    if method is not None and method not in METHODS:
        raise UnknownName("search method", method, METHODS)
    spread = max(budget - 1, 1)
    if method == "bespoke":
        if what != "solver":
            raise BadValue("--method bespoke learns a solver: use it with --what solver")
        from explorer.papers.bespoke import Bespoke

        return Bespoke(iterations=600, every=max(20, -(-600 // spread)))
    if what == "solver":
        if method not in (None, "halving"):
            raise BadValue(
                f"solvers are tried one by one and the better ones on more samples: leave out --method {method}"
            )
        every, room = t.every_solver(model, nfe), 2 * budget // 3
        if room < len(every):
            all_of_them = -(-3 * len(every) // 2)
            note(
                f"{budget} trials hold {max(room, 1)} of {len(every)} solvers and grids: --budget {all_of_them} tries all"
            )
        return t.Halving(settings=t.spread(every, room))
    if what == "layers" or method == "autodiffusion":
        return evolution(model, what, method, budget, first)
    if method in ("dp", "ays", "gradient", "decoupled"):
        if what != "schedule":
            raise BadValue(f"--method {method} computes schedules: use it with --what schedule")
        if method in ("gradient", "decoupled"):
            from explorer.tuning.gradient import Gradient

            apart = {"decoupled": True} if method == "decoupled" else {}
            return Gradient(free_start=True, every=max(10, -(-300 // spread)), **apart)
        return t.DynamicProgram() if method == "dp" else t.AlignSteps()
    if what == "weights" and run is None:
        raise BadValue("weights are combined from the snapshots of a run: name its folder with --run")
    front = method == "nsga2"
    space = {
        "schedule": lambda: t.Nodes(free_start=True),
        "skip": lambda: t.SkipScales(interval=True),
        "guidance": lambda: t.GuidanceSpace(nfe=nfe, guide=guide),
        "restart": lambda: t.RestartSpace(nfe=nfe),
        "weights": lambda: t.Combinations(t.Basis.of(run, model)),
        "joint": lambda: t.Joint(nfe=None if front else nfe, steps=(2, max(nfe, 3))),
    }[what]()
    space.box(model, first)  # refuses here what the model has nothing of
    if method is not None:
        makes = {"coordinate": t.Coordinate, "cma": t.CMA, "tpe": t.Optuna, "halving": t.Halving}
        return t.Optuna(space, "nsga2") if front else makes[method](space)
    if what == "weights":
        return t.Evolution(space.basis)
    if what == "schedule":
        return t.Chain((t.DynamicProgram(), t.Coordinate(space)))
    if what == "joint":
        parts = [t.Halving(space, candidates=max(budget // 2, 1)), t.Coordinate(t.Nodes(free_start=True), step=0.05)]
        if model.n_skips:
            parts.append(t.Coordinate(t.SkipScales()))
        return t.Chain(tuple(parts), (0, max(budget // 6, 1)))
    if what == "restart":
        return t.Chain((t.RestartSearch(nfe, candidates=max(2 * budget // 3, 2)), t.Coordinate(space)))
    return t.Coordinate(space)


def evolution(model, what: str, method: str | None, budget: int, first: Setting) -> Tuner:
    """AutoDiffusion's search, sized for the budget."""
    from explorer.papers.autodiffusion import sized
    from explorer.tuning.genome import LEFT_OUT, enough_for_layers, genome_of

    if what not in ("schedule", "layers") or method not in (None, "autodiffusion"):
        raise BadValue(
            "AutoDiffusion searches steps and layers: use --what schedule or layers, and no other --method for layers"
        )
    genome_of(first, model)
    if what == "layers" and model.n_layers == 0:
        raise BadValue(f"{model.name or 'this model'} has no layers to leave out: choose a U-Net")
    if what == "layers":
        enough_for_layers(budget)
    return sized(budget, LEFT_OUT if what == "layers" else (0.0, 0.0))


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


if __name__ == "__main__":  # a worker of `in_processes`
    join(Asked(**json.load(sys.stdin)))
