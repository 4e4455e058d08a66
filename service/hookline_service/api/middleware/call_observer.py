"""Observers of calls: each call's span and duration, reported without gRPC's types to telemetry."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import grpc

from hookline_service.telemetry.context import HEADER
from hookline_service.telemetry.instruments import Instruments

UNKNOWN_METHOD = "_OTHER"
"""The name under which calls of unknown methods are reported (OpenTelemetry's)."""

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_TRACED_PREFIX = "hookline."
"""The packages whose calls have spans: health probes have none."""


class CallObserver(Protocol):
    """Receives the beginning and the end of every call."""

    def call_began(self, method: str, context: _Context) -> None:
        """Called in the call's own task, before anything is done for it."""

    def call_ended(self, method: str, code: grpc.StatusCode, duration_s: float) -> None:
        """`method` is `hookline.v1.EventService/GetEvent`; `duration_s` counts from its arrival."""


class Unobserved:
    """Observer that ignores calls."""

    def call_began(self, method: str, context: _Context) -> None:
        """Do nothing."""

    def call_ended(self, method: str, code: grpc.StatusCode, duration_s: float) -> None:
        """Do nothing."""


class TelemetryObserver:
    """Observer that traces calls and measures their durations."""

    def __init__(self, instruments: Instruments) -> None:
        self._tracer, self._meters = instruments

    def call_began(self, method: str, context: _Context) -> None:
        """Begin a span under the caller's `traceparent`; no other context is taken from it."""
        if self._tracer.is_on and method.startswith(_TRACED_PREFIX):
            traceparent = None
            for key, value in context.invocation_metadata() or ():
                if key == HEADER:
                    traceparent = value
            self._tracer.call_began(method, traceparent)

    def call_ended(self, method: str, code: grpc.StatusCode, duration_s: float) -> None:
        """End the span, with the code that the caller is answered."""
        self._tracer.call_ended(code.name)
        self._meters.call_ended(method, code.name, duration_s)
