"""Single-step exponential integrators: stages inside the step, evenly placed in lambda = ln(alpha / sigma), no memory.

Written with ratios only, so they give the same samples on every path. A step that starts at pure noise or ends at sigma = 0 has no inner
lambda; there they take the first-order step with its one evaluation, so no number of steps meets log 0.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from explorer.models.base import Cond, Denoiser, affine, cast
from explorer.process.paths import Path
from explorer.sampling.seeds import Seeds, fresh_noise
from explorer.sampling.solve import Solver, Step
from explorer.sampling.solvers.exponential import check_noise, ddim_coefficients, sde_coefficients
from explorer.sampling.solvers.weights import check_share, check_step, combine, exponential_moments, lambda_at


@lru_cache(maxsize=65536)
def stage_times(path: Path, shares: tuple[float, ...], t: float, t_next: float) -> tuple[float, ...]:
    """Times at these shares of the step in lambda; none where the step has no finite length in lambda."""
    check_step(t, t_next)
    start, end = lambda_at(path, t), lambda_at(path, t_next)
    if math.isinf(end - start):
        return ()
    return tuple(path.time_at(math.exp(-(start + share * (end - start)))) for share in shares)


class SingleStep(Solver):
    """Stages at `shares` of the step in lambda, after one evaluation at its start."""

    @property
    @abstractmethod
    def shares(self) -> tuple[float, ...]:
        """Where the model is asked besides the start."""

    def eval_times(self, times, path):
        out = []
        for t, t_next in zip(times[:-1], times[1:], strict=True):
            out += [t, *stage_times(path, self.shares, t, t_next)]
        return out


def first_order(model: Denoiser, x: Tensor, t: float, t_next: float, cond: Cond) -> Step:
    """DDIM's step."""
    denoised = model.denoise(x, t, cond)
    a, b = ddim_coefficients(model.path, t, t_next)
    return Step(affine(a, x, b, denoised), None, denoised, None)


@dataclass(frozen=True)
class DPMSolver2(SingleStep):
    """DPM-Solver-2: second order with one inner stage, on the noise prediction.

    Args:
        r: where the stage is, as a share of the step in lambda; the paper takes 1/2.
    Its first-order sibling DPM-Solver-1 is `DDIM`; their difference is the error estimate of the paper's adaptive DPM-Solver-12.
    Source: Lu et al. 2022, arXiv 2206.00927, Alg. 1 (r = 1/2), Alg. 4 (any r).
    """

    r: float = 0.5
    order = 2
    nfe_formula = "2N - 1"

    def __post_init__(self):
        check_share("r", self.r)

    @property
    def shares(self):
        return (self.r,)

    def step(self, model, x, t, t_next, state, *, cond=None, rng=None):
        path = model.path
        inner = stage_times(path, (self.r,), t, t_next)
        if not inner:
            return first_order(model, x, t, t_next, cond)
        eps = cast(model.eps(x, t, cond), x.dtype)
        a, b = eps_coefficients(path, t, inner[0])
        middle = cast(model.eps(combine(a, x, (b,), (eps,)), inner[0], cond), x.dtype)
        a, b = eps_coefficients(path, t, t_next)
        w = b / (2 * self.r)
        out = combine(a, x, (b - w, w), (eps, middle))
        return Step(out, None, None, None, lambda: w * (middle - eps), eps=eps)


@dataclass(frozen=True)
class DPMSolver3(SingleStep):
    """DPM-Solver-3: third order with two inner stages, at 1/3 and 2/3 of the step in lambda, on the noise prediction.

    Source: Lu et al. 2022, arXiv 2206.00927, Alg. 2 (r1 = 1/3, r2 = 2/3).
    """

    order = 3
    nfe_formula = "3N - 2"
    shares = (1 / 3, 2 / 3)

    def step(self, model, x, t, t_next, state, *, cond=None, rng=None):
        path = model.path
        inner = stage_times(path, self.shares, t, t_next)
        if not inner:
            return first_order(model, x, t, t_next, cond)
        (a1, b1), (a2, b2, c2), (a3, b3, c3) = _dpm_solver_3(path, t, *inner, t_next)
        eps = cast(model.eps(x, t, cond), x.dtype)
        one = cast(model.eps(combine(a1, x, (b1,), (eps,)), inner[0], cond), x.dtype)
        two = cast(model.eps(combine(a2, x, (b2, c2), (eps, one)), inner[1], cond), x.dtype)
        return Step(combine(a3, x, (b3, c3), (eps, two)), None, None, None, eps=eps)


@lru_cache(maxsize=65536)
def eps_coefficients(path: Path, t: float, t_next: float) -> tuple[float, float]:
    """(a, b) with x_next = a x + b eps, exact when the noise prediction is constant over the step: b = -sigma_next (e^h - 1)."""
    check_step(t, t_next)
    (alpha, sigma, _, _), (alpha_next, sigma_next, _, _) = path.at(t), path.at(t_next)
    a = alpha_next / alpha
    return a, sigma_next - sigma * a


