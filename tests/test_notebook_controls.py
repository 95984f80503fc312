"""The notebook's widgets: made from the knob class, one measurement at a time, errors in words."""

from __future__ import annotations

import asyncio
import base64
import html
import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from explorer.apps.notebook import Controls, _read, picture
from explorer.knobs import SamplerKnobs
from explorer.live import quality
from explorer.metrics import SlicedW2, verdict
from explorer.metrics.features import points_space
from explorer.models import Oracle, as_denoiser
from explorer.process import EDM, GaussianMixture
from explorer.sampling import ScaleTimeSampler

PATIENCE = 120.0


@pytest.fixture(scope="module")
def model():
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    mixture = GaussianMixture(means, 0.2, labels=torch.arange(3))
    return Oracle(mixture, name="three")


@pytest.fixture(scope="module")
def metric(model):
    return SlicedW2(points_space(2), model.mixture.sample(300, torch.Generator().manual_seed(0))[0].float())


@pytest.fixture
def controls(model, metric):
    made = Controls(model, 300, metric=metric, knobs=SamplerKnobs.for_model(model, n_steps=4))
    yield made
    made.cancel()


def test_every_control_of_the_knob_class_has_its_widget_with_its_bounds_and_words(controls, model):
    for c in controls.knobs.controls(model):
        made = controls._controls[c.name]
        if c.kind == "bank":
            assert len(made.children) == len(c.value)
            continue
        assert c.doc in made.tooltip and made.disabled == bool(c.reason)
        assert c.reason in made.tooltip
        if c.kind == "choice":
            assert tuple(v for _, v in made.options) == c.choices
            continue
        assert not made.continuous_update  # measured on release
        if c.kind == "nodes":
            assert made.value == "" and _read(made) is None
            continue
        if c.kind == "text":
            assert _read(made) == c.value == ""
            continue
        ends = (made.base**made.min, made.base**made.max) if c.log else (made.min, made.max)
        assert ends[1] == pytest.approx(c.high) and (c.low == 0 or ends[0] == pytest.approx(c.low))
        assert _read(made) == pytest.approx(c.value, rel=0.01)


def test_a_grid_of_ones_own_is_typed_and_what_is_no_number_is_refused_in_words(controls):
    controls._controls["nodes"].value = "10, 1.5 0.2"
    assert controls.knobs.nodes == [10.0, 1.5, 0.2] and controls._controls["n_steps"].disabled
    controls._controls["nodes"].value = "ten"
    assert controls.knobs.nodes == [10.0, 1.5, 0.2] and "positive noise levels" in controls._state.value
    controls._controls["nodes"].value = ""
    assert controls.knobs.nodes is None and not controls._controls["n_steps"].disabled


def test_a_sampler_of_ones_own_is_pasted_and_what_is_none_is_refused_in_words(controls):
    own = ScaleTimeSampler.plain([0.95, 0.4, 0.0]).to_json()
    controls._controls["own"].value = f" {own} "
    assert controls.knobs.own == own == controls._controls["own"].value and controls._controls["solver"].disabled
    controls._controls["own"].value = "{"
    assert controls.knobs.own == own and "not JSON" in controls._state.value
    controls._controls["own"].value = ""
    assert not controls.knobs.own and not controls._controls["solver"].disabled


def test_the_left_end_of_a_logarithmic_slider_is_zero_where_zero_is_allowed(controls):
    controls.set(solver="edm-stochastic", s_min=0.0)
    assert _read(controls._controls["s_min"]) == 0.0
    assert controls.knobs.s_min == 0.0
    controls._controls["s_min"].value = 0.5
    assert controls.knobs.s_min == 0.5


def test_the_number_is_the_one_quality_gives(controls, model, metric):
    live = controls.wait(PATIENCE)
    *_, same = quality(*controls.knobs.build(model), metric, n=300, geometry=False)
    assert live.done and live.estimate == same.estimate
    assert live.estimate.name in controls._number.value and "7 NFE" in controls._number.value


def test_a_moved_widget_measures_anew_and_a_seen_setting_is_back_at_once(controls):
    first = controls.wait(PATIENCE)
    controls._controls["n_steps"].value = 2
    assert controls.knobs.n_steps == 2 and controls.busy
    assert controls.wait(PATIENCE).nfe == 3
    controls._controls["n_steps"].value = 4
    assert not controls.busy and controls.live is first


