"""Retry schedules, jitter, and the parsing of `Retry-After`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

DEFAULT_DELAYS_S: tuple[float, ...] = (
    0, 5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400,
)  # fmt: skip
"""In seconds: 0, 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h, 24 h before attempts 1 to 10."""

JITTER_FLOOR = 0.8
"""Each delay is multiplied by a uniform draw from [0.8, 1), so that retries spread out."""

MAX_ATTEMPTS = 100
MAX_DELAY_S = 7 * 86_400.0
MAX_RETRY_AFTER_S = 86_400.0


@dataclass(frozen=True, slots=True)
class RetrySchedule:
    """The delays between the starts of a delivery's attempts, in seconds.

    `delays_s[n - 1]` comes before attempt `n`; its length is the number of attempts.
    """

    delays_s: tuple[float, ...] = DEFAULT_DELAYS_S

    @property
    def max_attempts(self) -> int:
        """The number of attempts before a delivery is exhausted."""
        return len(self.delays_s)

    def delay_s(self, attempts_spent: int, unit: float) -> float:
        """Return the seconds between attempts, after `attempts_spent` of this budget.

        `unit` is uniform in [0, 1). A budget longer than the schedule repeats the last delay.
        """
        base_s = self.delays_s[min(attempts_spent, len(self.delays_s) - 1)]
        return base_s * (JITTER_FLOOR + (1 - JITTER_FLOOR) * unit)


def doubling(max_attempts: int, min_backoff_s: float, max_backoff_s: float) -> RetrySchedule:
    """Return a schedule that doubles from `min_backoff_s` to `max_backoff_s`, from 0 s on."""
    delays_s = [0.0]
    backoff_s = min_backoff_s
    while len(delays_s) < max_attempts:
        delays_s.append(min(backoff_s, max_backoff_s))
        backoff_s = min(backoff_s * 2, max_backoff_s)
    return RetrySchedule(tuple(delays_s))


def parse_retry_after(value: bytes, now_unix_s: float) -> float | None:
    """Return the delay of a `Retry-After` in seconds, at most 24 hours; None if it is invalid.

    RFC 9110 section 10.2.3: ASCII digits, or an HTTP-date (taken against `now_unix_s`).
    """
    text = value.strip(b" \t")
    if not text or len(text) > 64:  # noqa: PLR2004 - the longest HTTP-date has 33 characters
        return None
    if text.isdigit():
        return min(float(text), MAX_RETRY_AFTER_S)
    try:
        moment = parsedate_to_datetime(text.decode("ascii"))
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        delay_s = moment.timestamp() - now_unix_s
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(delay_s, 0.0), MAX_RETRY_AFTER_S)
