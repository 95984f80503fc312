"""The Training page's store: what is to be trained next, the runs there are, and the one or two that are looked at.

Runs live in folders and are trained by processes of their own; this only reads the one and tells the other. A thread looks for
what is new a few times a second and hands it to the thread of the page.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from explorer.apps import settings
from explorer.apps.store import Store
from explorer.apps.training import choices, kept
from explorer.apps.training.folder import RunFiles, new_name, put_back, remove, root
from explorer.apps.training.giving import Giving
from explorer.apps.training.launch import Launcher, halt
from explorer.apps.training.own import addressed, described
from explorer.apps.training.own import folder as data_folder
from explorer.apps.training.reading import Card, History, Reader
from explorer.apps.worker import Failure, Worker
from explorer.data import TOYS, is_own, load_dataset
from explorer.errors import BadValue, ExplorerError, UnknownName
from explorer.reproduction.recipe import Paper, Recipe
from explorer.reproduction.run import method_of

LOOK_EVERY = 0.2  # seconds between two looks at the folders
SLOW_EVERY = 5  # every how many looks the curves follow
AXES = ("images", "seconds")
EXTRA = "straightness"
FIRST = "edm"

LAUNCHER = Launcher()


class Trainings(Store):
    """The store of the page. Views watch `version`: "form", "arrived", "runs", "shown", "live", "curves", "pictures",
    "state", "view".

    Args:
        worker, post, heard: as `Store`.
        folder: of the runs; None for the usual one.
        launcher: starts processes.

    Attributes:
        paper, recipe_name, changes: what the form says; `changes` holds only what differs from the recipe.
        given: the user's own data, and models in place of what a recipe needs.
        shown: names of the runs that are looked at, A and B, "" for none.
        by: what the curves run along, "images" or "seconds".
        extra: what the fourth curve shows: "straightness", or a number of the log.
        cards: all runs, newest first.
        removed: where the run lies that was removed last; None when there is nothing to put back.
    """

    def __init__(
        self,
        worker: Worker,
        post: Callable | None = None,
        heard: Callable | None = None,
        *,
        folder: Path | None = None,
        launcher: Launcher | None = None,
    ):
        super().__init__(worker, post, heard)
        self._folder, self._launcher = folder, launcher or LAUNCHER
        self.papers = choices.found()
        self.paper_slug = FIRST if FIRST in self.papers else next(iter(self.papers))
        self.recipe_name = choices.default_recipe(self.paper)
        self.changes: dict[str, Any] = {}
        self.given = Giving(self)
        self.shown = ["", ""]
        self.by, self.extra = "images", EXTRA
        self.cards: list[Card] = []
        self.histories: dict[str, History] = {}
        self.removed: Path | None = None
        self.asked = ""  # the run that this page has started and not seen yet
        self._reader = Reader(folder)
        self._eye: threading.Thread | None = None
        self._shut, self._look_now = threading.Event(), threading.Event()
        self._grown: dict[str, tuple[int, int]] = {}
        self._seen: dict[str, tuple[Path, ...]] = {}
        self.quiet = threading.Lock()  # held while courses are read or drawn

    # What is chosen

    @property
    def folder(self) -> Path:
        return self._folder or root()

    @property
    def paper(self) -> Paper:
        return self.papers[self.paper_slug]

    @property
    def bare_recipe(self) -> Recipe:
        """The recipe as its paper gives it."""
        return self.paper.recipe(self.recipe_name)

    @property
    def plain_recipe(self) -> Recipe:
        """The recipe on the user's data where there are any and it takes them, before its numbers are turned."""
        return self.given.on(self.bare_recipe)[0]

    @property
    def recipe(self) -> Recipe:
        return choices.changed(self.plain_recipe, self.changes)

    @property
    def knobs(self) -> list[choices.Knob]:
        return choices.knobs(self.plain_recipe)

    def card(self, name: str) -> Card | None:
        return next((card for card in self.cards if card.name == name), None)

    def files(self, name: str) -> RunFiles:
        return RunFiles.named(name, self.folder)

    def choose_paper(self, slug: str) -> None:
        self.paper_slug = choices.paper_named(slug).slug if slug in self.papers else self._unknown(slug)
        self.recipe_name, self.changes = choices.default_recipe(self.paper), {}
        self.given.suit()
        self.changed("form", "view")

    def _recipe_of(self, request: dict[str, Any]) -> Recipe:
        return self.papers[request["paper"]].recipe(request["recipe"])

    def _unknown(self, slug: str) -> str:
        raise UnknownName("paper", slug, self.papers)

    def choose_recipe(self, name: str) -> None:
        if name not in self.paper.recipes:
            raise UnknownName(f"recipe of {self.paper_slug}", name, self.paper.recipes)
        self.recipe_name, self.changes = name, {}
        self.given.models = {}
        self.changed("form", "view")

    def learn(self, recipe: str) -> None:
        """The recipe that fits what the user has given."""
        self.recipe_name, self.changes, self.error = recipe, {}, None
        self.changed("form", "state", "view")

    def learn_own(self) -> None:
        """Back to the recipes' own data."""
        self.learn(choices.default_recipe(self.paper))

    def set(self, name: str, value: Any) -> None:
        """Turns a knob of the form; a value that cannot be leaves it as it was and says why."""
        knob = next((k for k in self.knobs if k.name == name), None)
        if knob is None:
            raise UnknownName("knob of this recipe", name, [k.name for k in self.knobs])
        changes = {**self.changes, name: knob.read(value)}
        choices.changed(self.plain_recipe, changes)
        self.changes = {k: v for k, v in changes.items() if v != next(o.value for o in self.knobs if o.name == k)}
        self.error = None
        self.changed("form", "state", "view")

    def reset(self, name: str | None = None) -> None:
        self.changes = {} if name is None else {k: v for k, v in self.changes.items() if k != name}
        self.changed("form", "view")

    # Runs

    def begin(self) -> str:
        """Starts a run of what the form says, looks at it, and returns its name."""
        if self.given.unfit:
            raise BadValue(self.given.unfit)
        recipe, own = self.recipe, self.given.request()
        if own and not recipe.needs:
            method_of(
                recipe, load_dataset(recipe.data), {}, recipe.plan.seed
            )  # what does not fit is said before a folder is made
        name = new_name(f"{self.paper_slug}-{recipe.name if own else self.recipe_name}", self.folder)
        files = RunFiles(self.folder / name)
        files.ask({"paper": self.paper_slug, "recipe": self.recipe_name, "changes": dict(self.changes), **own})
        self.asked = name
        self._launcher.start(files)
        self.error = None
        self.shown[0] = name
        if self.shown[1] == name:
            self.shown[1] = ""
        self._look()
        self.changed("state", "shown", "view")
        return name

    def tell(self, name: str, want: str) -> None:
        """Tells a run to pause, go on or stop."""
        halt(self.files(name), want)
        self._look()

    def resume(self, name: str) -> None:
        """Goes on with a run: one that waits at once, one that has ended from its last checkpoint."""
        files = self.files(name)
        if files.alive:
            files.want("run")
        else:
            self._launcher.start(files)
            self.asked = name
        if name not in self.shown:
            self.shown[0] = name
        self._look()
        self.changed("shown", "view")

    def again(self, name: str, slower: bool = False) -> None:
        """Puts into the form what the run was asked for; `slower` halves its learning rates."""
        request = self.files(name).request
        if request.get("paper") not in self.papers:
            raise BadValue(f"{name} was not started here: its folder does not say how to train it again.")
        data = request.get("data")
        known = data in TOYS and any(k.name == "data" for k in choices.knobs(self._recipe_of(request)))
        if data and not known and not is_own(data):
            raise BadValue(
                f"{name} was trained on {data} from the command line; give that path as your own data to train it again."
            )
        self.given.data = described(str(data)) if data and not known else None
        self.given.fit, self.given.models = None, dict(request.get("models") or {})
        self.paper_slug, self.recipe_name = request["paper"], request["recipe"]
        self.changes = dict(request.get("changes") or {}) | ({"data": data} if known else {})
        if slower:
            rates = [k for k in self.knobs if k.name == "lr" or k.name.startswith("lr.")]
            self.changes |= {k.name: float(f"{self.changes.get(k.name, k.value) / 2:.3g}") for k in rates}
        self.changed("form", "view")

    def keep(self, name: str) -> None:
        """Makes the weights that were measured last a model that every page offers."""
        file = kept.keep(self.files(name), kept.free_name(name))
        self.notice = f"Kept as {file.stem}: every page and command offers it now."
        self.error = None
        self._look()
        self.changed("state", "view")

    def remove(self, name: str) -> None:
        """Moves a run that has ended out of sight; `put_back` brings it back."""
        self.removed = remove(self.files(name))
        self.shown = [other for other in self.shown if other != name]
        self.shown += [""] * (2 - len(self.shown))
        self.notice = f"{name} was removed; it lies in {self.removed} until you delete it there."
        self.error = None
        self._look()
        self.changed("state", "shown", "view")

    def put_back(self) -> None:
        """Brings back the run that was removed last, and looks at it."""
        if self.removed is None:
            raise BadValue("no run was removed on this page.")
        name, self.removed = put_back(self.removed), None
        self.shown[0], self.asked, self.notice = name, name, ""
        self._look()
        self.changed("state", "shown", "view")

    def dismiss(self) -> None:
        self.removed = None
        super().dismiss()

    def show(self, name: str, slot: int = 0) -> None:
        """Looks at a run as A (slot 0) or beside it as B."""
        if slot not in (0, 1):
            raise BadValue(f"there are two places, 0 and 1, not {slot}.")
        if name and self.card(name) is None:
            raise BadValue(f"there is no run {name!r}.")
        other = 1 - slot
        if name and self.shown[other] == name:
            self.shown[other] = self.shown[slot]
        self.shown[slot] = name
        if not self.shown[0] and self.shown[1]:
            self.shown.reverse()
        self._look()
        self.changed("shown", "runs", "view")

    def look(self, by: str | None = None, extra: str | None = None) -> None:
        """How the curves are looked at."""
        if by is not None:
            if by not in AXES:
                raise UnknownName("axis", by, AXES)
            self.by = by
        if extra is not None:
            self.extra = extra
        self.changed("curves", "view")

    # What is new in the folders

    def watch(self) -> None:
        """Begins to look, and lets a process warm up for the first run."""
        if self._eye is None:
            self._launcher.warm()
            self._eye = threading.Thread(target=self._watch, name="explorer-runs", daemon=True)
            self._eye.start()

    def close(self) -> None:
        super().close()
        self.given.close()
        self._shut.set()
        self._look_now.set()

    def _look(self) -> None:
        self._look_now.set()

    def _watch(self) -> None:
        count, taken = 0, threading.Event()
        taken.set()
        while not self._shut.is_set():
            if taken.wait(1.0) or self._shut.is_set():  # one look at a time: a busy page is not flooded
                shown = [name for name in self.shown if name]
                try:
                    self._launcher.reap()
                    cards = self._reader.cards()
                    with self.quiet:
                        fresh = {name: self._reader.history(name) for name in shown if (self.folder / name).is_dir()}
                        self._reader.forget(shown)
                except Exception as error:
                    self._post(lambda error=error: self._say(error))
                else:
                    taken.clear()
                    self._post(lambda c=cards, f=fresh, k=count: (self._take(c, f, k % SLOW_EVERY == 0), taken.set()))
                    count += 1
            if self._look_now.wait(LOOK_EVERY):
                self._look_now.clear()
                count = 0

    def _say(self, error: Exception) -> None:
        self.error = Failure(f"The runs could not be read: {error}", traceback.format_exc())
        self.changed("state")

    def _take(self, cards: list[Card], histories: dict[str, History], slow: bool) -> None:
        what = set()
        if cards != self.cards:
            known = {card.name for card in self.cards}
            what |= {"runs", "live", "view"}  # a kept model is in the address
            if known != {card.name for card in cards}:
                what.add("shown")
            self.cards = cards
        if not any(self.shown) and cards:
            self.shown[0] = next((card.name for card in cards if card.active), cards[0].name)
            what |= {"shown", "view"}
            self._look()
        gone = [i for i, name in enumerate(self.shown) if name and self.card(name) is None and name != self.asked]
        for i in gone:
            self.shown[i] = ""
            what |= {"shown", "view"}
        if self.asked and self.card(self.asked) is not None:
            self.asked = ""
        grown = {name: (len(h.steps), len(h.measures)) for name, h in histories.items()}
        if histories.keys() != self.histories.keys() or any(histories[k] is not self.histories[k] for k in histories):
            what |= {"curves", "pictures"}
            self._grown, self._seen = {}, {}
        self.histories = histories
        if slow and grown != self._grown:
            self._grown = grown
            what |= {"curves", "live"}
        seen = {name: h.pictures for name, h in histories.items()}
        if seen != self._seen:
            self._seen = seen
            what.add("pictures")
        if what:
            self.changed(*what)

    # State in and out

    def link(self) -> str:
        """The whole state as the part of an address after #. Names are this page's own: other pages read addresses too."""
        fields: dict[str, Any] = {"t.paper": self.paper_slug, "t.recipe": self.recipe_name}
        fields |= {f"t.{name}": value for name, value in self.changes.items()}
        if self.given.data is not None:
            here = Path(self.given.data.path).parent == data_folder(self.folder).resolve()
            fields["t.own"] = self.given.data.name if here else self.given.data.path
        fields |= {f"t.with.{role}": model for role, model in self.given.models.items()}
        for letter, name in zip(("run", "beside"), self.shown, strict=True):
            if name:
                fields[letter] = name
        if self.by != AXES[0]:
            fields["by"] = self.by
        if self.extra != EXTRA:
            fields["extra"] = self.extra
        card = self.card(self.shown[0])
        if card is not None and card.kept:
            fields["model"] = card.kept[-1]  # what the other pages open
        return settings.join("training", fields)

    def open(self, link: str) -> None:
        """Restores what `link` wrote; an empty link opens the newest run."""
        fields = settings.split(link)
        try:
            if "t.paper" in fields:
                slug, name = fields["t.paper"], fields.get("t.recipe", "")
                paper = self.papers[slug] if slug in self.papers else self._unknown(slug)
                name = name or choices.default_recipe(paper)
                given = {k[2:]: v for k, v in fields.items() if k.startswith("t.") and k not in ("t.paper", "t.recipe")}
                own, models = given.pop("own", ""), {k[5:]: given.pop(k) for k in list(given) if k.startswith("with.")}
                data, recipe = (addressed(self.folder, own) if own else None), paper.recipe(name)
                self.given.data, self.given.models, self.given.fit = data, models, None
                known = {k.name: k for k in choices.knobs(self.given.on(recipe)[0])}
                if unknown := set(given) - set(known):
                    raise UnknownName("knob of this recipe", unknown.pop(), known)
                self.paper_slug, self.recipe_name = slug, name
                self.changes = {k: known[k].read(v) for k, v in given.items()}
            if fields.get("by", AXES[0]) not in AXES:
                raise UnknownName("axis", fields["by"], AXES)
            self.by, self.extra = fields.get("by", AXES[0]), fields.get("extra", EXTRA)
            wanted = [fields.get("run", ""), fields.get("beside", "")]
            for name in filter(None, wanted):
                self.files(name)
            self.shown = wanted if wanted[0] else [wanted[1], ""]
            self.error = None
        except (ExplorerError, ValueError) as error:
            self.error = Failure(f"This address could not be opened: {error}", f"{link}\n{error}")
        self.watch()
        self._look()
        self.changed("form", "runs", "shown", "live", "curves", "state", "view")

    def texts(self) -> dict[str, str]:
        """The form as a command, and as Python."""
        slug, name, changes, own = self.paper_slug, self.recipe_name, self.changes, self.given.request()
        if self.given.unfit:
            own = {}
        asked = {"paper": slug, "recipe": name, "changes": changes, **own}
        python = (
            "from explorer.apps.training.choices import recipe_of\n"
            "from explorer.reproduction import exported, train_recipe\n\n"
            f"recipe = recipe_of({asked!r})\n"
            f'for tick in train_recipe(recipe, "runs/{slug}-{name}"):\n'
            '    print(f"{tick.fraction:.0%}", tick.logs)\n'
            "model = exported(recipe, tick)\n"
        )
        return {"cli": choices.command(slug, name, changes, **own), "python": python}
