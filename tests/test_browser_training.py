"""The Training page in a real browser: headless Chromium against `explorer serve`, as a user would meet it."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys

import pytest
from browsing import Visitor

pytest.importorskip("panel")

from explorer.apps.training.folder import RunFiles, listed

pytestmark = pytest.mark.browser

STILL = "training#training?t.paper=edm&t.recipe=toy-8gaussians&t.steps=3000&t.batch=128"


class TrainingVisitor(Visitor):
    def __init__(self, browser, address: str, state: str = STILL, **size):
        super().__init__(browser, address, state, **size)

    def act(self, name: str):
        return self.page.locator(f"[data-act={name}]").first

    def panel(self, slot: int = 0):
        return self.page.locator(f"article[data-slot='{slot}']")

    def state(self) -> str:
        return self.panel().get_attribute("data-state")

    def becomes(self, *states: str) -> None:
        self.page.locator(",".join(f"article[data-state={state}]" for state in states)).first.wait_for()

    def pages(self) -> int:
        return int(self.page.locator("[data-part=book]").first.get_attribute("data-pages") or 0)

    def facts(self) -> str:
        return self.page.locator("[data-part=facts]").first.inner_text()

    def picture(self, slot: int = 0) -> str:
        """The particles as they are on screen."""
        return self.panel(slot).locator("[data-part=book] canvas").evaluate("canvas => canvas.toDataURL()")

    def close(self) -> None:
        self.context.close()
        assert self.complaints == [], self.complaints


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server whose runs are the test's own."""
    runs = tmp_path_factory.mktemp("runs")
    process = subprocess.Popen(
        [sys.executable, "-m", "explorer", "serve", "--port", "0", "--no-show"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "EXPLORER_RUNS": str(runs)},
    )
    for line in process.stdout:
        if found := re.search(r"http://localhost:\d+/", line):
            yield found.group(), runs
            break
    else:
        pytest.fail("the server did not start")
    process.terminate()
    assert process.wait(30) is not None
    for name in listed(runs):  # what trains goes on without the server
        RunFiles(runs / name).want("stop")


def test_a_run_from_start_to_the_sampler_lab(browser, served):
    """Start, see the particles move, pause, go on, close the page and find the run again, stop, keep, open it elsewhere."""
    address, runs = served
    lab = TrainingVisitor(browser, address)
    assert lab.page.locator("article[data-slot]").count() == 0
    lab.page.get_by_text("Nothing has been trained here yet").wait_for()
    assert lab.page.locator("[data-knob=steps]").input_value() == "3000"
    lab.page.locator("[data-act=start]").first.click()
    lab.poll(lab.pages, lambda n: n >= 1)
    first = lab.picture()
    assert len(first) > 8000, "particles are drawn: an empty square is a tenth of it"
    lab.poll(lab.picture, lambda now: now != first)
    lab.poll(lambda: lab.page.url, lambda url: "run=edm-toy-8gaussians" in url)

    lab.act("pause").click()
    lab.becomes("paused")
    before = lab.facts()
    lab.page.wait_for_timeout(700)
    assert lab.facts() == before, "nothing moves while it waits"
    assert lab.page.locator("svg polyline").count() >= 2, "curves are drawn"
    lab.act("resume").click()
    lab.poll(lab.facts, lambda now: now != before)

    address_now = lab.page.url
    lab.close()  # the tab is gone, the run is not
    again = TrainingVisitor(browser, address, address_now.removeprefix(address))
    again.becomes("running", "measuring", "done")
    again.poll(again.pages, lambda n: n >= 2)

    again.page.keyboard.press("Home")  # the book opens at its first page
    again.page.locator("[data-part=book][data-page='0']").wait_for()
    again.page.keyboard.press("ArrowRight")
    again.page.locator("[data-part=book][data-page='1']").wait_for()
    again.page.keyboard.press("End")

    keep = again.page.locator("[data-act=keep]").first
    again.poll(keep.is_enabled, bool)
    if again.state() == "running":
        again.act("stop").click()
    again.becomes("stopped", "done")
    keep.click()
    again.page.locator("[data-part=kept]").get_by_text("edm-toy-8gaussians").wait_for()
    assert (runs / "kept" / "edm-toy-8gaussians.safetensors").is_file()
    again.page.locator("[data-act=lab]").click()
    again.page.wait_for_url("**/lab#**")
    model = again.page.locator("[data-knob=model], select.model").first
    again.poll(model.input_value, lambda value: value == "edm-toy-8gaussians")
    again.close()


