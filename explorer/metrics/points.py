"""Distances between point sets: exact and sliced 2-Wasserstein, and which modes were found.

N generated x, M real y, D features, L directions, K modes.
"""

from __future__ import annotations

import copy
import math
from typing import Literal

import numpy as np
from torch import Tensor

from explorer.errors import BadValue
from explorer.metrics.base import Estimate, Metric, Replicates, block_of, jackknife, jackknife_variance
from explorer.metrics.features import FeatureSpace
from explorer.metrics.two_sample import TwoSample, as_left_out


class _Matching:
    """Optimal coupling of N and M equally weighted points on a line: both sorted, mass in order (no assignment needed)."""

    def __init__(self, n: int, m: int):
        # cut the unit interval where either quantile function jumps; exact because i/n = j/m is decided in integers
        cuts = np.unique(np.concatenate([np.arange(1, n + 1) * m, np.arange(1, m + 1) * n]))
        self.mass = np.diff(cuts, prepend=0) / (n * m)
        self.x = (cuts - 1) // m
        self.y = (cuts - 1) // n


def wasserstein2_1d(x: np.ndarray, y: np.ndarray) -> float:
    """Squared 2-Wasserstein distance of two samples on the line, of any two sizes."""
    x, y = np.sort(np.ravel(x).astype(np.float64)), np.sort(np.ravel(y).astype(np.float64))
    match = _Matching(len(x), len(y))
    return float(match.mass @ (x[match.x] - y[match.y]) ** 2)


