"""A setting in other people's forms: a Python script, k-diffusion's arguments, a diffusers scheduler's.

What stands around the model travels with the script; the other two know samplers and noise levels only, so a setting with skip factors or
guidance is refused there rather than silently weakened.
"""

from __future__ import annotations

import json
import math
from typing import Any

from explorer.errors import BadValue
from explorer.sampling import interop
from explorer.sampling.chain import ChainSampler
from explorer.sampling.restart import RestartSampler
from explorer.sampling.samplers import OdeSampler
from explorer.sampling.scale_time import ScaleTimeSampler
from explorer.tuning.setting import Guidance, Setting, Skips

K_DIFFUSION = {
    "Euler": "sample_euler",
    "DDIM": "sample_euler",
    "Heun": "sample_heun",
    "DPMpp2M": "sample_dpmpp_2m",
}
"""Our solvers and k-diffusion's functions of the same rule on EDM's path; DDIM is Euler's there."""

DIFFUSERS = {"Euler": "edm-euler", "DDIM": "edm-euler", "Heun": "heun", "DPMpp2M": "dpmpp"}
"""Our solvers and the schedulers of `interop.SCHEDULERS` that walk any grid (dpmpp: one on its model's noise levels)."""

WORDS = {"asked": "levels asked apart from the grid", "layers": "layers left out"}
"""What is said of wrappers whose names say little."""


def to_python(setting: Setting, model: str) -> str:
    """A script that draws with the setting from the model of that name.

    Raises: BadValue for adaptive steps.
    """
    sampler = setting.sampler
    if not isinstance(sampler, OdeSampler | RestartSampler | ScaleTimeSampler | ChainSampler):
        raise BadValue(f"{type(sampler).__name__} has no short form in Python: use its JSON and ex.sampler_from_json")
    lines = ["import explorer as ex", "", f"model = ex.load({json.dumps(model)})"]
    for wrapper in setting.wrappers:
        lines.append(_wrapped(wrapper))
    lines.append(f"sampler = ex.sampler_from_json({json.dumps(sampler.to_json())})")
    return "\n".join([*lines, "x = ex.sample(model, sampler, range(64))", ""])


def _wrapped(wrapper) -> str:
    if not isinstance(wrapper, Skips | Guidance):
        return f"model = ex.tuning.wrapper_from_dict({wrapper.to_dict()!r}).wrap(model)"
    low, high = wrapper.interval
    interval = f"interval=({low!r}, {'float(' + repr('inf') + ')' if math.isinf(high) else repr(high)})"
    if isinstance(wrapper, Skips):
        return f"model = ex.SkipTuned(model, {list(wrapper.scales)!r}, {interval})"
    guide = f", ex.load({json.dumps(wrapper.guide)})" if wrapper.guide else ""
    return f"model = ex.Guided(model, {wrapper.scale!r}{guide}, {interval})"


def to_k_diffusion(setting: Setting) -> dict[str, Any]:
    """{"sampler": name of a function of k_diffusion.sampling, "sigmas": its argument}, as plain JSON.

    Raises: BadValue for wrappers, or a solver that k-diffusion has not.
    """
    name = _counterpart(setting, K_DIFFUSION, "k-diffusion")
    return {
        "sampler": name,
        "sigmas": interop.to_k_diffusion(setting.sampler.grid, setting.sampler.path).double().tolist(),
    }


def to_diffusers(setting: Setting, *, scheduler: str | None = None, snap: bool = False, **config) -> dict[str, Any]:
    """{"scheduler": class, "config": its arguments, "set_timesteps": arguments of that call}, as plain JSON.

    Args:
        scheduler: a short name of `interop.SCHEDULERS`; by default the one with the solver's rule.
        snap: move nodes to the scheduler's noise levels where it knows no others.
        config: for the scheduler's constructor, sigma_data say.
    Raises: BadValue for wrappers, a solver without counterpart, or a grid that the scheduler cannot walk (see `interop.to_diffusers`).
    """
    name = scheduler or _counterpart(setting, DIFFUSERS, "diffusers")
    made = interop.make_scheduler(name, **config)
    given = interop.to_diffusers(setting.sampler.grid, made, snap=snap)
    interop.apply(setting.sampler.grid, made, snap=snap)  # it really walks there, or this raises
    plain = {
        k: v if isinstance(v, int | float) else [float(x) if k == "sigmas" else x for x in v] for k, v in given.items()
    }
    return {"scheduler": interop.SCHEDULERS[name], "config": config, "set_timesteps": plain}


def _counterpart(setting: Setting, table: dict[str, str], where: str) -> str:
    around = [w for w in setting.wrappers if not (isinstance(w, Guidance) and w.scale == 1.0)]
    if around:
        names = ", ".join(WORDS.get(type(w).__name__.lower(), type(w).__name__.lower()) for w in around)
        raise BadValue(
            f"{where} has no place for {names} around the model: export to Python, or tune the schedule alone"
        )
    sampler = setting.sampler
    solver = type(getattr(sampler, "solver", sampler)).__name__
    if not isinstance(sampler, OdeSampler) or solver not in table:
        raise BadValue(f"{where} has no rule that is {solver}'s here; exported are {', '.join(table)} on a grid")
    return table[solver]
