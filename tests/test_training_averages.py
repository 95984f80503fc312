"""Running averages against their closed forms, and post-hoc averages against tracked ones."""

import math

import pytest
import torch

from explorer.training import EmaPlan, OptimizerPlan, Plan, power_gamma, train
from explorer.training.ema import exponential_beta, power_beta
from tests.regressions import Regression, Repeat, line, weights


def test_exponential_ema_follows_its_closed_form():
    method, plan = Regression(), Plan(6, optimizer=OptimizerPlan(lr=0.1), tick_steps=1, emas=(EmaPlan(half_life=100),))
    expected = None
    for i, tick in enumerate(train(method, Repeat(line()), plan)):
        beta = 0.5 ** (64 / max(min(100, 0.05 * 64 * i), 1e-8))
        expected = weights(method) if i == 0 else beta * expected + (1 - beta) * weights(method)
        assert torch.allclose(weights(tick.emas["ema"]), expected, atol=1e-14)
    assert exponential_beta(0, 64, 100, 0.05) == 0 and exponential_beta(10**6, 50, 100, 0.05) == pytest.approx(0.5**0.5)


def test_power_ema_of_the_step_index_is_the_mean_of_its_profile():
    # theta(tau) = tau under the density ~ tau^gamma on [0, t]: mean (gamma + 1)/(gamma + 2) t, std sigma_rel t.
    gamma, average, square = power_gamma(0.1), 0.0, 0.0
    for step in range(1, 20_001):
        beta = power_beta(step, gamma)
        average, square = beta * average + (1 - beta) * step, beta * square + (1 - beta) * step**2
    assert average / 20_000 == pytest.approx((gamma + 1) / (gamma + 2), rel=1e-3)
    assert math.sqrt(square - average**2) / 20_000 == pytest.approx(0.1, rel=1e-2)
    assert power_gamma(0.1) == pytest.approx(6.94, abs=0.01) and power_gamma(0.05) == pytest.approx(16.97, abs=0.01)
