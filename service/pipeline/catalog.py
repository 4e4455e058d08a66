"""The event types in memory: whether an event's type is accepted, and its data right."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NoReturn, Protocol

import jsonschema_rs
import orjson
import structlog

from service.domain.errors import (
    FailedPreconditionError,
    HooklineError,
    Reason,
    Violation,
    invalid,
)
from service.domain.event import EventTypeState
from service.domain.names import event_type_name
from service.store.database import OutcomeUnknownError, unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.domain.event import EventType, NewEvent

_log = structlog.get_logger(__name__)
_MAX_PROBLEMS = 5
_MAX_EXPLAINED_BYTES = 16 * 1_024
"""How much data of one call is looked through for where it is wrong. The validator lists every
violation before it tells the first, 10 us each, and the event loop waits."""


class EventTypeSource(Protocol):
    """Where event types come from: `store/event_types.py`."""

    async def all(self) -> list[EventType]:
        """Every event type, archived ones too."""
        ...


class _Entry:
    __slots__ = ("is_unusable", "revision", "state", "validator")

    def __init__(self, event_type: EventType) -> None:
        self.state = event_type.state
        self.revision = event_type.revision
        self.validator: jsonschema_rs.Validator | None = None
        self.is_unusable = False
        if event_type.json_schema:
            try:
                self.validator = compile_schema(event_type.json_schema)
            except ValueError:
                _log.exception("event_type_unusable", event_type=event_type.name)
                self.is_unusable = True


def compile_schema(json_schema: str) -> jsonschema_rs.Validator:
    """A validator that fetches nothing; raises `ValueError` for what is no JSON Schema."""
    try:
        return jsonschema_rs.validator_for(
            orjson.loads(json_schema), retriever=_refuse_to_fetch, validate_formats=False
        )
    except (orjson.JSONDecodeError, jsonschema_rs.ValidationError) as error:
        raise ValueError(str(error)) from error


def _refuse_to_fetch(uri: str) -> NoReturn:
    raise ValueError(f"schemas may not refer to other documents: {uri}")


class EventTypeCatalog:
    """What publishing must know of event types; reloaded when the change log says so."""

    def __init__(self, source: EventTypeSource, *, is_strict: bool = False) -> None:
        self._source = source
        self._is_strict = is_strict
        self._entries: dict[str, _Entry] = {}
        self._reading = asyncio.Lock()
        self._asked = 0
        self._answered = 0

    async def reload(self) -> None:
        """Read all event types. Raises `UnavailableError`.

        One reading at a time, so that an older one never replaces a newer; whoever asks while one
        is under way shares the next.
        """
        self._asked += 1
        mine = self._asked
        async with self._reading:
            if self._answered >= mine:
                return
            begun = self._asked
            try:
                event_types = await self._source.all()
            except OutcomeUnknownError as error:
                raise unavailable(error) from error  # it was only read
            self._take_in(event_types)
            self._answered = begun

    def _take_in(self, event_types: Sequence[EventType]) -> None:
        """What has not changed keeps its validator."""
        entries: dict[str, _Entry] = {}
        for event_type in event_types:
            before = self._entries.get(event_type.name)
            if before is not None and before.revision == event_type.revision:
                before.state = event_type.state
                entries[event_type.name] = before
            else:
                entries[event_type.name] = _Entry(event_type)
        self._entries = entries

    async def check(self, events: Sequence[NewEvent], field: str = "events[{}]") -> list[int]:
        """The revision of each event's type (0: unregistered); `field` is where an event stands.

        Raises `FailedPreconditionError` for an archived type or, where types are strict, an unknown
        one, and `InvalidArgumentError` naming every event whose data its schema refuses.
        """
        entries = self._entries
        if self._is_strict and any(event.type not in entries for event in events):
            await self.reload()
            entries = self._entries
        revisions: list[int] = []
        violations: list[Violation] = []
        left_bytes = _MAX_EXPLAINED_BYTES
        for position, event in enumerate(events):
            entry = entries.get(event.type)
            if entry is None:
                if self._is_strict:
                    raise _refused(event.type, field, position, None)
                revisions.append(0)
                continue
            if entry.state is EventTypeState.ARCHIVED or entry.is_unusable:
                raise _refused(event.type, field, position, entry)
            if entry.validator is not None:
                found = _violations(field.format(position), event, entry.validator, left_bytes)
                violations += found
                if found and len(event.data) <= left_bytes:
                    left_bytes -= len(event.data)
            revisions.append(entry.revision)
        if violations:
            raise invalid(violations)
        return revisions


def _refused(event_type: str, field: str, position: int, entry: _Entry | None) -> HooklineError:
    what = f"{field.format(position)}.type: the event type {event_type!r}"
    metadata = {"event_type": event_type_name(event_type), "index": str(position)}
    if entry is None:
        return FailedPreconditionError(
            f"{what} is not registered", Reason.EVENT_TYPE_UNKNOWN, metadata=metadata
        )
    if entry.state is EventTypeState.ARCHIVED:
        return FailedPreconditionError(
            f"{what} is archived", Reason.EVENT_TYPE_ARCHIVED, metadata=metadata
        )
    return HooklineError(
        f"{what} has a schema that this version cannot read", Reason.INTERNAL, metadata=metadata
    )


def _violations(
    field: str, event: NewEvent, validator: jsonschema_rs.Validator, explained_bytes: int
) -> list[Violation]:
    if not event.is_json:
        return [
            Violation(
                f"{field}.binary_data",
                "must be json_data: the event type has a JSON Schema",
                Reason.PAYLOAD_SCHEMA_MISMATCH,
            )
        ]
    data = orjson.loads(event.data)
    if validator.is_valid(data):
        return []
    if len(event.data) > explained_bytes:
        text = "does not satisfy the event type's schema; where, is not told of so much data"
        return [Violation(f"{field}.json_data", text, Reason.PAYLOAD_SCHEMA_MISMATCH)]
    problems: list[Violation] = []
    for error in validator.iter_errors(data):
        path = "".join(f"[{step!r}]" for step in error.instance_path)
        problems.append(
            Violation(
                f"{field}.json_data",
                f"{path or 'the value'}: {error.message}"[:300],
                Reason.PAYLOAD_SCHEMA_MISMATCH,
            )
        )
        if len(problems) == _MAX_PROBLEMS:
            break
    return problems
