"""Panes of the Atlas page. The browser holds all rows, so that searching, sorting and opening one waits for nobody."""

from __future__ import annotations

import param
from panel.custom import Child

from explorer.apps.components import Frame, Pane, contents


class AtlasTop(Pane):
    """How many papers are in which state, and what the page has to say."""

    data = param.Dict(default={})
    page_id = param.String(default="")

    _esm = contents("lib.js", "atlas_top.js")
    _stylesheets = [contents("base.css", "atlas.css", "atlas_top.css")]


class AtlasTable(Pane):
    """Papers, to search and sort; a row opens to all that is known of it."""

    data = param.Dict(default={})
    view = param.Dict(default={})
    page_id = param.String(default="")

    _esm = contents("lib.js", "atlas_table.js")
    _stylesheets = [contents("base.css", "atlas.css", "atlas_table.css")]


class AtlasPicture(Pane):
    """Evaluations against Fréchet distance for every bundled model of one data set."""

    data = param.Dict(default={})
    page_id = param.String(default="")

    _esm = contents("lib.js", "atlas_picture.js")
    _stylesheets = [contents("base.css", "atlas.css", "atlas_picture.css")]


class AtlasShell(Frame):
    """The page around its panes."""

    top = Child()
    table = Child()
    picture = Child()

    _esm = contents("lib.js", "page.js", "atlas_shell.js")
    _stylesheets = [contents("base.css", "page.css", "atlas_shell.css")]
