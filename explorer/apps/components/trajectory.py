"""Panes of the Trajectory Lab. What moves is sent once, as bytes; time stands in the browser and is shared by the panes."""

from __future__ import annotations

import param
from panel.custom import Child

from explorer.apps.components import Frame, Knobs, Pane, contents


class TrajectoryTop(Pane):
    """Model, particles, seeds, job strip, and what can be saved."""

    data = param.Dict(default={})
    job = param.Dict(default={})
    texts = param.Dict(default={})
    download = param.Bytes(default=None, allow_None=True)
    page_id = param.String(default="")

    _esm = contents("lib.js", "trajectory_lib.js", "trajectory_top.js")
    _stylesheets = [contents("base.css", "panels.css", "trajectory.css", "trajectory_top.css")]


class TrajectoryStage(Pane):
    """One square of particles per sampler, and the time they share."""

    data = param.Dict(default={})
    frames_0 = param.Bytes(default=None, allow_None=True)
    frames_1 = param.Bytes(default=None, allow_None=True)
    frames_2 = param.Bytes(default=None, allow_None=True)
    frames_3 = param.Bytes(default=None, allow_None=True)
    scene_0 = param.Bytes(default=None, allow_None=True)
    scene_1 = param.Bytes(default=None, allow_None=True)
    scene_2 = param.Bytes(default=None, allow_None=True)
    scene_3 = param.Bytes(default=None, allow_None=True)
    page_id = param.String(default="")

    _esm = contents("lib.js", "trajectory_lib.js", "trajectory_stage.js")
    _stylesheets = [contents("base.css", "panels.css", "trajectory.css", "trajectory_stage.css")]


class TrajectoryCurves(Pane):
    """Straightness, curvature and turning along sigma."""

    data = param.Dict(default={})
    page_id = param.String(default="")

    _esm = contents("lib.js", "trajectory_lib.js", "trajectory_curves.js")
    _stylesheets = [contents("base.css", "panels.css", "trajectory.css", "trajectory_curves.css")]


class TrajectorySide(Pane):
    """Error by step, budget, microscope."""

    data = param.Dict(default={})
    page_id = param.String(default="")

    _esm = contents("lib.js", "trajectory_lib.js", "trajectory_side.js")
    _stylesheets = [contents("base.css", "panels.css", "trajectory.css", "trajectory_side.css")]


class TrajectoryFilm(Pane):
    """Filmstrips of one image sample."""

    data = param.Dict(default={})
    page_id = param.String(default="")

    _esm = contents("lib.js", "trajectory_lib.js", "trajectory_film.js")
    _stylesheets = [contents("base.css", "panels.css", "trajectory.css", "trajectory_film.css")]


class TrackKnobs(Knobs):
    """All knobs of one sampler, without what only the Sampler Lab pins and copies."""

    _stylesheets = [contents("base.css", "knobs.css", "trajectory_knobs.css")]


class TrajectoryShell(Frame):
    """The page around the panes."""

    top = Child()
    stage = Child()
    curves = Child()
    side = Child()
    film = Child()
    knobs = Child()
    open = param.String(default="", doc="Letter of the sampler whose knobs are open.")
    images = param.Boolean(default=False, doc="Whether there are filmstrips.")

    _esm = contents("lib.js", "page.js", "trajectory_shell.js")
    _stylesheets = [contents("base.css", "page.css", "trajectory_shell.css")]
