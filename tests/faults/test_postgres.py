"""Postgres crashes, its backends die or freeze, it has no connection left: nothing is lost."""

import asyncio
import os
import pathlib
import random
import signal
import time
from contextlib import suppress

import asyncpg
import pytest

from hookline import HooklineClient
from hookline.errors import DeadlineExceededError, UnavailableError
from hookline.v1.event_pb2 import Event
from hookline.v1.event_service_pb2 import PublishEventsRequest
from hookline.v1.operations_service_pb2 import GetStatusRequest
from tests.faults.cluster import Cluster, cluster
from tests.faults.conftest import IS_LONG
from tests.faults.publishing import TENANT
from tests.faults.scene import ONE_TRY_S, Scene, scene, shared
from tests.frozen import frozen
from tests.pipeline.rival import rival
from tests.waiting import until

pytestmark = pytest.mark.timeout(1_800)

NODES = 2
MAX_IN_FLIGHT = 100
SHORT_LEASE_S = 4.0
BUSY = [f"hookline {name}" for name in ("publish", "record", "refill", "changes")]
POOL = "hookline calls"
PATH_POOL = "hookline path"
BURST = 16
"""More calls at once than a pool has connections."""
SELDOM = ["hookline ownership", "hookline notify"]
"""Sessions whose next statement, by which they notice, comes after seconds."""


def call() -> PublishEventsRequest:
    """A call of a caller that does not repeat."""
    return PublishEventsRequest(tenant=TENANT, events=[Event(type="fault.n0", json_data="{}")])


async def refusal(stage: Scene) -> UnavailableError:
    """Return the error of such a caller, once the database is away.

    A call that still met a backend is answered, or waits until its outcome can be looked up.
    """
    for _ in range(15):
        try:
            await stage.clients()[0].events.PublishEvents(call(), timeout=ONE_TRY_S)
        except UnavailableError as refused:
            return refused
        except DeadlineExceededError:
            continue
    raise AssertionError("the call was not refused")


async def test_postgres_crashes_under_load_and_nothing_acknowledged_is_lost(
    tmp_path: pathlib.Path, rounds: int, chance: random.Random
) -> None:
    async with cluster() as postgres, scene(postgres.url, tmp_path) as stage:
        await shared(stage, 2)
        async with stage.publishing():
            for round_ in range(rounds):
                await stage.more_arrivals(chance.randint(1, 500))
                await postgres.crash([signal.SIGQUIT, signal.SIGKILL][round_ % 2])
                refused = await refusal(stage)
                assert refused.reason == "DATABASE_UNAVAILABLE"
                await postgres.start()
                await stage.delivered(stage.oracle.ids(), within_s=60)
        # What was answered meanwhile was recorded after, and not sent again.
        await stage.judge(duplicates_at_most=0)


async def test_nodes_whose_leases_ended_while_postgres_was_away_begin_anew(
    tmp_path: pathlib.Path,
) -> None:
    async with (
        cluster() as postgres,
        scene(
            postgres.url,
            tmp_path,
            HOOKLINE_LEASE_S=str(SHORT_LEASE_S),
            HOOKLINE_MAX_IN_FLIGHT=str(MAX_IN_FLIGHT),
        ) as stage,
    ):
        await shared(stage, 2)
        async with stage.publishing():
            await stage.more_arrivals(200)
            await postgres.crash()
            ends_at_s = time.monotonic() + SHORT_LEASE_S
            await until(lambda: time.monotonic() > ends_at_s, "the leases end")
            await postgres.start()
            await stage.delivered(stage.oracle.ids(), within_s=60)
            await stage.more_arrivals(200)
        await stage.judge(duplicates_at_most=2 * MAX_IN_FLIGHT)


