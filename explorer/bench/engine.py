"""trajectory-*, adaptive-*, coupling-*: what recording, measuring, adapting and pairing cost."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from explorer.bench.clock import Effort, clock_of, installed, rounds, threads, waiter
from explorer.bench.overhead import SIGMA, Setting
from explorer.bench.rows import Row
from explorer.models.bundled import load
from explorer.process.couplings import ExactOT
from explorer.process.paths import Linear
from explorer.sampling import AdaptiveSampler, Euler, Heun, OdeSampler, Seeds, TimeGrid
from explorer.trajectory import measures
from explorer.trajectory.record import record
from explorer.trajectory.running import RunningGeometry

DIAGNOSTICS: tuple[Callable, ...] = (
    measures.straightness,
    measures.nfss,
    measures.arc_chord,
    measures.curvature,
    measures.turning_angle,
    measures.step_length,
    measures.coupling_cost,
)


def recording(name: str, effort: Effort, device: torch.device) -> Row:
    """10 000 points of the plane, 100 steps, all states and slopes kept, and every diagnostic that asks no model again."""
    n, n_steps = (1000, 30) if effort.quick else (10_000, 100)
    with torch.inference_mode(), threads(1):
        model = load("toy-8gaussians").to(device)
        sampler = OdeSampler(Euler(), TimeGrid.uniform_t(n_steps, *SIGMA, Linear()), Linear())
        seeds = Seeds(range(n))
        noise = seeds.normal((2,), device=device)

        def solve() -> None:
            for part in noise.split(2500):
                sampler.sample(model, part)

        def ours() -> None:
            ds = record(model, sampler, seeds.fresh(), None, batch=2500)
            for measure in DIAGNOSTICS:
                measure(ds)

        def draw() -> Tensor:
            return seeds.fresh().normal((2,), device=device)

        times, _ = rounds(
            {"ours": ours, "limit": solve, "draw": draw}, effort, clock=clock_of(device), wait=waiter(device)
        )
        drawing = times.pop("draw")  # `record` draws the noise, the bare solve was given it
        times["limit"] = [
            a + b for a, b in zip(times["limit"], drawing, strict=False)
        ]  # a slow machine takes fewer rounds of one
    called = ", ".join(measure.__name__ for measure in DIAGNOSTICS)
    note = f"{n} points x {n_steps} Euler steps of toy-8gaussians, x and slope in float64, then {called}; one thread."
    return Row.of(name, times, unit="s", limit_is="drawing the noise and the solve alone", target=2.0, note=note)


def running(name: str, effort: Effort, device: torch.device) -> Row:
    """Geometry of image trajectories while sampling, no states stored."""
    n, n_steps = 64, 9
    with torch.inference_mode(), threads(1):
        model = load("digits").to(device)
        sampler = OdeSampler(Heun(), TimeGrid.karras(n_steps, *SIGMA))
        seeds = Seeds(range(n))
        noise, cond = seeds.normal(model.shape, device=device), seeds.labels(10, device)

        def ours() -> None:
            watch = RunningGeometry(sampler.path_on(model), n_steps=n_steps)
            sampler.sample(model, noise, cond, observe=watch)
            watch.result()

        work = {"ours": ours, "limit": lambda: sampler.sample(model, noise, cond)}
        times, _ = rounds(work, effort, clock=clock_of(device), wait=waiter(device))
    note = f"Heun, {n_steps} steps, {n} digits, RunningGeometry as observer; one thread."
    return Row.of(name, times, unit="ms", limit_is="the same run unwatched", target=1.1, note=note)


def dopri5(name: str, effort: Effort, device: torch.device) -> Row:
    """Adaptive Dormand-Prince at equal tolerance, one step size for each sample or for the batch."""
    with torch.inference_mode(), threads(1):
        s = Setting(device)
        grid = TimeGrid.explicit((SIGMA[1], SIGMA[0]))
        samplers = {control: AdaptiveSampler(grid, "dopri5", 1e-5, 1e-5, control) for control in ("sample", "batch")}
        t = [Linear().time_at(sigma) for sigma in (SIGMA[1], SIGMA[0])]

        def peer():
            from torchdiffeq import odeint

            times = torch.tensor(t, device=device)
            start = s.noise32 * times[0]
            return lambda: odeint(lambda t, x: s.net(x, t), start, times, rtol=1e-5, atol=1e-5, method="dopri5")[-1]

        found, absent = installed({"torchdiffeq dopri5": peer})
        work = {"ours": lambda: samplers["sample"].sample(s.flow, s.noise32), **found}
        if found:
            work["ours, one step size for the batch"] = lambda: samplers["batch"].sample(s.flow, s.noise32)
        times, ends = rounds(work, effort, best_of=3, clock=clock_of(device), wait=waiter(device))
    checks = {
        key: float((end - ends["ours"]).norm() / ends["ours"].norm()) for key, end in ends.items() if key != "ours"
    }
    note = "dopri5, rtol = atol = 1e-5, MLP 3-64-64-2, batch 256, state in float32, sigma from 80 to 0.002; one thread."
    return Row.of(name, times, unit="ms", limit_is="", absent=absent, checks=checks, note=note)


def exact_ot(name: str, effort: Effort) -> Row:
    """Exact optimal pairing of two point sets, cost matrix included."""
    n = 300 if effort.quick else 2000
    g = torch.Generator().manual_seed(0)
    noise, data = (
        torch.randn(n, 2, generator=g, dtype=torch.float64),
        torch.randn(n, 2, generator=g, dtype=torch.float64) + 1,
    )

    def pot():
        import ot

        weights = torch.full((n,), 1 / n, dtype=torch.float64)
        return lambda: ot.emd(weights, weights, ot.dist(noise, data))

    coupling = ExactOT()
    found, absent = installed({"POT emd": pot})
    times, _ = rounds({"ours": lambda: coupling.pair(noise, data), **found}, effort)
    note = f"n = {n} points of the plane, squared Euclidean cost; ours also pairs the points."
    return Row.of(name, times, unit="ms", limit_is="", absent=absent, note=note)
