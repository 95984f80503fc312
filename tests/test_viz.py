"""Every figure in both libraries and both themes: what it holds, not which pixels."""

from __future__ import annotations

import inspect
import json
import math
import re
import zlib

import numpy as np
import pytest
import torch
import xarray as xr

from explorer import trajectory as tr
from explorer import viz
from explorer.errors import BadValue, MissingExtra, UnknownName
from explorer.metrics.base import Estimate
from explorer.models.base import Oracle
from explorer.process import EDM, Linear
from explorer.process.oracles import GaussianMixture
from explorer.sampling import AdaptiveSampler, DPMpp2M, Heun, OdeSampler, TimeGrid
from explorer.viz.canvas import canvas, joined
from explorer.viz.metrics import pareto_front
from explorer.viz.theme import DARK, LIGHT, angle_colors, ramp

ANGLES = 2 * math.pi * torch.arange(6, dtype=torch.float64) / 6
RING = Oracle(GaussianMixture(2 * torch.stack((ANGLES.cos(), ANGLES.sin()), dim=1), 0.2), name="ring")
PICTURES = Oracle(GaussianMixture(torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1, 0.1))
GRID = TimeGrid.karras(8, 0.01, 50)
MODES = RING.mixture.means


EXTENT = (-3.0, 3.0, -3.0, 3.0)


def estimates(n: int = 5) -> list[Estimate]:
    late = [Estimate(0.5, 2 / math.sqrt(256 * k), 256 * k, "FD[digits-cnn]", raw=0.5 + 1 / k) for k in range(1, n)]
    return [Estimate(math.nan, math.nan, 64, "FD[digits-cnn]", raw=3.0), *late]


@pytest.fixture(scope="module")
def data() -> dict:
    flat = tr.record(RING, OdeSampler(Heun(), GRID), range(40))
    running = {}
    for name, solver in (("heun", Heun()), ("dpm++", DPMpp2M())):
        geometry = tr.RunningGeometry(EDM(), onto=Linear())
        tr.record(RING, OdeSampler(solver, GRID), range(30), observe=geometry)
        running[name] = geometry.result()
    images = tr.record(PICTURES, OdeSampler(Heun(), GRID), range(5), keep=("x", "x0_hat"))
    return {
        "flat": flat,
        "bill": {k: tr.attribution(flat, RING, "step", method=k, substeps=2) for k in ("exact", "adjoint")},
        "lyapunov": tr.lyapunov(flat.isel(sample=slice(5)), RING, "step", substeps=1),
        "dimension": {"ring": tr.effective_dimension(flat, "all"), "images": tr.effective_dimension(images, "all")},
        "decisions": tr.decisions(flat, tr.nearest(RING.mixture.means)),
        "events": tr.pixel_events(images, 0.05),
        "basis": tr.principal_basis(images, 3, path=Linear()),
        "running": running,
        "images": images,
        "field": tr.velocity_field(RING, 0.4, EXTENT, path=Linear(), n=5),
        "density": tr.point_density(tr.data_of(flat), EXTENT, n=60),
        "budget": tr.budget(flat, RING, RING.mixture.sample(40, torch.Generator().manual_seed(0))[0], n_times=5),
        "runs": {"fine": flat, "few": tr.record(RING, OdeSampler(Heun(), TimeGrid.karras(3, 0.01, 50)), range(40))},
        "reflow": tr.reflow(
            Oracle(RING.mixture, Linear(), t_range=(1e-4, 1.0)),
            tr.noise_of(flat),
            tr.data_of(flat),
            rounds=2,
            blur=0.2,
            n_steps=5,
        ),
        "likelihood": {
            name: tr.likelihood_by_steps(RING, tr.data_of(flat)[:6], steps=(2, 4), width=0.1, **settings)
            for name, settings in (("exact", {}), ("probes", {"divergence": "gaussian", "n_probes": 2}))
        },
        "trips": tr.round_trip_by_steps(RING, tr.data_of(flat)[:6], (4, 8)),
        "effort": {
            method: tr.adaptive_effort(sampler.run(RING, tr.noise_of(flat))[1], EDM(), n_bins=6)
            for method in ("bosh3", "dopri5")
            for sampler in [AdaptiveSampler(GRID, method, 1e-3, 1e-3)]
        },
        "proxy": tr.angle_proxy(flat, path=Linear()),
        "pareto": {"A": (15, estimates()[-1]), "B": (8, estimates()[-2]), "C": (30, estimates()[-1])},
    }


