"""The catalog of event types: which events are accepted, and which schemas are cached."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from hookline_service.domain.errors import (
    FailedPreconditionError,
    HooklineError,
    InvalidArgumentError,
    Reason,
    UnavailableError,
)
from hookline_service.domain.event import EventType, EventTypeState
from hookline_service.domain.limits import Limits
from hookline_service.pipeline.publishing.catalog import EventTypeCatalog
from hookline_service.schema.checker import Schema, SchemaChecker
from hookline_service.store.database import Database
from hookline_service.store.event_types import EventTypeHead, EventTypes
from tests.pipeline.rig import Rig, heads_of, order_created, schema_in
from tests.pipeline.wire import Wire
from tests.waiting import until

SCHEMA = '{"type": "object", "required": ["id"], "properties": {"id": {"type": "integer"}}}'
LOOSER = '{"type": "object"}'


class Source:
    """A store of event types that a test sets; a read returns those of the time of its request."""

    def __init__(self, *event_types: EventType) -> None:
        self.event_types = list(event_types)
        self.gate: asyncio.Event | None = None
        self.reads = 0
        self.schema_gate: asyncio.Event | None = None
        self.schema_reads: list[str] = []

    async def heads(self) -> list[EventTypeHead]:
        """Return the event types."""
        answer, gate = list(self.event_types), self.gate
        self.reads += 1
        await asyncio.sleep(0)
        if gate is not None:
            await gate.wait()
        return heads_of(answer)

    async def schema(self, name: str) -> tuple[int, str] | None:
        """Return the revision and the schema of one of them."""
        answer = schema_in(self.event_types, name)
        self.schema_reads.append(name)
        await asyncio.sleep(0)
        if self.schema_gate is not None:
            await self.schema_gate.wait()
        return answer


def order_type(**fields: object) -> EventType:
    """`order.created`, with a schema."""
    values: dict[str, object] = {"name": "order.created", "json_schema": SCHEMA}
    return EventType(**(values | fields))  # type: ignore[arg-type]  # a test's own fields


INLINE = SchemaChecker(Limits())
"""A checker for schemas that need no process."""


@pytest.fixture
async def checker() -> AsyncIterator[SchemaChecker]:
    """A checker that may start its process."""
    checker = SchemaChecker(Limits(max_schema_cpu_ms=100))
    yield checker
    await checker.stop()


async def loaded(
    *event_types: EventType, is_strict: bool = False, checker: SchemaChecker = INLINE
) -> EventTypeCatalog:
    """A catalog that has read these event types."""
    catalog = EventTypeCatalog(Source(*event_types), checker, is_strict=is_strict)
    await catalog.reload()
    return catalog


async def test_revisions_are_returned_in_request_order() -> None:
    catalog = await loaded(order_type(revision=3), EventType(name="user.registered", revision=7))
    events = [
        order_created(type="user.registered"), order_created(type="other"), order_created(),
    ]  # fmt: skip
    assert await catalog.check("acme", events) == [7, 0, 3]


async def test_archived_type_is_refused() -> None:
    catalog = await loaded(order_type(state=EventTypeState.ARCHIVED))
    with pytest.raises(FailedPreconditionError) as refusal:
        await catalog.check("acme", [order_created(type="x"), order_created()])
    assert refusal.value.reason is Reason.EVENT_TYPE_ARCHIVED
    assert refusal.value.metadata == {"event_type": "eventTypes/order.created", "index": "1"}


async def test_strict_catalog_refuses_unregistered_type() -> None:
    catalog = await loaded(order_type(), is_strict=True)
    with pytest.raises(FailedPreconditionError) as refusal:
        await catalog.check("acme", [order_created(), order_created(type="unheard.of")])
    assert refusal.value.reason is Reason.EVENT_TYPE_UNKNOWN
    assert refusal.value.metadata["index"] == "1"


async def test_strict_catalog_reads_event_types_before_it_refuses() -> None:
    """The type was registered on another node a moment ago."""
    source = Source()
    catalog = EventTypeCatalog(source, INLINE, is_strict=True)
    await catalog.reload()
    source.event_types.append(order_type(revision=2))
    assert await catalog.check("acme", [order_created()]) == [2]


async def test_refusal_names_every_event_that_violates_its_schema() -> None:
    catalog = await loaded(order_type())
    with pytest.raises(InvalidArgumentError) as refusal:
        await catalog.check(
            "acme",
            [
                order_created(data=b'{"id":"one"}'),
                order_created(data=b'{"id":1}'),
                order_created(data=b"[]"),
                order_created(data=b"\x00", is_json=False),
            ],
        )
    assert refusal.value.reason is Reason.PAYLOAD_SCHEMA_MISMATCH
    found = {violation.field: violation.description for violation in refusal.value.violations}
    assert list(found) == ["events[0].json_data", "events[2].json_data", "events[3].binary_data"]
    assert found["events[0].json_data"].startswith("['id']: ")


async def test_refusal_lists_a_few_violations_of_an_event_and_counts_the_rest() -> None:
    schema = '{"items": {"type": "string"}}'
    catalog = await loaded(order_type(json_schema=schema))
    with pytest.raises(InvalidArgumentError) as refusal:
        await catalog.check("acme", [order_created(data=b"[%s]" % b",".join([b"1"] * 100))])
    *listed, last = refusal.value.violations
    assert [one.description[:5] for one in listed] == [f"[{index}]: " for index in range(5)]
    assert last.description == "has 95 more violations, which are not listed"


async def test_violations_that_take_too_long_to_list_are_truncated_and_marked(
    checker: SchemaChecker,
) -> None:
    """Each violation costs a validator 10 us, and 4 MiB of data may have two million."""
    wrong = order_created(data=b"[%s]" % b",".join([b"1"] * 100_000))
    small = order_created(data=b"[1]")
    catalog = await loaded(order_type(json_schema='{"items": {"type": "string"}}'), checker=checker)
    began_s = time.process_time()
    with pytest.raises(InvalidArgumentError) as refusal:
        await catalog.check("acme", [small] + [wrong] * 5)
    assert time.process_time() - began_s < 0.5
    assert [violation.field for violation in refusal.value.violations] == [
        f"events[{index}].json_data" for index in range(6)
    ]
    assert refusal.value.violations[0].description.startswith("[0]: ")
    assert "not listed" in refusal.value.violations[1].description


async def test_refusal_of_an_event_beyond_the_budget_names_the_setting(
    checker: SchemaChecker,
) -> None:
    catalog = await loaded(order_type(json_schema='{"pattern": "(?!y)x*x*x*x*y"}'), checker=checker)
    long = order_created(data=b'"%s"' % (b"x" * 60_000))
    with pytest.raises(InvalidArgumentError) as refusal:
        await catalog.check("acme", [order_created(type="other"), long])
    assert refusal.value.reason is Reason.LIMIT_EXCEEDED
    assert refusal.value.violations[0].field == "events[1].json_data"
    assert refusal.value.metadata == {"limit": "HOOKLINE_MAX_SCHEMA_CPU_MS", "maximum": "100"}
    assert await catalog.check("acme", [order_created(data=b'"xxy"')] * 2) == [1, 1]


async def test_new_revision_uses_its_own_schema() -> None:
    source = Source(order_type())
    catalog = EventTypeCatalog(source, INLINE)
    await catalog.reload()
    with pytest.raises(InvalidArgumentError):
        await catalog.check("acme", [order_created(data=b"{}")])

    source.event_types = [order_type(revision=2, json_schema=LOOSER)]
    await catalog.reload()
    assert await catalog.check("acme", [order_created(data=b"{}")]) == [2]
    source.event_types = [replace(source.event_types[0], state=EventTypeState.ARCHIVED)]
    await catalog.reload()
    with pytest.raises(FailedPreconditionError):
        await catalog.check("acme", [order_created(data=b"{}")])
    source.event_types = []
    await catalog.reload()
    assert await catalog.check("acme", [order_created(data=b"{}")]) == [0]


async def test_older_read_does_not_replace_a_newer_one() -> None:
    """The older of two concurrent reads is answered last, and each change is read only once."""
    source = Source(order_type())
    catalog = EventTypeCatalog(source, INLINE)
    source.gate = slow = asyncio.Event()
    older = asyncio.create_task(catalog.reload())
    await until(lambda: source.reads == 1, "the older reading has begun")
    source.gate = None
    source.event_types = [order_type(revision=2)]
    newer = asyncio.create_task(catalog.reload())
    for _ in range(5):
        await asyncio.sleep(0)
    slow.set()
    await asyncio.gather(older, newer)

    assert await catalog.check("acme", [order_created()]) == [2]


async def test_revision_of_another_history_uses_its_own_schema() -> None:
    """After a failover the same number may stand for another schema."""
    source = Source(order_type())
    catalog = EventTypeCatalog(source, INLINE)
    await catalog.reload()
    with pytest.raises(InvalidArgumentError):
        await catalog.check("acme", [order_created(data=b"{}")])
    source.event_types = [order_type(json_schema=LOOSER)]
    catalog.forget()
    await catalog.reload()

    assert await catalog.check("acme", [order_created(data=b"{}")]) == [1]


async def test_read_that_began_on_another_history_is_discarded() -> None:
    source = Source(order_type(revision=2))
    catalog = EventTypeCatalog(source, INLINE)
    source.gate = asyncio.Event()
    reading = asyncio.create_task(catalog.reload())
    await until(lambda: source.reads == 1, "it has begun")
    catalog.forget()
    source.gate.set()
    with pytest.raises(UnavailableError):
        await reading

    assert await catalog.check("acme", [order_created(data=b"{}")]) == [0]


async def test_schema_is_read_once_for_concurrent_calls_and_cached() -> None:
    source = Source(order_type(), EventType(name="plain"))
    catalog = EventTypeCatalog(source, INLINE)
    await catalog.reload()
    assert source.schema_reads == []
    events = [order_created(), order_created(type="plain")]
    await asyncio.gather(*[catalog.check("acme", events) for _ in range(20)])
    await catalog.reload()
    await catalog.check("acme", events)
    assert source.schema_reads == ["order.created"]


async def test_number_of_cached_schemas_is_bounded_and_evicted_ones_are_read_again(
    checker: SchemaChecker,
) -> None:
    names = [f"t{number}" for number in range(20)]
    source = Source(*[order_type(name=name) for name in names])
    size = checker.read(SCHEMA).memory_bytes
    catalog = EventTypeCatalog(source, checker, max_schema_bytes=5 * size)
    await catalog.reload()
    for name in names * 2:
        await catalog.check("acme", [order_created(type=name)])
        with pytest.raises(InvalidArgumentError):
            await catalog.check("acme", [order_created(type=name, data=b"{}")])
        assert catalog.schema_bytes <= 5 * size
    assert len(source.schema_reads) > 2 * len(names) - 5
    await catalog.check("acme", [order_created(type=name) for name in names])
    assert catalog.schema_bytes <= 5 * size


async def test_compiling_evicted_schemas_uses_the_tenants_share_of_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tenant that uses more schemas than fit must not delay the others."""
    now_s = 0.0
    checker = SchemaChecker(Limits(max_schema_inline_ms=10), perf_s=lambda: now_s)
    elsewhere: list[str] = []

    async def check(tenant_id: str, events: Sequence[tuple[Schema, bytes]]) -> list[None]:
        elsewhere.extend([tenant_id] * sum([schema.validator is None for schema, _ in events]))
        return [None] * len(events)

    def compile_slowly(text: str) -> Schema:
        nonlocal now_s
        now_s += 0.02
        return read(text)

    read = checker.read
    monkeypatch.setattr(checker, "read", compile_slowly)
    monkeypatch.setattr(checker, "check", check)
    names = ["a", "b", "c"]
    source = Source(*[order_type(name=name) for name in names])
    catalog = EventTypeCatalog(source, checker, max_schema_bytes=1)
    await catalog.reload()
    for name in names:
        await catalog.check("acme", [order_created(type=name)])
    assert elsewhere == ["acme"], "the first two were compiled, and used up its share"
    await catalog.check("globex", [order_created(type="a")])
    assert elsewhere == ["acme"]
    now_s += 1.0
    await catalog.check("acme", [order_created(type="b")])
    assert elsewhere == ["acme"], "its share has grown again"