def test_a_killed_run_says_so_and_goes_on_from_its_checkpoint(browser, served):
    import json
    import signal
    import time

    address, runs = served
    lab = TrainingVisitor(browser, address, STILL.replace("3000", "600"))
    lab.page.locator("[data-knob=seed]").fill("5")
    lab.page.locator("[data-knob=seed]").press("Enter")
    lab.poll(lambda: lab.page.url, lambda url: "t.seed=5" in url)
    lab.page.locator("[data-act=start]").first.click()
    lab.poll(lambda: lab.panel().get_attribute("data-run"), lambda name: name == "edm-toy-8gaussians-2")
    folder = runs / "edm-toy-8gaussians-2"
    end = time.monotonic() + 120
    while not list(folder.glob("step-*.json")):
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(json.loads((folder / "status.json").read_text())["pid"], signal.SIGKILL)
    lab.becomes("killed", "done")
    if lab.state() == "killed":
        lab.page.locator("[data-part=trouble]").get_by_text("gone without a word").wait_for()
        lab.page.locator("[data-part=trouble] [data-act=resume]").click()
        lab.becomes("done")
    lab.close()


def test_two_runs_side_by_side_in_the_dark_on_a_small_screen(browser, served):
    address, _ = served
    lab = TrainingVisitor(browser, address, "training", width=1024, height=800)
    lab.becomes("done", "stopped")
    lab.page.keyboard.press("t")
    lab.page.locator(".lab[data-theme=dark]").wait_for()
    lab.page.locator("[data-part=beside]").select_option("edm-toy-8gaussians")
    lab.poll(lambda: lab.page.locator("article[data-slot]").count(), lambda n: n == 2)
    lab.poll(lambda: len(lab.picture(1)), lambda size: size > 8000)
    lab.poll(lambda: lab.page.locator("[data-part=strip]").count(), lambda n: n == 2)
    lab.page.locator("[data-by=seconds]").click()
    lab.poll(lambda: lab.page.url, lambda url: "by=seconds" in url and "beside=edm-toy-8gaussians" in url)
    body = lab.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert body[0] <= body[1], "nothing hangs over the edge"
    lab.close()


def test_points_of_ones_own_are_given_learnt_and_found_again(browser, served, tmp_path):
    """A bad file gets a sentence, a good one a picture and a recipe; it trains, waits, and is there when the tab is opened again."""
    address, runs = served
    angle = [k * 0.7 for k in range(200)]
    good, bad = tmp_path / "My ring.csv", tmp_path / "bad.csv"
    good.write_text("x,y\n" + "".join(f"{5 + 3 * math.cos(a)},{3 * math.sin(a)}\n" for a in angle))
    bad.write_text("1,2\n3,four\n")
    lab = TrainingVisitor(browser, address, "training")
    lab.page.locator("[data-part=own]").select_option("+")
    lab.page.locator("[data-part=file]").set_input_files(str(bad))
    lab.page.locator("[data-part=refused]").get_by_text("line 2: expected numbers").wait_for()
    with good.open("rb") as stream:  # dropped, as a mouse would
        moved = lab.page.evaluate_handle(
            "text => { const d = new DataTransfer(); d.items.add(new File([text], 'My ring.csv')); return d; }",
            stream.read().decode(),
        )
    lab.page.locator("[data-part=drop]").dispatch_event("drop", {"dataTransfer": moved})
    lab.page.locator("[data-part=read]").get_by_text("200 points of 2 coordinates").wait_for()
    assert lab.page.locator("[data-part=refused]").is_hidden()
    assert lab.page.locator("[data-part=preview] circle").count() >= 100
    lab.poll(lab.page.locator("[data-part=recipe]").input_value, lambda name: name == "toy")
    for knob, value in (("steps", "400"), ("batch", "32")):
        lab.page.locator(f"[data-knob={knob}]").fill(value)
        lab.page.locator(f"[data-knob={knob}]").press("Enter")
        lab.poll(
            lambda knob=knob, value=value: lab.page.url, lambda url, knob=knob, value=value: f"t.{knob}={value}" in url
        )
    lab.page.locator("[data-act=start]").first.click()
    lab.poll(lambda: lab.panel().get_attribute("data-run"), lambda name: name == "edm-toy-my-ring")
    lab.poll(lab.pages, lambda n: n >= 1)
    state = lab.page.url.removeprefix(address)
    assert "own=my-ring" in state
    lab.close()
    again = TrainingVisitor(browser, address, state)
    again.becomes("done")
    assert again.page.locator("[data-part=own]").input_value() == "my-ring"
    again.page.locator("[data-part=hero]").get_by_text("to 20 held-out points").wait_for()
    assert len(again.picture()) > 8000
    assert (runs / "edm-toy-my-ring" / "model" / "edm-toy-my-ring.safetensors").is_file()
    again.close()
