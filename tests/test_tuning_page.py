"""The Tuning page without a browser: what its searches leave on disk, what its store keeps, and what the browser is sent."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from desks import Desk as Bare

pytest.importorskip("panel")
pytest.importorskip("optuna")

from explorer.apps import catalogue, settings
from explorer.apps.pages.tuning import TuningLab
from explorer.apps.tuning import bridge, measure, records
from explorer.apps.tuning import plan as plan_module
from explorer.apps.tuning.plan import SUITED, Plan, objectives, whats, with_nfe
from explorer.apps.tuning.searches import Searches
from explorer.apps.tuning.state import Tunings
from explorer.apps.worker import Worker
from explorer.errors import BadValue
from explorer.knobs import SamplerKnobs
from explorer.sampling import SOLVERS, ChainSampler, OdeSampler, ScaleTimeSampler, Seeds, TimeGrid
from explorer.sampling.restart import Restart, RestartSampler
from explorer.trajectory import local_error, record
from explorer.tuning import Guidance, Layers, Skips, Trial, TruncationError, Tuned
from explorer.tuning import Setting as Tunable
from explorer.tuning.genome import layers_used

MODEL = "oracle-8gaussians"
SMALL = (
    f"tuning?model={MODEL}&label=-1&solver=euler&n_steps=3&sigma_max=20.0&sigma_min=0.05"
    "&u.what=schedule&u.n=32&u.trials=4&u.method=coordinate"
)

ENDLESS = SMALL.replace("u.trials=4", "u.trials=5000").replace("coordinate", "tpe")


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """A reference of few steps, few samples at the end, and a folder of one's own."""
    monkeypatch.setenv("EXPLORER_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(Plan, "n_reference", 12)
    monkeypatch.setattr(Plan, "report", property(lambda plan: range(48)))
    monkeypatch.setattr(measure, "COUNTS", (4, 8))


class Desk(Bare):
    def __init__(self, worker, searches, link=SMALL):
        super().__init__()
        self.store = Tunings(worker, self.calls.put, searches=searches)
        self.lab = TuningLab(self.store)
        self.send("open", link=link)

    def failures(self):
        return self.store.error

    @property
    def error(self) -> str:
        return self.lab.top.data["error"]["text"]

    @property
    def state(self) -> str:
        return self.lab.top.data["state"]


@pytest.fixture
def desk():
    worker, searches, desks = Worker(n_threads=1), Searches(), []

    def open(link=SMALL, others: Searches | None = None) -> Desk:
        desks.append(Desk(worker, others or searches, link))
        return desks[-1]

    yield open
    for one in desks:
        one.store.searches.close()
        one.store.close()
    worker.close()


# Settings and knobs


@pytest.mark.parametrize(
    "values",
    [
        {"solver": "heun", "n_steps": 4, "rho": 3.0},
        {"solver": "deis", "order": 2, "variant": "rho", "grid": "cosine", "n_steps": 5},
        {"solver": "alpha2", "alpha": 0.6, "guidance": 1.7, "guidance_lo": 0.2, "guidance_hi": 3.0},
        {"solver": "heun", "restarts": 2, "restart_lo": 0.2, "restart_hi": 1.0, "n_steps": 6},
        {"solver": "heun", "guide": "digits-uncond", "guide_weight": 1.4, "guidance_hi": 3.0, "n_steps": 4},
        {"solver": "dpmpp-2m", "skip_bank": [0.9, 1.0, 1.1, 0.8], "nodes": [40.0, 3.0, 0.123456789]},
    ],
)
def test_knobs_and_settings_of_the_engine_mean_the_same_and_come_back(values):
    model = catalogue.model("digits")
    if "skip_bank" in values:
        values = values | {"skip_bank": (values["skip_bank"] * model.n_skips)[: model.n_skips]}
    knobs = SamplerKnobs.for_model(model, **values)
    setting = bridge.tunable(knobs, model)
    wrapped, sampler = setting.on(model)
    own, theirs = knobs.build(model), (wrapped, sampler)
    assert own[1] == sampler and type(own[0]) is type(wrapped) and own[1].nfe(own[0]) == sampler.nfe(wrapped)
    x, t, cond = torch.randn(2, *model.shape, dtype=torch.float64), model.path.time_at(1.0), torch.tensor([1, 2])
    with torch.inference_mode():
        assert torch.equal(*(m.denoise(x, t, cond) for m, _ in (own, theirs)))
    back = bridge.knobs_for(setting, knobs, model)
    assert back.key() == knobs.key()
    other = SamplerKnobs.for_model(model, seed=7, solver="euler", n_steps=2)
    again = bridge.knobs_for(setting, other, model)  # from elsewhere: the same sampler, perhaps by its nodes
    assert bridge.tunable(again, model) == setting and again.seed == 7


def test_a_sampler_without_knobs_of_its_own_comes_to_the_lab_as_it_is():
    model, base = catalogue.model("digits"), SamplerKnobs.for_model(catalogue.model("digits"), n_steps=4)
    grid, heun = TimeGrid.karras(4, 0.002, 80.0), SOLVERS["heun"]()
    plain = OdeSampler(heun, grid)
    left_out = Layers(((80.0, ()), (1.0, (2, 5))))
    cases = (
        (Tunable(ScaleTimeSampler.plain([0.98, 0.4, 0.0])), "scale-time rk2"),
        (Tunable(ChainSampler((900, 500, 100))), "chain ddim"),
        (Tunable(RestartSampler(grid, (Restart(2, 1, 0.1, 1.0), Restart(2, 1, 2.0, 9.0)), heun)), "restart heun"),
        (Tunable(RestartSampler(grid, (Restart(2, 1, 0.1, 1.0, rho=3.0),), heun)), "restart heun"),
        (Tunable(OdeSampler(heun, TimeGrid((3.0, 1.0)))), "heun"),
        (Tunable(plain, (left_out,)), "layers left out"),
        (Tunable(plain, (Skips((0.9,) * model.n_skips), left_out, Guidance(1.5))), "layers left out"),
    )
    for setting, words in cases:
        knobs = bridge.knobs_for(setting, base, model)
        assert words in knobs.describe(model) and bridge.tunable(knobs, model) == setting
        spelled = settings.spell(settings.Setting.of("digits", knobs))
        again = settings.read(settings.split(settings.join("lab", spelled)))
        assert again.knobs.key() == knobs.key(), "an address holds it"
        built, sampler = again.knobs.build(model)
        wrapped, same = setting.on(model)
        assert sampler == same and sampler.nfe(built) == same.nfe(wrapped)
    with pytest.raises(BadValue, match="interval"):
        bridge.knobs_for(Tunable(plain, (Skips((0.9,) * model.n_skips, (0.1, 2.0)),)), base, model)


def test_a_watched_model_answers_the_same_counts_for_itself_and_is_interrupted():
    model, seen = catalogue.model(MODEL), []
    twin = bridge.watched(model, lambda: seen.append(1))
    x, t, calls = torch.randn(3, 2, dtype=torch.float64), model.path.time_at(0.7), model.n_calls
    assert torch.equal(twin.denoise(x, t), model.denoise(x, t)) and seen
    assert (twin.n_calls, model.n_calls) == (1, calls + 1)

    def no():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        bridge.watched(model, no).denoise(x, t)


def test_nfe_sets_the_number_of_steps():
    model = catalogue.model(MODEL)
    for solver, nfe, steps in (("heun", 5, 3), ("heun", 6, 3), ("dpmpp-2m", 6, 6)):
        knobs = with_nfe(SamplerKnobs.for_model(model, solver=solver), model, nfe)
        assert knobs.n_steps == steps and bridge.tunable(knobs, model).nfe(model) <= nfe
    with pytest.raises(BadValue, match="more than 1"):
        with_nfe(SamplerKnobs.for_model(model, solver="rk4"), model, 1)


# A search, from start to keep


def test_a_search_fills_in_ends_on_noise_it_never_saw_and_is_kept(desk, tmp_path):
    page = desk()
    assert page.lab.form.data["nfe"] == 3 and not page.lab.form.data["blocked"]
    assert "Choose what to tune" in page.lab.outcome.data["empty"]
    page.send("start")
    name = page.store.shown
    assert name == "oracle-8gaussians-schedule-3nfe" and f"u.search={name}" in page.lab.shell.link
    page.until(lambda: page.state == "done")
    rows = [json.loads(line) for line in (tmp_path / "runs" / "tuning" / f"{name}.jsonl").read_text().splitlines()]
    trials = [Trial.from_dict(row) for row in rows[1:]]
    assert len(trials) == 5 and [d["number"] for d in page.lab.course.data["dots"]] == list(range(5))
    np.testing.assert_allclose([d["value"] for d in page.lab.course.data["dots"]], [t.value for t in trials], rtol=1e-5)
    best = min(trials, key=lambda t: t.value)
    table = page.lab.trials.data["rows"]
    assert table[0]["number"] == best.number and page.lab.trials.data["count"] == 4
    assert page.lab.course.data["best"] == best.number
    # The numbers at the end are what the engine gives on the report's seeds, which are not the search's.
    tuned = Tuned.load(tmp_path / "runs" / "tuning" / f"{name}.found.json")
    model = catalogue.model(MODEL)
    reference = OdeSampler(
        SOLVERS["heun"](), TimeGrid.karras(12, *(catalogue.defaults(MODEL)[k] for k in ("sigma_min", "sigma_max")))
    )
    held = TruncationError(model, range(48), None, reference)
    assert tuned.score.value == pytest.approx(held(*best.setting.on(model)).value, rel=1e-9)
    assert tuned.report == (0, 48) and tuned.seeds[0] >= 10**9
    outcome = page.lab.outcome.data
    assert [row["who"] for row in outcome["rows"]] == ["tuned", "baseline"] and all(
        row["held"] for row in outcome["rows"]
    )
    believed = tuned.search_difference.value, tuned.difference.value
    assert ("No winner's curse" in outcome["note"]) == (believed[0] >= believed[1])
    kind = "same" if not tuned.difference.differs_from(0.0) else "better" if believed[1] < 0 else "worse"
    assert outcome["verdict"]["kind"] == kind
    # Kept, opened elsewhere, exported.
    assert page.lab.top.data["acts"] == ["more", "keep"]
    page.send("keep")
    assert Tuned.load(tmp_path / "runs" / "tuning" / f"{name}.tuned.json") == tuned
    assert page.lab.searches.data["rows"][0]["kept"] and "keep" not in page.lab.top.data["acts"]
    link = page.lab.top.data["link"]
    fields = settings.split(link)
    setting, pinned = settings.read(fields), settings.read(fields, "a.", seed=0)
    assert link.startswith("./lab#lab?") and pinned == page.store.plan.start
    assert setting.knobs.build(model)[1].grid.times == pytest.approx(best.setting.sampler.grid.times, rel=1e-11)
    forms = (("json", '"explorer.tuned"'), ("python", "ex.sampler_from_json"), ("k-diffusion", "sample_euler"))
    for count, (form, words) in enumerate(forms, 1):
        page.send("export", form=form)
        page.until(lambda count=count: page.lab.top.file.get("serial") == count)
        assert words in page.lab.top.file["text"] and page.lab.top.file["name"].startswith(name)
    assert page.store.error is None


def test_a_search_by_gradient_goes_through_the_watched_model(desk, monkeypatch):
    monkeypatch.setattr(plan_module, "GRADIENTS", 8)
    page = desk()
    page.send("choose", name="method", value="gradient")
    page.send("start")
    page.until(lambda: page.state == "done")
    assert len(page.store.trials) > 2 and page.store.error is None
    grids = {t.setting.sampler.grid.times for t in page.store.trials}
    assert len(grids) == len(page.store.trials), "every proposal is another grid"
    page.send("set", knob="solver", value="unipc")
    (offer,) = [m for m in page.lab.form.data["methods"] if m["name"] == "gradient"]
    assert "not written out" in offer["reason"]


def test_a_bespoke_solver_is_learnt_shown_without_ticks_and_taken_to_the_lab(desk, monkeypatch):
    monkeypatch.setattr(plan_module, "BESPOKE", 20)
    page = desk(SMALL.replace("n_steps=3", "n_steps=4"))
    page.send("choose", name="what", value="solver")
    page.send("choose", name="method", value="bespoke")
    page.send("start")
    page.until(lambda: page.state == "done")
    assert page.store.error is None and len(page.store.trials) == 4
    page.send("pick", number=3)
    found = page.store.trials[3].setting
    assert isinstance(found.sampler, ScaleTimeSampler) and page.store.trials[3].nfe == 4
    page.until(lambda: page.lab.steps.data["other"] and page.lab.steps.data["other"]["errors"])
    other = page.lab.steps.data["other"]
    assert len(other["nodes"]) == 2 == len(other["errors"]["mean"]) and "scale of its own" in other["fixed"]
    assert not page.lab.steps.data["fixed"], "the baseline's ticks can still be dragged"
    lab = settings.read(settings.split(page.lab.top.data["link"]))
    assert lab.knobs.own_sampler() == found.sampler
    for count, (form, words) in enumerate((("python", "scale-time"), ("json", "scale-time")), 1):
        page.send("export", form=form)
        page.until(lambda count=count: page.lab.top.file.get("serial") == count)
        assert words in page.lab.top.file["text"]
    page.send("export", form="diffusers")
    page.until(lambda: page.store.error is not None)
    assert "no rule that is ScaleTime" in page.error
    page.send("take")  # the next search starts from it, and its ticks are fixed
    assert page.store.start_setting == found and "scale of its own" in page.lab.steps.data["fixed"]
    reasons = {o["name"]: o["reason"] for o in page.lab.form.data["whats"]}
    assert "no grid" in reasons["schedule"] and not reasons["solver"]
    before = page.lab.steps.data["nodes"]
    page.send("preview", knob="nodes", value=[20.0, 1.0])
    assert page.lab.steps.data["nodes"] == before and not page.lab.steps.data["dragged"]
    page.send("nfe", value=4)
    assert page.store.knobs.own == "" and page.store.knobs.n_steps == 4


def test_layers_are_left_out_by_a_search_and_their_map_is_shown(desk, monkeypatch):
    monkeypatch.setattr(plan_module, "LEFT_OUT", (0.0, 0.9))
    ask = "tuning?model=digits&solver=euler&n_steps=2&u.what=layers&u.n=32&u.trials=44&u.objective=truncation&label=1"
    page = desk(ask.replace("44", "9"))
    assert "allow at least 44" in page.lab.form.data["blocked"]
    page.send("start")
    assert "at least 44" in page.error and not page.store.searches.busy
    page.send("choose", name="trials", value=44)
    assert not page.lab.form.data["blocked"] and page.store.plan.method == "autodiffusion"
    page.send("start")
    page.until(lambda: page.state == "done")
    layered = [t for t in page.store.trials if t.setting.wrapper(Layers) is not None]
    assert layered and not any(t.failed for t in page.store.trials)
    page.send("pick", number=0)
    assert page.lab.layers.data == {}
    page.send("pick", number=layered[-1].number)
    shown, model = page.lab.layers.data, catalogue.model("digits")
    levels = layered[-1].setting.wrapper(Layers).levels
    assert shown["blocks"] == list(model.net.layer_names)
    assert [(c["sigma"], tuple(c["out"])) for c in shown["levels"]] == [(s, out) for s, out in levels]
    assert shown["acting"] == layers_used(layered[-1].setting, model.n_layers) <= shown["full"]
    lab = settings.read(settings.split(page.lab.top.data["link"]))
    taken = bridge.tunable(lab.knobs, model)
    assert taken.wrappers == layered[-1].setting.wrappers
    # an address holds twelve digits of a level
    assert taken.sampler.grid.times == pytest.approx(layered[-1].setting.sampler.grid.times, rel=1e-11)


def test_a_search_of_guidance_moves_away_from_the_baselines_guide(desk):
    page = desk(SMALL.replace(MODEL, "toy-8gaussians") + "&u.objective=metric&u.n=128")
    (offer,) = [o for o in page.lab.form.data["whats"] if o["name"] == "guidance"]
    assert "name a guide" in offer["reason"]
    page.send("set", knob="guide", value="toy-8gaussians-1rf")
    page.send("choose", name="what", value="guidance")
    page.send("start")
    page.until(lambda: page.state == "done")
    tried = [t.setting.wrapper(Guidance) for t in page.store.trials[1:]]
    assert {w.guide for w in tried if w is not None} == {"toy-8gaussians-1rf"}


def test_a_stopped_search_reports_what_it_has_and_goes_on_after_a_restart(desk):
    page = desk(ENDLESS + "&u.seed=3")
    page.send("start")
    page.until(lambda: len(page.store.trials) > 3)
    page.send("stop")
    page.until(lambda: page.state == "done")
    name, done = page.store.shown, len(page.store.trials)
    assert 3 < done < 400 and page.lab.outcome.data["rows"][0]["held"]
    assert page.lab.top.data["acts"] == ["more", "keep"]
    before = [t.to_dict() for t in page.store.trials]
    # Another process finds it in the folder, and goes on where it was.
    again = desk(f"tuning?u.search={name}", Searches())
    assert again.state == "done" and [r["name"] for r in again.lab.searches.data["rows"]] == [name]
    again.send("again")
    assert again.store.plan == page.store.plan
    again.send("choose", name="trials", value=2)
    record = again.store.record
    assert record.plan.trials == 5000
    again.send("resume")
    again.until(lambda: len(again.store.trials) > done + 1)
    again.send("stop")
    again.until(lambda: again.state == "done")
    after = [t.to_dict() for t in again.store.trials]
    assert after[:done] == before and len(after) > done
    assert len(again.store.tuned().history) == len(after)


def test_a_search_that_is_given_more_trials_goes_on_as_it_began(desk):
    """Also where the tuner was made for a number of trials: its journal would refuse another one."""
    page = desk(
        SMALL.replace("what=schedule", "what=joint").replace("coordinate", "halving").replace("trials=4", "trials=6")
    )
    page.send("start")
    page.until(lambda: page.state == "done")
    before = [t.to_dict() for t in page.store.trials]
    page.send("more", trials=5)
    page.until(lambda: page.state == "done" and len(page.store.trials) >= len(before))
    assert page.store.error is None and [t.to_dict() for t in page.store.trials][: len(before)] == before
    assert (page.store.record.plan.trials, page.store.record.plan.size) == (11, 6)
    page.send("again")
    assert page.store.plan.size == 11


def test_a_search_belongs_to_the_process_and_every_page_sees_it(desk):
    page = desk(ENDLESS)
    page.send("start")
    page.until(lambda: page.state == "running")
    page.store.close()  # the tab is gone
    other = desk("")
    other.until(lambda: other.lab.searches.data["rows"] and other.lab.searches.data["rows"][0]["state"] == "running")
    assert other.store.shown == page.store.shown
    other.until(lambda: len(other.store.trials) > 2)
    count = len(other.store.trials)
    other.until(lambda: len(other.store.trials) > count)
    other.send("remove", name=other.store.shown)
    assert "stop it first" in other.error
    other.send("stop")
    other.until(lambda: other.state == "done")


def test_a_journal_of_another_search_and_a_damaged_one_are_said_in_words(desk, tmp_path):
    folder = tmp_path / "runs" / "tuning"
    folder.mkdir(parents=True)
    (folder / "bad.jsonl").write_text('{"format": "something"}\n{"x": 1}\n')
    (folder / "torn.jsonl").write_text(
        '{"format": "explorer.tuning", "version": 1, "model": {"name": "nobody"}}\n{"trial": 0, "sett'
    )
    page = desk("tuning?u.search=bad")
    assert page.state == "broken" and "no journal" in page.lab.top.data["words"]
    page.send("resume")
    assert "explorer tune" in page.error
    page.send("show", name="torn")
    assert page.state == "stopped" and page.store.trials == [] and page.lab.top.data["acts"] == []
    page.send("show", name="../bad")
    assert "no search" in page.error
    page.send("remove", name="bad")
    assert (folder / "removed" / "bad.jsonl").is_file() and "bad" not in [
        r["name"] for r in page.lab.searches.data["rows"]
    ]


def test_a_trial_is_picked_and_becomes_the_next_baseline(desk):
    page = desk()
    page.send("start")
    page.until(lambda: page.state == "done")
    page.send("pick", number=2)
    picked = page.store.trials[2]
    assert page.lab.top.data["picked"] == 2 and [r["number"] for r in page.lab.trials.data["rows"] if r["shown"]] == [2]
    page.until(lambda: page.lab.steps.data["other"] and page.lab.steps.data["other"]["errors"])
    assert page.lab.steps.data["other"]["nodes"] == list(picked.setting.sampler.grid.times[:-1])
    page.send("take")
    assert page.store.start_setting == picked.setting and page.lab.steps.data["other"] is None
    page.send("pick", number=None)
    assert page.lab.top.data["picked"] is None


# What can be asked


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"type": "model", "name": "nope"}, "unknown model"),
        ({"type": "choose", "name": "what", "value": "nope"}, "unknown thing to tune"),
        ({"type": "choose", "name": "colour", "value": 1}, "unknown field"),
        ({"type": "choose", "name": "n", "value": 33}, "choose one of"),
        ({"type": "choose", "name": "trials", "value": 0}, "too small"),
        ({"type": "choose", "name": "minutes", "value": -1}, "too small"),
        ({"type": "choose", "name": "seed", "value": -1}, "expected a whole number"),
        ({"type": "set", "knob": "rho", "value": 1e9}, "rho"),
        ({"type": "set", "knob": "nodes", "value": [1.0, 2.0]}, "must fall"),
        ({"type": "nfe", "value": 0}, "more than 0"),
        ({"type": "axis", "which": "x", "knob": "nope"}, "unknown knob of a map"),
        ({"type": "axis", "which": "x", "knob": "rho", "low": 5.0, "high": 2.0}, "first smaller"),
        ({"type": "show", "name": "nope"}, "no search"),
        ({"type": "export", "form": "python"}, "no trial"),
        ({"type": "keep"}, "no search"),
    ],
)
def test_refusals_are_one_sentence_and_change_nothing(desk, message, words):
    page = desk()
    before = page.lab.shell.link
    page.lab.receive(message)
    assert words in page.error and "\n" not in page.error and page.lab.shell.link == before


