"""The classifiers behind FD[...]: what they are trained for, their stated moments, and reading pictures back against their law."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from explorer.data import SHAPES, Batch, Dataset, Shapes, load_dataset
from explorer.errors import BadFile
from explorer.metrics.features import network_space
from explorer.metrics.frechet import Reference
from explorer.metrics.readback import CLEAN, read_back, shares_of
from explorer.metrics.references import reference_entry, reference_for
from explorer.models import bundled
from explorer.models.base import Oracle
from explorer.nets.features import FeatureNet
from explorer.papers import paper
from explorer.papers.shapes_cnn import FACTORS, draw
from explorer.process.oracles import GaussianMixture
from explorer.reproduction.classifier import Classification, off_diagonal
from explorer.reproduction.evaluate import evaluate
from explorer.reproduction.run import publish, train_recipe
from explorer.sampling.grids import TimeGrid
from explorer.sampling.samplers import OdeSampler
from explorer.sampling.solvers import Euler
from explorer.training import Progress


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_loss_is_that_of_every_factor_and_the_correlations():
    torch.manual_seed(0)
    net = FeatureNet((3, 8, 8), n_classes=4, width=8, n_features=6)
    method = Classification(net, decorrelation=2.0, smoothing=0.1, factors=(3, 2))
    x, (y, a, b) = torch.randn(16, 3, 8, 8), (torch.arange(16) % n for n in (4, 3, 2))
    (update,) = method.updates(Batch(x, y + 4 * (a + 3 * b)), Progress(0, 0, 0.0))
    f = net.features(x).detach()
    heads = [(net.logits(f), y), (method.nets["factor1"](f), a), (method.nets["factor2"](f), b)]
    corr = [[float((f[:, i] * f[:, j]).mean()) for i in range(6)] for j in range(6)]
    penalty = sum(corr[i][j] ** 2 for i in range(6) for j in range(6) if i != j) / 30
    expected = sum(F.cross_entropy(logits, label, label_smoothing=0.1) for logits, label in heads) + 2.0 * penalty
    assert update.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert float(off_diagonal(f)) == pytest.approx(penalty, rel=1e-5)
    assert set(update.on) == {"net", "factor1", "factor2"} and method.export(method.nets) is net
    assert float(update.logs["accuracy_1"]) == float((heads[1][0].argmax(1) == a).float().mean())


def test_the_pictures_carry_their_factors_in_one_number():
    x, code = draw(100, generator(3))
    what = SHAPES["shapes32"].factors(100, generator(3))
    assert torch.equal(x, SHAPES["shapes32"].render(what)) and int(code.max()) < 6 * math.prod(FACTORS)
    for value in (what.label, what.colour, what.large):
        n = 6 if value is not what.large else 2
        assert torch.equal(code % n, value)
        code = code // n
    assert torch.equal(code % 2 == 1, what.ground < 0.1) and torch.equal(code // 2 == 1, what.tint[:, 0] > 0)


@pytest.mark.parametrize(
    ("name", "data"), [("digits_cnn", "digits"), pytest.param("shapes_cnn", "shapes32", marks=pytest.mark.slow)]
)
def test_a_short_run_is_measured_and_written_as_any_other(name, data, tmp_path):
    recipe = paper(name).recipe(data)
    recipe = replace(recipe, plan=replace(recipe.plan, n_steps=2, batch_size=16))
    *_, tick = train_recipe(recipe)
    file = publish(recipe, tick, tmp_path)
    card = json.loads(file.with_suffix(".json").read_text())
    assert card["kind"] == "classifier" and card["name"] == recipe.name and card["recipe"]["steps_done"] == 2
    train, stated = load_dataset(data), card["reference"]
    assert stated["n"] == len(train) and stated["data"] == f"{data}/train"
    net = bundled.load_features(file)
    assert network_space(recipe.name, net, 32).hash == stated["checksum"]
    # standardised over the training split: mean 0, variance 1, to float32
    diagonal = torch.ones(32, 32).triu().nonzero().T
    covariance = torch.zeros(32, 32, dtype=torch.float64)
    covariance[tuple(diagonal)] = torch.tensor(stated["covariance"], dtype=torch.float64)
    assert max(map(abs, stated["mean"])) < 1e-3
    assert (covariance.diag() - 1).abs().max() < 1e-2


def test_moments_come_from_the_card_only_where_they_are_of_these_weights(tmp_path, monkeypatch):
    torch.manual_seed(0)
    data = Dataset("pictures", torch.randn(200, 1, 8, 8))
    net = FeatureNet((1, 8, 8), n_classes=2, width=8, n_features=4).eval()
    space = network_space("my-cnn", net, 4)
    truth = Reference.of(space, data.x, data="pictures/train")
    assert reference_for(space, data).digest == truth.digest  # nothing is stated

    def state(**changes):
        card = {"reference": reference_entry(space, space(data.x), data="pictures/train") | changes}
        bundled.save_model(tmp_path / "kept", "my-cnn", net, card)

    monkeypatch.setenv("EXPLORER_RUNS", str(tmp_path))
    state()
    monkeypatch.setattr(Reference, "of", None)  # must not be computed
    found = reference_for(space, data)
    assert found.digest == truth.digest and found.data == "pictures/train"
    monkeypatch.undo()
    monkeypatch.setenv("EXPLORER_RUNS", str(tmp_path))
    other = Dataset("pictures", data.x[:100] + 1)
    for changes in ({"checksum": "0" * 16}, {"data": "others/train"}):  # of other weights, of other data
        state(**changes)
        assert reference_for(space, other).digest == Reference.of(space, other.x).digest
    state(covariance=[1.0, 2.0])
    with pytest.raises(BadFile, match="none"):
        reference_for(space, data)


def test_shares_against_draws_of_the_law():
    law, n = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), 400
    draws = torch.multinomial(law, 2000 * n, True, generator=generator(1)).view(2000, n)
    distances = torch.tensor([shares_of(code, law, "").distance.value for code in draws])
    floor = shares_of(draws[0], law, "").floor
    # five standard errors of 2000 draws, and 1 % for the normal approximation of a binomial with 80 to 200 expected
    assert float(distances.mean()) == pytest.approx(
        floor, rel=0.01 + 5 * float(distances.std() / distances.mean()) / 2000**0.5
    )
    # two values, far from the law: |p - 1/2|, with the binomial's error
    code = torch.tensor([0] * 320 + [1] * 80)
    found = shares_of(code, torch.tensor([0.5, 0.5], dtype=torch.float64), "tv")
    assert found.distance.value == pytest.approx(0.3)
    assert found.distance.std_error == pytest.approx(math.sqrt(0.8 * 0.2 / 400), rel=0.01)


def test_pictures_are_read_back_against_their_law():
    n, lit = 400, SHAPES["shapes32"]
    x, labels = lit.draw(n, generator(5))
    found = read_back(lit, x, labels)
    assert found.clean.all() and found.right.all()
    for name, shares in found.shares.items():
        assert shares.distance.value < shares.floor + 5 * shares.distance.std_error, name
    # one colour too often: with probability c the colour is the class's, so the joint law is off by c (1 - 1/6)
    c = 0.3
    x, labels = replace(lit, colour_correlation=c).draw(n, generator(6))
    biased = read_back(lit, x, labels).shares["colour and size by class"]
    assert abs(biased.distance.value - c * 5 / 6) < biased.floor + 5 * biased.distance.std_error
    assert read_back(lit, x, (labels + 1) % 6).right.sum() == 0
    noisy = x[:50] + 2 * CLEAN * torch.randn(50, 3, 32, 32, generator=generator(7))
    assert not read_back(lit, noisy, labels[:50]).clean.any()


def test_a_card_says_what_the_pictures_show(monkeypatch):
    torch.manual_seed(0)
    shapes = Shapes(side=16)
    x, labels = shapes.draw(60, generator(8))
    train = Dataset("tiny-shapes", x, labels, 4, 0.4)
    test = Dataset("tiny-shapes-test", *shapes.draw(60, generator(9)), 4, 0.4)
    net = FeatureNet((3, 16, 16), n_classes=4, width=8, n_features=4).eval()
    monkeypatch.setattr("explorer.reproduction.evaluate.CLASSIFIERS", {"tiny-shapes": "tiny-cnn"})
    monkeypatch.setattr("explorer.reproduction.evaluate.SHAPES", {"tiny-shapes": shapes})
    monkeypatch.setattr("explorer.reproduction.evaluate.feature_space", lambda *_: network_space("tiny-cnn", net, 4))
    monkeypatch.setattr("explorer.models.bundled.load_features", lambda *_: net)

    model = Oracle(GaussianMixture(x, 0.0, labels=labels))  # denoises to the pictures themselves
    sampler = OdeSampler(Euler(), TimeGrid.karras(12, 0.01, 40.0))
    rows = {row["metric"]: row for row in evaluate(model, train, test, sampler, draws=2)["metrics"]}
    assert (
        rows["samples that read as their class"]["value"] == 1 and rows["samples that read as their class"]["n"] == 120
    )
    assert rows[f"samples that are pictures of the set, to {CLEAN}"]["value"] == 1
    assert len(rows["total variation of colour from its law"]["shares"]) == 4
