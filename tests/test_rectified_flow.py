"""Rectified flow: the loss and its minimum in closed form, pairs that stay pairs, and the loop over rounds."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

from explorer.data import Batch, load_dataset
from explorer.data.pairs import PairLoader, PairStore
from explorer.errors import UnknownName
from explorer.models.flow_maps import ConsistencyModel
from explorer.nets.edm_unet import EDMUNet
from explorer.nets.mlp import MLP
from explorer.papers import paper
from explorer.papers import rectified_flow as rf
from explorer.process.couplings import ByClass, ExactOT, pairs_of
from explorer.reproduction import Bench, Trained
from explorer.reproduction.pairs import PairsOf
from explorer.reproduction.rounds import drawn, even_steps, measured_rounds, of_labels, straight_run
from explorer.sampling import Euler, Heun, Seeds, sample
from explorer.training import EmaPlan, OptimizerPlan, Plan, Progress, train
from explorer.trajectory.dataset import data_of

M, S, D = torch.tensor([1.0, -0.5], dtype=torch.float64), 0.6, 2
V = D * S * math.pi / 2  # int E|eps - x0 - v|^2 dt of independent Gaussian pairs


class Exact(nn.Module):
    """v(x, t) of N(M, S^2 I) with independent noise, plus an offset."""

    def __init__(self, offset: float = 0.0):
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(offset, dtype=torch.float64))

    def forward(self, x, t, cond=None):
        t = t.double()[:, None]
        q = (1 - t) ** 2 * S**2 + t**2
        return -M + (t - (1 - t) * S**2) / q * (x - (1 - t) * M) + self.offset


class Straight(nn.Module):
    """v = z - M - S z of the pairs (z, M + S z), whose lines never cross."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x, t, cond=None):
        t = t.double()[:, None]
        return (1 - S) * (x - (1 - t) * M) / (t + (1 - t) * S) - M


def gaussian(n: int, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    return Batch(M + S * torch.randn(n, D, generator=g, dtype=torch.float64))


def straight_pairs(n: int, seed: int = 0) -> Batch:
    z = torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Batch(M + S * z, None, z)


def flow(net: nn.Module, **kw) -> rf.FlowMatching:
    return rf.FlowMatching(net, shape=(D,), **kw)


def test_the_least_loss_of_a_gaussian_is_its_degree_of_intersection():
    loss, t = flow(Exact()).loss(gaussian(200_000), torch.Generator().manual_seed(1))
    error = float(loss.std()) / math.sqrt(len(loss))
    assert float(loss.mean()) == pytest.approx(V / D, abs=4 * error)  # four standard errors, about 1 %
    assert float(t.min()) >= rf.FLOW_RANGE[0] and float(t.max()) <= rf.FLOW_RANGE[1]
    # any other field costs its mean square distance more: an offset of 0.5 in each coordinate, 0.25
    worse, _ = flow(Exact(0.5)).loss(gaussian(200_000), torch.Generator().manual_seed(1))
    assert float((worse - loss).mean()) == pytest.approx(
        0.25, abs=4 * float((worse - loss).std()) / math.sqrt(len(loss))
    )


def test_time_runs_from_data_to_noise():
    """v at the noise end points from the data to the noise: against the papers' time it would have the other sign."""
    model = flow(Exact()).export({"net": Exact()})
    z = torch.randn(500, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = model.velocity(z, 1.0)
    assert torch.allclose(v, z - M, atol=1e-12)  # E[eps - x0 | eps = z]
    assert torch.allclose(model.velocity(M.expand(3, D), 0.0), -M.expand(3, D))  # at data: E[eps] - x0


def test_stored_pairs_stay_pairs():
    """The field of straight pairs has no loss on them; a method that drew fresh noise would pay the intersection."""
    method, batch = flow(Straight()), straight_pairs(4096)
    g = torch.Generator().manual_seed(2)
    assert float(method.loss(batch, g)[0].max()) < 1e-20
    apart = float(method.loss(Batch(batch.x0), g)[0].mean())
    assert apart > V / D  # V is the least that fresh noise allows
    loader = PairLoader(PairStore.of(pairs_of(batch.noise, batch.x0)), 512, seed=1)
    assert float(method.loss(loader.batch(9), g)[0].max()) < 1e-9  # the store holds float32


def test_one_euler_step_of_straight_pairs_is_the_map_itself():
    model, seeds = flow(Straight()).export({"net": Straight()}), Seeds(range(50))
    x = sample(model, even_steps(1), seeds)
    # the run starts at t = 1 - 1e-5, where the state lacks (1 - t) x0: an error of 1e-5 |x0| (1 - S), at most
    torch.testing.assert_close(x, M + S * seeds.fresh().normal((D,)), rtol=0, atol=1e-4)


def test_couplings_join_the_batch_and_labels_stay_with_their_data():
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 4
    batch = Batch(torch.randn(64, D, generator=g) + 3 * labels[:, None], labels)

    class Seen(nn.Module):
        def forward(self, x, t, cond=None):
            seen.append((x, t, cond))
            return torch.zeros_like(x)

    costs = {}
    for coupling in (None, ByClass(ExactOT()), ExactOT()):
        seen = []
        method = flow(Seen(), coupling=coupling, n_classes=4)
        loss, _ = method.loss(batch, torch.Generator().manual_seed(1))  # zero field: the mean square of eps - x0
        costs[str(coupling)] = float(loss.mean())
        assert torch.equal(seen[0][2], labels)
    independent, by_class, ot = costs.values()
    assert ot < by_class < independent


def test_label_dropout_takes_the_share_it_says():
    class Seen(nn.Module):
        def forward(self, x, t, cond=None):
            self.cond = cond
            return torch.zeros_like(x)

    net, n = Seen(), 4000
    method = flow(net, n_classes=3, label_dropout=0.25)
    method.loss(Batch(torch.zeros(n, D), torch.ones(n, dtype=torch.int64)), torch.Generator().manual_seed(0))
    share = float((net.cond == -1).double().mean())
    assert share == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / n)) and int(net.cond.max()) == 1


