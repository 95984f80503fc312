"""The Trajectory Lab without a browser: what its jobs find, what its store keeps, what the browser is sent, what is saved."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import time
import zipfile

import numpy as np
import pytest
import torch
from desks import Desk

pytest.importorskip("panel")

from explorer.apps import catalogue
from explorer.apps.pages.trajectory_lab import TrajectoryLab
from explorer.apps.trajectory import compute, exports, views
from explorer.apps.trajectory.state import Trajectories
from explorer.apps.trajectory.tracks import Runs
from explorer.apps.worker import Failure, Job, Worker
from explorer.errors import BadValue
from explorer.knobs import SamplerKnobs
from explorer.process.paths import Linear
from explorer.sampling import OdeSampler, Seeds, TimeGrid
from explorer.sampling.solvers import Euler
from explorer.trajectory import data_of, load, noise_of, record, straightness

POINTS, IMAGES = "oracle-8gaussians", "oracle-digits"


class LabDesk(Desk):
    """One store with its page."""

    def __init__(self, worker: Worker, runs: Runs | None = None):
        super().__init__()
        self.store = Trajectories(worker, self.calls.put, None, runs or Runs())
        self.lab = TrajectoryLab(self.store)

    def failures(self) -> object:
        return [self.store.error, *(t.error for t in self.store.tracks)]

    def settle(self) -> None:
        self.until(lambda: not self.store.busy)

    def open(self, *tracks: dict, **state) -> None:
        fields = {"n": 500, **state}
        for letter, knobs in zip("abcd", tracks or ({"n_steps": 3},), strict=False):
            fields |= {f"{letter}.{k}": v for k, v in {"model": POINTS, **knobs}.items()}
        self.send("open", link="trajectory?" + "&".join(f"{k}={v}" for k, v in fields.items()))

    def track(self, k: int = 0):
        return self.store.tracks[k]

    @property
    def stage(self) -> dict:
        return self.lab.stage.data


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Numbers from few samples: what they are is tested with the functions that make them."""
    monkeypatch.setattr(compute, "N_BUDGET", {"points": 48, "images": 8})
    monkeypatch.setattr(compute, "N_ERRORS", {"points": 8, "images": 2})
    monkeypatch.setattr(compute, "BUDGET_TIMES", {"points": 8, "images": 4})


@pytest.fixture
def worker():
    worker = Worker(n_threads=1)
    yield worker
    worker.close()


@pytest.fixture
def desk(worker):
    return LabDesk(worker)


def unpacked(block: bytes) -> dict:
    """What the browser reads: the header, with the arrays at the places it names."""
    (size,) = struct.unpack("<I", block[:4])
    header = json.loads(block[4 : 4 + size])
    kinds = {"u1": "u1", "u2": "<u2", "f4": "<f4"}
    for part in header["parts"]:
        assert part["at"] % 4 == 0, "typed arrays begin at multiples of their size"
        header[part["name"]] = np.frombuffer(block, kinds[part["kind"]], part["count"], part["at"])
    return header


def test_frames_are_the_states_on_the_linear_path_to_a_hundredth_of_a_pixel(desk):
    desk.open({"n_steps": 5, "solver": "euler"})
    desk.settle()
    block = unpacked(desk.lab.stage.frames_0)
    ds = desk.track().run.ds
    shape = (6, 500, 2)
    span = np.array(block["range"])[:, None, None]
    got = (block["x"].reshape(shape) / 32767.5 - 1) * span
    t = np.array([Linear().time_at(float(s)) for s in ds.sigma])
    expected = ds.x.values.swapaxes(0, 1) * (1 - t)[:, None, None]  # EDM: alpha is 1, on the linear path 1 - t
    assert (np.abs(got - expected) <= 0.51 * span / 32767.5).all(), "half a unit of the quantisation"
    assert block["sigma"] == pytest.approx(ds.sigma.values.tolist())
    angle = np.arctan2(*noise_of(ds).numpy().T[::-1]) % (2 * np.pi)
    assert (block["hue"] == np.floor(angle / (2 * np.pi) * views.N_HUES)).mean() > 0.99
    assert len(desk.lab.stage.frames_0) < 4 * 6 * 500 + 500 + 1000, "two bytes a number"


