"""Conversions between rows of `subscriptions` and the domain."""

from __future__ import annotations

from datetime import datetime
from typing import Final, TypedDict
from uuid import UUID

import asyncpg

from hookline_service.domain.subscription import (
    ClientCertificate,
    DeliveryLimits,
    HttpTarget,
    PayloadFormat,
    RetryPolicy,
    SignatureScheme,
    SigningKey,
    Subscription,
    SubscriptionState,
    SubscriptionStateReason,
)

HEADERS: Final = "HEADERS"
CERTIFICATE: Final = "CERTIFICATE"
"""The kinds of target secrets in the database."""


def etag_of(uid: UUID, version: int) -> str:
    """Return the etag of a version; it also differs between subscriptions of the same name."""
    return f"{uid.hex[-8:]}-{version}"


def version_of(subscription: Subscription) -> int:
    """Return the version of the row in a subscription's etag."""
    return int(subscription.etag.rpartition("-")[2])


def subscription_of(row: asyncpg.Record) -> Subscription:
    """Return the subscription in a row of the statement `read`."""
    return Subscription(
        tenant_id=row["tenant_id"],
        subscription_id=row["subscription_id"],
        uid=row["subscription_uid"],
        display_name=row["display_name"],
        event_types=tuple(row["event_types"]),
        target=HttpTarget(
            url=row["url"],
            failover_urls=tuple(row["failover_urls"]),
            headers=row["headers"],
            timeout_s=row["timeout_ms"] / 1_000,
            signature_scheme=SignatureScheme(row["signature_scheme"]),
            require_handshake=row["handshake"] is not None,
            allowed_per_minute=row["handshake"] and row["handshake"]["per_minute"],
            **public_fields_of(row),
        ),
        retry_policy=policy_of(row),
        limits=DeliveryLimits(
            max_per_second=row["max_per_second"], max_in_flight=row["max_in_flight"]
        ),
        ordered=row["ordered"],
        payload_format=PayloadFormat(row["payload_format"]),
        propagate_trace=row["propagate_trace"],
        labels=row["labels"],
        state=SubscriptionState(row["state"]),
        state_reason=row["state_reason"] and SubscriptionStateReason(row["state_reason"]),
        state_message=row["state_message"],
        signing_keys=_keys_of(row),
        create_time=row["create_time"],
        update_time=row["update_time"],
        etag=etag_of(row["subscription_uid"], row["version"]),
    )


class PublicFields(TypedDict, total=False):
    """The public fields of a target's secrets."""

    secret_header_names: tuple[str, ...]
    secret_header_bytes: int
    client_certificate: ClientCertificate


def public_fields_of(row: asyncpg.Record) -> PublicFields:
    """Return the public fields of a target's secrets in a row of the statement `read`."""
    found: PublicFields = {}
    for kind, shown in zip(row["secret_kinds"], row["secret_shown"], strict=True):
        if kind == HEADERS:
            found["secret_header_names"] = tuple(shown["names"])
            found["secret_header_bytes"] = shown["bytes"]
        else:
            found["client_certificate"] = ClientCertificate(
                subject=shown["subject"],
                expire_time=datetime.fromisoformat(shown["expire_time"]),
                fingerprint=shown["fingerprint"],
            )
    return found


def stored_public_fields_of(target: HttpTarget, kind: str) -> dict[str, object]:
    """Return the public fields of a secret in their stored form."""
    if kind == HEADERS:
        names, size = list(target.secret_header_names), target.secret_header_bytes
        return {"names": names, "bytes": size}
    certificate = target.client_certificate
    if certificate is None:
        return {}
    return {
        "subject": certificate.subject,
        "expire_time": certificate.expire_time.isoformat(),
        "fingerprint": certificate.fingerprint,
    }


def handshake_of(target: HttpTarget) -> dict[str, int | None] | None:
    """Return the column `handshake`; None if the target requires no handshake."""
    return {"per_minute": target.allowed_per_minute} if target.require_handshake else None


def policy_of(row: asyncpg.Record) -> RetryPolicy:
    """Return the retry policy in a row."""
    return RetryPolicy(
        max_attempts=row["max_attempts"],
        min_backoff_s=row["min_backoff_s"],
        max_backoff_s=row["max_backoff_s"],
        schedule_s=tuple(row["schedule_s"]),
    )


def _keys_of(row: asyncpg.Record) -> tuple[SigningKey, ...]:
    columns = (
        row["key_schemes"],
        row["key_public_keys"],
        row["key_create_times"],
        row["key_expire_times"],
    )
    return tuple(
        SigningKey(
            scheme=SignatureScheme(scheme),
            public_key=public_key,
            create_time=create_time,
            expire_time=expire_time,
        )
        for scheme, public_key, create_time, expire_time in zip(*columns, strict=True)
    )


def target_columns_of(subscription: Subscription) -> tuple[object, ...]:
    """Return the columns from `display_name` to `timeout_ms`, in the order of the statements."""
    target = subscription.target
    return (
        subscription.display_name,
        list(subscription.event_types),
        target.url,
        list(target.failover_urls),
        dict(target.headers),
        round(target.timeout_s * 1_000),
    )


def policy_columns_of(subscription: Subscription) -> tuple[object, ...]:
    """Return the columns from `max_attempts` to `labels`, in the order of the statements."""
    policy, limits = subscription.retry_policy, subscription.limits
    return (
        policy.max_attempts,
        policy.min_backoff_s,
        policy.max_backoff_s,
        list(policy.schedule_s),
        limits.max_per_second,
        limits.max_in_flight,
        subscription.payload_format.value,
        dict(subscription.labels),
    )