async def test_schema_read_that_began_before_a_change_is_read_again() -> None:
    source = Source(order_type())
    catalog = EventTypeCatalog(source, INLINE)
    await catalog.reload()
    source.schema_gate = asyncio.Event()
    first = asyncio.create_task(catalog.check("acme", [order_created()]))
    await until(lambda: len(source.schema_reads) == 1, "the first read has begun")
    source.event_types = [order_type(revision=2, json_schema=LOOSER)]
    await catalog.reload()
    second = asyncio.create_task(catalog.check("acme", [order_created(data=b"{}")]))
    for _ in range(5):
        await asyncio.sleep(0)
    source.schema_gate.set()
    assert await first == [1]
    assert await second == [2]


async def test_schema_newer_than_the_event_type_is_used_with_its_revision() -> None:
    source = Source(order_type())
    catalog = EventTypeCatalog(source, INLINE)
    await catalog.reload()
    source.event_types = [order_type(revision=2, json_schema=LOOSER)]
    assert await catalog.check("acme", [order_created(data=b"{}")]) == [2]
    catalog.forget()
    source.event_types = [order_type(revision=3, json_schema="")]
    assert await catalog.check("acme", [order_created(data=b"[]")]) == [3]


async def test_schema_read_on_another_history_is_discarded() -> None:
    source = Source(order_type())
    catalog = EventTypeCatalog(source, INLINE)
    await catalog.reload()
    source.schema_gate = asyncio.Event()
    checking = asyncio.create_task(catalog.check("acme", [order_created()]))
    await until(lambda: len(source.schema_reads) == 1, "the read has begun")
    catalog.forget()
    source.schema_gate.set()
    with pytest.raises(UnavailableError):
        await checking
    assert catalog.schema_bytes == 0


