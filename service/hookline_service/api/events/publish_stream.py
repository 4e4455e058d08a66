"""StreamPublishEvents: batches one after the other, each answered for itself.

Theory of operation. One task reads, checks and queues the messages, in order; it waits for no
commit, so that many messages share one. The call's own task writes answers in the order in which
they become known. A message is under way from when it is read until its answer is written. While
the stream's messages, events or bytes under way are at a limit, or those of all streams at theirs
(`client_streams.py`), nothing is read, and gRPC's flow control holds the client. So a client that
reads no answers is held as well, and costs no more.

What ends the reading is the client (it has sent all), bytes that are no message (no sequence, so
no answer), or the node's stop. Whatever it is, what is under way is answered first; then the stream
ends, with OK or with the reason. Knows nothing of groups and commits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from hookline.v1.error_reason_pb2 import ErrorReason
from hookline.v1.event_service_pb2 import (
    PublishError,
    StreamPublishEventsRequest,
    StreamPublishEventsResponse,
)
from hookline_service.api.events.publish_batch import BatchReader, response_of
from hookline_service.api.middleware.client_streams import StreamBudget
from hookline_service.api.middleware.errors import DETAILS_KEY, interrupted, refusal_of
from hookline_service.domain.errors import Violation
from hookline_service.domain.limits import Limits
from hookline_service.pipeline.publishing.publish import Published, Publisher

MESSAGE_BYTES: Final = 512
"""What a message holds beside its bytes: objects, its part of a queue."""
ANSWER_EVENT_BYTES: Final = 128
"""What an answer holds of each event: its name, at most."""

Requests = AsyncIterator[StreamPublishEventsRequest]


@dataclass(slots=True)
class _Load:
    """Messages, what they hold, and their size on the wire."""

    messages: int = 0
    events: int = 0
    size_bytes: int = 0
    held_bytes: int = 0
    """What counts against the budget of all streams: these, and their answers."""

    def add(self, other: _Load, times: int = 1) -> None:
        self.messages += times * other.messages
        self.events += times * other.events
        self.size_bytes += times * other.size_bytes
        self.held_bytes += times * other.held_bytes


class PublishStream:
    """One stream, from its first message to its end."""

    def __init__(
        self,
        publisher: Publisher,
        batches: BatchReader,
        limits: Limits,
        budget: StreamBudget,
        caller: str,
    ) -> None:
        """`caller`: whose share of the budget its messages take."""
        self._budget = budget
        self._caller = caller
        self._publisher = publisher
        self._batches = batches
        self._limits = limits
        self._under_way = _Load()
        self._last_sequence = 0
        self._answers: deque[tuple[_Load, StreamPublishEventsResponse]] = deque()
        self._has_news = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._has_ended = False

    async def responses(self, requests: Requests) -> AsyncIterator[StreamPublishEventsResponse]:
        """The answer to each message; raises what ended the reading, if the client did not."""
        reading = asyncio.create_task(self._read(requests))
        reading.add_done_callback(lambda _: self._has_news.set())
        try:
            while True:
                self._has_news.clear()
                while self._answers:
                    load, answer = self._answers.popleft()
                    yield answer
                    self._under_way.add(load, -1)
                    self._budget.give(self._caller, load.held_bytes)
                    self._look_for_room()
                if reading.done() and not self._under_way.messages:
                    break
                await self._has_news.wait()
            await reading
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            self._has_ended = True
            self._budget.forget(self._look_for_room)
            if held := self._under_way.held_bytes:
                self._budget.give(self._caller, held)

    async def _read(self, requests: Requests) -> None:
        async for request in requests:
            events, size = len(request.events), request.ByteSize()
            load = _Load(1, events, size, size + MESSAGE_BYTES + events * ANSWER_EVENT_BYTES)
            self._under_way.add(load)
            self._budget.take(self._caller, load.held_bytes)
            self._look_for_room()
            await self._submit(request, load)
            await self._has_room.wait()

    async def _submit(self, request: StreamPublishEventsRequest, load: _Load) -> None:
        try:
            tenant_id, events = self._batches.read(request, self._check_sequence(request.sequence))
            done = await self._publisher.submit(tenant_id, events, self)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this message's answer
            self._answer(load, _refused(request.sequence, error))
        else:
            done.add_done_callback(partial(self._settled, load, request.sequence, tenant_id))

    def _check_sequence(self, sequence: int) -> list[Violation]:
        last = self._last_sequence
        if sequence > last:
            self._last_sequence = sequence
            return []
        if sequence <= 0:
            return [Violation("sequence", "must be positive")]
        return [Violation("sequence", f"must be greater than the one before, {last}")]

    def _settled(
        self, load: _Load, sequence: int, tenant_id: str, done: asyncio.Future[list[Published]]
    ) -> None:
        error = interrupted() if done.cancelled() else done.exception()
        if error is None:
            published = response_of(tenant_id, done.result())
            answer = StreamPublishEventsResponse(sequence=sequence, published=published)
        else:
            answer = _refused(sequence, error)
        self._answer(load, answer)

    def _answer(self, load: _Load, answer: StreamPublishEventsResponse) -> None:
        if self._has_ended:
            return
        if answer.HasField("error"):  # violations may be larger than what they are about
            grown = _Load(held_bytes=max(0, answer.ByteSize() - load.held_bytes))
            load.add(grown)
            self._under_way.add(grown)
            self._budget.take(self._caller, grown.held_bytes)
        self._answers.append((load, answer))
        self._has_news.set()

    def _look_for_room(self) -> None:
        load, limits = self._under_way, self._limits
        if (
            load.messages < limits.max_stream_messages
            and load.events < limits.max_stream_events
            and load.size_bytes < limits.max_stream_bytes
            and (not load.messages or self._budget.has_capacity(self._caller, self._look_for_room))
        ):
            self._has_room.set()
        else:
            self._has_room.clear()


def _refused(sequence: int, error: BaseException) -> StreamPublishEventsResponse:
    """What PublishEvents would have ended with: its status and details, as a message."""
    trailers = dict(refusal_of(error, repeatable=False).trailers)
    status = status_pb2.Status.FromString(trailers[DETAILS_KEY])
    info, bad_request, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    has_retry = _unpack(status, retry)
    _unpack(status, info)
    _unpack(status, bad_request)
    answer = PublishError(
        code=status.code,
        reason=_wire_reason(info.reason),
        message=status.message,
        retry_delay=retry.retry_delay if has_retry else None,
        metadata=info.metadata,
    )
    for fault in bad_request.field_violations:
        answer.field_violations.add(
            field=fault.field, description=fault.description, reason=_wire_reason(fault.reason)
        )
    return StreamPublishEventsResponse(sequence=sequence, error=answer)


def _unpack(status: Any, detail: Message) -> bool:  # noqa: ANN401 - google.rpc is untyped
    return any(packed.Unpack(detail) for packed in status.details)


def _wire_reason(reason: str) -> ErrorReason.ValueType:
    return ErrorReason.Value(f"ERROR_REASON_{reason}")
