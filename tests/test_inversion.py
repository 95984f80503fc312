"""Inversion against the closed form of Gaussian data, round trips against the solver's order, tests of normality against known laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from explorer.data import digits
from explorer.errors import BadValue
from explorer.models import Oracle
from explorer.models.bundled import load
from explorer.process import EDM, VP, GaussianMixture, Linear
from explorer.process.couplings import Given
from explorer.sampling import EDMStochastic, Euler, Heun, OdeSampler, TimeGrid
from explorer.trajectory.inversion import (
    decode,
    encode,
    energy_to_normal,
    forward_pairs,
    inverter,
    mean_distance_to_normal,
    normality,
    normality_verdict,
    round_trip,
    round_trip_by_steps,
)
from tests.problems import gaussian_map, ring


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(std: float, shape=(3,), path=None, low: float = 0.01) -> Oracle:
    path = path or EDM()
    return Oracle(GaussianMixture(torch.zeros(1, *shape), std), path, t_range=(path.time_at(low), path.time_at(80.0)))


@pytest.mark.parametrize("path", [EDM(), VP(), Linear()])
def test_codes_of_gaussian_data_are_the_data_scaled(path):
    s, model = 0.5, gaussian(0.5, path=path)
    x = s * normal(20, 3)
    expected = x / math.sqrt(s**2 + 0.01**2) * math.sqrt(s**2 + 80.0**2) / 80.0
    code = encode(model, x, batch=7)  # 64 steps of RK4
    torch.testing.assert_close(code, expected, rtol=1e-5, atol=1e-6)
    there = gaussian_map(path, code, s, 80.0, 0.01) / path.at(path.time_at(0.01))[0]
    torch.testing.assert_close(decode(model, code), there, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(decode(model, code), x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("solver", "order"), [(Euler(), 1), (Heun(), 2)])
@pytest.mark.parametrize("start", ["data", "noise"])
def test_a_round_trip_errs_with_the_order_of_the_solver(solver, order, start):
    model = gaussian(0.5)
    points = normal(10, 3) * (0.5 if start == "data" else 1.0)
    table = round_trip_by_steps(model, points, (64, 128), solver=solver, start=start)
    slope = math.log2(float(table.rmse[0] / table.rmse[1]))
    # out and back cancel the odd terms of the error on a symmetric path, so the order may come out one higher
    assert order - 0.3 < slope < order + 1.4
    assert table.nfe.values.tolist() == [2 * order * 64, 2 * order * 128]


def test_the_round_trip_table_says_what_was_lost():
    model, x = gaussian(0.5), 0.5 * normal(10, 3)
    found = round_trip(model, x, inverter(model, 12, solver=Heun()))
    assert np.allclose(found.error, np.linalg.norm(found.returned - found.points, axis=1))
    assert float(found.rmse) == pytest.approx(math.sqrt(float((found.error**2).mean()) / 3))
    assert found.attrs["nfe"] == 48 and found.attrs["n_steps"] == 12
    assert np.allclose(found.points, x)
    back = round_trip(model, torch.as_tensor(found.other.values), inverter(model, 12, solver=Heun()), start="noise")
    assert np.allclose(back.other, found.returned)  # decoding the code is the second half of the first trip
    fine = round_trip(model, x)
    assert float(fine.rmse) < 0.01 * float(found.rmse)


def test_codes_of_a_mixture_return_and_belong_to_the_noise_that_made_them():
    model = Oracle(ring(4, 0.66, 0.2), t_range=(0.05, 80.0))
    noise = normal(40, 2)
    x = decode(model, noise, inverter(model, 48))
    # one to one: re-encoding finds the noise again, to the solver's error
    torch.testing.assert_close(encode(model, x, inverter(model, 48)), noise, rtol=0, atol=5e-3)


def test_a_grid_that_ends_at_data_is_inverted_from_its_last_positive_level():
    model, x = gaussian(0.5), 0.5 * normal(5, 3)
    to_zero = OdeSampler(Heun(), TimeGrid.karras(21, 0.01, 80.0))
    without = OdeSampler(Heun(), TimeGrid.karras(20, 0.01, 80.0, to_zero=False))
    torch.testing.assert_close(encode(model, x, to_zero), encode(model, x, without), rtol=1e-12, atol=0)


def test_points_on_a_line_have_short_codes_unless_the_smallest_noise_is_added():
    """Data without width in one direction: as they are their code there is 0, with the noise of sigma_min it is N(0, 1)."""
    flat = GaussianMixture(torch.zeros(1, 2), covs=torch.diag(torch.tensor([0.25, 0.0]))[None])
    model = Oracle(flat, t_range=(0.01, 80.0))
    x, _ = flat.sample(600, torch.Generator().manual_seed(0))
    bare, noised = encode(model, x, inverter(model, 24)), encode(model, x, inverter(model, 24), seeds=range(600))
    assert float(bare[:, 1].abs().max()) < 1e-12 and float(bare[:, 0].std()) == pytest.approx(
        1, abs=4 / math.sqrt(1200)
    )
    assert float(noised[:, 1].std()) == pytest.approx(1, abs=4 / math.sqrt(1200))
    assert "no test tells" in normality_verdict(normality(noised))
    assert torch.equal(encode(model, x[5:6], inverter(model, 24), seeds=[5]), noised[5:6])
    with pytest.raises(BadValue, match="one seed per data point"):
        encode(model, x, seeds=[1])


def test_codes_of_the_digits_model_bring_the_digits_back_and_pairs_train_on_the_data():
    model = load("digits")
    images, labels = digits("test")
    x, y = images[:4], labels[:4]
    sampler = inverter(model, 16, solver=Heun())
    found = round_trip(model, x, sampler, y)
    assert float(found.rmse) < 0.25 and found.other.dims == ("sample", "channel", "row", "col")
    pairs = forward_pairs(model, x, sampler, y)
    assert torch.equal(pairs.data, x.double()) and torch.equal(pairs.labels, y)
    assert np.allclose(pairs.noise, found.other)
    # the codes are noise-like: of length about sqrt(D)
    assert 0.6 < float(pairs.noise.flatten(1).norm(dim=1).mean()) / 8 < 1.4
    batch = Given(*pairs[:3]).draw(3, torch.Generator().manual_seed(0))
    assert len(batch.cost) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: encode(m, torch.zeros(2, 3), OdeSampler(EDMStochastic(), TimeGrid.karras(8, 0.01, 80.0))),
            "no inverse",
        ),
        (lambda m: encode(m, torch.zeros(2, 4)), "takes points"),
        (lambda m: encode(m, torch.zeros(2, 3), OdeSampler(Heun(), TimeGrid((80.0, 0.0)))), "no step to invert"),
        (lambda m: encode(m, torch.zeros(2, 3), Heun()), "made of a solver and a grid"),
        (lambda m: round_trip(m, torch.zeros(2, 3), start="code"), "starts at"),
    ],
)
def test_what_has_no_inverse_is_refused(call, message):
    with pytest.raises(BadValue, match=message):
        call(gaussian(0.5))


def test_churn_of_zero_adds_no_noise_and_is_inverted():
    model, x = gaussian(0.5), 0.5 * normal(4, 3)
    grid = TimeGrid.karras(12, 0.01, 80.0)
    calm = encode(model, x, OdeSampler(EDMStochastic(s_churn=0.0), grid))
    torch.testing.assert_close(calm, encode(model, x, OdeSampler(Heun(), grid)), rtol=1e-12, atol=0)


# Are the codes normal?


@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)])
def test_normal_codes_pass_every_test(shape):
    found = normality(normal(1500, *shape))
    n, d = 1500, math.prod(shape)
    assert found.attrs["n"] == n and found.attrs["dim"] == d
    assert float(np.abs(found["mean"]).max()) < 4.5 * found.attrs["mean_se"]
    assert found.attrs["mean_se"] == pytest.approx(1 / math.sqrt(n))
    assert float(np.abs(found["std"] - 1).max()) < 4.5 * found.attrs["std_se"]
    assert abs(float(found.norm2) - 1) < 4 * float(found.norm2_se)
    assert float(found.norm2_se) == pytest.approx(math.sqrt(2 / d / n), rel=0.2)
    assert abs(float(found.energy)) < 4 * float(found.energy_se)
    assert float(found.covariance_gap) == pytest.approx(float(found.covariance_floor), rel=0.6)
    assert "no test tells the codes from N(0, I)" in normality_verdict(found)
    assert ("pixel_correlation" in found) == (len(shape) == 3)
    assert np.abs(found.observed - found.expected).max() < 0.25
    assert np.abs(found.norm_observed - found.norm_expected).max() < 0.5


def test_p_values_are_uniform_under_normality():
    """20 samples of 400 codes: each test rejects at 10 % about twice, never more than 7 times (probability 0.2 %)."""
    found = [normality(normal(400, 3, seed=k)) for k in range(20)]
    for name in ("norm_p", "skewness_p", "kurtosis_p", "ks_p_min"):
        assert sum(float(f[name]) < 0.1 for f in found) <= 7, name
    z = [float(f.energy) / float(f.energy_se) for f in found]
    assert max(map(abs, z)) < 4 and np.mean([float(f.energy) for f in found]) == pytest.approx(0, abs=0.004)


def test_mardias_tests_are_calibrated_where_points_are_few_for_their_dimension():
    """100 points in 64 dimensions: the asymptotic kurtosis is off by 5 standard deviations there, the exact moments are not."""
    found = [normality(normal(100, 64, seed=k)) for k in range(12)]
    p = np.array([[float(f.skewness_p), float(f.kurtosis_p)] for f in found])
    # uniform p-values: the least of 12 is below 0.001 with a probability of 1.2 %, their mean has an error of 0.083
    assert p.min() > 1e-3 and np.abs(p.mean(axis=0) - 0.5).max() < 0.3


@pytest.mark.parametrize(
    ("change", "rejecting"),
    [
        (lambda z: z + torch.tensor([0.3, 0.0, 0.0]), "marginals"),
        (lambda z: 1.2 * z, "norms"),
        (lambda z: z.sign() * z.abs() ** 1.5 / 1.3, "kurtosis"),
        (lambda z: (z.exp() - math.exp(0.5)) / math.sqrt(math.e * (math.e - 1)), "skewness"),
        # uncorrelated and of unit variance, but the dimensions are large together
        (lambda z: z * _radial(len(z)), "kurtosis"),
    ],
)
def test_each_departure_is_named(change, rejecting):
    said = normality_verdict(normality(change(normal(1200, 3))))
    assert "not N(0, I)" in said and rejecting in said, said


def _radial(n: int) -> torch.Tensor:
    """A factor of mean square one, common to all dimensions of a code: uncorrelated and yet dependent dimensions."""
    half = torch.arange(n) % 2 == 0
    return torch.where(half, 0.6, math.sqrt(2 - 0.36)).double()[:, None]


def test_mardias_numbers_are_those_of_the_definition_and_blind_to_affine_maps():
    z = normal(60, 3).exp()
    found = normality(z)
    centred = (z - z.mean(0)).numpy()
    inverse = np.linalg.inv(centred.T @ centred / 60)
    gram = centred @ inverse @ centred.T
    assert float(found.skewness) == pytest.approx((gram**3).mean())
    assert float(found.kurtosis) == pytest.approx((np.diag(gram) ** 2).mean() / 15)
    moved = normality(z @ normal(3, 3, seed=5) + 2.0)
    assert float(moved.skewness) == pytest.approx(float(found.skewness))
    one = normality(z[:, :1])  # in one dimension: the square of the usual skewness, the usual kurtosis over 3
    assert float(one.skewness) == pytest.approx(stats.skew(z[:, 0]) ** 2)
    assert float(one.kurtosis) == pytest.approx(stats.kurtosis(z[:, 0], fisher=False) / 3)
    assert float(one.ks[0]) == pytest.approx(stats.kstest(z[:, 0].numpy(), "norm").statistic)
    assert float(one.ks_p[0]) == pytest.approx(stats.kstest(z[:, 0].numpy(), "norm").pvalue, rel=1e-6)


@pytest.mark.parametrize("dim", [1, 2, 7, 64])
def test_the_mean_distance_to_a_normal_is_the_hypergeometric_closed_form(dim):
    from scipy.special import gammaln, hyp1f1

    square = np.array([0.0, 0.5, 4.0, float(dim), 3.0 * dim])
    expected = math.sqrt(2) * np.exp(gammaln((dim + 1) / 2) - gammaln(dim / 2)) * hyp1f1(-0.5, dim / 2, -square / 2)
    np.testing.assert_allclose(mean_distance_to_normal(square, dim), expected, rtol=1e-9)


def test_the_mean_distance_to_a_normal_in_many_dimensions():
    """In D dimensions |x - N|^2 has mean |x|^2 + D and variance 2 D + 4 |x|^2; the next order of the root is known."""
    d, square = 3072, 3072.0
    mean, var = square + d, 2 * d + 4 * square
    expected = math.sqrt(mean) * (1 - var / (8 * mean**2))
    assert float(mean_distance_to_normal(np.array([square]), d)[0]) == pytest.approx(expected, rel=1e-6)


def test_the_energy_distance_of_a_shifted_normal_is_its_closed_form():
    """N(m, I) against N(0, I): 2 E|m + sqrt(2) N| - 2 E|sqrt(2) N|."""
    m = torch.tensor([1.0, 0.5], dtype=torch.float64)

    def root(square: float) -> float:
        return math.sqrt(2) * float(mean_distance_to_normal(np.array([square / 2]), 2)[0])

    value, error = energy_to_normal(normal(3000, 2) + m)
    assert value == pytest.approx(2 * root(float(m @ m)) - 2 * root(0.0), abs=4 * error)
    assert error < 0.05


def test_too_few_codes_or_codes_on_a_plane_are_not_judged():
    with pytest.raises(BadValue, match="at least 8"):
        normality(normal(7, 2))
    with pytest.raises(BadValue, match="not finite"):
        normality(torch.full((20, 2), math.nan))
    flat = normality(normal(10, 20))
    assert math.isnan(float(flat.skewness)) and "Mardia" not in normality_verdict(flat)
