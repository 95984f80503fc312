"""The Sampler Lab: turn one knob, see what moved, and know whether the difference is real."""

from __future__ import annotations

from collections.abc import Iterable

from explorer.apps import components, views
from explorer.apps.pages.base import Lab, Verb
from explorer.apps.session import Session
from explorer.apps.tuning import kept


class SamplerLab(Lab):
    """The panes of this page, and what the browser may ask of it."""

    redraws = {
        "state": ("top", "knobs", "texts", "link", "selected"),
        "job": ("job",),
        "result": ("hero", "samples", "steps", "history", "texts"),
        "ghost": ("ghost", "samples"),
        "film": ("film",),
    }

    def __init__(self, session: Session, rail: Iterable[dict] = (), embedded: bool = False):
        self.session = session
        page_id = str(id(self))
        self.top = components.Top(on_message=self.receive)
        self.knobs = components.Knobs(on_message=self.receive)
        self.samples = components.Samples(on_message=self.receive, page_id=page_id)
        self.steps = components.Steps(on_message=self.receive, page_id=page_id)
        self.history = components.History(on_message=self.receive)
        self.shell = components.Shell(
            top=self.top,
            knobs=self.knobs,
            samples=self.samples,
            steps=self.steps,
            history=self.history,
            pages=list(rail),
            page_id=page_id,
            embedded=embedded,
            on_message=self.receive,
        )
        verbs: dict[str, Verb] = {
            "open": lambda m: session.run() if embedded else session.open(str(m["link"])),
            "set": lambda m: session.set(**{str(m["knob"]): m["value"]}),
            "kept": lambda m: session.set(**kept.values(str(m["name"]), session.model, session.knobs)),
            "preview": lambda m: session.preview(**{str(m["knob"]): m["value"]}),
            "reset": lambda m: session.reset(m.get("knob")),
            "model": lambda m: session.choose_model(str(m["name"])),
            "n": lambda m: session.choose_n(int(m["value"])),
            "dice": lambda m: session.dice(),
            "pin": lambda m: session.pin(),
            "unpin": lambda m: session.unpin(),
            "recall": lambda m: session.recall(str(m["key"])),
            "clear": lambda m: session.clear(),
            "cancel": lambda m: session.cancel(),
            "run": lambda m: session.run(),
            "fix": lambda m: session.undo(),
            "dismiss": lambda m: session.dismiss(),
            "film": lambda m: session.show_film(int(m["index"])),
            "import": lambda m: session.from_json(str(m["text"])),
        }
        self.follow(session, verbs)

    def redraw(self, what: set[str]) -> None:
        session = self.session
        makers = {
            "top": (self.top, "data", views.top_data),
            "job": (self.top, "job", views.job_data),
            "knobs": (self.knobs, "data", views.knobs_data),
            "texts": (self.knobs, "texts", views.texts),
            "link": (self.shell, "link", lambda s: s.link()),
            "selected": (self.samples, "selected", lambda s: s.film_index),
            "ghost": (self.steps, "ghost", views.ghost_data),
            "hero": (self.top, "hero", views.hero_data),
            "samples": (self.samples, "data", views.samples_data),
            "steps": (self.steps, "data", views.steps_data),
            "film": (self.steps, "film", views.film_data),
            "history": (self.history, "data", views.history_data),
        }
        for part, (pane, name, make) in makers.items():  # what is cheap and what can be copied first
            if part in what:
                pane.param.update(**{name: make(session)})
