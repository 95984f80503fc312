"""The Tuning page: drag a grid, start a search, watch its trials fall, keep what holds on noise it never saw."""

from __future__ import annotations

from collections.abc import Iterable

from explorer.apps.components import tuning as panes
from explorer.apps.pages.base import Lab, Verb
from explorer.apps.tuning import measured, views
from explorer.apps.tuning.state import Tunings


class TuningLab(Lab):
    """The panes of this page, and what the browser may ask of it."""

    redraws = {
        "form": ("form", "knobs"),
        "searches": ("searches",),
        "shown": ("top", "outcome", "course", "layers", "trials", "searches"),
        "steps": ("steps",),
        "map": ("map",),
        "state": ("top",),
        "job": ("job",),
        "download": ("file",),
        "view": ("link",),
    }

    def __init__(self, store: Tunings, rail: Iterable[dict] = (), embedded: bool = False):
        self.store = store
        own = {"on_message": self.receive, "page_id": str(id(self))}
        self.top = panes.TuningTop(on_message=self.receive)
        self.form = panes.TuningForm(on_message=self.receive)
        self.knobs = panes.BaselineKnobs(on_message=self.receive)
        self.outcome = panes.TuningOutcome(on_message=self.receive)
        self.course = panes.TuningCourse(on_message=self.receive)
        self.steps = panes.TuningGrid(on_message=self.receive)
        self.layers = panes.TuningLayers(on_message=self.receive)
        self.trials = panes.TuningTrials(on_message=self.receive)
        self.searches = panes.TuningSearches(on_message=self.receive)
        self.map = panes.TuningMap(on_message=self.receive)
        self.shell = panes.TuningShell(
            top=self.top,
            form=self.form,
            knobs=self.knobs,
            outcome=self.outcome,
            course=self.course,
            steps=self.steps,
            layers=self.layers,
            trials=self.trials,
            searches=self.searches,
            map=self.map,
            pages=list(rail),
            embedded=embedded,
            **own,
        )
        self._files = 0
        verbs: dict[str, Verb] = {
            "open": lambda m: store.open("" if embedded else str(m["link"])),
            "model": lambda m: store.choose_model(str(m["name"])),
            "nfe": lambda m: store.choose_nfe(int(m["value"])),
            "choose": lambda m: store.choose(str(m["name"]), m["value"]),
            "set": lambda m: store.set(**{str(m["knob"]): m["value"]}),
            "preview": lambda m: store.drag(**{str(m["knob"]): m["value"]}),
            "reset": lambda m: store.reset(m.get("knob")),
            "start": lambda m: store.begin(),
            "stop": lambda m: store.halt(store.shown),
            "resume": lambda m: store.resume(store.shown),
            "more": lambda m: store.resume(store.shown, more=int(m.get("trials", 0)) or store.plan.trials),
            "keep": lambda m: store.keep(store.shown),
            "remove": lambda m: store.remove(str(m["name"])),
            "show": lambda m: store.show(str(m["name"])),
            "pick": lambda m: store.pick(None if m.get("number") is None else int(m["number"])),
            "again": lambda m: store.ask_again(),
            "take": lambda m: store.start_from(),
            "export": lambda m: store.export(str(m["form"])),
            "axis": lambda m: store.choose_axis(
                str(m["which"]), **{k: m[k] for k in ("knob", "low", "high") if k in m}
            ),
            "map": lambda m: store.begin_map(),
            "cancel": lambda m: store.cancel_map(),
            "dismiss": lambda m: store.dismiss(),
        }
        self.follow(store, verbs)

    def redraw(self, what: set[str]) -> None:
        store = self.store
        makers = {
            "steps": (self.steps, "data", measured.steps_data),
            "job": (self.map, "job", measured.job_data),
            "top": (self.top, "data", views.top_data),
            "form": (self.form, "data", views.form_data),
            "knobs": (self.knobs, "data", views.knobs_data),
            "outcome": (self.outcome, "data", views.outcome_data),
            "course": (self.course, "data", views.course_data),
            "layers": (self.layers, "data", measured.layers_data),
            "trials": (self.trials, "data", views.trials_data),
            "searches": (self.searches, "data", views.searches_data),
            "map": (self.map, "data", measured.map_data),
            "link": (self.shell, "link", lambda s: s.link()),
        }
        for part, (pane, name, make) in makers.items():
            if part in what:
                pane.param.update(**{name: make(store)})
        if "file" in what and store.download is not None:
            self._files += 1  # the same file twice is two downloads
            self.top.file = {"name": store.download.name, "text": store.download.text, "serial": self._files}
