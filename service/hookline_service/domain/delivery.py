"""The state machine of a delivery: every transition is a row of `TRANSITIONS`.

Theory of operation. A delivery is PENDING from the transaction that accepted its event until a
transition finishes it. `advance` looks a transition up; one that is not in the table raises. An
attempt's `Outcome` becomes a `Move` by `decide`, which is pure; the store writes moves, and guards
each with the version that the decision was made on. Statements that move many rows at once (expiry,
a deleted subscription) take their state from `advance` as a parameter. docs/guarantees.md names a
test for each row that fails without it.

    PENDING ──accepted──▶ SUCCEEDED
       │ ▲
       │ └─failed, target gone, internal error, retried by an operator
       ├──failed, no attempts left──▶ EXHAUSTED ──┐
       ├──cancelled by an operator──▶ CANCELLED ──┼──retried by an operator──▶ PENDING
       ├──subscription deleted──────▶ CANCELLED ──┤
       └──older than retention──────▶ EXPIRED ────┘
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, assert_never

from hookline_service.domain.attempt import Outcome, Verdict
from hookline_service.domain.retry import RetrySchedule


class DeliveryState(StrEnum):
    """The states of a delivery; the proto enum and the database's CHECK name the same states."""

    PENDING = "PENDING"
    SUCCEEDED = "SUCCEEDED"
    EXHAUSTED = "EXHAUSTED"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"


class DeliveryStateReason(StrEnum):
    """Why a pending delivery is held, or why a finished one was cancelled or expired."""

    SUBSCRIPTION_PAUSED = "SUBSCRIPTION_PAUSED"
    SUBSCRIPTION_DISABLED = "SUBSCRIPTION_DISABLED"
    CIRCUIT_OPEN = "CIRCUIT_OPEN"
    RATE_LIMITED = "RATE_LIMITED"
    BLOCKED_BY_ORDER = "BLOCKED_BY_ORDER"
    OPERATOR = "OPERATOR"
    SUBSCRIPTION_DELETED = "SUBSCRIPTION_DELETED"
    RETENTION = "RETENTION"


class Trigger(StrEnum):
    """The events that change a delivery's state."""

    ACCEPTED = "accepted"
    FAILED = "failed"
    """Attempts are left."""
    FAILED_LAST = "failed, no attempts left"
    GONE = "target gone"
    """The subscription is disabled, and the delivery held."""
    INTERNAL_ERROR = "internal error"
    """No fault of the target: the lease was lost, or this node could not send or record."""
    RETRIED = "retried by an operator"
    CANCELLED = "cancelled by an operator"
    SUBSCRIPTION_DELETED = "subscription deleted"
    """Or its tenant."""
    EXPIRED = "older than retention"
    """Of pending deliveries."""


TRANSITIONS: dict[tuple[DeliveryState, Trigger], DeliveryState] = {
    (DeliveryState.PENDING, Trigger.ACCEPTED): DeliveryState.SUCCEEDED,
    (DeliveryState.PENDING, Trigger.FAILED): DeliveryState.PENDING,
    (DeliveryState.PENDING, Trigger.FAILED_LAST): DeliveryState.EXHAUSTED,
    (DeliveryState.PENDING, Trigger.GONE): DeliveryState.PENDING,
    (DeliveryState.PENDING, Trigger.INTERNAL_ERROR): DeliveryState.PENDING,
    (DeliveryState.PENDING, Trigger.RETRIED): DeliveryState.PENDING,
    (DeliveryState.PENDING, Trigger.CANCELLED): DeliveryState.CANCELLED,
    (DeliveryState.PENDING, Trigger.SUBSCRIPTION_DELETED): DeliveryState.CANCELLED,
    (DeliveryState.PENDING, Trigger.EXPIRED): DeliveryState.EXPIRED,
    (DeliveryState.EXHAUSTED, Trigger.RETRIED): DeliveryState.PENDING,
    (DeliveryState.CANCELLED, Trigger.RETRIED): DeliveryState.PENDING,
    (DeliveryState.EXPIRED, Trigger.RETRIED): DeliveryState.PENDING,
}

FINISHED_STATES = frozenset(DeliveryState) - {DeliveryState.PENDING}


class IllegalMoveError(Exception):
    """The table has no row for a state and a trigger: a bug, or a lost race."""


def advance(state: DeliveryState, trigger: Trigger) -> DeliveryState:
    """Return the state after a trigger; raise `IllegalMoveError` if the table has no such row."""
    try:
        return TRANSITIONS[state, trigger]
    except KeyError:
        raise IllegalMoveError(f"a {state} delivery has no transition: {trigger.value}") from None


@dataclass(frozen=True, slots=True)
class Succeed:
    """The target accepted the event: the row leaves the hot table for history."""

    trigger: ClassVar[Trigger] = Trigger.ACCEPTED


@dataclass(frozen=True, slots=True)
class Exhaust:
    """The last attempt failed: the delivery becomes a dead letter."""

    trigger: ClassVar[Trigger] = Trigger.FAILED_LAST


@dataclass(frozen=True, slots=True)
class RetryLater:
    """The row stays pending, due `delay_s` after this attempt's start (database time)."""

    trigger: ClassVar[Trigger] = Trigger.FAILED
    delay_s: float


@dataclass(frozen=True, slots=True)
class HoldGone:
    """The target is gone: the attempt counts, the subscription is disabled, the row is held."""

    trigger: ClassVar[Trigger] = Trigger.GONE


@dataclass(frozen=True, slots=True)
class Release:
    """An internal error: no attempt is spent and no row written; due again after `delay_s`."""

    trigger: ClassVar[Trigger] = Trigger.INTERNAL_ERROR
    delay_s: float


Move = Succeed | Exhaust | RetryLater | HoldGone | Release


@dataclass(frozen=True, slots=True)
class Budget:
    """The attempts that a delivery has spent, and may spend."""

    attempt_count: int
    """Attempts recorded before the current one; never reset."""
    attempts_until: int
    """The number of the last allowed attempt; an operator's retry raises it."""
    attempts_base: int = 0
    """The count at which the current budget started: the schedule counts from there."""


INTERNAL_ERROR_DELAY_S = 1.0
"""How long a delivery waits after an internal error, in seconds."""


def decide(outcome: Outcome, budget: Budget, schedule: RetrySchedule, unit: float) -> Move:
    """Return the move of a delivery after an attempt.

    `unit` is a uniform random number in [0, 1) for the jitter. The delay of a retry counts from the
    attempt's start; `retry_after_s` is a floor, never a ceiling.
    """
    match outcome.verdict:
        case Verdict.ACCEPTED:
            return Succeed()
        case Verdict.INTERNAL_ERROR:
            return Release(INTERNAL_ERROR_DELAY_S)
        case Verdict.GONE:
            return HoldGone()
        case Verdict.RETRYABLE | Verdict.THROTTLED:
            number = budget.attempt_count + 1
            if number >= budget.attempts_until:
                return Exhaust()
            delay_s = schedule.delay_s(number - budget.attempts_base, unit)
            return RetryLater(max(delay_s, outcome.retry_after_s or 0.0))
        case _:
            assert_never(outcome.verdict)
