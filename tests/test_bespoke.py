"""Scale-time solvers: plain methods to rounding, changes of path by formula, a bound by brute force, gradients by differences."""

import dataclasses
import json
import math

import pytest
import torch
from problems import Watcher, oracle, ring

from explorer.errors import BadValue, UnknownName
from explorer.models import Guided, Oracle
from explorer.models.bundled import load
from explorer.papers import bespoke_claims, paper
from explorer.papers.bespoke import (
    PRESETS,
    Bespoke,
    Theta,
    bound,
    carried,
    first_time,
    learnt,
    local_errors,
    preset,
    rmse,
)
from explorer.process import EDM, VP, CosineVP, GaussianMixture, Linear, Trig
from explorer.reproduction import Bench
from explorer.sampling import (
    DPMpp2M,
    Euler,
    Heun,
    Midpoint,
    OdeSampler,
    ScaleTime,
    ScaleTimeSampler,
    Seeds,
    TimeGrid,
    Warp,
    sample,
    sampler_from_json,
    solve,
)
from explorer.trajectory import local_error, record
from explorer.tuning import Budget, Guidance, Setting, Study, TruncationError, Tuned, export
from explorer.tuning.gradient import solved

PLAIN = {"rk1": Euler(), "rk2": Midpoint()}
OTHERS = [EDM(), VP(), CosineVP(), CosineVP(offset=0.0), Linear(), Trig(sigma_data=0.5)]
GRID = TimeGrid.karras(5, 0.01, 80.0)


def flow(std: float = 0.5) -> Oracle:
    """One Gaussian on the linear path, where x(t) is x(1) times the marginal's standard deviation."""
    return Oracle(GaussianMixture(torch.zeros(1, 2), std), Linear())


def crooked(base: str, n: int = 3, seed: int = 0) -> Theta:
    """Any solver of the family: random numbers around the plain one."""
    theta = Theta(preset("identity", n, 1.0, base=base), base)
    g = torch.Generator().manual_seed(seed)
    for p in theta.params:
        p += 0.3 * torch.randn(p.shape, generator=g, dtype=p.dtype)
    return theta


@pytest.mark.parametrize("other", OTHERS, ids=repr)
@pytest.mark.parametrize("base", PLAIN)
def test_a_plain_method_on_any_path_is_a_scale_time_solver_on_another(base, other):
    model, seeds = oracle(), Seeds(range(16))
    ours = ScaleTimeSampler.plain(GRID.on(other), base, Linear(), other)
    theirs = OdeSampler(PLAIN[base], GRID, other)
    # rounding of a few steps, magnified by 1/sigma_min of the last
    torch.testing.assert_close(sample(model, ours, seeds), sample(model, theirs, seeds), rtol=0, atol=1e-10)
    assert ours.nfe(model) == theirs.nfe(model) and ours.n_steps(model) == 5


@pytest.mark.parametrize("base", PLAIN)
def test_the_stages_are_asked_where_they_say_and_counted(base):
    model = Watcher(oracle(Linear()))
    sampler = ScaleTimeSampler(ScaleTime(base, crooked(base).warp()))
    sample(model, sampler, range(3))
    assert model.asked == sampler.solver.eval_times(sampler.solver.times, Linear()) == list(sampler.solver.warp.t[:-1])
    assert len(model.asked) == sampler.nfe(model) == 3 * sampler.solver.order


@pytest.mark.parametrize("base", PLAIN)
def test_steps_are_those_of_the_runge_kutta_method_on_the_scaled_field(base):
    """The definition: integrate dxbar/dr with the method's own formula, and divide by the scale."""
    model, warp, h = oracle(Linear()), crooked(base).warp(), 1 / 3
    k = 1 if base == "rk1" else 2
    x = Seeds(range(4)).normal((2,))

    def field(xbar, j):
        s, u = warp.s[j], model.velocity(xbar / warp.s[j], warp.t[j])
        return warp.s_dot[j] / s * xbar + warp.t_dot[j] * s * u

    xbar = x
    for i in range(3):
        slope = field(xbar, k * i)
        if base == "rk2":
            slope = field(xbar + 0.5 * h * slope, 2 * i + 1)
        xbar = xbar + h * slope
    got = ScaleTimeSampler(ScaleTime(base, warp)).sample(model, x)
    torch.testing.assert_close(got, xbar / warp.s[-1], rtol=1e-12, atol=1e-13)


