"""Delivering: take a job, have its target's sender send it, pass the outcome to the recorder.

At most `max_in_flight` deliveries of a node are sent and not yet recorded; the record's commit
frees a slot. Workers are long-lived and take the next job without waiting, so that a busy node
creates no task per delivery. Nothing here depends on the kind of the target (`targets/sender.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from hookline_service.domain.attempt import Outcome, internal_error
from hookline_service.pipeline.clock import DatabaseTime
from hookline_service.pipeline.dispatch.dispatcher import Dispatcher
from hookline_service.pipeline.dispatch.lane import Job
from hookline_service.pipeline.dispatch.record import Recorder
from hookline_service.telemetry.tracing import Tracer

_log = structlog.get_logger(__name__)

MAX_IN_FLIGHT = 2_000
REQUESTS_PER_BURST = 16
ITERATIONS_BETWEEN_BURSTS = 4
"""After `REQUESTS_PER_BURST` requests, this many iterations of the event loop run without new ones.

grpc.aio needs four iterations of the loop to take a call out of its queue, however long they are.
With hundreds of requests in each iteration a node accepted a hundred calls a second, and calls of a
small tenant waited for seconds behind those of a large one; now it accepts one call a burst. Bursts
are used, not a few requests an iteration, because waking a receiver and filling a statement for few
requests costs a fifth more CPU.
"""


class Deliverer:
    """The workers of one node."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        recorder: Recorder,
        time: DatabaseTime,
        may_send: Callable[[], bool],
        *,
        max_in_flight: int = MAX_IN_FLIGHT,
        tracer: Tracer | None = None,
    ) -> None:
        self._dispatcher = dispatcher
        self._recorder = recorder
        self._time = time
        self._may_send = may_send
        self._tracer = tracer or Tracer()
        self._free_slots = max_in_flight
        self._burst_left = REQUESTS_PER_BURST
        self._is_counting = False
        """Whether iterations of the loop are counted since the first request of a burst."""
        self._max_workers = max_in_flight
        self._idle: list[asyncio.Future[None]] = []
        self._workers: set[asyncio.Task[None]] = set()
        self._is_stopping = False

    @property
    def free_slots(self) -> int:
        """How many more deliveries may be in flight: on the wire or not yet recorded."""
        return self._free_slots

    @property
    def in_flight(self) -> int:
        """How many deliveries are on the wire or not yet recorded."""
        return self._max_workers - self._free_slots

    def pause(self) -> None:
        """Take no more jobs; attempts on the wire may end."""
        self._is_stopping = True

    async def stop(self) -> None:
        """Wait for the attempts on the wire, each until its own deadline."""
        self.pause()
        for waiter in self._idle:
            if not waiter.done():
                waiter.set_result(None)
        self._idle.clear()
        if self._workers:
            await asyncio.gather(*self._workers, return_exceptions=True)

    def release(self, count: int) -> None:
        """Free the slots of so many deliveries that were recorded."""
        self._free_slots += count
        self._wake(count)

    def _wake(self, most: int) -> None:
        if self._dispatcher.has_ready():
            for _ in range(max(1, min(most, len(self._idle), self._burst_left))):
                self.wake_one()

    def wake_one(self) -> None:
        """Wake or start one worker, unless no slot is free or the burst is used up."""
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
        """Return the next job; None if the worker must wait until it is woken."""
        if self._free_slots <= 0 or self._burst_left <= 0:
            return None
        job = self._dispatcher.take(self._free_slots)
        if job is None:
            return None
        self._free_slots -= 1
        self._burst_left -= 1
        if not self._is_counting:
            self._is_counting = True
            loop.call_soon(self._count_iteration, loop, ITERATIONS_BETWEEN_BURSTS)
        if self._dispatcher.has_ready():
            self.wake_one()
        return job

    def _count_iteration(self, loop: asyncio.AbstractEventLoop, left: int) -> None:
        """Count an iteration of the loop; after the last one the next burst starts."""
        if left > 1:
            loop.call_soon(self._count_iteration, loop, left - 1)
            return
        was_spent = self._burst_left <= 0
        self._burst_left = REQUESTS_PER_BURST
        self._is_counting = False
        if was_spent:
            self._wake(REQUESTS_PER_BURST)

    async def _deliver(self, job: Job) -> None:
        """Make one attempt, from the job to its queued record."""
        start_us = self._time.unix_us()
        try:
            outcome = await self._attempt(job, start_us)
        except asyncio.CancelledError:
            if job.trace is not None:
                job.trace.abandoned()
            raise
        except Exception:  # noqa: BLE001 - a bug of ours: the target is not blamed, the worker goes on
            _log.exception("attempt_broken", delivery=str(job.delivery_id))
            outcome = internal_error("an internal error; the service's log has it")
        if job.trace is not None:
            job.trace.answered(outcome.record)
        self._dispatcher.answered(job, outcome)
        self._recorder.add(job, outcome, start_us)

    async def _attempt(self, job: Job, start_us: int) -> Outcome:
        config = job.lane.config
        if config is None:  # the bucket was lost after the job was taken
            return internal_error("the bucket has another owner")
        message = job.message
        if (context := message.event.trace_context) is not None:
            job.trace = self._tracer.attempt_began(
                context,
                number=job.attempt_count + 1,
                event=message.webhook_id,
                delivery_id=job.delivery_id,
                subscription=config.name,
            )
        job.start_us = start_us
        job.holds_lease = self._may_send
        return await config.sender.send(job)
