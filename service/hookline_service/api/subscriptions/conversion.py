"""Conversions of subscriptions and signing secrets between the contract and the domain.

Fields are read leaf by leaf (`conversion/update_mask.py`), so that an update validates only what it
changes, and all violations are reported together. No violation contains any part of a secret.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from hookline.v1 import subscription_pb2, target_pb2
from hookline_service.api.conversion.text import display_name_in, labels_in
from hookline_service.api.conversion.values import (
    duration_of,
    enum_in,
    enum_of,
    seconds_between,
    timestamp_of,
)
from hookline_service.api.middleware.errors import not_implemented
from hookline_service.api.subscriptions.policies import (
    limits_in,
    limits_message,
    policy_in,
    policy_message,
)
from hookline_service.api.subscriptions.target_secrets import (
    CLIENT_CERTIFICATE,
    SECRET_HEADERS,
    RequestedSecrets,
    certificate_message,
    check_all_headers,
    check_kept_secrets,
)
from hookline_service.domain.errors import Reason, Violation, over_limit
from hookline_service.domain.limits import Limits
from hookline_service.domain.names import check_pattern, subscription_name
from hookline_service.domain.subscription import (
    DEFAULT_TIMEOUT_S,
    MAX_TIMEOUT_S,
    MIN_TIMEOUT_S,
    HttpTarget,
    PayloadFormat,
    SignatureScheme,
    SigningKey,
    Subscription,
)
from hookline_service.domain.target import (
    MAX_FAILOVER_URLS,
    TargetUrlError,
    check_url,
    check_urls,
    parse_target_url,
)
from hookline_service.store.subscriptions import NewSecret
from hookline_service.targets.http.egress import EgressPolicy, check_international
from hookline_service.targets.http.signature import (
    InvalidSecretError,
    generate_secret,
    parse_secret,
)

PATH: Final = "subscription."
HTTP: Final = f"{PATH}http."
LEAVES: Final = (
    "display_name",
    "event_types",
    "filter",
    "http.url",
    "http.failover_urls",
    "http.headers",
    SECRET_HEADERS,
    CLIENT_CERTIFICATE,
    "http.require_handshake",
    "http.timeout",
    "http.signature_scheme",
    "pull",
    "retry_policy.max_attempts",
    "retry_policy.min_backoff",
    "retry_policy.max_backoff",
    "retry_policy.schedule",
    "limits.max_per_second",
    "limits.max_in_flight",
    "ordered",
    "payload_format",
    "propagate_trace",
    "labels",
)
"""The fields of a subscription that can be changed."""

VALUES: Final = ("retry_policy",)
"""Messages that an update without a mask replaces as a whole: their fields exclude one another."""


class SubscriptionReader:
    """Reads subscriptions of requests with the limits and the egress policy of this deployment."""

    def __init__(self, limits: Limits, egress: EgressPolicy, *, https_only: bool) -> None:
        self._limits = limits
        self._egress = egress
        self._https_only = https_only

    def read(
        self,
        message: subscription_pb2.Subscription,
        leaves: frozenset[str],
        seen: Subscription,
        requested: RequestedSecrets,
        violations: list[Violation],
    ) -> Subscription:
        """Return `seen` with the leaves of the message applied; adds the violations.

        Fields that are not implemented are not checked here: see `refuse_unimplemented`.
        """
        target = seen.target
        if message.WhichOneof("target") != "pull":
            target = self._target_in(message.http, leaves, seen.target, requested, violations)
        changed = replace(
            seen,
            target=target,
            limits=limits_in(message.limits, leaves, seen.limits, f"{PATH}limits", violations),
            retry_policy=policy_in(
                message.retry_policy, leaves, seen.retry_policy, f"{PATH}retry_policy", violations
            ),
        )
        if "display_name" in leaves:
            name = display_name_in(message.display_name, f"{PATH}display_name", violations)
            changed = replace(changed, display_name=name)
        if "event_types" in leaves:
            patterns = self._patterns_in(message.event_types, violations)
            changed = replace(changed, event_types=patterns)
        if "ordered" in leaves:
            changed = replace(changed, ordered=message.ordered)
        if "payload_format" in leaves:
            changed = replace(changed, payload_format=_format_in(message, violations))
        if "propagate_trace" in leaves:
            changed = replace(changed, propagate_trace=message.propagate_trace)
        if "labels" in leaves:
            labels = labels_in(message.labels, self._limits, f"{PATH}labels", violations)
            changed = replace(changed, labels=labels)
        return changed

    def _patterns_in(self, patterns: Iterable[str], violations: list[Violation]) -> tuple[str, ...]:
        field = f"{PATH}event_types"
        found = tuple(patterns)
        if not found:
            violations.append(Violation(field, "is required", Reason.FIELD_REQUIRED))
        limit = self._limits.max_patterns
        if len(found) > limit:
            setting = "HOOKLINE_MAX_PATTERNS"
            violations.append(over_limit(field, len(found), "patterns", setting, limit))
            return ()
        for index, pattern in enumerate(found):
            if problem := check_pattern(pattern):
                violations.append(Violation(f"{field}[{index}]", problem))
        return found

    def _target_in(
        self,
        http: target_pb2.HttpTarget,
        leaves: frozenset[str],
        seen: HttpTarget,
        requested: RequestedSecrets,
        violations: list[Violation],
    ) -> HttpTarget:
        target, path = requested.applied_to(seen), HTTP
        if "http.url" in leaves:
            violations += check_url(http.url, f"{path}url", https_only=self._https_only)
            self._check_address(http.url, f"{path}url", violations)
            target = replace(target, url=http.url)
        if "http.failover_urls" in leaves:
            # `url` is checked above if it changes; here a valid placeholder replaces it.
            violations += check_urls(
                "https://a.b", http.failover_urls, path, https_only=self._https_only
            )
            urls = tuple(http.failover_urls[:MAX_FAILOVER_URLS])  # more are a violation
            for index, url in enumerate(urls):
                self._check_address(url, f"{path}failover_urls[{index}]", violations)
            target = replace(target, failover_urls=urls)
        violations += check_kept_secrets(seen, target, requested, path)
        if "http.headers" in leaves:
            target = replace(target, headers=dict(http.headers))
        if "http.headers" in leaves or requested.stored.headers is not None:
            violations += check_all_headers(seen, target, requested, path)
        if "http.timeout" in leaves:
            timeout_s = DEFAULT_TIMEOUT_S
            if http.HasField("timeout"):
                timeout_s = seconds_between(
                    http.timeout, MIN_TIMEOUT_S, MAX_TIMEOUT_S, f"{path}timeout", violations
                )
            target = replace(target, timeout_s=timeout_s)
        if "http.signature_scheme" in leaves:
            scheme = scheme_in(http.signature_scheme, f"{path}signature_scheme", violations)
            target = replace(target, signature_scheme=scheme or target.signature_scheme)
        if "http.require_handshake" in leaves:
            target = replace(target, require_handshake=http.require_handshake)
            if not http.require_handshake:
                target = replace(target, allowed_per_minute=None)
        return target

    def _check_address(self, url: str, field: str, violations: list[Violation]) -> None:
        """Check host and port; the addresses of a host name are checked at every connection."""
        try:
            target = parse_target_url(url)
        except TargetUrlError:
            return  # already a violation
        if problem := check_international(target.host):
            violations.append(Violation(field, problem, Reason.TARGET_URL_INVALID))
            return
        problems = (self._egress.check_host(target.host), self._egress.check_port(target.port))
        violations += [
            Violation(field, problem, Reason.TARGET_ADDRESS_FORBIDDEN)
            for problem in problems
            if problem
        ]


def refuse_unimplemented(message: subscription_pb2.Subscription, leaves: frozenset[str]) -> None:
    """Raise `UnimplementedError` if the leaves contain a field that is not implemented."""
    requested = {
        "pull": message.WhichOneof("target") == "pull",
        "filter": bool(message.filter),
    }
    for leaf, is_requested in requested.items():
        if is_requested and leaf in leaves:
            raise not_implemented(leaf, field=f"{PATH}{leaf}")


def scheme_in(
    number: target_pb2.SignatureScheme.ValueType, field: str, violations: list[Violation]
) -> SignatureScheme | None:
    """Return a signature scheme; None if it is unspecified."""
    return enum_in(
        number,
        target_pb2.SignatureScheme,
        "SIGNATURE_SCHEME_",
        SignatureScheme,
        field,
        violations,
    )


def secret_in(
    text: str, scheme: SignatureScheme | None, field: str, violations: list[Violation]
) -> NewSecret:
    """Return the signing secret to store: the imported one or, if `text` is empty, a new one.

    `scheme` is None if the scheme of the subscription is not known because of another violation.
    """
    secret = generate_secret(scheme or SignatureScheme.HMAC_SHA256)
    if text:
        try:
            secret = parse_secret(text)
        except InvalidSecretError as error:
            violations.append(Violation(field, str(error), Reason.SIGNING_SECRET_INVALID))
    if scheme is not None and secret.scheme is not scheme:
        violations.append(
            Violation(
                field,
                f"must be a secret of the signature scheme {scheme}",
                Reason.SIGNING_SECRET_INVALID,
            )
        )
    return NewSecret(secret.scheme, secret.text, secret.public_key)


def check_scheme(seen: Subscription, wanted: Subscription, violations: list[Violation]) -> None:
    """Add a violation if an update changes the signature scheme, which needs a new secret."""
    if wanted.target.signature_scheme is not seen.target.signature_scheme:
        violations.append(
            Violation(
                f"{PATH}http.signature_scheme",
                "is immutable in an update: use RotateSigningSecret, which creates a secret for it",
                Reason.FIELD_IMMUTABLE,
            )
        )


def _format_in(
    message: subscription_pb2.Subscription, violations: list[Violation]
) -> PayloadFormat:
    found = enum_in(
        message.payload_format,
        subscription_pb2.PayloadFormat,
        "PAYLOAD_FORMAT_",
        PayloadFormat,
        f"{PATH}payload_format",
        violations,
    )
    return found or PayloadFormat.STANDARD


def message_of(subscription: Subscription) -> subscription_pb2.Subscription:
    """Return the message of a subscription, with defaults and without secrets."""
    created, updated = subscription.create_time, subscription.update_time
    return subscription_pb2.Subscription(
        name=subscription_name(subscription.tenant_id, subscription.subscription_id),
        uid=str(subscription.uid),
        display_name=subscription.display_name,
        event_types=subscription.event_types,
        http=_http_message(subscription),
        retry_policy=policy_message(subscription.retry_policy),
        limits=limits_message(subscription.limits),
        ordered=subscription.ordered,
        payload_format=enum_of(
            subscription_pb2.PayloadFormat, "PAYLOAD_FORMAT_", subscription.payload_format
        ),
        propagate_trace=subscription.propagate_trace,
        labels=subscription.labels,
        state=enum_of(
            subscription_pb2.SubscriptionState, "SUBSCRIPTION_STATE_", subscription.state
        ),
        state_reason=enum_of(
            subscription_pb2.SubscriptionStateReason,
            "SUBSCRIPTION_STATE_REASON_",
            subscription.state_reason,
        ),
        state_message=subscription.state_message,
        create_time=timestamp_of(created) if created else None,
        update_time=timestamp_of(updated) if updated else None,
        etag=subscription.etag,
    )


def _http_message(subscription: Subscription) -> target_pb2.HttpTarget:
    target = subscription.target
    return target_pb2.HttpTarget(
        url=target.url,
        failover_urls=target.failover_urls,
        headers=target.headers,
        timeout=duration_of(target.timeout_s),
        signature_scheme=enum_of(
            target_pb2.SignatureScheme, "SIGNATURE_SCHEME_", target.signature_scheme
        ),
        require_handshake=target.require_handshake,
        allowed_per_minute=target.allowed_per_minute or 0,
        secret_header_names=target.secret_header_names,
        client_certificate=certificate_message(target.client_certificate),
        signing_keys=[_key_message(key) for key in subscription.signing_keys],
    )


def _key_message(key: SigningKey) -> target_pb2.SigningKey:
    return target_pb2.SigningKey(
        scheme=enum_of(target_pb2.SignatureScheme, "SIGNATURE_SCHEME_", key.scheme),
        public_key=key.public_key,
        create_time=timestamp_of(key.create_time),
        expire_time=timestamp_of(key.expire_time) if key.expire_time else None,
    )
