"""Tuning without training: objectives on fixed noise, searches over grids, solvers, skips and guidance, numbers on noise never seen."""

from explorer.tuning.objective import (
    FunctionObjective,
    LocalError,
    Measurement,
    MetricObjective,
    Objective,
    TruncationError,
)
from explorer.tuning.recorded import AlignSteps, DynamicProgram
from explorer.tuning.restarts import RestartSearch, forgetting
from explorer.tuning.search import CMA, Chain, Coordinate, Halving, Listed, Optuna
from explorer.tuning.setting import Guidance, Layers, Setting, Skips, Wrapper, fingerprint
from explorer.tuning.space import GuidanceSpace, Joint, Nodes, RestartSpace, SkipScales, Space, every_solver
from explorer.tuning.study import Budget, Proposal, Study, Task, Trial, Tuner, pareto, tune
from explorer.tuning.tuned import Point, Tuned, held_out_front

__all__ = [
    "AlignSteps", "Budget", "CMA", "Chain", "Coordinate", "DynamicProgram", "FunctionObjective", "Guidance", "GuidanceSpace", "Halving",
    "Joint", "Layers", "Listed", "LocalError", "Measurement", "MetricObjective", "Nodes", "Objective", "Optuna", "Point", "Proposal",
    "RestartSearch", "RestartSpace", "Setting", "SkipScales", "Skips", "Space", "Study", "Task", "Trial", "TruncationError", "Tuned", "Tuner", "Wrapper",
    "every_solver", "fingerprint", "forgetting", "held_out_front", "pareto", "tune",
]  # fmt: skip
