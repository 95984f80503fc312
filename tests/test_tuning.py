"""Searches with known answers: quadratic bowls, a Gaussian's best grid by brute force, resumes equal to undisturbed runs."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch
from problems import ring

from explorer.errors import BadFile, BadValue, NonFinite, UnknownName
from explorer.live import metric_for
from explorer.metrics import Estimate
from explorer.models import Oracle
from explorer.models.bundled import load
from explorer.process import GaussianMixture
from explorer.sampling import DPMpp2M, Euler, Heun, OdeSampler, Seeds, TimeGrid, sample
from explorer.trajectory import record
from explorer.trajectory.schedules import gits
from explorer.tuning import (
    CMA,
    AlignSteps,
    Budget,
    Chain,
    Coordinate,
    DynamicProgram,
    FunctionObjective,
    Guidance,
    GuidanceSpace,
    Halving,
    Joint,
    Listed,
    LocalError,
    MetricObjective,
    Nodes,
    Optuna,
    Proposal,
    RestartSpace,
    Setting,
    Skips,
    SkipScales,
    Study,
    TruncationError,
    Tuned,
    Tuner,
    every_solver,
    pareto,
    tune,
)
from explorer.tuning.journal import Journal
from explorer.tuning.space import Dim, stretched

STD = 0.5
SEARCH, REPORT = range(1000, 1016), range(32)


@pytest.fixture(scope="module")
def gaussian():
    """N(0, STD^2 I): Euler's steps multiply, so that the end of any grid is a formula."""
    return Oracle(GaussianMixture(torch.zeros(1, 2), STD), name="gaussian")


@pytest.fixture(scope="module")
def rings():
    return Oracle(ring(labels=True), name="ring")


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def euler(*sigmas):
    return Setting(OdeSampler(Euler(), TimeGrid(sigmas)))


def euler_factor(sigmas, std=STD):
    """What Euler multiplies the first state by on N(0, std^2): dx/dsigma = sigma x / (sigma^2 + std^2), by hand."""
    out = 1.0
    for s, following in itertools.pairwise(sigmas):
        out *= 1 + (following - s) * s / (s * s + std * std)
    return out


COARSE = OdeSampler(Heun(), TimeGrid.karras(18, 0.01, 10.0))


def bowl(centre):
    """(ln sigma_1 - centre)^2 + ..., each sample with its own offset that cancels in differences."""

    def function(model, sampler, seeds):
        logs = np.log([s for s in sampler.grid.times[1:] if s > 0])
        return float(((logs - centre) ** 2).sum()) + 1e-3 * np.array(seeds.ids)

    return function


START = euler(10.0, 3.0, 0.1, 0.0)
FROM_TEN = OdeSampler(Heun(), TimeGrid.karras(128, 0.001, 10.0))
CENTRE = np.log([1.7, 0.4])

TUNERS = {
    "coordinate": Coordinate(Nodes()),
    "cma": CMA(Nodes()),
    "tpe": Optuna(Nodes()),
}


@pytest.mark.parametrize("name", TUNERS)
def test_every_search_finds_the_bottom_of_a_bowl(gaussian, name):
    objective = FunctionObjective(bowl(CENTRE), SEARCH, "bowl")
    study = Study(gaussian, START, objective, TUNERS[name], Budget(trials=150))
    trials = list(study)
    assert len(trials) <= 151 and trials[0].setting == START
    found = np.log(study.best.setting.sampler.grid.times[1:3])
    reach = {"coordinate": 0.02, "cma": 0.02, "tpe": 0.5}[name]  # the last step size; TPE draws and does not converge
    assert np.abs(found - CENTRE).max() < reach
    # every sample's offset is the same in both, so that the paired error is exactly that of rounding
    assert study.best.difference.std_error < 1e-12 < study.best.estimate.std_error
    gap = study.best.estimate.value - trials[0].estimate.value
    assert study.best.difference.value == pytest.approx(gap, abs=1e-12)


