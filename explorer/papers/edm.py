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

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from explorer.data import Batch, Dataset, NonLeaking
from explorer.errors import UnknownName
from explorer.models.base import Preconditioned
from explorer.nets.edm_unet import (
    CIFAR10_DDPMPP,
    CIFAR10_NCSNPP,
    FFHQ64_DDPMPP,
    FFHQ64_NCSNPP,
    IMAGENET64_ADM,
    EDMUNet,
)
from explorer.nets.mlp import MLP
from explorer.nets.unet import DIGITS_UNET, UNet
from explorer.process.broadcast import like
from explorer.process.paths import EDM
from explorer.process.precondition import EDMPrecondition
from explorer.process.times import LogNormal
from explorer.reproduction import Paper, Published, Recipe
from explorer.sampling.grids import TimeGrid
from explorer.sampling.samplers import OdeSampler
from explorer.sampling.solvers import EDMStochastic, Heun
from explorer.training import EmaPlan, Method, OptimizerPlan, Plan, Progress, Update
from explorer.training.augmented import Augmented, augmented_batches

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
        yield Update(("net",), loss.mean(), levels=(sigma, loss))

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


def shapes() -> Recipe:
    """An hour on one core: coloured shapes at 16x16 with their four classes; sd = 0.36 and P_mean moved with it, as for digits."""
    settings = {"p_mean": -1.5, "p_std": 1.2, "label_dropout": 0.1}

    def method(data: Dataset) -> EDMTraining:
        return EDMTraining(
            UNet(data.shape, 64, (1, 2, 2), 2, n_classes=data.n_classes),
            shape=data.shape,
            sigma_data=data.sigma_data,
            times=LogNormal(settings["p_mean"], settings["p_std"]),
            n_classes=data.n_classes,
            label_dropout=settings["label_dropout"],
            name="shapes",
        )

    optimizer = OptimizerPlan(lr=1e-3, betas=(0.9, 0.99), warmup_images=25_600, decay="cosine", clip=1.0)
    return Recipe(
        name="shapes",
        data="shapes",
        method=method,
        plan=Plan(6000, 128, optimizer=optimizer, emas=(EmaPlan(half_life=50_000),)),
        sampler=OdeSampler(Heun(), TimeGrid.karras(18, *SIGMA_RANGE)),
        cost="an hour on a CPU, minutes on a GPU",
        settings=settings,
        notes="Label -1 is the null class, trained by label dropout.",
    )


SHAPES32_UNETS = {
    "shapes32": {"channels": 32, "mult": (1, 2, 3)},
    "shapes32-small": {"channels": 16, "mult": (1, 2, 4)},
}


