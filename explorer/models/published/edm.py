"""Networks pickled by NVlabs/edm: instances with the source text of their classes, which is dropped unread.

Sources: Karras et al. 2022, arXiv 2206.00364; layout of its released files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from explorer.errors import BadFile
from explorer.models.published.files import Module, Stored
from explorer.models.published.mapping import Checked, Part, first_rows, heads_last, radians, wanted
from explorer.models.published.plan import Plan, Process, Wanted, multiples, sized, width
from explorer.nets.edm_blocks import FAMILIES
from explorer.process.paths import EDM, VP
from explorer.process.precondition import EDMPrecondition, EpsPrecondition, IDDPMPrecondition, VEPrecondition

PARTS = {
    "norm0": Part(("norm0",)), "conv0": Part(("conv0",)), "affine": Part(("affine",)), "norm1": Part(("norm1",)),
    "conv1": Part(("conv1",)), "shortcut": Part(("skip",)), "attention.norm": Part(("norm2",)),
    "attention.qkv": Part(("qkv",), heads_last, "regrouped"), "attention.out": Part(("proj",)), "conv": Part(("",)), "mix": Part(("",)),
    "norm": Part(("norm",)), "out": Part(("conv",)),
}  # fmt: skip
TOPS = {
    "embedding": Part(("model.map_noise",), radians, "in radians", {"frequencies": "freqs"}),
    "embedding.label": Part(("model.map_label",)), "embedding.augment": Part(("model.map_augment",)),
    "embedding.layer0": Part(("model.map_layer0",)), "embedding.layer1": Part(("model.map_layer1",)),
}  # fmt: skip
RANGE = (0.002, 80.0)
"""Where EDM samples; its own networks say that they work from 0 to infinity."""


def find(content: Any) -> Module | None:
    """The network in a file's content: its moving average, or the network alone."""
    if isinstance(content, dict):
        content = next((content[k] for k in ("ema", "net") if isinstance(content.get(k), Module)), None)
    return content if isinstance(content, Module) else None


def plan(content: Any) -> Plan:
    """What the pickled network is.

    Raises:
        BadFile: a class that is none of NVlabs/edm's, or options of it that our network lacks.
    """
    outer = find(content)
    if outer is None:
        raise BadFile("it holds no pickled network under 'ema'.")
    model = outer.attribute("_modules")
    model = model.get("model") if isinstance(model, dict) else None
    if outer.kind not in PROCESSES or not isinstance(model, Module):
        raise BadFile(
            f"its network is a {outer.kind[:60]!r}; read are {', '.join(PROCESSES)} around SongUNet or DhariwalUNet, and EDM2's Precond."
        )
    if model.kind not in ("SongUNet", "DhariwalUNet"):
        raise BadFile(f"its network is a {model.kind[:60]!r} in a {outer.kind}; read are SongUNet and DhariwalUNet.")
    tensors = outer.tensors()
    config = _config(model, {n.removeprefix("model."): t for n, t in tensors.items()})
    classes = outer.attribute("label_dim", config["n_classes"])
    if classes != config["n_classes"]:
        raise BadFile(f"it says that it knows {classes!r} classes, but its weights are of {config['n_classes']}.")
    process = PROCESSES[outer.kind](outer)
    low, high = process.sigma_range
    endless = not (low > 0 and math.isfinite(high))
    if endless:
        process = Process(
            process.path, process.precondition, (low or RANGE[0], high if math.isfinite(high) else RANGE[1])
        )
    learnt = width(tensors, f"model.{_out(config)}.weight", 0) == 2 * config["shape"][0]
    data = content.get("dataset_kwargs") if isinstance(content, dict) else None
    path = data.get("path") if isinstance(data, dict) else None
    return Plan(
        format="edm",
        config=config,
        tensors=tensors,
        wanted=lambda net: wanted_of(net, config, learnt),
        process=process,
        checked=_checked(tensors, config, process),
        facts={"classes": [outer.kind, model.kind], **({"trained_on": str(path)[-80:]} if path else {})},
        assumed=(f"noise levels from {RANGE[0]:g} to {RANGE[1]:g}: the file says from {low:g} to {high:g}",)
        if endless
        else (),
        unused=tuple(k for k in content if content[k] is not outer and k != "dataset_kwargs" and content[k] is not None)
        if isinstance(content, dict)
        else (),
    )


