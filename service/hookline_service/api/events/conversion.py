"""Validation of published events, and conversions of events between the contract and the domain.

Reading is on the hot path: an unset field costs one comparison, and valid types are cached. JSON is
parsed only to validate it: the received bytes are stored, signed and sent. So duplicate keys and
integers of any size within the range of a double are accepted and preserved.

Source: RFC 8259. It leaves duplicate keys (section 4) and large numbers (section 6) to the parser;
lone surrogates, whose effect it calls unpredictable (section 8.2), are rejected.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from itertools import accumulate

import orjson

from hookline.v1 import event_pb2
from hookline_service.api.conversion.values import datetime_in, timestamp_of
from hookline_service.api.middleware.errors import not_implemented
from hookline_service.domain.errors import Reason, Violation, over_limit
from hookline_service.domain.event import (
    BINARY_CONTENT_TYPE,
    JSON_CONTENT_TYPE,
    RESERVED_TYPE_PREFIX,
    Event,
    NewEvent,
)
from hookline_service.domain.ids import EVENT_ID, format_type_id
from hookline_service.domain.limits import Limits
from hookline_service.domain.names import (
    MAX_ATTRIBUTES,
    check_attribute_name,
    check_content_type,
    check_event_type,
    check_key,
    event_name,
    tenant_name,
)

TEXT_BYTES_MAX = 1_024
"""The limit of `source`, `subject` and `data_schema`."""
EXTERNAL_ID_BYTES_MAX = 255
_VALID_TYPES_MAX = 10_000
_UTF8_WIDTH_MAX = 4
_URI_REFERENCE = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*", re.ASCII)
"""The characters of RFC 3986 section 2, and its percent-encoding."""
_JSON_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = bytes.maketrans(b"[]{}", b"\x01\xff\x01\xff")  # 1 and -1, as signed bytes


class EventReader:
    """Reads the events of requests and adds their violations."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._paths = [f"events[{index}]." for index in range(limits.max_batch_events)]
        self._valid_types: set[str] = set()

    def read(
        self, messages: Sequence[event_pb2.Event], violations: list[Violation]
    ) -> list[NewEvent]:
        """Return the events in request order; unusable if there are violations.

        The paths are such as `events[3].type`. There must be at most `max_batch_events` messages.
        Raises `UnimplementedError` for `proto_data`.
        """
        return [
            self.read_one(message, path, violations)
            for message, path in zip(messages, self._paths[: len(messages)], strict=True)
        ]

    def read_one(
        self, message: event_pb2.Event, path: str, violations: list[Violation]
    ) -> NewEvent:
        """Return one event; the paths of its violations begin with `path`."""
        event_type = message.type
        if event_type not in self._valid_types:
            self._check_type(event_type, path, violations)
        content_type = message.content_type
        match message.WhichOneof("data"):
            case "json_data":
                is_json, data = True, message.json_data.encode()
                self._check_json(data, f"{path}json_data", violations)
            case "binary_data":
                is_json, data = False, message.binary_data
                self._check_size(data, f"{path}binary_data", violations)
            case "proto_data":
                raise not_implemented("proto_data", field=f"{path}proto_data")
            case _:
                is_json, data = True, b""
                violations.append(
                    Violation(
                        f"{path}data",
                        "is required: json_data or binary_data",
                        Reason.FIELD_REQUIRED,
                    )
                )
        if content_type and (problem := check_content_type(content_type)):
            violations.append(Violation(f"{path}content_type", problem))
        event = NewEvent(
            type=event_type,
            data=data,
            is_json=is_json,
            content_type=content_type or (JSON_CONTENT_TYPE if is_json else BINARY_CONTENT_TYPE),
            source=message.source,
            subject=message.subject,
            external_id=message.external_id,
            data_schema=message.data_schema,
            idempotency_key=message.idempotency_key,
            ordering_key=message.ordering_key,
            traceparent=message.traceparent,
        )
        if message.HasField("occur_time"):
            event.occur_time = datetime_in(message.occur_time, f"{path}occur_time", violations)
        if message.attributes:
            event.attributes = dict(message.attributes)
            self._check_attributes(event.attributes, path, violations)
        _check_texts(event, path, violations)
        return event

    def _check_type(self, event_type: str, path: str, violations: list[Violation]) -> None:
        field = f"{path}type"
        if not event_type:
            violations.append(Violation(field, "is required", Reason.FIELD_REQUIRED))
        elif problem := check_event_type(event_type):
            violations.append(Violation(field, problem))
        elif event_type.startswith(RESERVED_TYPE_PREFIX):
            violations.append(
                Violation(
                    field,
                    f"must not begin with '{RESERVED_TYPE_PREFIX}': it is reserved for Hookline",
                )
            )
        elif len(self._valid_types) < _VALID_TYPES_MAX:
            self._valid_types.add(event_type)

    def _check_size(self, data: bytes, field: str, violations: list[Violation]) -> bool:
        limit = self._limits.max_data_bytes
        if len(data) <= limit:
            return True
        setting = "HOOKLINE_MAX_DATA_BYTES"
        violations.append(over_limit(field, len(data), "bytes", setting, limit))
        return False

    def _check_json(self, data: bytes, field: str, violations: list[Violation]) -> None:
        if not self._check_size(data, field, violations):
            return
        try:
            orjson.loads(data)
        except orjson.JSONDecodeError as error:
            violations.append(
                Violation(
                    field,
                    "is not JSON text that all parsers read identically (RFC 8259): "
                    f"see line {error.lineno}, column {error.colno}",
                    Reason.PAYLOAD_INVALID,
                )
            )
            return
        limit = self._limits.max_json_depth
        if data.count(b"[") + data.count(b"{") > limit and _is_deeper(data, limit):
            violations.append(
                Violation(
                    field,
                    f"is nested too deeply; HOOKLINE_MAX_JSON_DEPTH allows {limit}",
                    Reason.LIMIT_EXCEEDED,
                    "HOOKLINE_MAX_JSON_DEPTH",
                    limit,
                )
            )

    def _check_attributes(
        self, attributes: dict[str, str], path: str, violations: list[Violation]
    ) -> None:
        if len(attributes) > MAX_ATTRIBUTES:
            violations.append(
                Violation(
                    f"{path}attributes",
                    f"has {len(attributes):,} entries; at most {MAX_ATTRIBUTES} are allowed",
                    Reason.LIMIT_EXCEEDED,
                )
            )
        limit = self._limits.max_attribute_bytes
        for name, value in attributes.items():
            field = f'{path}attributes["{name}"]'
            problem = check_attribute_name(name)
            if problem:
                violations.append(Violation(field, f"its name {problem}"))
            size = _utf8_bytes(value, limit)
            if size > limit:
                setting = "HOOKLINE_MAX_ATTRIBUTE_BYTES"
                violations.append(over_limit(field, size, "bytes", setting, limit))
            if "\x00" in value:
                violations.append(Violation(field, "contains U+0000"))


