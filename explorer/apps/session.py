"""The Sampler Lab's store: what was chosen, what was measured, what is running. It knows no widget and no layout."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import torch

from explorer.apps import catalogue, settings
from explorer.apps.results import CACHE, Cache, Comparison, Film, Ghost, Plane, Result, film, plane, watched
from explorer.apps.settings import N_CHOICES, Setting
from explorer.apps.store import Call, Store
from explorer.apps.worker import Failure, Job, Worker
from explorer.errors import BadFile, BadValue, ExplorerError
from explorer.knobs import SamplerKnobs
from explorer.live import Live, quality
from explorer.models.base import Denoiser
from explorer.sampling import Seeds, labels_for, sigmas_of

N_PREVIEW = 16
N_ROWS = 60  # settings that are remembered
FORMAT = "explorer-state-1"


class Session(Store):
    """Settings, their results, and the verbs of the page. `changed` names "state", "job", "result", "ghost", "film".

    Args:
        worker, post, heard: see `Store`.
        cache: finished results, shared by all sessions of a server.
    """

    def __init__(
        self,
        worker: Worker,
        post: Callable[[Call], None] | None = None,
        cache: Cache = CACHE,
        heard: Call | None = None,
    ):
        super().__init__(worker, post, heard)
        self._cache = cache
        self.model_name = catalogue.default()
        self.knobs = SamplerKnobs(**catalogue.defaults(self.model_name))
        self.n = 2000
        self.results: dict[str, Result] = {}
        self.order: list[str] = []
        self.colors: dict[str, int] = {}
        self.pinned: Setting | None = None
        self.film: dict[str, Film] = {}
        self.film_index: int | None = None
        self.ghost: Ghost | None = None
        self.shown: Result | None = None
        self._compared: tuple[tuple, Comparison] | None = None
        self._good = self.setting  # what "undo" returns to
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
        common = set(a.metrics) & set(b.metrics)
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
        self.stop_side("preview")
        try:
            knobs = SamplerKnobs.from_dict({**self.knobs.to_dict(), **values})
        except ExplorerError as error:
            self.say(_failure(error))
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
        sigmas = list(sigmas_of(sampler, model))
        self.ghost = Ghost(sigmas, self.ghost.x if self.ghost else None)
        self.changed("ghost")
        name = self.model_name

        def make(job: Job) -> Iterator[torch.Tensor]:
            seeds = Seeds(range(knobs.seed, knobs.seed + N_PREVIEW))
            cond = labels_for(model, seeds, knobs.labels)
            with torch.inference_mode():
                yield sampler.sample(model, seeds.normal(tuple(model.shape)), cond, rng=seeds, observe=watched(job))

        def show(x: torch.Tensor) -> None:
            if self.ghost is not None and self.model_name == name:
                self.ghost = Ghost(sigmas, x)
                self.changed("ghost")

        if len(self.model.shape) == 3:
            self.side("preview", make, show)

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
            self.say(_failure(error))
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
        """Another number of samples; those that are there already are kept."""
        if n not in N_CHOICES:
            self.say(Failure(f"n = {n}: choose one of {', '.join(map(str, N_CHOICES))}.", ""))
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
            self.changed("state", "result", "film")

    def unpin(self) -> None:
        self.pinned = None
        self.film.pop("a", None)
        self.changed("state", "result", "film")

    def recall(self, key: str) -> None:
        """Back to a setting of the history."""
        if key not in self.results:
            return
        self._choose(self.results[key].setting)
        self.run()

    def clear(self) -> None:
        """Forgets all rows but the pinned and the present one."""
        keep = {self.setting.key} | ({self.pinned.key} if self.pinned else set())
        self.results = {key: result for key, result in self.results.items() if key in keep}
        self.order = [key for key in self.order if key in keep]
        self.changed("result")

    def undo(self) -> None:
        """Back to the last setting that could run."""
        self._choose(self._good)
        self.run()

    def show_film(self, index: int) -> None:
        """The denoised predictions of sample `index` along its path, for the present setting and the pinned one."""
        if len(self.model.shape) == 3:
            self.film_index = index
            self._film()
            self.changed("state")

    def _choose(self, setting: Setting) -> None:
        if setting.model != self.model_name:
            self.film_index, self.film = None, {}
        self.model_name, self.knobs = setting.model, setting.knobs

    # Running

    def run(self, notice: str = "") -> None:
        """Measures the present setting: from the cache when it has been seen, else by a new job that replaces the old."""
        if self._job is not None and self._measuring is not None:
            self._good = self._measuring
        self.close()
        self.notice, self.error = notice, self._valid()
        if self.error is not None:
            self.changed("state", "job", "result", "ghost")
            return
        if self.pinned is not None:
            self.pinned = self.pinned.on_seed(self.knobs.seed)
        todo = [s for s in (self.setting, self.pinned) if s is not None and not self._seen(s)]
        if todo:
            self._measure(todo)
        if self.film_index is not None:
            self._film()
        if self.setting not in todo:
            self._good, self.shown = self.setting, self.result
        self.changed("state", "job", "result", "ghost")

    def cancel(self) -> None:
        """Stops the running jobs; what they have measured so far stays."""
        self.close()
        self.changed("job", "result")

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

    def _begun(self, setting: Setting) -> Result:
        """What is known of the setting, here or in another session, as the beginning of the present measurement."""
        known = [self.results.get(setting.key), self._cache.nearest(setting.key, self.n)]
        begun = [result.towards(self.n) for result in known if result is not None]
        return max(begun, key=lambda r: r.live.n_done if r.live else 0, default=Result(setting, self.n))

    def _keep(self, result: Result) -> None:
        key = result.setting.key
        self.results[key] = result
        if key not in self.order:
            self.order.insert(0, key)
            self.colors.setdefault(result.setting.on_seed(0).key, len(self.colors))
            for old in self.order[N_ROWS:]:
                if self.pinned is None or old != self.pinned.key:
                    self.order.remove(old)
                    self.results.pop(old, None)

    def _measure(self, todo: list[Setting]) -> None:
        begun = {setting.key: self._begun(setting) for setting in todo}
        for result in begun.values():
            self._keep(result)
        if (present := begun.get(self.setting.key)) is not None and present.live is not None:
            self.shown = present
        names = {setting.key: "A" if setting == self.pinned else "B" for setting in todo}
        lettered, n = len(todo) > 1 or self.pinned is not None, self.n

        def make(job: Job) -> Iterator[tuple[str, Any]]:
            for setting in todo:
                yield setting.key, f"measuring {names[setting.key]}" if lettered else "measuring"
                before, knobs = begun[setting.key], setting.knobs
                model, sampler = knobs.build(catalogue.model(setting.model))
                if tuple(model.shape) == (2,) and before.plane is None:
                    yield setting.key, plane(model, sampler, knobs, catalogue.extent(setting.model), job)
                for live in quality(
                    model,
                    sampler,
                    catalogue.metric(setting.model),
                    n,
                    start_seed=knobs.seed,
                    label=knobs.label,
                    after=before.live,
                    cancel=job.stop,
                    between=job.between,
                ):
                    yield setting.key, live
                job.started = time.perf_counter()

        self._measuring = todo[0]
        self.start(make, self._take, self._end)

    def _take(self, item: tuple[str, Any]) -> None:
        key, found = item
        result = self.results.get(key)
        if isinstance(found, str):
            self.doing(found)
            return
        if result is None:
            return
        if isinstance(found, Plane):
            result.plane = found
        elif isinstance(found, Live):
            result.add(found)
            if key == self.setting.key:
                self.shown = result
            if result.complete:
                self._cache.put(result)
        self.changed("result")

    def _end(self, failure: Failure | None) -> None:
        if failure is None:
            self._good = self.setting
        else:
            self.error = Failure(failure.text, f"{failure.details}\n\nstate:\n{self.to_json()}")
            if self.result is not None:
                self.result.failure = self.error
        self.changed("state", "job", "result")

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
                yield letter, film(model, sampler, knobs.seed + index, knobs.labels, job)

        def show(item: tuple[str, Film]) -> None:
            if self.film_index == index:
                self.film[item[0]] = item[1]
                self.changed("film")

        if "a" not in wanted:
            self.film.pop("a", None)
        self.side("film", make, show)

    # State in and out

    def link(self) -> str:
        """The whole state as the part of an address after #: what differs from the defaults, and the pinned setting as a.*"""
        fields = {"model": self.model_name, "n": self.n, **settings.spell(self.setting)}
        if self.pinned is not None:
            fields |= settings.spell(self.pinned, "a.", leave=("seed",))
        if self.film_index is not None:
            fields["film"] = self.film_index
        return settings.join("lab", fields)

    def open(self, link: str) -> None:
        """Restores what `link` wrote, then measures; an empty link opens the default view."""
        fields = settings.split(link)
        try:
            setting = settings.read(fields)
            pinned = settings.read(fields, "a.", seed=setting.knobs.seed)
            n = int(fields.get("n", 2000))
            index = int(fields["film"]) if "film" in fields else None
        except (ExplorerError, ValueError) as error:
            self.run()
            self.say(Failure(f"This address could not be opened: {error}", f"{link}\n{error}"))
            return
        self.model_name, self.knobs, self.pinned = setting.model, setting.knobs, pinned
        self.n = n if n in N_CHOICES else 2000
        self.film_index = index
        self.run()

    def to_dict(self) -> dict:
        """Everything that reproduces what is on screen, with what was measured."""
        out = {
            "format": FORMAT,
            "n": self.n,
            **self.setting.to_dict(),
            "pinned": None if self.pinned is None else self.pinned.to_dict(),
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
            setting = Setting.from_dict(data)
            pinned = data.get("pinned")
            if pinned is not None:
                pinned = Setting.from_dict(pinned)
            n = int(data["n"])
        except (ExplorerError, ValueError, KeyError, TypeError, AttributeError) as error:
            details = f"{type(error).__name__}: {error}\n\n{text[:2000]}"
            self.say(Failure(f"The state could not be imported: {error}", details))
            return
        self.model_name, self.knobs, self.pinned = setting.model, setting.knobs, pinned
        self.n = n if n in N_CHOICES else 2000
        self.film_index, self.film = None, {}
        self.run()

    def file_name(self) -> str:
        return f"explorer-{self.model_name}-{self.knobs.key()[:6]}-{date.today():%Y%m%d}.json"


def _failure(error: ExplorerError) -> Failure:
    return Failure(str(error), f"{type(error).__name__}: {error}")
