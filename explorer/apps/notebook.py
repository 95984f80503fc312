"""The sampler's knobs in a notebook: ipywidgets made from the knob class, and the dashboard's page in one cell.

from explorer.apps import notebook

notebook.setup()
notebook.Controls(load("digits"))
"""

from __future__ import annotations

import base64
import html
import math
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import ipywidgets as w
import numpy as np
from torch import Tensor

from explorer import viz
from explorer.errors import ExplorerError
from explorer.knobs import GROUPS, Control, SamplerKnobs
from explorer.live import Live, metric_for, quality
from explorer.metrics.base import Metric, plus_minus, verdict
from explorer.models.base import Denoiser

if TYPE_CHECKING:
    from explorer.apps.worker import Failure, Job

LOG_FLOOR = 1e-3  # where a logarithmic slider that may be 0 has its left end
FIRST_PICTURE = 20.0  # seconds that displaying waits for the first samples
BODY = "var(--jp-content-font-color1, inherit)"
FAINT = "var(--jp-content-font-color2, #666)"


def setup() -> None:
    """Prepares a notebook: sharp figures."""
    from IPython import get_ipython
    from IPython.core.pylabtools import select_figure_formats

    if (shell := get_ipython()) is not None:
        select_figure_formats(shell, {"retina"})


def sampler_lab(model: str = "digits", knobs: SamplerKnobs | None = None):
    """The dashboard's Sampler Lab as a Panel object; the last line of a cell shows it.

    Panel's scripts come with it, inside the notebook: no request leaves the machine.

    Args:
        model: name of a bundled model.
        knobs: setting to open; None is the default of the model.
    """
    import panel as pn

    from explorer.apps import serve

    pn.extension(inline=True)
    return serve.sampler_lab(model, knobs)