async def test_sessions_whose_backends_are_killed_under_load_are_there_again(
    tmp_path: pathlib.Path, rounds: int
) -> None:
    async with cluster() as postgres, scene(postgres.url, tmp_path) as stage:
        await shared(stage, NODES)
        await stage.subscribe_until_all_nodes_deliver()  # one without work opens no session anew
        async with stage.publishing():
            await stage.more_arrivals(100)
            for name in (*BUSY, PATH_POOL, *SELDOM) * (rounds // 3):
                old = set(await postgres.backends(name))
                await stage.rows(
                    "SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS pid", old
                )
                await until(
                    lambda name=name, old=old: are_anew(postgres, name, old), f"{name}, twice again"
                )
            await stage.more_arrivals(100)
        await stage.judge(duplicates_at_most=0)


async def are_anew(postgres: Cluster, name: str, old: set[int]) -> bool:
    """Whether each session of a name has another backend than before.

    A pool may have had more than it needs; one for each node is what it comes back to.
    """
    now = set(await postgres.backends(name))
    return len(now) >= min(len(old), NODES) and not now & old


async def test_sessions_whose_backends_freeze_under_load_get_others(
    tmp_path: pathlib.Path, rounds: int
) -> None:
    async with (
        cluster() as postgres,
        scene(postgres.url, tmp_path, HOOKLINE_STATEMENT_TIMEOUT_S="1") as stage,
    ):
        await shared(stage, 2)
        async with stage.publishing():
            await stage.more_arrivals(100)
            for name in (BUSY + SELDOM if IS_LONG else BUSY) * (rounds // 3):
                with frozen(pid := await postgres.freeze(name)):
                    await until(
                        lambda name=name: has_another(postgres, name),
                        f"{name} has another backend",
                    )
                    await stage.more_arrivals(100)
                await until(lambda pid=pid: is_gone(postgres, pid), "the old one has ended")
            for _ in range(rounds // 3):
                with frozen(*(pids := await postgres.freeze_all(POOL))):
                    for client in stage.clients():
                        await until(lambda client=client: is_refused(client), "a call meets one")
                        await until(lambda client=client: is_answered(client), "others are served")
                    await stage.more_arrivals(100)
                await until(lambda pids=pids: are_given_up(postgres, pids), "some have ended")
            await stage.more_arrivals(100)
        await stage.judge(duplicates_at_most=0)


async def has_another(postgres: Cluster, name: str) -> bool:
    """Whether a session has a backend beside the frozen one; there are two nodes."""
    return len(await postgres.backends(name)) > NODES


async def is_refused(client: HooklineClient) -> bool:
    """Whether one of many calls at once is: a pool hands out all that it has, the frozen too."""
    calls = [client.operations.GetStatus(GetStatusRequest()) for _ in range(BURST)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    return any(isinstance(answer, UnavailableError) for answer in answers)


async def is_answered(client: HooklineClient) -> bool:
    """Whether a call is; it may still meet a frozen one, and is refused."""
    with suppress(UnavailableError):
        await client.operations.GetStatus(GetStatusRequest())
        return True
    return False


async def are_given_up(postgres: Cluster, pids: set[int]) -> bool:
    """Whether as many of the pools' frozen backends have ended as there are nodes."""
    return len(pids - (await postgres.backends()).keys()) >= NODES


async def is_gone(postgres: Cluster, pid: int) -> bool:
    """Whether a backend has ended."""
    return pid not in await postgres.backends()


async def test_a_publisher_whose_backend_is_frozen_stores_by_another_connection_and_once(
    tmp_path: pathlib.Path,
) -> None:
    async with (
        cluster() as postgres,
        scene(postgres.url, tmp_path, nodes=1, HOOKLINE_STATEMENT_TIMEOUT_S="2") as stage,
    ):
        await stage.publish(["fault.n0"])
        with frozen(await postgres.freeze("hookline publish")):
            answer = await stage.clients()[0].events.PublishEvents(call(), timeout=60)
            stage.oracle.acknowledge([result.name for result in answer.results])
        # The frozen backend wakes and runs what it was sent: it finds another epoch.
        await stage.judge(duplicates_at_most=0)


async def are_many(postgres: Cluster, name: str) -> bool:
    """Whether a session has more than one backend."""
    return len(await postgres.backends(name)) > 1


async def test_a_record_whose_backend_freezes_in_its_midst_is_written_once_and_sent_once(
    tmp_path: pathlib.Path,
) -> None:
    async with (
        cluster() as postgres,
        scene(postgres.url, tmp_path, nodes=1, HOOKLINE_STATEMENT_TIMEOUT_S="1") as stage,
    ):
        stage.target.is_holding = True
        await stage.publish(stage.event_types, 20)
        await until(lambda: len(stage.target.held) == stage.oracle.count, "all are on the wire")
        async with rival(postgres.url) as blocker:
            await blocker.fetch("SELECT FROM pending_deliveries FOR UPDATE")
            stage.target.let_go()
            pid = await stage.waiting_backend("hookline record")
            os.kill(pid, signal.SIGSTOP)
        with frozen(pid):
            await until(lambda: are_many(postgres, "hookline record"), "it is written again")
            await stage.publish(stage.event_types)
            await stage.delivered(stage.oracle.ids(), within_s=60)
        await stage.judge(duplicates_at_most=0)


async def test_without_a_connection_publishing_is_refused_before_the_commit_and_recovers(
    tmp_path: pathlib.Path,
) -> None:
    async with (
        cluster(max_connections="60") as postgres,
        scene(postgres.url, tmp_path, nodes=1, HOOKLINE_LEASE_S="60") as stage,
    ):
        async with stage.publishing():
            await stage.more_arrivals(100)
            async with postgres.crowded() as foreign:
                await until(
                    lambda: is_crowded_out(foreign), "foreign sessions hold every connection"
                )
                refused = await refusal(stage)
                assert refused.reason == "DATABASE_UNAVAILABLE"
                stored = await foreign.fetchval("SELECT count(*) FROM events")
                assert (await refusal(stage)).reason == "DATABASE_UNAVAILABLE"
                assert await foreign.fetchval("SELECT count(*) FROM events") == stored
            await stage.more_arrivals(100)
        await stage.judge(duplicates_at_most=0)


async def is_crowded_out(foreign: "asyncpg.Connection[asyncpg.Record]") -> bool:
    """End Hookline's connections; return whether none was left and foreign ones hold all."""
    ((ended, is_full),) = await foreign.fetch(
        """SELECT count(*) FILTER (WHERE application_name LIKE 'hookline %'
                                   AND pg_terminate_backend(pid)),
                  count(*) FILTER (WHERE application_name = 'foreign')
                      = current_setting('max_connections')::int
           FROM pg_stat_activity"""
    )
    return is_full and not ended
