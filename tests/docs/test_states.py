"""The transition table agrees with its two diagrams, with the schema and with the storage table."""

import re

import pytest

from hookline_service.domain import delivery
from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.domain.delivery import FINISHED_STATES, TRANSITIONS
from hookline_service.domain.event import EventTypeState
from hookline_service.domain.subscription import (
    PayloadFormat,
    SignatureScheme,
    SubscriptionState,
    SubscriptionStateReason,
)
from hookline_service.domain.tenant import TenantState
from hookline_service.store.migrations import all_migrations
from tests.docs.pages import page

ARCHITECTURE = page("docs/ARCHITECTURE.md")
SCHEMA = "\n".join(migration.sql for migration in all_migrations())


def diagram() -> list[str]:
    (block,) = [block for block in ARCHITECTURE.blocks() if "SUCCEEDED" in block.text]
    return block.text.splitlines()


def transitions_of(lines: list[str]) -> set[tuple[str, str, str]]:
    """Return the transitions that the arrows of the diagram show: from, trigger, to."""
    transitions = set()
    for line in lines:
        if arrow := re.search(r"(?:PENDING |├|└)──([a-z ,]+)─+▶ ([A-Z]+)", line):
            transitions.add(("PENDING", arrow[1], arrow[2]))
        if back := re.search(r"└─([a-z0-9, ]+)$", line):
            transitions |= {("PENDING", why, "PENDING") for why in back[1].split(", ")}
    joined = [re.search(r"▶ ([A-Z]+) ─*[┐┼┤┘]", line) for line in lines]
    (why,) = [arrow[1] for line in lines if (arrow := re.search(r"┼──([a-z ]+)──▶ PENDING", line))]
    return transitions | {(state[1], why, "PENDING") for state in joined if state}


def test_diagram_in_the_docs_shows_the_transition_table() -> None:
    expected = {(state, trigger.value, then) for (state, trigger), then in TRANSITIONS.items()}
    assert transitions_of(diagram()) == expected


def test_diagram_in_the_docstring_is_the_one_in_the_docs() -> None:
    assert delivery.__doc__ is not None
    lines = [line.removeprefix("    ") for line in delivery.__doc__.splitlines()]
    assert "\n".join(diagram()) in "\n".join(lines)


def test_every_transition_has_a_row_that_names_a_test() -> None:
    """`make transitions` checks that each of these fails without its row."""
    rows = page("docs/guarantees.md").table("Rows of the transition table")
    expected = [(state, trigger.value, then) for (state, trigger), then in TRANSITIONS.items()]
    assert [tuple(row[:3]) for row in rows] == expected
    assert [row for row in rows if not re.fullmatch(r"`tests/[\w/]+\.py::\w+`", row[3])] == []


@pytest.mark.parametrize(
    "table, column, allowed",
    [
        ("deliveries", "state", FINISHED_STATES),
        ("attempts", "outcome", set(AttemptOutcome) - {AttemptOutcome.INTERNAL_ERROR}),
        ("subscriptions", "state", set(SubscriptionState)),
        ("subscriptions", "state_reason", set(SubscriptionStateReason)),
        ("subscriptions", "payload_format", set(PayloadFormat)),
        ("subscriptions", "signature_scheme", set(SignatureScheme)),
        ("signing_keys", "scheme", set(SignatureScheme)),
        ("event_types", "state", set(EventTypeState)),
        ("tenants", "state", set(TenantState)),
    ],
)
def test_database_check_allows_the_values_of_the_enum(
    table: str, column: str, allowed: set[str]
) -> None:
    """Compare the CHECK that the last migration leaves."""
    of_table = re.findall(
        rf"(?:CREATE TABLE {table} \(|ALTER TABLE {table} ADD)(.*?);$",
        SCHEMA,
        re.DOTALL | re.MULTILINE,
    )
    checks = [
        check
        for body in of_table
        for check in re.findall(rf"CHECK \({column} IN \(([^)]*)\)", body)
    ]
    assert checks
    assert set(re.findall(r"'(\w+)'", checks[-1])) == {str(value) for value in allowed}


def test_every_table_of_the_schema_is_documented() -> None:
    names = [row[0] for row in ARCHITECTURE.table("Storage")]
    documented = set(re.findall(r"`(\w+)`", " ".join(names)))
    assert documented == set(re.findall(r"CREATE TABLE (\w+)", SCHEMA))
