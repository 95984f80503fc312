"""Grids read off a few recorded runs, as proposals: the dynamic program over Euler's local errors, and the KL bound's.

Both give the best grid of any number of steps from one recording; what follows measures it like any other setting, as neither lowers the
error at the end. The recording is made on the search's own noise and counts towards its budget.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from explorer.errors import BadValue
from explorer.sampling.grids import TimeGrid
from explorer.sampling.samplers import OdeSampler
from explorer.sampling.seeds import Seeds
from explorer.sampling.solvers import Heun
from explorer.trajectory.dataset import tensor
from explorer.trajectory.record import record
from explorer.trajectory.schedules import ays, gits
from explorer.tuning.objective import first_labels
from explorer.tuning.space import grid_of, with_grid
from explorer.tuning.study import Proposal, Task, Tuner


@dataclass(frozen=True)
class DynamicProgram(Tuner):
    """The grid of least summed Euler error along a recorded fine run, for several weights of later steps.

    Args:
        nodes: steps of the recorded run, and so places a node can have.
        samples: runs recorded; coefficients: weights of each step relative to the one before it.
    Source: Chen et al. 2024, arXiv 2405.11326; see `explorer.trajectory.schedules.gits`.
    """

    nodes: int = 64
    samples: int = 64
    coefficients: tuple[float, ...] = (1.0, 1.15, 1.3)
    name = "dynamic program"

    def search(self, task):
        ds, extra = recorded(task, self.nodes, self.samples)
        n_steps = grid_of(task.start).n_steps
        for coefficient in self.coefficients:
            for norm in ("l2", "squared"):
                grid = gits(ds, coefficient=coefficient, norm=norm).grid(n_steps)
                yield Proposal(with_grid(task.start, grid), note=f"gits {coefficient:g} {norm}", extra=extra)
                extra = 0


@dataclass(frozen=True)
class AlignSteps(Tuner):
    """The grid of least KL bound for a first-order stochastic sampler. Sabour et al. 2024, arXiv 2404.14507; see `schedules.ays`.

    Args: nodes: noise levels to choose from, even in ln sigma; samples: of the model, noised along one path each.
    """

    nodes: int = 64
    samples: int = 64
    name = "align your steps"

    def search(self, task):
        ds, extra = recorded(task, 18, self.samples)
        model, _ = task.start.on(task.model)
        grid = grid_of(task.start)
        low = max(model.sigma_range[0], 1e-3)
        levels = TimeGrid.log_snr(self.nodes, low, grid.times[0])
        labels = torch.as_tensor(ds.label.values) if "label" in ds.coords and model.n_classes else None
        seeds = Seeds(task.objective.seeds[: self.samples])
        found = ays(model, tensor(ds, "x")[:, -1], levels, seeds, labels)
        extra += int(found.costs.attrs["n_evals"]) * len(seeds)
        yield Proposal(with_grid(task.start, found.grid(grid.n_steps)), note="ays", extra=extra)


def recorded(task: Task, n_steps: int, samples: int):
    """A fine run of the task's model from the start of its grid, with slopes, and the evaluations times samples it took."""
    grid = grid_of(task.start)
    if grid.times[-1] != 0:
        raise BadValue("grids are read off runs that end at sigma = 0: give a start whose grid ends there")
    model, _ = task.start.on(task.model)
    sampler = OdeSampler(Heun(), TimeGrid.karras(n_steps, max(model.sigma_range[0], 1e-3), grid.times[0]))
    seeds = Seeds(task.objective.seeds[:samples])
    ds = record(model, sampler, seeds, first_labels(task.objective.labels, len(seeds)), keep=("x", "slope"))
    return ds, sampler.nfe(model) * len(seeds)
