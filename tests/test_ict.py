"""iCT: every ingredient a switch of its own, the papers' constants, the claims that cost nothing, recipes."""

import math
from dataclasses import replace

import pytest
import torch

from explorer.data import Batch, Dataset
from explorer.errors import UnknownName
from explorer.nets.mlp import MLP
from explorer.papers import ict_claims, paper
from explorer.papers.ict import BASELINE, RECIPES, SWITCHES, Ingredients, ablation, sensitivity, without
from explorer.process.discretisation import (
    Doubling,
    LogNormalIndex,
    SquareRoot,
    TargetDecay,
    UniformIndex,
    bias_ratio,
    inverse_gap,
    karras_levels,
)
from explorer.process.losses import PseudoHuber, huber_c, squared_l2
from explorer.reproduction import Bench
from explorer.reproduction.few_steps import linear_ratio
from explorer.training import OptimizerPlan, Plan, Progress, train

CHEAP = (ict_claims.stages, ict_claims.index_law, ict_claims.centre, ict_claims.bounded, ict_claims.fixed_point)


def made(given, shape=(2,)):
    return given.training(MLP(2, 16, 1), shape, sigma_data=0.5)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_defaults_are_the_papers():
    m = made(Ingredients())
    assert m.curriculum == Doubling(10, 1280) and m.law == LogNormalIndex(-1.1, 2.0) and m.weight is inverse_gap
    assert m.distance == PseudoHuber(huber_c((2,))) and m.target is None
    recipe = paper("ict").recipe("cifar10")
    assert recipe.settings["s0"] == 10 and recipe.settings["s1"] == 1280
    assert (recipe.plan.n_steps, recipe.plan.batch_size, recipe.plan.optimizer.kind) == (400_000, 1024, "radam")
    assert recipe.sampler.grid.times == (80.0, 0.821, 0.0)
    assert paper("ict").recipe("imagenet64").sampler.grid.times == (80.0, 1.526, 0.0)


@pytest.mark.parametrize("switch", [s for s in SWITCHES if s != "slow_features"])
def test_each_switch_changes_one_thing(switch):
    on, off = made(Ingredients(s1=160)), made(without(Ingredients(s1=160), switch))
    parts = {
        "own_target": ("decay", None, TargetDecay(2, 0.9)),
        "huber": ("distance", PseudoHuber(huber_c((2,))), squared_l2),
        "gap_weight": ("weight", inverse_gap, off.weight),
        "lognormal": ("law", LogNormalIndex(), UniformIndex()),
        "doubling": ("curriculum", Doubling(10, 160), SquareRoot(2, 160)),
    }
    for name, (attribute, ours, theirs) in parts.items():
        assert getattr(on, attribute) == ours
        assert getattr(off, attribute) == (theirs if name == switch else ours)
    if switch == "gap_weight":
        assert off.weight(torch.tensor([0.1]), torch.tensor([0.3])) == 1
    assert (off.target is None) == (switch != "own_target")


def test_the_baseline_is_the_training_of_2023():
    m = made(without(Ingredients(s1=150), *BASELINE))
    assert (m.curriculum, m.law, m.distance) == (
        SquareRoot(2, 150),
        UniformIndex(),
        squared_l2,
    ) and m.decay == TargetDecay(2, 0.9)
    with pytest.raises(UnknownName, match="own_target"):
        without(Ingredients(), "lpips")


def test_the_loss_is_the_formula_with_the_weights_of_the_current_grid():
    m = made(Ingredients(s1=160))
    batch = Batch(0.5 * torch.randn(256, 2, generator=generator(1)))
    for fraction, n in ((0.0, 11), (0.99, 161)):
        update = next(m.updates(batch, Progress(0, 0, fraction, generator())))
        pair = m.pair(batch, n, generator())
        f = m.export(m.nets)
        levels = karras_levels(n)
        i = (levels[:-1].float() - pair.r[:, None]).abs().argmin(1)
        gap = (levels[1:] - levels[:-1])[i]
        delta = (f.denoise(pair.x_t, pair.t) - f.denoise(pair.x_r, pair.r)).norm(dim=1).double()
        c = 0.00054 * math.sqrt(2)
        assert update.loss.item() == pytest.approx((((delta**2 + c**2).sqrt() - c) / gap).mean().item(), rel=1e-4)
        assert update.logs["levels"] == n


def test_features_of_scale_sixteen_change_hundreds_of_times_faster():
    fast, slow, ours = (
        sensitivity(MLP(2, 64, 1, **options))
        for options in (
            {"embedding": "fourier", "embedding_scale": 16.0},
            {"embedding": "fourier", "embedding_scale": 0.02},
            {},
        )
    )
    # both are 2 pi scale |N(0, 1)| over 32 frequencies, other draws: the ratio of 800 within a factor of 2
    assert 400 < fast / slow < 1600 and ours < 0.1 * fast


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("check", CHEAP, ids=lambda c: c.__name__)
def test_claims_about_its_parts_hold(check, seed):
    verdict = check(Bench(seed=seed))
    assert verdict.holds, f"{verdict.measured} against {verdict.threshold:g}; {verdict.text}"


