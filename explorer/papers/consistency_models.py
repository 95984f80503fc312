"""Consistency Models (Song et al. 2023, arXiv 2303.01469): one network maps every point of a trajectory to the
trajectory's clean end.

Time: EDM's, x_t = x0 + t eps, t from eps_min = 0.002 to T = 80. The probability-flow ODE is dx/dt = (x - D(x, t)) / t.
(1) f(x, t) = c_skip x + c_out F(c_in x, ln t / 4), f(x, eps_min) = x            c_skip, c_out: Appendix C
(2) t_n = (eps_min^(1/7) + (n - 1) / (N - 1) (T^(1/7) - eps_min^(1/7)))^7        grid, ascending; r = t_n < t = t_{n+1}
(3) L = E lambda(t) d(f(x_t, t), sg f-(x_r, r)), lambda = 1                      Alg. 2 and 3
(4) x_r = one Heun step of the teacher's ODE from x_t                             consistency distillation (CD)
(5) x_r = x0 + r eps, the same eps                                                consistency training (CT)
(6) N(k), mu(k) of CT; f- <- mu f- + (1 - mu) f after each step                   Appendix C
(7) df/dt along the trajectory, dx/dt by D (CD) or eps (CT)                       Theorems 3, 5, 6: N to infinity
(8) x <- f(T z, T); for each later tau: x <- f(x + sqrt(tau^2 - eps_min^2) z', tau)   Alg. 1, the solver "jump"
(3) to (6) are `explorer.training.consistency`, (8) `explorer.sampling.solvers.jumps`, editing (Alg. 4)
`explorer.sampling.editing`. Distances are means over pixels. The paper's d is LPIPS on images, whose weights are not
bundled; recipes use the squared distance.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from explorer.data import Batch, Dataset
from explorer.errors import BadValue, UnknownName
from explorer.models.base import Denoiser, Preconditioned
from explorer.nets.edm_unet import CIFAR10_NCSNPP, IMAGENET64_ADM, EDMUNet
from explorer.nets.forward_mode import jvp
from explorer.nets.mlp import MLP
from explorer.nets.unet import DIGITS_UNET, UNet
from explorer.process.broadcast import like
from explorer.process.discretisation import Fixed, SquareRoot, TargetDecay
from explorer.process.losses import Distance, squared_l2
from explorer.process.times import KarrasUniform
from explorer.reproduction import Bundled, Paper, Published, Recipe
from explorer.reproduction.few_steps import jumps
from explorer.reproduction.needs import Checkpoint
from explorer.training import EmaPlan, Method, OptimizerPlan, Plan, Progress, Update
from explorer.training.consistency import ConsistencyMethod, ConsistencyTraining
from explorer.training.matching import copy_of


class ContinuousConsistency(ConsistencyMethod):
    """The limit of infinitely many levels, squared distance, mu = 0: one forward-mode derivative in place of two
    neighbours.

    Args:
        stop_gradient: True for Theorem 5 (with a teacher) or 6 (without): 2 <f, sg df/dt>, of which only the gradient
        has a meaning. False for Theorem 3: |df/dt|^2, which is differentiated through the derivative; with a teacher
            only, since from data it would also punish the variance of eps given x_t.
        rho: of the grid whose limit is taken.
        settings: see `ConsistencyMethod`.
    """

    def __init__(self, net, *, stop_gradient: bool = True, rho: float = 7.0, **settings):
        super().__init__(net, **settings)
        if not stop_gradient and self.teacher is None:
            raise BadValue(
                "without stop-gradient the loss needs a teacher's slope (Theorem 3); give one, or stop_gradient=True."
            )
        self.stop_gradient, self.times = stop_gradient, KarrasUniform(*self.sigma_range, rho)

    def updates(self, batch: Batch, progress: Progress):
        loss, speed, t = self.loss(batch, progress.generator)
        yield Update(("net",), loss.mean(), {"speed": speed.mean()}, (t, loss))

    def loss(self, batch: Batch, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of each sample, mean |df/dt|^2 / dim of each, and its level: (B,) each."""
        x0 = batch.x0
        draw = {"generator": generator, "device": x0.device, "dtype": x0.dtype}
        t, eps = self.times.sample(len(x0), **draw), torch.randn(x0.shape, **draw)
        labels = self.labels(batch, generator)
        x_t = x0 + like(t, x0) * eps
        with torch.no_grad():
            slope = eps if self.teacher is None else (x_t - self.teacher.denoise(x_t, t, labels)) / like(t, x_t)  # (7)
        f = self.model(self.nets["net"])
        clean, rate = jvp(lambda x, s: f.denoise(x, s, labels), (x_t, t), (slope, torch.ones_like(t)))
        dt = self.spacing(t)
        speed = rate.detach().square().flatten(1).mean(1)
        if self.stop_gradient:
            return 2 * dt * (clean * rate.detach()).flatten(1).mean(1), speed, t
        return dt**2 * rate.square().flatten(1).mean(1), speed, t

    def spacing(self, t: Tensor) -> Tensor:
        """dt/du where u in [0, 1] is the place along the grid: 1 / (tau^-1)'(t) of the theorems."""
        low, high, rho = self.times.low, self.times.high, self.times.rho
        return rho * (high ** (1 / rho) - low ** (1 / rho)) * t ** (1 - 1 / rho)


