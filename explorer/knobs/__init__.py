"""The sampler's knobs, declared once. No widget library is imported.

The dashboard, a notebook's sliders, the command line and a script all read `SamplerKnobs`; its `build` turns the values into what
floors 1 and 2 understand, a wrapped model and a `Sampler`.
"""

from explorer.knobs.controls import Control
from explorer.knobs.guides import check_guide, guides_for
from explorer.knobs.sampler import SamplerKnobs
from explorer.knobs.table import GROUPS, levels_left_out, names, told_layers, used_by

__all__ = [
    "GROUPS",
    "Control",
    "SamplerKnobs",
    "check_guide",
    "guides_for",
    "levels_left_out",
    "names",
    "told_layers",
    "used_by",
]
