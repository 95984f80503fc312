"""Claims of bespoke solvers: on the exact flow of the ring of eight Gaussians, of one Gaussian, and on the bundled digits network."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from explorer.live import metric_for
from explorer.metrics.base import Estimate
from explorer.models import Oracle
from explorer.models.base import Denoiser
from explorer.models.bundled import load
from explorer.papers.bespoke import PRESETS, Bespoke, Theta, bound, learnt, preset, rmse
from explorer.process import EDM, VP, CosineVP, GaussianMixture, Linear
from explorer.reproduction import Bench, Claim, Verdict
from explorer.sampling import (
    RK4,
    Euler,
    Heun,
    Midpoint,
    OdeSampler,
    ScaleTime,
    ScaleTimeSampler,
    Seeds,
    TimeGrid,
    Warp,
    sample,
)
from explorer.tuning import Budget, MetricObjective, Objective, Setting, Study, TruncationError
from explorer.tuning.gradient import Teacher, solved

HELD = 512
PLAIN = {"rk1": Euler(), "rk2": Midpoint()}


def ring() -> Oracle:
    """The exact velocity of the bundled ring, asked without classes, on the linear path from pure noise."""
    mixture = load("oracle-8gaussians").mixture
    return Oracle(GaussianMixture(mixture.means, mixture.variances.sqrt()), Linear(), t_range=(0.0, 1.0))


def noise(bench: Bench, n: int = HELD) -> Seeds:
    """Held out: no training of these claims draws below ten million."""
    return Seeds(range(100_000 * bench.seed, 100_000 * bench.seed + n))


def to_learn_on(model: Denoiser, seed: int, n: int = 1024, steps: int = 200) -> Teacher:
    first = 10_000_000 * (seed + 1)
    return solved(model, 1.0, Seeds(range(first, first + n)), steps=steps)


def ends(model: Denoiser, warp: Warp, base: str, seeds: Seeds) -> Tensor:
    return sample(model, ScaleTimeSampler(ScaleTime(base, warp)), seeds)


@lru_cache(maxsize=16)
def trained(seed: int, n_steps: int, what: str = "both", iterations: int = 3000) -> Warp:
    """RK2 on the ring, from the identity. 400 iterations at a rate of 1e-2 end earlier, at about twice the error."""
    theta = Theta(preset("identity", n_steps, 1.0), "rk2", what)
    for _ in learnt(theta, ring(), to_learn_on(ring(), seed), seed=seed, iterations=iterations, lr=3e-2):
        pass
    return theta.warp()


def identity(bench: Bench) -> Verdict:
    model, seeds, worst = ring(), noise(bench, 64), 0.0
    for base, solver in PLAIN.items():
        for n in (1, 4, 5):
            times = tuple(1 - i / n for i in range(n)) + (0.0,)
            plain = sample(model, OdeSampler(solver, TimeGrid(times, "t")), seeds)
            gap = (ends(model, preset("identity", n, 1.0, base=base), base, seeds) - plain).abs().max()
            learnable = ends(model, Theta(preset("identity", n, 1.0, base=base), base).warp(), base, seeds)
            worst = max(worst, float(gap), float((learnable - plain).abs().max()))
    measured = Estimate(worst, 0.0, 64, "largest difference from Euler's and the midpoint method")
    return Verdict(worst < 1e-12, measured, 1e-12, "1, 4 and 5 steps; untrained numbers of both kinds")


def gains(bench: Bench) -> dict[int, tuple[float, float, float]]:
    """n -> RMSE of bespoke, of the plain method, of the plain method with twice the steps; held out."""
    model, seeds, out = ring(), noise(bench), {}
    truth = solved(model, 1.0, seeds, steps=400).x[-1]
    for n in (4, 5):
        warps = trained(bench.seed, n), preset("identity", n, 1.0), preset("identity", 2 * n, 1.0)
        out[n] = tuple(rmse(ends(model, warp, "rk2", seeds), truth) for warp in warps)
    return out


def gain(bench: Bench) -> Verdict:
    found = gains(bench)
    worst = max(a / b for a, b, _ in found.values())
    text = "; ".join(f"n = {n}: {b:.4f} plain, {a:.4f} bespoke, ratio {a / b:.2f}" for n, (a, b, _) in found.items())
    measured = Estimate(
        worst, 0.0, HELD, "held-out RMSE of RK2-bespoke over the midpoint method's, worse of n = 4 and 5"
    )
    return Verdict(worst <= 0.5, measured, 0.5, text)


def twice_the_steps(bench: Bench) -> Verdict:
    found = gains(bench)
    worst = max(a / c for a, _, c in found.values())
    text = "; ".join(f"n = {n}: {a:.4f}, midpoint with {2 * n} steps {c:.4f}" for n, (a, _, c) in found.items())
    measured = Estimate(worst, 0.0, HELD, "held-out RMSE over that of twice the plain steps, worse of n = 4 and 5")
    return Verdict(worst <= 1.0, measured, 1.0, text)


def ablation(bench: Bench) -> Verdict:
    model, seeds, n = ring(), noise(bench), 5
    truth = solved(model, 1.0, seeds, steps=400).x[-1]
    e = {w: rmse(ends(model, trained(bench.seed, n, w, 600), "rk2", seeds), truth) for w in ("both", "time", "scale")}
    plain = rmse(ends(model, preset("identity", n, 1.0), "rk2", seeds), truth)
    text = ", ".join(f"{w} {v:.4f}" for w, v in e.items()) + f", plain {plain:.4f}"
    measured = Estimate(e["time"] / e["scale"], 0.0, HELD, "RMSE with time alone over RMSE with scale alone, n = 5")
    return Verdict(e["both"] < e["time"] < e["scale"] < plain, measured, 1.0, text)


def edm_functions(low: float = 0.05, high: float = 80.0, rho: float = 7.0):
    """Karras' spacing on EDM's path as t_r and s_r of the linear one, whose alpha is 1 / (1 + sigma)."""
    sigma = lambda r: (high ** (1 / rho) + r * (low ** (1 / rho) - high ** (1 / rho))) ** rho  # noqa: E731
    return lambda r: sigma(r) / (1 + sigma(r)), lambda r: 1 + sigma(r)


def bent_functions():
    """A schedule of no paper: time and scale that wave."""
    return (
        lambda r: 0.05 + 0.95 * (1 - r - 0.1 * torch.sin(2 * math.pi * r)),
        lambda r: torch.exp(0.5 * torch.sin(3 * r)),
    )


def consistency(bench: Bench) -> Verdict:
    model, seeds, slopes, counts = ring(), noise(bench, 32), {}, (128, 256, 512)
    for name, (time, scale) in {"EDM's": edm_functions(), "a wavy one": bent_functions()}.items():
        fine = Warp.of_functions(time, scale, 1)
        inner = tuple(fine.t[0] + (fine.t[-1] - fine.t[0]) * i / 400 for i in range(1, 400))
        truth = sample(model, OdeSampler(RK4(), TimeGrid((fine.t[0], *inner, fine.t[-1]), "t")), seeds)
        for base, order in (("rk1", 1), ("rk2", 2)):
            warps = [Warp.of_functions(time, scale, n, base) for n in counts]
            errors = [rmse(ends(model, w, base, seeds), truth) for w in warps]
            slopes[f"{name}, {base}"] = math.log(errors[0] / errors[-1]) / math.log(counts[-1] / counts[0]), order
    worst = max(abs(slope - order) for slope, order in slopes.values())
    text = "; ".join(f"{name}: {slope:.2f}" for name, (slope, _) in slopes.items())
    measured = Estimate(worst, 0.0, 32, "distance of the measured order from that of the base method, 128 to 512 steps")
    return Verdict(worst <= 0.3, measured, 0.3, text)


def equivalence(bench: Bench) -> Verdict:
    model, seeds, grid, worst = ring().on(EDM()), noise(bench, 128), TimeGrid.karras(8, 0.002, 80.0), 0.0
    for other in (EDM(), VP(), CosineVP(offset=0.0)):
        for base, solver in PLAIN.items():
            warped = sample(model, ScaleTimeSampler.plain(grid.on(other), base, Linear(), other), seeds)
            own = sample(model, OdeSampler(solver, grid, other), seeds)
            worst = max(worst, float((warped - own).abs().max()))
    measured = Estimate(
        worst, 0.0, 128, "largest difference of end points, EDM's, VP's and the cosine path, both bases"
    )
    return Verdict(worst < 1e-8, measured, 1e-8, "8 steps of Karras' grid")


def lipschitz(model: Denoiser, times: tuple[float, ...]) -> float:
    """Largest spectral norm of du/dx over a grid of points in [-3, 3]^2, at the times where a solver asks."""
    side = torch.linspace(-3, 3, 121, dtype=torch.float64)
    points = torch.cartesian_prod(side, side)
    largest = 0.0
    for t in times:
        x = points.clone().requires_grad_(True)
        u = model.velocity(x, t)
        rows = [torch.autograd.grad(u[:, i].sum(), x, retain_graph=True)[0] for i in range(2)]
        largest = max(largest, float(torch.linalg.matrix_norm(torch.stack(rows, dim=1), ord=2).max()))
    return largest


def bounded(bench: Bench) -> Verdict:
    """Identity, schedules, random numbers and trained ones; the constant measured on a grid of points, plus a twentieth."""
    model, n = ring(), 5
    fine, g = to_learn_on(model, bench.seed, 256), bench.generator()
    rows, begin = torch.arange(256), Linear().time_at(80.0)
    near = solved(model, begin, Seeds(range(256)), steps=200)
    thetas = {"identity": (Theta(preset("identity", n, 1.0), "rk2"), fine)}
    thetas |= {name: (Theta(preset(name, n, begin), "rk2"), near) for name in PRESETS[1:]}
    for k in range(3):
        theta = Theta(preset("identity", n, 1.0), "rk2")
        for p in theta.params:
            p += 0.3 * torch.randn(p.shape, generator=g, dtype=p.dtype)
        thetas[f"random {k}"] = theta, fine
    theta = Theta(preset("identity", n, 1.0), "rk2")
    for _ in learnt(theta, model, fine, iterations=200, seed=bench.seed):
        pass
    thetas["trained"] = theta, fine
    ratios, ones = {}, {}
    for name, (theta, teacher) in thetas.items():
        warp = theta.warp()
        start = teacher.x[0] / Linear().at(warp.t[0])[1]
        got = ScaleTimeSampler(ScaleTime("rk2", warp)).sample(model, start)
        error = float((got - teacher.x[-1]).square().mean(dim=1).sqrt().mean())
        with torch.no_grad():
            constant = 1.05 * lipschitz_of(model, warp)
            ratios[name], ones[name] = (float(bound(theta, model, teacher, rows, c)) / error for c in (constant, 1.0))
    worst = min(ratios.values())
    text = "with L_tau = 1: " + ", ".join(f"{name} {v:.2f}" for name, v in ones.items())
    measured = Estimate(
        worst, 0.0, 256, "least ratio of L_bes to the mean error, L_tau the measured Lipschitz constant"
    )
    return Verdict(worst >= 1.0, measured, 1.0, text)


def lipschitz_of(model: Denoiser, warp: Warp) -> float:
    with torch.enable_grad():
        return lipschitz(model, warp.t[:-1])


def count(bench: Bench) -> Verdict:
    """Numbers counted, and every update of a training turned into a solver, which refuses times that rise and scales not positive."""
    wrong = 0
    for base, each in (("rk1", 4), ("rk2", 8)):
        wrong += sum(
            Theta(preset("identity", n, 1.0, base=base), base).n_parameters != each * n - 1 for n in range(1, 11)
        )
    model = ring()
    fine, updates = to_learn_on(model, bench.seed, 128, 64), 0
    for base in PLAIN:
        theta = Theta(preset("identity", 4, 1.0, base=base), base)
        for _ in learnt(theta, model, fine, iterations=100, lr=0.3, batch=64, seed=bench.seed):
            ScaleTime(base, theta.warp())
            updates += 1
    measured = Estimate(float(wrong), 0.0, 20, "counts that are not 4 n - 1 or 8 n - 1, n = 1 to 10")
    return Verdict(
        wrong == 0 and updates == 200, measured, 0.0, f"{updates} updates at a rate of 0.3, each a valid solver"
    )


def one_gaussian(bench: Bench) -> Verdict:
    """N(0, c^2): x(t) is x(1) times the marginal's standard deviation, so a linear step can be exact."""
    c = 0.5
    model = Oracle(GaussianMixture(torch.zeros(1, 2), c), Linear(), t_range=(0.0, 1.0))
    fine, seeds = to_learn_on(model, bench.seed, 256), noise(bench)
    truth = c * seeds.fresh().normal((2,))
    size = lambda r: 1 / torch.sqrt((r * c) ** 2 + (1 - r) ** 2)  # noqa: E731
    still = Warp.of_functions(lambda r: 1 - r, size, 2, "rk1")
    exact = rmse(ends(model, still, "rk1", seeds), truth)
    errors = []
    for n in (1, 2):
        theta = Theta(preset("identity", n, 1.0, base="rk1"), "rk1")
        for _ in learnt(theta, model, fine, iterations=1000, lr=1e-2, seed=bench.seed):
            pass
        errors.append(rmse(ends(model, theta.warp(), "rk1", seeds), truth))
    plain = [rmse(ends(model, preset("identity", n, 1.0, base="rk1"), "rk1", seeds), truth) for n in (1, 2)]
    text = f"plain {plain[0]:.3f} and {plain[1]:.3f}; with the scale that makes states stand still {exact:.1e}"
    measured = Estimate(max(errors), 0.0, HELD, "RMSE of RK1-bespoke on one Gaussian, worse of n = 1 and 2")
    return Verdict(max(errors) < 1e-3, measured, 1e-3, text)


