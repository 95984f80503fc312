"""Two Gaussian modes seen through a random projection: few points in many coordinates, the toy of restart sampling.

N points, D coordinates, L latent coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from explorer.data.dataset import Dataset
from explorer.errors import BadValue


@dataclass(frozen=True)
class ProjectedModes:
    """n draws of 0.3 N(a, I) + 0.7 N(-a, I) in L dimensions, a = 3 in each, times a random D x L matrix; every coordinate has variance 1.

    The points lie on an L-dimensional plane of D-dimensional space. Coordinates are also centred, which moves all points alike.
    Source: Xu et al. 2023, arXiv 2306.14878, toy experiment (L = 4, D = 20, n = 2000; the matrix and the draws are ours).

    Args:
        seed: of the matrix; draws have their own.
    """

    n: int = 2000
    dim: int = 20
    latent: int = 4
    weight: float = 0.3
    centre: float = 3.0
    seed: int = 0

    def __post_init__(self):
        if self.n < 2 or not 1 <= self.latent <= self.dim:
            raise BadValue(f"at least 2 points and 1 <= latent <= dim are needed, got {self}")

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, None]:
        """n points (n, D) float32, shifted and scaled as the training points are."""
        return ((self._raw(n, generator) - self._moments[0]) / self._moments[1]).float(), None

    def dataset(self, split: str = "train") -> Dataset:
        """The fixed points; the test split is another draw of as many, on the same plane and scale."""
        x, _ = self.draw(self.n, self._draws(split))
        card = {"about": "two Gaussian modes in a random 4-dimensional plane of 20 dimensions", "n": self.n}
        return Dataset("projected-modes", x, None, 0, 1.0, {**card, "seed": self.seed})

    def _draws(self, split: str) -> torch.Generator:
        return torch.Generator().manual_seed(1000 * self.seed + (1 if split == "train" else 2))

    def _raw(self, n: int, generator: torch.Generator) -> Tensor:
        matrix = torch.randn(
            self.dim, self.latent, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64
        )
        sign = torch.where(torch.rand(n, 1, generator=generator, dtype=torch.float64) < self.weight, 1.0, -1.0)
        z = sign * self.centre + torch.randn(n, self.latent, generator=generator, dtype=torch.float64)
        return z @ matrix.T

    @property
    def _moments(self) -> tuple[Tensor, Tensor]:
        raw = self._raw(self.n, self._draws("train"))
        return raw.mean(0), raw.std(0, correction=0)