@pytest.mark.slow
@pytest.mark.parametrize("claim", ict_claims.CLAIMS, ids=[c.check.__name__ for c in ict_claims.CLAIMS])
def test_claims_hold(claim):
    verdict = claim.check(Bench())
    assert verdict.holds, f"{claim.text}: {verdict.measured} against {verdict.threshold:g}; {verdict.text}"


def test_the_noise_of_gradients_is_bounded_and_their_bias_falls():
    """Linear f(x, s) = a(s) x, exact for x0 ~ N(0, sd^2), its gain moved: g = 2 w b x_t (f_t - f_r) with b = a.

    X = x_t and Y = f_t - f_r are jointly normal, so E (XY)^2 = EX^2 EY^2 + 2 (E XY)^2. Draws of the method against that.
    """
    sd, n = 0.5, 400_000
    method = Ingredients(huber=False).training(MLP(1, 4, 1), (1,), sigma_data=sd)
    noise, bias = [], []
    for count in (11, 81, 641):
        levels = karras_levels(count)
        p, low, high = LogNormalIndex().probabilities(levels), levels[:-1], levels[1:]
        a, b = (sd / (sd**2 + s**2).sqrt() for s in (low, high))
        of_data, of_noise = b - a, high * b - low * a  # Y = of_data x0 + of_noise eps
        covariance = of_data * sd**2 + of_noise * high
        square = (sd**2 + high**2) * (of_data**2 * sd**2 + of_noise**2) + 2 * covariance**2
        w = 2 * b / (high - low)
        bias.append(float((p * w * covariance).sum()))
        noise.append(float((p * w**2 * square).sum()) - bias[-1] ** 2)
        pair = method.pair(
            Batch(sd * torch.randn(n, 1, generator=generator(1), dtype=torch.float64)), count, generator(2)
        )
        t, r = pair.t.double(), pair.r.double()
        gain_t, gain_r = (sd / (sd**2 + s**2).sqrt() for s in (t, r))
        gap = gain_t * pair.x_t[:, 0] - gain_r * pair.x_r[:, 0]
        g = 2 * pair.weight.double() * gain_t * pair.x_t[:, 0] * gap
        spread = (g - g.mean()).square()
        assert abs(float(g.mean()) - bias[-1]) < 4 * float(g.std()) / math.sqrt(n)
        assert abs(float(spread.mean()) - noise[-1]) < 4 * float(spread.std()) / math.sqrt(n)
    assert noise[0] < noise[1] and abs(noise[2] / noise[1] - 1) < 1e-3  # it rises, and it has arrived
    assert 7 < bias[0] / bias[1] < 9 and 7 < bias[1] / bias[2] < 9  # as 1 / N


def test_ports_with_the_positive_sign_train_at_other_levels():
    levels = karras_levels(1281)
    middle = (0.5 * (levels[1:] + levels[:-1])).log()
    right, wrong = (float((LogNormalIndex(m).probabilities(levels) * middle).sum()) for m in (-1.1, 1.1))
    assert abs(right + 1.1) < 0.1 and wrong > 0.8


def test_a_lagging_target_is_behind_after_the_same_steps():
    here, behind = (linear_ratio(6, 0.5, steps=60, batch=256, decay=mu) for mu in (None, 0.95))
    exact = bias_ratio(karras_levels(6), 0.5)
    assert abs(here / exact - 1) < 0.1 < abs(behind / exact - 1) - 0.2


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_built(name):
    recipe = paper("ict").recipe(name)
    shape, n_classes = {
        "toy": ((2,), 8), "dig": ((1, 8, 8), 10), "sha": ((3, 16, 16), 4), "cif": ((3, 32, 32), 10), "ima": ((3, 64, 64), 1000),
    }[name[:3]]  # fmt: skip
    with torch.device("meta"):
        labels = torch.zeros(1, dtype=torch.int64, device="cpu")
        m = recipe.method(Dataset(name, torch.zeros(1, *shape, device="cpu"), labels, n_classes))
        model = m.export(m.nets)
    assert model.shape == shape and model.n_classes in (0, n_classes)
    n = sum(p.numel() for p in m.nets.parameters())
    assert recipe.parameters is None or n == pytest.approx(recipe.parameters, rel=0.01)


def test_an_ablation_is_the_recipe_with_one_setting_changed():
    full, off = paper("ict").recipe("toy"), ablation("huber")
    assert {k for k in full.settings if full.settings[k] != off.settings[k]} == {"huber"}
    assert replace(off, name=full.name, method=full.method, settings=full.settings) == full


def test_a_few_steps_of_training_move_the_network_and_stay_finite():
    recipe = paper("ict").recipe("toy")
    m = made(Ingredients(s1=40))
    plan = Plan(8, 64, optimizer=OptimizerPlan(lr=1e-3, kind="radam"), emas=recipe.plan.emas, tick_steps=8)
    *_, tick = train(m, [Batch(0.5 * torch.randn(64, 2, generator=generator(k))) for k in range(8)], plan)
    assert tick.logs["skipped"] == 0 and math.isfinite(tick.logs["loss/net"])
    assert tick.levels["net"].n.sum() == 8 * 64
