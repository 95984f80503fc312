"""Restart's paper: couplings and matchings by closed form, the two errors, and the search over intervals by measured contraction."""

import itertools
import math

import numpy as np
import pytest
import torch
from problems import oracle
from scipy.stats import norm

from explorer.data import PROJECTED, ProjectedModes, load_dataset
from explorer.errors import BadValue, UnknownName
from explorer.models import Guided, Oracle
from explorer.models.bundled import load
from explorer.papers import paper, restart_claims
from explorer.papers.restart import Decomposition, coupled_jump, overlap, recipe, wasserstein1
from explorer.process import VP, GaussianMixture, Linear
from explorer.reproduction import Bench
from explorer.reproduction.run import method_of
from explorer.sampling import EDMStochastic, Euler, Heun, OdeSampler, RestartSampler, Seeds, TimeGrid
from explorer.tuning import Budget, Chain, FunctionObjective, RestartSearch, Setting, Study, forgetting
from explorer.tuning.restarts import Candidate, cost_of, front_of, thinned

GAUSS = GaussianMixture(torch.zeros(1, 3), 0.5)


@pytest.mark.parametrize("r", [0.0, 0.3, 1.0, 5.0])
def test_overlap_is_the_common_area_of_two_gaussians(r):
    s = math.sqrt(1.5**2 - 0.5**2)
    x = np.linspace(-12, 17, 400_001)
    area = np.minimum(norm.pdf(x, 0, s), norm.pdf(x, r, s)).sum() * (x[1] - x[0])
    assert float(overlap(r, 0.5, 1.5)) == pytest.approx(area, abs=1e-6)  # the rule's error, h^2 at the kink


def test_coupled_jumps_have_the_right_laws_and_meet_as_often_as_they_can():
    n, g = 40_000, torch.Generator().manual_seed(0)
    x = torch.zeros(n, 2, dtype=torch.float64)
    y = x + torch.tensor([0.6, 0.8])
    a, b = coupled_jump(x, y, 0.5, 1.5, g)
    s2 = 1.5**2 - 0.5**2
    for jumped, start in ((a, x), (b, y)):
        moved = (jumped - start) / s2**0.5
        assert moved.mean(0).abs().max() < 4.5 / n**0.5
        assert (torch.cov(moved.T) - torch.eye(2)).abs().max() < 4.5 * math.sqrt(2 / n)
        assert float((moved**4).mean()) == pytest.approx(3, abs=4.5 * math.sqrt(96 / (2 * n)))
    met, want = float((a == b).all(1).double().mean()), float(overlap(1.0, 0.5, 1.5))
    assert met == pytest.approx(want, abs=4.5 * math.sqrt(want * (1 - want) / n))
    assert torch.equal(*coupled_jump(x, x, 0.5, 1.5, g))


def test_matching_is_the_best_of_all_permutations():
    g = torch.Generator().manual_seed(2)
    x, y = torch.randn(6, 3, generator=g), torch.randn(6, 3, generator=g)
    every = [sum((x[i] - y[j]).norm() for i, j in enumerate(p)) / 6 for p in itertools.permutations(range(6))]
    value, partner = wasserstein1(x, y)
    assert value == pytest.approx(float(min(every)), rel=1e-6) and sorted(partner) == list(range(6))
    with pytest.raises(BadValue, match="equal numbers"):
        wasserstein1(x, y[:5])


def test_the_toy_is_two_modes_in_a_plane_of_four_dimensions():
    data, made = load_dataset("projected-modes"), PROJECTED["projected-modes"]
    x = data.x.double()
    assert x.shape == (2000, 20) and data.sigma_data == 1.0 and x.mean(0).abs().max() < 1e-6
    torch.testing.assert_close(x.var(0, correction=0), torch.ones(20, dtype=torch.float64), rtol=1e-5, atol=0)
    values = torch.linalg.svdvals(x)
    assert values[4] < 1e-5 * values[0]  # float32 points of a plane
    side = (x @ torch.linalg.svd(x, full_matrices=False).Vh[0]).sign()
    minor = float((side == side.sign().mode().values).double().mean())
    assert max(minor, 1 - minor) == pytest.approx(0.7, abs=4.5 * math.sqrt(0.21 / 2000))
    fresh = made.draw(500, torch.Generator().manual_seed(9))[0]
    assert torch.linalg.svdvals(torch.cat([x, fresh.double()]))[4] < 1e-5 * values[0]
    assert not torch.equal(load_dataset("projected-modes", "test").x, data.x)
    with pytest.raises(BadValue):
        ProjectedModes(latent=30)


