"""Rectified flow (Liu, Gong, Liu 2022, arXiv 2209.03003), flow matching with optimal transport (Tong et al. 2023, arXiv 2302.00482).

Time runs from data to noise here: t = 0 is data and t = 1 noise, dx/dt = v from 1 down to 0. The papers put noise at 0: their time is
t' = 1 - t and their velocity v' = -v.
    x_t = (1 - t) x0 + t eps,   eps ~ N(0, I)                             the path; (x0, eps) joined by a coupling gamma
    L = E_t E_gamma |v(x_t, t) - (eps - x0)|^2,   t ~ U(0, 1)              arXiv 2209.03003, Eq. 1
    v*(x, t) = E[eps - x0 | x_t = x]                                       its minimiser, for every coupling
    min L = V(gamma) = E |eps - x0 - v*(x_t, t)|^2                         zero when no two lines of the coupling cross
    gamma <- {(eps, x0_hat(eps))}, x0_hat the end of v's flow              Reflow, Algorithm 1; k rounds give the k-rectified flow
    L_distil = E |eps - v(eps, 1) - x0_hat(eps)|^2                         one-step distillation of the pairs, Sec. 2.2
    E|eps - x0|^2 = E|D|^2 + S + V                                         D = chord of the flow, S = int E|D - v|^2 dt its straightness
OT-CFM joins each minibatch by exact optimal transport before the loss (arXiv 2302.00482, Algorithm 3). Squared norms are means over
coordinates in the losses, sums in S, V and the costs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
import xarray as xr
from torch import Tensor, nn

from explorer.data import Batch, Dataset
from explorer.data.pairs import PairStore
from explorer.errors import UnknownName
from explorer.models.base import Denoiser, Preconditioned
from explorer.models.flow_maps import ConsistencyModel
from explorer.nets.edm_unet import CIFAR10_DDPMPP, FFHQ64_DDPMPP, IMAGENET64_ADM, EDMUNet
from explorer.nets.mlp import MLP
from explorer.nets.unet import DIGITS_UNET, UNet
from explorer.process.broadcast import like
from explorer.process.couplings import Coupling, ExactOT
from explorer.process.losses import Distance, squared_l2
from explorer.process.paths import Linear
from explorer.process.precondition import FlowPrecondition
from explorer.process.times import TimeDistribution, Uniform
from explorer.reproduction import Bench, Need, Paper, Published, Recipe, Trained
from explorer.reproduction.pairs import PairsOf, stored
from explorer.reproduction.rounds import FLOW_KNOBS, FLOW_RANGE, even_steps, measured_rounds
from explorer.sampling.samplers import OdeSampler, Sampler
from explorer.sampling.solvers import Heun, Jump
from explorer.training import EmaPlan, Method, OptimizerPlan, Plan, Progress, Update


class FlowMatching(Method):
    """Regression of v on eps - x0 along straight lines.

    Batches may bring their own noise (stored pairs, or another source than N(0, I)); others get fresh noise, independent of the data.

    Args:
        net: v, as `forward(x, time_scale t, labels)`.
        times: distribution of t.
        coupling: joins noise and data of each batch anew; None leaves row i with row i. For a model with classes wrap it in `ByClass`.
        time_scale: factor on the time that the network reads; 999 in the paper's image networks, 1 in its toys.
        label_dropout: share of labels replaced by the null class (Ho & Salimans 2022, arXiv 2207.12598). Not in the paper.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        shape: tuple[int, ...],
        times: TimeDistribution | None = None,
        coupling: Coupling | None = None,
        time_scale: float = 1.0,
        n_classes: int = 0,
        label_dropout: float = 0.0,
        name: str = "",
    ):
        super().__init__()
        self.nets = nn.ModuleDict({"net": net})
        self.shape, self.times, self.coupling = tuple(shape), times or Uniform(*FLOW_RANGE), coupling
        self.time_scale, self.n_classes, self.label_dropout, self.name = time_scale, n_classes, label_dropout, name

    def export(self, nets) -> Denoiser:
        about = {"shape": self.shape, "n_classes": self.n_classes, "t_range": FLOW_RANGE, "name": self.name}
        return Preconditioned(nets["net"], Linear(), FlowPrecondition(self.time_scale), **about)

    def updates(self, batch: Batch, progress: Progress):
        loss, t = self.loss(batch, progress.generator)
        yield Update(("net",), loss.mean(), levels=(t / (1 - t), loss))

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """|v - (eps - x0)|^2 / D of every pair and the t it was drawn at: (B,), (B,)."""
        x0, labels = batch.x0, batch.labels if self.n_classes else None
        draw = {"generator": generator, "device": x0.device, "dtype": x0.dtype}
        noise = torch.randn(x0.shape, **draw) if batch.noise is None else batch.noise
        if self.coupling is not None:
            noise, x0, labels, _ = self.coupling.pair(noise, x0, labels, _on_cpu(generator))
        t = self.times.sample(len(x0), **draw)
        if labels is not None:
            labels = torch.where(torch.rand(len(x0), **draw) < self.label_dropout, -1, labels)
        return self.error(x0, noise, t, labels), t

    def error(self, x0: Tensor, noise: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Loss of given pairs at given times, (B,)."""
        x_t = torch.lerp(x0, noise, like(t, x0))
        gap = self.export(self.nets).velocity(x_t, t, labels) - (noise - x0)
        return gap.square().flatten(1).mean(1)


class Distillation(Method):
    """One-step distillation of stored pairs: only the noise end of v is trained, eps - v(eps, 1) = x0_hat.

    Args:
        net: v, usually that of the flow which made the pairs.
        distance: (x, y) -> (B,); None is the mean square over coordinates. The paper uses LPIPS on images.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        shape: tuple[int, ...],
        distance: Distance | None = None,
        time_scale: float = 1.0,
        n_classes: int = 0,
        name: str = "",
    ):
        super().__init__()
        self.nets, self.distance = nn.ModuleDict({"net": net}), distance or squared_l2
        self.shape, self.time_scale, self.n_classes, self.name = tuple(shape), time_scale, n_classes, name

    def export(self, nets) -> ConsistencyModel:
        about = {"shape": self.shape, "n_classes": self.n_classes, "t_range": FLOW_RANGE, "name": self.name}
        return ConsistencyModel(Preconditioned(nets["net"], Linear(), FlowPrecondition(self.time_scale), **about))

    def updates(self, batch: Batch, progress: Progress):
        t = torch.full_like(batch.noise.flatten(1)[:, 0], FLOW_RANGE[1])
        labels = batch.labels if self.n_classes else None
        x = self.export(self.nets).denoise(FLOW_RANGE[1] * batch.noise, t, labels)
        yield Update(("net",), self.distance(x, batch.x0).mean())


