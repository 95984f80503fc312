"""Runs written down: every state of every sample, in buffers allocated once, or batch by batch on disk."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterable, Sequence

import torch
import xarray as xr
from torch import Tensor

from explorer.errors import BadValue, UnknownName
from explorer.models.base import Model
from explorer.process.paths import Path
from explorer.sampling.samplers import Labels, Sampler, labels_for, sample
from explorer.sampling.seeds import Seeds
from explorer.sampling.solve import Observer, Step, denoised_of, slope_of
from explorer.trajectory.dataset import ON_TIME, STORED, path_to_json, trajectory
from explorer.trajectory.storage import Stream, folder_of, load
from explorer.trajectory.subspace import axes_of

GIB = 2**30
LinearMap = Callable[[Tensor], Tensor]
"""A linear map of batches (B, *shape) -> (B, K)."""


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
        project: a linear map to a few numbers per state, which are kept instead of it.
    """

    def __init__(
        self,
        n_samples: int,
        n_steps: int,
        path: Path,
        keep: Iterable[str] = ("x", "slope"),
        *,
        dtype: torch.dtype = torch.float64,
        model: Model | None = None,
        project: LinearMap | None = None,
    ):
        self.n_samples, self.n_steps, self.path, self.dtype = n_samples, n_steps, path, dtype
        self.keep, self.project = _checked(keep), project
        self.n = 0  # samples recorded to the end
        self.times: list[float] = []
        self.nfe: list[int] = []
        modules = () if model is None else model.modules()
        self._counters = [m._calls for m in modules if isinstance(m, Model)]  # `n_calls` walks all modules
        self._calls = sum(c[0] for c in self._counters)
        self._buffers: dict[str, Tensor] = {}
        self._views: dict[str, Tensor] = {}  # of the batch in flight; empty when it passes unrecorded
        # The same by time or step, cut once per batch: indexing on every step would cost as much as the copy.
        self._x: tuple[Tensor, ...] = ()
        self._others: tuple[tuple[str, tuple[Tensor, ...]], ...] = ()
        self._cut = False  # whether a state has to be cut or projected before it is kept

    def __call__(self, i: int, t: float, t_next: float, x: Tensor, step: Step) -> None:
        if i == 0:
            self._begin(x)
        if not self._x:
            return
        if i >= self.n_steps:
            raise BadValue(f"the recorder was made for {self.n_steps} steps, but the run takes more.")
        put = self._copy if self._cut else Tensor.copy_
        put(self._x[i + 1], step.x)
        for name, rows in self._others:
            if name == "slope":
                put(rows[i], slope_of(self.path, x, t, step))
            elif name == "x0_hat":
                put(rows[i], denoised_of(self.path, x, t, step))
            elif (error := step.error) is not None:
                put(rows[i], error)
        if self.n == 0:
            self.times[i:] = [t, t_next]
            self.nfe[i:] = [sum(c[0] for c in self._counters) - self._calls if self._counters else -1]
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
        rows = min(len(x), self.n_samples - self.n)
        if not rows:
            self._x = ()
            return
        if not self._buffers:
            shape = x.shape[1:] if self.project is None else self.project(x[:1]).shape[1:]
            for name in self.keep:
                times = self.n_steps + 1 if name in ON_TIME else self.n_steps
                self._buffers[name] = torch.empty(times, self.n_samples, *shape, dtype=self.dtype)
                if name == "error":
                    self._buffers[name].fill_(math.nan)
        self._views = {name: b[:, self.n : self.n + rows] for name, b in self._buffers.items()}
        if x.device.type != "cpu":
            self._views = {name: v.to(x.device) for name, v in self._views.items()}
        cut = {name: v.unbind(0) for name, v in self._views.items()}
        self._x, self._others = cut.pop("x"), tuple(cut.items())
        self._cut = rows < len(x) or self.project is not None
        self._copy(self._x[0], x)

    def _copy(self, row: Tensor, batch: Tensor) -> None:
        batch = batch[: len(row)]
        row.copy_(batch if self.project is None else self.project(batch))

    def _end(self) -> None:
        rows = slice(self.n, self.n + self._views["x"].shape[1])
        for name, view in self._views.items():
            if view.device.type != "cpu":
                self._buffers[name][:, rows].copy_(view)
        self.n, self._views, self._x, self._others = rows.stop, {}, (), ()


