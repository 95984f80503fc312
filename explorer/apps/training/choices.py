"""What can be chosen before a run: a paper, one of its recipes, and the numbers that a user may turn in it."""

from __future__ import annotations

import dataclasses
import inspect
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from explorer import papers
from explorer.data import TOYS, load_dataset
from explorer.errors import BadValue, UnknownName
from explorer.reproduction.needs import Checkpoint, Exact
from explorer.reproduction.own import by_models, on_data, reads
from explorer.reproduction.recipe import Bundled, Paper, Recipe, Trained
from explorer.reproduction.rehearsal import shape_of
from explorer.reproduction.run import override
from explorer.training.plan import EmaPlan, Plan

SETTING = "set."
"""Prefix of the method's own numbers among the knobs, e.g. "set.p_mean"."""


@dataclass(frozen=True)
class Knob:
    """A number of a recipe that a user may turn.

    Attributes:
        name: as in `changes`, in addresses and in requests.
        kind: "integer", "float", "flag", or "choice" among `options`.
        value: the recipe's own.
        low: smallest value that is allowed, itself included unless `open`.
        group: under which heading it stands.
        reason: why it cannot be turned; empty where it can.
    """

    name: str
    title: str
    kind: str
    value: Any
    doc: str
    group: str = "Plan"
    unit: str = ""
    low: float = -math.inf
    open: bool = False
    optional: bool = False
    reason: str = ""
    options: tuple[str, ...] = ()

    def read(self, given: Any) -> Any:
        """The value a user means.

        Raises:
            BadValue: it cannot be read, or is out of range.
        """
        if given is None or (isinstance(given, str) and given.strip().lower() in ("", "none")):
            if self.optional:
                return None
            raise BadValue(f"{self.title} needs a value; the recipe's is {self.value}.")
        if self.kind == "choice":
            if given not in self.options:
                raise UnknownName(self.title, given, self.options)
            return str(given)
        if self.kind == "flag":
            text = str(given).lower()
            if text not in ("true", "false"):
                raise BadValue(f"{self.title} is on or off (true, false); got {given!r}.")
            return text == "true"
        try:
            value = float(given)
        except (TypeError, ValueError):
            raise BadValue(f"{self.title} = {given!r} is no number.") from None
        if not math.isfinite(value) or value < self.low or (self.open and value == self.low):
            word = "above" if self.open else "at least"
            raise BadValue(f"{self.title} = {given} cannot be: expected a number {word} {self.low:g}.")
        if self.kind == "integer":
            if value != int(value):
                raise BadValue(f"{self.title} = {given}: expected a whole number.")
            return int(value)
        return value


@lru_cache(maxsize=1)
def found() -> dict[str, Paper]:
    """Papers that can be imported and have recipes, by slug; one whose file is broken is left out."""
    out = {}
    for slug in papers.names():
        try:
            paper = papers.paper(slug)
        except Exception:  # one file that does not import must not take the page down
            continue
        if paper.recipes:
            out[slug] = paper
    return out


def paper_named(slug: str) -> Paper:
    if slug not in found():
        raise UnknownName("paper", slug, found())
    return found()[slug]


def default_recipe(paper: Paper) -> str:
    """The one that shows most within a minute: a toy of the plane where there is one."""
    return next((name for name in paper.recipes if name.startswith("toy-")), paper.recipes[0])


def recipes(paper: Paper) -> list[str]:
    """Names of recipes, without those that stand for another one."""
    toys = [name for name in paper.recipes if name.startswith("toy-")]
    return [name for name in paper.recipes if name != "toy" or not toys]


def datasets(recipe: Recipe) -> tuple[str, ...]:
    """Data sets of the plane on which the recipe can be trained as well as on its own, which comes first."""
    own = recipe.data
    if own not in TOYS or recipe.needs:  # a teacher knows its own data only
        return (own,)
    return (own, *(name for name in TOYS if name != own and _labelled(name) == _labelled(own)))


