"""2-rectified flow++: times, losses, weights and start against their formulas; the chord rule against Euler's."""

from __future__ import annotations

import json
import math

import pytest
import torch
from scipy import stats
from torch import nn

from explorer.data import Batch, load_dataset
from explorer.data.pairs import PairStore
from explorer.errors import BadValue, UnknownName
from explorer.models import bundled
from explorer.models.base import Oracle, as_denoiser
from explorer.nets.edm_unet import EDMUNet
from explorer.nets.mlp import MLP
from explorer.papers import paper, rfpp
from explorer.process.couplings import pairs_of
from explorer.process.oracles import GaussianMixture
from explorer.process.paths import EDM, VP, Linear
from explorer.process.times import Uniform
from explorer.reproduction import Bench
from explorer.sampling import Chord, Euler, OdeSampler, Seeds, TimeGrid, solve
from explorer.training import Progress

D = 2


class Fixed(nn.Module):
    """A raw network that makes the velocity a given function: F = (D - c_skip x) / c_out is solved for it."""

    def __init__(self, value: float = 0.0):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))

    def forward(self, x, noise, cond=None):
        return self.value.to(x.dtype).expand_as(x)


def method(net=None, **kw) -> rfpp.TwoRectifiedFlow:
    return rfpp.TwoRectifiedFlow(net or Fixed(), shape=(D,), sigma_data=0.5, **kw)


def batch(n: int = 256, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, D, generator=g)
    return Batch(0.3 * z + 0.1, None, z)


# times --------------------------------------------------------------------------------------------------------------


def test_times_have_the_cosh_density_on_the_mapped_range():
    t = method().draw_times(100_000, torch.Generator().manual_seed(0))
    low, high = rfpp.FLOW_RANGE
    assert t.dtype == torch.float64 and low <= float(t.min()) and float(t.max()) <= high
    u = ((t - low) / (high - low)).numpy()
    e = math.e
    cdf = lambda v: (e ** (4 * v) - e ** (4 * (1 - v)) + e**4 - 1) / (2 * (e**4 - 1))  # noqa: E731
    assert stats.kstest(u, cdf).pvalue > 0.01
    assert stats.ks_2samp(u[:50_000], 1 - u[50_000:]).pvalue > 0.01
    # the printed density e^(au) + e^(-au) is not symmetric and is told apart at once
    printed = lambda v: (e ** (4 * v) - e ** (-4 * v)) / (e**4 - e**-4)  # noqa: E731
    assert stats.kstest(u, printed).pvalue < 1e-10
    assert rfpp.times_of(0.0) == Uniform() and rfpp.times_of(4.0).a == 4.0


# losses -------------------------------------------------------------------------------------------------------------


def test_pseudo_huber_is_that_of_the_paper():
    """Per sample ((|v|^2 + c^2)^(1/2) - c) / d, c = 0.00054 d, with d the number of coordinates of an image."""
    shape = (3, 4, 4)
    m = rfpp.TwoRectifiedFlow(Fixed(), shape=shape, sigma_data=0.5)
    v, target = (
        torch.randn(5, *shape, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in (0, 1)
    )
    d, c = 48, 0.00054 * 48
    want = [
        (math.sqrt(sum(float(x) ** 2 for x in (a - b).flatten()) + c * c) - c) / d
        for a, b in zip(v, target, strict=True)
    ]
    assert m.velocity_loss(v, target).tolist() == pytest.approx(want, rel=1e-12)
    square = rfpp.TwoRectifiedFlow(Fixed(), shape=shape, sigma_data=0.5, loss="l2").velocity_loss(v, target)
    assert torch.allclose(square, (v - target).square().flatten(1).mean(1))
    with pytest.raises(UnknownName):
        method(loss="l1")
    with pytest.raises(UnknownName):
        method(config="G")
    with pytest.raises(BadValue):
        method(c=0.0)


@pytest.mark.parametrize("config", ["E", "F"])
def test_weights_of_the_two_configurations(config):
    """(1 - t) h + P or (1 - t) h + P / t, P seen at x_hat = x_t - t v."""
    seen = []

    def perceptual(x_hat, x):
        seen.append((x_hat, x))
        return torch.full((len(x),), 0.7, dtype=torch.float64)

    b, t = batch(4), torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64)
    plain, _ = method(Fixed(0.3)).loss(b.x0, b.noise, t)
    full, logs = method(Fixed(0.3), perceptual=perceptual, config=config).loss(b.x0, b.noise, t)
    want = (1 - t) * plain + (0.7 / t if config == "F" else 0.7)
    assert torch.allclose(full, want) and float(logs["perceptual"]) == pytest.approx(0.7)
    model = method(Fixed(0.3)).export({"net": Fixed(0.3)})
    x_t = torch.lerp(b.x0.double(), b.noise.double(), t[:, None])
    assert torch.allclose(seen[0][0].double(), model.denoise(x_t, t), atol=1e-6)  # D itself, in the data's float32


