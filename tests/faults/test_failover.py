"""Failover while nodes run: a synchronous standby loses nothing, an asynchronous one the tail."""

import pathlib
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import pytest

from hookline.errors import UnavailableError
from hookline.v1.event_pb2 import Event
from hookline.v1.subscription_service_pb2 import (
    CreateSubscriptionRequest,
    DeleteSubscriptionRequest,
    PauseSubscriptionRequest,
)
from hookline_service.domain.ids import EVENT_ID, format_type_id
from tests.faults.conftest import IS_LONG
from tests.faults.publishing import TENANT
from tests.faults.scene import PATIENT_S, Scene, scene, shared
from tests.faults.servers import Pair, pair
from tests.waiting import until

Answer = TypeVar("Answer")

pytestmark = pytest.mark.timeout(1_800)

ROUNDS = 10 if IS_LONG else 1
MAX_IN_FLIGHT = 100
HONOURED_S = 2.0
"""docs/guarantees.md, rule 18."""


@asynccontextmanager
async def two_nodes_on_a_pair(
    folder: pathlib.Path, *, is_synchronous: bool
) -> AsyncIterator[tuple[Pair, Scene]]:
    """Run two nodes, which share the buckets, on a primary with a standby."""
    async with (
        pair(is_synchronous=is_synchronous) as servers,
        scene(
            servers.url,
            folder,
            HOOKLINE_LEASE_S="4",
            HOOKLINE_MAX_IN_FLIGHT=str(MAX_IN_FLIGHT),
        ) as stage,
    ):
        await shared(stage, 2)
        yield servers, stage


@pytest.mark.parametrize("number", range(ROUNDS))
async def test_with_a_synchronous_standby_nothing_acknowledged_is_lost(
    tmp_path: pathlib.Path, chance: random.Random, number: int
) -> None:
    async with two_nodes_on_a_pair(tmp_path, is_synchronous=True) as (servers, stage):
        async with stage.publishing():
            await stage.more_arrivals(chance.randint(100, 600))
            kills = IS_LONG and number % 2 == 0
            if kills:
                await stage.kill(chance.choice(stage.nodes))
            await servers.fail_over()
            if kills:
                await stage.start_node()
            await stage.more_arrivals(200)
        await stage.judge(duplicates_at_most=2 * 2 * MAX_IN_FLIGHT)


@pytest.mark.parametrize("number", range(ROUNDS))
async def test_with_an_asynchronous_standby_the_tail_is_lost_and_nothing_misroutes(
    tmp_path: pathlib.Path, chance: random.Random, number: int
) -> None:
    async with two_nodes_on_a_pair(tmp_path, is_synchronous=False) as (servers, stage):
        async with stage.publishing():
            await stage.more_arrivals(chance.randint(100, 300))
        await stage.judge(duplicates_at_most=0)
        kept = stage.oracle.ids()
        await caught_up(servers)

        # What only the old primary has: s0 is gone, s8 is there, and events of both.
        await servers.cut()
        await delete(stage, "s0")
        await stage.subscribe(1)
        await stage.publish(["fault.n1", "fault.n8"], each=5)
        tail = stage.oracle.ids() - kept
        if IS_LONG and number % 2 == 0:
            await stage.kill(chance.choice(stage.nodes))
        await servers.fail_over()

        # The same epochs come again, with other subscriptions behind them.
        await patiently(lambda: delete(stage, "s1"))
        await create(stage, "s9", "fault.n9")
        delivered = await publish(stage, ["fault.n0", "fault.n9"])
        nowhere = await publish(stage, ["fault.n1", "fault.n8"])
        await stage.delivered(delivered, within_s=PATIENT_S)
        await stage.recorded(within_s=PATIENT_S)

        rows = await stage.rows("SELECT event_id FROM events")
        stored = {format_type_id(EVENT_ID, row["event_id"]) for row in rows}
        assert stored == kept | delivered | nowhere, "the tail is lost, and nothing else"
        assert not nowhere & set(stage.target.counts), "a deleted subscription was sent to"
        assert len(tail) == 10
        await pause_is_honoured(stage)


async def pause_is_honoured(stage: Scene) -> None:
    """Of many that wait behind one that hangs, none starts once the pause has been answered."""
    stage.target.is_holding = True
    await publish(stage, ["fault.n2"] * 3 * MAX_IN_FLIGHT)
    await until(lambda: bool(stage.target.held), "some are on the wire")
    client = stage.clients()[0]
    await client.subscriptions.PauseSubscription(
        PauseSubscriptionRequest(name=f"{TENANT}/subscriptions/s2")
    )
    answered_s = time.monotonic()
    await until(lambda: time.monotonic() - answered_s > HONOURED_S, "the promised time is over")
    before = stage.target.arrivals
    stage.target.let_go()
    # Another lane of the same nodes comes through, so these have turned.
    await stage.delivered(await publish(stage, ["fault.n3"]), within_s=PATIENT_S)
    assert stage.target.arrivals == before + 1


async def caught_up(servers: Pair) -> None:
    """Wait until the standby has all that the primary wrote, and shows it."""

    async def is_so() -> bool:
        ((at,),) = await servers.primary.execute("SELECT pg_current_wal_flush_lsn()::text")
        ((is_behind,),) = await servers.standby.execute(
            f"SELECT pg_last_wal_replay_lsn() < '{at}'::pg_lsn"
        )
        return not is_behind

    await until(is_so, "the standby has caught up")


async def delete(stage: Scene, subscription: str) -> None:
    await stage.clients()[0].subscriptions.DeleteSubscription(
        DeleteSubscriptionRequest(name=f"{TENANT}/subscriptions/{subscription}")
    )


async def create(stage: Scene, subscription: str, event_type: str) -> None:
    request = CreateSubscriptionRequest(tenant=TENANT, subscription_id=subscription)
    request.subscription.event_types.append(event_type)
    request.subscription.http.url = stage.target.url()
    await stage.clients()[0].subscriptions.CreateSubscription(request)


async def publish(stage: Scene, event_types: list[str]) -> set[str]:
    """The ids of one new event of each type, in one call, which is repeated until it is taken."""
    events = [
        Event(type=event_type, json_data="{}", idempotency_key=secrets.token_urlsafe(12))
        for event_type in event_types
    ]

    async def call() -> set[str]:
        results = await stage.clients()[0].publish(TENANT, events, timeout_s=PATIENT_S)
        return {result.name.rpartition("/")[2] for result in results}

    return await patiently(call)


async def patiently(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """The answer of a call that is repeated while it is refused as UNAVAILABLE."""
    answers: list[Answer] = []

    async def is_answered() -> bool:
        with suppress(UnavailableError):
            answers.append(await call())
        return bool(answers)

    await until(is_answered, "the call is answered")
    return answers[0]
