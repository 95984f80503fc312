"""The Tuning page's store: what is to be searched next, the searches there are, the one that is looked at, a grid and a map.

Searches run for the whole process (`searches`) and lie in files (`records`); this reads both. The map is the store's main job, the errors
of a grid's steps are a side job that the next drag replaces.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from explorer.apps import catalogue, settings
from explorer.apps.settings import Setting
from explorer.apps.store import Store
from explorer.apps.tuning import address, measure, records
from explorer.apps.tuning.address import SETTABLE
from explorer.apps.tuning.bridge import knobs_for, lab_link, tunable
from explorer.apps.tuning.exports import EXPORTS, Download, exported
from explorer.apps.tuning.measure import Map, Preview, StepErrors
from explorer.apps.tuning.plan import OBJECTIVES, SUITED, WHATS, Plan, suggested_n, with_nfe
from explorer.apps.tuning.records import Record
from explorer.apps.tuning.searches import SEARCHES, Running, Searches
from explorer.apps.worker import Failure, Job, Worker
from explorer.errors import BadValue, ExplorerError, UnknownName
from explorer.knobs import SamplerKnobs
from explorer.sampling import sigmas_of
from explorer.tuning import Setting as Tunable
from explorer.tuning import Trial, Tuned, pareto

MOST_ERRORS = 64
PAUSE = 4
"""Times the time that drawing what a search did took, before it is drawn again."""


class Tunings(Store):
    """The store of the page. Views watch `version`: "form", "searches", "shown", "steps", "map", "download", "view", "job", "state".

    Args:
        worker, post, heard: as `Store`.
        folder: of the searches; None for the usual one.
        searches: those of the process.

    Attributes:
        plan: what the form says; its start is the baseline, and what the grid editor edits.
        shown: name of the search that is looked at; "" for none.
        picked: number of the trial that is looked at; None for the best.
        ghost: the grid while it is dragged.
        map: the last map of two knobs; axes: its knobs and their ends.
    """

    def __init__(
        self,
        worker: Worker,
        post: Callable | None = None,
        heard: Callable | None = None,
        *,
        folder: Path | None = None,
        searches: Searches | None = None,
    ):
        super().__init__(worker, post, heard)
        self._folder, self.searches, self._reader = folder, searches or SEARCHES, records.Reader()
        self.plan = Plan.of(catalogue.default())
        self.shown, self.picked = "", None
        self.records: list[Record] = []
        self.removed: tuple[str, Path] | None = None
        self.ghost: tuple[float, ...] | None = None
        self.errors: dict[str, StepErrors] = {}
        self.previews: dict[str, Preview] = {}
        self.map: Map | None = None
        self.axes: dict[str, dict[str, Any]] = {"x": {}, "y": {}}
        self.download: Download | None = None
        self._seen: tuple = ()
        self.refused = 0
        self._lock, self._asked, self._quiet_until = threading.Lock(), False, 0.0
        self._silent = self.searches.listen(self._told)

    def _told(self) -> None:
        """Looks soon, once: a page that takes long to draw looks more seldom, so that it still hears its user. From any thread."""
        with self._lock:
            if self._asked:
                return
            self._asked = True
        timer = threading.Timer(max(self._quiet_until - time.monotonic(), 0.0), lambda: self._post(self._glance))
        timer.daemon = True
        timer.start()

    def _glance(self) -> None:
        self._asked, began = False, time.monotonic()
        self.look()
        now = time.monotonic()
        self._quiet_until = now + PAUSE * (now - began)

    # What is asked

    @property
    def folder(self) -> Path:
        return self._folder or records.folder()

    @property
    def model(self):
        return catalogue.model(self.plan.model)

    @property
    def knobs(self) -> SamplerKnobs:
        return self.plan.knobs

    def fail(self, error: Exception) -> None:
        super().fail(error)
        self.refused += 1  # makes the form differ from what was sent last
        self.changed("form", "steps", "map")  # what was refused is drawn as it was

    def choose_model(self, name: str) -> None:
        """Another model, with the setting that a page opens with for it."""
        catalogue.model(name)
        asked = {k: getattr(self.plan, k) for k in ("trials", "minutes", "seed", "what")}
        plan = replace(Plan.of(name), **asked).fitted()
        self._ask(replace(plan, n=suggested_n(plan)))

    def set(self, **values: Any) -> None:
        """Turns knobs of the baseline; a value that cannot be leaves all as it was and says why."""
        knobs = SamplerKnobs.from_dict({**self.knobs.to_dict(), **values})
        knobs.check(self.model)
        self._ask(replace(self.plan, start=Setting.of(self.plan.model, knobs)).fitted())

    def reset(self, knob: str | None = None) -> None:
        """One knob, or all, back to what the page opens a model with."""
        base = Plan.of(self.plan.model).knobs.to_dict()
        self.set(**(base if knob is None else {knob: base[knob]} if knob in base else {}))

    def choose_nfe(self, nfe: int) -> None:
        """As many steps as that many evaluations allow."""
        self._ask(replace(self.plan, start=Setting.of(self.plan.model, with_nfe(self.knobs, self.model, nfe))).fitted())

    def choose(self, name: str, value: Any) -> None:
        """One of SETTABLE; what does not go with it any more takes its first choice."""
        if name not in SETTABLE:
            raise UnknownName("field of a search", name, SETTABLE)
        names = {"what": WHATS, "objective": OBJECTIVES, "method": SUITED[self.plan.what]}
        if name in names and value not in names[name]:
            raise UnknownName("thing to tune" if name == "what" else name, value, names[name])
        if name == "minutes":
            value = None if value in (None, "") else float(value)
        elif name in ("n", "trials", "seed"):
            value = int(value)
        plan = replace(self.plan, **{name: value}).fitted()
        if name in ("objective", "what") and plan.objective != self.plan.objective:
            plan = replace(plan, n=suggested_n(plan))
        self._ask(plan.checked())

    def _ask(self, plan: Plan) -> None:
        moved = plan.start != self.plan.start
        self.plan, self.ghost, self.error = plan, None, None
        if moved:
            self._measure_steps()
        self.changed("form", "steps", "map", "state", "view")

    # Searches

    @property
    def record(self) -> Record | None:
        return next((r for r in self.records if r.name == self.shown), None)

    @property
    def live(self) -> Running | None:
        """The search that is looked at, while it runs."""
        return self.searches.get(self.shown)

    @property
    def trials(self) -> list[Trial]:
        """Of the search that is looked at, the baseline first."""
        live, record = self.live, self.record
        written = list(record.trials) if record is not None else []
        now = list(live.trials) if live is not None else []
        return now if len(now) > len(written) else written

    @property
    def best(self) -> Trial | None:
        """The trial with the lowest value among those on all samples."""
        trials = self.trials
        whole = [t for t in trials if t.n == trials[0].n and not t.failed] if trials else []
        return min(whole, key=lambda t: (t.value, t.number)) if whole else None

    @property
    def trial(self) -> Trial | None:
        """The trial that is looked at: the picked one, or the best."""
        return next((t for t in self.trials if t.number == self.picked), None) or self.best

    @property
    def front(self) -> tuple[Trial, ...]:
        trials = self.trials
        return pareto(t for t in trials if t.n == trials[0].n) if trials else ()

    def tuned(self) -> Tuned | None:
        """The numbers on held-out noise, where they belong to the trials that are there."""
        record = self.record
        if record is None or record.tuned is None or self.live is not None:
            return None
        return record.tuned if len(record.tuned.history) == len(record.trials) else None

    def begin(self) -> str:
        """Starts the search that the form asks for, looks at it, and returns its name."""
        nfe = self.plan.nfe()
        name = records.new_name(f"{self.plan.model}-{self.plan.what}-{nfe or 'adaptive'}nfe", self.folder)
        self.searches.begin(self._worker, self.plan, name, self.folder)
        self.shown, self.picked, self.error, self.notice = name, None, None, ""
        self.look()
        self.changed("shown", "searches", "state", "view")
        return name

    def halt(self, name: str) -> None:
        """Stops a search; one that has ended meanwhile is left at that."""
        if self.searches.get(name) is not None:
            self.searches.stop(name)
        self.look()

    def resume(self, name: str, more: int = 0) -> None:
        """Goes on with a search from its journal, with `more` trials than it was to have."""
        record = self._known(name)
        if record.plan is None:
            raise BadValue(f"{name} was not started here: go on with it by repeating its command, explorer tune.")
        done = max(len(record.trials) - 1, 0)
        plan = (
            record.plan
            if not more
            else replace(
                record.plan,
                trials=max(record.plan.trials, done) + more,
                minutes=None,
                first=record.plan.size,
            )
        )
        self.searches.begin(self._worker, plan, name, self.folder)
        self.show(name)

    def keep(self, name: str) -> Path:
        """Writes the outcome as NAME.tuned.json, which nothing here changes again."""
        record = self._known(name)
        if record.tuned is None:
            raise BadValue(f"{name} has no numbers on held-out noise yet: let it end, or stop it after a trial.")
        file = self.folder / (name + records.KEPT)
        shutil.copyfile(self.folder / (name + records.FOUND), file)
        self.notice = f"Kept as {file}: explorer eval {record.model} --tuned {file} measures it again."
        self.look()
        self.changed("state", "shown")
        return file

    def remove(self, name: str) -> None:
        """Moves a search out of sight."""
        if self.searches.get(name) is not None:
            raise BadValue(f"{name} is running: stop it first.")
        out = records.remove(records.named(name, self.folder), self.folder)
        self.notice = f"{name} was removed; its files lie in {out}."
        if self.shown == name:
            self.shown, self.picked = "", None
        self.look()
        self.changed("state", "shown", "view")

    def _known(self, name: str) -> Record:
        return self._reader.one(records.named(name, self.folder), self.folder)

    def show(self, name: str) -> None:
        """Looks at a search."""
        if name and self.searches.get(name) is None:
            records.named(name, self.folder)
        self.shown, self.picked = name, None
        self.look()
        self._measure_steps()
        self.changed("shown", "searches", "steps", "view")

    def pick(self, number: int | None) -> None:
        """Looks at one trial: its grid lies under the editor's."""
        self.picked = number
        self._measure_steps()
        self.changed("shown", "steps")

    def start_from(self) -> None:
        """Makes the trial that is looked at the baseline of the next search."""
        setting = self.setting_of(self.trial)
        self._ask(replace(self.plan, start=setting).fitted())

    def ask_again(self) -> None:
        """Puts into the form what the search that is looked at was asked."""
        if self.record is not None and self.record.plan is not None:
            self._ask(replace(self.record.plan, first=0))

    def look(self) -> None:
        """Reads what is new of the searches."""
        self.records = self._reader.all(self.folder, self.searches.busy)
        if not self.shown and self.records:
            self.shown = next((r.name for r in self.records if self.searches.get(r.name)), "")
        live = self.live
        best, state = self.best, (live.state if live is not None else "")
        if (seen := (self.shown, state, best.number if best is not None else None)) != self._seen:
            self._seen = seen
            self._measure_steps()
            self.changed("steps")
        failure = self.searches.failures.get(self.shown)
        if failure is not None and self.error is not failure:
            self.error = failure
            self.changed("state")
        self.changed("searches", "shown")

    # A setting elsewhere

    def setting_of(self, trial: Trial | None) -> Setting:
        """A trial of the search that is looked at as the pages' setting.

        Raises: BadValue where there is none, or the pages have no knob for something in it.
        """
        base = self.baseline
        if trial is None or base is None:
            raise BadValue("there is no trial to take: start a search first.")
        if trial.number == 0 and self._plan_of_shown is not None:
            return base
        return Setting.of(base.model, knobs_for(trial.setting, base.knobs, catalogue.model(base.model)))

    @property
    def _plan_of_shown(self) -> Plan | None:
        live, record = self.live, self.record
        return live.plan if live is not None else record.plan if record is not None else None

    @property
    def baseline(self) -> Setting | None:
        """Where the search that is looked at began, as the pages' setting; None where its model is not here."""
        plan = self._plan_of_shown
        if plan is not None:
            return plan.start
        record = self.record
        if record is None or record.model not in catalogue.names():
            return None
        knobs = SamplerKnobs.from_dict(catalogue.defaults(record.model))
        try:
            return Setting.of(record.model, knobs_for(record.trials[0].setting, knobs, catalogue.model(record.model)))
        except (ExplorerError, IndexError):
            return Setting.of(record.model, knobs)

    def link_of(self, trial: Trial | None) -> tuple[str, str]:
        """Address of the Sampler Lab with a trial, the baseline pinned beside it, and why there is none."""
        try:
            setting = self.setting_of(trial)
        except ExplorerError as error:
            return "", str(error)
        base = self.baseline
        return lab_link(setting, base if base != setting else None), ""

    def export(self, form: str) -> None:
        """Sends the trial that is looked at to the browser as a file; packages are loaded beside the page."""
        if form not in EXPORTS:
            raise UnknownName("form", form, EXPORTS)
        trial, tuned, record = self.trial, self.tuned(), self.record
        if trial is None or record is None:
            raise BadValue("there is no trial to export: start a search first.")
        name, model = self.shown, record.model

        def make(job: Job) -> Iterator[Any]:
            try:
                yield exported(form, name, model, trial.setting, tuned if self.picked is None else None)
            except ExplorerError as error:
                yield Failure(f"Not exported as {EXPORTS[form]}: {error}", f"{type(error).__name__}: {error}")

        def show(item: Any) -> None:
            if isinstance(item, Failure):
                self.notice = ""
                self.say(item)
            else:
                self.download, self.notice = item, ""
                self.changed("download", "state")

        self.notice, self.error = f"Writing trial {trial.number} as {EXPORTS[form]}…", None
        self.changed("state")
        self.side("export", make, show)

    # The grid

    @property
    def nodes(self) -> tuple[float, ...]:
        """Positive noise levels of the baseline's grid, falling."""
        model, sampler = self.knobs.build(self.model)
        return tuple(s for s in sigmas_of(sampler, model) if s > 0)

    def drag(self, **values: Any) -> None:
        """Knobs, or nodes of the grid, that are being moved: step errors on few samples, nothing is kept."""
        try:
            knobs = SamplerKnobs.from_dict({**self.knobs.to_dict(), **values})
            model, sampler = knobs.build(self.model)
        except ExplorerError:
            return
        if knobs.own:
            return  # its steps lie where they lie
        self.ghost = tuple(s for s in sigmas_of(sampler, model) if s > 0)
        self._measure_steps(knobs)
        self.changed("steps")

    @property
    def start_setting(self) -> Tunable:
        knobs = self.knobs
        if self.ghost is not None:
            knobs = SamplerKnobs.from_dict({**knobs.to_dict(), "nodes": list(self.ghost)})
        return tunable(knobs, self.model)

    def errors_of(self, setting: Tunable) -> StepErrors | None:
        return self.errors.get(f"{self.plan.model}.{setting.key()}")

    def preview_of(self, setting: Tunable) -> Preview | None:
        return self.previews.get(f"{self.plan.model}.{setting.key()}")

    def other(self) -> Tunable | None:
        """The setting whose grid lies under the editor's: the trial that is looked at, where it is of the same model."""
        trial, record = self.trial, self.record
        return None if trial is None or record is None or record.model != self.plan.model else trial.setting

    def _measure_steps(self, dragged: SamplerKnobs | None = None) -> None:
        name, labels, counts = self.plan.model, self.knobs.labels, measure.COUNTS[: 1 if dragged is not None else 2]
        try:
            wanted = [tunable(dragged or self.knobs, self.model)]
        except ExplorerError:
            return
        if dragged is None and (other := self.other()) is not None:
            wanted.append(other)
        todo = [s for s in wanted if (have := self.errors_of(s)) is None or (have.n < counts[-1] and not have.reason)]
        unseen = [s for s in wanted if self.preview_of(s) is None]
        if not todo and not unseen:
            self.stop_side("steps")
            return

        def make(job: Job) -> Iterator[tuple[str, StepErrors | Preview]]:
            for setting in unseen:
                if (drawn := measure.preview(setting, name, labels, job)) is not None:
                    yield f"{name}.{setting.key()}", drawn
            for n in counts:
                for setting in todo:
                    for found in measure.step_errors(setting, name, labels, (n,), job):
                        yield f"{name}.{setting.key()}", found

        def show(item: tuple[str, StepErrors | Preview]) -> None:
            kept = self.previews if isinstance(item[1], Preview) else self.errors
            kept[item[0]] = item[1]
            while len(kept) > MOST_ERRORS:
                kept.pop(next(iter(kept)))
            self.changed("steps")

        self.side("steps", make, show)

    # The map

    def choose_axis(self, which: str, **given: Any) -> None:
        """The knob of an axis, "x" or "y", and its ends; another knob has its own ends."""
        if which not in self.axes:
            raise UnknownName("axis", which, self.axes)
        before = self.axes[which]
        same = given.get("knob", before.get("knob")) == before.get("knob")
        new = {**(before if same else {}), **given}
        measure.axis(self.knobs, self.model, new.get("knob") or self.axis(which).knob, new.get("low"), new.get("high"))
        self.axes[which] = new
        self.changed("map", "view")

    def axis(self, which: str) -> measure.Axis:
        """The axis as it is; knobs that cannot be on one are replaced by the first that can."""
        names = [c.name for c in measure.choices(self.knobs, self.model)]
        given, other = self.axes[which], self.axes["y" if which == "x" else "x"].get("knob")
        preferred = (
            ("rho", "n_steps", "sigma_max", "guidance") if which == "x" else ("sigma_max", "sigma_min", "n_steps")
        )
        name = given.get("knob")
        if name in names:
            try:
                return measure.axis(self.knobs, self.model, name, given.get("low"), given.get("high"))
            except ExplorerError:
                return measure.axis(self.knobs, self.model, name)
        free = [n for n in (*preferred, *names) if n in names and n != other]
        if not free:
            raise BadValue("there are no two knobs that act on this model with this setting.")
        if which == "y":
            free = [n for n in free if n != self.axis("x").knob] or free
        return measure.axis(self.knobs, self.model, free[0])

    def begin_map(self) -> None:
        """Measures the map of the two knobs around the baseline, with the form's objective."""
        x, y = self.axis("x"), self.axis("y")
        if x.knob == y.knob:
            raise BadValue(f"both axes are {x.knob}: choose another knob for one of them.")
        self.plan.goal(self.model)
        made = self.map = Map(self.plan, x, y)
        self.error = None

        def take(item: tuple[str, Any]) -> None:
            kind, found = item
            if kind == "words":
                self.doing(found)
                return
            if kind == "cell":
                made.cells[found[0]] = found[1]
            else:
                made.ties = found
            self.changed("map")

        def end(failure: Failure | None) -> None:
            self.error = failure or self.error
            self.changed("job", "map", "state")

        self.start(lambda job: measure.measured(made, job), take, end)
        self.changed("job", "map", "state")

    def cancel_map(self) -> None:
        """Ends it; what it has measured stays."""
        self.stop()
        self.changed("job", "map")

    # State in and out

    def link(self) -> str:
        """The whole state as the part of an address after #; the baseline's fields are those of the Sampler Lab."""
        fields = address.spell(self.plan)
        if self.shown:
            fields["u.search"] = self.shown
        fields |= address.spell_axes(self.axes)
        return settings.join("tuning", fields)

    def open(self, link: str) -> None:
        """Restores what `link` wrote; another page's link gives the baseline."""
        fields = settings.split(link)
        try:
            plan, self.notice = address.read(fields) if link else (Plan.of(catalogue.default()), "")
            self.plan, self.ghost, self.error = plan, None, None
            self.axes = address.read_axes(fields)
            name = fields.get("u.search", "")
            if name and self.searches.get(name) is None:
                records.named(name, self.folder)
            self.shown, self.picked = name, None
            if not link:
                self.shown = next((r.name for r in self._reader.all(self.folder, self.searches.busy)), "")
        except (ExplorerError, ValueError, TypeError) as error:
            self.error = Failure(f"This address could not be opened: {error}", f"{link}\n{error}")
        self.look()
        self._measure_steps()
        self.changed("form", "steps", "map", "state", "view", "shown", "job")

    def close(self) -> None:
        self._silent()
        super().close()
