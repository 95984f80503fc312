"""What the corruption is: paths, preconditionings, training-time distributions and models known in closed form. Torch only."""

from explorer.process.broadcast import like
from explorer.process.paths import EDM, KINDS, PATHS, VP, CosineVP, Kind, Linear, Path, Trig
from explorer.process.precondition import (
    PRECONDITIONS,
    EDMPrecondition,
    FlowPrecondition,
    IDDPMPrecondition,
    Precondition,
    TrigFlowPrecondition,
    VPrecondition,
)

__all__ = [
    "EDM", "KINDS", "PATHS", "PRECONDITIONS", "VP", "CosineVP", "EDMPrecondition", "FlowPrecondition", "IDDPMPrecondition", "Kind",
    "Linear", "Path", "Precondition", "Trig", "TrigFlowPrecondition", "VPrecondition", "like",
]  # fmt: skip
