"""One trace from the caller's process through two nodes to the receiver's, as it is collected."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from hookline import HooklineClient
from hookline.v1.attempt_pb2 import Attempt
from hookline.v1.delivery_pb2 import DELIVERY_STATE_SUCCEEDED, Delivery
from hookline.v1.delivery_service_pb2 import ListAttemptsRequest, ListDeliveriesRequest
from hookline.v1.event_pb2 import Event
from hookline.v1.event_service_pb2 import PublishEventsRequest
from hookline.v1.subscription_service_pb2 import CreateSubscriptionRequest
from tests.collector import Collector, Received
from tests.e2e.processes import Node, environment
from tests.e2e.test_serve import settings
from tests.waiting import until

pytestmark = pytest.mark.timeout(180)

PARTIES = (sys.executable, "-m", "tests.e2e.tracing_parties")
SUBSCRIPTIONS = 12
"""So many that each of two nodes has some: of 4,096 runs one has them all on one side."""


@dataclass
class Party:
    """A receiver's process: its URL, and what came."""

    url: str = ""
    requests: list[dict[str, str]] = field(default_factory=list)


@asynccontextmanager
async def receiving(collector: Collector, *statuses: int) -> AsyncIterator[Party]:
    """A receiver that continues traces, in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *PARTIES,
        "receiver",
        *map(str, statuses),
        env=environment(**collector.variables),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    stdout, party = process.stdout, Party()
    party.url = (await stdout.readline()).decode().strip()

    async def read() -> None:
        while line := await stdout.readline():
            party.requests.append(json.loads(line))

    reading = asyncio.create_task(read())
    try:
        yield party
    finally:
        process.stdin.close()
        await reading
        await process.wait()


async def call(collector: Collector, client: HooklineClient, how: str = "call") -> list[str]:
    """Publish from a process of its own, where this client does; the events' names."""
    process = await asyncio.create_subprocess_exec(
        *PARTIES,
        "caller",
        client.target,
        how,
        env=environment(**collector.variables),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode().split()


@asynccontextmanager
async def serving(
    url: str, collector: Collector, nodes: int = 1, sampler: str = "parentbased_always_on"
) -> AsyncIterator[HooklineClient]:
    """Nodes that share a database, and a client of the first."""
    variables = settings(url) | collector.variables
    variables |= {"HOOKLINE_EGRESS_ALLOW": "127.0.0.0/8", "OTEL_TRACES_SAMPLER": sampler}
    with ExitStack() as stack:
        running = [stack.enter_context(Node(["serve"], variables)).ready() for _ in range(nodes)]
        async with HooklineClient(running[0].target) as client:
            yield client
        # In threads: this one's loop is the collector's, which a stop sends its last spans to.
        stopping = [asyncio.to_thread(node.stop) for node in running]
        assert await asyncio.gather(*stopping) == [0] * nodes


async def subscribe(
    client: HooklineClient, url: str, name: str = "s-0", *, propagates: bool = True
) -> None:
    request = CreateSubscriptionRequest(tenant="tenants/default", subscription_id=name)
    request.subscription.event_types.append("*")
    request.subscription.http.url = f"{url}{name}?token=secret"
    request.subscription.propagate_trace = propagates
    for milliseconds in (0, 1, 1, 1):
        request.subscription.retry_policy.schedule.add().FromMilliseconds(milliseconds)
    await client.subscriptions.CreateSubscription(request)


async def succeeded(client: HooklineClient, event: str, count: int) -> list[Delivery]:
    """An event's deliveries, once all of them have succeeded."""
    found: list[Delivery] = []

    async def are() -> bool:
        request = ListDeliveriesRequest(tenant="tenants/default", event=event)
        found[:] = (await client.deliveries.ListDeliveries(request)).deliveries
        done = [one for one in found if one.state == DELIVERY_STATE_SUCCEEDED]
        return len(done) == count

    await until(are, "all deliveries have succeeded")
    return found


async def attempts_of(client: HooklineClient, delivery: Delivery) -> list[Attempt]:
    request = ListAttemptsRequest(delivery=delivery.name)
    return list((await client.deliveries.ListAttempts(request)).attempts)


def one(found: list[Received]) -> Received:
    (only,) = found
    return only


async def test_one_trace_from_caller_to_receiver_over_two_nodes(database_url: str) -> None:
    async with Collector() as collector, receiving(collector) as receiver:
        async with serving(database_url, collector, nodes=2) as client:
            for number in range(SUBSCRIPTIONS):
                await subscribe(client, receiver.url, f"s-{number}")
            (event,) = await call(collector, client)
            deliveries = await succeeded(client, event, SUBSCRIPTIONS)
            attempts = [(await attempts_of(client, each))[0] for each in deliveries]
        await until(
            lambda: len(collector.named("order webhook")) == SUBSCRIPTIONS, "all have arrived"
        )
        own = one(collector.named("POST /orders"))
        trace_id = own.span.trace_id
        served = [each for each in collector.spans if each.span.trace_id == trace_id]

    assert {each.service for each in served} == {"caller", "hookline", "receiver"}
    sent = one([each for each in served if each.service == "caller" and each is not own])
    method = "hookline.v1.EventService/PublishEvents"
    received = one(collector.named(method, trace_id))
    stored = one([each for each in collector.named("publish", trace_id) if each is not sent])
    assert sent.span.parent_span_id == own.span.span_id
    assert received.span.parent_span_id == sent.span.span_id
    assert stored.span.parent_span_id == received.span.span_id

    delivered = collector.named("deliver", trace_id)
    posts = {each.span.parent_span_id: each for each in collector.named("POST", trace_id)}
    continued = {each.span.parent_span_id for each in collector.named("order webhook", trace_id)}
    assert len(delivered) == len(posts) == len(continued) == SUBSCRIPTIONS
    for each in delivered:
        assert each.span.parent_span_id == stored.span.span_id
        assert posts[each.span.span_id].span.span_id in continued
        assert posts[each.span.span_id].attributes["http.response.status_code"] == 200
    assert {attempt.trace_id for attempt in attempts} == {trace_id.hex()}
    assert len({each.instance for each in delivered}) == 2, "both nodes have delivered"
    assert "token" not in str(collector.spans)
    assert "secret" not in str(collector.spans)


@pytest.mark.parametrize("how", ["batching", "stream"])
async def test_each_event_belongs_to_its_own_caller_s_trace(database_url: str, how: str) -> None:
    async with Collector() as collector, receiving(collector) as receiver:
        async with serving(database_url, collector) as client:
            await subscribe(client, receiver.url)
            events = await call(collector, client, how)
            assert len(events) == 2
            for event in events:
                await succeeded(client, event, 1)
        await until(lambda: len(collector.named("order webhook")) == 2, "both have arrived")

    orders = collector.named("POST /orders")
    assert len({each.span.trace_id for each in orders}) == 2
    for own in orders:
        maker = own
        if how == "batching":  # has a span of its own for each event
            maker = one(
                [
                    each
                    for each in collector.named("publish", own.span.trace_id)
                    if each.service == "caller"
                ]
            )
            assert maker.span.parent_span_id == own.span.span_id
        delivered = one(collector.named("deliver", own.span.trace_id))
        assert delivered.span.parent_span_id == maker.span.span_id
        assert delivered.attributes["messaging.message.id"] in {
            event.rpartition("/")[2] for event in events
        }
        assert len(collector.named("order webhook", own.span.trace_id)) == 1


async def test_a_retry_is_a_trace_of_its_own_linked_to_the_event_s(database_url: str) -> None:
    async with Collector() as collector, receiving(collector, 503) as receiver:
        async with serving(database_url, collector) as client:
            await subscribe(client, receiver.url)
            (event,) = await call(collector, client)
            (delivery,) = await succeeded(client, event, 1)
            first, second = await attempts_of(client, delivery)
        await until(lambda: len(collector.named("order webhook")) == 2, "both have arrived")
        own = one(collector.named("POST /orders"))

    stored = one(
        [
            each
            for each in collector.named("publish", own.span.trace_id)
            if each.service == "hookline"
        ]
    )
    refused, accepted = sorted(
        collector.named("deliver"), key=lambda each: str(each.attributes["hookline.attempt.number"])
    )
    assert first.trace_id == own.span.trace_id.hex() == refused.span.trace_id.hex()
    assert refused.span.status.code == 2
    assert second.trace_id == accepted.span.trace_id.hex() != first.trace_id
    assert accepted.span.parent_span_id == b""
    (link,) = accepted.span.links
    assert (link.trace_id, link.span_id) == (own.span.trace_id, stored.span.span_id)
    post = one(collector.named("POST", accepted.span.trace_id))
    assert post.attributes["http.request.resend_count"] == 1
    again = one(collector.named("order webhook", accepted.span.trace_id))
    assert again.span.parent_span_id == post.span.span_id


async def test_nothing_but_the_trace_leaves_and_that_only_where_it_may(database_url: str) -> None:
    async with Collector() as collector, receiving(collector) as receiver:
        async with serving(database_url, collector) as client:
            await subscribe(client, receiver.url, "open")
            await subscribe(client, receiver.url, "closed", propagates=False)
            answer = await client.events.PublishEvents(
                PublishEventsRequest(
                    tenant="tenants/default", events=[Event(type="a.b", json_data="{}")]
                ),
                metadata=(
                    ("traceparent", f"00-{'a' * 32}-{'b' * 16}-01"),
                    ("tracestate", "vendor=secret"),
                    ("baggage", "user=secret"),
                ),
            )
            await succeeded(client, answer.results[0].name, 2)
        await until(lambda: len(receiver.requests) == 2, "both have arrived")

    (carried,) = [each["traceparent"] for each in receiver.requests if "traceparent" in each]
    assert carried.startswith(f"00-{'a' * 32}-")
    assert "secret" not in str(receiver.requests)
    assert not {"tracestate", "baggage"} & {name for each in receiver.requests for name in each}


async def test_what_is_not_sampled_leaves_no_trace_anywhere(database_url: str) -> None:
    async with Collector() as collector, receiving(collector) as receiver:
        async with serving(database_url, collector, sampler="parentbased_always_off") as client:
            await subscribe(client, receiver.url)
            (published,) = await client.publish("default", [Event(type="a.b", json_data="{}")])
            (delivery,) = await succeeded(client, published.name, 1)
            (attempt,) = await attempts_of(client, delivery)
        await until(lambda: len(receiver.requests) == 1, "it has arrived")

    assert attempt.trace_id == ""
    assert "traceparent" not in receiver.requests[0]
    assert [each.span.name for each in collector.spans if each.service == "hookline"] == []
