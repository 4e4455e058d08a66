"""Load: publishers that never stop asking, as a careful client does.

Each event has an idempotency key. A call that is refused as UNAVAILABLE, or not answered in time,
is made again with the same keys, at the next node; what was answered OK goes to the oracle.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections import Counter
from collections.abc import Callable
from typing import Self

from hookline import HooklineClient
from hookline.errors import (
    AbortedError,
    DeadlineExceededError,
    ResourceExhaustedError,
    UnavailableError,
)
from hookline.v1.event_pb2 import Event
from tests.faults.oracle import Oracle
from tests.waiting import until

TENANT = "tenants/default"
PATIENCE_S = 120.0
REPEATED = (AbortedError, DeadlineExceededError, ResourceExhaustedError, UnavailableError)


class Publishers:
    """Several loops that publish while inside; leaving waits until each has been answered."""

    def __init__(
        self,
        clients: Callable[[], list[HooklineClient]],
        oracle: Oracle,
        arrived: Counter[str],
        *,
        event_types: list[str],
        loops: int = 4,
        batch: int = 10,
        backlog: int = 400,
    ) -> None:
        """`clients` are those of the nodes that are there now; `arrived` counts what was delivered.

        `backlog` is how many acknowledged events may wait for their delivery before the next call.
        """
        self._clients = clients
        self._oracle = oracle
        self._arrived = arrived
        self._types = itertools.cycle(event_types)
        self._loops = loops
        self._batch = batch
        self._backlog = backlog
        self._is_ending = False
        self._tasks: list[asyncio.Task[None]] = []
        self.names: dict[str, str] = {}
        """The event's name for each key that was acknowledged."""
        self.repeats = 0
        """Calls that had to be made again."""
        self.refusals: Counter[type[Exception]] = Counter()
        """What they were refused with."""
        self._published_before = oracle.count
        self._arrived_before = len(arrived)

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._publish_on(number)) for number in range(self._loops)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_ending = True
        await asyncio.gather(*self._tasks)

    async def _publish_on(self, number: int) -> None:
        for turn in itertools.count(number):
            await until(self._may_publish, "the deliveries catch up", within_s=PATIENCE_S)
            if self._is_ending:
                return
            await self._publish(turn)

    def _may_publish(self) -> bool:
        published = self._oracle.count - self._published_before
        return (
            self._is_ending
            or published - (len(self._arrived) - self._arrived_before) <= self._backlog
        )

    async def _publish(self, turn: int) -> None:
        keys = [secrets.token_urlsafe(12) for _ in range(self._batch)]
        events = [
            Event(type=next(self._types), json_data=f'{{"key":"{key}"}}', idempotency_key=key)
            for key in keys
        ]
        give_up_at_s = time.monotonic() + PATIENCE_S
        for number in itertools.count(turn):
            await until(lambda: bool(self._clients()), "a node is there", within_s=PATIENCE_S)
            clients = self._clients()
            try:
                results = await clients[number % len(clients)].publish(TENANT, events)
            except REPEATED as error:
                self.refusals[type(error)] += 1
                assert time.monotonic() < give_up_at_s, "the service did not come back"
                self.repeats += 1
            else:
                names = [result.name for result in results]
                self.names |= zip(keys, names, strict=True)
                self._oracle.acknowledge(names)
                return
