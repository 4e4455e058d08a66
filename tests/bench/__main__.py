"""`python -m tests.bench [SCENARIO …]`: play scenarios, print the table, write it as JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path

from tests.bench.scenarios import SCENARIOS, Figures, Scenario
from tests.bench.stage import BenchError, staged

RESULTS = Path("bench-results/results.json")
_COLUMNS = (
    ("per_second", "per second", "{:,.0f}"),
    ("hookline_cpu_us", "hookline µs", "{:.0f}"),
    ("postgres_cpu_us", "postgres µs", "{:.0f}"),
    ("wal_bytes", "WAL B", "{:,.0f}"),
    ("p50_ms", "p50 ms", "{:.2f}"),
    ("p99_ms", "p99 ms", "{:.2f}"),
    ("memory_mb", "MB", "{:.0f}"),
)


async def play(scenario: Scenario, rounds: int, seconds: float) -> list[Figures]:
    """Every round on a deployment of its own, so that none inherits the other's tables."""
    figures: list[Figures] = []
    for number in range(1, rounds + 1):
        _say(f"scenario {scenario.number}: {scenario.title}, round {number} of {rounds} …")
        with tempfile.TemporaryDirectory(prefix="hookline-bench-") as directory:
            os.chmod(directory, 0o711)  # noqa: PTH101, S103 - Postgres's user must pass through
            async with staged(Path(directory)) as stage:
                result = await scenario.play(stage, seconds)
                figures.append(result | {"memory_mb": stage.peak_memory_mb()})
        _say("  " + _row(figures[-1]))
    return figures


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _row(figures: Figures) -> str:
    cells = [
        f"{title} {form.format(figures[key])}" for key, title, form in _COLUMNS if key in figures
    ]
    return "   ".join(cells)


def median(rounds: list[Figures]) -> Figures:
    """The median of each figure over the rounds."""
    return {key: statistics.median(figures[key] for figures in rounds) for key in rounds[0]}


def _table(results: dict[str, Figures]) -> str:
    lines = []
    for scenario in SCENARIOS:
        if scenario.number in results:
            lines += [
                f"{scenario.number:>3}  {scenario.title}   (to reach: {scenario.goal})",
                f"     {_row(results[scenario.number])}",
            ]
    return "\n".join(lines)


def main() -> int:
    """Play what was asked for."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("scenario", nargs="*", help="numbers; all where none is given")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, help="of load, instead of the scenario's own")
    options = parser.parse_args()
    wanted = options.scenario or [scenario.number for scenario in SCENARIOS]
    unknown = set(wanted) - {scenario.number for scenario in SCENARIOS}
    if unknown:
        parser.error(f"there is no scenario {', '.join(sorted(unknown))}")
    results: dict[str, Figures] = {}
    try:
        for scenario in SCENARIOS:
            if scenario.number in wanted:
                seconds = options.seconds or scenario.seconds
                rounds = asyncio.run(play(scenario, options.rounds, seconds))
                results[scenario.number] = median(rounds)
    except BenchError as error:
        _say(f"the run failed: {error}")
        return 1
    sys.stdout.write(_table(results) + "\n")
    RESULTS.parent.mkdir(exist_ok=True)
    report = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "rounds": options.rounds,
        "median": results,
    }
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    sys.stdout.write(f"written to {RESULTS}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
