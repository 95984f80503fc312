"""Fractals: the law of the systems, attractors that are known exactly, pictures that depend on their number alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from explorer.data import Fractals, fractals_dataset, load_dataset
from explorer.data.fractals import BURN_IN, System, _clouds, _padded, _rgb, attractor, sample_system
from explorer.errors import BadValue


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chaos(system: System, chains: int, steps: int, seed: int = 0) -> torch.Tensor:
    """(chains, steps - burn-in, 2)."""
    u = torch.rand(1, chains, steps, generator=generator(seed))
    return attractor(*_padded([system]), u).view(chains, steps - BURN_IN, 2)


def test_systems_obey_the_constraints_on_their_singular_values():
    g, reflections = generator(), 0
    for i in range(600):
        n = 2 + i % 6
        system = sample_system(n, g)
        s = torch.linalg.svdvals(system.a)
        assert (s <= 1).all() and (s >= 0).all()  # sorted: s1 >= s2
        a = float((s * torch.tensor([1.0, 2.0])).sum())
        assert (5 + n) / 2 - 1e-9 <= a <= (6 + n) / 2 + 1e-9
        assert system.b.abs().max() <= 1 and float(system.p.sum()) == pytest.approx(1)
        reflections += int((torch.linalg.det(system.a) < 0).sum())
    n_maps = sum(2 + i % 6 for i in range(600))
    assert abs(reflections / n_maps - 0.5) < 5 * 0.5 / math.sqrt(n_maps)
    fixed = [
        float((torch.linalg.svdvals(sample_system(3, g, (4.5, 4.5)).a) * torch.tensor([1.0, 2.0])).sum())
        for _ in range(50)
    ]
    assert max(abs(a - 4.5) for a in fixed) < 1e-9


def test_the_sierpinski_triangle_has_three_to_the_k_cells():
    corners = torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.0, 0.5]], dtype=torch.float64)
    points = chaos(System(torch.eye(2, dtype=torch.float64).expand(3, 2, 2) / 2, corners), 1000, 100).view(-1, 2)
    for k in range(2, 8):
        cells = (points * 2**k).floor().long()
        assert len(torch.unique(cells[:, 0] * 2**k + cells[:, 1])) == 3**k


@pytest.mark.parametrize("seed", range(4))
def test_the_mean_of_the_points_is_the_fixed_point_of_the_mean_map(seed):
    system = sample_system(2 + seed, generator(seed))
    points = chaos(system, 2000, BURN_IN + 60, seed).double()
    chains = points[:, 20:].mean(1)  # chains are independent of each other: their spread is the standard error
    error = chains.std(0) / math.sqrt(len(chains))
    assert ((chains.mean(0) - system.mean()).abs() < 4 * error + 1e-4).all()  # what is left of the common start
    radius = float(system.b.norm(dim=1).max()) / (1 - float(torch.linalg.svdvals(system.a).max()))
    assert points.isfinite().all() and float(points.norm(dim=2).max()) <= radius * (1 + 1e-5)


def test_pictures_depend_on_seed_class_and_index_alone():
    fractals = Fractals(side=16, n_classes=3, chains=32, steps=30)
    labels, indices = torch.arange(3).repeat(50), torch.arange(150) // 3
    whole = fractals.render(labels, indices)
    assert whole.shape == (150, 3, 16, 16) and whole.dtype == torch.uint8
    assert torch.equal(fractals.render(labels, indices, workers=3), whole)
    order = torch.randperm(150, generator=generator(1))
    torch.manual_seed(5)
    assert torch.equal(fractals.render(labels[order], indices[order]), whole[order])
    assert torch.equal(fractals.render([2], [40]), whole[[122]])
    assert torch.equal(Fractals(side=16, n_classes=9, chains=32, steps=30).render([2], [40]), whole[[122]])
    assert len(torch.unique(whole.flatten(1), dim=0)) == 150
    assert not torch.equal(Fractals(side=16, n_classes=3, chains=32, steps=30, seed=1).render([2], [40]), whole[[122]])
    x, k = fractals.draw(6, generator(3))
    y, m = fractals.draw(6, generator(3))
    assert torch.equal(x, y) and torch.equal(k, m) and x.min() >= -1 and x.max() <= 1


PLAIN = {"window": False, "flips": False, "blur": False, "background": False}


def test_rendering_counts_the_points_of_each_pixel():
    """By a loop over the points, for one picture."""
    fractals = Fractals(side=16, n_classes=1, chains=16, steps=40, jitter=0, trim=0.0, **PLAIN)
    points = chaos(fractals.systems[0], 16, 40, 7)
    graded = fractals._graded(points.view(1, -1, 2), torch.zeros(1, 20), torch.zeros(1, 3, 3))[0]
    counts = np.zeros((16, 16))
    flat = points.view(-1, 2).numpy()
    low, high = flat.min(0), flat.max(0)
    for p in flat:
        row, column = np.floor((p - low) / (high - low) * np.float32(15)).astype(int)
        counts[row, column] += 1
    np.testing.assert_allclose(graded, counts / counts.max(), rtol=1e-6)


def test_the_ground_fills_exactly_what_the_fractal_leaves():
    options = {"side": 32, "n_classes": 4, "chains": 128, "steps": 60, "jitter": 0, "flips": False, "blur": False}
    bare = Fractals(**options, background=False).render([0, 1, 2, 3] * 4, range(16))
    full = Fractals(**options, background=True).render([0, 1, 2, 3] * 4, range(16))
    drawn = (bare > 0).any(1, keepdim=True).expand_as(bare)
    assert torch.equal(bare[drawn], full[drawn])
    black = (full == 0).all(1)
    assert not black.any()
    assert 0.05 < float(drawn.float().mean()) < 0.7


def test_jitter_widens_a_class():
    spread = []
    for jitter in (0.0, 0.5, 1.0):
        fractals = Fractals(side=16, n_classes=4, chains=64, steps=60, jitter=jitter, **PLAIN)
        points = fractals.render(torch.arange(4).repeat_interleave(40), torch.arange(40).repeat(4)) > 0
        filled = points.any(1).float().view(4, 40, 16, 16)
        spread.append(float(filled.var(1).mean()))
    assert spread[0] < spread[1] < spread[2]


def test_colours_and_flips():
    import colorsys

    g = torch.rand(3, 40, 1, 1, generator=generator(2))
    ours = _rgb(*g)[:, :, 0, 0]
    theirs = torch.tensor([colorsys.hsv_to_rgb(*(float(v[i]) for v in g)) for i in range(40)])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    options = {
        "side": 16,
        "n_classes": 2,
        "chains": 64,
        "steps": 40,
        "window": False,
        "blur": False,
        "background": False,
    }
    seen = {
        tuple((p.float().mean(0) > 0).flatten().tolist())
        for p in Fractals(**options, jitter=0, flips=True, trim=0.0).render([1] * 60, range(60))
    }
    assert len(seen) > 8  # eight orientations, and the points differ


def test_clouds_are_midpoint_displacement():
    """Point by point as the algorithm is usually told, on a 9x9 grid."""
    u, decay = torch.rand(1, 9, 9, generator=generator(4)), torch.tensor([0.6], dtype=torch.float64)
    ours, a = _clouds(u, decay)[0], np.zeros((9, 9))
    u = u[0].numpy()
    for r in (0, 8):
        for c in (0, 8):
            a[r, c] = u[r, c]
    for level, half in ((1, 4), (2, 2), (3, 1)):
        m = 0.5 * math.exp(0.6 * (1 - level))
        for r in range(half, 9, 2 * half):
            for c in range(half, 9, 2 * half):
                around = [a[r - half, c - half], a[r - half, c + half], a[r + half, c - half], a[r + half, c + half]]
                a[r, c] = np.mean(around) + m * (2 * u[r, c] - 1)
        middles = [(r, c) for r in range(0, 9, half) for c in range(0, 9, half) if (r + c) // half % 2]
        for r, c in middles:  # the grid closes on itself
            around = [a[(r - half) % 8, c], a[(r + half) % 8, c], a[r, (c - half) % 8], a[r, (c + half) % 8]]
            a[r, c] = np.mean(around) + m * (2 * u[r, c] - 1)
    np.testing.assert_allclose(ours, a, atol=1e-6)


def test_the_set_is_kept_on_disk_and_made_anew_when_damaged(tmp_path, monkeypatch):
    fractals = Fractals(side=8, n_classes=2, chains=16, steps=24)
    data = fractals_dataset("train", fractals, n=5, cache=tmp_path)
    assert data.shape == (3, 8, 8) and data.labels.tolist() == [0] * 5 + [1] * 5 and data.name == "fractals8"
    [file] = tmp_path.glob("*.npy")
    assert torch.equal(torch.from_numpy(np.load(file)).float() / 127.5 - 1, data.x)
    from explorer.data import fractals as module

    module._dataset.cache_clear()
    monkeypatch.setattr(Fractals, "render", lambda *_, **__: pytest.fail("rendered again"))
    assert fractals_dataset("train", fractals, n=5, cache=tmp_path).checksum == data.checksum
    monkeypatch.undo()
    file.write_bytes(file.read_bytes()[:100])
    module._dataset.cache_clear()
    assert fractals_dataset("train", fractals, n=5, cache=tmp_path).checksum == data.checksum
    test = fractals_dataset("test", fractals, n=5, cache=tmp_path)
    assert test.name == "fractals8-test" and test.checksum != data.checksum


def test_bad_requests():
    for bad in ({"side": 2}, {"n_maps": (1, 3)}, {"steps": 20}, {"trim": 0.5}, {"jitter": -1}):
        with pytest.raises(BadValue):
            Fractals(**bad)
    with pytest.raises(BadValue, match="0..9"):
        Fractals().render([10], [0])
    with pytest.raises(BadValue, match="sigma-factor"):
        sample_system(2, generator(), (5.0, 7.0))


@pytest.mark.slow
def test_the_sets_by_name_load(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPLORER_CACHE", str(tmp_path))
    train = load_dataset("fractals16")
    assert train.shape == (3, 16, 16) and len(train) == 3000 and train.n_classes == 10
    assert 0.3 < float(train.x.std()) < 0.6
