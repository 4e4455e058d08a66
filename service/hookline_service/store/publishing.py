"""The statements of publishing: one for each group, which stores nothing if a key is taken.

Holds rows and SQL only. Calls and their answers belong to `pipeline/publishing/group.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from uuid import UUID

import asyncpg

from hookline_service.store.database import (
    Connection,
    OutcomeUnknownError,
    RejectedError,
    Session,
    history_changed,
)
from hookline_service.store.event_rows import EventRow
from hookline_service.store.routes import IndexReader
from hookline_service.store.statements import Statements

SQL = Statements("publishing")

_REFUSED_ITSELF = "HK001"
_IDS_ARE_THERE = "23505"
LOCK_TIMEOUT_S = 0.25
NO_HISTORY: Final = UUID(int=0)
"""No database is on it: a session refuses statements that name it."""
_EVENT_COLUMNS = 16
_DELIVERY_COLUMNS = 8
_KEY_COLUMNS = 5

DeliveryRow = tuple["UUID", int, float, int, "UUID", "UUID", "UUID", int | None]
KeyRow = tuple["UUID", str, "UUID", bytes, int]
Key = tuple["UUID", str]


@dataclass(slots=True)
class PublishRows:
    """The rows of one group, laid out for UNNEST.

    `events`: (tenant_uid, event_id, occur_time, event_type_revision, is_json, type, source,
    content_type, subject, external_id, data_schema, idempotency_key, ordering_key, attributes,
    data, trace_context).
    `deliveries`: (tenant_uid, bucket, delay_s, event's place from 1, delivery_id, subscription_uid,
    event_id, hash of its ordering key where the subscription is ordered).
    `keys`: (tenant_uid, key, event_id, fingerprint, delivery_count).
    """

    history_id: UUID | None = None
    """The history on which the epochs were read; None: there are none. `NO_HISTORY`: several."""
    epochs: dict[UUID, int] = field(default_factory=dict)
    events: list[EventRow] = field(default_factory=list)
    deliveries: list[DeliveryRow] = field(default_factory=list)
    keys: list[KeyRow] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TakenKey:
    """The event that an idempotency key stands for."""

    event_id: UUID
    fingerprint: bytes
    delivery_count: int


class LookUp(NamedTuple):
    """The result of looking up a statement whose answer was lost, by tenant."""

    stored: set[UUID]
    """Tenants whose events are stored."""
    locked: set[UUID]
    """Tenants that another transaction has locked: whether their events are stored is not known,
    and the statement may still store them. The other tenants' events never will be."""


def _lock_timeout_ms(lock_timeout_s: float) -> int:
    """Return a value of `lock_timeout`, in milliseconds; 0 would mean no timeout."""
    return max(1, round(lock_timeout_s * 1_000))


def _setting_of(lock_timeout_s: float) -> str:
    return str(_lock_timeout_ms(lock_timeout_s))


def _columns(rows: Sequence[tuple[object, ...]], width: int) -> list[Sequence[object]]:
    return list(zip(*rows, strict=True)) if rows else [()] * width


def _by_place(
    columns: list[Sequence[object]], place_of: Mapping[UUID, int]
) -> list[Sequence[object]]:
    """The columns of `publish`, which names a row's tenant by its place among all tenants."""
    return [[place_of[uid] for uid in columns[0]], *columns[1:]]  # type: ignore[index]


def _passed(rows: PublishRows, found: Sequence[asyncpg.Record]) -> set[UUID]:
    return {
        uid for uid, has_passed in zip(rows.epochs, found[0]["passed"], strict=True) if has_passed
    }


