"""Consistency models: boundary, the two oracles of Gaussian data, targets without gradient, the continuous limit, recipes."""

import pytest
import torch
from torch import nn

from explorer.data import Batch, Dataset, Loader
from explorer.errors import BadValue, UnknownName
from explorer.models.base import Oracle, Preconditioned
from explorer.models.bundled import load
from explorer.nets.features import FeatureNet
from explorer.nets.mlp import MLP
from explorer.nets.unet import UNet
from explorer.papers import paper
from explorer.papers.consistency_models import RECIPES, ContinuousConsistency, half_life
from explorer.process.broadcast import like
from explorer.process.discretisation import Fixed, SquareRoot, TargetDecay, bias_ratio, karras_levels
from explorer.process.losses import l1
from explorer.process.oracles import GaussianMixture
from explorer.process.paths import EDM, VP
from explorer.process.precondition import EDMPrecondition
from explorer.reproduction import few_steps
from explorer.reproduction.few_steps import linear_ratio
from explorer.reproduction.needs import FeatureDistance
from explorer.sampling.samplers import sample
from explorer.sampling.solvers import Heun, Jump
from explorer.training import EmaPlan, OptimizerPlan, Plan, Progress, train
from explorer.training import consistency as core
from explorer.training.consistency import ConsistencyTraining, Pair, consistency_model

S = 0.5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(n=1000):
    def draw(count, g):
        return S * torch.randn(count, 1, generator=g), None

    return Dataset("gaussian", draw(n, generator())[0], sigma_data=S, draw=draw)


class Noisy(MLP):
    """An MLP with dropout, so that two passes differ unless they share their masks."""

    def features(self, x, noise, cond=None):
        return nn.functional.dropout(super().features(x, noise, cond), 0.5, self.training)


def random_(net, seed=0, scale=0.3):
    """The network with all weights drawn anew, its zero-initialised last layer too."""
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=generator(seed)))
    return net


def training(net=None, shape=(2,), **settings):
    return ConsistencyTraining(net or random_(MLP(2, 16, 1)), shape=shape, sigma_data=S, **settings)


def batch(n=64, shape=(2,), labels=None):
    return Batch(S * torch.randn(n, *shape, generator=generator(5)), labels)


# The model


@pytest.mark.parametrize("net", [MLP(2, 16, 2), UNet((1, 8, 8), 8, (1, 2), 1)], ids=["mlp", "unet"])
def test_at_sigma_min_the_model_is_the_identity_for_any_weights(net):
    f = consistency_model(random_(net).requires_grad_(False), shape=net.shape, sigma_data=S)
    x = torch.randn(32, *net.shape, generator=generator())
    for t in (0.002, torch.full((32,), 0.002)):
        assert float((f.denoise(x, t) - x).abs().max()) < 1e-6
    assert float((f.denoise(x, 0.5) - x).abs().max()) > 1e-2
    without_shift = Preconditioned(net, EDM(), EDMPrecondition(S), shape=net.shape, t_range=(0.002, 80.0))
    assert float((without_shift.denoise(x, 0.002) - x).abs().max()) > 1e-6  # EDM's own coefficients miss it


def test_multistep_sampling_costs_what_it_jumps():
    sampler = paper("consistency_models").recipe("cifar10-cd").sampler
    f = consistency_model(random_(MLP(2, 16, 1)), shape=(2,), sigma_data=S)
    sample(f, sampler, range(8))
    assert sampler.grid.times == (80.0, 0.8, 0.0) and sampler.solver == Jump(sigma_min=0.002)
    assert f.n_calls == sampler.nfe(f) == 2


# The training


@pytest.mark.parametrize(("n", "settings", "solver"), [
    (6, {}, "euler"), (18, {"teacher": "exact"}, "heun"), (6, {"teacher": "exact", "teacher_step": "euler"}, "euler"),
])  # fmt: skip
def test_a_linear_model_trains_to_the_closed_form_bias(n, settings, solver):
    if "teacher" in settings:
        settings = settings | {"teacher": Oracle(GaussianMixture(torch.zeros(1, 1), S))}
    ratio = trained_ratio(n, **settings)
    # 150 steps of 1024 leave about 1 % of noise in a product of n - 1 regressions
    assert ratio == pytest.approx(bias_ratio(karras_levels(n), S, solver), rel=0.04)
    assert abs(ratio - 1) > 0.03  # and that is not the exact map


def trained_ratio(n, **settings):
    return linear_ratio(n, S, steps=150, batch=1024, **settings)


class FreshNoise(ConsistencyTraining):
    """What must not be done: the lower state with noise of its own."""

    def neighbour(self, x_t, t, r, x0, eps, labels):
        return x0 + like(r, x0) * torch.randn_like(eps)


