"""Claims of SIMS: closed forms on the line, self-training on a ring of eight modes, and generations that learn from each other.

Distances are energy distances from fresh points of the ring, between 4000 and 4000 points. What is chosen is chosen on other noise and
other fresh points than what is reported. A claim about trainings looks at five of them at each seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from explorer.data import load_dataset, oracle
from explorer.data.pairs import PairStore
from explorer.metrics.base import Estimate, Metric
from explorer.metrics.features import points_space
from explorer.metrics.kernel import energy_distance
from explorer.models.base import Denoiser, Oracle
from explorer.papers.sims import (
    SAMPLER,
    auxiliary,
    content,
    extrapolated,
    generations,
    in_weights,
    mending_omega,
    only_synthetic,
    output_variance,
    plane,
    tuned,
)
from explorer.process.oracles import GaussianMixture
from explorer.reproduction import Bench, Claim, Need, Verdict
from explorer.sampling import Heun, OdeSampler, Seeds, TimeGrid, sample

RING = "8gaussians"
N, TRAININGS = 4000, 5
FEW = (0.25, 0.5, 1.0, 1.5)
OMEGAS = (-0.5, 0.0, *FEW, 5.0)


def noise(seed: int, part: int, n: int = N) -> Seeds:
    """Disjoint for every training and part; the auxiliary's own samples come from seeds far above."""
    first = 10_000_000 + 1_000_000 * (10 * seed + part)
    return Seeds(range(first, first + n))


def distance(x: Tensor, seed: int, part: int) -> Metric:
    real, _ = oracle(RING).sample(N, torch.Generator().manual_seed(1000 + 10 * seed + part))
    metric = energy_distance(points_space(2), real)
    metric.update(x)
    return metric


def ends(model: Denoiser, seed: int, part: int, n: int = N) -> Tensor:
    with torch.no_grad():
        return sample(model, SAMPLER, noise(seed, part, n), batch=n)


@dataclass(frozen=True)
class Found:
    """Of one training: distances by omega on the noise that chooses and on that which reports, and those of the others, reported."""

    chosen_on: Mapping[float, float]
    reported: Mapping[float, float]
    aux: float
    neon: tuple[float, float]  # w, distance

    @property
    def omega(self) -> float:
        return min(FEW, key=lambda w: self.chosen_on[w])


@dataclass(frozen=True)
class Sweep(Need):
    """Five base models of a bench's seed, their auxiliaries, and how far each combination is from the data."""

    omegas: tuple[float, ...] = OMEGAS

    def describe(self):
        return {"sweep": self.omegas, "of": auxiliary(RING).describe()}

    def make(self, bench):
        return [self._one(Bench(bench.folder, seed=TRAININGS * bench.seed + i)) for i in range(TRAININGS)]

    def stand_in(self, bench):
        return []

    def _one(self, bench: Bench) -> Found:
        base, aux, seed = bench.model(plane(RING)), bench.model(auxiliary(RING)), bench.seed

        def value(model: Denoiser, part: int) -> float:
            return distance(ends(model, seed, part), seed, part).compute().value

        chosen = {w: value(extrapolated(base, aux, w), 0) for w in FEW}
        reported = {w: value(extrapolated(base, aux, w), 1) for w in self.omegas}
        w = min(FEW, key=lambda w: value(in_weights(base, aux, w), 0))
        return Found(chosen, reported, value(aux, 1), (w, value(in_weights(base, aux, w), 1)))


def counted(bench: Bench, ratio: Callable[[Found], float], holds: Callable[[float], bool], name: str) -> tuple:
    """How many of the five trainings pass, their mean ratio with its error, and all of them in words."""
    values = [ratio(found) for found in bench.need(Sweep())]
    mean = sum(values) / len(values)
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    return sum(map(holds, values)), Estimate(mean, error, N, name), ", ".join(f"{v:.2f}" for v in values)


def decay(bench: Bench) -> Verdict:
    passed, mean, text = counted(
        bench,
        lambda f: f.aux / f.reported[0.0],
        lambda r: r >= 1.5,
        "energy distance of the self-trained model over that of its base",
    )
    return Verdict(passed >= 4, mean, 1.5, f"at least 1.5 in {passed} of {TRAININGS} trainings: {text}")


