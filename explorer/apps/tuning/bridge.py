"""Between the pages' knobs and the engine's settings, and a model that lets others have their turn."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

from explorer.apps import settings
from explorer.errors import BadValue, ExplorerError
from explorer.knobs import SamplerKnobs, levels_left_out, told_layers, used_by
from explorer.models.base import Model
from explorer.sampling import SOLVERS, OdeSampler, Sampler
from explorer.sampling.restart import Restart, RestartSampler
from explorer.tuning import Guidance, Layers, Skips
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
    if knobs.layers:
        wrappers.append(Layers(levels_left_out(knobs.layers)))
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
    values: dict[str, Any] = {**base.to_dict(), "guidance": 1.0, "guide": "", "own": "", "layers": ""}
    values |= {"rho_bottom": 1.0, "rho_top": 1.0, "skip_bank": None}
    values |= {knob: SamplerKnobs.param[knob].default for knob in ("guidance_lo", "guidance_hi")}
    for wrapper in found.wrappers:
        if isinstance(wrapper, Layers):
            values["layers"] = told_layers(wrapper.levels)
            continue
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
    told = _told(found.sampler)
    try:
        own = SamplerKnobs.from_dict(values | told)
    except (ExplorerError, TypeError):  # no words for it, or a number beyond a knob's range
        own, told = SamplerKnobs.from_dict(values | {"own": found.sampler.to_json()}), None
    if told and base.nodes is None:  # perhaps it is the grid that the other knobs name
        own.nodes, own.n_steps = None, len(told["nodes"])
        try:
            if own.build(model)[1] == found.sampler:
                return own
        except ExplorerError:
            pass
        own.nodes, own.n_steps = told["nodes"], base.n_steps
    own.check(model)
    return own


def _told(sampler: Sampler) -> dict[str, Any] | None:
    """The sampler as knobs, its grid by its nodes; None where the knobs have no words for it."""
    values: dict[str, Any] = {"restarts": 0}
    if isinstance(sampler, RestartSampler) and len(sampler.active) < 2 and sampler.s_noise == 1:
        for one in sampler.active:
            if one.rho != Restart.rho:
                return None
            ends = {"restart_points": one.n_points, "restart_lo": one.sigma_min, "restart_hi": one.sigma_max}
            values = {"restarts": one.n_repeats, **ends}
        sampler = OdeSampler(sampler.solver, sampler.grid, sampler.path)
    if not isinstance(sampler, OdeSampler) or sampler.path is not None:
        return None
    name = next((n for n, cls in SOLVERS.items() if type(sampler.solver) is cls), None)
    times = sampler.grid.times
    if name is None or sampler.grid.coordinate != "sigma" or times[-1] != 0:
        return None
    fields = {knob: getattr(sampler.solver, field) for knob, field in used_by(name).items()}
    return {"solver": name, **fields, **values, "nodes": list(times[:-1])}


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