# Recipes


def half_life(decay: float, batch: int) -> float:
    """Images after which an average with this decay per step has forgotten half."""
    return batch * math.log(0.5) / math.log(decay)


def plane(kind: str, data: str = "8gaussians") -> Recipe:
    """Half a minute on one core, more with a teacher: a toy by CD with the exact teacher, by CT, by CT at N = 3, or in continuous time."""
    settings = {
        "cd": {"n": 18, "teacher_step": "heun", "decay": 0.0},
        "ct": {"s0": 2, "s1": 80, "mu0": 0.9},
        "ct3": {"n": 3, "mu0": 0.9},
        "cd-continuous": {"stop_gradient": True},
        "ct-continuous": {"stop_gradient": True},
    }[kind]

    def method(points: Dataset, teacher: Denoiser | None = None) -> Method:
        about = {
            "shape": points.shape,
            "sigma_data": points.sigma_data,
            "teacher": teacher,
            "name": f"toy-{data}-{kind}",
        }
        net = MLP(points.shape[0], width=128, depth=3)
        if "stop_gradient" in settings:
            return ContinuousConsistency(net, **settings, **about)
        return ConsistencyTraining(net, **discrete(settings), **about)

    continuous = "stop_gradient" in settings
    optimizer = OptimizerPlan(
        lr=5e-4 if continuous else 2e-3, kind="radam", decay="cosine", clip=1.0 if continuous else None
    )
    return Recipe(
        name=f"toy-{data}-{kind}",
        data=data,
        method=method,
        plan=Plan(1500, 256, optimizer=optimizer, emas=(EmaPlan(half_life=20_000),), tick_steps=250),
        sampler=jumps(1, 0.8),
        cost="1 CPU minute",
        settings=settings,
        more=(jumps(2, 0.8), jumps(4, 0.8)),
        needs={"teacher": Bundled(f"oracle-{data}")} if kind.startswith("cd") else {},
        knobs={"solver": "jump", "n_steps": 2, "sigma_min": 0.8},
    )


def discrete(settings: dict) -> dict:
    """Arguments of `ConsistencyTraining` from plain numbers: N or (s0, s1), mu or mu0."""
    given = {k: settings[k] for k in ("decay", "teacher_step") if k in settings}
    if "s0" in settings:
        given["curriculum"] = SquareRoot(settings["s0"], settings["s1"])
    else:
        given["curriculum"] = Fixed(settings["n"])
    if "mu0" in settings:
        given["decay"] = TargetDecay(settings.get("s0", 2), settings["mu0"])
    return given


