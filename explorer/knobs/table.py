"""What there is to turn, declared once: bounds, step, unit, meaning and source of every knob, and the values it takes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import fields
from functools import lru_cache
from typing import Any

import param

from explorer.errors import BadValue, UnknownName
from explorer.models import bundled
from explorer.sampling import GRIDS, SOLVERS, sampler_from_json

GROUPS = {
    "Solver": ("solver", "n_steps", "order", "variant", "alpha", "own"),
    "Schedule": ("grid", "rho", "sigma_min", "sigma_max", "nodes"),
    "Churn": ("eta", "s_churn", "s_min", "s_max", "s_noise"),
    "Restart": ("restarts", "restart_points", "restart_lo", "restart_hi"),
    "Guidance": ("guidance", "guide", "guide_weight", "guidance_lo", "guidance_hi"),
    "Skip-tuning": ("rho_bottom", "rho_top", "skip_bank"),
    "Layers": ("layers",),
    "Class": ("label",),
}
CHURN = GROUPS["Churn"]
OF_SOLVER = ("order", "variant", "alpha", *CHURN)
"""Knobs that act only with solvers that have the field; `used_by` knows which."""
FIELD_KNOBS = {"order_max": "order", "strength": "eta"}
"""Fields of solvers whose knob has another name."""
GUIDANCE = GROUPS["Guidance"]
GUIDE = ("guide", "guide_weight")
INTERVAL = ("guidance_lo", "guidance_hi")
SPACING = ("n_steps", "grid", "rho", "sigma_min", "sigma_max")
"""Knobs whose place a grid of one's own takes."""
RESTART = GROUPS["Restart"]
SKIPS = GROUPS["Skip-tuning"]
LOGARITHMIC = (*["sigma_min", "sigma_max", "s_min", "s_max", "restart_lo", "restart_hi", "guidance_lo", "guidance_hi"],)
"""Noise levels: their sliders are logarithmic, their unit is sigma."""
TITLES = {
    "n_steps": "steps",
    "alpha": "α",
    "eta": "η",
    "rho": "ρ",
    "sigma_min": "σ min",
    "sigma_max": "σ max",
    "s_churn": "S churn",
    "s_min": "S min",
    "s_max": "S max",
    "s_noise": "S noise",
    "restarts": "times K",
    "restart_points": "levels",
    "restart_lo": "from σ",
    "restart_hi": "up to σ",
    "guidance": "weight w",
    "guide": "guide",
    "guide_weight": "its weight",
    "guidance_lo": "from σ",
    "guidance_hi": "up to σ",
    "rho_bottom": "ρ bottom",
    "rho_top": "ρ top",
    "skip_bank": "per block",
    "own": "own",
    "layers": "left out",
    "nodes": "own σ",
    "label": "class",
}


