"""What a small run must show of 2-rectified flow++ (Lee, Lin & Fanti 2024, arXiv 2405.20320).

Pairs come from the exact 1-RF of eight Gaussian modes (radius 3, standard deviation 0.2), so that the teacher is perfect and all errors
are the student's: an MLP of 64 features, 2500 steps. In the plane lines do cross near the boundaries between modes, unlike in images.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from explorer.metrics.base import Estimate
from explorer.models.base import Denoiser, Oracle, as_denoiser
from explorer.nets.mlp import MLP
from explorer.papers.rfpp import FLOW_RANGE, pairwise
from explorer.process.oracles import GaussianMixture
from explorer.process.paths import EDM, Linear
from explorer.process.times import UShaped
from explorer.reproduction import Bench, Bundled, Claim, Recipe, Verdict
from explorer.reproduction.needs import Exact, ring
from explorer.reproduction.pairs import PairsOf
from explorer.reproduction.rounds import even_steps, quality, straight_run
from explorer.sampling.grids import TimeGrid
from explorer.sampling.samplers import OdeSampler, sample
from explorer.sampling.seeds import Seeds
from explorer.sampling.solve import Solver
from explorer.sampling.solvers import Chord, Euler, Heun
from explorer.training import EmaPlan, OptimizerPlan, Plan
from explorer.trajectory import geometry
from explorer.trajectory.coupling import intersection
from explorer.trajectory.dataset import data_of, tensor

RING = ring()
FINE = even_steps(100, Heun())
N = 4096
LEVELS = (0.02, 0.25, 0.5, 0.75, 0.98)


def student(a: float = 4.0) -> Recipe:
    """2-RF of the exact 1-RF of the ring with L2 loss; a = 0 is uniform times."""
    return straightened(f"ring-2rf-a{a:g}", RING, 2500, a=a)


def straightened(name: str, exact: Exact, steps: int, *, a: float = 4.0, width=64, depth=3, lr=2e-3) -> Recipe:
    optimizer = OptimizerPlan(lr=lr, warmup_images=25_000, decay="cosine")
    return pairwise(
        name,
        "8gaussians",
        lambda data: MLP(2, width=width, depth=depth),
        Plan(steps, 512, optimizer=optimizer, emas=(EmaPlan(half_life=30_000),), tick_steps=500),
        teacher=None,
        pairs=PairsOf(exact, FINE, 20_000),
        a=a,
        loss="l2",
        sigma_data=exact.dataset().sigma_data,
    )


def seeds_of(bench: Bench, n: int = N) -> Seeds:
    return Seeds(range((1 << 52) + bench.seed * n, (1 << 52) + (bench.seed + 1) * n))


def held_out(bench: Bench) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, its end under the exact 1-RF, and independent data."""
    seeds = seeds_of(bench)
    ends = sample(bench.need(RING), FINE, seeds, batch=N)
    data = RING.mixture.sample(N, torch.Generator().manual_seed(bench.seed))[0]
    return seeds.fresh().normal((2,)), ends, data


def straightness(model: Denoiser, noise: Tensor) -> Tensor:
    run = straight_run(model, noise, 100)
    return geometry.straightness(tensor(run, "x"), torch.as_tensor(run.t.values))


def profile(model: Denoiser, noise: Tensor, data: Tensor) -> list[float]:
    """Loss |v - (z - x)|^2 on held-out pairs at `LEVELS`."""
    with torch.no_grad():
        gaps = [model.velocity(torch.lerp(data, noise, t), t) - (noise - data) for t in LEVELS]
    return [float(gap.square().sum(1).mean()) for gap in gaps]


def shown(values) -> str:
    return ", ".join(f"{v:.3g}" for v in values)


def ratio(a: Tensor, b: Tensor, name: str) -> Estimate:
    """Mean of a over mean of b, per-sample values of independent errors; to first order."""
    value = float(a.mean() / b.mean())
    error = math.hypot(*(float(v.std() / v.mean()) / math.sqrt(len(v)) for v in (a, b)))
    return Estimate(value, abs(value) * error, len(a), name)


# Straightening


def straightens(bench: Bench) -> Verdict:
    noise, _, _ = held_out(bench)
    before, after = straightness(bench.need(RING), noise), straightness(bench.model(student()), noise)
    measured = ratio(after, before, "S of 2-RF over S of the exact 1-RF")
    text = f"S {float(before.mean()):.3g} to {float(after.mean()):.3g}"
    return Verdict(measured.value < 0.05, measured, 0.05, text)