def test_levels_are_told_in_sigma():
    [update] = flow(Exact()).updates(gaussian(64), Progress(0, 0, 0.0, torch.Generator().manual_seed(0)))
    sigma, loss = update.levels
    assert update.on == ("net",) and torch.equal(update.loss, loss.mean())
    assert float(sigma.min()) > 0 and bool(sigma.isfinite().all())


def test_distillation_regresses_the_noise_end_only():
    class Map(nn.Module):
        def forward(self, x, t, cond=None):
            times.append(t)
            return x - (M + S * x / rf.FLOW_RANGE[1])

    times, batch = [], straight_pairs(32)
    method = rf.Distillation(Map(), shape=(D,))
    [update] = method.updates(batch, Progress(0, 0, 0.0))
    assert float(update.loss) < 1e-9 and bool((times[0] == rf.FLOW_RANGE[1]).all())
    model = method.export({"net": Map()})
    assert isinstance(model, ConsistencyModel) and model.to_data
    doubled = rf.Distillation(Map(), shape=(D,), distance=lambda x, y: 2 + (x - y).square().sum(1))
    assert float(next(iter(doubled.updates(batch, Progress(0, 0, 0.0)))).loss) == pytest.approx(2.0, abs=1e-8)


def test_a_short_training_lowers_the_loss_to_near_its_floor():
    """120 steps come within 20 % of V / D, from 1 + (|M|^2 + S^2 D) / D = 2, the loss of v = 0; sampling noise is 3 %."""
    method = flow(MLP(2, width=32, depth=2), time_scale=4.0)
    plan = Plan(120, 256, optimizer=OptimizerPlan(lr=5e-3), emas=(), tick_steps=40, checkpoint_steps=0)
    batches = (Batch(gaussian(256, seed=i).x0.float()) for i in range(121))
    losses = [tick.logs["loss/net"] for tick in train(method, batches, plan)]
    assert losses[-1] == pytest.approx(V / D, rel=0.2) and losses[0] > losses[-1]


# the loop -----------------------------------------------------------------------------------------------------------


