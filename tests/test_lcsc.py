"""Combined snapshots: merging by hand, averages by their recursion, evolution against an exact optimum, and what is refused."""

import dataclasses

import numpy as np
import pytest
import torch

from explorer.errors import BadFile, BadValue, UnknownName
from explorer.models import SkipTuned
from explorer.models.base import Preconditioned
from explorer.models.bundled import load
from explorer.nets.mlp import MLP
from explorer.papers import paper
from explorer.papers.lcsc import LinearRun, covariance, recipe, snapshots_of
from explorer.process import EDM, EDMPrecondition
from explorer.reproduction import Bench
from explorer.sampling import Euler, OdeSampler, TimeGrid
from explorer.training import snapshots
from explorer.training.weights import gram, merged, save_weights
from explorer.tuning import (
    CMA,
    Basis,
    Budget,
    Combinations,
    Evolution,
    FunctionObjective,
    Setting,
    Skips,
    Study,
    Tuned,
    Weights,
    ema_coefficients,
    landscape,
    tune,
)
from explorer.tuning.landscape import slice_coefficients
from explorer.tuning.weights import RATES, network_of, settings_of

START = Setting(OdeSampler(Euler(), TimeGrid((0.5, 0.25))))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A linear denoiser's noisy SGD, its model and the newest six of its snapshots."""
    made = LinearRun(tmp_path_factory.mktemp("linear"), n_steps=80, every=10)
    model = made.model()
    return made, model, Basis.of(made.folder, model, 6)


def weights_of(basis) -> list[torch.Tensor]:
    return [s.state("net", None)["weight"] for s in basis.snapshots()]


def loss(run) -> FunctionObjective:
    return FunctionObjective(lambda model, sampler, seeds: run[0].loss(model.net.weight), range(2), "loss")


def small(folder, steps=(1, 2, 3), width=8, buffer=False) -> Preconditioned:
    """A model and random raw snapshots of an MLP in a folder, as a run would leave them."""
    g = torch.Generator().manual_seed(width)
    net = MLP(2, width=width, depth=1)
    for step in steps:
        state = {f"method.nets.net.{k}": torch.randn(v.shape, generator=g) for k, v in net.state_dict().items()}
        if buffer:
            state["method.nets.net.count"] = torch.tensor(step)
        save_weights(
            folder / f"snapshot-{step:09d}.safetensors",
            state,
            {"step": step, "n_images": step, "averaged": {}, "sigma_rel": {}},
        )
    return Preconditioned(net, EDM(), EDMPrecondition(0.5), shape=(2,), t_range=(0.01, 10.0))


def test_merging_is_the_sum_by_hand_and_one_alone_is_that_snapshot_to_the_bit(run):
    _, model, basis = run
    a = (0.5, -2.0, 0.25, 3.0, -1.0, 0.25)
    own = weights_of(basis)
    by_hand = sum(c * w.double() for c, w in zip(a, own, strict=True)).float()
    combined = basis.combine(model, a)
    torch.testing.assert_close(combined.net.weight, by_hand, rtol=1e-6, atol=0)
    for i in range(6):
        assert torch.equal(basis.combine(model, np.eye(6)[i]).net.weight, own[i])
    assert torch.equal(model.net.weight, own[-1]) and not combined.net.weight.requires_grad


def test_large_coefficients_lose_no_more_than_float32_does(run):
    """Cancellation of two coefficients of 1e4: summed in float64 the error is that of the result's own rounding."""
    _, model, basis = run
    own = weights_of(basis)
    exact = 1e4 * own[0].double() - 9999 * own[1].double()
    got = basis.combine(model, (1e4, -9999, 0, 0, 0, 0)).net.weight
    assert float((got - exact).abs().max()) <= float(exact.abs().max()) * 2**-23


def test_buffers_are_those_of_the_last_snapshot_that_takes_part(tmp_path):
    small(tmp_path, buffer=True)
    kept, names = snapshots(tmp_path), {"stem.weight"}
    assert int(merged(kept, (0.5, 0.5, 0.0), "net", names)["count"]) == 2
    out = merged(kept, (1.0, -1.0, 1.0), "net", names)
    assert int(out["count"]) == 3 and out["count"].dtype == torch.int64
    with pytest.raises(BadValue, match="as many coefficients"):
        merged(kept, (1.0, 0.0), "net", names)


