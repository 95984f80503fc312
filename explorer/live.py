"""Quality of a sampler, live: a number with its error after every batch, and the same seeds for every setting.

The dashboard's job, the command line's `eval` and a notebook's loop are this one generator.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import xarray as xr
from torch import Tensor

from explorer.data import TOYS, Dataset, load_dataset
from explorer.errors import BadValue, NonFinite, UnknownName
from explorer.metrics import (
    Estimate,
    ExactW2,
    FeatureSpace,
    Frechet,
    Metric,
    SlicedW2,
    feature_space,
    kid,
    precision,
    recall,
)
from explorer.metrics.features import points_space
from explorer.metrics.references import CLASSIFIERS, reference_for
from explorer.models import bundled
from explorer.models.base import Denoiser
from explorer.process import Linear, Path
from explorer.sampling import Sampler, Seeds, device_of, labels_for, labels_of
from explorer.sampling.solve import Step
from explorer.trajectory.running import Moments, RunningGeometry

N_FIRST = 64
N_SHOWN = 64
N_REAL = 4096  # real points kept by the metrics that compare with each of them
N_CURVES = 512  # samples of the curves that need the states of a whole batch
SETTLED = 15  # samples per feature from which a Fréchet distance counts
SMALL = 128  # features for which that many samples are drawn while somebody watches
GAP_ATTRS = {"long_name": "squared gap to the chord, on the linear path", "units": "data unit^2"}
ERROR_ATTRS = {"long_name": "step error (embedded estimate)", "units": "data unit"}


@dataclass(frozen=True)
class Live:
    """State of a running measurement after one more batch.

    Attributes:
        estimate: the metric on all samples so far; its value is NaN while there are too few.
        n_done, n: samples so far, and in the end.
        nfe: network evaluations per sample, guidance included; None where only a run can tell (adaptive steps).
        x: the first (at most 64) samples, (k, *shape) float64 on the CPU, in the order of their seeds.
        labels: their classes (k,), or None.
        geometry: what `RunningGeometry.result` returns: means over samples with their errors; None when not asked for.
        difference: this setting minus the baseline on the same seeds; None where the baseline has no equal n.
        metric: the metric itself as it stands, for a later paired `difference`.
        seconds: spent in sampling and measuring, time between two `next` calls not counted.
        curves: the accumulators behind `geometry` as they stand, for `quality(..., after=)`.
    """

    estimate: Estimate
    n_done: int
    n: int
    nfe: int | None
    x: Tensor = field(repr=False)
    labels: Tensor | None = field(repr=False)
    geometry: xr.Dataset | None = field(repr=False)
    difference: Estimate | None
    metric: Metric = field(repr=False)
    seconds: float
    curves: StepCurves | None = field(default=None, repr=False)

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
    after: Live | None = None,
    cancel: threading.Event | None = None,
    between: Callable[[float], None] | None = None,
) -> Iterator[Live]:
    """Draws samples of seeds start_seed ... start_seed + n - 1 and yields a `Live` after each batch.

    The first batch is split at 64 samples, so that there are pictures at once; then n = 256, 512, 768, ... The result does
    not depend on how often the generator is resumed, and repeated runs agree to the last bit on one machine. So does a run
    that goes on from a state at one of these n; from another n it agrees to rounding, as batches are then cut elsewhere.

    Args:
        model, sampler: as `SamplerKnobs.build` returns them, or any others.
        metric: where samples are counted; it is not changed, an empty copy is used.
        n: number of samples.
        batch: samples per pass through the network.
        start_seed: first seed.
        label: one class for all, -1 for no class; None draws every class in turn where the model has classes.
        geometry: also accumulate the geometry of the paths (no states are stored); see `StepCurves`.
        baseline: a metric that has seen the same seeds, or several by their n, as collected from `Live.metric`.
        after: a state of the same measurement to go on from, with the same model, sampler, seeds and label; its samples
            are kept and not drawn again.
        cancel: checked between solver steps; once set, the generator ends without a further yield.
        between: called between solver steps with the fraction of all steps done; it may raise to stop the run.
    Raises:
        NonFinite: NaN or infinity; names the step and the seed. Everything yielded before stands.
        BadValue: `after` is of another sampler, or has more than n samples, or no geometry where it is asked for.
    """
    if n < 1 or batch < 1:
        raise BadValue(f"n = {n} and batch = {batch}: both must be at least 1.")
    metric, device = metric.empty(), device_of(model)
    shape, nfe, n_steps = tuple(model.shape), sampler.nfe(model), sampler.n_steps(model)
    running = StepCurves(sampler.path_on(model), n_steps) if geometry and sampler.monotone else None
    labels = labels_of(label)
    shown: list[Tensor] = []
    shown_labels: list[Tensor] = []
    seconds, done = 0.0, 0
    if after is not None:
        _check_after(after, nfe, n, running is not None)
        metric.merge(after.metric)
        shown, shown_labels = [after.x], [] if after.labels is None else [after.labels]
        seconds, done = after.seconds, after.n_done
        if running is not None:
            running.merge(after.curves)
    for size in _sizes(n, batch, done):
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
            curves=running.copy() if running is not None else None,
            difference=_difference(frozen, baseline),
            metric=frozen,
            seconds=seconds + time.perf_counter() - began,
        )
        seconds = live.seconds
        yield live


def _sizes(n: int, batch: int, done: int = 0) -> list[int]:
    """Batches from sample `done` on: cut at 64, at whole batches, and at n."""
    ends = sorted({min(N_FIRST, batch, n), *range(batch, n, batch), n})
    return [end - start for start, end in pairwise([done, *(end for end in ends if end > done)])]


def _check_after(after: Live, nfe: int | None, n: int, geometry: bool) -> None:
    if after.nfe != nfe:
        raise BadValue(f"a run of {after.nfe} NFE cannot go on as one of {nfe}: `after` belongs to another sampler.")
    if after.n_done > n:
        raise BadValue(f"`after` has {after.n_done} samples already, and n = {n} were asked for.")
    if geometry and after.curves is None:
        raise BadValue("`after` was measured without geometry: pass geometry=False, or start anew.")


class StepCurves:
    """Observer that accumulates what has a place on the noise axis: the geometry of the paths, their straightness, the steps' errors.

    `result` is `RunningGeometry.result` on the sampler's own path, with two more curves by step:
    - `velocity_gap`: |u - mean u|^2 of the step's velocity on the linear path, whose mean over time is the straightness S of
      Liu 2022, arXiv 2209.14577 (`straightness_linear`);
    - `step_error`: norm of the solver's embedded error estimate, which costs no network call. It is the error of the lower order
      of the pair, so an upper bound in practice. NaN at steps without one; where no step has one the curve is absent and the
      attribute `step_error` says so.
    Both come from the first N_CURVES samples; attribute `n_curves` counts them.
    """

    def __init__(self, path: Path, n_steps: int):
        self.n_steps = n_steps
        self._path, self._batch = path, []
        self._own = RunningGeometry(path, n_steps=n_steps)
        self._line = RunningGeometry(path, onto=Linear(), n_steps=n_steps, gaps=True)
        self._errors = Moments()
        self._curves = True

    def __call__(self, i: int, t: float, t_next: float, x: Tensor, step: Step) -> None:
        self._own(i, t, t_next, x, step)
        if i == 0:
            self._curves, self._batch = self._line.n < N_CURVES, []
        if self._curves:
            self._line(i, t, t_next, x, step)
            error = step.error
            self._batch.append(
                torch.full((len(x),), torch.nan, dtype=torch.float64, device=x.device)
                if error is None
                else error.detach().flatten(1).double().norm(dim=1)
            )
            if i == self.n_steps - 1:
                self._errors.update(torch.stack(self._batch, dim=1))

    def merge(self, other: StepCurves) -> None:
        """Adds the samples of another accumulator that watched the same grid."""
        self._own.merge(other._own)
        self._line.merge(other._line)
        self._errors.merge(other._errors)

    def copy(self) -> StepCurves:
        """The complete samples so far."""
        new = StepCurves(self._path, self.n_steps)
        new.merge(self)
        return new

    def result(self) -> xr.Dataset:
        """Means and standard errors so far; see the class."""
        out, line = self._own.result(), self._line.result()
        for end in ("", "_se"):
            out[f"velocity_gap{end}"] = ("step", line[f"velocity_gap{end}"].values, GAP_ATTRS)
            out[f"straightness_linear{end}"] = line[f"straightness{end}"]
        mean = self._errors.mean
        if mean is None or not bool(mean.isfinite().any()):
            out.attrs["step_error"] = "this solver has no embedded estimate of its error"
        else:
            for end, values in (("", mean), ("_se", self._errors.std_error())):
                out[f"step_error{end}"] = ("step", values.cpu().numpy(), ERROR_ATTRS)
        out.attrs["n_curves"] = self._errors.n
        return out


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


def _made_from(model: Denoiser) -> Dataset:
    try:
        return load_dataset(data_of(model.name))
    except UnknownName as error:
        raise BadValue(
            f"{model.name or 'the model'} does not say which data it was made from: give metric_for(model, data=...) a name "
            f"({', '.join(error.valid)}), or a file or folder of samples of shape {tuple(model.shape)}"
        ) from None


def frechet(features: FeatureSpace, data: Dataset) -> Metric:
    """Fréchet distance to the training split, bias-corrected; of a user's kept data to the part held out, where that is large enough."""
    held = _kept_back(data)
    if held is not None and len(held) >= SETTLED * features.dim:
        return Frechet(features, reference_for(features, held))
    return Frechet(features, reference_for(features, data))


