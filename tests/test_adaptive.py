"""Adaptive steps: error follows tolerance, a sample does not depend on its batch, and what failed is said in words."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import Watcher, gaussian_map, oracle, ring

from explorer.errors import BadValue, NonFinite, UnknownName
from explorer.models import Guided, Oracle, as_denoiser
from explorer.process import EDM, VP, GaussianMixture, Linear
from explorer.sampling import (
    AdaptiveReport,
    AdaptiveSampler,
    OdeSampler,
    Seeds,
    TimeGrid,
    denoised_of,
    sample,
    sampler_from_json,
    slope_of,
)
from explorer.sampling.solvers import RK4
from explorer.sampling.solvers.adaptive import (
    DONE,
    NOT_FINITE,
    PAIRS,
    TOO_MANY,
    TORCHDIFFEQ,
    UNDERFLOW,
    between,
)

STD, HIGH, LOW = 0.5, 20.0, 0.05
ENDS = TimeGrid.explicit((HIGH, LOW))
CONTROLS = ["sample", "batch"]
FIRST, SECOND = torch.tensor([1, 0, 0]), torch.tensor([0, 1, 0])  # who is marked


def start(n: int, dim: int = 2) -> torch.Tensor:
    return Seeds(range(n)).normal((dim,))


def gaussian(path) -> Oracle:
    return Oracle(GaussianMixture(torch.zeros(1, 2), STD), path)


def worst(sampler, path, noise) -> float:
    """Largest error at the end, in units of atol + rtol |x|, over Gaussian data, whose map is known."""
    x, exact = sampler.sample(gaussian(path), noise), gaussian_map(path, noise, STD, HIGH, LOW)
    return ((x - exact).abs() / (sampler.atol + sampler.rtol * exact.abs())).max().item()


# Tables


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_satisfy_their_order_conditions(name):
    """Of the solution up to its order and of the second method up to one less; all rooted trees to order 4, bushy ones to order 5."""
    pair = PAIRS[name]
    s = len(pair.c)
    a = torch.zeros(s, s, dtype=torch.float64)
    for i, row in enumerate(pair.a):
        a[i + 1, : len(row)] = torch.tensor(row, dtype=torch.float64)
    c = torch.tensor(pair.c, dtype=torch.float64)
    torch.testing.assert_close(a.sum(1), c)
    b = a[-1]
    trees = {
        1: [(torch.ones(s, dtype=torch.float64), 1)],
        2: [(c, 2)],
        3: [(c**2, 3), (a @ c, 6)],
        4: [(c**3, 4), (c * (a @ c), 8), (a @ c**2, 12), (a @ a @ c, 24)],
        5: [(c**4, 5), (c**2 * (a @ c), 10), ((a @ c) ** 2, 20), (c * (a @ c**2), 15), (a @ c**3, 20)],
    }
    error = torch.tensor(pair.error, dtype=torch.float64)
    for order, conditions in trees.items():
        for values, density in conditions:
            if order <= pair.order:
                assert float(b @ values) == pytest.approx(1 / density, abs=1e-13)
            if order < pair.order:
                assert float(error @ values) == pytest.approx(0, abs=1e-13)
    assert (
        max(abs(float(error @ v)) for v, _ in trees[pair.order]) > 1e-4
    )  # a worse second method, or there is no estimate


@pytest.mark.parametrize("name", PAIRS)
def test_interpolants_keep_their_order(name):
    """x' = x cos t over one step: error at inner points falls with h^4, h^5 for the dense output of Dormand-Prince; slopes one less."""
    pair, f, exact = PAIRS[name], (lambda x, t: x * math.cos(t)), (lambda t: math.exp(math.sin(t)))
    t0, errors = 0.3, []
    one = torch.ones(1, 1, dtype=torch.float64)
    for h in (0.1, 0.05):
        slopes = []
        for i, c in enumerate(pair.c):
            row = pair.a[i - 1] if i else ()
            x = exact(t0) + h * sum(w * k for w, k in zip(row, slopes, strict=True))
            slopes.append(f(x, t0 + c * h) * one)
        missed = []
        for part in (0.15, 0.3, 0.45, 0.6, 0.75, 0.9):
            u, t = torch.tensor([part], dtype=torch.float64), t0 + part * h
            got, slope = between(exact(t0) * one, x * one, slopes, torch.tensor([h], dtype=torch.float64), u, pair)
            missed.append((abs(float(got) - exact(t)), abs(float(slope) - f(exact(t), t))))
        errors.append([max(m) for m in zip(*missed, strict=True)])
    orders = [math.log2(a / b) for a, b in zip(*errors, strict=True)]
    least = min(pair.order + 1, 5 if pair.dense else 4)
    assert orders[0] > least - 0.4 and orders[1] > least - 1.4, (orders, errors)


