"""Solvers: one class per method, listed once in SOLVERS."""

from explorer.sampling.solve import Solver
from explorer.sampling.solvers.exponential import DDIM, DPMpp2M
from explorer.sampling.solvers.runge_kutta import RK4, Alpha2, Euler, Heun, Midpoint
from explorer.sampling.solvers.stochastic import EDMStochastic

SOLVERS: dict[str, type[Solver]] = {
    "euler": Euler,
    "heun": Heun,
    "alpha2": Alpha2,
    "midpoint": Midpoint,
    "rk4": RK4,
    "ddim": DDIM,
    "dpmpp-2m": DPMpp2M,
    "edm-stochastic": EDMStochastic,
}

__all__ = ["DDIM", "RK4", "SOLVERS", "Alpha2", "DPMpp2M", "EDMStochastic", "Euler", "Heun", "Midpoint"]