def cheaper(bench: Bench) -> Verdict:
    noise, ends, data = held_out(bench)
    measured = ratio(
        *(geometry.coupling_cost(noise, x) for x in (ends, data)), "cost of the pairs over independent ones"
    )
    return Verdict(measured.value < 0.5, measured, 0.5, "8 modes, radius 3")


# Loss against time


def interior_peak(bench: Bench) -> Verdict:
    """V(t) of the exact 1-RF: its larger end over its largest value."""
    noise, _, data = held_out(bench)
    v = intersection(bench.need(RING), noise, data).conflict.values
    measured = Estimate(max(v[0], v[-1]) / v.max(), 0.0, N, "V(t) at the worse end over its peak, 1-RF")
    at = (v.argmax() + 0.5) / len(v)
    text = f"ends {v[0]:.3g}, {v[-1]:.3g}; peak {v.max():.3g} at t = {at:.2f}"
    return Verdict(measured.value < 0.9 and 0.1 < at < 0.9, measured, 0.9, text)


def ends_are_hard(bench: Bench) -> Verdict:
    noise, ends, _ = held_out(bench)
    loss = profile(bench.model(student(0.0)), noise, ends)
    measured = Estimate(
        min(loss[0], loss[-1]) / loss[2], 0.0, N, "loss of uniform 2-RF at the easier end over the middle"
    )
    return Verdict(measured.value > 3, measured, 3.0, f"{shown(loss)} at t = {shown(LEVELS)}")


def noise_end(bench: Bench) -> Verdict:
    noise, ends, _ = held_out(bench)
    uniform, shaped = (profile(bench.model(student(a)), noise, ends) for a in (0.0, 4.0))
    measured = Estimate(shaped[-1] / uniform[-1], 0.0, N, "loss at t = 0.98, U-shaped times over uniform")
    return Verdict(measured.value < 1, measured, 1.0, f"uniform {shown(uniform)}; U {shown(shaped)}")


def one_step(bench: Bench) -> Verdict:
    noise, ends, _ = held_out(bench)
    once = (data_of(straight_run(bench.model(student(a)), noise, 1)) for a in (4.0, 0.0))
    shaped, uniform = ((x - ends).square().sum(1) for x in once)
    measured = ratio(shaped, uniform, "one-step coupling error, U-shaped times over uniform")
    limit = 1 + 2 * measured.std_error
    return Verdict(
        measured.value <= limit, measured, limit, f"MSE {float(shaped.mean()):.3g} and {float(uniform.mean()):.3g}"
    )


