"""What a job finds out about a setting, and the jobs' own computations: measurements, particles in the plane, filmstrips."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from explorer.apps.settings import Setting
from explorer.apps.worker import Failure, Job
from explorer.errors import ExplorerError
from explorer.knobs import SamplerKnobs
from explorer.live import Live
from explorer.metrics.base import Estimate, Metric
from explorer.models.base import Model, affine
from explorer.sampling import Seeds, denoised_of, labels_for, sigmas_of

N_PARTICLES = 400
FIELD_SIDE = 18


@dataclass
class Result:
    """What is known of one setting so far.

    Attributes:
        n: samples asked for.
        live: the newest state; None before the first batch.
        course: the estimate by n: how the number settled.
        metrics: the metric at n = 256, 512, 1024, ... and at the end, for paired differences with other settings.
        plane: particles and velocity field of a 2-D model, else None.
        failure: why it ended early, if it did.
    """

    setting: Setting
    n: int
    live: Live | None = None
    course: dict[int, Estimate] = field(default_factory=dict)
    metrics: dict[int, Metric] = field(default_factory=dict)
    plane: Plane | None = None
    failure: Failure | None = None

    @property
    def complete(self) -> bool:
        return self.live is not None and self.live.n_done >= self.n

    def add(self, live: Live) -> None:
        self.live = live
        self.course[live.n_done] = live.estimate
        if live.done or (live.n_done >= 256 and live.n_done & (live.n_done - 1) == 0):
            self.metrics[live.n_done] = live.metric

    def towards(self, n: int) -> Result:
        """What is known, as the beginning of a measurement at n samples; nothing but the plane where more than n are in it."""
        if self.live is None or self.live.n_done > n:
            return Result(self.setting, n, plane=self.plane)
        live = dataclasses.replace(self.live, n=n)
        return Result(self.setting, n, live, dict(self.course), dict(self.metrics), self.plane)


@dataclass(frozen=True)
class Plane:
    """Paths of the first particles of a 2-D model, and the velocity field at the start of each step.

    path: (T, n, 2) float32. sigmas: (T,). field: (T - 1, side * side, 2) float32, rows from the lowest y up.
    """

    path: torch.Tensor
    sigmas: list[float]
    field: torch.Tensor
    extent: float


@dataclass(frozen=True)
class Film:
    """Denoised predictions of one seed at the start of every step, and the finished sample: (T, *shape)."""

    seed: int
    sigmas: list[float]
    frames: torch.Tensor


@dataclass(frozen=True)
class Ghost:
    """What a knob still being dragged would give: its noise levels, and the first pictures once they are there."""

    sigmas: list[float]
    x: torch.Tensor | None = None


@dataclass(frozen=True)
class Comparison:
    """B against A on the same seeds."""

    difference: Estimate
    n: int


class Cache:
    """Results of all sessions by setting and n; the oldest unused leave first."""

    def __init__(self, size: int = 96):
        self._size, self._items = size, OrderedDict()

    def get(self, key: str, n: int) -> Result | None:
        found = self._items.get((key, n))
        if found is not None:
            self._items.move_to_end((key, n))
        return found

    def nearest(self, key: str, n: int) -> Result | None:
        """The longest measurement of that setting with at most n samples."""
        counts = [count for k, count in list(self._items) if k == key and count <= n]
        return self.get(key, max(counts)) if counts else None

    def put(self, result: Result) -> None:
        self._items[(result.setting.key, result.n)] = result
        while len(self._items) > self._size:
            self._items.popitem(last=False)


CACHE = Cache()


class Stopped(ExplorerError):
    """Raised inside a sampler's run to end it."""


def watched(job: Job, see: Callable = lambda *seen: None) -> Callable:
    """An observer for a sampler that also hands the worker's baton on, and stops the run when the job is cancelled."""

    def observe(i, t, t_next, x, step):
        see(i, t, t_next, x, step)
        if job.stop.is_set():
            raise Stopped("stopped")
        job.between()

    return observe


@torch.inference_mode()
def film(model: Model, sampler, seed: int, labels, job: Job) -> Film:
    """Filmstrip of one seed."""
    path, frames, sigmas = sampler.path_on(model), [], []
    seeds = Seeds([seed])
    cond = labels_for(model, seeds, labels)

    def see(i, t, t_next, x, step):
        frames.append(denoised_of(path, x, t, step)[0].float())
        sigmas.append(path.ratio_at(t if step.t_from is None else step.t_from))

    end = sampler.sample(model, seeds.normal(tuple(model.shape)), cond, rng=seeds, observe=watched(job, see))
    return Film(seed, [*sigmas, sigmas_of(sampler, model)[-1]], torch.stack([*frames, end[0].float()]))


@torch.inference_mode()
def plane(model: Model, sampler, knobs: SamplerKnobs, extent: float, job: Job) -> Plane:
    """Paths in the scale of the data: states are divided by alpha sqrt(1 + (sigma / r)^2), which keeps noise on the canvas."""
    path, states, fields, sigmas = sampler.path_on(model), [], [], []
    moved = model.on(path)
    seeds = Seeds(range(knobs.seed, knobs.seed + N_PARTICLES))
    cond = labels_for(model, seeds, knobs.labels)
    edge = (torch.arange(FIELD_SIDE, dtype=torch.float64) + 0.5) / FIELD_SIDE * 2 * extent - extent
    mesh = torch.stack(torch.meshgrid(edge, edge, indexing="xy"), dim=-1).reshape(-1, 2)
    mesh_cond = labels_for(model, Seeds(range(len(mesh))), knobs.labels)

    def scale(t: float) -> float:
        return path.at(t)[0] * (1 + (path.ratio_at(t) / (0.4 * extent)) ** 2) ** 0.5

    def see(i, t, t_next, x, step):
        states.append((x / scale(t)).float())
        sigmas.append(path.ratio_at(t))
        # On the canvas a particle moves by the velocity of x / scale; its direction towards data is what is drawn.
        here, there = mesh * scale(t), t_next
        # For a flow map that is where it jumps to, for a denoiser the same as its velocity.
        a, b = path.convert("x0", "velocity", t)
        ahead = here + (there - t) * affine(a, here, b, moved.denoise(here, t, mesh_cond))
        fields.append((ahead / scale(there) - mesh).float())

    end = sampler.sample(model, seeds.normal(tuple(model.shape)), cond, rng=seeds, observe=watched(job, see))
    states.append((end / scale(0.0)).float())
    return Plane(torch.stack(states), [*sigmas, sigmas_of(sampler, model)[-1]], torch.stack(fields), extent)
