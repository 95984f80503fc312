"""Geometry without stored states: an observer that folds every step into a few numbers per sample and per step."""

from __future__ import annotations

import torch
import xarray as xr
from torch import Tensor

from explorer.errors import BadValue
from explorer.process.paths import Path
from explorer.sampling.solve import Step
from explorer.trajectory.geometry import ROUNDING, angle

ON_STEPS = {
    "curvature": ("curvature", "1 / data unit"),
    "turning_angle": ("turning", "rad"),
    "step_length": ("step length", "data unit"),
}
GAP = {"velocity_gap": ("squared gap to the chord", "data unit^2")}
PER_SAMPLE = {
    "straightness": ("straightness S", "data unit^2"),
    "total_turning": ("total turning", "rad"),
    "arc_length": ("arc length", "data unit"),
    "chord": ("chord", "data unit"),
    "arc_chord": ("arc / chord", "1"),
    "nfss": ("normalised flow straightness", "1"),
}


class Moments:
    """Count, mean and sum of squared deviations of vectors (n, K), updated and merged exactly (Chan et al. 1979)."""

    def __init__(self):
        self.n, self.mean, self.m2 = 0, None, None

    def update(self, values: Tensor) -> None:
        mean = values.mean(dim=0)
        self._add(len(values), mean, (values - mean).square().sum(dim=0))

    def merge(self, other: Moments) -> None:
        if other.n:
            self._add(other.n, other.mean, other.m2)

    def copy(self) -> Moments:
        new = Moments()
        new.n, new.mean, new.m2 = self.n, self.mean, self.m2
        return new

    def std_error(self) -> Tensor:
        if self.n < 2:
            return torch.full_like(self.mean, torch.nan)
        return (self.m2 / (self.n - 1) / self.n).sqrt()

    def _add(self, n: int, mean: Tensor, m2: Tensor) -> None:
        if self.n == 0:
            self.n, self.mean, self.m2 = n, mean, m2
            return
        total, gap = self.n + n, mean - self.mean
        self.m2 = self.m2 + m2 + gap.square() * (self.n * n / total)
        self.mean = self.mean + gap * (n / total)
        self.n = total