@pytest.fixture(scope="module")
def exact():
    """On an isotropic Gaussian, with its exact denoiser: six Euler steps err, a common jump forgets."""
    data = GAUSS.sample(300, torch.Generator().manual_seed(0))[0]
    return Decomposition(Oracle(GAUSS, t_range=(0.002, 80.0)), data, n=150, n_head=6)


def test_what_is_forgotten_is_what_the_linear_flow_says(exact):
    """An exact way down from b to a multiplies by sqrt((s^2 + a^2) / (s^2 + b^2)); a common jump changes no difference.

    So K repeats leave that factor to the K of every difference, up to 60 Euler steps, whose error of a repeat is below h^2 60 / 2 = 0.2 %.
    Matching the ends anew can only bring them nearer.
    """
    factor = math.sqrt((0.25 + 1.0) / (0.25 + 1.5**2))
    p, q, _ = exact.starts(0)
    gap = {
        k: (exact.ends(exact.restart(k, 61), p, 0) - exact.ends(exact.restart(k, 61), q, 0)).norm(dim=1)
        for k in (0, 2, 5)
    }
    for k in (2, 5):
        torch.testing.assert_close(gap[k] / gap[0], torch.full_like(gap[0], factor**k), rtol=0.002 * k, atol=0)
        assert 0.8 * float(gap[k].mean()) < exact.measure(exact.restart(k, 61)).contracted <= float(gap[k].mean())
    heun = exact.ends(exact.restart(2, 5, Heun()), p, 0) - exact.ends(exact.restart(2, 5, Heun()), q, 0)
    torch.testing.assert_close(heun.norm(dim=1) / gap[0], torch.full_like(gap[0], factor**2), rtol=0.005, atol=0)
    plain = exact.measure(exact.restart(0, 61)).contracted
    assert exact.measure(exact.ode(60)).contracted == pytest.approx(plain, rel=1e-9)  # an ODE forgets nothing


def test_the_parts_of_the_error_and_the_cost_are_counted(exact):
    found = exact.measure(exact.restart(3))
    assert found.total <= found.contracted + found.additional + 1e-9
    model, before = exact.model, exact.model.n_calls
    p, _, _ = exact.starts(0)
    exact.ends(exact.restart(3), p, 0)
    assert model.n_calls - before == found.nfe - exact.head.nfe(model) == 4 + 3 * 4 + 20
    over = exact.over(exact.sde(10, 1.0), range(2))
    assert list(over) == ["contracted", "additional", "total"] and over["total"].std_error > 0
    assert exact.measure(exact.sde(10, 1.0)) == exact.measure(exact.sde(10, 1.0))
    with pytest.raises(BadValue, match="600 data"):
        Decomposition(model, exact.data, n=300)


# the search -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [None, VP(), Linear()], ids=str)
def test_survival_on_a_gaussian_is_the_flows_own_factor(path):
    """The difference of two states is multiplied by sqrt((s^2 + a^2) / (s^2 + b^2)) whatever the noise, on every path."""
    model = Oracle(GAUSS, path)
    found = forgetting(model, Seeds(range(6)), (0.2, 1.0), (2.0, 10.0), (2, 3, 5))
    for low in (0.2, 1.0):
        for factor in (2.0, 10.0):
            want = math.sqrt((0.25 + low**2) / (0.25 + (low * factor) ** 2))
            assert float(found.survival.sel(low=low, factor=factor)) == pytest.approx(want, rel=0.01)
    assert (found.added[..., 2] < found.added[..., 0]).all() and found.attrs["n_evals"] > 0
    assert float(found.sigma_max.sel(low=0.2, factor=10)) == pytest.approx(2.0)
    with pytest.raises(BadValue, match="two for each class"):
        forgetting(model, Seeds([0]), (0.2,), (2.0,))


