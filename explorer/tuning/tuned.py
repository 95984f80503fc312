"""The outcome of a search: the setting, its number on noise the search never saw, beside the one it was chosen by."""

from __future__ import annotations

import datetime
import json
import math
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from explorer.errors import BadFile, BadValue, ExplorerError
from explorer.files import write_atomic
from explorer.metrics.base import Estimate, plus_minus, verdict
from explorer.models.base import Model
from explorer.sampling.samplers import Sampler
from explorer.tuning.journal import difference
from explorer.tuning.setting import Setting, Wrapper, fingerprint
from explorer.tuning.study import Trial, pareto

if TYPE_CHECKING:
    from explorer.tuning.study import Study

FORMAT, VERSION = "explorer.tuned", 1


@dataclass(frozen=True)
class Point:
    """A setting of the Pareto front, measured on held-out noise.

    Attributes: search: the number it was chosen by; difference: from the baseline, held out and paired.
    """

    setting: Setting
    nfe: int
    score: Estimate
    difference: Estimate
    search: Estimate

    def to_dict(self) -> dict[str, Any]:
        parts = {k: getattr(self, k).to_dict() for k in ("setting", "score", "difference", "search")}
        return {"nfe": self.nfe, **parts}

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Point:
        score, change, search = (Estimate.from_dict(given[k]) for k in ("score", "difference", "search"))
        return cls(Setting.from_dict(given["setting"]), int(given["nfe"]), score, change, search)


