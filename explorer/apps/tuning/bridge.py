"""Between the pages' knobs and the engine's settings, and a model that lets others have their turn."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

from explorer.apps import settings
from explorer.errors import BadValue
from explorer.knobs import SamplerKnobs, used_by
from explorer.models.base import Model
from explorer.sampling import SOLVERS, OdeSampler
from explorer.sampling.restart import Restart, RestartSampler
from explorer.tuning import Guidance, Skips
from explorer.tuning import Setting as Tunable

ASKED = ("_as", "predict", "jump")
"""Methods through which a model is asked."""


def tunable(knobs: SamplerKnobs, model: Model) -> Tunable:
    """The knobs as the engine's setting of the bare model.

    Raises: BadValue where they contradict each other or the model.
    """
    _, sampler = knobs.build(model)
    wrappers: list[Any] = []
    scales = knobs.skip_scales(model.n_skips)
    if scales is not None:
        wrappers.append(Skips(tuple(scales)))
    no_limit = knobs.guidance_hi >= knobs.param.guidance_hi.bounds[1]
    interval = (knobs.guidance_lo, math.inf if no_limit else knobs.guidance_hi)
    worse = knobs.guide if knobs.guide_weight != 1 else ""
    if knobs.guidance != 1 and worse:
        raise BadValue("a search takes one kind of guidance: set weight w to 1, or leave out the worse model.")
    if knobs.guidance != 1:
        wrappers.append(Guidance(knobs.guidance, interval))
    elif worse:
        wrappers.append(Guidance(knobs.guide_weight, interval, worse))
    return Tunable(sampler, tuple(wrappers))


def knobs_for(found: Tunable, base: SamplerKnobs, model: Model) -> SamplerKnobs:
    """The engine's setting as knobs; what a setting does not say (class, seed) is taken from `base`.

    Raises: BadValue where the Sampler Lab has no knob for something in it, naming it.
    """
    sampler = found.sampler
    again = {"restarts": 0}
    if isinstance(sampler, RestartSampler) and len(sampler.active) < 2 and sampler.s_noise == 1:
        again = _again(sampler.active)
        sampler = OdeSampler(sampler.solver, sampler.grid, sampler.path)
    if not isinstance(sampler, OdeSampler):
        raise BadValue(f"the Sampler Lab has no knobs for {type(sampler).__name__}: use its JSON or Python instead.")
    name = next((n for n, cls in SOLVERS.items() if type(sampler.solver) is cls), None)
    if name is None or sampler.path is not None:
        raise BadValue("the Sampler Lab does not know this solver on this path: use its JSON or Python instead.")
    values = {**base.to_dict(), **again, "solver": name}
    values |= {knob: getattr(sampler.solver, field) for knob, field in used_by(name).items()}
    values |= {"guidance": 1.0, "guide": "", "rho_bottom": 1.0, "rho_top": 1.0, "skip_bank": None}
    values |= {knob: SamplerKnobs.param[knob].default for knob in ("guidance_lo", "guidance_hi")}
    for wrapper in found.wrappers:
        if not isinstance(wrapper, Skips | Guidance):
            raise BadValue(f"the Sampler Lab has no knobs for {wrapper.describe()}: use JSON or Python.")
        low, high = wrapper.interval
        if isinstance(wrapper, Skips):
            if (low, high) != (0.0, math.inf):
                raise BadValue(
                    "the Sampler Lab scales skips at every σ, and these act on an interval: use JSON or Python."
                )
            values["skip_bank"] = list(wrapper.scales)
        else:
            most = SamplerKnobs.param.guidance_hi.bounds[1]
            weight = (
                {"guide": wrapper.guide, "guide_weight": wrapper.scale}
                if wrapper.guide
                else {"guidance": wrapper.scale}
            )
            values |= {**weight, "guidance_lo": low, "guidance_hi": min(high, most)}
    return _on_grid(values, base, model, sampler)


def _again(active: tuple[Restart, ...]) -> dict[str, Any]:
    """Knobs of at most one restart interval."""
    if not active:
        return {"restarts": 0}
    (one,) = active
    if one.rho != Restart.rho:
        raise BadValue(
            f"the Sampler Lab's restarts go down with rho {Restart.rho:g}, these with {one.rho:g}: use JSON or Python."
        )
    ends = {"restart_points": one.n_points, "restart_lo": one.sigma_min, "restart_hi": one.sigma_max}
    return {"restarts": one.n_repeats, **ends}


def _on_grid(values: dict[str, Any], base: SamplerKnobs, model: Model, sampler: OdeSampler) -> SamplerKnobs:
    times = sampler.grid.times
    if sampler.grid.coordinate != "sigma" or times[-1] != 0:
        raise BadValue("the Sampler Lab's grids end at σ = 0: use JSON or Python.")
    own = SamplerKnobs.from_dict(values)
    if base.nodes is None:
        own.n_steps = sampler.grid.n_steps
        if own.build(model)[1].grid.times == times:
            return own
        own.n_steps = base.n_steps
    own.nodes = list(times[:-1])
    own.check(model)
    return own


def lab_link(setting: settings.Setting, pinned: settings.Setting | None = None) -> str:
    """Address of the Sampler Lab with this setting, and another one pinned as A."""
    fields = settings.spell(setting)
    if pinned is not None:
        fields |= settings.spell(pinned, "a.", leave=("seed",))
    return "./lab#" + settings.join("lab", fields)


def watched(model: Model, between: Callable[[], None]) -> Model:
    """The same model, tensors shared, that calls `between` before each evaluation; its count of evaluations is its own."""
    seen, inside = copy.copy(model), [False]
    seen._calls = [0]

    def asked(inner: Callable) -> Callable:
        def ask(*args, **more):
            if inside[0]:  # one of these methods asks another
                return inner(*args, **more)
            between()
            inside[0] = True
            try:
                return inner(*args, **more)
            finally:
                inside[0] = False

        return ask

    for name in ASKED:
        if hasattr(type(seen), name):
            setattr(seen, name, asked(getattr(seen, name)))
    return seen
