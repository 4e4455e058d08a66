"""Uids of tenants and subscriptions: their order is that of creation, so lists need no other.

RFC 9562 section 6.2, method 3: the 12 bits behind the milliseconds are a fraction of one, which
tells creations apart to the quarter of a microsecond.
"""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from hookline_service.domain.ids import make_uuid7

_FRACTION_BITS = 12
_RANDOM_BITS = 62


def make_uid(unix_us: int, random_bits: Callable[[int], int]) -> UUID:
    """The uid of what is created at these Unix microseconds, database time."""
    unix_ms, us = divmod(unix_us, 1_000)
    fraction = (us << _FRACTION_BITS) // 1_000
    return make_uuid7(unix_ms, fraction << _RANDOM_BITS | random_bits(_RANDOM_BITS))
