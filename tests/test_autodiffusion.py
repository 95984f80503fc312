"""AutoDiffusion: blocks left out against blocks set to zero, chains by hand, candidates in their budget, and the search itself."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from problems import Watcher, oracle
from torch import nn

from explorer.errors import BadValue, UnknownName
from explorer.metrics.features import points_space
from explorer.metrics.kernel import energy_distance
from explorer.models import ConsistencyModel, LayersLeftOut, Oracle, SkipTuned
from explorer.models.bundled import load
from explorer.nets import UNet
from explorer.nets.attention import PixelAttention
from explorer.nets.edm_blocks import EDMBlock
from explorer.nets.edm_unet import IMAGENET64_ADM, EDMUNet
from explorer.nets.unet import ResBlock
from explorer.papers import paper
from explorer.papers.autodiffusion import AutoDiffusion, Pool, random_search, sized, uniform_steps
from explorer.process import EDM, GaussianMixture
from explorer.sampling import DDIM, ChainSampler, Euler, Heun, OdeSampler, Seeds, TimeGrid, noise_levels, sample
from explorer.tuning import Budget, FunctionObjective, Layers, MetricObjective, Setting, Skips, Study
from explorer.tuning.genome import genome_of, layers_used


def alive(net: nn.Module) -> nn.Module:
    """All parameters redrawn, as last convolutions start at zero."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (p[0].numel() ** -0.5 if p.ndim > 1 else 0.3))
    return net.eval()


EDM_SMALL = {"shape": [3, 16, 16], "channels": 8, "mult": [1, 2], "blocks": 1, "attention": [8], "dropout": 0.1}
NETS = {
    "unet": lambda: UNet((1, 8, 8), 8, (1, 2), (1, 1), attention=(4, 8), n_classes=3),
    "patch": lambda: UNet((3, 16, 16), 8, (1, 2), (0, 1), patch=2),
    "ddpm++": lambda: EDMUNet(**EDM_SMALL),
    "ncsn++": lambda: EDMUNet(**EDM_SMALL, family="ncsn++"),
    "adm": lambda: EDMUNet(**EDM_SMALL, family="adm", n_classes=3),
    "ddpm": lambda: EDMUNet(**EDM_SMALL, differs={"between": "conv"}),
}


@pytest.fixture(params=NETS, name="net", scope="module")
def _net(request):
    torch.manual_seed(0)
    return alive(NETS[request.param]())


def branch(part: nn.Module) -> nn.Module:
    """The last layer of what a block adds."""
    return part.out if isinstance(part, PixelAttention) else part.conv2 if isinstance(part, ResBlock) else part.conv1


def parts_of(net):
    return [m for m in net.modules() if isinstance(m, ResBlock | EDMBlock | PixelAttention)]


@torch.no_grad()
def test_leaving_a_block_out_is_setting_its_last_layer_to_zero(net):
    """For every block; the numbers go up as the signal flows, and nothing left out is the network to the bit."""
    g = torch.Generator().manual_seed(1)
    x, noise = torch.randn(2, *net.shape, generator=g), torch.tensor([0.3])
    plain = net(x, noise)
    assert torch.equal(net(x, noise, skip_layers=()), plain) and torch.equal(
        net(x, noise, skip_layers=frozenset()), plain
    )
    parts = parts_of(net)
    assert net.n_layers == len(parts) == len(net.layer_names) == len(set(net.layer_names))
    order = []
    hooks = [branch(p).register_forward_hook(lambda m, a, out: order.append(m)) for p in parts]
    net(x, noise)
    for hook in hooks:
        hook.remove()
    for i, last in enumerate(order):
        kept = {name: p.clone() for name, p in last.named_parameters()}
        for p in last.parameters():
            p.zero_()
        want = net(x, noise)
        for name, p in last.named_parameters():
            p.copy_(kept[name])
        out = net(x, noise, skip_layers=[i])
        torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)
        assert (out - plain).abs().max() > 1e-4
    assert torch.equal(net(x, noise), plain)
    with pytest.raises(BadValue, match=f"layer {net.n_layers} does not exist"):
        net(x, noise, skip_layers=[0, net.n_layers])


