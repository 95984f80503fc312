"""Figures of tuners' own quantities, with both libraries, from plain stand-ins: every number given is drawn."""

import math

import numpy as np
import pytest
import xarray as xr
from test_viz_tuning import heights

from explorer import viz
from explorer.errors import BadValue
from explorer.metrics import Estimate
from explorer.sampling.scale_time import Warp

BOTH = pytest.mark.parametrize("backend", ["plotly", "matplotlib"])


def colours(figure) -> list[np.ndarray]:
    """The values of every field that is drawn as colour, without its blanks, sorted."""
    if hasattr(figure, "data"):
        fields = [np.array(t.z, dtype=float) for t in figure.data if t.type == "heatmap"]
    else:
        parts = [p for axes in figure.axes for p in (*axes.images, *axes.collections) if p.get_array() is not None]
        fields = [np.ma.filled(np.ma.asarray(p.get_array(), dtype=float), np.nan) for p in parts]
    return [np.sort(z[np.isfinite(z)]) for z in map(np.ravel, fields)]


def has(fields: list[np.ndarray], wanted) -> bool:
    wanted = np.sort(np.ravel(wanted))
    return any(z.shape == wanted.shape and np.allclose(z, wanted) for z in fields)


def plane() -> xr.Dataset:
    value = np.array([[4.0, 2.0], [1.0, math.nan]])
    kinds = ["snapshot", "snapshot", "snapshot", "average", "mark"]
    return xr.Dataset(
        {
            "value": (("y", "x"), value),
            "std_error": (("y", "x"), 0.1 * value),
            "kind": ("name", kinds),
            "at_x": ("name", [0.0, 1.0, 0.0, 0.4, 0.25]),
            "at_y": ("name", [0.0, 0.0, 1.0, 0.3, 0.75]),
            "off": ("name", [0.0, 0.0, 0.0, 0.1, 0.2]),
        },
        {"x": [0.0, 1.0], "y": [0.0, 1.0], "name": ["step 1", "step 2", "step 3", "rate 0.9", "found"]},
        {"objective": "energy[xy]", "corners": (1, 2, 3), "n": 64},
    )


@BOTH
def test_a_slice_of_weight_space_shows_values_places_and_where_it_is_least(backend):
    figure = viz.landscape(plane(), log=False, backend=backend)
    assert has(colours(figure), [4, 2, 1]) and {0.3, 0.75} <= heights(figure)
    assert has(colours(viz.landscape(plane(), backend=backend)), np.log10([4, 2, 1]))
    if backend == "plotly":
        said = " ".join(a.text for a in figure.layout.annotations)
        assert "least 1 ± 0.1 at (0, 1)" in said and "found lies 0.2 off the plane" in said
    with pytest.raises(BadValue, match="no node"):
        viz.landscape(plane().assign(value=(("y", "x"), np.full((2, 2), math.nan))))


@BOTH
def test_coefficients_are_bars_and_lines(backend):
    figure = viz.coefficients([10, 20, 30], {"found": [0.5, -0.25, 0.75], "average": [0.2, 0.3, 0.5]}, backend=backend)
    drawn = heights(figure)
    if backend == "matplotlib":
        drawn |= {round(p.get_height(), 6) for axes in figure.axes for p in axes.patches}
    assert {0.5, -0.25, 0.75, 0.2, 0.3} <= drawn
    with pytest.raises(BadValue, match="2 coefficients for 3"):
        viz.coefficients([1, 2, 3], {"found": [0.5, 0.5]})


@BOTH
def test_what_a_restart_forgets_and_adds_are_two_fields(backend):
    survival, added = np.array([[0.9, 0.5], [0.8, 0.1]]), np.array([[1e-3, 1e-2], [1e-1, 1e-4]])
    dims = ("low", "factor")
    ds = xr.Dataset(
        {"survival": (dims, survival), "added": ((*dims, "n_points"), np.stack([2 * added, added], -1))},
        {"low": [0.1, 0.2], "factor": [2.0, 4.0], "n_points": [2, 3]},
        {"n": 48},
    )
    fields = colours(viz.forgetting(ds, backend=backend))
    assert has(fields, survival) and has(fields, np.log10(added)), "the error at the largest number of points"


@BOTH
def test_two_errors_of_processes_and_their_total_against_cost(backend):
    def point(name, additional, contracted, total, nfe):
        errors = {"additional": additional, "contracted": contracted, "total": total}
        return name, {k: Estimate(v, 0.01, 9) for k, v in errors.items()}, nfe

    runs = {"ODE": [point("20 steps", 0.1, 0.9, 0.95, 20)], "Restart": [point("K 1", 0.2, 0.6, 0.7, 30)]}
    drawn = heights(viz.two_errors(runs, backend=backend))
    assert {0.9, 0.6, 0.95, 0.7} <= drawn
    with pytest.raises(BadValue, match="no process"):
        viz.two_errors({"ODE": []})


@BOTH
def test_a_warp_is_drawn_at_all_its_nodes(backend):
    warp = Warp((1.0, 0.6, 0.0), (-0.9, -1.1), (1.0, 1.5, 2.0), (0.5, 0.25))
    drawn = heights(viz.warps({"learnt": warp}, backend=backend, log_s=False))
    assert {1.0, 0.6, 0.0, 1.5, 2.0} <= drawn
    with pytest.raises(BadValue, match="no warp"):
        viz.warps({})


def cells(figure) -> dict[str, set[tuple[int, int]]]:
    """Colour -> (step, block) of every bar, from either library's figure; blocks count downwards from 0."""
    found: dict[str, set[tuple[int, int]]] = {}
    if hasattr(figure, "data"):
        for trace in (t for t in figure.data if t.type == "bar"):
            middles = np.asarray(trace.base, float) + np.asarray(trace.y, float) / 2
            places = {(round(float(x)), round(float(-m))) for x, m in zip(trace.x, middles, strict=True)}
            found.setdefault(trace.marker.color.lower(), set()).update(places)
    else:
        from matplotlib.colors import to_hex

        for bar in figure.axes[0].patches:
            place = round(bar.get_x() + bar.get_width() / 2), round(-(bar.get_y() + bar.get_height() / 2))
            found.setdefault(to_hex(bar.get_facecolor()), set()).add(place)
    return found


@BOTH
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_block_of_every_step_is_a_cell_and_those_left_out_are_coloured(backend, theme):
    levels = [(0.5, (2,)), (80.0, ()), (9.0, (0, 2))]  # any order; noise is drawn first
    figure = viz.layers_left_out({"found": levels}, ["in", "middle", "out"], backend=backend, theme=theme)
    th, drawn = viz.theme_of(theme), cells(figure)
    out = {(1, 0), (1, 2), (2, 2)}
    assert drawn[th.color(3).lower()] == out
    assert drawn[th.grid.lower()] == {(k, i) for k in range(3) for i in range(3)} - out
    if backend == "plotly":
        assert list(figure.layout.xaxis.ticktext) == ["80", "9", "0.5"]
        assert list(figure.layout.yaxis.ticktext) == ["in", "middle", "out"]
        assert "3 steps, 6 of 9 blocks act" in " ".join(a.text for a in figure.layout.annotations)
    with pytest.raises(BadValue, match="none of them"):
        viz.layers_left_out({"found": [(1.0, (3,))]}, ["in", "middle", "out"], backend=backend)
    with pytest.raises(BadValue, match="no step to draw"):
        viz.layers_left_out({}, ["in"], backend=backend)
