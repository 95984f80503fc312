"""Stochastic solvers: noise is added and removed again on the way down."""

from __future__ import annotations

import math
from dataclasses import dataclass

from explorer.errors import BadValue
from explorer.process.paths import Path
from explorer.sampling.solve import Solver
from explorer.sampling.solvers.runge_kutta import EULER, alpha_table, rk_step, stage_time

_HEUN = alpha_table(1.0)


@dataclass(frozen=True)
class EDMStochastic(Solver):
    """EDM's sampler with churn: raise the noise level by a factor 1 + gamma, then one Heun step down.

    Args:
        s_churn: total amount of churn; gamma = min(s_churn / N, sqrt(2) - 1) per step. 0 is exactly `Heun`.
        s_min, s_max: churn only where s_min <= sigma <= s_max.
        s_noise: standard deviation of the added noise; slightly above 1 counters lost detail.
    The noise of each sample comes from its own seed. `order` is that of the deterministic part.
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
        path = model.path
        t_hat = self.raised(t, state, path)
        if t_hat != t:
            if rng is None:
                raise BadValue("a stochastic solver needs the seeds of its samples: pass rng=Seeds(...)")
            scale = path.at(t_hat)[0] / path.at(t)[0]
            added = math.sqrt(path.ratio_at(t_hat) ** 2 - path.ratio_at(t) ** 2) * path.at(t_hat)[0] * self.s_noise
            noise = rng.normal(tuple(x.shape[1:]), device=x.device, dtype=x.dtype)
            x = x * scale + added * noise
        step = rk_step(model, x, t_hat, t_next, EULER if t_next == 0 else _HEUN, cond)
        return step._replace(state=state, t_from=t_hat, x_from=x)

    def eval_times(self, times, path):
        out = []
        for t, t_next in zip(times[:-1], times[1:], strict=True):
            t_hat = self.raised(t, len(times) - 1, path)
            out += [stage_time(t_hat, t_next, c) for c in (EULER if t_next == 0 else _HEUN).c]
        return out
