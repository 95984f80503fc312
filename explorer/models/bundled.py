"""Models on disk: weights as safetensors beside a card that says what they are, verified before anything is built.

NAME.safetensors holds tensors only; NAME.json, the card, names the classes to build from a fixed list, their arguments, and
the SHA-256 of the weights file. Nothing read here can execute code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import math
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from explorer.errors import BadFile, BadValue, UnknownName
from explorer.files import write_atomic
from explorer.models.base import Model, Oracle, Preconditioned
from explorer.models.flow_maps import ConsistencyModel
from explorer.nets.dit import DiT
from explorer.nets.edm2_unet import EDM2UNet
from explorer.nets.edm_unet import EDMUNet
from explorer.nets.features import FeatureNet
from explorer.nets.log_density import LogDensity
from explorer.nets.mlp import MLP
from explorer.nets.unet import UNet
from explorer.process import paths, precondition
from explorer.process.oracles import GaussianMixture

BUILDABLE: dict[str, dict[str, type]] = {
    "net": {c.__name__: c for c in (MLP, UNet, EDMUNet, EDM2UNet, DiT, FeatureNet, LogDensity)},
    "path": {c.__name__: c for c in (paths.EDM, paths.VP, paths.CosineVP, paths.Linear, paths.Trig)},
    "precondition": {
        c.__name__: c
        for c in (
            precondition.EDMPrecondition,
            precondition.ConsistencyPrecondition,
            precondition.FlowPrecondition,
            precondition.VPrecondition,
            precondition.TrigFlowPrecondition,
            precondition.IDDPMPrecondition,
            precondition.EpsPrecondition,
            precondition.VEPrecondition,
            precondition.DDPMPrecondition,
        )
    },
}
"""All that a card can name."""

FORMAT = 1
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
KINDS = ("denoiser", "consistency", "classifier", "oracle")


def names(kind: str | None = None) -> tuple[str, ...]:
    """Names of the bundled models, optionally of one kind: "denoiser" or "consistency" (trained), "oracle" (exact), "classifier"."""
    if kind is not None and kind not in KINDS:
        raise UnknownName("kind of model", kind, KINDS)
    found = sorted({file.stem for folder in _folders() for file in folder.glob("*.json") if NAME.fullmatch(file.stem)})
    return tuple(n for n in found if kind is None or _kind(n) == kind)


def _kind(name: str) -> str:
    """The kind on a card; "" for a user's file that is no card, which must not hide the others."""
    try:
        return card(name)["kind"]
    except BadFile:
        if _find(name).parent != user_folder():
            raise
        return ""


def known(name: str | Path) -> bool:
    """Whether a model of this name, or a file or run folder of one, is there; its card may still be unreadable."""
    return str(name) in names() or (str(name).endswith(".safetensors") and Path(name).is_file()) or Path(name).is_dir()


def card(name: str | Path) -> dict[str, Any]:
    """The card of a bundled model, or of a user's own file NAME.safetensors with NAME.json beside it.

    Raises:
        UnknownName: no bundled model of that name.
        BadFile: no readable card, or one that lacks what is needed to build the model.
    """
    file = _find(name).with_suffix(".json")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadFile(f"the card {file.name} beside the weights cannot be read: {error}.") from None
    if not isinstance(content, dict) or content.get("kind") not in KINDS or not isinstance(content.get("sha256"), str):
        raise BadFile(f"{file.name} is not a model card: it needs a 'sha256' and a 'kind' among {', '.join(KINDS)}.")
    if content.get("format", FORMAT) != FORMAT:
        raise BadFile(f"{file.name} has format {content['format']!r}; this version reads format {FORMAT}.")
    return content