FIGURES = {
    "adaptive_effort": lambda d, **o: viz.adaptive_effort(d["effort"], **o),
    "attribution": lambda d, **o: viz.attribution(d["bill"], **o),
    "exponents": lambda d, **o: viz.exponents(d["lyapunov"], **o),
    "scree": lambda d, **o: viz.scree(d["dimension"], **o),
    "decisions": lambda d, **o: viz.decisions(d["decisions"], n=20, **o),
    "event_maps": lambda d, **o: viz.event_maps(d["events"], **o),
    "numbers": lambda d, **o: viz.numbers(d["running"], **o),
    "space": lambda d, **o: viz.space(d["images"], d["basis"], **o),
    "trajectories": lambda d, **o: viz.trajectories(d["flat"], n=30, field=d["field"], density=d["density"], **o),
    "projected": lambda d, **o: viz.projected(d["images"], **o),
    "by_step": lambda d, **o: viz.by_step(d["running"], pinned="heun", **o),
    "schedules": lambda d, **o: viz.schedules({"a": GRID.sigmas(EDM()), "b": [5, 1, 0.1]}, **o),
    "grid_steps": lambda d, **o: viz.grid_steps({"a": GRID.sigmas(EDM()), "b": [5, 1, 0.1]}, pinned="b", **o),
    "step_density": lambda d, **o: viz.step_density({"a": GRID.sigmas(EDM()), "b": [5, 1, 0.1]}, **o),
    "cost_matrix": lambda d, **o: viz.cost_matrix(tr.gits(d["flat"]).mean(), {"a": GRID.times[::2]}, **o),
    "history": lambda d, **o: viz.history({"A": estimates(), "B": estimates(3)}, pinned="A", **o),
    "pareto": lambda d, **o: viz.pareto(d["pareto"], pinned="A", **o),
    "couplings": lambda d, **o: viz.couplings(d["flat"], **o),
    "budget": lambda d, **o: viz.budget(d["budget"], **o),
    "angle_map": lambda d, **o: viz.angle_map(d["proxy"], **o),
    "order_plot": lambda d, **o: viz.order_plot(
        CURVES, families={"one": ["a", "b"], "two": ["c"]}, caption="n = 8", **o
    ),
    "work_precision": lambda d, **o: viz.work_precision({"A": [(9, estimates()[-1]), (18, estimates()[-2])]}, **o),
    "conflict_map": lambda d, **o: viz.conflict_map(tr.conflict_map(d["flat"], n_bins=8), **o),
    "microscope": lambda d, **o: viz.microscope(tr.microscope(d["runs"], [0, 3, 7]), **o),
    "end_distances": lambda d, **o: viz.end_distances({"few": tr.compare_maps(*d["runs"].values(), where=MODES)}, **o),
    "disagreement": lambda d, **o: viz.disagreement(tr.disagreement(d["runs"]), **o),
    "rounds": lambda d, **o: viz.rounds(d["reflow"], **o),
    "likelihood": lambda d, **o: viz.likelihood(d["likelihood"], **o),
    "arrows": lambda d, **o: viz.arrows(DOTS, {"field": -DOTS}, data=2 * DOTS, **o),
    "clouds": lambda d, **o: viz.clouds({"a": DOTS, "b": 0.5 * DOTS}, data=2 * DOTS, **o),
    "repeated": lambda d, **o: viz.repeated(
        {"R = 1": [((0, 1, 2), (1.0, float("nan"), 0.3))] * 2}, target=0.5, axis="|b|", **o
    ),
    "code_normality": lambda d, **o: viz.code_normality(tr.normality(tr.noise_of(d["flat"])), **o),
    "round_trip": lambda d, **o: viz.round_trip(d["trips"], **o),
    "image_grid": lambda d, **o: viz.image_grid(d["images"].x.values[:, -1], caption="toy", **o),
    "filmstrip": lambda d, **o: viz.filmstrip(d["images"], (0, 2), n_frames=5, **o),
}


