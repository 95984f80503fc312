"""Self-Improving Diffusion Models with Synthetic Data (Alemohammad, Humayun, Agarwal, Collomosse, Baraniuk 2024, arXiv 2408.16333).

Time is the noise level, EDM's sigma. D_r is a denoiser trained on real data, D_s its copy, tuned on D_r's own samples and on nothing else.
    s(x; sigma) = (1 + omega) s_r - omega s_s      <=>      D = D_r + omega (D_r - D_s)              the method
    1  train D_r, freeze it            2  n_s samples of the plain D_r
    3  D_s <- copy of D_r, tuned on them by the same loss for a budget B       4  sample D, two calls at each evaluation
It is `explorer.models.Guided(D_r, 1 + omega, D_s)`: the weight of autoguidance is w = 1 + omega.

In closed form: for x0 ~ N(0, v) with estimates v_r and v_s the denoisers are v x / (v + sigma^2), the ODE of the combination is linear,
and started from N(0, sigma_max^2), sigma_max -> infinity, it ends in N(0, v_out) with
    v_out = v_r (v_r / v_s)^omega                                                                    (ours, by integrating ln x over sigma)
so that omega = ln(v / v_r) / ln(v_r / v_s) mends the estimate, and it is positive where v_r errs to the same side as v_s moves further.

Neon (Alemohammad et al. 2025, same first author) extrapolates weights in place of scores: theta = (1 + w) theta_r - w theta_s, one call.
No official code was found; budgets B and learning rates here are ours. The average of D_s starts from the weights of D_r.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from explorer.data import Dataset, Loader, load_dataset
from explorer.data.loader import mix
from explorer.data.pairs import PairStore
from explorer.errors import BadValue, UnknownName
from explorer.models.base import Denoiser, Preconditioned
from explorer.models.wrappers import Guided
from explorer.nets.edm_unet import CIFAR10_DDPMPP
from explorer.nets.mlp import MLP
from explorer.process.paths import EDM
from explorer.process.precondition import EDMPrecondition
from explorer.process.times import LogNormal
from explorer.reproduction import Bundled, Need, Paper, Published, Recipe, Trained
from explorer.reproduction.needs import Checkpoint
from explorer.reproduction.pairs import PairsOf, stored
from explorer.sampling import Heun, OdeSampler, Seeds, TimeGrid, sample
from explorer.training import EmaPlan, OptimizerPlan, Plan, seeded, train
from explorer.training.denoising import Denoising

SAMPLER = OdeSampler(Heun(), TimeGrid.karras(18, 0.002, 80.0))
N_REAL = 2000


def extrapolated(base: Denoiser, aux: Denoiser, omega: float) -> Denoiser:
    """D_r + omega (D_r - D_s): 0 is the base model, a negative omega goes towards the auxiliary."""
    return base if omega == 0 else Guided(base, 1 + omega, aux)


def in_weights(base: Preconditioned, aux: Preconditioned, w: float) -> Preconditioned:
    """A model with the weights (1 + w) theta_r - w theta_s, as Neon takes them: no second call.

    Raises: BadValue: networks of different architectures.
    """
    theirs = dict(aux.net.named_parameters())
    if {k: p.shape for k, p in base.net.named_parameters()} != {k: p.shape for k, p in theirs.items()}:
        raise BadValue("weights can be extrapolated between networks of one architecture only")
    out = copy.deepcopy(base)
    with torch.no_grad():
        for name, p in out.net.named_parameters():
            p.lerp_(theirs[name], -w)
    return out


def output_variance(v_r: float, v_s: float, omega: float) -> float:
    """Variance that the combination of two exact Gaussian denoisers ends in, from infinite noise: v_r (v_r / v_s)^omega."""
    return v_r * (v_r / v_s) ** omega


def mending_omega(v: float, v_r: float, v_s: float) -> float:
    """The omega with which `output_variance` is v."""
    return math.log(v / v_r) / math.log(v_r / v_s)


def content(x: Tensor) -> str:
    """SHA-256 of a set of samples, in whatever order, as single-precision numbers."""
    rows = sorted(row.tobytes() for row in x.detach().cpu().float().flatten(1).numpy())
    return hashlib.sha256(b"".join(rows)).hexdigest()


# Recipes


def few(data: Dataset, plan: Plan) -> Loader:
    """A stream of `N_REAL` real samples, others at each seed: a model of few data has something to improve."""
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(plan.seed))[:N_REAL]
    return Loader(
        dataclasses.replace(data, x=data.x[rows], labels=None, n_classes=0, draw=None), plan.batch_size, seed=plan.seed
    )


def plane(data: str = "8gaussians") -> Recipe:
    """D_r in the plane: a small network on 2000 points, ten seconds on one core."""
    settings = {"p_mean": -1.2, "p_std": 1.2, "width": 64, "depth": 3, "n_real": N_REAL}

    def method(points: Dataset) -> Denoising:
        about = {"shape": points.shape, "t_range": (0.002, 80.0), "name": name}
        model = Preconditioned(MLP(points.shape[0], 64, 3), EDM(), EDMPrecondition(points.sigma_data), **about)
        return Denoising(model, LogNormal(settings["p_mean"], settings["p_std"]))

    name = f"toy-{data}-few"
    return Recipe(
        name=name,
        data=data,
        method=method,
        plan=Plan(2000, 512, optimizer=OptimizerPlan(lr=2e-3, decay="cosine"), emas=(EmaPlan(half_life=50_000),)),
        sampler=SAMPLER,
        cost="10 CPU seconds",
        settings=settings,
        stream=few,
        notes=f"Trained on {N_REAL} points, not on fresh ones.",
    )


def self_trained(
    base: Need, name: str, data: str, *, n_s: int, n_steps: int, batch: int, lr: float, p_mean: float = -1.2, **about
) -> Recipe:
    """D_s: a copy of a model, tuned on `n_s` of its own samples for `n_steps` steps; the data set gives its shape, and no sample."""
    settings = {"n_synthetic": n_s, "p_mean": p_mean, "p_std": 1.2}

    def method(data: Dataset, base: Preconditioned, pairs: PairStore) -> Denoising:
        return Denoising(copied(base, name), LogNormal(p_mean, 1.2))

    return Recipe(
        name=name,
        data=data,
        method=method,
        plan=Plan(n_steps, batch, optimizer=OptimizerPlan(lr=lr), emas=(EmaPlan(half_life=20 * batch, ramp_up=None),)),
        sampler=SAMPLER,
        settings=settings,
        needs={"base": base, "pairs": PairsOf(base, SAMPLER, n_s)},
        stream=only_synthetic,
        notes="Tuned on its own samples only: worse by itself, and a direction to move away from.",
        **about,
    )


def copied(base: Preconditioned, name: str) -> Preconditioned:
    """A copy that can be trained."""
    out = copy.deepcopy(base)
    out.name = name
    return out.requires_grad_(True)


def only_synthetic(data: Dataset, plan: Plan, *, pairs: PairStore, base: Preconditioned):
    """The stored samples of the base model; the real data set is not looked at."""
    return stored(data, plan, pairs=pairs)


def auxiliary(data: str = "8gaussians", n_steps: int = 250, n_s: int = 4000) -> Recipe:
    """D_s in the plane, seconds on one core."""
    base, name = Trained(plane(data)), f"toy-{data}-self-{n_steps}"
    about = {
        "n_s": n_s,
        "n_steps": n_steps,
        "batch": 512,
        "lr": 1e-3,
        "cost": "20 CPU seconds, the base model included",
    }
    return self_trained(base, name, data, **about)


def digits() -> Recipe:
    """D_s of the bundled digits model, in the time of 2000 of its samples and 100 steps."""
    about = {"n_s": 2000, "n_steps": 100, "batch": 128, "lr": 5e-4, "p_mean": -0.8, "cost": "3 CPU minutes"}
    return self_trained(Bundled("digits"), "digits-self", "digits", **about)


def full_size() -> Recipe:
    """D_s of EDM's unconditional CIFAR-10 model, published weights: 100 000 samples, half a million training images."""
    base = Checkpoint("edm-cifar10-32x32-uncond-vp", {**CIFAR10_DDPMPP, "n_augment": 9})
    about = {"n_s": 100_000, "n_steps": 1000, "batch": 512, "lr": 1e-3, "cost": "hours on a GPU", "parameters": 55.7e6}
    return self_trained(base, "cifar10-self", "cifar10", **about)


