"""Time grids: the formulas of their papers, exact ends, editing, conversion between paths, and refusals in words."""

import itertools
import json
import math
import re

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import assume, given
from hypothesis import strategies as st
from problems import PATHS
from scipy import integrate, stats

from explorer.errors import BadValue, UnknownName
from explorer.process import EDM, VP, CosineVP, IDDPMPrecondition, Linear
from explorer.sampling import GRIDS, TimeGrid, grid
from explorer.sampling.grids import LEVELS, WARPED, noise_levels
from explorer.viz import grids as figures

STEPS = st.sampled_from([1, 2, 3, 5, 18, 60])
LOW, RATIO = st.floats(5e-4, 2.0), st.floats(1.5, 1e4)


def falling(values) -> bool:
    return all(a > b for a, b in itertools.pairwise(values))


# Builders


@pytest.mark.parametrize("name", GRIDS)
@given(n=STEPS, low=LOW, ratio=RATIO, to_zero=st.booleans())
def test_every_grid_is_strictly_decreasing_with_exact_ends(name, n, low, ratio, to_zero):
    high = low * ratio
    try:
        g = GRIDS[name](n, low, high, to_zero=to_zero)
    except BadValue as error:
        assert name == "discrete" and "noise levels" in str(error)  # only the model's levels can run out
        return
    assert g.n_steps == n and falling(g.times) and g.coordinate == "sigma"
    assert g.times[0] == high and g.times[-1] == (0.0 if to_zero else low)


@pytest.mark.parametrize("name", sorted(set(GRIDS) - {"discrete"}))
def test_a_thousand_steps_are_fine_on_every_path(name):
    g = grid(name, 1000, 0.002, 80.0)
    assert g.n_steps == 1000
    assert all(falling(g.on(path)) for path in PATHS)


@pytest.mark.parametrize("name", GRIDS)
def test_more_steps_refine_the_first_and_stay_between_the_ends(name):
    """The largest step in arctan(sigma), a bounded clock, shrinks as steps are added: no builder ignores n_steps."""
    widths = []
    for n in (4, 16, 64):
        clock = [math.atan(s) for s in grid(name, n, 0.05, 20.0).times]
        widths.append(max(a - b for a, b in itertools.pairwise(clock)))
    assert falling(widths)


def test_the_warp_reaches_the_grids_that_have_one():
    for name in GRIDS:
        assert (grid(name, 5, 0.01, 10.0, rho=3.0) != grid(name, 5, 0.01, 10.0, rho=7.0)) == (name in WARPED)


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_karras_in_the_time_of_a_path(rho):
    assert TimeGrid.karras_t(9, 0.01, 30.0, rho, EDM()).times == pytest.approx(
        TimeGrid.karras(9, 0.01, 30.0, rho).times, rel=1e-13
    )
    for path in PATHS:
        t = [s ** (1 / rho) for s in TimeGrid.karras_t(9, 0.01, 30.0, rho, path).on(path)[:-1]]
        gaps = [a - b for a, b in itertools.pairwise(t)]
        assert gaps == pytest.approx([gaps[0]] * 8, rel=1e-9)


def test_polyexponential_is_the_formula_of_k_diffusion():
    n, low, high, power = 7, 0.02, 15.0, 1.7
    ramp = np.linspace(1, 0, n) ** power
    want = np.exp(ramp * (math.log(high) - math.log(low)) + math.log(low))
    assert TimeGrid.log_snr(n, low, high, power).times[:-1] == pytest.approx(want, rel=1e-12)


def test_beta_grid_has_equal_probability_between_its_nodes():
    """By quadrature of the Beta density over each step, an independent route to its quantiles."""
    path, a, b, n = VP(), 0.6, 1.4, 6
    t = np.array(TimeGrid.beta(n, 0.01, 30.0, a, b, path, to_zero=False).on(path))
    u = (t - t[-1]) / (t[0] - t[-1])
    density = lambda v: v ** (a - 1) * (1 - v) ** (b - 1)  # noqa: E731
    mass = [integrate.quad(density, lo, hi)[0] for hi, lo in itertools.pairwise(u)]
    assert mass == pytest.approx([sum(mass) / n] * n, rel=1e-5)


