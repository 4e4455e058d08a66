"""What this machine lacks, descriptors or a resolver, is no target's fault: deliveries wait."""

import pathlib
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.faults.resolver import HOST, FaultyResolver
from tests.faults.scene import Scene, scene
from tests.waiting import until

pytestmark = pytest.mark.timeout(180)

READABLE = {"HOOKLINE_ALLOW_CORE_DUMPS": "on"}
"""Else only root may see which descriptors a node has."""
TRIED_AGAIN_S = 2.5
"""A fault of ours is tried again after a second: in this time, twice."""
DEADLINE_S = 4
"""Of an attempt that waits for a name: it is in its midst when the name comes, with time to end."""


@contextmanager
def no_descriptor_left(pid: int) -> Iterator[None]:
    """While inside, a process can open nothing more."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = {int(path.name) for path in pathlib.Path(f"/proc/{pid}/fd").iterdir()}
    lowest_free = next(number for number in range(len(used) + 1) if number not in used)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest_free, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


async def tried_again(attempt_s: float = 0.0) -> None:
    """Wait until deliveries that rest after a fault of ours have been tried again.

    `attempt_s` is how long an attempt takes to fail.
    """
    until_s = time.monotonic() + attempt_s + TRIED_AGAIN_S
    await until(lambda: time.monotonic() > until_s, "they are tried again")


async def judge_spotless(stage: Scene) -> None:
    """All is delivered at the first attempt that counts, and no subscription has a mark."""
    await stage.judge(duplicates_at_most=0)
    assert await stage.value("SELECT max(attempt_count) FROM deliveries") == 1
    assert await stage.value("SELECT count(*) FROM attempts") == 0
    marks = await stage.rows("SELECT DISTINCT state, failing_since FROM subscriptions")
    assert [tuple(row.values()) for row in marks] == [("ACTIVE", None)]


async def test_without_a_descriptor_deliveries_wait_and_no_target_is_blamed(
    database_url: str, tmp_path: pathlib.Path
) -> None:
    async with scene(database_url, tmp_path, nodes=1, subscriptions=4, **READABLE) as stage:
        await stage.publish(stage.event_types)
        await stage.recorded()
        (node,) = stage.nodes
        target = stage.target
        target.is_holding = True
        with no_descriptor_left(node.process.pid):
            await stage.publish(stage.event_types, 100)
            await tried_again()
            assert len(target.held) <= len(stage.event_types), "over connections from before"
        target.let_go()
        await judge_spotless(stage)


@pytest.mark.parametrize("trouble, attempt_s", [("is_down", 0.0), ("hangs", DEADLINE_S)])
async def test_without_a_resolver_deliveries_wait_and_no_target_is_blamed(
    database_url: str, tmp_path: pathlib.Path, trouble: str, attempt_s: float
) -> None:
    resolver = FaultyResolver(tmp_path)
    async with scene(
        database_url, tmp_path, nodes=1, subscriptions=0, **resolver.environment
    ) as stage:
        stage.target.host = HOST
        await stage.subscribe(4, timeout_s=DEADLINE_S)
        getattr(resolver, trouble)()
        await stage.publish(stage.event_types, 20)
        await until(lambda: bool(resolver.askers()), "the resolver is asked")
        await tried_again(attempt_s)
        assert stage.target.arrivals == 0
        resolver.works()
        await judge_spotless(stage)