def kernel_distance(features: FeatureSpace, data: Dataset) -> Metric:
    """Squared MMD with the cubic polynomial kernel (KID), unbiased."""
    return kid(features, data.x[:N_REAL])


def sliced(features: FeatureSpace, data: Dataset) -> Metric:
    """Sliced 2-Wasserstein distance; a toy's is to points that nothing was trained on."""
    return SlicedW2(features, _held_out(data)[:N_REAL])


def exact(features: FeatureSpace, data: Dataset) -> Metric:
    """2-Wasserstein distance of the first 1000 samples by exact assignment."""
    return ExactW2(features, _held_out(data)[:1000])


def realism(features: FeatureSpace, data: Dataset) -> Metric:
    """Precision: share of samples within the nearest-neighbour manifold of the data."""
    return precision(features, data.x[:N_REAL])


def completeness(features: FeatureSpace, data: Dataset) -> Metric:
    """Recall: share of the data within the nearest-neighbour manifold of the samples."""
    return recall(features, data.x[:N_REAL])


METRICS: dict[str, Callable[[FeatureSpace, Dataset], Metric]] = {
    "fd": frechet,
    "kid": kernel_distance,
    "sw2": sliced,
    "w2": exact,
    "precision": realism,
    "recall": completeness,
}


def metric_for(model: Denoiser, metric: str | None = None, *, data: str | None = None, features: str | None = None):
    """An empty metric that suits what the model makes.

    Args:
        metric: one of METRICS; by default "sw2" for points and what `suits` says for images.
        data: name of the data set, or a file or folder of one's own; by default the one the model was made from.
        features: name of the feature space; by default of the data set's classifier, "xy" for points, else "pixels".
    Raises: BadValue where the data are not known, or of another shape.
    """
    if metric is not None and metric not in METRICS:
        raise UnknownName("metric", metric, METRICS)
    shape, real = tuple(model.shape), load_dataset(data) if data else _made_from(model)
    if shape != real.shape:
        raise BadValue(f"{model.name or 'the model'} makes samples of shape {shape}, {real.name} has {real.shape}.")
    flat = len(shape) == 1
    space = points_space(shape[0]) if flat else feature_space(features or CLASSIFIERS.get(real.name, "pixels"), shape)
    return METRICS[metric or ("sw2" if flat else suits(space, real))](space, real)