async def test_schema_older_than_the_event_type_fails_as_unavailable() -> None:
    """The database is on another history, and the event types are not read again yet."""
    source = Source(order_type(revision=5))
    catalog = EventTypeCatalog(source, INLINE)
    await catalog.reload()
    source.event_types = [order_type(revision=3)]
    with pytest.raises(UnavailableError):
        await catalog.check("acme", [order_created()])


async def test_callers_during_a_read_share_the_next_read() -> None:
    """A read for each unregistered type would let a client overload the database."""
    source = Source()
    catalog = EventTypeCatalog(source, INLINE, is_strict=True)
    outcomes = await asyncio.gather(
        *(catalog.check("acme", [order_created(type=f"t{n}")]) for n in range(100)),
        return_exceptions=True,
    )
    assert all(isinstance(outcome, FailedPreconditionError) for outcome in outcomes)
    assert source.reads <= 2


async def test_type_with_an_unreadable_schema_is_refused(rig: Rig) -> None:
    """A newer version may have written it. It is not treated as a type without a schema."""
    await rig.database.fetch(
        """INSERT INTO event_types (name, json_schema, state)
           VALUES ('order.created', '{"type": 1}', 'ACTIVE'), ('old', '{"type": 1}', 'ARCHIVED')"""
    )
    catalog = EventTypeCatalog(EventTypes(rig.database), rig.schemas)
    await catalog.reload()

    with pytest.raises(HooklineError) as refusal:
        await catalog.check("acme", [order_created(type="x"), order_created()])
    assert refusal.value.reason is Reason.INTERNAL
    with pytest.raises(FailedPreconditionError) as archived:
        await catalog.check("acme", [order_created(type="old")])
    assert archived.value.reason is Reason.EVENT_TYPE_ARCHIVED
    assert await catalog.check("acme", [order_created(type="x")]) == [0]