@lru_cache(maxsize=32)
def _labelled(name: str) -> bool:
    return load_dataset(name).n_classes > 0


def is_toy(recipe: Recipe) -> bool:
    """Whether it learns points, which are too few numbers for more than one thread."""
    return recipe.data in TOYS or len(shape_of(recipe.data)[0]) == 1


def replaceable(recipe: Recipe) -> list[str]:
    """What the recipe needs that a model of the user's may stand for, see `explorer.reproduction.own.by_models`."""
    kinds = Bundled | Trained | Checkpoint | Exact
    return [role for role, need in recipe.needs.items() if isinstance(need.source, kinds)]


def knobs(recipe: Recipe) -> list[Knob]:
    """What may be turned, in the order in which it is shown."""
    plan, own = recipe.plan, []
    docs = _docs(Plan)
    if len(same := datasets(recipe)) > 1:
        own.append(Knob("data", "data", "choice", recipe.data, "Which points are learnt.", options=same))
    own += [
        Knob("steps", "steps", "integer", plan.n_steps, docs["n_steps"], low=1),
        Knob("minutes", "minutes", "float", plan.minutes, docs["minutes"], unit="min", low=0, open=True, optional=True),
        Knob("batch", "batch", "integer", plan.batch_size, "Images per step.", unit="images", low=1),
        Knob("seed", "seed", "integer", plan.seed, "Of initialisation, data order and noise.", low=0),
    ]
    rates = {"lr": plan.optimizer.lr, **{f"lr.{net}": o.lr for net, o in plan.optimizers.items()}}
    about = "Peak learning rate; warm-up and decay stay the recipe's."
    for name, lr in rates.items():
        net = name.partition(".")[2]
        own.append(Knob(name, f"lr {net}".strip(), "float", lr, about, group="Optimizer", low=0, open=True))
    if (ema := _ema(recipe)) is not None and ema.sigma_rel is None:
        words = (
            "Images after which a weight's share in the average has halved; the samples on this page are the average's."
        )
        own.append(
            Knob(
                "half_life",
                "EMA half-life",
                "float",
                ema.half_life,
                words,
                group="Optimizer",
                unit="images",
                low=0,
                open=True,
            )
        )
    for name, value in recipe.settings.items():
        kind = next((k for t, k in ((bool, "flag"), (int, "integer"), (float, "float")) if isinstance(value, t)), "")
        if not kind:
            continue
        reason = "" if reads(recipe, name) else "The method of this recipe does not read this setting from the recipe."
        where = f"A number of the method itself; the recipe says {value}."
        own.append(Knob(SETTING + name, name.replace("_", " "), kind, value, where, group="Method", reason=reason))
    return own


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with other values, e.g. {"steps": 500, "lr": 1e-3, "set.p_mean": -1.0}.

    Args:
        recipe: fresh from its paper; its settings are changed in place, as that is where its method reads them.
    Raises:
        UnknownName: no such knob; BadValue: a value out of range, or of a knob that cannot be turned.
    """
    known = {knob.name: knob for knob in knobs(recipe)}
    values = {}
    for name, given in changes.items():
        if name not in known:
            raise UnknownName("knob of this recipe", name, known)
        values[name] = known[name].read(given)
        if known[name].reason and values[name] != known[name].value:
            raise BadValue(f"{known[name].title} cannot be changed: {known[name].reason}")
    if values.get("data", recipe.data) != recipe.data:
        recipe = on_data(recipe, values["data"])
    plan = recipe.plan
    fields = {"steps": "n_steps", "minutes": "minutes", "batch": "batch_size", "seed": "seed"}
    new: dict[str, Any] = {fields[k]: v for k, v in values.items() if k in fields}
    if "lr" in values:
        new["optimizer"] = dataclasses.replace(plan.optimizer, lr=values["lr"])
    rates = {name[3:]: lr for name, lr in values.items() if name.startswith("lr.")}
    if rates:
        new["optimizers"] = {net: dataclasses.replace(o, lr=rates.get(net, o.lr)) for net, o in plan.optimizers.items()}
    if "half_life" in values:
        ema = _ema(recipe)
        other = dataclasses.replace(ema, half_life=values["half_life"])
        new["emas"] = tuple(other if e is ema else e for e in plan.emas)
    settings = {name[len(SETTING) :]: value for name, value in values.items() if name.startswith(SETTING)}
    if any(recipe.settings[k] != v for k, v in settings.items()):
        recipe.settings.update(settings)
    return dataclasses.replace(recipe, plan=dataclasses.replace(plan, **new))


def recipe_of(request: Mapping[str, Any]) -> Recipe:
    """The recipe that a request asks for: {"paper", "recipe"}, and "changes" by knob or, from the command line, "data", "models", "sets".

    Raises:
        ExplorerError: it names nothing that is there, or values that cannot be.
    """
    changes = request.get("changes") or {}
    if not isinstance(changes, Mapping):
        raise BadValue(f"'changes' of a request are names with values, got {changes!r}.")
    recipe = papers.paper(str(request.get("paper", ""))).recipe(str(request.get("recipe", "")))
    models = request.get("models") or {}
    recipe = on_data(recipe, str(request["data"]), models) if request.get("data") else by_models(recipe, models)
    sets = request.get("sets") or {}
    if not isinstance(sets, Mapping):
        raise BadValue(f"'sets' of a request are fields with values, got {sets!r}.")
    return override(changed(recipe, changes), sets)


def preparations(recipe: Recipe) -> list[str]:
    """What must exist before this recipe can be trained, in words."""
    out = []
    for name, need in recipe.needs.items():
        inner = getattr(need, "recipe", None)
        what = (
            f"the model of {inner.name}, {inner.cost or 'trained once'}"
            if isinstance(inner, Recipe)
            else getattr(need, "name", "")
        )
        out.append(f"{name}: {what}" if what else name)
    return out


def command(
    slug: str, name: str, changes: Mapping[str, Any], data: str = "", models: Mapping[str, str] | None = None
) -> str:
    """The same run on the command line, where all its changes have words there; on the user's `data` with these `models`, if any."""
    recipe = recipe_of({"paper": slug, "recipe": name, "data": data, "models": models})
    paths = {"steps": "plan.n_steps", "batch": "plan.batch_size", "lr": "plan.optimizer.lr"}
    other = changes.get("data", recipe.data)
    own = [f"--data {shlex.quote(data)}"] if data else []
    own += [f"--with {role}={shlex.quote(model)}" for role, model in (models or {}).items()]
    words = [f"explorer train {slug} --{'data' if other == recipe.data and not data else 'recipe'} {name}", *own]
    for knob in knobs(recipe):
        if knob.name in changes and changes[knob.name] != knob.value:
            value = changes[knob.name]
            if knob.name in ("seed", "minutes", "data"):
                words.append(f"--{knob.name} {value}")
            elif knob.name in paths:
                words.append(f"--set {paths[knob.name]}={value}")
            elif knob.name.startswith(SETTING):
                words.append(f"--set settings.{knob.name[len(SETTING) :]}={value}")
            else:
                words.append(f"# and {knob.title} = {value}, which has no option")
    return " ".join(words)


def _ema(recipe: Recipe) -> EmaPlan | None:
    return next((ema for ema in recipe.plan.emas if ema.name == recipe.ema), None)


@lru_cache(maxsize=8)
def _docs(cls: type) -> dict[str, str]:
    """What a class says of each of its arguments."""
    out, last = {}, None
    for line in (inspect.getdoc(cls) or "").splitlines():
        name, colon, rest = line.strip().partition(": ")
        if line.startswith("    ") and colon and name.isidentifier():
            out[last := name] = rest
        elif line.startswith("    ") and last:
            out[last] += " " + line.strip()
        elif not line.strip():
            last = None
    return {field.name: out.get(field.name, "") for field in dataclasses.fields(cls)}
