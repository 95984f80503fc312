"""What one sampler of the Trajectory Lab computes, stage by stage, in the order in which it is worth seeing.

S samples, T time points, K times of a scene, G and M cells per side of its field and density, D features.

Everything is drawn as z_t = (1 - t) x0 + t s eps: the linear path between the data and noise of s times its size, so
that both ends fill the same square. A path is straight and even there exactly when it is so on the linear path itself,
whatever s, and sigma = t s / (1 - t). Numbers are measured on the linear path (s = 1), as published.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from explorer.apps import catalogue
from explorer.apps.worker import Failure, Job
from explorer.data import load_dataset
from explorer.errors import BadValue, ExplorerError
from explorer.knobs import SamplerKnobs
from explorer.live import data_of as data_name
from explorer.models.base import Cond, Denoiser, FlowMap, Model
from explorer.process.paths import Linear
from explorer.sampling import Sampler, Seeds, device_of
from explorer.trajectory import measures, moved, point_density, record
from explorer.trajectory.attribution import attribution, attribution_cost
from explorer.trajectory.coupling import budget as cost_budget
from explorer.trajectory.maps import microscope

N_FIRST = {"points": 256, "images": 32}
N_BUDGET = {"points": 512, "images": 64}
N_ERRORS = {"points": 64, "images": 12}
BUDGET_TIMES = {"points": 50, "images": 16}
N_DENSITY = 2**15  # points that its density is made from, where the data can be drawn
FINE = 16  # steps from which two substeps of the reference in each interval are enough, else four
N_SITES = 12  # regions into which data without classes or modes are divided
SCENE_TIMES, FIELD_SIDE, DENSITY_SIDE = 28, 17, 56
NOISE_RADIUS = 3.2  # standard deviations of the noise that fit the square
HELD = (0.3, 0.6, 0.9)  # shares of the density that its contours hold
STAGES = ("paths", "scene", "curves", "budget", "errors")


class Stopped(ExplorerError):
    """The job was cancelled."""


class Watching:
    """A model inside a job: counts its own calls, hands the baton on after each, and stops with the job.

    Args:
        work: network rows (samples times evaluations) that the whole job will take, for its progress.
    """

    def __init__(self, base: Model, job: Job, work: float = 0.0):
        super().__init__()
        # A tuple hides it from `modules()`: calls that other jobs make of the shared base are not counted here.
        self._base, self._job, self._work, self._rows = (base,), job, work, 0.0
        self.path, self.shape, self.n_classes = base.path, base.shape, base.n_classes
        self.t_range, self.name, self.n_skips = base.t_range, base.name, base.n_skips
        self.register_buffer("place", torch.empty(0, device=device_of(base)), persistent=False)

    def calls_at(self, t: float) -> int:
        return self._base[0].calls_at(t)

    def _asked(self, ask, x_t, t, *rest):
        if self._job.stop.is_set():
            raise Stopped("stopped")
        out = ask(x_t, t, *rest)
        calls = 1 if isinstance(t, Tensor) else self.calls_at(t)
        self._calls[0] += calls
        self._rows += calls * len(x_t)
        self._job.between(min(0.99, self._rows / self._work) if self._work else 0.0)
        return out


class Watched(Watching, Denoiser):
    def predict(self, x_t, t, cond=None):
        return self._asked(self._base[0].predict, x_t, t, cond)


class WatchedMap(Watching, FlowMap):
    def jump(self, x_t, t, r, cond=None):
        return self._asked(self._base[0].jump, x_t, t, r, cond)

    def on(self, path):
        return self if path == self.path else WatchedMap(self._base[0].on(path), self._job, self._work)


@dataclass(frozen=True, eq=False)
class Plane:
    """The plane on which samples are seen: their own, or that of the two largest variations of the data.

    Attributes:
        points: (N, 2) data on the plane, float64.
        extent: half the side of the square around them.
        axes, centre: (D, 2) orthonormal and (D,), or None where samples are points of the plane.
        share: of the data's variance that the plane holds.
    """

    points: np.ndarray
    extent: float
    axes: np.ndarray | None = None
    centre: np.ndarray | None = None
    share: float = 1.0

    def of(self, line: xr.Dataset) -> np.ndarray:
        """States of a trajectory on the linear path as seen on the plane: (T, S, 2) float32.

        The data's centre goes to the origin, so projected states are again (1 - t) data + t noise.
        """
        x = line.x.values
        if self.axes is None:
            return np.ascontiguousarray(x.swapaxes(0, 1), dtype=np.float32)
        flat = x.reshape(*x.shape[:2], -1).swapaxes(0, 1)
        turned = flat - (1 - line.t.values)[:, None, None] * self.centre
        return np.ascontiguousarray(turned @ self.axes, dtype=np.float32)


def kind_of(shape: tuple[int, ...]) -> str:
    """How samples of this shape are shown: "points" of the plane, or "images"."""
    return "points" if tuple(shape) == (2,) else "images"


@lru_cache(maxsize=64)
def plane_of(model: str) -> Plane:
    """The plane for samples of a bundled model; the same for all models of the same data."""
    return _plane(data_name(model))


@lru_cache(maxsize=16)
def _plane(data: str) -> Plane:
    known = load_dataset(data)
    x = known.x.double().flatten(1)
    if x.shape[1] == 2:
        many = x if known.draw is None else known.draw(N_DENSITY, torch.Generator().manual_seed(0))[0].double()
        return Plane(many.numpy(), 1.25 * float(x.abs().amax()))
    centre = x.mean(dim=0)
    _, spread, axes = torch.linalg.svd(x - centre, full_matrices=False)
    points = (x - centre) @ axes[:2].T
    share = float(spread[:2].square().sum() / spread.square().sum())
    return Plane(points.numpy(), 1.12 * float(points.abs().amax()), axes[:2].T.numpy(), centre.numpy(), share)


def scale_for(extent: float) -> float:
    """The size s at which noise is drawn in a square of this half side."""
    return extent / NOISE_RADIUS


def drawn(frames: np.ndarray, sigma: np.ndarray, scale: float) -> np.ndarray:
    """Positions on the linear path (T, S, 2) as drawn with noise of size `scale`: z = x s (1 + sigma) / (s + sigma)."""
    return frames * (scale * (1 + sigma) / (scale + sigma))[:, None, None]


def positions(frames: np.ndarray, sigma: np.ndarray, at: float, scale: float) -> np.ndarray:
    """Where the particles are drawn at one noise level: (S, 2), on straight lines between recorded states."""
    z, t = drawn(frames, sigma, scale), sigma / (sigma + scale)
    here = np.clip(at / (at + scale), t[-1], t[0])
    i = int(np.clip(np.searchsorted(-t, -here, side="right") - 1, 0, len(t) - 2))
    f = (t[i] - here) / (t[i] - t[i + 1])
    return (1 - f) * z[i] + f * z[i + 1]


@dataclass(frozen=True, eq=False)
class Scene:
    """What lies around the paths at K noise levels, on the square of half side `extent`.

    Attributes:
        sigma: (K,) falling.
        density: (K, M, M) the exact marginal of the data at each level, rows from the lowest y up.
        levels: (K, L) its values on the contours that hold the shares HELD.
        field: (K, G, G, 2) motion towards data per unit of t, or None where there is no plane to draw it on.
    """

    extent: float
    scale: float
    sigma: np.ndarray
    density: np.ndarray
    levels: np.ndarray
    field: np.ndarray | None


def scene(model: Model, plane: Plane, extent: float, sigma_max: float, label: int | None) -> Scene:
    """Density and velocity around the paths of a model, evenly spaced in t."""
    scale = scale_for(extent)
    top = sigma_max / (sigma_max + scale)
    times = top * (1 - np.arange(SCENE_TIMES) / (SCENE_TIMES - 1))
    sigma = scale * times / (1 - times)
    box, cell = (-extent, extent, -extent, extent), 2 * extent / DENSITY_SIDE
    density = []
    for t in times:
        blur = np.hypot(t * scale / cell, 0.9)  # 0.9 cells smooth what is counted
        density.append(point_density((1 - t) * plane.points, box, n=DENSITY_SIDE, smooth=float(blur)).density.values)
    density = np.stack(density)
    levels = np.stack([_levels(d) for d in density])
    field = None
    if plane.axes is None:
        field = np.stack([_field(model, float(s), extent, scale, label) for s in np.maximum(sigma, sigma[-2] / 2)])
    return Scene(extent, scale, sigma, density, levels, field)


def _levels(density: np.ndarray) -> np.ndarray:
    """Values above which a density holds the shares HELD of its mass on the grid."""
    ordered = np.sort(density.ravel())[::-1]
    mass = np.cumsum(ordered) / max(ordered.sum(), 1e-300)
    return ordered[np.minimum(np.searchsorted(mass, HELD), len(ordered) - 1)]


@torch.inference_mode()
def _field(model: Model, sigma: float, extent: float, scale: float, label: int | None) -> np.ndarray:
    """-dz/dt on a G x G grid, (G, G, 2): towards data. dz/dt = s eps - x0 with both as the model believes them."""
    edge = (torch.arange(FIELD_SIDE, dtype=torch.float64) + 0.5) / FIELD_SIDE * 2 * extent - extent
    z = torch.stack(torch.meshgrid(edge, edge, indexing="xy"), dim=-1).reshape(-1, 2)
    t = Linear().time_at(sigma)
    x = (z / (scale * (1 + sigma) / (scale + sigma))).to(device_of(model))
    cond = None if label is None else torch.full((len(x),), label, dtype=torch.int64, device=x.device)
    x0 = model.on(Linear()).denoise(x, t, cond)
    eps = (x - (1 - t) * x0) / t
    return (x0 - scale * eps).float().cpu().numpy().reshape(FIELD_SIDE, FIELD_SIDE, 2)


CURVES = {
    "velocity_gap": partial(measures.straightness, by="step"),
    "curvature": partial(measures.curvature, by="step"),
    "turning_angle": partial(measures.turning_angle, by="step"),
}
TOTALS = {
    "straightness": measures.straightness,
    "arc_chord": measures.arc_chord,
    "total_turning": measures.turning_angle,
    "coupling_cost": measures.coupling_cost,
}


@dataclass(frozen=True, eq=False)
class Curves:
    """Geometry of a run on the linear path: by step (`CURVES`), and whole paths (`TOTALS`) as (mean, standard error)."""

    by_step: dict[str, xr.Dataset]
    totals: dict[str, tuple[float, float]]


def curves(ds: xr.Dataset) -> Curves:
    line, totals = moved(ds.drop_vars(["slope", "x0_hat"], errors="ignore"), Linear()), {}
    for name, make in TOTALS.items():
        values = make(line).values
        values = values[np.isfinite(values)]
        totals[name] = (float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5))
    inner = line.sizes["time"] > 2
    return Curves({name: make(line) for name, make in CURVES.items() if inner or name == "velocity_gap"}, totals)


def drawn_data(name: str, labels: np.ndarray, seed: int) -> Tensor:
    """Data points (S, ...) drawn at random, each of the class asked for (-1: any): the other end of the training pairs."""
    data, rng = load_dataset(data_name(name)), np.random.default_rng(seed)
    rows = rng.integers(len(data), size=len(labels))
    if data.labels is not None:
        classes = data.labels.numpy()
        for k in np.unique(labels[labels >= 0]):
            here = np.flatnonzero(labels == k)
            rows[here] = rng.choice(np.flatnonzero(classes == k), size=len(here))
    return data.x[torch.from_numpy(rows)].double()


def cond_of(ds: xr.Dataset) -> Cond:
    return None if bool((ds.label < 0).all()) else torch.as_tensor(ds.label.values)


def work(model: Model, sampler: Sampler, n: int, todo: tuple[str, ...]) -> float:
    """Network rows that the stages will take, about."""
    kind, nfe = kind_of(model.shape), sampler.nfe(model)
    rows = {
        "paths": n * nfe,
        "scene": SCENE_TIMES * FIELD_SIDE**2 if kind == "points" else 0,
        "budget": min(n, N_BUDGET[kind]) * BUDGET_TIMES[kind],
        "errors": min(n, N_ERRORS[kind]) * nfe * 32,
    }
    return float(sum(rows.get(stage, 0) for stage in todo))


def stages(
    model_name: str,
    knobs: SamplerKnobs,
    n: int,
    extent: float,
    job: Job,
    *,
    todo: tuple[str, ...] = STAGES,
    ds: xr.Dataset | None = None,
) -> Iterator[tuple[str, Any]]:
    """(stage, result) as they are ready: the first paths, the scene, all paths, curves, budget, errors by step.

    A stage that fails, or is not defined for this run, gives a `Failure` in its place; without paths there is nothing else.

    Args:
        todo: which of STAGES are wanted.
        ds: paths recorded already: what is missing up to n is recorded, the rest taken as it is.
    """
    model, sampler = knobs.build(catalogue.model(model_name))
    kind, plane = kind_of(model.shape), plane_of(model_name)
    watched = (WatchedMap if isinstance(model, FlowMap) else Watched)(model, job, work(model, sampler, n, todo))
    keep = ("x", "slope") if kind == "points" else ("x", "x0_hat")
    batch = 2048 if kind == "points" else 128

    def paths(start: int, end: int) -> xr.Dataset:
        seeds = Seeds(range(knobs.seed + start, knobs.seed + end))
        return record(watched, sampler, seeds, knobs.labels, keep=keep, batch=batch)

    have = 0 if ds is None else ds.sizes["sample"]
    if "paths" in todo and have == 0:
        have = min(n, N_FIRST[kind])
        ds = paths(0, have)
        yield "paths", ds
    if "scene" in todo:
        label = knobs.label if knobs.label is not None and knobs.label >= 0 else None
        yield "scene", scene(watched, plane, extent, float(ds.sigma[0]), label)
    if "paths" in todo and have < n:
        ds = joined(ds, paths(have, n))
        yield "paths", ds
    later = {
        "curves": lambda: curves(ds),
        "budget": lambda: budget(ds, watched, model_name),
        "errors": lambda: errors(ds, watched),
    }
    for stage, make in later.items():
        if stage in todo:
            try:
                yield stage, make()
            except Stopped:
                raise
            except ExplorerError as error:
                yield stage, Failure(str(error), traceback.format_exc())
            except Exception as error:  # a bug in one number must not take the particles away
                yield stage, Failure(f"This did not work: {type(error).__name__}: {error}", traceback.format_exc())


def joined(first: xr.Dataset, rest: xr.Dataset) -> xr.Dataset:
    """Two recordings of one sampler on successive seeds as one."""
    return xr.concat([first, rest], "sample", data_vars="minimal", coords="minimal", compat="override", join="override")


def budget(ds: xr.Dataset, model: Model, model_name: str) -> xr.Dataset:
    """Where the cost of the independent coupling goes, from the first samples of a run; see `coupling.budget`."""
    if isinstance(model, FlowMap):
        raise BadValue(
            f"{model.name or 'This model'} is a flow map: it has no velocity, against which the cost of a coupling could be split."
        )
    kind = kind_of(model.shape)
    few = ds.isel(sample=slice(N_BUDGET[kind]))
    data = drawn_data(model_name, few.label.values, int(few.seed[0]))
    return cost_budget(few, model, data, cond_of(few), n_times=BUDGET_TIMES[kind])


def errors(ds: xr.Dataset, model: Model) -> xr.Dataset:
    """Which step cost what, from the first samples of a run: exact where few steps make it cheap, else to first order."""
    few = ds.isel(sample=slice(N_ERRORS[kind_of(model.shape)]))
    substeps = 4 if few.sizes["step"] < FINE else 2
    cost = {m: attribution_cost(few, model, method=m, substeps=substeps) for m in ("exact", "adjoint")}
    method = "exact" if cost["exact"] <= 2 * cost["adjoint"] else "adjoint"
    return attribution(few, model, "step", method=method, substeps=substeps)


@lru_cache(maxsize=16)
def sites_of(model: str) -> tuple[Tensor, str]:
    """Points (K, D) that divide the data into regions, and what they are: modes, class means, or centres of K parts."""
    data = load_dataset(data_name(model))
    known = f"oracle-{data.name}"
    if known in catalogue.names():
        mixture = getattr(catalogue.model(known), "mixture", None)
        if mixture is not None and len(mixture.means) <= 4 * N_SITES:
            return mixture.means.double().flatten(1), f"{len(mixture.means)} modes"
    x = data.x.double().flatten(1)
    if data.labels is not None and len(data.shape) > 1:
        return torch.stack(
            [x[data.labels == k].mean(dim=0) for k in range(data.n_classes)]
        ), f"{data.n_classes} class means"
    from scipy.cluster.vq import kmeans2

    centres, _ = kmeans2(x.numpy(), N_SITES, minit="++", seed=0)
    return torch.from_numpy(centres), f"{N_SITES} parts"


@dataclass(frozen=True, eq=False)
class Sight:
    """What the microscope shows of a selection.

    Attributes:
        ids: positions of the selected particles.
        of: where every run sends them, from `maps.microscope`.
        swaps: by run, the share that ends in another region of the data than under the first: (share, standard error).
        regions: what divides the data, in words.
    """

    ids: np.ndarray
    of: xr.Dataset
    swaps: dict[str, tuple[float, float]]
    regions: str


def sight(runs: dict[str, xr.Dataset], ids: np.ndarray, model: str) -> Sight:
    """The selected particles under every run. Raises: BadValue for an empty selection."""
    where, regions = sites_of(model)
    found = microscope(runs, ids, where=where)
    shares = {}
    for i, name in enumerate(runs):
        k, n = int((found.site[i] != found.site[0]).sum()), len(ids)
        p = (k + 1) / (n + 2)  # an error that does not vanish when nobody or everybody is swapped
        shares[name] = (k / n, (p * (1 - p) / n) ** 0.5)
    return Sight(ids, found, shares, regions)


def on_plane(ds: xr.Dataset, plane: Plane) -> np.ndarray:
    """Positions of all particles at every time on the linear path, as seen on the plane: (T, S, 2) float32."""
    return plane.of(moved(ds, Linear()))
