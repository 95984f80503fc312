"""Processes for runs: one waits with everything imported, so that a run begins when it is asked for."""

from __future__ import annotations

import atexit
import contextlib
import subprocess
import sys
import threading
import time
from typing import IO

from explorer.apps.training.folder import ACTIVE, RunFiles
from explorer.errors import BadFile, BadValue

WARM_AGAIN = 8.0  # seconds after a start before the next process warms up: the first pictures come first
MODULE = "explorer.apps.training.process"


class Launcher:
    """Starts runs as processes that outlive this one; ends only the one that waits."""

    def __init__(self):
        self._lock = threading.Lock()
        self._spare: subprocess.Popen | None = None
        self._started: list[subprocess.Popen] = []
        self._timer: threading.Timer | None = None
        atexit.register(self.close)

    def warm(self) -> None:
        """Lets a process wait, if none does; it takes a few seconds to import what it needs."""
        with self._lock:
            self._warm()

    def start(self, files: RunFiles) -> None:
        """Hands the run to the waiting process; it goes on from its last checkpoint where there is one.

        Raises:
            BadValue: a process trains it already; BadFile: no process could be started.
        """
        if files.alive:
            raise BadValue(f"{files.name} is being trained already.")
        self.reap()
        with self._lock:
            for _ in range(2):  # a spare that has died is replaced once
                process = self._warm()
                try:
                    files.want("run")
                    files.say(**{**_kept(files.status()), "state": "starting", "pid": process.pid, "beat": time.time()})
                    process.stdin.write(f"{files.path.resolve()}\n")
                    process.stdin.close()
                    break
                except OSError as problem:
                    if isinstance(problem, BadFile):
                        raise
                    self._spare = None
            else:
                raise BadFile(f"no process could be started for {files.name}.")
            self._started.append(process)
            self._spare = None
            self._timer = threading.Timer(WARM_AGAIN, self.warm)
            self._timer.daemon = True
            self._timer.start()

    def reap(self) -> None:
        """Takes note of processes that have ended, which would else count as running."""
        self._started = [process for process in self._started if process.poll() is None]

    def close(self) -> None:
        """Ends the waiting process; those that train go on."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            if self._spare is not None:
                with contextlib.suppress(OSError):
                    self._spare.stdin.close()  # an end of input: it leaves
                self._spare = None

    def _warm(self) -> subprocess.Popen:
        if self._spare is None or self._spare.poll() is not None:
            quiet: dict[str, int | IO] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            self._spare = subprocess.Popen(
                [sys.executable, "-m", MODULE], stdin=subprocess.PIPE, text=True, start_new_session=True, **quiet
            )
        return self._spare


def _kept(status: dict) -> dict:
    """What stays true of a run when it begins anew."""
    return {k: v for k, v in status.items() if k not in ("error", "notices", "words", "eta")}


def halt(files: RunFiles, want: str) -> None:
    """Tells a run to pause, go on or stop.

    Raises:
        BadValue: nothing is there to be told.
    """
    state = files.status()["state"]
    if state not in ACTIVE:
        raise BadValue(f"{files.name} is {state}: nothing is running that could {want}.")
    files.want(want)
