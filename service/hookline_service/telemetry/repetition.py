"""Limits repeated log lines to a few per minute, and counts those left out.

A failure that happens each second for each of a thousand subscriptions must not write a million
lines. Lines are the same if they have the same event and subject (subscription, worker, part); or,
if a line has a reason, the same event and reason for any subscription. The next line that is logged
has the number of lines left out in `repeated`.
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
"""Bound of the lines that are remembered; the least recent one is forgotten first."""

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
class _Window:
    began_s: float
    lines: int = 0
    left_out: int = 0


class Repetition:
    """Decides which lines are logged."""

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_s = monotonic_s
        self._windows: OrderedDict[Hashable, _Window] = OrderedDict()

    def admit(self, key: Hashable) -> int | None:
        """Return how many such lines were left out before this one; None: leave this one out."""
        now_s = self._monotonic_s()
        window = self._windows.pop(key, None)
        left_out = 0
        if window is None or now_s - window.began_s >= WINDOW_S:
            left_out = 0 if window is None else window.left_out
            window = _Window(now_s)
        self._windows[key] = window
        if len(self._windows) > KEYS_MAX:
            self._windows.popitem(last=False)
        if window.lines >= LINES_A_WINDOW:
            window.left_out += 1
            return None
        window.lines += 1
        return left_out

    def limit(self, _logger: object, _method: str, event: EventDict) -> EventDict:
        """Process the service's own lines (structlog)."""
        subject = None if "reason" in event else event.get("subscription")
        left_out = self.admit((subject, *[event.get(name) for name in _ABOUT]))
        if left_out is None:
            raise structlog.DropEvent
        if left_out:
            event["repeated"] = left_out
        return event

    def filter(self, record: logging.LogRecord) -> bool:
        """Filter the lines of libraries (standard library)."""
        if isinstance(record.msg, dict):  # from structlog: `limit` has run
            return True
        return self.admit((record.name, record.msg)) is not None
