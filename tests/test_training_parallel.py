"""Data-parallel training against one process."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import multiprocessing as mp
from torch import nn

from explorer.data import Dataset, Loader
from explorer.metrics.base import Estimate
from explorer.training import EmaPlan, OptimizerPlan, Plan, Update, best, distributed, load_checkpoint, read_log
from tests.regressions import Regression, Repeat, line, run, weights

FIVE = Plan(5, optimizer=OptimizerPlan(lr=0.05, clip=1.0), emas=(EmaPlan(half_life=64),))


def test_two_processes_average_to_the_full_batch(tmp_path):
    method = Regression()
    (tick,) = run(method, Repeat(line()), FIVE)  # first: what it imports is then there for both
    together(average, tmp_path)
    for rank in range(2):
        theirs = json.loads((tmp_path / f"{rank}.json").read_text())
        # float64; the sums of half batches round differently.
        assert (torch.tensor(theirs["weights"], dtype=torch.float64) - weights(method)).abs().max() < 1e-12
        assert theirs["loss"] == pytest.approx(tick.logs["loss/net"], rel=1e-12)
        assert theirs["n_images"] == 5 * 64


def average(rank):
    method = Regression()
    if rank == 1:
        torch.nn.init.zeros_(method.nets["net"][0].weight)  # process 0 decides
    (tick,) = run(method, Repeat(line().chunk(2)[rank]), FIVE)
    shown = torch.arange(72.0).view(2, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    conv, unused = nn.Parameter(shown), nn.Parameter(torch.zeros_like(shown))
    (conv * shown * (1 + rank)).sum().backward()
    assert distributed.average_(torch.tensor(1.0 + rank), [conv, unused]) == 1.5
    # Fused optimizers walk through memory: a gradient of another layout would be added to other weights.
    assert torch.equal(conv.grad, 1.5 * shown) and conv.grad.stride() == unused.grad.stride() == conv.stride()
    return {"weights": weights(method).tolist(), "loss": tick.logs["loss/net"], "n_images": tick.n_images}


class Rows(Loader):
    """Pairs stored side by side, shared out over the processes."""

    def batch(self, i):
        from explorer.data import Batch

        rows = super().batch(i).x0
        return Batch(rows[:, :3], noise=rows[:, 3:])


def shared_out():
    whole = line(n=40)
    data = Dataset("rows", torch.cat([whole.x0, whole.noise], 1))
    return Rows(data, 16, rank=distributed.rank(), world=distributed.world())


PLAN = Plan(
    9,
    16,
    tick_steps=3,
    checkpoint_steps=3,
    snapshot_steps=3,
    evaluate_steps=3,
    patience=1,
    minutes=1e6,
    checkpoint_at_close=True,
)


def judged(method, emas):
    assert distributed.rank() == 0
    return Estimate([3.0, 2.0, 4.0][round(float(method.calls)) // 3 - 1], 0.1, 16, "script")


class Counted(Regression):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def updates(self, batch, progress):
        self.calls += 1
        return super().updates(batch, progress)


def test_a_resumed_run_of_two_processes_equals_one_process_and_writes_once(tmp_path):
    """Loader, evaluation, early stop, checkpoints and log with two processes; a restart in the middle."""
    together(resumed, tmp_path)
    one = Counted()
    ticks = run(one, shared_out(), PLAN, tmp_path / "one", evaluate=judged)
    assert ticks[-1].step == 9 and ticks[-1].stopped == "all 9 steps are done"
    for rank in range(2):
        theirs = json.loads((tmp_path / f"{rank}.json").read_text())
        assert theirs["steps"] == [6, 9] and theirs["stopped"] == ticks[-1].stopped
        assert (torch.tensor(theirs["weights"], dtype=torch.float64) - weights(one)).abs().max() < 1e-12
    ours, alone = load_checkpoint(tmp_path / "two"), load_checkpoint(tmp_path / "one")
    for name, value in alone.weights.items():
        assert torch.allclose(ours.weights[name], value, atol=1e-12), name
    assert ours.info["processes"] == 2 and best(tmp_path / "two").step == 6
    assert [row["step"] for row in read_log(tmp_path / "two")] == [3, 6, 9]
    assert not list((tmp_path / "two").glob(".*"))


def resumed(rank):
    folder = Path("two")
    from explorer.training import train

    ticks = train(Counted(), shared_out(), PLAN, folder, evaluate=judged)
    next(ticks)
    distributed.barrier()
    ticks.close()
    distributed.barrier()
    method = Counted()
    ticks = run(method, shared_out(), PLAN, folder, evaluate=judged)
    return {"weights": weights(method).tolist(), "steps": [t.step for t in ticks], "stopped": ticks[-1].stopped}


SHARDED = replace(PLAN, optimizer=OptimizerPlan(lr=0.05, clip=1.0), accumulate=2, shard=True, snapshot_raw=True)


class Deep(Counted):
    """Rows of weights that two processes cannot share evenly, and a second network that some updates leave alone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        body = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
        self.nets = nn.ModuleDict({"net": body, "other": nn.Linear(3, 1).double()})

    def updates(self, batch, progress):
        self.calls += 1
        y = self.nets["net"](batch.x0)
        yield Update(("net",), (y - batch.noise).square().mean() + 0 * self.nets["other"](batch.x0).mean())
        if progress.step % 2:
            yield Update(("other",), (self.nets["other"](batch.x0) - batch.noise).square().mean())


