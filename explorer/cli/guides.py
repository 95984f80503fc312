"""The options --guide and --guide-weight: samples of a model moved away from what another, worse one predicts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from explorer.cli.output import note
from explorer.errors import BadValue

if TYPE_CHECKING:
    from explorer.models.base import Denoiser

GuideName = Annotated[
    str | None,
    typer.Option(
        help="Move away from this model's prediction, a worse one for the same data: see explorer list models."
    ),
]
GuideWeight = Annotated[
    float | None,
    typer.Option(help="Weight of --guide; 1 is none. Default: 2. It acts where --guidance-lo and -hi say."),
]
TuneGuide = Annotated[
    str | None,
    typer.Option(help="With --what guidance: the worse model to move away from. Default: the model without a class."),
]
DEFAULT = 2.0


@dataclass(frozen=True)
class Away:
    """Away from which model, and by which weight."""

    name: str
    weight: float

    @classmethod
    def given(cls, name: str | None, weight: float | None) -> Away | None:
        if name is None:
            if weight is not None:
                raise BadValue("--guide-weight belongs to --guide: name the model to move away from.")
            return None
        return cls(name, DEFAULT if weight is None else weight)

    def around(self, built: Denoiser, knobs: Any) -> Denoiser:
        """The model with this guide; beside the one it has, if it has one.

        Raises: BadValue: a flow map, another shape, classes that the guide does not know.
        """
        from explorer.models.base import FlowMap
        from explorer.models.bundled import load
        from explorer.models.guidance import MultiGuided
        from explorer.models.wrappers import Guided

        if isinstance(built, FlowMap):
            raise BadValue(f"--guide mixes denoisers, and {built.name} is a flow map: leave it out.")
        device = next((t.device for t in (*built.parameters(), *built.buffers())), "cpu")
        guide = load(self.name, device)
        if isinstance(guide, FlowMap):
            raise BadValue(f"--guide must be a denoiser, and {self.name} is a flow map.")
        if guide.n_classes != built.n_classes:
            raise BadValue(
                f"{built.name} has {built.n_classes} classes and the guide {self.name} {guide.n_classes}: it must know the same ones."
            )
        if self.weight == 1:
            note("guide has no effect at weight 1")
        if isinstance(built, Guided):
            return MultiGuided(built.base, ((built.guide, built.scale), (guide, self.weight)), built.interval)
        high = knobs.guidance_hi if knobs.guidance_hi < knobs.param.guidance_hi.bounds[1] else math.inf
        return Guided(built, self.weight, guide, (knobs.guidance_lo, high))

    def to_dict(self) -> dict[str, Any]:
        return {"guide": self.name, "guide_weight": self.weight}
