"""What a paper offers besides its method: recipes by data set, published numbers, claims to check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from explorer.data import Dataset
from explorer.metrics.base import Estimate
from explorer.sampling.samplers import Sampler
from explorer.training.method import Method
from explorer.training.plan import Plan


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
    """A statement of the paper that a small run can confirm or refute; `check` measures it with this package's code."""

    text: str
    where: str
    check: Callable[[], Verdict]
    minutes: float


@dataclass(frozen=True)
class Recipe:
    """How one model of a paper is trained and sampled.

    Attributes:
        name: of the resulting model, e.g. "digits-uncond".
        data: name of the data set, see `explorer.data`.
        method: builds the method, networks included, for the loaded data; called with torch's random state pinned.
        plan: length, optimizer, averages, seed.
        sampler: with which its quality is stated; None for what is not sampled from.
        ema: which average is exported.
        cost: what a run costs, in words a user can plan with.
        notes: what a reader of the model's card should know.
        settings: the method's own numbers, for the card.
        measure: exported network -> card entries; None measures samples, see `explorer.training.evaluate`.
    """

    name: str
    data: str
    method: Callable[[Dataset], Method]
    plan: Plan
    sampler: Sampler | None
    ema: str = "ema"
    cost: str = ""
    notes: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    measure: Callable[[nn.Module], dict[str, Any]] | None = None


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