class Declared(param.Parameterized):
    """Every knob with its default, bounds and meaning; a value outside its bounds raises when it is set."""

    solver = param.Selector(
        default="heun",
        objects=list(SOLVERS),
        doc="How one step is taken. Euler, DDIM and the multistep methods (ab, 2m, 3m, unipc, deis, ipndm) spend one network call per "
        "step, heun, midpoint, alpha2 and the two-stage methods (2s, dpm-solver-2, dpmpp-sde) two, third-order single steps three, "
        "rk4 four; names with sde add fresh noise; jump is how consistency models and one-step generators are sampled, "
        "chord is the rule of rectified flows++. Lu et al. 2022, arXiv 2211.01095; Karras et al. 2022, arXiv 2206.00364.",
    )
    n_steps = param.Integer(
        default=9,
        bounds=(1, 64),
        step=1,
        doc="Solver steps from noise to data. Heun ends with an Euler step, so it costs 2 steps - 1 network calls.",
    )
    order = param.Integer(
        default=3,
        bounds=(1, 4),
        step=1,
        doc="Predictions that a multistep method looks back on: its order, or one less than it for unipc with its corrector. The first "
        "steps use fewer. Zhang & Chen 2022, arXiv 2204.13902; Zhao et al. 2023, arXiv 2302.04867.",
    )
    variant = param.Selector(
        default="default",
        objects=["default", *dict.fromkeys(v for cls in SOLVERS.values() for v in getattr(cls, "variants", ()))],
        doc="Form of a method that has several: bh1, bh2 for unipc; t, rho, log-rho for deis; midpoint, heun for dpmpp-2m-sde; exact, "
        "released for the third-order dpmpp. The method's own page says what they mean; default is its first choice.",
    )
    alpha = param.Number(
        default=2 / 3,
        bounds=(0.1, 1.0),
        step=0.01,
        doc="Where the second slope of the two-stage family is taken: 1 is Heun, 2/3 Ralston, 1/2 the midpoint rule. "
        "Karras et al. 2022, arXiv 2206.00364, Algorithm 3.",
    )
    own = param.String(
        default="",
        doc="A sampler of one's own as JSON (Sampler.to_json), in place of every knob of solver, schedule, churn and restart: what "
        "searches find that those knobs have no words for, such as a bespoke solver. Shaul et al. 2024, arXiv 2310.19075.",
    )
    grid = param.Selector(
        default="karras",
        objects=list(GRIDS),
        doc="How noise levels are spread between σ max and σ min; the last step always goes to σ = 0.",
    )
    rho = param.Number(
        default=7.0,
        bounds=(1.0, 15.0),
        step=0.5,
        doc="Warp of the karras grid: 1 is uniform in σ, larger puts more steps near the data. "
        "Karras et al. 2022, arXiv 2206.00364, Eq. 5 (7 for sampling).",
    )
    sigma_min = param.Number(
        default=0.002,
        bounds=(0.0005, 2.0),
        step=0.001,
        doc="Lowest non-zero noise level of the grid, as σ = noise / signal. Karras et al. 2022, Table 1 (0.002).",
    )
    sigma_max = param.Number(
        default=80.0,
        bounds=(0.5, 160.0),
        step=0.5,
        doc="Noise level at which sampling starts, as σ = noise / signal. Karras et al. 2022, Table 1 (80).",
    )
    nodes = param.List(
        default=None,
        allow_None=True,
        item_type=(int, float),
        doc="A grid of one's own: noise levels σ from the highest to the lowest, one for each step; the last step goes to σ = 0. It takes "
        "the place of steps, grid, ρ, σ min and σ max. Tuned schedules are written so.",
    )
    eta = param.Number(
        default=1.0,
        bounds=(0.0, 2.0),
        step=0.05,
        doc="Fresh noise of the sde solvers, as a share of the reverse SDE's: 0 follows the ODE, 1 is the SDE. "
        "Lu et al. 2022, arXiv 2211.01095, Sec. 5; Song et al. 2021, arXiv 2011.13456.",
    )
    s_churn = param.Number(
        default=20.0,
        bounds=(0.0, 100.0),
        step=1.0,
        doc="How much fresh noise the stochastic sampler adds in total; 0 makes it Heun's method. "
        "Karras et al. 2022, arXiv 2206.00364, Algorithm 2 and Table 5.",
    )
    s_min = param.Number(
        default=0.05,
        bounds=(0.0, 10.0),
        step=0.01,
        doc="Churn acts only above this σ. Karras et al. 2022, Algorithm 2.",
    )
    s_max = param.Number(
        default=50.0,
        bounds=(0.1, 160.0),
        step=0.5,
        doc="Churn acts only below this σ. Karras et al. 2022, Algorithm 2.",
    )
    s_noise = param.Number(
        default=1.0,
        bounds=(0.95, 1.05),
        step=0.001,
        doc="Standard deviation of the added noise; 1 is exact, a little above 1 makes up for detail the network removes (1.003 for "
        "ImageNet-64). Karras et al. 2022, arXiv 2206.00364, Sec. 4.",
    )
    restarts = param.Integer(
        default=0,
        bounds=(0, 30),
        step=1,
        doc="How often the noise is raised again from the interval's lower end to its upper one by one jump, and removed again: K; 0 is "
        "plain sampling. Xu et al. 2023, arXiv 2306.14878, Alg. 1.",
    )
    restart_points = param.Integer(
        default=3,
        bounds=(2, 16),
        step=1,
        doc="Noise levels of each way down, both ends counted, so one step fewer. Xu et al. 2023, Table 3 (3 to 10).",
    )
    restart_lo = param.Number(
        default=0.06,
        bounds=(0.002, 20.0),
        step=0.01,
        doc="Lower end of the restart interval, moved to the nearest noise level of the grid. Xu et al. 2023, Table 3 (0.06 on CIFAR-10).",
    )
    restart_hi = param.Number(
        default=0.3,
        bounds=(0.01, 80.0),
        step=0.01,
        doc="Upper end of the restart interval, to which the noise jumps. Xu et al. 2023, Table 3 (0.3 on CIFAR-10).",
    )
    guidance = param.Number(
        default=1.0,
        bounds=(0.0, 8.0),
        step=0.1,
        doc="Classifier-free guidance: 1 is none, 0 ignores the class, larger trades variety for typical samples "
        "and doubles the network calls where it acts. Ho & Salimans 2022, arXiv 2207.12598.",
    )
    guide = param.String(
        default="",
        doc="A worse model of the same data, smaller or trained less, to move away from, asked for the same class (autoguidance); it may "
        "act together with the weight w. Karras et al. 2024, arXiv 2406.02507.",
    )
    guide_weight = param.Number(
        default=2.0,
        bounds=(0.0, 8.0),
        step=0.05,
        doc="How far to move away from the worse model: 1 is none; the paper's best are 1.7 to 2.5. Karras et al. 2024, Table 1.",
    )
    guidance_lo = param.Number(
        default=0.0,
        bounds=(0.0, 160.0),
        step=0.01,
        doc="Guidance acts only above this σ. Kynkäänniemi et al. 2024, arXiv 2404.07724.",
    )
    guidance_hi = param.Number(
        default=160.0,
        bounds=(0.0, 160.0),
        step=0.01,
        doc="Guidance acts only up to this σ; the largest value is no limit. Kynkäänniemi et al. 2024, arXiv 2404.07724.",
    )
    rho_bottom = param.Number(
        default=1.0,
        bounds=(0.4, 1.2),
        step=0.01,
        doc="Factor on the deepest skip connection; the blocks between go linearly to ρ top. Below 1 sharpens "
        "few-step samples. Ma et al. 2024, arXiv 2402.15170.",
    )
    rho_top = param.Number(
        default=1.0,
        bounds=(0.7, 1.2),
        step=0.01,
        doc="Factor on the highest-resolution skip connection; 1 in the paper's main runs. Ma et al. 2024, arXiv 2402.15170.",
    )
    skip_bank = param.List(
        default=None,
        allow_None=True,
        item_type=(int, float),
        doc="One factor per skip connection, from the deepest to the finest, each 0 to 1.5; takes the place of "
        "ρ bottom and ρ top. Ma et al. 2024, arXiv 2402.15170.",
    )
    layers = param.String(
        default="",
        doc="Blocks of the network that are left out, by noise level: σ, a colon, and the blocks' numbers, levels parted by semicolons "
        "(9.2: 3 14; 0.5: 7). A step leaves out what the level nearest to it does. Li et al. 2023, arXiv 2309.10438.",
    )
    label = param.Integer(
        default=None,
        bounds=(-1, 9999),
        allow_None=True,
        doc="Class to draw. By default every class in turn (class = seed modulo the number of classes); "
        "-1 asks the model without a class.",
    )
    seed = param.Integer(
        default=0,
        bounds=(0, 2**31 - 1),
        doc="First seed: sample k uses the generator of seed + k, whatever the batch size.",
    )

    def __init__(self, **values):
        unknown = set(values) - set(names())
        if unknown:
            raise UnknownName("knob", sorted(unknown)[0], names())
        super().__init__(**{name: checked(name, value) for name, value in values.items()})

    def __setattr__(self, name, value):
        super().__setattr__(name, checked(name, value) if name in names() else value)