def test_it_is_stored_recorded_exported_and_guided(tmp_path):
    digits = load("digits")
    sampler = ScaleTimeSampler.plain(TimeGrid.karras(3, 0.002, 80.0).on(EDM()), "rk2", Linear(), EDM())
    assert sampler_from_json(sampler.to_json()) == sampler and hash(sampler) == hash(
        sampler_from_json(sampler.to_json())
    )
    ds = record(oracle(), sampler, range(3))
    torch.testing.assert_close(torch.as_tensor(ds.x.values[:, -1]), sample(oracle(), sampler, range(3)))
    assert ds.attrs["nfe"] == 6 and bool((local_error(ds, oracle(), substeps=4) > 0).all())
    half = Setting(sampler, (Guidance(1.5, (0.1, 5.0)),))
    guided, plain = half.on(digits)
    guided.reset_calls()
    sample(guided, plain, range(2))
    assert guided.n_calls == half.nfe(digits) > 6
    names: dict = {}
    exec(compile(export.to_python(half, "digits"), "tuned.py", "exec"), names)  # noqa: S102
    assert torch.equal(names["x"][:2], sample(*half.on(digits), range(64))[:2])
    with pytest.raises(BadValue, match="no rule that is ScaleTime"):
        export.to_k_diffusion(Setting(sampler))
    assert "rk2" in Setting(sampler).describe() and Setting.from_dict(json.loads(json.dumps(half.to_dict()))) == half


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"t": (1.0, 1.2, 0.0)}, "must fall"),
        ({"s": (1.0, -1.0, 1.0)}, "no t_dot is positive"),
        ({"t_dot": (0.5, -1.0)}, "no t_dot is positive"),
        ({"s_dot": (math.nan, 0.0)}, "finite"),
        ({"s_dot": (0.0,)}, "m s_dot"),
    ],
)
def test_a_warp_that_is_none_is_refused(change, match):
    good = {"t": (1.0, 0.5, 0.0), "t_dot": (-1.0, -1.0), "s": (1.0, 1.0, 1.0), "s_dot": (0.0, 0.0)}
    with pytest.raises(BadValue, match=match):
        Warp(**{**good, **change})


def test_what_it_cannot_do_is_said():
    solver = ScaleTimeSampler.plain((1.0, 0.5, 0.0)).solver
    with pytest.raises(BadValue, match="own times only"):
        solve(flow(), solver, torch.zeros(1, 2), (1.0, 0.7, 0.0))
    with pytest.raises(BadValue, match="two nodes a step"):
        ScaleTime("rk2", ScaleTimeSampler.plain((1.0, 0.5, 0.2, 0.0), "rk1").solver.warp)
    with pytest.raises(UnknownName, match="rk3"):
        ScaleTimeSampler.plain((1.0, 0.0), "rk3")
    with pytest.raises(UnknownName, match="sigmoid"):
        preset("sigmoid", 4, 0.9)
    broken = ScaleTimeSampler.plain((1.0, 0.0)).to_dict()
    with pytest.raises(UnknownName):
        sampler_from_json(json.dumps({**broken, "solver": {"name": "rk9"}}))
    with pytest.raises(BadValue, match="warp"):
        sampler_from_json(json.dumps({k: v for k, v in broken.items() if k != "warp"}))


def test_only_ratios_of_the_scale_matter():
    warp = crooked("rk2").warp()
    twice = Warp(warp.t, warp.t_dot, tuple(2 * v for v in warp.s), tuple(2 * v for v in warp.s_dot))
    assert twice == warp


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("base", PLAIN)
def test_numbers_without_bounds_and_back(name, base):
    warp = preset(name, 4, Linear().time_at(80.0), base=base)
    for what, n in (("both", 15 if base == "rk1" else 31), ("time", 7 if base == "rk1" else 15)):
        theta = Theta(warp, base, what)
        assert theta.n_parameters == n
        for one, two in zip(dataclasses.astuple(theta.warp()), dataclasses.astuple(warp), strict=True):
            torch.testing.assert_close(torch.tensor(one), torch.tensor(two), rtol=1e-6, atol=1e-9)
    for p in theta.params:
        p += 20 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0), dtype=p.dtype)
    assert theta.warp().s == pytest.approx(
        warp.s, rel=1e-11
    )  # "time" leaves the scale alone; that the rest is a warp, Warp checks


