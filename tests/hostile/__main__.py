"""`python -m tests.hostile [NAME …]`: attack, print the table, write it as JSON."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import uvloop

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from tests.faults.cluster import cluster
from tests.hostile import callers, dns, receivers, report
from tests.hostile.scenario import Result, Scenario, play
from tests.hostile.stage import staged

RESULTS = Path("hostile-results", "results.json")
SCENARIOS: tuple[Scenario, ...] = (*callers.SCENARIOS, *receivers.SCENARIOS, *dns.SCENARIOS)


async def attack(scenarios: list[Scenario], seconds: float) -> list[Result]:
    """Each on a node of its own, so that none inherits another's memory."""
    results: list[Result] = []
    async with cluster() as postgres:
        for scenario in scenarios:
            async with staged(postgres.url, **scenario.settings) as stage:
                results.append(await play(scenario, stage, seconds))
            sys.stderr.write(" · ".join(report.row(results[-1])) + f" · {results[-1].attacks}\n")
            report.write(results, RESULTS)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(prog="make hostile")
    parser.add_argument("names", nargs="*", metavar="NAME", help="the first letters of an attack")
    parser.add_argument("--seconds", type=float, default=5.0)
    asked = parser.parse_args()
    chosen = [
        one for one in SCENARIOS if not asked.names or one.name.startswith(tuple(asked.names))
    ]
    if not chosen:
        parser.error("there are: " + ", ".join(one.name for one in SCENARIOS))
    sys.stdout.write(report.table(uvloop.run(attack(chosen, asked.seconds))) + "\n")


if __name__ == "__main__":
    main()