def test_beta_of_one_is_uniform():
    assert TimeGrid.beta(5, 0.1, 9.0, 1.0, 1.0, EDM()).times == pytest.approx(TimeGrid.uniform_sigma(5, 0.1, 9.0).times)


def test_sigmoid_grid_is_uniform_on_the_schedule_of_its_paper():
    """Chen 2023, Algorithm 1, written out: gamma falls from 1 to 0, and t = i / n of its range gives alpha^2 = gamma."""
    start, end, tau, high = -3.0, 3.0, 0.9, 12.0
    s = lambda v: 1 / (1 + math.exp(-v / tau))  # noqa: E731
    gamma = lambda t: (s(end) - s(start + t * (end - start))) / (s(end) - s(start))  # noqa: E731
    sigmas = np.array(TimeGrid.sigmoid(8, 0.01, high, start, end, tau).times)
    t = [0.0]
    for sigma in sigmas[::-1][1:]:
        lo, hi = 0.0, 1.0
        for _ in range(80):  # bisection of the falling curve
            mid = (lo + hi) / 2
            lo, hi = (mid, hi) if gamma(mid) > 1 / (1 + sigma**2) else (lo, mid)
        t.append(lo)
    assert np.diff(t) == pytest.approx([t[-1] / 8] * 8, rel=1e-9)


@pytest.mark.parametrize(("low", "high"), [(0.002, 80.0), (0.01, 0.4), (5.0, 900.0)])
def test_laplace_grid_has_equal_probability_between_its_nodes(low, high):
    mu, b = -0.7, 0.8
    g = TimeGrid.laplace(6, low, high, mu, b, to_zero=False)
    law = stats.laplace(mu, b)
    log_snr = -2 * np.log(g.times)
    # difference of whichever tail is small, so that the far ones keep their digits
    mass = np.where(log_snr[:-1] > mu, law.sf(log_snr[:-1]) - law.sf(log_snr[1:]), np.diff(law.cdf(log_snr)))
    assert mass == pytest.approx([mass[0]] * 6, rel=1e-8)


def test_discrete_grid_is_the_index_formula_of_edm():
    """Karras et al. 2022, Table 1: u_j with j = floor(j_0 + (M - 1 - j_0) / (N - 1) i + 1/2)."""
    u, j0, m = noise_levels("iddpm"), 8, 1000
    assert len(u) == m and u[j0] == pytest.approx(80, rel=0.15)  # EDM: about 80 at j_0 = 8
    for n in (2, 3, 10, 35, 64, 500, m - j0):
        want = [u[math.floor(j0 + (m - 1 - j0) / (n - 1) * i + 0.5)] for i in range(n)] + [0.0]
        got = TimeGrid.discrete(n, u[-1], u[j0]).times
        # a tie may be rounded either way by the floating-point formula; elsewhere the two are the same
        ties = [i for i in range(n) if abs(((m - 1 - j0) / (n - 1) * i) % 1 - 0.5) < 1e-9]
        assert [g for i, g in enumerate(got) if i not in ties] == [w for i, w in enumerate(want) if i not in ties]


def test_discrete_grids_say_when_the_levels_run_out():
    with pytest.raises(BadValue, match="at most 5 steps"):
        TimeGrid.discrete(6, 0.1, 10.0, [1.0, 2.0, 3.0])
    assert TimeGrid.discrete(5, 0.1, 10.0, [1.0, 2.0, 3.0]).times == (10.0, 3.0, 2.0, 1.0, 0.1, 0.0)
    assert TimeGrid.discrete(4, 0.1, 10.0, [1.0, 2.0, 3.0], to_zero=False).times == (10.0, 3.0, 2.0, 1.0, 0.1)
    with pytest.raises(BadValue, match="at most 4 steps"):
        TimeGrid.discrete(5, 0.1, 10.0, [1.0, 2.0, 3.0], to_zero=False)
    with pytest.raises(BadValue, match="1000 different noise levels"):
        TimeGrid.discrete(1000, 0.002, 80.0)
    with pytest.raises(UnknownName, match="Did you mean 'iddpm'"):
        TimeGrid.discrete(5, 0.1, 10.0, "idppm")