def test_knobs_that_become_useful_wake_up(controls):
    assert controls._controls["s_churn"].disabled and controls._notes["Churn"].value
    controls._controls["solver"].value = "edm-stochastic"
    assert not controls._controls["s_churn"].disabled and controls._notes["Churn"].layout.display == "none"


def test_a_value_that_cannot_be_is_said_and_changes_nothing(controls):
    controls.wait(PATIENCE)
    before = controls.knobs
    controls.set(sigma_min=5.0)
    assert controls.knobs is before and "expected a number from" in controls._state.value
    controls.set(sigma_min=2.0, sigma_max=1.0)
    assert not controls.busy and "must be below sigma_max" in controls._state.value
    controls.set(sigma_min=0.01, sigma_max=80.0)
    assert controls.wait(PATIENCE).done and "must be" not in controls._state.value


def test_cancel_keeps_what_was_measured(model, metric):
    controls = Controls(model, 500_000, metric=metric)
    assert controls._drawn.wait(PATIENCE)
    controls._cancel.click()
    assert not controls.busy and controls._cancel.disabled
    kept = controls.live.n_done
    assert 0 < kept < 500_000 and f"stopped at n = {kept}" in controls._state.value


def test_a_stopped_measurement_goes_on_where_it_stopped(model, metric):
    controls = Controls(model, 500_000, metric=metric)
    assert controls._drawn.wait(PATIENCE)
    controls.cancel()
    kept = controls.live.n_done
    controls.n = kept + 100
    controls.set()
    assert controls.wait(PATIENCE).n_done == kept + 100 and controls.live.estimate.n == kept + 100
    counts = sorted(controls._courses[controls.knobs.key()])
    assert counts[counts.index(kept) :] == [kept, *(n for n in counts if n > kept)] and counts[0] == 64


def test_a_page_runs_in_the_thread_that_hears_the_browser():
    """The kernel may hear it in a thread of its own; whatever is posted from others must run there, and nowhere after its end."""
    pytest.importorskip("panel")
    from explorer.apps.serve import Ear

    async def listen(heard: threading.Event, done: asyncio.Event):
        ear.hear()
        loops.append(asyncio.get_running_loop())
        heard.set()
        await done.wait()

    ear, loops, heard, ran = None, [], threading.Event(), []
    outer = asyncio.new_event_loop()
    asyncio.set_event_loop(outer)
    ear = Ear()
    done = asyncio.Event()
    thread = threading.Thread(target=lambda: asyncio.run(listen(heard, done)), name="subshell")
    thread.start()
    assert heard.wait(PATIENCE)
    ear.post(lambda: (ran.append(threading.current_thread().name), done.set()))
    thread.join(PATIENCE)
    assert ran == ["subshell"]
    ear.post(lambda: ran.append("late"))
    outer.close()
    asyncio.set_event_loop(None)
    assert ran == ["subshell"]


def test_a_pinned_setting_gives_a_sentence_on_the_same_noise(controls):
    controls.wait(PATIENCE)
    controls.pin()
    controls.set(n_steps=1)
    controls.wait(PATIENCE)
    a, b = (controls._courses[knobs.key()][300].metric for knobs in (controls._pinned, controls.knobs))
    assert verdict(b.difference(a), "this setting", "A") in html.unescape(controls._versus.value)
    assert "A is heun 4." in controls._versus.value and "n = 300" in controls._versus.value


def test_a_failing_model_ends_in_a_sentence(metric):
    broken = as_denoiser(lambda x, t, cond: x / 0, "x0", EDM(), (2,))
    controls = Controls(broken, 300, metric=metric)
    controls.wait(PATIENCE)
    assert "NaN or infinity at step 1" in controls._state.value


def test_it_shows_widgets_and_a_picture_for_readers_without_a_kernel(controls):
    bundle = controls._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    shown = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    assert shown.size[0] > 300 and np.asarray(shown).std() > 5


def test_pictures_of_images_and_points():
    images = np.asarray(Image.open(io.BytesIO(picture(torch.rand(20, 1, 8, 8) * 2 - 1, columns=10, scale=2))))
    assert images.shape == (34, 178, 3)
    points = torch.tensor([[0.0, 1.0], [float("nan"), 0.0]])
    dots = np.asarray(Image.open(io.BytesIO(picture(points))))
    rows, _ = np.nonzero(dots[..., 0] == 0)
    assert len(rows) == 9 and rows.max() < dots.shape[0] / 4  # one finite point, up
    assert picture(torch.zeros(0, 2))
