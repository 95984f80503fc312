"""Weights of multistep methods: integrals of the polynomial through past predictions, as Python floats, cached.

A node is where a prediction was made, in units of the step: 0 where the step begins, 1 where it ends, negative before. With l_j the
Lagrange polynomials of the nodes, a method is a choice of the variable in which the nodes are spaced and of the weight under the integral.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from explorer.errors import BadValue
from explorer.models.base import scalar
from explorer.process.paths import Path


def lambda_at(path: Path, t: float) -> float:
    """ln(alpha / sigma) at t, half the log signal-to-noise ratio: -inf at pure noise, inf at sigma = 0."""
    ratio = path.ratio_at(t)
    return -math.log(ratio) if 0 < ratio < math.inf else math.inf if ratio == 0 else -math.inf


def check_step(t: float, t_next: float) -> None:
    """Raises BadValue unless the step goes toward the data."""
    if not t > t_next >= 0:
        raise BadValue(
            f"a step must go from a time to a smaller one, at least 0; got {t:g} followed by {t_next:g}: "
            "remove repeated times from the grid"
        )


def check_order(order: int, highest: int) -> None:
    if isinstance(order, bool) or not isinstance(order, int) or not 1 <= order <= highest:
        raise BadValue(f"order_max must be a whole number from 1 to {highest}, got {order!r}")


def check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise BadValue(f"{name} is a fraction of the step and must lie between 0 and 1, got {value}")


def lagrange(nodes: Sequence[float]) -> list[list[float]]:
    """Coefficients, constant first, of the polynomials l_j with l_j(node_i) = 1 if i = j else 0."""
    out = []
    for j, own in enumerate(nodes):
        poly, scale = [1.0], 1.0
        for i, other in enumerate(nodes):
            if i != j:
                poly = [a - other * b for a, b in zip([0.0, *poly], [*poly, 0.0], strict=True)]
                scale *= own - other
        out.append([c / scale for c in poly])
    return out


def quadrature(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """Weights of the rule through `nodes` that integrates v^k to moments[k]; they sum to moments[0]."""
    return [sum(c * m for c, m in zip(poly, moments, strict=True)) for poly in lagrange(nodes)]


@lru_cache(maxsize=65536)
def exponential_moments(h: float, n: int) -> tuple[float, ...]:
    """h int_0^1 exp(h (v - 1)) v^k dv for k below n, any finite h: 1 - e^-h for k = 0, then 1 - k/h times the one before.

    They are k! h^(k+1) phi_(k+1)(-h) in the papers' phi functions, up to h^k. Small h takes the series, which does not cancel.
    """
    if abs(h) < 1.0:
        term = lambda k, i: (-h) ** i * math.factorial(k) / math.factorial(k + i + 1)  # noqa: E731
        return tuple(h * math.fsum(term(k, i) for i in range(20)) for k in range(n))
    out = [-math.expm1(-h)]
    for k in range(1, n):
        out.append(1.0 - k / h * out[-1])
    return tuple(out)


def uniform_moments(width: float, n: int) -> list[float]:
    """width int_0^1 v^k dv for k below n."""
    return [width / (k + 1) for k in range(n)]


def finite_nodes(points: Sequence[float], start: float, end: float) -> list[float]:
    """Nodes, in units of the step from start to end, of the leading points that are finite."""
    width = end - start
    return [(p - start) / width for p in points if math.isfinite(p)]


def combine(a: float, x, weights: Sequence[float], values):
    """a x + sum of weights times values, in x's dtype; what is multiplied by exactly 0 or 1 costs nothing."""
    if a == 0.0:
        x = values[0] if weights[0] == 1.0 else values[0] * weights[0]
        weights, values = weights[1:], values[1:]
    elif a != 1.0:
        x = x * scalar(a, x.dtype)
    for w, value in zip(weights, values, strict=False):
        if w != 0.0:
            x = x.add(value, alpha=w)
    return x
