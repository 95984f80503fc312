"""Small methods and endless data for the tests of the training loop."""

import torch
from torch import nn

from explorer.data import Batch, Dataset, Loader
from explorer.training import Method, Update, train


class Regression(Method):
    """Least squares, optionally with dropout and noise so that every source of randomness is in play."""

    def __init__(self, dim=3, dropout=0.0, noise=0.0, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.nets = nn.ModuleDict({"net": nn.Sequential(nn.Linear(dim, 1, dtype=dtype), nn.Dropout(dropout))})
        self.noise = noise

    def updates(self, batch, progress):
        eps = torch.randn(batch.x0.shape, generator=progress.generator, dtype=batch.x0.dtype)
        y = self.nets["net"](batch.x0 + self.noise * eps)
        yield Update(("net",), (y - batch.noise).square().mean(), {"mean": y.mean()})

    def export(self, nets):
        return nets["net"]


def line(n=64, dim=3, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dim, generator=g, dtype=dtype)
    weight = torch.arange(1.0, dim + 1, dtype=dtype)[:, None]
    return Batch(x, noise=x @ weight + 0.5)


class Repeat:
    def __init__(self, batch):
        self.batch = batch

    def __iter__(self):
        while True:
            yield self.batch


def run(method, data, plan, run_dir=None, **options):
    return list(train(method, data, plan, run_dir, **options))


def weights(method):
    return torch.cat([p.detach().reshape(-1).clone() for p in method.parameters()])


def noisy():
    batch = line(n=40, dtype=torch.float32)
    method = Regression(dropout=0.3, noise=0.1, dtype=torch.float32)

    class Pairs(Loader):
        def batch(self, i):
            rows = super().batch(i)
            return Batch(rows.x0[:, :3], noise=rows.x0[:, 3:])

    return method, Pairs(Dataset("pairs", torch.cat([batch.x0, batch.noise], 1)), 16, seed=5)
