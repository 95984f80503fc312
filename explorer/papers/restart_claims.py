"""Claims of restart sampling: on exact denoisers, on the paper's toy with its small score network, and on the bundled digits."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

from explorer.data import oracle
from explorer.live import metric_for
from explorer.metrics.base import Estimate
from explorer.metrics.features import points_space
from explorer.metrics.kernel import energy_distance
from explorer.models import bundled
from explorer.models.base import Oracle
from explorer.papers.restart import Decomposition, coupled_jump, overlap, points, recipe
from explorer.process.oracles import GaussianMixture
from explorer.reproduction import Bench, Claim, Verdict
from explorer.sampling import Heun, OdeSampler, Restart, RestartSampler, Seeds, TimeGrid, repeated, restart_preset
from explorer.sampling.restart import PRESETS
from explorer.tuning import MetricObjective

WEIGHT, MODE, STD, LOW = 0.7, 0.5, 0.05, 0.06
HIGHS = (0.3, 0.6, 1.0, 2.0)
REPEATS = (0, 1, 2, 5, 10, 20, 30)
N, DRAWS = 600, 5


def seeds(bench: Bench, n: int, stream: int = 0) -> Seeds:
    first = 100_000_000 * (bench.seed + 1) + 1_000_000 * stream
    return Seeds(range(first, first + n))


def accounting(bench: Bench) -> Verdict:
    ring, worst, counts = Oracle(oracle("8gaussians")), 0, {}
    for name, (n_main, intervals, _) in PRESETS.items():
        sampler, before = restart_preset(name), ring.n_calls
        sampler.sample(ring, Seeds([0]).normal((2,)), rng=Seeds([0]))
        formula = 2 * n_main - 1 + sum(2 * k * (n - 1) for n, k, _, _ in intervals)
        counts[name] = ring.n_calls - before
        said = int(name.rsplit("-", 1)[1])
        worst = max(worst, *(abs(v - said) for v in (counts[name], formula, sampler.nfe(ring))))
    text = "counted " + ", ".join(map(str, counts.values()))
    measured = Estimate(
        float(worst), 0.0, len(PRESETS), "largest difference of formula, promise and count from the tables"
    )
    return Verdict(worst == 0, measured, 0.0, text)


def two_modes() -> Oracle:
    return Oracle(GaussianMixture([[-MODE], [MODE]], STD, weights=torch.tensor([1 - WEIGHT, WEIGHT])))


def shares(bench: Bench, sigma_max: float, n_repeats: int, n: int, s_noise: float = 1.0) -> list[float]:
    """Share of the upper mode after each repeat, all samples in the lower one before the first."""
    found = []

    def watch(i, t, t_next, x, step):
        if t_next == LOW:
            found.append(float((step.x > 0).double().mean()))

    x = -MODE + math.hypot(STD, LOW) * seeds(bench, n).normal((1,))
    interval = Restart(12, n_repeats, LOW, sigma_max)
    repeated(two_modes(), x, interval, s_noise=s_noise, rng=seeds(bench, n, 1), observe=watch)
    return found


def geometric(bench: Bench) -> Verdict:
    """Errors above three times the sampling noise of a share, 0.5 / sqrt(n), enter the fit."""
    n, fits, said = 4000, {}, []
    for high in HIGHS:
        errors = [WEIGHT, *(abs(s - WEIGHT) for s in shares(bench, high, 6, n))]
        k = next((i for i, e in enumerate(errors) if e < 1.5 / math.sqrt(n)), len(errors))
        log = np.log(errors[: max(k, 2)])
        slope, offset = np.polyfit(np.arange(len(log)), log, 1)
        left = ((log - slope * np.arange(len(log)) - offset) ** 2).sum()
        fits[high] = -slope, 1 - left / ((log - log.mean()) ** 2).sum()
        said.append(f"{high:g}: {' '.join(f'{e:.2f}' for e in errors)}, rate {-slope:.2f}")
    rates = [rate for rate, _ in fits.values()]
    still = max(shares(bench, HIGHS[0], 4, 500, s_noise=1e-12))
    r2 = min(fit for _, fit in fits.values())
    text = "; ".join(said) + f"; share that moved without noise {still:g}"
    measured = Estimate(float(r2), 0.0, n, "least R2 of ln |mode weight - 0.7| against the number of repeats")
    return Verdict(r2 > 0.95 and rates == sorted(rates) and still == 0, measured, 0.95, text)


def unbiased(bench: Bench) -> Verdict:
    """Energy distance to true states at sigma_min, against the largest between twenty pairs of true sets."""
    n, mixture, g = 1500, oracle("8gaussians"), bench.generator()
    model = Oracle(mixture)

    def true() -> Tensor:
        return mixture.sample(n, g)[0] + LOW * torch.randn(n, 2, dtype=torch.float64, generator=g)

    def distance(x: Tensor) -> float:
        metric = energy_distance(points_space(2), true())
        metric.update(x)
        return metric.compute().value

    floor, found = max(abs(distance(true())) for _ in range(20)), {}
    for high in (0.3, 1.0):
        for k in (1, 5, 20):
            x = repeated(model, true(), Restart(12, k, LOW, high), rng=seeds(bench, n, k))
            found[f"K {k} from {high:g}"] = abs(distance(x))
    worst = max(found.values())
    text = ", ".join(f"{k} {v:.1e}" for k, v in found.items()) + f"; floor {floor:.1e}"
    return Verdict(
        worst < 2 * floor, Estimate(worst, floor / 2, n, "energy distance to the true law, largest"), 2 * floor, text
    )


def off(bench: Bench) -> Verdict:
    digits, worst = bundled.load("digits"), 0.0
    grid = TimeGrid.karras(6, *digits.sigma_range)
    noise, labels = seeds(bench, 16).normal((1, 8, 8)), torch.arange(16) % 10
    plain = OdeSampler(Heun(), grid).sample(digits, noise, labels)
    for intervals in ((), (Restart(3, 0, 0.06, 0.3),)):
        gap = RestartSampler(grid, intervals).sample(digits, noise, labels) - plain
        worst = max(worst, float(gap.abs().max()))
    measured = Estimate(worst, 0.0, 16, "largest difference from Heun's samples with K = 0 and without intervals")
    return Verdict(worst == 0, measured, 0.0, "bit for bit")


def coupling(bench: Bench) -> Verdict:
    n, g, worst, said = 40_000, bench.generator(), 0.0, []
    for r in (0.1, 0.5, 1.0, 2.0, 4.0):
        x = torch.zeros(n, 3, dtype=torch.float64)
        y = x + torch.tensor([r, 0.0, 0.0])
        a, b = coupled_jump(x, y, 0.3, 1.0, g)
        met, want = float((a == b).all(1).double().mean()), float(overlap(r, 0.3, 1.0))
        worst = max(worst, abs(met - want) / math.sqrt(max(want * (1 - want), 1e-4) / n))
        spread = float(((b - y).square().mean() / (1.0**2 - 0.3**2) - 1).abs())
        worst = max(worst, spread / math.sqrt(2 / (3 * n)))
        said.append(f"r {r:g}: {met:.4f}, in closed form {want:.4f}")
    measured = Estimate(worst, 1.0, n, "largest deviation of meetings and of the jump's variance, in standard errors")
    return Verdict(worst < 4.5, measured, 4.5, "; ".join(said))


@functools.cache
def toy(bench: Bench, name: str, n_head: int = 20) -> Decomposition:
    return Decomposition(bench.model(recipe(name)), points(), n=N, n_head=n_head)


def draws(bench: Bench) -> range:
    return range(DRAWS * bench.seed, DRAWS * (bench.seed + 1))


@functools.cache
def curve(bench: Bench, name: str, n_head: int = 20) -> dict[int, np.ndarray]:
    """K -> W1 (draws, 3): contracted, additional, total."""
    found = toy(bench, name, n_head)
    return {k: np.array([found.measure(found.restart(k), d)[:3] for d in draws(bench)]) for k in REPEATS}


def rise(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Mean of b - a over draws, and its error."""
    return float((b - a).mean()), float((b - a).std(ddof=1) / math.sqrt(len(a)))


