"""`client.batching`: batches, their order, idempotency keys, repetitions and deadlines."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest

from hookline import HooklineClient
from hookline.errors import DeadlineExceededError, UnavailableError
from tests.client.batches import NEVER_MS, UNAVAILABLE, numbered, sizes, start, subjects
from tests.client.service import Service, hang, refuse
from tests.waiting import until

# -------------------------------------------------------------------------- when a batch goes


async def test_full_batches_are_sent_and_close_sends_the_rest(
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


async def test_a_batch_is_sent_at_its_byte_limit_and_never_exceeds_it(
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


async def test_a_batch_is_sent_after_the_delay_of_its_first_event(
    service: Service, client: HooklineClient
) -> None:
    async with client.batching("acme", max_delay_ms=150) as publisher:
        began = time.monotonic()
        results = await asyncio.gather(*start(publisher, range(5)))
        assert time.monotonic() - began >= 0.15
        assert sizes(service) == [5]
        assert [result.name[-1] for result in results] == ["0", "1", "2", "3", "4"]


async def test_events_published_during_a_batch_form_the_next_batch(
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
async def test_invalid_bounds_raise_value_error(
    client: HooklineClient, bounds: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="at least"):
        client.batching("acme", **bounds)


# --------------------------------------------------------------------------- keys and repeating


async def test_each_event_gets_its_own_key_and_is_not_modified(
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
async def test_transient_errors_are_repeated_with_the_same_keys(
    service: Service, client: HooklineClient, code: grpc.StatusCode
) -> None:
    service.events.script = [refuse(code, pushback="200"), refuse(code, pushback="0")]
    async with client.batching("acme") as publisher:
        await asyncio.gather(*start(publisher, range(5)))
    first, second, third = service.events.requests
    assert first == second == third
    assert service.events.times[1] - service.events.times[0] >= 0.19, "as the service advised"


async def test_order_is_kept_across_repetitions(service: Service, client: HooklineClient) -> None:
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


async def test_retry_delay_also_applies_to_the_next_batch(
    service: Service, client: HooklineClient
) -> None:
    """Although the events of the first batch have timed out."""
    service.events.script = [refuse(grpc.StatusCode.UNAVAILABLE, pushback="400")]
    async with client.batching("acme", max_events=1) as publisher:
        first, second = start(publisher, range(2))
        await until(lambda: sizes(service) == [1], "the first is sent")
        first.cancel()
        await second
    assert service.events.times[1] - service.events.times[0] >= 0.39
    assert subjects(service) == [0, 1]


async def test_retry_delay_applies_to_events_added_after_all_have_timed_out(
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


async def test_batching_reconnects_to_a_restarted_service(service: Service) -> None:
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


async def test_an_event_fails_at_its_deadline(service: Service, client: HooklineClient) -> None:
    """In flight, in the queue and in the overflow."""
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


async def test_an_event_without_a_response_fails_at_its_deadline(
    service: Service, client: HooklineClient
) -> None:
    service.events.rule = lambda _: hang
    async with client.batching("acme", max_events=1, timeout_s=0.4) as publisher:
        outcomes = await asyncio.gather(*start(publisher, range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [DeadlineExceededError] * 3
    assert subjects(service) == [0]


async def test_a_later_event_is_stored_after_an_earlier_one_of_its_batch_has_timed_out(
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


async def test_a_hanging_try_is_repeated_before_the_event_deadline(service: Service) -> None:
    service.events.script = [hang]
    async with (
        HooklineClient(service.target, timeout_s=0.3) as client,
        client.batching("acme", timeout_s=20) as publisher,
    ):
        await publisher.publish(numbered(0))
    assert service.events.requests[0] == service.events.requests[1]
