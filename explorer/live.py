"""Quality of a sampler, live: a number with its error after every batch, and the same seeds for every setting.

The dashboard's job, the command line's `eval` and a notebook's loop are this one generator.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
import xarray as xr
from torch import Tensor

from explorer.data import TOYS, Dataset, load_dataset
from explorer.errors import BadValue, NonFinite, UnknownName
from explorer.metrics import Estimate, ExactW2, FeatureSpace, Frechet, Metric, Reference, SlicedW2, feature_space, kid
from explorer.metrics.features import points_space
from explorer.models import bundled
from explorer.models.base import Denoiser
from explorer.sampling import Sampler, Seeds, device_of, labels_for
from explorer.trajectory.running import RunningGeometry

N_FIRST = 64
N_SHOWN = 64
N_REAL = 4096  # real points kept by the metrics that compare with each of them


@dataclass(frozen=True)
class Live:
    """State of a running measurement after one more batch.

    Attributes:
        estimate: the metric on all samples so far; its value is NaN while there are too few.
        n_done, n: samples so far, and in the end.
        nfe: network evaluations per sample, guidance included.
        x: the first (at most 64) samples, (k, *shape) float64 on the CPU, in the order of their seeds.
        labels: their classes (k,), or None.
        geometry: what `RunningGeometry.result` returns: means over samples with their errors; None when not asked for.
        difference: this setting minus the baseline on the same seeds; None where the baseline has no equal n.
        metric: the metric itself as it stands, for a later paired `difference`.
        seconds: spent in sampling and measuring, time between two `next` calls not counted.
    """

    estimate: Estimate
    n_done: int
    n: int
    nfe: int
    x: Tensor = field(repr=False)
    labels: Tensor | None = field(repr=False)
    geometry: xr.Dataset | None = field(repr=False)
    difference: Estimate | None
    metric: Metric = field(repr=False)
    seconds: float

    @property
    def done(self) -> bool:
        return self.n_done == self.n


Baseline = Metric | Mapping[int, Metric]


def quality(
    model: Denoiser,
    sampler: Sampler,
    metric: Metric,
    n: int = 2000,
    batch: int = 256,
    start_seed: int = 0,
    *,
    label: int | None = None,
    geometry: bool = True,
    baseline: Baseline | None = None,
    cancel: threading.Event | None = None,
    between: Callable[[float], None] | None = None,
) -> Iterator[Live]:
    """Draws samples of seeds start_seed ... start_seed + n - 1 and yields a `Live` after each batch.

    The first batch is split at 64 samples, so that there are pictures at once; then n = 256, 512, 768, ... The result does
    not depend on how often the generator is resumed, and repeated runs agree to the last bit on one machine.

    Args:
        model, sampler: as `SamplerKnobs.build` returns them, or any others.
        metric: where samples are counted; it is not changed, an empty copy is used.
        n: number of samples.
        batch: samples per pass through the network.
        start_seed: first seed.
        label: one class for all, -1 for no class; None draws every class in turn where the model has classes.
        geometry: also accumulate the geometry of the paths (no states are stored).
        baseline: a metric that has seen the same seeds, or several by their n, as collected from `Live.metric`.
        cancel: checked between solver steps; once set, the generator ends without a further yield.
        between: called between solver steps with the fraction of all steps done; it may raise to stop the run.
    Raises:
        NonFinite: NaN or infinity; names the step and the seed. Everything yielded before stands.
    """
    if n < 1 or batch < 1:
        raise BadValue(f"n = {n} and batch = {batch}: both must be at least 1.")
    metric, device = metric.empty(), device_of(model)
    shape, nfe, n_steps = tuple(model.shape), sampler.nfe(model), sampler.grid.n_steps
    running = RunningGeometry(sampler.path_on(model), n_steps=n_steps) if geometry else None
    labels = "balanced" if label is None else None if label == -1 else label
    shown: list[Tensor] = []
    shown_labels: list[Tensor] = []
    seconds, done = 0.0, 0
    for size in _sizes(n, batch):
        began = time.perf_counter()
        seeds = Seeds(range(start_seed + done, start_seed + done + size))
        watch = _Watch(lambda f, done=done, size=size: (done + f * size) / n, n_steps, running, cancel, between)
        cond = labels_for(model, seeds, labels, device)
        try:
            with torch.inference_mode():
                x = sampler.sample(model, seeds.normal(shape, device=device), cond, rng=seeds, observe=watch)
                metric.update(x, cond)
        except _Stopped:
            return
        except NonFinite as error:
            raise _named(error, start_seed, done, n_steps) from None
        if done < N_SHOWN:
            shown.append(x[: N_SHOWN - done].to("cpu", torch.float64).clone())
            if cond is not None:
                shown_labels.append(cond[: N_SHOWN - done].cpu())
        done += size
        frozen = metric.empty()
        frozen.merge(metric)
        live = Live(
            estimate=frozen.compute(),
            n_done=done,
            n=n,
            nfe=nfe,
            x=torch.cat(shown),
            labels=torch.cat(shown_labels) if shown_labels else None,
            geometry=running.result() if running is not None else None,
            difference=_difference(frozen, baseline),
            metric=frozen,
            seconds=seconds + time.perf_counter() - began,
        )
        seconds = live.seconds
        yield live


def _sizes(n: int, batch: int) -> list[int]:
    first = [min(N_FIRST, n, batch)]
    first += [min(batch, n) - first[0]] if min(batch, n) > first[0] else []
    left = n - sum(first)
    return first + [batch] * (left // batch) + ([left % batch] if left % batch else [])


class _Stopped(Exception):
    pass


class _Watch:
    """Observer of one batch: geometry, the cancel flag, progress."""

    def __init__(self, fraction, n_steps, running, cancel, between):
        self.fraction, self.n_steps = fraction, n_steps
        self.running, self.cancel, self.between = running, cancel, between

    def __call__(self, i, t, t_next, x, step):
        if self.running is not None:
            self.running(i, t, t_next, x, step)
        if self.cancel is not None and self.cancel.is_set():
            raise _Stopped
        if self.between is not None:
            self.between(self.fraction((i + 1) / self.n_steps))


def _named(error: NonFinite, start_seed: int, done: int, n_steps: int) -> NonFinite:
    """The same error with seeds in place of positions in a batch."""
    bad = [start_seed + done + k for k in error.samples]
    shown = ", ".join(map(str, bad[:5])) + (", …" if len(bad) > 5 else "")
    return NonFinite(
        f"NaN or infinity at step {error.step + 1} of {n_steps} (t = {error.t:.4g}) in {len(bad)} samples, seeds {shown}; "
        f"{f'the {done} samples before them are kept' if done else 'nothing was finished'}. Try a smaller sigma_max, a "
        "larger sigma_min, or guidance and skip factors nearer 1.",
        step=error.step,
        samples=bad,
        t=error.t,
        kept=error.kept,
    )


def _difference(metric: Metric, baseline: Baseline | None) -> Estimate | None:
    at = baseline.get(metric.n) if isinstance(baseline, Mapping) else baseline
    if at is None or at.n != metric.n:
        return None
    return metric.difference(at)


def data_of(name: str) -> str:
    """Name of the data set behind a bundled model or oracle, from its card or, failing that, from its name."""
    if name in bundled.names():
        data = bundled.card(name).get("data")
        if isinstance(data, str):
            return data
    stem = name.split("-", 1)[-1] if name.startswith(("toy-", "oracle-")) else name.split("-", 1)[0]
    return load_dataset(stem).name


def frechet(features: FeatureSpace, data: Dataset) -> Metric:
    """Fréchet distance to the training split, bias-corrected."""
    return Frechet(features, Reference.of(features, data.x, data=f"{data.name}/train"))


def kernel_distance(features: FeatureSpace, data: Dataset) -> Metric:
    """Squared MMD with the cubic polynomial kernel (KID), unbiased."""
    return kid(features, data.x[:N_REAL])


def sliced(features: FeatureSpace, data: Dataset) -> Metric:
    """Sliced 2-Wasserstein distance; a toy's is to points that nothing was trained on."""
    return SlicedW2(features, _held_out(data)[:N_REAL])


