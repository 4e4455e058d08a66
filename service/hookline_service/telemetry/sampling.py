"""Sampling: decided once, when a trace enters the service, and carried as a bit afterwards.

Implements OpenTelemetry's samplers by name (`OTEL_TRACES_SAMPLER`) without a span: an unsampled
trace creates no object.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hookline_service.telemetry.context import Parent

_LOW_BITS: Final = (1 << 64) - 1
_PARENT: Final = "parentbased_"

SAMPLERS: Final = (
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
)


@dataclass(frozen=True, slots=True)
class Sampling:
    """A sampler."""

    ratio: float = 1.0
    """The part of traces that begin here; of all traces if `follows_parent` is off."""
    follows_parent: bool = True
    """Whether the caller's decision is kept."""

    def is_sampled(self, parent: Parent | None, random: Callable[[], float]) -> bool:
        """Return the decision; `random` draws from [0, 1) for a trace without an id."""
        if parent is None:
            return random() < self.ratio
        if self.follows_parent:
            return parent.is_sampled
        # By the id, so that all services with the same ratio keep the same traces.
        return parent.trace_id & _LOW_BITS < round(self.ratio * (1 << 64))


def sampling_of(sampler: str, ratio: float) -> Sampling:
    """Return the sampler of a name; `ratio` is used by the two `traceidratio` samplers."""
    name = sampler.removeprefix(_PARENT)
    kept = {"always_on": 1.0, "always_off": 0.0, "traceidratio": ratio}[name]
    return Sampling(kept, follows_parent=sampler.startswith(_PARENT))
