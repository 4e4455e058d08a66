"""What recording writes: the outcomes of many lanes in one statement, behind the fence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from uuid import UUID

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


@dataclass(frozen=True, slots=True)
class Disabling:
    """A subscription that the engine turns off, and why."""

    subscription_uid: UUID
    reason: str
    message: str
    url: str
    """The target that failed; a subscription that has another one by now is left alone."""


@dataclass(slots=True)
class Consequences:
    """What a batch does to subscriptions, in the same transaction as its rows, in this order."""

    recovered: list[UUID] = field(default_factory=list)
    """Subscriptions that succeeded for the first time since they began to fail."""
    failing: list[UUID] = field(default_factory=list)
    """Subscriptions that failed for the first time since their last success."""
    disabling: list[Disabling] = field(default_factory=list)
    disable_after_s: float = 0.0
    """One that is turned off for failing has failed at least so long by the database's word too."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a batch came to."""

    matched: AbstractSet[UUID]
    """Deliveries whose rows were as they had been seen."""
    disabled: AbstractSet[UUID]
    """Subscriptions that were turned off."""


@dataclass(slots=True)
class OutcomeRows:
    """The rows of one record batch, laid out for UNNEST.

    `finished`: (bucket, delivery_id, version, tenant_uid, state, http_status, latency_us, url,
    remote_address, outcome, start_time, error, response_excerpt, trace_id); outcome and what
    follows are None for a success at the first attempt, which keeps its attempt in its own row (its
    trace is its event's). `rescheduled`: (bucket, delivery_id, version, delay_s, http_status,
    latency_us, url, remote_address, outcome, start_time, error, response_excerpt, trace_id).
    """

    finished: list[Row] = field(default_factory=list)
    rescheduled: list[Row] = field(default_factory=list)


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
        """Write a batch; what matched, and what that did.

        `consequences`, where given, is told what matched and says what that does to subscriptions;
        it is written in the same transaction. Raises `RejectedError` where a row poisons the
        statement, `OutcomeUnknownError` where the answer was lost: then whatever did commit no
        longer matches its version.
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
                turned = await connection.fetch(SQL.disable, *columns, effect.disable_after_s)
                disabled = {row[0] for row in turned}
                await _audit_disabled(connection, disabled)
        return Recorded(matched, disabled)

    async def park(
        self, node_id: UUID, bucket: int, delivery_id: UUID, version: int, delay_s: float
    ) -> bool:
        """Put a delivery off without a word about its attempt; False where it did not match."""
        rows = await self._session.fetch(SQL.park, node_id, bucket, delivery_id, version, delay_s)
        return bool(rows)

    async def ping(self) -> None:
        """Raise where no statement gets through."""
        await self._session.fetch(SQL.ping)

    async def close(self) -> None:
        """Close the connection."""
        await self._session.close()


async def _audit_disabled(connection: Connection, disabled: AbstractSet[UUID]) -> None:
    """Tell the audit log, in the transaction that turned them off."""
    if not disabled:
        return
    rows = await connection.fetch(_READ, sorted(disabled))
    entries = [disabling(subscription_of(row)) for row in rows]
    await connection.execute(AUDIT.add, [row["tenant_uid"] for row in rows], entries)
