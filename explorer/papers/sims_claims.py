"""Claims of SIMS: closed forms on the line, self-training on a ring of eight modes, and generations that learn from each other.

Distances are energy distances from fresh points of the ring, between 4000 and 4000 points. What is chosen is chosen on other noise and
other fresh points than what is reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from explorer.data import load_dataset, oracle
from explorer.data.pairs import PairStore
from explorer.metrics.base import Estimate, Metric, jackknife_variance
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
N = 4000
FEW = (0.25, 0.5, 1.0, 1.5)


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
    """Of one training: the omega and Neon's w that other noise chose, and the distances reported at them and at other settings."""

    omega: float
    w: float
    distances: Mapping[str, Metric]

    def ratio(self, above: str, below: str, name: str) -> Estimate:
        """Of two distances on the same noise and from the same points, with the paired error of a - r b over b."""
        a, b = (self.distances[k].replicates() for k in (above, below))
        value = a.value / b.value
        parts = (jackknife_variance(x - value * y) for x, y in zip(a.groups, b.groups, strict=True))
        return Estimate(value, math.sqrt(sum(parts)) / b.value, N, name)


@dataclass(frozen=True)
class Sweep(Need):
    """A base model, its auxiliary, and how far what can be made of the two is from the data."""

    def describe(self):
        return {"sweep": FEW, "of": auxiliary(RING).describe()}

    def make(self, bench):
        base, aux, seed = bench.model(plane(RING)), bench.model(auxiliary(RING)), bench.seed

        def off(model: Denoiser, part: int) -> Metric:
            return distance(ends(model, seed, part), seed, part)

        omega = min(FEW, key=lambda w: off(extrapolated(base, aux, w), 0).compute().value)
        w = min(FEW, key=lambda w: off(in_weights(base, aux, w), 0).compute().value)
        models = {
            "base": base,
            "auxiliary": aux,
            "chosen": extrapolated(base, aux, omega),
            "far": extrapolated(base, aux, 5.0),
            "back": extrapolated(base, aux, -0.5),
            "weights": in_weights(base, aux, w),
        }
        return Found(omega, w, {name: off(model, 1) for name, model in models.items()})

    def stand_in(self, bench):
        return None


def decay(bench: Bench) -> Verdict:
    found = bench.need(Sweep())
    ratio = found.ratio("auxiliary", "base", "energy distance of the self-trained model over that of its base")
    return Verdict(ratio.value >= 1.5, ratio, 1.5, f"base {found.distances['base'].compute()}")


def improves(bench: Bench) -> Verdict:
    found = bench.need(Sweep())
    ratio = found.ratio("chosen", "base", "energy distance at the chosen omega over that at 0, other noise")
    return Verdict(ratio.value <= 0.9, ratio, 0.9, f"omega {found.omega:g} of {FEW}, at 70 calls in place of 35")


def too_far(bench: Bench) -> Verdict:
    found = bench.need(Sweep())
    ratio = found.ratio("far", "chosen", "energy distance at omega = 5 over that at the chosen one")
    return Verdict(ratio.value >= 5, ratio, 5.0, f"omega {found.omega:g} was chosen")


def wrong_way(bench: Bench) -> Verdict:
    found = bench.need(Sweep())
    ratio = found.ratio("back", "base", "energy distance at omega = -0.5 over that at 0")
    return Verdict(ratio.value > 1, ratio, 1.0, "half way towards the auxiliary")


def neon(bench: Bench) -> Verdict:
    found = bench.need(Sweep())
    ratio = found.ratio(
        "weights", "base", "energy distance of extrapolated weights over that of the base model, other noise"
    )
    scores = found.ratio("chosen", "base", "").value
    return Verdict(ratio.value < 1, ratio, 1.0, f"w {found.w:g} of {FEW}, at 35 calls; scores at 70 calls {scores:.2f}")


def gaussians(bench: Bench) -> Verdict:
    """Variance of a fine ODE solution on the line, whose map is linear, so that one path tells it."""
    worst, mended = 0.0, 0.0
    sampler = OdeSampler(Heun(), TimeGrid.karras(120, 1e-4, 80.0))
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
    return Verdict(measured.value < 0.01, measured, 0.01, f"{mended:.1e} at the omega that mends it; 120 Heun steps")


def identity(bench: Bench) -> Verdict:
    base, aux = bench.model(plane(RING)), bench.model(auxiliary(RING))
    plain = ends(base, bench.seed, 2, 256)
    same = max(float((ends(extrapolated(base, base, w), bench.seed, 2, 256) - plain).abs().max()) for w in (0.5, 3.0))
    zero = float((ends(extrapolated(base, aux, 0.0), bench.seed, 2, 256) - plain).abs().max())
    moved = float((ends(extrapolated(base, aux, 0.5), bench.seed, 2, 256) - plain).abs().max())
    measured = Estimate(same, 0.0, 256, "largest difference of samples with D_s = D_r, omega 0.5 and 3")
    text = f"{zero:g} at omega = 0; {moved:.2g} with the auxiliary at omega = 0.5"
    # the combination converts to velocities by another formula than the network alone, in float64
    return Verdict(zero == 0 and same < 1e-12 < moved, measured, 1e-12, text)


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
        models = [model for model, _ in generations(kind, 10, first=bench.model(plane(RING)), seed=seed)]
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
    Claim("omega = 0 is the base sampler to the bit, and D_s = D_r makes omega irrelevant", "method", identity, 1.0),
    Claim("only samples of the base model reach the auxiliary", "Algorithm", provenance, 1.0),
    Claim("a model tuned on its own samples is worse", "self-consuming loops", decay, 3.0),
    Claim("moving away from it improves on the base model", "FID against training budget", improves, 0.1),
    Claim("moving too far is worse by a multiple", "FID against omega", too_far, 0.1),
    Claim("moving towards it is worse", "method", wrong_way, 0.1),
    Claim("extrapolating weights in place of scores improves at no further call", "Neon", neon, 0.1),
    Claim("ten generations of it stay nearer the data than a plain self-consuming loop", "MAD prevention", loop, 1.5),
    Claim("unwanted proportions in the synthetic set move samples the other way", "distribution control", control, 0.5),
)
