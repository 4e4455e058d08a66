"""Delete each row of the transition table in turn, and run the test that must then fail.

Run `python -m tests.transitions` after a change of `domain/delivery.py` or of the table "Rows of
the transition table" in docs/guarantees.md, from which the tests are taken. Exits with 1 if a test
passes without its row. Takes about ten seconds a row.

It is also the pytest plugin that deletes a row, as `TRANSITION` in the environment names it.
"""

from __future__ import annotations

import os
import subprocess
import sys

from hookline_service.domain.delivery import TRANSITIONS, DeliveryState, Trigger
from tests.docs.pages import page

VARIABLE = "TRANSITION"
FAILED = 1
"""pytest's exit status where tests failed; others mean that none ran."""


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
    survived = 0
    for (state, trigger), test in documented().items():
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "tests.transitions", test]
        environment = os.environ | {VARIABLE: f"{state} {trigger.value}"}
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        verdict = "fails" if done.returncode == FAILED else f"exit status {done.returncode}"
        sys.stdout.write(f"without {state} + {trigger.value}: {test} {verdict}\n")
        sys.stdout.flush()
        survived += done.returncode != FAILED
    return min(survived, 1)


if __name__ == "__main__":
    sys.exit(main())
