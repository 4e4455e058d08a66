"""What memory reads of the hot table: the sweep, refills, changes; the rows of deleted lanes.

Lanes of ordered subscriptions are read by their keys: the first of some, or the first of each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import asyncpg

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
"""How many changes are in memory at once."""

KEYS_PER_PAGE = 5_000
"""How many keys one statement walks through, some microseconds each: other lanes wait for it."""
KEYS_PER_PAGE_MIN = 500
"""How many of a lane it does, however many lanes share it."""

SMALL_DATA_BYTES = 4_096
"""Events with no more data are read with their rows."""

EventKey = tuple["UUID", "UUID"]
"""(tenant uid, event id)."""


@dataclass(frozen=True, slots=True)
class LaneHead:
    """A due row of a lane, its earliest where lanes are walked."""

    bucket: int
    subscription_uid: UUID
    delivery_id: UUID
    tenant_uid: UUID | None
    """None: it is not due, or its subscription is held; returned because it is the last."""
    is_last: bool
    """As many of its bucket were looked at as may be: there may be more."""


@dataclass(frozen=True, slots=True)
class RefillWish:
    """A lane that has room, and for how many deliveries."""

    bucket: int
    subscription_uid: UUID
    tenant_uid: UUID
    wanted: int


@dataclass(slots=True)
class PendingRow:
    """A due row as a refill found it. Treated as immutable."""

    subscription_uid: UUID
    delivery_id: UUID
    event_id: UUID
    version: int
    attempt_count: int
    attempts_base: int | None
    attempts_until: int | None
    data_bytes: int
    key_hash: int | None = None
    """Of its ordering key, where its subscription is ordered."""
    event: Event | None = None
    """None: it is to be read apart."""


@dataclass(frozen=True, slots=True)
class KeyWish:
    """One key of a lane."""

    bucket: int
    subscription_uid: UUID
    tenant_uid: UUID
    key_hash: int


@dataclass(frozen=True, slots=True)
class PageWish:
    """All keys of a lane from a hash on, and how many deliveries it has room for."""

    bucket: int
    subscription_uid: UUID
    tenant_uid: UUID
    wanted: int
    from_hash: int


@dataclass(frozen=True, slots=True)
class KeyHead:
    """The earliest pending delivery of a key."""

    row: PendingRow
    key_hash: int
    due_in_s: float
    """Below zero: it is due."""


@dataclass(slots=True)
class Page:
    """What a walk through a lane's keys came to."""

    rows: list[PendingRow] = field(default_factory=list)
    next_hash: int | None = None
    """Where the walk goes on; None: it came to the end."""


@dataclass(frozen=True, slots=True)
class Change:
    """Something that owners must look at again."""

    kind: str
    bucket: int | None
    subscription_uid: UUID | None
    delivery_id: UUID | None
    key_hash: int | None = None
    """Of a pending delivery's ordering key, where its subscription is ordered."""


@dataclass(frozen=True, slots=True)
class ChangeCursor:
    """Which changes have been read: all that a snapshot sees, and some that a later one does."""

    seen: str
    """A `pg_snapshot`: every change that it sees has been read."""
    until: str | None = None
    """The later snapshot, while what became visible up to it is read in pages; None: no page is
    left."""
    after: tuple[str, int] = ("0", 0)
    """(xid, change_id) of the last change of the page before."""


