"""Spans, made by hand at the points where an event passes.

    PublishEvents   SERVER    of a call, under the caller's `traceparent`
      publish       PRODUCER  from the queue to the commit; the context that its events store
        deliver     CONSUMER  an attempt, until its outcome is recorded
          POST      CLIENT    the request itself; what the receiver may continue

The first attempt belongs to the event's trace. A later one, which may come a day after, begins a
trace of its own that is linked to the event's. Whether any of it is recorded is decided once, where
the trace enters (`sampling.py`): everything here returns None for what is not, before it makes
anything. Knows nothing of gRPC, HTTP or SQL, and where spans go is `outbox.py`'s.
"""

from __future__ import annotations

from functools import lru_cache
from random import random
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from service.domain.attempt import AttemptOutcome
from service.telemetry import names
from service.telemetry.context import (
    Parent,
    format_traceparent,
    pack,
    parse_traceparent,
    unpack,
)
from service.telemetry.current import CURRENT
from service.telemetry.sampling import Sampling

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence
    from uuid import UUID

    from opentelemetry import trace
    from opentelemetry.util.types import AttributeValue

    from service.domain.attempt import Outcome
    from service.domain.event import NewEvent

_ERROR = Status(StatusCode.ERROR)
_EMPTY = Context()
_ERROR_FROM_STATUS = 400
"""HTTP answers from here on are errors of a client's span."""
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
            kind = "cancelled" if error is None else str(getattr(error, "reason", "INTERNAL"))
            span.set_attribute(names.ERROR_TYPE, kind)
            span.set_status(_ERROR)
        span.end()


class AttemptTrace:
    """One attempt that is traced: the delivery's span, and the request's within it."""

    __slots__ = ("_deliver", "_post", "trace_id", "traceparent")

    def __init__(self, deliver: Span, post: Span) -> None:
        self._deliver = deliver
        self._post = post
        context = post.get_span_context()
        self.trace_id = context.trace_id.to_bytes(16, "big")
        self.traceparent = format_traceparent(
            context.trace_id, context.span_id, int(context.trace_flags)
        ).encode()
        """The header that lets the receiver continue the trace."""

    @property
    def trace_text(self) -> str:
        """The trace's id in hexadecimal digits."""
        return self.trace_id.hex()

    def answered(self, outcome: Outcome) -> None:
        """The request is over."""
        post = self._post
        attributes: dict[str, AttributeValue] = {}
        if outcome.url:  # else no URL was come to: the fault was ours
            scheme, host, port = _server_of(outcome.url)
            attributes[names.URL_SCHEME] = scheme
            attributes[names.SERVER_ADDRESS] = host
            attributes[names.SERVER_PORT] = port
        if outcome.remote_address is not None:
            attributes[names.PEER_ADDRESS] = outcome.remote_address
        status = outcome.http_status
        if status is not None:
            attributes[names.HTTP_STATUS] = status
        if status is None or status >= _ERROR_FROM_STATUS:
            attributes[names.ERROR_TYPE] = outcome.kind.value if status is None else str(status)
            post.set_status(_ERROR)
        post.set_attributes(attributes)
        post.end()
        self._deliver.set_attribute(names.OUTCOME, outcome.kind.value)
        if outcome.kind is not AttemptOutcome.ACCEPTED:
            self._deliver.set_attribute(names.ERROR_TYPE, outcome.kind.value)
            self._deliver.set_status(_ERROR)

    def recorded(self, *, is_recorded: bool) -> None:
        """Its outcome is stored; or is not, for the row was somebody else's meanwhile."""
        if not is_recorded:
            self._deliver.set_attribute(names.IS_RECORDED, value=False)
        self._deliver.end()

    def abandoned(self) -> None:
        """It was cut short: nobody will learn what came of it."""
        for span in (self._post, self._deliver):
            span.set_attribute(names.ERROR_TYPE, "cancelled")
            span.set_status(_ERROR)
            span.end()


class Tracer:
    """Makes spans, where tracing is on and the trace is sampled; else None."""

    def __init__(
        self, tracer: trace.Tracer | None = None, sampling: Sampling | None = None
    ) -> None:
        """Without a `tracer` nothing is traced."""
        self._tracer = tracer
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
            _context_of(parent),
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
        attributes: dict[str, AttributeValue] = {
            names.MESSAGING_SYSTEM: names.HOOKLINE,
            names.MESSAGING_OPERATION: names.DELIVER,
            names.MESSAGING_OPERATION_TYPE: "process",
            names.MESSAGING_MESSAGE: event,
            names.MESSAGING_SUBSCRIPTION: subscription,
            names.DELIVERY: str(delivery_id),
            names.ATTEMPT: number,
        }
        is_first = number == 1
        deliver = self._tracer.start_span(
            names.DELIVER,
            _context_of(parent if is_first else None),
            SpanKind.CONSUMER,
            attributes,
            () if is_first else (Link(_span_context(parent)),),
        )
        asked: dict[str, AttributeValue] = {names.HTTP_METHOD: names.POST}
        if not is_first:
            asked[names.HTTP_RESEND_COUNT] = number - 1
        post = self._tracer.start_span(
            names.POST, set_span_in_context(deliver, _EMPTY), SpanKind.CLIENT, asked
        )
        return AttemptTrace(deliver, post)

    def current_context(self) -> bytes | None:
        """The context of the call that this task serves, as an event stores it."""
        span = CURRENT.get()
        if span is None:
            return None
        context = span.get_span_context()
        return pack(context.trace_id, context.span_id, int(context.trace_flags))


def _span_context(parent: Parent) -> SpanContext:
    return SpanContext(
        parent.trace_id, parent.span_id, is_remote=True, trace_flags=TraceFlags(parent.flags | 1)
    )


def _context_of(parent: Parent | None) -> Context:
    """A context with this parent and nothing else: whatever is ambient has no say."""
    if parent is None:
        return _EMPTY
    return set_span_in_context(NonRecordingSpan(_span_context(parent)), _EMPTY)


def _link_to(packed: bytes) -> Link:
    parent = unpack(packed)
    assert parent is not None  # noqa: S101 - it was packed here
    return Link(_span_context(parent))


@lru_cache(maxsize=4_096)
def _server_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of a URL, and nothing else of it."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, parts.hostname or "", port
