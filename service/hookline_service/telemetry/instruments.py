"""What the rooms are handed: how to make a span, and where to count."""

from __future__ import annotations

from typing import Final, NamedTuple

from hookline_service.telemetry.meters import Meters
from hookline_service.telemetry.tracing import Tracer


class Instruments(NamedTuple):
    """Of one node."""

    tracer: Tracer
    meters: Meters


UNOBSERVED: Final = Instruments(Tracer(), Meters(is_on=False))
"""Nobody listens: nothing is made, nothing is added up."""
