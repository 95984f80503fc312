"""The Trajectory Lab's store: up to four samplers on the same noise, what is known of each, and what is being looked at.

Every sampler has its own job, so a knob turned on one leaves the others alone; what a job has found is kept by setting,
so returning to a seen one is instant. Everything here runs in the thread of the page, except the job generators.
"""

from __future__ import annotations

import math
import random
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import xarray as xr

from explorer.apps import catalogue, settings
from explorer.apps.settings import Setting
from explorer.apps.store import Store
from explorer.apps.trajectory import compute
from explorer.apps.trajectory.compute import Sight
from explorer.apps.trajectory.tracks import (
    RUNS,
    Download,
    Looks,
    Run,
    Runs,
    Selection,
    Track,
    about_of,
    fitted,
    surroundings,
    turned,
)
from explorer.apps.worker import Failure, Job, Worker
from explorer.errors import BadValue, ExplorerError
from explorer.knobs import SamplerKnobs
from explorer.trajectory import crossings
from explorer.trajectory.maps import lasso

MOST = 4
N_CHOICES = {"points": (500, 1000, 2000, 5000), "images": (32, 64, 128, 256)}
N_DEFAULT = {"points": 2000, "images": 64}
N_LINES = 200
PREVIEW = "oracle-8gaussians"  # the model of a page that names none


