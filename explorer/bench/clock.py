"""Timing contestants side by side: they take turns, so that a change of the machine's mood hits all of them alike."""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

SLOW, FEW = 20.0, 3
"""What takes more than SLOW seconds a call is measured FEW times only."""

Times = dict[str, list[float]]
Work = Callable[[], Any]


@dataclass(frozen=True)
class Effort:
    """How long a measurement may take.

    Attributes:
        runs: rounds, of which the median is reported.
        quick: for development: short turns and smaller problems, to be believed within a factor of two.
        show: told the fraction done and what is being timed.
    """

    runs: int = 7
    quick: bool = False
    show: Callable[[float, str], None] = lambda fraction, text: None


def rounds(
    contestants: Mapping[str, Work],
    effort: Effort,
    *,
    best_of: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    wait: Work | None = None,
) -> tuple[Times, dict[str, Any]]:
    """Seconds per call of each contestant, one value per round, and what each returned when it was first called.

    Args:
        best_of: turns per round of which the fastest counts, for microsecond work on a machine with other things to do.
        clock: `time.thread_time` for work in this one thread: time that other processes take is not counted.
        wait: waits for the device; see `waiter`.
    """
    wait = wait or (lambda: None)
    turn = 0.002 if effort.quick else 0.02  # seconds that the calls of one turn last together
    first, repeats, slow = {}, {}, set()
    for name, work in contestants.items():
        effort.show(0.0, f"{name}: first call")
        took, first[name] = _timed(work, wait)
        if took < 1.0:  # the first call paid for caches and imports
            took = _timed(work, wait)[0]
        repeats[name] = max(1, round(turn / max(took, 1e-7)))
        if took > SLOW:
            slow.add(name)
    times: Times = {name: [] for name in contestants}
    with _garbage_waits():
        for i in range(effort.runs):
            running = [name for name in contestants if name not in slow or i < FEW]
            best = dict.fromkeys(running, math.inf)
            for _ in range(best_of):
                for name in running:
                    effort.show(i / effort.runs, name)
                    work = contestants[name]
                    wait()
                    began = clock()
                    for _ in range(repeats[name]):
                        work()
                    wait()
                    best[name] = min(best[name], (clock() - began) / repeats[name])
            for name in running:
                times[name].append(best[name])
    return times, first


def installed(peers: Mapping[str, Callable[[], Work]]) -> tuple[dict[str, Work], list[str]]:
    """The peers that could be built, and the names of those whose library is missing."""
    found, absent = {}, []
    for name, build in peers.items():
        try:
            found[name] = build()
        except ImportError:
            absent.append(name)
    return found, absent


def waiter(device: torch.device) -> Work | None:
    """Waits until the device is done; None on the CPU, where a call returns when it is."""
    return torch.cuda.synchronize if device.type == "cuda" else None


def clock_of(device: torch.device) -> Callable[[], float]:
    """CPU time of this thread, which other processes do not disturb; wall time where the work is elsewhere."""
    return time.thread_time if device.type == "cpu" else time.perf_counter


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """n threads for torch inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _timed(work: Work, wait: Work) -> tuple[float, Any]:
    wait()
    began = time.perf_counter()
    result = work()
    wait()
    return time.perf_counter() - began, result


@contextlib.contextmanager
def _garbage_waits() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
