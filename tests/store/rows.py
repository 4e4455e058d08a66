"""Rows for tests of reads: tenants, subscriptions, events and deliveries, inserted by plain SQL.

Ids are of a time within today's partitions, so that nothing depends on the time of day.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeAlias
from uuid import UUID

import asyncpg
import orjson

from hookline_service.domain.ids import bucket_of, delivery_id_of, make_uuid7

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"  # generic in its stubs alone


@dataclass(frozen=True)
class Place:
    """The keys of a subscription's row."""

    tenant_uid: UUID
    uid: UUID


class Rows:
    """Inserts rows; ids increase in the order of the calls."""

    def __init__(self, connection: Connection, now: datetime) -> None:
        self.connection = connection
        self.now = now
        self._ms = itertools.count(int(now.timestamp() * 1_000))
        self._random = random.Random(7)

    def new_id(self) -> UUID:
        return make_uuid7(next(self._ms), self._random.getrandbits(74))

    async def tenant(self, tenant_id: str) -> UUID:
        uid = self.new_id()
        await self.connection.execute(
            "INSERT INTO tenants (tenant_uid, tenant_id) VALUES ($1, $2)", uid, tenant_id
        )
        return uid

    async def subscription(
        self,
        tenant_uid: UUID,
        subscription_id: str,
        *,
        state: str = "ACTIVE",
        deleted: bool = False,
        ordered: bool = False,
    ) -> Place:
        uid = self.new_id()
        await self.connection.execute(
            """INSERT INTO subscriptions (subscription_uid, tenant_uid, bucket, subscription_id,
                   event_types, url, timeout_ms, max_in_flight, changed_epoch, state, state_reason,
                   deleted_at, ordered)
               VALUES ($1, $2, $3, $4, '{*}', 'https://example.com/', 15000, 64, 1, $5, $6,
                       CASE WHEN $7 THEN now() END, $8)""",
            uid,
            tenant_uid,
            bucket_of(uid),
            subscription_id,
            state,
            None if state == "ACTIVE" else "OPERATOR",
            deleted,
            ordered,
        )
        return Place(tenant_uid, uid)

    async def event(
        self,
        tenant_uid: UUID,
        *,
        event_type: str = "order.created",
        data: bytes = b'{"id":1}',
        is_json: bool = True,
        attributes: dict[str, str] | None = None,
    ) -> UUID:
        event_id = self.new_id()
        await self.connection.execute(
            """INSERT INTO events (tenant_uid, event_id, ordinal, is_json, type, content_type,
                   attributes, data)
               VALUES ($1, $2, 1, $3, $4, $5, $6, $7)""",
            tenant_uid,
            event_id,
            is_json,
            event_type,
            "application/json" if is_json else "application/octet-stream",
            orjson.dumps(attributes).decode() if attributes else None,
            data,
        )
        return event_id

    async def pending(
        self, place: Place, event_id: UUID, *, index: int = 0, attempt_count: int = 0
    ) -> UUID:
        bucket = bucket_of(place.uid)
        delivery_id = delivery_id_of(event_id, index, bucket)
        await self.connection.execute(
            """INSERT INTO pending_deliveries (bucket, attempt_count, due_at, ordinal, delivery_id,
                   subscription_uid, event_id)
               VALUES ($1, $2, $3, 1, $4, $5, $6)""",
            bucket,
            attempt_count,
            self.now,
            delivery_id,
            place.uid,
            event_id,
        )
        return delivery_id

    async def finished(
        self,
        place: Place,
        event_id: UUID,
        *,
        state: str = "SUCCEEDED",
        index: int = 0,
        attempt_count: int = 1,
        state_reason: str | None = None,
    ) -> UUID:
        """Insert a finished delivery; a first-attempt success stores its attempt in its own row."""
        delivery_id = delivery_id_of(event_id, index, bucket_of(place.uid))
        at_once = state == "SUCCEEDED" and attempt_count == 1
        await self.connection.execute(
            """INSERT INTO deliveries (tenant_uid, delivery_id, subscription_uid, event_id,
                   finish_time, version, attempt_count, state, state_reason, http_status,
                   latency_us, url, remote_address)
               VALUES ($1, $2, $3, $4, $5, 1, $6, $7, $8, $9, $10, $11, $12)""",
            place.tenant_uid,
            delivery_id,
            place.uid,
            event_id,
            self.now,
            attempt_count,
            state,
            state_reason,
            204 if at_once else None,
            1_500 if at_once else None,
            "https://example.com/" if at_once else None,
            "192.0.2.1:443" if at_once else None,
        )
        return delivery_id

    async def attempt(
        self,
        delivery_id: UUID,
        number: int,
        *,
        outcome: str = "HTTP_ERROR",
        http_status: int | None = 500,
        excerpt: bytes = b"",
        error: bytes = b"",
    ) -> None:
        await self.connection.execute(
            """INSERT INTO attempts (delivery_id, number, http_status, latency_us, start_time,
                   outcome, url, error, response_excerpt, trace_id)
               VALUES ($1, $2, $3, 2000, $4, $5, 'https://example.com/', $6, $7, $8)""",
            delivery_id,
            number,
            http_status,
            self.now,
            outcome,
            error,
            excerpt,
            bytes(range(16)),
        )

    async def finish(self, place: Place, delivery_id: UUID) -> None:
        """Move a pending delivery into history, as recording does: in one statement."""
        await self.connection.execute(
            """WITH gone AS (
                   DELETE FROM pending_deliveries WHERE bucket = $1 AND delivery_id = $2
                   RETURNING *)
               INSERT INTO deliveries (tenant_uid, delivery_id, subscription_uid, event_id,
                   finish_time, version, attempt_count, state, http_status, latency_us, url)
               SELECT $3, delivery_id, subscription_uid, event_id, now(), 1, 1, 'SUCCEEDED', 200,
                      900, 'https://example.com/'
               FROM gone""",
            bucket_of(place.uid),
            delivery_id,
            place.tenant_uid,
        )

    async def retry(self, place: Place, delivery_id: UUID) -> None:
        """Move a finished delivery back, as an operator's retry does: in one statement."""
        await self.connection.execute(
            """WITH gone AS (
                   DELETE FROM deliveries WHERE tenant_uid = $3 AND delivery_id = $2 RETURNING *)
               INSERT INTO pending_deliveries (bucket, due_at, ordinal, delivery_id,
                   subscription_uid, event_id)
               SELECT $1, now(), 1, delivery_id, subscription_uid, event_id FROM gone""",
            bucket_of(place.uid),
            delivery_id,
            place.tenant_uid,
        )


@asynccontextmanager
async def rows_in(database_url: str) -> AsyncIterator[Rows]:
    """Open a writer of rows with its own connection."""
    connection: Connection = await asyncpg.connect(database_url)
    try:
        yield Rows(connection, datetime.fromtimestamp(int(time.time()), UTC))
    finally:
        await connection.close()
