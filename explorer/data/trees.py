"""Two fractal trees in the plane, a class each, as one exact Gaussian mixture: data on a thin, branching set with a known score.

A trunk of length L leaves the origin; a branch of depth d carries eight elongated Gaussians along it and ends in two branches of depth
d + 1, to either side. Lengths, angles and what is random in them are those of the paper, and so is the order of the draws; the result is
the same on every machine. 127 branches, 1016 components a class; the marginal has mean 0 and standard deviation 0.5 in each coordinate.

Source: Karras et al. 2024, arXiv 2406.02507, Appendix C (the two-dimensional toy).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor

from explorer.data.dataset import Dataset
from explorer.errors import UnknownName
from explorer.process.oracles import GaussianMixture

SIGMA_DATA = 0.5
ORIGIN = np.array([0.0030, 0.0325])
SCALE = np.array([1.3136, 1.3844])
TRUNKS = (math.pi / 4, 5 * math.pi / 4)
"""Direction in which the tree of each class leaves the origin."""

DEPTH, SHARE = 7, np.linspace(0.07, 0.93, 8)
LENGTH, THICKNESS, SIZE = 0.292, 0.2, 0.06
SHRINK, FADE, BEND, JITTER = 0.8, 0.5, 0.7, 0.2


@cache
def tree() -> GaussianMixture:
    """The mixture of both trees, components labelled 0 and 1 by their tree."""
    rng, parts = RandomState(2), ([], [], [], [])
    for label, angle in enumerate(TRUNKS):
        _branch(rng, parts, label, ORIGIN, angle, 0)
    means, covs, weights, labels = (np.array(part) for part in parts)
    return GaussianMixture(torch.from_numpy(means), covs=torch.from_numpy(covs), weights=weights, labels=labels)


def _branch(rng: RandomState, parts: tuple[list, ...], label: int, start: np.ndarray, angle: float, depth: int) -> None:
    """Appends mean, covariance, weight and label of each component of a branch and of all that grow from it.

    The last branches draw angles too, for branches that do not grow.
    """
    if depth == DEPTH:
        return
    means, covs, weights, labels = parts
    along = np.array([math.cos(angle), math.sin(angle)])
    length = LENGTH * SHRINK**depth * (1 + JITTER * rng.randn())
    flatness = THICKNESS * SHRINK**depth / length
    outer = np.outer(along, along)
    size = SIZE * length * SCALE
    for share in SHARE:
        means.append((start + along * length * share) * SCALE)
        covs.append((outer + flatness**2 * (np.eye(2) - outer)) * np.outer(size, size))
        weights.append(length * FADE**depth)
        labels.append(label)
    for side in (1, -1):
        turned = angle + side * BEND**depth * (1 + JITTER * rng.randn())
        _branch(rng, parts, label, start + along * length, turned, depth + 1)


@cache
def first_tree() -> GaussianMixture:
    """The tree of class 0 alone, normalised, without labels."""
    mixture = tree().of_class(0)
    mixture.labels = None
    return mixture


TREES: dict[str, Callable[[], GaussianMixture]] = {"tree": tree, "tree-a": first_tree}
"""Both trees, classes 0 and 1 in shares 0.477 and 0.523; and the one of class 0, without classes."""


def tree_dataset(name: str, n: int = 8192, seed: int = 0) -> Dataset:
    """A fixed sample of "tree" or "tree-a", which also draws fresh points without end.

    `sigma_data` is that of both trees for either, as in the paper.
    """
    if name not in TREES:
        raise UnknownName("tree", name, TREES)
    mixture, both = TREES[name](), name == "tree"

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        x, component = mixture.sample(n, generator)
        return x.float(), mixture.labels[component] if both else None

    x, labels = draw(n, torch.Generator().manual_seed(seed))
    about = "two fractal trees, a class each" if both else "the first of two fractal trees"
    return Dataset(name, x, labels, 2 if both else 0, SIGMA_DATA, {"about": about, "seed": seed, "n": n}, draw)
