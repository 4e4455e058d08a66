"""How much one may do in a second: token buckets by key, in a table that has an end.

A bucket holds what may be done in one second. More may be taken than it holds: then it owes, and
nothing is given until the debt is paid. So a large message passes like a small one, and what passes
in the long run is the rate. A bucket that is full might as well not be there, so all that is known
of one is when it will be (the virtual scheduling algorithm, ITU-T I.371 annex A); where there are
too many, those go that are full, or will be soonest. So whoever has spent much cannot be forgotten
before all who have spent less, however many come, and coming again while refused changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

MAX_KEYS: Final = 10_000
_ROUNDING_S: Final = 1e-9


class TokenBuckets:
    """One bucket for each key, all filling at the same rate."""

    def __init__(
        self,
        rate_per_s: float,
        *,
        max_keys: int = MAX_KEYS,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate_per_s = rate_per_s
        self._max_keys = max_keys
        self._monotonic_s = monotonic_s
        self._full_at_s: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._full_at_s)

    def wait_s(self, key: str) -> float:
        """Seconds until something may be taken; 0: now."""
        full_at_s = self._full_at_s.get(key)
        if full_at_s is None:
            return 0.0
        lacks_s = full_at_s - self._monotonic_s()
        return 0.0 if lacks_s < 1 - _ROUNDING_S else lacks_s - 1 + 1 / self._rate_per_s

    def take(self, key: str, amount: float) -> None:
        """Take it, whether it is there or not; to be called after `wait_s`."""
        now_s = self._monotonic_s()
        full_at_s = max(self._full_at_s.get(key, now_s), now_s)
        self._full_at_s[key] = full_at_s + amount / self._rate_per_s
        if len(self._full_at_s) > self._max_keys:
            self._make_room(now_s)

    def _make_room(self, now_s: float) -> None:
        """Half of the table at once, so that what it costs is little for each that comes."""
        owing = [one for one in self._full_at_s.items() if one[1] > now_s]
        owing.sort(key=lambda one: one[1])
        self._full_at_s = dict(owing[-(self._max_keys // 2) :])
