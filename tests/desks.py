"""What the pages' tests share: a page of the dashboard without a server, whose thread is the test's."""

from __future__ import annotations

import queue
import time

PATIENCE = 120.0  # seconds before a wait counts as hung; shared machines stall


class Desk:
    """A page and what the worker has posted to it. Its own tests give `lab` and say what went wrong."""

    lab: object

    def __init__(self):
        self.calls: queue.Queue = queue.Queue()

    def send(self, type: str, **message) -> None:
        self.lab.receive({"type": type, **message})

    def until(self, ready) -> None:
        """Runs what the worker has posted until `ready()`."""
        end = time.monotonic() + PATIENCE
        while not ready():
            assert time.monotonic() < end, f"waited in vain; {self.failures()}"
            try:
                self.calls.get(timeout=0.02)()
            except queue.Empty:
                continue

    def failures(self) -> object:
        """What the page has to complain of."""
        return None
