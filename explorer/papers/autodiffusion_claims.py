"""Claims of AutoDiffusion: on eight Gaussians with the exact noise prediction, on two small networks, on the bundled digits network."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import nn

from explorer.live import metric_for
from explorer.metrics.base import Estimate
from explorer.metrics.features import points_space
from explorer.metrics.kernel import energy_distance
from explorer.models import Model, Oracle, bundled
from explorer.models.wrappers import LayersLeftOut
from explorer.nets.attention import PixelAttention
from explorer.nets.unet import ResBlock
from explorer.papers.autodiffusion import AutoDiffusion, random_search, toy, uniform_steps
from explorer.process import GaussianMixture
from explorer.reproduction import Bench, Claim, Verdict
from explorer.sampling import DDIM, ChainSampler, OdeSampler, Seeds, TimeGrid, noise_levels
from explorer.tuning import Budget, FunctionObjective, MetricObjective, Setting, Study
from explorer.tuning.genome import layers_used

N_TEST = 6000
FEW = AutoDiffusion(population=20, epochs=8, mutations=10, crossovers=5)


def mixture(scale: float = 1.0) -> GaussianMixture:
    """Eight Gaussians on a circle of radius 0.66, 0.06 wide."""
    angle = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
    return GaussianMixture(0.66 * scale * torch.stack([angle.cos(), angle.sin()], dim=1), 0.06 * scale)


def fitness(bench: Bench, n: int, n_data: int = 2000, scale: float = 1.0, stream: int = 0) -> MetricObjective:
    """Energy distance of n samples to data, other latents and other data at each seed and stream."""
    data = mixture(scale).sample(n_data, bench.generator(stream))[0]
    first = 10_000_000 * (bench.seed + 1) + 100_000 * stream
    return MetricObjective(energy_distance(points_space(2), data), range(first, first + n), labels=None)


def held_out(bench: Bench, model: Model, setting: Setting) -> Estimate:
    goal = fitness(bench, N_TEST, N_TEST, stream=99)
    return goal(*setting.on(model))


def uniform(k: int) -> Setting:
    return Setting(ChainSampler(uniform_steps(k)))


def run(model: Model, start: Setting, goal, tuner=FEW, seed: int = 0) -> Study:
    study = Study(model, start, goal, tuner, Budget(trials=100_000), seed)
    for _ in study:
        pass
    return study


@lru_cache(maxsize=16)
def searched(seed: int, k: int) -> tuple[Study, int]:
    """The paper's search on the ring, and the network calls it made."""
    model = Oracle(mixture(), name="ring")
    study = run(model, uniform(k), fitness(Bench(seed=seed), 1000), AutoDiffusion(), seed)
    return study, model.n_calls


def beats_uniform(bench: Bench) -> Verdict:
    ratios, said, model = {}, [], Oracle(mixture(), name="ring")
    for k in (3, 4, 6):
        best = searched(bench.seed, k)[0].best.setting
        tail = Setting(ChainSampler(tuple(999 - s for s in uniform_steps(k))))
        found, even, late = (held_out(bench, model, s) for s in (best, uniform(k), tail))
        ratios[k] = found.value / even.value
        steps = " ".join(map(str, reversed(best.sampler.steps)))
        said.append(f"K = {k}: {even.value:.4f} even, {late.value:.4f} from the top, {found.value:.4f} at {steps}")
    measured = Estimate(
        max(ratios.values()), math.nan, N_TEST, "energy distance, searched over even steps, worst of three"
    )
    return Verdict(measured.value <= 0.25, measured, 0.25, "; ".join(said))


