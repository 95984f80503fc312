"""One search by several processes: nothing lost, nothing doubled, whoever dies; and storages that are not what they should be."""

import json
import multiprocessing
import os
import signal
import sqlite3
import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from problems import oracle

from explorer.errors import BadFile, BadValue, MissingExtra, UnknownName
from explorer.models import Oracle
from explorer.process import GaussianMixture
from explorer.sampling import Euler, OdeSampler, TimeGrid
from explorer.tuning import (
    Budget,
    Coordinate,
    FunctionObjective,
    Joint,
    Nodes,
    Optuna,
    Setting,
    SharedStudy,
    Space,
    Study,
)
from explorer.tuning.shared import shown
from explorer.tuning.space import Box, Dim

MODEL = Oracle(GaussianMixture(torch.zeros(1, 2), 0.5), name="gaussian")
START = Setting(OdeSampler(Euler(), TimeGrid((10.0, 3.0, 0.1, 0.0))))
SEEDS = range(1000, 1008)
FORK = "fork" in multiprocessing.get_all_start_methods() and pytest.importorskip("optuna") is not None
forks = pytest.mark.skipif(not FORK, reason="starts processes by fork")
STORAGES = ("journal:{}/study.log", "sqlite:///{}/study.db")


def bowl(model, sampler, seeds):
    logs = np.log([s for s in sampler.grid.times[1:] if s > 0])
    return float(((logs - np.log([1.7, 0.4])) ** 2).sum()) + 1e-3 * np.array(seeds.ids)


def shared(storage, function=bowl, trials=8, *, tuner=None, seeds=SEEDS, label="bowl", **more):
    objective = FunctionObjective(function, seeds, label)
    given = {"heartbeat": 1, "patience": 5.0, **more}
    return SharedStudy(MODEL, START, objective, tuner or Optuna(Nodes()), Budget(trials=trials), storage, **given)


def rows_of(storage, **more):
    """Every row that Optuna has of the search: (number, state, number that it repeats)."""
    study = shared(storage, **more)._study
    return [(r.number, r.state.name, r.system_attrs.get("failed_trial")) for r in study.get_trials()]


def started(*args):
    process = multiprocessing.get_context("fork").Process(target=_worker, args=args)
    process.start()
    return process


def _worker(storage, log, trials, slow, hang_at):
    """Writes a line for every setting it begins to measure; hangs for ever at its `hang_at`-th beside the baseline, or at that one."""
    begun = 0

    def function(model, sampler, seeds):
        nonlocal begun
        if sampler != START.sampler:
            begun += 1
            with open(log, "a") as stream:
                stream.write(f"{os.getpid()} {Setting(sampler).key()}\n")
            time.sleep(600 if hang_at in (begun, Setting(sampler).key()) else slow)
        return bowl(model, sampler, seeds)

    for _ in shared(storage, function, trials).work():
        pass


