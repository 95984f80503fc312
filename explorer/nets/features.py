"""A small classifier whose pooled features are the space in which samples are compared.

Legend: B batch, C channels, H W height width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explorer.errors import BadValue


class FeatureNet(nn.Module):
    """Images -> class logits; `features` are the penultimate activations, averaged over the pixels.

    Each feature has mean 0 and variance 1 over the training data (running statistics of a normalisation without weights)
    and no rectifier before it, so none can die and distances between feature distributions have a scale.

    Args:
        shape: (C, H, W) with H and W divisible by 2.
        n_classes: K.
        width: channels at full resolution; doubled at half resolution.
        n_features: length of the feature vector.
        dropout: in training mode only, on the maps before the last convolution and on the features.
        patch: side of the squares of pixels that are folded into channels first; "full resolution" then counts squares.

    Attributes:
        config: the constructor's arguments as plain JSON.
    """

    def __init__(
        self,
        shape: Sequence[int] = (1, 8, 8),
        n_classes: int = 10,
        width: int = 32,
        n_features: int = 32,
        dropout: float = 0.0,
        patch: int = 1,
    ):
        super().__init__()
        n_colours, height, columns = shape
        if patch < 1 or height % (2 * patch) or columns % (2 * patch):
            raise BadValue(
                f"the classifier needs a height and width divisible by {2 * max(patch, 1)} (twice the patch, {patch}), got "
                f"{height}x{columns}."
            )
        self.config = {
            "shape": list(shape),
            "n_classes": n_classes,
            "width": width,
            "n_features": n_features,
            "dropout": dropout,
            "patch": patch,
        }
        self.shape, self.n_classes, self.n_features = tuple(shape), n_classes, n_features
        self.patch = patch
        self.stem = nn.Conv2d(n_colours * patch**2, width, 3, padding=1)
        self.norm1 = nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.norm3 = nn.GroupNorm(8, 2 * width)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.norm4 = nn.GroupNorm(8, 2 * width)
        self.drop = nn.Dropout(dropout)
        self.last = nn.Conv2d(2 * width, n_features, 3)
        self.standard = nn.BatchNorm1d(n_features, affine=False)
        self.head = nn.Linear(n_features, n_classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, n_features) from images (B, C, H, W) in [-1, 1]."""
        if x.shape[1:] != self.shape:
            raise BadValue(f"this classifier reads images of shape {self.shape}, got {tuple(x.shape[1:])}.")
        x = x if self.patch == 1 else F.pixel_unshuffle(x, self.patch)
        h = F.silu(self.norm1(self.stem(x.contiguous(memory_format=torch.channels_last))))
        h = F.silu(self.norm2(h + self.conv1(h)))
        h = F.silu(self.norm3(self.conv2(h)))
        h = F.silu(self.norm4(h + self.conv3(h)))
        return self.standard(self.last(self.drop(h)).mean(dim=(2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, K) logits."""
        return self.logits(self.features(x))

    def logits(self, features: Tensor) -> Tensor:
        """(B, K) logits from features (B, n_features)."""
        return self.head(self.drop(F.silu(features)))

    @torch.no_grad()
    def standardise(self, x: Tensor) -> None:
        """Set the running statistics so that the features of images x (N, C, H, W) have mean 0 and variance 1 exactly.

        In training they lag behind the weights and see dropout. Changes the logits as little as the statistics differ.
        """
        self.eval()
        mean, scale = self.standard.running_mean.clone(), (self.standard.running_var + self.standard.eps).sqrt()
        f = torch.cat([self.features(part) for part in x.split(1024)]).double()
        self.standard.running_var.copy_((f.var(0) * scale**2 - self.standard.eps).clamp_min(0.0))
        self.standard.running_mean.copy_(f.mean(0) * scale + mean)
