"""Ordered subscriptions under concurrent load and takeover: order is kept, nothing is lost.

Rule 17, as a property: many keys, several publishing nodes, targets that fail, a node that is
killed or stopped meanwhile, and another that takes over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from random import Random

import pytest

from tests.pipeline.dispatch.ordering import arrivals, first_arrivals, keyed
from tests.pipeline.frozen import freeze, run_out
from tests.pipeline.pair import shared, uid_of
from tests.pipeline.rig import Receiver, Rig, running
from tests.waiting import until

KEYS = 30
EVENTS = 600
SUBSCRIPTIONS = 3


def random_answers(seed: int, failure_rate: float) -> Callable[[str], int]:
    """Return answers that fail at random."""
    random = Random(seed)
    return lambda _: 500 if random.random() < failure_rate else 200


async def publish_all(nodes: Callable[[], Sequence[Rig]], seed: int, keys: Sequence[str]) -> None:
    """Publish the events of some keys in order, each call after the OK of the previous."""
    random = Random(seed)
    numbers = dict.fromkeys(keys, 0)
    for _ in range(EVENTS // 5):
        batch = []
        for _ in range(random.choice([1, 2, 7])):
            key = random.choice(keys)
            batch.append(keyed(key, numbers[key]))
            numbers[key] += 1
        await random.choice(nodes()).publisher.publish("acme", batch)


@pytest.mark.parametrize("ends", ["killed", "stopped"])
@pytest.mark.parametrize("seed", [1, 2])
async def test_each_key_arrives_in_publish_order_through_failures_and_takeover(
    database_url: str, ends: str, seed: int
) -> None:
    async with AsyncExitStack() as stack:
        targets = [await stack.enter_async_context(Receiver()) for _ in range(SUBSCRIPTIONS)]
        options = {"has_word": True, "lease_s": 300.0, "max_queued_jobs": 40}
        lasting, successor = [
            await stack.enter_async_context(running(database_url, seed=seed + n, **options))
            for n in (10, 20)
        ]
        leaving = Rig(database_url, seed=seed, **options)  # type: ignore[arg-type]
        await leaving.start()
        await shared(lasting, successor, leaving)
        tenant_uid = await lasting.tenant()
        for number, target in enumerate(targets):
            target.answers = random_answers(seed * 10 + number, 0.2)
            await lasting.subscription_as(
                uid_of(leaving if number < 2 else lasting),
                tenant_uid,
                target.url,
                ordered=True,
                schedule_s=[0.0] + [0.01] * 60,
                max_in_flight=[1, 8, 64][number],
            )
        nodes = [lasting, successor, leaving]
        keys = [f"key-{n}" for n in range(KEYS)]
        publishing = asyncio.gather(
            *(publish_all(lambda: nodes, seed + writer, keys[writer::3]) for writer in range(3))
        )
        await targets[0].wait_for(20)

        nodes.remove(leaving)
        if ends == "killed":
            await _kill(leaving)
            lasting.ownership.poke()
        else:
            await leaving.stop()
        await publishing

        async def is_done() -> bool:
            for rig in nodes:
                for lane in rig.lanes.all():
                    lane.pause(0.0)  # the test does not wait for open circuits
                    rig.lanes.touch(lane.subscription_uid, lane.bucket)
            return not await lasting.pending()

        await until(is_done, "all deliveries are finished", within_s=60)
        if ends == "killed":
            await leaving.stop()
        finished = await lasting.finished()
        assert {row["state"] for row in finished} == {"SUCCEEDED"}
        for target in targets:
            arrived = first_arrivals(target)
            assert (
                sum(len(numbers) for numbers in arrived.values()) == len(finished) / SUBSCRIPTIONS
            )
            for key, numbers in arrived.items():
                assert numbers == list(range(len(numbers))), key
            if ends == "stopped":
                assert _never_returns(arrivals(target))


def _never_returns(arrived: Sequence[tuple[str, int]]) -> bool:
    """Whether no key returns to an earlier event; then no event was sent twice either."""
    last: dict[str, int] = {}
    for key, number in arrived:
        if number < last.get(key, 0):
            return False
        last[key] = number
    return True


async def _kill(rig: Rig) -> None:
    """Stop renewals, reads and records, as kill -9 does; requests on the wire go on."""
    freeze(rig)
    rig.deliverer.pause()
    await run_out(rig)
