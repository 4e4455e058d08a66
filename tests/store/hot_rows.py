"""Rows of the data path for tests of its statements: a node, a subscription, pending deliveries."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from uuid import UUID

import asyncpg

from hookline_service.domain.ids import bucket_of, delivery_id_of, make_uuid7
from hookline_service.store.database import Session

URL = "https://example.com/hook"


@dataclass
class HotRows:
    """Inserts rows by plain SQL."""

    session: Session
    random: Random = field(default_factory=lambda: Random(5))
    tenant_uid: UUID = field(init=False)

    def __post_init__(self) -> None:
        self.tenant_uid = self.new_id()

    def new_id(self, *, days_ago: float = 0.0) -> UUID:
        now_ms = int((time.time() - days_ago * 86_400) * 1_000)
        return make_uuid7(now_ms, self.random.getrandbits(74))

    async def node(self, lease_s: float = 60.0) -> UUID:
        """Insert a node whose lease ends in so many seconds; a negative number: it has ended."""
        node_id = self.new_id()
        await self.session.fetch(
            """INSERT INTO nodes (node_id, lease_until, hostname, version)
               VALUES ($1, clock_timestamp() + make_interval(secs => $2), 'h', '0')""",
            node_id,
            lease_s,
        )
        return node_id

    async def subscription(self, **columns: object) -> UUID:
        """Insert a subscription of the only tenant."""
        await self.session.fetch(
            """INSERT INTO tenants (tenant_uid, tenant_id) VALUES ($1, 'acme')
               ON CONFLICT DO NOTHING""",
            self.tenant_uid,
        )
        uid = self.new_id()
        values: dict[str, object] = {
            "subscription_uid": uid,
            "tenant_uid": self.tenant_uid,
            "bucket": bucket_of(uid),
            "subscription_id": f"s-{uid.hex[-8:]}",
            "event_types": ["*"],
            "url": URL,
            "timeout_ms": 5_000,
            "max_in_flight": 64,
            "changed_epoch": 1,
        } | columns
        holes = ", ".join(f"${n + 1}" for n in range(len(values)))
        await self.session.fetch(
            f"INSERT INTO subscriptions ({', '.join(values)}) VALUES ({holes})",  # noqa: S608 - ours
            *values.values(),
        )
        return uid

    async def pending(
        self, subscription_uid: UUID, *, due_s: float = 0.0, days_ago: float = 0.0
    ) -> UUID:
        """Insert an event with a pending delivery that is due in so many seconds."""
        event_id, bucket = self.new_id(days_ago=days_ago), bucket_of(subscription_uid)
        delivery_id = delivery_id_of(event_id, 0, bucket)
        if days_ago == 0:
            await self.session.fetch(
                """INSERT INTO events (tenant_uid, event_id, ordinal, is_json, type, content_type,
                                       data)
                   VALUES ($1, $2, 1, true, 'order.created', 'application/json', '{}')""",
                self.tenant_uid,
                event_id,
            )
        await self.session.fetch(
            """INSERT INTO pending_deliveries (bucket, due_at, ordinal, delivery_id,
                                               subscription_uid, event_id)
               VALUES ($1, hookline_now() + make_interval(secs => $2), 1, $3, $4, $5)""",
            bucket,
            due_s,
            delivery_id,
            subscription_uid,
            event_id,
        )
        return delivery_id

    async def all(self, table: str) -> list[asyncpg.Record]:
        """Return all rows of a table."""
        return await self.session.fetch(f"SELECT * FROM {table} ORDER BY 1, 2")  # noqa: S608 - ours


def finished_row(
    rows: HotRows, delivery_id: UUID, version: int = 0, **fields: object
) -> tuple[object, ...]:
    """A success at the first attempt, as the recorder lays it out; `fields` in the same order."""
    values: dict[str, object] = {
        "bucket": delivery_id.int & 0xFF,
        "delivery_id": delivery_id,
        "version": version,
        "tenant_uid": rows.tenant_uid,
        "state": "SUCCEEDED",
        "http_status": 200,
        "latency_us": 1_000,
        "url": URL,
        "remote_address": "192.0.2.1",
        "outcome": None,
        "start_time": None,
        "error": None,
        "response_excerpt": None,
        "trace_id": None,
    }
    return tuple((values | fields).values())


def rescheduled_row(delivery_id: UUID, version: int = 0, **fields: object) -> tuple[object, ...]:
    """Return a failed attempt that is retried in a minute."""
    values: dict[str, object] = {
        "bucket": delivery_id.int & 0xFF,
        "delivery_id": delivery_id,
        "version": version,
        "delay_s": 60.0,
        "http_status": 500,
        "latency_us": 1_000,
        "url": URL,
        "remote_address": "192.0.2.1",
        "outcome": "HTTP_ERROR",
        "start_time": datetime.now(UTC),
        "error": b"the target answered 500",
        "response_excerpt": b"sorry",
        "trace_id": None,
    }
    return tuple((values | fields).values())
