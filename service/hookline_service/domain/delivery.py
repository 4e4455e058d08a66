"""The state machine of a delivery: all that moves one stands here, and nowhere else.

Theory of operation. A delivery is PENDING from the transaction that accepted its event until
something finishes it. `TRANSITIONS` is the law: a move that is not in it fails to look up. An
attempt's `Outcome` becomes a move by `decide`, which is pure; the store writes moves, and guards
each with the version that the decider saw.

    PENDING ──accepted──▶ SUCCEEDED
       │ ▲
       │ └─failed, answered with 410, internal error, retried by an operator
       ├──failed, no attempts left──▶ EXHAUSTED ──┐
       ├──cancelled────────────────▶ CANCELLED ───┼──retried by an operator──▶ PENDING
       └──too old──────────────────▶ EXPIRED ─────┘
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from hookline_service.domain.attempt import AttemptOutcome, Outcome
from hookline_service.domain.retry import RetrySchedule

GONE = 410
"""RFC 9110 section 15.5.11: the target is gone on purpose; its subscription is disabled."""

THROTTLES = frozenset({429, 502, 503, 504})
"""The statuses by which a target says that it is overloaded; its lane slows down."""


class DeliveryState(StrEnum):
    """Where a delivery stands; the proto enum and the database's CHECK name the same states."""

    PENDING = "PENDING"
    SUCCEEDED = "SUCCEEDED"
    EXHAUSTED = "EXHAUSTED"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"


class DeliveryStateReason(StrEnum):
    """Why a delivery is held, or why it was given up."""

    SUBSCRIPTION_PAUSED = "SUBSCRIPTION_PAUSED"
    SUBSCRIPTION_DISABLED = "SUBSCRIPTION_DISABLED"
    CIRCUIT_OPEN = "CIRCUIT_OPEN"
    RATE_LIMITED = "RATE_LIMITED"
    BLOCKED_BY_ORDER = "BLOCKED_BY_ORDER"
    OPERATOR = "OPERATOR"
    SUBSCRIPTION_DELETED = "SUBSCRIPTION_DELETED"
    RETENTION = "RETENTION"


class Trigger(StrEnum):
    """What can happen to a delivery."""

    ACCEPTED = "accepted (2xx)"
    FAILED = "failed, attempts left"
    FAILED_LAST = "failed, no attempts left"
    GONE = "410"
    INTERNAL_ERROR = "our own fault, or the lease was lost"
    RETRIED = "retried by an operator"
    CANCELLED = "cancelled by an operator; its subscription or tenant deleted"
    OUTLIVED = "older than the retention of pending work"


TRANSITIONS: dict[tuple[DeliveryState, Trigger], DeliveryState] = {
    (DeliveryState.PENDING, Trigger.ACCEPTED): DeliveryState.SUCCEEDED,
    (DeliveryState.PENDING, Trigger.FAILED): DeliveryState.PENDING,
    (DeliveryState.PENDING, Trigger.FAILED_LAST): DeliveryState.EXHAUSTED,
    (DeliveryState.PENDING, Trigger.GONE): DeliveryState.PENDING,
    (DeliveryState.PENDING, Trigger.INTERNAL_ERROR): DeliveryState.PENDING,
    (DeliveryState.PENDING, Trigger.RETRIED): DeliveryState.PENDING,
    (DeliveryState.PENDING, Trigger.CANCELLED): DeliveryState.CANCELLED,
    (DeliveryState.PENDING, Trigger.OUTLIVED): DeliveryState.EXPIRED,
    (DeliveryState.EXHAUSTED, Trigger.RETRIED): DeliveryState.PENDING,
    (DeliveryState.CANCELLED, Trigger.RETRIED): DeliveryState.PENDING,
    (DeliveryState.EXPIRED, Trigger.RETRIED): DeliveryState.PENDING,
}

FINISHED_STATES = frozenset(DeliveryState) - {DeliveryState.PENDING}


class IllegalMoveError(Exception):
    """A trigger met a state that the law has no row for: a bug, or a race that was lost."""


def advance(state: DeliveryState, trigger: Trigger) -> DeliveryState:
    """The state after a trigger; raises `IllegalMoveError` where the law has no such row."""
    try:
        return TRANSITIONS[state, trigger]
    except KeyError:
        raise IllegalMoveError(f"a {state} delivery cannot be {trigger.value}") from None


@dataclass(frozen=True, slots=True)
class Succeed:
    """The target has it: the row leaves the hot table for history."""


@dataclass(frozen=True, slots=True)
class Exhaust:
    """The last attempt failed: the row joins the dead letters."""


@dataclass(frozen=True, slots=True)
class RetryLater:
    """The row stays, due `delay_s` after this attempt's start (database time)."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class HoldGone:
    """The target answered 410: the attempt counts, the subscription is disabled, the row waits."""


@dataclass(frozen=True, slots=True)
class Release:
    """Nothing happened that the target can answer for: no attempt is spent, no row is written."""

    delay_s: float


Move = Succeed | Exhaust | RetryLater | HoldGone | Release


@dataclass(frozen=True, slots=True)
class Budget:
    """What a delivery has spent, and what it may spend."""

    attempt_count: int
    """Attempts recorded before the one being decided; numbers never reset."""
    attempts_until: int
    """The number of the last attempt allowed; an operator's retry raises it."""
    attempts_base: int = 0
    """Where the current budget began: the schedule is counted from here."""


INTERNAL_ERROR_DELAY_S = 1.0
"""How long a delivery rests after a fault of ours, in seconds."""


def decide(outcome: Outcome, budget: Budget, schedule: RetrySchedule, unit: float) -> Move:
    """What an attempt's outcome does to its delivery.

    `unit` is a uniform random number in [0, 1) for the jitter. The delay of a retry counts from the
    attempt's start; `Retry-After` is a floor, never a ceiling.
    """
    match outcome.kind:
        case AttemptOutcome.ACCEPTED:
            return Succeed()
        case AttemptOutcome.INTERNAL_ERROR:
            return Release(INTERNAL_ERROR_DELAY_S)
        case (
            AttemptOutcome.HTTP_ERROR
            | AttemptOutcome.TIMEOUT
            | AttemptOutcome.CONNECTION_FAILED
            | AttemptOutcome.TLS_FAILED
            | AttemptOutcome.PROTOCOL_ERROR
            | AttemptOutcome.ADDRESS_BLOCKED
        ):
            return _decide_failed(outcome, budget, schedule, unit)
        case _:
            assert_never(outcome.kind)


def _decide_failed(outcome: Outcome, budget: Budget, schedule: RetrySchedule, unit: float) -> Move:
    if outcome.http_status == GONE:
        return HoldGone()
    number = budget.attempt_count + 1
    if number >= budget.attempts_until:
        return Exhaust()
    delay_s = schedule.delay_s(number - budget.attempts_base, unit)
    return RetryLater(max(delay_s, outcome.retry_after_s or 0.0))
