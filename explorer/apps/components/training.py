"""Panes of the Training page. Pictures are sent once, as bytes, and kept by the browser; where the book is open stands there too."""

from __future__ import annotations

import param
from panel.custom import Child

from explorer.apps.components import Frame, Pane, contents


class TrainingTop(Pane):
    """Which runs are looked at, along which axis, what can be copied, and what the page has to say."""

    data = param.Dict(default={})
    page_id = param.String(default="")

    _esm = contents("lib.js", "training_top.js")
    _stylesheets = [contents("base.css", "panels.css", "training.css", "training_top.css")]


class TrainingForm(Pane):
    """What is to be trained next; `arrived` says which part of a user's file is awaited."""

    data = param.Dict(default={})
    arrived = param.Dict(default={})

    _esm = contents("lib.js", "training_form.js")
    _stylesheets = [contents("base.css", "panels.css", "training.css", "training_form.css")]


class TrainingRuns(Pane):
    """All runs, as cards."""

    data = param.Dict(default={})

    _esm = contents("lib.js", "training_runs.js")
    _stylesheets = [contents("base.css", "panels.css", "training.css", "training_runs.css")]


class TrainingStage(Pane):
    """One or two runs: the flip-book, the number, and what can be done."""

    data = param.Dict(default={})
    book_0 = param.Bytes(default=None, allow_None=True)
    book_1 = param.Bytes(default=None, allow_None=True)
    page_id = param.String(default="")

    _esm = contents("lib.js", "trajectory_lib.js", "training_lib.js", "training_stage.js")
    _stylesheets = [contents("base.css", "panels.css", "training.css", "training_stage.css")]


class TrainingStrips(Pane):
    """Loss by noise level while training goes."""

    data = param.Dict(default={})
    strip_0 = param.Bytes(default=None, allow_None=True)
    strip_1 = param.Bytes(default=None, allow_None=True)
    page_id = param.String(default="")

    _esm = contents("lib.js", "trajectory_lib.js", "training_lib.js", "training_strips.js")
    _stylesheets = [contents("base.css", "panels.css", "training.css", "training_strips.css")]


class TrainingCurves(Pane):
    """Quality, loss, gradient norms and straightness on one axis."""

    data = param.Dict(default={})
    page_id = param.String(default="")

    _esm = contents("lib.js", "trajectory_lib.js", "training_lib.js", "training_curves.js")
    _stylesheets = [contents("base.css", "panels.css", "training.css", "training_curves.css")]


class TrainingShell(Frame):
    """The page around its panes."""

    top = Child()
    form = Child()
    runs = Child()
    stage = Child()
    strips = Child()
    curves = Child()

    _esm = contents("lib.js", "page.js", "training_shell.js")
    _stylesheets = [contents("base.css", "page.css", "training_shell.css")]
