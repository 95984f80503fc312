"""Benchmarks: what a row says and how it is measured; no time is asserted. And what the fast paths must not break."""

import json
import math
import sys

import pytest
import torch
from problems import oracle
from torch import nn

from explorer import bench
from explorer.bench import clock, suite
from explorer.bench.clock import Effort, installed, rounds
from explorer.bench.rows import Row
from explorer.errors import BadValue, NonFinite, UnknownName
from explorer.models import Preconditioned, as_denoiser
from explorer.process import EDM, EDMPrecondition, FlowPrecondition, paths
from explorer.sampling import SOLVERS, DPMpp2M, EDMStochastic, Euler, Heun, OdeSampler, Seeds, TimeGrid, solve

FIELDS = {
    "name", "ours", "unit", "limit", "limit_is", "ratio", "target", "peers", "speedup", "absent", "checks", "n_runs",
    "fewer_runs", "min", "median", "max", "note", "floor",
}  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "diffusers", None)  # slow to import
        return bench.run(["solver-overhead-euler", "solver-overhead-recording", "frechet-d64"], runs=2, quick=True)


def test_rows_say_what_they_measured(rows):
    assert [row.name for row in rows] == ["solver-overhead-euler", "solver-overhead-recording", "frechet-d64"]
    for row in rows:
        assert set(row.to_dict()) == FIELDS
        assert 0 < row.min <= row.median == row.ours <= row.max and row.limit > 0
        assert row.n_runs == 2 and row.ratio > 0 and row.note
        assert row.peers.keys().isdisjoint(row.absent)
        assert (row.speedup is None) == (not row.peers)


def test_a_row_checks_that_everybody_computed_the_same(rows):
    overhead, _, frechet = rows
    assert overhead.absent == ("diffusers FlowMatchEuler",)
    assert overhead.checks["torchdiffeq euler"] < 1e-5  # it runs in float32
    assert frechet.checks["numpy eigvals"] < 1e-6 and frechet.checks["scipy sqrtm"] < 1e-6


def test_the_document_survives_json_and_names_machine_and_versions(rows, tmp_path):
    file = tmp_path / "deep" / "bench.json"
    bench.save(rows, file)
    read = json.loads(file.read_text())
    assert {row["name"] for row in read["rows"]} == {row.name for row in rows}
    assert read["versions"]["torch"] == torch.__version__
    assert read["machine"]["cores"] >= 1 and read["machine"]["threads"] >= 1 and read["machine"]["cpu"]
    assert "cuda" in read["machine"] and read["date"].endswith("+00:00")
    assert [f.name for f in file.parent.iterdir()] == ["bench.json"]


def test_names_belong_to_families_and_unknown_ones_are_told():
    named = {name for name in bench.names() if name.startswith("solver-overhead-")}
    assert {f"solver-overhead-{name}" for name in SOLVERS} <= named
    assert {f"solver-unet-{name}" for name in SOLVERS} <= set(bench.names())
    assert all(any(name.startswith(f"{f}-") for f in bench.families()) for name in bench.names())
    assert any(name.endswith("-cuda") for name in bench.names()) == torch.cuda.is_available()
    with pytest.raises(UnknownName, match="frechet"):
        bench.run(["frechett"])
    with pytest.raises(BadValue, match="runs"):
        bench.run(["frechet-d64"], runs=0)


def test_a_row_that_fails_takes_no_other_with_it(monkeypatch, rows):
    def broken(name, effort):
        raise ZeroDivisionError("no time")

    monkeypatch.setattr(suite, "benches", lambda: {"frechet-a": broken, "frechet-b": lambda name, effort: rows[0]})
    kept = []
    with pytest.warns(UserWarning, match="frechet-a could not be measured: ZeroDivisionError: no time"):
        assert bench.run(["frechet-a", "frechet-b"], found=lambda so_far: kept.append(len(so_far))) == rows[:1]
    assert kept == [1]


def test_contestants_take_turns_and_slow_ones_have_fewer(monkeypatch):
    monkeypatch.setattr(clock, "SLOW", -1.0)
    calls = []
    monkeypatch.setattr(clock, "FEW", 2)
    work = {"ours": lambda: calls.append("ours") or 1, "peer": lambda: calls.append("peer") or 2}
    times, first = rounds(work, Effort(runs=3), best_of=1)
    assert first == {"ours": 1, "peer": 2}
    assert [len(values) for values in times.values()] == [2, 2]
    squeezed = [name for i, name in enumerate(calls) if i == 0 or calls[i - 1] != name]
    assert squeezed == ["ours", "peer"] * 3  # the first calls, then two rounds


