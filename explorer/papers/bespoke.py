"""Bespoke Solvers for Generative Flow Models (Shaul, Perez, Chen, Thabet, Pumarola, Lipman, ICLR 2024, arXiv 2310.19075).

One frozen velocity field u, a solver of n steps whose time and space are warped by numbers of its own (`explorer.sampling.scale_time` has
the two steps, RK1 and RK2), and a bound of its error that trains those numbers. Time of the paper runs from noise at 0 to data at 1; here
t falls along a path, the linear one by default, which is the paper's FM-OT read backwards.
    theta = t_1 .. t_{m-1}, t'_0 .. t'_{m-1}, s_1 .. s_m, s'_0 .. s'_{m-1}         m = n (RK1) or 2 n (RK2): 4 m - 1 numbers
    a_i = sg[x(t_i)] + sg[u(x(t_i), t_i)] (t_i - sg[t_i])                          anchors: true states that know how t_i moves them
    d_i = |a_i - step_{i-1}(a_{i-1})|                                              local errors, all steps at once; root mean square
    L_i = (s_i / s_{i+1}) (1 + h Lbar_i)                                           RK1, with Lbar_i = |s'_i| / s_i + |t'_i| L_tau
    L_i = (s_i / s_{i+1}) (1 + h Lbar_{i+1/2} (1 + h Lbar_i / 2))                  RK2
    L_bes = E sum_i M_i d_i,   M_i = L_i L_{i+1} .. L_{n-1}                        >= E |x_n - x(0)| if u has Lipschitz constant L_tau
M_i gathers the steps after the i-th, which carry its error on. Gradients go through steps, anchors and M_i, not through the teacher.
Ours: t by shares of the way (softplus, cumulated), t' by softplus, s by exp, s'/s free, so that any theta is a proper solver; Adam's rate
falls along a cosine; the true states are a stored fine solution read by cubic Hermite interpolation, so no x(t_i) is solved twice.

`Bespoke` is a tuner like those of `explorer.tuning`: what it proposes is measured on other noise than it learnt from, and kept if better.
No network is trained, so there are no recipes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import softplus

from explorer.errors import BadValue, UnknownName
from explorer.models.base import Denoiser
from explorer.process.broadcast import like
from explorer.process.paths import EDM, VP, CosineVP, Path
from explorer.reproduction import Paper, Published, Recipe
from explorer.sampling.grids import TimeGrid
from explorer.sampling.scale_time import LINEAR, STAGES, Base, ScaleTime, ScaleTimeSampler, Warp
from explorer.tuning import Proposal, Setting, Task, Tuner
from explorer.tuning.gradient import (
    BACKWARD,
    Teacher,
    descend,
    differentiable,
    inverse_softplus,
    learning_seeds,
    solved,
)
from explorer.tuning.space import most_steps

What = Literal["both", "time", "scale"]
Preset = Literal["identity", "edm", "cosine", "vp"]
PRESETS: tuple[str, ...] = get_args(Preset)
LEAST = 1e-5
"""Least distance of two times, in mean ones, so that they never meet."""


def preset(
    name: str, n_steps: int, t_start: float, path: Path = LINEAR, base: Base = "rk2", low: float = 0.002
) -> Warp:
    """A schedule of the literature as a warp of `path` from t_start to 0: where training begins, or a sampler as it is.

    "identity" is equal steps in the path's own time; "edm" Karras' noise levels (rho = 7, down to `low`, then 0) on EDM's path;
    "cosine" and "vp" equal steps in the time of those paths. All but the first need a start below pure noise.
    """
    if name not in PRESETS:
        raise UnknownName("preset", name, PRESETS)
    other: Path = {"identity": path, "edm": EDM(), "cosine": CosineVP(offset=0.0), "vp": VP()}[name]
    if name == "edm":
        times = TimeGrid.karras(n_steps, low, path.ratio_at(t_start)).times
    else:
        begin = t_start if other == path else other.time_at(path.ratio_at(t_start))
        times = [begin * (1 - i / n_steps) for i in range(n_steps)] + [0.0]
    return Warp.of_grid(times, base, path, other)


class Theta:
    """The free numbers of a warp without bounds: every value of theirs is a warp with the same first and last time.

    Args: warp: where they start. what: "time" holds s and s', "scale" holds t and t'.
    """

    def __init__(self, warp: Warp, base: Base, what: What = "both"):
        if what not in get_args(What):
            raise UnknownName("what to learn", what, get_args(What))
        self.base, self.what, self.ends = base, what, (warp.t[0], warp.t[-1])
        t, t_dot, s, s_dot = (torch.tensor(v, dtype=torch.float64) for v in (warp.t, warp.t_dot, warp.s, warp.s_dot))
        shares = (t[:-1] - t[1:]) / (t[:-1] - t[1:]).mean()
        self.fixed = shares[-1:]
        self.span = self.ends[0] - self.ends[1]
        # As many as there are numbers: the last share is held, since only their ratios matter.
        self.shares = inverse_softplus((shares[:-1] - LEAST).clamp_min(LEAST))
        self.speeds = inverse_softplus((-t_dot / self.span).clamp_min(1e-9))
        self.scales, self.rates = s[1:].log(), s_dot / s[:-1]

    @property
    def params(self) -> list[Tensor]:
        """What is learnt."""
        time, scale = [self.shares, self.speeds], [self.scales, self.rates]
        return {"time": time, "scale": scale, "both": [*time, *scale]}[self.what]

    @property
    def n_parameters(self) -> int:
        """4 n - 1 for RK1, 8 n - 1 for RK2, where both are learnt."""
        return sum(p.numel() for p in self.params)

    def values(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(t (m + 1,), t' (m,), s (m + 1,), s' (m,)), differentiable."""
        steps = torch.cat([LEAST + softplus(self.shares), self.fixed])
        down = steps.cumsum(0)[:-1] / steps.sum()
        first, last = (self.scales.new_tensor([end]) for end in self.ends)
        t = torch.cat([first, first - self.span * down, last])
        s = torch.cat([torch.ones_like(first), self.scales.exp()])
        return t, -self.span * softplus(self.speeds), s, self.rates * s[:-1]

    @torch.no_grad()
    def warp(self) -> Warp:
        """As numbers, rounded to twelve digits."""
        return Warp(*(tuple(float(f"{v:.12g}") for v in part.tolist()) for part in self.values()))


