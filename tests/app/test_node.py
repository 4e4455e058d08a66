"""A node started and stopped in the test's process: the order of its stop, and starts that fail."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import hookline.webhook
from hookline import HooklineClient
from hookline.errors import InvalidArgumentError, UnavailableError
from hookline.v1.delivery_service_pb2 import ListDeliveriesRequest
from hookline.v1.event_pb2 import Event
from hookline.v1.event_service_pb2 import ListEventsRequest
from hookline.v1.subscription_service_pb2 import (
    CreateSubscriptionRequest,
    RotateSigningSecretRequest,
)
from hookline.v1.tenant_service_pb2 import CreateTenantRequest, GetTenantRequest
from hookline_service.app import App, StartError
from hookline_service.app.master_key import rotate_master
from hookline_service.config import Role, Settings
from hookline_service.store.database import RejectedError
from tests.pipeline.rig import Receiver, TurnableClock
from tests.postgres import PostgresServer
from tests.waiting import PATIENCE_S, until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
NEVER_RECORDED = "SELECT count(*) FROM pending_deliveries WHERE attempt_count = 0"
"""A stop that waited for the target's time to be over would have recorded that."""


def settings(database_url: str, **changes: str) -> Settings:
    """A node for a test: its own database, loopback targets."""
    environ = {
        "HOOKLINE_DATABASE_URL": database_url,
        "HOOKLINE_MASTER_KEY": base64.b64encode(bytes(32)).decode(),
        "HOOKLINE_AUTH": "off",
        "HOOKLINE_LISTEN": "127.0.0.1:0",
        "HOOKLINE_EGRESS_ALLOW": "127.0.0.0/8",
        **changes,
    }
    return Settings.from_environ(environ, Role.SERVE)


@asynccontextmanager
async def started(database_url: str, **changes: str) -> AsyncIterator[tuple[App, HooklineClient]]:
    """A node that serves, and a client of it; the test stops the node."""
    app = App(settings(database_url, **changes))
    port = await app.start()
    async with HooklineClient(f"127.0.0.1:{port}") as client:
        yield app, client
    await app.stop()


