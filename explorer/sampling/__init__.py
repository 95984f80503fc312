"""Model and time grid to samples: seeds, grids, solvers, samplers."""

from explorer.sampling.grids import GRIDS, TimeGrid, grid
from explorer.sampling.samplers import (
    OdeSampler,
    Sampler,
    device_of,
    labels_for,
    sample,
    sampler_from_dict,
    sampler_from_json,
)
from explorer.sampling.seeds import Seeds
from explorer.sampling.solve import Observer, Solver, Step, denoised_of, slope_of, solve
from explorer.sampling.solvers import DDIM, RK4, SOLVERS, Alpha2, DPMpp2M, EDMStochastic, Euler, Heun, Midpoint

__all__ = [
    "DDIM", "GRIDS", "RK4", "SOLVERS", "Alpha2", "DPMpp2M", "EDMStochastic", "Euler", "Heun", "Midpoint", "Observer", "OdeSampler",
    "Sampler", "Seeds", "Solver", "Step", "TimeGrid", "denoised_of", "device_of", "grid", "labels_for", "sample", "sampler_from_dict",
    "sampler_from_json", "slope_of", "solve",
]  # fmt: skip
