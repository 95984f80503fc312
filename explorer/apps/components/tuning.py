"""Panes of the Tuning page."""

from __future__ import annotations

import param
from panel.custom import Child

from explorer.apps.components import Frame, Knobs, Pane, contents

STYLES = ("base.css", "panels.css", "tuning.css")


class TuningTop(Pane):
    """The search that is looked at: what it does, and what can be done with it."""

    data = param.Dict(default={})
    file = param.Dict(default={}, doc="A file to save: name, text, serial number.")

    _esm = contents("lib.js", "tuning_top.js")
    _stylesheets = [contents(*STYLES, "tuning_top.css")]


class TuningForm(Pane):
    """What is to be searched next."""

    data = param.Dict(default={})

    _esm = contents("lib.js", "tuning_form.js")
    _stylesheets = [contents(*STYLES, "tuning_form.css")]


class BaselineKnobs(Knobs):
    """All knobs of the baseline, without what only the Sampler Lab pins and copies."""

    _stylesheets = [contents("base.css", "knobs.css", "tuning_knobs.css")]


class TuningOutcome(Pane):
    """The number on held-out noise beside the one of the search."""

    data = param.Dict(default={})

    _esm = contents("lib.js", "tuning_outcome.js")
    _stylesheets = [contents(*STYLES, "tuning_outcome.css")]


class TuningCourse(Pane):
    """Value against trial, and against cost."""

    data = param.Dict(default={})

    _esm = contents("lib.js", "tuning_lib.js", "tuning_course.js")
    _stylesheets = [contents(*STYLES, "tuning_course.css")]


class TuningGrid(Pane):
    """The grid as ticks that can be dragged, with the error of each step."""

    data = param.Dict(default={})

    _esm = contents("lib.js", "tuning_lib.js", "tuning_grid.js")
    _stylesheets = [contents(*STYLES, "tuning_grid.css")]


class TuningLayers(Pane):
    """The blocks that each step leaves out, as a map."""

    data = param.Dict(default={})

    _esm = contents("lib.js", "tuning_layers.js")
    _stylesheets = [contents(*STYLES, "tuning_layers.css")]


class TuningTrials(Pane):
    """The best trials as a table."""

    data = param.Dict(default={})

    _esm = contents("lib.js", "tuning_trials.js")
    _stylesheets = [contents(*STYLES, "tuning_trials.css")]


class TuningSearches(Pane):
    """All searches, those that run first."""

    data = param.Dict(default={})

    _esm = contents("lib.js", "tuning_searches.js")
    _stylesheets = [contents(*STYLES, "tuning_searches.css")]


class TuningMap(Pane):
    """The map of two knobs."""

    data = param.Dict(default={})
    job = param.Dict(default={})

    _esm = contents("lib.js", "tuning_lib.js", "tuning_map.js")
    _stylesheets = [contents(*STYLES, "tuning_map.css")]


class TuningShell(Frame):
    """The page around its panes."""

    top = Child()
    form = Child()
    knobs = Child()
    outcome = Child()
    course = Child()
    steps = Child()
    layers = Child()
    trials = Child()
    searches = Child()
    map = Child()

    _esm = contents("lib.js", "page.js", "tuning_shell.js")
    _stylesheets = [contents("base.css", "page.css", "tuning_shell.css")]
