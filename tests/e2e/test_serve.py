"""`hookline migrate` and `hookline serve`, on a database of one's own; and kill -9 under load."""

import asyncio
import base64
import os
import pathlib
import re
import secrets
import signal
from collections import Counter

import asyncpg
import pytest

from hookline import HooklineClient
from hookline.v1.event_pb2 import Event
from hookline.v1.subscription_service_pb2 import (
    CreateSubscriptionRequest,
    PauseSubscriptionRequest,
    ResumeSubscriptionRequest,
)
from hookline_service.cli.receiver import Arrival, Receiver
from hookline_service.cli.wording import last_part
from tests.e2e.processes import Node, postgres_processes, run_hookline, running_dev
from tests.postgres import PostgresServer
from tests.waiting import PATIENCE_S, until

pytestmark = pytest.mark.timeout(180)

ALL = "tenants/default/subscriptions/all"
EVENTS = [Event(type="a.b", json_data="{}")] * 500
KEY = base64.b64encode(bytes(range(32))).decode()


def settings(database_url: str) -> dict[str, str]:
    """What `serve` needs."""
    return {
        "HOOKLINE_DATABASE_URL": database_url,
        "HOOKLINE_MASTER_KEY": KEY,
        "HOOKLINE_AUTH": "off",
    }


async def execute(url: str, statement: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetch(statement)
    finally:
        await connection.close()


async def test_migrate_brings_an_empty_database_up_to_date_and_can_be_repeated(
    postgres_server: PostgresServer, database_url: str
) -> None:
    name = f"hookline_empty_{secrets.token_hex(6)}"
    empty = postgres_server.url_of(name)
    await execute(database_url, f'CREATE DATABASE "{name}" TEMPLATE template0')
    try:
        refused = run_hookline("serve", variables=settings(empty))
        assert refused.returncode == 2
        assert "run `hookline migrate`" in refused.stderr
        first = run_hookline("migrate", variables={"HOOKLINE_DATABASE_URL": empty})
        assert first.returncode == 0, first.stderr
        assert re.search(r"^applied 0001 initial \(pre\)$", first.stdout, re.MULTILINE)
        second = run_hookline("migrate", "--post", variables={"HOOKLINE_DATABASE_URL": empty})
        assert second.stdout.splitlines()[-1] == "the schema is up to date"
    finally:
        await execute(database_url, f'DROP DATABASE "{name}" WITH (FORCE)')


async def test_serve_says_ready_and_hands_its_buckets_over_when_it_stops(database_url: str) -> None:
    with Node(["serve"], settings(database_url)) as node:
        node.ready()
        (row,) = await execute(
            database_url, "SELECT count(*) FROM bucket_leases JOIN nodes USING (node_id)"
        )
        assert row[0] == 256
        assert node.stop() == 0
    assert node.lines[-1].startswith("{"), "logs are JSON"
    (row,) = await execute(database_url, "SELECT count(*) FROM nodes")
    assert row[0] == 0


async def test_loopback_targets_are_refused_in_production(database_url: str) -> None:
    with Node(["serve"], settings(database_url)) as node:
        async with HooklineClient(node.ready().target) as client:
            request = CreateSubscriptionRequest(tenant="tenants/default")
            request.subscription.event_types.append("*")
            request.subscription.http.url = "http://127.0.0.1:8080/"
            with pytest.raises(Exception, match="TARGET_ADDRESS_FORBIDDEN"):
                await client.subscriptions.CreateSubscription(request)
        assert node.stop() == 0


async def test_a_second_signal_does_not_wait_for_a_target_that_hangs(
    data_dir: pathlib.Path,
) -> None:
    asked = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()
        writer.close()

    target = await asyncio.start_server(hang, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{target.sockets[0].getsockname()[1]}/"
    with running_dev(data_dir) as dev:
        async with HooklineClient(dev.target) as client:
            await subscribe(client, url)
            await client.publish("default", [Event(type="a.b", json_data="{}")])
            await asyncio.wait_for(asked.wait(), PATIENCE_S)
        dev.signal(signal.SIGTERM)
        await until(lambda: does_not_listen(dev.target), "the first signal is handled")
        assert dev.process.poll() is None
        dev.signal(signal.SIGTERM)
        assert await asyncio.to_thread(dev.ended) == 0
    assert "shutdown_timed_out" in dev.text, "or the target's time was over first"
    target.close()


async def does_not_listen(target: str) -> bool:
    """Whether the port accepts no connection."""
    host, _, port = target.rpartition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


async def subscribe(client: HooklineClient, url: str) -> None:
    """Everything of tenants/default, to one target."""
    request = CreateSubscriptionRequest(tenant="tenants/default", subscription_id="all")
    request.subscription.event_types.append("*")
    request.subscription.http.url = url
    await client.subscriptions.CreateSubscription(request)


@pytest.mark.parametrize("kills_postgres", [False, True], ids=["alone", "with-its-postgres"])
async def test_kill_9_while_2000_events_are_delivered_loses_none(
    data_dir: pathlib.Path,
    kills_postgres: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    arrivals: Counter[str] = Counter()

    def count(arrival: Arrival) -> None:
        arrivals[arrival.webhook_id] += 1

    async with Receiver("test", count) as receiver:
        with running_dev(data_dir) as first:
            async with HooklineClient(first.target) as client:
                await subscribe(client, receiver.url)
                await client.subscriptions.PauseSubscription(PauseSubscriptionRequest(name=ALL))
                batches = [await client.publish("default", EVENTS) for _ in range(4)]
                await client.subscriptions.ResumeSubscription(ResumeSubscriptionRequest(name=ALL))
                await until(lambda: len(arrivals) >= 300, "some are delivered")
            first.process.kill()
            first.process.wait()
        if kills_postgres:
            for postmaster in postgres_processes(data_dir):
                os.kill(postmaster, signal.SIGKILL)
        accepted = {last_part(result.name) for results in batches for result in results}
        assert len(accepted) == 2_000
        assert len(arrivals) < 2_000, "it was killed too late to show anything"
        with running_dev(data_dir) as second:
            await until(lambda: set(arrivals) == accepted, "all are delivered", within_s=60)
            assert second.stop() == 0
    assert max(arrivals.values()) <= 2
