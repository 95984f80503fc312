"""Exponential integrators in lambda = ln(alpha / sigma): the linear part of the ODE is solved exactly, the denoiser is extrapolated.

Written with ratios only, so they run on every path, end at sigma = 0 and give the same samples on all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from explorer.models.base import affine
from explorer.process.paths import Path
from explorer.sampling.solve import Solver, Step


@lru_cache(maxsize=65536)
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
        denoised = model.denoise(x, t, cond)
        t_prev, previous = state or (None, None)
        a, b, c = dpmpp2m_coefficients(model.path, t_prev, t, t_next)
        x = affine(a, x, b, denoised)
        if c != 0.0:
            x = torch.add(x, previous, alpha=c)
        return Step(x, None, denoised, (t, denoised))

    def eval_times(self, times, path):
        return list(times[:-1])


@lru_cache(maxsize=65536)
def dpmpp2m_coefficients(path: Path, t_prev: float | None, t: float, t_next: float) -> tuple[float, float, float]:
    """(a, b, c) with x_next = a x + b D + c D_prev: DDIM of the denoiser extrapolated from t_prev and t to the middle of the step."""
    a, b = ddim_coefficients(path, t, t_next)
    if t_prev is None or path.ratio_at(t_next) == 0:
        return a, b, 0.0
    h, h_prev = _lambda(path, t_next) - _lambda(path, t), _lambda(path, t) - _lambda(path, t_prev)
    w = 0.5 * h / h_prev  # 1 / (2 r); 0 when the previous step began at pure noise
    return a, b * (1 + w), -b * w


def _lambda(path: Path, t: float) -> float:
    ratio = path.ratio_at(t)
    return -math.log(ratio) if math.isfinite(ratio) else -math.inf
