"""Checkpoints of score_sde_pytorch and RectifiedFlow: numbered modules, and the moving average as a bare list.

Sources: Song et al. 2021, arXiv 2011.13456 (DDPM++, NCSN++, also with the image skips that it has for large pictures); Liu et al.
2022, arXiv 2209.03003.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from explorer.errors import BadFile, BadValue
from explorer.models.published.files import Stored
from explorer.models.published.mapping import Checked, Part, radians, transposed, wanted
from explorer.models.published.plan import Plan, Process, Wanted, multiples, process_named, shape_of, sized, width
from explorer.nets.edm_blocks import LevelImage

NIN = {"weight": "W", "bias": "b"}
PARTS = {
    "norm0": Part(("GroupNorm_0",)), "conv0": Part(("Conv_0",)), "affine": Part(("Dense_0",)),
    "norm1": Part(("GroupNorm_1",)), "conv1": Part(("Conv_1",)), "shortcut": Part(("Conv_2",)),
    "attention.norm": Part(("GroupNorm_0",)),
    "attention.qkv": Part(("NIN_0", "NIN_1", "NIN_2"), transposed, "transposed, joined", NIN),
    "attention.out": Part(("NIN_3",), transposed, "transposed", NIN), "conv": Part(("Conv2d_0",)),
    "mix": Part(("Conv_0",)),
}  # fmt: skip


def fits(content: Any) -> bool:
    """Whether this is such a checkpoint, or its state dict alone."""
    return bool(_named(content))


def _named(content: Any) -> dict[str, Any]:
    """The state dict, "module." cut off; empty where there is none."""
    state = content.get("model", content) if isinstance(content, dict) else None
    named = {str(k).removeprefix("module."): v for k, v in state.items()} if isinstance(state, dict) else {}
    return named if any(k.startswith("all_modules.") for k in named) else {}


def plan(content: Mapping[str, Any], name: str, options: Mapping[str, Any]) -> Plan:
    """What the checkpoint is.

    Args:
        options: "process" (flow, vp, ve), "size", "ema" (False takes the weights that were being trained).
    Raises:
        BadFile: another network, or a moving average of another one.
        BadValue: the process must be given.
    """
    tensors = {k: v for k, v in _named(content).items() if isinstance(v, Stored)}
    fourier = "all_modules.0.W" in tensors
    process = options.get("process") or ("ve" if fourier and (_pyramid(tensors) or _skips(tensors)) else None)
    if process is None:
        raise BadValue(
            "the file does not say what its network learnt: give --process flow (a rectified flow), vp, or ve (a score by score_sde)."
        )
    averaged = options.get("ema", True) and isinstance(content.get("ema"), dict)
    if averaged:
        tensors = _averaged(tensors, content["ema"])
    config, assumed = _config(tensors, fourier, options)
    return Plan(
        format="score-sde",
        config=config,
        tensors=tensors,
        wanted=lambda net: _wanted(net, fourier),
        process=_process(process, tensors),
        checked={"sigmas": Checked(lambda v: None, "not used by the network")} if "sigmas" in tensors else {},
        facts={"process": process, "weights": "moving average" if averaged else "as trained last",
               **({"step": content["step"]} if type(content.get("step")) is int else {})},
        assumed=assumed,
        unused=tuple(str(k) for k in content if k in ("optimizer", "step") or (k == "model" and averaged)) if "model" in content else (),
    )  # fmt: skip


def _process(name: str, tensors: Mapping[str, Stored]) -> Process:
    """The process; of a VE score with the noise levels that its file lists, which are of pictures in [0, 1]."""
    process = process_named(name)
    if name != "ve" or "sigmas" not in tensors:
        return process
    levels = tensors["sigmas"].tensor().double()
    if (
        levels.numel() < 2
        or not bool(torch.isfinite(levels).all())
        or not 0 < float(levels.min()) < float(levels.max())
    ):
        raise BadFile("its noise levels (sigmas) are not positive numbers.")
    return replace(process, sigma_range=(2 * float(levels.min()), 2 * float(levels.max())))


def _pyramid(tensors: Mapping[str, Stored]) -> bool:
    return any(re.fullmatch(r"all_modules\.\d+\.Conv2d_0\.weight", n) for n in tensors)


def _skips(tensors: Mapping[str, Stored]) -> list[int]:
    """Numbers of the 1x1 convolutions that mix the shrunk image in: blocks without an embedding."""
    found = (re.fullmatch(r"all_modules\.(\d{1,4})\.Conv_0\.weight", n) for n in tensors)
    return sorted(int(m[1]) for m in found if m and f"all_modules.{m[1]}.Dense_0.weight" not in tensors)


def _averaged(tensors: Mapping[str, Stored], ema: Mapping[str, Any]) -> dict[str, Stored]:
    """The tensors with those that were trained replaced by their averages, which are listed in the order of the parameters."""
    shadow = ema.get("shadow_params")
    trained = [n for n in tensors if n not in ("sigmas", "all_modules.0.W")]
    if not isinstance(shadow, list | tuple) or not all(isinstance(v, Stored) for v in shadow):
        raise BadFile("its moving average is no list of tensors.")
    if len(shadow) != len(trained):
        raise BadFile(
            f"its moving average has {len(shadow)} tensors where the network has {len(trained)} that are trained."
        )
    for name, value in zip(trained, shadow, strict=True):
        if value.shape != tensors[name].shape:
            raise BadFile(f"its moving average has shape {value.shape} for {name}, which has {tensors[name].shape}.")
    return {**tensors, **dict(zip(trained, shadow, strict=True))}


def _config(
    tensors: Mapping[str, Stored], fourier: bool, options: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Of our network, from the kinds of the numbered modules; and what was taken for granted."""
    begin = 3 if fourier else 2
    for i in range(begin):
        if i or not fourier:
            shape_of(tensors, f"all_modules.{i}.weight")
    stem = f"all_modules.{begin}.weight"
    base, n_colours = width(tensors, stem, 0), width(tensors, stem, 1)
    if len(shape_of(tensors, stem)) != 4:
        raise BadFile("its network is not conditioned on the noise level, or is another than DDPM++ and NCSN++.")
    widths, attends, counts, skips = [], [], [0], _skips(tensors)
    for i in skips:
        n_out, n_in = shape_of(tensors, f"all_modules.{i}.Conv_0.weight")[:2]
        if n_in != n_colours or width(tensors, f"all_modules.{i + 1}.Conv_0.weight", 1) != n_out:
            raise BadFile(f"module {i} joins the shrunk image otherwise than by addition (progressive_combine='sum').")
    for i in range(begin + 1, _decoder(tensors, begin + 1) - 3):
        name = f"all_modules.{i}.Conv_0.weight"
        if name not in tensors:
            continue
        n_out, n_in = shape_of(tensors, name)[:2]
        if i in skips:
            continue
        if n_in == n_out and f"all_modules.{i}.Conv_2.weight" in tensors:  # halves
            counts.append(0)
            continue
        if not counts[-1]:
            widths.append(n_out)
            attends.append(f"all_modules.{i + 1}.NIN_0.W" in tensors)
        counts[-1] += 1
    blocks = counts[0]
    if not widths or any(c != blocks for c in counts):
        raise BadFile("its residual blocks are not in the order of DDPM++ or NCSN++ with BigGAN blocks.")
    at = next((level for level, a in enumerate(attends) if a), 0)
    size = sized(options.get("size", 16 << at))
    fir = options.get("fir", fourier)
    differs: dict[str, Any] = {}
    residual = _pyramid(tensors)
    family = "ncsn++" if fourier else "ddpm++"
    if residual != fourier:
        differs["residual_encoder"] = residual
    if skips:
        differs["skip_encoder"] = True
    plain = (n for n in tensors if re.fullmatch(r"all_modules\.\d{1,4}\.weight", n) and n != stem)
    if sum(len(tensors[n].shape) == 4 for n in plain) > 1:
        differs["skip_decoder"] = True
    if fir != fourier:
        differs["kernel"] = [1, 3, 3, 1] if fir else [1, 1]
    assumed = [f"resampling {'with the kernel 1 3 3 1 (fir)' if fir else 'by averaging and repetition (no fir)'}"]
    if "size" not in options:
        assumed.append(f"{size} pixels a side, so that attention is at 16, as in the published configurations")
    config = {
        "shape": [n_colours, size, size],
        "channels": base,
        "mult": multiples(widths, base),
        "blocks": blocks,
        "attention": [size >> level for level, a in enumerate(attends) if a],
        "family": family,
        "n_classes": 0,
        "n_emb": width(tensors, f"all_modules.{begin - 1}.weight", 0),
        **({"differs": differs} if differs else {}),
    }
    return config, tuple(assumed)


