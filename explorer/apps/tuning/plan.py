"""What can be asked of a search: a setting to start from, what may change, what is lowered, by which method, for how long."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from explorer import tuning
from explorer.apps import catalogue, settings
from explorer.apps.tuning.bridge import tunable
from explorer.errors import BadValue, ExplorerError, UnknownName
from explorer.knobs import SamplerKnobs
from explorer.models.base import FlowMap, Model
from explorer.papers.autodiffusion import sized
from explorer.papers.bespoke import Bespoke
from explorer.sampling import SOLVERS, OdeSampler, TimeGrid
from explorer.sampling.solvers import Heun
from explorer.tuning.genome import LEFT_OUT, enough_for_layers, genome_of

GRADIENTS = 300
"""Steps of Adam of a search by gradient, its proposals spread over them."""
BESPOKE = 400
"""Those of a bespoke solver's."""
FIRST_SEED = 1_000_000_000
"""Searches draw from here on, ten million seeds apart, as those of `explorer tune`; reports from 0."""
N_CHOICES = (32, 64, 128, 256, 512, 1000, 2000)
TRUTHS: OrderedDict[str, tuning.Solution] = OrderedDict()
"""Fine solutions that were solved lately, by what they depend on: searches, maps and the grid editor share them."""
MOST_TRUTHS = 24


@dataclass(frozen=True)
class Offer:
    """One choice of a picker, and why it cannot be taken now; "" where it can."""

    name: str
    title: str
    doc: str
    reason: str = ""


WHATS = {
    "schedule": ("schedule", "The noise levels of the steps, each anywhere; solver and number of steps stay."),
    "solver": (
        "solver × grid",
        "Other solvers at the same cost: every deterministic one on every kind of grid, or one learnt for this model.",
    ),
    "skip-line": (
        "skips, two ends",
        "Skip factors on a line over depth: the paper's two numbers. Ma et al. 2024, arXiv 2402.15170.",
    ),
    "skip": ("skips, each", "One factor for each skip connection. Ma et al. 2024, arXiv 2402.15170."),
    "layers": (
        "layers left out",
        "Steps, and the blocks of the network that each leaves out, so that what is left out pays for more steps.",
    ),
    "guidance": (
        "guidance",
        "Weight and interval of guidance at the same cost, by the class or by the guide that the baseline names. Kynkäänniemi et al. "
        "2024, arXiv 2404.07724; Karras et al. 2024, arXiv 2406.02507.",
    ),
    "restart": ("restart", "One restart interval, paid for with steps. Xu et al. 2023, arXiv 2306.14878."),
    "joint": (
        "all together",
        "Solver, Karras grid, skips and guidance together at the same cost, or over several costs (nsga2).",
    ),
}
METHODS = {
    "chain": (
        "program, then coordinates",
        "Where there is one, the dynamic program's grid first; then one number after the other.",
    ),
    "coordinate": (
        "coordinates",
        "Each number up and down by a step as long as that helps; the step halved when nothing does.",
    ),
    "cma": ("CMA-ES", "Evolution with a learnt covariance. Hansen 2016, arXiv 1604.00772."),
    "tpe": ("TPE (Optuna)", "Density ratios of good and bad trials. Bergstra et al. 2011."),
    "nsga2": ("NSGA-II, a front", "Quality and cost together. Deb et al. 2002; the number of steps is searched too."),
    "dp": (
        "dynamic program",
        "The grid of least summed Euler error along a recorded run. Chen et al. 2024, arXiv 2405.11326.",
    ),
    "gradient": (
        "gradient",
        "The levels moved by gradient through the solver, toward the fine solution's ends. Tong et al. 2024, arXiv 2405.15506.",
    ),
    "ays": (
        "Align Your Steps",
        "The grid of the least bound of the KL divergence along a recorded run. Sabour et al. 2024, arXiv 2404.14507.",
    ),
    "bespoke": (
        "bespoke, learnt",
        "A solver of two evaluations a step whose time and scale are learnt for this model. Shaul et al. 2024, arXiv 2310.19075.",
    ),
    "autodiffusion": (
        "evolution (AutoDiffusion)",
        "Ten generations bred from the best so far; in a search of layers the later ones leave some out. Li et al. 2023, arXiv 2309.10438.",
    ),
    "decoupled": (
        "gradient, times apart",
        "As gradient, and the levels at which the network is asked are learnt too. Tong et al. 2024, arXiv 2405.15506.",
    ),
    "halving": ("halving", "Many settings on few samples, the better part of them on more. Jamieson & Talwalkar 2016."),
    "list": ("one by one", "Each of them, on all samples."),
}
SUITED = {
    "schedule": ("chain", "coordinate", "cma", "tpe", "dp", "ays", "gradient", "decoupled", "autodiffusion"),
    "solver": ("list", "halving", "bespoke"),
    "skip-line": ("coordinate", "cma", "tpe"),
    "skip": ("coordinate", "cma", "tpe", "halving"),
    "layers": ("autodiffusion",),
    "guidance": ("coordinate", "cma", "tpe"),
    "restart": ("tpe", "cma", "halving"),
    "joint": ("chain", "halving", "tpe", "cma", "nsga2"),
}
OBJECTIVES = {
    "truncation": (
        "distance to the fine solution",
        "Root mean square distance of end points from those of many Heun steps, same noise.",
    ),
    "metric": ("distance to the data", "The Sampler Lab's number, on the same noise for every trial."),
    "local": (
        "sum of local errors",
        "How far each step misses the exact one from its own start, summed over the steps.",
    ),
}


