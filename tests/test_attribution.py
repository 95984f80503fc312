"""Which step cost what: the split of the final error against flows known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from explorer import trajectory as tr
from explorer.errors import BadValue, UnknownName
from explorer.models.base import FunctionDenoiser, Oracle
from explorer.process import EDM, VP, Linear
from explorer.process.oracles import GaussianMixture
from explorer.sampling import (
    DDIM,
    SOLVERS,
    AdaptiveSampler,
    DPMpp2M,
    EDMStochastic,
    Euler,
    Heun,
    OdeSampler,
    TimeGrid,
)
from explorer.trajectory.replay import adds_noise, has_memory

ANGLES = 2 * math.pi * torch.arange(6, dtype=torch.float64) / 6
RING = Oracle(GaussianMixture(3 * torch.stack((ANGLES.cos(), ANGLES.sin()), dim=1), 0.3), name="ring")
GRID = TimeGrid.karras(7, 0.01, 50)


def skew_gaussian(path=None) -> Oracle:
    """Correlated Gaussian data away from the origin: x - alpha m moves linearly, with another factor along each axis."""
    covs = torch.tensor([[[1.0, 0.6, 0.0], [0.6, 0.5, 0.1], [0.0, 0.1, 0.2]]], dtype=torch.float64)
    return Oracle(GaussianMixture(torch.tensor([[0.5, -1.0, 2.0]]), covs=covs), path, name="skew")


def exact_flow(model: Oracle, x: torch.Tensor, t: float, t_next: float) -> torch.Tensor:
    """Phi_{t -> t_next} of Gaussian data: each principal axis scales as sqrt(alpha^2 v + sigma^2)."""
    mean, axes, v = model.mixture.means[0], model.mixture.axes[0], model.mixture.variances[0]
    a0, s0, _, _ = model.path.at(t)
    a1, s1, _, _ = model.path.at(t_next)
    factor = ((a1**2 * v + s1**2) / (a0**2 * v + s0**2)).sqrt()
    return a1 * mean + ((x - a0 * mean) @ axes * factor) @ axes.T


@pytest.mark.parametrize("path", [EDM(), VP(), Linear()])
@pytest.mark.parametrize("solver", [Euler(), Heun(), DPMpp2M()])
def test_the_split_is_that_of_the_exact_flow(path, solver):
    model = skew_gaussian(path)
    ds = tr.record(model, OdeSampler(solver, GRID), range(12))
    x, t = torch.as_tensor(ds.x.values), ds.t.values
    n, end = len(t) - 1, float(t[-1])
    ends = torch.stack([exact_flow(model, x[:, i], float(t[i]), end) for i in range(n)] + [x[:, n]], dim=1)
    parts, error = ends.diff(dim=1), ends[:, -1] - ends[:, 0]  # alpha = 1 at t = 0
    expected = torch.einsum("snd,sd->sn", parts, error / error.norm(dim=1, keepdim=True))

    found = tr.attribution(ds, model, vectors=True)
    # the reference of 8 RK4 substeps is good to its own estimate, here below 1e-4 of data of size 1
    assert found.attrs["reference_error"] < 2e-4
    close = {"rtol": 0, "atol": 5e-4}
    np.testing.assert_allclose(found.contribution, parts, **close)
    np.testing.assert_allclose(found.step_cost, expected, **close)
    np.testing.assert_allclose(found.step_norm, parts.norm(dim=2), **close)
    np.testing.assert_allclose(found.final_error, error.norm(dim=1), **close)
    local = x[:, 1:] - torch.stack([exact_flow(model, x[:, i], float(t[i]), float(t[i + 1])) for i in range(n)], dim=1)
    np.testing.assert_allclose(found.local_error, local.norm(dim=2), rtol=0.01, atol=2e-3)

    # the flow of Gaussian data is linear, so first order is all there is
    linear = tr.attribution(ds, model, method="adjoint")
    np.testing.assert_allclose(linear.step_cost, found.step_cost, rtol=0, atol=1e-9)
    np.testing.assert_allclose(linear.remainder, 0, atol=1e-9)


@pytest.mark.parametrize("substeps", [2, 8])
def test_the_split_sums_to_the_final_error_however_rough_the_reference(substeps):
    """Everything in between cancels: an identity, not an approximation. Rounding of a dozen sums of order one."""
    ds = tr.record(RING, OdeSampler(Heun(), GRID), range(40))
    found = tr.attribution(ds, RING, substeps=substeps, batch=17, vectors=True)
    np.testing.assert_allclose(found.step_cost.sum("step"), found.final_error, rtol=0, atol=1e-13)
    whole = np.linalg.norm(found.contribution.sum("step"), axis=1)
    np.testing.assert_allclose(whole, found.final_error, rtol=0, atol=1e-13)
    assert float(found.final_error.mean()) > 0.05  # there is something to split
    assert (found.step_norm >= abs(found.step_cost) - 1e-13).all()


def test_the_adjoint_agrees_to_first_order_in_the_error():
    """On a mixture the flow is not linear: the remainder falls as the square of the final error."""
    remainders, errors = [], []
    for n_steps in (40, 80):
        ds = tr.record(RING, OdeSampler(Heun(), TimeGrid.karras(n_steps, 0.05, 50, to_zero=False)), range(24))
        found = tr.attribution(ds, RING, method="adjoint", substeps=4)
        remainders.append(float(abs(found.remainder).max()))
        errors.append(float(found.final_error.max()))
    assert errors[1] < 0.4 * errors[0] and remainders[1] < 0.25 * remainders[0]
    assert remainders[1] < 0.1 * errors[1]
    exact = tr.attribution(ds, RING, substeps=4)
    np.testing.assert_allclose(found.step_cost, exact.step_cost, rtol=0, atol=2 * remainders[1])
    np.testing.assert_allclose(found.local_error, exact.local_error, rtol=1e-9, atol=1e-15)


def test_an_exact_step_costs_nothing_and_a_wrong_one_all():
    """A run on the exact flow, with one step pushed off it: that step has the whole bill, the others none."""
    model, times = skew_gaussian(), [10.0, 4.0, 2.0, 1.0, 0.5]
    x = [10.0 * torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)]
    push = torch.tensor([0.3, 0.0, -0.1], dtype=torch.float64)
    for i in range(4):
        x.append(exact_flow(model, x[-1], times[i], times[i + 1]) + (push if i == 1 else 0.0))
    ds = tr.trajectory({"x": torch.stack(x, dim=1)}, times, EDM())
    for method in ("exact", "adjoint"):
        found = tr.attribution(ds, model, method=method, substeps=16)
        share = (found.step_cost / found.final_error).values
        np.testing.assert_allclose(share[:, 1], 1, atol=1e-4)
        np.testing.assert_allclose(share[:, [0, 2, 3]], 0, atol=1e-4)
        np.testing.assert_allclose(found.local_error[:, 1], push.norm(), rtol=1e-4)
    mean = model.mixture.means[0]
    carried = exact_flow(model, mean + push, 2.0, 0.5) - exact_flow(model, mean, 2.0, 0.5)
    np.testing.assert_allclose(found.final_error, carried.norm(), rtol=1e-4)


def test_by_step_has_means_errors_and_what_it_cost():
    ds = tr.record(RING, OdeSampler(Heun(), GRID), range(30))
    model = Oracle(RING.mixture, name="ring")
    told = []
    each = tr.attribution(ds, model, progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] == 30 * each.attrs["evaluations"]
    assert each.attrs["evaluations"] == tr.attribution_cost(ds, model)
    assert [d for d, _ in told] == sorted(d for d, _ in told)
    # one call serves the whole batch of 30; the fan has grown to 30 * 7 rows at the end, still one batch of 256
    model.reset_calls()
    tr.attribution(ds, model)
    assert model.n_calls == 3 * (4 * 7 - 1) + (4 * 7 * 8 - 1) - 3 * (4 * 7 - 1) + (4 * 4 * 7 - 1)
    by = tr.attribution(ds, model, "step")
    for name in ("step_cost", "step_norm", "local_error"):
        np.testing.assert_allclose(by[name], each[name].mean("sample"))
        np.testing.assert_allclose(by[f"{name}_se"], each[name].std("sample", ddof=1) / math.sqrt(30))
    assert float(by.final_error) == pytest.approx(float(each.final_error.mean())) and by.attrs["n"] == 30
    assert float(by.step_cost.sum()) == pytest.approx(float(by.final_error), rel=1e-12)
    np.testing.assert_array_equal(by.sigma, ds.sigma[:-1])


def test_an_adjoint_costs_what_it_says():
    ds = tr.record(RING, OdeSampler(Euler(), GRID), range(3))
    told = []
    found = tr.attribution(ds, RING, method="adjoint", progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (3 * found.attrs["evaluations"],) * 2


def test_labels_are_followed_and_results_do_not_depend_on_the_batch():
    model = Oracle(GaussianMixture(RING.mixture.means, 0.3, labels=torch.arange(6)), name="ring")
    ds = tr.record(model, OdeSampler(DDIM(), GRID), range(13))
    a, b = (tr.attribution(ds, model, batch=batch) for batch in (256, 5))
    np.testing.assert_allclose(a.step_cost, b.step_cost, rtol=0, atol=1e-12)
    # of one class the data are Gaussian, and the flow is known: states about the class mean scale as sqrt(s^2 + t^2)
    x, mean = torch.as_tensor(ds.x.values), model.mixture.means[ds.label.values]
    exact = mean + (x[:, 0] - mean) * 0.3 / math.sqrt(0.09 + float(ds.t[0]) ** 2)
    np.testing.assert_allclose(a.final_error, (x[:, -1] - exact).norm(dim=1), atol=5e-4)


def test_what_has_no_split_is_refused():
    noisy = tr.record(RING, OdeSampler(EDMStochastic(), GRID), range(3))
    with pytest.raises(BadValue, match="stochastic"):
        tr.attribution(noisy, RING)
    ds = tr.record(RING, OdeSampler(Euler(), GRID), range(3))
    with pytest.raises(UnknownName, match="adjoint"):
        tr.attribution(ds, RING, method="adjont")
    with pytest.raises(BadValue, match="two substeps"):
        tr.attribution(ds, RING, substeps=1)
    with pytest.raises(BadValue, match="per sample"):
        tr.attribution(ds, RING, "step", vectors=True)
    with pytest.raises(UnknownName, match="step"):
        tr.attribution(ds, RING, "sample")
    with pytest.raises(BadValue, match="shape"):
        tr.attribution(ds, skew_gaussian())
    flat = tr.project(ds, tr.principal_basis(ds, 1))
    with pytest.raises(BadValue, match="projection"):
        tr.attribution(flat, RING)


def test_a_resting_run_has_no_error_to_split():
    model = FunctionDenoiser(lambda x, t, cond: torch.zeros_like(x), "velocity", EDM(), (2,), (0.0, 100.0), 0, "rest")
    x = torch.ones(2, 4, 2, dtype=torch.float64)
    ds = tr.trajectory({"x": x}, [3.0, 2.0, 1.0, 0.5], EDM())
    for method in ("exact", "adjoint"):
        found = tr.attribution(ds, model, method=method)
        assert float(found.final_error.max()) == 0 and float(abs(found.step_cost).max()) == 0


def test_samplers_are_asked_what_they_do():
    """Decided by behaviour, so that a solver written tomorrow is told apart as well."""
    expected = {
        Euler(): (False, False), Heun(): (False, False), DPMpp2M(): (False, True), EDMStochastic(): (True, None),
        EDMStochastic(s_churn=0.0): (False, False),
    }  # fmt: skip
    for solver, (noisy, memory) in expected.items():
        ds = tr.record(RING, OdeSampler(solver, GRID), range(2))
        assert adds_noise(ds) == noisy
        if memory is not None:
            assert has_memory(ds) == memory
    unknown = ds.assign_attrs(sampler="")
    assert not adds_noise(unknown) and has_memory(unknown)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_can_be_asked_and_billed(name):
    solver = SOLVERS[name]()
    ds = tr.record(RING, OdeSampler(solver, TimeGrid.karras(5, 0.05, 20)), range(4))
    assert adds_noise(ds) == solver.stochastic
    if solver.stochastic:
        with pytest.raises(BadValue, match="stochastic"):
            tr.local_error(ds, RING)
        return
    bill = tr.attribution(ds, RING, substeps=2)
    np.testing.assert_allclose(bill.step_cost.sum("step"), bill.final_error, rtol=0, atol=1e-13)
    assert float(bill.final_error.min()) > 0
    if has_memory(ds):
        with pytest.raises(BadValue, match=type(solver).__name__):
            tr.local_error(ds, RING, kind="doubling")


def test_an_adaptive_run_is_billed_as_any_other():
    errors = []
    for tolerance in (1e-3, 1e-5):
        grid = TimeGrid.karras(5, 0.05, 20, to_zero=False)  # a last step to sigma = 0 is Euler's, at any tolerance
        sampler = AdaptiveSampler(grid, rtol=tolerance, atol=tolerance)
        ds = tr.record(RING, sampler, range(4))
        assert not adds_noise(ds)
        errors.append(float(tr.attribution(ds, RING, substeps=24).final_error.max()))
    assert errors[1] < 0.1 * errors[0]  # a hundredth of the tolerance
    with pytest.raises(BadValue, match="not known"):
        tr.local_error(ds, RING, kind="doubling")


def test_doubling_measures_the_last_step_to_data_too():
    """Heun falls back to Euler there: the order is measured. Closed form of Gaussian data; errors of small steps only."""
    model = Oracle(GaussianMixture(torch.zeros(1, 2), 1.0), name="gaussian")
    for solver in (Euler(), Heun()):
        ds = tr.record(model, OdeSampler(solver, TimeGrid.explicit([0.3, 0.2, 0.1, 0.0])), range(20))
        t = ds.t.values
        exact = ds.x.values[:, :-1] * np.sqrt((1 + t[1:] ** 2) / (1 + t[:-1] ** 2))[None, :, None]
        truth = np.linalg.norm(ds.x.values[:, 1:] - exact, axis=2)
        np.testing.assert_allclose(tr.local_error(ds, model, kind="doubling"), truth, rtol=0.1)
