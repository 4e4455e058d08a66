"""The event types in memory: whether an event's type is accepted, and whether its data is valid.

Each node holds the state and the revision of every event type. Schemas are read and compiled when
an event first needs them, and held up to a number of bytes (`byte_cache.py`): a compiled schema
takes about twenty times its text, and the number of event types has no bound. An evicted schema is
read and compiled again. Compiling takes up to 2 ms for each KB of text. Once schemas are evicted,
that time counts into the publishing tenant's share of the event loop (`schema/checker.py`), and
while the share is used up, the evaluator process checks the data: else a tenant that uses more
schemas than fit would delay all others.
"""

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
from hookline_service.domain.event import EventTypeState, NewEvent
from hookline_service.domain.names import event_type_name
from hookline_service.pipeline.publishing.byte_cache import ByteCache
from hookline_service.schema.checker import (
    Finding,
    OverBudgetError,
    Schema,
    SchemaChecker,
    SchemaUnusableError,
)
from hookline_service.store.database import OutcomeUnknownError, history_changed, unavailable
from hookline_service.store.event_types import EventTypeHead

_log = structlog.get_logger(__name__)


MAX_SCHEMA_BYTES = 32 * 1024 * 1024
"""The default bound of all schemas in memory."""
_MAX_READS = 2
"""A read that is shared may have begun before the event type was changed; the next has not."""


class EventTypeSource(Protocol):
    """A source of event types: `store/event_types.py`."""

    async def heads(self) -> list[EventTypeHead]:
        """Return every event type, archived ones too."""
        ...

    async def schema(self, name: str) -> tuple[int, str] | None:
        """Return the revision and the JSON Schema of an event type, "" if it has none."""
        ...


class _Stored:
    """One revision of a schema, compiled when a tenant has a share of the event loop."""

    __slots__ = ("is_unusable", "revision", "schema", "text")

    def __init__(self, revision: int, text: str) -> None:
        self.revision = revision
        self.text = text
        self.schema: Schema | None = None
        self.is_unusable = False

    @property
    def memory_bytes(self) -> int:
        return (self.schema or Schema(self.text)).memory_bytes


