"""Papers: one file each, its `PAPER` the record of a reproduction. The folder is the registry.

SLUG.py holds the method, its recipes and published numbers; SLUG_claims.py, where there is one, holds the paper's `CLAIMS`, so that
changing how a claim is measured trains nothing anew.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

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


def atlas() -> list[dict[str, Any]]:
    """Every paper of the field that this toolkit knows of, one dict each: idea, published numbers, status, claims as measured here.

    The status is that of the code and the evidence that are installed: "here", "claims failing", "unmeasured", "no claims", "planned" or
    "not for this toolkit", see `explorer.reproduction.catalogue.STATUS`.
    """
    from explorer.reproduction.catalogue import entries

    return [entry.to_dict() for entry in entries(names, paper)]


def _files() -> tuple[str, ...]:
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))