def beats_random(bench: Bench) -> Verdict:
    """At equal budgets, three searches of either kind on the same noise; and the first 25 of each random search."""
    model, goal, found = Oracle(mixture(), name="ring"), fitness(bench, 300, 1000), {}
    tuner = AutoDiffusion(population=30, epochs=9, mutations=15, crossovers=6)
    for name, kind in (("evolution", tuner), ("random", random_search(299))):
        studies = [run(model, uniform(4), goal, kind, 10 * bench.seed + i) for i in range(3)]
        found[name] = [s.best.value for s in studies]
        n = len(studies[0].trials)
    few = [min(t.value for t in s.trials[1:26]) for s in studies]
    medians = {name: float(np.median(values)) for name, values in (*found.items(), ("25 random", few))}
    said = ", ".join(f"{name} {value:.5f}" for name, value in medians.items())
    gap = medians["evolution"] - medians["random"]
    measured = Estimate(gap, math.nan, 300, f"median best fitness of {n} candidates, evolution minus random")
    return Verdict(gap < 0 and medians["evolution"] < medians["25 random"], measured, 0.0, f"K = 4: {said}")


def archive(bench: Bench) -> Verdict:
    study, calls = searched(bench.seed, 4)
    values = [t.value for t in study.trials]
    best = np.minimum.accumulate(values)
    settings = [t.setting.key() for t in study.trials]
    batches = math.ceil(1000 / study.objective.batch)
    repeats = len(settings) - len(set(settings))
    holds = bool((np.diff(best) <= 0).all()) and repeats == 0 and calls == len(set(settings)) * 4 * batches
    measured = Estimate(
        calls / (len(set(settings)) * 4 * batches), 0.0, len(settings), "network calls over candidates times steps"
    )
    text = f"{len(settings)} candidates, {repeats} of them twice, {calls} calls of at most 256 samples"
    return Verdict(holds, measured, 1.0, text)


def marginals(bench: Bench) -> Verdict:
    rng, worst = np.random.default_rng(bench.seed), 0.0
    for levels in ("iddpm", "ddpm", "scaled-linear"):
        sigmas = np.array(noise_levels(levels)[::-1])
        for _ in range(20):
            steps = rng.choice(1000, int(rng.integers(1, 30)), replace=False)
            chain = ChainSampler(tuple(steps.tolist()), levels)
            kept = np.cumprod(1 - np.array(chain.betas))
            worst = max(worst, float(np.abs(kept - 1 / (1 + sigmas[np.sort(steps)] ** 2)).max()))
    measured = Estimate(worst, 0.0, 60, "largest difference of abar, 60 subsets of three chains")
    return Verdict(worst < 1e-12, measured, 1e-12, "up to 29 steps of 1000")


def curse(bench: Bench) -> Verdict:
    """Of several searches each: how much better the winner looked than it is."""
    model, gaps = Oracle(mixture(), name="ring"), {}
    for n, repeats in ((100, 6), (2000, 2)):
        found = []
        for i in range(repeats):
            best = run(model, uniform(4), fitness(bench, n, stream=10 + i), seed=10 * bench.seed + i).best
            found.append(held_out(bench, model, best.setting).value - best.value)
        gaps[n] = found
    small, large = (np.array(gaps[n]) for n in (100, 2000))
    error = float(small.std(ddof=1) / math.sqrt(len(small)))
    measured = Estimate(
        float(small.mean()), error, len(small), "held-out minus search fitness of the winner, 100 samples"
    )
    text = f"{large.mean():.5f} with 2000 samples; searches {len(small)} and {len(large)}"
    holds = small.mean() > 2 * error and small.mean() > large.mean()
    return Verdict(bool(holds), measured, max(float(large.mean()), 2 * error), text)


def active(net: nn.Module, run) -> int:
    """Blocks that act while `run()` asks a U-Net, counted in the blocks themselves."""
    seen = []
    parts = [
        m.conv1 if isinstance(m, ResBlock) else m.qkv for m in net.modules() if isinstance(m, ResBlock | PixelAttention)
    ]
    hooks = [p.register_forward_hook(lambda *a: seen.append(1)) for p in parts]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return len(seen)


