"""What one node, call, answer or transaction does must not keep the others from going on."""

import asyncio
import pathlib

import asyncpg
import pytest

from hookline.errors import HooklineError
from hookline.v1.delivery_pb2 import DELIVERY_STATE_PENDING
from hookline.v1.delivery_service_pb2 import ListDeliveriesRequest
from hookline.v1.event_pb2 import Event
from hookline.v1.operations_service_pb2 import GetStatusRequest
from tests.faults.cluster import cluster
from tests.faults.conftest import IS_LONG
from tests.faults.publishing import TENANT
from tests.faults.scene import PATIENT_S, scene, shared
from tests.frozen import frozen
from tests.pipeline.rival import rival
from tests.waiting import PATIENCE_S, until

pytestmark = pytest.mark.timeout(1_800)

PATIENT_STATEMENT_S = "300"
"""So long that no session finds out within a test that its server is frozen, and connects anew."""


async def test_delivery_for_another_node_is_found_although_notifications_are_lost(
    tmp_path: pathlib.Path,
) -> None:
    async with (
        cluster() as postgres,
        scene(postgres.url, tmp_path, HOOKLINE_STATEMENT_TIMEOUT_S=PATIENT_STATEMENT_S) as stage,
    ):
        await shared(stage, 2)
        sessions = await postgres.freeze_all("hookline notify")
        assert len(sessions) == 2
        with frozen(*sessions):
            for node in stage.nodes:
                events = [Event(type=name, json_data="{}") for name in stage.event_types]
                results = await stage.client_of(node).publish(TENANT, events, timeout_s=PATIENT_S)
                stage.oracle.acknowledge([result.name for result in results])
                await stage.delivered(stage.oracle.ids(), within_s=PATIENCE_S)
        await stage.judge(duplicates_at_most=0)


async def test_a_call_that_poisons_its_statement_is_refused_alone(
    database_url: str, tmp_path: pathlib.Path
) -> None:
    async with scene(database_url, tmp_path, nodes=1, subscriptions=1) as stage:
        await stage.rows("ALTER TABLE events ADD CHECK (subject <> 'poison')")
        (client,) = stage.clients()
        await stage.publish(["fault.n0"])

        async def publish(subject: str) -> str:
            event = Event(type="fault.n0", json_data="{}", subject=subject)
            (result,) = await client.publish(TENANT, [event], timeout_s=PATIENT_S)
            return result.name

        async with rival(database_url) as blocker:
            await blocker.execute("LOCK TABLE events IN SHARE MODE")
            # With GetStatus no more than a connection may have streams: beyond that one is refused.
            subjects = ["first", *(["next"] * 45), "poison", *(["next"] * 45)]
            first, *others = [asyncio.ensure_future(publish(subject)) for subject in subjects]
            poison = others.pop(45)
            await stage.waiting_backend("hookline publish")
            # Answered after them, so by then they all wait for their turn.
            await client.operations.GetStatus(GetStatusRequest())
        with pytest.raises(HooklineError) as refused:
            await poison
        assert refused.value.reason == "INTERNAL", "a constraint is ours, and nothing to repeat"
        stage.oracle.acknowledge(await asyncio.gather(first, *others))
        await stage.judge(duplicates_at_most=0)


async def test_an_answer_that_poisons_its_record_is_visible_and_not_asked_for_again(
    database_url: str, tmp_path: pathlib.Path
) -> None:
    async with scene(database_url, tmp_path, nodes=1, subscriptions=1) as stage:
        await stage.rows("ALTER TABLE attempts ADD CHECK (http_status <> 418)")
        target = stage.target
        target.is_holding = True
        await stage.publish(["fault.n0"], 50)
        await until(lambda: len(target.held) == 50, "all are on the wire")
        poisonous = target.held[20].webhook_id
        target.status = lambda request: 418 if request.webhook_id == poisonous else 200
        async with rival(database_url) as blocker:
            await blocker.fetch("SELECT FROM pending_deliveries FOR UPDATE")
            target.let_go()
            await stage.waiting_backend("hookline record")
        await until(
            lambda: are_recorded(database_url, 49), "the other rows of its batch are recorded"
        )
        request = ListDeliveriesRequest(tenant=TENANT, states=[DELIVERY_STATE_PENDING])
        (left,) = (await stage.clients()[0].deliveries.ListDeliveries(request)).deliveries
        assert left.event.endswith(poisonous)
        await stage.publish(["fault.n0"], 50)
        await until(lambda: are_recorded(database_url, 99), "its lane goes on")
        assert target.duplicates == 0


async def are_recorded(url: str, count: int) -> bool:
    """Whether so many deliveries are in history."""
    connection = await asyncpg.connect(url)
    try:
        return bool(await connection.fetchval("SELECT count(*) = $1 FROM deliveries", count))
    finally:
        await connection.close()


async def test_a_transaction_held_open_slows_nothing_and_the_hot_table_stays_small(
    database_url: str, tmp_path: pathlib.Path
) -> None:
    count = 50_000 if IS_LONG else 2_000
    async with scene(database_url, tmp_path, nodes=1, subscriptions=4) as stage:
        async with stage.publishing():
            await stage.more_arrivals(count)
        await stage.recorded()
        before_b = await hot_table_b(database_url)
        async with rival(database_url) as idler:
            await idler.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            await idler.fetch("SELECT FROM tenants")
            async with stage.publishing():
                await stage.more_arrivals(count)
            await stage.recorded()
            held_b = await hot_table_b(database_url)
        assert held_b - before_b <= 200 * count
        await stage.rows("VACUUM pending_deliveries")
        async with stage.publishing():
            await stage.more_arrivals(count)
        await stage.judge(duplicates_at_most=0)
        assert await hot_table_b(database_url) <= held_b * 1.2, "what was used is used again"


async def hot_table_b(url: str) -> int:
    """The bytes of the hot table, without its indexes."""
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval("SELECT pg_table_size('pending_deliveries')"))
    finally:
        await connection.close()
