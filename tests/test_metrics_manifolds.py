"""Precision, recall, density, coverage, Inception Score and FID-infinity against closed forms, brute force and other libraries."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from explorer.errors import BadValue
from explorer.metrics import InceptionScore, Manifold, Reference, coverage, density, fid_infinity, precision, recall
from explorer.metrics.base import block_of
from explorer.metrics.features import FeatureSpace, points_space
from explorer.metrics.frechet import finite_sample_bias, frechet_distance
from explorer.metrics.manifolds import expected_coverage, inside, radii

FOUR = {"precision": precision, "recall": recall, "density": density, "coverage": coverage}


def normal(n, dim, seed, scale=1.0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def measured(make, x, y, **settings):
    metric = make(points_space(x.shape[1]), y, **settings)
    for piece in x.split(97):
        metric.update(piece)
    return metric


# precision, recall, density, coverage


def by_loops(x, y, k):
    """All four, point by point."""
    x, y = x.tolist(), y.tolist()

    def radius(points):
        return [sorted(math.dist(p, q) for j, q in enumerate(points) if j != i)[k - 1] for i, p in enumerate(points)]

    rx, ry = radius(x), radius(y)
    held = [[math.dist(p, q) <= r for q, r in zip(y, ry, strict=True)] for p in x]
    return {
        "precision": np.mean([any(row) for row in held]),
        "recall": np.mean([any(math.dist(q, p) <= r for p, r in zip(x, rx, strict=True)) for q in y]),
        "density": np.sum(held) / (k * len(x)),
        "coverage": np.mean(np.any(held, axis=0)),
    }


@pytest.mark.parametrize("k", [1, 3])
def test_all_four_equal_the_loops(k):
    x, y = normal(60, 3, 0), normal(47, 3, 1) + 0.4
    expected = by_loops(x, y, k)
    for name, make in FOUR.items():
        assert measured(make, x, y, k=k).compute().value == pytest.approx(expected[name], rel=1e-12), name


def test_a_point_is_not_its_own_neighbour_and_the_surface_counts():
    line = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    assert radii(line, 1).tolist() == [1, 1, 2] and radii(line, 2).tolist() == [3, 2, 3]
    found = inside(torch.tensor([[-1.0], [5.0], [5.1]], dtype=torch.float64), line, radii(line, 1))
    assert found.count.tolist() == [1, 1, 0] and found.hit.tolist() == [True, False, True]


@pytest.mark.parametrize("scale, expected", [(0.7, (0.997, 0.20)), (1.0, (0.79, 0.79)), (1.3, (0.37, 0.98))])
def test_a_narrow_generator_loses_recall_and_a_wide_one_precision(scale, expected):
    """Values simulated apart from this code, for 16 dimensions and 2000 points a side with k = 3."""
    x, y = normal(2000, 16, 2, scale), normal(2000, 16, 3)
    found = float(inside(x, y, radii(y, 3)).any.double().mean()), float(inside(y, x, radii(x, 3)).any.double().mean())
    # binomial error of 2000 points 0.011, and as much again from the balls, which are a sample themselves
    assert found == pytest.approx(expected, abs=0.045)


def test_coverage_of_equal_distributions_is_exactly_known():
    """1 - prod (m-1-i)/(n+m-1-i): the chance that none of n is among the k nearest of a real point."""
    runs = [measured(coverage, normal(40, 5, 2 * s), normal(50, 5, 2 * s + 1), k=2).compute().value for s in range(150)]
    expected = expected_coverage(40, 50, 2)
    assert expected == pytest.approx(1 - (49 * 48) / (89 * 88))
    assert abs(np.mean(runs) - expected) < 3 * np.std(runs) / math.sqrt(150)


def test_density_of_equal_distributions_is_one():
    runs = [measured(density, normal(60, 4, 2 * s), normal(60, 4, 2 * s + 1)).compute().value for s in range(100)]
    # a fresh point is the j-th nearest of a real one with equal chance for all j of n: k / n balls of n on average
    assert abs(np.mean(runs) - 1) < 3 * np.std(runs) / math.sqrt(100)


@pytest.mark.parametrize("name", FOUR)
def test_the_error_is_that_of_repeated_runs(name):
    """Fresh generated and fresh real points each time: the error covers both."""
    runs = [measured(FOUR[name], normal(120, 8, 2 * s, 1.1), normal(120, 8, 2 * s + 1)).compute() for s in range(40)]
    spread = np.std([e.value for e in runs], ddof=1)
    said = np.sqrt(np.mean([e.std_error**2 for e in runs]))
    # the spread of 40 runs is known to 11 %; recall's error is known to be too large, about twice at these numbers
    assert 0.65 < said / spread < (2.7 if name == "recall" else 1.7), (said, spread)
    assert runs[0].n == 120 and runs[0].name == f"{name}[r8]" and "real against real" in runs[0].note


def test_the_ceiling_is_what_equal_distributions_get():
    y = normal(400, 8, 0)
    metric = Manifold("precision", points_space(8), y)
    assert metric.ceiling == pytest.approx(measured(precision, y[::2], y[1::2]).compute().value, abs=0.1)
    assert 0.6 < metric.ceiling < 1


def test_merged_halves_and_pairs():
    x, y = normal(120, 3, 0), normal(90, 3, 1)
    whole, half, rest = measured(recall, x, y), measured(recall, x[:50], y), measured(recall, x[50:], y)
    half.merge(rest)
    assert half.compute() == whole.compute()
    other = measured(recall, x * 0.5, y)
    worse = other.difference(whole)
    assert worse.value < 0 and worse.differs_from() and not whole.lower_is_better
    with pytest.raises(BadValue, match="not measured in the same way"):
        whole.difference(measured(recall, x, y, k=4))


def test_bad_settings_are_refused():
    with pytest.raises(BadValue, match="precision, recall"):
        Manifold("beauty", points_space(2), normal(30, 2, 0))
    with pytest.raises(BadValue, match="at least 8 real samples"):
        precision(points_space(2), normal(7, 2, 0))
    metric = precision(points_space(2), normal(30, 2, 0))
    metric.update(normal(10, 2, 1))
    assert math.isnan(metric.compute().value) and "not enough" in metric.compute().note


@pytest.mark.parity
def test_torch_fidelity_agrees_on_precision_and_recall():
    other = pytest.importorskip("torch_fidelity.metric_prc", exc_type=(ImportError, RuntimeError))
    x, y = normal(400, 16, 0, 1.2), normal(500, 16, 1)
    theirs = other.calculate_precision_recall_full(x, y, 3)
    ours = [measured(make, x, y).compute().value for make in (precision, recall)]
    assert ours == pytest.approx(theirs, rel=1e-6)


# Inception Score


def logits_space(k):
    return FeatureSpace(f"k{k}", k, lambda x: x, "logits")


def by_formula(logits):
    p = torch.softmax(logits, 1)
    return float((p * (p.log() - p.mean(0).log())).sum(1).mean().exp())


def scored(logits, n_splits=10, batch=64):
    metric = InceptionScore(logits_space(logits.shape[1]), n_splits)
    for piece in logits.split(batch):
        metric.update(piece)
    return metric


def test_the_score_equals_the_formula_split_by_split():
    logits = normal(330, 12, 0, 2.0)
    assert scored(logits, 1).compute().value == pytest.approx(by_formula(logits), rel=1e-12)
    split = torch.from_numpy(block_of(np.arange(330), 10))
    each = [by_formula(logits[split == s]) for s in range(10)]
    found = scored(logits).compute()
    assert found.value == pytest.approx(np.mean(each), rel=1e-12)
    assert found.std_error == pytest.approx(np.std(each, ddof=1) / math.sqrt(10)) and found.n == 330
    assert scored(logits, batch=7).compute().value == pytest.approx(found.value, rel=1e-12)


def test_confident_and_balanced_answers_score_the_number_of_classes():
    k = 20
    logits = 60.0 * torch.eye(k, dtype=torch.float64).repeat(10, 1)
    assert scored(logits, 1).compute().value == pytest.approx(k, rel=1e-12)
    assert scored(torch.zeros(50, k, dtype=torch.float64)).compute().value == pytest.approx(1, rel=1e-12)
    n, runs = 200, []
    for seed in range(40):
        labels = torch.randint(0, k, (n,), generator=torch.Generator().manual_seed(seed))
        runs.append(scored(60.0 * torch.eye(k, dtype=torch.float64)[labels], 1).compute().value)
    assert np.mean(runs) == pytest.approx(k * math.exp(-(k - 1) / (2 * n)), rel=0.005)  # the bias that the note states


def test_scores_merge_and_pair():
    logits = normal(300, 6, 1)
    whole, first = scored(logits), scored(logits[:100])
    second = scored(logits[100:])
    first.merge(second)
    assert first.n == 300 and first.scores().mean() == pytest.approx(whole.scores().mean(), rel=0.02)
    sharper = scored(2 * logits)
    assert sharper.difference(whole).differs_from() and not whole.lower_is_better
    with pytest.raises(BadValue, match="not finite"):
        scored(torch.full((30, 3), torch.nan, dtype=torch.float64))


class Given(nn.Module):
    """Returns its input: features made beforehand, for libraries that want a network."""

    num_features = 24

    def forward(self, x):
        return x


@pytest.mark.parity
def test_torchmetrics_agrees_on_score_distance_and_kernel():
    pytest.importorskip("torchmetrics")
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore as Theirs
    from torchmetrics.image.kid import KernelInceptionDistance

    from explorer.metrics import Frechet, kid

    x, y = normal(500, 24, 0, 1.2), normal(600, 24, 1) + 0.1
    theirs = Theirs(Given(), splits=1)
    theirs.update(x)
    assert scored(x, 1).compute().value == pytest.approx(float(theirs.compute()[0]), rel=1e-5)  # it computes in float32

    space = FeatureSpace("given", 24, lambda s: s, "")
    fid = FrechetInceptionDistance(Given(), input_img_size=(24,)).set_dtype(torch.float64)
    fid.update(y, real=True)
    fid.update(x, real=False)
    ours = Frechet(space, Reference.of(space, y))
    ours.update(x)
    assert ours.compute("none").value == pytest.approx(float(fid.compute()), rel=1e-9)

    kernel = KernelInceptionDistance(Given(), subsets=1, subset_size=500)
    kernel.update(y[:500], real=True)
    kernel.update(x, real=False)
    mine = kid(space, y[:500])
    mine.update(x)
    assert mine.compute().value == pytest.approx(float(kernel.compute()[0]), rel=1e-4)


# FID-infinity


def exact_reference(dim):
    space = points_space(dim)
    return Reference(space.name, space.hash, 10**9, np.zeros(dim), np.eye(dim))


def test_the_intercept_is_the_true_distance_where_the_plain_one_is_not():
    """Samples of N(0.2, 1.44 I) against N(0, I): the distance is known. Over runs the line is unbiased and its error is right."""
    dim, n = 8, 400
    reference = exact_reference(dim)
    truth = frechet_distance(np.full(dim, 0.2), 1.44 * np.eye(dim), reference.mean, reference.root)
    runs = [
        fid_infinity(np.random.default_rng(s).normal(size=(n, dim)) * 1.2 + 0.2, reference, n_points=8).estimate
        for s in range(25)
    ]
    values = np.array([e.value for e in runs])
    assert abs(values.mean() - truth) < 3.5 * values.std(ddof=1) / math.sqrt(len(runs))
    assert np.mean([e.raw for e in runs]) - truth > 2.5 * values.std(ddof=1) / math.sqrt(len(runs))
    said = np.sqrt(np.mean([e.std_error**2 for e in runs]))
    assert 0.6 < said / values.std(ddof=1) < 1.7
    assert runs[0].name == "FD-infinity[r8]" and runs[0].n == n and runs[0].dof == 9


def test_the_slope_is_the_bias_formula():
    dim, n = 16, 2000
    reference = exact_reference(dim)
    slopes = [
        fid_infinity(np.random.default_rng(s).normal(size=(n, dim)), reference, sizes=(200, 400, 800)).slope
        for s in range(12)
    ]
    expected = 800 * finite_sample_bias(np.ones(dim), dim, 800)
    assert np.mean(slopes) == pytest.approx(expected, abs=3.5 * np.std(slopes) / math.sqrt(12) + 0.1 * expected)


def test_the_line_is_drawn_through_the_plain_distances():
    dim = 4
    x, reference = np.random.default_rng(0).normal(size=(600, dim)) * 1.3, exact_reference(dim)
    line = fid_infinity(torch.from_numpy(x), reference, sizes=(100, 300, 600))
    everything = frechet_distance(x.mean(0), np.cov(x.T), reference.mean, reference.root)
    assert line.n.tolist() == [100, 300, 600] and line.values[-1] == pytest.approx(everything, rel=1e-10)
    assert line.estimate.raw == pytest.approx(everything, rel=1e-10)
    fit = np.polyfit(1 / line.n, line.values, 1)
    assert (line.slope, line.estimate.value) == pytest.approx(tuple(fit)) and line.at(300) == pytest.approx(
        fit @ [1 / 300, 1]
    )


def test_too_few_samples_for_a_line_are_refused():
    reference = exact_reference(50)
    with pytest.raises(BadValue, match="three sizes above 50"):
        fid_infinity(np.zeros((60, 50)), reference)
    with pytest.raises(BadValue, match=r"\(N, 50\)"):
        fid_infinity(np.zeros((60, 49)), reference)
