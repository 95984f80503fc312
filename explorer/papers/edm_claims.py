"""What a small run must show of EDM (Karras et al. 2022, arXiv 2206.00364): sampling on exact denoisers, training on a toy.

Eight Gaussian modes on a ring of radius 0.66 with standard deviation 0.06 have a denoiser in closed form, so errors of the sampler
are errors of the sampler. Claims about training compare the loss with that of the exact denoiser.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from explorer.data import oracle
from explorer.metrics.base import Estimate
from explorer.metrics.features import points_space
from explorer.metrics.kernel import energy_distance
from explorer.models.base import Denoiser, Oracle
from explorer.papers.edm import SIGMA_RANGE, EDMTraining, plane
from explorer.process.oracles import GaussianMixture
from explorer.process.times import LogNormal
from explorer.reproduction import Bench, Claim, Verdict
from explorer.sampling.ablation import COLUMNS, ablation_sampler
from explorer.sampling.grids import TimeGrid
from explorer.sampling.samplers import OdeSampler, Sampler, sample
from explorer.sampling.seeds import Seeds
from explorer.sampling.solvers import EDMStochastic, Euler, Heun

RING = "8gaussians"


def karras(n: int, rho: float = 7.0) -> TimeGrid:
    return TimeGrid.karras(n, *SIGMA_RANGE, rho=rho)


def noise_seeds(bench: Bench, n: int) -> Seeds:
    """Other noise at each seed of the bench."""
    return Seeds(range(1_000_000 * bench.seed, 1_000_000 * bench.seed + n))


def generator(bench: Bench, stream: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * bench.seed + stream)


def ends(bench: Bench, model: Denoiser, sampler: Sampler, n: int = 256) -> Tensor:
    return sample(model, sampler, noise_seeds(bench, n), labels=None)


def rmse(a: Tensor, b: Tensor) -> Estimate:
    """Root mean square distance of endpoints from the same noise."""
    square = (a - b).square().mean(1)
    value = float(square.mean().sqrt())
    return Estimate(value, float(square.std()) / math.sqrt(len(a)) / (2 * max(value, 1e-300)), len(a), "endpoint RMSE")


def errors(bench: Bench, samplers: dict[str, Sampler], n: int = 256) -> dict[str, Estimate]:
    """Endpoint RMSE of each sampler on the ring against 600 Heun steps."""
    model = Oracle(oracle(RING))
    exact = ends(bench, model, OdeSampler(Heun(), karras(600)), n)
    return {name: rmse(ends(bench, model, sampler, n), exact) for name, sampler in samplers.items()}


def gaussian_map(bench: Bench) -> Verdict:
    sd, n = 0.5, 64
    model = Oracle(GaussianMixture(torch.zeros(1, 2), sd))
    exact = noise_seeds(bench, n).normal((2,)) * 80 * sd / math.hypot(sd, 80)
    heun, euler = (
        float((ends(bench, model, OdeSampler(solver, karras(18)), n) / exact - 1).abs().mean())
        for solver in (Heun(), Euler())
    )
    measured = Estimate(heun, 0.0, n, "relative error of Heun, 18 steps")
    return Verdict(heun < 0.08 and euler > 2 * heun, measured, 0.08, f"Euler's is {euler:.3f}")


def orders(bench: Bench) -> Verdict:
    kinds = {"euler": Euler(), "heun": Heun()}
    runs = {f"{name} {k}": OdeSampler(s, karras(k)) for name, s in kinds.items() for k in (8, 32, 128)}
    error = {name: e.value for name, e in errors(bench, runs).items()}
    euler, heun = (math.log(error[f"{s} 32"] / error[f"{s} 128"], 4) for s in kinds)
    measured = Estimate(heun, 0.0, 256, "order of Heun, 32 to 128 steps")
    text = f"Euler's is {euler:.2f}; with 8 steps Heun's error is {error['heun 8']:.2f}, Euler's {error['euler 8']:.2f}"
    return Verdict(abs(heun - 2) < 0.3 and abs(euler - 1) < 0.15, measured, 2.0, text)


def warp(bench: Bench) -> Verdict:
    found = errors(bench, {f"{rho}": OdeSampler(Heun(), karras(18, rho)) for rho in (1.0, 3.0, 7.0)})
    one, three, seven = found.values()
    holds = one.value > 50 * seven.value and three.value > 2 * seven.value
    seven = dataclasses.replace(seven, name="endpoint RMSE, 18 steps, rho = 7")
    text = f"RMSE {three.value:.3g} at rho = 3 and {one.value:.3g} at rho = 1"
    return Verdict(holds, seven, three.value / 2, text)


class Zero(nn.Module):
    """F = 0: what the last layer of the paper's networks gives before training."""

    def forward(self, x: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)


def unit_loss(bench: Bench, n: int = 20_000) -> Verdict:
    mixture, g = oracle(RING), generator(bench)
    sd = math.sqrt(float(mixture.cov().trace()) / 2)
    method = EDMTraining(Zero(), shape=(2,), sigma_data=sd, times=LogNormal(-1.2, 1.2))
    x0, _ = mixture.sample(n, generator=g)
    losses = []
    for sigma in (0.01, 0.05, 0.3, 1.0, 5.0, 40.0):
        x = x0 + sigma * torch.randn(x0.shape, generator=g, dtype=x0.dtype)
        losses.append(method.weighted_error(x, x0, torch.full((n,), sigma, dtype=x0.dtype)))
    worst = max(losses, key=lambda loss: abs(float(loss.mean()) - 1))
    value, error = float(worst.mean()), float(worst.std()) / math.sqrt(n)
    measured = Estimate(value, error, n, "loss of a zero network, worst sigma")
    return Verdict(abs(measured.value - 1) < 0.05, measured, 1.05, "6 values of sigma from 0.01 to 40")


