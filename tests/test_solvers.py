"""Solvers: order measured, cost counted, weights integrated independently, invariances exact, ends safe, parity with diffusers."""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import PATHS, Watcher, gaussian_map, oracle, ring
from scipy.integrate import quad

from explorer.errors import BadValue, UnknownName
from explorer.models import Oracle
from explorer.process import EDM, VP, CosineVP, GaussianMixture, Linear, Trig
from explorer.sampling import (
    DDIM,
    DEIS,
    IPNDM,
    RK4,
    SOLVERS,
    AdamsBashforth,
    Alpha2,
    DPMpp1SDE,
    DPMpp2M,
    DPMpp2MSDE,
    DPMpp2S,
    DPMpp3M,
    DPMpp3MSDE,
    DPMppSDE,
    DPMSolver2,
    DPMSolver3,
    Euler,
    Heun3,
    IPNDMv,
    OdeSampler,
    PredictorCorrector,
    Seeds,
    TimeGrid,
    UniPC,
    denoised_of,
    sample,
    sampler_from_json,
    slope_of,
    solve,
)
from explorer.sampling.solvers import multistep, weights
from explorer.sampling.solvers.runge_kutta import RungeKutta

pytestmark = [  # diffusers on numpy 2
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.algorithm_type:FutureWarning"),
]

NOISY = {"eta": 0.0, "s_churn": 0.0, "strength": 0.0, "n_corrector": 0}
OWN = (
    DDIM,
    DEIS,
    IPNDM,
    AdamsBashforth,
    DPMpp1SDE,
    DPMpp2M,
    DPMpp2MSDE,
    DPMpp2S,
    DPMpp3M,
    DPMpp3MSDE,
    DPMppSDE,
    DPMSolver2,
)
OWN = (*OWN, DPMSolver3, Heun3, IPNDMv, UniPC)


def quiet(solver):
    """The solver without its noise."""
    fields = {f.name for f in dataclasses.fields(solver)}
    return dataclasses.replace(solver, **{name: zero for name, zero in NOISY.items() if name in fields})


VARIED = [
    Alpha2(0.4),
    *(UniPC(p, v) for p in (1, 2) for v in ("bh1", "bh2")),
    *(UniPC(p, corrector=False) for p in (1, 2, 3)),
    *(DEIS(p, v) for p in (2, 4) for v in ("t", "log-rho")),
    *(cls(p) for p in (1, 2, 4) for cls in (IPNDM, AdamsBashforth)),
    IPNDMv(4),
    DPMpp3M("released"),
    DPMSolver2(0.7),
    DPMpp2S(0.3),
    DPMpp2MSDE(0.0, 1.0, "heun"),
    DPMpp3MSDE(0.0, 1.0, "released"),
    DPMppSDE(0.0, r=0.3),
]
DETERMINISTIC = [*(quiet(cls()) for cls in SOLVERS.values() if cls.order), *VARIED]
STOCHASTIC = [
    DPMpp1SDE(),
    DPMppSDE(),
    DPMpp2MSDE(),
    DPMpp2MSDE(variant="heun"),
    DPMpp3MSDE(),
    DPMpp3MSDE(variant="released"),
]
EVERY = [*DETERMINISTIC, *STOCHASTIC]
MULTISTEP = [
    DPMpp2M(),
    DPMpp3M(),
    UniPC(3),
    UniPC(2, "bh1"),
    DEIS(4),
    DEIS(3, "log-rho"),
    IPNDM(4),
    IPNDMv(4),
    AdamsBashforth(4),
]
PATH_FREE = [
    *(DDIM(), DPMSolver2(), DPMSolver3(), DPMpp2S(), DPMpp2M(), DPMpp3M(), UniPC(), UniPC(2, "bh1"), IPNDM(), IPNDMv()),
    *(DEIS(3, "rho"), DEIS(3, "log-rho"), DPMpp1SDE(), DPMppSDE(), DPMpp2MSDE(), DPMpp3MSDE()),
]


def ids(value) -> str:
    return repr(value)


@pytest.fixture
def noise():
    return Seeds(range(24)).normal((2,))


# Orders

MIXTURE = GaussianMixture([[0.5, 0.0], [-0.4, 0.3], [0.0, -0.6]], 0.4)
STEPS, EXACT = 24, 5


@lru_cache
def problem(path, kind: str):
    """Times of 2 STEPS steps between sigma 6 and 0.2, and the states there: by RK4 with 8 steps to each of these."""
    build = TimeGrid.uniform_sigma if kind == "equal" else TimeGrid.karras
    low, high = (0.5, 3.0) if kind == "equal" else (0.15, 6.0)
    model, fine = Oracle(MIXTURE, path), build(16 * STEPS, low, high, to_zero=False).on(path)
    x = path.at(fine[0])[1] * Seeds(range(12)).normal((2,))
    states = [x]
    solve(model, RK4(), x, fine, observe=lambda i, t, t_next, x, step: states.append(step.x))
    return model, fine, states


def error(solver, path, kind: str, stride: int) -> float:
    """End-point error on every stride-th of the fine times, all states up to the EXACT-th step replaced by the true ones.

    So every method starts with the history its order is defined for; from their own start multistep methods take first-order steps.
    """
    model, fine, states = problem(path, kind)
    times, truth = fine[::stride], states[::stride]
    x, state = truth[0], solver.init(model, truth[0], times)
    for i, (t, t_next) in enumerate(pairwise(times)):
        step = solver.step(model, truth[i] if i <= EXACT else x, t, t_next, state)
        x, state = step.x, step.state
    return (x - truth[-1]).pow(2).mean().sqrt().item()


def free(solver) -> bool:
    """Whether it does not see the path, which another test proves to the last digit: then one path is enough here."""
    return not isinstance(solver, RungeKutta | AdamsBashforth | DEIS) and isinstance(solver, OWN)


