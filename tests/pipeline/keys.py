"""Events with idempotency keys, and their rows in the tables."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from hookline_service.domain.event import NewEvent
from hookline_service.domain.ids import format_type_id
from hookline_service.domain.names import event_name
from hookline_service.pipeline.publishing.group import Published
from hookline_service.store.publishing import Key, PublishRows, PublishStore, TakenKey
from tests.pipeline.rig import Rig, order_created

Act = Callable[[], Awaitable[None]]


def keyed(key: str = "k", number: int = 1, **fields: object) -> NewEvent:
    """Create an event with an idempotency key."""
    return order_created(number, idempotency_key=key, **fields)


async def publish(rig: Rig, *events: NewEvent) -> list[Published]:
    """Publish events of tenant acme in one call."""
    return await rig.publisher.publish("acme", events)


async def check_counts(rig: Rig, *, events: int, keys: int, deliveries: int | None = None) -> None:
    """Check the rows; by default each event has one delivery."""
    (row,) = await rig.database.fetch(
        """SELECT (SELECT count(*) FROM events) AS events,
                  (SELECT count(*) FROM idempotency_keys) AS keys,
                  (SELECT count(*) FROM pending_deliveries)
                  + (SELECT count(*) FROM deliveries) AS deliveries"""
    )
    wanted = events if deliveries is None else deliveries
    assert (row["events"], row["keys"], row["deliveries"]) == (events, keys, wanted)


def name_of(published: Published) -> str:
    """Return the resource name of an event."""
    return event_name("acme", format_type_id("evt", published.event_id))


async def _nothing() -> None:
    pass


def at_lookups(
    monkeypatch: pytest.MonkeyPatch, *, before: Act = _nothing, after: Act = _nothing
) -> None:
    """Act before and after each lookup of taken keys, which precedes a repeated statement."""
    find_taken = PublishStore.find_taken

    async def find_and_act(store: PublishStore, rows: PublishRows) -> dict[Key, TakenKey]:
        await before()
        taken = await find_taken(store, rows)
        await after()
        return taken

    monkeypatch.setattr(PublishStore, "find_taken", find_and_act)
