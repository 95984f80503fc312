"""What every sampler is: noise in, samples out, a cost promised where it can be, a stored form."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod

from torch import Tensor

from explorer.errors import BadValue, UnknownName
from explorer.models.base import Cond, Denoiser
from explorer.process.paths import PATHS, Path
from explorer.sampling.seeds import Seeds
from explorer.sampling.solve import Observer


class Sampler(ABC):
    """Noise to samples. Finals are frozen dataclasses; `sampler_from_json(s.to_json()) == s`."""

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
    def nfe(self, model: Denoiser) -> int | None:
        """Network evaluations per sample, guidance included; a test counts them. None: only a run can tell."""

    @abstractmethod
    def n_steps(self, model: Denoiser) -> int:
        """Steps that an observer sees in one run."""

    @property
    def stochastic(self) -> bool:
        """Whether noise is drawn after the start."""
        return False

    @property
    def monotone(self) -> bool:
        """Whether the observed times only ever decrease."""
        return True

    @abstractmethod
    def path_on(self, model: Denoiser) -> Path:
        """The path this sampler's states live on."""

    @abstractmethod
    def to_dict(self) -> dict: ...

    @classmethod
    @abstractmethod
    def from_dict(cls, data: dict) -> Sampler:
        """The sampler that `to_dict` describes. `sampler_from_dict` finds the class and explains what is wrong."""

    def to_json(self) -> str:
        return json.dumps(self.to_dict())


def check_noise(model: Denoiser, noise: Tensor) -> None:
    """Raises BadValue unless the noise is (B, *shape) of the model's shape."""
    if noise.shape[1:] != tuple(model.shape):
        raise BadValue(
            f"{model.name or 'the model'} needs noise of shape (batch, {', '.join(map(str, model.shape))}), got {tuple(noise.shape)}"
        )


def described(value: object, table: dict[str, type]) -> dict:
    """{"name": its name in the table, **its fields}: how solvers and paths are stored."""
    for name, cls in table.items():
        if type(value) is cls:
            return {"name": name, **dataclasses.asdict(value)}
    raise BadValue(f"{type(value).__name__} has no stored form; known: {', '.join(table)}")


def built(kind: str, data: dict, table: dict[str, type]):
    """The value that `described` wrote."""
    data = dict(data)
    name = data.pop("name", None)
    if name not in table:
        raise UnknownName(kind, name, table)
    return table[name](**data)


def described_path(path: Path | None) -> dict | None:
    return None if path is None else described(path, PATHS)


def built_path(data: dict | None) -> Path | None:
    return None if data is None else built("path", data, PATHS)
