"""Consistency training at discrete noise levels: one network made to agree with itself at two neighbours of one
trajectory.

    x_t = x0 + t eps,  r < t neighbours on the grid
    x_r = x0 + r eps                    training from data: the same eps
        = one ODE step of a teacher     distillation
    loss = w(r, t) d(f(x_t, t), sg f-(x_r, r)),    f- the network itself or its running average

f(x, t) = c_skip x + c_out F(c_in x, ln t / 4) is x at sigma_min whatever F is, and that is where the truth comes in.
What the papers change are the numbers of levels, which are drawn, how they are weighed, d, and f-: all arguments here.

Sources: Song et al. 2023, arXiv 2303.01469, Alg. 2 and 3; Song & Dhariwal 2023, arXiv 2310.14189.

B batch; samples (B, *shape); levels, losses and labels (B,). States are EDM's, x0 + t eps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from explorer.data import Batch
from explorer.errors import BadValue, UnknownName
from explorer.models.base import Denoiser, Preconditioned
from explorer.models.flow_maps import ConsistencyModel
from explorer.process.broadcast import like
from explorer.process.discretisation import (
    SIGMA_RANGE,
    Curriculum,
    Fixed,
    IndexLaw,
    UniformIndex,
    equal_weight,
    karras_levels,
)
from explorer.process.losses import Distance, squared_l2
from explorer.process.paths import EDM
from explorer.process.precondition import ConsistencyPrecondition
from explorer.training.ema import ema_
from explorer.training.method import Method, Progress, Update

TeacherStep = Literal["euler", "heun"]


class Pair(NamedTuple):
    """Two neighbours of one trajectory: (x_t, t) and (x_r, r) below it, the interval's weight, the labels or None."""

    x_t: Tensor
    t: Tensor
    x_r: Tensor
    r: Tensor
    weight: Tensor
    labels: Tensor | None


def consistency_model(
    net: nn.Module,
    *,
    shape: tuple[int, ...],
    sigma_data: float,
    sigma_range: tuple[float, float] = SIGMA_RANGE,
    n_classes: int = 0,
    name: str = "",
) -> ConsistencyModel:
    """f on EDM's path with the boundary condition f(x, sigma_min) = x, from a raw network F(x, ln sigma / 4, labels)."""
    precondition = ConsistencyPrecondition(sigma_data, sigma_range[0])
    about = {"shape": tuple(shape), "t_range": sigma_range, "n_classes": n_classes, "name": name}
    return ConsistencyModel(Preconditioned(net, EDM(), precondition, **about))


