"""The training loop against closed forms, full batches, and itself after an interruption."""

import json
import math

import pytest
import torch
from torch import nn

from explorer.data import Batch
from explorer.errors import BadValue, ExplorerError, UnknownName
from explorer.training import (
    EmaPlan,
    Method,
    OptimizerPlan,
    Plan,
    Progress,
    Update,
    ema_,
    load_checkpoint,
    read_log,
    train,
)
from explorer.training.loop import Run
from tests.regressions import Regression, Repeat, line, noisy, run, weights


def test_linear_regression_reaches_the_closed_form():
    method = Regression()
    ticks = run(method, Repeat(line()), Plan(600, optimizer=OptimizerPlan(lr=0.1, decay="cosine"), tick_steps=200))
    assert torch.allclose(weights(method), torch.tensor([1.0, 2.0, 3.0, 0.5], dtype=torch.float64), atol=1e-6)
    assert [t.step for t in ticks] == [200, 400, 600] and ticks[-1].fraction == 1
    assert ticks[0].logs["loss/net"] > ticks[-1].logs["loss/net"] and ticks[-1].logs["skipped"] == 0


def test_first_adam_step_is_the_learning_rate_against_the_gradient_sign():
    method, batch = Regression(), line()
    before = weights(method)
    loss = (method.nets["net"](batch.x0) - batch.noise).square().mean()
    grads = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(method.parameters()))])
    run(method, Repeat(batch), Plan(1, optimizer=OptimizerPlan(lr=0.01)))
    assert torch.allclose(weights(method), before - 0.01 * grads.sign(), atol=1e-8)


def test_accumulated_micro_batches_equal_the_full_batch():
    results = []
    for k in (1, 4):
        method = Regression()
        run(method, Repeat(line()), Plan(10, accumulate=k, optimizer=OptimizerPlan(lr=0.05, clip=1.0)))
        results.append(weights(method))
    assert (results[0] - results[1]).abs().max() < 1e-12


def test_indivisible_micro_batches_are_refused():
    with pytest.raises(BadValue, match="64 cannot be cut into 3"):
        run(Regression(), Repeat(line()), Plan(1, accumulate=3))