def test_added_error_falls_as_the_solvers_order_says():
    model = Oracle(GAUSS)
    found = forgetting(model, Seeds(range(8)), (0.5,), (3.0,), (9, 17), Euler(), labels=None)
    coarse, fine = found.added.values[0, 0]
    assert math.log2(coarse / fine) == pytest.approx(1, abs=0.15)


def test_intervals_outside_the_range_are_left_out_and_classes_are_compared_within():
    digits = load("digits")
    found = forgetting(digits, Seeds(range(20)), (20.0,), (2.0, 10.0), (2,))
    assert math.isfinite(float(found.survival[0, 0])) and math.isnan(float(found.survival[0, 1]))


def test_a_front_is_what_nothing_beats():
    setting = Setting(OdeSampler(Heun(), TimeGrid.karras(3, 0.1, 1.0)))
    pairs = [(0.5, 1.0), (0.4, 1.5), (0.6, 1.2), (0.1, 3.0), (0.1, 2.0), (0.5, 0.9)]
    front = front_of([Candidate(setting, *p) for p in pairs])
    assert [(c.survival, c.added) for c in front] == [(0.5, 0.9), (0.4, 1.5), (0.1, 2.0)]
    assert [c.survival for c in thinned(front, 2)] == [0.5, 0.1] and thinned(front, 9) == front
    assert len(thinned(front, 1)) == 1


SMALL = {"lows": (0.1, 0.5), "factors": (2.0, 8.0), "n_points": (2, 3), "most_repeats": 3, "n": 4}


def test_the_search_proposes_restarts_at_the_cost_in_order_of_what_they_add():
    model = oracle()
    start = Setting(OdeSampler(Heun(), TimeGrid.karras(10, 0.002, 80.0)))
    tuner, calls = RestartSearch(19, **SMALL), model.n_calls
    front, spent = tuner.front(model, start, range(8))
    assert spent == 4 * (model.n_calls - calls) > 0 and len(front) >= 3
    assert all(isinstance(c.setting.sampler, RestartSampler) and 15 <= c.setting.nfe(model) <= 19 for c in front)
    assert [c.added for c in front] == sorted(c.added for c in front)
    low = {c.setting.sampler.intervals[0].sigma_min for c in front}
    assert low == {0.1, 0.5}
    goal = FunctionObjective(lambda m, s, seeds: float(len(getattr(s, "intervals", ()))), range(8), "intervals")
    study = Study(model, start, goal, tuner, Budget(trials=3))
    trials = list(study)
    assert [t.setting for t in trials[1:]] == [c.setting for c in front[:3]] and study.best.number == 0
    assert "survives" in trials[1].note and trials[1].n_evals >= spent


def test_a_search_without_room_or_without_an_ode_is_refused():
    start = Setting(OdeSampler(Heun(), TimeGrid.karras(2, 0.002, 80.0)))
    with pytest.raises(BadValue, match="allow more"):
        RestartSearch(3, **SMALL).front(oracle(), start, range(8))
    student = load("toy-8gaussians-cd")
    with pytest.raises(BadValue, match="flow map"):
        RestartSearch(9, **SMALL).front(student, start, range(8))


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: Guided(m, 2.0)], ids=("plain", "guided"))
def test_the_cost_of_measuring_is_known_beforehand_and_told_as_it_goes(wrap):
    model, told = wrap(load("digits")), []
    lows, factors, points = (0.5, 2.0), (2.0, 10.0, 100.0), (2, 3)
    whole = cost_of(model, lows, factors, points, Heun())
    found = forgetting(model, Seeds(range(20)), lows, factors, points, Heun(), tell=told.append)
    assert found.attrs["n_evals"] == 20 * whole
    assert told == sorted(told) and told[-1] == 1.0 and len(told) == 1 + int(np.isfinite(found.survival.values).sum())
    steps = np.diff([0.0, *told])
    assert told[0] < 0.5 and (steps >= 0).all() and steps.max() < 0.6  # it moves, and not at the end alone


