"""Parts of the DDPM++, NCSN++ and ADM networks: the three families as values, resampling, the residual block, the embedding.

Legend: B batch, C channels, H W height width, E embedding features.

Sources: Song et al. 2021, arXiv 2011.13456 (DDPM++, NCSN++); Dhariwal and Nichol 2021, arXiv 2105.05233 (ADM); both in the
form of Karras et al. 2022, arXiv 2206.00364, appendix F. Double normalisation: Lu and Song 2024, arXiv 2410.11081, eq. 8.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explorer.errors import BadValue
from explorer.nets.attention import GroupNorm, PixelAttention, norm_groups
from explorer.nets.convolution import Conv3x3
from explorer.nets.embedding import sinusoids

Modulation = Literal["shift", "scale", "double"]
MODULATIONS: tuple[Modulation, ...] = ("shift", "scale", "double")


@dataclass(frozen=True)
class Family:
    """What tells one published U-Net from another, sizes apart.

    Args:
        embedding: of the noise level, "positional" or "fourier".
        noise_mult: features of that embedding, in units of the base width.
        residual_encoder: the noisy image, shrunk and projected, is added at every lower level of the encoder.
        skip_encoder: the same with the bare image: halved without weights, then a 1x1 convolution, added as it is.
        skip_decoder: the output is a sum of images, one of each level, each doubled onto the next ("output skip").
        kernel: of resampling in one dimension, unnormalised.
        modulation: how the embedding enters a block: "shift" in front of the second norm, "scale" and shift behind it,
            "double": the same with both normalised.
        head_dim: features per attention head; None for one head.
        attend_all: attention follows every decoder block of its level, not only the last.
        scale: factor on every residual sum.
        eps: of the group norms.
        project: a shortcut that resamples is also a 1x1 convolution.
        labels_first: class embeddings enter in front of the embedding MLP, not behind its last layer.
        sine_first: order of the halves of the noise embedding.
        endpoint: the lowest positional frequency is 1/10000 exactly, not one ratio above it.
        xavier: Xavier-uniform weights and zero biases, last layers of branches 1e-5 times that; else torch's own
            initialisation with last layers at zero.
        wide_stem: the first convolution has the width of the first level, not the base width.
        frequency: factor on the positional frequencies: 1000 reads a c_noise of order 1 as one of order 1000.
        heads: attention heads at every width; None follows `head_dim`.
        groups: of every group norm; None is a quarter of the channels up to 32.
        between: how levels are joined: "block" resamples inside a residual block; "conv" and "conv-corner" halve by a 3x3
            convolution of stride 2 (padded on all sides, or on the far ones only) and double by repetition and a 3x3 one.
    """

    embedding: Literal["positional", "fourier"]
    noise_mult: int
    residual_encoder: bool
    kernel: tuple[float, ...]
    modulation: Modulation
    head_dim: int | None
    attend_all: bool
    scale: float
    eps: float
    project: bool
    labels_first: bool
    sine_first: bool
    endpoint: bool
    xavier: bool
    wide_stem: bool = False
    frequency: float = 1.0
    heads: int | None = None
    groups: int | None = None
    between: Literal["block", "conv", "conv-corner"] = "block"
    skip_encoder: bool = False
    skip_decoder: bool = False

    def groups_of(self, channels: int) -> int:
        return norm_groups(channels) if self.groups is None else self.groups


_SONG = {
    "modulation": "shift", "head_dim": None, "attend_all": False, "scale": math.sqrt(0.5), "eps": 1e-6, "project": True,
    "labels_first": True, "sine_first": True, "endpoint": True, "xavier": True,
}  # fmt: skip
FAMILIES = {
    "ddpm++": Family("positional", 1, False, (1, 1), **_SONG),
    "ncsn++": Family("fourier", 2, True, (1, 3, 3, 1), **_SONG),
    "adm": Family(
        "positional", 1, False, (1, 1), modulation="scale", head_dim=64, attend_all=True, scale=1.0, eps=1e-5,
        project=False, labels_first=False, sine_first=False, endpoint=False, xavier=False, wide_stem=True,
    ),
}  # fmt: skip


def constant(values: list) -> Tensor:
    """These numbers as float32 on the default device; on the CPU where that is "meta", since no file will fill them in."""
    device = torch.get_default_device()
    return torch.tensor(values, dtype=torch.float32, device="cpu" if device.type == "meta" else device)


def _square(kernel: tuple[float, ...], gain: float = 1.0) -> list:
    """(1, 1, k, k) outer product of a kernel with itself, of the given sum."""
    total = sum(kernel) ** 2 / gain
    return [[[[a * b / total for a in kernel] for b in kernel]]]


class Resample(nn.Module):
    """Twice or half the height and width by a separable even kernel, the border extended by zeros.

    Args:
        kernel: in one dimension, of even length; normalised here. (1, 1) averages and repeats.
        up: double, else halve.
    """

    def __init__(self, kernel: tuple[float, ...], *, up: bool):
        super().__init__()
        if len(kernel) % 2:
            raise BadValue(f"a resampling kernel needs an even length, got {list(kernel)}.")
        self.up, self.box = up, tuple(kernel) == (1, 1)
        self.register_buffer("kernel", constant(_square(kernel, 4.0 if up else 1.0)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.box:
            return F.interpolate(x, scale_factor=2.0) if self.up else F.avg_pool2d(x, 2)
        channels, pad = x.shape[1], self.kernel.shape[-1] // 2 - 1
        each = self.kernel.to(x.dtype).expand(channels, -1, -1, -1)
        convolve = F.conv_transpose2d if self.up else F.conv2d
        return convolve(x, each, stride=2, padding=pad, groups=channels)


class ShrunkImage(nn.Module):
    """NCSN++'s path of the noisy image through the encoder: 3x3 convolution, smoothing, every second pixel.

    All three are linear, so we smooth first and convolve at the pixels that are kept only: the same result for a quarter of
    the multiplications.
    """

    def __init__(self, n_in: int, n_out: int, kernel: tuple[float, ...]):
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, 3, stride=2)
        self.register_buffer("kernel", constant(_square(kernel)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels, half = x.shape[1], self.kernel.shape[-1] // 2
        each = self.kernel.to(x.dtype).expand(channels, -1, -1, -1)
        return self.conv(F.conv2d(x, each, padding=half, groups=channels))


class SkippedImage(nn.Module):
    """The noisy image halved, and what it adds to the encoder at that level (Song et al. 2021, "input skip", summed)."""

    def __init__(self, n_in: int, n_out: int, kernel: tuple[float, ...]):
        super().__init__()
        self.shrink = Resample(kernel, up=False)
        self.mix = nn.Conv2d(n_in, n_out, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.shrink(x)
        return x, self.mix(x)


class LevelImage(nn.Module):
    """The image that the decoder makes of its features at one level, on top of the doubled one of the level below."""

    takes_skip = False

    def __init__(self, n_in: int, n_out: int, family: Family):
        super().__init__()
        self.norm = GroupNorm(family.groups_of(n_in), n_in, eps=family.eps)
        self.out = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.grow = Resample(family.kernel, up=True)

    def forward(self, h: Tensor, below: Tensor | None) -> Tensor:
        image = self.out(F.silu(self.norm(h)))
        return image if below is None else image + self.grow(below)


class ConvResample(nn.Module):
    """Half the height and width by a convolution of stride 2, or double by repetition and a convolution: no norm, no embedding.

    Args:
        corner: pad the far sides only when halving.
    Source: Ho et al. 2020, arXiv 2006.11239 (`corner`); Nichol and Dhariwal 2021, arXiv 2102.09672.
    """

    takes_skip = False

    def __init__(self, channels: int, *, up: bool, corner: bool):
        super().__init__()
        self.up, self.corner = up, corner and not up
        self.conv = nn.Conv2d(channels, channels, 3, stride=1 if up else 2, padding=0 if self.corner else 1)

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        if self.up:
            x = F.interpolate(x, scale_factor=2.0)
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.corner else x)


class EDMBlock(nn.Module):
    """scale (shortcut(x) + conv(silu(modulated norm(conv(resample(silu(norm(x)))))))), then self-attention where asked.

    Args:
        n_in, n_out: channels.
        n_emb: E.
        resample: "up", "down" or None.
        attention: follow with self-attention.
        takes_skip: a decoder block whose input is concat[x, skip].
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        n_emb: int,
        family: Family,
        *,
        modulation: Modulation,
        dropout: float,
        resample: Literal["up", "down"] | None = None,
        attention: bool = False,
        takes_skip: bool = False,
    ):
        super().__init__()
        self.n_out, self.modulation, self.takes_skip, self.scale = n_out, modulation, takes_skip, family.scale
        self.resample = Resample(family.kernel, up=resample == "up") if resample else None
        self.norm0 = GroupNorm(family.groups_of(n_in), n_in, eps=family.eps)
        self.conv0 = Conv3x3(n_in, n_out)
        self.affine = nn.Linear(n_emb, n_out if modulation == "shift" else 2 * n_out)
        self.norm1 = GroupNorm(family.groups_of(n_out), n_out, eps=family.eps)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = Conv3x3(n_out, n_out)
        projected = n_in != n_out or (resample is not None and family.project)
        self.shortcut = nn.Conv2d(n_in, n_out, 1) if projected else nn.Identity()
        self.attention = None
        if attention:
            head_dim = n_out // family.heads if family.heads else family.head_dim or n_out
            groups = family.groups_of(n_out)
            self.attention = PixelAttention(n_out, head_dim=head_dim, groups=groups, eps=family.eps, scale=family.scale)

    def initialise(self, family: Family) -> None:
        start(self, family)
        start_last(self.conv1, family)
        if self.attention is not None:
            if family.xavier:
                nn.init.xavier_uniform_(self.attention.qkv.weight, gain=math.sqrt(0.2))
            start_last(self.attention.out, family)

    def passed_by(self, x: Tensor) -> Tensor:
        """What is left of the residual part without its convolutions: scale shortcut(resample(x)); attention is not in it."""
        h = self.shortcut(x if self.resample is None else self.resample(x))
        return h if self.scale == 1.0 else h * self.scale

    def forward(self, x: Tensor, emb: Tensor, out: Collection[nn.Module] = ()) -> Tensor:
        """`out`: which of this block and its attention are left out."""
        h = self.passed_by(x) if self in out else self._residual(x, emb)
        if self.attention is None:
            return h
        return self.attention.passed_by(h) if self.attention in out else self.attention(h)

    def _residual(self, x: Tensor, emb: Tensor) -> Tensor:
        quiet = not torch.is_grad_enabled()
        h, shortcut = F.silu(self.norm0(x), inplace=quiet), x
        if self.resample is not None:
            h, shortcut = self.resample(h), self.resample(x)
        h = self.conv0(h)
        film = self.affine(emb)[:, :, None, None]  # (B or 1, C or 2C, 1, 1)
        if self.modulation == "shift":
            h = self.norm1(h + film)
        else:
            gain, shift = film.chunk(2, dim=1)
            if self.modulation == "scale":
                h = torch.addcmul(shift, self.norm1(h), gain + 1)
            else:
                h = torch.addcmul(_pixel_norm(shift), self.norm1(h), _pixel_norm(gain))
        h = self.conv1(self.dropout(F.silu(h, inplace=quiet)))
        h = h + self.shortcut(shortcut)
        return h if self.scale == 1.0 else h * self.scale


