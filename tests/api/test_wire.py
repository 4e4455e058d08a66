"""Bytes that are no good: each gets a status, none of our insides, and the server goes on."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import grpc
import pytest

from hookline.v1.event_service_pb2 import PublishEventsRequest
from tests.api.conftest import Api
from tests.api.publishing import order, publish, refused
from tests.api.refusals import Refused, refusal

PUBLISH = "/hookline.v1.EventService/PublishEvents"
REFLECT = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
MALFORMED = (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED")
INSIDES = ("Traceback", "Error", "Exception", "class", "google.protobuf", "/work", "hookline.v1")

Metadata = tuple[tuple[str, str | bytes], ...]


async def send(api: Api, method: str, data: bytes, metadata: Metadata = ()) -> Refused:
    """Send bytes as they are, which must be refused."""
    call: Any = api.channel.unary_unary(method)
    answer = await refusal(call(data, metadata=metadata, timeout=20))
    assert not [word for word in INSIDES if word in answer.message]
    return answer


CORRUPT = {
    "a tag without a value": b"\x0a",
    "a length beyond the end": b"\x0a\xff\xff\xff\xff\x07tenants",
    "a varint without an end": b"\xff" * 11,
    "a group that never ends": b"\x0b\x0b\x0b",
    "field number zero": b"\x02\x01a",
    "a wire type that is none": b"\x0f",
    "a tenant that is not UTF-8": b"\x0a\x03\xff\xfe\xfd",
    "an overlong encoding": b"\x0a\x02\xc0\x80",
    "half a surrogate": b"\x0a\x03\xed\xa0\x80",
    "an event's type that is not UTF-8": b"\x0a\x0ctenants/acme\x12\x03\x12\x01\xff",
    "a truncated event": b"\x0a\x0ctenants/acme\x12\x7f\x12\x01",
    "JSON": b'{"tenant":"tenants/acme"}',
    "a gRPC frame in a gRPC frame": b"\x00\x00\x00\x00\x02\x0a\x00",
}


@pytest.mark.parametrize("data", CORRUPT.values(), ids=CORRUPT.keys())
async def test_bytes_that_do_not_decode_are_malformed(api: Api, data: bytes) -> None:
    answer = await send(api, PUBLISH, data)
    assert (answer.code, answer.reason) == MALFORMED
    await publish(api, order())


async def test_random_bytes_are_refused_and_the_server_keeps_serving(api: Api) -> None:
    """Random bytes, and good messages with random damage: a status each time, and life goes on."""
    rng = random.Random(20_261_124)
    good = PublishEventsRequest(
        tenant="tenants/acme", events=[order(attributes={"a": "b"}, subject="s") for _ in range(3)]
    ).SerializeToString()
    codes = set()
    for number in range(300):
        if number % 2:
            data = rng.randbytes(rng.randrange(1, 200))
        else:
            damaged = bytearray(good)
            for _ in range(rng.randrange(1, 4)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            data = bytes(damaged[: rng.randrange(1, len(damaged) + 1)])
        call: Any = api.channel.unary_unary(PUBLISH)
        try:
            await call(data, timeout=20)
        except grpc.aio.AioRpcError as error:
            codes.add(error.code())
    assert codes <= {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNIMPLEMENTED,
    }
    await publish(api, order())


async def test_empty_message_is_refused_for_its_missing_fields(api: Api) -> None:
    answer = await send(api, PUBLISH, b"")
    assert answer.violations == {"tenant": "FIELD_REQUIRED", "events": "FIELD_REQUIRED"}


@pytest.mark.parametrize(
    "method",
    ["/hookline.v1.EventService/Nothing", "/hookline.v2.EventService/GetEvent", "/x", "/a/b/c"],
)
async def test_an_unknown_method_is_not_implemented(api: Api, method: str) -> None:
    answer = await send(api, method, b"\x00")
    assert (answer.code, answer.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED")
    assert api.calls.ended == [("_OTHER", grpc.StatusCode.UNIMPLEMENTED)]


async def test_a_batch_beyond_the_limit_is_refused_with_the_limit(
    api: Api,
) -> None:
    answer = await refused(api, *[order(binary_data=bytes(250_000))] * 25)
    assert answer.metadata["limit"] == "HOOKLINE_MAX_BATCH_BYTES"
    answer = await refused(api, *[order(binary_data=bytes(250_000))] * 50)
    assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    await publish(api, order())


async def test_metadata_beyond_the_bounds_of_the_core_is_refused(api: Api) -> None:
    metadata = (("x-large", "y" * 40_000),)
    call = api.events.PublishEvents(
        PublishEventsRequest(tenant="tenants/acme", events=[order()]), metadata=metadata
    )
    assert (await refusal(call)).code is grpc.StatusCode.RESOURCE_EXHAUSTED
    await publish(api, order())


async def test_a_malformed_message_ends_a_stream_with_a_status(api: Api) -> None:
    call: Any = api.channel.stream_stream(REFLECT)

    async def questions() -> Any:  # noqa: ANN401 (raw bytes)
        yield b"\x3a\x01*"
        yield b"\xff\xff\xff"

    answers = call(questions(), timeout=20)
    assert b"hookline.v1.EventService" in await answers.read()

    async def drain() -> None:
        while await answers.read() is not grpc.aio.EOF:
            pass

    answer = await refusal(drain())
    assert (answer.code, answer.reason) == MALFORMED


async def test_a_connection_without_http2_is_closed(api: Api) -> None:
    for greeting in (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"\x16\x03\x01\x02\x00", bytes(300)):
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(greeting)
        async with asyncio.timeout(20):
            said = await reader.read()
        assert b"Traceback" not in said
        writer.close()
        await writer.wait_closed()
    await publish(api, order())
