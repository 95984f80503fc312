"""One browser session's store: what was chosen, what was measured, what is running. It knows no widget and no layout.

Views read it and call its verbs (`set`, `pin`, `recall`, ...). Everything here runs in the thread of the page except the
job generators, which run on the shared `Worker` and hand their results back through `post`.
"""

from __future__ import annotations

import json
import random
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from typing import Any
from urllib.parse import parse_qsl, urlencode

import param
import torch

from explorer.apps import catalogue
from explorer.apps.worker import Failure, Job, Worker
from explorer.errors import BadFile, BadValue, ExplorerError
from explorer.knobs import SamplerKnobs
from explorer.knobs import names as knob_names
from explorer.live import Live, quality
from explorer.metrics.base import Estimate, Metric
from explorer.models.base import Denoiser
from explorer.sampling import Seeds, denoised_of, labels_for

N_CHOICES = (256, 512, 1000, 2000, 5000, 10000)
N_PREVIEW = 16
N_PARTICLES = 400
FIELD_SIDE = 18
FORMAT = "explorer-state-1"


@dataclass(frozen=True)
class Setting:
    """A model and one value of every knob, seeds included: what a row of the history is."""

    model: str
    values: str  # JSON of the knobs, so that a setting can be a key

    @classmethod
    def of(cls, model: str, knobs: SamplerKnobs) -> Setting:
        return cls(model, knobs.to_json())

    @property
    def knobs(self) -> SamplerKnobs:
        return SamplerKnobs.from_json(self.values)

    @property
    def key(self) -> str:
        return f"{self.model}.{self.knobs.key()}"

    def on_seed(self, seed: int) -> Setting:
        return Setting.of(self.model, SamplerKnobs.from_dict({**self.knobs.to_dict(), "seed": seed}))


@dataclass
class Result:
    """What is known of one setting so far.

    Attributes:
        live: the newest state; None before the first batch.
        course: the estimate by n: how the number settled.
        metrics: the metric at n = 256, 512, 1024, ... and at the end, for paired differences with other settings.
        plane: particles and velocity field of a 2-D model, else None.
        n: samples asked for.
        failure: why it ended early, if it did.
    """

    setting: Setting
    n: int
    live: Live | None = None
    course: dict[int, Estimate] = field(default_factory=dict)
    metrics: dict[int, Metric] = field(default_factory=dict)
    plane: Plane | None = None
    failure: Failure | None = None

    @property
    def complete(self) -> bool:
        return self.live is not None and self.live.n_done >= self.n

    def add(self, live: Live) -> None:
        self.live = live
        self.course[live.n_done] = live.estimate
        if live.done or (live.n_done >= 256 and live.n_done & (live.n_done - 1) == 0):
            self.metrics[live.n_done] = live.metric


@dataclass(frozen=True)
class Plane:
    """Paths of the first particles of a 2-D model, and the velocity field at the start of each step.

    path: (T, n, 2) float32. sigmas: (T,). field: (T - 1, side * side, 2) float32, rows from the lowest y up.
    """

    path: torch.Tensor
    sigmas: list[float]
    field: torch.Tensor
    extent: float


@dataclass(frozen=True)
class Film:
    """Denoised predictions of one seed at the start of every step, and the finished sample: (T, *shape)."""

    seed: int
    sigmas: list[float]
    frames: torch.Tensor


@dataclass(frozen=True)
class Ghost:
    """What a knob still being dragged would give: its noise levels, and the first pictures once they are there."""

    sigmas: list[float]
    x: torch.Tensor | None = None


@dataclass(frozen=True)
class Comparison:
    """B against A on the same seeds."""

    difference: Estimate
    n: int


class Cache:
    """Results of all sessions by setting and n; the oldest unused leave first."""

    def __init__(self, size: int = 96):
        self._size, self._items = size, OrderedDict()

    def get(self, key: str, n: int) -> Result | None:
        found = self._items.get((key, n))
        if found is not None:
            self._items.move_to_end((key, n))
        return found

    def put(self, result: Result) -> None:
        self._items[(result.setting.key, result.n)] = result
        while len(self._items) > self._size:
            self._items.popitem(last=False)


CACHE = Cache()


