"""The port that Prometheus scrapes: requests that never end take nothing from deliveries or calls.

One second's flood of unfinished requests once started a thread for each, and used up the node's
descriptors: deliveries failed, and new gRPC connections timed out.
"""

import asyncio
import pathlib
import resource
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from hookline import HooklineClient
from hookline.v1.event_pb2 import Event
from tests.app.test_telemetry import free_port
from tests.faults.publishing import TENANT
from tests.faults.scene import PATIENT_S, scene
from tests.waiting import until

pytestmark = pytest.mark.timeout(120)

DESCRIPTORS = 1_024
UNFINISHED = 997


@contextmanager
def many_descriptors() -> Iterator[None]:
    """While inside, this process may hold as many connections as it opens here."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def open_unfinished(stack: ExitStack, port: int) -> None:
    """Begin requests that never end."""
    for _ in range(UNFINISHED):
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
        connection.send(b"GET /metrics HTTP/1.1\r\nHost: a\r\nX-Unfinished: ")


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text: str = answer.read().decode()
        return text


def threads_of(pid: int) -> int:
    return len(list(pathlib.Path(f"/proc/{pid}/task").iterdir()))


def descriptors_of(pid: int) -> int:
    return len(list(pathlib.Path(f"/proc/{pid}/fd").iterdir()))


async def test_unfinished_requests_take_nothing_from_deliveries_and_calls(
    database_url: str, tmp_path: pathlib.Path
) -> None:
    port = free_port()
    listen = {
        "HOOKLINE_PROMETHEUS_LISTEN": f"127.0.0.1:{port}",
        "HOOKLINE_ALLOW_CORE_DUMPS": "on",  # else only root may count a node's descriptors
    }
    with many_descriptors(), ExitStack() as connections:
        async with scene(database_url, tmp_path, nodes=1, subscriptions=4, **listen) as stage:
            (node,) = stage.nodes
            pid = node.process.pid
            hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))
            assert "hookline_buckets_owned" in await asyncio.to_thread(scrape, port)
            threads, descriptors = threads_of(pid), descriptors_of(pid)

            await asyncio.to_thread(open_unfinished, connections, port)
            await until(
                lambda: descriptors_of(pid) <= descriptors + 2 * 16, "what is too many is closed"
            )
            async with HooklineClient(node.target) as newcomer:
                results = await newcomer.publish(
                    TENANT,
                    [Event(type=one, json_data="{}") for one in stage.event_types] * 25,
                    timeout_s=PATIENT_S,
                )
            stage.oracle.acknowledge([result.name for result in results])
            await stage.judge(duplicates_at_most=0)
            assert await stage.value("SELECT count(*) FROM attempts") == 0, "none failed"
            assert threads_of(pid) <= threads + 8, "gRPC's own; none for a connection"
            assert "hookline_buckets_owned" in await asyncio.to_thread(scrape, port)
