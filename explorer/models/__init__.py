"""A network made to mean something: denoisers, exact oracles, and wrappers that take and give the same interface."""

from explorer.models.base import Cond, Denoiser, Oracle, Preconditioned, as_denoiser
from explorer.models.wrappers import Guided, Moved, SkipTuned, skip_schedule

__all__ = [
    "Cond",
    "Denoiser",
    "Guided",
    "Moved",
    "Oracle",
    "Preconditioned",
    "SkipTuned",
    "as_denoiser",
    "skip_schedule",
]
