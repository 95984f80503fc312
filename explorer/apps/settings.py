"""A setting, a model with one value of every knob, as a key, as part of an address, and as JSON. Pages share these forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, urlencode

import param

from explorer.apps import catalogue
from explorer.knobs import SamplerKnobs
from explorer.knobs import names as knob_names

N_CHOICES = (256, 512, 1000, 2000, 5000, 10000)


@dataclass(frozen=True)
class Setting:
    """A model and one value of every knob, seeds included: what a row of the history is. Its `knobs` are shared: never set one."""

    model: str
    values: str  # JSON of the knobs, so that a setting can be a key

    @classmethod
    def of(cls, model: str, knobs: SamplerKnobs) -> Setting:
        return cls(model, knobs.to_json())

    @property
    def knobs(self) -> SamplerKnobs:
        return _parsed(self.values)

    @property
    def key(self) -> str:
        return f"{self.model}.{_hashed(self.values)}"

    def on_seed(self, seed: int) -> Setting:
        return Setting(self.model, _reseeded(self.values, seed))

    def to_dict(self) -> dict[str, Any]:
        return {"model": self.model, "knobs": self.knobs.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Setting:
        """The inverse of `to_dict`; raises ExplorerError, KeyError or TypeError for anything else."""
        setting = cls.of(data["model"], SamplerKnobs.from_dict(data["knobs"]))
        catalogue.model(setting.model)
        return setting


# Pages ask for these by the hundred whenever they redraw, and parsing checks every value.


@lru_cache(maxsize=4096)
def _parsed(values: str) -> SamplerKnobs:
    return SamplerKnobs.from_json(values)


@lru_cache(maxsize=4096)
def _hashed(values: str) -> str:
    return _parsed(values).key()


@lru_cache(maxsize=4096)
def _reseeded(values: str, seed: int) -> str:
    return SamplerKnobs.from_dict({**_parsed(values).to_dict(), "seed": seed}).to_json()


def spell(setting: Setting, prefix: str = "", leave: tuple[str, ...] = ()) -> dict[str, str]:
    """The setting as fields of an address: its model, and the knobs that differ from that model's defaults.

    Args:
        prefix: put before each name, "a." for the pinned setting.
        leave: knobs that are not spelled.
    """
    base = catalogue.defaults(setting.model)
    out = {f"{prefix}model": setting.model}
    for name, value in setting.knobs.changed(base).items():
        if name not in leave:
            out[prefix + name] = ",".join(f"{v:.12g}" for v in value) if isinstance(value, list) else f"{value}"
    return out


def read(fields: Mapping[str, str], prefix: str = "", seed: int | None = None) -> Setting | None:
    """The setting that `spell` wrote with this prefix; fields that are no knobs are left to others.

    Args:
        seed: overrides the one written.
    Returns: None where the fields name no model and the prefix is not empty; without a prefix the model is the default one.
    Raises: ExplorerError or ValueError for values that cannot be.
    """
    if prefix and f"{prefix}model" not in fields:
        return None
    model = fields.get(f"{prefix}model", catalogue.default())
    values = dict(catalogue.defaults(model))
    for name in knob_names():
        if (text := fields.get(prefix + name)) is not None:
            values[name] = _value(name, text)
    if seed is not None:
        values["seed"] = seed
    return Setting.of(model, SamplerKnobs.from_dict(values))


def _value(name: str, text: str) -> Any:
    p = SamplerKnobs.param[name]
    if isinstance(p, param.Selector | param.String):
        return text
    if isinstance(p, param.List):
        return [float(v) for v in text.split(",")]
    if isinstance(p, param.Boolean):
        return text == "True"
    if p.allow_None and text == "None":
        return None
    return int(text) if isinstance(p, param.Integer) else float(text)


def join(page: str, fields: Mapping[str, Any]) -> str:
    """Fields as the part of an address after #: "lab?model=digits&n=2000"."""
    return f"{page}?" + urlencode(fields, safe=",")


def split(link: str) -> dict[str, str]:
    """Fields of what `join` wrote; empty for anything else."""
    return dict(parse_qsl(link.partition("?")[2]))
