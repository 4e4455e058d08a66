"""Delivering: take a job, sign it, send it, hand its outcome to the recorder.

At most `max_in_flight` deliveries of a node are sent and not yet recorded; a slot is freed by the
record's commit. Workers are long-lived and take the next job without waiting for anything, so that
a busy node makes no task per delivery.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from service.domain.attempt import AttemptOutcome, Outcome
from service.telemetry.tracing import Tracer
from service.webhook.payload import build_payload

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.domain.subscription import PayloadFormat
    from service.pipeline.clock import DatabaseTime
    from service.pipeline.lane import Job, Message
    from service.pipeline.lanes import Lanes
    from service.pipeline.record import Recorder
    from service.webhook.payload import Payload
    from service.webhook.sender import WebhookSender

_log = structlog.get_logger(__name__)

MAX_IN_FLIGHT = 2_000
TRACEPARENT = b"traceparent"


class Deliverer:
    """The workers of one node."""

    def __init__(
        self,
        lanes: Lanes,
        sender: WebhookSender,
        recorder: Recorder,
        time: DatabaseTime,
        may_send: Callable[[], bool],
        *,
        max_in_flight: int = MAX_IN_FLIGHT,
        tracer: Tracer | None = None,
    ) -> None:
        self._sending = lanes.sending
        self._sender = sender
        self._recorder = recorder
        self._time = time
        self._may_send = may_send
        self._tracer = tracer or Tracer()
        self._free_slots = max_in_flight
        self._max_workers = max_in_flight
        self._idle: list[asyncio.Future[None]] = []
        self._workers: set[asyncio.Task[None]] = set()
        self._is_stopping = False
        self._sending.on_ready = self._wake_one
        recorder.on_recorded = self._free

    @property
    def free_slots(self) -> int:
        """How many more deliveries may be on the wire or unrecorded."""
        return self._free_slots

    def pause(self) -> None:
        """Take no more jobs; what is on the wire may end."""
        self._is_stopping = True

    async def stop(self) -> None:
        """Wait for what is on the wire, each at most its own deadline."""
        self.pause()
        for waiter in self._idle:
            if not waiter.done():
                waiter.set_result(None)
        self._idle.clear()
        if self._workers:
            await asyncio.gather(*self._workers, return_exceptions=True)

    def _free(self, count: int) -> None:
        was_full = self._free_slots <= 0
        self._free_slots += count
        if was_full:
            for _ in range(min(count, len(self._idle))):
                self._wake_one()

    def _wake_one(self) -> None:
        if self._is_stopping or self._free_slots <= 0:
            return
        while self._idle:
            waiter = self._idle.pop()
            if not waiter.done():
                waiter.set_result(None)
                return
        if len(self._workers) < self._max_workers:
            worker = asyncio.create_task(self._work(), name="deliverer")
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._is_stopping:
            job = self._sending.take() if self._free_slots > 0 else None
            if job is None:
                waiter = loop.create_future()
                self._idle.append(waiter)
                await waiter
                continue
            self._free_slots -= 1
            await self._deliver(job)

    async def _deliver(self, job: Job) -> None:
        """One attempt, from the job to its recorded outcome."""
        start_us = self._time.unix_us()
        try:
            outcome = await self._attempt(job, start_us)
        except asyncio.CancelledError:
            if job.trace is not None:
                job.trace.abandoned()
            raise
        except Exception:  # noqa: BLE001 - it is ours: the target is not blamed, the worker goes on
            _log.exception("attempt_broken", delivery=str(job.delivery_id))
            outcome = Outcome(AttemptOutcome.OWN_FAULT, 0, "", error="an error of our own")
        if job.trace is not None:
            job.trace.answered(outcome)
        self._sending.answered(job, outcome)
        self._recorder.add(job, outcome, start_us)

    async def _attempt(self, job: Job, start_us: int) -> Outcome:
        config = job.lane.config
        if config is None:  # the bucket was lost between the queue and here
            return Outcome(AttemptOutcome.OWN_FAULT, 0, "", error="the bucket has another owner")
        message = job.message
        trace_headers = None
        if (context := message.event.trace_context) is not None:
            job.trace = trace = self._tracer.attempt_began(
                context,
                number=job.attempt_count + 1,
                event=message.webhook_id,
                delivery_id=job.delivery_id,
                subscription=config.name,
            )
            if trace is not None and config.propagate_trace:
                trace_headers = [(TRACEPARENT, trace.traceparent)]
        return await self._sender.send(
            config.target,
            message.webhook_id,
            start_us // 1_000_000,
            payload_of(message, config.payload_format),
            # A lease that was lost and won anew is no leave to send the old work, nor what somebody
            # cancelled meanwhile.
            lambda: self._may_send() and job.is_known() and not job.is_stale,
            trace_headers,
        )


def payload_of(message: Message, payload_format: PayloadFormat) -> Payload:
    """An event's body in a format, built at its first use and shared by all its deliveries."""
    payload = message.payloads.get(payload_format)
    if payload is None:
        payload = message.payloads[payload_format] = build_payload(message.event, payload_format)
    return payload
