"""The progress of a long command, printed once a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_PAUSE_S: Final = 1.0


class Progress:
    """The progress of one command; one that takes less than a second prints none."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._shown_s = clock_s()

    def show(self, done: int, whole: int) -> None:
        """Print how much is done, of how much, at most once a second."""
        if self._clock_s() >= self._shown_s + _PAUSE_S:
            self._shown_s = self._clock_s()
            print(f"  {done:,} of {whole:,}", flush=True)
