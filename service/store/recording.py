"""What recording writes: the outcomes of many lanes in one statement, behind the fence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from service.store.statements import Statements

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from service.store.database import Session

SQL = Statements("recording")

_FINISHED_COLUMNS = 13
_RESCHEDULED_COLUMNS = 12

Row = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Disabling:
    """A subscription that the engine turns off, and why."""

    subscription_uid: UUID
    reason: str
    message: str


@dataclass(slots=True)
class Consequences:
    """What a batch does to subscriptions, in the same transaction as its rows."""

    disabling: list[Disabling] = field(default_factory=list)
    failing: list[UUID] = field(default_factory=list)
    """Subscriptions that failed for the first time since their last success."""
    recovered: list[UUID] = field(default_factory=list)
    """Subscriptions that succeeded for the first time since they began to fail."""


@dataclass(slots=True)
class OutcomeRows:
    """The rows of one record batch, laid out for UNNEST.

    `finished`: (bucket, delivery_id, version, tenant_uid, state, http_status, latency_us, url,
    remote_address, outcome, start_time, error, response_excerpt); outcome and what follows are None
    for a success at the first attempt, which keeps its attempt in its own row. `rescheduled`:
    (bucket, delivery_id, version, delay_s, http_status, latency_us, url, remote_address, outcome,
    start_time, error, response_excerpt).
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
    ) -> set[UUID]:
        """Write a batch; the ids of the deliveries that matched.

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
            return {row[0] for row in await self._session.fetch(SQL.record, *arguments)}
        async with self._session.transaction() as connection:
            matched = {row[0] for row in await connection.fetch(SQL.record, *arguments)}
            effect = consequences(matched)
            if effect.disabling:
                fields = [(d.subscription_uid, d.reason, d.message) for d in effect.disabling]
                await connection.fetch(SQL.disable, *_columns(fields, 3))
            if effect.failing:
                await connection.execute(SQL.mark_failing, effect.failing)
            if effect.recovered:
                await connection.execute(SQL.mark_recovered, effect.recovered)
        return matched

    async def close(self) -> None:
        """Close the connection."""
        await self._session.close()
