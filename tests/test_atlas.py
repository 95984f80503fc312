"""The Atlas: nothing is shown as done that is not, every number keeps its protocol, and the page's store knows its address."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_cli import document
from typer.testing import CliRunner

from explorer import cli, papers
from explorer.apps import catalogue, settings
from explorer.apps.pages import PAGES
from explorer.apps.tuning import address as tuning_address
from explorer.apps.tuning.plan import objectives, whats
from explorer.errors import UnknownName
from explorer.knobs import names as knob_names
from explorer.metrics.base import Estimate
from explorer.reproduction import Claim, Evidence, Outcome, Paper, Record, Verdict
from explorer.reproduction.catalogue import (
    STATUS,
    Row,
    entries,
    find,
    quality_against_cost,
    rows_of,
    status_of,
)
from explorer.reproduction.evidence import write
from explorer.reproduction.source import source_of

ROOT = Path(__file__).resolve().parent.parent
WRITTEN = json.loads((ROOT / "explorer" / "reproduction" / "atlas.json").read_text(encoding="utf-8"))["papers"]


def small(bench):
    return Verdict(True, Estimate(0.0, 0.0, 1, "nothing"), 1.0, "")


def other(bench):
    return Verdict(True, Estimate(1.0, 0.0, 1, "nothing"), 1.0, "")


FAKE = Paper(
    slug="edm",
    title="A fake",
    arxiv="",
    family="diffusion",
    recipe=lambda name: None,
    recipes=("toy",),
    claims=(Claim("one", "Eq. 1", small, 1.0), Claim("two", "Eq. 2", other, 1.0)),
)


def measured(claim: Claim, *holds: bool, source: str | None = None) -> Evidence:
    outcomes = tuple(Outcome(seed, ok, 0.5, 0.1, 10, 1.0) for seed, ok in enumerate(holds))
    return Evidence(claim.text, claim.where, claim.scale, "q", outcomes, source or source_of(claim.check))


def one_paper(paper=FAKE):
    return entries(lambda: ("edm",), lambda slug: paper)


@pytest.fixture
def evidence(tmp_path, monkeypatch):
    """Puts evidence where the package looks for it."""
    monkeypatch.setenv("EXPLORER_ASSETS", str(tmp_path))
    (tmp_path / "claims").mkdir()
    return lambda *rows: write(Record("edm", rows), tmp_path / "claims" / "edm.json")


@pytest.mark.parametrize(
    "second, status",
    [
        ((True, True, True), "here"),
        ((True, False, True), "claims failing"),
        (None, "unmeasured"),
        ((), "unmeasured"),
        ("stale", "unmeasured"),
    ],
)
def test_status_follows_from_code_and_evidence_alone(evidence, second, status):
    one, two = FAKE.claims
    rows = [measured(one, True, True, True)]
    if second == "stale":
        rows.append(measured(two, True, True, True, source="of an older version"))
    elif second is not None:
        rows.append(measured(two, *second))
    evidence(*rows)
    found = find("edm", one_paper())
    assert found.status == status and found.claims[0].verdict == "holds"
    assert found.to_dict()["status"] == status


def test_a_method_without_claims_or_without_evidence_is_not_shown_as_done(evidence):
    assert find("edm", one_paper(replace(FAKE, claims=(), arxiv="2206.00364"))).status == "unmeasured"
    assert find("edm", one_paper(replace(FAKE, claims=()))).status == "no claims"
    assert find("edm", one_paper()).status == "unmeasured"  # claims, but no file
    assert status_of("method", None, ()) == "planned"
    assert status_of("nothing to reproduce", None, ()) == "not for this toolkit"


def test_evidence_of_another_claim_does_not_count():
    stranger = Evidence("three", "", "toy", "q", (Outcome(0, True, 1.0, 0.0, 1, 1.0),))
    rows = rows_of(FAKE, Record("edm", (stranger,)))
    assert [row.verdict for row in rows] == ["not measured"] * 2
    assert Row(1, "", "", "toy", None).verdict == "not measured"


def test_without_any_module_everything_is_planned():
    for entry in entries(lambda: (), papers.paper):
        assert entry.status in ("planned", "not for this toolkit") and entry.claims == () and entry.module is None


@pytest.fixture(scope="module")
def atlas():
    return entries(papers.names, papers.paper)


def test_the_catalogue_is_whole(atlas):
    slugs = [e.slug for e in atlas]
    assert len(set(slugs)) == len(slugs) and sum(e.role != "method" or not e.arxiv for e in atlas) >= 68
    assert {e.module for e in atlas if e.module} == set(papers.names())
    for entry in atlas:
        assert entry.title and entry.family and entry.status in STATUS
        assert entry.idea.count(". ") <= 3 and len(entry.idea) < 520, entry.slug
        assert entry.idea or entry.slug in ("digits-cnn", "shapes-cnn"), entry.slug
        for p in entry.published:
            assert p.value > 0 and p.where and "memory" not in p.where and (p.nfe is None or p.nfe >= 1)
    seed_papers = [e for e in atlas if e.arxiv and e.slug != "digits-cnn"]
    assert len(seed_papers) >= 51 and all(e.year is None or 2015 < e.year < 2027 for e in seed_papers)


def test_what_has_a_module_points_to_recipes_that_exist(atlas):
    for entry in atlas:
        for name in entry.recipes:
            assert papers.paper(entry.module).recipe(name).plan.n_steps >= 1
    edm = find("edm", atlas)
    assert edm.nfe == 35 and edm.published == papers.paper("edm").published and "cifar10" in edm.recipes
    with pytest.raises(UnknownName, match="edm"):
        find("emdd", atlas)


def test_ex_atlas_is_a_plain_table():
    import explorer as ex

    rows = ex.atlas()
    assert json.loads(json.dumps(rows)) == rows or all(isinstance(r, dict) for r in rows)
    edm = next(r for r in rows if r["slug"] == "edm")
    assert {"title", "year", "family", "status", "nfe", "idea", "published", "claims", "recipes"} <= set(edm)
    assert {"claim", "where", "scale", "verdict"} <= set(edm["claims"][0])
    json.dumps(rows, allow_nan=True)


def test_list_papers_says_what_state_each_is_in():
    rows = {row["name"]: row for row in document("list", "papers")}
    assert set(rows) == set(papers.names())
    assert all(row["status"].split(",")[0] in STATUS for row in rows.values())


def test_points_of_the_picture_are_comparable_and_from_the_cards():
    from explorer.models import bundled

    points = quality_against_cost("digits")
    assert {"digits", "digits-uncond"} <= {p.model for p in points}
    assert len({(p.metric, p.reference) for p in points}) == 1
    for p in points:
        assert p.std_error > 0 and p.nfe >= 1
        assert any(row["metric"] == p.metric and row["value"] == p.value for row in bundled.card(p.model)["metrics"])
    assert quality_against_cost("nothing") == ()


# The page's store


@pytest.fixture
def store():
    pytest.importorskip("panel")
    from explorer.apps.atlas.state import Atlas

    return Atlas(worker=None)


def test_addresses_name_views_and_survive_a_round_trip(store):
    from explorer.apps.atlas.state import View

    view = View(q="flow & data", family="flow", status="planned", sort="year", down=True, open="edm")
    store.reload = lambda: None
    store.open(view.link())
    assert store.view == view and View().link() == "atlas"
    store.open("atlas?sort=colour&status=finished&down=maybe&x=1")
    assert store.view == View()
    store.look({"q": "reflow"})
    assert store.view == View(q="reflow") and store.view.link() == "atlas?q=reflow"


def test_the_panes_get_plain_json_with_errors_beside_numbers(store, atlas):
    from explorer.apps.atlas import views

    assert views.table_data(store)["loading"] and views.picture_data(store)["series"] == []
    store.entries, store.points = atlas, quality_against_cost("digits")
    table, picture = views.table_data(store), views.picture_data(store)
    json.dumps([table, picture, views.top_data(store)])
    assert len(table["rows"]) == len(atlas) and sum(f["n"] for f in table["families"]) == len(atlas)
    edm = next(r for r in table["rows"] if r["slug"] == "edm")
    assert {m["name"] for m in edm["models"]} >= {"digits", "toy-8gaussians"}
    assert edm["models"][0]["lab"].startswith("./lab#lab?model=")
    assert any(c["text"] == "explorer train edm --data digits" for c in edm["commands"])
    assert all("±" in c["measured"] for c in edm["claims"] if "measured" in c)
    assert all("±" in p["text"] for one in picture["series"] for p in one["points"])
    planned = next(r for r in table["rows"] if r["status"] == "planned")
    assert planned["claims"] == [] and planned["models"] == [] and planned["commands"] == []


PRESETS = [(about["slug"], *preset) for about in WRITTEN for preset in about.get("presets", ())]


@pytest.mark.parametrize(
    ("slug", "words", "address"), PRESETS, ids=[f"{slug}-{i}" for i, (slug, *_) in enumerate(PRESETS)]
)
def test_a_preset_opens_what_it_says(slug, words, address):
    """Every field of its address is understood, and the sampler it asks for can be built for its model."""
    page, link = address.split("#")
    fields = settings.split(link)
    assert page in [p.slug for p in PAGES] and link.startswith(f"{page}?")
    setting = settings.read(fields)
    own = {k for k in fields if not k.startswith("u.")}
    assert own <= {"model", *knob_names()}
    setting.knobs.build(catalogue.model(setting.model))
    if page == "tuning":
        plan, notes = tuning_address.read(fields)
        assert not notes and not any(
            o.reason for o in (*whats(plan), *objectives(plan)) if o.name in (plan.what, plan.objective)
        )


def test_commands_and_notebooks_of_the_atlas_are_there():
    for about in WRITTEN:
        for _, text in about.get("commands", ()):
            program, *words = text.split()
            assert program == "explorer" and CliRunner().invoke(cli.app, [*words, "--help"]).exit_code == 0, text
        if about.get("notebook"):
            assert (ROOT / "notebooks" / f"{about['notebook']}.ipynb").is_file(), about["slug"]
