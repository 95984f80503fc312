"""The dashboard without a browser: the store and its jobs, what the panes are given, and what the server lets in."""

from __future__ import annotations

import json
import math
import queue
import socket
import threading
import time
import urllib.request

import pytest
import torch
from desks import PATIENCE, Desk

pytest.importorskip("panel")

from explorer.apps import catalogue, choices, views
from explorer.apps.pages.sampler_lab import SamplerLab
from explorer.apps.results import Cache
from explorer.apps.session import Session
from explorer.apps.worker import Baton, Worker
from explorer.errors import BadValue, ExplorerError
from explorer.knobs import SamplerKnobs, names
from explorer.sampling import GRIDS, SOLVERS

POINTS, IMAGES = "oracle-8gaussians", "oracle-digits"


class LabDesk(Desk):
    """One session with its page."""

    def __init__(self, worker: Worker, cache: Cache | None = None):
        super().__init__()
        self.session = Session(worker, self.calls.put, cache or Cache())
        self.lab = SamplerLab(self.session)

    def failures(self) -> object:
        return self.session.error

    def settle(self) -> None:
        self.until(lambda: not self.session.running)

    def open(self, **state) -> None:
        self.send("open", link="lab?" + "&".join(f"{k}={v}" for k, v in {"model": POINTS, "n": 256, **state}.items()))

    @property
    def hero(self) -> dict:
        return self.lab.top.hero

    @property
    def verdict(self) -> dict:
        return self.lab.history.data["verdict"]

    @property
    def error(self) -> str:
        data = self.lab.top.data["error"]
        return "" if data is None else data["text"]


@pytest.fixture
def worker():
    worker = Worker(n_threads=1)
    yield worker
    worker.close()


@pytest.fixture
def desk(worker):
    return LabDesk(worker)


def test_opening_measures_and_shows_the_number_with_its_error_and_n(desk):
    desk.open()
    assert desk.lab.top.job["running"]
    desk.settle()
    estimate = desk.session.result.live.estimate
    assert desk.hero["name"] == estimate.name == "SW2[xy]"
    assert desk.hero["settled"] and desk.hero["n"] == "256"
    assert float(desk.hero["value"]) == pytest.approx(estimate.value, abs=2 * estimate.std_error)
    assert "NFE 17" in desk.hero["meta"]
    assert [row["current"] for row in desk.lab.history.data["rows"]] == [True]
    assert not desk.lab.top.job["running"]


def test_pictures_and_numbers_arrive_before_the_end(desk):
    desk.open(model=IMAGES, n=512, n_steps=3)
    desk.until(lambda: desk.session.result.live is not None)
    assert desk.session.result.live.n_done == 64
    assert desk.lab.samples.data["b"]["sprite"].startswith("data:image/png;base64,")
    assert desk.lab.top.job["running"] and not desk.hero["settled"] and desk.hero["value"] == "–"
    assert "raw" in desk.hero
    desk.until(lambda: desk.session.result.live.n_done == 256)
    assert desk.hero["value"] != "–" and not desk.hero["settled"], "grey below 15 samples per feature"
    desk.settle()
    assert desk.hero["settled"]


def test_a_new_value_cancels_the_old_job(desk):
    desk.open(n=10000, n_steps=30)
    desk.until(lambda: desk.session.result.live is not None)
    old, old_key = desk.session._job, desk.session.setting.key
    desk.send("set", knob="n_steps", value=2)
    assert old.stop.is_set()
    desk.send("n", value=256)
    desk.settle()
    assert desk.session.result.complete and desk.session.setting.key != old_key
    kept = desk.session.results[old_key]
    assert kept.live.n_done < 10000, "the old job is gone"
    assert old_key in [row["key"] for row in desk.lab.history.data["rows"]], "and what it measured is kept"


def test_returning_to_a_seen_setting_starts_nothing(desk):
    desk.open()
    desk.settle()
    first, key = desk.session.result.live, desk.session.setting.key
    desk.send("set", knob="n_steps", value=4)
    desk.settle()
    desk.send("recall", key=key)
    assert desk.session._job is None and desk.session.result.live is first
    desk.send("set", knob="n_steps", value=4)
    assert desk.session._job is None and desk.session.result.complete


