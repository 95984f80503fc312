"""Improved Distribution Matching Distillation (Yin et al. 2024, arXiv 2405.14867): the generator follows a score difference and a GAN.

Time: EDM's, x_s = x + s n. G is the student, D_p the teacher, D_q the fake score (denoiser of G's samples), C a head on D_q's bottleneck.
(1) x = G(s_1 z, s_1)                                      one step; few: G(x_j, s_j) with x_{j+1} = sg[G(x_j, s_j)] + s_{j+1} n
(2) L_DM = 1/2 mean (x - sg[x - (D_q - D_p)(x_s) / mean|x - D_p|])^2        reverse KL; s at 2 % to 98 % of Karras et al.'s grid
(3) L_G = L_DM + w_G softplus(-C(x_s'))                    every R-th step (two time scales), without the regression of DMD
(4) L_F = (1/s^2 + 1/sd^2) mean (D_q(x_s) - sg[x])^2 + w_C [softplus(C(fake_s')) + softplus(-C(real_s''))]       every step
All noise levels and noises are drawn apart. Settings: the authors' released scripts for ImageNet-64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from explorer.data import Dataset
from explorer.errors import UnknownName
from explorer.models import bundled
from explorer.models.base import Denoiser, Preconditioned
from explorer.nets.discriminators import head_for
from explorer.nets.edm_unet import CIFAR10_DDPMPP, IMAGENET64_ADM
from explorer.process.times import KarrasUniform, TimeDistribution
from explorer.reproduction import Bundled, Paper, Published, Recipe
from explorer.reproduction.needs import Checkpoint
from explorer.sampling.grids import TimeGrid
from explorer.sampling.samplers import OdeSampler
from explorer.sampling.solvers import Jump
from explorer.training import EmaPlan, OptimizerPlan, Plan, Progress, Update
from explorer.training.matching import DistributionMatching, Law, aside, copy_of


class DMD2(DistributionMatching):
    """Distribution matching on two time scales with a diffusion GAN on the fake score's bottleneck.

    Args:
        gan_weight: w_G; disc_weight: w_C. With both 0 there is no head, and a run is bit for bit the one without a GAN: what the GAN
            draws comes from a stream of its own.
        gan_times: noise levels at which the discriminator compares.
        settings: see `DistributionMatching`.
    """

    def __init__(
        self,
        student: nn.Module,
        fake_score: nn.Module | Law,
        teacher: Denoiser,
        *,
        gan_weight: float = 3e-3,
        disc_weight: float = 1e-2,
        gan_times: TimeDistribution | None = None,
        **settings,
    ):
        head = head_for(fake_score) if gan_weight or disc_weight else None
        super().__init__(student, fake_score, teacher, head=head, **settings)
        self.gan_weight, self.disc_weight = gan_weight, disc_weight
        self.gan_times = gan_times or KarrasUniform()

    def updates(self, batch, progress: Progress):
        own, gan = progress.generator, aside(progress.generator)
        turn = self.is_students_turn(progress)
        with torch.set_grad_enabled(turn):
            fakes = self.generate(batch, own)  # (1)
        if turn:
            matched = self.matching_loss(fakes, own)  # (2)
            loss, logs = matched.loss, {"direction": matched.delta.square().mean().sqrt()}
            if self.gan_weight:
                realism = self.realism_loss(fakes, self.gan_times, gan)
                loss, logs = loss + self.gan_weight * realism, logs | {"realism": realism.mean()}
            yield Update(("student",), loss.mean(), logs, (matched.sigma, matched.loss))  # (3)
        if self.law is not None:
            return
        fakes = fakes.detach()
        loss, sigma = self.fake_loss(fakes, own)
        if "disc" not in self.nets:
            yield Update(("fake_score",), loss.mean(), {}, (sigma, loss))  # (4)
            return
        told = self.discrimination_loss(fakes, batch, self.gan_times, gan)
        logs = {"denoising": loss.mean(), "discrimination": told.mean()}
        yield Update(("fake_score", "disc"), (loss + self.disc_weight * told).mean(), logs, (sigma, loss))  # (4)


# Recipes

FEW = (80.0, 2.0, 0.7, 0.25)
"""Levels of the four-step toy students: pure noise, then about 4, 1.4 and 0.5 standard deviations of the data."""


ONE_STEP = {"solver": "jump", "n_steps": 1}


def jumps(levels: tuple[float, ...]) -> OdeSampler:
    """The student's sampler: predict, add fresh noise up to the next level, predict. One level is one network call."""
    return OdeSampler(Jump(), TimeGrid((*levels, 0.0)))


def adam(lr: float, **settings) -> OptimizerPlan:
    return OptimizerPlan(lr=lr, clip=10.0, **settings)


def plane(data: str, levels: tuple[float, ...] = (80.0,), name: str = "", **settings) -> Recipe:
    """A minute or two on one core: a toy whose teacher is exact where there is a closed form, else the bundled EDM model.

    Student and fake score start as copies of the bundled EDM network.
    """
    settings = {"ratio": 5, "gan_weight": 0.05, "disc_weight": 0.1, "simulate": True, "levels": levels, **settings}

    def method(points: Dataset, teacher: Denoiser, start: Preconditioned) -> DMD2:
        nets = copy_of(start.net), copy_of(start.net)
        return DMD2(*nets, teacher, sigma_data=points.sigma_data, name=name, **settings)

    name = name or f"toy-{data}-dmd2"
    exact = f"oracle-{data}" in bundled.names("oracle")
    return Recipe(
        name=name,
        data=data,
        method=method,
        plan=Plan(
            3000, 256, optimizer=adam(1e-3), optimizers={"student": adam(5e-4)}, emas=(EmaPlan(half_life=25_000),)
        ),
        sampler=jumps(levels),
        cost="2 CPU minutes",
        settings=settings,
        knobs={} if len(levels) > 1 else ONE_STEP,
        needs={"teacher": Bundled(f"oracle-{data}" if exact else f"toy-{data}"), "start": Bundled(f"toy-{data}")},
        notes=f"Teacher: the {'exact' if exact else 'bundled EDM'} denoiser.",
    )


