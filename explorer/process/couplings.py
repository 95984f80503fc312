"""Couplings: which noise is paired with which data point while a flow is trained.

A flow learns E[eps - x0 | x_t] from pairs (eps, x0) whose marginals are the noise and the data; how they are joined is free, and
decides how often the straight lines between them cross. A coupling takes a batch of noise and a batch of data and gives pairs.

The cost of a pair is |eps - x0|^2, summed over dimensions, in data units squared, never rescaled: dividing the costs of a batch by
their maximum, as is often done, makes the same `reg` mean another amount of blur in every batch.

Legend: N noise points, M data points, `...` feature dimensions. Plans are (N, M) float64 masses; a plan of full mass sums to 1.
Sources: Pooladian et al. 2023, arXiv 2304.14772 and Tong et al. 2024, arXiv 2302.00482 (minibatch optimal transport for flows);
Liu et al. 2022, arXiv 2209.03003 (reflow pairs).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from explorer.errors import BadValue, MissingExtra, UnknownName

Draw = Literal["data", "noise", "pairs"]
Backend = Literal["auto", "pot", "scipy"]
BACKENDS = ("auto", "pot", "scipy")


class Pairs(NamedTuple):
    """Noise and data that belong together, row by row.

    Attributes:
        noise, data: (P, ...); labels: (P,) int64 of the data points, or None; cost: (P,) float64, |eps - x0|^2 of each pair.
    """

    noise: Tensor
    data: Tensor
    labels: Tensor | None
    cost: Tensor


def pairs_of(noise: Tensor, data: Tensor, labels: Tensor | None = None) -> Pairs:
    """Rows taken as pairs, with their cost."""
    if noise.shape != data.shape or noise.ndim < 2:
        raise BadValue(
            f"pairs need noise and data of one shape (pairs, features...), got {tuple(noise.shape)} and {tuple(data.shape)}."
        )
    if labels is not None and labels.shape != (len(data),):
        raise BadValue(f"one label per pair is needed, ({len(data)},), got {tuple(labels.shape)}.")
    return Pairs(noise, data, labels, (noise.double() - data.double()).flatten(1).square().sum(dim=1))


class Coupling(ABC):
    """A way to join noise and data. Finals are frozen dataclasses without hidden state."""

    @abstractmethod
    def pair(
        self, noise: Tensor, data: Tensor, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Pairs:
        """Pairs from a batch of noise (N, ...) and an independent batch of data (M, ...).

        Args:
            labels: (M,) classes of the data points; each stays with its point.
            generator: for couplings that draw; on the CPU.
        """


class Rematching(Coupling):
    """A coupling that joins the points of its batch by their positions."""

    @abstractmethod
    def indices(
        self, noise: Tensor, data: Tensor, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Positions (P,) in the noise and (P,) in the data of each pair, int64."""

    def pair(self, noise, data, labels=None, generator=None):
        _check(noise, data, labels)
        i, j = self.indices(noise, data, labels, generator)
        i, j = i.to(noise.device), j.to(data.device)
        return pairs_of(noise[i], data[j], None if labels is None else labels[j.to(labels.device)])


@dataclass(frozen=True)
class Independent(Rematching):
    """Row i with row i: independent noise and data stay so. Gives the 1-rectified flow."""

    def indices(self, noise, data, labels=None, generator=None):
        _equal(noise, data, "independent pairs")
        rows = torch.arange(len(noise))
        return rows, rows


@dataclass(frozen=True)
class ExactOT(Rematching):
    """The cheapest one-to-one matching of the batch; every noise and every data point is used exactly once.

    Pairs come in the order of the data. Drawing from the optimal plan with replacement, as some packages do, would repeat some points
    of the batch and drop others. Over many batches the noise stays N(0, I) and the data keeps its law, but the noise *given a class*
    does not: for a class-conditional model use `ByClass`.

    Args:
        backend: "pot" (network simplex), "scipy" (linear assignment), or "auto": POT for more than 128 points where it is
            installed. All give the same cost; on the line the points are sorted instead.
    Time O(n^3) at worst.
    Source: Tong et al. 2024, arXiv 2302.00482 (OT-CFM).
    """

    backend: Backend = "auto"

    def __post_init__(self):
        _known("assignment backend", self.backend, BACKENDS)

    def indices(self, noise, data, labels=None, generator=None):
        _equal(noise, data, "a one-to-one matching")
        if noise[0].numel() == 1:
            i = torch.empty(len(data), dtype=torch.int64)
            i[data.flatten().argsort(stable=True).cpu()] = noise.flatten().argsort(stable=True).cpu()
        else:
            i = torch.from_numpy(_assignment(squared_distances(noise, data).T.numpy(force=True), self.backend))
        return i, torch.arange(len(data))

    def plan(self, noise: Tensor, data: Tensor) -> Tensor:
        """The optimal plan (N, N), a permutation over N."""
        i, j = self.indices(noise, data)
        out = torch.zeros(len(noise), len(data), dtype=torch.float64)
        out[i, j] = 1 / len(data)
        return out


