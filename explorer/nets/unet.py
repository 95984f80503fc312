"""U-Net of the EDM family for small images, with one explicit scale per skip connection.

Legend: B batch, C channels, H W height width, E embedding features.

    x -> conv -> level 0 -> down -> level 1 -> ... -> middle -> ... -> level 1 -> up -> level 0 -> norm, conv
    every encoder output is a skip; every decoder block reads concat[x, skip], last stored first.

Sources: residual blocks with sqrt(1/2), adaptive scale and shift after the second norm, decoder input [x, skip]: the
ADM and DDPM++ networks as used by Karras et al. 2022, arXiv 2206.00364. Skip scales: Ma et al. 2024, arXiv 2402.15170.
We resample by 2x2 convolutions instead of whole residual blocks, which would be most of the cost at 8x8.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explorer.errors import BadValue
from explorer.nets.attention import GroupNorm, PixelAttention, norm_groups
from explorer.nets.convolution import Conv3x3
from explorer.nets.embedding import Embedding, NoiseFeatures

DIGITS_UNET = {"shape": [1, 8, 8], "channels": 32, "mult": [1, 2, 2], "blocks": [0, 1, 1]}
"""For 8x8 digits: 0.94 M parameters, nearly all at 4x4 and 2x2, since one 3x3 convolution at 8x8 costs as much as a whole
block at 4x4. 256 images take about 0.1 s on one core of a 2.8 GHz Ice Lake server, 9 million multiply-adds each."""


class ResBlock(nn.Module):
    """(shortcut(x) + conv(film(norm(conv(norm(x)))))) sqrt(1/2), SiLU after each norm.

    The shortcut is a 1x1 convolution whenever the number of channels changes. In a decoder block it always does, and it
    must: where groups align with the concatenation, the norm in front exactly undoes a scale on the skip channels, and
    the shortcut is all that sees it (arXiv 2402.15170).
    """

    def __init__(self, n_in: int, n_out: int, n_emb: int, dropout: float):
        super().__init__()
        self.norm1 = GroupNorm(norm_groups(n_in), n_in)
        self.conv1 = Conv3x3(n_in, n_out)
        self.film = nn.Linear(n_emb, 2 * n_out)
        self.norm2 = GroupNorm(norm_groups(n_out), n_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Conv3x3(n_out, n_out)
        self.shortcut = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def passed_by(self, x: Tensor) -> Tensor:
        """What is left of the block without its convolutions: sqrt(1/2) shortcut(x)."""
        return self.shortcut(x) * math.sqrt(0.5)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        quiet = not torch.is_grad_enabled()
        h = self.conv1(F.silu(self.norm1(x), inplace=quiet))
        scale, shift = self.film(emb)[:, :, None, None].chunk(2, dim=1)  # (B or 1, C, 1, 1)
        h = self.norm2(h, scale + 1, shift)
        h = self.conv2(self.dropout(F.silu(h, inplace=quiet)))
        if quiet:
            return h.add_(self.shortcut(x)).mul_(math.sqrt(0.5))
        return (self.shortcut(x) + h) * math.sqrt(0.5)


class UNet(nn.Module):
    """Noisy image, noise level, label -> image of the same shape (a raw network output: no diffusion in here).

    Args:
        shape: (C, H, W); H and W divisible by 2 ** (number of levels - 1).
        channels: width at full resolution, before `mult`.
        mult: width multiplier of each level, full resolution first.
        blocks: residual blocks in the encoder of each level (one number, or one per level); the decoder has one more.
        attention: heights (in pixels) at which the blocks are followed by self-attention.
        n_emb: features of the embedding of noise and class; default 4 * channels.
        n_classes: 0 for unconditional.
        dropout: inside the residual blocks, in training mode only.
        embedding, embedding_scale: features of the noise level and how fast they change, see `Embedding`.
        patch: side of the squares of pixels that are folded into channels before the first convolution and unfolded after the
            last (as in Hoogeboom, Heek & Salimans 2023, arXiv 2301.11093); "full resolution", `attention` and `skip_names` then
            count squares. 2 makes 32x32 a third cheaper at equal width below, as most of its time goes into full resolution.

    Attributes:
        config: the constructor's arguments as plain JSON; `UNet(**net.config)` has the same layout.
        skip_names: one name per skip connection, numbered from the lowest resolution up, e.g. "2x2_block0".
        n_skips: their number; 0 < n_skips.
        layer_names: one name per residual and attention block, in the order in which they act, e.g. "2x2_middle".
        n_layers: their number.
        feature_shape: of one sample's `features`, (C, H, W).
    """

    memory_format = (
        torch.channels_last
    )  # of weights, as of images: else every convolution reorders them, a quarter of the time

    def __init__(
        self,
        shape: Sequence[int] = (1, 8, 8),
        channels: int = 32,
        mult: Sequence[float] = (1, 2),
        blocks: int | Sequence[int] = 2,
        attention: Sequence[int] = (),
        n_emb: int | None = None,
        n_classes: int = 0,
        dropout: float = 0.0,
        embedding: NoiseFeatures = "sinusoids",
        embedding_scale: float = 1.0,
        patch: int = 1,
    ):
        super().__init__()
        depths = [blocks] * len(mult) if isinstance(blocks, int) else list(blocks)
        self.shape = tuple(shape)
        if patch < 1 or any(side % patch for side in self.shape[1:]):
            raise BadValue(f"patch is {patch!r}; it must divide height and width, here {shape[1]}x{shape[2]}.")
        n_colours, height, width = self.shape[0] * patch**2, self.shape[1] // patch, self.shape[2] // patch
        factor = 2 ** (len(mult) - 1)
        if len(depths) != len(mult):
            raise BadValue(f"blocks={blocks!r} must be one number or one per level of mult={list(mult)!r}.")
        if height % factor or width % factor:
            raise BadValue(
                f"{len(mult)} levels need a height and width divisible by {factor * patch}, got {shape[1]}x{shape[2]}."
            )
        heights = [height >> level for level in range(len(mult))]
        if not set(attention) <= set(heights):
            raise BadValue(f"attention={list(attention)!r} names heights the network does not have: {heights}.")
        n_emb = n_emb or 4 * channels
        self.config = {
            "shape": list(self.shape),
            "channels": channels,
            "mult": list(mult),
            "blocks": depths,
            "attention": list(attention),
            "n_emb": n_emb,
            "n_classes": n_classes,
            "dropout": dropout,
            "embedding": embedding,
            "embedding_scale": embedding_scale,
            "patch": patch,
        }
        self.n_classes, self.patch = n_classes, patch
        widths = [round(channels * m) for m in mult]

        def block(n_in: int, level: int) -> nn.ModuleList:
            parts: list[nn.Module] = [ResBlock(n_in, widths[level], n_emb, dropout)]
            if heights[level] in attention:
                parts.append(PixelAttention(widths[level], groups=norm_groups(widths[level])))
            return nn.ModuleList(parts)

        self.embedding = Embedding(n_emb, n_classes, embedding, embedding_scale)
        self.stem = nn.Conv2d(n_colours, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList()  # per level
        self.down = nn.ModuleList()
        self.decoder = nn.ModuleList()  # per level, full resolution first, as the encoder
        self.up = nn.ModuleList()
        for level, (n, depth) in enumerate(zip(widths, depths, strict=True)):
            self.encoder.append(nn.ModuleList(block(n, level) for _ in range(depth)))
            self.decoder.append(nn.ModuleList(block(2 * n, level) for _ in range(depth + 1)))
            if level + 1 < len(widths):
                self.down.append(nn.Conv2d(n, widths[level + 1], 2, stride=2))
                self.up.append(nn.ConvTranspose2d(widths[level + 1], n, 2, stride=2))
        self.middle = block(widths[-1], len(widths) - 1)
        self.feature_shape = (widths[-1], heights[-1], width >> (len(widths) - 1))
        self.norm = GroupNorm(norm_groups(widths[0]), widths[0])
        self.out = nn.Conv2d(widths[0], n_colours, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.skip_names = tuple(
            f"{height >> level}x{width >> level}_block{i}"
            for level in reversed(range(len(mult)))
            for i in range(depths[level] + 1)
        )
        self.n_skips = len(self.skip_names)
        places = [f"{height >> level}x{width >> level}" for level in range(len(mult))]
        groups = [
            (f"{places[i]}_down{j}", part) for i, level in enumerate(self.encoder) for j, part in enumerate(level)
        ]
        groups.append((f"{places[-1]}_middle", self.middle))
        groups += [
            (f"{places[i]}_up{j}", part) for i in reversed(range(len(mult))) for j, part in enumerate(self.decoder[i])
        ]
        layers = [(name + "_attention" * bool(i), part) for name, group in groups for i, part in enumerate(group)]
        self.layer_names, self._layers = tuple(name for name, _ in layers), tuple(part for _, part in layers)
        self.n_layers = len(layers)
        self.to(memory_format=self.memory_format)

    def forward(
        self,
        x: Tensor,
        noise: Tensor,
        cond: Tensor | None = None,
        skip_scale: Tensor | Sequence[float] | None = None,
        skip_layers: Collection[int] = (),
    ) -> Tensor:
        """The network output for each image.

        Args:
            x: (B, C, H, W).
            noise: (B,), or (1,) to embed one level for the whole batch.
            cond: (B,) int64 labels, -1 for the null class; None is the null class throughout.
            skip_scale: (n_skips,) or (B, n_skips), in the order of `skip_names`; None leaves the skips untouched, which
                is bitwise the same as ones.
            skip_layers: numbers of the blocks to leave out, in the order of `layer_names`: a residual block's convolutions, an
                attention block's attention add nothing then and take no time; the shortcut stays.
        Returns:
            (B, C, H, W).
        """
        scales, out = skip_scales(skip_scale, self.skip_names, x), left_out(skip_layers, self._layers)
        h, emb, skips = self._encode(x, noise, cond, out)
        i = 0
        for level in reversed(range(len(self.decoder))):
            for block in self.decoder[level]:
                skip = skips.pop() if scales is None else skips.pop() * scales[i]
                h = _run(block, torch.cat([h, skip], dim=1), emb, out)
                i += 1
            if level:
                h = self.up[level - 1](h)
        h = self.out(F.silu(self.norm(h), inplace=not torch.is_grad_enabled()))
        return h if self.patch == 1 else F.pixel_shuffle(h, self.patch)

    def features(self, x: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """What the middle of the network makes of the image, (B, *feature_shape); arguments as of `forward`."""
        return self._encode(x, noise, cond)[0]

    def _encode(
        self, x: Tensor, noise: Tensor, cond: Tensor | None, out: Collection[nn.Module] = ()
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Bottleneck, embedding of noise and class, skips from full resolution down."""
        if x.shape[1:] != self.shape:
            raise BadValue(f"this network reads images of shape {self.shape}, got {tuple(x.shape[1:])}.")
        emb = self.embedding(noise, cond)
        x = x if self.patch == 1 else F.pixel_unshuffle(x, self.patch)
        h = self.stem(x.contiguous(memory_format=torch.channels_last))
        skips = [h]
        for level, blocks in enumerate(self.encoder):
            if level:
                h = self.down[level - 1](h)
                skips.append(h)
            for block in blocks:
                h = _run(block, h, emb, out)
                skips.append(h)
        return _run(self.middle, h, emb, out), emb, skips