def load(name: str | Path, device: torch.device | str = "cpu") -> Model:
    """A model by name ("digits", "oracle-8gaussians", ...), or from a user's file ending in .safetensors or the run folder it is in.

    Returns:
        a fresh model in evaluation mode, weights frozen: a trained denoiser (`Preconditioned`), an exact one (`Oracle`), or a
            trained flow map (`ConsistencyModel`).
    Raises:
        UnknownName: no such model; BadFile: truncated, tampered with, or not matching its card.
    """
    about, file = card(name), _find(name)
    if about["kind"] == "classifier":
        raise BadValue(f"{file.stem!r} is a classifier, not a model to sample from; use load_features.")
    tensors = _tensors(file, about)
    if about["kind"] == "oracle":
        model: Model = _oracle(about, tensors, file)
    else:
        path = _build("path", about, file)
        try:
            low, high = _entry(about, "sigma_range", file)
            model = Preconditioned(
                _net(about, tensors, file),
                path,
                _build("precondition", about, file),
                shape=tuple(int(n) for n in _entry(about, "shape", file)),
                n_classes=int(about.get("n_classes", 0)),
                t_range=(path.time_at(float(low)), path.time_at(float(high))),
                name=file.stem,
            )
        except (TypeError, ValueError) as error:
            raise _mismatch(file, error) from None
        if about["kind"] == "consistency":
            model = ConsistencyModel(model)
    model.suggested = _suggested(about, file)
    return model.to(device).eval().requires_grad_(False)


def load_features(name: str | Path, device: torch.device | str = "cpu") -> FeatureNet:
    """A bundled classifier, e.g. "digits-cnn", whose `features` are a space to compare samples in.

    Raises:
        as `load`; BadValue: the name is of a model to sample from.
    """
    about, file = card(name), _find(name)
    if about["kind"] != "classifier":
        raise BadValue(f"{file.stem!r} is no classifier; those are {', '.join(names('classifier'))}.")
    net = _net(about, _tensors(file, about), file)
    if not isinstance(net, FeatureNet):
        raise BadFile(f"the card of {file.stem!r} says classifier but names the network {type(net).__name__}.")
    return net.to(device).eval().requires_grad_(False)