class Trajectories(Store):
    """The store of the page. Views watch `version`: "tracks", "job", "results", "view", "sight", "download", "opened".

    Args:
        worker, post, heard: as `Store`.
        runs: what has been computed, shared by all sessions of a server.
    """

    def __init__(self, worker: Worker, post: Callable | None = None, heard: Callable | None = None, runs: Runs = RUNS):
        super().__init__(worker, post, heard)
        self._runs = runs
        self.seed, self.n = 0, N_DEFAULT["points"]
        self.tracks: list[Track] = []
        self.active: int | None = None
        self.looks = Looks()
        self.selection: Selection | None = None
        self.ids: np.ndarray | None = None
        self.sight: Sight | Failure | None = None
        self.crossed: dict[int, tuple[int, int]] = {}  # by slot: crossings, lines
        self.pick: int | None = None
        self.download: Download | None = None
        self.opened = 0
        self.models = catalogue.groups()
        self._default()

    # What is chosen

    @property
    def kind(self) -> str:
        return compute.kind_of(catalogue.model(self.tracks[0].model).shape)

    @property
    def extent(self) -> float:
        """Half the side of every square: all models fit."""
        return max(compute.plane_of(track.model).extent for track in self.tracks)

    @property
    def scale(self) -> float:
        return compute.scale_for(self.extent)

    def track(self, slot: int) -> Track:
        for track in self.tracks:
            if track.slot == slot:
                return track
        raise BadValue(f"there is no sampler {slot}: choose one of {', '.join(t.letter for t in self.tracks)}.")

    @property
    def busy(self) -> bool:
        """Whether any sampler is being computed."""
        return any(track.job is not None for track in self.tracks)

    @property
    def runs(self) -> dict[str, xr.Dataset]:
        """Complete recordings by letter."""
        return {t.letter: t.run.ds for t in self.tracks if t.run is not None and t.run.ds is not None and not t.error}

    # Verbs

    def add(self) -> None:
        """Another sampler on the same noise: the last one with a third of its steps."""
        last = self.tracks[-1]
        steps = max(1, round(last.knobs.n_steps / 3)) if last.knobs.n_steps > 2 else 8
        self._insert(Setting.of(last.model, turned(last.knobs, n_steps=steps)))

    def duplicate(self, slot: int) -> None:
        self._insert(self.track(slot).setting)

    def remove(self, slot: int) -> None:
        """Takes a sampler away; the last one stays."""
        track = self.track(slot)
        if len(self.tracks) == 1:
            raise BadValue("the last sampler stays: change it instead.")
        self._halt(track)
        self.tracks.remove(track)
        if self.active == slot:
            self.active = None
        if self.selection is not None and self.selection.slot == slot:
            self.selection = None
        self._refresh()

    def set(self, slot: int, **values: Any) -> None:
        """Turns knobs of one sampler and runs it; a value out of range changes nothing and says why."""
        self._turn(self.track(slot), values)

    def drag(self, slot: int, **values: Any) -> None:
        """The same while a knob is still moving: only the first particles are drawn."""
        self._turn(self.track(slot), values, first=True)

    def reset(self, slot: int, knob: str | None = None) -> None:
        """One knob of a sampler, or all, back to the defaults of its model."""
        track = self.track(slot)
        defaults = catalogue.defaults(track.model) | {"seed": self.seed}
        values = {knob: defaults[knob]} if knob in defaults else defaults if knob is None else {}
        self._turn(track, values)

    def choose_model(self, slot: int | None, name: str) -> None:
        """Another model for one sampler, or (slot None) for all. Samples side by side must be of one shape."""
        shape = catalogue.model(name).shape
        which = self.tracks if slot is None else [self.track(slot)]
        notes = []
        if any(tuple(catalogue.model(t.model).shape) != tuple(shape) for t in self.tracks if t not in which):
            which = self.tracks
            notes.append(f"Samplers side by side draw samples of one shape, so all of them now use {name}.")
        before = self.kind
        for track in which:
            knobs, words = fitted(track.knobs, track.model, name)
            track.setting, track.error = Setting.of(name, knobs), None
            notes += [w for w in words if w not in notes]
        if self.kind != before:
            self.n, self.selection, self.pick = N_DEFAULT[self.kind], None, 0 if self.kind == "images" else None
        self.notice = " ".join(notes)
        self._refresh()

    def choose_n(self, n: int) -> None:
        if n not in N_CHOICES[self.kind]:
            raise BadValue(f"n = {n}: choose one of {', '.join(map(str, N_CHOICES[self.kind]))}.")
        self.n = n
        self._refresh()

    def choose_seed(self, seed: int) -> None:
        """Other noise for all samplers."""
        for track in self.tracks:
            track.setting = Setting.of(track.model, turned(track.knobs, seed=seed))
            track.good = track.good.on_seed(seed)
        self.seed = seed
        self._refresh()

    def dice(self) -> None:
        self.choose_seed(random.randrange(1, 1_000_000))

    def undo(self, slot: int) -> None:
        """Back to the sampler's last setting that could run."""
        track = self.track(slot)
        if track.good == track.setting and track.error is not None:  # it never ran: an address brought it
            defaults = catalogue.defaults(track.model) | {"seed": self.seed}
            track.good = Setting.of(track.model, SamplerKnobs.from_dict(defaults))
        track.setting, track.error = track.good, None
        self._refresh()

    def activate(self, slot: int | None) -> None:
        """Opens all knobs of one sampler, or closes them."""
        self.active = None if slot is None or slot == self.active else self.track(slot).slot
        self.changed("tracks", "knobs", "view")

    def look(self, **values: Any) -> None:
        """Keeps what the browser shows, for the address."""
        for name, value in values.items():
            if name in ("field", "density", "lines"):
                setattr(self.looks, name, bool(value))
            elif name in Looks.BOUNDS and isinstance(value, int | float) and math.isfinite(value):
                low, high = Looks.BOUNDS[name]
                setattr(self.looks, name, float(min(max(value, low), high)))
        if values.get("lines") is not None:
            self._look_closer()
        self.changed("view")

    def select(self, slot: int, sigma: float, loop: list) -> None:
        """The particles inside a loop drawn in one sampler's square at one noise level, in every sampler."""
        corners = tuple((float(x), float(y)) for x, y in loop)
        if len(corners) < 3 or not all(map(math.isfinite, sum(corners, ()))):
            raise BadValue(f"a loop needs three corners or more, got {len(corners)}.")
        self.selection = Selection(self.track(slot).slot, float(sigma), corners)
        self._look_closer()
        self.changed("tracks", "sight", "view")

    def clear(self) -> None:
        """Forgets the selection."""
        self.selection = None
        self._look_closer()
        self.changed("tracks", "sight", "view")

    def follow(self, index: int | None) -> None:
        """One particle whose path is drawn, or whose pictures are shown, in all samplers."""
        self.pick = index if index is None else int(min(max(index, 0), self.n - 1))
        self.changed("tracks", "film", "view")

    def export(self, what: str, form: str, theme: str) -> None:
        """Prepares a file of what is on screen and hands it to the browser."""
        from explorer.apps.trajectory import exports

        def make(job: Job) -> Iterator[Download | Failure]:
            yield _told(exports.build, self, what, form, theme)

        def show(found: Download | Failure) -> None:
            if isinstance(found, Failure):
                self.say(found)
            else:
                self.download = found
                self.changed("download")

        self.side("export", make, show)

    # Running

    def run(self) -> None:
        """Computes whatever is missing."""
        self._refresh()

    def cancel(self) -> None:
        """Stops every job; what was found stays."""
        for track in self.tracks:
            self._halt(track)
        self.changed("job", "tracks", "results")

    def close(self) -> None:
        for track in self.tracks:
            self._halt(track)
        super().close()

    def _refresh(self) -> None:
        self.opened = max(self.opened, 1)
        for track in self.tracks:
            self._launch(track)
        self._look_closer()
        self.changed("state", "tracks", "knobs", "job", "results", "view", "sight", "film")

    def _turn(self, track: Track, values: dict[str, Any], first: bool = False) -> None:
        try:
            knobs = turned(track.knobs, **values)
        except ExplorerError as error:
            track.error = Failure(str(error), f"{type(error).__name__}: {error}\n\n{track.setting}")
            self.changed("tracks", "knobs")
            return
        track.setting, track.error = Setting.of(track.model, knobs), None
        self._launch(track, first)
        if not first:
            self._look_closer()
        self.changed("tracks", "knobs", "job", "results", *(() if first else ("view", "sight", "film")))

    def _launch(self, track: Track, first: bool = False) -> None:
        """Starts what is missing for the track's setting; a job for another setting is cancelled.

        The first particles of all samplers come before the rest of any.

        Args:
            first: a knob is still moving: the first particles are enough.
        """
        try:
            about_of(track.setting)
        except ExplorerError as error:
            self._halt(track)
            track.error = Failure(str(error), f"{type(error).__name__}: {error}\n\n{track.setting}")
            return
        run = self._runs.of(track.setting, self.n)
        if track.job is not None and track.run is run:
            track.moving = first
            return  # it is being computed
        self._halt(track)
        track.run, track.moving = run, first
        if run.ds is None:
            self._submit(track, run, ("paths",), first=True)
        else:
            track.shown, track.good = run, track.setting
            self._go_on()

    def _go_on(self) -> None:
        """Starts the rest of every sampler, once all have their first particles."""
        if any(track.job is not None and track.stage == "first" for track in self.tracks):
            return
        for track in self.tracks:
            if track.job is None and track.error is None and not track.moving and track.run is not None:
                todo = track.run.todo(self.extent)
                if todo and track.run.ds is not None:
                    self._submit(track, track.run, todo)

    def _submit(self, track: Track, run: Run, todo: tuple[str, ...], first: bool = False) -> None:
        plane, extent, box = compute.plane_of(track.model), self.extent, []
        around = surroundings(track.setting, extent)
        if "scene" in todo and around in self._runs.scenes:  # another sampler of the same model
            run.scene = self._runs.scenes[around]
            todo = tuple(stage for stage in todo if stage != "scene")

        def make(job: Job) -> Iterator[tuple[str, Any]]:
            for item in compute.stages(track.model, run.setting.knobs, run.n, extent, job, todo=todo, ds=run.ds):
                yield item
                if first:
                    return

        def mine(call: Callable, *values: Any) -> None:
            self._post(lambda: call(*values) if box and track.job is box[0] else None)

        def take(item: tuple[str, Any]) -> None:
            stage, value = item
            run.take(stage, value, plane)
            if stage == "scene":
                self._runs.keep(around, value)
            if stage == "paths":
                track.shown, track.good = run, track.setting
                if run.n_done >= run.n:
                    self._look_closer()
            if not first:
                track.stage = stage
            self.changed("tracks", "results", "film", "job")

        def progress(fraction: float, eta: float) -> None:
            track.fraction, track.eta = fraction, eta
            self.changed("job")

        def end(failure: Failure | None) -> None:
            track.job, track.stage, track.fraction, track.eta = None, "", 0.0, None
            track.error = failure
            self._go_on()
            self.changed("tracks", "job", "results")

        track.stage, track.fraction, track.eta = ("first" if first else todo[0]), 0.0, None
        track.job = self._worker.submit(
            make,
            value=lambda item: mine(take, item),
            end=lambda failure: mine(end, failure),
            progress=lambda fraction, eta: mine(progress, fraction, eta),
        )
        box.append(track.job)

    def _halt(self, track: Track) -> None:
        if track.job is not None:
            track.job.cancel()
        track.job, track.stage, track.fraction, track.eta = None, "", 0.0, None

    def _insert(self, setting: Setting) -> None:
        if len(self.tracks) >= MOST:
            raise BadValue(f"at most {MOST} samplers fit side by side: remove one first.")
        slot = next(k for k in range(MOST) if k not in {t.slot for t in self.tracks})
        self.tracks.append(Track(slot, setting, setting))
        self.tracks.sort(key=lambda t: t.slot)
        self._refresh()

    def _look_closer(self) -> None:
        """Finds the selected particles again, and asks the worker where every sampler sends them."""
        self.ids, self.sight, self.crossed = None, None, {}
        self.stop_side("sight")
        if self.selection is not None:
            source = next((t for t in self.tracks if t.slot == self.selection.slot), self.tracks[0])
            if source.shown is None:
                return
            at = compute.positions(source.shown.frames, source.shown.sigma, self.selection.sigma, self.scale)
            self.ids = np.flatnonzero(lasso(at / self.extent, self.selection.loop))
        complete = [t for t in self.tracks if t.run is not None and t.run.n_done >= t.run.n and t.error is None]
        ids, lines, flat, n = self.ids, self.looks.lines, self.kind == "points", self.n
        model = self.tracks[0].model
        if not complete or (ids is None and not lines and len(complete) < 2) or (ids is not None and not len(ids)):
            return
        runs = {t.letter: t.run.ds for t in complete}
        slots = {t.letter: t.slot for t in complete}

        def make(job: Job) -> Iterator[Any]:
            found = _told(compute.sight, runs, np.arange(n) if ids is None else ids, model)
            few = np.arange(min(N_LINES, n)) if ids is None else ids[: 2 * N_LINES]
            crossed = {}
            if lines and flat:
                for letter, ds in runs.items():
                    crossed[slots[letter]] = (crossings(ds.isel(sample=few)).attrs["n_crossings"], len(few))
            yield found, crossed

        def show(item: tuple) -> None:
            self.sight, self.crossed = item
            self.changed("sight")

        self.side("sight", make, show)

    # State in and out

    def link(self) -> str:
        """The whole state as the part of an address after #."""
        pairs: dict[str, Any] = {"n": self.n, "seed": self.seed}
        for track in self.tracks:
            pairs |= settings.spell(track.setting, f"{track.letter.lower()}.", leave=("seed",))
        base = Looks()
        looks = {k: v for k, v in vars(self.looks).items() if v != getattr(base, k)}
        pairs |= {k: f"{v:.4g}" if isinstance(v, float) else int(v) for k, v in looks.items()}
        if self.pick is not None:
            pairs["pick"] = self.pick
        if self.active is not None:
            pairs["knobs"] = self.track(self.active).letter.lower()
        if self.selection is not None:
            s = self.selection
            corners = "~".join(f"{x:.3g},{y:.3g}" for x, y in s.loop)
            pairs["loop"] = f"{'abcd'[s.slot]}~{s.sigma:.4g}~{corners}"
        return settings.join("trajectory", pairs)

    def open(self, link: str) -> None:
        """Restores what `link` wrote; an address of another page opens its setting, an empty one the default view."""
        fields = settings.split(link)
        try:
            self._read(fields)
        except (ExplorerError, ValueError, KeyError, IndexError) as error:
            self._default()
            self.say(Failure(f"This address could not be opened: {error}", f"{link}\n{traceback.format_exc()}"))
        self.opened += 1
        self._refresh()

    def _read(self, fields: dict[str, str]) -> None:
        seed = int(fields.get("seed", 0))
        found = [(k, settings.read(fields, f"{letter}.", seed)) for k, letter in enumerate("abcd")]
        tracks = [Track(k, setting, setting) for k, setting in found if setting is not None]
        if "model" in fields:  # another page's setting comes first, what it was compared with after it
            own = settings.read(fields, "", seed)
            others = [t.setting for t in tracks]
            tracks = [Track(k, s, s) for k, s in enumerate([own, *others][:MOST])]
        if not tracks:
            self._default(seed)
            tracks = self.tracks
        shapes = {tuple(catalogue.model(t.model).shape) for t in tracks}
        if len(shapes) > 1:
            raise BadValue("its samplers draw samples of different shapes, which cannot stand side by side.")
        looks = Looks()
        for name in ("u", "trail", "speed"):
            if name in fields:
                low, high = Looks.BOUNDS[name]
                setattr(looks, name, min(max(float(fields[name]), low), high))
        for name in ("field", "density", "lines"):
            if name in fields:
                setattr(looks, name, bool(int(fields[name])))
        selection = None
        if "loop" in fields:
            letter, sigma, *corners = fields["loop"].split("~")
            points = tuple(tuple(float(v) for v in corner.split(",")) for corner in corners)
            if len(points) < 3 or any(len(p) != 2 for p in points):
                raise BadValue("its loop has too few corners.")
            selection = Selection("abcd".index(letter), float(sigma), points)
        for track in self.tracks:
            self._halt(track)
        kind = compute.kind_of(shapes.pop())
        n = int(fields.get("n", N_DEFAULT[kind]))
        self.tracks, self.seed, self.looks, self.selection = tracks, seed, looks, selection
        self.n = n if n in N_CHOICES[kind] else N_DEFAULT[kind]
        self.pick = int(fields["pick"]) if "pick" in fields else 0 if kind == "images" else None
        self.active = "abcd".index(fields["knobs"]) if "knobs" in fields else None
        if self.active is not None:
            self.track(self.active)
        self.notice, self.error = "", None

    def _default(self, seed: int = 0) -> None:
        """Two samplers of one exact model: a fine one, and one in few steps."""
        for track in self.tracks:
            self._halt(track)
        name = PREVIEW if PREVIEW in catalogue.names() else catalogue.default()
        base = catalogue.defaults(name) | {"seed": seed}
        fine = Setting.of(name, SamplerKnobs.from_dict({**base, "solver": "heun", "n_steps": 30}))
        coarse = Setting.of(name, SamplerKnobs.from_dict({**base, "solver": "euler", "n_steps": 6}))
        self.tracks = [Track(k, s, s) for k, s in enumerate((fine, coarse))]
        self.seed, self.active, self.selection, self.looks = seed, None, None, Looks()
        self.n = N_DEFAULT[self.kind]
        self.pick = 0 if self.kind == "images" else None


def _told(call: Callable, *args: Any) -> Any:
    """The result, or the failure as one: what goes wrong in a small job is told on the page."""
    try:
        return call(*args)
    except Exception as error:
        return Failure.of(error)
