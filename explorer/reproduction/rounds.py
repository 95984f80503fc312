"""Rounds of reflow measured: where the transport cost of each coupling goes, how straight its flow is, and what one step loses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from explorer.data import Dataset, load_dataset
from explorer.files import write_atomic
from explorer.metrics.base import Estimate
from explorer.metrics.features import feature_space
from explorer.metrics.frechet import Reference
from explorer.metrics.points import wasserstein2
from explorer.models.base import Denoiser, as_denoiser
from explorer.process.paths import Linear
from explorer.reproduction.bench import Bench
from explorer.reproduction.evaluate import CLASSIFIERS, frechet
from explorer.reproduction.recipe import Recipe
from explorer.sampling.grids import TimeGrid
from explorer.sampling.samplers import OdeSampler
from explorer.sampling.seeds import Seeds
from explorer.sampling.solve import Solver
from explorer.sampling.solvers import Euler
from explorer.trajectory import geometry
from explorer.trajectory.coupling import budget_of, run_from
from explorer.trajectory.dataset import data_of

MEASURED = 1 << 50
"""Rounds are measured on seeds from here on, 2^36 further for each seed of the bench: neither trained on nor paired."""


def measured_rounds(
    bench: Bench,
    flows: Sequence[Recipe],
    *,
    data: Dataset | None = None,
    n: int = 2048,
    n_steps: int = 100,
    n_w2: int = 1000,
) -> xr.Dataset:
    """Train the recipes of flow 1, 2, ... where they are not there yet, and measure each on held-out noise.

    Args:
        flows: flow k + 1 is trained on pairs of flow k; all of one data set.
        data: where fresh points come from; None for the recipes' data set.
        n: held-out points.
        n_steps: of the fine runs, even in time.
        n_w2: points that W2 is computed from.
    Returns:
        By round (from 1): `cost` E|eps - x0|^2 of the coupling that flow k is trained on, and where it goes: `chord` E|D|^2 (the
        cost of the next coupling), `straightness` S, `conflict` V and the `residual` of cost = chord + S + V, which is what the
        network has not learnt; `one_step` E|x - x_1|, between the ends of the fine run and of one Euler step; `w2`, `w2_one_step`:
        W2^2 between fresh data and the ends of the two, and `w2_floor` between fresh data and fresh data; `crossings`, the share of
        pairs of lines of the coupling that cross, in the plane. The first six with `_se`. Sums over coordinates. As
        `explorer.trajectory.coupling.reflow`, which does the same for exact flows.
    """
    table, settings = [], {"n": n, "n_steps": n_steps, "n_w2": n_w2}
    for k, recipe in enumerate(flows, start=1):
        about = {"measured": recipe.describe(), **settings}
        folder = bench.place(f"round-{recipe.name}", about)
        file = None if folder is None else folder / "row.json"
        if file is not None and file.exists():
            table.append(json.loads(file.read_text()))
            continue
        bench.show(f"measuring {recipe.name}, seed {bench.seed}", (k - 1) / len(flows))
        models = [bench.model(r) for r in flows[max(k - 2, 0) : k]]
        row = _row(models, data or load_dataset(recipe.data), bench.seed, **settings)
        if file is not None:
            text = json.dumps(row)
            write_atomic(file, lambda temporary, text=text: temporary.write_text(text))
        table.append(row)
    return _dataset(table, n=n, n_steps=n_steps, data=flows[0].data, seed=bench.seed)


def measured_flows(
    models: Sequence[Denoiser], data: Dataset, *, seed: int = 0, n: int = 2048, n_steps: int = 100, n_w2: int = 1000
) -> xr.Dataset:
    """The same for flows that are there, flow k + 1 trained on pairs of flow k."""
    settings = {"n": n, "n_steps": n_steps, "n_w2": n_w2}
    table = [_row(models[max(k - 2, 0) : k], data, seed, **settings) for k in range(1, len(models) + 1)]
    return _dataset(table, n=n, n_steps=n_steps, data=data.name, seed=seed)


Row = dict[str, float | None]


def _dataset(table: Sequence[Row], **attrs) -> xr.Dataset:
    variables = {}
    for name in table[0]:
        unit = {"units": "1" if name == "crossings" else "data unit" if name.startswith("one_step") else "data unit^2"}
        variables[name] = ("round", [math.nan if row[name] is None else row[name] for row in table], unit)
    return xr.Dataset(variables, {"round": np.arange(1, len(table) + 1)}, attrs)


def _row(models: Sequence[Denoiser], points: Dataset, seed: int, n: int, n_steps: int, n_w2: int) -> Row:
    """Measures of the last flow; the one before, if any, made its pairs."""
    model, first = models[-1], MEASURED + (seed << 36)
    seeds = Seeds(range(first, first + n))
    noise, labels = seeds.normal(points.shape), seeds.fresh().labels(model.n_classes) if model.n_classes else None
    g = torch.Generator().manual_seed(first)
    paired, real, other = (drawn(points, n, g, labels) for _ in range(3))

    if len(models) > 1:
        paired = data_of(straight_run(models[-2], noise, n_steps, labels))
    run, once = straight_run(model, noise, n_steps, labels), straight_run(model, noise, 1, labels)
    parts = budget_of(run, of_labels(model, labels), noise, paired)
    parts["one_step"] = geometry.flat(data_of(run) - data_of(once), 1).norm(dim=1)
    row: Row = {}
    for name, value in parts.items():
        row |= {name: float(value.mean()), f"{name}_se": float(value.std()) / math.sqrt(n)}
    many, one, real, other = (geometry.flat(x[:n_w2], 1).numpy() for x in (data_of(run), data_of(once), real, other))
    row |= {"w2": wasserstein2(many, real), "w2_one_step": wasserstein2(one, real)}
    row |= {"w2_floor": wasserstein2(other, real), "crossings": None}
    if points.shape == (2,):
        row["crossings"] = len(geometry.line_crossings(noise, paired).pairs) / (n * (n - 1) / 2)
    return row


FLOW_RANGE = (1e-5, 1 - 1e-5)
"""Times of the linear path that rectified flows are trained at; in sigma = t / (1 - t), 1e-5 to 1e5."""

FLOW_KNOBS = {"solver": "euler", "n_steps": 2, "grid": "uniform-t"}
"""What a page suggests for a flow that was straightened."""


def even_steps(n_steps: int, solver: Solver | None = None) -> OdeSampler:
    """Steps even in the time of the linear path, from the end of `FLOW_RANGE` to 0: Euler's by default."""
    return OdeSampler(solver or Euler(), TimeGrid.uniform_t(n_steps, *(Linear().ratio_at(t) for t in FLOW_RANGE)))


