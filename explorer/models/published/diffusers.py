"""Folders of diffusers' UNet2DModel: config.json and weights, alone or inside a pipeline with its scheduler.

Sources: Ho et al. 2020, arXiv 2006.11239 (its networks); the formats of the diffusers library, versions 0.20 to 0.36.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from explorer.errors import BadFile, BadValue
from explorer.models.published.files import MAX_BYTES, Stored, opened
from explorer.models.published.mapping import Part, joined, transposed, wanted
from explorer.models.published.plan import Plan, Process, Wanted, indices, multiples, process_named, sized, width
from explorer.process.paths import EDM, Linear
from explorer.process.precondition import ConsistencyPrecondition, DDPMPrecondition, EDMPrecondition, FlowPrecondition

WEIGHTS = "diffusion_pytorch_model"
SUFFIXES = (".safetensors", ".fp16.safetensors", ".bin")
MAX_JSON = 2**20

PARTS = {
    "norm0": Part(("norm1",)), "conv0": Part(("conv1",)), "affine": Part(("time_emb_proj",)), "norm1": Part(("norm2",)),
    "conv1": Part(("conv2",)), "shortcut": Part(("conv_shortcut",)), "attention.norm": Part(("group_norm",)),
    "attention.qkv": Part(("to_q", "to_k", "to_v"), joined, "joined"), "attention.out": Part(("to_out.0",)),
    "conv": Part(("conv",)),
}  # fmt: skip
OLD = {"attention.qkv": Part(("query", "key", "value"), joined, "joined"), "attention.out": Part(("proj_attn",))}
TOPS = {
    "stem": Part(("conv_in",)), "norm": Part(("conv_norm_out",)), "out": Part(("conv_out",)),
    "embedding.label": Part(("class_embedding",), transposed, "transposed"),
    "embedding.layer0": Part(("time_embedding.linear_1",)), "embedding.layer1": Part(("time_embedding.linear_2",)),
}  # fmt: skip
BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
PREDICTS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


def fits(folder: Path) -> bool:
    """Whether this is a folder of a network, or of a pipeline with one."""
    return any((folder / name).is_file() for name in ("config.json", "model_index.json", "unet/config.json"))


def weights_of(folder: Path) -> Path:
    """The file of weights in a folder, which `plan` reads.

    Raises:
        BadFile: there is none, or only one in pieces.
    """
    place = _network(folder)
    for suffix in SUFFIXES:
        file = place / (WEIGHTS + suffix)
        if file.is_file():
            if (
                not file.resolve().is_relative_to(folder.resolve())
                and file.is_symlink()
                and not _in_cache(file, folder)
            ):
                raise BadFile(f"{file.name} in {folder.name} leads out of the folder, to {file.resolve().name}.")
            return file
    if list(place.glob("*.index.json")):
        raise BadFile(
            f"{place.name} holds its weights in several files; join them with diffusers' save_pretrained first."
        )
    raise BadFile(f"{place.name} holds no weights: expected {WEIGHTS}.safetensors or .bin.")


def _in_cache(file: Path, folder: Path) -> bool:
    """Links of the Hub's cache lead from snapshots/<revision>/ to blobs/ beside it, and nowhere else."""
    repository = next((p.parent for p in folder.absolute().parents if p.name == "snapshots"), None)
    return repository is not None and file.resolve().is_relative_to((repository / "blobs").resolve())


def plan(folder: Path, options: Mapping[str, Any], held: contextlib.ExitStack) -> Plan:
    """What the folder holds.

    Raises:
        BadFile: not readable, or a network with options that ours lacks, which the message names.
        BadValue: there is no scheduler beside it and no process was given.
    """
    about = _json(_network(folder) / "config.json")
    tensors = _tensors(weights_of(folder), held)
    process, said, assumed = _process(folder, options)
    config, mapped = _config(about, tensors, process.frequency, options)
    return Plan(
        format="diffusers",
        config=config,
        tensors=tensors,
        wanted=lambda net: _wanted(net, tensors, mapped),
        process=process,
        facts={"classes": ["UNet2DModel"], "process": said},
        assumed=assumed,
    )


def _network(folder: Path) -> Path:
    return folder / "unet" if (folder / "unet" / "config.json").is_file() else folder


