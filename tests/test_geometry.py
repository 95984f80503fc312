"""Geometry against paths known in closed form: the circle, Gaussian data, a Gaussian mixture.

The closed forms are those of straight and rectified flow: S, V and the budget E|eps - x0|^2 = E|D|^2 + S + V.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from explorer.errors import BadValue
from explorer.process import Linear
from explorer.process.oracles import GaussianMixture
from explorer.trajectory import geometry as g
from explorer.trajectory import subspace

ROUND = 1e-11  # float64 rounding after a few hundred operations on numbers of order one


def circle(n_steps: int, w: float, radius: float = 1.7, *, dim: int = 2, uneven: bool = False):
    """Points (1, N + 1, dim) and times of x(t) = R (cos wt, sin wt), in a rotated plane of `dim` dimensions, away
    from the origin.
    """
    t = torch.linspace(0, 1, n_steps + 1, dtype=torch.float64)
    if uneven:
        t = t**1.7
    plane = torch.linalg.qr(torch.randn(dim, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    x = radius * torch.stack((torch.cos(w * t), torch.sin(w * t)), dim=1) @ plane.T + 0.3
    v = radius * w * torch.stack((-torch.sin(w * t), torch.cos(w * t)), dim=1) @ plane.T
    return x[None], v[None], t


@pytest.mark.parametrize("w", [0.3, 2.0, 3.0])
@pytest.mark.parametrize("n_steps", [1, 3, 40])
@pytest.mark.parametrize("dim", [2, 5])
def test_straightness_of_the_circle_is_the_closed_form(w, n_steps, dim):
    x, _, t = circle(n_steps, w, dim=dim)
    n, r = n_steps, 1.7
    exact = 4 * n**2 * r**2 * math.sin(w / 2 / n) ** 2 - 4 * r**2 * math.sin(w / 2) ** 2
    assert float(g.straightness(x, t)) == pytest.approx(exact, abs=ROUND * n)
    assert float(g.straightness(x, t, per_dim=True)) == pytest.approx(exact / dim, abs=ROUND * n)
    backwards = g.straightness(x.flip(1), t.flip(0))
    torch.testing.assert_close(backwards, g.straightness(x, t), rtol=0, atol=ROUND * n)


def test_straightness_from_velocities_converges_to_the_integral_of_the_circle():
    r, w = 1.7, 2.5
    exact = r**2 * w**2 - 4 * r**2 * math.sin(w / 2) ** 2
    for n, tolerance in ((20, 0.05), (200, 0.0005)):
        x, v, t = circle(n, w)
        assert float(g.straightness_of_velocity(v, t, g.chord(x))) == pytest.approx(exact, rel=tolerance)
        x, v, t = x.flip(1), v.flip(1), t.flip(0)  # the same path run from the other end: v is still dx/dt
        assert float(g.straightness_of_velocity(v, t, g.chord(x))) == pytest.approx(exact, rel=tolerance)
    errors = []
    for n in (50, 100, 200):
        x, v, t = circle(n, w)
        left = g.straightness_of_velocity(v[:, :-1], t, g.chord(x))
        errors.append(abs(float(left) - exact))
    assert errors[2] < 0.6 * errors[0]


def test_straightness_does_not_depend_on_the_unit_of_time_and_grows_under_nested_refinement():
    x, _, t = circle(64, 2.0)
    torch.testing.assert_close(g.straightness(x, 80 * t + 3), g.straightness(x, t), rtol=1e-12, atol=0)
    values = [float(g.straightness(x[:, ::k], t[::k])) for k in (64, 16, 4, 1)]
    assert values[0] < 1e-12 and values == sorted(values)


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("dim", [2, 7])
def test_curvature_of_the_circle_is_its_inverse_radius(uneven, dim):
    x, v, t = circle(30, 2.9, dim=dim, uneven=uneven)
    value, clamped = g.menger_curvature(x)
    assert value.shape == (1, 29) and int(clamped) == 0
    torch.testing.assert_close(value, torch.full_like(value, 1 / 1.7), rtol=1e-9, atol=0)
    value, clamped = g.tangent_curvature(v, x)
    torch.testing.assert_close(value, torch.full_like(value, 1 / 1.7), rtol=1e-9, atol=0)
    value, _ = g.tangent_curvature(v[:, :-1] * torch.rand(1, 30, 1, dtype=torch.float64), x)  # speed does not enter
    torch.testing.assert_close(value, torch.full_like(value, 1 / 1.7), rtol=1e-9, atol=0)


def test_curvature_scales_as_one_over_length_and_ignores_reparametrisation():
    x, _, _ = circle(20, 2.0)
    torch.testing.assert_close(g.menger_curvature(3 * x).value, g.menger_curvature(x).value / 3, rtol=1e-10, atol=0)


def test_menger_curvature_keeps_its_digits_on_a_nearly_straight_path():
    x, _, _ = circle(10, 1e-4, radius=1e4)  # height of each arc: 1e-10 of the sides
    torch.testing.assert_close(
        g.menger_curvature(x).value, torch.full((1, 9), 1e-4, dtype=torch.float64), rtol=1e-3, atol=0
    )


def test_angles_lengths_and_nfss_of_the_circle():
    n, w = 2000, 2.2
    x, v, t = circle(n, w)
    turn, clamped = g.turning_angle(x)
    torch.testing.assert_close(turn, torch.full_like(turn, w / n), rtol=1e-8, atol=0)
    torch.testing.assert_close(g.step_cosine(x).value, torch.full_like(turn, math.cos(w / n)), rtol=1e-12, atol=0)
    fine = (w / n) ** 2  # all three are polygon sums, second order in the step
    assert float(g.arc_length(x)) == pytest.approx(1.7 * w, rel=fine)
    assert float(g.arc_chord(x).value) == pytest.approx(w / (2 * math.sin(w / 2)), rel=fine)
    assert float(g.nfss(x, t).value) == pytest.approx(2 * (1 - math.sin(w / 2) / (w / 2)), rel=fine)
    assert int(clamped) == int(g.nfss(x, t).n_clamped) == 0


@pytest.mark.parametrize("reverse", [False, True])
def test_angle_proxy_of_the_circle_is_half_the_arc(reverse):
    x, v, t = circle(12, 2.0)
    x, v, t = torch.cat((x, 2 * x)), torch.cat((v, 2 * v)), t
    if reverse:
        x, v, t = x.flip(1), v.flip(1), t.flip(0)
    mean, error, clamped = g.angle_proxy(x, v, t)
    i, j = torch.triu_indices(13, 13, offset=1)
    torch.testing.assert_close(mean[i, j], (t[i] - t[j]).abs(), rtol=1e-9, atol=1e-9)  # w (t - r) / 2 with w = 2
    assert mean.isnan().sum() == 13 * 14 // 2 and error[i, j].max() < 1e-9 and clamped.sum() == 0


def gaussian_flow(eps, t, s: float, m: float = 0.0):
    """Exact positions (S, T, D) and velocities of the linear path's ODE for x0 ~ N(m, s^2 I), from the noise at t =
    1.
    """
    t = t[None, :, None]
    q = (1 - t) ** 2 * s**2 + t**2
    x = (1 - t) * m + q.sqrt() * eps[:, None]
    return x, -m + (t - (1 - t) * s**2) / q * (x - (1 - t) * m)


@pytest.mark.parametrize(("s", "m"), [(0.3, 0.0), (1.0, 2.0), (2.5, -1.0)])
def test_gaussian_straightness_conflict_and_budget(s, m):
    d, n = 3, 2000
    generator = torch.Generator().manual_seed(1)
    eps = torch.randn(n, d, generator=generator, dtype=torch.float64)
    x0 = m + s * torch.randn(n, d, generator=generator, dtype=torch.float64)
    t = torch.linspace(0, 1, 401, dtype=torch.float64)
    z, v = gaussian_flow(eps, t, s, m)
    exact = d * s * (2 - math.pi / 2)
    # Every sample's S is |eps|^2 times a constant: the mean has the relative error of a mean of chi-squared.
    spread = math.sqrt(2 / (d * n))
    for measured in (g.straightness(z, t), g.straightness_of_velocity(v, t, g.chord(z))):
        assert measured.shape == (n,)
        assert float(measured.mean()) == pytest.approx(exact, rel=4 * spread + 1e-3)
        torch.testing.assert_close(measured, eps.square().sum(1) * exact / d, rtol=2e-3, atol=1e-9)

    x_t = (1 - t)[None, :, None] * x0[:, None] + t[None, :, None] * eps[:, None]
    q = ((1 - t) ** 2 * s**2 + t**2)[None, :, None]
    mean_velocity = -m + ((t - (1 - t) * s**2)[None, :, None] / q) * (x_t - (1 - t)[None, :, None] * m)
    v_pair = g.straightness_of_velocity(mean_velocity, t, eps - x0)
    v_exact = d * s * math.pi / 2
    assert float(v_pair.mean()) == pytest.approx(v_exact, abs=4 * float(v_pair.std()) / math.sqrt(n) + 1e-3)
    curve = g.intersection_by_time(eps - x0, mean_velocity)
    assert float(torch.trapezoid(curve, t)) == pytest.approx(float(v_pair.mean()), rel=1e-9)

    cost = g.coupling_cost(eps, x0)
    assert float(cost.mean()) == pytest.approx(d * m**2 + d * (1 + s**2), abs=4 * float(cost.std()) / math.sqrt(n))
    left = cost - g.chord(z).square().sum(1) - g.straightness(z, t) - v_pair
    assert float(left.mean()) == pytest.approx(0, abs=4 * float(left.std()) / math.sqrt(n) + 1e-3)


@pytest.mark.parametrize("s", [0.4, 2.0])
def test_centred_gaussian_moves_on_rays_that_reverse_once(s):
    """Straightness and curvature are different things: here S > 0 while the geometric curvature is 0."""
    eps = torch.randn(50, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    t = torch.linspace(1, 0, 4001, dtype=torch.float64)
    x, _ = gaussian_flow(eps, t, s)
    assert float(g.straightness(x, t).min()) > 0.01
    curvature, clamped = g.menger_curvature(x)
    assert float(curvature.max()) == 0 and int(clamped.max()) <= 1  # the triple around the reversal may close on itself
    turn, _ = g.turning_angle(x)
    torch.testing.assert_close(turn.sum(1), torch.full((50,), math.pi, dtype=torch.float64), rtol=1e-5, atol=0)
    at = t[1:-1][turn.argmax(dim=1)]
    assert float((at - s**2 / (1 + s**2)).abs().max()) <= 1 / 4000
    ratio = (1 + s - 2 * s / math.sqrt(1 + s**2)) / abs(1 - s)
    torch.testing.assert_close(g.arc_chord(x).value, torch.full((50,), ratio, dtype=torch.float64), rtol=1e-3, atol=0)
    score = 4 * s**2 / (1 + s**2) if s < 1 else 4 / (1 + s**2)
    torch.testing.assert_close(g.nfss(x, t).value, torch.full((50,), score, dtype=torch.float64), rtol=0, atol=2e-3)


def test_paths_without_directions_are_finite_and_counted():
    eps = torch.randn(6, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    t = torch.linspace(1, 0, 101, dtype=torch.float64)
    closed, _ = gaussian_flow(eps, t, 1.0)  # unit Gaussian data: every particle comes home, chord 0
    score, clamped = g.nfss(closed, t)
    assert (clamped == 1).all() and torch.equal(score, torch.full_like(score, 2.0))
    ratio, clamped = g.arc_chord(closed)
    assert torch.isinf(ratio).all() and (clamped == 1).all()

    resting = eps[:, None].expand(6, 101, 3)  # variance preserving: nothing moves
    for value, count in (
        g.nfss(resting, t),
        g.turning_angle(resting),
        g.step_cosine(resting),
        g.menger_curvature(resting),
        g.tangent_curvature(torch.zeros_like(resting), resting),
        g.arc_chord(resting),
    ):
        assert torch.isfinite(value).all() and (count > 0).all()
    assert float(g.straightness(resting, t).max()) == 0
    assert float(g.arc_chord(resting).value.max()) == 1


def test_budget_of_an_exact_first_rectified_flow_closes_on_a_mixture():
    """No training: the marginal velocity of a mixture is a formula. E|eps - x0|^2 = E|D|^2 + S + V to 2 % of the
    cost.
    """
    n, n_steps = 6000, 80
    generator = torch.Generator().manual_seed(4)
    angles = 2 * math.pi * torch.arange(6, dtype=torch.float64) / 6
    mixture = GaussianMixture(3 * torch.stack((angles.cos(), angles.sin()), dim=1), 0.3)
    path = Linear()

    def velocity(x, t):
        a, b = path.convert("x0", "velocity", t)
        return a * x + b * mixture.denoise(x, 1 - t, t)

    times = torch.linspace(1, 1e-3, n_steps + 1, dtype=torch.float64)
    eps = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    x0, _ = mixture.sample(n, generator)
    points, x = [eps], eps
    for t, t_next in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        middle = x + 0.5 * (t_next - t) * velocity(x, t)
        x = x + (t_next - t) * velocity(middle, 0.5 * (t + t_next))
        points.append(x)
    z = torch.stack(points, dim=1)
    rising = times.flip(0)
    along = torch.stack([velocity((1 - t) * x0 + t * eps, t) for t in rising.tolist()], dim=1)
    conflict = g.straightness_of_velocity(along * float(1 / (rising[-1] - rising[0])), rising, eps - x0)
    cost = g.coupling_cost(eps, x0)
    straight = g.straightness(z, times)
    residual = (cost - g.chord(z).square().sum(1) - straight - conflict).mean()
    assert abs(float(residual)) < 0.02 * float(cost.mean())
    assert float(straight.mean()) > 0.1 and float(conflict.mean()) > 0.1  # neither term is negligible

    small = slice(0, 3000)
    pairs = eps[small] - x0[small]
    x_t = torch.stack([(1 - t) * x0[small] + t * eps[small] for t in (0.3, 0.6)], dim=1)
    exact = g.intersection_by_time(
        eps - x0, torch.stack([velocity((1 - t) * x0 + t * eps, t) for t in (0.3, 0.6)], dim=1)
    )
    for tolerance, kwargs in ((0.1, {}), (0.1, {"n_neighbours": 4}), (0.2, {"radius": 0.1})):
        estimate, n_pairs = g.neighbour_conflict(x_t, pairs, **kwargs)
        assert (n_pairs > 1000).all()
        torch.testing.assert_close(estimate, exact, rtol=tolerance, atol=0)


def test_neighbour_conflict_is_nan_where_nobody_is_near():
    estimate, n_pairs = g.neighbour_conflict(torch.randn(5, 1, 2), torch.randn(5, 2), radius=1e-12)
    assert estimate.isnan().all() and n_pairs.tolist() == [0]


def test_line_crossings_equal_a_plain_double_loop():
    generator = torch.Generator().manual_seed(5)
    start, end = torch.randn(2, 60, 2, generator=generator, dtype=torch.float64)

    def side(p, q, r):
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    expected = [
        (i, j)
        for i in range(60)
        for j in range(i + 1, 60)
        if side(start[i], end[i], start[j]) * side(start[i], end[i], end[j]) < 0
        and side(start[j], end[j], start[i]) * side(start[j], end[j], end[i]) < 0
    ]
    for chunk in (7, 512):
        found = g.line_crossings(start, end, chunk=chunk)
        assert [tuple(p) for p in found.pairs.tolist()] == expected
        i, j = found.pairs.T
        other = start[j] + found.where[:, 1:] * (end[j] - start[j])
        torch.testing.assert_close(found.points, other, rtol=0, atol=1e-9)


def test_line_crossings_by_hand():
    start = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.0, 0.0]])
    end = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 2.0], [-1.0, -1.0]])
    found = g.line_crossings(start, end)
    assert found.pairs.tolist() == [[0, 1]]  # parallel, touching and collinear segments do not count
    torch.testing.assert_close(found.where, torch.tensor([[0.5, 0.5]], dtype=torch.float64))
    torch.testing.assert_close(found.points, torch.tensor([[0.5, 0.5]], dtype=torch.float64))
    with pytest.raises(BadValue, match="plane"):
        g.line_crossings(torch.zeros(3, 3), torch.zeros(3, 3))


def test_feature_dimensions_are_flattened_and_input_precision_is_raised():
    x = torch.randn(4, 9, 2, 3, 5, dtype=torch.float32)
    t = torch.linspace(1, 0, 9)
    torch.testing.assert_close(g.straightness(x, t), g.straightness(x.flatten(2).double(), t.double()))
    assert g.menger_curvature(x).value.dtype == torch.float64 and g.chord(x).shape == (4, 30)


@pytest.mark.parametrize(
    ("t", "words"),
    [([0.0, 0.5, 0.4], "strictly"), ([0.0], "at least two"), ([0.0, 0.1, 0.2, 0.3], "time points")],
)
def test_bad_times_are_refused(t, words):
    with pytest.raises(BadValue, match=words):
        g.straightness(torch.zeros(2, 3, 1), torch.tensor(t))


# Laws that hold for every path, whatever its shape, precision and grid


@st.composite
def paths(draw, min_times: int = 4):
    """Random walks (S, T, *shape) with strictly monotone uneven times in either direction, in float64 or float32."""
    n, n_times = draw(st.integers(1, 4)), draw(st.integers(min_times, 9))
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(n, n_times, *shape, generator=generator, dtype=torch.float64).cumsum(dim=1)
    t = (0.05 + torch.rand(n_times, generator=generator, dtype=torch.float64)).cumsum(dim=0)
    return x.to(dtype), (t if draw(st.booleans()) else t.flip(0)), generator


def shapes_of(x, t) -> dict[str, torch.Tensor]:
    """Everything that depends on the form of a path alone: not on where it is, how it is turned, or its unit of time."""
    out = {
        "straightness": g.straightness(x, t), "gap": g.velocity_gap(x, t), "nfss": g.nfss(x, t).value,
        "arc_chord": g.arc_chord(x).value, "length": g.arc_length(x), "menger": g.menger_curvature(x).value,
        "turning": g.turning_angle(x).value, "cosine": g.step_cosine(x).value, "chord": g.chord(x).norm(dim=1),
        "spectrum": subspace.path_spectrum(x), "deviation": subspace.chord_distance(x).value,
        "torsion": subspace.torsion(x).value.abs(),
    }  # fmt: skip
    return {name: value.double() for name, value in out.items()}


LENGTH = {
    "straightness": 2, "gap": 2, "nfss": 0, "arc_chord": 0, "length": 1, "menger": -1, "turning": 0, "cosine": 0, "chord": 1,
    "spectrum": 2, "deviation": 1, "torsion": -1,
}  # fmt: skip
"""Powers of the unit of length."""


def assert_same(a: dict, b: dict, tolerance: float, powers: dict | None = None, unit: float = 1.0) -> None:
    for name, value in a.items():
        expected = b[name] * unit ** (powers or {}).get(name, 0)
        # angles lose half the digits near 0, curvatures where points nearly coincide: the scale is the largest value
        slack = (
            tolerance * max(1.0, float(expected.abs().max())) * (1e3 if name in ("menger", "torsion", "turning") else 1)
        )
        torch.testing.assert_close(value, expected, rtol=0, atol=slack, msg=lambda m, n=name: f"{n}: {m}")


@given(paths())
def test_geometry_does_not_see_where_a_path_lies_or_how_it_is_turned(path):
    x, t, generator = path
    x = x.double()
    d = math.prod(x.shape[2:])
    turn = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    there = (x.flatten(2) @ turn.T + 3 * torch.randn(d, generator=generator, dtype=torch.float64)).reshape(x.shape)
    assert_same(shapes_of(there, t), shapes_of(x, t), 1e-11)


@given(paths(), st.floats(1e-3, 1e3))
def test_every_quantity_scales_by_its_power_of_the_unit_of_length(path, unit):
    x, t, _ = path
    x = x.double()
    assert_same(shapes_of(unit * x, t), shapes_of(x, t), 1e-11 * max(unit**2, unit**-1), LENGTH, unit)


@given(paths(), st.floats(-50, 50), st.floats(0.01, 100))
def test_time_has_no_unit_and_no_origin(path, start, unit):
    x, t, _ = path
    assert_same(shapes_of(x, unit * t + start), shapes_of(x, t), 1e-9)  # 50 against steps of 0.05 loses three digits


@given(paths())
def test_a_path_walked_backwards_has_the_same_form(path):
    x, t, _ = path
    forth, back = shapes_of(x, t), shapes_of(x.flip(1), t.flip(0))
    for name in ("gap", "menger", "turning", "cosine", "deviation", "torsion"):  # these are by point or step
        back[name] = back[name].flip(1)
    assert_same(back, forth, 1e-11)


@given(paths())
def test_form_that_is_blind_to_speed_does_not_change_under_another_clock(path):
    x, t, generator = path
    other = (0.05 + torch.rand(len(t), generator=generator, dtype=torch.float64)).cumsum(dim=0)
    other = other if float(t[-1] - t[0]) > 0 else other.flip(0)
    a, b = shapes_of(x, t), shapes_of(x, other)
    blind = ("arc_chord", "length", "menger", "turning", "cosine", "chord", "spectrum", "deviation", "torsion")
    for name in blind:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0)


@given(paths())
def test_straightness_is_a_variance_of_velocity(path):
    """S >= 0, S + |D|^2 is the energy of the path, S / D of it per dimension, and adding a time point never lowers it."""
    x, t, _ = path
    s, w = g.straightness(x, t), g.time_weights(t)
    v = g.flat(x).diff(dim=1) / w[:, None]
    energy = (v.square().sum(dim=2) * w).sum(dim=1)
    scale = float(energy.max()) + 1
    assert float(s.min()) >= -1e-12 * scale
    torch.testing.assert_close(s + g.chord(x).square().sum(dim=1), energy, rtol=0, atol=1e-11 * scale)
    torch.testing.assert_close(g.straightness(x, t, per_dim=True) * v.shape[2], s, rtol=1e-12, atol=1e-12 * scale)
    coarse = g.straightness(x[:, [0, 2, *range(3, len(t))]], t[[0, 2, *range(3, len(t))]])
    assert float((coarse - s).max()) <= 1e-11 * scale
    line = x[:, :1] + ((t - t[0]) / (t[-1] - t[0])).reshape(1, -1, *(1,) * (x.ndim - 2)) * (x[:, -1:] - x[:, :1])
    assert float(g.straightness(line, t).max()) <= 1e-11 * scale


@given(paths())
def test_ranges(path):
    x, t, _ = path
    found = shapes_of(x, t)
    assert float(found["nfss"].min()) >= -1e-12 and float(found["nfss"].max()) <= 4 + 1e-12
    assert float(found["arc_chord"].min()) >= 1 - 1e-12
    assert float(found["turning"].max()) <= math.pi + 1e-12 and float(found["cosine"].abs().max()) <= 1 + 1e-12
    ratio = subspace.participation_ratio(found["spectrum"])
    assert float(ratio.min()) >= 1 - 1e-9 and float(ratio.max()) <= min(x.shape[1], math.prod(x.shape[2:])) + 1e-9
    n90, n99 = (subspace.n_components(found["spectrum"], share) for share in (0.9, 0.99))
    assert bool((n90 >= 1).all() and (n99 >= n90).all() and (n99 <= math.prod(x.shape[2:])).all())
    assert float((found["deviation"][:, [0, -1]]).max()) < 1e-9 * (1 + float(found["length"].max()))
    total = g.flat(x).var(dim=1, unbiased=False).sum(dim=1)
    torch.testing.assert_close(found["spectrum"].sum(dim=1), total, rtol=1e-9, atol=1e-12)


@given(paths(), st.integers(2, 200))
def test_the_budget_is_an_identity_of_pairs_that_flow_along_straight_lines(path, n):
    """Where every conditional line is walked by one particle (V = 0, constant velocity) the cost is all chord: S = 0; and
    the pair's share of V against its own mean velocity is 0. Noise and data are the ends of random walks.
    """
    x, _, _ = path
    noise, data = x[:, 0].double(), x[:, -1].double()
    t = torch.linspace(1, 0, n, dtype=torch.float64)
    mesh = t.reshape(1, -1, *(1,) * (noise.ndim - 1))
    line = mesh * noise[:, None] + (1 - mesh) * data[:, None]
    cost, scale = g.coupling_cost(noise, data), 1 + float(g.coupling_cost(noise, data).max())
    torch.testing.assert_close(g.chord(line).square().sum(dim=1), cost, rtol=1e-10, atol=1e-10)
    assert float(g.straightness(line, t).max()) < 1e-9 * scale
    v = (noise - data)[:, None].expand(-1, n, *noise.shape[1:])
    assert float(g.straightness_of_velocity(v, t.flip(0), noise - data).max()) < 1e-20 * scale
    assert float(g.intersection_by_time(noise - data, v).max()) == 0
