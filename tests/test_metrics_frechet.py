"""Fréchet distance against closed forms, general-eigenvalue implementations and its own sampling distribution."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from explorer.errors import BadFile, BadValue
from explorer.metrics.features import FeatureSpace, points_space
from explorer.metrics.frechet import (
    Frechet,
    Moments,
    Reference,
    factor,
    finite_sample_bias,
    frechet_distance,
    frechet_from_samples,
    influence,
    spectrum,
)


def gaussian(rng, dim, spread=0.5):
    """A mean and a well-conditioned covariance that commutes with nothing in particular."""
    a = np.eye(dim) + spread * rng.normal(size=(dim, dim)) / math.sqrt(dim)
    return rng.normal(size=dim) / math.sqrt(dim), a @ a.T


def draw(rng, mean, cov, n):
    return rng.normal(size=(n, len(mean))) @ np.linalg.cholesky(cov).T + mean


def by_general_eigenvalues(m1, c1, m2, c2):
    s = np.sqrt(np.linalg.eigvals(c1 @ c2).astype(complex)).real.sum()
    return ((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * s


def by_square_root(m1, c1, m2, c2):
    root = scipy.linalg.sqrtm(c1 @ c2).real
    return ((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * np.trace(root)


def stream(features, reference, x, splits=(), **settings):
    metric = Frechet(features, reference, **settings)
    for piece in np.split(x, splits):
        metric.update(torch.from_numpy(piece))
    return metric


def population(dim, mean=None, cov=None):
    mean, cov = (np.zeros(dim) if mean is None else mean), (np.eye(dim) if cov is None else cov)
    space = points_space(dim)
    return space, Reference(space.name, space.hash, 10**9, mean, cov)


# kernels


def test_isotropic_and_commuting_gaussians_have_the_closed_form():
    rng = np.random.default_rng(0)
    for dim in (1, 2, 32, 300):
        gap = rng.normal(size=dim)
        got = frechet_distance(gap, 4.0 * np.eye(dim), np.zeros(dim), 2.25 * np.eye(dim))
        assert got == pytest.approx(gap @ gap + dim * 0.25, rel=1e-12)
        q, _ = np.linalg.qr(rng.normal(size=(dim, dim)))
        a, b = rng.uniform(0.1, 3, dim), rng.uniform(0.1, 3, dim)
        got = frechet_distance(gap, q * a @ q.T, np.zeros(dim), q * b @ q.T)
        assert got == pytest.approx(gap @ gap + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-10)


PEER_SIZES = [64, 256, pytest.param(2048, marks=pytest.mark.slow)]


@pytest.mark.parametrize("scale", [1.0, 1e-8])
@pytest.mark.parametrize("dim", PEER_SIZES)
def test_equals_independent_implementations(dim, scale):
    if dim == 2048 and scale != 1.0:
        pytest.skip("one scale is enough at this size")
    rng = np.random.default_rng(dim)
    x, y = rng.normal(size=(3 * dim, dim)), rng.normal(size=(2 * dim, dim)) * 1.3 + 0.2
    a, b = Moments.of(x * math.sqrt(scale)), Moments.of(y * math.sqrt(scale))
    ours = frechet_distance(a.mean, a.cov, b.mean, b.cov)
    assert ours == pytest.approx(by_general_eigenvalues(a.mean, a.cov, b.mean, b.cov), rel=1e-6)
    if dim < 2048:
        assert ours == pytest.approx(by_square_root(a.mean, a.cov, b.mean, b.cov), rel=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("dim", PEER_SIZES)
def test_equals_torchmetrics(dim):
    rng = np.random.default_rng(dim)
    a, b = Moments.of(rng.normal(size=(3 * dim, dim))), Moments.of(rng.normal(size=(2 * dim, dim)) * 1.3 + 0.2)
    ours = frechet_distance(a.mean, a.cov, b.mean, b.cov)
    fid = pytest.importorskip("torchmetrics.image.fid", reason="torchmetrics is not installed")
    theirs = fid._compute_fid(*map(torch.from_numpy, (a.mean, a.cov, b.mean, b.cov)))
    assert ours == pytest.approx(float(theirs), rel=1e-6)


@pytest.mark.parametrize(("n", "m"), [(40, 200), (200, 40), (40, 48), (64, 200), (65, 200), (200, 300)])
def test_sample_routes_agree_with_the_covariance_route(n, m):
    rng = np.random.default_rng(n + m)
    x, y = rng.normal(size=(n, 64)), rng.normal(size=(m, 64)) * 1.2 + 0.1
    a, b = Moments.of(x), Moments.of(y)
    got = frechet_from_samples(x, y)
    assert got == pytest.approx(frechet_distance(a.mean, a.cov, b.mean, b.cov), rel=1e-7)
    assert got == pytest.approx(by_general_eigenvalues(a.mean, a.cov, b.mean, b.cov), rel=1e-5)
    if m >= 64:
        reference = Reference("x", "", m, b.mean, b.cov)
        assert frechet_from_samples(torch.from_numpy(x), reference) == pytest.approx(got, rel=1e-9)


@pytest.mark.parametrize("n", [10, 63, 64, 65, 400])
@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_identical_sets_are_at_zero(n, scale):
    x = scale * np.random.default_rng(n).normal(size=(n, 64)) * np.geomspace(1, 1e-3, 64) + scale
    a = Moments.of(x)
    limit = 1e-8 * np.trace(a.cov)
    assert frechet_distance(a.mean, a.cov, a.mean, a.cov) < limit
    assert frechet_from_samples(x, x) < limit


def test_dead_features_on_either_side():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(500, 12)), 1.5 * rng.normal(size=(700, 12))
    y[:, :4] = 0
    a, b = Moments.of(x), Moments.of(y)
    alive = frechet_distance(a.mean[4:], a.cov[4:, 4:], b.mean[4:], b.cov[4:, 4:])
    # dead directions of the reference contribute |m|^2 and the trace only
    dead = a.mean[:4] @ a.mean[:4] + np.trace(a.cov[:4, :4])
    cross = a.cov.copy()
    cross[:4, 4:] = cross[4:, :4] = 0
    assert frechet_distance(a.mean, cross, b.mean, b.cov) == pytest.approx(alive + dead, rel=1e-7)
    assert frechet_distance(b.mean, b.cov, a.mean, cross) == pytest.approx(alive + dead, rel=1e-7)
    assert factor(b.cov).matrix.shape == (12, 8)


def test_negative_mass_is_clipped_and_reported():
    cov = np.diag([1.0, 2.0, -1e-3])
    root = factor(cov)
    assert root.clipped == pytest.approx(1e-3)
    assert root.matrix.shape == (3, 2)
    assert spectrum(np.diag([1.0, 1.0, -0.04]), factor(np.eye(3))).clipped == pytest.approx(0.2)


def test_bad_covariances_are_refused():
    eye, zero = np.eye(3), np.zeros(3)
    with pytest.raises(BadValue, match="symmetric"):
        frechet_distance(zero, eye + np.triu(np.ones((3, 3))), zero, eye)
    with pytest.raises(BadValue, match="NaN"):
        frechet_distance(zero, eye * math.nan, zero, eye)
    with pytest.raises(BadValue, match="do not match"):
        frechet_distance(zero, eye, np.zeros(4), np.eye(4))


# streaming


def test_moments_merge_and_subtract():
    rng = np.random.default_rng(0)
    x = 1e3 + rng.normal(size=(501, 7))
    whole, a, b = Moments.of(x), Moments.of(x[:200]), Moments.of(x[200:])
    for got, want in ((a + b, whole), (whole - a, b), (whole - b, a), (Moments.zero(7) + whole, whole)):
        assert got.n == want.n
        assert np.allclose(got.mean, want.mean, rtol=1e-13)
        assert np.allclose(got.cov, want.cov, rtol=0, atol=1e-10)
    assert np.allclose(whole.cov, np.cov(x.T), atol=1e-9)
    assert (whole - whole).n == 0


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_any_batch_split_gives_the_one_shot_value(offset):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(640, 32)) * np.geomspace(1, 0.05, 32) + offset
    space, reference = population(32, np.full(32, offset), np.diag(np.geomspace(1, 0.05, 32)))
    cov = np.cov(x.T)
    once = frechet_distance(x.mean(0), cov, reference.mean, reference.cov)
    splits = [(), (1, 2, 3), tuple(range(7, 640, 7)), (639,), (320,)]
    metrics = [stream(space, reference, x, s) for s in splits]
    for metric in metrics:
        for how in ("none", "closed-form", "jackknife"):
            got, want = metric.compute(how), metrics[0].compute(how)
            assert got.raw == pytest.approx(once, rel=1e-8)
            assert got.value == pytest.approx(want.value, rel=1e-8, abs=1e-8)
            assert got.std_error == pytest.approx(want.std_error, rel=1e-7)


def test_merge_equals_one_pass_and_order_matters_only_within_blocks():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(333, 8))
    space, reference = population(8)
    whole = stream(space, reference, x)
    first, second = stream(space, reference, x[:123]), stream(space, reference, x[123:])
    first.merge(second)
    assert first.n == whole.n == 333
    got, want = first.compute("closed-form"), whole.compute("closed-form")
    assert got.value == pytest.approx(want.value, rel=1e-10) and got.std_error == pytest.approx(
        want.std_error, rel=1e-8
    )
    got, want = first.compute("jackknife"), whole.compute("jackknife")  # its blocks are other ones than in one pass
    assert got.value == pytest.approx(want.value, abs=0.5 * want.std_error)
    assert got.std_error == pytest.approx(want.std_error, rel=0.7)
    fresh = whole.empty()
    assert fresh.n == 0 and fresh.key == whole.key


@pytest.mark.parametrize("n_classes", [5, 9, 10, 11, 20])
def test_classes_that_repeat_with_the_position_do_not_inflate_the_error(n_classes):
    """Class = seed mod 10 and 10 blocks: every block must still hold every class."""
    rng = np.random.default_rng(3)
    space, reference = population(8)
    x = rng.normal(size=(1000, 8)) + 3 * rng.normal(size=(n_classes, 8))[np.arange(1000) % n_classes]
    mixed = stream(space, reference, x).compute("jackknife").std_error
    shuffled = [stream(space, reference, rng.permutation(x)).compute("jackknife").std_error for _ in range(20)]
    assert mixed < 1.5 * np.mean(shuffled)


def test_a_mean_of_computing_in_between_changes_nothing():
    x = np.random.default_rng(2).normal(size=(300, 8))
    space, reference = population(8)
    metric = Frechet(space, reference)
    for piece in np.split(x, 6):
        metric.update(torch.from_numpy(piece))
        metric.compute("jackknife") if metric.n > 100 else metric.compute()
    assert metric.compute("jackknife") == stream(space, reference, x, range(50, 300, 50)).compute("jackknife")


def test_correction_follows_the_number_of_samples_per_feature():
    x = np.random.default_rng(4).normal(size=(600, 16))
    space, reference = population(16)
    few, some, many = (stream(space, reference, x[:n]).compute() for n in (79, 80, 240))
    assert math.isnan(few.value) and math.isnan(few.std_error) and few.raw > 0
    assert "not enough samples" in str(few)
    assert "jackknife" in some.note and some.dof == 9
    assert "closed-form" in many.note and math.isinf(many.dof)
    assert many.raw - many.value == pytest.approx(many.bias)
    assert many.name == "FD[r16]" and many.n == 240
    nothing = Frechet(space, reference).compute()
    assert math.isnan(nothing.value) and nothing.raw is None
    plain = stream(space, reference, x).compute("none")
    assert plain.value == plain.raw
    with pytest.raises(BadValue, match="closed-form"):
        stream(space, reference, x).compute("magic")


# bias and error


def test_bias_of_the_unit_gaussian_has_its_textbook_form():
    for dim, n in ((8, 400), (64, 1000)):
        want = dim / n + dim * (dim + 1) / (4 * (n - 1))
        assert finite_sample_bias(np.ones(dim), dim, n) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("same", [True, False])
def test_raw_value_exceeds_the_truth_by_the_formula(same):
    """Within 5 %, or three standard errors of the simulated mean where that is wider."""
    rng = np.random.default_rng(5)
    dim, n, repeats = 64, 15 * 64, 24
    mean, cov = (np.zeros(dim), np.eye(dim)) if same else gaussian(rng, dim)
    _, reference = population(dim)
    shape = spectrum(cov, reference.root)
    truth = frechet_distance(mean, cov, reference.mean, reference.root)
    predicted = finite_sample_bias(shape.s, np.trace(cov), n)
    excess = []
    for _ in range(repeats):
        m = Moments.of(draw(rng, mean, cov, n))
        excess.append(frechet_distance(m.mean, m.cov, reference.mean, reference.root) - truth)
    error = np.std(excess, ddof=1) / math.sqrt(repeats)
    assert abs(np.mean(excess) - predicted) < max(0.05 * predicted, 3 * error)


def test_bias_of_a_sampled_reference():
    rng = np.random.default_rng(6)
    dim, n, repeats = 8, 400, 200
    raw = [frechet_from_samples(rng.normal(size=(n, dim)), rng.normal(size=(n, dim))) for _ in range(repeats)]
    predicted = 2 * finite_sample_bias(np.ones(dim), dim, n)
    assert abs(np.mean(raw) - predicted) < 4 * np.std(raw) / math.sqrt(repeats) + 0.03 * predicted


def coverage(dim, per_feature, same, repeats, seed, how="auto"):
    """Share of nominal 95 % bands around the corrected and the raw value that hold the truth."""
    rng = np.random.default_rng(seed)
    mean, cov = (np.zeros(dim), np.eye(dim)) if same else gaussian(rng, dim)
    space, reference = population(dim)
    truth = frechet_distance(mean, cov, reference.mean, reference.root)
    hits, raw_hits = 0, 0
    for _ in range(repeats):
        e = stream(space, reference, draw(rng, mean, cov, per_feature * dim)).compute(how)
        low, high = e.interval()
        hits += low <= truth <= high
        raw_hits += abs(e.raw - truth) <= (high - low) / 2
    return hits / repeats, raw_hits / repeats


def at_least(share, repeats):
    """Lower limit for an observed share: three binomial standard errors below the nominal one."""
    return share - 3 * math.sqrt(share * (1 - share) / repeats)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize(("dim", "per_feature"), [(16, 6), (32, 15)])
def test_band_covers_the_truth(dim, per_feature, same):
    repeats = 150
    corrected, _ = coverage(dim, per_feature, same, repeats, seed=dim)
    assert corrected >= at_least(0.93, repeats)


def test_band_around_the_raw_value_misses():
    assert coverage(64, 15, True, 10, seed=1)[1] == 0


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("per_feature", [5, 15])
@pytest.mark.parametrize(
    ("repeats", "least"), [(40, at_least(0.93, 40)), pytest.param(200, 0.90, marks=pytest.mark.slow)]
)
def test_band_covers_the_truth_and_that_of_the_raw_value_does_not(repeats, least, per_feature, same):
    corrected, raw = coverage(64, per_feature, same, repeats, seed=7)
    assert corrected >= least
    assert raw <= 0.05


def test_influence_is_the_derivative_of_the_distance():
    """Adding weight h to one sample moves FD by h * psi."""
    rng = np.random.default_rng(8)
    dim, n, h = 6, 200, 1e-6
    mean, cov = gaussian(rng, dim)
    x = draw(rng, mean, cov, n)
    _, reference = population(dim)
    total = Moments.of(x)
    psi = influence(x, Moments(n, total.mean, total.scatter * (n - 1) / n), reference)
    assert abs(psi.mean()) < 1e-10

    def weighted(i, step):
        w = np.full(n, (1 - step) / n)
        w[i] += step
        m = w @ x
        c = (x - m).T * w @ (x - m)
        return frechet_distance(m, c, reference.mean, reference.root)

    for i in range(4):
        slope = (weighted(i, h) - weighted(i, -h)) / (2 * h)
        assert slope == pytest.approx(psi[i], rel=1e-4, abs=1e-4)


def test_two_errors_agree_where_the_distributions_differ():
    rng = np.random.default_rng(9)
    mean, cov = gaussian(rng, 16)
    space, reference = population(16)
    ratios = []
    for _ in range(12):
        metric = stream(space, reference, draw(rng, mean + 0.3, cov, 480), n_blocks=20)
        ratios.append(metric.compute("jackknife").std_error / metric.compute("closed-form").std_error)
    assert np.mean(ratios) == pytest.approx(1, abs=3 / math.sqrt(2 * 19 * 12) + 0.05)


def test_extrapolation_recovers_the_truth():
    rng = np.random.default_rng(10)
    mean, cov = gaussian(rng, 8)
    space, reference = population(8)
    truth = frechet_distance(mean, cov, reference.mean, reference.root)
    runs = [stream(space, reference, draw(rng, mean, cov, 200)).compute("extrapolate") for _ in range(20)]
    values = np.array([e.value for e in runs])
    assert abs(values.mean() - truth) < 3 * values.std(ddof=1) / math.sqrt(20)
    assert all(e.raw > e.value for e in runs)
    assert sum(e.interval()[0] <= truth <= e.interval()[1] for e in runs) >= 20 * at_least(0.95, 20)


# paired comparison


def paired_runs(repeats, dim, n, shift, seed):
    """Two settings on the same noise; the second adds `shift` to the mean."""
    rng = np.random.default_rng(seed)
    space, reference = population(dim)
    for _ in range(repeats):
        x = rng.normal(size=(n, dim)) * 1.2 + 0.2
        noise = 0.1 * rng.normal(size=(n, dim))
        yield stream(space, reference, x), stream(space, reference, x + noise + shift)


def test_paired_difference_is_sharper_and_calibrated():
    dim, n, shift, repeats = 8, 200, 0.05, 60
    base = population(dim)[1]
    a = frechet_distance(np.full(dim, 0.2), 1.44 * np.eye(dim), base.mean, base.root)
    b = frechet_distance(np.full(dim, 0.2 + shift), 1.45 * np.eye(dim), base.mean, base.root)
    values, errors, unpaired, hits = [], [], [], 0
    for first, second in paired_runs(repeats, dim, n, shift, seed=11):
        d = second.difference(first)
        values.append(d.value)
        errors.append(d.std_error)
        unpaired.append(math.hypot(first.compute().std_error, second.compute().std_error))
        low, high = d.interval()
        hits += low <= b - a <= high
        assert d.value == pytest.approx(-first.difference(second).value)
    assert np.mean(errors) < 0.5 * np.mean(unpaired)
    assert abs(np.mean(values) - (b - a)) < 3 * np.std(values) / math.sqrt(repeats)
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=0.3)
    assert hits / repeats >= at_least(0.95, repeats)
    assert d.dof == 9 and "FD[r8]" in d.name


def test_difference_with_oneself_is_exactly_zero():
    (a, _), *_ = paired_runs(1, 8, 200, 0.0, seed=12)
    d = a.difference(a)
    assert d.value == 0 and d.std_error == 0 and not d.differs_from()


def test_incomparable_metrics_are_refused():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 4))
    space, reference = population(4)
    other = Reference(space.name, space.hash, 50, np.ones(4), np.eye(4))
    a = stream(space, reference, x)
    with pytest.raises(BadValue, match="same seeds"):
        a.difference(stream(space, reference, x[:90]))
    with pytest.raises(BadValue, match="not measured in the same way"):
        a.difference(stream(space, other, x))
    with pytest.raises(BadValue, match="not measured in the same way"):
        a.merge(stream(space, reference, x, n_blocks=5))


# reference


def test_reference_round_trip_and_mismatch(tmp_path):
    rng = np.random.default_rng(0)
    space = FeatureSpace("net", 5, lambda x: x, "abc")
    x = torch.from_numpy(rng.normal(size=(2100, 5)))
    reference = Reference.of(space, x, data="toy/train")
    assert np.allclose(reference.cov, np.cov(x.numpy().T), rtol=1e-10)
    reference.save(tmp_path / "ref.npz")
    again = Reference.load(tmp_path / "ref.npz")
    assert again.digest == reference.digest and again.data == "toy/train" and again.n == 2100
    assert np.array_equal(again.cov, reference.cov)
    assert [p.name for p in tmp_path.iterdir()] == ["ref.npz"]
    for wrong in (FeatureSpace("net", 5, lambda x: x, "abd"), FeatureSpace("other", 5, lambda x: x, "abc")):
        with pytest.raises(BadValue, match="Rebuild the reference"):
            Frechet(wrong, again)


def test_broken_reference_files_are_refused(tmp_path):
    space, reference = population(3)
    good = tmp_path / "good.npz"
    reference.save(good)
    (tmp_path / "cut.npz").write_bytes(good.read_bytes()[:300])
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "other.npz", mean=np.zeros(3))
    np.savez(tmp_path / "pickle.npz", format=np.array([object()], dtype=object))
    for name in ("cut", "text", "other", "pickle", "missing"):
        with pytest.raises(BadFile, match=name):
            Reference.load(tmp_path / f"{name}.npz")


# the bundled feature space


def test_digits_features_tell_digits_from_noise():
    from explorer.data.digits import digits
    from explorer.metrics.features import feature_space

    (train, _), (test, _) = digits("train"), digits("test")
    space = feature_space("digits-cnn")
    assert space.dim == 32 and len(space.hash) == 16
    reference = Reference.of(space, train, data="digits/train")
    real, noise = Frechet(space, reference), Frechet(space, reference)
    real.update(test)
    noise.update(torch.rand(len(test), 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    real, noise = real.compute(), noise.compute()
    assert real.name == "FD[digits-cnn]"
    assert noise.value > 20 * abs(real.value) and noise.differs_from(real.value)
    assert real.raw > real.value