def same_sampler(bench: Bench) -> Verdict:
    model = Oracle(oracle(RING))
    column = ends(bench, model, ablation_sampler(18, **COLUMNS["edm"]), 64)
    calm = ends(bench, model, OdeSampler(EDMStochastic(s_churn=0.0), karras(18)), 64)
    gap = float((column - calm).abs().max())
    measured = Estimate(gap, 0.0, 64, "largest distance of endpoints, Alg. 1 as EDM's column to Alg. 2 without churn")
    return Verdict(gap == 0, measured, 0.0, "18 steps, float64")


def schedules(bench: Bench) -> Verdict:
    kinds = (("vp", "vp"), ("vp", "none"), ("ve", "none"), ("linear", "vp"))
    runs = {
        f"{schedule}/{scaling} {n}": ablation_sampler(n, schedule=schedule, scaling=scaling)
        for schedule, scaling in kinds
        for n in (64, 128, 256)
    }
    error = {name: e.value for name, e in errors(bench, runs, 64).items()}
    falls = {f"{a}/{b}": error[f"{a}/{b} 64"] / error[f"{a}/{b} 256"] for a, b in kinds}
    last = max(error[f"{a}/{b} 256"] for a, b in kinds)
    text = "from 64 to 256 steps it falls " + ", ".join(f"{v:.0f}-fold with {k}" for k, v in falls.items())
    measured = Estimate(last, 0.0, 64, "endpoint RMSE from EDM's schedule, 256 steps, worst of 4")
    return Verdict(last < 0.01 and min(falls.values()) > 4, measured, 0.01, text)


def churned(bench: Bench, model: Denoiser, amounts: tuple[float, ...], n: int) -> tuple[list[Estimate], Estimate]:
    """Energy distance from the data for each S_churn at 64 steps, and that of other data: the floor."""
    mixture = oracle(RING)
    real, other = (mixture.sample(n, generator=generator(bench, stream))[0] for stream in (1, 2))

    def distance(x: Tensor) -> Estimate:
        metric = energy_distance(points_space(2), real)
        metric.update(x)
        return metric.compute()

    runs = (ends(bench, model, OdeSampler(EDMStochastic(s_churn=c), karras(64)), n) for c in amounts)
    return [distance(x) for x in runs], distance(other)


def churn(bench: Bench) -> Verdict:
    values, floor = churned(bench, Oracle(oracle(RING)), (0.0, 20.0, 40.0), 2000)
    worst = max(values, key=lambda e: e.value)
    limit = floor.value + 3 * math.hypot(worst.std_error, floor.std_error)
    shown = ", ".join(f"{e.value:.2g}" for e in values)
    return Verdict(worst.value <= limit, worst, limit, f"{shown} at S_churn 0, 20, 40; other data {floor.value:.2g}")


def loss_over_exact(denoiser: Denoiser, sigma: float, n: int = 8192, seed: int = 0) -> float:
    """Weighted loss at one sigma over that of the exact denoiser, which is what the data leave irreducible."""
    g = torch.Generator().manual_seed(seed)
    exact = Oracle(oracle(RING))
    x0, _ = exact.mixture.sample(n, generator=g)
    x = x0 + sigma * torch.randn(x0.shape, generator=g, dtype=x0.dtype)
    with torch.no_grad():
        mine, best = ((m.denoise(x, sigma) - x0).square().mean() for m in (denoiser, exact))
    return float(mine / best)


def trained(bench: Bench) -> Verdict:
    model, times = bench.model(plane(RING)), LogNormal(-1.2, 1.6)
    deciles = times.quantile(torch.arange(0.05, 1.0, 0.1, dtype=torch.float64)).tolist()
    worst = max(loss_over_exact(model, sigma, seed=bench.seed) for sigma in deciles)
    measured = Estimate(worst, 0.0, 8192, "loss over that of the exact denoiser, worst sigma decile")
    return Verdict(worst < 1.1, measured, 1.1, "median sigma of each decile")


CLAIMS = (
    Claim("Heun solves a Gaussian's ODE to a few per cent in 18 steps, Euler far worse", "Sec. 3", gaussian_map, 0.1),
    Claim("Heun's endpoint error falls with the square of the step, Euler's in proportion", "Sec. 3", orders, 0.5),
    Claim("rho near 7 places the steps well", "Sec. 3, Appendix D.1", warp, 0.2),
    Claim("an untrained network has unit loss at every noise level", "Sec. 5, Appendix B.6", unit_loss, 0.1),
    Claim(
        "the ablation's last column is the sampler of the paper, to the bit",
        "Table 1, Alg. 1, Alg. 2",
        same_sampler,
        0.1,
    ),
    Claim("schedules and scalings end at the same points as steps shrink", "Sec. 3, Appendix C", schedules, 0.5),
    Claim("with an exact denoiser, churn leaves the distribution unchanged", "Sec. 4", churn, 0.5),
    Claim("the trained denoiser approaches the exact one at every noise level", "Sec. 5", trained, 2.0),
)