def test_adm_at_64_pixels_has_the_papers_58_layers():
    with torch.device("meta"):
        net = EDMUNet(**IMAGENET64_ADM)
    ends = {"attention": "attention", "down": "resample", "up": "resample"}
    kinds = [ends.get(name.rpartition("_")[2], "residual") for name in net.layer_names]
    assert [kinds.count(kind) for kind in ("residual", "resample", "attention")] == [
        28 + 2,
        6,
        22,
    ] and net.n_layers == 58
    assert net.layer_names[0] == "64x64_down0" and net.layer_names[-1] == "64x64_up3"
    middle = [i for i, name in enumerate(net.layer_names) if "middle" in name]
    assert (
        middle == list(range(middle[0], middle[0] + 3)) and middle[0] == 12 + 9 + 3
    )  # after encoder, its attention and its halvings


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def active(net, run):
    seen = []
    hooks = [branch(p).register_forward_hook(lambda *a: seen.append(1)) for p in parts_of(net)]
    run()
    for hook in hooks:
        hook.remove()
    return len(seen)


def test_each_noise_level_leaves_out_its_own(digits):
    model = LayersLeftOut(digits, [(10.0, (7,)), (0.1, (0, 3)), (1.0, ())])
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for sigma, out in ((30.0, 1), (10.0, 1), (3.3, 1), (3.1, 0), (1.0, 0), (0.32, 0), (0.3, 2), (0.01, 2)):
        assert active(digits.net, lambda s=sigma: model.denoise(x, s)) == 8 - out  # borders at sqrt(10) and sqrt(0.1)
        assert active(digits.net, lambda s=sigma: model.denoise(x, torch.full((2,), s))) == 8 - out
    assert torch.equal(model.denoise(x, 1.0), digits.denoise(x, 1.0))
    torch.testing.assert_close(model.eps(x, torch.full((2,), 0.1)), model.eps(x, 0.1), rtol=1e-5, atol=1e-5)
    with pytest.raises(BadValue, match="different layers"):
        model.denoise(x, torch.tensor([0.1, 1.0]))


def test_layers_and_skips_go_together(digits):
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scales = [0.8, 1.0, 0.9, 1.0, 1.0]
    one = LayersLeftOut(SkipTuned(digits, scales), [(1.0, (2, 5))]).denoise(x, 1.0)
    other = SkipTuned(LayersLeftOut(digits, [(1.0, (2, 5))]), scales).denoise(x, 1.0)
    assert torch.equal(one, other) and not torch.equal(one, SkipTuned(digits, scales).denoise(x, 1.0))
    student = load("digits-cd")
    left = Layers(((1.0, (2,)),)).wrap(student)
    assert isinstance(left, ConsistencyModel) and not torch.equal(left.denoise(x, 80.0), student.denoise(x, 80.0))


@pytest.mark.parametrize(
    ("levels", "says"),
    [
        ([], "one or more"),
        ([(1.0, (8,))], "8 is none"),
        ([(1.0, ()), (1.0, (2,))], "different"),
        ([(0.0, ())], "above 0"),
    ],
)
def test_levels_that_cannot_be_are_refused(digits, levels, says):
    with pytest.raises(BadValue, match=says):
        LayersLeftOut(digits, levels)
    with pytest.raises(BadValue, match="neither"):
        LayersLeftOut(oracle(), [(1.0, ())])


def test_a_setting_with_layers_is_stored(digits):
    setting = Setting(
        OdeSampler(DDIM(), TimeGrid((9.0, 1.0, 0.0))), (Layers(((1.0, (4, 2)), (9.0, ()))), Skips((1.0,) * 5))
    )
    assert Setting.from_dict(json.loads(json.dumps(setting.to_dict()))) == setting
    assert "without layers 2 4 at σ 1" in setting.describe() and setting.nfe(digits) == 2
    assert layers_used(setting, 8) == 14
    seeds = Seeds(range(2))
    assert active(digits.net, lambda: setting.sampler.sample(setting.on(digits)[0], seeds.normal((1, 8, 8)))) == 14


# Chains


@pytest.mark.parametrize("levels", ["iddpm", "ddpm", "scaled-linear"])
def test_a_respaced_chain_keeps_the_marginals(levels):
    """The product of 1 - beta over the kept steps is the full chain's, by the recursion of the full chain."""
    table = np.array(noise_levels(levels)[::-1])
    full = 1 / (1 + table**2)
    steps = np.random.default_rng(0).choice(1000, 20, replace=False)
    chain = ChainSampler(tuple(steps.tolist()), levels)
    np.testing.assert_allclose(np.cumprod(1 - np.array(chain.betas)), full[np.sort(steps)], rtol=0, atol=1e-12)
    every = ChainSampler(tuple(range(1000)), levels)
    assert min(every.betas) > 0 and max(every.betas) <= 0.9991 and len(every.betas) == 1000
    if levels == "ddpm":
        np.testing.assert_allclose(every.betas, np.linspace(1e-4, 0.02, 1000), rtol=1e-9)


