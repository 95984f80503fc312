"""The notebooks run top to bottom, keep their promises, stay short, and work in a real JupyterLab."""

from __future__ import annotations

import ast
import base64
import functools
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np
import pytest
import warmkernels
from PIL import Image

if TYPE_CHECKING:
    import nbformat

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MEASURED = "document.querySelector('[data-explorer=number]')"
LOCAL = (None, "", "localhost", "127.0.0.1", "::1")
SIZES = re.compile(r"sizes(?:/(\d+))?")
WIDGETS = "application/vnd.jupyter.widget-view+json"


@functools.cache
def tool():
    """notebooks/run.py, with the nbformat that it imports for seconds: all workers collect this file, one of them runs it."""
    spec = importlib.util.spec_from_file_location("notebooks_tool", ROOT / "notebooks/run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def name(path: Path) -> str:
    return path.stem


def read(path: Path) -> nbformat.NotebookNode:
    return tool().nbformat.read(path, as_version=4)


def tagged(path: Path) -> bool:
    """Whether it has a cell that the default suite shrinks."""
    tags = [tag for cell in json.loads(path.read_text())["cells"] for tag in cell["metadata"].get("tags", ())]
    return any(map(SIZES.fullmatch, tags))


def code_cells(notebook, tag: str | None = None) -> list:
    return [c for c in notebook.cells if c.cell_type == "code" and (tag is None or tag in c.metadata.get("tags", ()))]


def pictures(cell) -> list[np.ndarray]:
    """The PNG outputs of a cell as grey arrays."""
    data = [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(d))).convert("L")) for d in data]


def check_figures(notebook) -> None:
    promised = code_cells(notebook, "figure")
    assert promised
    for cell in promised:
        [picture] = pictures(cell)
        assert min(picture.shape) >= 100 and picture.std() > 5, f"an empty figure from:\n{cell.source}"


def sizes(notebook) -> list[tuple[nbformat.NotebookNode, int]]:
    """The cells tagged `sizes` with 3, those tagged `sizes/10` with 10: what the default suite divides their numbers by."""
    tagged = [(cell, SIZES.fullmatch(tag)) for cell in code_cells(notebook) for tag in cell.metadata.get("tags", ())]
    return [(cell, int(found[1] or 3)) for cell, found in tagged if found]


SHORTER = """
from dataclasses import replace

from explorer.reproduction import Bench, run


def shorter(recipe, *args, whole=run.train_recipe, **others):
    plan = recipe.plan
    plan = replace(plan, n_steps=plan.n_steps // 10, snapshot_steps=-(-plan.snapshot_steps // 10))
    return whole(replace(recipe, plan=plan), *args, **others)


def elsewhere(bench, name, about, whole=Bench.place):
    return whole(bench, name, {**about, "steps": "a tenth"})  # never where a run of all steps would be looked for


run.train_recipe, Bench.place = shorter, elsewhere
"""


