"""Generators whose law is known exactly at any moment: matching without a learnt fake score, and the truth about one.

B batch, N points, D features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from explorer.data import Dataset, Loader
from explorer.errors import BadValue
from explorer.models.base import Denoiser, FlowMap, Model, Oracle
from explorer.process.oracles import GaussianMixture
from explorer.process.paths import EDM
from explorer.training.matching import DistributionMatching


class Affine(FlowMap):
    """x = a + b z for the noise z = x_t / t: a Gaussian with independent coordinates.

    Args:
        a, b: mean and scale of each coordinate, (D,) or numbers.
    """

    to_data = True

    def __init__(self, a: Sequence[float], b: Sequence[float], *, sigma_max: float = 80.0):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.as_tensor(v, dtype=torch.float32).reshape(-1).clone()) for v in (a, b))
        self.path, self.shape, self.t_range = EDM(), tuple(self.a.shape), (1e-4, float(sigma_max))

    def jump(self, x_t, t, r, cond=None):
        return self.a + self.b * (x_t / t)

    def on(self, path):
        return _stays(self, path)

    def law(self) -> Oracle:
        """The exact denoiser of its samples as it is now, without gradient to its parameters."""
        a, b = self.a.detach().double(), self.b.detach().double()
        return Oracle(GaussianMixture(a[None], covs=torch.diag(b**2)[None]), name="affine generator")


class Points(FlowMap):
    """N free points: a generator without weights, whose diffused law is a kernel density estimate.

    A batch must have N samples; the noise it gives is not looked at.
    """

    to_data = True

    def __init__(self, points: Tensor, *, sigma_max: float = 80.0):
        super().__init__()
        self.points = nn.Parameter(points.detach().clone())
        self.path, self.shape, self.t_range = EDM(), tuple(points.shape[1:]), (1e-4, float(sigma_max))

    def jump(self, x_t, t, r, cond=None):
        if len(x_t) != len(self.points):
            raise BadValue(f"these are {len(self.points)} points; a batch of {len(x_t)} asks for another number.")
        return self.points.clone()

    def on(self, path):
        return _stays(self, path)

    def law(self) -> Oracle:
        """The exact denoiser of the points as they are now."""
        return Oracle(GaussianMixture.finite(self.points.detach()), name="points")


def _stays(model: FlowMap, path) -> FlowMap:
    if path != model.path:
        raise BadValue(f"a {type(model).__name__} generator lives on {model.path}, not on {path}.")
    return model


class Flat(Denoiser):
    """D(x) = x: the denoiser of a density without gradient. As fake score it leaves the real score alone (no repulsion)."""

    def __init__(self, shape: Sequence[int]):
        super().__init__()
        self.path, self.shape, self.t_range = EDM(), tuple(shape), (1e-4, 1e3)

    def predict(self, x_t, t, cond=None):
        return x_t, "x0"


def no_score(student: Model) -> Flat:
    """A `Law` for the ablation "real score only"."""
    return Flat(student.shape)


def samples_law(x: Tensor) -> Oracle:
    """The denoiser of the empirical law of many samples (N, D): the truth about any generator, at levels above their spacing."""
    return Oracle(GaussianMixture.finite(x.detach()), name="samples")


def mixture_stream(mixture: GaussianMixture, batch: int, seed: int = 0) -> Loader:
    """Endless fresh samples of a mixture, a function of seed and position alone."""
    few = mixture.sample(8, torch.Generator().manual_seed(0))[0].float()
    data = Dataset("mixture", few, draw=lambda n, g: (mixture.sample(n, generator=g)[0].float(), None))
    return Loader(data, batch, seed=seed, fresh=True)


def direction_cosine(
    method: DistributionMatching, x: Tensor, law: Denoiser, sigma: float, generator: torch.Generator
) -> tuple[float, float]:
    """How well the fake score points, at x + sigma n: mean cosine of its direction with the exact one, relative error.

    The error is rms |D_q - exact| over rms |exact - x_t|.

    Args:
        x: (B, D) samples of the generator.
        law: the exact denoiser of its samples.
    """
    with torch.no_grad():
        x_t = x + sigma * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        levels = torch.full((len(x),), sigma, dtype=x.dtype)
        real, fake, exact = (m.denoise(x_t, levels) for m in (method.teacher, method.fake, law))
        cosine = torch.cosine_similarity((fake - real).flatten(1), (exact - real).flatten(1), dim=1)
        error = (fake - exact).square().mean() / (exact - x_t).square().mean()
    return float(cosine.mean()), math.sqrt(float(error))
