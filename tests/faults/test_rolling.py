"""Each process is replaced under load: clients that retry UNAVAILABLE see no error."""

import asyncio
import os
import pathlib
import random
import signal
from functools import partial

import pytest

from hookline.errors import UnavailableError
from tests.e2e.processes import workers
from tests.faults.publishing import Publishers
from tests.faults.scene import Scene, scene, shared
from tests.waiting import PATIENCE_S, until

pytestmark = pytest.mark.timeout(1_800)

LEASE_S = "300"
"""So long that nothing within the patience is caused by its end or by a heartbeat."""


async def test_three_nodes_are_restarted_one_by_one(
    database_url: str, tmp_path: pathlib.Path, chance: random.Random
) -> None:
    async with scene(database_url, tmp_path, nodes=3, HOOKLINE_LEASE_S=LEASE_S) as stage:
        await shared(stage, 3)
        async with stage.publishing() as publishers:
            for node in list(stage.nodes):
                await stage.more_arrivals(chance.randint(1, 300))
                assert await stage.stop(node) == 0
                await stage.delivered(stage.oracle.ids(), within_s=PATIENCE_S)
                await stage.start_node()
                await shared(stage, 3)
        await judge(stage, publishers)


async def test_the_processes_of_one_node_are_replaced_one_by_one(
    database_url: str, tmp_path: pathlib.Path, chance: random.Random
) -> None:
    async with scene(
        database_url, tmp_path, nodes=1, HOOKLINE_LEASE_S=LEASE_S, HOOKLINE_WORKERS="2"
    ) as stage:
        (node,) = stage.nodes
        await shared(stage, 2)
        async with stage.publishing() as publishers:
            for pid in workers(node):
                await stage.more_arrivals(chance.randint(1, 300))
                before = await ids(stage)
                os.kill(pid, signal.SIGTERM)
                await until(partial(is_replaced, stage, before), "another is there")
                await shared(stage, 2)
                await stage.delivered(stage.oracle.ids(), within_s=PATIENCE_S)
        await judge(stage, publishers)
        assert await asyncio.to_thread(node.stop) == 0


async def ids(stage: Scene) -> set[object]:
    """The nodes that have a lease."""
    return {row["node_id"] for row in await stage.rows("SELECT node_id FROM nodes")}


async def is_replaced(stage: Scene, known: set[object]) -> bool:
    """Whether one of the nodes has gone, and one has come."""
    now = await ids(stage)
    return len(now) == len(known) and now != known


async def judge(stage: Scene, publishers: Publishers) -> None:
    """Everything arrived once, and no caller got another error than UNAVAILABLE."""
    await stage.judge(duplicates_at_most=0)
    assert set(publishers.refusals) <= {UnavailableError}