@pytest.mark.parametrize(
    ("solver", "path"),
    [(s, path) for s in DETERMINISTIC for path in (EDM(), Linear()) if path == Linear() or not free(s)],
    ids=ids,
)
def test_order_is_measured(solver, path):
    """Slope of the end-point error between STEPS and 2 STEPS steps of a graded grid, on a smooth mixture.

    The next term of the error is of relative size h = ln(40) / 24 = 0.15 times a constant near 1, so a slope between two grids may be
    off by some 0.2, and more where the leading constant happens to be small; it never comes near the next lower order.
    """
    kind = "equal" if isinstance(solver, IPNDM) else "graded"
    errors = [error(solver, path, kind, stride) for stride in (16, 8)]
    slope = math.log2(errors[0] / errors[1])
    assert slope > solver.order - 0.4, (slope, errors)
    assert slope < solver.order + 1.1, (slope, errors)
    assert errors[1] < 0.05


def test_the_released_third_order_formula_is_of_second_order():
    """Half the quadratic term, as released code has it, costs the third order; the exact integral has it."""
    for cls in (DPMpp3M, lambda v: DPMpp3MSDE(0.0, 1.0, v)):
        exact, released = (
            math.log2(error(cls(v), EDM(), "graded", 16) / error(cls(v), EDM(), "graded", 8))
            for v in ("exact", "released")
        )
        assert exact > 2.6 and released < 2.5
    assert (DPMpp3M().order, DPMpp3M("released").order) == (3, 2)


def test_ipndm_falls_to_second_order_on_graded_steps_and_its_variable_form_does_not():
    slope = lambda solver: math.log2(error(solver, EDM(), "graded", 16) / error(solver, EDM(), "graded", 8))  # noqa: E731
    assert 1.5 < slope(IPNDM(4)) < 2.7
    assert slope(IPNDMv(4)) > 3.6


@pytest.mark.parametrize("solver", DETERMINISTIC, ids=ids)
def test_more_steps_end_at_the_closed_form(solver, noise):
    """From its own start, to sigma = 0: the end of Gaussian data is known. The last step spans sigma <= 0.003."""
    model = Oracle(GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), 0.5))
    exact = gaussian_map(EDM(), noise, 0.5, 80.0, 1e-12)
    errors = [
        (OdeSampler(solver, TimeGrid.karras(n, 0.003, 80.0)).sample(model, noise) - exact).abs().max().item()
        for n in (10, 30)
    ]
    # the reverse diffusion predictor shrinks noise by (1 + q^2) / 2 where the flow does by q = sigma_next / sigma: e^(sum (1 - q)^2 / 2q)
    most = 1.0 if isinstance(solver, PredictorCorrector) else 0.2 if solver.order == 1 else 0.05
    assert errors[1] < errors[0] / 2 and errors[1] < most


# Weights


@given(st.floats(-6, 1.7), st.booleans())
def test_moments_are_the_integrals(log_h, negative):
    h = 10**log_h * (-1 if negative else 1)
    for k, moment in enumerate(weights.exponential_moments(h, 5)):
        want = h * quad(lambda v, k=k: math.exp(h * (v - 1)) * v**k, 0, 1, epsabs=0, epsrel=1e-12, limit=200)[0]
        assert moment == pytest.approx(want, rel=1e-9)


NODES = st.lists(st.floats(0.2, 3.0), min_size=0, max_size=3)


@given(NODES, st.lists(st.floats(-2, 2), min_size=4, max_size=4))
def test_quadrature_is_exact_for_polynomials_of_its_degree(gaps, coefficients):
    nodes = [0.0, *(-np.cumsum(gaps)).tolist()]
    poly = np.polynomial.Polynomial(coefficients[: len(nodes)])
    found = weights.quadrature(nodes, [1 / (k + 1) for k in range(len(nodes))])
    assert sum(w * poly(v) for w, v in zip(found, nodes, strict=True)) == pytest.approx(
        poly.integ()(1.0), rel=1e-9, abs=1e-9
    )


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("variant", ["t", "rho", "log-rho"])
@pytest.mark.parametrize("sigmas", [(9.0, 5.0, 2.0, 1.5, 0.7), (80.0, 20.0, 3.0, 0.3, 0.01), (2.0, 0.5, 0.1)], ids=str)
def test_deis_weights_are_the_integrals(path, variant, sigmas):
    *past, end = (path.time_at(s) for s in sigmas)
    past = tuple(reversed(past))
    coordinate = {"t": path.time_at, "rho": lambda s: s, "log-rho": math.log}[variant]
    at = [coordinate(path.ratio_at(t)) for t in past]

    def integrand(log_rho, j):
        s = math.exp(log_rho)
        others = (v for i, v in enumerate(at) if i != j)
        return s * math.prod((coordinate(s) - v) / (at[j] - v) for v in others)

    found = multistep.deis_weights(path, variant, past, end)
    scale = max(abs(w) for w in found)
    for j, w in enumerate(found):
        ends = math.log(path.ratio_at(past[0])), math.log(path.ratio_at(end))
        assert w == pytest.approx(quad(integrand, *ends, args=(j,), epsrel=1e-12, limit=400)[0], abs=1e-8 * scale)
    assert sum(found) == pytest.approx(path.ratio_at(end) - path.ratio_at(past[0]), rel=1e-12)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_deis_weights_of_a_step_to_zero_are_the_integrals(path):
    """t(rho) has an infinite second derivative or a branch point near 0 on some paths; the quadrature must not care."""
    past = tuple(path.time_at(s) for s in (0.8, 2.0, 5.0))
    found = multistep.deis_weights(path, "t", past, 0.0)
    for j, w in enumerate(found):
        others = [v for i, v in enumerate(past) if i != j]
        f = lambda s, j=j, others=others: math.prod((path.time_at(s) - v) / (past[j] - v) for v in others)  # noqa: E731
        assert w == pytest.approx(quad(f, 0.8, 0.0, epsrel=1e-11)[0], abs=1e-8)


