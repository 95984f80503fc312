"""Measures what tuning gains on the bundled digits model and writes it into digits.json beside this file.

    measure.py tuned NFE SEED      a search over solver, grid, nodes and skip factors at this cost, and its held-out report: one row
    measure.py ladder SEED         Heun on Karras' grid at several costs, and that and every tuned row of the seed against 35 calls
    measure.py restart NFE SEED    `explorer tune digits --what restart`, carried to its end: one row
    measure.py guidance NFE SEED   the same for the weight and the interval of guidance by `digits-uncond`
    measure.py table               writes the table of all rows again, measuring nothing

A search goes through five stages:
    1  screening  every solver on every grid below, by the Fréchet distance on samples of its own noise, once for each NFE: all seeds
                  share it, for it only says which settings come to stage 2, and its noise is neither a search's nor a report's
    2  baseline   the eight best of them again, on the seed's search noise: the best untuned setting
    3  shape      the grid's nodes by end-point error to the model's own ODE, 48 samples
    4  tuning     that grid and its neighbours, then the skip factors, by the Fréchet distance on the search noise
    5  report     baseline and tuned on 2000 samples of noise that nothing above saw, paired

`needed` in the file is the network calls that reach the distance of 35 calls of Heun, one entry for each way to sample, all by one rule. At
every cost that was measured at three seeds or more, d is the mean over seeds of the difference from 35 calls on the same noise, and e its
standard error: of the report's noise, or of the spread over seeds where that is larger. Then, of the costs measured,
    not_worse     is the least at which d <= 2 e: it cannot be told from 35 calls, or is better. The number to quote
    as_good       is the least at which d <= 0
    better        is the least at which d <= -2 e
and null where no cost was enough. `not_worse` and `better` are the ends of a band; nothing is interpolated, and a way that is already
there at the least cost measured may need fewer.

Every stage keeps what it has in runs/tuning, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from explorer.files import write_atomic
from explorer.live import metric_for
from explorer.metrics import Estimate
from explorer.models.bundled import load
from explorer.sampling import Heun, OdeSampler, Seeds, TimeGrid, labels_for, sample
from explorer.tuning import (
    Budget,
    Chain,
    Coordinate,
    Listed,
    Measurement,
    MetricObjective,
    Nodes,
    Setting,
    SkipScales,
    Study,
    TruncationError,
    Tuned,
    every_solver,
    fingerprint,
)
from explorer.tuning.study import disjoint

FILE = Path(__file__).with_name("digits.json")
RUNS = Path("runs/tuning")
SOLVERS = ("euler", "heun", "dpm-solver-2", "dpmpp-2m", "dpmpp-3m", "unipc", "deis", "ipndm")
GRIDS = ("karras", "log-snr", "uniform-t", "cosine", "beta", "laplace", "sigmoid")
N_SHAPE, N_SEARCH, N_REPORT, FINALISTS = 48, 480, 2000, 8
SIZES = {"screening": 320, "shape": 70, "grid": 24, "skips": 12}
DEAR, DEAR_SIZES = 12, {"screening": 192, "shape": 40, "grid": 8, "skips": 12}
"""Samples of the screening and trials of each stage; from DEAR calls on, where a trial costs most and a grid gains least, fewer."""
REFERENCE_NFE, HEUN_NFE = 35, (5, 9, 13, 17)
BATCH, LEAST_SEEDS = 256, 3
COMMANDS = {
    "restart": "--what restart --objective fd -n 320 --budget 16",
    "guidance": "--what guidance --guide digits-uncond --objective fd -n 320 --budget 16",
}


def sizes(nfe: int) -> dict[str, int]:
    return DEAR_SIZES if nfe >= DEAR else SIZES


def noise(seed: int) -> dict[str, range]:
    """The seeds of each stage, disjoint within one search and between searches."""
    first = 100_000_000 * (seed + 1)
    return {
        "screening": range(90_000_000, 90_000_000 + SIZES["screening"]),
        "search": range(first, first + N_SEARCH),
        "shape": range(first + 10_000, first + 10_000 + N_SHAPE),
        "report": range(first + 50_000_000, first + 50_000_000 + N_REPORT),
    }


def run(study: Study) -> Study:
    """The study to its end, with a line for each improvement."""
    for trial in study:
        if trial is study.best:
            print(f"  {trial.note or 'start'}: {trial}", flush=True)
    return study


def screened(model, nfe: int) -> list[Setting]:
    """Untuned settings at this cost, best first."""
    settings = every_solver(model, nfe, SOLVERS, GRIDS)
    objective = MetricObjective(metric_for(model, "fd"), noise(0)["screening"][: sizes(nfe)["screening"]])
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


def reported(model, setting: Setting, seed: int) -> Measurement:
    """The Fréchet distance on the seed's report noise; samples are kept, so that settings of several rows pair and none is drawn twice."""
    file = RUNS / f"report-{seed}" / f"{fingerprint(model)['sha256'][:8]}-{setting.key()}.npy"
    seeds = Seeds(noise(seed)["report"])
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        x, content = sample(*setting.on(model), seeds, batch=BATCH), io.BytesIO()
        np.save(content, x.numpy())
        write_atomic(file, lambda part: part.write_bytes(content.getvalue()))
    x, labels, metric = torch.from_numpy(np.load(file)), labels_for(model, seeds, "balanced"), metric_for(model, "fd")
    for part, cond in zip(x.split(BATCH), labels.split(BATCH), strict=True):
        metric.update(part, cond)
    return Measurement(metric.compute(), metric)