def test_choices_that_have_no_meaning_say_why(desk):
    page = desk()
    reasons = {o["name"]: o["reason"] for o in page.lab.form.data["whats"]}
    assert "no skip" in reasons["skip"] and "class" in reasons["guidance"] and not reasons["schedule"]
    page.send("set", knob="n_steps", value=1)
    assert page.store.plan.what != "schedule"
    page.send("model", name="toy-8gaussians-cd")
    page.send("set", knob="n_steps", value=1)
    form = page.lab.form.data
    assert form["blocked"] and {o["name"] for o in form["objectives"] if not o["reason"]} == {"metric"}
    page.send("start")
    assert page.error and not page.store.searches.busy
    page.until(lambda: page.lab.steps.data["errors"] and "jumps" in page.lab.steps.data["errors"]["reason"])
    page.send("model", name="digits")
    assert {c["group"] for c in page.lab.knobs.data["controls"]} >= {"Skip-tuning"}
    bank = next(c for c in page.lab.knobs.data["controls"] if c["name"] == "skip_bank")
    assert len(bank["names"]) == catalogue.model("digits").n_skips
    page.send("set", knob="skip_bank", value=[0.9] * len(bank["names"]))
    assert page.store.plan.knobs.skip_bank == [0.9] * len(bank["names"])


