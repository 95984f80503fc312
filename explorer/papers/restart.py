"""Restart Sampling for Improving Generative Processes (Xu et al. 2023, arXiv 2306.14878).

EDM's path; the paper's t is sigma here, its T the start of sampling. On an interval [s_min, s_max], K times:
    x_max = x_min + sqrt(s_max^2 - s_min^2) eps                       up in one jump, the exact kernel, no network call     Eq. 5
    x_min = ODE(x_max; s_max -> s_min)                                down in N_restart points
The sampler is `explorer.sampling.RestartSampler`, its settings from the paper's tables `restart_preset`; the search over intervals is
`explorer.tuning.RestartSearch`. This file has what the paper explains it by.

Errors of a process S on the interval, p^S started where the sampler is, q^S started from the true law at s_max (toy experiment):
    contracted error   W1(p^S, q^S)        what S forgets of earlier mistakes
    additional error   W1(q^S, p_0)        what S itself gets wrong
    total error        W1(p^S, p_0) <= their sum
Theorem 1, data within a ball of radius B / 2, delta a step, eps the error of the score:
    ODE      B TV                                     + O(delta + eps) (s_max - s_min)
    SDE      (1 - lambda e^{-U}) B TV                 + O(sqrt(delta s_max) + eps) (s_max - s_min)
    Restart  (1 - lambda)^K B TV                      + (K + 1) O(delta + eps) (s_max - s_min)
Two points at distance r can be made to meet in one jump with probability lambda(r) = 2 Q(r / 2s), s^2 = s_max^2 - s_min^2, Q the upper
tail of the normal: the overlap of two Gaussians, reached by reflecting the noise (`coupled_jump`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from explorer.data import Dataset, load_dataset
from explorer.errors import BadValue, UnknownName
from explorer.metrics.base import Estimate
from explorer.models.base import Denoiser, Preconditioned
from explorer.nets.mlp import MLP
from explorer.process.paths import EDM
from explorer.process.precondition import EDMPrecondition
from explorer.process.times import LogNormal
from explorer.reproduction import Paper, Published, Recipe
from explorer.sampling import OdeSampler, Sampler, Seeds, TimeGrid
from explorer.sampling.restart import Restart, RestartSampler
from explorer.sampling.solvers import Euler, EulerMaruyama, Heun
from explorer.training import EmaPlan, OptimizerPlan, Plan
from explorer.training.denoising import Denoising

DATA = "projected-modes"


def overlap(distance: Tensor | float, sigma_min: float, sigma_max: float) -> Tensor:
    """2 Q(r / 2s), s^2 = sigma_max^2 - sigma_min^2: the largest probability with which one jump makes two points at distance r meet."""
    s = math.sqrt(sigma_max**2 - sigma_min**2)
    return torch.special.erfc(torch.as_tensor(distance, dtype=torch.float64) / (2 * math.sqrt(2) * s))


def coupled_jump(
    x: Tensor, y: Tensor, sigma_min: float, sigma_max: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Both states (B, *shape) after a jump, each with its right law, and equal as often as any joint law allows: `overlap` of |x - y|.

    With probability min(1, phi(z + u) / phi(z)) along the difference u = (x - y) / s the second takes the first's place, else its noise
    is the first's reflected in the plane between them.
    """
    s = math.sqrt(sigma_max**2 - sigma_min**2)
    z = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    u = ((x - y) / s).flatten(1)
    length = u.norm(dim=1)
    e = u / length.clamp_min(1e-300)[:, None]
    along = (e * z.flatten(1)).sum(1)
    log_ratio = -0.5 * ((along + length) ** 2 - along**2)
    meet = torch.rand(len(x), generator=generator, dtype=x.dtype, device=x.device).log() < log_ratio
    reflected = (z.flatten(1) - 2 * along[:, None] * e).reshape(z.shape)
    jumped = x + s * z
    return jumped, torch.where(meet.reshape(-1, *[1] * (x.ndim - 1)), jumped, y + s * reflected)


def wasserstein1(x: Tensor, y: Tensor) -> tuple[float, np.ndarray]:
    """W1 of two sets of equally many points by exact matching, and the partner in y of each row of x; a third of a second at 1000."""
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    if len(x) != len(y):
        raise BadValue(f"only equal numbers of points can be matched, got {len(x)} and {len(y)}")
    cost = cdist(x.flatten(1).numpy(), y.flatten(1).numpy())
    rows, partner = linear_sum_assignment(cost)
    return float(cost[rows, partner].mean()), partner


class Errors(NamedTuple):
    """W1 of one process in one draw, data units, with its cost from pure noise to data."""

    contracted: float
    additional: float
    total: float
    nfe: int


