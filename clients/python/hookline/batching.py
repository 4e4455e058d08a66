"""A publisher of single events that sends them in batches.

Theory of operation. `publish` queues its event and waits. One task takes batches from the head of
the queue and sends them one after the other, so that events are stored in the order in which they
were published. While a batch is in flight the next one fills, so batches become larger under load.
(One batch at a time is not slower: a stream with sixteen batches in flight was measured at the same
CPU per event.) Each event has an idempotency key, and is repeated with it until its result arrives.
If a batch is rejected, the events that the error names fail and the others are sent again; if it
names none, the batch is halved until the invalid event is alone.
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

_BATCH_ERRORS: Final = (NotFoundError, PermissionDeniedError, UnauthenticatedError)
"""Errors that concern the tenant or the caller, and so all events of a batch."""


class BatchingPublisher:
    """Publishes single events of one tenant in batches; created by `client.batching`.

        async with client.batching("acme") as publisher:
            result = await publisher.publish(event)

    For one event loop. Meant for many concurrent tasks, each of which waits for its own event.
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
        self._backoff_until = 0.0
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
        """The number of events without a result, without those that exceed the bounds."""
        return self._pending.events

    @property
    def pending_bytes(self) -> int:
        """The size of the pending events as they are sent."""
        return self._pending.size_bytes

    async def publish(self, event: Event) -> PublishResult:
        """Publish an event and return its result after it is stored. The event is not modified.

        Waits while the bounds of pending events are reached. An event without an
        `idempotency_key` gets one. Transient errors are repeated with the same key for at most the
        publisher's `timeout_s` seconds; then the last error is raised (`UnavailableError`,
        `DeadlineExceededError`, …). A rejected event raises the error that
        `HooklineClient.publish` would raise for it alone. After any other error, and after a
        cancellation, the event may or may not be stored. Raises `PublisherClosedError` if the
        publisher is closed.
        """
        if self._pending.is_closed:
            raise PublisherClosedError("the publisher is closed")
        own = Event()
        own.CopyFrom(event)
        if not own.idempotency_key:
            own.idempotency_key = self._keys.next()
        with publishing(self._tenant, 1) as traceparent:
            if not own.traceparent and traceparent is not None:
                own.traceparent = traceparent  # the batch can contain events of several callers
            entry = Entry(own, asyncio.get_running_loop().time() + self._timeout_s)
            self._pending.add(entry)
            if self._task is None:
                # In a context of its own: the task works for all callers, not only for the first.
                self._task = asyncio.create_task(
                    self._run(), name="hookline batching publisher", context=Context()
                )
            try:
                return await entry.done
            except asyncio.CancelledError:
                self._pending.forget(entry)
                raise

    async def close(self) -> None:
        """Send the pending events and wait for their results; `publish` raises from now on.

        Takes about the publisher's `timeout_s` seconds at most. If it is cancelled, nothing more is
        sent, and the remaining `publish` calls raise `PublisherClosedError`.
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
                except Exception as error:  # noqa: BLE001 - every error is the result of the events
                    for entry in batch:
                        entry.fail(error)
                self._pending.release(batch)
        finally:
            self._pending.abandon()
            for entry in batch:
                entry.fail(PublisherClosedError("the publisher was closed while this was sent"))

    async def _deliver(self, batch: list[Entry]) -> None:
        """Send a batch until each of its events has a result."""
        parts = [batch]
        while parts:
            part = parts.pop(0)
            try:
                await self._store(part)
            except HooklineError as error:
                parts[:0] = _fail_rejected(part, error)

    async def _store(self, batch: list[Entry]) -> None:
        """Send a batch until it is stored, without abandoned events; raise a permanent error."""
        pending, backoff_s = self._pending, MIN_BACKOFF_S
        while await self._back_off(batch):
            try:
                results = await self._try(batch)
            except HooklineError as error:
                wait_s = wait_before_repeating(error, backoff_s)
                if wait_s is None:
                    pending.last_error = None
                    raise
                pending.last_error = error
                self._backoff_until = asyncio.get_running_loop().time() + wait_s
                backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)
            else:
                pending.last_error = None
                for entry, result in zip(batch, results, strict=True):
                    entry.succeed(result)
                return

    async def _back_off(self, batch: list[Entry]) -> bool:
        """Wait until the end of the backoff; return whether any event of the batch is left."""
        wait_s = self._backoff_until - asyncio.get_running_loop().time()
        last_error = self._pending.last_error
        if last_error is not None and wait_s > 0:
            for entry in batch:
                if entry.gives_up_at <= self._backoff_until:
                    entry.fail(last_error.copy())
            self._pending.release(batch)
            if self._pending.events:
                await asyncio.sleep(wait_s)
        self._pending.release(batch)
        batch[:] = [entry for entry in batch if not entry.done.done()]
        return bool(batch)

    async def _try(self, batch: list[Entry]) -> Sequence[PublishResult]:
        left_s = min([entry.gives_up_at for entry in batch]) - asyncio.get_running_loop().time()
        events = [entry.event for entry in batch]
        response = await self._stub.PublishEvents(
            PublishEventsRequest(tenant=self._tenant, events=events),
            timeout=max(0.0, min(left_s, self._try_timeout_s)),
        )
        return response.results


def _fail_rejected(batch: list[Entry], error: HooklineError) -> list[list[Entry]]:
    """Fail the events that an error is about; return the others, in order, to be sent again."""
    rejected = {index for index in error.events if index < len(batch)}
    if rejected and len(batch) > 1:
        for index in rejected:
            batch[index].fail(error.of_event(index))
        return [[entry for index, entry in enumerate(batch) if index not in rejected]]
    if len(batch) == 1 or _concerns_batch(error):
        for entry in batch:
            entry.fail(error.copy())
        return []
    middle = len(batch) // 2
    return [batch[:middle], batch[middle:]]


def _concerns_batch(error: HooklineError) -> bool:
    if isinstance(error, ResourceExhaustedError):
        return error.reason != ""  # without a reason it is an error of gRPC: the batch is too large
    return (
        isinstance(error, _BATCH_ERRORS)
        or error.retry_forbidden
        or any(violation.field == "tenant" for violation in error.violations)
    )