@dataclass(frozen=True)
class Plan:
    """What is asked. Immutable; `checked` says whether it can be done.

    Attributes:
        start: model and knobs of the baseline.
        n: samples of each trial; trials, minutes: where the search ends; seed: of its draws and of its noise.
        first: trials that it was to have when it began, where it has been given more since; 0 is `trials`.
    """

    start: settings.Setting
    what: str = "schedule"
    objective: str = "truncation"
    method: str = "chain"
    n: int = 64
    trials: int = 60
    minutes: float | None = None
    seed: int = 0
    first: int = 0

    @classmethod
    def of(cls, model: str, knobs: SamplerKnobs | None = None) -> Plan:
        """The plan a page opens with for a model."""
        knobs = knobs or opening(model)
        plan = cls(settings.Setting.of(model, knobs))
        return plan.fitted()

    @property
    def model(self) -> str:
        return self.start.model

    @property
    def knobs(self) -> SamplerKnobs:
        return self.start.knobs

    @property
    def size(self) -> int:
        """Trials that its tuner is made for: given more of them, it goes on as it began."""
        return self.first or self.trials

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "start": self.start.to_dict()}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Plan:
        """Raises ExplorerError, KeyError or TypeError for anything that `to_dict` did not write."""
        return cls(**{**given, "start": settings.Setting.from_dict(given["start"])}).checked()

    def checked(self) -> Plan:
        """Itself.

        Raises: UnknownName or BadValue where a name or number cannot be; what contradicts the model is found by `study`.
        """
        for kind, given, valid in (
            ("thing to tune", self.what, WHATS),
            ("objective", self.objective, OBJECTIVES),
            (f"method for {self.what}", self.method, SUITED.get(self.what, ())),
        ):
            if given not in valid:
                raise UnknownName(kind, given, valid)
        if self.n not in N_CHOICES:
            raise BadValue(f"n = {self.n}: choose one of {', '.join(map(str, N_CHOICES))}.")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 1000:
            raise BadValue(f"seed = {self.seed!r}: expected a whole number from 0 to 999.")
        tuning.Budget(trials=self.trials, minutes=self.minutes)
        return self

    def fitted(self) -> Plan:
        """With the first choice wherever the present one cannot be taken for this model and setting."""
        plan = self
        for name, offers in (("what", whats), ("objective", objectives), ("method", methods)):
            offered = offers(plan)
            free = [o.name for o in offered if not o.reason]
            free = free or ([] if getattr(plan, name) in [o.name for o in offered] else [offered[0].name])
            if getattr(plan, name) not in free and free:
                plan = replace(plan, **{name: free[0]})
                if name == "objective":
                    plan = replace(plan, n=suggested_n(plan))
        return plan

    def nfe(self) -> int | None:
        return tunable(self.knobs, catalogue.model(self.model)).nfe(catalogue.model(self.model))

    def goal(self, model: Model, n: int | None = None) -> tuning.Objective:
        """What is lowered, on the search's own noise.

        Raises: BadValue where it has no meaning for this model, or n is too small for it.
        """
        begin = FIRST_SEED + 10_000_000 * self.seed
        seeds, labels = range(begin, begin + (n or self.n)), self.knobs.labels
        if self.objective == "truncation":
            around = tunable(self.knobs, model).wrappers if self.what in ("schedule", "solver", "layers") else ()
            if self.what == "layers":
                around = tuple(w for w in around if not isinstance(w, tuning.Layers))
            ends = catalogue.defaults(self.model)
            grid = TimeGrid.karras(self.n_reference, ends["sigma_min"], ends["sigma_max"])
            fine = OdeSampler(Heun(), grid)
            wrapped = tuning.Setting(fine, around).on(model)[0]
            goal = tuning.TruncationError(wrapped, seeds, labels, fine)
            key = json.dumps([self.model, [w.to_dict() for w in around], goal.describe()])
            return replace(goal, solution=_truth(key))
        if self.objective == "local":
            return tuning.LocalError(seeds, labels)
        goal = tuning.MetricObjective(catalogue.metric(self.model), seeds, labels)
        if goal.least > len(seeds):
            raise BadValue(f"{goal.name} needs at least {goal.least} samples to give a number: choose a larger n.")
        return goal

    def study(self, model: Model, journal: Path | None) -> tuning.Study:
        """The search itself, on a model that may be watched.

        Raises: BadValue where model, setting and what is asked do not go together.
        """
        refused = next((o.reason for o in self._taken() if o.reason), "")
        if refused:
            raise BadValue(refused)
        start = tunable(self.knobs, model)
        budget = tuning.Budget(trials=self.trials, minutes=self.minutes)
        return tuning.Study(model, start, self.goal(model), self.tuner(model, start), budget, self.seed, journal)

    def _taken(self) -> list[Offer]:
        pairs = ((whats(self), self.what), (objectives(self), self.objective), (methods(self), self.method))
        return [o for offers, name in pairs for o in offers if o.name == name]

    def tuner(self, model: Model, start: tuning.Setting) -> tuning.Tuner:
        nfe = start.nfe(model)
        if self.method == "bespoke":
            return Bespoke(every=max(-(-BESPOKE // max(self.size - 1, 1)), 10), iterations=BESPOKE)
        if self.method == "autodiffusion":
            genome_of(start, model)
            return sized(self.size, LEFT_OUT if self.what == "layers" else (0.0, 0.0))
        if self.what == "solver":
            every = tuning.every_solver(model, nfe)
            if self.method == "list":
                return tuning.Listed(tuning.spread(every, self.size))
            return tuning.Halving(settings=tuning.spread(every, 2 * self.size // 3))
        front = self.method == "nsga2"
        space = {
            "schedule": lambda: tuning.Nodes(),
            "skip-line": lambda: tuning.SkipScales(linear=True),
            "skip": lambda: tuning.SkipScales(),
            "guidance": lambda: tuning.GuidanceSpace(nfe=nfe, guide=self.knobs.guide),
            "restart": lambda: tuning.RestartSpace(nfe=nfe),
            "joint": lambda: tuning.Joint(nfe=None if front else nfe, steps=(2, max(nfe or 0, 6))),
        }[self.what]()
        space.box(model, start)  # says at once what cannot be searched
        if self.method in ("dp", "ays"):
            return tuning.DynamicProgram() if self.method == "dp" else tuning.AlignSteps()
        if self.method in ("gradient", "decoupled"):
            apart = self.method == "decoupled"
            return tuning.Gradient(every=max(GRADIENTS // self.size, 1), iterations=GRADIENTS, decoupled=apart)
        if self.method == "chain" and self.what == "schedule":
            return tuning.Chain((tuning.DynamicProgram(), tuning.Coordinate(space)))
        if self.method == "chain":
            drawn = max(self.size // 2, 1)
            return tuning.Chain((tuning.Halving(space, candidates=drawn), tuning.Coordinate(tuning.Nodes(), step=0.05)))
        if self.method in ("tpe", "nsga2"):
            return tuning.Optuna(space, self.method)
        if self.method == "halving":
            return tuning.Halving(space, candidates=max(self.size // 2, 1))
        return {"coordinate": tuning.Coordinate, "cma": tuning.CMA}[self.method](space)

    @property
    def images(self) -> bool:
        return len(catalogue.model(self.model).shape) == 3

    @property
    def n_reference(self) -> int:
        """Heun steps of the fine solution."""
        return 48 if self.images else 128

    @property
    def report(self) -> range:
        """Seeds of the numbers at the end."""
        return range(max(2000, 2 * self.n) if self.objective == "metric" else max(128, 2 * self.n))

    def cost(self) -> int | None:
        """Network evaluations times samples, report included; None where the cost of a step is not known beforehand."""
        nfe = self.nfe()
        if nfe is None:
            return None
        n, held = self.n, len(self.report)
        reference = (2 * self.n_reference - 1) * (n + held) if self.objective == "truncation" else 0
        return reference + (self.trials + 1) * nfe * n + 2 * nfe * held


def solved(goal: tuning.Objective) -> bool:
    """Whether measuring needs no fine solution any more."""
    return goal.prepared


def _truth(key: str) -> tuning.Solution:
    found = TRUTHS.setdefault(key, tuning.Solution())
    TRUTHS.move_to_end(key)
    while len(TRUTHS) > MOST_TRUTHS:
        TRUTHS.popitem(last=False)
    return found


def opening(model: str) -> SamplerKnobs:
    """The baseline that a page opens with: few steps, where there is something to gain."""
    knobs = SamplerKnobs.from_dict(catalogue.defaults(model))
    if not isinstance(catalogue.model(model), FlowMap):
        knobs.solver, knobs.n_steps = "dpmpp-2m", 5
    return knobs


def suggested_n(plan: Plan) -> int:
    if plan.objective == "metric":
        least = getattr(catalogue.metric(plan.model), "n_min", 2)
        return next((n for n in N_CHOICES if n >= max(1000, least)), N_CHOICES[-1])
    return 64 if plan.images else 256


def whats(plan: Plan) -> list[Offer]:
    """What may be tuned, each with the reason why not."""
    model, knobs = catalogue.model(plan.model), plan.knobs
    name, flow = model.name or plan.model, isinstance(model, FlowMap)
    steps = knobs.n_steps if knobs.nodes is None else len(knobs.nodes)
    out = dict.fromkeys(WHATS, "")
    if not knobs.own and steps < 2:
        out["schedule"] = "One step has no noise level between its ends: take at least two."
    if model.n_layers == 0:
        out["layers"] = f"{name} has no blocks to leave out: choose a U-Net."
    if flow:
        out |= dict.fromkeys(
            ("solver", "guidance", "restart", "joint"), f"{name} is a flow map: it solves no equation."
        )
    if model.n_skips == 0:
        out |= dict.fromkeys(("skip", "skip-line"), f"{name} has no skip connections.")
    if not knobs.guide and (model.n_classes == 0 or knobs.label == -1):
        reason = (
            f"{name} has no classes: name a guide in the baseline."
            if model.n_classes == 0
            else "Guidance follows a class: choose one, or every class in turn."
        )
        out["guidance"] = out["guidance"] or reason
    if knobs.own and getattr(getattr(knobs.own_sampler(), "grid", None), "coordinate", "") != "sigma":
        reason = f"{knobs.said_own()} has no grid of noise levels: clear the baseline's own sampler to search one."
        out |= {key: out[key] or reason for key in ("schedule", "layers", "guidance", "restart", "joint")}
    return [Offer(key, *words, out[key]) for key, words in WHATS.items()]


def objectives(plan: Plan) -> list[Offer]:
    """What may be lowered, each with the reason why not."""
    model, draws = catalogue.model(plan.model), _draws(plan)
    out = dict.fromkeys(OBJECTIVES, "")
    apart = ("truncation", "local")
    if isinstance(model, FlowMap):
        out |= dict.fromkeys(
            apart, f"{model.name or plan.model} is a flow map: it follows no equation that could be solved finely."
        )
    elif draws:
        out |= dict.fromkeys(apart, f"{draws} noise: its samples follow no ODE.")
    elif plan.what in ("guidance", "restart"):
        out |= dict.fromkeys(apart, f"{WHATS[plan.what][0]} leaves the ODE on purpose: compare with the data.")
    elif plan.what in ("skip", "skip-line", "joint", "layers"):
        out["local"] = "Each step would be judged by the changed network itself."
    titles = {key: words[0] for key, words in OBJECTIVES.items()}
    titles["metric"] = f"{catalogue.metric_name(plan.model)}, {titles['metric']}"
    return [Offer(key, titles[key], OBJECTIVES[key][1], out[key]) for key in OBJECTIVES]


def methods(plan: Plan) -> list[Offer]:
    """How it may be searched, each with the reason why not."""
    flow, out, draws = isinstance(catalogue.model(plan.model), FlowMap), [], _draws(plan)
    own = plan.knobs.own_sampler()
    solver = SOLVERS[plan.knobs.solver]() if own is None else getattr(own, "solver", None)
    for key in SUITED[plan.what]:
        reason = ""
        if flow and key in ("chain", "dp", "ays", "gradient", "decoupled"):
            reason = "It is read off a solved ODE, and this model jumps."
        elif key in ("gradient", "decoupled", "bespoke") and draws:
            reason = f"{draws} noise: what is learnt starts from a solver that draws none."
        elif key == "gradient" and not tuning.unrollable(solver):
            name = type(solver).__name__ if own is not None else plan.knobs.solver
            reason = f"{name} is not written out for gradients: choose ddim, dpmpp-2m, ipndm or a Runge-Kutta method."
        elif key == "decoupled" and not tuning.once_a_step(solver):
            reason = "Times apart need a solver that asks once a step: choose ddim, dpmpp-2m or ipndm."
        elif plan.what == "layers":
            try:
                enough_for_layers(plan.trials)
            except BadValue as error:
                reason = str(error).capitalize() + "."
        out.append(Offer(key, *METHODS[key], reason))
    return out


def _draws(plan: Plan) -> str:
    """What of the baseline draws noise, with its verb; "" where nothing does, or it cannot be built."""
    if plan.knobs.own:
        return f"{plan.knobs.said_own()} draws" if plan.knobs.own_sampler().stochastic else ""
    if SOLVERS[plan.knobs.solver]().stochastic:
        return f"{plan.knobs.solver} draws"
    return "a restart draws" if plan.knobs.restarts and not isinstance(catalogue.model(plan.model), FlowMap) else ""


def with_nfe(knobs: SamplerKnobs, model: Model, nfe: int) -> SamplerKnobs:
    """The knobs with as many steps as that many evaluations allow, on the named grid.

    Raises: BadValue where one step takes more.
    """
    best, most = None, SamplerKnobs.param.n_steps.bounds[1]
    for n in range(1, min(nfe, most) + 1):
        tried = SamplerKnobs.from_dict({**knobs.to_dict(), "n_steps": n, "nodes": None, "own": ""})
        try:
            cost = tunable(tried, model).nfe(model)
        except ExplorerError:
            continue
        if cost is None:
            raise BadValue("the cost of adaptive steps is known only after a run: choose a solver on a grid.")
        if cost > nfe:
            break
        best = tried
    if best is None:
        raise BadValue(f"one step of {knobs.solver} takes more than {nfe} network evaluations: allow more.")
    return best
