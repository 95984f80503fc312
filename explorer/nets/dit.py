"""Diffusion transformers: DiT-S to DiT-XL, and the modernised block of LightningDiT.

    patches -> + fixed sinusoids of the place -> blocks modulated by noise and class (adaLN-Zero) -> norm, linear -> patches

Legend: B batch, C channels, H W height width, P patch side, L tokens, D width, N heads.

Sources: Peebles and Xie 2023, arXiv 2212.09748 (sections 3.2, 3.3, table 1); Yao et al. 2025, arXiv 2501.01423 (SwiGLU, RMSNorm,
rotary embedding, normalised queries and keys).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from explorer.errors import BadValue
from explorer.nets.attention import attend
from explorer.nets.edm_blocks import constant

_LATENTS = {"shape": [4, 32, 32], "patch": 2, "n_classes": 1000, "variance": True}
DIT_S: dict[str, Any] = {**_LATENTS, "width": 384, "depth": 12, "heads": 6}
"""33 M parameters on 32x32 latents in patches of 2."""
DIT_B: dict[str, Any] = {**_LATENTS, "width": 768, "depth": 12, "heads": 12}
"""130 M."""
DIT_L: dict[str, Any] = {**_LATENTS, "width": 1024, "depth": 24, "heads": 16}
"""458 M."""
DIT_XL: dict[str, Any] = {**_LATENTS, "width": 1152, "depth": 28, "heads": 16}
"""675 M."""
N_NOISE = 256


class Attention(nn.Module):
    """Self-attention among tokens (B, L, D).

    Args:
        normalise: root-mean-square norm on queries and keys.
    """

    def __init__(self, width: int, heads: int, *, normalise: bool):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        head = width // heads
        self.norm_q = nn.RMSNorm(head, eps=1e-6) if normalise else nn.Identity()
        self.norm_k = nn.RMSNorm(head, eps=1e-6) if normalise else nn.Identity()

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor] | None) -> Tensor:
        B, L, D = x.shape
        q, k, v = self.qkv(x).view(B, L, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.norm_q(q), self.norm_k(k)
        if turn is not None:
            q, k = rotate(q, *turn), rotate(k, *turn)
        return self.out(attend(q, k, v).transpose(1, 2).reshape(B, L, D))


class GatedMLP(nn.Module):
    """SwiGLU: w3(silu(w1 x) * w2 x)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.both, self.out = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.both(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


class Block(nn.Module):
    """x + gate attention(modulated norm), then x + gate MLP(modulated norm); the identity at initialisation."""

    def __init__(self, width: int, heads: int, *, modern: bool):
        super().__init__()
        self.norm1, self.norm2 = _norm(width, modern), _norm(width, modern)
        self.attention = Attention(width, heads, normalise=modern)
        if modern:
            self.mlp: nn.Module = GatedMLP(width, int(8 * width / 3))
        else:
            self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, emb: Tensor, turn: tuple[Tensor, Tensor] | None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(emb)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attention(torch.addcmul(shift1, self.norm1(x), scale1 + 1), turn)
        return x + gate2 * self.mlp(torch.addcmul(shift2, self.norm2(x), scale2 + 1))


class DiT(nn.Module):
    """Noisy image or latent, noise level, label -> image of the same shape (a raw network output: no diffusion in here).

    Args:
        shape: (C, H, W); H and W divisible by `patch`.
        patch: P.
        width: D, divisible by 4 and by `heads`.
        depth: blocks.
        heads: N.
        n_classes: 0 for unconditional; otherwise the table has one more row, the null class.
        variance: the last layer also emits the C channels of a learnt variance, as the published checkpoints do; they are
            dropped.
        modern: SwiGLU, RMSNorm, rotary embedding and normalised queries and keys in every block.
        noise_scale: factor on the noise coordinate before its features of frequencies 1 to 1e-4: 1000 for a time in 0..1 gives
            the features of the published checkpoints.

    Attributes:
        config: the constructor's arguments as plain JSON.
        n_skips: 0, there is nothing for skip-tuning to scale.
        feature_shape: of one sample's `features`, (D, H / P, W / P).
        checkpointing: recompute each block in the backward pass instead of keeping its activations.
    """

    n_skips = 0
    skip_names: tuple[str, ...] = ()
    checkpointing: bool = False

    def __init__(
        self,
        shape: Sequence[int] = (4, 32, 32),
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        n_classes: int = 0,
        variance: bool = False,
        modern: bool = False,
        noise_scale: float = 1.0,
    ):
        super().__init__()
        n_colours, height, columns = shape
        if height % patch or columns % patch:
            raise BadValue(f"patches of {patch} do not tile {height}x{columns}.")
        if width % 4 or width % heads or (modern and (width // heads) % 4):
            raise BadValue(
                f"a width of {width} must be divisible by 4 and by heads={heads} (rotary: heads of 4k features)."
            )
        self.config = {
            "shape": list(shape),
            "patch": patch,
            "width": width,
            "depth": depth,
            "heads": heads,
            "n_classes": n_classes,
            "variance": variance,
            "modern": modern,
            "noise_scale": noise_scale,
        }
        self.shape, self.patch, self.n_classes, self.noise_scale = tuple(shape), patch, n_classes, noise_scale
        grid = height // patch, columns // patch
        self.feature_shape = (width, *grid)
        self.stem = nn.Conv2d(n_colours, width, patch, stride=patch)
        self.noise = nn.Sequential(nn.Linear(N_NOISE, width), nn.SiLU(), nn.Linear(width, width))
        self.table = nn.Parameter(torch.empty(n_classes + 1, width)) if n_classes else None
        self.blocks = nn.ModuleList(Block(width, heads, modern=modern) for _ in range(depth))
        self.norm = _norm(width, modern)
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, patch * patch * n_colours * (2 if variance else 1))
        self.register_buffer("places", places_of(grid, width), persistent=False)
        self.register_buffer("turns", _turns(grid, width // heads) if modern else None, persistent=False)
        if not self.stem.weight.is_meta:
            self._initialise()

    def _initialise(self) -> None:
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)
        nn.init.xavier_uniform_(self.stem.weight.view(len(self.stem.weight), -1))
        nn.init.zeros_(self.stem.bias)
        nn.init.normal_(self.noise[0].weight, std=0.02)
        nn.init.normal_(self.noise[2].weight, std=0.02)
        if self.table is not None:
            nn.init.normal_(self.table, std=0.02)
        for last in (*(block.modulation for block in self.blocks), self.modulation, self.out):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """The network output for each image.

        Args:
            x: (B, C, H, W).
            noise: (B,), or (1,) to embed one level for the whole batch.
            cond: (B,) int64 labels, -1 for the null class; None is the null class throughout.
        Returns:
            (B, C, H, W).
        """
        h, emb = self._tokens(x, noise, cond)
        shift, scale = self.modulation(emb)[:, None].chunk(2, dim=-1)
        h = self.out(torch.addcmul(shift, self.norm(h), scale + 1))
        B, (C, H, W), P = len(x), self.shape, self.patch
        h = h.view(B, H // P, W // P, P, P, -1).permute(0, 5, 1, 3, 2, 4).reshape(B, -1, H, W)
        return h[:, :C]

    def features(self, x: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """What the last block makes of the image, (B, *feature_shape); arguments as of `forward`."""
        return self._tokens(x, noise, cond)[0].transpose(1, 2).reshape(len(x), *self.feature_shape)

    def _tokens(self, x: Tensor, noise: Tensor, cond: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, D) behind the last block and the activated embedding (B or 1, D)."""
        if x.shape[1:] != self.shape:
            raise BadValue(f"this network reads images of shape {self.shape}, got {tuple(x.shape[1:])}.")
        emb = F.silu(self._embed(noise, cond))
        h = self.stem(x).flatten(2).transpose(1, 2) + self.places
        turn = (self.turns[0], self.turns[1]) if self.config["modern"] else None
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled() and forward_ad._current_level < 0:
                h = checkpoint(block, h, emb, turn, use_reentrant=False)
            else:
                h = block(h, emb, turn)
        return h, emb

    def _embed(self, noise: Tensor, cond: Tensor | None) -> Tensor:
        half = N_NOISE // 2
        frequencies = (torch.arange(half, device=noise.device, dtype=noise.dtype) * (-math.log(10000.0) / half)).exp()
        angles = self.noise_scale * noise[:, None] * frequencies
        emb = self.noise(torch.cat([angles.cos(), angles.sin()], dim=1))
        if self.table is not None:
            null = self.n_classes
            rows = noise.new_full((1,), null, dtype=torch.int64) if cond is None else torch.where(cond < 0, null, cond)
            emb = emb + F.embedding(rows, self.table)
        elif cond is not None and not torch.compiler.is_compiling() and bool((cond >= 0).any()):
            raise BadValue("this network has no classes (n_classes=0) but was given labels; pass cond=None.")
        return emb


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Neighbouring pairs of features (..., L, D) turned by angles with these cosines and sines (L, D/2)."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


def _norm(width: int, modern: bool) -> nn.Module:
    return nn.RMSNorm(width, eps=1e-6) if modern else nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


def places_of(grid: tuple[int, int], width: int) -> Tensor:
    """Of the patches, (L, D): sines and cosines of the column, then of the row, D/4 of each, frequencies 1 to 1e-4."""
    table = []
    for row, column in itertools.product(*map(range, grid)):
        angles = [[place * f for f in _frequencies(width // 4)] for place in (column, row)]
        table.append([wave(a) for part in angles for wave in (math.sin, math.cos) for a in part])
    return constant(table)


def _turns(grid: tuple[int, int], head: int) -> Tensor:
    """(2, L, head / 2) cosines and sines of the rotary angles: half of the pairs turn with the row, half with the column."""
    angles = [
        [place * f for place in where for f in _frequencies(head // 4)]
        for where in itertools.product(*map(range, grid))
    ]
    return constant([[[wave(a) for a in row] for row in angles] for wave in (math.cos, math.sin)])


def _frequencies(n: int) -> list[float]:
    return [10000.0 ** (-i / n) for i in range(n)]
