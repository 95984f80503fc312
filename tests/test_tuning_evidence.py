"""What tuning gained on the digits, as committed: of this model, at the stated cost, on noise no search saw; and the table by its rule."""

import json
import math
import statistics
from collections import defaultdict
from pathlib import Path

import pytest

from explorer.models.bundled import load
from explorer.tuning import Setting, fingerprint

FILE = Path(__file__).parents[1] / "assets/tuning/digits.json"
CONTENT = json.loads(FILE.read_text(encoding="utf-8"))
ROWS = CONTENT["rows"]
SEARCHED = [r for r in ROWS if "setting" in r]
WAYS = {
    "Heun on Karras' grid": ("heun", "from_reference"),
    "best untuned solver and grid": ("tuned", "untuned_from_reference"),
    "tuned": ("tuned", "from_reference"),
}


def named(row) -> str:
    return f"{row['kind']}-{row['nfe']}-{row['seed']}"


def test_it_is_of_the_bundled_model():
    assert json.loads(json.dumps(fingerprint(load("digits")))) == CONTENT["model"]


@pytest.mark.parametrize("row", SEARCHED, ids=named)
def test_settings_cost_what_they_say_and_no_more_than_what_they_are_compared_with(row):
    model = load("digits")
    costs = [Setting.from_dict(row[key]).nfe(model) for key in ("setting", "start")]
    assert max(costs) <= row["nfe"]
    if row["kind"] == "tuned":  # a solver of two evaluations a step may leave one of an even cost over
        assert costs[0] == costs[1] >= row["nfe"] - 1


@pytest.mark.parametrize("row", SEARCHED, ids=named)
def test_the_report_is_on_noise_that_no_search_drew(row):
    report = range(*row["report"])
    assert len(report) == row["score"]["n"] == row["difference"]["n"] == CONTENT["samples"]["report"]
    for other in SEARCHED:
        begin, end = other["objective"]["seeds"]
        assert max(begin, report.start) >= min(end, report.stop)


@pytest.mark.parametrize("row", SEARCHED, ids=named)
def test_the_paired_difference_is_that_of_the_two_numbers(row):
    """Bias corrections of a pair are estimated together, so that only the plug-in values subtract to rounding."""
    raw = row["score"]["raw"] - row["baseline"]["raw"]
    assert row["difference"]["raw"] == pytest.approx(raw, abs=1e-9)


def test_each_cost_was_tuned_at_three_seeds_with_noise_of_their_own():
    for nfe in (5, 8, 12):
        rows = [r for r in ROWS if r["kind"] == "tuned" and r["nfe"] == nfe]
        assert len(rows) >= 3 and len({r["report"][0] for r in rows}) == len(rows)


def test_the_table_follows_from_the_rows():
    assert [entry["way"] for entry in CONTENT["needed"]] == list(WAYS)
    for entry in CONTENT["needed"]:
        kind, key = WAYS[entry["way"]]
        gaps = defaultdict(list)
        for row in ROWS:
            if row["kind"] == kind:
                gaps[row["nfe"]].append((row[key]["value"], row[key]["std_error"]))
        bands = {}
        for nfe, found in gaps.items():
            value, error = (list(part) for part in zip(*found, strict=True))
            e = max(math.hypot(*error) / len(found), statistics.stdev(value) / len(found) ** 0.5)
            bands[nfe] = statistics.fmean(value), e
        shown = {c["nfe"]: (c["mean"], c["std_error"]) for c in entry["costs"]}
        assert shown.keys() == bands.keys()
        for nfe, band in bands.items():
            assert shown[nfe] == pytest.approx(band, rel=1e-9)
        for name, sign in (("not_worse", 1), ("as_good", 0), ("better", -1)):
            enough = [nfe for nfe, (d, e) in bands.items() if d - 2 * sign * e <= 0]
            assert entry[name] == min(enough, default=None)