def test_shards_train_resume_and_end_as_one_process_does(tmp_path):
    """FSDP2: uneven parts, clipping, accumulation, averages, snapshots, the best weights, a restart; files as without shards."""
    import torch.distributed.fsdp  # noqa: F401  here once, for both processes

    import explorer.papers.edm  # noqa: F401

    together(in_shards, tmp_path)
    one = Deep()
    run(one, shared_out(), replace(SHARDED, shard=False), tmp_path / "one", evaluate=judged_in_both)
    kept: list[int] = []  # weights in each process, after the run
    for rank in range(2):
        theirs = json.loads((tmp_path / f"{rank}.json").read_text())
        assert theirs["steps"] == [6, 9]
        kept.append(theirs["kept"])
        assert theirs["unet"] < 1e-6  # float32, against the same two processes without shards
        assert theirs["whole"] == (rank == 0)
    assert sum(kept) == len(weights(one)) and 0 < min(kept) < max(kept)
    ours, alone = load_checkpoint(tmp_path / "two"), load_checkpoint(tmp_path / "one")
    assert ours.weights.keys() == alone.weights.keys() and ours.info["averaged"] == alone.info["averaged"]
    for name, value in alone.weights.items():
        assert torch.allclose(ours.weights[name], value, atol=1e-12), name
    for name, state in alone.optimizers.items():
        for i, each in state["state"].items():
            for key, value in each.items():
                assert torch.allclose(ours.optimizers[name]["state"][i][key], value, atol=1e-12), (name, key)
    assert best(tmp_path / "two").step == 6 and len(list((tmp_path / "two").glob("snapshot-*"))) == 3


def judged_in_both(method, emas):
    emas["ema"]["net"](torch.zeros(2, 3, dtype=torch.float64))  # would wait for ever if one process came alone
    return Estimate([3.0, 2.0, 4.0][round(float(method.calls) / 2) // 3 - 1], 0.1, 16, "script")


def in_shards(rank):
    from explorer.training import train

    ticks = train(Deep(), shared_out(), SHARDED, Path("two"), evaluate=judged_in_both)
    next(ticks)
    distributed.barrier()
    ticks.close()
    distributed.barrier()
    method = Deep()
    ticks = run(method, shared_out(), SHARDED, Path("two"), evaluate=judged_in_both)
    parts = [p.to_local().numel() for p in method.parameters()]
    x = torch.ones(2, 3, dtype=torch.float64)
    whole = rank == 0 and bool(torch.isfinite(ticks[-1].emas["ema"]["net"](x)).all())
    return {"steps": [t.step for t in ticks], "kept": sum(parts), "whole": whole, "unet": unet_in_shards()}


def unet_in_shards():
    """Largest difference of a small U-Net's weights from those of the same run without shards."""
    from explorer.nets import EDMUNet
    from explorer.papers.edm import EDMTraining
    from explorer.process.times import LogNormal

    ends = []
    for shard in (True, False):
        torch.manual_seed(0)
        net = EDMUNet((3, 8, 8), 16, (1, 2), 1, (4,), n_classes=3)
        method = EDMTraining(net, shape=(3, 8, 8), sigma_data=0.5, times=LogNormal(-1.2, 1.2), n_classes=3)
        data = Dataset("noise", torch.randn(16, 3, 8, 8), torch.arange(16) % 3, 3)
        loader = Loader(data, 8, rank=distributed.rank(), world=2)
        # SGD: Adam's first steps are signs, which rounding can turn
        plan = Plan(2, 8, optimizer=OptimizerPlan(lr=0.1, kind="sgd", clip=1.0), shard=shard)
        (tick,) = run(method, loader, plan)
        ends.append(
            {k: v.full_tensor() if shard and hasattr(v, "full_tensor") else v for k, v in net.state_dict().items()}
        )
    return max(float((ends[0][k] - v).abs().max()) for k, v in ends[1].items())


def together(work, folder):
    """Run work(rank) in two processes that torchrun could have started; what each returns is FOLDER/RANK.json."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    mp.start_processes(_worker, (work, str(folder), port), nprocs=2, start_method="fork")


def _worker(rank, work, folder, port):
    torch.set_num_threads(1)
    os.chdir(folder)
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="localhost", MASTER_PORT=str(port)
    )
    with distributed.from_env("cpu") as device:
        assert device == torch.device("cpu") and (distributed.rank(), distributed.world()) == (rank, 2)
        assert distributed.shared(f"from {rank}") == "from 0"
        Path(f"{rank}.json").write_text(json.dumps(work(rank)))
    assert not distributed.active()


def test_a_single_process_joins_nothing(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with distributed.from_env("cpu") as device:
        assert not distributed.active() and device.type == "cpu" and distributed.world() == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_torchrun_trains_a_recipe_from_the_command_line(tmp_path):
    changes = ["--set", "plan.n_steps=30", "--set", "plan.batch_size=64", "--json", "--out", str(tmp_path)]
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "explorer", "train", "edm"]
    done = subprocess.run(
        [sys.executable, *command, "--data", "toy-moons", *changes], capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)  # one document: only process 0 speaks
    assert said["steps"] == 30 and said["images"] == 30 * 64 and Path(said["file"]).exists()
    info = load_checkpoint(tmp_path).info
    assert info["processes"] == 2 and info["data"]["world"] == 2
