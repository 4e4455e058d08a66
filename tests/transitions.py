"""Delete each row of the transition table in turn, and run the test that must then fail.

`make transitions` runs it. The tests are those that the table "Rows of the transition table" in
docs/guarantees.md names. Each is run with its row first, and must pass. Exits with 1 if a test
fails with its row or passes without it, or if the two tables have other rows.

It is also the pytest plugin that deletes a row, as `TRANSITION` in the environment names it.
"""

from __future__ import annotations

import os
import subprocess
import sys

from hookline_service.domain.delivery import TRANSITIONS, DeliveryState, Trigger
from tests.docs.pages import page

VARIABLE = "TRANSITION"
PASSED, FAILED = 0, 1
"""pytest's exit statuses; others mean that no test ran."""


def documented() -> dict[tuple[DeliveryState, Trigger], str]:
    """Return the test of each row, as docs/guarantees.md names it."""
    rows = page("docs/guarantees.md").table("Rows of the transition table")
    return {(DeliveryState(row[0]), Trigger(row[1])): row[3].strip("`") for row in rows}


def pytest_configure() -> None:
    """Delete the row that the environment names."""
    state, _, trigger = os.environ[VARIABLE].partition(" ")
    del TRANSITIONS[DeliveryState(state), Trigger(trigger)]


def main() -> int:
    """Return the exit status of the check."""
    tests = documented()
    faults = len(TRANSITIONS.keys() ^ tests.keys())
    for (state, trigger), test in tests.items():
        row = f"{state} {trigger.value}"
        statuses = _run(test), _run(test, "-p", "tests.transitions", **{VARIABLE: row})
        verdict = "fails" if statuses == (PASSED, FAILED) else f"exit statuses {statuses}"
        sys.stdout.write(f"without {state} + {trigger.value}: {test} {verdict}\n")
        sys.stdout.flush()
        faults += statuses != (PASSED, FAILED)
    return min(faults, 1)


def _run(test: str, *options: str, **variables: str) -> int:
    """Run one test, and return pytest's exit status."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", *options, test]
    environment = os.environ | variables
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
