"""Pages of the dashboard. A new page is a store, a `Lab` over it, and one line here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from explorer.apps.atlas.state import Atlas
from explorer.apps.components import Frame
from explorer.apps.pages.atlas import AtlasLab
from explorer.apps.pages.base import Lab
from explorer.apps.pages.sampler_lab import SamplerLab
from explorer.apps.pages.training import TrainingLab
from explorer.apps.pages.trajectory_lab import TrajectoryLab
from explorer.apps.pages.tuning import TuningLab
from explorer.apps.session import Session
from explorer.apps.store import Store
from explorer.apps.training.state import Trainings
from explorer.apps.trajectory.state import Trajectories
from explorer.apps.tuning.state import Tunings


@dataclass(frozen=True)
class Page:
    """An entry of the rail: address below the server's root, words, icon; the page, and the store of a new session."""

    slug: str
    title: str
    icon: str
    lab: type[Lab]
    store: type[Store]

    def build(self, store: Store, rail: Iterable[dict] = (), embedded: bool = False) -> Frame:
        """The page over a store as a Panel viewable; arguments as for `Lab`."""
        return self.lab(store, rail, embedded).shell


PAGES = (
    Page("lab", "Sampler Lab", "lab", SamplerLab, Session),
    Page("trajectory", "Trajectory Lab", "trajectory", TrajectoryLab, Trajectories),
    Page("training", "Training", "training", TrainingLab, Trainings),
    Page("tuning", "Tuning", "tuning", TuningLab, Tunings),
    Page("atlas", "Atlas", "atlas", AtlasLab, Atlas),
)