def test_equal_steps_have_the_weights_of_the_textbook():
    for n, want in multistep.FIXED.items():
        points = tuple(5.0 + i for i in range(n))
        assert multistep.adams_weights(points, 4.0) == pytest.approx([-w for w in want], rel=1e-12)


# Families: what is the same method under two names


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (UniPC(2, "bh2", corrector=False), DPMpp2M()),
        (UniPC(1, corrector=False), DDIM()),
        (DPMppSDE(0.0), DPMpp2S()),
        (DPMpp1SDE(0.0), DDIM()),
        (DPMpp2MSDE(0.0), DPMpp2M()),
        (DPMpp3MSDE(0.0), DPMpp3M()),
        (AdamsBashforth(1), Euler()),
        (IPNDM(1), DDIM()),
        (DEIS(1), DDIM()),
        (IPNDMv(4), DEIS(4, "rho")),
        (IPNDMv(4), AdamsBashforth(4)),  # on EDM's path velocity is eps and t is sigma
        (DEIS(3, "t"), DEIS(3, "rho")),  # there too
    ],
    ids=ids,
)
def test_one_method_under_two_names(one, other, noise):
    run = lambda s: OdeSampler(s, TimeGrid.karras(9, 0.02, 20.0)).sample(oracle(), noise)  # noqa: E731
    torch.testing.assert_close(run(one), run(other), rtol=0, atol=1e-11)


@pytest.mark.parametrize("solver", MULTISTEP, ids=ids)
def test_the_start_ramps_up(solver, noise):
    """k steps of a method of order p > k are k steps of the method of order k; a single step is DDIM's, or Euler's."""
    model, path = oracle(Linear()), Linear()
    times = TimeGrid.karras(6, 0.1, 10.0, to_zero=False).on(path)
    run = lambda s, k: solve(model, s, noise, times[: k + 1])  # noqa: E731
    first = Euler() if isinstance(solver, AdamsBashforth) else DDIM()
    torch.testing.assert_close(run(solver, 1), run(first, 1), rtol=0, atol=1e-12)
    if hasattr(solver, "order_max"):
        for k in range(1, solver.order_max):
            torch.testing.assert_close(
                run(solver, k), run(dataclasses.replace(solver, order_max=k), k), rtol=0, atol=1e-12
            )
    assert (run(solver, 3) - run(first, 3)).abs().max() > 1e-4


def test_dpm_solver_steps_are_those_of_the_paper(noise):
    """One step on the VP path from the formulas as printed: Lu et al. 2022, arXiv 2206.00927, Alg. 1 and 2; 2211.01095, Alg. 1."""
    path, model = VP(), oracle(VP())
    t, t_next = path.time_at(3.0), path.time_at(0.5)
    lam = lambda s: -math.log(path.ratio_at(s))  # noqa: E731
    alpha, sigma = (lambda s: path.at(s)[0]), (lambda s: path.at(s)[1])
    h, x = lam(t_next) - lam(t), noise
    at = lambda r: path.time_at(math.exp(-(lam(t) + r * h)))  # noqa: E731
    e = model.eps(x, t)

    s = at(0.5)
    u = alpha(s) / alpha(t) * x - sigma(s) * math.expm1(h / 2) * e
    second = alpha(t_next) / alpha(t) * x - sigma(t_next) * math.expm1(h) * model.eps(u, s)
    torch.testing.assert_close(DPMSolver2().step(model, x, t, t_next, None).x, second, rtol=0, atol=1e-12)

    s1, s2, r1, r2 = at(1 / 3), at(2 / 3), 1 / 3, 2 / 3
    u1 = alpha(s1) / alpha(t) * x - sigma(s1) * math.expm1(r1 * h) * e
    d1 = model.eps(u1, s1) - e
    u2 = alpha(s2) / alpha(t) * x - sigma(s2) * math.expm1(r2 * h) * e
    u2 = u2 - sigma(s2) * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1) * d1
    d2 = model.eps(u2, s2) - e
    third = alpha(t_next) / alpha(t) * x - sigma(t_next) * math.expm1(h) * e
    third = third - sigma(t_next) / r2 * (math.expm1(h) / h - 1) * d2
    torch.testing.assert_close(DPMSolver3().step(model, x, t, t_next, None).x, third, rtol=0, atol=1e-12)

    d = model.denoise(x, t)
    u = sigma(s) / sigma(t) * x - alpha(s) * math.expm1(-h / 2) * d
    plus = sigma(t_next) / sigma(t) * x - alpha(t_next) * math.expm1(-h) * model.denoise(u, s)
    torch.testing.assert_close(DPMpp2S().step(model, x, t, t_next, None).x, plus, rtol=0, atol=1e-12)


def test_the_embedded_error_is_the_distance_to_the_first_order_step(noise):
    model = oracle()
    for solver in (DPMSolver2(), DPMpp2S(), DPMSolver2(0.3), DPMpp2S(0.7)):
        step, first = solver.step(model, 5 * noise, 5.0, 2.0, None), DDIM().step(model, 5 * noise, 5.0, 2.0, None)
        torch.testing.assert_close(step.error, step.x - first.x, rtol=0, atol=1e-12)
    heun3 = Heun3().step(model, 5 * noise, 5.0, 4.9, None)
    assert 0 < heun3.error.abs().max() < 1e-3  # of a second-order method


# Cost


@pytest.mark.parametrize(("path", "to_zero"), [(Linear(), True), (EDM(), False)], ids=str)
@pytest.mark.parametrize("solver", EVERY, ids=ids)
def test_promised_evaluations_are_the_ones_made(solver, path, to_zero):
    for steps in range(1, 8):
        model, seeds = Watcher(oracle(path)), Seeds(range(3))
        sampler = OdeSampler(solver, TimeGrid.karras(steps, 0.1, 10.0, to_zero=to_zero))
        assert torch.isfinite(sampler.sample(model, seeds.normal((2,)), rng=seeds)).all()
        promised = solver.eval_times(sampler.grid.on(path), path)
        assert model.asked == pytest.approx(promised, rel=1e-12)
        assert len(promised) == sampler.nfe(model) == model.base.n_calls
        if to_zero:
            assert solver.n_evals(steps) == len(promised)


