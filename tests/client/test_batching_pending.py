"""`client.batching`: bounds of pending events, cancellation, and closing."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest

from hookline import HooklineClient
from hookline.batching import PublisherClosedError
from tests.client.batches import NEVER_MS, Publishing, numbered, sizes, start, subjects
from tests.client.service import Service, refuse
from tests.waiting import until


@pytest.mark.parametrize(
    "bounds, pending",
    [({"max_pending_events": 5}, 5), ({"max_pending_bytes": 5 * 1_100}, 5)],
    ids=["events", "bytes"],
)
async def test_publish_waits_while_too_much_is_pending(
    service: Service, client: HooklineClient, bounds: dict[str, Any], pending: int
) -> None:
    service.events.is_open.clear()
    async with client.batching("acme", max_events=2, **bounds) as publisher:
        publishing = [
            asyncio.create_task(publisher.publish(numbered(n, binary_data=bytes(1_000))))
            for n in range(20)
        ]
        await until(lambda: sizes(service) == [2], "a batch is on its way")
        assert publisher.pending_events == pending
        most = 0

        def rule(_: Any) -> None:  # noqa: ANN401
            nonlocal most
            most = max(most, publisher.pending_events)

        service.events.rule = rule
        service.events.is_open.set()
        await asyncio.gather(*publishing)
        assert most == pending
        assert publisher.pending_events == publisher.pending_bytes == 0
    assert subjects(service) == list(range(20)), "and keeps its place"


async def test_a_small_event_does_not_overtake_a_large_waiting_one(
    service: Service, client: HooklineClient
) -> None:
    service.events.is_open.clear()
    async with client.batching("acme", max_events=1, max_pending_bytes=2_000) as publisher:
        publishing = [
            asyncio.create_task(publisher.publish(numbered(n, binary_data=bytes(size))))
            for n, size in enumerate([1_000, 1_900, 10])
        ]
        await until(lambda: sizes(service) == [1], "the first is on its way")
        service.events.is_open.set()
        await asyncio.gather(*publishing)
    assert subjects(service) == [0, 1, 2]


async def test_an_event_larger_than_the_bound_is_sent_alone(
    service: Service, client: HooklineClient
) -> None:
    async with client.batching("acme", max_pending_bytes=100) as publisher:
        await asyncio.gather(
            *[publisher.publish(numbered(n, binary_data=bytes(1_000))) for n in range(3)]
        )
    assert sizes(service) == [1, 1, 1]


# -------------------------------------------------------------------------------- cancellation


async def test_a_cancelled_publish_does_not_affect_other_events(
    service: Service, client: HooklineClient
) -> None:
    service.events.is_open.clear()
    async with client.batching("acme", max_events=3, max_pending_events=6) as publisher:
        publishing = start(publisher, range(12))
        await until(lambda: sizes(service) == [3], "a batch is on its way")
        for number in (1, 4, 8, 11):  # on its way, queued, in line, last in line
            publishing[number].cancel()
        await until(publishing[11].done, "they gave up")
        assert publisher.pending_events == 6, "what is on its way, and one more of the line"
        service.events.is_open.set()
        outcomes = await asyncio.gather(*publishing, return_exceptions=True)
        assert publisher.pending_events == publisher.pending_bytes == 0
    gave_up = [n for n, it in enumerate(outcomes) if isinstance(it, asyncio.CancelledError)]
    assert gave_up == [1, 4, 8, 11]
    assert subjects(service) == [0, 1, 2, 3, 5, 6, 7, 9, 10]


@pytest.mark.parametrize("pushback", ["0", "30"])
async def test_an_event_cancelled_in_flight_is_not_repeated(
    service: Service, client: HooklineClient, pushback: str
) -> None:
    service.events.is_open.clear()
    service.events.script = [refuse(grpc.StatusCode.UNAVAILABLE, pushback=pushback)]
    async with client.batching("acme") as publisher:
        publishing = start(publisher, range(3))
        await until(lambda: sizes(service) == [3], "they are on their way")
        publishing[1].cancel()
        service.events.is_open.set()
        await asyncio.gather(publishing[0], publishing[2])
    assert subjects(service) == [0, 1, 2, 0, 2]
    assert publisher.pending_events == publisher.pending_bytes == 0


async def test_publisher_works_after_its_only_event_is_cancelled(
    service: Service, client: HooklineClient
) -> None:
    async with client.batching("acme", max_delay_ms=50) as publisher:
        (alone,) = start(publisher, [0])
        await until(lambda: publisher.pending_events == 1, "it is pending")
        alone.cancel()
        await until(lambda: publisher.pending_events == 0, "it is forgotten")
        began = time.monotonic()
        await until(lambda: time.monotonic() - began > 0.1, "its batch would have gone")
        await publisher.publish(numbered(1))
    assert subjects(service) == [1]


# ------------------------------------------------------------------------------------ the end


async def test_close_sends_what_is_pending(service: Service, client: HooklineClient) -> None:
    publisher = client.batching("acme", max_events=4, max_pending_events=5, max_delay_ms=NEVER_MS)
    publishing = start(publisher, range(11))
    await asyncio.sleep(0)
    await publisher.close()
    assert all(task.done() for task in publishing)
    assert subjects(service) == list(range(11))
    await publisher.close()
    with pytest.raises(PublisherClosedError):
        await publisher.publish(numbered(11))


async def test_an_unused_publisher_can_be_closed(client: HooklineClient) -> None:
    await client.batching("acme").close()


async def test_an_error_in_the_block_still_sends_pending_events(client: HooklineClient) -> None:
    publishing: Publishing = []

    async def fail() -> None:
        async with client.batching("acme", max_delay_ms=NEVER_MS) as publisher:
            publishing.extend(start(publisher, range(3)))
            await asyncio.sleep(0)
            raise LookupError

    with pytest.raises(LookupError):
        await fail()
    assert [task.result().name[-1] for task in publishing] == ["0", "1", "2"]


async def test_a_cancelled_close_fails_pending_events(
    service: Service, client: HooklineClient
) -> None:
    service.events.is_open.clear()
    publisher = client.batching("acme", max_events=2, max_pending_events=4)
    publishing = start(publisher, range(6))
    await until(lambda: sizes(service) == [2], "a batch is on its way")
    closing = asyncio.create_task(publisher.close())
    await asyncio.sleep(0)
    closing.cancel()
    outcomes = await asyncio.gather(*publishing, closing, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [
        *[PublisherClosedError] * 6, asyncio.CancelledError,
    ]  # fmt: skip
    service.events.is_open.set()
    assert sizes(service) == [2]


async def test_publishing_with_a_closed_client_raises_an_error(service: Service) -> None:
    client = HooklineClient(service.target)
    publisher = client.batching("acme")
    await publisher.publish(numbered(0))
    await client.close()
    for number in (1, 2):
        with pytest.raises(grpc.aio.UsageError):
            await publisher.publish(numbered(number))
    await publisher.close()
