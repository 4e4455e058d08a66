"""Scenarios 7, 8 and 12: many subscriptions, a large backlog, several nodes."""

from __future__ import annotations

from tests.bench.measure import Figures, delivered, paced, warm
from tests.bench.publisher import Mode
from tests.bench.scenario import Extent, Scenario, most
from tests.bench.stage import Stage, Subscriber, dead_port

_SIZES = (10, 1_000, 100_000)
_MATCHING = 10
_PENDING = 1_000_000
_DEAD_TYPE = "order.lost"
_NODES = (1, 2, 4)
_TYPES = tuple(f"order.t{number}" for number in range(64))


async def many_subscriptions(stage: Stage, extent: Extent) -> Figures:
    """Three tenants with many subscriptions, 10 of which match each event."""
    figures: Figures = {}
    costs = []
    for size in _SIZES:
        tenant = await stage.tenant()
        await stage.subscribe(tenant, *[Subscriber(url=stage.url()) for _ in range(_MATCHING)])
        others = extent.count(size) - _MATCHING
        if others > 0:
            await stage.database.add_subscriptions(tenant, others)
        load = stage.load(tenant, fan_out=_MATCHING, seconds=extent.seconds(6.0))
        await warm(stage, load)
        figures = await delivered(stage, load)
        cpu_us = figures["hookline_cpu_us"] + figures["postgres_cpu_us"]
        costs.append(cpu_us * _MATCHING)
    named = {f"cpu_us_per_event_of_{size}": cost for size, cost in zip(_SIZES, costs, strict=True)}
    return figures | named | {"growth": max(costs) / costs[0]}


async def dead_target(stage: Stage, extent: Extent) -> Figures:
    """A million deliveries for a dead target, then a healthy target of the same tenant."""
    tenant = await stage.tenant()
    reserved, port = dead_port()
    with reserved:
        await stage.subscribe(
            tenant,
            Subscriber(url=stage.url()),
            Subscriber(url=f"http://127.0.0.1:{port}", event_type=_DEAD_TYPE),
        )
        await warm(stage, stage.load(tenant))
        healthy = stage.load(
            tenant,
            mode=Mode.PACED,
            is_stamped=True,
            batch=1,
            per_second=200.0,
            seconds=extent.seconds(20.0),
        )
        empty, _ = await paced(stage, healthy)
        before_mb = stage.peak_memory_mb()
        await _fill(stage, tenant, extent.count(_PENDING))
        figures, _ = await paced(stage, healthy)
        pending = await stage.database.pending()
    return figures | {
        "empty_p50_ms": empty["p50_ms"],
        "empty_p99_ms": empty["p99_ms"],
        "p99_ratio": figures["p99_ms"] / empty["p99_ms"],
        "pending": pending,
        "memory_before_mb": before_mb,
    }


async def _fill(stage: Stage, tenant: str, count: int) -> None:
    """Publish until a number of deliveries is pending for the dead target."""
    while (missing := count - await stage.database.pending()) > 0:
        await stage.publish(
            stage.load(
                tenant,
                event_types=[_DEAD_TYPE],
                data_bytes=100,
                batch=500,
                backlog=0,
                in_flight=16,
                seconds=600.0,
                events=missing,
                may_be_refused=True,
            )
        )


async def several_nodes(stage: Stage, extent: Extent) -> Figures:
    """64 subscriptions on 1, 2 and 4 nodes; all nodes receive events."""
    tenant = await stage.tenant()
    await stage.subscribe(
        tenant, *[Subscriber(url=stage.url(), event_type=name) for name in _TYPES]
    )
    figures: Figures = {}
    costs: dict[int, float] = {}
    for count in _NODES:
        while len(stage.nodes) < count:
            await stage.start_node()
        await stage.balanced()
        load = stage.load(tenant, event_types=_TYPES, in_flight=16, seconds=extent.seconds(10.0))
        await warm(stage, load)
        measured = await delivered(stage, load)
        costs[count] = measured["hookline_cpu_us"] + measured["postgres_cpu_us"]
        figures |= {
            f"{name}_on_{count}": measured[name]
            for name in ("per_second", "hookline_cpu_us", "postgres_cpu_us", "wal_bytes")
        }
    return figures | {"spread": max(costs.values()) / min(costs.values())}


SCENARIOS = (
    Scenario(
        number="7",
        name="many subscriptions",
        title="10, 1,000 and 100,000 subscriptions in a tenant, 10 match",
        play=many_subscriptions,
        goals=(most("growth", 1.3),),
    ),
    Scenario(
        number="8",
        name="a million pending",
        title="a million pending for a dead target, 200 events/s to a healthy one",
        play=dead_target,
        goals=(most("p99_ratio", 1.5), most("memory_mb", 300)),
    ),
    Scenario(
        number="12",
        name="several nodes",
        title="1, 2 and 4 nodes on one Postgres, 64 subscriptions",
        play=several_nodes,
        goals=(most("spread", 1.1),),
    ),
)