def two_errors(bench: Bench) -> Verdict:
    """Neighbours in K; where neither is outside three errors of the pair (of 5 draws, 4 degrees of freedom) they count as equal."""
    found = curve(bench, "toy")
    steps = [(found[a], found[b]) for a, b in zip(REPEATS[:-1], REPEATS[1:], strict=True)]
    falls = [rise(a[:, 0], b[:, 0]) for a, b in steps]
    climbs = [rise(a[:, 1], b[:, 1]) for a, b in steps]
    falling = all(v < 3 * e for v, e in falls)
    not_falling = all(v > -3 * e for v, e in climbs)
    first, last = found[0][:, 0], found[REPEATS[-1]][:, 0]
    ratio = last / first
    text = "; ".join(
        f"K {k}: {v[:, 0].mean():.3f} contracted, {v[:, 1].mean():.3f} ± {v[:, 1].std(ddof=1) / math.sqrt(DRAWS):.3f} additional"
        for k, v in found.items()
    )
    measured = Estimate(
        float(ratio.mean()),
        float(ratio.std(ddof=1) / math.sqrt(DRAWS)),
        N,
        "contracted error at K = 30 over that at K = 0",
    )
    return Verdict(falling and not_falling and measured.value < 0.5, measured, 0.5, text)


def matched(bench: Bench) -> Verdict:
    """For each ODE the Restart with the least contracted error among those whose additional error is no larger, within two errors."""
    one = toy(bench, "toy")
    restarts = [one.restart(k, m) for k, m in ((2, 5), (5, 5), (10, 5), (10, 3), (20, 5))]
    found = [np.array([one.measure(r, d)[:3] for d in draws(bench)]) for r in restarts]
    gaps, said = [], []
    for n_steps in (4, 20, 80):
        ode = np.array([one.measure(one.ode(n_steps), d)[:3] for d in draws(bench)])
        allowed = [r for r in found if (v := rise(ode[:, 1], r[:, 1]))[0] <= 2 * v[1]]
        best = min(allowed, key=lambda r: r[:, 0].mean(), default=None)
        gaps.append(rise(ode[:, 0], best[:, 0]) if best is not None else (math.inf, 0.0))
        other = "none" if best is None else f"{best[:, 1].mean():.3f} additional, {best[:, 0].mean():.3f} contracted"
        said.append(f"ODE of {n_steps} steps: {ode[:, 1].mean():.3f}, {ode[:, 0].mean():.3f}; Restart: {other}")
    worst = max(gaps, key=lambda g: g[0])
    measured = Estimate(
        *worst, N, "contracted error of Restart minus the ODE's at no larger additional error, worst ODE"
    )
    return Verdict(worst[0] < -2 * worst[1], measured, 0.0, "; ".join(said))