# The loop of generations


def generations(
    kind: Literal["plain", "sims"],
    n: int = 10,
    *,
    first: Preconditioned | None = None,
    seed: int = 0,
    omega: float = 0.5,
    real_share: float = 0.0,
    n_train: int = 2000,
    n_steps: int = 200,
    aux_steps: int = 100,
    data: str = "8gaussians",
) -> Iterator[tuple[Denoiser, Tensor]]:
    """Models that learn from the samples of those before them: the generator of each generation, and what it was trained on.

    Generation 0 is trained on real data. Each later one goes on from its weights on `n_train` samples of the generator before, a share
    `real_share` of them replaced by real data. The plain loop generates with the model itself; with "sims" an auxiliary is tuned on fresh
    samples of the model first, and the generator is the extrapolation away from it.

    Args:
        n: generations after the first. first: the model of generation 0, if there is one; else it is trained.
        omega: of "sims". n_steps, aux_steps: of each tuning, 512 samples a step.
    """
    if kind not in ("plain", "sims"):
        raise UnknownName("kind of loop", kind, ("plain", "sims"))
    if not 0 <= real_share <= 1:
        raise BadValue(f"real_share is {real_share:g}; it must lie between 0 and 1")
    recipe, real = plane(data), load_dataset(data)
    rows = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))[:n_train]
    with seeded(seed):
        method = recipe.method(real)
    x, steps, start = real.x[rows], recipe.plan.n_steps, method.export(method.nets)
    for g in range(n + 1):
        trained = first if g == 0 else None
        model = trained or tuned(start, x, steps, seed=mix(seed, g, 0), lr=2e-3 if g == 0 else 1e-3)
        generator: Denoiser = model
        if kind == "sims":
            own = drawn(model, n_train, mix(seed, g, 1))
            generator = extrapolated(model, tuned(model, own, aux_steps, seed=mix(seed, g, 2), lr=1e-3), omega)
        yield generator, x
        x = drawn(generator, n_train, mix(seed, g, 3))
        n_real = round(real_share * n_train)
        x[:n_real] = real.x[rows[:n_real]]
        start, steps = model, n_steps


