"""Pages of the dashboard. A new page is a store, a module with a function `page(store, rail, embedded) -> viewable`, and one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from explorer.apps.atlas.state import Atlas
from explorer.apps.pages import atlas, sampler_lab, training, trajectory_lab
from explorer.apps.session import Session
from explorer.apps.store import Store
from explorer.apps.training.state import Trainings
from explorer.apps.trajectory.state import Trajectories


@dataclass(frozen=True)
class Page:
    """An entry of the rail: address below the server's root, words, icon; the store of a new session, and what builds the page on it."""

    slug: str
    title: str
    icon: str
    build: Callable
    store: type[Store]


PAGES = (
    Page("lab", "Sampler Lab", "lab", sampler_lab.page, Session),
    Page("trajectory", "Trajectory Lab", "trajectory", trajectory_lab.page, Trajectories),
    Page("training", "Training", "training", training.page, Trainings),
    Page("atlas", "Atlas", "atlas", atlas.page, Atlas),
)
