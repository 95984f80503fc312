"""Samplers and measures of few-step models, and the figures that show them."""

import math

import numpy as np
import pytest
import torch

from explorer import viz
from explorer.data import oracle
from explorer.errors import BadValue
from explorer.metrics.base import Estimate
from explorer.models.base import Oracle
from explorer.models.flow_maps import as_flow_map
from explorer.process.discretisation import gaussian_map
from explorer.reproduction.few_steps import (
    claim_seeds,
    data_floor,
    exact_ends,
    jumps,
    map_error,
    one_euler_step,
    sliced_w2,
)
from explorer.sampling.solvers import Jump

RING = "8gaussians"


def test_jumps_start_at_the_top_and_end_from_the_intermediate_level():
    assert jumps(1, 0.8).grid.times == (80.0, 0.0) and jumps(2, 0.8).grid.times == (80.0, 0.8, 0.0)
    four = jumps(4, 0.8)
    assert four.grid.times[0] == 80.0 and four.grid.times[-2] == pytest.approx(0.8) and four.grid.n_steps == 4
    assert four.solver == Jump(sigma_min=0.002)


def test_seeds_of_claims_do_not_overlap_between_seeds_of_a_bench():
    a, b = claim_seeds(0, 2_000_000 - 1), claim_seeds(1, 10)
    assert a.ids[-1] < b.ids[0]


def test_the_exact_map_has_no_distance_and_the_mean_has_the_spread_of_the_data():
    noise = claim_seeds(0, 128).normal((2,))
    ends = exact_ends(RING, noise, n_steps=60)
    assert map_error(ends, ends).value == 0
    exact = Oracle(oracle(RING), t_range=(0.002, 80.0))
    mean = map_error(exact.denoise(80 * noise, 80.0), ends)
    # at sigma = 80 the posterior mean is within 1 % of the centre; the ring's points are sqrt(2) 0.5 away on average
    assert mean.value == pytest.approx(math.sqrt(0.5), abs=4 * mean.std_error + 0.02)
    euler = one_euler_step(exact, 80 * noise, 80.0)
    assert torch.allclose(euler, exact.denoise(80 * noise, 80.0), atol=0.02)
    shifted = map_error(ends + 0.3, ends)
    assert shifted.value == pytest.approx(0.3 * math.sqrt(2)) and shifted.std_error < 1e-6


def test_sliced_w2_of_an_exact_sampler_is_the_floor():
    exact = as_flow_map(Oracle(oracle(RING), t_range=(0.002, 80.0)), 24)
    found, floor = sliced_w2(exact, jumps(1, 0.8), RING, n=1024), data_floor(RING, n=1024)
    # two independent sets of the same law: floors of 1024 points scatter by about a third
    assert found.value < 2 * floor.value and floor.value < 0.1
    collapsed = sliced_w2(Oracle(oracle(RING), t_range=(0.002, 80.0)), jumps(1, 0.8), RING, n=1024)
    assert collapsed.value == pytest.approx(0.5, abs=0.05)  # all in the centre: the spread of one coordinate


@pytest.mark.parametrize("backend", ["plotly", "matplotlib"])
def test_figures_say_what_was_measured(backend):
    exact = np.random.default_rng(0).normal(size=(50, 2))
    figure = viz.learnt_maps(exact, {"good": exact, "bad": exact + 1}, n=20, backend=backend)
    assert figure is not None
    points = [(1, Estimate(0.4, 0.01, 100)), (2, Estimate(0.2, 0.01, 100))]
    assert viz.curves(
        {"a": points, "law": [(1, 0.4), (2, 0.3)]}, x="n", y="d", floor=0.1, dashed=("law",), backend=backend
    )
    bars = {"all": Estimate(0.1, 0.01, 9), "without b": Estimate(0.2, 0.02, 9)}
    assert viz.ranked(bars, y="d", pinned="all", floor=0.05, backend=backend)


def test_the_caption_carries_the_errors_of_all_points_and_not_only_the_drawn():
    exact = np.zeros((40, 2))
    figure = viz.learnt_maps(exact, {"half": np.repeat([[0.0, 0.0], [1.0, 0.0]], 20, axis=0)}, n=10)
    texts = " ".join(a.text for a in figure.layout.annotations).replace("<br>", " ")
    assert "half 0.707" in texts and "over 40 noises" in texts


def test_figures_refuse_what_cannot_be_compared():
    with pytest.raises(BadValue, match="equal number"):
        viz.learnt_maps(np.zeros((4, 2)), {"a": np.zeros((5, 2))})
    with pytest.raises(BadValue, match="none of the settings"):
        viz.ranked({"a": Estimate(1.0, 0.1, 3)}, y="d", pinned="b")
    with pytest.raises(BadValue, match="no curve"):
        viz.curves({"a": []}, x="x", y="y")


def test_the_map_of_one_gaussian_is_a_special_case():
    x = 80 * claim_seeds(0, 8).normal((2,))
    assert torch.allclose(gaussian_map(x, 80.0, 0.0, 0.5), x * 0.5 / 80, rtol=1e-3)
