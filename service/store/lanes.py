"""What memory reads of the hot table: the sweep, refills, changes; the rows of deleted lanes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.store.event_rows import event_of
from service.store.statements import Statements

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

    from service.domain.event import Event
    from service.store.database import Session

SQL = Statements("lanes")

EventKey = tuple["UUID", "UUID"]
"""(tenant uid, event id)."""


@dataclass(frozen=True, slots=True)
class LaneHead:
    """The earliest due row of a lane."""

    bucket: int
    subscription_uid: UUID
    delivery_id: UUID


@dataclass(frozen=True, slots=True)
class RefillWish:
    """A lane that has room, and for how many deliveries."""

    bucket: int
    subscription_uid: UUID
    tenant_uid: UUID
    wanted: int


@dataclass(frozen=True, slots=True)
class PendingRow:
    """A due row as a refill found it."""

    subscription_uid: UUID
    delivery_id: UUID
    event_id: UUID
    version: int
    attempt_count: int
    attempts_base: int | None
    attempts_until: int | None
    data_bytes: int


@dataclass(frozen=True, slots=True)
class Change:
    """Something that owners must look at again."""

    change_id: int
    kind: str
    bucket: int | None
    subscription_uid: UUID | None
    delivery_id: UUID | None


class LaneStore:
    """Reads for lanes, on a connection of its own."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def heads(self, buckets: Iterable[int]) -> list[LaneHead]:
        """The earliest due row of every lane of the buckets."""
        rows = await self._session.fetch(SQL.heads, list(buckets))
        return [LaneHead(row[0], row[1], row[2]) for row in rows]

    async def refill(
        self, wishes: Sequence[RefillWish], in_memory: Iterable[UUID]
    ) -> list[PendingRow]:
        """What is due in the lanes and not in memory, up to what each wants."""
        rows = await self._session.fetch(
            SQL.refill,
            [wish.bucket for wish in wishes],
            [wish.subscription_uid for wish in wishes],
            [wish.tenant_uid for wish in wishes],
            [wish.wanted for wish in wishes],
            list(in_memory),
        )
        return [PendingRow(*row.values()) for row in rows]

    async def events(self, keys: Sequence[EventKey]) -> dict[UUID, Event]:
        """Events by id; one that is gone is missing."""
        rows = await self._session.fetch(
            SQL.events, [key[0] for key in keys], [key[1] for key in keys]
        )
        return {row["event_id"]: event_of(row) for row in rows}

    async def change_cursor(self) -> str:
        """Where to begin reading changes: everything before is visible to whoever reads now."""
        rows = await self._session.fetch(SQL.change_cursor)
        return str(rows[0][0])

    async def changes(self, cursor: str) -> tuple[list[Change], str]:
        """The changes since a cursor, and the next cursor."""
        rows = await self._session.fetch(SQL.changes, cursor)
        found = [
            Change(row[0], row[1], row[2], row[3], row[4]) for row in rows if row[0] is not None
        ]
        return found, rows[0]["next_cursor"]

    async def cancel_deleted(self, bucket: int, subscription_uid: UUID, limit: int) -> int:
        """Cancel up to `limit` rows of a deleted subscription; how many there were."""
        return len(await self._session.fetch(SQL.cancel_deleted, bucket, subscription_uid, limit))

    async def close(self) -> None:
        """Close the connection."""
        await self._session.close()
