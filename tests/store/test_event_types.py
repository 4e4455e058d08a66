"""Stored event types: revisions, etags, and the change log that every node reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from hookline_service.domain.errors import AbortedError, AlreadyExistsError, NotFoundError, Reason
from hookline_service.domain.event import EventType, EventTypeState
from hookline_service.store.event_types import NEWEST, EventTypeHead
from tests.store.control_plane import ControlPlane, control_plane


@pytest.fixture
async def plane(database_url: str) -> AsyncIterator[ControlPlane]:
    async with control_plane(database_url) as plane:
        yield plane


def order(**fields: str) -> EventType:
    return EventType(name="order.created", **fields)  # type: ignore[arg-type]  # texts only


async def changes(plane: ControlPlane) -> int:
    return len(await plane.changes("EVENT_TYPE"))


async def test_event_type_is_read_as_created(plane: ControlPlane) -> None:
    made = await plane.event_types.create(
        order(description="An order ☂", json_schema='{"type":"object"}', example_json="{}")
    )
    assert made == await plane.event_types.get("order.created")
    assert (made.revision, made.state) == (1, EventTypeState.ACTIVE)
    assert (made.json_schema, made.example_json) == ('{"type":"object"}', "{}")
    assert made.create_time == made.update_time
    assert await changes(plane) == 1
    with pytest.raises(NotFoundError) as refused:
        await plane.event_types.get("order.craeted")
    assert refused.value.reason == Reason.EVENT_TYPE_NOT_FOUND


async def test_name_of_an_event_type_is_never_reused(plane: ControlPlane) -> None:
    asked = [plane.event_types.create(order()) for _ in range(8)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(answer, AlreadyExistsError) for answer in answers) == 7
    await plane.event_types.archive("order.created")
    with pytest.raises(AlreadyExistsError) as refused:
        await plane.event_types.create(order())
    assert refused.value.reason == Reason.EVENT_TYPE_ALREADY_EXISTS
    assert await changes(plane) == 2


async def test_only_a_changed_schema_raises_the_revision(plane: ControlPlane) -> None:
    made = await plane.event_types.create(order(json_schema="true"))
    described = await plane.event_types.change(
        "order.created", lambda seen: replace(seen, description="new", example_json="1")
    )
    assert (described.revision, described.description) == (1, "new")
    other = await plane.event_types.change(
        "order.created", lambda seen: replace(seen, json_schema="{}")
    )
    gone = await plane.event_types.change(
        "order.created", lambda seen: replace(seen, json_schema="")
    )
    assert [other.revision, gone.revision] == [2, 3]
    assert len({made.etag, described.etag, other.etag, gone.etag}) == 4
    assert await changes(plane) == 4


async def test_equal_update_is_not_a_change(plane: ControlPlane) -> None:
    made = await plane.event_types.create(order())
    assert await plane.event_types.change("order.created", lambda seen: seen) == made
    archived = await plane.event_types.archive("order.created")
    assert archived.state is EventTypeState.ARCHIVED
    assert await plane.event_types.archive("order.created") == archived
    assert await changes(plane) == 2


async def test_a_stale_etag_is_rejected_and_a_current_one_accepted(plane: ControlPlane) -> None:
    made = await plane.event_types.create(order())
    changed = await plane.event_types.change(
        "order.created", lambda seen: replace(seen, description="1"), etag=made.etag
    )
    with pytest.raises(AbortedError) as refused:
        await plane.event_types.archive("order.created", etag=made.etag)
    assert refused.value.reason == Reason.ETAG_MISMATCH
    await plane.event_types.archive("order.created", etag=changed.etag)


async def test_concurrent_changes_are_all_stored(plane: ControlPlane) -> None:
    await plane.event_types.create(order())

    async def add(letter: str) -> None:
        await plane.event_types.change(
            "order.created", lambda seen: replace(seen, description=seen.description + letter)
        )

    await asyncio.gather(*[add(letter) for letter in "abcd"])
    assert sorted((await plane.event_types.get("order.created")).description) == list("abcd")


async def test_pages_are_newest_first_even_with_equal_times(plane: ControlPlane) -> None:
    for n in range(5):
        await plane.event_types.create(EventType(name=f"t{n}"))
    await plane.rows("UPDATE event_types SET create_time = '2026-01-01Z' WHERE name < 't3'")
    found: list[EventType] = []
    before = NEWEST
    while page := await plane.event_types.list_page(before=before, limit=2):
        found += page
        assert page[-1].create_time is not None
        before = (page[-1].create_time, page[-1].name)
    assert [event_type.name for event_type in found] == ["t4", "t3", "t2", "t1", "t0"]


async def test_heads_omit_schemas_and_a_schema_has_its_revision(plane: ControlPlane) -> None:
    await plane.event_types.create(EventType(name="plain"))
    await plane.event_types.create(EventType(name="typed", json_schema="{}"))
    await plane.event_types.change("typed", lambda seen: replace(seen, json_schema="true"))
    await plane.event_types.archive("plain")
    assert set(await plane.event_types.heads()) == {
        EventTypeHead("plain", EventTypeState.ARCHIVED, 1, has_schema=False),
        EventTypeHead("typed", EventTypeState.ACTIVE, 2, has_schema=True),
    }
    assert await plane.event_types.schema("typed") == (2, "true")
    assert await plane.event_types.schema("plain") == (1, "")
    assert await plane.event_types.schema("other") is None
