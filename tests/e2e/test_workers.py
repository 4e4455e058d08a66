"""`hookline serve` as several processes behind one port: they share, die, come back and end."""

import asyncio
import contextlib
import os
import pathlib
import re
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from uuid import UUID

import pytest

from hookline import HooklineClient
from hookline.v1.event_pb2 import Event
from hookline.v1.operations_service_pb2 import GetStatusRequest
from hookline.v1.subscription_service_pb2 import CreateSubscriptionRequest
from hookline_service.cli.receiver import Receiver
from tests.e2e.processes import Node, run_hookline, workers
from tests.e2e.test_serve import execute, settings, subscribe
from tests.waiting import PATIENCE_S, until

pytestmark = pytest.mark.timeout(180)

LONG_LEASE_S = "120"
"""So long that no test outlasts it: what is seen to within a test is not seen to by its end."""


def lives(pid: int) -> bool:
    """Whether a process is there, and is not only waiting to be taken notice of."""
    with contextlib.suppress(OSError):
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] != "Z"
    return False


@contextlib.contextmanager
def serving(url: str, count: int = 2, **variables: str) -> Iterator[Node]:
    """So many processes, once all serve; none of them is left afterwards."""
    environ = settings(url) | {"HOOKLINE_WORKERS": str(count)} | variables
    with Node(["serve"], environ) as node:
        pids: list[int] = []
        try:
            node.ready()
            pids = workers(node)
            assert len(pids) == count
            yield node
        finally:
            for pid in {*pids, *workers(node)}:
                if lives(pid):
                    os.kill(pid, signal.SIGKILL)


async def owners(url: str) -> list[int]:
    """How many buckets each node has that lives."""
    rows = await execute(
        url,
        """SELECT count(bucket) FROM nodes LEFT JOIN bucket_leases USING (node_id)
           GROUP BY node_id ORDER BY 1""",
    )
    return [row[0] for row in rows]


async def until_shared(url: str, *shares: int) -> None:
    async def is_shared() -> bool:
        return await owners(url) == list(shares)

    await until(is_shared, f"the buckets are shared {shares}")


async def node_ids(url: str) -> set[UUID]:
    return {row[0] for row in await execute(url, "SELECT node_id FROM nodes")}


async def until_replaced(url: str, nodes: set[UUID]) -> None:
    """Until one of these two nodes has a successor, with its share of the buckets.

    What a dead node owned stands there until it is expired: shares alone do not show a successor.
    """

    async def is_replaced() -> bool:
        rows = await execute(url, "SELECT DISTINCT node_id FROM bucket_leases")
        return len(rows) == 2 and len({row[0] for row in rows} - nodes) == 1

    await until(is_replaced, "another owns buckets in its place")
    await until_shared(url, 128, 128)


async def test_they_serve_one_port_share_the_buckets_and_leave_nothing_behind(
    database_url: str,
) -> None:
    with serving(database_url, 3, HOOKLINE_LEASE_S=LONG_LEASE_S) as node:
        pids = workers(node)
        assert node.lines.count("ready") == 1
        assert len([line for line in node.lines if "serves gRPC on" in line]) == 1
        await until_shared(database_url, 84, 86, 86)
        async with HooklineClient(node.target) as client:
            status = await client.operations.GetStatus(GetStatusRequest())
            assert [one.address for one in status.nodes] == [node.target] * 3

        assert await asyncio.to_thread(node.stop) == 0

        assert [pid for pid in pids if lives(pid)] == []
        assert await owners(database_url) == []
    logged = [line for line in node.lines if '"worker":' in line]
    assert {line.rpartition('"worker":')[2][0] for line in logged} == {"1", "2", "3"}


async def test_what_one_of_them_accepts_another_delivers(database_url: str) -> None:
    arrived: set[str] = set()
    async with Receiver("test", lambda arrival: arrived.add(arrival.webhook_id)) as receiver:
        with serving(database_url, HOOKLINE_EGRESS_ALLOW="127.0.0.0/8") as node:
            await until_shared(database_url, 128, 128)
            async with HooklineClient(node.target) as client:
                for number in range(8):
                    request = CreateSubscriptionRequest(
                        tenant="tenants/default", subscription_id=f"s{number}"
                    )
                    request.subscription.event_types.append("*")
                    request.subscription.http.url = receiver.url
                    await client.subscriptions.CreateSubscription(request)
                await client.publish("default", [Event(type="a.b", json_data="{}")] * 20)
            delivered = "SELECT count(*) FROM deliveries WHERE state = 'SUCCEEDED'"

            async def are_recorded() -> bool:
                (row,) = await execute(database_url, delivered)
                return int(row[0]) == 160

            await until(are_recorded, "all are delivered")
            assert len(arrived) == 20
            assert await asyncio.to_thread(node.stop) == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_one_that_ends_is_started_anew_and_waits_for_no_lease(
    database_url: str, number: signal.Signals
) -> None:
    with serving(database_url, HOOKLINE_LEASE_S=LONG_LEASE_S) as node:
        await until_shared(database_url, 128, 128)
        nodes = await node_ids(database_url)
        pids = workers(node)

        os.kill(pids[0], number)

        await until_replaced(database_url, nodes)
        assert pids[1] in workers(node)
        assert pids[0] not in workers(node)
        async with HooklineClient(node.target) as client:
            assert len((await client.operations.GetStatus(GetStatusRequest())).nodes) == 2
        assert await asyncio.to_thread(node.stop) == 0
    (line,) = [line for line in node.lines if '"worker_ended"' in line]
    assert ("was ended by SIGKILL" if number is signal.SIGKILL else "ended with 0") in line


