"""Samplers that the Tuning page, or `explorer tune`, has kept: what they are, which fit a model, and how to take one up elsewhere."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from explorer.apps.tuning.bridge import knobs_for
from explorer.apps.tuning.records import KEPT, NAME, folder, stamp_of
from explorer.errors import BadValue, ExplorerError, UnknownName
from explorer.knobs import SamplerKnobs
from explorer.metrics.base import Estimate, plus_minus
from explorer.models.base import Model
from explorer.tuning import Tuned, fingerprint


@dataclass(frozen=True)
class Kept:
    """A tuned sampler in the folder of searches.

    Attributes:
        model: name of the model it was tuned for.
        nfe: network evaluations per sample; None where only a run can tell.
        score: on noise that the search never saw.
        tuned: all of it.
    """

    name: str
    model: str
    nfe: int | None
    score: Estimate
    tuned: Tuned

    @property
    def title(self) -> str:
        """One line for a menu: "digits-8 · NFE 15 · FD[digits-cnn] 0.42 ± 0.03 · digits"."""
        cost = f"NFE {self.nfe}" if self.nfe is not None else "adaptive"
        score = f"{self.score.name} {plus_minus(self.score.value, self.score.std_error)}"
        return f"{self.name} · {cost} · {score} · {self.model}"

    def reason(self, model: Model) -> str:
        """Why it does not fit this model; empty where it does. A model under another name is the same one if its numbers are."""
        theirs, ours = self.tuned.model, _print(model)
        if any(theirs.get(key) != ours[key] for key in ("shape", "n_classes", "sha256")):
            return f"tuned for {self.model}" if self.model != model.name else f"tuned for other weights of {self.model}"
        return ""

    def knobs(self, model: Model, base: SamplerKnobs) -> SamplerKnobs:
        """It as knobs of this model; what it does not say (class, seed) is taken from `base`.

        Raises:
            BadValue: it does not fit the model, or no knobs say what it does.
        """
        if why := self.reason(model):
            raise BadValue(f"{self.name} was {why}; this is {model.name or 'another model'}.")
        return knobs_for(self.tuned.setting, base, model)


def kept(where: Path | None = None) -> list[Kept]:
    """All that can be read, by name."""
    where = where or folder()
    files = sorted(where.glob("*" + KEPT)) if where.is_dir() else []
    found = [_read(file, stamp_of(file)) for file in files if NAME.fullmatch(file.name.removesuffix(KEPT))]
    return [one for one in found if one is not None]


def named(name: str, where: Path | None = None) -> Kept:
    """The one of that name.

    Raises:
        UnknownName: none has it.
    """
    there = {one.name: one for one in kept(where)}
    if name not in there:
        raise UnknownName("kept sampler", name, there)
    return there[name]


def offered(model: Model, now: SamplerKnobs, *, falling: bool = False) -> list[dict[str, Any]]:
    """What a menu shows: name, title, why it cannot be chosen for this model, and whether it is what the knobs say now.

    Args:
        falling: only what lowers the noise at every step can be drawn.
    """
    out = []
    for one in kept():
        why, chosen = one.reason(model), False
        if not why and falling and not one.tuned.sampler.monotone:
            why = "its noise goes up again, and this page draws runs whose noise only falls"
        if not why:
            try:
                chosen = one.knobs(model, now).key() == now.key()
            except ExplorerError as problem:
                why = str(problem)
        out.append({"name": one.name, "title": one.title, "reason": why, "chosen": chosen})
    return sorted(out, key=lambda row: bool(row["reason"]))


def values(name: str, model: Model, base: SamplerKnobs) -> dict[str, Any]:
    """All knobs of a kept sampler on this model."""
    return named(name).knobs(model, base).to_dict()


def sampler_json(name: str) -> str:
    """The bare sampler of a kept one, as `--own` takes it.

    Raises:
        BadValue: it also changes the model, which the sampler alone does not say.
    """
    one = named(name)
    if one.tuned.wrappers:
        file = folder() / (name + KEPT)
        words = ", ".join(wrapper.describe() for wrapper in one.tuned.wrappers)
        raise BadValue(f"{name} also changes the model ({words}): give all of it with --tuned {file}.")
    return one.tuned.sampler.to_json()


@lru_cache(maxsize=128)
def _read(file: Path, stamp: tuple[float, int]) -> Kept | None:
    """A file that is no tuned sampler is left out: it must not hide the others."""
    try:
        tuned = Tuned.load(file)
        return Kept(file.name.removesuffix(KEPT), str(tuned.model.get("name", "")), tuned.nfe[0], tuned.score, tuned)
    except (ExplorerError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@lru_cache(maxsize=8)
def _print(model: Model) -> dict[str, Any]:
    return json.loads(json.dumps(fingerprint(model)))
