"""Live quality: early numbers, the same seeds for everybody, cancellation, and what happens when a run breaks."""

from __future__ import annotations

import math
import threading

import pytest
import torch
import xarray as xr

from explorer.errors import BadValue, NonFinite, UnknownName
from explorer.live import METRICS, data_of, metric_for, quality
from explorer.metrics import Frechet, Reference, SlicedW2
from explorer.metrics.features import points_space
from explorer.models import Oracle, as_denoiser
from explorer.models.bundled import load
from explorer.process import EDM, GaussianMixture, Linear
from explorer.sampling import DDIM, EDMStochastic, Heun, OdeSampler, Seeds, TimeGrid, sample
from explorer.trajectory.running import RunningGeometry

SAMPLER = OdeSampler(Heun(), TimeGrid.karras(4, 0.01, 20.0))
POINTS = points_space(2)


@pytest.fixture(scope="module")
def mixture() -> GaussianMixture:
    return GaussianMixture(torch.tensor([[-1.0, 0.3], [1.0, 0.0], [0.0, 1.0]]), 0.2, labels=[0, 1, 2])


@pytest.fixture(scope="module")
def model(mixture) -> Oracle:
    return Oracle(mixture, t_range=(0.002, 80.0))


@pytest.fixture(scope="module")
def metric(mixture) -> Frechet:
    real = mixture.sample(3000, generator=torch.Generator().manual_seed(0))
    return Frechet(POINTS, Reference.of(POINTS, real if torch.is_tensor(real) else real[0]))


def test_numbers_come_early_and_refine(model, metric):
    lives = list(quality(model, SAMPLER, metric, n=700))
    assert [live.n_done for live in lives] == [64, 256, 512, 700]
    assert all(live.estimate.n == live.n_done and live.n == 700 for live in lives)
    assert [live.done for live in lives] == [False, False, False, True]
    assert all(live.nfe == 7 for live in lives)
    assert metric.n == 0, "the caller's metric is left alone"
    seconds = [live.seconds for live in lives]
    assert seconds == sorted(seconds) and seconds[0] > 0


@pytest.mark.parametrize(("n", "batch", "expected"), [(1, 256, [1]), (64, 256, [64]), (100, 32, [32, 64, 96, 100])])
def test_odd_sizes(model, n, batch, expected):
    metric = SlicedW2(POINTS, torch.randn(50, 2))
    assert [live.n_done for live in quality(model, SAMPLER, metric, n=n, batch=batch)] == expected


def test_samples_are_those_of_the_seeds_whatever_the_batch(model, metric):
    *_, live = quality(model, SAMPLER, metric, n=300, start_seed=11)
    torch.testing.assert_close(live.x, sample(model, SAMPLER, Seeds(range(11, 75))), rtol=1e-12, atol=1e-12)
    assert torch.equal(live.labels, torch.arange(11, 75) % 3)
    *_, small = quality(model, SAMPLER, metric, n=300, start_seed=11, batch=37)
    assert small.estimate.value == pytest.approx(live.estimate.value, rel=1e-9)  # float64 sums in another order


def test_repeated_runs_agree_to_the_last_bit(model, metric):
    noisy = OdeSampler(EDMStochastic(10.0, 0.0, 50.0, 1.0), TimeGrid.karras(4, 0.01, 20.0))
    *_, first = quality(model, noisy, metric, n=300)
    *_, second = quality(model, noisy, metric, n=300)
    assert first.estimate == second.estimate and torch.equal(first.x, second.x)


def test_network_calls_are_the_promised_ones_and_no_more(model, metric):
    model.reset_calls()
    n_batches = len(list(quality(model, SAMPLER, metric, n=512)))
    assert model.n_calls == 7 * n_batches


def test_classes(model, metric):
    *_, one = quality(model, SAMPLER, metric, n=64, label=1)
    assert torch.equal(one.labels, torch.ones(64, dtype=torch.int64))
    assert one.x[:, 0].mean() > 0.5
    *_, none = quality(model, SAMPLER, metric, n=64, label=-1)
    assert none.labels is None
    with pytest.raises(BadValue, match="classes 0 to 2"):
        next(quality(model, SAMPLER, metric, n=64, label=3))


def test_difference_from_the_same_setting_is_exactly_zero(model, metric):
    seen = {live.n_done: live.metric for live in quality(model, SAMPLER, metric, n=512)}
    for live in quality(model, SAMPLER, metric, n=512, baseline=seen):
        if math.isfinite(live.estimate.value):
            assert live.difference.value == 0 and live.difference.std_error == 0 and live.difference.n == live.n_done


def test_difference_pairs_the_noise(model, metric):
    """A coarse and a fine sampler on the same seeds: the sign is clear, and the error below that of unpaired runs."""
    coarse = OdeSampler(DDIM(), TimeGrid.karras(6, 0.01, 20.0))
    fine = OdeSampler(DDIM(), TimeGrid.karras(24, 0.01, 20.0))
    base = {live.n_done: live.metric for live in quality(model, fine, metric, n=1024)}
    *_, live = quality(model, coarse, metric, n=1024, baseline=base)
    assert live.difference.differs_from(0.0) and live.difference.value > 0
    *_, short = quality(model, coarse, metric, n=700, baseline=base)
    assert short.difference is None, "nothing to pair with at n = 700"


