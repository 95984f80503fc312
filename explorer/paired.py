"""Two samplers on the same noise: which is better, by how much, and how far apart their samples land."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from explorer.errors import BadValue
from explorer.metrics import Estimate, Metric
from explorer.metrics.base import verdict
from explorer.models.base import Denoiser
from explorer.sampling import Sampler, Seeds, device_of, labels_for, labels_of


@dataclass(frozen=True)
class Side:
    """One of the two: a model and a sampler as `SamplerKnobs.build` returns them, or any others.

    Attributes:
        label: one class for all, -1 for no class; None draws every class in turn where the model has classes.
        name: what the verdict calls it.
    """

    model: Denoiser
    sampler: Sampler
    label: int | None = None
    name: str = ""

    @property
    def nfe(self) -> int | None:
        return self.sampler.nfe(self.model)


@dataclass(frozen=True)
class Comparison:
    """State of a paired comparison after one more batch.

    Attributes:
        a, b: the metric of each on all samples so far.
        difference: a - b on the same seeds, with the error of the pair, not of the two numbers.
        distance: mean |x_a - x_b| of samples from the same noise, data units.
        n_done, n: samples so far, and in the end.
        verdict: the difference in one sentence.
        seconds: spent in sampling and measuring each of the two.
    """

    a: Estimate
    b: Estimate
    difference: Estimate
    distance: Estimate
    n_done: int
    n: int
    verdict: str
    seconds: tuple[float, float]

    @property
    def done(self) -> bool:
        return self.n_done == self.n


@torch.inference_mode()
def compare(
    a: Side,
    b: Side,
    metric: Metric,
    n: int = 2000,
    batch: int = 256,
    start_seed: int = 0,
    *,
    between: Callable[[float], None] | None = None,
) -> Iterator[Comparison]:
    """Draws seeds start_seed ... start_seed + n - 1 with both and yields a `Comparison` after each batch.

    Args:
        metric: where samples are counted; it is not changed, empty copies are used. Lower must be better.
        between: called with the fraction of all samples drawn.
    Raises:
        BadValue: the two make samples of different shapes.
        NonFinite: NaN or infinity in a run.
    """
    if n < 2 or batch < 1:
        raise BadValue(f"n = {n} and batch = {batch}: a comparison needs at least 2 samples in batches of at least 1.")
    if tuple(a.model.shape) != tuple(b.model.shape):
        raise BadValue(
            f"{a.name or 'A'} makes samples of shape {tuple(a.model.shape)}, {b.name or 'B'} of {tuple(b.model.shape)}: "
            "only samples of one shape can be compared by one metric."
        )
    sides, metrics, seconds, gaps = (a, b), (metric.empty(), metric.empty()), [0.0, 0.0], []
    names = (a.name or "A", b.name or "B")
    for done in range(0, n, batch):
        seeds = Seeds(range(start_seed + done, start_seed + min(done + batch, n)))
        ends = []
        for i, (side, counter) in enumerate(zip(sides, metrics, strict=True)):
            began, device = time.perf_counter(), device_of(side.model)
            cond, own = labels_for(side.model, seeds, labels_of(side.label), device), seeds.fresh()
            x = side.sampler.sample(side.model, own.normal(tuple(side.model.shape), device=device), cond, rng=own)
            counter.update(x, cond)
            ends.append(x.to("cpu", torch.float64))
            seconds[i] += time.perf_counter() - began
            if between is not None:
                between((done + (i + 1) * len(seeds) / 2) / n)
        gaps.append((ends[0] - ends[1]).flatten(1).norm(dim=1))
        difference = metrics[0].difference(metrics[1])
        yield Comparison(
            a=metrics[0].compute(),
            b=metrics[1].compute(),
            difference=difference,
            distance=_mean(torch.cat(gaps)),
            n_done=done + len(seeds),
            n=n,
            verdict=verdict(difference, *names),
            seconds=(seconds[0], seconds[1]),
        )


def _mean(gaps: torch.Tensor) -> Estimate:
    n = len(gaps)
    error = float(gaps.std()) / math.sqrt(n) if n > 1 else math.nan
    return Estimate(float(gaps.mean()), error, n, "mean distance on the same noise")
