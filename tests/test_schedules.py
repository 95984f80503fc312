"""Computed schedules: the optimum against brute force, costs against closed forms, and what they are worth on fresh noise."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import oracle, ring

from explorer.errors import BadValue, UnknownName
from explorer.models import Oracle
from explorer.process import GaussianMixture, Linear
from explorer.sampling import Euler, Heun, OdeSampler, Seeds, TimeGrid
from explorer.trajectory import local_error, record
from explorer.trajectory.schedules import (
    Search,
    ays,
    best_routes,
    denoiser_costs,
    end_errors,
    end_verdicts,
    equidistribute,
    equidistributed,
    euler_costs,
    gits,
)

C = 0.5  # standard deviation of the Gaussian data
GAUSS = Oracle(GaussianMixture(torch.zeros(1, 2), C), name="gauss")
FINE = TimeGrid.karras(24, 0.02, 20.0)


# The optimum


@given(n=st.integers(2, 8), seed=st.integers(0, 10**6), coefficient=st.sampled_from([0.8, 1.0, 1.15, 2.0]))
def test_best_routes_are_those_of_brute_force(n, seed, coefficient):
    cost = np.random.default_rng(seed).exponential(size=(n, n))
    found = best_routes(cost, n - 1, coefficient)
    assert sorted(found) == list(range(1, n))
    for k, route in found.items():
        every = {
            nodes: sum(coefficient**i * cost[a, b] for i, (a, b) in enumerate(itertools.pairwise(nodes)))
            for nodes in ((0, *inner, n - 1) for inner in itertools.combinations(range(1, n - 1), k - 1))
        }
        assert route.cost == pytest.approx(min(every.values()), rel=1e-12)
        assert every[route.nodes] == pytest.approx(route.cost, rel=1e-12)


def test_a_quadratic_cost_is_cut_evenly():
    """cost = (j - i)^2 has the even grid as its only optimum where the number of steps divides the number of nodes."""
    i = np.arange(13)
    found = best_routes((i[None, :] - i[:, None]) ** 2.0, 6)
    assert {k: found[k].nodes for k in (1, 2, 3, 4, 6)} == {k: tuple(range(0, 13, 12 // k)) for k in (1, 2, 3, 4, 6)}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: best_routes(np.zeros((3, 4)), 1), "square matrix"),
        (lambda: best_routes(np.zeros((3, 3)), 3), "3 nodes allow 1 to 2 steps, got 3"),
        (lambda: best_routes(np.zeros((3, 3)), 0), "got 0"),
        (lambda: best_routes(np.full((3, 3), math.nan), 2), "from node 0 to node 1 is not finite"),
        (lambda: best_routes(np.zeros((3, 3)), 2, 0.0), "coefficient must be positive"),
    ],
)
def test_impossible_searches_are_refused(make, says):
    with pytest.raises(BadValue, match=says):
        make()


# GITS


@pytest.fixture(scope="module")
def gauss_run():
    return record(GAUSS, OdeSampler(Heun(), TimeGrid.karras(400, 0.02, 20.0)), range(60))


def test_euler_costs_on_gaussian_data_have_a_closed_form(gauss_run):
    """Exact flow: x(s) = z sqrt(c^2 + s^2) up to a factor; an Euler step from j to k multiplies by 1 + (s_k - s_j) s_j / (c^2 + s_j^2).

    The fine run itself is Heun's, with relative error near (1/400)^2, so 1e-3 of the largest cost leaves room.
    """
    search = gits(gauss_run, coefficient=1.0)
    s = np.array(search.nodes)
    x0 = gauss_run.x.values[:, 0] / math.sqrt(C**2 + s[0] ** 2)
    growth = np.sqrt(C**2 + s**2)
    slope = s / (C**2 + s**2)
    miss = np.abs(growth[:, None] * (1 + (s[None, :] - s[:, None]) * slope[:, None]) - growth[None, :])
    want = np.linalg.norm(x0, axis=1)[:, None, None] * np.triu(miss, 1)
    np.testing.assert_allclose(search.costs.values, want, atol=1e-3 * want.max())
    assert search.costs.values[:, *np.tril_indices(len(s))].max() == 0


def test_the_euler_cost_of_one_step_is_its_local_error():
    model = oracle()
    ds = record(model, OdeSampler(Euler(), FINE), range(20))
    x, slope, sigma = (torch.as_tensor(a.values) for a in (ds.x, ds.slope, ds.sigma))
    # along an Euler run the single steps are exact by construction, the others not
    costs = euler_costs(x, slope, sigma)
    assert torch.diagonal(costs, offset=1, dim1=1, dim2=2).abs().max() < 1e-12
    assert costs[:, 0, 2:].min() > 0
    torch.testing.assert_close(euler_costs(x, slope, sigma, squared=True), costs**2)


def test_gits_does_not_depend_on_the_path_of_the_recording():
    """Equal states on EDM's scale give equal costs; the start differs by alpha alone, so start both from the same sigma x."""
    model = oracle()
    on_edm = gits(record(model, OdeSampler(Euler(), FINE), range(10)))
    on_linear = gits(record(model, OdeSampler(Euler(), FINE, Linear()), range(10)))
    np.testing.assert_allclose(on_linear.costs.values, on_edm.costs.values, atol=1e-8)
    assert on_linear.grid(6).times == pytest.approx(on_edm.grid(6).times, rel=1e-9)


