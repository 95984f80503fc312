"""Needs beside teachers and pairs: flows and data known exactly, and feature spaces to measure images in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from explorer.data import Batch, Dataset
from explorer.data.loader import mix
from explorer.models import bundled
from explorer.models.base import Oracle, Preconditioned
from explorer.nets.edm_unet import EDMUNet
from explorer.process.oracles import GaussianMixture
from explorer.process.paths import EDM, Linear
from explorer.process.precondition import EDMPrecondition
from explorer.reproduction.recipe import Need
from explorer.training import distributed
from explorer.training.plan import Plan


@dataclass(frozen=True)
class Exact(Need):
    """The exact rectified flow of a Gaussian mixture, on the linear path: a 1-RF without training.

    Attributes:
        means: of the components, equally likely.
        std: of each component.
    """

    means: tuple[tuple[float, ...], ...]
    std: float

    @property
    def mixture(self) -> GaussianMixture:
        return GaussianMixture(torch.tensor(self.means, dtype=torch.float64), self.std)

    def describe(self):
        return {"exact": [list(m) for m in self.means], "std": self.std}

    def make(self, bench):
        return Oracle(self.mixture, Linear(), name="exact-1rf", t_range=(1e-5, 1 - 1e-5))

    def stand_in(self, bench):
        return self.make(bench)

    def stream(self, plan: Plan) -> Fresh:
        """Endless fresh batches of its data."""
        return Fresh(self.mixture, plan.batch_size, seed=plan.seed)

    def dataset(self) -> Dataset:
        """Its data, 8192 of them fixed, and fresh ones without end."""
        mixture, g = self.mixture, torch.Generator().manual_seed(0)
        sd = math.sqrt(float(mixture.cov().trace()) / mixture.dim)
        return Dataset(
            "mixture",
            mixture.sample(8192, g)[0].float(),
            sigma_data=sd,
            draw=lambda n, g: (mixture.sample(n, g)[0], None),
        )


def ring(n: int = 8, radius: float = 3.0, std: float = 0.2) -> Exact:
    """n Gaussian modes on a circle."""
    angles = [2 * math.pi * k / n for k in range(n)]
    return Exact(tuple((radius * math.cos(a), radius * math.sin(a)) for a in angles), std)


@dataclass
class Fresh:
    """Endless fresh draws of a mixture, and of a second one as their noise; batch i is a function of (seed, i).

    Attributes:
        source: the law of `Batch.noise`, drawn independently; None leaves the noise to the method.
    """

    mixture: GaussianMixture | Moons
    batch_size: int
    seed: int = 0
    source: GaussianMixture | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self.start(0)

    def start(self, position: int) -> Iterator[Batch]:
        while True:
            yield self.batch(position)
            position += 1

    def batch(self, i: int) -> Batch:
        g = torch.Generator().manual_seed(mix(self.seed, i))
        x0 = self.mixture.sample(self.batch_size, g)[0].float()
        noise = None if self.source is None else self.source.sample(self.batch_size, g)[0].float()
        share = slice(distributed.rank(), None, distributed.world())
        return Batch(x0[share], None, None if noise is None else noise[share])


class Moons:
    """Two moons three times as large as usual, noise 0.2: (3 x - 1) of the toy of Tong et al."""

    def sample(self, n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
        k = torch.randint(2, (n,), generator=g)
        a = math.pi * torch.rand(n, generator=g, dtype=torch.float64)
        upper, lower = torch.stack([a.cos(), a.sin()], 1), torch.stack([1 - a.cos(), 0.5 - a.sin()], 1)
        x = torch.where(k[:, None] == 0, upper, lower) + 0.2 * torch.randn(n, 2, generator=g, dtype=torch.float64)
        return 3 * x - 1, k


@dataclass(frozen=True)
class Checkpoint(Need):
    """A published EDM network that the user has as NAME.safetensors with its card, see `explorer.models.bundled`.

    Attributes:
        name: of the file, without its ending.
        config: of its `EDMUNet`, for a rehearsal without it.
        sigma_data: of its preconditioning.
    """

    name: str
    config: Mapping[str, Any]
    sigma_data: float = 0.5

    def describe(self):
        return {"checkpoint": self.name}

    def make(self, bench):
        return bundled.load(f"{self.name}.safetensors", bench.device)

    def stand_in(self, bench):
        net = EDMUNet(**self.config)
        about = {"n_classes": net.n_classes, "t_range": (0.002, 80.0), "name": self.name}
        model = Preconditioned(net, EDM(), EDMPrecondition(self.sigma_data), shape=net.shape, **about)
        return model.to(bench.device).eval().requires_grad_(False)


@dataclass(frozen=True)
class Features(Need):
    """A perceptual distance: mean square difference of a bundled classifier's standardised features.

    What LPIPS is on photographs (Zhang et al. 2018, arXiv 1801.03924), on images for which no such network exists.
    """

    name: str = "digits-cnn"

    def describe(self):
        return {"features": self.name, "sha256": bundled.card(self.name)["sha256"]}

    def on(self, data):
        return self

    def make(self, bench):
        return FeatureDistance(bundled.load_features(self.name, bench.device))

    def stand_in(self, bench):
        return self.make(bench)


class FeatureDistance(nn.Module):
    """(x (B, *shape), y) -> (B,) mean square difference of features; gradients flow to both."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net.eval().requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        like = next(self.net.parameters())
        a, b = (self.net.features(v.to(like.dtype)) for v in (x, y))
        return (a - b).square().mean(1)

    def train(self, mode: bool = True) -> FeatureDistance:
        """Stays in evaluation mode: its running statistics are part of the distance."""
        return super().train(False)
