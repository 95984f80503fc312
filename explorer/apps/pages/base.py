"""What every page is: panes kept in step with a store, and verbs that the browser may send."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

from explorer.apps import components
from explorer.apps.store import Store

Verb = Callable[[dict], object]


class Lab(ABC):
    """A page over one store. Finals build their panes with `on_message=self.receive`, then call `follow`.

    Args:
        store: what is shown.
        rail: entries of the left rail, [{"title", "href", "icon", "current"}].
        embedded: without rail and address, for a notebook's cell.

    Attributes:
        redraws: what changed in the store -> the parts of the page that show it; "link" is the address.
        shell: the frame that holds the panes.
    """

    redraws: ClassVar[Mapping[str, Sequence[str]]]
    shell: components.Frame

    @abstractmethod
    def __init__(self, store: Store, rail: Iterable[dict] = (), embedded: bool = False): ...

    def follow(self, store: Store, verbs: Mapping[str, Verb]) -> None:
        """Draws everything but the address, and from then on what the store says has changed."""
        self._store, self._verbs = store, verbs
        self.redraw({part for parts in self.redraws.values() for part in parts} - {"link"})
        store.param.watch(lambda event: self.redraw({p for w in event.new["what"] for p in self.redraws[w]}), "version")

    def receive(self, message: dict) -> None:
        """A message from the browser; unknown ones are ignored."""
        self._store.heard()
        verb = self._verbs.get(message.get("type"))
        if verb is None:
            return
        try:
            verb(message)
        except Exception as error:  # neither a refusal nor a bug takes the page down
            self._store.fail(error)

    @abstractmethod
    def redraw(self, what: set[str]) -> None:
        """Hands the panes what these parts show, what is cheap first."""

    def __panel__(self):
        return self.shell