class Controls:
    """Knobs of one model's sampler beside its samples and its metric; displays itself as the last line of a cell.

    Every control comes from `SamplerKnobs.controls`. Releasing one starts a new measurement and cancels the old; a setting
    measured before is back at once. The notebook stays free meanwhile. `knobs` holds the setting on screen and `live` its
    newest state, for use in later cells.

    Args:
        model: what is sampled.
        n: samples of a full measurement.
        metric: where they are counted; None takes the one that belongs to the model.
        knobs: setting to begin with.
    """

    def __init__(
        self, model: Denoiser, n: int = 2000, *, metric: Metric | None = None, knobs: SamplerKnobs | None = None
    ):
        self.model, self.n = model, n
        self.knobs = knobs or SamplerKnobs.for_model(model)
        self.metric = metric or metric_for(model)
        self.live: Live | None = None
        self._courses: dict[str, dict[int, Live]] = {}  # by setting: the states by n
        self._pinned: SamplerKnobs | None = None
        self._job: Job | None = None
        self._lock, self._drawn, self._idle = threading.RLock(), threading.Event(), threading.Event()
        self._filling = False
        self._build()
        self._run()

    @property
    def busy(self) -> bool:
        return not self._idle.is_set()

    def set(self, **values: Any) -> None:
        """Sets knobs as their widgets do; a value that cannot be is named under the bar, and everything stays as it was."""
        try:
            self.knobs = SamplerKnobs.from_dict({**self.knobs.to_dict(), **values})
        except ExplorerError as error:
            self._fill()
            self._say(str(error), alarm=True)
            return
        self._run()

    def pin(self) -> None:
        """Makes the present setting A: those after it are compared with it on the same noise."""
        self._pinned = self.knobs
        self._show_number()

    def cancel(self) -> None:
        """Stops the measurement; what it has found so far stays."""
        with self._lock:
            if self._job is not None:
                self._job.cancel()
                self._finish("stopped" if self.live is None else f"stopped at n = {self.live.n_done}")

    def wait(self, timeout: float | None = None) -> Live | None:
        """Blocks until the running measurement has ended; returns its last state."""
        self._idle.wait(timeout)
        return self.live

    def _build(self) -> None:
        self._controls = {c.name: _widget(c) for c in self.knobs.controls(self.model)}
        for name, made in self._controls.items():
            parts = made.children if isinstance(made, w.Box) else (made,)
            for part in parts:
                part.observe(lambda change, name=name: self._turned(name), "value")
        self._notes = {group: w.HTML() for group in GROUPS}
        rows = []
        for group, members in GROUPS.items():
            rows += [w.HTML(f"<b>{group}</b>"), self._notes[group]]
            for name in members:
                bank = isinstance(self._controls[name], w.Box)
                rows += (
                    [w.HTML(_small("per block, deepest first")), self._controls[name]]
                    if bank
                    else [self._controls[name]]
                )
        column = w.VBox(
            rows, layout=w.Layout(width="350px", max_height="640px", overflow="hidden auto", flex="0 0 auto")
        )
        self._number, self._versus = w.HTML(), w.HTML()
        self._bar = w.FloatProgress(min=0, max=1, layout=w.Layout(flex="1 1 auto", height="14px"))
        self._cancel = w.Button(icon="times", description="cancel", layout=w.Layout(width="90px"))
        self._cancel.on_click(lambda _: self.cancel())
        self._state = w.HTML()
        self._sheet = w.HTML()
        reset = w.Button(description="reset", tooltip="all knobs back to their defaults", layout=w.Layout(width="90px"))
        reset.on_click(lambda _: self.set(**SamplerKnobs.defaults(self.model)))
        pin = w.Button(
            description="pin as A",
            tooltip="compare later settings with this one on the same noise",
            layout=w.Layout(width="90px"),
        )
        pin.on_click(lambda _: self.pin())
        strip = w.HBox([self._bar, self._cancel], layout=w.Layout(align_items="center"))
        right = w.VBox(
            [self._number, strip, self._state, self._sheet, self._versus, w.HBox([pin, reset])],
            layout=w.Layout(width="440px", padding="0 0 0 24px", flex="0 0 auto"),
        )
        self.view = w.HBox([column, right], layout=w.Layout(flex_flow="row wrap"))

    def _turned(self, name: str) -> None:
        if not self._filling:
            self.set(**{name: _read(self._controls[name])})

    def _fill(self) -> None:
        """Writes the knobs into their widgets, with the reasons of those at rest."""
        self._filling = True
        try:
            controls = self.knobs.controls(self.model)
            for c in controls:
                _write(self._controls[c.name], c)
            for group, note in self._notes.items():
                members = [c for c in controls if c.group == group]
                rest = all(c.reason for c in members)  # a single knob at rest says why in its tooltip
                note.value = _small(" ".join(dict.fromkeys(c.reason for c in members))) if rest else ""
                note.layout.display = None if rest else "none"
        finally:
            self._filling = False

    def _run(self) -> None:
        from explorer.apps.serve import worker

        with self._lock:
            if self._job is not None:
                self._job.cancel()
                self._job = None
            self._fill()
            course = self._courses.setdefault(self.knobs.key(), {})
            self.live = course[max(course)] if course else None
            if self.live is not None:
                self._show(self.live)
            if self.live is not None and self.live.done:
                self._finish()
                return
            try:
                model, sampler = self.knobs.build(self.model)
            except ExplorerError as error:
                self._finish(str(error), alarm=True)
                return
            self._idle.clear()
            self._drawn.clear()
            self._bar.value, self._bar.bar_style, self._cancel.disabled = 0.0, "", False
            if self.live is None:
                self._number.value = self._number.value.replace("opacity:1", "opacity:.35")  # of the setting before
            self._say(f"{sampler.nfe(model)} network calls per sample")
            knobs, box = self.knobs, []
            begun = self.live if self.live is not None and self.live.n_done <= self.n else None

            def make(job: Job) -> Iterator[Live]:
                return quality(
                    model, sampler, self.metric, self.n, start_seed=knobs.seed, label=knobs.label,
                    geometry=False, after=begun, cancel=job.stop, between=job.between,
                )  # fmt: skip

            self._job = worker().submit(
                make,
                value=lambda live: self._take(box, course, live),
                end=lambda failure: self._end(box, failure),
                progress=lambda fraction, eta: self._progress(box, fraction, eta),
            )
            box.append(self._job)

    # From the worker's thread; a job that has been replaced no longer counts.

    def _take(self, box: list[Job], course: dict[int, Live], live: Live) -> None:
        with self._lock:
            if box and box[0] is self._job:
                course[live.n_done] = self.live = live
                self._show(live)
                self._drawn.set()

    def _progress(self, box: list[Job], fraction: float, eta: float) -> None:
        with self._lock:
            if box and box[0] is self._job:
                self._bar.value = fraction
                self._say(f"{100 * fraction:.0f} %, {eta:.0f} s left")

    def _end(self, box: list[Job], failure: Failure | None) -> None:
        with self._lock:
            if box and box[0] is self._job:
                self._finish("" if failure is None else failure.text, alarm=failure is not None)

    def _finish(self, words: str = "", alarm: bool = False) -> None:
        done = self.live is not None and self.live.done
        self._job, self._cancel.disabled = None, True
        self._bar.value, self._bar.bar_style = (
            (1.0, "success") if done else (self._bar.value, "danger" if alarm else "")
        )
        self._say(words, alarm)
        self._drawn.set()
        self._idle.set()

    # Drawing

    def _say(self, words: str, alarm: bool = False) -> None:
        colour = "var(--jp-error-color1, #b00020)" if alarm else FAINT
        self._state.value = f"<span style='color:{colour};line-height:1.4'>{html.escape(words)}&nbsp;</span>"

    def _show(self, live: Live) -> None:
        self._sheet.value = (
            f"<img alt='{len(live.x)} samples' style='width:384px;image-rendering:pixelated;border-radius:6px' "
            f"src='data:image/png;base64,{base64.b64encode(picture(live.x, columns=8)).decode()}'>"
        )
        self._show_number()

    def _show_number(self) -> None:
        if self.live is None:
            return
        e = self.live.estimate
        shown = plus_minus(e.value, e.std_error) if math.isfinite(e.value) else "–"
        raw = f" · raw {e.raw:.3g}" if e.raw is not None and math.isfinite(e.raw) else ""
        facts = f"n = {e.n} of {self.n} · {self.live.nfe} NFE{raw}"
        self._number.value = (
            f"<div data-explorer='number' data-n='{e.n}' style='color:{BODY};line-height:1.35;opacity:1'>{html.escape(e.name)}"
            f"<div style='font-size:26px;font-weight:600;font-variant-numeric:tabular-nums'>{shown}</div>"
            f"<span style='color:{FAINT}'>{html.escape(e.note if not math.isfinite(e.value) else facts)}</span></div>"
        )
        self._versus.value = _small(self._comparison())

    def _comparison(self) -> str:
        if self._pinned is None:
            return "Pin a setting as A to compare others with it on the same noise."
        a, b = self._courses.get(self._pinned.key(), {}), self._courses.get(self.knobs.key(), {})
        what = f"A is {self._pinned.describe(self.model)}."
        common = set(a) & set(b)
        if self._pinned.key() == self.knobs.key() or not common:
            return what
        n = max(common)
        return (
            f"{what} On the same noise (n = {n}): {verdict(b[n].metric.difference(a[n].metric), 'this setting', 'A')}."
        )

    def _repr_mimebundle_(self, **kwargs) -> dict:
        """The widgets, and the first samples as a picture for readers without a kernel."""
        self._drawn.wait(FIRST_PICTURE)
        bundle = self.view._repr_mimebundle_(**kwargs)
        if self.live is not None:
            bundle["image/png"] = base64.b64encode(picture(self.live.x, scale=4)).decode()
        bundle["text/plain"] = f"Controls({self.model.name!r}, {self.knobs.describe(self.model)!r})"
        return bundle