def shrunk(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with the numbers of its `sizes` cells divided, down to 4, and a tenth of the steps of what a bench trains."""
    for cell, by in sizes(notebook):
        cell.source = re.sub(r"\b\d+\b", lambda n, by=by: str(max(min(4, int(n[0])), int(n[0]) // by)), cell.source)
    if any("Bench" in cell.source for cell in code_cells(notebook)):
        notebook.cells.insert(0, tool().nbformat.v4.new_code_cell(SHORTER))
    return notebook


@functools.cache
def run(path: Path) -> nbformat.NotebookNode:
    return tool().execute(shrunk(read(path)))


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=name)
def executed(request):
    with pytest.MonkeyPatch.context() as patch:
        if tagged(request.param):  # as those run in a kernel of their own below
            warmkernels.prepare(patch)
        return run(request.param)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if tagged(p)], ids=name)
def test_it_runs_in_full_too(path):
    check_figures(tool().execute(read(path), timeout=600))


def test_there_is_a_quickstart_with_widgets_a_page_and_a_verdict():
    quickstart = read(ROOT / "notebooks/00_quickstart.ipynb")
    assert all(code_cells(quickstart, tag) for tag in ("widgets", "page", "verdict"))


@pytest.mark.timeout(400)
def test_it_runs_and_draws_what_it_promises(executed):
    for cell in code_cells(executed):
        for output in cell.outputs:
            assert output.output_type != "error", output
            assert output.get("name") != "stderr" or "Warning" not in output.text, output.text
    check_figures(executed)


def test_the_quickstarts_widgets_page_and_verdict_are_there():
    executed = run(ROOT / "notebooks/00_quickstart.ipynb")
    [widgets] = code_cells(executed, "widgets")
    assert any(WIDGETS in output.get("data", {}) for output in widgets.outputs)
    [page] = code_cells(executed, "page")
    kinds = {kind for output in page.outputs for kind in output.get("data", {})}
    assert {"text/html", "application/vnd.holoviews_exec.v0+json"} <= kinds
    [verdict] = code_cells(executed, "verdict")
    printed = "".join(output.text for output in verdict.outputs if output.output_type == "stream")
    assert re.search(r"(better than .+ by|not distinguishable: ).*± .* band", printed), printed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_it_is_a_short_story(path):
    cells = code_cells(read(path))
    lines = [
        line for cell in cells for line in cell.source.splitlines() if line.strip() and not line.strip().startswith("#")
    ]
    assert len(lines) <= 60, f"{len(lines)} lines of code"
    for cell in cells:
        tree = ast.parse(cell.source)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                assert node.end_lineno - node.lineno + 1 <= 5, f"{node.name} is longer than five lines"
            if isinstance(node, ast.Call):
                assert not re.search(r"\.backward$|optim.*\.step$", ast.unparse(node.func)), "a training loop"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_every_figure_is_followed_by_what_to_see(path):
    cells = read(path).cells
    for cell, after in zip(cells, [*cells[1:], None], strict=True):
        if {"figure", "page"} & set(cell.metadata.get("tags", ())):
            assert after is not None and "**What to see:**" in after.source, cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_what_is_committed_is_its_figures_and_nothing_of_the_machine(path):
    notebook, text = read(path), path.read_text()
    assert path.stat().st_size < 1.5e6
    assert tool().nbformat.writes(tool().tidy(read(path))) == tool().nbformat.writes(notebook), (
        "run python notebooks/run.py"
    )
    check_figures(notebook)
    for forbidden in ("/home/", "/root", "/tmp/", "/Users/", "iopub", "widget-state", "Traceback"):
        assert forbidden not in text, forbidden
    assert all(cell.execution_count for cell in code_cells(notebook)), "not run top to bottom"


def test_tidy_drops_scripts_and_widget_state_but_keeps_pictures_and_text():
    out = tool().nbformat.v4.new_output
    outputs = [
        out("display_data", {"application/javascript": "x", "text/plain": "<js>"}),
        out("execute_result", {WIDGETS: {}, "image/png": "AAAA", "text/plain": "Controls()"}),
        out("execute_result", {"text/html": "<b>", "text/plain": "b"}),
        out("execute_result", {"text/plain": "3"}),
        out("stream", name="stdout", text="said"),
        out("stream", name="stderr", text="warned"),
    ]
    cell = tool().nbformat.v4.new_code_cell(
        "x", outputs=outputs, metadata={"execution": {"iopub.status.idle": "now"}, "tags": ["figure"]}
    )
    kept = tool().tidy(tool().nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {"state": {}}})).cells[0]
    assert [o.get("text") or dict(o.data) for o in kept.outputs] == [
        {"image/png": "AAAA", "text/plain": "Controls()"}, {"text/plain": "3"}, "said",
    ]  # fmt: skip
    assert kept.metadata == {"tags": ["figure"]}


# In a browser


@pytest.fixture
def lab(tmp_path):
    """Address of a JupyterLab that serves copies of the notebooks without outputs, and knows nothing of the user's own settings."""
    for path in NOTEBOOKS:
        notebook = read(path)
        for cell in code_cells(notebook):
            cell.outputs, cell.execution_count = [], None
        tool().nbformat.write(notebook, tmp_path / path.name)
    own = {f"JUPYTER_{kind}_DIR": str(tmp_path / f".{kind.lower()}") for kind in ("CONFIG", "DATA", "RUNTIME")}
    for extension, setting in {
        "notebook-extension/tracker": {"windowingMode": "none"},  # else only cells in view exist
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    }.items():
        file = tmp_path / ".config/lab/user-settings/@jupyterlab" / f"{extension}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(setting))
    env = {
        **os.environ,
        **own,
        "IPYTHONDIR": str(tmp_path / ".ipython"),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
    }
    env.pop("MPLBACKEND", None)
    log = (tmp_path / ".log").open("w+")
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0", "--expose-app-in-browser",
        f"--ServerApp.root_dir={tmp_path}",
    ]  # fmt: skip
    server = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 300
        while not (found := sorted((tmp_path / ".runtime").glob("jpserver-*.json"))):
            assert server.poll() is None and time.monotonic() < deadline, (tmp_path / ".log").read_text()[-2000:]
            time.sleep(0.5)
        time.sleep(1)  # the file appears before the port listens
        info = json.loads(found[0].read_text())
        yield lambda file: f"{info['url']}lab/tree/{file}?token={info['token']}"
    finally:
        server.terminate()
        server.wait(30)
        log.close()


