"""What an adaptive run did, with names on its axes: attempts by sample, and where along the noise they were spent."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from explorer.errors import BadValue
from explorer.process.paths import Path
from explorer.sampling.seeds import Seeds
from explorer.sampling.solvers.adaptive import AdaptiveReport

STATUS = ("done", "step size underflow", "too many attempts", "not finite")


def adaptive_attempts(report: AdaptiveReport, path: Path, *, seeds: Seeds | Sequence[int] | None = None) -> xr.Dataset:
    """Every attempt of every sample: `t`, `sigma`, `size`, `error` (over the tolerance), `accepted` on (sample, attempt).

    NaN (False for `accepted`) after a sample's last attempt. On sample: `nfe`, `n_accepted`, `n_rejected`, `status` in words.

    Args:
        path: the path of the run, `sampler.path_on(model)`.
        seeds: of the samples, for the coordinate; by default their positions.
    Raises:
        BadValue: another number of seeds than of samples.
    """
    t = report.t.cpu().double().numpy()
    ids = list(seeds.ids if isinstance(seeds, Seeds) else range(len(t)) if seeds is None else seeds)
    if len(ids) != len(t):
        raise BadValue(f"the report has {len(t)} samples, but {len(ids)} seeds were given.")
    dims, units = ("sample", "attempt"), {"units": "time of the path"}
    words = np.array([STATUS[int(s)] for s in report.status])
    return xr.Dataset(
        {
            "t": (dims, t, units),
            "sigma": (dims, _sigma(t, path)),
            "size": (dims, report.size.cpu().double().numpy(), units),
            "error": (dims, report.error.cpu().double().numpy(), {"long_name": "estimated error over the tolerance"}),
            "accepted": (dims, report.accepted.cpu().numpy()),
            "nfe": ("sample", report.nfe.cpu().numpy()),
            "n_accepted": ("sample", report.n_accepted.cpu().numpy()),
            "n_rejected": ("sample", report.n_rejected.cpu().numpy()),
            "status": ("sample", words),
        },
        coords={"seed": ("sample", ids)},
        attrs={"n": len(t)},
    )


def adaptive_effort(report: AdaptiveReport, path: Path, *, n_bins: int = 24) -> xr.Dataset:
    """Where a run spent its attempts: `accepted`, `rejected` per sample and mean accepted `size` in bins of equal width in ln sigma.

    Args:
        path: the path of the run, `sampler.path_on(model)`.
    Returns:
        On `bin`, falling in sigma, with coordinates `sigma` (geometric middle), `sigma_from`, `sigma_to`; an attempt belongs to the bin it
        began in. `size` is in ln sigma, NaN where no step began; the sum of accepted times size is the whole way, ln of the ends' ratio.
    Raises:
        BadValue: fewer than one bin.
    """
    if n_bins < 1:
        raise BadValue(f"adaptive_effort needs at least one bin, got {n_bins}.")
    t = report.t.cpu().double()
    sigma = torch.as_tensor(_sigma(t.numpy(), path))
    started = sigma[torch.isfinite(sigma) & (sigma > 0)]
    ends = torch.as_tensor(_sigma((t - report.size.cpu()).clamp_min(0).numpy(), path))
    ends = ends[torch.isfinite(ends) & (ends > 0) & report.accepted.cpu()]
    high, low = float(started.max()), float(torch.cat((started, ends)).min())
    edges = np.geomspace(high * (1 + 1e-9), low * (1 - 1e-9), n_bins + 1)
    where = np.digitize(-np.log(np.where(sigma > 0, sigma, np.nan)), -np.log(edges)) - 1
    inside = np.isfinite(sigma.numpy()) & (where >= 0) & (where < n_bins)
    taken = report.accepted.cpu().numpy() & inside
    refused = ~report.accepted.cpu().numpy() & inside
    with np.errstate(divide="ignore", invalid="ignore"):
        width = np.log(sigma.numpy()) - np.log(_sigma((t - report.size.cpu()).clamp_min(0).numpy(), path))
    finite = taken & np.isfinite(width) & (width > 0)

    def count(mask: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(where[mask], None if weight is None else weight[mask], minlength=n_bins)[:n_bins]

    n = len(t)
    with np.errstate(invalid="ignore"):
        size = count(finite, width) / count(finite)
    return xr.Dataset(
        {
            "accepted": ("bin", count(taken) / n, {"long_name": "accepted steps per sample"}),
            "rejected": ("bin", count(refused) / n, {"long_name": "refused attempts per sample"}),
            "size": ("bin", size, {"long_name": "accepted step in ln sigma"}),
        },
        coords={
            "sigma": ("bin", np.sqrt(edges[1:] * edges[:-1])),
            "sigma_from": ("bin", edges[:-1]),
            "sigma_to": ("bin", edges[1:]),
        },
        attrs={
            "n": n,
            "nfe": float(report.nfe.double().mean()),
            "nfe_max": int(report.nfe.max()),
            "nfe_se": float(report.nfe.double().std()) / math.sqrt(n) if n > 1 else math.nan,
        },
    )


def _sigma(t: np.ndarray, path: Path) -> np.ndarray:
    known = {value: path.ratio_at(float(value)) for value in np.unique(t[np.isfinite(t)])}
    return np.vectorize(lambda value: known.get(value, math.nan), otypes=[float])(t)