def test_the_loss_keeps_its_digits_at_both_ends():
    """At t = 1e-5 and 1 - 1e-5 the velocity in float32 arithmetic would be off by per cent; against 80-bit arithmetic it is not."""
    b = batch(64)
    for end in rfpp.FLOW_RANGE:
        t = torch.full((64,), end, dtype=torch.float64)
        loss, _ = method(Fixed(0.2), loss="l2").loss(b.x0, b.noise, t)
        long = lambda v: v.double().numpy().astype("longdouble")  # noqa: E731
        x0, z, a = long(b.x0), long(b.noise), 1 - long(t)[:, None]
        x_t, sigma = a * x0 + (1 - a) * z, (1 - a) / a
        total = sigma**2 + 0.25
        denoised = 0.25 / total * x_t / a + sigma * 0.5 / total**0.5 * 0.2
        want = (((x_t - denoised) / (1 - a) - (z - x0)) ** 2).mean(axis=1)
        assert loss.tolist() == pytest.approx([float(v) for v in want], rel=1e-5)


def test_stored_pairs_are_needed_and_stay_pairs():
    with pytest.raises(BadValue, match="stored pairs"):
        list(method().updates(Batch(torch.zeros(4, D)), Progress(0, 0, 0.0, torch.Generator())))

    class Truth(nn.Module):
        """F of the exact flow of the pairs (z, 0.3 z + 0.1), solved from c_in x_t and ln(sigma) / 4."""

        def forward(self, x, noise, cond=None):
            sigma = (4 * noise.double()).exp()[:, None]
            total = (sigma**2 + 0.25).sqrt()
            edm = x.double() * total  # x_t / (1 - t)
            z = (edm - 0.1) / (sigma + 0.3)
            return ((0.3 * z + 0.1 - 0.25 / total**2 * edm) / (sigma * 0.5 / total)).float()

    g, m = torch.Generator().manual_seed(0), method(Truth(), loss="l2")
    b = batch(512)
    t = m.draw_times(512, g)
    paired, _ = m.loss(b.x0, b.noise, t)
    fresh, _ = m.loss(b.x0, torch.randn(512, D, generator=g), t)
    # the network answers in float32, which (x - D) / t magnifies at the data end
    assert float(paired.median()) < 1e-8 and float(fresh.mean()) > 0.2


# start ---------------------------------------------------------------------------------------------------------------


def test_the_start_is_the_teacher_unchanged():
    """v = (x_t - D) / t with the teacher's D at sigma = t / (1 - t), at every time that the teacher knows."""
    teacher, data = bundled.load("toy-8gaussians"), load_dataset("8gaussians")
    about = rfpp.plane("8gaussians")
    begun = about.method(data, teacher=teacher)
    model = begun.export(begun.nets)
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        for t in (0.002, 0.3, 0.8, 80 / 81):
            sigma = t / (1 - t)
            want = (x - teacher.denoise(x / (1 - t), sigma)) / t
            torch.testing.assert_close(model.velocity(x, t), want, rtol=1e-4, atol=1e-4 / t)  # float32 network
    fresh = rfpp.plane("8gaussians", teacher=None).method(data)
    assert not torch.equal(fresh.nets["net"].stem.weight, begun.nets["net"].stem.weight)
    assert about.settings["init"] == "teacher" and begun.sigma_data == teacher.precondition.sigma_data


def test_switches_reach_the_method_and_the_description():
    data = load_dataset("8gaussians")
    plain = rfpp.plane("8gaussians", a=0.0, loss="l2", teacher=None)
    built = plain.method(data)
    assert built.times == Uniform() and built.loss_name == "l2" and plain.settings["init"] == "random"
    assert plain.describe() != rfpp.plane("8gaussians").describe()
    json.dumps([rfpp.recipe(n).describe() for n in rfpp.RECIPES if n != "digits-real"])
    with pytest.raises(UnknownName):
        rfpp.recipe("lsun")
    assert len(paper("rfpp").claims) > 10


def test_real_pairs_take_their_share_of_each_batch():
    fake, real = (PairStore.of(pairs_of(torch.zeros(20, D), torch.full((20, D), v))) for v in (0.0, 1.0))
    recipe = rfpp.plane("8gaussians", real=rfpp.Features(), share=0.25)
    stream = recipe.stream(None, recipe.plan, pairs=fake, real=real, teacher=None)
    assert float(stream.batch(3).x0.mean()) == 0.25 and recipe.settings["real"] == 0.25


