"""A process of `serve` whose event loop no longer turns is killed and replaced, and no other is."""

import asyncio
import os
import pathlib
import signal
import sys

import pytest

from hookline import HooklineClient
from hookline.v1.operations_service_pb2 import GetStatusRequest
from tests.e2e.processes import Node, workers
from tests.e2e.test_serve import execute, settings
from tests.e2e.test_workers import LONG_LEASE_S, node_ids, serving, until_replaced, until_shared
from tests.frozen import frozen
from tests.waiting import until

pytestmark = pytest.mark.timeout(180)

SILENCE_S = 4
"""Short enough to wait for, and so long that no busy machine makes a healthy process silent."""
WAYS = {
    "stopped": signal.SIGSTOP,
    "loops": signal.SIGUSR1,
    "mute": signal.SIGUSR2,
}
_WAYS = """
import os, signal, sys

def loop(*_):
    while True:
        pass

def be_mute(*_):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

if "--worker" in sys.orig_argv:
    signal.signal(signal.SIGUSR1, loop)
    signal.signal(signal.SIGUSR2, be_mute)
"""


@pytest.fixture
def python_path(tmp_path: pathlib.Path) -> str:
    """A path that teaches each process what to do at SIGUSR1 and SIGUSR2."""
    (tmp_path / "sitecustomize.py").write_text(_WAYS)
    return os.pathsep.join([str(tmp_path), *filter(None, sys.path)])


@pytest.mark.parametrize("way", WAYS)
async def test_one_that_hangs_is_killed_and_replaced_and_every_connection_is_served(
    database_url: str, python_path: str, way: str
) -> None:
    variables = {
        "HOOKLINE_LEASE_S": LONG_LEASE_S,
        "HOOKLINE_WORKER_SILENCE_S": str(SILENCE_S),
        "PYTHONPATH": python_path,
    }
    with serving(database_url, 2, **variables) as node:
        await until_shared(database_url, 128, 128)
        nodes = await node_ids(database_url)
        hung, healthy = workers(node)

        os.kill(hung, WAYS[way])

        await until(lambda: is_replaced(node, hung), "another process is there", within_s=90)
        await until_replaced(database_url, nodes)
        assert healthy in workers(node)
        answered: list[str] = []
        while len(answered) < 16 or len(set(answered)) < 2:  # distributed to all listeners
            async with HooklineClient(node.target) as client:
                status = await client.operations.GetStatus(GetStatusRequest())
            assert len(status.nodes) == 2
            answered.append(status.node_id)
        assert await asyncio.to_thread(node.stop) == 0, node.text
    (killed,) = logged(node, "worker_hung")
    (ended,) = logged(node, "worker_ended")
    assert '"worker":1' in killed or '"worker":2' in killed
    assert "was ended by SIGKILL" in ended
    assert '"starts_again_in_s":0.5' in ended


async def test_a_suspended_machine_misses_no_probe(database_url: str) -> None:
    lease_s = SILENCE_S * 2  # renewed each third of it: after a freeze it lasts longer than that
    variables = {"HOOKLINE_LEASE_S": str(lease_s), "HOOKLINE_WORKER_SILENCE_S": str(SILENCE_S)}
    with serving(database_url, 2, **variables) as node:
        await until_shared(database_url, 128, 128)
        pids = workers(node)

        with frozen(node.process.pid, *pids):
            await until_leases(database_url, 0)

        await until_leases(database_url, 2)
        await until_has_lived(database_url, SILENCE_S)
        assert workers(node) == pids
        assert await asyncio.to_thread(node.stop) == 0, node.text
    assert logged(node, "worker_hung") == logged(node, "worker_ended") == []


async def test_a_slow_start_is_not_probed(database_url: str) -> None:
    environ = settings(database_url) | {
        "HOOKLINE_WORKERS": "2",
        "HOOKLINE_LEASE_S": "4",
        "HOOKLINE_WORKER_SILENCE_S": str(SILENCE_S),
    }
    with Node(["serve"], environ) as node:
        await until(lambda: [*map(has_begun, workers(node))] == [True] * 2, "two processes")
        pids = workers(node)
        with frozen(pids[1]):
            await until_has_lived(database_url, SILENCE_S * 2)
        node.ready()
        assert workers(node) == pids
        assert await asyncio.to_thread(node.stop) == 0, node.text
    assert logged(node, "worker_hung") == []


async def test_without_a_bound_no_worker_is_killed(database_url: str) -> None:
    variables = {"HOOKLINE_LEASE_S": "4", "HOOKLINE_WORKER_SILENCE_S": "0"}
    with serving(database_url, 2, **variables) as node:
        await until_shared(database_url, 128, 128)
        pids = workers(node)
        with frozen(pids[0]):
            await until_shared(database_url, 256)
            assert workers(node) == pids
        await until_shared(database_url, 128, 128)
        assert await asyncio.to_thread(node.stop) == 0, node.text
    assert logged(node, "worker_hung") == logged(node, "worker_ended") == []


def is_replaced(node: Node, pid: int) -> bool:
    """Whether another process runs in the place of this one."""
    return len(workers(node)) == 2 and pid not in workers(node)


def has_begun(pid: int) -> bool:
    """Whether a process is no copy of its supervisor any more, which waits for it until then."""
    return b"--worker" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()


def logged(node: Node, event: str) -> list[str]:
    """The lines of the log of some events; read to its end."""
    return [line for line in node.lines if f'"{event}"' in line]


async def until_leases(url: str, count: int) -> None:
    """Until so many nodes have one that has not ended."""
    statement = "SELECT count(*) FROM nodes WHERE lease_until > clock_timestamp()"

    async def are_so_many() -> bool:
        return [row[0] for row in await execute(url, statement)] == [count]

    await until(are_so_many, f"{count} leases hold", within_s=60)


async def until_has_lived(url: str, lived_s: float) -> None:
    """Until some node has renewed its lease for so long, since it was first seen."""
    statement = "SELECT extract(epoch FROM max(lease_until))::float8 FROM nodes"
    began: list[float] = []

    async def has() -> bool:
        ((until_s,),) = await execute(url, statement)
        if until_s is not None:
            began.append(until_s)
        return bool(began) and began[-1] - began[0] > lived_s

    await until(has, f"a node lives for {lived_s:g} s", within_s=90)
