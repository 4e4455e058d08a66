"""One deployment to measure: a Postgres of its own, `hookline serve`, a receiver; and its meters."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import signal
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import asyncpg

from hookline.client import HooklineClient
from hookline.v1 import policy_pb2, subscription_pb2, target_pb2
from hookline.v1 import subscription_service_pb2 as subscriptions
from hookline.v1 import tenant_service_pb2 as tenants
from service.store.embedded import EmbeddedPostgres
from service.store.migrations import migrate
from tests.bench.counters import DISTINCT, MISMATCHED, PUBLISHED, RECEIVED, Counters
from tests.bench.machine import cpu_s, peak_memory_mb

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.bench.publisher import Load

SECRET = "whsec_" + base64.b64encode(b"benchmark benchmark benchmark 32").decode()
READY_S = 60.0
DRAIN_S = 120.0


class BenchError(Exception):
    """A run that must not be believed."""


@dataclass(frozen=True)
class Meters:
    """Every meter at one moment."""

    hookline_cpu_s: float
    postgres_cpu_s: float
    wal_bytes: int
    received: int
    distinct: int
    published: int
    moment_s: float


class Stage:
    """What a scenario plays on."""

    def __init__(
        self,
        database: asyncpg.Connection[asyncpg.Record],
        postmaster_pid: int,
        service: Process,
        server: str,
        receiver: Process,
        receiver_port: int,
        counters: Counters,
    ) -> None:
        self._database = database
        self._postmaster_pid = postmaster_pid
        self._service = service
        self.server = server
        self._receiver = receiver
        self.receiver_port = receiver_port
        self.counters = counters

    async def tenant(self) -> str:
        """A new tenant's name."""
        async with HooklineClient(self.server) as client:
            answer = await client.tenants.CreateTenant(
                tenants.CreateTenantRequest(tenant_id=f"bench-{secrets.token_hex(4)}")
            )
            return answer.tenant.name

    async def subscribe(self, tenant: str, count: int, *, max_in_flight: int = 256) -> list[str]:
        """So many subscriptions of a tenant to `order.created`, all to the receiver."""
        async with HooklineClient(self.server) as client:
            names = []
            for _ in range(count):
                answer = await client.subscriptions.CreateSubscription(
                    subscriptions.CreateSubscriptionRequest(
                        tenant=tenant,
                        signing_secret=SECRET,
                        subscription=subscription_pb2.Subscription(
                            event_types=["order.created"],
                            limits=policy_pb2.DeliveryLimits(max_in_flight=max_in_flight),
                            http=target_pb2.HttpTarget(
                                url=f"http://127.0.0.1:{self.receiver_port}/hook"
                            ),
                        ),
                    )
                )
                names.append(answer.subscription.name)
            return names

    async def pause(self, subscription: str) -> None:
        """Pause a subscription."""
        async with HooklineClient(self.server) as client:
            await client.subscriptions.PauseSubscription(
                subscriptions.PauseSubscriptionRequest(name=subscription)
            )

    async def meters(self) -> Meters:
        """Read every meter; raises where a signature did not verify."""
        if self.counters[MISMATCHED]:
            raise BenchError(f"{self.counters[MISMATCHED]} signatures did not verify")
        wal = await self._database.fetchval(
            "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint"
        )
        return Meters(
            hookline_cpu_s=cpu_s(self._service.pid),
            postgres_cpu_s=cpu_s(self._postmaster_pid),
            wal_bytes=wal,
            received=self.counters[RECEIVED],
            distinct=self.counters[DISTINCT],
            published=self.counters[PUBLISHED],
            moment_s=asyncio.get_running_loop().time(),
        )

    def peak_memory_mb(self) -> float:
        """Of the service's largest process."""
        return peak_memory_mb(self._service.pid)

    async def publish(self, load: Load) -> dict[str, float]:
        """Run the load in a process of its own, to its end."""
        self.counters[PUBLISHED] = 0
        publisher = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.bench.publisher",
            json.dumps(asdict(load)),
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await publisher.communicate()
        if publisher.returncode:
            raise BenchError("the publisher failed")
        acknowledged: dict[str, float] = json.loads(output)
        return acknowledged

    async def received(self, distinct: int) -> None:
        """Wait until so many distinct webhook ids have come; raises where they do not."""
        deadline = asyncio.get_running_loop().time() + DRAIN_S
        while self.counters[DISTINCT] < distinct:
            if asyncio.get_running_loop().time() > deadline:
                raise BenchError(f"{self.counters[DISTINCT]} of {distinct} events arrived")
            await asyncio.sleep(0.01)

    async def drained(self) -> None:
        """Wait until nothing is pending any more."""
        while await self._database.fetchval("SELECT EXISTS (SELECT FROM pending_deliveries)"):
            await asyncio.sleep(0.02)

    async def latencies_us(self) -> list[int]:
        """End the receiver; what it measured, in microseconds."""
        output, _ = await self._receiver.communicate(b"")
        return list(json.loads(output))


@asynccontextmanager
async def staged(directory: Path, *, workers: int = 1) -> AsyncIterator[Stage]:
    """A deployment while inside; nothing of it is left running."""
    async with AsyncExitStack() as stack:
        counters = stack.enter_context(Counters(directory / "counters"))
        postgres = EmbeddedPostgres(directory / "postgres")
        url = await postgres.start()
        stack.push_async_callback(postgres.stop)
        await migrate(url)
        database = await asyncpg.connect(url)
        stack.push_async_callback(database.close)
        if await database.fetchval("SHOW synchronous_commit") != "on":
            raise BenchError("synchronous_commit is not on")
        receiver = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.bench.receiver",
            str(counters.path),
            SECRET,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 26,
        )
        stack.push_async_callback(_end, receiver)
        assert receiver.stdout is not None
        port = int(await receiver.stdout.readline())
        service, server = await _serve(url, workers)
        stack.push_async_callback(_end, service)
        postmaster_pid = await database.fetchval(
            "SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)::int"
        )
        yield Stage(database, postmaster_pid, service, server, receiver, port, counters)


async def _serve(database_url: str, workers: int) -> tuple[Process, str]:
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith("HOOKLINE_")
    } | {
        "HOOKLINE_DATABASE_URL": database_url,
        "HOOKLINE_MASTER_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
        "HOOKLINE_AUTH": "off",
        "HOOKLINE_LISTEN": "127.0.0.1:0",
        "HOOKLINE_EGRESS_ALLOW": "127.0.0.0/8",
        "HOOKLINE_WORKERS": str(workers),
    }
    service = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "service", "serve", env=environ, stdout=asyncio.subprocess.PIPE
    )
    assert service.stdout is not None
    server = ""
    async with asyncio.timeout(READY_S):
        async for line in service.stdout:
            text = line.decode().strip()
            if "127.0.0.1:" in text:
                server = "127.0.0.1:" + text.partition("127.0.0.1:")[2].split()[0].strip("\"',.")
            if text == "ready":
                return service, server
    raise BenchError("hookline serve ended before it was ready")


async def _end(process: Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    await process.communicate() if process.stdin is None else await process.wait()