def _config(model: Module, tensors: Mapping[str, Stored]) -> dict[str, Any]:
    """Of our network, from the names and shapes of its tensors."""
    song = model.kind == "SongUNet"
    sizes = sorted({int(m[1]) for n in tensors if (m := re.match(r"enc\.(\d{1,5})x\1_block0\.", n))}, reverse=True)
    if not sizes or any(a != 2 * b for a, b in zip(sizes[:-1], sizes[1:], strict=True)):
        raise BadFile(f"its levels have {sizes} pixels a side, where each is half the one before.")
    top, n_colours = sized(sizes[0]), width(tensors, f"enc.{sizes[0]}x{sizes[0]}_conv.weight", 1)
    fourier = "map_noise.freqs" in tensors
    n_noise, n_emb = width(tensors, "map_layer0.weight", 1), width(tensors, "map_layer0.weight", 0)
    base = width(tensors, f"enc.{top}x{top}_conv.weight", 0) if song else n_noise
    widths = [width(tensors, f"enc.{s}x{s}_block0.conv0.weight", 0) for s in sizes]
    blocks = sum(1 for i in range(64) if f"enc.{top}x{top}_block{i}.conv0.weight" in tensors)
    residual, mixed = (any(f"_aux_{kind}." in n for n in tensors) for kind in ("residual", "skip"))
    summed = sum(n.endswith("_aux_conv.weight") for n in tensors) > 1
    family = "adm" if not song else "ncsn++" if fourier or residual else "ddpm++"
    differs: dict[str, Any] = {}
    known = FAMILIES[family]
    noise_mult = n_noise / base
    paths = {"residual_encoder": residual, "skip_encoder": mixed, "skip_decoder": summed}
    for name, value in {"noise_mult": noise_mult, **paths, "kernel": _kernel(tensors)}.items():
        if value is not None and value != getattr(known, name):
            differs[name] = value
    if noise_mult != int(noise_mult):
        raise BadFile(f"its noise embedding has {n_noise} features, no multiple of the base width {base}.")
    if "noise_mult" in differs:
        differs["noise_mult"] = int(noise_mult)
    block = block_of(model, "enc", f"{top}x{top}_block0")
    for name, theirs in (("eps", _attribute(block, "norm0", "eps")), ("scale", block.attribute("skip_scale"))):
        if isinstance(theirs, int | float) and not math.isclose(theirs, getattr(known, name), rel_tol=1e-6):
            differs[name] = float(theirs)
    dropout = block.attribute("dropout", 0.0)
    return {
        "shape": [n_colours, top, top],
        "channels": base,
        "mult": multiples(widths, base),
        "blocks": blocks,
        "attention": [s for s in sizes if f"enc.{s}x{s}_block0.qkv.weight" in tensors],
        "n_classes": width(tensors, "map_label.weight", 1) if "map_label.weight" in tensors else 0,
        "n_augment": width(tensors, "map_augment.weight", 1) if "map_augment.weight" in tensors else 0,
        "dropout": float(dropout) if isinstance(dropout, int | float) and 0 <= dropout < 1 else 0.0,
        "family": family,
        "embedding": "fourier" if fourier else "positional",
        "n_emb": n_emb,
        **({"differs": differs} if differs else {}),
    }


def block_of(model: Module, *names: str) -> Module:
    """A part of a pickled network by the names that lead to it."""
    found: Any = model
    for name in names:
        inner = found.attribute("_modules")
        found = inner.get(name) if isinstance(inner, dict) else None
        if not isinstance(found, Module):
            raise BadFile(f"its network has no part {name!r}.")
    return found


def _attribute(block: Module, part: str, name: str) -> Any:
    inner = block.attribute("_modules")
    inner = inner.get(part) if isinstance(inner, dict) else None
    return inner.attribute(name) if isinstance(inner, Module) else None


def _kernel(tensors: Mapping[str, Stored]) -> tuple[int, ...] | None:
    """Of resampling, as small whole numbers; None for a network of one level."""
    names = [n for n in tensors if n.endswith("resample_filter")]
    if not names:
        return None
    square = tensors[names[0]].tensor().double()
    if square.ndim != 4 or square.shape[0] * square.shape[1] != 1 or not 2 <= len(square[0, 0]) <= 16:
        raise BadFile(f"{names[0]} of shape {tuple(square.shape)} is no resampling kernel.")
    line = square[0, 0].sum(0)
    whole = (line / line[0]).round() if float(line[0]) > 0 else torch.zeros(1)
    if not torch.allclose(whole.outer(whole) / whole.sum() ** 2, square[0, 0], atol=1e-6) or float(whole.max()) > 100:
        raise BadFile(f"{names[0]} is no separable kernel of whole numbers.")
    return tuple(int(n) for n in whole)


def _out(config: Mapping[str, Any]) -> str:
    top = config["shape"][1]
    return "out_conv" if config["family"] == "adm" else f"dec.{top}x{top}_aux_conv"


