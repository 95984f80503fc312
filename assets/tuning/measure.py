"""Measures what tuning gains on the bundled digits model: `python assets/tuning/measure.py NFE SEED` adds one row to digits.json.

    1  screening  every solver on every grid below, by the Fréchet distance on 320 samples of its own noise, once for each NFE
    2  baseline   the eight best of them again, on the seed's search noise: the best untuned setting
    3  shape      the grid's nodes by end-point error to the model's own ODE, 48 samples
    4  tuning     that grid and its neighbours, then the skip factors, by the Fréchet distance on the search noise
    5  report     baseline and tuned on 2000 samples of noise that nothing above saw, paired

Every stage keeps a journal in runs/tuning, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import time
from pathlib import Path

import torch

from explorer.files import write_atomic
from explorer.live import metric_for
from explorer.models.bundled import load
from explorer.sampling import Heun, OdeSampler, TimeGrid
from explorer.tuning import (
    Budget,
    Chain,
    Coordinate,
    Listed,
    MetricObjective,
    Nodes,
    Setting,
    SkipScales,
    Study,
    TruncationError,
    every_solver,
    fingerprint,
)

FILE = Path(__file__).with_name("digits.json")
RUNS = Path("runs/tuning")
SOLVERS = ("euler", "heun", "dpm-solver-2", "dpmpp-2m", "dpmpp-3m", "unipc", "deis", "ipndm")
GRIDS = ("karras", "log-snr", "uniform-t", "cosine", "beta", "laplace", "sigmoid")
N_SCREEN, N_SHAPE, N_SEARCH, N_REPORT, FINALISTS = 320, 48, 480, 2000, 8
TRIALS = {"shape": 70, "grid": 24, "skips": 12}
REFERENCE_NFE = 35


def run(study: Study) -> Study:
    """The study to its end, with a line for each improvement."""
    for trial in study:
        if trial is study.best:
            print(f"  {trial.note or 'start'}: {trial}", flush=True)
    return study


def screened(model, nfe: int) -> list[Setting]:
    """Untuned settings at this cost, best first."""
    settings = every_solver(model, nfe, SOLVERS, GRIDS)
    objective = MetricObjective(metric_for(model, "fd"), range(90_000_000, 90_000_000 + N_SCREEN))
    study = Study(
        model,
        settings[0],
        objective,
        Listed(settings),
        Budget(trials=len(settings)),
        journal=RUNS / f"screen-{nfe}.jsonl",
    )
    trials = [t for t in run(study).trials if not t.failed]
    return [t.setting for t in sorted(trials, key=lambda t: t.value)]


def measured(nfe: int, seed: int) -> dict:
    model, began = load("digits"), time.process_time()
    first = 100_000_000 * (seed + 1)
    untuned = screened(model, nfe)[:FINALISTS]
    objective = MetricObjective(metric_for(model, "fd"), range(first, first + N_SEARCH))
    choice = Study(
        model,
        untuned[0],
        objective,
        Listed(tuple(untuned)),
        Budget(trials=FINALISTS),
        journal=RUNS / f"choice-{nfe}-{seed}.jsonl",
    )
    baseline = run(choice).best.setting

    ends = TruncationError(model, range(first + 10_000, first + 10_000 + N_SHAPE))
    steps = Coordinate(Nodes(free_start=True), step=0.08)
    shape = run(
        Study(model, baseline, ends, steps, Budget(trials=TRIALS["shape"]), seed, RUNS / f"shape-{nfe}-{seed}.jsonl")
    )
    search = Chain(
        (
            Listed((shape.best.setting,)),
            Coordinate(Nodes(free_start=True), step=0.04),
            Coordinate(SkipScales(0.7, 1.2), step=0.1),
        ),
        (0, TRIALS["grid"] + 1, 0),
    )
    budget = Budget(trials=2 + TRIALS["grid"] + TRIALS["skips"])
    study = run(Study(model, baseline, objective, search, budget, seed, RUNS / f"search-{nfe}-{seed}.jsonl"))
    tuned = study.finish(range(first + 50_000_000, first + 50_000_000 + N_REPORT))
    print(f"NFE {nfe}, seed {seed}: {tuned}", flush=True)
    kept = {
        k: v
        for k, v in tuned.to_dict().items()
        if k not in ("history", "model", "format", "version", "front", "made", "how")
    }
    return {
        "kind": "tuned",
        "seed": seed,
        **kept,
        "nfe": nfe,
        "trials": sum(len(s.trials) for s in (choice, shape, study)) - 3,
        "untuned": baseline.describe(),
        "shown": tuned.setting.describe(),
        "minutes": round((time.process_time() - began) / 60, 2),
    }


def plain(nfe: int, seed: int) -> dict:
    """The reference: Heun on Karras' grid as the model comes, at the cost of 18 steps, on the same report noise."""
    model = load("digits")
    first = 100_000_000 * (seed + 1) + 50_000_000
    low, high = model.sigma_range
    setting = Setting(OdeSampler(Heun(), TimeGrid.karras((nfe + 1) // 2, low, high)))
    found = MetricObjective(metric_for(model, "fd"), range(first, first + N_REPORT))(*setting.on(model))
    print(f"reference at {nfe} NFE, seed {seed}: {found}", flush=True)
    return {"kind": "reference", "nfe": nfe, "seed": seed, "score": found.to_dict(), "shown": setting.describe()}


def keep(row: dict) -> None:
    about = json.loads(FILE.read_text()) if FILE.exists() else {"rows": []}
    mark = lambda r: (r["kind"], r["nfe"], r["seed"])  # noqa: E731
    rows = [r for r in about["rows"] if mark(r) != mark(row)] + [row]
    model = load("digits")
    content = {
        "what": "Fréchet distance of digits at few network evaluations before and after tuning; see measure.py",
        "model": fingerprint(model),
        "samples": {"screening": N_SCREEN, "search": N_SEARCH, "shape": N_SHAPE, "report": N_REPORT},
        "trials": TRIALS,
        "solvers": SOLVERS,
        "grids": GRIDS,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "rows": sorted(rows, key=mark),
    }
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomic(FILE, lambda file: file.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("nfe", type=int)
    arguments.add_argument("seed", type=int)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    keep((plain if given.nfe >= REFERENCE_NFE else measured)(given.nfe, given.seed))
