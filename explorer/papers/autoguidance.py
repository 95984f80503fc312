"""Guiding a Diffusion Model with a Bad Version of Itself (Karras, Aittala, Kynkaanniemi, Lehtinen, Aila, Laine 2024, arXiv 2406.02507).

Time is the noise level, EDM's sigma; D1 is the model, D0 a worse version of it with the same task and the same conditioning.
    D_w(x; sigma, c) = D0 + w (D1 - D0)                                        Eq. 3; w = 1 is none
    grad ln p_w = grad ln p1 + (w - 1) grad ln(p1 / p0)                        Eq. 4: a push to where the better model sees more
    D = D_m + sum_i (w_i - 1)(D_m - D_i)                                       several guides, Appendix B
Classifier-free guidance has the unconditional model for D0; here D0 knows the class, but is smaller and less trained. The wrappers are
`explorer.models.Guided`, `MultiGuided` and, as a contrast, `Truncated`; the search for w is `explorer.tuning.GuidanceSpace`.

The paper's example in the plane (Appendix C): data are two fractal trees whose density is known, networks are log-densities.
    L = E sigma^2 |grad G(x; sigma) - grad ln p(x; sigma)|^2, ln sigma ~ N(-2.3, 1.5^2)        exact score matching, mean over coordinates
    lr_i = 0.01 / sqrt(max(i / 512, 1)), power-function average of relative width 0.01
The paper takes 4096 steps of 4096 for D1 and 512 for D0 (recipes `*-full`). The recipes measured here take 2048 of 512, and 512 of 512.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from explorer.data import Batch, Dataset, oracle
from explorer.data.loader import mix
from explorer.errors import UnknownName
from explorer.metrics.base import Estimate
from explorer.models.base import Cond, Denoiser, Preconditioned
from explorer.nets.edm_unet import CIFAR10_DDPMPP, EDMUNet
from explorer.nets.log_density import LogDensity
from explorer.nets.unet import DIGITS_UNET, UNet
from explorer.process.oracles import GaussianMixture
from explorer.process.paths import EDM
from explorer.process.precondition import EDMPrecondition, VEPrecondition
from explorer.process.times import LogNormal
from explorer.reproduction import Paper, Published, Recipe
from explorer.reproduction.evaluate import row
from explorer.sampling.grids import TimeGrid
from explorer.sampling.samplers import OdeSampler
from explorer.sampling.solvers import Heun
from explorer.training import EmaPlan, Method, OptimizerPlan, Plan, Progress, Update, seeded
from explorer.training.denoising import Denoising

P_MEAN, P_STD = -2.3, 1.5
SIGMA_MAX = 5.0  # the toy starts from its own noisy density, not from a Gaussian
TOY_SAMPLER = OdeSampler(Heun(), TimeGrid.karras(32, 0.002, SIGMA_MAX))


class NoisedScore:
    """sigma times the score of a planar mixture under noise, (B, 2): `GaussianMixture.score` in single precision and five times faster.

    Args: mixture: with full covariances. rows: points at a time, so that what is multiplied stays in the cache.
    """

    def __init__(self, mixture: GaussianMixture, rows: int = 128):
        axes = mixture.axes.float().unbind(2)  # the two axes of every component, (K, 2) each
        self.rows, self.axes = rows, [a.T.contiguous() for a in axes]
        self.centres = [(a * mixture.means.float()).sum(1) for a in axes]
        self.variances = [v.contiguous() for v in mixture.variances.float().unbind(1)]
        self.log_weights = mixture.log_weights.float()

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return torch.cat([self._part(*part) for part in zip(x.split(self.rows), sigma.split(self.rows), strict=True)])

    def _part(self, x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma[:, None]
        precisions = [1 / (v + s * s) for v in self.variances]  # (B, K) each
        offsets = [x @ a - c for a, c in zip(self.axes, self.centres, strict=True)]
        pulls = [d * p for d, p in zip(offsets, precisions, strict=True)]
        log = torch.log(precisions[0] * precisions[1])
        for d, f in zip(offsets, pulls, strict=True):
            log -= d * f
        r = (log / 2 + self.log_weights).softmax(1)
        return -s * sum((r * f) @ a.T for f, a in zip(pulls, self.axes, strict=True))


class ExactScoreMatching(Method):
    """Regression of a log-density's gradient on the true score of noisy data: training without the noise of training.

    Args:
        net: G, whose forward is sigma grad G; its weights are brought to unit norm after every step.
        mixture: the law of the data.
    """

    def __init__(self, net: LogDensity, mixture: GaussianMixture, *, name: str = ""):
        super().__init__()
        self.nets, self.name = nn.ModuleDict({"net": net}), name
        self.times, self.truth = LogNormal(P_MEAN, P_STD), NoisedScore(mixture)

    def export(self, nets) -> Preconditioned:
        about = {"shape": nets["net"].shape, "t_range": (0.002, SIGMA_MAX), "name": self.name}
        return Preconditioned(nets["net"], EDM(), VEPrecondition(), **about)

    def updates(self, batch: Batch, progress: Progress):
        loss, sigma = self.loss(batch.x0, progress.generator)
        yield Update(("net",), loss.mean(), levels=(sigma, loss))
        self.nets["net"].renormalise()

    def loss(self, x0: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """sigma^2 |grad G - score|^2 of every point, mean over coordinates, and the sigma it was drawn at: (B,), (B,)."""
        sigma = self.times.sample(len(x0), generator=generator, device=x0.device, dtype=x0.dtype)
        x = x0 + sigma[:, None] * torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        with torch.no_grad():
            truth = self.truth(x, sigma)
        return (self.nets["net"](x, (sigma / 2).log()) - truth).square().mean(1), sigma


def noisy(mixture: GaussianMixture, n: int, sigma: float, generator: torch.Generator) -> Tensor:
    """n points of the mixture under noise, (n, D) float64: at SIGMA_MAX, where the toy's trajectories begin."""
    x, _ = mixture.sample(n, generator)
    return x + sigma * torch.randn(x.shape, generator=generator, dtype=x.dtype)