@pytest.mark.parametrize("name", ["digits", "toy-8gaussians", "digits-cd", MODEL])
def test_whatever_is_offered_can_be_searched(name):
    model, plan = catalogue.model(name), Plan.of(name)
    knobs = SamplerKnobs.from_dict({**plan.knobs.to_dict(), "n_steps": 4})
    plan = replace(plan, start=settings.Setting.of(name, knobs))
    tried = 0
    for what in (o.name for o in whats(plan) if not o.reason):
        for method in SUITED[what]:
            asked = replace(plan, what=what, method=method).fitted()
            for goal in (o.name for o in objectives(asked) if not o.reason):
                asked = replace(asked, objective=goal, n=1000)
                study, tried = asked.study(model, None), tried + 1
                assert study.start.nfe(model) and study.objective.least <= asked.n and asked.cost() > 0
                assert not set(asked.report) & set(study.objective.seeds)
    assert tried > 2


def test_the_address_reopens_the_same_view(desk):
    link = SMALL + "&u.x=rho,2.0,9.0&u.y=n_steps&u.minutes=3.5&u.seed=4&nodes=20,1.5,0.123456789"
    page = desk(link)
    plan = page.store.plan
    assert plan.knobs.nodes == [20.0, 1.5, 0.123456789] and (plan.minutes, plan.seed, plan.trials) == (3.5, 4, 4)
    again = desk(page.lab.shell.link)
    axes = {"x": {"knob": "rho", "low": 2.0, "high": 9.0}, "y": {"knob": "n_steps"}}
    assert again.store.plan == plan and again.store.axes == page.store.axes == axes
    for bad in (
        "tuning?u.what=nope",
        "tuning?u.n=x",
        "tuning?u.x=rho,a,b",
        "tuning?model=nope",
        "tuning?u.search=gone",
    ):
        page.send("open", link=bad)
        assert "could not be opened" in page.error
        page.send("dismiss")
    lab = desk(f"lab?model={MODEL}&label=-1&solver=heun&n_steps=4&n=5000&a.model=digits")  # from another page's rail
    assert lab.store.plan.knobs.solver == "heun" and lab.store.plan.n != 5000 and lab.store.error is None


