"""A search, run: trials one after another, a budget, a journal that survives a kill, and a number at the end on noise it never saw.

    study = Study(model, start, objective, tuner, Budget(trials=100), journal="tune.jsonl")
    for trial in study:
        print(trial)
    tuned = study.finish(report=range(2000))

The search compares settings on the objective's own seeds; of many settings the one that looks best there is also the luckiest. So
`finish` measures the winner and the baseline again on seeds the search did not use, and keeps both pairs of numbers.

A tuner is a generator that proposes settings and is sent what became of them. Given the same answers it proposes the same settings, which
is how a search goes on after a kill: the journal's trials are sent to it again, unmeasured, and it continues where it was.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from explorer.errors import BadValue, NonFinite
from explorer.metrics.base import Estimate, plus_minus
from explorer.models.base import Model
from explorer.tuning.journal import Journal
from explorer.tuning.objective import Measurement, Objective, checked_seeds
from explorer.tuning.setting import Setting, fingerprint

REPEATS = 1000
"""Proposals in a row that were all measured before, after which a search is over."""


@dataclass(frozen=True)
class Budget:
    """When a search stops: at whichever limit comes first. None is no limit.

    Args:
        trials: measured settings besides the baseline, failed ones included.
        nfe: network evaluations times samples, the baseline and what a tuner records for itself included.
        minutes: of measuring, over all runs of a resumed search together.
    """

    trials: int | None = None
    nfe: int | None = None
    minutes: float | None = None

    def __post_init__(self):
        given = {k: v for k, v in vars(self).items() if v is not None}
        if not given:
            raise BadValue("a budget needs a limit: trials, nfe (network evaluations times samples) or minutes")
        for name, value in given.items():
            if not value > 0 or (name != "minutes" and value != int(value)):
                least = "a positive number" if name == "minutes" else "a whole number of at least 1"
                raise BadValue(f"a budget of {value:g} {name} is too small for one trial: give {least}")

    def spent(self, trials: int, nfe: int, minutes: float) -> float:
        """Largest share of a limit that is used up; 1 and more is the end."""
        pairs = ((trials, self.trials), (nfe, self.nfe), (minutes, self.minutes))
        return max((used / limit for used, limit in pairs if limit is not None), default=0.0)


@dataclass(frozen=True)
class Proposal:
    """A setting that a tuner wants measured.

    Attributes:
        n: on how many of the objective's samples; None is all.
        note: why it is proposed, for the table.
        extra: network evaluations times samples that finding it took, such as a recorded run.
    """

    setting: Setting
    n: int | None = None
    note: str = ""
    extra: int = 0


@dataclass(frozen=True)
class Trial:
    """A proposal and what came of it.

    Attributes:
        number: 0 is the baseline.
        estimate: of the objective on the search's noise; NaN where it failed.
        difference: from the baseline on the same noise, with the error of the pair.
        nfe: network evaluations per sample.
        n_evals: network evaluations times samples this trial took, its `extra` included.
        failed: why there is no number; empty otherwise.
    """

    number: int
    setting: Setting
    estimate: Estimate
    difference: Estimate
    nfe: int | None
    n_evals: int
    seconds: float
    note: str = ""
    failed: str = ""

    @property
    def value(self) -> float:
        """The objective's value; infinite where the trial failed, so that it is never the best."""
        return math.inf if self.failed else self.estimate.value

    @property
    def n(self) -> int:
        return self.estimate.n

    def __str__(self) -> str:
        head = f"trial {self.number}" if self.number else "baseline"
        if self.failed:
            return f"{head} failed: {self.failed}"
        change = (
            ""
            if not self.number
            else f", {plus_minus(self.difference.value, self.difference.std_error)} from the baseline"
        )
        return f"{head}: {self.estimate}{change}, {self.nfe} NFE"

    def to_dict(self) -> dict[str, Any]:
        kept = {"note": self.note, "failed": self.failed}
        return {
            "trial": self.number,
            "setting": self.setting.to_dict(),
            "estimate": self.estimate.to_dict(),
            "difference": self.difference.to_dict(),
            "nfe": self.nfe,
            "n_evals": self.n_evals,
            "seconds": round(self.seconds, 4),
            **{k: v for k, v in kept.items() if v},
        }

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Trial:
        return cls(
            int(given["trial"]),
            Setting.from_dict(given["setting"]),
            Estimate.from_dict(given["estimate"]),
            Estimate.from_dict(given["difference"]),
            given["nfe"],
            int(given["n_evals"]),
            float(given["seconds"]),
            given.get("note", ""),
            given.get("failed", ""),
        )


