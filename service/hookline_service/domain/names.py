"""The syntax of names: resources, ids, event types, patterns, attributes, keys.

Each `check_…` returns a description of the error without a subject (`must be …`), or None. Callers
put the name of the field before it.
"""

from __future__ import annotations

import re

MAX_ID_LENGTH = 63
MAX_EVENT_TYPE_LENGTH = 128
MAX_ATTRIBUTES = 32
MAX_ATTRIBUTE_NAME_LENGTH = 64
MAX_KEY_LENGTH = 255

WILDCARD = "-"
"""The id in `tenants/-`, which means all tenants; for reads only."""

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
"""Names that an attribute may not have (CloudEvents 1.0 section 3.1, and `traceparent`)."""


def check_id(text: str) -> str | None:
    """Check the id of a tenant, subscription or replay."""
    if _ID.fullmatch(text):
        return None
    return (
        "must be lower-case letters, digits and hyphens, begin with a letter, "
        f"and have 1 to {MAX_ID_LENGTH} characters"
    )


def check_event_type(text: str) -> str | None:
    """Check the id of an event type."""
    if len(text) <= MAX_EVENT_TYPE_LENGTH and _EVENT_TYPE.fullmatch(text):
        return None
    return (
        "must be segments of letters, digits, '_' and '-' joined by '.', "
        f"with 1 to {MAX_EVENT_TYPE_LENGTH} characters in all"
    )


def check_pattern(text: str) -> str | None:
    """Check a pattern of a subscription: an exact type, `order.*`, or `*`."""
    if text == "*":
        return None
    stem = text.removesuffix(".*")
    if check_event_type(stem) is None and len(text) <= MAX_EVENT_TYPE_LENGTH:
        return None
    return "must be an event type, a prefix such as 'order.*', or '*'"


def check_attribute_name(text: str) -> str | None:
    """Check the name of an event attribute."""
    if text in CLOUDEVENTS_CORE:
        return "is a name that CloudEvents or Hookline reserves"
    if _ATTRIBUTE.fullmatch(text):
        return None
    return f"must be 1 to {MAX_ATTRIBUTE_NAME_LENGTH} lower-case letters and digits"


def check_key(text: str) -> str | None:
    """Check an idempotency key or an ordering key."""
    if _KEY.fullmatch(text):
        return None
    return f"must be 1 to {MAX_KEY_LENGTH} printable ASCII characters"


def check_content_type(text: str) -> str | None:
    """Check a media type with parameters (RFC 9110 section 8.3.1), which is sent as a header."""
    if len(text) <= _MAX_CONTENT_TYPE_LENGTH and _CONTENT_TYPE.fullmatch(text):
        return None
    return (
        "must be a media type such as 'application/json', of at most"
        f" {_MAX_CONTENT_TYPE_LENGTH} characters"
    )


def check_text(text: str, max_length: int) -> str | None:
    """Check free text: its length, and that it has no U+0000, which Postgres cannot store."""
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
    """Return the ids in a resource name of the given collections; None if it does not match them.

    >>> parse_name("tenants/acme/events/evt_1", "tenants", "events")
    ('acme', 'evt_1')
    """
    parts = name.split("/")
    if len(parts) != 2 * len(collections) or tuple(parts[::2]) != collections:
        return None
    ids = tuple(parts[1::2])
    return ids if all(ids) else None