def test_geometry_is_that_of_the_samples(model, metric):
    *_, live = quality(model, SAMPLER, metric, n=300)
    assert live.geometry.attrs["n"] == 300
    assert live.geometry.sizes["step"] == 4
    assert float(live.geometry.arc_chord) >= 1
    *_, bare = quality(model, SAMPLER, metric, n=64, geometry=False)
    assert bare.geometry is None


def test_cancel_ends_within_a_step(model, metric):
    stop, steps = threading.Event(), []

    def between(fraction):
        steps.append(fraction)
        if len(steps) == 6:
            stop.set()

    lives = []
    model.reset_calls()
    for live in quality(model, SAMPLER, metric, n=2000, cancel=stop, between=between):
        lives.append(live)
    # the flag goes up after step 2 of the second batch and is seen after step 3: 7 calls + 3 Heun steps
    assert [live.n_done for live in lives] == [64]
    assert len(steps) == 6 and model.n_calls == 7 + 6


def test_progress_counts_steps(model, metric):
    seen = []
    list(quality(model, SAMPLER, metric, n=300, between=seen.append))
    assert seen == sorted(seen) and seen[-1] == 1.0 and len(seen) == 3 * 4
    assert seen[0] == pytest.approx(64 / 300 / 4)


def test_an_error_in_between_stops_the_run(model, metric):
    def refuse(fraction):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        next(quality(model, SAMPLER, metric, n=64, between=refuse))


def test_nan_names_step_and_seed_and_keeps_what_was_finished(metric):
    second = SAMPLER.grid.on(EDM())[1]

    def breaks(x, t, cond):
        out = 0.9 * x
        if len(x) > 64 and t < second:  # second batch, second Heun step
            out[5] = torch.nan
        return out

    model = as_denoiser(breaks, "x0", EDM(), (2,), name="breaks")
    lives = []
    with pytest.raises(NonFinite, match=r"step 2 of 4 .* seeds 169; the 64 samples before them are kept") as caught:
        for live in quality(model, SAMPLER, metric, n=300, start_seed=100):
            lives.append(live)
    assert [live.n_done for live in lives] == [64] and lives[0].estimate.n == 64
    assert (caught.value.step, caught.value.samples) == (1, [100 + 64 + 5])


def test_senseless_sizes_are_refused(model, metric):
    for bad in ({"n": 0}, {"batch": 0}):
        with pytest.raises(BadValue, match="at least 1"):
            next(quality(model, SAMPLER, metric, **bad))


def test_metrics_suit_the_model():
    points, digits = load("oracle-8gaussians"), load("oracle-digits")
    assert data_of("oracle-8gaussians") == "8gaussians" and data_of("oracle-digits") == "digits"
    assert metric_for(points).name == "SW2[xy]"
    assert metric_for(digits).name == "FD[digits-cnn]"
    assert metric_for(digits, features="pixels").name == "FD[pixels]"
    with pytest.raises(UnknownName, match="Did you mean 'fd'"):
        metric_for(points, "fdd")
    with pytest.raises(BadValue, match="makes samples of shape"):
        metric_for(points, data="digits")


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_can_watch_a_run(name):
    points = load("oracle-8gaussians")
    *_, live = quality(points, SAMPLER, metric_for(points, name), n=128, label=-1)
    assert math.isfinite(live.estimate.value) and live.estimate.std_error > 0
    assert METRICS[name].__doc__


def test_exact_samples_of_the_oracle_score_as_the_data_does():
    """The oracle's own samples, finely solved, are as near the held-out points as other points of the same toy."""
    model = load("oracle-8gaussians")
    fine = OdeSampler(Heun(), TimeGrid.karras(40, 0.002, 80.0))
    *_, live = quality(model, fine, metric_for(model, "kid"), n=1000, label=-1)
    assert not live.estimate.differs_from(0.0, level=0.999), str(live.estimate)


def test_first_number_of_a_conditional_model_is_honest():
    """Classes follow the seeds: were jackknife blocks to follow them too, each would hold one class, and the number at
    n = 256 would be off by tens."""
    model = load("oracle-digits")
    metric = metric_for(model)
    coarse = OdeSampler(DDIM(), TimeGrid.karras(4, 0.002, 80.0))
    lives = {live.n_done: live.estimate for live in quality(model, coarse, metric, n=768)}
    early, late = lives[256], lives[768]
    assert abs(early.value - late.value) < 5 * math.hypot(early.std_error, late.std_error), f"{early} then {late}"


