"""Training: a method yields updates, one loop applies them."""

from explorer.training.checkpoint import load_checkpoint, save_checkpoint
from explorer.training.ema import Ema, ema_, power_gamma
from explorer.training.levels import LEVEL_CENTRES, LEVEL_EDGES, LevelLoss, level_history
from explorer.training.log import read_log
from explorer.training.loop import Tick, seeded, train
from explorer.training.method import Method, Progress, Update
from explorer.training.plan import EmaPlan, OptimizerPlan, Plan
from explorer.training.posthoc import posthoc_ema
from explorer.training.weights import Snapshot, best, snapshots

__all__ = [
    "LEVEL_CENTRES",
    "LEVEL_EDGES",
    "Ema",
    "EmaPlan",
    "LevelLoss",
    "Method",
    "OptimizerPlan",
    "Plan",
    "Progress",
    "Snapshot",
    "Tick",
    "Update",
    "best",
    "ema_",
    "level_history",
    "load_checkpoint",
    "posthoc_ema",
    "power_gamma",
    "read_log",
    "save_checkpoint",
    "seeded",
    "snapshots",
    "train",
]
