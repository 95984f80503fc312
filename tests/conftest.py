"""Shared by all tests: one thread per worker, no screen, markers that skip with a reason, a Chromium to drive."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

# Shared machines stall: a slow example is not a failure, and the same examples are drawn every time.
settings.register_profile(
    "explorer", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], max_examples=50
)
settings.load_profile("explorer")

ROOT = Path(__file__).resolve().parent.parent
# Begun first, so that no worker is left with one of them when the others have nothing to do.
LONGEST = (
    "test_notebooks",
    "test_training_page",
    "test_browser",
    "test_tuning_page",
    "test_lcsc",
    "test_published",
    "test_viz",
)
REQUIRE_BROWSER = os.environ.get("EXPLORER_REQUIRE_BROWSER") == "1"


def find_chromium() -> str | None:
    """Path of a Chromium: the CHROMIUM variable, one on PATH, or the one playwright has downloaded."""
    given = os.environ.get("CHROMIUM")
    if given:
        return given
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if path := shutil.which(name):
            return path
    caches = [
        os.environ.get("PLAYWRIGHT_BROWSERS_PATH", ""),
        "~/.cache/ms-playwright",
        "~/Library/Caches/ms-playwright",
    ]
    for cache in filter(None, caches):
        for pattern in ("chromium-*/chrome-linux*/chrome", "chromium-*/chrome-mac*/*.app/Contents/MacOS/Chromium"):
            if found := sorted(Path(cache).expanduser().glob(pattern)):
                return str(found[-1])
    return None


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = (
        False  # of pytest-xdist: else the files with the most tests are begun first, however short
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
    no_browser = None
    if not REQUIRE_BROWSER:
        if importlib.util.find_spec("playwright") is None:
            no_browser = "playwright is not installed"
        elif find_chromium() is None:
            no_browser = "no Chromium found: install one or point CHROMIUM at it"
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if no_browser and item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.skip(reason=no_browser))


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the Chromium that browser tests launch; fails where EXPLORER_REQUIRE_BROWSER=1 and there is none."""
    path = find_chromium()
    assert path, "EXPLORER_REQUIRE_BROWSER=1, but no Chromium was found: install one or point CHROMIUM at it"
    return path


@pytest.fixture(scope="session")
def browser(chromium: str):
    """A headless Chromium (playwright's synchronous Browser) for the whole session."""
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=chromium, args=[*quiet, "--disable-sync", "--no-first-run"]
        )
        yield running
        running.close()


@pytest.fixture(scope="module")
def address() -> str:
    """Of a dashboard that this file's tests share."""
    from browsing import serving

    with serving() as found:
        yield found


@pytest.fixture
def global_rng_untouched():
    """Fails a test whose body draws from torch's global generator."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "the global random state moved"
