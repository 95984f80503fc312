"""Time grids in other people's forms: a JSON file, diffusers' schedulers, k-diffusion's sigma tensors.

What diffusers calls `sigmas` is one of two things. In the schedulers for diffusion models it is EDM's sigma, noise / signal, also where
the samples live on the variance-preserving path. In the flow-matching ones (and wherever `use_flow_sigmas` is set) it is the time t of
the linear path. Each `set_timesteps` takes a schedule in its own way:

| scheduler | argument | last value | what it does with it |
| --- | --- | --- | --- |
| Euler | `sigmas=` | included | uses them as they are; shows the network timesteps interpolated in ln sigma |
| FlowMatchEuler, UniPC with flow sigmas | `sigmas=` | 0, left out | shifts them by its `shift`, which is undone here beforehand |
| EDMEuler (karras) | `sigmas=` | 0, left out | takes them for a ramp from 0 to 1 in sigma^(1/rho), not for sigmas |
| Heun | `timesteps=`, real | 0, left out | sigma is linear between the model's noise levels, so that each sigma can be met |
| DPM-Solver++ (both kinds), LCM, TCD, DDPM | `timesteps=`, whole | left out | the grid must be on the model's noise levels: `snap` |

EDMDPMSolverMultistep, DEIS, LMS, KDPM2, FlowMatchHeun, PNDM and DDIM take a number of steps alone; their grids can be read, not set.

Only `make_scheduler` imports diffusers; the rest asks the scheduler it is given for its type and configuration. Checked against diffusers
0.42, by running its schedulers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path as File
from typing import Any

import numpy as np
import torch
from torch import Tensor

from explorer.errors import BadFile, BadValue, MissingExtra, UnknownName
from explorer.process.paths import Linear
from explorer.sampling.grids import TimeGrid

FORMAT, VERSION = "explorer.grid", 1


def save(grid: TimeGrid, file: str | File, about: Mapping[str, Any] | None = None) -> File:
    """The file written: JSON with the times, their coordinate and whatever `about` adds (model, method, cost)."""
    content = {"format": FORMAT, "version": VERSION, **grid.to_dict(), "about": dict(about or {})}
    file = File(file)
    try:
        text = json.dumps(content, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadValue(f"`about` must be plain JSON: {error}") from None
    file.write_text(text + "\n", encoding="utf-8")
    return file


def load(file: str | File) -> TimeGrid:
    """The grid of a JSON file: one that `save` wrote, {"times": [...]}, or a bare list of sigmas.

    Raises:
        BadFile: unreadable, not JSON, of a newer version, or not a grid; BadValue: times that are no grid.
    """
    try:
        content = json.loads(File(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadFile(f"{file} cannot be read as a time grid: {error}") from None
    if isinstance(content, list):
        return TimeGrid.explicit(content)
    if not isinstance(content, dict) or "times" not in content:
        raise BadFile(f'{file} is not a time grid: expected {{"times": [...]}} or a list of sigmas')
    if content.get("format", FORMAT) != FORMAT or content.get("version", VERSION) > VERSION:
        raise BadFile(
            f"{file} is of format {content.get('format')!r}, version {content.get('version')}; this reads {FORMAT!r} up to {VERSION}"
        )
    return TimeGrid.from_dict(content)


def to_k_diffusion(grid: TimeGrid, path=None, *, device=None, dtype: torch.dtype = torch.float32) -> Tensor:
    """The `sigmas` argument of k-diffusion's samplers, (n_steps + 1,): EDM's sigma, a trailing 0 where the grid ends at data.

    Also what ComfyUI passes between nodes as SIGMAS. `path` is needed for a grid in "t".
    Raises: BadValue where the dtype does not tell two nodes apart.
    """
    if grid.coordinate == "t":
        if path is None:
            raise BadValue("a grid in 't' needs the path whose time it is: to_k_diffusion(grid, path)")
        grid = grid.to("sigma", path)
    sigmas = torch.tensor(grid.times, dtype=torch.float64).to(dtype=dtype)
    for i, (a, b) in enumerate(pairwise(sigmas.tolist())):
        if not a > b:
            raise BadValue(
                f"{dtype} does not tell nodes {i} and {i + 1} apart ({a:g}): use torch.float64 or fewer steps"
            )
    return sigmas.to(device=device)


def from_k_diffusion(sigmas: Tensor | Sequence[float], *, dedupe: bool = False) -> TimeGrid:
    """The grid of a k-diffusion sigma tensor (n_steps + 1,)."""
    if isinstance(sigmas, Tensor):
        if sigmas.ndim != 1:
            raise BadValue(f"expected a one-dimensional tensor of sigmas, got shape {tuple(sigmas.shape)}")
        sigmas = sigmas.tolist()
    return TimeGrid.explicit(sigmas, dedupe=dedupe)


BY_SIGMA = ("EulerDiscreteScheduler",)
BY_RAMP = ("EDMEulerScheduler",)
BY_FLOW = ("FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler")
BY_REAL_TIMESTEP = ("HeunDiscreteScheduler",)
BY_TIMESTEP = (
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "LCMScheduler",
    "TCDScheduler",
    "DDPMScheduler",
)
SETTABLE = (*BY_SIGMA, *BY_RAMP, *BY_FLOW, *BY_REAL_TIMESTEP, *BY_TIMESTEP)


def to_diffusers(
    grid: TimeGrid, scheduler: Any, *, mu: float | None = None, snap: bool = False, clip: bool = False
) -> dict[str, Any]:
    """Arguments for `scheduler.set_timesteps(**...)` with which that scheduler walks this grid.

    Args:
        scheduler: a diffusers scheduler; its class and configuration decide the form.
        mu: for flow matching with `use_dynamic_shifting`, the value the pipeline would pass.
        snap: move the nodes to the model's noise levels first, where the scheduler knows no others.
        clip: allow noise beyond the model's levels; the network is then shown its nearest time.
    Raises:
        BadValue: the scheduler cannot walk this grid, and why: it takes none, ends elsewhere, replaces it with its own, or two nodes are
            one timestep to it.
    """
    kind, config = _kind(scheduler, SETTABLE), scheduler.config
    if kind is None:
        raise BadValue(
            f"{type(scheduler).__name__} takes a number of steps, not a schedule; those that take one: {', '.join(SETTABLE)}"
        )
    for flag in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"):
        if getattr(config, flag, False):
            raise BadValue(f"{kind} with {flag}=True replaces any schedule by its own: make the scheduler without it")
    if kind in BY_FLOW:
        return _flow_arguments(grid, scheduler, kind, mu)
    if getattr(config, "use_flow_sigmas", False):
        raise BadValue(
            f"{kind} with use_flow_sigmas=True takes no schedule: use FlowMatchEulerDiscreteScheduler or UniPC"
        )
    sigmas = _sigmas_of(grid)
    if kind in BY_RAMP:
        return _ramp_arguments(sigmas, scheduler)
    levels = model_levels(scheduler)
    if not clip:
        asked = [s for s in sigmas[:-1] if not levels[-1] * (1 - 1e-3) <= s <= levels[0] * (1 + 1e-3)]
        if asked and not snap:
            raise BadValue(
                f"sigma = {asked[0]:.4g} is beyond the model's noise levels, {levels[-1]:.4g} to {levels[0]:.4g}, so the network would be "
                "shown a wrong time: build the grid between them, or pass clip=True"
            )
    if kind in BY_SIGMA:
        return {"sigmas": list(sigmas)}
    if kind in BY_REAL_TIMESTEP:
        _ends_at(sigmas, 0.0, kind)
        return {"timesteps": [_position(s, levels) for s in sigmas[:-1]]}
    final = levels[-1] if getattr(config, "final_sigmas_type", "zero") == "sigma_min" else 0.0
    if not (snap and final and sigmas[-1]):
        _ends_at(sigmas, final, kind)
    return {"timesteps": _timesteps(sigmas[:-1], levels, snap, kind)}


def apply(grid: TimeGrid, scheduler: Any, *, device=None, rtol: float = 1e-4, **options) -> Any:
    """The scheduler itself, set to walk this grid; what it then says of its sigmas is compared with the grid.

    Args: options: as in `to_diffusers`. rtol: relative difference that float32 and rounding may leave (unused with `snap`).
    Raises: BadValue where the scheduler walks another grid than asked, or shows the network one time twice.
    """
    scheduler.set_timesteps(**to_diffusers(grid, scheduler, **options), device=device)
    got = from_diffusers(scheduler)
    want = tuple(grid.on(Linear())) if got.coordinate == "t" else _sigmas_of(grid)
    if len(got.times) != len(want):
        raise BadValue(f"{type(scheduler).__name__} walks {got.n_steps} steps, not the {len(want) - 1} of the grid")
    worst = max(range(len(want)), key=lambda i: abs(got.times[i] - want[i]) / max(want[i], 1e-12))
    if not options.get("snap") and abs(got.times[worst] - want[worst]) > rtol * want[worst]:
        raise BadValue(
            f"{type(scheduler).__name__} walks node {worst} at {got.times[worst]:.6g}, not at {want[worst]:.6g}: the two disagree by more "
            f"than {rtol:g}"
        )
    return scheduler


def from_diffusers(scheduler: Any, *, dedupe: bool = False) -> TimeGrid:
    """The grid a diffusers scheduler walks after its `set_timesteps`: in sigma, or in t of the linear path for flow matching.

    Second-order schedulers list inner nodes twice; here each stands once. Values are float32, as the scheduler has them.
    Args: dedupe: drop a node that repeats the one before it, a step that does nothing.
    Raises: BadValue before `set_timesteps`, or where the scheduler repeats a node; the message names it.
    """
    name, config = type(scheduler).__name__, getattr(scheduler, "config", None)
    counted = getattr(scheduler, "num_inference_steps", None) is not None
    if not counted and not (_kind(scheduler, BY_RAMP) and len(scheduler.sigmas) < config.num_train_timesteps):
        raise BadValue(f"{name} has no grid yet: call its set_timesteps first")
    flow = "FlowMatch" in " ".join(c.__name__ for c in type(scheduler).__mro__)
    flow = flow or bool(getattr(config, "use_flow_sigmas", False))
    if getattr(config, "invert_sigmas", False):
        raise BadValue(f"{name} with invert_sigmas=True runs from data to noise: read it without that flag")
    if isinstance(getattr(scheduler, "sigmas", None), Tensor):
        times = scheduler.sigmas.double().tolist()
    elif hasattr(scheduler, "alphas_cumprod"):
        levels = model_levels(scheduler)[::-1]
        times = [levels[int(t)] for t in scheduler.timesteps] + [0.0]
    else:
        raise BadValue(f"{name} states neither sigmas nor the noise levels of its timesteps")
    return TimeGrid.explicit(times, "t" if flow else "sigma", dedupe=dedupe or getattr(scheduler, "order", 1) == 2)


def model_levels(scheduler: Any) -> list[float]:
    """sigma of each training timestep of a scheduler, from noise to data, as its float32 `alphas_cumprod` has them."""
    product = getattr(scheduler, "alphas_cumprod", None)
    if product is None:
        raise BadValue(f"{type(scheduler).__name__} has no discrete noise levels")
    product = product.double()
    return ((1 - product) / product).sqrt().flip(0).tolist()


SCHEDULERS = {
    "euler": "EulerDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpmpp": "DPMSolverMultistepScheduler",
    "edm-euler": "EDMEulerScheduler",
    "flow-euler": "FlowMatchEulerDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
}


def make_scheduler(name: str, grid: TimeGrid | None = None, *, snap: bool = False, **config) -> Any:
    """A new diffusers scheduler of a short name in `SCHEDULERS`, set to a grid where one is given.

    Raises: UnknownName; MissingExtra where diffusers is not installed; BadValue as `apply`.
    """
    if name not in SCHEDULERS:
        raise UnknownName("diffusers scheduler", name, SCHEDULERS)
    try:
        import diffusers
    except ImportError:
        raise MissingExtra("diffusers", "peers", f"the {name} scheduler") from None
    scheduler = getattr(diffusers, SCHEDULERS[name])(**config)
    return scheduler if grid is None else apply(grid, scheduler, snap=snap)


def _kind(scheduler: Any, names: Sequence[str]) -> str | None:
    """The first of the names among the scheduler's class and its bases."""
    return next((c.__name__ for c in type(scheduler).__mro__ if c.__name__ in names), None)