def _on_cpu(generator: torch.Generator | None) -> torch.Generator | None:
    """Couplings draw on the CPU: on other devices a generator of its own, seeded by one draw of the step's."""
    if generator is None or generator.device.type == "cpu":
        return generator
    return torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))


def warm(net: nn.Module, flow: Denoiser | None) -> nn.Module:
    """The network with the weights of a flow's, where one is given."""
    if flow is not None:
        net.load_state_dict(flow.net.state_dict())
    return net


def _round(k: int, fine: Sampler, **about) -> Recipe:
    """The recipe of flow k: the first is sampled as `fine` as its ODE asks for, later ones learn from stored pairs and take two steps."""
    return Recipe(
        sampler=fine if k == 1 else even_steps(2),
        stream=stored if k > 1 else None,
        more=tuple(even_steps(n) for n in (1, 2, 4) if n != 2 or k == 1),
        knobs=FLOW_KNOBS if k > 1 else {},
        **about,
    )


def plane(
    data: str, k: int = 1, *, coupling: str = "independent", warm_start: bool = True, pairs: int = 20_000
) -> Recipe:
    """k-rectified flow of a toy: an MLP, half a minute to a minute on one core for each round.

    Round 1 sees fresh points; round k > 1 the `pairs` that round k - 1 makes in 100 Heun steps, from its weights.

    Args:
        coupling: of round 1, "independent" or "ot" (minibatches of 256 joined by exact optimal transport).
        warm_start: later rounds begin with the weights of the round before.
    """
    name = f"toy-{data}-{k}rf" if coupling == "independent" else f"toy-{data}-{coupling}-{k}rf"
    settings = {"round": k, "coupling": coupling, "time_scale": 4.0, "warm_start": warm_start, "width": 128, "depth": 3}
    needs: dict[str, Need] = {}
    if k > 1:
        flow = Trained(plane(data, k - 1, coupling=coupling, warm_start=warm_start, pairs=pairs))
        needs = {"flow": flow, "pairs": PairsOf(flow, even_steps(100, Heun()), pairs)}

    def method(points: Dataset, flow: Denoiser | None = None, pairs: PairStore | None = None) -> FlowMatching:
        net = MLP(points.shape[0], width=settings["width"], depth=settings["depth"])
        return FlowMatching(
            warm(net, flow if warm_start else None),
            shape=points.shape,
            coupling=ExactOT() if coupling == "ot" and k == 1 else None,
            time_scale=settings["time_scale"],
            name=name,
        )

    batch = 256 if coupling == "ot" and k == 1 else 512
    optimizer = OptimizerPlan(lr=2e-3, betas=(0.9, 0.99), warmup_images=50_000, decay="cosine")
    plan = Plan(3000 if k == 1 else 2000, batch, optimizer=optimizer, emas=(EmaPlan(half_life=60_000),), tick_steps=500)
    return _round(
        k,
        even_steps(100, Heun()),
        name=name,
        data=data,
        method=method,
        plan=plan,
        cost=f"{k} CPU minute{'s' * (k > 1)}",
        settings=settings,
        needs=needs,
        notes="" if k == 1 else f"Trained on {pairs} pairs of the flow before; measured at 2 Euler steps.",
    )


