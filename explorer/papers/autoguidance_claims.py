"""Claims of autoguidance: exact in the plane on the first of two fractal trees, then on bundled images of 32x32.

In the plane: outlier, a sample whose true log-density lies below the 1 % quantile of true samples; coverage, share of 2048 true points
with a sample within the distance that 95 % of them have to another true set. Weights are chosen on other noise than is reported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from explorer.data import load_dataset, oracle
from explorer.live import metric_for
from explorer.metrics.base import Estimate, Metric
from explorer.metrics.features import points_space
from explorer.metrics.kernel import energy_distance
from explorer.models import bundled
from explorer.models.base import Denoiser, Oracle, Preconditioned
from explorer.models.guidance import MultiGuided, Truncated, blended
from explorer.models.wrappers import Guided
from explorer.papers.autoguidance import (
    P_MEAN,
    P_STD,
    Corrupted,
    ExactScoreMatching,
    best_weight,
    compatibility,
    drawn,
    guide_of,
    noisy,
    recipe,
)
from explorer.reproduction import Bench, Claim, Need, Verdict
from explorer.sampling import Heun, OdeSampler, TimeGrid
from explorer.tuning import Guidance, MetricObjective, Setting

CLASS_A = "tree-a"
N = 2048
WEIGHTS = (1.25, 1.5, 2.0, 2.5, 3.0)


def trained(bench: Bench, full: bool = False) -> tuple[Preconditioned, Preconditioned]:
    """D1 and its guide D0; `full` at the paper's budget, 16 times that of ours for D1 and 8 times for D0."""
    return bench.model(recipe("tree" + "-full" * full)), bench.model(recipe("tree-weak" + "-full" * full))


@dataclass(frozen=True)
class Quality:
    """Of samples in the plane: share of outliers, mean true log-density (cut at -20), coverage, mean standard deviation, mean point."""

    outliers: float
    log_density: float
    coverage: float
    spread: float
    mean: Tensor
    n: int

    def __str__(self):
        return f"outliers {self.outliers:.3f}, ln p {self.log_density:.2f}, coverage {self.coverage:.2f}"


def quality(x: Tensor, seed: int) -> Quality:
    mixture, g = oracle(CLASS_A), torch.Generator().manual_seed(77_000 + seed)
    real, other, calm = (mixture.sample(len(x), g)[0] for _ in range(3))
    limit = mixture.log_prob(calm).quantile(0.01)
    radius = float(torch.tensor(cKDTree(other.numpy()).query(real.numpy())[0]).quantile(0.95))
    covered = cKDTree(x.numpy()).query(real.numpy())[0] <= radius
    log = mixture.log_prob(x)
    spread = float(x.var(0).mean().sqrt())
    return Quality(
        float((log < limit).double().mean()),
        float(log.clamp_min(-20).mean()),
        float(covered.mean()),
        spread,
        x.mean(0),
        len(x),
    )


def drawn_by(bench: Bench, model: Denoiser, part: int = 1, n: int = N) -> Quality:
    """Quality of n samples; part 0 is the noise on which weights are chosen, 1 that which is reported."""
    return quality(drawn(model, oracle(CLASS_A), n, bench.generator(500 + part)), 10 * bench.seed + part)