def improves(bench: Bench) -> Verdict:
    passed, mean, text = counted(
        bench,
        lambda f: f.reported[f.omega] / f.reported[0.0],
        lambda r: r <= 1,
        "energy distance at the chosen omega over that at 0, other noise",
    )
    chosen = ", ".join(f"{f.omega:g}" for f in bench.need(Sweep()))
    text = f"not above 1 in {passed} of {TRAININGS} trainings: {text}; omega {chosen}"
    return Verdict(passed >= 4 and mean.value <= 0.9, mean, 0.9, text)


def too_far(bench: Bench) -> Verdict:
    passed, mean, text = counted(
        bench,
        lambda f: f.reported[5.0] / f.reported[f.omega],
        lambda r: r >= 5,
        "energy distance at omega = 5 over that at the chosen one",
    )
    return Verdict(passed >= 4, mean, 5.0, f"at least 5 in {passed} of {TRAININGS} trainings: {text}")


def wrong_way(bench: Bench) -> Verdict:
    passed, mean, text = counted(
        bench,
        lambda f: f.reported[-0.5] / f.reported[0.0],
        lambda r: r > 1,
        "energy distance at omega = -0.5 over that at 0",
    )
    return Verdict(passed >= 4, mean, 1.0, f"above 1 in {passed} of {TRAININGS} trainings: {text}")


def neon(bench: Bench) -> Verdict:
    passed, mean, text = counted(
        bench,
        lambda f: f.neon[1] / f.reported[0.0],
        lambda r: r <= 1,
        "energy distance of extrapolated weights over that of the base model, other noise",
    )
    chosen = ", ".join(f"{f.neon[0]:g}" for f in bench.need(Sweep()))
    text = f"not above 1 in {passed} of {TRAININGS} trainings: {text}; w {chosen}"
    return Verdict(passed >= 4 and mean.value < 1, mean, 1.0, text)


def gaussians(bench: Bench) -> Verdict:
    """Variance of a fine ODE solution on the line, whose map is linear, so that one path tells it."""
    worst, mended = 0.0, 0.0
    sampler = OdeSampler(Heun(), TimeGrid.karras(400, 1e-4, 80.0))
    for v, v_r in ((1.0, 0.8), (0.25, 0.3), (1.0, 1.1)):
        v_s = v_r * (v_r / v) ** 0.6  # errs further to the same side
        base, aux = (Oracle(GaussianMixture(torch.zeros(1, 1), math.sqrt(u))) for u in (v_r, v_s))

        def end(omega: float, base=base, aux=aux) -> float:
            x = sampler.sample(extrapolated(base, aux, omega), torch.ones(1, 1, dtype=torch.float64))
            return float(x) ** 2

        for omega in (-0.5, 0.0, 0.5, 1.0, 3.0):
            worst = max(worst, abs(end(omega) / output_variance(v_r, v_s, omega) - 1))
        omega = mending_omega(v, v_r, v_s)
        mended = max(mended, abs(end(omega) / v - 1)) if omega > 0 else math.inf
    measured = Estimate(max(worst, mended), 0.0, 15, "largest relative error of the closed-form variance")
    return Verdict(measured.value < 0.01, measured, 0.01, f"{mended:.1e} at the omega that mends it; 400 Heun steps")


def identity(bench: Bench) -> Verdict:
    base, aux = bench.model(plane(RING)), bench.model(auxiliary(RING))
    plain = ends(base, bench.seed, 2, 256)
    same = max(float((ends(extrapolated(base, base, w), bench.seed, 2, 256) - plain).abs().max()) for w in (0.5, 3.0))
    zero = float((ends(extrapolated(base, aux, 0.0), bench.seed, 2, 256) - plain).abs().max())
    moved = float((ends(extrapolated(base, aux, 0.5), bench.seed, 2, 256) - plain).abs().max())
    measured = Estimate(max(same, zero), 0.0, 256, "largest difference of samples at omega = 0, and with D_s = D_r")
    return Verdict(measured.value == 0 < moved, measured, 0.0, f"{moved:.2g} with the auxiliary at omega = 0.5")