def test_fresh_noise_in_the_lower_state_collapses_to_the_mean(monkeypatch):
    monkeypatch.setattr(few_steps, "ConsistencyTraining", FreshNoise)
    assert trained_ratio(6) < 0.3 * bias_ratio(karras_levels(6), S)


def test_the_lower_state_has_the_same_noise_and_lies_below():
    pair = training(curriculum=Fixed(18)).pair(b := batch(), 18, generator())
    assert (pair.r < pair.t).all()
    upper, lower = ((x - b.x0) / like(t, b.x0) for x, t in ((pair.x_t, pair.t), (pair.x_r, pair.r)))
    assert torch.allclose(upper, lower, atol=1e-3)  # float32: x0 of order 1 over sigma of order 0.002
    levels = karras_levels(18).float()
    assert torch.isin(pair.t, levels[1:]).all() and torch.isin(pair.r, levels[:-1]).all()


@pytest.mark.parametrize("path", [EDM(), VP()], ids=["edm", "vp"])
def test_the_teachers_step_is_the_solvers(path):
    exact = Oracle(GaussianMixture(torch.tensor([[-0.5, 0.2], [0.6, 0.0]]), 0.1))
    x = torch.randn(16, 2, generator=generator(), dtype=torch.float64)
    t, r = (torch.full((16,), v, dtype=torch.float64) for v in (2.0, 1.2))
    got = training(teacher=exact.on(path)).neighbour(x, t, r, x, x, None)
    want = Heun().step(exact, x, 2.0, 1.2, None).x
    assert torch.allclose(got, want, atol=1e-9)


def test_where_both_levels_are_one_the_loss_is_zero_with_dropout_on(monkeypatch):
    m = training(random_(Noisy(2, 16, 1)))
    m.nets.train()
    x, t = torch.randn(64, 2, generator=generator()), torch.full((64,), 1.3)
    same = Pair(x, t, x, t, torch.ones(64), None)
    assert torch.equal(m.disagreement(same), torch.zeros(64))
    monkeypatch.setattr(core, "_restore", lambda state, device: None)  # masks of their own: the test must notice
    assert float(m.disagreement(same).mean()) > 1e-3


def test_only_the_online_pass_is_differentiated():
    teacher = Preconditioned(random_(MLP(2, 16, 1), 1), EDM(), EDMPrecondition(S), shape=(2,), t_range=(0.002, 80.0))
    for settings in ({"decay": 0.9}, {}, {"decay": 0.9, "teacher": teacher}):
        m = training(**settings)
        pair = m.pair(batch(), 18, generator())
        assert not pair.x_r.requires_grad
        loss = m.disagreement(pair).mean()
        frozen = [p for name, p in m.named_parameters() if not name.startswith("nets.")]
        assert all(not p.requires_grad for p in frozen) and bool(frozen) == bool(settings)
        grads = torch.autograd.grad(loss, list(m.nets.parameters()), allow_unused=True)
        # by hand: the same with the target's answer as a constant
        aim = m.model(m.nets["net"] if m.target is None else m.target).denoise(pair.x_r, pair.r).detach()
        by_hand = (m.export(m.nets).denoise(pair.x_t, pair.t) - aim).square().mean()
        wanted = torch.autograd.grad(by_hand, list(m.nets.parameters()), allow_unused=True)
        assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(grads, wanted, strict=True) if b is not None)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_target_follows_once_a_step_by_its_schedule(accumulate):
    m = training(curriculum=SquareRoot(2, 20), decay=TargetDecay(2, 0.9))
    before, start = m.target.out.weight.clone(), m.nets["net"].out.weight.detach().clone()
    plan = Plan(1, 64, accumulate=accumulate, optimizer=OptimizerPlan(lr=0.1), emas=())
    list(train(m, [batch()], plan))
    mu = 0.9**2  # N(0) = 2, one interval
    assert not torch.equal(m.nets["net"].out.weight, start)
    assert torch.allclose(m.target.out.weight, mu * before + (1 - mu) * m.nets["net"].out.weight, atol=1e-7)


def test_a_resumed_run_has_the_same_target(tmp_path):
    def run(folder, *steps):
        for n in steps:
            m = training(decay=0.9, curriculum=Fixed(5))
            plan = Plan(n, 32, optimizer=OptimizerPlan(lr=0.05), emas=(EmaPlan(half_life=100),), checkpoint_steps=3)
            list(train(m, Loader(Dataset("d", batch(200).x0), 32), plan, folder))
        return m

    straight, resumed = run(tmp_path / "a", 6), run(tmp_path / "b", 3, 6)
    assert torch.equal(straight.target.out.weight, resumed.target.out.weight)
    assert torch.equal(straight.nets["net"].out.weight, resumed.nets["net"].out.weight)


