"""Loss by noise level: per-sample losses gathered cheaply and averaged on one fixed grid of log sigma.

T ticks, L = 30 bins.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from explorer.errors import BadValue

LEVEL_EDGES = np.logspace(-3, 3, 31)
"""Edges of the bins in sigma (the ratio sigma_t / alpha_t): five per decade; the outer bins take what lies beyond."""

LEVEL_CENTRES = np.sqrt(LEVEL_EDGES[:-1] * LEVEL_EDGES[1:])
"""Geometric centre of each bin."""

N_LEVELS = len(LEVEL_CENTRES)
HELD = 64  # updates held as they are before they are averaged, so that a step costs two list entries and no arithmetic


class LevelLoss(NamedTuple):
    """Mean loss in each bin of `LEVEL_EDGES` since the last tick, each array of shape (30,).

    Attributes:
        mean, std_error: NaN where there were too few samples (one, two).
        n: samples that fell in the bin.
    """

    mean: np.ndarray
    std_error: np.ndarray
    n: np.ndarray

    def to_dict(self) -> dict[str, list]:
        """JSON-able form that leaves out empty bins; `from_dict` is its inverse, to six digits."""
        bins = np.flatnonzero(self.n)
        plain = {k: [_six(v) for v in getattr(self, k)[bins]] for k in ("mean", "std_error")}
        return {"bins": bins.tolist(), **plain, "n": self.n[bins].tolist()}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> LevelLoss:
        out = cls(np.full(N_LEVELS, np.nan), np.full(N_LEVELS, np.nan), np.zeros(N_LEVELS, np.int64))
        out.n[given["bins"]] = given["n"]
        for values, key in ((out.mean, "mean"), (out.std_error, "std_error")):
            values[given["bins"]] = [np.nan if v is None else v for v in given[key]]
        return out


def level_history(rows: Iterable[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps (T,) and mean losses (T, 30) of a run's log, NaN in empty bins: what a strip of time by log sigma shows.

    Args:
        rows: of `read_log`; those without levels of this name are passed over.
        name: the update's networks, e.g. "net" or "fake+student".
    """
    kept = [row for row in rows if name in row.get("levels", ())]
    means = [LevelLoss.from_dict(row["levels"][name]).mean for row in kept]
    return np.array([row["step"] for row in kept], np.int64), np.reshape(means, (len(kept), N_LEVELS))


class LevelSums:
    """Gathers (sigma, loss) pairs of updates; nothing is computed, and no device waited for, until they are taken."""

    def __init__(self):
        self._held: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._sums: dict[str, np.ndarray] = {}  # (3, 30): counts, sums, sums of squares

    def add(self, name: str, sigma: Tensor, loss: Tensor) -> None:
        if sigma.shape != loss.shape:
            raise BadValue(
                f"the levels of update {name!r} are sigma of shape {tuple(sigma.shape)} and losses of shape "
                f"{tuple(loss.shape)}; give one of each per sample."
            )
        held = self._held.setdefault(name, [])
        held.append((sigma.detach(), loss.detach()))
        if len(held) >= HELD:
            self._flush(name)

    def take(self) -> dict[str, LevelLoss]:
        """Means since the last call."""
        for name in list(self._held):
            self._flush(name)
        out = {}
        with np.errstate(divide="ignore", invalid="ignore"):
            for name, (n, total, square) in self._sums.items():
                mean = total / n
                variance = np.maximum(square / n - mean**2, 0) * n / (n - 1)
                error = np.where(n > 1, np.sqrt(variance / n), np.nan)
                out[name] = LevelLoss(mean, error, n.astype(np.int64))
        self._sums = {}
        return out

    def state(self) -> dict[str, list]:
        """What has been gathered since the last `take`, JSON-able."""
        for name in list(self._held):
            self._flush(name)
        return {name: sums.tolist() for name, sums in self._sums.items()}

    def load(self, state: Mapping[str, list]) -> None:
        self._sums = {name: np.array(sums) for name, sums in state.items()}

    def _flush(self, name: str) -> None:
        held = self._held.pop(name)
        sigma = torch.cat([s.double().reshape(-1) for s, _ in held]).cpu().numpy()
        loss = torch.cat([v.double().reshape(-1) for _, v in held]).cpu().numpy()
        known = np.isfinite(loss) & ~np.isnan(sigma)
        sigma, loss = sigma[known], loss[known]
        bins = np.clip(np.searchsorted(LEVEL_EDGES, sigma, side="right") - 1, 0, N_LEVELS - 1)
        parts = np.stack([np.bincount(bins, weights, N_LEVELS) for weights in (None, loss, loss**2)])
        self._sums[name] = self._sums.get(name, 0) + parts


def _six(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
