"""Order by key, while nodes are killed under load and others take over. Rule 17."""

from __future__ import annotations

import asyncio
import itertools
import pathlib
import random
from collections import defaultdict

import pytest

from hookline.v1.event_pb2 import Event
from hookline.v1.subscription_service_pb2 import CreateSubscriptionRequest
from tests.faults.publishing import REPEATED, TENANT
from tests.faults.scene import Scene, scene, shared
from tests.faults.target import Request
from tests.waiting import until

pytestmark = pytest.mark.timeout(1_800)

KEYS = 12
SUBSCRIPTIONS = 4
BACKLOG = 20
"""Events of a key that may be published and not yet delivered everywhere."""


class Journal:
    """What was published by key, and in which order each subscription got it first."""

    def __init__(self, stage: Scene, chance: random.Random) -> None:
        self._stage = stage
        self._chance = chance
        self.place_of: dict[str, tuple[str, int]] = {}
        """The key and number of an event, by its id."""
        self.came: dict[str, list[str]] = defaultdict(list)
        """The ids that a path got, each once."""
        self.published: dict[str, int] = defaultdict(int)
        self.is_ending = False
        stage.target.on_request = self._note
        stage.target.status = self._answer

    def _note(self, request: Request) -> None:
        if request.webhook_id not in self.came[request.path]:
            self.came[request.path].append(request.webhook_id)

    def _answer(self, _request: Request) -> int:
        return 503 if self._chance.random() < 0.1 else 200

    async def publish_on(self, key: str) -> None:
        """Events of one key, each once the one before is acknowledged, at whichever node."""
        for number in itertools.count():
            if self.is_ending:
                return
            await until(lambda: self._may_publish(key) or self.is_ending, "more may be published")
            event = Event(
                type="entry.made",
                json_data="{}",
                ordering_key=key,
                idempotency_key=f"{key}-{number}",
            )
            name = await self._publish(event)
            self._stage.oracle.acknowledge([name])
            self.place_of[name.rpartition("/")[2]] = (key, number)
            self.published[key] += 1

    async def _publish(self, event: Event) -> str:
        while True:
            clients = self._stage.clients()
            try:
                (result,) = await self._chance.choice(clients).publish(TENANT, [event])
            except REPEATED:
                continue
            return result.name

    def _may_publish(self, key: str) -> bool:
        least = min((len(ids) for ids in self.came.values()), default=0)
        return self.published[key] * KEYS - least < BACKLOG * KEYS

    def disorder(self) -> list[tuple[str, str, list[int]]]:
        """The paths and keys whose events did not come in the order in which they were made."""
        found = []
        for path, ids in self.came.items():
            numbers: dict[str, list[int]] = defaultdict(list)
            for webhook_id in ids:
                key, number = self.place_of[webhook_id]
                numbers[key].append(number)
            found += [
                (path, key, order)
                for key, order in numbers.items()
                if order != list(range(self.published[key]))
            ]
        return found


async def subscribe(stage: Scene) -> None:
    for number in range(SUBSCRIPTIONS):
        request = CreateSubscriptionRequest(tenant=TENANT, subscription_id=f"ledger-{number}")
        request.subscription.event_types.append("entry.*")
        request.subscription.http.url = stage.target.url(f"/ledger-{number}")
        request.subscription.ordered = True
        request.subscription.retry_policy.max_attempts = 50
        request.subscription.retry_policy.min_backoff.FromMilliseconds(50)
        request.subscription.retry_policy.max_backoff.FromMilliseconds(100)
        await stage.clients()[0].subscriptions.CreateSubscription(request)


async def test_each_key_keeps_its_order_while_nodes_are_killed(
    database_url: str,
    tmp_path: pathlib.Path,
    rounds: int,
    lease_s: float,
    chance: random.Random,
) -> None:
    async with scene(
        database_url, tmp_path, subscriptions=0, HOOKLINE_LEASE_S=str(lease_s)
    ) as stage:
        await shared(stage, 2)
        await subscribe(stage)
        journal = Journal(stage, chance)
        publishing = asyncio.gather(*(journal.publish_on(f"account-{n}") for n in range(KEYS)))
        for _ in range(rounds):
            await stage.more_arrivals(chance.randint(50, 300))
            await stage.kill(chance.choice(stage.nodes))
            acknowledged = stage.oracle.ids()
            await stage.delivered(acknowledged, within_s=60)
            await stage.start_node()
        journal.is_ending = True
        await publishing

        await stage.recorded(within_s=60)

        assert len(journal.came) == SUBSCRIPTIONS
        assert journal.disorder() == []
        states = await stage.rows("SELECT DISTINCT state FROM deliveries")
        assert [row["state"] for row in states] == ["SUCCEEDED"]