# Error control


@pytest.mark.parametrize("path", [EDM(), Linear(), VP()], ids=str)
@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("method", ["bosh3", "dopri5"])
def test_the_global_error_follows_the_tolerance(method, control, path):
    """Over four decades the error stays within a constant of the tolerance, so that it falls with it."""
    errors = {}
    for tol in (1e-2, 1e-4, 1e-6):
        sampler = AdaptiveSampler(ENDS, method, tol, tol, control)
        errors[tol] = worst(sampler, path, start(16))
    # "batch" holds the mean over samples, and the largest of 16 may be several times that
    assert max(errors.values()) < (15 if control == "sample" else 60), errors


@pytest.mark.parametrize("method", PAIRS)
def test_fewer_evaluations_for_a_looser_tolerance_and_a_higher_order_wins_at_a_tight_one(method):
    spent = []
    for tol in (1e-2, 1e-4, 1e-6) if method != "heun-euler" else (1e-2, 1e-3, 1e-4):
        _, report = AdaptiveSampler(ENDS, method, tol, tol).run(oracle(Linear()), start(8))
        spent.append(report.nfe.double().mean().item())
    assert spent[0] < spent[1] < spent[2]
    # steps grow like tolerance^(-1/order)
    if method == "heun-euler":
        assert 2 < spent[2] / spent[1] < 4.5


def test_the_reference_is_reached_on_a_mixture():
    noise, model = start(12), oracle(Linear())
    fine = OdeSampler(RK4(), TimeGrid.karras(600, LOW, HIGH, 5.0, to_zero=False)).sample(model, noise)
    for control in CONTROLS:
        x = AdaptiveSampler(ENDS, "dopri5", 1e-8, 1e-8, control).sample(model, noise)
        torch.testing.assert_close(x, fine, rtol=0, atol=3e-6)  # boundaries between modes amplify the tolerance


@pytest.mark.parametrize("method", sorted(set(TORCHDIFFEQ) - set(PAIRS)))
def test_methods_of_torchdiffeq_alone(method):
    tol = 1e-6 if method == "dopri8" else 1e-4
    assert worst(AdaptiveSampler(ENDS, method, tol, tol, "batch"), Linear(), start(8)) < 60


def test_rk45_is_dopri5():
    for control in CONTROLS:
        a, b = (AdaptiveSampler(ENDS, m, control=control).sample(oracle(), start(3)) for m in ("rk45", "dopri5"))
        assert torch.equal(a, b)


@pytest.mark.parity
def test_batch_control_is_torchdiffeq_and_its_report_is_what_happened():
    """The same states to the last bit as odeint with the same options, and the report's steps add up to the whole span."""
    odeint = pytest.importorskip("torchdiffeq").odeint
    model, noise = oracle(Linear()), start(6)
    times = torch.tensor(ENDS.on(Linear()), dtype=torch.float64)
    asked = []

    def f(t, y):
        asked.append(float(t))
        return model.velocity(y, float(t))

    theirs = odeint(f, times[0] * noise, times, rtol=1e-5, atol=1e-5, method="dopri5", options={"step_t": times[-1:]})[
        -1
    ]
    watched = Watcher(model)
    ours, report = AdaptiveSampler(ENDS, control="batch").run(watched, noise)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
    assert report.nfe.tolist() == [len(asked)] * 6 == [len(watched.asked)] * 6
    taken = torch.where(report.accepted, report.size, 0.0).sum(1)
    torch.testing.assert_close(taken, (times[0] - times[1]).expand(6), rtol=1e-12, atol=0)
    attempts = int(report.n_accepted[0] + report.n_rejected[0])
    assert len(asked) == 2 + 6 * attempts  # first slope, first step size, six stages each
    mean_square = report.error.square().mean(0)
    assert ((mean_square <= 1) == report.accepted[0]).all()


# Each sample on its own


