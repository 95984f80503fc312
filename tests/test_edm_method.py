"""EDM: identities of the preconditioning, training against the exact denoiser, recipes, cards, claims of the paper."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from explorer.data import Batch, load_dataset
from explorer.errors import BadValue, UnknownName
from explorer.models.bundled import load
from explorer.nets.mlp import MLP
from explorer.papers import names, paper
from explorer.papers.edm import RECIPES, EDMTraining
from explorer.papers.edm_claims import CLAIMS, loss_over_exact
from explorer.process.precondition import EDMPrecondition
from explorer.process.times import LogNormal
from explorer.reproduction import Bench
from explorer.reproduction.evaluate import proportion, ratio
from explorer.reproduction.rehearsal import count, synthetic
from explorer.reproduction.run import exported, override, publish, publish_snapshot, train_recipe
from explorer.sampling.grids import TimeGrid
from explorer.sampling.samplers import OdeSampler
from explorer.sampling.solvers import Heun
from explorer.training import EmaPlan, OptimizerPlan, Plan, Progress, snapshots, train


def method(sigma_data=0.5, n_classes=0, dropout=0.0, net=None):
    net = net or MLP(2, width=32, depth=1, n_classes=n_classes)
    return EDMTraining(
        net,
        shape=(2,),
        sigma_data=sigma_data,
        times=LogNormal(),
        n_classes=n_classes,
        label_dropout=dropout,
    )


@pytest.mark.parametrize("sigma_data", [0.5, 0.75])
def test_weight_times_c_out_squared_is_one(sigma_data):
    sigma = torch.logspace(-3, 2, 50, dtype=torch.float64)
    _, c_out, _, _ = EDMPrecondition(sigma_data).coefficients(sigma, method().export({"net": nn.Identity()}).path)
    x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    m = method(sigma_data).double()  # zero-initialised: D = c_skip x, so the error is known
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    weighted = m.weighted_error(x, torch.zeros_like(x), sigma)
    plain = (c_skip[:, None] * x).square().mean(1)
    assert torch.allclose(weighted / plain * c_out**2, torch.ones(50, dtype=torch.float64), atol=1e-10)


@pytest.mark.parametrize("name", ["digits", "moons"])
def test_an_untrained_network_has_weighted_loss_one_at_every_noise_level(name):
    data = load_dataset(name)
    x0 = data.x - data.x.mean() if name == "moons" else data.x
    x0 = (x0 / x0.square().mean().sqrt()).repeat(8, *[1] * (x0.ndim - 1))
    net = nn.Module()
    net.forward = lambda x, noise, cond=None: torch.zeros_like(x)
    net.register_parameter("unused", nn.Parameter(torch.zeros(())))
    m = EDMTraining(net, shape=data.shape, sigma_data=1.0, times=LogNormal())
    g = torch.Generator().manual_seed(0)
    for sigma in (0.01, 0.1, 0.5, 1.0, 3.0, 20.0):
        s = torch.full((len(x0),), sigma)
        loss = m.weighted_error(x0 + sigma * torch.randn(x0.shape, generator=g), x0, s)
        assert loss.mean().item() == pytest.approx(1, abs=0.05)


def test_the_null_class_replaces_the_given_share_of_labels():
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, x, noise, cond=None):
            seen.append(cond)
            return x * self.weight

    batch = Batch(torch.zeros(4000, 2), torch.arange(4000) % 7)
    m = method(n_classes=7, dropout=0.2, net=Spy())
    next(m.updates(batch, Progress(0, 0, 0.0, torch.Generator().manual_seed(0))))
    dropped = seen[0] == -1
    assert dropped.double().mean().item() == pytest.approx(0.2, abs=4 * (0.16 / 4000) ** 0.5)
    assert torch.equal(seen[0][~dropped], batch.labels[~dropped])


def test_losses_come_from_the_given_generator_alone():
    m, batch = method(), Batch(torch.randn(8, 2, generator=torch.Generator().manual_seed(1)))
    losses = [m.loss(batch, torch.Generator().manual_seed(s))[0] for s in (0, 0, 1)]
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


def test_a_network_trained_for_seconds_approaches_the_exact_denoiser():
    plan = Plan(250, 256, optimizer=OptimizerPlan(lr=3e-3, decay="cosine"), emas=(EmaPlan(half_life=5000),))
    recipe = replace(paper("edm").recipe("toy"), plan=plan)
    *_, tick = train_recipe(recipe)
    assert loss_over_exact(exported(recipe, tick), 0.3, n=2048) < 1.1
    untrained = recipe.method(load_dataset(recipe.data))
    assert loss_over_exact(untrained.export(untrained.nets), 0.3, n=2048) > 1.2


@pytest.mark.slow
@pytest.mark.parametrize("claim", CLAIMS, ids=[c.check.__name__ for c in CLAIMS])
def test_claims_hold(claim):
    verdict = claim.check(Bench())
    assert verdict.holds, f"{claim.text}: {verdict.measured} against {verdict.threshold:g}; {verdict.text}"


def test_the_gaussian_claim_holds():
    assert CLAIMS[0].check(Bench()).holds


def small(name="toy-moons", **plan):
    recipe = paper("edm").recipe(name)
    sampler = OdeSampler(Heun(), TimeGrid.karras(2, 0.01, 10.0))
    return replace(recipe, plan=replace(recipe.plan, n_steps=3, batch_size=32, **plan), sampler=sampler)


def test_published_model_loads_again_and_its_card_tells_how_it_was_made(tmp_path):
    recipe = small()
    *_, tick = train_recipe(recipe, seed=5)
    file = publish(recipe, tick, tmp_path, seed=5, draws=2)
    card = json.loads(file.with_suffix(".json").read_text())
    assert card["seed"] == 5 and card["recipe"]["batch_size"] == 32 and card["recipe"]["p_std"] == 1.6
    assert card["recipe"]["steps_done"] == 3 and card["metrics"][0]["nfe"] == 3
    assert all({"metric", "value", "std_error", "n"} <= set(row) for row in card["metrics"])
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load(file).denoise(x, 0.5), exported(recipe, tick).denoise(x, 0.5).detach())


def test_half_precision_is_measured_as_it_is_stored(tmp_path):
    *_, tick = train_recipe(small())
    whole, half = (publish(small(), tick, tmp_path / str(h), draws=2, half=h) for h in (False, True))
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    card, x = json.loads(half.with_suffix(".json").read_text()), torch.ones(2, 2)
    assert card["weights"] == "float16"
    # 11 significant bits of each weight; the outputs of so small a network move by as much
    torch.testing.assert_close(load(half).denoise(x, 0.5), load(whole).denoise(x, 0.5), rtol=1e-2, atol=1e-2)
    assert torch.equal(load(half).denoise(x, 0.5), exported(small(), tick).denoise(x, 0.5).detach())


def test_a_model_stopped_early_is_what_the_run_was_then(tmp_path):
    *_, tick = train_recipe(small(snapshot_steps=1), tmp_path / "run")
    first, _, last = snapshots(tmp_path / "run")
    at = small(snapshot_steps=1)
    early = publish_snapshot(at, first, tmp_path, name="early", draws=2)
    card = json.loads(early.with_suffix(".json").read_text())
    assert card["name"] == "early" and card["recipe"]["steps_done"] == 1 and card["recipe"]["images_done"] == 32
    assert "step 1" in card["notes"] and card["metrics"][0]["nfe"] == 3
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    end, whole = load(publish_snapshot(at, last, tmp_path, name="end", draws=2)), exported(at, tick)
    assert torch.equal(end.denoise(x, 0.5), whole.denoise(x, 0.5).detach())
    assert not torch.equal(load(early).denoise(x, 0.5), end.denoise(x, 0.5))


def test_a_recipe_is_a_function_of_its_seed(tmp_path):
    ends = [list(train_recipe(small(), seed=s))[-1].method for s in (1, 1, 2)]
    a, b, c = (torch.cat([p.reshape(-1) for p in m.parameters()]) for m in ends)
    assert torch.equal(a, b) and not torch.equal(a, c)


NFE = {"ffhq64": 79, "ffhq64-ve": 79, "afhqv2-64": 79, "imagenet64": 511}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_built(name):
    recipe = paper("edm").recipe(name)
    data = synthetic(recipe.data)
    with torch.device("meta"):
        made = recipe.method(data)
    assert made.shape == data.shape
    assert recipe.ema in {ema.name for ema in recipe.plan.emas}
    assert recipe.sampler.nfe(made.export(made.nets)) == NFE.get(name, 35)
    if recipe.parameters is not None:  # Table 7 and the official code give three or four digits
        assert count(made.nets["net"]) == pytest.approx(recipe.parameters, rel=2e-3)


def test_overrides_reach_nested_fields_and_name_what_exists():
    recipe = paper("edm").recipe("digits")
    changed = override(recipe, {"plan.batch_size": "64", "plan.optimizer.lr": "5e-4", "plan.minutes": 2.0})
    assert (changed.plan.batch_size, changed.plan.optimizer.lr, changed.plan.minutes) == (64, 5e-4, 2.0)
    assert recipe.plan.batch_size == 128
    with pytest.raises(UnknownName, match="batch_size"):
        override(recipe, {"plan.batchsize": 64})
    with pytest.raises(BadValue, match="does not read as int"):
        override(recipe, {"plan.batch_size": "many"})
    with pytest.raises(BadValue, match="names nothing"):
        override(recipe, {"name.x": 1})


def test_unknown_papers_and_recipes_are_named():
    assert "edm" in names()
    with pytest.raises(UnknownName, match="edm"):
        paper("emd")
    with pytest.raises(UnknownName, match="digits"):
        paper("edm").recipe("digit")


def test_errors_of_card_numbers():
    assert proportion(torch.ones(100, dtype=torch.bool), "p").std_error > 0
    half = proportion(torch.arange(1000) % 2 == 0, "p")
    assert half.value == 0.5 and half.std_error == pytest.approx(0.5 / 1000**0.5, rel=0.01)
    r = ratio(replace(half, value=2.0, std_error=0.2), replace(half, value=1.0, std_error=0.1), "r")
    assert r.value == 2 and r.std_error == pytest.approx(2 * (0.1**2 + 0.1**2) ** 0.5)


def test_one_method_can_keep_several_averages():
    emas = (EmaPlan("short", half_life=100), EmaPlan("long", sigma_rel=0.2))
    *_, tick = train(method(), iter([Batch(torch.randn(8, 2)) for _ in range(4)]), Plan(4, 8, emas=emas))
    assert set(tick.emas) == {"short", "long"} and all("net" in nets for nets in tick.emas.values())
