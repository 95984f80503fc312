"""Contraction, dimension, torsion and decisions of paths known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import xarray as xr

from explorer import trajectory as tr
from explorer.errors import BadFile, BadValue, UnknownName
from explorer.models.base import Oracle
from explorer.models.bundled import load
from explorer.process import EDM, VP, Linear, Trig
from explorer.process.oracles import GaussianMixture
from explorer.sampling import Euler, Heun, OdeSampler, TimeGrid
from explorer.trajectory import events, geometry, subspace
from explorer.trajectory.contraction import pull, push

ANGLES = 2 * math.pi * torch.arange(6, dtype=torch.float64) / 6
RING = Oracle(GaussianMixture(3 * torch.stack((ANGLES.cos(), ANGLES.sin()), dim=1), 0.3), name="ring")
HEUN = OdeSampler(Heun(), TimeGrid.karras(12, 0.01, 50))
VARIANCES = torch.tensor([1.0, 0.25, 0.01], dtype=torch.float64)


def axes_model(path=None) -> Oracle:
    """Gaussian data with another width along each of three rotated axes."""
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    return Oracle(GaussianMixture(torch.zeros(1, 3), covs=(turn * VARIANCES @ turn.T)[None]), path, name="axes")


def rates(path, t: np.ndarray, variance: float) -> np.ndarray:
    """-q'(t) / 2q(t), q = alpha^2 v + sigma^2: how fast neighbours part along a run, which goes against t."""
    a, s, a_dot, s_dot = np.array([path.at(float(u)) for u in t]).T
    return -(a * a_dot * variance + s * s_dot) / (a**2 * variance + s**2)


def stretch(path, t: float, t_next: float, variance: float) -> float:
    """ln of the factor by which distances grow from t to t_next."""
    q = [path.at(u)[0] ** 2 * variance + path.at(u)[1] ** 2 for u in (t, t_next)]
    return 0.5 * math.log(q[1] / q[0])


# Contraction


@pytest.mark.parametrize("path", [None, Linear(), VP(), Trig(0.5)])
def test_rates_of_gaussian_data_are_the_closed_form(path):
    model = axes_model()
    ds = tr.record(model, HEUN, range(4))
    found = tr.contraction(ds, model, path=path)
    on = path or EDM()
    t = tr.moved(ds, on).t.values[:-1]
    each = np.array([rates(on, t, float(v)) for v in VARIANCES])
    close = {"rtol": 1e-7, "atol": 1e-9}
    np.testing.assert_allclose(found.mean_rate, np.tile(each.mean(0), (4, 1)), **close)
    np.testing.assert_allclose(found.fastest_parting, np.tile(each.max(0), (4, 1)), **close)
    np.testing.assert_allclose(found.fastest_approach, np.tile(each.min(0), (4, 1)), **close)
    np.testing.assert_allclose(found.jacobian_norm, np.tile(np.sqrt((each**2).sum(0)), (4, 1)), **close)
    if path == Linear():  # on straight lines to data, neighbours first come together and then part, never on EDM's
        assert found.mean_rate[0, 0] < 0 < found.fastest_parting[0, -1]
    if path is None:
        assert (found.fastest_parting < 0).all()
    by = tr.contraction(ds, model, "step", path=path)
    np.testing.assert_allclose(by.mean_rate, found.mean_rate.mean("sample"))
    assert by.attrs["n"] == 4 and by.mean_rate.attrs["units"] == "1 / time"


def test_the_jacobian_of_a_mixture_is_that_of_finite_differences():
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    jacobian = tr.velocity_jacobian(RING, x, 0.8)
    h = 1e-6  # central differences: error h^2 + eps / h
    for k in range(2):
        step = h * torch.eye(2, dtype=torch.float64)[k]
        column = (RING.velocity(x + step, 0.8) - RING.velocity(x - step, 0.8)) / (2 * h)
        torch.testing.assert_close(jacobian[:, :, k], column, rtol=1e-7, atol=1e-7)
    whole = tr.strain_rates(jacobian)
    torch.testing.assert_close(whole.sum(dim=1), -jacobian.diagonal(dim1=1, dim2=2).sum(dim=1))
    assert (whole[:, 0] >= whole[:, 1]).all() and float(whole.max()) > 0  # between two modes neighbours part


