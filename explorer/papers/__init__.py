"""Papers: one file each, its `PAPER` the record of a reproduction. The folder is the registry."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from explorer.errors import UnknownName

if TYPE_CHECKING:
    from explorer.reproduction.recipe import Paper


def names() -> tuple[str, ...]:
    """Slugs of the papers, in alphabetical order; nothing is imported."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))


def paper(slug: str) -> Paper:
    """The paper of that slug.

    Raises:
        UnknownName: no such file; the message lists the slugs.
    """
    if slug not in names():
        raise UnknownName("paper", slug, names())
    return importlib.import_module(f"explorer.papers.{slug}").PAPER