def test_a_gaussians_best_inner_node_is_that_of_brute_force(gaussian):
    """One free node between 10 and 0: the formula's best against coordinate descent through the real sampler."""
    start, exact_factor = euler(10.0, 5.0, 0.0), STD / math.hypot(10.0, STD)
    fine = np.exp(np.linspace(math.log(0.01), math.log(9.9), 20_001))
    errors = np.abs([euler_factor((10.0, s, 0.0)) - exact_factor for s in fine])
    best = fine[errors.argmin()]
    objective = TruncationError(gaussian, SEARCH, reference=FROM_TEN)
    tuned = tune(gaussian, start, objective, Coordinate(Nodes()), Budget(trials=80), REPORT)
    # the search ends at steps of 0.004 of the range of ln sigma, which is 11.5: half of that either way, and the reference's 1e-3
    assert abs(math.log(tuned.sampler.grid.times[1] / best)) < 0.03
    noise = float(Seeds(REPORT).normal((2,)).square().sum(1).mean().sqrt())
    assert tuned.score.value == pytest.approx(10 * errors.min() * noise, rel=5e-3) and tuned.gained


def test_the_truncation_error_is_the_formulas(gaussian):
    objective, noise = TruncationError(gaussian, SEARCH, reference=FROM_TEN), Seeds(SEARCH).normal((2,))
    found = objective(*START.on(gaussian))
    gap = abs(euler_factor(START.sampler.grid.times) - STD / math.hypot(10.0, STD))
    want = 10.0 * gap * float(noise.square().sum(1).mean().sqrt())
    assert found.value == pytest.approx(want, rel=1e-3)  # what 128 Heun steps leave


def test_the_reference_is_solved_once(gaussian):
    objective = TruncationError(gaussian, SEARCH)
    assert objective.prepare() == objective.reference.nfe(gaussian) * len(SEARCH) and objective.prepare() == 0
    gaussian.reset_calls()
    assert objective.measure(*START.on(gaussian)).n_evals == START.nfe(gaussian) * len(SEARCH)
    assert gaussian.n_calls == START.nfe(gaussian)


def test_differences_are_those_of_the_same_noise(rings):
    """The paired error against the spread over many independent sets of noise."""
    one, other = euler(10.0, 2.0, 0.3, 0.0), euler(10.0, 2.0, 0.4, 0.0)
    gaps, said = [], []
    for k in range(40):
        objective = TruncationError(rings, range(100 * k, 100 * k + 64), reference=COARSE)
        a, b = (objective.measure(*s.on(rings)) for s in (one, other))
        gaps.append(a.estimate.value - b.estimate.value)
        said.append(a.minus(b).std_error)
    # a standard deviation of 40 numbers is known to 1 / sqrt(78) = 11 %, three of them
    assert np.std(gaps, ddof=1) == pytest.approx(np.mean(said), rel=0.35)


def test_a_metric_is_measured_as_elsewhere(rings):
    metric = metric_for(load("oracle-8gaussians"), "sw2")
    objective = MetricObjective(metric, range(64))
    other = metric.empty()
    x = sample(rings, START.sampler, range(64))
    other.update(x)
    assert objective(*START.on(rings)).value == other.compute().value


def test_local_errors_vanish_with_the_step(gaussian):
    coarse, fine = (Setting(OdeSampler(Heun(), TimeGrid.karras(n, 0.01, 10.0))) for n in (6, 24))
    errors = [LocalError(SEARCH)(*s.on(gaussian)).value for s in (coarse, fine)]
    assert 0 < errors[1] < errors[0] / 8  # second order: a quarter of the step, a sixteenth of the sum


# Grids from recordings