def skip_scales(skip_scale: Tensor | Sequence[float] | None, names: Sequence[str], x: Tensor) -> list[Tensor] | None:
    """One (1 or B, 1, 1, 1) factor for each skip of that name, bottom to top; None for none.

    Args:
        skip_scale: (n_skips,) or (B, n_skips).
        x: (B, ...), whose dtype and device they take.
    Raises:
        BadValue: another shape.
    """
    if skip_scale is None:
        return None
    scale, n = torch.as_tensor(skip_scale, dtype=x.dtype, device=x.device), len(names)
    if scale.shape not in ((n,), (len(x), n)):
        raise BadValue(
            f"skip_scale must have shape ({n},) or ({len(x)}, {n}), got {tuple(scale.shape)}; the skips are {', '.join(names)}."
        )
    return list(scale.view(-1, n, 1, 1, 1).unbind(1))


def left_out(layers: Collection[int], parts: Sequence[nn.Module]) -> Collection[nn.Module]:
    """The blocks of these numbers; () for none.

    Raises: BadValue for a number that no block has.
    """
    if not layers:
        return ()
    wrong = [i for i in layers if i != int(i) or not 0 <= i < len(parts)]
    if wrong:
        raise BadValue(f"layer {wrong[0]} does not exist: this network has {len(parts)} that can be left out, from 0.")
    return frozenset(parts[int(i)] for i in layers)


def _run(block: nn.ModuleList, h: Tensor, emb: Tensor, out: Collection[nn.Module] = ()) -> Tensor:
    h = block[0].passed_by(h) if block[0] in out else block[0](h, emb)
    for attention in block[1:]:
        h = attention.passed_by(h) if attention in out else attention(h)
    return h