def test_labels_reach_teacher_target_and_network_and_some_are_dropped():
    seen = []

    class Spy(MLP):
        def forward(self, x, noise, cond=None):
            seen.append(cond)
            return super().forward(x, noise, cond)

    labels = torch.arange(4000) % 3
    teacher = Preconditioned(Spy(2, 8, 1, 3), EDM(), EDMPrecondition(S), shape=(2,), t_range=(0.002, 80.0), n_classes=3)
    m = training(Spy(2, 8, 1, 3), n_classes=3, label_dropout=0.2, teacher=teacher)
    next(m.updates(batch(4000, labels=labels), Progress(0, 0, 0.0, generator())))
    assert len(seen) == 4 and all(torch.equal(seen[0], other) for other in seen)  # two teacher calls, target, network
    dropped = seen[0] == -1
    assert dropped.double().mean().item() == pytest.approx(0.2, abs=4 * (0.16 / 4000) ** 0.5)
    assert torch.equal(seen[0][~dropped], labels[~dropped])


def test_any_distance_fits_a_perceptual_one_too():
    net = FeatureNet(shape=(1, 8, 8), n_classes=3, width=8, n_features=8)
    distance = FeatureDistance(net)
    x = torch.randn(6, 1, 8, 8, generator=generator(), requires_grad=True)
    assert torch.equal(distance(x, x), torch.zeros(6))
    assert torch.autograd.grad(distance(x, x.detach() * 0.5).sum(), x)[0].abs().sum() > 0
    unet = random_(UNet((1, 8, 8), 8, (1, 2), 1))
    for d in (distance, l1):
        m = training(unet, shape=(1, 8, 8), distance=d)
        update = next(m.updates(batch(8, (1, 8, 8)), Progress(0, 0, 0.0, generator())))
        assert update.loss.requires_grad and torch.isfinite(update.loss)


def test_what_does_not_fit_is_said():
    with pytest.raises(BadValue, match="teacher makes samples"):
        training(teacher=load("oracle-digits"))
    with pytest.raises(BadValue, match="decay"):
        training(decay=1.0)
    with pytest.raises(UnknownName):
        training(teacher_step="rk4")
    with pytest.raises(UnknownName, match="digits"):
        paper("consistency_models").recipe("afhq")


# Continuous time


def gradient(loss, m):
    grads = torch.autograd.grad(loss, list(m.nets.parameters()), allow_unused=True)
    return torch.cat(
        [
            torch.zeros_like(p).flatten() if g is None else g.flatten()
            for g, p in zip(grads, m.nets.parameters(), strict=True)
        ]
    )


def at_places(m, u, x0, eps):
    """Neighbours around the places u of a grid so fine that it is nearly continuous, and its number of levels."""
    n, low, high = 100_001, 0.002 ** (1 / 7), 80.0 ** (1 / 7)
    t, r = ((low + (high - low) * (u + k / (n - 1))) ** 7 for k in (0.5, -0.5))
    x_t = x0 + like(t, x0) * eps
    return Pair(x_t, t, m.neighbour(x_t, t, r, x0, eps, None), r, torch.ones_like(t), None), n


@pytest.mark.parametrize("distil", [True, False], ids=["cd", "ct"])
def test_the_continuous_gradient_is_the_limit_of_the_discrete_one(distil):
    """Theorems 5 and 6: (N - 1) grad L_N -> grad of the pseudo-loss; Theorem 3: (N - 1)^2 L_N -> |df/dt|^2."""
    exact = Oracle(GaussianMixture(torch.tensor([[-0.5, 0.2], [0.6, 0.0]]), 0.1)) if distil else None
    settings = {"shape": (2,), "sigma_data": S, "teacher": exact}
    net = random_(MLP(2, 16, 2)).double()
    continuous, fine = ContinuousConsistency(net, **settings), ConsistencyTraining(net, **settings)
    u = torch.linspace(0.2, 0.9, 32, dtype=torch.float64)
    x0 = S * torch.randn(32, 2, generator=generator(), dtype=torch.float64)

    class There:  # the levels of this test in place of random ones
        low, high, rho = continuous.times.low, continuous.times.high, continuous.times.rho

        def sample(self, n, **draw):
            return (self.low ** (1 / 7) + (self.high ** (1 / 7) - self.low ** (1 / 7)) * u) ** 7

    continuous.times = There()
    eps = torch.randn(x0.shape, generator=generator(9), dtype=torch.float64)
    pair, n = at_places(fine, u, x0, eps)
    pseudo, speed, t = continuous.loss(Batch(x0), generator(9))
    limit = gradient(pseudo.mean(), continuous)
    discrete = (n - 1) * gradient(fine.disagreement(pair).mean(), fine)
    # the difference is of first order in 1 / N
    assert torch.allclose(limit, discrete, rtol=1e-3, atol=1e-3 * float(limit.abs().max()))
    squared = (n - 1) ** 2 * fine.disagreement(pair)
    assert torch.allclose(continuous.spacing(t) ** 2 * speed, squared, rtol=2e-3)
    if distil:
        whole = ContinuousConsistency(net, stop_gradient=False, **settings)
        whole.times = There()
        loss, _, _ = whole.loss(Batch(x0), generator(9))
        assert torch.allclose(loss, squared, rtol=2e-3)
        assert gradient(loss.mean(), whole).abs().sum() > 0


