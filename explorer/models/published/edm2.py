"""Networks pickled by NVlabs/edm2.

Source: Karras et al. 2024, arXiv 2312.02696; layout of its released files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from explorer.errors import BadFile
from explorer.models.published import edm
from explorer.models.published.files import Module
from explorer.models.published.mapping import Change, Checked, Part, wanted
from explorer.models.published.plan import Plan, Process, Wanted, multiples, shape_of, sized, width
from explorer.nets.edm2_unet import EDM2UNet
from explorer.process.paths import EDM
from explorer.process.precondition import EDMPrecondition


def _regrouped(values: list[Tensor], layer: nn.Module, parent: nn.Module) -> Tensor:
    """Rows (heads, features, 3) to (3, heads, features)."""
    value = values[0]
    inner = value.reshape(parent.heads, len(value) // (3 * parent.heads), 3, -1).permute(2, 0, 1, 3)
    return inner.reshape(value.shape)


QKV: Change = _regrouped
GAIN = {"gain": "emb_gain"}
PARTS = {
    "": Part(("",), leaves=GAIN), "conv0": Part(("conv_res0",)), "conv1": Part(("conv_res1",)), "affine": Part(("emb_linear",)),
    "shortcut": Part(("conv_skip",)), "qkv": Part(("attn_qkv",), QKV, "regrouped"), "out": Part(("attn_proj",)),
}  # fmt: skip
NOISE = {"frequencies": "freqs", "phases": "phases"}


def fits(content: Any) -> bool:
    found = edm.find(content)
    return found is not None and found.kind == "Precond"


def plan(content: Any) -> Plan:
    """What the pickled network is.

    Raises:
        BadFile: another network than EDM2's UNet.
    """
    outer = edm.find(content)
    inner = outer.attribute("_modules")
    unet = inner.get("unet") if isinstance(inner, dict) else None
    if not isinstance(unet, Module) or unet.kind != "UNet":
        raise BadFile("its Precond holds no UNet of EDM2.")
    tensors = outer.tensors()
    config = _config(unet, {n.removeprefix("unet."): t for n, t in tensors.items() if n.startswith("unet.")})
    [sigma_data] = edm.numbers(outer, sigma_data=0.5).values()
    if not 0 < sigma_data < 1e6:
        raise BadFile(f"its sigma_data is {sigma_data:g}.")
    encoder = content.get("encoder") if isinstance(content, dict) else None
    facts: dict[str, Any] = {"classes": ["Precond", "UNet"]}
    if isinstance(encoder, Module):
        facts["encoder"] = encoder.kind
    return Plan(
        format="edm2",
        config=config,
        tensors=tensors,
        wanted=_wanted,
        process=Process(EDM(), EDMPrecondition(sigma_data), edm.RANGE),
        checked={n: Checked(lambda v: None, "not used in sampling") for n in tensors if n.startswith("logvar_")},
        facts=facts,
        assumed=(f"noise levels from {edm.RANGE[0]:g} to {edm.RANGE[1]:g}",),
        unused=tuple(k for k in content if content[k] is not outer and content[k] is not None)
        if isinstance(content, dict)
        else (),
        make=EDM2UNet,
    )


def _config(unet: Module, tensors: Mapping[str, Any]) -> dict[str, Any]:
    sizes = sorted({int(m[1]) for n in tensors if (m := re.match(r"enc\.(\d{1,5})x\1_block0\.", n))}, reverse=True)
    if not sizes or any(a != 2 * b for a, b in zip(sizes[:-1], sizes[1:], strict=True)):
        raise BadFile(f"its levels have {sizes} pixels a side, where each is half the one before.")
    top, low = sized(sizes[0]), sizes[-1]
    widths = [width(tensors, f"enc.{s}x{s}_block0.conv_res0.weight", 0) for s in sizes]
    block, middle = edm.block_of(unet, "enc", f"{top}x{top}_block0"), edm.block_of(unet, "dec", f"{low}x{low}_in0")
    heads = middle.attribute("num_heads")
    if type(heads) is not int or not 0 < heads <= widths[-1] or widths[-1] % heads:
        raise BadFile(f"its attention has {heads!r} heads of {widths[-1]} channels.")
    kernel = block.attribute("resample_filter", [1, 1])
    if (
        not isinstance(kernel, list | tuple)
        or not kernel
        or not all(isinstance(k, int) and 0 < k < 100 for k in kernel)
    ):
        raise BadFile(f"its resampling kernel is {kernel!r}.")
    shares = {"res_balance": "balance", "attn_balance": "attention_balance"}
    own = {ours: _share(block, theirs, 0.3) for theirs, ours in shares.items()}
    clip = block.attribute("clip_act", 256)
    n_in = width(tensors, f"enc.{top}x{top}_conv.weight", 1)
    dropout = block.attribute("dropout", 0)
    return {
        "shape": [n_in - 1, top, top],
        "channels": widths[0],
        "mult": multiples(widths, widths[0]),
        "blocks": sum(1 for i in range(64) if f"enc.{top}x{top}_block{i}.conv_res0.weight" in tensors),
        "attention": [s for s in sizes if f"enc.{s}x{s}_block0.attn_qkv.weight" in tensors],
        "n_classes": width(tensors, "emb_label.weight", 1) if "emb_label.weight" in tensors else 0,
        "n_noise": shape_of(tensors, "emb_fourier.freqs")[0],
        "n_emb": width(tensors, "emb_noise.weight", 0),
        "head_dim": widths[-1] // heads,
        "label_balance": _share(unet, "label_balance", 0.5),
        "concat_balance": _share(unet, "concat_balance", 0.5),
        **own,
        "clip": float(clip) if isinstance(clip, int | float) and clip > 0 else None,
        "dropout": float(dropout) if isinstance(dropout, int | float) and 0 <= dropout < 1 else 0.0,
        "kernel": list(kernel),
    }


def _share(part: Module, name: str, default: float) -> float:
    value = part.attribute(name, default)
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise BadFile(f"its {name} is {value!r}, not a share between 0 and 1.")
    return float(value)


def _wanted(net: nn.Module) -> Wanted:
    top, low = net.shape[1], net.shape[1] >> (len(net.config["mult"]) - 1)
    places = {f"middle.{i}": f"unet.dec.{low}x{low}_in{i}." for i in range(2)}
    places |= {f"encoder.{name}": f"unet.enc.{name}." for name in net.encoder}
    places |= {f"decoder.{name}": f"unet.dec.{name}." for name in net.decoder}
    tops = {
        "": Part(("unet",), leaves={"gain": "out_gain"}),
        "stem": Part((f"unet.enc.{top}x{top}_conv",)), "out": Part(("unet.out_conv",)), "noise": Part(("unet.emb_noise",)),
        "label": Part(("unet.emb_label",)), "fourier": Part(("unet.emb_fourier",), leaves=NOISE),
    }  # fmt: skip
    return wanted(net, tops, PARTS, {key: (place, place) for key, place in places.items()})
