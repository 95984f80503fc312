"""Solvers, grids, seeds and samplers: order measured, cost counted, invariances exact, ends safe."""

import dataclasses
import math

import pytest
import torch
from problems import PATHS, gaussian_map, oracle, ring

from explorer.errors import BadValue, NonFinite, UnknownName
from explorer.models import Guided, Oracle, as_denoiser
from explorer.process import EDM, CosineVP, GaussianMixture, Linear
from explorer.sampling import (
    GRIDS,
    SOLVERS,
    EDMStochastic,
    Euler,
    Heun,
    OdeSampler,
    Seeds,
    TimeGrid,
    denoised_of,
    grid,
    sample,
    sampler_from_dict,
    sampler_from_json,
    slope_of,
    solve,
)

ALL = {name: cls() for name, cls in SOLVERS.items()}
DETERMINISTIC_GRID = TimeGrid.karras(8, 0.02, 20.0)


@pytest.fixture
def noise():
    return Seeds(range(48)).normal((2,))


# orders ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_gaussian_data_follow_the_closed_form_map(path, noise):
    model = Oracle(GaussianMixture(torch.zeros(1, 2), 0.5), path)
    got = OdeSampler(ALL["rk4"], TimeGrid.karras(64, 0.05, 20.0, 3.0, to_zero=False)).sample(model, noise)
    torch.testing.assert_close(got, gaussian_map(path, noise, 0.5, 20.0, 0.05), rtol=0, atol=5e-6)


def test_rk4_keeps_its_order_on_a_step_to_zero():
    """On the linear path, wide data: the last step ends at t = 0 and is not small."""
    model, noise = Oracle(GaussianMixture(torch.zeros(1, 2), 1.0), Linear()), Seeds(range(8)).normal((2,))
    exact = gaussian_map(Linear(), noise, 1.0, 9.0, 1e-12)
    errors = []
    for n in (12, 24):
        times = [0.9 * (1 - i / n) for i in range(n)] + [0.0]
        got = OdeSampler(ALL["rk4"], TimeGrid.explicit(times, "t")).sample(model, noise)
        errors.append((got - exact).abs().max().item())
    assert math.log2(errors[0] / errors[1]) > 3.6


# cost --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cost"), [("euler", 9), ("heun", 17), ("midpoint", 18), ("rk4", 35), ("ddim", 9), ("dpmpp-2m", 9)]
)
def test_cost_of_nine_steps(name, cost):
    assert SOLVERS[name]().n_evals(9) == cost


@pytest.mark.parametrize("name", ["heun", "dpmpp-2m", "edm-stochastic"])
def test_guidance_is_counted_where_it_acts(name):
    base = Oracle(ring(labels=True))
    model = Guided(base, 2.0, interval=(0.2, 3.0))
    sampler = OdeSampler(SOLVERS[name](), TimeGrid.karras(9, 0.02, 20.0))
    cond, seeds = torch.arange(4), Seeds(range(4))
    sampler.sample(model, seeds.normal((2,)), cond, rng=seeds)
    plain = sampler.nfe(base)
    assert plain < sampler.nfe(model) == model.n_calls < 2 * plain


# invariances -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m"])
@pytest.mark.parametrize("path", PATHS[1:], ids=str)
def test_exponential_solvers_do_not_see_the_path(name, path, noise):
    # states differ by alpha at the start only: the grid ends at data, where all paths agree
    on_edm = OdeSampler(ALL[name], DETERMINISTIC_GRID).sample(oracle(), noise)
    other = OdeSampler(ALL[name], DETERMINISTIC_GRID, path).sample(oracle(), noise)
    torch.testing.assert_close(other, on_edm, rtol=0, atol=1e-10)


def test_euler_on_edm_is_ddim_and_heun_depends_on_the_path(noise):
    run = lambda solver, path=None: OdeSampler(solver, DETERMINISTIC_GRID, path).sample(oracle(), noise)  # noqa: E731
    torch.testing.assert_close(run(Euler()), run(ALL["ddim"]), rtol=0, atol=1e-12)
    torch.testing.assert_close(run(Euler(), Linear()), run(Euler()), rtol=0, atol=1e-10)
    assert (run(Heun(), Linear()) - run(Heun())).abs().max() > 1e-4


def test_churn_of_zero_is_heun_bit_for_bit(noise):
    run = lambda solver: OdeSampler(solver, DETERMINISTIC_GRID).sample(oracle(), noise, rng=Seeds(range(48)))  # noqa: E731
    assert torch.equal(run(EDMStochastic(s_churn=0.0)), run(Heun()))
    assert torch.equal(run(ALL["alpha2"].__class__(1.0)), run(Heun()))


