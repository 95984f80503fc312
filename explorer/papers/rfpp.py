"""Improving the Training of Rectified Flows (Lee, Lin, Fanti 2024, arXiv 2405.20320): 2-rectified flow++.

Time is the package's: t = 0 is data and t = 1 noise, as in the paper. One round of reflow on a good teacher gives pairs whose lines
hardly cross, so that what keeps 2-rectified flows from working in one step is how they are trained.
    x_t = (1 - t) x + t z,   v* = z - x,   (x, z) the teacher's pairs
    p(t) proportional to exp(a t) + exp(a (1 - t)), a = 4, mapped to [1e-5, 1 - 1e-5]                Sec. 4.1: the U shape
    sigma = t / (1 - t),  D = c_skip x_t / (1 - t) + c_out F(c_in x_t / (1 - t); ln(sigma) / 4),  v = (x_t - D) / t
                                     Sec. 4.3: EDM's parameterisation and weights, copied unchanged
    h = (sqrt(|v - (z - x)|^2 + c^2) - c) / d,  c = 0.00054 d                                       Sec. 4.2: pseudo-Huber, d = C H W
    L = (1 - t) h + P(x_hat, x)          "E"    P a perceptual distance, x_hat = x_t - t v
    L = (1 - t) h + P(x_hat, x) / t      "F"
    z_t' = (1 - t') x_hat + t' z                                                                    the sampling rule, `Chord`
The last stage goes on with forward pairs: real images and their codes by the teacher's ODE. The printed density exp(a t) + exp(-a t) is
not symmetric about 1/2; the released code, and we, use the one above. LPIPS weights are not bundled: give any `perceptual`; on digits it
is the distance of the bundled classifier's features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from explorer.data import Batch, Dataset
from explorer.data.pairs import PairLoader, PairStore
from explorer.errors import BadValue, UnknownName
from explorer.models.base import Denoiser, Preconditioned
from explorer.nets.edm_unet import CIFAR10_NCSNPP, FFHQ64_NCSNPP, IMAGENET64_ADM, EDMUNet
from explorer.nets.mlp import MLP
from explorer.nets.unet import DIGITS_UNET, UNet
from explorer.process.broadcast import like
from explorer.process.losses import Distance, pseudo_huber
from explorer.process.paths import Linear
from explorer.process.precondition import EDMPrecondition
from explorer.process.times import TimeDistribution, Uniform, UShaped
from explorer.reproduction import Bundled, Need, Paper, Published, Recipe
from explorer.reproduction.needs import Checkpoint, Features
from explorer.reproduction.pairs import Encoded, PairsOf, stored
from explorer.reproduction.rounds import FLOW_KNOBS, FLOW_RANGE, even_steps
from explorer.sampling.grids import TimeGrid
from explorer.sampling.samplers import OdeSampler
from explorer.sampling.solvers import Heun
from explorer.training import EmaPlan, Method, OptimizerPlan, Plan, Progress, Update

HUBER = 0.00054  # c / d
AFHQ = {**FFHQ64_NCSNPP, "dropout": 0.25}
Config = Literal["E", "F"]


class TwoRectifiedFlow(Method):
    """Velocity regression on stored pairs with the paper's times, loss and parameterisation, each a switch.

    Args:
        net: F of the EDM parameterisation, e.g. with the weights of the teacher.
        sigma_data: of the parameterisation, the teacher's.
        times: distribution on [0, 1], mapped to `FLOW_RANGE`.
        loss: "huber" or "l2" (mean over coordinates) for the velocity.
        c: constant of the pseudo-Huber loss over d.
        perceptual: (x_hat, x) -> (B,); None leaves h alone (configurations A to D), without the factor 1 - t.
        config: weight of the perceptual term, 1 ("E") or 1 / t ("F").
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        shape: tuple[int, ...],
        sigma_data: float,
        times: TimeDistribution | None = None,
        loss: Literal["huber", "l2"] = "huber",
        c: float = HUBER,
        perceptual: Distance | None = None,
        config: Config = "F",
        n_classes: int = 0,
        name: str = "",
    ):
        super().__init__()
        if loss not in ("huber", "l2"):
            raise UnknownName("loss", loss, ("huber", "l2"))
        if config not in ("E", "F"):
            raise UnknownName("configuration", config, ("E", "F"))
        if not c > 0:
            raise BadValue(f"the constant of the pseudo-Huber loss is c d with c > 0, got c = {c}.")
        self.nets, self.perceptual = nn.ModuleDict({"net": net}), perceptual
        self.shape, self.sigma_data, self.times = tuple(shape), float(sigma_data), times or UShaped()
        self.loss_name, self.c, self.config, self.n_classes, self.name = loss, c, config, n_classes, name

    def export(self, nets) -> Preconditioned:
        about = {"shape": self.shape, "n_classes": self.n_classes, "t_range": FLOW_RANGE, "name": self.name}
        return Preconditioned(nets["net"], Linear(), EDMPrecondition(self.sigma_data), **about)

    def updates(self, batch: Batch, progress: Progress):
        if batch.noise is None:
            raise BadValue(
                "2-rectified flow++ trains on stored pairs: the batches must bring their noise (see PairLoader)."
            )
        t = self.draw_times(len(batch), progress.generator, batch.x0.device)
        loss, logs = self.loss(batch.x0, batch.noise, t, batch.labels if self.n_classes else None)
        yield Update(("net",), loss.mean(), logs, levels=(t / (1 - t), loss))

    def draw_times(self, n: int, generator: torch.Generator | None, device=None) -> Tensor:
        """n times in `FLOW_RANGE`, float64: 1 - t has no digits left in float32 at the noise end."""
        u = self.times.sample(n, generator=generator, device=device, dtype=torch.float64)
        return FLOW_RANGE[0] + (FLOW_RANGE[1] - FLOW_RANGE[0]) * u

    def loss(
        self, x0: Tensor, noise: Tensor, t: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L of each pair at its time, (B,), and its parts' means."""
        x_t = torch.lerp(x0.double(), noise.double(), like(t, x0))
        v = self.export(self.nets).velocity(x_t, t, labels)
        h = self.velocity_loss(v, noise - x0)
        if self.perceptual is None:
            return h, {}
        seen = self.perceptual((x_t - like(t, x_t) * v).to(x0.dtype), x0)
        weight = 1 / t if self.config == "F" else 1.0
        return (1 - t) * h + weight * seen, {"velocity": h.mean(), "perceptual": seen.mean()}

    def velocity_loss(self, v: Tensor, target: Tensor) -> Tensor:
        """h or the mean square of each sample, (B,)."""
        if self.loss_name == "l2":
            return (v - target).square().flatten(1).mean(1)
        d = math.prod(self.shape)
        return pseudo_huber(v, target, self.c * d) / d


# Recipes


def times_of(a: float) -> TimeDistribution:
    """The U shape; a = 0 is uniform."""
    return UShaped(a) if a else Uniform()


def pairwise(
    name: str,
    data: str,
    net: Callable[[Dataset], nn.Module],
    plan: Plan,
    *,
    teacher: Need | None,
    pairs: Need,
    a: float = 4.0,
    loss: str = "huber",
    c: float = HUBER,
    config: Config = "F",
    perceptual: Need | None = None,
    real: Need | None = None,
    share: float = 0.0,
    sigma_data: float | None = None,
    conditional: bool = False,
    **about,
) -> Recipe:
    """A recipe on stored pairs.

    Args:
        net: data -> raw network, before the teacher's weights go in.
        teacher: whose weights to begin with; None begins at random.
        real, share: forward pairs, and the share of each batch that they make up.
    """
    settings = {
        "a": a,
        "loss": loss,
        "c": c,
        "config": config if perceptual else "D",
        "init": "teacher" if teacher else "random",
    }
    settings |= {"real": share} if real else {}
    parts = {"teacher": teacher, "pairs": pairs, "perceptual": perceptual, "real": real}

    def method(
        data: Dataset,
        teacher: Denoiser | None = None,
        pairs: PairStore | None = None,
        perceptual: Distance | None = None,
        real: PairStore | None = None,
    ) -> TwoRectifiedFlow:
        begun = net(data)
        if teacher is not None:
            begun.load_state_dict(teacher.net.state_dict())
        sd = sigma_data or (data.sigma_data if teacher is None else teacher.precondition.sigma_data)
        return TwoRectifiedFlow(
            begun,
            shape=data.shape,
            sigma_data=sd,
            times=times_of(a),
            loss=loss,
            c=c,
            perceptual=perceptual,
            config=config,
            n_classes=data.n_classes if conditional else 0,
            name=name,
        )

    def stream(data: Dataset, plan: Plan, **needs) -> PairLoader:
        return stored(data, plan, share=share, **needs)

    return Recipe(
        name=name,
        data=data,
        method=method,
        plan=plan,
        sampler=even_steps(1),
        settings=settings,
        needs={k: v for k, v in parts.items() if v is not None},
        stream=stream,
        more=tuple(even_steps(n) for n in (2, 4)),
        knobs=FLOW_KNOBS | {"n_steps": 1},
        **about,
    )


def plane(data: str, **switches) -> Recipe:
    """A minute on one core: the bundled EDM teacher's pairs and weights. Configuration D: no perceptual distance in the plane."""
    teacher = Bundled(f"toy-{data}")
    pairs = PairsOf(teacher, OdeSampler(Heun(), TimeGrid.karras(40, 0.002, 80.0)), 20_000)
    optimizer = OptimizerPlan(lr=1e-3, betas=(0.9, 0.999), warmup_images=50_000, decay="cosine")
    plan = Plan(2000, 512, optimizer=optimizer, emas=(EmaPlan(half_life=30_000),), tick_steps=500)
    notes = "Trained on 20000 pairs of the bundled EDM teacher; measured at one Euler step."
    chosen = {"teacher": teacher, "pairs": pairs, "cost": "1 CPU minute", "notes": notes} | switches
    return pairwise(f"toy-{data}-rfpp", data, lambda d: MLP(d.shape[0], width=128, depth=3), plan, **chosen)


def digits(*, real: bool = False) -> Recipe:
    """5 minutes on one core: weights and pairs of the bundled EDM teacher with classes, configuration F.

    Args:
        real: the last stage instead: go on from the bundled `digits-rfpp` on forward pairs, half of each batch.
    """
    teacher, name = Bundled("digits"), "digits-rfpp-real" if real else "digits-rfpp"
    begun = Bundled("digits-rfpp") if real else teacher
    sampler = OdeSampler(Heun(), TimeGrid.karras(18, 0.002, 80.0))
    pairs = PairsOf(teacher, sampler, 4_000)
    lr = 2e-4 if real else 1e-3
    optimizer = OptimizerPlan(lr=lr, betas=(0.9, 0.999), warmup_images=12_800, decay="cosine", clip=1.0)

    def net(data: Dataset) -> UNet:
        return UNet(**DIGITS_UNET, n_classes=data.n_classes)

    return pairwise(
        name,
        "digits",
        net,
        Plan(200 if real else 500, 128, optimizer=optimizer, emas=(EmaPlan(half_life=18_000),)),
        teacher=begun,
        pairs=pairs,
        perceptual=Features("digits-cnn"),
        real=Encoded(teacher, "digits", OdeSampler(Heun(), TimeGrid.karras(18, 0.002, 80.0))) if real else None,
        share=0.5 if real else 0.0,
        conditional=True,
        cost="5 CPU minutes",
        notes="Trained on 4000 pairs of the bundled EDM teacher with its labels; measured at one Euler step."
        + (" Half of each batch are training images with their codes." if real else ""),
    )


SIZES = {  # of the released commands: data, network, teacher, pairs, teacher's Heun steps, batch, lr, warm-up, iterations, config
    "cifar10": ("cifar10", CIFAR10_NCSNPP, "edm-cifar10-32x32-uncond-ve", 1_000_000, 18, 512, 2e-4, 5000, 800_000, "F", 55.7e6),
    "imagenet64": ("imagenet64", IMAGENET64_ADM, "edm-imagenet-64x64-cond-adm", 5_000_000, 40, 2048, 1e-4, 2500, 700_000, "E", 295.9e6),
    "afhq": ("afhqv2-64", AFHQ, "edm-afhqv2-64x64-uncond-ve", 1_000_000, 40, 256, 2e-4, 5000, 1_000_000, "F", 61.8e6),
}  # fmt: skip


def paper_size(name: str) -> Recipe:
    """Adam(0.9, 0.999), linear warm-up, EMA 0.9999, dropout 0.13 (CIFAR-10), 0.10 (ImageNet), 0.25 (AFHQ).

    The teacher is a file of the user's, its card beside it. LPIPS is another need they give, as `perceptual`: without it the loss is h
    alone. The number of AFHQ pairs and its teacher's steps are not stated; its command lacks the 1/t of configuration F.
    """
    data, config, teacher, n, steps, batch, lr, warmup, n_steps, weight, parameters = SIZES[name]
    file = Checkpoint(teacher, config)
    ema = EmaPlan(half_life=batch * math.log(0.5) / math.log(0.9999), ramp_up=None)
    optimizer = OptimizerPlan(lr=lr, kind="adam", warmup_images=warmup * batch)
    return pairwise(
        f"{name}-rfpp",
        data,
        lambda d: EDMUNet(**config),
        Plan(n_steps, batch, optimizer=optimizer, emas=(ema,)),
        teacher=file,
        pairs=PairsOf(file, OdeSampler(Heun(), TimeGrid.karras(steps, 0.002, 80.0)), n),
        config=weight,
        sigma_data=0.5,
        conditional=bool(config.get("n_classes")),
        cost="weeks of GPU time",
        parameters=parameters,
    )


TOYS = ("8gaussians", "moons", "checkerboard")
RECIPES: dict[str, Callable[[], Recipe]] = {
    "toy": lambda: plane("8gaussians"),
    **{f"toy-{data}": lambda data=data: plane(data) for data in TOYS},
    "digits": digits,
    "digits-real": lambda: digits(real=True),
    **{name: lambda name=name: paper_size(name) for name in SIZES},
}


def recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise UnknownName("recipe", name, RECIPES)
    return RECIPES[name]()


PUBLISHED = (
    Published("cifar10", "FID", 12.21, 1, "Table 1", "A: vanilla 2-rectified flow"),
    Published("cifar10", "FID", 7.14, 1, "Table 1", "B: EDM initialisation, larger batch"),
    Published("cifar10", "FID", 5.17, 1, "Table 1", "C: U-shaped times"),
    Published("cifar10", "FID", 3.42, 1, "Table 1", "E: LPIPS-Huber"),
    Published("cifar10", "FID", 3.38, 1, "Table 1", "F: LPIPS-Huber with 1/t"),
    Published("cifar10", "FID", 3.07, 1, "Table 1", "G: real data"),
    Published("cifar10", "FID", 2.40, 2, "Table 2", "G: real data"),
    Published("imagenet-64x64", "FID", 4.31, 1, "Table 2"),
    Published("imagenet-64x64", "FID", 3.64, 2, "Table 2"),
    Published("afhqv2-64x64", "FID", 12.39, 1, "Table 1", "A: vanilla 2-rectified flow"),
    Published("afhqv2-64x64", "FID", 4.11, 1, "Table 1"),
    Published("ffhq-64x64", "FID", 8.84, 1, "Table 1", "A: vanilla 2-rectified flow"),
    Published("ffhq-64x64", "FID", 5.21, 1, "Table 1"),
)

PAPER = Paper(
    slug="rfpp",
    title="Improving the Training of Rectified Flows",
    arxiv="2405.20320",
    family="flow",
    recipe=recipe,
    recipes=tuple(RECIPES),
    published=PUBLISHED,
)