@dataclass(frozen=True)
class Sinkhorn(Rematching):
    """Entropic optimal transport: the plan that minimises <P, cost> + reg KL(P | independent), and pairs drawn from it.

    Between `ExactOT` (reg -> 0; the cost exceeds the optimum by at most reg ln n) and `Independent` (reg -> infinity). With
    reg = 2 sigma^2 it is the static Schroedinger bridge of a Brownian motion of variance sigma^2 over unit time.

    Args:
        reg: in data units squared, as the cost.
        draw: "data" takes every data point once with noise drawn from its column (noise points may repeat); "noise" the other way
            round; "pairs" draws cells of the plan with replacement, so that either side repeats and drops points.
        n_iter, tol: sweeps at each level of an annealing from large reg downwards; a level ends when the marginals are off by
            less than tol in total. The result is then rounded onto exact marginals, also where sweeps ran out.
    Sources: Cuturi 2013, arXiv 1306.0895; rounding: Altschuler, Weed & Rigollet 2017, arXiv 1705.09634, Alg. 2.
    """

    reg: float = 0.05
    draw: Draw = "data"
    n_iter: int = 500
    tol: float = 1e-6

    def __post_init__(self):
        _positive("reg", self.reg)
        _known("way to draw pairs", self.draw, DRAWS)

    def plan(self, noise: Tensor, data: Tensor) -> Tensor:
        """The entropic plan (N, M), marginals uniform to rounding."""
        return _rounded(_entropic(squared_distances(noise, data).cpu(), self.reg, math.inf, self.n_iter, self.tol))

    def indices(self, noise, data, labels=None, generator=None):
        return drawn(self.plan(noise, data), self.draw, len(data), generator)


@dataclass(frozen=True)
class UnbalancedOT(Rematching):
    """Entropic transport whose marginals may give way: min <P, cost> + reg KL(P | ab) + reg_m (KL(P1 | a) + KL(P'1 | b)).

    Points that are dear to reach lose mass, so outliers of a batch are drawn seldom: the marginals are *not* kept, by design.
    A single pair at cost c gets the mass exp(-c / (2 reg_m + reg)). reg_m -> infinity is `Sinkhorn`.

    Args:
        reg: blur; reg_m: price of leaving mass behind, both in data units squared.
        draw: "pairs" draws cells of the plan; "data" or "noise" force that side to be used once each.
    Sources: Chizat et al. 2018, arXiv 1607.05816; for flows: Eyring et al. 2024, arXiv 2311.15100.
    """

    reg: float = 0.05
    reg_m: float = 1.0
    draw: Draw = "pairs"
    n_iter: int = 500
    tol: float = 1e-6

    def __post_init__(self):
        _positive("reg", self.reg)
        _positive("reg_m", self.reg_m)
        _known("way to draw pairs", self.draw, DRAWS)

    def plan(self, noise: Tensor, data: Tensor) -> Tensor:
        """The plan (N, M); its total mass tells how much was worth moving."""
        return _entropic(squared_distances(noise, data).cpu(), self.reg, self.reg_m, self.n_iter, self.tol)

    def indices(self, noise, data, labels=None, generator=None):
        return drawn(self.plan(noise, data), self.draw, len(data), generator)


@dataclass(frozen=True)
class PartialOT(Rematching):
    """The cheapest one-to-one matching of a share of the batch; the dearest points on both sides stay unmatched.

    Gives round(share N) pairs, fewer than the batch. With share 1 it is `ExactOT`.

    Args: share: of the points to match, in (0, 1]; backend: as in `ExactOT`.
    Source: Chapel, Alaya & Gasso 2020, arXiv 2002.08276 (partial transport by points that take the rest for nothing).
    """

    share: float = 0.8
    backend: Backend = "auto"

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise BadValue(f"the share of points to match must be in (0, 1], got {self.share}.")
        _known("assignment backend", self.backend, BACKENDS)

    def indices(self, noise, data, labels=None, generator=None):
        _equal(noise, data, "a one-to-one matching")
        n = len(noise)
        kept = max(1, round(self.share * n))
        cost = squared_distances(noise, data).numpy(force=True)
        # n - kept free partners on either side take the points that are left; two free partners must not meet
        free = n - kept
        whole = np.zeros((n + free, n + free))
        whole[:n, :n] = cost.T
        whole[n:, n:] = 2 * cost.sum() + 1
        partner = torch.from_numpy(_assignment(whole, self.backend))[:n]
        j = torch.arange(n)[partner < n]
        return partner[partner < n], j

    def plan(self, noise: Tensor, data: Tensor) -> Tensor:
        """The optimal partial plan (N, N), mass 1/N on each pair, `share` in total."""
        i, j = self.indices(noise, data)
        out = torch.zeros(len(noise), len(data), dtype=torch.float64)
        out[i, j] = 1 / len(data)
        return out


