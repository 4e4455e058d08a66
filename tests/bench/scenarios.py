"""The scenarios: what each sets up, publishes and reports."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tests.bench.publisher import Load

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.bench.stage import Meters, Stage

Figures = dict[str, float]

EVENT_TYPE = "order.created"
BACKLOG = 4_000


@dataclass(frozen=True)
class Scenario:
    """One row of the table."""

    number: str
    title: str
    goal: str
    play: Callable[[Stage, float], Awaitable[Figures]]
    seconds: float = 10.0


def _load(stage: Stage, tenant: str, **fields: object) -> Load:
    load = Load(
        server=stage.server,
        counters=str(stage.counters.path),
        tenant=tenant,
        mode="batches",
        event_type=EVENT_TYPE,
        data_bytes=500,
        batch=100,
        in_flight=16,
        seconds=10.0,
        fan_out=1,
        backlog=BACKLOG,
        per_second=0.0,
    )
    return replace(load, **fields)  # type: ignore[arg-type]  # a scenario's own fields


async def _delivered(stage: Stage, load: Load, deliveries_per_event: int) -> Figures:
    """Publish, wait until all of it arrived and is recorded, and say what a delivery cost."""
    before = await stage.meters()
    acknowledged = await stage.publish(load)
    events = int(acknowledged["events"])
    await stage.received(before.distinct + events)
    after = await stage.meters()
    await stage.drained()
    settled = await stage.meters()
    count = events * deliveries_per_event
    return {"per_second": count / (after.moment_s - before.moment_s)} | _costs(
        before, settled, count
    )


def _costs(before: Meters, after: Meters, count: int) -> Figures:
    return {
        "hookline_cpu_us": (after.hookline_cpu_s - before.hookline_cpu_s) / count * 1e6,
        "postgres_cpu_us": (after.postgres_cpu_s - before.postgres_cpu_s) / count * 1e6,
        "wal_bytes": (after.wal_bytes - before.wal_bytes) / count,
        "count": count,
    }


async def _warm(stage: Stage, load: Load, deliveries_per_event: int) -> None:
    await _delivered(stage, replace(load, seconds=2.0), deliveries_per_event)


async def end_to_end(stage: Stage, seconds: float) -> Figures:
    """Fan-out 1, 500 bytes, batches of 100."""
    tenant = await stage.tenant()
    await stage.subscribe(tenant, 1)
    load = _load(stage, tenant, seconds=seconds)
    await _warm(stage, load, 1)
    return await _delivered(stage, load, 1)


async def unary(stage: Stage, seconds: float) -> Figures:
    """The same through plain unary calls of one event, 64 in flight."""
    tenant = await stage.tenant()
    await stage.subscribe(tenant, 1)
    load = _load(stage, tenant, mode="single", batch=1, in_flight=64, seconds=seconds)
    await _warm(stage, load, 1)
    return await _delivered(stage, load, 1)


async def idle(stage: Stage, seconds: float) -> Figures:
    """50 events a second: from the intended moment to the receiver."""
    tenant = await stage.tenant()
    await stage.subscribe(tenant, 1)
    await _warm(stage, _load(stage, tenant, batch=1, in_flight=1), 1)
    load = _load(stage, tenant, mode="paced", batch=1, per_second=50.0, seconds=seconds)
    figures = await _delivered(stage, load, 1)
    latencies_us = sorted(await stage.latencies_us())
    cuts = statistics.quantiles(latencies_us, n=100)
    return figures | {"p50_ms": cuts[49] / 1_000, "p99_ms": cuts[98] / 1_000}


async def ingest(stage: Stage, seconds: float) -> Figures:
    """The subscription paused: events stored, nothing sent."""
    tenant = await stage.tenant()
    (subscription,) = await stage.subscribe(tenant, 1)
    await stage.pause(subscription)
    load = _load(stage, tenant, backlog=0, in_flight=32, seconds=seconds)
    await stage.publish(replace(load, seconds=2.0))
    before = await stage.meters()
    acknowledged = await stage.publish(load)
    after = await stage.meters()
    events = int(acknowledged["events"])
    return {"per_second": events / acknowledged["seconds"]} | _costs(before, after, events)


async def fan_out(stage: Stage, seconds: float) -> Figures:
    """100 subscriptions, 10 kB."""
    tenant = await stage.tenant()
    await stage.subscribe(tenant, 100)
    load = _load(
        stage, tenant, data_bytes=10_000, batch=10, in_flight=4, fan_out=100, seconds=seconds
    )
    await _warm(stage, load, 100)
    return await _delivered_fan_out(stage, load, 100)


async def _delivered_fan_out(stage: Stage, load: Load, subscriptions: int) -> Figures:
    """As `_delivered`, counting requests: the deliveries of one event share its webhook id."""
    before = await stage.meters()
    acknowledged = await stage.publish(load)
    events = int(acknowledged["events"])
    await stage.drained()
    after = await stage.meters()
    count = events * subscriptions
    if after.received - before.received < count or after.distinct - before.distinct != events:
        raise RuntimeError(f"{after.received - before.received} of {count} deliveries arrived")
    return {"per_second": count / (after.moment_s - before.moment_s)} | _costs(before, after, count)


SCENARIOS = (
    Scenario(
        "1",
        "end to end, fan-out 1, 500 B, batches of 100",
        "9,000/s, 110 + 60 µs, 1,600 B",
        end_to_end,
    ),
    Scenario("3", "plain unary calls, 64 in flight", "1,500/s", unary),
    Scenario("4", "idle latency at 50/s", "p50 2.5 ms, p99 10 ms", idle, seconds=60.0),
    Scenario("5", "ingest only, subscription paused", "40,000/s", ingest),
    Scenario("6", "fan-out 100, 10 kB", "8,000/s, 950 B", fan_out),
)
