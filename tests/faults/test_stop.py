"""SIGTERM under load: a node hands over what it has, and nobody waits for a lease to end."""

import pathlib
import random
import time

import pytest

from tests.faults.conftest import IS_LONG
from tests.faults.scene import scene, shared

pytestmark = pytest.mark.timeout(1_800)

LEASE_S = 10.0
AT_ONCE_S = 2.0
"""Sooner than the others' next beat, and never by a lease that ended, which comes 10 s later."""


async def test_nodes_stopped_at_random_moments_lose_nothing_double_nothing_and_hand_over_at_once(
    database_url: str, tmp_path: pathlib.Path, rounds: int, chance: random.Random
) -> None:
    nodes = 3 if IS_LONG else 2
    async with scene(database_url, tmp_path, nodes=nodes, HOOKLINE_LEASE_S=str(LEASE_S)) as stage:
        await shared(stage, nodes)
        async with stage.publishing():
            for _ in range(rounds):
                await stage.more_arrivals(chance.randint(1, 500))
                began_s = time.monotonic()
                assert await stage.stop(chance.choice(stage.nodes)) == 0
                assert time.monotonic() - began_s < 5, "nothing hangs, so nothing is waited for"
                taken_over_s = await stage.delivered(stage.oracle.ids(), within_s=60)
                assert taken_over_s < AT_ONCE_S
                await stage.start_node()
        await stage.judge(duplicates_at_most=0)