DOTS = np.stack([np.cos(np.arange(6)), np.sin(np.arange(6))], 1)

CURVES = {
    "a": [(4, 1e-1), (8, 5e-2), (16, 2.5e-2)],
    "b": [(16, 1e-5), (4, 1e-1), (8, 1e-3)],
    "c": [(4, 0.3), (8, 1e-13)],
}


def test_every_figure_is_tested():
    functions = {name: getattr(viz, name) for name in viz.__all__ if inspect.isfunction(getattr(viz, name))}
    drawing = {name for name, f in functions.items() if "backend" in inspect.signature(f).parameters}
    elsewhere = {"learnt_maps", "curves", "ranked"}  # tests/test_few_steps.py
    elsewhere |= {"search_progress", "winners_curse"}  # tests/test_viz_tuning.py
    elsewhere |= {"density_maps"}  # tests/test_autoguidance.py
    elsewhere |= {
        "coefficients",
        "forgetting",
        "landscape",
        "layers_left_out",
        "two_errors",
        "warps",
    }  # tests/test_viz_tuners.py
    assert drawing - elsewhere | {"projected"} == set(FIGURES)  # projected passes its options on


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", FIGURES)
def test_plotly_figures(data, name, theme):
    figure = FIGURES[name](data, theme=theme, backend="plotly")
    th = viz.theme_of(theme)
    assert figure.layout.paper_bgcolor == th.background and figure.layout.uirevision == "explorer"
    assert len(figure.data) > 0
    words = " ".join(a.text for a in figure.layout.annotations)
    assert re.search(r"\bn = \d|\d steps", words), words  # n (or the number of steps) stands in every caption
    text = figure.to_json()
    assert "Infinity" not in text and len(text) < 2_000_000
    json.loads(text)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", FIGURES)
def test_matplotlib_figures(data, name, theme):
    from matplotlib.figure import Figure

    figure = FIGURES[name](data, theme=theme, backend="matplotlib")
    assert isinstance(figure, Figure) and figure.axes
    assert re.search(r"\bn = \d|\d steps", figure.get_supxlabel())
    figure.canvas.draw()  # layout and rendering raise nothing
    import matplotlib.pyplot as plt

    assert not plt.get_fignums()  # nothing is left registered


def test_paths_are_where_the_data_are(data):
    flat = data["flat"]
    figure = viz.trajectories(flat, n=10, path=None, until=4)
    lines = [t for t in figure.data if t.mode == "lines"]
    drawn = np.concatenate([np.stack((t.x, t.y), axis=1) for t in lines])
    drawn = drawn[np.isfinite(drawn).all(axis=1)]
    assert len(drawn) == 10 * 5
    expected = flat.x.values[:10, :5].reshape(-1, 2)
    np.testing.assert_allclose(np.sort(drawn, axis=0), np.sort(expected, axis=0))
    start, now = (t for t in figure.data if t.mode == "markers")
    np.testing.assert_allclose(np.stack((start.x, start.y), axis=1), flat.x.values[:10, 0])
    np.testing.assert_allclose(np.stack((now.x, now.y), axis=1), flat.x.values[:10, 4])
    assert f"σ = {float(flat.sigma[4]):.3g}" in figure.layout.annotations[-1].text
    whole, part = viz.trajectories(flat, n=10), viz.trajectories(flat, n=10, until=2)
    assert whole.layout.xaxis.range == part.layout.xaxis.range  # scrubbing does not move the frame


def test_paths_can_be_coloured(data):
    labelled = data["flat"].assign_coords(label=("sample", np.arange(40) % 3))
    for color in ("angle", "label", "cost"):
        assert viz.trajectories(labelled, color=color).data
    with pytest.raises(UnknownName, match="angle"):
        viz.trajectories(labelled, color="angel")
    with pytest.raises(BadValue, match="projected"):
        viz.trajectories(data["images"])


