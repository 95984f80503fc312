"""What a user has given the Training page to learn: data that arrive, the recipe that fits them, models in place of a recipe's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from explorer.apps.training import choices, own
from explorer.apps.training.own import Fit, Own, Upload
from explorer.apps.worker import Failure
from explorer.errors import BadValue, ExplorerError, UnknownName
from explorer.reproduction.own import by_models, on_data
from explorer.reproduction.recipe import Recipe

if TYPE_CHECKING:
    from explorer.apps.training.state import Trainings


class Giving:
    """The user's own data on one page. Changes are told to its store as "form", files are read by the store's job.

    Attributes:
        data: what has been given; None while recipes learn their own data.
        models: which model stands for what the recipe needs, by the need's name.
        fit: which recipe suits the data; None until that is known.
        doing: what happens to a file now, in words; "" for nothing.
        refused: why the last file was not taken; it stands where the file was given.
        arrived: {"id", "at"} of the upload whose next part is awaited.
    """

    def __init__(self, store: Trainings):
        self._store = store
        self.data: Own | None = None
        self.models: dict[str, str] = {}
        self.fit: Fit | None = None
        self.doing, self.refused = "", ""
        self.arrived: dict[str, Any] = {}
        self._upload: Upload | None = None
        self._reading: Upload | None = None  # whole, and on its way to being kept

    # Files

    def announce(self, id: str, name: str, size: int, side: Any = None) -> None:
        """A file is about to come in parts; another one that was on its way is forgotten."""
        self.close()
        self.refused, self._side, self._id = "", _side(side), id
        try:
            self._upload = Upload(self._store.folder, name, size)
        except ExplorerError as problem:
            self._refuse(problem)
            return
        self._wait_for_more()

    def part(self, id: str, at: int, content: str) -> None:
        """The next part of it; after the last one the file is read."""
        upload = self._upload
        if upload is None or id != self._id:
            return  # of a file that is not wanted any more
        try:
            upload.add(at, content)
        except ExplorerError as problem:
            self._refuse(problem)
            return
        if not upload.whole:
            self._wait_for_more()
            return
        self._upload, self._reading, runs, side = None, upload, self._store.folder, self._side

        def read() -> Own:
            try:
                return own.taken(runs, upload.file, upload.name, side)
            except ExplorerError as problem:  # by the name that the user knows
                raise BadValue(
                    str(problem).replace(str(upload.file), upload.name).replace(upload.file.name, upload.name)
                ) from None
            finally:
                upload.drop()

        self._take(f"reading {upload.name}", read)

    def path(self, text: str, side: Any = None) -> None:
        """A file or folder on this machine, by its path."""
        self.close()
        runs, side, self.refused = self._store.folder, _side(side), ""
        self._take(f"reading {text.strip()[:60]}", lambda: own.typed(runs, text, side))

    def choose(self, name: str) -> None:
        """Data that were given before; "" for the recipe's own."""
        self.close()
        self.refused = ""
        if name:
            runs = self._store.folder
            self._take(f"reading {name}", lambda: own.named(runs, name))
        else:
            self.data, self.models, self.fit = None, {}, None
            self._store.learn_own()

    def close(self) -> None:
        """Forgets a file that has not arrived whole, or is being read."""
        if self.doing:
            self._store.stop()
        for upload in filter(None, (self._upload, self._reading)):
            upload.drop()
        self._upload, self._reading, self.arrived, self.doing = None, None, {}, ""

    def _wait_for_more(self) -> None:
        upload = self._upload
        self.arrived = {"id": self._id, "at": upload.at}
        self.doing = f"{upload.name}: {upload.at / upload.size:.0%} has arrived"
        self._store.changed("arrived")

    def _take(self, words: str, read) -> None:
        self.doing, paper, models = words, self._store.paper, {}
        self.arrived = {}

        def make(job) -> Iterator[tuple[Own, Fit]]:
            found = read()
            yield found, own.fit(paper, found, models)

        def take(result: tuple[Own, Fit]) -> None:
            self.data, self.fit = result
            self.models = models
            if self._store.paper_slug != paper.slug:  # another method was chosen meanwhile
                self.suit()
            else:
                self._store.learn(self.fit.recipe)

        self._store.start(make, take, self._ended)
        self._store.changed("form", "arrived")

    def _ended(self, failure: Failure | None) -> None:
        self.doing, self._reading = "", None
        if failure is not None:
            self.refused = failure.text
        self._store.changed("form", "arrived")

    def _refuse(self, problem: ExplorerError) -> None:
        self.close()
        self.refused = str(problem)
        self._store.changed("form", "arrived")

    # Recipes

    def suit(self) -> None:
        """Looks for the recipe of another paper that fits the data."""
        if self.data is None:
            return
        found, paper = self.data, self._store.paper
        self.models, self.fit, self.doing = {}, None, "looking for the recipe that fits"

        def take(result: Fit) -> None:
            self.fit = result
            self._store.learn(result.recipe)

        self._store.start(lambda job: iter([own.fit(paper, found, {})]), take, self._ended)
        self._store.changed("arrived")

    def give(self, role: str, model: str) -> None:
        """A model in place of what the recipe needs; "" for the recipe's own.

        Raises:
            UnknownName: it needs nothing of that name; BadValue: that is no model, or is for other samples.
        """
        recipe = self._store.bare_recipe
        if role not in recipe.needs:
            raise UnknownName(f"need of recipe {recipe.name!r}", role, recipe.needs)
        models = {k: v for k, v in self.models.items() if k != role} | ({role: model} if model else {})
        by_models(recipe, models)
        if model and self.data is not None and own.shape_made(model) not in (None, self.data.shape):
            raise BadValue(
                f"{Path(model).name} is for samples of shape {own.shape_made(model)}, not {self.data.shape}."
            )
        self.models = models
        self._store.changed("form", "view")

    def on(self, recipe: Recipe) -> tuple[Recipe, str]:
        """The recipe on what was given, and why it cannot be; then the recipe as it is."""
        try:
            if self.data is None:
                return by_models(recipe, self.models), ""
            return on_data(recipe, self.data.path, self.models), ""
        except ExplorerError as problem:
            words, cut, _ = str(problem).partition(" Train one on your data")
            return recipe, words + (
                " Choose one above that has learnt these data, or train it first (method edm)." if cut else ""
            )

    @property
    def unfit(self) -> str:
        """Why the recipe that is chosen cannot learn these data; empty where it can, or where only building it tells."""
        _, why = self.on(self._store.bare_recipe)
        if why or self.data is None or self.fit is None:
            return why
        alone = self._store.recipe_name == self.fit.recipe and not self.models
        return self.fit.why_not.partition(" Its recipes are")[0] if alone else ""

    def roles(self) -> list[dict[str, Any]]:
        """What the recipe needs that a model may stand for: name, what is given, and what could be."""
        recipe, out = self._store.bare_recipe, []
        roles = choices.replaceable(recipe)
        if not roles or self.data is None:
            return out
        runs = [self._store.folder / card.name for card in self._store.cards if not card.unkeepable]
        offered = own.teachers(self.data.shape, runs)
        for role in roles:
            out.append({"name": role, "value": self.models.get(role, ""), "options": offered})
        return out

    def request(self) -> dict[str, Any]:
        """What a run's request says of it."""
        return ({} if self.data is None else {"data": self.data.path}) | (
            {"models": dict(self.models)} if self.models else {}
        )


def _side(given: Any) -> int | None:
    if given in (None, "", 0):
        return None
    if int(given) not in own.SIDES:
        raise UnknownName("size of pictures", given, map(str, own.SIDES))
    return int(given)
