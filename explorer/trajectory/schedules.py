"""Time grids computed for one model: where steps cost least, by dynamic programming over nodes that were really evaluated.

Three searches, each with its own idea of what a step from sigma_j down to sigma_k costs.

- `gits`: the local error of one Euler step along a recorded fine trajectory, |x_j + (sigma_k - sigma_j) dx/dsigma_j - x_k|. Chen et al.
  2024, "On the Trajectory Regularity of ODE-based Diffusion Sampling", arXiv 2405.11326.
- `ays`: what holding the denoiser still over the step adds to an upper bound on the KL divergence between the true reverse SDE and the
  discretised one, int E|D(x_t, t) - D(x_j, sigma_j)|^2 / t^3 dt from sigma_k to sigma_j. Sabour et al. 2024, "Align Your Steps",
  arXiv 2404.14507, Sec. 3. The paper lowers a noisy estimate of the sum by coordinate search and stops early; here the costs of all
  pairs of nodes come from one set of noise draws, and the best subset of nodes is exact for them.
- `equidistribute`: the local errors of the sampler's own steps made equal, by moving the nodes until they are.

The first two give the best grid of every number of steps at once. None of them minimises the error at the end: costs add up as if no
error were carried, bent or cancelled, and each cost has its sampler in mind: Euler and its multistep kin for `gits`, a stochastic one for
`ays`. Heun asks for a second slope at the end of their long first steps and can end far worse than on Karras' grid. So `end_errors`
measures the end, on the same noise for all grids, and says by how much they differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from explorer.errors import BadValue, UnknownName
from explorer.metrics.base import Estimate, verdict
from explorer.models.base import Denoiser
from explorer.process.paths import EDM
from explorer.sampling.grids import TimeGrid
from explorer.sampling.samplers import Labels, OdeSampler, Sampler, device_of, sample
from explorer.sampling.seeds import Seeds
from explorer.sampling.solve import Solver
from explorer.sampling.solvers import Heun
from explorer.trajectory.dataset import moved, tensor
from explorer.trajectory.local_error import local_error
from explorer.trajectory.record import record


class Route(NamedTuple):
    cost: float
    nodes: tuple[int, ...]


def best_routes(cost: np.ndarray, max_steps: int, coefficient: float = 1.0) -> dict[int, Route]:
    """The cheapest way from the first node to the last in exactly k forward steps, for each k up to `max_steps`.

    A route n_0 < n_1 < ... < n_k costs sum_i coefficient^i cost[n_(i-1), n_i], i from 0: by Bellman's recursion backwards from the last
    node, k K^2 operations, exact. Of equal routes the one with the earlier nodes is taken.

    Args:
        cost: (K, K); only the part above the diagonal is read.
        coefficient: weight of each step relative to the one before it. Above 1, errors nearer the data count more.
    Raises:
        BadValue: a cost that is not finite, or more steps than nodes allow.
    """
    cost = np.asarray(cost, dtype=np.float64)
    n = len(cost)
    if cost.shape != (n, n) or n < 2:
        raise BadValue(f"costs must be a square matrix of at least 2 nodes, got shape {cost.shape}")
    if not 1 <= max_steps <= n - 1:
        raise BadValue(f"{n} nodes allow 1 to {n - 1} steps, got {max_steps}: record a finer trajectory for more")
    if not 0 < coefficient < math.inf:
        raise BadValue(f"the coefficient must be positive and finite, got {coefficient}")
    above = np.triu(np.ones((n, n), dtype=bool), 1)
    if not np.isfinite(cost[above]).all():
        i, j = np.argwhere(above & ~np.isfinite(cost))[0]
        raise BadValue(f"the cost of the step from node {i} to node {j} is not finite")
    step = np.where(above, cost, np.inf)
    value, choices, out = step[:, -1].copy(), [], {}
    for k in range(1, max_steps + 1):
        if k > 1:
            through = step + coefficient * value[None, :]
            choice = through.argmin(axis=1)
            choices.append(choice)
            value = through[np.arange(n), choice]
        nodes = [0]
        for choice in reversed(choices):
            nodes.append(int(choice[nodes[-1]]))
        out[k] = Route(float(value[0]), (*nodes, n - 1))
    return out


def euler_costs(x: Tensor, slope: Tensor, sigma: Tensor, *, squared: bool = False) -> Tensor:
    """Local error of one Euler step between any two points of a trajectory, (S, T, T), zero on and below the diagonal.

    Args:
        x: states (S, T, ...) at the T values of `sigma`, falling; slope: dx/dsigma (S, T - 1, ...) at all but the last.
        squared: squared distances instead of distances.
    """
    flat, slopes = x.flatten(2).double(), slope.flatten(2).double()
    out = torch.zeros(len(x), x.shape[1], x.shape[1], dtype=torch.float64)
    for j in range(x.shape[1] - 1):
        reach = flat[:, j, None] + (sigma[j + 1 :] - sigma[j])[None, :, None] * slopes[:, j, None]
        out[:, j, j + 1 :] = (reach - flat[:, j + 1 :]).norm(dim=2)
    return out.square() if squared else out


def denoiser_costs(denoised: Tensor, sigma: Tensor) -> Tensor:
    """int_(sigma_k)^(sigma_j) |D(x_t, t) - D(x_j, sigma_j)|^2 / t^3 dt between any two noise levels j < k, (S, K, K), in nats.

    By the trapezoidal rule in 1 / (2 t^2), in which the weight is constant: the error falls with the square of the spacing of ln sigma.

    Args:
        denoised: D(x, sigma) (S, K, ...) of each sample along one noising path; sigma: (K,) positive, falling.
    """
    flat = denoised.flatten(2).double()
    gap = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").square()  # (S, j, t)
    width = (0.5 / sigma.double() ** 2).diff()
    pieces = torch.triu(0.5 * (gap[:, :, :-1] + gap[:, :, 1:]) * width)
    return torch.cat([torch.zeros_like(gap[:, :, :1]), pieces.cumsum(dim=2)], dim=2)


@dataclass(frozen=True)
class Schedule:
    """A computed grid, what it costs, and what a hand-made one costs by the same measure and on the same samples.

    Attributes:
        grid: to sample with.
        method: "gits", "ays" or "equidistributed".
        cost, baseline_cost: mean over samples with its standard error.
        difference: cost - baseline_cost, paired by sample.
        baseline: the grid compared with, Karras' with rho = 7.
        seeds: first and last seed of the noise.
        n_evals: network evaluations per sample that the search took.
    """

    grid: TimeGrid
    method: str
    cost: Estimate
    baseline: TimeGrid
    baseline_cost: Estimate
    difference: Estimate
    seeds: tuple[int, int]
    n_evals: int

    def __str__(self) -> str:
        return f"{self.method}, {self.grid.n_steps} steps: " + verdict(self.difference, self.method, "karras")

    def to_dict(self) -> dict:
        """Plain values for JSON, beside the grid's times."""
        return {
            "method": self.method,
            "cost": self.cost.to_dict(),
            "baseline": self.baseline.to_dict(),
            "baseline_cost": self.baseline_cost.to_dict(),
            "difference": self.difference.to_dict(),
            "seeds": list(self.seeds),
            "n_evals": self.n_evals,
        }