def straight_run(model: Denoiser, noise: Tensor, n_steps: int, labels: Tensor | None = None) -> xr.Dataset:
    """A recorded Heun run (Euler's where it is one step) on the linear path, even in t from just below 1 to 0."""
    high = model.t_range[1]
    return run_from(of_labels(model, labels), noise, times=[high * (1 - i / n_steps) for i in range(n_steps)] + [0.0])


def of_labels(model: Denoiser, labels: Tensor | None) -> Denoiser:
    """A model with classes as one without, for one batch: row i is asked with label i."""
    if labels is None:
        return model

    def velocity(x: Tensor, t, cond) -> Tensor:
        return model.velocity(x, t, labels)

    return as_denoiser(velocity, "velocity", model.path, model.shape, t_range=model.t_range, name=model.name)


def drawn(points: Dataset, n: int, generator: torch.Generator, labels: Tensor | None = None) -> Tensor:
    """n data points (float64), fresh where the law is known, else at random from the split; of these classes where given."""
    if points.draw is not None:
        return points.draw(n, generator)[0].double()
    if labels is None:
        return points.x[torch.randint(len(points), (n,), generator=generator)].double()
    rows = torch.empty(n, dtype=torch.int64)
    for c in labels.unique().tolist():
        members, here = (points.labels == c).nonzero()[:, 0], labels == c
        rows[here] = members[torch.randint(len(members), (int(here.sum()),), generator=generator)]
    return points.x[rows].double()


def quality(data: str) -> Callable[[Tensor], Estimate]:
    """Samples -> their Frechet distance to the training split, in the features of the data set's bundled classifier."""
    train = load_dataset(data)
    space = feature_space(CLASSIFIERS[data], train.shape)
    reference = Reference.of(space, train.x, data=f"{data}/train")
    return lambda x: frechet(space, reference, x.cpu())