@pytest.mark.parametrize("name", LEVELS)
def test_noise_levels_fall_and_agree_with_their_schedules(name):
    u = np.array(noise_levels(name))
    assert len(u) == 1000 and (np.diff(u) < 0).all() and u[-1] > 0
    if name == "iddpm":
        assert u.tolist() == IDDPMPrecondition().levels()[:-1].tolist()
        return
    low, high = {"ddpm": (1e-4, 0.02), "scaled-linear": (0.00085, 0.012)}[name]
    beta = np.linspace(low, high, 1000) if name == "ddpm" else np.linspace(low**0.5, high**0.5, 1000) ** 2
    product = np.cumprod(1 - beta)
    assert u[::-1] == pytest.approx(np.sqrt((1 - product) / product), rel=1e-9)
    if name == "scaled-linear":
        assert u[0] == pytest.approx(
            14.6146, rel=1e-4
        )  # the largest sigma of Stable Diffusion, as every front end quotes it


# Editing


@given(times=st.lists(st.floats(0, 100), min_size=2, max_size=12, unique=True), data=st.data())
def test_edits_keep_a_grid_a_grid(times, data):
    g = TimeGrid(tuple(sorted(times, reverse=True)))
    new = data.draw(st.floats(0, 200))
    assume(new not in g.times)
    wider = g.insert(new)
    assert set(wider.times) == {*g.times, new} and falling(wider.times)
    assert wider.remove(wider.times.index(new)) == g
    assert g.merge(wider).n_steps in (g.n_steps, wider.n_steps)  # less where the new node is within rtol of an old one
    i = data.draw(st.integers(0, g.n_steps))
    low = g.times[i + 1] if i < g.n_steps else 0.0
    high = g.times[i - 1] if i else 200.0
    middle = (low + high) / 2
    if low < middle < high:
        moved = g.move(i, middle)
        assert moved.times[i] == middle and falling(moved.times)
        assert moved.times[:i] + moved.times[i + 1 :] == g.times[:i] + g.times[i + 1 :]


@given(n=STEPS, factor=st.integers(1, 5), rho=st.floats(1, 9))
def test_coarsening_undoes_refining(n, factor, rho):
    g = TimeGrid.karras(n, 0.01, 20.0, 3.0)
    fine = g.refine(factor, rho=rho)
    assert fine.n_steps == n * factor and fine.times[::factor] == g.times
    assert fine.coarsen(factor) == g


def test_refining_halves_in_the_warped_coordinate():
    assert TimeGrid((4.0, 1.0, 0.0)).refine(2, rho=1).times == (4.0, 2.5, 1.0, 0.5, 0.0)
    assert TimeGrid((4.0, 1.0, 0.0)).refine(2, rho=2).times == pytest.approx((4.0, 2.25, 1.0, 0.25, 0.0))
    assert TimeGrid((5.0, 4.0, 3.0, 2.0, 1.0)).coarsen(3).times == (5.0, 2.0, 1.0)


def test_merging_counts_agreeing_nodes_once():
    a, b = TimeGrid((4.0, 2.0, 0.0)), TimeGrid((4.0 * (1 + 1e-12), 3.0, 0.0))
    assert a.merge(b).times == (4.0, 3.0, 2.0, 0.0)
    with pytest.raises(BadValue, match="convert one"):
        a.merge(TimeGrid((0.8, 0.0), "t"))


def test_shifting_is_the_time_shift_of_flow_matching():
    g, shift = TimeGrid.uniform_t(6, 0.01, 50.0), 3.0
    t = np.array(g.on(Linear()))
    assert g.shifted(shift).on(Linear()) == pytest.approx(shift * t / (1 + (shift - 1) * t), rel=1e-12)


