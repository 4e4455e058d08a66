"""The processes that measure the floor; `floor.py` starts them.

python -m tests.bench.floor_load echo            a gRPC server that returns each batch
python -m tests.bench.floor_load insert '{…}'    UNNEST inserts of the existing rows
python -m tests.bench.floor_load post '{…}'      raw POSTs over keep-alive connections
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import cast

import asyncpg
import grpc.aio
import uvloop

from tests.bench.publisher import METHOD

_STEP = 10 << 80
"""Ten milliseconds in the time prefix of a UUIDv7."""

Columns = list[list[object]]


def _say(what: object) -> None:
    sys.stdout.write(what if isinstance(what, str) else json.dumps(what))
    sys.stdout.write("\n")
    sys.stdout.flush()


async def _until_input_ends() -> None:
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


# ------------------------------------------------------------------------------------------ echo


async def echo() -> None:
    """Serve the method of the contract by returning the request's bytes."""

    async def answer(request: bytes, _context: object) -> bytes:
        return request

    service, method = METHOD.strip("/").split("/")
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                service, {method: grpc.unary_unary_rpc_method_handler(answer)}
            ),
        )
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    _say(f"127.0.0.1:{port}")
    await _until_input_ends()
    await server.stop(None)


# ---------------------------------------------------------------------------------------- insert

_PENDING_OF_DELIVERIES = """
SELECT get_byte(uuid_send(d.delivery_id), 15)::smallint AS bucket, 0::smallint AS attempt_count,
       0 AS version, d.finish_time AS due_at, e.ordinal, d.delivery_id, d.subscription_uid,
       d.event_id, NULL::smallint AS attempts_base, NULL::smallint AS attempts_until,
       NULL::bigint AS key_hash
FROM deliveries d JOIN events e USING (tenant_uid, event_id) WHERE d.event_id = ANY ($1)
"""
_SOURCES = {
    "events": "SELECT * FROM events WHERE event_id = ANY ($1)",
    "pending_deliveries": "SELECT * FROM pending_deliveries WHERE event_id = ANY ($1)",
    "deliveries": "SELECT * FROM deliveries WHERE event_id = ANY ($1)",
    "idempotency_keys": "SELECT * FROM idempotency_keys WHERE event_id = ANY ($1)",
}


async def insert(url: str, events: int, fan_out: int, statements: int) -> None:
    """Insert only the rows of a delivery: its event, its pending row and its history."""
    connection = await asyncpg.connect(url)
    ids = await connection.fetch(
        "SELECT event_id FROM events ORDER BY event_id DESC LIMIT $1", events
    )
    sources = dict(_SOURCES)
    if await connection.fetchval("SELECT EXISTS (SELECT FROM deliveries)"):
        sources["pending_deliveries"] = _PENDING_OF_DELIVERIES
    inserts = []
    for table, source in sources.items():
        rows = await connection.fetch(source, [row["event_id"] for row in ids])
        if rows:
            statement = await _prepare_insert(connection, table, list(rows[0].keys()))
            inserts.append((statement, _made(rows, statements)))
    _say("ready")
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    cpu_s = time.process_time()
    for number in range(statements):
        for statement, made in inserts:
            await connection.execute(statement, *made[number])
    cpu_s = time.process_time() - cpu_s
    for table in sources:
        await connection.execute(f"DROP TABLE IF EXISTS floor_{table}")
    _say({"count": statements * len(ids) * fan_out, "cpu_s": cpu_s})
    await _until_input_ends()
    await connection.close()


async def _prepare_insert(
    connection: asyncpg.Connection[asyncpg.Record], table: str, names: Sequence[str]
) -> str:
    """Return a table with the same columns, and the statement that inserts into them."""
    await connection.execute(
        f"CREATE TABLE floor_{table} (LIKE {table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS"
        " INCLUDING INDEXES INCLUDING STORAGE)"
    )
    types = await connection.fetch(
        "SELECT format_type(atttypid, atttypmod) AS type FROM pg_attribute"
        " JOIN unnest($2::text[]) WITH ORDINALITY AS w (name, place) ON attname = name"
        " WHERE attrelid = $1::regclass ORDER BY place",
        table,
        names,
    )
    columns = ", ".join(f"${number}::{row['type']}[]" for number, row in enumerate(types, 1))
    return f"INSERT INTO floor_{table} ({', '.join(names)}) SELECT * FROM unnest({columns})"  # noqa: S608


def _made(rows: Sequence[asyncpg.Record], statements: int) -> list[Columns]:
    """Yield the rows as columns for each statement, with later ids each time."""
    columns = list(zip(*[row.values() for row in rows], strict=True))
    names = list(rows[0].keys())
    return [
        [
            [_later(name, value, number) for value in column]
            for name, column in zip(names, columns, strict=True)
        ]
        for number in range(1, statements + 1)
    ]


def _later(name: str, value: object, number: int) -> object:
    if name in {"event_id", "delivery_id"}:
        return uuid.UUID(int=cast("uuid.UUID", value).int + number * _STEP)
    return f"{number:06d}-{value}" if name == "key" else value


# ------------------------------------------------------------------------------------------ post


class Sender(asyncio.Protocol):
    """Repeats the same request whenever it is answered."""

    def __init__(self, request: bytes, end_s: float) -> None:
        self._request = request
        self._end_s = end_s
        self._transport: asyncio.Transport | None = None
        self.count = 0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Handle an answer; answers of the receiver have no body."""
        if not data.endswith(b"\r\n\r\n"):
            return
        self.count += 1
        if self._transport is None or time.monotonic() >= self._end_s:
            self.done.set_result(None)
            return
        self._transport.write(self._request)


def _request(port: int, secret: str, data_bytes: int) -> bytes:
    """Return a signed request with the data size of the scenario's events."""
    body = b'{"type":"order.created","timestamp":"2025-01-01T00:00:00.000000Z","data":"'
    body += b"x" * (data_bytes - 2) + b'"}'
    webhook_id, timestamp = b"evt_00000000000000000000000000", b"1735689600"
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.digest(key, b".".join([webhook_id, timestamp, body]), hashlib.sha256)
    lines: Iterator[bytes] = iter(
        [
            b"POST /hook/floor HTTP/1.1",
            b"host: 127.0.0.1:%d" % port,
            b"user-agent: hookline/floor",
            b"accept-encoding: identity",
            b"content-type: application/json",
            b"webhook-id: " + webhook_id,
            b"webhook-timestamp: " + timestamp,
            b"webhook-signature: v1," + base64.b64encode(digest),
            b"content-length: %d" % len(body),
        ]
    )
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def post(port: int, secret: str, data_bytes: int, connections: int, seconds: float) -> None:
    """POST over a number of connections, each with one request in flight."""
    loop = asyncio.get_running_loop()
    request = _request(port, secret, data_bytes)
    cpu_s = time.process_time()
    end_s = time.monotonic() + seconds
    senders = [
        (await loop.create_connection(lambda: Sender(request, end_s), "127.0.0.1", port))[1]
        for _ in range(connections)
    ]
    await asyncio.gather(*[sender.done for sender in senders])
    cpu_s = time.process_time() - cpu_s
    _say({"count": sum(sender.count for sender in senders), "cpu_s": cpu_s})


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["echo"]:
            uvloop.run(echo())
        case ["insert", given]:
            uvloop.run(insert(**json.loads(given)))
        case ["post", given]:
            uvloop.run(post(**json.loads(given)))
        case unknown:
            sys.exit(f"cannot load with {unknown}")
