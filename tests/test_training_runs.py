"""Training runs as folders: the process that trains, what it says, what can be chosen, what is read back, what is kept."""

from __future__ import annotations

import json
import os
import threading
import time

import numpy as np
import pytest
import torch
from shortruns import TOY, asked, done, few

pytest.importorskip("panel")

from explorer import papers
from explorer.apps import catalogue
from explorer.apps.training import choices, kept, launch, previews, process, reading
from explorer.apps.training.folder import RunFiles, listed, new_name, read_rows
from explorer.errors import BadFile, BadValue, NonFinite, UnknownName
from explorer.metrics.base import Estimate
from explorer.models import bundled
from explorer.reproduction.run import train_recipe
from explorer.training import read_log
from explorer.training.levels import N_LEVELS, LevelLoss


@pytest.fixture(autouse=True)
def runs(monkeypatch, tmp_path):
    few(monkeypatch, tmp_path / "runs")
    return tmp_path / "runs"


# The process and its folder


def test_a_run_is_what_the_recipe_alone_would_have_learnt_and_says_how_it_went(runs):
    files = done(runs, lr=1e-3, seed=3)
    status = files.status()
    assert (status["step"], status["n_steps"], status["n_images"], status["fraction"]) == (12, 12, 12 * 32, 1.0)
    assert status["eta"] == 0 and status["pid"] == os.getpid() and not files.alive
    assert sum(status["n_parameters"].values()) == 132_738

    *_, tick = train_recipe(choices.recipe_of(files.request))
    model = bundled.load(files.model / "a.safetensors")
    for mine, theirs in zip(tick.emas["ema"]["net"].parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs), "watching changes nothing, bit for bit"


def test_measurements_are_those_of_the_recipes_sampler_on_fixed_seeds(runs):
    from explorer.live import metric_for, quality

    files = done(runs)
    row = read_rows(files.measures)[-1]
    model, recipe = bundled.load(files.model / "a.safetensors"), choices.recipe_of(files.request)
    *_, live = quality(model, recipe.sampler, metric_for(model, data="8gaussians"), previews.N_FINAL, batch=512)
    assert Estimate.from_dict(row["estimate"]) == live.estimate and row["nfe"] == live.nfe == 35
    assert row["straightness"] == [float(live.geometry[f"straightness_linear{e}"]) for e in ("", "_se")]
    assert row["step"] == files.status()["measured"]["step"] == 12
    card = bundled.card(files.model / "a.safetensors")
    assert card["metrics"][0]["value"] == live.estimate.value and card["recipe"]["steps_done"] == 12


def test_pictures_are_samples_of_the_averages_at_the_same_noise(runs):
    files = done(runs)
    last = previews.read_preview(sorted(files.previews.glob("*.safetensors"))[-1])
    model, recipe = bundled.load(files.model / "a.safetensors"), choices.recipe_of(files.request)
    x, _ = previews.draw(recipe, model, previews.N_PARTICLES)
    torch.testing.assert_close(last.x, x.float(), rtol=0, atol=1e-6)
    assert (last.step, last.n_images) == (12, 12 * 32) and last.flat


def test_images_are_stored_as_bytes_with_their_classes(tmp_path):
    x = torch.linspace(-1.2, 1.2, 3 * 2 * 4 * 4).reshape(3, 2, 4, 4)
    file = previews.write_preview(tmp_path, x, torch.arange(3), {"step": 7, "n_images": 70, "seconds": 0.5})
    back = previews.read_preview(file)
    assert back.x.dtype == torch.uint8 and back.x.shape == x.shape and not back.flat
    torch.testing.assert_close(back.x.float() / 127.5 - 1, x.clamp(-1, 1), rtol=0, atol=0.5 / 127.5 + 1e-6)


