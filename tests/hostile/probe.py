"""The known publisher, and a health check beside it: what others feel of an attack."""

from __future__ import annotations

import asyncio
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

TENANT = "tenants/default"
PACE_S = 0.01
"""Between two calls of the known publisher."""
CALL_TIMEOUT_S = 10.0


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
    failed: dict[str, int] = field(default_factory=dict)
    """Calls of the known publisher that failed, by status and reason."""


class Probe:
    """Calls made one after the other, each with its latency."""

    def __init__(self, client: HooklineClient, health: grpc.aio.Channel) -> None:
        self._client = client
        self._health: Any = health_pb2_grpc.HealthStub(health)  # typed for synchronous channels

    async def watch(self, seconds: float) -> Phase:
        """Call for so long, and return what was felt."""
        until_s = time.monotonic() + seconds
        failed: Counter[str] = Counter()
        calls, checks = await asyncio.gather(
            self._calls(until_s, failed), self._checks(until_s, failed)
        )
        return Phase(
            calls=len(calls),
            p50_ms=_percentile(calls, 50),
            p99_ms=_percentile(calls, 99),
            max_ms=max(calls, default=0.0),
            loop_p99_ms=_percentile(checks, 99),
            loop_max_ms=max(checks, default=0.0),
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
        request = PublishEventsRequest(
            tenant=TENANT, events=[Event(type="known.event", json_data="{}")]
        )
        began_s = time.monotonic()
        try:
            await self._client.events.PublishEvents(request, timeout=CALL_TIMEOUT_S)
        except HooklineError as error:
            failed[f"{type(error).__name__} {error.reason}".strip()] += 1
        return (time.monotonic() - began_s) * 1_000

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
