"""Loss by noise level: the loop's means against a histogram of everything it was given."""

import numpy as np
import pytest
import torch
from torch import nn

from explorer.data import Batch
from explorer.errors import BadValue
from explorer.training import LEVEL_EDGES, LevelLoss, Method, Plan, Update, level_history, read_log, train
from explorer.training.levels import HELD, LEVEL_CENTRES, LevelSums


class Levelled(Method):
    """A loss that is sigma itself at every noise level, times a weight that has learned nothing yet."""

    def __init__(self):
        super().__init__()
        self.nets = nn.ModuleDict({"net": nn.Linear(1, 1, bias=False)})
        nn.init.zeros_(self.nets["net"].weight)
        self.given = []

    def updates(self, batch, progress):
        sigma = 10 ** (8 * torch.rand(len(batch), generator=progress.generator) - 4)  # beyond the grid at both ends
        loss = sigma + 0 * self.nets["net"](batch.x0)[:, 0]
        self.given.append((progress.step, sigma, loss.detach()))
        yield Update(("net",), loss.mean(), levels=(sigma, loss))

    def export(self, nets):
        return nets["net"]


def endless(n=16):
    while True:
        yield Batch(torch.ones(n, 1))


def test_ticks_and_log_hold_the_mean_of_every_bin(tmp_path):
    method, steps = Levelled(), HELD + 10  # more than are held back at once
    ticks = list(train(method, endless(), Plan(2 * steps, 16, accumulate=2, tick_steps=steps), tmp_path))
    for tick in ticks:
        sigma, loss = (
            torch.cat([row[i] for row in method.given if tick.step - steps <= row[0] < tick.step]).double().numpy()
            for i in (1, 2)
        )
        edges = np.concatenate([[0], LEVEL_EDGES[1:-1], [np.inf]])
        n, _ = np.histogram(sigma, edges)
        total, _ = np.histogram(sigma, edges, weights=loss)
        square, _ = np.histogram(sigma, edges, weights=loss**2)
        levels = tick.levels["net"]
        assert np.array_equal(levels.n, n) and n.sum() == 16 * steps
        assert np.allclose(levels.mean, total / n, rtol=1e-12)
        # Sample variance by hand; rounding of a difference of squares in float64.
        assert np.allclose(levels.std_error, np.sqrt((square / n - (total / n) ** 2) / (n - 1)), rtol=1e-6)
    at, means = level_history(read_log(tmp_path), "net")
    assert at.tolist() == [steps, 2 * steps]
    assert np.allclose(means, [tick.levels["net"].mean for tick in ticks], rtol=1e-5)  # written with six digits
    inner = means[:, 1:-1] / LEVEL_CENTRES[1:-1]
    assert inner.min() > 10**-0.1 and inner.max() < 10**0.1  # a bin is a fifth of a decade wide


def test_empty_bins_and_odd_levels():
    sums = LevelSums()
    sums.add("a", torch.tensor([0.0, 1.01, 1.02, torch.inf, torch.nan, 1.0]), torch.tensor([1, 2, 4, 5, 6, torch.nan]))
    (levels,) = sums.take().values()
    assert levels.n.sum() == 4 and levels.n[0] == levels.n[-1] == 1 and levels.mean[15] == 3.0
    assert levels.std_error[15] == pytest.approx(1.0) and np.isnan(levels.std_error[0]) and np.isnan(levels.mean[1])
    again = LevelLoss.from_dict(levels.to_dict())
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(levels, again, strict=True))
    assert sums.take() == {}


def test_a_log_without_levels_has_an_empty_history():
    at, means = level_history([{"step": 3, "loss/net": 1.0}], "net")
    assert at.shape == (0,) and means.shape == (0, 30)


def test_levels_without_one_loss_each_are_refused():
    with pytest.raises(BadValue, match=r"'net'.*\(4,\).*\(4, 2\)"):
        LevelSums().add("net", torch.ones(4), torch.ones(4, 2))
