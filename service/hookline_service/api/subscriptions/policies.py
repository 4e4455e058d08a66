"""Conversions of retry policies and delivery limits between the contract and the domain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from google.protobuf.duration_pb2 import Duration

from hookline.v1 import policy_pb2
from hookline_service.api.conversion.values import duration_of, seconds_between
from hookline_service.domain.errors import Reason, Violation
from hookline_service.domain.retry import MAX_ATTEMPTS, MAX_DELAY_S
from hookline_service.domain.subscription import (
    DEFAULT_MAX_IN_FLIGHT,
    MAX_IN_FLIGHT,
    DeliveryLimits,
    RetryPolicy,
)

MIN_BACKOFF_S: Final = 0.001
MAX_MIN_BACKOFF_S: Final = 86_400.0
MIN_RATE: Final = 0.001
MAX_RATE: Final = 100_000.0

_POLICY_FIELDS = frozenset({"max_attempts", "min_backoff", "max_backoff", "schedule"})


def policy_in(
    message: policy_pb2.RetryPolicy,
    leaves: frozenset[str],
    seen: RetryPolicy,
    field: str,
    violations: list[Violation],
) -> RetryPolicy:
    """Return the retry policy with the leaves of the message applied."""
    changed = {leaf.removeprefix("retry_policy.") for leaf in leaves}
    if changed.isdisjoint(_POLICY_FIELDS):
        return seen
    policy = seen
    if "max_attempts" in changed:
        attempts = message.max_attempts
        if not 0 <= attempts <= MAX_ATTEMPTS:
            violations.append(
                Violation(f"{field}.max_attempts", f"must be between 1 and {MAX_ATTEMPTS}")
            )
        policy = replace(policy, max_attempts=attempts or None)
    if "min_backoff" in changed:
        given = message.min_backoff if message.HasField("min_backoff") else None
        least_s, most_s = MIN_BACKOFF_S, MAX_MIN_BACKOFF_S
        backoff_s = _backoff_in(given, least_s, most_s, f"{field}.min_backoff", violations)
        policy = replace(policy, min_backoff_s=backoff_s)
    if "max_backoff" in changed:
        given = message.max_backoff if message.HasField("max_backoff") else None
        least_s, most_s = policy.min_backoff_s or MIN_BACKOFF_S, MAX_DELAY_S
        backoff_s = _backoff_in(given, least_s, most_s, f"{field}.max_backoff", violations)
        policy = replace(policy, max_backoff_s=backoff_s)
    elif (policy.max_backoff_s or math.inf) < (policy.min_backoff_s or 0):
        violations.append(Violation(f"{field}.min_backoff", "must not exceed max_backoff"))
    if "schedule" in changed:
        schedule_s = _schedule_in(message.schedule, f"{field}.schedule", violations)
        policy = replace(policy, schedule_s=schedule_s)
    others = (policy.max_attempts, policy.min_backoff_s, policy.max_backoff_s)
    if policy.schedule_s and any(other is not None for other in others):
        violations.append(
            Violation(
                f"{field}.schedule",
                "cannot be combined with max_attempts, min_backoff or max_backoff: its length is"
                " the number of attempts",
            )
        )
    return policy


def _backoff_in(
    given: Duration | None,
    least_s: float,
    most_s: float,
    field: str,
    violations: list[Violation],
) -> float | None:
    if given is None:
        return None
    return seconds_between(given, least_s, most_s, field, violations)


def _schedule_in(
    delays: Sequence[Duration], field: str, violations: list[Violation]
) -> tuple[float, ...]:
    if len(delays) > MAX_ATTEMPTS:
        violations.append(
            Violation(
                field,
                f"has {len(delays):,} entries; at most {MAX_ATTEMPTS} are allowed",
                Reason.LIMIT_EXCEEDED,
            )
        )
        return ()
    return tuple(
        seconds_between(delay, 0, MAX_DELAY_S, f"{field}[{index}]", violations)
        for index, delay in enumerate(delays)
    )


def limits_in(
    message: policy_pb2.DeliveryLimits,
    leaves: frozenset[str],
    seen: DeliveryLimits,
    field: str,
    violations: list[Violation],
) -> DeliveryLimits:
    """Return the delivery limits with the leaves of the message applied."""
    limits = seen
    if "limits.max_per_second" in leaves:
        rate = message.max_per_second
        if rate != 0 and not MIN_RATE <= rate <= MAX_RATE:
            violations.append(
                Violation(
                    f"{field}.max_per_second", f"must be between {MIN_RATE:g} and {MAX_RATE:,g}"
                )
            )
        limits = replace(limits, max_per_second=rate or None)
    if "limits.max_in_flight" in leaves:
        count = message.max_in_flight
        if not 0 <= count <= MAX_IN_FLIGHT:
            violations.append(
                Violation(f"{field}.max_in_flight", f"must be between 1 and {MAX_IN_FLIGHT:,}")
            )
        limits = replace(limits, max_in_flight=count or DEFAULT_MAX_IN_FLIGHT)
    return limits


def policy_message(policy: RetryPolicy) -> policy_pb2.RetryPolicy | None:
    """Return the message of a retry policy; None if it is empty."""
    if policy == RetryPolicy():
        return None
    least, most = policy.min_backoff_s, policy.max_backoff_s
    return policy_pb2.RetryPolicy(
        max_attempts=policy.max_attempts or 0,
        min_backoff=None if least is None else duration_of(least),
        max_backoff=None if most is None else duration_of(most),
        schedule=[duration_of(delay_s) for delay_s in policy.schedule_s],
    )


def limits_message(limits: DeliveryLimits) -> policy_pb2.DeliveryLimits:
    """Return the message of delivery limits, with the default of `max_in_flight`."""
    return policy_pb2.DeliveryLimits(
        max_per_second=limits.max_per_second or 0, max_in_flight=limits.max_in_flight
    )
