"""Models that sample in one or few jumps: their samplers, and how far a learnt map of the plane is from the exact one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from explorer.data import Dataset, Loader, load_dataset, oracle
from explorer.metrics.base import Estimate
from explorer.metrics.features import points_space
from explorer.metrics.points import SlicedW2
from explorer.models.base import Denoiser, Model, Oracle
from explorer.models.flow_maps import as_flow_map
from explorer.process.discretisation import SIGMA_RANGE, Fixed, karras_levels
from explorer.process.paths import EDM
from explorer.sampling.grids import TimeGrid
from explorer.sampling.samplers import OdeSampler, Sampler, sample
from explorer.sampling.seeds import Seeds
from explorer.sampling.solvers import Jump
from explorer.training import OptimizerPlan, Plan, train
from explorer.training.consistency import ConsistencyTraining, LevelGains

FIRST_SEED = 2_000_000
"""Noise of claims is taken from here on, at other places for each seed of a bench."""


def jumps(
    n: int, intermediate: float, sigma_max: float = SIGMA_RANGE[1], sigma_min: float = SIGMA_RANGE[0]
) -> OdeSampler:
    """n jumps from sigma_max, the last one from `intermediate`, levels between them as Karras et al. space them; one is plain."""
    return OdeSampler(Jump(sigma_min=sigma_min), TimeGrid.karras(n, intermediate, sigma_max))


def claim_seeds(seed: int, n: int) -> Seeds:
    """n sample seeds that no other seed of a bench sees."""
    return Seeds(range(FIRST_SEED * (seed + 1), FIRST_SEED * (seed + 1) + n))


def sliced_w2(model: Model, sampler: Sampler, data: str, *, seed: int = 0, n: int = 8192) -> Estimate:
    """Sliced 2-Wasserstein distance of n samples, without a class, from n fresh points of a toy, in the units of the plane."""
    real, _ = load_dataset(data).draw(n, torch.Generator().manual_seed(FIRST_SEED + seed))
    metric = SlicedW2(points_space(2), real)
    metric.update(sample(model, sampler, claim_seeds(seed, n), labels=None, batch=4096).cpu())
    return metric.compute()


def data_floor(data: str, *, seed: int = 0, n: int = 8192) -> Estimate:
    """`sliced_w2` of fresh points in place of samples: what a perfect model would show."""
    drawn = [load_dataset(data).draw(n, torch.Generator().manual_seed(FIRST_SEED + s))[0] for s in (seed, 1000 + seed)]
    metric = SlicedW2(points_space(2), drawn[0])
    metric.update(drawn[1])
    return metric.compute()


@torch.no_grad()
def exact_ends(data: str, noise: Tensor, sigma_max: float = SIGMA_RANGE[1], n_steps: int = 200) -> Tensor:
    """Where the exact probability-flow ODE of a toy takes sigma_max times the noise, by Heun steps, (B, 2) float64."""
    exact = Oracle(oracle(data), t_range=SIGMA_RANGE)
    return as_flow_map(exact, n_steps).jump(sigma_max * noise.double(), sigma_max, 0.0)


def map_error(ends: Tensor, exact: Tensor, name: str = "RMSE to the exact map") -> Estimate:
    """Root mean square Euclidean distance between two sets of ends of the same noise; error to first order."""
    square = (ends.double() - exact).square().sum(1)
    value = float(square.mean().sqrt())
    return Estimate(value, float(square.std()) / math.sqrt(len(square)) / (2 * max(value, 1e-300)), len(square), name)


@torch.no_grad()
def one_euler_step(model: Denoiser, x: Tensor, sigma: float, sigma_min: float = SIGMA_RANGE[0]) -> Tensor:
    """Where a single Euler step of the ODE from sigma to sigma_min ends: nearly the posterior mean."""
    return x + (sigma_min - sigma) * (x - model.on(EDM()).denoise(x, sigma)) / sigma


def linear_ratio(
    n: int, sd: float, seed: int = 0, steps: int = 800, batch: int = 2048, teacher: Denoiser | None = None, **settings
) -> float:
    """Standard deviation of one-step samples of a trained linear f over the true one, for x0 ~ N(0, sd^2) and n levels.

    Stochastic gradient descent, weighted so that all levels converge at one pace; the optimum, `bias_ratio`, knows no
    weight. What is learnt at a level travels up one level in about two steps, so `steps` of a few times n are needed.

    Args:
        settings: of `ConsistencyTraining`.
    """

    def draw(count: int, g: torch.Generator) -> tuple[Tensor, None]:
        return sd * torch.randn(count, 1, generator=g), None

    def weight(r: Tensor, t: Tensor) -> Tensor:
        return (n - 1) * (sd**2 + t**2) / (sd * t) ** 2

    data = Dataset("gaussian", draw(1000, torch.Generator().manual_seed(seed))[0], sigma_data=sd, draw=draw)
    about = {"shape": (1,), "sigma_data": sd, "curriculum": Fixed(n), "weight": weight, "teacher": teacher}
    method = ConsistencyTraining(LevelGains(karras_levels(n)), **about, **settings)
    optimizer = OptimizerPlan(lr=0.2, kind="sgd", betas=(0.0, 0.0), decay="cosine")
    plan = Plan(steps, batch, optimizer=optimizer, emas=(), seed=seed, tick_steps=steps)
    for _ in train(method, Loader(data, batch, seed=seed, fresh=True), plan):
        pass
    low, high = SIGMA_RANGE
    with torch.no_grad():
        gain = float(method.export(method.nets).denoise(torch.ones(1, 1, dtype=torch.float64), high))
    return gain * math.sqrt((sd**2 + high**2) / (sd**2 + low**2))
