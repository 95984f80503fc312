"""A setting read as genes, steps and what each leaves out of the network, for searches that breed them; and written back."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable

import numpy as np

from explorer.errors import BadValue
from explorer.models.base import Model
from explorer.sampling.base import Sampler
from explorer.sampling.chain import ChainSampler, noise_levels_of
from explorer.sampling.grids import TimeGrid
from explorer.tuning.setting import Guidance, Layers, Setting
from explorer.tuning.space import grid_of

Gene = tuple[float, tuple[int, ...]]
"""A step and the blocks it leaves out: a time of a chain, or ln sigma."""
Candidate = tuple[Gene, ...]
"""Genes by rising noise, no step twice."""
LEFT_OUT = (0.0, 0.25)
"""Share of a network's blocks that a step may leave out."""
LEAST_TRIALS = 44
"""Ten generations of at least four candidates, of which the later ones leave blocks out."""


class Genome(ABC):
    """How a setting is read as steps and written back."""

    def __init__(self, start: Setting):
        self.start = start

    @abstractmethod
    def steps(self) -> tuple[float, ...]:
        """Those of the start."""

    @abstractmethod
    def fresh(self, rng: np.random.Generator, taken: Iterable[float]) -> float:
        """A step that is not taken."""

    @abstractmethod
    def sigma(self, step: float) -> float: ...

    @abstractmethod
    def sampler(self, steps: tuple[float, ...]) -> Sampler: ...

    def setting(self, candidate: Candidate) -> Setting:
        """The candidate as a setting; without blocks left out there is no wrapper for them."""
        kept = tuple(w for w in self.start.wrappers if not isinstance(w, Layers))
        sampler = self.sampler(tuple(step for step, _ in candidate))
        if not any(out for _, out in candidate):
            return Setting(sampler, kept)
        layers = Layers(tuple((self.sigma(step), out) for step, out in candidate))
        inside = sum(not isinstance(w, Guidance) for w in kept)  # guidance asks the network that leaves out
        return Setting(sampler, (*kept[:inside], layers, *kept[inside:]))


def enough_for_layers(trials: int) -> None:
    """Raises BadValue where so few trials leave no block out."""
    if trials < LEAST_TRIALS:
        raise BadValue(
            f"the first of ten generations leave no block out, and {trials} trials end before the others: allow at least {LEAST_TRIALS}"
        )


class ChainGenome(Genome):
    def steps(self):
        return tuple(reversed(self.start.sampler.steps))

    def fresh(self, rng, taken):
        taken, n = set(taken), self.start.sampler.n_levels
        while (step := int(rng.integers(n))) in taken:
            if len(taken) >= n:
                raise BadValue(f"all {n} times of this chain are steps already")
        return step

    def sigma(self, step):
        return noise_levels_of(self.start.sampler.levels, self.start.sampler.n_levels)[int(step)]

    def sampler(self, steps):
        return dataclasses.replace(self.start.sampler, steps=tuple(map(int, steps)))


class SigmaGenome(Genome):
    """Steps are ln sigma, anywhere between the model's lowest level and the start of the grid, or of the model."""

    def __init__(self, start: Setting, model: Model):
        super().__init__(start)
        self.grid, (low, high) = grid_of(start), model.sigma_range
        positive = [s for s in self.grid.times if s > 0]
        if self.grid.times[-1] != 0:
            raise BadValue("noise levels are searched on grids that end at sigma = 0: give a start of that kind")
        self.low, self.high = math.log(min(low, positive[-1])), math.log(max(high, positive[0]))

    def steps(self):
        return tuple(math.log(s) for s in reversed(self.grid.times) if s > 0)

    def fresh(self, rng, taken):
        return float(rng.uniform(self.low, self.high))

    def sigma(self, step):
        return math.exp(step)

    def sampler(self, steps):
        grid = TimeGrid((*(math.exp(s) for s in reversed(steps)), 0.0))
        return dataclasses.replace(self.start.sampler, grid=grid)


def genome_of(start: Setting, model: Model) -> Genome:
    """Raises BadValue where the sampler has neither steps of a chain nor a grid in sigma."""
    return ChainGenome(start) if isinstance(start.sampler, ChainSampler) else SigmaGenome(start, model)


def layers_used(setting: Setting, n_layers: int) -> int:
    """Blocks that act in one sample's run, of a sampler that asks once at each of its noise levels."""
    levels = getattr(setting.sampler, "sigmas", None) or [s for s in grid_of(setting).times if s > 0]
    layers = setting.wrapper(Layers)
    if layers is None:
        return n_layers * len(levels)
    near = [min(layers.levels, key=lambda level, s=s: abs(math.log(level[0] / s)))[1] for s in levels]
    return sum(n_layers - len(out) for out in near)