def test_the_dynamic_program_is_the_best_of_all_grids(rings):
    """Against every choice of two inner nodes among those recorded."""
    start = Setting(OdeSampler(Euler(), TimeGrid.karras(3, 0.05, 10.0)))
    tuner = DynamicProgram(nodes=10, samples=8, coefficients=(1.0,))
    study = Study(rings, start, TruncationError(rings, SEARCH), tuner, Budget(trials=10))
    trials = list(study)
    fine = OdeSampler(Heun(), TimeGrid.karras(10, max(rings.sigma_range[0], 1e-3), 10.0))
    ds = record(rings, fine, SEARCH[:8], keep=("x", "slope"))
    cost = gits(ds, coefficient=1.0).costs.mean("sample").values
    best = min(
        itertools.combinations(range(1, 10), 2), key=lambda ij: cost[0, ij[0]] + cost[ij[0], ij[1]] + cost[ij[1], 10]
    )
    want = [float(ds.sigma[i]) for i in (0, *best, 10)]
    assert trials[1].setting.sampler.grid.times == pytest.approx(want)
    assert trials[1].n_evals == 3 * len(SEARCH) + fine.nfe(rings) * 8  # the recording is paid for once
    assert all(t.n_evals == 3 * len(SEARCH) for t in trials[2:])


def test_aligned_steps_are_proposed(rings):
    start = Setting(OdeSampler(Euler(), TimeGrid.karras(4, 0.05, 10.0)))
    trials = list(Study(rings, start, TruncationError(rings, SEARCH), AlignSteps(20, 8), Budget(trials=3)))
    assert len(trials) == 2 and trials[1].note == "ays" and trials[1].setting.sampler.grid.n_steps == 4


# Spaces


@pytest.mark.parametrize(
    "dim", [Dim("a", -1, 3), Dim("b", 0.01, 80, log=True), Dim("c", 2, 5, whole=True), Dim("d", choices=("x", "y"))]
)
def test_the_unit_interval_and_back(dim):
    for value in dim.choices or ([2, 3, 5] if dim.whole else [dim.low, 0.5, dim.high]):
        back = dim.at(dim.unit(value))
        assert back == value if dim.choices or dim.whole else back == pytest.approx(value, rel=1e-12)
    if dim.whole:
        assert {dim.at(u) for u in np.linspace(0, 1, 50)} == {2, 3, 4, 5}


def test_nodes_may_cross_and_are_sorted(gaussian):
    box = Nodes(free_start=True).box(gaussian, START)
    assert [d.name for d in box.dims] == ["sigma_0", "sigma_1", "sigma_2"]
    assert box.at(box.unit).sampler.grid.times == pytest.approx(START.sampler.grid.times)
    assert box.build((0.6, 9.0, 2.0)).sampler.grid.times == (9.0, 2.0, 0.6, 0.0)
    with pytest.raises(BadValue, match="strictly decreasing"):
        box.build((2.0, 2.0, 1.0))


@pytest.mark.parametrize("nfe", [3, 5, 8])
def test_every_solver_spends_no_more_than_it_may(rings, nfe):
    settings = every_solver(rings, nfe)
    assert len({s.key() for s in settings}) == len(settings) > 20
    noise, labels = Seeds(range(2)).normal((2,)), torch.tensor([0, 1])
    for setting in settings[::7]:
        model, sampler = setting.on(rings)
        model.reset_calls()
        sampler.sample(model, noise, labels, rng=Seeds(range(2)))
        assert model.n_calls == setting.nfe(rings) <= nfe


def test_a_stretched_grid_keeps_its_shape():
    grid = TimeGrid.karras(9, 0.01, 80.0)
    assert stretched(grid, 9) == grid
    short = stretched(grid, 4)
    assert short.n_steps == 4 and short.times[0] == 80.0 and short.times[-2:] == (grid.times[-2], 0.0)
    even = TimeGrid.log_snr(9, 0.01, 80.0)
    assert stretched(even, 5).times == pytest.approx(TimeGrid.log_snr(5, 0.01, 80.0).times)
    assert stretched(grid, 1).times == (80.0, 0.0)


