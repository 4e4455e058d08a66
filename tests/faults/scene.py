"""What a fault is played on: nodes as processes, one database, one target, publishers, the oracle.

Owns how a run is judged: each acknowledged event was delivered and is recorded as such, once; each
key made one event; nothing was delivered that was not published.
"""

from __future__ import annotations

import asyncio
import base64
import pathlib
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import UUID

import asyncpg

from hookline import HooklineClient
from hookline.v1.event_pb2 import Event
from hookline.v1.subscription_service_pb2 import CreateSubscriptionRequest
from tests.e2e.processes import Node
from tests.faults.oracle import Oracle
from tests.faults.publishing import TENANT, Publishers
from tests.faults.target import Target
from tests.waiting import PATIENCE_S, until

KEY = base64.b64encode(bytes(range(32))).decode()
ONE_TRY_S = 2.0
"""How long a publisher asks one node before it turns to the next."""
PATIENT_S = 60.0
"""Timeout of a call that no other node could take."""


class Scene:
    """Nodes on one database, subscriptions to one target, and what became of what was published."""

    def __init__(self, url: str, target: Target, oracle: Oracle, settings: dict[str, str]) -> None:
        self.url = url
        self.target = target
        self.oracle = oracle
        self.nodes: list[Node] = []
        self.event_types: list[str] = []
        self._settings = {
            "HOOKLINE_MASTER_KEY": KEY,
            "HOOKLINE_AUTH": "off",
            "HOOKLINE_EGRESS_ALLOW": "127.0.0.0/8",
        } | settings
        self._clients: dict[Node, HooklineClient] = {}
        self._stack = AsyncExitStack()
        self.publishers: Publishers | None = None

    # ---------------------------------------------------------------------------------- nodes

    async def start_node(self, url: str | None = None, **settings: str) -> Node:
        """One more `hookline serve`, once it serves; on another way to the database, if given."""
        environment = self._settings | settings | {"HOOKLINE_DATABASE_URL": url or self.url}
        node = self._stack.enter_context(Node(["serve"], environment))
        await asyncio.to_thread(node.ready)
        self._clients[node] = await self._stack.enter_async_context(
            HooklineClient(node.target, publish_timeout_s=ONE_TRY_S, timeout_s=10.0)
        )
        self.nodes.append(node)
        return node

    def client_of(self, node: Node) -> HooklineClient:
        """A client of one node, dead or alive."""
        return self._clients[node]

    def clients(self) -> list[HooklineClient]:
        """Clients of the nodes that are there."""
        return [self._clients[node] for node in self.nodes]

    async def kill(self, node: Node) -> None:
        """End a node as the kernel does when memory runs out: no word, no time."""
        self.nodes.remove(node)
        node.process.kill()
        await asyncio.to_thread(node.ended)

    async def stop(self, node: Node) -> int:
        """End a node as an operator does; its exit code."""
        self.nodes.remove(node)
        return await asyncio.to_thread(node.stop)

    async def subscribe(self, count: int, timeout_s: int = 30) -> None:
        """So many more subscriptions, each to an event type of its own; their buckets by chance."""
        have = len(self.event_types)
        for number in range(have, have + count):
            request = CreateSubscriptionRequest(tenant=TENANT, subscription_id=f"s{number}")
            request.subscription.event_types.append(f"fault.n{number}")
            request.subscription.http.url = self.target.url(f"/{number}")
            request.subscription.http.timeout.FromSeconds(timeout_s)
            await self.clients()[0].subscriptions.CreateSubscription(request)
            self.event_types.append(f"fault.n{number}")

    async def subscribe_until_all_nodes_deliver(self) -> None:
        """Add subscriptions until each node owns the bucket of one."""
        idle = """SELECT count(*) FROM nodes n WHERE NOT EXISTS (
                      SELECT FROM bucket_leases JOIN subscriptions USING (bucket)
                      WHERE node_id = n.node_id)"""
        while await self.value(idle):
            await self.subscribe(1)

    # ------------------------------------------------------------------------------- what is asked

    @asynccontextmanager
    async def publishing(self, **options: int) -> AsyncIterator[Publishers]:
        """Load while inside."""
        publishers = Publishers(
            self.clients,
            self.oracle,
            self.target.counts,
            event_types=self.event_types,
            **options,
        )
        async with publishers:
            yield publishers
        assert len(publishers.names) == len(set(publishers.names.values())), (
            "an event's name was given twice"
        )

    async def publish(self, event_types: Sequence[str], each: int = 1) -> None:
        """So many events of each type, one call a type, at any node."""
        for event_type in event_types:
            events = [Event(type=event_type, json_data="{}")] * each
            results = await self.clients()[0].publish(TENANT, events, timeout_s=PATIENT_S)
            self.oracle.acknowledge([result.name for result in results])

    async def more_arrivals(self, count: int, within_s: float = 60.0) -> None:
        """Wait until so many more webhooks have come, whichever."""
        wanted = self.target.arrivals + count
        await until(lambda: self.target.arrivals >= wanted, f"{count} more come", within_s=within_s)

    async def delivered(self, ids: set[str], within_s: float) -> float:
        """Wait until all of these have come; how long that took, in seconds."""
        began_s = time.monotonic()
        missing = set(ids)

        def is_done() -> bool:
            missing.difference_update([one for one in missing if one in self.target.counts])
            return not missing

        try:
            await until(is_done, "everything acknowledged is delivered", within_s=within_s)
        except AssertionError:
            raise AssertionError(f"{len(missing)} of {len(ids)} did not come: {missing}") from None
        return time.monotonic() - began_s

    async def recorded(self, within_s: float = PATIENCE_S) -> None:
        """Wait until nothing is pending any more."""

        async def is_recorded() -> bool:
            return await self.value("SELECT count(*) FROM pending_deliveries") == 0

        await until(is_recorded, "everything is recorded", within_s=within_s)

    async def rows(self, statement: str, *args: object) -> list[asyncpg.Record]:
        """Ask the database, on a connection of the test's own."""
        connection = await asyncpg.connect(self.url, server_settings={"application_name": "test"})
        try:
            return await connection.fetch(statement, *args)
        finally:
            await connection.close()

    async def value(self, statement: str, *args: object) -> object:
        """The first value of the first row."""
        return (await self.rows(statement, *args))[0][0]

    async def waiting_backend(self, session: str) -> int:
        """The process id of a session's backend, once it waits for a lock."""
        pids: list[int] = []

        async def is_waiting() -> bool:
            rows = await self.rows(
                """SELECT pid FROM pg_stat_activity WHERE datname = current_database()
                   AND application_name = $1 AND wait_event_type = 'Lock'""",
                session,
            )
            pids[:] = [row["pid"] for row in rows]
            return len(pids) == 1

        await until(is_waiting, f"{session} waits for a lock")
        return pids[0]

    # ------------------------------------------------------------------------------ the judgement

    async def judge(self, *, duplicates_at_most: int, within_s: float = 60.0) -> None:
        """Nothing acknowledged is lost; nothing is doubled beyond what was in flight.

        Waits until all has come and is recorded. To be called once nothing publishes any more.
        """
        acknowledged = self.oracle.ids()
        await self.delivered(acknowledged, within_s)
        await self.recorded(within_s)
        states = await self.rows(
            """SELECT state, count(*) AS deliveries, count(DISTINCT event_id) AS events
               FROM deliveries GROUP BY state"""
        )
        assert [(row["state"], row["deliveries"]) for row in states] == [
            ("SUCCEEDED", len(self.target.counts))
        ], "each event that came has one delivery, and that succeeded"
        assert await self.value("SELECT count(*) FROM events") == len(self.target.counts), (
            "what came is what was stored"
        )
        assert acknowledged <= set(self.target.counts)
        doubled = await self.rows(
            """SELECT idempotency_key, count(*) FROM events WHERE idempotency_key IS NOT NULL
               GROUP BY 1 HAVING count(*) > 1"""
        )
        assert doubled == [], "a key made two events"
        assert self.target.duplicates <= duplicates_at_most

    async def close(self) -> None:
        """Kill what runs; what the nodes said is printed, for pytest to show on failure."""
        for node in self._clients:
            if node.process.returncode is None:
                node.process.kill()
                await asyncio.to_thread(node.ended)
            said = [line for line in node.lines if '"level":"info"' not in line]
            print(f"--- node {node.process.pid}", *said[-60:], sep="\n")  # noqa: T201 - as said
        await self._stack.aclose()


