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
from explorer.sampling.solvers import (
    DDIM,
    DEIS,
    IPNDM,
    RK4,
    SOLVERS,
    AdamsBashforth,
    Alpha2,
    DPMpp1SDE,
    DPMpp2M,
    DPMpp2MSDE,
    DPMpp2S,
    DPMpp3M,
    DPMpp3MSDE,
    DPMppSDE,
    DPMSolver2,
    DPMSolver3,
    EDMStochastic,
    Euler,
    Heun,
    Heun3,
    IPNDMv,
    Midpoint,
    UniPC,
)

__all__ = [
    "DDIM", "DEIS", "GRIDS", "IPNDM", "RK4", "SOLVERS", "AdamsBashforth", "Alpha2", "DPMSolver2", "DPMSolver3", "DPMpp1SDE", "DPMpp2M",
    "DPMpp2MSDE", "DPMpp2S", "DPMpp3M", "DPMpp3MSDE", "DPMppSDE", "EDMStochastic", "Euler", "Heun", "Heun3", "IPNDMv", "Midpoint",
    "Observer", "OdeSampler", "Sampler", "Seeds", "Solver", "Step", "TimeGrid", "UniPC", "denoised_of", "device_of", "grid", "labels_for",
    "sample", "sampler_from_dict", "sampler_from_json", "slope_of", "solve",
]  # fmt: skip
