"""Gradients of divergences against quadrature, finite differences and published closed forms (no networks)."""

import math

import pytest
import torch

from explorer.errors import BadValue
from explorer.process.divergences import (
    DIVERGENCES,
    ChiSquare,
    ForwardKL,
    JensenShannon,
    NonSaturating,
    ReverseKL,
    SkewJensenShannon,
    direction,
    distance_scale,
    expanded,
    pushed,
    score_identity,
)
from explorer.process.oracles import GaussianMixture

F64 = torch.float64
TARGET = GaussianMixture(
    torch.tensor([[-2.0], [1.5]]), torch.tensor([0.5, 0.4], dtype=F64), weights=torch.tensor([0.3, 0.7], dtype=F64)
)
TWO = GaussianMixture(torch.tensor([[-2.0], [2.0]]), 0.5)
SIGMA = 0.7

# the trapezoid rule on analytic integrands that vanish at both ends converges faster than any power of its step: 1e-9 here
NODES = torch.linspace(-9, 9, 181, dtype=torch.float64)
MASS = torch.exp(-(NODES**2) / 2)
MASS = MASS / MASS.sum()
Z, N = (v.reshape(-1, 1) for v in torch.meshgrid(NODES, NODES, indexing="ij"))
WEIGHTS = (MASS[:, None] * MASS).reshape(-1)


def gaussian(a: float, b: float) -> GaussianMixture:
    return GaussianMixture(torch.tensor([[a]], dtype=torch.float64), b)


class Line:
    """x = a + b z at every node of the quadrature over (z, n), and all that a loss may ask for at x + sigma n."""

    def __init__(self, p=TARGET, a=0.4, b=0.8, sigma=SIGMA):
        self.a, self.b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (a, b))
        self.x = self.a + self.b * Z
        x_t, q = self.x + sigma * N, gaussian(a, b)
        self.denoised_p, self.denoised_q = (m.denoise(x_t, 1.0, sigma) for m in (p, q))
        self.log_ratio = p.log_prob(x_t, 1.0, sigma) - q.log_prob(x_t, 1.0, sigma)

    def gradient(self, loss: torch.Tensor) -> list[float]:
        return [float(g) for g in torch.autograd.grad((WEIGHTS * loss).sum(), (self.a, self.b), retain_graph=True)]


def matching(divergence) -> list[float]:
    line, scale = Line(), torch.full((len(Z),), SIGMA**2, dtype=torch.float64)
    weight = divergence.weight(line.log_ratio)
    return line.gradient(pushed(line.x, direction(line.denoised_p, line.denoised_q, weight=weight, scale=scale)))


def parts(divergence, weight_grad="full") -> list[list[float]]:
    line = Line()
    losses = expanded(line.x, line.denoised_p, line.denoised_q, line.log_ratio, SIGMA, divergence, weight_grad)
    return [line.gradient(loss) for loss in losses]


GRADIENTS = [
    (ReverseKL(), -0.42109, -0.65184),
    (ForwardKL(), -0.04425, -1.32947),
    (SkewJensenShannon(0.1), -0.20374, -0.93109),
    (SkewJensenShannon(0.5), -0.30339, -0.67434),
    (SkewJensenShannon(0.9), -0.38318, -0.63814),
    (JensenShannon(), -0.15170, -0.33717),
]


@pytest.mark.parametrize("divergence, da, db", GRADIENTS, ids=[str(g[0]) for g in GRADIENTS])
def test_directions_give_the_gradients_found_elsewhere_by_quadrature(divergence, da, db):
    assert matching(divergence) == pytest.approx([da, db], abs=6e-6)  # five printed decimals