async def test_lost_read_fails_as_unavailable(rig: Rig) -> None:
    async with Wire(rig.url) as wire:
        database = Database(wire.url, pool_size=1)
        await database.open()
        catalog = EventTypeCatalog(EventTypes(database), rig.schemas, is_strict=True)
        wire.cut_request = b"event_types"
        with pytest.raises(UnavailableError):
            await catalog.check("acme", [order_created()])
        await database.close()


async def test_revision_of_the_type_is_stored_with_the_event(rig: Rig) -> None:
    await rig.tenant()
    types = EventTypes(rig.database)
    await types.create(order_type())
    await types.change("order.created", lambda seen: replace(seen, json_schema=LOOSER))
    rig.event_types.event_types = await types.list_page(limit=10)
    rig.changes.poke()
    await until(lambda: _has_revision(rig, 2), "the catalog has read the change")

    await rig.publisher.publish("acme", [order_created(), order_created(type="other")])
    with pytest.raises(InvalidArgumentError):
        await rig.publisher.publish("acme", [order_created(), order_created(data=b"[]")])

    rows = await rig.database.fetch("SELECT event_type_revision FROM events ORDER BY ordinal")
    assert [row["event_type_revision"] for row in rows] == [2, 0]


async def _has_revision(rig: Rig, revision: int) -> bool:
    return await rig.catalog.check("acme", [order_created()]) == [revision]
