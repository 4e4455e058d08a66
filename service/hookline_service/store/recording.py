"""Writes of the recorder: the outcomes of many lanes in one statement, behind the fence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from uuid import UUID

from hookline_service.domain.attempt import AttemptRecord
from hookline_service.domain.delivery import DeliveryState
from hookline_service.domain.instants import from_unix_us
from hookline_service.store.audit import SQL as AUDIT
from hookline_service.store.database import Connection, Session
from hookline_service.store.statements import Statements
from hookline_service.store.subscription_audit import disabling
from hookline_service.store.subscription_rows import subscription_of

SQL = Statements("recording")
_READ = Statements("subscriptions").read

_FINISHED_COLUMNS = 14
_RESCHEDULED_COLUMNS = 13

Row = tuple[object, ...]

RowKey = tuple[int, UUID, int]
"""Bucket, delivery id, and the version that the move was decided on."""


@dataclass(frozen=True, slots=True)
class Disabling:
    """A subscription that the engine disables, with the reason."""

    subscription_uid: UUID
    reason: str
    message: str
    url: str
    """The URL that failed; a subscription whose target was changed since is not disabled."""


@dataclass(slots=True)
class Consequences:
    """Changes of subscriptions in the transaction of a batch, in this order."""

    recovered: list[UUID] = field(default_factory=list)
    """Subscriptions with their first success after failures."""
    failing: list[UUID] = field(default_factory=list)
    """Subscriptions with their first failure after a success."""
    disabling: list[Disabling] = field(default_factory=list)
    disable_after_s: float = 0.0
    """Disabling for failures also requires `failing_since` in the database to be this long ago."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """The result of a batch."""

    matched: AbstractSet[UUID]
    """Deliveries whose rows still had the version of the record."""
    disabled: AbstractSet[UUID]
    """Subscriptions that were disabled."""


@dataclass(slots=True)
class OutcomeRows:
    """The rows of one batch, in the order of the parameters of `record`.

    `finished`: (bucket, delivery_id, version, tenant_uid, state, http_status, latency_us, url,
    remote_address, outcome, start_time, error, response_excerpt, trace_id). `rescheduled`: (bucket,
    delivery_id, version, delay_s, http_status, latency_us, url, remote_address, outcome,
    start_time, error, response_excerpt, trace_id).
    """

    finished: list[Row] = field(default_factory=list)
    rescheduled: list[Row] = field(default_factory=list)

    def finish(
        self,
        key: RowKey,
        tenant_uid: UUID,
        state: DeliveryState,
        attempt: AttemptRecord,
        start_us: int | None,
        trace_id: bytes | None,
    ) -> None:
        """Add a delivery that leaves the hot table.

        `start_us` is None for a success at the first attempt: its `deliveries` row keeps the
        attempt, and its trace is the event's.
        """
        kind, latency_us, url, http_status, error, excerpt, remote_address = attempt
        of_attempt: Row = (None, None, None, None, None)
        if start_us is not None:
            of_attempt = (kind, from_unix_us(start_us), _encoded(error), excerpt, trace_id)
        of_row = (tenant_uid, state, http_status, latency_us, url, remote_address)
        self.finished.append((*key, *of_row, *of_attempt))

    def reschedule(
        self,
        key: RowKey,
        delay_s: float,
        attempt: AttemptRecord,
        start_us: int,
        trace_id: bytes | None,
    ) -> None:
        """Add a failed attempt whose delivery stays pending, due in `delay_s`."""
        kind, latency_us, url, http_status, error, excerpt, remote_address = attempt
        of_row = (delay_s, http_status, latency_us, url, remote_address, kind)
        start_time = from_unix_us(start_us)
        self.rescheduled.append((*key, *of_row, start_time, _encoded(error), excerpt, trace_id))


def _encoded(error: str) -> bytes:
    return error.encode(errors="replace")


def _columns(rows: Sequence[Row], width: int) -> Sequence[Sequence[object]]:
    return list(zip(*rows, strict=True)) if rows else [()] * width


class RecordStore:
    """Writes outcomes, on a connection of its own."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def record(
        self,
        node_id: UUID,
        rows: OutcomeRows,
        consequences: Callable[[set[UUID]], Consequences] | None = None,
    ) -> Recorded:
        """Write a batch; return the deliveries that matched and the subscriptions it disabled.

        `consequences` receives the matched deliveries and returns the changes of subscriptions,
        which are written in the same transaction. Raises `RejectedError` if a row is bad, and
        `OutcomeUnknownError` if the answer was lost: rows that did commit no longer match.
        """
        arguments = (
            node_id,
            *_columns(rows.finished, _FINISHED_COLUMNS),
            *_columns(rows.rescheduled, _RESCHEDULED_COLUMNS),
        )
        if consequences is None:
            rows_matched = await self._session.fetch(SQL.record, *arguments)
            return Recorded({row[0] for row in rows_matched}, set())
        disabled: set[UUID] = set()
        async with self._session.transaction() as connection:
            matched = {row[0] for row in await connection.fetch(SQL.record, *arguments)}
            effect = consequences(matched)
            if effect.recovered:
                await connection.execute(SQL.mark_recovered, effect.recovered)
            if effect.failing:
                await connection.execute(SQL.mark_failing, effect.failing)
            if effect.disabling:
                fields = [
                    (d.subscription_uid, d.reason, d.message, d.url) for d in effect.disabling
                ]
                columns = _columns(fields, 4)
                rows_disabled = await connection.fetch(
                    SQL.disable, *columns, effect.disable_after_s
                )
                disabled = {row[0] for row in rows_disabled}
                await _audit_disabled(connection, disabled)
        return Recorded(matched, disabled)

    async def park(
        self, node_id: UUID, bucket: int, delivery_id: UUID, version: int, delay_s: float
    ) -> bool:
        """Postpone a delivery without storing its attempt; return False if it did not match."""
        rows = await self._session.fetch(SQL.park, node_id, bucket, delivery_id, version, delay_s)
        return bool(rows)

    async def ping(self) -> None:
        """Raise if the database does not answer."""
        await self._session.fetch(SQL.ping)

    async def close(self) -> None:
        """Close the connection."""
        await self._session.close()


async def _audit_disabled(connection: Connection, disabled: AbstractSet[UUID]) -> None:
    """Write the audit entries, in the transaction that disabled the subscriptions."""
    if not disabled:
        return
    rows = await connection.fetch(_READ, sorted(disabled))
    entries = [disabling(subscription_of(row)) for row in rows]
    await connection.execute(AUDIT.add, [row["tenant_uid"] for row in rows], entries)
