"""Evidence: measured once, kept at once, gone on with after a stop, and never better than what was seen."""

from __future__ import annotations

import importlib.util
import json
import math
import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from test_cli import document, refusal, run

from explorer import papers
from explorer.data import load_dataset
from explorer.errors import BadFile, BadValue, UnknownName
from explorer.metrics.base import Estimate
from explorer.papers.edm import plane
from explorer.reproduction import Bench, Claim, Evidence, Outcome, Paper, Record, Verdict, gather
from explorer.reproduction.evidence import choose, default_file, evidence_of, read, write
from explorer.reproduction.source import source_of


class Log(list):
    def __repr__(self):  # a log is no part of a claim
        return "log"


def check(bench, values=(1.0, 2.0, 4.0), limit=5.0, log=None, stop_at=None, fail_at=None):
    """Stands for a measurement: one value for each seed, a stop or an error where asked for."""
    if bench.seed == fail_at:
        raise ValueError("no such layer")
    if bench.seed == stop_at:
        raise KeyboardInterrupt
    if log is not None:
        log.append(bench.seed)
    value = values[bench.seed]
    return Verdict(value < limit, Estimate(value, 0.25, 100, "distance"), limit + bench.seed, f"seed {bench.seed}")


def fake(**settings) -> Paper:
    claims = (
        Claim("distances stay small", "Table 1", partial(check, **settings), 1.0),
        Claim("labels are right", "Fig. 2", partial(check, values=(0.5, 0.5, 0.5)), 3.0, scale="digits"),
    )
    return Paper("fake", "A fake", "", "none", recipe=lambda name: None, recipes=(), claims=claims)


def test_evidence_combines_seeds_and_keeps_each(tmp_path):
    file = tmp_path / "fake.json"
    seen = list(gather(fake(), file=file, folder=None))
    assert [m.seed for m in seen] == [0, 1, 2] * 2 and seen[-1].fraction == pytest.approx(1)
    about = json.loads(file.read_text())
    assert {"slug", "seeds", "machine", "minutes", "versions", "claims"} <= set(about)
    assert about["slug"] == "fake" and about["seeds"] == 3 and "torch" in about["versions"]
    first, second = about["claims"]
    assert {"claim", "scale", "measured", "std_error", "threshold", "holds", "seeds"} <= set(first)
    values = [1.0, 2.0, 4.0]
    assert first["measured"] == pytest.approx(statistics.fmean(values), rel=1e-5)  # written with six digits
    assert first["std_error"] == pytest.approx(statistics.stdev(values) / math.sqrt(3), rel=1e-5)
    assert (
        first["threshold"] == 6 and first["seeds"] == 3 and first["holds"] is True and first["quantity"] == "distance"
    )
    assert [v["value"] for v in first["values"]] == values and first["values"][1]["text"] == "seed 1"
    assert second["scale"] == "digits" and second["std_error"] == 0


def test_a_claim_holds_only_if_it_holds_at_every_seed(tmp_path):
    list(gather(fake(limit=3.0), file=tmp_path / "e.json", folder=None))
    row = read(tmp_path / "e.json", "fake").rows[0]
    assert [o.holds for o in row.outcomes] == [True, True, False] and not row.holds
    assert not Evidence("c", "", "toy").holds  # nothing measured is nothing shown


def test_one_seed_has_the_error_of_its_own_measurement(tmp_path):
    list(gather(fake(), 1, file=tmp_path / "e.json", folder=None))
    assert read(tmp_path / "e.json", "fake").rows[0].measured == Estimate(1.0, 0.25, 100, "distance")


def test_a_stopped_run_goes_on_and_measures_nothing_twice(tmp_path):
    file, log = tmp_path / "e.json", Log()
    with pytest.raises(KeyboardInterrupt):
        list(gather(fake(log=log, stop_at=2), file=file, folder=None))
    begun = read(file, "fake")
    assert begun.rows == () and begun.unfinished[0].seeds == 2 and begun.to_dict()["claims"] == []
    assert not list(tmp_path.glob(".*"))  # no half-written file is left
    # stop_at is bound to the check and so is part of its source; put it under the name that the undisturbed claim has.
    paper = fake(log=log)
    write(replace(begun, unfinished=(replace(begun.unfinished[0], source=source_of(paper.claims[0].check)),)), file)
    assert [m.seed for m in gather(paper, file=file, folder=None)] == [2, 0, 1, 2]
    assert log == [0, 1, 2] and read(file, "fake").unfinished == ()
    assert list(gather(paper, file=file, folder=None)) == []
    assert len(list(gather(paper, file=file, folder=None, claims=paper.claims[:1], again=True))) == 3
    assert log == [0, 1, 2, 0, 1, 2]


def test_more_seeds_add_to_what_is_there(tmp_path):
    file, log = tmp_path / "e.json", Log()
    list(gather(fake(log=log), 1, file=file, folder=None))
    list(gather(fake(log=log), 3, file=file, folder=None))
    assert log == [0, 1, 2] and [e.seeds for e in read(file, "fake").rows] == [3, 3]