def shapes32(name: str) -> Recipe:
    """Lit shapes of 32x32 in six classes, and a smaller, poorer model of them, for a good one to be guided away from.

    sd = 0.26 is measured. P_mean lies above digits' rule (-1.9) and P_std is wider: class, colour and place of an object of a
    hundred pixels are settled while the noise is still several times its contrast. All losses were still falling.
    """
    small = name.endswith("-small")
    settings = {"p_mean": -1.0, "p_std": 1.4, "label_dropout": 0.1}

    def method(data: Dataset) -> EDMTraining:
        return EDMTraining(
            UNet(data.shape, **SHAPES32_UNETS[name], blocks=(0, 1, 1), n_classes=data.n_classes, patch=2),
            shape=data.shape,
            sigma_data=data.sigma_data,
            times=LogNormal(settings["p_mean"], settings["p_std"]),
            n_classes=data.n_classes,
            label_dropout=settings["label_dropout"],
            name=name,
        )

    optimizer = OptimizerPlan(lr=2e-3, betas=(0.9, 0.99), warmup_images=12_800, decay="cosine", clip=1.0)
    return Recipe(
        name=name,
        data="shapes32",
        method=method,
        plan=Plan(
            1400 if small else 5400, 64, optimizer=optimizer, emas=(EmaPlan(half_life=20_000),), snapshot_steps=200
        ),
        sampler=OdeSampler(Heun(), TimeGrid.karras(18, *SIGMA_RANGE)),
        more=tuple(OdeSampler(Heun(), TimeGrid.karras(n, *SIGMA_RANGE)) for n in (5, 9)),
        cost="3 CPU minutes" if small else "half an hour on one CPU core",
        settings=settings,
        notes="Label -1 is the null class, trained by label dropout.",
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


@dataclass(frozen=True)
class Run:
    """One of the paper's own trainings: Table 7 and the defaults of the official code, on the nets of Appendix F.1.

    Attributes:
        images: length of the training, in images.
        half_life: of the average, in images.
        parameters: as published.
    """

    data: str
    net: Mapping[str, Any]
    parameters: float
    images: float = 200e6
    batch: int = 512
    lr: float = 1e-3
    half_life: float = 5e5
    sampler: OdeSampler = OdeSampler(Heun(), TimeGrid.karras(18, *SIGMA_RANGE))
    autocast: str | None = None
    augment: float = 0.0  # probability of each change, Table 7


SLOW = OdeSampler(Heun(), TimeGrid.karras(40, *SIGMA_RANGE))  # 79 evaluations, for 64x64
CHURNED = OdeSampler(EDMStochastic(40.0, 0.05, 50.0, 1.003), TimeGrid.karras(256, *SIGMA_RANGE))  # 511, for ImageNet
AFHQ64 = {**FFHQ64_DDPMPP, "dropout": 0.25}
FACES = {"batch": 256, "lr": 2e-4, "sampler": SLOW, "augment": 0.15}
RUNS = {
    "cifar10": Run("cifar10", {**CIFAR10_DDPMPP, "n_classes": 10}, 55.7e6, augment=0.12),
    "cifar10-uncond": Run("cifar10", CIFAR10_DDPMPP, 55.7e6, augment=0.12),
    "cifar10-ve": Run("cifar10", {**CIFAR10_NCSNPP, "n_classes": 10}, 56.4e6, augment=0.12),
    "ffhq64": Run("ffhq64", FFHQ64_DDPMPP, 61.8e6, **FACES),
    "ffhq64-ve": Run("ffhq64", FFHQ64_NCSNPP, 62.8e6, **FACES),
    "afhqv2-64": Run("afhqv2-64", AFHQ64, 61.8e6, **FACES),
    "imagenet64": Run("imagenet64", IMAGENET64_ADM, 295.9e6, 2500e6, 4096, 1e-4, 50e6, CHURNED, "bfloat16"),
}


def full_size(name: str) -> Recipe:
    """Configuration F of Table 2 as published, with its augmentation (none for ImageNet)."""
    run = RUNS[name]

    def method(data: Dataset) -> EDMTraining:
        net, n_classes = EDMUNet(**run.net), run.net.get("n_classes", 0)
        plain = EDMTraining(net, shape=data.shape, sigma_data=0.5, times=LogNormal(-1.2, 1.2), n_classes=n_classes)
        return Augmented(plain) if run.augment else plain

    return Recipe(
        name=name,
        data=run.data,
        method=method,
        plan=Plan(
            int(run.images) // run.batch,
            run.batch,
            optimizer=OptimizerPlan(lr=run.lr, warmup_images=10_000_000),
            emas=(EmaPlan(half_life=run.half_life),),
            autocast=run.autocast,
        ),
        sampler=run.sampler,
        cost=f"{run.images / 1e6:.0f} million images: days on several GPUs",
        settings={"augment": run.augment},
        stream=partial(augmented_batches, augment=NonLeaking(run.augment)) if run.augment else None,
        parameters=run.parameters,
    )


RECIPES = {
    "toy": lambda: plane("8gaussians"),
    "toy-8gaussians": lambda: plane("8gaussians"),
    "toy-moons": lambda: plane("moons"),
    "toy-checkerboard": lambda: plane("checkerboard"),
    "digits": lambda: digits(conditional=True),
    "digits-uncond": lambda: digits(conditional=False),
    "shapes": shapes,
    **{name: partial(shapes32, name) for name in SHAPES32_UNETS},
    **{name: partial(full_size, name) for name in RUNS},
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


PAPER = Paper(
    slug="edm",
    title="Elucidating the Design Space of Diffusion-Based Generative Models",
    arxiv="2206.00364",
    family="diffusion",
    recipe=recipe,
    recipes=tuple(RECIPES),
    published=PUBLISHED,
)