def test_a_second_visitor_gets_seen_settings_at_once(worker):
    cache = Cache()
    first, second = LabDesk(worker, cache), LabDesk(worker, cache)
    first.open()
    first.settle()
    second.open()
    assert second.session._job is None and second.hero["value"] == first.hero["value"]


def test_more_samples_go_on_from_those_that_are_there(worker):
    model = catalogue.model(POINTS)
    desk, fresh = LabDesk(worker), LabDesk(worker)
    desk.open(n=256, n_steps=4)
    desk.settle()
    first = desk.session.result
    model.reset_calls()
    desk.send("n", value=512)
    assert desk.session.result.live.n_done == 256 and desk.session.result.live.n == 512, "shown at once"
    assert desk.hero["n"] == "256 of 512" and desk.hero["value"] != "–" and desk.session.result.plane is first.plane
    desk.settle()
    assert model.n_calls == 7, "one more batch of 7 evaluations"
    assert sorted(desk.session.result.course) == [64, 256, 512] and set(desk.session.result.metrics) == {256, 512}
    fresh.open(n=512, n_steps=4)
    fresh.settle()
    assert fresh.session.result.live.estimate == desk.session.result.live.estimate, "to the last bit"
    assert first.live.n_done == 256 and first.complete, "the shorter one is still there"
    desk.send("n", value=256)
    assert desk.session._job is None and desk.session.result.live.n_done == 256


def test_a_stopped_run_goes_on_where_it_stopped(desk):
    desk.open(n=2000, n_steps=30)
    desk.until(lambda: desk.session.result.live is not None and desk.session.result.live.n_done >= 256)
    desk.send("cancel")
    stopped = desk.session.result.live.n_done
    desk.send("run")
    assert desk.session.result.live.n_done == stopped
    desk.until(lambda: desk.session.result.live.n_done > stopped)
    assert desk.session.result.live.n_done == min(2000, stopped + 256)
    desk.send("cancel")


def test_a_second_visitor_goes_on_from_what_the_first_has_measured(worker):
    cache = Cache()
    first, second = LabDesk(worker, cache), LabDesk(worker, cache)
    first.open(n=256, n_steps=3)
    first.settle()
    second.open(n=512, n_steps=3)
    assert second.session.result.live.n_done == 256
    second.settle()
    assert second.session.result.live.n_done == 512


def test_cancel_keeps_what_was_measured(desk):
    desk.open(n=10000, n_steps=20)
    desk.until(lambda: desk.session.result.live is not None)
    desk.send("cancel")
    assert not desk.session.running and desk.lab.top.job["stopped"]
    n = desk.session.result.live.n_done
    assert 0 < n < 10000
    time.sleep(0.3)
    while not desk.calls.empty():
        desk.calls.get()()
    assert desk.session.result.live.n_done == n, "nothing arrives after the cross"
    desk.send("n", value=256)
    desk.settle()
    assert desk.session.result.complete


def test_two_sessions_share_the_machine_fairly(worker):
    long, short = LabDesk(worker), LabDesk(worker)
    long.open(n=10000, n_steps=40)
    long.until(lambda: long.session.result.live is not None)
    short.open(n_steps=5)
    short.settle()
    assert short.session.result.complete
    assert long.session.running and not long.session.result.complete
    before = long.session.setting
    short.send("set", knob="rho", value=3)
    short.settle()
    assert long.session.setting == before and long.session.running, "nobody's knobs but one's own"
    long.send("cancel")


def test_ab_on_the_same_noise(desk):
    desk.open()
    desk.settle()
    assert "Pin a setting" in desk.verdict["text"]
    desk.send("pin")
    assert "This is A" in desk.verdict["text"]
    desk.send("set", knob="n_steps", value=3)
    desk.settle()
    comparison = desk.session.comparison()
    assert comparison.n == 256 and comparison.difference.differs_from(0.0)
    assert desk.verdict["text"].startswith("B is worse than A by") and desk.verdict["kind"] == "worse"
    letters = [row["letter"] for row in desk.lab.history.data["rows"]]
    assert letters == ["A", "B"]
    assert desk.lab.history.data["rows"][0]["color"] == "var(--pinned)"
    assert desk.lab.samples.data["a"] is not None
    differing = [c["name"] for c in desk.lab.knobs.data["controls"] if c["differs"]]
    assert differing == ["n_steps"]
    desk.send("unpin")
    assert "Pin a setting" in desk.verdict["text"]


