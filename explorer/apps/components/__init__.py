"""Panes written in the browser's own terms: one module and one style sheet each, no library, nothing fetched.

Panel's material widgets were tried first and hold up; these panes exist because a knob here is a slider, a number, a
marker, a reason and a double click at once, and because system fonts and one page load of 0.1 s were worth having.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import panel as pn
import param
from panel.custom import Child, JSComponent

_HERE = Path(__file__).parent


def contents(*files: str) -> str:
    return "\n".join((_HERE / file).read_text(encoding="utf-8") for file in files)


class Pane(JSComponent):
    """A pane of a page. `on_message` receives what the browser sends, a dict with a `type`."""

    on_message = param.Callable(default=None, allow_None=True)

    _rename = {"on_message": None}
    __abstract = True

    def __init__(self, **params):
        params.setdefault("sizing_mode", "stretch_width")
        params.setdefault("margin", 0)
        super().__init__(**params)

    def _handle_msg(self, data) -> None:
        # Until the browser has reported the page as ready, Panel drops what changes: a pane would keep what it was built with.
        if self.on_message is not None and isinstance(data, dict):
            pn.state.onload(partial(self.on_message, data))


class Top(Pane):
    """Model, seeds, job strip, and the number."""

    data = param.Dict(default={})
    job = param.Dict(default={})
    hero = param.Dict(default={})

    _esm = contents("lib.js", "top.js")
    _stylesheets = [contents("base.css", "top.css")]


class Knobs(Pane):
    """Controls drawn from `explorer.knobs.Control`."""

    data = param.Dict(default={})
    texts = param.Dict(default={})

    _esm = contents("lib.js", "knobs.js")
    _stylesheets = [contents("base.css", "knobs.css")]


class Samples(Pane):
    """The sheet of pictures, or the particles of a 2-D model."""

    data = param.Dict(default={})
    selected = param.Integer(default=None, allow_None=True)
    page_id = param.String(default="")

    _esm = contents("lib.js", "samples.js")
    _stylesheets = [contents("base.css", "samples.css")]


class Steps(Pane):
    """Everything that has a place on the noise axis."""

    data = param.Dict(default={})
    ghost = param.Dict(default=None, allow_None=True)
    film = param.Dict(default=None, allow_None=True)
    page_id = param.String(default="")

    _esm = contents("lib.js", "steps.js")
    _stylesheets = [contents("base.css", "steps.css")]


class History(Pane):
    """Settings seen so far, the verdict, and cost against quality."""

    data = param.Dict(default={})

    _esm = contents("lib.js", "history.js")
    _stylesheets = [contents("base.css", "history.css")]


class Frame(Pane):
    """A page around its panes: rail, theme, keys, and the address. A page's own shell adds a `Child` for each of its slots."""

    pages = param.List(default=[])
    page_id = param.String(default="")
    embedded = param.Boolean(default=False)
    link = param.String(default="")

    __abstract = True


class Shell(Frame):
    """The Sampler Lab around its panes."""

    top = Child()
    knobs = Child()
    samples = Child()
    steps = Child()
    history = Child()

    _esm = contents("lib.js", "page.js", "shell.js")
    _stylesheets = [contents("base.css", "page.css", "shell.css")]
