"""Models on disk: what is saved comes back bit for bit, and what was altered is refused before it is used."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from explorer.data import SHAPES, digits, load_dataset, oracle
from explorer.errors import BadFile, BadValue, UnknownName
from explorer.metrics import Reference, feature_space
from explorer.metrics.references import reference_for
from explorer.models import bundled
from explorer.models.base import Oracle, Preconditioned, as_denoiser
from explorer.nets import MLP, FeatureNet, UNet
from explorer.process.oracles import GaussianMixture
from explorer.process.paths import EDM, VP, Linear
from explorer.process.precondition import EDMPrecondition, FlowPrecondition
from explorer.sampling.grids import TimeGrid
from explorer.sampling.samplers import OdeSampler, sample
from explorer.sampling.seeds import Seeds
from explorer.sampling.solvers import Heun


def shaken(net):
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))
    return net.eval()


MODELS = {
    "mlp-edm": lambda: Preconditioned(
        shaken(MLP(2, width=8, depth=1)), EDM(), EDMPrecondition(0.5), shape=(2,), t_range=(0.002, 80)
    ),
    "unet-flow": lambda: Preconditioned(
        shaken(UNet((1, 8, 8), 8, (1, 2), 1, n_classes=3)), Linear(), FlowPrecondition(), shape=(1, 8, 8), n_classes=3,
        t_range=(0.001, 0.98),
    ),
    "oracle-vp": lambda: Oracle(GaussianMixture(torch.randn(4, 2), 0.3, labels=[0, 0, 1, 1]), VP(), t_range=(0.01, 1.0)),
    "oracle-full": lambda: Oracle(
        GaussianMixture(torch.randn(2, 3), covs=torch.tensor([[[2.0, 0.5, 0], [0.5, 1, 0], [0, 0, 3]]] * 2))
    ),
}  # fmt: skip


@pytest.fixture(params=MODELS, name="model")
def _model(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[request.param]()


def test_a_model_survives_the_disk(tmp_path, model):
    file = bundled.save_model(tmp_path, "mine", model, {"data": "digits", "seed": 3, "name": "overridden?"})
    back = bundled.load(file)
    x = torch.randn(5, *model.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    cond = torch.tensor([0, 1, -1, 1, 0]) if model.n_classes else None
    for t in (model.path.time_at(0.05), model.path.time_at(3.0)):
        # exact in float32 networks; oracles take square roots and logarithms on the way
        torch.testing.assert_close(back.denoise(x, t, cond), model.denoise(x, t, cond), rtol=1e-12, atol=1e-12)
    assert back.path == model.path and back.n_classes == model.n_classes and back.name == "mine"
    assert back.sigma_range == pytest.approx(model.sigma_range, rel=1e-9)
    assert not back.training and not any(p.requires_grad for p in back.parameters())
    card = bundled.card(file)
    assert card["seed"] == 3 and card["name"] == "mine" and card["date"] and card["versions"]["torch"]
    assert card["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert sorted(f.name for f in tmp_path.iterdir()) == ["mine.json", "mine.safetensors"]  # no temporary left


def test_a_classifier_survives_the_disk(tmp_path):
    net = shaken(FeatureNet())
    net.train()(torch.randn(20, 1, 8, 8))  # move the running statistics
    file = bundled.save_model(tmp_path, "reader", net.eval(), {})
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(bundled.load_features(file).features(x), net.features(x))
    with pytest.raises(BadValue, match="load_features"):
        bundled.load(file)


@pytest.fixture(name="saved")
def _saved(tmp_path):
    return bundled.save_model(tmp_path, "mine", MODELS["mlp-edm"](), {})


def rewrite(file, **entries):
    card = bundled.card(file)
    file.with_suffix(".json").write_text(json.dumps({**card, **entries}))


def test_truncated_or_altered_weights_are_refused(saved):
    content = saved.read_bytes()
    for broken in (content[:-1], content[: len(content) // 2], b"", content[:-1] + bytes([content[-1] ^ 1])):
        saved.write_bytes(broken)
        with pytest.raises(BadFile, match="does not match its card"):
            bundled.load(saved)
    saved.unlink()
    with pytest.raises(BadFile, match="no file"):
        bundled.load(saved)


def test_weights_in_another_format_are_refused(saved):
    torch.save({"x": torch.zeros(1)}, saved)  # a pickle with the right hash
    rewrite(saved, sha256=hashlib.sha256(saved.read_bytes()).hexdigest())
    with pytest.raises(BadFile, match="safetensors format"):
        bundled.load(saved)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"net": {"class": "os.system", "args": {"command": "true"}}}, "can be built"),
        ({"net": {"class": "Preconditioned", "args": {}}}, "can be built"),
        ({"net": "MLP"}, "as a class and its args"),
        ({"net": {"class": "MLP", "args": {"dim": 2, "width": 8, "surprise": 1}}}, "does not take"),
        ({"net": {"class": "MLP", "args": {"dim": 2, "width": 2_000_000, "depth": 1}}}, "same model"),  # 16 TB if built
        ({"net": {"class": "MLP", "args": {"dim": 2, "width": 16, "depth": 1}}}, "same model"),
        ({"path": {"class": "Denoiser", "args": {}}}, "can be built"),
        ({"precondition": {"class": "EDM"}}, "can be built"),
        ({"sigma_range": [1.0]}, "same model"),
        ({"kind": "pickle"}, "not a model card"),
        ({"sha256": None}, "not a model card"),
        ({"format": 99}, "reads format 1"),
    ],
)
def test_hostile_or_broken_cards_are_refused(saved, entries, message):
    rewrite(saved, **entries)
    with pytest.raises(BadFile, match=message):
        bundled.load(saved)


def test_a_card_that_is_not_json_is_refused(saved):
    for text in ("{", "[1, 2]", "[" * 100_000):
        saved.with_suffix(".json").write_text(text)
        with pytest.raises(BadFile):
            bundled.load(saved)


def test_weights_that_are_not_finite_are_refused(saved):
    tensors = load_file(saved)
    tensors["out.bias"][0] = float("nan")
    save_file(tensors, saved)
    rewrite(saved, sha256=hashlib.sha256(saved.read_bytes()).hexdigest())
    with pytest.raises(BadFile, match="NaN"):
        bundled.load(saved)


def test_what_cannot_be_rebuilt_cannot_be_saved(tmp_path):
    wild = as_denoiser(lambda x, t, c: x, "x0", EDM(), (2,))
    with pytest.raises(BadValue, match="cannot save a FunctionDenoiser"):
        bundled.save_model(tmp_path, "wild", wild, {})
    with pytest.raises(BadValue, match="no model name"):
        bundled.save_model(tmp_path, "../up", MODELS["mlp-edm"](), {})
    with pytest.raises(BadValue, match="plain JSON"):
        bundled.save_model(tmp_path, "mine", MODELS["mlp-edm"](), {"seed": torch.zeros(1)})
    assert list(tmp_path.iterdir()) == []


def test_assets_folder_can_be_replaced(tmp_path, monkeypatch):
    bundled.save_model(tmp_path / "models", "mine", MODELS["mlp-edm"](), {})
    monkeypatch.setenv("EXPLORER_ASSETS", str(tmp_path))
    assert bundled.names() == ("mine",) and bundled.names("classifier") == ()
    assert bundled.load("mine").shape == (2,)
    with pytest.raises(UnknownName, match="Did you mean 'mine'"):
        bundled.load("mime")
    with pytest.raises(UnknownName):
        bundled.load("../mine")


@pytest.mark.parametrize("name", bundled.names())
def test_every_bundled_file_loads_and_says_what_it_is(name):
    card = bundled.card(name)
    assert {"kind", "shape", "n_classes", "data", "sha256", "versions", "date"} <= set(card)
    if card["kind"] == "classifier":
        assert bundled.load_features(name).features(torch.zeros(2, *card["shape"])).shape == (2, card["n_features"])
        return
    model = bundled.load(name)
    x = torch.randn(3, *model.shape, dtype=torch.float64)
    out = model.denoise(x, model.path.time_at(1.0))
    assert out.shape == x.shape and torch.isfinite(out).all()
    if card["kind"] == "denoiser":
        assert {"recipe", "seed", "metrics", "machine", "minutes"} <= set(card)
        assert all({"metric", "value", "std_error", "n"} <= set(row) for row in card["metrics"])


@pytest.mark.parametrize("toy", ["8gaussians", "two-point"])
def test_bundled_oracles_are_the_toys(toy):
    theirs, ours = bundled.load(f"oracle-{toy}").mixture, oracle(toy)
    for key, value in ours.state_dict().items():
        torch.testing.assert_close(theirs.state_dict()[key], value, rtol=1e-12, atol=1e-15)


def test_bundled_digits_oracle_is_the_training_split():
    mixture = bundled.load("oracle-digits").mixture
    x, labels = digits("train")
    assert torch.equal(mixture.means.float(), x.flatten(1)) and torch.equal(mixture.labels, labels)
    assert not mixture.variances.any()


def test_shapes_classifier_is_as_good_as_its_card_says():
    card, net = bundled.card("shapes32-cnn"), bundled.load_features("shapes32-cnn")
    stated = {row["metric"]: row for row in card["metrics"]}
    assert stated["accuracy of shapes32-cnn on the test split"]["value"] == 1.0
    x, labels = SHAPES["shapes32"].draw(300, torch.Generator().manual_seed(77))
    assert (net(x).argmax(1) == labels).all()  # fresh pictures; at the card's error rate of 2e-4 all are right in 94 %
    assert stated["condition number of the feature covariance"]["value"] < 10
    # the stated moments: 300 other pictures have features of mean 0 and variance 1 to five standard errors
    f = net.features(x).double()
    assert (
        f.mean(0).abs().max() < 5 / 300**0.5
        and (f.var(0) - 1).abs().max() < 5 * f.pow(4).mean(0).max().sqrt() / 300**0.5
    )


@pytest.mark.slow
def test_moments_on_the_card_are_those_of_the_training_split():
    data, space = load_dataset("shapes32"), feature_space("shapes32-cnn")
    stated, computed = reference_for(space, data), Reference.of(space, data.x)
    assert stated.n == computed.n == 10_000
    np.testing.assert_allclose(stated.mean, computed.mean, atol=1e-4)  # float32 features, summed in other batches
    np.testing.assert_allclose(stated.cov, computed.cov, atol=1e-3)


def test_digits_classifier_is_as_good_as_its_card_says():
    card, net = bundled.card("digits-cnn"), bundled.load_features("digits-cnn")
    stated = {row["metric"]: row for row in card["metrics"]}
    x, labels = digits("test")
    accuracy = float((net(x).argmax(1) == labels).double().mean())
    row = stated["accuracy of digits-cnn on the test split"]
    assert accuracy >= 0.98 and row["n"] == len(x)
    assert accuracy == pytest.approx(
        row["value"], abs=1.5 / len(x)
    )  # one image may sit on the fence of float32 kernels
    features = net.features(digits("train")[0]).double()
    spectrum = torch.linalg.eigvalsh(torch.cov(features.T))
    assert features.shape[1] == 32 and spectrum[0] > 1e-3 * spectrum[-1]
    assert float(spectrum[-1] / spectrum[0]) == pytest.approx(
        stated["condition number of the feature covariance"]["value"], rel=0.01
    )


def test_weights_that_float16_holds_are_stored_as_such_and_come_back_as_float32(tmp_path):
    net = MLP(2, width=8, depth=1)
    model = Preconditioned(net, EDM(), EDMPrecondition(1.0), shape=(2,), t_range=(0.01, 10.0))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape).half())
        one = next(net.parameters())
        one.view(-1)[0] = 1 / 3  # one number that it does not hold: this tensor stays as it is
    file = bundled.save_model(tmp_path, "half", model, {"data": "moons"})
    stored = {name: value.dtype for name, value in load_file(file).items()}
    assert set(stored.values()) == {torch.float16, torch.float32}
    back = bundled.load(file)
    assert {p.dtype for p in back.parameters()} == {torch.float32}
    for a, b in zip(net.parameters(), back.net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_bundled_shapes_look_as_their_card_says():
    card, model = bundled.card("shapes32"), bundled.load("shapes32")
    assert model.shape == (3, 32, 32) and model.n_classes == 6 and card["classes"][5] == "star"
    stated = next(row for row in card["metrics"] if row["metric"] == "agreement of shapes32-cnn with the label")
    seeds = Seeds(range(24))
    x = sample(model, OdeSampler(Heun(), TimeGrid.karras(9, 0.002, 80.0)), seeds).float()
    right = (bundled.load_features("shapes32-cnn")(x).argmax(1) == seeds.labels(6)).double().mean()
    p = stated["value"]
    assert float(right) > p - 5 * (p * (1 - p) / 24) ** 0.5 - 0.02  # the card's is of 18 steps
