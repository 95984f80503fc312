"""The U-Nets of the diffusion literature at 32x32 and 64x64: DDPM++, NCSN++ and ADM in one class, and their published sizes.

    x -> conv -> level 0 blocks -> [half -> blocks] per level -> attention block, block -> [blocks -> double] per level -> out
    every encoder output is a skip; every decoder block of a level reads concat[x, skip], last stored first.

A class by the names of the papers: `EDMUNet(**CIFAR10_DDPMPP, n_classes=10)`.

Legend: B batch, C channels, H W height width, E embedding features. Sources: see `edm_blocks`. Skip scales: Ma et al. 2024,
arXiv 2402.15170.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from explorer.errors import BadValue, UnknownName
from explorer.nets.attention import GroupNorm
from explorer.nets.edm_blocks import (
    FAMILIES,
    MODULATIONS,
    ConvResample,
    EDMBlock,
    EDMEmbedding,
    Family,
    LevelImage,
    Modulation,
    Resample,
    ShrunkImage,
    SkippedImage,
    start,
    start_last,
)
from explorer.nets.unet import left_out, skip_scales

CIFAR10_DDPMPP: dict[str, Any] = {
    "family": "ddpm++", "shape": [3, 32, 32], "channels": 128, "mult": [2, 2, 2], "blocks": 4, "attention": [16],
    "n_augment": 9, "dropout": 0.13,
}  # fmt: skip
"""55.73 M parameters (arXiv 2206.00364, table 7, "VP")."""

CIFAR10_NCSNPP: dict[str, Any] = {**CIFAR10_DDPMPP, "family": "ncsn++"}
"""56.4 M parameters ("VE")."""

FFHQ64_DDPMPP: dict[str, Any] = {
    **CIFAR10_DDPMPP, "shape": [3, 64, 64], "mult": [1, 2, 2, 2], "dropout": 0.05,
}  # fmt: skip
"""61.8 M parameters; AFHQv2 is the same with dropout 0.25."""

FFHQ64_NCSNPP: dict[str, Any] = {**FFHQ64_DDPMPP, "family": "ncsn++"}
"""62.8 M parameters."""

IMAGENET64_ADM: dict[str, Any] = {
    "family": "adm", "shape": [3, 64, 64], "channels": 192, "mult": [1, 2, 3, 4], "blocks": 3, "attention": [32, 16, 8],
    "n_classes": 1000, "dropout": 0.1,
}  # fmt: skip
"""295.9 M parameters (arXiv 2105.05233 as in arXiv 2206.00364)."""


class EDMUNet(nn.Module):
    """Noisy image, noise level, label -> image of the same shape (a raw network output: no diffusion in here).

    Args:
        shape: (C, H, W); H and W divisible by 2 ** (number of levels - 1).
        channels: base width, before `mult`.
        mult: width multiplier of each level, full resolution first.
        blocks: residual blocks of each encoder level; the decoder has one more.
        attention: heights (in pixels) at which blocks are followed by self-attention.
        n_classes: 0 for unconditional.
        n_augment: length of the augmentation labels of non-leaking augmentation (9 for EDM's), 0 for none.
        guided: also read the weight of classifier-free guidance.
        dropout: inside the residual blocks, in training mode only.
        dropout_at: heights at which it applies; None for all.
        family: "ddpm++", "ncsn++" or "adm"; see `Family`.
        embedding: of the noise level, "positional" or "fourier"; None is the family's own.
        embedding_scale: of Fourier frequencies.
        modulation: "shift", "scale" or "double" (see `Family`); None is the family's own.
        n_emb: E; default 4 * channels.
        differs: fields of `Family` in which this network departs from its family, e.g. {"eps": 1e-6, "head_dim": None}.

    Attributes:
        config: the constructor's arguments as plain JSON; `EDMUNet(**net.config)` has the same layout.
        skip_names: one name per skip connection, numbered from the lowest resolution up, e.g. "8x8_block0".
        n_skips: their number.
        layer_names: one name per residual and attention block, in the order in which they act, e.g. "8x8_down0_attention". The 58 of
            ADM at 64x64 are those that AutoDiffusion numbers.
        n_layers: their number.
        feature_shape: of one sample's `features`, (C, H, W).
        checkpointing: recompute each block in the backward pass instead of keeping its activations: the same gradients for
            about a third more time. Set it on the network; it is no part of `config`.
    """

    memory_format = torch.channels_last
    checkpointing: bool = False

    def __init__(
        self,
        shape: Sequence[int] = (3, 32, 32),
        channels: int = 128,
        mult: Sequence[float] = (2, 2, 2),
        blocks: int = 4,
        attention: Sequence[int] = (16,),
        n_classes: int = 0,
        n_augment: int = 0,
        guided: bool = False,
        dropout: float = 0.0,
        dropout_at: Sequence[int] | None = None,
        family: str = "ddpm++",
        embedding: Literal["positional", "fourier"] | None = None,
        embedding_scale: float = 16.0,
        modulation: Modulation | None = None,
        n_emb: int | None = None,
        differs: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        n_colours, height, width = shape
        kind = self._check(shape, channels, mult, blocks, attention, dropout_at, family, embedding, modulation)
        kind = self._departing(kind, differs or {})
        n_emb, modulation = n_emb or 4 * channels, modulation or kind.modulation
        embedding = embedding or kind.embedding
        self.config = {
            "shape": list(shape),
            "channels": channels,
            "mult": list(mult),
            "blocks": blocks,
            "attention": list(attention),
            "n_classes": n_classes,
            "n_augment": n_augment,
            "guided": guided,
            "dropout": dropout,
            "dropout_at": None if dropout_at is None else list(dropout_at),
            "family": family,
            "embedding": embedding,
            "embedding_scale": embedding_scale,
            "modulation": modulation,
            "n_emb": n_emb,
        }
        if differs:
            self.config["differs"] = dict(differs)
        self.shape, self.n_classes, self.n_augment = tuple(shape), n_classes, n_augment
        self.embedding = EDMEmbedding(
            channels * kind.noise_mult,
            n_emb,
            kind,
            n_classes=n_classes,
            n_augment=n_augment,
            guided=guided,
            embedding=embedding,
            scale=embedding_scale,
        )
        n_levels, widths = len(mult), [round(channels * m) for m in mult]
        sizes = [(height >> level, width >> level) for level in range(n_levels)]
        place = ["x".join(map(str, size)) for size in sizes]

        def block(n_in: int, level: int, n_out: int | None = None, **options) -> EDMBlock:
            drop = dropout if dropout_at is None or sizes[level][0] in dropout_at else 0.0
            return EDMBlock(n_in, n_out or widths[level], n_emb, kind, modulation=modulation, dropout=drop, **options)

        def between(level: int, n: int, way: Literal["up", "down"]) -> EDMBlock | ConvResample:
            if kind.between == "block":
                return block(n, level, n, resample=way)
            return ConvResample(n, up=way == "up", corner=kind.between == "conv-corner")

        n, n_image = widths[0] if kind.wide_stem else channels, n_colours
        self.stem, stored = nn.Conv2d(n_colours, n, 3, padding=1), [n]
        self.encoder, self.decoder = nn.ModuleDict(), nn.ModuleDict()
        for level in range(n_levels):
            attend = sizes[level][0] in attention
            if level:
                self.encoder[f"{place[level]}_down"] = between(level, n, "down")
                stored.append(n)
                if kind.residual_encoder:
                    self.encoder[f"{place[level]}_image"] = ShrunkImage(n_image, n, kind.kernel)
                    n_image = n
                if kind.skip_encoder:
                    self.encoder[f"{place[level]}_image"] = SkippedImage(n_colours, n, kind.kernel)
            for i in range(blocks):
                self.encoder[f"{place[level]}_block{i}"] = block(n, level, attention=attend)
                n = widths[level]
                stored.append(n)
        self.feature_shape = (n, *sizes[-1])
        self.middle = nn.ModuleList([block(n, n_levels - 1, attention=True), block(n, n_levels - 1)])
        names = []
        for level in reversed(range(n_levels)):
            if level + 1 < n_levels:
                self.decoder[f"{place[level]}_up"] = between(level, n, "up")
            for i in range(blocks + 1):
                attend = sizes[level][0] in attention and (kind.attend_all or i == blocks)
                names.append(f"{place[level]}_block{i}")
                self.decoder[names[-1]] = block(n + stored.pop(), level, attention=attend, takes_skip=True)
                n = widths[level]
            if kind.skip_decoder and level:
                self.decoder[f"{place[level]}_image"] = LevelImage(n, n_colours, kind)
        self.grow = Resample(kind.kernel, up=True) if kind.skip_decoder and n_levels > 1 else None
        self.norm = GroupNorm(kind.groups_of(n), n, eps=kind.eps)
        self.out = nn.Conv2d(n, n_colours, 3, padding=1)
        self.skip_names, self.n_skips = tuple(names), len(names)
        blocks_of = {name.replace("block", "down"): part for name, part in self.encoder.items()}
        blocks_of |= {f"{place[-1]}_middle{i}": part for i, part in enumerate(self.middle)}
        blocks_of |= {name.replace("block", "up"): part for name, part in self.decoder.items()}
        layers = [(name, part) for name, whole in blocks_of.items() for name, part in _parts(name, whole)]
        self.layer_names, self._layers = tuple(name for name, _ in layers), tuple(part for _, part in layers)
        self.n_layers = len(layers)
        start(self, kind)
        for part in self.modules():
            if isinstance(part, EDMBlock | EDMEmbedding):
                part.initialise(kind)
            elif isinstance(part, LevelImage):
                start_last(part.out, kind)
        start_last(self.out, kind)
        self.to(memory_format=self.memory_format)

    def forward(
        self,
        x: Tensor,
        noise: Tensor,
        cond: Tensor | None = None,
        skip_scale: Tensor | Sequence[float] | None = None,
        skip_layers: Collection[int] = (),
        *,
        augment: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """The network output for each image.

        Args:
            x: (B, C, H, W).
            noise: (B,), or (1,) to embed one level for the whole batch.
            cond: (B,) int64 labels, -1 for the null class; None is the null class throughout.
            skip_scale: (n_skips,) or (B, n_skips), in the order of `skip_names`; None leaves the skips untouched.
            skip_layers: numbers of the blocks to leave out, in the order of `layer_names`; shortcuts and resampling stay.
            augment: (B, n_augment) labels of the augmentation of each image; None says there was none.
            guidance: (B,) or (1,) weights of classifier-free guidance, where the network is `guided`; None adds nothing.
        Returns:
            (B, C, H, W).
        """
        scales, out = skip_scales(skip_scale, self.skip_names, x), left_out(skip_layers, self._layers)
        h, emb, skips = self._encode(x, noise, cond, augment, guidance, out)
        i, picture = 0, None
        for part in self.decoder.values():
            if isinstance(part, LevelImage):
                picture = part(h, picture)
                continue
            if part.takes_skip:
                skip = skips.pop() if scales is None else skips.pop() * scales[i]
                h, i = torch.cat([h, skip], dim=1), i + 1
            h = self._run(part, h, emb, out)
        h = self.out(F.silu(self.norm(h), inplace=not torch.is_grad_enabled()))
        return h if picture is None else h + self.grow(picture)

    def features(self, x: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """What the middle of the network makes of the image, (B, *feature_shape); arguments as of `forward`."""
        return self._encode(x, noise, cond, None, None)[0]

    def _encode(self, x, noise, cond, augment, guidance, out=()) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Bottleneck, embedding, skips from full resolution down."""
        if x.shape[1:] != self.shape:
            raise BadValue(f"this network reads images of shape {self.shape}, got {tuple(x.shape[1:])}.")
        emb = self.embedding(noise, cond, augment, guidance)
        image = x.contiguous(memory_format=torch.channels_last)
        h = self.stem(image)
        skips = [h]
        for part in self.encoder.values():
            if isinstance(part, ShrunkImage):
                h = image = skips[-1] = (h + part(image)) * math.sqrt(0.5)
            elif isinstance(part, SkippedImage):
                image, mixed = part(image)
                h = skips[-1] = h + mixed
            else:
                h = self._run(part, h, emb, out)
                skips.append(h)
        for part in self.middle:
            h = self._run(part, h, emb, out)
        return h, emb, skips

    def _run(self, block: EDMBlock | ConvResample, h: Tensor, emb: Tensor, out: Collection[nn.Module] = ()) -> Tensor:
        given = (h, emb, out) if out and isinstance(block, EDMBlock) else (h, emb)
        if self.checkpointing and torch.is_grad_enabled() and forward_ad._current_level < 0:
            return checkpoint(block, *given, use_reentrant=False)
        return block(*given)

    @staticmethod
    def _departing(family: Family, differs: Mapping[str, Any]) -> Family:
        known = {field.name for field in fields(Family)}
        for name in differs:
            if name not in known - {"modulation", "embedding"}:
                raise UnknownName("departure from a family", name, known - {"modulation", "embedding"})
        out = replace(family, **{k: tuple(v) if k == "kernel" else v for k, v in differs.items()})
        if out.residual_encoder and out.skip_encoder:
            raise BadValue("an encoder takes the image as residual_encoder or as skip_encoder, not as both.")
        return out

    @staticmethod
    def _check(shape, channels, mult, blocks, attention, dropout_at, family, embedding, modulation):
        """The family; raises on arguments that do not fit together."""
        if family not in FAMILIES:
            raise UnknownName("family of networks", family, FAMILIES)
        if embedding not in (None, "positional", "fourier"):
            raise UnknownName("noise embedding", embedding, ("positional", "fourier"))
        if modulation is not None and modulation not in MODULATIONS:
            raise UnknownName("modulation", modulation, MODULATIONS)
        factor = 2 ** (len(mult) - 1)
        if len(shape) != 3 or shape[1] % factor or shape[2] % factor:
            raise BadValue(f"{len(mult)} levels need (C, H, W) with H and W divisible by {factor}, got {list(shape)}.")
        if channels < 4 or channels % 4 or blocks < 1:
            raise BadValue(f"channels={channels} must be a positive multiple of 4 and blocks={blocks} at least 1.")
        heights = {shape[1] >> level for level in range(len(mult))}
        for name, wanted in (("attention", attention), ("dropout_at", dropout_at or ())):
            if not set(wanted) <= heights:
                raise BadValue(
                    f"{name}={list(wanted)} names heights the network does not have: {sorted(heights, reverse=True)}."
                )
        return FAMILIES[family]


def _parts(name: str, block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The residual and the attention part of a block, named; nothing of a bare resampling or of the image's own path."""
    if isinstance(block, EDMBlock):
        yield name, block
        if block.attention is not None:
            yield f"{name}_attention", block.attention
