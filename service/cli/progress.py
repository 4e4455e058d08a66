"""How far a long command is, told once a second."""

from __future__ import annotations

import time
from typing import Final

_PAUSE_S: Final = 1.0


class Progress:
    """Tells of one command; a quick one has nothing to tell."""

    def __init__(self) -> None:
        self._told_s = time.monotonic()

    def tell(self, done: int, whole: int) -> None:
        """So much is done, of so much."""
        if time.monotonic() >= self._told_s + _PAUSE_S:
            self._told_s = time.monotonic()
            print(f"  {done:,} of {whole:,}", flush=True)
