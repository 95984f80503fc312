"""Kernel, transport, mode and memorisation metrics against closed forms, brute force and independent libraries."""

import math

import numpy as np
import pytest
import torch

from explorer.errors import BadValue
from explorer.metrics import METRICS, Memorisation, ModeCoverage, Reference, frechet_distance
from explorer.metrics.features import points_space
from explorer.metrics.frechet import Frechet
from explorer.metrics.kernel import KernelDistance, energy_distance, kid, rbf_mmd
from explorer.metrics.points import (
    ExactW2,
    SlicedW2,
    sliced_w2_gaussians,
    wasserstein2,
    wasserstein2_1d,
)

M1, M2 = np.array([0.4, -0.2]), np.array([0.0, 0.1])
S1, S2 = np.array([[1.0, 0.3], [0.3, 0.6]]), np.array([[0.8, -0.2], [-0.2, 1.2]])
XY = points_space(2)
PAIRS = {
    "kid": lambda y: kid(XY, y),
    "mmd": lambda y: rbf_mmd(XY, y, 1.0),
    "energy": lambda y: energy_distance(XY, y),
    "sw2": lambda y: SlicedW2(XY, y, n_directions=64),
    "w2": lambda y: ExactW2(XY, y, max_n=200),
    "w2-debiased": lambda y: ExactW2(XY, y, max_n=200, debias=True),
    "fd": lambda y: Frechet(XY, Reference.of(XY, y)),
    "modes": lambda y: ModeCoverage(torch.tensor([[0.0, 0.0], [1.0, 1.0], [-1.0, 0.0]]), 0.7, quantity="kl"),
    "memorisation": lambda y: Memorisation(XY, y, y.flip(0)[: len(y) // 2] + 0.1),
}


def draw(rng, mean, cov, n):
    return torch.from_numpy(rng.normal(size=(n, len(mean))) @ np.linalg.cholesky(cov).T + mean)


def at_least(share, repeats):
    return share - 3 * math.sqrt(share * (1 - share) / repeats)


# shared behaviour


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS.keys())
def test_batches_merge_pairing_and_refusals(make):
    rng = np.random.default_rng(0)
    y, x = draw(rng, M2, S2, 240), draw(rng, M1, S1, 230)
    shifted = x + 0.05
    once = make(y)
    once.update(x)
    twice = once.empty()
    assert twice.n == 0 and twice.key == once.key
    for piece in x.split(37):
        with torch.inference_mode():
            twice.update(piece.clone())
        frozen = twice.empty()
        frozen.merge(twice)
        assert frozen.compute() == twice.compute() or frozen.n < 60
    seen = frozen.n
    twice_more = frozen.compute()
    first, second = once.empty(), once.empty()
    first.update(x[:101])
    second.update(x[101:])
    first.merge(second)
    want = once.compute()
    assert want.n == 230 and math.isfinite(want.value) and want.std_error > 0
    for other in (twice, first):
        got = other.compute()
        if isinstance(once, ModeCoverage) and other is first:  # its jackknife blocks are other ones than in one pass
            assert got.value == pytest.approx(want.value, abs=0.3 * want.std_error)
            assert got.std_error == pytest.approx(want.std_error, rel=0.7)
            continue
        assert got.value == pytest.approx(want.value, rel=1e-9, abs=1e-12)
        assert got.std_error == pytest.approx(want.std_error, rel=1e-6)
    b = once.empty()
    b.update(shifted)
    twice.update(shifted)
    assert frozen.n == seen and frozen.compute() == twice_more
    d = b.difference(once)
    assert d.value == pytest.approx(b.compute().value - want.value)
    assert d.std_error < math.hypot(want.std_error, b.compute().std_error)
    assert once.difference(once).std_error == 0
    assert make(y).compute().note.startswith("not enough samples")
    with pytest.raises(BadValue, match="same seeds"):
        once.difference(second)
    b.update(x)


def test_catalogue_has_a_line_for_each():
    assert all(callable(make) and line and "\n" not in line for make, line in METRICS.values())


# kernels


def poly_cross(m1, c1, m2, c2):
    """E (x.y/d + 1)^3 of two independent Gaussians."""
    d, a = len(m1), m1 @ m2
    left, right, trace = m2 @ c1 @ m2, m1 @ c2 @ m1, np.trace(c1 @ c2)
    second = a**2 + left + right + trace
    third = a**3 + 3 * a * left + 3 * a * (right + trace) + 6 * m2 @ c1 @ c2 @ m1
    return third / d**3 + 3 * second / d**2 + 3 * a / d + 1


def rbf_cross(m1, c1, m2, c2, h=1.0):
    total, gap = h**2 * np.eye(len(m1)) + c1 + c2, m1 - m2
    return np.linalg.det(total / h**2) ** -0.5 * math.exp(-0.5 * gap @ np.linalg.solve(total, gap))


def mmd_of(cross, m1, c1, m2, c2):
    return cross(m1, c1, m1, c1) + cross(m2, c2, m2, c2) - 2 * cross(m1, c1, m2, c2)


def test_kid_oracle_itself():
    """Zero means: 3 |S1 - S2|_F^2 / d^2 in two independent forms."""
    zero = np.zeros(2)
    assert mmd_of(poly_cross, zero, S1, zero, S2) == pytest.approx(3 * ((S1 - S2) ** 2).sum() / 4, rel=1e-12)


@pytest.mark.parametrize(("name", "cross"), [("kid", poly_cross), ("mmd", rbf_cross)])
def test_kernel_distance_of_gaussians_has_its_closed_form(name, cross):
    rng = np.random.default_rng(1)
    truth = mmd_of(cross, M1, S1, M2, S2)
    repeats, hits, estimates = 40, 0, []
    for _ in range(repeats):
        metric = PAIRS[name](draw(rng, M2, S2, 300))
        metric.update(draw(rng, M1, S1, 300))
        e = metric.compute()
        low, high = e.interval()
        hits += low <= truth <= high
        estimates.append((e.value, e.std_error))
    values, errors = np.array(estimates).T
    spread = values.std(ddof=1)
    assert abs(values.mean() - truth) < 3 * spread / math.sqrt(repeats)
    assert errors.mean() == pytest.approx(spread, rel=3 / math.sqrt(2 * repeats) + 0.1)
    assert hits >= repeats * at_least(0.93, repeats)


def test_energy_distance_of_gaussians_on_the_line():
    rng = np.random.default_rng(2)

    def mean_abs(mu, var):
        s = math.sqrt(var)
        folded = s * math.sqrt(2 / math.pi) * math.exp(-(mu**2) / (2 * var))
        return folded + mu * math.erf(mu / (s * math.sqrt(2)))

    truth = 2 * mean_abs(0.5, 1.0 + 0.49) - mean_abs(0, 2.0) - mean_abs(0, 0.98)
    values = []
    for _ in range(20):
        metric = energy_distance(points_space(1), torch.from_numpy(0.7 * rng.normal(size=(400, 1))))
        metric.update(torch.from_numpy(rng.normal(size=(400, 1)) + 0.5))
        values.append(metric.compute().value)
    assert abs(np.mean(values) - truth) < 3 * np.std(values, ddof=1) / math.sqrt(20)


def test_unbiased_kid_of_equal_distributions_averages_zero_and_is_often_negative():
    rng = np.random.default_rng(3)
    values, z = [], []
    for _ in range(60):
        metric = kid(XY, draw(rng, M2, S2, 200))
        metric.update(draw(rng, M2, S2, 200))
        e = metric.compute()
        values.append(e.value)
        z.append(e.value / e.std_error)
    assert abs(np.mean(values)) < 3 * np.std(values, ddof=1) / math.sqrt(60)
    assert 0.3 < np.mean(np.array(values) < 0) < 0.85
    assert np.mean(np.abs(z) > 1.96) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 60)