def test_pause_holds_the_run_and_stop_leaves_a_checkpoint_from_which_it_ends_in_the_same_weights(runs):
    whole = done(runs, "whole")
    files = asked(runs, "parted")
    recipe = process.watched(choices.recipe_of(files.request))
    course = process.attended(recipe, files)
    for tick in course:
        if tick.step == 4:
            files.want("pause")
            break
    states = []

    def watch():
        while files.status()["state"] != "paused":
            time.sleep(0.01)
        states.append((files.status()["state"], files.status()["step"], files.alive))
        files.want("run")
        while files.status()["step"] < 6:
            time.sleep(0.01)
        files.want("stop")

    other = threading.Thread(target=watch)
    other.start()
    steps = [tick.step for tick in course]
    other.join()
    assert states == [("paused", 4, True)]
    status = files.status()
    assert status["state"] == "stopped" and 6 <= steps[-1] < 12 or status["state"] == "done"
    files.want("run")
    process.work(files)
    assert files.status()["state"] == "done" and [row["step"] for row in read_log(files.path)] == list(range(1, 13))
    a, b = (bundled.load(f.model / f"{f.name}.safetensors") for f in (whole, files))
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q)


def test_one_process_at_a_time_trains_in_a_folder(runs):
    files = asked(runs)
    with files.lock():
        assert files.alive
        with pytest.raises(BadValue, match="another process"), files.lock():
            pass
        with pytest.raises(BadValue, match="already"):
            launch.Launcher().start(files)
    assert not files.alive


@pytest.mark.parametrize("state", ["running", "paused", "measuring", "preparing"])
def test_a_process_that_is_gone_without_a_word_is_called_killed(runs, state):
    files = asked(runs)
    files.say(state=state, step=3, n_steps=12, pid=os.getpid(), beat=time.time())
    assert files.status() == {**files.status(), "state": "killed", "step": 3}
    with pytest.raises(BadValue, match="nothing is running"):
        launch.halt(files, "pause")
    with files.lock():
        assert files.status()["state"] == state


def test_starting_is_believed_while_its_process_lives(runs):
    files = asked(runs)
    assert files.status()["state"] == "starting"
    files.say(state="starting", pid=2**22 + 1, beat=time.time())  # above the largest process number of Linux
    assert files.status()["state"] == "killed"
    files.say(state="starting", pid=os.getpid(), beat=time.time() - 400)
    assert files.status()["state"] == "killed"


def test_a_loss_that_is_not_finite_ends_the_run_with_its_network_and_step(runs):
    files = asked(runs, lr=1e30, steps=200)
    process.work(files)
    status = files.status()
    assert status["state"] == "failed" and status["error"]["kind"] == "nan"
    assert "'net'" in status["error"]["text"] and "step" in status["error"]["text"]
    assert NonFinite.__name__ in status["error"]["details"]


def test_a_full_disk_leaves_last_words_in_room_that_was_set_aside(runs, monkeypatch):
    files = asked(runs)
    recipe = process.watched(choices.recipe_of(files.request))
    course = process.attended(recipe, files, previews=False)
    next(course)

    def full(*args, **kwargs):
        raise BadFile("status.json could not be written: no space left on device.")

    monkeypatch.setattr(RunFiles, "say", full)
    monkeypatch.setattr(process.shutil, "disk_usage", lambda path: type("U", (), {"free": 1 << 20})())
    with pytest.raises(BadFile):
        course.throw(BadFile("log.jsonl could not be written: no space left on device."))
    monkeypatch.undo()
    monkeypatch.setenv("EXPLORER_RUNS", str(runs))
    status = files.status()
    assert status["state"] == "failed" and status["error"]["kind"] == "disk"
    assert "no space left" in status["error"]["text"] and "1 MB are free" in status["error"]["text"]
    process.work(files)
    assert files.status()["state"] == "done", "room was made: it goes on"


def test_requests_that_name_nothing_fail_in_words(runs):
    files = asked(runs, "x")
    for request in (
        {**TOY, "paper": "nope"},
        {**TOY, "recipe": "nope"},
        {**TOY, "changes": {"nope": 1}},
        {**TOY, "changes": {"lr": -1}},
        {**TOY, "changes": [1]},
    ):
        files.ask(request)
        process.work(files)
        status = files.status()
        assert status["state"] == "failed" and status["error"]["kind"] == "refused" and status["error"]["text"]


def test_pictures_that_fail_do_not_end_the_training(runs, monkeypatch):
    monkeypatch.setattr(previews, "draw", lambda *args: 1 / 0)
    files = asked(runs)
    process.work(files)
    status = files.status()
    assert status["state"] == "done" and "ZeroDivisionError" in status["notices"][0]


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"state": "dancing"}', '{"state": 7}', "null"])
def test_damaged_accounts_are_read_from_the_checkpoints_instead(runs, content):
    files = done(runs)
    (files.path / "status.json").write_text(content)
    status = files.status()
    assert (status["state"], status["step"], status["n_steps"]) == ("done", 12, 12)