@pytest.mark.parametrize(
    ("solver", "cost"),
    [
        *((s, 9) for s in (DDIM(), DPMpp2M(), DPMpp3M(), UniPC(), DEIS(), IPNDM(), IPNDMv(), AdamsBashforth())),
        *((s, 9) for s in (DPMpp1SDE(), DPMpp2MSDE(), DPMpp3MSDE())),
        *((s, 17) for s in (DPMSolver2(), DPMpp2S(), DPMppSDE())),
        (DPMSolver3(), 25),
        (Heun3(), 27),
    ],
    ids=ids,
)
def test_cost_of_nine_steps(solver, cost):
    assert solver.n_evals(9) == cost


# Invariances


@pytest.mark.parametrize("path", [VP(), CosineVP(), Linear(), Trig(0.5)], ids=str)
@pytest.mark.parametrize("solver", PATH_FREE, ids=ids)
def test_exponential_solvers_do_not_see_the_path(solver, path, noise):
    """States differ by alpha on the way only: the grid ends at data, where all paths agree."""
    run = lambda path: OdeSampler(solver, TimeGrid.karras(8, 0.02, 20.0), path).sample(  # noqa: E731
        oracle(), noise, rng=Seeds(range(24))
    )
    torch.testing.assert_close(run(path), run(None), rtol=0, atol=1e-9)


def test_methods_in_the_time_of_a_path_do_see_it(noise):
    for solver in (AdamsBashforth(), DEIS(), Heun3()):
        run = lambda path, s=solver: OdeSampler(s, TimeGrid.karras(8, 0.02, 20.0), path).sample(oracle(), noise)  # noqa: E731
        assert (run(VP()) - run(None)).abs().max() > 1e-4


POINT = torch.tensor([[0.3, -0.2]], dtype=torch.float64)


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("solver", [s for s in PATH_FREE if not s.stochastic] + [DEIS(4), UniPC(4)], ids=ids)
def test_constant_predictions_are_carried_exactly_to_every_node(solver, path):
    """Data of one point: D and eps are constant along a trajectory, so weights that sum to what they should make no error at all."""
    times = TimeGrid.karras(7, 0.05, 30.0).on(path)
    eps, (alpha, sigma, _, _) = Seeds(range(6)).normal((2,)), path.at(times[0])
    off = []

    def watch(i, t, t_next, x, step):
        alpha, sigma, _, _ = path.at(t_next)
        off.append((step.x - alpha * POINT - sigma * eps).abs().max().item())

    solve(Oracle(GaussianMixture(POINT, 0.0), path), solver, alpha * POINT + sigma * eps, times, observe=watch)
    assert len(off) == 7 and max(off) < 1e-10


@pytest.mark.parametrize("solver", [AdamsBashforth(4), Heun3()], ids=ids)
def test_constant_velocities_are_carried_exactly(solver):
    eps, times = Seeds(range(6)).normal((2,)), TimeGrid.karras(7, 0.05, 30.0).on(Linear())
    start = (1 - times[0]) * POINT + times[0] * eps
    end = solve(Oracle(GaussianMixture(POINT, 0.0), Linear()), solver, start, times)
    torch.testing.assert_close(end, POINT.expand_as(end), rtol=0, atol=1e-10)