def provenance(bench: Bench) -> Verdict:
    """One pass over what the auxiliary is fed, against the base model's samples of the same seeds drawn anew, and real data."""
    recipe, base = auxiliary(RING), bench.model(plane(RING))
    need = recipe.needs["pairs"]
    pairs: PairStore = bench.need(need)
    first = need.first_seed + (bench.seed << 36)
    anew = sample(base, SAMPLER, Seeds(range(first, first + need.n)), batch=need.n)
    real = load_dataset(RING)
    stream = only_synthetic(real, recipe.plan, pairs=pairs, base=base)
    fed = torch.cat([stream.batch(i).x0 for i in range(3 * need.n // recipe.plan.batch_size)])
    fed = torch.unique(fed, dim=0)
    known = {row.numpy().tobytes() for row in real.x}
    shared = sum(row.numpy().tobytes() in known for row in fed)
    equal = content(fed) == content(torch.unique(anew.float(), dim=0))
    measured = Estimate(float(shared), 0.0, len(fed), "real samples among what the auxiliary was fed")
    return Verdict(
        equal and shared == 0, measured, 0.0, f"hash of the set equals that of the base model's samples: {equal}"
    )


def loop(bench: Bench) -> Verdict:
    runs, seed = {}, bench.seed
    for kind in ("plain", "sims"):
        models = [model for model, _ in generations(kind, 10, seed=seed)]
        runs[kind] = [distance(ends(models[g], seed, 3), seed, 3) for g in (0, 5, 10)]
    plain, mended = ([m.compute().value for m in runs[kind]] for kind in ("plain", "sims"))
    gap = runs["sims"][-1].difference(runs["plain"][-1])
    measured = Estimate(
        mended[-1] / plain[-1], gap.std_error / plain[-1], N, "energy distance, SIMS over plain, generation 10"
    )
    text = "; ".join(f"{k} {', '.join(f'{v:.2g}' for v in vs)}" for k, vs in (("plain", plain), ("SIMS", mended)))
    holds = plain[-1] > plain[0] and gap.value < -2 * gap.std_error
    return Verdict(holds, measured, 1.0, f"{text} at generations 0, 5, 10; fully synthetic, omega 0.5")


def control(bench: Bench) -> Verdict:
    """Synthetic samples of four modes are over-represented 4 to 1; sampling must then favour the other four."""
    base, means = bench.model(plane(RING)), oracle(RING).means
    own = ends(base, bench.seed, 4)

    def wanted(x: Tensor) -> Tensor:
        return torch.cdist(x, means).argmin(1) < 4

    keep = torch.rand(len(own), generator=bench.generator(5)) < torch.where(wanted(own), 0.25, 1.0)
    aux = tuned(base, own[keep].float(), 300, seed=bench.seed, lr=1e-3)
    shares = [float(wanted(ends(extrapolated(base, aux, w), bench.seed, 6)).double().mean()) for w in (0.0, 0.5, 1.0)]
    error = math.sqrt(shares[-1] * (1 - shares[-1]) / N)
    measured = Estimate(shares[-1], error, N, "share of the wanted modes at omega = 1")
    fed = float(wanted(own[keep]).double().mean())
    text = f"{shares[0]:.3f}, {shares[1]:.3f}, {shares[2]:.3f} at omega 0, 0.5, 1; the auxiliary was fed {fed:.3f}"
    return Verdict(shares[0] < shares[1] < shares[2] and shares[-1] > 0.6, measured, 0.6, text)


CLAIMS = (
    Claim(
        "two Gaussian denoisers end in the variance of the closed form, and one omega mends it",
        "method",
        gaussians,
        0.1,
    ),
    Claim("omega = 0 is the base sampler to the bit, and so is any omega with D_s = D_r", "method", identity, 1.0),
    Claim("only samples of the base model reach the auxiliary", "Algorithm", provenance, 1.0),
    Claim("a model tuned on its own samples is worse", "self-consuming loops", decay, 3.0),
    Claim("moving away from it improves on the base model", "FID against training budget", improves, 0.1),
    Claim("moving too far is worse by a multiple", "FID against omega", too_far, 0.1),
    Claim("moving towards it is worse", "method", wrong_way, 0.1),
    Claim("extrapolating weights in place of scores improves at no further call", "Neon", neon, 0.1),
    Claim("ten generations of it stay nearer the data than a plain self-consuming loop", "MAD prevention", loop, 1.5),
    Claim("unwanted proportions in the synthetic set move samples the other way", "distribution control", control, 0.5),
)
