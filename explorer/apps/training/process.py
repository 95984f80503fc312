"""The process that trains: it keeps the account of its run, obeys it, and shows what it has learnt so far.

Run as a module it waits for folders of runs on its standard input, with everything imported, so that training begins at once when
it is asked for. What trains belongs to no page: when the server ends, it goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from explorer.apps.training.choices import found, is_toy, recipe_of
from explorer.apps.training.folder import RunFiles
from explorer.errors import ExplorerError, NonFinite
from explorer.reproduction.bench import Bench
from explorer.reproduction.recipe import Recipe
from explorer.reproduction.run import train_recipe
from explorer.training.loop import Tick

SAY_EVERY = 0.25  # seconds between two accounts
LOOK_EVERY = 0.05  # seconds between two looks at what is wanted, while paused
N_TICKS = 600  # of a watched run
N_CHECKPOINTS = 40
RECENT = 20.0  # seconds of training from which the time left is told
FULL = 50 * 2**20  # bytes free below which a disk counts as full


class Stopped(ExplorerError):
    """The run was asked to stop before its first step."""


def watched(recipe: Recipe) -> Recipe:
    """The recipe with ticks and checkpoints often enough for somebody who watches; what is learnt does not depend on them."""
    plan = recipe.plan
    changes = {
        "tick_steps": max(1, min(plan.tick_steps, plan.n_steps // N_TICKS, 20)),
        "checkpoint_steps": max(1, min(plan.checkpoint_steps or plan.n_steps, max(100, plan.n_steps // N_CHECKPOINTS))),
        "checkpoint_at_close": True,
    }
    return dataclasses.replace(recipe, plan=dataclasses.replace(plan, **changes))


def attended(
    recipe: Recipe,
    files: RunFiles,
    *,
    device: torch.device | str = "cpu",
    previews: bool = True,
    needs: Path | None = None,
) -> Iterator[Tick]:
    """Ticks of `train_recipe` in the run's folder, which meanwhile says how far it is, and is obeyed: pause, run, stop.

    Args:
        previews: also draw and measure samples, see `Previewer`.
        needs: folder of what the recipe needs first; by default one in the run's own.
    Raises:
        BadValue: another process trains in this folder; and whatever the training raises, after it has been written down.
    """
    with files.lock():
        account = _Account(recipe, files)
        previewer, begun = None, False
        try:
            bench = Bench(needs or files.path / "needs", seed=recipe.plan.seed, device=device, show=account.preparing)
            ticks = train_recipe(recipe, files.path, device=device, bench=bench)
            tick = None
            with contextlib.closing(ticks):
                for tick in ticks:
                    if not begun:
                        begun = True
                        account.measured = files.drop_after(tick.step)
                        previewer = _previewer(recipe, files, device, account) if previews else None
                    if previewer is not None:
                        previewer.offer(tick)
                        account.measured = previewer.last or account.measured
                    account.take(tick)
                    yield tick
                    if account.told_to_stop():
                        break
            stopped = tick is None or (tick.fraction < 1 and not tick.stopped)
            if previewer is not None:
                if stopped:
                    previewer.close()
                else:
                    account.say("measuring")
                    previewer.finish(tick, lambda: files.wanted != "stop")
                account.measured = previewer.last or account.measured
            account.say("stopped" if stopped else "done", stopped="" if tick is None else tick.stopped)
        except Stopped:
            account.say("stopped")
        except GeneratorExit:
            account.say("stopped")
            raise
        except BaseException as problem:
            account.failed(problem)
            raise
        finally:
            if previewer is not None:
                previewer.close()


def _previewer(recipe: Recipe, files: RunFiles, device: torch.device | str, account: _Account):
    from explorer.apps.training.previews import Previewer, card_of

    return Previewer(recipe, files, card_of(recipe, files.request, device), account.notice)


def on_record(
    recipe: Recipe, folder: Path | str, request: dict[str, Any], device: torch.device | str, *, previews: bool = False
) -> Iterator[Tick]:
    """Ticks of a training in this process, as `attended` gives them: the Training page and `explorer runs` see it, and may stop it.

    Args:
        request: what was asked for, see `choices.recipe_of`.
        previews: as for `attended`.
    """
    files = RunFiles(folder)
    if not files.alive:
        files.ask(request)
    return attended(recipe, files, device=device, previews=previews)


class _Account:
    """What the process says of itself, and hears."""

    def __init__(self, recipe: Recipe, files: RunFiles):
        self.recipe, self.files = recipe, files
        self.measured: dict[str, Any] | None = None
        self._facts: dict[str, Any] = {
            "pid": os.getpid(),
            "step": 0,
            "n_steps": recipe.plan.n_steps,
            "n_images": 0,
            "fraction": 0.0,
            "seconds": 0.0,
        }
        self._notices: list[str] = []
        self._said = 0.0
        self._course: deque[tuple[float, float]] = deque()
        files.set_room_aside()
        self.say("preparing")

    def say(self, state: str, **more: Any) -> None:
        self._said = time.monotonic()
        facts = {**self._facts, "state": state, "beat": time.time(), "notices": self._notices[-5:], **more}
        if self.measured is not None:
            facts["measured"] = self.measured
        self.files.say(**facts)

    def notice(self, words: str) -> None:
        if words not in self._notices:
            self._notices.append(words)

    def preparing(self, words: str, fraction: float) -> None:
        """A bench makes what the recipe needs; it may be paused and stopped like the run itself."""
        self._facts |= {"words": words, "preparing": round(fraction, 4)}
        if time.monotonic() - self._said > SAY_EVERY:
            self.say("preparing")
        if self.told_to_stop():
            raise Stopped("stopped while preparing")

    def take(self, tick: Tick) -> None:
        for words in tick.notices:
            self.notice(words)
        self._course.append((tick.seconds, tick.fraction))
        while len(self._course) > 2 and tick.seconds - self._course[0][0] > RECENT:
            self._course.popleft()
        seconds, fraction = (b - a for a, b in zip(self._course[0], self._course[-1], strict=True))
        self._facts |= {
            "words": "",
            "step": tick.step,
            "n_images": tick.n_images,
            "fraction": tick.fraction,
            "seconds": round(tick.seconds, 3),
            "eta": None if fraction <= 0 else round((1 - tick.fraction) * seconds / fraction, 1),
            "images_per_second": self._speed(tick),
        }
        if "n_parameters" not in self._facts:
            nets = tick.method.nets.items()
            self._facts["n_parameters"] = {name: sum(p.numel() for p in net.parameters()) for name, net in nets}
        if time.monotonic() - self._said > SAY_EVERY:
            self.say("running")

    def _speed(self, tick: Tick) -> float | None:
        return round(tick.n_images / tick.seconds, 1) if tick.seconds > 0 else None

    def told_to_stop(self) -> bool:
        """Waits while a pause is wanted, and says whether to stop."""
        if self.files.wanted == "pause":
            self.say("paused")
            while self.files.wanted == "pause":
                time.sleep(LOOK_EVERY)
            self.say("running")
        return self.files.wanted == "stop"

    def failed(self, problem: BaseException) -> None:
        if isinstance(problem, KeyboardInterrupt):
            self.say("stopped")
            return
        known = isinstance(problem, ExplorerError)
        text = str(problem) if known else f"The training failed: {type(problem).__name__}: {problem}"
        free = shutil.disk_usage(self.files.path).free
        kind = "nan" if isinstance(problem, NonFinite) else "disk" if free < FULL else "refused" if known else "bug"
        if kind == "disk":
            text += f" {free / 2**20:.0f} MB are free."
        details = "".join(traceback.format_exception(problem))[-3000:]
        facts = {**self._facts, "state": "failed", "beat": time.time(), "notices": self._notices[-5:]}
        self.files.last_words({**facts, "error": {"kind": kind, "text": text, "details": details[-1500:]}})


def work(files: RunFiles) -> None:
    """Trains what the folder's request asks for, to its end."""
    request = files.request
    try:
        recipe = watched(recipe_of(request))
    except Exception as problem:
        text = str(problem) if isinstance(problem, ExplorerError) else f"{type(problem).__name__}: {problem}"
        error = {"kind": "refused", "text": text, "details": traceback.format_exc()[-3000:]}
        files.say(state="failed", beat=time.time(), pid=os.getpid(), error=error)
        return
    if is_toy(recipe):
        torch.set_num_threads(1)  # its matrices are too small for more
    device = str(request.get("device") or ("cuda" if torch.cuda.is_available() else "cpu"))
    with contextlib.suppress(Exception):  # written down by then
        for _ in attended(recipe, files, device=device, needs=files.path.parent / ".needs"):
            pass