def names() -> list[str]:
    """Names of all knobs, in order."""
    return list(_names())


@lru_cache(maxsize=1)
def _names() -> tuple[str, ...]:
    return tuple(name for name in Declared.param if name != "name")


@lru_cache(maxsize=64)
def used_by(solver: str) -> dict[str, str]:
    """Knobs of OF_SOLVER that act with this solver, each with the solver's field it sets."""
    every = {FIELD_KNOBS.get(f.name, f.name): f.name for f in fields(SOLVERS[solver])}
    return {knob: field for knob, field in every.items() if knob in OF_SOLVER}


def clip(name: str, value: float) -> float:
    """The value, or the nearest one within the knob's bounds."""
    low, high = Declared.param[name].bounds
    return float(min(max(value, low), high))


def checked(name: str, value: Any) -> Any:
    """The value as the knob stores it (a number knob always a float, so that equal settings have equal keys).

    Raises BadValue or UnknownName, in one sentence, for a value outside the knob's own range.
    """
    p = Declared.param[name]
    if isinstance(p, param.Selector):
        if value not in p.objects:
            raise UnknownName(name, value, p.objects)
        return value
    if value is None and p.allow_None:
        return None
    if name == "own":
        return _sampler(value)
    if name == "layers":
        return told_layers(levels_left_out(value))
    if isinstance(p, param.String):
        if not isinstance(value, str) or (value and not bundled.known(value)):
            raise UnknownName("guide", value, bundled.names("denoiser"))
        return value
    if name == "skip_bank":
        if not isinstance(value, list | tuple) or not all(_is_number(v) and 0 <= v <= 1.5 for v in value):
            raise BadValue(f"skip_bank must be a list of factors from 0 to 1.5, got {value!r}.")
        return [float(v) for v in value]
    if name == "nodes":
        return _falling(value)
    low, high = p.bounds
    whole = isinstance(p, param.Integer)
    if not _is_number(value) or not low <= value <= high or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise BadValue(f"{name} = {value!r}: expected {kind} from {low:g} to {high:g}.")
    return int(value) if whole else float(value)