@given(
    st.lists(st.floats(0.05, 6.0), min_size=1, max_size=8), st.floats(0.01, 5.0), st.booleans(), st.integers(0, 10**6)
)
def test_any_grid_is_walked_to_its_end(log_gaps, low, to_zero, pick):
    """Grids whose neighbouring levels are from 5 % to a factor 400 apart, at random, on a path and with a solver at random."""
    sigmas = np.exp(math.log(low) + np.cumsum([0.0, *log_gaps]))[::-1].tolist()
    grid = TimeGrid(tuple(sigmas) + ((0.0,) if to_zero else ()))
    path, solver = PATHS[pick % len(PATHS)], EVERY[pick // len(PATHS) % len(EVERY)]
    model, seeds = Watcher(Oracle(GaussianMixture(POINT, 0.0), path)), Seeds(range(2))
    times = grid.on(path)
    x = path.at(times[0])[0] * POINT + path.at(times[0])[1] * seeds.normal((2,))
    out = solve(model, solver, x, times, rng=seeds)
    assert torch.isfinite(out).all() and out.dtype == torch.float64
    assert model.asked == pytest.approx(solver.eval_times(times, path), rel=1e-9)
    if to_zero and (solver in PATH_FREE or solver in STOCHASTIC):
        torch.testing.assert_close(out, POINT.expand_as(out), rtol=0, atol=1e-7 * max(1.0, sigmas[0]))


@pytest.mark.parametrize("solver", EVERY, ids=ids)
def test_float32_runs_stay_float32_and_near_float64(solver):
    seeds, grid = Seeds(range(8)), TimeGrid.karras(6, 0.05, 10.0)
    noise = seeds.normal((2,))
    run = lambda dtype: OdeSampler(solver, grid).sample(oracle(Linear()), noise.to(dtype), rng=seeds.fresh())  # noqa: E731
    single = run(torch.float32)
    assert single.dtype == torch.float32
    # 6 steps of numbers up to 10, each rounded to 6e-8; the modes of the ring (radius 0.66, width 0.06) amplify by some 100
    torch.testing.assert_close(single.double(), run(torch.float64), rtol=0, atol=2e-3)


@pytest.mark.parametrize("solver", [s for s in EVERY if isinstance(s, OWN)], ids=ids)
def test_a_network_of_another_precision_leaves_the_state_in_its_own(solver):
    """A denoiser that answers in float32 whatever it is asked in."""
    from explorer.models import as_denoiser

    good = oracle(Linear())
    model = as_denoiser(lambda x, t, cond: good.denoise(x, t).float(), "x0", Linear(), (2,))
    out = OdeSampler(solver, TimeGrid.karras(4, 0.05, 10.0)).sample(
        model, Seeds(range(3)).normal((2,)), rng=Seeds(range(3))
    )
    assert out.dtype == torch.float64 and torch.isfinite(out).all()


@pytest.mark.parametrize("solver", EVERY, ids=ids)
def test_a_run_can_be_stopped_and_resumed_and_shares_nothing(solver):
    """Stepping by hand with the state in the caller's hands, in two interleaved runs of one solver, equals `solve`, bit for bit."""
    model, times = oracle(Linear()), TimeGrid.karras(6, 0.05, 10.0).on(Linear())
    starts = [0.9 * Seeds(range(a, a + 3)).normal((2,)) for a in (0, 50)]
    want = [solve(model, solver, x, times, rng=Seeds(range(3))) for x in starts]
    runs, seeds = [(x, solver.init(model, x, times)) for x in starts], [Seeds(range(3)), Seeds(range(3))]
    for t, t_next in pairwise(times):
        taken = [solver.step(model, x, t, t_next, s, rng=rng) for (x, s), rng in zip(runs, seeds, strict=True)]
        runs = [(step.x, step.state) for step in taken]
    for (x, _), end in zip(runs, want, strict=True):
        assert torch.equal(x, end)
    again = [solve(model, solver, x, times, rng=Seeds(range(3))) for x in starts]
    assert all(torch.equal(a, b) for a, b in zip(again, want, strict=True))


@pytest.mark.parametrize("solver", EVERY, ids=ids)
def test_observers_see_what_the_model_said_also_where_noise_starts(solver):
    model, path = oracle(Linear()), Linear()
    times, seeds = TimeGrid.karras(5, 0.05, 10.0).on(path), Seeds(range(4))

    def watch(i, t, t_next, x, step):
        x, at = (x, t) if step.x_from is None else (step.x_from, step.t_from)
        torch.testing.assert_close(slope_of(path, x, at, step), model.velocity(x, at), rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(denoised_of(path, x, at, step), model.denoise(x, at), rtol=1e-7, atol=1e-7)

    solve(model, solver, 0.9 * seeds.normal((2,)), times, rng=seeds, observe=watch)


@pytest.mark.parametrize("solver", EVERY, ids=ids)
def test_every_field_survives_json(solver):
    sampler = OdeSampler(solver, TimeGrid.karras(4, 0.1, 5.0), Trig(0.5))
    again = sampler_from_json(sampler.to_json())
    assert again == sampler and repr(again.solver) == repr(solver) and again.solver.order == solver.order


@pytest.mark.parametrize("solver", STOCHASTIC, ids=ids)
def test_a_stochastic_picture_does_not_depend_on_its_batch(solver):
    model, sampler = Oracle(ring(labels=True)), OdeSampler(solver, TimeGrid.karras(4, 0.05, 10.0))
    want = sample(model, sampler, range(10), batch=10)
    for batch in (1, 3):
        torch.testing.assert_close(sample(model, sampler, range(10), batch=batch), want, rtol=0, atol=1e-12)
    torch.testing.assert_close(sample(model, sampler, [7, 2], batch=2), want[[7, 2]], rtol=0, atol=1e-12)
    assert (sample(model, sampler, [107, 102]) - want[[7, 2]]).abs().max() > 1e-3


def test_gradients_reach_the_start():
    for solver in (DPMSolver3(), UniPC(), DEIS(), AdamsBashforth(), DPMpp3M()):
        x = (5 * Seeds(range(3)).normal((2,))).requires_grad_()
        OdeSampler(solver, TimeGrid.karras(4, 0.1, 5.0)).sample(oracle(), x).sum().backward()
        assert torch.isfinite(x.grad).all() and x.grad.abs().max() > 0


# Ends


@pytest.mark.parametrize("path", [Linear(), Trig(), CosineVP()], ids=str)
@pytest.mark.parametrize("cls", OWN, ids=lambda cls: cls.__name__)
def test_a_start_at_pure_noise_is_sensible(cls, path):
    """At t_max alpha is 0 and sigma infinite: the ODE takes noise z to std z, the SDE to N(0, std^2)."""
    model, solver = Oracle(GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), 0.5), path), cls()
    seeds = Seeds(range(100 if solver.stochastic else 4))
    noise = seeds.normal((2,))
    down = lambda n: TimeGrid.explicit([path.t_max * (1 - i / n) for i in range(n)] + [0.0], "t")  # noqa: E731
    out = OdeSampler(solver, down(32)).sample(model, noise, rng=seeds)
    if solver.stochastic:  # 200 numbers: the relative standard error of a standard deviation is 1 / sqrt(400) = 0.05
        assert out.std().item() == pytest.approx(0.5, rel=0.25)
    else:  # velocities are singular at the end of the cosine path, see AdamsBashforth
        tolerance = 0.15 if solver.order == 1 or isinstance(solver, AdamsBashforth | Heun3) else 0.03
        torch.testing.assert_close(out, 0.5 * noise, rtol=tolerance, atol=1e-9)
    for n in (1, 2, 3):
        assert torch.isfinite(OdeSampler(solver, down(n)).sample(model, noise, rng=seeds.fresh())).all()


@pytest.mark.parametrize("solver", [s for s in EVERY if isinstance(s, OWN)], ids=ids)
def test_the_last_step_to_data_does_something_and_is_no_repeat(solver):
    """diffusers 6295: a repeated last sigma made the last step idle. Here it returns the denoiser's answer, or the method's own."""
    model, times, ends = oracle(), TimeGrid.karras(5, 0.3, 10.0).on(EDM()), []
    watch = lambda i, t, t_next, x, step: ends.append((x, step.x, t, t_next))  # noqa: E731
    solve(model, solver, 10 * Seeds(range(5)).normal((2,)), times, rng=Seeds(range(5)), observe=watch)
    x, out, t, t_next = ends[-1]
    assert (t, t_next) == (pytest.approx(0.3), 0.0)
    if not isinstance(solver, AdamsBashforth | Heun3 | IPNDM | IPNDMv | DEIS):
        torch.testing.assert_close(out, model.denoise(x, t), rtol=0, atol=1e-12)
    assert (out - x).norm(dim=1).min() > 1e-3


