"""Non-leaking augmentation: the filter's defining equations, geometry against pictures drawn in place, labels against their law."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import torch

from explorer.data import Dataset, Loader, NonLeaking
from explorer.data.augment import LABELS, SYM6, affine
from explorer.errors import BadValue


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blob(centre, width=(2.5, 2.5), side: int = 32, angle: float = 0.0) -> torch.Tensor:
    """(1, 1, side, side) a Gaussian hill, places in pixels from the picture's centre."""
    p = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    y, x = torch.meshgrid(p - centre[1], p - centre[0], indexing="ij")
    c, s = math.cos(angle), math.sin(angle)
    a, b = (c * x + s * y) / width[0], (-s * x + c * y) / width[1]
    return (-(a * a + b * b) / 2).exp()[None, None]


def test_the_filter_is_orthonormal_with_six_vanishing_moments():
    h = torch.tensor(SYM6, dtype=torch.float64)
    assert float(h.sum()) == pytest.approx(math.sqrt(2), abs=1e-12)
    for shift in range(6):
        assert float((h[2 * shift :] * h[: 12 - 2 * shift]).sum()) == pytest.approx(float(shift == 0), abs=1e-10)
    k, sign = torch.arange(12, dtype=torch.float64), (-1.0) ** torch.arange(12)
    for m in range(6):
        assert abs(float((sign * h * (k / 11) ** m).sum())) < 1e-9


def test_the_identity_gives_the_picture_back():
    x = torch.randn(3, 2, 24, 20, generator=generator(), dtype=torch.float64)
    same = affine(x, torch.eye(2).expand(3, 2, 2), torch.zeros(3, 2))
    inner = (slice(None), slice(None), slice(6, -6), slice(6, -6))
    torch.testing.assert_close(same[inner], x[inner], rtol=0, atol=1e-9)


def by_scipy(x: np.ndarray, inverse: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """One picture (C, H, W) moved: mirrored, doubled, looked up and halved by scipy's filters and interpolation."""
    h, pad = np.array(SYM6), 6
    centre = (np.arange(12) * h).sum() / math.sqrt(2)
    (height, width), out = x.shape[1:], []
    rows, columns = (((np.arange(2 * n + 10) - centre) / 2 - (n - 1) / 2) for n in (height, width))
    across, down = np.meshgrid(columns - shift[0] * width, rows - shift[1] * height)
    place = [inverse[1, 0] * across + inverse[1, 1] * down, inverse[0, 0] * across + inverse[0, 1] * down]
    for axis, n in enumerate((height, width)):
        at = place[axis] + (n - 1) / 2
        place[axis] = 2 * (np.abs((at + n - 1) % (2 * n - 2) - (n - 1)) + pad) + centre
    for channel in x:
        fine = np.pad(channel, pad, mode="reflect")
        for axis in (0, 1):
            fine = scipy.signal.upfirdn(h, fine, up=2, axis=axis)
        seen = scipy.ndimage.map_coordinates(fine, place, order=1)
        for axis in (0, 1):
            seen = np.apply_along_axis(lambda v: np.correlate(v, h, "valid")[::2], axis, seen)
        out.append(seen)
    return np.stack(out)


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 9, 14), (2, 21, 8)])
def test_moved_pictures_are_those_of_scipys_filters_and_interpolation(shape):
    """Sizes differ along the axes, and shifts reach beyond a mirror image. Rounding: sums of a few hundred products in float64."""
    g, n = generator(6), 12
    x = torch.randn(n, *shape, generator=g, dtype=torch.float64)
    inverse = torch.randn(n, 2, 2, generator=g, dtype=torch.float64)
    shift = torch.randn(n, 2, generator=g, dtype=torch.float64)
    expected = [by_scipy(*(v[i].numpy() for v in (x, inverse, shift))) for i in range(n)]
    moved = affine(x, inverse, shift)
    torch.testing.assert_close(moved, torch.from_numpy(np.stack(expected)), rtol=0, atol=1e-10)
    single = affine(x.float(), inverse.float(), shift.float())  # a place is rounded to 1e-7 of some dozens of pixels
    torch.testing.assert_close(single.double(), moved, rtol=0, atol=1e-3)


def rotation(angle: float) -> torch.Tensor:
    return torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)


