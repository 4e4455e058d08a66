"""The publish queue: fair between tenants, in order within each, and bounded."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import cast
from uuid import UUID

import orjson
import pytest

from hookline_service.domain.errors import Reason, ResourceExhaustedError
from hookline_service.domain.limits import Limits
from hookline_service.pipeline.publishing.commit import GroupLimits
from hookline_service.pipeline.publishing.group import PublishCall, Published
from hookline_service.pipeline.publishing.matching import TenantIndex
from hookline_service.pipeline.publishing.publish_queue import PublishQueue
from tests.pipeline.rig import order_created, running
from tests.pipeline.rival import STALL, rival, until_blocked


class _Index:
    """The index of a tenant whose events each match this many subscriptions."""

    def __init__(self, tenant_id: str, routes: int) -> None:
        self.tenant_id = tenant_id
        self.uid = UUID(int=1)
        self._routes = [None] * routes

    def match(self, _type: str) -> list[None]:
        return self._routes


def call_of(
    tenant_id: str, events: int = 1, *, routes: int = 0, data: bytes = b"{}"
) -> PublishCall:
    new = [order_created(data=data)] * events
    done = cast("asyncio.Future[list[Published]]", None)  # never answered here
    index = cast("TenantIndex", _Index(tenant_id, routes))
    return PublishCall(index, new, [0] * events, len(data) * events, done)


def queue_of(**limits: int) -> PublishQueue:
    return PublishQueue(Limits(**limits))


def taken(queue: PublishQueue, count: int) -> list[PublishCall]:
    calls: list[PublishCall] = []
    while len(calls) < count and queue.first() is not None:
        calls.append(queue.take())
    return calls


def tenants_of(calls: list[PublishCall]) -> list[str]:
    return [call.index.tenant_id for call in calls]


# -------------------------------------------------------------------------------- whose turn it is


def test_calls_of_a_tenant_keep_their_order() -> None:
    queue = queue_of()
    calls = [call_of("acme", events) for events in (5, 1, 90, 2)]
    for call in calls:
        queue.append(call)
        queue.append(call_of("globex"))

    assert [call for call in taken(queue, 8) if call.index.tenant_id == "acme"] == calls
    assert queue.first() is None
    assert (queue.events, queue.data_bytes) == (0, 0)


def test_tenant_with_one_call_is_served_before_the_second_call_of_a_flood() -> None:
    queue = queue_of()
    for _ in range(100):
        queue.append(call_of("flood", 100))
    for number in range(50):
        queue.append(call_of(f"small-{number}"))

    order = tenants_of(taken(queue, 150))

    assert order[0] == "flood"
    assert "flood" not in order[1:51]


@pytest.mark.parametrize(
    "large",
    [
        call_of("large", 100),
        call_of("large", routes=99),
        call_of("large", data=b"x" * 99 * 1_024),
    ],
    ids=["events", "deliveries", "bytes"],
)
def test_tenants_share_the_queue_by_the_cost_of_their_calls(large: PublishCall) -> None:
    """A call of a hundred events costs as much as a hundred calls of one event."""
    queue = queue_of()
    for _ in range(20):
        queue.append(large)
    for _ in range(2_000):
        queue.append(call_of("small"))

    assert 9 <= tenants_of(taken(queue, 1_010)).count("large") <= 11


def test_tenant_that_empties_its_queue_gets_no_more_than_its_share() -> None:
    queue = queue_of()
    for _ in range(1_000):
        queue.append(call_of("patient", 10))
    queue.append(call_of("hasty", 100))
    stored = Counter[str]()
    for _ in range(200):
        (call,) = taken(queue, 1)
        stored[call.index.tenant_id] += len(call.events)
        if call.index.tenant_id == "hasty":
            queue.append(call_of("hasty", 100))

    assert abs(stored["hasty"] - stored["patient"]) <= 200


def test_idle_tenant_gets_no_credit() -> None:
    """A tenant gets its share from its first call on, without compensation for idle time."""
    queue = queue_of()
    for _ in range(200):
        queue.append(call_of("early"))
    taken(queue, 100)
    for _ in range(200):
        queue.append(call_of("late"))

    assert tenants_of(taken(queue, 100)).count("late") in {50, 51}


def test_queue_frees_the_state_of_ten_thousand_short_lived_tenants() -> None:
    queue, most = queue_of(), 0
    for number in range(10_000):
        for tenant_id in ("busy", f"t{number}"):
            queue.append(call_of(tenant_id))
        assert len(taken(queue, 2)) == 2
        most = max(most, len(queue._round), len(queue._lines))  # noqa: SLF001 - what a turn costs
    assert most <= 4
    assert queue.first() is None
    assert not queue._lines  # noqa: SLF001


def test_calls_put_back_are_served_first_in_their_order() -> None:
    queue = queue_of()
    first, second = call_of("acme"), call_of("globex")
    queue.append(call_of("acme"))
    for call in (second, first):
        queue.put_back(call)

    assert queue.events == 3
    assert taken(queue, 2) == [first, second]
    assert queue.events == 1


# ----------------------------------------------------------------------------------- how many wait


def fill(queue: PublishQueue, tenant_id: str) -> tuple[int, ResourceExhaustedError]:
    """Queue events of a tenant until one is refused; return their number and the refusal."""
    count = 0
    while True:
        try:
            queue.admit(tenant_id, 1, 2)
        except ResourceExhaustedError as refusal:
            return count, refusal
        queue.append(call_of(tenant_id))
        count += 1


def test_one_tenant_cannot_fill_the_queue() -> None:
    queue = queue_of(max_queued_publish_events=100)
    count, refusal = fill(queue, "flood")

    assert count == 80
    assert refusal.reason is Reason.OVERLOADED
    assert refusal.metadata["limit"] == "HOOKLINE_MAX_QUEUED_PUBLISH_EVENTS"
    assert refusal.retry_after_s is not None
    queue.admit("small", 20, 2)
    taken(queue, 1)
    queue.admit("flood", 1, 2)


def test_limit_of_a_tenant_shrinks_as_the_queue_fills() -> None:
    queue = queue_of(max_queued_publish_events=1_000)

    assert [fill(queue, tenant_id)[0] for tenant_id in ("a", "b", "c")] == [800, 160, 32]


def test_one_tenant_cannot_fill_the_queued_bytes() -> None:
    queue = queue_of(max_queued_publish_bytes=100)
    queue.append(call_of("flood", 8, data=b"x" * 10))
    with pytest.raises(ResourceExhaustedError) as refusal:
        queue.admit("flood", 1, 10)

    assert refusal.value.metadata["limit"] == "HOOKLINE_MAX_QUEUED_PUBLISH_BYTES"
    queue.admit("small", 1, 20)
    with pytest.raises(ResourceExhaustedError):
        queue.admit("small", 1, 21)


def test_tenant_with_an_empty_queue_can_use_all_remaining_capacity() -> None:
    queue = queue_of(max_queued_publish_events=10)
    queue.admit("acme", 10, 2)
    with pytest.raises(ResourceExhaustedError):
        queue.admit("acme", 11, 2)


# --------------------------------------------------------------------------------- on a real node


async def test_small_tenant_is_in_the_next_group_despite_a_flood(
    database_url: str,
) -> None:
    async with running(database_url, group_limits=GroupLimits(max_events=4)) as rig:
        await rig.tenant("flood")
        await rig.tenant("small")
        for tenant_id in ("flood", "small"):
            await rig.publisher.publish(tenant_id, [order_created(-1)])
        async with rival(rig.url) as other:
            await other.execute(STALL)
            calls = [await rig.publisher.submit("flood", [order_created(-1)])]
            await until_blocked(rig.database)
            calls += [
                await rig.publisher.submit("flood", [order_created(number)]) for number in range(40)
            ]
            calls.append(await rig.publisher.submit("small", [order_created(99)]))
            await other.execute("COMMIT")
            await asyncio.gather(*calls)

        rows = await rig.database.fetch("SELECT data FROM events ORDER BY ordinal")
    stored = [orjson.loads(row["data"])["id"] for row in rows][3:]
    assert stored.index(99) < 4
    assert [number for number in stored if number != 99] == list(range(40))
