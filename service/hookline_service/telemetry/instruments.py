"""The tracer and the meters, passed to other packages together."""

from __future__ import annotations

from typing import Final, NamedTuple

from hookline_service.telemetry.meters import Meters
from hookline_service.telemetry.tracing import Tracer


class Instruments(NamedTuple):
    """The telemetry of one node."""

    tracer: Tracer
    meters: Meters


UNOBSERVED: Final = Instruments(Tracer(), Meters(is_on=False))
"""Telemetry that is turned off."""
