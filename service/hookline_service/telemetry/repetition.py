"""A line that says the same again and again is said a few times a minute, then counted.

What happens each second for each of a thousand subscriptions is one trouble and not a million
lines. The same is what has the same name and is about the same subscription, worker or part; or,
where a line says a reason, what has that reason, whomever it meets. The first line after a silence
says how many were left out.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final

import structlog
from structlog.typing import EventDict

WINDOW_S: Final = 60.0
LINES_A_WINDOW: Final = 3
KEYS_MAX: Final = 2_000
"""Of so many different lines it is known when they were said; the longest forgotten goes first."""

_ABOUT: Final = (
    "logger",
    "event",
    "reason",
    "worker",
    "part",
    "name",
    "setting",
    "event_type",
)


@dataclass(slots=True)
class _Said:
    began_s: float
    lines: int = 0
    left_out: int = 0


class Repetition:
    """Decides which lines are said."""

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_s = monotonic_s
        self._said: OrderedDict[Hashable, _Said] = OrderedDict()

    def admit(self, key: Hashable) -> int | None:
        """How many such lines were left out before this one; None: this one is left out too."""
        now_s = self._monotonic_s()
        said = self._said.pop(key, None)
        left_out = 0
        if said is None or now_s - said.began_s >= WINDOW_S:
            left_out = 0 if said is None else said.left_out
            said = _Said(now_s)
        self._said[key] = said
        if len(self._said) > KEYS_MAX:
            self._said.popitem(last=False)
        if said.lines >= LINES_A_WINDOW:
            said.left_out += 1
            return None
        said.lines += 1
        return left_out

    def limit(self, _logger: object, _method: str, event: EventDict) -> EventDict:
        """A processor for our own lines."""
        whom = None if "reason" in event else event.get("subscription")
        left_out = self.admit((whom, *[event.get(name) for name in _ABOUT]))
        if left_out is None:
            raise structlog.DropEvent
        if left_out:
            event["repeated"] = left_out
        return event

    def filter(self, record: logging.LogRecord) -> bool:
        """A filter for the lines of libraries, which come by the standard library."""
        if isinstance(record.msg, dict):  # ours: it went through `limit`
            return True
        return self.admit((record.name, record.msg)) is not None
