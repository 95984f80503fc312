"""DINOv2 and CLIP as feature spaces, where timm or open_clip is installed and their weights can be had.

Inception-v3 knows the thousand classes of ImageNet and little else; distances in the features of networks trained without labels agree
better with people (Stein et al. 2023, arXiv 2306.04675). A distance in them is FD[dinov2-...], never FID.

Pictures are rounded to grey levels, resized to the network's size by antialiased bicubic interpolation, and scaled by its own mean
and standard deviation.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explorer.errors import BadFile, BadValue, MissingExtra
from explorer.metrics.features import FeatureSpace, weights_hash
from explorer.metrics.protocols import grey_levels

DINOV2 = "vit_large_patch14_dinov2.lvd142m"
CLIP = "ViT-L-14"
CLIP_WEIGHTS = "openai"


def dinov2_space(
    file: str | os.PathLike | None = None,
    *,
    model: str = DINOV2,
    side: int = 224,
    device: torch.device | str = "cpu",
    batch: int = 64,
) -> FeatureSpace:
    """Class token of DINOv2: "dinov2-large" has 1024 features.

    Args:
        file: weights as .safetensors, with timm's names; fetched by timm when None.
        model: one of timm's DINOv2 networks. side: pictures are resized to it, a multiple of the patch.
    Raises:
        MissingExtra: timm is not installed. BadValue: it cannot be imported. BadFile: no weights.
    """
    with _importing("timm", "DINOv2 features"):
        import timm
    net = _built("DINOv2", lambda: timm.create_model(model, pretrained=file is None, num_classes=0, img_size=side))
    if file is not None:
        _load(net, file)
    about = net.pretrained_cfg
    name = f"dinov2-{model.split('_')[1]}"
    return _space(name, net, net, net.num_features, side, about["mean"], about["std"], device, batch)


def clip_space(
    file: str | os.PathLike | None = None, *, model: str = CLIP, device: torch.device | str = "cpu", batch: int = 64
) -> FeatureSpace:
    """Image embedding of CLIP: "clip-ViT-L-14" has 768 features.

    Args:
        file: weights as .safetensors, with open_clip's names; OpenAI's are fetched by open_clip when None.
    Raises:
        MissingExtra: open_clip is not installed. BadValue: it cannot be imported. BadFile: no weights.
    """
    with _importing("open_clip", "CLIP features"):
        import open_clip
    options = {"pretrained": CLIP_WEIGHTS, "require_pretrained": True} if file is None else {"pretrained": None}
    net = _built("CLIP", lambda: open_clip.create_model(model, force_quick_gelu=True, weights_only=True, **options))
    if file is not None:
        _load(net, file)
    eye = net.visual
    side = eye.image_size[0] if isinstance(eye.image_size, Sequence) else eye.image_size
    return _space(
        f"clip-{model}", net, net.encode_image, eye.output_dim, side, eye.image_mean, eye.image_std, device, batch
    )


@contextlib.contextmanager
def _importing(package: str, needed_for: str) -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise MissingExtra(package, "features", needed_for) from None
    except Exception as error:  # torchvision, which both import, of another build than torch
        reason = " ".join(str(error).split())[:160]
        raise BadValue(
            f"{needed_for} need {package}, which is installed and cannot be imported ({reason}): install the torchvision that "
            f"belongs to torch {torch.__version__}."
        ) from None


def _built(what: str, make: Callable[[], nn.Module]) -> nn.Module:
    try:
        return make()
    except Exception as error:  # each library fails to fetch in its own ways
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BadFile(
            f"the weights of {what} could not be had ({reason[0][:160]}): give a .safetensors file, or run where they can be fetched."
        ) from None


def _load(net: nn.Module, file: str | os.PathLike) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(file).is_file():
        raise BadFile(f"there is no file {str(file)!r}.")
    try:
        net.load_state_dict(load_file(file))
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadFile(f"{file} does not hold the weights of this network: {reason}") from None


def _space(
    name: str,
    net: nn.Module,
    embed: Callable[[Tensor], Tensor],
    dim: int,
    side: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str,
    batch: int,
) -> FeatureSpace:
    net.to(device).eval().requires_grad_(False)
    centre, spread = (torch.tensor(v, dtype=torch.float32, device=device).view(1, 3, 1, 1) for v in (mean, std))

    def fn(samples: Tensor) -> Tensor:
        if samples.ndim != 4 or samples.shape[1] not in (1, 3):
            raise BadValue(f"{name} needs pictures (B, 1 or 3, H, W), got {tuple(samples.shape)}.")
        out = []
        for piece in samples.split(batch):
            g = grey_levels(piece.to(device)).expand(-1, 3, -1, -1) / 255
            g = F.interpolate(g, size=(side, side), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
            out.append(embed((g - centre) / spread))
        return torch.cat(out)

    return FeatureSpace(name, dim, fn, weights_hash(net))
