"""The two spans of an attempt: that of the delivery, and within it that of the request.

Every delivery has both, and the SDK's `start_span` and `end` were measured at 22 µs a span, most of
it for changes of open spans. So an attempt only stores times and its record; at its end it creates
the finished spans that exporters read: the SDK's `ReadableSpan`, with ids of the provider's
generator, passed to the provider's processors (`on_start` is not called: no processor uses it).
Spans that are not made per delivery are ordinary ones (`tracing.py`).
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

from hookline_service.domain.attempt import AttemptOutcome, AttemptRecord
from hookline_service.telemetry import names
from hookline_service.telemetry.context import RANDOM, SAMPLED, Parent, format_traceparent

SCOPE: Final = InstrumentationScope(names.SCOPE, "", names.SCHEMA_URL)
"""The provider's own scope, so that all spans have the same."""

_UNSET: Final = Status()
_ERROR: Final = Status(StatusCode.ERROR)
_ERROR_FROM_STATUS: Final = 400
"""HTTP statuses from here on are errors of a client span."""


class AttemptTrace:
    """The trace of one attempt, from its start to the commit of its record."""

    __slots__ = (
        "_answered_ns",
        "_began_ns",
        "_deliver_id",
        "_delivery_id",
        "_event",
        "_flags",
        "_number",
        "_parent",
        "_post_id",
        "_record",
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
        self._record: AttemptRecord | None = None
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
        """The trace's id, as it is stored with attempts."""
        return self._trace_id.to_bytes(16, "big")

    @property
    def trace_text(self) -> str:
        """The trace's id in hexadecimal digits."""
        return f"{self._trace_id:032x}"

    @property
    def traceparent(self) -> bytes:
        """The header by which the receiver continues the trace."""
        return format_traceparent(self._trace_id, self._post_id, self._flags).encode()

    def answered(self, record: AttemptRecord) -> None:
        """End the request."""
        self._answered_ns = time_ns()
        self._record = record

    def recorded(self, *, is_recorded: bool) -> None:
        """End the delivery; `is_recorded` is False if another transaction changed its row."""
        self._end(time_ns(), is_recorded=is_recorded)

    def abandoned(self) -> None:
        """End both spans of a cancelled attempt."""
        self._answered_ns = time_ns()
        self._end(self._answered_ns)

    def _end(self, ended_ns: int, *, is_recorded: bool = True) -> None:
        flags = TraceFlags(self._flags)
        deliver = SpanContext(self._trace_id, self._deliver_id, False, flags)  # noqa: FBT003
        post = SpanContext(self._trace_id, self._post_id, False, flags)  # noqa: FBT003
        event = context_of(self._parent)
        request, delivery = self._of_request(), self._of_delivery()
        if not is_recorded:
            delivery[names.IS_RECORDED] = False
        self._finish(names.POST, SpanKind.CLIENT, post, deliver, request, self._answered_ns)
        if self._number == 1:
            self._finish(names.DELIVER, SpanKind.CONSUMER, deliver, event, delivery, ended_ns)
        else:
            links = (Link(event),)
            self._finish(names.DELIVER, SpanKind.CONSUMER, deliver, None, delivery, ended_ns, links)

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
        attributes: dict[str, AttributeValue] = {
            names.MESSAGING_SYSTEM: names.HOOKLINE,
            names.MESSAGING_OPERATION: names.DELIVER,
            names.MESSAGING_OPERATION_TYPE: "process",
            names.MESSAGING_MESSAGE: self._event,
            names.MESSAGING_SUBSCRIPTION: self._subscription,
            names.DELIVERY: str(self._delivery_id),
            names.ATTEMPT: self._number,
        }
        record = self._record
        if record is None:
            attributes[names.ERROR_TYPE] = names.CANCELLED
            return attributes
        attributes[names.OUTCOME] = record.kind.value
        if record.kind is not AttemptOutcome.ACCEPTED:
            attributes[names.ERROR_TYPE] = record.kind.value
        return attributes

    def _of_request(self) -> dict[str, AttributeValue]:
        attributes: dict[str, AttributeValue] = {names.HTTP_METHOD: names.POST}
        if self._number > 1:
            attributes[names.HTTP_RESEND_COUNT] = self._number - 1
        record = self._record
        if record is None:
            attributes[names.ERROR_TYPE] = names.CANCELLED
            return attributes
        if record.url:  # empty after an internal error
            (
                attributes[names.URL_SCHEME],
                attributes[names.SERVER_ADDRESS],
                attributes[names.SERVER_PORT],
            ) = _server_of(record.url)
        if record.remote_address is not None:
            attributes[names.PEER_ADDRESS] = record.remote_address
        status = record.http_status
        if status is not None:
            attributes[names.HTTP_STATUS] = status
        if status is None or status >= _ERROR_FROM_STATUS:
            attributes[names.ERROR_TYPE] = record.kind.value if status is None else str(status)
        return attributes


def context_of(parent: Parent) -> SpanContext:
    """Return the SDK's form of a remote context."""
    return SpanContext(
        parent.trace_id, parent.span_id, is_remote=True, trace_flags=TraceFlags(parent.flags)
    )


@lru_cache(maxsize=4_096)
def _server_of(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a URL, and nothing else."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, parts.hostname or "", port
