"""The sampler's knobs, declared once: bounds, step, unit, meaning and source. No widget library is imported.

The dashboard, a notebook's sliders, the command line and a script all read this class; `SamplerKnobs.build` turns its
values into what floors 1 and 2 understand, a wrapped model and a `Sampler`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Literal

import param
import torch

from explorer.errors import BadFile, BadValue, UnknownName
from explorer.models import bundled
from explorer.models.base import FlowMap, Model
from explorer.models.flow_maps import ConsistencyModel
from explorer.models.guidance import MultiGuided
from explorer.models.wrappers import Guided, SkipTuned, skip_schedule
from explorer.sampling import GRIDS, SOLVERS, OdeSampler, Sampler, TimeGrid, device_of, labels_of
from explorer.sampling.grids import WARPED

GROUPS = {
    "Solver": ("solver", "n_steps", "order", "variant", "alpha"),
    "Schedule": ("grid", "rho", "sigma_min", "sigma_max", "nodes"),
    "Churn": ("eta", "s_churn", "s_min", "s_max", "s_noise"),
    "Guidance": ("guidance", "guide", "guide_weight", "guidance_lo", "guidance_hi"),
    "Skip-tuning": ("rho_bottom", "rho_top", "skip_bank"),
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
SKIPS = GROUPS["Skip-tuning"]
LOGARITHMIC = {"sigma_min", "sigma_max", "s_min", "s_max", "guidance_lo", "guidance_hi"}
UNITS = {"sigma_min": "σ", "sigma_max": "σ", "s_min": "σ", "s_max": "σ", "guidance_lo": "σ", "guidance_hi": "σ"}
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
    "guidance": "weight w",
    "guide": "guide",
    "guide_weight": "its weight",
    "guidance_lo": "from σ",
    "guidance_hi": "up to σ",
    "rho_bottom": "ρ bottom",
    "rho_top": "ρ top",
    "skip_bank": "per block",
    "nodes": "own σ",
    "label": "class",
}
FLAGS = {"solver": "--sampler", "n_steps": "--steps"}


@dataclass(frozen=True)
class Control:
    """One knob as a front end needs it: what to draw, where it may go, and why it may be at rest.

    Attributes:
        kind: "choice", "integer", "number", "bank" (a list of numbers, one per named skip connection) or "nodes" (falling noise
            levels; an empty list where the grid is a named one).
        low, high, step: range of a number; None for a choice.
        log: whether a slider should be logarithmic; then 0, where it is in range, is the slider's left end.
        choices: values of a choice; `names` are the words to show for them (or for a bank's bars).
        reason: why the knob cannot act on this model with this solver; "" when it can.
    """

    name: str
    title: str
    group: str
    kind: str
    value: Any
    default: Any
    doc: str
    low: float | None = None
    high: float | None = None
    step: float | None = None
    log: bool = False
    unit: str = ""
    choices: tuple = ()
    names: tuple[str, ...] = ()
    reason: str = ""


class SamplerKnobs(param.Parameterized):
    """How noise becomes samples, as one flat set of knobs.

    Values outside their bounds raise `BadValue` (unknown names `UnknownName`) when they are set; values that
    contradict each other or the model raise it in `build`.
    """

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
        super().__init__(**{name: _checked(name, value) for name, value in values.items()})

    def __setattr__(self, name, value):
        super().__setattr__(name, _checked(name, value) if name in names() else value)

    @classmethod
    def for_model(cls, model: Model, **values) -> SamplerKnobs:
        """Knobs whose noise range is the one the model was made for; `values` override."""
        return cls(**{**cls.defaults(model), **values})

    @classmethod
    def defaults(cls, model: Model | None = None) -> dict[str, Any]:
        """Default of every knob; with a model, what its makers suggest, and else sigma_min and sigma_max are the ends of its range."""
        out = {name: cls.param[name].default for name in names()}
        if model is not None:
            low, high = model.sigma_range
            out["sigma_min"] = _clip("sigma_min", low)
            out["sigma_max"] = _clip("sigma_max", high)
            if isinstance(model, FlowMap):
                out |= {"solver": "jump", "n_steps": 1}
            out |= {name: _checked(name, value) for name, value in model.suggested.items() if name in out}
        return out

    def inapplicable(self, model: Model) -> dict[str, str]:
        """Reason, per knob, why it cannot act on this model with the present solver and grid; empty when all can."""
        out = {}
        used = used_by(self.solver)
        out |= {knob: _without(knob, self.solver) for knob in OF_SOLVER if knob not in used}
        if isinstance(model, FlowMap):
            out["solver"] = f"{_said(model)} jumps along its paths and solves no equation: only jump applies."
        if self.nodes is not None:
            out |= dict.fromkeys(SPACING, "The grid is one of your own (own σ); reset it to use this.")
        elif self.grid not in WARPED:
            out["rho"] = f"The {self.grid} grid has no warp; choose {' or '.join(sorted(WARPED))}."
        if model.n_classes == 0:
            out |= dict.fromkeys(("guidance", "label"), f"{_said(model)} has no classes.")
        if isinstance(model, FlowMap):
            out |= dict.fromkeys(GUIDANCE, f"{_said(model)} is a flow map; guidance mixes denoisers.")
        else:
            if not self.guide and not guides_for(model):
                out |= dict.fromkeys(GUIDE, f"There is no other model of what {_said(model)} makes.")
            elif not self.guide:
                out["guide_weight"] = "No worse model is chosen."
            if self.guidance == 1 and not self._guided:
                out |= dict.fromkeys(INTERVAL, "Guidance is off (weight 1).")
        if model.n_skips == 0:
            out |= dict.fromkeys(SKIPS, f"{_said(model)} has no skip connections.")
        elif self.skip_bank is not None:
            out |= dict.fromkeys(("rho_bottom", "rho_top"), "The bank below sets each block; reset it to use this.")
        return out

    def fitted(self, model: Model) -> tuple[SamplerKnobs, list[str]]:
        """Copy that can run on `model`, and one sentence for each knob that had to go back to its default."""
        values, notes = self.to_dict(), []
        if model.n_classes == 0 and (self.guidance != 1 or self.label not in (None, -1)):
            values |= {"guidance": 1.0, "label": None}
            notes.append(f"Guidance and class are off: {model.name} has no classes.")
        elif self.label is not None and self.label >= model.n_classes:
            values["label"] = None
            notes.append(f"Class {self.label} does not exist in {model.name}: drawing every class in turn.")
        if self.guide and self.guide not in guides_for(model):
            values["guide"] = ""
            notes.append(f"The worse model is left out: {self.guide} cannot guide {_said(model)}.")
        if isinstance(model, FlowMap):
            if self.solver != "jump":
                own = self.defaults(model)
                values |= {name: own[name] for name in ("solver", "n_steps", "sigma_min")}
                notes.append(f"{_said(model)} jumps to the data: its own sampler takes the solver's place.")
            if self.guidance != 1:
                values["guidance"] = 1.0
                notes.append(f"Guidance is off: {_said(model)} is a flow map.")
        low, high = model.sigma_range
        if self.nodes is not None and not low * (1 - 1e-6) <= self.nodes[-1] <= self.nodes[0] <= high * (1 + 1e-6):
            values["nodes"] = None
            notes.append(f"The grid of your own is reset: {_said(model)} knows σ from {low:.3g} to {high:.3g}.")
        if model.n_skips == 0 and self.skip_scales(2) is not None:
            values |= {"rho_bottom": 1.0, "rho_top": 1.0, "skip_bank": None}
            notes.append(f"Skip-tuning is off: {model.name} has no skip connections.")
        elif self.skip_bank is not None and len(self.skip_bank) != model.n_skips:
            values["skip_bank"] = None
            notes.append(f"The skip bank is reset: {model.name} has {model.n_skips} skip connections.")
        return type(self)(**values), notes

    def check(self, model: Model) -> None:
        """Raises BadValue, in one sentence, where the values contradict each other or the model."""
        if self.nodes is None and self.sigma_min >= self.sigma_max:
            raise BadValue(f"sigma_min ({self.sigma_min:g}) must be below sigma_max ({self.sigma_max:g}).")
        if isinstance(model, FlowMap):
            if self.solver != "jump":
                raise BadValue(
                    f"{_said(model)} is a flow map and has no ODE for {self.solver} to solve: choose the solver jump."
                )
            if self.guidance != 1 or self._guided:
                what = f"guidance {self.guidance:g}" if self.guidance != 1 else f"the guide {self.guide}"
                raise BadValue(f"{what} mixes denoisers, and {_said(model)} is a flow map: leave it out.")
        known = getattr(SOLVERS[self.solver], "variants", ())
        if known and self.variant not in ("default", *known):
            raise BadValue(f"{self.solver} has no variant {self.variant}: choose {', '.join(known)}, or default.")
        if "s_min" in used_by(self.solver) and self.s_min > self.s_max:
            raise BadValue(f"s_min ({self.s_min:g}) must not be above s_max ({self.s_max:g}).")
        if self.guidance != 1 and model.n_classes == 0:
            raise BadValue(
                f"guidance {self.guidance:g} needs a class-conditional model, and {_said(model)} has no "
                "classes: set guidance to 1 or choose a conditional model."
            )
        if self._guided and self.guide not in guides_for(model):
            fit = ", ".join(guides_for(model)) or "none here does"
            raise BadValue(f"{self.guide} cannot guide {_said(model)}: shape and classes must be the same ({fit}).")
        if (self.guidance != 1 or self._guided) and self.guidance_lo >= self.guidance_hi:
            raise BadValue(f"guidance_lo ({self.guidance_lo:g}) must be below guidance_hi ({self.guidance_hi:g}).")
        if self.label is not None and self.label >= 0 and self.label >= model.n_classes:
            has = f"classes 0 to {model.n_classes - 1}" if model.n_classes else "no classes"
            raise BadValue(f"class {self.label} cannot be drawn: {_said(model)} has {has}.")
        if self.label == -1 and self.guidance != 1:
            raise BadValue(f"guidance {self.guidance:g} needs a class to follow: choose one, or every class in turn.")
        if self.skip_scales(2) is not None and model.n_skips == 0:
            raise BadValue(
                f"skip-tuning needs a network with skip connections, and {_said(model)} has none: "
                "set rho_bottom and rho_top to 1 or choose a U-Net."
            )
        if self.skip_bank is not None and len(self.skip_bank) != model.n_skips:
            raise BadValue(
                f"skip_bank has {len(self.skip_bank)} factors, {_said(model)} has {model.n_skips} skip connections."
            )

    def skip_scales(self, n_skips: int) -> list[float] | None:
        """Factor of each skip connection, deepest first; None when all are 1."""
        line = skip_schedule(n_skips, self.rho_bottom, self.rho_top)
        scales = line if self.skip_bank is None else [float(s) for s in self.skip_bank]
        return None if all(s == 1 for s in scales) else scales

    def build(self, model: Model) -> tuple[Model, Sampler]:
        """The model with skip-tuning, then guidance, around it, and the sampler these knobs describe.

        Raises:
            BadValue: values that contradict each other or the model.
        """
        self.check(model)
        scales = self.skip_scales(model.n_skips)
        if scales is not None:
            inner = model.inner if isinstance(model, ConsistencyModel) else model
            tuned = SkipTuned(inner, scales)
            model = tuned if inner is model else ConsistencyModel(tuned, name=model.name)
        guides = [(None, self.guidance)] if self.guidance != 1 else []
        if self._guided:
            guides.append((_worse(self.guide, device_of(model)), self.guide_weight))
        if len(guides) == 1:
            ((guide, weight),) = guides
            model = Guided(model, weight, guide, self._interval())
        elif guides:
            model = MultiGuided(model, guides, self._interval())
        return model, OdeSampler(self._solver(), self._grid())

    @property
    def labels(self) -> Literal["balanced"] | int | None:
        """`label` as the samplers' `labels` argument: "balanced", one class, or None for no class."""
        return labels_of(self.label)

    def key(self) -> str:
        """Short hash of what acts: knobs the solver or grid ignores do not enter."""
        return hashlib.sha256(json.dumps(self.active(), sort_keys=True).encode()).hexdigest()[:16]

    def active(self) -> dict[str, Any]:
        """Values that have an effect with the present solver and grid, whatever the model."""
        out, used = self.to_dict(), used_by(self.solver)
        for name in OF_SOLVER:
            if name not in used:
                del out[name]
        if self.nodes is not None:
            for name in SPACING:
                del out[name]
        elif self.grid not in WARPED:
            del out["rho"]
        if self.guidance == 1:
            del out["guidance"]
        if not self._guided:
            del out["guide"], out["guide_weight"]
        if self.guidance == 1 and not self._guided:
            for name in INTERVAL:
                del out[name]
        if self.skip_bank is not None:
            del out["rho_bottom"], out["rho_top"]
        return out

    def to_dict(self) -> dict[str, Any]:
        return {name: _plain(getattr(self, name)) for name in names()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SamplerKnobs:
        """Knobs from a mapping; missing ones take their default, unknown ones raise UnknownName."""
        return cls(**dict(values))

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> SamplerKnobs:
        try:
            values = json.loads(text)
        except ValueError as error:
            raise BadFile(f"not JSON: {error}") from None
        if not isinstance(values, dict):
            raise BadFile(f"expected a JSON object of knobs, got {type(values).__name__}.")
        return cls.from_dict(values)

    def changed(self, other: Mapping[str, Any]) -> dict[str, Any]:
        """Knobs that differ from `other` (a dict as `to_dict` or `defaults` gives)."""
        return {name: value for name, value in self.to_dict().items() if value != other.get(name)}

    def describe(self, model: Model | None = None) -> str:
        """Short name of this setting for a history row, e.g. "heun 9 · ρ 5 · w 2"."""
        base = self.defaults(model)
        active = self.active()
        parts = [f"{self.solver} {self.n_steps if self.nodes is None else len(self.nodes)}"]
        if self.nodes is not None:
            parts.append("own σ")
        elif self.grid != base["grid"]:
            parts.append(self.grid)
        if "variant" in active and active["variant"] != base["variant"]:
            parts.append(active["variant"])
        for name in (
            "order",
            "rho",
            "alpha",
            "sigma_min",
            "sigma_max",
            *CHURN,
            "guidance",
            *INTERVAL,
            "rho_bottom",
            "rho_top",
        ):
            if name in active and active[name] != base[name]:
                parts.append(f"{TITLES.get(name, name)} {active[name]:.3g}")
        if self._guided:
            parts.append(f"guide {self.guide} {self.guide_weight:.3g}")
        if self.label is not None and self.label >= 0:
            parts.append(f"class {self.label}")
        if self.skip_bank is not None:
            parts.append("skip bank")
        return " · ".join(parts).replace("weight w", "w")

    def controls(self, model: Model) -> list[Control]:
        """Every knob but the seed as a `Control`, in the order of GROUPS."""
        reasons, defaults, out = self.inapplicable(model), self.defaults(model), []
        for group, members in GROUPS.items():
            for name in members:
                p, value = self.param[name], _plain(getattr(self, name))
                common = dict(
                    name=name,
                    title=TITLES.get(name, name),
                    group=group,
                    value=value,
                    default=defaults[name],
                    doc=p.doc,
                    reason=reasons.get(name, ""),
                )
                if isinstance(p, param.Selector):
                    out.append(Control(kind="choice", choices=tuple(p.objects), names=tuple(p.objects), **common))
                elif name == "label":
                    classes = tuple(range(model.n_classes))
                    words = ("every class in turn", "no class", *(str(c) for c in classes))
                    out.append(Control(kind="choice", choices=(None, -1, *classes), names=words, **common))
                elif name == "guide":
                    others = tuple(dict.fromkeys((*guides_for(model), *filter(None, (value,)))))
                    out.append(Control(kind="choice", choices=("", *others), names=("none", *others), **common))
                elif name == "nodes":
                    out.append(Control(kind="nodes", unit="σ", **{**common, "value": value or []}))
                elif name == "skip_bank":
                    blocks = tuple(getattr(getattr(model, "net", None), "skip_names", ())) or tuple(
                        f"block {i}" for i in range(model.n_skips)
                    )
                    common["value"] = value or self.skip_scales(model.n_skips) or [1.0] * model.n_skips
                    out.append(Control(kind="bank", low=0.0, high=1.5, step=0.05, names=blocks, **common))
                else:
                    low, high = p.bounds
                    kind = "integer" if isinstance(p, param.Integer) else "number"
                    log, unit = name in LOGARITHMIC, UNITS.get(name, "")
                    out.append(Control(kind=kind, low=low, high=high, step=p.step, log=log, unit=unit, **common))
        return out

    def to_python(self, model_name: str, n: int = 2000) -> str:
        """Script that prints the number on screen: same model, sampler, seeds and batches, hence the same value."""
        lines = ["import explorer as ex", "", f'model = ex.load("{model_name}")']
        if self.skip_scales(2) is not None:
            ends = f"rho_bottom={self.rho_bottom!r}, rho_top={self.rho_top!r}"
            scales = ends if self.skip_bank is None else repr([float(s) for s in self.skip_bank])
            lines.append(f"model = ex.SkipTuned(model, {scales})")
        low, high = self._interval()
        interval = f"interval=({low!r}, " + ('float("inf"))' if math.isinf(high) else f"{high!r})")
        worse = f'ex.load("{self.guide}")'
        if self.guidance != 1 and self._guided:
            both = f"[(None, {self.guidance!r}), ({worse}, {self.guide_weight!r})]"
            lines.append(f"model = ex.MultiGuided(model, {both}, {interval})")
        elif self._guided:
            lines.append(f"model = ex.Guided(model, {self.guide_weight!r}, {worse}, {interval})")
        elif self.guidance != 1:
            lines.append(f"model = ex.Guided(model, {self.guidance!r}, {interval})")
        if self.nodes is not None:
            lines.append(f"grid = ex.TimeGrid({tuple(self._grid().times)!r})")
        else:
            warp = f", rho={self.rho!r}" if self.grid in WARPED else ""
            ends = f"{self.n_steps}, {self.sigma_min!r}, {self.sigma_max!r}{warp}"
            lines.append(f"grid = ex.TimeGrid.{GRIDS[self.grid].__name__}({ends})")
        lines.append(f"sampler = ex.OdeSampler(ex.{self._solver()!r}, grid)")
        label = "" if self.label is None else f", label={self.label}"
        lines += [
            f"for live in ex.quality(model, sampler, ex.metric_for(model), n={n}, start_seed={self.seed}{label}):",
            '    print(live.estimate, f" {live.nfe} NFE, {live.seconds:.1f} s")',
        ]
        return "\n".join(lines) + "\n"

    def to_cli(self, model_name: str, n: int = 2000) -> str:
        """Command that prints the number on screen."""
        parts = ["explorer", "eval", model_name]
        for name, value in self.active().items():
            if name in ("solver", "n_steps", "sigma_min", "sigma_max", "seed") or value != self.param[name].default:
                text = ",".join(map(_short, value)) if isinstance(value, list) else _short(value)
                parts += [FLAGS.get(name, "--" + name.replace("_", "-")), text]
        return " ".join([*parts, "--n", str(n)])

    @property
    def _guided(self) -> bool:
        """Whether a worse model acts."""
        return bool(self.guide) and self.guide_weight != 1

    def _interval(self) -> tuple[float, float]:
        high = math.inf if self.guidance_hi >= self.param.guidance_hi.bounds[1] else float(self.guidance_hi)
        return float(self.guidance_lo), high

    def _solver(self):
        given = {field: getattr(self, knob) for knob, field in used_by(self.solver).items()}
        return SOLVERS[self.solver](**{field: value for field, value in given.items() if value != "default"})

    def _grid(self) -> TimeGrid:
        if self.nodes is not None:
            return TimeGrid((*map(float, self.nodes), 0.0))
        warp = (self.rho,) if self.grid in WARPED else ()
        return GRIDS[self.grid](self.n_steps, self.sigma_min, self.sigma_max, *warp)


@lru_cache(maxsize=64)
def used_by(solver: str) -> dict[str, str]:
    """Knobs of OF_SOLVER that act with this solver, each with the solver's field it sets."""
    every = {FIELD_KNOBS.get(f.name, f.name): f.name for f in fields(SOLVERS[solver])}
    return {knob: field for knob, field in every.items() if knob in OF_SOLVER}


def guides_for(model: Model) -> tuple[str, ...]:
    """Names of the bundled and kept denoisers that can guide this one: the same shape, and the same classes or none."""
    return (
        () if isinstance(model, FlowMap) else _guides(tuple(model.shape), model.n_classes, model.name, bundled.stamp())
    )


@lru_cache(maxsize=64)
def _guides(shape: tuple[int, ...], n_classes: int, name: str, stamp: tuple) -> tuple[str, ...]:
    cards = {other: bundled.card(other) for other in bundled.names("denoiser") if other != name}
    alike = {other: card for other, card in cards.items() if tuple(card.get("shape", ())) == shape}
    return tuple(other for other, card in alike.items() if card.get("n_classes", 0) in (0, n_classes))


@lru_cache(maxsize=4)
def _worse(name: str, device: torch.device) -> Model:
    return bundled.load(name, device)


def _said(model: Model) -> str:
    return model.name or "This model"


def _without(knob: str, solver: str) -> str:
    """Why a knob does nothing with a solver that lacks its field."""
    having = [name for name in SOLVERS if knob in used_by(name)]
    lacks = {
        "order": "has one order",
        "variant": "has one form",
        "alpha": "has no free stage",
        "eta": "takes no share of noise",
    }
    return f"{solver} {lacks.get(knob, 'adds no noise of this kind')}; choose {', '.join(having)}."


def names() -> list[str]:
    """Names of all knobs, in order."""
    return list(_names())


@lru_cache(maxsize=1)
def _names() -> tuple[str, ...]:
    return tuple(name for name in SamplerKnobs.param if name != "name")


def _clip(name: str, value: float) -> float:
    low, high = SamplerKnobs.param[name].bounds
    return float(min(max(value, low), high))


def _checked(name: str, value: Any) -> Any:
    """The value as the knob stores it (a number knob always a float, so that equal settings have equal keys).

    Raises BadValue or UnknownName, in one sentence, for a value outside the knob's own range.
    """
    p = SamplerKnobs.param[name]
    if isinstance(p, param.Selector):
        if value not in p.objects:
            raise UnknownName(name, value, p.objects)
        return value
    if value is None and p.allow_None:
        return None
    if isinstance(p, param.String):
        if not isinstance(value, str) or (value and value not in bundled.names("denoiser")):
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
    most = SamplerKnobs.param.n_steps.bounds[1]
    if not all(_is_number(v) and v > 0 for v in listed) or len(listed) > most:
        raise BadValue(f"nodes must be a list of at most {most} positive noise levels, got {value!r}.")
    if any(a <= b for a, b in zip(listed[:-1], listed[1:], strict=True)):
        raise BadValue(f"nodes must fall from the highest noise level to the lowest, got {value!r}.")
    return [float(v) for v in listed] or None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _plain(value: Any) -> Any:
    return [float(v) for v in value] if isinstance(value, list) else value


def _short(value: Any) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)
