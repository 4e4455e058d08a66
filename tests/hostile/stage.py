"""The node that is attacked: a `hookline serve` of its own, its keys, and its process's figures."""

from __future__ import annotations

import base64
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc

from hookline import HooklineClient
from hookline.errors import AlreadyExistsError
from hookline.v1.tenant_service_pb2 import CreateTenantRequest
from tests.e2e.processes import Node, run_hookline
from tests.hostile.known_target import known_target
from tests.hostile.probe import Probe

KEY = base64.b64encode(bytes(range(32))).decode()
SAMPLE_S = 0.01
_PAGE_B = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Peak:
    """The most memory that a process had."""

    mb: float = 0.0


@dataclass(frozen=True, slots=True)
class Target:
    """What an attack may use: the node, and keys that are the attacker's own."""

    host: str
    port: int
    publish_token: str
    """Of the tenant `hostile`, with the scope publish."""
    operate_token: str
    """Of the same tenant, with manage and operate."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A node that serves, a known publisher, and an attacker's keys."""

    node: Node
    target: Target
    probe: Probe
    admin: HooklineClient
    """May do everything: for scenarios that need subscriptions."""

    def is_alive(self) -> bool:
        """Whether the node's process is still the one that was started."""
        return self.node.process.poll() is None

    def memory_mb(self) -> float:
        """The node's resident memory; 0 once it is gone."""
        try:
            statm = Path(f"/proc/{self.node.process.pid}/statm").read_text()
        except FileNotFoundError:
            return 0.0
        return int(statm.split()[1]) * _PAGE_B / 1e6 if statm else 0.0

    def cpu_s(self) -> float:
        """What the node has used of processors."""
        try:
            stat = Path(f"/proc/{self.node.process.pid}/stat").read_text()
        except FileNotFoundError:
            return 0.0
        fields = stat.rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S

    @contextmanager
    def peak_memory(self) -> Iterator[Peak]:
        """The most resident memory while inside, read every 10 ms."""
        peak, ended = Peak(), threading.Event()

        def sample() -> None:
            while not ended.wait(SAMPLE_S):
                peak.mb = max(peak.mb, self.memory_mb())

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield peak
        finally:
            ended.set()
            thread.join()
            peak.mb = max(peak.mb, self.memory_mb())


@asynccontextmanager
async def staged(database_url: str, **settings: str | bytes) -> AsyncIterator[Stage]:
    """A node on a database with today's schema, while inside; one process, callers by API keys."""
    with tempfile.TemporaryDirectory() as folder:
        named = {name: _named(value, Path(folder, name)) for name, value in settings.items()}
        async with _staged(database_url, named) as stage:
            yield stage


def _named(value: str | bytes, path: Path) -> str:
    if isinstance(value, str):
        return value
    path.write_bytes(value)
    return str(path)


@asynccontextmanager
async def _staged(database_url: str, settings: Mapping[str, str]) -> AsyncIterator[Stage]:
    variables = {
        "HOOKLINE_DATABASE_URL": database_url,
        "HOOKLINE_MASTER_KEY": KEY,
        "HOOKLINE_AUTH": "on",
        "HOOKLINE_EGRESS_ALLOW": "127.0.0.0/8",
        "HOOKLINE_LOG_LEVEL": "error",
        **settings,
    }

    def key(*arguments: str) -> str:
        made = run_hookline("keys", "create", *arguments, variables=variables)
        assert made.returncode == 0, made.stderr
        return made.stdout.strip()

    with Node(["serve"], variables) as node:
        node.ready()
        target = node.target
        host, _, port = target.rpartition(":")
        async with (
            HooklineClient(target, token=key("--scope", "admin")) as admin,
            HooklineClient(target, token=key("--scope", "publish", "--tenant", "default")) as known,
            grpc.aio.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as health,
        ):
            with suppress(AlreadyExistsError):  # by a node before this one
                await admin.tenants.CreateTenant(CreateTenantRequest(tenant_id="hostile"))
            scopes = ("--scope", "manage", "--scope", "operate", "--tenant", "hostile")
            attacker = Target(
                host=host,
                port=int(port),
                publish_token=key("--scope", "publish", "--tenant", "hostile"),
                operate_token=key(*scopes),
            )
            async with known_target(admin) as received:
                yield Stage(node, attacker, Probe(known, health, received), admin)