def _pixel_norm(a: Tensor) -> Tensor:
    return a * (a.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


class EDMEmbedding(nn.Module):
    """Noise level, class, augmentation and guidance weight to one conditioning vector.

    Args:
        n_noise: features of the noise level.
        n_emb: E.
        n_classes: 0 for none. The null class is the zero vector: it has no row of its own.
        n_augment: augmentation labels, 0 for none.
        guided: also read the weight of classifier-free guidance (Meng et al. 2023, arXiv 2210.03142); the new layer
            starts at zero, so that a student starts as its teacher.
        embedding: "positional" or "fourier".
        scale: standard deviation of the Fourier frequencies; 16 in Song et al., 0.02 in arXiv 2310.14189.
    """

    def __init__(
        self,
        n_noise: int,
        n_emb: int,
        family: Family,
        *,
        n_classes: int,
        n_augment: int,
        guided: bool,
        embedding: Literal["positional", "fourier"],
        scale: float,
    ):
        super().__init__()
        self.n_noise, self.n_classes, self.n_augment, self.family = n_noise, n_classes, n_augment, family
        half = n_noise // 2
        self.fourier = embedding == "fourier"
        if self.fourier:
            frequencies = torch.empty(half).normal_(std=2 * math.pi * scale)
        else:
            last = half - 1 if family.endpoint else half
            frequencies = constant([family.frequency * 10000.0 ** (-i / last) for i in range(half)])
        self.register_buffer("frequencies", frequencies, persistent=self.fourier)
        self.label = None
        if n_classes:
            self.label = nn.Linear(n_classes, n_noise if family.labels_first else n_emb, bias=family.labels_first)
        self.augment = nn.Linear(n_augment, n_noise, bias=False) if n_augment else None
        self.guidance = nn.Linear(n_noise, n_noise, bias=False) if guided else None
        self.layer0 = nn.Linear(n_noise, n_emb)
        self.layer1 = nn.Linear(n_emb, n_emb)

    def initialise(self, family: Family) -> None:
        start(self, family)
        if not family.xavier:
            if self.label is not None:
                nn.init.normal_(self.label.weight)
            if self.augment is not None:
                nn.init.zeros_(self.augment.weight)
        if self.guidance is not None:
            nn.init.zeros_(self.guidance.weight)

    def forward(self, noise: Tensor, cond: Tensor | None, augment: Tensor | None, guidance: Tensor | None) -> Tensor:
        """(B or 1, E); see `EDMUNet.forward` for the arguments."""
        angles = noise[:, None].to(self.frequencies.dtype) * self.frequencies
        halves = (angles.sin(), angles.cos()) if self.family.sine_first else (angles.cos(), angles.sin())
        dtype = self.layer0.weight.dtype
        h = torch.cat(halves, dim=1).to(dtype)
        label = self._label(cond, dtype)
        if self.family.labels_first and label is not None:
            h = h + label
        if augment is not None:
            if self.augment is None or augment.ndim != 2 or augment.shape[1] != self.n_augment:
                raise BadValue(f"expected (B, {self.n_augment}) augmentation labels, got {tuple(augment.shape)}.")
            h = h + self.augment(augment.to(dtype))
        if guidance is not None:
            if self.guidance is None:
                raise BadValue("this network reads no guidance weight; build it with guided=True.")
            h = h + self.guidance(sinusoids(guidance.reshape(-1).to(angles.dtype), self.n_noise).to(dtype))
        h = self.layer1(F.silu(self.layer0(h)))
        if not self.family.labels_first and label is not None:
            h = h + label
        return F.silu(h)

    def _label(self, cond: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Class embeddings (B, n_noise or E), of the null class (1, ...); None without classes."""
        if self.label is None:
            if cond is not None and not torch.compiler.is_compiling() and bool((cond >= 0).any()):
                raise BadValue("this network has no classes (n_classes=0) but was given labels; pass cond=None.")
            return None
        if cond is None:
            return self.label.bias[None] if self.label.bias is not None else None
        if not torch.compiler.is_compiling() and cond.device.type == "cpu" and int(cond.max()) >= self.n_classes:
            raise BadValue(f"class {int(cond.max())} does not exist; this network knows 0..{self.n_classes - 1}.")
        hot = (cond[:, None] == torch.arange(self.n_classes, device=cond.device)).to(dtype)
        return self.label(hot * math.sqrt(self.n_classes) if self.family.labels_first else hot)


def start(module: nn.Module, family: Family) -> None:
    """Initialise all linear maps of a module in the manner of the family; see `Family.xavier`."""
    if family.xavier:
        for part in module.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)


def start_last(part: nn.Conv2d, family: Family) -> None:
    """Initialise the last layer of a branch so that the branch starts (nearly) closed."""
    if family.xavier:
        nn.init.xavier_uniform_(part.weight, gain=1e-5)
    else:
        nn.init.zeros_(part.weight)
    nn.init.zeros_(part.bias)
