"""What a small run must show of continuous-time consistency models (Lu & Song 2024, arXiv 2410.11081).

Two laws have closed forms. x0 ~ N(0, sd^2): x_t is stationary, the velocity is 0 and f(x, t) = x, so F = -tan(t / 2) x / sd.
x0 ~ N(m, s^2): f(x, t) = m + s (x - m cos t) / sqrt(s^2 cos^2 t + sd^2 sin^2 t). The ring of eight Gaussian modes has an exact
ODE. Sliced W2 of finitely many points of one law is not 0: the floor stands beside every value.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from explorer.data import Dataset, Loader, oracle
from explorer.metrics.base import Estimate
from explorer.models.base import Oracle
from explorer.models.bundled import load
from explorer.nets.forward_mode import jvp
from explorer.nets.mlp import MLP
from explorer.papers.scm import SCM, Stabilisers, few, plane
from explorer.process.broadcast import like
from explorer.process.discretisation import SIGMA_RANGE
from explorer.process.oracles import GaussianMixture
from explorer.process.paths import Trig
from explorer.process.times import LogNormal
from explorer.reproduction import Bench, Claim, Verdict
from explorer.reproduction.few_steps import claim_seeds, data_floor, exact_ends, map_error, sliced_w2
from explorer.reproduction.run import train_recipe
from explorer.training import EmaPlan, OptimizerPlan, Plan, seeded, train
from explorer.training.trigflow import LogClock, student_of

RING, SD = "8gaussians", 0.5
TIMES = LogNormal(-1.0, 1.6)
T_MAX = math.atan(SIGMA_RANGE[1] / SD)


class Stationary(nn.Module):
    """F of the exact consistency model of N(0, sd^2 I); `factor` 1."""

    def __init__(self, factor: float = 1.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return -self.factor * like((0.5 * t).tan(), x) * x


def scm_of(net: nn.Module, teacher: Oracle | None = None, **stable) -> SCM:
    return SCM(net, teacher=teacher, stable=Stabilisers(**stable), sigma_data=SD, shape=(2,), times=TIMES)


def states(seed: int, n: int, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    """x ~ N(0, sd^2 I) and times over the whole range, (n, 2) and (n,)."""
    g = torch.Generator().manual_seed(1000 + seed)
    t = torch.linspace(0.01, 1.56, n, dtype=torch.float64)
    return (SD * torch.randn(n, 2, generator=g, dtype=torch.float64)).to(dtype), t.to(dtype)


def no_tangent(bench: Bench, n: int = 4096) -> Verdict:
    teacher = Oracle(GaussianMixture(torch.zeros(1, 2), SD), Trig(SD))
    x, t = states(bench.seed, n)
    _, g = scm_of(Stationary(), teacher).loss(x, t, torch.zeros_like(x))
    rate = g / t.cos()[:, None]
    worst = max(float(g.abs().max()), float(rate.abs().max()))
    with torch.no_grad():
        wrong = scm_of(Stationary(0.5), teacher).loss(x, t, torch.zeros_like(x))[1]
    measured = Estimate(worst, 0.0, n, "largest |g| and |df/dt| of the exact map")
    return Verdict(worst < 1e-5, measured, 1e-5, f"half of F gives |g| up to {float(wrong.abs().max()):.2f}")


def derivative(bench: Bench, n: int = 64) -> Verdict:
    h = 1e-4
    with seeded(bench.seed), torch.no_grad():
        net = MLP(2, 64, 3).double()
        net.out.weight.copy_(torch.randn_like(net.out.weight) / 8)
        x, t = states(bench.seed, n)
        dx, dt = torch.randn_like(x), t.cos() * t.sin()
        moved = jvp(net, (x, t), (dx, dt))[1]
        central = (net(x + h * dx, t + h * dt) - net(x - h * dx, t - h * dt)) / (2 * h)
    relative = float((moved - central).norm() / central.norm())
    method = scm_of(net, weighted=False)
    out = net(x / SD, t)
    loss, raw = method.loss(x, t, dx)
    off = 0.0
    for p, direct in zip(
        net.parameters(), torch.autograd.grad(loss.sum(), list(net.parameters()), retain_graph=True), strict=True
    ):
        g = method.normalised(raw)
        wanted = torch.autograd.grad(out, p, grad_outputs=-2 * g / g[0].numel(), retain_graph=True)[0]
        off = max(off, float((direct - wanted).norm() / wanted.norm().clamp_min(1e-300)))
    measured = Estimate(
        max(relative, off), 0.0, n, "relative error of the derivative, and of the loss gradient -2 g / D"
    )
    return Verdict(measured.value < 1e-4, measured, 1e-4, f"derivative {relative:.1e}, gradient {off:.1e}")


def gaussian(bench: Bench, n: int = 65536) -> Verdict:
    mean, std = 0.3, 0.4
    sd = math.hypot(mean, std)

    def draw(count: int, g: torch.Generator) -> tuple[Tensor, None]:
        return mean + std * torch.randn(count, 1, generator=g), None

    data = Dataset("gaussian", draw(1000, torch.Generator().manual_seed(0))[0], sigma_data=sd, draw=draw)
    with seeded(bench.seed):
        method = SCM(MLP(1, 64, 2), stable=Stabilisers(warmup=300), sigma_data=sd, shape=(1,), times=TIMES)
    optimizer = OptimizerPlan(lr=1e-3, kind="radam", betas=(0.9, 0.99), decay="cosine", final=0.05)
    plan = Plan(1500, 384, optimizer=optimizer, emas=(EmaPlan(half_life=40_000),), seed=bench.seed, tick_steps=1500)
    tick = list(train(method, Loader(data, 384, seed=bench.seed, fresh=True), plan))[-1]
    z = sd * torch.randn(n, 1, generator=torch.Generator().manual_seed(7000 + bench.seed))
    with torch.no_grad():
        t = math.atan(SIGMA_RANGE[1] / sd)
        x = method.export(tick.emas["ema"]).denoise(math.sin(t) * z, t)
    errors = abs(float(x.mean()) / mean - 1), abs(float(x.std()) / std - 1)
    measured = Estimate(max(errors), std / mean / math.sqrt(n), n, "relative error of mean and std of one-step samples")
    return Verdict(
        measured.value < 0.05,
        measured,
        0.05,
        f"mean {float(x.mean()):.3f} of {mean}, std {float(x.std()):.3f} of {std}",
    )


def distilled_map(bench: Bench, n: int = 2048) -> Verdict:
    noise = claim_seeds(bench.seed, n).normal((2,))
    ends, sigma = exact_ends(RING, noise), SIGMA_RANGE[1]
    models = {kind: bench.model(plane(kind)) for kind in ("scd", "sct")}
    with torch.no_grad():
        found = {
            k: map_error(m.denoise(math.sin(T_MAX) * SD * noise, T_MAX), ends, f"RMSE of {k}")
            for k, m in models.items()
        }
        mean = map_error(Oracle(oracle(RING), t_range=SIGMA_RANGE).denoise(sigma * noise, sigma), ends)
    distances = ", ".join(f"{k} {sliced_w2(m, few(SD, 1), RING, seed=bench.seed).value:.3f}" for k, m in models.items())
    text = (
        f"posterior mean {mean.value:.3f}, sCT {found['sct'].value:.3f}; sliced W2 of one jump: {distances}, "
        f"floor {data_floor(RING, seed=bench.seed).value:.3f}"
    )
    return Verdict(found["scd"].value < 0.5 * mean.value, found["scd"], 0.5 * mean.value, text)


def two_jumps(bench: Bench) -> Verdict:
    model = bench.model(plane("sct"))
    one, two = (sliced_w2(model, few(SD, k), RING, seed=bench.seed) for k in (1, 2))
    error = math.hypot(one.std_error, two.std_error) / one.value
    measured = Estimate(two.value / one.value, error, two.n, "sliced W2 of two jumps over that of one, sCT")
    text = f"{two.value:.3f} over {one.value:.3f}; floor {data_floor(RING, seed=bench.seed).value:.3f}"
    return Verdict(measured.value < 1.1, measured, 1.1, text)


@torch.no_grad()
def steepness(net: nn.Module, seed: int, n: int = 64) -> float:
    """Largest over t of the root mean square of sin(t) dF/dt at states of the ring, t up to 80 in sigma."""
    g, worst = torch.Generator().manual_seed(3000 + seed), 0.0
    for t in torch.linspace(0.02, T_MAX, 96).tolist():
        x0 = oracle(RING).sample(n, g)[0].float()
        x = math.cos(t) * x0 + math.sin(t) * SD * torch.randn(x0.shape, generator=g)
        times = torch.full((n,), t)
        moved = jvp(net, (x / SD, times), (torch.zeros_like(x), torch.ones_like(times)))[1]
        worst = max(worst, math.sin(t) * float(moved.square().sum(1).mean().sqrt()))
    return worst


def clocks(bench: Bench) -> Verdict:
    found = {clock: steepness(bench.model(plane("sct", clock=clock)).inner.net, bench.seed) for clock in ("t", "log")}
    teacher = load("toy-8gaussians")
    edm = steepness(LogClock(teacher.net, teacher.precondition.sigma_data, 0.25), bench.seed)
    measured = Estimate(
        found["log"] / found["t"], 0.0, 64 * 96, "largest sin(t) |dF/dt| with the clock ln(sd tan t), over that with t"
    )
    text = f"{found['log']:.2f} over {found['t']:.2f}; a trained EDM denoiser with the clock ln(sd tan t) / 4 has {edm:.2f}"
    return Verdict(measured.value > 5, measured, 5.0, text)


def fast_features(bench: Bench, n: int = 2048) -> Verdict:
    slow, fast = (bench.model(plane("sct", scale=scale)) for scale in (1.0, 25.0))
    ratio = steepness(fast.inner.net, bench.seed) / steepness(slow.inner.net, bench.seed)
    noise = claim_seeds(bench.seed, n).normal((2,))
    ends = exact_ends(RING, noise)
    with torch.no_grad():
        errors = [map_error(m.denoise(math.sin(T_MAX) * SD * noise, T_MAX), ends).value for m in (slow, fast)]
    measured = Estimate(
        ratio, 0.0, n, "largest sin(t) |dF/dt| with features 25 times as fast, over that of the recipe's"
    )
    holds = ratio > 5 and errors[1] > 2 * errors[0]
    return Verdict(holds, measured, 5.0, f"RMSE to the exact map {errors[1]:.3f}, with slow features {errors[0]:.3f}")


def spikes(bench: Bench, steps: int = 600) -> Verdict:
    ratios = {}
    for norm in ("none", "l2"):
        recipe = plane("sct", norm=norm, steps=steps)
        recipe = dataclasses.replace(recipe, plan=dataclasses.replace(recipe.plan, tick_steps=2, emas=()))
        norms = [tick.logs["grad_norm/net"] for tick in train_recipe(recipe, seed=bench.seed) if tick.step > 50]
        ratios[norm] = max(norms) / sorted(norms)[len(norms) // 2]
    measured = Estimate(ratios["none"], 0.0, steps, "largest gradient norm over the median, raw tangents")
    text = f"threshold: with normalised tangents; means of 2 steps, after the first 50 of {steps}"
    return Verdict(ratios["none"] > ratios["l2"], measured, ratios["l2"], text)


def discretisation(bench: Bench, n: int = 512) -> Verdict:
    """The exact teacher, the refitted bundled network as F: g of the discrete loss against g in double precision."""
    teacher, net = Oracle(oracle(RING), Trig(SD)), student_of(load("toy-8gaussians"), TIMES)
    g = torch.Generator().manual_seed(5000 + bench.seed)
    t = torch.linspace(0.1, 1.5, n, dtype=torch.float64)
    x0 = oracle(RING).sample(n, g)[0]
    x = t.cos()[:, None] * x0 + t.sin()[:, None] * SD * torch.randn(x0.shape, generator=g, dtype=torch.float64)
    with torch.no_grad():
        slope = teacher.velocity(x, t)
        exact = scm_of(net.double()).tangent(x, t, slope, None, 10**9)[1]
        net.float()
        errors = {}
        for k in range(1, 8):
            method = scm_of(net, derivative="discrete", step=10.0**-k)
            rough = method.tangent(x.float(), t.float(), slope.float(), None, 10**9)[1].double()
            errors[k] = float((rough - exact).norm() / exact.norm())
    best = min(errors, key=errors.__getitem__)
    order = math.log10(errors[1] / errors[2])
    rise = errors[7] / errors[best]
    shown = ", ".join(f"1e-{k}: {e:.1e}" for k, e in errors.items())
    measured = Estimate(order, 0.0, n, "order of the discrete tangent in t - s, between 0.1 and 0.01")
    return Verdict(0.7 < order < 1.5 and 2 < best < 7 and rise > 10, measured, 1.0, f"relative error by step {shown}")


CLAIMS = (
    Claim("the exact consistency map has no tangent", "Eq. 6, Alg. 1", no_tangent, 0.1),
    Claim("forward mode is the derivative, and the loss gradient is -2 e^w g / D", "Sec. 4, Alg. 1", derivative, 0.1),
    Claim("sCT recovers a Gaussian's mean and standard deviation", "Sec. 4", gaussian, 1.0),
    Claim(
        "one jump of sCD is nearer to the exact map than half of what the posterior mean misses", "Tables 1 and 2",
        distilled_map, 3.0,
    ),
    Claim("a second jump of sCT does no harm", "Tables 1 and 2", two_jumps, 1.5),
    Claim("the clock t tames the derivative in time", "Sec. 4.1, Figure 4", clocks, 3.0),
    Claim("fast noise features make it steep and ruin training", "Sec. 4.1, Figure 4", fast_features, 3.0),
    Claim("normalised tangents avoid spikes of the gradient", "Sec. 4.2, Figure 5", spikes, 1.0),
    Claim("discrete losses approach the continuous one until rounding takes over", "Appendix, Figure 5", discretisation, 0.1),
)  # fmt: skip
