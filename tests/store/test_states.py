"""The CHECK constraints of the schema list the values of the domain's enums."""

import re
from enum import StrEnum

import pytest

from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.domain.delivery import FINISHED_STATES, DeliveryState, DeliveryStateReason
from hookline_service.domain.event import EventTypeState
from hookline_service.domain.subscription import (
    PayloadFormat,
    SignatureScheme,
    SubscriptionState,
    SubscriptionStateReason,
)
from hookline_service.domain.tenant import TenantState
from hookline_service.store.database import Database

HOLDS = {
    DeliveryStateReason.SUBSCRIPTION_PAUSED,
    DeliveryStateReason.SUBSCRIPTION_DISABLED,
    DeliveryStateReason.CIRCUIT_OPEN,
    DeliveryStateReason.RATE_LIMITED,
    DeliveryStateReason.BLOCKED_BY_ORDER,
}
"""Reasons of pending deliveries, which reads compute and no row stores."""


@pytest.mark.parametrize(
    "column, values",
    [
        ("deliveries.state", FINISHED_STATES),
        ("deliveries.state_reason", set(DeliveryStateReason) - HOLDS),
        ("attempts.outcome", set(AttemptOutcome) - {AttemptOutcome.INTERNAL_ERROR}),
        ("subscriptions.state", set(SubscriptionState)),
        ("subscriptions.state_reason", set(SubscriptionStateReason)),
        ("subscriptions.payload_format", set(PayloadFormat)),
        ("subscriptions.signature_scheme", set(SignatureScheme)),
        ("signing_keys.scheme", set(SignatureScheme)),
        ("tenants.state", set(TenantState)),
        ("event_types.state", set(EventTypeState)),
    ],
)
async def test_check_constraint_lists_the_values_of_the_enum(
    database_url: str, column: str, values: set[StrEnum]
) -> None:
    table, _, name = column.partition(".")
    database = Database(database_url, pool_size=1)
    await database.open()
    rows = await database.fetch(
        """SELECT pg_get_constraintdef(c.oid) AS definition
           FROM pg_constraint c JOIN pg_attribute a
             ON a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey)
           WHERE c.contype = 'c' AND c.conrelid = $1::text::regclass AND a.attname = $2
             AND cardinality(c.conkey) = 1""",
        table,
        name,
    )
    await database.close()
    assert len(rows) == 1
    assert set(re.findall(r"'([A-Z0-9_]+)'", rows[0]["definition"])) == {v.value for v in values}


def test_pending_is_not_a_finished_state() -> None:
    assert DeliveryState.PENDING not in FINISHED_STATES
