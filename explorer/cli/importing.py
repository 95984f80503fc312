"""The command import: a published checkpoint as a model of ours."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from explorer.cli.options import Json
from explorer.cli.output import emit, note, progress


def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .pkl, .pt, .pth or .safetensors file, or a folder of diffusers.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="NAME.safetensors; its card NAME.json lies beside it. Default: only report."),
    ] = None,
    format: Annotated[
        Literal["auto", "edm", "edm2", "guided-diffusion", "score-sde", "dit", "diffusers", "explorer"],
        typer.Option("--format", help="What the file must be; auto finds out."),
    ] = "auto",
    process: Annotated[
        str | None,
        typer.Option(
            help="What the network learnt, where the file does not say: edm, edm-1000, consistency, ddpm-linear, ddpm-scaled, "
            "ddpm-cosine, vp, ve, flow."
        ),
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Pixels a side, where the file does not say.")] = None,
    heads: Annotated[
        int | None,
        typer.Option(
            min=1, help="Attention heads (guided-diffusion built with --num_heads, DiT of an unpublished width)."
        ),
    ] = None,
    head_dim: Annotated[
        int | None, typer.Option(min=1, help="Channels per attention head (guided-diffusion). Default: 64.")
    ] = None,
    attention_order: Annotated[
        Literal["new", "legacy"] | None,
        typer.Option(help="Of guided-diffusion's attention: new if built with --use_new_attention_order True."),
    ] = None,
    ema: Annotated[
        bool | None,
        typer.Option("--ema/--no-ema", help="Of a .pth, the moving average (default) or the weights trained last."),
    ] = None,
    fir: Annotated[
        bool | None, typer.Option("--fir/--no-fir", help="Of a .pth, whether its configuration sets model.fir.")
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="Also list what became of every tensor.")] = False,
    as_json: Json = False,
) -> None:
    """Read a published checkpoint into a model of ours, without running anything that is in it.

    Nothing is fetched: the file is one you have. Where the usual ones are named: the README of NVlabs/edm (edm-cifar10-32x32-cond-vp.pkl
    and others) and of NVlabs/edm2, of openai/guided-diffusion (64x64_diffusion.pt), of openai/consistency_models
    (cd_imagenet64_lpips.pt), of facebookresearch/DiT (DiT-XL-2-256x256.pt), of gnobitab/RectifiedFlow and
    yang-song/score_sde_pytorch (checkpoint_8.pth); folders of diffusers' UNet2DModel are what its save_pretrained writes. Every
    tensor must find its place; what the file does not say is listed as assumed.

    Examples:
      explorer import edm-cifar10-32x32-uncond-vp.pkl --out runs/kept/edm-cifar10.safetensors
      explorer sample edm-cifar10 --sampler heun --steps 18 --out grid.png
      explorer import cd_imagenet64_lpips.pt --out runs/kept/cd-imagenet64.safetensors
      explorer import checkpoint_8.pth --process flow --out runs/kept/1-rectified-flow.safetensors
      explorer import ./ddpm-cifar10-32 --process ddpm-linear --json
    """
    from explorer.models import published

    options: dict[str, Any] = {
        "process": process, "size": size, "heads": heads, "head_dim": head_dim, "attention_order": attention_order,
        "ema": ema, "fir": fir,
    }  # fmt: skip
    if out is not None:
        published.check_name(out)
    began = time.perf_counter()
    with progress(f"reading {file.name}") as show:

        def slow(share: float, text: str) -> None:
            if time.perf_counter() - began > 2:
                show(share, f"{file.name}: {text}")

        found = published.read(file, format, slow, **options)
    written = None if out is None else published.save(found, out)
    if as_json:
        emit({"file": None if written is None else str(written), "model": described(found.model), **found.card,
              "report": found.report.to_dict()})  # fmt: skip
        return
    for line in lines(found):
        typer.echo(line)
    if tensors:
        for row in found.report.rows:
            typer.echo(f"  {', '.join(row.sources)} -> {row.target or '-'}: {row.how}")
    for sentence in found.card.get("assumed", ()):
        note(f"assumed: {sentence}.")
    typer.echo(f"written to {written}" if written else "nothing written: give --out NAME.safetensors to keep it")


def described(model: Any) -> dict[str, Any]:
    """What a model is, as plain values."""
    inner = getattr(model, "inner", model)
    low, high = model.sigma_range
    return {
        "kind": "consistency model" if inner is not model else "denoiser",
        "network": type(getattr(inner, "net", inner)).__name__,
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "shape": list(model.shape),
        "n_classes": model.n_classes,
        "path": type(model.path).__name__,
        "precondition": type(getattr(inner, "precondition", None)).__name__,
        "sigma_range": [low, high],
    }


def lines(found: Any) -> list[str]:
    """The card and the report, for people."""
    about, source = described(found.model), found.card.get("source", {})
    low, high = about["sigma_range"]
    kinds = ", ".join(f"{n} {how}" for how, n in found.report.counts().items())
    out = (
        [f"{source['file']}: {source['format']}, {source['bytes'] / 2**20:.1f} MiB, SHA-256 {source['sha256'][:16]}..."]
        if source
        else []
    )
    shape = " x ".join(map(str, about["shape"]))
    classes = f"{about['n_classes']} classes" if about["n_classes"] else "no classes"
    out += [
        f"{about['kind']}: {about['network']}, {about['n_parameters'] / 1e6:.2f} M parameters, images {shape}, "
        f"{classes}",
        f"{about['path']} path, {about['precondition']}, sigma from {low:.4g} to {high:.4g}",
        f"{found.report.n_sources} tensors: {kinds}; none missing, none left over",
    ]
    if found.card.get("not_read"):
        out.append(f"not read: {', '.join(found.card['not_read'])}")
    return out