def test_a_hopeless_search_is_refused_before_anything_is_measured():
    goal = FunctionObjective(lambda m, s, seeds: pytest.fail("measured"), range(8), "nothing")
    ten, two = (Setting(OdeSampler(Heun(), TimeGrid.karras(n, 0.002, 80.0))) for n in (10, 2))
    noisy = Setting(OdeSampler(EDMStochastic(40.0, 0.05, 50.0, 1.003), TimeGrid.karras(10, 0.002, 80.0)))
    model = oracle()

    def refused(start, tuner, budget, words, model=model):
        calls = model.n_calls
        with pytest.raises(BadValue, match=words):
            Study(model, start, goal, tuner, budget)
        assert model.n_calls == calls

    three = Budget(trials=3)
    refused(two, RestartSearch(3, **SMALL), three, "not one restart fits into 3 evaluations")
    refused(two, Chain((RestartSearch(3, **SMALL),)), three, "not one restart fits")
    refused(noisy, RestartSearch(19, **SMALL), three, "without noise")
    refused(ten, RestartSearch(19, **{**SMALL, "lows": (90.0,)}), three, "not one restart")
    refused(ten, RestartSearch(9, **SMALL), three, "flow map", load("toy-8gaussians-cd"))
    tuner = RestartSearch(19, **SMALL)
    least = 4 * cost_of(model, tuner.lows, tuner.factors, tuner.n_points, Heun()) + 2 * 19 * goal.least
    refused(ten, tuner, Budget(nfe=least - 1), "measuring contraction takes")
    Study(model, ten, goal, tuner, Budget(nfe=least))


def test_a_study_hears_of_the_measuring_between_its_trials():
    model, told = oracle(), []
    start = Setting(OdeSampler(Heun(), TimeGrid.karras(10, 0.002, 80.0)))
    goal = FunctionObjective(lambda m, s, seeds: 1.0, range(8), "one")
    study = Study(model, start, goal, Chain((RestartSearch(19, **SMALL),)), Budget(trials=2))
    study.tell = lambda words, share: told.append((len(study.trials), words, share))
    assert len(list(study)) == 3
    shares = [share for _, words, share in told if words == "measuring contraction on 4 states"]
    assert (
        shares[-1] == 1.0 and len(shares) == 5 and {n for n, *_ in told} == {1}
    )  # after the baseline, before any trial
    assert any(words.startswith("fitting repeats") for _, words, _ in told)


# the paper -------------------------------------------------------------------------------------------------------------


def test_the_command_line_proposes_what_the_measurements_say(tmp_path):
    from test_cli import document

    few = ("--nfe", 11, "--n", 64, "--report", 64, "--budget", 5, "--solver", "heun", "--out", tmp_path / "t.json")
    said = document("tune", "oracle-8gaussians", "--what", "restart", *few)
    assert said["score"]["name"].startswith("SW2") and said["nfe"][0] <= 11 and said["trials"] == 5
    rows = (tmp_path / "t.journal.jsonl").read_text()
    assert rows.count("survives") >= 2


def test_the_paper_is_listed_with_its_score_network():
    about = paper("restart")
    assert about.arxiv == "2306.14878" and about.recipes == ("toy", "toy-weak") and len(about.claims) == 11
    toy, weak = recipe("toy"), recipe("toy-weak")
    method = method_of(toy, load_dataset(toy.data), {}, 0)
    net = method.nets["net"]
    assert net.config["width"] == 64 and net.config["depth"] == 4 and weak.plan.n_steps < toy.plan.n_steps
    model = method.export(method.nets)
    assert model.precondition.sigma_data == 1.0 and model.sigma_range == pytest.approx((0.002, 80.0))
    with pytest.raises(UnknownName):
        about.recipe("digits")
    assert {p.nfe: p.value for p in about.published if p.dataset == "imagenet-64x64"}[203] == 1.46


CHEAP = (restart_claims.accounting, restart_claims.off, restart_claims.coupling)


@pytest.mark.parametrize("check", CHEAP, ids=lambda c: c.__name__)
def test_claims_hold(check):
    assert check(Bench(seed=5)).holds
