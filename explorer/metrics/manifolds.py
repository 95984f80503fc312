"""Precision, recall, density and coverage: is each sample where the data are, and is the data where samples are?

A set of points stands for its manifold as the union of balls, one around each point, reaching to its k-th neighbour in the set.

    precision = share of generated points inside some ball of the real ones
    recall    = share of real points inside some ball of the generated ones
    density   = mean over generated points of the number of real balls around them, divided by k
    coverage  = share of real balls that hold a generated point

None of them is 1 for equal distributions: in 64 dimensions half of the points of a second sample lie outside of every ball. The value
for real against real, which `compute` notes, is what a perfect model would get.

N generated x, M real y, D features.
Sources: Kynkaanniemi et al. 2019, arXiv 1904.06991 (precision, recall); Naeem et al. 2020, arXiv 2002.09797 (density, coverage).
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from explorer.errors import BadValue
from explorer.metrics.base import Estimate, Replicates, block_of, jackknife_variance
from explorer.metrics.features import FeatureSpace
from explorer.metrics.two_sample import TwoSample, as_left_out

Quantity = Literal["precision", "recall", "density", "coverage"]
USUAL_K: dict[Quantity, int] = {"precision": 3, "recall": 3, "density": 5, "coverage": 5}
N_GROUPS = 10


class Manifold(TwoSample):
    """One of precision, recall, density and coverage of generated samples.

    Args:
        features, real: see `TwoSample`.
        k: neighbours; the usual number of each when None. A point is not its own neighbour.
    Cost of `compute`: eleven times the distances among N + M points (ten of them for the error).
    Accuracy: the error is the jackknife over ten groups of generated and ten of real points; for recall it is up to twice too large,
    since points that are left out also widen the balls of the others. The value depends on N and M: compare at equal numbers only.
    """

    lower_is_better = False

    def __init__(self, quantity: Quantity, features: FeatureSpace, real: Tensor, *, k: int | None = None):
        if quantity not in USUAL_K:
            raise BadValue(f"quantity {quantity!r}: expected precision, recall, density or coverage.")
        self.quantity, self.k = quantity, USUAL_K[quantity] if k is None else k
        super().__init__(features, real)
        if self.k < 1 or len(self.y) < 2 * (self.k + 1):
            raise BadValue(
                f"{quantity} with k = {self.k} needs at least {2 * (self.k + 1)} real samples, got {len(self.y)}."
            )

    @property
    def title(self) -> str:
        return self.quantity

    @property
    def settings(self) -> tuple:
        return (self.k,)

    @cached_property
    def _real(self) -> Tensor:
        return torch.from_numpy(self.y)

    @cached_property
    def _radii(self) -> Tensor:
        return radii(self._real, self.k)

    def compute(self) -> Estimate:
        n, least = self.n, max(2 * N_GROUPS, self.k + 2)
        if n < least:
            return Estimate(math.nan, math.nan, n, self.name, note=f"not enough samples: {n} of {least}")
        value, groups = self.replicates()
        error = math.sqrt(sum(jackknife_variance(g) for g in groups))
        m = len(self.y)
        note = f"k = {self.k}, {m} real samples; real against real, {m // 2} each: {self.ceiling:.3g}"
        return Estimate(value, error, n, self.name, dof=N_GROUPS - 1, note=note)

    @cached_property
    def ceiling(self) -> float:
        """What one half of the real samples gets against the other: equal distributions at M / 2 points."""
        a, b = self._real[::2], self._real[1::2]
        return _mean(self.quantity, a, b, self.k)

    def replicates(self) -> Replicates:
        """Value; left out are groups of generated points, by recomputing, and groups of real ones, by their own shares."""
        if "replicates" not in self._memo:
            x, y = torch.from_numpy(self.x), self._real
            value, shares = _shares(self.quantity, x, y, self.k, self._radii)
            block = torch.from_numpy(block_of(np.arange(len(x)), N_GROUPS))
            of_y = block_of(np.arange(len(y)), N_GROUPS)
            if self.quantity in ("precision", "density"):  # a mean over generated points, given the real balls
                less_x = _without(shares.numpy(), block.numpy())
                less_y = [_mean(self.quantity, x, y[torch.from_numpy(of_y != g)], self.k) for g in range(N_GROUPS)]
            else:
                less_x = [_mean(self.quantity, x[block != g], y, self.k, self._radii) for g in range(N_GROUPS)]
                less_y = _without(shares.numpy(), of_y)
            centred = [as_left_out(value, (N_GROUPS - 1) * (np.mean(g) - np.asarray(g))) for g in (less_x, less_y)]
            self._memo["replicates"] = Replicates(value, centred)
        return self._memo["replicates"]

    def _grow(self) -> None:
        self._memo = {}


def _without(shares: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Means with one group left out."""
    return np.array([shares[group != g].mean() for g in range(N_GROUPS)])


