"""The load, in a process of its own, through the generated stubs' wire format.

`python -m tests.bench.publisher '{"mode": …}'`: `batches` (closed by how far the receiver is behind),
`single` (unary calls of one event, so many in flight), `paced` (so many events a second, each at its
intended moment). Prints what was acknowledged as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio
import uvloop

from hookline.v1 import event_pb2, event_service_pb2
from tests.bench.counters import PUBLISHED, RECEIVED, Counters

if TYPE_CHECKING:
    Call = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]

_METHOD = "/hookline.v1.EventService/PublishEvents"
_POLL_S = 0.002


@dataclass(frozen=True)
class Load:
    """What to publish, and how fast."""

    server: str
    counters: str
    tenant: str
    mode: str
    event_type: str
    data_bytes: int
    batch: int
    in_flight: int
    seconds: float
    fan_out: int
    backlog: int
    """Deliveries that the receiver may be behind; 0: no bound."""
    per_second: float


def request_of(load: Load, stamp_ns: int | None = None) -> bytes:
    """A serialised request; the filler makes up the size."""
    head = "{" if stamp_ns is None else f'{{"t":{stamp_ns},'
    data = head + '"filler":"' + "x" * max(0, load.data_bytes - len(head) - 12) + '"}'
    event = event_pb2.Event(type=load.event_type, json_data=data)
    return event_service_pb2.PublishEventsRequest(
        tenant=load.tenant, events=[event] * load.batch
    ).SerializeToString()


async def run(load: Load, counters: Counters) -> dict[str, float]:
    """Publish for the load's time."""
    async with grpc.aio.insecure_channel(load.server) as channel:
        call = channel.unary_unary(_METHOD)
        start = time.monotonic()
        runners = {"batches": run_closed, "single": run_closed, "paced": run_paced}
        acknowledged = await runners[load.mode](load, counters, call, start + load.seconds)
        return {"events": acknowledged, "seconds": time.monotonic() - start}


async def run_closed(load: Load, counters: Counters, call: Call, end: float) -> int:
    """So many calls in flight, held back only where the receiver falls behind."""
    request = request_of(load)

    async def work() -> None:
        while time.monotonic() < end:
            behind = counters[PUBLISHED] * load.fan_out - counters[RECEIVED]
            if load.backlog and behind > load.backlog:
                await asyncio.sleep(_POLL_S)
                continue
            await call(request, timeout=30)
            counters[PUBLISHED] += load.batch

    await asyncio.gather(*[work() for _ in range(load.in_flight)])
    return counters[PUBLISHED]


async def run_paced(load: Load, counters: Counters, call: Call, end: float) -> int:
    """Each event at its intended moment, whatever became of the one before."""
    pending: set[asyncio.Task[None]] = set()

    async def publish(stamp_ns: int) -> None:
        await call(request_of(load, stamp_ns), timeout=30)
        counters[PUBLISHED] += load.batch

    interval_ns = int(1e9 / load.per_second)
    due_ns = time.monotonic_ns()
    while due_ns < end * 1e9:
        await asyncio.sleep(max(0.0, (due_ns - time.monotonic_ns()) / 1e9))
        task = asyncio.create_task(publish(due_ns))
        pending.add(task)
        task.add_done_callback(pending.discard)
        due_ns += interval_ns
    await asyncio.gather(*pending)
    return counters[PUBLISHED]


if __name__ == "__main__":
    given = Load(**json.loads(sys.argv[1]))
    with Counters(Path(given.counters)) as shared:
        json.dump(uvloop.run(run(given, shared)), sys.stdout)
