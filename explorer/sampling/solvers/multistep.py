"""Adams-Bashforth methods: one evaluation a step, the slope extrapolated by the polynomial through the last ones.

What is extrapolated, and in which variable, makes the method. `AdamsBashforth` takes the velocity of the path's own ODE in the path's
time. The others take the noise prediction eps: with rho = sigma / alpha, x / alpha moves by eps d rho, so

    x_next = (alpha_next / alpha) x + alpha_next sum_j w_j eps_j,   w_j = int_rho^rho_next l_j d rho,

with l_j the Lagrange polynomials of the past times. No method here evaluates at sigma = 0: a last step to it keeps its order, except
where lambda is the variable. A step that starts at pure noise (alpha = 0) is DDIM's. The first steps have fewer predictions and are of
lower order: the global order is reached where their error is small.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch

from explorer.models.base import cast
from explorer.process.paths import Path
from explorer.sampling.solve import Solver, Step
from explorer.sampling.solvers.exponential import History, check_variant, remember
from explorer.sampling.solvers.singlestep import first_order
from explorer.sampling.solvers.weights import (
    check_order,
    check_step,
    combine,
    exponential_moments,
    finite_nodes,
    lagrange,
    lambda_at,
    quadrature,
    uniform_moments,
)

FIXED = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
"""Adams-Bashforth weights of equally spaced points, the newest first."""


@dataclass(frozen=True)
class AdamsBashforth(Solver):
    """Adams-Bashforth on the ODE of the path, dx/dt = velocity, with weights for steps of any length.

    Args:
        order_max: predictions used, 1 to 4; 1 is `Euler`.
    Not invariant to the path. Where the velocity is singular at t = 0 (VP, CosineVP) the last step inherits Euler's weakness there.
    Source: Hairer, Norsett & Wanner 1993, Solving Ordinary Differential Equations I, III.5 (variable step size).
    """

    order_max: int = 3
    nfe_formula = "N"

    def __post_init__(self):
        check_order(self.order_max, 4)

    @property
    def order(self):
        return self.order_max

    def step(self, model, x, t, t_next, state: History | None, *, cond=None, rng=None):
        slope = cast(model.velocity(x, t, cond), x.dtype)
        times, values = remember(state, t, slope, self.order_max)
        return Step(combine(1.0, x, adams_weights(times, t_next), values), slope, None, (times, values))

    def eval_times(self, times, path):
        return list(times[:-1])


@lru_cache(maxsize=65536)
def adams_weights(points: tuple[float, ...], end: float) -> tuple[float, ...]:
    """Integrals of the Lagrange polynomials of the points from points[0] to end; they sum to its length."""
    check_step(points[0], end)
    nodes = finite_nodes(points, points[0], end)
    return tuple(quadrature(nodes, uniform_moments(end - points[0], len(nodes))))


class EpsMultistep(Solver):
    """The noise prediction extrapolated through the last `order_max`; a final says with which weights."""

    order_max: int

    @property
    def order(self) -> int:
        return self.order_max

    @abstractmethod
    def weights(self, path: Path, times: tuple[float, ...], t_next: float) -> tuple[float, ...]:
        """Weights of eps at `times` in x_next / alpha_next, the newest first; they sum to the change of sigma / alpha."""

    def step(self, model, x, t, t_next, state: History | None, *, cond=None, rng=None):
        path = model.path
        alpha = path.at(t)[0]
        if alpha == 0.0:
            return first_order(model, x, t, t_next, cond)
        eps = cast(model.eps(x, t, cond), x.dtype)
        times, values = remember(state, t, eps, self.order_max)
        alpha_next = path.at(t_next)[0]
        weights = self.weights(path, times, t_next)
        if alpha_next != 1.0:
            weights = [alpha_next * w for w in weights]
        return Step(combine(alpha_next / alpha, x, weights, values), None, None, (times, values), eps=eps)

    def eval_times(self, times, path):
        return list(times[:-1])


@dataclass(frozen=True)
class IPNDM(EpsMultistep):
    """iPNDM: Adams-Bashforth's fixed weights on the noise prediction, as if the steps in sigma were equal.

    Args:
        order_max: predictions used, 1 to 4.
    Of its order on equal steps in sigma; of second order on smoothly graded ones, for which `IPNDMv` has the weights.
    Source: Zhang & Chen 2022, arXiv 2204.13902, App. (improved PNDM); the weights are Liu et al. 2022, arXiv 2202.09778, Eq. 9.
    """

    order_max: int = 3
    nfe_formula = "N"

    def __post_init__(self):
        check_order(self.order_max, 4)

    def weights(self, path, times, t_next):
        check_step(times[0], t_next)
        width = path.ratio_at(t_next) - path.ratio_at(times[0])
        return [width * w for w in FIXED[len(times)]]


@dataclass(frozen=True)
class IPNDMv(EpsMultistep):
    """iPNDM with the weights of the actual steps in sigma: the same method as DEIS in rho (`DEIS(variant="rho")`).

    Args:
        order_max: predictions used, 1 to 4.
    The weights are exact for polynomials; released code of this name misplaces a bracket from the third order on.
    Source: Zhang & Chen 2022, arXiv 2204.13902 (rho-AB); the name is diff-sampler's.
    """

    order_max: int = 3
    nfe_formula = "N"

    def __post_init__(self):
        check_order(self.order_max, 4)

    def weights(self, path, times, t_next):
        return deis_weights(path, "rho", times, t_next)


@dataclass(frozen=True)
class DEIS(EpsMultistep):
    """DEIS, multistep (AB): the noise prediction as a polynomial, integrated against the exact transition of the path.

    Args:
        order_max: predictions used, 1 to 4 (tAB0 to tAB3 of the paper, which counts the degree).
        variant: the variable of the polynomial. "t" is the path's time, the paper's tAB, whose samples depend on the path; "rho" is
            sigma / alpha (rho-AB); "log-rho" is lambda, the form of diffusers' DEISMultistepScheduler, first order in a step to 0.
    Source: Zhang & Chen 2022, arXiv 2204.13902, Eq. 14 and 15, Prop. 3.
    """

    order_max: int = 3
    variant: Literal["t", "rho", "log-rho"] = "t"
    nfe_formula = "N"
    variants = ("t", "rho", "log-rho")

    def __post_init__(self):
        check_order(self.order_max, 4)
        check_variant(self.variant, self.variants)

    def weights(self, path, times, t_next):
        return deis_weights(path, self.variant, times, t_next)


@lru_cache(maxsize=65536)
def deis_weights(path: Path, variant: str, times: tuple[float, ...], t_next: float) -> tuple[float, ...]:
    """Integrals over rho = sigma / alpha, from times[0] to t_next, of the Lagrange polynomials of `times` in the variant's variable."""
    check_step(times[0], t_next)
    rho, rho_next = path.ratio_at(times[0]), path.ratio_at(t_next)
    if len(times) == 1 or (variant == "log-rho" and rho_next == 0):
        return (rho_next - rho,)
    if variant == "rho":
        return adams_weights(tuple(path.ratio_at(t) for t in times), rho_next)
    if variant == "log-rho":
        lambdas = [lambda_at(path, t) for t in times]
        h = lambda_at(path, t_next) - lambdas[0]
        nodes = finite_nodes(lambdas, lambdas[0], lambdas[0] + h)
        return tuple(rho_next * w for w in quadrature(nodes, exponential_moments(-h, len(nodes))))
    return _time_weights(path, times, t_next, rho, rho_next)


def _time_weights(path: Path, times: tuple[float, ...], t_next: float, rho: float, rho_next: float):
    """By Gauss-Legendre quadrature over u in rho = u^2: on every path t(u) is analytic and tame between the ends, also at rho = 0."""
    at, weight = _gauss_legendre()
    low, high = math.sqrt(rho_next), math.sqrt(rho)
    u = 0.5 * (low + high) + 0.5 * (high - low) * at
    t = path.time(torch.from_numpy(u * u)).numpy()
    v = (t - times[0]) / (t_next - times[0])
    nodes = finite_nodes(times, times[0], t_next)
    older = [
        -float((high - low) * (weight * u * np.polynomial.polynomial.polyval(v, p)).sum()) for p in lagrange(nodes)[1:]
    ]
    return (rho_next - rho - math.fsum(older), *older)


@lru_cache(maxsize=1)
def _gauss_legendre() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(128)
