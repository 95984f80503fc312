"""Improved Techniques for Training Consistency Models (Song & Dhariwal 2023, arXiv 2310.14189): CT without teacher,
LPIPS or target average.

Time: EDM's, x_t = x0 + sigma eps, levels ascending, r = sigma_i < t = sigma_{i+1}; boundary-corrected f as in
consistency models. (1) L = E lambda(sigma_i) d(f(x0 + t eps, t), sg f(x0 + r eps, r))     the same eps, weights and
dropout masks on both sides: mu = 0 (2) d(x, y) = sqrt(|x - y|^2 + c^2) - c, c = 0.00054 sqrt(dim)         Eq. 7, norm
over the whole sample (3) lambda(sigma_i) = 1 / (sigma_{i+1} - sigma_i)                      Sec. 3.2 (4) p(i) ~ erf((ln
sigma_{i+1} - P_mean) / (sqrt2 P_std)) - erf((ln sigma_i - P_mean) / (sqrt2 P_std))      Eq. 10, -1.1 and 2.0 (5) N(k) =
min(s0 2^floor(k / K'), s1) + 1                             Eq. 9, s0 = 10, s1 = 1280 (6) noise features that change
slowly with ln sigma: Fourier scale 0.02 in place of 16, or positional ones                 Sec. 3.3 Each of them is a
switch of `Ingredients`; with all of them off it is the consistency training of 2023 (uniform indices, squared distance,
weight 1, averaged target, square-root schedule). The training itself is `explorer.training.consistency`. The weight of
(3) uses the current grid, so the loss doubles at each stage: watch the logged "distance", which has no weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import nn

from explorer.data import Dataset
from explorer.errors import UnknownName
from explorer.nets.edm_unet import CIFAR10_NCSNPP, IMAGENET64_ADM, EDMUNet
from explorer.nets.mlp import MLP
from explorer.nets.unet import DIGITS_UNET, UNet
from explorer.process.discretisation import (
    Doubling,
    LogNormalIndex,
    SquareRoot,
    TargetDecay,
    UniformIndex,
    equal_weight,
    inverse_gap,
)
from explorer.process.losses import PseudoHuber, huber_c, squared_l2
from explorer.reproduction import Paper, Published, Recipe
from explorer.reproduction.few_steps import jumps
from explorer.training import EmaPlan, OptimizerPlan, Plan
from explorer.training.consistency import ConsistencyTraining


@dataclass(frozen=True)
class Ingredients:
    """What iCT changed in consistency training, one switch each; the defaults are iCT.

    Args:
        own_target: (1) the target is the network itself; else its average with mu(k) of 2023.
        huber: (2) the pseudo-Huber distance; else the squared one.
        c: its constant; None is 0.00054 sqrt(dim).
        gap_weight: (3); else weight 1.
        lognormal: (4); else every interval alike.
        p_mean, p_std: of (4). The sign of p_mean is minus.
        doubling: (5) from s0 to s1 intervals; else the square-root schedule of 2023 to s1.
        slow_features: (6), read by the recipes when they build networks.
    """

    own_target: bool = True
    huber: bool = True
    c: float | None = None
    gap_weight: bool = True
    lognormal: bool = True
    p_mean: float = -1.1
    p_std: float = 2.0
    doubling: bool = True
    s0: int = 10
    s1: int = 1280
    slow_features: bool = True

    def training(self, net: nn.Module, shape: tuple[int, ...], **settings) -> ConsistencyTraining:
        """The method with these switches; `settings` as of `ConsistencyMethod`."""
        return ConsistencyTraining(
            net,
            shape=shape,
            curriculum=Doubling(self.s0, self.s1) if self.doubling else SquareRoot(2, self.s1),
            law=LogNormalIndex(self.p_mean, self.p_std) if self.lognormal else UniformIndex(),
            weight=inverse_gap if self.gap_weight else equal_weight,
            distance=PseudoHuber(self.c or huber_c(shape)) if self.huber else squared_l2,
            decay=None if self.own_target else TargetDecay(2, 0.9),
            **settings,
        )


SWITCHES = ("own_target", "huber", "gap_weight", "lognormal", "doubling", "slow_features")
BASELINE = {name: False for name in SWITCHES if name != "slow_features"}
"""Consistency training of 2023 in terms of the switches, on the same network."""


def without(given: Ingredients, *names: str) -> Ingredients:
    """The same with some switches off."""
    unknown = set(names) - set(SWITCHES)
    if unknown:
        raise UnknownName("ingredient", sorted(unknown)[0], SWITCHES)
    return replace(given, **dict.fromkeys(names, False))


def sensitivity(net: nn.Module, n: int = 4096) -> float:
    """Largest |d features / d ln sigma| of a network's noise features from sigma 0.002 to 80, by differences: what (6)
    keeps small.

    At Fourier scale 16 it is 800 times that at 0.02, and training with 1281 levels diverges.
    """
    c_noise = torch.linspace(math.log(0.002), math.log(80.0), n) / 4
    features = net.embedding.features(c_noise)
    return float((features.diff(dim=0).norm(dim=1) / (4 * c_noise.diff())).max())


# Recipes


def plane(ingredients: Ingredients | None = None, name: str = "toy-8gaussians-ict", data: str = "8gaussians") -> Recipe:
    """Half a minute on one core: an MLP on fresh points of a toy, s1 = 160."""
    chosen = ingredients or Ingredients(s1=160)

    def method(points: Dataset) -> ConsistencyTraining:
        features = {} if chosen.slow_features else {"embedding": "fourier", "embedding_scale": 16.0}
        net = MLP(points.shape[0], width=128, depth=3, **features)
        return chosen.training(net, points.shape, sigma_data=points.sigma_data, name=name)

    return Recipe(
        name=name,
        data=data,
        method=method,
        plan=Plan(
            1500,
            256,
            optimizer=OptimizerPlan(lr=2e-3, kind="radam", decay="cosine"),
            emas=(EmaPlan(half_life=20_000),),
            tick_steps=250,
        ),
        sampler=jumps(1, 0.8),
        cost="1 CPU minute",
        settings=asdict(chosen),
        more=(jumps(2, 0.8), jumps(4, 0.8)),
        knobs={"solver": "jump", "n_steps": 2, "sigma_min": 0.8},
    )


def ablation(switch: str) -> Recipe:
    """The toy with one ingredient off ("gap_weight", ...), or with all of them ("baseline")."""
    off = BASELINE if switch == "baseline" else (switch,)
    return plane(
        without(Ingredients(s1=160), *off),
        f"toy-8gaussians-ict-{'baseline' if switch == 'baseline' else 'no-' + switch.replace('_', '-')}",
    )


def digits() -> Recipe:
    """8 CPU minutes: 8x8 digits with classes, from scratch; the curriculum ends at s1 = 160, where so short a run still learns."""
    chosen, settings = Ingredients(s1=160), {"label_dropout": 0.1, "dropout": 0.0}

    def method(data: Dataset) -> ConsistencyTraining:
        net = UNet(**DIGITS_UNET, n_classes=data.n_classes, dropout=settings["dropout"])
        about = {"sigma_data": data.sigma_data, "n_classes": data.n_classes, "name": "digits-ict"}
        return chosen.training(net, data.shape, label_dropout=settings["label_dropout"], **about)

    return Recipe(
        name="digits-ict",
        data="digits",
        method=method,
        plan=Plan(
            1500,
            128,
            optimizer=OptimizerPlan(lr=1e-3, kind="radam", decay="cosine", clip=10.0),
            emas=(EmaPlan(half_life=12_800),),
            tick_steps=50,
        ),
        sampler=jumps(1, 1.2),
        cost="8 CPU minutes",
        notes="Label -1 is the null class, trained by label dropout. Trained from scratch on 1297 images.",
        settings={**asdict(chosen), **settings},
        more=(jumps(2, 1.2), jumps(4, 1.2)),
        knobs={"solver": "jump", "n_steps": 2, "sigma_min": 1.2},
    )


def images(
    name: str,
    data: str,
    net: Callable[[Dataset], nn.Module],
    *,
    lr: float,
    batch: int,
    steps: int,
    ema: float,
    intermediate: float,
    s1: int = 1280,
    cost: str = "days on several GPUs",
    parameters: float | None = None,
) -> Recipe:
    """A recipe of the paper's kind: RAdam without warm-up or decay."""
    chosen = Ingredients(s1=s1)

    def method(made: Dataset) -> ConsistencyTraining:
        found = net(made)
        return chosen.training(found, made.shape, sigma_data=made.sigma_data, n_classes=found.n_classes, name=name)

    forgets = EmaPlan(half_life=batch * math.log(0.5) / math.log(ema), ramp_up=None)
    return Recipe(
        name=name,
        data=data,
        method=method,
        plan=Plan(steps, batch, optimizer=OptimizerPlan(lr=lr, kind="radam"), emas=(forgets,)),
        sampler=jumps(2, intermediate),
        cost=cost,
        settings=asdict(chosen),
        knobs={"solver": "jump", "n_steps": 2, "sigma_min": intermediate},
        parameters=parameters,
    )


