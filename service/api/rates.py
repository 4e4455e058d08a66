"""How much one may do in a second: token buckets by key, in a table that has an end.

A bucket holds what may be done in one second. More may be taken than it holds: then it owes, and
nothing is given until the debt is paid. So a large message passes like a small one, and what passes
in the long run is the rate. A bucket that was not used for a while is full, and might as well not
be there: the one that was not used for longest goes where there are too many.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

MAX_KEYS: Final = 10_000


class Buckets:
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
        self._buckets: OrderedDict[str, list[float]] = OrderedDict()
        """What each held, and when."""

    def __len__(self) -> int:
        return len(self._buckets)

    def wait_s(self, key: str) -> float:
        """Seconds until something may be taken; 0: now."""
        bucket = self._buckets.get(key)
        if bucket is None:
            return 0.0
        now_s, rate_per_s = self._monotonic_s(), self._rate_per_s
        held = bucket[0] + (now_s - bucket[1]) * rate_per_s
        bucket[0] = held = min(held, rate_per_s)
        bucket[1] = now_s
        return 0.0 if held > 0 else (1 - held) / rate_per_s

    def take(self, key: str, amount: float) -> None:
        """Take it, whether it is there or not; to be called after `wait_s`, which fills it up."""
        buckets = self._buckets
        bucket = buckets.get(key)
        if bucket is not None:
            bucket[0] -= amount
            buckets.move_to_end(key)
            return
        buckets[key] = [self._rate_per_s - amount, self._monotonic_s()]
        if len(buckets) > self._max_keys:
            buckets.popitem(last=False)