def pictures(data: str, teacher: str, name: str = "", *, cost: str = "", **settings) -> Recipe:
    """A small image set: the student, with the teacher's classes, starts as the bundled teacher and is asked at sigma 80."""
    settings = {"ratio": 5, "gan_weight": 3e-3, "disc_weight": 1e-2, "guidance": 1.0, **settings}

    def method(images: Dataset, teacher: Preconditioned) -> DMD2:
        sigma_data = teacher.precondition.sigma_data
        nets = copy_of(teacher.net), copy_of(teacher.net)
        return DMD2(*nets, teacher, sigma_data=sigma_data, name=name, **settings)

    name = name or f"{data}-dmd2"
    return Recipe(
        name=name,
        data=data,
        method=method,
        plan=Plan(
            1300,
            64,
            optimizer=adam(1e-3, warmup_images=3000),
            optimizers={"student": adam(5e-4, warmup_images=3000)},
            emas=(EmaPlan(half_life=6400),),
        ),
        sampler=jumps((80.0,)),
        cost=cost,
        settings=settings,
        knobs=ONE_STEP,
        needs={"teacher": Bundled(teacher)},
        notes=f"One network call. Student and fake score start as the teacher {teacher!r}.",
    )


def full_size(data: str, teacher: Checkpoint, *, lr: float, steps: int, parameters: float, notes: str) -> Recipe:
    """The released ImageNet-64 script: 7 GPUs of 40 images, AdamW, bfloat16, no average of the weights."""
    settings = {"ratio": 5, "gan_weight": 3e-3, "disc_weight": 1e-2}

    def method(images: Dataset, teacher: Preconditioned) -> DMD2:
        return DMD2(
            copy_of(teacher.net), copy_of(teacher.net), teacher, sigma_data=0.5, name=f"{data}-dmd2", **settings
        )

    last = EmaPlan("last", half_life=1.0, ramp_up=None)  # a half-life of one image: the weights as they are
    optimizer = adam(lr, weight_decay=0.01, warmup_images=500 * 280)
    return Recipe(
        name=f"{data}-dmd2",
        data=data,
        method=method,
        plan=Plan(steps, 280, optimizer=optimizer, emas=(last,), autocast="bfloat16"),
        sampler=jumps((80.0,)),
        ema="last",
        cost="53 hours on 7 A100 in the paper",
        settings=settings,
        needs={"teacher": teacher},
        notes=notes,
        parameters=parameters,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "toy": partial(plane, "8gaussians"),
    "toy-8gaussians": partial(plane, "8gaussians"),
    "toy-8gaussians-4step": partial(plane, "8gaussians", FEW, "toy-8gaussians-dmd2-4step"),
    "toy-moons": partial(plane, "moons"),
    "digits": partial(pictures, "digits", "digits", cost="7 CPU minutes"),
    "shapes": partial(pictures, "shapes", "shapes", cost="an hour on one CPU core"),
    "cifar10": partial(
        full_size, "cifar10", Checkpoint("edm-cifar10-32x32-cond-vp", {**CIFAR10_DDPMPP, "n_classes": 10}),
        lr=5e-5, steps=150_000, parameters=55.7e6,
        notes="Not in the paper: learning rate of the DMD2-like CIFAR-10 script of arXiv 2502.09609, the rest as for ImageNet-64.",
    ),
    "imagenet64": partial(
        full_size, "imagenet64", Checkpoint("edm-imagenet-64x64-cond-adm", IMAGENET64_ADM),
        lr=2e-6, steps=200_000, parameters=295.9e6,
        notes="FID 1.51 after 200 000 steps; 1.28 by 410 000 without GAN and 140 000 with, at a learning rate of 5e-7.",
    ),
}  # fmt: skip


def recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise UnknownName("recipe", name, RECIPES)
    return RECIPES[name]()


PUBLISHED = (
    Published("imagenet-64x64", "FID", 1.51, 1, "official repository, README", "with GAN, one run"),
    Published("imagenet-64x64", "FID", 1.28, 1, "abstract", "fine-tuned with GAN"),
    Published("imagenet-64x64", "FID", 2.61, 1, "official repository, README", "two time scales, no GAN"),
    Published("imagenet-64x64", "FID", 2.62, 1, "abstract of arXiv 2311.18828", "DMD"),
    Published("coco-2014", "FID", 8.35, 1, "abstract", "Stable Diffusion 1.5, zero-shot"),
    Published("coco-2014", "FID", 19.32, 4, "official repository, README", "SDXL, 4 steps"),
    Published("coco-2014", "FID", 19.01, 1, "official repository, README", "SDXL, 1 step"),
)

PAPER = Paper(
    slug="dmd2",
    title="Improved Distribution Matching Distillation for Fast Image Synthesis",
    arxiv="2405.14867",
    family="distribution-matching",
    recipe=recipe,
    recipes=tuple(RECIPES),
    published=PUBLISHED,
)
