"""Reduced precision: what autocast computes in, how the loss scale answers overflows, and what is skipped."""

import pytest
import torch
from torch import nn

from explorer.data import Batch
from explorer.errors import BadValue, NonFinite
from explorer.training import Method, OptimizerPlan, Plan, Update, load_checkpoint, train
from explorer.training.precision import LARGEST, PATIENCE, START, LossScale, tf32
from tests.regressions import Repeat, run, weights


class Small(Method):
    """A two-layer network fitted to a line; `gain` multiplies the loss, and so the gradients, not the minimum."""

    def __init__(self, gain=1.0, bad=()):
        super().__init__()
        torch.manual_seed(0)
        self.nets = nn.ModuleDict({"net": nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))})
        self.gain, self.bad, self.dtypes = gain, bad, set()

    def updates(self, batch, progress):
        y = self.nets["net"](batch.x0)
        self.dtypes.add(y.dtype)
        loss = self.gain * (y - batch.noise).float().square().mean()
        yield Update(("net",), loss * torch.nan if progress.step in self.bad else loss)

    def export(self, nets):
        return nets["net"]


def points():
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
    return Repeat(Batch(x, noise=x @ torch.tensor([[1.0], [-2.0]])))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_networks_compute_in_the_low_precision_and_weights_stay_in_float32(dtype):
    method, exact = Small(), Small()
    plan = Plan(150, 64, optimizer=OptimizerPlan(lr=0.02), autocast=dtype, tick_steps=150)
    (tick,) = run(method, points(), plan)
    run(exact, points(), Plan(150, 64, optimizer=OptimizerPlan(lr=0.02)))
    assert method.dtypes == {getattr(torch, dtype)}
    assert all(p.dtype == torch.float32 for p in method.parameters())
    assert {p.dtype for p in tick.emas["ema"].parameters()} == {torch.float32}
    x, y = points().batch.x0, points().batch.noise
    errors = [float((m.nets["net"](x) - y).square().mean().detach()) for m in (method, exact)]
    # Starts near 5; the low precision leaves noise of (2^-8)^2 to (2^-11)^2 times the outputs.
    assert errors[0] < 0.02 and errors[1] < 0.02
    assert ("loss_scale/net" in tick.logs) == (dtype == "float16")


def test_scaling_by_a_power_of_two_changes_no_gradient(monkeypatch):
    """With autocast itself turned off, float16's scale and unscale leave the run as it was, bit for bit."""
    import contextlib

    import explorer.training.loop as loop

    monkeypatch.setattr(loop, "autocast", lambda device, dtype: contextlib.nullcontext())
    plain, scaled = Small(), Small()
    run(plain, points(), Plan(20, 64, optimizer=OptimizerPlan(clip=0.5)))
    run(scaled, points(), Plan(20, 64, optimizer=OptimizerPlan(clip=0.5), autocast="float16"))
    assert torch.equal(weights(plain), weights(scaled))


def test_overflows_halve_the_scale_until_steps_go_through_and_are_counted(tmp_path):
    """Gradients of this size leave float16 until the scale has come down, and are no reason to stop."""
    method, plan = Small(gain=1e4), Plan(40, 64, autocast="float16", tick_steps=40, max_skips=0)
    before = weights(method)
    (tick,) = run(method, points(), plan, tmp_path)
    value, finite = load_checkpoint(tmp_path).info["scales"]["net"]
    skipped = int(tick.logs["skipped"])
    assert skipped > 3 and value == START / 2**skipped and finite == 40 - skipped
    assert not torch.equal(before, weights(method)) and tick.notices == ()
    assert tick.logs["grad_norm/net"] > 1e3  # unscaled


def test_the_loss_scale_is_resumed(tmp_path):
    plan = Plan(20, 64, autocast="float16", checkpoint_steps=7, tick_steps=7)
    straight, cut = Small(gain=1e4), Small(gain=1e4)
    run(straight, points(), plan)
    for tick in train(Small(gain=1e4), points(), plan, tmp_path):
        if tick.step == 14:
            break
    run(cut, points(), plan, tmp_path)
    assert torch.equal(weights(straight), weights(cut))


def test_a_nan_in_float16_is_an_error_and_not_an_overflow():
    with pytest.raises(NonFinite, match="loss nan"):
        run(Small(bad={0, 1, 2}), points(), Plan(5, 64, autocast="float16", max_skips=1))


def test_the_scale_grows_after_finite_updates_and_stays_within_bounds():
    scale = LossScale()
    for _ in range(PATIENCE):
        scale.update(True)
    assert (scale.value, scale.finite) == (2 * START, 0)
    for _ in range(40):
        scale.update(False)
    assert scale.value == 1.0
    for _ in range(30 * PATIENCE):
        scale.update(True)
    assert scale.value == LARGEST


def test_tf32_is_on_inside_only():
    before = torch.get_float32_matmul_precision()
    with tf32(True):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before


def test_an_unknown_precision_is_refused():
    with pytest.raises(BadValue, match="'float16'"):
        Plan(1, autocast="half")


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options", [{"autocast": "float16"}, {"autocast": "bfloat16"}, {"tf32": True}, {"compile": True}]
)
def test_a_gpu_reaches_the_same_fit(options):
    method = Small().cuda()
    run(method, points(), Plan(150, 64, optimizer=OptimizerPlan(lr=0.02), **options))
    x, y = points().batch.x0.cuda(), points().batch.noise.cuda()
    assert float((method.nets["net"](x) - y).square().mean()) < 0.02
