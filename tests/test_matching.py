"""Distribution matching with exact scores: gradients, fixed points, isolation of networks, samples of few-step students."""

import pytest
import torch
from torch import nn

from explorer.data import Batch
from explorer.errors import BadValue
from explorer.models.base import Oracle
from explorer.nets.discriminators import ConvHead, VectorHead, head_for
from explorer.nets.mlp import MLP
from explorer.nets.unet import DIGITS_UNET, UNet
from explorer.papers.dmd2 import DMD2
from explorer.process.divergences import ForwardKL, JensenShannon, ReverseKL, SkewJensenShannon
from explorer.process.oracles import GaussianMixture
from explorer.process.paths import VP
from explorer.process.times import KarrasUniform, TimeDistribution
from explorer.training import EmaPlan, OptimizerPlan, Plan, Progress, train
from explorer.training.generators import Affine, Flat, Points, direction_cosine, mixture_stream, no_score, samples_law
from explorer.training.matching import Fakes, aside, copy_of, own_law

TARGET = GaussianMixture(torch.tensor([[-2.0], [1.5]]), torch.tensor([0.5, 0.4]), weights=torch.tensor([0.3, 0.7]))
TWO = GaussianMixture(torch.tensor([[-2.0], [2.0]]), 0.5)


class At(TimeDistribution):
    """One noise level."""

    def __init__(self, sigma):
        self.sigma = sigma

    def quantile(self, u):
        return torch.full_like(u, self.sigma)

    def pdf(self, t):
        raise NotImplementedError


def exact(student, sigma, mixture=TARGET, **settings):
    return DMD2(
        student, own_law, Oracle(mixture), sigma_data=1.0, times=At(sigma), levels=(10.0,), ratio=1, normalise=False,
        gan_weight=0.0, disc_weight=0.0, **settings,
    )  # fmt: skip