def test_settings_that_agree_are_not_told_apart(desk):
    desk.open(solver="heun")
    desk.settle()
    desk.send("pin")
    desk.send("set", knob="alpha", value=1.0)
    desk.send("set", knob="solver", value="alpha2")  # with alpha = 1 it is Heun's method
    desk.settle()
    assert "not distinguishable" in desk.verdict["text"] and desk.verdict["kind"] == "same"


def test_other_seeds_take_the_pinned_setting_along(desk):
    desk.open()
    desk.settle()
    desk.send("pin")
    desk.send("set", knob="n_steps", value=5)
    desk.settle()
    desk.send("set", knob="seed", value=5000)
    assert desk.session.pinned.knobs.seed == 5000
    desk.settle()
    assert desk.session.baseline.complete and desk.session.result.complete
    assert desk.session.comparison().n == 256


def test_dragging_previews_and_stores_nothing(desk):
    desk.open(model=IMAGES, n_steps=2)
    desk.settle()
    rows = len(desk.lab.history.data["rows"])
    desk.send("preview", knob="n_steps", value=6)
    assert len(desk.lab.steps.ghost["sigmas"]) == 7, "the grid at once"
    desk.until(lambda: desk.session.ghost.x is not None)
    assert desk.lab.samples.data["b"]["fresh"] == 16
    assert len(desk.lab.history.data["rows"]) == rows and desk.session.knobs.n_steps == 2
    desk.send("set", knob="n_steps", value=6)
    assert desk.lab.steps.ghost is None
    desk.settle()


def test_filmstrip_follows_the_setting(desk):
    desk.open(model=IMAGES, n_steps=3)
    desk.settle()
    desk.send("film", index=7)
    desk.until(lambda: desk.lab.steps.film is not None)
    assert desk.lab.steps.film["strips"][0]["count"] == 4
    assert torch.allclose(desk.session.film["b"].frames[-1].double(), desk.session.result.live.x[7], atol=1e-5)
    desk.send("set", knob="n_steps", value=5)
    desk.until(lambda: desk.lab.steps.film["strips"][0]["count"] == 6)
    assert desk.session.film["b"].seed == 7


def test_points_show_particles_field_and_density(desk):
    desk.open(n_steps=4)
    desk.settle()
    data = desk.lab.samples.data
    assert data["kind"] == "points" and data["density"].startswith("data:image/png")
    b = data["b"]
    assert b["grid"] ** 2 * 4 == len(desk.session.result.plane.field.reshape(-1, 2))
    assert len(b["angle"]) == b["n"] and len(b["sigmas"]) == 5


@pytest.mark.parametrize(
    ("knob", "value", "words"),
    [
        ("n_steps", 0, "expected a whole number from 1 to 64"),
        ("solver", "huen", "Did you mean 'heun'"),
        ("sigma_min", 1.9, "must be below sigma_max"),
        ("guidance", 3, "no classes"),
        ("rho_bottom", 0.5, "skip connections"),
        ("roh", 1, "unknown knob"),
    ],
)
def test_bad_values_become_one_sentence_and_the_page_lives(desk, knob, value, words):
    desk.open(model="digits-uncond" if knob == "guidance" else POINTS, sigma_max=1.5, n_steps=2)
    desk.settle()
    desk.send("set", knob=knob, value=value)
    desk.settle()
    assert words in desk.error and "\n" not in desk.error
    desk.send("fix")
    desk.settle()
    assert desk.error == "" and desk.session.result.complete
    desk.send("set", knob="n_steps", value=3)
    desk.settle()
    assert desk.session.result.complete


