"""Solvers: one class per method, listed once in SOLVERS."""

from explorer.sampling.solve import Solver
from explorer.sampling.solvers.chord import Chord
from explorer.sampling.solvers.exponential import DDIM, DPMpp1SDE, DPMpp2M, DPMpp2MSDE, DPMpp3M, DPMpp3MSDE, UniPC
from explorer.sampling.solvers.jumps import Jump
from explorer.sampling.solvers.multistep import DEIS, IPNDM, AdamsBashforth, IPNDMv
from explorer.sampling.solvers.runge_kutta import RK4, Alpha2, Euler, Heun, Heun3, Midpoint
from explorer.sampling.solvers.singlestep import DPMpp2S, DPMppSDE, DPMSolver2, DPMSolver3
from explorer.sampling.solvers.stochastic import EDMStochastic, EulerMaruyama, PredictorCorrector

SOLVERS: dict[str, type[Solver]] = {
    "euler": Euler,
    "heun": Heun,
    "alpha2": Alpha2,
    "midpoint": Midpoint,
    "heun3": Heun3,
    "rk4": RK4,
    "ab": AdamsBashforth,
    "ddim": DDIM,
    "dpm-solver-2": DPMSolver2,
    "dpm-solver-3": DPMSolver3,
    "dpmpp-2s": DPMpp2S,
    "dpmpp-2m": DPMpp2M,
    "dpmpp-3m": DPMpp3M,
    "unipc": UniPC,
    "deis": DEIS,
    "ipndm": IPNDM,
    "ipndm-v": IPNDMv,
    "dpmpp-1-sde": DPMpp1SDE,
    "dpmpp-sde": DPMppSDE,
    "dpmpp-2m-sde": DPMpp2MSDE,
    "dpmpp-3m-sde": DPMpp3MSDE,
    "edm-stochastic": EDMStochastic,
    "euler-maruyama": EulerMaruyama,
    "predictor-corrector": PredictorCorrector,
    "jump": Jump,
    "chord": Chord,
}

__all__ = [
    "DDIM", "DEIS", "IPNDM", "RK4", "SOLVERS", "AdamsBashforth", "Alpha2", "Chord", "DPMSolver2", "DPMSolver3", "DPMpp1SDE", "DPMpp2M",
    "DPMpp2MSDE", "DPMpp2S", "DPMpp3M", "DPMpp3MSDE", "DPMppSDE", "EDMStochastic", "Euler", "EulerMaruyama", "Heun", "Heun3",
    "IPNDMv", "Jump", "Midpoint", "PredictorCorrector", "UniPC",
]  # fmt: skip
