"""The known publisher, its deliveries, and a health check: what others feel of an attack."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hookline import HooklineClient
from hookline.errors import HooklineError
from hookline.v1.event_pb2 import Event
from hookline.v1.event_service_pb2 import PublishEventsRequest
from tests.hostile.known_target import EVENT_TYPE, KnownTarget

TENANT = "tenants/default"
PACE_S = 0.01
"""Between two calls of the known publisher."""
CALL_TIMEOUT_S = 10.0
DELIVERED_WITHIN_S = 10.0
"""Then a delivery counts as failed."""


@dataclass(frozen=True, slots=True)
class Phase:
    """What was felt for a while."""

    calls: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    loop_p99_ms: float
    """Of a health check on a connection of its own: the event loop's lag, and little else."""
    loop_max_ms: float
    delivery_p99_ms: float
    """From the publisher's call to the request at its own receiver."""
    failed: dict[str, int] = field(default_factory=dict)
    """Calls of the known publisher that failed, by status and reason."""


class Probe:
    """Calls made one after the other, each with its latency."""

    def __init__(
        self, client: HooklineClient, health: grpc.aio.Channel, target: KnownTarget
    ) -> None:
        self._client = client
        self._target = target
        self._numbers = itertools.count()
        self._published_s: dict[int, float] = {}
        """When the call began, of events that were accepted and are not yet accounted for."""
        self._health: Any = health_pb2_grpc.HealthStub(health)  # typed for synchronous channels

    async def watch(self, seconds: float) -> Phase:
        """Call for so long, and return what was felt."""
        until_s = time.monotonic() + seconds
        failed: Counter[str] = Counter()
        self._published_s.clear()
        calls, checks = await asyncio.gather(
            self._calls(until_s, failed), self._checks(until_s, failed)
        )
        deliveries = await self._deliveries(failed)
        return Phase(
            calls=len(calls),
            p50_ms=_percentile(calls, 50),
            p99_ms=_percentile(calls, 99),
            max_ms=max(calls, default=0.0),
            loop_p99_ms=_percentile(checks, 99),
            loop_max_ms=max(checks, default=0.0),
            delivery_p99_ms=_percentile(deliveries, 99),
            failed=dict(failed),
        )

    async def recovered(self, before: Phase, in_a_row: int, max_s: float) -> float | None:
        """Seconds until so many calls in a row are answered as before; None: not in `max_s`."""
        began_s = time.monotonic()
        good_ms = max(50.0, 3 * before.p99_ms)
        good = 0
        while time.monotonic() - began_s < max_s:
            called_s = time.monotonic()
            failed: Counter[str] = Counter()
            latency_ms = await self._publish(failed)
            good = 0 if failed or latency_ms > good_ms else good + 1
            if good == 1:
                first_s = called_s
            if good == in_a_row:
                return first_s - began_s
        return None

    async def _calls(self, until_s: float, failed: Counter[str]) -> list[float]:
        latencies_ms = []
        while time.monotonic() < until_s:
            latencies_ms.append(await self._publish(failed))
            await _pause(PACE_S)
        return latencies_ms

    async def _publish(self, failed: Counter[str]) -> float:
        number = next(self._numbers)
        event = Event(type=EVENT_TYPE, json_data=f'{{"number": {number}}}')
        request = PublishEventsRequest(tenant=TENANT, events=[event])
        began_s = time.monotonic()
        try:
            await self._client.events.PublishEvents(request, timeout=CALL_TIMEOUT_S)
        except HooklineError as error:
            failed[f"{type(error).__name__} {error.reason or error}".strip()] += 1
        else:
            self._published_s[number] = began_s
        return (time.monotonic() - began_s) * 1_000

    async def _deliveries(self, failed: Counter[str]) -> list[float]:
        """How long each accepted event took to arrive."""
        published_s = dict(self._published_s)
        await self._target.wait_for(set(published_s), DELIVERED_WITHIN_S)
        arrived_s = self._target.arrived_s
        latencies_ms = [
            (arrived_s[number] - began_s) * 1_000
            for number, began_s in published_s.items()
            if number in arrived_s
        ]
        if missing := len(published_s) - len(latencies_ms):
            failed["not delivered"] += missing
        return latencies_ms

    async def _checks(self, until_s: float, failed: Counter[str]) -> list[float]:
        latencies_ms = []
        while time.monotonic() < until_s:
            began_s = time.monotonic()
            try:
                await self._health.Check(
                    health_pb2.HealthCheckRequest(), timeout=CALL_TIMEOUT_S, wait_for_ready=True
                )
            except grpc.aio.AioRpcError as error:
                failed[f"health {error.code().name}"] += 1
            latencies_ms.append((time.monotonic() - began_s) * 1_000)
            await _pause(PACE_S)
        return latencies_ms


async def _pause(seconds: float) -> None:
    """A known publisher does not publish as fast as it can."""
    await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=seconds)


def _percentile(values: list[float], percent: int) -> float:
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
