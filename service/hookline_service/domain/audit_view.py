"""What an audit entry shows of a resource: named fields and no others, without secrets, bounded.

Each view names the fields that it shows. A field that a resource gains later is not shown until it
is added here; a test requires a decision. Times are left out: a change's is the entry's own.
Header values and what stands in a URL's query are redacted, since receivers take tokens there; the
names and the path remain, so that a redirection of deliveries is visible.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from hookline_service.domain.api_key import ApiKey, api_key_name
from hookline_service.domain.delivery import DeliveryState
from hookline_service.domain.event import EventType
from hookline_service.domain.names import event_type_name, subscription_name, tenant_name
from hookline_service.domain.subscription import HttpTarget, Subscription
from hookline_service.domain.tenant import Tenant

REDACTED = "[redacted]"
JSON_BYTES_MAX = 16 * 1024
"""Of one side of an entry. What is larger gives its largest fields for their size and hash."""

View = dict[str, Any]
"""JSON in the contract's names; durations are numbers, with their unit in the name."""


def tenant_view(tenant: Tenant) -> View:
    """A tenant as an entry shows it."""
    return {
        "name": tenant_name(tenant.tenant_id),
        "uid": str(tenant.uid),
        "display_name": tenant.display_name,
        "labels": dict(tenant.labels),
        "state": tenant.state.value,
    }


def event_type_view(event_type: EventType) -> View:
    """An event type as an entry shows it."""
    return {
        "name": event_type_name(event_type.name),
        "description": event_type.description,
        "json_schema": event_type.json_schema,
        "proto_message": event_type.proto_message,
        "example_json": event_type.example_json,
        "state": event_type.state.value,
        "revision": event_type.revision,
        "etag": event_type.etag,
    }


def subscription_view(subscription: Subscription) -> View:
    """A subscription as an entry shows it; of its keys only what is public."""
    policy, limits = subscription.retry_policy, subscription.limits
    return {
        "name": subscription_name(subscription.tenant_id, subscription.subscription_id),
        "uid": str(subscription.uid),
        "display_name": subscription.display_name,
        "event_types": list(subscription.event_types),
        "http": _target_view(subscription.target),
        "retry_policy": {
            "max_attempts": policy.max_attempts,
            "min_backoff_s": policy.min_backoff_s,
            "max_backoff_s": policy.max_backoff_s,
            "schedule_s": list(policy.schedule_s),
        },
        "limits": {
            "max_per_second": limits.max_per_second,
            "max_in_flight": limits.max_in_flight,
        },
        "ordered": subscription.ordered,
        "propagate_trace": subscription.propagate_trace,
        "payload_format": subscription.payload_format.value,
        "labels": dict(subscription.labels),
        "state": subscription.state.value,
        "state_reason": subscription.state_reason and subscription.state_reason.value,
        "state_message": subscription.state_message,
        "signing_keys": [
            {"scheme": key.scheme.value, "public_key": key.public_key}
            for key in subscription.signing_keys
        ],
        "etag": subscription.etag,
    }


def _target_view(target: HttpTarget) -> View:
    certificate = target.client_certificate
    return {
        "url": redacted_url(target.url),
        "failover_urls": [redacted_url(url) for url in target.failover_urls],
        "headers": dict.fromkeys(target.headers, REDACTED),
        "timeout_s": target.timeout_s,
        "signature_scheme": target.signature_scheme.value,
        "require_handshake": target.require_handshake,
        "allowed_per_minute": target.allowed_per_minute,
        "secret_header_names": list(target.secret_header_names),
        "client_certificate": certificate
        and {"subject": certificate.subject, "fingerprint": certificate.fingerprint},
    }


def api_key_view(key: ApiKey) -> View:
    """An API key as an entry shows it: what it may do, and nothing of its token."""
    return {
        "name": api_key_name(key.key_id),
        "display_name": key.display_name,
        "tenant": "" if key.tenant_id is None else tenant_name(key.tenant_id),
        "scopes": sorted(key.scopes),
        "expire_time": "" if key.expire_time is None else key.expire_time.isoformat(),
        "is_revoked": key.revoke_time is not None,
    }


def delivery_view(name: str, event: str, subscription: str, state: DeliveryState) -> View:
    """A delivery as an entry shows it: where it stands, and nothing of what it carries."""
    return {"name": name, "event": event, "subscription": subscription, "state": state.value}


def redacted_url(url: str) -> str:
    """The URL with the names of its query's parameters, without their values."""
    path, question, query = url.partition("?")
    if not question:
        return url
    names = [part.partition("=") for part in query.split("&")]
    # What has no `=` may be a token itself.
    parts = [f"{name}={REDACTED}" if equals else REDACTED for name, equals, _ in names]
    return f"{path}?{'&'.join(parts)}"


def json_of(view: Mapping[str, Any] | None) -> str:
    """The JSON of one side of an entry, at most `JSON_BYTES_MAX` long; empty for None.

    What is left out is said in its place, with its size and SHA-256.
    """
    if view is None:
        return ""
    shown = dict(view)
    text = _compact(shown)
    left_out: set[str] = set()
    while len(text.encode()) > JSON_BYTES_MAX and len(left_out) < len(shown):
        largest = max(shown.keys() - left_out, key=lambda name: (len(_compact(shown[name])), name))
        shown[largest] = _instead_of(shown[largest])
        left_out.add(largest)
        text = _compact(shown)
    return text


def _instead_of(value: object) -> str:
    encoded = value.encode() if isinstance(value, str) else _compact(value).encode()
    return f"[left out: {len(encoded)} bytes, SHA-256 {hashlib.sha256(encoded).hexdigest()}]"


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
