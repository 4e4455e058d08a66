"""The receiver of the known publisher: it answers at once, and notes when each event arrived."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from hookline import HooklineClient
from hookline.v1.subscription_service_pb2 import (
    CreateSubscriptionRequest,
    DeleteSubscriptionRequest,
)
from tests.targets.http.receiver import OK, Connected, Receiver

EVENT_TYPE = "known.event"
_NUMBER = re.compile(rb'"number": ?([0-9]+)')


@dataclass
class KnownTarget:
    """What arrived, by the number in the event's data."""

    arrived_s: dict[int, float] = field(default_factory=dict)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait_for(self, numbers: set[int], at_most_s: float) -> None:
        """Wait until all of these arrived, but no longer than this."""
        try:
            async with asyncio.timeout(at_most_s):
                while not numbers <= self.arrived_s.keys():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            return

    async def serve(self, connected: Connected) -> None:
        """Take requests, over one connection."""
        while True:
            request = await connected.read_request()
            connected.receiver.requests.clear()
            if number := _NUMBER.search(request.body):
                self.arrived_s.setdefault(int(number[1]), time.monotonic())
                self._news.set()
            await connected.write(OK)


@asynccontextmanager
async def known_target(admin: HooklineClient) -> AsyncIterator[KnownTarget]:
    """A receiver that the default tenant is subscribed with, while inside."""
    target = KnownTarget()
    async with Receiver(target.serve) as receiver:
        request = CreateSubscriptionRequest(tenant="tenants/default")
        request.subscription.event_types.append(EVENT_TYPE)
        request.subscription.http.url = receiver.url()
        made = await admin.subscriptions.CreateSubscription(request)
        try:
            yield target
        finally:
            delete = DeleteSubscriptionRequest(name=made.subscription.name)
            await admin.subscriptions.DeleteSubscription(delete)
