"""Which noise becomes which sample: the coupling a sampler realises, its cost, comparisons on the same noise, and reflow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from explorer.errors import BadValue
from explorer.models.base import Cond, Denoiser, as_denoiser
from explorer.process.couplings import Pairs, pairs_of
from explorer.process.paths import Linear
from explorer.sampling import Heun, TimeGrid, solve
from explorer.sampling.solve import Solver
from explorer.trajectory import geometry
from explorer.trajectory.dataset import data_of, feature_dims, moved, noise_of, tensor, trajectory


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


def pairs_dataset(pairs: Pairs, name: str = "") -> xr.Dataset:
    """Pairs of any coupling in the form of `endpoints`: `noise`, `data` (sample, ...), `cost` (sample); for figures and comparisons."""
    dims = ("sample", *feature_dims(pairs.noise.shape[1:]))
    n = len(pairs.cost)
    label = np.full(n, -1, dtype=np.int64) if pairs.labels is None else pairs.labels.numpy(force=True)
    return xr.Dataset(
        {
            "noise": (dims, pairs.noise.double().numpy(force=True)),
            "data": (dims, pairs.data.double().numpy(force=True)),
            "cost": ("sample", pairs.cost.numpy(force=True), {"units": "data unit^2"}),
        },
        coords={"seed": ("sample", np.arange(n)), "label": ("sample", label)},
        attrs={"n": n, "model": name, "nfe": -1},
    )


def reflow_pairs(ds: xr.Dataset) -> Pairs:
    """The noise and the samples of a run as pairs, the coupling that the next rectified flow is trained on.

    A run of few steps bakes its error into the pairs: its samples, not the data, become the data. Labels come along where the run
    had classes.
    Source: Liu et al. 2022, arXiv 2209.03003, Alg. 1 (Reflow).
    """
    label = torch.as_tensor(ds.label.values)
    return pairs_of(noise_of(ds), data_of(ds), None if bool((label < 0).any()) else label)


def pair_flow(noise: Tensor, data: Tensor, blur: float, *, name: str = "flow of pairs") -> Denoiser:
    """The exact flow of a finite set of pairs, without training: what a network fitted to them by flow matching would learn.

    Points x_t = (1 - t) x0 + t eps + blur xi, xi ~ N(0, I), have the marginal velocity

        v(x, t) = sum_i w_i (eps_i - x0_i),   w_i proportional to exp(-|x - (1 - t) x0_i - t eps_i|^2 / (2 blur^2))

    It carries the noise points, blurred, to the data points, blurred. The blur stands for what a finite network and finite data smooth
    over: far below the distance between neighbours every particle follows the pair nearest to it.

    Args:
        noise, data: (P, ...) pairs; blur: standard deviation in data units, positive.
    Returns: a model on the linear path that takes time 0 to 1. Cost of a call: B P D.
    Source: Tong et al. 2024, arXiv 2302.00482, Eq. 14 (the path with a blur; its target is eps - x0 unchanged).
    """
    if not blur > 0:
        raise BadValue(f"the blur of a flow of pairs must be positive, in data units; got {blur}.")
    pairs_of(noise, data)
    shape = tuple(data.shape[1:])
    x1, x0 = geometry.flat(noise, 1), geometry.flat(data, 1)
    target = x1 - x0

    def velocity(x: Tensor, t, cond: Cond) -> Tensor:
        if isinstance(t, Tensor) and t.numel() > 1:
            raise BadValue("a flow of pairs is asked at one time per call.")
        t = float(t)
        flat = x.flatten(1).double()
        centre = torch.lerp(x0, x1, t)
        # -|x - c|^2 / 2 up to what does not depend on the pair
        score = torch.addmm(-0.5 * centre.square().sum(dim=1), flat, centre.T) / blur**2
        return (score.softmax(dim=1) @ target).reshape(x.shape).to(x.dtype)

    return as_denoiser(velocity, "velocity", Linear(), shape, t_range=(0.0, 1.0), name=name)


def run_from(
    model: Denoiser,
    noise: Tensor,
    *,
    n_steps: int = 100,
    solver: Solver | None = None,
    times: Sequence[float] | None = None,
) -> xr.Dataset:
    """A recorded run of the linear path's ODE from *given* starting points, uniform steps from t = 1 to 0: a trajectory dataset.

    `record` starts from the standard normal noise of seeds; here the noise may be of any law (another data set, pairs).

    Args: noise: (S, ...); times: falling times of the linear path instead; solver: `Heun()` by default.
    """
    model = model.on(Linear())
    times = list(times) if times is not None else [1 - i / n_steps for i in range(n_steps)] + [0.0]
    TimeGrid(tuple(times), "t").on(Linear())  # refuses what is no grid
    rows = [noise.double()]
    with torch.inference_mode():
        solve(model, solver or Heun(), rows[0], times, observe=lambda i, t, s, x, step: rows.append(step.x.clone()))
    return trajectory({"x": torch.stack(rows, dim=1)}, times, Linear(), model=model.name)


def reflow(
    model: Denoiser,
    noise: Tensor,
    data: Tensor,
    *,
    rounds: int = 3,
    blur: float,
    n_steps: int = 100,
    solver: Solver | None = None,
) -> xr.Dataset:
    """Rectified flow again and again without training: where the cost goes in each round, on held-out points.

    Round 1 is the given model, an exact one (or trained) for the independent coupling; round k + 1 is the `pair_flow` of the noise and
    the samples of round k. Half of the points makes the pairs, the other half is measured.

    Args:
        noise, data: (S, ...) independent points, S even; noise must be what the model takes at t = 1, data its law.
        rounds: at least 1; blur: of the flows of pairs, in data units.
    Returns:
        By round (from 1): `cost` C_k = E|eps - x0|^2 of the coupling that flow k is the flow of, and where it goes: `chord`
        E|D|^2 (the cost of the next round), `straightness` S, `conflict` V, and the `residual` of C = |D|^2 + S + V, zero
        for an exact flow, so a measure of blur and finite pairs here; `one_step` E|x - x_1|, the distance between the end
        of the fine run and that of a single Euler step; `crossings`, the share of pairs of lines of the coupling that
        cross (in the plane). Each but the last with `_se`. Attribute n (points measured).
    Sources: Liu et al. 2022, arXiv 2209.03003, Theorem 3.7 (S summed over rounds is bounded by the first cost).
    """
    if len(noise) != len(data) or len(noise) < 4:
        raise BadValue(f"reflow needs as many noise as data points, at least 4, got {len(noise)} and {len(data)}.")
    if rounds < 1:
        raise BadValue(f"reflow takes at least one round, got {rounds}.")
    noise, data = noise.double(), data.double()
    half = len(noise) // 2
    making, measured = (noise[:half], data[:half]), (noise[half:], data[half:])
    flow, table = model.on(Linear()), []
    planar = noise[0].numel() == 2
    for k in range(rounds):
        if k:
            flow = pair_flow(*making, blur, name=f"{model.name or 'model'}, reflow {k}")
        run = run_from(flow, measured[0], n_steps=n_steps, solver=solver)
        row = budget_of(run, flow, *measured)
        once = run_from(flow, measured[0], n_steps=1)
        row["one_step"] = geometry.flat(data_of(run) - data_of(once), 1).norm(dim=1)
        said = {name: (float(v.mean()), float(v.std()) / math.sqrt(len(v))) for name, v in row.items()}
        crossed = (
            len(geometry.line_crossings(*measured).pairs) / (len(measured[0]) * (len(measured[0]) - 1) / 2)
            if planar
            else math.nan
        )
        table.append((said, crossed))
        if k + 1 < rounds:
            ends = data_of(run_from(flow, making[0], n_steps=n_steps, solver=solver))
            making, measured = (making[0], ends), (measured[0], data_of(run))
    names = list(table[0][0])
    variables = {}
    for name in names:
        unit = {"units": "data unit" if name == "one_step" else "data unit^2"}
        variables[name] = ("round", [said[name][0] for said, _ in table], unit)
        variables[f"{name}_se"] = ("round", [said[name][1] for said, _ in table], unit)
    variables["crossings"] = ("round", [crossed for _, crossed in table], {"units": "1"})
    return xr.Dataset(
        variables, {"round": np.arange(1, rounds + 1)}, {"n": len(noise) - half, "blur": blur, "n_steps": n_steps}
    )


def budget_of(run: xr.Dataset, model: Denoiser, noise: Tensor, data: Tensor, *, n_times: int = 50) -> dict[str, Tensor]:
    """Per sample, (S,): `cost`, `chord`, `straightness`, `conflict` and `residual` of a coupling and of a run of its flow.

    Only the means obey C = |D|^2 + S + V. `budget` is the same for a run and independent data.
    """
    line = moved(run, Linear())
    parts = {
        "cost": geometry.coupling_cost(noise, data),
        "chord": geometry.flat(noise_of(run) - data_of(run), 1).square().sum(dim=1),
        "straightness": geometry.straightness(tensor(line, "x"), torch.as_tensor(line.t.values)),
        "conflict": torch.as_tensor(intersection(model, noise, data, n_times=n_times).per_sample.values),
    }
    parts["residual"] = parts["cost"] - parts["chord"] - parts["straightness"] - parts["conflict"]
    return parts


def conflict_map(
    ends: xr.Dataset, *, t: float | None = None, n_bins: int = 40, n_neighbours: int = 4, n_times: int = 15
) -> xr.Dataset:
    """Where in the plane the lines of a coupling disagree: nearest-neighbour conflict of velocities, by place.

    At each point of the lines, half the mean squared difference between its velocity eps - x0 and those of its nearest neighbours at
    the same time, averaged over the points in each cell; an estimate of the local conditional variance E|(eps - x0) - v|^2.

    Args:
        ends: `endpoints(run)`, `pairs_dataset(pairs)` or a recording, two-dimensional.
        t: one time of the linear path, or None for all, `n_times` of them.
    Returns: `conflict` and `count` (y, x), NaN where no point came; attributes n, mean (over points, not cells), t.
    """
    noise, data = (ends_of(ends)[k] for k in (0, 1))
    if noise.ndim != 2 or noise.shape[1] != 2:
        raise BadValue(f"a map of conflict is drawn in the plane, points have shape {tuple(noise.shape[1:])}.")
    if t is not None and not 0 < t < 1:
        raise BadValue(f"a time of the linear path between data 0 and noise 1 is needed, got {t}.")
    if len(noise) < 2:
        raise BadValue("conflict between neighbours needs at least two lines.")
    times = [t] if t is not None else [(i + 0.5) / n_times for i in range(n_times)]
    target, k = noise - data, min(n_neighbours, len(noise) - 1)
    places, values = [], []
    for s in times:
        x = torch.lerp(data, noise, s)
        near = torch.cdist(x, x).fill_diagonal_(torch.inf).topk(k, largest=False).indices
        values.append((target[near] - target[:, None]).square().sum(dim=-1).mean(dim=1) / 2)
        places.append(x)
    place, value = torch.cat(places).numpy(), torch.cat(values).numpy()
    low, high = place.min(axis=0), place.max(axis=0)
    middle, reach = (low + high) / 2, max(float((high - low).max()) / 2, 1e-12) * 1.02
    edges = [np.linspace(m - reach, m + reach, n_bins + 1) for m in middle]
    count, _, _ = np.histogram2d(place[:, 1], place[:, 0], bins=edges[::-1])
    total, _, _ = np.histogram2d(place[:, 1], place[:, 0], bins=edges[::-1], weights=value)
    mean = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    centres = [(e[1:] + e[:-1]) / 2 for e in edges]
    return xr.Dataset(
        {
            "conflict": (("y", "x"), mean, {"long_name": "conflict of velocities", "units": "data unit^2"}),
            "count": (("y", "x"), count.astype(np.int64)),
        },
        {"x": centres[0], "y": centres[1]},
        {"n": len(noise), "mean": float(value.mean()), "t": math.nan if t is None else t, "n_neighbours": k},
    )


def ends_of(ends: xr.Dataset) -> tuple[Tensor, Tensor]:
    """Noise and data (S, ...) float64 of a recording or of end points."""
    if "noise" in ends and "data" in ends:
        return tuple(torch.as_tensor(ends[name].values).double() for name in ("noise", "data"))
    return noise_of(ends), data_of(ends)
