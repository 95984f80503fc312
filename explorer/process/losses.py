"""Distances between two batches of samples, one number per sample: what consistency losses measure disagreement with.

B batch, D numbers in one sample. All are `Distance`s: (x (B, *shape), y (B, *shape)) -> (B,).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from explorer.errors import BadValue

Distance = Callable[[Tensor, Tensor], Tensor]


def squared_l2(x: Tensor, y: Tensor) -> Tensor:
    """Mean over the sample of (x - y)^2, (B,)."""
    return (x - y).square().flatten(1).mean(1)


def l1(x: Tensor, y: Tensor) -> Tensor:
    """Mean over the sample of |x - y|, (B,)."""
    return (x - y).abs().flatten(1).mean(1)


def pseudo_huber(x: Tensor, y: Tensor, c: float) -> Tensor:
    """sqrt(|x - y|^2 + c^2) - c with the Euclidean norm over the whole sample, (B,).

    Its gradient with respect to x is (x - y) / sqrt(|x - y|^2 + c^2), shorter than 1 always and about |x - y| / c near
    zero. Taken per pixel and summed, as in several public ports, it is another loss: its gradient grows with sqrt(D).
    Near zero it is computed as |x - y|^2 / (sqrt(|x - y|^2 + c^2) + c), which does not cancel.
    Source: Song & Dhariwal 2023, arXiv 2310.14189, Eq. 7.
    """
    square = (x - y).square().flatten(1).sum(1)
    return square / ((square + c**2).sqrt() + c)


def huber_c(shape: tuple[int, ...]) -> float:
    """The authors' c = 0.00054 sqrt(D): 0.030 for CIFAR-10. arXiv 2310.14189, Sec. 3.3."""
    return 0.00054 * math.sqrt(math.prod(shape))


@dataclass(frozen=True)
class PseudoHuber:
    """`pseudo_huber` at a fixed c, as a `Distance`."""

    c: float

    def __post_init__(self):
        if not self.c > 0:
            raise BadValue(
                f"the pseudo-Huber constant is {self.c}; it must be positive (squared_l2 is another distance)."
            )

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return pseudo_huber(x, y, self.c)