def test_one_snapshot_at_a_time_is_read(run, monkeypatch):
    """Ten times as many snapshots may not hold ten networks: each state is gone before the next is read."""
    import weakref

    from explorer.training.weights import Snapshot

    real, alive = Snapshot.state, []

    def watched(self, net, ema="ema"):
        assert sum(ref() is not None for ref in alive[:-1]) == 0
        state = real(self, net, ema)
        alive.append(weakref.ref(state["weight"]))
        return state

    monkeypatch.setattr(Snapshot, "state", watched)
    run[2].combine(run[1], (0.1, 0.1, 0.1, 0.1, 0.1, 0.5))
    assert len(alive) == 6


@pytest.mark.parametrize("rate", RATES)
def test_an_average_is_its_recursion(rate):
    values, total, count = np.random.default_rng(0).normal(size=7), 0.0, 0.0
    for v in values:
        total, count = rate * total + v, rate * count + 1
    a = ema_coefficients(7, rate)
    assert np.dot(a, values) == pytest.approx(total / count, rel=1e-12) and sum(a) == pytest.approx(1, abs=1e-15)


def test_the_exact_optimum_beats_everything_near_it(run):
    """The constrained least squares, against its own gradient: no direction that keeps the sum lowers the loss."""
    made, _, basis = run
    own = weights_of(basis)
    a, least = made.best_combination(own)
    assert a.sum() == pytest.approx(1, abs=1e-8)
    g = np.random.default_rng(1)
    at = lambda b: made.loss(sum(c * w.double() for c, w in zip(b, own, strict=True)))  # noqa: E731
    assert at(a) == pytest.approx(least, rel=1e-9)
    for _ in range(50):
        step = g.normal(size=6)
        assert at(a + 0.1 * (step - step.mean())) >= least - 1e-12
    assert made.least() <= least <= min(made.loss(w) for w in own)


def test_the_closed_form_of_the_linear_loss_is_its_average(run):
    made, model, _ = run
    g = torch.Generator().manual_seed(3)
    n, root = 200_000, torch.linalg.cholesky(covariance())
    x0 = torch.randn(n, 8, generator=g, dtype=torch.float64) @ root.T
    x = x0 + made.sigma * torch.randn(n, 8, generator=g, dtype=torch.float64)
    found = (model.denoise(x, made.sigma) - x0).square().sum(1)
    assert float(found.mean()) == pytest.approx(made.loss(model.net.weight), abs=4.5 * float(found.std()) / n**0.5)


def test_evolution_nears_the_exact_optimum_and_beats_the_averages(run):
    made, model, basis = run
    start = basis.setting(START, ema_coefficients(6, 0.0))
    study = Study(model, start, loss(run), Evolution(basis), Budget(trials=300))
    values = [t.value for t in study]
    mean = min(made.loss(s.on(model)[0].net.weight) for s in settings_of(basis, START).values())
    optimum = made.best_combination(weights_of(basis))[1]
    assert optimum - 1e-9 <= study.best.value < optimum + 0.15 * (mean - optimum)
    assert len(values) == 301 and len({t.setting for t in study.trials}) == 301
    assert set(settings_of(basis, START).values()) <= {t.setting for t in study.trials[:41]}
    again = Study(model, start, loss(run), Evolution(basis), Budget(trials=45))
    assert [t.value for t in again] == values[:46]


def test_every_candidate_is_allowed():
    rng = np.random.default_rng(0)
    basis = Basis("nowhere", tuple(range(1, 9)))
    for negative, most in ((True, 5.0), (True, 0.4), (False, 5.0)):
        tuner = Evolution(basis, negative=negative, most=most, sizes=(0.5, 2.0))
        parents = [np.array(ema_coefficients(8, rate)) for rate in (0.0, 0.5, 1.0)]
        for _ in range(300):
            a = tuner.child(parents, rng)
            assert a.sum() == pytest.approx(1, abs=1e-12) and np.abs(a).max() <= most + (most < 1) * 0.65 + 1e-9
            assert negative or a.min() >= 0
            parents = [*parents[-9:], a]


def test_other_tuners_search_the_same_space(run):
    _, model, basis = run
    start = basis.setting(START, ema_coefficients(6, 0.0))
    box = Combinations(basis).box(model, start)
    assert len(box.dims) == 5 and box.at(box.unit) == start
    tuned = tune(model, start, loss(run), CMA(Combinations(basis)), Budget(trials=25), range(2, 4))
    assert tuned.score.value < tuned.baseline.value
    only = Combinations(basis, negative=False).box(model, start)
    with pytest.raises(BadValue, match="more than 1"):
        only.at(np.ones(5))


