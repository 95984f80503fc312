"""The shapes: areas and places against geometry, the law of the factors against its tables, reading back what was drawn."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from explorer.data import Shapes, load_dataset, shapes_dataset, shapes_factors
from explorer.data.shapes import (
    CLASSES,
    COLOURS,
    LIT_SIGMA_DATA,
    N_FLAT,
    N_TEST,
    SATURATION,
    SHADE,
    SHADOW,
    SHADOW_OFFSET,
    SIGMA_DATA,
)
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
    lit = Shapes(side=32, lit=True)
    what = lit.factors(48, generator(1))
    fine = Shapes(side=512, lit=True).coverage(what).view(48, 32, 16, 32, 16).mean((2, 4))
    worst = (lit.coverage(what) - fine).abs().amax((1, 2))
    assert worst[what.label == 4].max() < 0.05 and worst[what.label == 5].max() < 0.1  # a tip ends within a pixel


@pytest.mark.parametrize("lit", [False, True])
def test_classes_are_what_they_are_called(lit):
    """Corners and holes of pictures large enough to see them: what is covered at the centre and at three distances from it."""
    shapes = Shapes(side=256, lit=lit)
    n = len(shapes.classes)
    what = shapes.factors(n, generator(1))
    what = replace(
        what, label=torch.arange(n), centre=torch.full((n, 2), 0.5), radius=torch.full((n,), 0.2, dtype=torch.float64)
    )
    cover = shapes.coverage(what)
    turn = torch.arange(720) * math.tau / 720

    def share(k: int, distance: float) -> float:  # of the circle of that many radii that is covered
        x, y = ((128 + 51.2 * distance * f(turn)).long().clamp(0, 255) for f in (torch.cos, torch.sin))
        return float((cover[k][y, x] > 0.5).float().mean())

    # r = 1 means: the area is that of the disc; all by hand from the areas, to the width of a pixel on the circle
    half = math.sqrt(math.pi) / 2
    corner = 1 - 8 / math.tau * math.acos(half)  # of the unit circle inside the square
    known = {"disc": (0.95, 1), "square": (1.0, corner), "ring": (1.0, 1), "star": (0.6, 1)}
    for name, (distance, expected) in known.items():
        if name in shapes.classes:
            assert share(shapes.classes.index(name), distance) == pytest.approx(expected, abs=0.02), name
    assert share(0, 1.05) == 0
    if lit:
        assert share(4, 0.7) == 0 and share(4, 1.3) == 0  # a hole of radius 3/4, nothing beyond 5/4
        outer = math.sqrt(math.pi / (5 * 0.45 * math.sin(math.pi / 5)))
        assert share(5, 0.97 * 0.45 * outer) == 1 and 0 < share(5, 0.6 * outer) < 0.7 and share(5, 1.02 * outer) == 0
        for tip in range(5):  # the first one up
            x, y = (math.sin(tip * math.tau / 5), -math.cos(tip * math.tau / 5))
            assert cover[5][int(128 + 51.2 * 0.9 * outer * y), int(128 + 51.2 * 0.9 * outer * x)] > 0.5, tip


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


def test_a_lit_picture_by_hand():
    """One pixel after the other, from the formula in the words of the module."""
    shapes = Shapes(side=32, lit=True)
    what = shapes.factors(40, generator(3))
    x = shapes.render(what)
    shadow = shapes.coverage(replace(what, centre=what.centre + SHADOW_OFFSET * what.radius[:, None]))
    cover, colours = shapes.coverage(what), list(COLOURS.values())
    for i in range(40):
        for row, column in ((0, 0), (31, 31), (12, 20), (16, 16), (20, 13)):
            px, py = (column + 0.5) / 32, (row + 0.5) / 32
            grey = what.ground[i] + what.slope[i, 0] * (px - 0.5) + what.slope[i, 1] * (py - 0.5)
            tint = (1 - py) * what.tint[i, 0] + py * what.tint[i, 1]
            ground = [grey + warm * tint - SHADOW * shadow[i, row, column] for warm in (1, 0, -1)]
            towards = (what.centre[i, 0] - px + what.centre[i, 1] - py) / (math.sqrt(2) * 1.6 * what.radius[i])
            shape = [SATURATION * c + SHADE * max(-1, min(1, towards)) for c in colours[what.colour[i]]]
            a = cover[i, row, column]
            expected = torch.stack([(1 - a) * g + a * s for g, s in zip(ground, shape, strict=True)])
            torch.testing.assert_close(x[i, :, row, column], expected.float(), rtol=0, atol=1e-5)
    many = shapes.draw(2000, generator(4))[0]
    assert many.min() >= -1 and many.max() <= 1  # nothing is cut off, so that it reads back


@pytest.mark.parametrize(
    ("colour", "size", "lit"), [(0.0, 0.0, False), (0.9, 0.0, False), (0.3, -0.8, False), (0.5, 0.4, True)]
)
def test_factors_follow_their_tables(colour, size, lit):
    n = 40_000
    shapes = Shapes(colour_correlation=colour, size_correlation=size, lit=lit)
    what = shapes.factors(n, generator(4))
    K = len(shapes.classes)
    assert shapes.p_colour.shape == (K, K) and torch.allclose(shapes.p_colour.sum(1), torch.ones(K).double())
    for k in range(K):
        mine = what.label == k
        m = int(mine.sum())
        assert abs(m / n - 1 / K) < 5 * math.sqrt(0.25 * 0.75 / n)
        share = torch.bincount(what.colour[mine], minlength=K) / m
        assert (share - shapes.p_colour[k]).abs().max() < 5 * 0.5 / math.sqrt(m)  # five standard errors at most
        assert abs(float(what.large[mine].double().mean()) - float(shapes.p_large[k])) < 5 * 0.5 / math.sqrt(m)
    assert abs(float((what.colour == 1).double().mean()) - 1 / K) < 5 * math.sqrt(
        0.25 * 0.75 / n
    )  # even over all classes
    if not colour and not size:  # all pairs of factors are uncorrelated
        table = [what.label, what.colour, what.large, what.radius - what.large * 0.07, *what.centre.T, what.ground]
        seven = torch.corrcoef(torch.stack([v.double() for v in table])) - torch.eye(7)
        assert seven.abs().max() < 5 / math.sqrt(n)


@pytest.mark.parametrize("side", [32, 48])
def test_lit_pictures_can_be_read_back(side):
    shapes = Shapes(side=side, lit=True)
    what = shapes.factors(200, generator(5))
    found, misfit = shapes.read(shapes.render(what))
    for factor in ("label", "colour", "large"):
        assert torch.equal(getattr(found, factor), getattr(what, factor)), factor
    assert (found.centre - what.centre).abs().max() < 0.1 / side
    assert (found.radius / what.radius - 1).abs().max() < 0.01
    for factor in (
        "ground",
        "slope",
        "tint",
    ):  # the tip of a large star may just touch the edge that they are read from
        assert (getattr(found, factor) - getattr(what, factor)).abs().max() < 0.01, factor
    assert misfit.max() < 0.01


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
    assert train.card["factors"]["colour"] == list(COLOURS)[:N_FLAT] and train.card["p_colour"][0] == [0.25] * 4


def test_the_lit_set():
    train, test = load_dataset("shapes32"), load_dataset("shapes32", "test")
    assert train.shape == (3, 32, 32) and train.n_classes == 6 and len(test) == N_TEST
    assert (train.name, test.name) == ("shapes32", "shapes32-test")
    assert float(train.x.std()) == pytest.approx(LIT_SIGMA_DATA, abs=0.005)
    assert train.card["classes"] == list(CLASSES) and train.card["lit"]


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