def layers(bench: Bench) -> Verdict:
    """Nothing left out is the network itself; a whole search's candidates stay in budget, some of them counted as they sample."""
    model, g = bundled.load("digits"), bench.generator()
    n, net = model.n_layers, model.net
    x, labels = torch.randn(8, *model.shape, generator=g, dtype=torch.float64), torch.arange(8)
    same = all(
        torch.equal(LayersLeftOut(model, [(s, ())]).denoise(s * x, s, labels), model.denoise(s * x, s, labels))
        for s in (0.1, 1.0, 10.0)
    )
    none = active(net, lambda: LayersLeftOut(model, [(1.0, range(n))]).denoise(x, 1.0, labels))
    start = Setting(OdeSampler(DDIM(), TimeGrid.karras(5, *model.sigma_range)))

    def anything(m, sampler, seeds):
        return float(sum(math.sin(9 * s) for s in sampler.grid.times))

    tuner = AutoDiffusion(population=30, epochs=9, mutations=15, crossovers=6, left_out=(0.0, 0.4))
    study = run(model, start, FunctionObjective(anything, range(2)), tuner, bench.seed)
    used = [layers_used(t.setting, n) for t in study.trials]
    steps = [t.setting.sampler.grid.n_steps for t in study.trials]
    some = [t.setting for t in study.trials[:: max(len(used) // 12, 1)]]
    seeds = Seeds(range(2))
    counted = [active(net, lambda s=s: s.sampler.sample(s.on(model)[0], seeds.normal(model.shape))) for s in some]
    exact = counted == [layers_used(s, n) for s in some]
    measured = Estimate(float(max(used)), 0.0, len(used), f"blocks of the dearest candidate, budget {5 * n}")
    text = (
        f"bit for bit with nothing left out: {same}; all left out: {none} blocks act; counted while sampling as promised: {exact}; "
        f"{min(steps)} to {max(steps)} steps, {sum(u < n * k for u, k in zip(used, steps, strict=True))} of {len(used)} leave blocks out"
    )
    holds = same and none == 0 and exact and max(used) <= 5 * n and max(steps) > 5
    return Verdict(holds, measured, float(5 * n), text)


def transfer(bench: Bench) -> Verdict:
    """Two networks of other seeds; steps found with one, held out on the other."""
    nets = [Bench(bench.folder, seed=bench.seed + extra, show=bench.show).model(toy()) for extra in (0, 500)]
    data = bundled.load("oracle-8gaussians").mixture
    goal = lambda stream, n, m: MetricObjective(  # noqa: E731
        energy_distance(points_space(2), data.sample(m, bench.generator(stream))[0]),
        range(10_000_000 * (bench.seed + 1) + 200_000 * stream, 10_000_000 * (bench.seed + 1) + 200_000 * stream + n),
    )
    best = run(nets[0], uniform(4), goal(1, 500, 2000), seed=bench.seed).best.setting
    test = goal(2, 4000, 4000)
    found, even = (test.measure(*s.on(nets[1])) for s in (best, uniform(4)))
    gap = found.minus(even)
    measured = Estimate(
        gap.value, gap.std_error, gap.n, "energy distance on the other network, searched minus even steps"
    )
    text = f"K = 4: {even.estimate.value:.4f} even, {found.estimate.value:.4f} at {' '.join(map(str, best.sampler.steps[::-1]))}"
    return Verdict(gap.value < -2 * gap.std_error, measured, 0.0, text)


def scale(bench: Bench) -> Verdict:
    """Data ten times as wide need ten times the noise to hide in: no schedule serves both."""
    tops = {}
    for wide in (1.0, 10.0):
        goal = fitness(bench, 500, scale=wide)
        tops[wide] = run(Oracle(mixture(wide), name="ring"), uniform(4), goal, seed=bench.seed).best.setting.sampler
    ratio = tops[10.0].sigmas[0] / tops[1.0].sigmas[0]
    said = "; ".join(f"{' '.join(map(str, s.steps[::-1]))} at scale {wide:g}" for wide, s in tops.items())
    measured = Estimate(
        ratio, math.nan, 500, "highest sigma of the steps found, data ten times as wide over data as they are"
    )
    return Verdict(ratio > 3, measured, 3.0, said)


@lru_cache(maxsize=8)
def on_digits(seed: int) -> tuple[MetricObjective, Setting, dict[str, Setting]]:
    """The held-out objective, five even steps (Karras), and what two searches of one size make of them: steps, and steps with blocks."""
    model = bundled.load("digits")
    start = Setting(OdeSampler(DDIM(), TimeGrid.karras(5, *model.sigma_range)))
    first = 20_000_000 * (seed + 1)
    goal = MetricObjective(metric_for(model, "fd"), range(first, first + 300))
    sizes = {"population": 10, "epochs": 7, "parents": 5, "mutations": 5, "crossovers": 3}
    kinds = {"steps": AutoDiffusion(**sizes), "blocks": AutoDiffusion(**sizes, left_out=(0.0, 0.25))}
    found = {name: run(model, start, goal, tuner, seed).best.setting for name, tuner in kinds.items()}
    return goal.on(range(first + 5_000_000, first + 5_000_000 + 1500)), start, found


def digits_steps(bench: Bench) -> Verdict:
    model = bundled.load("digits")
    test, start, found = on_digits(bench.seed)
    after, before = (test.measure(*s.on(model)) for s in (found["steps"], start))
    gap = after.minus(before)
    text = f"{before.estimate.value:.3f} on Karras's grid, {after.estimate.value:.3f} on {found['steps'].describe()}"
    measured = Estimate(gap.value, gap.std_error, gap.n, "change of FD[digits-cnn] at 5 calls, held out")
    return Verdict(gap.value < -2 * gap.std_error, measured, 0.0, text)


def digits_layers(bench: Bench) -> Verdict:
    """At the blocks of five full calls and as many candidates."""
    model = bundled.load("digits")
    test, _, found = on_digits(bench.seed)
    joint, steps = (test.measure(*found[name].on(model)) for name in ("blocks", "steps"))
    gap, used = joint.minus(steps), layers_used(found["blocks"], model.n_layers)
    text = (
        f"{steps.estimate.value:.3f} with steps alone, {joint.estimate.value:.3f} with {used} of {5 * model.n_layers} blocks: "
        f"{found['blocks'].describe()}"
    )
    measured = Estimate(gap.value, gap.std_error, gap.n, "FD[digits-cnn], steps and blocks minus steps, held out")
    return Verdict(gap.value < -2 * gap.std_error, measured, 0.0, text)


STEPS, BLOCKS = "time step search", "architecture search"
CLAIMS = (
    Claim("searched steps beat even ones on held-out noise, 3 to 6 steps", STEPS, beats_uniform, 1.5),
    Claim(
        "evolution finds better candidates than random search of the same size", "search algorithm", beats_random, 0.4
    ),
    Claim("the best so far never gets worse and no candidate is measured twice", "search algorithm", archive, 0.4),
    Claim("a respaced chain has the marginals of the full one", "respacing", marginals, 0.1),
    Claim("the winner looks better than it is, the more so the fewer samples", STEPS, curse, 0.6),
    Claim("the steps found follow the scale of the data", STEPS, scale, 0.2),
    Claim("nothing left out changes nothing, and no candidate exceeds the budget", BLOCKS, layers, 0.1, "digits"),
    Claim("steps found with one network serve another one", "transfer", transfer, 0.8),
    Claim("searched noise levels beat Karras's at five calls", STEPS, digits_steps, 1.0, "digits"),
    Claim("blocks left out pay for better samples at the same number of blocks", BLOCKS, digits_layers, 1.0, "digits"),
)