def value(divergence, p, a: float, b: float, sigma: float) -> float:
    """E_q f(p/q) at one noise level, on a line of its own."""
    x = torch.linspace(-16, 16, 2001, dtype=torch.float64)[:, None]
    q = gaussian(a, b).log_prob(x, 1.0, sigma)
    return float((q.exp() * divergence.f(p.log_prob(x, 1.0, sigma) - q)).sum() * 32 / 2000)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_directions_are_the_derivative_of_the_divergence_itself(name):
    divergence, h = DIVERGENCES[name](), 1e-4
    da = (value(divergence, TARGET, 0.4 + h, 0.8, SIGMA) - value(divergence, TARGET, 0.4 - h, 0.8, SIGMA)) / (2 * h)
    db = (value(divergence, TARGET, 0.4, 0.8 + h, SIGMA) - value(divergence, TARGET, 0.4, 0.8 - h, SIGMA)) / (2 * h)
    assert matching(divergence) == pytest.approx([da, db], rel=1e-5, abs=1e-7)  # central differences: h^2


@pytest.mark.parametrize("name", DIVERGENCES)
def test_curvatures_are_the_derivatives_of_f(name):
    """h = r^2 f'' with r d/dr = d/dl: h = f_ll - f_l, r h' = h_l, r^2 h'' = h_ll - h_l. Differences: 1e-4 squared."""
    divergence, step = DIVERGENCES[name](), 1e-4
    log_ratio = torch.linspace(-3, 3, 41, dtype=torch.float64)

    def slopes(y):
        left, here, right = (y(log_ratio + d) for d in (-step, 0.0, step))
        return (right - left) / (2 * step), (right - 2 * here + left) / step**2

    h, rh1, r2h2 = divergence.curvature(log_ratio)
    first, second = slopes(divergence.f)
    torch.testing.assert_close(h, second - first, rtol=1e-5, atol=1e-6)
    first, second = slopes(divergence.weight)
    torch.testing.assert_close(rh1, first, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(r2h2, second - first, rtol=1e-5, atol=1e-6)
    assert float(divergence.f(torch.zeros(1, dtype=torch.float64))) == pytest.approx(0, abs=1e-15)


def test_the_skew_runs_from_forward_to_reverse():
    for alpha, end in ((1e-6, ForwardKL()), (1 - 1e-6, ReverseKL())):
        assert matching(SkewJensenShannon(alpha)) == pytest.approx(matching(end), rel=1e-2)
    with pytest.raises(BadValue, match="ForwardKL"):
        SkewJensenShannon(1.0)


def test_the_mixtures_score_serves_as_well_as_the_ratio():
    alpha, q = 0.3, gaussian(0.4, 0.8)
    means, stds, weights = [[-2.0], [1.5], [0.4]], [0.5, 0.4, 0.8], [0.3 * alpha, 0.7 * alpha, 1 - alpha]
    mixture = GaussianMixture(
        *(torch.tensor(v, dtype=torch.float64) for v in (means, stds)), weights=torch.tensor(weights, dtype=F64)
    )
    x = torch.linspace(-4, 4, 50, dtype=torch.float64)[:, None]
    weight = SkewJensenShannon(alpha).weight(TARGET.log_prob(x, 1.0, SIGMA) - q.log_prob(x, 1.0, SIGMA))
    by_ratio = weight[:, None] * (q.score(x, 1.0, SIGMA) - TARGET.score(x, 1.0, SIGMA))
    by_score = (q.score(x, 1.0, SIGMA) - mixture.score(x, 1.0, SIGMA)) / alpha
    torch.testing.assert_close(by_ratio, by_score, rtol=1e-9, atol=1e-9)


def test_the_discriminators_direction_is_that_of_minus_log_d():
    """With the optimal logit l = ln p/q, the gradient of softplus(-l) with l's formula frozen is (1/(1 + r)) (score_q - score_p)."""
    line = Line()
    frozen = TARGET.log_prob(line.x + SIGMA * N, 1.0, SIGMA) - gaussian(0.4, 0.8).log_prob(
        line.x + SIGMA * N, 1.0, SIGMA
    )
    game = line.gradient(torch.nn.functional.softplus(-frozen))
    assert matching(NonSaturating()) == pytest.approx(game, rel=1e-9)


EXPANDED = [
    (ReverseKL(), [(0, 0), (-1.00054, 0.24258), (-0.74530, -2.30739)], (-1.74584, -2.06480)),
    (ForwardKL(), [(0, 0), (0, 0), (-0.07831, -4.70609)], (-0.07831, -4.70609)),
    (
        JensenShannon(),
        [(-0.10889, 0.47175), (-0.12998, -0.15566), (-0.26849, -1.19353)],
        (-0.50736, -0.87744),
    ),
]


@pytest.mark.parametrize("divergence, three, total", EXPANDED, ids=[str(e[0]) for e in EXPANDED])
def test_the_parts_of_the_expanded_divergences_are_the_known_ones(divergence, three, total):
    found = parts(divergence)
    for part, known in zip(found, three, strict=True):
        assert part == pytest.approx(known, abs=6e-6)
    assert [sum(v) for v in zip(*found, strict=True)] == pytest.approx(total, abs=1.2e-5)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_parts_add_up_to_the_derivative_of_the_weighted_score_difference(name):
    divergence, step = DIVERGENCES[name](), 1e-4

    def fisher(a, b):
        return weighted_difference(divergence, a, b, SIGMA)

    total = [sum(v) for v in zip(*parts(divergence), strict=True)]
    da = (fisher(0.4 + step, 0.8) - fisher(0.4 - step, 0.8)) / (2 * step)
    db = (fisher(0.4, 0.8 + step) - fisher(0.4, 0.8 - step)) / (2 * step)
    assert total == pytest.approx([da, db], rel=1e-5, abs=1e-6)


def weighted_difference(divergence, a, b, sigma, p=TARGET) -> float:
    """E_q[h |score_p - score_q|^2] at one noise level."""
    x, q = torch.linspace(-16, 16, 2001, dtype=torch.float64)[:, None], gaussian(a, b)
    log_q = q.log_prob(x, 1.0, sigma)
    h = divergence.weight(p.log_prob(x, 1.0, sigma) - log_q)
    u = (p.score(x, 1.0, sigma) - q.score(x, 1.0, sigma))[:, 0]
    return float((log_q.exp() * h * u**2).sum() * 32 / 2000)


@pytest.mark.parametrize("divergence", [ReverseKL(), ForwardKL(), JensenShannon()], ids=str)
def test_de_bruijn(divergence):
    """The divergence at zero noise minus that at sigma = 4 is half the integral of E_q[h |u|^2] over sigma^2 (to 1e-3: 201 points)."""
    squares = torch.linspace(0, math.sqrt(4.0), 101, dtype=torch.float64) ** 4  # denser at small noise
    integrand = torch.tensor([weighted_difference(divergence, 0.4, 0.8, math.sqrt(s)) for s in squares.tolist()])
    integral = 0.5 * float(torch.trapezoid(integrand, squares.float()))
    drop = value(divergence, TARGET, 0.4, 0.8, 0.0) - value(divergence, TARGET, 0.4, 0.8, 4.0)
    assert integral == pytest.approx(drop, rel=2e-3)
    if divergence == ReverseKL():
        assert drop == pytest.approx(2.581, abs=1e-3)


def test_detaching_the_weight_is_biased_in_the_direction_that_correlates_with_noise():
    full, cut = parts(ForwardKL())[2], parts(ForwardKL(), "detach")[2]
    assert cut[0] == pytest.approx(full[0], abs=1e-9)
    assert cut[1] == pytest.approx(-1.944, abs=1e-3) and full[1] == pytest.approx(-4.706, abs=1e-3)
    assert parts(JensenShannon(), "detach")[2][1] == pytest.approx(-0.610, abs=1e-3)


def test_the_score_identity_is_half_the_fisher_gradient_with_a_half_and_its_frozen_part_with_one():
    line = Line()
    for a, known in ((1.0, (-0.74530, -2.30739)), (0.5, (-1.74584, -2.06480))):
        found = line.gradient(2 / SIGMA**4 * score_identity(line.x, line.denoised_p, line.denoised_q, a))
        assert found == pytest.approx(known, abs=6e-6)


def test_cutting_the_gradient_through_the_denoisers_gives_another_one():
    line = Line()
    cut = line.gradient(2 / SIGMA**4 * score_identity(line.x, line.denoised_p.detach(), line.denoised_q.detach()))
    assert abs(cut[0] + 0.74530) > 0.1 or abs(cut[1] + 2.30739) > 0.1


def minimum(divergence, sigma, fisher=False) -> tuple[float, float]:
    """Global minimiser over Gaussians N(a, b^2) on a grid: which of one mode or both a divergence prefers."""
    x = torch.linspace(-9 - 3 * sigma, 9 + 3 * sigma, 901, dtype=torch.float64)
    a, b = torch.meshgrid(
        torch.linspace(0, 2.5, 26, dtype=torch.float64),
        torch.linspace(0.4, 2.2, 37, dtype=torch.float64),
        indexing="ij",
    )
    a, b = a.reshape(-1, 1), b.reshape(-1, 1)
    var = b**2 + sigma**2
    log_q = -0.5 * (x - a) ** 2 / var - 0.5 * (2 * math.pi * var).log()
    if fisher:
        values = (TWO.score(x[:, None], 1.0, sigma)[:, 0] + (x - a) / var) ** 2
    else:
        values = divergence.f(TWO.log_prob(x[:, None], 1.0, sigma) - log_q)
    best = int((log_q.exp() * values).sum(1).argmin())
    return float(a[best]), float(b[best])


@pytest.mark.parametrize(
    "divergence, sigma, known",
    [
        (ReverseKL(), 0.05, (2.00, 0.50)),
        (SkewJensenShannon(0.9), 0.05, (2.00, 0.50)),
        (SkewJensenShannon(0.5), 0.05, (0.0, 2.04)),
        (ForwardKL(), 0.05, (0.0, 2.06)),
        ("fisher", 0.05, (2.00, 0.50)),
        (ReverseKL(), 0.5, (1.98, 0.54)),
        (SkewJensenShannon(0.9), 0.5, (0.0, 1.97)),
        (ReverseKL(), 1.0, (0.0, 1.88)),
        ("fisher", 1.0, (2.21, 0.44)),
        (ReverseKL(), 2.0, (0.0, 2.0)),
    ],
    ids=str,
)
def test_which_modes_the_best_gaussian_takes(divergence, sigma, known):
    a, b = minimum(divergence, sigma, divergence == "fisher")
    assert abs(a - known[0]) <= 0.1 and abs(b - known[1]) <= 0.06  # the grid's cells are 0.1 and 0.05


def test_pushed_hands_the_direction_to_the_sample_and_nothing_else():
    g = torch.Generator().manual_seed(0)
    x, delta = (torch.randn(3, 4, generator=g, requires_grad=True) for _ in range(2))
    pushed(x, delta).sum().backward()
    torch.testing.assert_close(x.grad, delta.detach() / 4)
    assert delta.grad is None


def test_the_normaliser_is_each_samples_own_distance_and_nans_are_dropped():
    x, p = torch.tensor([[1.0, 3.0], [0.0, 10.0]]), torch.zeros(2, 2)
    assert distance_scale(x, p).tolist() == [2.0, 5.0]
    delta = direction(p, x, scale=distance_scale(x, p))
    torch.testing.assert_close(delta, torch.tensor([[0.5, 1.5], [0.0, 2.0]]))
    assert direction(p, p, scale=torch.zeros(2)).tolist() == [[0.0, 0.0], [0.0, 0.0]]  # 0/0
    assert torch.isfinite(direction(p, x, scale=torch.zeros(2))).all()


def test_ratio_weights_stay_finite_where_densities_part():
    log_ratio = torch.tensor([-80.0, 80.0])
    for divergence in (JensenShannon(), NonSaturating(), SkewJensenShannon(0.5), ReverseKL()):
        assert torch.isfinite(divergence.weight(log_ratio)).all()
    assert ChiSquare().needs_ratio and not ReverseKL().needs_ratio
