"""EDM's ablation: solver, time steps, noise schedule and scaling, each chosen apart, assembled into an ordinary sampler.

What earlier samplers fixed together are four independent choices. A choice of schedule and scaling is a path, a choice of time steps a
grid in sigma, so a combination is an `OdeSampler` and everything that runs, records or measures samplers works on it.

Source: Karras et al. 2022, arXiv 2206.00364, Table 1 and Alg. 1.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

from explorer.errors import BadValue, UnknownName
from explorer.process.paths import EDM, VE, VP, Factored, Path, Scaling, Schedule
from explorer.process.precondition import IDDPMPrecondition
from explorer.sampling.grids import TimeGrid
from explorer.sampling.samplers import OdeSampler
from explorer.sampling.solve import Solver
from explorer.sampling.solvers import Alpha2, Euler, Heun

Discretisation = Literal["vp", "ve", "iddpm", "edm"]

BETA_MIN, BETA_D, EPSILON = 0.1, 19.9, 1e-3
"""Of the VP column: beta at the ends of [0, 1], and the last time before 0."""

J_FIRST = 8
"""Of the iDDPM column: the index j_0 of the first level used."""

COLUMNS: dict[str, dict[str, str]] = {
    "vp": {"solver": "euler", "steps": "vp", "schedule": "vp", "scaling": "vp"},
    "ve": {"solver": "euler", "steps": "ve", "schedule": "ve", "scaling": "none"},
    "iddpm": {"solver": "euler", "steps": "iddpm", "schedule": "linear", "scaling": "none"},
    "edm": {"solver": "heun", "steps": "edm", "schedule": "linear", "scaling": "none"},
}
"""The columns of Table 1: `ablation_sampler(n, **COLUMNS["ve"])`."""


def default_range(steps: Discretisation) -> tuple[float, float]:
    """(sigma_min, sigma_max) that Table 1 gives to a discretisation."""
    if steps == "vp":
        return VP(BETA_MIN, BETA_D).ratio_at(EPSILON), VP(BETA_MIN, BETA_D).ratio_at(1.0)
    if steps == "iddpm":
        levels = IDDPMPrecondition().levels()
        return float(levels[-2]), float(levels[J_FIRST])
    return (0.02, 100.0) if steps == "ve" else (0.002, 80.0)


def fitted_vp(sigma_min: float, sigma_max: float) -> tuple[float, float]:
    """(beta_min, beta_d) with sigma(EPSILON) = sigma_min and sigma(1) = sigma_max."""
    if not 0 < sigma_min < sigma_max:
        raise BadValue(f"sigma_min must be positive and below sigma_max, got {sigma_min:g} and {sigma_max:g}")
    low, high = math.log1p(sigma_min**2), math.log1p(sigma_max**2)  # = beta_d t^2 / 2 + beta_min t at the ends
    beta_d = 2 * (high - low / EPSILON) / (1 - EPSILON)
    beta_min = high - 0.5 * beta_d
    if beta_min < 0 or beta_d < 0:
        raise BadValue(
            f"no linear beta leads from sigma = {sigma_min:g} at t = {EPSILON} to {sigma_max:g} at t = 1 "
            f"(beta_min = {beta_min:.3g}, beta_d = {beta_d:.3g}): choose a sigma_min nearer 0.01 or another schedule"
        )
    return beta_min, beta_d


def ablation_path(
    schedule: Schedule = "linear", scaling: Scaling = "none", *, beta_min: float = BETA_MIN, beta_d: float = BETA_D
) -> Path:
    """The path of a noise schedule sigma(t) and a scaling s(t); the betas are those of a "vp" schedule."""
    named = {("linear", "none"): EDM(), ("ve", "none"): VE(), ("vp", "vp"): VP(beta_min, beta_d)}
    return named.get((schedule, scaling)) or Factored(schedule, scaling, beta_min, beta_d)


def ablation_grid(
    n_steps: int,
    steps: Discretisation = "edm",
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
) -> TimeGrid:
    """n_steps values of sigma and 0, spaced as in the paper's Table 1.

    Args:
        steps: "vp": t from 1 to 0.001 evenly; "ve": ln sigma evenly; "iddpm": evenly in the index of the 1000 levels of the improved
            cosine schedule, rounded; "edm": sigma^(1 / rho) evenly.
        sigma_min, sigma_max: by default those of `default_range`. For "vp" the betas are fitted to them, for "iddpm" the levels outside
            are left out.
    Raises:
        BadValue: fewer than one step, more than there are levels, a range that is empty.
    """
    if steps not in get_args(Discretisation):
        raise UnknownName("discretisation", steps, get_args(Discretisation))
    low, high = _range(steps, sigma_min, sigma_max)
    if steps == "edm":
        return TimeGrid.karras(n_steps, low, high, rho)
    if steps == "ve":
        return TimeGrid.log_snr(n_steps, low, high)
    TimeGrid.karras(n_steps, low, high)  # its complaints about n_steps and the range
    fractions = [i / (n_steps - 1) for i in range(n_steps)] if n_steps > 1 else [0.0]
    if steps == "vp":
        path = VP(*_betas(steps, sigma_min, sigma_max))
        sigmas = [path.ratio_at(1.0 + u * (EPSILON - 1.0)) for u in fractions]
    else:
        levels = IDDPMPrecondition().levels()[:-1].tolist()
        inside = [u for u in levels if low * (1 - 1e-12) <= u <= high * (1 + 1e-12)]
        if n_steps > len(inside):
            raise BadValue(f"{n_steps} steps are more than the {len(inside)} levels of iDDPM from {low:g} to {high:g}")
        sigmas = [inside[math.floor(u * (len(inside) - 1) + 0.5)] for u in fractions]
    return TimeGrid((*sigmas, 0.0))


def ablation_sampler(
    n_steps: int,
    *,
    solver: Literal["euler", "heun"] | Solver = "heun",
    steps: Discretisation = "edm",
    schedule: Schedule = "linear",
    scaling: Scaling = "none",
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
    alpha: float = 1.0,
) -> OdeSampler:
    """The deterministic sampler of EDM's Alg. 1 with these choices; any other solver may take the place of "euler" and "heun".

    Args:
        alpha: inner point of the second-order family, for "heun".
        sigma_min, sigma_max: override the range of `steps`; a "vp" schedule is then fitted to it.
    On the "ve" schedule the last step, from sigma_min to t = 0, removes half of the remaining noise only: that is Alg. 1 there.
    """
    if isinstance(solver, str):
        if solver not in ("euler", "heun"):
            raise UnknownName("solver of the ablation", solver, ("euler", "heun"))
        solver = Euler() if solver == "euler" else Heun() if alpha == 1.0 else Alpha2(alpha)
    grid = ablation_grid(n_steps, steps, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    betas = (
        dict(zip(("beta_min", "beta_d"), _betas(steps, sigma_min, sigma_max), strict=True)) if schedule == "vp" else {}
    )
    return OdeSampler(solver, grid, ablation_path(schedule, scaling, **betas))


def _range(steps: Discretisation, sigma_min: float | None, sigma_max: float | None) -> tuple[float, float]:
    low, high = default_range(steps)
    return low if sigma_min is None else sigma_min, high if sigma_max is None else sigma_max


def _betas(steps: Discretisation, sigma_min: float | None, sigma_max: float | None) -> tuple[float, float]:
    """Those of Table 1, or fitted where the range was overridden."""
    if sigma_min is None and sigma_max is None:
        return BETA_MIN, BETA_D
    return fitted_vp(*_range(steps, sigma_min, sigma_max))
