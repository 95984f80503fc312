"""Grids by gradient: the end of a few-step run differentiated with respect to the noise levels it stops at.

The same noise is solved finely once (the teacher) and coarsely at every iteration (the student); the levels move against the gradient of
the squared distance between the two ends. What is proposed is measured by the study's objective like any other setting, on other noise
than the gradients saw: three disjoint sets, one to learn on, one to choose on, one to report on.

With `decoupled`, the levels at which the network is asked are learnt beside those where the steps lie; they start equal.

Source: Tong et al. 2024, arXiv 2405.15506 (LD3; `radius` is its soft teacher forcing).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from explorer.errors import BadValue, NonFinite
from explorer.models.base import Cond, Denoiser, FlowMap, Model
from explorer.models.wrappers import noise_asked_at
from explorer.process.broadcast import like
from explorer.process.paths import Path
from explorer.sampling.grids import TimeGrid
from explorer.sampling.samplers import Labels, OdeSampler, device_of, labels_for
from explorer.sampling.seeds import Seeds
from explorer.sampling.solve import Solver, solve
from explorer.sampling.solvers import DDIM, IPNDM, RK4, DPMpp2M
from explorer.sampling.solvers.multistep import FIXED
from explorer.sampling.solvers.runge_kutta import RungeKutta
from explorer.tuning.setting import Asked, Setting
from explorer.tuning.space import grid_of, with_grid
from explorer.tuning.study import Proposal, Task, Tuner

LEARN = 2_000_000_000_000
"""Noise to learn on is drawn from this seed on, ten million seeds apart for each seed of the search; nothing else draws there."""
LEAST = 5e-4
"""Least share of the range of ln sigma between two levels, so that they never meet."""
SHIFT = 0.1
"""Change of ln sigma at which the network is asked, for a change of 1 of its number: those times learn more slowly than the steps."""
BACKWARD = 3
"""What a network evaluation with its gradient is charged as: the pass back costs about two more."""


@dataclass(frozen=True, eq=False)
class Teacher:
    """Fine solutions of a model's ODE from one batch of noise.

    Attributes:
        times: of the path, falling, K + 1.
        x: states there, (K + 1, S, *shape); slopes: dx/dt at all but the last, (K, S, *shape); on the model's device.
        cond: classes (S,) or None.
        n_evals: network evaluations times samples that it took.
    """

    times: tuple[float, ...]
    x: Tensor
    slopes: Tensor
    cond: Cond
    n_evals: int

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """States and slopes (M, S, *shape) at M times: cubic Hermite between the nodes, straight in the last interval."""
        nodes = torch.tensor(self.times[::-1], dtype=torch.float64, device=t.device)
        k = len(self.times) - 2 - (torch.searchsorted(nodes, t.detach().contiguous()) - 1).clamp(0, len(nodes) - 2)
        known = torch.tensor(self.times, dtype=torch.float64, device=t.device)
        h, left, right = known[k + 1] - known[k], self.x[k], self.x[k + 1]
        u, h = like((t - known[k]) / h, left), like(h, left)
        last = len(self.slopes) - 1
        chord = (right - left) / h
        here = torch.where(like(k == last, left), chord, self.slopes[k])
        there = torch.where(like(k == last, left), chord, self.slopes[(k + 1).clamp_max(last)])
        bend, twist = here - chord, here + there - 2 * chord
        state = left + h * u * (chord + (1 - u) * (bend - u * twist))
        return state, chord + (1 - 2 * u) * bend - u * (2 - 3 * u) * twist


def solved(
    model: Denoiser, t_start: float, seeds: Seeds, labels: Labels = "balanced", *, steps: int = 64, batch: int = 256
) -> Teacher:
    """The model's ODE on its own path by RK4 from sigma(t_start) times the seeds' noise down to t = 0, every step kept.

    Steps are Karras' from the start to the model's lowest noise level and one more to 0; even in t where the start is pure noise.
    """
    times = fine_times(model, t_start, steps)
    device, every, cond = device_of(model), [], labels_of(model, seeds, labels)
    with (
        torch.inference_mode(False),
        torch.no_grad(),
    ):  # what was made in inference mode cannot be differentiated through
        for lo in range(0, len(seeds), batch):
            states, slopes = [], []

            def watch(i, t, t_next, x, step, states=states, slopes=slopes):
                states.append(x)
                slopes.append(step.slope)

            noise = seeds[lo : lo + batch].normal(tuple(model.shape), device=device)
            part = None if cond is None else cond[lo : lo + batch]
            end = solve(model, RK4(), model.path.at(t_start)[1] * noise, times, cond=part, observe=watch)
            every.append((torch.stack([*states, end]), torch.stack(slopes)))
        x, slopes = (torch.cat(parts, dim=1) for parts in zip(*every, strict=True))
    calls = sum(model.calls_at(t) for t in RK4().eval_times(times, model.path))
    return Teacher(tuple(times), x, slopes, cond, calls * len(seeds))


def fine_times(model: Model, t_start: float, steps: int) -> list[float]:
    high, low = model.path.ratio_at(t_start), max(model.sigma_range[0], 1e-3)
    if math.isinf(high):
        return [t_start * (1 - i / steps) for i in range(steps)] + [0.0]
    times = TimeGrid.karras(steps, min(low, high / 2), high).on(model.path)
    return [t_start, *times[1:]]


def labels_of(model: Model, seeds: Seeds, labels: Labels) -> Cond:
    """Classes of these seeds; given ones are taken in turn."""
    if isinstance(labels, Tensor):
        labels = labels[torch.arange(len(seeds)) % len(labels)]
    return labels_for(model, seeds, labels, device_of(model))


def unrolled(
    model: Denoiser, solver: Solver, x: Tensor, times: Tensor, cond: Cond = None, asked: Tensor | None = None
) -> Tensor:
    """The state at the last of `times` (N + 1,), as `solve` gives it, and differentiable with respect to them and to x.

    Args: asked: (N,) times at which the network is asked instead of the first N, for solvers that ask once a step.
    Raises: BadValue for a solver that is not written out here: Runge-Kutta methods, DDIM, DPMpp2M and IPNDM are.
    """
    if asked is not None and not once_a_step(solver):
        raise BadValue(f"{type(solver).__name__} asks between its steps: times apart go with ddim, dpmpp-2m or ipndm")
    if isinstance(solver, RungeKutta):
        return _runge_kutta(model, solver, x, times, cond)
    if not unrollable(solver):
        raise BadValue(
            f"{type(solver).__name__} is not written out for gradients: start from euler, heun, midpoint, rk4, ddim, dpmpp-2m or ipndm"
        )
    path, seen = model.path, []
    alphas, sigmas, ends_at_zero = path.alpha(times), path.sigma(times), float(times[-1].detach()) == 0
    for i in range(len(times) - 1):
        t, alpha, alpha_next, ratio = times[i].expand(len(x)), alphas[i], alphas[i + 1], sigmas[i + 1] / sigmas[i]
        elsewhere = None if asked is None else noise_asked_at(model, x, t, asked[i].expand(len(x)), cond)
        if type(solver) is IPNDM:
            seen = [model.eps(x, t, cond) if elsewhere is None else elsewhere, *seen[: solver.order_max - 1]]
            weights = FIXED[len(seen)]
            move = sigmas[i + 1] - sigmas[i] * alpha_next / alpha
            x = (alpha_next / alpha) * x + move * sum(w * e for w, e in zip(weights, seen, strict=True))
            continue
        denoised = model.denoise(x, t, cond) if elsewhere is None else (x - sigmas[i] * elsewhere) / alpha
        ahead, seen = denoised, [denoised, *seen[:1]]
        last = ends_at_zero and i == len(times) - 2
        if type(solver) is DPMpp2M and len(seen) == 2 and not last and float(alphas[i - 1].detach()) > 0:
            before, here, after = ((alphas[k] / sigmas[k]).log() for k in (i - 1, i, i + 1))
            ahead = denoised + 0.5 * (after - here) / (here - before) * (denoised - seen[1])
        x = ratio * x + (alpha_next - alpha * ratio) * ahead
    return x


def unrollable(solver: Solver) -> bool:
    """Whether `unrolled` knows the solver."""
    return isinstance(solver, RungeKutta) or type(solver) in (DDIM, DPMpp2M, IPNDM)


def once_a_step(solver: Solver) -> bool:
    """Whether `unrolled` knows the solver, and it asks only where its steps begin."""
    return type(solver) in (DDIM, DPMpp2M, IPNDM)


def _runge_kutta(model: Denoiser, solver: RungeKutta, x: Tensor, times: Tensor, cond: Cond) -> Tensor:
    for t, t_next in zip(times[:-1], times[1:], strict=True):
        table = solver.last if float(t_next.detach()) == 0 else solver.table
        h, slopes = t_next - t, [model.velocity(x, t.expand(len(x)), cond)]
        for c, row in table.stages:
            stage = x + h * sum(w * k for w, k in zip(row, slopes, strict=True) if w)
            slopes.append(model.velocity(stage, (t + c * h).expand(len(x)), cond))
        x = x + h * sum(w * k for w, k in zip(table.b, slopes, strict=True) if w)
    return x


def descend(
    loss_of: Callable[[Tensor], Tensor],
    params: Sequence[Tensor],
    iterations: int,
    lr: float,
    n: int,
    batch: int,
    generator: torch.Generator,
) -> Iterator[tuple[int, float]]:
    """(iteration, loss) after each of Adam's updates of `params`, in place; the rate falls to 0 along a cosine.

    Args: loss_of: rows of the n samples, (batch,) int64 -> a scalar. A batch whose gradient is not finite is passed over.
    Raises: NonFinite where that happens ten times in a row.
    Source: Kingma & Ba 2015, arXiv 1412.6980, Alg. 1.
    """
    first, second = ([torch.zeros_like(p) for p in params] for _ in range(2))
    lost, done = 0, 0
    for k in range(iterations):
        rows = torch.randperm(n, generator=generator)[:batch]
        with torch.inference_mode(False), torch.enable_grad():
            loss = loss_of(rows)
            grads = torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True)
        if not all(bool(g.isfinite().all()) for g in (loss.detach(), *grads)):
            lost += 1
            if lost == 10:
                raise NonFinite(f"the gradient is not finite in ten batches in a row, at iteration {k + 1}", step=k)
            continue
        lost, done = 0, done + 1
        rate = 0.5 * lr * (1 + math.cos(math.pi * k / iterations))
        with torch.no_grad():
            for p, g, m, v in zip(params, grads, first, second, strict=True):
                m.lerp_(g, 0.1)
                v.mul_(0.999).addcmul_(g, g, value=0.001)
                p -= rate * (m / (1 - 0.9**done)) / ((v / (1 - 0.999**done)).sqrt() + 1e-12)
        yield k + 1, float(loss.detach())


def inverse_softplus(value: Tensor) -> Tensor:
    """u with ln(1 + e^u) = value > 0."""
    return value + torch.log(-torch.expm1(-value))


class Levels:
    """Falling noise levels as numbers without bounds: shares of the range of ln sigma, by softplus.

    Args: grid: in sigma; low: the least level; free_start: also where it starts, from there down.
    """

    def __init__(self, grid: TimeGrid, low: float, free_start: bool):
        self.zero = (0.0,) if grid.times[-1] == 0 else ()
        known = torch.tensor([s for s in grid.times if s > 0], dtype=torch.float64).log()
        self.free_start, self.high = free_start, float(known[0])
        self.low = min(math.log(low), float(known[-1])) if self.zero else float(known[-1])
        edges = torch.cat([known[:1], known] if free_start else [known])
        if self.zero:  # room below the last positive level
            edges = torch.cat([edges, torch.tensor([self.low], dtype=torch.float64)])
        shares = (edges[:-1] - edges[1:]) / (self.high - self.low)
        if len(shares) < 2:
            raise BadValue("a grid of one step has no level to move: take more steps")
        free = (shares - LEAST).clamp_min(LEAST)
        self.raw = inverse_softplus(free / free.mean())

    def sigmas(self) -> Tensor:
        """The grid's levels as a tensor, the last one or 0 as it was."""
        free = softplus(self.raw) / softplus(self.raw).sum()
        down = (LEAST + (1 - LEAST * len(free)) * free).cumsum(0)
        inner = torch.exp(self.high + (self.low - self.high) * (down[:-1] if self.zero else down))
        start = [] if self.free_start else [inner.new_tensor([math.exp(self.high)])]
        return torch.cat([*start, inner, inner.new_tensor(self.zero)])

    def grid(self) -> TimeGrid:
        """As a grid, rounded to nine digits."""
        with torch.no_grad():
            return TimeGrid(tuple(float(f"{s:.9g}") for s in self.sigmas().tolist()))