def test_only_folders_that_hold_a_run_are_listed_newest_first(runs):
    for name, age in (("old", 100), ("new", 0), ("kept", None), (".needs", None), ("Upper", 3)):
        files = RunFiles(runs / name)
        files.path.mkdir(parents=True)
        if age is not None:
            (files.path / "request.json").write_text(json.dumps({**TOY, "created": time.time() - age}))
    assert listed(runs) == ["new", "old"]
    assert new_name("old", runs) == "old-2" and new_name("EDM / toy!", runs) == "edm-toy"
    for bad in ("../x", "kept/x", "none", ""):
        with pytest.raises(BadValue):
            RunFiles.named(bad, runs)


@pytest.mark.slow  # its process imports everything anew
def test_forked_processes_train_and_outlive_the_one_that_started_them(runs):
    files = asked(runs)
    launcher = launch.Launcher()
    launcher.start(files)
    waiting = launcher._ready
    launcher.close()  # as when the server ends; the line is read when the process is warm
    end = time.monotonic() + 280  # imports, on a machine with other work
    while files.status()["state"] != "done":
        assert time.monotonic() < end and files.status()["state"] != "failed", files.status()
        time.sleep(0.05)
    assert waiting.wait(60) == 0, "with nothing more to come it leaves"
    if process.can_fork():
        assert files.status()["pid"] != waiting.pid


# What can be chosen


@pytest.mark.parametrize("slug", papers.names())
def test_every_recipe_of_every_paper_has_knobs_that_give_the_recipe_back(slug):
    paper = papers.paper(slug)
    for name in choices.recipes(paper):
        recipe = paper.recipe(name)
        knobs = choices.knobs(recipe)
        assert {"steps", "batch", "seed", "lr"} <= {knob.name for knob in knobs}
        same = choices.changed(paper.recipe(name), {knob.name: knob.value for knob in knobs})
        assert same.plan == recipe.plan and dict(same.settings) == dict(recipe.settings)
        watched = process.watched(recipe).plan
        assert watched.batch_size == recipe.plan.batch_size and watched.n_steps == recipe.plan.n_steps
        assert watched.checkpoint_at_close and watched.tick_steps <= recipe.plan.tick_steps


def test_settings_reach_the_method_that_reads_them():
    recipe = choices.recipe_of({**TOY, "changes": {"set.p_mean": -2, "set.p_std": 0.5, "half_life": 5, "steps": "7"}})
    from explorer.data import load_dataset

    times = recipe.method(load_dataset(recipe.data)).times
    assert times.sample(4000, generator=torch.Generator().manual_seed(0)).log().mean() == pytest.approx(-2, abs=0.05)
    assert recipe.plan.emas[0].half_life == 5 and recipe.plan.n_steps == 7
    assert choices.recipe_of({**TOY, "changes": {}}).settings["p_mean"] != -2, "the next one is fresh"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("steps", 0, "at least 1"), ("steps", 2.5, "whole number"), ("lr", 0, "above 0"), ("lr", "fast", "no number"),
     ("lr", float("nan"), "cannot be"), ("batch", "", "needs a value"), ("minutes", -1, "above 0"), ("set.p_mean", None, "needs a value")],
)  # fmt: skip
def test_values_that_cannot_be_are_refused_in_words(name, value, words):
    with pytest.raises(BadValue, match=words):
        choices.recipe_of({**TOY, "changes": {name: value}})


def test_settings_that_the_method_does_not_read_cannot_be_turned():
    paper = papers.paper("digits_cnn")
    knob = next(k for k in choices.knobs(paper.recipe("digits")) if k.name == "set.decorrelation")
    assert "does not read" in knob.reason
    with pytest.raises(BadValue, match="cannot be changed"):
        choices.changed(paper.recipe("digits"), {"set.decorrelation": 1.0})


