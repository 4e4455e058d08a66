"""The CHECKs of the schema name what the engine's enums name."""

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
"""Why one waits, which is looked up and not stored."""


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
async def test_a_check_names_the_engines_values(
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


def test_a_pending_delivery_has_no_row_among_the_finished() -> None:
    assert DeliveryState.PENDING not in FINISHED_STATES
