"""DDPM's chain of noise levels, respaced: sampling by any subset of the times at which a discrete model was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from explorer.errors import BadValue
from explorer.process.paths import CosineVP
from explorer.sampling.base import Sampler, built, check_noise, described
from explorer.sampling.grids import TimeGrid, noise_levels
from explorer.sampling.solve import Solver, solve
from explorer.sampling.solvers import DDIM, SOLVERS

PATH = CosineVP()
"""Variance preserving; of all such paths the states are the same at equal sigma, and only the clock differs."""


@dataclass(frozen=True)
class ChainSampler(Sampler):
    """Steps through chosen times of a discrete chain to the data, from x ~ N(0, I) at the highest of them, as released code does.

    `OdeSampler` starts from sigma eps instead, the noise that is in x_t without the data's share. The two agree at high noise; where a
    schedule starts low, the chain's start has the variance of x_t for data of variance 1, and leaves out what it would say of the data.

    Args:
        steps: times in 0 ... n_levels - 1, 0 with the least noise, at least one, all different; kept in falling order.
        levels: the chain's table of noise levels, a name of `noise_levels`.
        solver: DDIM (eta = 0) is the usual one.
    Source: Ho et al. 2020, arXiv 2006.11239; respacing: Nichol & Dhariwal 2021, arXiv 2102.09672; DDIM: Song et al. 2020, arXiv 2010.02502.
    """

    steps: tuple[int, ...]
    levels: str = "iddpm"
    n_levels: int = 1000
    solver: Solver = DDIM()

    def __post_init__(self):
        steps = tuple(sorted(map(int, self.steps), reverse=True))
        object.__setattr__(self, "steps", steps)
        noise_levels(self.levels, self.n_levels)
        if not steps or len(set(steps)) < len(steps) or not 0 <= steps[-1] <= steps[0] < self.n_levels:
            raise BadValue(
                f"the steps of a chain are different times from 0 to {self.n_levels - 1}, at least one; got {list(self.steps)}"
            )

    @property
    def sigmas(self) -> tuple[float, ...]:
        """EDM's sigma of each step, falling."""
        table = noise_levels_of(self.levels, self.n_levels)
        return tuple(table[s] for s in self.steps)

    @property
    def alpha_bars(self) -> tuple[float, ...]:
        """Share of the data's variance at each step, 1 / (1 + sigma^2), from the highest noise down: the full chain's."""
        return tuple(1 / (1 + s * s) for s in self.sigmas)

    @property
    def betas(self) -> tuple[float, ...]:
        """1 - alpha_bar_i / alpha_bar_(i-1) of the shorter chain, least noise first: its marginals are the full chain's."""
        rising = (1.0, *reversed(self.alpha_bars))
        return tuple(1 - b / a for a, b in zip(rising[:-1], rising[1:], strict=True))

    @property
    def stochastic(self):
        return self.solver.stochastic

    def path_on(self, model):
        return PATH

    def times(self) -> list[float]:
        """Of the path, ending at the data."""
        return TimeGrid((*self.sigmas, 0.0)).on(PATH)

    def sample(self, model, noise, cond=None, *, rng=None, observe=None):
        check_noise(model, noise)
        return solve(model.on(PATH), self.solver, noise, self.times(), cond=cond, rng=rng, observe=observe)

    def nfe(self, model):
        model = model.on(PATH)
        return sum(model.calls_at(t) for t in self.solver.eval_times(self.times(), PATH))

    def n_steps(self, model):
        return len(self.steps)

    def to_dict(self):
        return {
            "sampler": "chain",
            "steps": list(self.steps),
            "levels": self.levels,
            "n_levels": self.n_levels,
            "sigmas": list(self.sigmas),
            "solver": described(self.solver, SOLVERS),
        }

    @classmethod
    def from_dict(cls, data):
        made = cls(tuple(data["steps"]), data["levels"], data["n_levels"], built("solver", data["solver"], SOLVERS))
        said = data.get("sigmas")
        if said is not None and not _close(said, made.sigmas):
            raise BadValue("the noise levels stored beside these steps are not those of the chain they name")
        return made


@lru_cache(maxsize=8)
def noise_levels_of(levels: str, n_levels: int) -> tuple[float, ...]:
    """EDM's sigma at each time of a chain, time 0 first."""
    return tuple(reversed(noise_levels(levels, n_levels)))


def _close(a: Sequence[float], b: Sequence[float]) -> bool:
    return len(a) == len(b) and all(abs(x - y) <= 1e-6 * y for x, y in zip(a, b, strict=True))
