"""A network made to mean something: denoisers, exact oracles, and wrappers that take and give the same interface."""

from explorer.models.base import Cond, Denoiser, FlowMap, Model, Oracle, Preconditioned, as_denoiser
from explorer.models.flow_maps import ConsistencyModel, as_flow_map
from explorer.models.guidance import MultiGuided, Truncated, blended
from explorer.models.wrappers import AskedElsewhere, Guided, LayersLeftOut, Moved, SkipTuned, skip_schedule

__all__ = [
    "AskedElsewhere",
    "Cond",
    "ConsistencyModel",
    "Denoiser",
    "FlowMap",
    "Guided",
    "LayersLeftOut",
    "Model",
    "Moved",
    "MultiGuided",
    "Oracle",
    "Preconditioned",
    "SkipTuned",
    "Truncated",
    "as_denoiser",
    "as_flow_map",
    "blended",
    "skip_schedule",
]
