"""The Atlas in a real browser: headless Chromium against `explorer serve`, as a user would meet it."""

from __future__ import annotations

import re

import pytest
from browsing import Visitor

pytest.importorskip("panel")

pytestmark = pytest.mark.browser


class AtlasVisitor(Visitor):
    def __init__(self, browser, address: str, state: str = "", **size):
        super().__init__(browser, address, f"atlas{state}", **size)
        self.page.locator(".row").first.wait_for()

    def titles(self) -> list[str]:
        return self.page.locator(".row .title b").all_inner_texts()

    def column(self, place: int) -> list[str]:
        return self.page.locator(f".row > :nth-child({place})").all_inner_texts()


@pytest.fixture
def visit(browser, address):
    visitors = []

    def open(state: str = "", **size) -> AtlasVisitor:
        visitors.append(AtlasVisitor(browser, address, state, **size))
        return visitors[-1]

    yield open
    for visitor in visitors:
        visitor.close()


def test_search_sort_open_and_follow_a_paper_to_the_lab(visit):
    atlas = visit()
    page = atlas.page
    everything = len(atlas.titles())
    assert everything >= 119

    page.keyboard.press("/")
    page.keyboard.type("design space diffusion")
    atlas.poll(atlas.titles, lambda titles: len(titles) < 5)
    atlas.poll(lambda: page.url, lambda url: "q=design" in url)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    more = page.locator("[data-more=edm]")
    more.wait_for()
    atlas.poll(lambda: page.url, lambda url: "open=edm" in url)
    assert "1.79" in more.inner_text() and "README" in more.inner_text()
    assert more.locator("[data-claim]").count() >= 8
    for verdict in more.locator("[data-claim] .chip").all_inner_texts():
        assert verdict in ("holds", "fails", "not measured", "measured before it changed")
    link = more.get_by_role("link", name="Sampler Lab").first
    assert re.fullmatch(r"\./lab#lab\?model=[a-z0-9-]+", link.get_attribute("href"))
    page.keyboard.press("Escape")
    more.wait_for(state="detached")
    page.keyboard.press("Escape")
    atlas.poll(atlas.titles, lambda titles: len(titles) == everything)

    page.locator("[data-sort=year]").click()
    years = [int(y) for y in atlas.column(3) if y != "–"]
    assert years == sorted(years) and page.locator("[data-col=year]").get_attribute("aria-sort") == "ascending"
    page.locator("[data-sort=year]").click()
    years = atlas.column(3)
    known = [int(y) for y in years if y != "–"]
    assert known == sorted(known, reverse=True) and years[-1] == "–", "what is not known stays at the end"

    planned = page.locator("[data-status-filter=planned]")
    planned.click()
    assert set(page.locator(".row .chip").all_inner_texts()) == {"planned"}
    page.get_by_label("Family").select_option("tokenizer")
    assert set(atlas.column(2)) == {"tokenizer"}
    page.keyboard.press("/")
    page.keyboard.type("no such paper")
    page.locator("[data-act=clear]").click()
    atlas.poll(atlas.titles, lambda titles: len(titles) == everything)

    link = page.locator(".picture svg a").first
    link.focus()
    assert "NFE" in page.locator(".tip").inner_text()
    link.press("Enter")
    atlas.poll(lambda: page.url, lambda url: "/lab#lab?model=digits" in url)


def test_narrow_and_dark_it_still_fits(visit):
    atlas = visit("#atlas?open=edm", width=480, height=900)
    page = atlas.page
    page.locator("[data-more=edm]").wait_for()
    page.keyboard.press("t")
    assert page.locator(".lab").get_attribute("data-theme") == "dark"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_address_holds_the_view_over_a_reload(visit):
    atlas = visit()
    page = atlas.page
    page.locator("[data-sort=year]").click()
    atlas.poll(lambda: page.url, lambda url: url.endswith("?sort=year"))
    page.reload()
    page.locator(".row").first.wait_for()
    assert page.locator("[data-col=year]").get_attribute("aria-sort") == "ascending"
