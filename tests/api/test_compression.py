"""A compressed message is refused before it is decompressed."""

from __future__ import annotations

import os
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hookline import HooklineClient
from hookline.v1.event_pb2 import Event
from hookline.v1.event_service_pb2 import PublishEventsRequest
from tests.api.conftest import Api
from tests.api.publishing import order, publish
from tests.api.refusals import refusal
from tests.hostile import callers, wire
from tests.hostile.wire import Connection

ROUNDS, BOMBS = 40, 5
"""Five messages of this size fit into the flow control window of a connection."""
UNPACKED_MB = ROUNDS * BOMBS * callers.BIG_BYTES / 1e6
GROWTH_MAX_MB = 100


def resident_mb() -> float:
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_a_compressed_request_is_unimplemented(api: Api, algorithm: grpc.Compression) -> None:
    request = PublishEventsRequest(tenant="tenants/acme", events=[order()])
    answer = await refusal(api.events.PublishEvents(request, compression=algorithm))
    assert answer.code is grpc.StatusCode.UNIMPLEMENTED
    assert "ompression" in answer.message
    health: Any = health_pb2_grpc.HealthStub(api.channel)
    check = health.Check(health_pb2.HealthCheckRequest(service="x" * 500), compression=algorithm)
    assert (await refusal(check)).code is grpc.StatusCode.UNIMPLEMENTED
    await publish(api, order())


async def test_a_flood_of_compressed_messages_does_not_exhaust_memory(
    api: Api,
) -> None:
    """Without a key: gRPC decompresses 8 KB to 8 MB before it calls the service."""
    callers.bomb()
    before_mb, peak_mb = resident_mb(), 0.0
    for _ in range(ROUNDS):
        connection = await Connection.open("127.0.0.1", api.port)
        streams = []
        for _number in range(BOMBS):
            streams.append(callers.call(connection, callers.CHECK, None, ("grpc-encoding", "gzip")))
            connection.begin(wire.data_frames(streams[-1], callers.bomb()))
        await connection.send(b"")
        refused = 0
        while refused < BOMBS:
            received = await connection.receive()
            assert received is not None
            if received.kind == wire.HEADERS and received.flags & wire.END_STREAM:
                assert received.stream in streams
                refused += 1
            peak_mb = max(peak_mb, resident_mb())
        await connection.aclose()
    assert UNPACKED_MB > 10 * GROWTH_MAX_MB
    assert peak_mb - before_mb < GROWTH_MAX_MB


async def test_the_client_never_compresses(api: Api) -> None:
    async with HooklineClient(f"127.0.0.1:{api.port}") as client:
        event = Event(type="order.created", json_data='{"a":"' + "x" * 10_000 + '"}')
        assert await client.publish("acme", [event])
