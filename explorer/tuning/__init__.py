"""Tuning without training: objectives on fixed noise, searches over grids, solvers, skips and guidance, numbers on noise never seen."""

from explorer.tuning.gradient import Gradient, once_a_step, unrollable
from explorer.tuning.landscape import landscape
from explorer.tuning.objective import (
    FunctionObjective,
    LocalError,
    Measurement,
    MetricObjective,
    Objective,
    Solution,
    TruncationError,
)
from explorer.tuning.recorded import AlignSteps, DynamicProgram
from explorer.tuning.restarts import RestartSearch, forgetting
from explorer.tuning.search import CMA, Chain, Coordinate, Halving, Listed, Optuna
from explorer.tuning.setting import Asked, Guidance, Layers, Setting, Skips, Wrapper, fingerprint, wrapper_from_dict
from explorer.tuning.shared import SharedStudy
from explorer.tuning.space import GuidanceSpace, Joint, Nodes, RestartSpace, SkipScales, Space, every_solver, spread
from explorer.tuning.study import Budget, Proposal, Study, Task, Trial, Tuner, pareto, tune
from explorer.tuning.tuned import Point, Tuned, held_out_front
from explorer.tuning.weights import Basis, Combinations, Evolution, Weights, ema_coefficients

__all__ = [
    "AlignSteps", "Asked", "Basis", "Budget", "CMA", "Chain", "Combinations", "Coordinate", "DynamicProgram", "Evolution",
    "FunctionObjective", "Gradient", "Guidance", "GuidanceSpace", "Halving", "Joint", "Layers", "Listed", "LocalError",
    "Measurement", "MetricObjective", "Nodes", "Objective", "Optuna", "Point", "Proposal", "RestartSearch", "RestartSpace",
    "Setting", "SharedStudy", "SkipScales", "Skips", "Solution", "Space", "Study", "Task", "Trial", "TruncationError", "Tuned",
    "Tuner", "Weights", "Wrapper", "ema_coefficients", "every_solver", "fingerprint", "forgetting", "held_out_front", "landscape",
    "once_a_step", "pareto", "spread", "tune", "unrollable", "wrapper_from_dict",
]  # fmt: skip
