"""EventService over a real channel: publish, get and list, and their refusals."""

from __future__ import annotations

import json

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from hookline.v1.event_pb2 import EVENT_VIEW_FULL, Event
from hookline.v1.event_service_pb2 import (
    GetEventRequest,
    ListEventsRequest,
)
from hookline_service.domain.event import EventType, EventTypeState
from hookline_service.domain.ids import parse_type_id
from hookline_service.domain.limits import Limits
from tests.api.conftest import Api, serving
from tests.api.publishing import order, publish, refused
from tests.api.refusals import refusal
from tests.waiting import until

INVALID = grpc.StatusCode.INVALID_ARGUMENT


async def get(api: Api, name: str) -> Event:
    return (await api.events.GetEvent(GetEventRequest(name=name))).event


# -------------------------------------------------------------------------------------- publishing


async def test_event_is_read_back_with_the_published_fields(api: Api) -> None:
    sent = order(
        source="/shop/7?x=%20#f",
        subject="order 1 ☂",
        occur_time=Timestamp(seconds=-1, nanos=999_999_000),
        external_id="legacy 1",
        data_schema="https://example.com/schemas/order.json",
        idempotency_key="order/1 created!",
        ordering_key="order/1",
        attributes={"region": "eu", "n": "☂"},
        json_data='{"id":1}',
        content_type='application/vnd.acme+json; v="2"',
    )
    result = (await publish(api, sent)).results[0]
    assert (result.deduplicated, result.delivery_count) == (False, 0)
    read = await get(api, result.name)
    assert read.name == result.name
    event_id = parse_type_id("evt", read.name.removeprefix("tenants/acme/events/"))
    assert event_id is not None
    assert read.create_time.ToMilliseconds() == event_id.int >> 80
    for field in ("name", "create_time"):
        read.ClearField(field)
    assert read == sent


async def test_omitted_fields_have_the_defaults_of_the_contract(api: Api) -> None:
    results = (await publish(api, order(), order(binary_data=b"\x00\xff"))).results
    text, binary = [await get(api, result.name) for result in results]
    assert (text.source, text.content_type) == ("/tenants/acme", "application/json")
    assert (binary.binary_data, binary.content_type) == (b"\x00\xff", "application/octet-stream")
    assert not text.HasField("occur_time")
    assert text.event_type_revision == 0


@pytest.mark.parametrize(
    "json_data",
    [
        '{"a":1,"a":2}',
        '{"n":123456789012345678901234567890123456789012345678901234567890}',
        " [ 1.0e5 ,\n -0 ]\t",
        '"\\u0000 \\ud83c\\udf02 \u2602"',
        "null",
        "[" * 128 + "]" * 128,
        '["' + "[" * 200 + '\\"]"]',
    ],
)
async def test_json_is_kept_byte_for_byte(api: Api, json_data: str) -> None:
    result = (await publish(api, order(json_data=json_data))).results[0]
    assert (await get(api, result.name)).json_data == json_data


async def test_output_only_fields_are_ignored(api: Api) -> None:
    first = (await publish(api, order())).results[0]
    again = await get(api, first.name)
    again.event_type_revision = 9
    second = (await publish(api, again)).results[0]
    assert second.name != first.name
    assert (await get(api, second.name)).event_type_revision == 0


async def test_equal_event_with_the_same_idempotency_key_returns_the_first(api: Api) -> None:
    keyed = order(idempotency_key="k", json_data='{"id":1}')
    first, twin = (await publish(api, keyed, keyed)).results
    again = (await publish(api, keyed)).results[0]
    assert [first.deduplicated, twin.deduplicated, again.deduplicated] == [False, True, True]
    assert {first.name, twin.name, again.name} == {first.name}
    other = await refused(api, order(), order(idempotency_key="k", json_data='{"id":2}'))
    assert (other.code, other.reason) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "IDEMPOTENCY_KEY_REUSED",
    )
    assert other.metadata["index"] == "1"
    assert other.metadata["name"] == first.name


async def test_results_come_in_the_order_of_the_request(api: Api) -> None:
    events = [order(json_data=json.dumps({"n": n})) for n in range(50)]
    results = (await publish(api, *events)).results
    read = [json.loads((await get(api, r.name)).json_data)["n"] for r in results]
    assert read == list(range(50))


async def test_publish_for_an_unknown_tenant_is_refused(api: Api) -> None:
    answer = await refused(api, order(), tenant="tenants/unknown")
    assert (answer.code, answer.reason) == (grpc.StatusCode.NOT_FOUND, "TENANT_NOT_FOUND")


# ----------------------------------------------------------------------------------------- reading


