"""The Training page without a browser: what its store keeps, and what the browser is sent."""

from __future__ import annotations

import json
import os
import struct
import time

import numpy as np
import pytest
import torch
from desks import Desk as Bare
from shortruns import TOY, asked, done, few

pytest.importorskip("panel")

from explorer.apps.pages.training import TrainingLab
from explorer.apps.training import blocks, choices, launch, previews, process
from explorer.apps.training.folder import RunFiles, read_rows
from explorer.apps.training.state import Trainings
from explorer.apps.worker import Worker
from explorer.training import read_log


@pytest.fixture(autouse=True)
def runs(monkeypatch, tmp_path):
    few(monkeypatch, tmp_path / "runs")
    return tmp_path / "runs"


class Hand:
    """In place of the launcher: notes what is started and trains it when told to."""

    def __init__(self):
        self.started: list[RunFiles] = []
        self.warmed = 0

    def warm(self):
        self.warmed += 1

    def start(self, files):
        self.started.append(files)
        files.want("run")
        files.say(**{**launch._kept(files.status()), "state": "starting", "pid": os.getpid(), "beat": time.time()})

    def reap(self):
        pass


class Desk(Bare):
    def __init__(self, worker, link=""):
        super().__init__()
        self.hand = Hand()
        self.store = Trainings(worker, self.calls.put, launcher=self.hand)
        self.lab = TrainingLab(self.store)
        self.send("open", link=link)

    def failures(self):
        return self.store.error

    @property
    def error(self) -> str:
        return self.lab.top.data["error"]["text"]


@pytest.fixture
def desk():
    worker = Worker(n_threads=1)
    desks = []

    def open(link="") -> Desk:
        desks.append(Desk(worker, link))
        return desks[-1]

    yield open
    for one in desks:
        one.store.close()
    worker.close()


def unpacked(block: bytes) -> dict:
    (size,) = struct.unpack("<I", block[:4])
    header = json.loads(block[4 : 4 + size])
    kinds = {"u1": "u1", "u2": "<u2", "f4": "<f4"}
    for part in header["parts"]:
        header[part["name"]] = np.frombuffer(block, kinds[part["kind"]], part["count"], part["at"])
    return header


# The page


def test_the_empty_page_says_what_to_do_and_warms_a_process_up(desk):
    page = desk()
    assert page.hand.warmed == 1
    stage = page.lab.stage.data
    assert stage["none"] and not stage["panels"] and stage["first"] == "toy-8gaussians"
    form = page.lab.form.data
    assert form["paper"] == "edm" and form["cost"] == "1 CPU minute" and "fresh points" in form["data"]
    assert {k["name"] for g in form["groups"] for k in g["knobs"]} >= {
        "steps",
        "minutes",
        "lr",
        "half_life",
        "set.p_mean",
    }


def test_start_watch_pause_stop_resume_keep(desk, runs):
    page = desk()
    for knob, value in TOY["changes"].items():
        page.send("set", knob=knob, value=str(value))
    page.send("start")
    (files,) = page.hand.started
    assert files.request["changes"] == TOY["changes"] and page.store.shown == ["edm-toy-8gaussians", ""]
    page.until(lambda: page.lab.stage.data["panels"] and page.lab.stage.data["panels"][0]["words"] == "starting")
    recipe = process.watched(choices.recipe_of(files.request))
    course = process.attended(recipe, files)
    for tick in course:
        if tick.step == 5:
            break
    files.say(**{**files.status(), "state": "running"})

    def panel():
        return page.lab.stage.data["panels"][0]

    page.until(lambda: panel()["state"] == "running")
    assert panel()["acts"] == ["pause", "stop"]
    page.send("pause", name=files.name)
    assert files.wanted == "pause"
    page.send("resume", name=files.name)
    assert files.wanted == "run"
    page.send("stop", name=files.name)
    for _ in course:
        pass
    page.until(lambda: panel()["state"] == "stopped")
    assert panel()["acts"] == ["resume", "again", "remove"]
    page.send("resume", name=files.name)
    assert page.hand.started == [files, files] or page.hand.started[1].name == files.name
    process.work(files)
    page.until(lambda: panel()["state"] == "done" and panel()["hero"] and not panel()["unkeepable"])
    page.send("keep", name=files.name)
    page.until(lambda: panel()["kept"] == ["edm-toy-8gaussians"])
    assert "Kept as edm-toy-8gaussians" in page.lab.top.data["notice"]
    page.until(lambda: "model=edm-toy-8gaussians" in page.lab.shell.link)  # the other pages open it
    assert page.lab.runs.data["runs"][0]["kept"] and page.store.error is None


