"""The Trajectory Lab: the same noise under up to four samplers, how each moves it, and what each step costs."""

from __future__ import annotations

from collections.abc import Iterable

from explorer.apps import catalogue
from explorer.apps.components import trajectory as panes
from explorer.apps.pages.base import Lab, Verb
from explorer.apps.trajectory import views
from explorer.apps.trajectory.state import Trajectories
from explorer.apps.tuning import kept


class TrajectoryLab(Lab):
    """The panes of this page, and what the browser may ask of it."""

    redraws = {
        "tracks": ("stage", "frames", "top"),
        "knobs": ("knobs", "texts"),
        "state": ("top",),
        "job": ("job",),
        "results": ("frames", "curves", "side"),
        "sight": ("stage", "side"),
        "film": ("film",),
        "view": ("link",),
        "download": ("download",),
    }

    def __init__(self, store: Trajectories, rail: Iterable[dict] = (), embedded: bool = False):
        self.store = store
        own = {"on_message": self.receive, "page_id": str(id(self))}
        self.top = panes.TrajectoryTop(**own)
        self.stage = panes.TrajectoryStage(**own)
        self.curves = panes.TrajectoryCurves(**own)
        self.side = panes.TrajectorySide(**own)
        self.film = panes.TrajectoryFilm(**own)
        self.knobs = panes.TrackKnobs(on_message=self.receive)
        self.shell = panes.TrajectoryShell(
            top=self.top,
            stage=self.stage,
            curves=self.curves,
            side=self.side,
            film=self.film,
            knobs=self.knobs,
            pages=list(rail),
            embedded=embedded,
            **own,
        )
        self._sent: dict[str, object] = {}  # which frames and scenes the browser holds
        self._downloads = 0
        verbs: dict[str, Verb] = {
            "open": lambda m: store.run() if embedded else store.open(str(m["link"])),
            "add": lambda m: store.add(),
            "duplicate": lambda m: store.duplicate(int(m["slot"])),
            "remove": lambda m: store.remove(int(m["slot"])),
            "set": lambda m: store.set(self._slot(m), **{str(m["knob"]): m["value"]}),
            "kept": lambda m: self._take_kept(self._slot(m), str(m["name"])),
            "drag": lambda m: store.drag(self._slot(m), **{str(m["knob"]): m["value"]}),
            "preview": lambda m: store.drag(self._slot(m), **{str(m["knob"]): m["value"]}),
            "reset": lambda m: store.reset(self._slot(m), m.get("knob")),
            "model": lambda m: store.choose_model(m.get("slot"), str(m["name"])),
            "n": lambda m: store.choose_n(int(m["value"])),
            "seed": lambda m: store.choose_seed(int(m["value"])),
            "dice": lambda m: store.dice(),
            "undo": lambda m: store.undo(int(m["slot"])),
            "activate": lambda m: store.activate(m.get("slot")),
            "view": lambda m: store.look(**{k: v for k, v in m.items() if k != "type"}),
            "select": lambda m: store.select(int(m["slot"]), float(m["sigma"]), m["loop"]),
            "clear": lambda m: store.clear(),
            "pick": lambda m: store.follow(m.get("index")),
            "cancel": lambda m: store.cancel(),
            "run": lambda m: store.run(),
            "dismiss": lambda m: store.dismiss(),
            "export": lambda m: store.export(str(m["what"]), str(m["form"]), str(m.get("theme", "light"))),
        }
        self.follow(store, verbs)

    def _take_kept(self, slot: int, name: str) -> None:
        track = self.store.track(slot)
        self.store.set(slot, **kept.values(name, catalogue.model(track.model), track.knobs))

    def _slot(self, message: dict) -> int:
        """The sampler a message is about; the knobs pane speaks of the one that is open."""
        slot = message.get("slot", self.store.active)
        return self.store.tracks[0].slot if slot is None else int(slot)

    def redraw(self, what: set[str]) -> None:
        store = self.store
        makers = {
            "top": (self.top, "data", views.top_data),
            "job": (self.top, "job", views.job_data),
            "stage": (self.stage, "data", views.stage_data),
            "frames": (self.stage, "", None),
            "knobs": (self.knobs, "data", views.knobs_data),
            "texts": (self.top, "texts", views.texts),
            "curves": (self.curves, "data", views.curves_data),
            "side": (self.side, "data", views.side_data),
            "film": (self.film, "data", views.film_data),
            "link": (self.shell, "link", lambda s: s.link()),
        }
        for part, (pane, name, make) in makers.items():  # what moves first
            if part not in what:
                continue
            if part == "frames":
                self._send_blocks()
            else:
                pane.param.update(**{name: make(store)})
        if "film" in what:
            self.shell.images = store.kind == "images"
        if "knobs" in what:
            self.shell.open = "" if store.active is None else store.track(store.active).letter
        if "download" in what and store.download is not None:
            self._downloads += 1  # the same file twice is two downloads
            self.top.download = views.download_block(store.download, self._downloads)

    def _send_blocks(self) -> None:
        """Frames and scenes of the samplers whose own have changed, and of no other."""
        blocks = {}
        for track in self.store.tracks:
            run = track.shown
            if run is None:
                continue
            for name, key, make in (
                (f"frames_{track.slot}", (run.setting.key, run.n, run.n_done), lambda run=run: views.frames_block(run)),
                (f"scene_{track.slot}", run.scene, lambda run=run: views.scene_block(run.scene)),
            ):
                if key is not None and self._sent.get(name) != key:
                    self._sent[name], blocks[name] = key, make()
        if blocks:
            self.stage.param.update(**blocks)
