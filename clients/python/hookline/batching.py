"""A publisher of single events that sends them in batches.

Theory of operation. `publish` queues its event and waits. One task takes batches from the queue's
head and sends them one after the other, so that events are stored in the order in which they were
published; while a batch is on its way the next one gathers, so that batches are large when there is
much to do. (One at a time costs nothing: a stream with sixteen batches on their way was measured at
the same CPU per event.) Each event has a key, and is sent with it until its fate is known. Where a
batch is refused, those that the refusal names fail and the others are sent again; where it names
none, the batch is halved until the culprit stands alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import Context
from types import TracebackType
from typing import Final, Self

from hookline.errors import (
    HooklineError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
)
from hookline.keys import KeySource
from hookline.pending import Bounds, Entry, Pending, PublisherClosedError
from hookline.repeating import MAX_BACKOFF_S, MIN_BACKOFF_S, wait_before_repeating
from hookline.tracing import publishing
from hookline.v1.event_pb2 import Event
from hookline.v1.event_service_pb2 import PublishEventsRequest, PublishResult
from hookline.v1.event_service_pb2_grpc import EventServiceStub

__all__ = ["BatchingPublisher", "PublisherClosedError"]

_OF_ALL: Final = (NotFoundError, PermissionDeniedError, UnauthenticatedError)
"""What no event of a batch is guilty of: it concerns the tenant or the caller."""


class BatchingPublisher:
    """Publishes events of one tenant one by one, at the price of batches; of `client.batching`.

        async with client.batching("acme") as publisher:
            result = await publisher.publish(event)

    For one event loop. Many tasks may publish at once, and should: each waits for its own event.
    """

    def __init__(
        self,
        stub: EventServiceStub,
        tenant: str,
        bounds: Bounds,
        *,
        timeout_s: float,
        try_timeout_s: float,
    ) -> None:
        self._stub = stub
        self._tenant = tenant if "/" in tenant else f"tenants/{tenant}"
        self._timeout_s = timeout_s
        self._try_timeout_s = try_timeout_s
        self._keys = KeySource()
        self._pending = Pending(bounds)
        self._rests_until = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def pending_events(self) -> int:
        """Events that were taken and whose fate is not known; without those that wait for room."""
        return self._pending.events

    @property
    def pending_bytes(self) -> int:
        """Their size as they are sent."""
        return self._pending.size_bytes

    async def publish(self, event: Event) -> PublishResult:
        """Publish an event; returns once it is stored. The event is not changed.

        Waits for room while too much is pending. Without an `idempotency_key` the event gets one,
        and it is sent with the same key until it is answered, for at most the publisher's
        `timeout_s` seconds; then raises what the last try ended with (`UnavailableError`,
        `DeadlineExceededError`, …). A refusal raises what `HooklineClient.publish` would have
        raised of this event alone. After any error but a refusal, and where the caller is
        cancelled, it may or may not be stored. Raises `PublisherClosedError`.
        """
        if self._pending.is_closed:
            raise PublisherClosedError("the publisher is closed")
        own = Event()
        own.CopyFrom(event)
        if not own.idempotency_key:
            own.idempotency_key = self._keys.next()
        with publishing(self._tenant, 1) as traceparent:
            if not own.traceparent and traceparent is not None:
                own.traceparent = traceparent  # the batch may be of many callers
            entry = Entry(own, asyncio.get_running_loop().time() + self._timeout_s)
            self._pending.add(entry)
            if self._task is None:
                # In a context of its own: it works for all, not for who came first.
                self._task = asyncio.create_task(
                    self._run(), name="hookline batching publisher", context=Context()
                )
            try:
                return await entry.done
            except asyncio.CancelledError:
                self._pending.forget(entry)
                raise

    async def close(self) -> None:
        """Send what is pending and wait until the fate of all is known; then `publish` raises.

        Takes hardly longer than the publisher's `timeout_s` seconds. Where it is cancelled, nothing
        more is sent, and whoever still waits gets `PublisherClosedError`.
        """
        self._pending.close()
        if self._task is None:
            return
        try:
            await asyncio.wait({self._task})
        except asyncio.CancelledError:
            self._task.cancel()
            raise

    async def _run(self) -> None:
        batch: list[Entry] = []
        try:
            while batch := await self._pending.next_batch():
                try:
                    await self._deliver(batch)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is their answer
                    for entry in batch:
                        entry.fail(error)
                self._pending.release(batch)
        finally:
            self._pending.abandon()
            for entry in batch:
                entry.fail(PublisherClosedError("the publisher was closed while this was sent"))

    async def _deliver(self, batch: list[Entry]) -> None:
        """Send a batch until the fate of each of its events is known."""
        parts = [batch]
        while parts:
            part = parts.pop(0)
            try:
                await self._store(part)
            except HooklineError as refusal:
                parts[:0] = _sort_out(part, refusal)

    async def _store(self, batch: list[Entry]) -> None:
        """Send a batch until it is stored, less those who wait no more. Raises the refusal."""
        pending, backoff_s = self._pending, MIN_BACKOFF_S
        while await self._rest(batch):
            try:
                results = await self._try(batch)
            except HooklineError as error:
                wait_s = wait_before_repeating(error, backoff_s)
                if wait_s is None:
                    pending.trouble = None
                    raise
                pending.trouble = error
                self._rests_until = asyncio.get_running_loop().time() + wait_s
                backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)
            else:
                pending.trouble = None
                for entry, result in zip(batch, results, strict=True):
                    entry.succeed(result)
                return

    async def _rest(self, batch: list[Entry]) -> bool:
        """Send nothing as long as the service asked for it; whether anybody still waits then."""
        wait_s = self._rests_until - asyncio.get_running_loop().time()
        trouble = self._pending.trouble
        if trouble is not None and wait_s > 0:
            for entry in batch:
                if entry.gives_up_at <= self._rests_until:
                    entry.fail(trouble.copy())
            self._pending.release(batch)
            if self._pending.events:
                await asyncio.sleep(wait_s)
        self._pending.release(batch)
        batch[:] = [entry for entry in batch if not entry.done.done()]
        return bool(batch)

    async def _try(self, batch: list[Entry]) -> Sequence[PublishResult]:
        left_s = min([entry.gives_up_at for entry in batch]) - asyncio.get_running_loop().time()
        events = [entry.event for entry in batch]
        answer = await self._stub.PublishEvents(
            PublishEventsRequest(tenant=self._tenant, events=events),
            timeout=max(0.0, min(left_s, self._try_timeout_s)),
        )
        return answer.results


def _sort_out(batch: list[Entry], refusal: HooklineError) -> list[list[Entry]]:
    """Whom a refusal is for fails; the others, to be sent again, in order."""
    guilty = {index for index in refusal.events if index < len(batch)}
    if guilty and len(batch) > 1:
        for index in guilty:
            batch[index].fail(refusal.of_event(index))
        return [[entry for index, entry in enumerate(batch) if index not in guilty]]
    if len(batch) == 1 or _is_of_all(refusal):
        for entry in batch:
            entry.fail(refusal.copy())
        return []
    middle = len(batch) // 2
    return [batch[:middle], batch[middle:]]


def _is_of_all(refusal: HooklineError) -> bool:
    if isinstance(refusal, ResourceExhaustedError):
        return refusal.reason != ""  # without a reason it is gRPC's own: the batch is too large
    return (
        isinstance(refusal, _OF_ALL)
        or refusal.retry_forbidden
        or any(fault.field == "tenant" for fault in refusal.violations)
    )
