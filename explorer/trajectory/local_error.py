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
from explorer.sampling.solve import Solver, solve
from explorer.trajectory.dataset import By, on_steps
from explorer.trajectory.replay import (
    fine_times,
    has_memory,
    parts_of,
    path_model,
    reference_step,
    require_ode,
    solver_of,
    times_of,
)

__all__ = ["doubled_step", "fine_times", "flow_curvature", "local_error", "reference_step"]


def doubled_step(
    model: Denoiser, solver: Solver, x: Tensor, x_next: Tensor, t: float, t_next: float, cond: Cond = None
) -> Tensor:
    """Estimate of a step's error vector from two steps of half the size: (full - halves) / (1 - 2^-order), (B, ...).

    Exact to leading order: the halves leave 2^-order of the full step's error. A step to t = 0 is taken by whatever the
    method falls back to there, whose order nobody promises: it is measured, by four quarter steps (Aitken).
    Source: Hairer, Norsett & Wanner 1993, Solving Ordinary Differential Equations I, II.4.
    """
    halves = solve(model, solver, x, [t, 0.5 * (t + t_next), t_next], cond=cond)
    gap = x_next - halves
    if t_next != 0:
        return gap / (1 - 0.5**solver.order)
    quarters = solve(model, solver, x, [t, 0.75 * t, 0.5 * t, 0.25 * t, 0.0], cond=cond)
    first, second = (v.flatten(1).norm(dim=1).mean() for v in (gap, halves - quarters))
    ratio = (first / second.clamp_min(torch.finfo(first.dtype).tiny)).clamp(2.0, 2.0 ** (solver.order + 1))
    return gap * (ratio / (ratio - 1))


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
        flow (see `attribution`).
    Raises: BadValue for a stochastic run, or doubling of a solver whose steps depend on those before.
    """
    if kind not in ("reference", "doubling"):
        raise UnknownName("kind of local error", kind, ("reference", "doubling"))
    require_ode(ds, "the local error")
    solver = solver_of(ds)
    if kind == "doubling" and has_memory(ds):
        named = "a run whose solver is not known" if solver is None else type(solver).__name__
        raise BadValue(
            f"step doubling needs a recorded one-step solver, and this is {named}: a step taken by itself is not the "
            "step that was recorded. Use kind='reference'."
        )
    model, times = path_model(ds, model), times_of(ds)
    out = torch.empty(ds.sizes["sample"], len(times) - 1, dtype=torch.float64)
    for rows, x, cond in parts_of(ds, model, batch):
        for i, (t, t_next) in enumerate(zip(times[:-1], times[1:], strict=True)):
            if kind == "reference":
                miss = x[:, i + 1] - reference_step(model, x[:, i], t, t_next, cond, substeps=substeps)
            else:
                miss = doubled_step(model, solver, x[:, i], x[:, i + 1], t, t_next, cond)
            out[rows, i] = miss.flatten(1).norm(dim=1).cpu()
    return on_steps(ds, "local_error", out, f"local error ({kind})", "data unit", by)


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