@dataclass(frozen=True, eq=False)
class Search:
    """What every step between two nodes costs each sample, and the best grids that follow.

    Attributes:
        costs: (sample, start, end) with coordinates `seed`, `sigma_start`, `sigma_end`; attributes name, units, n_evals.
        method: "gits" or "ays".
        coefficient: see `best_routes`.
        to_zero: whether a step to sigma = 0, which has no cost here, is appended to every grid.
    """

    costs: xr.DataArray
    method: str
    coefficient: float = 1.0
    to_zero: bool = False

    @property
    def nodes(self) -> list[float]:
        """The noise levels a grid can be made of, falling."""
        return [float(s) for s in self.costs.sigma_start]

    def mean(self) -> xr.Dataset:
        """`cost` and `cost_se` (start, end): mean over samples and its standard error; n in the attributes."""
        n = self.costs.sizes["sample"]
        error = self.costs.std("sample", ddof=1) / math.sqrt(n) if n > 1 else self.costs.mean("sample") * math.nan
        out = xr.Dataset({"cost": self.costs.mean("sample"), "cost_se": error})
        for name in out.data_vars:
            out[name].attrs = dict(self.costs.attrs)
        return out.assign_attrs(n=n, method=self.method, coefficient=self.coefficient, to_zero=int(self.to_zero))

    def routes(self, max_steps: int) -> dict[int, Route]:
        """The best route of each number of steps between the nodes, the appended step to 0 not counted."""
        return best_routes(self.costs.mean("sample").values, max_steps, self.coefficient)

    def grid(self, n_steps: int) -> TimeGrid:
        """The grid of least cost with this many steps."""
        last = int(self.to_zero)
        most = len(self.nodes) - 1 + last
        if not 1 <= n_steps <= most:
            raise BadValue(f"{len(self.nodes)} nodes allow 1 to {most} steps, got {n_steps}: use more nodes for more")
        if n_steps == last:
            return TimeGrid((self.nodes[0], 0.0))
        chosen = self.routes(n_steps - last)[n_steps - last].nodes
        return TimeGrid((*(self.nodes[i] for i in chosen), *((0.0,) if self.to_zero else ())))

    def karras(self, n_steps: int, rho: float = 7.0) -> TimeGrid:
        """Karras' grid between the same ends, each of its nodes moved to the nearest one here so that it has a cost."""
        positive = [s for s in self.nodes if s > 0]
        to_zero = self.to_zero or self.nodes[-1] == 0
        return TimeGrid.karras(n_steps, positive[-1], positive[0], rho, to_zero=to_zero).snapped(positive)

    def of_samples(self, grid: TimeGrid) -> np.ndarray:
        """The cost of a grid to each sample, (n,).

        Raises: BadValue where the grid has a node that is none of these or misses an end.
        """
        times = list(grid.times[:-1] if self.to_zero else grid.times)
        if self.to_zero and grid.times[-1] != 0:
            raise BadValue(f"grids of this search end with a step to 0, got {grid.times[-1]:g}")
        at = []
        for s in times:
            i = min(range(len(self.nodes)), key=lambda k, s=s: abs(self.nodes[k] - s))
            if not math.isclose(self.nodes[i], s, rel_tol=1e-6, abs_tol=1e-300):
                raise BadValue(
                    f"sigma = {s:.6g} is no node of this search (nearest {self.nodes[i]:.6g}): use grid.snapped(search.nodes)"
                )
            at.append(i)
        if len(at) == 1 and self.to_zero:
            return np.zeros(self.costs.sizes["sample"])
        if at[0] != 0 or at[-1] != len(self.nodes) - 1:
            raise BadValue(
                f"the grid must run from sigma = {self.nodes[0]:g} to {self.nodes[-1]:g} to have a cost here"
            )
        weights = self.coefficient ** np.arange(len(at) - 1)
        return self.costs.values[:, at[:-1], at[1:]] @ weights

    def cost_of(self, grid: TimeGrid) -> Estimate:
        """The cost of any grid on these nodes; honest for a grid that was found with other samples."""
        return _estimate(self.of_samples(grid), self.costs.attrs["long_name"])

    def schedule(self, n_steps: int) -> Schedule:
        """The best grid of this many steps beside Karras', on the samples it was found with (so in its own favour)."""
        grid, baseline = self.grid(n_steps), self.karras(n_steps)
        ours, theirs, name = self.of_samples(grid), self.of_samples(baseline), self.costs.attrs["long_name"]
        seeds = (int(self.costs.seed[0]), int(self.costs.seed[-1]))
        return Schedule(
            grid,
            self.method,
            _estimate(ours, name),
            baseline,
            _estimate(theirs, name),
            _estimate(ours - theirs, name),
            seeds,
            int(self.costs.attrs["n_evals"]),
        )