def test_curves_share_the_sigma_axis_and_carry_their_bands(data):
    figure = viz.by_step(data["running"], ["curvature", "step_length"], pinned="heun", sigma_range=(0.005, 100.0))
    titles = [a.text for a in figure.layout.annotations]
    assert titles[:3] == ["curvature", "step length", "time grid"]
    axes = [figure.layout[k] for k in ("xaxis", "xaxis2", "xaxis3")]
    assert all(a.type == "log" and a.range == (2.0, math.log10(0.005)) for a in axes)  # noise left, data right
    assert axes[-1].title.text == "σ, log scale"
    named = [t for t in figure.data if t.showlegend]
    assert [t.name for t in named] == ["heun", "dpm++"]
    assert named[0].line.color == LIGHT.text and named[1].line.color == LIGHT.color(0)
    np.testing.assert_allclose(named[0].y, data["running"]["heun"].curvature)
    assert sum(t.fill == "toself" for t in figure.data) == 4
    single = viz.by_step(tr.straightness(data["flat"], by="step", path=Linear()), ticks=False)
    assert (
        not any(t.showlegend for t in single.data) and single.layout.annotations[0].text == "squared gap to the chord"
    )
    with pytest.raises(BadValue, match="by is?|by step"):
        viz.by_step(xr.Dataset({"a": 1.0}))
    with pytest.raises(BadValue, match="path="):
        viz.by_step(data["running"]["heun"].drop_vars("sigma"))


def test_history_shows_raw_faint_and_leaves_a_gap_where_there_is_no_number():
    figure = viz.history(estimates(), y_range=(0.0, 2.0))
    raw, band, line, dots = figure.data
    assert math.isnan(line.y[0]) and raw.y[0] == 3.0 and raw.line.dash == "dot" and line.line.width > raw.line.width
    assert (
        len(band.x) == 2 * 4
        and figure.layout.yaxis.title.text == "FD[digits-cnn]"
        and figure.layout.yaxis.range == (0, 2)
    )
    assert "95 %" in figure.layout.annotations[-1].text and "n = 1024" in figure.layout.annotations[-1].text
    with pytest.raises(BadValue, match="no estimate"):
        viz.history([])


def test_pareto_front_is_what_nothing_beats():
    assert pareto_front([(3, 1.0), (1, 3.0), (2, 3.5), (2, 2.0), (4, 1.0)]) == [(1, 3.0), (2, 2.0), (3, 1.0)]
    with pytest.raises(BadValue, match="no setting"):
        viz.pareto({"a": (1, estimates()[0])})


def test_order_plot_names_each_curve_with_its_slope():
    assert viz.measured_order(CURVES["a"]) == pytest.approx(1.0)
    assert viz.measured_order(CURVES["b"]) == pytest.approx(math.log(1e4) / math.log(4))
    assert math.isnan(viz.measured_order(CURVES["c"]))  # the second error is rounding
    figure = viz.order_plot(CURVES)
    assert {"a 1.0", "b 6.6", "c nan"} <= {a.text for a in figure.layout.annotations}
    solid = [t for t in figure.data if t.mode == "lines" and t.line.dash == "solid"]
    assert sorted(zip(solid[1].x, solid[1].y, strict=True)) == sorted(CURVES["b"])
    dotted = [t for t in figure.data if t.line.dash == "dot"]
    slopes = [-math.log(t.y[1] / t.y[0]) / math.log(t.x[1] / t.x[0]) for t in dotted]
    assert slopes == pytest.approx([1, 2, 3, 4])
    with pytest.raises(BadValue, match="nothing was measured for z"):
        viz.order_plot(CURVES, families={"x": ["a", "z"]})
    with pytest.raises(BadValue, match="positive error"):
        viz.order_plot({"a": [(4, 0.0), (8, math.nan)]})


