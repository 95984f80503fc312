"""Training on a user's own points and pictures: the recipe that fits, what it needs, the model's card."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_cli import document, refusal, run

from explorer.data import Batch, Dataset, load_dataset
from explorer.errors import BadFile, BadValue, UnknownName
from explorer.models import bundled
from explorer.models.base import Preconditioned
from explorer.nets import UNet
from explorer.papers import paper
from explorer.process import EDM, EDMPrecondition
from explorer.reproduction.evaluate import evaluate
from explorer.reproduction.own import by_models, chosen, fitting, on_data, reads, scale_words
from explorer.reproduction.recipe import Given
from explorer.reproduction.run import method_of, override, publish, train_recipe
from explorer.sampling import Heun, OdeSampler, TimeGrid

FEW = ("--set", "plan.n_steps=4", "--set", "plan.batch_size=16")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with points, grey and coloured pictures, and a model of the points."""
    folder, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 400)
    points = np.c_[np.cos(angle), np.sin(angle)] + 0.05 * rng.normal(size=(400, 2))
    np.savetxt(folder / "My ring.csv", points, delimiter=",")
    np.savez(folder / "grey.npz", images=rng.integers(0, 256, (40, 8, 8, 1), np.uint8))
    colours = rng.integers(0, 256, (12, 32, 32, 3), np.uint8)
    np.savez(folder / "colour.npz", images=colours, labels=np.arange(12) % 3)
    trained = document("train", "edm", "--data", folder / "My ring.csv", *FEW, "--out", folder / "run")
    return folder, trained


def test_points_are_learnt_and_the_card_says_to_what_it_was_compared(own):
    folder, trained = own
    card = trained["card"]
    assert trained["file"].endswith("toy-my-ring.safetensors") and card["data"] == str(folder / "My ring.csv")
    w2, floor, *_ = card["metrics"]
    assert w2["metric"] == "W2[xy]" and w2["n"] == 200 and w2["note"] == "to points of the training set"
    assert 0 < floor["value"] < w2["value"]  # four steps learn nothing


def test_the_run_folder_is_a_model_to_measure_and_to_go_on_with(own, tmp_path, monkeypatch):
    folder, _ = own
    monkeypatch.chdir(tmp_path)  # the run remembers where its data lie
    said = document("eval", folder / "run", "--n", 64, "--steps", 3)
    assert said["metric"] == "SW2[xy]" and said["n"] == 64
    assert bundled.load(folder / "run").shape == (2,)
    request = json.loads((folder / "run" / "request.json").read_text())
    assert request["recipe"] == "toy" and request["data"] == str(folder / "My ring.csv")
    with pytest.raises(BadFile, match="no finished model"):
        bundled.load(tmp_path)


def test_what_comes_before_a_recipe_is_made_of_the_same_data(own):
    ring = str(own[0] / "My ring.csv")
    recipe = on_data(paper("rectified_flow").recipe("toy-2rf"), ring)
    assert recipe.name == "toy-my-ring-2rf" and recipe.data == ring
    flow = recipe.needs["flow"].recipe
    assert flow.data == ring and flow.name == "toy-my-ring-1rf"
    assert recipe.needs["pairs"].model.describe() == recipe.needs["flow"].describe()
    there = paper("rectified_flow").recipe("toy-2rf")
    assert on_data(there, there.data) == there


def test_a_given_teacher_makes_the_pairs_too(own):
    folder, _ = own
    recipe = on_data(paper("rfpp").recipe("toy"), str(folder / "My ring.csv"), {"teacher": str(folder / "run")})
    assert isinstance(recipe.needs["teacher"], Given) and recipe.needs["pairs"].model == recipe.needs["teacher"]
    student = by_models(paper("rfpp").recipe("toy"), {"pairs": "toy-moons"})  # the model of the pairs is the teacher
    assert student.needs["teacher"].name == "toy-moons"
    both = by_models(paper("rfpp").recipe("toy"), {"teacher": "toy-moons", "pairs": "toy-checkerboard"})
    assert (both.needs["teacher"].name, both.needs["pairs"].model.name) == ("toy-moons", "toy-checkerboard")
    with pytest.raises(UnknownName, match="teacher"):
        by_models(recipe, {"techer": "digits"})
    with pytest.raises(UnknownName, match="toy-moons"):
        by_models(recipe, {"teacher": "toy-mons"})
    with pytest.raises(BadValue, match="no model"):
        by_models(paper("rfpp").recipe("digits"), {"perceptual": "digits"})


def test_a_student_is_distilled_from_ones_own_teacher(own, tmp_path):
    folder, _ = own
    ring, teacher = folder / "My ring.csv", f"teacher={folder / 'run'}"
    where = ("--recipe", "toy", "--data", ring, *FEW, "--out", tmp_path / "cd")
    text = refusal("train", "consistency_models", *where)
    assert "8gaussians has learnt other data" in text and "--with teacher=" in text
    said = document("train", "consistency_models", *where, "--with", teacher)
    assert said["card"]["kind"] == "consistency" and said["file"].endswith("toy-my-ring-cd.safetensors")