def suits(features: FeatureSpace, data: Dataset) -> str:
    """The metric by which images are measured when none is asked for: "fd", but "sw2" for a user's kept data of many pixels.

    A Fréchet distance wants 15 samples per feature on both sides; below that it says more of their number than of the model.
    """
    held = _kept_back(data)
    if held is None or (features.dim <= SMALL and len(held) >= SETTLED * features.dim):
        return "fd"
    return "sw2"


def against(data: Dataset, metric: str) -> str:
    """What a metric of METRICS compares samples with, in words: "400 held-out points"."""
    held, what = _kept_back(data), "points" if len(data.shape) == 1 else "pictures"
    if metric in ("sw2", "w2", "fd") and held is not None:
        return f"{len(held)} held-out {what}"
    if metric in ("sw2", "w2") and data.name in TOYS:
        return "held-out points"
    return f"the {what} of the training set"


def _kept_back(data: Dataset) -> Dataset | None:
    """What is held out of a user's data; None where nothing is."""
    folder = data.card.get("parts")
    return None if folder is None or not data.card.get("held_out") else load_dataset(folder, "test")


def _held_out(data: Dataset) -> Tensor:
    if (held := _kept_back(data)) is not None:
        return held.take(slice(None))
    return load_dataset(data.name, "test").x if data.name in TOYS else data.x
