"""Reads of the hot table for lanes: sweeps, refills, the change log; cancels of deleted lanes.

Lanes of ordered subscriptions are read by ordering key: the earliest row of some keys, or of each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import asyncpg

from hookline_service.domain.delivery import DeliveryState, Trigger, advance
from hookline_service.domain.event import Event
from hookline_service.domain.ids import first_uuid_of
from hookline_service.domain.instants import from_unix_ms
from hookline_service.domain.ordering import LAST_KEY_HASH
from hookline_service.store.database import Session
from hookline_service.store.event_rows import event_of
from hookline_service.store.statements import Statements

SQL = Statements("lanes")
ORDER_SQL = Statements("ordering")

CHANGES_PER_PAGE = 2_000
"""How many changes one statement reads."""

KEYS_PER_PAGE = 5_000
"""How many keys one statement walks through, some microseconds each; other lanes wait for it."""
KEYS_PER_PAGE_MIN = 500
"""How many keys of each lane it walks through at least, however many lanes share it."""

SMALL_DATA_BYTES = 4_096
"""Events with up to so much data are read with their rows, larger ones apart."""

EventKey = tuple["UUID", "UUID"]
"""(tenant uid, event id)."""


@dataclass(frozen=True, slots=True)
class LaneHead:
    """A due row of a lane; in a walk through lanes, its earliest."""

    bucket: int
    subscription_uid: UUID
    delivery_id: UUID
    tenant_uid: UUID | None
    """None: the row is not due, or its subscription is paused or disabled; it is returned because
    it is the last one."""
    is_last: bool
    """Whether the bucket's limit was reached at this row: there may be more."""


@dataclass(frozen=True, slots=True)
class RefillRequest:
    """A lane to read, and how many deliveries it may take."""

    bucket: int
    subscription_uid: UUID
    tenant_uid: UUID
    limit: int


@dataclass(slots=True)
class PendingRow:
    """A due row as a refill read it. Treated as immutable."""

    subscription_uid: UUID
    delivery_id: UUID
    event_id: UUID
    version: int
    attempt_count: int
    attempts_base: int | None
    attempts_until: int | None
    data_bytes: int
    key_hash: int | None = None
    """The hash of its ordering key, where its subscription is ordered."""
    event: Event | None = None
    """None: it is to be read by `LaneStore.events`."""


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """An ordering key of a lane to read."""

    bucket: int
    subscription_uid: UUID
    tenant_uid: UUID
    key_hash: int


@dataclass(frozen=True, slots=True)
class PageRequest:
    """A page of a lane's ordering keys to read, and how many deliveries the lane may take."""

    bucket: int
    subscription_uid: UUID
    tenant_uid: UUID
    limit: int
    from_hash: int


@dataclass(frozen=True, slots=True)
class KeyHead:
    """The earliest pending delivery of a key."""

    row: PendingRow
    key_hash: int
    due_in_s: float
    """Seconds until it is due; zero or less: it is due."""


@dataclass(slots=True)
class Page:
    """The result of reading a page of a lane's ordering keys."""

    rows: list[PendingRow] = field(default_factory=list)
    next_hash: int | None = None
    """The hash at which the walk continues; None: it reached the end."""


@dataclass(frozen=True, slots=True)
class Change:
    """An entry of the change log: a row that bucket owners must read again."""

    kind: str
    bucket: int | None
    subscription_uid: UUID | None
    delivery_id: UUID | None
    key_hash: int | None = None
    """The hash of a pending delivery's ordering key, where its subscription is ordered."""


@dataclass(frozen=True, slots=True)
class ChangeCursor:
    """The changes that were read: all that a snapshot sees, and some that a later one sees."""

    seen: str
    """A `pg_snapshot`: every change that it sees was read."""
    until: str | None = None
    """The later snapshot, while the changes that became visible up to it are read in pages; None:
    no page is left."""
    after: tuple[str, int] = ("0", 0)
    """(xid, change_id) of the last change of the previous page."""