def drawn(model: Denoiser, mixture: GaussianMixture, n: int, generator: torch.Generator) -> Tensor:
    """Samples of a toy model, (n, 2), by the paper's sampler from the exact noisy density."""
    with torch.no_grad():
        return TOY_SAMPLER.sample(model, noisy(mixture, n, SIGMA_MAX, generator) / SIGMA_MAX)


@torch.no_grad()
def compatibility(
    main: Denoiser, guide: Denoiser, truth: Denoiser, x: Tensor, sigma: float, cond: Cond = None
) -> Tensor:
    """Cosine of D1 - D0 with what D1 lacks, D_true - D1, for each noisy point, (B,): above 0 guidance mends, below 0 it harms."""
    d1, d0, d = (model.denoise(x, sigma, cond).flatten(1).double() for model in (main, guide, truth))
    return torch.cosine_similarity(d1 - d0, d - d1, dim=1)


@torch.no_grad()
def best_weight(main: Denoiser, guide: Denoiser, x0: Tensor, eps: Tensor, sigma: float, cond: Cond = None) -> Estimate:
    """The w of least denoising loss at one sigma, 1 + E<D1 - D0, x0 - D1> / E|D1 - D0|^2, with its error; needs data, not the truth.

    Args: x0: data the models were not trained on, (B, *shape); eps: noise of that shape.
    """
    x = x0.double() + sigma * eps.double()
    d1, d0 = (model.denoise(x, main.path.time_at(sigma), cond).flatten(1).double() for model in (main, guide))
    across, square = ((d1 - d0) * (x0.flatten(1) - d1)).sum(1), (d1 - d0).square().sum(1)
    ratio, n = float(across.mean() / square.mean()), len(x0)
    error = float((across - ratio * square).std() / square.mean()) / math.sqrt(n)
    return Estimate(1 + ratio, error, n, "guidance weight of least denoising loss")


