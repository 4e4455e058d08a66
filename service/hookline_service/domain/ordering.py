"""Which deliveries of an ordered subscription go one behind the other.

Those of one ordering key do, in the order of their events' ordinals. Rows, indexes and memory know
a key by 63 bits of its hash: keys may have 255 letters, and an event has a row for each of its
subscriptions. Two keys that shared a hash would wait for one another, and nothing worse.
"""

from __future__ import annotations

from hashlib import blake2b
from uuid import UUID

_MASK_63 = (1 << 63) - 1

FIRST_KEY_HASH = 0
"""The least there can be."""
LAST_KEY_HASH = _MASK_63
"""The greatest: one more is no bigint."""


def key_hash_of(ordering_key: str, event_id: UUID) -> int:
    """What stands for an event's ordering key; without one it has a key of its own.

    From `FIRST_KEY_HASH` to `LAST_KEY_HASH`. It is stored: another hash would be another order.
    """
    if not ordering_key:
        return event_id.int & _MASK_63
    return int.from_bytes(blake2b(ordering_key.encode(), digest_size=8).digest()) & _MASK_63