def _cifar10(blocks: int = 4) -> Recipe:
    """Appendix B: NCSN++ with Fourier scale 0.02, dropout 0.3, 400 000 iterations of 1024; 8 blocks per level are iCT-deep."""
    sizes = {**CIFAR10_NCSNPP, "n_augment": 0, "dropout": 0.3, "embedding_scale": 0.02, "blocks": blocks}
    return images(
        "cifar10-ict" if blocks == 4 else "cifar10-ict-deep", "cifar10", lambda d: EDMUNet(**sizes),
        lr=1e-4, batch=1024, steps=400_000, ema=0.99993, intermediate=0.821, parameters=56.4e6 if blocks == 4 else None,
    )  # fmt: skip


def _imagenet64() -> Recipe:
    """Appendix B: ADM with positional features, dropout 0.2 at 16x16 and below, 800 000 iterations of 4096."""
    sizes = {**IMAGENET64_ADM, "dropout": 0.2, "dropout_at": [16, 8]}
    return images(
        "imagenet64-ict", "imagenet64", lambda d: EDMUNet(**sizes),
        lr=1e-4, batch=4096, steps=800_000, ema=0.99997, intermediate=1.526, parameters=295.9e6,
    )  # fmt: skip


def _shapes() -> Recipe:
    """Coloured shapes: an hour on a CPU, minutes on a GPU."""
    return images(
        "shapes-ict", "shapes", lambda d: UNet(d.shape, 64, (1, 2, 2), 2, n_classes=d.n_classes),
        lr=4e-4, batch=128, steps=20_000, ema=0.999, intermediate=0.6, s1=640, cost="an hour on a CPU",
    )  # fmt: skip


