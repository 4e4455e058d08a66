"""Events that wait to be published: in order, bounded, each until its time is up.

Owns who waits and what the next batch is. Must not know how a batch is sent.

Theory of operation. An event is pending from `add` until `release`. As long as there is room it
stands in the queue, from whose head batches are taken; beyond, in the line before the queue. All
were given the same time, so that the first of queue and line is the first whose time is up, and one
timer serves them all.
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
"""What an event costs in a batch beside its own bytes."""


class PublisherClosedError(Exception):
    """The publisher was closed: the event was not taken, or whether it is stored is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """When a batch goes, and how much may be pending. ValueError: one is out of all sense."""

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
            raise ValueError("a publisher's bounds must be at least 1, its delay at least 0")


class Entry:
    """One event, and who waits for it."""

    __slots__ = ("done", "event", "gives_up_at", "is_pending", "sends_at", "size_bytes")

    def __init__(self, event: Event, gives_up_at: float) -> None:
        self.event = event
        self.size_bytes = event.ByteSize() + FRAMING_BYTES
        self.gives_up_at = gives_up_at
        self.sends_at = 0.0
        """When its batch goes at the latest, if it is free to go."""
        self.is_pending = False
        """Whether it takes up room."""
        self.done: asyncio.Future[PublishResult] = asyncio.get_running_loop().create_future()

    def succeed(self, result: PublishResult) -> None:
        """Tell whoever waits that it is stored."""
        if not self.done.done():
            self.done.set_result(result)

    def fail(self, error: Exception) -> None:
        """Tell whoever waits what it ended with."""
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # whoever gave up waiting is not to be missed


class Pending:
    """What waits and what is on its way; for one event loop."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._line: OrderedDict[Entry, None] = OrderedDict()
        self._queue: OrderedDict[Entry, None] = OrderedDict()
        self._queued_bytes = 0
        self.events = 0
        """In the queue and on their way."""
        self.size_bytes = 0
        self.trouble: HooklineError | None = None
        """What holds the sending up; told to those whose time is up meanwhile."""
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self.is_closed = False

    def add(self, entry: Entry) -> None:
        """Take an event in: into the queue, or into the line while there is no room."""
        entry.sends_at = asyncio.get_running_loop().time() + self._bounds.max_delay_ms / 1_000
        if self._line or not self._has_room(entry):
            self._line[entry] = None
        else:
            self._enqueue(entry)
        if self._timer is None:
            self._set_timer(entry)

    def forget(self, entry: Entry) -> None:
        """Nobody waits for it any more. If it is on its way, it takes up room until `release`."""
        if entry in self._line:
            del self._line[entry]
        elif entry in self._queue:
            del self._queue[entry]
            self._queued_bytes -= entry.size_bytes
            self.release([entry])

    def release(self, entries: Iterable[Entry]) -> None:
        """Make room: of these, the fate of those that are done is known, or nobody asks for it."""
        for entry in entries:
            if entry.is_pending and entry.done.done():
                entry.is_pending = False
                self.events -= 1
                self.size_bytes -= entry.size_bytes
        while self._line and self._has_room(next(iter(self._line))):
            self._enqueue(self._line.popitem(last=False)[0])

    async def next_batch(self) -> list[Entry]:
        """The queue's head, once it is full or its first was delayed enough; closed: the rest.

        Empty once nothing is left.
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
                    if batch := self._take():  # else it was forgotten meanwhile
                        return batch
        return []

    def close(self) -> None:
        """Delay no batch any more; when the last was taken, there is none."""
        self.is_closed = True
        self._wake.set()

    def abandon(self) -> None:
        """Nobody takes batches any more: whoever waits is told so."""
        self.is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        for entry in [*self._queue, *self._line]:
            entry.fail(PublisherClosedError("the publisher was closed before this was sent"))

    def _has_room(self, entry: Entry) -> bool:
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
        for waiting in (self._queue, self._line):
            while waiting:
                first = next(iter(waiting))
                if first.gives_up_at > now_s:
                    self._set_timer(first)
                    return
                first.fail(_out_of_time() if self.trouble is None else self.trouble.copy())
                self.forget(first)


def _out_of_time() -> HooklineError:
    return error_of(
        grpc.aio.AioRpcError(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.aio.Metadata(),
            grpc.aio.Metadata(),
            "the event was not sent in time, for those before it took all of it",
        )
    )