def exact(features: FeatureSpace, data: Dataset) -> Metric:
    """2-Wasserstein distance of the first 1000 samples by exact assignment."""
    return ExactW2(features, _held_out(data)[:1000])


METRICS: dict[str, Callable[[FeatureSpace, Dataset], Metric]] = {
    "fd": frechet,
    "kid": kernel_distance,
    "sw2": sliced,
    "w2": exact,
}


def metric_for(model: Denoiser, metric: str | None = None, *, data: str | None = None, features: str | None = None):
    """An empty metric that suits what the model makes.

    Args:
        metric: one of METRICS; by default "sw2" for points and "fd" for images.
        data: name of the data set; by default the one the model was made from.
        features: name of the feature space; by default "digits-cnn" for digits, "xy" for points, else "pixels".
    """
    if metric is not None and metric not in METRICS:
        raise UnknownName("metric", metric, METRICS)
    shape, real = tuple(model.shape), load_dataset(data or data_of(model.name))
    if shape != real.shape:
        raise BadValue(f"{model.name or 'the model'} makes samples of shape {shape}, {real.name} has {real.shape}.")
    if len(shape) == 1:
        space = points_space(shape[0])
    else:
        space = feature_space(features or ("digits-cnn" if real.name == "digits" else "pixels"), shape)
    return METRICS[metric or ("sw2" if len(shape) == 1 else "fd")](space, real)


def _held_out(data: Dataset) -> Tensor:
    return load_dataset(data.name, "test").x if data.name in TOYS else data.x
