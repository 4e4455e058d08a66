"""The report of a run: a table, and the same as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bench.measure import Figures
from tests.bench.scenario import Goal, Scenario

_COLUMNS = (
    ("per_second", "per s", "{:,.0f}"),
    ("hookline_cpu_us", "HL µs", "{:.1f}"),
    ("postgres_cpu_us", "PG µs", "{:.1f}"),
    ("wal_bytes", "WAL B", "{:,.0f}"),
    ("wal_image_bytes", "image B", "{:,.0f}"),
    ("per_commit", "/commit", "{:,.1f}"),
    ("efficiency", "effic.", "{:.2f}"),
    ("p50_ms", "p50 ms", "{:.2f}"),
    ("p99_ms", "p99 ms", "{:.2f}"),
    ("memory_mb", "MB", "{:.0f}"),
    ("elsewhere_percent", "else %", "{:.1f}"),
)
_LEGEND = """\
HL, PG: CPU of Hookline and of Postgres per delivery. image: full-page images in the WAL.
/commit: deliveries per commit, storing and recording both counted. effic.: CPU of the floor over
HL and PG. MB: peak of the largest process. else: share of CPU time used by other programs."""
_CELL, _NAME = 9, 22


def median(rounds: Sequence[Figures]) -> Figures:
    """Return the median of each figure over the rounds that have it."""
    names = list(dict.fromkeys(name for figures in rounds for name in figures))
    return {
        name: statistics.median([figures[name] for figures in rounds if name in figures])
        for name in names
    }


def row(figures: Figures) -> str:
    """Return the columns of a round on one line."""
    return "   ".join(
        f"{title} {form.format(figures[name])}" for name, title, form in _COLUMNS if name in figures
    )


def table(scenarios: Sequence[Scenario], results: Mapping[str, Figures]) -> str:
    """Return the columns of every scenario, then its goals, then its other figures."""
    played = [
        (scenario, results[scenario.number]) for scenario in scenarios if scenario.number in results
    ]
    head = " #  " + " " * _NAME + "".join(f"{title:>{_CELL}}" for _, title, _ in _COLUMNS)
    return "\n".join(
        [
            head,
            *[_head(scenario) + _cells(figures) for scenario, figures in played],
            _LEGEND,
            "",
            *[line for scenario, figures in played for line in _notes(scenario, figures)],
        ]
    )


def markdown(scenarios: Sequence[Scenario], results: Mapping[str, Figures]) -> str:
    """Return the same columns as a Markdown table, each scenario with its goals."""
    columns = [column for column in _COLUMNS if column[0] != "elsewhere_percent"]
    lines = [
        "| # | " + " | ".join(["scenario", *[title for _, title, _ in columns], "goals"]) + " |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for scenario in scenarios:
        if scenario.number in results:
            figures = results[scenario.number]
            cells = [
                form.format(figures[name]) if name in figures else "" for name, _, form in columns
            ]
            goals = "; ".join(_verdict(goal, figures) for goal in scenario.goals)
            row_cells = [scenario.number, scenario.title, *cells, goals]
            lines.append("| " + " | ".join(row_cells) + " |")
    return "\n".join(lines) + "\n"


def _verdict(goal: Goal, figures: Figures) -> str:
    verb = "reached" if goal.is_met(figures) else "**missed**"
    sign = "≥" if goal.is_least else "≤"
    return f"{goal.figure} {_short(figures[goal.figure])} {sign} {_short(goal.bound)} {verb}"


def _head(scenario: Scenario) -> str:
    return f"{scenario.number:>2}  {scenario.name:<{_NAME}}"


def _cells(figures: Figures) -> str:
    return "".join(
        f"{form.format(figures[name]) if name in figures else '·':>{_CELL}}"
        for name, _, form in _COLUMNS
    )


def _notes(scenario: Scenario, figures: Figures) -> list[str]:
    shown = {name for name, _, _ in _COLUMNS}
    verdicts = [
        f"{'reached' if goal.is_met(figures) else 'MISSED '} {goal.figure}"
        f" {_short(figures[goal.figure])} (at {'least' if goal.is_least else 'most'}"
        f" {_short(goal.bound)})"
        for goal in scenario.goals
    ]
    others = [f"{name} {_short(value)}" for name, value in figures.items() if name not in shown]
    lines = verdicts + [", ".join(others[begin : begin + 4]) for begin in range(0, len(others), 4)]
    heads = [_head(scenario), *[" " * (_NAME + 4)] * len(lines)]
    return [head + line for head, line in zip(heads, lines, strict=False)]


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"


def write(
    path: Path,
    about: Mapping[str, object],
    scenarios: Sequence[Scenario],
    rounds: Mapping[str, Sequence[Figures]],
) -> None:
    """Write all measurements as JSON, and the table for docs/performance.md."""
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {
        **about,
        "scenarios": {
            scenario.number: _entry(scenario, rounds[scenario.number])
            for scenario in scenarios
            if scenario.number in rounds
        },
    }
    path.write_text(json.dumps(report, indent=2) + "\n")
    medians = {number: median(figures) for number, figures in rounds.items()}
    path.with_suffix(".md").write_text(markdown(scenarios, medians))


def _entry(scenario: Scenario, rounds: Sequence[Figures]) -> dict[str, object]:
    figures = median(rounds)
    return {
        "title": scenario.title,
        "unit": scenario.unit,
        "median": figures,
        "goals": [
            {
                "figure": goal.figure,
                "at_least" if goal.is_least else "at_most": goal.bound,
                "is_reached": goal.is_met(figures),
            }
            for goal in scenario.goals
        ],
        "rounds": list(rounds),
    }