@dataclass(frozen=True)
class ByClass(Rematching):
    """Another coupling within each class: row i of the noise belongs to the class of row i of the data, and never leaves it.

    So the noise of every class is N(0, I), as it will be when samples of one class are drawn. A matching of the whole batch lets a
    class take the noise nearest to it, and a conditional model trained so is asked at test time for noise it has never seen.
    Source of the observation: Cheng & Schwing 2025, arXiv 2503.10636.
    """

    base: Rematching = field(default_factory=ExactOT)

    def __post_init__(self):
        if not isinstance(self.base, Rematching) or isinstance(self.base, ByClass):
            raise BadValue(f"a coupling within classes is made of one that rematches a batch, got {self.base!r}.")

    def indices(self, noise, data, labels=None, generator=None):
        _equal(noise, data, "a coupling within classes")
        if labels is None:
            raise BadValue("a coupling within classes needs the labels of the data.")
        first, second = [], []
        for c in labels.unique().tolist():
            rows = (labels == c).nonzero()[:, 0].cpu()
            i, j = self.base.indices(noise[rows.to(noise.device)], data[rows.to(data.device)], None, generator)
            first.append(rows[i])
            second.append(rows[j])
        i, j = torch.cat(first), torch.cat(second)
        order = j.argsort(stable=True)
        return i[order], j[order]


@dataclass(frozen=True, eq=False)
class Given(Coupling):
    """Stored pairs: a flow's own noise and samples (reflow), or real data and its codes (forward pairs).

    `pair` takes as many of them as the batch has data points, at random without repetition, and uses of the batch only its size.

    Args: noise, data: (P, ...); labels: (P,) or None.
    Source: Liu et al. 2022, arXiv 2209.03003, Alg. 1 (Reflow).
    """

    noise: Tensor
    data: Tensor
    labels: Tensor | None = None

    def __post_init__(self):
        pairs_of(self.noise, self.data, self.labels)

    def __len__(self) -> int:
        return len(self.data)

    def pair(self, noise, data, labels=None, generator=None):
        return self.draw(len(data), generator)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Pairs:
        """n different pairs at random."""
        if n > len(self):
            raise BadValue(
                f"{n} different pairs were asked for and {len(self)} are stored: store more or take a smaller batch."
            )
        rows = torch.randperm(len(self), generator=_need(generator))[:n].to(self.data.device)
        return pairs_of(self.noise[rows], self.data[rows], None if self.labels is None else self.labels[rows])


COUPLINGS: dict[str, Callable[..., Coupling]] = {
    "independent": Independent,
    "ot": ExactOT,
    "sinkhorn": Sinkhorn,
    "unbalanced": UnbalancedOT,
    "partial": PartialOT,
    "by-class": ByClass,
    "given": Given,
}


def coupling(name: str, **settings) -> Coupling:
    """A coupling by name with its settings, `coupling("sinkhorn", reg=0.1)`."""
    _known("coupling", name, COUPLINGS)
    return COUPLINGS[name](**settings)


def squared_distances(noise: Tensor, data: Tensor) -> Tensor:
    """|eps_i - x_j|^2: (N, ...), (M, ...) -> (N, M) float64, on the device of the data.

    In few dimensions from the differences, in many by a matrix product, accurate to 1e-15 of the largest squared norm.
    """
    x, y = noise.double().flatten(1).to(data.device), data.double().flatten(1)
    if x.shape[1] <= 8:
        return sum((a[:, None] - b[None]).square_() for a, b in zip(x.T, y.T, strict=True))
    middle = y.mean(dim=0)  # fewer digits cancel around the middle
    x, y = x - middle, y - middle
    out = torch.addmm(y.square().sum(dim=1)[None], x, y.T, alpha=-2)
    return out.add_(x.square().sum(dim=1)[:, None]).clamp_min_(0.0)