def unheard(words: str, share: float) -> None:
    """Nobody listens."""


@dataclass(frozen=True, eq=False)
class Task:
    """What a tuner is given: the bare model, where it starts, what to lower, and its seed.

    Attributes:
        tell: called with words and a share from 0 to 1 while a tuner measures something of its own between two proposals.
    """

    model: Model
    start: Setting
    objective: Objective
    seed: int
    tell: Callable[[str, float], object] = unheard


Search = Generator[Proposal, Trial, None]


class Tuner(ABC):
    """A way to search. Finals are frozen dataclasses; what they draw comes from the task's seed alone."""

    name: str

    @abstractmethod
    def search(self, task: Task) -> Search:
        """Yields proposals; each `yield` returns the trial it became. Ends when there is nothing left to try."""

    def check(self, task: Task, budget: Budget) -> None:
        """Raises BadValue, without asking the model anything, where it can be told beforehand that nothing will be found.

        The budget must hold the baseline and one trial; finals may know more.
        """
        nfe = task.start.nfe(task.model)
        if budget.nfe is not None and nfe is not None:
            least = 2 * nfe * task.objective.least
            if budget.nfe < least:
                raise BadValue(
                    f"a budget of {budget.nfe} network evaluations is too small: the baseline and one trial take {least} at {nfe} NFE "
                    f"and {task.objective.least} samples"
                )

    def describe(self) -> dict[str, Any]:
        """What determines its proposals, as plain JSON."""
        return {"tuner": self.name, **{k: repr(v) for k, v in vars(self).items()}}


@dataclass(eq=False)
class Measurer:
    """Makes trials of proposals: measures them, and the baseline on the same noise, whose numbers pair with theirs.

    Args:
        alone: what all measurements share was paid for by trial 0, also where an earlier run made it; else by the first trial here.
    """

    model: Model
    start: Setting
    objective: Objective
    alone: bool = True
    paid: set[int | None] = field(default_factory=set, init=False)
    _baselines: dict[int | None, Measurement] = field(default_factory=dict, init=False)

    def measured(self, proposal: Proposal, number: int) -> Trial:
        """The trial of this number; the baseline is number 0.

        Raises: BadValue where the baseline cannot be measured.
        """
        began, failed = time.perf_counter(), ""
        nan = Estimate(math.nan, math.nan, proposal.n or len(self.objective.seeds), self.objective.name)
        found, change, nfe, extra = Measurement(nan), nan, None, proposal.extra
        shared = self.objective.prepare()
        if number == 0 or not self.alone:
            extra += shared
        if number and proposal.n not in self._baselines:
            self._baselines[proposal.n] = self.objective.measure(*self.start.on(self.model), proposal.n)
            if proposal.n not in self.paid:
                extra += self._baselines[proposal.n].n_evals
        try:
            model, sampler = proposal.setting.on(self.model)
            nfe = sampler.nfe(model)
            found = self.objective.measure(model, sampler, proposal.n)
            if not math.isfinite(found.estimate.value):
                note = found.estimate.note
                failed = f"the objective is {found.estimate.value}" + (f" ({note})" if note else "")
        except (NonFinite, BadValue) as error:
            failed = str(error)
        if number == 0 and failed:
            raise BadValue(f"the baseline cannot be measured: {failed}")
        if not failed:
            base = self._baselines.setdefault(proposal.n, found)
            change = found.minus(base)
        self.paid.add(proposal.n)
        return Trial(
            number,
            proposal.setting,
            nan if failed else found.estimate,
            change,
            nfe,
            found.n_evals + extra,
            time.perf_counter() - began,
            proposal.note,
            failed,
        )


