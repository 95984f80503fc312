"""Denoising score matching of any preconditioned model: what a guide, or a model tuned on its own samples, is trained by.

    L = E 1/c_out^2 |D(x0 + sigma eps; sigma, c) - x0|^2,   ln sigma ~ N(P_mean, P_std^2)

Source: Karras et al. 2022, arXiv 2206.00364, Eq. 2 and Table 1, for EDM's preconditioning; the squared norm is a mean over features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from explorer.data import Batch
from explorer.errors import BadValue
from explorer.models.base import Preconditioned
from explorer.process.broadcast import like
from explorer.process.paths import EDM
from explorer.process.times import TimeDistribution
from explorer.training.method import Method, Progress, Update


class Denoising(Method):
    """Trains the network of a model whose prediction is the data.

    Args:
        model: gives network, preconditioning, shape, classes and name; its network is trained as it is, so hand over a copy to keep it.
        times: of sigma.
        label_dropout: share of labels replaced by the null class.
    Raises:
        BadValue: the model is not on EDM's path, or predicts something else than data.
    """

    def __init__(self, model: Preconditioned, times: TimeDistribution, label_dropout: float = 0.0):
        super().__init__()
        if not isinstance(model.path, EDM) or model.precondition.kind != "x0":
            raise BadValue(f"{model.name or 'this model'} must predict data on EDM's path, not {model.path}")
        self.nets = nn.ModuleDict({"net": model.net})
        self.times, self.label_dropout, self.name = times, label_dropout, model.name
        self.precondition, self.shape, self.n_classes = model.precondition, model.shape, model.n_classes
        self.t_range = model.t_range

    def export(self, nets) -> Preconditioned:
        about = {"shape": self.shape, "n_classes": self.n_classes, "t_range": self.t_range, "name": self.name}
        return Preconditioned(nets["net"], EDM(), self.precondition, **about)

    def updates(self, batch: Batch, progress: Progress):
        loss, sigma = self.loss(batch, progress.generator)
        yield Update(("net",), loss.mean(), levels=(sigma, loss))

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Weighted loss of every sample and the sigma it was drawn at: (B,), (B,)."""
        x0 = batch.x0
        draw = {"generator": generator, "device": x0.device, "dtype": x0.dtype}
        sigma = self.times.sample(len(x0), **draw)
        x = x0 + like(sigma, x0) * torch.randn(x0.shape, **draw)
        labels = None
        if self.n_classes:
            labels = torch.where(torch.rand(len(x0), **draw) < self.label_dropout, -1, batch.labels)
        model = self.export(self.nets)
        _, c_out, _, _ = self.precondition.coefficients(sigma, model.path)
        error = (model.denoise(x, sigma, labels) - x0).square().flatten(1).mean(1)
        return error / c_out**2, sigma
