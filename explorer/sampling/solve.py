"""The step loop, what a solver is, and how a run is watched.

A solver is `init` and `step` on explicit state, so anybody can step by hand; the loop belongs to nobody in particular. Times are Python
floats of the model's own path, decreasing from noise to data; the state is float64 where the caller made it so.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from explorer.errors import NonFinite
from explorer.models.base import Cond, Denoiser, affine
from explorer.process.paths import Kind, Path
from explorer.sampling.seeds import Seeds


class Step(NamedTuple):
    """What one step did. Of `slope`, `denoised` and `eps` the solver fills what it computed; `slope_of` and `denoised_of` convert."""

    x: Tensor  # state after the step, (B, *shape)
    slope: Tensor | None  # velocity at (x_from, t_from)
    denoised: Tensor | None  # E[x0 | x_from] at t_from
    state: Any  # what the solver carries to the next step
    estimate: Callable[[], Tensor] | None = None  # computes `error`, where the method has an embedded one
    t_from: float | None = None  # where the step really started, if a stochastic solver raised the noise first
    x_from: Tensor | None = None
    eps: Tensor | None = None  # E[eps | x_from] at t_from

    @property
    def error(self) -> Tensor | None:
        """Embedded estimate of the local error, computed when it is asked for; None where the method has none."""
        return None if self.estimate is None else self.estimate()


class Solver(ABC):
    """One way to take a step. Finals are frozen dataclasses without hidden state.

    Attributes:
        order: global order of accuracy in the step size, measured by a test.
        nfe_formula: network evaluations for N steps ending at data, for a human.
        stochastic: whether its steps add noise; where that is a setting, a property.
    """

    order: ClassVar[int]
    nfe_formula: ClassVar[str]
    stochastic: ClassVar[bool] = False

    def init(self, model: Denoiser, x: Tensor, times: Sequence[float]) -> Any:
        """State before the first step; `times` is the whole grid."""
        return None

    @abstractmethod
    def step(
        self,
        model: Denoiser,
        x: Tensor,
        t: float,
        t_next: float,
        state: Any,
        *,
        cond: Cond = None,
        rng: Seeds | None = None,
    ) -> Step:
        """From (x, t) to t_next."""

    @abstractmethod
    def eval_times(self, times: Sequence[float], path: Path) -> list[float]:
        """The times at which a run over this grid asks the model, in order; their number is the promised cost."""

    def n_evals(self, n_steps: int) -> int:
        """Model evaluations per sample for n_steps ending at data; guidance multiplies it where it acts."""
        from explorer.process.paths import EDM

        return len(self.eval_times([float(i) for i in range(n_steps, -1, -1)], EDM()))


Observer = Callable[[int, float, float, Tensor, Step], None]
"""observe(i, t, t_next, x before the step, step): called after every step; it must not change what it is given."""


def solve(
    model: Denoiser,
    solver: Solver,
    x: Tensor,
    times: Sequence[float],
    *,
    cond: Cond = None,
    rng: Seeds | None = None,
    observe: Observer | None = None,
) -> Tensor:
    """The state at the last time, (B, *shape), starting from x at the first.

    Gradients flow when the caller has them enabled; wrap in `torch.inference_mode()` for plain sampling.
    Raises:
        NonFinite: NaN or infinity appeared; names the first such step and the samples, and keeps the last state.
    """
    state, n_steps = solver.init(model, x, times), len(times) - 1
    good = (0, x, state, rng.n_draws if rng is not None else 0)
    for i, (t, t_next) in enumerate(pairwise(times)):
        step = solver.step(model, x, t, t_next, state, cond=cond, rng=rng)
        if observe is not None:
            observe(i, t, t_next, x, step)
        x, state = step.x, step.state
        if i % CHECK_EVERY == CHECK_EVERY - 1 or i == n_steps - 1:
            if not _finite(x):
                raise _explained(model, solver, x, times, good, cond, rng)
            good = (i + 1, x, state, rng.n_draws if rng is not None else 0)
    return x


CHECK_EVERY = 8
"""Steps between two looks: what is not finite stays so, and the steps since the last look are taken again to name the first."""


def _finite(x: Tensor) -> bool:
    return math.isfinite(x.sum().item()) or bool(torch.isfinite(x).all())  # a sum may overflow where no sample does


@torch.no_grad()
def _explained(model, solver: Solver, x: Tensor, times: Sequence[float], good: tuple, cond: Cond, rng: Seeds | None):
    """The error that names the first step after the last good one whose state is not finite."""
    i, y, state, n_draws = good
    rng, last = None if rng is None else rng.rewound(n_draws), len(times) - 2
    while i < last:
        step = solver.step(model, y, times[i], times[i + 1], state, cond=cond, rng=rng)
        if not _finite(step.x):
            break
        i, y, state = i + 1, step.x, step.state
    bad = (~torch.isfinite(x.flatten(1)).all(dim=1)).nonzero()[:, 0].tolist()
    shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
    return NonFinite(
        f"NaN or infinity at step {i + 1} of {len(times) - 1} (from t = {times[i]:.4g} to {times[i + 1]:.4g}, "
        f"{type(solver).__name__}) in {len(bad)} of {len(x)} samples (positions {shown}); "
        "try a smaller sigma_max, a larger sigma_min, or guidance and skip scales nearer 1",
        step=i,
        samples=bad,
        t=times[i],
        kept=x,
    )


def slope_of(path: Path, x: Tensor, t: float, step: Step) -> Tensor:
    """The velocity at the start of a step (after any added noise), from whatever the solver computed."""
    return step.slope if step.slope is not None else _converted(path, x, t, step, "velocity")


def denoised_of(path: Path, x: Tensor, t: float, step: Step) -> Tensor:
    """E[x0 | x] at the start of a step (after any added noise), from whatever the solver computed."""
    return step.denoised if step.denoised is not None else _converted(path, x, t, step, "x0")


def _converted(path: Path, x: Tensor, t: float, step: Step, wanted: Kind) -> Tensor:
    x, t = (x if step.x_from is None else step.x_from), (t if step.t_from is None else step.t_from)
    known = {"x0": step.denoised, "eps": step.eps, "velocity": step.slope}
    kind, value = next((kind, value) for kind, value in known.items() if value is not None)
    a, b = path.convert(kind, wanted, t)
    return affine(a, x, b, value)
