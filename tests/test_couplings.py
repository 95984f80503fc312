"""Couplings against brute force, sorting, independent libraries and each other; the budget of an exact flow; reflow without training."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from explorer.errors import BadValue, UnknownName
from explorer.models import Oracle
from explorer.process import GaussianMixture, Linear
from explorer.process.couplings import (
    COUPLINGS,
    ByClass,
    ExactOT,
    Given,
    Independent,
    PartialOT,
    Sinkhorn,
    UnbalancedOT,
    coupling,
    drawn,
    pairs_of,
    squared_distances,
)
from explorer.sampling import Heun, OdeSampler, Seeds, TimeGrid
from explorer.trajectory import data_of, record, straightness
from explorer.trajectory.coupling import (
    conflict_map,
    endpoints,
    intersection,
    pair_flow,
    pairs_dataset,
    reflow,
    reflow_pairs,
    run_from,
)
from tests.problems import ring

ROUND = 1e-12  # float64 rounding of sums of some hundred numbers of order one


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clouds(n: int, dim: int = 2, seed: int = 0, m: int | None = None):
    """Standard normal noise (n, dim) and data (m, dim) of another shape and place."""
    g = generator(seed)
    noise = torch.randn(n, dim, generator=g, dtype=torch.float64)
    data = torch.randn(n if m is None else m, dim, generator=g, dtype=torch.float64)
    return noise, data.sign() + 0.3 * data


def is_permutation(i: torch.Tensor) -> bool:
    return sorted(i.tolist()) == list(range(len(i)))


# The exact matching


@settings(max_examples=25)
@given(n=st.integers(1, 6), dim=st.integers(1, 3), seed=st.integers(0, 10**6))
def test_the_exact_matching_is_the_cheapest_of_all_permutations(n, dim, seed):
    noise, data = clouds(n, dim, seed)
    i, j = ExactOT().indices(noise, data)
    assert is_permutation(i) and j.tolist() == list(range(n))
    cost = squared_distances(noise, data)
    best = min(sum(cost[p[k], k] for k in range(n)) for p in itertools.permutations(range(n)))
    assert float(ExactOT().pair(noise, data).cost.sum()) == pytest.approx(float(best), rel=ROUND)


@pytest.mark.parametrize("dim", [1, 2, 64])
@pytest.mark.parametrize("n", [60, 300])
def test_exact_ot_is_scipys_assignment_on_the_distances_of_scipy(n, dim):
    noise, data = clouds(n, dim)
    cost = cdist(noise.numpy(), data.numpy(), "sqeuclidean")
    best = cost[linear_sum_assignment(cost)].sum()
    for backend in ("auto", "scipy"):
        pairs = ExactOT(backend).pair(noise, data)
        assert float(pairs.cost.sum()) == pytest.approx(best, rel=1e-10)
        assert torch.equal(pairs.data, data)


@pytest.mark.parity
@pytest.mark.parametrize("n", [5, 130, 300])
def test_pot_and_scipy_give_the_same_matching(n):
    pytest.importorskip("ot")
    noise, data = clouds(n, 3)
    first, second = ExactOT("pot").indices(noise, data)[0], ExactOT("scipy").indices(noise, data)[0]
    assert torch.equal(first, second)  # points in general position: the optimum is unique
    assert torch.equal(*(PartialOT(0.6, backend).plan(noise, data) for backend in ("pot", "scipy")))


def test_on_the_line_exact_ot_sorts():
    noise, data = clouds(500, 1)
    i, _ = ExactOT().indices(noise, data)
    assert torch.equal(noise[i, 0].argsort(), data[:, 0].argsort())


@given(n=st.integers(2, 40), dim=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_no_batch_costs_more_under_ot_than_in_any_other_order(n, dim, seed):
    noise, data = clouds(n, dim, seed)
    cost = float(ExactOT().pair(noise, data).cost.sum())
    assert cost <= float(Independent().pair(noise, data).cost.sum()) + ROUND * n
    shuffled = noise[torch.randperm(n, generator=generator(seed))]
    assert cost == pytest.approx(float(ExactOT().pair(shuffled, data).cost.sum()), rel=1e-9)


def test_images_are_matched_as_flat_vectors_and_labels_stay_with_their_images():
    g = generator()
    noise, data = torch.randn(20, 1, 4, 4, generator=g), torch.randn(20, 1, 4, 4, generator=g)
    labels = torch.arange(20) % 3
    pairs = ExactOT().pair(noise, data, labels)
    assert pairs.noise.shape == pairs.data.shape == (20, 1, 4, 4)
    assert torch.equal(pairs.labels, labels) and torch.equal(pairs.data, data)
    flat = ExactOT().indices(noise.flatten(1), data.flatten(1))[0]
    assert torch.equal(pairs.noise, noise[flat])
    assert torch.equal(pairs.cost, (pairs.noise.double() - data.double()).flatten(1).square().sum(1))


def test_the_cost_of_a_batch_falls_with_its_size_on_average():
    """Claim of minibatch transport: E cost(n) decreases to W2^2. Means of 4096 points; the gaps are 20 standard errors and more."""
    noise, data = clouds(4096, 2)
    mean = {}
    for n in (1, 4, 16, 64, 256):
        batches = zip(noise.split(n), data.split(n), strict=True)
        mean[n] = float(torch.cat([ExactOT("scipy").pair(*b).cost for b in batches]).mean()) if n < 256 else None
    mean[256] = float(
        torch.cat([ExactOT("scipy").pair(*b).cost for b in zip(noise.split(256), data.split(256), strict=True)]).mean()
    )
    values = list(mean.values())
    assert all(a > 1.02 * b for a, b in itertools.pairwise(values)), mean


# Entropic and partial ones


@settings(max_examples=20)
@given(n=st.integers(2, 20), m=st.integers(2, 20), seed=st.integers(0, 10**6), reg=st.sampled_from([0.01, 0.3, 10.0]))
def test_sinkhorn_keeps_both_marginals_to_rounding(n, m, seed, reg):
    noise, data = clouds(n, 2, seed, m)
    plan = Sinkhorn(reg, n_iter=20).plan(noise, data)  # too few sweeps to converge: the rounding must see to it
    assert plan.shape == (n, m) and float(plan.min()) >= 0
    torch.testing.assert_close(plan.sum(1), torch.full((n,), 1 / n, dtype=torch.float64), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(plan.sum(0), torch.full((m,), 1 / m, dtype=torch.float64), rtol=1e-10, atol=1e-14)


def test_sinkhorn_goes_from_the_exact_to_the_independent_plan():
    noise, data = clouds(50)
    cost = squared_distances(noise, data)
    best = float(ExactOT().pair(noise, data).cost.mean())
    gaps = [float((Sinkhorn(reg).plan(noise, data) * cost).sum()) - best for reg in (10.0, 1.0, 0.1, 0.01, 0.001)]
    for gap, reg in zip(gaps, (10.0, 1.0, 0.1, 0.01, 0.001), strict=True):
        # cost_reg + reg KL <= best + reg ln n, as the optimal permutation has KL = ln n from the independent plan
        assert -1e-9 <= gap <= reg * math.log(50)
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 1e-3 * best
    independent = torch.full((50, 50), 1 / 2500, dtype=torch.float64)
    torch.testing.assert_close(Sinkhorn(1e6).plan(noise, data), independent, rtol=1e-4, atol=0)


def test_two_by_two_sinkhorn_is_its_closed_form():
    """P = [[p, q], [q, p]] / 2 with p / q = exp(delta / (2 reg)) * ... : cost c on the diagonal, c + d off it, p/q = exp(d / reg)."""
    noise = torch.tensor([[0.0], [1.0]])
    data = torch.tensor([[0.2], [1.2]])
    cost = squared_distances(noise, data)
    reg = 0.7
    # a plan with uniform marginals is fixed by its cross ratio, which the potentials leave alone
    cross = (cost[0, 1] + cost[1, 0] - cost[0, 0] - cost[1, 1]) / reg
    p = float(torch.sigmoid(cross / 2)) / 2
    expected = torch.tensor([[p, 0.5 - p], [0.5 - p, p]], dtype=torch.float64)
    torch.testing.assert_close(Sinkhorn(reg, tol=1e-12).plan(noise, data), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parity
def test_plans_agree_with_pot():
    ot = pytest.importorskip("ot")
    noise, data = clouds(30, 2, m=40)
    cost = squared_distances(noise, data).numpy()
    a, b = np.full(30, 1 / 30), np.full(40, 1 / 40)
    theirs = ot.sinkhorn(a, b, cost, 0.5, method="sinkhorn_log", stopThr=1e-12, numItermax=10_000)
    np.testing.assert_allclose(Sinkhorn(0.5, tol=1e-12).plan(noise, data).numpy(), theirs, rtol=1e-6, atol=1e-12)
    theirs = ot.unbalanced.sinkhorn_unbalanced(
        a, b, cost, 0.5, 1.5, reg_type="kl", stopThr=1e-14, numItermax=10_000, method="sinkhorn_stabilized"
    )
    np.testing.assert_allclose(UnbalancedOT(0.5, 1.5, tol=1e-12).plan(noise, data).numpy(), theirs, rtol=1e-5)
    noise, data = clouds(20)
    theirs = ot.partial.partial_wasserstein(
        np.full(20, 1 / 20), np.full(20, 1 / 20), squared_distances(noise, data).numpy(), m=0.6
    )
    np.testing.assert_allclose(PartialOT(0.6).plan(noise, data).numpy(), theirs, atol=1e-9)


@settings(max_examples=20)
@given(gap=st.floats(0, 3), reg=st.floats(0.05, 3), reg_m=st.floats(0.05, 10))
def test_one_unbalanced_pair_keeps_the_mass_of_its_closed_form(gap, reg, reg_m):
    """min over p of p c + reg (p ln p - p + 1) + 2 reg_m (p ln p - p + 1): p = exp(-c / (reg + 2 reg_m))."""
    plan = UnbalancedOT(reg, reg_m, tol=1e-13, n_iter=5000).plan(
        torch.zeros(1, 1), torch.full((1, 1), gap, dtype=torch.float64)
    )
    assert float(plan) == pytest.approx(math.exp(-(gap**2) / (reg + 2 * reg_m)), rel=1e-8)


def test_unbalanced_transport_leaves_an_outlier_behind_and_becomes_balanced_as_mass_gets_dear():
    noise, data = clouds(64)
    data[7] = 50.0
    kept = UnbalancedOT(0.1, 1.0).plan(noise, data).sum(0)
    assert float(kept[7]) < 1e-6 and float(kept.sum()) > 0.3
    i, j = UnbalancedOT(0.1, 1.0).indices(noise, data, None, generator())
    assert len(i) == 64 and 7 not in j
    plain = UnbalancedOT(0.5, 1e7, tol=1e-12).plan(*clouds(30))
    torch.testing.assert_close(plain, Sinkhorn(0.5, tol=1e-12).plan(*clouds(30)), rtol=1e-3, atol=1e-9)


@given(n=st.integers(2, 6), seed=st.integers(0, 10**6), data=st.data())
def test_partial_matching_is_the_cheapest_of_all_matchings_of_that_size(n, seed, data):
    kept = data.draw(st.integers(1, n))
    noise, points = clouds(n, 2, seed)
    pairs = PartialOT(kept / n).pair(noise, points)
    cost = squared_distances(noise, points)
    best = min(
        sum(float(cost[r, c]) for r, c in zip(rows, columns, strict=True))
        for columns in itertools.combinations(range(n), kept)
        for rows in itertools.permutations(range(n), kept)
    )
    assert len(pairs.cost) == kept and float(pairs.cost.sum()) == pytest.approx(best, rel=1e-9, abs=1e-12)
    i, j = PartialOT(kept / n).indices(noise, points)
    assert len(set(i.tolist())) == len(set(j.tolist())) == kept


def test_a_share_of_one_is_the_exact_matching_and_smaller_shares_drop_outliers():
    noise, data = clouds(40)
    assert torch.equal(PartialOT(1.0).pair(noise, data).noise, ExactOT().pair(noise, data).noise)
    data[3] = 99.0
    assert 3 not in PartialOT(0.95).indices(noise, data)[1]


# Drawing pairs from a plan


def test_pairs_drawn_per_data_point_use_each_once_and_follow_the_columns_of_the_plan():
    noise, data = clouds(3)
    plan = Sinkhorn(1.0).plan(noise, data)
    n, counts = 4000, torch.zeros(3, 3)
    for k in range(n):
        i, j = drawn(plan, "data", 3, generator(k))
        assert j.tolist() == [0, 1, 2]
        counts[i, j] += 1
    share = 3 * plan  # of each column
    error = (share * (1 - share) / n).sqrt()
    assert bool(((counts / n - share).abs() < 4.5 * error + 1e-9).all())


@pytest.mark.parametrize(("draw", "side"), [("data", 1), ("noise", 0)])
def test_the_side_that_is_kept_keeps_its_marginal_and_cells_with_replacement_do_not(draw, side):
    noise, data = clouds(200)
    found = Sinkhorn(0.05, draw=draw).indices(noise, data, None, generator())
    assert is_permutation(found[side])
    i, j = Sinkhorn(0.05, draw="pairs").indices(noise, data, None, generator())
    # drawing n cells with replacement leaves out about 1/e of the points of either side
    assert 0.55 < len(set(j.tolist())) / 200 < 0.72 and 0.55 < len(set(i.tolist())) / 200 < 0.72


def test_draws_repeat_with_their_generator_and_leave_the_global_one_alone(global_rng_untouched):
    noise, data = clouds(20)
    for one in (Sinkhorn(0.5), UnbalancedOT(0.5), Given(noise, data)):
        first, again = (one.pair(noise, data, None, generator(3)) for _ in range(2))
        assert torch.equal(first.noise, again.noise) and torch.equal(first.data, again.data)
        with pytest.raises(BadValue, match="generator"):
            one.pair(noise, data)


# Classes


@given(n=st.integers(1, 40), classes=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_class_conditional_transport_never_lets_a_point_leave_its_class(n, classes, seed):
    noise, data = clouds(n, 2, seed)
    labels = torch.randint(classes, (n,), generator=generator(seed))
    i, j = ByClass().indices(noise, data, labels)
    assert is_permutation(i) and torch.equal(j, torch.arange(n))
    assert torch.equal(labels[i], labels[j])
    cost = float(ByClass().pair(noise, data, labels).cost.sum())
    whole, alone = (float(c.pair(noise, data).cost.sum()) for c in (ExactOT(), Independent()))
    assert whole - 1e-9 <= cost <= alone + 1e-9


def test_a_class_keeps_its_own_noise_only_under_class_conditional_transport():
    """Two classes left and right: matched as a whole, the noise of the left class is on the left, and no longer N(0, I)."""
    noise, _ = clouds(1000)
    labels = torch.arange(1000) % 2
    data = torch.stack([4.0 * labels.double() - 2.0, torch.zeros(1000)], dim=1)
    means = {}
    for name, one in (("whole", ExactOT()), ("by class", ByClass())):
        pairs = one.pair(noise, data, labels)
        assert torch.equal(pairs.labels, labels)
        means[name] = float(pairs.noise[pairs.labels == 0, 0].mean())
    # the mean of the lower half of a normal is -sqrt(2 / pi); 500 normal draws have a mean within 4 / sqrt(500) of 0
    assert means["whole"] == pytest.approx(-math.sqrt(2 / math.pi), abs=0.1)
    assert abs(means["by class"]) < 4 / math.sqrt(500)


# Stored pairs and bad input


def test_stored_pairs_stay_pairs_and_are_drawn_without_repetition():
    noise, data = clouds(50)
    labels = torch.arange(50) % 4
    stored = Given(noise, data, labels)
    pairs = stored.draw(50, generator())
    rows = (pairs.noise[:, None] == noise[None]).all(2).float().argmax(1)
    assert is_permutation(rows) and torch.equal(pairs.data, data[rows]) and torch.equal(pairs.labels, labels[rows])
    batch = stored.pair(torch.zeros(8, 2), torch.zeros(8, 2), generator=generator())
    assert len(batch.cost) == 8 and len(stored) == 50
    with pytest.raises(BadValue, match="50 are stored"):
        stored.draw(51, generator())


def test_the_table_builds_every_coupling_by_name():
    for name in COUPLINGS:
        settings = dict(noise=torch.zeros(3, 2), data=torch.zeros(3, 2)) if name == "given" else {}
        assert type(coupling(name, **settings)) is COUPLINGS[name]
    assert coupling("sinkhorn", reg=0.3) == Sinkhorn(0.3)
    with pytest.raises(UnknownName, match="Did you mean 'sinkhorn'"):
        coupling("sinkhorm")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sinkhorn(0.0), "reg must be positive"),
        (lambda: UnbalancedOT(0.1, math.inf), "reg_m must be positive and finite"),
        (lambda: PartialOT(0.0), "share of points"),
        (lambda: ByClass(ByClass()), "rematches a batch"),
        (lambda: ByClass(Given(*clouds(3))), "rematches a batch"),
        (lambda: ExactOT().pair(*clouds(4, m=5)), "as many noise as data"),
        (lambda: ExactOT().pair(torch.zeros(4, 2), torch.zeros(4, 3)), "one feature shape"),
        (lambda: ExactOT().pair(torch.full((4, 2), math.nan), torch.zeros(4, 2)), "finite"),
        (lambda: ByClass().pair(*clouds(4)), "needs the labels"),
        (lambda: ByClass().pair(*clouds(4), torch.zeros(3)), "one label per data point"),
        (lambda: pairs_of(torch.zeros(3, 2), torch.zeros(4, 2)), "one shape"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(BadValue, match=message):
        make()
    with pytest.raises(UnknownName):
        ExactOT("gurobi")


# Flows of couplings: budget, lines that cross, reflow without training


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def moons(n: int, seed: int = 0) -> torch.Tensor:
    """Two interleaved half circles of radius 3, noise 0.2."""
    angle = math.pi * torch.rand(n, generator=generator(seed), dtype=torch.float64)
    upper = torch.rand(n, generator=generator(seed + 1)) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    return 3 * torch.stack([x, y], dim=1) - 1 + 0.2 * normal(n, 2, seed=seed + 2)


def eight_gaussians(n: int, seed: int = 0) -> torch.Tensor:
    return 5 * ring().means[torch.randint(8, (n,), generator=generator(seed))] / 0.66 + 0.316 * normal(n, 2, seed=seed)


def test_the_flow_of_one_pair_is_its_line_and_of_parallel_pairs_the_common_one():
    noise, data = normal(1, 3), normal(1, 3, seed=1)
    run = run_from(pair_flow(noise, data, 0.1), noise + 0.05, n_steps=7)
    assert float(straightness(run).max()) < 1e-20
    torch.testing.assert_close(data_of(run), data + 0.05)
    noise = normal(30, 2)
    run = run_from(pair_flow(noise, noise + 2.0, 0.3), noise, n_steps=5)
    torch.testing.assert_close(data_of(run), noise + 2.0)


def test_the_flow_of_pairs_is_the_conditional_mean_of_the_blurred_pairs():
    """Oracle: E[eps - x0 | x_t] by the joint mixture of (x_t, eps - x0), written out with log-sum-exp by hand."""
    noise, data, blur, t = normal(20, 2), normal(20, 2, seed=1), 0.4, 0.3
    x = normal(5, 2, seed=2)
    weight = torch.exp(-((x[:, None] - (1 - t) * data - t * noise) ** 2).sum(2) / (2 * blur**2))
    expected = (weight[:, :, None] * (noise - data)).sum(1) / weight.sum(1, keepdim=True)
    torch.testing.assert_close(pair_flow(noise, data, blur).velocity(x, t), expected)


def test_the_budget_of_an_exact_mixture_closes():
    """Claim 4: an exact 1-rectified flow of a mixture without training; residual below 2 % of the cost."""
    mixture = ring(8, 1.0, 0.1)
    model = Oracle(mixture, Linear(), t_range=(1e-4, 1.0))
    n = 6000
    data, noise = mixture.sample(n, generator())[0], normal(n, 2, seed=1)
    found = reflow(model, torch.cat([noise[:2], noise]), torch.cat([data[:2], data]), rounds=1, blur=0.1, n_steps=100)
    assert found.attrs["n"] == (n + 2) // 2
    assert abs(float(found.residual[0])) < max(0.02 * float(found.cost[0]), 4 * float(found.residual_se[0]))
    assert float(found.cost[0]) == pytest.approx(2 + 1 + 2 * 0.01, rel=0.05)


def test_on_the_line_the_flow_is_the_monotone_map_and_reflow_is_straight():
    """Claim 5: the map is F^-1(Phi(eps)), and pairs of a monotone map do not cross, so the second flow has S = V = 0."""
    mixture = GaussianMixture(torch.tensor([[-1.0], [0.5]]), torch.tensor([0.3, 0.2]), weights=[0.4, 0.6])
    model = Oracle(mixture, Linear(), t_range=(1e-4, 1.0))
    noise = torch.linspace(-2.5, 2.5, 101, dtype=torch.float64)[:, None]
    ends = data_of(run_from(model, noise, n_steps=400))
    weights = mixture.log_weights.exp()
    cdf = (weights * torch.special.ndtr((ends - mixture.means[:, 0]) / mixture.variances.sqrt())).sum(1)
    torch.testing.assert_close(cdf, torch.special.ndtr(noise[:, 0]), rtol=0, atol=2e-3)  # Heun, 400 steps
    torch.testing.assert_close(ExactOT().pair(noise, ends.flip(0)).data.sort(0).values, ends)
    pairs = pair_flow(noise, ends, 0.01)
    second = run_from(pairs, noise, n_steps=50)
    first = run_from(model, noise, n_steps=400)
    assert float(straightness(second).mean()) < 0.02 * float(straightness(first).mean())


def test_reflow_of_one_gaussian_is_straight_at_once_and_costs_what_the_closed_form_says():
    """Claim 1: C = d (1 + s^2), S = d s (2 - pi / 2), V = d s pi / 2, |D|^2 = d (1 - s)^2; after one reflow S = V = 0."""
    d, s, n = 2, 0.5, 2000
    model = Oracle(GaussianMixture(torch.zeros(1, d), s), Linear(), t_range=(1e-4, 1.0))
    found = reflow(model, normal(n, d), s * normal(n, d, seed=1), rounds=2, blur=0.15)
    first, second = found.sel(round=1), found.sel(round=2)
    closed = {
        "cost": d * (1 + s**2), "straightness": d * s * (2 - math.pi / 2), "conflict": d * s * math.pi / 2,
        "chord": d * (1 - s) ** 2,
    }  # fmt: skip
    for name, value in closed.items():
        assert float(first[name]) == pytest.approx(value, abs=max(4 * float(first[f"{name}_se"]), 0.01 * value)), name
    assert float(second.cost) == pytest.approx(float(first.chord))  # the coupling of round 2 is the map of round 1
    # the blur of 0.15 smooths over lines of slightly different slope: a few percent of what there was
    assert float(second.straightness) < 0.03 * closed["straightness"]
    assert float(second.conflict) < 0.03 * closed["conflict"]
    assert float(second.one_step) < 0.15 * float(first.one_step)
    assert float(first.crossings) > 0.1 and float(second.crossings) == 0


def test_reflow_never_raises_the_cost_and_spends_no_more_than_the_first_cost():
    mixture = ring(4, 2.0, 0.2)
    model = Oracle(mixture, Linear(), t_range=(1e-4, 1.0))
    n = 1600
    found = reflow(model, normal(n, 2), mixture.sample(n, generator(1))[0], rounds=3, blur=0.1, n_steps=40)
    cost, spent = found.cost.values, (found.straightness + found.conflict).values
    assert all(b <= a + 3 * e for a, b, e in zip(cost[:-1], cost[1:], found.cost_se.values[:-1], strict=True))
    assert spent.sum() <= cost[0] + 4 * float(found.cost_se[0])  # hence min_k (S_k + V_k) <= C / K
    assert spent[1] < 0.25 * spent[0] and float(found.crossings[1]) < 0.05 * float(found.crossings[0])


def test_minibatch_transport_straightens_the_flow_of_eight_gaussians_to_moons():
    """Claim 6: OT-CFM with batches of 256 has a smaller S than independent pairs."""
    noise, data = eight_gaussians(2048), moons(2048)
    start = eight_gaussians(400, seed=9)
    found = {}
    for name, one in (("independent", Independent()), ("ot", ExactOT())):
        parts = [one.pair(a, b) for a, b in zip(noise.split(256), data.split(256), strict=True)]
        x1, x0 = (torch.cat([p[k] for p in parts]) for k in (0, 1))
        flow = pair_flow(x1, x0, 0.3)
        found[name] = (
            float(straightness(run_from(flow, start, n_steps=60)).mean()),
            intersection(flow, x1[:400], x0[:400], n_times=15).attrs["mean"],
            float(torch.cat([p.cost for p in parts]).mean()),
        )
    assert all(b < 0.35 * a for a, b in zip(found["independent"], found["ot"], strict=True)), found


def test_pairs_of_a_run_are_its_noise_and_samples_and_carry_its_classes():
    mixture = ring(4, labels=True)
    model = Oracle(mixture)
    run = record(model, OdeSampler(Heun(), TimeGrid.karras(10, 0.01, 80)), range(12))
    pairs = reflow_pairs(run)
    torch.testing.assert_close(pairs.noise, Seeds(range(12)).normal((2,)))
    assert torch.equal(pairs.data, data_of(run))
    assert pairs.labels.tolist() == [k % 4 for k in range(12)]
    again = pairs_dataset(pairs, "ring")
    assert np.allclose(again.cost, endpoints(run).cost) and again.label.values.tolist() == pairs.labels.tolist()
    plain = record(model, OdeSampler(Heun(), TimeGrid.karras(4, 0.01, 80)), range(3), labels=None)
    assert reflow_pairs(plain).labels is None


def test_the_map_of_conflict_is_zero_for_parallel_lines_and_finds_where_two_streams_cross():
    noise = normal(300, 2)
    still = conflict_map(pairs_dataset(pairs_of(noise, noise + 1.0)))
    assert float(still.conflict.max()) < 1e-20 and still.attrs["mean"] < 1e-20
    side = 0.1 * normal(200, 2)
    left, right = torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 0.0])
    up = torch.tensor([0.0, 4.0])
    noise = torch.cat([left + side[:100], right + side[100:]])
    data = torch.cat([right + up + side[:100].flip(0), left + up + side[100:].flip(0)])
    ends = pairs_dataset(pairs_of(noise, data))
    found = conflict_map(ends, n_bins=21, n_times=9)
    y, x = np.unravel_index(np.nanargmax(found.conflict.values), found.conflict.shape)
    # the streams cross in (0, 2), half way; velocities differ by (8, 0), and half of a point's neighbours are of the other stream
    assert abs(float(found.x[x])) < 0.6 and abs(float(found.y[y]) - 2) < 0.6
    assert 0.25 * 32 < float(found.conflict.max()) <= 33
    assert conflict_map(ends, t=0.5).attrs["mean"] > 20 * conflict_map(ends, t=0.1).attrs["mean"]
    assert int(found["count"].sum()) == 200 * 9


def test_bad_flows_and_maps_are_refused():
    noise, data = clouds(6)
    ends = pairs_dataset(pairs_of(noise, data))
    for call, message in (
        (lambda: pair_flow(noise, data, 0.0), "blur"),
        (lambda: pair_flow(noise, data[:5], 0.1), "one shape"),
        (lambda: run_from(pair_flow(noise, data, 0.1), noise, times=[0.0, 1.0]), "strictly decreasing"),
        (lambda: reflow(pair_flow(noise, data, 0.1), noise, data, rounds=0, blur=0.1), "at least one round"),
        (lambda: reflow(pair_flow(noise, data, 0.1), noise, data[:5], blur=0.1), "as many noise"),
        (lambda: conflict_map(ends, t=1.0), "between data 0 and noise 1"),
        (lambda: conflict_map(pairs_dataset(pairs_of(normal(5, 3), normal(5, 3)))), "in the plane"),
        (lambda: conflict_map(ends.isel(sample=slice(1))), "at least two lines"),
    ):
        with pytest.raises(BadValue, match=message):
            call()