def test_a_run_is_removed_and_put_back_as_it_was(desk, runs):
    files, other = (done(runs, name) for name in ("a", "b"))
    weights = {path.name: path.read_bytes() for path in files.path.rglob("*.safetensors")}
    page = desk("training?run=a&beside=b")
    page.until(lambda: page.lab.top.data["shown"] == ["a", "b"])
    page.send("remove", name="a")
    assert "removed" in page.lab.top.data["notice"] and page.lab.top.data["undo"] and not files.path.exists()
    page.until(lambda: [run["name"] for run in page.lab.runs.data["runs"]] == ["b"])
    assert page.store.shown == ["b", ""]
    page.send("put-back")
    page.until(lambda: {run["name"] for run in page.lab.runs.data["runs"]} == {"a", "b"})
    page.until(lambda: page.store.shown[0] == "a" and page.lab.stage.data["panels"][0]["state"] == "done")
    assert weights == {path.name: path.read_bytes() for path in files.path.rglob("*.safetensors")}
    assert not page.lab.top.data["undo"] and page.store.error is None
    page.send("put-back")
    assert "no run was removed" in page.error
    with other.lock():
        other.say(state="running", step=1)
        page.send("remove", name="b")
        assert "stop it before" in page.error and other.path.is_dir()


def test_pictures_come_once_and_in_order_and_again_when_a_run_takes_them_back(desk, runs):
    files = asked(runs)
    pictures = [torch.full((30, 2), 0.03 * k) for k in range(60)]
    for k, x in enumerate(pictures):
        previews.write_preview(files.previews, x, None, {"step": k, "n_images": 8 * k, "seconds": k / 4})
    page = desk()
    got, seen = [], None
    while len(got) < 60:
        page.until(lambda seen=seen: page.lab.stage.book_0 is not None and page.lab.stage.book_0 is not seen)
        seen = page.lab.stage.book_0
        block = unpacked(seen)
        assert block["anew"] == (not got) and len(block["pictures"]) <= blocks.MOST_PICTURES
        got += [p["step"] for p in block["pictures"]]
        z = (block["x"].reshape(len(block["pictures"]), -1) / 32767.5 - 1) * 2 * block["extent"]
        expected = [0.03 * p["step"] for p in block["pictures"]]
        np.testing.assert_allclose(z[:, 0], expected, atol=2 * block["extent"] / 32767)
        page.send("have", slot=0)
    assert got == list(range(60))
    page.send("have", slot=0, taken=False)  # looked elsewhere meanwhile: all of it again
    page.until(lambda: page.lab.stage.book_0 is not seen)
    seen = page.lab.stage.book_0
    assert unpacked(seen)["anew"] and unpacked(seen)["pictures"][0]["step"] == 0
    while unpacked(seen)["more"]:
        before = seen
        page.send("have", slot=0)
        page.until(lambda before=before: page.lab.stage.book_0 is not before)
        seen = page.lab.stage.book_0
    page.send("have", slot=0)
    files.drop_after(10)
    page.until(lambda: page.lab.stage.book_0 is not seen)
    block = unpacked(page.lab.stage.book_0)
    assert block["anew"] and [p["step"] for p in block["pictures"]] == list(range(11))


def test_two_runs_share_their_axis_and_keep_their_letters(desk, runs):
    a, b = done(runs, "a"), done(runs, "b", lr=1e-4)
    page = desk("training?run=a&beside=b&by=seconds&t.paper=edm&t.recipe=toy-moons&t.lr=0.004")
    page.until(lambda: len(page.lab.curves.data["runs"]) == 2 and page.lab.strips.strip_1 is not None)
    d = page.lab.curves.data
    assert d["by"] == "seconds" and [c["key"] for c in d["charts"]] == [
        "quality",
        "loss",
        "gradient norm",
        "straightness",
    ]
    loss = d["charts"][1]["lines"]
    assert [line["letter"] for line in loss] == ["A", "B"]
    for line, files in zip(loss, (a, b), strict=True):
        rows = read_log(files.path)
        np.testing.assert_allclose(line["y"], [row["loss/net"] for row in rows], rtol=1e-4)
        np.testing.assert_allclose(line["x"], [row["seconds"] for row in rows], rtol=1e-4)
    quality = d["charts"][0]["lines"][0]
    row = read_rows(a.measures)[-1]["estimate"]
    assert quality["y"][-1] == pytest.approx(row["value"], rel=1e-4) and quality["se"][-1] == pytest.approx(
        row["std_error"], rel=1e-4
    )
    assert page.store.changes == {"lr": 0.004} and page.lab.shell.link.startswith(
        "training?t.paper=edm&t.recipe=toy-moons&t.lr=0.004&run=a&beside=b&by=seconds"
    )
    page.send("show", name="", slot=0)
    assert page.store.shown == ["b", ""]
    page.send("show", name="b", slot=1)
    assert page.store.shown == ["b", ""] or page.store.shown == ["", "b"]


