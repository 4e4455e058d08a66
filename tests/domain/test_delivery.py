"""The state machine of a delivery: each row of the table, and the decisions after attempts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookline_service.domain.attempt import AttemptOutcome, AttemptRecord, Outcome, Verdict
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

# The table once more, as text: a change of the state machine is made in both places.
TABLE = """
    PENDING                       | accepted                 | SUCCEEDED
    PENDING                       | failed                   | PENDING
    PENDING                       | failed, no attempts left | EXHAUSTED
    PENDING                       | target gone              | PENDING
    PENDING                       | internal error           | PENDING
    PENDING                       | retried by an operator   | PENDING
    PENDING                       | cancelled by an operator | CANCELLED
    PENDING                       | subscription deleted     | CANCELLED
    PENDING                       | older than retention     | EXPIRED
    EXHAUSTED, CANCELLED, EXPIRED | retried by an operator   | PENDING
"""

SCHEDULE = RetrySchedule((0.0, 5.0, 60.0))
FAILURES = [Verdict.RETRYABLE, Verdict.THROTTLED]


def table() -> dict[tuple[str, str], str]:
    """The table as a lookup."""
    rows: dict[tuple[str, str], str] = {}
    for line in TABLE.strip().splitlines():
        states, trigger, to = (cell.strip() for cell in line.split("|"))
        rows |= {(state, trigger): to for state in states.split(", ")}
    return rows


def outcome(verdict: Verdict, retry_after_s: float | None = None) -> Outcome:
    """An attempt's outcome; its record is not looked at."""
    return Outcome(verdict, AttemptRecord(AttemptOutcome.HTTP_ERROR, 1), retry_after_s)


def test_transition_table_has_exactly_these_rows() -> None:
    assert {
        (state.value, trigger.value): to.value for (state, trigger), to in TRANSITIONS.items()
    } == table()


@pytest.mark.parametrize("state", DeliveryState)
@pytest.mark.parametrize("trigger", Trigger)
def test_every_other_transition_is_illegal(state: DeliveryState, trigger: Trigger) -> None:
    to = table().get((state.value, trigger.value))
    if to is not None:
        assert advance(state, trigger) == to
        return
    with pytest.raises(IllegalMoveError, match=state.value):
        advance(state, trigger)


def test_only_pending_is_unfinished() -> None:
    assert set(DeliveryState) - FINISHED_STATES == {DeliveryState.PENDING}


def test_accepted_attempt_succeeds() -> None:
    assert decide(outcome(Verdict.ACCEPTED), Budget(0, 3), SCHEDULE, 0.5) == Succeed()


def test_internal_error_does_not_use_up_an_attempt() -> None:
    for budget in (Budget(0, 3), Budget(2, 3), Budget(9, 3)):
        move = decide(outcome(Verdict.INTERNAL_ERROR), budget, SCHEDULE, 0.5)
        assert move == Release(INTERNAL_ERROR_DELAY_S)


@pytest.mark.parametrize("verdict", FAILURES)
def test_failures_are_retried_until_the_budget_is_spent(verdict: Verdict) -> None:
    unit = 0.0
    moves = [decide(outcome(verdict), Budget(n, 3), SCHEDULE, unit) for n in range(4)]
    assert moves == [
        RetryLater(5.0 * JITTER_FLOOR), RetryLater(60.0 * JITTER_FLOOR), Exhaust(), Exhaust(),
    ]  # fmt: skip


def test_gone_target_holds_the_delivery_even_at_the_last_attempt() -> None:
    gone = outcome(Verdict.GONE)
    assert decide(gone, Budget(0, 3), SCHEDULE, 0.5) == HoldGone()
    assert decide(gone, Budget(2, 3), SCHEDULE, 0.5) == HoldGone()


def test_retry_by_an_operator_restarts_the_schedule() -> None:
    """Attempt numbers go on: the third and fourth of all are the first and second of the budget."""
    failed = outcome(Verdict.RETRYABLE)
    assert decide(failed, Budget(3, 6, 3), SCHEDULE, 0.0) == RetryLater(5.0 * JITTER_FLOOR)
    assert decide(failed, Budget(4, 6, 3), SCHEDULE, 0.0) == RetryLater(60.0 * JITTER_FLOOR)
    assert decide(failed, Budget(5, 6, 3), SCHEDULE, 0.0) == Exhaust()


@pytest.mark.parametrize(
    "retry_after_s, delay_s", [(None, 4.0), (0.0, 4.0), (3.9, 4.0), (4.1, 4.1), (900.0, 900.0)]
)
def test_retry_after_is_a_floor_never_a_ceiling(
    retry_after_s: float | None, delay_s: float
) -> None:
    throttled = outcome(Verdict.THROTTLED, retry_after_s)
    assert decide(throttled, Budget(0, 3), SCHEDULE, 0.0) == RetryLater(delay_s)


@given(
    verdict=st.sampled_from(Verdict),
    retry_after_s=st.none() | st.floats(0, 86_400),
    attempt_count=st.integers(0, 200),
    until=st.integers(1, 200),
    base=st.integers(0, 200),
    delays_s=st.lists(st.floats(0, 604_800), min_size=1, max_size=20),
    unit=st.floats(0, 1, exclude_max=True),
)
def test_every_outcome_has_a_transition_with_a_delay_within_bounds(
    verdict: Verdict,
    retry_after_s: float | None,
    attempt_count: int,
    until: int,
    base: int,
    delays_s: list[float],
    unit: float,
) -> None:
    happened = outcome(verdict, retry_after_s)
    budget = Budget(attempt_count, until, min(base, attempt_count))
    move = decide(happened, budget, RetrySchedule(tuple(delays_s)), unit)
    match move:
        case Succeed():
            assert verdict is Verdict.ACCEPTED
        case Release():
            assert verdict is Verdict.INTERNAL_ERROR
        case HoldGone():
            assert verdict is Verdict.GONE
        case Exhaust():
            assert attempt_count + 1 >= until
        case RetryLater(delay_s):
            assert attempt_count + 1 < until
            assert (retry_after_s or 0) <= delay_s <= max(604_800, retry_after_s or 0)
