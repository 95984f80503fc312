"""Training on the trigonometric path: TrigFlow diffusion, and networks of EDM denoisers made to run on its clock.

x_t = cos(t) x0 + sin(t) z, z ~ N(0, sd^2 I), dx/dt = cos(t) z - sin(t) x0 of one pair, t in [0, pi/2], sigma = sd tan t.

An EDM network is a TrigFlow network: c_in x / alpha = x / sd, c_skip alpha = cos t and c_out = sd sin t, so that F = -F_EDM with
the clock ln(sd tan t) / 4 in place of t.

Source: Lu & Song 2024, arXiv 2410.11081, Sec. 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from explorer.data import Batch
from explorer.errors import BadValue
from explorer.models.base import Preconditioned
from explorer.nets.weighting import LogWeight
from explorer.process.broadcast import like
from explorer.process.discretisation import SIGMA_RANGE
from explorer.process.paths import Trig
from explorer.process.precondition import EDMPrecondition, TrigFlowPrecondition
from explorer.process.times import LogNormal
from explorer.training.matching import copy_of
from explorer.training.method import Method, Progress, Update


class TrigFlow(Method):
    """Diffusion on the trigonometric path, |sd F - dx/dt|^2 with learnt weight; continuous-time consistency builds on it.

    Args:
        net: F, as `forward(x, t, labels)`.
        times: distribution of sigma = sd tan t.
        label_dropout: share of labels replaced by the null class.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        shape: tuple[int, ...],
        sigma_data: float,
        times: LogNormal,
        n_classes: int = 0,
        label_dropout: float = 0.0,
        weighted: bool = True,
        name: str = "",
    ):
        super().__init__()
        self.nets = nn.ModuleDict({"net": net, **({"weight": LogWeight()} if weighted else {})})
        self.shape, self.sigma_data, self.times, self.path = shape, sigma_data, times, Trig(sigma_data)
        self.n_classes, self.label_dropout, self.name = n_classes, label_dropout, name

    def export(self, nets) -> Preconditioned:
        t_range = tuple(self.path.time_at(s) for s in SIGMA_RANGE)
        about = {"shape": self.shape, "t_range": t_range, "n_classes": self.n_classes, "name": self.name}
        return Preconditioned(nets["net"], self.path, TrigFlowPrecondition(self.sigma_data), **about)

    def updates(self, batch: Batch, progress: Progress):
        sd = self.sigma_data
        x_t, t, slope, labels = self.draw(batch, progress.generator)
        loss = (sd * self.nets["net"](x_t / sd, t, labels) - slope).square().flatten(1).mean(1) / sd**2
        loss = self.weigh(loss, t)
        yield Update(tuple(self.nets), loss.mean(), {}, (sd * t.tan(), loss))

    def draw(self, batch: Batch, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The pair at times drawn from `times`: x_t, t, dx/dt of the pair, labels."""
        x0 = batch.x0
        draw = {"generator": generator, "device": x0.device, "dtype": x0.dtype}
        t = torch.atan(self.times.sample(len(x0), **draw) / self.sigma_data)
        z = self.sigma_data * torch.randn(x0.shape, **draw)
        labels = None
        if self.n_classes:
            labels = torch.where(torch.rand(len(x0), **draw) < self.label_dropout, -1, batch.labels)
        cos, sin = like(t.cos(), x0), like(t.sin(), x0)
        return cos * x0 + sin * z, t, cos * z - sin * x0, labels

    def weigh(self, error: Tensor, t: Tensor) -> Tensor:
        """e^w error - w for a squared error (B,), the error itself where no weight is learnt."""
        if "weight" not in self.nets:
            return error
        w = self.nets["weight"](t)
        return w.exp() * error - w


class LogClock(nn.Module):
    """A network that is shown `scale` times ln(sd tan t) where it is given t."""

    def __init__(self, net: nn.Module, sigma_data: float, scale: float = 1.0):
        super().__init__()
        self.net, self.sigma_data, self.scale = net, sigma_data, scale

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.net(x, self.scale * (self.sigma_data * t.tan()).log(), cond)


def student_of(teacher: Preconditioned, times: LogNormal, ridge: float = 1e-8) -> nn.Module:
    """F of a denoiser as a trainable network on the clock t, without dropout: where a student starts.

    Of a TrigFlow denoiser a copy; of an EDM denoiser a copy with the last layer negated and the
    first layer of the noise embedding fitted to the clock t by least squares, on 4096 quantiles of `times`.
    """
    net, how = copy_of(teacher.net), teacher.precondition
    if isinstance(how, TrigFlowPrecondition):
        return net
    if not isinstance(how, EDMPrecondition) or not hasattr(getattr(net, "embedding", None), "noise"):
        raise BadValue(f"a student can start from TrigFlow's or EDM's networks, not from {type(how).__name__}.")
    layer, features = net.embedding.noise, net.embedding.features
    with torch.no_grad():
        net.out.weight.neg_()
        net.out.bias.neg_()
        sigma = times.quantile((torch.arange(4096, dtype=torch.float64) + 0.5) / 4096)
        t = torch.atan(sigma / how.sigma_data)
        wanted = features(sigma.log() / 4) @ layer.weight.double().T + layer.bias.double()
        known = torch.cat([features(t), torch.ones_like(t)[:, None]], 1)
        gram = known.T @ known / len(t) + ridge * torch.eye(known.shape[1], dtype=torch.float64)
        found = torch.linalg.solve(gram, known.T @ wanted / len(t))
        layer.weight.copy_(found[:-1].T)
        layer.bias.copy_(found[-1])
    return net
