"""How far a long command is, told once a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_PAUSE_S: Final = 1.0


class Progress:
    """Tells of one command; a quick one has nothing to tell."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._told_s = clock_s()

    def tell(self, done: int, whole: int) -> None:
        """So much is done, of so much."""
        if self._clock_s() >= self._told_s + _PAUSE_S:
            self._told_s = self._clock_s()
            print(f"  {done:,} of {whole:,}", flush=True)
