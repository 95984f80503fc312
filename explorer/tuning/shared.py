"""One search by several processes or machines, through a storage of Optuna's: each asks it for a point, measures it and tells it.

    study = SharedStudy(model, start, objective, Optuna(Nodes()), Budget(trials=200), "sqlite:////mnt/lab/tune.db")
    for trial in study.work():            # the same lines in every process
        print(trial)
    tuned = study.finish(report=range(2000))

Storage, samplers, heartbeats and the retry of a trial whose worker died are Optuna's (Akiba et al. 2019, arXiv 1907.10902). What is
added: a name and a description, so that nobody joins a search of something else by mistake; a count that ends the search at exactly as
many trials as were asked for; and heartbeats for journal files, which Optuna has for databases only.

With several workers the order of answers is not fixed, so the same seed does not give the same trials.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from explorer.errors import BadFile, BadValue, ExplorerError, MissingExtra
from explorer.metrics.base import Estimate
from explorer.models.base import Model
from explorer.tuning.journal import difference
from explorer.tuning.objective import Objective
from explorer.tuning.search import Optuna
from explorer.tuning.setting import Setting, fingerprint
from explorer.tuning.study import REPEATS, Budget, Measurer, Proposal, Study, Trial

if TYPE_CHECKING:
    import optuna

FORMAT, VERSION = "explorer.shared-study", 1
DATABASES = ("sqlite", "postgresql", "mysql", "mariadb", "oracle", "mssql")


@dataclass(eq=False)
class SharedStudy:
    """A search that any number of processes work on at once; see `Study` for the arguments that are not here.

    Args:
        tuner: TPE or NSGA-II. What another process measures now counts as bad until it is known, so that workers spread.
        budget: `trials` of all workers together, and `minutes` of each; `nfe` is not for several workers.
        storage: "journal:FILE", or any database that SQLAlchemy opens, e.g. "sqlite:///FILE" or "postgresql://...". A journal file may
            lie on a network file system; SQLite must not.
        name: of the search in that storage.
        heartbeat: seconds between two signs of life of a worker. After three without one its trial is begun again, once.
        patience: seconds to wait for a storage that is locked.
    Raises:
        BadFile: the storage cannot be opened, is damaged or stays locked, or the search of that name is of something else.
    """

    model: Model
    start: Setting
    objective: Objective
    tuner: Optuna
    budget: Budget
    storage: str
    name: str = "explorer"
    seed: int = 0
    heartbeat: int = 10
    patience: float = 30.0
    measured: list[Trial] = field(default_factory=list, init=False)
    """What this process has measured."""

    def __post_init__(self):
        if not isinstance(self.tuner, Optuna):
            raise BadValue(
                f"{self.tuner.name} goes from one answer to the next, which several workers cannot: search with Optuna(space)"
            )
        if self.budget.trials is None or self.budget.nfe is not None:
            raise BadValue("workers share a number of trials: give Budget(trials=...), minutes besides, and no nfe")
        self._box = self.tuner.space.box(self.model, self.start)
        self._measurer = Measurer(self.model, self.start, self.objective, alone=False)

    def describe(self) -> dict[str, Any]:
        """What must be the same for a process to join."""
        about = {
            "format": FORMAT,
            "version": VERSION,
            "model": fingerprint(self.model),
            "objective": self.objective.describe(),
            **self.tuner.describe(),
            "start": self.start.to_dict(),
            "dims": [repr(dim) for dim in self._box.dims],
        }
        return json.loads(json.dumps(about))

    # What a worker does

    def work(self) -> Iterator[Trial]:
        """Measures trials until as many as the budget allows are measured, by whomever; yields those measured here.

        Waits for the last ones of others, in case their worker dies.
        """
        began, refused = time.monotonic(), 0
        with self._told():
            study = self._study
        while self.budget.minutes is None or time.monotonic() - began < 60 * self.budget.minutes:
            with self._told(), _quiet():
                _optuna().storages.fail_stale_trials(study)
                kinds = [row.state.name for row in self._rows(study)]
            if "WAITING" not in kinds and len(kinds) > self.budget.trials:
                if "RUNNING" not in kinds:
                    return
                time.sleep(min(self.heartbeat / 4, 1.0))
                continue
            before = len(self.measured)
            self._once(study)
            if len(self.measured) > before:
                refused = 0
                yield self.measured[-1]
            elif (refused := refused + 1) > REPEATS:
                return

    def _once(self, study: optuna.Study) -> None:
        optuna, asked = _optuna(), []

        def measure(trial: optuna.Trial):
            asked.append(trial)
            return self._value(study, trial)

        try:
            with self._told(), _quiet():
                study.optimize(measure, n_trials=1)
        except BaseException as error:
            with self._told(), _quiet():
                row = study.trials[asked[0].number] if asked else None
                gone = isinstance(error, optuna.exceptions.UpdateFinishedTrialError) or "Cannot tell a" in str(error)
                if (
                    row is not None and gone
                ):  # taken for dead, say because the machine slept: another has begun it again
                    self.measured = [t for t in self.measured if t.number != row.number]
                    return
                if row is not None and row.state.is_finished():  # interrupted: back to the queue
                    retry()(study, row)
            raise (error.__cause__ if isinstance(error, NotTheStorage) else error) from None

    def _value(self, study: optuna.Study, trial: optuna.Trial) -> Any:
        optuna = _optuna()
        place = self._places(study)[trial.number]
        if place > self.budget.trials:  # two workers asked for the last one
            raise optuna.TrialPruned("one more than were asked for")
        point = [trial.suggest_float(dim.name, 0.0, 1.0) for dim in self._box.dims]
        try:
            setting = self.start if place == 0 else self._box.at(point)
        except BadValue as error:
            raise optuna.TrialPruned(str(error)) from None
        note = "baseline" if place == 0 else f"{self.tuner.kind}, {socket.gethostname()}:{os.getpid()}"
        try:
            found = self._measurer.measured(Proposal(setting, note=note), place)
        except Exception as error:
            raise NotTheStorage from error
        found = dataclasses.replace(found, number=trial.number)
        trial.set_user_attr("trial", json.dumps(found.to_dict(), allow_nan=False))
        self.measured.append(found)
        two = self.tuner.kind == "nsga2"
        value = math.nan if found.failed else found.estimate.value
        return (value, float(found.nfe or 0)) if two else value

    # What there is

    @property
    def trials(self) -> list[Trial]:
        """What all workers have measured, the baseline first; a trial whose workers both died is there as failed."""
        with self._told():
            return self._gathered(self._study)

    @property
    def fraction(self) -> float:
        return max(len(self.trials) - 1, 0) / self.budget.trials

    @property
    def best(self) -> Trial:
        return self.gathered().best

    def gathered(self) -> Study:
        """The trials of all as a study, whose `front` and `finish` are those of a search in one process."""
        study = Study(self.model, self.start, self.objective, self.tuner, self.budget, self.seed)
        study.trials = self.trials
        if not study.trials or study.trials[0].setting != self.start or study.trials[0].failed:
            raise BadValue("the baseline of this search is not measured yet: let a worker go on")
        return study

    def finish(self, report: range | int | Iterable[int]):
        """As `Study.finish`, of the trials of all workers."""
        return self.gathered().finish(report)

    def _rows(self, study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
        """The last attempt at each trial that counts, in order of the first."""
        rows: dict[int, optuna.trial.FrozenTrial] = {}
        for row in study.get_trials(deepcopy=False):
            if row.state.name != "PRUNED":
                rows[first_attempt(row)] = row
        return [rows[number] for number in sorted(rows)]

    def _places(self, study: optuna.Study) -> dict[int, int]:
        """Number in the storage -> place in the search, retries at the place of what they repeat."""
        kept = [row for row in study.get_trials(deepcopy=False) if row.state.name != "PRUNED"]
        order = {number: k for k, number in enumerate(sorted({first_attempt(row) for row in kept}))}
        return {row.number: order[first_attempt(row)] for row in kept}

    def _gathered(self, study: optuna.Study) -> list[Trial]:
        out = []
        for place, row in enumerate(self._rows(study)):
            if not row.state.is_finished():
                continue
            said = row.user_attrs.get("trial")
            trial = self._lost(row) if said is None else Trial.from_dict(json.loads(said))
            out.append(dataclasses.replace(trial, number=place))
        return out

    def _lost(self, row: optuna.trial.FrozenTrial) -> Trial:
        nan = Estimate(math.nan, math.nan, len(self.objective.seeds), self.objective.name)
        point = [row.params.get(dim.name) for dim in self._box.dims]
        setting = self.start
        with contextlib.suppress(BadValue):
            setting = self.start if None in point else self._box.at(point)
        return Trial(row.number, setting, nan, nan, None, 0, 0.0, "", "its workers ended before it was measured, twice")

    # The storage

    @cached_property
    def _study(self) -> optuna.Study:
        optuna, two = _optuna(), self.tuner.kind == "nsga2"
        make = optuna.samplers.NSGAIISampler if two else optuna.samplers.TPESampler
        about, storage = self.describe(), opened(self.storage, self.heartbeat, self.patience)
        own = int.from_bytes(hashlib.sha256(repr((self.seed, own_name(), time.time_ns())).encode()).digest()[:4])
        given = {"storage": storage, "study_name": self.name, "sampler": make(seed=own)}
        with _quiet():
            try:
                study = optuna.create_study(**given, directions=["minimize"] * (2 if two else 1))
            except optuna.exceptions.DuplicatedStudyError:
                study = optuna.load_study(**given)
                self._same(study, about)
                return study
            at = {d.name: float(u) for d, u in zip(self._box.dims, self._box.unit, strict=True)}
            study.enqueue_trial(at)
            study.set_user_attr("about", json.dumps(about))
        return study

    def _same(self, study: optuna.Study, about: dict[str, Any]) -> None:
        until = time.monotonic() + self.patience
        while (said := study.user_attrs.get("about")) is None:
            if time.monotonic() > until or study.get_trials(deepcopy=False)[1:]:
                raise BadFile(
                    f"the search {self.name!r} in {shown(self.storage)} was not begun by this program: name another search"
                )
            time.sleep(0.05)
        if gap := difference(json.loads(said), about):
            raise BadFile(
                f"the search {self.name!r} in {shown(self.storage)} is another one: {gap}. Name another search, or repeat its command"
            )

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What storages raise, as one sentence."""
        with told(self.storage):
            yield


