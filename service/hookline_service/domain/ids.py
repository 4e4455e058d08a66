"""Identifiers: UUIDv7 inside, TypeIDs (`evt_…`, `dlv_…`) on the wire.

Theory of operation. Every id begins with 48 bits of Unix milliseconds, so tables are partitioned by
day on the id alone. The ids of one event's first fan-out share the event's leading bits, and end in
an index and in the subscription's bucket:

    event     | 48 ms | ver | 12 random | var | 34 random | 28 random           |
    delivery  | the event's first 100 bits, the same       | 20 index | 8 bucket |

so that "all deliveries of this event" is a range of the primary key, and a delivery is found by its
id without a secondary index. Two events of the same millisecond share those bits with a probability
of 2^-46.

Sources: RFC 9562 section 5.7 (UUIDv7), TypeID specification 0.3.
"""

from __future__ import annotations

from hashlib import blake2b
from uuid import UUID

BUCKET_COUNT = 256
"""The number of buckets of subscriptions; a change would require moving every pending row."""

MAX_FAN_OUT = 1 << 20
"""Deliveries of one event in one publish; the width of the index in a delivery's id."""

LAST_UUID = UUID(int=(1 << 128) - 1)
"""After every id: where a list in descending order begins."""

EVENT_ID = "evt"
DELIVERY_ID = "dlv"
"""Prefixes of TypeIDs."""

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = tuple(high + low for high in _ALPHABET for low in _ALPHABET)
_SHIFTS = tuple(range(120, -1, -10))
_VALUES = {letter: value for value, letter in enumerate(_ALPHABET)}
_TYPE_ID_LENGTH = 26
_LOW_28 = (1 << 28) - 1


def make_uuid7(unix_ms: int, random_74: int) -> UUID:
    """Return a UUIDv7 of the given Unix milliseconds and 74 random bits."""
    return UUID(
        int=(unix_ms & 0xFFFFFFFFFFFF) << 80
        | 0x7 << 76
        | (random_74 >> 62 & 0xFFF) << 64
        | 0x2 << 62
        | random_74 & 0x3FFFFFFFFFFFFFFF
    )


def delivery_id_of(event_id: UUID, index: int, bucket: int) -> UUID:
    """Return the id of an event's delivery number `index` (below `MAX_FAN_OUT`) into a bucket."""
    return UUID(int=event_id.int & ~_LOW_28 | index << 8 | bucket)


def delivery_range_of(event_id: UUID) -> tuple[UUID, UUID]:
    """Return the first and the last id, inclusive, of the deliveries of the first fan-out."""
    first = event_id.int & ~_LOW_28
    return UUID(int=first), UUID(int=first | _LOW_28)


def bucket_of(subscription_uid: UUID) -> int:
    """Return the bucket of a subscription; it never changes."""
    return blake2b(subscription_uid.bytes, digest_size=1).digest()[0]


def bucket_of_delivery(delivery_id: UUID) -> int:
    """Return the bucket in the last 8 bits of a delivery's id."""
    return delivery_id.int & 0xFF


def unix_ms_of(uuid7: UUID) -> int:
    """Return the Unix milliseconds at the beginning of a UUIDv7."""
    return uuid7.int >> 80


def first_uuid_of(unix_ms: int) -> UUID:
    """Return the inclusive lower bound of all ids of the given Unix milliseconds or later."""
    return UUID(int=max(unix_ms, 0) << 80)


def format_type_id(prefix: str, value: UUID) -> str:
    """Return the TypeID of a UUID, such as `evt_01jdc…` (26 letters of Crockford base32)."""
    number = value.int
    return f"{prefix}_{''.join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])}"


def parse_type_id(prefix: str, text: str) -> UUID | None:
    """Return the UUID of a TypeID; None if the text is not a TypeID with that prefix."""
    head, _, letters = text.partition("_")
    if head != prefix or len(letters) != _TYPE_ID_LENGTH or letters[0] > "7":
        return None
    number = 0
    for letter in letters:
        value = _VALUES.get(letter)
        if value is None:
            return None
        number = number << 5 | value
    return UUID(int=number)
