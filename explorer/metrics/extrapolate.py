"""FID-infinity: the distance that an unlimited sample would have, read off the line of FD against 1 / n.

The plain distance of n samples is too high by a bias that falls like 1 / n and depends on the generator, so ranking two generators
at the same finite n can be wrong. The distances of ever larger subsets lie on a line in 1 / n; where it meets zero is the answer.

N samples, D features.
Source: Chong & Forsyth 2020, arXiv 1911.07023.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from explorer.errors import BadValue
from explorer.metrics.base import Estimate, block_of, jackknife
from explorer.metrics.frechet import Moments, Reference, distance_name, frechet_distance

N_GROUPS = 10


@dataclass(frozen=True)
class Line:
    """FD against 1 / n and its intercept.

    Attributes:
        estimate: the intercept with its standard error; `raw` is the plain distance at all N samples.
        n: sizes of the subsets. values: plain distance of each. slope: of the line, in units of FD times samples.
    """

    estimate: Estimate
    n: np.ndarray
    values: np.ndarray
    slope: float

    def at(self, n: float) -> float:
        """The line at n samples."""
        return self.estimate.value + self.slope / n


def fid_infinity(
    features: np.ndarray | Tensor,
    reference: Reference,
    *,
    sizes: Sequence[int] | None = None,
    n_points: int = 15,
    seed: int = 0,
) -> Line:
    """Distance to the reference at 1 / n = 0.

    Args:
        features: (N, D) of generated samples, in the reference's space.
        sizes: of the subsets; by default `n_points` evenly spaced from the larger of N / 10 and 2 D to N (the paper: 15 from 5000
            to 50000). Each subset is the beginning of a fresh shuffle.
        seed: of the shuffles.
    Returns:
        the estimate's error is the jackknife over ten groups of samples, the line fitted anew without each: the points share samples, and
        the scatter around the line says little about the error.
    Raises:
        BadValue: fewer than three sizes, or one that is no more than D: there the distance is no longer linear in 1 / n.
    Cost: eleven eigenproblems of size D for every subset.
    """
    x = features.detach().cpu().double().numpy() if isinstance(features, Tensor) else np.asarray(features, np.float64)
    if x.ndim != 2 or x.shape[1] != reference.dim:
        raise BadValue(f"features must be (N, {reference.dim}), got {x.shape}.")
    n, dim = x.shape
    if sizes is None:
        sizes = np.unique(np.linspace(max(n / 10, 2 * dim), n, n_points).astype(int)) if n > 2 * dim else ()
    sizes = np.asarray(sizes, dtype=np.int64)
    if len(sizes) < 3 or sizes.min() <= dim or sizes.max() > n:
        raise BadValue(
            f"a line needs three sizes above {dim} features and up to N = {n}, got {sizes.tolist() or 'none'}: take more samples."
        )
    rng = np.random.default_rng(seed)
    subsets = [rng.permutation(n)[:size] for size in sizes]
    group = block_of(np.arange(n), N_GROUPS)
    moments = [[Moments.of(x[rows[group[rows] == g]]) for g in range(N_GROUPS)] for rows in subsets]

    def line(without: int | None) -> tuple[np.ndarray, np.ndarray]:
        parts = [sum((m for g, m in enumerate(of) if g != without), Moments.zero(dim)) for of in moments]
        found = [frechet_distance(m.mean, m.cov, reference.mean, reference.root) for m in parts]
        return np.array([m.n for m in parts]), np.array(found)

    def intercept(counts: np.ndarray, values: np.ndarray) -> tuple[float, float]:
        slope, at_zero = np.polyfit(1 / counts, values, 1)
        return float(at_zero), float(slope)

    counts, values = line(None)
    at_zero, slope = intercept(counts, values)
    _, error, dof = jackknife(at_zero, np.array([intercept(*line(g))[0] for g in range(N_GROUPS)]))
    raw = float(values[np.argmax(counts)])
    note = f"line through {len(sizes)} subsets of {sizes.min()} to {sizes.max()} samples"
    name = distance_name(reference.features).replace("[", "-infinity[", 1)
    return Line(Estimate(at_zero, error, n, name, raw, raw - at_zero, dof, note), counts, values, slope)