def test_work_precision_rings_what_nothing_beats():
    points = {"one": [(4, 1.0), (8, 0.1), (16, 0.05)], "two": [(4, 0.5), (8, 0.2), (16, 0.01), (32, 0.02)]}
    figure = viz.work_precision(points, quality="RMSE")
    rings = {
        (x, y) for t in figure.data if (t.marker.symbol or "") == "circle-open" for x, y in zip(t.x, t.y, strict=True)
    }
    assert rings == {(4, 0.5), (8, 0.1), (16, 0.01)}
    assert figure.layout.yaxis.type == "log" and figure.layout.yaxis.title.text == "RMSE"
    last = estimates()[-1]
    measured = viz.work_precision({"A": [(9, last)]}, level=0.68)
    bar = next(t for t in measured.data if t.mode == "lines" and t.line.width == 3)
    assert tuple(bar.y) == last.interval(0.68) and measured.layout.yaxis.title.text == "FD[digits-cnn]"
    assert f"n = {last.n}" in measured.layout.annotations[-1].text
    with pytest.raises(BadValue, match="nothing to draw"):
        viz.work_precision({"a": [(4, math.nan)]})


def test_names_are_spread_apart_in_order():
    from explorer.viz.solvers import spread

    rng = np.random.default_rng(0)
    for _ in range(200):
        at = rng.uniform(-20, 220, rng.integers(1, 13)).tolist()
        out = spread(at, 14.0, 0.0, 200.0)
        ranked = sorted(zip(at, out, strict=True))
        assert min(out) >= -1e-9 and max(out) <= 200 + 1e-9
        assert all(b - a >= 14.0 - 1e-6 for (_, a), (_, b) in zip(ranked[:-1], ranked[1:], strict=True))
    assert spread([50.0, 100.0], 14.0, 0.0, 200.0) == [50.0, 100.0]  # what has room stays
    assert spread([100.0, 100.0], 14.0, 0.0, 200.0) == [93.0, 107.0]


def test_couplings_share_axes_and_colours_side_by_side(data):
    runs = data["runs"]
    figure = viz.couplings(runs, n=30)
    alone = viz.couplings(runs["fine"], n=30)
    assert figure.layout.xaxis.range == figure.layout.xaxis2.range and figure.layout.width == 2 * alone.layout.width
    [wide, tight] = (float(f.layout.xaxis.range[1] - f.layout.xaxis.range[0]) for f in (figure, alone))
    assert wide >= tight  # the frame holds both runs
    ends = {name: tr.endpoints(run) for name, run in runs.items()}
    assert viz.couplings(ends, n=30).to_json() == figure.to_json()
    words = figure.layout.annotations[-1].text
    assert "fine: mean cost" in words and "few: mean cost" in words


def test_the_microscope_draws_the_chosen_points_and_their_ends(data):
    seen = tr.microscope(data["runs"], [0, 3, 7])
    figure = viz.microscope(seen)
    rings = [t for t in figure.data if t.mode == "markers" and t.marker.symbol == "circle-open"]
    assert len(rings) == 2 and all(np.allclose(np.stack((t.x, t.y), 1), seen.noise) for t in rings)
    dots = [t for t in figure.data if t.mode == "markers" and t.text]
    for t, run in zip(dots, seen["data"].values, strict=True):
        assert np.allclose(np.stack((t.x, t.y), 1), run)
    assert "n = 3 of 40" in figure.layout.annotations[-1].text.replace("<br>", " ")


def test_likelihood_curves_are_the_numbers_with_their_bands(data):
    figure = viz.likelihood(data["likelihood"])
    one = data["likelihood"]["exact"]
    line = next(t for t in figure.data if t.name == "exact")
    assert np.allclose(line.y, one.mean_bits_per_dim) and np.allclose(line.x, one.nfe)
    bare = {k: v.drop_vars([n for n in v.data_vars if "bits" in n]) for k, v in data["likelihood"].items()}
    assert np.allclose(next(t for t in viz.likelihood(bare).data if t.name == "exact").y, one.mean_log_prob)
    with pytest.raises(UnknownName, match="mean_log_prob"):
        viz.likelihood(one, "bits")


def test_couplings_mark_every_crossing(data):
    figure = viz.couplings(data["flat"], n=40)
    crosses = [t for t in figure.data if t.mode == "markers" and t.marker.symbol == "x-thin-open"]
    n = tr.crossings(data["flat"]).attrs["n_crossings"]
    words = figure.layout.annotations[-1].text.replace("<br>", " ")
    assert len(crosses) == 1 and len(crosses[0].x) == n > 0 and f"{n} crossings" in words


