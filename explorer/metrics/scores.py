"""Inception Score: are samples recognised, and are there many kinds of them?

    IS = exp( mean over samples of KL( p(class | sample) || mean p ) )

K classes; 1 for samples that all look alike to the classifier, K for confident and balanced ones. It looks at no real data.
Source: Salimans et al. 2016, arXiv 1606.03498.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from explorer.errors import BadValue
from explorer.metrics.base import Estimate, Metric, Replicates, block_of, jackknife_variance


class InceptionScore(Metric):
    """Inception Score by splits, streaming: sums of probabilities and of their entropies are all that is kept.

    Args:
        logits: samples -> (B, K); the feature space "logits_unbiased" of Inception-v3 for the published score.
        n_splits: the score is the mean over so many parts of the samples; ten is usual.
    The samples are dealt out to the splits by `block_of`, which is the shuffling of other implementations without keeping samples.
    Accuracy: the error is the spread over splits divided by the root of their number (other implementations print the spread itself).
    With n samples a split the score is too low by a factor of about exp(-(K - 1) / (2 n)) for confident classifiers; `raw` is the value,
    nothing is corrected.
    """

    lower_is_better = False

    def __init__(self, logits: Callable[[Tensor], Tensor], n_splits: int = 10):
        if n_splits < 1:
            raise BadValue(f"InceptionScore(n_splits={n_splits}): at least one.")
        self.logits, self.n_splits = logits, n_splits
        self._p: np.ndarray | None = None  # (S, K) sums of probabilities
        self._plogp = np.zeros(n_splits)
        self._counts = np.zeros(n_splits, np.int64)

    @property
    def name(self) -> str:
        return f"IS[{getattr(self.logits, 'name', 'logits')}]"

    @property
    def n(self) -> int:
        return int(self._counts.sum())

    @property
    def key(self) -> tuple:
        return ("IS", getattr(self.logits, "name", id(self.logits)), getattr(self.logits, "hash", ""), self.n_splits)

    def empty(self) -> InceptionScore:
        return InceptionScore(self.logits, self.n_splits)

    @torch.no_grad()
    def update(self, samples: Tensor, labels: Tensor | None = None) -> None:
        log_p = self.logits(samples).to("cpu", torch.float64).log_softmax(1).numpy()  # (B, K)
        if not np.isfinite(log_p).all():
            raise BadValue(f"{self.name}: the classifier's answers are not finite.")
        p, split = np.exp(log_p), block_of(self.n + np.arange(len(log_p)), self.n_splits)
        if self._p is None:
            self._p = np.zeros((self.n_splits, p.shape[1]))
        np.add.at(self._p, split, p)
        np.add.at(self._plogp, split, (p * log_p).sum(1))
        self._counts += np.bincount(split, minlength=self.n_splits)

    def merge(self, other: Metric) -> None:
        self.check_comparable(other)
        if other._p is not None:
            self._p = other._p.copy() if self._p is None else self._p + other._p
        self._plogp = self._plogp + other._plogp
        self._counts = self._counts + other._counts

    def scores(self) -> np.ndarray:
        """(S,) of the splits that hold samples."""
        if self._p is None:
            return np.empty(0)
        held = self._counts > 0
        n = self._counts[held]
        q = self._p[held] / n[:, None]
        entropy = (q * np.log(np.maximum(q, 1e-300))).sum(1)
        return np.exp(self._plogp[held] / n - entropy)

    def compute(self) -> Estimate:
        least = 2 * self.n_splits
        if self.n < least:
            return Estimate(math.nan, math.nan, self.n, self.name, note=f"not enough samples: {self.n} of {least}")
        scores, k = self.scores(), self._p.shape[1]
        error = math.nan if len(scores) < 2 else float(scores.std(ddof=1)) / math.sqrt(len(scores))
        short = math.exp(-(k - 1) / (2 * self.n / len(scores)))
        note = f"mean of {len(scores)} splits; too low by a factor of up to {short:.2f} for {k} classes at {self.n // len(scores)} a split"
        return Estimate(float(scores.mean()), error, self.n, self.name, dof=max(len(scores) - 1, 1), note=note)

    def replicates(self) -> Replicates:
        scores = self.scores()
        if len(scores) < 2:
            return Replicates(float(scores.mean()), [np.full(2, math.nan)])
        left_out = (scores.sum() - scores) / (len(scores) - 1)
        assert math.isfinite(jackknife_variance(left_out))
        return Replicates(float(scores.mean()), [left_out])