@pytest.mark.parametrize("name", list(rfpp.SIZES))
def test_networks_have_the_size_of_the_paper(name):
    with torch.device("meta"):
        net = EDMUNet(**rfpp.SIZES[name][1])
    count = sum(p.numel() for p in net.parameters())
    assert count == pytest.approx(
        rfpp.recipe(name).parameters, rel=0.02
    )  # the paper quotes DDPM++'s count for the VE networks


def test_one_update_moves_the_student_and_tells_levels_in_sigma():
    m = method(MLP(2, width=16, depth=1))
    [update] = m.updates(batch(32), Progress(0, 0, 0.0, torch.Generator().manual_seed(0)))
    update.loss.backward()
    assert all(p.grad is not None for p in m.nets["net"].out.parameters())
    sigma, loss = update.levels
    assert torch.equal(loss.mean(), update.loss) and bool((sigma > 0).all())


# the chord rule -------------------------------------------------------------------------------------------------------


def straight(s: float = 0.4, m: float = 1.5):
    def velocity(x, t, cond):
        return (1 - s) * (x - (1 - t) * m) / (t + (1 - t) * s) - m

    return as_denoiser(velocity, "velocity", Linear(), (D,), t_range=(0.0, 1.0))


def grid(n: int, start: float = 1.0) -> TimeGrid:
    return TimeGrid(tuple(start * (1 - i / n) for i in range(n)) + (0.0,), "t")


def test_one_step_of_the_chord_rule_is_eulers_bit_for_bit():
    net = MLP(2, width=16, depth=2)
    nn.init.normal_(net.out.weight)
    from explorer.papers.rectified_flow import FlowMatching

    model, noise = FlowMatching(net, shape=(2,)).export({"net": net}), Seeds(range(64)).normal((2,))
    with torch.no_grad():
        for start in (1.0, 1 - 1e-5, 0.9):
            one, other = (OdeSampler(s, grid(1, start)).sample(model, noise) for s in (Chord(), Euler()))
            assert torch.equal(one, other)


@pytest.mark.parametrize("n", [2, 5, 64])
def test_on_straight_paths_the_chord_rule_is_eulers(n):
    noise = Seeds(range(64)).normal((D,))
    one, other = (OdeSampler(s, grid(n)).sample(straight(), noise) for s in (Chord(), Euler()))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    torch.testing.assert_close(one, 1.5 + 0.4 * noise, rtol=0, atol=1e-12)


def test_every_state_lies_between_the_prediction_and_the_first_noise_on_any_path():
    mixture = GaussianMixture(torch.tensor([[0.5, 0.0], [-0.5, 0.3]]), 0.1)
    ends = []
    for path in (Linear(), VP(), EDM()):
        model, noise = Oracle(mixture, path), Seeds(range(16)).normal((2,))
        times = TimeGrid.karras(5, 0.01, 80.0).on(path)
        seen: list = []
        watch = lambda i, t, t_next, before, step, seen=seen: seen.append((t_next, step))  # noqa: E731
        ends.append(solve(model, Chord(), path.at(times[0])[1] * noise, times, observe=watch))
        for t_next, step in seen:
            alpha, sigma, _, _ = path.at(t_next)
            torch.testing.assert_close(step.x, alpha * step.denoised + sigma * noise, rtol=1e-12, atol=1e-12)
    # made of D and the noise, it is the same on every path, but for what alpha(T) x0 leaves out at the start
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(ends[2], ends[0], rtol=0, atol=1e-9)


def test_off_straight_paths_the_chord_rule_does_not_follow_the_ode():
    model, noise = (
        Oracle(GaussianMixture(torch.tensor([[3.0, 0.0], [-3.0, 0.0]]), 0.2), Linear()),
        Seeds(range(200)).normal((2,)),
    )
    fine = OdeSampler(Euler(), grid(400, 1 - 1e-5)).sample(model, noise)
    chord, euler = (OdeSampler(s, grid(50, 1 - 1e-5)).sample(model, noise) for s in (Chord(), Euler()))
    off = [float((x - fine).square().sum(1).mean().sqrt()) for x in (chord, euler)]
    assert off[0] > 5 * off[1]


def test_the_need_for_a_published_teacher_has_a_stand_in():
    need = rfpp.Checkpoint("edm-tiny", {"shape": [3, 8, 8], "channels": 16, "mult": [1], "blocks": 1, "attention": []})
    model = Bench(rehearse=True).need(need)
    assert model.shape == (3, 8, 8) and not any(p.requires_grad for p in model.parameters())
