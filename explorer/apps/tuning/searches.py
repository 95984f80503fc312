"""The searches that run in this process. They belong to no page: a tab that is closed leaves them running, and every page sees them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from explorer.apps import catalogue
from explorer.apps.results import Stopped
from explorer.apps.tuning import records
from explorer.apps.tuning.bridge import watched
from explorer.apps.tuning.plan import Plan, solved
from explorer.apps.worker import Failure, Job, Worker
from explorer.errors import BadValue
from explorer.tuning import Trial

MOST = 2
"""Searches that run at a time; each holds one of the worker's places until it ends."""
LEARNT = {"gradient": "learning the grid, ", "decoupled": "learning the grid, ", "bespoke": "learning the solver, "}
TELL_EVERY = 0.25  # seconds between two words to the pages


@dataclass(eq=False)
class Running:
    """One of them.

    Attributes:
        state: "starting", "running" or "reporting" (the winner and the baseline on held-out noise).
        fraction: of the budget; eta: seconds left of the search, None while unknown.
        words: what it does now.
    """

    name: str
    plan: Plan
    folder: Path
    state: str = "starting"
    trials: list[Trial] = field(default_factory=list)
    fraction: float = 0.0
    eta: float | None = None
    words: str = "starting"
    job: Job | None = None
    halt: threading.Event = field(default_factory=threading.Event)


class Searches:
    """Starts and stops them. `listen(call)` has `call()` called, from any thread, when there is something new."""

    def __init__(self):
        self._lock, self._listeners = threading.Lock(), set()
        self._running: dict[str, Running] = {}
        self.failures: dict[str, Failure] = {}
        self._timer: threading.Timer | None = None

    def get(self, name: str) -> Running | None:
        return self._running.get(name)

    @property
    def busy(self) -> frozenset[str]:
        """Names of those that run."""
        return frozenset(self._running)

    def listen(self, call: Callable[[], None]) -> Callable[[], None]:
        """Returns what ends it."""
        self._listeners.add(call)
        return lambda: self._listeners.discard(call)

    def begin(self, worker: Worker, plan: Plan, name: str, folder: Path) -> Running:
        """Starts a search, or goes on with one whose journal is there.

        Raises: BadValue where it runs already, too many run, or the plan cannot be done; nothing is written then.
        """
        plan.study(catalogue.model(plan.model), None)
        with self._lock:
            if name in self._running:
                raise BadValue(f"{name} is running already.")
            if len(self._running) >= MOST:
                raise BadValue(
                    f"{MOST} searches are running, and that is as many as run at a time: stop one, or wait for it."
                )
            run = self._running[name] = Running(name, plan, folder)
        self.failures.pop(name, None)
        try:
            records.write_plan(plan, name, folder)
        except BaseException:
            self._running.pop(name, None)
            raise
        run.job = worker.submit(
            lambda job: self._course(job, run),
            value=lambda item: self._take(run, item),
            end=lambda f: self._end(run, f),
        )
        self.tell()
        return run

    def stop(self, name: str) -> None:
        """Ends the search, whose best is then measured on held-out noise; the second time, that too."""
        run = self._running.get(name)
        if run is None:
            raise BadValue(f"{name} is not running.")
        if run.state == "running" and not run.halt.is_set() and len(run.trials) > 1:
            run.words = "stopping after this step"
            run.halt.set()
        else:
            run.job.cancel()
            self._running.pop(name, None)
        self.tell()

    def close(self) -> None:
        for name in list(self._running):
            run = self._running.pop(name)
            run.job.cancel()

    def tell(self) -> None:
        """Has the pages look, soon."""
        with self._lock:
            if self._timer is None:
                self._timer = threading.Timer(TELL_EVERY, self._tell)
                self._timer.daemon = True
                self._timer.start()

    def _tell(self) -> None:
        with self._lock:
            self._timer = None
        for call in list(self._listeners):
            call()

    def _course(self, job: Job, run: Running) -> Iterator[Any]:
        plan, calls, past, held, began = run.plan, 0, 0, 1, time.monotonic()

        def between() -> None:
            nonlocal calls
            if job.stop.is_set() or (run.halt.is_set() and run.state == "running"):
                raise Stopped("stopped")
            calls += 1
            if run.state == "reporting":
                run.words = f"measuring the winner on held-out noise, {min((calls - past) / held, 1):.0%}"
                if calls % 16 == 0:
                    self.tell()
            elif not run.trials and plan.objective == "truncation" and not solved(study.objective):
                every = (2 * plan.n_reference - 1) * -(-plan.n // 256)
                run.words = f"solving the fine reference, {min(calls / every, 1):.0%}"
                if calls % 16 == 0:
                    self.tell()
            job.between()

        study = plan.study(watched(catalogue.model(plan.model), between), run.folder / (run.name + records.JOURNAL))
        yield "running"
        written = len(records.read(run.name, run.folder).trials)
        begun, share = began, 0.0
        try:
            with contextlib.closing(iter(study)) as trials:
                for trial in trials:
                    if trial.number < max(written, 1):  # what the journal has comes back at once
                        begun, share = time.monotonic(), study.fraction
                    gone = study.fraction - share
                    run.eta = (time.monotonic() - begun) * (1 - study.fraction) / gone if gone > 0 else None
                    run.fraction = min(study.fraction, 1.0)
                    yield trial
                    if run.halt.is_set():
                        break
        except Stopped:
            if job.stop.is_set():
                return
        if sum(not t.failed for t in study.trials) > 1:
            again = {t.setting.key(): t.nfe or 0 for t in (study.best, study.trials[0], *study.front())}
            fine = 2 * plan.n_reference - 1 if plan.objective == "truncation" else 0
            past, held = calls, (fine + sum(again.values())) * -(-len(plan.report) // 256)
            yield "reporting"
            study.finish(plan.report).save(run.folder / (run.name + records.FOUND))

    def _take(self, run: Running, item: Any) -> None:
        if isinstance(item, Trial):
            run.trials.append(item)
            run.words = f"{LEARNT.get(run.plan.method, '')}trial {len(run.trials) - 1} of {run.plan.trials}"
        else:
            run.state, run.eta = item, None
            run.words = "measuring the winner on held-out noise" if item == "reporting" else "measuring the baseline"
        self.tell()

    def _end(self, run: Running, failure: Failure | None) -> None:
        self._running.pop(run.name, None)
        if failure is not None:
            self.failures[run.name] = failure
        self.tell()


SEARCHES = Searches()
