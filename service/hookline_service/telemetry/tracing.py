"""Spans, made by hand at the points where an event passes.

    PublishEvents   SERVER    of a call, under the caller's `traceparent`
      publish       PRODUCER  from the queue to the commit; the context that its events store
        deliver     CONSUMER  an attempt, until its outcome is recorded
          POST      CLIENT    the request itself; what the receiver may continue

The first attempt belongs to the event's trace. A later one, which may come a day after, begins a
trace of its own that is linked to the event's. Whether any of it is recorded is decided once, where
the trace enters (`sampling.py`): everything here returns None for what is not, before it makes
anything. Knows nothing of gRPC, HTTP or SQL, and what an attempt's spans
say is `attempts.py`'s, where spans go `outbox.py`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import random
from uuid import UUID

from opentelemetry.context import Context
from opentelemetry.sdk import trace as sdk
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanKind,
    Status,
    StatusCode,
    set_span_in_context,
)
from opentelemetry.util.types import AttributeValue

from hookline_service.domain.event import NewEvent
from hookline_service.telemetry import names
from hookline_service.telemetry.attempts import AttemptTrace, context_of
from hookline_service.telemetry.context import Parent, pack, parse_traceparent, unpack
from hookline_service.telemetry.current import CURRENT
from hookline_service.telemetry.sampling import Sampling

_ERROR = Status(StatusCode.ERROR)
_EMPTY = Context()
_FAULTS = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
"""gRPC codes that are errors of a server's span; the others are the caller's own doing."""


class PublishTrace:
    """A publish call that is traced: its span, and the context of each of its events."""

    __slots__ = ("_span", "contexts")

    def __init__(self, span: Span | None, contexts: Sequence[bytes | None]) -> None:
        self._span = span
        self.contexts = contexts
        """In the order of the events; None: that one is not sampled."""

    def settled(self, done: asyncio.Future[object]) -> None:
        """Its fate is known."""
        span = self._span
        if span is None:
            return
        error = None if done.cancelled() else done.exception()
        if done.cancelled() or error is not None:
            kind = names.CANCELLED if error is None else str(getattr(error, "reason", "INTERNAL"))
            span.set_attribute(names.ERROR_TYPE, kind)
            span.set_status(_ERROR)
        span.end()


class Tracer:
    """Makes spans, where tracing is on and the trace is sampled; else None."""

    def __init__(
        self, provider: TracerProvider | None = None, sampling: Sampling | None = None
    ) -> None:
        """Without a `provider`, or with one that is disabled, nothing is traced."""
        tracer = provider and provider.get_tracer(names.SCOPE, schema_url=names.SCHEMA_URL)
        self._tracer = tracer if isinstance(tracer, sdk.Tracer) else None
        self._sampling = sampling or Sampling()

    @property
    def is_on(self) -> bool:
        """Whether anything is ever traced."""
        return self._tracer is not None

    def call_began(self, method: str, traceparent: str | bytes | None) -> None:
        """A call came in; what its task does from now on belongs to its span."""
        if self._tracer is None:
            return
        parent = None if traceparent is None else parse_traceparent(traceparent)
        if not self._sampling.is_sampled(parent, random):
            CURRENT.set(None)
            return
        span = self._tracer.start_span(
            method,
            _under(parent),
            SpanKind.SERVER,
            {names.RPC_SYSTEM: names.GRPC, names.RPC_METHOD: method},
        )
        CURRENT.set(span)

    def call_ended(self, code: str) -> None:
        """The call that this task served is over; `code` is gRPC's word for how."""
        span = CURRENT.get()
        if span is None:
            return
        span.set_attribute(names.RPC_STATUS, code)
        if code in _FAULTS:
            span.set_attribute(names.ERROR_TYPE, code)
            span.set_status(_ERROR)
        span.end()
        CURRENT.set(None)

    def publish_began(self, tenant: str, events: Sequence[NewEvent]) -> PublishTrace | None:
        """A call's events are about to be queued; None where none of them is sampled."""
        if self._tracer is None:
            return None
        call = CURRENT.get()
        has_own = any(event.traceparent for event in events)
        if call is None and not has_own:
            return None
        own = [self._own_context(event.traceparent) if has_own else None for event in events]
        if call is None:
            return PublishTrace(None, own) if any(own) else None
        attributes: dict[str, AttributeValue] = {
            names.MESSAGING_SYSTEM: names.HOOKLINE,
            names.MESSAGING_OPERATION: names.PUBLISH,
            names.MESSAGING_OPERATION_TYPE: "send",
            names.MESSAGING_DESTINATION: tenant,
            names.MESSAGING_BATCH_COUNT: len(events),
        }
        span = self._tracer.start_span(
            names.PUBLISH,
            set_span_in_context(call, _EMPTY),
            SpanKind.PRODUCER,
            attributes,
            [_link_to(context) for context in own if context is not None],
        )
        context = span.get_span_context()
        packed = pack(context.trace_id, context.span_id, int(context.trace_flags))
        # An event that says where it comes from belongs there, sampled or not.
        contexts = [
            own[place] if event.traceparent else packed for place, event in enumerate(events)
        ]
        return PublishTrace(span, contexts)

    def _own_context(self, traceparent: str) -> bytes | None:
        parent = parse_traceparent(traceparent) if traceparent else None
        if parent is None or not self._sampling.is_sampled(parent, random):
            return None
        return pack(*parent)

    def attempt_began(
        self, context: bytes, *, number: int, event: str, delivery_id: UUID, subscription: str
    ) -> AttemptTrace | None:
        """An attempt of a delivery whose event has stored its context; `number` counts from 1."""
        if self._tracer is None or (parent := unpack(context)) is None:
            return None
        return AttemptTrace(
            self._tracer,
            parent,
            number=number,
            event=event,
            delivery_id=delivery_id,
            subscription=subscription,
        )

    def current_context(self) -> bytes | None:
        """The context of the call that this task serves, as an event stores it."""
        span = CURRENT.get()
        if span is None:
            return None
        context = span.get_span_context()
        return pack(context.trace_id, context.span_id, int(context.trace_flags))


def _under(parent: Parent | None) -> Context:
    """A context with this parent and nothing else: whatever is ambient has no say."""
    if parent is None:
        return _EMPTY
    return set_span_in_context(NonRecordingSpan(context_of(parent)), _EMPTY)


def _link_to(packed: bytes) -> Link:
    parent = unpack(packed)
    assert parent is not None  # noqa: S101 - it was packed here
    return Link(context_of(parent))