def test_schedules_mark_each_time_and_the_end_at_zero():
    figure = viz.schedules({"a": [5.0, 1.0, 0.0], "b": [3.0, 0.5]})
    ticks = [t for t in figure.data if t.mode == "markers" and t.marker.symbol == "line-ns-open"]
    assert [list(t.x) for t in ticks] == [[5.0, 1.0], [3.0, 0.5]]
    zeros = [t for t in figure.data if t.mode == "markers" and t.marker.symbol == "circle-open"]
    assert len(zeros) == 1 and list(zeros[0].text) == ["σ = 0"]


def test_pixels():
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0]).reshape(1, 1, 2, 2)
    np.testing.assert_array_equal(viz.to_uint8(x)[0, :, :, 0], [[0, 0], [128, 255]])
    assert viz.to_uint8(torch.zeros(2, 3, 4, 5)).shape == (2, 4, 5, 3)
    assert viz.to_uint8(torch.full((1, 1, 1, 1), math.nan)).max() == 0
    page = viz.grid(torch.ones(3, 1, 2, 2), columns=2, scale=3, gap=1, paper="#102030")
    assert page.shape == (13, 13, 3) and page[0, 6].tolist() == [16, 32, 48] and page[0, 0].tolist() == [255] * 3
    assert page[-1, -1].tolist() == [16, 32, 48]  # the empty place
    with pytest.raises(BadValue, match="images are"):
        viz.to_uint8(torch.zeros(2, 2))


def test_png_is_read_back_by_another_library():
    from io import BytesIO

    from matplotlib.image import imread

    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.rint(imread(BytesIO(viz.png(pixels))) * 255)[..., :3], pixels)
    assert viz.data_uri(pixels).startswith("data:image/png;base64,")
    assert zlib.crc32(b"IEND") == 0xAE426082


def test_the_filmstrip_needs_denoised_pictures(data):
    with pytest.raises(BadValue, match="x0_hat"):
        viz.filmstrip(data["images"].drop_vars("x0_hat"))
    with pytest.raises(BadValue, match="images"):
        viz.filmstrip(tr.record(RING, OdeSampler(Heun(), GRID), range(2), keep=("x0_hat",)))


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_colours_can_be_read(theme):
    assert contrast(theme.text, theme.background) > 7 and contrast(theme.muted, theme.background) > 4.5
    assert len(set(theme.settings)) == 7
    assert min(contrast(c, theme.background) for c in theme.settings) > 1.9  # lines, always named as well
    hues = angle_colors(np.linspace(0, 2 * np.pi, 24, endpoint=False) + 0.01, theme)
    assert len(set(hues)) == 24 and min(contrast(c, theme.background) for c in hues) > 2.5
    assert angle_colors([0.3], theme) == angle_colors([0.3 + 2 * np.pi], theme)
    assert np.std([luminance(c) for c in hues]) < 0.05
    colors, low, high = ramp([1.0, 2.0, 3.0], theme)
    assert (low, high) == (1.0, 3.0) and luminance(colors[0]) < luminance(colors[1]) < luminance(colors[2])


def test_lines_are_joined_with_gaps():
    x, y = joined([np.zeros((2, 2)), np.ones((3, 2))])
    assert len(x) == 6 and math.isnan(x[2]) and math.isnan(y[2])
    assert all(len(a) == 0 for a in joined([]))


