"""Pages of the dashboard. A new page is a module with a function `page(session_args...) -> viewable` and one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from explorer.apps.pages import sampler_lab


@dataclass(frozen=True)
class Page:
    """An entry of the rail: address below the server's root, words, icon, and what builds it for a new session."""

    slug: str
    title: str
    icon: str
    build: Callable


PAGES = (Page("lab", "Sampler Lab", "lab", sampler_lab.page),)