def test_a_missing_library_is_absent_not_an_error():
    def missing():
        raise ImportError("no such library")

    assert installed({"here": lambda: int, "gone": missing}) == ({"here": int}, ["gone"])


def test_a_row_of_times_and_of_rates():
    times = {"ours": [0.3, 0.2, 0.25], "limit": [0.2, 0.2, 0.1], "peer": [1.0]}
    row = Row.of("train-x", times, unit="s", limit_is="bare")
    assert (row.ours, row.min, row.max, row.limit) == (0.25, 0.2, 0.3, 0.2)
    assert row.ratio == pytest.approx(1.5)  # the median of 1.5, 1 and 2.5, round by round
    assert row.speedup == pytest.approx(4.0) and row.fewer_runs == {"peer": 1}
    rate = row.as_rate(100, "images/s")
    assert rate.ours == 400 and (rate.min, rate.max) == (pytest.approx(100 / 0.3), 500)
    assert rate.peers == {"peer": 100} and rate.ratio == row.ratio


# Fast paths of the solver loop


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3))

    def forward(self, x, noise, cond=None):
        return self.weight * x + noise[:, None] if len(noise) == len(x) else self.weight * x + noise


def test_numbers_cached_while_sampling_serve_gradients_later():
    model = Preconditioned(Linear(), EDM(), EDMPrecondition(), shape=(2,), t_range=(0.01, 10.0))
    sampler, noise = OdeSampler(Heun(), TimeGrid.karras(3, 0.1, 5.0)), Seeds(range(4)).normal((2,))
    with torch.inference_mode():
        sampled = sampler.sample(model, noise)
    end = sampler.sample(model, noise.requires_grad_())
    end.sum().backward()
    assert torch.equal(end, sampled)
    assert noise.grad.abs().max() > 0 and model.net.weight.grad.abs() > 0


def test_a_network_moved_to_another_precision_is_asked_in_it():
    model = Preconditioned(Linear(), EDM(), EDMPrecondition(), shape=(2,), t_range=(0.01, 10.0))
    x = 3 * Seeds(range(4)).normal((2,))
    with torch.no_grad():
        single, double = model.velocity(x, 1.5), model.double().velocity(x, 1.5)
        half = model.bfloat16().velocity(x, 1.5)
    assert single.dtype == double.dtype == half.dtype == torch.float64
    exact = model.path.convert("x0", "velocity", 1.5)
    assert math.isfinite(exact[0]) and (single - double).abs().max() < 1e-6
    assert 1e-6 < (half - double).abs().max() < 0.1


@pytest.mark.parametrize("every", [1, 2, 3, 8, 100])
@pytest.mark.parametrize("solver", [Euler(), EDMStochastic(s_churn=3.0), DPMpp2M()], ids=lambda s: type(s).__name__)
def test_the_first_bad_step_is_named_however_seldom_one_looks(every, solver, monkeypatch):
    good = oracle()

    def function(x_t, t, cond):
        d = good.denoise(x_t, t)
        return torch.where(torch.arange(len(d))[:, None] == 2, math.inf, d) if t < 1.0 else d

    model = as_denoiser(function, "x0", EDM(), (2,), t_range=(0.001, 100.0))
    times = TimeGrid.karras(9, 0.02, 20.0).on(EDM())
    monkeypatch.setattr(sys.modules["explorer.sampling.solve"], "CHECK_EVERY", every)
    seeds = Seeds(range(4))
    with pytest.raises(NonFinite, match="step") as caught:
        solve(model, solver, 20 * seeds.normal((2,)), times, rng=seeds)
    asked_at = (
        times[1:] if isinstance(solver, EDMStochastic) else times
    )  # Heun's second evaluation is at the end of the step
    assert caught.value.step == next(i for i, t in enumerate(asked_at) if t < 1.0) and caught.value.samples == [2]
    assert torch.isfinite(caught.value.kept[[0, 1, 3]]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_velocity_network_asked_with_a_time_per_sample_is_called_and_nothing_else(dtype):
    model = Preconditioned(Linear(), paths.Linear(), FlowPrecondition(), shape=(2,), t_range=(0.01, 0.99))
    x, t = torch.randn(5, 2, dtype=dtype), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    out = model.velocity(x, t)
    assert out.dtype == dtype and torch.equal(out, model.net(x.float(), t.float()).to(dtype))
