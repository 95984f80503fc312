"""Weights of a model as a setting: linear combinations of the snapshots of one run, searched for by evolution.

    theta(a) = sum_i a_i theta_i,  sum_i a_i = 1,  a_i real (may be negative or above 1)
    EMA of the snapshots with rate g:  a_i ~ g^(K - i)
Source: Liu, Zhu et al. 2024, arXiv 2404.02241; what the paper leaves open about its evolution (sizes of populations and of mutations)
is ours, and so is the re-ranking on noise that the search did not see (`Study.finish(rerank=...)`).

K snapshots, oldest first.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from explorer.errors import BadFile, BadValue
from explorer.files import sha256
from explorer.models.base import Model
from explorer.models.flow_maps import ConsistencyModel
from explorer.training.weights import Snapshot, merged, snapshots
from explorer.tuning.setting import WRAPPERS, Setting, Wrapper
from explorer.tuning.space import Box, Dim, Space
from explorer.tuning.study import Proposal, Tuner

RATES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
"""Rates of averages over snapshots, from the last one alone (0) to their mean (1)."""


def ema_coefficients(k: int, rate: float) -> tuple[float, ...]:
    """Coefficients (K,) of the average with weights rate^(K - i), which sum to 1: of the last snapshot for 0, of the mean for 1."""
    if not 0 <= rate <= 1:
        raise BadValue(f"the rate of an average lies between 0 and 1, got {rate}")
    weights = np.array([1.0 if i == k - 1 else rate ** (k - 1 - i) for i in range(k)])
    return tuple(float(w) for w in weights / weights.sum())


@dataclass(frozen=True)
class Basis:
    """The snapshots that are combined: files of one run's folder, and which weights in them.

    Args:
        folder: of the run, trained with `Plan(snapshot_steps=..., snapshot_raw=True)`.
        steps: of the snapshots, rising.
        net: name of the network in the run's method.
        ema: which average; None, as it should be, for raw weights: averages are nearly collinear.
        sha256: of all files together, so that a stored setting is not applied to others. Use `Basis.of` to have it filled in.
    """

    folder: str
    steps: tuple[int, ...]
    net: str = "net"
    ema: str | None = None
    sha256: str = ""

    def __post_init__(self):
        object.__setattr__(self, "folder", str(self.folder))
        object.__setattr__(self, "steps", tuple(int(s) for s in self.steps))
        if len(self.steps) < 2 or list(self.steps) != sorted(set(self.steps)):
            raise BadValue(f"a combination needs at least two snapshots in order of their steps, got {self.steps}")

    @classmethod
    def of(
        cls,
        folder: Path | str,
        model: Model,
        last: int | None = None,
        *,
        net: str | None = None,
        ema: str | None = None,
    ) -> Basis:
        """The newest `last` snapshots of a run (None: all) whose weights fit the model.

        Args: net: of the method's networks; None is the one that fits the model.
        Raises: BadValue where there are fewer than two, or none with these weights; BadFile where they are of another architecture.
        """
        kept = snapshots(folder)
        if len(kept) < 2:
            raise BadValue(
                f"{folder} has {len(kept)} snapshots, and a combination needs two: train with Plan(snapshot_steps=..., snapshot_raw=True)"
            )
        kept = kept[-last:] if last else kept
        known = kept[-1].networks(ema)
        if not known:
            raise BadValue(
                f"the snapshots of {folder} hold no {'raw weights' if ema is None else f'average {ema!r}'}, only averages "
                f"{', '.join(kept[-1].emas) or '(none)'}: train with snapshot_raw=True, or name one of them"
            )
        wanted = {key: tuple(value.shape) for key, value in network_of(model).state_dict().items()}
        fits = [name for name in known if kept[-1].shapes(name, ema) == wanted]
        if net is None and len(fits) > 1:
            raise BadValue(f"{', '.join(fits)} of {folder} all fit the model: name one (net=...)")
        if net is None and not fits or net is not None and net not in fits:
            raise BadFile(
                f"the snapshots of {folder} are not of this model's architecture: {_gap(kept[-1], net or known[0], ema, wanted)}"
            )
        basis = cls(str(folder), tuple(s.step for s in kept), net or fits[0], ema, _digest(tuple(s.file for s in kept)))
        basis.check(model)
        return basis

    def __len__(self) -> int:
        return len(self.steps)

    def snapshots(self) -> list[Snapshot]:
        """Those of the basis, oldest first. Raises BadFile where one is gone or another than when the basis was made."""
        found = {s.step: s for s in snapshots(self.folder)}
        if missing := [s for s in self.steps if s not in found]:
            raise BadFile(f"{self.folder} has no snapshot of step {missing[0]}; there are {sorted(found)}")
        kept = [found[s] for s in self.steps]
        if self.sha256 and _digest(tuple(s.file for s in kept)) != self.sha256:
            raise BadFile(f"the snapshots in {self.folder} are not those that this was tuned with: tune again")
        return kept

    def check(self, model: Model) -> None:
        """Raises BadFile where a snapshot does not fit the model, naming the first difference."""
        wanted = {key: tuple(value.shape) for key, value in network_of(model).state_dict().items()}
        for snapshot in self.snapshots():
            if snapshot.shapes(self.net, self.ema) != wanted:
                raise BadFile(
                    f"{snapshot.file.name} is not of this model's architecture: {_gap(snapshot, self.net, self.ema, wanted)}"
                )

    def averaged(self, model: Model) -> frozenset[str]:
        """Names of the parameters; the rest of a state dict is copied."""
        return frozenset(name for name, _ in network_of(model).named_parameters())

    def combine(self, model: Model, coefficients: Sequence[float]) -> Model:
        """A copy of the model with the combined weights, frozen."""
        state = merged(self.snapshots(), coefficients, self.net, self.averaged(model), self.ema)
        out = copy.deepcopy(model)
        try:
            network_of(out).load_state_dict(state)
        except RuntimeError as problem:
            raise BadFile(f"the snapshots in {self.folder} are not of this model's architecture: {problem}") from None
        return out.eval().requires_grad_(False)

    def setting(self, start: Setting, coefficients: Iterable[float]) -> Setting:
        """The start with combined weights, which other wrappers are then put around."""
        others = tuple(w for w in start.wrappers if type(w) is not Weights)
        return dataclasses.replace(start, wrappers=(Weights(self, tuple(coefficients)), *others))


@dataclass(frozen=True)
class Weights(Wrapper):
    """The model with a combination of snapshots for its weights. Liu, Zhu et al. 2024, arXiv 2404.02241.

    Args: coefficients: one for each snapshot; they sum to 1.
    """

    basis: Basis
    coefficients: tuple[float, ...]

    def __post_init__(self):
        if isinstance(self.basis, dict):
            object.__setattr__(self, "basis", Basis(**self.basis))
        object.__setattr__(self, "coefficients", tuple(float(a) for a in self.coefficients))
        if len(self.coefficients) != len(self.basis):
            raise BadValue(f"{len(self.basis)} snapshots need as many coefficients, got {len(self.coefficients)}")
        if not math.isclose(math.fsum(self.coefficients), 1.0, abs_tol=1e-6):
            raise BadValue(f"the coefficients of snapshots sum to 1, these to {math.fsum(self.coefficients):.8g}")

    def wrap(self, model):
        return self.basis.combine(model, self.coefficients)

    def describe(self):
        a = np.array(self.coefficients)
        if (a == 1).sum() == 1:
            return f"snapshot {self.basis.steps[int(a.argmax())]}"
        below = f", {(a < 0).sum()} of them negative" if (a < 0).any() else ""
        return f"{(a != 0).sum()} snapshots{below}, largest {np.abs(a).max():.2g}"


WRAPPERS["weights"] = Weights


def network_of(model: Model) -> nn.Module:
    """The network inside a denoiser or a consistency model.

    Raises: BadValue where there is none, or wrappers around it.
    """
    inner = model.inner if isinstance(model, ConsistencyModel) else model
    if not isinstance(getattr(inner, "net", None), nn.Module):
        raise BadValue(
            f"{model.name or type(model).__name__} has no network of its own whose weights could be combined"
        )
    return inner.net


def settings_of(basis: Basis, start: Setting, rates: Sequence[float] = RATES) -> dict[float, Setting]:
    """Rate -> the setting with that average of the snapshots: what a search has to beat."""
    return {rate: basis.setting(start, ema_coefficients(len(basis), rate)) for rate in rates}


@dataclass(frozen=True)
class Combinations(Space):
    """Coefficients of all snapshots but the last, which has what is left of 1: for any tuner.

    Args: reach: coefficients go from minus this to this, or from 0 where `negative` is False.
    """

    basis: Basis
    reach: float = 1.0
    negative: bool = True

    def box(self, model, start):
        self.basis.check(model)
        k, now = len(self.basis), start.wrapper(Weights)
        at = now.coefficients[:-1] if now is not None and now.basis == self.basis else ema_coefficients(k, 0.0)[:-1]
        low = -self.reach if self.negative else 0.0
        dims = tuple(Dim(f"a_{step}", low, self.reach) for step in self.basis.steps[:-1])

        def build(values):
            rest = 1.0 - math.fsum(values)
            if not self.negative and rest < 0:
                raise BadValue("coefficients sum to more than 1, and none may be negative")
            return self.basis.setting(start, (*values, rest))

        return Box(dims, tuple(at), build)


@dataclass(frozen=True)
class Evolution(Tuner):
    """Evolution of the coefficients: averages of several rates and their neighbours first, then children of the best.

    A child is a mixture of two parents, beyond either by up to half their distance, or has a stretch of one in the other; then normal
    numbers of a size drawn anew are added to some coefficients. Every candidate sums to 1: what a stretch or a mutation changes is taken
    off evenly where it was changed.

    Args:
        population: kept; the first generation has as many. parents: how many of the best have children.
        sizes: range of a mutation's standard deviation, drawn evenly in its logarithm.
        negative: whether coefficients may be negative; where not, they are cut at 0 and divided by their sum.
        most: largest magnitude; a candidate beyond it is drawn back to the mean of all snapshots.
        rates: of the averages in the first generation.
    """

    basis: Basis
    population: int = 40
    parents: int = 10
    sizes: tuple[float, float] = (0.003, 0.2)
    negative: bool = True
    most: float = 5.0
    rates: tuple[float, ...] = RATES
    name = "evolution of snapshot weights"

    def __post_init__(self):
        if not 2 <= self.parents <= self.population or self.population < len(self.rates):
            raise BadValue(
                f"evolution needs 2 <= parents <= population and room for {len(self.rates)} averages; got {self.parents}, {self.population}"
            )

    def search(self, task):
        self.basis.check(task.model)
        rng, alive = np.random.default_rng(task.seed), []
        k = len(self.basis)
        first = [(np.array(ema_coefficients(k, rate)), f"average, rate {rate:g}") for rate in self.rates]
        while len(first) < self.population:
            near = first[int(rng.integers(len(self.rates)))][0]
            first.append((self.mutated(near, rng), "near an average"))
        for a, note in first:
            trial = yield Proposal(self.basis.setting(task.start, self.proper(a)), note=note)
            alive.append((trial.value, trial.number, self.proper(a)))
        while True:
            alive = sorted(alive, key=lambda one: one[:2])[: self.population]
            a = self.child([one[2] for one in alive[: self.parents]], rng)
            trial = yield Proposal(self.basis.setting(task.start, a), note="child")
            alive.append((trial.value, trial.number, a))

    def child(self, parents: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """Coefficients (K,) of a child of two of the parents."""
        i, j = rng.choice(len(parents), 2, replace=False)
        one, two = parents[i], parents[j]
        if rng.random() < 0.5:
            a = one + rng.uniform(-0.5, 1.5) * (two - one)
        else:
            start, stop = sorted(rng.choice(len(one) + 1, 2, replace=False))
            a = one.copy()
            a[start:stop] = two[start:stop]
            a[start:stop] -= (a.sum() - 1) / (stop - start)
        return self.proper(self.mutated(a, rng))

    def mutated(self, a: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Normal numbers without their mean added to some coefficients, at least two."""
        low, high = np.log(self.sizes)
        which = rng.choice(len(a), int(rng.integers(2, len(a) + 1)), replace=False)
        step = rng.standard_normal(len(which)) * math.exp(rng.uniform(low, high))
        out = a.copy()
        out[which] += step - step.mean()
        return out

    def proper(self, a: np.ndarray) -> np.ndarray:
        """The nearest candidate that is allowed, summing to 1 up to rounding."""
        a = np.asarray(a, np.float64)
        if not self.negative:
            a = a.clip(min=0.0)
            a = a / a.sum()
        if (largest := np.abs(a).max()) > self.most:
            middle = 1 / len(a)
            a = middle + (a - middle) * (self.most - middle) / (largest + middle)
        return a + (1 - a.sum()) / len(a) if abs(a.sum() - 1) > 1e-12 else a


def _gap(snapshot: Snapshot, net: str, ema: str | None, wanted: dict[str, tuple[int, ...]]) -> str:
    found = snapshot.shapes(net, ema)
    for key in sorted(set(found) | set(wanted)):
        if found.get(key) != wanted.get(key):
            return f"{key!r} is {found.get(key, 'missing')} in {snapshot.file.name}, {wanted.get(key, 'missing')} in the model"
    return "no difference"


def _digest(files: tuple[Path, ...]) -> str:
    total = hashlib.sha256()
    for file in files:
        about = file.stat()
        total.update(_hash(file, about.st_mtime_ns, about.st_size).encode())
    return total.hexdigest()[:16]


@functools.lru_cache(maxsize=4096)
def _hash(file: Path, changed: int, size: int) -> str:
    """Of a file's bytes; read again only when it changed."""
    return sha256(file)
