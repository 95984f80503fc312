"""What the page measures beside its searches: the error of each step of a grid, and a map of two knobs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch

from explorer.apps import catalogue, settings
from explorer.apps.results import Stopped
from explorer.apps.tuning.bridge import tunable, watched
from explorer.apps.tuning.plan import Plan, solved
from explorer.apps.worker import Job
from explorer.errors import BadValue, ExplorerError, UnknownName
from explorer.knobs import SamplerKnobs
from explorer.metrics.base import Estimate
from explorer.models.base import FlowMap, Model
from explorer.sampling import Seeds, sample, sigmas_of
from explorer.trajectory import local_error, record
from explorer.tuning import Measurement
from explorer.tuning import Setting as Tunable
from explorer.viz import data_uri, grid

COUNTS = (8, 32)
"""Samples of the step errors: the first at once, the others when nothing moves any more."""
SUBSTEPS = 4
N_PICTURES, N_DOTS = 20, 128
"""Samples that a preview shows, of pictures and of points."""
SIDE = 9
RANGES = {
    "n_steps": (3, 19),
    "rho": (1.0, 15.0),
    "guidance": (0.6, 3.0),
    "rho_bottom": (0.6, 1.2),
    "rho_top": (0.8, 1.2),
    "alpha": (0.3, 1.0),
    "order": (1, 4),
    "eta": (0.0, 1.0),
    "s_noise": (0.99, 1.01),
}
"""Where a map looks first; other knobs have theirs from the model, or their whole range."""


@dataclass(frozen=True)
class StepErrors:
    """Local errors of a grid, mean over samples with standard errors, data units; `reason` says why there are none."""

    sigmas: tuple[float, ...]
    mean: tuple[float, ...] = ()
    se: tuple[float, ...] = ()
    n: int = 0
    total: Estimate | None = None
    reason: str = ""


def watch(model: Model, job: Job, fraction: Callable[[], float] = lambda: 0.0) -> Model:
    """The model for a job: the baton is handed on before each evaluation, and a cancelled job ends there."""

    def between() -> None:
        if job.stop.is_set():
            raise Stopped("stopped")
        job.between(fraction())

    return watched(model, between)


def step_errors(setting: Tunable, name: str, labels: Any, counts: tuple[int, ...], job: Job) -> Iterator[StepErrors]:
    """The error of each step, on few samples first."""
    bare = catalogue.model(name)
    sigmas = sigmas_of(setting.sampler, bare)
    if isinstance(bare, FlowMap):
        yield StepErrors(sigmas, reason="A flow map jumps: there is no step of an equation to miss.")
        return
    if setting.sampler.stochastic:
        yield StepErrors(sigmas, reason="This solver draws noise: its steps follow no ODE, and miss none.")
        return
    try:
        model, sampler = setting.on(watch(bare, job))
        for n in counts:
            ds = record(model, sampler, Seeds(range(n)), labels, keep=("x",))
            missed = local_error(ds, model, substeps=SUBSTEPS).values
            total = missed.sum(axis=1)
            error = missed.std(axis=0, ddof=1) / math.sqrt(n)
            whole = Estimate(float(total.mean()), float(total.std(ddof=1) / math.sqrt(n)), n, "sum of local errors")
            yield StepErrors(sigmas, tuple(missed.mean(axis=0).tolist()), tuple(error.tolist()), n, whole)
    except Stopped:
        return
    except ExplorerError as error:
        yield StepErrors(sigmas, reason=str(error))


@dataclass(frozen=True)
class Preview:
    """What a setting draws from the first noises: a sheet of pictures as an address, or points of the plane in data units."""

    sheet: str = ""
    points: tuple[tuple[float, float], ...] = ()
    extent: float = 0.0
    n: int = 0


@torch.inference_mode()
def preview(setting: Tunable, name: str, labels: Any, job: Job) -> Preview | None:
    """The first samples of a setting; None where it cannot draw."""
    images = len(catalogue.model(name).shape) == 3
    n = N_PICTURES if images else N_DOTS
    try:
        x = sample(*setting.on(watch(catalogue.model(name), job)), Seeds(range(n)), labels)
    except (Stopped, ExplorerError):
        return None
    if images:
        size = catalogue.model(name).shape[-1]
        return Preview(data_uri(grid(x.float(), n // 2, scale=max(32 // size, 1), gap=2, paper="#8a8f98")), n=n)
    if x.shape[1:] != (2,):
        return None
    return Preview(points=tuple((round(a, 3), round(b, 3)) for a, b in x.tolist()), extent=catalogue.extent(name), n=n)


@dataclass(frozen=True)
class Axis:
    """A knob of a map and the values it takes there, rising."""

    knob: str
    values: tuple[float, ...]
    log: bool = False


def choices(knobs: SamplerKnobs, model: Model) -> list[Any]:
    """Knobs that a map can have on an axis: numbers that act, as `Control`s."""
    given = [c for c in knobs.controls(model) if c.kind in ("integer", "number") and not c.reason]
    return [c for c in given if c.name != "guidance" or knobs.label != -1]


def axis(knobs: SamplerKnobs, model: Model, name: str, low: float | None = None, high: float | None = None) -> Axis:
    """Nine values of a knob between two ends, geometric where its slider is, or all whole numbers where there are fewer.

    Raises: UnknownName; BadValue where the ends are not in the knob's range, or not apart.
    """
    found = {c.name: c for c in choices(knobs, model)}
    if name not in found:
        raise UnknownName("knob of a map", name, found)
    c, (least, most) = found[name], model.sigma_range
    near = RANGES.get(name, (c.low, c.high))
    if name == "sigma_max":
        near = (max(c.low, most / 32), min(c.high, most))
    if name == "sigma_min":
        near = (max(c.low, least), min(c.high, 0.5))
    low, high = near[0] if low is None else low, near[1] if high is None else high
    log = c.log and low > 0
    if not (c.low <= low < high <= c.high and math.isfinite(low) and math.isfinite(high)):
        raise BadValue(
            f"{c.title} from {low:g} to {high:g}: expected two numbers from {c.low:g} to {c.high:g}, the first smaller."
        )
    values = np.geomspace(low, high, SIDE) if log else np.linspace(low, high, SIDE)
    if c.kind == "integer":
        return Axis(name, tuple(sorted({round(float(v)) for v in values})))
    rounded = [float(f"{v:.4g}") for v in values]
    return Axis(name, tuple(dict.fromkeys(min(max(v, c.low), c.high) for v in rounded)), log)


@dataclass(frozen=True)
class Cell:
    """A measured place of a map."""

    setting: settings.Setting
    found: Measurement | None
    nfe: int | None = None
    failed: str = ""


@dataclass(eq=False)
class Map:
    """Two knobs, and what was measured; `ties` are the cells that the best one does not beat by two standard errors."""

    plan: Plan
    x: Axis
    y: Axis
    cells: dict[tuple[int, int], Cell] = field(default_factory=dict)
    ties: frozenset[tuple[int, int]] = frozenset()

    @property
    def count(self) -> int:
        return len(self.x.values) * len(self.y.values)

    @property
    def best(self) -> tuple[int, int] | None:
        good = {k: c.found.estimate.value for k, c in self.cells.items() if c.found is not None}
        return min(good, key=good.get) if good else None


@cache
def coarse_first(width: int, height: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """The places of a map in rounds, each halving the gaps of the one before: corners and middles first."""
    seen: set[tuple[int, int]] = set()
    rounds = []
    for stride in (4, 2, 1):
        xs, ys = ({*range(0, n, stride), n - 1} for n in (width, height))
        fresh = sorted((j, i) for i in xs for j in ys if (i, j) not in seen)
        seen |= {(i, j) for j, i in fresh}
        if fresh:
            rounds.append(tuple((i, j) for j, i in fresh))
    return tuple(rounds)


def measured(given: Map, job: Job) -> Iterator[tuple[str, Any]]:
    """The cells of a map, coarse ones first, and after each round which of them the best does not beat."""
    plan, cells, whole = given.plan, dict(given.cells), given.count
    model = watch(catalogue.model(plan.model), job, lambda: len(cells) / whole)
    goal = plan.goal(model)
    yield (
        "words",
        "solving the fine reference" if plan.objective == "truncation" and not solved(goal) else "measuring the map",
    )
    try:
        goal.prepare()
        yield "words", "measuring the map"
        for places in coarse_first(len(given.x.values), len(given.y.values)):
            for place in places:
                if place not in cells:
                    cells[place] = _cell(given, place, model, goal)
                    yield "cell", (place, cells[place])
            yield "ties", ties(cells)
    except Stopped:
        return


def _cell(given: Map, place: tuple[int, int], model: Model, goal) -> Cell:
    (i, j), plan = place, given.plan
    values: Mapping[str, Any] = {
        **plan.knobs.to_dict(),
        given.x.knob: given.x.values[i],
        given.y.knob: given.y.values[j],
    }
    setting = settings.Setting.of(plan.model, SamplerKnobs.from_dict(values))
    try:
        wrapped, sampler = tunable(setting.knobs, model).on(model)
        nfe = sampler.nfe(wrapped)
        found = goal.measure(wrapped, sampler)
    except Stopped:
        raise
    except ExplorerError as error:
        return Cell(setting, None, failed=str(error))
    if not math.isfinite(found.estimate.value):
        return Cell(setting, None, nfe, found.estimate.note or "the objective is not finite here")
    return Cell(setting, found, nfe)


def ties(cells: Mapping[tuple[int, int], Cell]) -> frozenset[tuple[int, int]]:
    """Cells whose difference from the best one on the same noise is within two standard errors; the best itself included."""
    good = {k: c.found for k, c in cells.items() if c.found is not None}
    if not good:
        return frozenset()
    best = min(good, key=lambda k: good[k].estimate.value)
    out = {best}
    for place, found in good.items():
        if place != best:
            gap = found.minus(good[best])
            if not gap.value > 2 * gap.std_error:
                out.add(place)
    return frozenset(out)