@dataclass(eq=False)
class Study:
    """A search of one model, as an iterator over its trials, the baseline first. Iterating again goes on where it stopped.

    Args:
        start: the setting the search begins with, and the baseline of every difference.
        journal: JSON lines written as trials end; one that exists is gone on from. None keeps nothing.
        tell: hears what a tuner measures of its own between two trials, in words, and which share of it is done.
    Raises:
        BadValue: the budget does not hold one trial, or the tuner cannot find anything; BadFile: the journal is of another search, in
            use, or damaged.
    """

    model: Model
    start: Setting
    objective: Objective
    tuner: Tuner
    budget: Budget
    seed: int = 0
    journal: Path | str | None = None
    tell: Callable[[str, float], object] = field(default=unheard, repr=False)
    trials: list[Trial] = field(default_factory=list, init=False)

    def describe(self) -> dict[str, Any]:
        """What must be the same for a journal to be gone on from; the budget may be changed."""
        return {
            "model": fingerprint(self.model),
            "objective": self.objective.describe(),
            **self.tuner.describe(),
            "seed": self.seed,
            "start": self.start.to_dict(),
        }

    def __post_init__(self):
        for name, wanted, example in (
            ("start", Setting, "Setting(sampler)"),
            ("objective", Objective, "MetricObjective(metric, seeds)"),
            ("tuner", Tuner, "Coordinate(Nodes()): how to search, around where"),
            ("budget", Budget, "Budget(trials=60)"),
        ):
            if not isinstance(given := getattr(self, name), wanted):
                raise BadValue(f"{name} is a {type(given).__name__}, expected a {wanted.__name__}, {example} say")
        self.tuner.check(self._task(), self.budget)
        self._measurer = Measurer(self.model, self.start, self.objective)
        self._store: Journal | None = None

    def _task(self) -> Task:
        return Task(self.model, self.start, self.objective, self.seed, lambda words, share: self.tell(words, share))

    @property
    def n_evals(self) -> int:
        return sum(t.n_evals for t in self.trials)

    @property
    def seconds(self) -> float:
        return sum(t.seconds for t in self.trials)

    @property
    def fraction(self) -> float:
        """Share of the budget that is spent."""
        return self.budget.spent(max(len(self.trials) - 1, 0), self.n_evals, self.seconds / 60)

    def __iter__(self) -> Iterator[Trial]:
        past = [] if self.journal is None else self._open()
        if self.trials:  # iterated before: the same answers lead to the same place
            past, self.trials = (past if len(past) > len(self.trials) else self.trials), []
        try:
            yield from self._run(past)
        finally:
            if self._store is not None:
                self._store.close()
                self._store = None

    def _open(self) -> list[Trial]:
        self._store = Journal(self.journal, self.describe())
        return [Trial.from_dict(row) for row in self._store.rows]

    def _run(self, past: list[Trial]) -> Iterator[Trial]:
        past = list(reversed(past))
        seen: dict[tuple[str, int | None], Trial] = {}
        search, repeats = self.tuner.search(self._task()), 0
        proposal: Proposal | None = Proposal(self.start, note="baseline")
        begun = False
        while proposal is not None and repeats < REPEATS and (not self.trials or self.fraction < 1):
            key = proposal.setting.key(), proposal.n
            trial = seen.get(key)
            if trial is None:
                trial = self._recorded(past, proposal) or self._measured(proposal)
                seen[key], repeats = trial, 0
                self.trials.append(trial)
                yield trial
            else:
                repeats += 1
            try:
                proposal = search.send(trial if begun else None)
            except StopIteration:
                proposal = None
            begun = True
        search.close()

    def _recorded(self, past: list[Trial], proposal: Proposal) -> Trial | None:
        if not past:
            return None
        trial = past.pop()
        self._measurer.paid.add(proposal.n)
        same = trial.setting == proposal.setting and trial.note == proposal.note
        if trial.number != len(self.trials) or not same:
            raise BadValue(
                f"trial {trial.number} of {self.journal} is {trial.setting.describe()}, and this search proposes "
                f"{proposal.setting.describe()}: the code or the libraries have changed since; start a new journal"
            )
        return trial

    def _measured(self, proposal: Proposal) -> Trial:
        trial = self._measurer.measured(proposal, len(self.trials))
        if self._store is not None:
            self._store.append(trial.to_dict())
        return trial

    @property
    def best(self) -> Trial:
        """The trial with the lowest value among those measured on all samples; the baseline where none is lower."""
        if not self.trials:
            raise BadValue("nothing was measured yet: iterate the study first")
        whole = [t for t in self.trials if t.n == self.trials[0].n and not t.failed]
        return min(whole, key=lambda t: (t.value, t.number))

    def front(self) -> tuple[Trial, ...]:
        """Trials that no other beats at the same or lower cost, cheapest first: chosen by the search's numbers."""
        return pareto(t for t in self.trials if t.n == self.trials[0].n)

    def leaders(self, top: int) -> list[Trial]:
        """The `top` best of different settings among those measured on all samples, best first."""
        whole = [t for t in self.trials if t.n == self.trials[0].n and not t.failed]
        best: dict[Setting, Trial] = {}
        for trial in sorted(whole, key=lambda t: (t.value, t.number)):
            best.setdefault(trial.setting, trial)
        return list(best.values())[:top]

    def finish(self, report: range | int | Iterable[int], *, rerank: range | None = None, top: int = 5):
        """The `Tuned` setting: the best trial and the baseline, both measured once more on noise the search did not see.

        Args:
            report: seeds for that, disjoint from the objective's; a number means that many from 0.
            rerank: seeds on which the `top` trials are measured again to choose the best of them; disjoint from both. None takes the
                search's word for it. Worth its cost where many candidates are near each other and the objective is noisy.
        Raises: BadValue where two of them overlap.
        """
        from explorer.tuning.tuned import tuned_from

        report, best = disjoint(report, self.objective.seeds), self.best
        if rerank is not None:
            rerank = disjoint(disjoint(rerank, self.objective.seeds), report)
            again = self.objective.on(rerank)
            best = min(self.leaders(top), key=lambda t: again(*t.setting.on(self.model)).value)
        return tuned_from(self, report, best, rerank)