class PublishStore:
    """Writes groups, on a connection of its own."""

    def __init__(
        self, session: Session, key_window_s: float, lock_timeout_s: float = LOCK_TIMEOUT_S
    ) -> None:
        """`lock_timeout_s`: how long a statement waits for another transaction's lock."""
        self._session = session
        self._key_window_s = key_window_s
        self._lock_timeout_ms = _lock_timeout_ms(lock_timeout_s)

    async def write(self, rows: PublishRows) -> set[UUID] | None:
        """Store a group, and return the tenants that passed; None: a key is taken, none stored."""
        try:
            found = await self._session.fetch(
                SQL.publish, *self._arguments(rows), history_id=rows.history_id
            )
        except RejectedError as error:
            _check_is_taken(error)
            return None
        return _passed(rows, found)

    async def write_held(
        self,
        tenant_uids: Iterable[UUID],
        place: Callable[[IndexReader], Awaitable[PublishRows]],
        lock_timeout_s: float,
    ) -> set[UUID] | None:
        """Store rows that `place` makes while no epoch of the tenants can change.

        Waits `lock_timeout_s` at most for changes under way; then raises `LockTimeoutError`.
        """
        try:
            async with self._session.transaction() as connection:
                await connection.execute(SQL.limit_lock_waits, _setting_of(lock_timeout_s))
                await connection.execute(SQL.hold_tenants, list(tenant_uids))
                rows = await place(_HeldReader(connection, self._session.history_id))
                if rows.history_id != self._session.history_id:
                    raise history_changed()
                found = await connection.fetch(SQL.publish, *self._arguments(rows))
        except RejectedError as error:
            _check_is_taken(error)
            return None
        return _passed(rows, found)

    async def find_taken(self, rows: PublishRows) -> dict[Key, TakenKey]:
        """Return those of a group's keys that are taken now."""
        found = await self._session.fetch(
            SQL.find_taken_keys, *_columns(rows.keys, _KEY_COLUMNS)[:2], history_id=rows.history_id
        )
        return {(row[0], row[1]): TakenKey(row[2], row[3], row[4]) for row in found}

    def _arguments(self, rows: PublishRows) -> list[object]:
        place_of = {uid: place for place, uid in enumerate(rows.epochs, start=1)}
        return [
            list(rows.epochs),
            list(rows.epochs.values()),
            *_by_place(_columns(rows.events, _EVENT_COLUMNS), place_of),
            *_by_place(_columns(rows.deliveries, _DELIVERY_COLUMNS), place_of),
            self._key_window_s,
            *_by_place(_columns(rows.keys, _KEY_COLUMNS), place_of),
            self._lock_timeout_ms,
        ]

    async def find_stored(
        self, tenant_uids: Collection[UUID], witnesses: Mapping[UUID, UUID]
    ) -> LookUp:
        """Raise the tenants' epochs, so that a lost statement stores nothing more, and look it up.

        `tenant_uids` are all tenants of the statement; `witnesses` has one of its events for each
        tenant that had any. Waits for no lock: see `LookUp.locked`.
        """
        rows = await self._session.fetch(SQL.fence, list(tenant_uids))
        locked = {row["tenant_uid"] for row in rows}
        free = {uid: event_id for uid, event_id in witnesses.items() if uid not in locked}
        return LookUp(await self._find_events(free), locked)

    async def wait_and_find_stored(
        self, tenant_uid: UUID, witness: UUID | None, lock_timeout_s: float
    ) -> bool:
        """Raise the epoch of one tenant, and return whether a lost statement stored its events.

        Waits `lock_timeout_s` at most for locks on the tenant; then raises `LockTimeoutError`.
        """
        async with self._session.transaction() as connection:
            await connection.execute(SQL.limit_lock_waits, _setting_of(lock_timeout_s))
            await connection.execute(SQL.fence_waiting, tenant_uid)
        return bool(witness and await self._find_events({tenant_uid: witness}))

    async def _find_events(self, witnesses: Mapping[UUID, UUID]) -> set[UUID]:
        if not witnesses:
            return set()
        rows = await self._session.fetch(SQL.find_events, list(witnesses), list(witnesses.values()))
        return {row["tenant_uid"] for row in rows}

    async def close(self) -> None:
        """Close the connection."""
        await self._session.close()


class _HeldReader(NamedTuple):
    """Reads in the transaction that has locked the tenants' epochs."""

    connection: Connection
    history_id: UUID | None

    async def fetch(self, statement: str, *args: object) -> list[asyncpg.Record]:
        """Return the rows of one statement."""
        return await self.connection.fetch(statement, *args)


def _check_is_taken(error: RejectedError) -> None:
    """Raise the error, unless the statement refused to run because a key is taken.

    Ids that exist already were stored by this very statement: the service sends it once, but a
    pooler or the network may deliver it twice. It is looked up like a lost answer.
    """
    if error.sqlstate == _IDS_ARE_THERE:
        raise OutcomeUnknownError(str(error)) from error
    if error.sqlstate != _REFUSED_ITSELF:
        raise error
