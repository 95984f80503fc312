"""The shape of paths: tensors in, tensors out.

Legend: S samples, T time points, N = T - 1 steps, `...` feature dimensions (flattened to D inside).
    x (S, T, ...) points of the paths; v velocities dx/dt; t (T,) times, strictly monotone in either direction.

Time integrals run over *unit time*: t is rescaled to [0, 1], so the chord D is also the mean velocity and every
integral is in data units, whatever the path's own clock. On the linear path from t = 1 to 0 this is the published
definition unchanged. Norms sum over dimensions (the convention of Liu et al. 2022); divide by D for the per-dimension
numbers that rfpp and fast-ODE print (`per_dim=True` where a function offers it). Everything is computed in float64.

Directions do not exist where a step or a chord has zero length. Such terms are given the value that the function
documents and are counted: functions that can meet them return `Guarded(value, n_clamped)`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from explorer.errors import BadValue

# A difference of two states is rounding, not motion, below this many units in the last place of the largest state.
ROUNDING = 16 * torch.finfo(torch.float64).eps


class Guarded(NamedTuple):
    """A result and, per sample, how many of its terms had no direction (zero length) and were clamped."""

    value: Tensor
    n_clamped: Tensor


class Crossings(NamedTuple):
    """Proper crossings of straight segments in the plane.

    Attributes:
        pairs: (K, 2) int64, indices i < j of the segments that cross.
        where: (K, 2) the position of the crossing on segment i and on segment j, in (0, 1) from start to end.
            Equal positions mean that the two lines meet at the same time, a true conflict of velocities.
        points: (K, 2) the crossing points.
    """

    pairs: Tensor
    where: Tensor
    points: Tensor


def flat(x: Tensor, n_leading: int = 2) -> Tensor:
    """The same tensor in float64 with all dimensions after the leading ones flattened: (S, T, ...) -> (S, T, D)."""
    if x.ndim < n_leading:
        raise BadValue(
            f"a path tensor needs at least {n_leading} dimensions (samples, times, features), got {tuple(x.shape)}."
        )
    return x.to(torch.float64).reshape(*x.shape[:n_leading], -1)


def time_weights(t: Tensor) -> Tensor:
    """Share of the total time that each step takes: (T,) -> (N,), positive, sums to 1.

    Raises: BadValue when t is not strictly monotone or has fewer than two points.
    """
    t = torch.as_tensor(t, dtype=torch.float64)
    if t.ndim != 1 or len(t) < 2:
        raise BadValue(f"times must be a vector of at least two points, got shape {tuple(t.shape)}.")
    steps = t.diff()
    if not bool((steps > 0).all() or (steps < 0).all()):
        raise BadValue(
            "times must be strictly increasing or strictly decreasing; a path that turns back in time has no S."
        )
    return steps / (t[-1] - t[0])


def _checked(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    x, w = flat(x), time_weights(t).to(x.device)
    if x.shape[1] != len(w) + 1:
        raise BadValue(f"x has {x.shape[1]} time points but t has {len(w) + 1}; x is (samples, times, ...).")
    return x, w


FEW = 4
"""Up to so many features sums over them are written out: a reduction over so short a dimension costs five times as much."""


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products along the last dimension."""
    if a.shape[-1] > FEW:
        return (a * b).sum(dim=-1)
    out = a[..., 0] * b[..., 0]
    for k in range(1, a.shape[-1]):
        out = torch.addcmul(out, a[..., k], b[..., k])
    return out


def norm(x: Tensor) -> Tensor:
    """Lengths along the last dimension."""
    return x.norm(dim=-1) if x.shape[-1] > FEW else dot(x, x).sqrt_()


def _rounding(x: Tensor) -> Tensor:
    """Length below which a difference of two of these states is rounding: (S, T, D) -> (S, 1)."""
    return ROUNDING * norm(x).amax(dim=1, keepdim=True)


def _units(d: Tensor, tiny: Tensor | float) -> tuple[Tensor, Tensor]:
    """Unit vectors along the last dimension (zero where the length is at most tiny) and the mask of those zeros."""
    length = norm(d)
    none = length <= tiny
    return d * torch.where(none, 0.0, 1 / length).unsqueeze(-1), none


def angle(u: Tensor, w: Tensor) -> Tensor:
    """Angle in radians between unit vectors along the last dimension, accurate near 0 and near pi (Kahan's formula)."""
    return 2 * torch.atan2(norm(u - w), norm(u + w))


def chord(x: Tensor) -> Tensor:
    """Last point minus first: (S, T, ...) -> (S, D). In unit time the mean velocity, up to sign."""
    x = flat(x)
    return x[:, -1] - x[:, 0]


