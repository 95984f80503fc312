"""A user's own data on the Training page: kept in two parts, uploaded in pieces, refused in one sentence, learnt, found again."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import zipfile

import numpy as np
import pytest
import torch
from shortruns import few
from test_training_page import Desk, unpacked

pytest.importorskip("panel")

from explorer.apps.training import choices, own, process
from explorer.apps.training.folder import RunFiles, listed
from explorer.apps.training.own import Upload
from explorer.apps.worker import Worker
from explorer.data import keep, load_dataset, write_zip
from explorer.errors import BadFile, BadValue
from explorer.live import SETTLED, against, metric_for, suits
from explorer.metrics.features import pixel_space
from explorer.models import bundled
from explorer.models.base import Preconditioned
from explorer.nets import MLP, UNet
from explorer.process import EDM, EDMPrecondition


@pytest.fixture(autouse=True)
def runs(monkeypatch, tmp_path):
    few(monkeypatch, tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def page():
    worker = Worker(n_threads=1)
    desk = Desk(worker)
    yield desk
    desk.store.close()
    worker.close()


def ring(n=300, radius=3.0):
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, n)
    return np.c_[5 + radius * np.cos(angle), radius * np.sin(angle)] + 0.1 * rng.normal(size=(n, 2))


def text_of(points) -> bytes:
    out = io.StringIO()
    np.savetxt(out, points, delimiter=",")
    return out.getvalue().encode()


def pictures(file, n=40, shape=(1, 8, 8), labels=None):
    pixels = torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return write_zip(file, pixels, labels), pixels


def upload(page, name: str, content: bytes, part=1000, **more):
    """As the browser does it: the next part when the last one has arrived."""
    page.send("upload", id="u", name=name, size=len(content), **more)
    while page.lab.form.arrived.get("id") == "u" and page.store.given._upload is not None:
        at = page.lab.form.arrived["at"]
        page.send("part", id="u", at=at, part=base64.b64encode(content[at : at + part]).decode())
    page.until(lambda: not page.lab.form.arrived["doing"])


# What is kept


def test_the_two_parts_are_the_whole_and_share_nothing(tmp_path):
    x = ring(50)
    np.savetxt(tmp_path / "My ring.csv", x, delimiter=",")
    folder = keep(tmp_path / "My ring.csv", tmp_path / "data")
    assert folder.name == "my-ring" and keep(tmp_path / "My ring.csv", tmp_path / "data") == folder
    train, test = (load_dataset(str(folder), split) for split in ("train", "test"))
    assert (len(train), len(test)) == (45, 5) and test.sigma_data == train.sigma_data == 0.5
    raw = [d.x.double() / train.card["scale"] + torch.tensor(train.card["raw_mean"]) for d in (train, test)]
    back = np.sort(torch.cat(raw).numpy(), axis=0)
    np.testing.assert_allclose(back, np.sort(x, axis=0), rtol=0, atol=2e-6 * np.abs(x).max())  # float32 twice
    assert float(train.x.double().mean(0).abs().max()) < 1e-6 < float(test.x.double().mean(0).abs().max())
    np.savetxt(tmp_path / "My ring.csv", x + 1, delimiter=",")
    assert keep(tmp_path / "My ring.csv", tmp_path / "data").name == "my-ring-2"
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == ["my-ring", "my-ring-2"]  # nothing half written


def test_pictures_keep_their_bytes_their_classes_and_their_own_name(tmp_path):
    labels = torch.arange(40) % 3
    file, pixels = pictures(tmp_path / "digits.zip", labels=labels)
    folder = str(keep(file, tmp_path / "data"))
    train, test = load_dataset(folder), load_dataset(folder, "test")
    assert train.name == "digits-own" and test.name == "digits-own-test"  # not measured by what knows digits
    both = torch.cat([((d.x + 1) * 127.5).round().byte() for d in (train, test)])
    kept = {(p.numpy().tobytes(), int(k)) for p, k in zip(both, torch.cat([train.labels, test.labels]), strict=True)}
    assert kept == {(p.numpy().tobytes(), int(k)) for p, k in zip(pixels, labels, strict=True)}
    assert train.n_classes == test.n_classes == 3
    assert train.sigma_data == pytest.approx(float(train.x.std()), rel=5e-3) and train.sigma_data == test.sigma_data
    assert load_dataset(str(file)).sigma_data == pytest.approx(float(train.x.std()), rel=0.05)  # measured, too


def test_pictures_of_many_sizes_are_brought_to_one(tmp_path):
    from PIL import Image

    with zipfile.ZipFile(tmp_path / "mixed.zip", "w") as archive:
        for i, size in enumerate(((40, 30), (32, 64), (20, 20))):
            out = io.BytesIO()
            Image.new("RGB", size, (80 * i, 10, 200)).save(out, "png")
            archive.writestr(f"{i}.png", out.getvalue())
    with pytest.raises(BadFile, match="where 0.png is 40 x 30"):
        keep(tmp_path / "mixed.zip", tmp_path / "data")
    folder = keep(tmp_path / "mixed.zip", tmp_path / "data", side=16)
    assert load_dataset(str(folder)).x.shape == (3, 3, 16, 16)
    with pytest.raises(BadValue, match="no test split"):
        load_dataset(str(folder), "test")


def test_what_cannot_be_learnt_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    flat, _ = pictures(tmp_path / "some.zip")
    write_zip(tmp_path / "flat.zip", torch.full((5, 1, 4, 4), 7, dtype=torch.uint8))
    (tmp_path / "words.csv").write_text("1,2\n3,four\n")
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros((100, 2)))
    assert (tmp_path / "bomb.npz").stat().st_size < 1500
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object))
    monkeypatch.setattr(sys.modules["explorer.data.points"], "MAX_BYTES", 1500)
    for name, words in (
        ("flat.zip", "one flat colour"),
        ("words.csv", "line 2"),
        ("bomb.npz", "unpacks to"),
        ("objects.npy", "plain numbers"),
        ("nothing.csv", "no .*nothing.csv"),
    ):
        with pytest.raises((BadFile, BadValue), match=words):
            keep(tmp_path / name, tmp_path / "data")
    monkeypatch.setattr("explorer.data.own.MAX_VALUES", 1000)
    with pytest.raises(BadFile, match="40 samples of 1 x 8 x 8"):
        keep(flat, tmp_path / "data")
    assert not (tmp_path / "data").exists() or not list((tmp_path / "data").iterdir())


def test_a_damaged_folder_says_so(tmp_path):
    np.savetxt(tmp_path / "a.csv", ring(30), delimiter=",")
    folder = keep(tmp_path / "a.csv", tmp_path / "data")
    (folder / "train.npz").write_bytes(b"PK\x03\x04 and no more")
    os.utime(folder / "data.json", ns=(1, 1))  # not what was read before
    with pytest.raises(BadFile, match="damaged"):
        load_dataset(str(folder))


# What is measured


def test_samples_are_compared_with_what_was_held_out(tmp_path):
    np.savetxt(tmp_path / "moons.csv", ring(300), delimiter=",")
    folder = str(keep(tmp_path / "moons.csv", tmp_path / "data"))
    net = Preconditioned(MLP(2, 8, 1), EDM(), EDMPrecondition(0.5), shape=(2,), t_range=(0.01, 10.0))
    metric, held = metric_for(net, data=folder), load_dataset(folder, "test")
    assert np.array_equal(metric.y, held.x.double().numpy())  # and not with the toy of that name
    assert against(load_dataset(folder), "sw2") == "30 held-out points"
    few_held = load_dataset(str(keep(pictures(tmp_path / "few.zip")[0], tmp_path / "data")))
    many, pixels = pictures(tmp_path / "many.zip", n=SETTLED * 4 * 10, shape=(1, 2, 2))
    many_held = load_dataset(str(keep(many, tmp_path / "data")))
    assert suits(pixel_space(few_held.shape), few_held) == "sw2"
    pixels = Preconditioned(
        UNet((1, 8, 8), 8, (1,), 1), EDM(), EDMPrecondition(0.5), shape=(1, 8, 8), t_range=(0.01, 10.0)
    )
    shown = metric_for(pixels, data=few_held.card["parts"])
    assert shown.name == "SW2[pixels]" and len(shown.y) == 4 and against(few_held, "sw2") == "4 held-out pictures"
    assert (
        suits(pixel_space(many_held.shape), many_held) == "fd"
        and suits(pixel_space((1, 8, 8)), load_dataset("digits")) == "fd"
    )
    from explorer.live import frechet

    reference = frechet(pixel_space(many_held.shape), many_held).reference
    real = load_dataset(many_held.card["parts"], "test")
    np.testing.assert_allclose(reference.mean, real.x.double().flatten(1).mean(0).numpy(), atol=1e-12)


# The page


def test_points_go_from_the_browser_to_a_model(page, runs):
    content = text_of(ring())
    upload(page, "My ring.csv", content)
    form = page.lab.form.data
    assert form["own"]["name"] == "my-ring" and form["recipe"] == "toy" and form["kept"] == ["my-ring"]
    words = " ".join(form["own"]["words"])
    assert "300 points of 2 coordinates" in words and "30 held out" in words and "x 1.8" in words
    assert form["own"]["preview"]["kind"] == "points" and 100 < len(form["own"]["preview"]["x"]) <= 300
    assert not list((runs / "data").glob(".*"))  # nothing on its way is left
    assert {r["name"]: bool(r["why"]) for r in form["recipes"]}["digits"] and not form["blocked"]
    for knob, value in (("steps", "12"), ("batch", "32")):
        page.send("set", knob=knob, value=value)
    assert "own=my-ring" in page.store.link()
    page.send("start")
    (files,) = page.hand.started
    assert files.name == "edm-toy-my-ring" and files.request["data"] == str((runs / "data" / "my-ring").resolve())
    process.work(files)
    status = files.status()
    assert status["state"] == "done" and status["measured"]["against"] == "30 held-out points"
    page.until(lambda: page.lab.stage.data["panels"] and page.lab.stage.data["panels"][0].get("hero"))
    (panel,) = page.lab.stage.data["panels"]
    assert panel["title"] == "edm · toy on my-ring" and panel["hero"]["name"] == "SW2[xy]"
    assert "held-out points" in panel["hero"]["title"]
    page.until(lambda: page.lab.stage.book_0 is not None)
    block = unpacked(page.lab.stage.book_0)
    assert block["kind"] == "points" and len(block["data"]) == 60  # both coordinates of what was held out
    assert bundled.load(files.path).shape == (2,)  # the folder is a model's name
    assert bundled.card(files.path)["data"] == files.request["data"]
    cli = page.lab.top.data["texts"]["cli"]
    assert "--recipe toy" in cli and str(runs / "data" / "my-ring") in cli and "data" not in listed(runs)


def test_the_view_is_found_again_by_its_address_and_a_run_by_its_request(page, runs):
    upload(page, "ring.csv", text_of(ring(60)))
    link = page.store.link()
    page.send("own", name="")
    assert page.store.given.data is None and page.lab.form.data["own"] is None
    page.send("open", link=link)
    assert page.store.given.data.name == "ring" and page.store.recipe_name == "toy" and page.store.error is None
    page.send("start")
    page.send("own", name="")
    page.until(lambda: page.store.card("edm-toy-ring") is not None)
    page.send("again", name="edm-toy-ring")
    assert page.store.given.data.name == "ring" and page.lab.form.data["own"]["name"] == "ring"
    page.send("open", link=link.replace("own=ring", "own=..%2F..%2Fetc"))
    assert "no data" in page.error and page.store.given.data.name == "ring"


def test_pictures_of_one_colour_channel_take_the_recipe_of_digits(page, tmp_path):
    file, _ = pictures(tmp_path / "p.zip")
    upload(page, "p.zip", file.read_bytes(), part=4000)
    form = page.lab.form.data
    assert form["own"]["preview"]["png"].startswith("data:image/png;base64,") and form["recipe"] == "digits"
    (mean,) = (k["value"] for g in form["groups"] for k in g["knobs"] if k["name"] == "set.p_mean")
    sigma = load_dataset(page.store.given.data.path).sigma_data
    assert mean == pytest.approx(-0.8 + np.log(sigma / 0.75), abs=5e-5) and f"P_mean {mean:.4g}" in form["scaled"]
    page.send("set", knob="set.p_mean", value="-0.8")
    assert not page.lab.form.data["scaled"] and page.store.recipe.settings["p_mean"] == -0.8
    page.send("reset", knob="set.p_mean")
    assert page.store.recipe.settings["p_mean"] == mean
    assert "40 pictures of 8 × 8, grey" in " ".join(form["own"]["words"])
    page.send("path", path=str(file), side="16")
    page.until(lambda: not page.lab.form.arrived["doing"])
    assert "16 × 16" in " ".join(page.lab.form.data["own"]["words"]) and page.store.recipe_name == "shapes"


def test_a_student_waits_for_a_teacher_and_takes_the_users_own(page, runs, tmp_path):
    upload(page, "ring.csv", text_of(ring(60)))
    page.send("set", knob="steps", value="3")
    page.send("start")
    process.work(page.hand.started[0])
    page.until(lambda: page.store.card("edm-toy-ring") is not None and page.store.card("edm-toy-ring").state == "done")
    page.send("paper", name="rfpp")
    page.until(lambda: not page.store.given.doing)
    page.send("recipe", name="toy")
    form = page.lab.form.data
    roles = {role["name"]: role for role in form["roles"]}
    assert "has learnt other data" in form["blocked"] and "Choose one above" in form["blocked"]
    mine = str((runs / "edm-toy-ring").resolve())
    assert mine in [option["value"] for option in roles["teacher"]["options"]]
    assert "digits" not in [option["value"] for option in roles["teacher"]["options"]]
    page.send("start")
    assert "has learnt other data" in page.error and len(page.hand.started) == 1
    page.send("give", role="teacher", model=mine)
    assert not page.lab.form.data["blocked"]
    recipe = choices.recipe_of({"paper": "rfpp", "recipe": "toy", **page.store.given.request()})
    assert recipe.needs["pairs"].model.name == mine
    assert f"--with teacher={mine}" in page.lab.top.data["texts"]["cli"]
    page.send("give", role="teacher", model="digits")
    assert "(1, 8, 8)" in page.error and page.store.given.models == {"teacher": mine}


def test_every_bad_file_gets_one_sentence_and_the_page_lives(page, runs):
    def said(name, content, **more) -> str:
        upload(page, name, content, **more)
        words = page.lab.form.arrived["refused"]
        assert words.count("\n") == 0 and ".upload-" not in words and page.store.error is None
        return words

    assert "line 2" in said("a.csv", b"1,2\n3,x\n")
    assert "holds no points" in said("a.csv", b"# nothing\n")
    assert "all 30 points are the same" in said("a.csv", b"1,2\n" * 30)
    assert "zip" in said("a.zip", b"no zip at all")
    assert "no pictures" in said("a.zip", b"PK\x05\x06" + bytes(18))
    assert "expected points" in said("run.py", b"print(1)")
    assert "is empty" in said("a.csv", b"")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("../out.png", b"x")
    assert "leads out" in said("a.zip", out.getvalue())
    assert not (runs / "out.png").exists()
    page.send("upload", id="u", name="huge.csv", size=10**12)
    assert "are taken" in page.lab.form.arrived["refused"]
    page.send("path", path=str(runs / "nothing.csv"))
    page.until(lambda: page.lab.form.arrived["refused"])
    assert "nothing.csv" in page.lab.form.arrived["refused"]
    upload(page, "good.csv", text_of(ring(40)))
    assert page.lab.form.data["own"]["name"] == "good" and not page.lab.form.arrived["refused"]
    assert not list((runs / "data").glob(".*"))


def test_a_name_from_the_browser_is_no_path(runs):
    one = Upload(runs, "../../etc/My passwords.csv", 4)
    assert one.name == "My passwords.csv" and one.file.parent == runs / "data"
    one.add(0, base64.b64encode(b"1,").decode())
    for at, part in ((0, b"x"), (2, b"xyz"), (2, b"")):
        with pytest.raises(BadValue, match="out of order"):
            one.add(at, base64.b64encode(part).decode())
    with pytest.raises(BadValue, match="damaged"):
        one.add(2, "%%")
    one.drop()
    assert not one.file.exists()
    np.savetxt(runs / "data" / "x.csv", ring(30), delimiter=",")
    assert own.taken(runs, runs / "data" / "x.csv", "..\\..\\..csv").path == str((runs / "data" / "own").resolve())


def test_points_of_more_coordinates_are_drawn_on_their_first_components(page, runs):
    g = np.random.default_rng(0)
    plane = np.linalg.qr(g.normal(size=(5, 2)))[0]
    x = g.normal(size=(200, 2)) * (3.0, 1.0) @ plane.T
    upload(page, "five.csv", text_of(x))
    assert "200 points of 5 coordinates" in " ".join(page.lab.form.data["own"]["words"])
    data = load_dataset(page.store.given.data.path)
    flat = own.flattened(data)(data.x)
    assert flat.shape == (180, 2)
    total = data.x.double().var(0, correction=0).sum()
    torch.testing.assert_close(
        flat.double().var(0, correction=0).sum(), total, rtol=1e-4, atol=0
    )  # the plane holds all of it
    page.send("set", knob="steps", value="3")
    page.send("start")
    process.work(page.hand.started[0])
    page.until(lambda: page.lab.stage.book_0 is not None)
    block = unpacked(page.lab.stage.book_0)
    assert block["kind"] == "points" and page.hand.started[0].status()["measured"]["estimate"]["name"] == "SW2[r5]"
    assert block["x"].size == 2 * block["n"] * len(block["pictures"])


def test_an_upload_that_is_given_up_leaves_nothing(page, runs):
    page.send("upload", id="a", name="a.csv", size=100)
    page.send("part", id="a", at=0, part=base64.b64encode(b"1,2\n").decode())
    assert len(list((runs / "data").glob(".upload-*"))) == 1 and "4%" in page.lab.form.arrived["doing"]
    page.send("upload", id="b", name="b.csv", size=100)
    page.send("part", id="a", at=4, part=base64.b64encode(b"1,2\n").decode())  # of the one before: ignored
    assert page.lab.form.arrived["at"] == 0 and len(list((runs / "data").glob(".upload-*"))) == 1
    page.store.close()
    assert not list((runs / "data").glob(".*"))


def test_the_command_line_takes_the_same_folder(page, runs, monkeypatch):
    upload(page, "ring.csv", text_of(ring(60)))
    files = RunFiles(runs / "x")
    files.ask(
        {"paper": "edm", "recipe": "toy", "data": page.store.given.data.path, "changes": {"steps": 3, "batch": 8}}
    )
    recipe = choices.recipe_of(files.request)
    from explorer.reproduction.run import publish, train_recipe

    *_, tick = train_recipe(recipe, runs / "y")
    card = json.loads(publish(recipe, tick, runs / "y", draws=2).with_suffix(".json").read_text())
    w2, *_ = card["metrics"]
    assert w2["metric"] == "W2[xy]" and w2["note"] == "to held-out points" and w2["n"] == 6


def test_another_method_chosen_while_a_file_is_read_gets_its_own_recipe(page):
    page.send("upload", id="u", name="ring.csv", size=len(content := text_of(ring(60))))
    page.send("part", id="u", at=0, part=base64.b64encode(content).decode())  # is being read now
    page.send("paper", name="rectified_flow")
    page.until(lambda: page.store.given.data is not None and not page.store.given.doing)
    assert page.store.paper_slug == "rectified_flow" and page.store.recipe_name in page.store.paper.recipes
    assert page.store.plain_recipe.data == page.store.given.data.path and not page.lab.form.data["blocked"]


def test_a_folder_kept_elsewhere_is_taken_as_it_is_and_found_by_its_path(page, tmp_path):
    np.savetxt(tmp_path / "r.csv", ring(60), delimiter=",")
    elsewhere = keep(tmp_path / "r.csv", tmp_path / "elsewhere")
    page.send("path", path=str(elsewhere))
    page.until(lambda: page.store.given.data is not None and not page.store.given.doing)
    link = page.store.link()
    page.send("own", name="")
    page.send("open", link=link)
    assert page.store.given.data.path == str(elsewhere.resolve()) and page.store.error is None


def test_a_run_of_the_command_line_comes_back_into_the_form(page, runs, tmp_path):
    for name, data in (("toy", "moons"), ("lost", str(tmp_path / "points.csv"))):
        files = RunFiles(runs / name)
        files.ask({"paper": "edm", "recipe": "toy", "data": data, "changes": {"steps": 3}})
        files.say(state="done")
    page.until(lambda: page.store.card("toy") is not None)
    page.send("again", name="toy")
    assert page.store.changes == {"steps": 3, "data": "moons"} and page.store.recipe.data == "moons"
    page.send("again", name="lost")
    assert "points.csv" in page.error and page.store.changes["data"] == "moons"
