"""SIMS: closed forms on the line, what reaches the auxiliary, extrapolation of scores and of weights, the loop of generations."""

import copy
import dataclasses
import math

import pytest
import torch

from explorer.data import Batch, load_dataset
from explorer.data.pairs import PairStore
from explorer.errors import BadValue, UnknownName
from explorer.models import Guided, Oracle, Preconditioned
from explorer.nets import MLP
from explorer.papers import paper, sims, sims_claims
from explorer.papers.edm import EDMTraining
from explorer.papers.sims import content, copied, extrapolated, generations, in_weights, mending_omega, output_variance
from explorer.process import EDM, EDMPrecondition, FlowPrecondition, GaussianMixture
from explorer.process.couplings import pairs_of
from explorer.process.times import LogNormal
from explorer.reproduction import Bench, train_recipe
from explorer.sampling import Heun, OdeSampler, Seeds, TimeGrid, sample
from explorer.training import Plan, train
from explorer.training.denoising import Denoising


def gaussian(v, dim=1):
    return Oracle(GaussianMixture(torch.zeros(1, dim), math.sqrt(v)))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    net = MLP(2, 16, 2)
    torch.nn.init.normal_(net.out.weight, std=0.3)
    return Preconditioned(net, EDM(), EDMPrecondition(0.5), shape=(2,), t_range=(0.002, 80.0), name="small")


@pytest.fixture(scope="module")
def other(model):
    out = copy.deepcopy(model)
    with torch.no_grad():
        for p in out.net.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return out


# The combination


@pytest.mark.parametrize(("v", "v_r", "v_s"), [(1.0, 0.8, 0.7), (0.3, 0.36, 0.4), (1.0, 0.8, 0.9)])
@pytest.mark.parametrize("omega", [-0.5, 0.0, 0.7, 3.0])
def test_the_variance_of_two_gaussians_is_the_closed_form(v, v_r, v_s, omega):
    """Against quadrature of d ln x / d sigma, and against a sampler; the start at 80 leaves v / 80^2 of relative error."""
    s = torch.logspace(-5, 5, 200_001, dtype=torch.float64)
    slope = s * ((1 + omega) / (v_r + s**2) - omega / (v_s + s**2)) - s / (
        1.0 + s**2
    )  # less a unit Gaussian's, which ends at 1
    x = math.exp(-float(torch.trapezoid(slope, s)))
    assert x**2 == pytest.approx(output_variance(v_r, v_s, omega), rel=1e-3)
    fine = OdeSampler(Heun(), TimeGrid.karras(300, 1e-4, 80.0))
    end = fine.sample(extrapolated(gaussian(v_r), gaussian(v_s), omega), torch.ones(1, 1, dtype=torch.float64))
    assert float(end) ** 2 == pytest.approx(output_variance(v_r, v_s, omega), rel=2e-3)
    mended = mending_omega(v, v_r, v_s)
    assert output_variance(v_r, v_s, mended) == pytest.approx(v)
    assert (mended > 0) == ((v_r - v) * (v_s - v_r) > 0)


def test_it_is_one_plus_omega_of_autoguidance(model, other):
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert extrapolated(model, other, 0.0) is model
    said = extrapolated(model, other, 0.7)
    a, b = model.denoise(x, 0.4), other.denoise(x, 0.4)
    torch.testing.assert_close(said.denoise(x, 0.4), a + 0.7 * (a - b))
    assert isinstance(said, Guided) and said.scale == 1.7 and said.calls_at(0.4) == 2
    assert sims.SAMPLER.nfe(said) == 2 * sims.SAMPLER.nfe(model) == 70


def test_weights_extrapolate_linearly_and_leave_the_models_alone(model, other):
    before = [p.clone() for p in (*model.net.parameters(), *other.net.parameters())]
    out = in_weights(model, other, 0.5)
    for p, r, s in zip(out.net.parameters(), model.net.parameters(), other.net.parameters(), strict=True):
        torch.testing.assert_close(p, 1.5 * r - 0.5 * s)
    assert all(
        torch.equal(a, b) for a, b in zip(before, (*model.net.parameters(), *other.net.parameters()), strict=True)
    )
    x = torch.randn(5, 2, dtype=torch.float64)
    torch.testing.assert_close(in_weights(model, other, 0.0).denoise(x, 0.4), model.denoise(x, 0.4))
    torch.testing.assert_close(in_weights(model, other, -1.0).denoise(x, 0.4), other.denoise(x, 0.4))
    # for a small difference, both ways of extrapolating agree to first order
    near = in_weights(other, model, -1 + 1e-3)  # a thousandth of the way from the model to the other
    scores = extrapolated(model, near, 1.0).denoise(x, 0.4) - model.denoise(x, 0.4)
    weights = in_weights(model, near, 1.0).denoise(x, 0.4) - model.denoise(x, 0.4)
    assert float(((scores - weights).norm() / scores.norm()).detach()) < 0.05
    wide = Preconditioned(MLP(2, 32, 2), EDM(), EDMPrecondition(0.5), shape=(2,), t_range=(0.002, 80.0))
    with pytest.raises(BadValue, match="one architecture"):
        in_weights(model, wide, 0.5)


# What the auxiliary is trained on


def test_content_knows_a_set_and_not_its_order():
    x = torch.randn(7, 2)
    assert content(x) == content(x.flip(0)) == content(x.double())
    changed = x.clone()
    changed[3, 1] = torch.nextafter(changed[3, 1], torch.tensor(9.0))
    assert content(changed) != content(x)


