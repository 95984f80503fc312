"""Adaptive step sizes: the error is given, the steps follow from it; and a report of where they were taken and refused.

Two ways of control. "sample": each sample has its own time and its own step size, so that one stiff sample neither slows nor stops
the others, and a sample does not depend on its batch; samples that have arrived leave the batch. "batch": torchdiffeq, one step size
for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from explorer.errors import BadValue, ExplorerError, NonFinite, UnknownName
from explorer.models.base import Cond, Denoiser, affine
from explorer.process.broadcast import like
from explorer.process.paths import Path
from explorer.sampling.base import Sampler, built_path, check_noise, described_path
from explorer.sampling.grids import TimeGrid
from explorer.sampling.solve import Observer, Step

DONE, UNDERFLOW, TOO_MANY, NOT_FINITE = 0, 1, 2, 3
"""How a sample ended: at the end of the grid; or its step size fell below the resolution of its time, it made more than `max_steps`
attempts, its state or its error estimate was not finite at any step size.
"""


@dataclass(frozen=True)
class Pair:
    """Two explicit Runge-Kutta methods on the same stages; the better one is kept, their difference is the error estimate.

    Attributes:
        order: of the method that is kept; the estimate has this order in the step size.
        c, a: nodes and rows; the last row gives the solution, so that the last slope is the first of the next step.
        error: weights of the difference.
        dense: weights of the fifth coefficient of the interpolant between the ends of a step; without, it is the cubic of the ends.
    """

    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    error: tuple[float, ...]
    dense: tuple[float, ...] | None = None


HEUN_EULER = Pair(2, (0.0, 1.0, 1.0), ((1.0,), (0.5, 0.5)), (-0.5, 0.5, 0.0))

BOGACKI_SHAMPINE = Pair(  # Bogacki & Shampine 1989, Appl. Math. Lett. 2(4)
    3,
    (0.0, 1 / 2, 3 / 4, 1.0),
    ((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    (2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
)

DORMAND_PRINCE = (
    Pair(  # Dormand & Prince 1980, J. Comp. Appl. Math. 6; interpolant: Hairer, Norsett & Wanner 1993, II.6
        5,
        (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
        (
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
        (
            -12715105075 / 11282082432,
            0.0,
            87487479700 / 32700410799,
            -10690763975 / 1880347072,
            701980252875 / 199316789632,
            -1453857185 / 822651844,
            69997945 / 29380423,
        ),
    )
)

PAIRS: dict[str, Pair] = {
    "heun-euler": HEUN_EULER,
    "bosh3": BOGACKI_SHAMPINE,
    "dopri5": DORMAND_PRINCE,
    "rk45": DORMAND_PRINCE,
}
"""Methods for control "sample". "rk45" is another name of "dopri5"."""

TORCHDIFFEQ: dict[str, str] = {
    "heun-euler": "adaptive_heun",
    "fehlberg2": "fehlberg2",
    "bosh3": "bosh3",
    "dopri5": "dopri5",
    "rk45": "dopri5",
    "dopri8": "dopri8",
}
"""Methods for control "batch", and what torchdiffeq calls them."""

SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0
"""The next step is 0.9 of what the error suggests, and between these factors of the last."""

P_GAIN, I_GAIN = 0.2, 0.65
"""Proportional-integral control: factor = 0.9 error^(-0.85 / k) (previous error)^(0.2 / k) for a pair of order k.

