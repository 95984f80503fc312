"""Self-attention over the pixels of a feature map, with a plain-maths switch for forward-mode derivatives.

Legend: B batch, C channels, H W height width, L = H*W tokens, N heads, D features of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explorer.errors import BadValue
from explorer.nets.forward_mode import differentiating, group_norm

_PLAIN: ContextVar[bool] = ContextVar("plain_attention", default=False)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Inside this block attention is written out as matmul, softmax, matmul.

    The fast kernels behind `scaled_dot_product_attention` may lack a forward-mode derivative, so `torch.func.jvp` does this by
    itself. The switch belongs to the current thread (or task) only, and code that is being compiled does not see it.
    """
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v.

    Args:
        q, k, v: (B, N, L, D).
    Returns:
        (B, N, L, D). Both forms agree to the rounding of the dtype.
    """
    if not _plain():
        return F.scaled_dot_product_attention(q, k, v)
    return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), dim=-1) @ v


def _plain() -> bool:
    """Whether a forward-mode derivative is being taken, or `plain_attention` asked for; a compiler sees only the former."""
    return differentiating() or (not torch.compiler.is_compiling() and _PLAIN.get())


def norm_groups(channels: int) -> int:
    """Largest number of groups up to 32 that divides the channels and leaves at least 4 in each."""
    return next(g for g in range(min(32, max(1, channels // 4)), 0, -1) if channels % g == 0)


class GroupNorm(nn.GroupNorm):
    """torch's, optionally times `gain` plus `shift`, with a forward-mode derivative for every memory layout."""

    def forward(self, x: Tensor, gain: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        return group_norm(x, self.num_groups, self.weight, self.bias, self.eps, gain, shift)


class PixelAttention(nn.Module):
    """Residual self-attention among the pixels of a feature map; `scale` times the identity at initialisation.

    Args:
        channels: C, a multiple of `head_dim` or smaller than it.
        head_dim: features per head.
        groups: groups of the normalisation in front, and its `eps`.
        scale: factor on the sum of both branches.
    """

    def __init__(
        self, channels: int, *, head_dim: int = 32, groups: int = 8, eps: float = 1e-5, scale: float = math.sqrt(0.5)
    ):
        super().__init__()
        if channels > head_dim and channels % head_dim:
            raise BadValue(f"attention cannot split {channels} channels into heads of {head_dim}; use a multiple.")
        self.heads = max(1, channels // head_dim)
        self.scale = scale
        self.norm = GroupNorm(groups, channels, eps=eps)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def passed_by(self, x: Tensor) -> Tensor:
        """What is left of the block without its attention: scale x."""
        return x if self.scale == 1.0 else x * self.scale

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x)).flatten(2)  # (B, 3C, L)
        q, k, v = qkv.view(B, 3, self.heads, C // self.heads, H * W).transpose(-2, -1).unbind(1)  # each (B, N, L, D)
        h = attend(q, k, v).transpose(-2, -1).reshape(B, C, H, W)
        h = x + self.out(h)
        return h if self.scale == 1.0 else h * self.scale
