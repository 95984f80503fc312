"""The Trajectory Lab in a real browser: headless Chromium against `explorer serve`, as a user would meet it."""

from __future__ import annotations

import re

import pytest
from browsing import Visitor

pytest.importorskip("panel")

pytestmark = pytest.mark.browser

STILL = "n=500&u=1&a.model=oracle-8gaussians&a.n_steps=12&b.model=oracle-8gaussians&b.solver=euler&b.n_steps=4"


class LabVisitor(Visitor):
    def __init__(self, browser, address: str, state: str, **size):
        super().__init__(browser, address, f"trajectory#trajectory?{state}", **size)

    def track(self, letter: str):
        return self.page.locator(f"article[data-track={letter}]")

    def picture(self, letter: str) -> str:
        """The particles of one square as they are on screen: a digest of the pixels."""
        return self.track(letter).locator("canvas.front").evaluate(
            """canvas => { const d = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
                           let a = 0, lit = 0; for (let i = 3; i < d.length; i += 4) if (d[i]) { lit++; a = (a * 31 + i + d[i]) | 0; }
                           return `${lit} ${a}`; }"""
        )  # fmt: skip

    def lit(self, letter: str) -> int:
        return int(self.picture(letter).split()[0])

    def drawn(self, *letters: str) -> None:
        for letter in letters:
            self.poll(lambda letter=letter: self.lit(letter), lambda lit: lit > 100)

    def sigma(self) -> float:
        return float(self.page.locator("[data-part=sigma]").inner_text().split()[-1])

    def idle(self) -> None:
        self.page.locator("[data-act=cancel]").wait_for(state="hidden")

    def loop(self, letter: str, corners) -> None:
        """Draws a loop with the mouse; corners in shares of the square from its top left."""
        box = self.track(letter).locator("[data-part=square]").bounding_box()
        at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
        self.page.mouse.move(*at[0])
        self.page.mouse.down()
        for x, y in at[1:]:
            self.page.mouse.move(x, y, steps=4)
        self.page.mouse.up()


@pytest.fixture
def visit(browser, address):
    visitors = []

    def open(state: str, **size) -> LabVisitor:
        visitors.append(LabVisitor(browser, address, state, **size))
        return visitors[-1]

    yield open
    for visitor in visitors:
        visitor.close()


def test_particles_play_scrub_and_follow_a_knob(visit):
    lab = visit(STILL)
    lab.drawn("A", "B")
    lab.idle()
    assert lab.sigma() == 0
    ends = {letter: lab.picture(letter) for letter in "AB"}

    lab.page.keyboard.press("Home")  # all noise: the same particles in both squares
    lab.poll(lab.sigma, lambda sigma: sigma > 60)
    noise = lab.picture("A")
    assert noise == lab.picture("B") and noise != ends["A"]

    lab.page.keyboard.press(" ")  # play to the end
    lab.poll(lab.sigma, lambda sigma: sigma == 0)
    lab.poll(lambda: lab.picture("A"), lambda now: now == ends["A"])
    assert float(lab.page.locator(".stage").get_attribute("data-fps")) > 1, "frames are counted"

    slider = lab.page.locator("[data-part=time]")
    slider.focus()
    for _ in range(5):
        lab.page.keyboard.press("PageDown")
    middle = lab.poll(lab.sigma, lambda sigma: 0.05 < sigma < 60)
    lab.poll(lambda: lab.page.url, lambda url: re.search(r"[?&]u=0\.\d+", url) and "u=1&" not in url)

    # A knob, by keyboard: its own picture changes, the other does not.
    before, other = lab.picture("B"), lab.picture("A")
    steps = lab.track("B").locator("[data-knob=n_steps]")
    steps.focus()
    lab.page.keyboard.press("ArrowRight")
    lab.poll(lambda: lab.picture("B"), lambda now: now != before)
    lab.poll(lambda: lab.page.url, lambda url: "b.n_steps=5" in url)
    lab.idle()
    assert lab.picture("A") == other and lab.sigma() == middle
    lab.page.keyboard.press("ArrowLeft")  # back to what was seen
    lab.poll(lambda: lab.picture("B"), lambda now: now == before)

    field = lab.page.locator(".curves svg").first  # a click on a curve moves time there
    box = field.bounding_box()
    lab.page.mouse.move(box["x"] + 0.45 * box["width"], box["y"] + 40)
    lab.poll(
        lab.page.locator("[data-part=curve-note]").inner_text,
        lambda text: re.match(r"σ [\d.]+ .*straightness A [\d.]+ B", text),
    )
    lab.page.mouse.click(box["x"] + 0.45 * box["width"], box["y"] + 40)
    lab.poll(lab.sigma, lambda sigma: sigma != middle)