class Corrupted(Denoiser):
    """A model made worse after training, as the paper does to see which guides suit which models (Sec. 4).

    Args:
        base: whose network has a module `dropout`, where features are to be dropped.
        noise: noise is added to the input until the level is this share higher, and the model is told the higher level.
        dropout: share of hidden features dropped at every call.
        seed: of what is drawn. Draws depend on the number of calls so far, not on samples' seeds: draw in one batch.
    """

    def __init__(self, base: Preconditioned, *, noise: float = 0.0, dropout: float = 0.0, seed: int = 0):
        super().__init__()
        net = copy.deepcopy(base.net).train(dropout > 0).requires_grad_(False)
        if dropout:
            net.dropout.p = dropout
        self.path, self.shape, self.t_range, self.name = base.path, base.shape, base.t_range, base.name
        self.base = Preconditioned(net, base.path, base.precondition, shape=base.shape, t_range=base.t_range)
        self.noise, self.seed, self.n_drawn = noise, seed, 0

    def predict(self, x_t, t, cond=None):
        self.n_drawn += 1
        with seeded(mix(self.seed, self.n_drawn)):
            level = (1 + self.noise) * t
            extra = math.sqrt((1 + self.noise) ** 2 - 1) * t
            eps = torch.randn_like(x_t) if self.noise else 0.0
            return self.base.denoise(x_t + extra * eps, level, cond), "x0"


# Recipes


def tree(name: str, data: str = "tree-a", width: int = 64, n_steps: int = 2048, batch: int = 512) -> Recipe:
    """One to two minutes on one core at 2048 steps of 512."""
    settings = {"p_mean": P_MEAN, "p_std": P_STD, "width": width, "exact_score": True}

    def method(points: Dataset) -> ExactScoreMatching:
        return ExactScoreMatching(LogDensity(width=width), oracle(data), name=name)

    optimizer = OptimizerPlan(lr=0.01, kind="adam", betas=(0.9, 0.99), decay="inverse_sqrt", decay_images=512 * batch)
    return Recipe(
        name=name,
        data=data,
        method=method,
        plan=Plan(n_steps, batch, optimizer=optimizer, emas=(EmaPlan(sigma_rel=0.010),)),
        sampler=OdeSampler(Heun(), TimeGrid.karras(32, 0.002, SIGMA_MAX)),
        cost="2 CPU minutes" if batch <= 512 else "an hour on one CPU core, a minute on a GPU",
        settings=settings,
        notes="A log-density in the plane, trained on exact scores of "
        + ("one of two fractal trees." if data == "tree-a" else "two fractal trees without their classes.")
        + ("" if batch > 512 else " The paper's batch is 4096."),
        knobs={"sigma_max": SIGMA_MAX},
    )


