"""Samplers: everything between a model and its samples, as one value that can be stored and read back."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from explorer.errors import BadValue, UnknownName
from explorer.models.base import Cond, Denoiser
from explorer.process.paths import PATHS, Path
from explorer.sampling.grids import TimeGrid
from explorer.sampling.seeds import Seeds
from explorer.sampling.solve import Observer, Solver, solve
from explorer.sampling.solvers import SOLVERS


class Sampler(ABC):
    """Noise to samples. Finals are frozen dataclasses; `from_json(s.to_json()) == s`."""

    @abstractmethod
    def sample(
        self,
        model: Denoiser,
        noise: Tensor,
        cond: Cond = None,
        *,
        rng: Seeds | None = None,
        observe: Observer | None = None,
    ) -> Tensor:
        """Samples (B, *shape) from standard normal noise (B, *shape), in the noise's dtype."""

    @abstractmethod
    def nfe(self, model: Denoiser) -> int:
        """Network evaluations per sample, guidance included; a test counts them."""

    @abstractmethod
    def path_on(self, model: Denoiser) -> Path:
        """The path this sampler's states live on."""

    @abstractmethod
    def to_dict(self) -> dict: ...

    def to_json(self) -> str:
        return json.dumps(self.to_dict())


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

    def path_on(self, model: Denoiser) -> Path:
        return self.path or model.path

    def sample(self, model, noise, cond=None, *, rng=None, observe=None):
        if noise.shape[1:] != tuple(model.shape):
            raise BadValue(
                f"{model.name or 'the model'} needs noise of shape (batch, {', '.join(map(str, model.shape))}), got {tuple(noise.shape)}"
            )
        model = model.on(self.path_on(model))
        times = self.grid.on(model.path)
        start = model.path.at(times[0])[1] * noise  # x_t with the data term left out: exact only as sigma -> infinity
        return solve(model, self.solver, start, times, cond=cond, rng=rng, observe=observe)

    def nfe(self, model):
        model = model.on(self.path_on(model))
        return sum(model.calls_at(t) for t in self.solver.eval_times(self.grid.on(model.path), model.path))

    def to_dict(self):
        return {
            "sampler": "ode",
            "solver": {"name": _name_of(self.solver, SOLVERS), **dataclasses.asdict(self.solver)},
            "grid": self.grid.to_dict(),
            "path": None
            if self.path is None
            else {"name": _name_of(self.path, PATHS), **dataclasses.asdict(self.path)},
        }


def sampler_from_dict(data: dict) -> Sampler:
    """The sampler a `to_dict` describes.

    Raises:
        UnknownName: a sampler, solver or path of that name does not exist.
        BadValue: a field is missing or does not belong.
    """
    if data.get("sampler") != "ode":
        raise UnknownName("sampler", data.get("sampler"), ("ode",))
    try:
        path = data.get("path")
        return OdeSampler(
            _build("solver", data["solver"], SOLVERS),
            TimeGrid.from_dict(data["grid"]),
            None if path is None else _build("path", path, PATHS),
        )
    except (KeyError, TypeError) as error:
        if isinstance(error, UnknownName):
            raise
        raise BadValue(f"this does not describe a sampler: {error}") from error


def sampler_from_json(text: str) -> Sampler:
    """The sampler written by `to_json`."""
    try:
        return sampler_from_dict(json.loads(text))
    except json.JSONDecodeError as error:
        raise BadValue(f"not JSON: {error}") from error


def _name_of(value: object, table: dict[str, type]) -> str:
    for name, cls in table.items():
        if type(value) is cls:
            return name
    raise BadValue(f"{type(value).__name__} has no stored form; known: {', '.join(table)}")


def _build(kind: str, data: dict, table: dict[str, type]):
    data = dict(data)
    name = data.pop("name", None)
    if name not in table:
        raise UnknownName(kind, name, table)
    return table[name](**data)


Labels = Tensor | int | None | Literal["balanced"]


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
