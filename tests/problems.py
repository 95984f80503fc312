"""Reference problems with known answers, shared by the tests."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from explorer.models import Denoiser, Oracle
from explorer.process import EDM, VP, CosineVP, GaussianMixture, Linear, Path, Trig

PATHS = [EDM(), VP(), CosineVP(), CosineVP(offset=0.0), Linear(), Trig(), Trig(sigma_data=0.5)]


def ring(n: int = 8, radius: float = 0.66, std: float = 0.06, *, labels: bool = False) -> GaussianMixture:
    """n Gaussians on a circle."""
    angle = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
    means = radius * torch.stack([angle.cos(), angle.sin()], dim=1)
    return GaussianMixture(means, std, labels=torch.arange(n) if labels else None)


def skewed(dim: int = 3, components: int = 4, seed: int = 0) -> GaussianMixture:
    """A mixture with full covariances and unequal weights."""
    g = torch.Generator().manual_seed(seed)
    root = 0.4 * torch.randn(components, dim, dim, dtype=torch.float64, generator=g)
    means = torch.randn(components, dim, dtype=torch.float64, generator=g)
    return GaussianMixture(means, covs=root @ root.mT, weights=torch.arange(1, components + 1))


def times_of(path: Path, n: int = 40) -> Tensor:
    """(n,) float64 times well inside the path, sigma from 0.01 to 50."""
    return path.time(torch.logspace(-2, math.log10(50), n, dtype=torch.float64))


def gaussian_map(path: Path, noise: Tensor, std: float, sigma_from: float, sigma_to: float) -> Tensor:
    """Where the exact ODE of N(0, std^2 I) data takes a state sigma(t) * noise: states scale with the marginal's standard deviation."""
    a0, s0, _, _ = path.at(path.time_at(sigma_from))
    a1, s1, _, _ = path.at(path.time_at(sigma_to))
    return noise * s0 * math.sqrt(((a1 * std) ** 2 + s1**2) / ((a0 * std) ** 2 + s0**2))


class Watcher(Denoiser):
    """Passes everything to a model and remembers when it was asked."""

    def __init__(self, base: Denoiser):
        super().__init__()
        self.base, self.asked = base, []
        self.path, self.shape, self.n_classes, self.t_range = base.path, base.shape, base.n_classes, base.t_range

    def predict(self, x_t, t, cond=None):
        self.asked.append(t)
        return self.base.predict(x_t, t, cond)


def oracle(path: Path | None = None) -> Oracle:
    return Oracle(ring(), path)
