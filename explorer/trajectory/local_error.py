"""How far each step misses: local truncation error of a recorded run, and curvature of the flow at a point. These ask
the model.
"""

from __future__ import annotations

from typing import Literal

import torch
import xarray as xr
from torch import Tensor

from explorer.errors import BadValue, UnknownName
from explorer.models.base import Cond, Denoiser
from explorer.process.paths import Path
from explorer.sampling.samplers import device_of, sampler_from_json
from explorer.sampling.solve import Solver, solve
from explorer.sampling.solvers import RK4, DPMpp2M, EDMStochastic
from explorer.trajectory.dataset import By, _on_steps, path_of, tensor


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


def doubled_step(
    model: Denoiser, solver: Solver, x: Tensor, x_next: Tensor, t: float, t_next: float, cond: Cond = None
) -> Tensor:
    """Estimate of a step's error vector from two steps of half the size: (full - halves) / (1 - 2^-order), (B, ...).

    Exact to leading order: the halves leave 2^-order of the full step's error. A step to t = 0 is first order there.
    Source: Hairer, Norsett & Wanner 1993, Solving Ordinary Differential Equations I, II.4.
    """
    halves = solve(model, solver, x, [t, 0.5 * (t + t_next), t_next], cond=cond)
    order = 1 if t_next == 0 else solver.order
    return (x_next - halves) / (1 - 0.5**order)


@torch.inference_mode()
def local_error(
    ds: xr.Dataset,
    model: Denoiser,
    by: By = None,
    *,
    kind: Literal["reference", "doubling"] = "reference",
    substeps: int = 16,
    batch: int = 256,
) -> xr.DataArray | xr.Dataset:
    """Local truncation error |x_next - exact step from x| of each recorded step: (sample, step), or its mean by step.

    Args:
        ds: a run of a deterministic sampler; its states, labels, path and solver are used.
        model: the model that made it.
        kind: "reference" integrates each step finely from its own start (4 substeps evaluations a step, any solver);
            "doubling" estimates it by two half steps of the same solver (2 steps' evaluations, one-step solvers).
    Returns: data units on the recorded path. Multiply nothing: errors of early steps are then carried and bent by the
        flow.
    Raises: BadValue for a stochastic run, or doubling of a multistep solver.
    """
    if kind not in ("reference", "doubling"):
        raise UnknownName("kind of local error", kind, ("reference", "doubling"))
    solver = sampler_from_json(ds.attrs["sampler"]).solver if ds.attrs["sampler"] else None
    if isinstance(solver, EDMStochastic) and solver.s_churn > 0:
        raise BadValue("the local error of a stochastic run is not defined: its steps add noise. Use s_churn = 0.")
    if kind == "doubling" and (solver is None or isinstance(solver, DPMpp2M)):
        raise BadValue("step doubling needs a recorded one-step solver; use kind='reference'.")
    path = path_of(ds)
    model, device = model.on(path), device_of(model)
    x = tensor(ds, "x").double()
    labels = None if bool((ds.label < 0).all()) else torch.as_tensor(ds.label.values)
    times = [float(t) for t in ds.t]
    out = torch.empty(x.shape[0], len(times) - 1, dtype=torch.float64)
    for lo in range(0, len(x), batch):
        rows = slice(lo, lo + batch)
        cond = None if labels is None else labels[rows].to(device)
        for i, (t, t_next) in enumerate(zip(times[:-1], times[1:], strict=True)):
            start, end = x[rows, i].to(device), x[rows, i + 1].to(device)
            if kind == "reference":
                miss = end - reference_step(model, start, t, t_next, cond, substeps=substeps)
            else:
                miss = doubled_step(model, solver, start, end, t, t_next, cond)
            out[rows, i] = miss.flatten(1).norm(dim=1).cpu()
    return _on_steps(ds, "local_error", out, f"local error ({kind})", "data unit", by)


@torch.inference_mode()
def flow_curvature(model: Denoiser, x: Tensor, t: float, cond: Cond = None, *, h: float = 1e-3) -> Tensor:
    """Curvature of the ODE path through x at t, from one Euler step of size h toward data: (B,), per data unit of
    length.

    |T(t) - T(t - h)| / |x(t) - x(t - h)| with T the unit tangent; first order in h. A point at rest gives 0.
    Source: Xu et al. 2024 (DisCo-Diff), arXiv 2407.03300.
    """
    v = model.velocity(x.double(), t, cond)
    near = x.double() - h * v
    w = model.velocity(near, t - h, cond)
    a, b = v.flatten(1), w.flatten(1)
    speed, other = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    tiny = torch.finfo(a.dtype).tiny
    turn = (a / speed.clamp_min(tiny) - b / other.clamp_min(tiny)).norm(dim=1)
    return torch.where(speed[:, 0] <= tiny, 0.0, turn / (h * speed[:, 0]).clamp_min(tiny))
