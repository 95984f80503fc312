"""Flow maps: the reference by solving, consistency models around any denoiser, and the sampler that jumps."""

from __future__ import annotations

import math

import pytest
import torch

from explorer.errors import BadValue
from explorer.knobs import SamplerKnobs
from explorer.models import ConsistencyModel, FlowMap, Oracle, Preconditioned, SkipTuned, as_denoiser, as_flow_map
from explorer.models.bundled import card, load, save_model
from explorer.nets import MLP, UNet
from explorer.process import EDM, ConsistencyPrecondition, EDMPrecondition, GaussianMixture, Linear, Trig
from explorer.sampling import Jump, OdeSampler, Seeds, TimeGrid, sample

S = 0.5
PATHS = [EDM(), Linear(), Trig(0.5)]


def gaussian(path=None) -> Oracle:
    """N(0, S^2) in the plane."""
    return Oracle(GaussianMixture(torch.zeros(1, 2), S), path)


def exact_map(sigma_min: float = 0.0) -> ConsistencyModel:
    """The consistency function of N(0, S^2) on the EDM path: x shrinks with its standard deviation, sqrt(S^2 + sigma^2)."""

    def shrink(x, t, cond):
        return x * math.sqrt((S**2 + sigma_min**2) / (S**2 + float(t) ** 2))

    return ConsistencyModel(as_denoiser(shrink, "x0", EDM(), (2,), name="exact"))


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_reference_map_of_a_gaussian_is_its_scaling(path):
    # x_r / x_t = std(r) / std(t) with std^2 = alpha^2 S^2 + sigma^2; Heun's 400 steps over 10 e-folds err by about 1e-4.
    flow = as_flow_map(gaussian(path), 400)
    t, r = path.time_at(40.0), path.time_at(0.7)
    std = [math.hypot(path.at(s)[0] * S, path.at(s)[1]) for s in (t, r)]
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(flow.jump(x, t, r), x * std[1] / std[0], rtol=1e-3, atol=0)


def test_reference_map_converges_with_the_square_of_its_steps():
    x, exact = torch.ones(1, 2, dtype=torch.float64), S / math.sqrt(S**2 + 1600)
    errors = [abs(float(as_flow_map(gaussian(), n).jump(x, 40.0, 0.0)[0, 0]) / exact - 1) for n in (50, 100, 200)]
    orders = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert all(1.7 < order < 2.3 for order in orders), errors


def test_reference_map_takes_times_by_sample_and_stays_where_it_is():
    flow, x = as_flow_map(gaussian(), 50), torch.randn(3, 2, dtype=torch.float64)
    together = flow.jump(x, torch.tensor([40.0, 5.0, 2.0]), torch.tensor([1.0, 0.0, 2.0]))
    alone = torch.cat([flow.jump(x[i : i + 1], t, r) for i, (t, r) in enumerate([(40.0, 1.0), (5.0, 0.0), (2.0, 2.0)])])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(together[2], x[2])
    with pytest.raises(BadValue, match="r <= t"):
        flow.jump(x, 1.0, 2.0)


def test_flow_maps_are_returned_as_they_are():
    flow = as_flow_map(gaussian())
    assert isinstance(flow, FlowMap) and as_flow_map(flow) is flow


def test_composition_of_reference_maps_is_one_map():
    # Heun's error at 400 steps per leg, as above.
    flow, x = (
        as_flow_map(Oracle(GaussianMixture(torch.tensor([[-1.0, 0], [1, 0.5]]), 0.3)), 400),
        torch.randn(8, 2).double() * 20,
    )
    torch.testing.assert_close(
        flow.jump(flow.jump(x, 20.0, 1.5), 1.5, 0.1), flow.jump(x, 20.0, 0.1), rtol=1e-3, atol=1e-3
    )


def test_consistency_model_jumps_to_the_data_only():
    model = exact_map()
    x = torch.ones(2, 2, dtype=torch.float64)
    assert torch.equal(model.jump(x, 3.0, 0.0), model.denoise(x, 3.0))
    assert torch.equal(model.jump(x, 3.0, torch.zeros(2)), model.denoise(x, 3.0))
    for r in (1.0, torch.tensor([0.0, 1.0])):
        with pytest.raises(BadValue, match="jump"):
            model.jump(x, 3.0, r)


@pytest.mark.parametrize("sigma_min", [0.002, 0.1])
def test_boundary_condition_holds_for_random_weights(sigma_min):
    net = MLP(2, 16, 1)
    torch.nn.init.normal_(net.out.weight)
    pre = ConsistencyPrecondition(0.5, sigma_min)
    model = ConsistencyModel(Preconditioned(net, EDM(), pre, shape=(2,), t_range=(sigma_min, 80.0))).requires_grad_(
        False
    )
    x = torch.randn(64, 2, dtype=torch.float64)
    for t in (sigma_min, torch.full((64,), sigma_min, dtype=torch.float64)):
        assert float((model.denoise(x, t) - x).abs().max()) < 1e-12
    assert float((model.denoise(x, 1.0) - x).abs().max()) > 1e-3


