"""Ways to search: by coordinates, by evolution, by Optuna's samplers, through a list, by halving, and one after another.

All are generators of proposals (see `explorer.tuning.study`) and draw from the task's seed alone, so that a search can be repeated and
gone on with. Schedules read off recorded trajectories are in `explorer.tuning.recorded`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from explorer.errors import BadValue, MissingExtra, UnknownName
from explorer.tuning.setting import Setting
from explorer.tuning.space import Box, Space
from explorer.tuning.study import Proposal, Search, Trial, Tuner


@dataclass(frozen=True)
class Listed(Tuner):
    """A given list of settings, one after another."""

    settings: tuple[Setting, ...]
    name = "list"

    def search(self, task):
        for setting in self.settings:
            yield Proposal(setting, note="listed")

    def describe(self):
        return {"tuner": self.name, "settings": _digest(self.settings)}


@dataclass(frozen=True)
class Coordinate(Tuner):
    """Coordinate descent: each dimension moved up and down by a step, as long as that helps; the step halved when nothing does.

    Needs no derivative and follows the objective to a local optimum; on the same noise for all trials it is a deterministic function.

    Args:
        space: what may change. step: first step, in the unit cube; least: the step at which it ends.
    """

    space: Space
    step: float = 0.1
    least: float = 0.004
    name = "coordinate descent"

    def search(self, task):
        box, step = self.space.box(task.model, task.start), self.step
        at = box.unit
        best = yield Proposal(task.start, note="start")
        while step >= self.least:
            moved = False
            for i, dim in enumerate(box.dims):
                if dim.choices:
                    others = [dim.unit(c) for c in dim.choices if c != dim.at(at[i])]
                    tries = [[_put(at, i, u)] for u in others]
                else:
                    width = max(step, 1 / dim.n_points) if dim.whole else step
                    tries = [_ray(at, i, sign * width) for sign in (1, -1)]
                for ray in tries:
                    ahead = False
                    for point in ray:
                        trial = yield from _asked(box, point, f"{dim.name}, step {step:.3g}")
                        if trial is None or not trial.value < best.value:
                            break
                        at, best, moved, ahead = point, trial, True, True
                    if ahead and not dim.choices:
                        break
            if not moved:
                step /= 2


@dataclass(frozen=True)
class CMA(Tuner):
    """Covariance matrix adaptation in the unit cube, from the start: for some to some tens of numbers that depend on each other.

    Args: spread: first standard deviation, in the unit cube. population: 0 is the package's own choice, 4 + 3 ln d.
    Source: Hansen 2016, arXiv 1604.00772; the package cma.
    """

    space: Space
    spread: float = 0.08
    population: int = 0
    name = "cma-es"

    def search(self, task):
        try:
            import cma
        except ImportError:
            raise MissingExtra("cma", "tune", "evolution by CMA-ES") from None
        box, rng = self.space.box(task.model, task.start), np.random.default_rng(task.seed)
        if len(box.dims) < 2:
            raise BadValue("CMA-ES needs at least two numbers to vary: use coordinate descent for one")
        options = {
            "bounds": [0, 1],
            "seed": math.nan,  # leaves numpy's global state alone
            "randn": lambda *shape: rng.standard_normal(shape),
            "verbose": -9,
        }
        if self.population:
            options["popsize"] = self.population
        evolution = cma.CMAEvolutionStrategy(np.clip(box.unit, 1e-6, 1 - 1e-6), self.spread, options)
        while not evolution.stop():
            points, values = evolution.ask(), []
            for point in points:
                trial = yield from _asked(box, point, f"generation {evolution.countiter + 1}")
                values.append(math.inf if trial is None else trial.value)
            finite = [v for v in values if math.isfinite(v)]
            worst = max(finite) + (max(finite) - min(finite)) + 1e-12 if finite else 1.0
            evolution.tell(points, [v if math.isfinite(v) else worst for v in values])


@dataclass(frozen=True)
class Optuna(Tuner):
    """Optuna's samplers: "tpe" lowers the objective, "nsga2" the objective and the evaluations together, for a front.

    Source: Akiba et al. 2019, arXiv 1907.10902; Bergstra et al. 2011 (TPE); Deb et al. 2002 (NSGA-II).
    """

    space: Space
    kind: Literal["tpe", "nsga2"] = "tpe"
    name = "optuna"

    def search(self, task):
        try:
            import optuna
        except ImportError:
            raise MissingExtra("optuna", "tune", "this search") from None
        if self.kind not in ("tpe", "nsga2"):
            raise UnknownName("sampler of Optuna", self.kind, ("tpe", "nsga2"))
        box, two = self.space.box(task.model, task.start), self.kind == "nsga2"
        make = optuna.samplers.NSGAIISampler if two else optuna.samplers.TPESampler
        said = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(sampler=make(seed=task.seed), directions=["minimize"] * (2 if two else 1))
        optuna.logging.set_verbosity(said)
        study.enqueue_trial({d.name: float(u) for d, u in zip(box.dims, box.unit, strict=True)})
        trial = yield Proposal(task.start, note="start")
        while True:
            asked = study.ask()
            point = [asked.suggest_float(d.name, 0.0, 1.0) for d in box.dims]
            if asked.number:
                trial = yield from _asked(box, point, self.kind)
            if trial is None or trial.failed:
                study.tell(asked, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(asked, [trial.value, float(trial.nfe or 0)] if two else trial.value)


@dataclass(frozen=True)
class Halving(Tuner):
    """Successive halving: many settings on few samples, the better part of them on more, and so on until all samples are used.

    All are ranked by their difference from the baseline on the same noise. Settings are ranked apart by cost, so that cheap ones are not
    crowded out: what is left is a front.

    Args:
        candidates: settings drawn at random from the space, besides the start.
        settings: given ones, besides or instead of a space.
        keep: the share that goes on, 1 / keep of each cost.
        first: samples of the first round; 0 is all samples divided by keep twice, but as many as give a number.
    Source: Jamieson & Talwalkar 2016, arXiv 1502.07943.
    """

    space: Space | None = None
    candidates: int = 60
    keep: int = 3
    first: int = 0
    settings: tuple[Setting, ...] = ()
    name = "successive halving"

    def describe(self):
        return {**super().describe(), "settings": _digest(self.settings)}

    def search(self, task):
        if self.candidates < 1 or self.keep < 2:
            raise BadValue(
                f"halving needs at least one candidate and keep of at least 2, got {self.candidates}, {self.keep}"
            )
        alive: list[Setting] = [task.start, *self.settings]
        if self.space is not None:
            box, rng = self.space.box(task.model, task.start), np.random.default_rng(task.seed)
            for _ in range(self.candidates):
                with contextlib.suppress(BadValue):
                    alive.append(box.at(rng.random(len(box.dims))))
        every = len(task.objective.seeds)
        n = min(max(self.first or every // self.keep**2, task.objective.least), every)
        while True:
            trials: list[Trial] = []
            for setting in dict.fromkeys(alive):
                trial = yield Proposal(setting, None if n == every else n, f"{n} samples")
                if not trial.failed:
                    trials.append(trial)
            if n == every:
                return
            alive = [t.setting for t in better_part(trials, self.keep)]
            n = min(n * self.keep, every)


def better_part(trials: Sequence[Trial], keep: int) -> list[Trial]:
    """The best 1 / keep of the trials of each cost, at least one of each, best first."""
    out = []
    for cost in sorted({t.nfe or 0 for t in trials}):
        row = sorted((t for t in trials if (t.nfe or 0) == cost), key=lambda t: (t.difference.value, t.number))
        out += row[: math.ceil(len(row) / keep)]
    return sorted(out, key=lambda t: (t.difference.value, t.number))


@dataclass(frozen=True)
class Chain(Tuner):
    """One tuner after another, each starting from the best setting so far.

    Args: shares: trials that each but the last may take; 0 is until it ends by itself.
    """

    tuners: tuple[Tuner, ...]
    shares: tuple[int, ...] = ()
    name = "chain"

    def check(self, task, budget):
        super().check(task, budget)
        if self.tuners:  # the others begin where it ends
            self.tuners[0].check(task, budget)

    def describe(self):
        parts = [t.describe() for t in self.tuners]
        return {"tuner": self.name, "parts": parts, "shares": list(self.shares)}

    def search(self, task):
        best = yield Proposal(task.start, note="start")
        for i, tuner in enumerate(self.tuners):
            allowed = self.shares[i] if i < len(self.shares) else 0
            search = tuner.search(dataclasses.replace(task, start=best.setting))
            answer, seen = None, 0
            while True:
                try:
                    proposal = search.send(answer)
                except StopIteration:
                    break
                answer = yield proposal
                seen += 1
                if proposal.n is None and answer.value < best.value:
                    best = answer
                if allowed and seen >= allowed:
                    break
            search.close()


def _digest(settings: Sequence[Setting]) -> str:
    return f"{len(settings)}, {hashlib.sha256(''.join(s.key() for s in settings).encode()).hexdigest()[:16]}"


def _asked(box: Box, point: Sequence[float], note: str) -> Search:
    """Proposes the setting at a point and returns its trial; None where the values there contradict each other."""
    try:
        setting = box.at(point)
    except BadValue:
        return None
    return (yield Proposal(setting, note=note))


def _put(at: np.ndarray, i: int, value: float) -> np.ndarray:
    out = at.copy()
    out[i] = value
    return out


def _ray(at: np.ndarray, i: int, width: float) -> list[np.ndarray]:
    """Points from `at` along one axis, up to the wall."""
    out, u = [], float(at[i])
    while len(out) < 64:
        following = min(max(u + width, 0.0), 1.0)
        if following == u:
            break
        u = following
        out.append(_put(at, i, u))
    return out
