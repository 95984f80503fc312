"""trajectory-explorer: see, measure and tune the trajectories of few-step generative models.

The public names below are loaded on first use, so `import explorer` costs next to nothing and needs no optional package.

>>> import explorer as ex
>>> model = ex.load("oracle-8gaussians")
>>> sampler = ex.OdeSampler(ex.Heun(), ex.TimeGrid.karras(9, 0.002, 80.0))
>>> ex.sample(model, sampler, seeds=range(4)).shape
torch.Size([4, 2])
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "explorer.errors": ("BadFile", "BadValue", "ExplorerError", "MissingExtra", "NonFinite", "UnknownName"),
    "explorer.process": (
        "EDM", "VP", "ConsistencyPrecondition", "CosineVP", "EDMPrecondition", "FlowPrecondition", "GaussianMixture", "IDDPMPrecondition",
        "Linear", "Trig", "TrigFlowPrecondition", "VPrecondition",
    ),
    "explorer.process.couplings": ("ByClass", "ExactOT", "Independent", "PartialOT", "Sinkhorn", "UnbalancedOT"),
    "explorer.nets": ("MLP", "UNet"),
    "explorer.models": (
        "AskedElsewhere", "ConsistencyModel", "Denoiser", "FlowMap", "Guided", "LayersLeftOut", "MultiGuided", "Oracle",
        "Preconditioned", "SkipTuned", "as_denoiser", "as_flow_map",
    ),
    "explorer.models.bundled": ("load", "save_model"),
    "explorer.data": ("load_dataset",),
    "explorer.papers": ("atlas",),
    "explorer.sampling": (
        "DDIM", "DEIS", "IPNDM", "RK4", "AdamsBashforth", "Alpha2", "Chord", "DPMSolver2", "DPMSolver3", "DPMpp1SDE", "DPMpp2M",
        "DPMpp2MSDE", "DPMpp2S", "DPMpp3M", "DPMpp3MSDE", "DPMppSDE", "EDMStochastic", "Euler", "Heun", "Heun3", "IPNDMv", "Jump",
        "Midpoint", "OdeSampler", "Restart", "RestartSampler", "Seeds", "TimeGrid", "UniPC", "sample", "sampler_from_json", "solve",
    ),
    "explorer.metrics": ("Estimate", "Frechet", "Reference", "verdict"),
    "explorer.trajectory": (
        "RunningBudget", "RunningGeometry", "arc_chord", "attribution", "bytes_needed", "compare_maps", "contraction", "coupling_cost",
        "crossings", "curvature", "decisions", "effective_dimension", "end_distance", "local_error", "log_likelihood", "lyapunov",
        "microscope", "nfss", "principal_basis", "record", "straightness", "turning_angle",
    ),
    "explorer.training": ("Plan", "train"),
    "explorer.knobs": ("SamplerKnobs",),
    "explorer.live": ("metric_for", "quality"),
    "explorer.paired": ("Comparison", "Side", "compare"),
    "explorer.tuning": ("Budget", "MetricObjective", "Setting", "Study", "TruncationError", "Tuned", "tune"),
}  # fmt: skip
_MODULES = (
    "apps",
    "data",
    "metrics",
    "models",
    "nets",
    "papers",
    "process",
    "sampling",
    "training",
    "trajectory",
    "tuning",
    "viz",
)
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = [*_HOME, *_MODULES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"explorer.{name}")
    raise AttributeError(f"module 'explorer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
