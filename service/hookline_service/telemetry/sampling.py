"""Which traces are recorded: decided once, where a trace enters, and carried as a bit from there.

The samplers of OpenTelemetry by their names (`OTEL_TRACES_SAMPLER`), decided without a span: what
is not sampled makes no object at all.
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
    """How a trace's recording is decided."""

    ratio: float = 1.0
    """Of the traces that begin here, or of all where parents are not followed."""
    follows_parent: bool = True
    """Whether what the caller has decided holds."""

    def is_sampled(self, parent: Parent | None, random: Callable[[], float]) -> bool:
        """The decision; `random` draws from [0, 1) for a trace that has no id yet."""
        if parent is None:
            return random() < self.ratio
        if self.follows_parent:
            return parent.is_sampled
        # By the id, so that all who sample by the same ratio keep the same traces.
        return parent.trace_id & _LOW_BITS < round(self.ratio * (1 << 64))


def sampling_of(sampler: str, ratio: float) -> Sampling:
    """The sampler of a name; `ratio` counts for those that are named after it."""
    name = sampler.removeprefix(_PARENT)
    kept = {"always_on": 1.0, "always_off": 0.0, "traceidratio": ratio}[name]
    return Sampling(kept, follows_parent=sampler.startswith(_PARENT))