class LaneStore:
    """Reads for lanes, on a connection of its own."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def open(self) -> None:
        """Connect, where what is to be run next was not made from what was read before."""
        await self._session.open()

    async def heads(self, after: Mapping[int, UUID], most: int) -> list[LaneHead]:
        """Return the earliest due row of each lane that is not held, of some buckets.

        At most `most` lanes of a bucket are visited, in the order of their subscriptions' uids,
        from the one after that given on.
        """
        rows = await self._session.fetch(SQL.heads, list(after), list(after.values()), most)
        return [LaneHead(*row) for row in rows]

    async def arrivals(self, buckets: Iterable[int], since_ms: int, most: int) -> list[LaneHead]:
        """Return due rows of lanes that are not held, one a lane, that came since a moment.

        Those are the rows published since, and those for later that came due since. At most `most`
        of each kind and bucket are looked at.
        """
        rows = await self._session.fetch(
            SQL.arrivals, list(buckets), first_uuid_of(since_ms), from_unix_ms(since_ms), most
        )
        return [LaneHead(*row) for row in rows]

    async def tenants(self, subscription_uids: Sequence[UUID]) -> dict[UUID, UUID]:
        """Return the tenants of subscriptions, deleted ones too."""
        rows = await self._session.fetch(SQL.tenants, subscription_uids)
        return {row[0]: row[1] for row in rows}

    async def refill(
        self, wishes: Sequence[RefillWish], in_memory: Iterable[UUID]
    ) -> list[PendingRow]:
        """What is due in the lanes and not in memory, up to what each wants, with small events."""
        rows = await self._session.fetch(
            SQL.refill,
            [wish.bucket for wish in wishes],
            [wish.subscription_uid for wish in wishes],
            [wish.tenant_uid for wish in wishes],
            [wish.wanted for wish in wishes],
            list(in_memory),
            SMALL_DATA_BYTES,
        )
        events: dict[UUID, Event] = {}
        return [_with_event(row, events) for row in rows]

    async def first_of_keys(self, wishes: Sequence[KeyWish]) -> list[KeyHead]:
        """The earliest pending delivery of each key that has any."""
        rows = await self._session.fetch(
            ORDER_SQL.heads,
            [wish.bucket for wish in wishes],
            [wish.subscription_uid for wish in wishes],
            [wish.tenant_uid for wish in wishes],
            [wish.key_hash for wish in wishes],
        )
        return [KeyHead(_pending_of(row), row["key_hash"], row["due_in_s"]) for row in rows]

    async def first_of_lanes(
        self, wishes: Sequence[PageWish], in_memory: Iterable[tuple[UUID, int]]
    ) -> dict[UUID, Page]:
        """What is due first of its key, and of no key in memory; by the lane's subscription."""
        uids, hashes = list(zip(*in_memory, strict=True)) or [(), ()]
        found = await self._session.fetch(
            ORDER_SQL.page,
            [wish.bucket for wish in wishes],
            [wish.subscription_uid for wish in wishes],
            [wish.tenant_uid for wish in wishes],
            [wish.wanted for wish in wishes],
            [wish.from_hash for wish in wishes],
            max(KEYS_PER_PAGE // len(wishes), KEYS_PER_PAGE_MIN),
            uids,
            hashes,
        )
        rows_of: dict[UUID, list[asyncpg.Record]] = defaultdict(list)
        for row in found:
            rows_of[row["subscription_uid"]].append(row)
        return {wish.subscription_uid: _page_of(rows_of[wish.subscription_uid]) for wish in wishes}

    async def events(self, keys: Sequence[EventKey]) -> dict[UUID, Event]:
        """Events by id; one that is gone is missing."""
        rows = await self._session.fetch(
            SQL.events, [key[0] for key in keys], [key[1] for key in keys]
        )
        return {row["event_id"]: event_of(row) for row in rows}

    async def change_cursor(self) -> ChangeCursor:
        """Return the cursor from which on changes are to be read; all before it are visible now."""
        rows = await self._session.fetch(SQL.current_snapshot)
        return ChangeCursor(rows[0][0])

    async def changes(
        self, cursor: ChangeCursor, limit: int = CHANGES_PER_PAGE
    ) -> tuple[list[Change], ChangeCursor]:
        """Return up to `limit` changes after a cursor, each once, and the next cursor.

        A next cursor with `until` set: there may be more pages.
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
        """Cancel up to `limit` rows of a deleted subscription; how many there were."""
        return len(await self._session.fetch(SQL.cancel_deleted, bucket, subscription_uid, limit))

    async def close(self) -> None:
        """Close the connection."""
        await self._session.close()


def _with_event(row: asyncpg.Record, events: dict[UUID, Event]) -> PendingRow:
    """The row, and its event; one that several are of is made once."""
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
