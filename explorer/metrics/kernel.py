"""Distances from kernels: KID (polynomial), RBF-MMD and energy distance, as one full unbiased U-statistic.

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y)

N generated x, M real y, D features. The estimate is unbiased, so it is negative half of the time when the distributions
agree; it is not clipped. The error is the delete-one jackknife over generated and over real samples, exact in O(N M) from
row sums. (The spread over random subsets that other packages print is not the error of the full-sample value.)

Sources: Gretton et al. 2012 (JMLR 13; U-statistic); Binkowski et al. 2018, arXiv 1801.01401 (KID); Szekely & Rizzo 2013.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from explorer.errors import BadValue
from explorer.metrics.base import Estimate, Replicates, jackknife_variance
from explorer.metrics.features import FeatureSpace
from explorer.metrics.two_sample import TwoSample


@dataclass(frozen=True)
class Kernel:
    """k(a, b): (N, D), (M, D) -> (N, M) float64, symmetric and conditionally positive definite."""

    name: str
    fn: Callable[[Tensor, Tensor], Tensor]
    settings: tuple = ()


def _polynomial(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


POLYNOMIAL = Kernel("KID", _polynomial)  # (x.y / D + 1)^3


def _minus_distance(a: Tensor, b: Tensor) -> Tensor:
    return -torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


ENERGY = Kernel("energy", _minus_distance)


def gaussian_kernel(bandwidth: float) -> Kernel:
    """exp(-|a - b|^2 / (2 bandwidth^2))."""
    if not (math.isfinite(bandwidth) and bandwidth > 0):
        raise BadValue(f"the bandwidth of a kernel must be positive, got {bandwidth}.")
    scale = -0.5 / bandwidth**2

    def fn(a: Tensor, b: Tensor) -> Tensor:
        square = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
        return torch.exp(scale * square.clamp(min=0))

    return Kernel("MMD", fn, (bandwidth,))


class KernelDistance(TwoSample):
    """MMD^2 under a kernel; the standard error covers generated and real samples.

    Accuracy: the error is conservative by up to 1.4 when the two distributions agree (degenerate U-statistic).
    Cost: each batch of B samples adds B (N + M) kernel values; `compute` is O(N + M).
    """

    def __init__(self, features: FeatureSpace, real: Tensor, kernel: Kernel):
        self.kernel = kernel
        super().__init__(features, real)
        if len(self.y) < 3:
            raise BadValue(f"{self.title}: needs at least 3 real samples, got {len(self.y)}.")
        y = torch.from_numpy(self.y)
        self._yy = _row_sums(kernel, y, y) - _diagonal(kernel, y)

    @property
    def title(self) -> str:
        return self.kernel.name

    @property
    def settings(self) -> tuple:
        return self.kernel.settings

    def compute(self) -> Estimate:
        n = self.n
        if n < 3:
            return Estimate(math.nan, math.nan, n, self.name, note="not enough samples: 3 needed")
        value, groups = self.replicates()
        error = math.sqrt(sum(jackknife_variance(g) for g in groups))
        return Estimate(value, error, n, self.name, dof=min(n, len(self.y)) - 1)

    def replicates(self) -> Replicates:
        xx, xy, yx = self._memo["sums"]
        yy = self._yy
        n, m = len(xx), len(yy)
        sum_xx, sum_yy, sum_xy = xx.sum(), yy.sum(), xy.sum()
        in_x, in_y = sum_xx / (n * (n - 1)), sum_yy / (m * (m - 1))
        value = in_x + in_y - 2 * sum_xy / (n * m)
        less_x = (sum_xx - 2 * xx) / ((n - 1) * (n - 2)) + in_y - 2 * (sum_xy - xy) / ((n - 1) * m)
        less_y = in_x + (sum_yy - 2 * yy) / ((m - 1) * (m - 2)) - 2 * (sum_xy - yx) / (n * (m - 1))
        return Replicates(float(value), [less_x.numpy(), less_y.numpy()])

    def _grow(self) -> None:
        """Row sums: x against other x (N,), x against y (N,), y against x (M,); only new samples cost anything."""
        zero = torch.zeros(0, dtype=torch.float64)
        xx, xy, yx = self._memo.get("sums", (zero, zero, torch.zeros(len(self.y), dtype=torch.float64)))
        x, y = torch.from_numpy(self.x), torch.from_numpy(self.y)
        old, new = x[: len(xx)], x[len(xx) :]
        if len(new):
            within = _row_sums(self.kernel, new, new) - _diagonal(self.kernel, new)
            to_old, from_old = _cross_sums(self.kernel, new, old)
            to_y, from_y = _cross_sums(self.kernel, new, y)
            self._memo["sums"] = torch.cat([xx + from_old, within + to_old]), torch.cat([xy, to_y]), yx + from_y


def _cross_sums(kernel: Kernel, a: Tensor, b: Tensor, chunk: int = 512) -> tuple[Tensor, Tensor]:
    """Sums of k(a, b) over b (N,) and over a (M,)."""
    rows, columns = [], torch.zeros(len(b), dtype=torch.float64)
    for piece in a.split(chunk):
        k = kernel.fn(piece, b)
        rows.append(k.sum(1))
        columns = columns + k.sum(0)
    return torch.cat(rows), columns


def _row_sums(kernel: Kernel, a: Tensor, b: Tensor) -> Tensor:
    return _cross_sums(kernel, a, b)[0]


def _diagonal(kernel: Kernel, a: Tensor, chunk: int = 64) -> Tensor:
    return torch.cat([kernel.fn(p, p).diagonal() for p in a.split(chunk)])


def kid(features: FeatureSpace, real: Tensor) -> KernelDistance:
    """Kernel distance with the cubic polynomial kernel of Binkowski et al. 2018, on all samples at once."""
    return KernelDistance(features, real, POLYNOMIAL)


def energy_distance(features: FeatureSpace, real: Tensor) -> KernelDistance:
    """2 E|x - y| - E|x - x'| - E|y - y'|: zero only for equal distributions, no bandwidth to choose."""
    return KernelDistance(features, real, ENERGY)


def rbf_mmd(features: FeatureSpace, real: Tensor, bandwidth: float | None = None) -> KernelDistance:
    """MMD^2 with a Gaussian kernel; by default the bandwidth is the median distance among (500) real samples."""
    if bandwidth is None:
        some = features(real[:500])
        bandwidth = float(torch.pdist(some).median())
    return KernelDistance(features, real, gaussian_kernel(bandwidth))