def test_the_command_that_is_copied_trains_the_same_plan():
    import shlex

    from explorer.reproduction.run import override

    changes = {"steps": 50, "lr": 5e-4, "batch": 64}
    words = shlex.split(choices.command("edm", "toy-moons", changes))
    assert words[:5] == ["explorer", "train", "edm", "--data", "toy-moons"]
    sets = dict(word.split("=") for word in words[5:] if "=" in word)
    assert (
        override(papers.paper("edm").recipe("toy-moons"), sets).plan
        == choices.recipe_of({"paper": "edm", "recipe": "toy-moons", "changes": changes}).plan
    )


# Reading


def test_courses_are_read_as_they_grow_and_anew_when_a_resumed_run_has_rewritten_them(runs):
    files = asked(runs)
    log = files.log
    rows = [
        {"step": i, "n_images": 32 * i, "seconds": i / 10, "loss/net": 1 / i, "grad_norm/net": 2.0, "lr/net": 1e-3}
        for i in range(1, 6)
    ]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows[:3]) + '{"step": 4, "n_im')
    reader = reading.Reader(runs)
    history = reader.history("a")
    assert history.steps == [1, 2, 3] and history.losses == ["loss/net"] and history.others == ["lr/net"]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert reader.history("a") is history and history.steps == [1, 2, 3, 4, 5]
    assert history.scalars["loss/net"] == pytest.approx([1 / i for i in range(1, 6)])
    shorter = files.path / "log.new"
    shorter.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    os.replace(shorter, log)
    again = reader.history("a")
    assert again is not history and again.steps == [1, 2]


def test_columns_that_begin_late_or_pause_are_filled_with_nothing():
    history = reading.History("a")
    for i, row in enumerate(
        (
            {"loss/net": 1.0},
            {"loss/net": None},
            {
                "loss/net": 3.0,
                "late": 5,
                "levels": {
                    "net": LevelLoss.from_dict({"bins": [3], "mean": [2.0], "std_error": [0.1], "n": [4]}).to_dict()
                },
            },
            {},
        )
    ):
        history.add({"step": i, "n_images": i, "seconds": float(i), **row})
    np.testing.assert_array_equal(history.scalars["loss/net"], [1, np.nan, 3, np.nan])
    np.testing.assert_array_equal(history.scalars["late"], [np.nan, np.nan, 5, np.nan])
    means, count = history.level_means("net", 10)
    assert means.shape == (4, N_LEVELS) and means[2, 3] == 2.0 and np.isfinite(means).sum() == 1 and count.sum() == 4


def test_many_rows_are_shown_as_means_of_groups_and_levels_by_how_many_fell_in_them():
    history, rng = reading.History("a"), np.random.default_rng(0)
    losses, n, means = rng.normal(size=1000), rng.integers(1, 9, (1000, 2)), rng.random((1000, 2))
    for i in range(1000):
        level = {"bins": [4, 9], "mean": means[i].tolist(), "std_error": [0, 0], "n": n[i].tolist()}
        history.add({"step": i, "n_images": i, "seconds": i, "loss/net": losses[i], "levels": {"net": level}})
    np.testing.assert_allclose(history.binned(history.scalars["loss/net"], 240), losses.reshape(200, 5).mean(1))
    got = history.level_means("net", 240)[0][:, [4, 9]]
    np.testing.assert_allclose(got, (means * n).reshape(200, 5, 2).sum(1) / n.reshape(200, 5, 2).sum(1))


# Keeping


def test_a_kept_model_is_offered_everywhere_and_is_what_was_measured(runs):
    before = catalogue.names()
    files = done(runs, "edm-toy")
    file = kept.keep(files)
    assert file == bundled.user_folder() / "edm-toy.safetensors" and "edm-toy" in bundled.names("denoiser")
    assert set(catalogue.names()) - set(before) == {"edm-toy"} and catalogue.groups()[-1]["title"] == catalogue.KEPT
    assert bundled.card("edm-toy")["run"] == "edm-toy" and catalogue.metric_name("edm-toy") == "SW2[xy]"
    for p, q in zip(
        catalogue.model("edm-toy").parameters(),
        bundled.load(files.model / "edm-toy.safetensors").parameters(),
        strict=True,
    ):
        assert torch.equal(p, q)
    assert kept.kept_as(files) == ["edm-toy"]
    with pytest.raises(BadValue, match="'edm-toy-2'"):
        kept.keep(files)
    with pytest.raises(BadValue, match="already"):
        kept.keep(files, "digits")
    with pytest.raises(BadValue, match="no model name"):
        kept.keep(files, "../x")
    assert kept.keep(files, kept.free_name("edm-toy")).stem == "edm-toy-2"


