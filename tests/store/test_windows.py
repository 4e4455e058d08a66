"""Lists of all tenants have the same rows as one full read, for any window size."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random
from uuid import UUID

import pytest

from hookline_service.domain.delivery import DeliveryState
from hookline_service.domain.ids import LAST_UUID, bucket_of, make_uuid7
from hookline_service.store.database import Database
from hookline_service.store.deliveries import DeliveryStore, Selection
from hookline_service.store.events import EventStore
from tests.store.rows import Place, Rows, rows_in

DAY_MS = 86_400_000
_LETTERS = frozenset({DeliveryState.EXHAUSTED, DeliveryState.CANCELLED})
_STATES = ("SUCCEEDED", "SUCCEEDED", "EXHAUSTED", "CANCELLED", "PENDING")

Page = Callable[[UUID], Awaitable[tuple[list[UUID], bool]]]


@pytest.fixture
async def rows(database_url: str) -> AsyncIterator[Rows]:
    async with rows_in(database_url) as rows:
        yield rows


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, pool_size=2)
    await database.open()
    yield database
    await database.close()


async def walk(page: Page) -> list[UUID]:
    """Return the ids of a whole list, read page by page."""
    seen: list[UUID] = []
    before, has_more = LAST_UUID, True
    while has_more:
        ids, has_more = await page(before)
        assert ids or not has_more
        seen += ids
        before = ids[-1] if ids else before
    return seen


class History:
    """Deliveries of several tenants, one event each, over the days that have partitions."""

    def __init__(self, rows: Rows, seed: int) -> None:
        self._rows = rows
        self._random = Random(seed)
        self.deliveries: dict[UUID, str] = {}
        self.events: set[UUID] = set()

    async def fill(self, tenants: int, count: int) -> None:
        places = [
            await self._rows.subscription(await self._rows.tenant(f"t{n}"), "s")
            for n in range(tenants)
        ]
        for _ in range(count):
            # Few tenants have most of them; days ahead have some, for clocks differ.
            place = places[int(tenants * self._random.random() ** 3)]
            await self.add(place, self._random.choice((-1, -1, 0, 0, 0, 3, 12)))
        await self._rows.connection.execute("ANALYZE")

    async def add(self, place: Place, days_ahead: int) -> None:
        now_ms = int(time.time() * 1_000)
        moment = now_ms // DAY_MS * DAY_MS + days_ahead * DAY_MS + self._random.randrange(DAY_MS)
        event_id = make_uuid7(moment, self._random.getrandbits(74))
        bucket = bucket_of(place.uid)
        delivery_id = UUID(int=event_id.int & ~0xFF | bucket)
        state = self._random.choice(_STATES)
        await self._rows.connection.execute(
            """INSERT INTO events (tenant_uid, event_id, ordinal, is_json, type, data)
               VALUES ($1, $2, 1, true, 'order.created', '{"id":1}')""",
            place.tenant_uid,
            event_id,
        )
        if state == "PENDING":
            await self._rows.connection.execute(
                """INSERT INTO pending_deliveries (bucket, due_at, ordinal, delivery_id,
                       subscription_uid, event_id)
                   VALUES ($1, now(), 1, $2, $3, $4)""",
                bucket, delivery_id, place.uid, event_id,
            )  # fmt: skip
        else:
            await self._rows.connection.execute(
                """INSERT INTO deliveries (tenant_uid, delivery_id, subscription_uid, event_id,
                       finish_time, version, attempt_count, state)
                   VALUES ($1, $2, $3, $4, now(), 1, 0, $5)""",
                place.tenant_uid, delivery_id, place.uid, event_id, state,
            )  # fmt: skip
        self.deliveries[delivery_id] = state
        self.events.add(event_id)


@pytest.mark.parametrize("limit", [1, 7, 400])
async def test_pages_of_all_tenants_hold_each_row_once_newest_first(
    rows: Rows, database: Database, limit: int
) -> None:
    history = History(rows, seed=limit)
    await history.fill(tenants=30, count=150)
    deliveries, events = DeliveryStore(database), EventStore(database)

    def listed(states: frozenset[DeliveryState]) -> Page:
        async def page(before: UUID) -> tuple[list[UUID], bool]:
            selection = Selection(tenant_id="-", states=states)
            found = await deliveries.page(selection, before=before, limit=limit)
            return [one.delivery_id for one in found.deliveries], found.has_more

        return page

    async def of_events(before: UUID) -> tuple[list[UUID], bool]:
        found = await events.page(
            "-", before=before, limit=limit, with_data=True, max_bytes=limit * 8
        )
        return [one.event_id for one in found.events], found.has_more

    for states in (frozenset(DeliveryState), _LETTERS, frozenset({DeliveryState.SUCCEEDED})):
        names = {state.value for state in states}
        wanted = {uid for uid, state in history.deliveries.items() if state in names}
        assert await walk(listed(states)) == sorted(wanted, reverse=True)
    assert await walk(of_events) == sorted(history.events, reverse=True)


async def test_old_rows_are_found_behind_days_without_rows(rows: Rows, database: Database) -> None:
    """Each empty window is followed by one twice as long, so years without rows cost few reads."""
    place = await rows.subscription(await rows.tenant("acme"), "s")
    await rows.connection.execute(
        """CREATE TABLE events_20240229 PARTITION OF events
           FOR VALUES FROM ('018df1e0-d400-0000-0000-000000000000')
           TO ('018df707-3000-0000-0000-000000000000')"""
    )
    event_id = UUID("018df300-0000-7000-8000-000000000001")
    await rows.connection.execute(
        """INSERT INTO events (tenant_uid, event_id, ordinal, is_json, type, data)
           VALUES ($1, $2, 1, true, 'order.created', '{}')""",
        place.tenant_uid, event_id,
    )  # fmt: skip
    found = await EventStore(database).page(
        "-", before=LAST_UUID, limit=10, with_data=True, max_bytes=100
    )
    assert [one.event_id for one in found.events] == [event_id]
    assert not found.has_more