def _check_texts(event: NewEvent, path: str, violations: list[Violation]) -> None:
    if event.idempotency_key and (problem := check_key(event.idempotency_key)):
        violations.append(Violation(f"{path}idempotency_key", problem))
    if event.ordering_key and (problem := check_key(event.ordering_key)):
        violations.append(Violation(f"{path}ordering_key", problem))
    if event.source:
        _check_text(event.source, TEXT_BYTES_MAX, f"{path}source", violations, is_uri=True)
    if event.subject:
        _check_text(event.subject, TEXT_BYTES_MAX, f"{path}subject", violations)
    if event.external_id:
        _check_text(event.external_id, EXTERNAL_ID_BYTES_MAX, f"{path}external_id", violations)
    if event.data_schema:
        _check_text(
            event.data_schema, TEXT_BYTES_MAX, f"{path}data_schema", violations, is_uri=True
        )


def _check_text(
    text: str, bytes_max: int, field: str, violations: list[Violation], *, is_uri: bool = False
) -> None:
    size = _utf8_bytes(text, bytes_max)
    if size > bytes_max:
        violations.append(
            Violation(
                field,
                f"has {size:,} bytes; at most {bytes_max:,} are allowed",
                Reason.LIMIT_EXCEEDED,
            )
        )
    elif "\x00" in text:
        violations.append(Violation(field, "contains U+0000"))
    elif is_uri and not _URI_REFERENCE.fullmatch(text):
        violations.append(
            Violation(field, "must be a URI reference (RFC 3986): percent-encode other characters")
        )


def _utf8_bytes(text: str, limit: int) -> int:
    """Return the length in UTF-8; the number of characters if that cannot exceed the limit."""
    length = len(text)
    return len(text.encode()) if length * _UTF8_WIDTH_MAX > limit else length


def _is_deeper(json_text: bytes, limit: int) -> bool:
    """Return whether valid JSON is nested deeper than `limit`, by counting brackets."""
    steps = array("b", _JSON_STRING.sub(b"", json_text).translate(_STEPS, _NO_BRACKETS))
    return max(accumulate(steps), default=0) > limit


def message_of(event: Event, *, with_data: bool) -> event_pb2.Event:
    """Return the message of a stored event."""
    message = event_pb2.Event(
        name=event_name(event.tenant_id, format_type_id(EVENT_ID, event.event_id)),
        type=event.type,
        source=event.source or f"/{tenant_name(event.tenant_id)}",
        subject=event.subject,
        occur_time=timestamp_of(event.occur_time) if event.occur_time else None,
        external_id=event.external_id,
        data_schema=event.data_schema,
        idempotency_key=event.idempotency_key,
        ordering_key=event.ordering_key,
        attributes=event.attributes,
        content_type=event.content_type,
        event_type_revision=event.event_type_revision,
        create_time=timestamp_of(event.create_time),
    )
    if with_data and event.is_json:
        message.json_data = event.data.decode()
    elif with_data:
        message.binary_data = event.data
    return message
