"""StreamPublishEvents over a real channel: each message has its own answer, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import orjson
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from hookline.v1.error_reason_pb2 import ErrorReason
from hookline.v1.event_pb2 import Event
from hookline.v1.event_service_pb2 import (
    PublishError,
    StreamPublishEventsRequest,
    StreamPublishEventsResponse,
)
from hookline_service.domain.event import EventType, EventTypeState
from hookline_service.domain.limits import Limits
from tests.api.conftest import Api, serving
from tests.api.publishing import order, publish, refused
from tests.api.refusals import Refused, refusal
from tests.api.streaming import METHOD, Stream, stored, uncommitted
from tests.pipeline.rival import BUMP, rival, until_blocked


@pytest.fixture
async def stream(api: Api) -> AsyncIterator[Stream]:
    opened = Stream(api.channel)
    yield opened
    opened.call.cancel()


async def test_each_answer_has_the_sequence_of_its_message(api: Api, stream: Stream) -> None:
    await stream.send(order(idempotency_key="k"), order(), sequence=7)
    await stream.send(order(), sequence=8)
    await stream.send(order(idempotency_key="k"), sequence=1_000_000_000_000)
    answers = await stream.answers(3)
    await stream.finish()

    assert sorted(answers) == [7, 8, 1_000_000_000_000]
    first, again = answers[7].published.results[0], answers[1_000_000_000_000].published.results[0]
    assert [len(answers[n].published.results) for n in (7, 8)] == [2, 1]
    assert (first.deduplicated, again.deduplicated, again.name) == (False, True, first.name)
    assert first.HasField("delivery_count")
    assert len(await stored(api)) == 3
    assert api.calls.ended == [(METHOD, grpc.StatusCode.OK)]


async def test_a_stream_without_a_message_ends_with_ok(stream: Stream) -> None:
    await stream.finish()


async def test_messages_sent_before_the_half_close_are_answered(api: Api, stream: Stream) -> None:
    await publish(api, order())
    async with uncommitted(api):
        for _ in range(5):
            await stream.send(order())
        await stream.call.done_writing()
        await until_blocked(api.rig.database)
    assert sorted(await stream.answers(5)) == [1, 2, 3, 4, 5]
    await stream.ended()


# ------------------------------------------------------------------------- one that is refused

REFUSED: list[tuple[str, list[Event]]] = [
    ("tenants/acme", [order(), order(type=""), order(json_data="{"), order(source="☂")]),
    ("tenants/acme", []),
    ("tenants/acme", [order()] * 11),
    ("acme", [order(type="x..y")]),
    ("tenants/-", [order()]),
    ("tenants/unknown", [order()]),
    ("tenants/acme", [order(), order(type="order.old")]),
    ("tenants/acme", [order(), order(type="order.strict", json_data="[]")]),
    ("tenants/acme", [order(), order(idempotency_key="taken", subject="another")]),
    ("tenants/acme", [order(idempotency_key="k"), order(idempotency_key="k", subject="x")]),
    ("tenants/acme", [Event(type="order.created", proto_data=AnyMessage())]),
]


@pytest.mark.parametrize("tenant, events", REFUSED)
async def test_refused_message_gets_the_error_of_a_call_and_the_stream_continues(
    database_url: str, tenant: str, events: list[Event]
) -> None:
    async with serving(database_url, limits=Limits(max_batch_events=10)) as api:
        await api.rows.tenant("acme")
        api.rig.event_types.event_types = [
            EventType(name="order.old", state=EventTypeState.ARCHIVED),
            EventType(name="order.strict", json_schema='{"type":"object"}', revision=1),
        ]
        await api.rig.catalog.reload()
        await publish(api, order(idempotency_key="taken"))
        expected = await refused(api, *events, tenant=tenant)

        stream = Stream(api.channel)
        await stream.send(order())
        await stream.send(*events, tenant=tenant)
        await stream.send(order())
        answers = await stream.answers(3)
        await stream.finish()

        assert [answers[n].WhichOneof("outcome") for n in (1, 2, 3)] == [
            "published", "error", "published",
        ]  # fmt: skip
        assert error_fields(answers[2].error) == error_fields_of_call(expected)
        assert len(await stored(api)) == 1 + 2


def error_fields(error: PublishError) -> dict[str, Any]:
    def name(reason: ErrorReason.ValueType) -> str:
        return ErrorReason.Name(reason).removeprefix("ERROR_REASON_")

    return {
        "code": error.code,
        "reason": name(error.reason),
        "message": error.message,
        "violations": {fault.field: name(fault.reason) for fault in error.field_violations},
        "descriptions": [fault.description for fault in error.field_violations],
        "metadata": dict(error.metadata),
        "retry_s": error.retry_delay.ToTimedelta().total_seconds()
        if error.HasField("retry_delay")
        else None,
    }


def error_fields_of_call(answer: Refused) -> dict[str, Any]:
    return {
        "code": answer.code.value[0],
        "reason": answer.reason,
        "message": answer.message,
        "violations": answer.violations,
        "descriptions": answer.descriptions,
        "metadata": answer.metadata,
        "retry_s": answer.retry_s,
    }


async def test_oversized_message_is_refused_with_the_setting(database_url: str) -> None:
    async with serving(database_url, limits=Limits(max_batch_bytes=20_000)) as api:
        await api.rows.tenant("acme")
        stream = Stream(api.channel)
        await stream.send(order(binary_data=bytes(20_000)))
        await stream.send(order())
        answers = await stream.answers(2)
        error = error_fields(answers[1].error)
        assert error["violations"] == {"events": "LIMIT_EXCEEDED"}
        assert error["metadata"]["limit"] == "HOOKLINE_MAX_BATCH_BYTES"
        assert answers[2].HasField("published")


async def test_overload_is_refused_with_a_retry_delay(database_url: str) -> None:
    async with serving(database_url, limits=Limits(max_queued_publish_events=5)) as api:
        await api.rows.tenant("acme")
        stream = Stream(api.channel)
        await stream.send(*[order()] * 6)
        await stream.send(*[order()] * 5)
        answers = await stream.answers(2)
        assert error_fields(answers[1].error)["code"] == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert error_fields(answers[1].error)["retry_s"] > 0
        assert len(answers[2].published.results) == 5
        await stream.finish()


async def test_refusal_does_not_wait_for_earlier_messages(api: Api, stream: Stream) -> None:
    await publish(api, order())
    async with uncommitted(api):
        await stream.send(order())
        await stream.send()
        await stream.send(order())
        assert (await stream.answer()).sequence == 2
    assert sorted(await stream.answers(2)) == [1, 3]
    await stream.finish()


@pytest.mark.parametrize(
    "sequences, bad",
    [([0, 1], [0]), ([-1, 1], [-1]), ([5, 5, 6], [5]), ([5, 4, 6], [4])],
    ids=["zero", "negative", "the same", "smaller"],
)
async def test_sequence_must_increase(
    api: Api, stream: Stream, sequences: list[int], bad: list[int]
) -> None:
    for sequence in sequences:
        await stream.send(order(), sequence=sequence)
    answers = [await stream.answer() for _ in sequences]
    await stream.finish()

    refused_ = [answer for answer in answers if answer.HasField("error")]
    assert [answer.sequence for answer in refused_] == bad
    assert error_fields(refused_[0].error)["violations"] == {"sequence": "FIELD_INVALID"}
    assert len(await stored(api)) == len(sequences) - 1


async def test_invalid_message_ends_the_stream_after_earlier_answers(
    api: Api,
) -> None:
    await publish(api, order())
    call: Any = api.channel.stream_stream(f"/{METHOD}")()
    message = StreamPublishEventsRequest(sequence=1, tenant="tenants/acme", events=[order()])
    async with uncommitted(api):
        await call.write(message.SerializeToString())
        await call.write(b"\xff\xff\xff")
        await until_blocked(api.rig.database)
    answer = StreamPublishEventsResponse.FromString(await call.read())
    assert (answer.sequence, answer.WhichOneof("outcome")) == (1, "published")
    ending = await refusal(_end_of(call))
    assert ending.code is grpc.StatusCode.INVALID_ARGUMENT
    assert ending.reason == "REQUEST_MALFORMED"
    await publish(api, order())


# ------------------------------------------------------------------------------------ order


async def test_messages_are_stored_in_order_despite_contention_and_refusals(
    api: Api, stream: Stream
) -> None:
    """Includes a concurrent change of the tenant, shared idempotency keys and a refused message."""
    await publish(api, *[order(idempotency_key=f"k{n}") for n in range(0, 200, 10)])
    row = await api.rig.database.fetchrow("SELECT tenant_uid FROM tenants")
    assert row is not None

    async with rival(api.rig.url) as other:
        await other.fetchval(BUMP, row["tenant_uid"])
        for n in range(100):
            events = [order(json_data=f'{{"n":{n}}}')]
            if n % 10 == 0:
                events.append(order(idempotency_key=f"k{n}"))
            if n % 7 == 0:
                events.append(order(idempotency_key=f"own{n // 35}"))
            await stream.send(*events)
            if n == 50:
                await stream.send(order(type=""))
                await until_blocked(api.rig.database, "contended")
        await other.execute("COMMIT")
    answers = await stream.answers(101)
    await stream.finish()

    assert [n for n, answer in answers.items() if answer.HasField("error")] == [52]
    numbers = [orjson.loads(data).get("n") for data in await stored(api)]
    assert [n for n in numbers if n is not None] == list(range(100))


async def test_streams_are_independent(database_url: str) -> None:
    async with serving(database_url, limits=Limits(max_stream_messages=1)) as api:
        await api.rows.tenant("acme")
        await api.rows.tenant("globex")
        await publish(api, order())
        held, free = Stream(api.channel), Stream(api.channel)
        async with uncommitted(api):
            await held.send(order())
            await held.send(order())
            await free.send()
            await free.send()
            assert sorted(await free.answers(2)) == [1, 2]
        assert sorted(await held.answers(2)) == [1, 2]


async def _end_of(call: Any) -> None:  # noqa: ANN401 - a call of raw bytes
    async with asyncio.timeout(20):
        while await call.read() is not grpc.aio.EOF:
            pass
