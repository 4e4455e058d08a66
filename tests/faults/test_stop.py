"""SIGTERM under load: a node hands its work over, and no node waits for a lease to end."""

import pathlib
import random

import pytest

from tests.faults.conftest import IS_LONG
from tests.faults.scene import scene, shared
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.timeout(1_800)

LEASE_S = "300"
"""Heartbeats come every 100 s: what arrives within the patience is not caused by one."""


async def test_nodes_stopped_at_random_moments_lose_nothing_double_nothing_and_hand_over_at_once(
    database_url: str, tmp_path: pathlib.Path, rounds: int, chance: random.Random
) -> None:
    nodes = 3 if IS_LONG else 2
    async with scene(database_url, tmp_path, nodes=nodes, HOOKLINE_LEASE_S=LEASE_S) as stage:
        await shared(stage, nodes)
        async with stage.publishing():
            for _ in range(rounds):
                await stage.more_arrivals(chance.randint(1, 500))
                node = chance.choice(stage.nodes)
                assert await stage.stop(node) == 0
                assert '"shutdown_timed_out"' not in node.text, "nothing hangs"
                await stage.delivered(stage.oracle.ids(), within_s=PATIENCE_S)
                await stage.start_node()
        await stage.judge(duplicates_at_most=0)
