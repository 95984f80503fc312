"""What a small run must show of DMD2 (Yin et al. 2024, arXiv 2405.14867): two time scales, the GAN, backward simulation.

On lines and planes the real score is exact, and an affine generator's own score is exact too, so what a learnt fake score gets
wrong can be seen. The digits are distilled from the bundled teacher.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from explorer.data import load_dataset, oracle
from explorer.metrics.base import Estimate
from explorer.metrics.features import feature_space, points_space
from explorer.metrics.frechet import Reference
from explorer.metrics.points import SlicedW2
from explorer.models.base import Oracle
from explorer.nets.mlp import MLP
from explorer.papers.dmd2 import DMD2, FEW, jumps, pictures, plane
from explorer.process.oracles import GaussianMixture
from explorer.process.times import KarrasUniform
from explorer.reproduction import Bench, Claim, Recipe, Verdict
from explorer.reproduction.evaluate import frechet
from explorer.reproduction.needs import Exact
from explorer.sampling.samplers import sample
from explorer.sampling.seeds import Seeds
from explorer.training import EmaPlan, OptimizerPlan, Plan, Tick, seeded, train
from explorer.training.generators import Affine, Points, direction_cosine, mixture_stream, no_score
from explorer.training.matching import Law, own_law

TARGET = GaussianMixture(torch.tensor([[-2.0], [1.5]]), torch.tensor([0.5, 0.4]), weights=torch.tensor([0.3, 0.7]))
PLANE = GaussianMixture(
    torch.tensor([[-2.0, 0.0], [2.0, 0.5], [0.0, 2.5], [1.0, -2.2]]), 0.3, weights=torch.tensor([0.4, 0.3, 0.2, 0.1])
)
BANDS = (0.1, 0.3, 1.0, 3.0)
"""Noise levels at which learnt scores and logits are compared with exact ones."""


def fit(
    mixture: GaussianMixture,
    student: Callable[[], nn.Module],
    fake_score: Callable[[], nn.Module | Law],
    *,
    seed: int,
    steps: int,
    lr: float,
    fake_lr: float,
    teacher: GaussianMixture | None = None,
    band: tuple[float, float] = (0.02, 10.0),
    batch: int = 128,
    kind: str = "adam",
    decay: str = "none",
    tick_steps: int | None = None,
    sigma_data: float = 1.6,
    **settings,
) -> Iterator[Tick]:
    """Ticks of DMD2 on a mixture, the teacher exact."""
    low, high = band
    times, whole = KarrasUniform(low, high, start=0.02, stop=0.98), KarrasUniform(low, high)
    defaults = {"gan_weight": 0.0, "disc_weight": 0.0, "times": times, "fake_times": whole, "gan_times": whole}
    with seeded(seed):
        net, exact = student(), Oracle(teacher or mixture)
        method = DMD2(net, fake_score(), exact, sigma_data=sigma_data, levels=(high,), **(defaults | settings))
    optimizers = {
        name: OptimizerPlan(
            lr=lr if name == "student" else fake_lr,
            kind=kind,
            decay=decay,
            betas=(0.0 if kind == "sgd" else 0.9, 0.999),
        )
        for name in method.nets
    }
    plan = Plan(
        steps, batch, optimizers=optimizers, seed=seed, tick_steps=tick_steps or steps, max_skips=steps,
        emas=(EmaPlan(half_life=20 * batch),), checkpoint_steps=0,
    )  # fmt: skip
    yield from train(method, mixture_stream(mixture, batch, seed), plan)


def last(ticks: Iterator[Tick]) -> DMD2:
    *_, tick = ticks
    return tick.method


RATIOS, REPLICAS = (1, 5, 10), 4
GAUSS = GaussianMixture(torch.ones(1, 1), 0.6)


def failed(student: Affine) -> bool:
    """Collapsed (spread below a tenth of the target's), or diverged (above three times, or as far away, or not a number)."""
    a, b = float(student.a.detach()), abs(float(student.b.detach()))
    return not (0.06 <= b <= 1.8 and abs(a - 1) <= 1.8)


def two_time_scales(bench: Bench) -> Verdict:
    """Stochastic gradient descent, the generator's rate five times that of its critic.

    Over the 12 runs of seeds 0 to 2, 11, 1 and 4 fail at R = 1, 5 and 10: far fewer than at R = 1, and 1 against 4 is chance (Fisher's
    p = 0.3). At R = 10 single steps throw the generator so far, to spreads of 7, 9 and beyond, that the fake score never fits it again.
    """
    rates = {"lr": 5e-2, "fake_lr": 1e-2, "kind": "sgd", "batch": 64, "steps": 1000, "sigma_data": 0.6}
    share = {}
    for ratio in RATIOS:
        seeds = range(REPLICAS * bench.seed, REPLICAS * (bench.seed + 1))
        ends = [last(fit(GAUSS, line, small, seed=s, ratio=ratio, **rates)).nets["student"] for s in seeds]
        share[ratio] = sum(map(failed, ends)) / REPLICAS
    drop = share[1] - share[10]
    measured = Estimate(drop, math.sqrt(0.5 / REPLICAS), REPLICAS, "share of failed runs, R = 1 less R = 10")
    falls = share[1] >= share[5] >= share[10] and drop > 0
    return Verdict(falls, measured, 0.0, ", ".join(f"R = {r}: {share[r]:.0%} fail" for r in RATIOS))


def keeps_up(bench: Bench) -> Verdict:
    """Mean error of the fake score over 200 steps of the generator, with Adam at rates both survive.

    After as many steps of the fake score instead, the order is the reverse: the generator has moved a fifth as far.
    """
    error = {}
    for ratio in (1, 5):
        ticks = fit(
            GAUSS, line, small, seed=bench.seed, ratio=ratio, steps=200 * ratio, lr=1e-2, fake_lr=1e-3,
            tick_steps=20 * ratio, sigma_data=0.6,
        )  # fmt: skip
        error[ratio] = statistics.fmean(map(errors, ticks))
    measured = Estimate(error[5] / error[1], 0.0, 10, "error of the fake score at R = 5 over that at R = 1")
    return Verdict(error[5] < error[1], measured, 1.0, f"{error[1]:.3f} at R = 1, {error[5]:.3f} at R = 5")


def line() -> Affine:
    return Affine([0.0], [1.0])


def small() -> MLP:
    return MLP(1, 16, 1)


def errors(tick: Tick) -> float:
    student, g = tick.method.nets["student"], torch.Generator().manual_seed(0)
    x = (student.a + student.b * torch.randn(512, 1, generator=g)).detach()
    return statistics.fmean(direction_cosine(tick.method, x, student.law(), sigma, g)[1] for sigma in BANDS)


def isolated(bench: Bench) -> Verdict:
    """Whatever one update leaves on the networks it does not name."""
    with seeded(bench.seed):
        method = DMD2(MLP(1, 32, 1), MLP(1, 32, 1), Oracle(TARGET), sigma_data=1.6, ratio=1, levels=(10.0,))
    original, touched, seen = method.updates, [], []

    def watched(batch, progress):
        for update in original(batch, progress):
            others = [net for name, net in method.nets.items() if name not in update.on]
            before = [p.detach().clone() for net in others for p in net.parameters()]
            yield update
            after = [p for net in others for p in net.parameters()]
            touched.extend(p.grad is not None or not torch.equal(p, q) for p, q in zip(after, before, strict=True))
            seen.append(update.on)

    method.updates = watched
    list(train(method, mixture_stream(TARGET, 64, bench.seed), Plan(4, 64, optimizer=OptimizerPlan(lr=1e-2))))
    count = sum(touched)
    measured = Estimate(count, 0.0, len(touched), "tensors of other networks with a gradient or moved")
    order = [on for on, _ in zip(seen, range(2), strict=False)]
    right = order == [("student",), ("fake_score", "disc")]
    return Verdict(count == 0 and right, measured, 0.0, f"{len(seen)} updates in the order {order}")


@functools.lru_cache(1)
def at_rest(seed: int) -> DMD2:
    """Fake score and head trained on N(0.4, 0.8^2) against TARGET; the student does not move."""
    return last(fit(
        TARGET, lambda: Affine([0.4], [0.8]), lambda: MLP(1, 64, 2), seed=seed, steps=2000, batch=256, decay="cosine",
        lr=1e-30, fake_lr=2e-3, disc_weight=1.0, ratio=10**9,
    ))  # fmt: skip


def discriminator(bench: Bench) -> Verdict:
    method, g = at_rest(bench.seed), torch.Generator().manual_seed(1)
    law, correlations = method.nets["student"].law(), []
    for sigma in BANDS:
        both = torch.cat([law.mixture.sample(2000, g)[0], TARGET.sample(2000, g)[0]]).float()
        x_t, level = both + sigma * torch.randn(both.shape, generator=g), torch.full((len(both),), sigma)
        with torch.no_grad():
            logit = method.logits(x_t, level)
        exact = (method.teacher.log_prob(x_t, level) - law.log_prob(x_t, level)).clamp(-10, 10)
        correlations.append(float(torch.corrcoef(torch.stack([logit, exact]))[0, 1]))
    measured = Estimate(min(correlations), 0.0, 4000, "correlation of logit and ln p/q, worst level")
    return Verdict(min(correlations) > 0.95, measured, 0.95, by_level(correlations))


def learnt_direction(bench: Bench) -> Verdict:
    method, g = at_rest(bench.seed), torch.Generator().manual_seed(1)
    law = method.nets["student"].law()
    x = law.mixture.sample(4000, g)[0].float()
    cosines = [direction_cosine(method, x, law, sigma, g)[0] for sigma in BANDS]
    measured = Estimate(statistics.fmean(cosines), 0.0, 4000, "mean cosine of learnt and exact direction")
    return Verdict(measured.value > 0.95, measured, 0.95, by_level(cosines))


def by_level(values: list[float]) -> str:
    return ", ".join(f"{v:.3f} at {s:g}" for v, s in zip(values, BANDS, strict=True))


def distance(real: Tensor, x: Tensor) -> Estimate:
    metric = SlicedW2(points_space(real.shape[1]), real)
    metric.update(x)
    return metric.compute()


SHIFT = 0.25


def moved_ring() -> Exact:
    """The ring of the toy, 0.25 to the right: 4 standard deviations of a mode, a third of the radius."""
    ring = oracle("8gaussians")
    means = ((float(x) + SHIFT, float(y)) for x, y in ring.means)
    return Exact(tuple(means), float(ring.variances[0].sqrt()))


def misled(gan_weight: float, disc_weight: float) -> Recipe:
    """The toy's student with a wrong teacher."""
    name = "toy-dmd2-wrong-teacher" + ("" if gan_weight else "-no-gan")
    recipe = shortened(plane("8gaussians", name=name, gan_weight=gan_weight, disc_weight=disc_weight), 1500, 256)
    return dataclasses.replace(recipe, needs={**recipe.needs, "teacher": moved_ring()})


def gan_corrects(bench: Bench) -> Verdict:
    """Without the GAN the student must follow its teacher for this to mean anything.

    Both weights of the GAN are 1. With the toy recipe's 0.05 and 0.1 so short a run corrects nothing: 0.177 from the data against 0.161
    without (seed 0).
    """
    real, wrong = (
        law.sample(8000, torch.Generator().manual_seed(1))[0] for law in (oracle("8gaussians"), moved_ring().mixture)
    )
    seeds = Seeds(range(4000 * bench.seed, 4000 * (bench.seed + 1)))
    alone, both = (
        sample(bench.model(recipe), jumps((80.0,)), seeds.fresh()) for recipe in (misled(0.0, 0.0), misled(1.0, 1.0))
    )
    (to_data, to_teacher), (corrected, still) = ((distance(real, x), distance(wrong, x)) for x in (alone, both))
    ratio = corrected.value / to_data.value
    error = ratio * math.hypot(corrected.std_error / corrected.value, to_data.std_error / to_data.value)
    measured = Estimate(ratio, error, corrected.n, "sliced W2 to the data with GAN over without")
    gaps = (
        f"{to_data.value:.3f} to the data and {to_teacher.value:.3f} to the teacher's law",
        f"{corrected.value:.3f} and {still.value:.3f}",
    )
    text = f"without {gaps[0]}; with {gaps[1]}"
    return Verdict(ratio <= 0.75 and to_teacher.value < to_data.value, measured, 0.75, text)


def backward_simulation(bench: Bench) -> Verdict:
    """Half the steps and batch of the toy's recipe.

    On the mean of seeds 0 to 2 nothing separates own states (0.084), noised data (0.088) and one step (0.084), each +- 0.01 to 0.02.
    """
    real = oracle("8gaussians").sample(8000, torch.Generator().manual_seed(1))[0]
    own, other = (
        bench.model(shortened(plane("8gaussians", FEW, f"toy-dmd2-4step-{name}", simulate=simulate), 1500, 128))
        for simulate, name in ((True, "own"), (False, "noised"))
    )
    seeds = Seeds(range(4000))
    four, one, theirs = (
        distance(real, sample(model, jumps(levels), seeds))
        for model, levels in ((own, FEW), (own, FEW[:1]), (other, FEW))
    )
    measured = Estimate(four.value, four.std_error, four.n, "sliced W2, own states, 4 steps")
    holds = four.value <= theirs.value and four.value <= one.value
    return Verdict(
        holds, measured, min(theirs.value, one.value), f"noised data {theirs.value:.4f}; one step {one.value:.4f}"
    )


def spread(bench: Bench, law: Law) -> tuple[Tensor, float]:
    """400 points after 1 500 steps of exact scores, and their variance over that of PLANE."""
    start = 0.5 * torch.randn(400, 2, generator=torch.Generator().manual_seed(bench.seed))
    method = last(
        fit(
            PLANE,
            lambda: Points(start),
            lambda: law,
            seed=bench.seed,
            steps=1500,
            batch=400,
            lr=0.03,
            fake_lr=1.0,
            band=(0.05, 5.0),
            ratio=1,
        )  # fmt: skip
    )
    x = method.nets["student"].points.detach().double()
    return x, float(x.var(0).sum() / PLANE.cov().trace())


def points_cover(bench: Bench) -> Verdict:
    x, ratio = spread(bench, own_law)
    far, mode = torch.cdist(x, PLANE.means).min(1)
    near = float((far < 0.9).double().mean())  # three standard deviations
    share = torch.bincount(mode, minlength=4) / len(x)
    covered = int((share > 0.2 * PLANE.log_weights.exp()).sum())
    measured = Estimate(ratio, 0.0, len(x), "variance of the points over that of the data")
    shares = ", ".join(f"{float(s):.2f}" for s in share)
    text = f"{covered} of 4 modes ({shares}), {near:.0%} within three standard deviations"
    return Verdict(covered == 4 and 0.9 <= ratio <= 1.1 and near >= 0.97, measured, 0.9, text)


def real_score_alone(bench: Bench) -> Verdict:
    _, ratio = spread(bench, no_score)
    return Verdict(ratio < 0.1, Estimate(ratio, 0.0, 400, "variance of the points over that of the data"), 0.1, "")


def digits_gan(bench: Bench) -> Verdict:
    with_gan = pictures("digits", "digits", "digits-dmd2-short")
    alone = pictures("digits", "digits", "digits-dmd2-short-r1-no-gan", ratio=1, gan_weight=0.0, disc_weight=0.0)
    data = load_dataset("digits")
    space = feature_space("digits-cnn", data.shape)
    reference = Reference.of(space, data.x, data="digits/train")
    both, dm = (
        frechet(space, reference, sample(bench.model(shortened(recipe, 250, 64)), recipe.sampler, Seeds(range(2000))))
        for recipe in (with_gan, alone)
    )
    return Verdict(both.value < dm.value, both, dm.value, f"without GAN at R = 1: {dm.value:.3f} +- {dm.std_error:.3f}")


def shortened(recipe: Recipe, steps: int, batch: int) -> Recipe:
    return dataclasses.replace(recipe, plan=dataclasses.replace(recipe.plan, n_steps=steps, batch_size=batch))


CLAIMS = (
    Claim("the share of runs that collapse or diverge falls with R, the critic's steps for each of the generator", "Sec. 4.2",
          two_time_scales, 1.5),
    Claim("with R = 5 the fake score follows the generator more closely than with R = 1", "Sec. 4.2", keeps_up, 0.3),
    Claim("a GAN on real data corrects a wrong teacher", "Sec. 4.3", gan_corrects, 1.0),
    Claim("a generator step leaves the critic alone, and a critic step the generator", "Sec. 4.3", isolated, 0.02),
    Claim("training a few-step student on its own states is no worse than on noised data, and four steps no worse than one",
          "Sec. 4.5", backward_simulation, 4.0),
    Claim("the head on the fake score learns the log-ratio of data and samples", "Sec. 4.3", discriminator, 0.5),
    Claim("the learnt fake score gives the direction of the exact one", "Sec. 3", learnt_direction, 0.5),
    Claim("with exact scores, points under the score difference cover the data", "Sec. 3", points_cover, 0.2),
    Claim("under the real score alone they collapse", "Sec. 3", real_score_alone, 0.2),
    Claim("with GAN and R = 5, one step is closer to the digits than with neither", "Table 3", digits_gan, 8.0, scale="digits"),
)  # fmt: skip
