"""A dry run: the recipe as the paper has it, one step, nothing trained and nothing read; and what does not fit is said."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_cli import document, refusal, run

from explorer.errors import BadValue, UnknownName
from explorer.models.base import Model
from explorer.nets.mlp import MLP
from explorer.papers import paper
from explorer.papers.edm import PAPER, EDMTraining, plane
from explorer.process.times import LogNormal
from explorer.reproduction import Bench, Bundled, Recipe, Trained, train_recipe
from explorer.reproduction.own import on_data
from explorer.reproduction.rehearsal import SHAPES, count, rehearse, synthetic


def student(teacher, data="8gaussians", look=None) -> Recipe:
    """A recipe that needs a model; `look` sees it."""

    def method(points, teacher):
        if look is not None:
            look(teacher)
        net = MLP(2, width=16, depth=1)
        return EDMTraining(net, shape=points.shape, sigma_data=points.sigma_data, times=LogNormal())

    return replace(plane("8gaussians"), name="student", data=data, method=method, needs={"teacher": teacher})


def test_one_step_at_full_size_counts_what_is_there():
    seen = rehearse(plane("moons"))
    net = MLP(2, width=128, depth=3)
    assert seen.parameters == seen.networks["net"] == sum(p.numel() for p in net.parameters())
    assert seen.effective_batch == 512 and seen.shape == (2,) and seen.paper_parameters is None
    assert seen.logs["loss/net"] > 0 and seen.logs["grad_norm/net"] > 0
    assert 0 < seen.step_seconds <= seen.seconds


def test_a_rehearsal_trains_no_teacher_and_keeps_its_architecture():
    met = []
    seen = rehearse(student(Trained(plane("8gaussians")), look=met.append))
    assert isinstance(met[0], Model) and met[0].shape == (2,) and not any(p.requires_grad for p in met[0].parameters())
    assert seen.networks["teacher"] == count(met[0]) == rehearse(plane("8gaussians")).parameters
    bench = Bench(rehearse=True, seed=3)
    start = plane("8gaussians")
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    with pytest.MonkeyPatch.context() as patch:  # nothing but the initial weights: training is never reached
        patch.setattr("explorer.reproduction.run.train_recipe", None)
        assert torch.equal(
            bench.model(start).denoise(x, 0.5), Bench(rehearse=True, seed=3).model(start).denoise(x, 0.5)
        )


def test_the_teacher_is_the_bundled_one_where_the_recipe_names_it():
    met = []
    rehearse(student(Bundled("toy-moons"), "moons", met.append))
    assert met[0].name == "toy-moons"


def test_a_teacher_of_another_shape_is_refused_in_training_and_in_a_rehearsal():
    for go in (rehearse, lambda recipe: next(train_recipe(recipe))):
        with pytest.raises(BadValue, match=r"teacher 'digits-uncond' is for samples of shape \(1, 8, 8\)"):
            go(student(Bundled("digits-uncond")))


def test_a_method_that_its_data_do_not_fit_says_so():
    recipe = replace(paper("edm").recipe("digits"), data="moons")
    with pytest.raises(BadValue, match=r"\(2,\)"):
        rehearse(recipe)
    with pytest.raises(BadValue, match="made for it"):
        on_data(paper("edm").recipe("digits"), "moons")
    with pytest.raises(BadValue, match="made for it"):
        on_data(paper("edm").recipe("toy"), "digits")
    assert on_data(plane("8gaussians"), "checkerboard").data == "checkerboard"


@pytest.mark.parametrize("name", [*SHAPES, "digits", "shapes", "moons"])
def test_stand_ins_for_data_have_their_shape_and_classes(name):
    data = synthetic(name, n=4)
    assert data.name == name and len(data) == 4 and data.card == {"synthetic": True}
    if name in SHAPES:
        assert (data.shape, data.n_classes) == SHAPES[name]
    assert (data.labels is None) == (data.n_classes == 0)


def test_a_data_set_of_unknown_shape_is_named():
    with pytest.raises(UnknownName, match="cifar10"):
        synthetic("cifar")


def test_the_command_prints_parameters_beside_the_papers(tmp_path, monkeypatch):
    recipe = replace(plane("8gaussians"), parameters=0.1e6)
    monkeypatch.setattr("explorer.papers.paper", lambda slug: replace(PAPER, recipe=lambda name: recipe))
    text = run("train", "edm", "--data", "toy", "--dry-run").stdout
    assert "0.13 M, the paper says 0.10 M (+3" in text and "512 images a step" in text
    out = document("train", "edm", "--data", "toy", "--dry-run", "--seed", 4)
    assert {"parameters", "paper_parameters", "effective_batch", "seconds"} <= set(out)
    assert out["effective_batch"] == 512 and out["paper_parameters"] == 0.1e6


def test_bad_requests_get_one_sentence():
    lacking = replace(plane("8gaussians"), data="lsun-cat256")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("explorer.papers.paper", lambda slug: replace(PAPER, recipe=lambda name: lacking))
        assert "--dry-run" in refusal("train", "edm", "--data", "toy")
    assert "made for it" in refusal("train", "edm", "--data", "toy", "--set", "data=digits")
    text = refusal("train", "edm", "--data", "imagenet", "--dry-run")
    assert all(name in text for name in paper("edm").recipes)


@pytest.mark.slow
@pytest.mark.parametrize("slug, name", [("edm", n) for n in paper("edm").recipes if paper("edm").recipe(n).parameters])
def test_full_size_recipes_take_a_step(slug, name):
    seen = rehearse(paper(slug).recipe(name))
    assert seen.parameters == pytest.approx(seen.paper_parameters, rel=2e-3)
    assert all(value == value for value in seen.logs.values())