SPACES = {
    "skips": SkipScales(interval=True),
    "line": SkipScales(linear=True),
    "guidance": GuidanceSpace(),
    "restart": RestartSpace(nfe=9),
    "joint": Joint(nfe=5),
    "front": Joint(),
}


@pytest.mark.parametrize("name", SPACES)
def test_points_of_a_space_are_settings_that_run_at_the_promised_cost(digits, name):
    start = Setting(OdeSampler(Heun(), TimeGrid.karras(3, 0.002, 80.0)))
    box, rng = SPACES[name].box(digits, start), np.random.default_rng(1)
    assert all(0 <= u <= 1 for u in box.unit)
    noise, labels, made = Seeds(range(2)).normal((1, 8, 8)), torch.tensor([0, 1]), 0
    for _ in range(12):
        try:
            setting = box.at(rng.random(len(box.dims)))
        except BadValue:
            continue
        made += 1
        assert Setting.from_dict(json.loads(json.dumps(setting.to_dict()))) == setting
        if made <= 3:
            model, sampler = setting.on(digits)
            model.reset_calls()
            sampler.sample(model, noise, labels, rng=Seeds(range(2)))
            assert model.n_calls == setting.nfe(digits)
        if name != "front":
            assert setting.nfe(digits) <= {"restart": 9}.get(name, 5)
    assert made >= 5


def test_the_start_of_a_guided_space_is_no_guidance(digits):
    start = Setting(OdeSampler(Heun(), TimeGrid.karras(3, 0.002, 80.0)))
    box = GuidanceSpace().box(digits, start)
    assert box.at(box.unit) == start
    strong = box.build((3.0, 0.001, 80.0))
    assert strong.nfe(digits) <= 5 and strong.sampler.grid.n_steps < 3  # two evaluations a call leave fewer steps


def test_one_point_is_nothing_to_search(gaussian):
    one = euler(10.0, 0.0)
    with pytest.raises(BadValue, match="this space has one point"):
        list(Study(gaussian, one, TruncationError(gaussian, SEARCH), Coordinate(Nodes()), Budget(trials=5)))
    with pytest.raises(BadValue, match="no skip connections"):
        SkipScales().box(gaussian, one)
    with pytest.raises(BadValue, match="name a guide"):
        GuidanceSpace().box(gaussian, one)


# Studies


def test_a_fixed_seed_gives_the_same_answer(gaussian):
    def run(seed):
        objective = FunctionObjective(bowl(CENTRE), SEARCH, "bowl")
        return [unhurried(t) for t in Study(gaussian, START, objective, CMA(Nodes()), Budget(trials=20), seed=seed)]

    state = np.random.get_state()[1].copy()
    assert run(3) == run(3) != run(4)
    assert (np.random.get_state()[1] == state).all()  # the package's own generator would be the global one


def unhurried(trial):
    return {k: v for k, v in trial.to_dict().items() if k != "seconds"}


KILLED = {
    "coordinate": Coordinate(Nodes()),
    "cma": CMA(Nodes()),
    "tpe": Optuna(Nodes()),
    "halving": Halving(Nodes(), candidates=9, first=4),
    "chain": Chain((DynamicProgram(10, 4, (1.0,)), Coordinate(Nodes()))),
}