def test_it_is_stored_and_refused_where_the_snapshots_are_others(run, tmp_path):
    _, model, basis = run
    setting = basis.setting(START, ema_coefficients(6, 0.9))
    assert Setting.from_dict(setting.to_dict()) == setting and setting.describe().endswith("6 snapshots, largest 0.21")
    tuned = tune(model, basis.setting(START, np.eye(6)[5]), loss(run), Evolution(basis), Budget(trials=45), range(2, 4))
    again = Tuned.load(tuned.save(tmp_path / "tuned.json"))
    assert torch.equal(again.on(model)[0].net.weight, tuned.on(model)[0].net.weight)
    other = dataclasses.replace(basis, sha256="0" * 16)
    with pytest.raises(BadFile, match="not those"):
        other.combine(model, np.eye(6)[0])
    with pytest.raises(BadFile, match="no snapshot of step 7"):
        Basis(basis.folder, (7, 80)).combine(model, (0.5, 0.5))


def test_other_wrappers_go_around_the_combined_weights(run):
    _, _, basis = run
    start = START.using(Skips((1.0, 0.5)))
    kinds = [type(w) for w in basis.setting(basis.setting(start, np.eye(6)[0]), np.eye(6)[1]).wrappers]
    assert kinds == [Weights, Skips]


def test_leaders_are_ranked_again_on_fresh_noise(run):
    """An objective that flatters one average on the search's seeds alone: the search believes it, re-ranking does not."""
    made, model, basis = run
    favourite = made.loss(basis.combine(model, ema_coefficients(6, 0.5)).net.weight)

    def flattered(m, sampler, seeds):
        value = made.loss(m.net.weight)
        return value - 100 if seeds.ids[0] < 100 and value == favourite else value

    goal = FunctionObjective(flattered, range(2), "loss")
    study = Study(model, basis.setting(START, np.eye(6)[5]), goal, Evolution(basis), Budget(trials=60))
    list(study)
    fooled, wise = study.finish(range(200, 202)), study.finish(range(200, 202), rerank=range(300, 302))
    assert fooled.setting == basis.setting(START, ema_coefficients(6, 0.5))
    assert wise.score.value < fooled.score.value and wise.how["rerank"] == [300, 302]
    assert len(study.leaders(5)) == 5 and study.leaders(5)[0] is study.best
    with pytest.raises(BadValue, match="used by the search"):
        study.finish(range(200, 202), rerank=range(1, 5))
    with pytest.raises(BadValue):
        study.finish(range(200, 202), rerank=range(201, 205))


@pytest.mark.parametrize("bad", ["folder", "one", "ema", "shape", "mixed", "net"])
def test_snapshots_that_do_not_fit_are_refused(bad, run, tmp_path):
    model = small(tmp_path)
    if bad == "folder":
        with pytest.raises(BadValue, match="0 snapshots"):
            Basis.of(tmp_path / "none", model)
    if bad == "one":
        (tmp_path / "x").mkdir()
        small(tmp_path / "x", (1,))
        with pytest.raises(BadValue, match="1 snapshots"):
            Basis.of(tmp_path / "x", model)
    if bad == "ema":
        with pytest.raises(BadValue, match="no average 'ema'.*raw=True"):
            Basis.of(tmp_path, model, ema="ema")
        kept = snapshots(tmp_path)[-1]
        weights = {f"ema.ema-0.9.net.{k}": v for k, v in kept.state("net", None).items()}
        for step in (1, 2):
            about = {**kept.about, "step": step, "sigma_rel": {"ema-0.9": None}}
            save_weights(tmp_path / "named" / f"snapshot-{step}.safetensors", weights, about)
        assert Basis.of(tmp_path / "named", model, ema="ema-0.9").net == "net"
        with pytest.raises(BadValue, match="no raw weights, only averages ema-0.9"):
            Basis.of(tmp_path / "named", model)
    if bad == "shape":
        with pytest.raises(BadFile, match="architecture: 'embedding.noise.bias' is .8,.*missing in the model"):
            Basis.of(tmp_path, run[1])
    if bad == "mixed":
        small(tmp_path, (2,), width=16)
        with pytest.raises(BadFile, match="snapshot-000000002.*architecture"):
            Basis.of(tmp_path, model)
        with pytest.raises(BadFile, match="architecture"):
            Basis(str(tmp_path), (1, 2)).combine(model, (0.5, 0.5))
    if bad == "net":
        with pytest.raises(BadFile):
            Basis.of(tmp_path, model, net="teacher")
        with pytest.raises(UnknownName):
            snapshots(tmp_path)[0].tensor("net", "nothing", None)


