"""The Training page: pick a method and data, press start, and watch what the averaged weights have learnt so far."""

from __future__ import annotations

from collections.abc import Iterable

from explorer.apps.components import training as panes
from explorer.apps.pages.base import Lab, Verb
from explorer.apps.training import blocks, views
from explorer.apps.training.state import Trainings


class TrainingLab(Lab):
    """The panes of this page, and what the browser may ask of it."""

    redraws = {
        "form": ("form", "top", "stage"),
        "arrived": ("arrived",),
        "runs": ("runs", "top"),
        "shown": ("top", "runs", "stage", "strips", "curves", "books"),
        "live": ("stage",),
        "curves": ("curves", "strips"),
        "pictures": ("books",),
        "state": ("top",),
        "job": (),
        "view": ("link", "top"),
    }

    def __init__(self, store: Trainings, rail: Iterable[dict] = (), embedded: bool = False):
        self.store, given = store, store.given
        own = {"on_message": self.receive, "page_id": str(id(self))}
        self.top = panes.TrainingTop(**own)
        self.form = panes.TrainingForm(on_message=self.receive)
        self.runs = panes.TrainingRuns(on_message=self.receive)
        self.stage = panes.TrainingStage(**own)
        self.strips = panes.TrainingStrips(**own)
        self.curves = panes.TrainingCurves(**own)
        self.shell = panes.TrainingShell(
            top=self.top,
            form=self.form,
            runs=self.runs,
            stage=self.stage,
            strips=self.strips,
            curves=self.curves,
            pages=list(rail),
            embedded=embedded,
            **own,
        )
        self._have: list[tuple[str, list[str]]] = [("", []), ("", [])]  # by slot: run and pictures the browser holds
        self._coming = [False, False]  # a block is on its way
        self._nets = ["", ""]
        verbs: dict[str, Verb] = {
            "open": lambda m: store.open("" if embedded else str(m["link"])),
            "paper": lambda m: store.choose_paper(str(m["name"])),
            "recipe": lambda m: store.choose_recipe(str(m["name"])),
            "set": lambda m: store.set(str(m["knob"]), m["value"]),
            "reset": lambda m: store.reset(m.get("knob")),
            "upload": lambda m: given.announce(str(m["id"]), str(m["name"]), int(m["size"]), m.get("side")),
            "part": lambda m: given.part(str(m["id"]), int(m["at"]), str(m["part"])),
            "path": lambda m: given.path(str(m["path"]), m.get("side")),
            "own": lambda m: given.choose(str(m["name"])),
            "give": lambda m: given.give(str(m["role"]), str(m["model"])),
            "start": lambda m: store.begin(),
            "pause": lambda m: store.tell(str(m["name"]), "pause"),
            "stop": lambda m: store.tell(str(m["name"]), "stop"),
            "resume": lambda m: store.resume(str(m["name"])),
            "keep": lambda m: store.keep(str(m["name"])),
            "remove": lambda m: store.remove(str(m["name"])),
            "put-back": lambda m: store.put_back(),
            "again": lambda m: store.again(str(m["name"])),
            "slower": lambda m: (store.again(str(m["name"]), slower=True), store.begin()),
            "show": lambda m: store.show(str(m["name"]), int(m.get("slot", 0))),
            "look": lambda m: store.look(m.get("by"), m.get("extra")),
            "net": lambda m: self._choose_net(int(m["slot"]), str(m["name"])),
            "have": lambda m: self._arrived(int(m["slot"]), bool(m.get("taken", True))),
            "dismiss": lambda m: store.dismiss(),
        }
        self.follow(store, verbs)

    def redraw(self, what: set[str]) -> None:
        store = self.store
        makers = {
            "stage": (self.stage, "data", views.stage_data),
            "runs": (self.runs, "data", views.runs_data),
            "top": (self.top, "data", views.top_data),
            "form": (self.form, "data", views.form_data),
            "arrived": (self.form, "arrived", views.arrived_data),
            "curves": (self.curves, "data", views.curves_data),
            "link": (self.shell, "link", lambda s: s.link()),
        }
        with store.quiet:
            for part, (pane, name, make) in makers.items():
                if part in what:
                    pane.param.update(**{name: make(store)})
            if "books" in what:
                self._send_books()
            if "strips" in what:
                self._send_strips()

    def _send_strips(self) -> None:
        found = {f"strip_{slot}": blocks.strip_block(self.store, slot, self._nets[slot]) for slot in (0, 1)}
        self.strips.param.update(data={"by": self.store.by, "shown": list(self.store.shown)}, **found)

    def _choose_net(self, slot: int, name: str) -> None:
        self._nets[slot] = name
        self.redraw({"strips"})

    def _send_books(self) -> None:
        for slot, name in enumerate(self.store.shown):
            if not name:
                self._have[slot] = ("", [])  # the browser closes the book
            if not name or self._coming[slot]:
                continue  # the next block follows when this one has arrived
            run, have = self._have[slot]
            found = blocks.book_block(self.store, slot, have if run == name else [])
            if found is not None:
                block, sent = found
                self._have[slot], self._coming[slot] = (name, sent), True
                self.stage.param.update(**{f"book_{slot}": block})

    def _arrived(self, slot: int, taken: bool) -> None:
        """The browser has a block; one of a run that is not looked at any more it has not taken."""
        self._coming[slot] = False
        if not taken:
            self._have[slot] = ("", [])
        self.redraw({"books"})