def _json(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_JSON:
            raise BadFile(f"{file.name} has {file.stat().st_size} bytes, too many for a configuration.")
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadFile(f"{file.name} cannot be read: {error}.") from None
    if not isinstance(content, dict):
        raise BadFile(f"{file.name} is not a configuration: it holds a {type(content).__name__}.")
    return content


def _tensors(file: Path, held: contextlib.ExitStack) -> dict[str, Stored | Tensor]:
    if file.suffix == ".bin":
        content = held.enter_context(opened(file))
        if not isinstance(content, dict):
            raise BadFile(f"it holds a {type(content).__name__}, not the weights of a network.")
        return {k: v for k, v in content.items() if isinstance(v, Stored)}
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file.stat().st_size > MAX_BYTES:
            raise BadFile(f"{file.name} has {file.stat().st_size / 2**30:.0f} GiB.")
        return load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise BadFile(f"{file.name} is damaged or incomplete: {error}.") from None


def _process(folder: Path, options: Mapping[str, Any]) -> tuple[Process, str, tuple[str, ...]]:
    """From the scheduler beside the network, or by the name given."""
    if "process" in options:
        return process_named(options["process"]), options["process"], ()
    places = (folder / "scheduler", folder, folder.parent / "scheduler")
    file = next((f for p in places if (f := p / "scheduler_config.json").is_file()), None)
    if file is None:
        raise BadValue(
            "there is no scheduler_config.json beside the network, and its weights do not say what it learnt: give --process "
            "(ddpm-linear for most, ddpm-scaled, ddpm-cosine, edm, consistency)."
        )
    about = _json(file)
    kind = str(about.get("_class_name"))
    try:
        process = _scheduled(kind, about)
    except (TypeError, BadValue) as error:
        raise BadFile(f"{file.name} describes no noise schedule: {error}") from None
    return process, kind, () if kind != "None" else ("a DDPM scheduler, since its class is not named",)


def _scheduled(kind: str, about: Mapping[str, Any]) -> Process:
    if kind == "CMStochasticIterativeScheduler":
        low, high = float(about.get("sigma_min", 0.002)), float(about.get("sigma_max", 80.0))
        precondition = ConsistencyPrecondition(float(about.get("sigma_data", 0.5)), low)
        return Process(EDM(), precondition, _range(low, high), True, frequency=1000.0)
    if kind.startswith("EDM"):
        span = _range(float(about.get("sigma_min", 0.002)), float(about.get("sigma_max", 80.0)))
        return Process(EDM(), EDMPrecondition(float(about.get("sigma_data", 0.5))), span)
    if kind.startswith("FlowMatch"):
        path = Linear()
        return Process(
            path,
            FlowPrecondition(float(about.get("num_train_timesteps", 1000))),
            (path.ratio_at(1e-4), path.ratio_at(0.999)),
        )
    if kind.startswith("ScoreSde") or kind == "KarrasVeScheduler":
        raise BadValue(f"{kind} is not read; give --process.")
    if about.get("trained_betas") is not None:
        raise BadValue("its betas are listed one by one, which is not read.")
    betas, predicts = about.get("beta_schedule", "linear"), about.get("prediction_type", "epsilon")
    if betas not in BETAS or predicts not in PREDICTS:
        raise BadValue(
            f"beta_schedule={betas!r} with prediction_type={predicts!r}; read are {', '.join(BETAS)} with "
            f"{', '.join(PREDICTS)}."
        )
    levels = about.get("num_train_timesteps", 1000)
    precondition = DDPMPrecondition(
        BETAS[betas],
        int(levels),
        float(about.get("beta_start", 1e-4)),
        float(about.get("beta_end", 0.02)),
        PREDICTS[predicts],
    )
    known = precondition.levels()
    return Process(EDM(), precondition, _range(float(known[0]), float(known[-1])))


def _range(low: float, high: float) -> tuple[float, float]:
    if not 0 < low < high < float("inf"):
        raise BadValue(f"noise levels from {low:g} to {high:g}.")
    return low, high


def _config(
    about: Mapping[str, Any], tensors: Mapping[str, Any], frequency: float, options: Mapping[str, Any]
) -> tuple[dict[str, Any], bool]:
    """Of our network, from config.json and the shapes of the tensors; and whether attention has its old names."""
    kind = about.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise BadFile(f"it is a {kind}; of diffusers' networks UNet2DModel is read.")
    _refuse(about)
    widths = [
        width(tensors, f"down_blocks.{i}.resnets.0.conv1.weight", 0) for i in range(indices(tensors, "down_blocks."))
    ]
    if not widths or indices(tensors, "up_blocks.") != len(widths):
        raise BadFile("its weights have no down_blocks and up_blocks of equal number.")
    levels, blocks = len(widths), indices(tensors, "down_blocks.0.resnets.")
    size = options.get("size", about.get("sample_size"))
    if not isinstance(size, int):
        raise (
            BadValue("config.json does not say the size of the images (sample_size): give --size.")
            if size is None
            else BadFile(f"its sample_size is {size!r}; only square images are read.")
        )
    attends = [f"down_blocks.{i}.attentions.0.group_norm.weight" in tensors for i in range(levels)]
    up = [f"up_blocks.{levels - 1 - i}.attentions.0.group_norm.weight" in tensors for i in range(levels)]
    if attends != up:
        raise BadFile(
            f"attention in the decoder is at other levels than in the encoder ({up} against {attends}), which the network here "
            "does not have."
        )
    if "mid_block.attentions.0.group_norm.weight" not in tensors:
        raise BadFile(
            "its middle has no attention, or attention without a group norm, which the network here does not have."
        )
    conv = any(n.endswith("downsamplers.0.conv.weight") for n in tensors)
    if levels > 1 and conv != any(n.endswith("upsamplers.0.conv.weight") for n in tensors):
        raise BadFile("it halves and doubles in two different ways (downsample_type, upsample_type).")
    differs: dict[str, Any] = {
        "eps": float(about.get("norm_eps", 1e-5)),
        "head_dim": about.get("attention_head_dim", 8),
        "groups": about.get("norm_num_groups", 32),
        "sine_first": not about.get("flip_sin_to_cos", True),
        "endpoint": about.get("freq_shift", 0) == 1,
    }
    if differs["groups"] is None:
        del differs["groups"]
    if conv:
        differs["between"] = "conv" if about.get("downsample_padding", 1) else "conv-corner"
    if frequency != 1.0:
        differs["frequency"] = frequency
    scaled = about.get("resnet_time_scale_shift", "default") == "scale_shift"
    stem = width(tensors, "conv_in.weight", 0)
    old = any(".attentions.0.query." in n for n in tensors)
    return {
        "shape": [width(tensors, "conv_in.weight", 1), sized(size), size],
        "channels": stem,
        "mult": multiples(widths, stem),
        "blocks": blocks,
        "attention": [size >> i for i, a in enumerate(attends) if a],
        "n_classes": width(tensors, "class_embedding.weight", 0) if "class_embedding.weight" in tensors else 0,
        "dropout": float(about.get("dropout", 0.0)),
        "family": "adm",
        "modulation": "scale" if scaled else "shift",
        "n_emb": width(tensors, "time_embedding.linear_1.weight", 0),
        "differs": differs,
    }, old


EXPECTED = {
    "center_input_sample": (False,), "time_embedding_type": ("positional",), "freq_shift": (0, 1), "mid_block_scale_factor": (1, 1.0),
    "act_fn": ("silu", "swish"), "resnet_time_scale_shift": ("default", "scale_shift"), "add_attention": (True,),
    "class_embed_type": (None,), "mid_block_type": ("UNetMidBlock2D",), "downsample_padding": (0, 1),
}  # fmt: skip
"""What options may be; anything else is another network."""
BLOCKS = (
    "DownBlock2D",
    "AttnDownBlock2D",
    "ResnetDownsampleBlock2D",
    "UpBlock2D",
    "AttnUpBlock2D",
    "ResnetUpsampleBlock2D",
)


def _refuse(about: Mapping[str, Any]) -> None:
    """Options that our network does not have."""
    for name, valid in EXPECTED.items():
        if name in about and about[name] not in valid:
            raise BadFile(
                f"it was built with {name}={about[name]!r}; the network here has {' or '.join(map(repr, valid))}."
            )
    types = [*(about.get("down_block_types") or ()), *(about.get("up_block_types") or ())]
    for kind in types:
        if kind not in BLOCKS:
            raise BadFile(f"it is built of {kind}, which the network here does not have; it has {', '.join(BLOCKS)}.")
    for name in ("norm_eps", "dropout", "attention_head_dim", "norm_num_groups"):
        value = about.get(name)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6
        ):
            raise BadFile(f"{name} is {value!r} in config.json.")
    groups = about.get("norm_num_groups", 32)
    if about.get("attn_norm_num_groups") not in (None, groups):
        raise BadFile(
            f"attn_norm_num_groups={about['attn_norm_num_groups']!r} is not norm_num_groups={groups!r}; the network here has "
            "one of them."
        )


def _wanted(net: nn.Module, tensors: Mapping[str, Any], old: bool) -> Wanted:
    places = {**_side(net.encoder, "encoder", "down"), **_side(net.decoder, "decoder", "up")}
    for k in range(2):
        places[f"middle.{k}"] = (f"mid_block.resnets.{k}.", "mid_block.attentions.0.")
    assert sum(name.endswith("_up") for name in net.decoder) == indices(tensors, "down_blocks.") - 1
    return wanted(net, TOPS, {**PARTS, **(OLD if old else {})}, places)


def _side(blocks: nn.ModuleDict, ours: str, way: Literal["down", "up"]) -> dict[str, tuple[str, str]]:
    """Where the layers of each block of the encoder or the decoder stand in the file."""
    places, level, i = {}, 0, 0
    for name in blocks:
        theirs = f"{way}_blocks.{level}."
        if name.endswith(f"_{way}"):
            places[f"{ours}.{name}"] = (f"{theirs}{way}samplers.0.",) * 2
            level, i = level + 1, 0
        else:
            places[f"{ours}.{name}"] = (f"{theirs}resnets.{i}.", f"{theirs}attentions.{i}.")
            i += 1
    return places