def test_snapping_takes_the_nearest_level_and_names_collisions():
    assert TimeGrid((7.0, 2.4, 0.3, 0.0)).snapped([8.0, 3.0, 2.0, 0.1]).times == (8.0, 2.0, 0.1, 0.0)
    with pytest.raises(BadValue, match=r"sigma = 2\.4 and 2\.1 \(nodes 1 and 2\) fall on the same level 2"):
        TimeGrid((7.0, 2.4, 2.1, 0.0)).snapped([8.0, 3.0, 2.0, 0.1])
    u = noise_levels("ddpm")
    assert set(TimeGrid.karras(20, 0.05, 50.0).snapped("ddpm").times[:-1]) <= set(u)
    with pytest.raises(BadValue, match="same level"):
        TimeGrid.karras(999, 0.05, 50.0).snapped("ddpm")


# Conversion and storage


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("name", GRIDS)
def test_there_and_back_between_paths(path, name):
    """Relative 1e-12: float64 keeps sigma = 80 to 80 eps on a bounded clock, and 1e-3 to 1e3 eps."""
    g = grid(name, 24, 0.002, 80.0)
    there = g.to("t", path)
    assert there.coordinate == "t" and there.times == tuple(g.on(path)) and there.times[-1] == 0.0
    back = there.to("sigma", path)
    assert back.coordinate == "sigma"
    np.testing.assert_allclose(back.times, g.times, rtol=1e-12)
    other = there.to("t", Linear(), of=path)
    np.testing.assert_allclose(other.times, g.on(Linear()), rtol=1e-12)
    assert there.to("t", path) is there


@given(n=STEPS, low=LOW, ratio=RATIO, name=st.sampled_from(sorted(GRIDS)), as_t=st.booleans())
def test_json_is_exact(n, low, ratio, name, as_t):
    try:
        g = grid(name, n, low, low * ratio)
    except BadValue:
        assume(False)
    g = g.to("t", CosineVP()) if as_t else g
    assert TimeGrid.from_json(g.to_json()) == g
    assert json.loads(g.to_json())["coordinate"] == ("t" if as_t else "sigma")


