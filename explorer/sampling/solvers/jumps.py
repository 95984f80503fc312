"""Jumps: straight to the predicted data, then fresh noise up to the next level."""

from __future__ import annotations

import math
from dataclasses import dataclass

from explorer.errors import BadValue
from explorer.sampling.seeds import fresh_noise
from explorer.sampling.solve import Solver, Step


@dataclass(frozen=True)
class Jump(Solver):
    """Multistep consistency sampling: x0 = f(x, t), then fresh noise of variance tau^2 - sigma_min^2 up to the next level tau.

    The sampler of consistency models and of few-step distilled generators. It does not follow an ODE: with a plain denoiser,
    whose E[x0 | x] is a mean and not a sample, it blurs. `order` 0: no number of steps makes it converge to the ODE's ends.

    Args:
        sigma_min: noise that is left in f's samples, so less is added; the lowest level the map was trained at, 0 for generators
            of clean data.
    Sources: Song et al. 2023, arXiv 2303.01469, Alg. 1; with sigma_min = 0: Yin et al. 2024, arXiv 2405.14867, Sec. 4.4.
    """

    sigma_min: float = 0.0
    order = 0
    nfe_formula = "N"
    stochastic = True

    def __post_init__(self):
        if self.sigma_min < 0:
            raise BadValue(f"sigma_min must not be negative, got {self.sigma_min}")

    def step(self, model, x, t, t_next, state, *, cond=None, rng=None):
        x0 = model.denoise(x, t, cond)
        if t_next == 0:
            return Step(x0, None, x0, None)
        alpha, _, _, _ = model.path.at(t_next)
        std = math.sqrt(max(model.path.ratio_at(t_next) ** 2 - self.sigma_min**2, 0.0))
        return Step(alpha * (x0 + std * fresh_noise(x, rng)), None, x0, None)

    def eval_times(self, times, path):
        return list(times[:-1])
