"""Recording, labelled geometry, couplings, local errors and storage, on models known in closed form."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import xarray as xr

from explorer import trajectory as tr
from explorer.errors import BadFile, BadValue, NonFinite, UnknownName
from explorer.models.base import Oracle
from explorer.process import EDM, VP, Linear, Trig
from explorer.process.oracles import GaussianMixture
from explorer.sampling import (
    DPMpp2M,
    EDMStochastic,
    Euler,
    Heun,
    OdeSampler,
    Restart,
    RestartSampler,
    Seeds,
    TimeGrid,
    sample,
)
from explorer.trajectory import dataset, geometry, storage
from explorer.trajectory.storage import ZARR_CODECS


def gaussian(s: float = 0.5, dim: int = 2, path=None) -> Oracle:
    return Oracle(GaussianMixture(torch.zeros(1, dim), s), path, name="gaussian")


def ring(labels: bool = False) -> Oracle:
    angles = 2 * math.pi * torch.arange(6, dtype=torch.float64) / 6
    means = 3 * torch.stack((angles.cos(), angles.sin()), dim=1)
    return Oracle(GaussianMixture(means, 0.3, labels=torch.arange(6) if labels else None), name="ring")


HEUN = OdeSampler(Heun(), TimeGrid.karras(12, 0.002, 80))


def test_a_recording_has_the_schema_and_the_states_of_the_run():
    model, seen = ring(labels=True), []
    seeds = Seeds(range(3, 13))
    ends = sample(model, HEUN, seeds, observe=lambda i, t, t_next, x, step: seen.append((i, t, t_next, x, step)))
    ds = tr.record(model, HEUN, range(3, 13), keep=("x", "slope", "x0_hat", "error"))
    assert tr.validate(ds) is ds
    assert dict(ds.sizes) == {"sample": 10, "time": 13, "step": 12, "feature": 2}
    assert ds.seed.values.tolist() == list(range(3, 13)) and ds.label.values.tolist() == [i % 6 for i in range(3, 13)]
    assert ds.attrs["nfe"] == 23 and ds.nfe.values.tolist() == [*range(2, 24, 2), 23]
    assert ds.attrs["model"] == "ring" and json.loads(ds.attrs["sampler"]) == HEUN.to_dict()
    assert ds.attrs["path"] == dataset.path_to_json(EDM())
    np.testing.assert_array_equal(ds.t, HEUN.grid.on(EDM()))
    np.testing.assert_array_equal(ds.x[:, -1], ends)
    for i, t, t_next, x, step in seen:
        assert (ds.t[i], ds.t[i + 1]) == (t, t_next)
        np.testing.assert_array_equal(ds.x[:, i], x)
        np.testing.assert_array_equal(ds.x[:, i + 1], step.x)
        np.testing.assert_array_equal(ds.slope[:, i], step.slope)
        denoised = model.denoise(x, t, torch.as_tensor(ds.label.values))
        np.testing.assert_allclose(ds.x0_hat[:, i], denoised, rtol=0, atol=1e-12)
        if step.error is None:
            assert ds.error[:, i].isnull().all()
        else:
            np.testing.assert_array_equal(ds.error[:, i], step.error)


@pytest.mark.parametrize("solver", [Euler(), DPMpp2M()])
def test_slopes_and_denoised_fit_each_other_whatever_the_solver_computes(solver):
    model = ring()
    ds = tr.record(model, OdeSampler(solver, HEUN.grid), range(8), keep=("slope", "x0_hat"))
    for i in (0, 5, 11):
        x, t = torch.as_tensor(ds.x.values[:, i]), float(ds.t[i])
        np.testing.assert_allclose(ds.slope[:, i], model.velocity(x, t), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(ds.x0_hat[:, i], model.denoise(x, t), rtol=1e-9, atol=1e-9)


def test_a_recording_does_not_depend_on_the_batch():
    whole = tr.record(ring(), HEUN, range(11), batch=64)
    parts = tr.record(ring(), HEUN, range(11), batch=4)
    np.testing.assert_allclose(parts.x, whole.x, rtol=0, atol=1e-12)
    assert parts.nfe.equals(whole.nfe) and parts.seed.equals(whole.seed)


def test_images_get_named_dimensions_and_x_stays_a_variable():
    model = Oracle(GaussianMixture(torch.zeros(2, 1, 3, 4) + torch.tensor([-1.0, 1.0])[:, None, None, None], 0.1))
    ds = tr.record(model, OdeSampler(Euler(), TimeGrid.karras(3, 0.01, 10)), range(2))
    assert ds.x.dims == ("sample", "time", "channel", "row", "col") and "x" in ds.data_vars
    assert tr.straightness(ds).shape == (2,) and tr.curvature(ds).dims == ("sample", "step")


def test_n_keep_records_a_few_and_lets_the_observer_see_all():
    running = tr.RunningGeometry(EDM())
    ds = tr.record(ring(), HEUN, range(10), n_keep=3, batch=4, observe=running, dtype=torch.float32)
    assert ds.sizes["sample"] == 3 and ds.seed.values.tolist() == [0, 1, 2] and ds.x.dtype == np.float32
    assert running.n == 10
    np.testing.assert_allclose(ds.x, tr.record(ring(), HEUN, range(3)).x, rtol=1e-6)


def test_the_size_of_a_recording_is_known_before_it_is_made():
    keep = ("x", "slope", "x0_hat")
    ds = tr.record(ring(), HEUN, range(7), keep=keep)
    assert tr.bytes_needed(7, 12, (2,), keep) == sum(v.nbytes for v in ds.data_vars.values())
    model = ring()
    with pytest.raises(BadValue, match=r"n_keep=5\b"):
        tr.record(model, HEUN, range(100), limit=tr.bytes_needed(5, 12, (2,)))
    assert model.n_calls == 0
    with pytest.raises(UnknownName, match="slope"):
        tr.record(model, HEUN, range(2), keep=("slpe",))


def test_labels_can_be_chosen():
    ds = tr.record(ring(labels=True), HEUN, range(4), 2)
    assert ds.label.values.tolist() == [2] * 4
    ds = tr.record(ring(labels=True), HEUN, range(4), torch.tensor([5, 4, 3, -1]))
    assert ds.label.values.tolist() == [5, 4, 3, -1]
    assert tr.record(ring(), HEUN, range(4)).label.values.tolist() == [-1] * 4


def stored_numbers(ds: xr.Dataset, path=None) -> dict[str, tuple]:
    """Mean and standard error of everything RunningGeometry reports, from stored states."""
    out = {}
    for function in (tr.curvature, tr.turning_angle, tr.step_length, tr.straightness):
        by_step = function(ds, "step", path=path)
        name = [k for k in by_step.data_vars if not k.endswith("_se")][0]
        out[name] = (by_step[name].values, by_step[f"{name}_se"].values)
    line = tr.moved(ds, path) if path else ds
    x = torch.as_tensor(line.x.values)
    single = {
        "straightness": tr.straightness(ds, path=path).values,
        "total_turning": tr.turning_angle(ds, path=path).values,
        "arc_chord": tr.arc_chord(ds, path=path).values,
        "nfss": tr.nfss(ds, path=path).values,
        "arc_length": geometry.arc_length(x).numpy(),
        "chord": geometry.chord(x).norm(dim=1).numpy(),
    }
    n = ds.sizes["sample"]
    return out | {k: (v.mean(), v.std(ddof=1) / math.sqrt(n)) for k, v in single.items()}


@pytest.mark.parametrize("onto", [None, Linear(), Trig(0.5)])
@pytest.mark.parametrize("batch", [100, 32])
def test_running_geometry_equals_the_stored_numbers(onto, batch):
    running = tr.RunningGeometry(EDM(), onto=onto, gaps=True)
    ds = tr.record(ring(), HEUN, range(100), batch=batch, observe=running)
    result = running.result()
    assert result.attrs["n"] == running.n == 100
    np.testing.assert_allclose(result.sigma, ds.sigma[:-1], rtol=1e-12)
    for name, (mean, error) in stored_numbers(ds, onto).items():
        got, got_error = result[name].values, result[f"{name}_se"].values
        if got.ndim and len(got) == len(mean) + 1:  # inner points: nothing at step 0
            assert math.isnan(got[0])
            got, got_error = got[1:], got_error[1:]
        scale = np.abs(mean).max()
        np.testing.assert_allclose(got, mean, rtol=1e-10, atol=1e-10 * scale, err_msg=name)
        np.testing.assert_allclose(got_error, error, rtol=1e-9, atol=1e-10 * scale, err_msg=name)


def test_running_geometry_merges_and_leaves_out_what_was_cut_short():
    whole, left, right = (tr.RunningGeometry(EDM(), n_steps=12) for _ in range(3))
    sample(ring(), HEUN, range(30), observe=whole)
    sample(ring(), HEUN, range(11), observe=left)
    sample(ring(), HEUN, range(11, 30), batch=8, observe=right)

    class Stop(Exception):
        pass

    def cut(i, *rest):
        if i == 5:
            raise Stop
        right(i, *rest)

    with pytest.raises(Stop):
        sample(ring(), HEUN, range(50), observe=cut)
    left.merge(right)
    assert left.n == 30
    xr.testing.assert_allclose(left.result(), whole.result(), rtol=1e-10)
    with pytest.raises(BadValue, match="from its start"):
        right(3, 1.0, 0.5, torch.zeros(1, 2), None)
    with pytest.raises(BadValue, match="no complete run"):
        tr.RunningGeometry().result()
    with pytest.raises(BadValue, match="same time grid"):
        other = tr.RunningGeometry(EDM())
        sample(ring(), OdeSampler(Euler(), TimeGrid.karras(3, 0.1, 80)), range(2), observe=other)
        left.merge(other)
    assert "velocity_gap" not in left.result()


def test_running_geometry_of_straight_lines_is_free_of_cancellation():
    """Constant velocity far from the origin: S must be rounding, not the difference of two large numbers."""
    running = tr.RunningGeometry()
    times = np.linspace(1, 0, 51)
    start, velocity = 1e4 * torch.randn(20, 5).double(), 1e3 * torch.randn(20, 5).double()
    from explorer.sampling import Step

    for i, (t, t_next) in enumerate(zip(times[:-1], times[1:], strict=True)):
        x, x_next = start + velocity * t, start + velocity * t_next
        running(i, float(t), float(t_next), x, Step(x_next, velocity, None, None))
    assert float(running.result().straightness) < 1e-15 * 1e8
    assert float(running.result().arc_chord) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("s", [0.3, 2.0])
def test_recorded_gaussian_has_the_closed_form_straightness_on_the_linear_path(s):
    grid = TimeGrid.uniform_t(180, 1e-4, 1e4)
    running = tr.RunningGeometry(EDM(), onto=Linear())
    ds = tr.record(gaussian(s, 3), OdeSampler(Heun(), grid), range(300), observe=running)
    noise = tr.noise_of(ds)
    exact = s * (2 - math.pi / 2) * noise.square().sum(dim=1)  # per sample; its mean is d s (2 - pi/2)
    measured = tr.straightness(ds, path=Linear())
    np.testing.assert_allclose(measured, exact, rtol=0.01)
    np.testing.assert_allclose(tr.straightness(ds, path=Linear(), per_dim=True), measured / 3, rtol=1e-12)
    assert float(running.result().straightness) == pytest.approx(float(measured.mean()), rel=1e-10)
    gap = tr.straightness(ds, "step", path=Linear())
    weights = -np.diff(tr.moved(ds, Linear()).t)
    assert float((gap.velocity_gap.values * weights).sum() / weights.sum()) == pytest.approx(float(measured.mean()))
    on_its_own_path = float(tr.straightness(ds).mean())
    assert on_its_own_path != pytest.approx(float(measured.mean()), rel=0.1)  # S depends on the path: say which


@pytest.mark.parametrize("path", [Linear(), VP(), Trig(0.5)])
def test_moving_a_recording_gives_the_states_and_slopes_of_the_other_path(path):
    model = ring()
    ds = tr.record(model, HEUN, range(6), keep=("slope", "x0_hat"))
    there = tr.moved(ds, path)
    np.testing.assert_allclose(there.sigma, ds.sigma, rtol=1e-9, atol=1e-15)
    for i in (1, 6, 11):
        x, t = torch.as_tensor(there.x.values[:, i]), float(there.t[i])
        np.testing.assert_allclose(there.slope[:, i], model.on(path).velocity(x, t), rtol=1e-8, atol=1e-8)
    without = tr.moved(ds.drop_vars("x0_hat"), path)
    np.testing.assert_allclose(without.slope, there.slope, rtol=1e-7, atol=1e-7)
    back = tr.moved(there, EDM())
    np.testing.assert_allclose(back.x, ds.x, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(back.slope, ds.slope, rtol=1e-6, atol=1e-8)
    assert tr.moved(ds, EDM()) is ds


def test_budget_of_a_recorded_mixture_closes():
    n = 2000
    ds = tr.record(ring(), OdeSampler(Heun(), TimeGrid.uniform_t(100, 1e-4, 1e4)), range(n))
    data, _ = ring().mixture.sample(n, torch.Generator().manual_seed(0))
    b = tr.budget(ds, ring(), data)
    assert b.attrs["n"] == n and float(b.straightness) > 0.1 and float(b.conflict) > 0.1
    assert abs(float(b.residual)) < 0.02 * float(b.cost) + 3 * float(b.residual_se)
    assert float(b.cost) == pytest.approx(2 + 9 + 2 * 0.3**2, abs=4 * float(b.cost_se))  # E|eps|^2 + E|x0|^2
    assert float(b.chord) < float(b.cost)


def test_coupling_of_the_gaussian_flow_is_the_optimal_scaling():
    s, n = 0.5, 100
    ds = tr.record(gaussian(s), OdeSampler(Heun(), TimeGrid.karras(60, 1e-3, 1e3)), range(n))
    ends = tr.endpoints(ds)
    np.testing.assert_allclose(ends.data, s * ends.noise, atol=0.02)
    np.testing.assert_allclose(ends.cost, (1 - s) ** 2 * (ends.noise**2).sum("feature"), rtol=0.05, atol=0.01)
    assert tr.coupling_cost(ds).equals(ends.cost.rename("coupling_cost")) or np.allclose(
        tr.coupling_cost(ds), ends.cost
    )
    noise, data = tr.noise_of(ds), tr.data_of(ds)
    best = tr.optimal_cost(noise, data)
    assert best == pytest.approx(float(ends.cost.mean()), rel=1e-9)  # a gradient map: nothing is cheaper
    shuffled = tr.optimal_cost(noise, data[torch.randperm(n, generator=torch.Generator().manual_seed(0))])
    assert shuffled == pytest.approx(best, rel=1e-12)
    exact = s * (2 - math.pi / 2) / (1 - s) ** 2  # S / W2^2, straight from the closed forms
    assert tr.normalised_path_energy(ds) == pytest.approx(exact, rel=0.1)
    one = torch.randn(50, 1, dtype=torch.float64), torch.randn(50, 1, dtype=torch.float64)
    sorted_cost = float((one[0].sort(0).values - one[1].sort(0).values).square().mean())
    assert tr.optimal_cost(*one) == pytest.approx(sorted_cost, rel=1e-12)


def test_a_flow_on_the_line_is_the_monotone_map():
    """In one dimension paths cannot cross: the coupling is F^-1(Phi(eps)), also the cheapest one."""
    means, s = torch.tensor([[-2.0], [0.5], [3.0]], dtype=torch.float64), 0.4
    model = Oracle(GaussianMixture(means, s, weights=torch.tensor([1.0, 2.0, 1.0])))
    ds = tr.record(model, OdeSampler(Heun(), TimeGrid.karras(150, 1e-3, 1e3)), range(200))
    noise, data = tr.noise_of(ds)[:, 0], tr.data_of(ds)[:, 0]
    weights = model.mixture.log_weights.exp()
    reached = (weights * torch.special.ndtr((data[:, None] - means.T) / s)).sum(dim=1)
    assert float((reached - torch.special.ndtr(noise)).abs().max()) < 0.005
    assert torch.equal(noise.argsort(), data.argsort())
    assert tr.optimal_cost(noise[:, None], data[:, None]) == pytest.approx(float(tr.coupling_cost(ds).mean()))


def test_intersection_of_the_gaussian_is_the_closed_form():
    s, d, n = 0.7, 2, 4000
    generator = torch.Generator().manual_seed(0)
    noise, x0 = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    v = tr.intersection(gaussian(s, d), noise, s * x0)
    assert v.attrs["mean"] == pytest.approx(d * s * math.pi / 2, abs=4 * v.attrs["std_error"] + 0.01)
    assert v.sizes["time"] == 50 and v.attrs["n"] == n


def test_crossings_of_a_flow_are_fewer_than_of_a_random_pairing():
    ds = tr.record(ring(), HEUN, range(200))
    flow = tr.crossings(ds)
    assert flow.attrs["n"] == 200 and flow.sizes["crossing"] == flow.attrs["n_crossings"]
    swapped = ds.copy(deep=True)
    swapped.x[:, -1] = ds.x.values[::-1, -1]
    assert tr.crossings(swapped).attrs["n_crossings"] > 2 * flow.attrs["n_crossings"]
    assert tr.conflict(swapped).attrs["mean"] > 2 * tr.conflict(ds).attrs["mean"]


def test_end_points_are_compared_on_the_same_noise_only():
    fine = tr.record(ring(), OdeSampler(Heun(), TimeGrid.karras(40, 0.002, 80)), range(20))
    one = tr.record(ring(), OdeSampler(Euler(), TimeGrid.karras(1, 0.002, 80)), range(20))
    gap = tr.end_distance(fine, one)
    expected = np.linalg.norm(fine.x.values[:, -1] - one.x.values[:, -1], axis=1)
    np.testing.assert_allclose(gap, expected, rtol=1e-12)
    assert float(tr.end_distance(fine, fine).max()) == 0
    with pytest.raises(BadValue, match="seeds"):
        tr.end_distance(fine, tr.record(ring(), HEUN, range(1, 21)))


def test_local_error_has_the_order_of_the_solver_and_both_estimates_agree():
    """One step of a p-th order method misses by O(h^(p+1)): halving the step divides it by 2^(p+1)."""
    model = gaussian(0.5)
    for solver, order in ((Euler(), 1), (Heun(), 2)):
        errors = []
        for n in (1, 2, 4):
            times = [2.0 - 0.25 * i / n for i in range(n + 1)]
            ds = tr.record(model, OdeSampler(solver, TimeGrid.explicit(times)), range(50))
            reference = tr.local_error(ds, model)
            doubled = tr.local_error(ds, model, kind="doubling")
            q = ds.t[:-1] ** 2 + 0.25
            exact_next = np.sqrt((ds.t.values[1:] ** 2 + 0.25) / q.values)[None, :, None] * ds.x.values[:, :-1]
            exact = np.linalg.norm(ds.x.values[:, 1:] - exact_next, axis=2)
            np.testing.assert_allclose(reference, exact, rtol=1e-4)
            np.testing.assert_allclose(doubled, exact, rtol=0.15)
            errors.append(float(reference[:, 0].mean()))
        slope = math.log2(errors[1] / errors[2])
        assert slope == pytest.approx(order + 1, abs=0.15)


def test_local_error_by_step_down_to_data_and_for_a_multistep_solver():
    model = ring(labels=True)
    ds = tr.record(model, OdeSampler(DPMpp2M(), HEUN.grid), range(20))
    by_step = tr.local_error(ds, model, "step", batch=7)
    assert by_step.sizes["step"] == 12 and bool(np.isfinite(by_step.local_error).all())
    with pytest.raises(BadValue, match="one-step"):
        tr.local_error(ds, model, kind="doubling")
    noisy = tr.record(model, OdeSampler(EDMStochastic(), HEUN.grid), range(3))
    with pytest.raises(BadValue, match="stochastic"):
        tr.local_error(noisy, model)
    exact = tr.record(model, OdeSampler(Heun(), TimeGrid.karras(60, 0.002, 80)), range(20))
    assert float(tr.local_error(exact, model, substeps=2).mean()) < 0.1 * float(by_step.local_error.mean())


def test_flow_curvature_is_zero_on_rays_and_agrees_with_menger_on_a_fine_run():
    x = torch.randn(10, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(tr.flow_curvature(gaussian(0.5), x, 1.0).max()) < 1e-6
    model = ring()
    ds = tr.record(model, OdeSampler(Heun(), TimeGrid.log_snr(400, 0.05, 80, to_zero=False)), range(20))
    menger = tr.curvature(ds)
    i = 250
    there = tr.flow_curvature(model, torch.as_tensor(ds.x.values[:, i]), float(ds.t[i]), h=1e-4)
    np.testing.assert_allclose(there, menger.sel(step=i), rtol=0.05, atol=1e-3)


def test_curvature_kinds_agree_on_smooth_parts_and_labels_say_where():
    ds = tr.record(ring(), OdeSampler(Heun(), TimeGrid.log_snr(200, 0.05, 80, to_zero=False)), range(30))
    menger, tangent = tr.curvature(ds), tr.curvature(ds, kind="tangent")
    assert menger.step.values.tolist() == list(range(1, 200))
    np.testing.assert_array_equal(menger.sigma, ds.sigma[1:-1])
    assert float(abs(menger.median() - tangent.median()) / menger.median()) < 0.05
    by_step = tr.curvature(ds, "step")
    np.testing.assert_allclose(by_step.curvature, menger.mean("sample"))
    np.testing.assert_allclose(by_step.curvature_se, menger.std("sample", ddof=1) / math.sqrt(30))
    assert by_step.attrs["n"] == 30
    with pytest.raises(UnknownName, match="menger"):
        tr.curvature(ds, kind="mengr")
    with pytest.raises(BadValue, match="keep"):
        tr.curvature(ds.drop_vars("slope"), kind="tangent")


def test_angle_proxy_is_labelled():
    ds = tr.record(ring(), HEUN, range(30))
    proxy = tr.angle_proxy(ds, path=Linear())
    assert proxy.angle.shape == (13, 13) and proxy.attrs["n"] == 30
    assert float(proxy.angle.max()) <= math.pi and bool(proxy.angle.isel(start=0, end=0).isnull())
    assert float(proxy.angle.isel(start=0, end=1)) < float(proxy.angle.isel(start=0, end=12))


@pytest.mark.parametrize("name", ["run.nc", "run.zarr"])
def test_a_stored_trajectory_comes_back_identical(tmp_path, name):
    ds = tr.record(ring(labels=True), HEUN, range(5), keep=("slope", "x0_hat", "error"))
    file = tr.save(ds, tmp_path / "deep" / name)
    back = tr.load(file)
    assert back.identical(ds) and {k: type(v) for k, v in back.attrs.items()} == {
        k: type(v) for k, v in ds.attrs.items()
    }
    assert all(back[v].dtype == ds[v].dtype for v in ds.variables)
    tr.save(ds.isel(sample=[0]), file)  # replaces
    assert tr.load(file).sizes["sample"] == 1
    assert [p.name for p in file.parent.iterdir()] == [name]  # nothing temporary is left
    xr.testing.assert_allclose(tr.straightness(back), tr.straightness(ds), rtol=1e-13)  # sums in another order


@pytest.mark.parametrize("name", ["run.nc", "run.zarr"])
def test_a_failed_save_leaves_the_old_file(tmp_path, name, monkeypatch):
    ds = tr.record(ring(), HEUN, range(2))
    file = tr.save(ds, tmp_path / name)

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", fail)
    monkeypatch.setattr(xr.Dataset, "to_zarr", fail)
    with pytest.raises(OSError, match="disk full"):
        tr.save(ds, file)
    assert tr.load(file).identical(ds) and [p.name for p in tmp_path.iterdir()] == [name]


def test_bad_files_are_refused_in_words(tmp_path):
    ds = tr.record(ring(), HEUN, range(2))
    with pytest.raises(BadFile, match="no trajectory at"):
        tr.load(tmp_path / "none.nc")
    with pytest.raises(BadValue, match="netCDF"):
        tr.save(ds, tmp_path / "run.pt")
    with pytest.raises(BadValue, match="not a trajectory"):
        tr.save(xr.Dataset({"a": 1}), tmp_path / "a.nc")
    file = tr.save(ds, tmp_path / "run.nc")
    (tmp_path / "cut.nc").write_bytes(file.read_bytes()[:500])
    with pytest.raises(BadFile, match="cannot be read"):
        tr.load(tmp_path / "cut.nc")
    xr.Dataset({"a": 1}).to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    with pytest.raises(BadFile, match="not a trajectory"):
        tr.load(tmp_path / "other.nc")
    ds.assign_attrs(schema_version=99).to_netcdf(tmp_path / "new.nc", engine="h5netcdf")
    with pytest.raises(BadFile, match="newer"):
        tr.load(tmp_path / "new.nc")
    ds.drop_vars("sigma").to_netcdf(tmp_path / "less.nc", engine="h5netcdf")
    with pytest.raises(BadFile, match="lacks sigma"):
        tr.load(tmp_path / "less.nc")


def test_zarr_codecs_that_could_execute_code_are_refused(tmp_path):
    file = tr.save(tr.record(ring(), HEUN, range(2)), tmp_path / "run.zarr")
    node = file / "x" / "zarr.json"
    node.write_text(node.read_text().replace('"zstd"', '"numcodecs.pickle"'))
    assert "numcodecs.pickle" not in ZARR_CODECS
    with pytest.raises(BadFile, match="pickle"):
        tr.load(file)


@pytest.mark.parametrize(
    ("variables", "t", "words"),
    [
        ({"x": np.zeros((2, 3, 1))}, [1.0, 0.5], "3 time points"),
        ({"x": np.zeros((2, 3, 1))}, [1.0, 0.5, 0.5], "strictly"),
        ({"x": np.zeros((2, 3, 1)), "slope": np.zeros((2, 3, 1))}, [1.0, 0.5, 0.0], "slope must be"),
        ({"x": np.zeros((2, 3, 1)), "velocity": np.zeros((2, 2, 1))}, [1.0, 0.5, 0.0], "velocity"),
        ({}, [], "states"),
    ],
)
def test_a_trajectory_that_does_not_fit_is_refused(variables, t, words):
    with pytest.raises((BadValue, UnknownName), match=words):
        tr.trajectory(variables, t, EDM())


def test_a_trajectory_from_plain_arrays():
    t = np.linspace(1, 0, 11)
    w = 2.0
    x = np.stack((np.cos(w * t), np.sin(w * t)), axis=1)[None]
    ds = tr.trajectory({"x": x}, t, Linear())
    assert float(tr.straightness(ds)[0]) == pytest.approx(4 * 100 * math.sin(w / 20) ** 2 - 4 * math.sin(w / 2) ** 2)
    np.testing.assert_allclose(tr.curvature(ds), 1.0)
    assert float(tr.turning_angle(ds)[0]) == pytest.approx(9 * w / 10)


# Recordings that are projected, streamed, cut short


def stop_at(batch: int, error: type[BaseException] = RuntimeError):
    """An observer that breaks off in the third step of that batch."""
    seen = [-1]

    def observe(i, *rest):
        seen[0] += i == 0
        if seen[0] == batch and i == 2:
            raise error("stopped")

    return observe


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_was_finished_survives_an_interruption(error):
    with pytest.raises(error) as caught:
        tr.record(ring(labels=True), HEUN, range(11), batch=4, observe=stop_at(2, error))
    xr.testing.assert_identical(caught.value.partial, tr.record(ring(labels=True), HEUN, range(8), batch=4))
    assert "8 finished samples" in caught.value.__notes__[0]
    with pytest.raises(error) as caught:
        tr.record(ring(), HEUN, range(4), observe=stop_at(0, error))
    assert caught.value.partial is None


def test_what_was_finished_survives_a_sample_that_is_not_finite():
    class Cursed(Oracle):
        def predict(self, x_t, t, cond=None):
            pred, kind = super().predict(x_t, t, cond)
            return torch.where(cond[:, None] == 5, torch.nan, pred), kind

    cursed, ds = Cursed(ring(labels=True).mixture, name="ring"), tr.record(ring(labels=True), HEUN, range(4), batch=2)
    with pytest.raises(NonFinite) as caught:
        tr.record(cursed, HEUN, range(8), batch=2)  # class 5 is in the third batch
    xr.testing.assert_identical(caught.value.partial, ds)
    assert caught.value.samples == [1]


@pytest.mark.parametrize("name", ["run.nc", "run.zarr"])
def test_a_streamed_recording_is_the_one_in_memory(tmp_path, name):
    running = [tr.RunningGeometry(EDM()) for _ in range(2)]
    keep = ("slope", "x0_hat", "error")
    model = ring(labels=True)
    plain = tr.record(model, HEUN, range(11), batch=4, keep=keep, n_keep=9, observe=running[0])
    ds = tr.record(model, HEUN, range(11), batch=4, keep=keep, n_keep=9, observe=running[1], to=tmp_path / "in" / name)
    xr.testing.assert_identical(ds, plain)
    xr.testing.assert_identical(tr.load(tmp_path / "in" / name), plain)
    assert running[1].n == 11 and [p.name for p in (tmp_path / "in").iterdir()] == [name]  # nothing else is left
    xr.testing.assert_allclose(running[0].result(), running[1].result(), rtol=1e-10)
    lazy = tr.load(tmp_path / "in" / name, lazy=True)
    xr.testing.assert_allclose(tr.straightness(lazy), tr.straightness(plain), rtol=1e-12)
    lazy.close()
    # a second recording of the same name replaces the first
    tr.record(model, HEUN, range(2), to=tmp_path / "in" / name)
    assert tr.load(tmp_path / "in" / name).sizes["sample"] == 2


@pytest.mark.parametrize("name", ["run.nc", "run.zarr"])
def test_an_interrupted_stream_is_readable_and_goes_on(tmp_path, name):
    file, model = tmp_path / name, ring(labels=True)
    part = file.with_name(name.replace(".", ".part."))
    with pytest.raises(RuntimeError) as caught:
        tr.record(model, HEUN, range(11), batch=4, to=file, observe=stop_at(2))
    assert caught.value.partial == str(part) and "8 of 11" in caught.value.__notes__[0]
    xr.testing.assert_identical(tr.load(part), tr.record(model, HEUN, range(8), batch=4))
    with pytest.raises(BadFile, match="8 of 11 samples"):
        tr.load(file)
    for others in ({"seeds": range(12)}, {"sampler": OdeSampler(Euler(), HEUN.grid)}, {"dtype": torch.float32}):
        with pytest.raises(
            BadValue, match="another " + ("n, seeds, labels" if "seeds" in others else next(iter(others)))
        ):
            tr.record(model, **{"sampler": HEUN, "seeds": range(11), **others}, to=file)
    model.reset_calls()
    ds = tr.record(model, HEUN, range(11), batch=999, to=file)  # goes on in batches of 4, as it began
    assert model.n_calls == 23  # the last batch only
    xr.testing.assert_identical(ds, tr.record(model, HEUN, range(11), batch=4))
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["run.nc", "run.zarr"])
def test_a_stream_killed_while_it_writes_keeps_the_batches_before(tmp_path, name, monkeypatch):
    file = tmp_path / name
    part, append = file.with_name(name.replace(".", ".part.")), storage.Stream._tell

    def die(self, done):
        if done == 8:
            raise SystemExit  # the data of the second batch are written, that they are is not
        append(self, done)

    monkeypatch.setattr(storage.Stream, "_tell", die)
    with pytest.raises(SystemExit):
        tr.record(ring(), HEUN, range(10), batch=4, to=file)
    monkeypatch.undo()
    xr.testing.assert_identical(tr.load(part), tr.record(ring(), HEUN, range(4), batch=4))
    xr.testing.assert_identical(
        tr.record(ring(), HEUN, range(10), batch=4, to=file), tr.record(ring(), HEUN, range(10), batch=4)
    )
    with pytest.raises(BadValue, match="in the way"):
        (tmp_path / "other.part.zarr").mkdir()
        (tmp_path / "other.part.zarr" / "mine").touch()
        tr.record(ring(), HEUN, range(2), to=tmp_path / "other.zarr")
    with pytest.raises(BadValue, match="netCDF"):
        tr.record(ring(), HEUN, range(2), to=tmp_path / "run.h5")


def test_a_recording_too_large_for_memory_or_disk_says_what_would_fit(tmp_path, monkeypatch):
    import shutil

    model, one = ring(), tr.bytes_needed(1, 12, (2,))
    with pytest.raises(BadValue, match=r"n_keep=5\b.*float32.*project=.*to='run.zarr'"):
        tr.record(model, HEUN, range(100), limit=5 * one)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 0, 30 * one))
    with pytest.raises(BadValue, match=r"has .* GiB: keep 30 samples \(n_keep=30\)"):
        tr.record(model, HEUN, range(100), to=tmp_path / "run.zarr")
    with pytest.raises(BadValue, match=r"n_keep=15\).*\.zarr"):  # a netCDF file is there twice while it is joined
        tr.record(model, HEUN, range(100), to=tmp_path / "run.nc")
    with pytest.raises(BadValue, match="batch=7,"):
        tr.record(model, HEUN, range(20), to=tmp_path / "run.zarr", limit=7 * one)
    assert model.n_calls == 0 and not list(tmp_path.iterdir())
    ds = tr.record(model, HEUN, range(20), to=tmp_path / "run.zarr", limit=7 * one, batch=7)
    assert ds.sizes["sample"] == 20 and float(tr.straightness(ds).mean()) > 0  # larger than the limit: left on disk


def test_a_projected_recording_is_the_projection_of_the_recording():
    means = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    model = Oracle(GaussianMixture(means, 0.1))
    whole = tr.record(model, HEUN, range(7), keep=("slope", "x0_hat", "error"), batch=4)
    basis = tr.principal_basis(whole, 2)
    expected = tr.project(whole, basis)
    axes = torch.as_tensor(basis.axes.values).flatten(1)
    for project in (basis, lambda x: x.flatten(1) @ axes.to(x.dtype).T):
        ds = tr.record(model, HEUN, range(7), keep=("slope", "x0_hat", "error"), batch=4, project=project)
        xr.testing.assert_allclose(ds, expected, rtol=1e-12)
        assert ds.attrs["projected_from"] == "[1, 3, 3]" and ds.x.shape == (7, 13, 2)
    assert tr.moved(ds, Linear()).attrs["projected_from"] == "[1, 3, 3]"
    with pytest.raises(BadValue, match="projection"):
        tr.local_error(ds, model)
    with pytest.raises(BadValue, match="linear"):
        tr.record(model, HEUN, range(2), project=lambda x: x.flatten(1)[:, :2] + 1)
    with pytest.raises(BadValue, match="numbers"):
        tr.record(model, HEUN, range(2), project=lambda x: x[:, :, 0])
    with pytest.raises(BadValue, match="shape"):
        tr.record(ring(), HEUN, range(2), project=basis)
    small = tr.bytes_needed(7, 12, (2,))
    tr.record(model, HEUN, range(7), project=basis, limit=small)
    with pytest.raises(BadValue, match="limit"):
        tr.record(model, HEUN, range(7), limit=small)


def test_a_run_that_turns_back_falls_into_pieces():
    t = [10.0, 3.0, 1.0, 3.0, 1.0, 0.5, 0.0]
    x = torch.randn(2, 7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.raises(BadValue, match="strictly"):
        tr.trajectory({"x": x}, t, EDM())
    ds = tr.trajectory({"x": x}, t, EDM(), turning=True)
    with pytest.raises(BadValue, match="turns back"):
        tr.straightness(ds)
    first, second = tr.pieces(ds)
    assert first.t.values.tolist() == [10, 3, 1] and second.t.values.tolist() == [3, 1, 0.5, 0]
    assert tr.validate(second) is second and tr.straightness(second).shape == (2,)
    restart = RestartSampler(TimeGrid.karras(8, 0.002, 80), (Restart(4, 2, 0.3, 2.0),))
    down = tr.record(ring(), restart, range(3))
    np.testing.assert_array_equal(down.x[:, -1], sample(ring(), restart, range(3)))
    parts = tr.pieces(down)
    assert len(parts) == 3 and all(np.isfinite(tr.straightness(part)).all() for part in parts)
    with pytest.raises(BadValue, match="turns back"):
        tr.straightness(down)
    with pytest.raises(BadValue, match="stochastic"):
        tr.local_error(down, ring())
    run = tr.record(ring(), HEUN, range(2))
    assert len(tr.pieces(run)) == 1 and tr.pieces(run)[0].identical(run)


def test_running_geometry_counts_what_has_no_direction():
    still = Oracle(GaussianMixture(torch.zeros(1, 2), 1.0), VP(), name="unit Gaussian: nothing moves on this path")
    running = tr.RunningGeometry(VP())
    ds = tr.record(still, OdeSampler(DPMpp2M(), TimeGrid.karras(6, 0.1, 10)), range(5), observe=running)
    stored = int(tr.nfss(ds).attrs["n_clamped"])
    assert running.result().attrs["n_clamped"] == stored
    moving = tr.RunningGeometry(EDM())
    sample(ring(), HEUN, range(5), observe=moving)
    assert moving.result().attrs["n_clamped"] == 0