def test_any_sequence_of_numbers_makes_a_grid():
    want = TimeGrid((3.0, 1.0, 0.0))
    assert TimeGrid.explicit([3, 1, 0]) == want == TimeGrid.explicit(np.array([3.0, 1, 0]))
    assert TimeGrid.explicit(torch.tensor([3.0, 1.0, 0.0])) == want == TimeGrid.explicit(iter((3, 1, 0)))
    assert TimeGrid.explicit([3, 3, 1, 0, 0], dedupe=True) == want
    assert TimeGrid.karras(np.int64(4), 0.1, 2.0) == TimeGrid.karras(4, 0.1, 2.0)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: TimeGrid((2.0, 1.0, 1.0, 0.0)), r"got 1 followed by 1 \(nodes 1 and 2\).*dedupe=True"),
        (lambda: TimeGrid((1.0, 2.0, 0.0)), r"got 1 followed by 2 \(nodes 0 and 1\).*sort them"),
        (lambda: TimeGrid((2.0, math.nan, 0.0)), "followed by nan.*not finite"),
        (lambda: TimeGrid((2.0, 1.0, -1.0)), "end at 0"),
        (lambda: TimeGrid((1.0 + 2e-16, 1.0 + 2e-16)), "strictly decreasing"),
        (lambda: TimeGrid(3.0), "sequence of numbers"),
        (lambda: TimeGrid.explicit("karras"), "sequence of numbers"),
        (lambda: TimeGrid.explicit([1.0, 1.0], dedupe=True), "at least one step"),
        (lambda: TimeGrid.karras(2.5, 0.1, 1.0), "whole number of at least 1, got 2.5"),
        (lambda: TimeGrid.karras(math.nan, 0.1, 1.0), "whole number"),
        (lambda: TimeGrid.karras(-3, 0.1, 1.0), "whole number of at least 1, got -3"),
        (lambda: TimeGrid.cosine(4, 1.0, 1.0), "sigma_min must be positive and below sigma_max"),
        (lambda: TimeGrid.beta(4, math.nan, 1.0), "sigma_min must be positive and below sigma_max"),
        (lambda: TimeGrid.sigmoid(4, 0.1, math.inf), "sigma_min must be positive and below sigma_max"),
        (lambda: TimeGrid.beta(4, 0.1, 1.0, 0.0), "a must be positive"),
        (lambda: TimeGrid.beta(40, 0.1, 1.0, 0.02, 0.6), "run into each other.*nodes"),
        (lambda: TimeGrid.laplace(4, 0.1, 1.0, b=-1), "b must be positive"),
        (lambda: TimeGrid.sigmoid(4, 0.1, 1.0, start=3, end=3), "larger end"),
        (lambda: TimeGrid.polynomial(4, 0.1, 1.0, power=0), "power must be positive"),
        (lambda: TimeGrid.discrete(4, 0.1, 1.0, [0.5, -1.0]), "positive, finite"),
        (lambda: noise_levels("iddpm", 1), "whole number of at least 2"),
        (lambda: TimeGrid((1.0, 0.5, 0.0)).insert(0.5), "0.5 is already node 1"),
        (lambda: TimeGrid((1.0, 0.5, 0.0)).insert(-0.5), "not negative"),
        (lambda: TimeGrid((1.0, 0.5, 0.0)).insert(math.nan), "finite"),
        (lambda: TimeGrid((1.0, 0.5, 0.0)).move(1, 1.5), "node 1 can move to a value above node 2 at 0 and below node 0"),
        (lambda: TimeGrid((1.0, 0.5, 0.0)).move(-1, -0.1), "not below 0"),
        (lambda: TimeGrid((1.0, 0.5, 0.0)).move(5, 0.1), "nodes 0 to 2, got 5"),
        (lambda: TimeGrid((1.0, 0.0)).remove(0), "at least one step"),
        (lambda: TimeGrid((1.0, 0.0)).refine(0), "factor must be a whole number"),
        (lambda: TimeGrid((1.0 + 4e-16, 1.0)).refine(64), "float64 does not tell"),
        (lambda: TimeGrid((0.5, 0.0), "t").snapped(), r"convert it with grid\.to"),
        (lambda: TimeGrid((0.5, 0.0), "t").shifted(2.0), r"convert it with grid\.to"),
        (lambda: TimeGrid((1.0, 0.5), "t").to("sigma", Linear()), "pure noise"),
        (lambda: TimeGrid((2.0, 0.5), "t").to("sigma", Linear()), "beyond t_max"),
        (lambda: TimeGrid((1e30, 1e20, 1.0)).to("t", Linear()), "float64 cannot tell nodes 0 and 1"),
        (lambda: TimeGrid((1e30, 1e20, 1.0)).on(Linear()), "float64 cannot tell nodes 0 and 1"),
        (lambda: TimeGrid.from_json("{"), "not JSON"),
        (lambda: TimeGrid.from_json('{"sigmas": [1, 0]}'), "a stored time grid is"),
        (lambda: TimeGrid.from_json('{"times": "abc"}'), "sequence of numbers"),
        (lambda: TimeGrid.from_json("[3, 1, 0]"), "a stored time grid is"),
    ],
)  # fmt: skip
def test_bad_grids_are_refused_in_words(make, says):
    with pytest.raises(BadValue, match=says):
        make()


def test_a_wrong_coordinate_names_the_two_there_are():
    for make in (lambda: TimeGrid((1.0, 0.0), "time"), lambda: TimeGrid((1.0, 0.0)).to("lambda", EDM())):
        with pytest.raises(UnknownName, match="sigma, t"):
            make()


# Figures