async def fetch_one(database_url: str, statement: str) -> object:
    connection = await asyncpg.connect(database_url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def connections(database_url: str) -> int:
    """How many connections of ours there are; of one that was closed the server learns later."""
    count = await fetch_one(
        database_url,
        """SELECT count(*) FROM pg_stat_activity
           WHERE datname = current_database() AND application_name LIKE 'hookline%'""",
    )
    assert isinstance(count, int)
    return count


async def no_connections(database_url: str) -> bool:
    return await connections(database_url) == 0


async def subscribe(client: HooklineClient, url: str, tenant: str = "tenants/default") -> None:
    request = CreateSubscriptionRequest(tenant=tenant, subscription_id="all")
    request.subscription.event_types.append("*")
    request.subscription.http.url = url
    await client.subscriptions.CreateSubscription(request)


async def test_stop_removes_the_node_and_closes_all_connections(database_url: str) -> None:
    async with started(database_url) as (app, client):
        health: Any = health_pb2_grpc.HealthStub(client.channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(service=""))
        assert answer.status == SERVING
        assert await fetch_one(database_url, "SELECT count(*) FROM nodes") == 1
        assert await connections(database_url) > 3
        await app.stop()
    assert await fetch_one(database_url, "SELECT count(*) FROM nodes") == 0
    await until(lambda: no_connections(database_url), "the connections are closed")


async def test_running_delivery_is_recorded_before_the_node_deregisters(
    database_url: str,
) -> None:
    async with Receiver() as target, started(database_url) as (app, client):
        target.gate = asyncio.Event()
        await subscribe(client, target.url)
        await client.publish("default", [Event(type="a.b", json_data="{}")] * 3)
        await target.wait_for(3)
        stopping = asyncio.create_task(app.stop())
        done, _ = await asyncio.wait({stopping}, timeout=0.5)
        assert not done, "it waits for the target"
        assert await fetch_one(database_url, "SELECT count(*) FROM nodes") == 1
        target.gate.set()
        await stopping
    states = "SELECT string_agg(DISTINCT state, ',') || count(*) FROM deliveries"
    assert await fetch_one(database_url, states) == "SUCCEEDED3"
    assert await fetch_one(database_url, "SELECT count(*) FROM pending_deliveries") == 0


async def test_hurried_stop_waits_for_no_target_and_loses_nothing(database_url: str) -> None:
    async with Receiver() as target, started(database_url) as (app, client):
        target.gate = asyncio.Event()
        await subscribe(client, target.url)
        await client.publish("default", [Event(type="a.b", json_data="{}")])
        await target.wait_for(1)
        stopping = asyncio.create_task(app.stop())
        await asyncio.sleep(0)
        app.hurry()
        async with asyncio.timeout(PATIENCE_S):
            await stopping
        target.gate.set()
    assert await fetch_one(database_url, NEVER_RECORDED) == 1
    assert await fetch_one(database_url, "SELECT count(*) FROM nodes") == 0


async def test_stop_waits_no_longer_than_the_grace_period(database_url: str) -> None:
    async with (
        Receiver() as target,
        started(database_url, HOOKLINE_STOP_GRACE_S="0.2") as (app, client),
    ):
        target.gate = asyncio.Event()
        await subscribe(client, target.url)
        await client.publish("default", [Event(type="a.b", json_data="{}")])
        await target.wait_for(1)
        async with asyncio.timeout(PATIENCE_S):
            await app.stop()
        target.gate.set()
    assert await fetch_one(database_url, NEVER_RECORDED) == 1


async def test_health_watcher_is_notified_first_and_does_not_delay_the_stop(
    database_url: str,
) -> None:
    async with started(database_url) as (app, client):
        health: Any = health_pb2_grpc.HealthStub(client.channel)
        watching = health.Watch(health_pb2.HealthCheckRequest(service=""))
        seen = [(await watching.read()).status]
        began = time.monotonic()
        stopping = asyncio.create_task(app.stop())
        seen.append((await watching.read()).status)
        await stopping
        assert time.monotonic() - began < 5
        assert seen == [SERVING, NOT_SERVING]
        with pytest.raises(grpc.aio.AioRpcError):
            await watching.read()


async def test_a_stopped_node_refuses_calls(database_url: str) -> None:
    async with started(database_url) as (app, client):
        await app.stop()
        with pytest.raises(UnavailableError):
            await client.publish("default", [Event(type="a.b", json_data="{}")], timeout_s=0.3)


async def test_a_start_that_fails_late_stops_what_it_had_started(database_url: str) -> None:
    listening = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    taken = f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    with pytest.raises(StartError, match=f"cannot listen on {taken}"):
        await App(settings(database_url, HOOKLINE_LISTEN=taken)).start()
    listening.close()
    await fetch_one(database_url, "ALTER TABLE event_types RENAME TO hidden")
    with pytest.raises(RejectedError, match="event_types"):
        await App(settings(database_url)).start()
    assert await fetch_one(database_url, "SELECT count(*) FROM nodes") == 0
    await until(lambda: no_connections(database_url), "the connections are closed")


async def test_a_start_that_is_cancelled_stops_what_it_had_started(database_url: str) -> None:
    app = App(settings(database_url))
    starting = asyncio.create_task(app.start())
    await until(lambda: is_registered(database_url), "it has registered")
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await app.stop()
    assert await fetch_one(database_url, "SELECT count(*) FROM nodes") == 0
    await until(lambda: no_connections(database_url), "the connections are closed")


async def is_registered(database_url: str) -> bool:
    return await fetch_one(database_url, "SELECT count(*) FROM nodes") == 1


async def test_clock_skew_is_reported_and_prevents_a_start(
    database_url: str,
) -> None:
    clock = TurnableClock()
    clock.wall_ahead_s = 60.0
    with pytest.raises(StartError, match="clock differs by 60 s"):
        await App(settings(database_url), clock=clock).start()

    clock.wall_ahead_s = 0.0
    app = App(settings(database_url, HOOKLINE_LEASE_S="4"), clock=clock)
    async with HooklineClient(f"127.0.0.1:{await app.start()}") as client:
        health: Any = health_pb2_grpc.HealthStub(client.channel)
        watching = health.Watch(health_pb2.HealthCheckRequest(service="hookline.v1.EventService"))
        assert (await watching.read()).status == SERVING
        clock.wall_ahead_s = -60.0
        assert (await watching.read()).status == NOT_SERVING
        clock.wall_ahead_s = 0.0
        assert (await watching.read()).status == SERVING
        await app.stop()


async def test_future_partitions_exist_before_the_node_serves(database_url: str) -> None:
    days = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'events'::regclass"
    before = await fetch_one(database_url, days)
    last = (
        "SELECT max(inhrelid::regclass::text) FROM pg_inherits WHERE inhparent = 'events'::regclass"
    )
    await fetch_one(database_url, f"DROP TABLE {await fetch_one(database_url, last)}")
    async with started(database_url) as (app, _):
        assert await fetch_one(database_url, days) == before
        await app.stop()


async def test_outdated_schema_prevents_a_start(database_url: str) -> None:
    await fetch_one(database_url, "DELETE FROM schema_migrations WHERE number = 1")
    with pytest.raises(StartError, match="run `hookline migrate`"):
        await App(settings(database_url)).start()


async def test_a_database_that_could_lose_events_is_refused(database_url: str) -> None:
    name = database_url.partition("@/")[2].partition("?")[0]
    await fetch_one(database_url, f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    with pytest.raises(StartError, match="synchronous_commit is off"):
        await App(settings(database_url)).start()


@pytest.mark.parametrize("workers, is_short", [(1, False), (16, True)])
async def test_too_low_connection_limit_is_logged(
    database_url: str,
    capfd: pytest.CaptureFixture[str],
    workers: int,
    is_short: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    async with started(database_url, HOOKLINE_WORKERS=str(workers)) as (app, _):
        await app.stop()
    output = capfd.readouterr()
    assert ("connection_limit_too_low" in output.out + output.err) is is_short


@asynccontextmanager
async def long_lists(
    database_url: str, client: HooklineClient, connections: int
) -> AsyncIterator[None]:
    """While inside, twenty lists of the default tenant have so many connections, and none ends."""
    other = await asyncpg.connect(database_url)
    try:
        await other.execute("BEGIN")
        await other.execute("LOCK TABLE deliveries IN ACCESS EXCLUSIVE MODE")
        request = ListDeliveriesRequest(tenant="tenants/default")
        lists = [
            asyncio.ensure_future(client.deliveries.ListDeliveries(request)) for _ in range(20)
        ]

        async def are_read() -> bool:
            return await fetch_one(database_url, LISTS_THAT_WAIT) == connections

        await until(are_read, f"the lists have {connections} connections")
        yield
    finally:
        await other.close()
    await asyncio.gather(*lists)


LISTS_THAT_WAIT = """SELECT count(*) FROM pg_stat_activity
                     WHERE datname = current_database() AND application_name = 'hookline calls'
                       AND wait_event_type = 'Lock'"""


async def test_lists_that_use_all_connections_delay_no_delivery(database_url: str) -> None:
    """Of a tenant and a subscription that this node has never read."""
    async with (
        Receiver() as receiver,
        started(database_url, HOOKLINE_MAX_TENANT_LISTS="100") as (_, client),
    ):
        await client.tenants.CreateTenant(CreateTenantRequest(tenant_id="other"))
        await subscribe(client, receiver.url, "tenants/other")
        async with long_lists(database_url, client, connections=8):
            await client.publish("other", [Event(type="a.b", json_data="{}")])
            await receiver.wait_for(1)


async def test_lists_of_one_tenant_leave_connections_to_other_calls(database_url: str) -> None:
    async with (
        started(database_url) as (_, client),
        long_lists(database_url, client, connections=4),
    ):
        answer = await client.tenants.GetTenant(GetTenantRequest(name="tenants/default"))
        assert answer.tenant.name == "tenants/default"


def keys(*master_keys: bytes) -> str:
    return ",".join(base64.b64encode(key).decode() for key in master_keys)


async def test_master_key_that_decrypts_no_stored_secret_prevents_a_start(
    database_url: str,
) -> None:
    async with started(database_url) as (_, client):
        await subscribe(client, "http://127.0.0.1:1024/")
    with pytest.raises(StartError, match="HOOKLINE_MASTER_KEY lacks") as caught:
        await App(settings(database_url, HOOKLINE_MASTER_KEY=keys(b"o" * 32))).start()
    assert keys(b"o" * 32) not in str(caught.value)
    await until(lambda: no_connections(database_url), "what had started is stopped")


async def test_master_key_is_rotated_while_nodes_serve(database_url: str) -> None:
    old, new = bytes(32), b"n" * 32
    both = settings(database_url, HOOKLINE_MASTER_KEY=keys(new, old))
    async with Receiver() as receiver:
        async with (
            started(database_url, HOOKLINE_MASTER_KEY=keys(old, new)) as (_, client),
            started(database_url, HOOKLINE_MASTER_KEY=keys(new, old)) as (_, other),
        ):
            await subscribe(client, receiver.url)
            await client.publish("default", [Event(type="a.b", json_data="1")] * 2)
            await until(lambda: len(receiver.ids) == 2, "the first are delivered")
            listed = await client.events.ListEvents(
                ListEventsRequest(tenant="tenants/default", page_size=1)
            )

            report = await rotate_master(both, lambda _done, _whole: None)
            assert (report.data_keys, report.deployment_keys, report.unreadable) == (1, 3, [])

            name = "tenants/default/subscriptions/all"
            rotation = RotateSigningSecretRequest(name=name)
            rotated = await other.subscriptions.RotateSigningSecret(rotation)
            await other.publish("default", [Event(type="a.b", json_data="2")])
            await until(lambda: len(receiver.ids) == 3, "the next is delivered")
            headers, body = receiver.requests[-1]
            webhook = hookline.webhook.verify(headers, body, rotated.signing_secret)
            assert webhook.json()["data"] == 2
        async with started(database_url, HOOKLINE_MASTER_KEY=keys(new)) as (_, client):
            await client.publish("default", [Event(type="a.b", json_data="3")])
            await until(lambda: len(receiver.ids) == 4, "the new key alone opens it")
            following = await client.events.ListEvents(
                ListEventsRequest(
                    tenant="tenants/default", page_size=1, page_token=listed.next_page_token
                )
            )
            assert len(following.events) == 1


@pytest.fixture
def elsewhere(postgres_server: PostgresServer) -> Iterator[str]:
    """The database of another deployment."""
    with postgres_server.database() as url:
        yield url


async def test_a_page_token_of_another_deployment_is_refused_though_the_master_key_is_the_same(
    database_url: str, elsewhere: str
) -> None:
    request = ListEventsRequest(tenant="tenants/default", page_size=1)
    async with (
        started(database_url) as (_, client),
        started(elsewhere) as (_, other_client),
    ):
        await client.publish("default", [Event(type="a.b", json_data="{}")] * 2)
        first = await client.events.ListEvents(request)
        request.page_token = first.next_page_token
        with pytest.raises(InvalidArgumentError) as refused:
            await other_client.events.ListEvents(request)
        assert len((await client.events.ListEvents(request)).events) == 1
    assert [one.reason for one in refused.value.violations] == ["PAGE_TOKEN_INVALID"]
