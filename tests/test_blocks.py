"""Seed blocks: equal to a straight computation, to two processes and to interrupted runs bit by bit; the command around them."""

import json
import math
import os
import signal
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import multiprocessing as mp
from typer.testing import CliRunner

from explorer import cli
from explorer.errors import BadFile, BadValue
from explorer.metrics import Frechet, Reference, feature_space, protocol
from explorer.metrics.accumulate import Accumulator
from explorer.metrics.features import FeatureSpace
from explorer.metrics.frechet import Moments, finite_sample_bias, frechet_distance, spectrum
from explorer.models.bundled import load
from explorer.reproduction.blocks import LEAST_OF, BlockPlan, BlockScores, seed_blocks
from explorer.sampling import Euler, OdeSampler, Seeds, TimeGrid, sample
from explorer.training import distributed

PLAN = BlockPlan(n=90, n_blocks=2, first_seed=7, batch=5, n_lanes=4)
SAMPLER = OdeSampler(Euler(), TimeGrid.karras(3, 0.02, 20.0))


def setting():
    """The bundled digits model, its features of rounded pictures, and the training data in them."""
    from explorer.data import load_dataset

    space = protocol("edm").seen(feature_space("digits-cnn"))
    return load("digits"), space, Reference.of(space, load_dataset("digits").x, data="digits/train")


@pytest.fixture(scope="module")
def given():
    return setting()


@pytest.fixture(scope="module")
def alone(given, tmp_path_factory):
    """Scores and folder of an undisturbed run."""
    model, space, reference = given
    folder = tmp_path_factory.mktemp("alone")
    return seed_blocks(model, SAMPLER, space, reference, PLAN, folder, protocol="edm"), folder


# accumulating


