"""What a run shows of itself while it trains: samples of the averaged weights at fixed noise, and their quality with its error.

A thread of the training process works on copies of the averages, so that training does not wait. It is idle most of the time:
pictures and measurements each take at most a quarter of one core, and come less often the longer the run goes.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from explorer.apps.training.folder import RunFiles, step_of
from explorer.data import load_dataset
from explorer.errors import BadFile, ExplorerError
from explorer.files import write_atomic
from explorer.live import Live, against, metric_for, quality
from explorer.models.base import Denoiser, Model
from explorer.models.bundled import save_model
from explorer.reproduction.evaluate import row
from explorer.reproduction.recipe import Recipe
from explorer.reproduction.run import exported, machine
from explorer.sampling import Seeds, device_of, labels_for
from explorer.training.loop import Tick

SHARE = 0.25  # of one core, for pictures and for measurements each
N_PARTICLES = 800
N_MEASURED, N_FINAL = 1000, 2000
EAGER = 3.0  # seconds at the start in which the share does not count: that is when somebody looks
GROWTH = 0.02  # pictures come at most every 2 % of the time so far: hundreds in a run, however long


@dataclass(frozen=True)
class Moment:
    """Averaged weights of one tick, copied, and where the run stood."""

    model: torch.nn.Module
    about: dict[str, Any]

    @classmethod
    def of(cls, recipe: Recipe, tick: Tick) -> Moment:
        about = {"step": tick.step, "n_images": tick.n_images, "seconds": round(tick.seconds, 3)}
        return cls(copy.deepcopy(exported(recipe, tick)).requires_grad_(False), about)


class Previewer:
    """Draws and measures on a thread of its own.

    Args:
        card: what the model's card says besides its measurements.
        notice: called with a sentence when something does not work; training goes on.
    """

    def __init__(self, recipe: Recipe, files: RunFiles, card: dict[str, Any], notice: Callable[[str], None]):
        self.recipe, self.files, self.card, self.notice = recipe, files, card, notice
        self.last: dict[str, Any] | None = None  # the newest row of measures
        self._began = time.monotonic()
        self._picture_due, self._measure_due = 0.0, self._began + 1.0
        self._newest: Moment | None = None
        self._wake, self._stop = threading.Event(), threading.Event()
        self._failed = recipe.sampler is None
        self._against = ""  # what samples are compared with
        files.previews.mkdir(parents=True, exist_ok=True)
        self._thread = threading.Thread(target=self._run, name="explorer-previews", daemon=True)
        self._thread.start()

    def offer(self, tick: Tick) -> None:
        """Takes a copy of the averages if a picture or a measurement is due; a copy costs less than a step."""
        if not self._failed and self._newest is None and time.monotonic() >= min(self._picture_due, self._measure_due):
            self._newest = Moment.of(self.recipe, tick)
            self._wake.set()

    def finish(self, tick: Tick, go_on: Callable[[], bool] = lambda: True) -> None:
        """The last picture and a measurement of more samples, in the calling thread; ends early when `go_on` says no."""
        self.close()
        moment = Moment.of(self.recipe, tick)
        if self.recipe.sampler is not None:
            with self._guarded():
                self._draw(moment)
                for _ in self._measure(moment, N_FINAL):
                    if not go_on():
                        return
        elif self.recipe.measure is not None:
            with self._guarded():
                save_model(
                    self.files.model, self.files.name, moment.model, {**self.card, **self.recipe.measure(moment.model)}
                )

    def close(self) -> None:
        self._stop.set()
        self._wake.set()
        self._thread.join()

    # The thread

    def _run(self) -> None:
        torch.set_num_threads(1)
        measuring: Iterator[None] | None = None
        moment = None
        while not self._stop.is_set():
            if measuring is None:
                self._wake.wait(1.0)
                self._wake.clear()
            if self._newest is not None:
                moment, self._newest = self._newest, None
                with self._guarded():
                    if time.monotonic() >= self._picture_due:
                        self._draw(moment)
                    if measuring is None and time.monotonic() >= self._measure_due:
                        measuring = self._measure(moment, N_MEASURED)
            if measuring is not None:
                done = True
                with self._guarded():
                    done = next(measuring, "end") == "end"
                if done:
                    measuring = None

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except ExplorerError as problem:
            self._failed = not isinstance(problem, BadFile | FloatingPointError)
            self.notice(f"No pictures: {problem}" if self._failed else f"A picture is missing: {problem}")
        except Exception as problem:  # a bug here must not end the training
            self._failed = True
            self.notice(f"No more pictures: {type(problem).__name__}: {problem}")

    def _next(self, began: float, least: float) -> float:
        now = time.monotonic()
        rest = 0.0 if now - self._began < EAGER else (now - began) / SHARE
        return now + max(least, rest, GROWTH * (now - self._began))

    @torch.inference_mode()
    def _draw(self, moment: Moment) -> None:
        began, model = time.monotonic(), moment.model
        x, labels = draw(self.recipe, model, n_shown(tuple(model.shape)))
        write_preview(self.files.previews, x, labels, moment.about)
        # Soon after the start weights change fast; points of the plane cost next to nothing.
        self._picture_due = self._next(began, 0.1 if len(model.shape) == 1 else 2.0)

    def _measure(self, moment: Moment, n: int) -> Iterator[None]:
        """One batch of samples a step, so that pictures can come in between."""
        busy, live = 0.0, None
        course = self.measurement(moment.model, n)
        while True:
            since = time.monotonic()
            now = next(course, None)
            busy += time.monotonic() - since
            if now is None:
                break
            live = now
            yield
        self._measure_due = self._next(time.monotonic() - busy, 0.5 if len(moment.model.shape) == 1 else 10.0)
        self.last = measured(live, moment.about) | {"against": self._against}
        self.files.add_measure(self.last)
        self._keep(moment, live)

    def measurement(self, model: Model, n: int) -> Iterator[Live]:
        """The course of a measurement with the recipe's sampler, as the Sampler Lab measures."""
        metric = metric_for(model, data=self.recipe.data)
        self._against = against(load_dataset(self.recipe.data), metric.name.partition("[")[0].lower())
        bends = isinstance(model, Denoiser)  # what jumps has no path to be straight
        return quality(
            model, self.recipe.sampler, metric, n, batch=128 if len(model.shape) > 1 else 512, geometry=bends
        )

    def _keep(self, moment: Moment, live: Live) -> None:
        about = {"nfe": live.nfe, "sampler": self.recipe.sampler.to_dict(), "note": "measured while training"}
        card = {
            **self.card,
            "recipe": {
                **self.card["recipe"],
                "steps_done": moment.about["step"],
                "images_done": moment.about["n_images"],
            },
            "minutes": round(moment.about["seconds"] / 60, 2),
            "metrics": [{**row(live.estimate), **about}],
        }
        save_model(self.files.model, self.files.name, moment.model, card)


