"""Grids by gradient: the unrolled run is the solver's own, its derivatives are those of differences, a known optimum is found."""

import json
import math

import pytest
import torch
from problems import PATHS, oracle, ring
from test_cli import document, refusal

from explorer.errors import BadValue, NonFinite
from explorer.models import AskedElsewhere, Guided, Oracle, SkipTuned
from explorer.models.bundled import load
from explorer.process import EDM, VP, GaussianMixture, Linear
from explorer.sampling import (
    DDIM,
    IPNDM,
    RK4,
    Alpha2,
    DPMpp2M,
    Euler,
    Heun,
    Midpoint,
    OdeSampler,
    Seeds,
    TimeGrid,
    UniPC,
    sample,
)
from explorer.tuning import Asked, Budget, Gradient, MetricObjective, Setting, Skips, Study, TruncationError, export
from explorer.tuning.gradient import LEARN, Ends, Levels, descend, solved, unrolled

SOLVERS = [Euler(), Midpoint(), Heun(), Alpha2(0.6), RK4(), DDIM(), DPMpp2M(), IPNDM(), IPNDM(2)]
GRID = TimeGrid.karras(5, 0.01, 80.0)


def ends(model, solver, times, n=8):
    x = model.path.at(float(times[0].detach()))[1] * Seeds(range(n)).normal(tuple(model.shape))
    return unrolled(model, solver, x, times)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("path", [EDM(), VP(), Linear()], ids=repr)
def test_unrolled_is_the_solver_itself(solver, path):
    model = oracle().on(path)
    for grid in (GRID, TimeGrid.karras(4, 0.05, 20.0, to_zero=False)):
        times = torch.tensor(grid.on(path), dtype=torch.float64)
        want = sample(model, OdeSampler(solver, grid), range(8))
        torch.testing.assert_close(ends(model, solver, times), want, rtol=0, atol=1e-12)