@pytest.mark.parametrize("name", KILLED)
@pytest.mark.parametrize("after", [1, 7])
def test_a_killed_search_goes_on_as_if_nothing_had_happened(tmp_path, rings, name, after):
    start = Setting(OdeSampler(Euler(), TimeGrid.karras(4, 0.05, 10.0)))

    def study(journal):
        objective = TruncationError(rings, SEARCH)
        return Study(rings, start, objective, KILLED[name], Budget(trials=14), seed=2, journal=journal)

    undisturbed = study(tmp_path / "a.jsonl")
    whole = [unhurried(t) for t in undisturbed]
    file = tmp_path / "b.jsonl"
    for k, _ in enumerate(study(file), 1):
        if k == after:
            break
    with open(file, "ab") as stream:
        stream.write(b'{"trial": 99, "sett')  # the line that the kill tore
    again = study(file)
    rings.reset_calls()
    assert [unhurried(t) for t in again] == whole
    assert again.finish(REPORT).score == undisturbed.finish(REPORT).score
    lines = file.read_text().splitlines()
    assert len(lines) == len(whole) + 1 and [json.loads(line)["trial"] for line in lines[1:]] == list(range(len(whole)))


def test_what_is_in_the_journal_is_not_measured_again(tmp_path, gaussian):
    file, calls = tmp_path / "j.jsonl", []

    def counted(model, sampler, seeds):
        calls.append(sampler)
        return bowl(CENTRE)(model, sampler, seeds)

    def study(trials):
        objective = FunctionObjective(counted, SEARCH, "bowl")
        return Study(gaussian, START, objective, Coordinate(Nodes()), Budget(trials=trials), journal=file)

    list(study(8))
    assert len(calls) == 9
    assert len(list(study(5))) == 6 and len(calls) == 9  # a smaller budget ends earlier, without measuring
    assert len(list(study(10))) == 11 and len(calls) == 12  # two more, and the baseline that they are paired with


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (lambda f: f.write_text(f.read_text().replace('"trial": 2', '"trial": ', 1)), BadFile, "line 4 .* is damaged"),
        (lambda f: f.write_text("[1, 2]\n" + f.read_text()), BadFile, "line 1 .* is damaged"),
        (lambda f: f.write_text(f.read_text().replace('"version": 1', '"version": 7', 1)), BadFile, "version 7"),
        (
            lambda f: f.write_text(f.read_text().replace('"seed": 0', '"seed": 5', 1)),
            BadFile,
            "seed is 5 there and 0 here",
        ),
        (
            lambda f: f.write_text(f.read_text().replace("gaussian", "laplace")),
            BadFile,
            "model.name is .laplace. there",
        ),
        (lambda f: f.write_text(f.read_text().replace("0.1, 0.0", "0.2, 0.0")), BadFile, "start.sampler.grid.times"),
    ],
)
def test_a_journal_of_another_search_or_damaged_is_refused(tmp_path, gaussian, spoil, error, says):
    def study():
        objective = FunctionObjective(bowl(CENTRE), SEARCH, "bowl")
        return Study(gaussian, START, objective, Coordinate(Nodes()), Budget(trials=4), journal=tmp_path / "j.jsonl")

    list(study())
    spoil(tmp_path / "j.jsonl")
    kept = (tmp_path / "j.jsonl").read_bytes()
    with pytest.raises(error, match=says):
        list(study())
    assert (tmp_path / "j.jsonl").read_bytes() == kept


def test_a_journal_has_one_writer(tmp_path):
    pytest.importorskip("fcntl")
    first = Journal(tmp_path / "j.jsonl", {"a": 1})
    with pytest.raises(BadFile, match="in use by another search"):
        Journal(tmp_path / "j.jsonl", {"a": 1})
    first.close()
    assert Journal(tmp_path / "j.jsonl", {"a": 1}).rows == []


@dataclasses.dataclass(frozen=True)
class Fixed(Tuner):
    grids: tuple
    name = "fixed"

    def search(self, task):
        self_seen = []
        for grid in self.grids:
            self_seen.append((yield Proposal(euler(*grid))))
        assert [t.failed != "" for t in self_seen] == [False, True, True, False]