def local_errors(theta: Theta, model: Denoiser, teacher: Teacher, rows: Tensor) -> Tensor:
    """d_i of every step and sample, (n, len(rows)): root mean square over coordinates, in one or two calls of the model for all steps.

    Args: model: on the path of theta's times; teacher: its fine solutions, from theta's first time.
    """
    k = STAGES[theta.base]
    t, t_dot, s, s_dot = (v.to(teacher.x.device) for v in theta.values())
    n, whole = len(t_dot) // k, t[::k]
    state, slope = teacher.at(whole[:-1].detach())
    state, slope = state[:, rows].detach(), slope[:, rows].detach()
    starts = state + slope * like(whole[:-1] - whole[:-1].detach(), state)
    anchors = torch.cat([starts, teacher.x[-1:, rows]])  # the last node does not move
    cond = None if teacher.cond is None else teacher.cond[rows].repeat(n)

    def u(x: Tensor, at: Tensor) -> Tensor:
        flat = model.velocity(x.flatten(0, 1), at.repeat_interleave(x.shape[1]), cond)
        return flat.unflatten(0, x.shape[:2])

    a, h = anchors[:-1], 1 / n
    c = lambda v: like(v, a)  # noqa: E731
    if theta.base == "rk1":
        ends = c(s[:-1] / s[1:]) * (c(1 + h * s_dot / s[:-1]) * a + c(h * t_dot) * u(a, t[:-1]))
    else:
        i, half, end = slice(0, -1, 2), slice(1, None, 2), slice(2, None, 2)
        y = c(1 + 0.5 * h * s_dot[::2] / s[i]) * a + c(0.5 * h * t_dot[::2]) * u(a, t[i])
        y = c(s[i] / s[half]) * y
        move = c(h * s_dot[1::2] / s[half]) * y + c(h * t_dot[1::2]) * u(y, t[half])
        ends = c(s[i] / s[end]) * a + c(s[half] / s[end]) * move
    return (anchors[1:] - ends).flatten(2).square().mean(dim=2).clamp_min(1e-300).sqrt()


def carried(theta: Theta, l_tau: float = 1.0) -> Tensor:
    """M_1 .. M_n, (n,): by how much the steps after the i-th can stretch its error, for a field of Lipschitz constant l_tau."""
    _, t_dot, s, s_dot = theta.values()
    h, stretch = STAGES[theta.base] / len(t_dot), s_dot.abs() / s[:-1] - t_dot * l_tau
    if theta.base == "rk1":
        each = s[:-1] / s[1:] * (1 + h * stretch)
    else:
        each = s[0:-1:2] / s[2::2] * (1 + h * stretch[1::2] * (1 + 0.5 * h * stretch[::2]))
    after = torch.cat([each[1:], torch.ones_like(each[:1])])
    return after.flip(0).cumprod(0).flip(0)


