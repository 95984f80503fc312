"""Which noise becomes which sample: the coupling a sampler realises, its cost, and comparisons on the same noise."""

from __future__ import annotations

import math

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from explorer.errors import BadValue
from explorer.models.base import Cond, Denoiser
from explorer.process.paths import Linear
from explorer.trajectory import geometry
from explorer.trajectory.dataset import data_of, feature_dims, moved, noise_of, tensor


def endpoints(ds: xr.Dataset) -> xr.Dataset:
    """The noise-to-sample map of a run: `noise` and `data` (sample, ...), `cost` |eps - x0|^2 (sample)."""
    noise, data = noise_of(ds), data_of(ds)
    dims = ("sample", *feature_dims(noise.shape[1:]))
    return xr.Dataset(
        {
            "noise": (dims, noise.numpy()),
            "data": (dims, data.numpy()),
            "cost": ("sample", geometry.coupling_cost(noise, data).numpy(), {"units": "data unit^2"}),
        },
        coords={"seed": ds.seed, "label": ds.label},
        attrs={"n": ds.sizes["sample"], "model": ds.attrs["model"], "nfe": ds.attrs["nfe"]},
    )


def end_distance(ds: xr.Dataset, other: xr.Dataset) -> xr.DataArray:
    """|x0 - x0'| per sample between two runs from the same noise: (sample), data units.

    One run of many steps and one of a single step give the sampling discrepancy E|x_multi - x_one|.
    Raises: BadValue when seeds or labels differ: such samples cannot be paired.
    """
    if not np.array_equal(ds.seed, other.seed) or not np.array_equal(ds.label, other.label):
        raise BadValue("the two runs have different seeds or labels, so their samples cannot be compared one by one.")
    gap = (geometry.flat(data_of(ds), 1) - geometry.flat(data_of(other), 1)).norm(dim=1)
    attrs = {
        "long_name": "distance between end points",
        "units": "data unit",
        "nfe": [ds.attrs["nfe"], other.attrs["nfe"]],
    }
    return xr.DataArray(
        gap.numpy(), dims="sample", coords={"seed": ds.seed, "label": ds.label}, name="end_distance", attrs=attrs
    )


def optimal_cost(noise: Tensor, data: Tensor) -> float:
    """Mean |eps - x0|^2 under the best pairing of these points: W2^2 of the two empirical distributions.

    No coupling of these same points costs less. Against the W2^2 of the distributions it is biased upward. Time O(n^3).
    """
    from explorer.metrics.points import wasserstein2  # its package needs scipy.stats, seconds to import

    return wasserstein2(geometry.flat(noise, 1).numpy(force=True), geometry.flat(data, 1).numpy(force=True))


def path_energy(ds: xr.Dataset) -> xr.DataArray:
    """int |dx/dt|^2 over unit time on the linear path: (sample), data units squared. |D|^2 + S, at least |D|^2."""
    line = moved(ds, Linear())
    x, t = tensor(line, "x"), torch.as_tensor(line.t.values)
    energy = geometry.straightness(x, t) + geometry.chord(x).square().sum(dim=1)
    attrs = {"long_name": "path energy", "units": "data unit^2"}
    return xr.DataArray(energy.numpy(), dims="sample", coords={"seed": ds.seed}, name="path_energy", attrs=attrs)


def normalised_path_energy(ds: xr.Dataset) -> float:
    """|E int |v|^2 dt - W2^2| / W2^2, W2 between the run's own noise and samples: 0 for an optimal, straight flow.

    Source: Tong et al. 2024, arXiv 2302.00482.
    """
    best = optimal_cost(noise_of(ds), data_of(ds))
    return abs(float(path_energy(ds).mean()) - best) / best


@torch.inference_mode()
def intersection(
    model: Denoiser, noise: Tensor, data: Tensor, cond: Cond = None, *, n_times: int = 50, t_min: float = 1e-3
) -> xr.Dataset:
    """Degree of intersection of a coupling under a model's velocity: `conflict` (time) and its mean in the attributes.

    V = int E|(eps - x0) - v(x_t, t)|^2 dt on the linear path, by the midpoint rule on [t_min, 1 - t_min]: with the
    exact velocity the irreducible flow-matching loss of the coupling, with a trained one its loss.

    Args: noise, data: (S, ...) pairs.
    Source: Lee et al. 2023, arXiv 2301.12003.
    """
    model = model.on(Linear())
    noise, data = noise.double(), data.double()
    target = noise - data
    times = t_min + (1 - 2 * t_min) * (torch.arange(n_times, dtype=torch.float64) + 0.5) / n_times
    per_sample = []
    for t in times.tolist():
        gap = target - model.velocity((1 - t) * data + t * noise, t, cond).double()
        per_sample.append(gap.flatten(1).square().sum(dim=1))
    gaps = torch.stack(per_sample, dim=1)  # (S, T)
    n, whole = len(gaps), gaps.mean(dim=1)
    attrs = {"long_name": "E|(eps - x0) - v|^2", "units": "data unit^2"}
    return xr.Dataset(
        {
            "conflict": ("time", gaps.mean(dim=0).numpy(), attrs),
            "conflict_se": ("time", (gaps.std(dim=0) / math.sqrt(n)).numpy(), attrs),
            "per_sample": ("sample", whole.numpy(), attrs),
        },
        coords={"t": ("time", times.numpy()), "sigma": ("time", (times / (1 - times)).numpy())},
        attrs={"n": n, "mean": float(whole.mean()), "std_error": float(whole.std() / math.sqrt(n))},
    )


def budget(ds: xr.Dataset, model: Denoiser, data: Tensor, cond: Cond = None, *, n_times: int = 50) -> xr.Dataset:
    """Where the cost of the training coupling goes: E|eps - x0|^2 = E|D|^2 + S + V, exact for the exact velocity.

    Args:
        ds: a fine run of the model (100 steps or more: S is biased low on few).
        data: (S, ...) data points, paired with the run's own noise in this order (independent of it).
        cond: their labels.
    Returns: numbers `cost`, `chord`, `straightness`, `conflict`, `residual`, each with `<name>_se`; attribute n.
    """
    noise = noise_of(ds)
    if len(data) != len(noise):
        raise BadValue(f"one data point per recorded sample is needed: {len(noise)}, got {len(data)}.")
    line = moved(ds, Linear())
    x, t = tensor(line, "x"), torch.as_tensor(line.t.values)
    parts = {
        "cost": geometry.coupling_cost(noise, data),
        "chord": geometry.flat(noise - data_of(ds), 1).square().sum(dim=1),
        "straightness": geometry.straightness(x, t),
        "conflict": torch.as_tensor(intersection(model, noise, data, cond, n_times=n_times).per_sample.values),
    }
    parts["residual"] = parts["cost"] - parts["chord"] - parts["straightness"] - parts["conflict"]
    values = {}
    for name, value in parts.items():
        values[name] = ((), float(value.mean()), {"units": "data unit^2"})
        values[f"{name}_se"] = ((), float(value.std() / math.sqrt(len(value))), {"units": "data unit^2"})
    return xr.Dataset(values, attrs={"n": len(noise)})
