"""Publishing, refills and records at random times: nothing is sent twice, nothing is lost.

Rule 14, as a property: lanes are small, so that hand-offs are often dropped, and refills, commits,
records and operators' changes interleave in many ways.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from random import Random
from uuid import UUID

import pytest

from hookline_service.domain.ids import format_type_id
from tests.pipeline.rig import Receiver, Rig, order_created, running
from tests.waiting import until

SUBSCRIPTIONS = 7
EVENTS = 600


class RandomTarget:
    """A target that fails some requests, and counts the accepted ones of each event."""

    def __init__(self, seed: int, failure_rate: float) -> None:
        self.random = Random(seed)
        self.failure_rate = failure_rate
        self.accepted: Counter[str] = Counter()

    def __call__(self, webhook_id: str) -> int:
        if self.random.random() < self.failure_rate:
            return 500
        self.accepted[webhook_id] += 1
        return 200


async def publish_some(rig: Rig, seed: int, count: int) -> list[str]:
    """Publish in calls of random size, several of them at a time."""
    random = Random(seed)
    names: list[str] = []
    while len(names) < count:
        size = min(random.choice([1, 1, 2, 5, 30]), count - len(names))
        published = await rig.publisher.publish("acme", [order_created(n) for n in range(size)])
        names += [format_type_id("evt", one.event_id) for one in published]
        for _ in range(random.randrange(3)):
            await asyncio.sleep(0)
    return names


def is_held(rig: Rig, subscription_uid: UUID) -> bool:
    lane = rig.lanes.get(subscription_uid)
    return lane is None or not lane.sends()


async def interfere(rig: Rig, subscriptions: list[UUID], seed: int) -> None:
    """Mark lanes DIRTY, pause and resume them, and sweep, until cancelled."""
    random = Random(seed)
    while True:
        uid = random.choice(subscriptions)
        match random.randrange(5):
            case 0:
                await rig.set_state(uid, "PAUSED")
                await until(partial(is_held, rig, uid), "the pause takes effect")
                await rig.set_state(uid, "ACTIVE")
            case 1:
                rig.sweeper.sweep_soon()
            case _:
                for lane in list(rig.lanes.all()):
                    rig.lanes.touch(lane.subscription_uid, lane.bucket)
        for _ in range(random.randrange(20)):
            await asyncio.sleep(0)


@pytest.mark.parametrize("seed,failure_rate", [(1, 0.0), (2, 0.2), (3, 0.5)])
async def test_each_delivery_succeeds_exactly_once(
    database_url: str, seed: int, failure_rate: float
) -> None:
    async with running(database_url, seed=seed, max_queued_jobs=100) as rig:
        targets = [Receiver() for _ in range(SUBSCRIPTIONS)]
        answers = [
            RandomTarget(seed * 100 + number, failure_rate) for number in range(SUBSCRIPTIONS)
        ]
        tenant_uid = await rig.tenant()
        subscriptions: list[UUID] = []
        for number, (target, answer) in enumerate(zip(targets, answers, strict=True)):
            await target.__aenter__()
            target.answers = answer
            subscriptions.append(
                await rig.subscription(
                    tenant_uid,
                    target.url,
                    schedule_s=[0.0] + [0.01] * 60,
                    max_in_flight=[1, 3, 64][number % 3],
                )
            )

        interfering = asyncio.create_task(interfere(rig, subscriptions, seed))
        published = await asyncio.gather(
            *(publish_some(rig, seed + writer, EVENTS // 4) for writer in range(4))
        )
        interfering.cancel()
        await asyncio.gather(interfering, return_exceptions=True)
        for uid in subscriptions:
            await rig.set_state(uid, "ACTIVE")
        rig.changes.poke()

        async def is_done() -> bool:
            for lane in rig.lanes.all():
                lane.pause(0.0)  # the test does not wait for open circuits
                rig.lanes.touch(lane.subscription_uid, lane.bucket)
            rig.timers.poke()
            return not await rig.pending()

        await until(is_done, "all deliveries are finished", within_s=40)
        everything = {name: 1 for names in published for name in names}
        assert len(everything) == EVENTS
        for answer in answers:
            assert answer.accepted == everything
        finished = await rig.finished()
        assert Counter(row["state"] for row in finished) == {"SUCCEEDED": EVENTS * SUBSCRIPTIONS}
        attempts = await rig.attempts()
        sent = sum(len(target.ids) for target in targets)
        first_try = sum(row["attempt_count"] == 1 for row in finished)
        assert sent == len(attempts) + first_try == sum(row["attempt_count"] for row in finished)
        for target in targets:
            await target.__aexit__()
