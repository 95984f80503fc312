"""The chord rule: every state is put back on the straight line between the predicted data and the noise the run began with."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from explorer.sampling.solve import Solver, Step


@dataclass(frozen=True)
class Chord(Solver):
    """x_{t'} = alpha(t') D(x_t, t) + sigma(t') z, z the noise of the start, x_T / sigma(T): the sampling rule of rectified flows++.

    Euler's step uses the noise that the *present* state implies instead; the two agree in a single step to t = 0, and at every
    number of steps where all paths are straight lines of the path's kind. Elsewhere the rule does not follow the ODE: `order` 0, no number
    of steps makes it converge to the ODE's ends. Meant for flows straightened by reflow and for runs that begin at (nearly) pure noise:
    a run from a level where data are still visible would take them for noise. Made of D, it is the same on every path.

    Source: Lee, Lin & Fanti 2024, arXiv 2405.20320, the update rule of Sec. 4: z_t' = (1 - t') x_hat + t' z, x_hat = z_t - t v, on the
    linear path.
    """

    order = 0
    nfe_formula = "N"

    def init(self, model, x, times):
        return x / model.path.at(times[0])[1]

    def step(self, model, x, t, t_next, state, *, cond=None, rng=None):
        denoised = model.denoise(x, t, cond)
        alpha, sigma, _, _ = model.path.at(t_next)
        if sigma == 0:
            return Step(denoised if alpha == 1 else alpha * denoised, None, denoised, state)
        return Step(torch.add(sigma * state, denoised, alpha=alpha), None, denoised, state)

    def eval_times(self, times, path):
        return list(times[:-1])