def toward(seeds: range) -> TruncationError:
    """The error at the end on digits, against 32 steps of Heun's method, whose own is far below that of 5 steps."""
    model = load("digits")
    return TruncationError(model, seeds, reference=OdeSampler(Heun(), TimeGrid.karras(32, *model.sigma_range)))


@lru_cache(maxsize=4)
def on_digits(seed: int, n_steps: int = 5) -> Setting:
    """The solver chosen on its own noise among those training proposed, from equal steps; a short training, for a slow machine."""
    model, first = load("digits"), 3_000_000_000 + 1_000_000 * seed
    start = Setting(OdeSampler(Midpoint(), TimeGrid.karras(n_steps, *model.sigma_range)))
    tuner = Bespoke(n_steps=n_steps, iterations=150, batch=16, every=25, samples=64, steps=48)
    study = Study(model, start, toward(range(first, first + 128)), tuner, Budget(trials=30), seed=seed)
    list(study)
    return study.best.setting


def digits_settings(seed: int, n_steps: int = 5) -> dict[str, Setting]:
    """The midpoint method on the schedules of the literature, and the bespoke solver: 2 n evaluations each."""
    model = load("digits")
    begin = Linear().time_at(model.sigma_range[1])
    warps = {name: preset(name, n_steps, begin, low=model.sigma_range[0]) for name in PRESETS}
    found = {name: Setting(ScaleTimeSampler(ScaleTime("rk2", warp))) for name, warp in warps.items()}
    return {**found, "bespoke": on_digits(seed, n_steps)}


