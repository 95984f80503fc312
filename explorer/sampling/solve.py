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
    """

    order: ClassVar[int]
    nfe_formula: ClassVar[str]

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
        NonFinite: NaN or infinity appeared; names the first such step and the samples, and keeps the final state.
    """
    state, unseen = solver.init(model, x, times), []
    n_steps = len(times) - 1
    room = UNSEEN_BYTES // max(x.nbytes, 1) or 1
    for i, (t, t_next) in enumerate(pairwise(times)):
        step = solver.step(model, x, t, t_next, state, cond=cond, rng=rng)
        if observe is not None:
            observe(i, t, t_next, x, step)
        x, state = step.x, step.state
        unseen.append(x)
        if len(unseen) == room or i == n_steps - 1:
            _check_finite(unseen, i, times, solver)
            unseen = []
    return x


UNSEEN_BYTES = 2**24
"""States that may wait for their check: what is not finite stays so, and one check of the last state serves them all."""


def _check_finite(states: Sequence[Tensor], last: int, times: Sequence[float], solver: Solver) -> None:
    """Raises NonFinite where the last of the states, that of step `last`, is not finite; names the first step that was not."""
    x = states[-1]
    if math.isfinite(x.sum().item()):
        return
    bad = (~torch.isfinite(x.flatten(1)).all(dim=1)).nonzero()[:, 0].tolist()
    if not bad:  # the sum overflowed, not the samples
        return
    first = last + 1 - len(states) + next(i for i, s in enumerate(states) if not torch.isfinite(s).all())
    shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
    raise NonFinite(
        f"NaN or infinity at step {first + 1} of {len(times) - 1} (from t = {times[first]:.4g} to {times[first + 1]:.4g}, "
        f"{type(solver).__name__}) in {len(bad)} of {len(x)} samples (positions {shown}); "
        "try a smaller sigma_max, a larger sigma_min, or guidance and skip scales nearer 1",
        step=first,
        samples=bad,
        t=times[first],
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