def test_curves_by_step_are_there_or_say_why_not(desk):
    desk.open(solver="heun", n_steps=4)
    desk.settle()
    curves = {c["name"]: c for c in desk.lab.steps.data["b"]["curves"]}
    assert list(curves) == list(views.CURVES) and all(c["doc"] and c["title"] for c in curves.values())
    geometry = desk.session.result.live.geometry
    assert curves["step_error"]["mean"][:3] == geometry.step_error.values.tolist()[:3]
    assert curves["step_error"]["mean"][3] is None, "the last step is Euler's and has no estimate"
    assert curves["velocity_gap"]["mean"] == geometry.velocity_gap.values.tolist()
    assert "straightness S" in desk.lab.steps.data["summary"]
    desk.send("set", knob="solver", value="euler")
    desk.settle()
    curves = {c["name"]: c for c in desk.lab.steps.data["b"]["curves"]}
    assert "no embedded estimate" in curves["step_error"]["reason"] and not curves["velocity_gap"]["reason"]
    desk.send("set", knob="restarts", value=1)
    desk.settle()
    assert all("go up again" in c["reason"] for c in desk.lab.steps.data["b"]["curves"])
    assert desk.session.result.live.nfe == 4 + 2, "two steps more, from the upper end down"


def test_solvers_and_grids_are_listed_with_what_they_are_and_cost():
    model = catalogue.model(IMAGES)
    knobs = SamplerKnobs.for_model(model, n_steps=7)
    for name, option in zip(SOLVERS, choices.solvers(knobs, model), strict=True):
        sampler = SamplerKnobs.for_model(model, n_steps=7, solver=name).build(model)[1]
        assert f"NFE {sampler.nfe(model)}" in option["hint"], name
        assert option["group"] != choices.OTHER and len(option["doc"]) > 30, f"{name} has no family or no words"
        assert (option["group"] == choices.NOISY) == bool(sampler.solver.stochastic), name
    for name, option in zip(GRIDS, choices.grids(), strict=True):
        assert option["group"] and len(option["doc"]) > 20, name
    listed = {c["name"]: c for c in views.knobs_data(Session(None))["controls"]}
    assert len(listed["solver"]["options"]) == len(SOLVERS) and len(listed["grid"]["options"]) == len(GRIDS)
    assert "options" not in listed["n_steps"]


@pytest.mark.parametrize("model", ["digits", POINTS])
def test_every_solver_and_grid_runs_from_the_page(desk, model):
    """Measured, previewed, its filmstrip or particles drawn, its steps described: without an error on the page."""
    desk.open(model=model, n_steps=4)
    desk.send("cancel")
    desk.session.n = 16
    grids = [{"grid": name} for name in GRIDS] if model == POINTS else []
    for knobs in [{"solver": name} for name in SOLVERS] + grids:
        desk.session.set(**{**catalogue.defaults(model), "n_steps": 4, **knobs})
        assert desk.error == "", knobs
        if model == "digits":
            desk.send("film", index=0)
            desk.session.film.clear()
        desk.settle()
        assert desk.error == "" and desk.session.result.complete, knobs
        live = desk.session.result.live
        assert live.x.isfinite().all() and live.nfe > 0, knobs
        data = desk.lab.steps.data["b"]
        assert all(c["reason"] or len(c["mean"]) == len(data["sigmas"]) - 1 for c in data["curves"]), knobs
        if model == "digits":
            desk.until(lambda: "b" in desk.session.film)
            assert torch.allclose(desk.session.film["b"].frames[-1].double(), live.x[0], atol=1e-4), knobs
            assert desk.lab.steps.film["strips"][0]["count"] == len(data["sigmas"]), knobs
        else:
            assert desk.session.result.plane is not None, knobs


def test_unknown_messages_and_bugs_do_not_take_the_page_down(desk, monkeypatch):
    desk.open()
    desk.settle()
    desk.send("no such verb")
    desk.send("set", knob="rho")  # a malformed message
    assert "KeyError" in desk.lab.top.data["error"]["details"]
    monkeypatch.setattr("explorer.apps.session.quality", lambda *args, **kwargs: 1 / 0)
    desk.send("dismiss")
    desk.send("set", knob="rho", value=3)
    desk.until(lambda: not desk.session.running)
    assert "ZeroDivisionError" in desk.error and "Traceback" in desk.lab.top.data["error"]["details"]
    monkeypatch.undo()
    desk.send("set", knob="rho", value=2)
    desk.settle()
    assert desk.error == "" and desk.session.result.complete