class Three(Method):
    """fake -> disc -> student, each loss passing through the other networks."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.nets = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("fake", "disc", "student")})
        self.target = nn.Linear(2, 2).requires_grad_(False)
        self.seen, self.stray = [], []

    def updates(self, batch, progress):
        def out():
            return self.nets["disc"](self.nets["fake"](self.nets["student"](batch.x0))).square().mean()

        for name in ("fake", "disc", "student"):
            if name == "student" and progress.step % 2:
                continue
            before = {k: weights(v) for k, v in self.nets.items()}
            yield Update((name,), out())
            moved = {k for k, v in self.nets.items() if not torch.equal(weights(v), before[k])}
            self.seen.append((progress.step, name, moved))
            self.stray += [k for k, p in self.named_parameters() if p.grad is not None]
        ema_(self.target, self.nets["student"], 0.0)

    def export(self, nets):
        return nets["student"]


def test_three_networks_move_in_turn_and_leave_no_stray_gradient():
    method = Three()
    run(method, Repeat(Batch(torch.randn(8, 2, generator=torch.Generator().manual_seed(0)))), Plan(2, accumulate=1))
    assert method.seen == [(s, n, {n}) for s, n in [(0, "fake"), (0, "disc"), (0, "student"), (1, "fake"), (1, "disc")]]
    assert method.stray == []
    assert torch.equal(weights(method.target), weights(method.nets["student"]))


def test_joint_update_steps_both_networks_each_with_its_own_rate():
    class Joint(Three):
        def updates(self, batch, progress):
            yield Update(("fake", "student"), self.nets["fake"](self.nets["student"](batch.x0)).square().mean())

    method = Joint()
    before = {k: weights(v) for k, v in method.nets.items()}
    plan = Plan(1, optimizer=OptimizerPlan(lr=0.1), optimizers={"student": OptimizerPlan(lr=0.01)})
    tick = run(method, Repeat(Batch(torch.ones(4, 2))), plan)[-1]
    size = {k: float((weights(v) - before[k]).abs().max()) for k, v in method.nets.items()}
    assert size == pytest.approx({"fake": 0.1, "disc": 0.0, "student": 0.01}, rel=1e-3)
    assert tick.logs["lr/student"] == 0.01 and "loss/fake+student" in tick.logs


@pytest.mark.parametrize("constant", [True, False])
def test_a_network_without_gradient_is_named(constant):
    class Silent(Three):
        def updates(self, batch, progress):
            loss = torch.zeros(()) if constant else self.nets["fake"](batch.x0).mean()
            yield Update(("disc",) if constant else ("fake", "disc"), loss)

    with pytest.raises(ExplorerError, match="disc received no gradient"):
        run(Silent(), Repeat(Batch(torch.ones(4, 2))), Plan(1))


def test_micro_batches_that_disagree_are_refused():
    class Data(Three):
        def updates(self, batch, progress):
            name = "fake" if batch.x0.mean() > 0 else "disc"
            yield Update((name,), self.nets["disc"](self.nets["fake"](batch.x0)).mean())

    data = Repeat(Batch(torch.cat([torch.ones(2, 2), -torch.ones(2, 2)])))
    with pytest.raises(ExplorerError, match="micro-batches must yield alike.*fake.*disc"):
        run(Data(), data, Plan(1, accumulate=2))


def test_unknown_network_names_are_refused():
    with pytest.raises(BadValue, match="generator"):
        run(Regression(), Repeat(line()), Plan(1, optimizers={"generator": OptimizerPlan()}))


def test_resume_is_bit_for_bit(tmp_path):
    emas = (EmaPlan(half_life=64), EmaPlan("wide", sigma_rel=0.1))
    plan = Plan(10, 16, accumulate=2, emas=emas, tick_steps=1, checkpoint_steps=5, seed=3)
    method, data = noisy()
    straight = run(method, data, plan, tmp_path / "straight")[-1]

    method, data = noisy()
    for tick in train(method, data, plan, tmp_path / "cut"):
        if tick.step == 7:  # killed two steps after the checkpoint
            break
    torch.manual_seed(99)  # the global state of the new process must not matter
    method, data = noisy()
    ticks = run(method, data, plan, tmp_path / "cut")
    assert [t.step for t in ticks] == [6, 7, 8, 9, 10]
    assert torch.equal(weights(ticks[-1].method), weights(straight.method))
    for name in ("ema", "wide"):
        assert torch.equal(weights(ticks[-1].emas[name]), weights(straight.emas[name]))
    strip = [{k: v for k, v in row.items() if k != "seconds"} for row in read_log(tmp_path / "cut")]
    assert strip == [{k: v for k, v in row.items() if k != "seconds"} for row in read_log(tmp_path / "straight")]
    a, b = load_checkpoint(tmp_path / "cut"), load_checkpoint(tmp_path / "straight")
    assert all(torch.equal(a.weights[k], b.weights[k]) for k in a.weights)
    assert [file.name for file in sorted((tmp_path / "cut").glob("step-*.json"))] == [
        "step-000000005.json", "step-000000010.json"
    ]  # fmt: skip
    assert run(noisy()[0], noisy()[1], plan, tmp_path / "cut")[0].step == 10  # a finished run only reports


def test_resume_with_another_plan_is_refused(tmp_path):
    method, data = noisy()
    run(method, data, Plan(2, 16), tmp_path)
    with pytest.raises(BadValue, match="seed=0, not 1"):
        run(method, data, Plan(4, 16, seed=1), tmp_path)


def test_dropout_leaves_the_callers_global_random_state_alone():
    method, data = noisy()
    torch.manual_seed(7)
    state = torch.get_rng_state()
    run(method, data, Plan(3, 16))
    assert torch.equal(torch.get_rng_state(), state)


def test_learning_rate_schedules():
    at = lambda plan, n, f: plan.rate(Progress(0, n, f))  # noqa: E731
    assert at(OptimizerPlan(lr=2.0, warmup_images=100), 25, 0.0) == 0.5
    assert at(OptimizerPlan(lr=2.0, decay="linear", final=0.1), 0, 1.0) == pytest.approx(0.2)
    assert at(OptimizerPlan(lr=2.0, decay="cosine"), 0, 0.5) == pytest.approx(1.0)
    assert at(OptimizerPlan(lr=2.0, decay="inverse_sqrt", decay_images=100), 400, 0.5) == 1.0
    assert Plan(5, optimizer=OptimizerPlan(clip=1.0)).to_dict()["optimizer"]["clip"] == 1.0


def test_minutes_end_the_run_early():
    ticks = run(Regression(), Repeat(line()), Plan(10**9, minutes=0.003))
    assert ticks[-1].fraction == 1 and 0 < ticks[-1].step < 10**6


def test_clipping_bounds_the_gradient_that_reaches_the_optimizer():
    method = Regression()
    state = Run(method, Plan(1, optimizer=OptimizerPlan(clip=1e-3)))
    seen = []
    state.optimizers["net"].register_step_pre_hook(lambda *_: seen.extend(p.grad.norm() for p in method.parameters()))
    state.one_step(line())
    assert float(torch.stack(seen).norm()) == pytest.approx(1e-3, rel=1e-3)


def by_hand(kind, batch, steps):
    """Textbook updates with lr 0.05, betas (0.8, 0.95), weight decay 0.1."""
    method = Regression()
    net, lr, (b1, b2), decay, eps = method.nets["net"], 0.05, (0.8, 0.95), 0.1, 1e-8
    m = v = torch.zeros(4, dtype=torch.float64)
    for t in range(1, steps + 1):
        w = weights(method)
        loss = (net(batch.x0) - batch.noise).square().mean()
        g = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(method.parameters()))])
        if kind == "adamw":
            w = w - lr * decay * w
        else:
            g = g + decay * w
        if kind == "sgd":
            m = b1 * m + g if t > 1 else g
            w = w - lr * m
        else:
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            mean, rms = m / (1 - b1**t), (v / (1 - b2**t)).sqrt() + eps
            if kind == "radam":  # Liu et al. 2020, arXiv 1908.03265, Algorithm 2
                rho_inf = 2 / (1 - b2) - 1
                rho = rho_inf - 2 * t * b2**t / (1 - b2**t)
                r = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)) if rho > 5 else 0
                w = w - lr * mean * (r / rms if rho > 5 else 1)
            else:
                w = w - lr * mean / rms
        nn.utils.vector_to_parameters(w, method.parameters())
    return w


@pytest.mark.parametrize("kind", ["adamw", "adam", "radam", "sgd"])
def test_optimizers_follow_their_textbook_updates(kind):
    method, optimizer = Regression(), OptimizerPlan(0.05, (0.8, 0.95), weight_decay=0.1, kind=kind)
    run(method, Repeat(line()), Plan(12, optimizer=optimizer))
    # float64; where eps enters the root differs between forms by 1e-8 relative.
    assert torch.allclose(weights(method), by_hand(kind, line(), 12), rtol=1e-6)


def test_runs_saved_before_optimizers_had_a_kind_resume_as_adamw(tmp_path):
    method, data = noisy()
    run(method, data, Plan(2, 16), tmp_path)
    index = tmp_path / "checkpoint.json"
    (tmp_path / "step-000000002.json").rename(index)  # as runs were saved then
    info = json.loads(index.read_text())
    del info["plan"]["optimizer"]["kind"]
    index.write_text(json.dumps(info))
    with pytest.raises(BadValue, match="optimizer"):
        run(*noisy(), Plan(3, 16, optimizer=OptimizerPlan(kind="radam")), tmp_path)
    assert run(*noisy(), Plan(3, 16), tmp_path)[-1].step == 3


def test_an_unknown_optimizer_lists_the_known_ones():
    with pytest.raises(UnknownName, match="radam"):
        OptimizerPlan(kind="radm")


def test_a_field_that_is_none_takes_the_words_of_its_type():
    from explorer.reproduction.run import override

    assert override(Plan(3), {"autocast": "bfloat16", "patience": "4"}).autocast == "bfloat16"
    assert override(Plan(3, autocast="float16"), {"autocast": "none"}).autocast is None
    with pytest.raises(BadValue, match="half"):
        override(Plan(3), {"autocast": "half"})
    with pytest.raises(BadValue, match="minutes='soon'"):
        override(Plan(3), {"minutes": "soon"})
