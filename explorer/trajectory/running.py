"""Geometry without stored states: an observer that folds every step into a few numbers per sample and per step."""

from __future__ import annotations

import torch
import xarray as xr
from torch import Tensor

from explorer.errors import BadValue
from explorer.models.base import Denoiser
from explorer.process.broadcast import like
from explorer.process.paths import Linear, Path
from explorer.sampling.solve import Step
from explorer.trajectory.geometry import ROUNDING

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
    """Observer that accumulates the geometry of `measures.py` over any number of samples, on their device.

    Equal to the numbers from stored trajectories (to rounding), with a mean and standard error over samples. It keeps
    six states per sample of the batch in flight and nothing of finished ones, so 50 000 images cost no memory.

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
        x, x_next = x.detach().flatten(1).double(), step.x.detach().flatten(1).double()
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
        pending = len(self._run.size) if self._whole() else 0
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
            `chord`, `arc_chord`, `nfss` as numbers; each with `<name>_se`; attributes `n` and `n_clamped`, how many terms
            had no direction (resting steps, closed paths) and took the value that geometry.py documents.
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
        clamped = round(float(scalars.mean[-1]) * scalars.n)
        return xr.Dataset(data, coords, attrs={"n": steps.n, "n_clamped": clamped})

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


BUDGET = ("cost", "chord", "straightness", "conflict", "residual")


class RunningBudget:
    """Observer that keeps the budget E|eps - x0|^2 = E|D|^2 + S + V of a model's flow, batch by batch.

    Each batch of noise that a sampler starts from is paired with the next data points, independently of it. The run gives
    the chord D and S on the linear path; the model, asked along the straight lines of the pairs, gives V. Everything is
    summed over dimensions, in data units squared. The residual is 0 in expectation for the exact velocity, and grows with
    what the network does not know, with what a coarse grid hides of S, and with the ends of the path that the grid
    leaves out.

    Args:
        model: whose velocity V is measured with, the one that is sampled.
        data: (n, *shape), taken in turn and from the start again when they run out.
        path: the path that the sampler's states live on, `sampler.path_on(model)`.
        n_steps: steps of a whole run; a batch cut short is left out.
        data_labels: (n,) classes of the data, for a conditional model.
        n_times: times per pair at which V is asked, one at random in each of as many equal parts of [0, 1].
    Source: Liu 2022, arXiv 2209.14577 (straightness and transport cost); Lee et al. 2023, arXiv 2301.12003 (V).
    """

    def __init__(
        self,
        model: Denoiser,
        data: Tensor,
        *,
        path: Path,
        n_steps: int,
        data_labels: Tensor | None = None,
        n_times: int = 8,
        seed: int = 0,
    ):
        if tuple(data.shape[1:]) != tuple(model.shape) or not len(data):
            raise BadValue(
                f"data of shape {tuple(data.shape)} are no samples of a model of shape {tuple(model.shape)}."
            )
        self.model, self.path, self.n_steps, self.n_times = model.on(Linear()), path, n_steps, n_times
        self.data, self.labels = data, data_labels
        self._moments, self._used = Moments(), 0
        self._generator = torch.Generator().manual_seed(seed)
        self._run: _Run | None = None

    def __call__(self, i: int, t: float, t_next: float, x: Tensor, step: Step) -> None:
        """Folds in one step of the batch in flight; the last one asks the model n_times and adds the batch."""
        if i == 0:
            self._run, self._noise = _Run(False), x.detach().double() / self.path.at(t)[1]
        if self._run is None or self._run.n_steps != i:
            raise BadValue(f"step {i} came without the steps before it: an observer must see a run from its start.")
        (t, scale), (t_next, scale_next) = self._on_line(t), self._on_line(t_next)
        x, x_next = x.detach().flatten(1).double(), step.x.detach().flatten(1).double()
        self._run.step(t, t_next, x * scale, x_next * scale_next)
        if i == self.n_steps - 1:
            self._add(x_next * scale_next / (1 - t_next))

    @property
    def n(self) -> int:
        """Samples that are complete."""
        return self._moments.n

    def result(self) -> xr.Dataset:
        """The numbers so far: `cost`, `chord`, `straightness`, `conflict`, `residual`, each with `<name>_se`; attribute n.

        Raises: BadValue before the first batch is complete.
        """
        if not self.n:
            raise BadValue("no complete run has been observed yet.")
        mean, error = self._moments.mean.cpu().numpy(), self._moments.std_error().cpu().numpy()
        values, attrs = {}, {"units": "data unit^2"}
        for k, name in enumerate(BUDGET):
            values[name], values[f"{name}_se"] = ((), mean[k], attrs), ((), error[k], attrs)
        return xr.Dataset(values, attrs={"n": self.n})

    @torch.inference_mode()
    def _add(self, end: Tensor) -> None:
        _, per_sample = self._run.finish()
        noise, self._run = self._noise, None
        rows = torch.arange(self._used, self._used + len(noise)) % len(self.data)
        self._used += len(noise)
        data = self.data[rows].to(noise)
        cond = None if self.labels is None else self.labels[rows].to(noise.device)
        target, conflict = noise - data, torch.zeros_like(per_sample[:, 0])
        for k in range(self.n_times):
            share = torch.rand(len(noise), generator=self._generator, dtype=torch.float64).to(noise.device)
            t = ((k + share) / self.n_times).clamp(T_ENDS, 1 - T_ENDS)
            x_t = data + like(t, data) * target
            gap = target - self.model.velocity(x_t, t, cond).double()
            conflict += gap.flatten(1).square().sum(dim=1) / self.n_times
        cost = target.flatten(1).square().sum(dim=1)
        chord = (noise.flatten(1) - end).square().sum(dim=1)
        straight = per_sample[:, 0]
        self._moments.update(torch.stack((cost, chord, straight, conflict, cost - chord - straight - conflict), dim=1))

    def _on_line(self, t: float) -> tuple[float, float]:
        new = Linear().time_at(self.path.ratio_at(t))
        return new, (1 - new) / self.path.at(t)[0]


T_ENDS = 1e-3
"""V is not asked nearer to the ends of the linear path than this: 0/0 at data, beyond any training at noise."""


class _Run:
    """One batch in flight. S samples, D features, N steps. Per step only what needs the states; the rest in `finish`."""

    def __init__(self, gaps: bool):
        self.times: list[float] = []
        self.steps: list[Tensor] | None = [] if gaps else None
        self.lengths: list[Tensor] = []  # (S,) each
        self.apart: list[
            Tensor
        ] = []  # |u - w| and |u + w| of successive unit tangents: 2 sin and 2 cos of half the angle
        self.along: list[Tensor] = []
        self.sides: list[Tensor] = []  # |x_next - x_before|, the third side of each triple

    @property
    def n_steps(self) -> int:
        return max(0, len(self.times) - 1)

    def step(self, t: float, t_next: float, x: Tensor, x_next: Tensor) -> None:
        if not self.times:
            self.times, self.start, self.size = [t], x, x.norm(dim=1)
            self.velocity, self.direction = (
                torch.zeros_like(x),
                torch.zeros_like(x),
            )  # mean of dx/dt, sum of tangents dt
            self.spread = torch.zeros_like(self.size)  # int |dx/dt - mean|^2 dt
        dt = abs(t_next - t)
        if dt == 0 or (t_next - t) * (t_next - self.times[0]) <= 0:
            raise BadValue(f"time turns back between {t:g} and {t_next:g}; such a run has no straightness.")
        self.times.append(t_next)
        self.size = torch.maximum(self.size, x_next.norm(dim=1))
        dx = x_next - x
        length = dx.norm(dim=1)
        unit = dx * torch.where(length > ROUNDING * self.size, 1 / length, 0.0)[:, None]
        if self.n_steps > 1:
            self.apart.append((unit - self.last).norm(dim=1))
            self.along.append((unit + self.last).norm(dim=1))
            self.sides.append((x_next - self.before).norm(dim=1))
        # West 1979: weighted mean and spread in one pass, without the cancellation of sum v^2 - (sum v)^2.
        gap = torch.sub(dx / dt, self.velocity)
        share = dt / abs(t_next - self.times[0])
        self.velocity.add_(gap, alpha=share)
        self.spread.add_(gap.square().sum(dim=1), alpha=dt * (1 - share))
        self.direction.add_(unit, alpha=dt)
        self.lengths.append(length)
        if self.steps is not None:
            self.steps.append(dx)
        self.before, self.last, self.end = x, unit, x_next

    def finish(self) -> tuple[Tensor, Tensor]:
        """By step (S, 3 N; 4 N with gaps) and per sample (S, 7), in the order of ON_STEPS, GAP and PER_SAMPLE; the last
        number counts what had no direction.
        """
        total, tiny = abs(self.times[-1] - self.times[0]), ROUNDING * self.size[:, None]
        smallest = torch.finfo(self.size.dtype).tiny
        lengths = torch.stack(self.lengths, dim=1)  # (S, N)
        curvature, turning = torch.full((2, *lengths.shape), torch.nan, dtype=lengths.dtype, device=lengths.device)
        if self.n_steps > 1:
            apart, along, sides = (torch.stack(v, dim=1) for v in (self.apart, self.along, self.sides))
            resting = lengths <= tiny
            unclear = resting[:, 1:] | resting[:, :-1]
            turning[:, 1:] = torch.where(unclear, 0.0, 2 * torch.atan2(apart, along))
            across = lengths[:, 1:] * apart * along / 2  # |w| sin(angle)
            flat = unclear | (sides <= tiny) | (across <= tiny)
            safe = (lengths[:, 1:] * sides).clamp_min(smallest)
            curvature[:, 1:] = torch.where(flat, 0.0, 2 * across / safe)
        by_step = [curvature, turning, lengths]
        across = self.end - self.start
        if self.steps is not None:
            shares = [abs(b - a) / total for a, b in zip(self.times[:-1], self.times[1:], strict=True)]
            gaps = [(dx / w - across).square().sum(dim=1) for dx, w in zip(self.steps, shares, strict=True)]
            by_step.append(torch.stack(gaps, dim=1))
        chord, arc = across.norm(dim=1), lengths.sum(dim=1)
        closed = chord <= tiny[:, 0]
        safe = chord.clamp_min(smallest)
        cosine = torch.where(closed, 0.0, (self.direction * across).sum(dim=1) / safe / total)
        ratio = torch.where(closed, torch.inf, arc / safe)
        ratio = torch.where(closed & (arc <= tiny[:, 0] * len(self.times)), 1.0, ratio)
        turned = turning[:, 1:].sum(dim=1)
        clamped = (lengths <= tiny).sum(dim=1) + closed.to(torch.int64)
        per_sample = torch.stack((self.spread * total, turned, arc, chord, ratio, 2 * (1 - cosine), clamped), dim=1)
        return torch.cat(by_step, dim=1), per_sample
