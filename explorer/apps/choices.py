"""Solvers and time grids as a picker shows them: by family, with order and cost at the present steps, and what they are."""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

from explorer.errors import ExplorerError
from explorer.knobs import SamplerKnobs
from explorer.models.base import Denoiser
from explorer.sampling import GRIDS, SOLVERS, Solver

FAMILIES = {
    "runge_kutta": "Runge–Kutta",
    "exponential": "Multistep, one call a step",
    "multistep": "Multistep, one call a step",
    "singlestep": "Exponential, several calls a step",
    "adaptive": "Adaptive steps",
    "chord": "For straightened flows",
}
NOISY, OTHER = "With fresh noise", "Other"
EVEN_IN_TIME = "Even in time, down to 0"
LEVELS = "Of noise levels, down to σ min"
TIMES = ("uniform-t", "cosine", "polynomial", "sigmoid", "laplace")


def solvers(knobs: SamplerKnobs, model: Denoiser) -> list[dict[str, str]]:
    """Each solver with its `group`, a `hint` of its order and of its network calls at the present setting, and its `doc`."""
    return [
        {"group": _family(name), "hint": hint, "doc": _about(SOLVERS[name])}
        for name, hint in _promises(knobs.to_json(), model).items()
    ]


def grids() -> list[dict[str, str]]:
    """Each time grid with its `group` and its `doc`."""
    return [
        {"group": EVEN_IN_TIME if name in TIMES else LEVELS, "hint": "", "doc": _about(build)}
        for name, build in GRIDS.items()
    ]


def options(control: Any, knobs: SamplerKnobs, model: Denoiser) -> list[dict[str, str]] | None:
    """What a picker shows beside the names of a choice; None where there is no more than the names."""
    if control.name == "solver":
        return solvers(knobs, model)
    return grids() if control.name == "grid" else None


@lru_cache(maxsize=256)
def _promises(values: str, model: Denoiser) -> dict[str, str]:
    out, tried = {}, SamplerKnobs.from_json(values)
    tried.variant = "default"
    for name, cls in SOLVERS.items():
        try:
            tried.solver = name
            built, sampler = tried.build(model)
            out[name] = f"order {sampler.solver.order} · NFE {sampler.nfe(built)}"
        except (
            ExplorerError,
            AttributeError,
            TypeError,
        ):  # these knobs cannot run, or its cost is known only afterwards
            out[name] = f"{cls.nfe_formula} calls"
    return out


@lru_cache(maxsize=64)
def _family(name: str) -> str:
    cls = SOLVERS[name]
    if _adds_noise(cls):
        return NOISY
    return FAMILIES.get(cls.__module__.rpartition(".")[2], OTHER)


def _adds_noise(cls: type[Solver]) -> bool:
    """Whether it does so as it comes, whatever a knob may turn off."""
    try:
        return bool(cls().stochastic)
    except (TypeError, ExplorerError):
        return cls.stochastic is not False


@lru_cache(maxsize=128)
def _about(thing: Any) -> str:
    """First paragraph of a docstring and its source, on one line each."""
    text = inspect.getdoc(thing) or ""
    first, _, rest = text.partition("\n\n")
    source = next((line.strip() for line in rest.splitlines() if line.strip().startswith("Source:")), "")
    words = " ".join(first.replace("`", "").split())
    return f"{words} {source.removeprefix('Source:').strip()}".strip()