def wanted_of(net: nn.Module, config: Mapping[str, Any], learnt: bool) -> Wanted:
    """Our tensors with the names of theirs, for a network of this configuration; `learnt`: theirs also predicts a variance."""
    top, low = config["shape"][1], config["shape"][1] >> (len(config["mult"]) - 1)
    places = {f"middle.{i}": f"model.dec.{low}x{low}_in{i}." for i in range(2)}
    places |= {f"decoder.{name}": f"model.dec.{name}." for name in net.decoder}
    image = "_aux_skip" if config.get("differs", {}).get("skip_encoder") else "_aux_residual"
    places |= {f"encoder.{n}": f"model.enc.{n.replace('_image', image)}." for n in net.encoder}
    places = {key: (place.replace("_image.", "_aux_"), place) for key, place in places.items()}
    norm = "out_norm" if config["family"] == "adm" else f"dec.{top}x{top}_aux_norm"
    last = (
        Part((f"model.{_out(config)}",), first_rows, "cut: the variance is not used")
        if learnt
        else Part((f"model.{_out(config)}",))
    )
    tops = {**TOPS, "stem": Part((f"model.enc.{top}x{top}_conv",)), "norm": Part((f"model.{norm}",)), "out": last}
    return wanted(net, tops, PARTS, places)


def _checked(tensors: Mapping[str, Stored], config: Mapping[str, Any], process: Process) -> dict[str, Checked]:
    kernel = torch.tensor(
        config.get("differs", {}).get("kernel", FAMILIES[config["family"]].kernel), dtype=torch.float64
    )
    square = (kernel.outer(kernel) / kernel.sum() ** 2)[None, None]
    out = {n: Checked(lambda v: square) for n in tensors if n.endswith(".resample_filter")}
    if "u" in tensors:
        levels = process.precondition.levels() if isinstance(process.precondition, IDDPMPrecondition) else None
        out["u"] = Checked(lambda v: levels, rtol=1e-3)  # theirs is summed up in float32
    return out


def numbers(outer: Module, **defaults: float) -> dict[str, float]:
    """Attributes of the outer module that must be numbers."""
    out = {}
    for name, default in defaults.items():
        value = outer.attribute(name, default)
        value = value.tensor() if isinstance(value, Stored) else value
        value = float(value) if isinstance(value, Tensor) and value.numel() == 1 else value
        if not isinstance(value, int | float) or math.isnan(value):
            raise BadFile(f"its {name} is {value!r}, not a number.")
        out[name] = float(value)
    return out


def _span(low: float, high: float) -> tuple[float, float]:
    if not 0 <= low < high:
        raise BadFile(f"its noise levels go from {low:g} to {high:g}.")
    return low, high


def _edm(outer: Module) -> Process:
    n = numbers(outer, sigma_min=0.0, sigma_max=math.inf, sigma_data=0.5)
    if not 0 < n["sigma_data"] < math.inf:
        raise BadFile(f"its sigma_data is {n['sigma_data']:g}.")
    return Process(EDM(), EDMPrecondition(n["sigma_data"]), _span(n["sigma_min"], n["sigma_max"]))


def _vp(outer: Module) -> Process:
    n = numbers(outer, beta_min=0.1, beta_d=19.9, M=1000, epsilon_t=1e-5)
    if not (0 < n["beta_min"] < 1e3 and 0 < n["beta_d"] < 1e3 and 0 < n["epsilon_t"] < 1):
        raise BadFile(
            f"its noise schedule is beta_min={n['beta_min']:g}, beta_d={n['beta_d']:g}, epsilon_t={n['epsilon_t']:g}."
        )
    path = VP(n["beta_min"], n["beta_d"])
    return Process(path, EpsPrecondition(n["M"] - 1), (path.ratio_at(n["epsilon_t"]), path.ratio_at(1.0)))


def _ve(outer: Module) -> Process:
    n = numbers(outer, sigma_min=0.02, sigma_max=100.0)
    return Process(EDM(), VEPrecondition(), _span(n["sigma_min"], n["sigma_max"]))


def _iddpm(outer: Module) -> Process:
    n = numbers(outer, M=1000, C_1=0.001, C_2=0.008)
    if not (2 <= n["M"] <= 100_000 and 0 < n["C_1"] < 1 and 0 < n["C_2"] < 1):
        raise BadFile(f"its noise schedule is M={n['M']:g}, C_1={n['C_1']:g}, C_2={n['C_2']:g}.")
    precondition = IDDPMPrecondition(int(n["M"]), n["C_1"], n["C_2"])
    levels = precondition.levels()
    return Process(EDM(), precondition, (float(levels[-2]), float(levels[0])))


PROCESSES = {"EDMPrecond": _edm, "VPPrecond": _vp, "VEPrecond": _ve, "iDDPMPrecond": _iddpm}
"""What the class around the network says of its output."""