def test_churn_with_an_exact_denoiser_keeps_the_distribution():
    """Mean square radius and mode shares of a stochastic run match the data within sampling error."""
    model, n = oracle(), 2000
    for churn in (0.0, 20.0, 40.0):
        sampler = OdeSampler(
            EDMStochastic(s_churn=churn, s_min=0.05, s_max=10.0, s_noise=1.0), TimeGrid.karras(48, 0.01, 20.0)
        )
        x = sample(model, sampler, range(n), batch=1000)
        radius = x.pow(2).sum(1)
        want, spread = 0.66**2 + 2 * 0.06**2, 2 * 0.66 * 0.06
        assert radius.mean().item() == pytest.approx(want, abs=4 * spread / math.sqrt(n) + 2e-3)
        mode = torch.cdist(x, model.mixture.means).argmin(1).bincount(minlength=8).double() / n
        assert (mode - 1 / 8).abs().max() < 4.5 * math.sqrt(1 / 8 * 7 / 8 / n)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_a_picture_does_not_depend_on_its_batch(name, batch):
    model, sampler = Oracle(ring(labels=True)), OdeSampler(SOLVERS[name](), TimeGrid.karras(4, 0.05, 10.0))
    want = sample(model, sampler, range(20), batch=20)
    torch.testing.assert_close(sample(model, sampler, range(20), batch=batch), want, rtol=0, atol=1e-12)
    shuffled = sample(model, sampler, [13, 2, 7], batch=2)
    torch.testing.assert_close(shuffled, want[[13, 2, 7]], rtol=0, atol=1e-12)


def test_seeds_continue_their_streams_and_restart_fresh():
    seeds = Seeds([5, 9])
    first, second = seeds.normal((3,)), seeds.normal((3,))
    assert not torch.equal(first, second)
    assert torch.equal(seeds.fresh().normal((3,)), first)
    assert torch.equal(Seeds([9]).normal((3,))[0], first[1])
    x = Seeds(range(4000)).normal((4,))
    assert x.mean().abs() < 4 / math.sqrt(16000) and abs(x.var().item() - 1) < 4 * math.sqrt(2 / 16000)
    assert Seeds(range(25)).labels(10).bincount().tolist() == [3] * 5 + [2] * 5
    with pytest.raises(BadValue):
        Seeds([-1])


# grids -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 3, 18])
def test_every_grid_starts_at_sigma_max_ends_at_zero_and_survives_json(name, steps):
    g = grid(name, steps, 0.002, 80.0)
    assert g.n_steps == steps and g.times[0] == 80.0 and g.times[-1] == 0.0
    assert TimeGrid.from_json(g.to_json()) == g
    for path in PATHS:
        times = g.on(path)
        assert all(a > b for a, b in zip(times[:-1], times[1:], strict=True)) and times[-1] == 0.0
        assert g.tensor(path).dtype == torch.float64
    if steps > 1:
        ends = GRIDS[name](steps, 0.002, 80.0, to_zero=False)
        assert ends.times[0] == 80.0 and ends.times[-1] == pytest.approx(0.002) and ends.n_steps == steps


def test_karras_is_the_formula_of_the_paper():
    rho, lo, hi, n = 7.0, 0.002, 80.0, 18
    want = [(hi ** (1 / rho) + i / (n - 1) * (lo ** (1 / rho) - hi ** (1 / rho))) ** rho for i in range(n)] + [0.0]
    assert TimeGrid.karras(n, lo, hi, rho).times == pytest.approx(want, rel=1e-12)
    assert TimeGrid.uniform_sigma(4, 1.0, 4.0).times == pytest.approx([4, 3, 2, 1, 0])
    assert TimeGrid.log_snr(3, 0.01, 1.0).times == pytest.approx([1.0, 0.1, 0.01, 0.0])


def test_named_grids_are_uniform_where_they_say():
    t = TimeGrid.uniform_t(6, 0.01, 9.0, Linear()).on(Linear())
    assert t == pytest.approx([0.9 * (1 - i / 6) for i in range(7)])
    t = TimeGrid.cosine(5, 0.01, 9.0).on(CosineVP(0.0))
    gaps = [a - b for a, b in zip(t[:-1], t[1:], strict=True)]
    assert gaps == pytest.approx([gaps[0]] * 5)
    t = TimeGrid.polynomial(4, 0.01, 1.0, 2.0).on(Linear())
    assert t == pytest.approx([0.5 * (1 - i / 4) ** 2 for i in range(5)])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: TimeGrid.karras(0, 0.002, 80.0), "at least 1"),
        (lambda: TimeGrid.karras(5, 80.0, 0.002), "sigma_min must be positive and below"),
        (lambda: TimeGrid.karras(5, 0.0, 80.0), "sigma_min must be positive and below"),
        (lambda: TimeGrid.karras(5, 0.1, 80.0, rho=0), "rho"),
        (lambda: TimeGrid((1.0, 1.0, 0.0)), "strictly decreasing; got 1 followed by 1"),
        (lambda: TimeGrid((1.0, 0.5, -0.1)), "non-negative"),
        (lambda: TimeGrid((math.inf, 0.5)), "finite"),
        (lambda: TimeGrid((1.0,)), "at least one step"),
        (lambda: TimeGrid((2.0, 0.0), "t").on(Linear()), "beyond t_max"),
    ],
)
def test_impossible_grids_are_refused(make, says):
    with pytest.raises(BadValue, match=says):
        make()