LOST_NAMES: list[tuple[str, str]] = [
    ("", "FIELD_REQUIRED"),
    ("events/evt_1", "FIELD_INVALID"),
    ("tenants/acme/events/", "FIELD_INVALID"),
    ("tenants/acme/events/evt_short", "FIELD_INVALID"),
    ("tenants/acme/events/dlv_01jdc6cqsyfz8snxvzxvqf9h5b", "FIELD_INVALID"),
    ("tenants/acme/events/evt_8zzzzzzzzzzzzzzzzzzzzzzzzz", "FIELD_INVALID"),
    ("tenants/acme/events/evt_01JDC6CQSYFZ8SNXVZXVQF9H5B", "FIELD_INVALID"),
    ("tenants/ACME/events/evt_01jdc6cqsyfz8snxvzxvqf9h5b", "FIELD_INVALID"),
    ("tenants/acme/events/evt_01jdc6cqsyfz8snxvzxvqf9h5\x00", "FIELD_INVALID"),
    ("tenants/acme/events/evt_01jdc6cqsyfz8snxvzxvqf9h5b", "EVENT_NOT_FOUND"),
    ("tenants/unknown/events/evt_01jdc6cqsyfz8snxvzxvqf9h5b", "EVENT_NOT_FOUND"),
    ("tenants/-/events/evt_01jdc6cqsyfz8snxvzxvqf9h5b", "EVENT_NOT_FOUND"),
]


async def test_invalid_and_unknown_names_are_refused(api: Api) -> None:
    for name, reason in LOST_NAMES:
        answer = await refusal(get(api, name))
        assert (name, answer.reason) == (name, reason)
        is_unknown = reason == "EVENT_NOT_FOUND"
        assert answer.code is (grpc.StatusCode.NOT_FOUND if is_unknown else INVALID)


async def test_read_across_tenants_returns_the_full_event_name(api: Api) -> None:
    name = (await publish(api, order())).results[0].name
    assert (await get(api, name.replace("acme", "-"))).name == name
    await api.rows.tenant("other")
    foreign = await refusal(get(api, name.replace("acme", "other")))
    unknown = await refusal(get(api, name.replace("acme", "unknown")))
    assert foreign.reason == unknown.reason == "EVENT_NOT_FOUND"
    assert foreign.code is unknown.code is grpc.StatusCode.NOT_FOUND


async def pages_of(api: Api, request: ListEventsRequest) -> list[list[Event]]:
    """Return all pages of a list."""
    pages = []
    while True:
        page = await api.events.ListEvents(request)
        pages.append(list(page.events))
        if not page.next_page_token:
            return pages
        request.page_token = page.next_page_token


async def test_lists_are_newest_first_in_pages(api: Api) -> None:
    names = [result.name for result in (await publish(api, *[order()] * 7)).results]
    await api.rows.event(await api.rows.tenant("other"))
    pages = await pages_of(api, ListEventsRequest(tenant="tenants/acme", page_size=3))
    assert [len(page) for page in pages] == [3, 3, 1]
    listed = [event.name for page in pages for event in page]
    assert sorted(listed, reverse=True) == listed
    assert set(listed) == set(names)
    across = await pages_of(api, ListEventsRequest(tenant="tenants/-"))
    assert [len(page) for page in across] == [8]


async def test_lists_contain_data_only_if_requested(api: Api) -> None:
    await publish(api, order(json_data='{"id":1}', attributes={"a": "b"}))
    request = ListEventsRequest(tenant="tenants/acme")
    [[basic]] = await pages_of(api, request)
    assert basic.WhichOneof("data") is None
    assert dict(basic.attributes) == {"a": "b"}
    request.view = EVENT_VIEW_FULL
    [[full]] = await pages_of(api, request)
    assert full.json_data == '{"id":1}'


async def test_a_page_ends_before_three_megabytes(api: Api) -> None:
    await publish(api, *[order(binary_data=bytes(250_000))] * 15)
    request = ListEventsRequest(tenant="tenants/acme", view=EVENT_VIEW_FULL)
    first = await api.events.ListEvents(request)
    assert 2_800_000 < first.ByteSize() < 3 * 1024 * 1024 + 100
    pages = await pages_of(api, request)
    assert [len(page) for page in pages] == [12, 3]


async def test_page_of_large_envelopes_is_limited(database_url: str) -> None:
    async with serving(database_url, limits=Limits(max_page_bytes=10_000)) as api:
        await api.rows.tenant("acme")
        await publish(api, *[order(subject="s" * 1_000, json_data="1")] * 25)
        pages = await pages_of(api, ListEventsRequest(tenant="tenants/acme"))
        assert sum(len(page) for page in pages) == 25
        assert all(len(page) <= 9 for page in pages)


async def test_a_page_size_of_zero_is_fifty_and_none_is_above_a_thousand(api: Api) -> None:
    await publish(api, *[order()] * 1_000)
    await publish(api, *[order()] * 5)
    default = await api.events.ListEvents(ListEventsRequest(tenant="tenants/acme"))
    assert len(default.events) == 50
    request = ListEventsRequest(tenant="tenants/acme", page_size=2_000_000_000)
    assert [len(page) for page in await pages_of(api, request)] == [1_000, 5]


