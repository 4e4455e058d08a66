"""Delivering: take a job, sign it, send it, hand its outcome to the recorder.

At most `max_in_flight` deliveries of a node are sent and not yet recorded; a slot is freed by the
record's commit. Workers are long-lived and take the next job without waiting for anything, so that
a busy node makes no task per delivery.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from hookline_service.domain.attempt import AttemptOutcome, Outcome
from hookline_service.domain.subscription import PayloadFormat
from hookline_service.pipeline.clock import DatabaseTime
from hookline_service.pipeline.dispatch.dispatcher import Dispatcher
from hookline_service.pipeline.dispatch.lane import Job, Message
from hookline_service.pipeline.dispatch.record import Recorder
from hookline_service.targets.http.payload import Payload, build_payload
from hookline_service.targets.http.sender import WebhookSender
from hookline_service.telemetry.tracing import Tracer

_log = structlog.get_logger(__name__)

MAX_IN_FLIGHT = 2_000
TRACEPARENT = b"traceparent"
REQUESTS_PER_BURST = 16
TURNS_OF_OTHERS = 4
"""After so many requests the event loop turns so often for others before the next ones are begun.

grpc.aio takes a call out of its queue in four turns of the loop, whatever these hold. With hundreds
of requests in each, a node took a hundred calls a second, and those of a small tenant waited for
seconds behind those of a large one; now it takes one a burst. Bursts, not a few requests a turn,
because waking a receiver and filling a statement for each few costs a fifth more CPU.
"""


class Deliverer:
    """The workers of one node."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        sender: WebhookSender,
        recorder: Recorder,
        time: DatabaseTime,
        may_send: Callable[[], bool],
        *,
        max_in_flight: int = MAX_IN_FLIGHT,
        tracer: Tracer | None = None,
    ) -> None:
        self._dispatcher = dispatcher
        self._sender = sender
        self._recorder = recorder
        self._time = time
        self._may_send = may_send
        self._tracer = tracer or Tracer()
        self._free_slots = max_in_flight
        self._burst_left = REQUESTS_PER_BURST
        self._is_counting = False
        """Whether turns of the loop are counted since a request was begun."""
        self._max_workers = max_in_flight
        self._idle: list[asyncio.Future[None]] = []
        self._workers: set[asyncio.Task[None]] = set()
        self._is_stopping = False
        recorder.on_recorded = self._free
        recorder.watch(lambda: max_in_flight - self._free_slots)

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
        self._free_slots += count
        self._wake(count)

    def _wake(self, most: int) -> None:
        if self._dispatcher.has_ready():
            for _ in range(max(1, min(most, len(self._idle), self._burst_left))):
                self.wake_one()

    def wake_one(self) -> None:
        """Have one more worker look for a job; where it may not send yet, it is woken later."""
        if self._is_stopping or self._free_slots <= 0 or self._burst_left <= 0:
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
            job = self._next_job(loop)
            if job is None:
                waiter = loop.create_future()
                self._idle.append(waiter)
                await waiter
                continue
            await self._deliver(job)

    def _next_job(self, loop: asyncio.AbstractEventLoop) -> Job | None:
        """What a worker may send now; None: it is to wait until it is woken."""
        if self._free_slots <= 0 or self._burst_left <= 0:
            return None
        job = self._dispatcher.take(self._free_slots)
        if job is None:
            return None
        self._free_slots -= 1
        self._burst_left -= 1
        if not self._is_counting:
            self._is_counting = True
            loop.call_soon(self._count_turn, loop, TURNS_OF_OTHERS)
        if self._dispatcher.has_ready():
            self.wake_one()
        return job

    def _count_turn(self, loop: asyncio.AbstractEventLoop, turns: int) -> None:
        """The loop has turned once more; after the last time whoever waits may send again."""
        if turns > 1:
            loop.call_soon(self._count_turn, loop, turns - 1)
            return
        was_spent = self._burst_left <= 0
        self._burst_left = REQUESTS_PER_BURST
        self._is_counting = False
        if was_spent:
            self._wake(REQUESTS_PER_BURST)

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
            outcome = Outcome(AttemptOutcome.INTERNAL_ERROR, 0, "", error="an error of our own")
        if job.trace is not None:
            job.trace.answered(outcome)
        self._dispatcher.answered(job, outcome)
        self._recorder.add(job, outcome, start_us)

    async def _attempt(self, job: Job, start_us: int) -> Outcome:
        config = job.lane.config
        if config is None:  # the bucket was lost between the queue and here
            return Outcome(
                AttemptOutcome.INTERNAL_ERROR, 0, "", error="the bucket has another owner"
            )
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