class NotTheStorage(Exception):
    """Carries out of Optuna's loop what the objective raised."""


def first_attempt(row: optuna.trial.FrozenTrial) -> int:
    """Number of the trial that this one repeats, or its own."""
    return row.system_attrs.get("failed_trial", row.number)


def own_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def retry():
    """Optuna's callback that puts a trial whose worker died back into the queue, once."""
    with _quiet():
        return _optuna().storages.RetryHeartbeatStaleTrialCallback(max_retry=1)


def opened(storage: str, heartbeat: int, patience: float = 30.0):
    """The storage at a URL, with heartbeats.

    Raises: BadFile where it cannot be opened; BadValue for a kind that is not supported.
    """
    optuna = _optuna()
    kind, _, rest = storage.partition(":")
    with told(storage), _quiet():
        if kind == "journal" and rest:
            return _beating_journal()(Path(rest).expanduser(), heartbeat, patience)
        if kind.partition("+")[0] not in DATABASES:
            raise BadValue(
                f"{shown(storage)} is no storage: give journal:FILE, or the URL of a database such as sqlite:///FILE or postgresql://..."
            )
        engine = {"connect_args": {"timeout": patience}} if kind == "sqlite" else None
        return _begun(
            lambda: optuna.storages.RDBStorage(
                storage,
                engine_kwargs=engine,
                heartbeat_interval=heartbeat,
                grace_period=3 * heartbeat,
                heartbeat_stale_trial_callback=retry(),
            )
        )


