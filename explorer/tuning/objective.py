"""What a search lowers: a number with its error, always on the same noise, so that two settings are compared sample by sample.

An objective owns the seeds of its noise. `measure` returns, beside the number, what a paired difference needs: the metric itself, or one
number per sample whose mean moves as the objective does (its influence). Every setting of a search sees the same seeds; the number a
search ends with is measured `on` others.

S samples.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from explorer.errors import BadValue
from explorer.metrics.base import Estimate, Metric
from explorer.models.base import Model
from explorer.sampling.grids import TimeGrid
from explorer.sampling.samplers import Labels, OdeSampler, Sampler, device_of, labels_for, sample
from explorer.sampling.seeds import Seeds
from explorer.sampling.solvers import Heun
from explorer.trajectory.local_error import local_error
from explorer.trajectory.record import record


@dataclass(frozen=True)
class Measurement:
    """A measured setting.

    Attributes:
        estimate: of the objective; lower is better.
        pair: a metric that saw the samples, or (S,) influences; None where only the number is known.
        n_evals: network evaluations spent, times samples.
    """

    estimate: Estimate
    pair: Metric | np.ndarray | None = field(default=None, repr=False)
    n_evals: int = 0

    def minus(self, other: Measurement) -> Estimate:
        """This minus the other on the same noise, with the error of the pair; NaN error where samples cannot be paired."""
        if isinstance(self.pair, Metric) and isinstance(other.pair, Metric):
            return self.pair.difference(other.pair)
        name, n = f"difference of {self.estimate.name}", self.estimate.n
        value = self.estimate.value - other.estimate.value
        if self.pair is None or other.pair is None or len(self.pair) != len(other.pair):
            return Estimate(value, math.nan, n, name)
        return Estimate(value, _spread(self.pair - other.pair), n, name)


class Objective(ABC):
    """A number to lower. Calling it gives the `Estimate`; `measure` also what pairs it with another setting's."""

    seeds: range
    labels: Labels

    @property
    @abstractmethod
    def name(self) -> str: ...

    @abstractmethod
    def measure(self, model: Model, sampler: Sampler, n: int | None = None) -> Measurement:
        """On the first n of its seeds; all of them by default.

        Raises: NonFinite where the sampler diverges.
        """

    @abstractmethod
    def on(self, seeds: range) -> Objective:
        """The same objective on other noise."""

    def prepare(self) -> int:
        """Whatever all measurements share, done once; the network evaluations times samples that this call took."""
        return 0

    @property
    def prepared(self) -> bool:
        """Whether `prepare` has nothing left to do."""
        return True

    @property
    def least(self) -> int:
        """The fewest samples that give a number."""
        return 2

    def describe(self) -> dict[str, Any]:
        """What must agree for two measurements to be compared, as plain JSON."""
        labels = self.labels if not isinstance(self.labels, Tensor) else "given"
        return {"name": self.name, "seeds": [self.seeds.start, self.seeds.stop], "labels": labels}

    def __call__(self, model: Model, sampler: Sampler) -> Estimate:
        return self.measure(model, sampler).estimate

    def _first(self, n: int | None) -> Seeds:
        n = len(self.seeds) if n is None else n
        if not 1 <= n <= len(self.seeds):
            raise BadValue(f"{self.name} has {len(self.seeds)} seeds, and {n} were asked for")
        return Seeds(self.seeds[:n])


def checked_seeds(seeds: range | Iterable[int]) -> range:
    """Consecutive seeds as a range."""
    if not isinstance(seeds, range):
        listed = [int(i) for i in seeds]
        seeds = range(listed[0], listed[0] + len(listed)) if listed else range(0)
        if list(seeds) != listed:
            raise BadValue("the seeds of an objective must be consecutive: give range(start, stop)")
    if len(seeds) < 1 or seeds.step != 1 or seeds.start < 0:
        raise BadValue(f"the seeds of an objective must be a range of at least one, none negative, got {seeds}")
    return seeds


