"""EventTypeService over a real channel: schemas are checked when written, never fetched."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from hookline.v1.event_type_pb2 import EVENT_TYPE_STATE_ACTIVE, EVENT_TYPE_STATE_ARCHIVED, EventType
from hookline.v1.event_type_service_pb2 import (
    ArchiveEventTypeRequest,
    CreateEventTypeRequest,
    GetEventTypeRequest,
    ListEventTypesRequest,
    ListEventTypesResponse,
    RegisterEventTypesRequest,
    UpdateEventTypeRequest,
)
from hookline_service.domain.limits import Limits
from hookline_service.store.event_types import EventTypes
from tests.api.control import INVALID, Control, controlling
from tests.api.refusals import refusal

NAME = "eventTypes/order.created"
SCHEMA = json.dumps(
    {"type": "object", "required": ["id"], "properties": {"id": {"type": "integer"}}}
)


@pytest.fixture
async def control(database_url: str) -> AsyncIterator[Control]:
    async with controlling(database_url) as control:
        yield control


async def create(
    control: Control,
    event_type_id: str = "order.created",
    **fields: Any,  # noqa: ANN401 (any field)
) -> EventType:
    request = CreateEventTypeRequest(event_type_id=event_type_id, event_type=EventType(**fields))
    return (await control.event_types.CreateEventType(request)).event_type


async def get(control: Control, name: str = NAME) -> EventType:
    return (await control.event_types.GetEventType(GetEventTypeRequest(name=name))).event_type


async def update(
    control: Control, event_type: EventType, *paths: str, etag: str = "", name: str = NAME
) -> EventType:
    event_type.name = name
    request = UpdateEventTypeRequest(
        event_type=event_type, update_mask=FieldMask(paths=paths), etag=etag
    )
    return (await control.event_types.UpdateEventType(request)).event_type


async def archive(control: Control, name: str = NAME, etag: str = "") -> EventType:
    request = ArchiveEventTypeRequest(name=name, etag=etag)
    return (await control.event_types.ArchiveEventType(request)).event_type


async def page(control: Control, **fields: Any) -> ListEventTypesResponse:  # noqa: ANN401 (any field)
    return await control.event_types.ListEventTypes(ListEventTypesRequest(**fields))


async def test_created_event_type_has_the_given_fields(control: Control) -> None:
    made = await create(
        control,
        name="ignored",
        description="An order ☂",
        json_schema=SCHEMA,
        example_json='{"id": 1}',
        state=EVENT_TYPE_STATE_ARCHIVED,
        revision=7,
        etag="ignored",
    )
    assert made == await get(control)
    assert (made.name, made.description, made.json_schema, made.example_json) == (
        NAME,
        "An order ☂",
        SCHEMA,
        '{"id": 1}',
    )
    assert (made.state, made.revision) == (EVENT_TYPE_STATE_ACTIVE, 1)
    assert made.etag not in {"", "ignored"}
    bare = await create(control, "Order_v2.created-3")
    assert bare.WhichOneof("schema") is None


async def test_name_of_an_event_type_is_never_reused(control: Control) -> None:
    await create(control)
    await archive(control)
    refused = await refusal(create(control))
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "EVENT_TYPE_ALREADY_EXISTS",
    )


async def test_changed_copy_of_a_read_event_type_is_accepted(control: Control) -> None:
    made = await create(control, json_schema=SCHEMA, example_json='{"id": 1}')
    made.description = "new"
    sent = EventType()
    sent.CopyFrom(made)
    changed = await update(control, sent)
    assert (changed.description, changed.revision) == ("new", 1)
    assert changed.etag != made.etag
    assert (await refusal(update(control, sent))).reason == "ETAG_MISMATCH"


@pytest.mark.parametrize(
    "paths,after",
    [
        ([], ("new", SCHEMA, "1")),
        (["description"], ("new", SCHEMA, "1")),
        (["json_schema"], ("old", "", "2")),
        (["jsonSchema", "exampleJson"], ("old", "", "2")),
        (["*"], ("new", "", "2")),
    ],
)
async def test_update_changes_only_fields_of_its_mask(
    control: Control, paths: list[str], after: tuple[str, str, str]
) -> None:
    await create(control, description="old", json_schema=SCHEMA)
    changed = await update(control, EventType(description="new"), *paths)
    assert (changed.description, changed.json_schema, str(changed.revision)) == after
    assert changed == await get(control)


async def test_kept_example_must_match_a_new_schema(control: Control) -> None:
    await create(control, json_schema=SCHEMA, example_json='{"id": 1}')
    narrower = EventType(json_schema='{"required": ["id", "sum"]}')
    refused = await refusal(update(control, narrower))
    assert refused.violations == {"event_type.example_json": "SCHEMA_INVALID"}
    narrower.example_json = '{"id": 1, "sum": 2}'
    assert (await update(control, narrower)).revision == 2


async def test_archiving_is_final_and_repeating_it_changes_nothing(control: Control) -> None:
    made = await create(control)
    archived = await archive(control, etag=made.etag)
    assert archived.state == EVENT_TYPE_STATE_ARCHIVED
    assert await archive(control) == archived
    described = await update(control, EventType(description="was an order"))
    assert described.state == EVENT_TYPE_STATE_ARCHIVED


async def test_a_stale_etag_is_rejected(control: Control) -> None:
    made = await create(control)
    await update(control, EventType(description="1"), etag=made.etag)
    for call in (
        update(control, EventType(description="2"), etag=made.etag),
        update(control, EventType(description="2", etag=made.etag)),
        archive(control, etag=made.etag),
    ):
        refused = await refusal(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    differing = await refusal(update(control, EventType(etag="1"), etag="2"))
    assert differing.violations == {"etag": "FIELD_INVALID"}


async def test_pages_are_newest_first(control: Control) -> None:
    for n in range(5):
        await create(control, f"t{n}", json_schema=SCHEMA)
    names: list[str] = []
    token = ""
    while True:
        answer = await page(control, page_size=2, page_token=token)
        names += [event_type.name for event_type in answer.event_types]
        token = answer.next_page_token
        if not token:
            break
    assert names == [f"eventTypes/t{n}" for n in (4, 3, 2, 1, 0)]
    refused = await refusal(page(control, page_token="A" * 40))
    assert refused.violations == {"page_token": "PAGE_TOKEN_INVALID"}


async def test_every_change_updates_the_catalog_of_the_node(control: Control) -> None:
    made = await create(control)
    await update(control, EventType(description="x"))
    await archive(control)
    rows = await control.rig.database.fetch("SELECT kind, bucket FROM change_log")
    assert [tuple(row) for row in rows] == [("EVENT_TYPE", None)] * 3
    assert made.name == NAME


async def test_next_publish_is_validated_by_a_new_schema(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The contract: a changed schema applies to events published from then on."""
    stored = EventTypes(control.rig.database)
    monkeypatch.setattr(control.rig.event_types, "heads", stored.heads)
    monkeypatch.setattr(control.rig.event_types, "schema", stored.schema)
    for number in range(10):
        name = f"eventTypes/order.t{number}"
        await create(control, f"order.t{number}", json_schema=SCHEMA)
        answer = await refusal(control.publish(f"order.t{number}"))
        assert answer.reason == "PAYLOAD_SCHEMA_MISMATCH"
        await update(control, EventType(json_schema='{"type": "object"}'), name=name)
        await control.publish(f"order.t{number}")
        await archive(control, name)
        answer = await refusal(control.publish(f"order.t{number}"))
        assert answer.reason == "EVENT_TYPE_ARCHIVED"


