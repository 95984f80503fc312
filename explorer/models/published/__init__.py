"""Published checkpoints as models of ours: read without running them, every tensor accounted for.

`read(file)` finds out what a file is and gives the model with a report; `save` writes it as NAME.safetensors with its card, from where
`explorer.load`, every page and every command take it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from explorer.errors import BadFile, BadValue, UnknownName
from explorer.models.base import Model
from explorer.models.bundled import NAME, card, load, save_model
from explorer.models.published import diffusers, dit, edm, edm2, guided, score_sde
from explorer.models.published.files import MAX_BYTES, opened
from explorer.models.published.mapping import Report, Row
from explorer.models.published.plan import PROCESSES, Plan

__all__ = ["FORMATS", "OPTIONS", "PROCESSES", "Imported", "Report", "Row", "check_name", "read", "save"]

FORMATS = ("edm", "edm2", "guided-diffusion", "score-sde", "dit", "diffusers", "explorer")
OPTIONS = {
    "process": ("guided-diffusion", "score-sde", "dit", "diffusers"),
    "size": ("guided-diffusion", "score-sde", "diffusers"),
    "head_dim": ("guided-diffusion",),
    "heads": ("guided-diffusion", "dit"),
    "attention_order": ("guided-diffusion",),
    "ema": ("score-sde",),
    "fir": ("score-sde",),
}
"""What may be said of a file that it does not say itself, and in which formats."""

Progress = Callable[[float, str], object]


@dataclass(frozen=True)
class Imported:
    """A published checkpoint, read.

    Args:
        model: in evaluation mode, on the CPU, float32.
        report: what became of every tensor.
        card: what the file is, what was assumed, and where it comes from; becomes part of the model's card.
    """

    model: Model
    report: Report
    card: Mapping[str, Any]


def read(file: str | Path, format: str = "auto", progress: Progress | None = None, **options: Any) -> Imported:
    """A published checkpoint as a model of ours.

    Args:
        file: a pickle (.pkl), a torch file (.pt, .pth, .bin), NAME.safetensors with its card, or a folder of diffusers.
        format: one of FORMATS, or "auto".
        progress: called with the share that is done and a word on it.
        options: see OPTIONS; None leaves one to the file.
    Raises:
        BadFile: not readable, not of this format, of a network that ours cannot be, or with tensors missing or left over.
        BadValue: an option is needed, or does not apply.
        UnknownName: of a format or a process.
    """
    file, options = Path(file), {k: v for k, v in options.items() if v is not None}
    show = progress or (lambda share, text: None)
    if format not in ("auto", *FORMATS):
        raise UnknownName("format", format, ("auto", *FORMATS))
    for name in options:
        if name not in OPTIONS:
            raise UnknownName("option of a checkpoint", name, OPTIONS)
    if not file.exists():
        raise BadFile(f"there is no file {str(file)!r}.")
    with contextlib.ExitStack() as held:
        if file.suffix == ".safetensors" and format in ("auto", "explorer"):
            return _own(file, options)
        weights = diffusers.weights_of(file) if file.is_dir() and diffusers.fits(file) else file
        if weights.is_dir():
            raise BadFile(
                f"{file} is a folder without config.json; of folders those of diffusers' UNet2DModel are read."
            )
        digest = _digest(weights, show)
        plan = _plan(file, format, options, held)
        _applicable(plan.format, options)
        if format not in ("auto", plan.format):
            raise BadFile(f"{file.name} is in the format {plan.format}, not {format}.")
        try:
            model, report = plan.built(lambda share, text: show(0.3 + 0.7 * share, text))
        except BadFile as error:
            raise error if str(error).startswith(file.name) else BadFile(f"{file.name}: {error}") from None
    return Imported(model, report, _card(file, weights, digest, plan, report))


def save(found: Imported, out: str | Path) -> Path:
    """Write NAME.safetensors and its card NAME.json; both or neither replace what was there.

    Raises:
        BadValue: `out` does not end in .safetensors, or its name is no model name; BadFile: it cannot be written.
    """
    out = Path(out)
    check_name(out)
    return save_model(out.parent, out.stem, found.model, found.card)


def check_name(out: Path) -> None:
    """Raises BadValue where no model can be written under this name."""
    if out.suffix != ".safetensors" or not NAME.fullmatch(out.stem):
        raise BadValue(
            f"{out.name!r} is no name for a model: use lower-case letters, digits, '-', '_' and '.', at most 64, and .safetensors."
        )


def _plan(file: Path, format: str, options: Mapping[str, Any], held: contextlib.ExitStack) -> Plan:
    if file.is_dir():
        try:
            return diffusers.plan(file, options, held)
        except BadFile as error:
            raise BadFile(f"{file.name}: {error}") from None
    content = held.enter_context(opened(file))
    if edm2.fits(content):
        return edm2.plan(content)
    if edm.find(content) is not None:
        return edm.plan(content)
    if guided.fits(content):
        return guided.plan(content, file.stem, options)
    if dit.fits(content):
        return dit.plan(content, options)
    if score_sde.fits(content):
        return score_sde.plan(content, file.stem, options)
    raise BadFile(_unknown(content))


def _unknown(content: Any) -> str:
    if isinstance(content, dict):
        keys = ", ".join(str(k)[:40] for k in itertools.islice(content, 5))
        return f"it holds a dictionary with {keys or 'nothing'}: no network of {', '.join(FORMATS[:6])}."
    return f"it holds a {type(content).__name__}, no network of {', '.join(FORMATS[:6])}."


def _applicable(format: str, options: Mapping[str, Any]) -> None:
    for name in options:
        if format not in OPTIONS[name]:
            raise BadValue(f"{name.replace('_', '-')} does not apply: a file in the format {format} says it itself.")


def _own(file: Path, options: Mapping[str, Any]) -> Imported:
    """Our own format: checked whole by `load`."""
    _applicable("explorer", options)
    model, about = load(file), dict(card(file))
    inner = getattr(model, "inner", model)
    tensors = inner.net.state_dict() if hasattr(inner, "net") else inner.state_dict()
    report = Report(tuple(Row(name, (name,), "same name") for name in tensors))
    return Imported(model, report, {k: v for k, v in about.items() if k not in ("date", "versions")})


def _digest(file: Path, show: Progress) -> str:
    try:
        size, digest, done = file.stat().st_size, hashlib.sha256(), 0
        if size > MAX_BYTES:
            raise BadFile(
                f"{file.name} has {size / 2**30:.0f} GiB; no published checkpoint of a kind known here is as large."
            )
        with open(file, "rb") as stream:
            while block := stream.read(2**24):
                digest.update(block)
                done += len(block)
                show(0.3 * done / size, "hashing")
    except OSError as error:
        if isinstance(error, BadFile):
            raise
        raise BadFile(f"{file.name} cannot be read: {error.strerror or error}.") from None
    return digest.hexdigest()


def _card(file: Path, weights: Path, digest: str, plan: Plan, report: Report) -> dict[str, Any]:
    source = {"file": file.name if weights == file else f"{file.name}/{weights.relative_to(file)}", "bytes": weights.stat().st_size,
              "sha256": digest, "format": plan.format, **plan.facts}  # fmt: skip
    kinds = report.counts()
    return {
        "source": source,
        "tensors": {"in_file": len(plan.tensors), **kinds},
        "assumed": list(plan.assumed),
        "not_read": list(plan.unused),
        "notes": f"Read from {source['file']} by explorer import; trained by others, see where the file comes from for its licence.",
    }