# The grid


def test_step_errors_of_the_grid_are_the_engines_and_follow_a_drag(desk):
    page = desk()
    page.until(lambda: page.lab.steps.data["errors"] and page.lab.steps.data["errors"]["n"] == 8)
    d = page.lab.steps.data
    knobs, model = page.store.knobs, catalogue.model(MODEL)
    missed = local_error(
        record(*knobs.build(model), Seeds(range(8)), None, keep=("x",)), model, substeps=measure.SUBSTEPS
    ).values
    np.testing.assert_allclose(d["errors"]["mean"], missed.mean(0), rtol=1e-5)
    np.testing.assert_allclose(d["errors"]["se"], missed.std(0, ddof=1) / math.sqrt(8), rtol=1e-5)
    before, link = d["nodes"], page.lab.shell.link
    moved = [before[0], 3.0, before[2]]
    page.send("preview", knob="nodes", value=moved)
    assert page.lab.steps.data["dragged"] and page.lab.steps.data["nodes"] == moved
    page.until(lambda: page.lab.steps.data["errors"] and page.lab.steps.data["errors"]["n"] == 4)
    assert page.store.knobs.nodes is None and page.lab.shell.link == link, "a drag is not yet a change"
    page.send("preview", knob="nodes", value=[1.0, 5.0])  # cannot be: as if it had not been sent
    assert page.lab.steps.data["nodes"] == moved and page.store.error is None
    page.send("set", knob="nodes", value=moved)
    page.until(lambda: page.lab.steps.data["errors"] and page.lab.steps.data["errors"]["n"] == 8)
    assert page.store.knobs.nodes == moved and page.lab.steps.data["own"] and "nodes=20,3," in page.lab.shell.link
    assert "nodes=" in page.lab.steps.data["link"]
    page.send("reset", knob="nodes")
    assert page.store.knobs.nodes is None and page.lab.steps.data["nodes"] == before
    page.send("set", knob="solver", value="ddpm-ancestral" if "ddpm-ancestral" in SOLVERS else "edm-stochastic")
    page.until(lambda: page.lab.steps.data["errors"] and page.lab.steps.data["errors"]["reason"])
    assert "noise" in page.lab.steps.data["errors"]["reason"]


