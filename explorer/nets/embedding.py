"""How a network reads a noise level and a class label: sinusoids and a table, then a small MLP."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explorer.errors import BadValue, UnknownName

NoiseFeatures = Literal["sinusoids", "fourier"]


def sinusoids(noise: Tensor, n_features: int, scale: float = 1.0) -> Tensor:
    """cos and sin of the noise coordinate at geometrically spaced frequencies from 8 down to 0.001 radians per unit.

    The range suits both c_noise of order 1 (EDM, flow, trigflow) and of order 1000 (iDDPM), and the largest frequency
    keeps time derivatives moderate, which objectives with a jvp need.

    Args:
        noise: (B,).
        n_features: even.
        scale: factor on all frequencies.
    Returns:
        (B, n_features).
    """
    half = n_features // 2
    exponents = torch.linspace(math.log(8.0), math.log(1e-3), half, dtype=noise.dtype, device=noise.device)
    angles = (noise if scale == 1.0 else noise * scale)[:, None] * exponents.exp()
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Embedding(nn.Module):
    """Noise level and class label to one conditioning vector.

    Args:
        width: features of the result.
        n_classes: 0 for an unconditional network; otherwise the table has one more row, the null class.
        kind: of the features of the noise level, `sinusoids` or random "fourier" features, whose frequencies are drawn at
            construction and saved with the weights.
        scale: how fast the features change: the factor on all frequencies of "sinusoids"; the standard deviation of those
            of "fourier" in cycles per unit (16 in Song et al. 2021, arXiv 2011.13456; 0.02 in Song & Dhariwal 2023, arXiv
            2310.14189, since objectives that compare or differentiate along time cannot bear the former).
    """

    def __init__(self, width: int, n_classes: int, kind: NoiseFeatures = "sinusoids", scale: float = 1.0):
        super().__init__()
        if kind not in get_args(NoiseFeatures):
            raise UnknownName("kind of noise features", kind, get_args(NoiseFeatures))
        if not (math.isfinite(scale) and scale > 0):
            raise BadValue(f"the scale of the noise features must be a positive number, got {scale}.")
        if width % 2:
            raise BadValue(f"the embedding width must be even, got {width}.")
        self.width, self.n_classes, self.scale = width, n_classes, scale
        self.noise = nn.Linear(width, width)
        self.table = nn.Parameter(torch.empty(n_classes + 1, width).uniform_(-1, 1)) if n_classes else None
        self.out = nn.Linear(width, width)
        fourier = torch.randn(width // 2) * (2 * math.pi * scale) if kind == "fourier" else None
        self.register_buffer("frequencies", fourier)

    def forward(self, noise: Tensor, cond: Tensor | None) -> Tensor:
        """(B, width) from noise (B,) and labels (B,); (1, width) when noise has length 1 and nothing else varies.

        Args:
            noise: (B,) or (1,).
            cond: (B,) int64, -1 for the null class; None is the null class throughout.
        """
        h = self.noise(self.features(noise))
        if self.table is not None:
            null = self.n_classes
            rows = noise.new_full((1,), null, dtype=torch.int64) if cond is None else torch.where(cond < 0, null, cond)
            h = h + F.embedding(rows, self.table)
        elif cond is not None and bool((cond >= 0).any()):
            raise BadValue("this network has no classes (n_classes=0) but was given labels; pass cond=None.")
        return F.silu(self.out(F.silu(h)))

    def features(self, noise: Tensor) -> Tensor:
        """What is known of the noise level before any learnt layer: (B, width) from (B,)."""
        if self.frequencies is None:
            return sinusoids(noise, self.width, self.scale)
        angles = noise[:, None] * self.frequencies.to(noise.dtype)
        return torch.cat([angles.cos(), angles.sin()], dim=1)