def tuned(nfe: int, seed: int) -> dict:
    model, began, seeds, trials = load("digits"), time.process_time(), noise(seed), sizes(nfe)
    untuned = screened(model, nfe)[:FINALISTS]
    objective = MetricObjective(metric_for(model, "fd"), seeds["search"])
    choice = Study(
        model,
        untuned[0],
        objective,
        Listed(tuple(untuned)),
        Budget(trials=FINALISTS),
        journal=RUNS / f"choice-{nfe}-{seed}.jsonl",
    )
    baseline = run(choice).best.setting

    ends = TruncationError(model, seeds["shape"])
    steps = Coordinate(Nodes(free_start=True), step=0.08)
    shape = run(
        Study(model, baseline, ends, steps, Budget(trials=trials["shape"]), seed, RUNS / f"shape-{nfe}-{seed}.jsonl")
    )
    search = Chain(
        (
            Listed((shape.best.setting,)),
            Coordinate(Nodes(free_start=True), step=0.04),
            Coordinate(SkipScales(0.7, 1.2), step=0.1),
        ),
        (0, trials["grid"] + 1, 0),
    )
    budget = Budget(trials=2 + trials["grid"] + trials["skips"])
    study = run(Study(model, baseline, objective, search, budget, seed, RUNS / f"search-{nfe}-{seed}.jsonl"))
    for used in seeds["screening"], seeds["search"], seeds["shape"]:
        disjoint(seeds["report"], used)
    best = study.best
    score, before = (reported(model, s, seed) for s in (best.setting, baseline))
    numbers = {
        "score": score.estimate,
        "baseline": before.estimate,
        "difference": score.minus(before),
        "search": best.estimate,
        "search_baseline": study.trials[0].estimate,
        "search_difference": best.difference,
    }
    print(f"NFE {nfe}, seed {seed}: {numbers['difference']} from {before.estimate}", flush=True)
    return {
        "kind": "tuned",
        "nfe": nfe,
        "seed": seed,
        "objective": objective.describe(),
        "report": [seeds["report"].start, seeds["report"].stop],
        "setting": best.setting.to_dict(),
        "start": baseline.to_dict(),
        **{k: v.to_dict() for k, v in numbers.items()},
        "n_evals": study.n_evals,
        "seconds": round(study.seconds, 3),
        "trials": sum(len(s.trials) for s in (choice, shape, study)) - 3,
        "untuned": baseline.describe(),
        "shown": best.setting.describe(),
        "minutes": round((time.process_time() - began) / 60, 2),
    }