def record(
    model: Model,
    sampler: Sampler,
    seeds: Seeds | Iterable[int],
    labels: Labels = "balanced",
    *,
    keep: Iterable[str] = ("x", "slope"),
    n_keep: int | None = None,
    batch: int = 256,
    dtype: torch.dtype = torch.float64,
    project: xr.Dataset | LinearMap | None = None,
    to: str | os.PathLike | None = None,
    limit: int = 2 * GIB,
    observe: Observer | None = None,
) -> xr.Dataset:
    """Samples, one per seed, and the trajectory dataset of how they came about.

    Args:
        labels: as in `sample`: "balanced" (seed mod n_classes), one class, a tensor (n,), or None.
        keep: any of "x" (always), "slope" (dx/dt), "x0_hat" (denoised), "error" (embedded estimate); see dataset.py.
        n_keep: record the first n_keep samples only; the others are still sampled and seen by `observe`.
        dtype: of the stored arrays; float32 halves the memory and limits geometry to about 6 digits.
        project: keep a linear projection of every state instead of the state: a `principal_basis`, or a linear function
            (B, *shape) -> (B, K). Chords, angles and curves are then those of the projected run, and diagnostics that
            ask the model are not possible.
        to: a file *.zarr or *.nc, written batch by batch: memory holds one batch. Until it is complete its name carries
            ".part" (run.part.zarr), which `load` reads as far as it got; the same call again goes on from there.
        limit: bytes of memory a recording may take; see `bytes_needed`.
        observe: another observer, `RunningGeometry` say, for all the samples.
    Returns: the dataset in memory; from `to`, where it is larger than the limit, read from the file as it is used.
    Raises:
        BadValue: the recording would not fit memory or disk, before anything is computed: bytes needed and there are,
            and what would make it fit; or the file belongs to another recording.
        NonFinite, and whatever else interrupts the run: with the samples finished until then in its attribute `partial`
            (the name of the unfinished file where there is `to`), None where there are none.
        UnknownName: an unknown variable in `keep`.
    """
    seeds = seeds if isinstance(seeds, Seeds) else Seeds(seeds)
    n = len(seeds) if n_keep is None else min(n_keep, len(seeds))
    if n < 1:
        raise BadValue("a recording needs at least one seed.")
    mapped, shape = _projection(project, model)
    n_steps = _count_steps(model, sampler, seeds, labels)
    itemsize = torch.empty(0, dtype=dtype).element_size()
    needed = bytes_needed(n, n_steps, shape, keep, itemsize=itemsize)
    _check_room(needed, n, n_steps, itemsize, batch, limit, project, to)
    every = labels_for(model, seeds, labels)
    info = {"sampler": sampler.to_json(), "model": model.name, "total_nfe": sampler.nfe(model), "turning": True}

    def recorder_of(n_samples: int) -> Recorder:
        path = sampler.path_on(model)
        return Recorder(n_samples, n_steps, path, keep, dtype=dtype, model=model, project=mapped)

    def taken(recorder: Recorder, first: int) -> xr.Dataset:
        rows = slice(first, first + recorder.n)
        called = None if every is None else every[rows].tolist()
        ds = recorder.dataset(seeds=seeds.ids[rows], labels=called, **info)
        return ds if mapped is None else ds.assign_attrs(projected_from=str(list(model.shape)))

    if to is None:
        recorder = recorder_of(n)
        try:
            sample(model, sampler, seeds, labels, batch=batch, observe=_both(recorder, observe))
        except BaseException as error:
            done = taken(recorder, 0) if recorder.n else None
            _add_partial(error, done, f"{recorder.n} finished samples are in the error's `partial`")
            raise
        return taken(recorder, 0)

    key = {
        **info, "path": path_to_json(sampler.path_on(model)), "keep": list(_checked(keep)), "dtype": str(dtype), "n": n,
        "shape": list(shape), "seeds": _digest(seeds.ids[:n]), "labels": _digest(None if every is None else every[:n].tolist()),
    }  # fmt: skip
    stream = Stream(to, n, key, batch)
    try:
        for lo in range(stream.done, n, stream.batch):
            rows = slice(lo, min(lo + stream.batch, n))
            recorder = recorder_of(rows.stop - lo)
            called = None if every is None else every[rows]
            sample(model, sampler, seeds[rows], called, batch=stream.batch, observe=_both(recorder, observe))
            stream.append(taken(recorder, lo))
    except BaseException as error:
        said = f"{stream.done} of {n} samples are in {stream.part.name}; the same call goes on from there"
        _add_partial(error, str(stream.part) if stream.done else None, said)
        raise
    if n < len(seeds):
        rest = None if every is None else every[n:]
        sample(model, sampler, seeds[n:], rest, batch=batch, observe=observe)
    return load(stream.finish(), lazy=needed > limit)


