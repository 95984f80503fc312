"""What generated pictures of shapes show, against the exact law of what they should show.

N samples, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from explorer.data import Shapes
from explorer.data.shapes import JITTER, REACH, SIZES
from explorer.metrics.base import Estimate

CLEAN = 0.05
"""A picture that its factors explain to this root mean square, in units of [-1, 1], is one of the set: rendered ones reach 0.01,
and noise of 0.05 is just visible."""


@dataclass(frozen=True)
class Shares:
    """Shares of the values of one factor.

    Attributes:
        distance: total variation from the law, half the sum of |share - law|.
        floor: what as many draws of the law give on average.
        shares, law: (values,) float64.
    """

    distance: Estimate
    floor: float
    shares: Tensor
    law: Tensor


@dataclass(frozen=True)
class Readback:
    """What N pictures show.

    Attributes:
        clean: (N,) bool, whether the picture is one of the set, to `CLEAN`.
        right: (N,) bool, whether it reads as its class.
        shares: by "colour", "size", "colour and size by class" and "place" (16 cells of equal probability).
    """

    clean: Tensor
    right: Tensor
    shares: dict[str, Shares]


def read_back(shapes: Shapes, x: Tensor, labels: Tensor) -> Readback:
    """What pictures x (N, 3, S, S), made for the classes `labels` (N,), show."""
    found, misfit = shapes.read(x)
    n_classes, n_colours = len(shapes.classes), len(shapes.colours)
    margin = REACH * SIZES[1] * (1 + JITTER)
    cell = ((found.centre - margin) / (1 - 2 * margin) * 4).floor().clamp(0, 3).long()
    size = torch.stack([1 - shapes.p_large, shapes.p_large], 1)  # (K, 2)
    law = shapes.p_colour[:, :, None] * size[:, None, :] / n_classes  # (K, colours, 2)
    kinds = {
        "colour": (found.colour, law.sum((0, 2))),
        "size": (found.large, law.sum((0, 1))),
        "colour and size by class": ((labels * n_colours + found.colour) * 2 + found.large, law.flatten()),
        "place": (cell[:, 0] * 4 + cell[:, 1], torch.full((16,), 1 / 16, dtype=torch.float64)),
    }
    shares = {name: shares_of(code, p, f"total variation of {name} from its law") for name, (code, p) in kinds.items()}
    return Readback(misfit < CLEAN, found.label == labels, shares)


def shares_of(code: Tensor, law: Tensor, name: str) -> Shares:
    """Shares of the values in code (N,) int64, against their probabilities (values,).

    The standard error is the jackknife's: without one sample the distance depends on that sample's value only. It leaves out
    that |share - law| has a kink: within an error or so of the floor it says too much.
    """
    n = len(code)
    counts = torch.bincount(code, minlength=len(law)).double()
    value = float((counts / n - law).abs().sum() / 2)
    without = (counts[None] - torch.eye(len(law), dtype=torch.float64)) / (n - 1)  # row v: one sample of value v less
    each = (without - law).abs().sum(1) / 2
    variance = (n - 1) / n * float(counts @ (each - counts @ each / n).square())
    floor = float((law * (1 - law)).sqrt().sum()) / math.sqrt(2 * math.pi * n)  # E|normal| = sd sqrt(2 / pi)
    return Shares(Estimate(value, math.sqrt(variance), n, name), floor, counts / n, law)
