"""Elucidating the Design Space of Diffusion-Based Generative Models (Karras, Aittala, Aila, Laine 2022, arXiv 2206.00364).

Time is the noise level: t = sigma, data at sigma = 0, as in the paper.
    x = x0 + sigma eps                                                                    the path, s(t) = 1, sigma(t) = t
    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)                                     Eq. 7, Table 1 (last column)
    dx/dsigma = (x - D(x; sigma)) / sigma                                                 Eq. 1 with Eq. 3
    ln sigma ~ N(P_mean, P_std^2)                                                         Sec. 5, Table 1
    L = E[ lambda(sigma) |D(x; sigma) - x0|^2 ],  lambda = (sigma^2 + sd^2) / (sigma sd)^2 = 1 / c_out^2      Eq. 2, Table 1
    sigma_i = (smax^(1/rho) + i/(N-1) (smin^(1/rho) - smax^(1/rho)))^rho, sigma_N = 0     Eq. 5, rho = 7
Written sd: the standard deviation of the data, 0.5 for the paper's images, measured for ours. The squared norm is a mean over
pixels here, not the sum of the official code: Adam does not see the factor, and an untrained network has loss 1 at every sigma.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from explorer.data import Batch, Dataset, oracle
from explorer.errors import UnknownName
from explorer.metrics.base import Estimate
from explorer.metrics.features import points_space
from explorer.metrics.kernel import energy_distance
from explorer.models.base import Denoiser, Oracle, Preconditioned
from explorer.nets.mlp import MLP
from explorer.nets.unet import DIGITS_UNET, UNet
from explorer.process.broadcast import like
from explorer.process.oracles import GaussianMixture
from explorer.process.paths import EDM
from explorer.process.precondition import EDMPrecondition
from explorer.process.times import LogNormal
from explorer.reproduction import Bench, Claim, Paper, Published, Recipe, Verdict
from explorer.sampling.grids import TimeGrid
from explorer.sampling.samplers import OdeSampler, sample
from explorer.sampling.seeds import Seeds
from explorer.sampling.solve import Solver
from explorer.sampling.solvers import EDMStochastic, Euler, Heun
from explorer.training import EmaPlan, Method, OptimizerPlan, Plan, Progress, Update

SIGMA_RANGE = (0.002, 80.0)  # Table 1: sigma_min, sigma_max of the sampler


class EDMTraining(Method):
    """Denoising score matching with the preconditioning, weight and noise distribution of the paper.

    Args:
        net: F, as `forward(x, c_noise, labels)`.
        sigma_data: sd.
        times: distribution of sigma.
        label_dropout: share of labels replaced by the null class, so that one network serves both ends of classifier-free
            guidance (Ho & Salimans 2022, arXiv 2207.12598). Not in the paper.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        shape: tuple[int, ...],
        sigma_data: float,
        times: LogNormal,
        n_classes: int = 0,
        label_dropout: float = 0.0,
        name: str = "",
    ):
        super().__init__()
        self.nets = nn.ModuleDict({"net": net})
        self.shape, self.sigma_data, self.times = shape, sigma_data, times
        self.n_classes, self.label_dropout, self.name = n_classes, label_dropout, name

    def export(self, nets) -> Preconditioned:
        return Preconditioned(
            nets["net"],
            EDM(),
            EDMPrecondition(self.sigma_data),
            shape=self.shape,
            n_classes=self.n_classes,
            t_range=SIGMA_RANGE,
            name=self.name,
        )

    def updates(self, batch: Batch, progress: Progress):
        loss, sigma = self.loss(batch, progress.generator)
        parts = {"low": loss[sigma < 0.2], "mid": loss[(sigma >= 0.2) & (sigma < 1)], "high": loss[sigma >= 1]}
        yield Update(("net",), loss.mean(), {f"loss/{k}_sigma": v.mean() for k, v in parts.items() if len(v)})

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Weighted loss of every image and the sigma it was drawn at: (B,), (B,)."""
        x0 = batch.x0
        draw = {"generator": generator, "device": x0.device, "dtype": x0.dtype}
        sigma = self.times.sample(len(x0), **draw)
        eps = torch.randn(x0.shape, **draw)
        labels = None
        if self.n_classes:
            dropped = torch.rand(len(x0), **draw) < self.label_dropout
            labels = torch.where(dropped, -1, batch.labels)
        x = x0 + like(sigma, x0) * eps
        return self.weighted_error(x, x0, sigma, labels), sigma

    def weighted_error(self, x: Tensor, x0: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """lambda(sigma) |D(x; sigma) - x0|^2, mean over pixels: (B,)."""
        weight = (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2  # Table 1, lambda
        error = self.export(self.nets).denoise(x, sigma, labels) - x0
        return weight * error.square().flatten(1).mean(1)  # Eq. 2


# Recipes


def digits(conditional: bool) -> Recipe:
    """About 10 (with classes) and 15 minutes on one core: 1 800 and 2 400 steps of 128 images, 180 and 240 epochs.

    sd = 0.75 is measured on the training split, and P_mean is moved by the same factor as sd: -1.2 + ln(0.75 / 0.5) = -0.8.
    The lengths are a choice between quality and memory. With classes, 1 800 steps leave samples as far from the training
    images as held-out ones are; 3 600 halve the errors of the labels, but samples come nearer (KS 0.12 in features).
    Without classes, 3 600 steps were at the edge of that (KS 0.05 in features, 0.08 in pixels), hence 2 400.
    """
    settings = {"p_mean": -0.8, "p_std": 1.2, "label_dropout": 0.1 if conditional else 0.0, "dropout": 0.1}

    def method(data: Dataset) -> EDMTraining:
        n_classes = data.n_classes if conditional else 0
        net = UNet(**DIGITS_UNET, n_classes=n_classes, dropout=settings["dropout"])
        return EDMTraining(
            net,
            shape=data.shape,
            sigma_data=data.sigma_data,
            times=LogNormal(settings["p_mean"], settings["p_std"]),
            n_classes=n_classes,
            label_dropout=settings["label_dropout"],
            name=name,
        )

    name = "digits" if conditional else "digits-uncond"
    optimizer = OptimizerPlan(lr=2e-3, betas=(0.9, 0.99), warmup_images=12_800, decay="cosine", clip=1.0)
    return Recipe(
        name=name,
        data="digits",
        method=method,
        plan=Plan(1800 if conditional else 2400, 128, optimizer=optimizer, emas=(EmaPlan(half_life=18_000),)),
        sampler=OdeSampler(Heun(), TimeGrid.karras(18, *SIGMA_RANGE)),
        cost="10 CPU minutes",
        settings=settings,
        notes="Label -1 is the null class, trained by label dropout." if conditional else "",
    )


def plane(data: str) -> Recipe:
    """A minute on one core: an MLP on fresh points of a toy, without classes."""
    settings = {"p_mean": -1.2, "p_std": 1.6}  # wider than for images: the modes of the toys are narrow

    def method(points: Dataset) -> EDMTraining:
        return EDMTraining(
            MLP(points.shape[0], width=128, depth=3),
            shape=points.shape,
            sigma_data=points.sigma_data,
            times=LogNormal(settings["p_mean"], settings["p_std"]),
            name=f"toy-{data}",
        )

    optimizer = OptimizerPlan(lr=2e-3, betas=(0.9, 0.99), warmup_images=50_000, decay="cosine")
    return Recipe(
        name=f"toy-{data}",
        data=data,
        method=method,
        plan=Plan(6000, 512, optimizer=optimizer, emas=(EmaPlan(half_life=60_000),), tick_steps=500),
        sampler=OdeSampler(Heun(), TimeGrid.karras(18, *SIGMA_RANGE)),
        cost="1 CPU minute",
        settings=settings,
    )


def cifar10(conditional: bool) -> Recipe:
    """The settings of configuration F for CIFAR-10, on our U-Net instead of DDPM++ and without its augmentation."""

    def method(data: Dataset) -> EDMTraining:
        n_classes = data.n_classes if conditional else 0
        net = UNet(data.shape, 128, (2, 2, 2), 4, attention=(16,), n_classes=n_classes, dropout=0.13)
        return EDMTraining(net, shape=data.shape, sigma_data=0.5, times=LogNormal(-1.2, 1.2), n_classes=n_classes)

    optimizer = OptimizerPlan(lr=1e-3, warmup_images=10_000_000)
    return Recipe(
        name="cifar10" if conditional else "cifar10-uncond",
        data="cifar10",
        method=method,
        plan=Plan(200_000_000 // 512, 512, optimizer=optimizer, emas=(EmaPlan(half_life=500_000),), tick_steps=100),
        sampler=OdeSampler(Heun(), TimeGrid.karras(18, *SIGMA_RANGE)),
        cost="200 million images: days on several GPUs",
    )


RECIPES = {
    "toy": lambda: plane("8gaussians"),
    "toy-8gaussians": lambda: plane("8gaussians"),
    "toy-moons": lambda: plane("moons"),
    "toy-checkerboard": lambda: plane("checkerboard"),
    "digits": lambda: digits(conditional=True),
    "digits-uncond": lambda: digits(conditional=False),
    "cifar10": lambda: cifar10(conditional=True),
    "cifar10-uncond": lambda: cifar10(conditional=False),
}


def recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise UnknownName("recipe", name, RECIPES)
    return RECIPES[name]()


PUBLISHED = (
    Published("cifar10", "FID", 1.79, 35, "official repository, README", "conditional, VP, configuration F"),
    Published("cifar10-uncond", "FID", 1.97, 35, "abstract", "unconditional, VP, configuration F"),
    Published("ffhq-64x64", "FID", 2.39, 79, "official repository, README", "VP, configuration F"),
    Published("afhqv2-64x64", "FID", 1.96, 79, "official repository, README", "VP, configuration F"),
    Published("imagenet-64x64", "FID", 1.36, 511, "official repository, README", "stochastic sampler"),
    Published("imagenet-64x64", "FID", 1.55, None, "abstract", "pre-trained ADM, stochastic sampler"),
)


# Claims, measured on the exact denoiser of eight Gaussian modes


def _ends(model: Denoiser, solver: Solver, grid: TimeGrid, n: int = 256) -> Tensor:
    return sample(model, OdeSampler(solver, grid), Seeds(range(n)), labels=None)


def _rmse(solver: Solver, grid: TimeGrid, n: int = 256) -> Estimate:
    """Root mean square distance of the endpoints from those of 600 Heun steps on the same noise."""
    model = Oracle(oracle("8gaussians"))
    exact = _ends(model, Heun(), TimeGrid.karras(600, *SIGMA_RANGE), n)
    square = (_ends(model, solver, grid, n) - exact).square().mean(1)
    value = float(square.mean().sqrt())
    return Estimate(value, float(square.std()) / math.sqrt(n) / (2 * value), n, "endpoint RMSE")


def gaussian_map(bench: Bench) -> Verdict:
    sd = 0.5
    model = Oracle(GaussianMixture(torch.zeros(1, 2), sd))
    exact = Seeds(range(64)).normal((2,)) * 80 * sd / math.hypot(sd, 80)
    heun, euler = (
        float((_ends(model, solver, TimeGrid.karras(18, *SIGMA_RANGE), 64) / exact - 1).abs().mean())
        for solver in (Heun(), Euler())
    )
    measured = Estimate(heun, 0.0, 64, "relative error of Heun, 18 steps")
    return Verdict(heun < 0.08 and euler > 2 * heun, measured, 0.08, f"Euler's is {euler:.3f}")


def orders(bench: Bench) -> Verdict:
    slope = {
        solver: math.log(
            _rmse(solver, TimeGrid.karras(32, *SIGMA_RANGE)).value
            / _rmse(solver, TimeGrid.karras(128, *SIGMA_RANGE)).value,
            4,
        )
        for solver in (Euler(), Heun())
    }
    euler, heun = slope.values()
    measured = Estimate(heun, 0.0, 256, "order of Heun, 32 to 128 steps")
    return Verdict(abs(heun - 2) < 0.3 and abs(euler - 1) < 0.15, measured, 2.0, f"Euler's is {euler:.2f}")


def warp(bench: Bench) -> Verdict:
    errors = {rho: _rmse(Heun(), TimeGrid.karras(18, *SIGMA_RANGE, rho=rho)) for rho in (1.0, 3.0, 7.0)}
    holds = errors[1.0].value > 50 * errors[7.0].value and errors[3.0].value > 2 * errors[7.0].value
    text = f"RMSE {errors[3.0].value:.3g} at rho = 3 and {errors[1.0].value:.3g} at rho = 1"
    return Verdict(holds, errors[7.0], errors[3.0].value / 2, text)


def churn(bench: Bench, n: int = 2000) -> Verdict:
    model, grid = Oracle(oracle("8gaussians")), TimeGrid.karras(64, *SIGMA_RANGE)
    real, other = (model.mixture.sample(n, generator=torch.Generator().manual_seed(k))[0] for k in (0, 1))

    def distance(x: Tensor) -> Estimate:
        metric = energy_distance(points_space(2), real)
        metric.update(x)
        return metric.compute()

    floor = distance(other)
    values = [distance(_ends(model, EDMStochastic(s_churn=c), grid, n)) for c in (0.0, 20.0, 40.0)]
    worst = max(values, key=lambda e: e.value)
    limit = floor.value + 3 * math.hypot(worst.std_error, floor.std_error)
    shown = ", ".join(f"{e.value:.2g}" for e in values)
    return Verdict(worst.value <= limit, worst, limit, f"{shown} at S_churn 0, 20, 40")


class Zero(nn.Module):
    """F = 0: what the last layer of the paper's networks gives before training."""

    def forward(self, x: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)