def _sigmas_of(grid: TimeGrid) -> tuple[float, ...]:
    if grid.coordinate == "t":
        raise BadValue(
            "this scheduler works in sigma, and the grid is in 't': convert it with grid.to('sigma', path) first"
        )
    return grid.times


def _ends_at(sigmas: Sequence[float], final: float, kind: str) -> None:
    if not math.isclose(sigmas[-1], final, rel_tol=1e-3):
        way = "add a last node 0" if final == 0 else f"end at {final:.6g}, or set final_sigmas_type='zero' and end at 0"
        raise BadValue(f"{kind} ends at sigma = {final:.6g} by itself, and the grid at {sigmas[-1]:.6g}: {way}")


def _flow_arguments(grid: TimeGrid, scheduler: Any, kind: str, mu: float | None) -> dict[str, Any]:
    config = scheduler.config
    if kind == "UniPCMultistepScheduler" and not config.use_flow_sigmas:
        raise BadValue(f"{kind} takes a schedule only with use_flow_sigmas=True; otherwise a number of steps")
    for flag in ("shift_terminal", "invert_sigmas"):
        if getattr(config, flag, None):
            raise BadValue(f"{kind} with {flag} set bends any schedule: make the scheduler without it")
    if getattr(config, "use_dynamic_shifting", False):
        if mu is None:
            raise BadValue(
                f"{kind} with use_dynamic_shifting=True needs the mu of the pipeline: to_diffusers(..., mu=...)"
            )
        shift = math.exp(mu) if config.time_shift_type == "exponential" else mu
    else:
        shift = config.flow_shift if kind == "UniPCMultistepScheduler" else scheduler.shift
    times = grid.on(Linear())
    final = times[-2] if getattr(config, "final_sigmas_type", "zero") == "sigma_min" else 0.0
    _ends_at(times, final, kind)
    sigmas = np.array([t / (shift - (shift - 1) * t) for t in times[:-1]])  # a list will not do for UniPC
    out: dict[str, Any] = {"sigmas": sigmas}
    return out | ({"mu": mu} if getattr(config, "use_dynamic_shifting", False) else {})


