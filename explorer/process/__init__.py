"""What the corruption is: paths, preconditionings, training-time distributions and models known in closed form. Torch only."""

from explorer.process.broadcast import like
from explorer.process.oracles import GaussianMixture
from explorer.process.paths import EDM, KINDS, PATHS, VE, VP, CosineVP, Factored, Kind, Linear, Path, Trig
from explorer.process.precondition import (
    PRECONDITIONS,
    ConsistencyPrecondition,
    EDMPrecondition,
    FlowPrecondition,
    IDDPMPrecondition,
    Precondition,
    TrigFlowPrecondition,
    VPrecondition,
)
from explorer.process.times import KarrasUniform, LogitNormal, LogNormal, LogUniform, TimeDistribution, Uniform, UShaped

__all__ = [
    "EDM", "KINDS", "PATHS", "PRECONDITIONS", "VE", "VP", "ConsistencyPrecondition", "CosineVP", "EDMPrecondition",
    "Factored", "FlowPrecondition", "GaussianMixture", "IDDPMPrecondition", "KarrasUniform", "Kind", "Linear",
    "LogNormal", "LogUniform", "LogitNormal", "Path", "Precondition", "TimeDistribution", "Trig",
    "TrigFlowPrecondition", "UShaped", "Uniform", "VPrecondition", "like",
]  # fmt: skip