@pytest.mark.parametrize("base", PLAIN)
def test_local_errors_are_those_of_the_solver_step_by_step(base):
    model, theta = oracle(Linear()), crooked(base)
    fine, solver = solved(model, 1.0, Seeds(range(6)), steps=200), ScaleTime(base, theta.warp())
    rows = torch.tensor([4, 0, 2])
    got = local_errors(theta, model, fine, rows)
    true = solved(model, 1.0, Seeds([4, 0, 2]), steps=512)
    for i, (t, t_next) in enumerate(zip(solver.times[:-1], solver.times[1:], strict=True)):
        here, there = (true.at(torch.tensor([v], dtype=torch.float64))[0][0] for v in (t, t_next))
        want = (solver.step(model, here, t, t_next, None).x - there).square().mean(dim=1).sqrt()
        torch.testing.assert_close(got[i], want, rtol=0, atol=2e-6)  # the interpolated states are good to h^4


def test_anchors_carry_the_gradient_to_the_times():
    """The loss with its stored, detached states must have the derivative of the loss with the states solved anew at moved times."""
    model, theta, rows = oracle(Linear()), crooked("rk2"), torch.arange(4)
    fine = solved(model, 1.0, Seeds(range(4)), steps=512)
    for p in theta.params:
        p.requires_grad_(True)
    loss = bound(theta, model, fine, rows)
    grads = torch.autograd.grad(loss, theta.params)
    with torch.no_grad():
        for p, grad in zip(theta.params, grads, strict=True):
            for j in range(0, len(p), 2):
                keep, values = float(p[j]), []
                for step in (1e-4, -1e-4):
                    p[j] = keep + step
                    values.append(float(bound(theta, model, fine, rows)))
                p[j] = keep
                # the interpolant is only once differentiable where a node crosses one of its own
                assert float(grad[j]) == pytest.approx((values[0] - values[1]) / 2e-4, rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("base", PLAIN)
def test_errors_are_carried_on_by_the_steps_that_follow(base):
    """For a linear field of known Lipschitz constant, by brute force; the last error is carried by none."""
    theta, slope = crooked(base, 4), 0.7
    weights = carried(theta, slope)
    solver, steep = ScaleTime(base, theta.warp()), _Scaled(-slope)
    each = []
    for t, t_next in zip(solver.times[:-1], solver.times[1:], strict=True):
        one = torch.ones(1, 1, dtype=torch.float64)
        each.append(float(solver.step(steep, one, t, t_next, None).x / one))
    # time falls: a field of slope -0.7 stretches with every step, which is the worst case, were s' not of both signs
    want = [math.prod(each[i + 1 :]) for i in range(4)]
    assert weights[-1] == 1.0
    assert all(w >= e - 1e-9 for w, e in zip(weights.tolist(), want, strict=True))
    flat = Theta(preset("identity", 4, 1.0, base=base), base)
    h = 0.25
    stretch = 1 + h * slope if base == "rk1" else 1 + h * slope * (1 + h * slope / 2)
    assert carried(flat, slope).tolist() == pytest.approx([stretch**3, stretch**2, stretch, 1.0], rel=1e-9)


class _Scaled(Oracle):
    """u(x) = c x."""

    def __init__(self, c: float):
        super().__init__(GaussianMixture(torch.zeros(1, 1), 1.0), Linear())
        self.c = c

    def velocity(self, x_t, t, cond=None):
        return self.c * x_t


def test_it_learns_and_stays_a_solver():
    model = oracle(Linear())
    fine, held = (
        solved(model, 1.0, Seeds(range(1000, 1256)), steps=100),
        solved(model, 1.0, Seeds(range(64)), steps=100),
    )
    theta = Theta(preset("identity", 4, 1.0), "rk2")
    before = ScaleTimeSampler(ScaleTime("rk2", theta.warp()))
    losses = [loss for _, loss in learnt(theta, model, fine, iterations=60, lr=3e-2, batch=64)]
    after = ScaleTimeSampler(ScaleTime("rk2", theta.warp()))
    errors = [rmse(sample(model, s, range(64)), held.x[-1]) for s in (before, after)]
    assert losses[-1] < 0.5 * losses[0] and errors[1] < 0.7 * errors[0]


def start(model, n: int = 8) -> Setting:
    return Setting(OdeSampler(DPMpp2M(), TimeGrid.karras(n, *model.sigma_range)))


SMALL = {"iterations": 20, "every": 5, "samples": 32, "batch": 16, "steps": 24}


def test_a_study_tunes_resumes_and_is_stored(tmp_path):
    model = Oracle(ring(), t_range=(0.002, 80.0))

    def study(trials):
        goal = TruncationError(model, range(10**9, 10**9 + 32))
        return Study(
            model, start(model), goal, Bespoke(**SMALL), Budget(trials=trials), journal=tmp_path / f"{trials}.jsonl"
        )

    whole = list(study(9))
    assert [t.nfe for t in whole] == [8] * 6 and whole[1].note == "identity" and "iteration 20" in whole[-1].note
    list(study(2))
    (tmp_path / "2.jsonl").rename(tmp_path / "8.jsonl")
    again = list(study(8))
    assert [(t.setting, t.value, t.n_evals) for t in again] == [(t.setting, t.value, t.n_evals) for t in whole]
    # 4 steps of 2 calls, three times each for the gradient, 16 samples, 5 iterations between two proposals
    assert whole[3].n_evals == 8 * 32 + 3 * 8 * 16 * 5
    done = study(9)
    list(done)
    tuned = done.finish(range(64))
    tuned.save(tmp_path / "tuned.json")
    assert Tuned.load(tmp_path / "tuned.json").setting == tuned.setting


def test_guidance_is_learnt_through_and_costs_what_it_costs():
    model = Oracle(ring(labels=True), t_range=(0.002, 80.0))
    guided = Setting(OdeSampler(Heun(), TimeGrid.karras(8, *model.sigma_range)), (Guidance(1.5),))
    goal = TruncationError(Guided(model, 1.5), range(10**9, 10**9 + 16))
    found = list(Study(model, guided, goal, Bespoke(**SMALL), Budget(trials=10)))
    assert found[0].nfe == 30 and found[1].nfe == 28  # 7 steps of 2 calls of 2 evaluations
    assert all(t.setting.wrappers == guided.wrappers for t in found) and min(t.value for t in found) < found[1].value


def test_what_cannot_be_tuned_is_refused():
    student = load("digits-cd")
    jump = Setting(OdeSampler(Heun(), GRID))
    with pytest.raises(BadValue, match="flow map"):
        next(Bespoke().search(_task(student, jump)))
    with pytest.raises(UnknownName, match="what to learn"):
        Theta(preset("identity", 2, 1.0), "rk2", "space")


def _task(model, setting):
    from explorer.tuning import FunctionObjective, Task

    return Task(model, setting, FunctionObjective(lambda *_: 0.0, range(4)), 0)


def test_where_it_starts_is_where_the_start_does():
    model = oracle()
    assert first_time(OdeSampler(Heun(), GRID), model, Linear()) == pytest.approx(80 / 81, rel=1e-15)
    assert first_time(ScaleTimeSampler.plain((1.0, 0.0)), model, Linear()) == 1.0


def test_the_paper_is_listed_and_has_nothing_to_train():
    about = paper("bespoke")
    assert about.arxiv == "2310.19075" and about.recipes == () and len(about.claims) == len(bespoke_claims.CLAIMS)
    with pytest.raises(UnknownName):
        about.recipe("toy")


@pytest.mark.parametrize(("base", "order"), [("rk1", 1), ("rk2", 2)])
def test_a_smooth_warp_keeps_the_order(base, order):
    model, seeds = oracle(Linear()), Seeds(range(8))
    warps = [Warp.of_functions(*bespoke_claims.edm_functions(), n, base) for n in (64, 128, 512)]
    a, b, fine = (ScaleTimeSampler(ScaleTime(base, w)).sample(model, seeds.fresh().normal((2,))) for w in warps)
    # against h / 8 and h / 4 of its own error, the ratio 2^p becomes (8^p - 1) / (4^p - 1)
    want = math.log2((8**order - 1) / (4**order - 1))
    assert math.log2(rmse(a, fine) / rmse(b, fine)) == pytest.approx(want, abs=0.3)


CHEAP = (bespoke_claims.identity, bespoke_claims.equivalence)


@pytest.mark.parametrize("check", CHEAP, ids=lambda c: c.__name__)
def test_claims_hold(check):
    assert check(Bench(seed=5)).holds


@pytest.mark.parametrize("backend", ["plotly", "matplotlib"])
def test_a_warp_is_drawn_with_the_slopes_it_uses(backend):
    from explorer import viz

    found = {name: preset(name, 2, Linear().time_at(80.0)) for name in ("identity", "vp")}
    figure = viz.warps(found, pinned="identity", backend=backend)
    warp, reach = found["vp"], 0.3 / 4
    want = warp.t[1] + reach * warp.t_dot[1], 0.25 + reach
    if backend == "plotly":
        drawn = [(trace.y[-1], trace.x[-1]) for trace in figure.data if len(trace.x) == 2]
    else:
        drawn = [
            (y[-1], x[-1]) for axes in figure.axes for x, y in (line.get_data() for line in axes.lines) if len(x) == 2
        ]
    assert min(math.dist(want, at) for at in drawn) < 1e-9
    with pytest.raises(BadValue, match="no warp"):
        viz.warps({})