def on_held_out(goal: Objective, seed: int, what: str) -> Verdict:
    """Paired with the fixed schedule that is best on the same held-out noise, which flatters that one."""
    found = {name: goal.measure(*s.on(load("digits"))) for name, s in digits_settings(seed).items()}
    best = min((name for name in found if name != "bespoke"), key=lambda name: found[name].estimate.value)
    change = found["bespoke"].minus(found[best])
    said = ", ".join(f"{k} {m.estimate.value:.4f} ± {m.estimate.std_error:.4f}" for k, m in found.items())
    measured = Estimate(change.value, change.std_error, change.n, f"{what}, bespoke minus best fixed schedule, 10 NFE")
    return Verdict(change.value < -2 * change.std_error, measured, 0.0, f"{said}; best fixed schedule: {best}")


def digits_end(bench: Bench) -> Verdict:
    return on_held_out(toward(range(100_000 * bench.seed, 100_000 * bench.seed + 2000)), bench.seed, "end-point RMSE")


def digits_quality(bench: Bench) -> Verdict:
    held = range(100_000 * bench.seed, 100_000 * bench.seed + 2000)
    return on_held_out(MetricObjective(metric_for(load("digits"), "fd"), held), bench.seed, "FD[digits-cnn]")


CLAIMS = (
    Claim("untrained numbers are Euler's and the midpoint method", "initialisation", identity, 0.1),
    Claim("RK2-bespoke halves the midpoint method's error at 4 and 5 steps", "toy experiments", gain, 1.5),
    Claim("and is no worse than twice as many plain steps", "toy experiments", twice_the_steps, 1.5),
    Claim("any smooth warp keeps the base method's order", "consistency", consistency, 0.1),
    Claim("other Gaussian paths are scale-time warps of the linear one", "equivalence", equivalence, 0.1),
    Claim("the loss bounds the error where L_tau bounds the Lipschitz constant", "loss", bounded, 0.5),
    Claim("4 n - 1 or 8 n - 1 numbers, and every update a solver", "parametrisation", count, 0.1),
    Claim("one Gaussian is solved in one Euler step", "scaling", one_gaussian, 0.3),
    Claim("time matters more than scale, and both are best", "ablation", ablation, 2.0),
    Claim(
        "a digits solver of 10 calls ends nearer the fine solution than every fixed schedule",
        "RMSE",
        digits_end,
        3.0,
        "digits",
    ),
    Claim("and draws better digits than every fixed schedule", "FID", digits_quality, 3.0, "digits"),
)
