"""Uids of tenants and subscriptions, which are ordered by creation time.

RFC 9562 section 6.2, method 3: the 12 bits after the milliseconds are a fraction of a millisecond,
with a resolution of a quarter of a microsecond.
"""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from hookline_service.domain.ids import make_uuid7

_FRACTION_BITS = 12
_RANDOM_BITS = 62


def make_uid(unix_us: int, random_bits: Callable[[int], int]) -> UUID:
    """Return a uid for the creation time in Unix microseconds, by the clock of the database."""
    unix_ms, us = divmod(unix_us, 1_000)
    fraction = (us << _FRACTION_BITS) // 1_000
    return make_uuid7(unix_ms, fraction << _RANDOM_BITS | random_bits(_RANDOM_BITS))
