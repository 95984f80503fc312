"""The magnitude-preserving U-Net of EDM2: no norms to learn, no biases; weights, sums and activations keep their variance.

    [x, 1] -> conv -> level 0 blocks -> [half -> blocks] per level -> attention block, block -> [blocks -> double] per level -> conv
    every encoder output is a skip; every decoder block of a level reads a balanced concat of x and the skip stored last.

Legend: B batch, C channels, H W height width, E embedding features.
Source: Karras et al. 2024, arXiv 2312.02696; equations are of that paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explorer.errors import BadValue
from explorer.nets.attention import attend
from explorer.nets.edm_blocks import Resample
from explorer.nets.unet import skip_scales

EPS = 1e-4
"""Added to root mean squares before dividing by them."""


def unit_rms(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """x divided by its root mean square along these axes, in x's dtype (Eqs. 30 and 47)."""
    rms = x.float().square().mean(dim=dim, keepdim=True).sqrt()
    return x / (rms + EPS).to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """SiLU divided by the root mean square that it leaves of unit Gaussian noise (Eq. 81)."""
    return F.silu(x) / 0.596


def blend(a: Tensor, b: Tensor, t: float) -> Tensor:
    """(1 - t) a + t b at the variance of uncorrelated a and b (Eq. 88)."""
    return a.lerp(b, t) / math.hypot(1 - t, t)


def balanced_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    """concat[a, b] in which b's channels contribute a share t whatever their number, at unchanged variance (Eq. 103)."""
    n_a, n_b = a.shape[1], b.shape[1]
    gain = math.sqrt((n_a + n_b) / ((1 - t) ** 2 + t**2))
    return torch.cat([a * (gain / math.sqrt(n_a) * (1 - t)), b * (gain / math.sqrt(n_b) * t)], dim=1)


class UnitLinear(nn.Module):
    """A linear map or convolution whose weights are used at unit norm per output: variance in, variance out (Eqs. 47, 66)."""

    def __init__(self, n_in: int, n_out: int, kernel: int | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in, *((kernel, kernel) if kernel else ())))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        axes = tuple(range(1, self.weight.ndim))
        fan_in = self.weight[0].numel()
        w = unit_rms(self.weight, axes) * (gain / math.sqrt(fan_in))
        w = w.to(x.dtype)
        return F.linear(x, w) if w.ndim == 2 else F.conv2d(x, w, padding=w.shape[-1] // 2)


class UnitFourier(nn.Module):
    """sqrt(2) cos(f x + phase) at random frequencies and phases, (B,) to (B, n) (Eq. 75)."""

    def __init__(self, n: int):
        super().__init__()
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(n))
        self.register_buffer("phases", 2 * math.pi * torch.rand(n))

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, None] * self.frequencies + self.phases).cos() * math.sqrt(2)


