"""Runs written down: every state of every sample, in buffers allocated once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import xarray as xr
from torch import Tensor

from explorer.errors import BadValue, UnknownName
from explorer.models.base import Denoiser
from explorer.process.paths import Path
from explorer.sampling.samplers import Labels, Sampler, labels_for, sample
from explorer.sampling.seeds import Seeds
from explorer.sampling.solve import Observer, Step, denoised_of, slope_of
from explorer.trajectory.dataset import ON_TIME, STORED, trajectory

GIB = 2**30


def bytes_needed(
    n_samples: int, n_steps: int, shape: Sequence[int], keep: Iterable[str] = ("x", "slope"), *, itemsize: int = 8
) -> int:
    """Memory that a recording takes, in bytes: exact for the arrays; coordinates are negligible."""
    rows = sum(n_steps + 1 if name in ON_TIME else n_steps for name in _checked(keep))
    return n_samples * rows * math.prod(shape) * itemsize


class Recorder:
    """Observer that copies each step into preallocated buffers: one copy per kept variable and step.

    Batches are told apart by their step 0 and fill the buffers in order. On an accelerator a batch is staged there and
    comes to the CPU once, when it is complete.

    Args:
        n_samples: rows to keep; further samples pass unrecorded.
        n_steps: steps of the run.
        path: the path the sampler's states live on, `sampler.path_on(model)`.
        keep: any of "x" (always kept), "slope", "x0_hat", "error".
        dtype: float64, or float32 for half the memory.
        model: its calls are counted for the `nfe` coordinate; None leaves it at -1.
    """

    def __init__(
        self,
        n_samples: int,
        n_steps: int,
        path: Path,
        keep: Iterable[str] = ("x", "slope"),
        *,
        dtype: torch.dtype = torch.float64,
        model: Denoiser | None = None,
    ):
        self.n_samples, self.n_steps, self.path, self.dtype, self.model = n_samples, n_steps, path, dtype, model
        self.keep = _checked(keep)
        self.n = 0  # samples recorded to the end
        self.times: list[float] = []
        self.nfe: list[int] = []
        self._calls = model.n_calls if model is not None else 0
        self._buffers: dict[str, Tensor] = {}
        self._views: dict[str, Tensor] = {}  # of the batch in flight; empty when it passes unrecorded

    def __call__(self, i: int, t: float, t_next: float, x: Tensor, step: Step) -> None:
        if i == 0:
            self._begin(x)
        views = self._views
        if not views:
            return
        if i >= self.n_steps:
            raise BadValue(f"the recorder was made for {self.n_steps} steps, but the run takes more.")
        rows = views["x"].shape[1]
        views["x"][i + 1].copy_(step.x[:rows])
        if "slope" in views:
            views["slope"][i].copy_(slope_of(self.path, x, t, step)[:rows])
        if "x0_hat" in views:
            views["x0_hat"][i].copy_(denoised_of(self.path, x, t, step)[:rows])
        if "error" in views and (error := step.error) is not None:
            views["error"][i].copy_(error[:rows])
        if self.n == 0:
            self.times[i:] = [t, t_next]
            self.nfe[i:] = [self.model.n_calls - self._calls if self.model is not None else -1]
        if i == self.n_steps - 1:
            self._end()

    def dataset(self, **info) -> xr.Dataset:
        """The trajectory of the samples that came to their end; `info` goes to `trajectory`. A view of the buffers.

        Raises: BadValue before the first batch is complete.
        """
        if not self.n:
            raise BadValue("nothing was recorded: no run came to its end.")
        # Time-major buffers let a step write one contiguous block; the dataset is their transposed view.
        arrays = {name: buffer[:, : self.n].movedim(0, 1) for name, buffer in self._buffers.items()}
        return trajectory(arrays, self.times, self.path, nfe=self.nfe, **info)

    def _begin(self, x: Tensor) -> None:
        if not self._buffers:
            for name in self.keep:
                rows = self.n_steps + 1 if name in ON_TIME else self.n_steps
                self._buffers[name] = torch.empty(rows, self.n_samples, *x.shape[1:], dtype=self.dtype)
                if name == "error":
                    self._buffers[name].fill_(math.nan)
        rows = min(len(x), self.n_samples - self.n)
        self._views = {name: b[:, self.n : self.n + rows] for name, b in self._buffers.items()} if rows else {}
        if x.device.type != "cpu":
            self._views = {name: v.to(x.device) for name, v in self._views.items()}
        if rows:
            self._views["x"][0].copy_(x[:rows])

    def _end(self) -> None:
        rows = slice(self.n, self.n + self._views["x"].shape[1])
        for name, view in self._views.items():
            if view.device.type != "cpu":
                self._buffers[name][:, rows].copy_(view)
        self.n, self._views = rows.stop, {}


def record(
    model: Denoiser,
    sampler: Sampler,
    seeds: Seeds | Iterable[int],
    labels: Labels = "balanced",
    *,
    keep: Iterable[str] = ("x", "slope"),
    n_keep: int | None = None,
    batch: int = 256,
    dtype: torch.dtype = torch.float64,
    limit: int = 2 * GIB,
    observe: Observer | None = None,
) -> xr.Dataset:
    """Samples, one per seed, and the trajectory dataset of how they came about.

    Args:
        labels: as in `sample`: "balanced" (seed mod n_classes), one class, a tensor (n,), or None.
        keep: any of "x" (always), "slope" (dx/dt), "x0_hat" (denoised), "error" (embedded estimate); see dataset.py.
        n_keep: record the first n_keep samples only; the others are still sampled and seen by `observe`.
        dtype: of the stored arrays; float32 halves the memory and limits geometry to about 6 digits.
        limit: bytes a recording may take; see `bytes_needed`.
        observe: another observer, `RunningGeometry` say, for all the samples.
    Raises:
        BadValue: the recording would not fit the limit, before anything is computed.
        UnknownName: an unknown variable in `keep`.
    """
    seeds = seeds if isinstance(seeds, Seeds) else Seeds(seeds)
    n = len(seeds) if n_keep is None else min(n_keep, len(seeds))
    if n < 1:
        raise BadValue("a recording needs at least one seed.")
    n_steps = _count_steps(model, sampler, seeds, labels)
    itemsize = torch.empty(0, dtype=dtype).element_size()
    needed = bytes_needed(n, n_steps, model.shape, keep, itemsize=itemsize)
    if needed > limit:
        fits = n * limit // needed
        ways = [f"keep {fits} samples (n_keep={fits})"] if fits else []
        ways += ["store float32 (dtype=torch.float32)"] if itemsize > 4 else []
        ways += ["keep fewer variables", "accumulate without storing (sample(..., observe=RunningGeometry()))"]
        raise BadValue(
            f"recording {n} samples over {n_steps} steps needs {needed / GIB:.2f} GiB, more than the limit of "
            f"{limit / GIB:.2f} GiB: {', '.join(ways)}, or raise limit=."
        )
    recorder = Recorder(n, n_steps, sampler.path_on(model), keep, dtype=dtype, model=model)
    watch = recorder if observe is None else _both(recorder, observe)
    sample(model, sampler, seeds, labels, batch=batch, observe=watch)
    every = labels_for(model, seeds, labels)
    return recorder.dataset(
        seeds=seeds.ids[:n],
        labels=None if every is None else every[:n].tolist(),
        sampler=sampler.to_json(),
        model=model.name,
        total_nfe=sampler.nfe(model),
    )


def _both(first: Observer, second: Observer) -> Observer:
    def observe(*seen) -> None:
        first(*seen)
        second(*seen)

    return observe


def _count_steps(model: Denoiser, sampler: Sampler, seeds: Seeds, labels: Labels) -> int:
    grid = getattr(sampler, "grid", None)
    if grid is not None:
        return grid.n_steps
    steps: list[int] = []
    one = labels[:1] if isinstance(labels, Tensor) else labels
    sample(model, sampler, seeds[:1], one, observe=lambda i, *_: steps.append(i))
    return len(steps)


def _checked(keep: Iterable[str]) -> tuple[str, ...]:
    keep = (keep,) if isinstance(keep, str) else tuple(keep)
    for name in keep:
        if name not in STORED:
            raise UnknownName("trajectory variable", name, STORED)
    return tuple(name for name in STORED if name in keep or name == "x")