def spent(model: Model, sampler: Sampler, n: int, batch: int, calls: int) -> int:
    """Network evaluations times samples of a run; counted for samplers that cannot promise them."""
    nfe = sampler.nfe(model)
    return n * nfe if nfe is not None else round(calls * n / -(-n // batch))


def of_samples(values: np.ndarray, name: str) -> tuple[Estimate, np.ndarray]:
    """Mean of one number per sample, and the influences, which are the numbers themselves."""
    return Estimate(float(values.mean()), _spread(values), len(values), name), values


def root_mean_square(squares: np.ndarray, name: str) -> tuple[Estimate, np.ndarray]:
    """Root of the mean of squares (S,), and each sample's influence on it, by the delta method."""
    value = math.sqrt(float(squares.mean()))
    influence = squares / (2 * value) if value > 0 else np.zeros_like(squares)
    return Estimate(value, _spread(influence), len(squares), name), influence


def _spread(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


@dataclass(eq=False)
class Solution:
    """The end points of a fine solution, (S, *shape); None until the first objective that holds it has solved it for all of them."""

    ends: Tensor | None = None


@dataclass(frozen=True, eq=False)
class TruncationError(Objective):
    """How far samples end from where the fine ODE of one fixed model leads from the same noise: root mean square, data units.

    The reference is solved once for every seed, when it is first needed, and shared by all settings; wrappers of a setting do not enter
    it, so skip scales and guidance are judged by how well they make up for long steps.

    Args:
        model: whose ODE it is, with the wrappers that belong to the task and not to the search.
        reference: the fine sampler; by default Heun on 128 Karras steps over the model's range.
        solution: where the reference's end points are kept. Objectives of one model, reference, labels and seeds may hold the same one.
    """

    model: Model
    seeds: range
    labels: Labels = "balanced"
    reference: Sampler | None = None
    batch: int = 256
    solution: Solution = field(default_factory=Solution, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "seeds", checked_seeds(self.seeds))
        if self.reference is None:
            low, high = self.model.sigma_range
            object.__setattr__(self, "reference", OdeSampler(Heun(), TimeGrid.karras(128, low, high)))
        if self.reference.stochastic:
            raise BadValue("the reference must follow the ODE: give a deterministic sampler")

    @property
    def name(self):
        return "end-point RMSE"

    def on(self, seeds):
        return dataclasses.replace(self, seeds=seeds, solution=Solution())

    def describe(self):
        return {**super().describe(), "reference": self.reference.to_dict()}

    def truth(self) -> Tensor:
        """End points of the fine solution, (S, *shape); solved by the first call."""
        self.prepare()
        return self.solution.ends

    @property
    def prepared(self):
        return self.solution.ends is not None

    def prepare(self):
        if self.prepared:
            return 0
        calls = self.model.n_calls
        self.solution.ends = sample(self.model, self.reference, Seeds(self.seeds), self.labels, batch=self.batch)
        return spent(self.model, self.reference, len(self.seeds), self.batch, self.model.n_calls - calls)

    def measure(self, model, sampler, n=None):
        seeds, truth = self._first(n), self.truth()
        calls = model.n_calls
        ends = sample(model, sampler, seeds, first_labels(self.labels, len(seeds)), batch=self.batch)
        squares = (ends - truth[: len(seeds)]).flatten(1).square().sum(dim=1).cpu().numpy()
        estimate, influence = root_mean_square(squares, self.name)
        return Measurement(estimate, influence, spent(model, sampler, len(seeds), self.batch, model.n_calls - calls))


@dataclass(frozen=True, eq=False)
class MetricObjective(Objective):
    """A distance between samples and data on fixed noise: Fréchet, kernel, Wasserstein or any other `Metric`."""

    metric: Metric
    seeds: range
    labels: Labels = "balanced"
    batch: int = 256

    def __post_init__(self):
        object.__setattr__(self, "seeds", checked_seeds(self.seeds))
        if not self.metric.lower_is_better:
            raise BadValue(f"{self.metric.name} is better when larger; a search lowers its objective")

    @property
    def name(self):
        return self.metric.name

    @property
    def least(self):
        return getattr(self.metric, "n_min", 2)

    def on(self, seeds):
        return dataclasses.replace(self, seeds=seeds)

    def describe(self):
        how = hashlib.sha256(repr(self.metric.key).encode()).hexdigest()[:16]
        return {**super().describe(), "metric": how}

    @torch.inference_mode()
    def measure(self, model, sampler, n=None):
        seeds, metric, calls, device = self._first(n), self.metric.empty(), model.n_calls, device_of(model)
        every = labels_for(model, seeds, first_labels(self.labels, len(seeds)), device)
        for start in range(0, len(seeds), self.batch):
            part = seeds[start : start + self.batch]
            cond = None if every is None else every[start : start + self.batch]
            metric.update(sampler.sample(model, part.normal(tuple(model.shape), device=device), cond, rng=part), cond)
        n_evals = spent(model, sampler, len(seeds), self.batch, model.n_calls - calls)
        return Measurement(metric.compute(), metric, n_evals)


@dataclass(frozen=True, eq=False)
class LocalError(Objective):
    """Sum over the steps of how far each misses the exact step from its own start, mean over samples, data units.

    Errors of early steps are carried on as they are, neither bent nor damped by the flow. Deterministic samplers only.

    Args: substeps: of the reference inside each step, 4 evaluations each.
    """

    seeds: range
    labels: Labels = "balanced"
    substeps: int = 8
    batch: int = 256

    def __post_init__(self):
        object.__setattr__(self, "seeds", checked_seeds(self.seeds))

    @property
    def name(self):
        return "sum of local errors"

    def on(self, seeds):
        return dataclasses.replace(self, seeds=seeds)

    def describe(self):
        return {**super().describe(), "substeps": self.substeps}

    def measure(self, model, sampler, n=None):
        seeds, calls = self._first(n), model.n_calls
        labels = first_labels(self.labels, len(seeds))
        ds = record(model, sampler, seeds, labels, keep=("x",), batch=self.batch)
        values = local_error(ds, model, substeps=self.substeps, batch=self.batch).values.sum(axis=1)
        estimate, influence = of_samples(values, self.name)
        n_batches = -(-len(seeds) // self.batch)
        return Measurement(estimate, influence, round((model.n_calls - calls) * len(seeds) / n_batches))


@dataclass(frozen=True, eq=False)
class FunctionObjective(Objective):
    """Anybody's function as an objective.

    Args:
        function: (model, sampler, seeds) -> a number, an `Estimate`, or one number per sample (S,), whose mean is lowered and whose
            differences are then paired.
        label: name for tables and journals.
    """

    function: Callable[[Model, Sampler, Seeds], Any]
    seeds: range
    label: str = "objective"
    labels: Labels = "balanced"
    batch: int = 256

    def __post_init__(self):
        object.__setattr__(self, "seeds", checked_seeds(self.seeds))

    @property
    def name(self):
        return self.label

    def on(self, seeds):
        return dataclasses.replace(self, seeds=seeds)

    def measure(self, model, sampler, n=None):
        seeds, calls = self._first(n), model.n_calls
        found = self.function(model, sampler, seeds)
        called = model.n_calls - calls
        n_evals = spent(model, sampler, len(seeds), self.batch, called) if called else 0
        if isinstance(found, Estimate):
            return Measurement(found, None, n_evals)
        values = np.asarray(found.detach().cpu() if isinstance(found, Tensor) else found, dtype=np.float64)
        if values.ndim == 0:
            return Measurement(Estimate(float(values), math.nan, len(seeds), self.label), None, n_evals)
        if values.shape != (len(seeds),):
            raise BadValue(f"{self.label} must return a number or one per sample ({len(seeds)},), got {values.shape}")
        estimate, influence = of_samples(values, self.label)
        return Measurement(estimate, influence, n_evals)


def first_labels(labels: Labels, n: int) -> Labels:
    return labels[:n] if isinstance(labels, Tensor) else labels
