"""Zero-shot editing: orthogonal coordinates, known ones exact, the known posterior of a Gaussian, search of levels."""

import math

import pytest
import torch

from explorer.data import load_dataset
from explorer.errors import BadValue
from explorer.models.base import FlowMap, Oracle
from explorer.models.bundled import load
from explorer.models.flow_maps import as_flow_map
from explorer.process.oracles import GaussianMixture
from explorer.process.paths import EDM
from explorer.sampling.editing import (
    Colourisation,
    Inpainting,
    SuperResolution,
    colourise,
    default_levels,
    denoise,
    edit,
    edit_steps,
    inpaint,
    intermediate_levels,
    interpolate,
    orthogonal,
    refine_strokes,
    super_resolve,
)
from explorer.sampling.seeds import Seeds


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).clamp(-1, 1)


class Wild(FlowMap):
    """A map that returns anything: what stays fixed under it is fixed by the editing."""

    to_data = True

    def __init__(self, shape):
        super().__init__()
        self.path, self.shape, self.t_range = EDM(), shape, (0.002, 80.0)

    def jump(self, x_t, t, r, cond=None):
        return torch.sin(7 * x_t) * 3

    def on(self, path):
        return self


@pytest.mark.parametrize("first", [[0.2989, 0.5870, 0.1140], [1.0] * 64, [-1.0, 2.0], [1e-9, 1.0, 0.0]])
def test_axes_are_orthogonal_and_begin_with_the_given_one(first):
    v = torch.tensor(first, dtype=torch.float64)
    q = orthogonal(v)
    assert torch.allclose(q.T @ q, torch.eye(len(v), dtype=torch.float64), atol=1e-13)
    assert torch.allclose(q[:, 0], v / v.norm(), atol=1e-13)


KNOWN = {
    "half": (Inpainting(torch.arange(16) < 8), (1, 16, 16)),
    "mask per image": (Inpainting(images(3, 3, 16, 16, seed=3) > 0), (3, 16, 16)),
    "colour": (Colourisation(), (3, 16, 16)),
    "patches of 2": (SuperResolution(2), (3, 16, 16)),
    "patches of 8": (SuperResolution(8), (1, 16, 16)),
}


@pytest.mark.parametrize("case", KNOWN)
def test_known_coordinates_are_those_of_the_reference_after_every_projection(case):
    known, shape = KNOWN[case]
    x, reference = images(3, *shape), images(3, *shape, seed=1)
    z = known.forward(x)
    assert torch.allclose(known.inverse(z, x.shape), x, atol=1e-13)
    assert z.square().sum().item() == pytest.approx(x.square().sum().item())  # A is orthogonal
    target, fixed = known.forward(reference), ~known.unknown(z).expand(z.shape)
    assert bool(fixed.any()) and not bool(fixed.all())
    seen = list(edit_steps(Wild(shape), reference, known, Seeds(range(3)), levels=(80.0, 5.0, 0.5)))
    assert len(seen) == 3
    for step in seen:
        assert float((known.forward(step) - target)[fixed].abs().max()) < 1e-12
        assert float((known.forward(step) - target)[~fixed].abs().mean()) > 0.1


@pytest.mark.parametrize("case", KNOWN)
def test_what_is_unknown_is_never_looked_at(case):
    known, shape = KNOWN[case]
    reference, other = images(3, *shape), images(3, *shape, seed=7)
    same_known = known.project(other, reference)  # differs wherever it is unknown
    a, b = (edit(Wild(shape), r, known, Seeds(range(3)), levels=(80.0, 1.0)) for r in (reference, same_known))
    assert torch.allclose(a, b, atol=1e-6)  # sin(7 x) of noise of size 80 magnifies the rounding of A


def test_colours_and_patches_mean_what_they_say():
    x = images(2, 3, 16, 16)
    grey = torch.einsum("bchw,c->bhw", x, torch.tensor([0.2989, 0.5870, 0.1140], dtype=torch.float64))
    painted = colourise(Wild((3, 16, 16)), x, Seeds(range(2)), levels=(80.0, 1.0))
    assert torch.allclose(
        torch.einsum("bchw,c->bhw", painted, torch.tensor([0.2989, 0.5870, 0.1140]).double()), grey, atol=1e-6
    )
    small = torch.nn.functional.avg_pool2d(x, 4)
    large = super_resolve(Wild((3, 16, 16)), small, 4, Seeds(range(2)), levels=(80.0, 1.0))
    assert torch.allclose(torch.nn.functional.avg_pool2d(large, 4), small, atol=1e-12)


