"""Keeping a run's model: its weights and card go where every page and command looks for models."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

from explorer.apps.training.folder import NAME, RunFiles
from explorer.errors import BadFile, BadValue
from explorer.models import bundled

ATTEMPTS = 5


def keepable(files: RunFiles) -> str:
    """Why the run has no model to keep; empty where it has one."""
    if _weights(files) is not None:
        return ""
    return "Nothing has been measured yet: the first number comes with the first weights that can be kept."


def _weights(files: RunFiles) -> Path | None:
    """What a watched run has measured last, or what `explorer train` has published at its end."""
    own = files.model / f"{files.name}.safetensors"
    if own.with_suffix(".json").is_file():
        return own
    for card in sorted(files.path.glob("*.json")):
        if card.with_suffix(".safetensors").is_file() and not card.name.startswith("step-"):
            return card.with_suffix(".safetensors")
    return None


def keep(files: RunFiles, name: str | None = None) -> Path:
    """Copies the weights that were measured last, with their card, and returns the weights file.

    Args:
        name: of the model; by default the run's. A name is used once: what pages have loaded must not change under them.
    Raises:
        BadValue: the name is taken or unfit, or there is nothing to keep yet.
    """
    name = name or files.name
    if reason := keepable(files):
        raise BadValue(f"{files.name} cannot be kept. {reason}")
    if not NAME.fullmatch(name):
        raise BadValue(f"{name!r} is no model name: use lower-case letters, digits, '-', '_' and '.', at most 64.")
    if name in bundled.names():
        raise BadValue(f"there is a model {name!r} already; choose another name, such as {free_name(name)!r}.")
    weights, card = _whole(files)
    folder = bundled.user_folder()
    target = folder / f"{name}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(weights, target)
        text = json.dumps({**card, "name": name, "run": files.name}, indent=2) + "\n"
        partial = folder / f".{name}.json"
        partial.write_text(text, encoding="utf-8")
        partial.replace(folder / f"{name}.json")  # a model exists from here on
    except OSError as problem:
        target.unlink(missing_ok=True)
        raise BadFile(f"{target} could not be written: {problem}. Make room, then keep.") from None
    try:
        bundled.card(target)
        bundled.load(target) if card["kind"] != "classifier" else bundled.load_features(target)
    except Exception:
        target.unlink(missing_ok=True)
        target.with_suffix(".json").unlink(missing_ok=True)
        raise
    return target


def free_name(name: str) -> str:
    taken = set(bundled.names())
    return next(n for n in (name, *(f"{name[:58]}-{k}" for k in range(2, 10**6))) if n not in taken)


def kept_as(files: RunFiles) -> list[str]:
    """Names under which this run has been kept, in alphabetical order."""
    out = []
    for file in sorted(bundled.user_folder().glob("*.json")):
        try:
            if json.loads(file.read_text(encoding="utf-8")).get("run") == files.name:
                out.append(file.stem)
        except (OSError, ValueError, AttributeError):
            continue
    return out


def _whole(files: RunFiles) -> tuple[Path, dict[str, Any]]:
    """Weights and card that belong together; the run may be replacing them right now."""
    weights = _weights(files)
    for _ in range(ATTEMPTS):
        try:
            bundled.card(weights)
            card = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
            if hashlib.sha256(weights.read_bytes()).hexdigest() == card["sha256"]:
                return weights, card
        except (OSError, ValueError, KeyError):
            pass
        time.sleep(0.1)
    raise BadFile(f"the weights of {files.name} and their card do not fit together; train on for a moment, then keep.")
