"""Linear Combination of Saved Checkpoints Makes Consistency and Diffusion Models Better (Liu, Zhu et al. 2024, arXiv 2404.02241).

    theta(a) = sum_i a_i theta_{n_i},  sum_i a_i = 1,  a_i real               raw weights of one run, at fixed intervals to its end
    EMA over the snapshots: a_i ~ g^(K - i)                                   one convex combination among them
    a* = argmin F(a),  F = distance of samples of theta(a) from data          by evolution, the averages in the first generation
    slice: theta_0 + x (theta_1 - theta_0) + y (theta_2 - theta_0)            the metric's landscape
The search is `explorer.tuning.Evolution` on a `Basis` of snapshots, the slice `explorer.tuning.landscape`. The official repository has
no search; sizes of population and mutation, and the re-ranking of the last candidates on fresh noise, are ours.

Oracle. For a linear denoiser D(x) = W x at one noise level, Gaussian data of covariance C, the loss is quadratic in W, hence in a:
    L(W) = tr (W - 1) C (W - 1)^T + sigma^2 tr W W^T,   L(a) = a^T Q a + const on sum a = 1
so that the best coefficients are one linear system (`best_combination`), and a search can be held against them.

D coordinates, K snapshots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from explorer.data import Batch, Dataset
from explorer.data.loader import Stream
from explorer.errors import BadValue, UnknownName
from explorer.models.base import Denoiser, Model, Preconditioned
from explorer.nets.mlp import MLP
from explorer.process.paths import EDM
from explorer.process.precondition import EDMPrecondition
from explorer.process.times import LogNormal
from explorer.reproduction import Bench, Paper, Recipe
from explorer.sampling import Heun, OdeSampler, TimeGrid
from explorer.training import EmaPlan, Method, OptimizerPlan, Plan, Progress, Update, seeded, train
from explorer.training.denoising import Denoising
from explorer.tuning import Basis

RATES = (0.9, 0.97, 0.99, 0.995, 0.998)
"""Rates per step of the averages that the run itself tracks, as "ema-900" and so on."""
EVERY, WINDOW = 50, 20
"""Steps between snapshots, and how many of the newest are combined."""


def ring() -> Recipe:
    """Ten seconds on one core: an MLP of three layers of 64 on eight Gaussians, Adam at a constant 5e-3, small batches.

    The learning rate is high on purpose and never falls: the weights still wander, as those of the paper's runs do.
    """

    def method(points: Dataset) -> Denoising:
        net, about = MLP(2, width=64, depth=3), {"shape": (2,), "t_range": (0.002, 80.0), "name": "ring-snapshots"}
        model = Preconditioned(net, EDM(), EDMPrecondition(points.sigma_data), **about)
        return Denoising(model, LogNormal(-1.2, 1.6))

    averages = tuple(EmaPlan.per_step(rate, 128, name=f"ema-{round(1000 * rate)}") for rate in RATES)
    return Recipe(
        name="ring-snapshots",
        data="8gaussians",
        method=method,
        plan=Plan(
            2000,
            128,
            optimizer=OptimizerPlan(lr=5e-3, kind="adam"),
            emas=averages,
            tick_steps=500,
            checkpoint_steps=0,
            snapshot_steps=EVERY,
            snapshot_raw=True,
        ),
        sampler=OdeSampler(Heun(), TimeGrid.karras(8, 0.002, 80.0)),
        ema="ema-990",
        cost="10 CPU seconds",
        settings={"width": 64, "depth": 3},
    )


def snapshots_of(recipe: Recipe, bench: Bench) -> tuple[Model, Basis]:
    """The recipe's model, for its architecture, and the newest raw snapshots of its run at the bench's seed; trained now if need be.

    Raises: BadValue where the bench keeps nothing on disk.
    """
    folder = bench.place(recipe.name, recipe.describe())
    if folder is None:
        raise BadValue("snapshots are files: give the bench a folder")
    model = bench.model(recipe)
    return model, Basis.of(folder, model, WINDOW)


# The linear oracle


def covariance(dim: int = 8) -> Tensor:
    """Of the oracle's data: variances 2^(-i) along random axes, (D, D) float64."""
    q, _ = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(7), dtype=torch.float64))
    return q @ torch.diag(0.5 ** torch.arange(dim, dtype=torch.float64)) @ q.T