def pareto(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """Trials with the lowest value among all of at most their cost, by cost; of equal ones the earlier."""
    out: list[Trial] = []
    for trial in sorted((t for t in trials if not t.failed and t.nfe), key=lambda t: (t.nfe, t.value, t.number)):
        if not out or trial.value < out[-1].value:
            out.append(trial)
    return tuple(out)


def disjoint(report: range | int | Iterable[int], selection: range) -> range:
    """The seeds to report on.

    Raises: BadValue where they share one with the search's.
    """
    report = checked_seeds(range(report) if isinstance(report, int) else report)
    shared = range(max(report.start, selection.start), min(report.stop, selection.stop))
    if shared:
        raise BadValue(
            f"seeds {shared.start} to {shared.stop - 1} were used by the search, and what is chosen on some noise looks better on it than "
            f"it is: report on seeds outside {selection.start} to {selection.stop - 1}"
        )
    return report


def tune(
    model: Model,
    start: Setting,
    objective: Objective,
    tuner: Tuner,
    budget: Budget,
    report: range | int,
    *,
    seed: int = 0,
    journal: Path | str | None = None,
    show: Callable[[Trial, float], object] | None = None,
):
    """The whole search in one call: runs a `Study` and finishes it; `show` sees each trial and the share of the budget spent."""
    report = disjoint(report, objective.seeds)
    study = Study(model, start, objective, tuner, budget, seed, journal)
    for trial in study:
        if show is not None:
            show(trial, study.fraction)
    return study.finish(report)
