"""The grammar of names: resources, ids, event types, patterns, attributes, keys.

Each `check_…` returns what is wrong as a sentence without a subject, or None. The caller knows the
field and puts the two together.
"""

from __future__ import annotations

import re

MAX_ID_LENGTH = 63
MAX_EVENT_TYPE_LENGTH = 128
MAX_ATTRIBUTES = 32
MAX_ATTRIBUTE_NAME_LENGTH = 64
MAX_KEY_LENGTH = 255

WILDCARD = "-"
"""`tenants/-`: across tenants, in reads only."""

_ID = re.compile(r"[a-z][a-z0-9-]{0,62}", re.ASCII)
_EVENT_TYPE = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*", re.ASCII)
_ATTRIBUTE = re.compile(r"[a-z0-9]{1,64}", re.ASCII)
_KEY = re.compile(r"[\x20-\x7e]{1,255}", re.ASCII)
_CONTENT_TYPE = re.compile(
    r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+"
    r"(?:[ \t]*;[ \t]*[A-Za-z0-9!#$&^_.+-]+="
    r"(?:[A-Za-z0-9!#$&^_.+-]+|\"[\x20\x21\x23-\x5b\x5d-\x7e]*\"))*",
    re.ASCII,
)
_MAX_CONTENT_TYPE_LENGTH = 255

CLOUDEVENTS_CORE = frozenset(
    {
        "specversion", "id", "source", "type", "subject", "time", "data", "data_base64",
        "datacontenttype", "dataschema", "traceparent",
    }
)  # fmt: skip
"""Names that an attribute may not take (CloudEvents 1.0 section 3.1, and what we send)."""


def check_id(text: str) -> str | None:
    """The grammar of tenant, subscription and replay ids."""
    if _ID.fullmatch(text):
        return None
    return (
        "must be lower-case letters, digits and hyphens, begin with a letter, "
        f"and have 1 to {MAX_ID_LENGTH} characters"
    )


def check_event_type(text: str) -> str | None:
    """The grammar of an event type's id."""
    if len(text) <= MAX_EVENT_TYPE_LENGTH and _EVENT_TYPE.fullmatch(text):
        return None
    return (
        "must be segments of letters, digits, '_' and '-' joined by '.', "
        f"with 1 to {MAX_EVENT_TYPE_LENGTH} characters in all"
    )


def check_pattern(text: str) -> str | None:
    """The grammar of a subscription's pattern: an exact type, `order.*`, or `*`."""
    if text == "*":
        return None
    stem = text.removesuffix(".*")
    if check_event_type(stem) is None and len(text) <= MAX_EVENT_TYPE_LENGTH:
        return None
    return "must be an event type, a prefix such as 'order.*', or '*'"


def check_attribute_name(text: str) -> str | None:
    """The grammar of an event attribute's name."""
    if text in CLOUDEVENTS_CORE:
        return "is a name that CloudEvents reserves"
    if _ATTRIBUTE.fullmatch(text):
        return None
    return f"must be 1 to {MAX_ATTRIBUTE_NAME_LENGTH} lower-case letters and digits"


def check_key(text: str) -> str | None:
    """The grammar of idempotency and ordering keys."""
    if _KEY.fullmatch(text):
        return None
    return f"must be 1 to {MAX_KEY_LENGTH} printable ASCII characters"


def check_content_type(text: str) -> str | None:
    """A media type with parameters (RFC 9110 section 8.3.1), fit to be sent as a header."""
    if len(text) <= _MAX_CONTENT_TYPE_LENGTH and _CONTENT_TYPE.fullmatch(text):
        return None
    return "must be a media type such as 'application/json'"


def check_text(text: str, max_length: int) -> str | None:
    """Free text: bounded, and without U+0000, which Postgres cannot store."""
    if len(text) > max_length:
        return f"has {len(text)} characters; the limit is {max_length}"
    if "\x00" in text:
        return "contains U+0000"
    return None


def tenant_name(tenant_id: str) -> str:
    """`tenants/acme`."""
    return f"tenants/{tenant_id}"


def subscription_name(tenant_id: str, subscription_id: str) -> str:
    """`tenants/acme/subscriptions/orders`."""
    return f"tenants/{tenant_id}/subscriptions/{subscription_id}"


def event_name(tenant_id: str, event_id: str) -> str:
    """`tenants/acme/events/evt_…`."""
    return f"tenants/{tenant_id}/events/{event_id}"


def delivery_name(tenant_id: str, delivery_id: str) -> str:
    """`tenants/acme/deliveries/dlv_…`."""
    return f"tenants/{tenant_id}/deliveries/{delivery_id}"


def event_type_name(event_type: str) -> str:
    """`eventTypes/order.created`."""
    return f"eventTypes/{event_type}"


def parse_name(name: str, *collections: str) -> tuple[str, ...] | None:
    """The ids in a resource name of the given collections, or None where it is none.

    >>> parse_name("tenants/acme/events/evt_1", "tenants", "events")
    ('acme', 'evt_1')
    """
    parts = name.split("/")
    if len(parts) != 2 * len(collections) or tuple(parts[::2]) != collections:
        return None
    ids = tuple(parts[1::2])
    return ids if all(ids) else None