class ConsistencyMethod(Method):
    """What consistency training has in common, discrete or not: network, boundary, labels, teacher. A subclass adds
    `updates`.

    Args:
        net: F, as `forward(x, c_noise, labels)`.
        sigma_data: sd.
        teacher: denoiser whose ODE is distilled, on any path; None trains from data alone.
        sigma_range: (sigma_min, sigma_max).
        label_dropout: share of labels replaced by the null class. Not in the papers.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        shape: tuple[int, ...],
        sigma_data: float,
        teacher: Denoiser | None = None,
        sigma_range: tuple[float, float] = SIGMA_RANGE,
        n_classes: int = 0,
        label_dropout: float = 0.0,
        name: str = "",
    ):
        super().__init__()
        if teacher is not None and tuple(teacher.shape) != tuple(shape):
            raise BadValue(f"the teacher makes samples of shape {tuple(teacher.shape)}, the data have {tuple(shape)}.")
        self.nets = nn.ModuleDict({"net": net})
        self.teacher = None if teacher is None else teacher.on(EDM()).eval().requires_grad_(False)
        self.shape, self.sigma_data, self.sigma_range = tuple(shape), float(sigma_data), tuple(sigma_range)
        self.n_classes, self.label_dropout, self.name = n_classes, label_dropout, name

    def model(self, net: nn.Module) -> ConsistencyModel:
        about = {"shape": self.shape, "sigma_data": self.sigma_data, "n_classes": self.n_classes, "name": self.name}
        return consistency_model(net, sigma_range=self.sigma_range, **about)

    def export(self, nets) -> ConsistencyModel:
        return self.model(nets["net"])

    def labels(self, batch: Batch, generator: torch.Generator | None) -> Tensor | None:
        if not self.n_classes:
            return None
        if not self.label_dropout:
            return batch.labels
        draw = torch.rand(len(batch), generator=generator, device=batch.x0.device)
        return torch.where(draw < self.label_dropout, -1, batch.labels)


class ConsistencyTraining(ConsistencyMethod):
    """Distillation (with a teacher) or training (without) at discrete levels.

    Args:
        curriculum: number of levels as training proceeds.
        law: which interval is drawn.
        weight: (r, t) in float64 -> weight of the interval.
        distance: d, one number per sample; also the place for a perceptual one: LPIPS as `forward(x, y) -> (B,)`, or
        features. decay: mu of the target's average after each step, a number or a function of N; None: the target is
        the network itself. teacher_step: "heun" (two calls of the teacher) or "euler". rho: of the grid. settings: see
        `ConsistencyMethod`.

    Both passes see the same dropout masks. The target is never differentiated.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        curriculum: Curriculum | None = None,
        law: IndexLaw | None = None,
        weight: Callable[[Tensor, Tensor], Tensor] = equal_weight,
        distance: Distance = squared_l2,
        decay: float | Callable[[int], float] | None = None,
        teacher_step: TeacherStep = "heun",
        rho: float = 7.0,
        **settings,
    ):
        super().__init__(net, **settings)
        if teacher_step not in ("euler", "heun"):
            raise UnknownName("teacher step", teacher_step, ("euler", "heun"))
        if isinstance(decay, float | int) and not 0 <= decay < 1:
            raise BadValue(f"the target's decay is {decay}; it must be in [0, 1).")
        self.curriculum, self.law, self.weight, self.distance = (
            curriculum or Fixed(),
            law or UniformIndex(),
            weight,
            distance,
        )
        self.decay, self.teacher_step, self.rho = decay, teacher_step, rho
        self.target = copy.deepcopy(net).requires_grad_(False) if decay else None  # mu = 0 is the network itself
        self._grids: dict[int, Tensor] = {}
        self._followed = -1

    def updates(self, batch: Batch, progress: Progress):
        n = self.curriculum(progress.fraction)
        pair = self.pair(batch, n, progress.generator)
        distance = self.disagreement(pair)
        loss = pair.weight * distance
        yield Update(("net",), loss.mean(), {"distance": distance.mean(), "levels": float(n)}, (pair.t, loss))
        if self.target is not None and self._followed != progress.step:  # once a step, not once a micro-batch
            self._followed = progress.step
            ema_(self.target, self.nets["net"], self.decay(n) if callable(self.decay) else self.decay)

    def levels(self, n: int) -> Tensor:
        """The grid of n levels, (n,) float64."""
        if n not in self._grids:
            self._grids[n] = karras_levels(n, *self.sigma_range, self.rho)
        return self._grids[n]

    def pair(self, batch: Batch, n: int, generator: torch.Generator | None) -> Pair:
        """A random interval of n levels for each sample, and the two states at its ends."""
        x0, levels = batch.x0, self.levels(n)
        i = self.law.draw(len(x0), levels, generator, "cpu" if generator is None else generator.device).cpu()
        exact = levels[i], levels[i + 1]
        weight = self.weight(*exact).to(x0)
        r, t = (v.to(x0) for v in exact)  # the precision of the data, after the gap was taken
        eps = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        labels = self.labels(batch, generator)
        x_t = x0 + like(t, x0) * eps
        return Pair(x_t, t, self.neighbour(x_t, t, r, x0, eps, labels), r, weight, labels)

    @torch.no_grad()
    def neighbour(self, x_t: Tensor, t: Tensor, r: Tensor, x0: Tensor, eps: Tensor, labels: Tensor | None) -> Tensor:
        """The state at r of the trajectory through (x_t, t): x0 + r eps, or one step of the teacher's ODE."""
        if self.teacher is None:
            return x0 + like(r, x0) * eps
        slope = (x_t - self.teacher.denoise(x_t, t, labels)) / like(t, x_t)
        step = like(r - t, x_t)
        x_r = x_t + step * slope
        if self.teacher_step == "euler":
            return x_r
        slope_r = (x_r - self.teacher.denoise(x_r, r, labels)) / like(r, x_r)
        return x_t + 0.5 * step * (slope + slope_r)

    def disagreement(self, pair: Pair) -> Tensor:
        """d between f at the upper state and the target at the lower one, (B,): no gradient enters the target."""
        net = self.nets["net"]
        target = net if self.target is None else self.target.train(net.training)
        dropout = _state(pair.x_t.device)
        with torch.no_grad():
            aim = self.model(target).denoise(pair.x_r, pair.r, pair.labels)
        _restore(dropout, pair.x_t.device)  # the same masks again
        return self.distance(self.model(net).denoise(pair.x_t, pair.t, pair.labels), aim)


class LevelGains(nn.Module):
    """F(x, c_noise) = w_n x with one gain for each level: with it f is linear, and for Gaussian data its optimum is
    known.

    What `explorer.process.discretisation.bias_ratio` computes, training must reproduce.
    Args:
        levels: (N,) ascending.
    """

    def __init__(self, levels: Tensor):
        super().__init__()
        noise = levels.double().log() / 4
        self.register_buffer("between", (0.5 * (noise[1:] + noise[:-1])).float())
        self.weight = nn.Parameter(torch.zeros(len(levels)))

    def forward(self, x: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        return like(self.weight[torch.searchsorted(self.between, noise)], x) * x


def _state(device: torch.device) -> Tensor:
    """Where the generator that dropout draws from stands."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _restore(state: Tensor, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