@dataclass(frozen=True)
class Tuned:
    """A tuned sampler with its evidence.

    Attributes:
        model: fingerprint of the model it was tuned for.
        setting, start: the best setting, and the baseline.
        nfe: evaluations per sample of the two.
        score, baseline: of the two on held-out noise; `difference`: the first minus the second there, paired.
        search, search_baseline, search_difference: the same on the noise of the search, optimistic for the winner.
        objective, seeds, report: what was lowered, on which seeds [first, past the last], and the held-out ones.
        how: tuner, its numbers and its seed.
        n_evals: network evaluations times samples that the search took; seconds: its time.
        history: every trial, the baseline first.
        front: the best at each cost, held out; empty where only the winner was measured again.
        made: date, versions.
    """

    model: dict[str, Any]
    setting: Setting
    start: Setting
    nfe: tuple[int | None, int | None]
    score: Estimate
    baseline: Estimate
    difference: Estimate
    search: Estimate
    search_baseline: Estimate
    search_difference: Estimate
    objective: dict[str, Any]
    report: tuple[int, int]
    how: dict[str, Any]
    n_evals: int
    seconds: float
    history: tuple[Trial, ...] = field(default=(), repr=False)
    front: tuple[Point, ...] = field(default=(), repr=False)
    made: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def sampler(self) -> Sampler:
        return self.setting.sampler

    @property
    def wrappers(self) -> tuple[Wrapper, ...]:
        return self.setting.wrappers

    @property
    def seeds(self) -> tuple[int, int]:
        return tuple(self.objective["seeds"])

    @property
    def curse(self) -> float:
        """By how much the search overstated its gain: held-out difference minus the search's own. Positive where it flattered itself."""
        return self.difference.value - self.search_difference.value

    @property
    def gained(self) -> bool:
        """Whether the setting beats the baseline on held-out noise by more than twice the paired error."""
        return self.difference.value < -2 * self.difference.std_error

    @property
    def few_samples(self) -> str:
        """Words for a search whose budget ended before any trial was measured on all samples; else empty."""
        whole = [t for t in self.history[1:] if t.n == self.history[0].n]
        return ", none of them on all samples: allow more" if self.history[1:] and not whole else ""

    def __str__(self) -> str:
        if self.setting == self.start:
            count = f"{len(self.history) - 1} trials{self.few_samples}"
            return f"nothing better than the baseline was found: {self.baseline}, {self.nfe[1]} NFE, {count}"
        held = verdict(self.difference, "tuned", "baseline")
        found = plus_minus(self.search_difference.value, self.search_difference.std_error)
        return (
            f"{self.score} tuned, {self.baseline.value:.4g} before, {self.nfe[0]} NFE. On held-out noise {held}; "
            f"the search believed {found} ({len(self.history) - 1} trials)"
        )

    def on(self, model: Model) -> tuple[Model, Sampler]:
        """The model wrapped as tuned, and the sampler.

        Raises: BadValue where this is not the model it was tuned for, naming what differs.
        """
        if gap := difference(self.model, json.loads(json.dumps(fingerprint(model)))):
            raise BadValue(
                f"this was tuned for another model: {gap}. Tune again for this one, or take the bare setting (.setting.on(model))"
            )
        return self.setting.on(model)

    def to_dict(self) -> dict[str, Any]:
        plain = {k: getattr(self, k) for k in ("model", "objective", "how", "n_evals", "seconds", "made")}
        settings = {k: getattr(self, k).to_dict() for k in ("setting", "start")}
        numbers = {k: getattr(self, k).to_dict() for k in NUMBERS}
        return {
            "format": FORMAT,
            "version": VERSION,
            **plain,
            **settings,
            "nfe": list(self.nfe),
            **numbers,
            "report": list(self.report),
            "front": [point.to_dict() for point in self.front],
            "history": [trial.to_dict() for trial in self.history],
        }

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Tuned:
        """Raises BadFile for another format or version; BadValue where something is missing."""
        if not isinstance(given, dict) or given.get("format") != FORMAT:
            found = given.get("format") if isinstance(given, dict) else type(given).__name__
            raise BadFile(f"this is no tuned sampler: its format is {found!r}, not {FORMAT!r}")
        if given.get("version") != VERSION:
            raise BadFile(
                f"this tuned sampler is of version {given.get('version')}, and version {VERSION} is read here: tune again"
            )
        try:
            plain = {k: given[k] for k in ("model", "objective", "how", "n_evals", "seconds", "made")}
            settings = {k: Setting.from_dict(given[k]) for k in ("setting", "start")}
            numbers = {k: Estimate.from_dict(given[k]) for k in NUMBERS}
            trials = tuple(Trial.from_dict(row) for row in given["history"])
            front = tuple(Point.from_dict(row) for row in given["front"])
            return cls(
                **plain,
                **settings,
                **numbers,
                nfe=tuple(given["nfe"]),
                report=tuple(given["report"]),
                history=trials,
                front=front,
            )
        except ExplorerError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise BadValue(f"this does not describe a tuned sampler: {error!r}") from None

    def save(self, file: Path | str) -> Path:
        """The JSON file written, whole or not at all."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"
        write_atomic(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        return Path(file)

    @classmethod
    def load(cls, file: Path | str) -> Tuned:
        """Raises BadFile where the file cannot be read or is no tuned sampler."""
        try:
            content = json.loads(Path(file).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise BadFile(f"{file} cannot be read as a tuned sampler: {error}") from None
        try:
            return cls.from_dict(content)
        except ExplorerError as error:
            raise BadFile(f"{file}: {error}") from None


NUMBERS = ("score", "baseline", "difference", "search", "search_baseline", "search_difference")


def tuned_from(study: Study, report: range, best: Trial, rerank: range | None = None) -> Tuned:
    """Measures the best trial, the baseline and the front of a study on the seeds to report on."""
    from explorer import __version__

    first, held = study.trials[0], study.objective.on(report)
    base = held.measure(*study.start.on(study.model))
    found = {study.start.key(): base}

    def measured(setting: Setting):
        if setting.key() not in found:
            found[setting.key()] = held.measure(*setting.on(study.model))
        return found[setting.key()]

    front = study.front()
    costs = {t.nfe for t in study.trials if not t.failed}
    points = []
    if len(costs) > 1:
        for trial in front:
            again = measured(trial.setting)
            points.append(Point(trial.setting, trial.nfe, again.estimate, again.minus(base), trial.estimate))
    score = measured(best.setting)
    chosen = {} if rerank is None else {"rerank": [rerank.start, rerank.stop]}
    versions = {"explorer": __version__, "torch": torch.__version__, "python": platform.python_version()}
    return Tuned(
        model=json.loads(json.dumps(fingerprint(study.model))),
        setting=best.setting,
        start=study.start,
        nfe=(best.nfe, first.nfe),
        score=score.estimate,
        baseline=base.estimate,
        difference=score.minus(base),
        search=best.estimate,
        search_baseline=first.estimate,
        search_difference=best.difference,
        objective=json.loads(json.dumps(study.objective.describe())),
        report=(report.start, report.stop),
        how={**study.tuner.describe(), "seed": study.seed, **chosen},
        n_evals=study.n_evals,
        seconds=round(study.seconds, 3),
        history=tuple(study.trials),
        front=tuple(points),
        made={"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "versions": versions},
    )


def held_out_front(points: tuple[Point, ...]) -> tuple[Point, ...]:
    """Points of a front that still beat every cheaper one on held-out noise."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: p.nfe):
        if math.isfinite(point.score.value) and (not kept or point.score.value < kept[-1].score.value):
            kept.append(point)
    return tuple(kept)


__all__ = ["Point", "Tuned", "held_out_front", "pareto"]
