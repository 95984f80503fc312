"""A network that is a log-density: one number for each noisy point, its score the gradient.

    x* = x / sqrt(sigma^2 + sd^2)
    y  = MLP([x*, ln(sigma)/4, 1])                      magnitude-preserving layers, SiLU
    G  = gain mean(y^2) / sigma - |x*|^2 / 2            ln p(x; sigma) up to a constant in x
    F  = sigma grad G                                   what `forward` gives; D = x + sigma F

At gain 0 it is the Gaussian N(0, sigma^2 + sd^2). The paper prints a minus and a sum where this has a gain of either sign and a mean.

Legend: B batch, D dimension of the data, W width.
Source: Karras et al. 2024, arXiv 2406.02507, Appendix C; the layers: Karras et al. 2024, arXiv 2312.02696, Eqs. 47, 66, 81.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from explorer.errors import BadValue
from explorer.nets.edm2_unet import UnitLinear, silu, unit_rms


class LogDensity(nn.Module):
    """Noisy point, noise level -> sigma times the score, as `VEPrecondition` takes it (D = x + sigma F(x; ln(sigma/2))).

    Args:
        dim: D.
        width: W, features of every hidden layer.
        depth: hidden layers after the first.
        sigma_data: sd, standard deviation of a coordinate of the data.
        dropout: share of hidden features dropped while training, or where a corruption is studied.

    Attributes:
        config: the constructor's arguments as plain JSON.
    """

    n_skips = 0
    skip_names: tuple[str, ...] = ()

    def __init__(self, dim: int = 2, width: int = 64, depth: int = 4, sigma_data: float = 0.5, dropout: float = 0.0):
        super().__init__()
        self.config = {"dim": dim, "width": width, "depth": depth, "sigma_data": sigma_data, "dropout": dropout}
        self.shape, self.n_classes, self.sigma_data = (dim,), 0, sigma_data
        self.layers = nn.ModuleList([UnitLinear(dim + 2, width), *(UnitLinear(width, width) for _ in range(depth))])
        self.dropout = nn.Dropout(dropout)
        self.gain = nn.Parameter(torch.zeros([]))

    def log_density(self, x: Tensor, noise: Tensor) -> Tensor:
        """G, (B,): ln p(x; sigma) up to a constant that depends on sigma only.

        Args:
            x: (B, D).
            noise: ln(sigma / 2), (B,) or (1,).
        """
        if x.shape[1:] != self.shape:
            raise BadValue(f"this network reads points of shape {self.shape}, got {tuple(x.shape[1:])}.")
        noise = noise.expand(len(x))
        sigma = 2 * noise.exp()
        unit = x / (sigma**2 + self.sigma_data**2).sqrt()[:, None]
        level = (noise + math.log(2)) / 4
        y = torch.cat([unit, level[:, None], torch.ones_like(level[:, None])], dim=1)
        for layer in self.layers:
            y = self.dropout(silu(layer(y)))
        return self.gain * y.square().mean(1) / sigma - unit.square().sum(1) / 2

    def forward(self, x: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """sigma grad G, (B, D); differentiable again where gradients are on, and no graph is kept where they are off."""
        if cond is not None and bool((cond >= 0).any()):
            raise BadValue("this network has no classes but was given labels; pass cond=None.")
        wanted = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            if not (wanted and x.requires_grad):  # and a tensor of inference mode could not be differentiated
                x = x.detach().clone().requires_grad_()
            noise = noise.clone()
            [slope] = torch.autograd.grad(self.log_density(x, noise).sum(), x, create_graph=wanted)
            return 2 * noise.exp()[:, None] * slope

    @torch.no_grad()
    def renormalise(self) -> None:
        """Brings the stored weights to unit norm per output, as they are used anyway, so that steps keep their relative size (Eq. 66)."""
        for layer in self.layers:
            layer.weight.copy_(unit_rms(layer.weight, 1))