def arc_length(x: Tensor) -> Tensor:
    """Length of the polygon through the points: (S, T, ...) -> (S,). Low by O(step^2) against a smooth path."""
    return norm(flat(x).diff(dim=1)).sum(dim=1)


def arc_chord(x: Tensor) -> Guarded:
    """Arc length over chord length, at least 1: (S, T, ...) -> (S,). A closed path gives inf, a resting one 1."""
    x = flat(x)
    length, across = arc_length(x), norm(chord(x))
    none = across <= _rounding(x).squeeze(1)
    resting = none & (length <= _rounding(x).squeeze(1) * x.shape[1])
    value = torch.where(none, torch.inf, length / across.clamp_min(torch.finfo(x.dtype).tiny))
    return Guarded(torch.where(resting, 1.0, value), none.to(torch.int64))


def velocity_gap(x: Tensor, t: Tensor) -> Tensor:
    """|dx/dt - D|^2 on each step in unit time: (S, T, ...), (T,) -> (S, N), data units squared. Its time mean is S."""
    x, w = _checked(x, t)
    gap = x.diff(dim=1) / w[:, None] - chord(x)[:, None]
    return dot(gap, gap)


def straightness(x: Tensor, t: Tensor, *, per_dim: bool = False) -> Tensor:
    """S = int_0^1 |D - dx/dt|^2 dt of the polygon through the points: 0 exactly at constant velocity.

    Args:
        x: (S, T, ...) points; t: (T,) their times. Steps may differ in size: each counts by its share of the time.
        per_dim: divide by the number of dimensions.
    Returns:
        (S,) data units squared. One step always gives 0, and nested refinement never lowers the number: a coarse grid
        is biased low, so compare paths on one fine grid (100 steps or more) or use `straightness_of_velocity`.
    Source: Liu et al. 2022, arXiv 2209.03003, the straightness functional S(Z).
    """
    total = velocity_gap(x, t) @ time_weights(t).to(x.device)
    return total / flat(x).shape[2] if per_dim else total


def straightness_of_velocity(v: Tensor, t: Tensor, chord: Tensor, *, per_dim: bool = False) -> Tensor:
    """The same functional from velocities along the path.

    Args:
        v: (S, T, ...) at all points (trapezoid rule, error O(step^2)) or (S, N, ...) at the start of each step (left
            sum, O(step)).
        t: (T,) times; chord: (S, ...) last point minus first in the order of t. With t rising from data to noise,
            chord = eps - x0 and v the marginal velocity at the points of the interpolation, this is the pair's share
            of the degree of intersection V.
    Returns: (S,) data units squared.
    """
    v, w, across = flat(v), time_weights(t).to(v.device), flat(chord, 1)
    span = float(t[-1] - t[0])
    if v.shape[1] == len(w) + 1:
        w = torch.cat((w[:1], w[:-1] + w[1:], w[-1:])) / 2
    elif v.shape[1] != len(w):
        raise BadValue(
            f"v has {v.shape[1]} times; t has {len(w) + 1} points, so {len(w) + 1} or {len(w)} were expected."
        )
    total = (v * span - across[:, None]).square().sum(dim=-1) @ w
    return total / v.shape[2] if per_dim else total


def nfss(x: Tensor, t: Tensor) -> Guarded:
    """2 (1 - mean over time of the cosine between chord and velocity), in [0, 4]: blind to speed, not to its sign.

    Without a direction (a resting step, or chord 0) the cosine counts as 0, so an undefined path reads 2; both are
    counted.

    Source: the normalised flow straightness score of Park et al. 2024 (constant acceleration flow), arXiv 2411.00322.
    """
    x, w = _checked(x, t)
    tiny = _rounding(x)
    along, resting = _units(x.diff(dim=1), tiny)
    across, closed = _units(chord(x), tiny.squeeze(1))
    cosine = dot(along, across[:, None])
    return Guarded(2 * (1 - cosine @ w), resting.sum(dim=1) + closed.to(torch.int64))


def turning_angle(x: Tensor) -> Guarded:
    """Angle in radians between successive steps: (S, T, ...) -> (S, N - 1) at the inner points; sum for the total.

    A reversal is pi. A resting step turns by nothing: 0, counted.
    """
    x = flat(x)
    along, resting = _units(x.diff(dim=1), _rounding(x))
    none = resting[:, 1:] | resting[:, :-1]
    return Guarded(torch.where(none, 0.0, angle(along[:, :-1], along[:, 1:])), none.sum(dim=1))