def digits(kind: str) -> Recipe:
    """CD of the bundled teacher "digits" from its own weights, or CT from scratch: 8x8 digits with classes.

    800 steps of CD cost about 7 CPU minutes: two calls of the teacher, one of the target, one forward and backward. The
    intermediate level is the 0.8 that suits sd = 0.5, scaled to sd = 0.75.
    """
    settings = {
        "cd": {"n": 18, "teacher_step": "heun", "decay": 0.0, "label_dropout": 0.1},
        "ct": {"s0": 2, "s1": 150, "mu0": 0.9, "label_dropout": 0.1},
    }[kind]

    def method(data: Dataset, teacher: Preconditioned | None = None) -> ConsistencyTraining:
        net = UNet(**DIGITS_UNET, n_classes=data.n_classes) if teacher is None else copy_of(teacher.net)
        about = {"shape": data.shape, "sigma_data": data.sigma_data, "n_classes": data.n_classes, "teacher": teacher}
        return ConsistencyTraining(
            net, **discrete(settings), **about, label_dropout=settings["label_dropout"], name=f"digits-{kind}"
        )

    optimizer = OptimizerPlan(lr=4e-4 if kind == "cd" else 1e-3, kind="radam", decay="cosine", clip=1.0)
    return Recipe(
        name=f"digits-{kind}",
        data="digits",
        method=method,
        plan=Plan(
            800 if kind == "cd" else 1500, 128, optimizer=optimizer, emas=(EmaPlan(half_life=12_800),), tick_steps=50
        ),
        sampler=jumps(1, 1.2),
        cost="7 CPU minutes" if kind == "cd" else "8 CPU minutes",
        notes="Label -1 is the null class, trained by label dropout. Initialised from the teacher's weights."
        if kind == "cd"
        else "Label -1 is the null class, trained by label dropout.",
        settings=settings,
        more=(jumps(2, 1.2), jumps(4, 1.2)),
        needs={"teacher": Bundled("digits")} if kind == "cd" else {},
        knobs={"solver": "jump", "n_steps": 2, "sigma_min": 1.2},
    )


def images(
    name: str,
    data: str,
    net: Callable[[Dataset], torch.nn.Module],
    settings: dict,
    *,
    lr: float,
    batch: int,
    steps: int,
    ema: float,
    intermediate: float,
    teacher: Checkpoint | None = None,
    distance: Distance = squared_l2,
    cost: str = "days on several GPUs",
    notes: str = "",
    parameters: float | None = None,
) -> Recipe:
    """A recipe of the paper's size: RAdam without warm-up or decay, no dropout, Table 3."""

    def method(made: Dataset, teacher: Denoiser | None = None) -> ConsistencyTraining:
        found = net(made)
        about = {
            "shape": made.shape,
            "sigma_data": made.sigma_data,
            "n_classes": found.n_classes,
            "teacher": teacher,
            "name": name,
        }
        return ConsistencyTraining(found, **discrete(settings), **about, distance=distance)

    return Recipe(
        name=name,
        data=data,
        method=method,
        plan=Plan(
            steps,
            batch,
            optimizer=OptimizerPlan(lr=lr, kind="radam"),
            emas=(EmaPlan(half_life=half_life(ema, batch), ramp_up=None),),
        ),
        sampler=jumps(2, intermediate),
        cost=cost,
        notes=notes,
        settings=settings,
        needs={"teacher": teacher} if teacher else {},
        knobs={"solver": "jump", "n_steps": 2, "sigma_min": intermediate},
        parameters=parameters,
    )


LSUN256_ADM = {
    "family": "adm", "shape": [3, 256, 256], "channels": 256, "mult": [1, 1, 2, 2, 4, 4], "blocks": 2, "attention": [32, 16, 8],
}  # fmt: skip

CD18, CT150 = {"n": 18, "teacher_step": "heun", "decay": 0.0}, {"s0": 2, "s1": 150, "mu0": 0.9}
CD40 = {"n": 40, "teacher_step": "heun", "decay": 0.95}
LPIPS = "The paper's distance is LPIPS; this recipe has the squared distance."


def _cifar10(kind: str) -> Recipe:
    """Table 3. Unconditional NCSN++, 800 000 iterations of 512."""
    return images(
        f"cifar10-{kind}", "cifar10", lambda d: EDMUNet(**{**CIFAR10_NCSNPP, "n_augment": 0, "dropout": 0.0}),
        CD18 if kind == "cd" else CT150, lr=4e-4, batch=512, steps=800_000, ema=0.9999, intermediate=0.8,
        teacher=Checkpoint("edm-cifar10-32x32-uncond-ve", CIFAR10_NCSNPP) if kind == "cd" else None, notes=LPIPS, parameters=56.4e6,
    )  # fmt: skip