@pytest.mark.parametrize("steps", range(1, 10))
def test_third_order_single_steps_have_no_bad_number_of_steps(steps, noise):
    """diffusers 9007: order 3 with 3 n - 1 steps met log 0. No step count does here.

    Data are within 0.8 of the centre; even one step from sigma = 10 must not leave more than some 3 of the noise.
    """
    for to_zero in (True, False):
        grid = TimeGrid.karras(steps, 0.05, 10.0, to_zero=to_zero)
        out = OdeSampler(DPMSolver3(), grid).sample(oracle(), noise)
        assert (
            torch.isfinite(out).all() and out.norm(dim=1).max() < 4.0
        )  # 0.7 for the data, 0.05 for noise, and what one step from sigma = 10 misses


@pytest.mark.parametrize("solver", [s for s in EVERY if isinstance(s, OWN) and not isinstance(s, RungeKutta)], ids=ids)
def test_a_repeated_or_rising_time_is_refused(solver, noise):
    """diffusers 12771: repeated noise levels became divisions by zero. A grid refuses them, and so does a step taken by hand."""
    with pytest.raises(BadValue, match="strictly decreasing"):
        TimeGrid((1.0, 0.5, 0.5, 0.0))
    for t_next in (5.0, 6.0, -1.0):
        with pytest.raises(BadValue, match="remove repeated times"):
            solver.step(oracle(), noise, 5.0, t_next, None, rng=Seeds(range(24)))


def test_a_solver_holds_no_state_and_cannot_be_changed():
    """diffusers 7904: a scheduler's sigmas changed under a forward call."""
    for solver in EVERY:
        assert dataclasses.is_dataclass(solver) and solver.__dataclass_params__.frozen
        before = (repr(solver), hash(solver), dict(vars(solver)))
        OdeSampler(solver, TimeGrid.karras(4, 0.1, 5.0)).sample(
            oracle(), torch.ones(1, 2, dtype=torch.float64), rng=Seeds([0])
        )
        cached = {"table"}  # Alpha2's numbers, a function of its field
        after = {k: v for k, v in vars(solver).items() if k not in cached}
        assert (repr(solver), hash(solver), after) == (
            before[0],
            before[1],
            {k: v for k, v in before[2].items() if k not in cached},
        )


@pytest.mark.parametrize("path", [VP(), CosineVP(), Linear(), Trig(0.5)], ids=str)
@pytest.mark.parametrize(
    "solver", [DPMSolver3(), DPMpp3M(), UniPC(), DEIS(), IPNDMv(), AdamsBashforth(), Heun3()], ids=ids
)
def test_the_network_sees_the_level_of_the_solver(solver, path, noise):
    """diffusers 10112: the network was shown other noise levels than the solver walked. Then the limit would be another.

    Gaussian data: the exact end depends on every level the denoiser is told.
    """
    model = Oracle(GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), 0.5), path)
    grid = TimeGrid.log_snr(48, 0.05, 50.0, to_zero=False)
    out = OdeSampler(solver, grid).sample(model, noise)
    torch.testing.assert_close(out, gaussian_map(path, noise, 0.5, 50.0, 0.05), rtol=0, atol=3e-3)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: UniPC(0), "order_max must be a whole number from 1 to 4, got 0"),
        (lambda: DEIS(5), "from 1 to 4"),
        (lambda: IPNDM(2.0), "whole number"),
        (lambda: AdamsBashforth(True), "whole number"),
        (lambda: IPNDMv(-1), "from 1 to 4"),
        (lambda: DPMSolver2(0.0), "between 0 and 1"),
        (lambda: DPMpp2S(1.0), "between 0 and 1"),
        (lambda: DPMppSDE(r=2.0), "between 0 and 1"),
        (lambda: DPMpp2MSDE(eta=-0.1), "not negative"),
        (lambda: DPMpp3MSDE(s_noise=math.nan), "finite"),
        (lambda: DPMpp1SDE(math.inf), "finite"),
    ],
)
def test_impossible_settings_are_refused(make, says):
    with pytest.raises(BadValue, match=says):
        make()


def test_unknown_variants_say_what_exists():
    for make in (
        lambda: UniPC(2, "bh3"),
        lambda: DEIS(3, "log_rho"),
        lambda: DPMpp3M("relased"),
        lambda: DPMpp2MSDE(variant="huen"),
    ):
        with pytest.raises(UnknownName, match="[Dd]id you mean|[Kk]nown"):
            make()


@pytest.mark.parametrize("solver", STOCHASTIC, ids=ids)
def test_noise_without_seeds_is_refused(solver, noise):
    with pytest.raises(BadValue, match="seeds of its samples"):
        OdeSampler(solver, TimeGrid.karras(3, 0.1, 5.0)).sample(oracle(), noise)


# Noise


class Units(Seeds):
    """In row k only the k-th number ever drawn is 1. Row 0 gets zeros, so its run is the mean."""

    def __init__(self, rows: int):
        super().__init__(range(rows))
        self.rows, self.drawn = rows, 0

    def normal(self, shape, device=None, dtype=torch.float64):
        out = torch.zeros(self.rows, *shape, dtype=dtype)
        for i in range(math.prod(shape)):
            self.drawn += 1
            out.view(self.rows, -1)[self.drawn, i] = 1.0
        return out


COV = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
MEAN = torch.tensor([[0.4, -0.7]], dtype=torch.float64)


