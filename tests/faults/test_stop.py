"""SIGTERM under load: a node hands over what it has, and nobody waits for a lease to end."""

import pathlib
import random
import time

import pytest

from tests.faults.scene import scene, shared

pytestmark = pytest.mark.timeout(1_800)

LEASE_S = 10.0
TAKEN_OVER_S = LEASE_S / 3 + 2.5
"""At the others' next beat, and never by a lease that ended, which would come 10 s later."""


async def test_nodes_stopped_at_random_moments_lose_nothing_double_nothing_and_hand_over_at_once(
    database_url: str, tmp_path: pathlib.Path, rounds: int, chance: random.Random
) -> None:
    async with scene(database_url, tmp_path, HOOKLINE_LEASE_S=str(LEASE_S)) as stage:
        await shared(stage, 2)
        async with stage.publishing():
            for _ in range(rounds):
                await stage.more_arrivals(chance.randint(1, 500))
                began_s = time.monotonic()
                assert await stage.stop(chance.choice(stage.nodes)) == 0
                assert time.monotonic() - began_s < 5, "nothing hangs, so nothing is waited for"
                taken_over_s = await stage.delivered(stage.oracle.ids(), within_s=60)
                assert taken_over_s < TAKEN_OVER_S
                await stage.start_node()
        await stage.judge(duplicates_at_most=0)
