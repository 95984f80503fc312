"""What the Atlas page knows: all papers with their evidence, what is searched for, and which row is open."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any
from urllib.parse import parse_qsl, urlencode

from explorer import papers
from explorer.apps.store import Store
from explorer.apps.worker import Failure, Job
from explorer.reproduction.catalogue import STATUS, Entry, Point, entries, quality_against_cost

SORTS = ("status", "title", "family", "year", "nfe")


@dataclass(frozen=True)
class View:
    """What is looked at, as it stands in the address.

    Attributes:
        q: words that a row must contain.
        family, status: only rows of it; "" for all.
        sort, down: column, and whether its last comes first.
        open: slug of the open row; "" for none.
    """

    q: str = ""
    family: str = ""
    status: str = ""
    sort: str = "status"
    down: bool = False
    open: str = ""

    @classmethod
    def of(cls, given: dict[str, Any]) -> View:
        """From a message or an address; what does not belong there is left at its default."""
        view = replace(
            cls(), **{f.name: str(given[f.name])[:200] for f in fields(cls) if f.name in given and f.name != "down"}
        )
        return replace(
            view,
            down=str(given.get("down", "")).lower() in ("1", "true"),
            sort=view.sort if view.sort in SORTS else cls.sort,
            status=view.status if view.status in STATUS else "",
        )

    def link(self) -> str:
        """The address after #, e.g. "atlas?q=flow&open=edm"; defaults are left out."""
        plain = asdict(View())
        given = {k: int(v) if isinstance(v, bool) else v for k, v in asdict(self).items() if v != plain[k]}
        return "atlas" + (f"?{urlencode(given)}" if given else "")


class Atlas(Store):
    """The store of one Atlas page.

    Attributes:
        entries: all papers; empty until they are read.
        points: cost and quality of the bundled models on digits.
        view: what is looked at.
    """

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.entries: tuple[Entry, ...] = ()
        self.points: tuple[Point, ...] = ()
        self.view = View()

    def open(self, link: str) -> None:
        """Shows what an address names, and reads the papers if they are not there yet."""
        self.view = View.of(dict(parse_qsl(link.partition("?")[2])))
        self.changed("view")
        if not self.entries and not self.running:
            self.reload()

    def look(self, given: dict[str, Any]) -> None:
        """Another view; only the address follows, the browser has drawn it already."""
        self.view = View.of(asdict(self.view) | given)
        self.changed("link")

    def reload(self) -> None:
        """Reads papers, evidence and cards anew."""

        def make(job: Job) -> Iterator[Any]:
            yield entries(papers.names, papers.paper)
            yield quality_against_cost("digits")

        self.start(make, self._take, self._end)
        self.doing("reading papers and evidence")

    def _take(self, found: Any) -> None:
        if found and isinstance(found[0], Entry):
            self.entries = found
        else:
            self.points = found
        self.changed("entries")

    def _end(self, failure: Failure | None) -> None:
        if failure is not None:
            self.say(failure)
        self.changed("job", "entries")