def test_a_trial_that_fails_is_marked_and_the_search_goes_on(gaussian):
    def moody(model, sampler, seeds):
        middle = sampler.grid.times[1]
        if middle == 2.0:
            return np.full(len(seeds), math.nan)
        if middle == 3.0:
            raise NonFinite("NaN at step 1", step=0)
        return np.full(len(seeds), middle)

    grids = ((10.0, 1.0, 0.0), (10.0, 2.0, 0.0), (10.0, 3.0, 0.0), (10.0, 4.0, 0.0))
    study = Study(gaussian, euler(10.0, 5.0, 0.0), FunctionObjective(moody, SEARCH), Fixed(grids), Budget(trials=9))
    trials = list(study)
    assert [bool(t.failed) for t in trials] == [False, False, True, True, False]
    assert "nan" in trials[2].failed and "NaN at step 1" in trials[3].failed
    assert study.best is trials[1] and math.isinf(trials[2].value)
    assert json.loads(json.dumps(trials[2].to_dict(), allow_nan=False))["estimate"]["value"] is None
    with pytest.raises(BadValue, match="the baseline cannot be measured"):
        list(Study(gaussian, euler(10.0, 2.0, 0.0), FunctionObjective(moody, SEARCH), Fixed(grids), Budget(trials=9)))


@pytest.mark.parametrize("name", ["cma", "tpe", "coordinate"])
def test_a_wall_of_failures_does_not_stop_a_search(gaussian, name):
    def walled(model, sampler, seeds):
        value = bowl(CENTRE)(model, sampler, seeds)
        return value if sampler.grid.times[1] > 1.2 else value * math.nan

    objective = FunctionObjective(walled, SEARCH)
    study = Study(gaussian, START, objective, TUNERS[name], Budget(trials=60))
    trials = list(study)
    assert any(t.failed for t in trials) and study.best.value < trials[0].value / 2


def test_the_report_is_on_other_noise(gaussian):
    objective = TruncationError(gaussian, range(10, 20))
    study = Study(gaussian, START, objective, Coordinate(Nodes()), Budget(trials=3))
    list(study)
    for overlapping in (range(20), 11, range(19, 30), range(12, 14)):
        with pytest.raises(BadValue, match="were used by the search"):
            study.finish(overlapping)
        with pytest.raises(BadValue, match="were used by the search"):
            tune(gaussian, START, objective, Coordinate(Nodes()), Budget(trials=3), overlapping)
    assert study.finish(range(20, 30)).report == (20, 30)
    assert study.finish(10).report == (0, 10)


def test_what_is_chosen_among_equals_by_luck_is_shown_to_be_luck(gaussian):
    """Fifty settings of the same true value, each with noise of its own: the best by search is far below, on other noise it is not."""

    def luck(model, sampler, seeds):
        key = int(1e6 * sampler.grid.times[1])
        rows = [np.random.default_rng([key, seed]).standard_normal() for seed in seeds.ids]
        return np.array(rows)

    settings = tuple(euler(10.0, s, 0.0) for s in np.linspace(1, 2, 50))
    objective = FunctionObjective(luck, range(1000, 1100), "luck")
    tuned = tune(gaussian, euler(10.0, 3.0, 0.0), objective, Listed(settings), Budget(trials=60), range(400))
    # the smallest of 51 means of 100 is about -2.2 / 10; on 400 others the mean is within 3 / 20 of 0
    assert tuned.search.value < -0.12 and abs(tuned.score.value) < 0.15
    assert tuned.curse > 0.05


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        ({}, "needs a limit"),
        ({"trials": 0}, "too small for one trial"),
        ({"trials": -3}, "too small for one trial"),
        ({"minutes": 0}, "too small for one trial"),
        ({"nfe": 95}, "the baseline and one trial take 12"),
    ],
)
def test_a_budget_without_room_for_a_trial_is_refused(gaussian, budget, says):
    with pytest.raises(BadValue, match=says):
        if "nfe" in budget:
            budget = {"nfe": 11}
        Study(gaussian, START, TruncationError(gaussian, SEARCH), Coordinate(Nodes()), Budget(**budget))


