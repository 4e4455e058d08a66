"""The hash of ordering keys.

Deliveries of an ordered subscription with the same ordering key are sent one at a time, in the
order of their events' ordinals. Rows, indexes and memory store 63 bits of a hash instead of the
key, because a key can have 255 characters and an event has a row for each of its subscriptions. Two
keys with the same hash are ordered as one key; nothing else happens.
"""

from __future__ import annotations

from hashlib import blake2b
from uuid import UUID

_MASK_63 = (1 << 63) - 1

FIRST_KEY_HASH = 0
"""The smallest hash."""
LAST_KEY_HASH = _MASK_63
"""The largest hash: the maximum of a bigint."""


def key_hash_of(ordering_key: str, event_id: UUID) -> int:
    """Return the hash of an event's ordering key; without a key, a hash of the event's id.

    Between `FIRST_KEY_HASH` and `LAST_KEY_HASH`. The hash is stored: the function must not change.
    """
    if not ordering_key:
        return event_id.int & _MASK_63
    return int.from_bytes(blake2b(ordering_key.encode(), digest_size=8).digest()) & _MASK_63