async def test_fields_of_later_versions_are_refused(control: Control) -> None:
    await create(control, "known")
    message = "platform.user.v1.UserRegistered"
    calls: list[tuple[Awaitable[object], str]] = [
        (create(control, proto_message=message), "event_type.proto_message"),
        (
            update(control, EventType(proto_message=message), name="eventTypes/known"),
            "event_type.proto_message",
        ),
        (page(control, filter="x"), "filter"),
        (control.event_types.RegisterEventTypes(RegisterEventTypesRequest()), ""),
    ]
    for call, field in calls:
        refused = await refusal(call)
        assert (refused.code, refused.reason) == (
            grpc.StatusCode.UNIMPLEMENTED,
            "NOT_IMPLEMENTED",
        )
        assert refused.metadata == ({"field": field} if field else {})


# ---------------------------------------------------------------------------------------- bad input

BAD_SCHEMAS = {
    "no JSON": "{",
    "trailing comma": '{"type": "object",}',
    "NaN": '{"maximum": NaN}',
    "a number": "1",
    "null": "null",
    "a list": "[]",
    "a schema within a string": '"{}"',
    "unknown type": '{"type": "strnig"}',
    "a remote reference": '{"$ref": "https://example.com/schema.json"}',
    "a remote reference deep inside": (
        '{"properties": {"a": {"items": {"$ref": "http://127.0.0.1:1/x"}}}}'
    ),
    "a file": '{"$ref": "file:///etc/passwd"}',
    "a relative reference": '{"$ref": "other.json"}',
    "a relative reference to a remote base": '{"$id": "https://example.com/a", "$ref": "b"}',
    "a reference to nothing": '{"$ref": "#/$defs/none"}',
    "an unknown draft": '{"$schema": "https://example.com/meta"}',
    "a broken pattern": '{"pattern": "("}',
    "a broken property pattern": '{"patternProperties": {"(": true}}',
    "nesting without end": '{"not":' * 5_000 + "{}" + "}" * 5_000,
    "deep nesting": '{"not":' * 900 + "{}" + "}" * 900,
    "a lone surrogate": '{"title": "\\ud800"}',
    "U+0000": '{"title": "\x00"}',
}


