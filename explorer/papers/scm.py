"""Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models (Lu & Song 2024, arXiv 2410.11081): sCM.

Time t in [0, pi/2], data at 0; z = sd eps has the data's standard deviation; EDM's sigma is sd tan t.
(1) x_t = cos(t) x0 + sin(t) z, dx/dt = cos(t) z - sin(t) x0 of one pair; sd F of a diffusion model           Sec. 3.1
(2) f(x, t) = cos(t) x - sin(t) sd F(x / sd, t), so that f(x, 0) = x                                          Eq. 5
(3) df/dt = -cos(t) (sd F - dx/dt) - sin(t) (x + sd dF/dt)                                                    Eq. 6
(4) g = cos(t) df/dt = -cos^2(t) (sd F - dx/dt) - r (cos(t) sin(t) x + sd J),  J = cos(t) sin(t) dF/dt,
    J in one forward-mode derivative with tangents (cos(t) sin(t) dx/dt / sd, cos(t) sin(t)), r = min(1, k/H)   Alg. 1
(5) g <- g / (|g| + c), the norm over the whole sample, c = 0.1                                               Alg. 1
(6) L = e^w(t) / D |F - sg F - g|^2 - w(t), w learnt                                                          Eq. 8
(7) ln(sd tan t) ~ N(P_mean, P_std^2)                                                                         Alg. 1
sCT takes dx/dt of the pair, sCD that of a teacher. Two steps: x = cos(1.1) f + sin(1.1) z', f(x, 1.1): the solver "jump".

(1), the teacher's training and the start from an EDM network are `explorer.training.trigflow`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from explorer.data import Batch, Dataset
from explorer.errors import BadValue, UnknownName
from explorer.models.base import Denoiser, Preconditioned
from explorer.models.flow_maps import ConsistencyModel
from explorer.nets.edm_unet import CIFAR10_DDPMPP, IMAGENET64_ADM, EDMUNet
from explorer.nets.forward_mode import jvp
from explorer.nets.mlp import MLP
from explorer.nets.unet import UNet
from explorer.process.broadcast import like
from explorer.process.discretisation import SIGMA_RANGE
from explorer.process.times import LogNormal
from explorer.reproduction import Bundled, Paper, Published, Recipe, Trained
from explorer.reproduction.few_steps import jumps
from explorer.sampling.grids import TimeGrid
from explorer.sampling.samplers import OdeSampler
from explorer.sampling.solvers import Heun
from explorer.training import EmaPlan, OptimizerPlan, Plan, Progress, Update
from explorer.training.trigflow import LogClock, TrigFlow, student_of

Norm = Literal["l2", "rms", "clip", "none"]
Derivative = Literal["jvp", "difference", "discrete"]
Clock = Literal["t", "log"]


@dataclass(frozen=True)
class Stabilisers:
    """Every choice of the paper that can be taken back.

    Args:
        norm: of the tangent g: (5), the same with the root mean square for the norm, clipped to [-1, 1], or left alone.
        c: of "l2" and "rms".
        warmup: H, steps.
        weighted: learn w(t), else w = 0.
        prior: multiply the squared error by 1 / sigma as well, as some public ports do.
        clock: the network sees t, or ln(sd tan t), whose derivative along (4) is 1 / sd cos t before rearrangement.
        rearranged: cos(t) sin(t) enters before the derivative, not behind it.
        derivative: forward mode; central differences with `step`; or the discrete loss with levels `step` apart, which replaces
            df/dt by (f(x_t, t) - f(x_s, s)) / sin(t - s).
        step: in units of t.
    """

    norm: Norm = "l2"
    c: float = 0.1
    warmup: int = 500
    weighted: bool = True
    prior: bool = False
    clock: Clock = "t"
    rearranged: bool = True
    derivative: Derivative = "jvp"
    step: float = 1e-3

    def __post_init__(self):
        for what, kinds in (("norm", Norm), ("clock", Clock), ("derivative", Derivative)):
            if getattr(self, what) not in get_args(kinds):
                raise UnknownName(what, getattr(self, what), get_args(kinds))
        if not (self.c > 0 and self.step > 0 and self.warmup >= 0):
            raise BadValue(f"c and step must be positive and warmup not negative, got {self}.")


class SCM(TrigFlow):
    """Continuous-time consistency training, or distillation where there is a teacher: Alg. 1.

    Args:
        teacher: its velocity replaces the pair's; on any path.
        stable: which stabilisers are on.
        settings: of `TrigFlow`.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        teacher: Denoiser | None = None,
        stable: Stabilisers = Stabilisers(),  # noqa: B008 (frozen)
        sigma_data: float,
        **settings: Any,
    ):
        net = LogClock(net, sigma_data) if stable.clock == "log" else net
        super().__init__(net, sigma_data=sigma_data, weighted=stable.weighted, **settings)
        self.teacher = None if teacher is None else teacher.on(self.path)
        self.stable = stable

    def export(self, nets) -> ConsistencyModel:
        return ConsistencyModel(super().export(nets))

    def updates(self, batch: Batch, progress: Progress):
        x_t, t, slope, labels = self.draw(batch, progress.generator)
        loss, raw = self.loss(x_t, t, slope, labels, progress.step)
        norm = raw.flatten(1).norm(dim=1)
        logs = {"tangent": norm.mean(), "tangent_max": norm.max()}
        yield Update(tuple(self.nets), loss.mean(), logs, (self.sigma_data * t.tan(), loss))

    def loss(
        self, x_t: Tensor, t: Tensor, slope: Tensor, labels: Tensor | None = None, step: int = 10**9
    ) -> tuple[Tensor, Tensor]:
        """(6) of each sample, and g before (5), at one step of training; `slope` is dx/dt of the pair: (B,), (B, *shape)."""
        sd, net = self.sigma_data, self.nets["net"]
        if self.teacher is not None:
            with torch.no_grad():
                slope = self.teacher.velocity(x_t, t, labels).to(x_t.dtype)
        device = [x_t.device] if x_t.is_cuda else []
        with torch.no_grad(), torch.random.fork_rng(device):  # the pass with gradients below sees the same dropout
            fixed, raw = self.tangent(x_t, t, slope, labels, step)
        out = net(x_t / sd, t, labels)
        error = (out - fixed - self.normalised(raw)).square().flatten(1).mean(1)
        if self.stable.prior:
            error = error / (sd * t.tan())
        return self.weigh(error, t), raw

    def tangent(self, x_t: Tensor, t: Tensor, slope: Tensor, labels: Tensor | None, step: int) -> tuple[Tensor, Tensor]:
        """F and (4) at x_t; no gradient is meant to flow."""
        sd, net, stable = self.sigma_data, self.nets["net"], self.stable
        cos, sin = like(t.cos(), x_t), like(t.sin(), x_t)
        if stable.derivative == "discrete":
            return self._discrete(x_t, t, slope, labels)
        u, du, cs = x_t / sd, slope / sd, t.cos() * t.sin()
        if stable.derivative == "difference":
            h = stable.step
            fixed = net(u, t, labels)
            change = (net(u + h * du, t + h, labels) - net(u - h * du, t - h, labels)) / (2 * h)
            J = like(cs, u) * change
        elif stable.rearranged:
            fixed, J = jvp(lambda u, t: net(u, t, labels), (u, t), (like(cs, u) * du, cs))
        else:
            fixed, change = jvp(lambda u, t: net(u, t, labels), (u, t), (du, torch.ones_like(t)))
            J = like(cs, u) * change
        r = min(1.0, step / stable.warmup) if stable.warmup else 1.0
        return fixed, -(cos**2) * (sd * fixed - slope) - r * (cos * sin * x_t + sd * J)

    def _discrete(self, x_t: Tensor, t: Tensor, slope: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """F, and cos(t) (f(x_t, t) - f(x_s, s)) / sin(t - s) with x_s = cos(t - s) x_t - sin(t - s) dx/dt: Appendix G."""
        sd, net = self.sigma_data, self.nets["net"]
        s = (t - self.stable.step).clamp_min(0.0)
        gap = t - s
        x_s = like(gap.cos(), x_t) * x_t - like(gap.sin(), x_t) * slope
        fixed = net(x_t / sd, t, labels)
        ahead = like(t.cos(), x_t) * x_t - like(t.sin(), x_t) * sd * fixed
        behind = like(s.cos(), x_t) * x_s - like(s.sin(), x_t) * sd * net(x_s / sd, s, labels)
        return fixed, like(t.cos() / gap.sin(), x_t) * (ahead - behind)

    def normalised(self, g: Tensor) -> Tensor:
        """(5), or what stands in its place."""
        match self.stable.norm:
            case "none":
                return g
            case "clip":
                return g.clamp(-1, 1)
        norm = g.flatten(1).norm(dim=1)
        if self.stable.norm == "rms":
            norm = norm / math.sqrt(g[0].numel())
        return g / like(norm + self.stable.c, g)


# Recipes


def few(sigma_data: float, n: int) -> OdeSampler:
    """n jumps of exact noise, the last from t = 1.1: sigma = sd tan 1.1, 0.98 for sd = 0.5."""
    return jumps(n, sigma_data * math.tan(1.1), sigma_min=0.0)


def knobs(sigma_data: float) -> dict[str, Any]:
    return {"solver": "jump", "n_steps": 2, "sigma_min": round(sigma_data * math.tan(1.1), 3)}


def plane(kind: str, data: str = "8gaussians", *, steps: int = 2000, scale: float = 1.0, **stable: Any) -> Recipe:
    """A minute on one core: sCT of a toy, or sCD with its exact teacher.

    `scale` is that of the noise features' frequencies, see `explorer.nets.embedding`; `stable` goes to `Stabilisers`.
    """
    settings = {"p_mean": -1.0, "p_std": 1.6, "scale": scale, **stable}
    sd = 0.5  # of every toy of the plane

    def method(points: Dataset, teacher: Denoiser | None = None) -> SCM:
        net, times = (
            MLP(points.shape[0], 128, 3, embedding_scale=scale),
            LogNormal(settings["p_mean"], settings["p_std"]),
        )
        about = {"shape": points.shape, "sigma_data": points.sigma_data, "times": times, "name": f"toy-{data}-{kind}"}
        return SCM(net, teacher=teacher, stable=Stabilisers(**stable), **about)

    optimizer = OptimizerPlan(lr=1e-3, kind="radam", betas=(0.9, 0.99), decay="cosine", final=0.05)
    return Recipe(
        name=f"toy-{data}-{kind}", data=data, method=method, settings=settings, cost="1 CPU minute",
        plan=Plan(steps, 384, optimizer=optimizer, emas=(EmaPlan(half_life=60_000),), tick_steps=250),
        sampler=few(sd, 1), more=(few(sd, 2), few(sd, 4)), knobs=knobs(sd),
        needs={"teacher": Bundled(f"oracle-{data}")} if kind == "scd" else {},
    )  # fmt: skip


def digits(kind: str) -> Recipe:
    """10 minutes on one core: the bundled teacher's network goes on as a consistency model; sCD also follows its velocity.

    Times are those of the paper's CIFAR-10 runs, moved with sd from 0.5 to 0.75.
    """
    settings = {"p_mean": -0.6, "p_std": 1.4, "warmup": 200, "label_dropout": 0.1}
    sd = 0.75

    def method(data: Dataset, teacher: Preconditioned) -> SCM:
        times = LogNormal(settings["p_mean"], settings["p_std"])
        followed, stable = teacher if kind == "scd" else None, Stabilisers(warmup=settings["warmup"])
        about = {
            "shape": data.shape,
            "sigma_data": teacher.precondition.sigma_data,
            "n_classes": data.n_classes,
            "times": times,
        }
        more = {"label_dropout": settings["label_dropout"], "name": f"digits-{kind}"}
        return SCM(student_of(teacher, times), teacher=followed, stable=stable, **about, **more)

    optimizer = OptimizerPlan(lr=5e-4, kind="radam", betas=(0.9, 0.99), decay="cosine", final=0.05)
    return Recipe(
        name=f"digits-{kind}", data="digits", method=method, settings=settings, cost="10 CPU minutes",
        plan=Plan(1000, 128, optimizer=optimizer, emas=(EmaPlan(half_life=12_800),), tick_steps=50),
        sampler=few(sd, 1), more=(few(sd, 2), few(sd, 4)), knobs=knobs(sd), needs={"teacher": Bundled("digits")},
        notes="Label -1 is the null class, trained by label dropout. Starts from the teacher's weights, its clock fitted anew.",
    )  # fmt: skip


def large(
    name: str, data: str, net: Callable[..., nn.Module], *, consistency: bool = True, teacher: Recipe | None = None,
    steps: int, batch: int, lr: float, p_mean: float, p_std: float, dropout: float, ema: EmaPlan,
    eps: float = 1e-8, decay_images: int = 0, parameters: float | None = None, notes: str = "",
) -> Recipe:  # fmt: skip
    """A longer run: sCT from scratch, sCD from the weights of a TrigFlow teacher, or that teacher."""
    settings = {"p_mean": p_mean, "p_std": p_std, "dropout": dropout, "warmup": 10_000}

    def method(made: Dataset, teacher: Preconditioned | None = None) -> TrigFlow:
        found, times = net(made, dropout), LogNormal(p_mean, p_std)
        about = {"shape": made.shape, "sigma_data": 0.5, "n_classes": found.n_classes, "times": times, "name": name}
        if not consistency:
            return TrigFlow(found, **about)
        if teacher is not None:
            found.load_state_dict(teacher.net.state_dict())
        return SCM(found, teacher=teacher, stable=Stabilisers(warmup=settings["warmup"]), **about)

    decay = {"decay": "inverse_sqrt", "decay_images": decay_images} if decay_images else {}
    kind = "adam" if decay_images or not consistency else "radam"
    optimizer = OptimizerPlan(lr=lr, kind=kind, betas=(0.9, 0.99), eps=eps, **decay)
    heun = OdeSampler(Heun(), TimeGrid.karras(18, *SIGMA_RANGE))
    return Recipe(
        name=name, data=data, method=method, plan=Plan(steps, batch, optimizer=optimizer, emas=(ema,)),
        sampler=few(0.5, 2) if consistency else heun, more=(few(0.5, 1),) if consistency else (),
        cost="days on several GPUs", notes=notes, settings=settings, parameters=parameters,
        needs={"teacher": Trained(teacher)} if teacher else {}, knobs=knobs(0.5) if consistency else {},
    )  # fmt: skip


CIFAR10: dict[str, Any] = {
    "data": "cifar10",
    "net": lambda data, drop: EDMUNet(**{**CIFAR10_DDPMPP, "n_augment": 0, "dropout": drop, "modulation": "double"}),
    "steps": 400_000, "batch": 512, "lr": 1e-4, "p_mean": -1.0, "p_std": 1.4, "dropout": 0.2,
    "ema": EmaPlan(half_life=500_000), "parameters": 55.7e6,
    "notes": "Appendix G.2, Tables 4 and 5. Unconditional; 400 000 iterations are those of the paper's comparison with ECT.",
}  # fmt: skip
IMAGENET64: dict[str, Any] = {
    "data": "imagenet64",
    "net": lambda data, drop: EDMUNet(**{**IMAGENET64_ADM, "dropout": drop, "dropout_at": [8, 16], "modulation": "double"}),
    "steps": 400_000, "batch": 2048, "lr": 1e-4, "p_mean": -1.0, "p_std": 1.6, "dropout": 0.45,
    "ema": EmaPlan(sigma_rel=0.05), "eps": 1e-11, "decay_images": 35_000 * 2048, "parameters": 280e6,
    "notes": "Tables 4 and 5, size S. The paper's network is EDM2-S; here ADM with the double normalisation of Eq. 8.",
}  # fmt: skip
SHAPES: dict[str, Any] = {
    "data": "shapes", "net": lambda data, drop: UNet(data.shape, 64, (1, 2, 2), 2, n_classes=data.n_classes, dropout=drop),
    "steps": 20_000, "batch": 128, "lr": 5e-4, "p_mean": -1.0, "p_std": 1.4, "dropout": 0.0,
    "ema": EmaPlan(half_life=100_000),
}  # fmt: skip


def _family(name: str, student: dict[str, Any], **teacher: Any) -> dict[str, Callable[[], Recipe]]:
    """NAME by sCT, NAME-scd, and the teacher of the latter, NAME-teacher."""

    def first() -> Recipe:
        return large(f"{name}-teacher", consistency=False, **{**student, **teacher})

    return {
        name: lambda: large(f"{name}-sct", **student),
        f"{name}-scd": lambda: large(f"{name}-scd", teacher=first(), **{**student, "dropout": 0.0}),
        f"{name}-teacher": first,
    }


RECIPES: dict[str, Callable[[], Recipe]] = {
    "toy": lambda: plane("sct"),
    **{f"toy-8gaussians-{kind}": lambda kind=kind: plane(kind) for kind in ("sct", "scd")},
    "digits": lambda: digits("scd"),
    "digits-sct": lambda: digits("sct"),
    **_family("shapes", SHAPES, lr=1e-3),
    **_family("cifar10", CIFAR10, lr=1e-3, dropout=0.13),
    **_family("imagenet64", IMAGENET64, p_mean=-0.8, dropout=0.1),
}


def recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise UnknownName("recipe", name, RECIPES)
    return RECIPES[name]()


def _results(data: str, method: str, *values: float) -> tuple[Published, ...]:
    return tuple(Published(data, "FID", value, nfe, "Table 1 and 2", method) for nfe, value in enumerate(values, 1))


PUBLISHED = (
    *_results("cifar10", "sCT", 2.85, 2.06),
    *_results("cifar10", "sCD", 3.66, 2.52),
    *_results("imagenet-64x64", "sCT, size XL", 2.04, 1.48),
    *_results("imagenet-64x64", "sCT, size S", 3.23, 2.93),
    *_results("imagenet-64x64", "sCD, size XL", 2.44, 1.66),
    *_results("imagenet-64x64", "sCD, size S", 2.97, 2.07),
    *_results("imagenet-512x512", "sCD, size XXL", 2.28, 1.88),
    *_results("imagenet-512x512", "sCT, size XXL", 4.29, 3.76),
)

PAPER = Paper(
    slug="scm",
    title="Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models",
    arxiv="2410.11081",
    family="consistency",
    recipe=recipe,
    recipes=tuple(RECIPES),
    published=PUBLISHED,
)
