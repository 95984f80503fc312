"""Autoguidance: the trees against finite differences, guidance against its formula, corruptions against what they leave alone."""

import json
import math

import numpy as np
import pytest
import torch
from test_cli import document, refusal

from explorer import viz
from explorer.data import TREES, load_dataset, oracle
from explorer.errors import BadValue, UnknownName
from explorer.models import Guided, MultiGuided, Oracle, Truncated, blended
from explorer.models.base import FunctionDenoiser
from explorer.models.bundled import load, save_model
from explorer.nets.log_density import LogDensity
from explorer.papers import autoguidance, autoguidance_claims, paper
from explorer.papers.autoguidance import Corrupted, ExactScoreMatching, NoisedScore, best_weight, compatibility
from explorer.process import EDM, GaussianMixture, Linear
from explorer.reproduction import Bench, train_recipe
from explorer.sampling import Heun, OdeSampler, TimeGrid, sample
from explorer.training import Progress


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(gain, *, n_classes=0, path=None, shift=0.0):
    """D(x) = gain x, plus `shift` times the label where one is given."""

    def function(x, t, cond):
        add = 0.0 if cond is None else shift * (cond[:, None] + 1)
        return gain * x + add

    about = {"n_classes": n_classes, "name": f"gain {gain}"}
    return FunctionDenoiser(function, "x0", path or EDM(), (2,), (1e-3, 80.0) if path is None else (0, 1), **about)


@pytest.fixture(scope="module")
def points():
    return torch.randn(6, 2, generator=generator(), dtype=torch.float64)


# Data