class RunningGeometry:
    """Observer that accumulates the geometry of `dataset.py` over any number of samples, on their device.

    Equal to the numbers from stored trajectories (to rounding), with a mean and standard error over samples. It keeps
    four states per sample of the batch in flight and nothing of finished ones, so 50 000 images cost no memory.

    Args:
        path: the path that the sampler's states live on, `sampler.path_on(model)`; needed for `onto` and for sigma.
        onto: measure on this path instead, Linear() for the published straightness.
        n_steps: steps of a whole run, if known. A batch that was cut short (cancelled, not finite) is left out; without
            n_steps this is known only from the second batch on.
        gaps: also `velocity_gap`, the straightness by step. The chord is known only at the end of a run, so this keeps
            the steps of the batch in flight: n_steps states per sample of the batch.
    """

    def __init__(
        self, path: Path | None = None, *, onto: Path | None = None, n_steps: int | None = None, gaps: bool = False
    ):
        if onto is not None and path is None:
            raise BadValue(
                "to measure on another path, say which path the states live on: path=sampler.path_on(model)."
            )
        self.path, self.onto, self.n_steps, self.gaps = path, onto, n_steps, gaps
        self._times: list[float] = []
        self._steps, self._scalars = Moments(), Moments()
        self._run: _Run | None = None

    def __call__(self, i: int, t: float, t_next: float, x: Tensor, step: Step) -> None:
        """Folds in one step of the batch in flight; i = 0 begins a new batch."""
        if i == 0:
            self._close()
            self._run = _Run(self.gaps)
        if self._run is None or self._run.n_steps != i:
            raise BadValue(f"step {i} came without the steps before it: an observer must see a run from its start.")
        run = self._run
        x, x_next = x.flatten(1).double(), step.x.flatten(1).double()
        if self.onto is not None and self.onto != self.path:
            (t, scale), (t_next, scale_next) = self._moved(t), self._moved(t_next)
            x, x_next = x * scale, x_next * scale_next
        run.step(t, t_next, x, x_next)

    @property
    def times(self) -> list[float]:
        """The time grid, of the path that the numbers belong to."""
        return self._times or (self._run.times if self._run else [])

    @property
    def n(self) -> int:
        """Samples that are complete."""
        pending = len(self._run.arc) if self._whole() else 0
        return self._steps.n + pending

    def merge(self, other: RunningGeometry) -> None:
        """Adds the complete samples of another accumulator that watched the same grid."""
        self._close()
        steps, scalars = other._totals()
        if not steps.n:
            return
        if (self._times and other.times != self._times) or self.gaps != other.gaps:
            raise BadValue("only runs over the same time grid, with the same quantities, can be merged.")
        self._times, self.n_steps = other.times, len(other.times) - 1
        self._steps.merge(steps)
        self._scalars.merge(scalars)

    def result(self) -> xr.Dataset:
        """Means and standard errors so far.

        Returns:
            `curvature`, `turning_angle` (NaN at step 0), `step_length`, if asked `velocity_gap`, over step with
            coordinates `t` and, where the path is known, `sigma`; `straightness`, `total_turning`, `arc_length`,
            `chord`, `arc_chord`, `nfss` as numbers; each with `<name>_se`; attribute `n`.
        Raises: BadValue before the first sample is complete.
        """
        steps, scalars = self._totals()
        if not steps.n:
            raise BadValue("no complete run has been observed yet.")
        times = self.times
        names = ON_STEPS | (GAP if self.gaps else {})
        mean, error = (v.reshape(len(names), -1).cpu().numpy() for v in (steps.mean, steps.std_error()))
        data = {}
        for row, (name, (long_name, unit)) in enumerate(names.items()):
            attrs = {"long_name": long_name, "units": unit}
            data[name], data[f"{name}_se"] = ("step", mean[row], attrs), ("step", error[row], attrs)
        mean, error = scalars.mean.cpu().numpy(), scalars.std_error().cpu().numpy()
        for k, (name, (long_name, unit)) in enumerate(PER_SAMPLE.items()):
            attrs = {"long_name": long_name, "units": unit}
            data[name], data[f"{name}_se"] = ((), mean[k], attrs), ((), error[k], attrs)
        coords = {"step": range(len(times) - 1), "t": ("step", times[:-1])}
        path = self.onto or self.path
        if path is not None:
            coords["sigma"] = ("step", [path.ratio_at(t) for t in times[:-1]])
        return xr.Dataset(data, coords, attrs={"n": steps.n})

    def _whole(self) -> bool:
        run = self._run
        return run is not None and run.n_steps > 0 and (self.n_steps is None or run.n_steps == self.n_steps)

    def _totals(self) -> tuple[Moments, Moments]:
        steps, scalars = self._steps.copy(), self._scalars.copy()
        if self._whole():
            by_step, per_sample = self._run.finish()
            steps.update(by_step)
            scalars.update(per_sample)
        return steps, scalars

    def _close(self) -> None:
        if self._whole():
            self._steps, self._scalars = self._totals()
            self._times, self.n_steps = self._run.times, self._run.n_steps
        self._run = None

    def _moved(self, t: float) -> tuple[float, float]:
        new = self.onto.time_at(self.path.ratio_at(t))
        return new, self.onto.at(new)[0] / self.path.at(t)[0]