def lines(file):
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def wait_for(condition, seconds=60.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "a worker did not get there"
        time.sleep(0.02)


@forks
@pytest.mark.parametrize("storage", STORAGES, ids=["journal", "sqlite"])
def test_two_processes_measure_exactly_the_budget(tmp_path, storage):
    storage, log = storage.format(tmp_path), tmp_path / "log"
    workers = [started(storage, log, 8, 0.05, 0) for _ in range(2)]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    study = shared(storage)
    trials = study.trials
    assert [t.number for t in trials] == list(range(9)) and trials[0].setting == START
    begun = lines(log)
    assert len({pid for pid, _ in begun}) == 2  # both did some
    assert Counter(key for _, key in begun) == Counter(t.setting.key() for t in trials[1:])  # each once, none but these
    assert [state for _, state, _ in rows_of(storage) if state != "PRUNED"] == ["COMPLETE"] * 9
    for trial in trials:  # the numbers are those of the settings, whoever measured them
        want = FunctionObjective(bowl, SEEDS, "bowl")(MODEL, trial.setting.sampler)
        assert trial.estimate.value == pytest.approx(want.value, rel=1e-12)
        assert trial.difference.value == pytest.approx(want.value - trials[0].estimate.value, rel=1e-9, abs=1e-12)
    assert not list(study.work())  # nothing is left to do
    tuned = study.finish(8)
    assert tuned.setting == min(trials, key=lambda t: t.value).setting and len(tuned.history) == 9


@forks
@pytest.mark.parametrize("storage", STORAGES, ids=["journal", "sqlite"])
def test_the_trial_of_a_killed_worker_is_begun_again_once(tmp_path, storage):
    storage, log = storage.format(tmp_path), tmp_path / "log"
    victim = started(storage, log, 6, 0.0, 2)
    wait_for(lambda: len(lines(log)) == 2)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join(10)
    assert victim.exitcode == -signal.SIGKILL
    killed = lines(log)[-1][1]

    survivor = shared(storage, trials=6)
    mine = list(survivor.work())
    trials = survivor.trials
    assert [t.number for t in trials] == list(range(7)) and not any(t.failed for t in trials)
    keys = Counter(t.setting.key() for t in trials)
    assert max(keys.values()) == 1 and keys[killed] == 1  # the same setting, not another one
    assert sum(t.setting.key() == killed for t in mine) == 1  # measured by the survivor
    again = [row for row in rows_of(storage, trials=6) if row[2] is not None]
    assert len(again) == 1 and again[0][1] == "COMPLETE"
    assert sum(state == "FAIL" for _, state, _ in rows_of(storage, trials=6)) == 1


@forks
def test_a_trial_that_kills_two_workers_is_marked_and_the_search_ends(tmp_path):
    storage, log = f"journal:{tmp_path}/study.log", tmp_path / "log"
    hang_at = 1
    for n in (1, 2):
        victim = started(storage, log, 2, 0.0, hang_at)
        wait_for(lambda n=n: [key for _, key in lines(log)].count(lines(log)[0][1]) == n if lines(log) else False)
        os.kill(victim.pid, signal.SIGKILL)
        victim.join(10)
        hang_at = lines(log)[0][1]
    study = shared(storage, trials=2)
    list(study.work())
    trials = study.trials
    assert [bool(t.failed) for t in trials] == [False, True, False] and "twice" in trials[1].failed
    assert trials[1].setting.key() == hang_at and study.best.number in (0, 2)


def test_an_interrupted_trial_goes_back_to_the_queue(tmp_path):
    storage, seen = f"journal:{tmp_path}/study.log", []

    def impatient(model, sampler, seeds):
        seen.append(Setting(sampler).key())
        if len(seen) == 3:
            raise KeyboardInterrupt
        return bowl(model, sampler, seeds)

    with pytest.raises(KeyboardInterrupt):
        list(shared(storage, impatient, 4).work())
    study = shared(storage, trials=4)
    list(study.work())
    assert [t.number for t in study.trials] == list(range(5)) and not any(t.failed for t in study.trials)
    assert seen[-1] in {t.setting.key() for t in study.trials}


def test_a_worker_that_was_given_up_while_it_slept_does_not_count_twice(tmp_path):
    """The row is failed and queued again behind its back, as another worker's look at the heartbeats would do."""
    import optuna

    from explorer.tuning.shared import retry

    storage, seen = f"sqlite:///{tmp_path}/study.db", []

    def sleepy(model, sampler, seeds):
        seen.append(Setting(sampler).key())
        if len(seen) == 3:
            other = shared(storage)._study
            row = next(r for r in other.get_trials() if r.state.name == "RUNNING")
            other.tell(row.number, state=optuna.trial.TrialState.FAIL)
            retry()(other, other.trials[row.number])
        return bowl(model, sampler, seeds)

    study = shared(storage, sleepy, 4)
    mine = list(study.work())
    assert len(mine) == 5 and [t.number for t in study.trials] == list(range(5))
    assert Counter(seen)[seen[2]] == 2  # begun twice
    assert Counter(t.setting.key() for t in mine)[seen[2]] == 1  # counted once


def test_a_larger_budget_goes_on_and_a_smaller_one_ends(tmp_path):
    storage = f"journal:{tmp_path}/study.log"
    assert len(list(shared(storage, trials=3).work())) == 4
    assert len(list(shared(storage, trials=5).work())) == 2
    assert len(list(shared(storage, trials=2).work())) == 0
    assert len(shared(storage, trials=5).trials) == 6
    assert list(shared(storage, trials=9, name="other").work())[0].setting == START  # another search in the same file


@dataclass(frozen=True)
class Half(Space):
    """One number, of which only the lower half is possible."""

    def box(self, model, start):
        def build(values):
            if values[0] > 0.5:
                raise BadValue("contradiction")
            return Setting(OdeSampler(Euler(), TimeGrid((10.0, 1.0 + values[0], 0.0))))

        return Box((Dim("a"),), (0.25,), build)


def test_points_that_contradict_themselves_cost_no_trial(tmp_path):
    def one(model, sampler, seeds):
        return np.full(len(seeds), sampler.grid.times[1])

    study = shared(f"journal:{tmp_path}/s.log", one, 20, tuner=Optuna(Half()))  # that no half of 20 is refused: 1e-6
    assert len(list(study.work())) == 21 and not any(t.failed for t in study.trials)
    assert any(state == "PRUNED" for _, state, _ in rows_of(study.storage, function=one, tuner=Optuna(Half())))


def test_a_trial_without_a_number_is_marked_and_the_search_goes_on(tmp_path):
    def moody(model, sampler, seeds):
        value = bowl(model, sampler, seeds)
        return value if sampler == START.sampler or sampler.grid.times[1] > 1.0 else value * np.nan

    study = shared(f"journal:{tmp_path}/s.log", moody, 12)
    list(study.work())
    bad = [t for t in study.trials if t.failed]
    assert bad and all("nan" in t.failed and t.setting.sampler.grid.times[1] <= 1.0 for t in bad)
    assert len(study.trials) == 13 and not study.best.failed

    def hopeless(model, sampler, seeds):
        return np.full(len(seeds), np.nan)

    with pytest.raises(BadValue, match="the baseline cannot be measured"):
        list(shared(f"journal:{tmp_path}/t.log", hopeless, 3).work())


def test_a_front_is_shared_as_well(tmp_path):
    tuner = Optuna(Joint(solvers=("euler", "heun"), steps=(2, 6), skips=False, guidance=False), "nsga2")
    study = shared(
        f"sqlite:///{tmp_path}/s.db", lambda m, s, seeds: np.full(len(seeds), 1 / s.grid.n_steps), 14, tuner=tuner
    )
    list(study.work())
    front = study.gathered().front()
    assert len(front) >= 2 and [t.nfe for t in front] == sorted(t.nfe for t in front)


# Storages that are not what they should be


def test_nobody_joins_a_search_of_something_else(tmp_path):
    storage = f"journal:{tmp_path}/s.log"
    list(shared(storage, trials=1).work())
    other = SharedStudy(
        oracle(), START, FunctionObjective(bowl, SEEDS, "bowl"), Optuna(Nodes()), Budget(trials=1), storage
    )
    for study, says in (
        (other, "model.name is .gaussian. there and .oracle. here"),
        (shared(storage, seeds=range(8)), "objective.seeds"),
        (shared(storage, label="cup"), "objective.name is .bowl. there"),
        (shared(storage, tuner=Optuna(Nodes(free_start=True))), "space is"),
        (shared(storage, tuner=Optuna(Nodes(), "nsga2")), "kind is"),
    ):
        with pytest.raises(BadFile, match=f"the search 'explorer' in journal:.* is another one: {says}"):
            list(study.work())
    assert len(shared(storage).trials) == 2


def test_a_study_that_is_not_ours_is_refused(tmp_path):
    import optuna

    theirs = optuna.create_study(storage=f"sqlite:///{tmp_path}/s.db", study_name="explorer")
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    with pytest.raises(BadFile, match="was not begun by this program"):
        list(shared(f"sqlite:///{tmp_path}/s.db").work())


def test_a_damaged_journal_is_refused_and_left_alone(tmp_path):
    file = tmp_path / "s.log"
    list(shared(f"journal:{file}", trials=2).work())
    rows = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*rows[:5], rows[5][:9] + b"\n", *rows[6:]]))
    kept = file.read_bytes()
    with pytest.raises(BadFile, match=r"s\.log is damaged"):
        list(shared(f"journal:{file}", trials=4).work())
    assert file.read_bytes() == kept


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "s.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(BadFile, match="is damaged or no storage"):
        list(shared(f"sqlite:///{tmp_path}/s.db").work())
    with pytest.raises(BadFile, match="cannot be used"):
        list(shared(f"sqlite:///{tmp_path}/there/is/none.db").work())