def weak_digits() -> Recipe:
    """Half a minute on one core: the digits model's network at half its width, a sixteenth of its training."""
    settings = {"p_mean": -0.8, "p_std": 1.2, "label_dropout": 0.1, "dropout": 0.0}

    def method(data: Dataset) -> Denoising:
        net = UNet(**{**DIGITS_UNET, "channels": DIGITS_UNET["channels"] // 2}, n_classes=data.n_classes)
        return Denoising(_edm(net, data, "digits-weak"), LogNormal(-0.8, 1.2), settings["label_dropout"])

    optimizer = OptimizerPlan(lr=2e-3, betas=(0.9, 0.99), warmup_images=2_560, clip=1.0)
    return Recipe(
        name="digits-weak",
        data="digits",
        method=method,
        plan=Plan(112, 128, optimizer=optimizer, emas=(EmaPlan(half_life=18_000),)),
        sampler=OdeSampler(Heun(), TimeGrid.karras(18, 0.002, 80.0)),
        cost="half a CPU minute",
        settings=settings,
        notes="A guide for digits, not for use by itself. Label -1 is the null class.",
    )


def weak_cifar10() -> Recipe:
    """A guide for EDM's CIFAR-10 model: half its width, a sixteenth of its images. Sizes are ours."""

    def method(data: Dataset) -> Denoising:
        net = EDMUNet(**{**CIFAR10_DDPMPP, "channels": CIFAR10_DDPMPP["channels"] // 2, "n_classes": 10})
        return Denoising(_edm(net, data, "cifar10-weak", sigma_data=0.5), LogNormal(-1.2, 1.2))

    return Recipe(
        name="cifar10-weak",
        data="cifar10",
        method=method,
        plan=Plan(
            200_000_000 // 512 // 16, 512, optimizer=OptimizerPlan(lr=1e-3, warmup_images=1_000_000), emas=(EmaPlan(),)
        ),
        sampler=OdeSampler(Heun(), TimeGrid.karras(18, 0.002, 80.0)),
        cost="hours on one GPU",
        notes="A guide, not for use by itself.",
    )


def _edm(net: nn.Module, data: Dataset, name: str, sigma_data: float | None = None) -> Preconditioned:
    about = {"shape": data.shape, "n_classes": data.n_classes, "t_range": (0.002, 80.0), "name": name}
    return Preconditioned(net, EDM(), EDMPrecondition(sigma_data or data.sigma_data), **about)


WEAK = {"width": 32, "n_steps": 512}
FULL = {"batch": 4096}
RECIPES: dict[str, Callable[[], Recipe]] = {
    "toy": partial(tree, "tree"),
    "tree": partial(tree, "tree"),
    "tree-weak": partial(tree, "tree-weak", **WEAK),
    "tree-both": partial(tree, "tree-both", "tree", **WEAK),
    "tree-full": partial(tree, "tree-full", n_steps=4096, **FULL),
    "tree-weak-full": partial(tree, "tree-weak-full", **WEAK, **FULL),
    "tree-both-full": partial(tree, "tree-both-full", "tree", **WEAK, **FULL),
    "digits-weak": weak_digits,
    "cifar10-weak": weak_cifar10,
}


def recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise UnknownName("recipe", name, RECIPES)
    found = RECIPES[name]()
    return (
        dataclasses.replace(found, measure=partial(measured, found.data)) if "exact_score" in found.settings else found
    )


def measured(data: str, model: Preconditioned, n: int = 20_000) -> dict[str, Any]:
    """Card entries of a toy: its loss, which is 0 for the exact score, on points it was not trained on."""
    mixture, g = oracle(data), torch.Generator().manual_seed(1_000_000)
    x0 = mixture.sample(n, g)[0].float()
    with torch.no_grad():
        loss, _ = ExactScoreMatching(model.net, mixture).loss(x0, g)
    error = float(loss.std()) / math.sqrt(n)
    return {"metrics": [row(Estimate(float(loss.mean()), error, n, "sigma^2 |score - exact score|^2"))]}


def guide_of(n_steps: int = 512, width: int = 32) -> Recipe:
    """The toy's guide with another length or width: too near the model it does nothing, too weak it pushes too far."""
    return dataclasses.replace(tree(f"tree-{width}-{n_steps}", width=width, n_steps=n_steps))


TABLE1 = (
    ("imagenet-512x512", 2.56, "EDM2-S, no guidance"),
    ("imagenet-512x512", 2.23, "EDM2-S, classifier-free guidance"),
    ("imagenet-512x512", 1.68, "EDM2-S, classifier-free guidance in an interval"),
    ("imagenet-512x512", 1.34, "EDM2-S, autoguidance by XS, T/16"),
    ("imagenet-512x512", 1.51, "EDM2-S, guide less trained only"),
    ("imagenet-512x512", 2.13, "EDM2-S, guide smaller only"),
    ("imagenet-512x512", 1.25, "EDM2-XXL, autoguidance by M, T/3.5"),
    ("imagenet-512x512-uncond", 11.67, "EDM2-S unconditional, no guidance"),
    ("imagenet-512x512-uncond", 3.86, "EDM2-S unconditional, autoguidance"),
    ("imagenet-64x64", 1.01, "EDM2-S, autoguidance by XS, T/8"),
)
PUBLISHED = tuple(
    Published(data, "FID", value, 126 if "autoguidance" in who else None, "Table 1", who) for data, value, who in TABLE1
)

PAPER = Paper(
    slug="autoguidance",
    title="Guiding a Diffusion Model with a Bad Version of Itself",
    arxiv="2406.02507",
    family="guidance",
    recipe=recipe,
    recipes=tuple(RECIPES),
    published=PUBLISHED,
)