def test_ddim_on_a_chain_by_hand():
    """Song et al. 2020, Eq. 12 with eta = 0, written down with abar, from x ~ N(0, I)."""
    chain, model, noise = ChainSampler((40, 374, 127)), oracle(), Seeds(range(32)).normal((2,))
    x = noise.clone()
    for k, (sigma, abar) in enumerate(zip(chain.sigmas, chain.alpha_bars, strict=True)):
        d = model.denoise(x / math.sqrt(abar), sigma)
        eps = (x - math.sqrt(abar) * d) / math.sqrt(1 - abar)
        nxt = chain.alpha_bars[k + 1] if k < 2 else 1.0
        x = math.sqrt(nxt) * d + math.sqrt(1 - nxt) * eps
    torch.testing.assert_close(chain.sample(model, noise), x, rtol=0, atol=1e-12)
    watcher = Watcher(model)
    chain.sample(watcher, noise)
    assert watcher.asked == pytest.approx(chain.sigmas) and chain.nfe(model) == 3 == chain.n_steps(model)
    assert Setting.from_dict(Setting(chain).to_dict()) == Setting(chain)
    other = OdeSampler(DDIM(), TimeGrid((*chain.sigmas, 0.0)))  # starts from sigma eps, without the data's variance
    assert (other.sample(model, noise) - chain.sample(model, noise)).abs().max() > 0.01


def test_a_network_of_a_chain_is_asked_at_its_own_times():
    from explorer.models import Preconditioned
    from explorer.process.precondition import DDPMPrecondition

    class Times(nn.Module):
        def __init__(self):
            super().__init__()
            self.asked, self.weight = [], nn.Parameter(torch.zeros(()))

        def forward(self, x, noise, cond=None):
            self.asked.append(float(noise[0]))
            return self.weight * x

    net = Times()
    model = Preconditioned(net, EDM(), DDPMPrecondition(betas="cosine"), shape=(2,), t_range=(0.001, 100.0))
    sample(model, ChainSampler((85, 744, 137, 305)), range(2))
    assert net.asked == [744, 305, 137, 85]


@pytest.mark.parametrize("steps", [(), (3, 3), (-1, 4), (1000,)])
def test_steps_that_a_chain_has_not_are_refused(steps):
    with pytest.raises(BadValue, match="different times from 0 to 999"):
        ChainSampler(steps)
    about = ChainSampler((1, 2)).to_dict()
    with pytest.raises(BadValue, match="not those of the chain"):
        ChainSampler.from_dict({**about, "sigmas": [2.0, 1.0]})
    with pytest.raises(UnknownName, match="noise levels"):
        ChainSampler((1, 2), "magic")


# Candidates


def pools(digits):
    rng = np.random.default_rng(0)
    chain = Setting(ChainSampler(uniform_steps(5)))
    grid = Setting(OdeSampler(DDIM(), TimeGrid.karras(5, 0.002, 80.0)))
    return [Pool(genome_of(start, digits), rng, n) for start in (chain, grid) for n in (1, 8)]


def test_every_candidate_keeps_to_the_budget_and_repeats_no_step(digits):
    """Drawn, mutated, crossed, over hundreds of generations; crossing a candidate with itself must not shorten it."""
    for pool in pools(digits):
        pool.share = (0.0, 0.0) if pool.n_layers == 1 else (0.1, 0.5)
        crowd = [pool.start] + [pool.drawn() for _ in range(9)]
        for _ in range(300):
            i, j = pool.rng.integers(10, size=2)
            child = pool.crossed(pool.mutated(crowd[i], 0.25), crowd[j])
            steps = [step for step, _ in child]
            assert steps == sorted(set(steps)) and pool.cost(child) <= pool.budget
            assert all(len(set(out)) == len(out) < pool.n_layers and set(out) <= set(range(8)) for _, out in child)
            assert pool.n_layers > 1 or len(child) == 5
            crowd[i] = child
        if pool.n_layers > 1:  # what is left out pays for steps, and no room is left for a whole one
            assert max(map(len, crowd)) > 5 and all(pool.budget - pool.cost(c) < 8 for c in crowd)
        assert pool.mutated(pool.start, 0.0) == pool.start or pool.n_layers > 1
        setting = pool.genome.setting(crowd[0])
        assert genome_of(setting, digits).steps() == pytest.approx([step for step, _ in crowd[0]])


