"""State dicts of facebookresearch/DiT: a transformer on latents, alone or in a training checkpoint with its moving average.

The weights do not say into how many heads attention is cut: `HEADS` knows the published widths, for others the option says it.

Source: Peebles and Xie 2023, arXiv 2212.09748.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from explorer.errors import BadFile, BadValue
from explorer.models.published.files import Stored
from explorer.models.published.mapping import Checked, Part, wanted
from explorer.models.published.plan import Plan, Wanted, indices, process_named, shape_of, sized, width
from explorer.nets.dit import DiT, places_of

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Width -> heads, of DiT-S, B, L and XL."""
PARTS = {
    "attention.qkv": Part(("attn.qkv",)), "attention.out": Part(("attn.proj",)), "mlp.0": Part(("mlp.fc1",)),
    "mlp.2": Part(("mlp.fc2",)), "modulation": Part(("adaLN_modulation.1",)),
}  # fmt: skip
TOPS = {
    "": Part(("y_embedder.embedding_table",), leaves={"table": "weight"}), "stem": Part(("x_embedder.proj",)),
    "noise.0": Part(("t_embedder.mlp.0",)), "noise.2": Part(("t_embedder.mlp.2",)),
    "modulation": Part(("final_layer.adaLN_modulation.1",)), "out": Part(("final_layer.linear",)),
}  # fmt: skip


def fits(content: Any) -> bool:
    """Whether this is such a state dict, or a checkpoint that holds one."""
    return bool(_named(content)[0])


def _named(content: Any) -> tuple[dict[str, Any], str]:
    """The state dict, "module." cut off, and the key it lies under; empty where there is none."""
    if not isinstance(content, dict):
        return {}, ""
    for key in ("ema", "model", ""):
        state = content.get(key) if key else content
        named = {str(k).removeprefix("module."): v for k, v in state.items()} if isinstance(state, dict) else {}
        if {"x_embedder.proj.weight", "pos_embed"} <= named.keys():
            return named, key
    return {}, ""


def plan(content: Mapping[str, Any], options: Mapping[str, Any]) -> Plan:
    """What the state dict is.

    Args:
        options: "process" (by default ddpm-linear, what DiT learns), "heads".
    Raises:
        BadFile: another transformer. BadValue: the number of heads is needed.
    """
    named, under = _named(content)
    tensors = {k: v for k, v in named.items() if isinstance(v, Stored)}
    stem = shape_of(tensors, "x_embedder.proj.weight")
    places = shape_of(tensors, "pos_embed")
    if len(stem) != 4 or stem[2] != stem[3] or len(places) != 3 or places[2] != stem[0]:
        raise BadFile(f"patches of shape {stem} and places of shape {places} are no DiT.")
    features, n_colours, patch, side = stem[0], stem[1], stem[2], math.isqrt(places[1])
    if side * side != places[1]:
        raise BadFile(f"its {places[1]} patches are no square.")
    heads = options.get("heads") or HEADS.get(features)
    if heads is None:
        raise BadValue(f"the weights do not say into how many heads a width of {features} is cut: give --heads.")
    n_last = width(tensors, "final_layer.linear.weight", 0)
    if n_last not in (patch * patch * n_colours, 2 * patch * patch * n_colours):
        raise BadFile(
            f"it returns {n_last} numbers a patch, which are neither its {n_colours} channels nor twice as many."
        )
    if "y_embedder.embedding_table.weight" not in tensors:
        raise BadFile("it has no table of classes (y_embedder); DiT has one with a last row for the null class.")
    process = options.get("process") or "ddpm-linear"
    config = {
        "shape": [n_colours, sized(side * patch), sized(side * patch)],
        "patch": patch,
        "width": features,
        "depth": indices(tensors, "blocks."),
        "heads": heads,
        "n_classes": width(tensors, "y_embedder.embedding_table.weight", 0) - 1,
        "variance": n_last == 2 * patch * patch * n_colours,
    }
    if config["n_classes"] < 1:
        raise BadFile("its table of classes has a single row; DiT's has one more than there are classes.")
    latents = (
        (f"it makes latents of {n_colours} channels, of an autoencoder that is not in the file",)
        if n_colours == 4
        else ()
    )
    return Plan(
        format="dit",
        config=config,
        tensors=tensors,
        wanted=wanted_of,
        process=process_named(process),
        checked={"pos_embed": Checked(lambda v: places_of((side, side), features)[None])},
        facts={"process": process, **({"weights": "moving average" if under == "ema" else "as trained last"} if under else {})},
        assumed=(
            *(() if options.get("process") else ("process 'ddpm-linear', as DiT is trained",)),
            f"{heads} attention heads",
            "the last row of its table of classes is the null class",
            *latents,
        ),
        unused=tuple(str(k) for k in content if k != under) if under else (),
        make=DiT,
    )  # fmt: skip


def wanted_of(net: nn.Module) -> Wanted:
    """Our tensors with the names of theirs."""
    places = {f"blocks.{i}": (f"blocks.{i}.", f"blocks.{i}.") for i in range(len(net.blocks))}
    return wanted(net, TOPS, PARTS, places)