# The map


def test_coarse_cells_come_first_and_each_once():
    for width, height in ((9, 9), (9, 4), (2, 9), (1, 1)):
        rounds = measure.coarse_first(width, height)
        every = [place for places in rounds for place in places]
        assert sorted(every) == sorted((i, j) for i in range(width) for j in range(height))
    assert len(measure.coarse_first(9, 9)[0]) == 9 and (8, 8) in measure.coarse_first(9, 9)[0]


def test_a_map_measures_each_cell_as_the_engine_does_and_links_to_its_state(desk):
    page = desk(SMALL + "&u.x=rho,2.0,9.0&u.y=n_steps,2,4")
    page.send("map")
    page.until(lambda: not page.store.running and page.store.map.best is not None and len(page.store.map.cells) == 27)
    m = page.lab.map.data["map"]
    assert (m["x"]["knob"], m["y"]["values"], m["done"], m["count"]) == ("rho", [2, 3, 4], 27, 27)
    cells = {(c["i"], c["j"]): c for c in m["cells"]}
    model = catalogue.model(MODEL)
    goal = page.store.plan.goal(model)
    for place in ((0, 0), (8, 2), (3, 1)):
        setting = settings.read(settings.split(cells[place]["link"]))
        assert (setting.knobs.rho, setting.knobs.n_steps) == (m["x"]["values"][place[0]], m["y"]["values"][place[1]])
        assert cells[place]["value"] == pytest.approx(goal(*setting.knobs.build(model)).value, rel=1e-5)
    best = min(cells.values(), key=lambda c: c["value"])
    assert m["best"] == [best["i"], best["j"]] and best["tie"]
    first = page.store.map.cells[tuple(m["best"])].found
    for place, cell in page.store.map.cells.items():
        gap = cell.found.minus(first)
        assert cells[place]["tie"] == (place == tuple(m["best"]) or not gap.value > 2 * gap.std_error)
    assert not m["stale"]
    page.send("set", knob="solver", value="heun")
    assert page.lab.map.data["map"]["stale"]
    page.send("axis", which="y", knob="rho")
    page.send("map")
    assert "both axes" in page.error