def test_painting_a_gaussian_leans_to_its_conditional_mean():
    """x2 given x1 of a correlated Gaussian has mean rho x1: projections with noise between find most of it."""
    rho, n = 0.9, 400
    cov = 0.25 * torch.tensor([[[1.0, rho], [rho, 1.0]]], dtype=torch.float64)
    exact = as_flow_map(Oracle(GaussianMixture(torch.zeros(1, 2), covs=cov), t_range=(0.002, 80.0)), 12)
    reference = torch.tensor([[0.6, -5.0]], dtype=torch.float64).expand(n, 2)
    mask = torch.tensor([False, True])
    many = inpaint(exact, reference, mask, Seeds(range(n)), levels=default_levels(16), clamp=None)
    one = inpaint(exact, reference, mask, Seeds(range(n)), levels=(80.0,), clamp=None)
    assert torch.equal(many[:, 0], reference[:, 0])
    error = float(many[:, 1].std()) / math.sqrt(n)
    assert float(many[:, 1].mean()) > 0.5 * rho * 0.6 > 0.1 > float(one[:, 1].mean()) - 4 * error
    assert float(many[:, 1].std()) < 0.8 * float(one[:, 1].std())  # conditional spread 0.22, marginal 0.5


def test_denoising_takes_noise_away_and_refuses_levels_it_does_not_know():
    exact = Oracle(GaussianMixture(torch.zeros(1, 2), 0.5), t_range=(0.002, 80.0))
    x0 = 0.5 * images(500, 2)
    noisy = x0 + 0.3 * images(500, 2, seed=4)
    assert (denoise(exact, noisy, 0.3) - x0).square().mean() < 0.8 * (noisy - x0).square().mean()
    with pytest.raises(BadValue, match=r"0\.002 to 80"):
        denoise(exact, noisy, 100.0)


def test_interpolation_begins_and_ends_at_its_two_images_on_the_sphere():
    model = load("oracle-8gaussians")
    z0, z1 = Seeds([1]).normal((2,))[0], Seeds([2]).normal((2,))[0]
    low, high = (model.denoise(model.sigma_range[1] * z[None], model.sigma_range[1]) for z in (z0, z1))
    between = interpolate(model, z0, z1, [0.0, 0.5, 1.0])
    assert torch.allclose(between[[0, -1]], torch.cat([low, high]), atol=1e-9)

    class Seen(Wild):
        def jump(self, x_t, t, r, cond=None):
            return x_t / t

    z = torch.nn.functional.normalize(images(2, 50), dim=1)
    norms = interpolate(Seen((50,)), z[0], z[1], [0.0, 0.3, 0.7, 1.0]).norm(dim=1)
    assert torch.allclose(norms, torch.ones(4, dtype=torch.float64))  # equal norms stay
    with pytest.raises(BadValue, match="parallel"):
        interpolate(model, z0, 2 * z0, [0.5])


def test_strokes_are_refined_near_where_they_were():
    model = load("digits")
    strokes = load_dataset("digits", "test").x[:16].double().sign()
    made = refine_strokes(model, strokes, Seeds(range(16)), levels=(0.5, 0.2))
    far = refine_strokes(model, strokes, Seeds(range(16)), levels=(20.0, 5.0))
    assert (made - strokes).square().mean() < 0.5 * (far - strokes).square().mean()


def test_each_image_depends_on_its_own_seed_alone():
    x = images(4, 3, 16, 16)
    known = SuperResolution(2)
    together = edit(Wild((3, 16, 16)), x, known, Seeds(range(4)), levels=(80.0, 2.0))
    alone = edit(Wild((3, 16, 16)), x[2:3], known, Seeds([2]), levels=(80.0, 2.0))
    assert torch.equal(together[2:3], alone)


def test_the_default_levels_are_the_grid_of_forty_without_its_end():
    levels = default_levels()
    assert len(levels) == 39 and levels[0] == 80.0 and levels[-1] > 0.002


def test_what_does_not_fit_is_said():
    x, model = images(2, 1, 16, 16), Wild((1, 16, 16))
    for call, words in (
        (lambda: inpaint(model, x, torch.ones(3, 3), Seeds(range(2))), "does not fit"),
        (lambda: edit(model, x, SuperResolution(3), Seeds(range(2))), "cannot be cut"),
        (lambda: colourise(model, x, Seeds(range(2))), "red, green and blue"),
        (lambda: SuperResolution(1), "at least 2"),
        (lambda: edit(model, x, SuperResolution(2), Seeds(range(3))), "as many seeds"),
        (lambda: edit(model, x, SuperResolution(2), Seeds(range(2)), levels=(1.0, 2.0)), "descending"),
    ):
        with pytest.raises(BadValue, match=words):
            call()


def test_the_search_finds_the_best_levels_one_at_a_time_and_asks_little():
    candidates, asked = tuple(80 * 0.9**k for k in range(120)), []

    def badness(levels):
        asked.append(levels)
        return sum((math.log(s) - math.log(best)) ** 2 for s, best in zip(levels[1:], (2.0, 0.3), strict=False)) + 1.0

    levels, value = intermediate_levels(badness, candidates, 3)
    brute = tuple(min(candidates, key=lambda s, best=best: abs(math.log(s / best))) for best in (2.0, 0.3))
    assert levels == (80.0, *brute) and value == badness(levels)
    assert len(asked) < 60 and len(set(asked[:-1])) == len(asked) - 1  # 119 a level by brute force; nothing twice
    assert intermediate_levels(badness, candidates, 1)[0] == (80.0,)
    with pytest.raises(BadValue, match="descending"):
        intermediate_levels(badness, (1.0, 2.0, 3.0), 2)
