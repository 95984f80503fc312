"""live-*: from a changed setting to a number, on the bundled digits model at 9 evaluations per sample.

On the server this is the generator that the dashboard, `explorer eval` and a notebook share, with everything it does: noise
by seed, solver, geometry of the paths, features, moments, bias correction, jackknife. Its limit is the network alone, called as
often and on batches as large.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from explorer.bench.clock import Effort, Times, Work, rounds, waiter
from explorer.bench.rows import Row
from explorer.knobs import SamplerKnobs
from explorer.live import metric_for, quality
from explorer.models.base import Preconditioned
from explorer.models.bundled import load
from explorer.sampling.samplers import Sampler
from explorer.sampling.seeds import Seeds

MODEL, BATCH, FIRST, N = "digits", 256, 256, 2000
SLACK = 1.15


def first_number(name: str, effort: Effort, device: torch.device) -> Row:
    """Until the first number that is believed: n = 256, in passes of 64 (the pictures) and 192."""
    return _row(name, FIRST, effort, device, target=None, aim="at most 1 s")


def n2000(name: str, effort: Effort, device: torch.device) -> Row:
    """Until n = 2000, with a number at every 256."""
    return _row(name, FIRST + BATCH if effort.quick else N, effort, device, target=SLACK, aim="at most 6 s")


def _row(name: str, n: int, effort: Effort, device: torch.device, target: float | None, aim: str) -> Row:
    model, sampler = _setting(device)
    metric = metric_for(model)

    def ours() -> float:
        *_, live = quality(model, sampler, metric, n, BATCH)
        return live.estimate.value

    work = {"ours": ours, "limit": _network_alone(model, sampler, n)}
    times, _ = rounds(work, effort, wait=waiter(device))
    note = f"{MODEL}, {_name(sampler)}, {sampler.nfe(model)} NFE, n = {n}, {metric.name}; {aim} wanted."
    return Row.of(name, times, unit="s", limit_is="the same network calls alone", target=target, note=note)


def _setting(device: torch.device) -> tuple[Preconditioned, Sampler]:
    model = load(MODEL).to(device)
    return SamplerKnobs.for_model(model, solver="heun", n_steps=5).build(model)


def _name(sampler: Sampler) -> str:
    return f"{type(sampler.solver).__name__} {sampler.grid.n_steps}"


def _network_alone(model: Preconditioned, sampler: Sampler, n: int) -> Work:
    first = [64, min(n, BATCH) - 64]
    sizes = first + [BATCH] * ((n - BATCH) // BATCH) + ([(n - BATCH) % BATCH] if (n - BATCH) % BATCH else [])
    parameter = next(model.parameters())
    like = {"dtype": parameter.dtype, "device": parameter.device}
    level = torch.zeros(1, **like)
    inputs = [
        (torch.zeros(size, *model.shape, **like), Seeds(range(size)).labels(model.n_classes, parameter.device))
        for size in sizes
    ]

    @torch.inference_mode()
    def call() -> None:
        for x, labels in inputs:
            for _ in range(sampler.nfe(model)):
                model.net(x, level, labels)

    return call


# In the browser


def browser(name: str, effort: Effort, *, to_the_end: bool = False) -> Row | None:
    """Mouse released over a slider until the number on the page has changed; None without playwright and a Chromium.

    Args:
        to_the_end: until the number of n = 2000, not until the first one.
    """
    executable = chromium()
    if executable is None:
        return None
    model, sampler = _setting(torch.device("cpu"))
    n = N if to_the_end else FIRST
    with _served() as address, _page(executable) as page:
        page.goto(f"{address}#lab?model={MODEL}&n={N}&solver=heun&n_steps=5")
        _settle(page)
        seconds = []
        for i in range(effort.runs):
            effort.show(i / effort.runs, "moving a slider")
            seconds.append(_move(page, share=0.2 + 0.6 * i / effort.runs, to_the_end=to_the_end))
            _settle(page)
    limit, _ = rounds({"limit": _network_alone(model, sampler, n)}, effort)
    times: Times = {"ours": seconds, **limit}
    note = (
        f"Headless Chromium on the served page, {MODEL}, {_name(sampler)}, {sampler.nfe(model)} NFE: release of the rho "
        f"slider to {f'the number of n = {N}' if to_the_end else 'the first settled number'}."
    )
    return Row.of(name, times, unit="s", limit_is=f"the network calls of n = {n} alone, no browser beside", note=note)


def chromium() -> str | None:
    """Path of a Chromium that playwright can drive, if playwright is installed: CHROMIUM, one on PATH, or its own."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    named = os.environ.get("CHROMIUM"), *map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    if any(named):
        return next(filter(None, named))
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


@contextlib.contextmanager
def _served() -> Iterator[str]:
    """Address of a dashboard in a process of its own."""
    command = [sys.executable, "-u", "-m", "explorer", "serve", "--port", "0", "--no-show"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            found = next(filter(None, (re.search(r"http://\S+", line) for line in process.stdout)))
            yield found.group()
        finally:
            process.terminate()


@contextlib.contextmanager
def _page(executable: str):
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable, args=quiet)
        yield running.new_page(viewport={"width": 1440, "height": 900})
        running.close()


def _settle(page) -> None:
    """Wait until the run in progress is complete."""
    page.locator("[data-part=hero]:not(.unsettled)").wait_for(timeout=120_000)
    page.locator("[data-part=space]").filter(has_not_text=" of ").wait_for(timeout=120_000)


WATCH = """([slider, hero, number, space, whole]) => {
  const before = number.textContent;
  let released = null;
  slider.addEventListener("change", () => { released = performance.now(); }, { once: true });
  window.changed = new Promise((resolve) => {
    const look = new MutationObserver(() => {
      if (released === null || number.textContent === before || !/[0-9]/.test(number.textContent)) return;
      if (hero.classList.contains("unsettled") || hero.classList.contains("stale")) return;
      if (whole && / of /.test(space.textContent)) return;
      look.disconnect();
      resolve((performance.now() - released) / 1000);
    });
    look.observe(hero, { childList: true, subtree: true, characterData: true, attributes: true });
  });
}"""


def _move(page, share: float, to_the_end: bool) -> float:
    """Drag the rho slider to a share of its length; seconds from letting go to the changed number."""
    slider = page.locator("input[type=range][data-knob=rho]")
    parts = [slider, *(page.locator(f"[data-part={part}]") for part in ("hero", "number", "space"))]
    page.evaluate(WATCH, [*(part.element_handle() for part in parts), to_the_end])
    box = slider.bounding_box()
    x, y = box["x"] + share * box["width"], box["y"] + box["height"] / 2
    page.mouse.move(x - 20, y)
    page.mouse.down()
    page.mouse.move(x, y, steps=4)
    page.mouse.up()
    return page.evaluate("window.changed")