def turn(found: dict[int, np.ndarray]) -> tuple[int, str]:
    """K of the least total error, and the curve in words."""
    totals = {k: v[:, 2].mean() for k, v in found.items()}
    return min(totals, key=totals.get), " ".join(f"{v:.3f}" for v in totals.values())


def fall(bench: Bench, name: str) -> Verdict:
    """The fall from K = 0 to the best K, and the rise from there to K = 30, in errors of the pair; six Euler steps before the interval."""
    found = curve(bench, name, 6)
    best, words = turn(found)
    down, up = rise(found[0][:, 2], found[best][:, 2]), rise(found[best][:, 2], found[REPEATS[-1]][:, 2])
    text = f"K {' '.join(map(str, REPEATS))}: {words}; least at {best}; then {up[0]:+.3f} ± {up[1]:.3f} to K = 30"
    measured = Estimate(*down, N, "total error at the best K minus that at K = 0, six Euler steps before")
    return Verdict(best > 0 and down[0] < -2 * down[1] and up[0] >= -2 * up[1], measured, 0.0, text)


def few_steps(bench: Bench) -> Verdict:
    return fall(bench, "toy")


def weak_network(bench: Bench) -> Verdict:
    return fall(bench, "toy-weak")


def later(bench: Bench) -> Verdict:
    ks, said = {}, []
    for name, n_head in (("toy-weak", 6), ("toy", 6), ("toy", 20)):
        ks[name, n_head], words = turn(curve(bench, name, n_head))
        said.append(f"{name}, {n_head} steps before: least at K = {ks[name, n_head]} of {words}")
    gap = ks["toy-weak", 6] - ks["toy", 6]
    measured = Estimate(
        float(gap), 0.0, N, "K of the least total error, weak network minus strong, both after six Euler steps"
    )
    return Verdict(gap > 0, measured, 0.0, "; ".join(said))


def on_digits(bench: Bench) -> Verdict:
    """FD of 2000 samples from the same noise: two repeats of the paper's interval with eight main steps, beside twelve steps of Heun."""
    model = bundled.load("digits")
    low, high = model.sigma_range
    first = 4_000_000 * (bench.seed + 1)
    held = MetricObjective(metric_for(model, "fd"), range(first, first + 2000))
    heun = OdeSampler(Heun(), TimeGrid.karras(12, low, high))
    restart = RestartSampler(TimeGrid.karras(8, low, high), (Restart(3, 2, 0.14, 0.30),))
    before, after = held.measure(model, heun), held.measure(model, restart)
    gap = after.minus(before)
    text = f"{heun.nfe(model)} and {restart.nfe(model)} NFE; Heun {before.estimate}, Restart {after.estimate}"
    measured = Estimate(gap.value, gap.std_error, gap.n, "FD[digits-cnn] of Restart minus Heun's at 23 NFE")
    return Verdict(gap.value < -2 * gap.std_error, measured, 0.0, text)


TABLES, TOY, THEOREM = "Tables 3 and 5", "toy experiment", "Theorem 1"
CLAIMS = (
    Claim("formula, promise and count of evaluations agree with all settings of the tables", TABLES, accounting, 0.1),
    Claim(
        "errors of mode weights fall geometrically in K, faster from higher up, and not without noise",
        THEOREM,
        geometric,
        0.2,
    ),
    Claim("repeats keep the true law where the denoiser is exact", "method", unbiased, 0.5),
    Claim("no repeats is Heun, to the bit", "Alg. 1", off, 0.1, "digits"),
    Claim("a jump can make two points meet as often as their Gaussians overlap", THEOREM, coupling, 0.1),
    Claim("the contracted error falls with K and the additional error does not", TOY, two_errors, 1.5),
    Claim("at no larger additional error Restart contracts more than the ODE", TOY, matched, 0.5),
    Claim("after few main steps the total error falls with K, then turns up or stays", "FID against K", few_steps, 0.5),
    Claim(
        "with a network stopped early the total error falls with K, then turns up or stays",
        "FID against K",
        weak_network,
        0.5,
    ),
    Claim("the best K is larger for the weaker network", "FID against K", later, 0.8),
    Claim(
        "Restart with the paper's interval has a lower FD than Heun at equal cost",
        "main results",
        on_digits,
        4.0,
        "digits",
    ),
)