def _decoder(tensors: Mapping[str, Stored], begin: int) -> int:
    """Number of the first block that also reads what the encoder kept: its input is wider than the output before it."""
    found = sorted(int(m[1]) for n in tensors if (m := re.fullmatch(r"all_modules\.(\d{1,4})\.Conv_0\.weight", n)))
    before = None
    for i in found:
        n_out, n_in = shape_of(tensors, f"all_modules.{i}.Conv_0.weight")[:2]
        if before is not None and n_in > before:
            return i
        before = n_out
    raise BadFile("its numbered modules are no U-Net of residual blocks.")


def _wanted(net: nn.Module, fourier: bool) -> Wanted:
    i = 3 if fourier else 2
    tops = {
        "embedding": Part(("all_modules.0",), radians, "in radians", {"frequencies": "W"}),
        "embedding.layer0": Part((f"all_modules.{i - 2}",)),
        "embedding.layer1": Part((f"all_modules.{i - 1}",)),
        "stem": Part((f"all_modules.{i}",)),
    }
    places = {}
    groups = (
        ("encoder", net.encoder.items()),
        ("middle", net.middle.named_children()),
        ("decoder", net.decoder.items()),
    )
    for group, blocks in groups:
        for name, block in blocks:
            i += 1
            places[f"{group}.{name}"] = (f"all_modules.{i}.", f"all_modules.{i + 1}.")
            if isinstance(block, LevelImage):
                tops[f"{group}.{name}.norm"] = Part((f"all_modules.{i}",))
                i += 1
                tops[f"{group}.{name}.out"] = Part((f"all_modules.{i}",))
            i += getattr(block, "attention", None) is not None
    tops |= {"norm": Part((f"all_modules.{i + 1}",)), "out": Part((f"all_modules.{i + 2}",))}
    return wanted(net, tops, PARTS, places)