RECIPES: dict[str, Callable[[], Recipe]] = {
    "toy": plane,
    "toy-8gaussians": plane,
    **{f"toy-ablation-{name.replace('_', '-')}": lambda name=name: ablation(name) for name in ("baseline", *SWITCHES)},
    "digits": digits,
    "shapes": _shapes,
    "cifar10": _cifar10,
    "cifar10-deep": lambda: _cifar10(8),
    "imagenet64": _imagenet64,
}


def recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise UnknownName("recipe", name, RECIPES)
    return RECIPES[name]()


PUBLISHED = (
    Published("cifar10", "FID", 2.83, 1, "Table 2", "iCT"),
    Published("cifar10", "FID", 2.46, 2, "Table 2", "iCT"),
    Published("cifar10", "FID", 2.51, 1, "Table 2", "iCT-deep"),
    Published("cifar10", "FID", 2.24, 2, "Table 2", "iCT-deep"),
    Published("imagenet-64x64", "FID", 4.02, 1, "Table 3", "iCT"),
    Published("imagenet-64x64", "FID", 3.20, 2, "Table 3", "iCT"),
    Published("imagenet-64x64", "FID", 3.25, 1, "Table 3", "iCT-deep"),
    Published("imagenet-64x64", "FID", 2.77, 2, "Table 3", "iCT-deep"),
)

PAPER = Paper(
    slug="ict",
    title="Improved Techniques for Training Consistency Models",
    arxiv="2310.14189",
    family="consistency",
    recipe=recipe,
    recipes=tuple(RECIPES),
    published=PUBLISHED,
)
