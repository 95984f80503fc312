"""Exponential integrators in lambda = ln(alpha / sigma): the linear part of the ODE is solved exactly, the denoiser is extrapolated.

Written with ratios only, so they run on every path, end at sigma = 0 and give the same samples on all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from explorer.models.base import affine
from explorer.process.paths import Path
from explorer.sampling.solve import Solver, Step


def ddim_coefficients(path: Path, t: float, t_next: float) -> tuple[float, float]:
    """(a, b) with x_next = a x + b D, exact when the denoiser D is constant over the step."""
    alpha, sigma, _, _ = path.at(t)
    alpha_next, sigma_next, _, _ = path.at(t_next)
    a = sigma_next / sigma
    return a, alpha_next - alpha * a


@dataclass(frozen=True)
class DDIM(Solver):
    """First order in lambda. Song et al. 2020, arXiv 2010.02502, Eq. 12 with eta = 0; also DPM-Solver++(1)."""

    order = 1
    nfe_formula = "N"

    def step(self, model, x, t, t_next, state, *, cond=None, rng=None):
        denoised = model.denoise(x, t, cond)
        a, b = ddim_coefficients(model.path, t, t_next)
        return Step(affine(a, x, b, denoised), None, denoised, None)

    def eval_times(self, times, path):
        return list(times[:-1])


@dataclass(frozen=True)
class DPMpp2M(Solver):
    """DPM-Solver++(2M): second order by extrapolating the last two denoised predictions, one evaluation a step.

    The first step, and a last step to sigma = 0 (where lambda is infinite), are first order.
    Source: Lu et al. 2022, arXiv 2211.01095, Alg. 2.
    """

    order = 2
    nfe_formula = "N"

    def step(self, model, x, t, t_next, state: tuple[float, Tensor] | None, *, cond=None, rng=None):
        path = model.path
        denoised = model.denoise(x, t, cond)
        a, b = ddim_coefficients(path, t, t_next)
        extrapolated = denoised
        if state is not None and path.ratio_at(t_next) > 0:
            t_prev, previous = state
            h, h_prev = _lambda(path, t_next) - _lambda(path, t), _lambda(path, t) - _lambda(path, t_prev)
            w = 0.5 * h / h_prev  # 1 / (2 r); 0 when the previous step began at pure noise
            extrapolated = affine(1 + w, denoised, -w, previous)
        return Step(affine(a, x, b, extrapolated), None, denoised, (t, denoised))

    def eval_times(self, times, path):
        return list(times[:-1])


def _lambda(path: Path, t: float) -> float:
    ratio = path.ratio_at(t)
    return -math.log(ratio) if math.isfinite(ratio) else -math.inf