class LaneStore:
    """Statements for lanes, on a session of its own."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def open(self) -> None:
        """Connect, where the next statement does not depend on what an earlier connection read."""
        await self._session.open()

    async def heads(self, after: Mapping[int, UUID], most: int) -> list[LaneHead]:
        """Return the earliest due row of each lane of some buckets that is not paused or disabled.

        At most `most` lanes of a bucket are visited, in the order of their subscriptions' uids,
        beginning after the uid given for the bucket.
        """
        rows = await self._session.fetch(SQL.heads, list(after), list(after.values()), most)
        return [LaneHead(*row) for row in rows]

    async def arrivals(self, buckets: Iterable[int], since_ms: int, most: int) -> list[LaneHead]:
        """Return rows that were published, or came due, since `since_ms`: one for each lane.

        Lanes that are paused or disabled are left out. At most `most` rows of each kind and bucket
        are read.
        """
        rows = await self._session.fetch(
            SQL.arrivals, list(buckets), first_uuid_of(since_ms), from_unix_ms(since_ms), most
        )
        return [LaneHead(*row) for row in rows]

    async def tenants(self, subscription_uids: Sequence[UUID]) -> dict[UUID, UUID]:
        """Return the tenants of subscriptions, including deleted ones."""
        rows = await self._session.fetch(SQL.tenants, subscription_uids)
        return {row[0]: row[1] for row in rows}

    async def refill(
        self, requests: Sequence[RefillRequest], in_memory: Iterable[UUID]
    ) -> list[PendingRow]:
        """Return due rows that are not in memory, up to each lane's limit, with small events."""
        rows = await self._session.fetch(
            SQL.refill,
            [request.bucket for request in requests],
            [request.subscription_uid for request in requests],
            [request.tenant_uid for request in requests],
            [request.limit for request in requests],
            list(in_memory),
            SMALL_DATA_BYTES,
        )
        events: dict[UUID, Event] = {}
        return [_with_event(row, events) for row in rows]

    async def first_of_keys(self, requests: Sequence[KeyRequest]) -> list[KeyHead]:
        """Return the earliest pending delivery of each key that has one."""
        rows = await self._session.fetch(
            ORDER_SQL.heads,
            [request.bucket for request in requests],
            [request.subscription_uid for request in requests],
            [request.tenant_uid for request in requests],
            [request.key_hash for request in requests],
        )
        return [KeyHead(_pending_of(row), row["key_hash"], row["due_in_s"]) for row in rows]

    async def first_of_lanes(
        self, requests: Sequence[PageRequest], in_memory: Iterable[tuple[UUID, int]]
    ) -> dict[UUID, Page]:
        """Return a page for each subscription: due rows that are the earliest of their key.

        `in_memory` lists keys, by subscription, that are left out.
        """
        uids, hashes = list(zip(*in_memory, strict=True)) or [(), ()]
        found = await self._session.fetch(
            ORDER_SQL.page,
            [request.bucket for request in requests],
            [request.subscription_uid for request in requests],
            [request.tenant_uid for request in requests],
            [request.limit for request in requests],
            [request.from_hash for request in requests],
            max(KEYS_PER_PAGE // len(requests), KEYS_PER_PAGE_MIN),
            uids,
            hashes,
        )
        rows_of: dict[UUID, list[asyncpg.Record]] = defaultdict(list)
        for row in found:
            rows_of[row["subscription_uid"]].append(row)
        return {
            request.subscription_uid: _page_of(rows_of[request.subscription_uid])
            for request in requests
        }

    async def events(self, keys: Sequence[EventKey]) -> dict[UUID, Event]:
        """Return events by id, without those that no longer exist."""
        rows = await self._session.fetch(
            SQL.events, [key[0] for key in keys], [key[1] for key in keys]
        )
        return {row["event_id"]: event_of(row) for row in rows}

    async def change_cursor(self) -> ChangeCursor:
        """Return a cursor behind every change that is visible now."""
        rows = await self._session.fetch(SQL.current_snapshot)
        return ChangeCursor(rows[0][0])

    async def changes(
        self, cursor: ChangeCursor, limit: int = CHANGES_PER_PAGE
    ) -> tuple[list[Change], ChangeCursor]:
        """Return up to `limit` changes after a cursor, each once, and the next cursor.

        There may be more pages where the next cursor's `until` is set.
        """
        rows = await self._session.fetch(
            SQL.changes, cursor.seen, cursor.until, *cursor.after, limit
        )
        found = [
            Change(
                row["kind"],
                row["bucket"],
                row["subscription_uid"],
                row["delivery_id"],
                row["key_hash"],
            )
            for row in rows
            if row["change_id"] is not None
        ]
        until: str = cursor.until or rows[0]["snapshot"]
        if len(found) < limit:
            return found, ChangeCursor(until)
        return found, ChangeCursor(cursor.seen, until, (rows[-1]["xid"], rows[-1]["change_id"]))

    async def ping(self) -> None:
        """Raise where the database cannot be read."""
        await self._session.fetch(SQL.ping)

    async def cancel_deleted(self, bucket: int, subscription_uid: UUID, limit: int) -> int:
        """Cancel up to `limit` pending deliveries of a deleted subscription; return how many."""
        state = advance(DeliveryState.PENDING, Trigger.SUBSCRIPTION_DELETED)
        rows = await self._session.fetch(SQL.cancel_deleted, bucket, subscription_uid, limit, state)
        return len(rows)

    async def close(self) -> None:
        """Close the connection."""
        await self._session.close()


def _with_event(row: asyncpg.Record, events: dict[UUID, Event]) -> PendingRow:
    """Return the row with its event; an event that several rows share is created once."""
    event = events.get(row["event_id"])
    if event is None and row["data"] is not None:
        event = events[row["event_id"]] = event_of(row)
    return PendingRow(
        row[0], row[1], row[2], row[3], row[4], row[5], row[6], row["data_bytes"], event=event
    )


def _page_of(rows: Sequence[asyncpg.Record]) -> Page:
    last = rows[-1]["key_hash"] if rows else None
    free = [_pending_of(row) for row in rows if row["is_free"] and row["data_bytes"] is not None]
    return Page(free, None if last in {None, LAST_KEY_HASH} else last + 1)


def _pending_of(row: asyncpg.Record) -> PendingRow:
    return PendingRow(
        row["subscription_uid"],
        row["delivery_id"],
        row["event_id"],
        row["version"],
        row["attempt_count"],
        row["attempts_base"],
        row["attempts_until"],
        row["data_bytes"],
        row["key_hash"],
    )