def test_gits_finds_the_best_grid_of_every_length():
    search = gits(record(oracle(), OdeSampler(Heun(), FINE), range(40)), coefficient=1.15)
    for n in (1, 2, 5, 10, 24):
        schedule = search.schedule(n) if n <= 10 else None
        grid = search.grid(n)
        assert grid.n_steps == n and grid.times[0] == 20.0 and grid.times[-1] == 0.0
        assert set(grid.times) <= set(search.nodes)
        if schedule is None:
            continue
        assert schedule.grid == grid and schedule.cost.n == 40 and schedule.seeds == (0, 39)
        assert schedule.cost.value <= schedule.baseline_cost.value + 1e-12
        assert schedule.difference.value == pytest.approx(schedule.cost.value - schedule.baseline_cost.value)
        assert schedule.cost.value == pytest.approx(search.routes(n)[n].cost)
        assert schedule.difference.std_error > 0 or n == 1
        assert schedule.to_dict()["cost"]["n"] == 40
    assert search.grid(24) == TimeGrid.explicit(search.nodes)
    assert "gits, 5 steps: gits is better than karras" in str(search.schedule(5))


# AYS


def gaussian_bound(s: np.ndarray) -> np.ndarray:
    """int_(s_k)^(s_j) c^4 [1 / (c^2 + t^2) - 1 / (c^2 + s_j^2)] / t^3 dt, a number per dimension, for all j and k.

    E|D_t - D_s|^2 = E|D_t|^2 - E|D_s|^2, as D is a martingale along the noising path, and E|D_t|^2 = c^4 / (c^2 + t^2).
    """
    u, c2 = s**2, C**2
    # int du / (2 u^2 (c^2 + u)) from its partial fractions; the second term is int du / (2 u^2) (c^2 + s^2)^-1
    first = lambda v: 0.5 * (-1 / (c2 * v) + np.log((c2 + v) / v) / c2**2)  # noqa: E731
    second = lambda v: -0.5 / v  # noqa: E731
    top, low = u[:, None], u[None, :]
    return c2**2 * (first(top) - first(low) - (second(top) - second(low)) / (c2 + top))


def test_ays_costs_on_gaussian_data_have_a_closed_form():
    n, nodes = 400, TimeGrid.log_snr(40, 0.05, 10.0, to_zero=False)
    data = C * Seeds(range(n)).normal((2,))
    search = ays(GAUSS, data, nodes, range(1000, 1000 + n))
    mean, s = search.mean(), np.array(search.nodes)
    want = 2 * np.triu(gaussian_bound(s), 1)
    # trapezoids in 1/(2 t^2): ln-spacing h = 0.13 leaves h^2 / 3 of the cost or so; the rest is 4 standard errors
    spare = 4 * mean.cost_se.values + 0.01 * want
    inside = np.triu(np.ones_like(want, dtype=bool), 1)
    assert (np.abs(mean.cost.values - want) <= spare)[inside].all()
    assert (mean.cost_se.values[inside] > 0).all()
    spread = (mean.cost.values - want)[inside] / want[inside]
    assert np.abs(spread).mean() < 0.06


def test_ays_quadrature_converges_to_the_integral():
    """A denoiser path with |D_t - D_s|^2 = (t - s)^2: the bound is int (s - t)^2 / t^3 dt = ln(s/l) - 2 (s/l - 1) + (s^2/l^2 - 1) / 2."""
    errors = []
    for k in (20, 40, 80):
        s = torch.tensor(TimeGrid.log_snr(k, 0.1, 5.0, to_zero=False).times, dtype=torch.float64)
        r = s[0] / s[-1]
        want = r.log() - 2 * (r - 1) + 0.5 * (r**2 - 1)
        errors.append(float(denoiser_costs(s[None, :, None], s)[0, 0, -1] / want - 1))
    assert 3.5 < errors[0] / errors[1] < 4.5 and 3.5 < errors[1] / errors[2] < 4.5  # second order
    assert abs(errors[2]) < 2e-3


