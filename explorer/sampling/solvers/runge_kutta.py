"""Explicit Runge-Kutta methods on the probability-flow ODE of the model's path. A method is its table of numbers.

The velocity does not exist at sigma = 0 (0/0), so a step that ends at t = 0 uses `last`, a table that never evaluates there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from explorer.errors import BadValue
from explorer.sampling.solve import Solver, Step


@dataclass(frozen=True)
class Table:
    """Butcher table: nodes c, stage weights a (row i for stage i + 1), weights b, weights of an embedded lower-order method."""

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    embedded: tuple[float, ...] | None = None

    @cached_property
    def stages(self) -> tuple[tuple[float, tuple[float, ...]], ...]:
        """(node, row) of every stage after the first."""
        return tuple(zip(self.c[1:], self.a, strict=True))


EULER = Table(c=(0.0,), a=(), b=(1.0,))
RALSTON3 = Table(
    c=(0.0, 1 / 2, 3 / 4), a=((1 / 2,), (0.0, 3 / 4)), b=(2 / 9, 3 / 9, 4 / 9)
)  # Ralston 1962; no stage at the end


def alpha_table(alpha: float) -> Table:
    """Second-order family with its one inner stage at fraction alpha of the step. Karras et al. 2022, arXiv 2206.00364, Alg. 3."""
    w = 1 / (2 * alpha)
    return Table(c=(0.0, alpha), a=((alpha,),), b=(1 - w, w), embedded=(1.0, 0.0))


class RungeKutta(Solver):
    """Steps by `table`, or by `last` where the step ends at t = 0."""

    table: Table
    last: Table

    def step(self, model, x, t, t_next, state, *, cond=None, rng=None):
        return rk_step(model, x, t, t_next, self.last if t_next == 0 else self.table, cond)

    def eval_times(self, times, path):
        out = []
        for t, t_next in zip(times[:-1], times[1:], strict=True):
            out += [stage_time(t, t_next, c) for c in (self.last if t_next == 0 else self.table).c]
        return out


def stage_time(t: float, t_next: float, c: float) -> float:
    return t_next if c == 1.0 else t + c * (t_next - t)


def rk_step(model, x: Tensor, t: float, t_next: float, table: Table, cond) -> Step:
    """One explicit Runge-Kutta step of dx/dt = velocity."""
    h, first = t_next - t, model.velocity(x, t, cond)
    if not table.stages:  # Euler's method, without the bookkeeping
        return Step(torch.add(x, first, alpha=h), first, None, None)
    slopes = [first]
    for c, row in table.stages:
        slopes.append(model.velocity(_combine(x, h, row, slopes), stage_time(t, t_next, c), cond))
    estimate = None if table.embedded is None else lambda: _embedded_error(h, table, slopes)
    return Step(_combine(x, h, table.b, slopes), first, None, None, estimate)


def _combine(x: Tensor, h: float, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    for w, k in zip(weights, slopes, strict=True):
        if w != 0.0:
            x = torch.add(x, k, alpha=h * w)
    return x


def _embedded_error(h: float, table: Table, slopes: Sequence[Tensor]) -> Tensor:
    weights = [b - e for b, e in zip(table.b, table.embedded, strict=True)]
    return _combine(torch.zeros_like(slopes[0]), h, weights, slopes)


@dataclass(frozen=True)
class Euler(RungeKutta):
    """First order, one evaluation a step. On the EDM path it is DDIM."""

    order = 1
    nfe_formula = "N"
    table = EULER
    last = EULER


@dataclass(frozen=True)
class Alpha2(RungeKutta):
    """The second-order family of EDM: alpha 1/2 is the midpoint method, 2/3 Ralston's, 1 Heun's; any alpha in (0, 1].

    Source: Karras et al. 2022, arXiv 2206.00364, Alg. 3.
    """

    alpha: float = 1.0
    order = 2
    nfe_formula = "2N (2N - 1 for alpha = 1)"

    def __post_init__(self):
        if not 0 < self.alpha <= 1:
            raise BadValue(f"alpha must be in (0, 1], got {self.alpha}")

    @cached_property
    def table(self) -> Table:
        return alpha_table(self.alpha)

    @property
    def last(self) -> Table:
        return EULER if self.alpha == 1.0 else self.table


_HEUN, _MIDPOINT = alpha_table(1.0), alpha_table(0.5)


@dataclass(frozen=True)
class Heun(RungeKutta):
    """Second order, two evaluations a step and one in a last step to t = 0: EDM's deterministic sampler (Alg. 1)."""

    order = 2
    nfe_formula = "2N - 1"
    table = _HEUN
    last = EULER


@dataclass(frozen=True)
class Midpoint(RungeKutta):
    """Second order, evaluating at the start and the middle of a step (the modified Euler method)."""

    order = 2
    nfe_formula = "2N"
    table = _MIDPOINT
    last = _MIDPOINT


_HEUN3 = Table(c=(0.0, 1 / 3, 2 / 3), a=((1 / 3,), (0.0, 2 / 3)), b=(1 / 4, 0.0, 3 / 4), embedded=(-1 / 2, 3 / 2, 0.0))


@dataclass(frozen=True)
class Heun3(RungeKutta):
    """Heun's third-order method. No stage is at the end of a step, so a last step to t = 0 keeps the order.

    Source: Heun 1900; Hairer, Norsett & Wanner 1993, Solving Ordinary Differential Equations I, Table II.1.1.
    """

    order = 3
    nfe_formula = "3N"
    table = _HEUN3
    last = _HEUN3


_RK4 = Table(c=(0.0, 0.5, 0.5, 1.0), a=((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), b=(1 / 6, 1 / 3, 1 / 3, 1 / 6))


@dataclass(frozen=True)
class RK4(RungeKutta):
    """The classical fourth-order method; a last step to t = 0 is Ralston's third order, which keeps the global order at 4."""

    order = 4
    nfe_formula = "4N - 1"
    table = _RK4
    last = RALSTON3