def test_only_synthetic_samples_reach_the_auxiliary(model, monkeypatch):
    """Every row that the method sees in training is one of the base model's, and none is real."""
    own = sample(model, sims.SAMPLER, Seeds(range(64))).float()
    pairs = PairStore.of(pairs_of(Seeds(range(64)).normal((2,)), own))
    recipe, real, seen = sims.auxiliary(), load_dataset("8gaussians"), []
    method = recipe.method(real, base=model, pairs=pairs)
    loss = method.loss
    monkeypatch.setattr(method, "loss", lambda batch, g=None: (seen.append(batch.x0.clone()), loss(batch, g))[1])
    stream = recipe.stream(real, Plan(6, 32), base=model, pairs=pairs)
    before = [p.clone() for p in model.net.parameters()]
    for _ in train(method, stream, Plan(6, 32)):
        pass
    fed = torch.unique(torch.cat(seen), dim=0)
    assert content(fed) == content(torch.unique(own, dim=0))
    assert not ({tuple(r) for r in fed.tolist()} & {tuple(r) for r in real.x.tolist()})
    assert all(torch.equal(a, b) for a, b in zip(before, model.net.parameters(), strict=True))  # D_r is frozen
    assert any(not torch.equal(a, b) for a, b in zip(before, method.nets["net"].parameters(), strict=True))


def test_the_samples_are_the_plain_base_samplers():
    recipe = sims.auxiliary()
    assert recipe.needs["pairs"].model == recipe.needs["base"]
    assert recipe.needs["pairs"].sampler.to_dict() == sims.SAMPLER.to_dict()
    ema = recipe.plan.emas[0]
    assert ema.ramp_up is None  # starts from D_r's weights and is not overwritten by the first step


def test_the_base_sees_two_thousand_points_and_others_at_each_seed():
    data = load_dataset("8gaussians")
    known = {tuple(row) for row in data.x.tolist()}
    seen = []
    for seed in (0, 1):
        stream = sims.few(data, Plan(1, 1000, seed=seed))
        rows = {tuple(row) for i in range(2) for row in stream.batch(i).x0.tolist()}
        assert len(rows) == sims.N_REAL and rows <= known
        seen.append(rows)
    assert len(seen[0] & seen[1]) < 1000  # 488 expected of 2000 out of 8192


# Denoising as a method


def test_the_loss_is_edms_and_least_at_the_exact_denoiser(model):
    batch = Batch(torch.randn(9, 2, generator=torch.Generator().manual_seed(3)))
    mine = Denoising(model, LogNormal(-1.2, 1.2)).loss(batch, torch.Generator().manual_seed(5))
    edm = EDMTraining(model.net, shape=(2,), sigma_data=0.5, times=LogNormal(-1.2, 1.2))
    theirs = edm.loss(batch, torch.Generator().manual_seed(5))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(BadValue, match="predict data"):
        Denoising(Preconditioned(model.net, EDM(), FlowPrecondition(), shape=(2,), t_range=(0.1, 1.0)), LogNormal(0, 1))


# The loop


def test_generations_learn_from_the_ones_before(model):
    few = {"n_train": 60, "n_steps": 3, "aux_steps": 2, "first": model, "seed": 3}
    plain = list(generations("plain", 2, **few))
    assert len(plain) == 3 and plain[0][0] is model
    real = {tuple(row) for row in load_dataset("8gaussians").x.tolist()}
    sets = [{tuple(row) for row in x.tolist()} for _, x in plain]
    assert sets[0] <= real and not (sets[1] & real) and not (sets[2] & sets[1])
    again = list(generations("plain", 2, **few))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(plain, again, strict=True))
    mended = list(generations("sims", 2, **few))
    assert isinstance(mended[1][0], Guided) and mended[1][0].scale == 1.5
    half = [x for _, x in generations("plain", 1, **few, real_share=0.5)][1]
    assert sum(tuple(row) in real for row in half.tolist()) == 30
    with pytest.raises(UnknownName, match="plain, sims"):
        next(generations("fancy"))
    with pytest.raises(BadValue, match="between 0 and 1"):
        next(generations("plain", real_share=2.0))


def test_without_a_first_model_generation_0_is_trained(monkeypatch):
    monkeypatch.setattr(sims, "plane", lambda data: _short(data))
    model, x = next(generations("plain", 0, n_train=600, seed=1))
    assert x.shape == (600, 2) and model.denoise(torch.zeros(1, 2), 0.5).abs().sum() > 0


def _short(data, make=sims.plane):
    recipe = make(data)
    return dataclasses.replace(recipe, plan=dataclasses.replace(recipe.plan, n_steps=2))


# The paper


def test_recipes_and_numbers():
    about = paper("sims")
    assert about.arxiv == "2408.16333" and {p.value for p in about.published} == {1.33, 1.04}
    full = about.recipe("cifar10")
    assert full.needs["pairs"].n == 100_000 and full.sampler.nfe(gaussian(1.0)) == 35
    assert copied(gaussian_net(), "x").name == "x"
    with pytest.raises(UnknownName):
        about.recipe("mnist")


def gaussian_net():
    return Preconditioned(MLP(2, 8, 1), EDM(), EDMPrecondition(0.5), shape=(2,), t_range=(0.1, 1.0))


def test_an_auxiliary_is_trained_end_to_end(tmp_path, monkeypatch):
    small = sims.plane()
    small = dataclasses.replace(small, plan=dataclasses.replace(small.plan, n_steps=3, batch_size=64))
    monkeypatch.setattr(sims, "plane", lambda data="8gaussians": small)
    recipe = sims.auxiliary(n_steps=2, n_s=50)
    [*_, last] = train_recipe(recipe, tmp_path, seed=0)
    assert last.step == 2 and last.method.name == "toy-8gaussians-self-2"


def test_the_closed_form_claim_holds():
    assert sims_claims.gaussians(Bench(seed=5)).holds