def test_losses_by_level_are_sent_as_they_are_logged(desk, runs):
    files = asked(runs)
    rng = np.random.default_rng(0)
    means = rng.random((5, 2)).astype(np.float32)
    with files.log.open("w") as stream:
        for i in range(5):
            level = {"bins": [10, 12], "mean": means[i].tolist(), "std_error": [0, 0], "n": [3, 4]}
            stream.write(
                json.dumps(
                    {
                        "step": i + 1,
                        "n_images": i + 1,
                        "seconds": i,
                        "loss/net": 1.0,
                        "grad_norm/net": 1.0,
                        "levels": {"net": level, "other": {}},
                    }
                )
                + "\n"
            )
    page = desk()
    page.until(lambda: page.lab.strips.strip_0 is not None and unpacked(page.lab.strips.strip_0)["columns"] == 5)
    block = unpacked(page.lab.strips.strip_0)
    loss = block["loss"].reshape(5, 3)
    np.testing.assert_array_equal(loss[:, [0, 2]], means)
    assert block["sure"].reshape(5, 3)[0].tolist() == [80, 40, 94], "three, none and four of the sixteen that are sure"
    assert np.isnan(loss[:, 1]).all() and len(block["edges"]) == 4 and block["nets"] == ["net", "other"]
    page.send("net", slot=0, name="other")
    assert unpacked(page.lab.strips.strip_0)["net"] == "other"


def test_failed_and_killed_runs_say_what_happened_and_what_to_do(desk, runs):
    bad = asked(runs, "bad", lr=1e30, steps=200)
    process.work(bad)
    gone = asked(runs, "gone")
    gone.say(state="running", step=3, n_steps=12, fraction=0.25)
    page = desk("training?run=bad&beside=gone")
    page.until(lambda: len(page.lab.stage.data["panels"]) == 2 and page.lab.stage.data["panels"][1].get("error"))
    failed, killed = page.lab.stage.data["panels"]
    assert "non-finite" in failed["error"]["text"] and failed["acts"] == ["resume", "slower", "again", "remove"]
    assert (
        "killed" in killed["error"]["text"]
        and killed["acts"] == ["resume", "again", "remove"]
        and killed["state"] == "killed"
    )
    page.send("slower", name="bad")
    assert page.store.changes["lr"] == 5e29 and page.hand.started[-1].request["changes"]["lr"] == 5e29
    page.send("again", name="gone")
    assert page.store.changes == TOY["changes"]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"type": "set", "knob": "lr", "value": "-1"}, "above 0"),
        ({"type": "set", "knob": "nope", "value": 1}, "unknown knob"),
        ({"type": "paper", "name": "nope"}, "unknown paper"),
        ({"type": "recipe", "name": "nope"}, "unknown recipe"),
        ({"type": "show", "name": "nope"}, "no run"),
        ({"type": "pause", "name": "nope"}, "no run"),
        ({"type": "look", "by": "moons"}, "unknown axis"),
    ],
)
def test_what_cannot_be_done_is_said_on_the_page(desk, message, words):
    page = desk()
    page.send(**message)
    assert words in page.error
    page.send("dismiss")
    assert page.lab.top.data["error"] is None


@pytest.mark.parametrize(
    "link",
    [
        "training?t.paper=nope",
        "training?t.paper=edm&t.recipe=nope",
        "training?t.paper=edm&t.recipe=toy-moons&t.nope=1",
        "training?run=nope",
        "training?by=moons",
        "training?t.paper=edm&t.recipe=toy-moons&t.lr=x",
    ],
)
def test_broken_links_say_so_and_leave_the_page_usable(desk, link):
    page = desk(link)
    assert "could not be opened" in page.error
    page.send("paper", name="edm")
    assert page.lab.form.data["paper"] == "edm"


def test_links_of_the_other_pages_open_the_form_as_it_was(desk):
    page = desk("lab?model=digits&n=2000&seed=5&a.model=digits")
    assert page.store.error is None and page.store.changes == {}


def test_a_classifier_trains_without_pictures_and_says_why(runs, desk):
    files = RunFiles(runs / "cnn")
    files.ask({"paper": "digits_cnn", "recipe": "digits", "changes": {"steps": 2, "batch": 16}})
    process.work(files)
    assert files.status()["state"] == "done", files.status()
    page = desk()
    page.until(lambda: page.lab.stage.data["panels"])
    assert "not sampled from" in page.lab.stage.data["panels"][0]["pictures"]


def test_everything_the_browser_gets_is_plain_json(desk, runs):
    done(runs, "a")
    page = desk()
    page.until(lambda: page.lab.curves.data.get("runs") == ["a"])
    for pane in ("top", "form", "runs", "stage", "strips", "curves"):
        json.dumps(getattr(page.lab, pane).data, allow_nan=False)