async def test_a_page_token_belongs_to_its_list(api: Api) -> None:
    await publish(api, *[order()] * 3)
    await api.rows.tenant("other")
    request = ListEventsRequest(tenant="tenants/acme", page_size=1)
    token = (await api.events.ListEvents(request)).next_page_token
    assert token
    for changed in (
        ListEventsRequest(tenant="tenants/other", page_token=token),
        ListEventsRequest(tenant="tenants/-", page_token=token),
        ListEventsRequest(tenant="tenants/acme", page_token=token, view=EVENT_VIEW_FULL),
        ListEventsRequest(tenant="tenants/acme", page_token=token[:-1]),
        ListEventsRequest(tenant="tenants/acme", page_token="garbage ☂"),
        ListEventsRequest(tenant="tenants/acme", page_token="A" * 5_000),
    ):
        answer = await refusal(api.events.ListEvents(changed))
        assert answer.code is INVALID
        assert answer.violations == {"page_token": "PAGE_TOKEN_INVALID"}
    request = ListEventsRequest(tenant="tenants/acme", page_token=token, page_size=9)
    assert len((await api.events.ListEvents(request)).events) == 2


@pytest.mark.parametrize(
    "request_,code,fields",
    [
        (ListEventsRequest(tenant="acme", page_size=-1), INVALID, ["tenant", "page_size"]),
        (ListEventsRequest(tenant="tenants/acme", view=77), INVALID, ["view"]),  # type: ignore[arg-type]
        (ListEventsRequest(), INVALID, ["tenant"]),
        (
            ListEventsRequest(tenant="tenants/acme", filter="type == 'a'"),
            grpc.StatusCode.UNIMPLEMENTED,
            [],
        ),
        (ListEventsRequest(tenant="tenants/unknown"), grpc.StatusCode.NOT_FOUND, []),
    ],
)
async def test_invalid_lists_are_refused(
    api: Api, request_: ListEventsRequest, code: grpc.StatusCode, fields: list[str]
) -> None:
    answer = await refusal(api.events.ListEvents(request_))
    assert answer.code is code
    assert list(answer.violations) == fields
    if code is grpc.StatusCode.UNIMPLEMENTED:
        assert (answer.reason, answer.metadata) == ("NOT_IMPLEMENTED", {"field": "filter"})


# ----------------------------------------------------------------------------- when it cannot be


async def test_a_full_queue_rejects_before_anything_is_stored(database_url: str) -> None:
    async with serving(database_url, limits=Limits(max_queued_publish_events=5)) as api:
        await api.rows.tenant("acme")
        answer = await refused(api, *[order()] * 6)
        assert (answer.code, answer.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert answer.retry_s is not None
        assert answer.pushback_ms == str(round(answer.retry_s * 1_000))
        assert answer.quota == ["HOOKLINE_MAX_QUEUED_PUBLISH_EVENTS"]
        unread = await refused(api, *[order(type="no type")] * 6)
        assert unread.reason == "OVERLOADED", "the events are not validated"
        assert await pages_of(api, ListEventsRequest(tenant="tenants/acme")) == [[]]
        await publish(api, *[order()] * 5)


async def test_schema_violation_names_its_event(api: Api) -> None:
    schema = '{"type":"object","required":["id"]}'
    api.rig.event_types.event_types = [
        EventType(name="order.created", json_schema=schema, revision=4),
        EventType(name="order.old", state=EventTypeState.ARCHIVED),
    ]
    await api.rig.catalog.reload()
    answer = await refused(api, order(json_data='{"id":1}'), order(json_data="{}"))
    assert answer.code is INVALID
    assert answer.violations == {"events[1].json_data": "PAYLOAD_SCHEMA_MISMATCH"}
    archived = await refused(api, order(type="order.old"))
    assert archived.code is grpc.StatusCode.FAILED_PRECONDITION
    assert archived.reason == "EVENT_TYPE_ARCHIVED"
    result = (await publish(api, order(json_data='{"id":1}'))).results[0]
    assert (await get(api, result.name)).event_type_revision == 4


async def test_lost_database_is_unavailable_until_it_recovers(api: Api) -> None:
    name = (await publish(api, order())).results[0].name
    await api.rig.database.close()
    answer = await refusal(get(api, name))
    assert answer.code is grpc.StatusCode.UNAVAILABLE
    assert (answer.reason, answer.retry_s) == ("DATABASE_UNAVAILABLE", 1.0)
    await api.rig.database.open()
    assert (await get(api, name)).name == name


async def test_read_that_lost_its_connection_can_be_retried(api: Api) -> None:
    name = (await publish(api, order())).results[0].name
    await get(api, name)
    await api.rows.connection.execute(
        """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
           WHERE application_name = 'hookline calls' AND datname = current_database()"""
    )
    codes: list[grpc.StatusCode] = []

    async def is_read() -> bool:
        try:
            return (await get(api, name)).name == name
        except grpc.aio.AioRpcError as error:
            codes.append(error.code())
            return False

    await until(is_read, "the pool recovers")
    assert set(codes) <= {grpc.StatusCode.UNAVAILABLE}
