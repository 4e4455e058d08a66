"""`python -m tests.bench [SCENARIO …]`: run scenarios, print the table, write it as JSON."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from tests.bench import report, scale, tenants, throughput, trouble
from tests.bench.machine import CORES, description
from tests.bench.measure import Figures
from tests.bench.processes import SAMPLED, BenchError
from tests.bench.scenario import Extent, Scenario
from tests.bench.stage import Meters, staged

RESULTS = Path("bench-results")
SCENARIOS = tuple(
    sorted(
        (*throughput.SCENARIOS, *scale.SCENARIOS, *trouble.SCENARIOS, *tenants.SCENARIOS),
        key=lambda scenario: int(scenario.number),
    )
)


async def play(
    scenario: Scenario, rounds: int, extent: Extent, workers: int, telemetry: str = "off"
) -> list[Figures]:
    """Run each round on a new deployment, so that it does not inherit tables of another."""
    measured: list[Figures] = []
    for number in range(1, rounds + 1):
        _say(f"scenario {scenario.number}: {scenario.title}; round {number} of {rounds} …")
        logs = RESULTS / "logs" / f"scenario-{scenario.number}-round-{number}"
        with tempfile.TemporaryDirectory(prefix="hookline-bench-") as directory:
            os.chmod(directory, 0o711)  # noqa: PTH101, S103 - Postgres's user must pass through
            async with staged(
                Path(directory), logs, scenario.groups, workers=workers, telemetry=telemetry
            ) as stage:
                before = await stage.meters()
                figures = await scenario.play(stage, extent)
                figures |= {"memory_mb": stage.peak_memory_mb()}
                measured.append(figures | elsewhere(before, await stage.meters()))
        _say("  " + report.row(measured[-1]))
    return measured


def elsewhere(before: Meters, after: Meters) -> Figures:
    """Return the share of CPU time of other programs; it limits the validity of figures."""
    whole_s = (after.moment_s - before.moment_s) * CORES
    return {"elsewhere_percent": after.elsewhere_s(before) / whole_s * 100}


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _about(options: argparse.Namespace) -> dict[str, object]:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "machine": description(Path(tempfile.gettempdir())),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "scale": options.scale,
        "is_full": options.full,
        "workers": options.workers,
        "telemetry": options.telemetry,
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("scenario", nargs="*", help="numbers; all where none is given")
    parser.add_argument("--rounds", type=int, default=3, help="a figure is their median")
    parser.add_argument("--seconds", type=float, help="of load, instead of the scenario's own")
    parser.add_argument("--full", action="store_true", help="ten minutes where that is the goal's")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of a million pending, 100,000 subscriptions"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes of a node")
    parser.add_argument(
        "--telemetry",
        choices=["off", *SAMPLED],
        default="off",
        help="metrics and traces on, and which part of the traces is recorded, in percent",
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "results.json")
    options = parser.parse_args()
    unknown = set(options.scenario) - {scenario.number for scenario in SCENARIOS}
    if unknown:
        parser.error(f"there is no scenario {', '.join(sorted(unknown))}")
    return options


def main() -> int:
    """Run the requested scenarios."""
    options = _options()
    extent = Extent(options.seconds, options.full, options.scale)
    shutil.rmtree(RESULTS / "logs", ignore_errors=True)
    rounds: dict[str, list[Figures]] = {}
    try:
        for scenario in SCENARIOS:
            if not options.scenario or scenario.number in options.scenario:
                played = play(scenario, options.rounds, extent, options.workers, options.telemetry)
                rounds[scenario.number] = asyncio.run(played)
    except BenchError as error:
        _say(f"the run failed: {error}")
        return 1
    finally:
        if rounds:
            results = {number: report.median(figures) for number, figures in rounds.items()}
            sys.stdout.write(report.table(SCENARIOS, results) + "\n")
            report.write(options.output, _about(options), SCENARIOS, rounds)
            sys.stdout.write(f"written to {options.output}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