def test_geometry_moves_a_hill_to_where_it_belongs():
    """A smooth hill is drawn anew in the right place; bilinear steps of half a pixel cost a few thousandths of its height.

    Corners show what lies beyond the border, mirrored; they are left out.
    """

    def gap(a, b):
        return float((a - b)[..., 6:-6, 6:-6].abs().max())

    hill, eye, none = blob((4.0, -3.0)), torch.eye(2, dtype=torch.float64)[None], torch.zeros(1, 2)
    moved = affine(hill, eye, torch.tensor([[2.5 / 32, -1.25 / 32]]))
    assert gap(moved, blob((6.5, -4.25))) < 0.02
    turned = affine(hill, rotation(0.7)[None], none)  # the result at p shows the source at R p: the hill goes to R^-1 c
    place = rotation(-0.7) @ torch.tensor([4.0, -3.0], dtype=torch.float64)
    assert gap(turned, blob(place.tolist())) < 0.02
    larger = affine(hill, eye / 1.5, none)
    assert gap(larger, blob((6.0, -4.5), (3.75, 3.75))) < 0.02
    round_hill = blob((0.0, 0.0), (3.0, 3.0))
    long = affine(
        round_hill, (rotation(-0.4) @ torch.diag(torch.tensor([1 / 1.4, 1.4])).double() @ rotation(0.4))[None], none
    )
    assert gap(long, blob((0.0, 0.0), (3.0 * 1.4, 3.0 / 1.4), angle=-0.4)) < 0.02


def test_labels_follow_their_law_and_say_what_was_done():
    n, augment = 20_000, NonLeaking(p=0.12)
    labels, inverse = augment.draw(n, generator(1))
    assert labels.shape == (n, len(LABELS))
    done = {"yflip": labels[:, 1], "scale": labels[:, 2], "rotate": labels[:, 4], "aniso": labels[:, 5:7].norm(dim=1),
            "shift": labels[:, 7:].norm(dim=1)}  # fmt: skip
    for name, value in done.items():
        p = 0.06 if name == "yflip" else 0.12
        assert abs(float((value != 0).double().mean()) - p) < 5 * math.sqrt(p * (1 - p) / n), name
    assert abs(float(labels[:, 0].mean()) - 0.5) < 5 * 0.5 / math.sqrt(n)
    turned = labels[:, 4] != 0
    angle = torch.atan2(labels[turned, 4], labels[turned, 3] + 1)
    assert float(angle.std()) == pytest.approx(math.pi / math.sqrt(3), rel=0.05)  # uniform over the circle
    m = int((labels[:, 2] != 0).sum())
    assert float(labels[:, 2][labels[:, 2] != 0].std()) == pytest.approx(1, abs=5 / math.sqrt(2 * m))
    size = torch.exp2(-0.4 * labels[:, 2])  # areas: the square of 2^(-0.2 z); rotation and aniso keep them
    torch.testing.assert_close(torch.linalg.det(inverse), size, rtol=1e-4, atol=1e-5)
    only = labels[:, 2:7].abs().amax(1) == 0
    assert (inverse[only] - torch.eye(2)).abs().max() < 1e-6


def test_untouched_pictures_stay_and_flips_are_exact():
    x = torch.randn(400, 1, 12, 12, generator=generator(2))
    y, labels = NonLeaking(p=0.3)(x, generator(3))
    plain = (labels == 0).all(1)
    assert plain.any() and torch.equal(y[plain], x[plain])
    flipped = (labels[:, 2:] == 0).all(1) & (labels[:, 0] == 1) & (labels[:, 1] == 0)
    assert flipped.any() and torch.equal(y[flipped], x[flipped].flip(3))
    upside = (labels[:, 2:] == 0).all(1) & (labels[:, 0] == 0) & (labels[:, 1] == 1)
    assert upside.any() and torch.equal(y[upside], x[upside].flip(2))
    other = (labels[:, 2:] != 0).any(1)
    assert ((y - x).abs().amax((1, 2, 3))[other] > 0).all() and y.isfinite().all()
    off, none = NonLeaking(p=0.0, xflip=False)(x, generator(3))
    assert torch.equal(off, x) and not none.any()
    ramp = torch.linspace(-1, 1, 16).expand(50, 1, 16, 16)
    far, _ = NonLeaking(p=1.0, shift=2.0)(ramp, generator(4))
    assert far.abs().max() < 1.3  # mirrored, not filled with anything


def test_a_loader_hands_the_labels_on_and_resumes():
    data = Dataset("noise", torch.randn(40, 3, 8, 8, generator=generator(5)))
    loader = Loader(data, 8, seed=2, augment=NonLeaking(p=0.5))
    batch = loader.batch(3)
    assert batch.augment.shape == (8, 9) and torch.equal(loader.batch(3).augment, batch.augment)
    assert torch.equal(loader.batch(3).x0, batch.x0) and not torch.equal(loader.batch(4).augment, batch.augment)
    assert [part.augment.shape for part in batch.chunk(2)] == [(4, 9), (4, 9)]
    assert Loader(data, 8).batch(0).augment is None
    with pytest.raises(BadValue, match="at least 7"):
        NonLeaking()(torch.zeros(2, 3, 6, 6), generator())
    with pytest.raises(BadValue, match="probability"):
        NonLeaking(p=1.2)
