"""Spans, created at the points that an event passes.

    PublishEvents   SERVER    of a call, under the caller's `traceparent`
      publish       PRODUCER  from the queue to the commit; the context that its events store
        deliver     CONSUMER  an attempt, until its outcome is recorded
          POST      CLIENT    the request itself; what the receiver may continue

The first attempt belongs to the trace of the event. A later attempt, which may happen a day later,
begins its own trace with a link to that of the event. Sampling is decided once, when the trace
enters the service (`sampling.py`): methods here return None for an unsampled trace before they
create anything. Does not depend on gRPC, HTTP or SQL. `attempts.py` defines the spans of an
attempt, `outbox.py` exports spans.
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
from hookline_service.telemetry.context import (
    CURRENT,
    Parent,
    pack,
    parse_traceparent,
    unpack,
)
from hookline_service.telemetry.sampling import Sampling

_ERROR = Status(StatusCode.ERROR)
_EMPTY = Context()
_FAULTS = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
"""gRPC codes that mark a server span as an error; the others are errors of the caller."""


class PublishTrace:
    """The trace of a publish call: its span, and the context of each of its events."""

    __slots__ = ("_span", "contexts")

    def __init__(self, span: Span | None, contexts: Sequence[bytes | None]) -> None:
        self._span = span
        self.contexts = contexts
        """In the order of the events; None for an unsampled event."""

    def settled(self, done: asyncio.Future[object]) -> None:
        """End the span with the result of the call."""
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
    """Creates spans if tracing is on and the trace is sampled; otherwise returns None."""

    def __init__(
        self, provider: TracerProvider | None = None, sampling: Sampling | None = None
    ) -> None:
        """Trace nothing without a `provider`, or with a disabled one."""
        tracer = provider and provider.get_tracer(names.SCOPE, schema_url=names.SCHEMA_URL)
        self._tracer = tracer if isinstance(tracer, sdk.Tracer) else None
        self._sampling = sampling or Sampling()

    @property
    def is_on(self) -> bool:
        """Whether tracing is on."""
        return self._tracer is not None

    def call_began(self, method: str, traceparent: str | bytes | None) -> None:
        """Begin the span of a call, and make it current in this task."""
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
        """End the span of the current call; `code` is the name of its gRPC status code."""
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
        """Begin the trace of a call's events before they are queued; None if none is sampled."""
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
        # An event with its own traceparent belongs to that trace, sampled or not.
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
        """Begin the trace of an attempt; `context` is the event's, `number` counts from 1."""
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
        """Return the context of the current call in its stored form."""
        span = CURRENT.get()
        if span is None:
            return None
        context = span.get_span_context()
        return pack(context.trace_id, context.span_id, int(context.trace_flags))


def _under(parent: Parent | None) -> Context:
    """Return a context with this parent only; the ambient context is ignored."""
    if parent is None:
        return _EMPTY
    return set_span_in_context(NonRecordingSpan(context_of(parent)), _EMPTY)


def _link_to(packed: bytes) -> Link:
    parent = unpack(packed)
    assert parent is not None  # noqa: S101 - packed by this module
    return Link(context_of(parent))