def test_a_check_that_breaks_is_recorded_and_the_next_one_follows(tmp_path):
    file = tmp_path / "e.json"
    list(gather(fake(fail_at=1), file=file, folder=None))
    record = read(file, "fake")
    assert record.unfinished[0].error == "seed 1: ValueError: no such layer" and record.unfinished[0].seeds == 2
    assert [e.claim for e in record.rows] == ["labels are right"]


def test_what_the_paper_no_longer_claims_is_dropped_and_numbers_that_are_not_finite_are_null(tmp_path):
    file = tmp_path / "e.json"
    list(gather(fake(values=(math.nan, 1.0, 2.0)), file=file, folder=None))
    row = json.loads(file.read_text())["claims"][0]
    assert row["measured"] is None and row["values"][0]["value"] is None and row["holds"] is False
    assert math.isnan(read(file, "fake").rows[0].outcomes[0].value)
    fewer = replace(fake(), claims=fake().claims[1:])
    list(gather(fewer, 4 - 1, file=file, folder=None, again=True))
    assert [e.claim for e in read(file, "fake").rows] == ["labels are right"]


def test_a_claim_in_other_words_keeps_its_evidence(tmp_path):
    file = tmp_path / "e.json"
    list(gather(fake(), file=file, folder=None))
    one, two = fake().claims
    reworded = replace(fake(), claims=(two, replace(one, text="samples stay near", where="Table 2")))
    assert list(gather(reworded, file=file, folder=None)) == []
    assert [(e.claim, e.where, e.seeds) for e in read(file, "fake").rows] == [
        ("labels are right", "Fig. 2", 3),
        ("samples stay near", "Table 2", 3),
    ]


def test_records_read_back_as_they_were_written(tmp_path):
    outcomes = tuple(Outcome(s, s > 0, 0.1 * s, 0.5, 9, 1.0, "text", 2.0) for s in range(3))
    row = Evidence("c", "Eq. 1", "toy", "q", outcomes, "ab", "a machine", "2026-01-02")
    record = Record("x", (row,), (replace(row, claim="d", error="seed 2: broken"),), {"torch": "2"})
    write(record, tmp_path / "x.json")
    assert read(tmp_path / "x.json", "x") == record


@pytest.mark.parametrize("text", ["", "[]", '{"slug": "other"}', '{"slug": "fake", "claims": [{"claim": 1}]}', "{"])
def test_a_file_that_is_no_evidence_is_refused_and_kept(tmp_path, text):
    file = tmp_path / "e.json"
    file.write_text(text)
    with pytest.raises(BadFile):
        list(gather(fake(), file=file, folder=None))
    assert file.read_text() == text


def test_claims_are_chosen_by_scale_number_and_text():
    paper = fake()
    assert choose(paper) == paper.claims and choose(paper, "digits") == paper.claims[1:]
    assert choose(paper, only=["2", "DISTANCES"]) == paper.claims[::-1]
    for scale, only in (("shapes", ()), (None, ["3"]), (None, ["nothing"]), ("digits", ["1"])):
        with pytest.raises(UnknownName, match="digits|labels are right"):
            choose(paper, scale, only)
    with pytest.raises(BadValue):
        next(gather(paper, 0))


MODULE = """
from explorer.papers.edm import plane
{comment}
FACTOR = {factor}
OTHER = {other}

def scaled(x):
    {words!r}
    return FACTOR * x

def unused():
    return OTHER

def check(bench):
    return scaled(bench.seed), plane

def factory(k):
    def inner(bench):
        return k * scaled(1)
    return inner

made = factory({k})

def given(inner):
    def outer(bench):
        return inner(bench)
    return outer

lent = given(lambda bench: bench.seed + {k})
"""


def module(tmp_path, name, comment="", factor=1, other=1, k=2, words="Said."):
    file = tmp_path / f"{name}.py"
    file.write_text(MODULE.format(comment=comment, factor=factor, other=other, k=k, words=words))
    spec = importlib.util.spec_from_file_location(name, file)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_a_claims_source_is_what_it_calls_and_nothing_else(tmp_path):
    base = module(tmp_path, "base")
    assert source_of(base.check) == source_of(
        module(tmp_path, "same", comment="# a remark\n\n", other=5, words="Otherwise said.").check
    )
    assert source_of(base.check) != source_of(module(tmp_path, "changed", factor=2).check)
    assert source_of(base.made) != source_of(module(tmp_path, "bound", k=3).made)
    assert source_of(partial(base.check, n=1)) != source_of(partial(base.check, n=2))
    assert source_of(base.lent) == source_of(module(tmp_path, "alike").lent)
    assert source_of(base.lent) != source_of(module(tmp_path, "other", k=3).lent)  # a function bound counts by its code
    assert source_of(partial(base.check, base.lent)) != source_of(partial(base.check, module(tmp_path, "o2", k=3).lent))


