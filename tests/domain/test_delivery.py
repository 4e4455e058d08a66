"""The state machine of a delivery: the law, row by row, and the decisions of its attempts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookline_service.domain.attempt import AttemptOutcome, Outcome
from hookline_service.domain.delivery import (
    FINISHED_STATES,
    INTERNAL_ERROR_DELAY_S,
    TRANSITIONS,
    Budget,
    DeliveryState,
    Exhaust,
    HoldGone,
    IllegalMoveError,
    Release,
    RetryLater,
    Succeed,
    Trigger,
    advance,
    decide,
)
from hookline_service.domain.retry import JITTER_FLOOR, RetrySchedule

# The design's table, word for word. A change of the law is made in both places, and argued.
LAW = """
    PENDING                       | accepted (2xx)                         | SUCCEEDED
    PENDING                       | failed, attempts left                  | PENDING
    PENDING                       | failed, no attempts left               | EXHAUSTED
    PENDING                       | 410                                    | PENDING
    PENDING                       | our own fault, or the lease was lost   | PENDING
    PENDING                       | retried by an operator                 | PENDING
    PENDING                       | cancelled by an operator; its subscription or tenant deleted | CANCELLED
    PENDING                       | older than the retention of pending work | EXPIRED
    EXHAUSTED, CANCELLED, EXPIRED | retried by an operator                 | PENDING
"""  # noqa: E501 - the design's own lines

SCHEDULE = RetrySchedule((0.0, 5.0, 60.0))
FAILURES = [
    AttemptOutcome.HTTP_ERROR,
    AttemptOutcome.TIMEOUT,
    AttemptOutcome.CONNECTION_FAILED,
    AttemptOutcome.TLS_FAILED,
    AttemptOutcome.PROTOCOL_ERROR,
    AttemptOutcome.ADDRESS_BLOCKED,
]


def law() -> dict[tuple[str, str], str]:
    """The table as a lookup."""
    rows: dict[tuple[str, str], str] = {}
    for line in LAW.strip().splitlines():
        states, trigger, to = (cell.strip() for cell in line.split("|"))
        rows |= {(state, trigger): to for state in states.split(", ")}
    return rows


def outcome(kind: AttemptOutcome, **fields: object) -> Outcome:
    """An attempt's outcome."""
    values: dict[str, object] = {"latency_us": 1_000, "url": "https://hooks.example/"} | fields
    return Outcome(kind, **values)  # type: ignore[arg-type]  # a test's own fields


def test_the_law_is_the_designs() -> None:
    assert {
        (state.value, trigger.value): to.value for (state, trigger), to in TRANSITIONS.items()
    } == law()


@pytest.mark.parametrize("state", DeliveryState)
@pytest.mark.parametrize("trigger", Trigger)
def test_every_other_move_is_illegal(state: DeliveryState, trigger: Trigger) -> None:
    to = law().get((state.value, trigger.value))
    if to is not None:
        assert advance(state, trigger) == to
        return
    with pytest.raises(IllegalMoveError, match=state.value):
        advance(state, trigger)


def test_only_pending_is_unfinished() -> None:
    assert set(DeliveryState) - FINISHED_STATES == {DeliveryState.PENDING}


def test_success_succeeds() -> None:
    assert decide(outcome(AttemptOutcome.ACCEPTED), Budget(0, 3), SCHEDULE, 0.5) == Succeed()


def test_a_fault_of_ours_costs_nothing_even_at_the_last_attempt() -> None:
    for budget in (Budget(0, 3), Budget(2, 3), Budget(9, 3)):
        move = decide(outcome(AttemptOutcome.INTERNAL_ERROR), budget, SCHEDULE, 0.5)
        assert move == Release(INTERNAL_ERROR_DELAY_S)


@pytest.mark.parametrize("kind", FAILURES)
def test_failures_are_retried_until_the_budget_is_spent(kind: AttemptOutcome) -> None:
    unit = 0.0
    moves = [decide(outcome(kind), Budget(n, 3), SCHEDULE, unit) for n in range(4)]
    assert moves == [
        RetryLater(5.0 * JITTER_FLOOR), RetryLater(60.0 * JITTER_FLOOR), Exhaust(), Exhaust(),
    ]  # fmt: skip


def test_gone_holds_even_at_the_last_attempt() -> None:
    refused = outcome(AttemptOutcome.HTTP_ERROR, http_status=410)
    assert decide(refused, Budget(0, 3), SCHEDULE, 0.5) == HoldGone()
    assert decide(refused, Budget(2, 3), SCHEDULE, 0.5) == HoldGone()


def test_a_retried_delivery_begins_its_schedule_anew() -> None:
    """Attempt numbers go on: the third and fourth of all are the first and second of the budget."""
    failed = outcome(AttemptOutcome.TIMEOUT)
    assert decide(failed, Budget(3, 6, 3), SCHEDULE, 0.0) == RetryLater(5.0 * JITTER_FLOOR)
    assert decide(failed, Budget(4, 6, 3), SCHEDULE, 0.0) == RetryLater(60.0 * JITTER_FLOOR)
    assert decide(failed, Budget(5, 6, 3), SCHEDULE, 0.0) == Exhaust()


@pytest.mark.parametrize(
    "retry_after_s, delay_s", [(None, 4.0), (0.0, 4.0), (3.9, 4.0), (4.1, 4.1), (900.0, 900.0)]
)
def test_retry_after_is_a_floor_never_a_ceiling(
    retry_after_s: float | None, delay_s: float
) -> None:
    refused = outcome(AttemptOutcome.HTTP_ERROR, http_status=429, retry_after_s=retry_after_s)
    assert decide(refused, Budget(0, 3), SCHEDULE, 0.0) == RetryLater(delay_s)


@given(
    kind=st.sampled_from(AttemptOutcome),
    http_status=st.none() | st.integers(100, 599),
    retry_after_s=st.none() | st.floats(0, 86_400),
    attempt_count=st.integers(0, 200),
    until=st.integers(1, 200),
    base=st.integers(0, 200),
    delays_s=st.lists(st.floats(0, 604_800), min_size=1, max_size=20),
    unit=st.floats(0, 1, exclude_max=True),
)
def test_every_outcome_is_decided_and_no_delay_is_out_of_bounds(
    kind: AttemptOutcome,
    http_status: int | None,
    retry_after_s: float | None,
    attempt_count: int,
    until: int,
    base: int,
    delays_s: list[float],
    unit: float,
) -> None:
    happened = outcome(kind, http_status=http_status, retry_after_s=retry_after_s)
    budget = Budget(attempt_count, until, min(base, attempt_count))
    move = decide(happened, budget, RetrySchedule(tuple(delays_s)), unit)
    match move:
        case Succeed():
            assert kind is AttemptOutcome.ACCEPTED
        case Release():
            assert kind is AttemptOutcome.INTERNAL_ERROR
        case HoldGone():
            assert http_status == 410
        case Exhaust():
            assert attempt_count + 1 >= until
        case RetryLater(delay_s):
            assert attempt_count + 1 < until
            assert (retry_after_s or 0) <= delay_s <= max(604_800, retry_after_s or 0)