def test_a_mutation_reaches_what_is_left_out(digits):
    """The released code compared where it meant to assign, so that sets of blocks never changed."""
    pool = pools(digits)[3]
    pool.share = (0.0, 0.5)
    parent = tuple((step, (1, 4)) for step, _ in pool.start)
    kept = {step: out for step, out in parent}
    children = [pool.mutated(parent, 0.0) for _ in range(60)]
    changed = sum(kept[s] != out for child in children for s, out in child if s in kept)
    same = sum(kept[s] == out for child in children for s, out in child if s in kept)
    # both blocks stay with probability 0.75^2 = 0.56: of 300, 131 change, give or take 3 x 8.6
    assert changed + same >= 290 and 100 < changed < 165


def test_the_longer_parent_hands_on_its_tail(digits):
    pool = pools(digits)[3]
    pool.share = (0.0, 0.0)
    long = tuple((step, (0, 1, 2, 3)) for step in np.linspace(-4, 4, 10).tolist())
    short = tuple((step, ()) for step in (-3.9, -2.9))
    child = pool.crossed(short, long)
    assert child[-8:] == long[2:]  # the first two are of either


# The search


def run(model, start, goal, tuner, trials=10_000, seed=0):
    study = Study(model, start, goal, tuner, Budget(trials=trials), seed)
    return study, list(study)


FEW = AutoDiffusion(population=20, epochs=10, parents=5, mutations=10, crossovers=4)


def staircase(model, sampler, seeds):
    """Least where the steps are 100, 300, 700; each sample with an offset of its own."""
    gap = sum(abs(a - b) for a, b in zip(sampler.steps, (700, 300, 100), strict=True))
    return gap + 1e-3 * np.array(seeds.ids)


def test_the_search_comes_near_a_known_optimum_and_beats_drawing():
    start, goal = Setting(ChainSampler(uniform_steps(3))), FunctionObjective(staircase, range(8))
    found = {}
    for name, tuner in (("evolution", FEW), ("random", random_search(219))):
        runs = [run(oracle(), start, goal, tuner, seed=seed) for seed in range(3)]
        found[name] = np.median([study.best.value for study, _ in runs])
        for study, trials in runs:
            keys = [t.setting.key() for t in trials]
            assert len(keys) == len(set(keys)) == 220
            best = np.minimum.accumulate([t.value for t in trials])
            assert (np.diff(best) <= 0).all() and study.best.value == best[-1]
    # the nearest of n draws of three unordered steps is about (1000^3 / 8 n)^(1/3) = 83 away
    assert found["evolution"] < 0.5 * found["random"] and 30 < found["random"] < 150


def test_a_fixed_seed_gives_the_same_search_and_a_journal_goes_on(tmp_path):
    start, goal = Setting(ChainSampler(uniform_steps(3))), FunctionObjective(staircase, range(8))

    def study(seed, trials, journal=None):
        tuner = AutoDiffusion(population=8, epochs=3, parents=3, mutations=4, crossovers=2)
        return [t.setting for t in Study(oracle(), start, goal, tuner, Budget(trials=trials), seed, journal)]

    whole = study(1, 31)
    assert whole == study(1, 31) != study(2, 31) and len(whole) == 32
    study(1, 12, tmp_path / "j.jsonl")
    assert study(1, 31, tmp_path / "j.jsonl") == whole


def test_calls_are_those_of_the_candidates():
    model, goal = oracle(), None
    data = GaussianMixture(torch.zeros(1, 2), 1.0).sample(64, torch.Generator().manual_seed(0))[0]
    goal = MetricObjective(energy_distance(points_space(2), data), range(10, 42), labels=None)
    tuner = AutoDiffusion(population=6, epochs=2, parents=2, mutations=3, crossovers=1)
    study, trials = run(model, Setting(ChainSampler(uniform_steps(3))), goal, tuner)
    assert model.n_calls == 3 * len({t.setting.key() for t in trials}) and study.n_evals == 3 * 32 * len(trials)


def test_blocks_open_late_and_stay_in_budget(digits):
    """Nothing is left out in the first epochs; the share rises; the largest set is the share's limit."""

    def moving(model, sampler, seeds):
        return float(sum(math.sin(50 * s) for s in sampler.grid.times))

    start = Setting(OdeSampler(DDIM(), TimeGrid.karras(4, 0.002, 80.0)))
    tuner = AutoDiffusion(population=20, epochs=9, parents=5, mutations=10, crossovers=5, left_out=(0.2, 0.5))
    _, trials = run(digits, start, FunctionObjective(moving, range(2)), tuner)
    most = {}
    for trial in trials[1:]:
        assert layers_used(trial.setting, 8) <= 32
        layers = trial.setting.wrapper(Layers)
        epoch = int(trial.note.split()[1].rstrip(","))
        counts = [len(out) for _, out in layers.levels] if layers else [0]
        most[epoch] = max(most.get(epoch, 0), *counts)
        if epoch == 9 and "drawn" in trial.note:
            assert min(counts) >= 1  # a fifth of 8, rounded
    assert most[0] == 0 and most[9] == 4 and all(a <= b for a, b in itertools.pairwise(most[e] for e in sorted(most)))
    joint = [t for t in trials if t.setting.wrapper(Layers)]
    assert joint and max(t.nfe for t in trials) > 4