@dataclass(frozen=True)
class Gradient(Tuner):
    """The grid's noise levels moved by gradient through the solver, toward the ends of fine solutions from the same noise.

    Args:
        iterations, lr, batch: of Adam; every: iterations between two proposals.
        samples: noises to learn on, none of them the objective's; steps: of the fine solution.
        radius: soft teacher forcing. The student's start may lie anywhere in a ball of this radius times the first noise level around
            the noise, wherever its end is closest to the teacher's; 0 holds it to the noise. Proposals always start at the noise.
        free_start: also move the level where sampling starts.
        decoupled: also learn the levels at which the network is asked; a solver that asks once a step is needed.
    Source: Tong et al. 2024, arXiv 2405.15506.
    """

    iterations: int = 300
    lr: float = 0.05
    batch: int = 64
    every: int = 10
    samples: int = 128
    steps: int = 64
    radius: float = 0.0
    free_start: bool = False
    decoupled: bool = False
    name = "gradient"

    def describe(self):
        about = super().describe()
        if not self.decoupled:  # journals of before it existed go on
            del about["decoupled"]
        return about

    def search(self, task):
        start = dataclasses.replace(task.start, wrappers=tuple(w for w in task.start.wrappers if type(w) is not Asked))
        model, sampler = differentiable(dataclasses.replace(task, start=start))
        if not isinstance(sampler, OdeSampler):
            raise BadValue(f"gradients go through a solver on a grid, and this is a {type(sampler).__name__}")
        model = model.on(sampler.path_on(model))
        levels = Levels(grid_of(start), model.sigma_range[0], self.free_start)
        fine = solved(model, grid_of(start).on(model.path)[0], learning_seeds(task, self.samples), steps=self.steps,
                      labels=task.objective.labels)  # fmt: skip
        shifts = torch.zeros(grid_of(start).n_steps, dtype=torch.float64) if self.decoupled else None
        goal = Ends(model, sampler.solver, fine, levels, model.path, self.radius, shifts)
        params = [levels.raw] if shifts is None else [levels.raw, shifts]
        for p in params:
            p.requires_grad_(True)

        def setting() -> Setting:
            made = with_grid(start, levels.grid())
            if shifts is None or not bool(shifts.any()):
                return made
            with torch.no_grad():
                asked = [float(f"{s:.9g}") for s in goal.asked(levels.sigmas()).tolist()]
            return made.using(Asked(tuple(zip(made.sampler.grid.times[:-1], asked, strict=True))))

        cost = BACKWARD * sampler.nfe(model) * min(self.batch, self.samples)
        extra, since = fine.n_evals, 0
        yield Proposal(setting(), note="start", extra=extra)
        generator = torch.Generator().manual_seed(task.seed)
        rounds = descend(goal.loss, params, self.iterations, self.lr, self.samples, self.batch, generator)
        for k, loss in rounds:
            since += cost
            if k % self.every == 0 or k == self.iterations:
                note = f"iteration {k}, {math.sqrt(loss):.3g}"
                yield Proposal(setting(), note=note, extra=since)
                since = 0