def test_ays_of_an_exact_denoiser_is_a_difference_of_mmses():
    """On the ring: E|D_t - D_s|^2 = mmse(s) - mmse(t), the posterior's spread, estimated with the mixture's own formula."""
    model, n = oracle(), 600
    data, _ = ring().sample(n, torch.Generator().manual_seed(3))
    nodes = TimeGrid((2.0, 0.7, 0.2), "sigma")
    search = ays(model, data, nodes, range(n))
    noise = Seeds(range(5000, 5000 + n)).normal((2,))
    mmse, error = [], []
    for s in nodes.times:
        trace = ring().posterior_trace(data + s * noise, 1.0, s)
        mmse.append(trace.mean().item())
        error.append(trace.std().item() / math.sqrt(n))
    for j, k in ((0, 1), (1, 2)):
        weight = 0.5 * (0.5 / nodes.times[k] ** 2 - 0.5 / nodes.times[j] ** 2)  # one trapezoid, zero at its upper end
        mean = search.mean()
        spare = 4 * math.hypot(float(mean.cost_se[j, k]) / weight, error[j], error[k])
        assert float(mean.cost[j, k]) / weight == pytest.approx(mmse[j] - mmse[k], abs=spare)


def test_the_best_bound_on_gaussian_data_is_the_known_density():
    """A short step costs c^4 h^2 / (t (c^2 + t^2))^2, so the best nodes are even in ln(1 + c^2 / t^2) as their number grows.

    With 20 steps out of 161 nodes the DP route follows it to the coarseness of the nodes, h = 0.033 in ln t.
    """
    s = np.array(TimeGrid.log_snr(160, 0.05, 10.0, to_zero=False).times)
    found = best_routes(np.triu(gaussian_bound(s), 1), 40)
    clock = np.log1p(C**2 / s[list(found[40].nodes)] ** 2)
    want = np.linspace(clock[0], clock[-1], 41)
    assert np.abs(clock - want).max() < 0.05 * (clock[-1] - clock[0])
    even = best_routes(np.triu(gaussian_bound(s), 1), 40)[40].cost
    karras = np.array(TimeGrid.karras(40, 0.05, 10.0, to_zero=False).snapped(s.tolist()).times)
    at = [int(np.abs(s - v).argmin()) for v in karras]
    assert even < sum(gaussian_bound(s)[a, b] for a, b in itertools.pairwise(at))


def test_the_bound_holds_and_lowers_the_true_divergence_on_gaussian_data():
    """The first-order stochastic sampler on Gaussian data stays Gaussian: its KL divergence at sigma_min is a recursion of variances.

    A frozen denoiser D = d x maps x to (d + r (1 - d)) x plus noise of variance b^2 (1 - r), r = (b / a)^2, per step from a to b.
    """
    s = np.array(TimeGrid.log_snr(160, 0.05, 10.0, to_zero=False).times)
    cost = np.triu(gaussian_bound(s), 1)

    def divergence(grid):  # of the truth from the sampler, per dimension, started exactly
        v = C**2 + grid[0] ** 2
        for a, b in itertools.pairwise(grid):
            d, r = C**2 / (C**2 + a * a), (b / a) ** 2
            v = (d + r * (1 - d)) ** 2 * v + b * b * (1 - r)
        q = (C**2 + grid[-1] ** 2) / v
        return 0.5 * (q - 1 - math.log(q))

    found, gains = best_routes(cost, 20), {}
    for n in (3, 5, 8, 12, 20):
        karras = np.array(TimeGrid.karras(n, 0.05, 10.0, to_zero=False).snapped(s.tolist()).times)
        at = [int(np.abs(s - v).argmin()) for v in karras]
        ours = s[list(found[n].nodes)]
        assert divergence(ours) < found[n].cost < sum(cost[a, b] for a, b in itertools.pairwise(at))
        assert divergence(karras) < sum(cost[a, b] for a, b in itertools.pairwise(at))
        gains[n] = divergence(karras) - divergence(ours)
    assert all(gains[n] > 0 for n in (5, 8, 12, 20))
    assert gains[3] < 0  # three steps are too few for the bound to say much: 1.03 nats against 0.61