@pytest.mark.parametrize("schema", BAD_SCHEMAS.values(), ids=BAD_SCHEMAS.keys())
async def test_unusable_schema_is_refused_when_written(control: Control, schema: str) -> None:
    refused = await refusal(create(control, json_schema=schema))
    assert (refused.code, refused.reason) == (INVALID, "SCHEMA_INVALID")
    assert refused.violations == {"event_type.json_schema": "SCHEMA_INVALID"}
    assert "Error" not in refused.message
    await create(control)
    refused = await refusal(update(control, EventType(json_schema=schema)))
    assert refused.violations == {"event_type.json_schema": "SCHEMA_INVALID"}


GOOD_SCHEMAS = [
    "true",
    "{}",
    '{"$ref": "#/$defs/a", "$defs": {"a": {"type": "object"}}}',
    '{"properties": {"child": {"$ref": "#"}}}',
    '{"$ref": "#"}',
    '{"$ref": "https://json-schema.org/draft/2020-12/schema"}',
    '{"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"}',
]


@pytest.mark.parametrize("schema", GOOD_SCHEMAS)
async def test_schema_can_refer_to_itself_and_to_the_json_schema_drafts(
    control: Control, schema: str
) -> None:
    assert (await create(control, json_schema=schema, example_json="{}")).json_schema == schema


@pytest.mark.parametrize("example", ["{", "", '{"id": "one"}', "[1]", "{}", '{"id": 1}\x00'])
async def test_example_must_match_the_schema(control: Control, example: str) -> None:
    call = create(control, json_schema=SCHEMA, example_json=example)
    if not example:
        await call
        return
    refused = await refusal(call)
    assert refused.violations == {"event_type.example_json": "SCHEMA_INVALID"}


@pytest.mark.parametrize(
    "event_type_id",
    [
        ".a", "a.", "a..b", "a b", "a/b", "a.*", "*", "ä", "a\x00", "a\n", "a" * 129, "hookline.a",
        "hookline.subscription.disabled", "a,b", "-/a",
    ],
)  # fmt: skip
async def test_a_name_outside_the_grammar_or_reserved_is_refused(
    control: Control, event_type_id: str
) -> None:
    refused = await refusal(create(control, event_type_id))
    assert (refused.code, refused.violations) == (INVALID, {"event_type_id": "FIELD_INVALID"})


async def test_unknown_event_type_is_not_found(control: Control) -> None:
    for call in (
        get(control),
        archive(control),
        update(control, EventType(description="x")),
    ):
        refused = await refusal(call)
        assert (refused.code, refused.reason) == (
            grpc.StatusCode.NOT_FOUND,
            "EVENT_TYPE_NOT_FOUND",
        )


async def test_all_violations_are_reported_together(database_url: str) -> None:
    async with controlling(database_url, limits=Limits(max_schema_bytes=2_000)) as control:
        refused = await refusal(
            create(
                control,
                "",
                description="d" * 4_097,
                json_schema=json.dumps({"title": "☂" * 700}, ensure_ascii=False),
                example_json='"' + "e" * 65_536 + '"',
            )
        )
        assert refused.violations == {
            "event_type_id": "FIELD_REQUIRED",
            "event_type.description": "LIMIT_EXCEEDED",
            "event_type.json_schema": "LIMIT_EXCEEDED",
            "event_type.example_json": "LIMIT_EXCEEDED",
        }
        assert refused.metadata == {"limit": "HOOKLINE_MAX_SCHEMA_BYTES", "maximum": "2000"}
        refused = await refusal(
            update(control, EventType(etag="a"), "state", "nmae", etag="b", name="x")
        )
        assert refused.violations == {
            "event_type.name": "FIELD_INVALID",
            "etag": "FIELD_INVALID",
            "update_mask": "UPDATE_MASK_INVALID",
        }