def test_a_budget_of_evaluations_ends_the_search(gaussian):
    objective = TruncationError(gaussian, SEARCH)
    study = Study(gaussian, START, objective, Coordinate(Nodes()), Budget(nfe=255 * 16 + 3 * 16 * 6))
    trials = list(study)
    assert len(trials) == 6 and study.n_evals == 255 * 16 + 3 * 16 * 6
    minutes = Study(gaussian, START, objective, Coordinate(Nodes()), Budget(minutes=1e-9))
    assert len(list(minutes)) == 1


def test_halving_measures_the_better_on_more(gaussian):
    def noisy(model, sampler, seeds):
        return bowl(CENTRE)(model, sampler, seeds) + 0.0

    seeds = range(1000, 1027)
    study = Study(
        gaussian, START, FunctionObjective(noisy, seeds), Halving(Nodes(), candidates=26, first=3), Budget(trials=200)
    )
    trials = list(study)
    sizes = [t.n for t in trials[1:]]
    assert sizes == sorted(sizes) and set(sizes) == {3, 9, 27}
    first = sorted((t for t in trials[1:] if t.n == 3), key=lambda t: t.difference.value)
    kept = {t.setting.key() for t in trials[1:] if t.n == 9}
    assert kept == {t.setting.key() for t in first[: len(kept)]} and len(kept) == 9
    assert study.best.n == 27


def test_a_front_is_what_nothing_cheaper_beats(rings):
    settings = tuple(Setting(OdeSampler(Euler(), TimeGrid.karras(n, 0.05, 10.0))) for n in (2, 4, 8, 16))
    study = Study(rings, settings[1], TruncationError(rings, SEARCH), Listed(settings), Budget(trials=9))
    trials = list(study)
    front = study.front()
    assert [t.nfe for t in front] == sorted(t.nfe for t in front)
    for t in trials:
        assert any(f.nfe <= t.nfe and f.value <= t.value for f in front)
    assert pareto(trials) == front
    tuned = study.finish(REPORT)
    assert [p.nfe for p in tuned.front] == [t.nfe for t in front] and tuned.front[0].score.n == len(REPORT)


def test_optuna_can_look_for_a_front(rings):
    start = Setting(OdeSampler(Euler(), TimeGrid.karras(6, 0.05, 10.0)))
    space = Joint(solvers=("euler", "dpmpp-2m"), steps=(2, 9), guidance=False)
    study = Study(rings, start, TruncationError(rings, SEARCH), Optuna(space, "nsga2"), Budget(trials=30))
    list(study)
    assert len(study.front()) >= 3
    with pytest.raises(UnknownName, match="nsga3"):
        list(Study(rings, start, TruncationError(rings, SEARCH), Optuna(space, "nsga3"), Budget(trials=3)))


# What is kept


def test_a_tuned_sampler_comes_back_from_its_file(tmp_path, digits):
    start = Setting(
        OdeSampler(DPMpp2M(), TimeGrid.karras(3, 0.002, 80.0)), (Skips((1.0,) * 5), Guidance(1.5, (0.1, 5)))
    )
    objective = TruncationError(digits, range(100, 108), reference=OdeSampler(Heun(), TimeGrid.karras(5, 0.002, 80)))
    tuned = tune(digits, start, objective, Coordinate(SkipScales()), Budget(trials=3), 8)
    back = Tuned.load(tuned.save(tmp_path / "tuned.json"))
    assert back.to_dict() == tuned.to_dict() and back.setting == tuned.setting and back.wrappers == tuned.wrappers
    model, sampler = back.on(load("digits"))
    want = sample(*tuned.on(digits), range(4))
    assert torch.equal(sample(model, sampler, range(4)), want)
    assert sampler.nfe(model) == back.nfe[0]
    # the number in the file is that of its seeds and its setting, nothing else
    assert objective.on(range(*back.report))(model, sampler).value == back.score.value