def test_ays_grids_end_with_a_step_to_zero_and_are_judged_on_other_samples():
    n, nodes, model = 60, TimeGrid.log_snr(30, 0.05, 10.0, to_zero=False), oracle()
    draw = lambda seed: ring().sample(n, torch.Generator().manual_seed(seed))[0]  # noqa: E731
    search, fresh = ays(model, draw(0), nodes), ays(model, draw(1), nodes, range(900, 900 + n))
    for steps in (1, 2, 6):
        schedule = search.schedule(steps)
        grid = schedule.grid
        assert grid.n_steps == steps and grid.times[0] == 10.0 and grid.times[-1] == 0.0
        assert steps == 1 or grid.times[-2] == 0.05
        if steps > 2:  # with two, both grids step once to sigma_min
            assert fresh.cost_of(grid).value < fresh.cost_of(search.karras(steps)).value
            assert fresh.cost_of(grid).value != schedule.cost.value
    assert schedule.n_evals == 31 and schedule.cost.name == "KL bound"
    # the same seeds give the same search, whatever the batch
    again = ays(model, draw(0), nodes, batch=7)
    np.testing.assert_allclose(again.costs.values, search.costs.values, rtol=1e-9, atol=1e-12)


def test_ays_passes_the_classes_on():
    model = Oracle(ring(labels=True))
    data, label = ring().sample(30, torch.Generator().manual_seed(0))
    nodes = TimeGrid.log_snr(10, 0.1, 5.0, to_zero=False)
    free, told = ays(model, data, nodes), ays(model, data, nodes, labels=label)
    assert told.mean().cost[0, -1] < 0.5 * free.mean().cost[0, -1]  # a known mode leaves only its own width to find


# Equal errors


@given(n=st.integers(1, 30), order=st.integers(1, 4))
def test_a_known_error_density_is_inverted(n, order):
    """Errors c(t) h^(order + 1) with c = y-density cubed: the new nodes are even in the integral of c^(1/(order+1))."""
    y = np.linspace(2.0, 0.1, 200)  # t^(1/7)
    share = 1 / y[:-1] * -np.diff(y)  # density 1/y of steps: even in ln y
    got = equidistributed(y**7, share ** (order + 1), n, order)
    assert len(got) == n + 1 and all(a > b for a, b in itertools.pairwise(got))
    want = np.exp(np.linspace(math.log(2.0), math.log(0.1), n + 1)) ** 7
    np.testing.assert_allclose(got, want, rtol=0.15)  # 199 pilot steps, left sums: 1 % in y, 7 % in t


@pytest.mark.parametrize("solver", [Euler(), Heun()], ids=["euler", "heun"])
def test_rounds_make_the_local_errors_equal(solver):
    model, start = oracle(), TimeGrid.karras(8, 0.02, 20.0)
    schedule = equidistribute(model, solver, range(24), start, rounds=6, substeps=6)
    assert schedule.grid.n_steps == 8 and schedule.grid.times[0] == 20.0 and schedule.grid.times[-1] == 0.0
    uneven = []
    for grid in (start, schedule.grid):
        ds = record(model, OdeSampler(solver, grid), range(24), keep=("x",))
        by = local_error(ds, model, substeps=6).values.mean(axis=0)
        uneven.append(by.max() / by.mean())
        assert by.max() == pytest.approx((schedule.baseline_cost if grid == start else schedule.cost).value, rel=1e-9)
    assert uneven[1] < 0.5 * uneven[0] and uneven[1] < 1.7
    assert schedule.cost.value < 0.5 * schedule.baseline_cost.value


# Held out


def test_end_errors_are_those_of_the_closed_form():
    """Gaussian data: the exact end is z s_0 c / sqrt(c^2 + s_0^2), and Euler's a product of factors."""
    grids = {"karras": TimeGrid.karras(6, 0.02, 20.0), "even": TimeGrid.uniform_sigma(6, 0.02, 20.0)}
    ds = end_errors(GAUSS, Euler(), grids, range(50), reference=OdeSampler(Heun(), TimeGrid.karras(600, 0.002, 20.0)))
    z = Seeds(range(50)).normal((2,)).norm(dim=1).numpy()
    for name, grid in grids.items():
        s = np.array(grid.times)
        factor = np.prod(1 + np.diff(s) * s[:-1] / (C**2 + s[:-1] ** 2))
        miss = z * 20.0 * abs(factor - C / math.sqrt(C**2 + 400))
        np.testing.assert_allclose(ds.error.sel(grid=name), miss, rtol=0, atol=2e-4)
        rmse = math.sqrt((miss**2).mean())
        assert float(ds.rmse.sel(grid=name)) == pytest.approx(rmse, abs=2e-4)
        assert float(ds.rmse_se.sel(grid=name)) == pytest.approx(
            (miss**2).std(ddof=1) / math.sqrt(50) / (2 * rmse), rel=1e-2
        )
    assert ds.attrs["n"] == 50 and ds.nfe.values.tolist() == [6, 6] and float(ds.difference[0]) == 0
    # all errors are proportional to |z|, so the paired error is the difference of the errors, far below the unpaired one
    spread = abs(float(ds.rmse_se[1]) - float(ds.rmse_se[0]))
    assert float(ds.difference_se[1]) == pytest.approx(spread, rel=1e-2)
    assert "karras is better than even" in end_verdicts(ds)[0]
    exact = Seeds(range(50)).normal((2,)) * 20.0 * C / math.sqrt(C**2 + 400)  # the end points themselves will do, too
    np.testing.assert_allclose(end_errors(GAUSS, Euler(), grids, range(50), reference=exact).error, ds.error, atol=2e-4)


