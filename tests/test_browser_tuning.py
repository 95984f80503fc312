"""The Tuning page in a real browser: headless Chromium against `explorer serve`, as a user would meet it."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from browsing import Visitor

pytest.importorskip("panel")
pytest.importorskip("optuna")

from explorer.models.bundled import load
from explorer.sampling import DDIM, Euler, OdeSampler, ScaleTimeSampler, TimeGrid
from explorer.tuning import Budget, FunctionObjective, Layers, Listed, Setting, Study, Tuned

pytestmark = pytest.mark.browser

ASK = (
    "tuning#tuning?model=oracle-8gaussians&solver=euler&n_steps=4&sigma_max=20.0&sigma_min=0.05"
    "&u.what=schedule&u.method=tpe&u.n=32&u.trials=5000"
)


class TuningVisitor(Visitor):
    def act(self, name: str):
        return self.page.locator(f"[data-act={name}]:visible").first

    def state(self) -> str:
        return self.page.locator("[data-part=state]").get_attribute("data-state")

    def ticks(self) -> list[float]:
        marks = self.page.locator("[data-tick]")
        return [float(v) for v in marks.evaluate_all("all => all.map((node) => node.getAttribute('aria-valuenow'))")]

    def fits(self) -> bool:
        wide, room = self.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        return wide <= room


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server whose searches are the test's own."""
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


def test_a_search_from_start_to_the_sampler_lab(browser, served):
    """Drag the grid, start, see trials, leave and come back while it runs, stop, read both numbers, keep, export, open in the Lab."""
    address, runs = served
    page = TuningVisitor(browser, address, ASK)
    page.page.locator("[data-step]").nth(3).wait_for()  # the error of each step is drawn
    before = page.ticks()
    assert len(before) == 4 and before[0] == 20.0
    tick = page.page.locator("[data-tick='2']")
    box = tick.bounding_box()
    page.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.page.mouse.down()
    page.page.mouse.move(box["x"] + box["width"] / 2 - 60, box["y"] + 10, steps=5)
    page.page.mouse.up()
    page.poll(page.ticks, lambda now: now[2] > 1.2 * before[2] and now[:2] == pytest.approx(before[:2], rel=1e-4))
    page.poll(lambda: page.page.url, lambda url: "nodes=20," in url)
    tick.focus()
    dragged = page.ticks()[2]
    page.page.keyboard.press("ArrowRight")
    page.poll(page.ticks, lambda now: now[2] < dragged)
    page.act("named").click()
    page.poll(page.ticks, lambda now: now == pytest.approx(before, rel=1e-4))

    page.act("start").click()
    page.poll(lambda: page.page.locator("svg [data-trial]").count(), lambda n: n > 4)
    page.poll(lambda: page.page.url, lambda url: "u.search=oracle-8gaussians-schedule-4nfe" in url)
    address_now = page.page.url
    page.close()  # the tab is gone, the search is not

    again = TuningVisitor(browser, address, address_now.removeprefix(address))
    again.act("stop").click()
    again.poll(again.state, lambda state: state == "done")
    held = again.page.locator("tr[data-row=tuned] [data-part=held]").inner_text()
    assert "±" in held and again.page.locator("tr[data-row=baseline] [data-part=held]").inner_text() != held
    assert "Better than the baseline" in again.page.locator("[data-part=verdict]").inner_text()
    assert "curse" in again.page.locator("[data-part=curse]").inner_text()
    again.act("keep").click()
    again.page.locator("[data-part=notice]").get_by_text("Kept as").wait_for()
    tuned = Tuned.load(runs / "tuning" / "oracle-8gaussians-schedule-4nfe.tuned.json")
    again.act("export").click()
    with again.page.expect_download() as download:
        again.page.locator("[data-export=python]").click()
    assert "ex.sampler_from_json" in download.value.path().read_text()

    again.act("lab").click()
    again.page.wait_for_url("**/lab#**")
    nodes = again.page.locator("input[data-knob=nodes]")
    shown = again.poll(lambda: nodes.input_value() if nodes.count() else "", bool)
    assert [float(v) for v in shown.split(",")] == pytest.approx(tuned.setting.sampler.grid.times[:-1], rel=1e-5)
    again.close()