def test_a_map_is_cancelled_and_keeps_what_it_has(desk):
    page = desk(SMALL)
    page.send("map")
    page.until(lambda: len(page.store.map.cells) > 2)
    page.send("cancel")
    count = len(page.store.map.cells)
    assert not page.lab.map.job["running"] and 2 < count < 81 and page.lab.map.data["map"]["done"] == count


def test_cells_that_cannot_be_say_why(desk):
    page = desk(SMALL + "&u.x=sigma_max,0.5,2.0&u.y=sigma_min,0.1,1.5")
    page.send("map")
    page.until(lambda: len(page.store.map.cells) == 81)
    failed = [c for c in page.lab.map.data["map"]["cells"] if c["failed"]]
    assert failed and all("below sigma_max" in c["failed"] for c in failed) and len(failed) < 81


def test_records_are_read_once_until_they_change(tmp_path, desk):
    page = desk()
    page.send("start")
    page.until(lambda: page.state == "done")
    reader, folder = records.Reader(), tmp_path / "runs" / "tuning"
    (first,) = reader.all(folder)
    assert reader.all(folder)[0] is first and first.fraction == 1.0
    (folder / f"{first.name}.plan.json").write_text("{}")
    assert "cannot be read" in reader.all(folder)[0].broken and len(reader.all(folder)[0].trials) == 5