def test_computed_schedules_on_fresh_noise():
    """Ring of Gaussians, Euler in 8 steps, 200 noises that no search has seen; the sentences say who wins and by how much."""
    model, low, high, n = oracle(), 0.01, 20.0, 8
    search = gits(record(model, OdeSampler(Heun(), TimeGrid.karras(40, low, high)), range(64)), coefficient=1.0)
    karras = TimeGrid.karras(n, low, high)
    equal = equidistribute(model, Euler(), range(32), karras, rounds=4, substeps=6)
    grids = {"karras": karras, "gits": search.grid(n), "equidistributed": equal.grid}
    ds = end_errors(model, Euler(), grids, range(7000, 7200))
    assert (ds.difference[1:] < -4 * ds.difference_se[1:]).all(), end_verdicts(ds)
    assert all(
        f"{name} is better than karras" in says for name, says in zip(list(grids)[1:], end_verdicts(ds), strict=True)
    )


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: gits(record(GAUSS, OdeSampler(Euler(), FINE), range(2), keep=("x",))), "needs? the slopes"),
        (lambda: ays(GAUSS, torch.zeros(3, 2), TimeGrid((0.9, 0.1), "t")), "nodes must be in sigma"),
        (lambda: ays(GAUSS, torch.zeros(3, 2), TimeGrid((0.9, 0.0))), "two positive noise levels"),
        (lambda: ays(GAUSS, torch.zeros(3, 4), FINE), r"shape \(2,\)"),
        (lambda: ays(GAUSS, torch.zeros(3, 2), FINE, range(2)), "got 2 seeds"),
        (lambda: equidistributed([3.0, 1.0, 0.0], [1.0, math.nan], 4), "2 errors, finite"),
        (lambda: equidistributed([3.0, 1.0, 0.0], [0.0, 0.0], 4), "not all 0"),
        (lambda: equidistributed([3.0, 1.0, 0.0], [1.0], 4), "one for each step"),
        (lambda: equidistributed([3.0, 1.0, 0.0], [1.0, 1.0], 0), "at least one step"),
        (lambda: equidistribute(GAUSS, Euler(), range(2), TimeGrid((0.9, 0.0), "t")), "must be in sigma"),
        (lambda: equidistribute(GAUSS, Euler(), range(2), FINE, rounds=0), "at least one round"),
        (lambda: end_errors(GAUSS, Euler(), {}, range(2)), "no grid"),
        (lambda: end_errors(GAUSS, Euler(), {"a": FINE}, range(3), reference=torch.zeros(2, 2)), "one end point for each seed"),
        (lambda: end_errors(GAUSS, Euler(), {"a": FINE, "b": TimeGrid((9.0, 0.0))}, range(2)), "b starts at sigma = 9"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_words(make, says):
    with pytest.raises(BadValue, match=says):
        make()


def test_a_search_refuses_grids_that_are_not_its_own():
    search = gits(record(GAUSS, OdeSampler(Heun(), FINE), range(4)))
    bound = ays(GAUSS, torch.zeros(4, 2), FINE)
    for ask, says in (
        (lambda: search.grid(25), "25 nodes allow 1 to 24 steps"),
        (lambda: search.grid(0), "got 0"),
        (lambda: search.cost_of(TimeGrid((20.0, 3.33, 0.0))), "sigma = 3.33 is no node"),
        (lambda: search.cost_of(TimeGrid((search.nodes[1], 0.0))), "must run from sigma = 20 to 0"),
        (lambda: bound.cost_of(FINE.remove(-1)), "end with a step to 0"),
    ):
        with pytest.raises(BadValue, match=says):
            ask()
    with pytest.raises(UnknownName, match="squared"):
        gits(record(GAUSS, OdeSampler(Heun(), FINE), range(4)), norm="l1")
    assert isinstance(bound, Search) and bound.cost_of(TimeGrid((20.0, 0.0))).value == 0