def test_pictures_without_a_test_split_are_compared_in_pixels(own, tmp_path):
    folder, _ = own
    recipe = override(on_data(paper("edm").recipe("digits"), str(folder / "grey.npz")), {"plan.n_steps": 1})
    recipe = replace(recipe, sampler=OdeSampler(Heun(), TimeGrid.karras(2, 0.01, 10.0)))
    *_, tick = train_recipe(recipe, tmp_path)
    file = publish(recipe, tick, tmp_path, draws=2)
    card = bundled.card(file)
    raw, corrected = card["metrics"]
    assert raw["metric"] == "FD[pixels] raw" and corrected["metric"] == "FD[pixels]" and corrected["n"] == 80
    assert "memorisation" not in card and card["n_classes"] == 0 and file.name == "grey.safetensors"


def test_pictures_with_a_test_split_and_no_classifier_are_compared_in_pixels():
    g = torch.Generator().manual_seed(0)
    train, test = (
        Dataset("shapes", torch.rand(n, 3, 8, 8, generator=g), torch.arange(n) % 4, 4, 0.3) for n in (32, 20)
    )
    net = UNet((3, 8, 8), 8, (1,), 1, n_classes=4)
    model = Preconditioned(net, EDM(), EDMPrecondition(0.3), shape=(3, 8, 8), n_classes=4, t_range=(0.01, 10.0))
    shares = []
    found = evaluate(
        model, train, test, OdeSampler(Heun(), TimeGrid.karras(2, 0.01, 10.0)), draws=2, show=shares.append
    )
    names = [row["metric"] for row in found["metrics"]]
    assert names[0] == "FD[pixels] raw" and "FD[pixels] of the test split" in names
    assert not any("agreement" in name for name in names) and len(found["memorisation"]) == 1
    assert shares == [0.5, 1.0]


def test_the_smallest_recipe_that_fits_is_taken(own):
    folder, _ = own
    edm = paper("edm")
    assert fitting(edm, str(folder / "My ring.csv")) == "toy"
    assert fitting(edm, str(folder / "grey.npz")) == "digits"
    assert fitting(edm, str(folder / "colour.npz")) == "shapes32"
    assert fitting(paper("consistency_models"), str(folder / "grey.npz")) == "digits-ct"  # needs no teacher
    assert chosen(edm, None, "moons") == ("toy", "moons") and chosen(edm, None, "digits") == ("digits", None)
    assert chosen(edm, "cifar10", "cifar10") == ("cifar10", None)  # whether or not it is on this machine
    assert chosen(edm, "toy-moons", "moons") == ("toy-moons", None) and chosen(edm, None, None) == ("digits", None)
    with pytest.raises(BadValue, match="no recipe of autoguidance"):
        fitting(paper("autoguidance"), str(folder / "My ring.csv"), {"teacher": "digits"})


def test_data_and_recipe_that_do_not_fit_are_refused_in_one_sentence(own, tmp_path):
    folder, _ = own
    out = ("--out", tmp_path / "no")
    assert "made for it" in refusal("train", "edm", "--recipe", "digits", "--data", folder / "My ring.csv", *out)
    assert "(1, 8, 8)" in refusal("train", "edm", "--recipe", "digits", "--data", folder / "colour.npz", *out)
    text = refusal("train", "edm", "--data", folder / "nothing.csv", *out)
    assert "nothing.csv" in text
    text = refusal("train", "edm", "--data", "mons", *out)
    assert "moons" in text and "cifar10" in text
    assert "--with takes NEED=MODEL" in refusal("train", "edm", "--data", "toy", "--with", "teacher", *out)
    assert not (tmp_path / "no").exists()


def test_networks_for_other_classes_are_refused(own):
    data = load_dataset(str(own[0] / "colour.npz"))
    recipe = paper("edm").recipe("cifar10")
    with pytest.raises(BadValue, match="for 10 classes; colour has 3"):
        method_of(recipe, data, {}, 0)


def test_a_setting_of_the_method_has_an_option(monkeypatch):
    asked = []
    monkeypatch.setattr("explorer.cli.jobs.rehearse", lambda slug, recipe, *rest: asked.append(recipe))
    run("train", "edm", "--data", "toy-moons", "--dry-run", "--set", "settings.p_mean=-0.5")
    assert asked[0].settings["p_mean"] == -0.5
    assert method_of(asked[0], load_dataset("moons"), {}, 0).times.p_mean == -0.5
    assert "p_mean" in refusal("train", "edm", "--data", "toy", "--dry-run", "--set", "settings.p_men=-0.5")


def test_the_help_names_ones_own_data():
    text = run("train", "--help").stdout
    assert "my-pictures/" in text and "--with" in text


