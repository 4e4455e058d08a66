"""The two spans of an attempt: the delivery's, and the request's within it.

There are two for each delivery, and the SDK's `start_span` and `end` were measured at 22 µs a span,
most of it for what may still be said of a span that is open. So an attempt notes what it meets, and
what exporters read of a finished span is made at its end: the SDK's `ReadableSpan`, with ids of the
provider's generator, handed to the provider's processors (`on_start` is not called: there is none
that looks at it). Whatever is not per delivery is an ordinary span (`tracing.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from time import time_ns
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID

from opentelemetry.sdk.trace import ReadableSpan, Tracer
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

from hookline_service.domain.attempt import AttemptOutcome, Outcome
from hookline_service.telemetry import names
from hookline_service.telemetry.context import RANDOM, SAMPLED, Parent, format_traceparent

SCOPE: Final = InstrumentationScope(names.SCOPE, "", names.SCHEMA_URL)
"""As the provider names it for its own tracer: spans of both kinds are of one scope."""

_UNSET: Final = Status()
_ERROR: Final = Status(StatusCode.ERROR)
_ERROR_FROM_STATUS: Final = 400
"""HTTP answers from here on are errors of a client's span."""


class AttemptTrace:
    """One attempt that is traced, from its beginning to its recorded outcome."""

    __slots__ = (
        "_answered_ns",
        "_began_ns",
        "_deliver_id",
        "_delivery_id",
        "_event",
        "_flags",
        "_number",
        "_outcome",
        "_parent",
        "_post_id",
        "_subscription",
        "_trace_id",
        "_tracer",
    )

    def __init__(
        self,
        tracer: Tracer,
        parent: Parent,
        *,
        number: int,
        event: str,
        delivery_id: UUID,
        subscription: str,
    ) -> None:
        """The first attempt is a child of `parent`, which its event has stored; later ones link."""
        self._tracer = tracer
        self._parent = parent
        self._number = number
        self._event = event
        self._delivery_id = delivery_id
        self._subscription = subscription
        self._outcome: Outcome | None = None
        ids = tracer.id_generator
        if number == 1:
            self._trace_id, self._flags = parent.trace_id, parent.flags | SAMPLED
        else:
            self._trace_id = ids.generate_trace_id()
            self._flags = SAMPLED | RANDOM if ids.is_trace_id_random() else SAMPLED
        self._deliver_id = ids.generate_span_id()
        self._post_id = ids.generate_span_id()
        self._began_ns = self._answered_ns = time_ns()

    @property
    def trace_id(self) -> bytes:
        """As attempts are stored with it."""
        return self._trace_id.to_bytes(16, "big")

    @property
    def trace_text(self) -> str:
        """The trace's id in hexadecimal digits."""
        return f"{self._trace_id:032x}"

    @property
    def traceparent(self) -> bytes:
        """The header that lets the receiver continue the trace."""
        return format_traceparent(self._trace_id, self._post_id, self._flags).encode()

    def answered(self, outcome: Outcome) -> None:
        """The request is over."""
        self._answered_ns = time_ns()
        self._outcome = outcome

    def recorded(self, *, is_recorded: bool) -> None:
        """Its outcome is stored; or is not, for the row was somebody else's meanwhile."""
        self._end(time_ns(), is_recorded=is_recorded)

    def abandoned(self) -> None:
        """It was cut short: nobody will learn what came of it."""
        self._answered_ns = time_ns()
        self._end(self._answered_ns)

    def _end(self, ended_ns: int, *, is_recorded: bool = True) -> None:
        flags = TraceFlags(self._flags)
        deliver = SpanContext(self._trace_id, self._deliver_id, False, flags)  # noqa: FBT003
        post = SpanContext(self._trace_id, self._post_id, False, flags)  # noqa: FBT003
        event = context_of(self._parent)
        asked, done = self._of_request(), self._of_delivery()
        if not is_recorded:
            done[names.IS_RECORDED] = False
        self._finish(names.POST, SpanKind.CLIENT, post, deliver, asked, self._answered_ns)
        if self._number == 1:
            self._finish(names.DELIVER, SpanKind.CONSUMER, deliver, event, done, ended_ns)
        else:
            links = (Link(event),)
            self._finish(names.DELIVER, SpanKind.CONSUMER, deliver, None, done, ended_ns, links)

    def _finish(
        self,
        name: str,
        kind: SpanKind,
        context: SpanContext,
        parent: SpanContext | None,
        attributes: Mapping[str, AttributeValue],
        ended_ns: int,
        links: tuple[Link, ...] = (),
    ) -> None:
        tracer = self._tracer
        tracer.span_processor.on_end(
            ReadableSpan(
                name,
                context,
                parent,
                tracer.resource,
                attributes,
                links=links,
                kind=kind,
                status=_ERROR if names.ERROR_TYPE in attributes else _UNSET,
                start_time=self._began_ns,
                end_time=ended_ns,
                instrumentation_scope=SCOPE,
            )
        )

    def _of_delivery(self) -> dict[str, AttributeValue]:
        told: dict[str, AttributeValue] = {
            names.MESSAGING_SYSTEM: names.HOOKLINE,
            names.MESSAGING_OPERATION: names.DELIVER,
            names.MESSAGING_OPERATION_TYPE: "process",
            names.MESSAGING_MESSAGE: self._event,
            names.MESSAGING_SUBSCRIPTION: self._subscription,
            names.DELIVERY: str(self._delivery_id),
            names.ATTEMPT: self._number,
        }
        outcome = self._outcome
        if outcome is None:
            told[names.ERROR_TYPE] = names.CANCELLED
            return told
        told[names.OUTCOME] = outcome.kind.value
        if outcome.kind is not AttemptOutcome.ACCEPTED:
            told[names.ERROR_TYPE] = outcome.kind.value
        return told

    def _of_request(self) -> dict[str, AttributeValue]:
        told: dict[str, AttributeValue] = {names.HTTP_METHOD: names.POST}
        if self._number > 1:
            told[names.HTTP_RESEND_COUNT] = self._number - 1
        outcome = self._outcome
        if outcome is None:
            told[names.ERROR_TYPE] = names.CANCELLED
            return told
        if outcome.url:  # else no URL was come to: the fault was ours
            told[names.URL_SCHEME], told[names.SERVER_ADDRESS], told[names.SERVER_PORT] = (
                _server_of(outcome.url)
            )
        if outcome.remote_address is not None:
            told[names.PEER_ADDRESS] = outcome.remote_address
        status = outcome.http_status
        if status is not None:
            told[names.HTTP_STATUS] = status
        if status is None or status >= _ERROR_FROM_STATUS:
            told[names.ERROR_TYPE] = outcome.kind.value if status is None else str(status)
        return told


def context_of(parent: Parent) -> SpanContext:
    """A context that came from elsewhere, as the SDK has it."""
    return SpanContext(
        parent.trace_id, parent.span_id, is_remote=True, trace_flags=TraceFlags(parent.flags)
    )


@lru_cache(maxsize=4_096)
def _server_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of a URL, and nothing else of it."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, parts.hostname or "", port
