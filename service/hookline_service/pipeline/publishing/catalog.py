"""The event types in memory: whether an event's type is accepted, and its data right."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import structlog

from hookline_service.domain.errors import (
    FailedPreconditionError,
    HooklineError,
    Reason,
    Violation,
    invalid,
)
from hookline_service.domain.event import EventType, EventTypeState, NewEvent
from hookline_service.domain.names import event_type_name
from hookline_service.schema.checker import (
    Finding,
    OverBudgetError,
    Schema,
    SchemaChecker,
    SchemaUnusableError,
)
from hookline_service.store.database import OutcomeUnknownError, history_changed, unavailable

_log = structlog.get_logger(__name__)


class EventTypeSource(Protocol):
    """Where event types come from: `store/event_types.py`."""

    async def all(self) -> list[EventType]:
        """Every event type, archived ones too."""
        ...


class _Entry:
    __slots__ = ("is_unusable", "revision", "schema", "state")

    def __init__(self, event_type: EventType, checker: SchemaChecker) -> None:
        self.state = event_type.state
        self.revision = event_type.revision
        self.schema: Schema | None = None
        self.is_unusable = False
        if event_type.json_schema:
            try:
                self.schema = checker.read(event_type.json_schema)
            except SchemaUnusableError:
                _log.exception("event_schema_compilation_failed", event_type=event_type.name)
                self.is_unusable = True


class EventTypeCatalog:
    """What publishing must know of event types; reloaded when the change log says so."""

    def __init__(
        self, source: EventTypeSource, checker: SchemaChecker, *, is_strict: bool = False
    ) -> None:
        self._source = source
        self._checker = checker
        self._is_strict = is_strict
        self._entries: dict[str, _Entry] = {}
        self._reading = asyncio.Lock()
        self._asked = 0
        self._answered = 0
        self._forgotten = 0
        self._keeps_validators = True

    def forget(self) -> None:
        """Take no revision for one that is known: it was read on another copy of the database."""
        self._forgotten += 1
        self._keeps_validators = False

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
            begun, forgotten = self._asked, self._forgotten
            try:
                event_types = await self._source.all()
            except OutcomeUnknownError as error:
                raise unavailable(error) from error  # it was only read
            if self._forgotten != forgotten:
                raise history_changed()
            self._take_in(event_types)
            self._answered = begun

    def _take_in(self, event_types: Sequence[EventType]) -> None:
        """What has not changed keeps its validator."""
        entries: dict[str, _Entry] = {}
        for event_type in event_types:
            before = self._entries.get(event_type.name)
            is_known = before is not None and before.revision == event_type.revision
            if before is not None and is_known and self._keeps_validators:
                before.state = event_type.state
                entries[event_type.name] = before
            else:
                entries[event_type.name] = _Entry(event_type, self._checker)
        self._entries, self._keeps_validators = entries, True

    async def check(
        self, tenant_id: str, events: Sequence[NewEvent], field: str = "events[{}]"
    ) -> list[int]:
        """The revision of each event's type (0: unregistered); `field` is where an event stands.

        Raises `FailedPreconditionError` for an archived type or, where types are strict, an unknown
        one, `InvalidArgumentError` naming every event whose data its schema refuses, and what
        `SchemaChecker.check` raises where it could not be checked now.
        """
        entries = self._entries
        if self._is_strict and any(event.type not in entries for event in events):
            await self.reload()
            entries = self._entries
        revisions: list[int] = []
        typed: list[tuple[int, _Entry]] = []
        for position, event in enumerate(events):
            entry = entries.get(event.type)
            if entry is None:
                if self._is_strict:
                    raise _refused(event.type, field, position, None)
                revisions.append(0)
                continue
            if entry.state is EventTypeState.ARCHIVED or entry.is_unusable:
                raise _refused(event.type, field, position, entry)
            if entry.schema is not None:
                typed.append((position, entry))
            revisions.append(entry.revision)
        if typed:
            await self._check_data(tenant_id, events, typed, field)
        return revisions

    async def _check_data(
        self,
        tenant_id: str,
        events: Sequence[NewEvent],
        typed: Sequence[tuple[int, _Entry]],
        field: str,
    ) -> None:
        """Check the events that have a schema; `typed` has their positions."""
        wrong: dict[int, list[Violation]] = {}
        checked: list[tuple[int, _Entry]] = []
        data: list[tuple[Schema, bytes]] = []
        for position, entry in typed:
            if entry.schema is not None and events[position].is_json:
                checked.append((position, entry))
                data.append((entry.schema, events[position].data))
            else:
                wrong[position] = [_not_json(field.format(position))]
        try:
            findings = await self._checker.check(tenant_id, data)
        except SchemaUnusableError as error:
            position, entry = checked[error.index]
            event_type = events[position].type
            _log.exception("event_schema_compilation_failed", event_type=event_type)
            entry.is_unusable = True
            raise _refused(event_type, field, position, entry) from error
        except OverBudgetError as error:
            position, _ = checked[error.index]
            raise invalid([_over_budget(error, field.format(position))]) from error
        for (position, _), finding in zip(checked, findings, strict=True):
            if finding is not None:
                wrong[position] = _violations(field.format(position), finding)
        if wrong:
            raise invalid([one for position in sorted(wrong) for one in wrong[position]])


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


def _not_json(field: str) -> Violation:
    return Violation(
        f"{field}.binary_data",
        "must be json_data: the event type has a JSON Schema",
        Reason.PAYLOAD_SCHEMA_MISMATCH,
    )


def _over_budget(error: OverBudgetError, field: str) -> Violation:
    return Violation(
        f"{field}.json_data",
        f"cannot be checked against the event type's schema: that {error}; send less data, or have"
        " the schema changed",
        Reason.LIMIT_EXCEEDED,
        error.setting,
        error.maximum,
    )


def _violations(field: str, finding: Finding) -> list[Violation]:
    texts = list(finding.violations)
    if finding.is_cut:
        texts.append(
            "does not satisfy the event type's schema; the violations are not listed, since that"
            " needs more time or memory than is allowed"
        )
    elif finding.more:
        texts.append(f"has {finding.more:,} more violations, which are not listed")
    return [Violation(f"{field}.json_data", text, Reason.PAYLOAD_SCHEMA_MISMATCH) for text in texts]
