"""Restart sampling: the cost of the published settings, contraction and unbiasedness against exact answers, the watched chain."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import Watcher, oracle, ring
from scipy.special import ndtr

from explorer.errors import BadValue, NonFinite, UnknownName
from explorer.models import Guided, Oracle, as_denoiser
from explorer.process import EDM, VP, GaussianMixture, Linear
from explorer.sampling import OdeSampler, Seeds, TimeGrid, denoised_of, sample, sampler_from_json, slope_of
from explorer.sampling.restart import PRESETS, Restart, RestartSampler, repeated, restart_preset
from explorer.sampling.solvers import DDIM, SOLVERS, DPMpp2M, EDMStochastic, Euler, Heun

GRID = TimeGrid.karras(8, 0.02, 20.0)
INTERVAL = Restart(4, 3, 0.3, 2.0)


def start(n: int) -> torch.Tensor:
    return Seeds(range(n)).normal((2,))


class Silent(Seeds):
    """Seeds whose every number is 0."""

    def normal(self, shape, device=None, dtype=torch.float64):
        return torch.zeros(len(self), *shape, dtype=dtype, device=device)


# cost --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_published_settings_cost_what_the_tables_say(name):
    """Xu et al. 2023, Tables 3 and 5: evaluations with Heun, in the name; promised, by the formula, and counted."""
    sampler, model = restart_preset(name), Watcher(oracle())
    n_main, intervals, _ = PRESETS[name]
    want = int(name.rsplit("-", 1)[1])
    assert 2 * n_main - 1 + sum(k * 2 * (n - 1) for n, k, _, _ in intervals) == want
    assert sampler.nfe(model) == want
    sampler.sample(model, start(2), rng=Seeds(range(2)))
    assert len(model.asked) == want
    assert sampler_from_json(sampler.to_json()) == sampler


@given(
    n_main=st.integers(4, 12),
    n_points=st.integers(2, 5),
    n_repeats=st.integers(0, 3),
    low=st.floats(0.05, 1.0),
    ratio=st.floats(1.9, 8.0),
    solver=st.sampled_from([cls() for cls in SOLVERS.values() if not cls().stochastic]),
    path=st.sampled_from([None, VP(), Linear()]),
    to_zero=st.booleans(),
)
def test_any_interval_keeps_its_promises(n_main, n_points, n_repeats, low, ratio, solver, path, to_zero):
    """Evaluations promised = made, steps promised = seen, the chain of states unbroken, the stored form equal."""
    grid = TimeGrid.karras(n_main, 0.02, 20.0, to_zero=to_zero)
    try:
        sampler = RestartSampler(grid, (Restart(n_points, n_repeats, low, low * ratio),), solver, 1.003, path)
    except BadValue as refused:  # coarse grids may have no node inside
        assert "no way down" in str(refused) or "first node" in str(refused)
        return
    model, seen = Watcher(oracle()), []

    def watch(i, t, t_next, x, step):
        if seen:
            assert t == seen[-1][1] and torch.equal(x, seen[-1][2])
        seen.append((t, t_next, step.x))

    x = sampler.sample(model, start(3), rng=Seeds(range(3)), observe=watch)
    assert torch.isfinite(x).all() and torch.equal(x, seen[-1][2])
    assert len(model.asked) == sampler.nfe(model)
    assert len(seen) == sampler.n_steps(model) == n_main + n_repeats * (n_points - 1)
    assert sampler.monotone == all(t > t_next for t, t_next, _ in seen)
    assert sampler_from_json(sampler.to_json()) == sampler


def test_guidance_is_counted_where_it_acts():
    base = Oracle(ring(labels=True))
    model, cond, seeds = Guided(base, 2.0, interval=(0.5, 3.0)), torch.arange(4), Seeds(range(4))
    sampler = RestartSampler(GRID, (INTERVAL,))
    sampler.sample(model, start(4), cond, rng=seeds)
    assert sampler.nfe(base) < sampler.nfe(model) == model.n_calls < 2 * sampler.nfe(base)


# the jump ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [EDM(), VP(), Linear()], ids=str)
def test_the_jump_adds_what_is_missing_and_never_the_same_twice(path):
    """Data at one point: after the jump the ratio-scaled state has variance sigma_max^2, in every repeat anew."""
    n, point = 4000, 0.3
    model, seen = Oracle(GaussianMixture(torch.full((1, 2), point), 0.0), path), []
    at_low = path.at(path.time_at(INTERVAL.sigma_min))
    x = at_low[0] * point + at_low[1] * start(n)

    def watch(i, t, t_next, x, step):
        if step.t_from is not None:
            assert t == path.time_at(INTERVAL.sigma_min)
            assert path.ratio_at(step.t_from) == pytest.approx(INTERVAL.sigma_max)
            seen.append(step.x_from / path.at(step.t_from)[0] - point)

    repeated(model, x, INTERVAL, rng=Seeds(range(n, 2 * n)), observe=watch)
    assert len(seen) == INTERVAL.n_repeats
    for jumped in seen:  # 2 n squares, each with relative spread sqrt(2)
        assert jumped.square().mean().item() == pytest.approx(INTERVAL.sigma_max**2, rel=4.5 * math.sqrt(2 / (2 * n)))
    # the way down ends at sigma_min, so a jump keeps the share sigma_min / sigma_max of the state before it
    for a, b in zip(seen[:-1], seen[1:], strict=True):
        correlation = (a * b).mean().item() / INTERVAL.sigma_max**2
        assert correlation == pytest.approx(INTERVAL.sigma_min / INTERVAL.sigma_max, abs=4.5 / math.sqrt(2 * n))


def test_s_noise_scales_the_jump_only():
    model, seen = oracle(), {}
    for s_noise in (1.0, 1.5):

        def watch(i, t, t_next, x, step, s=s_noise):
            if i == 0:
                seen[s] = step.x_from - x

        repeated(model, 0.5 * start(5), INTERVAL, s_noise=s_noise, rng=Seeds(range(5)), observe=watch)
    torch.testing.assert_close(seen[1.5], 1.5 * seen[1.0], rtol=1e-12, atol=1e-12)


# exact answers -------------------------------------------------------------------------------------------------------

WEIGHT, MODE, STD, LOW = 0.7, 0.5, 0.05, 0.06  # two modes at -MODE and +MODE, the share of the upper one is WEIGHT


def mode_error(sigma_max: float, n_repeats: int) -> list[float]:
    """|share of the upper mode - WEIGHT| after each repeat, all starting in the lower one, the ODE exact.

    In one dimension the ODE keeps order, so it maps quantiles of p_max to quantiles of p_min; with the Gaussian jump that is a Markov
    chain on the quantile, taken here on 1500 bins.
    """
    x = np.linspace(-12, 12, 40001)
    cdf = lambda s: (1 - WEIGHT) * ndtr((x + MODE) / s) + WEIGHT * ndtr((x - MODE) / s)  # noqa: E731
    low, high = (cdf(math.hypot(STD, s)) for s in (LOW, sigma_max))
    n = 1500
    edges = np.linspace(0, 1, n + 1)
    states = np.interp((edges[1:] + edges[:-1]) / 2, low, x)
    walls = np.interp(edges, high, x)
    walls[0], walls[-1] = -np.inf, np.inf
    jump = math.sqrt(sigma_max**2 - LOW**2)
    step = np.diff(ndtr((walls[None] - states[:, None]) / jump), axis=1)
    at = np.diff(ndtr((np.interp(edges, low, x) + MODE) / math.hypot(STD, LOW)))  # the lower mode alone
    at, out = at / at.sum(), []
    for _ in range(n_repeats):
        at = at @ step
        out.append(abs(at[states > 0].sum() - WEIGHT))
    return out


@pytest.fixture(scope="module")
def contraction():
    """{sigma_max: (measured, exact)} errors of the upper mode's share after repeats 1, 2, ..."""
    model = Oracle(GaussianMixture([[-MODE], [MODE]], STD, weights=torch.tensor([1 - WEIGHT, WEIGHT])))
    n, repeats, out = 2500, 5, {}
    for sigma_max in (0.3, 0.6, 1.0, 2.0):
        shares = []

        def watch(i, t, t_next, x, step, shares=shares):
            if t_next == LOW:
                shares.append((step.x > 0).double().mean().item())

        x = -MODE + math.hypot(STD, LOW) * Seeds(range(n)).normal((1,))
        repeated(model, x, Restart(12, repeats, LOW, sigma_max), rng=Seeds(range(n, 2 * n)), observe=watch)
        out[sigma_max] = [abs(s - WEIGHT) for s in shares], mode_error(sigma_max, repeats)
    return out