def test_random_probes_estimate_the_mean_rate_of_many_dimensions():
    d = 40  # above the size where all of the Jacobian is formed
    model = Oracle(GaussianMixture(torch.zeros(1, d), 0.5), name="wide")
    ds = tr.record(model, HEUN, range(3))
    found = tr.contraction(ds, model, n_probes=2)
    exact = rates(EDM(), ds.t.values[:-1], 0.25)
    # the Jacobian is a multiple of the identity, so that every sign vector gives the trace and the norm exactly
    np.testing.assert_allclose(found.mean_rate, np.tile(exact, (3, 1)), rtol=1e-9)
    np.testing.assert_allclose(found.jacobian_norm, np.tile(abs(exact) * math.sqrt(d), (3, 1)), rtol=1e-9)
    assert "fastest_parting" not in found and found.attrs["n_probes"] == 2


@pytest.mark.parametrize("path", [None, Linear()])
def test_exponents_of_gaussian_data_are_the_closed_form(path):
    model = axes_model()
    ds = tr.record(model, HEUN, range(3))
    found = tr.lyapunov(ds, model, path=path)
    on = path or EDM()
    t = tr.moved(ds, on).t.values
    exact = np.array([[stretch(on, t[0], u, float(v)) for v in VARIANCES] for u in t[1:]])
    assert found.exponent.dims == ("sample", "step", "direction") and found.sizes["direction"] == 3
    # RK4 with 4 substeps an interval, as its error in the states: below 1e-3
    np.testing.assert_allclose(found.exponent, np.tile(np.sort(exact, axis=1)[:, ::-1], (3, 1, 1)), atol=2e-3)
    np.testing.assert_allclose(found.mean_exponent, np.tile(exact.mean(1), (3, 1)), atol=1e-3)
    np.testing.assert_allclose(found.t, t[1:])
    total = tr.total_exponents(found)
    np.testing.assert_allclose(total, found.exponent[:, -1])
    by = tr.lyapunov(ds, model, "step", path=path)
    np.testing.assert_allclose(by.exponent, found.exponent.mean("sample"), atol=1e-12)
    assert by.exponent.dims == ("step", "direction") and "mean_exponent_se" in by


def test_leading_exponents_are_the_largest_of_all():
    """Of a mixture, whose flow turns and shears: subspace iteration against all singular values."""
    ds = tr.record(RING, OdeSampler(Heun(), TimeGrid.karras(7, 0.05, 20)), range(12))
    every = tr.lyapunov(ds, RING, substeps=2)
    first = tr.lyapunov(ds, RING, n_exponents=1, n_iter=4, substeps=2)
    # power iteration misses by the ratio of singular values to the power 2 n_iter; most of these are far apart
    gap = every.exponent[:, -1, 0] - every.exponent[:, -1, 1]
    clear = gap.values > 0.5
    assert clear.sum() >= 4
    np.testing.assert_allclose(first.exponent[clear, -1, 0], every.exponent[clear, -1, 0], atol=5e-3)
    assert (first.exponent[:, -1, 0] <= every.exponent[:, -1, 0] + 1e-9).all()
    assert "mean_exponent" not in first


def test_exponents_are_those_of_the_map_from_noise_to_sample():
    """A brute-force oracle: the derivative of a fine run's end by its start, by central differences."""
    sampler = OdeSampler(Heun(), TimeGrid.karras(40, 0.05, 20))
    ds = tr.record(RING, sampler, range(5))
    found = tr.total_exponents(tr.lyapunov(ds, RING, substeps=2))
    noise, h, columns = tr.noise_of(ds), 1e-5, []
    for k in range(2):
        step = h * torch.eye(2, dtype=torch.float64)[k]
        ends = [sampler.sample(RING, noise + sign * step) for sign in (1, -1)]
        columns.append((ends[0] - ends[1]) / (2 * h * 20))  # the state starts as 20 times the noise
    exact = torch.linalg.svdvals(torch.stack(columns, dim=2)).log()
    np.testing.assert_allclose(found, exact, atol=0.02)  # Heun's own error on 40 steps