def test_a_consistent_map_does_not_change_along_its_trajectories():
    """On one Gaussian f is linear in x: with the exact gains df/dt = 0 for the teacher's slope, and not for eps."""

    class Exact(nn.Module):
        def forward(self, x, noise, cond=None):
            t = (4 * noise).exp()
            skip, out = S**2 / ((t - 0.002) ** 2 + S**2), S * (t - 0.002) / (t**2 + S**2).sqrt()
            gain = ((S**2 + 0.002**2) / (S**2 + t**2)).sqrt() - skip
            return like(gain / out * (t**2 + S**2).sqrt(), x) * x

    teacher, b = Oracle(GaussianMixture(torch.zeros(1, 1), S)), Batch(gaussian(256).x.double())
    settings = {"shape": (1,), "sigma_data": S, "stop_gradient": True}
    _, distilled, _ = ContinuousConsistency(Exact(), teacher=teacher, **settings).loss(b, generator())
    _, from_data, _ = ContinuousConsistency(Exact(), **settings).loss(b, generator())
    assert float(distilled.max()) < 1e-12 < 1e-4 < float(from_data.mean())
    with pytest.raises(BadValue, match="teacher"):
        ContinuousConsistency(Exact(), shape=(1,), sigma_data=S, stop_gradient=False)


# Recipes


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_built(name):
    recipe = paper("consistency_models").recipe(name)
    shape, n_classes = {
        "toy": ((2,), 8), "dig": ((1, 8, 8), 10), "sha": ((3, 16, 16), 4), "cif": ((3, 32, 32), 10), "ima": ((3, 64, 64), 1000),
        "lsu": ((3, 256, 256), 0),
    }[name[:3]]  # fmt: skip
    with torch.device("meta"):
        labels = torch.zeros(1, dtype=torch.int64, device="cpu") if n_classes else None
        data = Dataset(name, torch.zeros(1, *shape, device="cpu"), labels, n_classes)
        net = MLP(2) if len(shape) == 1 else UNet(shape, 8, (1, 2), 1, n_classes=n_classes)
        teacher = Preconditioned(net, EDM(), EDMPrecondition(), shape=shape, t_range=(0.002, 80.0), n_classes=n_classes)
        made = recipe.method(data, **({"teacher": teacher} if "teacher" in recipe.needs else {}))
        model = made.export(made.nets)
    assert model.shape == shape and model.sigma_range == (0.002, 80.0)
    assert recipe.ema in {ema.name for ema in recipe.plan.emas} and isinstance(recipe.sampler.solver, Jump)
    n = sum(p.numel() for p in made.nets.parameters())
    assert recipe.parameters is None or n == pytest.approx(recipe.parameters, rel=0.01)


def test_distillation_of_the_digits_starts_as_the_teacher_and_ends_frozen():
    recipe = paper("consistency_models").recipe("digits")
    teacher = load("digits")
    from explorer.data import load_dataset

    data = load_dataset("digits")
    m = recipe.method(data, teacher=teacher)
    x, labels = data.x[:32] + 3.0 * torch.randn(32, 1, 8, 8, generator=generator()), data.labels[:32]
    with torch.no_grad():
        ours, theirs = m.export(m.nets).eval().denoise(x, 3.0, labels), teacher.denoise(x, 3.0, labels)
    assert torch.allclose(ours, theirs, atol=1e-2)  # the boundary's shift of 0.002 in 3
    assert all(p.requires_grad for p in m.nets.parameters()) and not any(
        p.requires_grad for p in m.teacher.parameters()
    )


def test_paper_sized_plans_carry_the_papers_numbers():
    cd, ct = (paper("consistency_models").recipe(name) for name in ("cifar10-cd", "cifar10"))
    assert cd.settings["n"] == 18 and cd.settings["decay"] == 0.0 and ct.settings == {"s0": 2, "s1": 150, "mu0": 0.9}
    assert (cd.plan.n_steps, cd.plan.batch_size, cd.plan.optimizer.lr, cd.plan.optimizer.kind) == (
        800_000,
        512,
        4e-4,
        "radam",
    )
    assert 0.5 ** (512 / cd.plan.emas[0].half_life) == pytest.approx(0.9999)
    assert half_life(0.5, 7) == 7
