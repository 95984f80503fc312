"""Noise-to-sample maps compared on the same noise: how far apart two samplers or models send a point, and who changes place.

A *map* is given as a recording (`record`), as the end points of one (`endpoints`, `pairs_dataset`), or as a tensor of end
points (S, ...) in the order of the same noise. Legend: S samples, R runs, K sites.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from explorer.errors import BadValue
from explorer.metrics.base import Estimate, plus_minus, verdict
from explorer.trajectory import geometry
from explorer.trajectory.dataset import data_of, feature_dims, noise_of

Ends = xr.Dataset | Tensor | np.ndarray
Where = Tensor | np.ndarray | Callable[[Tensor], Tensor]
"""How to tell sites apart: reference points (K, ...), a sample belonging to the nearest, or a function (S, ...) -> (S,) int."""


class _Map(NamedTuple):
    data: Tensor  # (S, ...) float64
    noise: Tensor | None
    seed: np.ndarray
    label: np.ndarray


def compare_maps(
    a: Ends, b: Ends, *, names: Sequence[str] = ("A", "B"), where: Where | None = None, n_neighbours: int = 5
) -> xr.Dataset:
    """Two noise-to-sample maps side by side, sample by sample and in summary, each number with its error.

    Args:
        a, b: maps of the same noise in the same order.
        names: of the two, for the `run` coordinate and the verdict.
        where: reference points (modes of a mixture, training images) or a classifier; gives `site` and `swapped`.
        n_neighbours: k of `neighbours_kept`.
    Returns:
        Per sample: `distance` |x - x'| in data units; `relative`, the same over the root mean square distance of two
        unrelated ends (sqrt(2 tr Cov), pooled over both runs and taken as given), so 0 is the same map and about 1 none
        in common; `nearest`, the position of the end of b nearest to this end of a, and `identity_swap` where that is
        another sample's (it depends on S: more samples crowd closer); `neighbours_kept`, the share of the k nearest
        ends among a's own that are also among the k nearest in b; with noise known, `cost` (run, sample)
        |eps - x0|^2; with `where`, `site` (run, sample) and `swapped`.
        Summary, each with `<name>_se`: `mean_distance`, `mean_relative`, `identity_swap_rate`, `mean_neighbours_kept`,
        `swap_rate`, `cost_difference` (a - b, paired), `cost_rank_correlation` (Spearman: is what is dear for one dear for the
        other; error by Bonett & Wright 2000). `rank_correlation` (feature dims): Spearman's of each coordinate of the
        ends; 1 for any two monotone maps on the line. Attribute n.
    Raises: BadValue when the samples cannot be paired: other seeds, labels, shapes, or fewer than two.
    Time O(S^2).
    """
    one, two = _paired({names[0]: a, names[1]: b})
    x, y = geometry.flat(one.data, 1), geometry.flat(two.data, 1)
    n = len(x)
    distance = (x - y).norm(dim=1)
    scale = math.sqrt(float(x.var(dim=0).sum() + y.var(dim=0).sum()))
    nearest = _nearest(x, y)[:, 0]
    k = min(n_neighbours, n - 1)
    kept = _overlap(_nearest(x, x, k, others=True), _nearest(y, y, k, others=True))
    unit = {"units": "data unit"}
    per_sample = {
        "distance": ("sample", distance.numpy(), {"long_name": "distance between the ends", **unit}),
        "relative": ("sample", (distance / scale).numpy() if scale else np.zeros(n), {"units": "1"}),
        "nearest": ("sample", nearest.numpy()),
        "identity_swap": ("sample", (nearest != torch.arange(n)).numpy()),
        "neighbours_kept": ("sample", kept.numpy()),
    }
    summary = {
        **_mean("mean_distance", distance, unit),
        **_mean("mean_relative", torch.as_tensor(per_sample["relative"][1])),
        **_mean("mean_neighbours_kept", kept),
        **_share("identity_swap_rate", per_sample["identity_swap"][1]),
    }
    dims = feature_dims(one.data.shape[1:])
    ranks = np.array([_spearman(x[:, i], y[:, i]) for i in range(x.shape[1])]).reshape(one.data.shape[1:])
    summary["rank_correlation"] = (dims, ranks)
    if one.noise is not None and two.noise is not None:
        cost = torch.stack([geometry.coupling_cost(m.noise, m.data) for m in (one, two)])
        per_sample["cost"] = (("run", "sample"), cost.numpy(), {"units": "data unit^2"})
        summary |= _mean("cost_difference", cost[0] - cost[1], {"units": "data unit^2"})
        r = _spearman(*cost)
        summary["cost_rank_correlation"] = ((), r)
        summary["cost_rank_correlation_se"] = ((), (1 - r * r) * math.sqrt((1 + r * r / 2) / max(n - 3, 1)))
    if where is not None:
        site = torch.stack([_sites(m.data, where) for m in (one, two)])
        per_sample["site"] = (("run", "sample"), site.numpy())
        per_sample["swapped"] = ("sample", (site[0] != site[1]).numpy())
        summary |= _share("swap_rate", per_sample["swapped"][1])
    coords = {"run": list(names), "seed": ("sample", one.seed), "label": ("sample", one.label)}
    return xr.Dataset(per_sample | summary, coords, {"n": n, "scale": scale, "n_neighbours": k})


def map_verdict(comparison: xr.Dataset) -> str:
    """One sentence on two maps, from `compare_maps`: distance, swaps, and whose coupling is cheaper on the same noise."""
    a, b = (str(name) for name in comparison.run.values)
    n = int(comparison.attrs["n"])

    def shown(name: str, times: float = 1.0) -> str:
        return plus_minus(times * float(comparison[name]), times * float(comparison[f"{name}_se"]))

    said = (
        f"under {a} and {b} the same noise ends {shown('mean_distance')} apart, "
        f"{shown('mean_relative', 100)} % of the distance between unrelated samples"
    )
    if "swap_rate" in comparison:
        said += f"; {shown('swap_rate', 100)} % change site"
    if "cost_difference" in comparison:
        value, error = float(comparison.cost_difference), float(comparison.cost_difference_se)
        said += f"; coupling cost: {verdict(Estimate(value, error, n), a, b)}"
    return f"{said} (n = {n})"


def disagreement(runs: Mapping[str, Ends], *, where: Where | None = None) -> xr.Dataset:
    """How far any two of several maps are apart: `distance`, `relative`, with `where` `swap_rate`, each (run, other) with `_se`.

    The diagonal is 0. Attributes: n. Raises: as `compare_maps`.
    """
    maps = _paired(runs)
    names, n = list(runs), len(maps[0].data)
    ends = [geometry.flat(m.data, 1) for m in maps]
    sites = None if where is None else [_sites(m.data, where) for m in maps]
    kinds = ["distance", "relative"] + (["swap_rate"] if sites else [])
    table = {f"{kind}{suffix}": np.zeros((len(runs), len(runs))) for kind in kinds for suffix in ("", "_se")}
    for i in range(len(runs)):
        for j in range(i + 1, len(runs)):
            gap = (ends[i] - ends[j]).norm(dim=1)
            scale = math.sqrt(float(ends[i].var(dim=0).sum() + ends[j].var(dim=0).sum())) or math.inf
            found = {**_mean("distance", gap), **_mean("relative", gap / scale)}
            if sites:
                found |= _share("swap_rate", (sites[i] != sites[j]).numpy())
            for name, (_, value, *_) in found.items():
                table[name][i, j] = table[name][j, i] = value
    data = {name: (("run", "other"), value) for name, value in table.items()}
    return xr.Dataset(data, {"run": names, "other": names}, {"n": n})


def microscope(
    runs: Mapping[str, Ends], mask: np.ndarray | Tensor | Sequence, *, where: Where | None = None
) -> xr.Dataset:
    """Where each run sends a chosen handful of noise points.

    Args:
        runs: at least one map with its noise, all of the same noise in the same order.
        mask: (S,) booleans, or positions of the chosen samples; `lasso` makes one from a drawn polygon.
        where: see `compare_maps`; gives `site` and `site_share`.
    Returns:
        Of the chosen ones, in the order of the samples: `noise` (sample, ...), `data` (run, sample, ...), `cost` (run, sample), `distance`
        (run, sample) to the end under the first run; of the others, for the background: `noise_other` (other, ...),
        `data_other` (run, other, ...). By run: `spread`, the root mean square distance of the chosen ends from their mean;
        `stretch`, the same over that of the noise (NaN for one point); `mean_cost`, `mean_distance` with `_se`;
        `site_share` (run, site). Coordinates seed, label, index (position in the run) on sample; attributes n, n_total.
    Raises: BadValue for an empty selection, a mask that does not fit, or runs that cannot be paired.
    """
    maps, names = _paired(runs, at_least=1), list(runs)
    if any(m.noise is None for m in maps):
        raise BadValue(
            "the microscope needs the noise of each run: give recordings or endpoints(...), not bare end points."
        )
    total = len(maps[0].data)
    index = _positions(mask, total)
    rest = np.setdiff1d(np.arange(total), index)
    dims = feature_dims(maps[0].data.shape[1:])
    noise, data = maps[0].noise, torch.stack([m.data for m in maps])
    chosen, ends = noise[index], data[:, index]
    flat_ends = geometry.flat(ends)
    distance = (flat_ends - flat_ends[:1]).norm(dim=-1)
    cost = torch.stack([geometry.coupling_cost(chosen, e) for e in ends])
    spread = _rms(flat_ends)
    noise_spread = float(_rms(geometry.flat(chosen, 1)[None]))
    n = len(index)
    variables = {
        "noise": (("sample", *dims), chosen.numpy()),
        "data": (("run", "sample", *dims), ends.numpy()),
        "cost": (("run", "sample"), cost.numpy(), {"units": "data unit^2"}),
        "distance": (("run", "sample"), distance.numpy(), {"units": "data unit"}),
        "noise_other": (("other", *dims), noise[rest].numpy()),
        "data_other": (("run", "other", *dims), data[:, rest].numpy()),
        "spread": ("run", spread.numpy(), {"units": "data unit"}),
        "stretch": ("run", (spread / noise_spread).numpy() if noise_spread else np.full(len(names), np.nan)),
    }
    for name, values in (("mean_cost", cost), ("mean_distance", distance)):
        variables[name] = ("run", values.mean(dim=1).numpy())
        variables[f"{name}_se"] = ("run", _error(values).numpy())
    coords = {
        "run": names,
        "seed": ("sample", maps[0].seed[index]),
        "label": ("sample", maps[0].label[index]),
        "index": ("sample", index),
    }
    if where is not None:
        site = torch.stack([_sites(e, where) for e in ends])
        n_sites = int(site.max()) + 1 if callable(where) else len(where)
        share = torch.stack([torch.bincount(s, minlength=n_sites) for s in site]) / n
        variables["site"] = (("run", "sample"), site.numpy())
        variables["site_share"] = (("run", "site"), share.numpy())
    return xr.Dataset(variables, coords, {"n": n, "n_total": total, "noise_spread": noise_spread})


def lasso(points: xr.Dataset | Tensor | np.ndarray, polygon: Sequence[tuple[float, float]] | np.ndarray) -> np.ndarray:
    """Which points of the plane lie inside a polygon, by the even-odd rule: (S,) booleans.

    Args:
        points: (S, 2), or a run, of which the noise is taken.
        polygon: its corners (P, 2) in order, P at least 3; closed by itself.
    """
    if isinstance(points, xr.Dataset):
        points = _read("run", points).noise
    points, corners = np.asarray(points, dtype=float), np.asarray(polygon, dtype=float)
    if points.ndim != 2 or points.shape[1] != 2:
        raise BadValue(f"a lasso selects points of the plane (S, 2), got {points.shape}.")
    if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3 or not np.isfinite(corners).all():
        raise BadValue(f"a lasso needs at least three finite corners (P, 2), got {corners.shape}.")
    x, y = points[:, :1], points[:, 1:]
    (x0, y0), (x1, y1) = corners.T, np.roll(corners, -1, axis=0).T
    straddles = (y0 > y) != (y1 > y)  # (S, P): a ray to the right from the point may meet this edge
    rise = np.where(y1 == y0, 1.0, y1 - y0)
    return (np.sum(straddles & (x < x0 + (y - y0) / rise * (x1 - x0)), axis=1) % 2).astype(bool)


def _read(name: str, run: Ends) -> _Map:
    if isinstance(run, xr.Dataset):
        if "x" in run and "time" in run.dims:
            noise, data = noise_of(run), data_of(run)
        elif "data" in run:
            data = torch.as_tensor(run["data"].values).double()
            noise = torch.as_tensor(run["noise"].values).double() if "noise" in run else None
        else:
            raise BadValue(f"{name!r} is neither a recording nor a set of end points: it holds {', '.join(run)}.")
        count = len(data)
        seed = run["seed"].values if "seed" in run.coords else np.arange(count)
        return _Map(data, noise, seed, run["label"].values if "label" in run.coords else np.full(count, -1))
    data = torch.as_tensor(run).detach().cpu().double()
    if data.ndim < 2:
        raise BadValue(f"end points are (samples, features...), got {tuple(data.shape)} for {name!r}.")
    return _Map(data, None, np.arange(len(data)), np.full(len(data), -1))


def _paired(runs: Mapping[str, Ends], at_least: int = 2) -> list[_Map]:
    """The maps, when their samples belong together one by one. Bare tensors carry no seeds and are taken at their word."""
    if len(runs) < at_least:
        raise BadValue(f"{at_least} runs of different names are needed, got {', '.join(map(repr, runs)) or 'none'}.")
    maps = [_read(name, run) for name, run in runs.items()]
    bare = [not isinstance(run, xr.Dataset) for run in runs.values()]
    first, first_name = maps[0], next(iter(runs))
    known = next((i for i, b in enumerate(bare) if not b), 0)
    for name, m, unknown in zip(runs, maps, bare, strict=True):
        if m.data.shape != first.data.shape:
            raise BadValue(
                f"{first_name!r} has ends of shape {tuple(first.data.shape)}, {name!r} of {tuple(m.data.shape)}: "
                "maps are compared on the same noise, sample by sample."
            )
        same = np.array_equal(m.seed, maps[known].seed) and np.array_equal(m.label, maps[known].label)
        if not unknown and not same:
            raise BadValue(
                f"{name!r} has other seeds or labels than {list(runs)[known]!r}, so their samples cannot be compared one by one: "
                "record both with the same seeds and labels."
            )
    if len(first.data) < at_least:
        raise BadValue("a comparison of maps needs at least two samples.")
    maps[0] = first._replace(seed=maps[known].seed, label=maps[known].label)
    return maps


def _positions(mask, total: int) -> np.ndarray:
    mask = np.asarray(mask.cpu() if isinstance(mask, Tensor) else mask)
    if mask.dtype == bool:
        if mask.shape != (total,):
            raise BadValue(f"the selection has {mask.size} entries, but there are {total} noise points.")
        index = np.flatnonzero(mask)
    else:
        index = np.unique(mask.astype(np.int64)) if mask.size else np.zeros(0, np.int64)
        if len(index) and (index[0] < 0 or index[-1] >= total):
            raise BadValue(f"selected positions must be from 0 to {total - 1}, got {index[0]} to {index[-1]}.")
    if not len(index):
        raise BadValue(f"no noise point is selected: draw the lasso around at least one of the {total} points.")
    return index


def _sites(ends: Tensor, where: Where) -> Tensor:
    """Site of each end: (S, ...) -> (S,) int64."""
    if callable(where):
        found = torch.as_tensor(where(ends)).cpu()
        if found.shape != (len(ends),):
            raise BadValue(f"where(ends) must give one site per sample, ({len(ends)},), and gave {tuple(found.shape)}.")
        return found.to(torch.int64)
    reference = geometry.flat(torch.as_tensor(where).cpu(), 1)
    ends = geometry.flat(ends, 1)
    if not len(reference) or reference.shape[1] != ends.shape[1]:
        raise BadValue(
            f"reference points have {reference.shape[1]} numbers each, the ends {ends.shape[1]}; at least one is needed."
        )
    return _nearest(ends, reference)[:, 0]


def _nearest(x: Tensor, y: Tensor, k: int = 1, *, others: bool = False, chunk: int = 1024) -> Tensor:
    """Positions in y (M, D) of the k nearest to each of x (N, D): (N, k). `others`: y is x, and a point is not its own."""
    out = []
    for start in range(0, len(x), chunk):
        far = torch.cdist(x[start : start + chunk], y)
        if others:
            far.diagonal(start).fill_(torch.inf)
        out.append(far.topk(k, largest=False).indices if k > 1 else far.argmin(dim=1, keepdim=True))
    return torch.cat(out)


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """Share of the entries of each row that both have: (N, k), (N, k) -> (N,)."""
    return (a[:, :, None] == b[:, None, :]).any(dim=2).double().mean(dim=1)


def _rms(points: Tensor) -> Tensor:
    """Root mean square distance from the mean: (R, N, D) -> (R,)."""
    return (points - points.mean(dim=1, keepdim=True)).square().sum(dim=-1).mean(dim=1).sqrt()


def _error(values: Tensor) -> Tensor:
    n = values.shape[-1]
    return values.std(dim=-1) / math.sqrt(n) if n > 1 else values.mean(dim=-1) * math.nan


def _mean(name: str, values: Tensor, attrs: Mapping | None = None) -> dict:
    attrs = dict(attrs or {})
    return {name: ((), float(values.mean()), attrs), f"{name}_se": ((), float(_error(values)), attrs)}


def _share(name: str, hits: np.ndarray) -> dict:
    """A share and its error; the error does not vanish when nobody or everybody is hit."""
    n, k = len(hits), int(np.sum(hits))
    p = (k + 1) / (n + 2)
    return {name: ((), k / n), f"{name}_se": ((), math.sqrt(p * (1 - p) / n))}


def _spearman(x: Tensor, y: Tensor) -> float:
    """Rank correlation; ties get their mean rank. NaN where one of them is constant."""
    from scipy.stats import rankdata  # seconds to import

    a, b = (torch.from_numpy(rankdata(v.numpy())) for v in (x, y))
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if size else math.nan
