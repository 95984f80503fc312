"""Comparisons of noise-to-sample maps against maps whose answer is known: equal, shifted, permuted, rotated, independent."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import spearmanr

from explorer.errors import BadValue
from explorer.models import Oracle
from explorer.process import EDM, GaussianMixture, Linear
from explorer.sampling import Euler, Heun, OdeSampler, TimeGrid
from explorer.trajectory import record, trajectory
from explorer.trajectory.coupling import endpoints
from explorer.trajectory.maps import compare_maps, disagreement, lasso, map_verdict, microscope
from tests.problems import ring


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def a_run(noise: torch.Tensor, data: torch.Tensor, **info) -> xr.Dataset:
    """A recording of straight lines from noise to data."""
    return trajectory({"x": torch.stack([noise, (noise + data) / 2, data], dim=1)}, [1.0, 0.5, 0.0], Linear(), **info)


def test_a_map_agrees_with_itself_in_every_way():
    x = normal(60, 3)
    found = compare_maps(x, x.clone(), where=x[:7])
    assert float(found.mean_distance) == 0 and float(found.swap_rate) == 0 and float(found.identity_swap_rate) == 0
    assert float(found.mean_neighbours_kept) == 1 and np.allclose(found.rank_correlation, 1)
    assert found.attrs["n"] == 60 and float(found.swap_rate_se) > 0  # nobody of 60 is not nobody at all


@given(shift=st.floats(0, 5), n=st.integers(8, 60))
def test_a_shift_moves_everybody_by_its_length_and_swaps_nobody(shift, n):
    x = normal(n, 2)
    y = x + torch.tensor([shift, 0.0])
    found = compare_maps(x, y)
    assert np.allclose(found.distance, shift) and float(found.mean_distance) == pytest.approx(shift)
    # the scale is the root mean square distance of two unrelated ends, sqrt of the two variances added
    scale = math.sqrt(float(x.var(0).sum() + y.var(0).sum()))
    assert float(found.mean_relative) == pytest.approx(shift / scale)
    assert float(found.mean_neighbours_kept) == 1 and np.allclose(found.rank_correlation, 1)


def test_unrelated_ends_are_one_scale_apart_and_share_neighbours_only_by_chance():
    n, k = 2000, 5
    found = compare_maps(normal(n, 8), normal(n, 8, seed=1), n_neighbours=k)
    rms = math.sqrt(float((found.relative**2).mean()))
    assert rms == pytest.approx(1.0, abs=4 * 0.25 / math.sqrt(n))  # |x - y|^2 / 2 D has standard deviation sqrt(2 / 8)
    assert float(found.mean_neighbours_kept) < 0.01  # k / n by chance
    assert float(found.identity_swap_rate) > 0.99
    assert np.abs(found.rank_correlation).max() < 4.5 / math.sqrt(n)


def test_swaps_are_counted_exactly():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], dtype=torch.float64)
    home = torch.arange(30) % 3
    x = centres[home] + 0.1 * normal(30, 2)
    moved = home.clone()
    moved[:6] = (home[:6] + 1) % 3
    y = centres[moved] + (x - centres[home])
    found = compare_maps(x, y, where=centres)
    assert float(found.swap_rate) == 6 / 30 and found.swapped.values.nonzero()[0].tolist() == list(range(6))
    assert found.site.values.tolist() == [home.tolist(), moved.tolist()]
    by_function = compare_maps(x, y, where=lambda ends: (ends[:, 0] > 5).long() + 2 * (ends[:, 1] > 5).long())
    assert np.array_equal(by_function.swapped, found.swapped)
    p = 7 / 32
    assert float(found.swap_rate_se) == pytest.approx(math.sqrt(p * (1 - p) / 30))


def test_two_ends_exchanged_are_two_identity_swaps():
    x = normal(40, 2)
    order = torch.arange(40)
    order[[3, 9]] = order[[9, 3]]
    found = compare_maps(x, x[order])
    assert found.identity_swap.values.nonzero()[0].tolist() == [3, 9] and found.nearest.values[[3, 9]].tolist() == [
        9,
        3,
    ]
    assert float(found.identity_swap_rate) == 2 / 40


def test_rank_correlations_are_scipys_and_costs_are_compared_in_pairs():
    noise, x, y = normal(200, 2), normal(200, 2, seed=1), normal(200, 2, seed=2)
    y = y + x
    a, b = a_run(noise, x), a_run(noise, y)
    found = compare_maps(a, b, names=("one", "two"))
    for i in range(2):
        assert float(found.rank_correlation[i]) == pytest.approx(spearmanr(x[:, i], y[:, i])[0])
    first, second = ((noise - end).square().sum(1) for end in (x, y))
    assert float(found.cost_rank_correlation) == pytest.approx(spearmanr(first, second)[0])
    gap = first - second
    assert float(found.cost_difference) == pytest.approx(float(gap.mean()))
    assert float(found.cost_difference_se) == pytest.approx(float(gap.std()) / math.sqrt(200))
    assert np.allclose(found.cost.sel(run="two"), second)
    said = map_verdict(found)
    assert "under one and two the same noise ends" in said and "(n = 200)" in said and "one is better than two" in said


def test_recordings_endpoints_and_bare_tensors_say_the_same():
    noise, x, y = normal(25, 2), normal(25, 2, seed=1), normal(25, 2, seed=2)
    a, b = a_run(noise, x), a_run(noise, y)
    full, ends, bare = compare_maps(a, b), compare_maps(endpoints(a), endpoints(b)), compare_maps(x, y.numpy())
    xr.testing.assert_allclose(full, ends)
    assert "cost" not in bare and np.allclose(bare.distance, full.distance)
    mixed = compare_maps(x, b)
    assert np.array_equal(mixed.seed, b.seed)


def test_images_keep_their_dimensions():
    x, y = normal(12, 1, 3, 3), normal(12, 1, 3, 3, seed=1)
    found = compare_maps(x, y)
    assert found.rank_correlation.dims == ("channel", "row", "col")
    seen = microscope({"a": a_run(y, x)}, [1, 2])
    assert seen.data.dims == ("run", "sample", "channel", "row", "col") and seen.data.shape == (1, 2, 1, 3, 3)


def test_the_exact_flow_of_one_gaussian_is_the_same_map_on_every_grid_and_another_gaussian_is_a_scaling_of_it():
    """x = m + s eps: with s twice as wide ends are |eps| s apart, a monotone map per coordinate."""
    grid = TimeGrid.log_snr(60, 1e-3, 1e3)
    runs = {
        s: record(Oracle(GaussianMixture(torch.zeros(1, 2), s), EDM()), OdeSampler(Heun(), grid), range(200))
        for s in (0.5, 1.0)
    }
    found = compare_maps(runs[0.5], runs[1.0])
    noise = endpoints(runs[0.5]).noise.values
    assert np.allclose(found.distance, 0.5 * np.linalg.norm(noise, axis=1), rtol=0.01)  # Heun at 60 steps
    assert np.allclose(found.rank_correlation, 1)
    few = record(Oracle(ring(), EDM()), OdeSampler(Euler(), TimeGrid.karras(4, 0.01, 80)), range(200))
    many = record(Oracle(ring(), EDM()), OdeSampler(Heun(), TimeGrid.karras(40, 0.01, 80)), range(200))
    fine = record(Oracle(ring(), EDM()), OdeSampler(Heun(), TimeGrid.karras(80, 0.01, 80)), range(200))
    table = disagreement({"few": few, "many": many, "fine": fine}, where=ring().means)
    gaps = table.distance.values
    assert np.array_equal(gaps, gaps.T) and not gaps.diagonal().any()
    assert gaps[1, 2] < 0.05 * gaps[0, 2]
    pair = compare_maps(few, fine, where=ring().means)
    assert gaps[0, 2] == pytest.approx(float(pair.mean_distance))
    assert float(table.relative[0, 2]) == pytest.approx(float(pair.mean_relative))
    assert float(table.swap_rate[0, 2]) == float(pair.swap_rate)


# The microscope


def test_the_microscope_shows_the_chosen_points_and_where_each_run_sends_them():
    noise = normal(50, 2)
    runs = {"copy": a_run(noise, noise), "double": a_run(noise, 2 * noise), "point": a_run(noise, 0 * noise)}
    mask = (noise[:, 0] > 0).numpy()
    seen = microscope(runs, mask, where=torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    chosen = noise[torch.from_numpy(mask)]
    assert np.array_equal(seen["index"], mask.nonzero()[0]) and seen.attrs == {
        "n": int(mask.sum()), "n_total": 50, "noise_spread": pytest.approx(float(seen.spread[0])),
    }  # fmt: skip
    assert np.allclose(seen.noise, chosen) and np.allclose(seen.data.sel(run="double"), 2 * chosen)
    assert np.allclose(seen.stretch, [1, 2, 0]) and np.allclose(seen.mean_cost[0], 0)
    assert np.allclose(seen.distance.sel(run="double"), chosen.norm(dim=1)) and not seen.distance[0].values.any()
    assert np.allclose(seen.cost.sel(run="point"), chosen.square().sum(1))
    assert seen.site_share.sel(run="double").values.tolist() == [1.0, 0.0]
    assert len(seen.other) == 50 - mask.sum() and np.allclose(seen.noise_other, noise[torch.from_numpy(~mask)])
    by_position = microscope(runs, mask.nonzero()[0][::-1])
    assert np.array_equal(by_position.noise, seen.noise)


def test_the_microscope_on_one_point_and_on_all():
    noise = normal(10, 2)
    one = microscope({"a": a_run(noise, noise)}, [3])
    assert one.sizes["sample"] == 1 and math.isnan(float(one.stretch[0])) and math.isnan(float(one.mean_cost_se[0]))
    everything = microscope({"a": a_run(noise, noise)}, np.ones(10, bool))
    assert everything.sizes["other"] == 0


@pytest.mark.parametrize("mask", [np.zeros(10, bool), [], torch.zeros(10, dtype=torch.bool)])
def test_an_empty_selection_says_what_to_do(mask):
    noise = normal(10, 2)
    with pytest.raises(BadValue, match="no noise point is selected: draw the lasso around at least one of the 10"):
        microscope({"a": a_run(noise, noise)}, mask)


def test_what_cannot_be_paired_is_refused():
    noise = normal(10, 2)
    a = a_run(noise, noise)
    with pytest.raises(BadValue, match="other seeds or labels than 'A'"):
        compare_maps(a, a_run(noise, noise, seeds=range(1, 11)))
    with pytest.raises(BadValue, match="other seeds or labels"):
        microscope({"a": a, "b": a_run(noise, noise, labels=[1] * 10)}, [0])
    with pytest.raises(BadValue, match="shape"):
        compare_maps(a, normal(9, 2))
    with pytest.raises(BadValue, match="at least two samples"):
        compare_maps(normal(1, 2), normal(1, 2))
    with pytest.raises(BadValue, match="different names"):
        compare_maps(a, a, names=("A", "A"))
    with pytest.raises(BadValue, match="9 entries.*10 noise"):
        microscope({"a": a}, np.ones(9, bool))
    with pytest.raises(BadValue, match="from 0 to 9"):
        microscope({"a": a}, [10])
    with pytest.raises(BadValue, match="needs the noise"):
        microscope({"a": noise}, [1])
    with pytest.raises(BadValue, match="neither a recording"):
        compare_maps(xr.Dataset({"y": ("sample", [1.0, 2.0])}), a)
    with pytest.raises(BadValue, match="one site per sample"):
        compare_maps(a, a, where=lambda ends: ends)
    with pytest.raises(BadValue, match="3 numbers each"):
        compare_maps(a, a, where=torch.zeros(4, 3))


# The lasso


@given(
    points=hnp.arrays(np.float64, (20, 2), elements=st.floats(-2, 2)),
    corners=hnp.arrays(np.float64, st.tuples(st.integers(3, 9), st.just(2)), elements=st.floats(-2, 2)),
)
def test_the_lasso_agrees_with_the_winding_parity_of_matplotlib_free_ray_casting(points, corners):
    """Oracle: parity of the crossings of a ray in another direction. Points within 1e-9 of an edge may fall on either side."""
    found = lasso(points, corners)
    turn = np.array([[math.cos(1.0), -math.sin(1.0)], [math.sin(1.0), math.cos(1.0)]])
    turned = lasso(points @ turn.T, corners @ turn.T)
    edge = np.roll(corners, -1, axis=0) - corners
    share = np.clip(((points[:, None] - corners) * edge).sum(2) / np.maximum((edge**2).sum(1), 1e-300), 0, 1)
    near = np.linalg.norm(points[:, None] - (corners + share[..., None] * edge), axis=2).min(1)
    clear = near > 1e-9
    assert np.array_equal(found[clear], turned[clear])


def test_the_lasso_on_known_shapes():
    square = [(0, 0), (2, 0), (2, 2), (0, 2)]
    inside = lasso(np.array([[1, 1], [3, 1], [-1, 1], [1, 3], [0.1, 1.9]]), square)
    assert inside.tolist() == [True, False, False, False, True]
    star = [(0, 3), (-2, -3), (3, 1), (-3, 1), (2, -3)]  # its middle is wound twice: outside by the even-odd rule
    assert lasso(np.array([[0.0, 0.0], [0.0, 2.0]]), star).tolist() == [False, True]
    noise = normal(30, 2)
    assert np.array_equal(lasso(a_run(noise, noise), square), lasso(noise, square))
    with pytest.raises(BadValue, match="at least three"):
        lasso(noise, [(0, 0), (1, 1)])
    with pytest.raises(BadValue, match="points of the plane"):
        lasso(normal(5, 3), square)
