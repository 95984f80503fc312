"""Published numbers, cards and evidence beside one another."""

import json
import math

from explorer.models import bundled
from explorer.papers import paper
from explorer.reproduction import evidence
from explorer.reproduction.beside import beside, quality_by_nfe

NAME = "digits-ict"


def test_quality_by_nfe_is_what_the_card_says():
    [(name, points)] = quality_by_nfe(NAME).items()
    calls = [n for n, _ in points]
    assert name == NAME and calls == sorted(calls) and {1, 2, 4} <= set(calls)
    rows = [row for row in bundled.card(NAME)["metrics"] if row["metric"] == "FD[digits-cnn]" and row.get("nfe")]
    assert sorted((r["nfe"], r["value"], r["std_error"], r["n"]) for r in rows) == [
        (n, e.value, e.std_error, e.n) for n, e in points
    ]
    assert quality_by_nfe(NAME, metric="no such metric") == {NAME: []}


def test_the_three_lists_stand_apart_and_a_failing_claim_says_so(tmp_path, monkeypatch):
    ict = paper("ict")
    outcome = evidence.Outcome(0, False, 2.0, 0.25, 10, 1.0)
    row = evidence.Evidence(ict.claims[2].text, "Sec. 0", "toy", outcomes=(outcome,))
    begun = evidence.Record("ict").with_(row, 3)
    monkeypatch.setattr("explorer.reproduction.beside.evidence_of", lambda slug: begun)
    lines = beside(ict, NAME, published=2).splitlines()
    assert [line.split(",")[0] for line in lines] == ["published"] * 2 + ["bundled"] * 3 + ["measured"]
    assert lines[0] == "published, cifar10: FID 2.83 at 1 NFE, iCT (Table 2)"
    assert lines[-1] == f"measured, toy, 1 seed: {ict.claims[2].text}: 2 ± 0.2, threshold 1, FAILS"


def test_numbers_are_those_of_the_evidence_file():
    for slug in ("rectified_flow", "rfpp"):
        rows = json.loads(evidence.default_file(slug).read_text())["claims"]
        text = beside(paper(slug), published=0)
        for row in rows:
            shown = f"{row['claim']}: {row['measured']:.3g} ± "
            assert math.isfinite(row["measured"]) and shown in text
