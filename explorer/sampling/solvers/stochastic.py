"""Stochastic solvers: noise is added and removed again on the way down. The noise of each sample comes from its own seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from explorer.errors import BadValue
from explorer.models.base import affine
from explorer.process.paths import Path
from explorer.sampling.seeds import fresh_noise
from explorer.sampling.solve import Solver, Step
from explorer.sampling.solvers.runge_kutta import EULER, alpha_table, rk_step, stage_time

_HEUN = alpha_table(1.0)


def noised(path: Path, x: Tensor, t: float, t_to: float, eps: Tensor, s_noise: float = 1.0) -> Tensor:
    """x of time t carried up to t_to by the exact perturbation kernel, whose standard deviation s_noise multiplies."""
    alpha_to = path.at(t_to)[0]
    added = math.sqrt(path.ratio_at(t_to) ** 2 - path.ratio_at(t) ** 2) * alpha_to * s_noise
    return x * (alpha_to / path.at(t)[0]) + added * eps


@dataclass(frozen=True)
class EDMStochastic(Solver):
    """EDM's sampler with churn: raise the noise level by a factor 1 + gamma, then one Heun step down.

    Args:
        s_churn: total amount of churn; gamma = min(s_churn / N, sqrt(2) - 1) per step. 0 is exactly `Heun`.
        s_min, s_max: churn only where s_min <= sigma <= s_max.
        s_noise: standard deviation of the added noise; slightly above 1 counters lost detail.
    `order` is that of the deterministic part.
    Source: Karras et al. 2022, arXiv 2206.00364, Alg. 2.
    """

    s_churn: float = 40.0
    s_min: float = 0.05
    s_max: float = 50.0
    s_noise: float = 1.003
    order = 2
    nfe_formula = "2N - 1"

    def __post_init__(self):
        if self.s_churn < 0 or self.s_noise < 0:
            raise BadValue(f"S_churn and S_noise must not be negative, got {self.s_churn} and {self.s_noise}")
        if not 0 <= self.s_min <= self.s_max:
            raise BadValue(f"S_min must be between 0 and S_max, got S_min = {self.s_min} and S_max = {self.s_max}")

    @property
    def stochastic(self):
        return self.s_churn > 0

    def init(self, model, x, times):
        return len(times) - 1

    def raised(self, t: float, n_steps: int, path: Path) -> float:
        """The time after adding noise at t: sigma (1 + gamma) in the path's own time."""
        sigma = path.ratio_at(t)
        if self.s_churn == 0 or not (self.s_min <= sigma <= self.s_max):
            return t
        gamma = min(self.s_churn / n_steps, math.sqrt(2) - 1)
        return path.time_at(sigma * (1 + gamma))

    def step(self, model, x, t, t_next, state: int, *, cond=None, rng=None):
        t_hat = self.raised(t, state, model.path)
        if t_hat != t:
            x = noised(model.path, x, t, t_hat, fresh_noise(x, rng), self.s_noise)
        step = rk_step(model, x, t_hat, t_next, EULER if t_next == 0 else _HEUN, cond)
        return step._replace(state=state, t_from=t_hat, x_from=x)

    def eval_times(self, times, path):
        out = []
        for t, t_next in zip(times[:-1], times[1:], strict=True):
            t_hat = self.raised(t, len(times) - 1, path)
            out += [stage_time(t_hat, t_next, c) for c in (EULER if t_next == 0 else _HEUN).c]
        return out


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """Euler-Maruyama on dx = [velocity - strength g^2 score / 2] dt + sqrt(strength) g dw, time falling.

    g^2 = 2 alpha^2 (sigma / alpha) d(sigma / alpha)/dt is the path's own diffusion. Every strength has the same marginals: 0 is the
    probability-flow ODE (`Euler`), 1 the reverse SDE, more of it forgets errors faster and needs smaller steps: a step on the EDM path
    is stable while (1 + strength) (1 - sigma_next / sigma) < 2. A last step to t = 0 returns the denoised mean, without noise.
    `order` is the weak one: of expectations, not of single paths.
    Source: Song et al. 2021, arXiv 2011.13456, Eq. 6 and 13; the family of strengths: Karras et al. 2022, arXiv 2206.00364, Eq. 6.
    """

    strength: float = 1.0
    order = 1
    nfe_formula = "N"

    def __post_init__(self):
        _check_strength(self.strength)

    @property
    def stochastic(self):
        return self.strength > 0

    def step(self, model, x, t, t_next, state, *, cond=None, rng=None):
        if t_next == 0:
            denoised = model.denoise(x, t, cond)
            return Step(denoised, None, denoised, None)
        a, b, std = euler_maruyama_coefficients(model.path, t, t_next, self.strength)
        slope = model.velocity(x, t, cond)
        x = affine(a, x, b, slope)
        if std > 0:
            x = torch.add(x, fresh_noise(x, rng), alpha=std)
        return Step(x, slope, None, None)

    def eval_times(self, times, path):
        return list(times[:-1])