def differentiable(task: Task) -> tuple[Denoiser, OdeSampler]:
    """The task's model with the start's wrappers, and its sampler.

    Raises: BadValue for a flow map, or a sampler that draws noise.
    """
    model, sampler = task.start.on(task.model)
    if isinstance(model, FlowMap):
        raise BadValue(f"{model.name or 'this model'} is a flow map: it has no ODE whose steps could be learnt")
    if sampler.stochastic:
        raise BadValue("a sampler that adds noise ends elsewhere than the ODE: start from a deterministic one")
    return model, sampler


def learning_seeds(task: Task, n: int) -> Seeds:
    first = LEARN + 10_000_000 * task.seed
    return Seeds(range(first, first + n))


@dataclass(eq=False)
class Ends:
    """The student's loss: mean squared distance per number between its ends and the teacher's, with the start free in a small ball.

    Args: shifts: (N,) ln of the factors from the levels to those at which the network is asked, in units of SHIFT; None is no factors.
    Attributes: moved: where in the ball each sample starts, in units of the first noise level, (S, *shape); updated at each call.
    """

    model: Denoiser
    solver: Solver
    teacher: Teacher
    levels: Levels
    path: Path
    radius: float = 0.0
    shifts: Tensor | None = None
    moved: Tensor = dataclasses.field(init=False)

    def __post_init__(self):
        self.moved = torch.zeros_like(self.teacher.x[0])
        self.noise = self.teacher.x[0] / self.path.at(self.teacher.times[0])[1]

    def asked(self, sigmas: Tensor) -> Tensor:
        """Levels (N,) at which the network is asked, for the levels of a grid (N + 1,); within the model's range."""
        low, high = self.model.sigma_range
        return (sigmas[:-1] * (SHIFT * self.shifts).exp()).clamp(max(low, 1e-12), high)

    def loss(self, rows: Tensor) -> Tensor:
        sigmas = self.levels.sigmas()
        times = self.path.time(sigmas).to(self.noise.device)
        asked = None if self.shifts is None else self.path.time(self.asked(sigmas)).to(self.noise.device)
        shift = self.moved[rows].requires_grad_(self.radius > 0)
        start = self.path.sigma(times[0]) * (self.noise[rows] + shift)
        cond = None if self.teacher.cond is None else self.teacher.cond[rows]
        ends = unrolled(self.model, self.solver, start, times, cond, asked)
        squares = (ends - self.teacher.x[-1][rows]).square().flatten(1).mean(dim=1)
        if self.radius > 0:
            self._move(rows, shift, torch.autograd.grad(squares.sum(), shift, retain_graph=True)[0])
        return squares.mean()

    @torch.no_grad()
    def _move(self, rows: Tensor, shift: Tensor, grad: Tensor) -> None:
        """Half a radius against the gradient, then back into the ball."""
        size = grad.flatten(1).norm(dim=1).clamp_min(torch.finfo(grad.dtype).tiny)
        new = shift - 0.5 * self.radius * grad / like(size, grad)
        self.moved[rows] = new * like((self.radius / new.flatten(1).norm(dim=1).clamp_min(1e-300)).clamp_max(1.0), new)
