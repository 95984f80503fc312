"""How good a trained model is, as rows for its card: distance to the data, agreement with its labels, and memory.

N generated samples, M samples of the test split, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from explorer.data import SHAPES, Dataset, Shapes
from explorer.metrics.base import Estimate
from explorer.metrics.features import FeatureSpace, feature_space, pixel_space, points_space
from explorer.metrics.frechet import Frechet, Reference, frechet_from_samples
from explorer.metrics.kernel import energy_distance
from explorer.metrics.neighbours import Memorisation
from explorer.metrics.points import ExactW2
from explorer.metrics.readback import CLEAN, read_back
from explorer.metrics.references import CLASSIFIERS, reference_for
from explorer.models.base import Model
from explorer.sampling.samplers import Sampler, sample
from explorer.sampling.seeds import Seeds

FIRST_SEED = 1_000_000
"""Cards are measured on seeds from here on; training and the dashboard's default seeds stay below."""

N_IMAGES = 10_000
BATCH = 256
N_REMEMBERED = 20  # held-out images that the question of memory takes
N_SEARCHED = 20_000
"""Training images among which the nearest to a sample is looked for."""


def evaluate(
    model: Model,
    train: Dataset,
    test: Dataset | None,
    sampler: Sampler,
    *,
    more: tuple[Sampler, ...] = (),
    draws: int = 20,
    show: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Card entries "metrics" and, for images with a test split, "memorisation".

    Images are compared in the feature space of their data set's classifier where it has one, else in that of pixels.

    Args:
        model: on any device; samples come from seeds never used in training.
        train, test: both splits, the second None where there is none; each of the `draws` sets of samples has the size of the
            test split (without one, at most 1000), and fewer are drawn where they would hold more than N_IMAGES together.
        more: further samplers, of which only the distance is measured: on the same noise, one row each.
        show: told the share of the samples that are drawn.
    """
    images = len(train.shape) == 3
    n = min(len(test or train), N_IMAGES // 2 if test else 1000) if images else _n_points(train, test)
    draws = max(2, min(draws, N_IMAGES // n)) if images else draws
    cost, done = n * draws * sum(s.nfe(model) or 1 for s in (sampler, *more)), 0

    def samples(sampler: Sampler, seeds: range) -> Tensor:
        nonlocal done
        parts = []
        for start in range(seeds.start, seeds.stop, BATCH):
            part = range(start, min(start + BATCH, seeds.stop))
            parts.append(_samples(model, sampler, part))
            done += (sampler.nfe(model) or 1) * len(part)
            if show is not None:
                show(done / cost)
        return torch.cat(parts)

    chunks = [samples(sampler, range(FIRST_SEED + i * n, FIRST_SEED + (i + 1) * n)) for i in range(draws)]
    about = {"nfe": sampler.nfe(model), "sampler": sampler.to_dict()}
    entries = _images(model, chunks, train, test, about) if images else {"metrics": _points(chunks, train, test, about)}
    for other in more:
        x = samples(other, range(FIRST_SEED, FIRST_SEED + n * draws))
        about = {"nfe": other.nfe(model), "sampler": other.to_dict()}
        if images:
            space = _space(train)
            reference = reference_for(space, train)
            entries["metrics"].append({**row(frechet(space, reference, x)), **about, "reference": reference.data})
        else:
            entries["metrics"] += [r for r in _points(list(x.split(n)), train, test, about) if "nfe" in r]
    return entries


def _space(data: Dataset) -> FeatureSpace:
    return feature_space(CLASSIFIERS.get(data.name, "pixels"), data.shape)


def _samples(model: Model, sampler: Sampler, seeds: range) -> Tensor:
    with torch.no_grad():
        return sample(model, sampler, Seeds(seeds)).cpu()


def _images(model: Model, chunks: list[Tensor], train: Dataset, test: Dataset | None, about: Mapping) -> dict[str, Any]:
    from explorer.models.bundled import load_features

    space = _space(train)
    name, reference = space.name, reference_for(space, train)
    n, everything = len(chunks[0]), torch.cat(chunks)

    raw = np.array([frechet_from_samples(space(chunk).numpy(), reference) for chunk in chunks])
    mine = Estimate(raw.mean(), raw.std(ddof=1) / math.sqrt(len(raw)), n, f"FD[{name}] raw")
    if test is None:
        rows = [{**row(mine), **about, "draws": len(chunks), "reference": reference.data, "note": "not bias-corrected"}]
        return {
            "metrics": [*rows, {**row(frechet(space, reference, everything)), **about, "reference": reference.data}]
        }
    real = test.take(slice(n))
    held_out = frechet(space, reference, real)
    theirs = Estimate(held_out.raw, held_out.std_error, n, f"FD[{name}] raw of the test split")
    rows = [
        {
            **row(mine),
            **about,
            "draws": len(chunks),
            "reference": reference.data,
            "note": "not bias-corrected, equal n",
        },
        {**row(theirs), "reference": reference.data, "note": "not bias-corrected, equal n"},
        row(ratio(mine, theirs, f"FD[{name}] over that of the test split, equal n")),
        {**row(frechet(space, reference, everything)), **about, "reference": reference.data},
        {**row(held_out), "metric": f"FD[{name}] of the test split", "reference": reference.data},
    ]
    if model.n_classes and train.name in CLASSIFIERS:
        classifier = load_features(name).eval()
        labels = Seeds(range(FIRST_SEED, FIRST_SEED + len(everything))).labels(model.n_classes)
        right = agreement(classifier, everything, labels)
        rows.append({**row(proportion(right, f"agreement of {name} with the label")), **about})
        rows.append(
            row(proportion(agreement(classifier, real, test.labels[:n]), f"accuracy of {name} on the test split"))
        )
        if train.name in SHAPES:
            rows += [{**r, **about} for r in _read_back(SHAPES[train.name], everything, labels)]
    if len(real) < N_REMEMBERED:
        return {"metrics": rows}
    memory, seen = [], train.take(slice(N_SEARCHED))
    for features in (space, pixel_space(train.shape)) if train.name in CLASSIFIERS else (space,):
        meter = Memorisation(features, seen, real)
        meter.update(everything)
        rows.append({**row(meter.compute()), **about})
        memory.append(meter.summary())
    return {"metrics": rows, "memorisation": memory}


def _read_back(shapes: Shapes, x: Tensor, labels: Tensor) -> list[dict]:
    """Rows of what the pictures show: how many are of the set, how many of their class, which colours, sizes and places."""
    found = read_back(shapes, x, labels)
    rows = [
        row(proportion(found.clean, f"samples that are pictures of the set, to {CLEAN}")),
        row(proportion(found.right, "samples that read as their class")),
    ]
    for shares in found.shares.values():
        few = {"shares": [round(float(p), 4) for p in shares.shares]} if len(shares.law) <= 8 else {}
        rows.append({**row(shares.distance), "floor": shares.floor, **few})
    return rows


def _n_points(train: Dataset, test: Dataset | None) -> int:
    if train.draw is not None:
        return 1000
    return max(2, min(1000, len(train) // 2 if test is None else min(len(train), len(test))))


def _fresh(train: Dataset, test: Dataset | None, n: int, i: int) -> tuple[Tensor, Tensor]:
    """Two sets of n points of the distribution, the second to compare with: fresh, or disjoint sets of what there is.

    Where a part was held out, that is the second, and the first is learnt points: what a perfect memory would score.
    """
    if train.draw is None and test is not None:
        g = torch.Generator().manual_seed(FIRST_SEED + i)
        return tuple(data.take(torch.randperm(len(data), generator=g)[:n]) for data in (train, test))
    if train.draw is not None:
        return tuple(train.draw(n, torch.Generator().manual_seed(FIRST_SEED + 2 * i + k))[0] for k in range(2))
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(FIRST_SEED + i))
    return train.take(rows[:n]), train.take(rows[n : 2 * n])


def _points(chunks: list[Tensor], train: Dataset, test: Dataset | None, about: Mapping) -> list[dict]:
    """Points against fresh draws of the known distribution, and fresh draws against each other: the floor.

    Where only a set of points is known, they are drawn from what was held out of it; where nothing was, it is the distance to what
    was trained on, and says so.
    """
    space, n = points_space(train.shape[0]), len(chunks[0])
    fresh = [_fresh(train, test, n, i) for i in range(len(chunks))]
    against = "held-out points" if test is not None else "points of the training set"
    said = {} if train.draw is not None else {"note": f"to {against}"}
    rows = []
    for make in (ExactW2, energy_distance):
        values = {"": [], " of fresh data (the floor)": []}
        for i, chunk in enumerate(chunks):
            for kind, x in zip(values, (chunk, fresh[i][0]), strict=True):
                metric = make(space, fresh[i][1])
                metric.update(x)
                values[kind].append(metric.compute().value)
        for kind, v in values.items():
            mean = Estimate(float(np.mean(v)), float(np.std(v, ddof=1)) / math.sqrt(len(v)), n, metric.name + kind)
            rows.append({**row(mean), "draws": len(v), **said, **({} if kind else about)})
    return rows


def frechet(space: FeatureSpace, reference: Reference, x: Tensor) -> Estimate:
    metric = Frechet(space, reference)
    metric.update(x)
    return metric.compute()


def row(estimate: Estimate) -> dict[str, Any]:
    """An estimate as a card states it."""
    plain = estimate.to_dict()
    plain.pop("dof", None)
    return {"metric": plain.pop("name"), **plain}


def ratio(a: Estimate, b: Estimate, name: str) -> Estimate:
    """a / b of independent estimates; error to first order."""
    value = a.value / b.value
    return Estimate(value, abs(value) * math.hypot(a.std_error / a.value, b.std_error / b.value), a.n, name)


def proportion(hits: Tensor, name: str) -> Estimate:
    """Share of True in (N,), with Wilson's standard error, which stays positive at 0 and 1."""
    n, p = len(hits), float(hits.double().mean())
    return Estimate(p, math.sqrt(p * (1 - p) / n + 1 / (4 * n * n)) / (1 + 1 / n), n, name)


@torch.no_grad()
def agreement(classifier: torch.nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Whether the classifier reads each sample as its label, (N,) bool."""
    like = next(classifier.parameters())
    logits = [classifier(part.to(like.device, like.dtype)) for part in x.split(1024)]
    return torch.cat(logits).argmax(1).cpu() == labels
