"""Event types in memory: what is accepted, what is refused, and never by an older reading."""

import asyncio
import time
from collections.abc import AsyncIterator
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
from hookline_service.schema.checker import SchemaChecker
from hookline_service.store.database import Database
from hookline_service.store.event_types import EventTypes
from tests.pipeline.rig import Rig, order_created
from tests.pipeline.wire import Wire
from tests.waiting import until

SCHEMA = '{"type": "object", "required": ["id"], "properties": {"id": {"type": "integer"}}}'
LOOSER = '{"type": "object"}'


class Source:
    """Event types that a test sets; an answer is of the moment it was asked for."""

    def __init__(self, *event_types: EventType) -> None:
        self.event_types = list(event_types)
        self.gate: asyncio.Event | None = None
        self.reads = 0

    async def all(self) -> list[EventType]:
        """What was there when asked."""
        answer, gate = list(self.event_types), self.gate
        self.reads += 1
        await asyncio.sleep(0)
        if gate is not None:
            await gate.wait()
        return answer


def order_type(**fields: object) -> EventType:
    """`order.created`, with a schema."""
    values: dict[str, object] = {"name": "order.created", "json_schema": SCHEMA}
    return EventType(**(values | fields))  # type: ignore[arg-type]  # a test's own fields


INLINE = SchemaChecker(Limits())
"""For schemas that no test here needs a process for."""


@pytest.fixture
async def checker() -> AsyncIterator[SchemaChecker]:
    """One that may start its process."""
    checker = SchemaChecker(Limits(max_schema_cpu_ms=100))
    yield checker
    await checker.stop()


async def loaded(
    *event_types: EventType, is_strict: bool = False, checker: SchemaChecker = INLINE
) -> EventTypeCatalog:
    """A catalog of these."""
    catalog = EventTypeCatalog(Source(*event_types), checker, is_strict=is_strict)
    await catalog.reload()
    return catalog


async def test_revisions_in_request_order() -> None:
    catalog = await loaded(order_type(revision=3), EventType(name="user.registered", revision=7))
    events = [
        order_created(type="user.registered"), order_created(type="other"), order_created(),
    ]  # fmt: skip
    assert await catalog.check("acme", events) == [7, 0, 3]


async def test_an_archived_type_is_closed() -> None:
    catalog = await loaded(order_type(state=EventTypeState.ARCHIVED))
    with pytest.raises(FailedPreconditionError) as refusal:
        await catalog.check("acme", [order_created(type="x"), order_created()])
    assert refusal.value.reason is Reason.EVENT_TYPE_ARCHIVED
    assert refusal.value.metadata == {"event_type": "eventTypes/order.created", "index": "1"}


async def test_a_strict_catalog_knows_all_types_or_refuses() -> None:
    catalog = await loaded(order_type(), is_strict=True)
    with pytest.raises(FailedPreconditionError) as refusal:
        await catalog.check("acme", [order_created(), order_created(type="unheard.of")])
    assert refusal.value.reason is Reason.EVENT_TYPE_UNKNOWN
    assert refusal.value.metadata["index"] == "1"


async def test_a_strict_catalog_looks_before_it_refuses() -> None:
    """The type was registered on another node a moment ago."""
    source = Source()
    catalog = EventTypeCatalog(source, INLINE, is_strict=True)
    await catalog.reload()
    source.event_types.append(order_type(revision=2))
    assert await catalog.check("acme", [order_created()]) == [2]


async def test_every_event_that_breaks_its_schema_is_named() -> None:
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


async def test_one_event_names_a_few_of_many_violations_and_counts_the_others() -> None:
    schema = '{"items": {"type": "string"}}'
    catalog = await loaded(order_type(json_schema=schema))
    with pytest.raises(InvalidArgumentError) as refusal:
        await catalog.check("acme", [order_created(data=b"[%s]" % b",".join([b"1"] * 100))])
    *listed, last = refusal.value.violations
    assert [one.description[:5] for one in listed] == [f"[{index}]: " for index in range(5)]
    assert last.description == "has 95 more violations, which are not listed"


async def test_violations_that_take_too_long_to_list_are_cut_and_the_answer_says_so(
    checker: SchemaChecker,
) -> None:
    """Each violation costs a validator 10 us, and 4 MiB of data have room for two million."""
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


async def test_an_event_that_exceeds_the_budget_is_refused_with_the_settings_name(
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


async def test_a_new_revision_is_a_new_schema() -> None:
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


async def test_an_older_reading_never_replaces_a_newer() -> None:
    """Two readings at once, the older answered last: the change log does not tell twice."""
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


async def test_a_revision_of_another_history_is_another_schema() -> None:
    """After a failover the same number may stand for another schema."""
    source = Source(order_type())
    catalog = EventTypeCatalog(source, INLINE)
    await catalog.reload()
    source.event_types = [order_type(json_schema=LOOSER)]
    catalog.forget()
    await catalog.reload()

    assert await catalog.check("acme", [order_created(data=b"{}")]) == [1]


async def test_a_reading_that_began_on_another_history_is_not_taken() -> None:
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


async def test_whoever_asks_while_one_reads_shares_the_next_reading() -> None:
    """Unknown types come by the hundred: a reading each would be a way to drown the database."""
    source = Source()
    catalog = EventTypeCatalog(source, INLINE, is_strict=True)
    outcomes = await asyncio.gather(
        *(catalog.check("acme", [order_created(type=f"t{n}")]) for n in range(100)),
        return_exceptions=True,
    )
    assert all(isinstance(outcome, FailedPreconditionError) for outcome in outcomes)
    assert source.reads <= 2


async def test_a_type_whose_schema_cannot_be_read_is_closed_not_open(rig: Rig) -> None:
    """Written by another version, perhaps. It is not as if it had no schema."""
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


async def test_a_reading_that_is_lost_stored_nothing(rig: Rig) -> None:
    async with Wire(rig.url) as wire:
        database = Database(wire.url, pool_size=1)
        await database.open()
        catalog = EventTypeCatalog(EventTypes(database), rig.schemas, is_strict=True)
        wire.cut_request = b"event_types"
        with pytest.raises(UnavailableError):
            await catalog.check("acme", [order_created()])
        await database.close()


async def test_what_a_type_says_is_stored_with_the_event(rig: Rig) -> None:
    await rig.tenant()
    types = EventTypes(rig.database)
    await types.create(order_type())
    await types.change("order.created", lambda seen: replace(seen, json_schema=LOOSER))
    rig.event_types.event_types = await types.all()
    rig.changes.poke()
    await until(lambda: _knows(rig, 2), "the change log has told the catalog")

    await rig.publisher.publish("acme", [order_created(), order_created(type="other")])
    with pytest.raises(InvalidArgumentError):
        await rig.publisher.publish("acme", [order_created(), order_created(data=b"[]")])

    rows = await rig.database.fetch("SELECT event_type_revision FROM events ORDER BY ordinal")
    assert [row["event_type_revision"] for row in rows] == [2, 0]


async def _knows(rig: Rig, revision: int) -> bool:
    return await rig.catalog.check("acme", [order_created()]) == [revision]
