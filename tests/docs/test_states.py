"""One law, told in four places: the table, its picture in the code and here, and SQL's CHECKs."""

import re

import pytest

from hookline_service.domain import delivery
from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.domain.delivery import FINISHED_STATES, TRANSITIONS, Trigger
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
WORDS = {
    Trigger.ACCEPTED: "accepted",
    Trigger.FAILED: "failed",
    Trigger.FAILED_LAST: "failed, no attempts left",
    Trigger.GONE: "refused by 410",
    Trigger.INTERNAL_ERROR: "own fault",
    Trigger.RETRIED: "retried by an operator",
    Trigger.CANCELLED: "cancelled",
    Trigger.OUTLIVED: "too old",
}


def picture() -> list[str]:
    (block,) = [block for block in ARCHITECTURE.blocks() if "SUCCEEDED" in block.text]
    return block.text.splitlines()


def moves_of(lines: list[str]) -> set[tuple[str, str, str]]:
    """What the arrows of the picture say: from, why, to."""
    moves = set()
    for line in lines:
        if arrow := re.search(r"(?:PENDING |├|└)──([a-z ,]+)─+▶ ([A-Z]+)", line):
            moves.add(("PENDING", arrow[1], arrow[2]))
        if back := re.search(r"└─([a-z0-9, ]+)$", line):
            moves |= {("PENDING", why, "PENDING") for why in back[1].split(", ")}
    joined = [re.search(r"▶ ([A-Z]+) ─*[┐┼┘]", line) for line in lines]
    (why,) = [arrow[1] for line in lines if (arrow := re.search(r"┼──([a-z ]+)──▶ PENDING", line))]
    return moves | {(state[1], why, "PENDING") for state in joined if state}


def test_the_picture_is_drawn_from_the_table() -> None:
    law = {(state, WORDS[trigger], then) for (state, trigger), then in TRANSITIONS.items()}
    assert moves_of(picture()) == law


def test_the_engine_shows_the_same_picture() -> None:
    assert delivery.__doc__ is not None
    shown = [line.removeprefix("    ") for line in delivery.__doc__.splitlines()]
    assert "\n".join(picture()) in "\n".join(shown)


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
def test_the_database_checks_the_same_words(table: str, column: str, allowed: set[str]) -> None:
    """The check that the last migration leaves."""
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
    assert set(re.findall(r"'(\w+)'", checks[-1])) == {str(word) for word in allowed}


def test_every_table_is_explained() -> None:
    names = [row[0] for row in ARCHITECTURE.table("Storage")]
    told = set(re.findall(r"`(\w+)`", " ".join(names)))
    assert told == set(re.findall(r"CREATE TABLE (\w+)", SCHEMA))