def gits(ds: xr.Dataset, *, coefficient: float = 1.15, norm: Literal["l2", "squared"] = "l2") -> Search:
    """Costs of Euler steps along a recorded fine run: `gits(ds).grid(n)` is the grid of n steps with the least sum.

    Args:
        ds: a deterministic run on many nodes (some 60) with `slope` stored; any path, moved to EDM's, on which Euler's step is DDIM's.
            If it ends at sigma = 0, so do the grids, and the step there is chosen as well.
        coefficient: weight of each step relative to the one before, for the error that is carried on; the authors use 1.15.
        norm: distances as in the paper, or their squares, which weigh the samples that miss most.
    Raises:
        BadValue: no slopes, or a start at pure noise.
    """
    if norm not in ("l2", "squared"):
        raise UnknownName("norm", norm, ("l2", "squared"))
    if "slope" not in ds:
        raise BadValue("the costs need the slopes of the run: record it with keep=('x', 'slope')")
    ds = moved(ds, EDM())
    sigma = torch.as_tensor(ds.t.values)
    costs = euler_costs(tensor(ds, "x"), tensor(ds, "slope"), sigma, squared=norm == "squared")
    unit = "data unit^2" if norm == "squared" else "data unit"
    name = "squared Euler step error" if norm == "squared" else "Euler step error"
    best_routes(costs.mean(0).numpy(), 1, coefficient)  # refuses what is not finite
    return Search(_labelled(costs, sigma, ds.seed.values, name, unit, ds.attrs["nfe"]), "gits", coefficient)