def test_a_sample_does_not_depend_on_its_batch():
    """Result, steps and cost alone, in company and in another order: to the rounding of a batched matrix product."""
    model, sampler, noise = Oracle(ring(labels=True), Linear()), AdaptiveSampler(ENDS, rtol=1e-5), start(12)
    cond = torch.arange(12) % 8
    x, report = sampler.run(model, noise, cond)
    assert report.nfe.unique().numel() > 1  # they do differ in cost
    for rows in ([3], [7, 0, 11], list(range(11, -1, -1))):
        y, alone = sampler.run(model, noise[rows], cond[rows])
        torch.testing.assert_close(y, x[rows], rtol=0, atol=1e-9)
        assert torch.equal(alone.nfe, report.nfe[rows]) and torch.equal(alone.n_rejected, report.n_rejected[rows])
        n = alone.t.shape[1]
        torch.testing.assert_close(alone.size, report.size[rows][:, :n], rtol=1e-6, atol=0, equal_nan=True)
    a, b = (sample(model, sampler, range(9), batch=batch) for batch in (9, 2))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_the_report_is_what_the_model_was_asked():
    """Every attempt costs a pair's stages less one; the time of each evaluation lies inside the attempt; spans add up."""
    model = Watcher(oracle(Linear()))
    sampler = AdaptiveSampler(ENDS, "dopri5", 1e-4, 1e-4)
    _, report = sampler.run(model, start(10))
    attempts = report.n_accepted + report.n_rejected
    assert torch.equal(report.nfe, 2 + 6 * attempts)
    asked = [0] * 10  # every tensor of times is one evaluation of each sample still on the way
    for t in model.asked:
        for k in range(len(t)):
            asked[k] += 1
    assert sum(asked) == int(report.nfe.sum()) and len(model.asked) == int(report.nfe.max())
    times = ENDS.on(Linear())
    taken = torch.where(report.accepted, report.size, 0.0).sum(1)
    torch.testing.assert_close(taken, torch.full((10,), times[0] - times[1], dtype=torch.float64), rtol=1e-12, atol=0)
    assert (report.error[report.accepted] <= 1).all()
    refused = ~report.accepted & ~report.t.isnan()
    assert (report.error[refused] > 1).all()
    assert (report.status == DONE).all() and report.failure(Linear()) is None
    assert sampler.nfe(model) is None and sampler.n_steps(model) == 1


def spiky(width: float, height: float, where: float = 1.0):
    """A model whose third sample has a narrow bump in its denoiser at sigma = where."""
    base = oracle()

    def function(x_t, t, cond):
        d = base.denoise(x_t, t)
        level = torch.as_tensor(t, dtype=torch.float64).expand(len(x_t))
        bump = height * torch.exp(-(((level - where) / width) ** 2)) * cond
        return d + bump[:, None]

    return as_denoiser(function, "x0", EDM(), (2,), t_range=(0.001, 100.0), n_classes=2)


def test_one_stiff_sample_neither_slows_nor_changes_the_others():
    noise, cond = start(6), torch.tensor([0, 0, 1, 0, 0, 0])
    sampler = AdaptiveSampler(ENDS, "dopri5", 1e-5, 1e-5)
    calm, before = sampler.run(spiky(0.05, 50.0), noise, torch.zeros_like(cond))
    x, report = sampler.run(spiky(0.05, 50.0), noise, cond)
    others = [0, 1, 3, 4, 5]
    torch.testing.assert_close(x[others], calm[others], rtol=0, atol=1e-9)
    assert torch.equal(report.nfe[others], before.nfe[others])
    assert report.nfe[2] > 1.3 * report.nfe[others].max() and report.hardest(1) == [2]
    fields = ("t", "size", "error", "accepted", "nfe", "status")
    of = lambda r: AdaptiveReport(*(getattr(r, f)[2:3] for f in fields))  # noqa: E731
    stiff, smooth = (of(r).profile([HIGH, 1.3, 0.7, LOW]) for r in (report, before))
    more = (stiff.accepted + stiff.rejected) - (smooth.accepted + smooth.rejected)
    assert more.argmax() == 1 and more[1] > 0.8 * more.sum()  # the bump is where the extra attempts are
    assert stiff.size[1] < 0.5 * smooth.size[1]
    assert stiff.accepted.sum() == report.n_accepted[2] and stiff.rejected.sum() == report.n_rejected[2]


def test_the_batch_report_points_at_the_stiff_sample_too():
    noise, cond = start(6), torch.tensor([0, 0, 0, 0, 1, 0])
    _, report = AdaptiveSampler(ENDS, "dopri5", 1e-5, 1e-5, "batch").run(spiky(0.02, 50.0), noise, cond)
    assert report.hardest(1) == [4] and (report.status == DONE).all()


