"""Memorisation meter: are generated samples nearer to the training set than unseen real samples are?

Every other metric here is blind to copying. The distance of each generated sample to its nearest training sample, in a
feature space, is compared with the same distances of the test split.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from torch import Tensor

from explorer.errors import BadValue
from explorer.metrics.base import Estimate, Metric, Replicates, block_of, jackknife_variance
from explorer.metrics.features import FeatureSpace

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95)


class Memorisation(Metric):
    """How much nearer generated samples lie to the training set than test samples do.

    The value is the one-sided Kolmogorov-Smirnov distance max_t [F_generated(t) - F_test(t)] of nearest-training
    distances: 1 when every sample is a copy, about zero (within its noise of order sqrt(1/n + 1/n_test)) when generated
    samples behave like unseen data. `summary` adds quantiles, p-value, and the share of near copies.

    Args:
        features: the feature space. train, test: real samples (M, *shape), disjoint.
        cosine: compare directions (1 - cosine) instead of Euclidean distances.
    Raises:
        BadValue: fewer than 20 test samples, too few for a distribution.
    """

    def __init__(
        self, features: FeatureSpace, train: Tensor, test: Tensor, *, cosine: bool = False, n_blocks: int = 20
    ):
        if len(test) < 20 or len(train) < 1 or n_blocks < 2:
            raise BadValue(
                f"Memorisation needs training samples and >= 20 test samples, got {len(train)}, {len(test)}."
            )
        self.features, self.cosine, self.n_blocks = features, cosine, n_blocks
        self._train = self._embed(train)
        self._test = self._nearest(test)[0]  # (n_test,)
        self._pieces: list[np.ndarray] = []
        self._indices: list[np.ndarray] = []

    @property
    def name(self) -> str:
        return f"memorisation KS[{self.features.name}]"

    @property
    def n(self) -> int:
        return sum(len(p) for p in self._pieces)

    @property
    def key(self) -> tuple:
        sums = (float(self._train.sum()), float(self._test.sum()), len(self._train), len(self._test))
        return ("memorisation", self.features.name, self.features.hash, self.cosine, self.n_blocks, *sums)

    def empty(self) -> Memorisation:
        fresh = copy.copy(self)
        fresh._pieces, fresh._indices = [], []
        return fresh

    def update(self, samples: Tensor, labels: Tensor | None = None) -> None:
        distances, indices = self._nearest(samples)
        self._pieces.append(distances)
        self._indices.append(indices)

    def merge(self, other: Metric) -> None:
        self.check_comparable(other)
        self._pieces += other._pieces
        self._indices += other._indices

    @property
    def distances(self) -> np.ndarray:
        """(N,) of each generated sample to its nearest training sample."""
        return np.concatenate([np.empty(0), *self._pieces])

    @property
    def test_distances(self) -> np.ndarray:
        """(n_test,) of each test sample to its nearest training sample."""
        return self._test

    @property
    def nearest(self) -> np.ndarray:
        """(N,) index of the nearest training sample."""
        return np.concatenate([np.empty(0, np.int64), *self._indices])

    def compute(self) -> Estimate:
        n = self.n
        if n < self.n_blocks:
            return Estimate(math.nan, math.nan, n, self.name, note=f"not enough samples: {n} of {self.n_blocks}")
        value, groups = self.replicates()
        error = math.sqrt(sum(jackknife_variance(g) for g in groups))
        p = self._p_value(value)
        note = f"one-sided p = {p:.2g} against {len(self._test)} test samples"
        return Estimate(value, error, n, self.name, dof=self.n_blocks - 1, note=note)

    def replicates(self) -> Replicates:
        x, y = self.distances, self._test
        of_x, of_y = (block_of(np.arange(len(a)), self.n_blocks) for a in (x, y))
        less_x = np.array([_excess(x[of_x != k], y) for k in range(self.n_blocks)])
        less_y = np.array([_excess(x, y[of_y != k]) for k in range(self.n_blocks)])
        return Replicates(_excess(x, y), [less_x, less_y])

    def summary(self) -> dict:
        """For a model card: quantiles of both distance distributions, KS, p, share of samples nearer than 1 % of test."""
        from scipy import stats  # a second to import

        x, y = self.distances, self._test
        if not len(x):
            raise BadValue(f"{self.name}: no samples yet; call update first.")
        ks = _excess(x, y)
        return {
            "features": self.features.name,
            "n": len(x),
            "n_test": len(y),
            "quantiles": list(QUANTILES),
            "generated": np.quantile(x, QUANTILES).tolist(),
            "test": np.quantile(y, QUANTILES).tolist(),
            "ks": ks,
            "p": self._p_value(ks),
            "ks_two_sided": float(stats.ks_2samp(x, y).statistic),
            "nearer_than_test": float(stats.mannwhitneyu(y, x).statistic / (len(x) * len(y))),
            "near_copies": float((x < np.quantile(y, 0.01)).mean()),
        }

    def _p_value(self, ks: float) -> float:
        n, m = self.n, len(self._test)
        return float(math.exp(-2 * ks**2 * n * m / (n + m)))  # one-sided, large samples

    def _embed(self, samples: Tensor) -> Tensor:
        x = self.features(samples)
        return torch.nn.functional.normalize(x, dim=1) if self.cosine else x

    def _nearest(self, samples: Tensor, chunk: int = 512) -> tuple[np.ndarray, np.ndarray]:
        best = [torch.cdist(p, self._train).min(1) for p in self._embed(samples).split(chunk)]
        distances = torch.cat([b.values for b in best]).numpy()
        return distances**2 / 2 if self.cosine else distances, torch.cat([b.indices for b in best]).numpy()


def _excess(x: np.ndarray, y: np.ndarray) -> float:
    """max_t F_x(t) - F_y(t), never negative."""
    at = np.sort(x)
    share_x = np.searchsorted(at, at, side="right") / len(x)
    share_y = np.searchsorted(np.sort(y), at, side="right") / len(y)
    return max(float((share_x - share_y).max()), 0.0)
