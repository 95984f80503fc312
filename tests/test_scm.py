"""Continuous-time consistency models: closed forms of Gaussian data, the gradient, every switch, and starts from EDM networks."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from explorer.data import Batch, load_dataset
from explorer.errors import BadValue, UnknownName
from explorer.models.base import Oracle
from explorer.models.bundled import load
from explorer.models.flow_maps import ConsistencyModel
from explorer.nets import MLP, UNet
from explorer.nets.weighting import LogWeight
from explorer.papers import paper
from explorer.papers.scm import SCM, Stabilisers, few, plane, recipe
from explorer.papers.scm_claims import Stationary, states
from explorer.process.oracles import GaussianMixture
from explorer.process.paths import Trig
from explorer.process.times import LogNormal
from explorer.reproduction import exported, train_recipe
from explorer.sampling.samplers import sample
from explorer.sampling.seeds import Seeds
from explorer.training import Progress
from explorer.training.trigflow import LogClock, TrigFlow, student_of

SD, TIMES = 0.5, LogNormal(-1.0, 1.6)
EXACT = Oracle(GaussianMixture(torch.zeros(1, 2), SD), Trig(SD))


def method(net: nn.Module, teacher=None, shape=(2,), **stable) -> SCM:
    return SCM(net, teacher=teacher, stable=Stabilisers(**stable), sigma_data=SD, shape=shape, times=TIMES)


def stirred(net: nn.Module, dtype=torch.float64) -> nn.Module:
    torch.manual_seed(3)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net.to(dtype)


class OffCentre(nn.Module):
    """F of the exact consistency model of N(m, s^2): f = m + s (x - m cos t) / sqrt(s^2 cos^2 t + sd^2 sin^2 t)."""

    def __init__(self, mean=0.3, std=0.4):
        super().__init__()
        self.mean, self.std = nn.Parameter(torch.tensor(mean).double()), std

    def forward(self, x, t, cond=None):
        x, cos, sin = SD * x, t.cos()[:, None], t.sin()[:, None]
        f = self.mean + self.std * (x - self.mean * cos) / (self.std**2 * cos**2 + SD**2 * sin**2).sqrt()
        return (cos * x - f) / (SD * sin)


@pytest.mark.parametrize("rearranged", (True, False))
@pytest.mark.parametrize("exact", ("centred", "off-centre"))
def test_the_exact_map_of_a_gaussian_has_no_tangent(exact, rearranged):
    x, t = states(0, 200)
    net = Stationary() if exact == "centred" else OffCentre()
    mixture = GaussianMixture(torch.full((1, 2), 0.3), 0.4)
    teacher = EXACT if exact == "centred" else Oracle(mixture, Trig(SD))
    _, g = method(net, teacher, rearranged=rearranged).loss(x, t, torch.zeros_like(x))
    assert float(g.abs().max()) < 1e-10  # float64, divided by sin(0.01) once
    assert float((g / t.cos()[:, None]).abs().max()) < 1e-5  # df/dt


@pytest.mark.parametrize("wrong", ("sign of the slope", "factor sd in the tangent of t", "factor sd in J"))
def test_an_error_of_sign_or_factor_shows(wrong, monkeypatch):
    """The test above would fail, by orders of magnitude, for each of the usual mistakes."""
    from explorer.papers import scm

    x, t = states(0, 200)
    broken, true = method(OffCentre()), scm.jvp
    slope = Oracle(GaussianMixture(torch.full((1, 2), 0.3), 0.4), Trig(SD)).velocity(x, t)
    changed = {
        "sign of the slope": lambda f, p, d: true(f, p, (-d[0], d[1])),
        "factor sd in the tangent of t": lambda f, p, d: true(f, p, (d[0], SD * d[1])),
        "factor sd in J": lambda f, p, d: (true(f, p, d)[0], SD * true(f, p, d)[1]),
    }
    assert float(broken.loss(x, t, slope)[1].abs().max()) < 1e-10
    monkeypatch.setattr(scm, "jvp", changed[wrong])
    assert float(broken.loss(x, t, slope)[1].abs().max()) > 1e-2


def test_the_gradient_is_minus_two_weighted_tangents_over_the_dimension():
    net = stirred(MLP(2, 32, 2))
    x, t = states(1, 50)
    m = method(net)
    nn.init.constant_(m.nets["weight"].linear.bias, 0.7)
    seen = []
    net.register_forward_hook(lambda *args: seen.append(args[2]))
    loss, raw = m.loss(x, t, torch.randn_like(x))
    out = next(o for o in reversed(seen) if o.requires_grad)
    (gradient,) = torch.autograd.grad(loss.sum(), out)
    g = raw / (raw.norm(dim=1, keepdim=True) + 0.1)
    expected = -2 * math.exp(0.7) * g / 2
    # e^0.7 is rounded to single precision where the head is: 6e-8
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)


def test_the_loss_of_the_head_is_least_where_weighted_errors_are_one():
    m, error, t = method(Stationary()), torch.full((64,), 5.0), torch.linspace(0.1, 1.5, 64)
    head = m.nets["weight"]
    for _ in range(50):  # Newton's step in the bias alone: e^w E = 1
        with torch.no_grad():
            head.linear.bias -= (1 - 1 / (head(t).exp() * error)).mean()
    assert torch.allclose(head(t).exp() * error, torch.ones(64), atol=1e-5)
    loss = m.weigh(error, t).mean()
    slope = torch.autograd.grad(loss, list(head.parameters()))
    assert max(float(s.abs().max()) for s in slope) < 1e-5


def test_norms_warm_up_and_prior_do_what_their_names_say():
    x, t = states(2, 40)
    slope, net = torch.randn_like(x), stirred(MLP(2, 16, 2))
    raw = method(net, warmup=0).tangent(x, t, slope, None, 0)[1]
    norm = raw.norm(dim=1, keepdim=True)
    cases = {"none": raw, "clip": raw.clamp(-1, 1), "l2": raw / (norm + 0.1), "rms": raw / (norm / math.sqrt(2) + 0.1)}
    for kind, expected in cases.items():
        torch.testing.assert_close(method(net, norm=kind).normalised(raw), expected)
    first, half, full = (method(net, warmup=100).tangent(x, t, slope, None, k)[1] for k in (0, 50, 100))
    torch.testing.assert_close(full, raw)
    torch.testing.assert_close(half, 0.5 * (first + full))  # r enters linearly
    fixed = net(x / SD, t)
    torch.testing.assert_close(first, -(t.cos()[:, None] ** 2) * (SD * fixed - slope))
    plain, prior = (method(net, weighted=False, prior=p).loss(x, t, slope)[0] for p in (False, True))
    torch.testing.assert_close(prior, plain / (SD * t.tan()))


@pytest.mark.parametrize("kind", ("difference", "discrete"))
def test_other_derivatives_approach_the_forward_mode_one(kind):
    x, t = states(3, 60)
    t = t.clamp(0.1, 1.5)
    mixture = GaussianMixture(torch.full((1, 2), 0.3), 0.4)
    slope, net = Oracle(mixture, Trig(SD)).velocity(x, t), stirred(MLP(2, 16, 2))
    exact = method(net).tangent(x, t, slope, None, 10**9)[1].detach()

    def error(step: float) -> float:
        return float(
            (method(net, derivative=kind, step=step).tangent(x, t, slope, None, 10**9)[1] - exact).detach().norm()
        )

    order = math.log2(error(2e-2) / error(1e-2))
    assert abs(order - (2 if kind == "difference" else 1)) < 0.15  # the leading term at these steps


def test_rearranging_changes_nothing_but_rounding():
    x, t = states(4, 60)
    net, slope = stirred(MLP(2, 16, 2)), torch.randn_like(x)
    early, late = (method(net, rearranged=r).tangent(x, t, slope, None, 10**9)[1] for r in (True, False))
    torch.testing.assert_close(early, late, rtol=1e-10, atol=1e-12)


def test_value_and_tangent_see_the_dropout_of_the_pass_with_gradients():
    """Had they not, the loss without weight would hold |F - F-|^2 on top of the squared length of g."""
    net = stirred(UNet((1, 8, 8), 8, (1, 2), 1, dropout=0.5), torch.float32).train()
    m = method(net, shape=(1, 8, 8), weighted=False)
    x, t = SD * torch.randn(6, 1, 8, 8), torch.linspace(0.2, 1.4, 6)
    loss, raw = m.loss(x, t, torch.randn_like(x))
    expected = m.normalised(raw).square().flatten(1).mean(1)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-7)


def test_a_log_clock_is_steeper_by_one_over_sine_and_cosine():
    net = stirred(MLP(2, 16, 1))
    x, t = states(5, 30)
    clocked, c = LogClock(net, SD), (SD * t.tan()).log()
    torch.testing.assert_close(clocked(x, t), net(x, c))
    inner = torch.func.jvp(lambda s: net(x, s), (c,), (torch.ones_like(c),))[1]
    outer = torch.func.jvp(lambda s: clocked(x, s), (t,), (torch.ones_like(t),))[1]
    torch.testing.assert_close(outer, inner / (t.sin() * t.cos())[:, None])


def test_what_is_exported_is_f():
    net = stirred(MLP(2, 16, 2))
    model = method(net).export({"net": net})
    assert isinstance(model, ConsistencyModel)
    x, t = states(6, 20)
    f = t.cos()[:, None] * x - t.sin()[:, None] * SD * net(x / SD, t)
    torch.testing.assert_close(model.denoise(x, t), f)
    tiny = model.denoise(x, 1e-9)
    torch.testing.assert_close(tiny, x, rtol=0, atol=1e-7)  # f(x, 0) = x


def test_two_jumps_go_through_t_of_1_1():
    net = stirred(MLP(2, 16, 2), torch.float32)
    model = method(net).export({"net": net})
    sampler = few(SD, 2)
    high, middle, low = (math.atan(sigma / SD) for sigma in sampler.grid.times)
    assert math.isclose(high, math.atan(160)) and math.isclose(middle, 1.1) and low == 0.0
    assert sampler.nfe(model) == 2 and sampler.solver.sigma_min == 0.0
    seeds = Seeds(range(4))
    x = sample(model, sampler, seeds, labels=None)
    assert x.shape == (4, 2) and torch.equal(x, sample(model, sampler, seeds, labels=None))


@pytest.fixture(scope="module")
def teacher():
    return load("digits")


def test_a_student_of_an_edm_network_starts_as_its_teacher(teacher):
    data, sd = load_dataset("digits"), teacher.precondition.sigma_data
    times = LogNormal(-0.6, 1.4)
    net = student_of(teacher, times).eval()
    assert net.config["dropout"] == 0.0 and all(p.requires_grad for p in net.parameters())
    trig, g = teacher.on(Trig(sd)), torch.Generator().manual_seed(0)
    x0, labels = data.x[:64], data.labels[:64]
    for sigma, limit in (
        (0.05, 0.02),
        (0.6, 0.02),
        (2.0, 0.02),
        (10.0, 0.02),
        (80.0, 0.1),
    ):  # the fit thins out at the ends
        t = torch.full((64,), math.atan(sigma / sd))
        x = math.cos(t[0]) * x0 + math.sin(t[0]) * sd * torch.randn(x0.shape, generator=g)
        with torch.no_grad():
            theirs, mine = trig.velocity(x, t, labels), sd * net(x / sd, t, labels)
        assert float((mine - theirs).norm() / theirs.norm()) < limit


def test_a_student_of_anything_else_is_refused(teacher):
    from explorer.process.precondition import FlowPrecondition

    other = load("digits")
    other.precondition = FlowPrecondition()
    with pytest.raises(BadValue, match="FlowPrecondition"):
        student_of(other, TIMES)


def test_trigflow_learns_the_velocity_of_the_pair():
    net = stirred(MLP(2, 16, 1), torch.float32)
    m = TrigFlow(net, shape=(2,), sigma_data=SD, times=TIMES, weighted=False)
    batch = Batch(0.5 * torch.randn(32, 2), None)
    draws = m.draw(batch, torch.Generator().manual_seed(0))
    x, t, slope, _ = draws
    z = (x - t.cos()[:, None] * batch.x0) / t.sin()[:, None]
    torch.testing.assert_close(slope, t.cos()[:, None] * z - t.sin()[:, None] * batch.x0, rtol=1e-3, atol=1e-3)
    (update,) = m.updates(batch, Progress(0, 0, 0.0, torch.Generator().manual_seed(0)))
    expected = (net(x / SD, t) - slope / SD).square().mean(1)
    torch.testing.assert_close(update.levels[1], expected, rtol=1e-4, atol=1e-5)
    t_range = m.export(m.nets).t_range
    assert math.isclose(SD * math.tan(t_range[1]), 80.0)


@pytest.mark.parametrize("kind", ("sct", "scd"))
def test_a_short_run_moves_towards_the_exact_map(kind):
    from explorer.reproduction.few_steps import claim_seeds, exact_ends, map_error

    short = plane(kind, steps=60, warmup=20)
    short = dataclasses.replace(short, plan=dataclasses.replace(short.plan, batch_size=128, tick_steps=60))
    *_, tick = train_recipe(short)
    assert tick.logs["skipped"] == 0 and math.isfinite(tick.logs["tangent"])
    noise, t = claim_seeds(0, 256).normal((2,)), math.atan(80 / SD)
    ends = exact_ends("8gaussians", noise, n_steps=60)
    model = exported(short, tick)
    with torch.no_grad():
        error = map_error(model.denoise(math.sin(t) * SD * noise, t), ends).value
    # F = 0 gives f = x cos t = 0, which misses ends of radius 0.7 by 0.7; noise itself by more
    assert error < 0.7


def test_recipes_build_and_name_themselves():
    p = paper("scm")
    assert len(p.claims) >= 9
    for name in ("toy", "toy-8gaussians-scd", "digits", "digits-sct"):
        assert p.recipe(name).knobs["solver"] == "jump"
    assert recipe("cifar10").parameters == 55.7e6
    with pytest.raises(UnknownName, match="digits-sct"):
        p.recipe("mnist")


def test_switches_that_do_not_exist_are_named():
    with pytest.raises(UnknownName, match="rms"):
        Stabilisers(norm="l1")
    with pytest.raises(BadValue, match="positive"):
        Stabilisers(c=0.0)
    assert LogWeight(16)(torch.rand(5)).tolist() == [0.0] * 5
