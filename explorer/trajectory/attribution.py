"""Which step cost you what: the error at the end of a run, split exactly over its steps. This asks the model.

Let Phi_i be the exact flow of the model's ODE from time i of the grid to its last, x_i the recorded states. Then

    x_N - Phi_0(x_0)  =  sum_i c_i,    c_i = Phi_{i+1}(x_{i+1}) - Phi_i(x_i),    Phi_N = identity,

since everything in between cancels: c_i is the error that step i makes, carried to the end by the exact flow. The sum
of the splits is the whole error to rounding, however finely the flow is integrated, because Phi_i is Phi_{i+1} after
one more interval of the same integration. Against `local_error` the difference is what the flow does afterwards: a
miss made early may be contracted to nothing, or grow where paths part.

To first order in the error, <u, c_i> = <(D Phi_{i+1})^T u, local error_i>: one sweep back through the flow gives all
steps at once ("adjoint"), at a cost linear in the number of steps instead of quadratic.

The error is that of the solver alone: that the run starts at a finite sigma, and that the network is not the exact
denoiser, belong to the reference as well.
Source: the discrete "Lady Windermere's fan" of Hairer, Norsett & Wanner 1993, Solving Ordinary Differential Equations I,
II.3, as an identity instead of a bound; adjoint weighting of local errors: Estep 1995, SIAM J. Numer. Anal. 32(1).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import xarray as xr
from torch import Tensor

from explorer.errors import BadValue, UnknownName
from explorer.models.base import Cond, Denoiser
from explorer.trajectory.dataset import By, feature_dims, mean_and_error, merged, of_samples, on_steps
from explorer.trajectory.replay import (
    Progress,
    parts_of,
    path_model,
    reference_evals,
    reference_step,
    require_ode,
    times_of,
)

Method = Literal["exact", "adjoint"]
METHODS = ("exact", "adjoint")
LONG = {
    "step_cost": "cost of the step along the final error",
    "step_norm": "size of the step's carried error",
    "local_error": "local error",
}


def attribution(
    ds: xr.Dataset,
    model: Denoiser,
    by: By = None,
    *,
    method: Method = "exact",
    substeps: int = 8,
    batch: int = 256,
    vectors: bool = False,
    progress: Progress | None = None,
) -> xr.Dataset:
    """The final error of each run split over its steps: which step cost what.

    Args:
        ds: a run of a deterministic sampler, of any solver; its states, labels and path are used.
        model: the model that made it.
        by: "step" gives means with standard errors over samples instead.
        method: "exact" carries every state to the end by the fine flow, substeps * 2 N (N + 1) evaluations per sample
            for N steps; "adjoint" transports the local errors by the linearised flow, about 8 substeps N evaluations
            and as many vector-Jacobian products of half of them, right to first order in the error.
        substeps: RK4 steps of the reference in each interval.
        vectors: also the carried errors themselves (only "exact").
        progress: told (done, total) in model evaluations times samples.
    Returns:
        (sample, step) or by step, in data units:
        `step_cost` the part of the step's carried error along the final error, signed: a negative step takes back what
            others did. Sums over steps to `final_error` ("exact"), or to it less `remainder` ("adjoint").
        `step_norm` the length of the carried error, whatever its direction (only "exact").
        `local_error` the miss of the step where it is made, on the recorded path.
        `final_error` (sample) |x_N - Phi_0(x_0)| / alpha.
        `contribution` (sample, step, ...) the vectors c_i / alpha, which sum to the error vector (with vectors=True).
        Attributes: method, substeps, `evaluations` spent per sample, `reference_error`: the mean error of the reference
        itself, by the same with half the substeps (a bound of order 4); what is smaller than it means nothing.
    Raises: BadValue for a stochastic run or one of another shape than the model's.
    """
    if method not in METHODS:
        raise UnknownName("method of attribution", method, METHODS)
    if substeps < 2 or int(substeps) != substeps:
        raise BadValue(f"the reference needs at least two substeps, got {substeps}.")
    if vectors and (method != "exact" or by is not None):
        raise BadValue("vectors are given per sample by method='exact'; the adjoint knows only their projections.")
    require_ode(ds, "the cost of a step")
    model, times = path_model(ds, model), times_of(ds)
    n, n_steps = ds.sizes["sample"], len(times) - 1
    scale = 1 / model.path.at(times[-1])[0]
    keys = ("step_cost", "step_norm", "local_error") if method == "exact" else ("step_cost", "local_error")
    steps = {key: torch.empty(n, n_steps, dtype=torch.float64) for key in keys}
    final, reference = torch.empty(2, n, dtype=torch.float64)
    fields = torch.empty(n, n_steps, *ds.x.shape[2:], dtype=torch.float64) if vectors else None
    per_sample = attribution_cost(ds, model, method=method, substeps=substeps)
    count = _Count(n * per_sample, progress)
    for rows, x, cond in parts_of(ds, model, batch):
        coarse = _carried(model, x[:, 0], times, cond, substeps // 2, count)
        if method == "exact":
            ends, local = _fan(model, x, times, cond, substeps, batch, count)
            parts = ends.diff(dim=1) * scale  # (B, N, *shape)
            steps["step_norm"][rows] = parts.flatten(2).norm(dim=2).cpu()
            if fields is not None:
                fields[rows] = parts.cpu()
            error, first = (ends[:, -1] - ends[:, 0]) * scale, ends[:, 0]
            unit, size = _direction(error)
            steps["step_cost"][rows] = torch.einsum("bnd,bd->bn", parts.flatten(2), unit).cpu()
        else:
            first = _carried(model, x[:, 0], times, cond, substeps, count)
            error = (x[:, -1] - first) * scale
            unit, size = _direction(error)
            cost, local = _pulled(model, x, times, cond, substeps, unit, count)
            steps["step_cost"][rows] = cost.cpu() * scale
        steps["local_error"][rows], final[rows] = local.cpu(), size.cpu()
        reference[rows] = ((first - coarse).flatten(1).norm(dim=1) * scale).cpu() / (2**4 - 1)
    arrays = [on_steps(ds, key, value, LONG[key], "data unit", None) for key, value in steps.items()]
    arrays.append(of_samples(ds, "final_error", final, "final error", "data unit"))
    if method == "adjoint":
        left = final - steps["step_cost"].sum(dim=1)
        arrays.append(of_samples(ds, "remainder", left, "beyond first order", "data unit"))
    if by is None:
        out = merged(arrays)
        if fields is not None:
            dims = ("sample", "step", *feature_dims(ds.x.shape[2:]))
            out["contribution"] = (dims, fields.numpy(), {"long_name": "carried error", "units": "data unit"})
    elif by == "step":
        out = merged([mean_and_error(array) for array in arrays])
    else:
        raise UnknownName("grouping", by, ("step",))
    return out.assign_attrs(
        n=n,
        method=method,
        substeps=substeps,
        evaluations=per_sample,
        reference_error=float(reference.mean()),
        model=ds.attrs["model"],
        sampler=ds.attrs["sampler"],
    )


def attribution_cost(ds: xr.Dataset, model: Denoiser, *, method: Method = "exact", substeps: int = 8) -> int:
    """Model evaluations per sample that `attribution` will spend, guidance included; vector-Jacobian products count two."""
    model, times = path_model(ds, model), times_of(ds)
    pairs = list(zip(times[:-1], times[1:], strict=True))
    fine = [reference_evals(model, *pair, substeps) for pair in pairs]
    check = sum(reference_evals(model, *pair, substeps // 2) for pair in pairs)
    if method == "exact":
        return check + sum((i + 1) * cost for i, cost in enumerate(fine))
    return check + sum(fine) + 3 * sum(fine)


class _Count:
    """Evaluations done so far, told to the caller."""

    def __init__(self, total: int, tell: Progress | None):
        self.done, self.total, self.tell = 0, total, tell

    def add(self, evaluations: int) -> None:
        self.done += evaluations
        if self.tell is not None:
            self.tell(self.done, self.total)


@torch.inference_mode()
def _fan(
    model: Denoiser, x: Tensor, times: list[float], cond: Cond, substeps: int, batch: int, count: _Count
) -> tuple[Tensor, Tensor]:
    """Phi_i(x_i) for i = 0 to N: (B, N + 1, *shape), and the length of each local error: (B, N).

    All states that have started go through an interval together, in batches.
    """
    n, n_times = x.shape[:2]
    shape, local = x.shape[2:], []
    under_way = x[:, :0]
    for i in range(n_times - 1):
        under_way = torch.cat((under_way, x[:, i : i + 1]), dim=1)
        rows = under_way.flatten(0, 1)
        labels = None if cond is None else cond.repeat_interleave(i + 1)
        moved = []
        for lo in range(0, len(rows), batch):
            part = rows[lo : lo + batch]
            given = None if labels is None else labels[lo : lo + batch]
            moved.append(reference_step(model, part, times[i], times[i + 1], given, substeps=substeps))
            count.add(len(part) * reference_evals(model, times[i], times[i + 1], substeps))
        under_way = torch.cat(moved).reshape(n, i + 1, *shape)
        local.append((x[:, i + 1] - under_way[:, i]).flatten(1).norm(dim=1))
    return torch.cat((under_way, x[:, -1:]), dim=1), torch.stack(local, dim=1)


@torch.inference_mode()
def _carried(model: Denoiser, x: Tensor, times: list[float], cond: Cond, substeps: int, count: _Count) -> Tensor:
    """Phi_0(x): (B, *shape)."""
    for t, t_next in zip(times[:-1], times[1:], strict=True):
        x = reference_step(model, x, t, t_next, cond, substeps=substeps)
        count.add(len(x) * reference_evals(model, t, t_next, substeps))
    return x


def _pulled(
    model: Denoiser, x: Tensor, times: list[float], cond: Cond, substeps: int, unit: Tensor, count: _Count
) -> tuple[Tensor, Tensor]:
    """Projections of the local errors, transported to the end by the linearised flow, on unit vectors there: (B, N);
    and the lengths of the local errors: (B, N).
    """
    weight, cost, local = unit.reshape(x[:, 0].shape), [], []
    for i in reversed(range(len(times) - 1)):
        t, t_next = times[i], times[i + 1]
        with torch.inference_mode(False), torch.enable_grad():
            start = x[:, i].clone().requires_grad_()
            reached = reference_step(model, start, t, t_next, cond, substeps=substeps)
            miss = x[:, i + 1] - reached.detach()
            cost.append((weight * miss).flatten(1).sum(dim=1))
            local.append(miss.flatten(1).norm(dim=1))
            if i and reached.requires_grad:
                (weight,) = torch.autograd.grad(reached, start, weight.clone())
        count.add(3 * len(x) * reference_evals(model, t, t_next, substeps))
    return torch.stack(cost[::-1], dim=1), torch.stack(local[::-1], dim=1)


def _direction(error: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors (B, D) and lengths (B,) of error vectors; a zero error has the direction 0."""
    flat = error.flatten(1)
    size = flat.norm(dim=1)
    return flat / size.clamp_min(math.sqrt(torch.finfo(flat.dtype).tiny))[:, None], size
