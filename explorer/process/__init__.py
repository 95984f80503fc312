"""What the corruption is: paths, preconditionings, training-time distributions and models known in closed form. Torch only."""

from explorer.process.broadcast import like
from explorer.process.oracles import GaussianMixture
from explorer.process.paths import EDM, KINDS, PATHS, VE, VP, CosineVP, Factored, Kind, Linear, Path, Trig
from explorer.process.precondition import (
    PRECONDITIONS,
    EDMPrecondition,
    FlowPrecondition,
    IDDPMPrecondition,
    Precondition,
    TrigFlowPrecondition,
    VPrecondition,
)
from explorer.process.times import LogitNormal, LogNormal, LogUniform, TimeDistribution, Uniform, UShaped

__all__ = [
    "EDM", "KINDS", "PATHS", "PRECONDITIONS", "VE", "VP", "CosineVP", "EDMPrecondition", "Factored", "FlowPrecondition", "GaussianMixture",
    "IDDPMPrecondition", "Kind", "Linear", "LogNormal", "LogUniform", "LogitNormal", "Path", "Precondition", "TimeDistribution",
    "Trig", "TrigFlowPrecondition", "UShaped", "Uniform", "VPrecondition", "like",
]  # fmt: skip
