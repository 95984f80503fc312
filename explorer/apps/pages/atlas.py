"""The Atlas: every paper, what it does, what it printed, what was measured of it here, and where to try it."""

from __future__ import annotations

from collections.abc import Iterable

from explorer.apps.atlas import views
from explorer.apps.atlas.state import Atlas
from explorer.apps.components import atlas as panes
from explorer.apps.pages.base import Lab


class AtlasLab(Lab):
    """The panes of this page, and what the browser may ask of it."""

    redraws = {
        "entries": ("table", "picture", "top"),
        "view": ("view", "link"),
        "link": ("link",),
        "state": ("top", "table", "picture"),
        "job": ("top",),
    }

    def __init__(self, store: Atlas, rail: Iterable[dict] = (), embedded: bool = False):
        self.store = store
        own = {"on_message": self.receive, "page_id": str(id(self))}
        self.top = panes.AtlasTop(**own)
        self.table = panes.AtlasTable(**own)
        self.picture = panes.AtlasPicture(**own)
        self.shell = panes.AtlasShell(
            top=self.top, table=self.table, picture=self.picture, pages=list(rail), embedded=embedded, **own
        )
        self.follow(
            store,
            {
                "open": lambda m: store.open("" if embedded else str(m["link"])),
                "look": lambda m: store.look({k: v for k, v in m.items() if k != "type"}),
                "reload": lambda m: (store.dismiss(), store.reload()),
                "dismiss": lambda m: store.dismiss(),
            },
        )

    def redraw(self, what: set[str]) -> None:
        store = self.store
        makers = {
            "view": (self.table, "view", lambda s: vars(s.view)),
            "table": (self.table, "data", views.table_data),
            "picture": (self.picture, "data", views.picture_data),
            "top": (self.top, "data", views.top_data),
            "link": (self.shell, "link", lambda s: s.view.link()),
        }
        for part, (pane, name, make) in makers.items():
            if part in what:
                pane.param.update(**{name: make(store)})