@pytest.mark.parametrize("make", [lambda b: b.setting(START, (0.5, 0.5)), lambda b: b.setting(START, (0.5,) * 6)])
def test_coefficients_are_checked(make, run):
    with pytest.raises(BadValue, match="coefficients"):
        make(run[2])


def test_wrappers_are_not_reached_through():
    with pytest.raises(BadValue, match="no network"):
        network_of(SkipTuned(load("digits"), [1.0] * 5))


def test_a_slice_is_quadratic_and_places_what_lies_in_it(run):
    """On the linear loss every row of the slice is a parabola; corners sit at (0, 0), (1, 0), (0, 1) and lie on the plane."""
    made, model, basis = run
    at = (-0.5, 0.0, 0.5, 1.0)
    inside = slice_coefficients(6, (0, 3, 5), 0.3, 0.2)
    ds = landscape(model, basis, START, loss(run), (0, 3, 5), x=at, y=at, marks={"here": inside})
    third = np.diff(ds.value.values, n=3, axis=1)
    assert np.abs(third).max() < 1e-6 * np.abs(ds.value.values).max()  # float32 weights
    own = weights_of(basis)
    assert float(ds.value.sel(x=1.0, y=0.0)) == pytest.approx(made.loss(own[3]), rel=1e-6)
    places = {str(n): (float(ds.at_x[i]), float(ds.at_y[i]), float(ds.off[i])) for i, n in enumerate(ds.name.values)}
    steps = basis.steps
    for corner, want in ((steps[0], (0, 0)), (steps[3], (1, 0)), (steps[5], (0, 1))):
        assert places[f"step {corner}"] == pytest.approx((*want, 0), abs=1e-6)
    assert places["here"] == pytest.approx((0.3, 0.2, 0), abs=1e-6)
    assert places[f"step {steps[2]}"][2] > 0 and places["rate 0"] == pytest.approx((0, 1, 0), abs=1e-6)
    with pytest.raises(BadValue, match="three different"):
        landscape(model, basis, START, loss(run), (0, 0, 5))


def test_inner_products_are_those_of_the_flat_weights(run):
    _, model, basis = run
    flat = torch.stack([w.double().flatten() for w in weights_of(basis)])
    flat = flat - flat[-1]
    torch.testing.assert_close(gram(basis.snapshots(), "net", basis.averaged(model)), flat @ flat.T)


def test_the_recipes_run_leaves_raw_snapshots(tmp_path):
    short = recipe("toy")
    short = dataclasses.replace(short, plan=dataclasses.replace(short.plan, n_steps=6, snapshot_steps=2, batch_size=8))
    model, basis = snapshots_of(short, Bench(tmp_path))
    assert basis.steps == (2, 4, 6) and basis.ema is None and basis.net == "net"
    assert set(basis.snapshots()[-1].emas) == {f"ema-{r}" for r in (900, 970, 990, 995, 998)}
    assert torch.isfinite(basis.combine(model, (1.0, -1.0, 1.0)).denoise(torch.zeros(2, 2), 1.0)).all()
    with pytest.raises(BadValue, match="folder"):
        snapshots_of(short, Bench())


def test_the_paper_is_listed():
    about = paper("lcsc")
    assert about.arxiv == "2404.02241" and len(about.claims) == 7
    with pytest.raises(UnknownName):
        about.recipe("digits")


def test_the_command_line_combines_the_snapshots_of_a_run(tmp_path):
    from test_cli import document, refusal

    net, g = load("toy-8gaussians").net.state_dict(), torch.Generator().manual_seed(0)
    for step in (10, 20, 30):
        state = {f"method.nets.net.{k}": v + 0.02 * torch.randn(v.shape, generator=g) for k, v in net.items()}
        about = {"step": step, "n_images": step, "averaged": {}, "sigma_rel": {}}
        save_weights(tmp_path / "run" / f"snapshot-{step:09d}.safetensors", state, about)
    few = ("--nfe", 5, "--n", 32, "--report", 32, "--budget", 10, "--out", tmp_path / "t.json")
    said = document("tune", "toy-8gaussians", "--what", "weights", "--snapshots", tmp_path / "run", *few)
    [weights] = said["setting"]["wrappers"]
    assert weights["wrapper"] == "weights" and sum(weights["coefficients"]) == pytest.approx(1)
    assert said["score"]["name"].startswith("SW2") and said["how"]["rerank"] == [1_005_000_000, 1_005_000_064]
    assert "name its folder" in refusal("tune", "toy-8gaussians", "--what", "weights", *few)
    small(tmp_path / "other")
    assert "architecture" in refusal("tune", "toy-8gaussians", "--what", "weights", "--run", tmp_path / "other", *few)
