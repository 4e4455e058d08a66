"""The report: medians, goals, and the missed goals in the table."""

import json
from dataclasses import replace
from pathlib import Path

from tests.bench import report
from tests.bench.__main__ import SCENARIOS
from tests.bench.measure import Figures
from tests.bench.scenario import least, most

SCENARIO = replace(
    SCENARIOS[0],
    title="the first",
    goals=(least("per_second", 9_000), most("wal_bytes", 1_600)),
)
ROUNDS: list[Figures] = [
    {"per_second": 8_000, "wal_bytes": 1_500, "wal_image_bytes": 3},
    {"per_second": 10_000, "wal_bytes": 1_700},
    {"per_second": 9_500, "wal_bytes": 1_650},
]


def test_figure_is_the_median_of_its_rounds() -> None:
    assert report.median(ROUNDS) == {
        "per_second": 9_500,
        "wal_bytes": 1_650,
        "wal_image_bytes": 3,
    }


def test_table_shows_missed_goals() -> None:
    lines = report.table([SCENARIO], {"1": report.median(ROUNDS)}).splitlines()
    assert any("reached per_second 9,500 (at least 9,000)" in line for line in lines)
    assert any("MISSED  wal_bytes 1,650 (at most 1,600)" in line for line in lines)


def test_json_has_all_rounds_and_verdicts(tmp_path: Path) -> None:
    report.write(tmp_path / "results.json", {"rounds": 3}, [SCENARIO], {"1": ROUNDS})
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["rounds"] == 3
    assert written["scenarios"]["1"]["rounds"] == ROUNDS
    assert [goal["is_reached"] for goal in written["scenarios"]["1"]["goals"]] == [True, False]


def test_markdown_table_has_the_same_figures(tmp_path: Path) -> None:
    report.write(tmp_path / "results.json", {}, [SCENARIO], {"1": ROUNDS})
    row = (tmp_path / "results.md").read_text().splitlines()[2]
    assert row.startswith("| 1 | the first | 9,500 |")
    assert "wal_bytes 1,650 ≤ 1,600 **missed**" in row


def test_all_thirteen_scenarios_are_registered() -> None:
    assert [scenario.number for scenario in SCENARIOS] == [str(n) for n in range(1, 14)]
