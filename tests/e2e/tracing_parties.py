"""The two ends of a trace, each a process with an OpenTelemetry SDK of its own.

    python -m tests.e2e.tracing_parties caller TARGET HOW  publishes each event in a span of its own
    python -m tests.e2e.tracing_parties receiver STATUS…   answers with these in turn, then with 200

HOW is `call`, one event; or `batching` or `stream`, two of them at once. The caller prints the
names of its events. The receiver prints its URL, then a line of JSON with each request's headers.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from itertools import count

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from hookline import HooklineClient
from hookline.tracing import current_traceparent
from hookline.v1.event_pb2 import Event
from hookline.v1.event_service_pb2 import StreamPublishEventsRequest
from hookline.webhook import receiving
from hookline_service.cli.receiver import Arrival, Receiver


def set_up(service: str) -> TracerProvider:
    """What an application does once: its spans go to the collector of the environment."""
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider


async def call(target: str, how: str) -> None:
    provider = set_up("caller")
    tracer = trace.get_tracer("shop")

    async def place_order(publish: Callable[[Event], Awaitable[object]]) -> None:
        with tracer.start_as_current_span("POST /orders"):
            await publish(Event(type="a.b", json_data="{}"))

    async with HooklineClient(target) as client:
        names = await HOW[how](client, place_order)
    print(*names, flush=True)  # noqa: T201 - for the test
    provider.shutdown()


Order = Callable[[Callable[[Event], Awaitable[object]]], Awaitable[None]]


async def by_call(client: HooklineClient, order: Order) -> list[str]:
    names: list[str] = []

    async def publish(event: Event) -> None:
        names.extend(result.name for result in await client.publish("default", [event]))

    await order(publish)
    return names


async def by_batching(client: HooklineClient, order: Order) -> list[str]:
    names: list[str] = []
    async with client.batching("default", max_events=2, max_delay_ms=60_000) as publisher:

        async def publish(event: Event) -> None:
            names.append((await publisher.publish(event)).name)

        await asyncio.gather(order(publish), order(publish))
    return names


async def by_stream(client: HooklineClient, order: Order) -> list[str]:
    stream = client.events.StreamPublishEvents()
    numbers = count(1)

    async def publish(event: Event) -> None:
        event.traceparent = current_traceparent() or ""
        await stream.write(
            StreamPublishEventsRequest(
                sequence=next(numbers), tenant="tenants/default", events=[event]
            )
        )

    await order(publish)
    await order(publish)
    await stream.done_writing()
    return [result.name async for answer in stream for result in answer.published.results]


HOW = {"call": by_call, "batching": by_batching, "stream": by_stream}


async def receive(statuses: list[int]) -> None:
    provider = set_up("receiver")

    def arrived(arrival: Arrival) -> None:
        with receiving(arrival.headers, name="order webhook"):
            print(json.dumps(arrival.headers), flush=True)  # noqa: T201 - for the test

    async with Receiver("receiver", arrived, answers=[*statuses, 200]) as receiver:
        print(receiver.url, flush=True)  # noqa: T201 - for the test
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    provider.shutdown()


if __name__ == "__main__":
    party, *arguments = sys.argv[1:]
    if party == "caller":
        asyncio.run(call(*arguments))
    else:
        asyncio.run(receive([int(status) for status in arguments]))