# What a run looks like from outside


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("method", ["bosh3", "dopri5"])
@pytest.mark.parametrize("to_zero", [True, False])
def test_watching_sees_the_grid_and_does_not_change_the_run(method, control, to_zero):
    grid = TimeGrid.karras(9, LOW, HIGH, to_zero=to_zero)
    model, noise, seen = oracle(Linear()), start(5), []
    sampler = AdaptiveSampler(grid, method, 1e-6, 1e-6, control)

    def watch(i, t, t_next, x, step):
        if seen:
            assert torch.equal(x, seen[-1][3])
        torch.testing.assert_close(slope_of(model.path, x, t, step), model.velocity(x, t), rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(denoised_of(model.path, x, t, step), model.denoise(x, t), rtol=2e-3, atol=2e-3)
        seen.append((i, t, t_next, step.x))

    x, report = sampler.run(model, noise, observe=watch)
    assert torch.equal(x, sampler.sample(model, noise))
    times = grid.on(Linear())
    assert [s[:3] for s in seen] == [(i, times[i], times[i + 1]) for i in range(9)]
    torch.testing.assert_close(seen[-1][3], x, rtol=0, atol=0)
    fine = noise * times[0]
    for i, t, t_next, state in seen[: 9 - to_zero]:
        part = TimeGrid.explicit([t + (t_next - t) * k / 40 for k in range(41)], "t")
        model.path.at(t)
        fine = OdeSampler(RK4(), part).sample(model, fine / t)
        torch.testing.assert_close(state, fine, rtol=0, atol=2e-4), i


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("path", [EDM(), VP(), Linear()], ids=str)
def test_a_grid_to_zero_ends_with_the_denoised_mean(control, path):
    noise, grid = start(4), TimeGrid.explicit((HIGH, LOW, 0.0))
    x, report = AdaptiveSampler(grid, control=control).run(oracle(path), noise)
    before = AdaptiveSampler(ENDS, control=control).sample(oracle(path), noise)
    want = oracle(path).denoise(before, path.time_at(LOW))
    torch.testing.assert_close(x, want, rtol=0, atol=1e-9)
    _, shorter = AdaptiveSampler(ENDS, control=control).run(oracle(path), noise)
    assert torch.equal(report.nfe, shorter.nfe + (1 if control == "batch" else 0))  # the last slope is there already


def test_guided_models_cost_double_where_asked():
    base = Oracle(ring(labels=True))
    model = Guided(base, 2.0)
    _, report = AdaptiveSampler(ENDS).run(model, start(3), torch.arange(3))
    assert torch.equal(report.nfe, 2 * (2 + 6 * (report.n_accepted + report.n_rejected)))
    assert int(report.nfe.max()) == model.n_calls


def test_gradients_reach_the_start():
    """Of the end of Gaussian data, where the map is a factor."""
    x = start(3).requires_grad_()
    sampler = AdaptiveSampler(ENDS, "bosh3", 1e-6, 1e-6)
    sampler.sample(gaussian(Linear()), x).sum().backward()
    torch.testing.assert_close(
        x.grad, gaussian_map(Linear(), torch.ones(3, 2), STD, HIGH, LOW).double(), rtol=1e-3, atol=0
    )


def test_float32_noise_gives_float32_samples():
    x = AdaptiveSampler(ENDS, rtol=1e-3, atol=1e-3).sample(oracle(), start(3).float())
    assert x.dtype == torch.float32
    torch.testing.assert_close(
        x.double(), AdaptiveSampler(ENDS, rtol=1e-7, atol=1e-7).sample(oracle(), start(3)), rtol=0, atol=0.05
    )


@settings(max_examples=25)
@given(
    method=st.sampled_from(sorted(PAIRS)),
    exponent=st.integers(2, 5),
    n=st.integers(1, 5),
    shape=st.sampled_from([(1,), (3,), (1, 2, 2)]),
    path=st.sampled_from([EDM(), VP(), Linear()]),
    steps=st.integers(2, 6),
    to_zero=st.booleans(),
)
def test_any_shape_path_and_grid_arrives_and_is_stored(method, exponent, n, shape, path, steps, to_zero):
    mixture = GaussianMixture(torch.zeros(1, *shape), STD)
    grid, tol = TimeGrid.karras(steps, 0.1, 10.0, to_zero=to_zero), 10.0 ** -(exponent if method != "heun-euler" else 3)
    sampler, seen = AdaptiveSampler(grid, method, tol, tol, path=path), []
    noise = Seeds(range(n)).normal(shape)
    x = sampler.sample(Oracle(mixture), noise, observe=lambda i, *rest: seen.append(i))
    assert x.shape == noise.shape and x.dtype == noise.dtype and seen == list(range(steps))
    if not to_zero:
        exact = gaussian_map(path, noise, STD, 10.0, 0.1)
        assert ((x - exact).abs() <= 40 * tol * (1 + exact.abs())).all()
    assert sampler_from_json(sampler.to_json()) == sampler
    assert json.loads(sampler.to_json())["sampler"] == "adaptive"


# Failures


def jump(where: float):
    """A velocity that jumps wildly below sigma = where for the second sample: no step across it is accepted at a tight tolerance."""
    base = oracle()

    def function(x_t, t, cond):
        d = base.denoise(x_t, t)
        level = torch.as_tensor(t, dtype=torch.float64).expand(len(x_t))
        wild = torch.where((level < where) & (cond == 1), 1e12 * torch.sin(1e9 * level), 0.0)
        return d + wild[:, None]

    return as_denoiser(function, "x0", EDM(), (2,), t_range=(0.001, 100.0), n_classes=2, name="wild")


@pytest.mark.parametrize("control", CONTROLS)
def test_a_step_size_that_vanishes_is_explained(control):
    sampler = AdaptiveSampler(ENDS, "dopri5", 1e-8, 1e-8, control)
    x, report = sampler.run(jump(1.0), start(3), SECOND)
    assert report.status.tolist() == ([0, UNDERFLOW, 0] if control == "sample" else [UNDERFLOW] * 3)
    which = "in 1 of 3 samples (positions 1)" if control == "sample" else "in 3 of 3 samples (positions 0, 1, 2)"
    error = report.failure(EDM(), x)
    assert isinstance(error, BadValue)
    text = str(error)
    for part in (
        which,
        "step size fell",
        "Worst is sample 1: at t = 1",
        "(sigma 1",
        "times the tolerance",
        "Try larger rtol",
    ):
        assert part in text, (part, text)
    assert report.hardest(1) == [1]
    if control == "sample":
        assert torch.isfinite(x[[0, 2]]).all() and x[1].isnan().all()
        alone = sampler.sample(oracle(), start(3)[[0, 2]])
        torch.testing.assert_close(x[[0, 2]], alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("control", CONTROLS)
def test_too_many_attempts_are_explained(control):
    sampler = AdaptiveSampler(ENDS, "bosh3", 1e-9, 1e-9, control, max_steps=20)
    x, report = sampler.run(oracle(), start(2))
    assert (report.status == TOO_MANY).all() and x.isnan().all()
    assert (report.n_accepted + report.n_rejected == 20).all()
    with pytest.raises(BadValue, match="20 attempts were not enough in 2 of 2 samples.*more max_steps"):
        sampler.sample(oracle(), start(2))


def broken(where: float):
    base = oracle()

    def function(x_t, t, cond):
        d = base.denoise(x_t, t)
        level = torch.as_tensor(t, dtype=torch.float64).expand(len(x_t))
        return torch.where(((level < where) & (cond == 1))[:, None], math.nan, d)

    return as_denoiser(function, "x0", EDM(), (2,), t_range=(0.001, 100.0), n_classes=2, name="broken")


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("where", [1.0, 1e9], ids=["on the way", "at once"])
def test_not_a_number_is_explained_and_the_rest_arrives(control, where):
    sampler = AdaptiveSampler(TimeGrid.karras(5, LOW, HIGH), "dopri5", 1e-4, 1e-4, control)
    with pytest.raises(NonFinite, match="NaN or infinity at every step size.*smaller sigma_max") as caught:
        sampler.sample(broken(where), start(3), FIRST)
    assert caught.value.samples == ([0] if control == "sample" else [0, 1, 2])
    if control == "sample":
        assert torch.isfinite(caught.value.kept[1:]).all()
    seen = []
    _, report = sampler.run(broken(where), start(3), FIRST, observe=lambda *a: seen.append(a[0]))
    assert report.status[0] == NOT_FINITE
    assert seen == (list(range(5)) if control == "sample" else [])


def test_a_model_that_cannot_take_one_time_per_sample_says_so():
    model = as_denoiser(lambda x, t, cond: x / (1 + t**2), "x0", EDM(), (2,), t_range=(0.001, 100.0), name="scalar")
    with pytest.raises(BadValue, match="one time per sample.*control='batch'"):
        AdaptiveSampler(ENDS).sample(model, start(5))
    assert torch.isfinite(AdaptiveSampler(ENDS, control="batch").sample(model, start(5))).all()


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: AdaptiveSampler(ENDS, "dopri6"), UnknownName, "dopri5"),
        (lambda: AdaptiveSampler(ENDS, "dopri8"), BadValue, "set control='batch'"),
        (lambda: AdaptiveSampler(ENDS, "dopri7", control="batch"), UnknownName, "dopri8"),
        (lambda: AdaptiveSampler(ENDS, control="both"), UnknownName, "batch, sample"),
        (lambda: AdaptiveSampler(ENDS, rtol=0.0), BadValue, "rtol must be"),
        (lambda: AdaptiveSampler(ENDS, rtol=1.0), BadValue, "rtol must be"),
        (lambda: AdaptiveSampler(ENDS, atol=math.nan), BadValue, "atol positive"),
        (lambda: AdaptiveSampler(ENDS, max_steps=0), BadValue, "max_steps"),
        (lambda: AdaptiveSampler(TimeGrid.explicit((5.0, 0.0))), BadValue, "Add a small time before it"),
        (lambda: AdaptiveSampler(ENDS).sample(oracle(), torch.zeros(2, 3)), BadValue, "noise of shape"),
        (
            lambda: AdaptiveSampler(TimeGrid((2.0, 0.5), "t")).sample(oracle(Linear()), start(1)),
            BadValue,
            "beyond t_max",
        ),
        (lambda: AdaptiveSampler(ENDS).run(oracle(), start(2))[1].profile([0.1, 1.0]), BadValue, "decreasing"),
    ],
)
def test_impossible_settings_are_refused(make, error, says):
    with pytest.raises(error, match=says):
        make()