def test_a_map_in_the_dark_on_a_narrow_screen(browser, served):
    address, _ = served
    page = TuningVisitor(browser, address, f"{ASK}&u.x=rho,2.0,9.0&u.y=n_steps,2,4", width=480, height=800)
    page.page.locator("[data-step]").first.wait_for()
    page.page.keyboard.press("t")
    page.page.locator(".lab[data-theme=dark]").wait_for()
    page.act("map").click()
    cells = page.page.locator("a[data-cell]")
    page.poll(cells.count, lambda n: n >= 9)
    assert page.fits(), "nothing hangs over the edge"
    assert "±" in cells.first.get_attribute("aria-label")
    page.page.set_viewport_size({"width": 1024, "height": 800})
    assert page.fits()
    cells.first.click()
    page.page.wait_for_url("**/lab#**rho=2.0**")
    page.close()


def searched(runs, name: str, model: str, solver, found: Setting, grid: TimeGrid) -> None:
    """A search of one trial that wins, in the page's folder as `explorer tune` would leave it."""
    goal = FunctionObjective(lambda model, sampler, seeds: sampler.nfe(model) / 9, range(10**9, 10**9 + 2), "cost")
    start = Setting(OdeSampler(solver, grid))
    journal = runs / "tuning" / f"{name}.jsonl"
    study = Study(load(model), start, goal, Listed((found,)), Budget(trials=1), journal=journal)
    list(study)
    study.finish(2).save(runs / "tuning" / f"{name}.found.json")


def test_what_has_no_ticks_is_shown_and_opens_in_the_sampler_lab(browser, served):
    """A solver with a scale of its own says why nothing can be dragged; what a step leaves out of the network is a map."""
    address, runs = served
    own = ScaleTimeSampler.plain([0.95, 0.4, 0.0], "rk1")
    searched(runs, "own", "oracle-8gaussians", Euler(), Setting(own), TimeGrid.karras(4, 0.05, 20.0))
    page = TuningVisitor(browser, address, "tuning#tuning?model=oracle-8gaussians&label=-1&u.search=own")
    said = page.page.locator("[data-part=grid-fixed]")
    page.poll(said.inner_text, lambda text: "scale of its own" in text)
    page.page.locator("[data-preview] circle").first.wait_for()
    assert page.page.locator("[data-found]").count() == 3 and page.page.locator(".layers svg:visible").count() == 0
    page.act("take").click()
    page.poll(page.ticks, lambda now: now == [])
    page.act("lab").click()
    page.page.wait_for_url("**/lab#**")
    field = page.page.locator("input[data-knob=own]")
    assert page.poll(lambda: field.input_value() if field.count() else "", bool) == own.to_json()
    page.close()

    levels = ((80.0, (0,)), (1.0, (2, 5)), (0.1, ()))
    layered = Setting(OdeSampler(DDIM(), TimeGrid((80.0, 1.0, 0.1, 0.0))), (Layers(levels),))
    searched(runs, "thin", "digits", DDIM(), layered, TimeGrid.karras(5, 0.002, 80.0))
    page = TuningVisitor(browser, address, "tuning#tuning?model=digits&u.search=thin", width=480, height=800)
    out = page.page.locator("rect[data-out]")
    page.poll(out.count, lambda n: n == 3)
    places = out.evaluate_all("all => all.map((r) => [Number(r.dataset.level), Number(r.dataset.block)])")
    assert sorted(map(tuple, places)) == [(0, 0), (1, 2), (1, 5)]
    assert "21 of 24 blocks" in page.page.locator("[data-part=layers-note]").inner_text() and page.fits()
    page.close()
