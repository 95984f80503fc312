"""Samplers that a search has kept, taken up in the two Labs and on the command line."""

from __future__ import annotations

import pytest
from browsing import Visitor, serving
from test_cli import document, refusal, run
from test_dashboard import LabDesk as SamplerDesk
from test_trajectory_lab import LabDesk as TrajectoryDesk

pytest.importorskip("panel")

from explorer.apps import catalogue
from explorer.apps.tuning import kept
from explorer.apps.worker import Worker
from explorer.cli.options import kept_samplers
from explorer.errors import BadValue, UnknownName
from explorer.knobs import SamplerKnobs
from explorer.metrics.base import Estimate
from explorer.sampling import Heun, OdeSampler, TimeGrid
from explorer.sampling.restart import Restart, RestartSampler
from explorer.tuning import Guidance, Setting, Tuned, fingerprint

POINTS, IMAGES = "oracle-8gaussians", "oracle-digits"
GRID = TimeGrid((60.0, 7.0, 0.9, 0.05, 0.0))


def tuned(model: str, sampler, wrappers=(), value=0.5) -> Tuned:
    """An outcome with made-up numbers: what they are does not matter here."""
    setting, best = Setting(sampler, tuple(wrappers)), Estimate(value, 0.02, 1000, "SW2[xy]")
    base, change = Estimate(0.9, 0.02, 1000, "SW2[xy]"), Estimate(value - 0.9, 0.03, 1000, "SW2[xy]")
    numbers = {"score": best, "baseline": base, "difference": change}
    numbers |= {f"search{end}": e for end, e in (("", best), ("_baseline", base), ("_difference", change))}
    asked, built = setting.on(catalogue.model(model))
    return Tuned(
        fingerprint(catalogue.model(model)), setting, Setting(OdeSampler(Heun(), TimeGrid.karras(4, 0.02, 60.0))),
        (built.nfe(asked), 7), **numbers, objective={"seeds": [0, 1000]}, report=(1000, 2000), how={}, n_evals=1, seconds=1.0,
    )  # fmt: skip


@pytest.fixture
def there(monkeypatch, tmp_path):
    """A folder with samplers for points and for digits, one that goes up again, and one file that is none."""
    monkeypatch.setenv("EXPLORER_RUNS", str(tmp_path))
    folder = tmp_path / "tuning"
    folder.mkdir()
    up = RestartSampler(GRID, (Restart(4, 2, 0.05, 1.0),), Heun())
    for name, one in {
        "eight-7": tuned(POINTS, OdeSampler(Heun(), GRID)),
        "up": tuned(POINTS, up, value=0.4),
        "faces": tuned(IMAGES, OdeSampler(Heun(), GRID)),
        "guided": tuned(IMAGES, OdeSampler(Heun(), GRID), [Guidance(2.0)]),
    }.items():
        one.save(folder / f"{name}.tuned.json")
    (folder / "broken.tuned.json").write_text('{"format": "explorer.tuned"}')
    return folder


@pytest.fixture
def worker():
    one = Worker(n_threads=1)
    yield one
    one.close()


def row(rows: list[dict], name: str) -> dict:
    return next(r for r in rows if r["name"] == name)


def test_what_fits_the_model_can_be_chosen_and_the_rest_says_why(there):
    model = catalogue.model(POINTS)
    rows = kept.offered(model, SamplerKnobs.for_model(model))
    assert {r["name"] for r in rows} == {"eight-7", "up", "faces", "guided"}  # a broken file hides nothing
    assert [bool(r["reason"]) for r in rows] == [False, False, True, True]
    assert row(rows, "faces")["reason"] == f"tuned for {IMAGES}" and not row(rows, "eight-7")["chosen"]
    assert row(rows, "eight-7")["title"] == f"eight-7 · NFE 7 · SW2[xy] 0.500 ± 0.020 · {POINTS}"
    falling = kept.offered(model, SamplerKnobs.for_model(model), falling=True)
    assert "goes up again" in row(falling, "up")["reason"] and not row(falling, "eight-7")["reason"]
    with pytest.raises(BadValue, match=f"faces was tuned for {IMAGES}"):
        kept.values("faces", model, SamplerKnobs.for_model(model))
    with pytest.raises(UnknownName, match="eight-7"):
        kept.named("eigth-7")


def test_the_knobs_build_the_sampler_that_was_kept_and_keep_seed_and_class(there):
    model = catalogue.model(IMAGES)
    base = SamplerKnobs.for_model(model, seed=77)
    if model.n_classes:
        base.label = 3
    for name in ("faces", "guided"):
        if name == "guided" and not model.n_classes:
            continue
        knobs = SamplerKnobs.from_dict(kept.values(name, model, base))
        asked, sampler = knobs.build(model)
        assert sampler == kept.named(name).tuned.sampler and knobs.seed == 77 and knobs.label == base.label
        assert sampler.nfe(asked) == kept.named(name).nfe
        assert row(kept.offered(model, knobs), name)["chosen"]


