"""Rendered glyphs and patches of photographs: every factor is found again in the picture, and nothing crosses from train to test."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from explorer.data import (
    Glyphs,
    Loader,
    Patches,
    glyph_factors,
    glyphs_dataset,
    load_dataset,
    patch_factors,
    patches_dataset,
)
from explorer.data.glyphs import CAPITALS, DRAWN, drawing
from explorer.data.patches import photographs
from explorer.errors import BadValue


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moments(x: torch.Tensor):
    """Ink (N,), its centre (N, 2) and covariance (N, 2, 2), in units of the side; x (N, 1, S, S)."""
    ink, side = (x[:, 0].double() + 1) / 2, x.shape[-1]
    at = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    total = ink.sum((1, 2))
    centre = torch.stack([ink.sum(1) @ at, ink.sum(2) @ at], 1) / total[:, None]
    dx, dy = at - centre[:, :1], at - centre[:, 1:]
    xx, yy = ((ink.sum(1) * dx**2).sum(1), (ink.sum(2) * dy**2).sum(1))
    xy = torch.einsum("nij,ni,nj->n", ink, dy, dx)
    cov = torch.stack([torch.stack([xx, xy], 1), torch.stack([xy, yy], 1)], 1) / total[:, None, None]
    return total / side**2, centre, cov


def test_size_turn_and_place_of_a_glyph_are_those_asked_for():
    """Mass goes with the square of the size, the centre is the centre, and the covariance turns with the picture."""
    glyphs = Glyphs(side=64)
    what = glyphs.factors(100, generator())
    mass, centre, cov = moments(glyphs.render(what))
    large = torch.cat([drawing(glyphs.style, c) for c in CAPITALS])
    # in the drawing: ink in square heights of a capital, covariance likewise
    own_mass, own_centre, own_cov = moments(2 * large - 1)
    scale = large.shape[-1] / DRAWN
    own_mass, own_cov = own_mass * scale**2, own_cov * scale**2
    torch.testing.assert_close(own_centre, torch.full_like(own_centre, 0.5), rtol=0, atol=1e-4)
    # a pixel is 1/64; bilinear sampling at thirds of one moves the mean by far less
    assert (centre - what.centre).abs().max() < 1e-3
    torch.testing.assert_close(mass, own_mass[what.label] * what.size**2, rtol=0.02, atol=0)
    c, s = what.angle.cos(), what.angle.sin()
    turn = torch.stack([torch.stack([c, -s], 1), torch.stack([s, c], 1)], 1)
    expected = turn @ (own_cov[what.label] * what.size[:, None, None] ** 2) @ turn.mT
    # averages over pixels and the drawing's own smoothing add 0.1 square pixels, reading at thirds as much again; seen 0.18 of up to 70
    assert (cov - expected).abs().max() < 0.3 / 64**2


def test_no_glyph_is_cut_and_the_factors_are_uniform():
    glyphs = Glyphs()
    x, labels = glyphs.draw(1000, generator())
    assert x.shape == (1000, 1, 32, 32) and x.min() == -1 and x.max() <= 1
    edge = torch.cat([x[:, 0, 0], x[:, 0, -1], x[:, 0, :, 0], x[:, 0, :, -1]], 1)
    assert edge.max() < -0.99
    what = glyphs.factors(20_000, generator(1))
    share = torch.bincount(what.label, minlength=26) / 20_000
    assert (share - 1 / 26).abs().max() < 5 * math.sqrt(1 / 26 / 20_000)
    for values, (low, high) in (
        (what.size, glyphs.sizes),
        (what.angle, (-glyphs.turn, glyphs.turn)),
        (what.centre[:, 0], (glyphs.margin, 1 - glyphs.margin)),
        (what.centre[:, 1], (glyphs.margin, 1 - glyphs.margin)),
    ):
        u = ((values - low) / (high - low)).sort().values
        grid = (torch.arange(20_000) + 0.5) / 20_000
        assert (u - grid).abs().max() < 1.95 / math.sqrt(20_000)  # Kolmogorov, 1 in 1000
    columns = torch.stack([what.size, what.angle, what.centre[:, 0], what.centre[:, 1], what.label.double()])
    assert (torch.corrcoef(columns) - torch.eye(5)).abs().max() < 4.5 / math.sqrt(20_000)


def test_capitals_look_like_themselves():
    """Matched with the drawings turned upright, nearly every picture is nearest to its own character."""
    glyphs = Glyphs(side=32, turn=0.0)
    what = glyphs.factors(80, generator())
    x = glyphs.render(what)
    guesses = []
    for k in range(26):
        same = type(what)(torch.full_like(what.label, k), what.size, what.angle, what.centre)
        guesses.append((glyphs.render(same) - x).square().mean((1, 2, 3)))
    assert torch.equal(torch.stack(guesses, 1).argmin(1), what.label)
    names = {"I": (0.2, 0.4), "M": (0.9, 1.3), "O": (0.9, 1.3)}  # widths over heights, as anyone can see
    for name, (low, high) in names.items():
        ink = (drawing(glyphs.style, name)[0, 0] > 0.5).nonzero()
        height, width = (ink.max(0).values - ink.min(0).values + 1).tolist()
        assert low < width / height < high and abs(height - DRAWN) <= 4


def test_the_sets_are_functions_of_their_seeds():
    for name, factors in (("glyphs", glyph_factors), ("patches", patch_factors)):
        train, test = load_dataset(name), load_dataset(name, "test")
        assert train.checksum == load_dataset(name).checksum != test.checksum
        assert abs(float(train.x.std()) - train.sigma_data) < 0.006
        assert torch.equal(factors("train").label, train.labels) and test.name == f"{name}-test"
        assert train.n_classes == len(train.card["classes"]) and train.card["n"] == len(train)
        batch = Loader(train, 8, fresh=True).batch(3)
        assert batch.x0.shape == (8, *train.shape) and torch.equal(batch.x0, Loader(train, 8, fresh=True).batch(3).x0)
    other = glyphs_dataset("train", Glyphs("01", side=16, turn=0.0, style="DejaVuSerif"), n=20, seed=3)
    assert other.shape == (1, 16, 16) and other.n_classes == 2 and other.name == "glyphs16"
    assert not torch.equal(glyphs_dataset(n=20, seed=1).x, glyphs_dataset(n=20, seed=2).x)
    small = patches_dataset("test", Patches(side=8, shrink=4), n=20, seed=3)
    assert small.shape == (3, 8, 8) and small.name == "patches8-test"


def test_patches_are_pieces_of_the_photographs():
    from sklearn.datasets import load_sample_image

    for ours, name in zip(photographs(1), ("china", "flower"), strict=True):
        theirs = load_sample_image(f"{name}.jpg")
        assert np.array_equal(((ours + 1) * 127.5).round().byte().permute(1, 2, 0).numpy(), theirs)
        halves = theirs[:426].astype(np.float64).reshape(213, 2, 320, 2, 3).mean((1, 3)) / 127.5 - 1
        shrunk = photographs(2)[("china", "flower").index(name)].permute(1, 2, 0).numpy()
        assert np.abs(shrunk - halves).max() < 1e-6
    patches = Patches()
    where = patches.factors(60, generator())
    for i, x in enumerate(patches.cut(where)):
        row, column = int(where.row[i]), int(where.column[i])
        piece = photographs(2)[int(where.label[i])][:, row : row + 32, column : column + 32]
        assert torch.equal(x, piece.flip(2) if where.mirrored[i] else piece)
    assert 10 < int(where.mirrored.sum()) < 50 and set(where.label.tolist()) == {0, 1}


@pytest.mark.parametrize("shrink", [1, 2, 4])
def test_no_pixel_is_in_both_regions(shrink):
    train, test = (Patches(16, shrink, split) for split in ("train", "test"))
    ends = [p.factors(20_000, generator()).column for p in (train, test)]
    assert int(ends[0].max()) + 16 == train.region[1] == test.region[0] == int(ends[1].min())
    assert test.region[1] == photographs(shrink)[0].shape[2] == int(ends[1].max()) + 16 and int(ends[0].min()) == 0
    rows = train.factors(20_000, generator()).row
    assert int(rows.min()) == 0 and int(rows.max()) + 16 == photographs(shrink)[0].shape[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Glyphs(side=8), "at least 12"),
        (lambda: Glyphs("AAB"), "must be different"),
        (lambda: Glyphs(""), "at least one"),
        (lambda: Glyphs(style="Comic"), "unknown style 'Comic'"),
        (lambda: Glyphs(sizes=(0.5, 0.9)), "does not fit"),
        (lambda: Glyphs(sizes=(0.5, 0.4)), "must rise"),
        (lambda: Glyphs(turn=4.0), "turn lie in"),
        (lambda: Glyphs("A\ue123"), "has no character"),
        (lambda: Glyphs("A "), "leaves no ink"),
        (lambda: Glyphs().factors(0, generator()), "cannot draw 0"),
        (lambda: Patches(side=300), "does not fit"),
        (lambda: Patches(shrink=0), "whole numbers from 1"),
        (lambda: Patches(split="val"), "unknown split 'val'"),
        (lambda: Patches().factors(0, generator()), "cannot draw 0"),
        (lambda: load_dataset("glyphs", "val"), "unknown split"),
    ],
)
def test_bad_requests(make, message):
    with pytest.raises(BadValue, match=message):
        make()