def test_errors_contract_as_the_exact_chain_does(contraction):
    for sigma_max, (measured, exact) in contraction.items():
        # share of n samples; 0.01 for the way down with 11 Heun steps, whose halving moves the shares by less
        assert measured == pytest.approx(exact, abs=4.5 * math.sqrt(0.25 / 2500) + 0.01), sigma_max
    # measured independently for the same setting to two digits: sigma_max = 0.6, then 1.0
    assert contraction[0.6][1][:4] == pytest.approx([0.40, 0.24, 0.14, 0.09], abs=0.03)
    assert contraction[1.0][1][:3] == pytest.approx([0.25, 0.10, 0.05], abs=0.03)


def test_contraction_is_geometric_and_faster_from_higher_up(contraction):
    rates = []
    for measured, _ in contraction.values():
        e = [v for v in (WEIGHT, *measured) if v > 0.03]  # above the sampling noise, 0.01 at n = 2500
        k, log = np.arange(len(e)), np.log(e)
        slope, offset = np.polyfit(k, log, 1)
        if len(e) > 2:
            assert 1 - ((log - slope * k - offset) ** 2).sum() / ((log - log.mean()) ** 2).sum() > 0.95
        rates.append(-slope)
    assert rates == sorted(rates) and rates[0] > 0.05


