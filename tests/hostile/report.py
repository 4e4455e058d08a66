"""What was measured, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tests.hostile.scenario import Result

HEAD = (
    "attack",
    "memory before, peak, after (MB)",
    "publisher's p99 before, during, after (ms)",
    "deliveries' p99 before, during, after (ms)",
    "worst health check (ms)",
    "failed calls during",
    "CPU",
    "recovered after (s)",
)


def row(result: Result) -> tuple[str, ...]:
    """One line of the table."""
    failed = ", ".join(f"{count} {what}" for what, count in result.during.failed.items())
    recovered = "never" if result.recovery_s is None else f"{result.recovery_s:.1f}"
    phases = (result.before, result.during, result.after)
    return (
        result.name,
        f"{result.memory_before_mb:.0f}, {result.memory_peak_mb:.0f}, {result.memory_after_mb:.0f}",
        ", ".join(f"{phase.p99_ms:.0f}" for phase in phases),
        ", ".join(f"{phase.delivery_p99_ms:.0f}" for phase in phases),
        f"{result.during.loop_max_ms:.0f}",
        failed or f"none of {result.during.calls}",
        f"{result.cpu_s:.0%}",
        recovered if result.is_alive else "the node died",
    )


def table(results: Sequence[Result]) -> str:
    """A table in Markdown."""
    lines = [HEAD, tuple("---" for _ in HEAD), *map(row, results)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(results: Sequence[Result], path: Path) -> None:
    """Everything that was measured, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([result.as_json() for result in results], indent=2) + "\n")
