"""Evaluation during training, the best weights, early stop, closing a run, and what the log says of it all."""

import json

import pytest
import torch

from explorer.errors import BadValue
from explorer.metrics.base import Estimate
from explorer.training import OptimizerPlan, Plan, best, load_checkpoint, read_log, train
from tests.regressions import Regression, Repeat, line, noisy, run, weights


class Script:
    """An evaluation that reads its values from a list, and notes the weights it was shown."""

    def __init__(self, *values):
        self.values, self.seen = list(values), []

    def __call__(self, method, emas):
        self.seen.append(weights(emas["ema"]))
        return Estimate(self.values[len(self.seen) - 1], 0.5, 10, "FD[script]")


def test_the_weights_with_the_lowest_estimate_are_kept(tmp_path):
    script = Script(5.0, float("nan"), 2.0, 3.0, 4.0)
    ticks = run(*noisy(), Plan(9, 16, tick_steps=100, evaluate_steps=2), tmp_path, evaluate=script)
    assert [(t.step, t.estimate.value) for t in ticks if t.step != 4] == [(2, 5.0), (6, 2.0), (8, 3.0), (9, 4.0)]
    kept = best(tmp_path)
    assert kept.step == 6 and Estimate.from_dict(kept.about["estimate"]).value == 2.0
    assert torch.equal(weights(kept.nets(noisy()[0].nets)), script.seen[2])
    rows = {row["step"]: row for row in read_log(tmp_path)}
    assert rows[6]["estimate"] == {"value": 2.0, "std_error": 0.5, "n": 10, "name": "FD[script]", "dof": None}
    assert rows[4]["estimate"]["value"] is None and rows[9]["stopped"] == "all 9 steps are done"


def test_a_run_that_stops_getting_better_ends_and_says_why(tmp_path):
    plan = Plan(100, 16, tick_steps=100, evaluate_steps=3, patience=2)
    ticks = run(*noisy(), plan, tmp_path, evaluate=Script(5.0, 4.0, 4.5, 4.0))
    reason = "2 evaluations brought nothing better than FD[script] 4.0"
    assert ticks[-1].step == 12 and ticks[-1].stopped.startswith(reason) and ticks[-1].stopped.endswith("at step 6")
    assert not any(t.stopped for t in ticks[:-1]) and ticks[-1].fraction == 0.12
    assert load_checkpoint(tmp_path).info["stopped"] == read_log(tmp_path)[-1]["stopped"] == ticks[-1].stopped
    (again,) = run(*noisy(), plan, tmp_path, evaluate=Script())
    assert again.step == 12 and again.stopped == ticks[-1].stopped
    more = Plan(100, 16, tick_steps=100, evaluate_steps=3, patience=3)
    assert run(*noisy(), more, tmp_path, evaluate=Script(9.0))[-1].step == 15


def test_best_and_patience_survive_a_resume(tmp_path):
    plan = Plan(100, 16, tick_steps=3, checkpoint_steps=3, evaluate_steps=3, patience=2)
    for tick in train(*noisy(), plan, tmp_path, evaluate=Script(5.0, 4.0, 4.5)):
        if tick.step == 9:
            break
    ticks = run(*noisy(), plan, tmp_path, evaluate=Script(4.2))
    assert [t.step for t in ticks] == [12] and best(tmp_path).step == 6 and "better than" in ticks[0].stopped


def test_evaluation_does_not_disturb_training(tmp_path):
    def rude(method, emas):
        torch.manual_seed(5)
        torch.rand(3)
        method.eval()
        return Estimate(0.0, 0.0, 1)

    quiet, loud = noisy(), noisy()
    run(*quiet, Plan(8, 16))
    run(*loud, Plan(8, 16, evaluate_steps=1), evaluate=rude)
    assert torch.equal(weights(quiet[0]), weights(loud[0]))


def test_plans_that_ask_for_an_evaluation_need_one():
    for plan in (Plan(3, evaluate_steps=1), Plan(3, patience=1)):
        with pytest.raises(BadValue, match="evaluate="):
            run(*noisy(), plan)
    with pytest.raises(BadValue, match="must return an Estimate"):
        run(*noisy(), Plan(3, 16), evaluate=lambda method, emas: 1.0)


@pytest.mark.parametrize("at_close", [False, True])
def test_a_closed_run_goes_on_from_where_it_may(tmp_path, at_close):
    plan = Plan(10, 16, tick_steps=1, checkpoint_steps=4, checkpoint_at_close=at_close)
    straight = noisy()
    run(*straight, plan)
    ticks = train(*noisy(), plan, tmp_path)
    for _ in range(6):
        next(ticks)
    ticks.close()
    assert load_checkpoint(tmp_path).info["step"] == (6 if at_close else 4)
    ticks.close()
    with pytest.raises(StopIteration):
        next(ticks)
    second = noisy()
    resumed = run(*second, plan, tmp_path)
    assert [t.step for t in resumed] == list(range(7 if at_close else 5, 11))
    assert torch.equal(weights(second[0]), weights(straight[0]))


def test_a_run_closed_before_its_first_step_leaves_no_checkpoint(tmp_path):
    ticks = train(*noisy(), Plan(10, 16, checkpoint_at_close=True), tmp_path)
    ticks.close()
    assert not list(tmp_path.iterdir())


def test_means_of_a_log_line_cover_the_steps_before_a_resume_too(tmp_path):
    plan = Plan(12, 16, tick_steps=6, checkpoint_steps=4)
    run(*noisy(), plan, tmp_path / "straight")
    ticks = train(*noisy(), Plan(4, 16, tick_steps=6, checkpoint_steps=4), tmp_path / "cut")
    list(ticks)
    log = tmp_path / "cut" / "log.jsonl"
    assert [row["step"] for row in read_log(tmp_path / "cut")] == [4]
    log.write_text("")
    (index,) = (tmp_path / "cut").glob("step-*.json")
    saved = json.loads(index.read_text())
    assert saved["pending"]["logs"] == {}  # the tick at its end took them
    resumed = train(*noisy(), plan, tmp_path / "other")
    assert next(resumed).step == 6
    resumed.close()  # killed after step 6; the checkpoint is of step 4 and remembers four losses
    assert load_checkpoint(tmp_path / "other").info["pending"]["logs"]["loss/net"][1] == 4
    list(train(*noisy(), plan, tmp_path / "other"))
    strip = [[{**row, "seconds": 0} for row in read_log(tmp_path / name)] for name in ("straight", "other")]
    assert strip[0] == strip[1]


def test_tensorboard_events_hold_the_ticks(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    plan = Plan(4, 16, tick_steps=2, evaluate_steps=2, checkpoint_steps=2, tensorboard=True)
    ticks = train(*noisy(), plan, tmp_path, evaluate=Script(3.0))
    assert [next(ticks).step for _ in range(1)] == [2]
    ticks.close()
    run(*noisy(), plan, tmp_path, evaluate=Script(2.0))
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    rows = {row["step"]: row for row in read_log(tmp_path)}
    assert sorted(rows) == [2, 4]
    for name in ("loss/net", "grad_norm/net", "lr/net", "skipped"):
        found = {event.step: event.value for event in events.Scalars(name)}  # float32
        assert found == pytest.approx({step: row[name] for step, row in rows.items()}, rel=1e-6)
    assert [event.value for event in events.Scalars("estimate/FD[script]")] == [3.0, 2.0]


def test_a_run_without_a_folder_closes_too():
    ticks = train(
        Regression(), Repeat(line()), Plan(5, optimizer=OptimizerPlan(), tick_steps=1, checkpoint_at_close=True)
    )
    next(ticks)
    ticks.close()