def test_unrolled_is_the_sampler_of_digits_guided_and_with_skips():
    digits, labels = load("digits"), torch.arange(4)
    noise = 80 * Seeds(range(4)).normal((1, 8, 8))
    times = torch.tensor(GRID.on(EDM()), dtype=torch.float64)
    for model in (digits, Guided(digits, 1.5, interval=(0.1, 5.0)), SkipTuned(digits, [0.9] * 5)):
        want = OdeSampler(DPMpp2M(), GRID).sample(model, noise / 80, labels)
        with torch.no_grad():
            got = unrolled(model, DPMpp2M(), noise, times, labels)
        torch.testing.assert_close(got, want, rtol=0, atol=2e-5)  # the network computes in float32


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_derivatives_are_those_of_differences(solver):
    model, times = oracle(Linear()), torch.tensor(GRID.on(Linear()), dtype=torch.float64)
    moving = times.clone().requires_grad_(True)
    [grad] = torch.autograd.grad(ends(model, solver, moving).square().sum(), moving)
    for i in range(5):
        step, values = 1e-6 * float(times[i]), []
        for sign in (1, -1):
            moved = times.clone()
            moved[i] += sign * step
            # the start moves with its time, as it does in sampling
            values.append(float(ends(model, solver, moved).square().sum()))
        if i > 0:
            # rounding of a sum of order 10 over steps of 1e-6
            assert float(grad[i]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_the_teacher_is_the_exact_flow_between_its_nodes_too(path):
    """One Gaussian: states are the noise times the marginal's standard deviation, relative to the start's."""
    std, model = (
        0.5,
        Oracle(GaussianMixture(torch.zeros(1, 2), 0.5), path, t_range=(path.time_at(0.002), path.time_at(80.0))),
    )
    begin = path.time_at(80.0)
    fine, noise = solved(model, begin, Seeds(range(4)), steps=64), Seeds(range(4)).normal((2,))
    assert fine.times[0] == begin and fine.times[-1] == 0 and len(fine.x) == 66 - 1
    # from sigma = 80 the exact flow ends a little off std times the noise
    ratio = path.time(torch.tensor([60.0, 7.7, 1.3, 0.21, 0.033, 0.001], dtype=torch.float64))
    state, slope = fine.at(ratio)
    size = lambda t: torch.sqrt((path.alpha(t) * std) ** 2 + path.sigma(t) ** 2)  # noqa: E731
    start = torch.tensor(begin, dtype=torch.float64)
    want = (path.sigma(start) * size(ratio) / size(start))[:, None, None] * noise
    torch.testing.assert_close(state, want, rtol=3e-5, atol=3e-5)
    away = 1e-5 * ratio
    rise = (fine.at(ratio + away)[0] - fine.at(ratio - away)[0]) / (2 * away)[:, None, None]
    torch.testing.assert_close(slope, rise, rtol=1e-4, atol=1e-4)
    assert fine.n_evals == 4 * (4 * 64 - 1)


def test_a_start_at_pure_noise_is_solved_too():
    model = Oracle(ring(), Linear())
    fine = solved(model, 1.0, Seeds(range(3)), steps=100)
    times = TimeGrid(tuple(1 - i / 200 for i in range(200)) + (0.0,), "t")
    # of fourth order: the coarser one's error is 16 times the finer one's
    torch.testing.assert_close(fine.x[-1], sample(model, OdeSampler(RK4(), times), range(3)), rtol=0, atol=2e-4)


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("grid", [GRID, TimeGrid.karras(4, 0.05, 20.0, to_zero=False)], ids=["to zero", "not"])
def test_levels_start_where_they_were_and_stay_a_grid(grid, free):
    levels = Levels(grid, 0.002, free)
    for got, want in zip(levels.grid().times, grid.times, strict=True):
        assert got == pytest.approx(
            want, rel=0.02
        )  # what coincides is first moved apart, by a thousandth of the range of ln sigma
    levels.raw += 20 * torch.randn(levels.raw.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = levels.grid().times
    assert times[0] <= 1.0001 * grid.times[0] and (
        times[-1] == grid.times[-1] or times[-1] == pytest.approx(grid.times[-1])
    )
    with pytest.raises(BadValue, match="one step"):
        Levels(TimeGrid((80.0, 0.0)), 80.0, False)


def test_adam_reaches_the_bottom_of_a_bowl_and_passes_over_nan():
    centre = torch.tensor([1.0, -2.0], dtype=torch.float64)
    p, seen = torch.zeros(2, dtype=torch.float64, requires_grad=True), []

    def bowl(rows):
        seen.append(len(rows))
        return (p - centre).square().sum() * (math.nan if len(seen) == 3 else 1.0)

    found = list(descend(bowl, [p], 400, 0.05, 10, 4, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(p.detach(), centre, rtol=0, atol=1e-4)
    assert len(found) == 399 and set(seen) == {4}
    with pytest.raises(NonFinite, match="ten batches"):
        list(descend(lambda rows: p.sum() * math.nan, [p], 400, 0.05, 10, 4, torch.Generator()))


def start(model, solver=None, n=5):
    return Setting(OdeSampler(solver or DPMpp2M(), TimeGrid.karras(n, *model.sigma_range)))


def test_the_best_grid_of_a_gaussian_is_found():
    """Two Euler steps on one Gaussian: where the inner level must be is one equation, solved here by trying all of them."""
    model = Oracle(GaussianMixture(torch.zeros(1, 2), 0.5), t_range=(0.002, 80.0))
    goal = TruncationError(model, range(10**9, 10**9 + 16))
    first = Setting(OdeSampler(Euler(), TimeGrid((80.0, 8.0, 0.0))))

    def error(sigma):
        return goal.measure(model, OdeSampler(Euler(), TimeGrid((80.0, float(sigma), 0.0)))).estimate.value

    levels = torch.logspace(-0.5, 1, 120, dtype=torch.float64)
    best = min(levels.tolist(), key=error)
    tuner = Gradient(iterations=100, lr=0.1, every=50, samples=16, batch=16, steps=32)
    study = Study(model, first, goal, tuner, Budget(trials=9))
    list(study)
    # the sweep's levels are 3 % apart
    assert study.best.setting.sampler.grid.times[1] == pytest.approx(best, rel=0.03)
    assert study.best.value <= error(best) * 1.001


SMALL = {"iterations": 30, "every": 10, "samples": 32, "batch": 16, "steps": 24}


@pytest.mark.parametrize(("solver", "radius"), [(DPMpp2M(), 0.05), (Heun(), 0.0)], ids=repr)
def test_it_lowers_the_error_and_is_charged_for_it(solver, radius):
    model = Oracle(ring(), t_range=(0.002, 80.0))
    goal = TruncationError(model, range(10**9, 10**9 + 64))
    study = Study(
        model, start(model, solver), goal, Gradient(**SMALL, radius=radius, free_start=True), Budget(trials=10)
    )
    whole = list(study)
    assert len(whole) == 5 and study.best.value < 0.8 * whole[0].value
    assert whole[1].n_evals - goal.on(range(64)).measure(*start(model, solver).on(model)).n_evals == 32 * (4 * 24 - 1)
    nfe = start(model, solver).nfe(model)
    assert [t.n_evals for t in whole[2:]] == [64 * nfe + 3 * nfe * 16 * 10] * 3
    assert [t.setting for t in study] == [t.setting for t in whole]  # a search is repeated to the last digit


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_a_model_asked_elsewhere_is_the_same_on_every_path_and_itself_at_its_own_levels(path):
    base, levels = oracle(), [(0.5, 0.7), (8.0, 6.0), (2.0, 2.0)]
    model, noise = AskedElsewhere(base, levels), Seeds(range(6)).normal((2,))
    seen = AskedElsewhere(base.on(path), levels)
    for sigma, asked in levels:
        t, other = path.time_at(sigma), base.path.time_at(asked)
        x = path.at(t)[1] * noise + path.at(t)[0]  # near the data point (1, 1)
        on_own = x / path.at(t)[0]
        # by hand: z = x / |(alpha, sigma)| is asked at the other level, on EDM's path where alpha is 1
        z = on_own / math.hypot(1, sigma) * math.hypot(1, asked)
        want = (z - base.denoise(z, other)) / asked
        torch.testing.assert_close(seen.eps(x, t), want, rtol=0, atol=1e-9)
        torch.testing.assert_close(model.on(path).eps(x, t), want, rtol=0, atol=1e-9)
        batched = seen.eps(x, torch.full((6,), t, dtype=torch.float64))
        torch.testing.assert_close(batched, want, rtol=0, atol=1e-9)
    t = base.path.time_at(2.0)
    torch.testing.assert_close(model.denoise(2 * noise, t), base.denoise(2 * noise, t), rtol=0, atol=1e-12)
    assert model.asked_at(1.0) == pytest.approx(1.4), (
        "between levels the nearest one's factor, and 1 = sqrt(0.5 2) goes down"
    )
    assert model.calls_at(t) == 1
    for bad in ([], [(1.0, -1.0)], [(1.0, 2.0), (1.0, 3.0)]):
        with pytest.raises(BadValue):
            AskedElsewhere(base, bad)


@pytest.mark.parametrize("solver", [DDIM(), DPMpp2M(), IPNDM()], ids=repr)
@pytest.mark.parametrize("path", [EDM(), VP()], ids=repr)
def test_unrolled_with_times_apart_is_the_wrapped_sampler_with_its_derivatives(solver, path):
    model = oracle().on(path)
    asked = [1.1 * s if i % 2 else 0.9 * s for i, s in enumerate(GRID.times[:-1])]
    times = torch.tensor(GRID.on(path), dtype=torch.float64)
    apart = torch.tensor([path.time_at(s) for s in asked], dtype=torch.float64)
    pairs = Asked(tuple(zip(GRID.times[:-1], asked, strict=True)))
    want = sample(pairs.wrap(model), OdeSampler(solver, GRID), range(8))
    x = path.at(float(times[0]))[1] * Seeds(range(8)).normal((2,))
    torch.testing.assert_close(unrolled(model, solver, x, times, asked=apart), want, rtol=0, atol=1e-11)
    moving = apart.clone().requires_grad_(True)
    [grad] = torch.autograd.grad(unrolled(model, solver, x, times, asked=moving).square().sum(), moving)
    for i in (1, 3):
        step = torch.zeros_like(apart)
        step[i] = 1e-6 * float(apart[i])
        up, down = (float(unrolled(model, solver, x, times, asked=apart + k * step).square().sum()) for k in (1, -1))
        # rounding of a sum of order 10 over steps of 1e-6
        assert float(grad[i]) == pytest.approx((up - down) / (2 * float(step[i])), rel=1e-5, abs=1e-6)
    with pytest.raises(BadValue, match="times apart go with"):
        unrolled(model, Heun(), x, times, asked=apart)


def test_times_apart_are_learnt_kept_in_json_and_cost_nothing_more():
    model = Oracle(ring(), t_range=(0.002, 80.0))
    goal = TruncationError(model, range(10**9, 10**9 + 64))
    small, first, best = SMALL | {"iterations": 80}, start(model), []
    for apart in (False, True):
        study = Study(model, first, goal, Gradient(**small, decoupled=apart), Budget(trials=20))
        whole = list(study)
        best, first = [*best, study.best], study.best.setting
        assert {t.nfe for t in whole} == {5} and not any(t.failed for t in whole)
    # from the best grid on, five numbers more lower the same loss
    assert best[1].value < 0.95 * best[0].value and best[0].setting.wrapper(Asked) is None
    found = best[1].setting
    assert Setting.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    asked = found.wrapper(Asked)
    assert [s for s, _ in asked.levels] == list(found.sampler.grid.times[:-1])
    assert any(a != s for s, a in asked.levels) and all(0.002 <= a <= 80.0 for _, a in asked.levels)
    for form in (export.to_k_diffusion, export.to_diffusers):
        with pytest.raises(BadValue, match="no place for levels asked apart from the grid"):
            form(found)
    assert "decoupled" not in Gradient().describe() and Gradient(decoupled=True).describe()["decoupled"] == "True"
    again = Study(model, found, goal, Gradient(**SMALL), Budget(trials=1))
    assert list(again)[1].setting.wrappers == (), "a search of the grid alone begins without them"
    with pytest.raises(BadValue, match="times apart go with"):
        list(Study(model, start(model, Heun()), goal, Gradient(**SMALL, decoupled=True), Budget(trials=3)))


def test_what_it_learns_on_is_neither_chosen_nor_reported_on():
    from explorer.tuning.gradient import learning_seeds
    from explorer.tuning.study import Task

    model = oracle()
    goal = TruncationError(model, range(10**9, 10**9 + 8))
    ids = learning_seeds(Task(model, start(model), goal, 3), 8).ids
    assert ids[0] == LEARN + 30_000_000 and len(ids) == 8 and min(ids) > 10**9 + 8


def test_soft_teacher_forcing_stays_in_its_ball_and_helps():
    """The start moves at most by the radius, and moving it lowers the loss that a start at the noise has."""
    model, levels = oracle(), Levels(GRID, 0.002, False)
    fine = solved(model, 80.0, Seeds(range(8)), steps=32)
    hard, soft = (Ends(model, Heun(), fine, levels, EDM(), r) for r in (0.0, 0.1))
    rows = torch.arange(8)
    values = [float(soft.loss(rows).detach()) for _ in range(6)]
    sizes = soft.moved.flatten(1).norm(dim=1)
    assert values[0] == pytest.approx(float(hard.loss(rows)), rel=1e-12) and values[-1] < 0.9 * values[0]
    assert bool((sizes <= 0.1 * (1 + 1e-9)).all()) and float(sizes.max()) > 0.05


def test_a_metric_and_wrappers_may_be_searched_as_well():
    from explorer.live import metric_for

    digits = load("digits")
    first = start(digits, n=3).using(Skips((0.9,) * 5))
    goal = MetricObjective(metric_for(digits, "sw2"), range(10**9, 10**9 + 32))
    tuner = Gradient(iterations=2, every=1, samples=8, batch=4, steps=4)
    found = list(Study(digits, first, goal, tuner, Budget(trials=4)))
    assert len(found) == 4 and all(t.setting.wrappers == first.wrappers and not t.failed for t in found)


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        (lambda m: start(m, UniPC()), "not written out"),
        (lambda m: Setting(OdeSampler(Heun(), TimeGrid((0.9, 0.5, 0.0), "t"))), "grid in sigma"),
    ],
)
def test_what_it_cannot_do_is_said(setting, match):
    model = oracle()
    study = Study(model, setting(model), TruncationError(model, range(8)), Gradient(**SMALL), Budget(trials=3))
    with pytest.raises(BadValue, match=match):
        list(study)


@pytest.mark.parametrize(
    ("what", "method"), [("schedule", "gradient"), ("schedule", "decoupled"), ("solver", "bespoke")]
)
def test_the_command_line_has_it(tmp_path, monkeypatch, what, method):
    from explorer.papers import bespoke
    from explorer.tuning import gradient

    small = {"iterations": 10, "samples": 16, "batch": 8, "steps": 16, "every": 5}
    real = gradient.Gradient, bespoke.Bespoke
    monkeypatch.setattr(gradient, "Gradient", lambda **given: real[0](**small, decoupled="decoupled" in given))
    monkeypatch.setattr(bespoke, "Bespoke", lambda **_: real[1](**small))
    args = ("--what", what, "--method", method, "--nfe", 6, "--n", 16, "--report", 16, "--budget", 8)
    said = document("tune", "oracle-8gaussians", *args, "--out", tmp_path / "t.json", "--export", "python")
    assert (
        2 <= said["trials"] <= 8
        and said["nfe"][0] <= 6
        and said["how"]["tuner"] == {"decoupled": "gradient"}.get(method, method)
    )
    other = {"schedule": "solver", "solver": "schedule"}[what]
    assert "--method" in refusal("tune", "oracle-8gaussians", "--what", other, "--method", method)