class Gaussians(Stream):
    """Endless batches of N(0, C)."""

    def __init__(self, batch_size: int, seed: int):
        super().__init__(batch_size, seed, 0, 1)
        self.root = torch.linalg.cholesky(covariance()).float()

    def batch(self, i: int) -> Batch:
        g = torch.Generator().manual_seed(1_000_003 * (self.seed + 1) + i)
        return Batch(torch.randn(self.batch_size, len(self.root), generator=g) @ self.root.T)


class Linear(nn.Module):
    """W x, from W = 0."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T.to(x.dtype)


class LinearDenoiser(Denoiser):
    """D(x) = W x at every level."""

    def __init__(self, net: Linear, sigma: float):
        super().__init__()
        self.net, self.path, self.shape, self.name = net, EDM(), (len(net.weight),), "linear"
        self.t_range = (sigma / 2, sigma)

    def predict(self, x_t, t, cond=None):
        self._calls[0] += 1
        return self.net(x_t), "x0"


class LinearDenoising(Method):
    """D(x) = W x regressed on data at one noise level."""

    def __init__(self, dim: int, sigma: float):
        super().__init__()
        self.nets, self.sigma = nn.ModuleDict({"net": Linear(dim)}), sigma

    def export(self, nets) -> LinearDenoiser:
        return LinearDenoiser(nets["net"], self.sigma)

    def updates(self, batch: Batch, progress: Progress):
        noise = torch.randn(batch.x0.shape, generator=progress.generator)
        gap = self.nets["net"](batch.x0 + self.sigma * noise) - batch.x0
        yield Update(("net",), gap.square().sum(1).mean())


@dataclass(frozen=True)
class LinearRun:
    """A noisy SGD run of the linear denoiser; `folder` then has its snapshots."""

    folder: Path
    sigma: float = 0.5
    n_steps: int = 400
    every: int = 20
    seed: int = 0

    def model(self) -> Model:
        """Trains, and returns the model with the last weights."""
        with seeded(self.seed):
            method = LinearDenoising(8, self.sigma)
        plan = Plan(
            self.n_steps, 4, optimizer=OptimizerPlan(lr=0.08, kind="sgd", betas=(0.0, 0.0)), seed=self.seed, tick_steps=self.n_steps,
            checkpoint_steps=0, snapshot_steps=self.every, snapshot_raw=True,
        )  # fmt: skip
        for _ in train(method, Gaussians(4, self.seed), plan, self.folder):
            pass
        return method.export(method.nets).eval().requires_grad_(False)

    def loss(self, weight: Tensor) -> float:
        """E |W (x0 + sigma eps) - x0|^2 in closed form."""
        w = weight.double()
        c, off = covariance(len(w)), w - torch.eye(len(w), dtype=torch.float64)
        return float((off @ c * off).sum() + self.sigma**2 * w.square().sum())

    def least(self) -> float:
        """Of any linear denoiser: W = C (C + sigma^2)^-1."""
        c = covariance()
        return self.loss(c @ torch.linalg.inv(c + self.sigma**2 * torch.eye(len(c), dtype=torch.float64)))

    def best_combination(self, weights: Sequence[Tensor]) -> tuple[np.ndarray, float]:
        """The coefficients (K,) with the least loss of all that sum to 1, and that loss: a linear system with one multiplier."""
        w = torch.stack([v.double() for v in weights])
        c = covariance(w.shape[1])
        c_all = c + self.sigma**2 * torch.eye(len(c), dtype=torch.float64)
        quadratic = torch.einsum("iab,bc,jac->ij", w, c_all, w).numpy()
        linear = torch.einsum("iab,ab->i", w, c).numpy()
        k = len(w)
        ones = np.ones((k, 1))
        system = np.block([[quadratic, ones], [ones.T, np.zeros((1, 1))]])
        a = np.linalg.lstsq(system, np.append(linear, 1.0), rcond=None)[0][:k]
        return a, self.loss(torch.einsum("i,iab->ab", torch.from_numpy(a), w))


RECIPES = {"toy": ring}


def recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise UnknownName("recipe", name, RECIPES)
    return RECIPES[name]()


PAPER = Paper(
    slug="lcsc",
    title="Linear Combination of Saved Checkpoints Makes Consistency and Diffusion Models Better",
    arxiv="2404.02241",
    family="sampler",
    recipe=recipe,
    recipes=tuple(RECIPES),
)