def main() -> None:
    """Trains runs whose paths come on standard input, one a line, until the input ends.

    Where processes can be forked, each run gets a copy of this one, with all that it has imported: the second run begins as
    quickly as the first, and costs no imports. With a GPU, which does not survive a fork, this process trains one run itself.
    """
    found()
    forks = can_fork()
    threads = torch.get_num_threads()
    if forks:
        torch.set_num_threads(1)  # a pool of threads would not survive the fork; the copies make their own
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limber_up()
    for line in sys.stdin:
        path = Path(line.strip())
        if not forks:
            _alone(path)
            return
        if os.fork() == 0:
            try:
                os.setsid()
                sys.stdin.close()
                torch.set_num_threads(threads)
                _alone(path)
            finally:
                os._exit(0)  # never back into the loop of the one that waits


def can_fork() -> bool:
    return hasattr(os, "fork") and not torch.cuda.is_available()


def _alone(path: Path) -> None:
    """Trains the run in that folder, quietly and with the least right to the processor, so that the pages stay quick."""
    files = RunFiles(path)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda *_: files.want("stop"))
    with contextlib.suppress(OSError, AttributeError):
        os.nice(5)
    with contextlib.suppress(OSError):
        output = os.open(files.path / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
    work(files)


def _limber_up() -> None:
    """Pays for what the first step, the first picture and the first measurement load."""
    from explorer.apps.training.previews import draw
    from explorer.data import load_dataset
    from explorer.papers import edm

    with contextlib.suppress(Exception):
        recipe = edm.plane("8gaussians")
        recipe = dataclasses.replace(recipe, plan=dataclasses.replace(recipe.plan, n_steps=2, batch_size=8))
        load_dataset(recipe.data, "test")
        for tick in train_recipe(recipe):
            draw(recipe, tick.method.export(tick.emas[recipe.ema]), 4)


if __name__ == "__main__":
    main()