def test_nan_is_a_sentence_and_what_was_finished_stays(desk, monkeypatch):
    desk.open(n=512)
    desk.settle()
    model = catalogue.model(POINTS)
    true, calls = type(model).predict, {"n": 0}

    def predict(self, x, t, cond=None):
        calls["n"] += 1
        out, kind = true(self, x, t, cond)
        return (out * (math.nan if calls["n"] > 30 else 1.0)), kind

    monkeypatch.setattr(type(model), "predict", predict)
    desk.send("set", knob="rho", value=4)
    desk.settle()
    assert "NaN or infinity at step" in desk.error and "seeds" in desk.error
    desk.send("fix")
    assert desk.error == "" and desk.session.result.complete


def test_models_change_and_knobs_that_cannot_follow_are_named(desk):
    desk.open(model=IMAGES, n_steps=2, guidance=1.5)
    desk.settle()
    desk.send("model", name="digits-uncond")
    desk.settle()
    assert "Guidance and class are off" in desk.lab.top.data["notice"]
    assert desk.session.knobs.guidance == 1 and desk.session.result.complete
    desk.send("model", name="no-such-model")
    assert "no-such-model" in desk.error and desk.session.model_name == "digits-uncond"


def test_links_reopen_exactly_this_view(worker):
    cache = Cache()
    one, two = LabDesk(worker, cache), LabDesk(worker, cache)
    one.open(n_steps=6, rho=3.5, solver="edm-stochastic", s_churn=12, guidance=1.25, label=2)
    one.settle()
    one.send("pin")
    one.send("set", knob="n_steps", value=4)
    one.settle()
    two.send("open", link=one.session.link())
    assert two.session.setting == one.session.setting and two.session.pinned == one.session.pinned
    assert two.verdict == one.verdict and two.hero["value"] == one.hero["value"]
    assert two.session.link() == one.session.link()
    assert "rho=3.5" in one.session.link(), "legible"


@pytest.mark.parametrize(
    "link", ["lab?model=nope", "lab?n_steps=zero", "lab?rho=1e9", "%%%", "lab?skip_bank=a,b", "lab?n=x"]
)
def test_broken_links_open_the_default_view_and_say_so(desk, link):
    desk.session.model_name = POINTS
    desk.send("open", link=link)
    if link != "%%%":
        assert "could not be opened" in desk.error
    desk.send("cancel")


def test_exported_state_restores_setting_and_number(worker):
    one, two = LabDesk(worker), LabDesk(worker)
    one.open(n_steps=5, rho=4)
    one.settle()
    one.send("pin")
    one.send("set", knob="grid", value="cosine")
    one.settle()
    text = one.lab.knobs.texts["json"]
    state = json.loads(text)
    assert state["measured"]["value"] == one.session.result.live.estimate.value
    assert set(state["knobs"]) == set(names()) and state["sampler"]["grid"]["times"]
    two.send("import", text=text)
    two.settle()
    assert two.session.setting == one.session.setting and two.session.pinned == one.session.pinned
    assert two.session.result.live.estimate == one.session.result.live.estimate


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": "explorer-state-1"}', '{"format": "other"}', '"x"', "null"]
)
def test_broken_states_are_refused_in_words(desk, text):
    desk.open()
    desk.settle()
    before = desk.session.setting
    desk.send("import", text=text)
    assert "could not be imported" in desk.error and desk.session.setting == before


def test_everything_the_browser_gets_is_plain_json(desk):
    for state in ({"model": IMAGES, "n_steps": 2, "n": 512}, {"n_steps": 2}):
        desk.open(**state)
        desk.settle()
        desk.send("pin")
        desk.send("set", knob="n_steps", value=3)
        desk.settle()
        for pane, parts in (
            ("top", ("data", "job", "hero")),
            ("knobs", ("data", "texts")),
            ("samples", ("data",)),
            ("steps", ("data",)),
            ("history", ("data",)),
        ):
            for part in parts:
                json.dumps(getattr(getattr(desk.lab, pane), part), allow_nan=False)