@torch.inference_mode()
def ays(
    model: Denoiser,
    data: Tensor,
    nodes: TimeGrid,
    seeds: Seeds | Iterable[int] | None = None,
    labels: Tensor | None = None,
    *,
    batch: int = 256,
) -> Search:
    """Contributions of each step to the KL bound of Align Your Steps: `ays(...).grid(n)` is the grid of n steps with the least bound.

    Each sample is noised along one Brownian path through all nodes and denoised at each: one network evaluation per sample and node.
    The cost of every step follows from those; the last step, sigma_min to 0, is free (the bound diverges there) and always taken.

    Args:
        data: clean samples (n, *shape), of the data or of the model.
        nodes: noise levels to choose from, in sigma; a last 0 is left out. Even in ln sigma and at least 60 is a good choice.
        seeds: n of them, for the noise; 0, 1, ... by default.
        labels: classes (n,) of the samples for a conditional model.
    Source: Sabour et al. 2024, arXiv 2404.14507, Sec. 3, for the first-order stochastic sampler on EDM's path: the drifts differ by
    2 (D - D_j) / t and the noise is sqrt(2 t), which gives the weight 1 / t^3 (Girsanov).
    """
    if nodes.coordinate != "sigma":
        raise BadValue("the nodes must be in sigma: convert them with nodes.to('sigma', path)")
    sigmas = [s for s in nodes.times if s > 0]
    if len(sigmas) < 2:
        raise BadValue("a search needs at least two positive noise levels")
    seeds = Seeds(range(len(data))) if seeds is None else seeds if isinstance(seeds, Seeds) else Seeds(seeds)
    if len(seeds) != len(data) or tuple(data.shape[1:]) != tuple(model.shape):
        raise BadValue(
            f"expected one seed for each of n samples of shape {tuple(model.shape)}, got {len(seeds)} seeds and data {tuple(data.shape)}"
        )
    model, device, out = model.on(EDM()), device_of(model), []
    levels = torch.tensor(sigmas, dtype=torch.float64)
    for start in range(0, len(data), batch):
        rows, noise = slice(start, start + batch), seeds[start : start + batch]
        cond = None if labels is None else labels[rows].to(device)
        x, low, denoised = data[rows].to(device, torch.float64), 0.0, []
        for s in reversed(sigmas):
            x = x + math.sqrt(s * s - low * low) * noise.normal(tuple(model.shape), device=device)
            denoised.append(model.denoise(x, s, cond).double().cpu())
            low = s
        out.append(denoiser_costs(torch.stack(denoised[::-1], dim=1), levels))
    costs = torch.cat(out)
    best_routes(costs.mean(0).numpy(), 1)
    values = _labelled(costs, levels, seeds.ids, "KL bound", "nat", len(sigmas))
    return Search(values, "ays", to_zero=True)