def one_step(data: str, k: int = 2) -> Recipe:
    """The k-rectified flow of a toy distilled to one step, on the pairs that it makes itself."""
    flow, name = Trained(plane(data, k)), f"toy-{data}-{k}rf-1step"

    def method(points: Dataset, flow: Denoiser, pairs: PairStore) -> Distillation:
        scale = flow.precondition.time_scale
        return Distillation(warm(MLP(**flow.net.config), flow), shape=points.shape, time_scale=scale, name=name)

    made = PairsOf(flow, even_steps(100, Heun()), 20_000)
    return dataclasses.replace(
        plane(data, k), name=name, method=method, sampler=OdeSampler(Jump(), even_steps(1).grid), cost=f"{k + 1} CPU minutes",
        settings={"round": k}, needs={"flow": flow, "pairs": made}, stream=stored, more=(), knobs={}, notes="",
    )  # fmt: skip


UNETS = {  # the networks of the bundled teachers, steps of 128 images in round 1 and later, minutes
    "digits": (DIGITS_UNET, (800, 400), 5),
    "shapes": ({"shape": [3, 16, 16], "channels": 32, "mult": [1, 2, 2], "blocks": [1, 1, 1]}, (4000, 2000), 60),
}


def images(data: str, k: int = 1, *, previous: Need | None = None, n_pairs: int = 4_000) -> Recipe:
    """k-rectified flow of small images with classes; `previous` makes the pairs of rounds k > 1 and gives their first weights."""
    config, steps, minutes = UNETS[data]
    if k > 1 and previous is None:
        previous = Trained(images(data, k - 1))
    name = f"{data}-{k}rf"
    settings = {"round": k, "time_scale": 4.0, "label_dropout": 0.1, "dropout": 0.1 if k == 1 else 0.0}
    needs = {} if k == 1 else {"flow": previous, "pairs": PairsOf(previous, even_steps(12, Heun()), n_pairs)}

    def method(data: Dataset, flow: Denoiser | None = None, pairs: PairStore | None = None) -> FlowMatching:
        net = UNet(**{**config, "n_classes": data.n_classes, "dropout": settings["dropout"]})
        about = {"time_scale": settings["time_scale"], "label_dropout": settings["label_dropout"], "name": name}
        return FlowMatching(warm(net, flow), shape=data.shape, n_classes=data.n_classes, **about)

    lr = 2e-3 if k == 1 else 1e-3
    optimizer = OptimizerPlan(lr=lr, betas=(0.9, 0.99), warmup_images=12_800, decay="cosine", clip=1.0)
    return _round(
        k,
        even_steps(8, Heun()),
        name=name,
        data=data,
        method=method,
        plan=Plan(steps[min(k, 2) - 1], 128, optimizer=optimizer, emas=(EmaPlan(half_life=18_000),)),
        cost=f"{minutes} CPU minutes",
        settings=settings,
        needs=needs,
        notes="Label -1 is the null class, trained by label dropout."
        + ("" if k == 1 else f" Trained on {n_pairs} pairs of {data}-{k - 1}rf; measured at 2 Euler steps."),
    )


THEIRS = "Not in the paper: network, batch and learning rate of Lee, Lin & Fanti 2024, arXiv 2405.20320."
SIZES = {  # data, network, batch, warm-up steps, learning rate, parameters, notes
    "cifar10": ("cifar10", {**CIFAR10_DDPMPP, "mult": [1, 2, 2, 2], "n_augment": 0, "dropout": 0.15}, 128, 5000, 2e-4, 61.8e6, ""),
    "afhq": ("afhqv2-64", {**FFHQ64_DDPMPP, "n_augment": 0, "dropout": 0.25}, 256, 5000, 2e-4, 61.8e6, THEIRS),
    "imagenet64": ("imagenet64", IMAGENET64_ADM, 2048, 2500, 1e-4, 295.9e6, THEIRS),
}  # fmt: skip