def ladder(seed: int) -> list[dict]:
    """Rows of Heun on Karras' grid, the reference among them, and the seed's tuned rows, each with its difference from the reference."""
    model = load("digits")
    low, high = model.sigma_range

    def heun(nfe: int) -> Setting:
        return Setting(OdeSampler(Heun(), TimeGrid.karras((nfe + 1) // 2, low, high)))

    reference, out = reported(model, heun(REFERENCE_NFE), seed), []
    for nfe in (REFERENCE_NFE, *HEUN_NFE):
        setting, kind = heun(nfe), "reference" if nfe == REFERENCE_NFE else "heun"
        found = reported(model, setting, seed)
        row = {"kind": kind, "nfe": nfe, "seed": seed, "score": found.estimate.to_dict(), "shown": setting.describe()}
        gap = {} if kind == "reference" else {"from_reference": found.minus(reference).to_dict()}
        out.append({**row, **gap})
    for row in (r for r in rows() if r["kind"] == "tuned" and r["seed"] == seed):
        for setting, key in (("setting", "from_reference"), ("start", "untuned_from_reference")):
            found = reported(model, Setting.from_dict(row[setting]), seed)
            row = {**row, key: found.minus(reference).to_dict()}
        out.append(row)
    for row in out:
        print(f"{row['kind']}, {row['nfe']} NFE, seed {seed}: {row.get('from_reference', row['score'])}", flush=True)
    return out


def searched(kind: str, nfe: int, seed: int) -> dict:
    """The outcome of a search at the command line; its report noise is the command's own, the same 2000 seeds for every search."""
    file = RUNS / f"{kind}-{nfe}-{seed}.json"
    words = f"tune digits {COMMANDS[kind]} --nfe {nfe} --report {N_REPORT} --seed {seed}"
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "explorer", *words.split(), "--out", str(file)], check=True)
    found = Tuned.load(file)
    found.on(load("digits"))
    left_out = ("history", "model", "format", "version", "front", "made", "how", "nfe")
    return {
        "kind": kind,
        "nfe": nfe,
        "seed": seed,
        "command": f"explorer {words}",
        **{k: v for k, v in found.to_dict().items() if k not in left_out},
        "trials": len(found.history) - 1,
        "untuned": found.start.describe(),
        "shown": found.setting.describe(),
        "minutes": round((time.perf_counter() - began) / 60, 2),
    }


def rows() -> list[dict]:
    return json.loads(FILE.read_text(encoding="utf-8"))["rows"] if FILE.exists() else []


def needed(every: list[dict]) -> list[dict]:
    """One entry for each way to sample: its costs with the difference from the reference, and the calls it needs; the rule is above."""
    ways = (
        ("Heun on Karras' grid", "heun", "from_reference"),
        ("best untuned solver and grid", "tuned", "untuned_from_reference"),
        ("tuned", "tuned", "from_reference"),
    )
    out = []
    for name, kind, key in ways:
        gaps: dict[int, list[Estimate]] = {}
        for row in sorted(every, key=lambda r: r["nfe"]):
            if row["kind"] == kind and key in row:
                gaps.setdefault(row["nfe"], []).append(Estimate.from_dict(row[key]))
        costs = [mean_of(nfe, found) for nfe, found in gaps.items() if len(found) >= LEAST_SEEDS]
        if not costs:
            continue

        def least(sign: int, costs=costs) -> int | None:
            return next((c["nfe"] for c in costs if c["mean"] <= 2 * sign * c["std_error"]), None)

        out.append({"way": name, "not_worse": least(1), "as_good": least(0), "better": least(-1), "costs": costs})
    return out


def mean_of(nfe: int, found: list[Estimate]) -> dict:
    values, k = [e.value for e in found], len(found)
    error = max(math.sqrt(sum(e.std_error**2 for e in found)) / k, statistics.stdev(values) / math.sqrt(k))
    return {"nfe": nfe, "mean": statistics.fmean(values), "std_error": error, "seeds": k, "n": found[0].n}


def keep(new: list[dict]) -> None:
    def mark(row: dict) -> tuple:
        return row["kind"], row["nfe"], row["seed"]

    marks = {mark(row) for row in new}
    every = sorted([r for r in rows() if mark(r) not in marks] + new, key=mark)
    content = {
        "what": "Fréchet distance of digits at few network evaluations before and after tuning; see measure.py",
        "model": fingerprint(load("digits")),
        "samples": {"search": N_SEARCH, "shape": N_SHAPE, "report": N_REPORT},
        "sizes": {f"below {DEAR} calls": SIZES, f"from {DEAR} calls on": DEAR_SIZES},
        "solvers": SOLVERS,
        "grids": GRIDS,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "needed": needed(every),
        "rows": every,
    }
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomic(FILE, lambda file: file.write_text(text, encoding="utf-8"))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", choices=("tuned", "ladder", "table", *COMMANDS))
    arguments.add_argument("numbers", type=int, nargs="*", metavar="NFE SEED")
    given = arguments.parse_args()
    wanted = {"ladder": 1, "table": 0}.get(given.what, 2)
    if len(given.numbers) != wanted:
        arguments.error(f"{given.what} takes {wanted} numbers")
    torch.set_num_threads(1)
    if given.what == "table":
        keep([])
    elif given.what == "ladder":
        keep(ladder(*given.numbers))
    else:
        keep([tuned(*given.numbers) if given.what == "tuned" else searched(given.what, *given.numbers)])
    for way in json.loads(FILE.read_text(encoding="utf-8"))["needed"]:
        print({k: v for k, v in way.items() if k != "costs"})


if __name__ == "__main__":
    main()