def mean_and_cov(solver, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact mean and covariance of a solver's samples of Gaussian data: its map is affine in the noise, so unit noises span it."""
    model, rows = Oracle(GaussianMixture(MEAN, covs=COV[None])), 2 + 4 * n + 2
    units = Units(rows)
    noise = units.normal((2,))
    x = OdeSampler(solver, TimeGrid.log_snr(n, 0.01, 60.0)).sample(model, noise, rng=units)
    columns = x[1:] - x[0]
    return x[0], columns.T @ columns


@pytest.mark.parametrize("eta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("solver", STOCHASTIC, ids=ids)
def test_noise_keeps_mean_and_covariance_of_gaussian_data(solver, eta):
    """The error of the law, without sampling error: four times the steps leave at most 0.4 of it, 0.25 being first order."""
    solver = dataclasses.replace(solver, eta=eta)
    off = []
    for n in (16, 64):
        mean, cov = mean_and_cov(solver, n)
        off.append(max((mean - MEAN[0]).abs().max().item(), (cov - COV).abs().max().item()))
    assert off[1] < off[0] / 2.5 and off[1] < (0.12 if solver.order == 1 else 0.03), off


@pytest.mark.parametrize("solver", [DPMpp1SDE(), DPMppSDE(), DPMpp2MSDE(), DPMpp3MSDE()], ids=ids)
def test_drawn_noise_keeps_mean_and_covariance(solver):
    """The same with drawn noise: of 1000 samples, mean and covariance have standard errors of about 0.7 / sqrt(1000) = 0.022."""
    model, n = Oracle(GaussianMixture(MEAN, covs=COV[None])), 1000
    x = sample(model, OdeSampler(solver, TimeGrid.log_snr(24, 0.01, 60.0)), range(n), batch=n)
    mean, cov = mean_and_cov(solver, 24)
    assert (x.mean(0) - mean).abs().max() < 4.5 * 0.022
    assert (x.T.cov() - cov).abs().max() < 4.5 * 0.022


def test_noise_of_the_stage_belongs_to_the_noise_of_the_step():
    """For constant D the single-step SDE solver ends a step in exactly the law of one undivided step, though it draws twice."""
    model, units = Oracle(GaussianMixture(POINT, 0.0)), Units(6)
    for eta in (0.3, 1.0, 2.0):
        units.drawn = 0
        x = DPMppSDE(eta).step(model, torch.ones(6, 2, dtype=torch.float64), 4.0, 1.0, None, rng=units).x
        columns = x[1:] - x[0]
        want = 1.0 - (1.0 / 4.0) ** (2 * eta)  # sigma_next^2 (1 - e^(-2 eta h))
        torch.testing.assert_close(columns.T @ columns, want * torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_first_order_with_eta_1_is_ancestral_sampling(noise):
    """Closed form of the posterior q(x_s | x_t, x0 = D): Ho et al. 2020, arXiv 2006.11239, Eq. 6 and 7, in EDM's variables."""
    model, t, s = oracle(), 3.0, 1.2
    x, seeds = 3 * noise, Seeds(range(24))
    d = model.denoise(x, t)
    mean, var = (s / t) ** 2 * x + (1 - (s / t) ** 2) * d, s**2 * (1 - (s / t) ** 2)
    want = mean + math.sqrt(var) * seeds.normal((2,))
    torch.testing.assert_close(DPMpp1SDE().step(model, x, t, s, None, rng=seeds.fresh()).x, want, rtol=0, atol=1e-12)


def test_s_noise_scales_the_noise_alone(noise):
    model, seeds = oracle(), Seeds(range(24))
    for cls in (DPMpp1SDE, DPMpp2MSDE, DPMpp3MSDE):
        ends = [cls(s_noise=s).step(model, noise, 3.0, 1.0, None, rng=seeds.fresh()).x for s in (0.0, 1.0, 2.0)]
        torch.testing.assert_close(ends[2] - ends[0], 2 * (ends[1] - ends[0]), rtol=0, atol=1e-12)
        assert (ends[1] - ends[0]).abs().max() > 0.1


def test_between_0_and_1_eta_goes_from_the_ode_to_the_sde(noise):
    run = lambda s: OdeSampler(s, TimeGrid.karras(8, 0.05, 10.0)).sample(oracle(), noise, rng=Seeds(range(24)))  # noqa: E731
    for cls in (DPMpp1SDE, DPMppSDE, DPMpp2MSDE, DPMpp3MSDE):
        ode = run(cls(eta=0.0))
        near, far = ((run(cls(eta=eta)) - ode).norm().item() for eta in (1e-8, 1.0))
        assert near < 0.02 < far  # noise of sqrt(2 eta h) sigma each step
        assert not cls(eta=0.0).stochastic and cls(eta=0.1).stochastic


# Parity with diffusers: its schedulers walk our noise levels and ask our oracle


N_PARITY, LEVELS = 10, TimeGrid.log_snr(10, 0.05, 20.0, to_zero=False)


def walked(scheduler, sigmas, start, kind: str, seeds: Seeds | None = None) -> list[torch.Tensor]:
    """States of a diffusers scheduler whose noise levels are replaced by `sigmas`, on the variance-preserving path."""
    path = VP()
    model, times = oracle(path), [path.time_at(s) for s in sigmas]
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)
    scheduler.timesteps = torch.arange(len(sigmas) - 1, 0, -1)
    x, states = start, []
    for t, step in zip(times, scheduler.timesteps, strict=False):
        more = {} if seeds is None else {"variance_noise": seeds.normal((2,))}
        x = scheduler.step(getattr(model, kind)(x, t), step, x, **more).prev_sample
        states.append(x.double())
    return states


def ours(solver, sigmas, start, seeds: Seeds | None = None) -> list[torch.Tensor]:
    path, states = VP(), []
    times = [path.time_at(s) for s in sigmas]
    solve(oracle(path), solver, start, times, rng=seeds, observe=lambda i, t, t_next, x, step: states.append(step.x))
    return states


def start_of(sigmas) -> torch.Tensor:
    return VP().at(VP().time_at(sigmas[0]))[1] * Seeds(range(16)).normal((2,))


def same(found, want, tolerance: float) -> None:
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


# Multistep DPM-Solver++ casts the state to float32 in each step: 10 roundings of numbers near 1, amplified on the way to narrow modes.
ROUNDED = 2e-5


@pytest.mark.parity
@pytest.mark.parametrize(
    ("solver", "options"),
    [
        (DPMpp2M(), {"solver_order": 2, "solver_type": "midpoint"}),
        (DPMpp2MSDE(0.0, 1.0, "heun"), {"solver_order": 2, "solver_type": "heun"}),
        (DPMpp3M("released"), {"solver_order": 3, "solver_type": "heun"}),  # its second step is the exact line, as ours
        (DDIM(), {"solver_order": 1}),
    ],
    ids=ids,
)
@pytest.mark.parametrize("to_zero", [False, True])
def test_multistep_equals_diffusers(solver, options, to_zero):
    diffusers = pytest.importorskip("diffusers")
    sigmas = [*LEVELS.times, *([0.0] if to_zero else [])]
    final = {
        "final_sigmas_type": "zero" if to_zero else "sigma_min",
        "lower_order_final": False,
        "euler_at_final": False,
    }
    scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type="sample", thresholding=False, **options, **final)
    start = start_of(sigmas)
    same(walked(scheduler, sigmas, start, "denoise"), ours(solver, sigmas, start), ROUNDED)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("solver", "options"),
    [
        (DPMpp1SDE(), {"solver_order": 1}),
        (DPMpp2MSDE(), {"solver_order": 2, "solver_type": "midpoint"}),
        (DPMpp2MSDE(variant="heun"), {"solver_order": 2, "solver_type": "heun"}),
    ],
    ids=ids,
)
def test_stochastic_multistep_equals_diffusers_on_the_same_noise(solver, options):
    diffusers = pytest.importorskip("diffusers")
    final = {"final_sigmas_type": "sigma_min", "lower_order_final": False, "algorithm_type": "sde-dpmsolver++"}
    scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type="sample", thresholding=False, **options, **final)
    start, seeds = start_of(LEVELS.times), Seeds(range(16))
    found = walked(scheduler, LEVELS.times, start, "denoise", seeds)
    same(found, ours(solver, LEVELS.times, start, seeds.fresh()), ROUNDED)


