"""The list of benchmarks, and running some of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import partial

import torch

from explorer.bench import data, engine, fid, live, networks, overhead, training, tuning
from explorer.bench.clock import Effort
from explorer.bench.rows import Row
from explorer.errors import BadValue, UnknownName
from explorer.sampling.solvers import SOLVERS

Bench = Callable[[str, Effort], Row | None]
"""bench(name, effort): the row, or None where the machine lacks what it needs (a browser)."""


def benches() -> dict[str, Bench]:
    """Every benchmark that this machine could run, in the order of a report."""
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    on_device = {
        "solver-overhead-euler": overhead.euler,
        "solver-overhead-heun": overhead.heun,
        "solver-overhead-rk4": overhead.rk4,
        "solver-overhead-euler-edm": overhead.euler_edm,
        "solver-overhead-heun-edm": overhead.heun_edm,
        "solver-overhead-dpmpp-2m": overhead.dpmpp_2m,
        "solver-overhead-recording": overhead.recording,
        "solver-overhead-euler-float64": overhead.euler_float64,
        "solver-overhead-dpmpp-2m-float64": overhead.dpmpp_2m_float64,
        **{
            f"solver-overhead-{name}": partial(overhead.any_solver, solver=name)
            for name in SOLVERS
            if name not in OWN_ROW
        },
        **{f"solver-unet-{name}": partial(overhead.unet, solver=name) for name in SOLVERS},
        "adaptive-dopri5": engine.dopri5,
        "trajectory-recording": engine.recording,
        "trajectory-running": engine.running,
        "live-first-number": live.first_number,
        "live-n2000": live.n2000,
        "train-digits": training.digits,
        **{f"train-digits-{slug}": partial(training.digits, slug=slug) for slug in TRAINED},
        "jvp-digits": networks.jvp_digits,
        "unet-train-cifar10": partial(networks.unet, train=True),
        "unet-train-cifar10-bf16": partial(networks.unet, train=True, low=True),
        "unet-sample-cifar10": partial(networks.unet, train=False),
        "unet-sample-cifar10-bf16": partial(networks.unet, train=False, low=True),
        "train-loop": training.loop,
        "train-loop-everything": partial(training.loop, everything=True),
        **{f"tune-trials-{tuner}": partial(tuning.trials, tuner=tuner) for tuner in tuning.TUNERS},
        "tune-overhead": tuning.overhead,
    }
    out: dict[str, Bench] = {name: partial(bench, device=cpu) for name, bench in on_device.items()}
    out |= {
        "data-loader": data.loader,
        "data-loader-augmented": partial(data.loader, augment=True),
        "data-fractals": data.fractals,
        "coupling-exact": engine.exact_ot,
        "tune-program": tuning.program,
        "frechet-d64": partial(fid.full_rank, dim=64),
        "frechet-d768": partial(fid.full_rank, dim=768),
        "frechet-d2048": partial(fid.full_rank, dim=2048),
        "frechet-accumulate-d2048": partial(fid.accumulation, dim=2048),
        "frechet-rank-deficient": partial(fid.rank_deficient, dim=2048, n=256),
        "live-browser": live.browser,
        "live-browser-n2000": partial(live.browser, to_the_end=True),
    }
    if torch.cuda.is_available():
        out |= {f"{name}-cuda": partial(bench, device=cuda) for name, bench in on_device.items()}
    return out


TRAINED = ("rectified_flow", "rfpp", "consistency_models", "ict", "scm", "dmd2")
"""Papers, beside EDM, whose digits recipe is timed."""

OWN_ROW = ("euler", "heun", "rk4", "dpmpp-2m")
"""Solvers that are timed in settings of their own."""

FAMILIES = (
    "solver-overhead",
    "solver-unet",
    "adaptive",
    "trajectory",
    "coupling",
    "frechet",
    "live",
    "train",
    "jvp",
    "tune",
    "unet",
    "data",
)


def families() -> tuple[str, ...]:
    """First parts of the names, each standing for all of its rows."""
    return FAMILIES


def names() -> tuple[str, ...]:
    """Names of all rows that this machine can measure."""
    return tuple(sorted(benches(), key=lambda name: next(i for i, f in enumerate(FAMILIES) if name.startswith(f))))


def run(
    chosen: Iterable[str] = (),
    show: Callable[[float, str], None] | None = None,
    *,
    runs: int = 7,
    quick: bool = False,
    found: Callable[[list[Row]], None] | None = None,
) -> list[Row]:
    """Measure the named rows, or all. A row that fails is left out with a warning that names it; the others are measured.

    Args:
        chosen: names of rows, or of families ("frechet").
        show: told the fraction of everything done, and what is being timed.
        runs: rounds of which the median is taken.
        quick: short turns and smaller problems, for development.
        found: called with all rows so far, after each.
    Raises:
        UnknownName: neither a row nor a family.
    """
    if runs < 1:
        raise BadValue(f"runs = {runs}: at least one is needed.")
    todo, rows = _resolve(chosen), []
    for i, (name, bench) in enumerate(todo.items()):

        def progress(fraction: float, text: str, i=i, name=name) -> None:
            if show is not None:
                show((i + fraction) / len(todo), f"{name}: {text}")

        try:
            row = bench(name, Effort(runs, quick, progress))
        except Exception as problem:  # half an hour of other rows must not go with it
            warnings.warn(f"{name} could not be measured: {type(problem).__name__}: {problem}", stacklevel=2)
            continue
        if row is not None:
            rows.append(row)
            if found is not None:
                found(rows)
    return rows


def _resolve(chosen: Iterable[str]) -> dict[str, Bench]:
    every, wanted = benches(), []
    for given in tuple(chosen) or FAMILIES:
        found = (
            [given] if given in every else [name for name in names() if given in FAMILIES and name.startswith(given)]
        )
        if not found:
            raise UnknownName("benchmark", given, (*FAMILIES, *names()))
        wanted += found
    return {name: every[name] for name in dict.fromkeys(wanted)}