@lru_cache(maxsize=65536)
def _dpm_solver_3(path: Path, t: float, t1: float, t2: float, t_next: float):
    """Factors of x and of the noise predictions so far, for the two stages and for the step."""
    h = lambda_at(path, t_next) - lambda_at(path, t)
    (a1, b1), (a2, b2), (a3, b3) = (eps_coefficients(path, t, s) for s in (t1, t2, t_next))
    # sigma (phi_1(h) - 1) of the paper at share r of the step: minus the integral of a slope of eps in lambda, over its length
    w2 = path.at(t2)[1] * exponential_moments(-2 / 3 * h, 2)[1] * 2
    w3 = path.at(t_next)[1] * exponential_moments(-h, 2)[1] * 1.5
    return (a1, b1), (a2, b2 - w2, w2), (a3, b3 - w3, w3)


@dataclass(frozen=True)
class DPMpp2S(SingleStep):
    """DPM-Solver++(2S): second order with one inner stage, on the data prediction.

    Args:
        r: where the stage is, as a share of the step in lambda.
    Source: Lu et al. 2022, arXiv 2211.01095, Alg. 1.
    """

    r: float = 0.5
    order = 2
    nfe_formula = "2N - 1"

    def __post_init__(self):
        check_share("r", self.r)

    @property
    def shares(self):
        return (self.r,)

    def step(self, model, x, t, t_next, state, *, cond=None, rng=None):
        return _two_stages(model, x, t, t_next, self.r, 0.0, 1.0, cond, None)


@dataclass(frozen=True)
class DPMppSDE(SingleStep):
    """DPM-Solver++ SDE, single step, k-diffusion's dpmpp_sde: `DPMpp2S` on the reverse SDE.

    The noise of the inner stage and that of the whole step come from one Brownian path, drawn in two pieces from each sample's own seed.

    Args:
        eta: share of the reverse SDE's noise variance; 0 is `DPMpp2S`. k-diffusion adds the same noise at eta = 0 and 1, a little
            different noise in between (its eta is ancestral sampling's).
        s_noise: factor on the standard deviation of the added noise; 1 is exact.
        r: where the stage is, as a share of the step in lambda.
    `order` is that of eta = 0.
    Source: Lu et al. 2022, arXiv 2211.01095, Alg. 1 and the SDE's integral of Eq. 18; Crowson 2022, k-diffusion.
    """

    eta: float = 1.0
    s_noise: float = 1.0
    r: float = 0.5
    order = 2
    nfe_formula = "2N - 1"

    def __post_init__(self):
        check_noise(self.eta, self.s_noise)
        check_share("r", self.r)

    @property
    def stochastic(self):
        return self.eta > 0

    @property
    def shares(self):
        return (self.r,)

    def step(self, model, x, t, t_next, state, *, cond=None, rng=None):
        return _two_stages(model, x, t, t_next, self.r, self.eta, self.s_noise, cond, rng)


def _two_stages(
    model: Denoiser,
    x: Tensor,
    t: float,
    t_next: float,
    r: float,
    eta: float,
    s_noise: float,
    cond: Cond,
    rng: Seeds | None,
) -> Step:
    path = model.path
    denoised = cast(model.denoise(x, t, cond), x.dtype)
    inner = stage_times(path, (r,), t, t_next)
    if not inner:
        a, _, alpha_next, noise = sde_coefficients(path, eta, t, t_next)
        out = combine(a, x, (alpha_next,), (denoised,))
        if noise:
            out = out.add(fresh_noise(x, rng), alpha=noise * s_noise)
        return Step(out, None, denoised, None)
    (a1, b1, n1), (a2, b2, carried, n2) = _two_stage_coefficients(path, eta, t, inner[0], t_next)
    stage = combine(a1, x, (b1,), (denoised,))
    out = combine(a2, x, (b2 * (1 - 0.5 / r),), (denoised,))
    if eta:
        first, second = fresh_noise(x, rng), fresh_noise(x, rng)
        stage = stage.add(first, alpha=n1 * s_noise)
        out = out.add(first, alpha=carried * n1 * s_noise).add(second, alpha=n2 * s_noise)
    middle = cast(model.denoise(stage, inner[0], cond), x.dtype)
    out = out.add(middle, alpha=0.5 * b2 / r)
    return Step(out, None, denoised, None, lambda: 0.5 * b2 / r * (middle - denoised))


@lru_cache(maxsize=65536)
def _two_stage_coefficients(path: Path, eta: float, t: float, inner: float, t_next: float):
    """(factor of x, weight of D, noise) of the stage, and of the step: also the factor on the stage's noise that it carries on."""
    stage, step = [], []
    for end, out in ((inner, stage), (t_next, step)):
        a, width, alpha_end, noise = sde_coefficients(path, eta, t, end)
        out += [a, -alpha_end * math.expm1(-width), noise]
    carried, _, _, fresh = sde_coefficients(path, eta, inner, t_next)
    return tuple(stage), (step[0], step[1], carried, fresh)
