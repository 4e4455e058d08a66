"""SIGSTOP of a node beyond its lease, then SIGCONT: the others take over, and it acts no more."""

import pathlib
import random
import signal
import uuid

import pytest

from tests.faults.conftest import long_only
from tests.faults.resolver import HOST, FaultyResolver
from tests.faults.scene import Scene, node_id_of, scene, shared
from tests.faults.target import Request
from tests.waiting import until

pytestmark = pytest.mark.timeout(1_800)

SUBSCRIPTIONS, EACH, WIDTH = 8, 100, 64
LATER = 16
MAX_IN_FLIGHT = 100


async def test_a_node_that_wakes_after_its_lease_records_nothing_and_sends_nothing_more(
    database_url: str, tmp_path: pathlib.Path
) -> None:
    async with scene(
        database_url, tmp_path, subscriptions=SUBSCRIPTIONS, HOOKLINE_LEASE_S="4"
    ) as stage:
        await shared(stage, 2)
        frozen, other = (node_id_of(node) for node in stage.nodes)
        target = stage.target
        target.is_holding = True
        await stage.publish(stage.event_types, EACH)
        on_the_wire = SUBSCRIPTIONS * WIDTH
        await until(lambda: target.arrivals == on_the_wire, "as many are on the wire as may be")
        theirs = await lanes_of(stage, frozen)

        process = stage.nodes.pop(0).process
        process.send_signal(signal.SIGSTOP)
        sent_anew = theirs * WIDTH
        await until(lambda: target.duplicates == sent_anew, "the other sends them")
        assert await lanes_of(stage, other) == SUBSCRIPTIONS

        process.send_signal(signal.SIGCONT)
        await until(lambda: is_back(stage, {frozen, other}), "it is back, under a new id")
        first_of: dict[str, Request] = {}
        for request in target.held:
            first_of.setdefault(request.webhook_id, request)
        again = {request.webhook_id for request in target.held if request not in first_of.values()}
        assert len(again) == sent_anew
        for webhook_id in again:
            first_of[webhook_id].answer(500)
        # What it makes of these answers, it has made by the time that it records later ones.
        target.is_holding = False
        await stage.subscribe(LATER)
        await stage.publish(stage.event_types[SUBSCRIPTIONS:])
        await until(lambda: has_recorded(stage, {frozen, other}), "it sends and records new ones")

        assert target.duplicates == sent_anew
        target.held = [
            request for request in target.held if first_of[request.webhook_id] is not request
        ] + [request for name, request in first_of.items() if name not in again]
        target.let_go()
        await stage.recorded()
        assert await stage.value("SELECT count(*) FROM attempts") == 0, "a late 500 was recorded"
        await stage.judge(duplicates_at_most=sent_anew)


async def test_a_request_that_waits_for_its_connection_is_not_sent_once_the_lease_was_lost(
    database_url: str, tmp_path: pathlib.Path
) -> None:
    resolver = FaultyResolver(tmp_path)
    async with scene(
        database_url,
        tmp_path,
        nodes=1,
        subscriptions=0,
        HOOKLINE_LEASE_S="4",
        **resolver.environment,
    ) as stage:
        stage.target.host = HOST
        await stage.subscribe(1)
        resolver.hangs()
        await stage.publish(["fault.n0"])
        (frozen,) = stage.nodes
        await until(lambda: resolver.askers() == [frozen.process.pid], "it asks for the address")
        frozen.signal(signal.SIGSTOP)
        other = await stage.start_node()
        await until(lambda: other.process.pid in resolver.askers(), "the other has taken over")
        frozen.signal(signal.SIGCONT)
        await until(
            lambda: is_back(stage, {node_id_of(node) for node in stage.nodes}), "it is back"
        )
        resolver.works()
        await stage.judge(duplicates_at_most=0)


async def lanes_of(stage: Scene, node_id: uuid.UUID) -> int:
    """How many subscriptions a node owns."""
    count = await stage.value(
        """SELECT count(*) FROM subscriptions JOIN bucket_leases USING (bucket)
           WHERE node_id = $1""",
        node_id,
    )
    assert isinstance(count, int)
    return count


async def is_back(stage: Scene, known: set[uuid.UUID]) -> bool:
    """Whether a node owns buckets that is none of these."""
    rows = await stage.rows("SELECT DISTINCT node_id FROM bucket_leases JOIN nodes USING (node_id)")
    return bool({row["node_id"] for row in rows} - known)


async def has_recorded(stage: Scene, known: set[uuid.UUID]) -> bool:
    """Whether a delivery is in history whose owner is none of these."""
    rows = await stage.rows(
        """SELECT DISTINCT node_id FROM deliveries
           JOIN subscriptions USING (subscription_uid) JOIN bucket_leases USING (bucket)"""
    )
    return bool({row["node_id"] for row in rows} - known)


@long_only
async def test_nodes_that_freeze_at_random_moments_under_load_lose_and_double_nothing_more(
    database_url: str, tmp_path: pathlib.Path, chance: random.Random
) -> None:
    rounds = 10
    async with scene(
        database_url,
        tmp_path,
        HOOKLINE_LEASE_S="4",
        HOOKLINE_MAX_IN_FLIGHT=str(MAX_IN_FLIGHT),
    ) as stage:
        await shared(stage, 2)
        async with stage.publishing():
            for _ in range(rounds):
                await stage.more_arrivals(chance.randint(1, 500))
                frozen = chance.choice(stage.nodes)
                frozen.signal(signal.SIGSTOP)
                await stage.delivered(stage.oracle.ids(), within_s=60)
                frozen.signal(signal.SIGCONT)
                await shared(stage, 2)
        await stage.judge(duplicates_at_most=rounds * MAX_IN_FLIGHT)