class EventTypeCatalog:
    """The event types of the deployment; reloaded after each change in the change log."""

    def __init__(
        self,
        source: EventTypeSource,
        checker: SchemaChecker,
        *,
        is_strict: bool = False,
        max_schema_bytes: int = MAX_SCHEMA_BYTES,
    ) -> None:
        """`is_strict` refuses event types that are not registered."""
        self._source = source
        self._checker = checker
        self._is_strict = is_strict
        self._heads: dict[str, EventTypeHead] = {}
        self._schemas = ByteCache[_Stored](max_schema_bytes)
        self._schema_reads: dict[str, asyncio.Task[_Stored]] = {}
        self._reading = asyncio.Lock()
        self._asked = 0
        self._answered = 0
        self._forgotten = 0

    @property
    def schema_bytes(self) -> int:
        """About the memory of all schemas."""
        return self._schemas.held_bytes

    def forget(self) -> None:
        """Drop the schemas: their revisions were read on another copy of the database."""
        self._forgotten += 1
        self._schemas.clear()
        self._schema_reads.clear()

    async def reload(self) -> None:
        """Read all event types. Raises `UnavailableError`.

        One read at a time, so that an older one never replaces a newer. Callers that come during a
        read share the next one.
        """
        self._asked += 1
        mine = self._asked
        async with self._reading:
            if self._answered >= mine:
                return
            begun, forgotten = self._asked, self._forgotten
            try:
                heads = await self._source.heads()
            except OutcomeUnknownError as error:
                raise unavailable(error) from error  # reading it again does no harm
            if self._forgotten != forgotten:
                raise history_changed()
            self._heads = {head.name: head for head in heads}
            self._answered = begun

    async def check(
        self, tenant_id: str, events: Sequence[NewEvent], field: str = "events[{}]"
    ) -> list[int]:
        """Return the revision of each event's type, 0 if it is not registered.

        `field` is the path of an event in the request. Raises `FailedPreconditionError` for an
        archived type or, if types are strict, an unregistered one, `InvalidArgumentError` naming
        every event whose data does not satisfy its schema, `UnavailableError` if a schema cannot be
        read, and as `SchemaChecker.check` does.
        """
        heads = self._heads
        if self._is_strict and any(event.type not in heads for event in events):
            await self.reload()
            heads = self._heads
        revisions: list[int] = []
        typed: list[tuple[int, _Stored]] = []
        for position, event in enumerate(events):
            head = heads.get(event.type)
            if head is None:
                if self._is_strict:
                    raise _unregistered(event.type, field, position)
                revisions.append(0)
                continue
            if head.state is EventTypeState.ARCHIVED:
                raise _archived(event.type, field, position)
            if head.has_schema:
                stored = self._ready(head) or await self._schema_of(tenant_id, head)
                typed.append((position, stored))
                revisions.append(stored.revision)
            else:
                revisions.append(head.revision)
        if typed:
            await self._check_data(tenant_id, events, typed, field)
        return revisions

    def _ready(self, head: EventTypeHead) -> _Stored | None:
        """Return a schema in memory that is compiled and not older than the event type."""
        stored = self._schemas.get(head.name)
        if stored is None or stored.schema is None or stored.revision < head.revision:
            return None
        return stored

    async def _schema_of(self, tenant_id: str, head: EventTypeHead) -> _Stored:
        """Return a schema not older than the event type, compiled if the tenant has a share."""
        stored = self._schemas.get(head.name)
        for _ in range(_MAX_READS):
            if stored is not None and stored.revision >= head.revision:
                break
            stored = await self._read_schema(head.name)
        if stored is None or stored.revision < head.revision:
            raise history_changed()  # in one history no revision goes back
        if stored.schema is None and stored.text and not stored.is_unusable:
            try:
                if self._schemas.evictions:
                    stored.schema = self._checker.read_for(tenant_id, stored.text)
                else:
                    stored.schema = self._checker.read(stored.text)
            except SchemaUnusableError:
                _log.exception("event_schema_compilation_failed", event_type=head.name)
                stored.is_unusable = True
            if self._schemas.peek(head.name) is stored:
                self._schemas.put(head.name, stored, stored.memory_bytes)
        return stored

    async def _read_schema(self, name: str) -> _Stored:
        """Read a schema into memory; concurrent callers share one read."""
        task = self._schema_reads.get(name)
        if task is None:
            task = asyncio.create_task(self._load_schema(name))
            self._schema_reads[name] = task
            task.add_done_callback(lambda done: self._schema_read(name, done))
        return await asyncio.shield(task)

    def _schema_read(self, name: str, task: asyncio.Task[_Stored]) -> None:
        if self._schema_reads.get(name) is task:
            del self._schema_reads[name]
        if not task.cancelled():
            task.exception()  # marks it as retrieved: every caller may have given up

    async def _load_schema(self, name: str) -> _Stored:
        forgotten = self._forgotten
        try:
            found = await self._source.schema(name)
        except OutcomeUnknownError as error:
            raise unavailable(error) from error  # reading it again does no harm
        if found is None or self._forgotten != forgotten:
            raise history_changed()  # in one history no event type disappears
        stored = _Stored(*found)
        self._schemas.put(name, stored, stored.memory_bytes)
        return stored

    async def _check_data(
        self,
        tenant_id: str,
        events: Sequence[NewEvent],
        typed: Sequence[tuple[int, _Stored]],
        field: str,
    ) -> None:
        """Check the events of types with a schema; `typed` has their positions."""
        wrong: dict[int, list[Violation]] = {}
        checked: list[tuple[int, _Stored]] = []
        data: list[tuple[Schema, bytes]] = []
        for position, stored in typed:
            if stored.is_unusable:
                raise _unusable(events[position].type, field, position)
            if not stored.text:
                continue  # the schema was removed since the event types were read
            if events[position].is_json:
                checked.append((position, stored))
                data.append((stored.schema or Schema(stored.text), events[position].data))
            else:
                wrong[position] = [_not_json(field.format(position))]
        try:
            findings = await self._checker.check(tenant_id, data)
        except SchemaUnusableError as error:
            position, stored = checked[error.index]
            event_type = events[position].type
            _log.exception("event_schema_compilation_failed", event_type=event_type)
            stored.is_unusable = True
            raise _unusable(event_type, field, position) from error
        except OverBudgetError as error:
            position, _ = checked[error.index]
            raise invalid([_over_budget(error, field.format(position))]) from error
        for (position, _), finding in zip(checked, findings, strict=True):
            if finding is not None:
                wrong[position] = _violations(field.format(position), finding)
        if wrong:
            raise invalid([one for position in sorted(wrong) for one in wrong[position]])


def _unregistered(event_type: str, field: str, position: int) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"{_place(event_type, field, position)} is not registered",
        Reason.EVENT_TYPE_UNKNOWN,
        metadata=_metadata(event_type, position),
    )


def _archived(event_type: str, field: str, position: int) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"{_place(event_type, field, position)} is archived",
        Reason.EVENT_TYPE_ARCHIVED,
        metadata=_metadata(event_type, position),
    )


def _unusable(event_type: str, field: str, position: int) -> HooklineError:
    return HooklineError(
        f"{_place(event_type, field, position)} has a schema that this version cannot read",
        Reason.INTERNAL,
        metadata=_metadata(event_type, position),
    )


def _place(event_type: str, field: str, position: int) -> str:
    return f"{field.format(position)}.type: the event type {event_type!r}"


def _metadata(event_type: str, position: int) -> dict[str, str]:
    return {"event_type": event_type_name(event_type), "index": str(position)}


def _not_json(field: str) -> Violation:
    return Violation(
        f"{field}.binary_data",
        "must be json_data: the event type has a JSON Schema",
        Reason.PAYLOAD_SCHEMA_MISMATCH,
    )


def _over_budget(error: OverBudgetError, field: str) -> Violation:
    return Violation(
        f"{field}.json_data",
        f"cannot be checked against the event type's schema: that {error}; send less data, or"
        " change the schema",
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