@pytest.mark.parametrize(("start", "batches"), [(64, 3), (256, 2), (512, 1)])
def test_going_on_from_a_smaller_n_is_the_same_run_to_the_last_bit(model, metric, start, batches):
    noisy = OdeSampler(EDMStochastic(10.0, 0.0, 50.0, 1.0), TimeGrid.karras(4, 0.01, 20.0))
    *_, fresh = quality(model, noisy, metric, n=700)
    *_, begun = quality(model, noisy, metric, n=start)
    model.reset_calls()
    *_, more = quality(model, noisy, metric, n=700, after=begun)
    assert more.estimate == fresh.estimate and more.n_done == 700 and more.done
    assert torch.equal(more.x, fresh.x) and torch.equal(more.labels, fresh.labels)
    xr.testing.assert_identical(more.geometry, fresh.geometry)
    assert begun.estimate.n == start and begun.metric.n == start, "what was there is left alone"
    assert more.seconds > begun.seconds
    assert model.n_calls == 7 * batches, "what was there is not drawn again"


def test_going_on_from_between_two_batches_agrees_to_rounding(model, metric):
    *_, fresh = quality(model, SAMPLER, metric, n=600)
    *_, begun = quality(model, SAMPLER, metric, n=300)
    more = list(quality(model, SAMPLER, metric, n=600, after=begun))
    assert [live.n_done for live in more] == [512, 600], "and meets the batches of a fresh run again"
    # float64 sums in another order
    assert more[-1].estimate.value == pytest.approx(fresh.estimate.value, rel=1e-9)
    xr.testing.assert_allclose(more[-1].geometry, fresh.geometry, rtol=1e-9)


def test_only_the_same_measurement_goes_on(model, metric):
    *_, begun = quality(model, SAMPLER, metric, n=64)
    longer = OdeSampler(Heun(), TimeGrid.karras(5, 0.01, 20.0))
    with pytest.raises(BadValue, match="belongs to another sampler"):
        next(quality(model, longer, metric, n=128, after=begun))
    with pytest.raises(BadValue, match="64 samples already"):
        next(quality(model, SAMPLER, metric, n=32, after=begun))
    *_, bare = quality(model, SAMPLER, metric, n=64, geometry=False)
    with pytest.raises(BadValue, match="without geometry"):
        next(quality(model, SAMPLER, metric, n=128, after=bare))
    assert list(quality(model, SAMPLER, metric, n=64, after=begun)) == [], "nothing is left to do"


def test_step_errors_are_the_gap_between_the_two_methods_of_the_pair(model, metric):
    """Heun's embedded method is Euler's, so the estimate is the distance of their steps from the same state."""
    gaps: list[list[torch.Tensor]] = [[] for _ in range(4)]

    def see(i, t, t_next, x, step):
        euler = x + (t_next - t) * model.velocity(x, t, labels)
        gaps[i].append((step.x - euler).norm(dim=1))

    seeds = Seeds(range(64))
    labels = seeds.labels(3)
    SAMPLER.sample(model, seeds.normal((2,)), labels, observe=see)
    *_, live = quality(model, SAMPLER, metric, n=64)
    expected = torch.stack([g[0] for g in gaps])[:3]
    got = torch.from_numpy(live.geometry.step_error.values)
    torch.testing.assert_close(got[:3], expected.mean(dim=1), rtol=1e-9, atol=0)
    torch.testing.assert_close(
        torch.from_numpy(live.geometry.step_error_se.values)[:3], expected.std(dim=1) / 8, rtol=1e-9, atol=0
    )
    assert math.isnan(got[3]), "the last step is Euler's own"


def test_a_solver_without_an_estimate_says_so(model, metric):
    *_, live = quality(model, OdeSampler(DDIM(), TimeGrid.karras(4, 0.01, 20.0)), metric, n=64)
    assert "step_error" not in live.geometry and "no embedded estimate" in live.geometry.attrs["step_error"]


def test_straightness_by_step_is_measured_on_the_linear_path(model, metric):
    lives = list(quality(model, SAMPLER, metric, n=1024))
    line = RunningGeometry(EDM(), onto=Linear(), n_steps=4, gaps=True)
    sample(model, SAMPLER, Seeds(range(512)), observe=line)
    expected = line.result()
    for name in ("velocity_gap", "velocity_gap_se"):
        # the same sums over batches cut at 64 and 256
        assert lives[-1].geometry[name].values == pytest.approx(expected[name].values, rel=1e-9)
    assert float(lives[-1].geometry.straightness_linear) == pytest.approx(float(expected.straightness), rel=1e-9)
    assert [live.geometry.attrs["n_curves"] for live in lives] == [64, 256, 512, 512, 512]
    share = torch.tensor([t / (1 + t) for t in SAMPLER.grid.sigmas(EDM())], dtype=torch.float64)
    weights = (share[:-1] - share[1:]) / (share[0] - share[-1])
    mean = float((weights * torch.from_numpy(expected.velocity_gap.values)).sum())
    assert mean == pytest.approx(float(expected.straightness), rel=1e-9), "its mean over time is S"
