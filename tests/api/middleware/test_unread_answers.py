"""Memory of a call: its request until it ends, its answer until the client has read it."""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2

from hookline.v1.event_pb2 import EVENT_VIEW_FULL
from hookline.v1.event_service_pb2 import ListEventsRequest
from hookline_service.domain.limits import Limits
from tests.api.conftest import Api, serving
from tests.api.publishing import order, publish
from tests.api.refusals import refusal
from tests.api.test_server import health_of
from tests.hostile import callers, wire
from tests.hostile.wire import Connection

REFUSED_CALLS = 30


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def test_only_the_connection_of_a_caller_that_reads_no_answer_is_closed(
    database_url: str,
) -> None:
    async with serving(database_url, limits=Limits(answer_timeout_s=1)) as api:
        window = wire.settings(initial_window=0)
        connection = await Connection.open("127.0.0.1", api.port, window)
        reading = asyncio.ensure_future(connection.discard())
        stream = callers.call(connection, callers.CHECK, None)
        await connection.send(wire.data_frames(stream, wire.message(b"")))
        watch = health_of(api.channel).Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        async with asyncio.timeout(20):
            await connection.closed()
        await reading
        await connection.aclose()
        assert not watch.done(), "one that is taken waits for nothing"
        await health_of(api.channel).Check(health_pb2.HealthCheckRequest())
        watch.cancel()


async def test_unread_answers_are_bounded_by_a_setting(database_url: str) -> None:
    async with serving(database_url, limits=Limits(max_answer_bytes=20_000)) as api:
        await api.rows.tenant("acme")
        request = ListEventsRequest(tenant="tenants/acme", view=EVENT_VIEW_FULL)
        for _ in range(3):
            await publish(api, order(binary_data=bytes(6_000)))
        await api.events.ListEvents(request)
        await publish(api, order(binary_data=bytes(6_000)))
        answer = await refusal(api.events.ListEvents(request))
        assert (answer.code, answer.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert answer.metadata["limit"] == "HOOKLINE_MAX_ANSWER_BYTES"
        assert answer.retry_s
        request.page_size = 2
        await api.events.ListEvents(request)


async def test_a_refused_call_keeps_nothing_of_its_request(api: Api) -> None:
    """Its exception stays with the call in a cycle, which the garbage collector finds late."""
    data = callers.big_publish()
    connection = await Connection.open("127.0.0.1", api.port)
    reading = asyncio.ensure_future(connection.discard())
    gc.collect()
    gc.disable()
    try:
        before_mb = resident_mb()
        for _ in range(REFUSED_CALLS):
            stream = callers.call(connection, callers.PUBLISH, None)
            await connection.send_data(stream, data)
            await connection.ended(stream)
        grown_mb = resident_mb() - before_mb
    finally:
        gc.enable()
        await connection.aclose()
        await reading
    assert len(api.calls.ended) == REFUSED_CALLS
    assert grown_mb < REFUSED_CALLS * len(data) / 1e6 / 2
