"""tune-*: trials per minute of each search, what a trial costs over its bare network calls, and the dynamic program."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch

from explorer.bench.clock import Effort, Work, clock_of, rounds, threads, waiter
from explorer.bench.rows import Row
from explorer.models import bundled
from explorer.models.base import Preconditioned
from explorer.papers.autodiffusion import AutoDiffusion
from explorer.sampling import DPMpp2M, OdeSampler, Seeds, TimeGrid
from explorer.trajectory.schedules import best_routes
from explorer.tuning import (
    CMA,
    Budget,
    Coordinate,
    Halving,
    Nodes,
    Optuna,
    Setting,
    Study,
    Trial,
    TruncationError,
    Tuner,
)

NFE, FIRST, SLACK = 5, 1_000_000_000, 1.05
TUNERS: dict[str, Callable[[], Tuner]] = {
    "coordinate": lambda: Coordinate(Nodes()),
    "cma": lambda: CMA(Nodes()),
    "tpe": lambda: Optuna(Nodes()),
    "nsga2": lambda: Optuna(Nodes(), "nsga2"),
    "halving": lambda: Halving(Nodes(), first=10**9),
    "autodiffusion": lambda: AutoDiffusion(),
}


def trials(name: str, effort: Effort, device: torch.device, *, tuner: str) -> Row:
    """Trials of a search for five noise levels of the digits network; the reference is solved before."""
    n = 16 if effort.quick else 128
    row = _row(name, effort, device, tuner, n, None, f"Digits U-Net, {NFE} NFE, {n} samples a trial, one thread.")
    return row.as_rate(60, "trials/min")


def overhead(name: str, effort: Effort, device: torch.device) -> Row:
    """A trial of coordinate descent against the network calls in it, on as many samples as a metric needs."""
    n = 64 if effort.quick else 640
    note = f"Digits U-Net, {NFE} NFE, {n} samples a trial in batches of 256, one thread: noise, solver, objective, proposal."
    return _row(name, effort, device, "coordinate", n, SLACK, note)


def program(name: str, effort: Effort) -> Row:
    """Cheapest grids of up to 18 steps among 65 nodes against Bellman's recursion in plain loops."""
    n, most = (20, 6) if effort.quick else (65, 18)
    cost = np.random.default_rng(0).random((n, n))
    work: dict[str, Work] = {
        "ours": lambda: best_routes(cost, most, 1.15),
        "plain loops": lambda: _bellman(cost.tolist(), most, 1.15),
    }
    times, first = rounds(work, effort)
    ours, theirs = [first["ours"][k].cost for k in range(1, most + 1)], first["plain loops"]
    gap = max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True))
    note = f"{n} nodes, every number of steps up to {most}."
    return Row.of(name, times, unit="ms", limit_is="none", checks={"plain loops": gap}, note=note)


def _row(name: str, effort: Effort, device: torch.device, tuner: str, n: int, target: float | None, note: str) -> Row:
    model = bundled.load("digits").to(device).requires_grad_(False)
    low, high = model.sigma_range
    start = Setting(OdeSampler(DPMpp2M(), TimeGrid.karras(NFE, low, high)))
    goal = TruncationError(model, range(FIRST, FIRST + n))
    goal.prepare()
    with threads(1), torch.inference_mode():
        endless = _endless(lambda seed: Study(model, start, goal, TUNERS[tuner](), Budget(trials=10**6), seed))
        work = {"ours": lambda: next(endless), "limit": _bare(model, start, n, goal.batch)}
        times, _ = rounds(work, effort, clock=clock_of(device), wait=waiter(device))
        endless.close()
    return Row.of(name, times, unit="s", limit_is="its network calls, bare", target=target, note=note)


def _endless(study: Callable[[int], Study]) -> Iterator[Trial]:
    """Trials of one search after another, without their baselines."""
    seed = 0
    while True:
        for trial in study(seed):
            if trial.number:
                yield trial
        seed += 1


def _bare(model: Preconditioned, setting: Setting, n: int, batch: int) -> Work:
    device = next(model.parameters()).device
    seeds = Seeds(range(n))
    x, labels = seeds.normal(tuple(model.shape), device=device).float(), seeds.labels(model.n_classes, device)
    noises = [torch.tensor([math.log(s) / 4], device=device) for s in setting.sampler.grid.times if s > 0]
    parts = list(zip(x.split(batch), labels.split(batch), strict=True))

    def calls() -> None:
        for part, label in parts:
            for noise in noises:
                model.net(part, noise, label)

    return calls


def _bellman(cost: list[list[float]], most: int, coefficient: float) -> list[float]:
    n = len(cost)
    value, out = [row[n - 1] for row in cost], []
    value[n - 1] = math.inf
    for k in range(1, most + 1):
        if k > 1:
            value = [
                min((cost[i][j] + coefficient * value[j] for j in range(i + 1, n)), default=math.inf) for i in range(n)
            ]
        out.append(value[0])
    return out
