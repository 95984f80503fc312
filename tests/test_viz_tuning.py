"""Figures of searches, with both libraries, from plain stand-ins for trials."""

from types import SimpleNamespace as Plain

import numpy as np
import pytest

from explorer import viz
from explorer.errors import BadValue
from explorer.metrics import Estimate


def trial(number, value, n=16, failed=""):
    nan = float("nan")
    estimate = Estimate(nan if failed else value, 0.1, n, "FD[xy]")
    return Plain(number=number, estimate=estimate, difference=estimate, failed=failed, note="step")


TRIALS = [trial(0, 3.0), trial(1, 4.0), trial(2, 1.0), trial(3, 0, failed="NaN"), trial(4, 0.2, n=4), trial(5, 2.0)]
HELD = {"tuned": Estimate(1.3, 0.1, 99), "baseline": Estimate(3.1, 0.1, 99)}


def test_the_best_so_far_never_rises_and_small_samples_do_not_lead():
    figure = viz.search_progress(TRIALS, held=HELD)
    best = next(t for t in figure.data if t.name == "best so far")
    np.testing.assert_array_equal(best.x, [0, 1, 2, 5])
    np.testing.assert_array_equal(best.y, [3, 3, 1, 1])
    crosses = next(t for t in figure.data if t.name == "failed")
    assert list(crosses.x) == [3]
    words = [a.text for a in figure.layout.annotations]
    assert any("tuned, held out" in w for w in words)
    assert "trial 1: 4, step" in next(t for t in figure.data if t.text is not None and len(t.x) == 4).text[1]


def heights(figure) -> set[float]:
    """Every y that is drawn, of either library's figure."""
    if hasattr(figure, "data"):
        found = [trace.y for trace in figure.data if trace.y is not None]
    else:
        parts = [part for axes in figure.axes for part in (*axes.lines, *axes.collections)]
        found = [p.get_ydata() if hasattr(p, "get_ydata") else np.asarray(p.get_offsets())[:, 1] for p in parts]
    return {round(float(y), 6) for values in found for y in np.ravel(values) if y is not None and np.isfinite(y)}


@pytest.mark.parametrize("backend", ["plotly", "matplotlib"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_both_libraries_draw_every_number(backend, theme):
    figure = viz.search_progress(TRIALS, held=HELD, backend=backend, theme=theme)
    assert {3.0, 4.0, 1.0, 2.0, 1.3, 3.1} <= heights(figure)
    pairs = {
        "5 NFE": (Estimate(-0.4, 0.1, 9), Estimate(-0.15, 0.1, 9)),
        "8 NFE": (Estimate(-0.05, 0.1, 9), Estimate(0, 0.1, 9)),
    }
    assert {-0.4, -0.15, -0.05, 0.0} <= heights(
        viz.winners_curse(pairs, backend=backend, theme=theme, y="change of FD")
    )


def test_the_two_numbers_of_a_search_stand_side_by_side():
    pairs = {"5 NFE": (Estimate(-0.4, 0.1, 9), Estimate(-0.1, 0.05, 9))}
    figure = viz.winners_curse(pairs)
    found = {t.name: float(t.y[0]) for t in figure.data if t.mode == "markers"}
    assert found == {"believed by the search": -0.4, "on held-out noise": -0.1}
    spans = sorted(tuple(np.round(t.y, 6)) for t in figure.data if t.mode == "lines" and len(set(t.y)) == 2)
    assert spans == [(-0.6, -0.2), (-0.2, 0.0)]


def test_nothing_to_draw_is_said():
    with pytest.raises(BadValue, match="without a measured trial"):
        viz.search_progress([trial(0, 0, failed="NaN")])
    with pytest.raises(BadValue, match="no search"):
        viz.winners_curse({})
