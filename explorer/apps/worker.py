"""One compute slot shared by all browser sessions: jobs take turns step by step, each can be stopped at once.

Every job runs in a thread of a small pool but computes only while it holds the baton, which is handed on first come first
served between solver steps. So one network runs at a time, a short job never waits for a long one to end, and a cancelled
job is gone after the step in flight.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from explorer.errors import ExplorerError

REPORT_EVERY = 0.1  # seconds between two progress reports


class Baton:
    """A lock that serves its waiters in the order they came."""

    def __init__(self):
        self._lock, self._waiting, self._held = threading.Lock(), deque(), False

    def take(self) -> None:
        with self._lock:
            if not self._held:
                self._held = True
                return
            turn = threading.Event()
            self._waiting.append(turn)
        turn.wait()

    def give(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()  # stays held: it is the next one's now
            else:
                self._held = False

    def pass_on(self) -> None:
        """Let whoever waits go first, then take it again."""
        if self._waiting:
            self.give()
            self.take()


@dataclass(frozen=True)
class Failure:
    """What went wrong, in one sentence, and the text for "copy details"."""

    text: str
    details: str

    @classmethod
    def of(cls, error: Exception, what: str = "This did not work") -> Failure:
        """Of an error that is being handled: its own words where they are meant for users, else `what` and its type."""
        words = str(error) if isinstance(error, ExplorerError) else f"{what}: {type(error).__name__}: {error}"
        return cls(words, traceback.format_exc())


@dataclass(eq=False)
class Job:
    """One running computation. `stop` is set to cancel it; `between` belongs between its solver steps."""

    stop: threading.Event = field(default_factory=threading.Event)
    started: float = 0.0
    _worker: Worker | None = None
    _report: Callable[[float, float], None] | None = None
    _reported: float = 0.0

    def cancel(self) -> None:
        self.stop.set()

    def between(self, fraction: float = 0.0) -> None:
        """Hands the baton on and reports progress as (fraction, seconds left)."""
        now = time.perf_counter()
        if self._report is not None and fraction > 0 and now - self._reported > REPORT_EVERY and not self.stop.is_set():
            self._reported = now
            self._report(fraction, (now - self.started) / fraction * (1 - fraction))
        self._worker.baton.pass_on()


class Worker:
    """Runs jobs, one solver step at a time among them.

    Args:
        n_threads: intra-operation threads of torch in every job; None leaves torch's own choice.
        n_slots: jobs in flight; more wait in line.
    """

    def __init__(self, n_threads: int | None = None, n_slots: int = 8):
        self.baton = Baton()
        self._jobs: set[Job] = set()
        self._pool = ThreadPoolExecutor(n_slots, "explorer-job", initializer=_threads, initargs=(n_threads,))

    def submit(
        self,
        make: Callable[[Job], Iterator[Any]],
        *,
        value: Callable[[Any], None],
        end: Callable[[Failure | None], None],
        progress: Callable[[float, float], None] | None = None,
    ) -> Job:
        """Starts `make(job)`, a generator, and returns its job at once.

        `value` receives each yield, `end` is called once with None or the failure, both from the worker's thread; neither
        is called any more once the job has been cancelled.
        """
        job = Job(_worker=self, _report=progress)
        self._jobs.add(job)
        self._pool.submit(self._run, job, make, value, end)
        return job

    def close(self) -> None:
        """Stops every job and takes no more."""
        for job in list(self._jobs):
            job.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, job, make, value, end) -> None:
        if job.stop.is_set():
            self._jobs.discard(job)
            return
        self.baton.take()
        failure = None
        job.started = time.perf_counter()
        try:
            for item in make(job):
                if job.stop.is_set():
                    break
                value(item)
                self.baton.pass_on()
        except Exception as error:  # a bug must end as a sentence on the page, not as a dead job
            failure = Failure.of(error, "The computation failed")
        finally:
            self._jobs.discard(job)
            self.baton.give()
        if not job.stop.is_set():
            end(failure)


def _threads(n: int | None) -> None:
    if n is not None:
        torch.set_num_threads(n)  # per thread under OpenMP, hence in each of the pool's
