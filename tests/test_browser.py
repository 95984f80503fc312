"""The Sampler Lab in a real browser: headless Chromium against `explorer serve`, as a user would meet it."""

from __future__ import annotations

import contextlib
import io
import json
import re

import pytest
from browsing import Visitor

pytest.importorskip("panel")

pytestmark = pytest.mark.browser

IMAGES = "lab?model=oracle-digits&n=512&n_steps=3"
POINTS = "lab?model=oracle-8gaussians&n=256&n_steps=6"


class LabVisitor(Visitor):
    def __init__(self, browser, address: str, state: str, late: bool = False, **size):
        self.late, self.opened, self._held = late, False, []
        super().__init__(browser, address, f"#{state}", **size)

    def prepare(self) -> None:
        self.context.grant_permissions(["clipboard-read", "clipboard-write"])
        if self.late:
            self.page.route_web_socket(re.compile(r"/ws"), self._hold_readiness)

    def _hold_readiness(self, browser) -> None:
        """Lets every message of three frames through but the one that reports the page as ready."""
        server, frames = browser.connect_to_server(), []

        def hear(frame):
            frames.append(frame)
            if len(frames) == 3:
                message, frames[:] = list(frames), []
                self.opened |= '"open"' in message[2]
                if "document_ready" in message[2]:
                    self._held.append(lambda: [server.send(part) for part in message])
                else:
                    for part in message:
                        server.send(part)

        browser.on_message(hear)
        server.on_message(browser.send)

    def become_ready(self) -> None:
        self.poll(lambda: self.opened and bool(self._held), bool)
        self._held.pop()()

    def part(self, name: str):
        return self.page.locator(f"[data-part={name}]")

    def text(self, name: str) -> str:
        return self.part(name).inner_text()

    def settled(self, n: str) -> str:
        """Waits until n samples are counted; the number as shown."""
        self.part("space").filter(has_text=re.compile(rf"n {n}(?! of)\b")).wait_for()
        self.page.locator("[data-part=hero]:not(.unsettled)").wait_for()
        return self.text("number")

    def changed(self, name: str, before: str) -> str:
        return self.poll(lambda: self.text(name), lambda now: now != before)

    def sheet(self) -> str:
        return self.page.locator("[data-tile='0']").evaluate("node => node.style.backgroundImage")

    def sheet_changed(self, before: str) -> str:
        return self.poll(self.sheet, lambda now: now != before)

    def open_group(self, name: str) -> None:
        group = self.page.locator(f"[data-group='{name}']")
        if group.get_attribute("open") is None:
            group.locator("summary").click()


@pytest.fixture
def visit(browser, address):
    visitors = []

    def open(state: str, **size) -> LabVisitor:
        visitors.append(LabVisitor(browser, address, state, **size))
        return visitors[-1]

    yield open
    for visitor in visitors:
        visitor.close()


def test_three_knobs_move_the_number_and_the_pictures(visit):
    lab = visit(IMAGES)
    number, sheet = lab.settled("512"), lab.sheet()
    assert re.fullmatch(r"[−\d.]+ ± [\d.]+", number), number
    assert "FD[digits-cnn]" in lab.text("space") and "raw" in lab.text("space")

    steps = lab.page.locator("input[type=range][data-knob=n_steps]")  # a slider, by keyboard
    steps.focus()
    lab.page.keyboard.press("ArrowRight")
    sheet = lab.sheet_changed(sheet)
    lab.settled("512")
    assert "NFE 7" in lab.text("meta") and "preview" not in lab.text("caption")

    field = lab.page.locator("[data-number=rho]")  # a number
    field.fill("3")
    field.press("Enter")
    sheet = lab.sheet_changed(sheet)
    second = lab.settled("512")

    lab.page.locator("button[data-knob=solver]").click()  # a choice among many, by typing
    lab.page.keyboard.type("euler")
    lab.page.keyboard.press("Enter")
    lab.sheet_changed(sheet)
    third = lab.settled("512")
    assert "NFE 4" in lab.text("meta")
    assert len({number, second, third}) == 3

    lab.page.locator(".history tr.row", has_text="heun 3").first.click()  # back to what was seen
    assert lab.changed("number", third) == number
    assert lab.sheet() != sheet
    assert lab.page.locator("[data-row=s_churn] input[type=range]").first.is_disabled()