def times_have_the_density(bench: Bench, n: int = 100_000) -> Verdict:
    from scipy import stats

    u = UShaped(4.0).sample(n, generator=torch.Generator().manual_seed(bench.seed), dtype=torch.float64).numpy()
    # The primitive of (e^(at) + e^(a(1-t))) a / (2 (e^a - 1)), written out apart from the sampler.
    p = stats.kstest(
        u, lambda t: (math.e ** (4 * t) - math.e ** (4 * (1 - t)) + math.e**4 - 1) / (2 * (math.e**4 - 1))
    ).pvalue
    q = stats.ks_2samp(u[: n // 2], 1 - u[n // 2 :]).pvalue
    measured = Estimate(min(p, q), 0.0, n, "p of Kolmogorov-Smirnov, density and symmetry")
    return Verdict(measured.value > 0.01, measured, 0.01, f"density p = {p:.2g}, symmetry p = {q:.2g}")


# The sampling rule


def straight_field(s: float, m: float) -> Denoiser:
    """v(x, t) of pairs (z, m + s z): with x = (1 - t)(m + s z) + t z, z = (x - (1 - t) m) / (t + (1 - t) s)."""

    def velocity(x: Tensor, t, cond) -> Tensor:
        return (1 - s) * (x - (1 - t) * m) / (t + (1 - t) * s) - m

    return as_denoiser(velocity, "velocity", Linear(), (2,), t_range=FLOW_RANGE)


def chord_is_euler(bench: Bench) -> Verdict:
    """One step bit for bit, and every number of steps on a straight field; from t = 1, where that field is defined."""
    noise, model = seeds_of(bench, 64).normal((2,)), straight_field(0.4, 1.5)

    def ends(solver: Solver, n: int) -> Tensor:
        grid = TimeGrid(tuple(1 - i / n for i in range(n)) + (0.0,), "t")
        return OdeSampler(solver, grid).sample(model, noise)

    equal = torch.equal(ends(Chord(), 1), ends(Euler(), 1))
    gap = max(float((ends(Chord(), n) - ends(Euler(), n)).abs().max()) for n in (2, 3, 8, 64))
    measured = Estimate(gap, 0.0, 64, "largest difference of chord and Euler, straight field, N = 2, 3, 8, 64")
    return Verdict(equal and gap < 1e-5, measured, 1e-5, f"one step {'bit for bit' if equal else 'differs'}")


def chord_is_biased(bench: Bench) -> Verdict:
    """RMS distance from the ODE's ends on a 1-RF: it stays, where Euler's falls."""
    noise, ends, _ = held_out(bench)
    model, off = bench.need(RING), {}
    for n in (64, 256):
        for solver in (Chord, Euler):
            x = even_steps(n, solver()).sample(model, noise)
            off[solver, n] = float((x - ends).square().sum(1).mean().sqrt())
    measured = Estimate(off[Chord, 256] / off[Euler, 256], 0.0, N, "error of chord over Euler's, 256 steps on a 1-RF")
    stays = off[Chord, 256] > 0.8 * off[Chord, 64]
    text = f"chord {off[Chord, 64]:.3g}, {off[Chord, 256]:.3g}; Euler {off[Euler, 64]:.3g}, {off[Euler, 256]:.3g} at 64, 256 steps"
    return Verdict(measured.value > 5 and stays, measured, 5.0, text)


# Gaussian pairs, and the parameterisation


GAUSSIAN = Exact(((1.0, -0.5),), 0.6)


def of_gaussian() -> Recipe:
    """A wider network, twice the steps: the claims ask it for one or two per cent."""
    return straightened("gaussian-2rf-128x4", GAUSSIAN, 5000, width=128, depth=4, lr=1e-3)


def gaussian_pairs(bench: Bench) -> Verdict:
    """One Euler step of a flow trained on pairs (z, m + s z): mean and covariance of its samples.

    The step begins at t = 1 - 1e-5 as in the paper, where the network reads ln(sigma) / 4 = 2.9 and one training time in fifty thousand
    lies beyond. The words tell what the same network does from t = 0.99.

    It fails, and neither for noise (same points under the exact map) nor for a short training: at seed 1 the covariance is off by 0.1 %,
    0.8 %, 4 % and 6 % from sigma = 99, 999, 1e4 and 1e5, beyond which 52 000, 5 200, 520 and 52 training times lay; ten times as many
    steps would make of 6 % the 4 %. The same network on the same input, told sigma = 999 in place of 1e5, is off by 0.6 %.
    """
    model, seeds = bench.model(of_gaussian()), seeds_of(bench, 20_000)
    noise = seeds.normal((2,))
    m, s = torch.tensor(GAUSSIAN.means[0], dtype=torch.float64), GAUSSIAN.std
    # Against the same noise under the exact map, so that the 2 % are not the sampling error of 20 000 points.
    want = m + s * noise
    exact = torch.cov(want.T)

    def off(t: float) -> float:
        with torch.no_grad():
            x = model.denoise(torch.lerp(want, noise, t), t)
        return max(
            float((x.mean(0) - want.mean(0)).norm() / m.norm()), float((torch.cov(x.T) - exact).norm() / exact.norm())
        )

    measured = Estimate(off(FLOW_RANGE[1]), 0.0, len(noise), "relative error of mean or covariance, one Euler step")
    gaps = [math.sqrt(v / 2) for v in profile(model, noise, want)]
    text = f"from t = 0.99 {off(0.99):.2g}; RMS error of v {shown(gaps)} at t = {shown(LEVELS)}"
    return Verdict(measured.value < 0.02, measured, 0.02, text)


def inverts(bench: Bench) -> Verdict:
    """Data to noise by one Euler step from t = 1e-3, back by one: what is lost."""
    model = bench.model(of_gaussian())
    data = GAUSSIAN.mixture.sample(2000, torch.Generator().manual_seed(bench.seed))[0]
    path = Linear()
    with torch.no_grad():
        low, high = 1e-3, FLOW_RANGE[1]
        code = ((1 - low) * data) + (high - low) * model.velocity((1 - low) * data, low)
        back = even_steps(1).sample(model, code / path.at(high)[1])
    off = (back - data).norm(dim=1) / data.norm(dim=1).mean()
    measured = Estimate(
        float(off.mean()), float(off.std()) / math.sqrt(len(off)), len(off), "relative error of a round trip at N = 1"
    )
    return Verdict(measured.value < 0.05, measured, 0.05, "one Euler step each way")


def parameterisation(bench: Bench, n: int = 2000) -> Verdict:
    """(x_t - D(x_t / (1-t), t / (1-t))) / t with the analytic D against the analytic v."""
    g = torch.Generator().manual_seed(bench.seed)
    m, s = torch.tensor([1.0, -0.5], dtype=torch.float64), 0.6
    edm = Oracle(GaussianMixture(m[None], s), EDM())
    t = 1e-3 + (0.987 - 1e-3) * torch.rand(n, generator=g, dtype=torch.float64)
    x = 2 * torch.randn(n, 2, generator=g, dtype=torch.float64)
    q, a = ((1 - t) ** 2 * s**2 + t**2)[:, None], (1 - t)[:, None]
    exact = -m + (t[:, None] - a * s**2) / q * (x - a * m)
    off = float(((x - edm.denoise(x / a, t / (1 - t))) / t[:, None] - exact).abs().max())
    moved = float((edm.on(Linear()).velocity(x, t) - exact).abs().max())
    measured = Estimate(max(off, moved), 0.0, n, "largest error of the velocity, t from 0.001 to 0.987")
    return Verdict(measured.value < 1e-5, measured, 1e-5, "by hand and by the package's change of path")


# Digits


def digits_one_step(bench: Bench, n: int = 2000) -> Verdict:
    """The bundled student in one step against the bundled 2-RF and teacher; other noise at each seed."""
    distance, seeds = quality("digits"), seeds_of(bench, n)
    students = {name: bench.need(Bundled(name)) for name in ("digits-2rf", "digits-rfpp")}
    fd = {
        (name, k): distance(sample(model, even_steps(k), seeds.fresh()))
        for name, model in students.items()
        for k in (1, 2, 4)
    }
    a, b = fd["digits-2rf", 1], fd["digits-rfpp", 1]
    error = b.value / a.value * math.hypot(a.std_error / a.value, b.std_error / b.value)
    measured = Estimate(b.value / a.value, error, n, "FD[digits-cnn] at 1 NFE, rf++ over 2-RF")
    text = "; ".join(f"{name} {shown(fd[name, k].value for k in (1, 2, 4))}" for name in students)
    return Verdict(measured.value + 2 * error < 1, measured, 1.0, f"at 1, 2, 4 NFE: {text}")


CLAIMS = (
    Claim("one reflow leaves less than 5 % of S", "Sec. 3", straightens, 0.5),
    Claim("reflow pairs cost less than half of independent ones", "Sec. 3", cheaper, 0.1),
    Claim("the irreducible loss of a 1-RF peaks inside, not at the ends", "Sec. 4.1, Fig. 4", interior_peak, 0.1),
    Claim("the loss of a 2-RF is highest at both ends", "Sec. 4.1, Fig. 4", ends_are_hard, 0.5),
    Claim("U-shaped times lower the loss at the noise end", "Sec. 4.1, Table 1 (B to C)", noise_end, 0.1),
    Claim("U-shaped times do not worsen the one-step coupling", "Sec. 4.1, Table 1 (B to C)", one_step, 0.1),
    Claim("sampled times have the symmetric cosh density", "Sec. 4.1", times_have_the_density, 0.1),
    Claim("the new sampling rule is Euler's on straight paths", "Sec. 4.4", chord_is_euler, 0.1),
    Claim("on a 1-RF the new rule does not converge to the ODE", "Sec. 4.4", chord_is_biased, 0.2),
    Claim("on Gaussian pairs one step has mean and covariance of the data (2 %)", "derived", gaussian_pairs, 0.5),
    Claim("on Gaussian pairs one step back and forth loses less than 5 %", "Sec. 5.3", inverts, 0.1),
    Claim("EDM's denoiser through the parameterisation is the exact velocity", "Sec. 4.3", parameterisation, 0.01),
    Claim("rf++ beats the plain 2-RF in one step on digits", "Table 1 (A to F)", digits_one_step, 0.5, scale="digits"),
)