def equidistributed(times: Sequence[float], errors: Sequence[float], n_steps: int, order: int = 1) -> list[float]:
    """n_steps + 1 times between the same ends over which a step's error would be the same everywhere.

    A step of length h at t is taken to miss by c(t) h^(order + 1), with c read off the given steps, so the steps per unit of t are put
    in proportion to c^(1 / (order + 1)); inside a given step they are spread evenly in t^(1/7).

    Args:
        times: T falling times; errors: T - 1 positive errors of the steps between them.
    Source: de Boor 1973, "Good approximation by splines with variable knots" (equidistribution).
    """
    y, e = np.asarray(times, dtype=float) ** (1 / 7), np.asarray(errors, dtype=float)
    if e.shape != (len(y) - 1,) or not (np.isfinite(e).all() and (e >= 0).all() and e.max() > 0):
        raise BadValue(f"expected {len(y) - 1} errors, finite, none negative and not all 0, one for each step")
    if n_steps < 1:
        raise BadValue(f"a grid needs at least one step, got {n_steps}")
    share = np.maximum(e, 1e-12 * e.max()) ** (1 / (order + 1))
    reached = np.concatenate(([0.0], share.cumsum()))
    inner = np.interp(reached[-1] * np.arange(1, n_steps) / n_steps, reached, y) ** 7
    return [float(times[0]), *inner.tolist(), float(times[-1])]


def equidistribute(
    model: Denoiser,
    solver: Solver,
    seeds: Seeds | Iterable[int],
    start: TimeGrid,
    labels: Labels = "balanced",
    *,
    rounds: int = 6,
    substeps: int = 16,
    batch: int = 256,
) -> Schedule:
    """The grid on which every step of a sampler has the same local error, sought from `start` with its number of steps.

    Each round records a run, measures `local_error` of each step (mean over samples, against a fine solve from the step's own start) and
    moves the inner nodes. The grid of the round whose largest error was smallest is returned; its cost is that error.

    Args:
        start: also the baseline. Its ends stay; the last inner node moves as well.
        rounds: runs to make; substeps: of the reference in each step, 4 evaluations each.
    """
    if rounds < 1:
        raise BadValue(f"at least one round is needed, got {rounds}")
    if start.coordinate != "sigma":
        raise BadValue("the grid must be in sigma: convert it with grid.to('sigma', path)")
    seeds = seeds if isinstance(seeds, Seeds) else Seeds(seeds)
    grid, seen = start, []
    for _ in range(rounds):
        ds = record(model, OdeSampler(solver, grid), seeds, labels, keep=("x",), batch=batch)
        errors = local_error(ds, model, substeps=substeps, batch=batch).values
        seen.append((grid, errors))
        if grid.n_steps == 1:
            break
        moved_to = equidistributed(grid.times, errors.mean(0), grid.n_steps, solver.order)
        grid = TimeGrid((start.times[0], *moved_to[1:-1], start.times[-1]))
    best, errors = min(seen, key=lambda pair: pair[1].mean(0).max())
    ours, theirs = (e[:, e.mean(0).argmax()] for e in (errors, seen[0][1]))
    name = "largest local error"
    return Schedule(
        best,
        "equidistributed",
        _estimate(ours, name),
        start,
        _estimate(theirs, name),
        _estimate(ours - theirs, name),
        (seeds.ids[0], seeds.ids[-1]),
        len(seen) * (int(ds.attrs["nfe"]) + 4 * substeps * grid.n_steps),
    )