def test_pictures_of_a_dragged_slider_come_before_its_release(visit):
    lab = visit(IMAGES)
    lab.settled("512")
    box = lab.page.locator("input[type=range][data-knob=rho]").bounding_box()
    y = box["y"] + box["height"] / 2
    lab.page.mouse.move(box["x"] + box["width"] * 0.4, y)
    lab.page.mouse.down()
    lab.page.mouse.move(box["x"] + box["width"] * 0.8, y, steps=4)
    lab.part("caption").filter(has_text="preview").wait_for()
    rows = lab.page.locator(".history tr.row").count()
    lab.page.mouse.up()
    lab.poll(lambda: lab.page.locator(".history tr.row").count(), lambda now: now == rows + 1)
    lab.settled("512")


def test_the_cross_stops_a_job_and_the_page_goes_on(visit):
    lab = visit("lab?model=oracle-digits&n=10000&n_steps=30")
    lab.part("space").filter(has_text="n 64 of").wait_for()
    lab.page.locator("[data-act=cancel]").click()
    lab.part("job").filter(has_text="stopped at n =").wait_for()
    assert not lab.page.locator("[data-act=cancel]").is_visible()
    lab.page.locator("select[data-knob=n]").select_option("256")
    field = lab.page.locator("[data-number=n_steps]")
    field.fill("2")
    field.press("Enter")
    lab.part("space").filter(has_text=re.compile(r"n 256(?! of)")).wait_for()


def test_two_visitors_do_not_disturb_each_other(visit):
    one, two = visit("lab?model=oracle-digits&n=5000&n_steps=12"), visit(POINTS)
    number = two.settled("256")
    assert one.page.locator("[data-act=cancel]").is_visible(), "the long job still runs beside the short one"
    field = two.page.locator("[data-number=n_steps]")
    field.fill("7")
    field.press("Enter")
    two.changed("number", number)
    two.settled("256")
    one.page.bring_to_front()
    one.poll(lambda: one.page.url, lambda url: "n_steps=12" in url)
    assert one.page.locator("[data-number=n_steps]").input_value() == "12"
    assert one.page.locator("select[data-knob=model]").input_value() == "oracle-digits"
    one.page.keyboard.press("Escape")
    one.page.locator("[data-act=cancel]").wait_for(state="hidden")


def test_a_page_that_is_ready_late_shows_its_address(visit):
    """On a starved machine the browser asks for its address before it reports the page as ready; what is sent between is lost."""
    lab = visit("lab?model=oracle-digits&n=256&n_steps=12", late=True)
    lab.become_ready()
    lab.part("space").filter(has_text=re.compile(r"n 256(?! of)")).wait_for()
    assert lab.page.locator("[data-number=n_steps]").input_value() == "12"
    assert lab.page.locator("select[data-knob=model]").input_value() == "oracle-digits"
    assert "n_steps=12" in lab.page.url


def test_a_and_b_flip_on_the_same_noise_and_are_judged(visit):
    lab = visit("lab?model=oracle-digits&n=512&n_steps=5&a.model=oracle-digits&a.n_steps=2")
    lab.part("verdict").filter(
        has_text=re.compile(r"B is better than A by [\d.]+ ± [\d.]+\.|not distinguishable")
    ).wait_for()
    b = lab.sheet()
    lab.page.keyboard.press(" ")
    a = lab.sheet_changed(b)
    lab.page.keyboard.press(" ")
    assert lab.sheet_changed(a) == b
    lab.page.locator("[data-tile='3']").click()
    lab.page.locator("[data-film]").first.wait_for(state="attached")
    assert "film=3" in lab.page.url and "a.n_steps=2" in lab.page.url


def test_the_noise_level_pointed_at_is_marked_in_all_panes(visit):
    lab = visit(POINTS)
    lab.settled("256")
    when, note = lab.page.locator(".scrub .when"), lab.part("step-note")
    assert when.inner_text() == "σ 0" and "arc / chord" in note.inner_text()
    box = lab.page.locator(".steps svg").bounding_box()
    lab.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)  # in the curves: the particles go there
    lab.poll(when.inner_text, lambda now: now != "σ 0")
    assert re.match(r"step \d of 6: σ", note.inner_text())
    lab.page.mouse.move(2, 2)
    lab.poll(when.inner_text, lambda now: now == "σ 0")
    scrubber = lab.page.get_by_label("Time, from noise to data")
    scrubber.focus()
    scrubber.press("Home")  # at the particles: the curves say where that is
    note.filter(has_text="step 1 of 6: σ 80").wait_for()
    assert lab.page.locator(".steps svg .cursor").get_attribute("visibility") == "visible"


