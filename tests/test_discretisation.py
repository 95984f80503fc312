"""Levels, curricula, index laws, weights, losses: against closed forms, brute force and the papers' own numbers."""

import math

import pytest
import torch
from scipy import stats

from explorer.errors import BadValue, UnknownName
from explorer.models.base import Oracle
from explorer.models.flow_maps import as_flow_map
from explorer.process.discretisation import (
    Doubling,
    Fixed,
    LogNormalIndex,
    SquareRoot,
    TargetDecay,
    UniformIndex,
    bias_ratio,
    equal_weight,
    gaussian_map,
    inverse_gap,
    karras_levels,
    linear_gains,
)
from explorer.process.losses import PseudoHuber, huber_c, l1, pseudo_huber, squared_l2
from explorer.process.oracles import GaussianMixture


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_levels_are_even_in_the_seventh_root_with_exact_ends():
    levels = karras_levels(1281)
    assert levels.dtype == torch.float64 and levels[0] == 0.002 and levels[-1] == 80.0
    roots = levels ** (1 / 7)
    assert torch.allclose(roots.diff(), roots.diff().mean().expand(1280), rtol=1e-9)
    # what float32 would make of the lowest gap, 3.9e-5 at 0.002, is wrong from the fourth digit on: hence float64
    assert abs(float(levels.float().diff()[0]) / float(levels.diff()[0]) - 1) < 1e-4
    for bad in ({"n": 1}, {"n": 5, "sigma_min": 0.0}, {"n": 5, "sigma_min": 80.0}):
        with pytest.raises(BadValue):
            karras_levels(**bad)


@pytest.mark.parametrize(("solver", "table"), [
    ("euler", {3: 0.195, 6: 0.548, 11: 0.753, 18: 0.846, 40: 0.930, 80: 0.965, 150: 0.981, 1281: 0.998}),
    ("heun", {6: 1.706, 18: 1.055, 40: 1.010}),
])  # fmt: skip
def test_the_bias_of_n_levels_has_its_closed_form(solver, table):
    for n, expected in table.items():
        assert bias_ratio(karras_levels(n), 0.5, solver) == pytest.approx(expected, abs=6e-4)
    with pytest.raises(UnknownName):
        bias_ratio(karras_levels(3), 0.5, "rk4")


def test_the_bias_is_what_regressions_level_by_level_give():
    """Brute force: least squares of f(x_t) on the target f(x_r) over many pairs, from the lowest level up."""
    levels, s, gain = karras_levels(6), 0.5, 1.0
    x0, eps = s * torch.randn(2, 400_000, generator=generator(), dtype=torch.float64)
    eps = eps / s
    for r, t in zip(levels[:-1], levels[1:], strict=True):
        x_t, x_r = x0 + t * eps, x0 + r * eps
        gain *= float((x_t * x_r).sum() / x_t.square().sum())
    true = math.sqrt((s**2 + 0.002**2) / (s**2 + 80**2))
    # a regression through 400 000 points errs by about 1/sqrt(n) per level, five levels: 0.4 %; four of those
    assert gain / true == pytest.approx(bias_ratio(levels, s), rel=0.015)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_the_gains_are_those_of_one_step_of_the_exact_ode(solver):
    s, levels = 0.7, karras_levels(9)
    exact = Oracle(GaussianMixture(torch.zeros(1, 1), s))
    r, t = levels[:-1], levels[1:]
    x = torch.ones(8, 1, dtype=torch.float64)
    slope = exact.velocity(x, t)
    step = (r - t)[:, None]
    after = x + step * slope
    if solver == "heun":
        after = x + 0.5 * step * (slope + exact.velocity(after, r))
    assert torch.allclose(after[:, 0], linear_gains(levels, s, solver), rtol=1e-10)


def test_the_map_of_a_gaussian_is_the_end_of_its_ode():
    mixture = GaussianMixture(torch.full((1, 2), 0.3), 0.5)
    x = 80 * torch.randn(16, 2, generator=generator(), dtype=torch.float64)
    ends = as_flow_map(Oracle(mixture, t_range=(0.002, 80.0)), 400).jump(x, 80.0, 0.002)
    # 400 Heun steps over ten e-folds of sigma: error of order (ln 40000 / 400)^2 / 12, 6e-5
    assert torch.allclose(gaussian_map(x, 80.0, 0.3, 0.5), ends, rtol=3e-4, atol=1e-4)
    t = torch.tensor([0.002, 1.0], dtype=torch.float64)
    assert torch.equal(gaussian_map(x[:2], t, 0.3, 0.5)[0], x[0])


