"""What stands side by side on the Trajectory Lab: samplers, what is known of each of their settings, and how they are looked at."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import xarray as xr

from explorer.apps import catalogue
from explorer.apps.settings import Setting
from explorer.apps.trajectory import compute
from explorer.apps.trajectory.compute import STAGES, Curves, Plane, Scene
from explorer.apps.worker import Failure, Job
from explorer.errors import BadValue
from explorer.knobs import GROUPS, SamplerKnobs
from explorer.sampling import sigmas_of

CACHE_BYTES = 400 * 2**20


@dataclass
class Run:
    """What is known so far of one setting: the stages that are done, a `Failure` where one is not defined."""

    setting: Setting
    n: int
    ds: xr.Dataset | None = None
    frames: np.ndarray | None = None  # (T, S, 2) positions on the linear path, on the plane of the model
    scene: Scene | None = None
    curves: Curves | Failure | None = None
    budget: xr.Dataset | Failure | None = None
    errors: xr.Dataset | Failure | None = None

    @property
    def n_done(self) -> int:
        return 0 if self.ds is None else self.ds.sizes["sample"]

    @property
    def sigma(self) -> np.ndarray:
        return self.ds.sigma.values

    def todo(self, extent: float) -> tuple[str, ...]:
        """Stages that are missing for a square of this half side."""
        done = {
            "paths": self.n_done >= self.n,
            "scene": self.scene is not None and self.scene.extent == extent,
            **{name: getattr(self, name) is not None for name in ("curves", "budget", "errors")},
        }
        return tuple(stage for stage in STAGES if not done[stage])

    def take(self, stage: str, value: Any, plane: Plane) -> None:
        if stage == "paths":
            self.ds, self.frames = value, compute.on_plane(value, plane)
        else:
            setattr(self, stage, value)

    @property
    def bytes(self) -> int:
        return 0 if self.ds is None else self.ds.nbytes + self.frames.nbytes


class Runs:
    """Runs of all sessions by setting and number of particles; the longest unused leave when they take too much room."""

    def __init__(self, limit: int = CACHE_BYTES):
        self._limit, self._items = limit, OrderedDict()
        self.scenes: OrderedDict[tuple, Scene] = OrderedDict()  # by model and what acts on it, square and noise

    def of(self, setting: Setting, n: int) -> Run:
        """The run of this setting, as far as it is known."""
        key = (setting.key, n)
        if key not in self._items:
            self._items[key] = Run(setting, n)
        self._items.move_to_end(key)
        held = sum(run.bytes for run in self._items.values())
        for old in list(self._items)[:-8]:
            if held > self._limit or self._items[old].ds is None:
                held -= self._items.pop(old).bytes
        return self._items[key]

    def keep(self, around: tuple, scene: Scene) -> None:
        self.scenes[around] = scene
        while len(self.scenes) > 32:
            self.scenes.popitem(last=False)


RUNS = Runs()


@dataclass
class Track:
    """One sampler of the page. `slot` is its place in the order of colours and letters; it keeps it for life."""

    slot: int
    setting: Setting
    good: Setting
    run: Run | None = None
    shown: Run | None = None
    error: Failure | None = None
    job: Job | None = None
    moving: bool = False  # a knob is still being dragged
    stage: str = ""  # what the job does; "first" before the first particles
    fraction: float = 0.0
    eta: float | None = None

    @property
    def letter(self) -> str:
        return "ABCD"[self.slot]

    @property
    def model(self) -> str:
        return self.setting.model

    @property
    def knobs(self) -> SamplerKnobs:
        return knobs_of(self.setting)

    @property
    def about(self) -> About:
        return about_of(self.setting)


@dataclass(frozen=True)
class About:
    """A setting in short: its name, evaluations per sample, and the noise levels of its grid."""

    title: str
    nfe: int
    sigmas: tuple[float, ...]


@lru_cache(maxsize=256)
def knobs_of(setting: Setting) -> SamplerKnobs:
    """The setting's knobs, read once."""
    return setting.knobs


@lru_cache(maxsize=256)
def about_of(setting: Setting) -> About:
    """The setting in short. Raises BadValue where its noise does not only fall."""
    base, knobs = catalogue.model(setting.model), knobs_of(setting)
    model, sampler = knobs.build(base)
    if not sampler.monotone:
        raise BadValue("restarts go up again, and this page draws runs whose noise only falls: set restarts to 0 here.")
    return About(knobs.describe(base), sampler.nfe(model), sigmas_of(sampler, base))


@dataclass(frozen=True)
class Selection:
    """Particles inside a loop drawn in one square: corners in units of its half side, at one noise level."""

    slot: int
    sigma: float
    loop: tuple[tuple[float, float], ...]


@dataclass
class Looks:
    """How it is looked at; the browser owns these, the store keeps them for the address."""

    u: float | None = None  # None: play once from the noise
    trail: float = 0.3
    speed: float = 1.0
    field: bool = True
    density: bool = True
    lines: bool = False

    BOUNDS = {"u": (0.0, 1.0), "trail": (0.0, 1.0), "speed": (0.1, 8.0)}


@dataclass(frozen=True)
class Download:
    """A finished file for the browser."""

    name: str
    mime: str
    content: bytes = field(repr=False)


def surroundings(setting: Setting, extent: float) -> tuple:
    """What the density and the velocity field depend on."""
    knobs = knobs_of(setting)
    acting = (*GROUPS["Guidance"], *GROUPS["Skip-tuning"], "label", "sigma_max")
    return (setting.model, extent, *(str(getattr(knobs, name)) for name in acting))


def turned(knobs: SamplerKnobs, **values: Any) -> SamplerKnobs:
    """These knobs with some of them at other values. Raises BadValue for one out of range."""
    return SamplerKnobs.from_dict({**knobs.to_dict(), **values})


def fitted(knobs: SamplerKnobs, before: str, after: str) -> tuple[SamplerKnobs, list[str]]:
    """The knobs for another model: what stood at its default follows the new one's, what cannot act is put back."""
    old, new = catalogue.defaults(before), catalogue.defaults(after)
    values = knobs.to_dict()
    for name in ("sigma_min", "sigma_max", "label"):
        if values[name] == old[name]:
            values[name] = new[name]
    return SamplerKnobs.from_dict(values).fitted(catalogue.model(after))
