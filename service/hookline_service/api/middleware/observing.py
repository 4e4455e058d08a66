"""What is told of calls: a span and a duration each, through instruments that know no gRPC."""

from __future__ import annotations

from typing import Any

import grpc

from hookline_service.telemetry.context import HEADER
from hookline_service.telemetry.instruments import Instruments

_TRACED = "hookline."
"""Our own services; a probe each second is no trace."""


class ObservedCalls:
    """The observer of `CallGuard` that traces and measures."""

    def __init__(self, instruments: Instruments) -> None:
        self._tracer, self._meters = instruments

    def call_began(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Under the caller's `traceparent`, where there is one; of nothing else it says."""
        if self._tracer.is_on and method.startswith(_TRACED):
            traceparent = None
            for key, value in context.invocation_metadata() or ():
                if key == HEADER:
                    traceparent = value
            self._tracer.call_began(method, traceparent)

    def call_ended(self, method: str, code: grpc.StatusCode, duration_s: float) -> None:
        """With the code that its caller is answered with."""
        self._tracer.call_ended(code.name)
        self._meters.call_ended(method, code.name, duration_s)