def learnt(seed=0, width=16, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DMD2(MLP(1, width, 1), MLP(1, width, 1), Oracle(TARGET), sigma_data=1.6, levels=(10.0,), **settings)


def progress(step=0, seed=0):
    return Progress(step, 0, 0.0, torch.Generator().manual_seed(seed))


# tolerance: the worst standard error of 400 000 samples is 0.006, for the forward KL's heavy weights
@pytest.mark.parametrize(
    "divergence, known",
    [
        (ReverseKL(), (-0.42109, -0.65184)),
        (ForwardKL(), (-0.04425, -1.32947)),
        (JensenShannon(), (-0.15170, -0.33717)),
        (SkewJensenShannon(0.5), (-0.30339, -0.67434)),
    ],
    ids=str,
)
def test_the_methods_own_gradient_is_the_known_one(divergence, known):
    method = exact(Affine([0.4], [0.8]), 0.7, divergence=divergence)
    batch = Batch(torch.zeros(400_000, 1))
    [update] = method.updates(batch, progress())
    student = method.nets["student"]
    found = [float(g) for g in torch.autograd.grad(update.loss, (student.a, student.b))]
    assert found == pytest.approx(known, abs=0.02)


def test_one_step_moves_the_mean_towards_the_heavier_mode():
    method = exact(Affine([0.4], [0.8]), 0.7)
    *_, tick = train(method, mixture_stream(TARGET, 256), Plan(1, 256, optimizer=OptimizerPlan(lr=0.01)))
    assert float(tick.method.nets["student"].a.detach()) > 0.4  # descent follows score_p - score_q


@pytest.mark.parametrize(
    "divergence, sigma, start, known",
    [
        (ReverseKL(), 0.5, (1.5, 0.7), (1.98, 0.54)),
        (SkewJensenShannon(0.9), 0.5, (0.3, 1.5), (0.0, 1.97)),
        (ReverseKL(), 1.0, (0.5, 1.0), (0.0, 1.9)),
    ],
    ids=str,
)
def test_training_with_exact_scores_lands_on_the_best_gaussian(divergence, sigma, start, known):
    method = exact(Affine([start[0]], [start[1]]), sigma, TWO, divergence=divergence)
    optimizer = OptimizerPlan(lr=0.05, decay="cosine")
    plan = Plan(250, 1024, optimizer=optimizer, emas=(EmaPlan(half_life=1.0, ramp_up=None),), tick_steps=250)
    *_, tick = train(method, mixture_stream(TWO, 1024), plan)
    a, b = (float(v.detach()) for v in tick.method.nets["student"].parameters())
    assert abs(abs(a) - known[0]) < 0.1 and abs(b) == pytest.approx(known[1], rel=0.05)


def test_nothing_moves_where_the_laws_agree():
    gauss = GaussianMixture(torch.tensor([[1.0]], dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64))
    method = exact(Affine([1.0], [0.6]), 0.7, gauss).double()
    x = 1.0 + 0.6 * torch.randn(1000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for sigma in (0.01, 0.3, 5.0):
        level = torch.full((1000,), sigma, dtype=torch.float64)
        delta = method.direction(x, x + sigma, level)
        assert float(delta.abs().max()) < 1e-5 / sigma**2  # b is a float32 0.6, and the score is divided by sigma^2
    other = exact(Affine([1.5], [0.6]), 0.7, gauss)
    assert float(other.direction(x.float(), x.float(), torch.full((1000,), 0.3)).abs().mean()) > 0.5


def test_the_real_score_alone_contracts_points_that_the_difference_spreads():
    start = 0.5 * torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    ring = GaussianMixture(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), 0.3)
    variance = {}
    for law in (own_law, no_score):
        times = KarrasUniform(0.05, 5.0, start=0.02, stop=0.98)
        method = DMD2(
            Points(start),
            law,
            Oracle(ring),
            sigma_data=1.0,
            times=times,
            levels=(5.0,),
            ratio=1,
            gan_weight=0.0,
            disc_weight=0.0,
        )
        plan = Plan(200, 100, optimizer=OptimizerPlan(lr=0.05), tick_steps=200)
        *_, tick = train(method, mixture_stream(ring, 100), plan)
        variance[law] = float(tick.method.nets["student"].points.detach().var(0).sum() / ring.cov().trace())
    assert 0.75 < variance[own_law] < 1.25 and variance[no_score] < 0.2  # 200 steps; 0.05 after 1 500


def test_updates_come_in_the_papers_order_and_the_student_waits_its_turn():
    method = learnt(ratio=3)
    batch = Batch(torch.randn(8, 1, generator=torch.Generator().manual_seed(0)))
    orders = [[u.on for u in method.updates(batch, progress(step))] for step in range(4)]
    guidance = ("fake_score", "disc")
    assert orders == [[("student",), guidance], [guidance], [guidance], [("student",), guidance]]


def test_each_loss_reaches_only_its_own_networks():
    method = learnt(ratio=1)
    batch = Batch(torch.randn(8, 1, generator=torch.Generator().manual_seed(0)))
    updates = method.updates(batch, progress())
    student, guidance = next(updates), next(updates)
    of = {name: tuple(net.parameters()) for name, net in method.nets.items()}
    through = torch.autograd.grad(guidance.loss, of["student"], allow_unused=True)
    assert all(g is None for g in through)  # the samples were detached
    own = torch.autograd.grad(guidance.loss, of["fake_score"] + of["disc"], allow_unused=True)
    assert all(g is not None for g in own)
    gradient = torch.autograd.grad(student.loss, of["student"], allow_unused=True)
    assert any(g is not None and float(g.abs().max()) > 0 for g in gradient)


def test_matching_gives_no_gradient_to_either_score_and_the_gan_gives_one_through_the_trunk():
    method, g = learnt(ratio=1), torch.Generator().manual_seed(0)
    x = torch.randn(16, 1, generator=g, requires_grad=True)
    matched = method.matching_loss(Fakes(x, None), g)
    trunk = tuple(method.nets["fake_score"].parameters())
    assert all(v is None for v in torch.autograd.grad(matched.loss.sum(), trunk, allow_unused=True, retain_graph=True))
    torch.testing.assert_close(torch.autograd.grad(matched.loss.sum(), x)[0], matched.delta)  # one feature
    realism = method.realism_loss(Fakes(x, None), KarrasUniform(0.02, 1.0), g)
    assert float(torch.autograd.grad(realism.sum(), x)[0].abs().sum()) > 0


def test_with_both_weights_zero_the_gan_leaves_no_trace_and_with_one_it_does():
    """The stream of random numbers is the same with and without a head, so runs are compared on the same noise."""

    def weights(**settings):
        method = learnt(ratio=2, **settings)
        *_, tick = train(method, mixture_stream(TARGET, 32), Plan(6, 32, optimizer=OptimizerPlan(lr=1e-3)))
        return torch.cat([p.detach().flatten() for p in tick.method.nets["student"].parameters()])

    without = weights(gan_weight=0.0, disc_weight=0.0)
    method = learnt(ratio=2, gan_weight=0.0, disc_weight=1e-2)
    batch = Batch(torch.zeros(8, 1))
    plain = learnt(ratio=2, gan_weight=0.0, disc_weight=0.0)
    first = [float(next(m.updates(batch, progress(0, 5))).loss) for m in (method, plain)]
    assert first[0] == first[1]
    assert torch.equal(without, weights(gan_weight=0.0, disc_weight=0.0))
    assert not torch.equal(without, weights(gan_weight=1.0, disc_weight=1.0))


def test_what_is_drawn_aside_leaves_the_stream_where_it_was():
    ends = []
    for n in (1, 1000):
        g = torch.Generator().manual_seed(3)
        torch.randn(n, generator=aside(g))
        ends.append(torch.randn(4, generator=g))
    assert torch.equal(*ends)


class Recorder(nn.Module):
    """A network that says 0 and remembers what it was asked."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list = []

    def forward(self, x, noise, cond=None):
        self.seen.append((x.detach().clone(), float(noise.flatten()[0].mul(4).exp()), torch.is_grad_enabled()))
        return x * self.weight


def few_step(simulate, seed):
    net = Recorder()
    levels = (80.0, 2.0, 0.5)
    method = DMD2(
        net, own_law, Oracle(TARGET), sigma_data=0.5, levels=levels, simulate=simulate, gan_weight=0.0, disc_weight=0.0
    )
    real = Batch(torch.full((2000, 1), 7.0))
    method.generate(real, torch.Generator().manual_seed(seed))
    return net.seen


def test_a_few_step_student_is_trained_on_the_states_it_makes():
    asked = {len(seen): seen for seen in (few_step(True, s) for s in range(20))}
    assert set(asked) == {1, 2, 3}  # every number of own steps occurs
    for n, seen in asked.items():
        assert [round(level, 3) for _, level, _ in seen] == [80.0, 2.0, 0.5][:n]
        assert [graph for *_, graph in seen] == [False] * (n - 1) + [True]
        x, level, _ = seen[0]
        c_in = (level**2 + 0.25) ** -0.5
        assert float((x / c_in).std()) == pytest.approx(80.0, rel=0.06)  # the top level is pure noise; 4 errors of 2000
        if n > 1:  # own samples are about 0 here, real ones are 7
            x, level, _ = seen[1]
            assert abs(float((x * (level**2 + 0.25) ** 0.5).mean())) < 1


def test_without_simulation_it_is_trained_on_noised_data_below_the_top():
    asked = {round(seen[-1][1], 3): seen for seen in (few_step(False, s) for s in range(20))}
    assert set(asked) == {80.0, 2.0, 0.5} and all(len(seen) == 1 for seen in asked.values())
    x, level, _ = asked[0.5][0]
    assert float((x * (level**2 + 0.25) ** 0.5).mean()) == pytest.approx(7.0, abs=0.1)
    x, level, _ = asked[80.0][0]
    assert abs(float((x * (level**2 + 0.25) ** 0.5).mean())) < 8  # 80 / sqrt(2000), four times


def test_labels_are_drawn_uniformly_and_reach_all_three_networks():
    labelled = GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.2, labels=torch.tensor([0, 1]))
    with torch.random.fork_rng():
        method = DMD2(
            MLP(1, 16, 1, n_classes=2), MLP(1, 16, 1, n_classes=2), Oracle(labelled), sigma_data=1.0, levels=(5.0,)
        )
    g = torch.Generator().manual_seed(0)
    batch = Batch(torch.zeros(4000, 1), torch.zeros(4000, dtype=torch.int64))
    fakes = method.generate(batch, g)
    assert float(fakes.labels.double().mean()) == pytest.approx(0.5, abs=4 * 0.5 / 4000**0.5)
    level = torch.ones(4000)
    x = fakes.x.detach()
    one, zero = (method.direction(x, x, level, torch.full((4000,), k)) for k in (1, 0))
    assert float((one - zero).abs().mean()) > 0.1
    assert all(torch.isfinite(u.loss) for u in method.updates(batch, progress()))


def test_guidance_acts_on_the_real_score_only():
    labelled = GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.2, labels=torch.tensor([0, 1]))
    x, level, label = torch.zeros(4, 1), torch.ones(4), torch.ones(4, dtype=torch.int64)
    seen = []
    for guidance in (1.0, 3.0):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            nets = MLP(1, 16, 1, n_classes=2), MLP(1, 16, 1, n_classes=2)
            method = DMD2(*nets, Oracle(labelled), sigma_data=1.0, guidance=guidance)
        with torch.no_grad():
            seen.append([m.denoise(x, level, label) for m in (method.teacher, method.fake)])
    (real, fake), (guided, unguided) = seen
    plain = Oracle(labelled).denoise(x, level)
    torch.testing.assert_close(guided, plain + 3 * (real - plain))
    assert torch.equal(fake, unguided)


def test_a_teacher_on_another_path_gives_the_same_direction():
    there = Oracle(TARGET, VP())
    student = Affine([0.4], [0.8])
    x, level = torch.linspace(-2, 2, 9)[:, None], torch.full((9,), 0.7)
    directions = [
        DMD2(student, own_law, teacher, sigma_data=1.0, gan_weight=0.0, disc_weight=0.0).direction(x, x + 0.3, level)
        for teacher in (Oracle(TARGET), there)
    ]
    torch.testing.assert_close(*directions, rtol=1e-4, atol=1e-5)


def test_settings_that_cannot_work_are_named():
    plain = {"sigma_data": 1.0, "gan_weight": 0.0, "disc_weight": 0.0}
    with pytest.raises(BadValue, match="density ratio"):
        DMD2(MLP(1, 16, 1), MLP(1, 16, 1), Oracle(TARGET), divergence=ForwardKL(), **plain)
    with pytest.raises(BadValue, match="descending"):
        DMD2(MLP(1, 16, 1), MLP(1, 16, 1), Oracle(TARGET), levels=(1.0, 2.0), **plain)
    with pytest.raises(BadValue, match="ratio is 0"):
        DMD2(MLP(1, 16, 1), MLP(1, 16, 1), Oracle(TARGET), ratio=0, **plain)
    with pytest.raises(BadValue, match="features"):
        DMD2(MLP(1, 16, 1), nn.Linear(1, 1), Oracle(TARGET), sigma_data=1.0)


def test_an_f_divergence_can_use_the_discriminators_ratio():
    method = learnt(divergence=ForwardKL(), ratio=1)
    for update in method.updates(Batch(torch.randn(16, 1, generator=torch.Generator().manual_seed(0))), progress()):
        assert torch.isfinite(update.loss)


# Heads and copies


def test_heads_fit_the_features_of_their_networks():
    g = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        for net, x in (
            (MLP(2, 16, 1), torch.randn(5, 2, generator=g)),
            (UNet(**DIGITS_UNET), torch.randn(5, 1, 8, 8, generator=g)),
        ):
            features = net.features(x, torch.zeros(5))
            assert tuple(features.shape[1:]) == net.feature_shape
            assert head_for(net)(features).shape == (5,)


def test_the_forward_pass_reads_its_own_features():
    with torch.random.fork_rng():
        net = MLP(2, 16, 1)
    nn.init.normal_(net.out.weight)
    x, noise = torch.randn(5, 2), torch.zeros(5)
    assert torch.equal(net(x, noise), net.out(net.features(x, noise)))


def test_the_head_at_the_papers_size_has_the_papers_layers():
    with torch.device("meta"):
        head = ConvHead((768, 8, 8))
    kinds = [type(layer).__name__ for layer in head.layers]
    assert kinds == ["Conv2d", "GroupNorm", "SiLU", "Conv2d", "GroupNorm", "SiLU", "Conv2d"]
    first, second = head.layers[0], head.layers[3]
    assert (first.kernel_size, first.stride, first.padding) == ((4, 4), (2, 2), (1, 1))
    assert (second.kernel_size, second.stride, head.layers[1].num_groups) == ((4, 4), (4, 4), 32)
    assert isinstance(head_for(MLP(2, 16, 1)), VectorHead)
    with pytest.raises(BadValue, match="square"):
        ConvHead((8, 4, 8))


def test_copies_train_apart_and_without_dropout():
    net = UNet(**DIGITS_UNET, dropout=0.3).requires_grad_(False)
    copy = copy_of(net)
    assert copy.config["dropout"] == 0.0 and net.config["dropout"] == 0.3
    assert all(p.requires_grad for p in copy.parameters()) and not any(p.requires_grad for p in net.parameters())
    assert all(m.p == 0 for m in copy.modules() if isinstance(m, nn.Dropout))
    assert next(copy.parameters()).data_ptr() != next(net.parameters()).data_ptr()


def test_laws_of_generators_are_those_of_their_samples():
    g = torch.Generator().manual_seed(0)
    affine = Affine([0.4, -1.0], [0.8, 0.2])
    x = affine.denoise(80.0 * torch.randn(20_000, 2, generator=g), 80.0).detach()
    x_t = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    torch.testing.assert_close(affine.law().denoise(x_t, 0.5), samples_law(x).denoise(x_t, 0.5), rtol=0, atol=0.02)
    points = Points(x[:50])
    assert torch.equal(points.denoise(torch.zeros(50, 2), 80.0), x[:50])
    with pytest.raises(BadValue, match="50 points"):
        points.denoise(torch.zeros(3, 2), 80.0)
    with pytest.raises(BadValue, match="lives on"):
        points.on(VP())
    assert torch.equal(Flat((2,)).denoise(x, 3.0), x)


def test_the_cosine_of_an_exact_fake_score_is_one():
    method, g = exact(Affine([0.4], [0.8]), 0.7), torch.Generator().manual_seed(0)
    x = 0.4 + 0.8 * torch.randn(100, 1, generator=g)
    cosine, error = direction_cosine(method, x, method.nets["student"].law(), 0.5, g)
    assert cosine == pytest.approx(1, abs=1e-5) and error < 1e-5