def drawn(plan: Tensor, draw: Draw, n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Positions of pairs drawn from a plan (N, M): one per column ("data"), one per row ("noise"), or n cells ("pairs")."""
    _known("way to draw pairs", draw, DRAWS)
    generator = _need(generator)
    rows, columns = (torch.arange(k) for k in plan.shape)
    if draw == "data":
        return torch.multinomial(plan.T, 1, generator=generator)[:, 0], columns
    if draw == "noise":
        return rows, torch.multinomial(plan, 1, generator=generator)[:, 0]
    i = torch.multinomial(plan.sum(dim=1), n, replacement=True, generator=generator)
    return i, torch.multinomial(plan[i], 1, generator=generator)[:, 0]


DRAWS = ("data", "noise", "pairs")


def _assignment(cost: np.ndarray, backend: Backend) -> np.ndarray:
    """Column matched to each row in the cheapest one-to-one matching of a square cost matrix, (n,) int64."""
    if backend == "auto":
        backend = "pot" if len(cost) > 128 and _has_pot() else "scipy"
    if backend == "scipy":
        from scipy.optimize import linear_sum_assignment

        return linear_sum_assignment(cost)[1].astype(np.int64)
    if not _has_pot():
        raise MissingExtra("POT", "metrics", "the assignment backend 'pot'")
    import ot

    ones = np.ones(
        len(cost)
    )  # whole masses: flows stay integers, and the optimal vertex is a permutation without rounding
    flow = ot.emd(ones, ones, np.ascontiguousarray(cost), numItermax=100_000_000)
    match = flow.argmax(axis=1)
    if np.bincount(match, minlength=len(cost)).max() > 1:
        raise BadValue("POT returned no one-to-one matching (are all points finite?); choose backend='scipy'.")
    return match


@lru_cache(maxsize=1)
def _has_pot() -> bool:
    return find_spec("ot") is not None


def _entropic(cost: Tensor, reg: float, reg_m: float, n_iter: int, tol: float) -> Tensor:
    """Plan of entropic transport between uniform weights by Sinkhorn's sweeps on the potentials f (N,), g (M,), in logarithms.

    P = a b exp((f + g - cost) / reg). reg_m weighs the Kullback-Leibler divergence of the marginals; infinite keeps them.
    """
    n, m = cost.shape
    log_a, log_b = -math.log(n), -math.log(m)
    f, g = cost.new_zeros(n), cost.new_zeros(m)
    level = max(reg, float(cost.max()))
    while True:
        share = 1.0 if math.isinf(reg_m) else reg_m / (reg_m + level)
        for sweep in range(n_iter):
            new = -share * level * torch.logsumexp((g - cost) / level + log_b, dim=1)
            moved, f = float((new - f).abs().max()), new
            g = -share * level * torch.logsumexp((f[:, None] - cost) / level + log_a, dim=0)
            # a change of f by d changes a row's mass by a factor exp(d / level)
            if sweep and moved <= tol * level:
                break
        if level <= reg:
            break
        level = max(reg, level / 4)
    return ((f[:, None] + g - cost) / reg + log_a + log_b).exp()


def _rounded(plan: Tensor) -> Tensor:
    """The plan moved onto uniform marginals: rows and columns that hold too much are scaled down, and the rest is spread in
    proportion to what is missing.
    """
    n, m = plan.shape
    plan = plan * (1 / n / plan.sum(dim=1, keepdim=True)).clamp_max(1.0)
    plan = plan * (1 / m / plan.sum(dim=0, keepdim=True)).clamp_max(1.0)
    row, column = (1 / n - plan.sum(dim=1)).clamp_min(0.0), (1 / m - plan.sum(dim=0)).clamp_min(0.0)
    missing = row.sum()
    return plan + (torch.outer(row, column) / missing if missing > 0 else 0.0)


def _check(noise: Tensor, data: Tensor, labels: Tensor | None) -> None:
    if noise.ndim < 2 or noise.shape[1:] != data.shape[1:] or not len(noise) or not len(data):
        raise BadValue(
            f"a coupling needs noise (N, ...) and data (M, ...) of one feature shape, got {tuple(noise.shape)} and {tuple(data.shape)}."
        )
    if not (bool(noise.isfinite().all()) and bool(data.isfinite().all())):
        raise BadValue("a coupling needs finite points; noise or data holds NaN or infinity.")
    if labels is not None and labels.shape != (len(data),):
        raise BadValue(f"one label per data point is needed, ({len(data)},), got {tuple(labels.shape)}.")


def _equal(noise: Tensor, data: Tensor, what: str) -> None:
    if len(noise) != len(data):
        raise BadValue(f"{what} need as many noise as data points, got {len(noise)} and {len(data)}.")


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise BadValue(f"{name} must be positive and finite, in data units squared; got {value}.")


def _known(kind: str, name: object, valid) -> None:
    if name not in valid:
        raise UnknownName(kind, name, valid)


def _need(generator: torch.Generator | None) -> torch.Generator:
    if generator is None:
        raise BadValue("this coupling draws at random: pass generator=torch.Generator().manual_seed(...).")
    return generator
