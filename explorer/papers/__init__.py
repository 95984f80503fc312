"""Papers: one file each, its `PAPER` the record of a reproduction. The folder is the registry.

SLUG.py holds the method, its recipes and published numbers; SLUG_claims.py, where there is one, holds the paper's `CLAIMS`, so that
changing how a claim is measured trains nothing anew.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from typing import TYPE_CHECKING

from explorer.errors import UnknownName

if TYPE_CHECKING:
    from explorer.reproduction.recipe import Paper

CLAIMS = "_claims"


def names() -> tuple[str, ...]:
    """Slugs of the papers, in alphabetical order; nothing is imported."""
    return tuple(name for name in _files() if not name.endswith(CLAIMS))


def paper(slug: str) -> Paper:
    """The paper of that slug, with its claims.

    Raises:
        UnknownName: no such file; the message lists the slugs.
    """
    if slug not in names():
        raise UnknownName("paper", slug, names())
    found = importlib.import_module(f"explorer.papers.{slug}").PAPER
    if slug + CLAIMS not in _files():
        return found
    return dataclasses.replace(found, claims=importlib.import_module(f"explorer.papers.{slug}{CLAIMS}").CLAIMS)


def _files() -> tuple[str, ...]:
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))