def end_errors(
    model: Denoiser,
    solver: Solver,
    grids: Mapping[str, TimeGrid],
    seeds: Seeds | Iterable[int],
    labels: Labels = "balanced",
    *,
    reference: Sampler | Tensor | None = None,
    batch: int = 256,
) -> xr.Dataset:
    """How far each grid ends from where the ODE leads, from the same noise: `error` (grid, sample), and `rmse`, `rmse_se` (grid).

    `difference` and `difference_se` (grid) are the rmse minus that of the first grid, paired by sample.

    Args:
        grids: name -> grid, all starting at one sigma; the first is the baseline.
        reference: where the ODE leads, as a fine sampler or as the end points (n, *shape) one gave before; by default Heun on 128 Karras
            steps to the lowest sigma of all the grids.
    Returns: Euclidean distances in data units; standard errors by the delta method; attributes n, baseline, solver, model.
    Raises: BadValue where the grids start apart.
    """
    if not grids:
        raise BadValue("no grid was given to compare")
    seeds = seeds if isinstance(seeds, Seeds) else Seeds(seeds)
    sigmas = {name: g.sigmas(model.path) for name, g in grids.items()}
    first = next(iter(sigmas))
    for name, values in sigmas.items():
        if not math.isclose(values[0], sigmas[first][0], rel_tol=1e-9):
            raise BadValue(
                f"{name} starts at sigma = {values[0]:g} and {first} at {sigmas[first][0]:g}: from the same noise they follow different "
                "paths; give them one start"
            )
    if reference is None:
        low = min(s for values in sigmas.values() for s in values if s > 0)
        reference = OdeSampler(Heun(), TimeGrid.karras(128, min(low, 0.5 * sigmas[first][0]), sigmas[first][0]))
    truth = reference if isinstance(reference, Tensor) else sample(model, reference, seeds, labels, batch=batch)
    if tuple(truth.shape) != (len(seeds), *model.shape):
        raise BadValue(
            f"the reference must be {(len(seeds), *model.shape)}, one end point for each seed, got {tuple(truth.shape)}"
        )
    names, errors, nfe = list(grids), [], []
    for name in names:
        sampler = OdeSampler(solver, grids[name])
        ends = sample(model, sampler, seeds, labels, batch=batch)
        errors.append((ends - truth).flatten(1).norm(dim=1).cpu().numpy())
        nfe.append(sampler.nfe(model))
    error = np.stack(errors)
    rmse = np.sqrt((error**2).mean(axis=1))
    influence = (error**2 - rmse[:, None] ** 2) / np.maximum(2 * rmse[:, None], 1e-300)
    spread = lambda rows: rows.std(axis=1, ddof=1) / math.sqrt(len(seeds)) if len(seeds) > 1 else rows[:, 0] * math.nan  # noqa: E731
    unit = {"units": "data unit"}
    return xr.Dataset(
        {
            "error": (("grid", "sample"), error, {"long_name": "distance to the fine solution", **unit}),
            "rmse": ("grid", rmse, {"long_name": "end-point RMSE", **unit}),
            "rmse_se": ("grid", spread(influence), unit),
            "difference": ("grid", rmse - rmse[0], {"long_name": f"end-point RMSE minus that of {names[0]}", **unit}),
            "difference_se": ("grid", spread(influence - influence[:1]), unit),
        },
        coords={"grid": names, "seed": ("sample", list(seeds.ids)), "nfe": ("grid", nfe)},
        attrs={"n": len(seeds), "baseline": names[0], "solver": type(solver).__name__, "model": model.name},
    )


def end_verdicts(ds: xr.Dataset) -> list[str]:
    """One sentence for each grid of `end_errors` against the first, e.g. "gits is better than karras by 0.031 ± 0.004 ..."."""
    base = ds.attrs["baseline"]
    rows = [ds.sel(grid=name) for name in ds.grid.values if name != base]
    return [
        verdict(
            Estimate(float(row.difference), float(row.difference_se), int(ds.attrs["n"]), "end-point RMSE"),
            str(row.grid.item()),
            base,
        )
        for row in rows
    ]


def _labelled(costs: Tensor, sigma: Tensor, seeds: Sequence[int], name: str, unit: str, n_evals: int) -> xr.DataArray:
    coords = {
        "seed": ("sample", np.asarray(seeds, dtype=np.int64)),
        "sigma_start": ("start", sigma.numpy()),
        "sigma_end": ("end", sigma.numpy()),
    }
    attrs = {"long_name": name, "units": unit, "n_evals": int(n_evals)}
    return xr.DataArray(costs.numpy(), dims=("sample", "start", "end"), coords=coords, name="cost", attrs=attrs)


def _estimate(values: np.ndarray, name: str) -> Estimate:
    n = len(values)
    error = float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return Estimate(float(values.mean()), error, n, name)
