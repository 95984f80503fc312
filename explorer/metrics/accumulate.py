"""Moments of a stream of features, fast enough for 2048 of them: rows are gathered, and one triangle is updated at a time.

D features.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.linalg.blas import dsyrk
from torch import Tensor

from explorer.errors import BadValue
from explorer.metrics.frechet import Moments

ROWS = 512
"""Rows gathered before they are added: a product of that many reads each number of the triangle once."""


class Accumulator:
    """Count, mean and scatter of features as they come, float64; the same numbers in the same order give the same bits.

    The first rows fix a shift near the mean; sums are of what is left after it, so nothing cancels when the mean is taken off.

    Args:
        dim: D.
        rows: gathered before a product is made; part of what the last bits depend on.
    """

    def __init__(self, dim: int, rows: int = ROWS):
        if dim < 1 or rows < 1:
            raise BadValue(f"Accumulator(dim={dim}, rows={rows}): both must be at least 1.")
        self.dim, self.rows = dim, rows
        self._waiting = np.empty((rows, dim))
        self._n_waiting = 0
        self._n = 0
        self._shift: np.ndarray | None = None
        self._sum = np.zeros(dim)
        self._lower = np.zeros((dim, dim), order="F")  # only its lower triangle is kept up

    @property
    def n(self) -> int:
        """Rows so far."""
        return self._n + self._n_waiting

    def update(self, features: np.ndarray | Tensor) -> None:
        """Add features (B, D)."""
        x = features.detach().cpu().numpy() if isinstance(features, Tensor) else np.asarray(features)
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise BadValue(f"features must be a matrix (B, {self.dim}), got shape {x.shape}.")
        start = 0
        while start < len(x):
            taken = min(len(x) - start, self.rows - self._n_waiting)
            self._waiting[self._n_waiting : self._n_waiting + taken] = x[start : start + taken]
            self._n_waiting += taken
            start += taken
            if self._n_waiting == self.rows:
                self._add()

    def _add(self) -> None:
        x = self._waiting[: self._n_waiting]
        if not len(x):
            return
        if self._shift is None:
            self._shift = x.mean(0)
        x -= self._shift  # in place: these rows are done with
        self._sum += x.sum(0)
        self._lower = dsyrk(1.0, x.T, beta=1.0, c=self._lower, lower=1, overwrite_c=1)
        self._n, self._n_waiting = self._n + len(x), 0

    def moments(self) -> Moments:
        """Of everything so far; more may follow."""
        if self.n == 0:
            return Moments.zero(self.dim)
        waiting = Moments.of(self._waiting[: self._n_waiting])
        if self._n == 0:
            return waiting
        gap = self._sum / self._n
        scatter = np.tril(self._lower)
        scatter += np.tril(self._lower, -1).T
        scatter -= np.outer(self._sum, gap)
        return Moments(self._n, self._shift + gap, np.ascontiguousarray(scatter)) + waiting

    def state(self) -> dict[str, np.ndarray]:
        """Arrays that `resume` takes up, to the last bit."""
        at = np.tril_indices(self.dim)
        return {
            "n": np.array(self._n),
            "shift": np.zeros(self.dim) if self._shift is None else self._shift,
            "sum": self._sum,
            "lower": self._lower[at],
            "waiting": self._waiting[: self._n_waiting],
        }

    @classmethod
    def resume(cls, state: Mapping[str, np.ndarray], rows: int = ROWS) -> Accumulator:
        """The accumulator that was in this state.

        Raises:
            BadValue: the arrays do not fit together.
        """
        try:
            shift, total, waiting = (np.asarray(state[k], np.float64) for k in ("shift", "sum", "waiting"))
            n, lower = int(state["n"]), np.asarray(state["lower"], np.float64)
            out = cls(len(shift), rows)
            out._lower[np.tril_indices(out.dim)] = lower
            out._waiting[: len(waiting)] = waiting
            if (
                total.shape != shift.shape
                or n < 0
                or not all(np.isfinite(a).all() for a in (shift, total, lower, waiting))
            ):
                raise ValueError("shapes or values")
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise BadValue(f"no state of an accumulator: {error}") from None
        out._n, out._n_waiting, out._sum = n, len(waiting), total.copy()
        out._shift = shift.copy() if n else None
        return out