def drawn(model: Denoiser, n: int, seed: int) -> Tensor:
    """n samples of a generation, (n, *shape)."""
    first = seed % (1 << 40)
    return sample(model, SAMPLER, Seeds(range(first, first + n)), batch=n).float()


def tuned(model: Preconditioned, x: Tensor, n_steps: int, *, seed: int, lr: float) -> Preconditioned:
    """A copy of the model after `n_steps` steps of 512 on the samples x (N, *shape), averaged from its first weights on."""
    method = Denoising(copied(model, model.name), LogNormal(-1.2, 1.2))
    optimizer, ema = OptimizerPlan(lr=lr, decay="cosine"), EmaPlan(half_life=10_000, ramp_up=None)
    plan = Plan(n_steps, 512, optimizer=optimizer, emas=(ema,), seed=seed % (1 << 31), tick_steps=n_steps)
    for tick in train(method, Loader(Dataset("samples", x), 512, seed=plan.seed), plan):
        last = tick
    return method.export(last.emas["ema"]).eval().requires_grad_(False)


RECIPES: dict[str, Callable[[], Recipe]] = {
    "toy": auxiliary,
    "toy-few": plane,
    "toy-8gaussians-self-250": auxiliary,
    "toy-8gaussians-self-1000": partial(auxiliary, n_steps=1000),
    "digits": digits,
    "cifar10": full_size,
}


def recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise UnknownName("recipe", name, RECIPES)
    return RECIPES[name]()


NEON = "quoted by the same first author in a later paper, Table A.1"
PUBLISHED = (
    Published("cifar10-uncond", "FID", 1.33, 70, NEON, "EDM-VP, base 1.97"),
    Published("ffhq-64x64", "FID", 1.04, 158, NEON, "EDM-VP, base 2.39"),
)

PAPER = Paper(
    slug="sims",
    title="Self-Improving Diffusion Models with Synthetic Data",
    arxiv="2408.16333",
    family="guidance",
    recipe=recipe,
    recipes=tuple(RECIPES),
    published=PUBLISHED,
)