def tiny(k: int):
    full = rf.plane("8gaussians", k)
    needs = {}
    if k > 1:
        needs = {"flow": Trained(tiny(k - 1)), "pairs": PairsOf(Trained(tiny(k - 1)), even_steps(8, Heun()), 128)}
    plan = Plan(4, 32, optimizer=OptimizerPlan(lr=0.02), emas=(EmaPlan(half_life=10),), tick_steps=2)
    return dataclasses.replace(full, plan=plan, needs=needs)


def test_the_loop_over_rounds_resumes_and_says_where_the_cost_goes(tmp_path, monkeypatch):
    settings = {"n": 48, "n_steps": 12, "n_w2": 24}
    ds = measured_rounds(Bench(tmp_path), [tiny(1), tiny(2)], **settings)
    assert ds.sizes == {"round": 2} and ds.attrs["n"] == 48
    parts = ds.chord + ds.straightness + ds.conflict + ds.residual
    assert parts.values == pytest.approx(ds.cost.values, rel=1e-9)  # the residual is what is left, by definition
    # what the chord of round 1 costs is the cost of round 2's coupling, on the same noise
    assert float(ds.cost[1]) == pytest.approx(float(ds.chord[0]), rel=1e-3) and float(ds.chord[0]) > 1e-3
    assert float(ds.w2_floor[0]) > 0 and 0 <= float(ds.crossings[0]) <= 1

    def never(*args, **kw):
        raise AssertionError("trained again")

    monkeypatch.setattr("explorer.reproduction.run.train_recipe", never)
    again = measured_rounds(Bench(tmp_path), [tiny(1), tiny(2)], **settings)
    assert again.equals(ds)
    with pytest.raises(AssertionError, match="trained again"):
        measured_rounds(Bench(tmp_path, seed=1), [tiny(1)], **settings)


def test_measured_runs_ask_each_sample_with_its_label():
    class ByLabel(nn.Module):
        def forward(self, x, t, cond=None):
            return torch.zeros_like(x) - cond[:, None]

    model = flow(ByLabel(), n_classes=3).export({"net": ByLabel()})
    labels, noise = torch.tensor([0, 1, 2]), torch.zeros(3, D, dtype=torch.float64)
    ends = data_of(straight_run(model, noise, 4, labels))
    assert torch.allclose(ends, rf.FLOW_RANGE[1] * labels[:, None].expand(3, D).double())
    assert of_labels(model, None) is model


def test_points_of_given_classes_come_from_those_classes():
    data, labels = load_dataset("digits"), torch.tensor([7, 7, 0, 3])
    x = drawn(data, 4, torch.Generator().manual_seed(0), labels)
    found = [int(data.labels[(data.x == v.float()).flatten(1).all(1)][0]) for v in x]
    assert found == labels.tolist()


# recipes ------------------------------------------------------------------------------------------------------------


def test_every_recipe_is_described_in_plain_json_and_unknown_ones_are_named():
    about = paper("rectified_flow")
    for name in about.recipes:
        json.dumps(about.recipe(name).describe())
    with pytest.raises(UnknownName, match="toy-8gaussians-2rf"):
        about.recipe("toy-9gaussians")
    assert len({claim.text for claim in about.claims}) == len(about.claims) > 10


@pytest.mark.parametrize("name", list(rf.SIZES))
def test_networks_have_the_size_of_the_papers(name):
    _, config, *_ = rf.SIZES[name]
    with torch.device("meta"):
        net = EDMUNet(**config)
    count = sum(p.numel() for p in net.parameters())
    assert count == pytest.approx(rf.recipe(name).parameters, rel=0.005)  # as printed, three digits


def test_later_rounds_begin_with_the_weights_before_and_the_switch_says_no():
    data = load_dataset("8gaussians")
    before = rf.plane("8gaussians").method(data).nets["net"]
    for p in before.parameters():
        nn.init.normal_(p)
    model = rf.FlowMatching(before, shape=(2,)).export({"net": before})
    for switch in (True, False):
        net = rf.plane("8gaussians", 2, warm_start=switch).method(data, flow=model).nets["net"]
        same = all(torch.equal(a, b) for a, b in zip(net.parameters(), before.parameters(), strict=True))
        assert same == switch
    assert rf.plane("8gaussians", coupling="ot").method(data).coupling == ExactOT()
    assert isinstance(even_steps(3).solver, Euler)