def test_sprites_hold_the_pixels(tmp_path):
    import base64
    import io

    from PIL import Image

    x = torch.linspace(-1, 1, 3 * 4).reshape(3, 1, 2, 2)
    image = Image.open(io.BytesIO(base64.b64decode(views.sprite(x, columns=2).partition(",")[2])))
    assert image.size == (4, 4) and image.mode == "L"
    got = torch.tensor(list(image.tobytes()), dtype=torch.float32).reshape(4, 4)
    torch.testing.assert_close(got[:2, 2:] / 127.5 - 1, x[1, 0], atol=0.005, rtol=0)
    assert (got[2:, 2:] == 0).all(), "the empty cell is black"
    assert Image.open(io.BytesIO(base64.b64decode(views.sprite(x.expand(3, 3, 2, 2)).partition(",")[2]))).mode == "RGB"


def test_baton_serves_in_order():
    baton, order = Baton(), []
    baton.take()

    def wait(k):
        baton.take()
        order.append(k)
        baton.give()

    threads = []
    for k in range(5):
        threads.append(threading.Thread(target=wait, args=(k,)))
        threads[-1].start()
        while len(baton._waiting) <= k:
            time.sleep(0.001)
    baton.give()
    for thread in threads:
        thread.join(10)
    assert order == list(range(5))


def test_worker_reports_failures_and_frees_the_slot(worker):
    ends: queue.Queue = queue.Queue()

    def broken(job):
        yield 1
        raise ExplorerError("a sentence for the user")

    worker.submit(broken, value=lambda item: None, end=ends.put)
    failure = ends.get(timeout=10)
    assert failure.text == "a sentence for the user" and "Traceback" in failure.details
    worker.submit(lambda job: iter(()), value=lambda item: None, end=ends.put)
    assert ends.get(timeout=10) is None


@pytest.fixture(scope="module")
def server():
    """A server in a thread of its own on a free port: its address."""
    import asyncio

    from explorer.apps.serve import serve

    box: queue.Queue = queue.Queue()

    def run():
        asyncio.set_event_loop(asyncio.new_event_loop())
        server = serve(port=0, show=False, block=False)
        box.put(server)
        server.io_loop.start()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    server = box.get(timeout=PATIENCE)
    yield server
    server.io_loop.add_callback(server.io_loop.stop)
    thread.join(10)


def test_server_listens_on_this_machine_only(server, capsys):
    addresses = [sock.getsockname()[0] for sock in server._http._sockets.values()]
    assert addresses and set(addresses) <= {"127.0.0.1", "::1"}


def test_page_names_no_other_machine(server):
    import re

    for slug in ("", "lab"):
        with urllib.request.urlopen(f"http://localhost:{server.port}/{slug}", timeout=PATIENCE) as reply:
            page = reply.read().decode()
        links = re.findall(r"""(?:src|href)=["']?(https?://[^"'\s>]+)""", page)
        assert [link for link in links if "localhost" not in link] == []
        assert "trajectory-explorer" in page


def test_websocket_refuses_other_origins(server):
    def handshake(origin):
        lines = (
            "GET /ws HTTP/1.1",
            f"Host: localhost:{server.port}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==",
            f"Origin: {origin}",
        )
        with socket.create_connection(("localhost", server.port), timeout=PATIENCE) as connection:
            connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
            return int(connection.recv(100).split()[1])

    assert handshake("http://elsewhere.example") == 403
    assert handshake(f"http://localhost:{server.port}") != 403


def test_serving_beyond_this_machine_says_so(monkeypatch, capsys):
    from explorer.apps import serve as module

    class Fake:
        port = 1234
        io_loop = None

        def start(self):
            pass

    monkeypatch.setattr(module.pn, "serve", lambda *args, **kwargs: Fake())
    module.serve(port=1234, address="0.0.0.0", show=False, block=False)
    out = capsys.readouterr()
    assert "http://0.0.0.0:1234/" in out.out and "every machine that can reach this one" in out.err
    module.serve(port=1234, show=False, block=False)
    assert capsys.readouterr().err == ""


def test_bad_ports_are_refused(server):
    from explorer.apps.serve import serve

    with pytest.raises(BadValue, match="0 to 65535"):
        serve(port=70000, show=False, block=False)
    with pytest.raises(BadValue, match="choose another"):
        serve(port=server.port, show=False, block=False)