def test_steps_follow_the_data():
    """A search that hands out fixed steps would not notice that the data are ten times as wide."""
    tops = []
    for wide in (1.0, 10.0):
        angle = torch.arange(8) * (math.pi / 4)
        mix = GaussianMixture(0.66 * wide * torch.stack([angle.cos(), angle.sin()], 1).double(), 0.06 * wide)
        data = mix.sample(400, torch.Generator().manual_seed(0))[0]
        goal = MetricObjective(energy_distance(points_space(2), data), range(1000, 1200), labels=None)
        tuner = AutoDiffusion(population=10, epochs=5, parents=4, mutations=5, crossovers=2)
        study, trials = run(Oracle(mix), Setting(ChainSampler(uniform_steps(3))), goal, tuner)
        assert study.best.value < 0.25 * trials[0].value
        tops.append(study.best.setting.sampler.sigmas[0])
    assert tops[1] > 3 * tops[0]


def test_noise_levels_are_genes_as_well():
    """On a Gaussian, against the best of a fine lattice of two-step grids."""
    model, std = Oracle(GaussianMixture(torch.zeros(1, 2), 0.5)), 0.5

    def error(sigmas):  # Euler multiplies; the exact end of a start at sigma z has standard deviation std
        factor = sigmas[0]
        for s, t in itertools.pairwise(sigmas):
            factor *= 1 + (t - s) * s / (s * s + std * std)
        return abs(factor - std)

    def gap(m, sampler, seeds):
        ends = sampler.sample(m, Seeds(seeds.ids).normal((2,)))
        return ((ends.std() / Seeds(seeds.ids).normal((2,)).std()) - std).abs().item()

    start = Setting(OdeSampler(Euler(), TimeGrid((20.0, 1.0, 0.0))))
    tuner = AutoDiffusion(population=20, epochs=6, parents=5, mutations=12, crossovers=4)
    study, _ = run(model, start, FunctionObjective(gap, range(8)), tuner)
    assert study.best.value == pytest.approx(error(study.best.setting.sampler.grid.times), abs=1e-9)
    levels = np.exp(np.linspace(math.log(0.01), math.log(20.0), 200))
    least = min(error((a, b, 0.0)) for a, b in itertools.combinations(levels[::-1], 2))
    assert study.best.value < 1.1 * least < 0.7 * error((20.0, 1.0, 0.0))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"population": 0}, "at least one candidate"),
        ({"m_prob": 2.0}, "probabilities"),
        ({"left_out": (0.3, 0.2), "epochs": 9}, "shares of blocks"),
        ({"left_out": (0.0, 0.2), "epochs": 5}, "at least 6"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(given, says):
    with pytest.raises(BadValue, match=says):
        AutoDiffusion(**given)


def test_what_has_no_blocks_or_steps_is_refused(digits):
    goal, chain = FunctionObjective(staircase, range(4)), Setting(ChainSampler(uniform_steps(3)))
    with pytest.raises(BadValue, match="no blocks to leave out"):
        run(oracle(), chain, goal, AutoDiffusion(left_out=(0, 0.2)))
    with pytest.raises(BadValue, match="does not hold one step"):
        Pool(genome_of(chain, digits), np.random.default_rng(0), 8, budget=7)
    with pytest.raises(BadValue, match="end at sigma = 0"):
        genome_of(Setting(OdeSampler(Heun(), TimeGrid((9.0, 1.0)))), digits)
    assert sized(550) == AutoDiffusion(50, parents=10, mutations=25, crossovers=12)
    assert sized(5).population == 4


@pytest.mark.parametrize("number", [4, 7])
def test_claims_that_cost_little_hold(number):
    from explorer.reproduction import Bench

    claim = paper("autodiffusion").claims[number - 1]
    verdict = claim.check(Bench(seed=0))
    assert verdict.holds, verdict.text


def test_the_record():
    record = paper("autodiffusion")
    assert len(record.claims) == 10 and record.published[0].nfe == 4
    with pytest.raises(UnknownName, match="imagenet"):
        record.recipe("imagenet")