Gustafsson 1991, ACM TOMS 17(4); these gains are those of Hairer, Norsett & Wanner's dopri5 (beta = 0.04).
"""


class Profile(NamedTuple):
    """Where the attempts were made, by bins of time; means over samples. See `AdaptiveReport.profile`."""

    edges: Tensor  # (n + 1,) decreasing times
    accepted: Tensor  # (n,) accepted steps per sample that began in the bin
    rejected: Tensor  # (n,) refused attempts per sample
    size: Tensor  # (n,) geometric mean of the accepted step sizes; NaN where none began


@dataclass(frozen=True, eq=False)
class AdaptiveReport:
    """What an adaptive run did, sample by sample. B samples, A attempts of the busiest one; NaN after a sample's last.

    Attributes:
        t: (B, A) time of the path at which each attempt began.
        size: (B, A) its step size, positive.
        error: (B, A) its estimated error over the tolerance, root mean square over the features: at most 1 is accepted under
            control "sample"; under "batch" the mean square over all samples decides.
        accepted: (B, A) bool.
        nfe: (B,) network evaluations spent on each sample.
        status: (B,) DONE, UNDERFLOW, TOO_MANY or NOT_FINITE.
    """

    t: Tensor
    size: Tensor
    error: Tensor
    accepted: Tensor
    nfe: Tensor
    status: Tensor

    @property
    def n_accepted(self) -> Tensor:
        """Steps taken, (B,) int64."""
        return self.accepted.sum(1)

    @property
    def n_rejected(self) -> Tensor:
        """Attempts refused, (B,) int64."""
        return (~self.accepted & ~self.t.isnan()).sum(1)

    def hardest(self, n: int = 5) -> list[int]:
        """Positions of the n samples that needed most attempts; among equals (control "batch": all) those whose own error was too
        large most often.
        """
        attempts, too_large = (~self.t.isnan()).sum(1), (self.error > 1).sum(1)
        return (attempts + too_large / (self.t.shape[1] + 1)).argsort(descending=True, stable=True)[:n].tolist()

    def profile(self, edges: Sequence[float]) -> Profile:
        """Accepted and refused attempts and step sizes between the given decreasing times: where the stiffness sits."""
        edges = torch.as_tensor(edges, dtype=torch.float64, device=self.t.device)
        if edges.ndim != 1 or len(edges) < 2 or not (edges[:-1] > edges[1:]).all():
            raise BadValue("a profile needs at least two strictly decreasing times")
        at = torch.bucketize(-self.t, -edges, right=True) - 1  # edges[i] >= t > edges[i + 1]
        at = torch.where(self.t.isnan() | (at < 0) | (at >= len(edges) - 1), len(edges) - 1, at)

        def count(weight: Tensor) -> Tensor:
            total = torch.zeros(len(edges), dtype=torch.float64)
            return total.index_add(0, at.flatten().cpu(), weight.double().flatten().cpu())[:-1]

        accepted, rejected = count(self.accepted), count(~self.accepted & ~self.t.isnan())
        logs = count(torch.where(self.accepted, self.size, 1.0).log())
        n = len(self.t)
        return Profile(edges.cpu(), accepted / n, rejected / n, (logs / accepted).exp())

    def failure(self, path: Path, kept: Tensor | None = None) -> ExplorerError | None:
        """The error to raise when samples did not arrive, None when all did. Names time, step size, samples, and what to try."""
        bad = self.status.nonzero()[:, 0].tolist()
        if not bad:
            return None
        last = (~self.t[bad].isnan()).sum(1).clamp_min(1) - 1
        pick = lambda v: v[bad].gather(1, last[:, None])[:, 0]  # noqa: E731
        t, size, error = pick(self.t), pick(self.size), pick(self.error)
        worst = int(error.nan_to_num(math.inf).argmax())
        codes = set(self.status[bad].tolist())
        what = {
            UNDERFLOW: "the step size fell below what float64 resolves",
            TOO_MANY: f"{int(last.max()) + 1} attempts were not enough",
            NOT_FINITE: "NaN or infinity at every step size",
        }[max(codes)]
        shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        at = float(t[worst])
        message = (
            f"{what} in {len(bad)} of {len(self.t)} samples (positions {shown}). Worst is sample {bad[worst]}: at t = {at:.4g} "
            f"(sigma {path.ratio_at(max(at, 0.0)):.4g}) a step of {float(size[worst]):.3g} has an estimated error of "
            f"{float(error[worst]):.3g} times the tolerance. "
        )
        if NOT_FINITE in codes:
            message += "Try a smaller sigma_max, a larger sigma_min, or guidance and skip scales nearer 1"
            return NonFinite(message, step=int(last[worst]), samples=bad, t=at, kept=kept)
        message += (
            "Try larger rtol and atol, a method of lower order, a grid that ends at a larger sigma, or more max_steps"
        )
        return BadValue(message + "; `run` returns the samples that arrived")


@dataclass(frozen=True)
class AdaptiveSampler(Sampler):
    """The probability-flow ODE solved to a tolerance.

    Args:
        grid: its first time is where the run starts and its last where it ends. Times between are where an observer sees the state,
            interpolated from the steps, so that watching does not change the run. A grid that ends at 0, where the velocity does not
            exist, is solved to its last positive time, from which one step returns the denoised mean.
        method: "heun-euler" 2(1), "bosh3" 3(2), "dopri5" or "rk45" 5(4); with control "batch" also "fehlberg2" and "dopri8".
        rtol, atol: a step is accepted when the root mean square of error / (atol + rtol |x|) is at most 1.
        control: "sample" (each its own steps) or "batch" (torchdiffeq, one step size for all, over which the mean is taken).
        max_steps: attempts allowed per sample.
        path: path of the ODE; None is the model's own.
    The number of evaluations is known after a run only: `nfe` is None, and `run` returns a report. Control "sample" asks the model with
    one time per sample and keeps its state in float64; "batch" keeps the noise's dtype.
    """

    grid: TimeGrid
    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    control: Literal["sample", "batch"] = "sample"
    max_steps: int = 1000
    path: Path | None = None

    def __post_init__(self):
        if self.control not in ("sample", "batch"):
            raise UnknownName("step size control", self.control, ("sample", "batch"))
        methods = PAIRS if self.control == "sample" else TORCHDIFFEQ
        if self.method not in methods and self.method in TORCHDIFFEQ:
            raise BadValue(
                f"{self.method} has no step sizes of its own for each sample: set control='batch', or use {', '.join(PAIRS)}"
            )
        if self.method not in methods:
            raise UnknownName("adaptive method", self.method, methods)
        if not (0 < self.rtol < 1 and 0 < self.atol < math.inf):
            raise BadValue(f"rtol must be in (0, 1) and atol positive, got rtol = {self.rtol} and atol = {self.atol}")
        if int(self.max_steps) != self.max_steps or self.max_steps < 1:
            raise BadValue(f"max_steps must be a whole number of at least 1, got {self.max_steps}")
        if self.grid.times[-1] == 0 and self.grid.n_steps == 1:
            raise BadValue(
                f"a grid from {self.grid.times[0]:g} straight to 0 leaves nothing to adapt: the velocity does not exist at 0. "
                "Add a small time before it, sigma = 0.002 say"
            )

    def path_on(self, model):
        return self.path or model.path

    def nfe(self, model):
        return None

    def n_steps(self, model):
        return self.grid.n_steps

    def sample(self, model, noise, cond=None, *, rng=None, observe=None):
        x, report = self.run(model, noise, cond, observe=observe)
        error = report.failure(self.path_on(model), x)
        if error is not None:
            raise error
        return x

    def run(
        self, model: Denoiser, noise: Tensor, cond: Cond = None, *, observe: Observer | None = None
    ) -> tuple[Tensor, AdaptiveReport]:
        """The samples, and what it took. A sample that did not arrive is NaN here, and `report.status` says why; nothing is raised."""
        check_noise(model, noise)
        model = model.on(self.path_on(model))
        path, times = model.path, self.grid.on(model.path)
        x = path.at(times[0])[1] * noise
        inner = times[:-1] if times[-1] == 0 else times
        nodes = inner if observe is not None else [inner[0], inner[-1]]
        watch = None
        if observe is not None:
            watch = lambda i, x, x_next, slope: observe(i, nodes[i], nodes[i + 1], x, Step(x_next, slope, None, None))  # noqa: E731
        tolerances = self.rtol, self.atol, int(self.max_steps)
        if self.control == "sample":
            x, slope, report = _run_by_sample(model, x.double(), cond, nodes, PAIRS[self.method], *tolerances, watch)
        else:
            x, slope, report = _run_by_batch(
                model, x, cond, nodes, TORCHDIFFEQ[self.method], *tolerances, watch, times[-1] == 0
            )
        if times[-1] == 0:
            a, b = path.convert("velocity", "x0", inner[-1])
            before, x = x, affine(a, x, b, slope)
            if observe is not None and (self.control == "sample" or (report.status == DONE).all()):
                observe(len(inner) - 1, inner[-1], 0.0, before, Step(x, slope, None, None))
        return x.to(noise.dtype), report

    def to_dict(self):
        return {
            "sampler": "adaptive",
            "grid": self.grid.to_dict(),
            "method": self.method,
            "rtol": self.rtol,
            "atol": self.atol,
            "control": self.control,
            "max_steps": self.max_steps,
            "path": described_path(self.path),
        }

    @classmethod
    def from_dict(cls, data):
        fields = {k: v for k, v in data.items() if k not in ("sampler", "grid", "path")}
        return cls(TimeGrid.from_dict(data["grid"]), path=built_path(data.get("path")), **fields)


Watch = Callable[[int, Tensor, Tensor, Tensor], None]
"""watch(i, state at node i, state at node i + 1, slope at node i)."""


def rms(x: Tensor) -> Tensor:
    """Root mean square over the features of each sample, (B,) float64."""
    x = x.flatten(1)
    return torch.linalg.vector_norm(x, dim=1, dtype=torch.float64) / math.sqrt(x.shape[1])


@lru_cache(maxsize=256)
def _weights(row: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(row, dtype=dtype, device=device)


def _combine(row: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    """The weighted sum of the slopes, one row of a table."""
    if len(row) == 1:
        return slopes[0] * row[0]
    first = slopes[0]
    return torch.mv(torch.stack(slopes).flatten(1).T, _weights(row, first.dtype, first.device)).view_as(first)


def _run_by_sample(
    model: Denoiser,
    x: Tensor,
    cond: Cond,
    nodes: Sequence[float],
    pair: Pair,
    rtol: float,
    atol: float,
    max_steps: int,
    watch: Watch | None,
) -> tuple[Tensor, Tensor, AdaptiveReport]:
    """(state, slope) at the last node and the report; NaN states where a sample did not arrive."""
    n, device, end = len(x), x.device, nodes[-1]
    if n == 0:
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return x, x, _report(0, [], none, none)
    calls = model.n_calls

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return model.velocity(x, t, here)

    ids, here = torch.arange(n, device=device), cond
    t = torch.full((n,), nodes[0], dtype=torch.float64, device=device)
    try:
        slope = velocity(x, t)
    except (RuntimeError, TypeError) as error:
        raise BadValue(
            f"{model.name or 'the model'} was asked with one time per sample, a tensor ({n},), and failed: {error}. "
            "Use control='batch', which asks with one time for all"
        ) from error
    size = _first_step(velocity, x, t, slope, nodes[0] - end, pair.order, rtol, atol)
    before = torch.ones(n, dtype=torch.float64, device=device)  # the error of the last accepted step
    ok, error = torch.ones(n, dtype=torch.bool, device=device), before  # of the last attempt
    refused = False  # whether it was refused for any sample still on the way
    track = None if watch is None else _Track(nodes, x, slope, watch)
    log: list[tuple[Tensor, ...]] = []
    ended: list[tuple[Tensor, ...]] = []

    def leave(which: Tensor, x: Tensor, slope: Tensor, status: int) -> None:
        """Takes samples off the way. All of them have been part of every evaluation, so the number of these is their cost."""
        mine = ids[which]
        ended.append(
            (mine, x[which], slope[which], torch.full_like(mine, model.n_calls - calls), torch.full_like(mine, status))
        )

    for attempt in range(max_steps + 1):
        left = t - end
        last = size >= left * (1 - 1e-12)
        size = torch.minimum(size, left)
        if refused or attempt == max_steps:
            stuck = ~last & (t - size == t) if attempt < max_steps else torch.ones_like(last)
            if stuck.any():
                nowhere, broken = torch.full_like(x, math.nan), stuck & ~error.isfinite()
                leave(broken, nowhere, nowhere, NOT_FINITE)
                leave(stuck & ~broken, nowhere, nowhere, TOO_MANY if attempt == max_steps else UNDERFLOW)
                if track is not None:
                    track.lose(ids[stuck])
                go = ~stuck
                if not go.any():
                    break
                x, slope, t, size, before, ok, ids, last = (v[go] for v in (x, slope, t, size, before, ok, ids, last))
                here = None if here is None else here[go]
        t_to, h = torch.where(last, end, t - size), like(-size, x)
        slopes = [slope]
        for c, row in zip(pair.c[1:], pair.a, strict=True):
            stage = torch.addcmul(x, h, _combine(row, slopes))
            slopes.append(velocity(stage, t_to if c == 1.0 else torch.sub(t, size, alpha=c)))
        with torch.no_grad():
            scale = torch.maximum(x.abs(), stage.abs()).mul_(rtol).add_(atol)
            error = rms(h * _combine(pair.error, slopes) / scale)
            fresh, ok = ok, error <= 1
            tame = error.clamp_min(1e-10)
            factor = SAFETY * tame ** (-(I_GAIN + P_GAIN) / pair.order) * before ** (P_GAIN / pair.order)
            if refused:
                factor = torch.where(fresh, factor, factor.clamp_max(1.0))
            refused = not bool(ok.all())
            if refused:
                shrink = (SAFETY * tame.nan_to_num(math.inf) ** (-1 / pair.order)).clamp_max(1.0)
                factor = torch.where(ok, factor, shrink)
            log.append((ids, t, size, error, ok))
            size = size * factor.clamp_(SHRINK, GROW)
        if track is not None:
            track.passed(ids[ok], x[ok], stage[ok], [k[ok] for k in slopes], t[ok], t_to[ok], pair)
        if refused:
            where = like(ok, x)
            x, slope = torch.where(where, stage, x), torch.where(where, slopes[-1], slope)
            t, before = torch.where(ok, t_to, t), torch.where(ok, tame.clamp_min(1e-4), before)
            last = last & ok
        else:
            x, slope, t, before = stage, slopes[-1], t_to, tame.clamp_min_(1e-4)
        if last.any():
            leave(last, x, slope, DONE)
            go = ~last
            if not go.any():
                break
            x, slope, t, size, before, ok, error, ids = (v[go] for v in (x, slope, t, size, before, ok, error, ids))
            here = None if here is None else here[go]
    ids, x, slope, nfe, status = (torch.cat(parts) for parts in zip(*ended, strict=True))
    order = ids.argsort()
    return x[order], slope[order], _report(n, log, nfe[order], status[order])


def _first_step(velocity, x, t, slope, span: float, order: int, rtol: float, atol: float) -> Tensor:
    """Step sizes to begin with, (B,): one more evaluation. Hairer, Norsett & Wanner 1993, II.4."""
    with torch.no_grad():
        scale = x.abs() * rtol + atol
        d0, d1 = rms(x / scale), rms(slope / scale)
        guess = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6 * span, 0.01 * d0 / d1).clamp(1e-12 * span, span)
        moved = x - like(guess.to(x.dtype), x) * slope
        d2 = rms((velocity(moved, t - guess) - slope) / scale) / guess
        most = torch.maximum(d1, d2)
        size = torch.where(most <= 1e-15, (1e-3 * guess).clamp_min(1e-6 * span), (0.01 / most) ** (1 / order))
        size = torch.minimum(100 * guess, size).clamp(max=span)
        return torch.where(size.isfinite(), size, guess.nan_to_num(1e-6 * span))


def _report(n: int, log: list[tuple[Tensor, ...]], nfe: Tensor, status: Tensor) -> AdaptiveReport:
    shape = n, len(log)
    t, size, error = (torch.full(shape, math.nan, dtype=torch.float64, device=nfe.device) for _ in range(3))
    accepted = torch.zeros(shape, dtype=torch.bool, device=nfe.device)
    for k, (ids, *seen) in enumerate(log):
        for kept, value in zip((t, size, error, accepted), seen, strict=True):
            kept[ids, k] = value.detach()
    return AdaptiveReport(t, size, error, accepted, nfe, status)


class _Track:
    """States and slopes at the nodes, filled as samples pass them, told in order once all samples have."""

    def __init__(self, nodes: Sequence[float], x: Tensor, slope: Tensor, watch: Watch):
        self.nodes = torch.tensor(nodes, dtype=torch.float64, device=x.device)
        self.next = torch.ones(len(x), dtype=torch.int64, device=x.device)  # node that each sample comes to next
        self.x, self.slope = (v.new_full((len(nodes), *v.shape), math.nan) for v in (x, slope))
        self.x[0], self.slope[0] = x.detach(), slope.detach()
        self.watch, self.told = watch, 0

    def passed(self, ids, x, x_next, slopes, t, t_next, pair: Pair) -> None:
        """An accepted step of the samples `ids` from t to t_next."""
        h = t_next - t
        while True:
            at = self.next[ids]
            there = at < len(self.nodes)
            there &= self.nodes[at.clamp_max(len(self.nodes) - 1)] >= t_next
            if not there.any():
                break
            node = self.nodes[at[there]]
            part = [k[there].detach() for k in slopes]
            where = at[there], ids[there]
            self.x[where], self.slope[where] = between(
                x[there].detach(), x_next[there].detach(), part, h[there], (node - t[there]) / h[there], pair
            )
            self.next[ids[there]] += 1
        self._tell()

    def lose(self, ids: Tensor) -> None:
        self.next[ids] = len(self.nodes)
        self._tell()

    def _tell(self) -> None:
        while self.told < int(self.next.min()) - 1:
            i = self.told
            self.watch(i, self.x[i], self.x[i + 1], self.slope[i])
            self.told += 1


def between(x: Tensor, x_next: Tensor, slopes: list[Tensor], h: Tensor, u: Tensor, pair: Pair) -> tuple[Tensor, Tensor]:
    """State and slope at the fraction u (B,) of a step: error O(h^4), for Dormand-Prince O(h^5)."""
    h, u = like(h.to(x.dtype), x), like(u.to(x.dtype), x)
    v = 1 - u
    r2 = x_next - x
    r3 = h * slopes[0] - r2
    r4 = r2 - h * slopes[-1] - r3
    r5 = torch.zeros_like(x) if pair.dense is None else h * _combine(pair.dense, slopes)
    state = torch.where(u == 1, x_next, x + u * (r2 + v * (r3 + u * (r4 + v * r5))))
    slope = (r2 + (1 - 2 * u) * r3 + u * (2 - 3 * u) * r4 + 2 * u * v * (1 - 2 * u) * r5) / h
    return state, slope


class _Stopped(Exception):
    pass


class _Watched:
    """The velocity as torchdiffeq wants it, with the ears that torchdiffeq offers: its norm and its callbacks."""

    def __init__(self, model: Denoiser, cond: Cond, max_steps: int):
        self.model, self.cond, self.max_steps = model, cond, max_steps
        self.log: list[tuple[float, float, Tensor, bool]] = []
        self.errors: Tensor | None = None
        self.y: Tensor | None = None
        self.trying: tuple[float, float] | None = None

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return self.model.velocity(y, float(t), self.cond).to(y.dtype)

    def norm(self, scaled: Tensor) -> Tensor:
        self.errors = rms(scaled.detach())
        return scaled.square().mean().sqrt()

    def callback_step(self, t, y, size) -> None:
        self.y, self.trying = y, (float(t), float(size))
        if len(self.log) >= self.max_steps:
            raise _Stopped

    def callback_accept_step(self, t, y, size) -> None:
        self.log.append((float(t), float(size), self.errors, True))

    def callback_reject_step(self, t, y, size) -> None:
        self.log.append((float(t), float(size), self.errors, False))


def _run_by_batch(
    model: Denoiser,
    x: Tensor,
    cond: Cond,
    nodes: Sequence[float],
    method: str,
    rtol: float,
    atol: float,
    max_steps: int,
    watch: Watch | None,
    slope_wanted: bool,
) -> tuple[Tensor, Tensor, AdaptiveReport]:
    """As `_run_by_sample`, by torchdiffeq."""
    from torchdiffeq import odeint

    calls, n = model.n_calls, len(x)
    heard = _Watched(model, cond, max_steps)
    times = torch.tensor(nodes, dtype=torch.float64, device=x.device)
    # torchdiffeq steps beyond the last time and interpolates back, to where there may be no velocity: make it stop there.
    options = {"norm": heard.norm, "step_t": times[-1:]}
    status = DONE
    try:
        states = odeint(heard, x, times, rtol=rtol, atol=atol, method=method, options=options)
    except _Stopped:
        status = TOO_MANY
    except AssertionError as error:
        if "underflow" not in str(error) and "non-finite" not in str(error):
            raise
        finite = heard.y.isfinite().all() and heard.errors is not None and heard.errors.isfinite().all()
        status = UNDERFLOW if finite else NOT_FINITE
    slope = torch.full_like(x, math.nan)
    if status == DONE:
        end = states[-1]
        if slope_wanted:
            slope = model.velocity(end, nodes[-1], cond).to(x.dtype)
    else:
        states, end = None, torch.full_like(x, math.nan)
    nfe = torch.full((n,), model.n_calls - calls, dtype=torch.int64, device=x.device)
    if watch is not None and states is not None:
        for i, t in enumerate(nodes[:-1]):
            watch(i, states[i], states[i + 1], model.velocity(states[i], t, cond).to(x.dtype))
    ids = torch.arange(n, device=x.device)
    full = lambda v: torch.full((n,), v, dtype=torch.bool if isinstance(v, bool) else torch.float64, device=x.device)  # noqa: E731
    log = [(ids, full(t), full(size), errors, full(ok)) for t, size, errors, ok in heard.log]
    if status in (UNDERFLOW, NOT_FINITE) and heard.trying is not None:  # the attempt that was not even made
        t, size = heard.trying
        log.append((ids, full(t), full(size), full(math.nan) if heard.errors is None else heard.errors, full(False)))
    return end, slope, _report(n, log, nfe, torch.full((n,), status, dtype=torch.int64, device=x.device))