@asynccontextmanager
async def scene(
    url: str, directory: pathlib.Path, *, nodes: int = 2, subscriptions: int = 8, **settings: str
) -> AsyncIterator[Scene]:
    """A scene that is set: nodes serve, subscriptions exist. Nothing of it is left running."""
    async with Target() as target:
        oracle = Oracle(directory / "acknowledged")
        stage = Scene(url, target, oracle, settings)
        try:
            for _ in range(nodes):
                await stage.start_node()
            if nodes:
                await stage.subscribe(subscriptions)
            yield stage
        finally:
            await stage.close()


def node_id_of(node: Node) -> UUID:
    """The id that a node said it started under."""
    match = re.search(r'"node_id":"([0-9a-f-]+)"[^\n]*"node_started"', node.text)
    assert match is not None
    return UUID(match[1])


async def shared(stage: Scene, nodes: int, within_s: float = PATIENCE_S) -> None:
    """Wait until so many nodes live, and each owns its fair share of the buckets."""
    most = -(-256 // nodes)

    async def is_shared() -> bool:
        counts: Sequence[asyncpg.Record] = await stage.rows(
            """SELECT count(bucket) AS buckets
               FROM nodes LEFT JOIN bucket_leases USING (node_id) GROUP BY node_id"""
        )
        owned = [row["buckets"] for row in counts]
        return len(owned) == nodes and sum(owned) == 256 and max(owned) <= most

    await until(is_shared, f"{nodes} nodes share the buckets", within_s=within_s)
