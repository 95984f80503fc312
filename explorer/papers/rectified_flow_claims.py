"""What a small run must show of rectified flow (Liu et al. 2022, arXiv 2209.03003; Tong et al. 2023, arXiv 2302.00482).

A Gaussian N(m, s^2 I) with independent noise has its flow in closed form, q(t) = (1-t)^2 s^2 + t^2:
    v(x, t) = -m + (t - (1-t) s^2) / q (x - (1-t) m),   Phi_{t->r}(x) = (1-r) m + sqrt(q(r)/q(t)) (x - (1-t) m)
    S = d s (2 - pi/2),   V = d s pi/2,   C = |m|^2 + d (1 + s^2),   E|D|^2 = |m|^2 + d (1-s)^2
Eight modes at radius 3 with standard deviation 0.2 have theirs as a softmax over modes. Networks are small MLPs of a few seconds.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from explorer.data import Dataset
from explorer.metrics.base import Estimate
from explorer.models.base import Oracle
from explorer.nets.mlp import MLP
from explorer.papers.rectified_flow import FlowMatching, plane
from explorer.process.couplings import ExactOT
from explorer.process.oracles import GaussianMixture
from explorer.process.paths import Linear
from explorer.reproduction import Bench, Bundled, Claim, Need, Recipe, Trained, Verdict
from explorer.reproduction.needs import Exact, Fresh, Moons, ring
from explorer.reproduction.pairs import PairsOf, stored
from explorer.reproduction.rounds import FLOW_RANGE, even_steps, measured_rounds, quality, straight_run
from explorer.sampling.samplers import sample
from explorer.sampling.seeds import Seeds
from explorer.sampling.solvers import Heun
from explorer.trajectory import geometry
from explorer.trajectory.coupling import budget_of, run_from
from explorer.trajectory.dataset import data_of, tensor

TINY = {"width": 64, "depth": 3}


def white(n: int, d: int, g: torch.Generator) -> Tensor:
    """n normal points in d dimensions moved to have mean 0 and covariance I exactly: quadratic means without sampling error."""
    z = torch.randn(n, d, generator=g, dtype=torch.float64)
    z = z - z.mean(0)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(z.T @ z / n), z.T, upper=False).T


def times(n: int) -> list[float]:
    return [FLOW_RANGE[1] * (1 - i / n) for i in range(n)] + [0.0]


def worst(pairs: dict[str, tuple[float, float]], name: str, n: int) -> tuple[Estimate, str]:
    """Largest relative deviation of (measured, exact), and all of them in words."""
    off = {k: abs(a / b - 1) for k, (a, b) in pairs.items()}
    text = ", ".join(f"{k} {a:.4g} (exact {b:.4g})" for k, (a, b) in pairs.items())
    return Estimate(max(off.values()), 0.0, n, name), text


# The Gaussian


def gaussian_numbers(s: float, m: Tensor) -> dict[str, float]:
    d, m2 = len(m), float(m.square().sum())
    return {
        "cost": m2 + d * (1 + s * s),
        "chord": m2 + d * (1 - s) ** 2,
        "straightness": d * s * (2 - math.pi / 2),
        "conflict": d * s * math.pi / 2,
    }


def gaussian_exact(bench: Bench, n: int = 1000) -> Verdict:
    found = {}
    for s in (0.3, 0.8, 2.0):
        m = torch.tensor([1.0, -0.5, 0.25], dtype=torch.float64)
        both = white(n, 6, bench.generator())
        noise, data = both[:, :3], m + s * both[:, 3:]
        model = Oracle(GaussianMixture(m[None], s), Linear(), t_range=FLOW_RANGE)
        parts = budget_of(run_from(model, noise, times=times(400)), model, noise, data, n_times=200)
        exact = gaussian_numbers(s, m)
        found |= {f"{k} at s = {s}": (float(parts[k].mean()), exact[k]) for k in exact}
    measured, text = worst(found, "worst relative deviation of C, |D|^2, S, V", n)
    return Verdict(measured.value < 0.01, measured, 0.01, text)


def small(name: str, exact: Exact, k: int = 1) -> Recipe:
    """k-rectified flow of an exact mixture by a small MLP, 10 to 20 seconds."""
    like, needs = plane("8gaussians"), {}
    if k > 1:
        flow: Need = Trained(small(name, exact, k - 1))
        needs = {"flow": flow, "pairs": PairsOf(flow, even_steps(100, Heun()), 20_000)}

    def method(data: Dataset, flow=None, pairs=None) -> FlowMatching:
        net = MLP(2, **TINY)
        if flow is not None:
            net.load_state_dict(flow.net.state_dict())
        return FlowMatching(net, shape=(2,), time_scale=4.0, name=f"{name}-{k}rf")

    return dataclasses.replace(
        like,
        name=f"{name}-{k}rf",
        method=method,
        plan=dataclasses.replace(like.plan, n_steps=1500 if k == 1 else 800),
        needs=needs,
        settings={"exact": exact.describe(), "round": k} | TINY,
        stream=stored if k > 1 else lambda data, plan: exact.stream(plan),
    )


GAUSSIAN = Exact(((1.0, -0.5),), 0.6)


def trained_parts(bench: Bench, k: int, n: int = 2000) -> dict[str, float]:
    """The budget of flow k of the Gaussian, on the coupling it was trained on."""
    m, s = torch.tensor(GAUSSIAN.means[0], dtype=torch.float64), GAUSSIAN.std
    both = white(n, 4, bench.generator(1))
    noise, data = both[:, :2], m + s * both[:, 2:]
    for j in range(1, k + 1):
        model = bench.model(small("gaussian", GAUSSIAN, j))
        run = straight_run(model, noise, 200)
        if j < k:
            data = data_of(run)
    return {name: float(v.mean()) for name, v in budget_of(run, model, noise, data).items()}


def gaussian_trained(bench: Bench) -> Verdict:
    parts = trained_parts(bench, 1)
    exact = gaussian_numbers(GAUSSIAN.std, torch.tensor(GAUSSIAN.means[0]))
    found = {k: (parts[k], exact[k]) for k in ("straightness", "conflict")}
    measured, text = worst(found, "worst relative deviation of S, V of a trained flow", 2000)
    return Verdict(measured.value < 0.1, measured, 0.1, text)


def gaussian_reflowed(bench: Bench) -> Verdict:
    first, second = trained_parts(bench, 1), trained_parts(bench, 2)
    total = [p["straightness"] + p["conflict"] for p in (first, second)]
    measured = Estimate(total[1] / total[0], 0.0, 2000, "S + V after one reflow, over that before")
    return Verdict(measured.value < 0.01, measured, 0.01, f"{total[1]:.2g} after {total[0]:.3g}; 0 for an exact flow")


def rays(bench: Bench, n: int = 64) -> Verdict:
    found, bend = {}, 0.0
    for s in (0.4, 2.0):
        model = Oracle(GaussianMixture(torch.zeros(1, 2), s), Linear(), t_range=FLOW_RANGE)
        grid = times(2000)
        x = tensor(run_from(model, white(n, 2, bench.generator()), times=grid), "x")
        t = torch.tensor(grid, dtype=torch.float64)
        bend = max(bend, float(geometry.menger_curvature(x).value.abs().max()))
        arc = (1 + s - 2 * s / math.sqrt(1 + s * s)) / abs(1 - s)
        turning = geometry.turning_angle(x).value.sum(1)
        found[f"turning at s = {s}"] = float(turning.mean()), math.pi
        found[f"arc/chord at s = {s}"] = float(geometry.arc_chord(x).value.mean()), arc
        found[f"NFSS at s = {s}"] = float(geometry.nfss(x, t).value.mean()), 4 * min(s * s, 1) / (1 + s * s)
    measured, text = worst(found, "worst relative deviation of turning, arc/chord, NFSS on rays", n)
    # rounding of points of size 1 at steps of 1/2000 bends a line by about 1e-16 * 2000^2
    return Verdict(measured.value < 0.01 and bend < 1e-6, measured, 0.01, f"largest curvature {bend:.1g}; {text}")


def circle(bench: Bench, n: int = 100) -> Verdict:
    radius, w = 1.7, 2.2
    t = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    x = radius * torch.stack([(w * t).cos(), (w * t).sin()], dim=1)[None]
    chord2 = 4 * radius**2 * math.sin(w / 2) ** 2
    s_n = 4 * n**2 * radius**2 * math.sin(w / (2 * n)) ** 2 - chord2
    found = {
        "S_N": (float(geometry.straightness(x, t)), s_n),
        "curvature": (float(geometry.menger_curvature(x).value.max()), 1 / radius),
        "step cosine": (float(geometry.step_cosine(x).value.min()), math.cos(w / n)),
        "arc/chord": (float(geometry.arc_chord(x).value), 2 * n * radius * math.sin(w / (2 * n)) / math.sqrt(chord2)),
    }
    measured, text = worst(found, "worst relative deviation on a circle", 1)
    return Verdict(measured.value < 1e-10, measured, 1e-10, text)


# Mixtures


def mixture_budget(bench: Bench, n: int = 20_000) -> Verdict:
    exact, g = ring(), bench.generator()
    data, noise = exact.mixture.sample(n, g)[0], torch.randn(n, 2, generator=g, dtype=torch.float64)
    model = exact.make(bench)
    parts = budget_of(run_from(model, noise, times=times(200)), model, noise, data)
    cost, left = float(parts["cost"].mean()), parts["residual"]
    measured = Estimate(abs(float(left.mean())) / cost, float(left.std()) / math.sqrt(n) / cost, n, "|residual| / C")
    shown = ", ".join(f"{k} {float(v.mean()):.3g}" for k, v in parts.items())
    return Verdict(measured.value < 0.02, measured, 0.02, shown)


def monotone(bench: Bench, n: int = 1000) -> Verdict:
    """KS distance between F(x) and Phi(eps), and crossings of the lines of the next coupling."""
    mixture = GaussianMixture(torch.tensor([[-2.0], [0.5], [1.5]]), torch.tensor([0.3, 0.1, 0.5]), weights=[1, 2, 3])
    model = Oracle(mixture, Linear(), t_range=FLOW_RANGE)
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    noise = torch.special.ndtri(u)[:, None]
    ends = data_of(run_from(model, noise, times=times(800)))
    z = (ends - mixture.means[:, 0]) / mixture.variances.sqrt()
    gap = ((torch.special.ndtr(z) * mixture.log_weights.exp()).sum(1) - u).abs()
    crossed = sum(int((torch.lerp(ends, noise, t).diff(dim=0) <= 0).sum()) for t in (0.01, 0.25, 0.5, 0.75, 0.99))
    measured = Estimate(float(gap.max()), 0.0, n, "largest |F(x) - Phi(eps)|")
    text = f"{crossed} crossings among neighbours of the next coupling"
    return Verdict(measured.value < 5e-3 and crossed == 0, measured, 5e-3, text)


# Minibatch optimal transport


def matched_costs(bench: Bench) -> Verdict:
    """Mean cost of the optimal matching by batch size over that of random pairs; violations of what must always hold."""
    exact, g, ot = ring(), bench.generator(), ExactOT()
    sizes, mean, violations = (16, 64, 256, 1024), [], 0
    for size in sizes:
        costs = []
        for _ in range(4096 // size):
            data, noise = exact.mixture.sample(size, g)[0], torch.randn(size, 2, generator=g, dtype=torch.float64)
            costs.append(float(ot.pair(noise, data).cost.mean()))
            violations += costs[-1] > float((noise - data).square().sum(1).mean())
            line = ot.pair(noise[:, :1], data[:, :1]).cost.mean()
            best = (noise[:, 0].sort().values - data[:, 0].sort().values).square().mean()
            violations += abs(float(line - best)) > 1e-9
        mean.append(sum(costs) / len(costs))
    violations += sum(b >= a for a, b in zip(mean, mean[1:], strict=False))
    measured = Estimate(float(violations), 0.0, 4096, "violations")
    shown = ", ".join(f"{v:.3g} at {k}" for k, v in zip(sizes, mean, strict=True))
    return Verdict(violations == 0, measured, 0.0, f"mean cost {shown}")


SOURCE = ring(8, 5.0, math.sqrt(0.1))


def transfer(coupling: str) -> Recipe:
    """Eight Gaussians carried to two moons; batch 256."""
    like = plane("8gaussians")

    def method(data: Dataset) -> FlowMatching:
        ot = ExactOT() if coupling == "ot" else None
        return FlowMatching(MLP(2, **TINY), shape=(2,), coupling=ot, time_scale=4.0, name=f"moons-{coupling}")

    def stream(data: Dataset, plan) -> Fresh:
        return Fresh(Moons(), plan.batch_size, seed=plan.seed, source=SOURCE.mixture)

    plan = dataclasses.replace(like.plan, n_steps=1500, batch_size=256)
    settings = {"coupling": coupling} | TINY
    return dataclasses.replace(
        like, name=f"moons-{coupling}", method=method, plan=plan, settings=settings, stream=stream
    )


def ot_straighter(bench: Bench, n: int = 2048) -> Verdict:
    noise = SOURCE.mixture.sample(n, bench.generator(2))[0]
    s = {}
    for coupling in ("independent", "ot"):
        run = straight_run(bench.model(transfer(coupling)), noise, 100)
        s[coupling] = geometry.straightness(tensor(run, "x"), torch.as_tensor(run.t.values))
    a, b = (float(v.mean()) for v in s.values())
    error = math.hypot(*(float(v.std() / v.mean()) / math.sqrt(n) for v in s.values())) * b / a
    measured = Estimate(b / a, error, n, "S of OT-CFM over S of independent pairs")
    return Verdict(measured.value + 2 * error < 1, measured, 1.0, f"S {b:.3g} and {a:.3g}, batches of 256")


# Rounds


def rounds(bench: Bench):
    exact = ring()
    return measured_rounds(bench, [small("ring", exact, k) for k in (1, 2, 3)], data=exact.dataset())


def cost_falls(bench: Bench) -> Verdict:
    """Largest rise of E|eps - x0|^2 from a coupling to the next, in standard errors of the pair."""
    ds = rounds(bench)
    cost, error = [*ds.cost.values, float(ds.chord[-1])], [*ds.cost_se.values, float(ds.chord_se[-1])]
    rise = max((b - a) / math.hypot(ea, eb) for a, b, ea, eb in zip(cost, cost[1:], error, error[1:], strict=False))
    measured = Estimate(rise, 1.0, ds.attrs["n"], "largest rise of the cost between rounds, standard errors")
    return Verdict(rise < 2, measured, 2.0, "cost " + ", ".join(f"{c:.3g}" for c in cost))


def straightens(bench: Bench) -> Verdict:
    ds = rounds(bench)
    s = ds.straightness.values
    measured = Estimate(s[1] / s[0], float(ds.straightness_se[1]) / s[0], ds.attrs["n"], "S of 2-RF over S of 1-RF")
    return Verdict(s[1] < 0.05 * s[0], measured, 0.05, "S " + ", ".join(f"{v:.3g}" for v in s))


def budget_bound(bench: Bench) -> Verdict:
    """Sum of S + V over rounds against the first cost."""
    ds = rounds(bench)
    share = float((ds.straightness + ds.conflict).sum() / ds.cost[0])
    measured = Estimate(share, 0.0, ds.attrs["n"], "sum of S + V over 3 rounds, over the first cost")
    shown = ", ".join(f"{v:.3g}" for v in (ds.straightness + ds.conflict).values)
    return Verdict(share < 1, measured, 1.0, f"S + V {shown}; first cost {float(ds.cost[0]):.3g}")


def one_step(bench: Bench) -> Verdict:
    ds = rounds(bench)
    w = ds.w2_one_step.values
    measured = Estimate(w[1] / w[0], 0.0, ds.attrs["n"], "W2^2 to data in one Euler step, 2-RF over 1-RF")
    shown = ", ".join(f"{v:.3g}" for v in w)
    return Verdict(w[1] < 0.1 * w[0], measured, 0.1, f"W2^2 {shown}; floor {float(ds.w2_floor[0]):.3g}")


# Digits


def digits_one_step(bench: Bench, n: int = 2000) -> Verdict:
    """Bundled students, trained once; other noise at each seed."""
    distance = quality("digits")
    seeds = Seeds(range(3_000_000 + n * bench.seed, 3_000_000 + n * (bench.seed + 1)))
    fd = {}
    for k in (1, 2):
        model = bench.need(Bundled(f"digits-{k}rf"))
        for nfe in (1, 2, 4):
            fd[k, nfe] = distance(sample(model, even_steps(nfe), seeds.fresh()))
    a, b = fd[1, 1], fd[2, 1]
    ratio = b.value / a.value
    error = ratio * math.hypot(a.std_error / a.value, b.std_error / b.value)
    shown = "; ".join(f"{k}-RF " + ", ".join(f"{fd[k, n].value:.3g}" for n in (1, 2, 4)) for k in (1, 2))
    measured = Estimate(ratio, error, n, "FD[digits-cnn] at 1 NFE, 2-RF over 1-RF")
    return Verdict(ratio + 2 * error < 0.5, measured, 0.5, f"at 1, 2, 4 NFE: {shown}")


THEORY, OT = "Sec. 3.2", "arXiv 2302.00482"
CLAIMS = (
    Claim("a Gaussian's S, V and costs are the closed forms (1 %)", f"{THEORY}, derived", gaussian_exact, 0.1),
    Claim(
        "a trained flow of a Gaussian has the S and V of the exact one (10 %)",
        f"{THEORY}, derived",
        gaussian_trained,
        0.5,
    ),
    Claim("after one reflow a Gaussian's flow is straight and nothing crosses", "Theorem 3.6", gaussian_reflowed, 1.0),
    Claim("on rays curvature is 0 while turning, arc/chord and NFSS have their closed forms", "derived", rays, 0.1),
    Claim("straightness and curvature of a circle are the closed forms", "derived", circle, 0.01),
    Claim("an exact 1-RF obeys C = |D|^2 + S + V (2 % of C)", "Theorem 3.5, 3.7", mixture_budget, 0.3),
    Claim("in one dimension the flow is the monotone map and the next one is straight", "Theorem 3.5", monotone, 0.1),
    Claim(
        "a batch's matching costs no more than chance, less in larger batches, and sorts in 1-D", OT, matched_costs, 0.2
    ),
    Claim("OT-CFM is straighter than independent pairs, 8 Gaussians to moons", f"{OT}, Fig. 1", ot_straighter, 1.0),
    Claim("reflow never raises the transport cost", "Theorem 3.5", cost_falls, 2.0),
    Claim("one reflow leaves less than 5 % of S", "Theorem 3.7, Fig. 2", straightens, 0.1),
    Claim("S + V summed over rounds stays below the first cost", "Theorem 3.7", budget_bound, 0.1),
    Claim(
        "one Euler step of the 2-RF comes ten times nearer to the data than one of the 1-RF", "Fig. 2", one_step, 0.1
    ),
    Claim("2-RF halves the FD of one step on digits", "Table 1 (378 to 12.21)", digits_one_step, 0.5, scale="digits"),
)
