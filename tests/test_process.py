"""Paths, conversions, preconditionings, time distributions and exact mixtures against closed forms, autodiff and Monte Carlo."""

import math

import pytest
import torch
from problems import PATHS, ring, skewed, times_of

from explorer.errors import BadValue
from explorer.process import (
    EDM,
    KINDS,
    VP,
    CosineVP,
    EDMPrecondition,
    FlowPrecondition,
    GaussianMixture,
    IDDPMPrecondition,
    KarrasUniform,
    Linear,
    LogitNormal,
    LogNormal,
    LogUniform,
    Trig,
    TrigFlowPrecondition,
    Uniform,
    UShaped,
    VPrecondition,
    like,
)

EPS = torch.finfo(torch.float64).eps


@pytest.fixture
def gen():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_derivatives_agree_with_autodiff(path):
    t = times_of(path).requires_grad_()
    for f, f_dot in ((path.alpha, path.alpha_dot), (path.sigma, path.sigma_dot)):
        y = f(t)
        auto = torch.autograd.grad(y.sum(), t)[0] if y.requires_grad else torch.zeros_like(t)
        torch.testing.assert_close(f_dot(t.detach()), auto, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_time_inverts_ratio_down_to_tiny_noise(path):
    ratio = torch.logspace(-6, 4, 200, dtype=torch.float64)
    torch.testing.assert_close(path.ratio(path.time(ratio)), ratio, rtol=1e-8, atol=0)
    assert path.time_at(0.0) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_ends_are_data_and_noise(path):
    alpha, sigma, _, _ = path.at(0.0)
    assert alpha == pytest.approx(1.0, abs=1e-12) and sigma == pytest.approx(0.0, abs=1e-12)
    if math.isfinite(path.t_max):
        assert path.at(path.t_max)[0] == pytest.approx(0.0, abs=0.01)  # VP keeps exp(-5.03)
        assert path.time_at(math.inf) == pytest.approx(path.t_max) or isinstance(path, VP)


@pytest.mark.parametrize("path", [VP(), CosineVP()], ids=str)
def test_variance_preserving(path):
    t = times_of(path)
    torch.testing.assert_close(path.alpha(t) ** 2 + path.sigma(t) ** 2, torch.ones_like(t), rtol=4 * EPS, atol=0)


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_split_undoes_combine(path, kind, gen):
    t = times_of(path)
    x0, eps = (torch.randn(len(t), 3, dtype=torch.float64, generator=gen) for _ in range(2))
    got = path.split(path.combine(x0, eps, kind, t), kind, path.perturb(x0, eps, t), t)
    # the 2x2 system is worst conditioned at the ends, like 1/sigma and sigma/alpha
    torch.testing.assert_close(got[0], x0, rtol=0, atol=1e-11)
    torch.testing.assert_close(got[1], eps, rtol=0, atol=1e-11)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_every_conversion_agrees_for_numbers_and_tensors(path, gen):
    x0, eps = (torch.randn(4, 3, dtype=torch.float64, generator=gen) for _ in range(2))
    t = path.time_at(0.7)
    x_t = path.perturb(x0, eps, t)
    for src in KINDS:
        for dst in KINDS:
            a, b = path.convert(src, dst, t)
            want = path.combine(x0, eps, dst, t)
            torch.testing.assert_close(a * x_t + b * path.combine(x0, eps, src, t), want, rtol=0, atol=1e-12)
            batch = path.convert(src, dst, torch.full((4,), t, dtype=torch.float64))
            assert all(
                torch.allclose(
                    torch.as_tensor(v, dtype=torch.float64), torch.tensor(w, dtype=torch.float64), atol=1e-12
                )
                for v, w in zip(batch, (a, b), strict=True)
            )


def test_the_wanted_kind_is_returned_untouched_at_zero_noise():
    x0 = torch.randn(2, 3, dtype=torch.float64)
    got, _ = EDM().split(x0, "x0", x0, 0.0)
    assert torch.equal(got, x0)


def test_like_refuses_other_lengths():
    with pytest.raises(ValueError, match="one value per sample"):
        like(torch.ones(3), torch.ones(2, 4))
    assert like(torch.ones(2), torch.ones(2, 4, 5)).shape == (2, 1, 1)


@pytest.mark.parametrize("path", [EDM(), VP(), Linear()], ids=str)
def test_edm_preconditioning_has_unit_variance(path, gen):
    """Var(c_in x) = 1 and Var((x0 - c_skip x) / c_out) = 1 for data of variance sigma_data^2. Karras et al. 2022, App. B.6."""
    sd, n = 0.5, 200_000
    x0, eps = (torch.randn(n, 1, dtype=torch.float64, generator=gen) for _ in range(2))
    for sigma in (0.01, 0.5, 3.0, 60.0):
        t = path.time_at(sigma)
        x_t = path.perturb(sd * x0, eps, t)
        c_skip, c_out, c_in, c_noise = EDMPrecondition(sd).at(t, path)
        tol = 5 * math.sqrt(2 / n)  # five standard errors of a variance
        assert (c_in * x_t).var().item() == pytest.approx(1.0, abs=tol)
        assert ((sd * x0 - c_skip * x_t) / c_out).var().item() == pytest.approx(1.0, abs=tol)
        assert c_noise == pytest.approx(math.log(sigma) / 4)
        weight = (sigma**2 + sd**2) / (sigma * sd) ** 2
        assert weight * c_out**2 == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize(
    ("precondition", "path"),
    [
        (FlowPrecondition(), Linear()),
        (VPrecondition(), VP()),
        (TrigFlowPrecondition(0.5), Trig(0.5)),
        (EDMPrecondition(), EDM()),
    ],
    ids=str,
)
def test_preconditioning_of_an_exact_network_gives_back_the_data(precondition, path, gen):
    x0, eps = (torch.randn(5, 2, dtype=torch.float64, generator=gen) for _ in range(2))
    t = path.time_at(0.8)
    x_t = path.perturb(x0, eps, t)
    c_skip, c_out, _, _ = precondition.at(t, path)
    raw = (path.combine(x0, eps, precondition.kind, t) - c_skip * x_t) / c_out
    a, b = path.convert(precondition.kind, "x0", t)
    torch.testing.assert_close(a * x_t + b * (c_skip * x_t + c_out * raw), x0, rtol=0, atol=1e-12)


def test_iddpm_levels_fall_to_zero_and_are_hit():
    levels = IDDPMPrecondition().levels()
    assert len(levels) == 1001 and levels[-1] == 0 and (levels[:-1] > levels[1:]).all()
    for j in (0, 10, 999):
        c_skip, c_out, c_in, c_noise = IDDPMPrecondition().at(float(levels[j]), EDM())
        assert c_noise == 999 - j and c_out == -float(levels[j])


DISTRIBUTIONS = [
    LogNormal(),
    Uniform(0.1, 0.9),
    LogUniform(),
    KarrasUniform(start=0.02, stop=0.98),
    LogitNormal(0.3, 0.8),
    UShaped(4.0),
]


@pytest.mark.parametrize("dist", DISTRIBUTIONS, ids=str)
def test_density_is_the_derivative_of_the_distribution_function(dist):
    u = torch.linspace(0.02, 0.98, 97, dtype=torch.float64)
    step = 1e-5
    slope = (dist.quantile(u + step) - dist.quantile(u - step)) / (2 * step)
    torch.testing.assert_close(dist.pdf(dist.quantile(u)) * slope, torch.ones_like(u), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dist", DISTRIBUTIONS, ids=str)
def test_time_samples_are_seeded_and_follow_their_quantiles(dist):
    draw = lambda: dist.sample(4000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)  # noqa: E731
    t = draw()
    assert torch.equal(t, draw())
    for u in (0.1, 0.5, 0.9):
        share = (t <= dist.quantile(torch.tensor(u, dtype=torch.float64))).double().mean().item()
        assert share == pytest.approx(u, abs=5 * math.sqrt(u * (1 - u) / 4000))


MIXTURES = {
    "ring": ring,
    "full covariances": skewed,
    "finite": lambda: GaussianMixture.finite(torch.randn(30, 2, generator=torch.Generator().manual_seed(1))),
}


@pytest.mark.parametrize("make", MIXTURES.values(), ids=MIXTURES)
@pytest.mark.parametrize("batched", [False, True])
def test_score_is_the_gradient_of_the_density_and_tweedie_holds(make, batched, gen):
    mixture = make()
    x = torch.randn(9, *mixture.shape, dtype=torch.float64, generator=gen).requires_grad_()
    alpha, sigma = 0.8, 0.4
    if batched:
        alpha = torch.rand(9, dtype=torch.float64, generator=gen) + 0.2
        sigma = torch.rand(9, dtype=torch.float64, generator=gen) + 0.1
    gradient = torch.autograd.grad(mixture.log_prob(x, alpha, sigma).sum(), x)[0]
    x = x.detach()
    torch.testing.assert_close(mixture.score(x, alpha, sigma), gradient, rtol=1e-9, atol=1e-9)
    tweedie = (x + like(sigma, x) ** 2 * gradient) / like(alpha, x)
    torch.testing.assert_close(mixture.denoise(x, alpha, sigma), tweedie, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [ring, skewed], ids=["ring", "full covariances"])
def test_posterior_samples_have_the_denoiser_as_mean_and_the_stated_variance(make, gen):
    mixture, n = make(), 20_000
    x = torch.randn(1, *mixture.shape, dtype=torch.float64, generator=gen)
    draws = mixture.posterior_sample(x.expand(n, *mixture.shape), 0.7, 0.5, gen)
    trace = mixture.posterior_trace(x, 0.7, 0.5).item()
    error = (draws.mean(0) - mixture.denoise(x, 0.7, 0.5)[0]).norm().item()
    assert error < 4 * math.sqrt(trace / n)
    assert draws.var(0).sum().item() == pytest.approx(trace, rel=5 * math.sqrt(2 / n) * 2)


def test_moments_match_samples_and_isotropic_equals_full(gen):
    mixture = skewed()
    x, component = mixture.sample(100_000, gen)
    assert component.shape == (100_000,)
    torch.testing.assert_close(
        x.mean(0), mixture.mean(), rtol=0, atol=5 * mixture.cov().diagonal().max().sqrt().item() / math.sqrt(1e5)
    )
    torch.testing.assert_close(torch.cov(x.T), mixture.cov(), rtol=0, atol=0.05)
    a, b = ring(), ring()
    full = GaussianMixture(a.means, covs=0.06**2 * torch.eye(2, dtype=torch.float64).expand(8, 2, 2))
    probe = torch.randn(20, 2, dtype=torch.float64, generator=gen)
    for name in ("denoise", "score", "log_prob", "posterior_trace"):
        torch.testing.assert_close(
            getattr(full, name)(probe, 0.9, 0.3), getattr(b, name)(probe, 0.9, 0.3), rtol=1e-9, atol=1e-9
        )


def test_ends_of_the_denoiser_pure_noise_gives_the_mean_no_noise_the_point(gen):
    mixture = ring(5)
    x = torch.randn(4, 2, dtype=torch.float64, generator=gen)
    torch.testing.assert_close(mixture.denoise(x, 0.0, 1.0), mixture.mean().expand(4, 2), rtol=0, atol=1e-12)
    torch.testing.assert_close(mixture.denoise(x, 0.5, 0.0), 2 * x)


def test_a_class_selects_its_components(gen):
    mixture = ring(labels=True)
    x = torch.randn(8, 2, dtype=torch.float64, generator=gen)
    cond = torch.arange(8)
    want = torch.cat([mixture.of_class(k).denoise(x[k : k + 1], 0.9, 0.4) for k in range(8)])
    torch.testing.assert_close(mixture.denoise(x, 0.9, 0.4, cond), want)
    torch.testing.assert_close(mixture.denoise(x, 0.9, 0.4, torch.full((8,), -1)), mixture.denoise(x, 0.9, 0.4))


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"means": torch.zeros(3), "stds": 1.0}, "means must be"),
        ({"means": torch.zeros(3, 2)}, "either stds"),
        ({"means": torch.zeros(3, 2), "stds": -1.0}, "must not be negative"),
        ({"means": torch.zeros(3, 2), "stds": 1.0, "weights": torch.tensor([1.0, 0.0, 1.0])}, "positive"),
        ({"means": torch.zeros(1, 2), "covs": -torch.eye(2)[None]}, "positive semi-definite"),
    ],
)
def test_impossible_mixtures_are_refused_in_words(kwargs, says):
    with pytest.raises(BadValue, match=says):
        GaussianMixture(**kwargs)