@lru_cache(maxsize=65536)
def euler_maruyama_coefficients(path: Path, t: float, t_next: float, strength: float) -> tuple[float, float, float]:
    """(a, b, std) with x_next = a x + b velocity + std z."""
    alpha, sigma, alpha_dot, sigma_dot = path.at(t)
    if alpha == 0:
        raise _no_diffusion(path, t)
    h, g2 = t_next - t, 2 * sigma * (sigma_dot - alpha_dot / alpha * sigma)
    p, q = path.convert("velocity", "score", t)
    half = 0.5 * strength * g2
    return 1.0 - h * half * p, h * (1.0 - half * q), math.sqrt(strength * g2 * -h)


@dataclass(frozen=True)
class PredictorCorrector(Solver):
    """Reverse diffusion steps, each followed by Langevin steps at the noise level it reached.

    Args:
        snr: signal-to-noise ratio of a Langevin step, x += e score + sqrt(2 e) z with e = 2 (snr sigma)^2.
        n_corrector: Langevin steps after each predictor step that does not end at data.
        strength: noise of the predictor, as in `EulerMaruyama`; 0 with n_corrector 0 is an ODE solver.
    Song et al. take e from the ratio of the batch's mean norms of noise and score. Where the score is mostly that of the added noise this
    is sigma, which is used here: it neither mixes the samples of a batch nor grows without bound where the score vanishes.
    A last step to t = 0 returns the denoised mean. `order` is the weak one.
    Source: Song et al. 2021, arXiv 2011.13456, Alg. 1, 4, 5 and Eq. 46, for any path.
    """

    snr: float = 0.16
    n_corrector: int = 1
    strength: float = 1.0
    order = 1
    nfe_formula = "N + n_corrector (N - 1)"

    def __post_init__(self):
        _check_strength(self.strength)
        if not 0 < self.snr < 1:  # a Langevin step multiplies what is far from the data by 1 - 2 snr^2
            raise BadValue(f"the signal-to-noise ratio of a Langevin step must be between 0 and 1, got {self.snr}")
        if int(self.n_corrector) != self.n_corrector or self.n_corrector < 0:
            raise BadValue(f"n_corrector must be a whole number of at least 0, got {self.n_corrector}")

    @property
    def stochastic(self):
        return self.strength > 0 or self.n_corrector > 0

    def step(self, model, x, t, t_next, state, *, cond=None, rng=None):
        first = model.denoise(x, t, cond)
        if t_next == 0:
            return Step(first, None, first, None)
        a, b, std = reverse_diffusion_coefficients(model.path, t, t_next, self.strength)
        x = affine(a, x, b, first)
        if std > 0:
            x = torch.add(x, fresh_noise(x, rng), alpha=std)
        pull = 2 * self.snr**2  # e score = 2 snr^2 (alpha D - x)
        alpha, sigma, _, _ = model.path.at(t_next)
        for _ in range(int(self.n_corrector)):
            x = affine(1 - pull, x, pull * alpha, model.denoise(x, t_next, cond))
            x = torch.add(x, fresh_noise(x, rng), alpha=2 * self.snr * sigma)
        return Step(x, None, first, None)

    def eval_times(self, times, path):
        out = []
        for t, t_next in zip(times[:-1], times[1:], strict=True):
            out += [t] + [t_next] * (int(self.n_corrector) if t_next > 0 else 0)
        return out


@lru_cache(maxsize=65536)
def reverse_diffusion_coefficients(path: Path, t: float, t_next: float, strength: float) -> tuple[float, float, float]:
    """(a, b, std) with x_next = a x + b D + std z: the forward step from t_next to t, taken back with the score at t.

    Forward, x_t = (1 + f) x_next + G z with G^2 = alpha^2 (r^2 - r_next^2), r = sigma / alpha; back,
    x_next = (1 - f) x + (1 + strength) / 2 G^2 score + sqrt(strength) G z.
    """
    alpha, r, r_next = path.at(t)[0], path.ratio_at(t), path.ratio_at(t_next)
    if alpha == 0:
        raise _no_diffusion(path, t)
    w = 0.5 * (1 + strength) * (1 - (r_next / r) ** 2)
    std = alpha * math.sqrt(strength * (r * r - r_next * r_next))
    return 2.0 - alpha / path.at(t_next)[0] - w, w * alpha, std


def _check_strength(strength: float) -> None:
    if not 0 <= strength < math.inf:
        raise BadValue(
            f"the strength of the noise must be finite and not negative (0: the ODE, 1: the reverse SDE), got {strength}"
        )


def _no_diffusion(path: Path, t: float) -> BadValue:
    return BadValue(
        f"time {t:g} of {path} is pure noise (alpha = 0), where the reverse SDE is infinitely strong: start the grid at a finite sigma"
    )