def test_a_change_in_the_papers_own_file_changes_the_source_of_the_claims_that_reach_it(tmp_path, monkeypatch):
    from explorer.reproduction import source

    claims = {c.check.__name__: source_of(c.check) for c in papers.paper("edm").claims}
    file = str(papers.__path__[0] + "/edm.py")
    text = Path(file).read_text().replace('"p_std": 1.6', '"p_std": 1.5')
    tree = source.ast.parse(text)
    whole = source._tree
    monkeypatch.setattr(source, "_tree", lambda name: tree if name == file else whole(name))
    source._definitions.cache_clear()
    now = {c.check.__name__: source_of(c.check) for c in papers.paper("edm").claims}
    source._definitions.cache_clear()
    assert now["trained"] != claims["trained"] and now["warp"] == claims["warp"]


def test_models_of_claims_are_trained_once_and_found_again(tmp_path):
    recipe = plane("8gaussians")
    recipe = replace(recipe, plan=replace(recipe.plan, n_steps=3, batch_size=8))
    words = []

    def trained(bench):
        bench.show, show = (lambda *what: words.append(what)), bench.show
        error = float(bench.model(recipe).denoise(load_dataset("8gaussians").x[:4], 0.5).square().mean())
        bench.show = show
        return Verdict(True, Estimate(error, 0.0, 4, "size"), 1.0, "")

    def stable(bench):
        return trained(bench)

    paper = replace(fake(), claims=(Claim("it trains", "", stable, 1.0), Claim("it is the same", "", stable, 1.0)))
    list(gather(paper, 2, file=tmp_path / "e.json", folder=tmp_path / "runs"))
    one, two = read(tmp_path / "e.json", "fake").rows
    assert [o.value for o in one.outcomes] == [o.value for o in two.outcomes]
    assert one.outcomes[0].value != one.outcomes[1].value  # two seeds, two networks
    assert sorted(f.name.rsplit("-", 1)[0] for f in (tmp_path / "runs").iterdir()) == [
        "toy-8gaussians-seed0",
        "toy-8gaussians-seed1",
    ]
    assert len({w for w, _ in words}) == 2
    words.clear()
    bench = Bench(tmp_path / "runs", seed=1)
    assert float(bench.model(recipe).denoise(load_dataset("8gaussians").x[:4], 0.5).square().mean()) == pytest.approx(
        two.outcomes[1].value, rel=1e-5
    )


# The command


@pytest.fixture
def two_papers(monkeypatch):
    made = {"fake": fake(limit=3.0), "good": replace(fake(), slug="good")}
    monkeypatch.setattr(papers, "names", lambda: tuple(made))
    monkeypatch.setattr(papers, "paper", made.__getitem__)


def test_the_command_prints_failing_claims_and_ends_well_unless_strict(two_papers, tmp_path):
    where = ("--out", tmp_path / "e.json", "--folder", tmp_path / "runs")
    text = " ".join(run("claims", "fake", *where).stdout.split())
    assert "FAILS at seed 2" in text and "holds, 3 seeds" in text and "2.3 ± 0.9" in text
    run("claims", "fake", *where, "--strict", code=1)
    run("claims", "fake", *where, "--strict", "--only", "labels")
    about = document("claims", "fake", *where)
    assert about["slug"] == "fake" and [row["holds"] for row in about["claims"]] == [False, True]


def test_all_papers_are_measured_into_their_own_files(two_papers, tmp_path, monkeypatch):
    monkeypatch.setenv("EXPLORER_ASSETS", str(tmp_path))
    result = run("claims", "--all", "--seeds", 2, "--json", "--folder", tmp_path / "runs")
    assert [about["slug"] for about in json.loads(result.stdout)] == ["fake", "good"]
    assert "fake 1, seed 0" in result.stderr and "min left" not in result.stdout
    assert default_file("good") == tmp_path / "claims" / "good.json" and evidence_of("good").rows[0].seeds == 2
    assert "seed" not in run("claims", "--all", "--seeds", 2, "--folder", tmp_path / "runs").stderr
    assert evidence_of("nothing").rows == ()


def test_a_claim_that_could_not_be_measured_ends_with_code_one(tmp_path, monkeypatch):
    monkeypatch.setattr(papers, "paper", lambda slug: fake(fail_at=0))
    result = run("claims", "fake", "--out", tmp_path / "e.json", code=1)
    assert "no such layer" in result.stderr and "2 of 3 seeds measured" in " ".join(result.stdout.split())


def test_the_command_explains_itself_with_examples():
    assert "explorer claims --all" in run("claims", "--help").stdout.partition("Examples")[2]


def test_bad_requests_get_one_sentence(tmp_path):
    assert "--all" in refusal("claims") and "--all" in refusal("claims", "edm", "--all")
    assert "edm" in refusal("claims", "emd")
    assert "has claims" in refusal("claims", "digits_cnn")
    assert "toy" in refusal("claims", "edm", "--scale", "digit", "--out", tmp_path / "e.json")
    assert "Heun" in refusal("claims", "edm", "--only", "99", "--out", tmp_path / "e.json")


def test_every_papers_bundled_evidence_is_of_claims_it_makes():
    """What is shown as measured was measured on the claims as they are stated now."""
    for slug in papers.names():
        claims = {c.text: c for c in papers.paper(slug).claims}
        for row in evidence_of(slug).rows:
            assert row.claim in claims and row.scale == claims[row.claim].scale and row.outcomes