def save_model(folder: str | Path, name: str, model: Model | FeatureNet, card: Mapping[str, Any]) -> Path:
    """Write NAME.safetensors and NAME.json, each atomically, and return the path of the former.

    What can be read off the model (classes, arguments, shape, range) and the circumstances (date, versions, hash) are
    filled in; `card` gives the rest: data, recipe, seed, metrics, machine, minutes, notes. Keys of `card` do not override
    what the model says.

    Raises:
        BadValue: a name unfit for a file, a model that is not made of bundled parts, or a card that JSON cannot hold.
    """
    if not NAME.fullmatch(name):
        raise BadValue(f"{name!r} is no model name: use lower-case letters, digits, '-', '_' and '.', at most 64.")
    described, tensors = _describe(model)
    weights = _serialised(tensors)
    own = {
        "format": FORMAT,
        "name": name,
        **described,
        "n_parameters": sum(t.numel() for t in tensors.values()),
        "sha256": hashlib.sha256(weights).hexdigest(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    content = {**own, "date": date, **{key: value for key, value in card.items() if key not in own}}
    try:
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise BadValue(f"the card of {name!r} must hold plain JSON values: {error}.") from None
    file = Path(folder) / f"{name}.safetensors"
    # In between, an old card refuses the new weights: never a silent mixture.
    write_atomic(file, lambda part: part.write_bytes(weights))
    write_atomic(file.with_suffix(".json"), lambda part: part.write_text(text, encoding="utf-8"))
    return file


def asset_folders(kind: str) -> list[Path]:
    """Where bundled files of a kind ("models", "claims") are looked for, in a checkout or an installed wheel; the first wins."""
    package = Path(__file__).resolve().parent.parent
    roots = [package.parent / "assets", package / "_assets"]
    if override := os.environ.get("EXPLORER_ASSETS"):
        roots = [Path(override)]
    return [folder for root in roots if (folder := root / kind).is_dir()]


def user_folder() -> Path:
    """Where a user's own models are looked for, after the bundled ones: `kept` in the folder of runs (EXPLORER_RUNS, or `runs` here)."""
    return Path(os.environ.get("EXPLORER_RUNS") or "runs") / "kept"


def stamp() -> tuple[tuple[str, int], ...]:
    """Changes whenever a model comes or goes: for those who remember what there is."""
    return tuple((str(folder), folder.stat().st_mtime_ns) for folder in _folders())


def _folders() -> list[Path]:
    own = user_folder()
    return [*asset_folders("models"), *([own] if own.is_dir() else [])]


def _find(name: str | Path) -> Path:
    """The weights file of a name or path."""
    if str(name).endswith(".safetensors"):
        file = Path(name)
        if not file.is_file():
            raise BadFile(f"there is no file {str(file)!r}.")
        return file
    if NAME.fullmatch(str(name)):
        for folder in _folders():
            if (folder / f"{name}.json").is_file():
                return folder / f"{name}.safetensors"
    if Path(name).is_dir():
        return _only_model_in(Path(name))
    raise UnknownName("model", name, names())


def _only_model_in(folder: Path) -> Path:
    """The weights file of the one model that a run's folder holds: what it has published at its end, or measured last.

    Its checkpoints have no card.
    """
    held = []
    for place in (folder, folder / "model"):
        for file in sorted(place.glob("*.safetensors")):
            with contextlib.suppress(BadFile):
                card(file)
                held.append(file)
        if held:
            break
    if len(held) == 1:
        return held[0]
    found = f"{len(held)} models ({', '.join(file.name for file in held[:4])})" if held else "no finished model"
    raise BadFile(f"{str(folder)!r} holds {found}: name a file NAME.safetensors with its card NAME.json.")


def _tensors(file: Path, about: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a weights file whose bytes have the hash of the card; the bytes hashed are the bytes parsed."""
    from safetensors import SafetensorError
    from safetensors.torch import load as parse

    try:
        content = file.read_bytes()
    except OSError as error:
        raise BadFile(f"the weights {file.name} cannot be read: {error.strerror}.") from None
    actual = hashlib.sha256(content).hexdigest()
    if actual != about["sha256"]:
        raise BadFile(
            f"{file.name} does not match its card: SHA-256 {actual[:16]}... where the card says "
            f"{about['sha256'][:16]}.... The file is truncated, changed, or of another model; fetch or train it again."
        )
    try:
        return parse(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise BadFile(f"{file.name} is not in safetensors format: {error}.") from None


def _suggested(about: Mapping[str, Any], file: Path) -> dict[str, Any]:
    values = about.get("knobs", {})
    if not isinstance(values, dict) or not all(isinstance(v, str | int | float) for v in values.values()):
        raise BadFile(f"the card of {file.stem!r} must give 'knobs' as names with plain values.")
    return dict(values)


def _entry(about: Mapping[str, Any], key: str, file: Path) -> Any:
    if key not in about:
        raise BadFile(f"the card of {file.stem!r} lacks {key!r}.")
    return about[key]


def _build(part: str, about: Mapping[str, Any], file: Path) -> Any:
    """An object of one of the listed classes, from {"class", "args"}."""
    entry = _entry(about, part, file)
    if not isinstance(entry, dict) or not isinstance(entry.get("args", {}), dict):
        raise BadFile(f"the card of {file.stem!r} must give {part!r} as a class and its args.")
    listed = BUILDABLE[part]
    if entry.get("class") not in listed:
        raise BadFile(
            f"the card of {file.stem!r} asks for the {part} {entry.get('class')!r}; only {', '.join(listed)} can be built."
        )
    try:
        return listed[entry["class"]](**entry.get("args", {}))
    except (TypeError, ValueError, ArithmeticError) as error:
        raise BadFile(f"the card of {file.stem!r} gives arguments {entry['class']} does not take: {error}.") from None


def _net(about: Mapping[str, Any], tensors: dict[str, Tensor], file: Path) -> nn.Module:
    with torch.device("meta"):  # a card that lies about sizes is found out before memory is taken
        net = _build("net", about, file)
    tensors = {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    try:
        net.load_state_dict(tensors, assign=True)
        net.to(memory_format=getattr(net, "memory_format", torch.contiguous_format))
    except RuntimeError as error:
        raise _mismatch(file, error) from None
    if not all(torch.isfinite(p).all() for p in net.parameters()):
        raise BadFile(f"{file.name} contains weights that are NaN or infinite.")
    return net


def _oracle(about: Mapping[str, Any], tensors: dict[str, Tensor], file: Path) -> Oracle:
    try:
        mixture = GaussianMixture(
            tensors["means"].double(),
            tensors["variances"].double().sqrt() if "axes" not in tensors else None,
            covs=_covariances(tensors) if "axes" in tensors else None,
            weights=tensors["log_weights"].double().exp(),
            labels=tensors.get("labels"),
        )
        path = _build("path", about, file)
        low, high = _entry(about, "sigma_range", file)
        t_range = path.time_at(float(low)), path.time_at(float(high))
    except (KeyError, TypeError, ValueError) as error:
        raise _mismatch(file, error) from None
    return Oracle(mixture, path, name=file.stem, t_range=t_range)


def _covariances(tensors: Mapping[str, Tensor]) -> Tensor:
    axes, variances = tensors["axes"].double(), tensors["variances"].double()
    return torch.einsum("kid,kd,kjd->kij", axes, variances, axes)


def _mismatch(file: Path, error: Exception) -> BadFile:
    lines = str(error).strip().splitlines() or [repr(error)]
    return BadFile(f"the weights and the card of {file.stem!r} do not describe the same model: {' '.join(lines[:3])}")


def _describe(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Card entries and tensors that rebuild the model."""
    if isinstance(model, FeatureNet):
        entries = {"kind": "classifier", "net": _part("net", model), "shape": list(model.shape)}
        return {**entries, "n_classes": model.n_classes, "n_features": model.n_features}, _plain(model.state_dict())
    kind = "denoiser"
    if isinstance(model, ConsistencyModel):
        kind, model = "consistency", model.inner
    if not isinstance(model, Preconditioned | Oracle):
        raise BadValue(
            f"cannot save a {type(model).__name__}: expected a Preconditioned model, a ConsistencyModel around one, an Oracle or a "
            "FeatureNet."
        )
    sigma_range = [s for s in model.sigma_range if math.isfinite(s)]
    if len(sigma_range) != 2:
        raise BadValue(f"the model's sigma range {model.sigma_range} is not finite; give it a t_range that is.")
    common = {
        "path": _part("path", model.path),
        "shape": list(model.shape),
        "n_classes": model.n_classes,
        "sigma_range": sigma_range,
    }
    if isinstance(model, Oracle):
        mixture = {k: v for k, v in model.mixture.state_dict().items() if v is not None}
        mixture["means"] = mixture["means"].reshape(-1, *model.shape)
        return {"kind": "oracle", **common}, {k: _narrowest(v.detach().cpu().contiguous()) for k, v in mixture.items()}
    described = {"kind": kind, "net": _part("net", model.net), **common}
    return {**described, "precondition": _part("precondition", model.precondition)}, _plain(model.net.state_dict())


def _part(part: str, value: Any) -> dict[str, Any]:
    kind = type(value).__name__
    if BUILDABLE[part].get(kind) is not type(value):
        raise BadValue(f"cannot save a model whose {part} is {kind}; only {', '.join(BUILDABLE[part])} can be rebuilt.")
    return {"class": kind, "args": value.config if part == "net" else dataclasses.asdict(value)}


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU, floating point as float32, or as float16 where that loses nothing."""
    out = {}
    for key, value in state.items():
        value = value.detach().cpu()
        if value.is_floating_point():
            value = value.float()
            value = value.half() if torch.equal(value.half().float(), value) else value
        out[key] = value.contiguous().clone()
    return out


def _narrowest(value: Tensor) -> Tensor:
    """float32 where that loses nothing."""
    return value.float() if value.is_floating_point() and torch.equal(value.float().to(value.dtype), value) else value


def _serialised(tensors: dict[str, Tensor]) -> bytes:
    from safetensors.torch import save

    return save(tensors)