@pytest.mark.parametrize("mid", [(), (0.8,), (5.0, 0.3)])
@pytest.mark.parametrize("sigma_min", [0.0, 0.3])
def test_samples_of_the_exact_map_have_the_exact_spread(mid, sigma_min):
    # With noise of variance tau^2 - sigma_min^2 each jump starts from the marginal of tau exactly, so that every number of jumps
    # ends in N(0, S^2 + sigma_min^2); 3 standard errors of a standard deviation from n = 20 000 x 2 numbers are 1 %.
    grid = TimeGrid((80.0, *mid, 0.0))
    x = sample(exact_map(sigma_min), OdeSampler(Jump(sigma_min), grid), Seeds(range(20_000)))
    start = 80 / math.sqrt(S**2 + 80**2)  # the start leaves out the data term
    expected = math.sqrt(S**2 + sigma_min**2) * (1 if mid else start)
    assert float(x.std()) == pytest.approx(expected, rel=0.011)


def test_jumps_on_another_path_are_the_same():
    grid = TimeGrid((80.0, 0.8, 0.0))
    one = sample(exact_map(), OdeSampler(Jump(), grid), Seeds(range(8)))
    other = sample(exact_map(), OdeSampler(Jump(), grid, Trig(0.5)), Seeds(range(8)))
    torch.testing.assert_close(one, other)


def test_jump_costs_one_call_a_step_and_does_not_depend_on_the_batch():
    model, sampler = exact_map(), OdeSampler(Jump(), TimeGrid((80.0, 2.0, 0.5, 0.0)))
    whole = sample(model, sampler, Seeds(range(6)), batch=6)
    assert model.n_calls == 3  # a whole batch counts once
    assert sampler.nfe(model) == 3 and sampler.stochastic
    assert torch.equal(whole, sample(model, sampler, Seeds(range(6)), batch=4))
    with pytest.raises(BadValue, match="negative"):
        Jump(-1.0)


def test_saved_consistency_models_come_back(tmp_path):
    net = MLP(2, 16, 1)
    torch.nn.init.normal_(net.out.weight)
    inner = Preconditioned(net, EDM(), ConsistencyPrecondition(0.6, 0.002), shape=(2,), t_range=(0.002, 80.0))
    file = save_model(
        tmp_path, "mine", ConsistencyModel(inner), {"data": "moons", "knobs": {"n_steps": 2, "sigma_min": 0.8}}
    )
    back = load(file)
    assert isinstance(back, ConsistencyModel) and card(file)["kind"] == "consistency"
    x = torch.randn(5, 2, dtype=torch.float64)
    assert torch.equal(back.denoise(x, 7.0), inner.denoise(x, 7.0))
    assert SamplerKnobs.defaults(back)["sigma_min"] == 0.8


def test_knobs_of_a_flow_map():
    model = exact_map()
    knobs = SamplerKnobs.for_model(model)
    assert (knobs.solver, knobs.n_steps) == ("jump", 1)
    built, sampler = knobs.build(model)
    assert built is model and sampler.nfe(model) == 1 and "solver" in knobs.inapplicable(model)
    knobs.n_steps, knobs.sigma_min = 2, 0.8
    times = knobs.build(model)[1].grid.on(EDM())
    assert times == pytest.approx([model.sigma_range[1] if model.sigma_range[1] < 160 else 160.0, 0.8, 0.0])
    with pytest.raises(BadValue, match="choose the solver jump"):
        SamplerKnobs(solver="heun").build(model)
    fitted, notes = SamplerKnobs(solver="heun", n_steps=9).fitted(model)
    assert fitted.solver == "jump" and fitted.n_steps == 1 and "jumps" in notes[0]


def test_skip_tuning_goes_inside_a_consistency_model():
    net = UNet([1, 4, 4], 8, [1], 1, n_classes=3)
    inner = Preconditioned(
        net, EDM(), EDMPrecondition(0.5), shape=(1, 4, 4), t_range=(0.002, 80.0), n_classes=3, name="u"
    )
    knobs = SamplerKnobs(solver="jump", n_steps=1, rho_bottom=0.8)
    built, _ = knobs.build(ConsistencyModel(inner))
    assert isinstance(built, ConsistencyModel) and isinstance(built.inner, SkipTuned) and built.name == "u"
    with pytest.raises(BadValue, match="mixes denoisers"):
        SamplerKnobs(solver="jump", guidance=2.0).build(ConsistencyModel(inner))