def test_curves_are_chosen_and_one_that_is_missing_says_why(visit):
    lab = visit(POINTS)
    lab.settled("256")
    titles = lab.page.locator(".steps svg .title")
    shown = titles.all_text_contents()
    assert shown[0].startswith("step error") and shown[1].startswith("gap to the chord") and len(shown) == 2
    lab.page.locator("[data-curve=turning_angle]").click()
    titles.filter(has_text="turning").wait_for()
    solver = lab.page.locator("button[data-knob=solver]")
    solver.focus()
    lab.page.keyboard.type("ddim")  # a letter begins a search
    lab.page.keyboard.press("Enter")
    error = lab.page.locator("[data-curve=step_error][aria-disabled=true]")
    error.wait_for()
    error.hover()
    lab.page.locator(".steps .tip", has_text="no embedded estimate").wait_for()
    assert "order 1" in solver.inner_text() and "NFE 6" in solver.inner_text()


def test_a_list_of_many_solvers_stays_on_screen_and_can_be_searched(visit):
    lab = visit(POINTS, width=420, height=700)
    lab.settled("256")
    assert lab.page.evaluate("() => document.documentElement.scrollWidth") <= 420, "no sideways scrolling"
    lab.page.locator("button[data-knob=solver]").click()
    menu = lab.page.locator(".choices:popover-open")
    box = menu.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 420 and box["y"] >= 0 and box["y"] + box["height"] <= 700
    every = menu.locator("[role=option]").count()
    lab.page.keyboard.type("sde")
    lab.poll(menu.locator("[role=option]").count, lambda now: 0 < now < every)
    assert all("sde" in name for name in menu.locator("[role=option] .name").all_inner_texts())
    lab.page.keyboard.press("Escape")
    menu.wait_for(state="hidden")
    assert lab.page.locator("button[data-knob=solver] .name").inner_text() == "heun"


def test_bad_input_is_a_sentence_and_the_page_lives(visit):
    lab = visit(POINTS)
    lab.settled("256")
    for knob, value in (("sigma_max", "0.6"), ("sigma_min", "1.2")):
        field = lab.page.locator(f"[data-number={knob}]")
        field.fill(value)
        field.press("Enter")
    lab.part("error").filter(has_text="sigma_min (1.2) must be below sigma_max (0.6)").wait_for()
    lab.part("error").get_by_text("undo").click()
    lab.part("error").wait_for(state="hidden")
    lab.settled("256")


def test_both_themes_and_both_widths(visit):
    lab = visit(POINTS, width=1024, height=768)
    lab.settled("256")
    background = "() => getComputedStyle(document.documentElement).backgroundColor"
    light = lab.page.evaluate(background)
    lab.page.locator("[data-act=theme]").click()
    lab.page.wait_for_function(f"before => ({background})() !== before", arg=light)
    for width in (1024, 1440):
        lab.page.set_viewport_size({"width": width, "height": 800})
        assert lab.page.evaluate("() => document.documentElement.scrollWidth") <= width, "no sideways scrolling"
    lab.page.reload()
    lab.settled("256")
    assert lab.page.evaluate(background) != light, "the choice is remembered"


def test_copied_python_runs_and_prints_the_number_on_screen(visit):
    lab = visit(POINTS)
    number = lab.settled("256")
    lab.page.locator("[data-act=copy]").click()
    lab.page.locator("[data-act=python]").click()
    code = lab.poll(lambda: lab.page.evaluate("() => navigator.clipboard.readText()"), lambda text: "quality(" in text)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert number in printed.getvalue().splitlines()[-1].replace("-", "−")
    lab.page.locator("[data-act=export]").wait_for(state="hidden")  # the menu closes by itself a moment after copying
    lab.page.locator("[data-act=copy]").click()
    with lab.page.expect_download() as download:
        lab.page.locator("[data-act=export]").click()
    state = json.loads(download.value.path().read_text())
    assert state["knobs"]["n_steps"] == 6 and state["measured"]["n"] == 256