async def test_they_outlive_no_supervisor(database_url: str) -> None:
    with serving(database_url, HOOKLINE_LEASE_S=LONG_LEASE_S) as node:
        pids = workers(node)

        node.process.kill()
        node.process.wait()

        await until(lambda: not any(map(lives, pids)), "they end by themselves")
        assert await owners(database_url) == []


async def test_a_second_signal_reaches_all(database_url: str) -> None:
    asked = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()
        writer.close()

    target = await asyncio.start_server(hang, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{target.sockets[0].getsockname()[1]}/"
    with serving(database_url, HOOKLINE_EGRESS_ALLOW="127.0.0.0/8") as node:
        async with HooklineClient(node.target) as client:
            await subscribe(client, url)
            await client.publish("default", [Event(type="a.b", json_data="{}")])
            await asyncio.wait_for(asked.wait(), PATIENCE_S)
        pids = workers(node)
        node.signal(signal.SIGTERM)
        await until(lambda: sum(map(lives, pids)) == 1, "the one that has nothing to wait for ends")
        assert node.process.poll() is None
        node.signal(signal.SIGTERM)
        assert await asyncio.to_thread(node.ended) == 0
        assert not any(map(lives, pids))
    assert '"shutdown_timed_out"' in node.text, "or the target's time was over first"
    target.close()


async def test_a_worker_that_cannot_start_is_reported_once_and_not_restarted(
    database_url: str,
) -> None:
    await execute(database_url, "DELETE FROM schema_migrations WHERE number = 1")
    with Node(["serve"], settings(database_url) | {"HOOKLINE_WORKERS": "3"}) as node:
        assert await asyncio.to_thread(node.ended) == 2
    done = [line for line in node.lines if line.startswith("hookline:")]
    assert len(done) == 1
    assert "run `hookline migrate`" in done[0]
    assert "ready" not in node.lines
    assert not any('"worker_ended"' in line for line in node.lines)


async def test_one_that_dies_while_all_start_ends_the_start(
    database_url: str, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif '--worker' in sys.orig_argv: os._exit(7)\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    environ = settings(database_url) | {"HOOKLINE_WORKERS": "2", "PYTHONPATH": path}
    with Node(["serve"], environ) as node:
        assert await asyncio.to_thread(node.ended) == 2
    assert node.lines[-1] == (
        "hookline: a worker process ended with 7 before it served; see the log"
    )


async def test_a_stop_while_they_start_is_a_stop(database_url: str) -> None:
    with Node(["serve"], settings(database_url) | {"HOOKLINE_WORKERS": "2"}) as node:
        await until(lambda: len(workers(node)) == 2, "they are being started")
        pids = workers(node)
        assert await asyncio.to_thread(node.stop) == 0
        assert not any(map(lives, pids))
    assert "ready" not in node.lines
    assert await owners(database_url) == []


@pytest.mark.parametrize("theirs", ["foreign", "hookline"])
async def test_a_port_in_use_is_refused_and_never_shared(database_url: str, theirs: str) -> None:
    with contextlib.ExitStack() as stack:
        if theirs == "foreign":
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            taken = f"127.0.0.1:{listening.getsockname()[1]}"
        else:
            taken = stack.enter_context(serving(database_url)).target
        environ = settings(database_url) | {"HOOKLINE_WORKERS": "2"}
        refused = await asyncio.to_thread(
            run_hookline, "serve", "--listen", taken, variables=environ
        )
        assert refused.returncode == 2
        assert refused.stderr.startswith(f"hookline: cannot listen on {taken}: Address already in")


def descriptors(pid: int) -> tuple[str, str]:
    """How many a process may have open, and how many it may allow itself."""
    limits = pathlib.Path(f"/proc/{pid}/limits").read_text()
    match = re.search(r"^Max open files +(\d+) +(\d+)", limits, re.MULTILINE)
    assert match is not None
    return match[1], match[2]


@pytest.mark.parametrize("count", [1, 2])
async def test_each_has_all_the_descriptors_it_may_have(database_url: str, count: int) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, limits[1]))
    try:
        with Node(["serve"], settings(database_url) | {"HOOKLINE_WORKERS": str(count)}) as node:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            node.ready()
            for pid in [node.process.pid, *workers(node)]:
                assert descriptors(pid) == (str(limits[1]), str(limits[1]))
            assert await asyncio.to_thread(node.stop) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
