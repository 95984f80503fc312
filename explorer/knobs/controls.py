"""Knobs as a front end needs them: what to draw, where each may go, and why it may be at rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import param

from explorer.knobs.guides import guides_for
from explorer.knobs.table import GROUPS, LOGARITHMIC, TITLES
from explorer.models.base import Model

if TYPE_CHECKING:
    from explorer.knobs.sampler import SamplerKnobs


@dataclass(frozen=True)
class Control:
    """One knob as a front end needs it: what to draw, where it may go, and why it may be at rest.

    Attributes:
        kind: "choice", "integer", "number", "text", "bank" (a list of numbers, one per named skip connection) or "nodes" (falling
            noise levels; an empty list where the grid is a named one).
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


def controls(knobs: SamplerKnobs, model: Model) -> list[Control]:
    """Every knob but the seed, in the order of GROUPS."""
    reasons, defaults, out = knobs.inapplicable(model), knobs.defaults(model), []
    for group, members in GROUPS.items():
        for name in members:
            p, value = knobs.param[name], plain(getattr(knobs, name))
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
            elif name in ("own", "layers"):
                out.append(Control(kind="text", **common))
            elif name == "nodes":
                out.append(Control(kind="nodes", unit="σ", **{**common, "value": value or []}))
            elif name == "skip_bank":
                blocks = tuple(getattr(getattr(model, "net", None), "skip_names", ())) or tuple(
                    f"block {i}" for i in range(model.n_skips)
                )
                common["value"] = value or knobs.skip_scales(model.n_skips) or [1.0] * model.n_skips
                out.append(Control(kind="bank", low=0.0, high=1.5, step=0.05, names=blocks, **common))
            else:
                low, high = p.bounds
                kind = "integer" if isinstance(p, param.Integer) else "number"
                log = name in LOGARITHMIC
                out.append(
                    Control(kind=kind, low=low, high=high, step=p.step, log=log, unit="σ" if log else "", **common)
                )
    return out


def plain(value: Any) -> Any:
    """The value of a knob as JSON has it."""
    return [float(v) for v in value] if isinstance(value, list) else value
