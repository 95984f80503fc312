"""Exponential integrators in lambda = ln(alpha / sigma): the linear part of the ODE or SDE is solved exactly, the denoiser D extrapolated.

    x_next = (sigma_next / sigma) e^(-eta h) x + alpha_next int_0^H e^(v - H) D dv + sigma_next sqrt(1 - e^(-2 eta h)) z,

with h the step in lambda, H = (1 + eta) h, D the polynomial through the last predictions and z fresh noise. eta = 0 is the
probability-flow ODE, 1 the reverse SDE of Song et al. 2021; every eta has the same marginals.

Written with ratios only, so they run on every path, end at sigma = 0 and give the same samples on all of them. A step that starts at pure
noise (lambda = -inf) or ends at sigma = 0 (lambda = inf) is first order: there D is taken as constant, which is exact in the limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from typing import ClassVar, Literal

from torch import Tensor

from explorer.errors import BadValue, UnknownName
from explorer.models.base import affine, cast
from explorer.process.paths import Path
from explorer.sampling.seeds import fresh_noise
from explorer.sampling.solve import Solver, Step
from explorer.sampling.solvers.weights import (
    check_order,
    check_step,
    combine,
    exponential_moments,
    finite_nodes,
    lambda_at,
    quadrature,
)


@lru_cache(maxsize=65536)
def ddim_coefficients(path: Path, t: float, t_next: float) -> tuple[float, float]:
    """(a, b) with x_next = a x + b D, exact when the denoiser D is constant over the step."""
    check_step(t, t_next)
    alpha, sigma, _, _ = path.at(t)
    alpha_next, sigma_next, _, _ = path.at(t_next)
    a = sigma_next / sigma
    return a, alpha_next - alpha * a


@dataclass(frozen=True)
class DDIM(Solver):
    """First order in lambda. Song et al. 2020, arXiv 2010.02502, Eq. 12 with eta = 0; also DPM-Solver-1 and DPM-Solver++(1)."""

    order = 1
    nfe_formula = "N"

    def step(self, model, x, t, t_next, state, *, cond=None, rng=None):
        denoised = model.denoise(x, t, cond)
        a, b = ddim_coefficients(model.path, t, t_next)
        return Step(affine(a, x, b, denoised), None, denoised, None)

    def eval_times(self, times, path):
        return list(times[:-1])


Rule = Literal["midpoint", "exact", "released"]


class ExponentialMultistep(Solver):
    """One evaluation a step; D is extrapolated through the last `points` predictions, fewer at the start.

    The global order is reached where the lower-order first steps do not matter, as at the high noise where sampling starts.
    """

    points: ClassVar[int]
    rule: Rule
    eta: float
    s_noise: float

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def step(self, model, x, t, t_next, state: History | None, *, cond=None, rng=None):
        denoised = cast(model.denoise(x, t, cond), x.dtype)
        times, values = remember(state, t, denoised, self.points)
        a, weights, noise = exponential_coefficients(model.path, self.rule, self.eta, times, t_next)
        x = combine(a, x, weights, values)
        if noise != 0.0:
            x = x.add(fresh_noise(x, rng), alpha=noise * self.s_noise)
        return Step(x, None, denoised, (times, values))

    def eval_times(self, times, path):
        return list(times[:-1])


History = tuple[tuple[float, ...], tuple[Tensor, ...]]
"""Times and predictions, the newest first."""


def remember(state: History | None, t: float, value: Tensor, n: int) -> History:
    """The history with one more prediction, the oldest beyond n dropped."""
    if state is None or n == 1:
        return (t,), (value,)
    return (t, *state[0][: n - 1]), (value, *state[1][: n - 1])


def check_noise(eta: float, s_noise: float) -> None:
    if not (0 <= eta < math.inf and 0 <= s_noise < math.inf):
        raise BadValue(f"eta and s_noise must be finite and not negative, got {eta} and {s_noise}")


def check_variant(variant: str, known: tuple[str, ...]) -> None:
    if variant not in known:
        raise UnknownName("variant", variant, known)


@lru_cache(maxsize=65536)
def sde_coefficients(path: Path, eta: float, t: float, t_next: float) -> tuple[float, float, float, float]:
    """(a, H, alpha_next, noise): factor of x, the step (1 + eta) h that weighs D, the size of data and of fresh noise at t_next."""
    check_step(t, t_next)
    (alpha_next, sigma_next, _, _), sigma = path.at(t_next), path.at(t)[1]
    h = lambda_at(path, t_next) - lambda_at(path, t)
    if eta == 0:
        return sigma_next / sigma, h, alpha_next, 0.0
    return (
        sigma_next / sigma * math.exp(-eta * h),
        (1 + eta) * h,
        alpha_next,
        sigma_next * math.sqrt(-math.expm1(-2 * eta * h)),
    )


@lru_cache(maxsize=65536)
def exponential_coefficients(
    path: Path, rule: Rule, eta: float, times: tuple[float, ...], t_next: float
) -> tuple[float, tuple[float, ...], float]:
    """(a, weights of D at `times`, standard deviation of the noise) of a step from times[0] to t_next."""
    a, width, alpha_next, noise = sde_coefficients(path, eta, times[0], t_next)
    if math.isinf(width):
        return a, (alpha_next,), noise
    nodes = _nodes(path, times, t_next)
    moments = list(exponential_moments(width, len(nodes)))
    if rule == "midpoint" and len(nodes) == 2:
        moments[1] = 0.5 * moments[0]
    if rule == "released" and len(nodes) == 3:
        moments[2] = 0.5 * moments[2]
    return a, tuple(alpha_next * w for w in quadrature(nodes, moments)), noise


@dataclass(frozen=True)
class DPMpp2M(ExponentialMultistep):
    """DPM-Solver++(2M): second order by extrapolating the last two denoised predictions, one evaluation a step.

    The first step, and a last step to sigma = 0 (where lambda is infinite), are first order.
    Source: Lu et al. 2022, arXiv 2211.01095, Alg. 2.
    """

    order = 2
    nfe_formula = "N"
    points = 2
    rule = "midpoint"
    eta, s_noise = 0.0, 1.0


@dataclass(frozen=True)
class DPMpp3M(ExponentialMultistep):
    """DPM-Solver++(3M): third order by extrapolating the last three denoised predictions, one evaluation a step.

    Args:
        variant: "exact" integrates the parabola through them. "released" halves its quadratic term, as the authors' code,
            diffusers and k-diffusion do (they weigh D''/2 with phi_3 instead of 2 phi_3): second order, a little smoother.
    Source: Lu et al. 2022, arXiv 2211.01095 (the multistep derivation at k = 3).
    """

    variant: Literal["exact", "released"] = "exact"
    nfe_formula = "N"
    variants = ("exact", "released")
    points = 3
    eta, s_noise = 0.0, 1.0

    def __post_init__(self):
        check_variant(self.variant, self.variants)

    @property
    def rule(self):
        return self.variant

    @property
    def order(self):
        return 3 if self.variant == "exact" else 2


@dataclass(frozen=True)
class DPMpp1SDE(ExponentialMultistep):
    """SDE-DPM-Solver++(1): the first-order step of the reverse SDE with its linear part solved exactly.

    Args:
        eta: share of the reverse SDE's noise variance; 0 is `DDIM`, 1 the full SDE, then also ancestral sampling (DDIM's eta = 1).
        s_noise: factor on the standard deviation of the added noise; 1 is exact.
    The noise of each sample comes from its own seed. `order` is that of eta = 0, as for every stochastic solver here.
    Source: Lu et al. 2022, arXiv 2211.01095, Eq. 18.
    """

    eta: float = 1.0
    s_noise: float = 1.0
    order = 1
    nfe_formula = "N"
    points = 1
    rule = "exact"

    def __post_init__(self):
        check_noise(self.eta, self.s_noise)


@dataclass(frozen=True)
class DPMpp2MSDE(ExponentialMultistep):
    """SDE-DPM-Solver++(2M), k-diffusion's dpmpp_2m_sde: the reverse SDE with D extrapolated from the last two predictions.

    Args:
        eta, s_noise: as for `DPMpp1SDE`; eta = 0 is `DPMpp2M`.
        variant: "midpoint" is the paper's weight of the slope of D, "heun" integrates the line exactly (k-diffusion's names).
    Source: Lu et al. 2022, arXiv 2211.01095, Eq. 19 (App. B).
    """

    eta: float = 1.0
    s_noise: float = 1.0
    variant: Literal["midpoint", "heun"] = "midpoint"
    order = 2
    nfe_formula = "N"
    variants = ("midpoint", "heun")
    points = 2

    def __post_init__(self):
        check_noise(self.eta, self.s_noise)
        check_variant(self.variant, self.variants)

    @property
    def rule(self):
        return "midpoint" if self.variant == "midpoint" else "exact"


@dataclass(frozen=True)
class DPMpp3MSDE(ExponentialMultistep):
    """DPM-Solver++(3M) SDE, k-diffusion's dpmpp_3m_sde: the reverse SDE with D extrapolated from the last three predictions.

    Args:
        eta, s_noise: as for `DPMpp1SDE`; eta = 0 is `DPMpp3M`.
        variant: "exact", or "released" for k-diffusion's half weight of the quadratic term; see `DPMpp3M`.
    Source: Lu et al. 2022, arXiv 2211.01095, continued to k = 3 with the SDE's weights.
    """

    eta: float = 1.0
    s_noise: float = 1.0
    variant: Literal["exact", "released"] = "exact"
    nfe_formula = "N"
    variants = ("exact", "released")
    points = 3

    def __post_init__(self):
        check_noise(self.eta, self.s_noise)
        check_variant(self.variant, self.variants)

    @property
    def rule(self):
        return self.variant

    @property
    def order(self):
        return 3 if self.variant == "exact" else 2


@dataclass(frozen=True)
class UniPC(Solver):
    """UniPC-p: predictor UniP-p and corrector UniC-p on the data prediction, one evaluation a step, order p + 1.

    The evaluation at the predicted state serves twice: it corrects that state, then predicts the next; the state that a step returns is
    the predicted one, at which the model is asked next.

    Args:
        order_max: p, from 1 to 4 (the paper's tables stop at 3); fewer points at the start.
        variant: B(h), which matters only where the paper simplifies (UniP-2 and UniC-1): "bh1" is h, "bh2" is e^h - 1.
        corrector: False is UniP-p alone, of order p. UniP-2 with bh2 is `DPMpp2M`.
    The first step is of lower order; a last step to sigma = 0 is first order and needs no corrector.
    Source: Zhao et al. 2023, arXiv 2302.04867, Alg. 1 and 2, Eq. 8 to 11, App. B (data prediction).
    """

    order_max: int = 3
    variant: Literal["bh1", "bh2"] = "bh2"
    corrector: bool = True
    nfe_formula = "N"
    variants = ("bh2", "bh1")

    def __post_init__(self):
        check_order(self.order_max, 4)
        check_variant(self.variant, self.variants)

    @property
    def order(self):
        return self.order_max + self.corrector

    def step(self, model, x, t, t_next, state: History | None, *, cond=None, rng=None):
        denoised = cast(model.denoise(x, t, cond), x.dtype)
        times, values = remember(state, t, denoised, self.order_max + self.corrector)
        a, weights = unipc_coefficients(model.path, self, times, t_next)
        return Step(combine(a, x, weights, values), None, denoised, (times, values))

    def eval_times(self, times, path):
        return list(times[:-1])


@lru_cache(maxsize=65536)
def unipc_coefficients(
    path: Path, solver: UniPC, times: tuple[float, ...], t_next: float
) -> tuple[float, tuple[float, ...]]:
    """(a, weights of D at `times`) of a step from the state that was predicted at times[0]: that state corrected, the next predicted.

    The corrected state is needed nowhere else, so both are one sum: x_next = a (x + sum c_j D_j) + sum b_j D_j.
    """
    a, predicted = _unipc_prediction(path, solver.variant, times[: solver.order_max], t_next)
    corrects = solver.corrector and len(times) > 1
    corrected = _unipc_correction(path, solver.variant, times[1:], times[0]) if corrects else ()
    return a, tuple(a * c + b for c, b in zip_longest(corrected, predicted, fillvalue=0.0))


def _unipc_prediction(
    path: Path, variant: str, times: tuple[float, ...], t_next: float
) -> tuple[float, tuple[float, ...]]:
    """(a, weights of D at `times`) of UniP from times[0] to t_next; its order is the number of times."""
    a, width, alpha_next, _ = sde_coefficients(path, 0.0, times[0], t_next)
    if math.isinf(width):
        return a, (alpha_next,)
    nodes = _nodes(path, times, t_next)
    return a, tuple(alpha_next * w for w in quadrature(nodes, _moments(width, len(nodes), variant)))


def _unipc_correction(path: Path, variant: str, times: tuple[float, ...], t_next: float) -> tuple[float, ...]:
    """What UniC adds to the state UniP predicted at t_next: weights of D there and of D at `times`."""
    _, width, alpha_next, _ = sde_coefficients(path, 0.0, times[0], t_next)
    if math.isinf(width):
        return ()
    nodes = _nodes(path, times, t_next)
    predicted = quadrature(nodes, _moments(width, len(nodes), variant))
    nodes = [1.0, *nodes]
    own, *past = quadrature(nodes, _moments(width, len(nodes), variant))
    return alpha_next * own, *(alpha_next * (c - p) for c, p in zip(past, predicted, strict=True))


def _nodes(path: Path, times: tuple[float, ...], t_next: float) -> list[float]:
    lambdas = [lambda_at(path, t) for t in times]
    return finite_nodes(lambdas, lambdas[0], lambda_at(path, t_next))


def _moments(h: float, n: int, variant: str) -> list[float]:
    """Moments that n nodes must match. With two nodes the slope of D is weighed by B(h) / 2, where B is h or, of -h, e^h - 1."""
    moments = list(exponential_moments(h, n))
    if n == 2:
        moments[1] = 0.5 * (h if variant == "bh1" else moments[0])
    return moments