def test_diagnostics_of_a_network_of_images():
    """Whatever the network: <w, J u> = <J^T w, u>, and the costs of the steps sum to the final error."""
    model, sampler = load("digits"), OdeSampler(Heun(), TimeGrid.karras(2, 0.5, 20))
    ds = tr.record(model, sampler, range(2), keep=("x", "x0_hat"))
    generator = torch.Generator().manual_seed(0)
    u, w = torch.randn(2, 2, 3, *model.shape, generator=generator, dtype=torch.float64)
    x, cond = torch.as_tensor(ds.x.values[:, 1]), torch.as_tensor(ds.label.values)

    def step(y, c):
        return model.velocity(y, float(ds.t[1]), c)

    there, back = ((a * b).flatten(2).sum(2) for a, b in ((w, push(step, x, u, cond)), (pull(step, x, w, cond), u)))
    torch.testing.assert_close(there, back, rtol=1e-4, atol=1e-4)  # the network computes in float32
    found = tr.lyapunov(ds, model, n_exponents=2, n_iter=1, substeps=1)
    assert found.exponent.shape == (2, 2, 2) and (found.exponent[:, :, 0] >= found.exponent[:, :, 1]).all()
    rate = tr.contraction(ds, model, n_probes=1)
    assert rate.attrs["n_probes"] == 1 and (rate.jacobian_norm > 0).all()
    for method in ("exact", "adjoint"):
        bill = tr.attribution(ds, model, method=method, substeps=2, vectors=method == "exact")
        left = bill.get("remainder", 0.0)
        np.testing.assert_allclose(bill.step_cost.sum("step") + left, bill.final_error, rtol=0, atol=1e-12)
    assert tr.pixel_events(ds, 0.1).event.shape == (2, 2, 8, 8)
    near = tr.nearest(torch.as_tensor(ds.x.values[:, -1]), names=[4, 9])
    assert tr.decisions(ds, near).final.values.tolist() == [4, 9]


