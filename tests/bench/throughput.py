"""Scenarios 1 to 6: throughput, cost of a delivery, latency when idle."""

from __future__ import annotations

from dataclasses import replace

from tests.bench.floor import with_floor
from tests.bench.measure import Figures, delivered, paced, stored, warm
from tests.bench.processes import BenchError
from tests.bench.publisher import Load, Mode
from tests.bench.scenario import Extent, Scenario, least, most
from tests.bench.stage import Stage, Subscriber


async def _play(stage: Stage, load: Load) -> Figures:
    await warm(stage, load)
    return await with_floor(stage, load, await delivered(stage, load))


async def end_to_end(stage: Stage, extent: Extent) -> Figures:
    """Fan-out 1, 500 bytes, batches of 100."""
    tenant = await stage.tenant()
    await stage.subscribe(tenant)
    return await _play(stage, stage.load(tenant, seconds=extent.seconds(10.0)))


async def batching_client(stage: Stage, extent: Extent) -> Figures:
    """Single events through the client's batching publisher."""
    tenant = await stage.tenant()
    await stage.subscribe(tenant)
    load = stage.load(
        tenant, mode=Mode.BATCHING, batch=1, in_flight=512, seconds=extent.seconds(10.0)
    )
    await warm(stage, load)
    figures = await delivered(stage, load)
    # Half of them are on their way while the others gather.
    closed = replace(load, mode=Mode.CLOSED, batch=load.in_flight // 2, in_flight=2)
    return await with_floor(stage, closed, figures)


async def unary(stage: Stage, extent: Extent) -> Figures:
    """A call for each event, 64 in flight."""
    tenant = await stage.tenant()
    await stage.subscribe(tenant)
    return await _play(
        stage, stage.load(tenant, batch=1, in_flight=64, seconds=extent.seconds(10.0))
    )


async def idle(stage: Stage, extent: Extent) -> Figures:
    """50 events a second: from the intended moment to the receiver."""
    tenant = await stage.tenant()
    await stage.subscribe(tenant)
    await warm(stage, stage.load(tenant, batch=1, in_flight=1))
    load = stage.load(
        tenant,
        mode=Mode.PACED,
        is_stamped=True,
        batch=1,
        per_second=50.0,
        seconds=extent.seconds(60.0),
    )
    figures, _ = await paced(stage, load)
    return figures


async def ingest(stage: Stage, extent: Extent) -> Figures:
    """The subscription paused: events and their deliveries stored, nothing sent."""
    tenant = await stage.tenant()
    (subscription,) = await stage.subscribe(tenant)
    await stage.pause(subscription)
    load = stage.load(tenant, backlog=0, in_flight=32, seconds=extent.seconds(10.0))
    await stored(stage, stage.load(tenant, backlog=0, in_flight=32, seconds=2.0))
    before = await stage.database.pending()
    figures, done = await stored(stage, load)
    if (kept := await stage.database.pending() - before) != done.events:
        raise BenchError(f"{kept} deliveries are pending of {done.events} events")
    return await with_floor(stage, load, figures, is_sent=False)


async def fan_out(stage: Stage, extent: Extent) -> Figures:
    """100 subscriptions, 10 kB."""
    tenant = await stage.tenant()
    await stage.subscribe(tenant, *[Subscriber(url=stage.url()) for _ in range(100)])
    load = stage.load(
        tenant,
        data_bytes=10_000,
        batch=10,
        in_flight=4,
        fan_out=100,
        seconds=extent.seconds(10.0),
    )
    return await _play(stage, load)


SCENARIOS = (
    Scenario(
        number="1",
        name="end to end",
        title="end to end, fan-out 1, 500 B, batches of 100",
        play=end_to_end,
        goals=(
            least("per_second", 9_000),
            most("hookline_cpu_us", 110),
            most("postgres_cpu_us", 60),
            most("wal_bytes", 1_600),
        ),
    ),
    Scenario(
        number="2",
        name="batching client",
        title="single events through the batching client, 512 in flight",
        play=batching_client,
        goals=(least("per_second", 5_000),),
    ),
    Scenario(
        number="3",
        name="unary calls",
        title="a unary call for each event, 64 in flight",
        play=unary,
        goals=(least("per_second", 1_500),),
    ),
    Scenario(
        number="4",
        name="idle",
        title="idle, 50 events/s",
        play=idle,
        goals=(most("p50_ms", 2.5), most("p99_ms", 10)),
    ),
    Scenario(
        number="5",
        name="ingest only",
        title="ingest only, subscription paused, batches of 100",
        play=ingest,
        goals=(least("per_second", 40_000),),
        unit="events",
    ),
    Scenario(
        number="6",
        name="fan-out 100",
        title="fan-out 100, 10 kB",
        play=fan_out,
        goals=(least("per_second", 8_000), most("wal_bytes", 950)),
    ),
)
