"""Numbers that carry their error: Estimate, the interface of a metric, jackknife and paired differences."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import special
from torch import Tensor

from explorer.errors import BadValue


@dataclass(frozen=True)
class Estimate:
    """A measured number, its standard error, and what it was measured on.

    Attributes:
        value: best estimate, corrected for finite-sample bias where the metric can; NaN when there are too few samples.
        std_error: one standard error of `value`; it covers the generated samples, not the choice of reference.
        n: number of generated samples.
        name: metric with its feature space, e.g. "FD[digits-cnn]".
        raw: the uncorrected plug-in value; None where nothing was corrected.
        bias: predicted raw - value; None where nothing was corrected.
        dof: degrees of freedom of `std_error` (number of jackknife groups - 1); infinite where it is not from groups.
        note: what a reader must know beside the number.
    """

    value: float
    std_error: float
    n: int
    name: str = ""
    raw: float | None = None
    bias: float | None = None
    dof: float = math.inf
    note: str = ""

    def interval(self, level: float = 0.95, looks: int = 1) -> tuple[float, float]:
        """Two-sided band around `value`, pointwise; Student's t when the error has few degrees of freedom.

        Args:
            level: nominal coverage, in (0, 1).
            looks: how many times the number is watched before it is acted on; widens the band (Bonferroni).
        """
        if not 0 < level < 1 or looks < 1:
            raise BadValue(f"interval(level={level}, looks={looks}): level lies in (0, 1) and looks is at least 1.")
        tail = (1 - level) / (2 * looks)
        half = -self.std_error * float(special.ndtri(tail) if math.isinf(self.dof) else special.stdtrit(self.dof, tail))
        return self.value - half, self.value + half

    def differs_from(self, other: float = 0.0, level: float = 0.95, looks: int = 1) -> bool:
        """Whether the band excludes `other`; False while the value or its error is not finite."""
        low, high = self.interval(level, looks)
        return math.isfinite(low) and math.isfinite(high) and not low <= other <= high

    def to_dict(self) -> dict:
        """Plain dict for JSON: numbers that are not finite become None, absent fields are left out."""
        kept = {k: v for k, v in asdict(self).items() if v is not None and v != ""}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in kept.items()}

    @classmethod
    def from_dict(cls, given: dict) -> Estimate:
        """The inverse of `to_dict`."""
        blank = {"value": math.nan, "std_error": math.nan, "dof": math.inf}
        return cls(**{**given, **{k: v for k, v in blank.items() if given.get(k) is None}})

    def __str__(self) -> str:
        head = f"{self.name} " if self.name else ""
        if not math.isfinite(self.value):
            return f"{head}{self.note or 'not available'} (n={self.n})"
        return f"{head}{plus_minus(self.value, self.std_error)} (n={self.n})"


def plus_minus(value: float, std_error: float) -> str:
    """Text like "0.42 ± 0.06": one or two digits of the error, the value to the same place."""
    if not math.isfinite(std_error):
        return f"{value:.4g} ± ?"
    if std_error == 0:
        return f"{value:.6g} ± 0"
    exponent = math.floor(math.log10(abs(std_error)))
    digits = max(0, 1 - exponent if std_error / 10**exponent < 3 else -exponent)
    if digits > 6 or abs(value) >= 1e7:
        return f"{value:.4g} ± {std_error:.2g}"
    return f"{value:.{digits}f} ± {std_error:.{digits}f}"


def verdict(
    difference: Estimate,
    a: str = "A",
    b: str = "B",
    *,
    lower_is_better: bool = True,
    level: float = 0.95,
    looks: int = 1,
) -> str:
    """One sentence on a paired difference `metric(a) - metric(b)`; ± is one standard error, the band is at `level`."""
    if not (math.isfinite(difference.value) and math.isfinite(difference.std_error)):
        return f"{a} and {b} cannot be compared yet: {difference.note or 'no finite difference'}"
    low, high = difference.interval(level, looks)
    if not difference.differs_from(0.0, level, looks):
        shown = plus_minus(difference.value, difference.std_error)
        return f"not distinguishable: {a} - {b} = {shown} ({level:.0%} band {low:.3g} to {high:.3g})"
    first_wins = (difference.value < 0) == lower_is_better
    winner, loser = (a, b) if first_wins else (b, a)
    near, far = sorted((abs(low), abs(high)))
    shown = plus_minus(abs(difference.value), difference.std_error)
    return f"{winner} is better than {loser} by {shown} ({level:.0%} band {near:.3g} to {far:.3g})"


class Jackknife(NamedTuple):
    value: float  # bias-corrected
    std_error: float
    dof: float


def jackknife(full: float, left_out: np.ndarray) -> Jackknife:
    """Bias-corrected value and standard error from delete-a-group replicates.

    Args:
        full: the statistic on all samples.
        left_out: (K,) the statistic with one of K groups of (nearly) equal size removed.
    Returns:
        value K*full - (K-1)*mean(left_out), which removes the 1/n term of the bias; standard error
        sqrt((K-1)/K * sum (left_out - mean)^2), on average not below the true one (Efron & Stein 1981); K - 1.
    """
    k = len(left_out)
    if k < 2:
        return Jackknife(math.nan, math.nan, math.nan)
    mean = float(np.mean(left_out))
    return Jackknife(k * full - (k - 1) * mean, math.sqrt(jackknife_variance(left_out)), k - 1)


def block_of(index: np.ndarray, n_blocks: int) -> np.ndarray:
    """The jackknife blocks of the samples at these positions.

    Every round of n_blocks consecutive samples holds each block once, in an order shuffled anew (the same one always, and in every
    run, so that two runs on the same seeds pair up). A fixed order would resonate with labels that repeat with the position: with
    class = seed mod 10 and 10 blocks, each block would be one class and errors many times too large.
    """
    orders = _orders(n_blocks)
    return orders[(index // n_blocks) % len(orders), index % n_blocks]


@lru_cache(maxsize=64)
def _orders(n_blocks: int) -> np.ndarray:
    return np.random.default_rng(0).permuted(np.tile(np.arange(n_blocks), (1009, 1)), axis=1)


def jackknife_variance(left_out: np.ndarray) -> float:
    k = len(left_out)
    return (k - 1) / k * float(np.sum((left_out - np.mean(left_out)) ** 2)) if k > 1 else math.nan


class Replicates(NamedTuple):
    """What a paired comparison needs of one metric.

    `groups` holds one array per independent source of randomness (generated samples; reference samples), each with the
    statistic after leaving out one group of that source, in an order two metrics on the same seeds share.
    """

    value: float
    groups: Sequence[np.ndarray]


class Metric(ABC):
    """A number computed from a stream of generated samples. Sums are kept in float64.

    Samples must arrive in the order of their seeds: then `difference` pairs sample i of one setting with sample i of
    the other, which share the noise, and `merge` of two halves equals one pass over both.
    """

    lower_is_better: bool = True

    @property
    @abstractmethod
    def name(self) -> str:
        """Metric with its feature space, as printed: "FD[digits-cnn]"."""

    @property
    @abstractmethod
    def n(self) -> int:
        """Number of samples seen."""

    @property
    @abstractmethod
    def key(self) -> tuple:
        """What must agree for two instances to be merged or compared: metric, features, reference, settings."""

    @abstractmethod
    def update(self, samples: Tensor, labels: Tensor | None = None) -> None:
        """Add a batch (B, *shape), in the order of the seeds. `labels` is for metrics that use them."""

    @abstractmethod
    def merge(self, other: Metric) -> None:
        """Add the samples of `other` (same key) as if they had been seen after one's own."""

    @abstractmethod
    def compute(self) -> Estimate:
        """The value now, with its standard error; may be called after every batch."""

    @abstractmethod
    def replicates(self) -> Replicates:
        """Point value and leave-group-out values, for paired comparison."""

    @abstractmethod
    def empty(self) -> Metric:
        """A metric of the same key that has seen nothing."""

    def difference(self, other: Metric) -> Estimate:
        """self - other for two settings run on the same seeds in the same order: error by the paired jackknife.

        The noise the two settings share cancels, so the error is smaller than that of two separate runs.

        Raises:
            BadValue: the two differ in feature space, reference, settings or number of samples.
        """
        self.check_comparable(other)
        if self.n != other.n:
            raise BadValue(
                f"{self.name}: a paired difference needs the same seeds on both sides, "
                f"but one has n={self.n} and the other n={other.n}."
            )
        name = f"difference of {self.name}"
        a, b = self.compute(), other.compute()
        if not (math.isfinite(a.value) and math.isfinite(b.value)):
            return Estimate(math.nan, math.nan, self.n, name, note=a.note or b.note)
        mine, theirs = self.replicates(), other.replicates()
        steps = [np.asarray(p) - np.asarray(q) for p, q in zip(mine.groups, theirs.groups, strict=True)]
        variance = sum(jackknife_variance(s) for s in steps)
        raw = None if a.raw is None or b.raw is None else a.raw - b.raw
        value = a.value - b.value
        bias = None if raw is None else raw - value
        return Estimate(value, math.sqrt(variance), self.n, name, raw, bias, dof=min(len(s) for s in steps) - 1)

    def check_comparable(self, other: Metric) -> None:
        if type(self) is not type(other) or self.key != other.key:
            raise BadValue(
                f"{self.name} and {other.name} were not measured in the same way "
                f"({_first_gap(self.key, other.key)}); build both with the same features, reference and settings."
            )


def _first_gap(a: tuple, b: tuple) -> str:
    for p, q in zip(a, b, strict=False):
        if p != q:
            return f"{p!r} against {q!r}"
    return f"{a!r} against {b!r}"
