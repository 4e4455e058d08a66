"""Reads of events: by name, in pages, across tenants."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from hookline_service.domain.errors import NotFoundError, Reason
from hookline_service.domain.ids import LAST_UUID
from hookline_service.store.database import Database
from hookline_service.store.events import EventStore
from tests.store.rows import Rows, rows_in

PLENTY = 1 << 30


@pytest.fixture
async def rows(database_url: str) -> AsyncIterator[Rows]:
    async with rows_in(database_url) as rows:
        yield rows


@pytest.fixture
async def events(database_url: str) -> AsyncIterator[EventStore]:
    database = Database(database_url, pool_size=2)
    await database.open()
    yield EventStore(database)
    await database.close()


async def test_event_is_read_with_the_published_bytes(rows: Rows, events: EventStore) -> None:
    acme = await rows.tenant("acme")
    data = b'{"a": 1,\n "a": 2, "n": 123456789012345678901234567890}'
    event_id = await rows.event(acme, data=data, attributes={"region": "eu"})
    event = await events.get("acme", event_id)
    assert (event.tenant_id, event.data, event.attributes) == ("acme", data, {"region": "eu"})
    assert event.create_time.timestamp() * 1_000 == event_id.int >> 80
    assert (event.subject, event.external_id, event.idempotency_key) == ("", "", "")


async def test_an_event_is_found_in_its_own_tenant_and_across_tenants_only(
    rows: Rows, events: EventStore
) -> None:
    acme = await rows.tenant("acme")
    await rows.tenant("other")
    event_id = await rows.event(acme)
    assert (await events.get("-", event_id)).tenant_id == "acme"
    for tenant_id in ("other", "unknown"):
        with pytest.raises(NotFoundError) as refused:
            await events.get(tenant_id, event_id)
        assert refused.value.reason == Reason.EVENT_NOT_FOUND


async def test_a_recreated_tenant_inherits_no_events(rows: Rows, events: EventStore) -> None:
    event_id = await rows.event(await rows.tenant("acme"))
    await rows.connection.execute("UPDATE tenants SET deleted_at = now() WHERE tenant_id = 'acme'")
    await rows.tenant("acme")
    with pytest.raises(NotFoundError):
        await events.get("acme", event_id)
    page = await events.page("acme", before=LAST_UUID, limit=9, with_data=True, max_bytes=PLENTY)
    assert page.events == []


async def test_pages_are_newest_first_and_complete(rows: Rows, events: EventStore) -> None:
    acme, other = await rows.tenant("acme"), await rows.tenant("other")
    ids = []
    for _ in range(7):
        ids.append(await rows.event(acme))
        await rows.event(other)
    seen: list[UUID] = []
    before, has_more = LAST_UUID, True
    while has_more:
        page = await events.page("acme", before=before, limit=3, with_data=False, max_bytes=PLENTY)
        seen += [event.event_id for event in page.events]
        before, has_more = seen[-1], page.has_more
    assert seen == ids[::-1]


async def test_page_across_tenants_is_sorted(rows: Rows, events: EventStore) -> None:
    acme, other = await rows.tenant("acme"), await rows.tenant("other")
    ids = [await rows.event(tenant) for tenant in (acme, other, other, acme, other)]
    page = await events.page("-", before=LAST_UUID, limit=4, with_data=False, max_bytes=PLENTY)
    assert [event.event_id for event in page.events] == ids[:0:-1]
    assert [event.tenant_id for event in page.events] == ["other", "acme", "other", "other"]
    assert page.has_more


async def test_page_with_data_is_limited_in_bytes_but_has_at_least_one_event(
    rows: Rows, events: EventStore
) -> None:
    acme = await rows.tenant("acme")
    ids = [await rows.event(acme, data=bytes(size), is_json=False) for size in (10, 90, 60, 500)]
    sizes: list[list[int]] = []
    before = LAST_UUID
    while True:
        page = await events.page("acme", before=before, limit=9, with_data=True, max_bytes=100)
        sizes.append([len(event.data) for event in page.events])
        before = page.events[-1].event_id
        if not page.has_more:
            break
    assert sizes == [[500], [60], [90, 10]]
    assert before == ids[0]
    page = await events.page("acme", before=LAST_UUID, limit=9, with_data=False, max_bytes=100)
    assert [event.data for event in page.events] == [b""] * 4
    assert not page.has_more


async def test_list_of_an_unknown_tenant_is_not_found(rows: Rows, events: EventStore) -> None:
    await rows.tenant("empty")
    page = await events.page("empty", before=LAST_UUID, limit=9, with_data=True, max_bytes=PLENTY)
    assert (page.events, page.has_more) == ([], False)
    with pytest.raises(NotFoundError) as refused:
        await events.page("unknown", before=LAST_UUID, limit=9, with_data=True, max_bytes=PLENTY)
    assert refused.value.reason == Reason.TENANT_NOT_FOUND