def test_unknown_names_say_what_exists():
    with pytest.raises(UnknownName, match="did you mean 'karras'|Did you mean 'karras'"):
        grid("karas", 5, 0.1, 1.0)
    with pytest.raises(UnknownName, match="Did you mean 'heun'"):
        sampler_from_dict({"sampler": "ode", "solver": {"name": "huen"}, "grid": DETERMINISTIC_GRID.to_dict()})


# storage, watching, failing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("path", [None, *PATHS], ids=str)
def test_a_sampler_survives_json(name, path):
    sampler = OdeSampler(ALL[name], DETERMINISTIC_GRID, path)
    assert sampler_from_json(sampler.to_json()) == sampler
    assert dataclasses.is_dataclass(sampler)


@pytest.mark.parametrize(
    "text",
    ["{", '{"sampler": "ode"}', '{"sampler": "ode", "solver": {"name": "heun", "x": 1}, "grid": {"times": [1, 0]}}'],
)
def test_a_broken_sampler_text_is_refused(text):
    with pytest.raises(BadValue):
        sampler_from_json(text)


@pytest.mark.parametrize("name", SOLVERS)
def test_watching_does_not_change_the_run_and_sees_the_truth(name):
    model, times, seen = oracle(Linear()), DETERMINISTIC_GRID.on(Linear()), []
    x = 0.9 * Seeds(range(5)).normal((2,))

    def watch(i, t, t_next, before, step):
        start, at = (before, t) if step.x_from is None else (step.x_from, step.t_from)
        torch.testing.assert_close(
            slope_of(model.path, before, t, step), model.velocity(start, at), rtol=1e-7, atol=1e-7
        )
        torch.testing.assert_close(
            denoised_of(model.path, before, t, step), model.denoise(start, at), rtol=1e-7, atol=1e-7
        )
        seen.append((i, t, t_next))

    run = lambda observe: solve(model, SOLVERS[name](), x, times, rng=Seeds(range(5)), observe=observe)  # noqa: E731
    assert torch.equal(run(watch), run(None))
    assert seen == [(i, times[i], times[i + 1]) for i in range(8)]


def test_embedded_error_of_heun_is_its_distance_to_euler():
    model, x = oracle(), 5 * Seeds(range(4)).normal((2,))
    heun, euler = Heun().step(model, x, 5.0, 3.0, None), Euler().step(model, x, 5.0, 3.0, None)
    torch.testing.assert_close(heun.error, heun.x - euler.x)


def test_not_a_number_names_step_and_samples_and_keeps_the_rest():
    good = oracle()

    def function(x_t, t, cond):
        d = good.denoise(x_t, t)
        if t < 1.0:
            d = d.clone()
            d[2] = math.nan
        return d

    model = as_denoiser(function, "x0", EDM(), (2,), t_range=(0.001, 100.0))
    g = TimeGrid.karras(6, 0.02, 20.0)
    first = next(i for i, s in enumerate(g.times) if s < 1.0)
    with pytest.raises(NonFinite, match="1 of 4 samples") as caught:
        OdeSampler(Euler(), g).sample(model, Seeds(range(4)).normal((2,)))
    assert caught.value.step == first and caught.value.samples == [2]
    assert torch.isfinite(caught.value.kept[[0, 1, 3]]).all()


def test_wrong_shape_and_missing_seeds_fail_at_the_door():
    with pytest.raises(BadValue, match="noise of shape"):
        OdeSampler(Heun(), DETERMINISTIC_GRID).sample(oracle(), torch.zeros(2, 3))
    with pytest.raises(BadValue, match="seeds of its samples"):
        OdeSampler(EDMStochastic(), DETERMINISTIC_GRID).sample(oracle(), torch.zeros(2, 2))
    with pytest.raises(BadValue, match="classes 0 to 7, got class 8"):
        sample(Oracle(ring(labels=True)), OdeSampler(Heun(), DETERMINISTIC_GRID), range(2), 8)


def test_gradients_reach_the_start_through_the_solver():
    x = (5 * Seeds(range(3)).normal((2,))).requires_grad_()
    OdeSampler(Heun(), TimeGrid.karras(4, 0.1, 5.0)).sample(oracle(), x).sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().max() > 0


def test_fixed_grid_steps_equal_torchdiffeq():
    torchdiffeq = pytest.importorskip("torchdiffeq")
    model, x = oracle(Linear()), 0.9 * Seeds(range(6)).normal((2,))
    times = TimeGrid.karras(7, 0.05, 9.0, 3.0, to_zero=False)
    t = times.tensor(Linear())
    for name, method in (("euler", "euler"), ("midpoint", "midpoint"), ("heun", "heun2")):
        ours = solve(model, ALL[name], x, times.on(Linear()))
        theirs = torchdiffeq.odeint(lambda s, y: model.velocity(y, float(s)), x, t, method=method)[-1]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