@pytest.mark.parity
def test_third_order_sde_of_diffusers_differs_by_a_sign():
    """Its weight of the quadratic term D2 is (1 - e^-H - H) / H^2 - 1/2, where the (halved) integral has + 1/2: off by alpha D2.

    Both ours, exact and released (k-diffusion's), keep the law of Gaussian data, which another test shows.
    """
    diffusers = pytest.importorskip("diffusers")
    options = {"solver_order": 3, "solver_type": "heun", "algorithm_type": "sde-dpmsolver++"}
    options |= {"final_sigmas_type": "sigma_min", "lower_order_final": False, "prediction_type": "sample"}
    sigmas, seeds, path = LEVELS.times[:4], Seeds(range(16)), VP()
    start = start_of(sigmas)
    theirs = walked(diffusers.DPMSolverMultistepScheduler(**options), sigmas, start, "denoise", seeds)
    mine = ours(DPMpp3MSDE(variant="released"), sigmas, start, seeds.fresh())
    same(theirs[:2], mine[:2], ROUNDED)
    model, times = oracle(path), [path.time_at(s) for s in sigmas]
    d0, d1, d2 = (
        model.denoise(x, t) for x, t in zip((mine[1], mine[0], start), (times[2], times[1], times[0]), strict=True)
    )
    quadratic = path.at(times[3])[0] * (d0 - 2 * d1 + d2) / 2  # D2 for equal steps in lambda
    torch.testing.assert_close(mine[2] - theirs[2], quadratic, rtol=0, atol=ROUNDED)
    assert quadratic.abs().max() > 1e-3


@pytest.mark.parity
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_equals_diffusers(order, variant):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.UniPCMultistepScheduler(
        solver_order=order,
        solver_type=variant,
        prediction_type="sample",
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    start = start_of(LEVELS.times)
    same(walked(scheduler, LEVELS.times, start, "denoise"), ours(UniPC(order, variant), LEVELS.times, start), 1e-8)


@pytest.mark.parity
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_in_log_rho_equals_diffusers(order):
    """Its DEIS is the polynomial in log rho, not the paper's in t."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DEISMultistepScheduler(solver_order=order, prediction_type="sample", lower_order_final=False)
    start, grid = start_of(LEVELS.times), TimeGrid.karras(10, 0.05, 20.0, 5.0, to_zero=False)
    for sigmas in (LEVELS.times, grid.times):
        same(walked(scheduler, sigmas, start, "denoise"), ours(DEIS(order, "log-rho"), sigmas, start), 1e-8)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("solver", "algorithm", "kind"),
    [(DPMpp2S(), "dpmsolver++", "denoise"), (DPMSolver2(), "dpmsolver", "eps")],
    ids=ids,
)
def test_single_step_of_second_order_equals_diffusers(solver, algorithm, kind):
    """There a step and its stage are two of its steps; evenly spaced in log sigma, its stage is our r = 1/2.

    Its third order is another method by definition: the stage at 2/3 is extrapolated as in second order ("midpoint") or the step uses
    both slopes ("heun"), while DPM-Solver-3 has the first of "heun" and the second of "midpoint".
    """
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        solver_order=2, algorithm_type=algorithm, prediction_type="sample" if kind == "denoise" else "epsilon",
        final_sigmas_type="sigma_min", lower_order_final=False,
    )  # fmt: skip
    start = start_of(LEVELS.times)
    theirs = walked(scheduler, LEVELS.times, start, kind)[1::2]
    same(theirs, ours(solver, LEVELS.times[::2], start), 1e-8)
