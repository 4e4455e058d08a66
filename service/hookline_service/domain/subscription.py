"""A subscription: which events are delivered, to which target, and with which policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from hookline_service.domain.retry import DEFAULT_DELAYS_S, RetrySchedule, doubling

DEFAULT_TIMEOUT_S = 15.0
MIN_TIMEOUT_S = 1.0
MAX_TIMEOUT_S = 30.0
DEFAULT_MAX_IN_FLIGHT = 64
MAX_IN_FLIGHT = 1_000


class SubscriptionState(StrEnum):
    """Whether the deliveries of a subscription are sent."""

    ACTIVE = "ACTIVE"
    PAUSED = "PAUSED"
    """By an operator; events still match, deliveries are held."""
    DISABLED = "DISABLED"
    """By the service, after failures of the target; events still match, deliveries are held."""


class SubscriptionStateReason(StrEnum):
    """Why a subscription is not active."""

    OPERATOR = "OPERATOR"
    GONE = "GONE"
    FAILING = "FAILING"


class PayloadFormat(StrEnum):
    """The format of a request body."""

    STANDARD = "STANDARD"
    CLOUDEVENTS = "CLOUDEVENTS"
    RAW = "RAW"


class SignatureScheme(StrEnum):
    """How a request is signed."""

    HMAC_SHA256 = "HMAC_SHA256"
    ED25519 = "ED25519"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCertificate:
    """The public part of a client certificate; its private key is stored encrypted."""

    subject: str
    """In the notation of RFC 4514; can be empty."""
    expire_time: datetime
    fingerprint: str
    """SHA-256 of the certificate, hexadecimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpTarget:
    """A receiver of HTTP requests, with one or several URLs."""

    url: str
    failover_urls: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = DEFAULT_TIMEOUT_S
    """The timeout of an attempt, from the name resolution to the last byte of the response."""
    signature_scheme: SignatureScheme = SignatureScheme.HMAC_SHA256
    secret_header_names: tuple[str, ...] = ()
    """Sorted; the values are stored encrypted."""
    secret_header_bytes: int = 0
    """Their size; it counts towards the limit of all headers."""
    client_certificate: ClientCertificate | None = None
    require_handshake: bool = False
    """Whether the target must give its consent before anything is sent."""
    allowed_per_minute: int | None = None
    """The rate in the target's consent, in requests per minute; None: no rate, or no handshake."""

    @property
    def urls(self) -> tuple[str, ...]:
        """All URLs, in the order in which they are tried."""
        return (self.url, *self.failover_urls)

    def is_within(self, other: HttpTarget) -> bool:
        """Return whether all its URLs are also URLs of `other`, so that secrets can be kept."""
        return set(self.urls) <= set(other.urls)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """The retry policy as the subscription defines it; None or empty for fields that are not set.

    Either the three fields of the exponential backoff or `schedule_s`, never both.
    """

    max_attempts: int | None = None
    min_backoff_s: float | None = None
    max_backoff_s: float | None = None
    schedule_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryLimits:
    """The rate limit and the concurrency limit of a subscription."""

    max_per_second: float | None = None
    max_in_flight: int = DEFAULT_MAX_IN_FLIGHT


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """The public part of an active signing key; the secret itself is stored encrypted."""

    scheme: SignatureScheme
    public_key: str
    create_time: datetime
    expire_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """The subscription resource."""

    tenant_id: str
    subscription_id: str
    uid: UUID
    display_name: str = ""
    event_types: tuple[str, ...] = ()
    target: HttpTarget
    retry_policy: RetryPolicy = RetryPolicy()
    limits: DeliveryLimits = DeliveryLimits()
    ordered: bool = False
    """One delivery at a time for each ordering key, in publish order; immutable."""
    payload_format: PayloadFormat = PayloadFormat.STANDARD
    propagate_trace: bool = False
    """Whether the receiver may continue the trace."""
    labels: Mapping[str, str] = field(default_factory=dict)
    state: SubscriptionState = SubscriptionState.ACTIVE
    state_reason: SubscriptionStateReason | None = None
    state_message: str = ""
    signing_keys: tuple[SigningKey, ...] = ()
    create_time: datetime | None = None
    update_time: datetime | None = None
    etag: str = ""


def paused(seen: Subscription) -> Subscription:
    """Return the subscription, paused by an operator."""
    if seen.state is SubscriptionState.PAUSED:
        return seen
    message = "paused by an operator"
    if seen.state is SubscriptionState.DISABLED:
        message += f"; it was disabled before: {seen.state_message}"
    return replace(
        seen,
        state=SubscriptionState.PAUSED,
        state_reason=SubscriptionStateReason.OPERATOR,
        state_message=message,
    )


def resumed(seen: Subscription) -> Subscription:
    """Return the subscription, active again."""
    return replace(seen, state=SubscriptionState.ACTIVE, state_reason=None, state_message="")


def matches(pattern: str, event_type: str) -> bool:
    """Return whether a pattern (an exact type, `order.*`, or `*`) matches an event type.

    The definition that the index in `pipeline/publishing/matching.py` implements.
    """
    if pattern == "*":
        return not event_type.startswith("hookline.")
    if pattern.endswith(".*"):
        return event_type.startswith(pattern[:-1])
    return pattern == event_type


def schedule_of(policy: RetryPolicy) -> RetrySchedule:
    """Return the delays of a policy; those of an empty policy are the default schedule."""
    if policy.schedule_s:
        return RetrySchedule(policy.schedule_s)
    if policy.min_backoff_s is None and policy.max_backoff_s is None:
        if policy.max_attempts is None:
            return RetrySchedule()
        padded = DEFAULT_DELAYS_S + DEFAULT_DELAYS_S[-1:] * policy.max_attempts
        return RetrySchedule(padded[: policy.max_attempts])
    return doubling(
        policy.max_attempts or len(DEFAULT_DELAYS_S),
        policy.min_backoff_s or DEFAULT_DELAYS_S[1],
        policy.max_backoff_s or DEFAULT_DELAYS_S[-1],
    )


def rate_of(subscription: Subscription) -> float | None:
    """Return the rate limit per second: the lower of the subscription's and its target's."""
    limit, allowed = subscription.limits.max_per_second, subscription.target.allowed_per_minute
    if allowed is None:
        return limit
    return allowed / 60 if limit is None else min(limit, allowed / 60)
