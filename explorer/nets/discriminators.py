"""Heads that read a denoiser's features and say how real its input looks: one logit per sample.

A head on the bottleneck of the network that also estimates the score of generated samples is a diffusion GAN almost for free.
Source: Yin et al. 2024, arXiv 2405.14867, Sec. 4.3 (the head on the critic); Wang et al. 2022, arXiv 2206.02262 (diffusion GAN).

Legend: B batch, C channels, H W height and width of the features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from explorer.errors import BadValue


class ConvHead(nn.Module):
    """Logits from a feature map: halve it down to 4 x 4 at most, pool what is left by one convolution, one linear map.

    At 768 x 8 x 8 this is the head of the ImageNet-64 experiment: conv 4, stride 2 - norm - SiLU - conv 4, stride 4 - norm - SiLU - conv 1.

    Args:
        shape: (C, H, W) of the features, H = W.
        width: channels inside; C by default.
    """

    def __init__(self, shape: Sequence[int], width: int | None = None):
        super().__init__()
        channels, height, other = shape
        if height != other:
            raise BadValue(f"the head reads square feature maps, got {tuple(shape)}.")
        self.config = {"shape": list(shape), "width": width}
        self.feature_shape = tuple(shape)
        width = width or channels
        layers: list[nn.Module] = []
        while height > 4:
            if height % 2:
                raise BadValue(f"feature maps above 4 x 4 are halved, which {tuple(shape)} does not allow.")
            layers += [nn.Conv2d(channels, width, 4, stride=2, padding=1), _norm(width), nn.SiLU()]
            channels, height = width, height // 2
        layers += [nn.Conv2d(channels, width, height, stride=height), _norm(width), nn.SiLU(), nn.Conv2d(width, 1, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """(B,) logits from (B, C, H, W)."""
        return self.layers(features).flatten()


class VectorHead(nn.Module):
    """Logits from feature vectors: two layers.

    Args:
        n_features: of the features.
        width: of the layer between; `n_features` by default.
    """

    def __init__(self, n_features: int, width: int | None = None):
        super().__init__()
        self.config = {"n_features": n_features, "width": width}
        self.feature_shape = (n_features,)
        width = width or n_features
        self.layers = nn.Sequential(nn.Linear(n_features, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, features: Tensor) -> Tensor:
        """(B,) logits from (B, n_features)."""
        return self.layers(features).flatten()


def head_for(net: nn.Module, width: int | None = None) -> nn.Module:
    """A head for the network's `features`, told by its `feature_shape`.

    Raises:
        BadValue: the network has no `features`.
    """
    shape = getattr(net, "feature_shape", None)
    if shape is None or not hasattr(net, "features"):
        raise BadValue(
            f"a discriminator needs a network with features(x, noise, cond) and feature_shape; {type(net).__name__} has none."
        )
    return VectorHead(shape[0], width) if len(shape) == 1 else ConvHead(shape, width)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, channels) if channels >= 32 else 1, channels)