@dataclass(frozen=True)
class Best(Need):
    """The weight with the fewest outliers among those of `WEIGHTS` that keep the tree, chosen on half as many samples of other noise.

    To keep it: to lose less than 0.03 of the coverage there. Then reported: samples at that weight, and at none.
    """

    full: bool = False

    def describe(self):
        return {
            "best of": WEIGHTS,
            "models": [recipe(n + "-full" * self.full).describe() for n in ("tree", "tree-weak")],
        }

    def make(self, bench):
        main, guide = trained(bench, self.full)
        plain = drawn_by(bench, main, 0, N // 2)
        tried = {w: drawn_by(bench, Guided(main, w, guide), 0, N // 2) for w in WEIGHTS}
        kept = [w for w, q in tried.items() if plain.coverage - q.coverage < 0.03] or [WEIGHTS[0]]
        w = min(kept, key=lambda w: tried[w].outliers)
        return w, drawn_by(bench, Guided(main, w, guide)), drawn_by(bench, main)

    def stand_in(self, bench):
        return None


def data(bench: Bench) -> Verdict:
    both, worst = oracle("tree"), 0.0
    counts = torch.bincount(both.labels).tolist()
    x0, _ = both.sample(256, bench.generator())
    for sigma in (0.01, 0.1, 1.0):
        x = x0 + sigma * torch.randn(x0.shape, generator=bench.generator(1), dtype=x0.dtype)
        h = 1e-6 * torch.eye(2, dtype=x.dtype)
        slope = torch.stack(
            [(both.log_prob(x + d, 1.0, sigma) - both.log_prob(x - d, 1.0, sigma)) / 2e-6 for d in h], 1
        )
        worst = max(worst, float((both.score(x, 1.0, sigma) - slope).norm() / slope.norm()))
    std, mean = both.cov().diagonal().sqrt(), both.mean()
    holds = counts == [1016, 1016] and bool((std - 0.5).abs().max() < 0.01 and mean.abs().max() < 0.01) and worst < 1e-3
    text = f"{counts} components, mean ({mean[0]:.4f}, {mean[1]:.4f}), std ({std[0]:.4f}, {std[1]:.4f})"
    return Verdict(
        holds, Estimate(worst, 0.0, 256, "relative error of the score against differences of ln p"), 1e-3, text
    )


def identity(bench: Bench) -> Verdict:
    main, guide = trained(bench)

    def ends(model: Denoiser) -> Tensor:
        return drawn(model, oracle(CLASS_A), 64, bench.generator(3))

    plain = ends(main)
    same = {
        "w = 1": ends(Guided(main, 1.0, guide)),
        "D0 = D1": ends(Guided(main, 3.0, main)),
        "two guides of weight 1": ends(MultiGuided(main, ((guide, 1.0), (main, 1.0)))),
    }
    w_u, w_c = blended(3.0, 1.0)
    whole = ends(MultiGuided(main, ((bench.model(recipe("tree-both")), w_u), (guide, w_c))))
    same["all autoguidance"] = plain + (whole - ends(Guided(main, 3.0, guide)))
    gaps = {name: float((x - plain).abs().max()) for name, x in same.items()}
    worst = max(gaps, key=gaps.__getitem__)
    measured = Estimate(gaps[worst], 0.0, 64, "largest difference of samples where guidance must do nothing")
    # float32 networks inside a float64 state: two ways to add the same numbers, 63 evaluations
    return Verdict(gaps[worst] < 1e-4, measured, 1e-4, ", ".join(f"{k}: {v:.1e}" for k, v in gaps.items()))


def worse_in_the_right_way(bench: Bench, full: bool = False) -> Verdict:
    main, guide = trained(bench, full)
    mixture, g = oracle(CLASS_A), bench.generator(4)
    x0, losses = mixture.sample(8192, g)[0].float(), []
    for model in (main, guide):
        method = ExactScoreMatching(model.net, mixture)
        losses.append(float(method.loss(x0, torch.Generator().manual_seed(bench.seed))[0].mean()))
    cosines = []
    for u in torch.linspace(0.1, 0.9, 9, dtype=torch.float64):
        sigma = math.exp(P_MEAN + P_STD * float(torch.special.ndtri(u)))
        x = noisy(mixture, 512, sigma, g)
        cosines.append(compatibility(main, guide, Oracle(mixture), x, sigma))
    every = torch.cat(cosines)
    mean, error = float(every.mean()), float(every.std()) / math.sqrt(len(every))
    text = f"loss {losses[0]:.4f} and {losses[1]:.4f} of the guide; cosine by decile of sigma " + ", ".join(
        f"{float(c.mean()):.2f}" for c in cosines
    )
    measured = Estimate(mean, error, len(every), "mean cosine of D1 - D0 with D_true - D1")
    return Verdict(mean > 2 * error and losses[1] > 1.5 * losses[0], measured, 0.0, text)


def at_outliers(bench: Bench, full: bool = False) -> Verdict:
    """The same direction where it matters: about samples that the model alone places off the tree, at low noise, weighted by size."""
    main, guide = trained(bench, full)
    mixture, g = oracle(CLASS_A), bench.generator(6)
    own, calm = drawn(main, mixture, N, g), mixture.sample(N, g)[0]
    off = own[mixture.log_prob(own) < mixture.log_prob(calm).quantile(0.01)]
    pooled, error, said = 1.0, 0.0, []
    for sigma in (0.01, 0.02, 0.05):
        x = off + sigma * torch.randn(off.shape, generator=g, dtype=off.dtype)
        with torch.no_grad():
            d1, d0, d = (model.denoise(x, sigma) for model in (main, guide, Oracle(mixture)))
        across, push, lack = ((d1 - d0) * (d - d1)).sum(1), (d1 - d0).square().sum(1), (d - d1).square().sum(1)
        size = math.sqrt(float(push.mean() * lack.mean()))
        found = float(across.mean()) / size
        half = found / 2 * (push / push.mean() + lack / lack.mean())  # by the derivatives of numerator and denominator
        said.append(f"{found:.2f}")
        if found < pooled:
            pooled, error = found, float((across / size - half).std()) / math.sqrt(len(off))
    measured = Estimate(
        pooled, error, len(off), "pooled cosine of D1 - D0 with D_true - D1 about outliers, least of 3 levels"
    )
    return Verdict(pooled > 2 * error, measured, 0.0, ", ".join(said) + " at sigma 0.01, 0.02, 0.05")


def fewer_outliers(bench: Bench, full: bool = False) -> Verdict:
    w, guided, plain = bench.need(Best(full))
    ratio = guided.outliers / plain.outliers
    error = ratio * math.sqrt(sum((1 - q.outliers) / (q.outliers * N) for q in (guided, plain)))
    measured = Estimate(ratio, error, N, "outliers of guided over unguided samples, the chosen w")
    holds = ratio <= 0.85 and guided.log_density > plain.log_density and plain.coverage - guided.coverage < 0.05
    return Verdict(holds, measured, 0.85, f"w {w:g}: {guided}; unguided: {plain}")


def truncation(bench: Bench) -> Verdict:
    main, _ = trained(bench)
    cut, true = (
        drawn_by(bench, Truncated(main, 1.4)),
        quality(oracle(CLASS_A).sample(N, bench.generator(9))[0], bench.seed),
    )
    w, guided, plain = bench.need(Best())
    ratio = cut.spread / true.spread
    holds = (
        cut.outliers < min(0.02, plain.outliers) and cut.coverage < 0.6 and ratio < 0.5 < guided.spread / true.spread
    )
    text = f"{cut}, spread {cut.spread:.3f}; the data's {true.spread:.3f}, guided at w {w:g} {guided.spread:.3f}"
    return Verdict(
        holds, Estimate(ratio, 0.0, N, "spread of samples with the score times 1.4 over that of the data"), 0.5, text
    )


def classifier_free(bench: Bench, w: float = 2.0) -> Verdict:
    main, guide = trained(bench)
    free, auto = (drawn_by(bench, Guided(main, w, g)) for g in (bench.model(recipe("tree-both")), guide))
    both = oracle("tree")
    means = [both.of_class(k).mean() for k in (0, 1)]
    away = (means[0] - means[1]) / (means[0] - means[1]).norm()
    shifts = [float((q.mean - means[0]) @ away) for q in (free, auto)]
    lost = auto.coverage - free.coverage
    error = math.sqrt(sum(q.coverage * (1 - q.coverage) / N for q in (free, auto)))
    measured = Estimate(lost, error, N, f"coverage of autoguidance minus that of classifier-free guidance, w = {w:g}")
    text = f"classifier-free {free}, mean moved {shifts[0]:+.3f} from the other class; autoguidance {auto}, {shifts[1]:+.3f}"
    return Verdict(lost > 2 * error and shifts[0] > max(shifts[1], 0), measured, 0.0, text)


def too_weak(bench: Bench, w: float = 3.0) -> Verdict:
    main, guide = trained(bench)
    weak = bench.model(guide_of(n_steps=64))
    poor, good = (drawn_by(bench, Guided(main, w, g)) for g in (weak, guide))
    lost = good.coverage - poor.coverage
    error = math.sqrt(sum(q.coverage * (1 - q.coverage) / N for q in (good, poor)))
    measured = Estimate(lost, error, N, f"coverage lost by a guide of 64 steps in place of 512, w = {w:g}")
    return Verdict(lost > 2 * error, measured, 0.0, f"64 steps: {poor}; 512 steps: {good}")


def corruptions(bench: Bench) -> Verdict:
    """Energy distance from samples of the model before it was corrupted, as the paper compares FIDs with that of the good model."""
    main, _ = trained(bench)
    mixture, n = oracle(CLASS_A), N // 2
    good = drawn(main, mixture, n, bench.generator(502))
    kinds = {
        "noise by noise": ({"noise": 0.1}, {"noise": 0.2}),
        "dropout by dropout": ({"dropout": 0.05}, {"dropout": 0.1}),
        "noise by dropout": ({"noise": 0.1}, {"dropout": 0.1}),
    }
    found: dict[str, dict[float, Metric]] = {}
    for kind, (mine, worse) in kinds.items():
        found[kind] = {}
        for w in (1.0, 1.5, 2.0):
            models = Corrupted(main, **mine, seed=bench.seed), Corrupted(main, **worse, seed=bench.seed + 1000)
            metric = energy_distance(points_space(2), good)
            metric.update(drawn(Guided(models[0], w, models[1]), mixture, n, bench.generator(503)))
            found[kind][w] = metric
    values = {kind: {w: m.compute().value for w, m in each.items()} for kind, each in found.items()}
    best = {kind: min(each, key=each.__getitem__) for kind, each in values.items()}
    harm = found["noise by dropout"][1.5].difference(found["noise by dropout"][1.0])
    measured = Estimate(harm.value, harm.std_error, n, "energy distance of mismatched corruptions, w = 1.5 minus w = 1")
    said = "; ".join(f"{kind} " + ", ".join(f"{v:.1e}" for v in each.values()) for kind, each in values.items())
    holds = best["noise by dropout"] == 1 and best["noise by noise"] > 1 and best["dropout by dropout"] > 1
    return Verdict(holds, measured, 0.0, f"{said} at w 1, 1.5, 2")


PICTURES = OdeSampler(Heun(), TimeGrid.karras(6, 0.002, 80.0))


def pictures(bench: Bench, guide: str = "shapes32-early", n: int = 480) -> Verdict:
    """Chosen among 1.1, 1.25 and 1.5 on 240 samples, reported on `n` of other noise, paired with no guidance."""
    model = bundled.load("shapes32")
    first = 4_000_000 + 100_000 * bench.seed
    search = MetricObjective(metric_for(model, "fd"), range(first, first + 240))
    held = search.on(range(first + 50_000, first + 50_000 + n))

    def measured(objective: MetricObjective, w: float):
        setting = Setting(PICTURES, (Guidance(w, guide=guide),) if w != 1 else ())
        return objective.measure(*setting.on(model))

    w = min((1.1, 1.25, 1.5), key=lambda w: measured(search, w).estimate.value)
    guided, plain = measured(held, w), measured(held, 1.0)
    change = guided.minus(plain)
    value = Estimate(change.value, change.std_error, n, f"change of FD[shapes32-cnn] by the guide {guide}, held out")
    text = f"w {w:g}: {guided.estimate}; none: {plain.estimate}; 11 and 22 calls of Heun"
    return Verdict(change.value < -2 * change.std_error, value, 0.0, text)


def on_new_data(bench: Bench, guides: Sequence[str] = ("shapes32-early", "shapes32-small"), n: int = 400) -> Verdict:
    """What the loss itself says: the weight that denoises pictures best which no model has seen, by noise level."""
    test, model = load_dataset("shapes32", "test"), bundled.load("shapes32")
    rows = torch.randperm(len(test), generator=bench.generator())[:n]
    x0, labels = test.x[rows], test.labels[rows]
    eps = torch.randn(x0.shape, generator=bench.generator(1), dtype=torch.float64)
    found, said = {}, []
    for name in guides:
        guide = bundled.load(name)
        found[name] = [best_weight(model, guide, x0, eps, sigma, labels) for sigma in (0.1, 0.5, 2.0)]
        said.append(f"{name} " + ", ".join(f"{e.value:.3f} ± {e.std_error:.3f}" for e in found[name]))
    best = found[guides[0]][0]
    measured = Estimate(
        best.value, best.std_error, n, f"guidance weight of least denoising loss, {guides[0]}, sigma 0.1"
    )
    return Verdict(best.value > 1 + 2 * best.std_error, measured, 1.0, "; ".join(said) + " at sigma 0.1, 0.5, 2")


TOY, FULL = "Appendix C", "trained at the paper's budget, "
CLAIMS = (
    Claim("the trees are a mixture whose score is exact", TOY, data, 0.1),
    Claim("guidance of weight 1, or by the model itself, changes nothing", "Eq. 3", identity, 2.0),
    Claim("the guide is worse than the model in the direction in which the model errs", "Sec. 3", worse_in_the_right_way, 0.2),
    Claim("about outliers at low noise, the push points to what the model lacks", "Fig. 2", at_outliers, 0.1),
    Claim("autoguidance leaves fewer outliers and keeps the branches", "Fig. 1", fewer_outliers, 1.0),
    Claim("naive truncation removes outliers and most of the tree", "Fig. 1", truncation, 0.2),
    Claim("classifier-free guidance of the same weight loses more branches and avoids the other class", "Fig. 1", classifier_free, 0.5),
    Claim("too weak a guide pushes too far", "Sec. 5", too_weak, 0.5),
    Claim("guidance helps where both models suffer from the same corruption, not from different ones", "Sec. 4", corruptions, 1.0),
    Claim("at low noise the denoising loss on new pictures is least at a weight above 1", "Sec. 3", on_new_data, 0.5, "shapes"),
    Claim("a less trained guide lowers the distance of pictures to the data", "Table 1", pictures, 2.0, "shapes"),
    Claim(FULL + "the guide is worse where the model errs", "Sec. 3", partial(worse_in_the_right_way, full=True), 17.0),
    Claim(FULL + "its push points to what the model lacks", "Fig. 2", partial(at_outliers, full=True), 0.1),
    Claim(FULL + "it leaves fewer outliers, and the branches", "Fig. 1", partial(fewer_outliers, full=True), 0.5),
)  # fmt: skip
