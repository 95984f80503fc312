"""What every page's store is made of: one main job, small jobs beside it, what went wrong, and who has to redraw."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import param

from explorer.apps.worker import Failure, Job, Worker

Call = Callable[[], None]


class Store(param.Parameterized):
    """What one browser session of one page knows, without widget or layout. Each page has one final subclass.

    Views watch `version`, whose "what" is the set of names given to `changed`: "job" is the strip with its progress, "state" holds
    `notice` and `error`; the others are the page's own. Everything here runs in the thread of the page except the generators of
    jobs, which run on the shared `Worker`.

    Args:
        worker: the shared compute slot.
        post: runs a function in the thread of the page, under its lock.
        heard: called when a message of the browser arrives; an embedded page learns from it which thread is its own.

    Attributes:
        running: what the main job is doing, in words; "" when there is none.
        fraction, eta: of the main job done (0 to 1), and seconds left where that is known.
        notice, error: what the page has to say, and what went wrong.
    """

    version = param.Dict(default={}, doc="What changed last; watched by views.")

    def __init__(self, worker: Worker, post: Callable[[Call], None] | None = None, heard: Call | None = None):
        super().__init__()
        self._worker, self._post, self.heard = worker, post or (lambda call: call()), heard or (lambda: None)
        self.notice, self.error = "", None
        self.running, self.fraction, self.eta = "", 0.0, None
        self._job: Job | None = None
        self._side_jobs: dict[str, Job] = {}

    def changed(self, *what: str) -> None:
        self.version = {"what": frozenset(what), "count": self.version.get("count", 0) + 1}

    def say(self, failure: Failure) -> None:
        """Shows what went wrong; everything else stays as it is."""
        self.error = failure
        self.changed("state")

    def fail(self, error: Exception) -> None:
        """Says on the page what was refused or went wrong, with the traceback to copy."""
        self.say(Failure.of(error))

    def dismiss(self) -> None:
        self.notice, self.error = "", None
        self.changed("state")

    # The main job: a new one takes the place of the old

    def start(
        self,
        make: Callable[[Job], Iterator[Any]],
        take: Callable[[Any], None],
        end: Callable[[Failure | None], None],
    ) -> None:
        """Runs `make(job)` on the worker; `take` gets each item, `end` the failure or None, both in the thread of the page.

        What a job that has been replaced or cancelled still sends is dropped.
        """
        self.stop()
        box: list[Job] = []

        def mine(call: Callable[..., None], *values: Any) -> None:
            self._post(lambda: call(*values) if box and box[0] is self._job else None)

        def ended(failure: Failure | None) -> None:
            self.stop()
            end(failure)

        self.running = "starting"
        self._job = self._worker.submit(
            make,
            value=lambda item: mine(take, item),
            end=lambda failure: mine(ended, failure),
            progress=lambda fraction, eta: mine(self._progress, fraction, eta),
        )
        box.append(self._job)

    def doing(self, words: str) -> None:
        """Names what the main job does now, and begins its progress anew."""
        self.running, self.fraction, self.eta = words, 0.0, None
        self.changed("job")

    def stop(self) -> None:
        """Ends the main job without a word; what it has sent so far stays."""
        if self._job is not None:
            self._job.cancel()
        self._job, self.running, self.fraction, self.eta = None, "", 0.0, None

    def _progress(self, fraction: float, eta: float) -> None:
        self.fraction, self.eta = fraction, eta
        self.changed("job")

    # Small jobs beside it, of which only the newest of each name counts

    def side(self, name: str, make: Callable[[Job], Iterator[Any]], show: Callable[[Any], None]) -> None:
        """Runs `make(job)` beside the main job and shows each item in the thread of the page; its failures are silent."""
        self.stop_side(name)
        box: list[Job] = []

        def value(item: Any) -> None:
            self._post(lambda: show(item) if box and self._side_jobs.get(name) is box[0] else None)

        box.append(self._worker.submit(make, value=value, end=lambda failure: None))
        self._side_jobs[name] = box[0]

    def stop_side(self, name: str) -> None:
        job = self._side_jobs.pop(name, None)
        if job is not None:
            job.cancel()

    def close(self) -> None:
        """Stops everything; the page is gone."""
        self.stop()
        for name in list(self._side_jobs):
            self.stop_side(name)
