"""What may go wrong in a run: kills at any moment, full disks, damaged checkpoints, losses that are not finite."""

import errno
import math
import multiprocessing
import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from explorer.errors import BadFile, BadValue, NonFinite
from explorer.files import PARTIAL
from explorer.metrics.base import Estimate
from explorer.training import (
    EmaPlan,
    Method,
    Plan,
    Update,
    best,
    load_checkpoint,
    read_log,
    save_checkpoint,
    snapshots,
    train,
)
from tests.regressions import Regression, Repeat, line, noisy, run, weights

FORK = multiprocessing.get_context("fork")


class Pair(Method):
    """Two networks that step in turn, with dropout and noise, and a target that follows between the yields."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.nets = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.2)) for name in ("fake", "student")}
        )
        self.target = nn.Linear(3, 3).requires_grad_(False)

    def updates(self, batch, progress):
        x = batch.x0 + 0.1 * torch.randn(batch.x0.shape, generator=progress.generator)
        sigma = torch.rand(len(x), generator=progress.generator)
        error = (self.nets["fake"](x) - self.target(x)).square().mean(1)
        yield Update(("fake",), error.mean(), levels=(sigma, error))
        for p, q in zip(self.target.parameters(), self.nets["student"].parameters(), strict=True):
            p.data.lerp_(q.data, 0.1)
        if progress.step % 2 == 0:
            yield Update(("student",), (self.nets["student"](x) - self.nets["fake"](x).detach() - 1).square().mean())

    def export(self, nets):
        return nets["student"]


PLAN = Plan(
    12,
    16,
    accumulate=2,
    emas=(EmaPlan(half_life=64), EmaPlan("power", sigma_rel=0.1)),
    tick_steps=2,
    checkpoint_steps=3,
    snapshot_steps=4,
    evaluate_steps=5,
)


def measured(method, emas):
    """A number that rises and falls with the run."""
    return Estimate(float(emas["ema"]["student"][0].weight.sum().sin()), 0.1, 16, "sum")


def whole_run(folder):
    return run(Pair(), noisy()[1], PLAN, folder, evaluate=measured)


def hook(event):
    """Call `event` around everything in this process that changes weights or files; weights are also written in halves."""
    import explorer.training.checkpoint as checkpoint
    import explorer.training.weights as kept
    from explorer.training.loop import Run

    def around(function):
        def called(*args, **kwargs):
            event()
            out = function(*args, **kwargs)
            event()
            return out

        return called

    def halves(tensors, file, **kwargs):
        save_file(tensors, file, **kwargs)
        whole = Path(file).read_bytes()
        Path(file).write_bytes(whole[: len(whole) // 2])
        event()
        Path(file).write_bytes(whole)
        event()

    Run._backward, Run._apply = around(Run._backward), around(Run._apply)
    checkpoint.save_file = kept.save_file = halves
    for module, name in ((os, "replace"), (os, "fsync"), (Path, "unlink"), (Path, "write_text")):
        setattr(module, name, around(getattr(module, name)))


def victim(folder, moment, tell):
    torch.set_num_threads(1)
    seen = 0

    def event():
        nonlocal seen
        seen += 1
        if seen == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    if moment is not None:
        hook(event)
    whole_run(folder)
    if tell is not None:
        tell.send(seen)


def child(folder, moment=None, tell=None):
    process = FORK.Process(target=victim, args=(folder, moment, tell))
    process.start()
    return process


def contents(folder):
    """Bytes of all weights and optimizer states, and the log and indexes without the time they took."""
    out = {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix == ".safetensors"}
    strip = [{k: v for k, v in row.items() if k != "seconds"} for row in read_log(folder)]
    saved = load_checkpoint(folder)
    facts = {k: v for k, v in saved.info.items() if k != "seconds"}
    return out, strip, facts, repr(saved.optimizers)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    whole_run(folder)
    return contents(folder)


def test_a_run_killed_at_any_of_twenty_moments_resumes_to_the_same_bytes(tmp_path, undisturbed):
    receive, send = FORK.Pipe(duplex=False)
    child(tmp_path / "counted", 0, send).join()
    events = receive.recv()
    assert events > 200
    moments = random.Random(0).sample(range(1, events), 20)
    interrupted_writes = 0
    for i, moment in enumerate(moments):
        folder = tmp_path / str(i)
        process = child(folder, moment)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        interrupted_writes += bool(list(folder.glob(f".*{PARTIAL}")))
        for snapshot in (*snapshots(folder), *filter(None, [best(folder)])):
            assert snapshot.nets(Pair().nets, "power")  # whole, or not there
        load_checkpoint(folder)
        whole_run(folder)
        assert contents(folder) == undisturbed, f"killed at event {moment} of {events}"
        assert not list(folder.glob(".*"))
    assert interrupted_writes >= 3


def test_a_run_killed_again_and_again_by_the_clock_resumes_to_the_same_bytes(tmp_path, undisturbed):
    draw = random.Random(1)
    for _ in range(8):
        process = child(tmp_path)
        time.sleep(draw.uniform(0, 0.15))
        process.kill()
        process.join()
    whole_run(tmp_path)
    assert contents(tmp_path) == undisturbed


def test_a_full_disk_leaves_the_last_checkpoint_and_says_so(tmp_path):
    """A limit on file size makes the real writers fail as a full disk does."""

    class Large(Regression):
        def __init__(self):
            super().__init__(dim=3)
            self.register_buffer("ballast", torch.zeros(20_000))

    plan = Plan(4, tick_steps=1, checkpoint_steps=2)
    for tick in train(Large(), Repeat(line()), plan, tmp_path):
        if tick.step == 2:
            break
    before = {file.name: file.read_bytes() for file in tmp_path.glob("step-*")}

    def crowded(tell):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            run(Large(), Repeat(line()), plan, tmp_path)
        except BadFile as problem:
            tell.send(str(problem))

    receive, send = FORK.Pipe(duplex=False)
    process = FORK.Process(target=crowded, args=(send,))
    process.start()
    process.join()
    assert receive.poll(), "no BadFile was raised"
    said = receive.recv()
    assert "step-000000004.safetensors could not be written" in said and "intact" in said and "resume" in said
    assert {file.name: file.read_bytes() for file in tmp_path.glob("step-*")} == before
    assert not list(tmp_path.glob(".*"))
    assert [tick.step for tick in run(Large(), Repeat(line()), plan, tmp_path)] == [3, 4]


@pytest.mark.parametrize("writer", ["explorer.training.checkpoint.save_file", "torch.save", "os.replace"])
def test_no_space_at_any_stage_of_a_checkpoint_is_a_bad_file(tmp_path, monkeypatch, writer):
    save_checkpoint(tmp_path, {"step": 1}, {"w": torch.ones(1)}, {})

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(writer, full)
        with pytest.raises(BadFile, match="No space left.*intact"):
            save_checkpoint(tmp_path, {"step": 2}, {"w": torch.zeros(1)}, {})
    assert load_checkpoint(tmp_path).info["step"] == 1
    assert not list(tmp_path.glob(".*"))


def corrupt_weights(folder, step):
    file = folder / f"step-{step:09d}.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(whole)


def cut_optimizer(folder, step):
    file = folder / f"step-{step:09d}.optim.pt"
    file.write_bytes(file.read_bytes()[:100])


def empty_index(folder, step):
    (folder / f"step-{step:09d}.json").write_text("")


def lose_weights(folder, step):
    (folder / f"step-{step:09d}.safetensors").unlink()


@pytest.mark.parametrize("damage", [corrupt_weights, cut_optimizer, empty_index, lose_weights])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path, undisturbed, damage):
    whole_run(tmp_path)
    damage(tmp_path, 12)
    with pytest.warns(UserWarning, match="step-000000012.*Went back to the checkpoint before, of step 9"):
        ticks = whole_run(tmp_path)
    assert [tick.step for tick in ticks] == [10, 12] and "step 9" in ticks[0].notices[0] and ticks[1].notices == ()
    out, rows, facts, optimizers = contents(tmp_path)
    assert "Went back" in rows[-2].pop("notices")[0]
    assert (out, rows, facts, optimizers) == undisturbed
    assert whole_run(tmp_path)[-1].notices == ()


def test_damaged_checkpoints_are_refused_before_use(tmp_path):
    method, data = noisy()
    run(method, data, Plan(2, 16), tmp_path)
    (file,) = tmp_path.glob("step-*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BadFile, match="not the file"):
        run(method, data, Plan(4, 16), tmp_path)
    file.write_bytes(whole)
    (tmp_path / "step-000000002.json").write_text("[]")
    with pytest.raises(BadFile):
        load_checkpoint(tmp_path)


class Payload:
    def __reduce__(self):
        return (open, ("/tmp/explorer-should-not-exist", "w"))


def test_optimizer_files_cannot_run_code(tmp_path):
    save_checkpoint(tmp_path, {"step": 1}, {"w": torch.zeros(1)}, {"net": Payload()})
    with pytest.raises(BadFile):
        load_checkpoint(tmp_path)
    from pathlib import Path

    assert not Path("/tmp/explorer-should-not-exist").exists()


class Exploding(Regression):
    def __init__(self, bad):
        super().__init__()
        self.bad = bad

    def updates(self, batch, progress):
        loss = self.nets["net"](batch.x0).square().mean()
        yield Update(("net",), loss * math.nan if progress.step in self.bad else loss)


def test_a_non_finite_update_is_skipped_and_counted():
    method = Exploding({1})
    seen = [(weights(method), None)]
    for tick in train(method, Repeat(line()), Plan(3, tick_steps=1)):
        seen.append((weights(method), tick.logs.get("skipped")))
    assert torch.equal(seen[1][0], seen[2][0]) and not torch.equal(seen[2][0], seen[3][0])
    assert [s for _, s in seen[1:]] == [0, 1, 0]


def test_too_many_non_finite_updates_in_a_row_name_step_and_network():
    with pytest.raises(NonFinite, match="'net'.*step 8") as caught:
        run(Exploding(set(range(4, 20))), Repeat(line()), Plan(20, max_skips=4))
    assert caught.value.step == 8


def test_the_first_bad_update_ends_a_run_that_may_skip_none():
    with pytest.raises(NonFinite, match="step 1 "):
        run(Exploding({1}), Repeat(line()), Plan(3, max_skips=0))


class Levelled(Regression):
    """Loses at two of the noise levels, in the second micro-batch."""

    def updates(self, batch, progress):
        sigma = batch.x0[:, 0].abs()
        loss = (self.nets["net"](batch.x0) - batch.noise).square().mean(1)
        yield Update(
            ("net",),
            torch.where(sigma > 2, math.nan, loss).mean(),
            levels=(sigma, torch.where(sigma > 2, math.nan, loss)),
        )


def test_a_loss_that_is_not_finite_is_named_with_its_noise_levels(tmp_path):
    batch = line(8)
    batch.x0[:, 0] = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 2.5, 0.6, 3.5])
    text = "loss nan at sigma 2.5 to 3.5, 2 of 8 samples"
    with pytest.raises(NonFinite, match=f"'net': 2 updates in a row.*step 1.*{text}") as caught:
        run(Levelled(), Repeat(batch), Plan(9, accumulate=2, max_skips=1))
    assert caught.value.samples == [5, 7]
    ticks = run(Levelled(), Repeat(batch), Plan(12, accumulate=2, tick_steps=10), tmp_path)
    assert ticks[0].notices[0] == f"step 0: the update of net was skipped: {text}." and len(ticks[0].notices) == 5
    assert ticks[0].logs["skipped"] == 10 and read_log(tmp_path)[0]["notices"] == list(ticks[0].notices)


def test_skips_before_a_resume_are_told_after_it(tmp_path):
    plan = Plan(6, tick_steps=6, checkpoint_steps=4)
    ticks = train(Exploding({1, 5}), Repeat(line()), plan, tmp_path, evaluate=interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(ticks)
    (tick,) = run(Exploding({1, 5}), Repeat(line()), plan, tmp_path)
    assert tick.logs["skipped"] == 2 and [said.split(":")[0] for said in tick.notices] == ["step 1", "step 5"]


def interrupted(method, emas):
    raise KeyboardInterrupt


def test_a_gradient_that_is_not_finite_names_its_network():
    class Steep(Pair):
        def updates(self, batch, progress):
            near = self.nets["student"](batch.x0).square().mean()
            w = self.nets["fake"][0].weight
            yield Update(("student", "fake"), near + (w - w.detach()).abs().sum().sqrt())  # sqrt has no slope at 0

    with pytest.raises(NonFinite, match="'fake'.*but the gradient of 'fake' is not finite"):
        run(Steep(), noisy()[1], Plan(3, max_skips=0))


def test_other_data_of_the_same_shape_is_refused_on_resuming(tmp_path):
    method, data = noisy()
    run(method, data, Plan(2, 16), tmp_path)
    data = noisy()[1]
    data.dataset = type(data.dataset)("other", data.dataset.x + 1)
    with pytest.raises(BadValue, match="checksum"):
        run(noisy()[0], data, Plan(4, 16), tmp_path)


def test_a_checkpoint_says_which_code_and_versions_wrote_it(tmp_path):
    run(*noisy(), Plan(2, 16), tmp_path)
    info = load_checkpoint(tmp_path).info
    assert info["versions"]["torch"] == torch.__version__ and info["method"] == "Regression"
    assert info["plan"]["optimizer"]["kind"] == "adamw" and info["data"]["position"] == 2
    root = Path(__file__).resolve().parent.parent
    if (root / ".git").exists():
        assert len(info["git"]["commit"]) == 40 and info["git"]["dirty"] in (True, False)