def test_kernel_replicates_are_brute_force_leave_one_out():
    rng = np.random.default_rng(4)
    x, y = draw(rng, M1, S1, 9), draw(rng, M2, S2, 7)
    metric = kid(XY, y)
    metric.update(x[:4])
    metric.compute()
    metric.update(x[4:])

    def brute(x, y):
        def k(a, b):
            return (a @ b.T / 2 + 1) ** 3

        def off(a):
            m = k(a, a)
            return (m.sum() - m.diagonal().sum()) / (len(a) * (len(a) - 1))

        return float(off(x) + off(y) - 2 * k(x, y).mean())

    value, (less_x, less_y) = metric.replicates()
    assert value == pytest.approx(brute(x, y), rel=1e-10)
    keep = [torch.arange(9) != i for i in range(9)]
    assert np.allclose(less_x, [brute(x[k], y) for k in keep], rtol=1e-9)
    keep = [torch.arange(7) != i for i in range(7)]
    assert np.allclose(less_y, [brute(x, y[k]) for k in keep], rtol=1e-9)


@pytest.mark.parity
def test_kid_equals_torchmetrics_on_one_full_subset():
    module = pytest.importorskip("torchmetrics.image.kid", reason="torchmetrics is not installed")
    rng = np.random.default_rng(5)
    x, y = draw(rng, M1, S1, 50), draw(rng, M2, S2, 50)
    metric = kid(XY, y)
    metric.update(x)
    assert metric.compute().value == pytest.approx(float(module.poly_mmd(x, y)), rel=1e-9)