def _imagenet64(kind: str) -> Recipe:
    """Table 3. The authors' launch script has 1e-4 in place of 8e-6 for CT: `--set plan.optimizer.lr=1e-4`."""
    return images(
        f"imagenet64-{kind}", "imagenet64", lambda d: EDMUNet(**{**IMAGENET64_ADM, "dropout": 0.0}),
        CD40 if kind == "cd" else {"s0": 2, "s1": 200, "mu0": 0.95}, lr=8e-6, batch=2048,
        steps=600_000 if kind == "cd" else 800_000, ema=0.999943, intermediate=1.382 if kind == "cd" else 1.913,
        teacher=Checkpoint("edm-imagenet-64x64-cond-adm", IMAGENET64_ADM) if kind == "cd" else None, notes=LPIPS, parameters=295.9e6,
    )  # fmt: skip


def _lsun256(kind: str) -> Recipe:
    """Table 3 (batch 2048; the launch script has 256, and 5e-5 for CT)."""
    return images(
        f"lsun-bedroom256-{kind}", "lsun-bedroom256", lambda d: EDMUNet(**LSUN256_ADM),
        CD40 if kind == "cd" else {"s0": 2, "s1": 150, "mu0": 0.95}, lr=1e-5, batch=2048,
        steps=600_000 if kind == "cd" else 1_000_000, ema=0.999943, intermediate=4.366 if kind == "cd" else 3.991,
        teacher=Checkpoint("edm-bedroom256", LSUN256_ADM) if kind == "cd" else None, notes=LPIPS,
    )  # fmt: skip


def _shapes() -> Recipe:
    """CT on coloured shapes of 16x16: an hour on a CPU, minutes on a GPU."""
    return images(
        "shapes-ct", "shapes", lambda d: UNet(d.shape, 64, (1, 2, 2), 2, n_classes=d.n_classes), CT150,
        lr=4e-4, batch=128, steps=20_000, ema=0.999, intermediate=0.6, cost="an hour on a CPU",
    )  # fmt: skip


RECIPES: dict[str, Callable[[], Recipe]] = {
    "toy": lambda: plane("cd"),
    **{
        f"toy-8gaussians-{kind}": lambda kind=kind: plane(kind)
        for kind in ("cd", "ct", "ct3", "cd-continuous", "ct-continuous")
    },
    "digits": lambda: digits("cd"),
    "digits-ct": lambda: digits("ct"),
    "shapes": _shapes,
    "cifar10": lambda: _cifar10("ct"),
    "cifar10-cd": lambda: _cifar10("cd"),
    "imagenet64": lambda: _imagenet64("ct"),
    "imagenet64-cd": lambda: _imagenet64("cd"),
    "lsun256": lambda: _lsun256("ct"),
    "lsun256-cd": lambda: _lsun256("cd"),
}


def recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise UnknownName("recipe", name, RECIPES)
    return RECIPES[name]()


PUBLISHED = (
    Published("cifar10", "FID", 3.55, 1, "Table 1", "CD, LPIPS"),
    Published("cifar10", "FID", 2.93, 2, "Table 1", "CD, LPIPS"),
    Published("cifar10", "FID", 8.70, 1, "Table 1", "CT, LPIPS"),
    Published("cifar10", "FID", 5.83, 2, "Table 1", "CT, LPIPS"),
    Published("cifar10", "FID", 8.34, 1, "Table 1", "progressive distillation, L2"),
    Published("cifar10", "FID", 5.58, 2, "Table 1", "progressive distillation, L2"),
    Published("imagenet-64x64", "FID", 6.20, 1, "Table 2", "CD, LPIPS"),
    Published("imagenet-64x64", "FID", 4.70, 2, "Table 2", "CD, LPIPS"),
    Published("imagenet-64x64", "FID", 4.32, 3, "arXiv 2403.06807, Table 5", "CD, LPIPS"),
    Published("imagenet-64x64", "FID", 13.0, 1, "Table 2", "CT, LPIPS"),
    Published("imagenet-64x64", "FID", 11.1, 2, "Table 2", "CT, LPIPS"),
)

PAPER = Paper(
    slug="consistency_models",
    title="Consistency Models",
    arxiv="2303.01469",
    family="consistency",
    recipe=recipe,
    recipes=tuple(RECIPES),
    published=PUBLISHED,
)