def _falling(value: Any) -> list[float] | None:
    listed = list(value) if isinstance(value, list | tuple) else [None]
    most = Declared.param.n_steps.bounds[1]
    if not all(_is_number(v) and v > 0 for v in listed) or len(listed) > most:
        raise BadValue(f"nodes must be a list of at most {most} positive noise levels, got {value!r}.")
    if any(a <= b for a, b in zip(listed[:-1], listed[1:], strict=True)):
        raise BadValue(f"nodes must fall from the highest noise level to the lowest, got {value!r}.")
    return [float(v) for v in listed] or None


def _sampler(value: Any) -> str:
    """The JSON of a sampler in its one form."""
    if not isinstance(value, str):
        raise BadValue(f"own must be the JSON of a sampler, got {value!r}.")
    return sampler_from_json(value).to_json() if value.strip() else ""


def levels_left_out(text: Any) -> tuple[tuple[float, tuple[int, ...]], ...]:
    """What the knob `layers` says, as `LayersLeftOut` takes it: (sigma, numbers of blocks), the highest noise first.

    Raises: BadValue.
    """
    try:
        pairs = [part.split(":") for part in text.split(";") if part.strip()]
        levels = [(float(sigma), tuple(sorted({int(i) for i in blocks.split()}))) for sigma, blocks in pairs]
    except (AttributeError, ValueError):
        raise BadValue(
            f"layers must read like '9.2: 3 14; 0.5: 7', noise levels with numbers of blocks, got {text!r}."
        ) from None
    if any(not 0 < sigma < math.inf for sigma, _ in levels) or any(i < 0 for _, out in levels for i in out):
        raise BadValue(f"layers are left out at positive noise levels, by their numbers from 0, got {text!r}.")
    return tuple(sorted(levels, reverse=True))


def told_layers(levels: Iterable[tuple[float, Iterable[int]]]) -> str:
    """The inverse of `levels_left_out`; empty where no block is left out."""
    levels = [(sigma, tuple(out)) for sigma, out in levels]
    if not any(out for _, out in levels):
        return ""
    return "; ".join(f"{sigma!r}: {' '.join(map(str, out))}".rstrip() for sigma, out in levels)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
