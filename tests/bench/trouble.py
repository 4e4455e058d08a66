"""Scenarios 9 to 11: targets that fail, a tenant that floods, a transaction that is held open."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from tests.bench.measure import Figures, costs, delivered, latencies, paced, warm
from tests.bench.publisher import Mode
from tests.bench.receiver import Behaviour, Group
from tests.bench.scenario import Extent, Scenario, least, most
from tests.bench.stage import EVENT_TYPE, Stage, Subscriber

_TARGETS = 50
_REFUSING, _HANGING = 15, 5
_TROUBLED = (
    Group(Behaviour.ACCEPT, _TARGETS),
    Group(Behaviour.ACCEPT, _TARGETS - _REFUSING - _HANGING),
    Group(Behaviour.REFUSE, _REFUSING),
    Group(Behaviour.HANG, _HANGING),
)
_ALL_WELL, _WELL = 0, 1
_BYSTANDERS = 50
_FLOOD, _BYSTANDER = 0, 1


async def failing_targets(stage: Stage, extent: Extent) -> Figures:
    """50 targets in turn, 500 events/s: first all healthy, then 30 % answer 503 and 10 % hang."""
    tenant = await stage.tenant()
    places = [
        (group, port) for group, ports in enumerate(stage.ports) for port in range(len(ports))
    ]
    types = [f"order.t{number}" for number in range(len(places))]
    await stage.subscribe(
        tenant,
        *[
            Subscriber(url=stage.url(*place), event_type=name, max_in_flight=64)
            for place, name in zip(places, types, strict=True)
        ],
    )
    await warm(stage, stage.load(tenant, event_types=types[:_TARGETS]))
    load = stage.load(
        tenant,
        event_types=types[:_TARGETS],
        mode=Mode.PACED,
        is_stamped=True,
        batch=1,
        per_second=500.0,
        seconds=extent.seconds(30.0),
    )
    well, _ = await paced(stage, load)
    done = await stage.publish(replace(load, event_types=types[_TARGETS:]))
    expected = done.events * _TROUBLED[_WELL].ports // _TARGETS
    figures = await latencies(stage, 0, expected, _WELL)
    return figures | {
        "well_p50_ms": well["p50_ms"],
        "well_p99_ms": well["p99_ms"],
        "p99_ratio": figures["p99_ms"] / well["p99_ms"],
        "attempts_refused": stage.counters.received(2),
        "attempts_hung": stage.counters.received(3),
    }


async def flooding_tenant(stage: Stage, extent: Extent) -> Figures:
    """One tenant publishes twice what can be delivered; 50 others an event a second each."""
    flooder = await stage.tenant()
    await stage.subscribe(flooder)
    bystanders = [await stage.tenant() for _ in range(_BYSTANDERS)]
    for tenant in bystanders:
        await stage.subscribe(tenant, Subscriber(url=stage.url(_BYSTANDER)))
    load = stage.load(flooder, seconds=extent.seconds(5.0))
    await warm(stage, load)
    capacity = (await delivered(stage, load))["per_second"]
    quiet = stage.load(
        *bystanders,
        mode=Mode.PACED,
        is_stamped=True,
        batch=1,
        per_second=float(_BYSTANDERS),
        seconds=extent.seconds(15.0),
        publisher=1,
    )
    alone, _ = await paced(stage, quiet, _BYSTANDER)
    flood = replace(
        load,
        mode=Mode.PACED,
        per_second=2 * capacity,
        seconds=quiet.seconds + 2.0,
        may_be_refused=True,
    )
    received = stage.counters.received(_FLOOD)
    begun_s = time.monotonic()
    flooding = asyncio.create_task(stage.publish(flood))
    figures, _ = await paced(stage, quiet, _BYSTANDER)
    done = await flooding
    seconds = time.monotonic() - begun_s
    return figures | {
        "alone_p99_ms": alone["p99_ms"],
        "capacity_per_second": capacity,
        "flood_acknowledged_per_second": done.events / (done.ended_s - done.begun_s),
        "flood_refused": done.refused,
        "flood_reset": done.reset,
        "flood_delivered_per_second": (stage.counters.received(_FLOOD) - received) / seconds,
    }


async def transaction_held(stage: Stage, extent: Extent) -> Figures:
    """500 events per second; then the same while another transaction stays open."""
    tenant = await stage.tenant()
    await stage.subscribe(tenant)
    await warm(stage, stage.load(tenant))
    load = stage.load(
        tenant,
        event_types=[EVENT_TYPE],
        mode=Mode.PACED,
        is_stamped=True,
        batch=1,
        per_second=500.0,
        seconds=extent.seconds(30.0, full_s=600.0),
    )
    free, _ = await paced(stage, replace(load, seconds=min(load.seconds, 30.0)))
    async with stage.database.transaction_held():
        before, hot = await stage.meters(), await stage.database.hot_table()
        figures, done = await paced(stage, load)
        arrived_s = time.monotonic()
        await stage.drained()
        after, grown = await stage.meters(), await stage.database.hot_table()
    cost = await costs(stage, before, after, done.events)
    return (
        cost
        | figures
        | {
            "per_second": done.events / (arrived_s - done.begun_s),
            "throughput": done.events / (arrived_s - done.begun_s) / load.per_second,
            "hot_heap_bytes": (grown.heap - hot.heap) / done.events,
            "hot_index_bytes": (grown.indexes - hot.indexes) / done.events,
            "hot_bytes": (grown.heap + grown.indexes - hot.heap - hot.indexes) / done.events,
            "free_p99_ms": free["p99_ms"],
        }
    )


SCENARIOS = (
    Scenario(
        number="9",
        name="failing targets",
        title="30 % of 50 targets answer 503, 10 % hang, 500 events/s",
        play=failing_targets,
        goals=(most("p99_ratio", 2.0),),
        groups=_TROUBLED,
    ),
    Scenario(
        number="10",
        name="a flooding tenant",
        title="a tenant floods at twice the capacity, 50 others at 1/s each",
        play=flooding_tenant,
        goals=(most("p99_ms", 200.0),),
        groups=(Group(), Group()),
    ),
    Scenario(
        number="11",
        name="a transaction held",
        title="a transaction held open, 500 events/s",
        play=transaction_held,
        goals=(least("throughput", 0.95), most("hot_bytes", 200.0)),
    ),
)
