"""A deployment to measure: Postgres, nodes, receivers, and meters."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import asyncpg

from hookline.client import HooklineClient
from hookline.v1 import policy_pb2, subscription_pb2, target_pb2
from hookline.v1 import subscription_service_pb2 as subscriptions
from hookline.v1 import tenant_service_pb2 as tenants
from hookline_service.store.embedded import EmbeddedPostgres
from hookline_service.store.migrations import migrate
from tests.bench.counters import Counters
from tests.bench.database import BenchDatabase
from tests.bench.machine import busy_s, cpu_s, own_cpu_s, peak_memory_mb
from tests.bench.processes import (
    BenchError,
    Child,
    Deployment,
    Node,
    start_collector,
    start_receiver,
)
from tests.bench.publisher import Acknowledged, Load
from tests.bench.receiver import Group

SECRET = "whsec_" + base64.b64encode(b"benchmark benchmark benchmark 32").decode()
EVENT_TYPE = "order.created"
DRAIN_S = 120.0
CONNECTIONS_PER_NODE = 8
"""Connections of a publisher if a node has several processes; the kernel spreads them."""


@dataclass(frozen=True, kw_only=True)
class Meters:
    """A reading of all meters at one time."""

    hookline_cpu_s: float
    postgres_cpu_s: float
    receiver_cpu_s: float
    bench_cpu_s: float
    """CPU of the bench and its ended publishers."""
    busy_s: float
    """CPU of the whole machine."""
    wal_position: int
    distinct: int
    """Deliveries that the first group of receivers accepted."""
    moment_s: float
    """Time of the reading, monotonic."""

    def elsewhere_s(self, before: Meters) -> float:
        """Return the CPU seconds since then used by other programs."""
        mine = (
            (self.hookline_cpu_s - before.hookline_cpu_s)
            + (self.postgres_cpu_s - before.postgres_cpu_s)
            + (self.receiver_cpu_s - before.receiver_cpu_s)
            + (self.bench_cpu_s - before.bench_cpu_s)
        )
        return self.busy_s - before.busy_s - mine


@dataclass(frozen=True, kw_only=True)
class Subscriber:
    """A subscription to create."""

    url: str
    event_type: str = EVENT_TYPE
    max_in_flight: int = 256


@dataclass
class Stage:
    """The deployment of a scenario."""

    database: BenchDatabase
    deployment: Deployment
    receiver: Child
    ports: list[list[int]]
    counters: Counters
    postmaster_pid: int
    nodes: list[Node] = field(default_factory=list)

    # --------------------------------------------------------------------------- setting the scene

    async def start_node(self) -> None:
        """Start another node."""
        self.nodes.append(await self.deployment.start_node(len(self.nodes) + 1))

    async def balanced(self) -> None:
        """Wait until all nodes own the same number of buckets, within one."""
        processes = len(self.nodes) * self.deployment.workers
        await self._until(lambda: self._is_balanced(processes), "the buckets are not shared")

    async def _is_balanced(self, processes: int) -> bool:
        owned = await self.database.buckets_by_node()
        return len(owned) == processes and sum(owned) == 256 and max(owned) - min(owned) <= 1

    async def tenant(self) -> str:
        """Create a tenant; return its name."""
        async with HooklineClient(self.nodes[0].address) as client:
            answer = await client.tenants.CreateTenant(
                tenants.CreateTenantRequest(tenant_id=f"bench-{secrets.token_hex(4)}")
            )
            return answer.tenant.name

    def url(self, group: int = 0, port: int = 0) -> str:
        """Return the URL of a receiver."""
        return f"http://127.0.0.1:{self.ports[group][port]}/hook"

    async def subscribe(self, tenant: str, *asked: Subscriber) -> list[str]:
        """Create subscriptions, by default one to the first receiver; return their names.

        Each has its own path, so that the receiver can distinguish the deliveries of one event.
        """
        async with HooklineClient(self.nodes[0].address) as client:
            names = []
            for number, subscriber in enumerate(asked or [Subscriber(url=self.url())]):
                answer = await client.subscriptions.CreateSubscription(
                    subscriptions.CreateSubscriptionRequest(
                        tenant=tenant,
                        signing_secret=SECRET,
                        subscription=subscription_pb2.Subscription(
                            event_types=[subscriber.event_type],
                            limits=policy_pb2.DeliveryLimits(
                                max_in_flight=subscriber.max_in_flight
                            ),
                            http=target_pb2.HttpTarget(
                                url=f"{subscriber.url}/{tenant[-8:]}/{number}"
                            ),
                        ),
                    )
                )
                names.append(answer.subscription.name)
            return names

    async def pause(self, subscription: str) -> None:
        """Pause a subscription."""
        async with HooklineClient(self.nodes[0].address) as client:
            await client.subscriptions.PauseSubscription(
                subscriptions.PauseSubscriptionRequest(name=subscription)
            )

    # -------------------------------------------------------------------------------- running loads

    def load(self, *tenants: str, **fields: object) -> Load:
        """Return a load on all nodes with the given fields."""
        each = 1 if self.deployment.workers == 1 else CONNECTIONS_PER_NODE
        return Load(
            servers=[node.address for node in self.nodes] * each,
            counters=str(self.counters.path),
            tenants=tenants,
            **fields,  # type: ignore[arg-type]
        )

    async def publish(self, load: Load) -> Acknowledged:
        """Run a load in a separate process."""
        log = self.deployment.logs / "publisher.log"
        publisher = await Child.start(log, "tests.bench.publisher", json.dumps(asdict(load)))
        try:
            return Acknowledged(**json.loads(await publisher.result()))
        finally:
            await publisher.end()

    async def arrived(self, distinct: int, group: int = 0) -> float:
        """Wait for a number of distinct deliveries to a group; return the time, monotonic."""

        async def has_arrived() -> bool:
            return self.counters.distinct(group) >= distinct

        await self._until(has_arrived, f"not all of {distinct} deliveries arrived")
        return time.monotonic()

    async def drained(self) -> None:
        """Wait until no delivery is pending."""
        await self._until(self.database.is_drained, "deliveries stay pending")

    async def _until(self, holds: Callable[[], Awaitable[bool]], complaint: str) -> None:
        deadline = time.monotonic() + DRAIN_S
        while not await holds():
            for child in (self.receiver, *[node.process for node in self.nodes]):
                child.check()
            if time.monotonic() > deadline:
                raise BenchError(f"after {DRAIN_S:g} s {complaint}; logs: {self.deployment.logs}")
            await asyncio.sleep(0.01)

    # ---------------------------------------------------------------------------------- the meters

    async def meters(self) -> Meters:
        """Read every meter; raise if a signature was invalid."""
        self.check_signatures()
        return Meters(
            hookline_cpu_s=sum(cpu_s(node.process.pid) for node in self.nodes),
            postgres_cpu_s=cpu_s(self.postmaster_pid),
            receiver_cpu_s=cpu_s(self.receiver.pid),
            bench_cpu_s=own_cpu_s(),
            busy_s=busy_s(),
            wal_position=await self.database.wal_position(),
            distinct=self.counters.distinct(),
            moment_s=time.monotonic(),
        )

    def check_signatures(self) -> None:
        """Raise `BenchError` if a signature was invalid."""
        if self.counters.mismatched:
            raise BenchError(f"{self.counters.mismatched} signatures did not verify")

    def peak_memory_mb(self) -> float:
        """Of the largest process of any node."""
        return max(peak_memory_mb(node.process.pid) for node in self.nodes)

    async def latencies_us(self) -> list[list[int]]:
        """What the receivers measured since they were last asked, in microseconds, by group."""
        measured: list[list[int]] = json.loads(await self.receiver.ask("latencies"))
        return measured


def dead_port() -> tuple[socket.socket, int]:
    """A port that refuses connections as long as the socket lives."""
    reserved = socket.socket()
    reserved.bind(("127.0.0.1", 0))
    return reserved, reserved.getsockname()[1]


@asynccontextmanager
async def staged(
    directory: Path,
    logs: Path,
    groups: Sequence[Group],
    *,
    workers: int = 1,
    telemetry: str = "off",
) -> AsyncIterator[Stage]:
    """A deployment of one node while inside; nothing of it is left running."""
    async with AsyncExitStack() as stack:
        counters = stack.enter_context(Counters(directory / "counters"))
        postgres = EmbeddedPostgres(directory / "postgres")
        url = await postgres.start()
        stack.push_async_callback(postgres.remove)
        await migrate(url)
        connection = await asyncpg.connect(url)
        stack.push_async_callback(connection.close)
        database = BenchDatabase(url, connection)
        await database.prepare()
        receiver, ports = await start_receiver(
            logs, counters.path, SECRET, [asdict(group) for group in groups]
        )
        stack.push_async_callback(receiver.end)
        exported: dict[str, str] = {}
        if telemetry != "off":
            collector, exported = await start_collector(logs, telemetry)
            stack.push_async_callback(collector.end)
        stage = Stage(
            database=database,
            deployment=Deployment(database_url=url, workers=workers, logs=logs, telemetry=exported),
            receiver=receiver,
            ports=ports,
            counters=counters,
            postmaster_pid=await database.postmaster_pid(),
        )

        async def end_nodes() -> None:
            await asyncio.gather(*[node.process.end() for node in stage.nodes])

        stack.push_async_callback(end_nodes)
        await stage.start_node()
        yield stage