def picture(x: Tensor, columns: int = 16, scale: int = 1) -> bytes:
    """Samples as PNG: images (n, C, H, W) on one sheet, points (n, 2) as dots in a square; light and small enough to redraw at once."""
    pixels = viz.grid(x, columns) if x.ndim == 4 else _dots(x)
    return viz.png(pixels.repeat(scale, axis=0).repeat(scale, axis=1))


def _dots(x: Tensor, side: int = 192) -> np.ndarray:
    """(side, side, 3) uint8: each point as a 3 x 3 dot, on the square that holds all of them."""
    x = x[x.isfinite().all(1), :2].double().numpy(force=True)
    reach = max(np.abs(x).max(initial=0.0), 1e-6) * 1.1
    column, row = ((x / reach + 1) / 2 * (side - 3)).astype(int).T
    sheet = np.full((side, side, 3), 255, np.uint8)
    for dx in range(3):
        for dy in range(3):
            sheet[side - 1 - row - dy, column + dx] = (0, 114, 178)
    return sheet


def _small(words: str) -> str:
    return f"<div style='font-size:12px;line-height:1.4;color:{FAINT}'>{html.escape(words)}</div>"


def _widget(c: Control) -> w.Widget:
    """The widget of one knob; it reports on release, and its tooltip is the knob's own explanation."""
    common = {
        "description": c.title,
        "style": {"description_width": "84px"},
        "layout": w.Layout(width="320px"),
    }
    if c.kind == "choice":
        return w.Dropdown(options=list(zip(c.names, c.choices, strict=True)), value=c.value, **common)
    if c.kind == "nodes":
        return w.Text(value=_levels(c.value), placeholder="σ, σ, … from high to low", continuous_update=False, **common)
    if c.kind == "text":
        return w.Textarea(value=c.value, rows=1, continuous_update=False, **common)
    if c.kind == "bank":
        bar = {"min": c.low, "max": c.high, "step": c.step, "orientation": "vertical", "continuous_update": False}
        values = zip(c.names, c.value, strict=True)
        slim = {"layout": w.Layout(width="36px", height="130px"), "readout_format": ".2f"}
        return w.HBox([w.FloatSlider(value=v, tooltip=f"{name}. {c.doc}", **bar, **slim) for name, v in values])
    common |= {"continuous_update": False, "step": c.step}
    if c.kind == "integer":
        return w.IntSlider(value=c.value, min=int(c.low), max=int(c.high), **common)
    if c.log:
        ends = {
            "min": math.log10(max(c.low, LOG_FLOOR)) if c.low == 0 else math.log10(c.low),
            "max": math.log10(c.high),
        }
        return w.FloatLogSlider(
            value=max(c.value, 10 ** ends["min"]), **ends, **{**common, "step": 0.01, "readout_format": ".3g"}
        )
    digits = max(0, math.ceil(-math.log10(c.step)))
    return w.FloatSlider(value=c.value, min=c.low, max=c.high, readout_format=f".{digits}f", **common)


