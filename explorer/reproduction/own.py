"""A paper's recipe on other data than the paper's: which recipe fits, and what changes with the data.

Written sd, sd': standard deviation of the recipe's data and of the others, c = sd' / sd. If x' = c x in law and sigma' = c sigma, then
    D'(c x; c sigma) = c D(x; sigma),   c_in' c x = c_in x,   lambda' = lambda / c^2,   lambda' |D' - x0'|^2 = lambda |D - x0|^2,
so that EDM's problem on the others is the same one, shifted by ln c in ln sigma, if ln sigma' has the law of ln sigma + ln c:
    P_mean' = P_mean + ln(sd' / sd),   P_std' = P_std,   sigma_i' = c sigma_i of the sampler's grid.
Karras et al. 2022 (arXiv 2206.00364), Sec. 5 and Table 1; Appendix B.6 derives preconditioning and weight, in which sigma appears by
sigma / sd only, but for c_noise = ln(sigma) / 4, a name for the level that the network learns.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Mapping
from pathlib import Path

from explorer.data import FRACTALS, SOURCES, Dataset, load_dataset, names
from explorer.errors import BadValue, ExplorerError, UnknownName
from explorer.models import bundled
from explorer.reproduction.needs import Checkpoint, Exact
from explorer.reproduction.recipe import Bundled, Given, Need, Paper, Recipe, Trained
from explorer.reproduction.rehearsal import SHAPES, shape_of
from explorer.reproduction.run import method_of
from explorer.sampling import OdeSampler, Sampler

SAME_SCALE = 0.05
"""|ln(sd' / sd)| up to which nothing moves: papers give P_mean to one decimal."""

COVERED = 32.0
"""The sampler's levels cover data from sd / 32 to 32 sd: a thousandth of the variance is left unresolved at either end."""

PUBLISHED_SIGMA = 0.5  # Karras et al. 2022 take it for every set of images, and so do those who followed


def on_data(recipe: Recipe, name: str, models: Mapping[str, str] | None = None) -> Recipe:
    """The recipe on another data set; what must be trained or made before it is then trained on or made of these data, too.

    Its numbers stay those of the paper's data, but for the levels of noise, which move with the scale of the data (see above) where the
    recipe's method reads a setting `p_mean`; `scale_words` says so. The model's name says the data: "toy-8gaussians-2rf" on ring.csv is
    "toy-ring-2rf".

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
    recipe = _scaled(recipe, data.sigma_data)
    return dataclasses.replace(recipe, data=name, needs=needs, name=_renamed(recipe, name))


def scale_words(plain: Recipe, moved: Recipe) -> str:
    """What `on_data` has changed for the scale of the data, in one line; empty where nothing was, or where the user has set it anew.

    Args:
        plain: the recipe as its paper gives it.
    """
    if plain.data == moved.data or "p_mean" not in plain.settings:
        return ""
    was, now = sigma_of(plain), load_dataset(moved.data).sigma_data
    old, new = plain.settings["p_mean"], moved.settings["p_mean"]
    if old == new or new != _moved_mean(old, was, now):
        return ""
    grid = ", and so do the sampler's levels" if moved.sampler != plain.sampler else ""
    return (
        f"P_mean {new:.4g} in place of {old:.4g}, as sigma_data is {now:.3g} in place of {was:.3g}{grid}; "
        f"--set settings.p_mean={old:g} keeps the recipe's."
    )


def sigma_of(recipe: Recipe) -> float:
    """The standard deviation for which a recipe's levels of noise were chosen: that of its data."""
    return PUBLISHED_SIGMA if recipe.data in SHAPES else load_dataset(recipe.data).sigma_data


def reads(recipe: Recipe, setting: str) -> bool:
    """Whether the recipe's method takes this number from the very mapping that the recipe states as its settings."""
    if not isinstance(recipe.settings, dict) or setting not in recipe.settings:
        return False
    cells = inspect.getclosurevars(recipe.method).nonlocals if inspect.isfunction(recipe.method) else {}
    return setting not in cells and any(value is recipe.settings for value in cells.values())


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


def _scaled(recipe: Recipe, sigma: float) -> Recipe:
    """The recipe with its levels of noise moved to data of this standard deviation.

    Its settings are changed in place, as that is where its method reads them.
    """
    was = sigma_of(recipe)
    if not reads(recipe, "p_mean") or abs(math.log(sigma / was)) <= SAME_SCALE:
        return recipe
    recipe.settings["p_mean"] = _moved_mean(recipe.settings["p_mean"], was, sigma)
    sampler = None if recipe.sampler is None else _covering(recipe.sampler, was, sigma)
    return dataclasses.replace(recipe, sampler=sampler, more=tuple(_covering(s, was, sigma) for s in recipe.more))


def _moved_mean(p_mean: float, was: float, now: float) -> float:
    return round(p_mean + math.log(now / was), 4)


def _covering(sampler: Sampler, was: float, now: float) -> Sampler:
    """The sampler with every level times now / was, if its own cover data of the one standard deviation and not of the other."""
    if not isinstance(sampler, OdeSampler) or sampler.grid.coordinate != "sigma":
        return sampler
    levels = [t for t in sampler.grid.times if t > 0]

    def cover(sd: float) -> bool:
        return min(levels) <= sd / COVERED and max(levels) >= sd * COVERED

    if cover(now) or not cover(was):
        return sampler
    grid = dataclasses.replace(sampler.grid, times=tuple(t * now / was for t in sampler.grid.times))
    return dataclasses.replace(sampler, grid=grid)


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
