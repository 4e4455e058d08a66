"""The two ends of a trace, each a process with an OpenTelemetry SDK of its own.

    python -m tests.e2e.tracing_parties caller TARGET    publishes one event in a span of its own
    python -m tests.e2e.tracing_parties receiver STATUS… answers with these in turn, then with 200

The receiver prints its URL, then a line of JSON with each request's headers.
"""

import asyncio
import json
import sys

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from hookline import HooklineClient
from hookline.v1.event_pb2 import Event
from hookline.webhook import receiving
from service.cli.receiver import Arrival, Receiver


def set_up(service: str) -> TracerProvider:
    """What an application does once: its spans go to the collector of the environment."""
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider


async def call(target: str) -> None:
    provider = set_up("caller")
    async with HooklineClient(target) as client:
        with trace.get_tracer("shop").start_as_current_span("POST /orders"):
            (result,) = await client.publish("default", [Event(type="a.b", json_data="{}")])
    print(result.name, flush=True)  # noqa: T201 - for the test
    provider.shutdown()


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