def test_the_lasso_marks_the_same_noise_everywhere_and_counts_it(visit):
    lab = visit(STILL.replace("u=1", "u=0"))
    lab.drawn("A", "B")
    lab.idle()
    plain = lab.picture("B")
    lab.loop("A", [(0.5, 0.5), (0.9, 0.5), (0.9, 0.1), (0.5, 0.1), (0.5, 0.48)])
    assert lab.poll(lambda: lab.picture("B"), lambda now: now != plain) == lab.picture("A"), "the same noise in both"
    card = lab.page.locator("[data-part=microscope]")
    count = int(
        lab.poll(lambda: card.locator(".lead b").first.inner_text(), lambda text: text != "500")
    )  # all, until it answers
    assert 80 < count < 170, "about a quarter of 500"
    lab.poll(lambda: card.locator("tbody tr").count(), lambda rows: rows == 2)
    lab.page.keyboard.press("l")
    card.get_by_text("crossings").wait_for()
    link = lab.poll(lambda: lab.page.url, lambda url: "loop=a~" in url and "lines=1" in url)

    two = visit(link.partition("?")[2])  # the address holds it all
    two.drawn("A", "B")
    two.poll(
        lambda: two.page.locator("[data-part=microscope] .lead b").first.inner_text(), lambda text: text == str(count)
    )
    assert two.page.locator("[data-toggle=lines]").is_checked()
    lab.page.locator("[data-act=clear]").click()
    lab.poll(lambda: lab.picture("B"), lambda now: now == plain)
    lab.loop("A", [(0.01, 0.01), (0.03, 0.01), (0.03, 0.03), (0.01, 0.03)])
    card.get_by_text("holds no particle").wait_for()


def test_samplers_come_and_go_and_errors_stay_in_their_square(visit):
    lab = visit("n=500&u=1&a.model=oracle-8gaussians&a.solver=euler&a.n_steps=9", height=1000)
    lab.drawn("A")
    lab.page.locator("[data-act=add]").click()
    lab.drawn("B")
    lab.page.keyboard.press("2")
    knobs = lab.page.get_by_label("All knobs of one sampler")
    knobs.get_by_text("Knobs of B").wait_for()
    for knob, value in (("sigma_max", "0.6"), ("sigma_min", "1.2")):
        field = knobs.locator(f"[data-number={knob}]")
        field.fill(value)
        field.press("Enter")
    lab.track("B").locator("[data-part=track-error]").filter(has_text="must be below sigma_max").wait_for()
    lab.drawn("A")
    lab.page.keyboard.press("Escape")
    knobs.wait_for(state="hidden")
    lab.track("B").locator("[data-act=undo]").click()
    lab.track("B").locator("[data-part=track-error]").wait_for(state="hidden")
    lab.track("B").locator("[data-act=remove]").click()
    lab.track("B").wait_for(state="detached")
    lab.idle()
    lab.page.locator("[data-act=export-menu]").click()
    with lab.page.expect_download() as download:
        lab.page.locator("[data-export='data.nc']").click()
    assert download.value.path().read_bytes()[:4] == b"\x89HDF"


def test_images_show_filmstrips(visit):
    lab = visit("n=32&u=0.5&a.model=oracle-digits&a.solver=euler&a.n_steps=3&pick=2")
    lab.drawn("A")
    lab.page.locator(".film .cell").nth(7).wait_for()
    assert "seed 2" in lab.page.locator(".film .note").inner_text()
    before = lab.sigma()
    lab.page.locator(".film .cell").first.click()
    assert lab.poll(lab.sigma, lambda sigma: sigma != before) == 80
    lab.page.locator("[data-act=export-menu]").wait_for()
    lab.page.keyboard.press("Escape")
    lab.idle()


def test_both_themes_and_every_width(visit):
    lab = visit(STILL, width=420, height=900)
    lab.drawn("A", "B")
    lab.idle()
    background = "() => getComputedStyle(document.documentElement).backgroundColor"
    light = lab.page.evaluate(background)
    lab.page.locator("[data-act=theme]").click()
    lab.page.wait_for_function(f"before => ({background})() !== before", arg=light)
    for width in (420, 1024, 1440):
        lab.page.set_viewport_size({"width": width, "height": 800})
        lab.poll(
            lambda: lab.page.evaluate("() => document.documentElement.scrollWidth"),
            lambda now, width=width: now <= width,
        )
        lab.drawn("A", "B")
