"""A paper's recipe on other data than the paper's: which recipe fits, and what changes with the data."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from explorer.data import FRACTALS, SOURCES, Dataset, load_dataset, names
from explorer.errors import BadValue, ExplorerError, UnknownName
from explorer.models import bundled
from explorer.reproduction.needs import Checkpoint, Exact
from explorer.reproduction.recipe import Bundled, Given, Need, Paper, Recipe, Trained
from explorer.reproduction.rehearsal import shape_of
from explorer.reproduction.run import method_of


def on_data(recipe: Recipe, name: str, models: Mapping[str, str] | None = None) -> Recipe:
    """The recipe on another data set; what must be trained or made before it is then trained on or made of these data, too.

    Its numbers stay those of the paper's data. The model's name says the data: "toy-8gaussians-2rf" on ring.csv is "toy-ring-2rf".

    Args:
        name: of a data set, or the path of the user's own, see `explorer.data.load_dataset`.
        models: which model (a name, or a file NAME.safetensors) stands for what the recipe needs, by the need's name.
    Raises:
        BadValue: points for pictures or the reverse; it needs a model that has learnt other data, and none is given. Whether its
            networks fit the samples, only building them tells, see `method_of`.
    """
    name = located(name)
    recipe = by_models(recipe, models or {})
    if name == recipe.data:
        return recipe
    (mine, _), data = shape_of(recipe.data), load_dataset(name)
    if len(mine) != len(data.shape):
        raise BadValue(
            f"recipe {recipe.name!r} is for samples of shape {mine} like {recipe.data}; {data.name} has {data.shape}: choose a recipe "
            "made for it."
        )
    needs = {role: _moved(recipe, role, need, name) for role, need in recipe.needs.items()}
    return dataclasses.replace(recipe, data=name, needs=needs, name=_renamed(recipe, name))


def by_models(recipe: Recipe, models: Mapping[str, str]) -> Recipe:
    """The recipe with these models in place of its own, by the names of its needs; pairs are then made by them, too.

    Raises:
        UnknownName: it has no such need, or there is no such model.
        BadValue: the need is no model and is not made by one.
    """
    swaps = {}
    for role, model in models.items():
        if role not in recipe.needs:
            raise UnknownName(f"need of recipe {recipe.name!r}", role, recipe.needs)
        if not isinstance(old := recipe.needs[role].source, Bundled | Trained | Checkpoint | Exact):
            raise BadValue(f"{role} of recipe {recipe.name!r} is no model and is not made by one.")
        swaps[role] = old, Given(located(model))
        swaps[role][1].describe()  # there is such a model
    needs = dict(recipe.needs)
    for role in needs:  # one that is named takes its own model, whichever it shared with another
        for old, new in [swaps[role]] if role in swaps else swaps.values():
            needs[role] = needs[role].swapped(old, new)
    return dataclasses.replace(recipe, needs=needs)


def chosen(
    paper: Paper, recipe: str | None, data: str | None, models: Mapping[str, str] | None = None
) -> tuple[str, str | None]:
    """Which recipe to train, and on which other data, if on other ones.

    Args:
        recipe: the user's choice; None for the one that fits the data.
        data: a recipe by the data it is for, or a data set; None for the recipe's own.
    Raises:
        UnknownName: neither a recipe nor a data set.
    """
    if data is None or (recipe is None and data in paper.recipes):
        return recipe or data or "digits", None
    if recipe is not None and located(data) == paper.recipe(recipe).data:
        return recipe, None  # need not be on this machine
    try:
        load_dataset(data)
    except UnknownName:
        if recipe is None and not Path(data).exists():
            raise UnknownName(
                f"recipe of {paper.slug}, or data set", data, dict.fromkeys((*paper.recipes, *names()))
            ) from None
        raise
    recipe = recipe or fitting(paper, data, models)
    return recipe, None if located(data) == paper.recipe(recipe).data else located(data)


def fitting(paper: Paper, name: str, models: Mapping[str, str] | None = None) -> str:
    """Name of the first, and so smallest, of a paper's recipes that can be trained on these data.

    Recipes for samples of the same shape come first, then those whose networks adapt to another one.

    Raises:
        BadValue: none can.
    """
    data, other = load_dataset(name), []
    for known in paper.recipes:
        recipe = paper.recipe(known)
        shape, _ = shape_of(recipe.data)
        if len(shape) != len(data.shape) or not set(models or ()) <= set(recipe.needs):
            continue
        if shape != data.shape:
            other.append(known)
        elif _fits(recipe, data, name, models):
            return known
    for known in other:
        if _fits(paper.recipe(known), data, name, models):
            return known
    about = f"{data.name} (samples of shape {data.shape}, {data.n_classes or 'no'} classes)"
    raise BadValue(
        f"no recipe of {paper.slug} can be trained on {about} as it is. Its recipes are {', '.join(paper.recipes)}: name one with "
        "--recipe, and what it needs with --with."
    )


def located(name: str) -> str:
    """A name as it is, a path of something that exists made absolute, so that a run resumes from anywhere."""
    path = Path(name).expanduser()
    known = (*names(), *FRACTALS, *SOURCES, *bundled.names())
    return str(path.resolve()) if name not in known and path.exists() else name


def _fits(recipe: Recipe, data: Dataset, name: str, models: Mapping[str, str] | None) -> bool:
    try:
        recipe = on_data(recipe, name, models)
        if not recipe.needs:
            method_of(recipe, data, {}, recipe.plan.seed)
        return True
    except ExplorerError:
        return False


def _moved(recipe: Recipe, role: str, need: Need, name: str) -> Need:
    try:
        return need.on(name)
    except BadValue as problem:
        raise BadValue(
            f"recipe {recipe.name!r} needs {role}: {problem} Train one on your data (explorer train edm --data {name}) and give it: "
            f"--with {role}=FILE.safetensors."
        ) from None


def _renamed(recipe: Recipe, name: str) -> str:
    """The recipe's name with the new data in place of the old."""
    stem = Path(name).name
    stem = stem[: -len("".join(Path(stem).suffixes))] if Path(stem).suffixes else stem
    title = re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._") or "own"
    moved = recipe.name.replace(recipe.data, title, 1) if recipe.data in recipe.name else f"{recipe.name}-{title}"
    return moved[:60]
