"""A recording met again with its model: the checks and the batches that every diagnostic which asks the model shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
import xarray as xr
from torch import Tensor

from explorer.errors import BadValue
from explorer.models.base import Cond, Denoiser, Oracle
from explorer.process.oracles import GaussianMixture
from explorer.process.paths import Path
from explorer.sampling.samplers import device_of, sampler_from_json
from explorer.sampling.solve import Solver, solve
from explorer.sampling.solvers import RK4
from explorer.trajectory.dataset import path_from_json, path_of, tensor

Progress = Callable[[int, int], None]
"""progress(done, total) in model evaluations times samples."""


class Part(NamedTuple):
    """Some samples of a recording on the model's device: `x` (B, T, *shape) float64, `cond` their labels or None."""

    rows: slice
    x: Tensor
    cond: Cond


def parts_of(ds: xr.Dataset, model: Denoiser, batch: int) -> Iterator[Part]:
    """The recording in batches of at most that many samples.

    Raises: BadValue where the samples are not of the model's shape, as after `project`.
    """
    shape, device = tuple(ds.x.shape[2:]), device_of(model)
    if shape != tuple(model.shape):
        why = " It was recorded through a projection, which cannot be undone." if "projected_from" in ds.attrs else ""
        raise BadValue(
            f"{model.name or 'the model'} has samples of shape {tuple(model.shape)}, the recording {shape}.{why}"
        )
    labels = None if bool((ds.label < 0).all()) else torch.as_tensor(ds.label.values)
    for lo in range(0, ds.sizes["sample"], batch):
        rows = slice(lo, lo + batch)
        x = tensor(ds.isel(sample=rows), "x").to(device=device, dtype=torch.float64)
        yield Part(rows, x, None if labels is None else labels[rows].to(device))


def times_of(ds: xr.Dataset) -> list[float]:
    """The time points as Python floats of the recorded path."""
    return [float(t) for t in ds.t]


def solver_of(ds: xr.Dataset) -> Solver | None:
    """The solver that made the recording; None where it is not known, or is not a single one."""
    return getattr(sampler_from_json(ds.attrs["sampler"]), "solver", None) if ds.attrs["sampler"] else None


def require_ode(ds: xr.Dataset, what: str) -> None:
    """Raises BadValue for a recording whose sampler adds noise on its way, for which `what` is not defined."""
    if adds_noise(ds):
        raise BadValue(
            f"{what} of a stochastic run is not defined: its steps add noise, and no ODE leads from one state to the "
            "next. Record the deterministic form of the sampler (s_churn = 0, eta = 0, no restarts)."
        )


def adds_noise(ds: xr.Dataset) -> bool:
    """Whether the sampler drew noise after the start; False where the sampler is not known."""
    return bool(ds.attrs["sampler"]) and sampler_from_json(ds.attrs["sampler"]).stochastic


def has_memory(ds: xr.Dataset) -> bool:
    """Whether the solver's steps depend on more than where they start. Asked, not looked up: a walk with a fresh start
    at every time point ends elsewhere.
    """
    solver = solver_of(ds)
    return solver is None or _has_memory(ds.attrs["sampler"], ds.attrs["path"], tuple(times_of(ds)))


def _trial(path: str) -> tuple[Denoiser, Tensor]:
    """A small problem that every solver can be tried on: two unequal modes on the line, and noise."""
    mixture = GaussianMixture(torch.tensor([[-1.0], [0.5]]), 0.3, weights=torch.tensor([1.0, 2.0]))
    return Oracle(mixture, path_from_json(path)), torch.tensor([[0.7], [-1.3]], dtype=torch.float64)


@lru_cache(maxsize=256)
@torch.inference_mode()
def _has_memory(sampler: str, path: str, times: tuple[float, ...]) -> bool:
    (model, noise), solver = _trial(path), sampler_from_json(sampler).solver
    start = noise * model.path.at(times[0])[1]
    whole, x = solve(model, solver, start, times), start
    for pair in zip(times[:-1], times[1:], strict=True):
        x = solve(model, solver, x, pair)
    return not torch.allclose(whole, x, rtol=1e-9, atol=1e-12)


def fine_times(path: Path, t: float, t_next: float, substeps: int) -> list[float]:
    """substeps + 1 times from t to t_next, evenly spaced in sigma^(1/7), which resolves the approach to sigma = 0.

    From pure noise (sigma infinite) evenly in t.
    """
    rho = 7.0
    if path.at(t)[0] == 0:
        return [t + (t_next - t) * i / substeps for i in range(substeps)] + [t_next]
    a, b = path.ratio_at(t) ** (1 / rho), path.ratio_at(t_next) ** (1 / rho)
    inner = [path.time_at((a + (b - a) * i / substeps) ** rho) for i in range(1, substeps)]
    return [t, *inner, t_next]


def reference_step(
    model: Denoiser, x: Tensor, t: float, t_next: float, cond: Cond = None, *, substeps: int = 16
) -> Tensor:
    """The flow of the model's ODE from t to t_next, by RK4 on `fine_times`: 4 substeps evaluations, error
    O(substeps^-4).
    """
    return solve(model, RK4(), x, fine_times(model.path, t, t_next, substeps), cond=cond)


def reference_evals(model: Denoiser, t: float, t_next: float, substeps: int) -> int:
    """Network evaluations per sample of one `reference_step`, guidance included."""
    times = fine_times(model.path, t, t_next, substeps)
    return sum(model.calls_at(s) for s in RK4().eval_times(times, model.path))


def path_model(ds: xr.Dataset, model: Denoiser) -> Denoiser:
    """The model on the recorded path."""
    return model.on(path_of(ds))