def unit_loss(bench: Bench, n: int = 20_000) -> Verdict:
    mixture, g = oracle("8gaussians"), torch.Generator().manual_seed(0)
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


def loss_over_exact(denoiser: Denoiser, sigma: float, n: int = 8192) -> float:
    """Weighted loss at one sigma over that of the exact denoiser, which is what the data leave irreducible."""
    g = torch.Generator().manual_seed(0)
    exact = Oracle(oracle("8gaussians"))
    x0, _ = exact.mixture.sample(n, generator=g)
    x = x0 + sigma * torch.randn(x0.shape, generator=g, dtype=x0.dtype)
    with torch.no_grad():
        mine, best = ((m.denoise(x, sigma) - x0).square().mean() for m in (denoiser, exact))
    return float(mine / best)


def trained(bench: Bench) -> Verdict:
    model, times = bench.model(plane("8gaussians")), LogNormal(-1.2, 1.6)
    deciles = times.quantile(torch.arange(0.05, 1.0, 0.1, dtype=torch.float64)).tolist()
    worst = max(loss_over_exact(model, sigma) for sigma in deciles)
    measured = Estimate(worst, 0.0, 8192, "loss over that of the exact denoiser, worst sigma decile")
    return Verdict(worst < 1.1, measured, 1.1, "median sigma of each decile")


CLAIMS = (
    Claim("Heun solves a Gaussian's ODE to a few per cent in 18 steps, Euler far worse", "Sec. 3", gaussian_map, 0.1),
    Claim("Heun's endpoint error falls with the square of the step, Euler's in proportion", "Sec. 3", orders, 0.5),
    Claim("rho near 7 places the steps well", "Sec. 3, Appendix D.1", warp, 0.2),
    Claim("with an exact denoiser, churn leaves the distribution unchanged", "Sec. 4", churn, 0.5),
    Claim("an untrained network has unit loss at every noise level", "Sec. 5, Appendix B.6", unit_loss, 0.1),
    Claim("the trained denoiser approaches the exact one at every noise level", "Sec. 5", trained, 2.0),
)

PAPER = Paper(
    slug="edm",
    title="Elucidating the Design Space of Diffusion-Based Generative Models",
    arxiv="2206.00364",
    family="diffusion",
    recipe=recipe,
    recipes=tuple(RECIPES),
    published=PUBLISHED,
    claims=CLAIMS,
)