def test_the_same_noise_under_every_sampler_and_equal_to_a_plain_recording(desk):
    desk.open({"n_steps": 4}, {"n_steps": 2, "solver": "euler"}, seed=7)
    desk.settle()
    a, b = (t.run.ds for t in desk.store.tracks)
    np.testing.assert_array_equal(noise_of(a), noise_of(b))
    model = catalogue.model(POINTS)
    knobs = desk.track(1).knobs
    plain = record(*knobs.build(model), Seeds(range(7, 507)), knobs.labels, batch=500)
    np.testing.assert_allclose(b.x.values, plain.x.values, rtol=0, atol=1e-12)  # batches of 256 and 244 there: rounding
    np.testing.assert_array_equal(b.seed, plain.seed)
    np.testing.assert_array_equal(b.nfe, plain.nfe)
    assert b.attrs["nfe"] == plain.attrs["nfe"] == 2
    assert a.sizes["sample"] == 500


def test_a_pair_on_a_straight_line_is_drawn_straight_at_every_size_of_the_noise():
    """z = x s (1 + sigma) / (s + sigma) of (1 - t) a + t b is (1 - t') a + t' s b: affine in t', whatever s."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 9, 2))
    sigma = np.array([50.0, 7.0, 1.3, 0.4, 0.02, 0.0])
    t = sigma / (1 + sigma)
    frames = ((1 - t)[:, None, None] * a + t[:, None, None] * b).astype(np.float64)
    for s in (0.3, 1.0, 2.5):
        t2 = sigma / (s + sigma)
        expected = (1 - t2)[:, None, None] * a + t2[:, None, None] * (s * b)
        np.testing.assert_allclose(compute.drawn(frames, sigma, s), expected, atol=1e-12)
        for at in (50.0, 3.0, 0.4, 0.1, 0.0):
            here = at / (s + at)
            np.testing.assert_allclose(
                compute.positions(frames, sigma, at, s), (1 - here) * a + here * s * b, atol=1e-12
            )


def test_an_euler_step_is_drawn_as_it_goes():
    """Between two states the particles move on the straight line that Euler's method takes in EDM's own time."""
    model = catalogue.model(POINTS)
    ds = record(model, OdeSampler(Euler(), TimeGrid.karras(3, 0.01, 20.0)), range(8))
    frames = compute.on_plane(ds, compute.plane_of(POINTS))
    sigma, s = ds.sigma.values, 0.4
    at = 0.5 * (sigma[1] + sigma[2])
    share = (sigma[1] - at) / (sigma[1] - sigma[2])
    x = (1 - share) * ds.x.values[:, 1] + share * ds.x.values[:, 2]  # linear in sigma on EDM's path
    np.testing.assert_allclose(compute.positions(frames, sigma, at, s), x * s / (s + at), atol=1e-6)  # float32 frames


def test_the_scene_holds_the_density_and_the_field_of_the_exact_model():
    model, plane = catalogue.model(POINTS), compute.plane_of(POINTS)
    scene = compute.scene(model, plane, plane.extent, 80.0, None)
    cell = 2 * plane.extent / compute.DENSITY_SIDE
    assert scene.density.sum(axis=(1, 2)) * cell**2 == pytest.approx(1.0, abs=0.01), "almost all mass is in the square"
    mass = [
        [d[d >= level].sum() / d.sum() for level in levels]
        for d, levels in zip(scene.density, scene.levels, strict=True)
    ]
    np.testing.assert_allclose(mass, np.tile(compute.HELD, (len(mass), 1)), atol=0.04)  # a cell's share at the peak
    # Towards noise alone, dz/dt = s eps - E[x0] with eps = z / s: the field points to the middle.
    edge = (np.arange(compute.FIELD_SIDE) + 0.5) / compute.FIELD_SIDE * 2 * plane.extent - plane.extent
    x, y = np.meshgrid(edge, edge)
    far = scene.field[0]
    np.testing.assert_allclose(far[..., 0], -x, atol=0.03)  # sigma 80 against sigma_data 0.5, and the mean of 8 modes
    np.testing.assert_allclose(far[..., 1], -y, atol=0.03)
    block = unpacked(views.scene_block(scene))
    assert block["density"].size == compute.SCENE_TIMES * compute.DENSITY_SIDE**2 and block["field"].dtype == np.uint8


def test_paths_come_before_numbers_and_numbers_before_errors(desk):
    desk.open({"n_steps": 6})
    seen, run = [], desk.track().run
    take = run.take

    def note(stage, value, plane):
        seen.append((stage, getattr(value, "sizes", {}).get("sample")))
        take(stage, value, plane)

    run.take = note
    desk.settle()
    assert seen == [
        ("paths", 256),
        ("scene", None),
        ("paths", 500),
        ("curves", None),
        ("budget", None),
        ("errors", None),
    ]
    run = desk.track().run
    assert run.todo(desk.store.extent) == () and not desk.lab.top.job["running"]
    assert float(run.errors.step_cost.sum()) == pytest.approx(float(run.errors.final_error), rel=1e-6), "exact: it sums"
    budget = run.budget
    total = float(budget.chord + budget.straightness + budget.conflict + budget.residual)
    assert total == pytest.approx(float(budget.cost), rel=1e-9)
    s = straightness(run.ds, path=Linear())
    fact = next(f for f in desk.lab.curves.data["facts"][0]["items"] if f["name"] == "S")
    assert float(fact["value"]) == pytest.approx(float(s.mean()), rel=0.01)


def test_a_knob_recomputes_its_sampler_and_sends_nothing_of_the_other(desk):
    desk.open({"n_steps": 4}, {"n_steps": 3})
    desk.settle()
    other, block = desk.track(0).run, desk.lab.stage.frames_0
    sent = []
    desk.lab.stage.param.watch(lambda event: sent.append(event.name), ["frames_0", "frames_1", "scene_0", "scene_1"])
    before = desk.lab.stage.frames_1
    desk.send("set", slot=1, knob="n_steps", value=5)
    desk.settle()
    assert desk.track(0).run is other and desk.lab.stage.frames_0 is block
    assert set(sent) == {"frames_1"} and desk.lab.stage.frames_1 != before, "the scene is the model's, and is there"
    assert len(unpacked(desk.lab.stage.frames_1)["sigma"]) == 6


def test_a_new_value_cancels_the_old_job_and_returning_is_instant(desk):
    desk.open({"n_steps": 40, "model": "toy-8gaussians"}, n=5000)
    desk.until(lambda: desk.track().shown is not None)
    old, job = desk.track().run, desk.track().job
    desk.send("set", slot=0, knob="n_steps", value=2)
    assert job.stop.is_set() and desk.track().run is not old
    desk.send("n", value=500)
    desk.settle()
    assert old.todo(desk.store.extent), "the old one never ended"
    first = desk.track().run
    desk.send("set", slot=0, knob="n_steps", value=3)
    desk.settle()
    desk.send("set", slot=0, knob="n_steps", value=2)
    assert desk.track().job is None and desk.track().shown is first, "no job: it was all there"
    assert len(unpacked(desk.lab.stage.frames_0)["sigma"]) == 3


def test_dragging_draws_the_first_particles_and_release_the_rest(desk):
    desk.open({"n_steps": 4})
    desk.settle()
    link = desk.store.link()
    for steps in (5, 6, 7):
        desk.send("drag", slot=0, knob="n_steps", value=steps)
    desk.until(lambda: desk.track().shown.ds.sizes["step"] == 7)
    desk.settle()
    assert desk.track().run.n_done == 256 and desk.track().run.curves is None
    desk.send("set", slot=0, knob="n_steps", value=7)
    desk.settle()
    assert desk.track().run.n_done == 500 and desk.track().run.errors is not None
    assert "a.n_steps=7" in desk.lab.shell.link and desk.lab.shell.link != link


def test_the_cross_keeps_what_was_found_and_the_rest_can_follow(desk):
    desk.open({"n_steps": 60, "model": "toy-8gaussians"}, n=5000)
    desk.until(lambda: desk.track().shown is not None)
    desk.send("cancel")
    assert not desk.store.busy and desk.lab.top.job["stopped"] and "what was found is kept" in desk.lab.top.job["text"]
    time.sleep(0.2)
    while not desk.calls.empty():
        desk.calls.get()()
    assert desk.track().run.n_done == 256, "nothing arrives after the cross"
    desk.send("n", value=500)
    desk.send("set", slot=0, knob="n_steps", value=2)
    desk.settle()
    assert desk.track().run.n_done == 500


def test_two_sessions_are_independent_and_share_what_is_known(worker):
    runs = Runs()
    one, two = LabDesk(worker, runs), LabDesk(worker, runs)
    one.open({"n_steps": 3})
    one.settle()
    two.open({"n_steps": 3}, {"n_steps": 2})
    assert two.track(0).job is None and two.track(0).run is one.track(0).run
    two.settle()
    assert len(one.store.tracks) == 1
    one.store.close()
    two.send("set", slot=1, knob="rho", value=5)
    two.settle()
    assert two.track(1).run.todo(two.store.extent) == ()


def test_samplers_are_added_copied_and_removed_and_keep_their_colours(desk):
    desk.open({"n_steps": 6})
    desk.send("add")
    desk.send("duplicate", slot=0)
    assert [t["letter"] for t in desk.stage["tracks"]] == ["A", "B", "C"]
    assert desk.track(1).knobs.n_steps == 2 and desk.track(2).setting == desk.track(0).setting
    colors = {t["letter"]: t["color"] for t in desk.stage["tracks"]}
    desk.send("remove", slot=1)
    assert {t["letter"]: t["color"] for t in desk.stage["tracks"]} == {k: colors[k] for k in "AC"}
    desk.send("add")
    desk.send("add")
    assert [t["letter"] for t in desk.stage["tracks"]] == ["A", "B", "C", "D"]
    desk.send("add")
    assert "at most 4 samplers" in desk.lab.top.data["error"]["text"]
    for slot in (0, 1, 2):
        desk.send("remove", slot=slot)
    desk.send("remove", slot=3)
    assert "the last sampler stays" in desk.lab.top.data["error"]["text"]
    desk.settle()


def test_the_microscope_finds_the_same_noise_everywhere(desk):
    desk.open({"n_steps": 8}, {"n_steps": 2, "solver": "euler"})
    desk.settle()
    upper = [[-1, 0], [1, 0], [1, 1], [-1, 1]]
    desk.send("select", slot=1, sigma=80.0, loop=upper)
    desk.until(lambda: desk.store.sight is not None)
    a, b = (t.run.ds for t in desk.store.tracks)
    r = desk.store.extent / desk.store.scale  # in units of the noise: outside of the square nothing is caught
    noise = noise_of(a).numpy() * 80 / 81  # what is drawn at sigma 80 is t eps, a shade less than eps
    shade = (1 + 80.0) * 1 / (desk.store.scale + 80.0)
    drawn = noise * shade
    expected = np.flatnonzero((drawn[:, 1] > 0) & (np.abs(drawn) < r).all(axis=1))
    np.testing.assert_array_equal(desk.store.ids, expected)
    assert desk.stage["selection"]["ids"] == expected.tolist()
    gap = (data_of(a) - data_of(b))[expected].norm(dim=1)
    sight = desk.store.sight
    assert float(sight.of.mean_distance.sel(run="B")) == pytest.approx(float(gap.mean()))
    means = catalogue.model(POINTS).mixture.means.double()
    nearest = [torch.cdist(data_of(ds)[expected], means).argmin(dim=1) for ds in (a, b)]
    assert sight.swaps["B"][0] == pytest.approx(float((nearest[0] != nearest[1]).double().mean()))
    assert sight.swaps["A"][0] == 0 and sight.swaps["A"][1] > 0
    card = desk.lab.side.data["sight"]
    assert card["count"] == str(len(expected)) and [r["letter"] for r in card["rows"]] == ["A", "B"]
    desk.send("clear")
    desk.until(lambda: desk.store.sight is not None)
    assert desk.stage["selection"] is None and desk.lab.side.data["sight"]["all"]


def test_a_loop_at_the_data_end_asks_which_noise_came_here(desk):
    desk.open({"n_steps": 12})
    desk.settle()
    desk.send("select", slot=0, sigma=0.0, loop=[[0.3, -0.3], [1, -0.3], [1, 0.3], [0.3, 0.3]])
    ends = data_of(desk.track().run.ds).numpy() / desk.store.extent
    expected = (ends[:, 0] > 0.3) & (ends[:, 0] < 1) & (np.abs(ends[:, 1]) < 0.3)
    np.testing.assert_array_equal(desk.store.ids, np.flatnonzero(expected))
    assert 20 < len(desk.store.ids) < 250, "one mode of eight, about"
    desk.settle()


def test_an_empty_loop_has_words_and_too_few_corners_are_refused(desk):
    desk.open({"n_steps": 2})
    desk.settle()
    desk.send("select", slot=0, sigma=80.0, loop=[[0.99, 0.99], [0.995, 0.99], [0.995, 0.995]])
    assert "holds no particle" in desk.lab.side.data["sight"]["empty"] and desk.store.error is None
    desk.send("select", slot=0, sigma=80.0, loop=[[0, 0], [1, 1]])
    assert "three corners" in desk.lab.top.data["error"]["text"]


def test_coupling_lines_are_counted_where_they_cross(desk):
    desk.open({"n_steps": 8})
    desk.settle()
    desk.send("view", lines=True)
    desk.until(lambda: desk.store.crossed)
    ds = desk.track().run.ds
    p, q = noise_of(ds)[:200].numpy(), data_of(ds)[:200].numpy()

    def side(a, b, c):
        return np.sign((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))

    brute = sum(
        side(p[i], q[i], p[j]) != side(p[i], q[i], q[j]) and side(p[j], q[j], p[i]) != side(p[j], q[j], q[i])
        for i in range(200)
        for j in range(i)
    )
    assert desk.store.crossed[0] == (brute, 200)
    assert f"{brute} crossings among 200 lines" in desk.lab.side.data["sight"]["note"].replace("\u2009", "")
    desk.settle()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"n_steps": 0}, "expected a whole number from 1 to 64"),
        ({"solver": "huen"}, "Did you mean 'heun'"),
        ({"sigma_max": 0.6, "sigma_min": 1.2}, "must be below sigma_max"),
        ({"guidance": 3.0}, "guidance 3 needs a class"),
    ],
)
def test_bad_values_are_words_in_their_own_square(desk, values, words):
    desk.open({"n_steps": 2}, {"n_steps": 3})
    desk.settle()
    for knob, value in values.items():
        desk.send("set", slot=1, knob=knob, value=value)
    desk.settle()
    first, second = desk.stage["tracks"]
    assert words in second["error"]["text"] and first["error"] is None and desk.store.error is None
    desk.send("undo", slot=1)
    desk.settle()
    assert desk.stage["tracks"][1]["error"] is None and desk.track(1).run.todo(desk.store.extent) == ()


def test_a_stage_that_is_not_defined_says_so_and_the_others_go_on(desk):
    desk.open({"n_steps": 4, "solver": "edm-stochastic"})
    desk.settle()
    assert isinstance(desk.track().run.errors, Failure) and desk.track().error is None
    row = desk.lab.side.data["errors"][0]
    assert "stochastic" in row["failed"] and row["words"] == "not defined"
    assert desk.lab.side.data["budget"][0]["parts"]


def test_nan_and_bugs_are_words_and_the_page_lives(desk, monkeypatch):
    desk.open({"n_steps": 2})
    desk.settle()
    monkeypatch.setattr(compute, "record", lambda *args, **kwargs: 1 / 0)
    desk.send("set", slot=0, knob="rho", value=3)
    desk.settle()
    assert "ZeroDivisionError" in desk.stage["tracks"][0]["error"]["text"]
    monkeypatch.undo()
    model = catalogue.model(POINTS)
    predict = type(model).predict
    monkeypatch.setattr(
        type(model), "predict", lambda self, *a: (predict(self, *a)[0] * torch.nan, predict(self, *a)[1])
    )
    desk.send("set", slot=0, knob="rho", value=4)
    desk.settle()
    assert "NaN or infinity at step 1" in desk.stage["tracks"][0]["error"]["text"]
    monkeypatch.undo()
    desk.send("no such verb")
    desk.send("set", slot=0)
    assert "KeyError" in desk.lab.top.data["error"]["details"]
    desk.send("dismiss")
    desk.send("set", slot=0, knob="rho", value=5)
    desk.settle()
    assert desk.track().error is None and desk.lab.top.data["error"] is None


def test_models_side_by_side_draw_samples_of_one_shape(desk):
    desk.open({"n_steps": 2}, {"n_steps": 2})
    desk.settle()
    desk.send("model", slot=1, name="oracle-two-point")
    desk.settle()
    assert [t["model"] for t in desk.stage["tracks"]] == [POINTS, "oracle-two-point"] and desk.lab.top.data[
        "model"
    ] is None
    assert desk.track(0).run.scene.extent == desk.track(1).run.scene.extent == desk.store.extent, "one scale"
    desk.send("model", slot=0, name=IMAGES)
    assert {t["model"] for t in desk.stage["tracks"]} == {IMAGES}
    assert "all of them now use" in desk.lab.top.data["notice"] and desk.store.n == 64
    desk.send("model", slot=None, name="no-such")
    assert "no-such" in desk.lab.top.data["error"]["text"]
    desk.send("cancel")


def test_links_reopen_exactly_this_view(worker):
    runs = Runs()
    one, two = LabDesk(worker, runs), LabDesk(worker, runs)
    one.open({"n_steps": 4, "rho": 3.5}, {"n_steps": 2, "solver": "euler", "sigma_max": 40})
    one.settle()
    one.send("seed", value=12)
    one.send("select", slot=1, sigma=40.0, loop=[[-0.5, -0.5], [0.25, -0.5], [0.5, 0.75]])
    one.send("view", u=0.25, trail=0.6, field=False, lines=True, speed=2)
    one.send("pick", index=17)
    one.send("activate", slot=1)
    one.settle()
    two.send("open", link=one.lab.shell.link)
    two.settle()
    assert two.store.link() == one.store.link() == one.lab.shell.link
    assert [t.setting for t in two.store.tracks] == [t.setting for t in one.store.tracks]
    assert two.store.ids.tolist() == one.store.ids.tolist() and two.stage["view"] == one.stage["view"]
    assert "a.rho=3.5" in one.store.link() and "seed=12" in one.store.link(), "legible"


def test_the_sampler_labs_setting_arrives_with_its_pinned_one(desk):
    desk.send(
        "open",
        link=f"trajectory?model={POINTS}&n=256&n_steps=5&seed=3&a.model={POINTS}&a.solver=euler&a.n_steps=2&film=1",
    )
    assert [(t.knobs.solver, t.knobs.n_steps, t.knobs.seed) for t in desk.store.tracks] == [
        ("heun", 5, 3),
        ("euler", 2, 3),
    ]
    assert desk.store.n == 2000
    desk.send("cancel")


@pytest.mark.parametrize(
    "link",
    ["trajectory?a.model=nope", "trajectory?a.model=oracle-8gaussians&a.n_steps=many", "trajectory?seed=x",
     f"trajectory?a.model={POINTS}&loop=a~80~1,2", f"trajectory?a.model={POINTS}&b.model={IMAGES}", f"trajectory?a.model={POINTS}&knobs=d"],
)  # fmt: skip
def test_broken_links_open_the_default_view_and_say_so(desk, link):
    desk.send("open", link=link)
    assert "could not be opened" in desk.lab.top.data["error"]["text"]
    assert len(desk.store.tracks) == 2 and desk.store.kind == "points"
    desk.send("cancel")


def test_images_show_their_plane_and_their_filmstrip(desk):
    desk.open({"model": IMAGES, "n_steps": 3}, n=32)
    desk.settle()
    ds, plane = desk.track().run.ds, compute.plane_of(IMAGES)
    np.testing.assert_allclose(plane.axes.T @ plane.axes, np.eye(2), atol=1e-12)
    end = unpacked(desk.lab.stage.frames_0)
    z = (end["x"].reshape(4, 32, 2)[-1] / 32767.5 - 1) * end["range"][-1]
    expected = (data_of(ds).flatten(1).numpy() - plane.centre) @ plane.axes
    np.testing.assert_allclose(z, expected, atol=2e-5 * end["range"][-1])
    assert 0.2 < plane.share < 0.5 and "of its variance" in desk.stage["caption"]
    desk.send("pick", index=5)
    strip = desk.lab.film.data["strips"][0]
    assert (
        strip["count"] == 4
        and strip["noisy"].startswith("data:image/png;base64,")
        and "seed 5" in desk.lab.film.data["caption"]
    )
    assert desk.lab.shell.images and desk.track().run.scene.field is None


def test_everything_the_browser_gets_is_plain_json(desk):
    desk.open({"n_steps": 1}, {"n_steps": 4, "solver": "edm-stochastic"}, knobs="b")
    desk.settle()
    for pane, parts in (
        ("top", ("data", "job", "texts")),
        ("stage", ("data",)),
        ("curves", ("data",)),
        ("side", ("data",)),
        ("film", ("data",)),
        ("knobs", ("data",)),
    ):
        for part in parts:
            json.dumps(getattr(getattr(desk.lab, pane), part), allow_nan=False)
    assert desk.lab.shell.open == "B" and desk.lab.knobs.data["controls"]
    desk.send("set", knob="rho", value=4.0)  # the knobs pane names no sampler: it is the open one
    assert desk.track(1).knobs.rho == 4.0
    desk.send("cancel")


@pytest.mark.parametrize("form", ["png", "svg", "html"])
def test_figures_can_be_saved(desk, form):
    desk.open({"n_steps": 3}, {"n_steps": 2})
    desk.settle()
    which = {"png": ("paths", "errors"), "svg": ("curves", "budget"), "html": ("couplings",)}
    for what in which[form]:
        saved = exports.build(desk.store, what, form, "dark")
        parts = {saved.name: saved.content}
        if saved.name.endswith(".zip"):
            with zipfile.ZipFile(io.BytesIO(saved.content)) as archive:
                parts = {name: archive.read(name) for name in archive.namelist()}
            assert len(parts) == 2, "one a sampler"
        for content in parts.values():
            start = {"png": b"\x89PNG", "svg": b"<?xml", "html": b"<"}[form]
            assert content.startswith(start) and len(content) > 3000
            if form == "html":
                assert b"cdn.plot.ly" not in content.split(b"</head>")[0][:5000] and b"Plotly.newPlot" in content


def test_recordings_can_be_saved_and_read_back(desk, tmp_path):
    pytest.importorskip("h5netcdf")
    pytest.importorskip("zarr")
    desk.open({"n_steps": 3}, {"n_steps": 2})
    desk.settle()
    desk.send("export", what="data", form="nc", theme="light")
    desk.until(lambda: desk.lab.top.download)
    sent = unpacked(desk.lab.top.download)
    assert sent["name"] == f"runs-{POINTS}.zip" and sent["mime"] == "application/zip"
    for form, content in (
        ("nc", sent["content"].tobytes()),
        ("zarr", exports.build(desk.store, "data", "zarr", "light").content),
    ):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            archive.extractall(tmp_path)
        for track in desk.store.tracks:
            back = load(tmp_path / f"{track.letter}.{form}")
            np.testing.assert_array_equal(back.x, track.run.ds.x)
            np.testing.assert_array_equal(back.seed, track.run.ds.seed)
            assert back.attrs["sampler"] == track.run.ds.attrs["sampler"]


def test_what_is_not_there_is_not_saved(desk):
    with pytest.raises(BadValue, match="nothing has been drawn yet"):
        exports.build(desk.store, "paths", "png", "light")
    desk.open({"n_steps": 2})
    desk.until(lambda: desk.track().shown is not None)
    desk.send("cancel")
    desk.send("export", what="errors", form="png")
    desk.until(lambda: desk.store.error is not None)
    assert "wait for its errors" in desk.lab.top.data["error"]["text"]


def test_copied_python_prints_the_straightness_on_screen(desk):
    desk.open({"n_steps": 4, "rho": 5}, {"n_steps": 3, "solver": "euler"}, seed=4)
    desk.settle()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(desk.lab.top.texts["python"], {})
    for line, track in zip(printed.getvalue().splitlines(), desk.store.tracks, strict=True):
        assert line.startswith(f"{track.letter} S = {track.run.curves.totals['straightness'][0]:.6g} ±")
        assert line.endswith(f"NFE {track.run.ds.attrs['nfe']}")


def test_copied_commands_record_the_same_run(desk, tmp_path, monkeypatch):
    pytest.importorskip("h5netcdf")
    from typer.testing import CliRunner

    from explorer.cli import app

    desk.open({"n_steps": 3, "rho": 5}, seed=4)
    desk.settle()
    monkeypatch.chdir(tmp_path)
    command = desk.lab.top.texts["cli"].split()
    assert command[:2] == ["explorer", "record"]
    done = CliRunner().invoke(app, command[1:])
    assert done.exit_code == 0, done.output
    back = load(tmp_path / "a.nc")
    np.testing.assert_allclose(back.x, desk.track().run.ds.x, rtol=0, atol=1e-12)  # other batches: rounding


def test_watched_counts_its_own_calls_and_stops_with_its_job(worker):
    base = catalogue.model(POINTS)
    job = Job(_worker=worker)
    worker.baton.take()
    one, other = compute.Watched(base, job, 100.0), compute.Watched(base, job)
    knobs = SamplerKnobs(**{**catalogue.defaults(POINTS), "n_steps": 3})
    other.denoise(torch.zeros(2, 2, dtype=torch.float64), 1.0)
    ds = record(one, knobs.build(base)[1], range(4), None)
    assert one.n_calls == ds.attrs["nfe"] == int(ds.nfe[-1]) == 5 and other.n_calls == 1
    job.cancel()
    with pytest.raises(compute.Stopped):
        one.denoise(torch.zeros(2, 2, dtype=torch.float64), 1.0)
    worker.baton.give()


def test_the_cache_forgets_the_longest_unused_when_it_takes_too_much_room(worker):
    runs = Runs(limit=1)
    desk = LabDesk(worker, runs)
    desk.open({"n_steps": 1})
    for steps in range(2, 14):
        desk.send("drag", slot=0, knob="n_steps", value=steps)
        desk.settle()
    assert len(runs._items) <= 9
    assert desk.track().run in runs._items.values()
