"""The bounded queue of a batching publisher: events in order, each with a deadline.

Forms the batches; `hookline.batching` sends them.

Theory of operation. An event is pending from `add` until `release`. While the bounds allow, it is
in the queue, and batches are taken from the head of the queue; beyond the bounds it is in the
overflow, which feeds the queue. All events have the same timeout, so the first of the queue and of
the overflow has the earliest deadline, and one timer is enough.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import grpc

from hookline.errors import HooklineError, error_of
from hookline.v1.event_pb2 import Event
from hookline.v1.event_service_pb2 import PublishResult

FRAMING_BYTES = 8
"""The overhead of an event in a batch, in addition to its own bytes."""


class PublisherClosedError(Exception):
    """The publisher is closed: the event was not sent, or its result is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The bounds of batches and of pending events. Raises ValueError if one is out of range."""

    max_events: int
    max_bytes: int
    max_delay_ms: float
    max_pending_events: int
    max_pending_bytes: int

    def __post_init__(self) -> None:
        least = min(
            self.max_events, self.max_bytes, self.max_pending_events, self.max_pending_bytes
        )
        if least < 1 or self.max_delay_ms < 0:
            raise ValueError(
                "max_events, max_bytes, max_pending_events and max_pending_bytes must be at least"
                " 1, and max_delay_ms at least 0"
            )


class Entry:
    """One event, and the future of its result."""

    __slots__ = ("done", "event", "gives_up_at", "is_pending", "sends_at", "size_bytes")

    def __init__(self, event: Event, gives_up_at: float) -> None:
        self.event = event
        self.size_bytes = event.ByteSize() + FRAMING_BYTES
        self.gives_up_at = gives_up_at
        self.sends_at = 0.0
        """The loop time at which its batch is sent at the latest, unless another batch is in
        flight."""
        self.is_pending = False
        """Whether it counts towards the bounds."""
        self.done: asyncio.Future[PublishResult] = asyncio.get_running_loop().create_future()

    def succeed(self, result: PublishResult) -> None:
        """Complete the event: it is stored."""
        if not self.done.done():
            self.done.set_result(result)

    def fail(self, error: Exception) -> None:
        """Complete the event with an error."""
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # mark it as retrieved: the caller may have been cancelled


class Pending:
    """The queued events and the events in flight, for one event loop."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._overflow: OrderedDict[Entry, None] = OrderedDict()
        self._queue: OrderedDict[Entry, None] = OrderedDict()
        self._queued_bytes = 0
        self.events = 0
        """The number of events in the queue and in flight."""
        self.size_bytes = 0
        self.last_error: HooklineError | None = None
        """The current error of the service; events whose deadline passes fail with it."""
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self.is_closed = False

    def add(self, entry: Entry) -> None:
        """Add an event to the queue, or to the overflow if the bounds are reached."""
        entry.sends_at = asyncio.get_running_loop().time() + self._bounds.max_delay_ms / 1_000
        if self._overflow or not self._fits(entry):
            self._overflow[entry] = None
        else:
            self._enqueue(entry)
        if self._timer is None:
            self._set_timer(entry)

    def forget(self, entry: Entry) -> None:
        """Remove an event without a waiting caller; in flight, it counts until `release`."""
        if entry in self._overflow:
            del self._overflow[entry]
        elif entry in self._queue:
            del self._queue[entry]
            self._queued_bytes -= entry.size_bytes
            self.release([entry])

    def release(self, entries: Iterable[Entry]) -> None:
        """Stop counting the entries that are done, and refill the queue from the overflow."""
        for entry in entries:
            if entry.is_pending and entry.done.done():
                entry.is_pending = False
                self.events -= 1
                self.size_bytes -= entry.size_bytes
        while self._overflow and self._fits(next(iter(self._overflow))):
            self._enqueue(self._overflow.popitem(last=False)[0])

    async def next_batch(self) -> list[Entry]:
        """Wait for the next batch: a full one, or one whose first event has reached its delay.

        After `close`, return what is left without a delay, and at last an empty list.
        """
        while self._queue or not self.is_closed:
            if not self._queue:
                await self._woken()
            elif self._is_full() or self.is_closed:
                return self._take()
            else:
                sends_at = next(iter(self._queue)).sends_at
                try:
                    async with asyncio.timeout_at(sends_at):
                        await self._woken()
                except TimeoutError:
                    if batch := self._take():  # empty if the events were removed meanwhile
                        return batch
        return []

    def close(self) -> None:
        """Return all further batches without delay; after the last, `next_batch` returns none."""
        self.is_closed = True
        self._wake.set()

    def abandon(self) -> None:
        """Fail all queued events, because no more batches are sent."""
        self.is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        for entry in [*self._queue, *self._overflow]:
            entry.fail(PublisherClosedError("the publisher was closed before this was sent"))

    def _fits(self, entry: Entry) -> bool:
        return self.events == 0 or (
            self.events < self._bounds.max_pending_events
            and self.size_bytes + entry.size_bytes <= self._bounds.max_pending_bytes
        )

    def _enqueue(self, entry: Entry) -> None:
        self._queue[entry] = None
        self._queued_bytes += entry.size_bytes
        entry.is_pending = True
        self.events += 1
        self.size_bytes += entry.size_bytes
        if len(self._queue) == 1 or self._is_full():
            self._wake.set()

    def _is_full(self) -> bool:
        bounds = self._bounds
        return len(self._queue) >= bounds.max_events or self._queued_bytes >= bounds.max_bytes

    async def _woken(self) -> None:
        self._wake.clear()
        await self._wake.wait()

    def _take(self) -> list[Entry]:
        batch: list[Entry] = []
        size_bytes = 0
        while self._queue and len(batch) < self._bounds.max_events:
            entry = next(iter(self._queue))
            size_bytes += entry.size_bytes
            if batch and size_bytes > self._bounds.max_bytes:
                break
            del self._queue[entry]
            self._queued_bytes -= entry.size_bytes
            batch.append(entry)
        return batch

    def _set_timer(self, first: Entry) -> None:
        self._timer = asyncio.get_running_loop().call_at(first.gives_up_at, self._give_up)

    def _give_up(self) -> None:
        now_s = asyncio.get_running_loop().time()
        self._timer = None
        for entries in (self._queue, self._overflow):
            while entries:
                first = next(iter(entries))
                if first.gives_up_at > now_s:
                    self._set_timer(first)
                    return
                error = self.last_error
                first.fail(_deadline_exceeded() if error is None else error.copy())
                self.forget(first)


def _deadline_exceeded() -> HooklineError:
    return error_of(
        grpc.aio.AioRpcError(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.aio.Metadata(),
            grpc.aio.Metadata(),
            "the deadline of the event passed before it was sent: earlier events were pending",
        )
    )