@dataclass(eq=False)
class Decomposition:
    """Contracted and additional error of processes on [sigma_min, sigma_max], for a model of points; outside it one Euler ODE for all.

    p and q of a draw start from states that are matched optimally, and meet the same noise: the distance of the two sets that come out
    is then as near to that of their laws as the draws allow, where independent draws would never come nearer than two sets of the same law.

    Args:
        data: points (N, D), N >= 2 n: n of them start q, other n stand for p_0. Halves change with the draw.
        n_head, n_tail: Euler steps from 80 to sigma_max, and from sigma_min to 0.
    """

    model: Denoiser
    data: Tensor
    n: int = 1000
    n_head: int = 20
    n_tail: int = 20
    sigma_min: float = 1.0
    sigma_max: float = 1.5
    _starts: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        if len(self.data) < 2 * self.n:
            raise BadValue(
                f"{2 * self.n} data are needed, half to start from and half to compare with: {len(self.data)} are there"
            )
        low, high = self.model.sigma_range
        self.head = OdeSampler(Euler(), TimeGrid.karras(self.n_head, self.sigma_max, high, to_zero=False))
        self.tail = OdeSampler(Euler(), TimeGrid.karras(self.n_tail, low, self.sigma_min))

    def grid(self, n_steps: int) -> TimeGrid:
        return TimeGrid.karras(n_steps, self.sigma_min, self.sigma_max, to_zero=False)

    def ode(self, n_steps: int) -> Sampler:
        return OdeSampler(Euler(), self.grid(n_steps))

    def sde(self, n_steps: int, strength: float) -> Sampler:
        return OdeSampler(EulerMaruyama(strength), self.grid(n_steps))

    def restart(self, n_repeats: int, n_points: int = 5, solver=None) -> Sampler:
        interval = Restart(n_points, n_repeats, self.sigma_min, self.sigma_max)
        return RestartSampler(self.grid(n_points - 1), (interval,), solver or Euler())

    def nfe(self, process: Sampler) -> int:
        return sum(part.nfe(self.model) for part in (self.head, process, self.tail))

    @torch.inference_mode()
    def starts(self, draw: int) -> tuple[Tensor, Tensor, Tensor]:
        """States of p and q at sigma_max in matched order, and the data to compare with, each (n, D)."""
        if draw not in self._starts:
            seeds = Seeds(range(10_000_000 * draw, 10_000_000 * draw + self.n))
            rows = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(draw))
            mine, other = self.data[rows[: self.n]].double(), self.data[rows[self.n : 2 * self.n]].double()
            p = self.head.sample(self.model, seeds.normal(tuple(self.model.shape)))
            q = mine + self.sigma_max * seeds.normal(tuple(self.model.shape))
            self._starts[draw] = p, q[wasserstein1(p, q)[1]], other
        return self._starts[draw]

    @torch.inference_mode()
    def ends(self, process: Sampler, states: Tensor, draw: int) -> Tensor:
        """Data that the process and the tail make of states at sigma_max; the noise is the same for all states of a draw."""
        seeds = Seeds(range(10_000_000 * draw + 5_000_000, 10_000_000 * draw + 5_000_000 + len(states)))
        x = process.sample(self.model, states / self.sigma_max, rng=seeds)
        return self.tail.sample(self.model, x / self.sigma_min)

    def measure(self, process: Sampler, draw: int = 0) -> Errors:
        p, q, data = self.starts(draw)
        p, q = self.ends(process, p, draw), self.ends(process, q, draw)
        pairs = ((p, q), (q, data), (p, data))
        return Errors(*(wasserstein1(a, b)[0] for a, b in pairs), self.nfe(process))

    def over(self, process: Sampler, draws: range) -> dict[str, Estimate]:
        """Means over draws with their errors, by the names of `Errors`."""
        found = np.array([self.measure(process, draw)[:3] for draw in draws])
        spread = found.std(axis=0, ddof=1) / math.sqrt(len(found)) if len(found) > 1 else np.full(3, math.nan)
        return {
            name: Estimate(float(m), float(e), self.n, f"{name} error, W1", note=f"{len(found)} draws")
            for name, m, e in zip(Errors._fields, found.mean(axis=0), spread, strict=False)
        }


def toy(steps: int, name: str) -> Recipe:
    """The paper's score network of its toy: four layers of 64, the denoising loss, on 2000 points in 20 dimensions.

    The interval's samples are as good as this network, so one that stopped early is a recipe of its own.
    """

    def method(points: Dataset) -> Denoising:
        net, about = MLP(points.shape[0], width=64, depth=4), {"shape": points.shape, "t_range": (0.002, 80.0)}
        model = Preconditioned(net, EDM(), EDMPrecondition(points.sigma_data), name=name, **about)
        return Denoising(model, LogNormal(-1.2 + math.log(points.sigma_data / 0.5), 1.2))

    optimizer = OptimizerPlan(lr=2e-3, warmup_images=20_000, decay="cosine")
    return Recipe(
        name=name,
        data=DATA,
        method=method,
        plan=Plan(steps, 256, optimizer=optimizer, emas=(EmaPlan(half_life=20_000),), tick_steps=500),
        sampler=OdeSampler(Heun(), TimeGrid.karras(18, 0.002, 80.0)),
        cost="1 CPU minute",
        settings={"width": 64, "depth": 4},
    )


RECIPES = {"toy": lambda: toy(4000, "projected-modes"), "toy-weak": lambda: toy(400, "projected-modes-weak")}


def recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise UnknownName("recipe", name, RECIPES)
    return RECIPES[name]()


def points() -> Tensor:
    """The toy's points, (2000, 20) float64."""
    return load_dataset(DATA).x.double()


PUBLISHED = (
    *(
        Published("cifar10-uncond", "FID", fid, nfe, "Table 3", "VP model")
        for nfe, fid in ((43, 2.70), (55, 2.45), (75, 2.27), (115, 2.21), (519, 2.11))
    ),
    Published("cifar10-uncond", "FID", 1.90, 43, "main table", "EDM model"),
    *(
        Published("imagenet-64x64", "FID", fid, nfe, "Table 5", "EDM model")
        for nfe, fid in (
            (39, 2.38),
            (67, 1.95),
            (99, 1.71),
            (165, 1.51),
            (203, 1.46),
            (385, 1.41),
            (535, 1.39),
            (623, 1.36),
        )
    ),
)

PAPER = Paper(
    slug="restart",
    title="Restart Sampling for Improving Generative Processes",
    arxiv="2306.14878",
    family="sampler",
    recipe=recipe,
    recipes=tuple(RECIPES),
    published=PUBLISHED,
)
