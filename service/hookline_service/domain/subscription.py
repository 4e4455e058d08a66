"""A subscription: what a target wants, how it is reached, and by which policies."""

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
    """Whether a subscription's deliveries go out."""

    ACTIVE = "ACTIVE"
    PAUSED = "PAUSED"
    """By an operator; matching goes on, deliveries are held."""
    DISABLED = "DISABLED"
    """By the engine, for the target's own failures; matching goes on, deliveries are held."""


class SubscriptionStateReason(StrEnum):
    """Why a subscription is not active."""

    OPERATOR = "OPERATOR"
    GONE = "GONE"
    FAILING = "FAILING"


class PayloadFormat(StrEnum):
    """How an event is laid into a request's body."""

    STANDARD = "STANDARD"
    CLOUDEVENTS = "CLOUDEVENTS"
    RAW = "RAW"


class SignatureScheme(StrEnum):
    """How a request is signed."""

    HMAC_SHA256 = "HMAC_SHA256"
    ED25519 = "ED25519"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCertificate:
    """What may be told of the certificate that a target is shown; its key never is."""

    subject: str
    """As RFC 4514 writes it; may be empty."""
    expire_time: datetime
    fingerprint: str
    """SHA-256 of the certificate, hexadecimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpTarget:
    """The receiving server, or several of them."""

    url: str
    failover_urls: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = DEFAULT_TIMEOUT_S
    """The one deadline of an attempt, from the name's resolution to the last byte read."""
    signature_scheme: SignatureScheme = SignatureScheme.HMAC_SHA256
    secret_header_names: tuple[str, ...] = ()
    """Sorted; the values are sealed in the store."""
    secret_header_bytes: int = 0
    """What they count for against the bytes of all headers."""
    client_certificate: ClientCertificate | None = None
    require_handshake: bool = False
    """Whether it is asked for its consent before it is sent to."""
    allowed_per_minute: int | None = None
    """Requests; the rate that its consent named. None: any, or it was not asked."""

    @property
    def urls(self) -> tuple[str, ...]:
        """Every URL that it may be sent to at, in the order in which they are tried."""
        return (self.url, *self.failover_urls)

    def is_within(self, other: HttpTarget) -> bool:
        """Whether it is sent nowhere that the other is not: what is secret may stay with it."""
        return set(self.urls) <= set(other.urls)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """What a subscription said of its retries; None where it said nothing.

    Either the three doubling fields or `schedule_s`, never both.
    """

    max_attempts: int | None = None
    min_backoff_s: float | None = None
    max_backoff_s: float | None = None
    schedule_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryLimits:
    """How fast and how wide a subscription's deliveries go out."""

    max_per_second: float | None = None
    max_in_flight: int = DEFAULT_MAX_IN_FLIGHT


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """What may be told of a live signing key; the secret itself never leaves the store in clear."""

    scheme: SignatureScheme
    public_key: str
    create_time: datetime
    expire_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """The whole resource, as its tenant sees it."""

    tenant_id: str
    subscription_id: str
    uid: UUID
    display_name: str = ""
    event_types: tuple[str, ...] = ()
    target: HttpTarget
    retry_policy: RetryPolicy = RetryPolicy()
    limits: DeliveryLimits = DeliveryLimits()
    ordered: bool = False
    """One delivery at a time for each ordering key, in publish order; for its whole life."""
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
    """Held by an operator."""
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
    """Going out again."""
    return replace(seen, state=SubscriptionState.ACTIVE, state_reason=None, state_message="")


def matches(pattern: str, event_type: str) -> bool:
    """Whether a pattern (an exact type, `order.*`, or `*`) covers an event type.

    The readable statement of what `pipeline/publishing/matching.py` answers by index.
    """
    if pattern == "*":
        return not event_type.startswith("hookline.")
    if pattern.endswith(".*"):
        return event_type.startswith(pattern[:-1])
    return pattern == event_type


def schedule_of(policy: RetryPolicy) -> RetrySchedule:
    """The delays that a policy comes to; an empty policy is the default schedule."""
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
    """Requests a second at most: what the subscription says, and what its target allowed."""
    wanted, allowed = subscription.limits.max_per_second, subscription.target.allowed_per_minute
    if allowed is None:
        return wanted
    return allowed / 60 if wanted is None else min(wanted, allowed / 60)
