"""3x3 convolutions with a quarter of the multiplications, where a CPU spends its time in them and no gradient is asked for.

Legend: N images, C channels in, O out, H W height width, T tiles of 4x4 output pixels, D side of a tile's input (6).

A tile of output is 4x4 numbers made of 6x6 pixels by a polynomial product: evaluated at the 36 pairs of six points, multiplied there,
interpolated (Winograd 1980; Lavin and Gray 2015, arXiv 1509.09308). The sums over channels then are 36 matrix products of T rows, and
evaluation and interpolation are products with constant matrices. The points are 0, +-3/4, +-3/2 and infinity: exact in binary, and with
half the rounding of the usual 0, +-1, +-2.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explorer.nets.forward_mode import differentiating

OUT, SIDE = 4, 6  # pixels of a tile in one dimension: of the output, of the input
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)  # and infinity
AT_ONCE = 256
"""Tiles in one pass: their 36 values of all channels should stay in the cache."""
FROM_CHANNELS, FROM_TILES = 192, 64
"""Below this the transforms cost more than they save: measured on a 2.8 GHz Ice Lake server at 8x8 to 32x32, batches of 1 to 32."""


class Conv3x3(nn.Conv2d):
    """`nn.Conv2d(n_in, n_out, 3, padding=1)`, by Winograd's algorithm where that is faster; see `faster`.

    Accuracy: both ways round differently, the usual one to about 2e-7 of the result's scale, this one to 9e-7.
    """

    def __init__(self, n_in: int, n_out: int):
        super().__init__(n_in, n_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return winograd(x, self.weight, self.bias) if faster(x, self.weight) else super().forward(x)


def faster(x: Tensor, weight: Tensor) -> bool:
    """Whether `winograd` saves time: no derivative wanted, float32 on the CPU, many channels, sides divisible by 4, enough tiles."""
    n, c, height, width = x.shape
    return (
        min(c, weight.shape[0]) >= FROM_CHANNELS
        and height % OUT == 0 == width % OUT
        and n * height * width >= FROM_TILES * OUT**2
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not differentiating()
        and not torch.compiler.is_compiling()
    )


def winograd(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`conv2d(x, weight, bias, padding=1)` for a 3x3 kernel, in channels-last memory; without derivatives.

    Args:
        x: (N, C, H, W), H and W divisible by 4; any floating dtype, any device.
        weight: (O, C, 3, 3). It is transformed anew in every call (9 / T of the multiplications), so that nothing can be stale and
            no second copy, four times as large, is kept.
        bias: (O,).
    Returns:
        (N, O, H, W).
    """
    n, c, height, width = x.shape
    o, rows, columns = len(weight), height // OUT, width // OUT
    kernel, data, result = (m.to(x) for m in _transforms())
    u = (kernel @ weight.permute(2, 3, 0, 1).reshape(9, o * c)).view(-1, o, c).transpose(1, 2)  # (36, C, O)
    padded = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1).contiguous()  # (N, H + 2, W + 2, C)
    s_n, s_y, s_x, _ = padded.stride()
    out = x.new_empty(n, height, width, o)
    images = max(1, AT_ONCE // (rows * columns))
    for part, into in zip(padded.split(images), out.split(images), strict=True):
        k = len(part)
        tiles = part.as_strided((SIDE, SIDE, k, rows, columns, c), (s_y, s_x, s_n, OUT * s_y, OUT * s_x, 1))
        v = data @ tiles.reshape(SIDE**2, -1)  # (36, T C)
        y = torch.bmm(v.view(SIDE**2, -1, c), u)  # (36, T, O)
        y = (result @ y.view(SIDE**2, -1)).view(OUT, OUT, k, rows, columns, o).permute(2, 3, 0, 4, 1, 5)
        into = into.view(k, rows, OUT, columns, OUT, o)
        into.copy_(y) if bias is None else torch.add(y, bias, out=into)
    return out.permute(0, 3, 1, 2)


@cache
def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Matrices on flattened squares, float64: kernel (36, 9), data (36, 36), result (16, 36).

    In one dimension, with points a_j and e_j = prod over l != j of (a_j - a_l): the kernel as a polynomial at a_j, over e_j; the data on
    the coefficients of prod over l != j of (z - a_l); the result by powers of a_j. The last row, infinity, reads leading coefficients.
    """
    a = torch.tensor(POINTS, dtype=torch.float64)
    kernel, data, result = (torch.zeros(shape, dtype=torch.float64) for shape in ((SIDE, 3), (SIDE, SIDE), (OUT, SIDE)))
    powers = a ** torch.arange(SIDE, dtype=torch.float64)[:, None]
    for j, at in enumerate(POINTS):
        others = POINTS[:j] + POINTS[j + 1 :]
        kernel[j] = powers[:3, j] / math.prod(at - other for other in others)
        data[j, : SIDE - 1] = _coefficients(others)
    kernel[-1, -1], data[-1] = 1.0, _coefficients(POINTS)
    result[:, :-1], result[-1, -1] = powers[:OUT], 1.0
    return tuple(torch.kron(m, m) for m in (kernel, data, result))


def _coefficients(roots: tuple[float, ...]) -> Tensor:
    """Of prod (z - root), the constant one first."""
    out = torch.ones(1, dtype=torch.float64)
    for root in roots:
        out = F.pad(out, (1, 0)) - root * F.pad(out, (0, 1))
    return out
