"""Views of resources in the audit log: no secret, every field decided, bounded size."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from hookline_service.domain.api_key import ApiKey
from hookline_service.domain.audit_view import (
    JSON_BYTES_MAX,
    api_key_view,
    event_type_view,
    json_of,
    redacted_url,
    subscription_view,
    tenant_view,
)
from hookline_service.domain.event import EventType
from hookline_service.domain.subscription import (
    ClientCertificate,
    DeliveryLimits,
    HttpTarget,
    RetryPolicy,
    SignatureScheme,
    SigningKey,
    Subscription,
)
from hookline_service.domain.tenant import Tenant

TARGET = HttpTarget(
    url="https://example.com/hooks/7?token=geheim&mode=live&flag",
    failover_urls=("https://b.example.com/?geheim",),
    headers={"x-token": "geheim"},
    client_certificate=ClientCertificate(
        subject="CN=hookline", expire_time=datetime(2027, 1, 1, tzinfo=UTC), fingerprint="ab" * 32
    ),
)
SUBSCRIPTION = Subscription(
    tenant_id="acme",
    subscription_id="orders",
    uid=UUID(int=7),
    event_types=("order.*",),
    target=TARGET,
    signing_keys=(
        SigningKey(
            scheme=SignatureScheme.ED25519,
            public_key="whpk_abc",
            create_time=datetime(2026, 11, 24, tzinfo=UTC),
            expire_time=None,
        ),
    ),
    etag="5c1e63f2-1",
)

API_KEY = ApiKey(
    key_id="a1B2c3D4e5F6",
    display_name="",
    tenant_id=None,
    scopes=frozenset(),
    create_time=datetime(2026, 11, 24, tzinfo=UTC),
)


def test_secrets_of_a_target_are_redacted() -> None:
    view = subscription_view(SUBSCRIPTION)
    assert view["http"]["url"] == (
        "https://example.com/hooks/7?token=[redacted]&mode=[redacted]&[redacted]"
    )
    assert view["http"]["headers"] == {"x-token": "[redacted]"}
    assert view["signing_keys"] == [{"scheme": "ED25519", "public_key": "whpk_abc"}]
    assert "geheim" not in json_of(view)


def test_only_the_query_of_a_url_is_redacted() -> None:
    assert redacted_url("https://example.com:8443/a/b") == "https://example.com:8443/a/b"
    assert redacted_url("https://example.com/?") == "https://example.com/?[redacted]"


@pytest.mark.parametrize(
    "kind, view, otherwise",
    [
        (
            Subscription,
            subscription_view(SUBSCRIPTION),
            # Under other names; times, which are the entries' own.
            {"tenant_id", "subscription_id", "target", "create_time", "update_time"},
        ),
        (HttpTarget, subscription_view(SUBSCRIPTION)["http"], {"secret_header_bytes"}),
        (RetryPolicy, subscription_view(SUBSCRIPTION)["retry_policy"], set()),
        (ClientCertificate, subscription_view(SUBSCRIPTION)["http"]["client_certificate"],
         {"expire_time"}),
        (DeliveryLimits, subscription_view(SUBSCRIPTION)["limits"], set()),
        (SigningKey, subscription_view(SUBSCRIPTION)["signing_keys"][0],
         {"create_time", "expire_time"}),
        (Tenant, tenant_view(Tenant(tenant_id="acme", uid=UUID(int=1))),
         {"tenant_id", "create_time"}),
        (EventType, event_type_view(EventType(name="a")), {"create_time", "update_time"}),
        (ApiKey, api_key_view(API_KEY),
         {"key_id", "tenant_id", "create_time", "last_use_time", "revoke_time"}),
    ],
)  # fmt: skip
def test_every_field_is_shown_or_explicitly_left_out(
    kind: Any,  # noqa: ANN401 (any dataclass)
    view: dict[str, Any],
    otherwise: set[str],
) -> None:
    """A new field is shown, redacted, or left out for a reason: decide it in audit_view."""
    assert {field.name for field in fields(kind)} - otherwise <= view.keys()


def test_absent_view_is_an_empty_string() -> None:
    assert json_of(None) == ""
    assert json_of({}) == "{}"


def test_oversized_field_is_replaced_by_its_size_and_hash() -> None:
    schema = "ß" * JSON_BYTES_MAX
    shown = json.loads(json_of({"name": "eventTypes/a", "json_schema": schema, "revision": 1}))
    digest = hashlib.sha256(schema.encode()).hexdigest()
    assert shown == {
        "name": "eventTypes/a",
        "json_schema": f"[left out: {2 * JSON_BYTES_MAX} bytes, SHA-256 {digest}]",
        "revision": 1,
    }


def test_only_the_largest_fields_are_left_out() -> None:
    view = {"a": "x" * 9_000, "b": "y" * 8_000, "c": ["z"] * 1_000}
    shown = json.loads(json_of(view))
    assert shown["a"].startswith("[left out: 9000 bytes, SHA-256 ")
    assert (shown["b"], shown["c"]) == (view["b"], view["c"])


def test_view_never_exceeds_its_size_limit() -> None:
    view = {f"field_{n}": "x" * 1_000 for n in range(100)}
    assert len(json_of(view).encode()) <= JSON_BYTES_MAX
