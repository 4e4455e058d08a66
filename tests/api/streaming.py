"""A publish stream for tests, and observers of its server side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc

from hookline.v1.event_pb2 import Event
from hookline.v1.event_service_pb2 import StreamPublishEventsRequest, StreamPublishEventsResponse
from hookline.v1.event_service_pb2_grpc import EventServiceStub
from hookline.v1.operations_service_pb2 import GetStatusRequest
from hookline_service.domain.event import NewEvent
from hookline_service.pipeline.publishing.group import Published
from tests.api.conftest import Api
from tests.pipeline.rival import STALL, rival
from tests.waiting import until

METHOD = "hookline.v1.EventService/StreamPublishEvents"
WITHIN_S = 20.0


class Stream:
    """A StreamPublishEvents call; messages are numbered from 1 by default."""

    def __init__(self, channel: grpc.aio.Channel, timeout_s: float | None = None) -> None:
        self.call: Any = EventServiceStub(channel).StreamPublishEvents(timeout=timeout_s)
        self._sequence = 0

    async def send(
        self, *events: Event, tenant: str = "tenants/acme", sequence: int | None = None
    ) -> None:
        self._sequence += 1
        await self.call.write(
            StreamPublishEventsRequest(
                sequence=self._sequence if sequence is None else sequence,
                tenant=tenant,
                events=events,
            )
        )

    async def answer(self) -> StreamPublishEventsResponse:
        """Return the next answer; fails if the stream has ended."""
        async with asyncio.timeout(WITHIN_S):
            answer = await self.call.read()
        assert isinstance(answer, StreamPublishEventsResponse), f"it ended: {answer}"
        return answer

    async def answers(self, count: int) -> dict[int, StreamPublishEventsResponse]:
        """Return the next `count` answers by sequence."""
        found = [await self.answer() for _ in range(count)]
        by_sequence = {answer.sequence: answer for answer in found}
        assert len(by_sequence) == count
        return by_sequence

    async def finish(self) -> None:
        """Half-close the stream; asserts that no answer is left and that it ends with OK."""
        await self.call.done_writing()
        await self.ended()

    async def ended(self) -> None:
        """Read the stream to its end; raises `AioRpcError` unless its status is OK."""
        async with asyncio.timeout(WITHIN_S):
            assert await self.call.read() is grpc.aio.EOF
            assert await self.call.code() is grpc.StatusCode.OK


class Submitted:
    """Counts the messages that streams submit to the node's publisher."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._submit = api.rig.publisher.submit
        self.count = 0
        setattr(api.rig.publisher, "submit", self._counted)  # noqa: B010 - mypy takes it for a method

    async def _counted(
        self, tenant_id: str, events: Sequence[NewEvent], stream: object | None = None
    ) -> asyncio.Future[list[Published]]:
        self.count += 1
        return await self._submit(tenant_id, events, stream)

    async def when_steady(self) -> int:
        """Return the count once the server has stopped reading for many turns of the event loop."""
        rounds, before = 0, -1

        async def is_steady() -> bool:
            nonlocal rounds, before
            await self._api.operations.GetStatus(GetStatusRequest())
            rounds = rounds + 1 if self.count == before else 0
            before = self.count
            return rounds == 10

        await until(is_steady, "the server reads no more")
        return self.count


@asynccontextmanager
async def uncommitted(api: Api) -> AsyncIterator[None]:
    """Block all commits inside the context."""
    async with rival(api.rig.url) as other:
        await other.execute(STALL)
        yield
        await other.execute("COMMIT")


async def stored(api: Api) -> list[bytes]:
    """Return the data of all events, in publish order."""
    rows = await api.rig.database.fetch("SELECT data FROM events ORDER BY ordinal")
    return [row["data"] for row in rows]