def _read(widget: w.Widget) -> Any:
    """The knob's value; the left end of a logarithmic slider that may be 0 is 0."""
    if isinstance(widget, w.Box):
        return [bar.value for bar in widget.children]
    if isinstance(widget, w.Text):
        try:
            return [float(v) for v in widget.value.replace(",", " ").split()] or None
        except ValueError:
            return [widget.value]  # refused with a sentence where it is set
    if isinstance(widget, w.FloatLogSlider):
        low, high = widget.base**widget.min, widget.base**widget.max
        if widget.value <= low:
            return 0.0 if low == LOG_FLOOR else low
        return high if widget.value >= high else float(f"{widget.value:.3g}")
    return widget.value


def _write(widget: w.Widget, c: Control) -> None:
    """Shows a knob's state: value, whether it can act, and what it does or why it rests."""
    words = f"{c.reason} {c.doc}" if c.reason else c.doc
    if isinstance(widget, w.Box):
        for name, bar, value in zip(c.names, widget.children, c.value, strict=True):
            bar.value, bar.disabled, bar.tooltip = value, bool(c.reason), f"{name}. {words}"
        return
    if isinstance(widget, w.FloatLogSlider):
        widget.value = min(max(c.value, widget.base**widget.min), widget.base**widget.max)
        words += " Left end: 0." if c.low == 0 else ""
    else:
        widget.value = _levels(c.value) if c.kind == "nodes" else c.value
    widget.disabled, widget.tooltip = bool(c.reason), words


def _levels(nodes: list[float]) -> str:
    return ", ".join(f"{v:.12g}" for v in nodes)
