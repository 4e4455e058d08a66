"""A pooler between nodes and Postgres: in session mode it works, in the others it is refused."""

import asyncio
import pathlib
import random

import pytest

from hookline.errors import UnavailableError
from hookline.v1.event_pb2 import Event
from hookline_service.store.connecting import UnsafeServerError
from hookline_service.store.database import Database
from tests.faults.conftest import IS_LONG
from tests.faults.pgbouncer import pooler
from tests.faults.publishing import TENANT
from tests.faults.scene import PATIENT_S, Scene, scene, shared
from tests.faults.servers import server
from tests.pipeline.rival import STALL, rival
from tests.waiting import until

pytestmark = pytest.mark.timeout(1_800)

ROUNDS = 10 if IS_LONG else 1
MAX_IN_FLIGHT = 100


async def test_in_session_mode_nothing_is_lost_and_no_event_is_stored_twice(
    tmp_path: pathlib.Path, chance: random.Random
) -> None:
    async with (
        server() as postgres,
        pooler(postgres.url, "session") as through,
        scene(
            through,
            tmp_path,
            HOOKLINE_LEASE_S="4",
            HOOKLINE_MAX_IN_FLIGHT=str(MAX_IN_FLIGHT),
            HOOKLINE_STATEMENT_TIMEOUT_S="1",
        ) as stage,
    ):
        await shared(stage, 2)
        async with stage.publishing():
            for _ in range(ROUNDS):
                await stage.more_arrivals(chance.randint(50, 300))
                await end_backends(stage)
                if IS_LONG:
                    await stage.kill(chance.choice(stage.nodes))
                    await stage.start_node()
            await stage.more_arrivals(100)
        await lose_a_publish(stage, postgres.url)
        await stage.judge(duplicates_at_most=2 * ROUNDS * MAX_IN_FLIGHT)


async def end_backends(stage: Scene) -> None:
    """End every server session of the nodes, whatever it is at."""
    await stage.rows(
        """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
           WHERE application_name LIKE 'hookline %'"""
    )


async def lose_a_publish(stage: Scene, url: str) -> None:
    """A call without a key, lost while it waits in Postgres: stored once or reported not stored.

    The pooler's process ids are its own invention: nothing may be concluded from them.
    """
    events = [Event(type="fault.n0", json_data="{}") for _ in range(2)]
    before = await stage.value("SELECT count(*) FROM events")
    async with rival(url) as other:
        await other.execute(STALL)
        call = asyncio.create_task(stage.clients()[0].publish(TENANT, events, timeout_s=PATIENT_S))
        await until(lambda: is_lost(stage), "the node has lost the answer")
        await other.execute("COMMIT")
    try:
        results = await call
    except UnavailableError:
        assert await stage.value("SELECT count(*) FROM events") == before
    else:
        stage.oracle.acknowledge([result.name for result in results])


async def is_lost(stage: Scene) -> bool:
    """Whether a publish waits whose client has asked anew since."""
    return (
        await stage.value(
            """SELECT count(*) > 1 FROM pg_stat_activity
           WHERE application_name = 'hookline publish'"""
        )
        is True
    )


@pytest.mark.parametrize("pool_mode", ["transaction", "statement"])
async def test_a_pooler_that_shares_sessions_is_refused_with_the_reason(pool_mode: str) -> None:
    async with server() as postgres, pooler(postgres.url, pool_mode) as through:
        with pytest.raises(UnsafeServerError, match="a pooler shares its sessions between clients"):
            await Database(through).check_server()