def test_contraction_says_what_it_cannot_do():
    ds = tr.record(RING, HEUN, range(2))
    with pytest.raises(BadValue, match="1 to 2 exponents"):
        tr.lyapunov(ds, RING, n_exponents=3)
    with pytest.raises(UnknownName, match="step"):
        tr.contraction(ds, RING, "sample")
    with pytest.raises(BadValue, match="shape"):
        tr.lyapunov(ds, axes_model())
    told = []
    tr.lyapunov(ds, RING, n_exponents=1, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (told[-1][1],) * 2


# Dimension


def test_spectra_and_counts_of_known_variances():
    flat = torch.tensor([[3.0, 3.0, 3.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [8.0, 1.5, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(
        subspace.participation_ratio(flat), torch.tensor([3.0, 1.0, 0.0, 100 / 66.5], dtype=torch.float64)
    )
    assert subspace.n_components(flat, 0.9).tolist() == [3, 1, 0, 2]
    assert subspace.n_components(flat, 0.99).tolist() == [3, 1, 0, 3]
    assert subspace.n_components(flat, 0.8).tolist() == [3, 1, 0, 1]  # a share that is met exactly counts as reached
    with pytest.raises(BadValue, match="share"):
        subspace.n_components(flat, 1.2)
    # points at +-a_k along orthogonal axes: variance 2 a_k^2 / n along each
    sizes = torch.tensor([3.0, 2.0, 0.5], dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(7, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).Q
    points = torch.cat((torch.diag(sizes), -torch.diag(sizes))) @ turn.T + 5
    torch.testing.assert_close(subspace.spectrum(points)[:3], 2 * sizes**2 / 6)
    torch.testing.assert_close(subspace.path_spectrum(points[None])[0, :3], 2 * sizes**2 / 6)


def test_a_circle_uses_two_dimensions_equally_and_a_line_one():
    t = torch.arange(40, dtype=torch.float64) / 40
    plane = torch.linalg.qr(torch.randn(9, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)).Q
    circle = torch.stack((torch.cos(2 * math.pi * t), torch.sin(2 * math.pi * t)), dim=1) @ plane.T
    line = t[:, None] ** 2 * plane[:, 0]
    ds = tr.trajectory({"x": torch.stack((circle, line))}, t.flip(0), Linear())
    found = tr.effective_dimension(ds)
    np.testing.assert_allclose(found.participation, [2, 1], rtol=1e-12)
    assert found.n90.values.tolist() == [2, 1] and found.n99.values.tolist() == [2, 1]
    np.testing.assert_allclose(found.variance[:, :2], [[0.5, 0.5], [1, 0]], atol=1e-12)
    together = tr.effective_dimension(ds, "all")
    assert float(together.participation) == pytest.approx(1.5) and together.attrs["n"] == 2
    assert int(together.pooled_n99) == 2
    np.testing.assert_allclose(float(together.pooled_variance.sum()), 1)


def test_gaussian_paths_live_in_the_plane_of_noise_and_mean():
    """States of isotropic data are a m + b eps with numbers a, b by time: two dimensions whatever D is, one if m = 0."""
    for mean, dims in ((0.0, 1), (2.0, 2)):
        model = Oracle(GaussianMixture(torch.full((1, 30), mean), 0.5))
        ds = tr.record(model, HEUN, range(6))
        found = tr.effective_dimension(ds, path=Linear())
        assert float(found.variance[:, dims:].max()) < 1e-9 and (found.n99 <= dims).all()
        assert float(tr.torsion_of(ds, path=Linear()).max()) < 1e-6


def test_distance_from_the_chord_is_that_of_the_circle():
    radius, w = 1.7, 2.2
    t = torch.linspace(0, 1, 21, dtype=torch.float64)
    x = radius * torch.stack((torch.cos(w * t), torch.sin(w * t), 0 * t), dim=1)[None]
    found, clamped = subspace.chord_distance(x)
    exact = radius * (torch.cos(w * (t - 0.5)) - math.cos(w / 2))  # sagitta at each angle from the middle
    torch.testing.assert_close(found[0], exact.abs(), rtol=1e-12, atol=1e-12)
    assert clamped.tolist() == [0]
    line = torch.randn(3, 1, 4, dtype=torch.float64) + t[None, :, None] ** 3 * torch.randn(3, 1, 4, dtype=torch.float64)
    assert float(subspace.chord_distance(line).value.max()) < 1e-13
    closed = torch.cat((x, x.flip(1)), dim=1)
    away, clamped = subspace.chord_distance(closed)
    torch.testing.assert_close(away[0, :21], (x[0] - x[0, 0]).norm(dim=1))
    assert clamped.tolist() == [1]


@pytest.mark.parametrize("uneven", [False, True])
def test_torsion_of_the_helix(uneven):
    """(a cos u, a sin u, b u): torsion b / (a^2 + b^2), right-handed for b > 0; error O(step^2)."""
    a, b, errors = 1.3, 0.7, []
    for n in (40, 80):
        u = torch.linspace(0, 4, n + 1, dtype=torch.float64)
        u = u + 0.2 * torch.sin(u) if uneven else u
        x = torch.stack((a * torch.cos(u), a * torch.sin(u), b * u), dim=1)
        mirrored = x * torch.tensor([1.0, 1.0, -1.0])
        found, clamped = subspace.torsion(torch.stack((x, mirrored)))
        assert found.shape == (2, n - 2) and int(clamped.sum()) == 0
        exact = b / (a**2 + b**2)
        errors.append(float((found[0] - exact).abs().max()))
        torch.testing.assert_close(found[1], -found[0], rtol=1e-9, atol=1e-9)
        plane = torch.linalg.qr(torch.randn(8, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)).Q
        torch.testing.assert_close(subspace.torsion(x[None] @ plane.T).value[0], found[0].abs(), rtol=1e-8, atol=1e-8)
    assert errors[1] < 0.3 * errors[0] and errors[1] < 0.005


def test_plane_curves_have_no_torsion_and_lines_no_plane():
    t = torch.linspace(0, 1, 20, dtype=torch.float64)
    parabola = torch.stack((t, t**2, 0 * t), dim=1)[None]
    assert float(subspace.torsion(parabola).value.abs().max()) < 1e-9
    line = torch.stack((t, 2 * t, -t), dim=1)[None]
    value, clamped = subspace.torsion(line)
    assert float(value.abs().max()) == 0 and int(clamped) == 17
    value, clamped = subspace.torsion(t[None, :, None])
    assert float(value.abs().max()) == 0 and int(clamped) == 17
    with pytest.raises(BadValue, match="four points"):
        subspace.torsion(parabola[:, :3])


def test_a_basis_projects_restores_and_is_kept(tmp_path):
    model = Oracle(GaussianMixture(torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(5)), 0.05))
    one, two = (tr.record(model, OdeSampler(s, TimeGrid.karras(6, 0.01, 20)), range(8)) for s in (Heun(), Euler()))
    basis = tr.principal_basis([one, two], 3, path=Linear())
    axes = basis.axes.values.reshape(3, -1)
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    points = np.concatenate([tr.moved(ds, Linear()).x.values.reshape(-1, 9) for ds in (one, two)])
    values = np.sort(np.linalg.eigvalsh(np.cov(points.T, bias=True)))[::-1]
    np.testing.assert_allclose(basis.variance, values[:3], rtol=1e-9)
    np.testing.assert_allclose(basis.share, values[:3] / values.sum(), rtol=1e-9)
    assert basis.attrs["n"] == len(points) and (axes[range(3), abs(axes).argmax(1)] > 0).all()
    seen = tr.project(one, basis)
    assert tr.validate(seen) is seen and seen.x.dims == ("sample", "time", "feature")
    np.testing.assert_allclose(seen.x, one.x.values.reshape(8, 7, 9) @ axes.T)
    np.testing.assert_allclose(tr.data_of(seen), tr.data_of(one).flatten(1).numpy() @ axes.T)
    there, back = tr.moved(seen, Linear()), tr.project(tr.moved(one, Linear()), basis)
    np.testing.assert_allclose(there.slope, back.slope, atol=1e-9)  # linear: projecting and moving commute
    every = tr.principal_basis(one, 9)
    np.testing.assert_allclose(tr.arc_chord(tr.project(one, every)), tr.arc_chord(one), rtol=1e-9)
    few = tr.principal_basis(one, 3, of="ends")  # 8 points in 9 dimensions
    ends = tr.data_of(one).flatten(1).numpy()
    np.testing.assert_allclose(few.centre.values.ravel(), ends.mean(0), atol=1e-12)
    for name in ("basis.nc", "basis.zarr"):
        kept = tr.load(tr.save(basis, tmp_path / name))
        xr.testing.assert_identical(kept, basis)
    with pytest.raises(BadValue, match="shape"):
        tr.project(tr.record(RING, HEUN, range(2)), basis)
    with pytest.raises(BadValue, match="1 to 8 components"):
        tr.principal_basis(one, 9, of="ends")
    with pytest.raises(BadValue, match="one shape"):
        tr.principal_basis([one, tr.record(RING, HEUN, range(2))])
    with pytest.raises(BadFile, match="basis"):
        subspace.validate_basis(one)


def test_torsion_in_a_basis_has_a_sign():
    u = torch.linspace(0, 3, 30, dtype=torch.float64)
    helix = torch.stack((1.2 * torch.cos(u), torch.sin(u), 0.5 * u), dim=1)
    turn = torch.linalg.qr(torch.randn(6, 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64)).Q
    ds = tr.trajectory({"x": (helix @ turn.T)[None]}, u.flip(0) / 3, Linear())
    basis = tr.principal_basis(ds, 3)
    signed, plain = tr.torsion_of(ds, basis=basis), tr.torsion_of(ds)
    np.testing.assert_allclose(abs(signed), plain, rtol=1e-7)
    assert abs(np.sign(signed).sum()) == signed.size and (plain >= 0).all()
    assert plain.step.values.tolist() == list(range(1, 28))
    by = tr.torsion_of(ds, "step", basis=basis)
    np.testing.assert_allclose(by.torsion, signed[0])


# The denoised path


def test_the_denoised_path_of_gaussian_data_does_not_turn():
    """E[x0 | x_t] of centred Gaussian data is a multiple of the noise at all times: a straight ray outward."""
    model = Oracle(GaussianMixture(torch.zeros(1, 3), 0.5))
    ds = tr.record(model, HEUN, range(5), keep=("x", "x0_hat"))
    assert float(tr.turning_angle(ds, of="x0_hat").max()) < 1e-6
    assert float(tr.curvature(ds, of="x0_hat").max()) < 1e-6
    s2, t = 0.25, ds.t.values[:-1]
    gain = s2 / (s2 + t**2) * np.linalg.norm(ds.x.values[:, :-1], axis=2)
    np.testing.assert_allclose(tr.step_length(ds, of="x0_hat"), np.diff(gain), atol=1e-9)
    ring = tr.record(RING, HEUN, range(20))
    angle = tr.turning_angle(ring, "step", of="x0_hat")
    assert angle.denoised_turning_angle.sizes["step"] == 10 and float(angle.denoised_turning_angle.max()) > 0.1
    expected = geometry.turning_angle(tr.denoised(ring)).value.mean(0)
    np.testing.assert_allclose(angle.denoised_turning_angle, expected)
    with pytest.raises(BadValue, match="menger"):
        tr.curvature(ring, of="x0_hat", kind="tangent")
    with pytest.raises(BadValue, match="x0_hat"):
        tr.turning_angle(ring.drop_vars("slope"), of="x0_hat")


def test_sampling_discrepancy_is_that_of_a_run_of_one_step():
    ds = tr.record(RING, HEUN, range(9))
    one = tr.record(RING, OdeSampler(Euler(), TimeGrid.karras(1, 0.01, 50)), range(9))
    np.testing.assert_allclose(tr.sampling_discrepancy(ds), tr.end_distance(ds, one), rtol=1e-9)
    np.testing.assert_allclose(tr.sampling_discrepancy(ds, per_dim=True), tr.end_distance(ds, one) / math.sqrt(2))
    # centred Gaussian data: the exact end is s / sqrt(s^2 + t^2) x, one step gives s^2 / (s^2 + t^2) x
    s, t = 0.5, 50.0
    model = Oracle(GaussianMixture(torch.zeros(1, 4), s))
    fine = tr.record(model, OdeSampler(Heun(), TimeGrid.karras(100, 1e-3, t)), range(6))
    exact = (s / math.sqrt(s * s + t * t) - s * s / (s * s + t * t)) * np.linalg.norm(fine.x.values[:, 0], axis=1)
    np.testing.assert_allclose(tr.sampling_discrepancy(fine), exact, rtol=2e-3)
    assert float(tr.coupling_cost(ds, per_dim=True).mean()) == pytest.approx(float(tr.coupling_cost(ds).mean()) / 2)


# Decisions and events


def test_a_light_mode_is_chosen_late_and_by_a_known_share():
    """Two modes on the line, weights 1 and 3: at great noise every prediction is nearer to the heavy one, so that exactly
    those who end at the light one change their mind, once (paths on a line do not cross). The share is that of the noise
    below its quantile 1/4: the map is monotone.
    """
    mixture = GaussianMixture(torch.tensor([[-2.0], [2.0]]), 0.2, weights=torch.tensor([1.0, 3.0]))
    model = Oracle(mixture)
    ds = tr.record(model, OdeSampler(Heun(), TimeGrid.karras(80, 0.01, 200)), range(300), keep=("x", "x0_hat"))
    found = tr.decisions(ds, tr.nearest(mixture.means))
    light = tr.noise_of(ds)[:, 0].numpy() < float(torch.special.ndtri(torch.tensor(0.25, dtype=torch.float64)))
    np.testing.assert_array_equal(found.final == 0, light)
    np.testing.assert_array_equal(found.n_changes, light.astype(int))
    np.testing.assert_array_equal(found.decided > 0, light)
    assert (found.assigned[:, 0] == 1).all() and found.sigma_decided.values[~light].min() == pytest.approx(200)
    # the prediction crosses 0 where the posterior weights are 1/2 (both modes are equally wide): at that step's start
    # x = t^2 + s^2 times ln(1/3) / 4, up to the step
    for k in np.flatnonzero(light)[:10]:
        i = int(found.decided[k])
        threshold = [(float(ds.t[j]) ** 2 + 0.04) * math.log(3) / -4 for j in (i - 1, i)]
        assert ds.x.values[k, i - 1, 0] >= threshold[0] - 1e-6 and ds.x.values[k, i, 0] <= threshold[1] + 1e-6
    by = tr.decisions(ds, tr.nearest(mixture.means), "step")
    assert float(by.decided_share[0]) == pytest.approx(1 - light.mean()) and float(by.decided_share[-1]) == 1
    assert float(by.changes.sum()) == pytest.approx(light.mean()) and by.attrs["n"] == 300
    np.testing.assert_array_equal(found.final, tr.nearest(mixture.means)(tr.data_of(ds)))


def test_decisions_by_hand():
    assigned = torch.tensor([[2, 2, 2, 2], [1, 2, 2, 2], [2, 1, 2, 1], [0, 0, 0, 2]])
    assert events.last_change(assigned).tolist() == [0, 1, 3, 3]
    assert events.last_change(assigned[:, :1]).tolist() == [0] * 4
    assign = tr.nearest(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), names=[7, 4])
    assert assign(torch.tensor([[0.2, 1.0], [2.9, 1.0]])).tolist() == [7, 4]
    spread = tr.nearest(torch.tensor([[1.0], [-2.0]]), features=abs)
    assert spread(torch.tensor([[-1.2], [1.9]])).tolist() == [0, 1]
    with pytest.raises(BadValue, match="names"):
        tr.nearest(torch.zeros(3, 2), names=[1])
    with pytest.raises(UnknownName, match="step"):
        tr.decisions(tr.record(RING, HEUN, range(2)), assign, "sample")


def test_a_ramp_of_height_a_gives_floor_a_over_c_events():
    for height, threshold, expected in (
        (1.0, 0.3, 3),
        (-1.0, 0.3, -3),
        (0.9, 0.3, 3),
        (0.29, 0.3, 0),
        (1.0, 0.01, 100),
    ):
        for n in (2, 11, 57):  # however it is cut into steps: a reference that moves by thresholds forgets nothing
            ramp = torch.linspace(0, height, n, dtype=torch.float64)[None, :, None] + 0.7
            found = events.threshold_events(ramp, threshold)
            assert int(found.sum()) == expected and (found[:, 0] == 0).all(), (height, threshold, n)
    with pytest.raises(BadValue, match="threshold"):
        events.threshold_events(torch.zeros(1, 2, 1), 0.0)


def test_a_straight_flow_has_no_events_and_counts_say_where_the_sampler_works():
    point = Oracle(GaussianMixture.finite(torch.tensor([[[[0.3, -0.5], [0.1, 0.9]]]])))  # one image: x0_hat is constant
    still = tr.pixel_events(tr.record(point, HEUN, range(3), keep=("x", "x0_hat")), 0.01)
    assert int(abs(still.event).sum()) == 0 and (still.last_step == -1).all()
    low, high = torch.full((3, 2, 2), -0.4), torch.full((3, 2, 2), -0.4)
    high[:, 0, 1] = 0.6  # two images that differ in one pixel
    model = Oracle(GaussianMixture.finite(torch.stack((low, high))))
    ds = tr.record(model, HEUN, range(20), keep=("x", "x0_hat"))
    found = tr.pixel_events(ds, 0.15)
    assert found.event.dims == ("sample", "step", "row", "col")
    where = np.zeros((2, 2), bool)
    where[0, 1] = True
    assert (found["count"].values[:, where] > 0).all() and (found["count"].values[:, ~where] == 0).all()
    # the prediction starts at the mean and ends at one image, half of the difference away, in one direction
    moved = abs(ds.x0_hat.values[:, -1, 0, 0, 1] - ds.x0_hat.values[:, 0, 0, 0, 1])
    np.testing.assert_allclose(moved, 0.5, atol=0.03)  # the noise at sigma 50 shifts the mean by 0.5 sum(z) / 100
    np.testing.assert_array_equal(found["count"].values[:, 0, 1], np.floor(moved / 0.15))
    up = tr.data_of(ds)[:, 0, 0, 1].numpy() > 0
    assert (np.sign(found.event.sum("step").values[:, 0, 1]) == np.where(up, 1, -1)).all()
    np.testing.assert_array_equal(found.events, abs(found.event).sum(("row", "col")))
    by = tr.pixel_events(ds, 0.15, "step")
    np.testing.assert_allclose(by.events, found.events.mean("sample"))
    grey = events.luminance(torch.ones(2, 3, 4, 4))
    torch.testing.assert_close(grey, torch.ones(2, 4, 4))


# The budget, live


def test_the_live_budget_closes_batch_by_batch():
    # on the linear path: Heun's first step on EDM's would go from sigma 1e4 to 59, and the residual shows it
    n, batch, sampler = 1500, 250, OdeSampler(Heun(), TimeGrid.uniform_t(60, 1e-4, 1e4), Linear())
    data, _ = RING.mixture.sample(n, torch.Generator().manual_seed(0))
    seen = []
    budget = tr.RunningBudget(RING, data, path=Linear(), n_steps=60, n_times=8)

    def watch(i, *rest):
        budget(i, *rest)
        if i == 59:
            seen.append(budget.result())

    ds = tr.record(RING, sampler, range(n), batch=batch, observe=watch)
    assert [r.attrs["n"] for r in seen] == [250 * (k + 1) for k in range(6)]
    last, whole = seen[-1], tr.budget(ds, RING, data, n_times=25)
    for name in ("cost", "chord", "straightness"):  # the same pairs, so the same numbers
        assert float(last[name]) == pytest.approx(float(whole[name]), rel=1e-9)
        assert float(last[f"{name}_se"]) == pytest.approx(float(whole[f"{name}_se"]), rel=1e-9)
    assert float(last.conflict) == pytest.approx(float(whole.conflict), abs=4 * float(last.conflict_se))
    for r in seen:
        assert abs(float(r.residual)) < 0.02 * float(r.cost) + 4 * float(r.residual_se)
        parts = sum(float(r[k]) for k in ("chord", "straightness", "conflict", "residual"))
        assert float(r.cost) == pytest.approx(parts, rel=1e-12)
    assert float(seen[0].cost_se) > 2 * float(last.cost_se)


def test_the_live_budget_of_gaussian_data_is_the_closed_form():
    s, d, n = 0.6, 2, 2000
    model = Oracle(GaussianMixture(torch.zeros(1, d), s))
    data, _ = model.mixture.sample(n, torch.Generator().manual_seed(1))
    budget = tr.RunningBudget(model, data, path=Linear(), n_steps=100)
    from explorer.sampling import sample

    sample(
        model, OdeSampler(Euler(), TimeGrid.uniform_t(100, 1e-4, 1e4), Linear()), range(n), observe=budget, batch=500
    )
    r = budget.result()
    exact = {
        "cost": d * (1 + s * s), "chord": d * (1 - s) ** 2, "straightness": d * s * (2 - math.pi / 2), "conflict": d * s * math.pi / 2
    }  # fmt: skip
    for name, value in exact.items():  # 4 standard errors, and 2 % for Euler on 100 steps
        assert float(r[name]) == pytest.approx(value, abs=4 * float(r[f"{name}_se"]) + 0.02 * value), name


def test_the_live_budget_leaves_out_what_was_cut_short_and_refuses_other_data():
    budget = tr.RunningBudget(RING, torch.zeros(3, 2, dtype=torch.float64), path=EDM(), n_steps=12)
    with pytest.raises(BadValue, match="no complete run"):
        budget.result()

    def cut(i, *rest):
        budget(i, *rest)
        if i == 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        tr.record(RING, HEUN, range(4), observe=cut)
    assert budget.n == 0
    tr.record(RING, HEUN, range(7), batch=4, observe=budget)  # the data are taken again from the start
    assert budget.n == 7
    with pytest.raises(BadValue, match="from its start"):
        budget(3, 1.0, 0.5, torch.zeros(1, 2), None)
    with pytest.raises(BadValue, match="shape"):
        tr.RunningBudget(RING, torch.zeros(3, 3), path=EDM(), n_steps=12)
