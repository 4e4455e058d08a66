"""Nodes die and freeze, and Postgres crashes, during changes: the audit log has every change.

Neither a change without its entry, nor an entry without its change, nor a gap.
"""

from __future__ import annotations

import asyncio
import pathlib
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from hookline import HooklineClient
from hookline.errors import HooklineError
from hookline.v1.tenant_service_pb2 import CreateTenantRequest
from hookline_service.domain.audit import AuditEntry
from hookline_service.store.database import Database
from tests.faults.cluster import cluster
from tests.faults.scene import Scene, scene
from tests.store.audit_log import entries_of, verified
from tests.waiting import until

pytestmark = pytest.mark.timeout(1_800)

CALLERS = 4


class Founders:
    """Callers that create tenants at any node, each with one call at a time."""

    def __init__(self, stage: Scene) -> None:
        self._stage = stage
        self._number = 0
        self._is_over = False
        self.acknowledged: set[str] = set()

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """While inside."""
        tasks = [asyncio.create_task(self._work(n)) for n in range(CALLERS)]
        try:
            yield
        finally:
            self._is_over = True
            await asyncio.gather(*tasks)

    async def more(self, count: int) -> None:
        """Wait until so many more have been acknowledged."""
        wanted = len(self.acknowledged) + count
        await until(lambda: len(self.acknowledged) >= wanted, f"{count} more tenants")

    async def _work(self, caller: int) -> None:
        while not self._is_over:
            clients = self._stage.clients()
            await self._found(clients[caller % len(clients)])

    async def _found(self, client: HooklineClient) -> None:
        self._number += 1
        tenant_id = f"t{self._number}"
        request = CreateTenantRequest(tenant_id=tenant_id)
        try:
            await client.tenants.CreateTenant(request, timeout=5)
        except HooklineError:
            return  # it may have been made, and then its entry is there
        self.acknowledged.add(f"tenants/{tenant_id}")


async def entries(stage: Scene) -> list[AuditEntry]:
    """Those of tenants, once the chain was verified."""
    database = Database(stage.url, pool_size=2)
    await database.open()
    try:
        await verified(database)
        found = await entries_of(database)
    finally:
        await database.close()
    return [entry for entry in found if entry.resource.count("/") == 1]


async def judge(stage: Scene, acknowledged: set[str]) -> None:
    """Each tenant has its one entry, and each entry its tenant."""
    recorded = [entry.resource for entry in await entries(stage)]
    made = [
        f"tenants/{row['tenant_id']}" for row in await stage.rows("SELECT tenant_id FROM tenants")
    ]
    assert sorted(recorded) == sorted(made)
    assert acknowledged <= set(recorded)
    assert await stage.value("SELECT count(*) FROM audit_drafts") == 0


async def test_killed_nodes_leave_no_change_without_an_entry_and_no_gap(
    database_url: str, tmp_path: pathlib.Path, rounds: int, chance: random.Random
) -> None:
    async with scene(database_url, tmp_path, subscriptions=0) as stage:
        founders = Founders(stage)
        async with founders.at_work():
            for _ in range(rounds):
                await founders.more(chance.randint(1, 50))
                await stage.kill(chance.choice(stage.nodes))
                await founders.more(10)
                await stage.start_node()
        await judge(stage, founders.acknowledged)


async def test_a_node_frozen_during_changes_blocks_no_other(
    database_url: str, tmp_path: pathlib.Path, rounds: int, chance: random.Random
) -> None:
    """The head of the chain is the server's to lock, at the commit: a client never has it."""
    async with scene(database_url, tmp_path, subscriptions=0) as stage:
        founders = Founders(stage)
        async with founders.at_work():
            for _ in range(rounds):
                await founders.more(chance.randint(1, 50))
                node = stage.nodes.pop(0)
                node.process.send_signal(signal.SIGSTOP)
                await founders.more(20)
                node.process.send_signal(signal.SIGCONT)
                stage.nodes.append(node)
        await judge(stage, founders.acknowledged)


async def test_the_chain_is_complete_after_crashes_of_postgres(
    tmp_path: pathlib.Path, rounds: int, chance: random.Random
) -> None:
    async with cluster() as postgres, scene(postgres.url, tmp_path, subscriptions=0) as stage:
        founders = Founders(stage)
        async with founders.at_work():
            for round_ in range(rounds):
                await founders.more(chance.randint(1, 50))
                await postgres.crash([signal.SIGQUIT, signal.SIGKILL][round_ % 2])
                await postgres.start()
                await founders.more(10)
        await judge(stage, founders.acknowledged)