def _begun(make: Callable[[], Any]):
    """A new database has its tables made by whoever comes first; who comes second is told that they exist, and finds them."""
    for wait in (0.2, 0.5, 1.0, None):
        try:
            return make()
        except Exception as error:
            if wait is None or "already exists" not in str(error) and "UNIQUE constraint" not in str(error):
                raise
        time.sleep(wait)


@contextlib.contextmanager
def told(storage: str) -> Iterator[None]:
    """What storages and their drivers raise inside the block, as one BadFile."""
    from sqlalchemy.exc import SQLAlchemyError

    optuna = _optuna()
    try:
        yield
    except ExplorerError:
        raise
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError, OSError, ValueError) as error:
        text = str(getattr(error, "__cause__", None) or error)
        what = str(getattr(error, "orig", None) or text).splitlines()[0]
        if "locked" in text:
            raise BadFile(
                f"{shown(storage)} is locked by another program: wait for it, or name another storage"
            ) from None
        if isinstance(error, ImportError) or "Failed to import DB access" in text:
            raise BadFile(f"{shown(storage)} needs a database driver that is not installed: {what}") from None
        spoilt = ("Invalid log format", "not a database", "malformed", "no such column", "no such table")
        if isinstance(error, json.JSONDecodeError) or any(words in text for words in spoilt):
            raise BadFile(f"{shown(storage)} is damaged or no storage of searches ({what}): name another one") from None
        raise BadFile(f"{shown(storage)} cannot be used: {what}") from None


def shown(storage: str) -> str:
    """The URL without its password."""
    head, at, tail = storage.rpartition("@")
    return f"{head.rpartition(':')[0]}:***@{tail}" if at and ":" in head.partition("://")[2] else storage


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    optuna = _optuna()
    said = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(said)


def _optuna():
    try:
        import optuna
    except ImportError:
        raise MissingExtra("optuna", "tune", "a search by several workers") from None
    return optuna


@cache
def _beating_journal():
    """Optuna's journal storage with heartbeats: a time that a running trial writes, watched by the clock of whoever looks."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages._heartbeat import BaseHeartbeat
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    class BeatingJournal(JournalStorage, BaseHeartbeat):
        def __init__(self, file: Path, interval: int, patience: float):
            self.interval, self._seen = interval, {}
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = JournalFileOpenLock(str(file), grace_period=max(math.ceil(patience), 3))
            super().__init__(JournalFileBackend(str(file), lock_obj=lock))

        def record_heartbeat(self, trial_id: int) -> None:
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                self.set_trial_system_attr(trial_id, "heartbeat", time.time())

        def _get_stale_trial_ids(self, study_id: int) -> list[int]:
            """Running trials whose sign of life has not changed for three intervals while this process watched."""
            now, stale = time.monotonic(), []
            for row in self.get_all_trials(study_id, deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
                beat = row.system_attrs.get("heartbeat")
                last, since = self._seen.setdefault(row._trial_id, (beat, now))
                if last != beat:
                    self._seen[row._trial_id] = (beat, now)
                elif now - since > 3 * self.interval:
                    stale.append(row._trial_id)
            return stale

        def get_heartbeat_interval(self) -> int:
            return self.interval

        def get_heartbeat_stale_trial_callback(self):
            return retry()

    return BeatingJournal