def test_bad_names_are_refused_in_words(monkeypatch):
    with pytest.raises(UnknownName, match="'light'"):
        canvas("plotly", "lihgt")
    with pytest.raises(UnknownName, match="matplotlib"):
        canvas("bokeh")
    monkeypatch.setattr("explorer.viz.canvas.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="plotly"):
        canvas("plotly")


def test_fields_in_the_plane(data):
    field = data["field"]
    x = torch.tensor([[field.px.values[1], field.py.values[3]]])
    v = RING.on(Linear()).velocity(x, 0.4)[0]
    np.testing.assert_allclose([field.u[3, 1], field.v[3, 1]], v, rtol=1e-9)
    assert field.attrs["sigma"] == pytest.approx(0.4 / 0.6)
    density = data["density"]
    cell = 36 / 3600
    assert float(density.density.sum()) * cell == pytest.approx(1, abs=0.02)  # all points are inside; little leaks out
    with pytest.raises(BadValue, match="plane"):
        tr.velocity_field(PICTURES, 0.4, EXTENT)


def test_bars_are_the_costs_and_say_the_final_error(data):
    bill = data["bill"]["exact"]
    figure = viz.attribution(bill)
    [bars] = [t for t in figure.data if t.type == "bar"]
    np.testing.assert_allclose(bars.y, bill.step_cost)
    assert sum(bars.y) == pytest.approx(float(bill.final_error))
    words = [a.text for a in figure.layout.annotations]
    assert words[0].startswith(f"final error {float(bill.final_error):.3g} ±") and "the reference itself" in words[-1]
    rings = next(t for t in figure.data if t.name == "size of the carried error")
    np.testing.assert_allclose(rings.y, bill.step_norm)
    two = viz.attribution(data["bill"])
    assert len({t.yaxis for t in two.data if t.type == "bar"}) == 2
    assert two.layout.yaxis.range == two.layout.yaxis2.range  # bills are compared by eye
    with pytest.raises(BadValue, match="by='step'"):
        viz.attribution(data["flat"])


def test_a_scree_falls_to_what_is_left_and_exponents_end_at_data(data):
    figure = viz.scree(data["dimension"]["ring"])
    solid = next(t for t in figure.data if t.name == "each path")
    left = 1 - np.cumsum(data["dimension"]["ring"].variance)
    np.testing.assert_allclose(solid.y[:2], [1, left[0]])
    assert min(solid.y) >= 1e-6 and list(solid.y) == sorted(solid.y, reverse=True)
    lines = [
        t for t in viz.exponents(data["lyapunov"]).data if t.mode == "lines" and t.line.width == 2 and t.fill is None
    ]
    assert [t.line.dash for t in lines] == ["solid", "dash"]
    np.testing.assert_allclose(lines[0].y, data["lyapunov"].exponent[:, 0])
    with pytest.raises(BadValue, match="per sample"):
        viz.exponents(data["lyapunov"].drop_vars("exponent_se"))


def test_the_raster_has_a_row_per_sample_and_a_ring_where_it_decides(data):
    made = data["decisions"]
    figure = viz.decisions(made, n=20, names={0: "east"})
    rings = figure.data[-1]
    rows = np.argsort(made.decided.values, kind="stable")[np.linspace(0, 39, 20).round().astype(int)]
    np.testing.assert_allclose(rings.x, made.sigma[made.decided.values[rows]])
    marks = [t for t in figure.data if t.mode == "markers"][:-1]
    assert sum(len(t.x) for t in marks) == 20 * made.sizes["step"]
    assert any("east" in words for t in marks for words in t.text)


def test_paths_in_space_are_the_projections(data):
    figure = viz.space(data["images"], data["basis"], n=3, path=None)
    lines = [t for t in figure.data if t.mode == "lines"]
    drawn = np.concatenate([np.stack((t.x, t.y, t.z), axis=1) for t in lines])
    drawn = drawn[np.isfinite(drawn).all(axis=1)]
    axes = data["basis"].axes.values.reshape(3, -1)
    centre = data["basis"].centre.values.ravel()
    expected = (data["images"].x.values[:3].reshape(3, 9, -1) - centre) @ axes.T
    np.testing.assert_allclose(np.sort(drawn, axis=0), np.sort(expected.reshape(-1, 3), axis=0))
    with pytest.raises(BadValue, match="k=3"):
        viz.space(data["images"], data["basis"].isel(component=slice(2)))
    plane = viz.projected(data["images"], basis=data["basis"], n=3, path=None)
    marks = [t for t in plane.data if t.mode == "markers"][-1]
    np.testing.assert_allclose(np.stack((marks.x, marks.y), axis=1), expected[:, -1, :2])