class EDM2Block(nn.Module):
    """One block of encoder or decoder, with attention where asked (Fig. 21).

    Args:
        encoder: in the encoder the input is projected, then brought to unit rms per pixel; in the decoder only projected.
        balance, attention_balance: share of the branch in the two sums.
        clip: largest magnitude of the result.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        n_emb: int,
        *,
        encoder: bool,
        kernel: Sequence[int],
        heads: int = 0,
        resample: Literal["up", "down"] | None = None,
        takes_skip: bool = False,
        dropout: float = 0.0,
        balance: float = 0.3,
        attention_balance: float = 0.3,
        clip: float | None = 256.0,
    ):
        super().__init__()
        self.encoder, self.heads, self.takes_skip, self.n_out = encoder, heads, takes_skip, n_out
        self.balance, self.attention_balance, self.clip = balance, attention_balance, clip
        self.resample = Resample(tuple(kernel), up=resample == "up") if resample else None
        self.gain = nn.Parameter(torch.zeros([]))
        self.conv0 = UnitLinear(n_out if encoder else n_in, n_out, 3)
        self.affine = UnitLinear(n_emb, n_out)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = UnitLinear(n_out, n_out, 3)
        self.shortcut = UnitLinear(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        self.qkv = UnitLinear(n_out, 3 * n_out, 1) if heads else None
        self.out = UnitLinear(n_out, n_out, 1) if heads else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.resample is not None:
            x = self.resample(x)
        if self.encoder:
            x = unit_rms(self.shortcut(x), 1)
        h = self.conv0(silu(x))
        film = self.affine(emb, self.gain) + 1
        h = self.conv1(self.dropout(silu(h * film[:, :, None, None].to(h.dtype))))
        x = blend(x if self.encoder else self.shortcut(x), h, self.balance)
        if self.heads:
            x = blend(x, self._attended(x), self.attention_balance)
        return x if self.clip is None else x.clamp(-self.clip, self.clip)

    def _attended(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        qkv = self.qkv(x).reshape(B, 3, self.heads, C // self.heads, H * W)
        q, k, v = unit_rms(qkv, 3).transpose(-2, -1).unbind(1)  # each (B, N, L, D)
        return self.out(attend(q, k, v).transpose(-2, -1).reshape(B, C, H, W))


class EDM2UNet(nn.Module):
    """Noisy image, noise level, label -> image of the same shape; see `EDMUNet.forward` for the arguments.

    Args:
        shape: (C, H, W); H and W divisible by 2 ** (number of levels - 1).
        channels: base width, before `mult`.
        mult: width multiplier of each level, full resolution first.
        blocks: of each encoder level; the decoder has one more.
        attention: heights (in pixels) at which blocks have self-attention.
        n_classes: 0 for unconditional.
        n_noise, n_emb: features of the noise level and of the embedding; default the first and the largest width.
        head_dim: features per attention head.
        label_balance, concat_balance: shares of the class in the embedding and of the skip in the decoder.
        balance, attention_balance, clip, dropout: of the blocks, see `EDM2Block`.
        kernel: of resampling in one dimension.

    While it is trained, Eq. 66 also asks to bring the stored weights to unit norm after every step; that is left to the method.
    """

    memory_format = torch.channels_last

    def __init__(
        self,
        shape: Sequence[int] = (3, 64, 64),
        channels: int = 192,
        mult: Sequence[float] = (1, 2, 3, 4),
        blocks: int = 3,
        attention: Sequence[int] = (16, 8),
        n_classes: int = 0,
        n_noise: int | None = None,
        n_emb: int | None = None,
        head_dim: int = 64,
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        balance: float = 0.3,
        attention_balance: float = 0.3,
        clip: float | None = 256.0,
        dropout: float = 0.0,
        kernel: Sequence[int] = (1, 1),
    ):
        super().__init__()
        n_colours, height, width = shape
        factor = 2 ** (len(mult) - 1)
        if len(shape) != 3 or height % factor or width % factor:
            raise BadValue(f"{len(mult)} levels need (C, H, W) with H and W divisible by {factor}, got {list(shape)}.")
        widths = [round(channels * m) for m in mult]
        n_noise, n_emb = n_noise or widths[0], n_emb or max(widths)
        self.config = {
            "shape": list(shape), "channels": channels, "mult": list(mult), "blocks": blocks, "attention": list(attention),
            "n_classes": n_classes, "n_noise": n_noise, "n_emb": n_emb, "head_dim": head_dim,
            "label_balance": label_balance, "concat_balance": concat_balance, "balance": balance,
            "attention_balance": attention_balance, "clip": clip, "dropout": dropout, "kernel": list(kernel),
        }  # fmt: skip
        self.shape, self.n_classes = tuple(shape), n_classes
        self.label_balance, self.concat_balance = label_balance, concat_balance
        self.fourier, self.noise = UnitFourier(n_noise), UnitLinear(n_noise, n_emb)
        self.label = UnitLinear(n_classes, n_emb) if n_classes else None
        options = dict(
            kernel=kernel, dropout=dropout, balance=balance, attention_balance=attention_balance, clip=clip
        )  # fmt: skip
        sizes = [(height >> level, width >> level) for level in range(len(mult))]
        place = ["x".join(map(str, size)) for size in sizes]

        def heads(level: int) -> int:
            if sizes[level][0] not in attention:
                return 0
            if widths[level] % head_dim:
                raise BadValue(
                    f"attention cannot split {widths[level]} channels into heads of {head_dim}; use a multiple."
                )
            return widths[level] // head_dim

        self.stem = UnitLinear(n_colours + 1, widths[0], 3)
        self.encoder, self.decoder = nn.ModuleDict(), nn.ModuleDict()
        n, stored = widths[0], [widths[0]]
        for level, wide in enumerate(widths):
            if level:
                self.encoder[f"{place[level]}_down"] = EDM2Block(n, n, n_emb, encoder=True, resample="down", **options)
                stored.append(n)
            for i in range(blocks):
                self.encoder[f"{place[level]}_block{i}"] = EDM2Block(
                    n, wide, n_emb, encoder=True, heads=heads(level), **options
                )
                n = wide
                stored.append(n)
        middle = {"encoder": False, **options}
        if n % head_dim:
            raise BadValue(f"attention cannot split {n} channels into heads of {head_dim}; use a multiple.")
        self.middle = nn.ModuleList(
            [EDM2Block(n, n, n_emb, heads=n // head_dim, **middle), EDM2Block(n, n, n_emb, **middle)]
        )
        names = []
        for level in reversed(range(len(widths))):
            if level + 1 < len(widths):
                self.decoder[f"{place[level]}_up"] = EDM2Block(n, n, n_emb, resample="up", **middle)
            for i in range(blocks + 1):
                names.append(f"{place[level]}_block{i}")
                self.decoder[names[-1]] = EDM2Block(
                    n + stored.pop(), widths[level], n_emb, heads=heads(level), takes_skip=True, **middle
                )
                n = widths[level]
        self.out, self.gain = UnitLinear(n, n_colours, 3), nn.Parameter(torch.zeros([]))
        self.skip_names, self.n_skips = tuple(names), len(names)
        self.to(memory_format=self.memory_format)

    def forward(
        self, x: Tensor, noise: Tensor, cond: Tensor | None = None, skip_scale: Tensor | Sequence[float] | None = None
    ) -> Tensor:
        if x.shape[1:] != self.shape:
            raise BadValue(f"this network reads images of shape {self.shape}, got {tuple(x.shape[1:])}.")
        scales, emb = skip_scales(skip_scale, self.skip_names, x), self._embedding(noise, cond)
        h = self.stem(torch.cat([x, torch.ones_like(x[:, :1])], dim=1).contiguous(memory_format=torch.channels_last))
        skips = [h]
        for part in self.encoder.values():
            h = part(h, emb)
            skips.append(h)
        for part in self.middle:
            h = part(h, emb)
        i = 0
        for part in self.decoder.values():
            if part.takes_skip:
                skip = skips.pop() if scales is None else skips.pop() * scales[i]
                h, i = balanced_cat(h, skip, self.concat_balance), i + 1
            h = part(h, emb)
        return self.out(h, self.gain)

    def _embedding(self, noise: Tensor, cond: Tensor | None) -> Tensor:
        """(B or 1, E)."""
        dtype = self.noise.weight.dtype
        emb = self.noise(self.fourier(noise.to(self.fourier.frequencies.dtype)).to(dtype))
        if self.label is None:
            if cond is not None and not torch.compiler.is_compiling() and bool((cond >= 0).any()):
                raise BadValue("this network has no classes (n_classes=0) but was given labels; pass cond=None.")
            return silu(emb)
        if cond is None:
            return silu(blend(emb, torch.zeros_like(emb), self.label_balance))
        if not torch.compiler.is_compiling() and cond.device.type == "cpu" and int(cond.max()) >= self.n_classes:
            raise BadValue(f"class {int(cond.max())} does not exist; this network knows 0..{self.n_classes - 1}.")
        hot = (cond[:, None] == torch.arange(self.n_classes, device=cond.device)).to(dtype)
        label = self.label(hot * math.sqrt(self.n_classes))
        return silu(blend(emb.expand_as(label), label, self.label_balance))