def step_cosine(x: Tensor) -> Guarded:
    """Cosine between successive steps: (S, T, ...) -> (S, N - 1). Next to a resting step 1, counted."""
    x = flat(x)
    along, resting = _units(x.diff(dim=1), _rounding(x))
    none = resting[:, 1:] | resting[:, :-1]
    return Guarded(torch.where(none, 1.0, dot(along[:, :-1], along[:, 1:])), none.sum(dim=1))


def menger_curvature(x: Tensor) -> Guarded:
    """Inverse radius of the circle through three successive points: (S, T, ...) -> (S, N - 1), per data unit of length.

    Exact on circles, O(step) on smooth paths with unequal steps, blind to speed. Three points on a line give 0, also
    at a reversal; coinciding points give 0 and are counted.

    Source: Menger, 4 area / (product of the sides).
    """
    x = flat(x)
    u, w = x[:, 1:-1] - x[:, :-2], x[:, 2:] - x[:, 1:-1]
    tiny = _rounding(x)
    sides = norm(x.diff(dim=1))
    a, b, c = sides[:, :-1], sides[:, 1:], norm(u + w)
    none = (a <= tiny) | (b <= tiny) | (c <= tiny)
    safe = torch.finfo(x.dtype).tiny
    # The part of w across u, not sqrt(a^2 b^2 - (u w)^2): the latter loses half the digits on nearly straight paths.
    shift = dot(u, w) / a.square().clamp_min(safe)
    across = norm(torch.addcmul(w, shift.unsqueeze(-1), u, value=-1))
    across = torch.where(across <= tiny, 0.0, across)  # on one line up to rounding
    return Guarded(torch.where(none, 0.0, 2 * across / (b * c).clamp_min(safe)), none.sum(dim=1))


def tangent_curvature(v: Tensor, x: Tensor) -> Guarded:
    """|T' - T| / |x' - x| between successive points, T = v / |v| the unit tangent: the finite form of |dT/dt| /
    |dx/dt|.

    Args:
        v: (S, M, ...) velocities at the first M points of x: (S, T, ...), 2 <= M <= T.
    Returns:
        (S, M - 1) per data unit of length. Exact on circles. Speed does not enter, but its sign does: a reversal
        flips the tangent and shows as 2 / |x' - x|, where `menger_curvature` reads 0. Resting points give 0 and are
        counted.
    Source: Xu et al. 2024 (DisCo-Diff), arXiv 2407.03300, curvature of the ODE trajectory.
    """
    v, x = flat(v), flat(x)
    if not 2 <= v.shape[1] <= x.shape[1]:
        raise BadValue(f"v has {v.shape[1]} times and x has {x.shape[1]}; 2 to {x.shape[1]} velocities were expected.")
    tangent, resting = _units(v, torch.finfo(v.dtype).tiny)
    length = norm(x[:, : v.shape[1]].diff(dim=1))
    none = resting[:, 1:] | resting[:, :-1] | (length <= _rounding(x))
    turn = norm(tangent.diff(dim=1))
    return Guarded(torch.where(none, 0.0, turn / length.clamp_min(torch.finfo(v.dtype).tiny)), none.sum(dim=1))


