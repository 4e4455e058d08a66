"""Event types: created, read, changed, archived. Global, not of a tenant; a name stays taken.

A change is decided on a version and written only over that version, and audited with it, as with
subscriptions. Schemas are stored as they are given: the API has checked them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple, NoReturn

import asyncpg

from hookline_service.domain.audit_view import event_type_view
from hookline_service.domain.errors import AbortedError, AlreadyExistsError, NotFoundError, Reason
from hookline_service.domain.event import EventType, EventTypeState
from hookline_service.domain.names import event_type_name
from hookline_service.store.audit import draft
from hookline_service.store.database import Database
from hookline_service.store.statements import Statements

SQL = Statements("event_types")

NEWEST = (datetime.max.replace(tzinfo=UTC), "")
"""Where a list begins: behind every creation time."""

_TRIES = 5


class EventTypeHead(NamedTuple):
    """An event type without its schema: what each node holds in memory of all of them."""

    name: str
    state: EventTypeState = EventTypeState.ACTIVE
    revision: int = 1
    has_schema: bool = False


class EventTypes:
    """All event types of the deployment."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, new: EventType) -> EventType:
        """Create an event type; raises `AlreadyExistsError` if the name is taken."""
        row = await self._database.fetchrow(
            SQL.create,
            new.name,
            new.description,
            new.json_schema,
            new.example_json,
            _draft(None, replace(new, etag="1")),
        )
        if row is None:
            raise AlreadyExistsError(
                f"{event_type_name(new.name)} already exists",
                Reason.EVENT_TYPE_ALREADY_EXISTS,
            )
        return _event_type_of(row)

    async def get(self, name: str) -> EventType:
        """Return an event type, archived or not; raises `NotFoundError`."""
        row = await self._database.fetchrow(SQL.get, name)
        if row is None:
            _raise_not_found(name)
        return _event_type_of(row)

    async def list_page(
        self, *, before: tuple[datetime, str] = NEWEST, limit: int
    ) -> list[EventType]:
        """Return up to `limit` of those created before (create time, name), newest first."""
        rows = await self._database.fetch(SQL.list, *before, limit)
        return [_event_type_of(row) for row in rows]

    async def heads(self) -> list[EventTypeHead]:
        """Return every event type, archived ones too, in no order and without their schemas."""
        return [
            EventTypeHead(
                row["name"], EventTypeState(row["state"]), row["revision"], row["has_schema"]
            )
            for row in await self._database.fetch(SQL.heads)
        ]

    async def schema(self, name: str) -> tuple[int, str] | None:
        """Return the revision and the JSON Schema of an event type, "" if it has none."""
        row = await self._database.fetchrow(SQL.schema, name)
        return None if row is None else (row["revision"], row["json_schema"])

    async def change(
        self,
        name: str,
        decide: Callable[[EventType], EventType],
        *,
        etag: str = "",
        check: Callable[[EventType, EventType], Awaitable[None]] | None = None,
    ) -> EventType:
        """Write what `decide` makes of the current event type; nothing where that is equal.

        `check` is awaited before the write, with what is and what would be; it raises to refuse.
        `decide` is called again if another change came first. `AbortedError`: the etag, if there
        is one, is not the current one.
        """
        for _ in range(_TRIES):
            seen = await self.get(name)
            if etag and etag != seen.etag:
                raise AbortedError(
                    f"{event_type_name(name)} was changed since its etag was read: read it again",
                    Reason.ETAG_MISMATCH,
                )
            wanted = decide(seen)
            if wanted == seen:
                return seen
            if check is not None:
                await check(seen, wanted)
            row = await self._database.fetchrow(
                SQL.update,
                name,
                int(seen.etag),
                wanted.description,
                wanted.json_schema,
                wanted.example_json,
                wanted.state.value,
                _draft(seen, _next(seen, wanted)),
            )
            if row is not None:
                return _event_type_of(row)
        raise AbortedError(
            f"{event_type_name(name)} is being changed by others: repeat",
            Reason.CONCURRENT_CHANGE,
        )

    async def archive(self, name: str, *, etag: str = "") -> EventType:
        """Close an event type for publishing, for good; an archived one stays as it is."""
        return await self.change(
            name, lambda seen: replace(seen, state=EventTypeState.ARCHIVED), etag=etag
        )


def _next(seen: EventType, wanted: EventType) -> EventType:
    """What the statement `update` makes of it."""
    is_revised = wanted.json_schema != seen.json_schema
    return replace(wanted, revision=seen.revision + is_revised, etag=str(int(seen.etag) + 1))


def _draft(before: EventType | None, after: EventType) -> dict[str, str]:
    return draft(
        event_type_name(after.name),
        before=event_type_view(before) if before else None,
        after=event_type_view(after),
    )


def _event_type_of(row: asyncpg.Record) -> EventType:
    return EventType(
        name=row["name"],
        description=row["description"],
        json_schema=row["json_schema"],
        proto_message=row["proto_message"],
        example_json=row["example_json"],
        state=EventTypeState(row["state"]),
        revision=row["revision"],
        create_time=row["create_time"],
        update_time=row["update_time"],
        etag=str(row["version"]),
    )


def _raise_not_found(name: str) -> NoReturn:
    raise NotFoundError(f"there is no {event_type_name(name)}", Reason.EVENT_TYPE_NOT_FOUND)
