"""Where to restart a frozen model: what a jump makes it forget, what the way down costs, and which settings are worth trying.

For an interval [s_min, s_max] two numbers are measured on the model itself, without data:
    survival   |x' - y'| / |x - y|    of the difference of two states at s_min, after one jump with the same noise and an exact way down
    added      |y'' - y'|             between the way down in few steps and the exact one
After K repeats a difference has shrunk to about survival^K, and K times the added error has come on top: the two terms of the bound
that restarts are explained by (Xu et al. 2023, arXiv 2306.14878). `RestartSearch` proposes the settings that no other beats in both.
A common jump is one coupling among many, so that survival is an upper bound of what the best coupling leaves.

S samples.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from explorer.errors import BadValue
from explorer.models.base import Denoiser, FlowMap, Model
from explorer.sampling.grids import TimeGrid
from explorer.sampling.restart import Restart, RestartSampler, repeated
from explorer.sampling.samplers import Labels, OdeSampler, device_of, labels_for
from explorer.sampling.seeds import Seeds
from explorer.sampling.solve import Solver, solve
from explorer.sampling.solvers import RK4, Heun
from explorer.tuning.objective import first_labels
from explorer.tuning.setting import Setting
from explorer.tuning.space import grid_of, most_steps, stretched
from explorer.tuning.study import Proposal, Tuner, unheard

FINE = 3
"""Steps of the classical Runge-Kutta method for each doubling of sigma that stand for the exact flow."""
FORGOTTEN = 0.02
"""Survival below which a difference counts as forgotten: no setting is better for leaving less."""


@torch.inference_mode()
def forgetting(
    model: Denoiser,
    seeds: Seeds,
    lows: Sequence[float],
    factors: Sequence[float],
    n_points: Sequence[int] = (2, 3, 4),
    solver: Solver | None = None,
    labels: Labels = "balanced",
    tell: Callable[[float], object] | None = None,
) -> xr.Dataset:
    """Survival of a difference and added error of one repeat, for intervals from each of `lows` to each of `factors` times it.

    Args:
        seeds: of the states, S of them; each is compared with one of the same class from other noise. The jumps take further numbers.
        n_points: times on the way down, as in `Restart`.
        solver: of the way down whose error is measured; Heun by default.
        tell: called after each interval with the share of the evaluations that are done, 1 in the end; see `cost_of`.
    Returns:
        `survival` (low, factor) and `added` (low, factor, n_points), root mean squares over samples, `added` in data units, with
            `survival_se`; coordinate `sigma_max` (low, factor). NaN where an interval leaves the range. Attribute `n_evals`: network
            evaluations times samples spent.
    Raises: BadValue for fewer than two states of a class.
    """
    n, device, solver = len(seeds), device_of(model), solver or Heun()
    cond, high = labels_for(model, seeds, labels, device), model.sigma_range[1]
    apart = model.n_classes if labels == "balanced" and model.n_classes else 1
    if n < 2 * apart:
        raise BadValue(f"at least {2 * apart} seeds are needed, two for each class; got {n}")
    whole = cost_of(model, lows, factors, n_points, solver) if tell is not None else 1
    other, path, calls = torch.arange(n).roll(apart), model.path, model.n_calls
    x = path.at(path.time_at(high))[1] * seeds.fresh().normal(tuple(model.shape), device=device)
    at, shape = high, (len(lows), len(factors))
    survival, error, tops = (np.full(shape, math.nan) for _ in range(3))
    added = np.full((*shape, len(n_points)), math.nan)
    for i in sorted(range(len(lows)), key=lambda i: -lows[i]):
        x, at = _exactly(model, x, at, lows[i], cond), lows[i]
        alpha = path.at(path.time_at(at))[0]
        for j, factor in enumerate(factors):
            if (top := at * factor) > high:
                continue
            tops[i, j] = top
            jumps = Seeds(s + 2**40 for s in seeds.ids)
            fine = Restart(_points(top / at), 1, at, top)
            end = repeated(model, x, fine, RK4(), cond=cond, rng=jumps.fresh())
            moved = repeated(model, x[other], fine, RK4(), cond=cond, rng=jumps.fresh())
            before, after = _squares(x[other] - x), _squares(moved - end)
            survival[i, j] = (after.mean() / before.mean()) ** 0.5
            share = after / before.mean() - survival[i, j] ** 2 * before / before.mean()
            error[i, j] = share.std(ddof=1) / n**0.5 / (2 * survival[i, j])
            for k, m in enumerate(n_points):
                coarse = repeated(model, x, Restart(m, 1, at, top), solver, cond=cond, rng=jumps.fresh())
                added[i, j, k] = (_squares(coarse - end).mean()) ** 0.5 / alpha
            if tell is not None:
                tell(min((model.n_calls - calls) / whole, 1.0))
    if tell is not None:
        tell(1.0)
    dims = ("low", "factor")
    return xr.Dataset(
        {"survival": (dims, survival), "survival_se": (dims, error), "added": ((*dims, "n_points"), added)},
        {"low": list(lows), "factor": list(factors), "n_points": list(n_points), "sigma_max": (dims, tops)},
        {"n": n, "n_evals": (model.n_calls - calls) * n, "model": model.name},
    )


def cost_of(
    model: Denoiser, lows: Sequence[float], factors: Sequence[float], n_points: Sequence[int], solver: Solver
) -> int:
    """Network evaluations for each state that `forgetting` will take, guidance included; nothing is computed."""
    high, path, total = model.sigma_range[1], model.path, 0
    at = high

    def way(grid: TimeGrid, solver: Solver) -> int:
        return sum(model.calls_at(t) for t in solver.eval_times(grid.on(path), path))

    for low in sorted(lows, reverse=True):
        if low != at:
            total += way(_fine(low, at), RK4())
        at = low
        for top in (low * factor for factor in factors if low * factor <= high):
            down = [(_points(top / low), RK4(), 2), *((m, solver, 1) for m in n_points)]
            for points, walked, times in down:
                total += times * way(TimeGrid.karras(points - 1, low, top, Restart.rho, to_zero=False), walked)
    return total


def _points(factor: float) -> int:
    """Times of the way down that stands for the exact one."""
    return 1 + math.ceil(FINE * max(math.log2(factor), 1))


def _fine(low: float, high: float) -> TimeGrid:
    return TimeGrid.log_snr(math.ceil(FINE * max(math.log2(high / low), 1)), low, high, to_zero=False)


def _exactly(model: Denoiser, x: Tensor, sigma: float, to: float, cond) -> Tensor:
    if to == sigma:
        return x
    return solve(model, RK4(), x, _fine(to, sigma).on(model.path), cond=cond)


def _squares(x: Tensor) -> np.ndarray:
    return x.flatten(1).square().sum(dim=1).cpu().numpy()


@dataclass(frozen=True)
class Candidate:
    """A setting with what the measurements predict of it: the share of a difference that survives, and the error that is made."""

    setting: Setting
    survival: float
    added: float


@dataclass(frozen=True)
class RestartSearch(Tuner):
    """Settings with one restart interval at a given cost: for each lower end those that no other beats in both survival and added error.

    Survival says nothing of how large the differences are that should be forgotten (they stem from the network, too), nor of those that
    arise below the interval. So the tuner proposes the whole fronts, in order of the error they add, and the objective decides. The main
    grid is thinned to what the repeats leave.

    Args:
        nfe: evaluations a sample; None is as many as the start takes.
        lows, factors: lower ends of the intervals, and how far up they go; lower ends move to the nearest node of each main grid.
        most_repeats: largest K; n_points: times on the way down.
        candidates: about how many proposals; longer fronts are thinned evenly.
        n: states measured.
    """

    nfe: int | None = None
    lows: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
    factors: tuple[float, ...] = (1.5, 2.0, 4.0, 10.0, 30.0)
    n_points: tuple[int, ...] = (2, 3, 4)
    most_repeats: int = 8
    candidates: int = 24
    n: int = 40
    name = "restart intervals by measured contraction"

    def check(self, task, budget):
        super().check(task, budget)
        model, start = task.model, task.start
        lows, solver = self._lows(model, start), _solver(start)
        cheapest = (min(self.n_points), 1)
        high = start.on(model)[0].sigma_range[1]
        tops = [(low, low * factor) for low in lows for factor in self.factors if low * factor <= high]
        if not any(self._setting(model, start, (*cheapest, *interval)) is not None for interval in tops):
            raise self._no_room(model, start)
        n, nfe = self._states(model, task.objective.seeds), start.nfe(model)
        if budget.nfe is not None and nfe is not None:
            measured = n * cost_of(start.on(model)[0], lows, self.factors, self.n_points, solver)
            least = measured + 2 * nfe * task.objective.least
            if budget.nfe < least:
                raise BadValue(
                    f"a budget of {budget.nfe} network evaluations is too small: measuring contraction takes {measured} on {n} states, and "
                    f"the baseline and one trial {least - measured}. Allow more, or measure fewer states, lower ends or factors."
                )

    def search(self, task):
        yield Proposal(task.start, note="start")
        found, spent = self.front(task.model, task.start, task.objective.seeds, task.objective.labels, task.tell)
        for candidate in found:
            note = f"{candidate.survival:.2g} of a difference survives, {candidate.added:.2g} is added"
            yield Proposal(candidate.setting, note=note, extra=spent)
            spent = 0

    def front(
        self,
        model: Denoiser,
        start: Setting,
        seeds: range,
        labels: Labels = "balanced",
        tell: Callable[[str, float], object] = unheard,
    ) -> tuple[list[Candidate], int]:
        """Candidates in order of the error they add, the plain sampler left out, and the network evaluations times samples this took.

        Args:
            tell: hears what is being measured, and which share of it is done.
        Raises: BadValue for a flow map, or where not even one repeat fits into the evaluations.
        """
        lows, grid, solver = self._lows(model, start), grid_of(start), _solver(start)
        wrapped, _ = start.on(model)
        n = self._states(model, seeds)
        seeds, low = Seeds(seeds[:n]), wrapped.sigma_range[0]
        labels = first_labels(labels, n)
        told = f"measuring contraction on {n} states"
        map_ = forgetting(
            wrapped, seeds, lows, self.factors, self.n_points, solver, labels, lambda share: tell(told, share)
        )
        missed: dict[int, float] = {}
        calls, found = wrapped.n_calls, {bottom: [] for bottom in lows}
        cond = labels_for(wrapped, seeds, labels, device_of(wrapped))
        noise = seeds.fresh().normal(tuple(wrapped.shape), device=device_of(wrapped))
        exact = OdeSampler(Heun(), TimeGrid.karras(64, low, grid.times[0]))

        @torch.inference_mode()
        def miss(main: TimeGrid) -> float:
            """Root mean square error at the end of the main grid's own steps."""
            if not missed:
                missed[0] = exact.sample(wrapped, noise, cond)
            if main.n_steps not in missed:
                gap = OdeSampler(solver, main).sample(wrapped, noise, cond) - missed[0]
                missed[main.n_steps] = float(_squares(gap).mean() ** 0.5)
            return missed[main.n_steps]

        for i, bottom in enumerate(lows):
            tell("fitting repeats into the evaluations", i / len(lows))
            for j, factor in enumerate(self.factors):
                for k, points in enumerate(self.n_points):
                    for repeats in range(1, self.most_repeats + 1):
                        setting = self._setting(model, start, (points, repeats, bottom, bottom * factor))
                        if setting is None or not math.isfinite(map_.survival.values[i, j]):
                            continue
                        error = miss(setting.sampler.grid) + repeats * float(map_.added.values[i, j, k])
                        left = max(float(map_.survival.values[i, j]) ** repeats, FORGOTTEN)
                        found[bottom].append(Candidate(setting, left, error))
        if not any(found.values()):
            raise self._no_room(model, start)
        fronts = [front_of(rows) for rows in found.values()]
        share = max(self.candidates // max(sum(map(bool, fronts)), 1), 1)
        kept = [c for front in fronts for c in thinned(front, share)]
        return sorted(kept, key=lambda c: c.added), map_.n_evals + (wrapped.n_calls - calls) * n

    def _lows(self, model: Model, start: Setting) -> list[float]:
        """Lower ends that lie on the way of the start. Raises BadValue where the model or the sampler has no such way."""
        if isinstance(model, FlowMap):
            raise BadValue(f"a restart walks an ODE, and {model.name or 'this model'} is a flow map")
        first = grid_of(start).times[0]
        if _solver(start).stochastic:
            raise BadValue(f"{start.describe()} draws noise in every step: restarts need a solver without noise")
        return [s for s in self.lows if start.on(model)[0].sigma_range[0] < s < first]

    def _states(self, model: Model, seeds: range) -> int:
        return min(max(self.n, 2 * model.n_classes), len(seeds))

    def _no_room(self, model: Model, start: Setting) -> BadValue:
        limit = self.nfe or start.nfe(model)
        return BadValue(f"not one restart fits into {limit} evaluations a sample beside the main steps: allow more")

    def _setting(self, model, start, interval) -> Setting | None:
        points, repeats, bottom, top = interval
        grid, solver, limit = grid_of(start), _solver(start), self.nfe or start.nfe(model)

        def made(n):
            sampler = RestartSampler(
                stretched(grid, n), (Restart(points, repeats, bottom, min(top, grid.times[0])),), solver
            )
            return dataclasses.replace(start, sampler=sampler)

        try:
            return most_steps(made, model, limit)
        except BadValue:  # too dear, or no node of the main grid is near
            return None


def _solver(start: Setting) -> Solver:
    return getattr(start.sampler, "solver", Heun())


def front_of(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates that no other beats in both numbers, by the error they add."""
    front: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.added, c.survival)):
        if not front or candidate.survival < front[-1].survival:
            front.append(candidate)
    return front


def thinned(front: Sequence[Candidate], most: int) -> list[Candidate]:
    """At most that many of a front, evenly, its ends among them."""
    if len(front) <= most:
        return list(front)
    places = np.linspace(0, len(front) - 1, most) if most > 1 else np.array([(len(front) - 1) / 2])
    return [front[i] for i in np.unique(places.round().astype(int))]
