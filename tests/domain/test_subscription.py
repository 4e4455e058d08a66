"""Schedules of retry policies. Event type patterns are tested with the subscription index."""

from itertools import product

import pytest

from hookline_service.domain.retry import DEFAULT_DELAYS_S
from hookline_service.domain.subscription import RetryPolicy, schedule_of


@pytest.mark.parametrize(
    "policy, delays_s",
    [
        (RetryPolicy(), DEFAULT_DELAYS_S),
        (RetryPolicy(max_attempts=1), (0.0,)),
        (RetryPolicy(max_attempts=3), (0.0, 5.0, 300.0)),
        (RetryPolicy(max_attempts=12), (*DEFAULT_DELAYS_S, 86_400.0, 86_400.0)),
        (RetryPolicy(schedule_s=(1.0, 2.0)), (1.0, 2.0)),
        (RetryPolicy(max_attempts=4, min_backoff_s=1.0, max_backoff_s=3.0), (0.0, 1.0, 2.0, 3.0)),
        (RetryPolicy(max_attempts=4, min_backoff_s=1.0), (0.0, 1.0, 2.0, 4.0)),
        (RetryPolicy(max_attempts=4, max_backoff_s=7.0), (0.0, 5.0, 7.0, 7.0)),
        (RetryPolicy(max_attempts=3, min_backoff_s=9.0, max_backoff_s=3.0), (0.0, 3.0, 3.0)),
    ],
)
def test_retry_policy_gives_its_schedule(policy: RetryPolicy, delays_s: tuple[float, ...]) -> None:
    assert schedule_of(policy).delays_s == delays_s


def test_policy_without_max_attempts_has_ten_attempts() -> None:
    assert schedule_of(RetryPolicy(min_backoff_s=1.0)).max_attempts == 10
    assert schedule_of(RetryPolicy(max_backoff_s=1.0)).max_attempts == 10


def test_every_policy_has_at_least_one_attempt() -> None:
    for max_attempts, low_s, high_s in product((None, 1, 100), (None, 0.1), (None, 604_800.0)):
        policy = RetryPolicy(max_attempts=max_attempts, min_backoff_s=low_s, max_backoff_s=high_s)
        assert schedule_of(policy).max_attempts == (max_attempts or 10)