def test_nothing_is_kept_before_it_is_measured_or_when_it_is_damaged(runs):
    files = asked(runs, "b")
    with pytest.raises(BadValue, match="Nothing has been measured yet"):
        kept.keep(files)
    files = done(runs, "c")
    weights = files.model / "c.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
    with pytest.raises(BadFile, match="do not fit"):
        kept.keep(files)
    assert not bundled.user_folder().exists() or not list(bundled.user_folder().iterdir())


def test_what_the_command_line_has_trained_is_on_record_and_can_be_kept(runs, monkeypatch):
    from typer.testing import CliRunner

    from explorer.cli import app
    from explorer.reproduction import run

    # the twenty draws of a card take as many seconds
    monkeypatch.setattr(run, "evaluate", lambda *a, whole=run.evaluate, **more: whole(*a, **{**more, "draws": 2}))
    words = "train edm --data toy-moons --set plan.n_steps=6 --set plan.batch_size=16 --set plan.tick_steps=2 --seed 4"
    out = CliRunner().invoke(app, [*words.split(), "--out", str(runs / "mine-2"), "--previews"])
    assert out.exit_code == 0, out.output
    files = RunFiles.named("mine-2", runs)
    picture = previews.read_preview(max(files.previews.iterdir()))
    assert picture.step == 6 and picture.flat and read_rows(files.measures)[-1]["step"] == 6
    assert files.status()["state"] == "done" and files.status()["step"] == 6
    plan = choices.recipe_of(files.request).plan
    assert (plan.n_steps, plan.batch_size, plan.seed) == (6, 16, 4), "it can be trained again from its folder"
    kept.keep(files)
    assert bundled.card("mine-2")["run"] == "mine-2" and bundled.load("mine-2").shape == (2,)


def test_a_broken_card_among_kept_models_hides_no_other(runs):
    kept.keep(done(runs, "d"))
    (bundled.user_folder() / "broken.json").write_text("{")
    (bundled.user_folder() / "Odd name.json").write_text("{}")
    assert "d" in bundled.names("denoiser") and "digits" in bundled.names("denoiser")
    assert "broken" not in bundled.names("denoiser") and "Odd name" not in bundled.names()


def test_unknown_papers_name_those_there_are():
    with pytest.raises(UnknownName, match="edm"):
        choices.paper_named("nope")


# The command


def test_the_command_lists_and_tells(runs):
    from typer.testing import CliRunner

    from explorer.cli import app

    run = CliRunner().invoke
    assert "no runs" in run(app, ["runs"]).output
    files = done(runs, "a")
    (row,) = json.loads(run(app, ["runs", "--json"]).output)
    estimate = read_rows(files.measures)[-1]["estimate"]
    assert (row["name"], row["state"], row["step"], row["done"]) == ("a", "done", 12, "100%") and row["estimate"][
        "value"
    ] == estimate["value"]
    assert "SW2[xy]" in run(app, ["runs"]).output
    out = run(app, ["runs", "a", "keep", "--as", "mine"])
    assert out.exit_code == 0 and "mine" in bundled.names()
    for words, expected in (
        (["runs", "a", "pause"], "nothing is running"),
        (["runs", "b"], "no run"),
        (["runs", "a", "dance"], "told to"),
        (["runs", "gone", "remove"], "no run"),
    ):
        out = run(app, words)
        assert out.exit_code == 2 and expected in out.output
    gone = asked(runs, "gone")
    gone.say(state="running", step=1)
    with gone.lock():
        assert run(app, ["runs", "gone", "stop"]).exit_code == 0 and gone.wanted == "stop"
    for k in range(2):  # of one name, none takes the place of the other
        assert run(app, ["runs", "a", "remove"]).exit_code == 0 and not files.path.exists()
        assert (files.path.parent / ".removed" / ("a", "a-2")[k] / "log.jsonl").is_file()
        done(runs, "a")
    assert "mine" in bundled.names(), "a kept model stays"
