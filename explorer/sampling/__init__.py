"""Model and time grid to samples: seeds, grids, solvers, samplers."""

from explorer.sampling.ablation import ablation_sampler
from explorer.sampling.chain import ChainSampler
from explorer.sampling.grids import GRIDS, TimeGrid, grid, noise_levels
from explorer.sampling.restart import Restart, RestartSampler, repeated, restart_preset
from explorer.sampling.samplers import (
    SAMPLERS,
    OdeSampler,
    Sampler,
    device_of,
    labels_for,
    labels_of,
    sample,
    sampler_from_dict,
    sampler_from_json,
    sigmas_of,
)
from explorer.sampling.scale_time import ScaleTime, ScaleTimeSampler, Warp
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
    Chord,
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
    EulerMaruyama,
    Heun,
    Heun3,
    IPNDMv,
    Jump,
    Midpoint,
    PredictorCorrector,
    UniPC,
)
from explorer.sampling.solvers.adaptive import AdaptiveReport, AdaptiveSampler

__all__ = [
    "AdamsBashforth", "AdaptiveReport", "AdaptiveSampler", "Alpha2", "ChainSampler", "Chord", "DDIM", "DEIS", "DPMSolver2", "DPMSolver3",
    "DPMpp1SDE", "DPMpp2M", "DPMpp2MSDE", "DPMpp2S", "DPMpp3M", "DPMpp3MSDE", "DPMppSDE", "EDMStochastic", "Euler", "EulerMaruyama",
    "GRIDS", "Heun", "Heun3", "IPNDM", "IPNDMv", "Jump", "Midpoint", "Observer", "OdeSampler", "PredictorCorrector", "RK4", "Restart",
    "RestartSampler", "SAMPLERS", "SOLVERS", "Sampler", "ScaleTime", "ScaleTimeSampler", "Seeds", "Solver", "Step", "TimeGrid", "UniPC",
    "Warp", "ablation_sampler", "denoised_of", "device_of", "grid", "labels_for", "labels_of", "noise_levels", "repeated",
    "restart_preset", "sample", "sampler_from_dict", "sampler_from_json", "sigmas_of", "slope_of", "solve",
]  # fmt: skip