def test_a_tuned_sampler_of_another_model_is_refused(tmp_path, gaussian):
    objective = FunctionObjective(bowl(CENTRE), SEARCH, "bowl")
    tuned = tune(gaussian, START, objective, Coordinate(Nodes()), Budget(trials=3), REPORT)
    with pytest.raises(BadValue, match="another model: name is .gaussian. there and .ring. here"):
        tuned.on(Oracle(ring(), name="ring"))
    with pytest.raises(BadValue, match="another model: sha256"):
        tuned.on(Oracle(GaussianMixture(torch.zeros(1, 2), 0.6), name="gaussian"))
    content = tuned.to_dict()
    for spoilt, says in (
        ({**content, "version": 9}, "version 9"),
        ({**content, "format": "x"}, "no tuned sampler"),
        ([1], "no tuned sampler"),
        ({**content, "nfe": None}, "does not describe"),
        ({**content, "setting": {"sampler": {"sampler": "magic"}, "wrappers": []}}, "magic"),
    ):
        (tmp_path / "t.json").write_text(json.dumps(spoilt))
        with pytest.raises(BadFile, match=says):
            Tuned.load(tmp_path / "t.json")
    (tmp_path / "t.json").write_text("{")
    with pytest.raises(BadFile, match="cannot be read"):
        Tuned.load(tmp_path / "t.json")


def test_a_wrapper_that_does_not_exist_is_named():
    about = euler(10.0, 0.0).to_dict()
    with pytest.raises(UnknownName, match="magic"):
        Setting.from_dict({**about, "wrappers": [{"wrapper": "magic"}]})
    with pytest.raises(BadValue, match="does not describe"):
        Setting.from_dict({**about, "wrappers": [{"wrapper": "skips"}]})
    with pytest.raises(BadValue, match="low to a higher end"):
        Skips((1.0,), (3.0, 1.0))


def test_skip_scales_act_as_the_wrapper_says(digits):
    setting = Setting(OdeSampler(Euler(), TimeGrid.karras(3, 0.002, 80.0)), (Skips((0.7, 1, 1, 1, 1), (0.1, 5.0)),))
    model, _ = setting.on(digits)
    x = Seeds(range(2)).normal((1, 8, 8))
    assert torch.equal(model.denoise(x, 0.05), digits.denoise(x, 0.05))
    assert not torch.equal(model.denoise(x, 1.0), digits.denoise(x, 1.0))


def test_a_user_s_function_may_return_any_of_three(gaussian):
    model, sampler = START.on(gaussian)
    rows = FunctionObjective(lambda m, s, seeds: torch.arange(len(seeds)), range(5)).measure(model, sampler)
    assert rows.estimate.value == 2.0 and rows.estimate.std_error == pytest.approx(math.sqrt(2.5 / 5))
    one = FunctionObjective(lambda m, s, seeds: 3.5, range(5)).measure(model, sampler)
    assert one.estimate.value == 3.5 and math.isnan(one.minus(one).std_error) and one.minus(one).value == 0
    given = Estimate(1.0, 0.1, 5, "mine")
    assert FunctionObjective(lambda m, s, seeds: given, range(5))(model, sampler) is given
    with pytest.raises(BadValue, match="one per sample"):
        FunctionObjective(lambda m, s, seeds: np.zeros(3), range(5))(model, sampler)
    with pytest.raises(BadValue, match="consecutive"):
        TruncationError(gaussian, [0, 2, 3])


def test_a_model_s_own_metric_can_be_the_objective():
    model = load("oracle-8gaussians")
    objective = MetricObjective(metric_for(model, "sw2"), SEARCH)
    tuned = tune(model, euler(10.0, 2.0, 0.1, 0.0), objective, Coordinate(Nodes()), Budget(trials=4), REPORT)
    assert tuned.score.name.startswith("SW2") and len(tuned.history) == 5
