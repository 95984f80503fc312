"""Samplers: everything between a model and its samples, as one value that can be stored and read back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from explorer.errors import BadValue, ExplorerError, UnknownName
from explorer.models.base import Cond, Denoiser
from explorer.process.paths import Path
from explorer.sampling.base import Sampler, built, built_path, check_noise, described, described_path
from explorer.sampling.chain import ChainSampler
from explorer.sampling.grids import TimeGrid
from explorer.sampling.restart import RestartSampler
from explorer.sampling.scale_time import ScaleTimeSampler
from explorer.sampling.seeds import Seeds
from explorer.sampling.solve import Observer, Solver, solve
from explorer.sampling.solvers import SOLVERS
from explorer.sampling.solvers.adaptive import AdaptiveSampler


@dataclass(frozen=True)
class OdeSampler(Sampler):
    """A solver walking a time grid, on the model's own path or on another one.

    Args:
        solver: how a step is taken.
        grid: where it stops.
        path: path of the ODE; None is the model's own. First-order solvers do not notice, higher orders do.
    """

    solver: Solver
    grid: TimeGrid
    path: Path | None = None

    @property
    def stochastic(self):
        return self.solver.stochastic

    def path_on(self, model: Denoiser) -> Path:
        return self.path or model.path

    def sample(self, model, noise, cond=None, *, rng=None, observe=None):
        check_noise(model, noise)
        model = model.on(self.path_on(model))
        times = self.grid.on(model.path)
        start = model.path.at(times[0])[1] * noise  # x_t with the data term left out: exact only as sigma -> infinity
        return solve(model, self.solver, start, times, cond=cond, rng=rng, observe=observe)

    def nfe(self, model):
        model = model.on(self.path_on(model))
        return sum(model.calls_at(t) for t in self.solver.eval_times(self.grid.on(model.path), model.path))

    def n_steps(self, model):
        return self.grid.n_steps

    def to_dict(self):
        return {
            "sampler": "ode",
            "solver": described(self.solver, SOLVERS),
            "grid": self.grid.to_dict(),
            "path": described_path(self.path),
        }

    @classmethod
    def from_dict(cls, data):
        solver = built("solver", data["solver"], SOLVERS)
        return cls(solver, TimeGrid.from_dict(data["grid"]), built_path(data.get("path")))


SAMPLERS: dict[str, type[Sampler]] = {
    "ode": OdeSampler,
    "restart": RestartSampler,
    "adaptive": AdaptiveSampler,
    "scale-time": ScaleTimeSampler,
    "chain": ChainSampler,
}


def sampler_from_dict(data: dict) -> Sampler:
    """The sampler a `to_dict` describes.

    Raises:
        UnknownName: a sampler, solver or path of that name does not exist.
        BadValue: a field is missing or does not belong.
    """
    if not isinstance(data, dict):
        raise BadValue(f"this does not describe a sampler: expected an object with fields, got {type(data).__name__}")
    if data.get("sampler") not in SAMPLERS:
        raise UnknownName("sampler", data.get("sampler"), SAMPLERS)
    try:
        return SAMPLERS[data["sampler"]].from_dict(data)
    except ExplorerError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"the field {error} is missing" if isinstance(error, KeyError) else str(error)
        raise BadValue(f"this does not describe a sampler: {what}") from error


def sampler_from_json(text: str) -> Sampler:
    """The sampler written by `to_json`."""
    try:
        return sampler_from_dict(json.loads(text))
    except json.JSONDecodeError as error:
        raise BadValue(f"not JSON: {error}") from error


def sigmas_of(sampler: Sampler, model: Denoiser) -> tuple[float, ...]:
    """EDM's sigma where the sampler's steps begin and end, falling; of restarts and adaptive steps that of the grid beneath."""
    path = sampler.path_on(model)
    grid = getattr(sampler, "grid", None)
    if grid is not None:
        return tuple(grid.sigmas(path))
    times = sampler.times() if isinstance(sampler, ChainSampler) else sampler.solver.times
    return tuple(path.ratio_at(t) for t in times)


Labels = Tensor | int | None | Literal["balanced"]


def labels_of(label: int | None) -> Labels:
    """The class knob as `labels`: None is every class in turn ("balanced"), -1 no class (None), else the one class."""
    return "balanced" if label is None else None if label == -1 else label


def labels_for(model: Denoiser, seeds: Seeds, labels: Labels = "balanced", device=None) -> Cond:
    """Class labels (n,) for a batch of seeds: one class, a given tensor, none, or seed mod n_classes where the model has classes."""
    if labels is None or (isinstance(labels, str) and model.n_classes == 0):
        return None
    if isinstance(labels, str):
        return seeds.labels(model.n_classes, device)
    if isinstance(labels, int):
        if not 0 <= labels < model.n_classes:
            known = f"classes 0 to {model.n_classes - 1}" if model.n_classes else "no classes"
            raise BadValue(f"{model.name or 'this model'} has {known}, got class {labels}")
        return torch.full((len(seeds),), labels, dtype=torch.int64, device=device)
    return labels.to(device)


def device_of(model: Denoiser) -> torch.device:
    """Where the model's tensors live; the CPU for one without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


@torch.inference_mode()
def sample(
    model: Denoiser,
    sampler: Sampler,
    seeds: Seeds | Iterable[int],
    labels: Labels = "balanced",
    *,
    batch: int = 256,
    observe: Observer | None = None,
) -> Tensor:
    """Samples (n, *shape) float64 on the model's device, one per seed; independent of `batch`.

    Args:
        labels: "balanced" (seed mod n_classes where the model has classes), one class, a tensor (n,), or None.
        observe: sees every step of every batch in turn.
    """
    seeds = seeds if isinstance(seeds, Seeds) else Seeds(seeds)
    device, out = device_of(model), []
    every = labels_for(model, seeds, labels, device)
    for start in range(0, len(seeds), batch):
        part = seeds[start : start + batch]
        noise = part.normal(tuple(model.shape), device=device)
        cond = None if every is None else every[start : start + batch]
        out.append(sampler.sample(model, noise, cond, rng=part, observe=observe))
    return torch.cat(out)