def paper_size(name: str) -> Recipe:
    """A 1-RF at the size of the papers.

    Of the released configuration of CIFAR-10: DDPM++ with multipliers 1, 2, 2, 2, Adam 2e-4, warm-up over 5000 steps, clip 1, EMA 0.999999,
    batch 128, dropout 0.15, network time 999 t. The length is ours: that configuration stops by hand.
    """
    data, config, batch, warmup, lr, parameters, notes = SIZES[name]

    def method(data: Dataset) -> FlowMatching:
        about = {"n_classes": config.get("n_classes", 0), "name": f"{name}-1rf"}
        return FlowMatching(EDMUNet(**config), shape=data.shape, time_scale=999.0, **about)

    ema = EmaPlan(half_life=batch * math.log(0.5) / math.log(0.999999), ramp_up=None)
    optimizer = OptimizerPlan(lr=lr, kind="adam", warmup_images=warmup * batch, clip=1.0)
    return Recipe(
        name=f"{name}-1rf",
        data=data,
        method=method,
        plan=Plan(600_000, batch, optimizer=optimizer, emas=(ema,)),
        sampler=even_steps(100, Heun()),
        cost="days on several GPUs",
        notes=notes,
        parameters=parameters,
    )


TOYS = ("8gaussians", "moons", "checkerboard")
RECIPES: dict[str, Callable[[], Recipe]] = {
    "toy": lambda: plane("8gaussians"),
    "toy-2rf": lambda: plane("8gaussians", 2),
    **{f"toy-{d}-{k}rf": lambda d=d, k=k: plane(d, k) for d in TOYS for k in (1, 2, 3)},
    **{f"toy-{d}-ot-1rf": lambda d=d: plane(d, coupling="ot") for d in TOYS},
    **{f"toy-{d}-2rf-1step": lambda d=d: one_step(d) for d in TOYS},
    **{data: lambda data=data: images(data) for data in UNETS},
    **{f"{d}-{k}rf": lambda d=d, k=k: images(d, k) for d in UNETS for k in (2, 3)},
    **{name: lambda name=name: paper_size(name) for name in SIZES},
}


def recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise UnknownName("recipe", name, RECIPES)
    return RECIPES[name]()


def flow(data: str, k: int) -> Recipe:
    """Flow k of digits, shapes or a toy, every round trained from the one before."""
    if data in UNETS:
        return images(data, k, previous=Trained(flow(data, k - 1)) if k > 1 else None)
    return plane(data, k)


def reflow(bench: Bench, data: str = "8gaussians", rounds: int = 3, **settings) -> xr.Dataset:
    """Train flow 1, 2, ... `rounds`, each on the pairs of the one before, and measure each on held-out noise: one call, resumable.

    Called again, it goes on where it stopped. Rows and settings: `explorer.reproduction.rounds.measured_rounds`.
    """
    return measured_rounds(bench, [flow(data, k) for k in range(1, rounds + 1)], **settings)


PUBLISHED = (
    Published("cifar10", "FID", 2.58, 127, "Table 1 (RK45, about 127 NFE)", "1-rectified flow"),
    Published("cifar10", "FID", 3.36, 110, "Table 1 (RK45, about 110 NFE)", "2-rectified flow"),
    Published("cifar10", "FID", 3.96, 104, "Table 1 (RK45, about 104 NFE)", "3-rectified flow"),
    Published("cifar10", "FID", 378.0, 1, "Table 1", "1-rectified flow, one Euler step"),
    Published("cifar10", "FID", 12.21, 1, "Table 1", "2-rectified flow, one Euler step"),
    Published("cifar10", "FID", 6.18, 1, "Table 1", "1-rectified flow, distilled"),
    Published("cifar10", "FID", 4.85, 1, "Table 1", "2-rectified flow, distilled"),
    Published("cifar10", "FID", 5.21, 1, "Table 1", "3-rectified flow, distilled"),
)

PAPER = Paper(
    slug="rectified_flow",
    title="Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow",
    arxiv="2209.03003",
    family="flow",
    recipe=recipe,
    recipes=tuple(RECIPES),
    published=PUBLISHED,
)