def test_a_locked_database_is_named(tmp_path):
    file = tmp_path / "s.db"
    list(shared(f"sqlite:///{file}", trials=1).work())
    holder = sqlite3.connect(file)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(BadFile, match="is locked by another program"):
            list(shared(f"sqlite:///{file}", trials=3, patience=0.2).work())
    finally:
        holder.close()


@pytest.mark.parametrize(
    ("storage", "says"),
    [("study.log", "is no storage"), ("redis://host", "is no storage"), ("journal:", "is no storage")],
)
def test_a_storage_of_no_known_kind_is_refused(storage, says):
    with pytest.raises((BadValue, UnknownName), match=says):
        list(shared(storage).work())


def test_a_missing_driver_is_named_and_the_password_is_not(tmp_path):
    try:
        import psycopg2  # noqa: F401
    except ImportError:
        with pytest.raises(BadFile, match="driver") as caught:
            list(shared("postgresql://me:secret@host/db").work())
        assert "secret" not in str(caught.value)
    assert shown("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    assert shown("sqlite:///a@b.db") == "sqlite:///a@b.db"


def test_what_several_cannot_do_is_refused(tmp_path):
    objective = FunctionObjective(bowl, SEEDS, "bowl")
    with pytest.raises(BadValue, match="coordinate descent goes from one answer to the next"):
        SharedStudy(MODEL, START, objective, Coordinate(Nodes()), Budget(trials=3), f"journal:{tmp_path}/s.log")
    with pytest.raises(BadValue, match="share a number of trials"):
        SharedStudy(MODEL, START, objective, Optuna(Nodes()), Budget(nfe=10**6), f"journal:{tmp_path}/s.log")


def test_an_error_of_the_objective_is_its_own(tmp_path):
    def broken(model, sampler, seeds):
        raise OSError("no such lens")

    with pytest.raises(OSError, match="no such lens"):
        list(shared(f"journal:{tmp_path}/s.log", broken).work())


def test_a_worker_stops_when_its_minutes_are_over(tmp_path):
    study = shared(f"journal:{tmp_path}/s.log")
    study.budget = Budget(trials=8, minutes=1e-9)
    assert list(study.work()) == []


def test_one_process_gives_what_a_plain_study_gives(tmp_path):
    """The same settings measured by either have the same numbers, baseline and difference included."""
    from explorer.tuning import Listed

    study = shared(f"journal:{tmp_path}/s.log", trials=4)
    list(study.work())
    trials = study.trials
    plain = list(Study(MODEL, START, study.objective, Listed(tuple(t.setting for t in trials[1:])), Budget(trials=9)))
    for a, b in zip(trials, plain, strict=True):
        keep = ("setting", "estimate", "difference", "nfe")
        assert [json.dumps(a.to_dict()[k]) for k in keep] == [json.dumps(b.to_dict()[k]) for k in keep]


def test_without_optuna_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(MissingExtra, match="optuna"):
        list(shared(f"journal:{tmp_path}/s.log").work())
