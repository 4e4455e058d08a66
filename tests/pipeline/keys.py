"""Events with idempotency keys, and what is left of them in the tables."""

from service.domain.event import NewEvent
from service.domain.ids import format_type_id
from service.domain.names import event_name
from service.pipeline.group import Published
from tests.pipeline.rig import Rig, order_created


def keyed(key: str = "k", number: int = 1, **fields: object) -> NewEvent:
    """An event with an idempotency key."""
    return order_created(number, idempotency_key=key, **fields)


async def publish(rig: Rig, *events: NewEvent) -> list[Published]:
    """One call of acme's."""
    return await rig.publisher.publish("acme", events)


async def check_counts(rig: Rig, *, events: int, keys: int, deliveries: int | None = None) -> None:
    """Each event of acme's fans out to one delivery."""
    (row,) = await rig.database.fetch(
        """SELECT (SELECT count(*) FROM events) AS events,
                  (SELECT count(*) FROM idempotency_keys) AS keys,
                  (SELECT count(*) FROM pending_deliveries)
                  + (SELECT count(*) FROM deliveries) AS deliveries"""
    )
    wanted = events if deliveries is None else deliveries
    assert (row["events"], row["keys"], row["deliveries"]) == (events, keys, wanted)


def name_of(published: Published) -> str:
    """As the contract names it."""
    return event_name("acme", format_type_id("evt", published.event_id))
