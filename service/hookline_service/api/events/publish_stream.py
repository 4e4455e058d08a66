"""StreamPublishEvents: a stream of batches, each with its own response.

Theory of operation. One task reads, validates and submits the messages in order; it does not wait
for commits, so many messages share one group commit. The task of the call writes the responses in
the order in which they become available. A message is in flight from reading until its response is
written. While the messages, events or bytes in flight of the stream are at their limit, or those of
all streams at theirs (`client_streams.py`), nothing is read, and the flow control of gRPC applies
backpressure to the client. A client that does not read its responses gets the same backpressure.

Reading ends when the client has sent all messages, after bytes that are not a message (no sequence,
so no response), or when the node stops. In each case the messages in flight are answered first;
then the stream ends, with OK or with an error.
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
"""The memory of a message in addition to its bytes: objects, and its part of a queue."""
RESPONSE_EVENT_BYTES: Final = 128
"""The memory of an event in a response: at most its name."""

Requests = AsyncIterator[StreamPublishEventsRequest]


@dataclass(slots=True)
class _Load:
    """A number of messages, with their events, wire size and memory."""

    messages: int = 0
    events: int = 0
    size_bytes: int = 0
    held_bytes: int = 0
    """The memory that counts towards the budget of all streams, with the responses."""

    def add(self, other: _Load, times: int = 1) -> None:
        self.messages += times * other.messages
        self.events += times * other.events
        self.size_bytes += times * other.size_bytes
        self.held_bytes += times * other.held_bytes


class PublishStream:
    """One StreamPublishEvents call."""

    def __init__(
        self,
        publisher: Publisher,
        batches: BatchReader,
        limits: Limits,
        budget: StreamBudget,
        caller: str,
    ) -> None:
        """`caller`: the principal whose share of the budget the messages use."""
        self._budget = budget
        self._caller = caller
        self._publisher = publisher
        self._batches = batches
        self._limits = limits
        self._in_flight = _Load()
        self._last_sequence = 0
        self._responses: deque[tuple[_Load, StreamPublishEventsResponse]] = deque()
        self._has_response = asyncio.Event()
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._has_ended = False

    async def responses(self, requests: Requests) -> AsyncIterator[StreamPublishEventsResponse]:
        """Yield the response to each message; raise the error that ended the reading, if any."""
        reading = asyncio.create_task(self._read(requests))
        reading.add_done_callback(lambda _: self._has_response.set())
        try:
            while True:
                self._has_response.clear()
                while self._responses:
                    load, response = self._responses.popleft()
                    yield response
                    self._in_flight.add(load, -1)
                    self._budget.give(self._caller, load.held_bytes)
                    self._update_may_read()
                if reading.done() and not self._in_flight.messages:
                    break
                await self._has_response.wait()
            await reading
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            self._has_ended = True
            self._budget.forget(self._update_may_read)
            if held := self._in_flight.held_bytes:
                self._budget.give(self._caller, held)

    async def _read(self, requests: Requests) -> None:
        async for request in requests:
            events, size = len(request.events), request.ByteSize()
            load = _Load(1, events, size, size + MESSAGE_BYTES + events * RESPONSE_EVENT_BYTES)
            self._in_flight.add(load)
            self._budget.take(self._caller, load.held_bytes)
            self._update_may_read()
            await self._submit(request, load)
            await self._may_read.wait()

    async def _submit(self, request: StreamPublishEventsRequest, load: _Load) -> None:
        try:
            tenant_id, events = self._batches.read(request, self._check_sequence(request.sequence))
            done = await self._publisher.submit(tenant_id, events, self)
        except Exception as error:  # noqa: BLE001 - every error is the response to the message
            self._respond(load, _error_response(request.sequence, error))
        else:
            done.add_done_callback(partial(self._settled, load, request.sequence, tenant_id))

    def _check_sequence(self, sequence: int) -> list[Violation]:
        last = self._last_sequence
        if sequence > last:
            self._last_sequence = sequence
            return []
        if sequence <= 0:
            return [Violation("sequence", "must be positive")]
        return [Violation("sequence", f"must be greater than the previous one, {last}")]

    def _settled(
        self, load: _Load, sequence: int, tenant_id: str, done: asyncio.Future[list[Published]]
    ) -> None:
        error = interrupted() if done.cancelled() else done.exception()
        if error is None:
            published = response_of(tenant_id, done.result())
            response = StreamPublishEventsResponse(sequence=sequence, published=published)
        else:
            response = _error_response(sequence, error)
        self._respond(load, response)

    def _respond(self, load: _Load, response: StreamPublishEventsResponse) -> None:
        if self._has_ended:
            return
        if response.HasField("error"):  # violations can be larger than their message
            grown = _Load(held_bytes=max(0, response.ByteSize() - load.held_bytes))
            load.add(grown)
            self._in_flight.add(grown)
            self._budget.take(self._caller, grown.held_bytes)
        self._responses.append((load, response))
        self._has_response.set()

    def _update_may_read(self) -> None:
        load, limits = self._in_flight, self._limits
        if (
            load.messages < limits.max_stream_messages
            and load.events < limits.max_stream_events
            and load.size_bytes < limits.max_stream_bytes
            and (
                not load.messages or self._budget.has_capacity(self._caller, self._update_may_read)
            )
        ):
            self._may_read.set()
        else:
            self._may_read.clear()


def _error_response(sequence: int, error: BaseException) -> StreamPublishEventsResponse:
    """Return the status and details that PublishEvents would end with, as a message."""
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
    publish_error = PublishError(
        code=status.code,
        reason=_wire_reason(info.reason),
        message=status.message,
        retry_delay=retry.retry_delay if has_retry else None,
        metadata=info.metadata,
    )
    for violation in bad_request.field_violations:
        publish_error.field_violations.add(
            field=violation.field,
            description=violation.description,
            reason=_wire_reason(violation.reason),
        )
    return StreamPublishEventsResponse(sequence=sequence, error=publish_error)


def _unpack(status: Any, detail: Message) -> bool:  # noqa: ANN401 - google.rpc is untyped
    return any(packed.Unpack(detail) for packed in status.details)


def _wire_reason(reason: str) -> ErrorReason.ValueType:
    return ErrorReason.Value(f"ERROR_REASON_{reason}")