def card_of(recipe: Recipe, request: dict[str, Any], device: torch.device | str) -> dict[str, Any]:
    """What the card of a run's model says before anything is measured."""
    card = {
        "data": recipe.data,
        "recipe": {**recipe.plan.to_dict(), **recipe.settings, "export": recipe.ema},
        "seed": recipe.plan.seed,
        "machine": machine(torch.device(device)),
        "notes": recipe.notes,
        "paper": request.get("paper", ""),
        **({"knobs": dict(recipe.knobs)} if recipe.knobs else {}),
    }
    return json.loads(json.dumps(card, default=str))


def n_shown(shape: tuple[int, ...]) -> int:
    """How many samples a picture has: fewer where they are large."""
    return N_PARTICLES if len(shape) == 1 else 64 if math.prod(shape) <= 1024 else 16


def draw(recipe: Recipe, model: Model, n: int) -> tuple[Tensor, Tensor | None]:
    """Samples of seeds 0 ... n - 1 with the recipe's sampler, and their classes."""
    seeds = Seeds(range(n))
    device = device_of(model)
    cond = labels_for(model, seeds, device=device)
    noise = seeds.normal(tuple(model.shape), device=device)
    with torch.inference_mode():
        x = recipe.sampler.sample(model, noise, cond, rng=seeds)
    return x.cpu(), None if cond is None else cond.cpu()


def measured(live: Live, about: dict[str, Any]) -> dict[str, Any]:
    """A finished measurement as a row: where the run stood, the estimate, and the straightness of the paths."""
    out = {**about, "estimate": live.estimate.to_dict(), "nfe": live.nfe}
    if live.geometry is not None and "straightness_linear" in live.geometry:
        values = [float(live.geometry[f"straightness_linear{end}"]) for end in ("", "_se")]
        if all(map(math.isfinite, values)):
            out["straightness"] = values
    return json.loads(json.dumps(out), parse_constant=lambda _: None)


# The files


def write_preview(folder: Path, x: Tensor, labels: Tensor | None, about: dict[str, Any]) -> Path:
    """Points as float32, images as bytes, in one file that appears whole."""
    if x.ndim == 2:
        tensors = {"points": x.float().contiguous()}
    else:
        tensors = {
            "pixels": ((x.float().nan_to_num(-1.0).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).contiguous()
        }
    if labels is not None:
        tensors["labels"] = labels.to(torch.int64).contiguous()
    file = folder / f"step-{about['step']:012d}.safetensors"
    write_atomic(file, lambda target: save_file(tensors, target, {"about": json.dumps(about)}))
    return file


@dataclass(frozen=True)
class Picture:
    """A preview as it is on disk: points (n, D) or pixels (n, C, H, W), and where the run stood."""

    step: int
    n_images: int
    seconds: float
    x: Tensor

    @property
    def flat(self) -> bool:
        return self.x.ndim == 2


def read_preview(file: Path) -> Picture:
    """Raises BadFile for anything that `write_preview` did not write."""
    try:
        with safe_open(file, "pt") as stored:
            about = json.loads((stored.metadata() or {}).get("about", "{}"))
            name = next(name for name in ("points", "pixels") if name in stored.keys())  # noqa: SIM118
            x = stored.get_tensor(name)
        picture = Picture(int(about.get("step", step_of(file))), int(about["n_images"]), float(about["seconds"]), x)
    except (OSError, ValueError, KeyError, TypeError, StopIteration, SafetensorError) as problem:
        raise BadFile(f"{file.name} is not a preview of a run: {problem}.") from None
    if x.ndim not in (2, 4) or (x.ndim == 4 and x.dtype != torch.uint8):
        raise BadFile(f"{file.name} holds samples of shape {tuple(x.shape)}, which are neither points nor images.")
    return picture
