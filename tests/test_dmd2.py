"""DMD2's recipes: built at full size, trained for a moment, published and sampled; its claims; its figures."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from explorer.data import Dataset
from explorer.errors import BadValue, UnknownName
from explorer.models.bundled import load
from explorer.models.flow_maps import ConsistencyModel
from explorer.papers import paper
from explorer.papers.dmd2 import FEW, RECIPES
from explorer.papers.dmd2_claims import CLAIMS
from explorer.reproduction import Bench
from explorer.reproduction.run import publish, train_recipe
from explorer.sampling.samplers import sample
from explorer.sampling.seeds import Seeds
from explorer.viz import matching


def tiny(name, **plan):
    recipe = paper("dmd2").recipe(name)
    return replace(recipe, plan=replace(recipe.plan, n_steps=6, batch_size=16, **plan))


@pytest.mark.parametrize("name, levels", [("toy", (80.0,)), ("toy-8gaussians-4step", FEW)])
def test_a_published_student_is_sampled_by_jumps_one_call_for_each_level(name, levels, tmp_path):
    recipe = tiny(name)
    *_, tick = train_recipe(recipe)
    file = publish(recipe, tick, tmp_path, draws=2)
    card = json.loads(file.with_suffix(".json").read_text())
    assert card["kind"] == "consistency" and card["recipe"]["ratio"] == 5
    assert card["metrics"][0]["nfe"] == len(levels)
    model = load(file)
    x = sample(model, recipe.sampler, Seeds(range(8)))
    assert model.n_calls == len(levels) and torch.isfinite(x).all()
    assert isinstance(model, ConsistencyModel) and tuple(x.shape) == (8, 2)


def test_a_toy_starts_from_the_bundled_network_and_learns_from_the_exact_teacher():
    recipe = tiny("toy")
    assert recipe.needs["teacher"].name == "oracle-8gaussians" and recipe.needs["start"].name == "toy-8gaussians"
    assert paper("dmd2").recipe("toy-moons").needs["teacher"].name == "toy-moons"


def test_digits_train_all_three_networks_from_the_teacher():
    recipe = tiny("digits", tick_steps=1)
    teacher = load("digits")
    ticks = list(train_recipe(recipe))
    assert {"loss/student", "loss/fake_score+disc", "realism", "discrimination"} <= set(ticks[0].logs)
    assert "loss/student" not in ticks[1].logs  # its turn comes every fifth step
    start = torch.cat([p.flatten() for p in teacher.net.parameters()])
    for name in ("student", "fake_score"):
        now = torch.cat([p.detach().flatten() for p in ticks[-1].method.nets[name].parameters()])
        assert 0 < float((now - start).abs().max()) < 0.05
    assert ticks[-1].method.n_classes == 10


@pytest.mark.parametrize("name, parameters", [("cifar10", 55.7e6), ("imagenet64", 295.9e6)])
def test_recipes_at_full_size_have_the_published_networks(name, parameters):
    recipe = paper("dmd2").recipe(name)
    with torch.device("meta"):
        teacher = recipe.needs["teacher"].stand_in(Bench(device="meta", rehearse=True))
        data = Dataset(
            name, torch.zeros(1, *teacher.shape, device="cpu"), torch.zeros(1, dtype=torch.int64, device="cpu"), 1
        )
        method = recipe.method(data, teacher=teacher)
    for net in ("student", "fake_score"):
        count = sum(p.numel() for p in method.nets[net].parameters())
        assert count == pytest.approx(parameters, rel=2e-3) == pytest.approx(recipe.parameters, rel=2e-3)
    assert recipe.plan.batch_size == 280 and recipe.plan.optimizer.weight_decay == 0.01
    assert (method.ratio, method.gan_weight, method.disc_weight) == (5, 3e-3, 1e-2)
    if name == "imagenet64":
        assert method.nets["disc"].feature_shape == (768, 8, 8)


def test_unknown_recipes_are_named():
    with pytest.raises(UnknownName, match="digits"):
        paper("dmd2").recipe("digit")
    assert set(paper("dmd2").recipes) == set(RECIPES)


@pytest.mark.parametrize("name", ["isolated"])
def test_a_quick_claim_holds(name):
    [claim] = [c for c in CLAIMS if c.check.__name__ == name]
    verdict = claim.check(Bench(seed=0))
    assert verdict.holds and verdict.measured.n > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("claim", [c for c in CLAIMS if c.scale == "toy"], ids=lambda c: c.check.__name__)
def test_claims_hold(claim):
    verdict = claim.check(Bench(seed=0))
    assert verdict.holds, f"{claim.text}: {verdict.measured} against {verdict.threshold:g}; {verdict.text}"


@pytest.mark.parametrize("backend", ["plotly", "matplotlib"])
def test_figures_draw_every_field_set_and_run(backend):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 40, 2))
    drawn = matching.arrows(x, {"a": y, "b": 0.1 * y}, data=y, backend=backend)
    assert drawn is not None and matching.clouds({"a": x, "b": y}, data=y, backend=backend) is not None
    steps = np.arange(5)
    curves = {"R = 1": [(steps, [1, 2, np.inf, np.nan, 1])], "R = 5": [(steps, np.ones(5))]}
    assert matching.repeated(curves, target=0.6, axis="spread", backend=backend) is not None
    if backend == "plotly":
        segments = [t for t in drawn.data if t.mode == "lines"]
        lengths = []
        for trace in segments:
            ends = np.stack([np.asarray(trace.x, float), np.asarray(trace.y, float)], 1).reshape(-1)
            points = ends[~np.isnan(ends)].reshape(-1, 2, 2)
            lengths.append(np.linalg.norm(points[:, 1] - points[:, 0], axis=1).max())
        assert lengths == pytest.approx([0.35, 0.035])  # one scale for all fields
    with pytest.raises(BadValue, match="vectors"):
        matching.arrows(x, {"a": y[:3]}, backend=backend)
    with pytest.raises(BadValue, match="plane"):
        matching.clouds({"a": x[:, :1]}, backend=backend)
