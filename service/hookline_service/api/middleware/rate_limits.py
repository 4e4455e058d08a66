"""Rate limits: token buckets by key, in a table of bounded size, and the refusals that name them.

A bucket holds what may be done in one second. More may be taken than it holds: then it is in debt,
and nothing passes until the debt is paid. So a large message passes like a small one, and in the
long run the rate holds. A full bucket need not be stored, so all that is stored of one is when it
will be full (the virtual scheduling algorithm, ITU-T I.371 annex A). Where there are too many, the
buckets that are full, or will be soonest, are dropped: the debt of a key outlives that of all keys
that have spent less, however many there are, and calls that are refused change nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from hookline_service.domain.errors import Reason, ResourceExhaustedError

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
        """Return the seconds until something may be taken; 0: now."""
        full_at_s = self._full_at_s.get(key)
        if full_at_s is None:
            return 0.0
        lacks_s = full_at_s - self._monotonic_s()
        return 0.0 if lacks_s < 1 - _ROUNDING_S else lacks_s - 1 + 1 / self._rate_per_s

    def take(self, key: str, amount: float) -> None:
        """Take an amount, going into debt if need be; called after `wait_s` has returned 0."""
        now_s = self._monotonic_s()
        full_at_s = max(self._full_at_s.get(key, now_s), now_s)
        self._full_at_s[key] = full_at_s + amount / self._rate_per_s
        if len(self._full_at_s) > self._max_keys:
            self._drop_fullest(now_s)

    def _drop_fullest(self, now_s: float) -> None:
        """Drop half of the table at once, so that the cost for each new key stays small."""
        in_debt = [entry for entry in self._full_at_s.items() if entry[1] > now_s]
        in_debt.sort(key=lambda entry: entry[1])
        self._full_at_s = dict(in_debt[-(self._max_keys // 2) :])


class RateLimit:
    """The rate of one setting, for each caller or tenant that it bounds."""

    def __init__(
        self, setting: str, unit: str, rate_per_s: int, monotonic_s: Callable[[], float]
    ) -> None:
        """`setting` and `unit` (`calls`, `bytes`) are named in refusals."""
        self._setting = setting
        self._unit = unit
        self._rate_per_s = rate_per_s
        self._buckets = TokenBuckets(rate_per_s, monotonic_s=monotonic_s)

    def check(self, subject: str) -> None:
        """Raise `ResourceExhaustedError` where the subject has used up its rate."""
        wait_s = self._buckets.wait_s(subject)
        if wait_s > 0:
            raise ResourceExhaustedError(
                f"{subject} comes to more than {self._rate_per_s:,} {self._unit} a second on this"
                f" node ({self._setting}); nothing was done, repeat the call later",
                Reason.QUOTA_EXCEEDED,
                retry_after_s=wait_s,
                metadata={
                    "subject": subject,
                    "limit": self._setting,
                    "maximum": str(self._rate_per_s),
                },
            )

    def take(self, subject: str, amount: int) -> None:
        """Count calls or bytes of a subject."""
        self._buckets.take(subject, amount)