def _add_partial(error: BaseException, partial: xr.Dataset | str | None, said: str) -> None:
    error.partial = partial
    if partial is not None:
        error.add_note(said)


def _check_room(
    needed: int, n: int, n_steps: int, itemsize: int, batch: int, limit: int, project: object, to: str | os.PathLike | None
) -> None:  # fmt: skip
    """Raises BadValue where a recording would not fit memory, or the disk that it goes to."""
    what = f"recording {n} samples over {n_steps} steps needs {needed / GIB:.3g} GiB"
    ways = ["store float32 (dtype=torch.float32)"] if itemsize > 4 else []
    ways += ["keep fewer variables"] + (["keep a projection (project=principal_basis(...))"] if project is None else [])
    if to is None:
        if needed <= limit:
            return
        fits = n * limit // needed
        ways = ([f"keep {fits} samples (n_keep={fits})"] if fits else []) + ways
        ways += [
            "write it to disk (to='run.zarr')",
            "accumulate without storing (sample(..., observe=RunningGeometry()))",
        ]
        raise BadValue(f"{what}, more than the limit of {limit / GIB:.3g} GiB: {', '.join(ways)}, or raise limit=.")
    folder = folder_of(to)
    free = shutil.disk_usage(folder).free
    space = needed * Stream.copies(to)
    if space > free:
        fits = n * free // space
        ways = ([f"keep {fits} samples (n_keep={fits})"] if fits else []) + ways
        ways += ["write a .zarr, which needs no second copy"] if space > needed else []
        raise BadValue(
            f"{what}, {space / GIB:.3g} GiB on disk, and {folder} has {free / GIB:.3g} GiB: {', '.join(ways)}."
        )
    held = needed * min(batch, n) // n
    if held > limit:
        fits = max(1, min(batch, n) * limit // held)
        raise BadValue(
            f"a batch of {min(batch, n)} samples over {n_steps} steps needs {held / GIB:.3g} GiB of memory, more than the "
            f"limit of {limit / GIB:.3g} GiB: use batch={fits}, {', '.join(ways)}, or raise limit=."
        )


def _projection(project: xr.Dataset | LinearMap | None, model: Model) -> tuple[LinearMap | None, tuple[int, ...]]:
    """The map as a function, and the shape of what is kept.

    Raises: BadValue where it does not give vectors, or is not linear.
    """
    if project is None:
        return None, tuple(model.shape)
    if isinstance(project, xr.Dataset):
        axes = axes_of(project, model.shape)

        def mapped(x: Tensor) -> Tensor:
            return x.flatten(1) @ axes.to(device=x.device, dtype=x.dtype).mT

        return mapped, (len(axes),)
    generator = torch.Generator().manual_seed(0)
    one, two = torch.randn(2, 3, *model.shape, generator=generator, dtype=torch.float64)
    apart, together = project(one) - 2 * project(two), project(one - 2 * two)
    if together.ndim != 2 or len(together) != 3:
        raise BadValue(f"a projection gives (batch, K) numbers, this one {tuple(together.shape)} for a batch of 3.")
    if not torch.allclose(apart.double(), together.double(), rtol=1e-4, atol=1e-5 * float(together.abs().max())):
        raise BadValue("a projection must be linear (no centre taken away, no network): f(x - 2 y) = f(x) - 2 f(y).")
    return project, tuple(together.shape[1:])


def _digest(values: Sequence[int] | None) -> str:
    return hashlib.sha256(repr(None if values is None else list(values)).encode()).hexdigest()[:16]


def _both(first: Observer, second: Observer | None) -> Observer:
    if second is None:
        return first

    def observe(*seen) -> None:
        first(*seen)
        second(*seen)

    return observe


def _count_steps(model: Model, sampler: Sampler, seeds: Seeds, labels: Labels) -> int:
    if hasattr(sampler, "n_steps"):
        return sampler.n_steps(model)
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