def test_the_sampler_lab_takes_one_up(there, worker):
    desk = SamplerDesk(worker)
    desk.open()
    desk.settle()
    assert row(desk.lab.knobs.data["kept"], "faces")["reason"] and not row(desk.lab.knobs.data["kept"], "up")["reason"]
    desk.send("kept", name="eight-7")
    desk.settle()
    assert desk.session.knobs.build(desk.session.model)[1] == OdeSampler(Heun(), GRID) and desk.session.error is None
    assert row(desk.lab.knobs.data["kept"], "eight-7")["chosen"]
    desk.send("kept", name="faces")
    assert "tuned for" in desk.error and row(desk.lab.knobs.data["kept"], "eight-7")["chosen"]
    desk.send("set", knob="n_steps", value=3)
    desk.send("reset")
    desk.settle()
    assert not any(r["chosen"] for r in desk.lab.knobs.data["kept"])
    (there / "late.tuned.json").write_bytes((there / "eight-7.tuned.json").read_bytes())
    desk.send("set", knob="rho", value=5)
    assert row(desk.lab.knobs.data["kept"], "late")  # kept meanwhile, on the other page


def test_the_trajectory_lab_takes_one_up_for_the_open_sampler(there, worker):
    desk = TrajectoryDesk(worker)
    desk.open({"model": POINTS, "n_steps": 4}, {"model": POINTS, "n_steps": 6})
    desk.send("activate", slot=1)
    assert (
        row(desk.lab.knobs.data["kept"], "up")["reason"] and not row(desk.lab.knobs.data["kept"], "eight-7")["reason"]
    )
    before = desk.store.track(0).setting
    desk.send("kept", name="eight-7")
    desk.settle()
    track = desk.store.track(1)
    assert track.knobs.build(catalogue.model(POINTS))[1] == OdeSampler(Heun(), GRID) and not track.error
    assert desk.store.track(0).setting == before and track.about.nfe == 7
    assert row(desk.lab.knobs.data["kept"], "eight-7")["chosen"]


def test_the_command_line_lists_them_and_takes_one_by_its_name(there):
    rows = {r["name"]: r for r in document("list", "samplers")}
    assert rows["eight-7"]["nfe"] == 7 and rows["eight-7"]["model"] == POINTS and "0.5" in rows["eight-7"]["measured"]
    assert set(rows) == {"eight-7", "up", "faces", "guided"}
    assert kept_samplers("e") == ["eight-7"] and kept_samplers("x") == []
    common = ("eval", POINTS, "--n", 64, "--own")
    by_name = document(*common, "eight-7")
    assert by_name["value"] == document(*common, OdeSampler(Heun(), GRID).to_json())["value"] and by_name["nfe"] == 7
    assert "--tuned" in refusal("eval", IMAGES, "--n", 64, "--own", "guided")
    assert "eight-7" in refusal(*common, "eigth-7")
    assert "explorer list samplers" in run("eval", "--help").stdout


@pytest.fixture
def served(there):
    with serving() as found:
        yield found


@pytest.mark.browser
def test_both_labs_offer_them_beside_the_own_knob(browser, served):
    lab = Visitor(browser, served, f"lab#lab?model={POINTS}&n=256")
    menu = lab.page.locator("[data-part=kept-sampler]")
    lab.poll(lambda: menu.locator("option").count(), lambda n: n == 5)
    assert (
        menu.locator("option[value=faces]").is_disabled()
        and "tuned for" in menu.locator("option[value=faces]").inner_text()
    )
    menu.select_option("eight-7")
    lab.poll(lambda: lab.page.url, lambda url: "nodes=60" in url)
    lab.poll(menu.input_value, lambda name: name == "eight-7")
    assert lab.page.locator("[data-group=Schedule] .gist").text_content() == "own σ, 4 steps"
    lab.close()
    tracks = Visitor(browser, served, f"trajectory#trajectory?n=500&u=1&a.model={POINTS}&a.n_steps=12&active=a")
    menu = tracks.page.locator("[data-part=kept-sampler]")
    if not menu.is_visible():
        tracks.page.locator("[data-act=knobs]").first.click()
    tracks.poll(lambda: menu.locator("option").count(), lambda n: n == 5)
    assert menu.locator("option[value=up]").is_disabled()
    menu.select_option("eight-7")
    tracks.poll(lambda: tracks.page.url, lambda url: "nodes=60" in url)
    tracks.close()