@pytest.fixture
def scaled(monkeypatch):
    """Points of standard deviation 0.5 under the name "a", and the same ones times c under other names."""
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(3)) * 0.5
    sets = {"a": Dataset("a", x)}
    for name, c in (("b", 3.0), ("near", 1.04), ("tiny", 0.02)):
        sets[name] = Dataset(name, c * x, sigma_data=c * 0.5)

    def load(name, *rest):
        return sets[name] if name in sets else load_dataset(name, *rest)

    for module in ("own", "rehearsal", "run"):
        monkeypatch.setattr(sys.modules[f"explorer.reproduction.{module}"], "load_dataset", load)
    return sets


class Renamed(torch.nn.Module):
    """A network that is told of c sigma where it knew sigma: c_noise = ln(sigma) / 4 is only the level's name."""

    def __init__(self, net, c):
        super().__init__()
        self.net, self.shape, self.c = net, (2,), c

    def forward(self, x, c_noise, labels=None):
        return self.net(x, c_noise - np.log(self.c) / 4, labels)


def test_data_times_c_are_the_same_problem_to_train(scaled):
    edm = paper("edm")
    plain, moved = on_data(edm.recipe("toy"), "a"), on_data(edm.recipe("toy"), "b")
    assert plain.settings["p_mean"] == -1.2 and moved.settings["p_mean"] == pytest.approx(-1.2 + np.log(3), abs=5e-5)
    here, there = (method_of(r, scaled[r.data], {}, 0) for r in (plain, moved))
    g = torch.Generator().manual_seed(0)
    for p in here.nets["net"].parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=g)  # a network that has begun to learn; untrained ones give 0
    there.nets["net"] = Renamed(here.nets["net"], 3.0)
    x = scaled["a"].x

    def losses(method, x):
        with torch.no_grad():
            return method.loss(Batch(x), torch.Generator().manual_seed(1))

    (loss, sigma), (other, farther) = losses(here, x), losses(there, 3 * x)
    # P_mean has four decimals, so sigma is 3 times the other to 5e-5, and the loss follows to a few times that.
    torch.testing.assert_close(farther, 3 * sigma, rtol=1e-4, atol=0)
    torch.testing.assert_close(other, loss, rtol=2e-3, atol=1e-5)
    there.times = here.times  # the paper's P_mean on data three times as large: another problem
    assert (losses(there, 3 * x)[0] / loss).log().abs().median() > 0.05


def test_levels_move_only_as_far_as_the_data_ask(scaled):
    edm = paper("edm")
    near = on_data(edm.recipe("toy"), "near")
    assert near.settings["p_mean"] == -1.2 and scale_words(edm.recipe("toy"), near) == ""
    b, tiny = (on_data(edm.recipe("toy"), name) for name in ("b", "tiny"))
    assert b.sampler == edm.recipe("toy").sampler  # 0.002 to 80 cover it
    times, before = (np.array(r.sampler.grid.times) for r in (tiny, b))
    np.testing.assert_allclose(times, 0.02 * before, rtol=1e-12)  # 0.002 is a fifth of its standard deviation
    words = scale_words(edm.recipe("toy"), tiny)
    assert "P_mean -5.112 in place of -1.2" in words and "sampler's levels" in words and "settings.p_mean=-1.2" in words
    assert scale_words(edm.recipe("toy"), replace(tiny, settings={**tiny.settings, "p_mean": -1.0})) == ""
    again = on_data(on_data(edm.recipe("toy"), "b"), "a")
    assert again.settings["p_mean"] == pytest.approx(-1.2, abs=1e-4)  # there and back
    first = on_data(paper("rectified_flow").recipe("toy-2rf"), "b")  # no P_mean: nothing to move
    assert "p_mean" not in first.settings


def test_only_a_p_mean_that_the_method_reads_is_moved():
    assert reads(paper("edm").recipe("digits"), "p_mean") and reads(paper("scm").recipe("digits"), "p_mean")
    assert not reads(paper("scm").recipe("cifar10"), "p_mean")  # built into its method: the setting only states it
    assert not reads(paper("ict").recipe("toy"), "p_mean") and not reads(paper("edm").recipe("cifar10"), "p_mean")


def test_the_command_line_says_that_the_levels_moved(own, monkeypatch):
    asked = []
    monkeypatch.setattr("explorer.cli.jobs.rehearse", lambda slug, recipe, *rest: asked.append(recipe))
    grey = ("train", "edm", "--data", own[0] / "grey.npz", "--dry-run")
    said = run(*grey)
    sigma = load_dataset(str(own[0] / "grey.npz")).sigma_data
    mean = -0.8 + np.log(sigma / 0.75)
    assert asked[0].settings["p_mean"] == pytest.approx(mean, abs=5e-5) and f"P_mean {mean:.4g}" in said.stderr
    assert "P_mean" not in run(*grey, "--set", "settings.p_mean=-0.8").stderr and asked[1].settings["p_mean"] == -0.8