def wasserstein2(x: np.ndarray, y: np.ndarray) -> float:
    """Squared 2-Wasserstein distance of two samples (N, D), (M, D), equal weights, exactly.

    On the line by sorting; else by network simplex (POT) when installed, or by linear assignment, which needs N = M.
    Cost is cubic: seconds at N = 2000.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not len(x) or not len(y):
        raise BadValue(f"wasserstein2 needs points (N, D) and (M, D), got {x.shape} and {y.shape}.")
    if x.shape[1] == 1:
        return wasserstein2_1d(x, y)
    from scipy.spatial.distance import cdist

    cost = cdist(x, y, "sqeuclidean")
    try:
        import ot
    except ImportError:
        if len(x) != len(y):
            raise BadValue(
                f"without POT only equal numbers of points can be matched, got {len(x)} and {len(y)}: "
                "pip install 'trajectory-explorer[metrics]'"
            ) from None
        from scipy.optimize import linear_sum_assignment

        return float(cost[linear_sum_assignment(cost)].mean())
    weights = np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y))
    return float(ot.emd2(*weights, cost, numItermax=10_000_000))


class ExactW2(TwoSample):
    """2-Wasserstein distance by optimal assignment of equally many generated and real points.

    Args:
        max_n: at most this many of either are used (the first); cost grows with its cube.
        debias: split either set in two halves and subtract their distance, 1/2 sum_i W2^2(X_i, Y_i)
            - 1/2 (W2^2(X_1, X_2) + W2^2(Y_1, Y_2)): equal distributions average zero, and the root keeps the sign.
        n_blocks: the error comes from the spread of the distance over that many disjoint blocks.
    Accuracy: the plain value is too high, by about n^(-2/D) in W2^2 for D > 4. Near zero the error is conservative.
    """

    def __init__(
        self, features: FeatureSpace, real: Tensor, *, max_n: int = 1000, debias: bool = False, n_blocks: int = 10
    ):
        if max_n < 4 * n_blocks or n_blocks < 2:
            raise BadValue(f"ExactW2(max_n={max_n}, n_blocks={n_blocks}): at least 2 blocks of 4 samples are needed.")
        self.max_n, self.debias, self.n_blocks = max_n, debias, n_blocks
        super().__init__(features, real)

    @property
    def title(self) -> str:
        return "W2 debiased" if self.debias else "W2"

    @property
    def settings(self) -> tuple:
        return (self.max_n, self.n_blocks)

    def compute(self) -> Estimate:
        used = self._used()
        if used < 4 * self.n_blocks:
            note = f"not enough samples: {used} of {4 * self.n_blocks}"
            return Estimate(math.nan, math.nan, self.n, self.name, note=note)
        value, (left_out,) = self.replicates()
        note = f"{used} points on either side"
        error = math.sqrt(jackknife_variance(left_out))
        return Estimate(value, error, self.n, self.name, dof=self.n_blocks - 1, note=note)

    def replicates(self) -> Replicates:
        used = self._used()
        if used not in self._memo:
            x, y = self.x[:used], self.y[:used]
            square = self._square(x, y)
            block = block_of(np.arange(used), self.n_blocks)
            blocks = [self._square(x[block == k], y[block == k]) for k in range(self.n_blocks)]
            value = math.copysign(math.sqrt(abs(square)), square)
            # the root by its derivative; its scale is at least that of the blocks' own scatter
            slope = 0.5 / max(abs(value), math.sqrt(np.std(blocks) / math.sqrt(self.n_blocks)), 1e-300)
            self._memo[used] = Replicates(value, [as_left_out(value, slope * np.array(blocks))])
        return self._memo[used]

    def _used(self) -> int:
        return min(self.n, len(self.y), self.max_n)

    def _square(self, x: np.ndarray, y: np.ndarray) -> float:
        if not self.debias:
            return wasserstein2(x, y)
        half = len(x) // 2
        (x1, x2), (y1, y2) = ((a[: 2 * half : 2], a[1 : 2 * half : 2]) for a in (x, y))
        across = wasserstein2(x1, y1) + wasserstein2(x2, y2)
        return 0.5 * (across - wasserstein2(x1, x2) - wasserstein2(y1, y2))


class SlicedW2(TwoSample):
    """Sliced 2-Wasserstein distance: root mean square over fixed directions of the distance on the line.

    Args:
        n_directions: by default 64 in the plane, else 256. Every setting sees the same ones: drawn once from `seed`,
            in the plane evenly spaced from a drawn angle (more accurate than independent ones).
    Accuracy: with few samples the plain value does not fall below a noise floor of order n^(-1/2), printed in the note;
    smaller values are no evidence of a difference. Near the floor the error is conservative.
    Cost of `compute`: sorts N x L projections.
    Source: Bonneel et al. 2015 (sliced distance); the error from the Kantorovich potentials, del Barrio & Loubes 2019.
    """

    def __init__(self, features: FeatureSpace, real: Tensor, *, n_directions: int | None = None, seed: int = 0):
        if n_directions is None:
            n_directions = 64 if features.dim == 2 else 256
        if n_directions < 1:
            raise BadValue(f"SlicedW2(n_directions={n_directions}): at least one direction is needed.")
        self.n_directions, self.seed = n_directions, seed
        super().__init__(features, real)
        self.directions = _directions(features.dim, n_directions, np.random.default_rng(seed))  # (D, L)
        self._order_y, self._sorted_y = _sort(self.y @ self.directions)
        a, b = _sort(self.y[::2] @ self.directions)[1], _sort(self.y[1::2] @ self.directions)[1]
        match = _Matching(a.shape[1], b.shape[1])
        floor = ((a[:, match.x] - b[:, match.y]) ** 2 @ match.mass).mean()
        self._floor = floor / (1 / a.shape[1] + 1 / b.shape[1])  # W2^2 between equals is about floor * (1/n + 1/m)

    @property
    def title(self) -> str:
        return "SW2"

    @property
    def settings(self) -> tuple:
        return (self.n_directions, self.seed)

    def compute(self) -> Estimate:
        n = self.n
        if n < 10:
            return Estimate(math.nan, math.nan, n, self.name, note=f"not enough samples: {n} of 10")
        value, groups = self.replicates()
        floor = math.sqrt(self._floor * (1 / n + 1 / len(self.y)))
        error = math.sqrt(sum(jackknife_variance(g) for g in groups))
        return Estimate(value, error, n, self.name, note=f"noise floor {floor:.2g}")

    def replicates(self) -> Replicates:
        if self.n not in self._memo:
            order_x, x = _sort(self.x @ self.directions)
            y = self._sorted_y
            match = _Matching(x.shape[1], y.shape[1])
            gap = x[:, match.x] - y[:, match.y]  # (L, cuts)
            square = float(((gap**2) @ match.mass).mean())
            value = math.sqrt(square)
            slope = 0.5 / max(value, math.sqrt(self._floor * (1 / len(self.x) + 1 / len(self.y))), 1e-300)
            groups = []
            for points, order, side, sign in ((x, order_x, match.x, 1), (y, self._order_y, match.y, -1)):
                potential = _potential(points, sign * gap * match.mass, side)
                effects = np.bincount(order.ravel(), potential.ravel(), points.shape[1]) / len(points)
                groups.append(as_left_out(value, slope * effects))
            self._memo = {self.n: Replicates(value, groups)}
        return self._memo[self.n]


def _directions(dim: int, n: int, rng: np.random.Generator) -> np.ndarray:
    if dim == 2:
        angle = math.pi * (np.arange(n) + rng.uniform()) / n
        return np.stack([np.cos(angle), np.sin(angle)])
    directions = rng.normal(size=(dim, n))
    return directions / np.linalg.norm(directions, axis=0)


def _sort(projected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order and sorted values by direction: (N, L) -> (L, N), (L, N)."""
    rows = np.ascontiguousarray(projected.T)
    order = rows.argsort(axis=1)
    return order, np.take_along_axis(rows, order, axis=1)


