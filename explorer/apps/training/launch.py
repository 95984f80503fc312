"""Processes for runs: one waits with everything imported, so that a run begins at once when it is asked for."""

from __future__ import annotations

import atexit
import contextlib
import subprocess
import sys
import threading
import time

from explorer.apps.training.folder import ACTIVE, RunFiles
from explorer.apps.training.process import can_fork
from explorer.errors import BadFile, BadValue

MODULE = "explorer.apps.training.process"


class Launcher:
    """Starts runs as processes that outlive this one, from one that waits with everything imported and ends with it."""

    def __init__(self):
        self._lock = threading.Lock()
        self._ready: subprocess.Popen | None = None
        self._trains: list[subprocess.Popen] = []  # those that were not forked
        atexit.register(self.close)

    def warm(self) -> None:
        """Lets a process wait, if none does; it takes some seconds to import what it needs."""
        with self._lock:
            self._process()

    def start(self, files: RunFiles) -> None:
        """Trains the run; it goes on from its last checkpoint where there is one.

        Raises:
            BadValue: a process trains it already; BadFile: no process could be started.
        """
        if files.alive:
            raise BadValue(f"{files.name} is being trained already.")
        with self._lock:
            for _ in range(2):  # one that has died is replaced once
                process = self._process()
                files.want("run")
                files.say(**{**_kept(files.status()), "state": "starting", "pid": process.pid, "beat": time.time()})
                try:
                    process.stdin.write(f"{files.path.resolve()}\n")
                    process.stdin.flush()
                    break
                except OSError:
                    self._ready = None
            else:
                raise BadFile(f"no process could be started for {files.name}.")
            if not can_fork():
                self._trains.append(process)
                self._ready = None

    def reap(self) -> None:
        """Takes note of processes that have ended, which would else count as running."""
        self._trains = [process for process in self._trains if process.poll() is None]

    def close(self) -> None:
        """Ends the process that waits; those that train go on."""
        with self._lock:
            if self._ready is not None:
                with contextlib.suppress(OSError):
                    self._ready.stdin.close()  # an end of input: it leaves
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._ready.wait(0.2)
                self._ready = None

    def _process(self) -> subprocess.Popen:
        if self._ready is None or self._ready.poll() is not None:
            self._ready = subprocess.Popen(
                [sys.executable, "-m", MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
        return self._ready


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
