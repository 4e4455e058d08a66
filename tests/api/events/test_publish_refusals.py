"""Refusals of PublishEvents: each invalid field has a reason, and nothing is stored."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from hookline.v1.event_pb2 import Event
from hookline.v1.event_service_pb2 import ListEventsRequest
from hookline_service.domain.limits import Limits
from tests.api.conftest import Api, serving
from tests.api.publishing import order, publish, refused
from tests.api.refusals import Refused

INVALID = grpc.StatusCode.INVALID_ARGUMENT

FIELD = "FIELD_INVALID"
LIMIT = "LIMIT_EXCEEDED"
JSON = "PAYLOAD_INVALID"


WRONG_FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({"type": ""}, "type", "FIELD_REQUIRED"),
    ({"type": "order..created"}, "type", FIELD),
    ({"type": ".order"}, "type", FIELD),
    ({"type": "order created"}, "type", FIELD),
    ({"type": "ördér"}, "type", FIELD),
    ({"type": "order\x00"}, "type", FIELD),
    ({"type": "order\n"}, "type", FIELD),
    ({"type": "order.*"}, "type", FIELD),
    ({"type": "x" * 129}, "type", FIELD),
    ({"type": "hookline.delivery.exhausted"}, "type", FIELD),
    ({"source": "two words"}, "source", FIELD),
    ({"source": "/%zz"}, "source", FIELD),
    ({"source": "/☂"}, "source", FIELD),
    ({"source": "/a\x00"}, "source", FIELD),
    ({"source": "x" * 1_025}, "source", LIMIT),
    ({"subject": "a\x00b"}, "subject", FIELD),
    ({"subject": "☂" * 342}, "subject", LIMIT),
    ({"external_id": "x" * 256}, "external_id", LIMIT),
    ({"external_id": "\x00"}, "external_id", FIELD),
    ({"data_schema": "not a uri"}, "data_schema", FIELD),
    ({"data_schema": "u" * 1_025}, "data_schema", LIMIT),
    ({"idempotency_key": "k" * 256}, "idempotency_key", FIELD),
    ({"idempotency_key": "tab\t"}, "idempotency_key", FIELD),
    ({"idempotency_key": "\x00"}, "idempotency_key", FIELD),
    ({"idempotency_key": "schlüssel"}, "idempotency_key", FIELD),
    ({"ordering_key": "k" * 256}, "ordering_key", FIELD),
    ({"ordering_key": "\x7f"}, "ordering_key", FIELD),
    ({"attributes": {"Region": "eu"}}, 'attributes["Region"]', FIELD),
    ({"attributes": {"": "eu"}}, 'attributes[""]', FIELD),
    ({"attributes": {"x" * 65: "eu"}}, f'attributes["{"x" * 65}"]', FIELD),
    ({"attributes": {"source": "eu"}}, 'attributes["source"]', FIELD),
    ({"attributes": {"traceparent": "00"}}, 'attributes["traceparent"]', FIELD),
    ({"attributes": {"a": "\x00"}}, 'attributes["a"]', FIELD),
    ({"attributes": {"a": "☂" * 342}}, 'attributes["a"]', LIMIT),
    ({"attributes": {f"a{n}": "" for n in range(33)}}, "attributes", LIMIT),
    ({"occur_time": Timestamp(seconds=253_402_300_800)}, "occur_time", FIELD),
    ({"occur_time": Timestamp(seconds=-62_135_596_801)}, "occur_time", FIELD),
    ({"occur_time": Timestamp(nanos=-1)}, "occur_time", FIELD),
    ({"occur_time": Timestamp(nanos=1_000_000_000)}, "occur_time", FIELD),
    ({"content_type": "text"}, "content_type", FIELD),
    ({"content_type": "a/b;\x00"}, "content_type", FIELD),
    ({"binary_data": b"", "content_type": "no type"}, "content_type", FIELD),
    ({"binary_data": b"", "content_type": "a/b\r\nx: y"}, "content_type", FIELD),
    ({"binary_data": b"", "content_type": "a/" + "b" * 254}, "content_type", FIELD),
    ({"binary_data": bytes(262_145)}, "binary_data", LIMIT),
    ({"json_data": '"' + "x" * 262_143 + '"'}, "json_data", LIMIT),
    ({"json_data": ""}, "json_data", JSON),
    ({"json_data": '{"id":1,}'}, "json_data", JSON),
    ({"json_data": "{'id':1}"}, "json_data", JSON),
    ({"json_data": "{} {}"}, "json_data", JSON),
    ({"json_data": '{"a":NaN}'}, "json_data", JSON),
    ({"json_data": "[Infinity]"}, "json_data", JSON),
    ({"json_data": "-Infinity"}, "json_data", JSON),
    ({"json_data": "1e400"}, "json_data", JSON),
    ({"json_data": "01"}, "json_data", JSON),
    ({"json_data": '"\\ud800"'}, "json_data", JSON),
    ({"json_data": '"\\udc00\\ud800"'}, "json_data", JSON),
    ({"json_data": '"\x00"'}, "json_data", JSON),
    ({"json_data": '"\n"'}, "json_data", JSON),
    ({"json_data": "\ufeff{}"}, "json_data", JSON),
    ({"json_data": "[" * 129 + "]" * 129}, "json_data", LIMIT),
    ({"json_data": '{"a":[' * 65 + "]}" * 65}, "json_data", LIMIT),
    ({"json_data": '{"a":' + "[" * 128 + "]" * 128 + ',"a":1}'}, "json_data", LIMIT),
    ({"json_data": "[" * 100_000 + "]" * 100_000}, "json_data", JSON),
    ({"json_data": "[" * 200_000}, "json_data", JSON),
]
"""A field, its path in the refusal, the reason of its violation."""


async def test_a_wrong_field_is_named_and_nothing_is_stored(api: Api) -> None:
    surprises: list[tuple[dict[str, Any], Refused]] = []
    for fields, path, reason in WRONG_FIELDS:
        answer = await refused(api, order(), order(**fields))
        is_right = (
            answer.code is INVALID
            and answer.violations == {f"events[1].{path}": reason}
            and (answer.reason, answer.domain) == (reason, "hookline")
        )
        if not is_right:
            surprises.append((fields, answer))
    assert surprises == []
    found = await api.events.ListEvents(ListEventsRequest(tenant="tenants/acme"))
    assert list(found.events) == []


async def test_data_is_required(api: Api) -> None:
    answer = await refused(api, Event(type="order.created"))
    assert answer.violations == {"events[0].data": "FIELD_REQUIRED"}


async def test_all_violations_of_a_batch_are_reported_together(api: Api) -> None:
    answer = await refused(
        api, order(type="", subject="\x00", json_data="{"), order(), order(source=" ")
    )
    assert answer.violations == {
        "events[0].type": "FIELD_REQUIRED",
        "events[0].subject": "FIELD_INVALID",
        "events[0].json_data": "PAYLOAD_INVALID",
        "events[2].source": "FIELD_INVALID",
    }
    assert answer.reason == "FIELD_INVALID"
    assert answer.message.endswith("(and 3 more)")


async def test_violations_beyond_the_limit_are_counted(api: Api) -> None:
    answer = await refused(api, *[order(type="☂" * 100, subject="\x00") for _ in range(500)])
    assert 0 < len(answer.violations) < 1_000
    assert int(answer.metadata["omitted_violations"]) == 1_000 - len(answer.violations)
    assert f"{1_000 - len(answer.violations)} more violations" in answer.message
    assert answer.status_bytes < 4_096


async def test_invalid_tenant_is_named(api: Api) -> None:
    wrong = ("", "acme", "tenants/", "tenants/Acme", "tenants/-", "tenants/a/b", "tenants/a\x00")
    for tenant in wrong:
        answer = await refused(api, order(), tenant=tenant)
        assert answer.code is INVALID
        assert list(answer.violations) == ["tenant"]


async def test_batches_are_bounded_by_settings_that_the_refusal_names(database_url: str) -> None:
    limits = Limits(max_batch_events=3, max_batch_bytes=2_000, max_data_bytes=100)
    async with serving(database_url, limits=limits) as api:
        await api.rows.tenant("acme")
        none = await refused(api)
        assert none.violations == {"events": "FIELD_REQUIRED"}
        many = await refused(api, *[order()] * 4)
        assert many.metadata == {"limit": "HOOKLINE_MAX_BATCH_EVENTS", "maximum": "3"}
        assert many.violations == {"events": "LIMIT_EXCEEDED"}
        large = await refused(api, order(subject="s" * 1_000), order(subject="s" * 1_000))
        assert large.metadata == {"limit": "HOOKLINE_MAX_BATCH_BYTES", "maximum": "2000"}
        assert large.violations == {"events": "LIMIT_EXCEEDED"}
        fat = await refused(api, order(binary_data=bytes(101)))
        assert fat.metadata == {"limit": "HOOKLINE_MAX_DATA_BYTES", "maximum": "100"}
        assert fat.violations == {"events[0].binary_data": "LIMIT_EXCEEDED"}
        await publish(api, *[order(binary_data=bytes(100))] * 3)


async def test_largest_allowed_batch_is_accepted(api: Api) -> None:
    results = (await publish(api, *[order()] * 1_000)).results
    assert len({result.name for result in results}) == 1_000
    large = (await publish(api, *[order(binary_data=bytes(262_144))] * 15)).results
    assert len(large) == 15


async def test_proto_data_is_refused_not_ignored(api: Api) -> None:
    event = Event(type="order.created")
    event.proto_data.Pack(Timestamp(seconds=1))
    answer = await refused(api, order(), event)
    assert answer.code is grpc.StatusCode.UNIMPLEMENTED
    assert (answer.reason, answer.metadata) == (
        "NOT_IMPLEMENTED",
        {"field": "events[1].proto_data"},
    )