def angle_proxy(x: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Angle between the velocity at one time and the mean velocity from there to every later point of the run.

    Args:
        x: (S, T, ...); v: (S, T, ...) or (S, N, ...) velocities at the points; t: (T,).
    Returns:
        (mean, std_error, n_clamped): (T, T) radians, entry [i, j] for i < j along the run, NaN elsewhere; with t
        falling this is Curv(r = t_j, t = t_i). n_clamped (T, T) counts samples without a direction, which read 0.
    Source: Re-MeanFlow, arXiv 2511.23342, the angle proxy Curv(r, t).
    """
    x, w = _checked(x, t)
    v = flat(v)
    n_samples, n_times = x.shape[:2]
    mean, error = x.new_full((2, n_times, n_times), torch.nan)
    clamped = torch.zeros(n_times, n_times, dtype=torch.int64, device=x.device)
    forward = math.copysign(1.0, float(t[-1] - t[0]))
    for i in range(min(v.shape[1], n_times - 1)):
        across, resting = _units((x[:, i + 1 :] - x[:, i : i + 1]) * forward, _rounding(x))
        tangent, stopped = _units(v[:, i : i + 1], torch.finfo(v.dtype).tiny)
        none = resting | stopped
        angles = torch.where(none, 0.0, angle(across, tangent.expand_as(across)))
        mean[i, i + 1 :] = angles.mean(dim=0)
        error[i, i + 1 :] = angles.std(dim=0) / math.sqrt(n_samples) if n_samples > 1 else torch.nan
        clamped[i, i + 1 :] = none.sum(dim=0)
    return mean, error, clamped


def coupling_cost(noise: Tensor, data: Tensor) -> Tensor:
    """|eps - x0|^2 of each pair: (S, ...), (S, ...) -> (S,), data units squared, summed over dimensions."""
    return (flat(noise, 1) - flat(data, 1)).square().sum(dim=-1)


def intersection_by_time(target: Tensor, v: Tensor) -> Tensor:
    """Conditional variance of the pair velocity at each time: E|(eps - x0) - v(x_t, t)|^2 over samples.

    Args:
        target: (S, ...) pair velocities eps - x0; v: (S, T, ...) marginal velocity at the pair's own x_t.
    Returns: (T,). Its mean over t in [0, 1] is the degree of intersection V, the irreducible flow-matching loss.
    Source: Lee et al. 2023, arXiv 2301.12003.
    """
    return (flat(target, 1)[:, None] - flat(v)).square().sum(dim=-1).mean(dim=0)


def neighbour_conflict(
    x: Tensor, target: Tensor, *, radius: float | None = None, n_neighbours: int = 1
) -> tuple[Tensor, Tensor]:
    """Conflict of velocities without a model: half the squared difference of pair velocities between near points.

    Args:
        x: (S, T, ...) points of the interpolations; target: (S, ...) their velocities eps - x0.
        radius: take all pairs closer than this, so that dense regions weigh more; None takes each point's nearest
            neighbours instead, which weighs every sample alike.
        n_neighbours: how many of them.
    Returns:
        (value, n_pairs), each (T,): an estimate of the conditional variance at each time, biased by the spread of the
        mean velocity over the neighbourhood (which shrinks with S); NaN where no pair is close enough.
    """
    x, target = flat(x), flat(target, 1)
    n_samples, n_times = x.shape[:2]
    if n_samples < 2:
        raise BadValue("conflict between neighbours needs at least two samples, got one.")
    values, counts = [], []
    for i in range(n_times):
        distance = torch.cdist(x[:, i], x[:, i]).fill_diagonal_(torch.inf)
        if radius is None:
            near = distance.topk(min(n_neighbours, n_samples - 1), largest=False).indices
            first = torch.arange(n_samples, device=x.device).repeat_interleave(near.shape[1])
            second = near.reshape(-1)
        else:
            first, second = torch.nonzero(torch.triu(distance < radius, diagonal=1), as_tuple=True)
        values.append((target[first] - target[second]).square().sum(dim=-1).mean() / 2)
        counts.append(len(first))
    return torch.stack(values), torch.tensor(counts)


def line_crossings(start: Tensor, end: Tensor, *, chunk: int = 512) -> Crossings:
    """All proper crossings between straight segments in the plane, each unordered pair tested once, by exact
    orientation signs.

    Args:
        start, end: (S, 2). Time O(S^2), memory O(chunk S).
    Returns: `Crossings`; segments that only touch at an end point or overlap along a line do not count.
    Raises: BadValue when the points are not two-dimensional.
    """
    start, end = flat(start, 1), flat(end, 1)
    if start.shape != end.shape or start.shape[1] != 2:
        raise BadValue(
            f"crossings of lines are counted in the plane: start and end must be (samples, 2), "
            f"got {tuple(start.shape)} and {tuple(end.shape)}. In more dimensions use neighbour_conflict."
        )

    def cross(a: Tensor, b: Tensor) -> Tensor:
        return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]

    pairs, where = [], []
    for lo in range(0, len(start), chunk):
        a, d = start[lo : lo + chunk, None], (end - start)[lo : lo + chunk, None]
        gap, e = start - a, end - start
        side = cross(d, e.expand_as(gap))
        s, u = cross(gap, e.expand_as(gap)), cross(gap, d.expand_as(gap))
        s, u, size = s * side.sign(), u * side.sign(), side.abs()
        hit = (size > 0) & (s > 0) & (s < size) & (u > 0) & (u < size)
        i, j = torch.nonzero(torch.triu(hit, diagonal=lo + 1), as_tuple=True)
        pairs.append(torch.stack((i + lo, j), dim=1))
        where.append(torch.stack((s[i, j] / size[i, j], u[i, j] / size[i, j]), dim=1))
    pairs, where = torch.cat(pairs), torch.cat(where)
    first = pairs[:, 0]
    return Crossings(pairs, where, start[first] + where[:, :1] * (end[first] - start[first]))