def bound(theta: Theta, model: Denoiser, teacher: Teacher, rows: Tensor, l_tau: float = 1.0) -> Tensor:
    """L_bes, (): mean over samples of the sum of M_i d_i."""
    weights = carried(theta, l_tau).to(teacher.x.device)
    return (weights[:, None] * local_errors(theta, model, teacher, rows)).sum(dim=0).mean()


def learnt(
    theta: Theta,
    model: Denoiser,
    teacher: Teacher,
    *,
    iterations: int = 400,
    lr: float = 1e-2,
    batch: int = 128,
    l_tau: float = 1.0,
    seed: int = 0,
) -> Iterator[tuple[int, float]]:
    """(iteration, loss) of each step of Adam on L_bes, theta changed in place.

    Raises: NonFinite where the loss stays so.
    """
    for p in theta.params:
        p.requires_grad_(True)
    n = teacher.x.shape[1]
    generator = torch.Generator().manual_seed(seed)
    yield from descend(
        lambda rows: bound(theta, model, teacher, rows, l_tau),
        theta.params,
        iterations,
        lr,
        n,
        min(batch, n),
        generator,
    )


@dataclass(frozen=True)
class Bespoke(Tuner):
    """A scale-time solver learnt for the model as the start wraps it, guidance included, within the start's evaluations.

    Args:
        base, n_steps: of the solver; 0 is as many as the start's cost allows.
        what: "both", or for an ablation "time" or "scale" alone.
        preset: where it starts, see `preset`; path: whose time it warps.
        iterations, lr, batch: of Adam; l_tau: assumed Lipschitz constant of the velocity; every: iterations between two proposals.
        samples: noises to learn on, none of them the objective's; steps: of their fine solution.
    """

    base: Base = "rk2"
    n_steps: int = 0
    what: What = "both"
    preset: Preset = "identity"
    path: Path = LINEAR
    iterations: int = 400
    lr: float = 1e-2
    batch: int = 64
    l_tau: float = 1.0
    every: int = 20
    samples: int = 256
    steps: int = 64
    name = "bespoke"

    def search(self, task: Task):
        wrapped, sampler = differentiable(task)
        model = wrapped.on(self.path)
        t_start = first_time(sampler, wrapped, self.path)
        low = max(wrapped.sigma_range[0], 1e-3)

        def made(n: int) -> Setting:
            warp = preset(self.preset, n, t_start, self.path, self.base, low)
            return Setting(ScaleTimeSampler(ScaleTime(self.base, warp), self.path), task.start.wrappers)

        if self.n_steps:
            first = made(self.n_steps)
        else:
            cost = task.start.nfe(task.model)
            if cost is None:
                raise BadValue("the start's cost is known only after a run: say how many steps to learn (n_steps)")
            first = most_steps(made, task.model, cost)
        theta = Theta(first.sampler.solver.warp, self.base, self.what)
        teacher = solved(model, t_start, learning_seeds(task, self.samples), task.objective.labels, steps=self.steps)
        yield Proposal(first, note=self.preset, extra=teacher.n_evals)
        cost, since = BACKWARD * first.nfe(task.model) * min(self.batch, self.samples), 0
        options = {"iterations": self.iterations, "lr": self.lr, "batch": self.batch, "l_tau": self.l_tau}
        for k, loss in learnt(theta, model, teacher, seed=task.seed, **options):
            since += cost
            if k % self.every == 0 or k == self.iterations:
                sampler = ScaleTimeSampler(ScaleTime(self.base, theta.warp()), self.path)
                yield Proposal(
                    Setting(sampler, task.start.wrappers), note=f"iteration {k}, bound {loss:.3g}", extra=since
                )
                since = 0


def first_time(sampler, model: Denoiser, path: Path) -> float:
    """Where a sampler starts, in the time of `path`."""
    own = sampler.path_on(model)
    grid = getattr(sampler, "grid", None)
    t = grid.on(own)[0] if grid is not None else sampler.solver.times[0]
    return t if own == path else path.time_at(own.ratio_at(t))


def rmse(ends: Tensor, truth: Tensor) -> float:
    """Root mean square over samples and coordinates."""
    return math.sqrt(float((ends - truth).square().mean()))


PUBLISHED = (Published("imagenet-64x64", "FID", 2.2, 10, "abstract", "best model"),)


def recipe(name: str) -> Recipe:
    raise UnknownName("recipe", name, ())


PAPER = Paper(
    slug="bespoke",
    title="Bespoke Solvers for Generative Flow Models",
    arxiv="2310.19075",
    family="sampler",
    recipe=recipe,
    recipes=(),
    published=PUBLISHED,
)
