"""What metrics share that keep the features themselves: generated samples against real ones.

N generated, M real samples, D features.
"""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod

import numpy as np
from torch import Tensor

from explorer.errors import BadValue
from explorer.metrics.base import Metric
from explorer.metrics.features import FeatureSpace


class TwoSample(Metric, ABC):
    """A metric that keeps all features: memory N * D doubles, meant for N up to some 10^4.

    Args:
        features: the feature space.
        real: real samples (M, *shape); at least 2.
    """

    def __init__(self, features: FeatureSpace, real: Tensor):
        self.features = features
        self.y = features(real).numpy()  # (M, D)
        if len(self.y) < 2:
            raise BadValue(f"{self.title}: needs at least 2 real samples, got {len(self.y)}.")
        self._digest = hashlib.sha256(self.y.tobytes()).hexdigest()[:16]
        self._pieces: list[np.ndarray] = []
        self._memo: dict = {}  # derived from the generated samples; emptied with them

    @property
    @abstractmethod
    def title(self) -> str:
        """Name without the feature space."""

    @property
    @abstractmethod
    def settings(self) -> tuple:
        """Everything but features and real samples that changes the value."""

    @property
    def name(self) -> str:
        return f"{self.title}[{self.features.name}]"

    @property
    def n(self) -> int:
        return sum(len(p) for p in self._pieces)

    @property
    def key(self) -> tuple:
        return (self.title, self.features.name, self.features.hash, self._digest, *self.settings)

    @property
    def x(self) -> np.ndarray:
        """Features of the generated samples so far (N, D)."""
        if len(self._pieces) != 1:
            self._pieces = [np.concatenate([np.empty((0, self.features.dim)), *self._pieces])]
        return self._pieces[0]

    def update(self, samples: Tensor, labels: Tensor | None = None) -> None:
        self._pieces.append(self.features(samples).numpy())
        self._grow()

    def merge(self, other: Metric) -> None:
        self.check_comparable(other)
        if self.n == 0:
            self._pieces, self._memo = [other.x], dict(other._memo)
        else:
            self._pieces.append(other.x)
            self._grow()

    def _grow(self) -> None:
        """Samples were added: what can be accumulated is brought up to date here, and copied by `merge` into empty."""
        return

    def empty(self) -> TwoSample:
        fresh = copy.copy(self)
        fresh._pieces, fresh._memo = [], {}
        return fresh


def as_left_out(value: float, effects: np.ndarray) -> np.ndarray:
    """Replicates whose jackknife variance is var(effects) / K: from K independent effects of mean zero on `value`."""
    return value - (effects - effects.mean()) / (len(effects) - 1)