def _potential(points: np.ndarray, weighted_gap: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Kantorovich potential at the sorted points (L, N), up to a constant: its slope is 2 (point - partner)."""
    starts = np.flatnonzero(np.diff(side, prepend=-1))
    mean_gap = np.add.reduceat(weighted_gap, starts, axis=1) * points.shape[1]  # (L, N) point - mean partner
    steps = np.diff(points, axis=1) * (mean_gap[:, 1:] + mean_gap[:, :-1])  # trapezoid of 2 * gap
    return np.concatenate([np.zeros((len(points), 1)), np.cumsum(steps, axis=1)], axis=1)


def sliced_w2_gaussians(
    mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray, directions: np.ndarray
) -> float:
    """SW2 of two Gaussians over given directions (D, L), in closed form: the oracle of `SlicedW2`."""
    gap = (mean1 - mean2) @ directions
    spread1, spread2 = (np.sqrt(np.einsum("dl,de,el->l", directions, c, directions)) for c in (cov1, cov2))
    return math.sqrt(float(np.mean(gap**2 + (spread1 - spread2) ** 2)))


class ModeCoverage(Metric):
    """How many modes of a known mixture were hit, how many samples are near any mode, how even the modes are.

    Args:
        centres: (K, *shape) of the modes.
        radius: a sample within it (Euclidean) of its nearest centre is of high quality and counts for that mode.
        weights: (K,) true weights; equal when None.
        quantity: what `compute` returns: "covered" number of modes with at least one high-quality sample, "quality" share
            of such samples, or "kl" divergence in nats of the histogram over modes from the weights, bias-corrected.
    `all()` returns the three together.
    """

    TITLES = {"covered": "modes covered", "quality": "high-quality share", "kl": "mode KL"}

    def __init__(
        self,
        centres: Tensor,
        radius: float,
        weights: Tensor | None = None,
        *,
        quantity: Literal["covered", "quality", "kl"] = "covered",
        n_blocks: int = 10,
    ):
        if quantity not in self.TITLES:
            raise BadValue(f"quantity {quantity!r}: expected covered, quality or kl.")
        if centres.ndim < 2 or len(centres) < 1 or not radius > 0:
            raise BadValue(
                f"mode coverage needs centres (K, *shape) and a positive radius, got {tuple(centres.shape)}."
            )
        self.centres = centres.flatten(1).to("cpu").double().numpy()
        k = len(self.centres)
        self.weights = np.full(k, 1 / k) if weights is None else np.asarray(weights, np.float64).ravel()
        if self.weights.shape != (k,) or not (self.weights > 0).all():
            raise BadValue(f"weights must be {k} positive numbers, one per mode.")
        self.weights = self.weights / self.weights.sum()
        self.radius, self.quantity, self.n_blocks = float(radius), quantity, n_blocks
        self._counts = np.zeros((n_blocks, k + 1), np.int64)  # last column: near no mode

    @property
    def lower_is_better(self) -> bool:
        return self.quantity == "kl"

    @property
    def name(self) -> str:
        return f"{self.TITLES[self.quantity]}[{len(self.centres)} modes]"

    @property
    def n(self) -> int:
        return int(self._counts.sum())

    @property
    def key(self) -> tuple:
        centres = tuple(self.centres.ravel().tolist())
        return ("modes", self.quantity, self.radius, self.n_blocks, tuple(self.weights.tolist()), centres)

    @property
    def histogram(self) -> np.ndarray:
        """High-quality samples per mode (K,)."""
        return self._counts.sum(0)[:-1]

    def empty(self) -> ModeCoverage:
        fresh = copy.copy(self)
        fresh._counts = np.zeros_like(self._counts)
        return fresh

    def update(self, samples: Tensor, labels: Tensor | None = None) -> None:
        x = samples.detach().flatten(1).cpu().double().numpy()
        if x.shape[1] != self.centres.shape[1]:
            raise BadValue(
                f"{self.name}: samples {tuple(samples.shape)} do not fit centres in {self.centres.shape[1]}-D."
            )
        if not np.isfinite(x).all():
            raise BadValue(f"{self.name}: samples are not finite.")
        from scipy.spatial.distance import cdist

        far = cdist(x, self.centres)  # (B, K)
        mode = np.where(far.min(1) <= self.radius, far.argmin(1), len(self.centres))
        np.add.at(self._counts, (block_of(self.n + np.arange(len(x)), self.n_blocks), mode), 1)

    def merge(self, other: Metric) -> None:
        self.check_comparable(other)
        self._counts = self._counts + other._counts

    def compute(self) -> Estimate:
        return self._estimate(self.quantity)

    def all(self) -> dict[str, Estimate]:
        """covered, quality and kl."""
        return {quantity: self._estimate(quantity) for quantity in self.TITLES}

    def replicates(self) -> Replicates:
        total = self._counts.sum(0)
        left_out = [self._statistic(total - c, self.quantity) for c in self._counts if c.any()]
        return Replicates(self._statistic(total, self.quantity), [np.array(left_out)])

    def _estimate(self, quantity: str) -> Estimate:
        total = self._counts.sum(0)
        n, hits = int(total.sum()), total[:-1]
        name = f"{self.TITLES[quantity]}[{len(hits)} modes]"
        if n < 2 * self.n_blocks or (quantity == "kl" and hits.sum() < len(hits)):
            return Estimate(math.nan, math.nan, n, name, note="not enough samples")
        value = self._statistic(total, quantity)
        if quantity == "covered":
            # variance of the number of modes a second run of n would find, at the observed shares
            missed = (1 - hits[hits > 0] / n) ** n
            return Estimate(value, math.sqrt(float((missed * (1 - missed)).sum())), n, name)
        if quantity == "quality":
            share = (hits.sum() + 1) / (n + 2)  # keeps an error at 0 and 1
            return Estimate(value, math.sqrt(share * (1 - share) / n), n, name)
        left_out = np.array([self._statistic(total - c, "kl") for c in self._counts if c.any()])
        corrected, error, dof = jackknife(value, left_out)
        return Estimate(corrected, error, n, name, value, value - corrected, dof)

    def _statistic(self, counts: np.ndarray, quantity: str) -> float:
        hits = counts[:-1]
        if quantity == "covered":
            return float((hits > 0).sum())
        if quantity == "quality":
            return float(hits.sum() / max(counts.sum(), 1))
        p = hits / max(hits.sum(), 1)
        seen = p > 0
        return float((p[seen] * np.log(p[seen] / self.weights[seen])).sum())
