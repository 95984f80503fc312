"""Inception-v3 as FID uses it: the 2015-12-05 graph, its 1008 outputs, and its two peculiarities in pooling.

The graph is not the network of the paper (Szegedy et al. 2015, arXiv 1512.00567, Fig. 10) as image libraries ship it:

    average pooling inside a block divides by the pixels that are there, not by nine, so the border is not darkened;
    the very last block pools by maximum where the paper pools by average.

Either one left out changes every feature. The weights that belong here are the port known as pt_inception-2015-12-05 (472 tensors);
the names of parameters are its names. `explorer.metrics.inception` reads the file; nothing here knows of files.

B batch, C channels, H W height width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explorer.errors import BadValue, UnknownName

SIDE = 299
"""Height and width of what the network sees."""

N_CLASSES = 1008
"""1000 classes of ImageNet, one for background, and seven that were never used."""

LAYERS: Mapping[str, int] = MappingProxyType(
    {"64": 64, "192": 192, "768": 768, "spatial": 2023, "2048": 2048, "logits_unbiased": 1008, "logits": 1008}
)
"""Features by name and their number. "64", "192", "768": means over pixels after the first and second maximum pooling and before
block 7a. "2048": what FID, KID, precision and recall compare. "spatial": 7 channels of block 6d at 17 x 17 pixels (sFID, Nash et
al. 2021, arXiv 2103.03841). "logits_unbiased": without the bias of the last layer, as Inception Scores are computed."""

MEAN, MAX, SHRINK = "mean", "max", "shrink"
"""Pooling at the head of a chain: 3 x 3 with stride 1 (mean over the pixels that are there, or maximum), or maximum with stride 2."""

Chain = Sequence["str | tuple[str, ...]"]


class Conv(nn.Module):
    """Convolution, batch normalisation with the statistics of training, ReLU."""

    def __init__(
        self, n_in: int, n_out: int, kernel: tuple[int, int], stride: int = 1, padding: tuple[int, int] = (0, 0)
    ):
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(n_out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Block(nn.Module):
    """Parallel chains whose outputs are laid side by side in the channels.

    Args:
        n_in: channels of the input.
        convs: name -> (channels out, height, width, stride) of every convolution; with stride 1 the picture keeps its size.
        chains: each a sequence of names, led by a kind of pooling where there is one; a tuple of names is a fork whose ends
            are laid side by side.
    """

    def __init__(self, n_in: int, convs: Mapping[str, tuple[int, int, int, int]], chains: Sequence[Chain]):
        super().__init__()
        self.chains = tuple(tuple(chain) for chain in chains)
        widths: dict[str, int] = {}
        for chain in self.chains:
            width = n_in
            for link in chain:
                fork = (link,) if isinstance(link, str) else link
                for name in fork:
                    if name in convs:
                        widths[name] = width
                width = sum(convs[name][0] for name in fork) if fork[0] in convs else width
        for name, (n_out, height, breadth, stride) in convs.items():
            padding = (height // 2, breadth // 2) if stride == 1 else (0, 0)
            self.add_module(name, Conv(widths[name], n_out, (height, breadth), stride, padding))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.along(chain, x) for chain in self.chains], 1)

    def along(self, chain: Chain, x: Tensor) -> Tensor:
        """The output of one chain."""
        for link in chain:
            if link == MEAN:
                x = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
            elif link == MAX:
                x = F.max_pool2d(x, 3, stride=1, padding=1)
            elif link == SHRINK:
                x = F.max_pool2d(x, 3, stride=2)
            elif isinstance(link, str):
                x = getattr(self, link)(x)
            else:
                x = torch.cat([getattr(self, name)(x) for name in link], 1)
        return x


def _block_5(n_in: int, pooled: int) -> Block:
    convs = {
        "branch1x1": (64, 1, 1, 1),
        "branch5x5_1": (48, 1, 1, 1),
        "branch5x5_2": (64, 5, 5, 1),
        "branch3x3dbl_1": (64, 1, 1, 1),
        "branch3x3dbl_2": (96, 3, 3, 1),
        "branch3x3dbl_3": (96, 3, 3, 1),
        "branch_pool": (pooled, 1, 1, 1),
    }
    double = ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"]
    return Block(n_in, convs, [["branch1x1"], ["branch5x5_1", "branch5x5_2"], double, [MEAN, "branch_pool"]])


def _block_6a(n_in: int) -> Block:
    convs = {
        "branch3x3": (384, 3, 3, 2),
        "branch3x3dbl_1": (64, 1, 1, 1),
        "branch3x3dbl_2": (96, 3, 3, 1),
        "branch3x3dbl_3": (96, 3, 3, 2),
    }
    return Block(n_in, convs, [["branch3x3"], ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"], [SHRINK]])


def _block_6(n_in: int, width: int) -> Block:
    tall, wide = [f"branch7x7_{i}" for i in (1, 2, 3)], [f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)]
    convs = {
        "branch1x1": (192, 1, 1, 1),
        **dict(zip(tall, [(width, 1, 1, 1), (width, 1, 7, 1), (192, 7, 1, 1)], strict=True)),
        **dict(zip(wide, [(width, 1, 1, 1), *[(width, 7, 1, 1), (width, 1, 7, 1)] * 2], strict=True)),
        "branch_pool": (192, 1, 1, 1),
    }
    convs[wide[-1]] = (192, 1, 7, 1)
    return Block(n_in, convs, [["branch1x1"], tall, wide, [MEAN, "branch_pool"]])


def _block_7a(n_in: int) -> Block:
    names = [f"branch7x7x3_{i}" for i in (1, 2, 3, 4)]
    convs = {
        "branch3x3_1": (192, 1, 1, 1),
        "branch3x3_2": (320, 3, 3, 2),
        **dict(zip(names, [(192, 1, 1, 1), (192, 1, 7, 1), (192, 7, 1, 1), (192, 3, 3, 2)], strict=True)),
    }
    return Block(n_in, convs, [["branch3x3_1", "branch3x3_2"], names, [SHRINK]])


def _block_7(n_in: int, pooling: str) -> Block:
    convs = {
        "branch1x1": (320, 1, 1, 1),
        "branch3x3_1": (384, 1, 1, 1),
        "branch3x3_2a": (384, 1, 3, 1),
        "branch3x3_2b": (384, 3, 1, 1),
        "branch3x3dbl_1": (448, 1, 1, 1),
        "branch3x3dbl_2": (384, 3, 3, 1),
        "branch3x3dbl_3a": (384, 1, 3, 1),
        "branch3x3dbl_3b": (384, 3, 1, 1),
        "branch_pool": (192, 1, 1, 1),
    }
    double = ["branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")]
    chains = [["branch1x1"], ["branch3x3_1", ("branch3x3_2a", "branch3x3_2b")], double, [pooling, "branch_pool"]]
    return Block(n_in, convs, chains)


class Inception(nn.Module):
    """Features of pictures (B, 3, 299, 299), scaled to about [-1, 1] by one of the named protocols.

    Always in evaluation mode and without gradients to its weights; random until weights are loaded (see `randomise_`).
    """

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, (3, 3), stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, (3, 3))
        self.Conv2d_2b_3x3 = Conv(32, 64, (3, 3), padding=(1, 1))
        self.Conv2d_3b_1x1 = Conv(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = Conv(80, 192, (3, 3))
        self.Mixed_5b = _block_5(192, 32)
        self.Mixed_5c = _block_5(256, 64)
        self.Mixed_5d = _block_5(288, 64)
        self.Mixed_6a = _block_6a(288)
        self.Mixed_6b = _block_6(768, 128)
        self.Mixed_6c = _block_6(768, 160)
        self.Mixed_6d = _block_6(768, 160)
        self.Mixed_6e = _block_6(768, 192)
        self.Mixed_7a = _block_7a(768)
        self.Mixed_7b = _block_7(1280, MEAN)
        self.Mixed_7c = _block_7(2048, MAX)
        self.fc = nn.Linear(2048, N_CLASSES)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Inception:
        """Does nothing: the statistics of its normalisations are those of the file."""
        return super().train(False)

    def forward(self, x: Tensor, layers: Iterable[str] = ("2048",)) -> dict[str, Tensor]:
        """Features (B, LAYERS[layer]) by layer; nothing after the last one asked for is computed.

        Raises:
            UnknownName: no such layer. BadValue: x is not (B, 3, 299, 299).
        """
        wanted = tuple(layers)
        for layer in wanted:
            if layer not in LAYERS:
                raise UnknownName("layer of Inception-v3", layer, LAYERS)
        if x.ndim != 4 or x.shape[1:] != (3, SIDE, SIDE):
            raise BadValue(
                f"Inception-v3 sees pictures (B, 3, {SIDE}, {SIDE}), got {tuple(x.shape)}: a protocol resizes them."
            )
        found: dict[str, Tensor] = {}
        for layer, value in self.walk(x, "spatial" in wanted):
            if layer in wanted:
                found[layer] = value
            if len(found) == len(set(wanted)):
                break
        return found

    def walk(self, x: Tensor, spatial: bool = False) -> Iterable[tuple[str, Tensor]]:
        """Layers and their values, in the order in which they are reached."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        yield "64", x.mean((2, 3))
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, stride=2)
        yield "192", x.mean((2, 3))
        for block in (self.Mixed_5b, self.Mixed_5c, self.Mixed_5d, self.Mixed_6a, self.Mixed_6b, self.Mixed_6c):
            x = block(x)
        if spatial:
            yield "spatial", self.Mixed_6d.branch1x1(x)[:, :7].flatten(1)
        x = self.Mixed_6e(self.Mixed_6d(x))
        yield "768", x.mean((2, 3))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3))
        yield "2048", x
        logits = x @ self.fc.weight.T
        yield "logits_unbiased", logits
        yield "logits", logits + self.fc.bias

    @torch.no_grad()
    def randomise_(self, seed: int) -> Inception:
        """Weights drawn from a seed, with activations of order one in every layer: the network's shape without its knowledge."""
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                spread = math.sqrt(2 / (module.in_channels * math.prod(module.kernel_size)))
                module.weight.normal_(0, spread, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.8, 1.2, generator=generator)
                module.bias.uniform_(-0.1, 0.1, generator=generator)
                module.running_mean.uniform_(-0.1, 0.1, generator=generator)
                module.running_var.uniform_(0.8, 1.2, generator=generator)
        self.fc.weight.normal_(0, 1 / math.sqrt(2048), generator=generator)
        self.fc.bias.uniform_(-0.1, 0.1, generator=generator)
        return self


def resize_tf1(x: Tensor, side: int = SIDE) -> Tensor:
    """Bilinear resizing as TensorFlow 1 does it with align_corners=False: (B, C, H, W) -> (B, C, side, side).

    Output pixel i sits at input position i * H / side, with no half-pixel shift, so the picture moves by up to half an input
    pixel towards the upper left and its last rows repeat; shrinking skips pixels, nothing is averaged. Positions are rounded to
    float32 as they are there.
    """
    for axis in (3, 2):  # across first, then down, as there
        n = x.shape[axis]
        position = np.arange(side, dtype=np.float32) * (np.float32(n) / np.float32(side))
        low = position.astype(np.int64)
        share = torch.from_numpy(position - low.astype(np.float32)).to(x)
        low = torch.from_numpy(low).to(x.device)
        high = (low + 1).clamp_max(n - 1)
        share = share if axis == 3 else share[:, None]
        first = x.index_select(axis, low)
        x = first + (x.index_select(axis, high) - first) * share
    return x
