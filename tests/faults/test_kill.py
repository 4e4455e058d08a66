"""kill -9 of a node: at random moments under load, and at the two worst ones."""

import asyncio
import pathlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from hookline.errors import UnavailableError
from hookline.v1.event_pb2 import Event
from hookline.v1.event_service_pb2 import PublishEventsRequest
from hookline_service.domain.ids import format_type_id
from tests.faults.publishing import TENANT
from tests.faults.scene import PATIENT_S, Scene, scene, shared
from tests.pipeline.rival import rival
from tests.pipeline.wire import Wire
from tests.waiting import until

pytestmark = pytest.mark.timeout(1_800)

MAX_IN_FLIGHT = 100
PROMISED_S = 15.0
"""docs/guarantees.md, 6."""


async def test_nodes_killed_at_random_moments_lose_nothing_and_their_work_goes_on(
    database_url: str,
    tmp_path: pathlib.Path,
    rounds: int,
    lease_s: float,
    chance: random.Random,
) -> None:
    async with scene(
        database_url,
        tmp_path,
        HOOKLINE_LEASE_S=str(lease_s),
        HOOKLINE_MAX_IN_FLIGHT=str(MAX_IN_FLIGHT),
    ) as stage:
        await shared(stage, 2)
        async with stage.publishing():
            for _ in range(rounds):
                await stage.more_arrivals(chance.randint(1, 500))
                await stage.kill(chance.choice(stage.nodes))
                acknowledged = stage.oracle.ids()
                taken_over_s = await stage.delivered(acknowledged, within_s=60)
                assert taken_over_s <= (PROMISED_S if lease_s >= 10 else 10)
                await stage.start_node()
        await stage.judge(duplicates_at_most=rounds * MAX_IN_FLIGHT)


@asynccontextmanager
async def record_that_waits(stage: Scene, database_url: str) -> AsyncIterator[int]:
    """An event has been answered, and its record waits for a lock while inside: its backend."""
    stage.target.is_holding = True
    await stage.publish(["fault.n0"])
    await until(lambda: len(stage.target.held) == 1, "the request is on the wire")
    async with rival(database_url) as blocker:
        await blocker.fetch("SELECT FROM pending_deliveries FOR UPDATE")
        stage.target.let_go()
        yield await stage.waiting_backend("hookline record")


async def test_killed_after_the_2xx_and_before_the_record_an_event_comes_twice_with_one_id(
    database_url: str, tmp_path: pathlib.Path
) -> None:
    async with scene(database_url, tmp_path, nodes=1, HOOKLINE_LEASE_S="4") as stage:
        (node,) = stage.nodes
        async with record_that_waits(stage, database_url) as record:
            await stage.kill(node)
            # Else it would carry on without the client that is gone, once the row is free.
            await stage.rows("SELECT pg_terminate_backend($1, 10000)", record)
        await stage.start_node()
        await stage.more_arrivals(1)
        await stage.judge(duplicates_at_most=1)
        assert list(stage.target.counts.values()) == [2]


async def test_a_record_that_was_sent_is_written_although_its_node_is_killed(
    database_url: str, tmp_path: pathlib.Path
) -> None:
    async with scene(database_url, tmp_path, nodes=1, HOOKLINE_LEASE_S="4") as stage:
        (node,) = stage.nodes
        async with record_that_waits(stage, database_url):
            await stage.kill(node)
        await stage.start_node()
        await stage.judge(duplicates_at_most=0)


async def test_killed_after_the_commit_and_before_the_answer_a_retry_gets_the_same_name(
    database_url: str, tmp_path: pathlib.Path
) -> None:
    async with (
        Wire(database_url) as wire,
        scene(database_url, tmp_path, nodes=0, HOOKLINE_LEASE_S="4") as stage,
    ):
        node = await stage.start_node(wire.url)
        await stage.subscribe(1)
        event = Event(type="fault.n0", json_data='{"mark":"held back"}', idempotency_key="once")
        wire.hold_answer = b"held back"
        request = PublishEventsRequest(tenant=TENANT, events=[event])
        first = asyncio.ensure_future(
            stage.client_of(node).events.PublishEvents(request, timeout=PATIENT_S)
        )
        await wire.is_held.wait()
        (stored,) = await stage.rows("SELECT event_id FROM events")
        await stage.kill(node)
        with pytest.raises(UnavailableError):
            await first
        again = await stage.start_node()
        (result,) = await stage.client_of(again).publish(TENANT, [event], timeout_s=PATIENT_S)
        assert result.deduplicated
        assert result.name.endswith(format_type_id("evt", stored["event_id"]))
        stage.oracle.acknowledge([result.name])
        await stage.judge(duplicates_at_most=0)


async def test_a_record_that_waits_for_a_lock_does_not_keep_others_from_a_killed_nodes_work(
    database_url: str, tmp_path: pathlib.Path
) -> None:
    async with scene(database_url, tmp_path, nodes=1, HOOKLINE_LEASE_S="4") as stage:
        (node,) = stage.nodes
        async with record_that_waits(stage, database_url):
            await stage.start_node()
            await stage.kill(node)
            others = stage.event_types[1:]
            await stage.publish(others)
            await until(lambda: len(stage.target.counts) == 1 + len(others), "the others come")
        await stage.judge(duplicates_at_most=1)
