"""The shapes: areas and places against geometry, the law of the factors against its tables, reading back what was drawn."""

from __future__ import annotations

import math

import pytest
import torch

from explorer.data import Shapes, load_dataset, shapes_dataset, shapes_factors
from explorer.data.shapes import CLASSES, COLOURS, N_TEST, SIGMA_DATA
from explorer.errors import BadValue


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_coverage_is_that_of_a_sixteen_times_finer_picture():
    """An independent anti-aliasing: count the 256 small pixels of each pixel. Its own error is one part in 16 of an edge."""
    what = Shapes().factors(200, generator(1))
    fine = Shapes(side=256).coverage(what).view(200, 16, 16, 16, 16).mean((2, 4))
    worst = (Shapes().coverage(what) - fine).abs().amax((1, 2))
    for k, tolerance in enumerate((0.04, 1e-5, 0.01, 1e-5)):  # square and cross are exact
        assert worst[what.label == k].max() < tolerance, CLASSES[k]


@pytest.mark.parametrize("side", [8, 16, 33])
def test_all_classes_have_the_area_and_the_centre_they_were_given(side):
    shapes = Shapes(side=side)
    what = shapes.factors(400, generator(2))
    cover = shapes.coverage(what).double()
    area = cover.sum((1, 2)) / side**2
    torch.testing.assert_close(area, math.pi * what.radius**2, rtol=0.02, atol=0)  # the disc is off most, at 8x8
    pixel = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    centre = torch.stack([(cover.sum(1) @ pixel), (cover.sum(2) @ pixel)], 1) / cover.sum((1, 2))[:, None]
    assert (centre - what.centre).abs().max() < 0.1 / side  # of a pixel, whose own centre stands for what it holds


def test_a_picture_is_ground_plus_coverage_times_contrast():
    shapes = Shapes()
    what = shapes.factors(50, generator(3))
    x, cover = shapes.render(what), shapes.coverage(what)
    colours = torch.tensor(list(COLOURS.values()))[what.colour]
    expected = what.ground[:, None, None, None] * (1 - cover[:, None]) + colours[:, :, None, None] * cover[:, None]
    torch.testing.assert_close(x, expected.float(), rtol=0, atol=1e-6)
    assert x.min() >= -1 and x.max() <= 1


@pytest.mark.parametrize(("colour", "size"), [(0.0, 0.0), (0.9, 0.0), (0.3, -0.8)])
def test_factors_follow_their_tables(colour, size):
    n = 40_000
    shapes = Shapes(colour_correlation=colour, size_correlation=size)
    what = shapes.factors(n, generator(4))
    assert torch.allclose(shapes.p_colour.sum(1), torch.ones(4, dtype=torch.float64))
    for k in range(4):
        mine = what.label == k
        m = int(mine.sum())
        assert abs(m / n - 0.25) < 5 * math.sqrt(0.25 * 0.75 / n)
        share = torch.bincount(what.colour[mine], minlength=4) / m
        assert (share - shapes.p_colour[k]).abs().max() < 5 * 0.5 / math.sqrt(m)  # five standard errors at most
        assert abs(float(what.large[mine].double().mean()) - float(shapes.p_large[k])) < 5 * 0.5 / math.sqrt(m)
    assert abs(float((what.colour == 1).double().mean()) - 0.25) < 5 * math.sqrt(
        0.25 * 0.75 / n
    )  # even over all classes
    if not colour and not size:  # all pairs of factors are uncorrelated
        table = [what.label, what.colour, what.large, what.radius - what.large * 0.07, *what.centre.T, what.ground]
        seven = torch.corrcoef(torch.stack([v.double() for v in table])) - torch.eye(7)
        assert seven.abs().max() < 5 / math.sqrt(n)


@pytest.mark.parametrize("side", [16, 32])
def test_what_was_drawn_can_be_read_back(side):
    shapes = Shapes(side=side)
    what = shapes.factors(300, generator(5))
    found, misfit = shapes.read(shapes.render(what))
    for factor in ("label", "colour", "large"):
        assert torch.equal(getattr(found, factor), getattr(what, factor)), factor
    assert (found.centre - what.centre).abs().max() < 0.05 / side
    assert (found.radius / what.radius - 1).abs().max() < 0.01
    assert (found.ground - what.ground).abs().max() < 1e-6
    assert misfit.max() < 0.01
    noise = 0.05 * torch.randn(300, 3, side, side, generator=generator(6))
    found, misfit = shapes.read(shapes.render(what) + noise)
    assert torch.equal(found.colour, what.colour) and misfit.min() > 0.04  # the second result tells
    assert (found.label == what.label).double().mean() > 0.9


def test_the_set_is_a_function_of_its_seed():
    train, test = load_dataset("shapes"), load_dataset("shapes", "test")
    assert train.shape == (3, 16, 16) and train.n_classes == 4 and len(test) == N_TEST
    assert float(train.x.std()) == pytest.approx(SIGMA_DATA, abs=0.005)
    assert float(test.x.std()) == pytest.approx(SIGMA_DATA, abs=0.01)
    assert torch.equal(shapes_factors("test").label, test.labels)
    torch.manual_seed(7)
    again = shapes_dataset("train", Shapes(colour_correlation=0.0), n=100, seed=3)
    assert again.checksum == shapes_dataset("train", n=100, seed=3).checksum
    assert again.checksum != shapes_dataset("train", n=100, seed=4).checksum
    x, labels = train.draw(5, generator(9))
    assert x.shape == (5, 3, 16, 16) and torch.equal(train.draw(5, generator(9))[0], x) and labels.max() < 4
    assert torch.equal(again.labels, Shapes().factors(100, generator(6)).label)
    assert train.card["factors"]["colour"] == list(COLOURS) and train.card["p_colour"][0] == [0.25] * 4


def test_bad_requests():
    for bad in ({"side": 7}, {"colour_correlation": 1.1}, {"size_correlation": -2}):
        with pytest.raises(BadValue):
            Shapes(**bad)
    with pytest.raises(BadValue, match="at least 1"):
        Shapes().draw(0, generator())
    with pytest.raises(BadValue, match="expected pictures"):
        Shapes().read(torch.zeros(2, 3, 8, 8))
    with pytest.raises(BadValue, match="split"):
        shapes_dataset("valid")