def test_bandwidth_is_checked_and_part_of_the_key():
    y = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    assert rbf_mmd(XY, y).key == rbf_mmd(XY, y).key != rbf_mmd(XY, y, 1.0).key
    assert isinstance(rbf_mmd(XY, y), KernelDistance)
    with pytest.raises(BadValue, match="positive"):
        rbf_mmd(XY, y, 0.0)


# transport


def test_exact_w2_on_the_line_is_the_sorted_difference():
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(501, 1)), 2 * rng.normal(size=(501, 1)) + 1
    want = ((np.sort(x, 0) - np.sort(y, 0)) ** 2).mean()
    assert wasserstein2(x, y) == pytest.approx(want, abs=1e-10)
    flat = np.concatenate([x, np.zeros_like(x)], 1), np.concatenate([y, np.zeros_like(y)], 1)
    assert wasserstein2(*flat) == pytest.approx(want, abs=1e-10)


@pytest.mark.parametrize(("n", "m"), [(6, 4), (7, 5), (1, 3), (12, 12)])
def test_unequal_sizes_on_the_line(n, m):
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=n), rng.normal(size=m)
    every = math.lcm(n, m)
    want = ((np.sort(np.repeat(x, every // n)) - np.sort(np.repeat(y, every // m))) ** 2).mean()
    assert wasserstein2_1d(x, y) == pytest.approx(want, rel=1e-12)


@pytest.mark.parity
def test_exact_w2_equals_pot_and_linear_assignment(monkeypatch):
    ot = pytest.importorskip("ot", reason="POT is not installed")
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(120, 3)), rng.normal(size=(120, 3)) + 0.5
    got = wasserstein2(x, y)
    assert got == pytest.approx(float(ot.solve_sample(x, y).value), rel=1e-9)
    monkeypatch.setitem(__import__("sys").modules, "ot", None)
    assert wasserstein2(x, y) == pytest.approx(got, rel=1e-12)
    with pytest.raises(BadValue, match="POT"):
        wasserstein2(x, y[:50])


def test_frechet_on_the_plane_is_below_exact_w2():
    """Gelbrich's bound holds for any two sets when the moments are theirs, denominator n."""
    rng = np.random.default_rng(8)
    for _ in range(5):
        x, y = rng.uniform(size=(100, 2)), rng.normal(size=(100, 2)) ** 3
        moments = [(a.mean(0), np.cov(a.T, ddof=0)) for a in (x, y)]
        assert frechet_distance(*moments[0], *moments[1]) <= wasserstein2(x, y) + 1e-12


def test_sliced_oracle_for_isotropic_gaussians():
    d, gap = 5, np.full(5, 0.3)
    directions = np.random.default_rng(0).normal(size=(d, 20000))
    directions /= np.linalg.norm(directions, axis=0)
    got = sliced_w2_gaussians(gap, 4 * np.eye(d), 0 * gap, np.eye(d), directions)
    assert got**2 == pytest.approx(gap @ gap / d + 1, rel=2e-2 / math.sqrt(2))


def test_sliced_w2_of_gaussians_has_its_closed_form():
    rng = np.random.default_rng(9)
    repeats, hits, estimates = 30, 0, []
    for _ in range(repeats):
        metric = SlicedW2(XY, draw(rng, M2, S2, 3000), n_directions=64)
        metric.update(draw(rng, M1, S1, 2000))
        truth = sliced_w2_gaussians(M1, S1, M2, S2, metric.directions)
        e = metric.compute()
        low, high = e.interval()
        hits += low <= truth <= high
        estimates.append((e.value, e.std_error))
    values, errors = np.array(estimates).T
    # the plain value is high by its finite-sample noise, about floor^2 / (2 value)
    assert abs(values.mean() - truth) < 3 * values.std(ddof=1) / math.sqrt(repeats) + 0.05**2 / (2 * truth)
    assert errors.mean() == pytest.approx(values.std(ddof=1), rel=3 / math.sqrt(2 * repeats) + 0.1)
    assert hits >= repeats * at_least(0.93, repeats)


def ring(rng, n, std=0.05, radius=0.65):
    angle = rng.integers(0, 8, n) * math.pi / 4
    return torch.from_numpy(radius * np.stack([np.cos(angle), np.sin(angle)], 1) + std * rng.normal(size=(n, 2)))


def test_sliced_w2_noise_floor_on_the_ring():
    rng = np.random.default_rng(10)
    values, floors = [], []
    for _ in range(6):
        metric = SlicedW2(XY, ring(rng, 4000), n_directions=64)
        metric.update(ring(rng, 4000))
        e = metric.compute()
        values.append(e.value)
        floors.append(float(e.note.split()[-1]))
    assert 0.01 < np.mean(values) < 0.05
    assert np.mean(floors) == pytest.approx(np.mean(values), rel=0.6)


def test_debiased_w2_of_equal_distributions_averages_zero():
    rng = np.random.default_rng(11)
    plain, debiased = [], []
    for _ in range(12):
        x, y = draw(rng, M2, S2, 100), draw(rng, M2, S2, 100)
        for keep, debias in ((plain, False), (debiased, True)):
            metric = ExactW2(XY, y, debias=debias)
            metric.update(x)
            keep.append(metric.compute())
    assert min(e.value for e in plain) > 0.1
    square = np.array([math.copysign(e.value**2, e.value) for e in debiased])
    assert abs(square.mean()) < 3 * square.std(ddof=1) / math.sqrt(12)
    assert sum(e.differs_from() for e in debiased) <= 3


# modes


def test_modes_are_counted_where_they_are():
    rng = np.random.default_rng(12)
    centres = torch.tensor([[math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)] for k in range(8)])
    seen = rng.integers(0, 5, 1000)
    x = centres[seen] + 0.03 * torch.from_numpy(rng.normal(size=(1000, 2)))
    x[:100] = 0.0
    metric = ModeCoverage(centres, 0.2)
    metric.update(x)
    parts = metric.all()
    assert parts["covered"].value == 5 == (metric.histogram > 0).sum()
    assert parts["quality"].value == 0.9
    assert parts["quality"].std_error == pytest.approx(math.sqrt(0.09 / 1000), rel=0.02)
    p = metric.histogram[:5] / 900
    assert parts["kl"].raw == pytest.approx((p * np.log(p * 8)).sum())
    assert metric.compute() == parts["covered"] and not metric.lower_is_better
    with pytest.raises(BadValue, match="2-D"):
        metric.update(torch.zeros(3, 5))
    with pytest.raises(BadValue, match="covered, quality"):
        ModeCoverage(centres, 0.2, quantity="all")


def test_mode_histogram_divergence_is_unbiased_and_calibrated():
    rng = np.random.default_rng(13)
    centres, weights = torch.eye(6), torch.tensor([3.0, 1, 1, 1, 1, 1])
    estimates = []
    for _ in range(200):
        metric = ModeCoverage(centres, 0.5, weights, quantity="kl")
        metric.update(centres[rng.choice(6, 400, p=weights.double().numpy() / 8)])
        estimates.append(metric.compute())
    values = np.array([e.value for e in estimates])
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(200)
    assert np.mean([e.raw for e in estimates]) == pytest.approx(5 / 800, rel=0.2)
    assert np.mean([e.differs_from() for e in estimates]) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)


# memorisation


@pytest.mark.parametrize("cosine", [False, True])
def test_copies_are_found_and_unseen_data_are_not(cosine):
    rng = np.random.default_rng(14)
    space = points_space(6)
    train, test, unseen = (torch.from_numpy(rng.normal(size=(n, 6))) for n in (500, 200, 300))
    metric = Memorisation(space, train, test, cosine=cosine)
    copies, honest = metric.empty(), metric.empty()
    copies.update(train[100:250])
    honest.update(unseen)
    assert copies.compute().value == 1.0
    assert np.array_equal(copies.nearest, np.arange(100, 250))
    assert copies.distances.max() < 1e-6
    assert copies.summary()["near_copies"] == 1.0 and copies.summary()["p"] < 1e-10
    s = honest.summary()
    assert s["p"] > 0.01 and abs(s["nearer_than_test"] - 0.5) < 3 * math.sqrt(501 / (12 * 200 * 300))
    assert len(s["generated"]) == len(s["test"]) == len(s["quantiles"])
    half = metric.empty()
    half.update(torch.cat([train[:75], unseen[:75]]))
    e = half.compute()
    assert abs(e.value - 0.5) < 4 * e.std_error + 0.05
    assert copies.distances.shape == (150,) and metric.test_distances.shape == (200,)
    with pytest.raises(BadValue, match="20 test samples"):
        Memorisation(space, train, test[:5])


def test_ks_equals_scipy():
    from scipy import stats

    rng = np.random.default_rng(15)
    space = points_space(2)
    train, test, x = (torch.from_numpy(rng.normal(size=(n, 2)) * s) for n, s in ((300, 1), (100, 1), (120, 0.5)))
    metric = Memorisation(space, train, test)
    metric.update(x)
    theirs = stats.ks_2samp(metric.distances, metric.test_distances, alternative="greater")
    assert metric.compute().value == pytest.approx(theirs.statistic, abs=1e-12)