def _ramp_arguments(sigmas: Sequence[float], scheduler: Any) -> dict[str, Any]:
    config = scheduler.config
    if config.sigma_schedule != "karras":
        raise BadValue(
            "EDMEulerScheduler takes a schedule only with sigma_schedule='karras'; the exponential one ignores it"
        )
    if config.final_sigmas_type != "zero":
        raise BadValue(
            "EDMEulerScheduler with final_sigmas_type='sigma_min' repeats its last sigma, a step that does nothing: use 'zero'"
        )
    _ends_at(sigmas, 0.0, "EDMEulerScheduler")
    low, high = (s ** (1 / config.rho) for s in (config.sigma_min, config.sigma_max))
    ramp = [(high - s ** (1 / config.rho)) / (high - low) for s in sigmas[:-1]]
    return {"sigmas": torch.tensor(ramp, dtype=torch.float64)}


def _position(sigma: float, levels: Sequence[float]) -> float:
    """Fractional training timestep at which the levels, joined by straight lines, have this sigma; clamped to their ends."""
    rising = levels[::-1]
    high = next((i for i, s in enumerate(rising) if s >= sigma), len(rising) - 1)
    if high == 0 or sigma >= rising[-1]:
        return float(high)
    low = high - 1
    return low + (sigma - rising[low]) / (rising[high] - rising[low])


def _timesteps(sigmas: Sequence[float], levels: Sequence[float], snap: bool, kind: str) -> list[int]:
    rising, out = levels[::-1], []
    for i, sigma in enumerate(sigmas):
        t = min(range(len(rising)), key=lambda j, s=sigma: abs(rising[j] - s))
        if not snap and not math.isclose(rising[t], sigma, rel_tol=1e-3):
            raise BadValue(
                f"{kind} knows only the model's {len(rising)} noise levels, and sigma = {sigma:.6g} (node {i}) is none of them (nearest "
                f"{rising[t]:.6g}): pass snap=True, or build the grid with grid.snapped(model_levels(scheduler))"
            )
        if out and t >= out[-1]:
            raise BadValue(
                f"sigma = {sigmas[i - 1]:.6g} and {sigma:.6g} (nodes {i - 1} and {i}) are one timestep, {t}, to {kind}: take fewer "
                "steps, or keep them further apart"
            )
        out.append(t)
    return out
