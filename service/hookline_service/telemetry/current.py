"""The span of the call that a task serves, for whoever tells of it: logs, the audit log, events.

Kept apart from `tracing.py`, so that logs need not import OpenTelemetry.
"""

from __future__ import annotations

from contextvars import ContextVar

from opentelemetry.trace import Span

CURRENT: ContextVar[Span | None] = ContextVar("span", default=None)
"""None: there is no call, or it is not sampled."""


def current_trace_id() -> str:
    """The trace of the call that this task serves, 32 hexadecimal digits; empty: not sampled."""
    ids = current_ids()
    return "" if ids is None else ids[0]


def current_ids() -> tuple[str, str] | None:
    """The same with the span's id, 16 digits; None: not sampled."""
    span = CURRENT.get()
    if span is None:
        return None
    context = span.get_span_context()
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"
