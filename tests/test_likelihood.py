"""Log-likelihoods against closed forms: Gaussians, mixtures, normalisation, the variance of the probes, dequantisation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from explorer.data import digits
from explorer.errors import BadValue, UnknownName
from explorer.models import Guided, Oracle
from explorer.models.bundled import load
from explorer.nets.attention import plain_attention
from explorer.process import EDM, VP, GaussianMixture, Linear
from explorer.sampling import DDIM, Alpha2, DPMpp2M, Euler, Heun, Seeds, TimeGrid
from explorer.trajectory.likelihood import (
    dequantise,
    divergence_at,
    likelihood_by_steps,
    log_likelihood,
    tightened,
)
from tests.problems import ring, skewed


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(std: float, dim: int, path=None, sigma: tuple[float, float] = (0.01, 80.0)) -> Oracle:
    path = path or EDM()
    return Oracle(GaussianMixture(torch.zeros(1, dim), std), path, t_range=tuple(path.time_at(s) for s in sigma))


@pytest.mark.parametrize(
    ("path", "divergence"), [(EDM(), "exact"), (EDM(), "rademacher"), (VP(), "rademacher"), (Linear(), "rademacher")]
)
def test_gaussian_data_have_the_closed_form_likelihood_and_divergence(path, divergence):
    """A Rademacher probe is exact where the Jacobian is a multiple of the identity."""
    s, low, high, d = 0.5, 0.01, 80.0, 5
    model = gaussian(s, d, path)
    x = s * torch.randn(12, d, generator=generator(), dtype=torch.float64)
    found = log_likelihood(model, x, n_steps=64, divergence=divergence, data_std=s)
    blurred = s**2 + low**2  # x counts as a sample at sigma_min
    exact = -0.5 * x.square().sum(1) / blurred - 0.5 * d * math.log(2 * math.pi * blurred)
    # RK4 on 64 steps; the estimate of its own error must be of the size of the error or above
    gap = np.abs(found.log_prob.values - exact.numpy())
    assert gap.max() < 1e-4 and np.all(gap < 3 * np.abs(found.discretisation) + 1e-6)
    if path == EDM():
        total = 0.5 * d * math.log((s**2 + high**2) / blurred)
        assert np.allclose(found.divergence, total, atol=1e-4)
    norm = math.sqrt(blurred)
    assert np.allclose(found.code, x / norm * math.sqrt(s**2 + high**2) / high, atol=1e-4)
    assert found.attrs["nfe"] == 4 * 64


def test_without_the_data_in_the_prior_the_gap_is_its_closed_form():
    """With the prior N(0, T^2 I) where the marginal is N(0, (T^2 + s^2) I): seen at T = 5, gone at T = 80."""
    s, d = 0.5, 3
    x = torch.tensor([[0.5, -0.2, 0.1]], dtype=torch.float64)
    for high, size in ((5.0, 0.01), (80.0, 1e-4)):
        model = gaussian(s, d, sigma=(0.01, high))
        plain, right = (
            float(log_likelihood(model, x, n_steps=20, data_std=k, check=False).log_prob[0]) for k in (0.0, s)
        )
        end2 = float(x.square().sum()) / (s**2 + 0.01**2) * (s**2 + high**2)
        gap = -0.5 * end2 * (high**-2 - 1 / (high**2 + s**2)) + 0.5 * d * math.log1p(s**2 / high**2)
        assert plain - right == pytest.approx(gap, abs=1e-6)
        assert abs(gap) < 3 * size


@pytest.mark.parametrize("path", [EDM(), Linear()])
def test_a_mixture_has_its_analytic_density_and_integrates_to_one(path):
    mixture = ring(5, 0.66, 0.15)
    model = Oracle(mixture, path, t_range=(path.time_at(0.02), path.time_at(80.0)))
    side = torch.linspace(-1.5, 1.5, 25, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    found = log_likelihood(model, grid, n_steps=40, data_std=0.49, batch=1000)
    exact = mixture.log_prob(grid, 1.0, 0.02)
    likely = exact > -8  # far out the steps of 40 are too coarse, and nothing lives there
    assert float(np.abs(found.log_prob.values - exact.numpy())[likely.numpy()].max()) < 1e-2
    cell = float(side[1] - side[0]) ** 2  # the midpoint rule is exact to far below 1 % on a density this smooth
    assert np.exp(found.log_prob.values).sum() * cell == pytest.approx(1.0, abs=0.01)


def test_full_covariances_in_three_dimensions_and_classes():
    mixture = skewed(3)
    model = Oracle(
        mixture, t_range=(0.05, 2000.0)
    )  # the prior leaves the mean of the data out: an error of |m| |z| / sigma_max
    x, _ = mixture.sample(10, generator())
    found = log_likelihood(model, x, n_steps=60, check=False)
    assert np.allclose(found.log_prob, mixture.log_prob(x, 1.0, 0.05), atol=0.01)
    labelled = ring(4, 0.66, 0.2, labels=True)
    model = Oracle(labelled, t_range=(0.02, 2000.0))
    x, k = labelled.sample(12, generator())
    by_class = log_likelihood(model, x, k, n_steps=50, check=False)
    assert np.allclose(by_class.log_prob, labelled.log_prob(x, 1.0, 0.02, k), atol=0.01)
    wrong = log_likelihood(model, x, (k + 2) % 4, n_steps=20, check=False)
    assert float(wrong.mean_log_prob) < float(by_class.mean_log_prob) - 5


@pytest.mark.parametrize(("solver", "order"), [(Euler(), 1), (Heun(), 2), (Alpha2(0.5), 2)])
def test_the_likelihood_converges_with_the_order_of_the_solver(solver, order):
    model, x = gaussian(0.5, 2), torch.tensor([[0.3, -0.4]], dtype=torch.float64)
    blurred = 0.5**2 + 0.01**2
    exact = -0.5 * float(x.square().sum()) / blurred - math.log(2 * math.pi * blurred)
    gaps = []
    for n in (40, 80):
        found = log_likelihood(model, x, n_steps=n, solver=solver, data_std=0.5)
        gaps.append(abs(float(found.log_prob[0]) - exact))
    assert math.log2(gaps[0] / gaps[1]) == pytest.approx(order, abs=0.4)
    assert float(np.abs(found.discretisation[0])) == pytest.approx(gaps[1], rel=0.5)


def test_the_table_by_steps_settles_on_the_exact_number_and_counts_its_cost():
    mixture = ring(5, 0.66, 0.15)
    model = Oracle(mixture, t_range=(0.02, 80.0))
    x, _ = mixture.sample(50, generator())
    table = likelihood_by_steps(model, x, steps=(8, 16, 32), width=0.1)
    assert table.nfe.values.tolist() == [32, 64, 128] and math.isnan(float(table.change[0]))
    exact = mixture.log_prob(x, 1.0, 0.02)
    gaps = np.abs(table.mean_log_prob - float(exact.mean())).values
    assert gaps[2] < 0.1 * gaps[0] and float(table.change[2]) < float(table.change[1])
    assert np.allclose(table.mean_log_prob_se[-1], float(exact.std()) / math.sqrt(50), rtol=0.02)
    bits = -table.mean_log_prob / (2 * math.log(2)) - math.log2(0.1)
    assert np.allclose(table.mean_bits_per_dim, bits)


# The divergence


def test_the_trace_is_that_of_the_jacobian_and_probes_have_the_variance_of_the_formula():
    mixture, d = skewed(6, 3), 6
    model = Oracle(mixture)
    x, t = torch.randn(1, d, generator=generator(), dtype=torch.float64), 0.7
    jacobian = torch.func.jacrev(lambda y: model.velocity(y[None], t)[0])(x[0])
    v, trace = divergence_at(model, x, t)
    torch.testing.assert_close(v, model.velocity(x, t))
    assert float(trace) == pytest.approx(float(jacobian.trace()), rel=1e-10)
    symmetric = (jacobian + jacobian.T) / 2
    off = symmetric - torch.diag(symmetric.diagonal())
    variance = {"rademacher": 2 * float(off.square().sum()), "gaussian": 2 * float(symmetric.square().sum())}
    n = 3000
    normal = torch.randn(n, 1, d, generator=generator(1), dtype=torch.float64)
    for kind, probes in (("rademacher", normal.sign()), ("gaussian", normal)):
        _, found = divergence_at(model, x.expand(n, d), t, probes=probes.transpose(0, 1))
        assert abs(float(found.mean()) - float(trace)) < 4 * math.sqrt(variance[kind] / n)
        assert float(found.var()) == pytest.approx(
            variance[kind], rel=0.15
        )  # a variance from 3000 draws errs by some 3 %


@pytest.mark.parametrize("name", ["digits"])
def test_the_divergence_of_a_network_agrees_with_forward_mode_and_finite_differences(name):
    model = load(name)
    images, labels = digits("test")
    x, y, t = images[:3].double(), labels[:3], 0.8
    probe = torch.randn(1, 3, 1, 8, 8, generator=generator(), dtype=torch.float64).sign()
    v, found = divergence_at(model, x, t, y, probes=probe)
    with torch.no_grad(), plain_attention():
        value, slope = torch.func.jvp(lambda z: model.velocity(z, t, y), (x,), (probe[0],))
    # the network runs in float32: 1e-4 of the size of the terms
    torch.testing.assert_close(v, value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[:, 0], (probe[0] * slope).flatten(1).sum(1), rtol=1e-3, atol=1e-2)
    h = 1e-2
    with torch.no_grad():
        gap = (model.velocity(x + h * probe[0], t, y) - model.velocity(x - h * probe[0], t, y)) / (2 * h)
    torch.testing.assert_close(found[:, 0], (probe[0] * gap).flatten(1).sum(1), rtol=0.02, atol=0.3)


def test_probes_are_unbiased_kept_along_the_path_and_their_spread_is_reported():
    mixture = skewed(4, 3, seed=1)
    model = Oracle(mixture, t_range=(0.1, 80.0))
    x, _ = mixture.sample(6, generator())
    exact = log_likelihood(model, x, n_steps=6, divergence="exact", check=False)
    for kind in ("rademacher", "gaussian"):
        found = log_likelihood(model, x, n_steps=6, divergence=kind, n_probes=30, check=False)
        error = found.probe_std.values / math.sqrt(30)
        assert (np.abs(found.log_prob - exact.log_prob).values < 4 * error + 1e-9).all()
        assert np.allclose(found.log_prob_by_probe.mean("probe"), found.log_prob)
        combined = math.sqrt(float((error**2).sum())) / 6
        assert float(found.mean_log_prob_probe_se) == pytest.approx(combined)
        assert np.allclose(found.code, exact.code)  # the path itself does not depend on the probes
    one = log_likelihood(model, x, n_steps=6, divergence="rademacher", check=False)
    assert np.isnan(one.probe_std).all() and math.isnan(float(one.mean_log_prob_probe_se))
    assert not exact.probe_std.values.any() and np.isnan(exact.discretisation).all()


def test_a_number_depends_on_its_seed_and_not_on_its_batch(global_rng_untouched):
    mixture = skewed(4, 3, seed=1)
    model = Oracle(mixture, t_range=(0.1, 80.0))
    x, _ = mixture.sample(7, generator())
    settings = dict(n_steps=4, divergence="gaussian", n_probes=2)
    whole = log_likelihood(model, x, **settings)
    parts = log_likelihood(model, x, batch=3, **settings)
    assert np.allclose(whole.log_prob, parts.log_prob, rtol=1e-12)
    alone = log_likelihood(model, x[4:5], seeds=[4], **settings)
    assert float(alone.log_prob[0]) == pytest.approx(float(whole.log_prob[4]), rel=1e-12)
    other = log_likelihood(model, x, seeds=Seeds(range(10, 17)), **settings)
    assert not np.allclose(whole.log_prob, other.log_prob)
    assert other.seed.values.tolist() == list(range(10, 17))


def test_it_works_inside_inference_mode():
    model = load("digits")
    images, labels = digits("test")
    with torch.inference_mode():
        found = log_likelihood(model, images[:2] + 0.0, labels[:2] + 0, n_steps=2, solver=Euler(), check=False)
    assert np.isfinite(found.log_prob).all()


# Discrete images


def test_bits_per_dimension_of_a_gaussian_is_its_entropy_with_the_published_offset():
    """-log2 p / D + 7 on [-1, 1] with 256 levels; its mean is the entropy: 1/2 log2(2 pi e s^2) + 7."""
    s, d = 0.5, 4
    model = gaussian(s, d, sigma=(0.001, 80.0))
    x = s * torch.randn(600, d, generator=generator(), dtype=torch.float64)
    found = log_likelihood(model, x, n_steps=40, width=2 / 256, data_std=s, check=False)
    assert np.allclose(found.bits_per_dim, -found.log_prob / (d * math.log(2)) + 7, rtol=1e-12)
    entropy = 0.5 * math.log2(2 * math.pi * math.e * s**2) + 7
    error = float(found.mean_bits_per_dim_se)
    assert error == pytest.approx(0.5 / math.log(2) * math.sqrt(2 / (600 * d)), rel=0.15)
    assert abs(float(found.mean_bits_per_dim) - entropy) < 4 * error
    again = log_likelihood(model, x[:3], n_steps=4, width=1 / 8, check=False)
    assert np.allclose(again.bits_per_dim, -again.log_prob / (d * math.log(2)) + 3)


def test_dequantisation_is_uniform_within_the_grey_level_and_bounds_the_discrete_probability():
    images = (torch.arange(17, dtype=torch.float64) / 8 - 1).repeat(200, 1).reshape(200, 1, 1, 17)
    noisy = dequantise(images, 1 / 8)
    u = (noisy - images) * 8
    assert float(u.min()) >= -0.5 and float(u.max()) < 0.5
    assert abs(float(u.mean())) < 4 / math.sqrt(12 * u.numel())
    assert float(u.var()) == pytest.approx(1 / 12, rel=0.1)
    assert torch.equal(dequantise(images[5:6], 1 / 8, [5]), noisy[5:6])
    # one pixel, N(0, s^2): ln of the mass of a level against the bound by one draw and by many
    s, level, width = 0.6, 0.375, 1 / 8
    normal = torch.distributions.Normal(0.0, s)
    mass = float((normal.cdf(torch.tensor(level + width / 2)) - normal.cdf(torch.tensor(level - width / 2))).log())
    draws = dequantise(torch.full((4000, 1), level, dtype=torch.float64), width)
    logs = normal.log_prob(draws) + math.log(width)  # (4000, 1)
    assert float(logs.mean()) < mass
    assert float(tightened(logs)) == pytest.approx(mass, abs=4 * float(logs.std()) / math.sqrt(4000))
    few = tightened(logs.reshape(400, 10).T)
    assert float(logs.mean()) < float(few.mean()) <= mass + 1e-3


def test_the_digits_model_gives_real_digits_of_the_right_class_more_than_others():
    model = load("digits")
    images, labels = digits("test")
    x = dequantise(images[:6], 1 / 8)
    settings = dict(n_steps=6, width=1 / 8, solver=Heun(), check=False)  # the same probes and grid on both sides
    right = log_likelihood(model, x, labels[:6], **settings)
    wrong = log_likelihood(model, x, (labels[:6] + 5) % 10, **settings)
    assert right.attrs["divergence"] == "rademacher" and right.attrs["nfe"] == 12
    assert np.isfinite(right.bits_per_dim).all() and float(right.mean_bits_per_dim) < math.log2(17)
    assert float((wrong.bits_per_dim - right.bits_per_dim).min()) > 0


def test_guidance_is_counted_and_flows_through():
    mixture = ring(4, 0.66, 0.2, labels=True)
    model = Guided(Oracle(mixture, t_range=(0.05, 80.0)), 1.0)
    x, k = mixture.sample(4, generator())
    plain = log_likelihood(Oracle(mixture, t_range=(0.05, 80.0)), x, k, n_steps=4)
    assert np.allclose(log_likelihood(model, x, k, n_steps=4).log_prob, plain.log_prob)
    assert log_likelihood(Guided(model.base, 2.0), x, k, n_steps=4).attrs["nfe"] == 32


def test_an_own_grid_is_used_and_its_last_zero_left_out():
    model, x = gaussian(0.5, 2), torch.tensor([[0.3, -0.4]], dtype=torch.float64)
    grid = TimeGrid.karras(20, 0.01, 80.0)
    found = log_likelihood(model, x, grid=grid)
    assert found.attrs["n_steps"] == 19 and found.attrs["sigma_min"] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (dict(solver=DPMpp2M()), BadValue, "choose a Runge-Kutta solver"),
        (dict(solver=DDIM()), BadValue, "choose a Runge-Kutta solver"),
        (dict(divergence="hutch"), UnknownName, "rademacher"),
        (dict(n_probes=0), BadValue, "at least one probe"),
        (dict(width=0.0), BadValue, "grey levels"),
        (dict(seeds=[1, 2]), BadValue, "one seed per data point"),
        (dict(grid=TimeGrid((1.0, 0.0))), BadValue, "two positive times"),
    ],
)
def test_bad_input_is_named(settings, error, message):
    with pytest.raises(error, match=message):
        log_likelihood(gaussian(0.5, 2), torch.zeros(3, 2), n_steps=4, **settings)
    with pytest.raises(BadValue, match="needs data"):
        log_likelihood(gaussian(0.5, 2), torch.zeros(3, 3))
    with pytest.raises(BadValue, match="grey levels"):
        dequantise(torch.zeros(2, 1), -1.0)
