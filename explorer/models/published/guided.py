"""State dicts of openai's U-Net: guided-diffusion, consistency_models, improved-diffusion.

The weights say neither the size of the images, nor how the heads of attention are cut, nor what the output means. For the files that
were published under a known name `KNOWN` does; for others the options say it.

Sources: Dhariwal and Nichol 2021, arXiv 2105.05233; Song et al. 2023, arXiv 2303.01469; Nichol and Dhariwal 2021, arXiv 2102.09672.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from explorer.errors import BadFile, BadValue, UnknownName
from explorer.models.published.files import Stored
from explorer.models.published.mapping import Part, first_rows, heads_first, transposed, wanted
from explorer.models.published.plan import Plan, Wanted, indices, multiples, process_named, shape_of, sized, width

ORDERS = ("new", "legacy")
"""Of the rows of the query-key-value maps: all queries first, or head by head."""

_CM64 = {"size": 64, "attention_order": "new", "head_dim": 64}
_CM256 = {**_CM64, "size": 256}
_ADM = {"attention_order": "legacy", "process": "ddpm-linear", "head_dim": 64}
KNOWN: dict[str, dict[str, Any]] = {
    "64x64_diffusion": {"size": 64, "attention_order": "new", "process": "ddpm-cosine", "head_dim": 64},
    "128x128_diffusion": {**_ADM, "size": 128, "head_dim": None, "heads": 4},
    "256x256_diffusion": {**_ADM, "size": 256},
    "256x256_diffusion_uncond": {**_ADM, "size": 256},
    "512x512_diffusion": {**_ADM, "size": 512},
    **{f"lsun_{name}": {**_ADM, "size": 256} for name in ("bedroom", "cat", "horse", "horse_nodropout")},
    "edm_imagenet64_ema": {**_CM64, "process": "edm-1000"},
    **{
        f"{name}_imagenet64{tail}": {**_CM64, "process": "consistency"}
        for name, tail in (("cd", "_l2"), ("cd", "_lpips"), ("ct", ""))
    },
}
for _room in ("bedroom256", "cat256"):
    KNOWN[f"edm_{_room}_ema"] = {**_CM256, "process": "edm-1000"}
    KNOWN |= {
        f"{name}_{_room}{tail}": {**_CM256, "process": "consistency"}
        for name, tail in (("cd", "_l2"), ("cd", "_lpips"), ("ct", ""))
    }
"""Published file (without .pt) -> what its weights do not say, from the flags given with it."""

NEEDED = {"size": "--size PIXELS", "process": "--process (edm-1000, consistency, ddpm-linear, ddpm-cosine)"}

PARTS = {
    "norm0": Part(("in_layers.0",)), "conv0": Part(("in_layers.2",)), "affine": Part(("emb_layers.1",)),
    "norm1": Part(("out_layers.0",)), "conv1": Part(("out_layers.3",)), "shortcut": Part(("skip_connection",)),
    "attention.norm": Part(("norm",)), "attention.qkv": Part(("qkv",)), "attention.out": Part(("proj_out",)),
}  # fmt: skip
TOPS = {
    "stem": Part(("input_blocks.0.0",)), "norm": Part(("out.0",)),
    "embedding.label": Part(("label_emb",), transposed, "transposed"),
    "embedding.layer0": Part(("time_embed.0",)), "embedding.layer1": Part(("time_embed.2",)),
}  # fmt: skip


def fits(content: Any) -> bool:
    """Whether this is a state dict of that U-Net."""
    return isinstance(content, dict) and any(str(k).removeprefix("module.") == "time_embed.0.weight" for k in content)


def plan(content: Mapping[str, Any], name: str, options: Mapping[str, Any]) -> Plan:
    """What the state dict is.

    Args:
        name: of the file, without ".pt".
        options: "size", "process", "head_dim", "heads", "attention_order", where the name does not tell or tells wrongly.
    Raises:
        BadFile: another network (a classifier, an upsampler), or names that are no U-Net of this kind.
        BadValue: an option is needed.
    """
    given = {**KNOWN.get(name, {}), **options}
    if "heads" in options:
        given["head_dim"] = None
    tensors = {k.removeprefix("module."): v for k, v in content.items() if isinstance(v, Stored)}
    if not any(n.startswith("output_blocks.") for n in tensors):
        raise BadFile("it is a classifier, the first half of a U-Net: nothing can be sampled from it.")
    missing = [k for k in NEEDED if k not in given]
    if missing:
        raise BadValue(
            f"the weights do not say {' and '.join(missing)}, and {name!r} is none of the published names: give "
            f"{' and '.join(NEEDED[k] for k in missing)}."
        )
    order = given.get("attention_order", "legacy")
    if order not in ORDERS:
        raise UnknownName("attention order", order, ORDERS)
    process, size = process_named(given["process"]), sized(given["size"])
    config, learnt = _config(tensors, size, given, process.frequency)
    assumed = [] if name in KNOWN else [
        f"{size} pixels a side, process {given['process']!r}",
        f"{given.get('heads') or '64 channels per'} attention head{'s' if given.get('heads') else ''}, their order {order!r}",
    ]  # fmt: skip
    return Plan(
        format="guided-diffusion",
        config=config,
        tensors=tensors,
        wanted=lambda net: wanted_of(net, learnt, order),
        process=process,
        facts={"process": given["process"]},
        assumed=tuple(assumed),
        unused=tuple(str(k) for k, v in content.items() if not isinstance(v, Stored)),
    )


def _config(
    tensors: Mapping[str, Stored], size: int, given: Mapping[str, Any], frequency: float
) -> tuple[dict[str, Any], bool]:
    """Of our network; and whether theirs also predicts a variance."""
    n_in, n_out = indices(tensors, "input_blocks."), indices(tensors, "output_blocks.")
    n_colours, n_last = width(tensors, "input_blocks.0.0.weight", 1), width(tensors, "out.2.weight", 0)
    if n_last not in (n_colours, 2 * n_colours) or (n_colours == 6 and n_last == 6):
        raise BadFile(
            f"it reads {n_colours} channels and returns {n_last}: an upsampler, which needs a small image; only generators are read."
        )
    n_emb, base = shape_of(tensors, "time_embed.0.weight")[:2]
    tails = ("in_layers.2.weight", "conv.weight")
    ups = [j for j in range(n_out) if any(f"output_blocks.{j}.{k}.{tail}" in tensors for k in (1, 2) for tail in tails)]
    blocks = ups[0] if ups else n_out - 1
    levels = n_out // (blocks + 1)
    if blocks < 1 or n_out != levels * (blocks + 1) or n_in != levels * (blocks + 1) or len(ups) != levels - 1:
        raise BadFile(
            f"{n_in} input blocks and {n_out} output blocks with {len(ups)} that double are no U-Net of this kind."
        )
    first = [1 + level * (blocks + 1) for level in range(levels)]
    widths = [width(tensors, f"input_blocks.{i}.0.in_layers.2.weight", 0) for i in first]
    attention = [size >> level for level, i in enumerate(first) if f"input_blocks.{i}.1.qkv.weight" in tensors]
    shifts = width(tensors, f"input_blocks.{first[0]}.0.emb_layers.1.weight", 0)
    heads = given.get("heads")
    differs: dict[str, Any] = {"groups": 32, "heads": heads, "head_dim": None if heads else given.get("head_dim", 64)}
    if any(f"input_blocks.{i - 1}.0.op.weight" in tensors for i in first[1:]):
        differs["between"] = "conv"
    if frequency != 1.0:
        differs["frequency"] = frequency
    return {
        "shape": [n_colours, size, size],
        "channels": base,
        "mult": multiples(widths, base),
        "blocks": blocks,
        "attention": attention,
        "n_classes": width(tensors, "label_emb.weight", 0) if "label_emb.weight" in tensors else 0,
        "family": "adm",
        "modulation": "scale" if shifts == 2 * widths[0] else "shift",
        "n_emb": n_emb,
        "differs": differs,
    }, n_last == 2 * n_colours


def wanted_of(net: nn.Module, learnt: bool, order: str) -> Wanted:
    """Our tensors with the names of theirs; `learnt`: theirs also predicts a variance; `order`: one of ORDERS."""
    places = {
        f"encoder.{name}": (f"input_blocks.{i}.0.", f"input_blocks.{i}.1.") for i, name in enumerate(net.encoder, 1)
    }
    places |= {"middle.0": ("middle_block.0.", "middle_block.1."), "middle.1": ("middle_block.2.", "")}
    j, attends = -1, False
    for name, block in net.decoder.items():
        if name.endswith("_up"):
            places[f"decoder.{name}"] = (f"output_blocks.{j}.{1 + attends}.", "")
            continue
        j, attends = j + 1, block.attention is not None
        places[f"decoder.{name}"] = (f"output_blocks.{j}.0.", f"output_blocks.{j}.1.")
    parts = PARTS if order == "new" else {**PARTS, "attention.qkv": Part(("qkv",), heads_first, "regrouped")}
    last = Part(("out.2",), first_rows, "cut: the variance is not used") if learnt else Part(("out.2",))
    found = wanted(net, {**TOPS, "out": last}, {**parts, "conv": Part(("",))}, places)
    return {key: (part, tuple(map(_resampled, [key] * len(names), names))) for key, (part, names) in found.items()}


def _resampled(ours: str, theirs: str) -> str:
    """The convolution between two levels has its own name on either side."""
    if ".conv." not in ours:
        return theirs
    head, _, leaf = theirs.rpartition(".")
    return f"{head}.{'op' if ours.startswith('encoder') else 'conv'}.{leaf}"
