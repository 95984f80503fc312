"""A trial as a file for the browser."""

from __future__ import annotations

import json
from dataclasses import dataclass

from explorer.tuning import Setting, Tuned, export

EXPORTS = {"json": "JSON", "python": "Python", "diffusers": "diffusers", "k-diffusion": "k-diffusion"}


@dataclass(frozen=True)
class Download:
    """A file for the browser."""

    name: str
    text: str


def exported(form: str, name: str, model: str, setting: Setting, tuned: Tuned | None = None) -> Download:
    """The file of one form; as JSON the whole outcome where there is one.

    Raises: BadValue where that form has no place for something in the setting.
    """
    if form == "python":
        return Download(f"{name}.py", export.to_python(setting, model))
    if form == "json":
        about = tuned.to_dict() if tuned is not None else setting.to_dict()
        return Download(f"{name}.json", json.dumps(about, indent=1) + "\n")
    make = export.to_k_diffusion if form == "k-diffusion" else export.to_diffusers
    return Download(f"{name}.{form}.json", json.dumps(make(setting), indent=1) + "\n")