class Session(param.Parameterized):
    """The store. Views watch `version`, which names what changed: "state", "job", "result", "ghost", "film".

    Args:
        worker: the shared compute slot.
        post: runs a function in the thread of the page, under its lock.
        cache: finished results, shared by all sessions of a server.
    """

    version = param.Dict(default={}, doc="What changed last; watched by views.")

    def __init__(self, worker: Worker, post: Callable[[Callable[[], None]], None] | None = None, cache: Cache = CACHE):
        super().__init__()
        self._worker, self._post, self._cache = worker, post or (lambda call: call()), cache
        self.model_name = catalogue.default()
        self.knobs = SamplerKnobs(**catalogue.defaults(self.model_name))
        self.n = 2000
        self.results: dict[str, Result] = {}
        self.order: list[str] = []
        self.colors: dict[str, int] = {}
        self.pinned: Setting | None = None
        self.notice, self.error = "", None
        self.film: dict[str, Film] = {}
        self.film_index: int | None = None
        self.ghost: Ghost | None = None
        self.running, self.fraction, self.eta = "", 0.0, None
        self.shown: Result | None = None
        self._compared: tuple[tuple, Comparison] | None = None
        self._job: Job | None = None
        self._side_jobs: dict[str, Job] = {}
        self._good = Setting.of(self.model_name, self.knobs)  # what "undo" returns to
        self._measuring: Setting | None = None

    # What is chosen

    @property
    def model(self) -> Denoiser:
        return catalogue.model(self.model_name)

    @property
    def setting(self) -> Setting:
        return Setting.of(self.model_name, self.knobs)

    @property
    def result(self) -> Result | None:
        return self.results.get(self.setting.key)

    @property
    def baseline(self) -> Result | None:
        """The pinned setting's result, unless it is the present one."""
        if self.pinned is None or self.pinned.key == self.setting.key:
            return None
        return self.results.get(self.pinned.key)

    def comparison(self) -> Comparison | None:
        """The present setting minus the pinned one at the largest n both have reached."""
        a, b = self.baseline, self.result
        if a is None or b is None:
            return None
        common = [n for n in set(a.metrics) & set(b.metrics)]
        if not common:
            return None
        n = max(common)
        key = (a.setting.key, b.setting.key, n)
        if self._compared is None or self._compared[0] != key:
            try:
                difference = b.metrics[n].difference(a.metrics[n])
            except BadValue:
                return None  # measured in different feature spaces: other models, nothing to subtract
            self._compared = (key, Comparison(difference, n))
        return self._compared[1]

    # Verbs

    def set(self, **values: Any) -> None:
        """Sets knobs and measures the new setting; a value out of range leaves everything as it was and says why."""
        self.ghost = None
        self._stop_side("preview")
        try:
            knobs = SamplerKnobs.from_dict({**self.knobs.to_dict(), **values})
        except ExplorerError as error:
            self._fail(Failure(str(error), f"{type(error).__name__}: {error}"))
            return
        self.knobs = knobs
        self.run()

    def preview(self, **values: Any) -> None:
        """What a dragged knob would do: its grid at once, then the first pictures. Nothing is stored."""
        try:
            knobs = SamplerKnobs.from_dict({**self.knobs.to_dict(), **values})
            model, sampler = knobs.build(self.model)
        except ExplorerError:
            return
        sigmas = sampler.grid.sigmas(model.path)
        self.ghost = Ghost(sigmas, self.ghost.x if self.ghost else None)
        self._changed("ghost")
        name = self.model_name

        def make(job: Job) -> Iterator[torch.Tensor]:
            seeds = Seeds(range(knobs.seed, knobs.seed + N_PREVIEW))
            cond = labels_for(model, seeds, knobs.labels)

            def watch(*seen):
                job.between()
                if job.stop.is_set():
                    raise ExplorerError("stopped")

            with torch.inference_mode():
                yield sampler.sample(model, seeds.normal(tuple(model.shape)), cond, rng=seeds, observe=watch)

        def show(x: torch.Tensor) -> None:
            if self.ghost is not None and self.model_name == name:
                self.ghost = Ghost(sigmas, x)
                self._changed("ghost")

        if len(self.model.shape) == 3:
            self._side("preview", make, show)

    def reset(self, knob: str | None = None) -> None:
        """One knob, or all but the seed, back to the defaults for this model."""
        defaults = catalogue.defaults(self.model_name)
        if knob is None:
            self.set(**{**defaults, "seed": self.knobs.seed})
        elif knob in defaults:
            self.set(**{knob: defaults[knob]})

    def choose_model(self, name: str) -> None:
        """Another model; knobs that cannot act on it go back to their defaults, and the page says which."""
        try:
            catalogue.model(name)
        except ExplorerError as error:
            self._fail(Failure(str(error), f"{type(error).__name__}: {error}"))
            return
        before = catalogue.defaults(self.model_name)
        self.model_name = name
        after = catalogue.defaults(self.model_name)
        values = self.knobs.to_dict()
        for knob in ("sigma_min", "sigma_max", "label"):
            if values[knob] == before[knob]:
                values[knob] = after[knob]
        self.knobs, notes = SamplerKnobs.from_dict(values).fitted(self.model)
        self.film_index, self.film, self.ghost = None, {}, None
        self.run(notice=" ".join(notes))

    def choose_n(self, n: int) -> None:
        if n not in N_CHOICES:
            self._fail(Failure(f"n = {n}: choose one of {', '.join(map(str, N_CHOICES))}.", ""))
            return
        self.n = n
        self.run()

    def dice(self) -> None:
        """Other seeds; the pinned setting moves along, so that both still share their noise."""
        self.set(seed=random.randrange(1, 1_000_000))

    def pin(self) -> None:
        """The present setting becomes A."""
        if self._valid() is None:
            self.pinned = self.setting
            self._changed("state", "result", "film")

    def unpin(self) -> None:
        self.pinned = None
        self.film.pop("a", None)
        self._changed("state", "result", "film")

    def recall(self, key: str) -> None:
        """Back to a setting of the history."""
        if key not in self.results:
            return
        setting = self.results[key].setting
        if setting.model != self.model_name:
            self.film_index, self.film = None, {}
        self.model_name, self.knobs = setting.model, setting.knobs
        self.run()

    def clear(self) -> None:
        """Forgets all rows but the pinned and the present one."""
        keep = {self.setting.key} | ({self.pinned.key} if self.pinned else set())
        self.results = {key: result for key, result in self.results.items() if key in keep}
        self.order = [key for key in self.order if key in keep]
        self._changed("result")

    def undo(self) -> None:
        """Back to the last setting that could run."""
        self.model_name, self.knobs = self._good.model, self._good.knobs
        self.run()

    def dismiss(self) -> None:
        self.notice, self.error = "", None
        self._changed("state")

    def show_film(self, index: int) -> None:
        """The denoised predictions of sample `index` along its path, for the present setting and the pinned one."""
        if len(self.model.shape) == 3:
            self.film_index = index
            self._film()
            self._changed("state")

    # Running

    def run(self, notice: str = "") -> None:
        """Measures the present setting: from the cache when it has been seen, else by a new job that replaces the old."""
        if self._job is not None and self._measuring is not None:
            self._good = self._measuring
        self.cancel(quiet=True)
        self.notice, self.error = notice, self._valid()
        if self.error is not None:
            self._changed("state", "job", "result", "ghost")
            return
        if self.pinned is not None:
            self.pinned = self.pinned.on_seed(self.knobs.seed)
        todo = [s for s in (self.setting, self.pinned) if s is not None and not self._seen(s)]
        self._note(self.setting)
        if todo:
            self._start(todo)
        if self.film_index is not None:
            self._film()
        if self.setting not in todo:
            self._good, self.shown = self.setting, self.result
        self._changed("state", "job", "result", "ghost")

    def cancel(self, quiet: bool = False) -> None:
        """Stops the running job; what it has measured so far stays."""
        if self._job is not None:
            self._job.cancel()
        for name in list(self._side_jobs):
            self._stop_side(name)
        self._job, self.running, self.fraction, self.eta = None, "", 0.0, None
        if not quiet:
            self._changed("job", "result")

    def close(self) -> None:
        """Stops everything; the page is gone."""
        self.cancel(quiet=True)

    def _valid(self) -> Failure | None:
        try:
            self.knobs.check(self.model)
        except ExplorerError as error:
            return Failure(str(error), f"{type(error).__name__}: {error}\n\n{self.setting}")
        return None

    def _seen(self, setting: Setting) -> bool:
        """Whether this setting has been measured at the present n, here or in another session."""
        have = self.results.get(setting.key)
        if have is not None and have.n == self.n and have.complete:
            return True
        found = self._cache.get(setting.key, self.n)
        if found is not None:
            self._keep(found)
            return True
        return False

    def _note(self, setting: Setting) -> None:
        if setting.key not in self.results:
            self._keep(Result(setting, self.n))

    def _keep(self, result: Result) -> None:
        key = result.setting.key
        self.results[key] = result
        if key not in self.order:
            self.order.insert(0, key)
            shown = result.setting.on_seed(0).key
            self.colors.setdefault(shown, len(self.colors))
            for old in self.order[60:]:
                if self.pinned is None or old != self.pinned.key:
                    self.order.remove(old)
                    self.results.pop(old, None)

    def _start(self, todo: list[Setting]) -> None:
        n, total = self.n, len(todo)
        for setting in todo:
            self._keep(Result(setting, n))
        names = {setting.key: "A" if setting == self.pinned else "B" for setting in todo}

        def make(job: Job) -> Iterator[tuple[str, Any]]:
            for setting in todo:
                yield setting.key, "start"
                knobs = setting.knobs
                base = catalogue.model(setting.model)
                model, sampler = knobs.build(base)
                metric = catalogue.metric(setting.model)
                if tuple(model.shape) == (2,):
                    yield setting.key, _plane(model, sampler, knobs, catalogue.extent(setting.model), job)
                for live in quality(
                    model,
                    sampler,
                    metric,
                    n,
                    start_seed=knobs.seed,
                    label=knobs.label,
                    cancel=job.stop,
                    between=job.between,
                ):
                    yield setting.key, live
                job.started = time.perf_counter()

        def value(item) -> None:
            self._post(lambda: self._take(job_box[0], names, total, *item))

        def progress(fraction: float, eta: float) -> None:
            self._post(lambda: self._progress(job_box[0], fraction, eta))

        def end(failure: Failure | None) -> None:
            self._post(lambda: self._end(job_box[0], failure))

        job_box: list[Job | None] = [None]
        self._measuring = todo[0]
        self.running, self.fraction, self.eta = "starting", 0.0, None
        self._job = job_box[0] = self._worker.submit(make, value=value, end=end, progress=progress)

    def _take(self, job: Job, names: dict[str, str], total: int, key: str, item: Any) -> None:
        if job is not self._job or key not in self.results:
            return
        result = self.results[key]
        if isinstance(item, Plane):
            result.plane = item
        elif isinstance(item, Live):
            result.add(item)
            if key == self.setting.key:
                self.shown = result
            if result.complete:
                self._cache.put(result)
        else:
            self.running = f"measuring {names[key]}" if total > 1 or self.pinned else "measuring"
            self.fraction, self.eta = 0.0, None
            self._changed("job")
            return
        self._changed("result")

    def _progress(self, job: Job, fraction: float, eta: float) -> None:
        if job is self._job:
            self.fraction, self.eta = fraction, eta
            self._changed("job")

    def _end(self, job: Job, failure: Failure | None) -> None:
        if job is not self._job:
            return
        self._job, self.running, self.fraction, self.eta = None, "", 0.0, None
        if failure is None:
            self._good = self.setting
        else:
            text = f"{failure.details}\n\nstate:\n{self.to_json()}"
            self.error = Failure(failure.text, text)
            if self.result is not None:
                self.result.failure = self.error
        self._changed("state", "job", "result")

    def fail(self, error: Exception) -> None:
        """Says on the page that something unforeseen went wrong, with the traceback to copy."""
        self._fail(Failure(f"This did not work: {type(error).__name__}: {error}", traceback.format_exc()))

    def _fail(self, failure: Failure) -> None:
        self.error = failure
        self._changed("state", "ghost")

    def _film(self) -> None:
        index, wanted = self.film_index, {"b": self.setting}
        if self.pinned is not None and self.pinned.key != self.setting.key:
            wanted["a"] = self.pinned.on_seed(self.knobs.seed)
        if self._valid() is not None or len(self.model.shape) != 3:
            return

        def make(job: Job) -> Iterator[tuple[str, Film]]:
            for letter, setting in wanted.items():
                knobs = setting.knobs
                model, sampler = knobs.build(catalogue.model(setting.model))
                yield letter, _film(model, sampler, knobs.seed + index, knobs.labels, job)

        def show(item: tuple[str, Film]) -> None:
            if self.film_index == index:
                self.film[item[0]] = item[1]
                self._changed("film")

        if "a" not in wanted:
            self.film.pop("a", None)
        self._side("film", make, show)

    def _side(self, name: str, make, show) -> None:
        """A small job beside the main one, of which only the newest of each name counts."""
        self._stop_side(name)
        box: list[Job | None] = [None]

        def value(item) -> None:
            self._post(lambda: show(item) if self._side_jobs.get(name) is box[0] else None)

        box[0] = self._worker.submit(make, value=value, end=lambda failure: None)
        self._side_jobs[name] = box[0]

    def _stop_side(self, name: str) -> None:
        job = self._side_jobs.pop(name, None)
        if job is not None:
            job.cancel()

    def _changed(self, *what: str) -> None:
        self.version = {"what": frozenset(what), "count": self.version.get("count", 0) + 1}

    # State in and out

    def link(self) -> str:
        """The whole state as the part of an address after #: what differs from the defaults, and the pinned setting as a.*"""
        pairs = {"model": self.model_name, "n": self.n, **_spell(self.setting)}
        if self.pinned is not None:
            pairs |= {"a.model": self.pinned.model}
            pairs |= {f"a.{k}": v for k, v in _spell(self.pinned).items() if k != "seed"}
        if self.film_index is not None:
            pairs["film"] = self.film_index
        return "lab?" + urlencode(pairs, safe=",")

    def open(self, link: str) -> None:
        """Restores what `link` wrote, then measures; an empty link opens the default view."""
        pairs = dict(parse_qsl(link.partition("?")[2]))
        try:
            name = pairs.get("model", catalogue.default())
            setting = _read(name, {k: v for k, v in pairs.items() if k in knob_names()})
            pinned = None
            if "a.model" in pairs:
                own = {k[2:]: v for k, v in pairs.items() if k.startswith("a.") and k[2:] in knob_names()}
                pinned = _read(pairs["a.model"], {**own, "seed": str(setting.knobs.seed)})
            n = int(pairs.get("n", 2000))
            film = int(pairs["film"]) if "film" in pairs else None
        except (ExplorerError, ValueError) as error:
            self.run()
            self._fail(Failure(f"This address could not be opened: {error}", f"{link}\n{error}"))
            return
        self.model_name, self.knobs, self.pinned = name, setting.knobs, pinned
        self.n = n if n in N_CHOICES else 2000
        self.film_index = film
        self.run()

    def to_dict(self) -> dict:
        """Everything that reproduces what is on screen, with what was measured."""
        out = {
            "format": FORMAT,
            "model": self.model_name,
            "n": self.n,
            "knobs": self.knobs.to_dict(),
            "pinned": None
            if self.pinned is None
            else {"model": self.pinned.model, "knobs": self.pinned.knobs.to_dict()},
        }
        if self._valid() is None:
            out["sampler"] = self.knobs.build(self.model)[1].to_dict()
        if self.result is not None and self.result.live is not None:
            live = self.result.live
            out["measured"] = {**live.estimate.to_dict(), "nfe": live.nfe, "seconds": round(live.seconds, 3)}
        return out

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    def from_json(self, text: str) -> None:
        """Restores what `to_json` wrote.

        On anything else the page says why and stays as it was.
        """
        try:
            data = json.loads(text)
            if not isinstance(data, dict) or data.get("format") != FORMAT:
                raise BadFile("this file is not a state exported by this page.")
            setting = Setting.of(data["model"], SamplerKnobs.from_dict(data["knobs"]))
            catalogue.model(setting.model)
            pinned = data.get("pinned")
            if pinned is not None:
                pinned = Setting.of(pinned["model"], SamplerKnobs.from_dict(pinned["knobs"]))
                catalogue.model(pinned.model)
            n = int(data["n"])
        except (ExplorerError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._fail(
                Failure(
                    f"The state could not be imported: {error}", f"{type(error).__name__}: {error}\n\n{text[:2000]}"
                )
            )
            return
        self.model_name, self.knobs, self.pinned = setting.model, setting.knobs, pinned
        self.n = n if n in N_CHOICES else 2000
        self.film_index, self.film = None, {}
        self.run()

    def file_name(self) -> str:
        return f"explorer-{self.model_name}-{self.knobs.key()[:6]}-{date.today():%Y%m%d}.json"


def _spell(setting: Setting) -> dict[str, str]:
    """Knobs that differ from the defaults of the setting's model, as text."""
    base = catalogue.defaults(setting.model)
    out = {}
    for name, value in setting.knobs.changed(base).items():
        out[name] = ",".join(f"{v:g}" for v in value) if isinstance(value, list) else f"{value}"
    return out


def _read(model: str, texts: dict[str, str]) -> Setting:
    values = catalogue.defaults(model)
    for name, text in texts.items():
        p = SamplerKnobs.param[name]
        if isinstance(p, param.Selector):
            values[name] = text
        elif name == "skip_bank":
            values[name] = [float(v) for v in text.split(",")]
        else:
            values[name] = int(text) if isinstance(p, param.Integer) else float(text)
    return Setting.of(model, SamplerKnobs.from_dict(values))


class _Stopped(ExplorerError):
    pass


def _watched(job: Job, see: Callable) -> Callable:
    """An observer that also hands the baton on and stops when the job is cancelled."""

    def observe(i, t, t_next, x, step):
        see(i, t, t_next, x, step)
        if job.stop.is_set():
            raise _Stopped("stopped")
        job.between()

    return observe


@torch.inference_mode()
def _film(model: Denoiser, sampler, seed: int, labels, job: Job) -> Film:
    path, frames = sampler.path_on(model), []
    seeds = Seeds([seed])
    cond = labels_for(model, seeds, labels)

    def see(i, t, t_next, x, step):
        frames.append(denoised_of(path, x, t, step)[0].float())

    end = sampler.sample(model, seeds.normal(tuple(model.shape)), cond, rng=seeds, observe=_watched(job, see))
    sigmas = sampler.grid.sigmas(path)
    return Film(seed, sigmas, torch.stack([*frames, end[0].float()]))


@torch.inference_mode()
def _plane(model: Denoiser, sampler, knobs: SamplerKnobs, extent: float, job: Job) -> Plane:
    """Paths in the scale of the data: states are divided by alpha sqrt(1 + (sigma / r)^2), which keeps noise on the canvas."""
    path, states, fields = sampler.path_on(model), [], []
    moved = model.on(path)
    seeds = Seeds(range(knobs.seed, knobs.seed + N_PARTICLES))
    cond = labels_for(model, seeds, knobs.labels)
    edge = (torch.arange(FIELD_SIDE, dtype=torch.float64) + 0.5) / FIELD_SIDE * 2 * extent - extent
    mesh = torch.stack(torch.meshgrid(edge, edge, indexing="xy"), dim=-1).reshape(-1, 2)
    mesh_cond = labels_for(model, Seeds(range(len(mesh))), knobs.labels)

    def scale(t: float) -> float:
        return path.at(t)[0] * (1 + (path.ratio_at(t) / (0.4 * extent)) ** 2) ** 0.5

    def see(i, t, t_next, x, step):
        states.append((x / scale(t)).float())
        # On the canvas a particle moves by the velocity of x / scale; its direction towards data is what is drawn.
        here, there = mesh * scale(t), t_next
        ahead = here + (there - t) * moved.velocity(here, t, mesh_cond)
        fields.append((ahead / scale(there) - mesh).float())

    end = sampler.sample(model, seeds.normal(tuple(model.shape)), cond, rng=seeds, observe=_watched(job, see))
    states.append((end / scale(0.0)).float())
    return Plane(torch.stack(states), sampler.grid.sigmas(path), torch.stack(fields), extent)