def test_the_doubling_curriculum_changes_where_the_paper_says():
    n = Doubling(10, 1280)
    for stage, expected in enumerate((11, 21, 41, 81, 161, 321, 641, 1281)):
        first = stage * 50_000
        assert n(first / 400_000) == expected
        assert n((first + 49_999) / 400_000) == expected
    assert n(1.0) == 1281
    assert Doubling(10, 160).stages(3000) == [(0, 11), (600, 21), (1200, 41), (1800, 81), (2400, 161)]
    with pytest.raises(BadValue):
        Doubling(10, 5)


def test_the_square_root_curriculum_runs_from_s0_to_s1_and_one():
    n = SquareRoot(2, 150)
    assert n(0.0) == 2 and n(1.0) == 151
    for k in (1, 137, 400_000, 799_999):
        exact = (
            math.isqrt(math.ceil((k * (151**2 - 4) + 4 * 800_000) / 800_000) - 1) + 1
        )  # ceil of the root, in integers
        assert n(k / 800_000) == exact
    counts = [n(k / 500) for k in range(501)]
    assert counts == sorted(counts)
    assert Fixed(18)(0.3) == 18
    with pytest.raises(BadValue):
        Fixed(1)


def test_the_targets_decay_rises_with_n():
    mu = TargetDecay(2, 0.9)
    assert mu(3) == pytest.approx(0.9) and mu(2) == pytest.approx(0.81)
    assert mu(151) == pytest.approx(0.9 ** (2 / 150))


@pytest.mark.parametrize("n", [11, 1281])
def test_indices_follow_the_lognormal_law(n):
    law, levels, draws = LogNormalIndex(), karras_levels(n), 1_000_000
    mass = stats.norm.cdf(levels.log().numpy(), -1.1, 2.0)  # the erf differences, by another library
    expected = mass[1:] - mass[:-1]
    expected /= expected.sum()
    assert torch.allclose(law.probabilities(levels), torch.tensor(expected), rtol=1e-9)
    i = law.draw(draws, levels, generator())
    seen = torch.bincount(i, minlength=n - 1).numpy()
    assert len(seen) == n - 1
    assert stats.chisquare(seen, expected * draws).pvalue > 0.01


def test_uniform_indices_are_uniform_and_reproducible():
    levels = karras_levels(18)
    a, b = (UniformIndex().draw(200_000, levels, generator(3)) for _ in range(2))
    assert torch.equal(a, b)
    assert stats.chisquare(torch.bincount(a, minlength=17).numpy()).pvalue > 0.01


def test_weights():
    levels = karras_levels(5)
    assert torch.equal(equal_weight(levels[:-1], levels[1:]), torch.ones(4, dtype=torch.float64))
    assert torch.allclose(inverse_gap(levels[:-1], levels[1:]) * levels.diff(), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1.0, 1e4])
def test_the_gradient_of_pseudo_huber_never_exceeds_one(scale):
    delta = (scale * torch.randn(64, 3, 8, 8, generator=generator(), dtype=torch.float64)).requires_grad_()
    c = huber_c(delta.shape[1:])
    (grad,) = torch.autograd.grad(pseudo_huber(delta, torch.zeros_like(delta), c).sum(), delta)
    norm, length = grad.flatten(1).norm(dim=1), delta.detach().flatten(1).norm(dim=1)
    assert (norm <= 1 + 1e-12).all()
    assert torch.allclose(norm, length / (length**2 + c**2).sqrt(), rtol=1e-9)
    elementwise = (delta.square() + c**2).sqrt() - c  # what several ports do
    (wrong,) = torch.autograd.grad(elementwise.sum(), delta)
    if scale >= 1e-4:
        assert (wrong.flatten(1).norm(dim=1) > 1).any() == (scale >= 1)


def test_pseudo_huber_is_its_formula_and_does_not_cancel():
    x = torch.randn(5, 7, generator=generator(), dtype=torch.float64)
    y = torch.randn(5, 7, generator=generator(1), dtype=torch.float64)
    assert torch.allclose(pseudo_huber(x, y, 0.3), ((x - y).norm(dim=1) ** 2 + 0.09).sqrt() - 0.3)
    # float32: the formula as printed would give 0 here
    small = pseudo_huber(torch.full((1, 4), 1e-6), torch.zeros(1, 4), 0.03)
    assert float(small) == pytest.approx(4e-12 / 0.06, rel=1e-5)
    assert huber_c((3, 32, 32)) == pytest.approx(0.030, abs=1e-4) and huber_c((2,)) == pytest.approx(0.00076, abs=1e-5)
    assert torch.equal(PseudoHuber(0.3)(x, y), pseudo_huber(x, y, 0.3))
    with pytest.raises(BadValue):
        PseudoHuber(0.0)


def test_the_other_distances_are_means():
    x = torch.randn(5, 2, 3, generator=generator(), dtype=torch.float64)
    assert torch.allclose(squared_l2(x, 0 * x), x.square().mean((1, 2)))
    assert torch.allclose(l1(x, 0 * x), x.abs().mean((1, 2)))
