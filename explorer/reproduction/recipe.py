"""What a paper offers besides its method: recipes and what they need, published numbers, claims to check."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from explorer.data import Batch
from explorer.errors import BadValue
from explorer.metrics.base import Estimate
from explorer.models import bundled
from explorer.reproduction.source import source_of
from explorer.sampling.samplers import Sampler
from explorer.training.method import Method
from explorer.training.plan import Plan

if TYPE_CHECKING:
    from explorer.reproduction.bench import Bench


@dataclass(frozen=True)
class Published:
    """A number printed in a paper or released beside it.

    Attributes:
        nfe: network evaluations per sample; None where not stated.
        where: table, figure or page that prints it.
        method: whose number it is.
    """

    dataset: str
    metric: str
    value: float
    nfe: int | None
    where: str
    method: str = "this paper"


@dataclass(frozen=True)
class Verdict:
    """Outcome of a claim: whether it holds here, what was measured, against which threshold."""

    holds: bool
    measured: Estimate
    threshold: float
    text: str


@dataclass(frozen=True)
class Claim:
    """A statement of the paper that a small run can confirm or refute.

    Attributes:
        where: section, table or figure that says so.
        check: measures it with this package's code, at the bench's seed; what it trains, it trains through `Bench.model`.
        minutes: what one seed costs on one core, roughly, trainings included.
        scale: "toy", "digits" or "shapes": on what it is measured.
    """

    text: str
    where: str
    check: Callable[[Bench], Verdict]
    minutes: float
    scale: str = "toy"


class Need(ABC):
    """Something that must exist before a recipe can be trained: a teacher, pairs. A bench makes it once and finds it again."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """All that determines it, as plain JSON: it enters the content hash."""

    @abstractmethod
    def make(self, bench: Bench) -> Any:
        """The thing itself, as `Recipe.method` and `Recipe.stream` receive it."""

    @abstractmethod
    def stand_in(self, bench: Bench) -> Any:
        """Something of the same type and shapes with nothing learnt in it, at no cost: for a rehearsal (`train --dry-run`)."""

    def on(self, data: str) -> Need:
        """The same for another data set. Raises BadValue where it knows its own data only."""
        raise BadValue("it knows its own data only.")

    @property
    def source(self) -> Need:
        """What it is made of, where that is a model: itself, or the model of its pairs."""
        return self

    def swapped(self, old: Need, new: Need) -> Need:
        """Itself, with `new` wherever it is or is made of `old`."""
        return new if self.describe() == old.describe() else self


@dataclass(frozen=True)
class Bundled(Need):
    """A bundled model, or one in a file NAME.safetensors, frozen, on the bench's device."""

    name: str

    def describe(self):
        return {"bundled": self.name, "sha256": bundled.card(self.name)["sha256"]}

    def make(self, bench):
        return bundled.load(self.name, bench.device)

    def stand_in(self, bench):
        return self.make(bench)

    def on(self, data):
        raise BadValue(f"{self.name} has learnt other data.")


class Given(Bundled):
    """A model that the user names in place of the recipe's own; whether it suits the data is the user's to know."""

    def on(self, data):
        return self


@dataclass(frozen=True)
class Trained(Need):
    """The model that another recipe leads to, frozen."""

    recipe: Recipe

    def on(self, data):
        from explorer.reproduction.own import on_data

        return Trained(on_data(self.recipe, data))

    def describe(self):
        return self.recipe.describe()

    def make(self, bench):
        return bench.model(self.recipe)

    def stand_in(self, bench):
        return bench.model(self.recipe)


@dataclass(frozen=True)
class Recipe:
    """How one model of a paper is trained and sampled.

    Attributes:
        name: of the resulting model, e.g. "digits-uncond".
        data: name of the data set, see `explorer.data`.
        method: (data, **needs) -> the method, networks included; called with torch's random state pinned.
        plan: length, optimizer, averages, seed.
        sampler: with which its quality is stated; None for what is not sampled from.
        ema: which average is exported.
        cost: what a run costs, in words a user can plan with.
        notes: what a reader of the model's card should know.
        settings: the method's own numbers, for the card.
        measure: exported network -> card entries; None measures samples, see `explorer.reproduction.evaluate`.
        needs: what must exist first, by the name under which `method` and `stream` receive it.
        stream: (data, plan, **needs) -> endless batches, as `Loader` gives them; None shuffles the data.
        more: further samplers its quality is stated with, such as one, two and four steps.
        knobs: sampler knobs to suggest with the model, see `SamplerKnobs`.
        parameters: of the network in the paper, where it says so.
    """

    name: str
    data: str
    method: Callable[..., Method]
    plan: Plan
    sampler: Sampler | None
    ema: str = "ema"
    cost: str = ""
    notes: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    measure: Callable[[nn.Module], dict[str, Any]] | None = None
    needs: Mapping[str, Need] = field(default_factory=dict)
    stream: Callable[..., Iterable[Batch]] | None = None
    more: tuple[Sampler, ...] = ()
    knobs: Mapping[str, Any] = field(default_factory=dict)
    parameters: float | None = None

    def describe(self) -> dict[str, Any]:
        """All that determines the trained model but the seed, as plain JSON: names, numbers, needs, and what its method's code reaches."""
        plan = self.plan.to_dict()
        plan.pop("seed")
        return {
            "name": self.name,
            "data": self.data,
            "plan": plan,
            "ema": self.ema,
            "settings": dict(self.settings),
            "needs": {name: need.describe() for name, need in self.needs.items()},
            "source": source_of(self.method),
            "stream": "" if self.stream is None else source_of(self.stream),
        }


@dataclass(frozen=True)
class Paper:
    """One reproduction.

    Attributes:
        recipe: from the name of a recipe to the recipe; raises UnknownName with the valid names.
        recipes: the names it knows, smallest first.
    """

    slug: str
    title: str
    arxiv: str
    family: str
    recipe: Callable[[str], Recipe]
    recipes: tuple[str, ...]
    published: tuple[Published, ...] = field(default=())
    claims: tuple[Claim, ...] = field(default=())