def wait_until(page, what: str, expression: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        page.wait_for_timeout(500)


@pytest.fixture
def page(browser, tmp_path):
    """A tab; a picture of every cell is left in EXPLORER_SCREENSHOTS, or in the test's folder, also when the test fails."""
    tab = browser.new_page(viewport={"width": 1440, "height": 1000})
    yield tab
    tab.set_viewport_size({"width": 1440, "height": 1800})
    folder = Path(os.environ.get("EXPLORER_SCREENSHOTS", tmp_path))
    for k, cell in enumerate(tab.locator(".jp-Notebook .jp-Cell").all()):
        cell.screenshot(path=folder / f"lab-{k:02d}.png")
    tab.screenshot(path=folder / "lab.png")
    tab.close()


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_quickstart_works_in_jupyterlab(lab, page):
    errors, outside = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    # Panel's patches are several messages each; mixed up, one is lost and the console says "s is not iterable".
    page.on("console", lambda m: errors.append(m.text) if "is not iterable" in m.text else None)
    page.on("request", lambda r: outside.append(r.url) if urlsplit(r.url).hostname not in LOCAL else None)
    page.goto(lab("00_quickstart.ipynb"))
    kernel = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status"
    wait_until(page, "the kernel", f"{kernel} === 'idle'", 180)
    page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
    prompts = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(e => e.innerText.trim())"
    wait_until(page, "all cells", f"{prompts}.length > 0 && {prompts}.every(p => /^\\[\\d+\\]:$/.test(p))", 600)
    assert page.locator(".jp-OutputArea [data-mime-type='application/vnd.jupyter.stderr']").count() == 0

    drawn = "document.querySelectorAll('.jp-OutputArea .jp-RenderedImage img').length"
    figures = code_cells(read(ROOT / "notebooks/00_quickstart.ipynb"), "figure")
    wait_until(page, "the figures", f"{drawn} >= {len(figures) - 1}", 60)  # the widgets draw their own

    # The widgets: sliders from the knob class, samples, a number, and a moved slider that changes it.
    assert page.locator(".widget-slider").count() >= 15
    assert page.locator(".widget-vbox img").first.is_visible()
    number = page.locator("[data-explorer=number]")
    wait_until(page, "the number of the controls", f"{MEASURED}.dataset.n === '1000'", 120)
    before = number.inner_text()
    page.locator(".widget-hslider:has(label:text-is('steps')) .widget-readout").click()
    page.keyboard.press("Control+A")
    page.keyboard.type("3")
    page.keyboard.press("Enter")
    wait_until(page, "three steps", f"{MEASURED}.innerText.includes('1000 · 5 NFE')", 120)
    assert number.inner_text() != before

    # The page: Panel renders from scripts inside the notebook, shows the given setting, and its knobs talk to the kernel.
    meta = page.locator("[data-part=meta]")
    expect = "e => new RegExp('NFE NUMBER .* s ').test(e.innerText)"
    page.wait_for_function(expect.replace("NUMBER", "9"), arg=meta.element_handle(timeout=60_000), timeout=120_000)
    steps = page.locator("input[data-number=n_steps]")
    steps.fill("4")
    steps.press("Enter")
    page.wait_for_function(expect.replace("NUMBER", "4"), arg=meta.element_handle(), timeout=120_000)
    assert page.locator("[data-part=hero] [data-part=number]").inner_text()
    assert not errors, errors
    assert not outside, f"requests left the machine: {outside[:5]}"