def test_accumulated_moments_are_numpys_in_any_cut():
    rng = np.random.default_rng(0)
    x = (
        rng.normal(size=(530, 40)) * rng.uniform(0.1, 5, 40) + 1000
    )  # a mean far from zero, where raw squares lose digits
    for cuts in ([], [1], [64, 128, 400], list(range(7, 530, 7))):
        sums = Accumulator(40, rows=64)
        for piece in np.split(x, cuts):
            sums.update(torch.from_numpy(piece))
        moments = sums.moments()
        assert moments.n == sums.n == 530
        np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-14)
        np.testing.assert_allclose(moments.cov, np.cov(x.T), rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(moments.cov, moments.cov.T, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("stop", [0, 10, 64, 65, 200])
def test_an_accumulator_goes_on_where_it_stopped_to_the_last_bit(stop):
    x = np.random.default_rng(1).normal(size=(230, 9))
    whole, first = Accumulator(9, rows=64), Accumulator(9, rows=64)
    whole.update(x[:stop])
    first.update(x[:stop])
    again = Accumulator.resume({k: v.copy() for k, v in first.state().items()}, rows=64)
    again.update(x[stop:])
    whole.update(x[stop:])
    assert np.array_equal(again.moments().scatter, whole.moments().scatter)
    assert np.array_equal(again.moments().mean, whole.moments().mean)


def test_accumulators_refuse_what_does_not_fit():
    sums = Accumulator(3)
    assert sums.moments().n == 0
    with pytest.raises(BadValue, match=r"\(B, 3\)"):
        sums.update(np.zeros((2, 4)))
    for change in ({"n": np.array(-1)}, {"lower": np.zeros(5)}, {"sum": np.zeros(2)}, {"shift": np.full(3, np.nan)}):
        with pytest.raises(BadValue, match="no state of an accumulator"):
            Accumulator.resume({**sums.state(), **change})


# blocks


def test_lanes_share_out_every_seed_once():
    for plan in (PLAN, BlockPlan(n=50, n_blocks=3, batch=64), BlockPlan(n=16, n_lanes=8), BlockPlan(n=1001, batch=64)):
        for block in range(plan.n_blocks):
            lanes = [[s for batch in plan.batches(block, lane) for s in batch] for lane in range(plan.n_lanes)]
            first = plan.first_seed + block * plan.n
            assert sorted(s for lane in lanes for s in lane) == list(range(first, first + plan.n))
            assert min(map(len, lanes)) > 0 and max(map(len, lanes)) - min(map(len, lanes)) <= 2 * plan.size
            assert all(len(batch) <= plan.batch for lane in range(plan.n_lanes) for batch in plan.batches(block, lane))


def test_scores_are_the_plain_distances_of_consecutive_seeds(given, alone):
    model, space, reference = given
    scores, folder = alone
    for block, estimate in enumerate(scores.estimates):
        x = space(sample(model, SAMPLER, Seeds(range(7 + 90 * block, 97 + 90 * block)))).numpy()
        moments = Moments.of(x)
        plain = frechet_distance(moments.mean, moments.cov, reference.mean, reference.root)
        # pictures do not depend on the batch but for float32 rounding in the networks
        assert estimate.value == pytest.approx(plain, rel=1e-5) and estimate.n == 90
        bias = finite_sample_bias(spectrum(moments.cov, reference.root).s, np.trace(moments.cov), 90)
        assert estimate.bias == pytest.approx(bias, rel=1e-4)
        assert estimate.name == "FD[digits-cnn@8bit]" and estimate.dof == 3 and estimate.std_error > 0
        with np.load(folder / f"block{block}.npz") as stored:
            np.testing.assert_allclose(stored["sigma"], moments.cov, rtol=1e-4, atol=1e-6)
    streaming = Frechet(space, reference)
    streaming.update(sample(model, SAMPLER, Seeds(range(7, 97))))
    assert scores.estimates[0].value == pytest.approx(streaming.compute("none").raw, rel=1e-5)


def test_the_least_the_mean_and_the_note_are_honest(alone):
    scores, _ = alone
    values = [e.value for e in scores.estimates]
    assert scores.least.value == min(values) and scores.mean.value == pytest.approx(np.mean(values))
    assert scores.mean.std_error == pytest.approx(np.std(values, ddof=1) / math.sqrt(2))
    assert scores.corrected.value == pytest.approx(np.mean([e.value - e.bias for e in scores.estimates]))
    assert "the least of 2 lies" in scores.note and "protocol 'edm'" in scores.note and "n = 90" in scores.note
    told = json.loads(json.dumps(scores.to_dict()))
    assert len(told["blocks"]) == 2 and told["least"]["value"] == min(values)
    draws = np.random.default_rng(0).normal(size=(200_000, 5))
    for k, below in LEAST_OF.items():  # its standard error is below 0.003
        assert draws[:, :k].min(1).mean() == pytest.approx(-below, abs=0.01)


def test_a_finished_run_is_read_and_another_one_refused(given, alone):
    model, space, reference = given
    scores, folder = alone
    kept = {"block0.json", "block0.npz", "block1.json", "block1.npz", "run.json"}
    assert {p.name for p in folder.iterdir()} == kept

    def never(x):
        raise AssertionError("measured again")

    blind = FeatureSpace(space.name, space.dim, never, space.hash)
    assert seed_blocks(model, SAMPLER, blind, reference, PLAN, folder, protocol="edm").estimates == scores.estimates
    with pytest.raises(BadValue, match="another measurement.*protocol"):
        seed_blocks(model, SAMPLER, blind, reference, PLAN, folder, protocol="torch-fidelity")
    with pytest.raises(BadValue, match="another measurement.*sampler"):
        other = OdeSampler(Euler(), TimeGrid.karras(4, 0.02, 20.0))
        seed_blocks(model, other, blind, reference, PLAN, folder, protocol="edm")


def test_impossible_plans_and_damaged_lanes_are_named(given, tmp_path):
    model, space, reference = given
    for bad in ({"n": 15}, {"n": 100, "n_lanes": 1}, {"n": 100, "batch": 0}, {"n": 100, "first_seed": -1}):
        with pytest.raises(BadValue, match="too few|at least"):
            BlockPlan(**bad)
    (tmp_path / "block0-lane2.npz").write_bytes(b"half a file")
    with pytest.raises(BadFile, match="block0-lane2.npz cannot be resumed from.*delete it"):
        seed_blocks(model, SAMPLER, space, reference, PLAN, tmp_path)


# kills and processes


def run_and_die(folder, after):
    torch.set_num_threads(1)
    model, space, reference = setting()
    calls = []

    def fn(x):
        calls.append(len(x))
        if len(calls) > after:
            os.kill(os.getpid(), signal.SIGKILL)
        return space.fn(x)

    fatal = FeatureSpace(space.name, space.dim, fn, space.hash)
    seed_blocks(model, SAMPLER, fatal, reference, PLAN, folder, protocol="edm", every=0.0)


@pytest.mark.parametrize("after", [3, 17, 24])
def test_a_killed_run_goes_on_and_ends_in_the_same_bits(given, alone, tmp_path, after):
    """kill -9 within the first block, near its end, and within the second; every batch is saved here."""
    child = mp.get_context("fork").Process(target=run_and_die, args=(str(tmp_path), after))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    assert list(tmp_path.glob("block*-lane*.npz"))  # it had begun, and had not ended
    model, space, reference = given
    counted = []

    def fn(x):
        counted.append(len(x))
        return space.fn(x)

    counting = FeatureSpace(space.name, space.dim, fn, space.hash)
    scores = seed_blocks(model, SAMPLER, counting, reference, PLAN, tmp_path, protocol="edm")
    everything = sum(len(PLAN.batches(block, lane)) for block in range(2) for lane in range(4))
    assert len(counted) == everything - after  # nothing that was saved is done again
    assert scores.estimates == alone[0].estimates
    for block in range(2):
        assert (tmp_path / f"block{block}.npz").read_bytes() == (alone[1] / f"block{block}.npz").read_bytes()
    assert not list(tmp_path.glob("*lane*")) and not list(tmp_path.glob(".*"))


def test_two_processes_end_in_the_same_bits_as_one(alone, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    mp.start_processes(half, (str(tmp_path), port), nprocs=2, start_method="fork")
    scores, folder = alone
    for rank in range(2):
        told = json.loads((tmp_path / f"{rank}.json").read_text())
        assert [e["value"] for e in told["blocks"]] == [e.value for e in scores.estimates]
        assert [e["std_error"] for e in told["blocks"]] == [e.std_error for e in scores.estimates]
        assert told["calls"] == sum(len(PLAN.batches(b, lane)) for b in range(2) for lane in (rank, rank + 2))
    for block in range(2):
        assert (tmp_path / f"run/block{block}.npz").read_bytes() == (folder / f"block{block}.npz").read_bytes()


def half(rank, folder, port):
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="localhost", MASTER_PORT=str(port)
    )
    with distributed.from_env("cpu"):
        model, space, reference = setting()
        calls = []
        counting = FeatureSpace(space.name, space.dim, lambda x: calls.append(1) or space.fn(x), space.hash)
        scores = seed_blocks(model, SAMPLER, counting, reference, PLAN, Path(folder) / "run", protocol="edm")
        (Path(folder) / f"{rank}.json").write_text(json.dumps({**scores.to_dict(), "calls": len(calls)}))


def test_more_processes_than_lanes_are_refused(given, tmp_path, monkeypatch):
    model, space, reference = given
    monkeypatch.setattr(distributed, "world", lambda: 9)
    with pytest.raises(BadValue, match="9 processes for 4 lanes"):
        seed_blocks(model, SAMPLER, space, reference, PLAN, tmp_path)


# the command


def run(*args, code=0):
    result = CliRunner().invoke(cli.app, ["eval", "digits", *map(str, args)], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert result.exit_code == code, result.output + (repr(result.exception) if result.exception else "")
    return result


def test_the_command_prints_three_blocks_the_least_and_the_note(tmp_path):
    options = ["--protocol", "edm", "--features", "digits-cnn", "--n", 32, "--steps", 2, "--state", tmp_path / "kept"]
    text = run(*options)
    lines = text.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["seeds 0 to 31", "seeds 32 to 63", "seeds 64 to 95"]
    assert all("FD[digits-cnn@8bit]" in line and "(n=32)" in line for line in lines[:3])
    assert lines[3].startswith("least of 3: ") and "corrected for finite n" in lines[4] and "3 NFE" in lines[5]
    assert "by selection alone" in lines[6] and "edm is 50000" in text.stderr
    told = json.loads(run(*options, "--json").stdout)
    assert len(told["blocks"]) == 3 and told["value"] == min(b["value"] for b in told["blocks"])
    assert told["seeds"] == [0, 96] and told["protocol"] == "edm" and told["nfe"] == 3
    reference = tmp_path / "kept" / "reference.npz"
    again = json.loads(run(*options[:-1], tmp_path / "other", "--reference", reference, "--json").stdout)
    assert [b["value"] for b in again["blocks"]] == [b["value"] for b in told["blocks"]]


def test_the_command_refuses_in_one_sentence(tmp_path, monkeypatch):
    for name in ("EXPLORER_CACHE", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("EXPLORER_INCEPTION", raising=False)
    monkeypatch.chdir(tmp_path)

    def refused(*args):
        text = run(*args, code=2).stderr
        assert "Traceback" not in text
        return text.strip().splitlines()[-1]

    assert "FID needs the weights of Inception-v3" in refused("--protocol", "edm")
    assert "Did you mean 'edm'" in refused("--protocol", "edn")
    assert "belongs to --protocol" in refused("--reference", "x.npz")
    assert "leave out --metric" in refused("--protocol", "edm", "--metric", "kid")
    missing = refused("--protocol", "edm", "--features", "digits-cnn", "--reference", "no.npz")
    assert "no.npz cannot be read as statistics" in missing
    np.savez("wide.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    wide = refused("--protocol", "edm", "--features", "digits-cnn", "--reference", "wide.npz")
    assert "statistics of 2048 features" in wide


def test_blocks_of_one_have_the_error_of_their_lanes():
    from explorer.metrics.base import Estimate

    one = BlockScores((Estimate(2.0, 0.1, 500, "FD[x]", bias=0.3, dof=7),), "", "data")
    assert one.mean.std_error == 0.1 and one.corrected.value == pytest.approx(1.7) and "least" not in one.note