def test_without_noise_nothing_is_forgotten():
    model = Oracle(GaussianMixture([[-MODE], [MODE]], STD, weights=torch.tensor([1 - WEIGHT, WEIGHT])))
    x = -MODE + math.hypot(STD, LOW) * Seeds(range(200)).normal((1,))
    end = repeated(model, x, Restart(6, 4, LOW, 0.3), rng=Silent(range(200)))
    assert (end < 0).all()


def energy_distance(x, y) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, unbiased."""
    n = len(x)
    within = lambda a: torch.cdist(a, a).sum() / (n * (n - 1))  # noqa: E731
    return (2 * torch.cdist(x, y).mean() - within(x) - within(y)).item()


def unbiased(n: int, intervals, repeats, n_points: int, allowed: float) -> None:
    mixture, generator = ring(), torch.Generator().manual_seed(0)
    model, (low, high) = Oracle(mixture), intervals
    draw = lambda: mixture.sample(n, generator)[0] + low * torch.randn(n, 2, dtype=torch.float64, generator=generator)  # noqa: E731
    floor = max(abs(energy_distance(draw(), draw())) for _ in range(30))
    for k in repeats:
        x = repeated(model, draw(), Restart(n_points, k, low, high), rng=Seeds(range(n)))
        assert abs(energy_distance(x, draw())) < allowed * floor, k


def test_repeats_keep_the_true_distribution():
    """From true samples at sigma_min, with the exact denoiser: no more than twice the largest distance of 30 pairs of true sets."""
    unbiased(1000, (0.06, 0.6), (1, 4), 12, 2.0)


@pytest.mark.slow
def test_many_repeats_keep_the_true_distribution():
    for high in (0.3, 1.0, 3.0):
        unbiased(4000, (0.06, high), (1, 5, 20), 12, 2.0)


@pytest.mark.slow
def test_a_whole_restart_run_ends_at_the_data():
    model, n = oracle(), 4000
    generator = torch.Generator().manual_seed(1)
    draw = lambda: model.mixture.sample(n, generator)[0]  # noqa: E731
    floor = max(abs(energy_distance(draw(), draw())) for _ in range(20))
    intervals = (Restart(10, 4, 1.0, 4.0), Restart(10, 4, 0.06, 0.3))
    x = sample(model, RestartSampler(TimeGrid.karras(36, 0.002, 80.0), intervals), range(n), batch=1000)
    assert abs(energy_distance(x, draw())) < 2 * floor


# invariances ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("intervals", [(), (dataclasses.replace(INTERVAL, n_repeats=0),)], ids=["none", "K = 0"])
@pytest.mark.parametrize("solver", [Heun(), DPMpp2M()], ids=str)
def test_no_repeats_is_the_plain_sampler_bit_for_bit(intervals, solver):
    sampler = RestartSampler(GRID, intervals, solver)
    plain = OdeSampler(solver, GRID)
    assert torch.equal(sampler.sample(oracle(), start(9)), plain.sample(oracle(), start(9)))
    assert sampler.monotone and sampler.nfe(oracle()) == plain.nfe(oracle())


@pytest.mark.parametrize("path", [VP(), Linear()], ids=str)
def test_a_solver_that_does_not_see_the_path_gives_the_same_samples_on_all(path):
    run = lambda path: RestartSampler(GRID, (INTERVAL,), DDIM(), path=path).sample(  # noqa: E731
        oracle(), start(6), rng=Seeds(range(6))
    )
    torch.testing.assert_close(run(path), run(None), rtol=0, atol=1e-9)


@pytest.mark.parametrize("batch", [1, 5])
def test_a_picture_does_not_depend_on_its_batch(batch):
    model, sampler = Oracle(ring(labels=True)), RestartSampler(GRID, (INTERVAL, Restart(2, 2, 0.05, 0.2)))
    want = sample(model, sampler, range(8), batch=8)
    torch.testing.assert_close(sample(model, sampler, range(8), batch=batch), want, rtol=0, atol=1e-12)


def test_watching_does_not_change_the_run_and_sees_the_truth():
    model, sampler = oracle(Linear()), RestartSampler(GRID, (INTERVAL,))

    def watch(i, t, t_next, x, step):
        place, at = (x, t) if step.x_from is None else (step.x_from, step.t_from)
        torch.testing.assert_close(slope_of(model.path, x, t, step), model.velocity(place, at), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(denoised_of(model.path, x, t, step), model.denoise(place, at), rtol=1e-7, atol=1e-7)

    run = lambda observe: sampler.sample(model, start(4), rng=Seeds(range(4)), observe=observe)  # noqa: E731
    assert torch.equal(run(watch), run(None))


def test_intervals_fire_in_the_order_of_the_grid_at_the_nearest_node():
    sigmas = GRID.times
    sampler = RestartSampler(GRID, (Restart(2, 1, 0.3, 2.0), Restart(3, 2, 4.0, 15.0)))
    fires = sampler.snapped(EDM())
    for index, interval in fires.items():
        assert index == min(range(len(sigmas)), key=lambda i: abs(sigmas[i] - interval.sigma_min))
    legs = list(sampler.legs(EDM()))
    assert [leg.repeat for leg in legs] == [0, 1, 2, 0, 1, 0]
    first, last = sorted(fires)
    assert [leg.times[-1] for leg in legs] == [sigmas[first]] * 3 + [sigmas[last]] * 2 + [0.0]
    down = legs[1].times  # sigma^(1/7) evenly spaced from sigma_max to the snapped node
    assert down == pytest.approx((15.0, ((15 ** (1 / 7) + sigmas[first] ** (1 / 7)) / 2) ** 7, sigmas[first]))
    finer = RestartSampler(TimeGrid.karras(16, 0.02, 20.0), sampler.intervals).snapped(EDM())
    assert sorted(finer) != sorted(fires)  # snapped anew on another main grid


def test_the_grid_in_time_of_the_path_means_the_same():
    times = TimeGrid.explicit(GRID.on(VP()), "t")
    a, b = (RestartSampler(grid, (INTERVAL,), path=VP()) for grid in (GRID, times))
    got = [s.sample(oracle(), start(3), rng=Seeds(range(3))) for s in (a, b)]
    torch.testing.assert_close(*got, rtol=0, atol=1e-9)


# refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Restart(1, 2, 0.06, 0.3), "at least 2 points"),
        (lambda: Restart(3, -1, 0.06, 0.3), "at least 0, got -1"),
        (lambda: Restart(3, 2, 0.3, 0.06), "larger sigma_max"),
        (lambda: Restart(3, 2, 0.3, 0.3), "larger sigma_max"),
        (lambda: Restart(3, 2, math.nan, 0.3), "larger sigma_max"),
        (lambda: Restart(3, 2, 0.1, math.inf), "larger sigma_max"),
        (lambda: Restart(3, 2, 0.06, 0.3, rho=0), "rho"),
        (lambda: RestartSampler(GRID, (Restart(3, 2, 0.3, 21.0),)), "outside the main grid.*0.02"),
        (lambda: RestartSampler(GRID, (Restart(3, 2, 0.001, 0.3),)), "outside the main grid"),
        (lambda: RestartSampler(GRID, (Restart(3, 2, 18.0, 20.0),)), "first node"),
        (lambda: RestartSampler(TimeGrid.karras(3, 0.02, 20.0), (Restart(3, 2, 0.9, 0.95),)), "no way down"),
        (lambda: RestartSampler(GRID, (INTERVAL, Restart(3, 1, 0.31, 1.0))), "both fire at the node"),
        (lambda: RestartSampler(GRID, (INTERVAL,), EDMStochastic()), "deterministic solver"),
        (lambda: RestartSampler(GRID, (INTERVAL,), s_noise=0.0), "S_noise must be positive"),
        (lambda: RestartSampler(GRID, (INTERVAL,)).sample(oracle(), start(2)), "seeds of its samples"),
        (lambda: RestartSampler(GRID).sample(oracle(), torch.zeros(2, 3)), "noise of shape"),
    ],
)
def test_impossible_restarts_are_refused(make, says):
    with pytest.raises(BadValue, match=says):
        make()


def test_an_unknown_preset_says_what_exists():
    with pytest.raises(UnknownName, match="imagenet64-203"):
        restart_preset("imagenet64-204")


def test_not_a_number_names_the_repeat_and_the_step_of_the_whole_run():
    sampler, good = RestartSampler(GRID, (INTERVAL,), Euler()), oracle()
    main, first, *_ = sampler.legs(EDM())

    def function(x_t, t, cond):
        d = good.denoise(x_t, t)
        return torch.where(torch.arange(len(d))[:, None] == 1, math.nan, d) if t == first.times[1] else d

    model = as_denoiser(function, "x0", EDM(), (2,), t_range=(0.001, 100.0))
    with pytest.raises(NonFinite, match=r"in repeat 1 of \[0.3, 2\]: .*1 of 3 samples") as caught:
        sampler.sample(model, start(3), rng=Seeds(range(3)))
    assert caught.value.step == len(main.times) - 1 + 1 and caught.value.samples == [1]
    assert torch.isfinite(caught.value.kept[[0, 2]]).all()
