"""`client.batching`: which batches go when, in which order, with which keys, and how much waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import grpc
import pytest

from hookline import HooklineClient
from hookline.batching import BatchingPublisher, PublisherClosedError
from hookline.errors import DeadlineExceededError, UnavailableError
from hookline.v1.event_pb2 import Event
from hookline.v1.event_service_pb2 import PublishResult
from tests.client.service import Service, hang, refuse
from tests.waiting import until

NEVER_MS = 3_600_000.0
UNAVAILABLE = refuse(grpc.StatusCode.UNAVAILABLE, pushback="30")

Publishing = list[asyncio.Task[PublishResult]]


def numbered(number: int, **fields: Any) -> Event:  # noqa: ANN401 (any field)
    return Event(**({"type": "order.created", "subject": str(number)} | fields))


def start(publisher: BatchingPublisher, numbers: Sequence[int]) -> Publishing:
    """Publish so many events, each from a task of its own, in this order."""
    return [asyncio.create_task(publisher.publish(numbered(number))) for number in numbers]


def sizes(service: Service) -> list[int]:
    return [len(request.events) for request in service.events.requests]


def subjects(service: Service) -> list[int]:
    """The events in the order in which they came, all requests in a row."""
    return [int(event.subject) for r in service.events.requests for event in r.events]


# -------------------------------------------------------------------------- when a batch goes


async def test_a_batch_goes_when_it_has_enough_events_and_the_rest_at_the_end(
    service: Service, client: HooklineClient
) -> None:
    async with client.batching("acme", max_events=3, max_delay_ms=NEVER_MS) as publisher:
        publishing = start(publisher, range(7))
        await asyncio.gather(*publishing[:6])
        assert sizes(service) == [3, 3]
        assert not publishing[6].done()
    assert sizes(service) == [3, 3, 1]
    assert publishing[6].result().name == "tenants/acme/events/evt_0"
    assert subjects(service) == list(range(7))
    assert {request.tenant for request in service.events.requests} == {"tenants/acme"}


async def test_a_batch_goes_when_it_has_enough_bytes_and_is_never_larger(
    service: Service, client: HooklineClient
) -> None:
    async with client.batching("tenants/acme", max_bytes=4_000, max_delay_ms=NEVER_MS) as publisher:
        publishing = [
            asyncio.create_task(publisher.publish(numbered(n, binary_data=bytes(size))))
            for n, size in enumerate([1_500, 1_500, 1_500, 9_000, 10, 3_000])
        ]
        await asyncio.gather(*publishing[:4])
    assert sizes(service) == [2, 1, 1, 2]
    assert subjects(service) == list(range(6))
    large = [request.ByteSize() > 4_000 for request in service.events.requests]
    assert large == [False, False, True, False], "only an event that is larger by itself"


async def test_a_batch_goes_when_its_first_event_was_delayed_enough(
    service: Service, client: HooklineClient
) -> None:
    async with client.batching("acme", max_delay_ms=150) as publisher:
        began = time.monotonic()
        results = await asyncio.gather(*start(publisher, range(5)))
        assert time.monotonic() - began >= 0.15
        assert sizes(service) == [5]
        assert [result.name[-1] for result in results] == ["0", "1", "2", "3", "4"]


async def test_what_comes_while_a_batch_is_on_its_way_goes_together_and_at_once(
    service: Service, client: HooklineClient
) -> None:
    async with client.batching("acme", max_delay_ms=0) as publisher:
        service.events.is_open.clear()
        first = start(publisher, [0])
        await until(lambda: sizes(service) == [1], "the first batch is on its way")
        others = start(publisher, range(1, 30))
        await until(lambda: publisher.pending_events == 30, "all are pending")
        assert sizes(service) == [1], "one at a time"
        service.events.is_open.set()
        await asyncio.gather(*first, *others)
        assert sizes(service) == [1, 29]
    assert subjects(service) == list(range(30))


@pytest.mark.parametrize(
    "bounds",
    [
        {"max_events": 0},
        {"max_bytes": 0},
        {"max_pending_events": 0},
        {"max_pending_bytes": -1},
        {"max_delay_ms": -0.1},
    ],
)
async def test_bounds_out_of_all_sense_are_refused(
    client: HooklineClient, bounds: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="at least"):
        client.batching("acme", **bounds)


# --------------------------------------------------------------------------- keys and repeating


async def test_each_event_gets_a_key_of_its_own_and_is_not_changed(
    service: Service, client: HooklineClient
) -> None:
    events = [numbered(0), numbered(1, idempotency_key="mine"), numbered(2)]
    async with client.batching("acme") as one, client.batching("acme") as other:
        await asyncio.gather(*[one.publish(event) for event in events], other.publish(events[0]))
    keys = [event.idempotency_key for r in service.events.requests for event in r.events]
    assert len(set(keys)) == 4
    assert all(0 < len(key) < 64 for key in keys)
    assert "mine" in keys
    assert [event.idempotency_key for event in events] == ["", "mine", ""]


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
    ],
)
async def test_what_may_have_been_stored_is_sent_again_with_the_same_keys(
    service: Service, client: HooklineClient, code: grpc.StatusCode
) -> None:
    service.events.script = [refuse(code, pushback="200"), refuse(code, pushback="0")]
    async with client.batching("acme") as publisher:
        await asyncio.gather(*start(publisher, range(5)))
    first, second, third = service.events.requests
    assert first == second == third
    assert service.events.times[1] - service.events.times[0] >= 0.2, "as the service advised"


async def test_order_is_kept_across_what_is_repeated(
    service: Service, client: HooklineClient
) -> None:
    stored: list[int] = []

    def rule(request: Any) -> Any:  # noqa: ANN401
        if len(service.events.requests) % 3:
            return UNAVAILABLE
        stored.extend(int(event.subject) for event in request.events)
        return None

    service.events.rule = rule
    async with client.batching("acme", max_events=7) as publisher:
        await asyncio.gather(*start(publisher, range(50)))
    assert stored == list(range(50))


async def test_advice_holds_for_the_next_batch_too(
    service: Service, client: HooklineClient
) -> None:
    """Although nobody is left for whom the first is repeated."""
    service.events.script = [refuse(grpc.StatusCode.UNAVAILABLE, pushback="400")]
    async with client.batching("acme", max_events=1) as publisher:
        first, second = start(publisher, range(2))
        await until(lambda: sizes(service) == [1], "the first is sent")
        first.cancel()
        await second
    assert service.events.times[1] - service.events.times[0] >= 0.4
    assert subjects(service) == [0, 1]


async def test_advice_holds_for_events_that_come_after_all_were_given_up(
    service: Service, client: HooklineClient
) -> None:
    service.events.rule = lambda _: refuse(grpc.StatusCode.UNAVAILABLE, pushback="400")
    async with client.batching("acme", timeout_s=0.2) as publisher:
        for number in range(3):
            with pytest.raises(UnavailableError):
                await publisher.publish(numbered(number))
        service.events.rule = None
        assert subjects(service) == [0]
        began = time.monotonic()
    assert time.monotonic() - began < 0.1, "the end does not wait for nothing"


async def test_a_service_that_is_gone_is_found_again(service: Service) -> None:
    await service.server.stop(0)
    async with HooklineClient(service.target) as client, client.batching("acme") as publisher:
        publishing = start(publisher, range(20))
        await until(lambda: publisher.pending_events == 20, "all are pending")
        again = Service(port=service.port)
        await again.server.start()
        await asyncio.gather(*publishing)
        assert subjects(again) == list(range(20))
    await again.server.stop(0)


# --------------------------------------------------------------------------------- giving up


async def test_an_event_is_given_up_when_its_time_is_over(
    service: Service, client: HooklineClient
) -> None:
    """On its way, in the queue and in the line alike."""
    service.events.rule = lambda _: UNAVAILABLE
    began = time.monotonic()
    async with client.batching(
        "acme", max_events=2, max_pending_events=4, timeout_s=0.5
    ) as publisher:
        outcomes = await asyncio.gather(*start(publisher, range(8)), return_exceptions=True)
        assert 0.4 < time.monotonic() - began < 2
        assert [type(outcome) for outcome in outcomes] == [UnavailableError] * 8
        assert len({id(outcome) for outcome in outcomes}) == 8, "each its own"
        assert publisher.pending_events == publisher.pending_bytes == 0
        service.events.rule = None
        await publisher.publish(numbered(8))


async def test_an_event_that_is_not_answered_is_given_up_when_its_time_is_over(
    service: Service, client: HooklineClient
) -> None:
    service.events.rule = lambda _: hang
    async with client.batching("acme", max_events=1, timeout_s=0.4) as publisher:
        outcomes = await asyncio.gather(*start(publisher, range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [DeadlineExceededError] * 3
    assert subjects(service) == [0]


async def test_a_later_event_outlives_an_earlier_one_of_its_batch(
    service: Service, client: HooklineClient
) -> None:
    service.events.rule = lambda _: UNAVAILABLE
    async with client.batching("acme", timeout_s=0.6, max_delay_ms=400) as publisher:
        early = asyncio.create_task(publisher.publish(numbered(0)))
        await until(lambda: publisher.pending_events == 1, "it is pending")
        began = time.monotonic()
        await until(lambda: time.monotonic() - began > 0.3, "its time is half over")
        late = asyncio.create_task(publisher.publish(numbered(1)))
        with pytest.raises(UnavailableError):
            await early
        service.events.rule = None
        await late
    assert service.events.requests[0].events[1] == service.events.requests[-1].events[0]


async def test_a_try_that_hangs_is_repeated_within_the_time(service: Service) -> None:
    service.events.script = [hang]
    async with (
        HooklineClient(service.target, timeout_s=0.3) as client,
        client.batching("acme", timeout_s=20) as publisher,
    ):
        await publisher.publish(numbered(0))
    assert service.events.requests[0] == service.events.requests[1]


# ----------------------------------------------------------------------------- what may wait


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


async def test_a_small_event_does_not_pass_a_large_one_that_waits_for_room(
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


async def test_one_event_larger_than_what_may_be_pending_goes_alone(
    service: Service, client: HooklineClient
) -> None:
    async with client.batching("acme", max_pending_bytes=100) as publisher:
        await asyncio.gather(
            *[publisher.publish(numbered(n, binary_data=bytes(1_000))) for n in range(3)]
        )
    assert sizes(service) == [1, 1, 1]


# -------------------------------------------------------------------------------- cancellation


async def test_who_gives_up_takes_nobody_along(service: Service, client: HooklineClient) -> None:
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
async def test_who_gives_up_on_its_way_is_not_sent_again(
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


async def test_the_only_one_that_gives_up_leaves_a_publisher_that_works(
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


async def test_a_publisher_that_was_not_used_closes(client: HooklineClient) -> None:
    await client.batching("acme").close()


async def test_an_error_inside_sends_what_is_pending_all_the_same(client: HooklineClient) -> None:
    publishing: Publishing = []

    async def fail() -> None:
        async with client.batching("acme", max_delay_ms=NEVER_MS) as publisher:
            publishing.extend(start(publisher, range(3)))
            await asyncio.sleep(0)
            raise LookupError

    with pytest.raises(LookupError):
        await fail()
    assert [task.result().name[-1] for task in publishing] == ["0", "1", "2"]


async def test_a_close_that_is_cancelled_tells_who_waits(
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


async def test_a_client_that_was_closed_is_an_error_and_no_end(service: Service) -> None:
    client = HooklineClient(service.target)
    publisher = client.batching("acme")
    await publisher.publish(numbered(0))
    await client.close()
    for number in (1, 2):
        with pytest.raises(grpc.aio.UsageError):
            await publisher.publish(numbered(number))
    await publisher.close()