def _mean(quantity: Quantity, x: Tensor, y: Tensor, k: int, radii_y: Tensor | None = None) -> float:
    return _shares(quantity, x, y, k, radii(y, k) if radii_y is None else radii_y)[0]


def _shares(quantity: Quantity, x: Tensor, y: Tensor, k: int, radii_y: Tensor) -> tuple[float, Tensor]:
    """The quantity, and its summand by generated (precision, density) or real point (recall, coverage)."""
    if quantity == "recall":
        each = inside(y, x, radii(x, k)).any
    elif quantity == "coverage":
        each = inside(x, y, radii_y).hit
    elif quantity == "precision":
        each = inside(x, y, radii_y).any
    else:
        each = inside(x, y, radii_y).count.double() / k
    each = each.double()
    return float(each.mean()), each


class Inside:
    """Which points lie in which balls, summed up: for every point how many balls hold it, for every ball whether it holds one."""

    def __init__(self, count: Tensor, hit: Tensor):
        self.count, self.hit = count, hit

    @property
    def any(self) -> Tensor:
        return self.count > 0


def inside(points: Tensor, centres: Tensor, radius: Tensor, chunk: int = 1024) -> Inside:
    """Points (P, D) in balls around centres (B, D) of radius (B,), the surface included."""
    count, hit = [], torch.zeros(len(centres), dtype=torch.bool)
    for piece in points.split(chunk):
        held = _distances(piece, centres) <= radius
        count.append(held.sum(1))
        hit |= held.any(0)
    return Inside(torch.cat(count), hit)


def radii(points: Tensor, k: int, chunk: int = 1024) -> Tensor:
    """Distance (P,) of each point to its k-th nearest other point."""
    if len(points) < k + 1:
        raise BadValue(f"{len(points)} points have no neighbour number {k}.")
    out = []
    for start in range(0, len(points), chunk):
        piece = _distances(points[start : start + chunk], points)
        piece[torch.arange(len(piece)), torch.arange(start, start + len(piece))] = math.inf  # not its own neighbour
        out.append(piece.kthvalue(k, dim=1).values)
    return torch.cat(out)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """By differences where that is cheap, so that the surface of a ball is met exactly; else by products."""
    mode = "donot_use_mm_for_euclid_dist" if a.shape[1] <= 64 else "use_mm_for_euclid_dist"
    return torch.cdist(a, b, compute_mode=mode)


def expected_coverage(n: int, m: int, k: int) -> float:
    """Coverage of n fresh points of the distribution of the m real ones, exactly, whatever it is (Naeem et al., Eq. 5)."""
    return 1 - math.prod((m - 1 - i) / (n + m - 1 - i) for i in range(k))


def precision(features: FeatureSpace, real: Tensor, k: int | None = None) -> Manifold:
    """Share of generated samples inside the manifold of the real ones: are they realistic?"""
    return Manifold("precision", features, real, k=k)


def recall(features: FeatureSpace, real: Tensor, k: int | None = None) -> Manifold:
    """Share of real samples inside the manifold of the generated ones: is everything there?"""
    return Manifold("recall", features, real, k=k)


def density(features: FeatureSpace, real: Tensor, k: int | None = None) -> Manifold:
    """Precision that counts how many real balls a sample is in; 1 for equal distributions, and not bounded by it."""
    return Manifold("density", features, real, k=k)


def coverage(features: FeatureSpace, real: Tensor, k: int | None = None) -> Manifold:
    """Share of real samples with a generated one in their ball."""
    return Manifold("coverage", features, real, k=k)