def test_an_empty_batch_is_an_empty_answer():
    x, report = AdaptiveSampler(ENDS).run(oracle(), torch.zeros(0, 2, dtype=torch.float64))
    assert x.shape == (0, 2) and report.nfe.shape == (0,)


def test_torchdiffeq_is_imported_where_it_is_used(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    assert torch.isfinite(AdaptiveSampler(ENDS).sample(oracle(), start(1))).all()
    with pytest.raises(ImportError):
        AdaptiveSampler(ENDS, control="batch").sample(oracle(), start(1))


# With names on its axes


@pytest.mark.parametrize("path", [EDM(), Linear()], ids=["edm", "linear"])
def test_labelled_attempts_and_effort_count_what_the_report_holds(path):
    from explorer.trajectory import adaptive_attempts, adaptive_effort

    model = oracle(path)
    sampler = AdaptiveSampler(ENDS, "bosh3", 1e-4, 1e-4)
    _, report = sampler.run(model, start(12))
    ds = adaptive_attempts(report, path, seeds=range(100, 112))
    assert ds.seed.values.tolist() == list(range(100, 112)) and set(ds.status.values) == {"done"}
    assert ds.accepted.sum("attempt").values.tolist() == report.n_accepted.tolist()
    known = ~report.t.isnan()
    sigma = [path.ratio_at(float(t)) for t in report.t[known]]
    torch.testing.assert_close(torch.tensor(ds.sigma.values)[known], torch.tensor(sigma, dtype=torch.float64))
    with pytest.raises(BadValue, match="12 samples"):
        adaptive_attempts(report, path, seeds=range(3))

    work = adaptive_effort(report, path, n_bins=7)
    for name, mask in (("accepted", report.accepted), ("rejected", known & ~report.accepted)):
        counts = [0] * 7
        for t in report.t[mask].tolist():  # brute force: which bin each attempt began in
            s = path.ratio_at(t)
            counts[next(k for k in range(7) if work.sigma_from[k] >= s > work.sigma_to[k])] += 1
        assert work[name].values.tolist() == pytest.approx([c / 12 for c in counts])
    assert work.attrs["nfe_max"] == int(report.nfe.max()) and work.attrs["n"] == 12
    length = float((work.accepted * work["size"]).sum())  # accepted steps tile the way from HIGH to LOW
    assert length == pytest.approx(math.log(HIGH / LOW), rel=1e-9)
    with pytest.raises(BadValue, match="at least one bin"):
        adaptive_effort(report, path, n_bins=0)
