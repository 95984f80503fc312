"""The sampler's knobs together: what they build, which of them act on a model, how they are told and stored."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, Literal

from explorer.errors import BadFile, BadValue, ExplorerError
from explorer.knobs.controls import Control, controls, plain
from explorer.knobs.copied import command, python
from explorer.knobs.guides import able_to_guide, can_guide, guides_for, suits, worse
from explorer.knobs.table import (
    CHURN,
    GUIDANCE,
    GUIDE,
    INTERVAL,
    OF_SOLVER,
    RESTART,
    SKIPS,
    SPACING,
    TITLES,
    Declared,
    checked,
    clip,
    levels_left_out,
    names,
    used_by,
)
from explorer.models.base import FlowMap, Model
from explorer.models.flow_maps import ConsistencyModel
from explorer.models.guidance import MultiGuided
from explorer.models.wrappers import Guided, LayersLeftOut, SkipTuned, skip_schedule
from explorer.sampling import (
    GRIDS,
    SOLVERS,
    OdeSampler,
    Sampler,
    Solver,
    TimeGrid,
    device_of,
    labels_of,
    sampler_from_json,
)
from explorer.sampling.grids import WARPED
from explorer.sampling.restart import Restart, RestartSampler


class SamplerKnobs(Declared):
    """How noise becomes samples, as one flat set of knobs.

    Values outside their bounds raise `BadValue` (unknown names `UnknownName`) when they are set; values that
    contradict each other or the model raise it in `build`.
    """

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
            out["sigma_min"] = clip("sigma_min", low)
            out["sigma_max"] = clip("sigma_max", high)
            if isinstance(model, FlowMap):
                out |= {"solver": "jump", "n_steps": 1}
            out |= {name: checked(name, value) for name, value in model.suggested.items() if name in out}
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
        if self.own:
            said = f"The sampler is one of your own ({self.said_own()}): clear it (own, under Solver) to use this."
            out |= dict.fromkeys((*OWNED, "nodes"), said)
        elif isinstance(model, FlowMap):
            out |= dict.fromkeys(RESTART, f"{_said(model)} is a flow map: there is no way down to take again.")
        elif self._draws_noise:
            out |= dict.fromkeys(
                RESTART, f"{self.solver} adds noise in every step; restarts need a solver without noise."
            )
        elif self.restarts == 0:
            out |= dict.fromkeys(RESTART[1:], "Restarts are off (K = 0).")
        if model.n_classes == 0:
            out |= dict.fromkeys(("guidance", "label"), f"{_said(model)} has no classes.")
        if isinstance(model, FlowMap):
            out |= dict.fromkeys(GUIDANCE, f"{_said(model)} is a flow map; guidance mixes denoisers.")
        else:
            if not self.guide and not guides_for(model):
                out |= dict.fromkeys(GUIDE, f"There is no other model of what {_said(model)} makes.")
            elif not self.guide:
                out["guide_weight"] = "No worse model is chosen."
            if self.guidance == 1 and not self.has_guide:
                out |= dict.fromkeys(INTERVAL, "Guidance is off (weight 1).")
        if model.n_skips == 0:
            out |= dict.fromkeys(SKIPS, f"{_said(model)} has no skip connections.")
        elif self.skip_bank is not None:
            out |= dict.fromkeys(("rho_bottom", "rho_top"), "The bank below sets each block; reset it to use this.")
        if model.n_layers == 0:
            out["layers"] = f"{_said(model)} has no blocks to leave out."
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
        if self.guide and not suits(model, self.guide):
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
            if self.restarts:
                values["restarts"] = 0
                notes.append(f"Restarts are off: {_said(model)} is a flow map.")
        if self.own and isinstance(model, FlowMap) != _jumps(self.own_sampler()):
            values["own"] = ""
            notes.append(f"The sampler of your own is put aside: {_said(model)} cannot be sampled so.")
        if self.layers and (reason := self._layers_problem(model)):
            values["layers"] = ""
            notes.append(f"All layers act again: {reason}")
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
        if self.nodes is None and not self.own and self.sigma_min >= self.sigma_max:
            raise BadValue(f"sigma_min ({self.sigma_min:g}) must be below sigma_max ({self.sigma_max:g}).")
        if isinstance(model, FlowMap):
            if not _jumps(self.own_sampler()) if self.own else self.solver != "jump":
                has = "the sampler of your own" if self.own else self.solver
                raise BadValue(
                    f"{_said(model)} is a flow map and has no ODE for {has} to solve: choose the solver jump."
                )
            if self.guidance != 1 or self.has_guide:
                what = f"guidance {self.guidance:g}" if self.guidance != 1 else f"the guide {self.guide}"
                raise BadValue(f"{what} mixes denoisers, and {_said(model)} is a flow map: leave it out.")
            if self.restarts and not self.own:
                raise BadValue(f"{_said(model)} is a flow map, with no way down to take again: set restarts to 0.")
        known = getattr(SOLVERS[self.solver], "variants", ())
        if not self.own and known and self.variant not in ("default", *known):
            raise BadValue(f"{self.solver} has no variant {self.variant}: choose {', '.join(known)}, or default.")
        if not self.own and "s_min" in used_by(self.solver) and self.s_min > self.s_max:
            raise BadValue(f"s_min ({self.s_min:g}) must not be above s_max ({self.s_max:g}).")
        if self.guidance != 1 and model.n_classes == 0:
            raise BadValue(
                f"guidance {self.guidance:g} needs a class-conditional model, and {_said(model)} has no "
                "classes: set guidance to 1 or choose a conditional model."
            )
        if self.has_guide and not can_guide(model, self.guide):
            fit = ", ".join(able_to_guide(model)) or "none here does"
            raise BadValue(f"{self.guide} cannot guide {_said(model)}: shape and classes must be the same ({fit}).")
        if (self.guidance != 1 or self.has_guide) and self.guidance_lo >= self.guidance_hi:
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
        if self.layers and (reason := self._layers_problem(model)):
            raise BadValue(reason)

    def _layers_problem(self, model: Model) -> str:
        """Why the layers that are left out do not fit the model; "" where they do."""
        try:
            LayersLeftOut(_inner(model), levels_left_out(self.layers))
        except BadValue as error:
            return str(error)
        return ""

    def skip_scales(self, n_skips: int) -> list[float] | None:
        """Factor of each skip connection, deepest first; None when all are 1."""
        line = skip_schedule(n_skips, self.rho_bottom, self.rho_top)
        scales = line if self.skip_bank is None else [float(s) for s in self.skip_bank]
        return None if all(s == 1 for s in scales) else scales

    def build(self, model: Model) -> tuple[Model, Sampler]:
        """The model with skip-tuning, layers left out, then guidance, around it, and the sampler these knobs describe.

        Raises:
            BadValue: values that contradict each other or the model.
        """
        self.check(model)
        scales = self.skip_scales(model.n_skips)
        inner = _inner(model)
        if scales is not None:
            inner = SkipTuned(inner, scales)
        if self.layers:
            inner = LayersLeftOut(inner, levels_left_out(self.layers))
        if inner is not _inner(model):
            model = ConsistencyModel(inner, name=model.name) if isinstance(model, ConsistencyModel) else inner
        guides = [(None, self.guidance)] if self.guidance != 1 else []
        if self.has_guide:
            guides.append((worse(self.guide, device_of(model)), self.guide_weight))
        if len(guides) == 1:
            ((guide, weight),) = guides
            model = Guided(model, weight, guide, self.interval)
        elif guides:
            model = MultiGuided(model, guides, self.interval)
        if self.own:
            return model, self.own_sampler()
        solver, grid = self.built_solver(), self.time_grid()
        return model, RestartSampler(grid, (self.restart,), solver) if self.restarts else OdeSampler(solver, grid)

    @property
    def restart(self) -> Restart:
        """The interval of `restarts`."""
        return Restart(self.restart_points, self.restarts, self.restart_lo, self.restart_hi)

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
        for name in ("own", "layers"):
            if not out[name]:
                del out[name]
        if self.own:
            out = {name: value for name, value in out.items() if name not in (*OWNED, "nodes")}
            return self._around(out)
        for name in OF_SOLVER:
            if name not in used:
                del out[name]
        if self.nodes is not None:
            for name in SPACING:
                del out[name]
        elif self.grid not in WARPED:
            del out["rho"]
        if self.restarts == 0:
            for name in RESTART:
                del out[name]
        return self._around(out)

    def _around(self, out: dict[str, Any]) -> dict[str, Any]:
        """Without what does not act around the model."""
        if self.guidance == 1:
            del out["guidance"]
        if not self.has_guide:
            del out["guide"], out["guide_weight"]
        if self.guidance == 1 and not self.has_guide:
            for name in INTERVAL:
                del out[name]
        if self.skip_bank is not None:
            del out["rho_bottom"], out["rho_top"]
        return out

    def to_dict(self) -> dict[str, Any]:
        return {name: plain(getattr(self, name)) for name in names()}

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
        if self.own:
            parts = [self.said_own()]
        elif self.nodes is not None:
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
        if self.restarts and not self.own:
            parts.append(f"restart {self.restarts} × {self.restart_lo:.3g} to {self.restart_hi:.3g}")
        if self.has_guide:
            parts.append(f"guide {self.guide} {self.guide_weight:.3g}")
        if self.label is not None and self.label >= 0:
            parts.append(f"class {self.label}")
        if self.skip_bank is not None:
            parts.append("skip bank")
        if self.layers:
            parts.append("layers left out")
        return " · ".join(parts).replace("weight w", "w")

    def controls(self, model: Model) -> list[Control]:
        """Every knob but the seed as a `Control`, in the order of GROUPS."""
        return controls(self, model)

    def to_python(self, model_name: str, n: int = 2000) -> str:
        """Script that prints the number on screen: same model, sampler, seeds and batches, hence the same value."""
        return python(self, model_name, n)

    def to_cli(self, model_name: str, n: int = 2000) -> str:
        """Command that prints the number on screen."""
        return command(self, model_name, n)

    @property
    def _draws_noise(self) -> bool:
        """Whether the solver adds noise in its steps; by its defaults where the fields contradict each other, which `check` tells."""
        try:
            return self.built_solver().stochastic
        except ExplorerError:
            return SOLVERS[self.solver]().stochastic

    @property
    def has_guide(self) -> bool:
        """Whether a worse model acts."""
        return bool(self.guide) and self.guide_weight != 1

    @property
    def interval(self) -> tuple[float, float]:
        """Where guidance acts, (low, high) in sigma."""
        high = math.inf if self.guidance_hi >= self.param.guidance_hi.bounds[1] else float(self.guidance_hi)
        return float(self.guidance_lo), high

    def own_sampler(self) -> Sampler | None:
        """The sampler of `own`; None where the other knobs describe one."""
        return sampler_from_json(self.own) if self.own else None

    def said_own(self) -> str:
        """A few words for the sampler of `own`: "scale-time rk2"."""
        about = json.loads(self.own)
        name = about.get("solver", {}).get("name", about["sampler"])
        return name if about["sampler"] == "ode" else f"{about['sampler']} {name}"

    def built_solver(self) -> Solver:
        """The solver with its fields."""
        given = {field: getattr(self, knob) for knob, field in used_by(self.solver).items()}
        return SOLVERS[self.solver](**{field: value for field, value in given.items() if value != "default"})

    def time_grid(self) -> TimeGrid:
        """The grid, ending at sigma = 0."""
        if self.nodes is not None:
            return TimeGrid((*map(float, self.nodes), 0.0))
        warp = (self.rho,) if self.grid in WARPED else ()
        return GRIDS[self.grid](self.n_steps, self.sigma_min, self.sigma_max, *warp)


OWNED = ("solver", *OF_SOLVER, *SPACING, *RESTART)
"""Knobs whose place a sampler of one's own takes, as it takes that of the nodes."""


def _inner(model: Model) -> Model:
    """The denoiser inside a consistency model, or the model itself."""
    return model.inner if isinstance(model, ConsistencyModel) else model


def _jumps(sampler: Sampler | None) -> bool:
    """Whether a flow map can be sampled so."""
    return isinstance(sampler, OdeSampler) and isinstance(sampler.solver, SOLVERS["jump"])


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