SHOWN = {"karras": TimeGrid.karras(6, 0.02, 20.0).times, "by hand": (20.0, 2.0, 0.2, 0.02)}
NODES = TimeGrid.log_snr(12, 0.02, 20.0, to_zero=False)


def squared_steps() -> xr.Dataset:
    i = np.arange(13.0)
    cost = xr.DataArray(np.triu((i[None, :] - i[:, None]) ** 2), dims=("start", "end"), attrs={"long_name": "cost"})
    coords = {"sigma_start": ("start", list(NODES.times)), "sigma_end": ("end", list(NODES.times))}
    return xr.Dataset({"cost": cost}, coords, {"n": 7})


FIGURES = {
    "steps": lambda **o: figures.grid_steps(SHOWN, pinned="by hand", **o),
    "density": lambda **o: figures.step_density(SHOWN, **o),
    "costs": lambda **o: figures.cost_matrix(squared_steps(), {"even": NODES.times[::4], "all": NODES.times}, **o),
}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", FIGURES)
def test_figures_in_both_libraries(name, theme):
    drawn = FIGURES[name](theme=theme, backend="plotly")
    words = " ".join(a.text for a in drawn.layout.annotations)
    assert re.search(r"\d steps", words) and len(drawn.data) >= 2
    text = drawn.to_json()
    assert "Infinity" not in text and json.loads(text)
    other = FIGURES[name](theme=theme, backend="matplotlib")
    other.canvas.draw()
    assert re.search(r"\d steps", other.get_supxlabel())


def test_widths_and_densities_are_those_of_the_steps():
    lines = [t for t in FIGURES["steps"](backend="plotly").data if t.mode == "lines" and t.xaxis == "x2"]
    for line, sigma in zip(lines, SHOWN.values(), strict=True):
        inside = np.array([s for s in sigma if s > 0])
        np.testing.assert_allclose(line.y, np.log(inside[:-1] / inside[1:]))
        np.testing.assert_allclose(np.square(line.x), inside[:-1] * inside[1:])
    for line, sigma in zip(FIGURES["density"](backend="plotly").data, SHOWN.values(), strict=True):
        decades = -np.diff(np.log10(np.asarray(line.x, dtype=float)))
        area = (np.asarray(line.y, dtype=float)[:-1] * decades).sum()
        assert area == pytest.approx(sum(s > 0 for s in sigma) - 1)  # steps per decade times decades


def test_a_route_is_a_staircase_whose_corners_are_its_steps():
    drawn = FIGURES["costs"](backend="plotly")
    heat = drawn.data[0]
    z = np.array(heat.z, dtype=float)
    assert z[2, 5] == pytest.approx(math.log10(9)) and np.isnan(z[5, 2]) and np.isnan(z[3, 3])
    stairs = next(t for t in drawn.data if t.name == "even")
    assert list(zip(stairs.x, stairs.y, strict=True)) == [(0, 0), (4, 0), (4, 4), (8, 4), (8, 8), (12, 8), (12, 12)]
    corners = next(t for t in drawn.data if t.type == "scatter" and t.mode == "markers")
    assert list(zip(corners.x, corners.y, strict=True)) == [(4, 0), (8, 4), (12, 8)]
    zero = figures.cost_matrix(squared_steps(), {"even": (*NODES.times[::4], 0.0)})  # the free last step is left out
    assert list(next(t for t in zero.data if t.type == "scatter" and t.mode == "markers").x) == [4, 8, 12]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: figures.grid_steps({}), "no time grid"),
        (lambda: figures.grid_steps({"a": (1.0, 2.0)}), "a is not a grid"),
        (lambda: figures.step_density({"a": (1.0,)}), "a is not a grid"),
        (lambda: figures.cost_matrix(squared_steps(), {"a": (20.0, 3.0, 0.02)}), "sigma = 3 of a is no node"),
    ],
)
def test_figures_refuse_what_is_no_grid(make, says):
    with pytest.raises(BadValue, match=says):
        make()
