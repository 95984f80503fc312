"""Running averages against their closed forms, and post-hoc averages against tracked ones."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import nn

from explorer.data import Batch
from explorer.errors import BadFile, BadValue, UnknownName
from explorer.training import EmaPlan, Method, OptimizerPlan, Plan, Update, posthoc_ema, power_gamma, snapshots, train
from explorer.training.ema import exponential_beta, power_beta
from explorer.training.posthoc import posthoc_coefficients, profile_products
from tests.regressions import Regression, Repeat, line, run, weights


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


class Wander(Method):
    """Weights pulled towards a new random place at every step, far from zero, so that averages of each width differ.

    The second network moves at every third step only.
    """

    def __init__(self, dim=40):
        super().__init__()
        self.nets = nn.ModuleDict({name: nn.BatchNorm1d(dim) for name in ("net", "slow")})
        for net in self.nets.values():
            nn.init.constant_(net.weight, 30.0)
            net.to(torch.float64)

    def updates(self, batch, progress):
        for name, every in (("net", 1), ("slow", 3)):
            if progress.step % every == 0:
                place = torch.randn(40, generator=progress.generator, dtype=torch.float64)
                yield Update((name,), (self.nets[name].weight * place).sum() + self.nets[name].bias.sum())

    def export(self, nets):
        return nets["net"]


STEPS = 384
SGD = OptimizerPlan(lr=0.1, betas=(0.0, 0.0), kind="sgd")
WIDTHS = (EmaPlan("narrow", sigma_rel=0.05), EmaPlan("wide", sigma_rel=0.10), EmaPlan("direct", sigma_rel=0.15))


@pytest.fixture(scope="module")
def wandered(tmp_path_factory):
    """Runs with ever more snapshots; the path is the same, since it depends on seed and step only."""
    out = {}
    for n in (4, 8, 16):
        folder, method = tmp_path_factory.mktemp(f"wander{n}"), Wander()
        plan = Plan(STEPS, 1, optimizer=SGD, emas=WIDTHS, snapshot_steps=STEPS // n, snapshot_raw=True)
        out[n] = folder, run(method, Repeat(Batch(torch.zeros(1, 1))), plan, folder)[-1]
    return out


@pytest.mark.parametrize("net", ["net", "slow"])
def test_a_reconstructed_average_nears_the_tracked_one_as_snapshots_are_added(wandered, net):
    misses = []
    for folder, tick in wandered.values():
        tracked = tick.emas["direct"][net].weight
        found = posthoc_ema(folder, 0.15, tick.method.nets, emas=("narrow", "wide"))[net]
        raw = tick.method.nets[net].weight.detach()
        misses.append(float((found.weight - tracked).norm() / (raw - tracked).norm()))
    assert misses[1] < misses[0] / 3 and misses[2] < misses[1] / 3 and misses[2] < 0.01


def test_a_stored_width_is_reconstructed_as_it_was_stored(wandered):
    folder, tick = wandered[8]
    for stop in (STEPS, STEPS // 2):
        stored = next(s for s in snapshots(folder) if s.step == stop).nets(tick.method.nets, "wide")
        found = posthoc_ema(folder, 0.10, tick.method.nets, emas=("narrow", "wide"), at=stop)
        for name in ("net", "slow"):
            # Exact but for rounding, which the conditioning of neighbouring snapshots enlarges from 1e-16.
            assert torch.allclose(found[name].weight, stored[name].weight, rtol=1e-9)


def test_snapshots_hold_averages_and_raw_weights_and_buffers(wandered):
    folder, tick = wandered[8]
    kept = snapshots(folder)
    assert [s.step for s in kept] == [STEPS * i // 8 for i in range(1, 9)] and kept[0].emas == (
        "narrow",
        "wide",
        "direct",
    )
    assert torch.equal(kept[-1].nets(tick.method.nets, None)["net"].weight, tick.method.nets["net"].weight)
    assert torch.equal(kept[-1].nets(tick.method.nets, "wide")["slow"].weight, tick.emas["wide"]["slow"].weight)
    model = tick.method.export(posthoc_ema(folder, 0.12, tick.method.nets))
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert model.num_batches_tracked.dtype == torch.int64 and torch.equal(
        model.running_var, tick.method.nets["net"].running_var
    )
    assert kept[-1].about["averaged"] == {"net": STEPS, "slow": STEPS - 2}


def test_what_cannot_be_reconstructed_is_said(wandered, tmp_path):
    folder, tick = wandered[4]
    nets = tick.method.nets
    with pytest.raises(BadValue, match="snapshot_steps"):
        posthoc_ema(tmp_path, 0.1, nets)
    with pytest.raises(BadValue, match="from step 96 to 384"):
        posthoc_ema(folder, 0.1, nets, at=90)
    with pytest.raises(UnknownName, match="narrow"):
        posthoc_ema(folder, 0.1, nets, emas=("narow",))
    with pytest.raises(BadValue, match="sigma_rel"):
        posthoc_ema(folder, 0.3, nets)
    with pytest.raises(BadFile, match="another network"):
        posthoc_ema(folder, 0.1, nn.ModuleDict({"net": nn.Linear(2, 2)}))
    run(Regression(), Repeat(line()), Plan(2, snapshot_steps=1), tmp_path)
    with pytest.raises(BadValue, match="no power-function average, only ema"):
        posthoc_ema(tmp_path, 0.1, Regression().nets)


def test_coefficients_are_those_of_least_squares_on_a_fine_grid():
    t, sigma = np.array([0.5, 0.5, 1.0, 1.0]), np.array([0.05, 0.10, 0.05, 0.10])
    gamma = np.array([power_gamma(s) for s in sigma])
    wanted, at = power_gamma(0.08), 0.9
    tau = (np.arange(200_000) + 0.5) / 200_000  # midpoints; errors of 1e-5 at the jumps where profiles end
    profile = np.where(tau[:, None] <= t, (gamma + 1) * tau[:, None] ** gamma / t ** (gamma + 1), 0)
    target = np.where(tau <= at, (wanted + 1) * tau**wanted / at ** (wanted + 1), 0)
    expected, residual, *_ = np.linalg.lstsq(profile, target, rcond=None)
    x, left = posthoc_coefficients(t, gamma, at, wanted, to_one=False)
    assert np.allclose(x, expected, atol=2e-4)
    assert left == pytest.approx(math.sqrt(residual[0] / (target @ target)), rel=1e-3)
    # With the sum fixed: eliminate the last coefficient.
    reduced, rest = profile[:, :3] - profile[:, 3:], target - profile[:, 3]
    free = np.linalg.lstsq(reduced, rest, rcond=None)[0]
    x, _ = posthoc_coefficients(t, gamma, at, wanted)
    assert np.allclose(x, [*free, 1 - free.sum()], atol=2e-4) and x.sum() == pytest.approx(1, abs=1e-12)


def test_products_of_profiles_are_their_integrals():
    for t_a, t_b, a, b in ((1.0, 1.0, 6.9, 17.0), (0.3, 2.0, 6.9, 17.0), (2.0, 0.3, 6.9, 17.0), (5.0, 4.0, 0.5, 0.5)):
        end = min(t_a, t_b)
        factor = (a + 1) / t_a ** (a + 1) * (b + 1) / t_b ** (b + 1)
        integral = quad(lambda s, power=a + b: s**power, 0, end)[0] * factor
        assert profile_products(t_a, a, t_b, b) == pytest.approx(integral, rel=1e-7)


def test_a_network_that_moves_at_every_third_step_is_averaged_over_the_steps_between(wandered):
    """Its average is that of a path held from one update back to the one before, with the weights of the profile."""
    method, seen = Wander(), []
    plan = Plan(60, 1, optimizer=SGD, emas=(EmaPlan("wide", sigma_rel=0.10), EmaPlan(half_life=12)), tick_steps=1)
    for tick in train(method, Repeat(Batch(torch.zeros(1, 1))), plan):  # noqa: B007
        seen.append(method.nets["slow"].weight.detach().clone())
    moved = list(range(0, 60, 3))
    ends = np.array([i + 1 for i in moved]) / (moved[-1] + 1)
    share = np.diff(ends ** (power_gamma(0.10) + 1), prepend=0)
    expected = sum(float(w) * seen[i] for w, i in zip(share, moved, strict=True))
    assert torch.allclose(tick.emas["wide"]["slow"].weight, expected, rtol=1e-12)
    average = seen[0]
    for i in moved[1:]:
        beta = 0.5 ** (3 / min(12, 0.05 * i))
        average = beta * average + (1 - beta) * seen[i]
    assert torch.allclose(tick.emas["ema"]["slow"].weight, average, rtol=1e-12)


def test_a_rate_per_step_is_a_half_life():
    plan = EmaPlan.per_step(0.9, 64)
    assert exponential_beta(10**6, 64, plan.half_life, plan.ramp_up) == pytest.approx(0.9, rel=1e-12)
    with pytest.raises(BadValue, match="between 0 and 1"):
        EmaPlan.per_step(1.0, 64)