def test_trees_have_the_papers_moments_and_sizes():
    both = oracle("tree")
    assert torch.bincount(both.labels).tolist() == [1016, 1016]
    # printed in the paper's code as what origin and scale were chosen for
    assert both.mean().abs().max() < 0.001 and (both.cov().diagonal().sqrt() - 0.5).abs().max() < 0.001
    alone = oracle("tree-a")
    assert alone.n_components == 1016 and alone.n_classes == 0 and both.n_classes == 2
    part = both.of_class(0)
    torch.testing.assert_close(alone.means, part.means, rtol=0, atol=0)
    assert float(alone.log_weights.exp().sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", TREES)
def test_tree_samples_lie_on_the_trees(name):
    data, other = load_dataset(name), load_dataset(name, "test")
    assert (
        data.x.dtype == torch.float32 and not torch.equal(data.x, other.x) and data.n_classes == oracle(name).n_classes
    )
    x, labels = data.draw(500, generator(3))
    typical = oracle(name).log_prob(oracle(name).sample(4000, generator(5))[0]).mean()
    assert abs(float(oracle(name).log_prob(x.double()).mean() - typical)) < 0.3  # 500 values of spread 1.5
    if labels is not None:
        right = [oracle(name).of_class(k).log_prob(x.double()) for k in (0, 1)]
        assert ((right[1] > right[0]).long() == labels).double().mean() > 0.97  # the trunks touch


@pytest.mark.parametrize("sigma", [0.01, 0.1, 1.0])
def test_the_score_is_the_slope_of_the_log_density(sigma):
    mixture = oracle("tree")
    x = mixture.sample(32, generator(1))[0] + sigma * torch.randn(32, 2, generator=generator(2), dtype=torch.float64)
    y = x.clone().requires_grad_()
    [slope] = torch.autograd.grad(mixture.log_prob(y, 1.0, sigma).sum(), y)
    torch.testing.assert_close(mixture.score(x, 1.0, sigma), slope, rtol=1e-9, atol=1e-9)
    fast = NoisedScore(mixture, rows=10)(x.float(), torch.full((32,), sigma))
    torch.testing.assert_close(fast.double() / sigma, slope, rtol=1e-3, atol=1e-3 * float(slope.abs().max()))


def test_full_covariances_agree_with_sums_over_components():
    """Density and denoiser of random mixtures by solving with each covariance, which the class never forms."""
    g = generator(4)
    means, a = (
        torch.randn(5, 3, generator=g, dtype=torch.float64),
        torch.randn(5, 3, 3, generator=g, dtype=torch.float64),
    )
    covs, weights = a @ a.mT, torch.rand(5, generator=g, dtype=torch.float64)
    mixture, x, sigma = GaussianMixture(means, covs=covs, weights=weights), torch.randn(4, 3, generator=g).double(), 0.7
    noised = covs + sigma**2 * torch.eye(3)
    gap = x[:, None] - 0.8 * means  # alpha = 0.8
    noised = 0.64 * covs + sigma**2 * torch.eye(3)
    solved = torch.linalg.solve(noised, gap[..., None])[..., 0]
    log = (weights / weights.sum()).log() - 0.5 * (gap * solved).sum(-1) - 0.5 * torch.logdet(2 * math.pi * noised)
    r = log.softmax(1)
    torch.testing.assert_close(mixture.log_prob(x, 0.8, sigma), log.logsumexp(1))
    torch.testing.assert_close(mixture.score(x, 0.8, sigma), -(r[..., None] * solved).sum(1))
    inner = means + 0.8 * torch.einsum("kij,bkj->bki", covs, solved)
    torch.testing.assert_close(mixture.denoise(x, 0.8, sigma), (r[..., None] * inner).sum(1))


# The network


def test_the_network_is_the_gradient_of_its_density_in_every_mode(points):
    net = LogDensity(width=8, depth=2).double()
    torch.nn.init.constant_(net.gain, 0.7)
    sigma = torch.full((6,), 0.4, dtype=torch.float64)
    noise = (sigma / 2).log()
    h = 1e-6 * torch.eye(2, dtype=torch.float64)
    slope = torch.stack(
        [(net.log_density(points + d, noise) - net.log_density(points - d, noise)) / 2e-6 for d in h], 1
    )
    given = points.clone()
    forward = net(given, noise)
    torch.testing.assert_close(forward, 0.4 * slope.detach(), rtol=1e-6, atol=1e-8)
    assert forward.requires_grad and not given.requires_grad
    with torch.no_grad():
        off = net(points, noise[:1])
    with torch.inference_mode():
        inside = net(points.clone(), noise[:1].clone())
    assert not off.requires_grad
    torch.testing.assert_close(off, forward.detach())
    torch.testing.assert_close(inside.clone(), off)
    with pytest.raises(BadValue, match="no classes"):
        net(points, noise, torch.zeros(6, dtype=torch.int64))
    with pytest.raises(BadValue, match="points of shape"):
        net(torch.zeros(2, 3), noise[:1])


def test_at_gain_zero_it_is_the_gaussian(points):
    model = ExactScoreMatching(LogDensity(width=8), oracle("tree-a")).export({"net": LogDensity(width=8)})
    want = Oracle(GaussianMixture(torch.zeros(1, 2), 0.5))
    for sigma in (0.05, 1.0):
        torch.testing.assert_close(model.denoise(points, sigma), want.denoise(points, sigma), rtol=1e-5, atol=1e-5)


def test_renormalising_changes_no_prediction(points):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = LogDensity(width=8).double()
    torch.nn.init.constant_(net.gain, 0.7)
    with torch.no_grad():
        net.layers[1].weight.mul_(5)
    before = net(points, torch.zeros(1, dtype=torch.float64)).detach()
    net.renormalise()
    assert float(net.layers[1].weight.detach().square().mean()) == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(net(points, torch.zeros(1, dtype=torch.float64)).detach(), before, rtol=1e-3, atol=1e-4)


def test_it_can_be_kept_and_loaded(tmp_path, points):
    model = ExactScoreMatching(LogDensity(width=8), oracle("tree-a"), name="mini").export({"net": LogDensity(width=8)})
    file = save_model(tmp_path, "mini", model, {"data": "tree-a"})
    again = load(file)
    assert again.sigma_range == pytest.approx((0.002, 5.0))
    torch.testing.assert_close(again.denoise(points, 0.3), model.denoise(points, 0.3).detach(), rtol=0, atol=0)


def test_the_loss_is_zero_for_the_true_score_and_falls_in_training():
    mixture = oracle("tree-a")

    class True_(LogDensity):
        def forward(self, x, noise, cond=None):
            sigma = 2 * noise.exp()
            return sigma[:, None] * mixture.score(x, 1.0, sigma)

    x0 = mixture.sample(256, generator())[0].float()
    assert (
        float(ExactScoreMatching(True_(width=8), mixture).loss(x0, generator())[0].mean()) < 1e-5
    )  # float32 scores up to 500
    small = autoguidance.tree("mini", width=32, n_steps=200, batch=64)
    method = list(train_recipe(small, seed=0))[-1].method
    net, gaussian = method.nets["net"], ExactScoreMatching(LogDensity(width=8), mixture)  # gain 0, whatever the weights
    before, after = (float(m.loss(x0, generator())[0].mean()) for m in (gaussian, method))
    assert after < 0.9 * before
    assert all(float(layer.weight.detach().square().mean(1).sub(1).abs().max()) < 1e-3 for layer in net.layers)
    assert float(net.gain.detach()) != 0


def test_training_goes_through_the_loop_with_the_papers_numbers():
    full = paper("autoguidance").recipe("tree-full")
    assert (full.plan.n_steps, full.plan.batch_size) == (4096, 4096)
    rate = full.plan.optimizer.rate
    assert rate(Progress(0, 0, 0.0)) == pytest.approx(0.01)
    assert rate(Progress(2048, 2048 * 4096, 0.5)) == pytest.approx(0.005)
    weak = paper("autoguidance").recipe("tree-weak-full")
    assert (weak.plan.n_steps, weak.settings["width"], full.settings["width"]) == (512, 32, 64)
    with pytest.raises(UnknownName):
        paper("autoguidance").recipe("tree-of-life")


# Guidance


def test_one_guide_is_guided_and_several_add_up(points):
    main, a, b = linear(0.9), linear(0.5), linear(0.2)
    one, two = MultiGuided(main, ((a, 1.7),)), MultiGuided(main, ((a, 1.7), (b, 3.0)))
    torch.testing.assert_close(one.denoise(points, 0.5), Guided(main, 1.7, a).denoise(points, 0.5))
    torch.testing.assert_close(two.denoise(points, 0.5), (0.9 + 0.7 * (0.9 - 0.5) + 2.0 * (0.9 - 0.2)) * points)
    assert (two.calls_at(0.5), MultiGuided(main, ((a, 1.0), (b, 2.0))).calls_at(0.5)) == (3, 2)


def test_the_interval_is_in_sigma_for_numbers_and_for_tensors(points):
    two = MultiGuided(linear(0.9), ((linear(0.5), 2.0), (linear(0.2), 2.0)), (0.1, 1.0))
    sigma = torch.tensor([0.05, 0.1, 0.5, 1.0, 1.1, 9.0], dtype=torch.float64)
    together = two.denoise(points, sigma)
    one_by_one = torch.cat([two.denoise(x[None], float(s)) for x, s in zip(points, sigma, strict=True)])
    torch.testing.assert_close(together, one_by_one)
    assert [two.calls_at(float(s)) for s in sigma] == [1, 3, 3, 3, 1, 1]


def test_guides_are_asked_with_the_class_and_the_model_without(points):
    cond = torch.arange(6) % 2
    main, guide = linear(0.9, n_classes=2, shift=1.0), linear(0.5, n_classes=2, shift=10.0)
    said = MultiGuided(main, ((None, 1.5), (guide, 2.0))).denoise(points, 0.5, cond)
    d1, d0, du = main.denoise(points, 0.5, cond), guide.denoise(points, 0.5, cond), main.denoise(points, 0.5)
    torch.testing.assert_close(said, d1 + 0.5 * (d1 - du) + (d1 - d0))
    with pytest.raises(BadValue, match="needs class labels"):
        MultiGuided(main, ((None, 1.5),)).denoise(points, 0.5)


def test_blending_keeps_the_total_strength():
    for share in (0.0, 0.25, 1.0):
        w_u, w_c = blended(3.0, share)
        assert (w_u - 1) + (w_c - 1) == pytest.approx(2.0) and w_c == pytest.approx(1 + 2 * share)
    with pytest.raises(BadValue, match="between 0"):
        blended(2.0, 1.5)


@pytest.mark.parametrize(
    ("guides", "words"),
    [
        ((), "at least one guide"),
        (((None, 2.0),), "no classes"),
        (((linear(0.5), math.nan),), "finite"),
        (((Oracle(GaussianMixture(torch.zeros(1, 3), 1.0)), 2.0),), "shape"),
    ],
)
def test_bad_guides_are_refused(guides, words):
    with pytest.raises(BadValue, match=words):
        MultiGuided(linear(0.9), guides)
    with pytest.raises(BadValue, match="low <= high"):
        MultiGuided(linear(0.9), ((linear(0.5), 2.0),), (2.0, 1.0))


@pytest.mark.parametrize("path", [EDM(), Linear()], ids=lambda p: type(p).__name__)
def test_truncation_multiplies_the_score(path, points):
    base = Oracle(GaussianMixture(torch.zeros(1, 2), 0.5), path)
    t = 0.4
    torch.testing.assert_close(Truncated(base, 1.4).score(points, t), 1.4 * base.score(points, t))
    batch = torch.full((6,), t, dtype=torch.float64)
    torch.testing.assert_close(Truncated(base, 1.4).denoise(points, batch), Truncated(base, 1.4).denoise(points, t))
    with pytest.raises(BadValue, match="positive"):
        Truncated(base, 0.0)


def test_a_guide_of_linear_denoisers_recovers_the_truth_and_the_meters_say_so(points):
    """Gaussian data of variance 1; the model's estimate is off by d, the guide's by 2 d to first order: w = 2 mends it."""
    truth, main, guide = (Oracle(GaussianMixture(torch.zeros(1, 2), math.sqrt(v))) for v in (1.0, 1.05, 1.1))
    mended = Guided(main, 2.0, guide)
    off = [(m.denoise(points, 0.8) - truth.denoise(points, 0.8)).norm() for m in (guide, main, mended)]
    assert off[2] < 0.1 * off[1] < 0.1 * off[0]
    torch.testing.assert_close(compatibility(main, guide, truth, points, 0.8), torch.ones(6, dtype=torch.float64))
    wrong = Oracle(GaussianMixture(torch.zeros(1, 2), math.sqrt(0.9)))
    assert (compatibility(main, wrong, truth, points, 0.8) < 0).all()
    x0, eps = torch.randn(2, 200_000, 2, generator=generator(8), dtype=torch.float64)
    gains = [v / (v + 0.64) for v in (1.0, 1.05, 1.1)]
    exact = 1 + (gains[0] - gains[1]) / (gains[1] - gains[2])
    w = best_weight(main, guide, x0, eps, 0.8)
    assert abs(w.value - exact) < 5 * w.std_error < 1.0


# Corruptions


def test_corruptions_do_what_they_say(points):
    net = LogDensity(width=16)
    torch.nn.init.constant_(net.gain, 0.5)
    base = ExactScoreMatching(net, oracle("tree-a")).export({"net": net})
    t = 0.3
    torch.testing.assert_close(Corrupted(base).denoise(points, t), base.denoise(points, t).detach())
    noisy = Corrupted(base, noise=0.1, seed=3)
    many = torch.stack([noisy.denoise(points, t) for _ in range(400)])
    spread = (points[0] - many[:, 0]).std()
    assert float(spread) > 0 and torch.equal(Corrupted(base, noise=0.1, seed=3).denoise(points, t), many[0])
    # the mean over noise at the higher level, drawn here by other means
    eps = torch.randn(400, 6, 2, generator=generator(9), dtype=torch.float64)
    other = torch.stack([base.denoise(points + math.sqrt(0.21) * t * e, 1.1 * t).detach() for e in eps])
    error = (many.var(0) / 400 + other.var(0) / 400).sqrt()
    assert ((many.mean(0) - other.mean(0)).abs() < 5 * error).all()
    torch.manual_seed(0)
    first = torch.rand(1)
    torch.manual_seed(0)
    dropped = Corrupted(base, dropout=0.5).denoise(points, t)
    assert torch.equal(torch.rand(1), first)  # the global state is left alone
    assert not torch.equal(dropped, base.denoise(points, t)) and base.net.dropout.p == 0


# Measures, figures, command line


def test_quality_by_hand():
    x = oracle("tree-a").sample(1024, generator(31))[0]
    good = autoguidance_claims.quality(x, 5)
    assert good.outliers < 0.03 and good.coverage > 0.9 and abs(good.spread - 0.33) < 0.03
    spoilt = x.clone()
    spoilt[:512] += 3.0
    bad = autoguidance_claims.quality(spoilt, 5)
    assert 0.5 <= bad.outliers < 0.53 and bad.log_density < -9
    collapsed = autoguidance_claims.quality(
        x[:1].repeat(1024, 1) + 1e-4 * torch.randn(1024, 2, generator=generator()), 5
    )
    assert collapsed.coverage < 0.1 and collapsed.spread < 0.001


@pytest.mark.parametrize("backend", viz.canvas.BACKENDS)
def test_density_maps_are_drawn(backend):
    x = np.linspace(-1, 1, 7)
    field = -(x[:, None] ** 2) - x**2 + 5
    figure = viz.density_maps({"p": field, "q": 2 * field}, x, x, range_of=(-1, 0), caption="n = 2", backend=backend)
    if backend == "plotly":
        heat = [trace for trace in figure.data if trace.type == "heatmap"]
        assert len(heat) == 2 and all(np.nanmax(np.array(h.z)) == 0 and np.nanmin(np.array(h.z)) >= -1 for h in heat)
    with pytest.raises(BadValue, match="one value for each"):
        viz.density_maps({"p": field[:3]}, x, x, backend=backend)


def test_samples_guided_from_the_command_line(tmp_path):
    given = ("--guide", "shapes32-small", "--guide-weight", 2, "--guidance-hi", 1.0, "--n", 6, "--steps", 2)
    said = document("sample", "shapes32", *given, "--out", tmp_path / "guided.npz")
    assert (
        said["knobs"]["guide"] == "shapes32-small" and said["nfe"] == 5
    )  # one call at sigma 80, two with the guide at 0.002, twice
    sampler = OdeSampler(Heun(), TimeGrid.karras(2, 0.002, 80.0))
    want = sample(Guided(load("shapes32"), 2.0, load("shapes32-small"), (0.0, 1.0)), sampler, range(6))
    np.testing.assert_array_equal(np.load(tmp_path / "guided.npz")["x"], want.numpy())


def test_a_guide_of_something_else_than_weights_is_refused():
    assert "--what guidance" in refusal("tune", "digits", "--guide", "digits-uncond")


def test_the_weight_of_another_model_is_tuned_from_the_command_line(tmp_path):
    args = ("--what", "guidance", "--guide", "oracle-8gaussians", "--nfe", 8, "--n", 16, "--report", 16, "--budget", 4)
    said = document("tune", "oracle-8gaussians", *args, "--objective", "sw2", "--out", tmp_path / "t.json")
    tried = json.loads((tmp_path / "t.json").read_text())["history"]
    guides = {w["guide"] for row in tried for w in row["setting"]["wrappers"]}
    assert guides == {"oracle-8gaussians"} and all(cost <= 8 for cost in said["nfe"])


# Claims that cost nothing


def test_the_paper_is_listed_with_its_numbers():
    about = paper("autoguidance")
    assert (
        about.arxiv == "2406.02507" and "tree" in about.recipes and len(about.claims) == len(autoguidance_claims.CLAIMS)
    )
    values = {p.value for p in about.published}
    assert {1.25, 1.34, 1.01} <= values


def test_the_claim_about_the_data_holds():
    assert autoguidance_claims.data(Bench(seed=5)).holds