class _Run:
    """One batch in flight. S samples, D features, N steps."""

    def __init__(self, gaps: bool):
        self.times: list[float] = []
        self.steps: list[Tensor] | None = [] if gaps else None
        self.per_step: list[Tensor] = []  # (3, S) each: curvature, turning, length

    @property
    def n_steps(self) -> int:
        return max(0, len(self.times) - 1)

    def step(self, t: float, t_next: float, x: Tensor, x_next: Tensor) -> None:
        if not self.times:
            self.times, self.start = [t], x
            self.size = x.norm(dim=1)
            self.arc = torch.zeros_like(self.size)
            self.velocity = torch.zeros_like(x)  # weighted running mean of dx/dt
            self.spread = torch.zeros_like(self.size)  # int |dx/dt - mean|^2 dt
            self.direction = torch.zeros_like(x)  # int of the unit tangent dt
            self.resting = torch.zeros_like(self.size)
            self.turned = torch.zeros_like(self.size)
        dt = abs(t_next - t)
        if dt == 0 or (t_next - t) * (t_next - self.times[0]) <= 0:
            raise BadValue(f"time turns back between {t:g} and {t_next:g}; such a run has no straightness.")
        self.times.append(t_next)
        self.size = torch.maximum(self.size, x_next.norm(dim=1))
        tiny = ROUNDING * self.size
        dx = x_next - x
        length = dx.norm(dim=1)
        none = length <= tiny
        unit = torch.where(none[:, None], 0.0, dx / length.clamp_min(torch.finfo(dx.dtype).tiny)[:, None])
        curvature, turn = torch.full((2, len(x)), torch.nan, dtype=x.dtype, device=x.device)
        if self.n_steps > 1:
            unclear = none | self.last_none
            turn = torch.where(unclear, 0.0, angle(self.last_unit, unit))
            across = (unit - (unit * self.last_unit).sum(dim=1, keepdim=True) * self.last_unit).norm(dim=1) * length
            across = torch.where(across <= tiny, 0.0, across)
            side = (x_next - self.before).norm(dim=1)
            unclear = unclear | (side <= tiny)
            safe = (length * side).clamp_min(torch.finfo(dx.dtype).tiny)
            curvature = torch.where(unclear, 0.0, 2 * across / safe)
            self.turned = self.turned + turn
        # West 1979: weighted mean and spread in one pass, without the cancellation of sum v^2 - (sum v)^2.
        elapsed = abs(t_next - self.times[0])
        v = dx / dt
        gap = v - self.velocity
        self.velocity = self.velocity + gap * (dt / elapsed)
        self.spread = self.spread + dt * (gap * (v - self.velocity)).sum(dim=1)
        self.direction = self.direction + unit * dt
        self.arc = self.arc + length
        self.per_step.append(torch.stack((curvature, turn, length)))
        if self.steps is not None:
            self.steps.append(dx)
        self.before, self.last_unit, self.last_none, self.end = x, unit, none, x_next

    def finish(self) -> tuple[Tensor, Tensor]:
        """By step (S, 3 N; 4 N with gaps) and per sample (S, 6), in the order of ON_STEPS and PER_SAMPLE."""
        total = abs(self.times[-1] - self.times[0])
        across = self.end - self.start
        chord = across.norm(dim=1)
        tiny = ROUNDING * self.size
        closed = chord <= tiny
        safe = chord.clamp_min(torch.finfo(chord.dtype).tiny)
        cosine = torch.where(closed, 0.0, (self.direction * across).sum(dim=1) / safe / total)
        ratio = torch.where(closed, torch.inf, self.arc / safe)
        ratio = torch.where(closed & (self.arc <= tiny * len(self.times)), 1.0, ratio)
        per_sample = torch.stack((self.spread * total, self.turned, self.arc, chord, ratio, 2 * (1 - cosine)), dim=1)
        by_step = torch.stack(self.per_step, dim=2)  # (3, S, N)
        if self.steps is not None:
            shares = [abs(b - a) / total for a, b in zip(self.times[:-1], self.times[1:], strict=True)]
            gaps = [(dx / w - across).square().sum(dim=1) for dx, w in zip(self.steps, shares, strict=True)]
            by_step = torch.cat((by_step, torch.stack(gaps, dim=1)[None]))
        return by_step.permute(1, 0, 2).flatten(1), per_sample
