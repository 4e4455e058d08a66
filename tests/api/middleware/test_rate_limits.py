"""Token buckets: what passes at once, what passes in the long run, and how many there are."""

from __future__ import annotations

import pytest

from hookline_service.api.middleware.rate_limits import TokenBuckets


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def passed(buckets: TokenBuckets, key: str, tries: int, amount: float = 1) -> int:
    """How many of so many tries pass."""
    count = 0
    for _ in range(tries):
        if buckets.wait_s(key) == 0:
            buckets.take(key, amount)
            count += 1
    return count


def test_a_second_s_worth_passes_at_once_and_then_the_rate(clock: Clock) -> None:
    buckets = TokenBuckets(10, monotonic_s=clock)
    assert passed(buckets, "a", 20) == 10
    for _ in range(5):
        clock.now_s += 0.5
        assert passed(buckets, "a", 20) == 5
    clock.now_s += 3_600
    assert passed(buckets, "a", 20) == 10, "what was not used is not saved up"


def test_a_call_after_the_retry_delay_passes(clock: Clock) -> None:
    buckets = TokenBuckets(10, monotonic_s=clock)
    assert passed(buckets, "a", 20) == 10
    wait_s = buckets.wait_s("a")
    assert wait_s == pytest.approx(0.1)
    clock.now_s += wait_s
    assert buckets.wait_s("a") == 0


def test_an_amount_beyond_the_bucket_passes_and_its_debt_is_paid_off(clock: Clock) -> None:
    buckets = TokenBuckets(1_000, monotonic_s=clock)
    buckets.take("a", 5_000)
    assert buckets.wait_s("a") == pytest.approx(4, abs=0.01)
    clock.now_s += 3.9
    assert buckets.wait_s("a") > 0
    clock.now_s += 0.2
    assert buckets.wait_s("a") == 0


def test_each_key_has_its_own_bucket(clock: Clock) -> None:
    buckets = TokenBuckets(3, monotonic_s=clock)
    assert passed(buckets, "a", 5) == 3
    assert passed(buckets, "b", 5) == 3


def test_a_full_table_drops_the_keys_with_the_least_debt(clock: Clock) -> None:
    buckets = TokenBuckets(1, max_keys=10, monotonic_s=clock)
    for number in range(1, 12):
        buckets.take(f"owes {number}", number + 1)
    assert len(buckets) == 5
    assert buckets.wait_s("owes 6") == 0
    assert all(buckets.wait_s(f"owes {number}") > 0 for number in range(7, 12))


def test_full_buckets_are_dropped_before_any_in_debt(clock: Clock) -> None:
    buckets = TokenBuckets(10, max_keys=100, monotonic_s=clock)
    assert passed(buckets, "a", 20) == 10
    for number in range(100):
        buckets.take(f"slow {number}", 1)
        clock.now_s += 0.001
    assert len(buckets) <= 100
    assert passed(buckets, "a", 20) == 1, "what a tenth of a second brings"


def test_a_flood_of_other_keys_does_not_clear_a_debt(clock: Clock) -> None:
    """A refused key keeps calling, with ten times as many others as the table holds."""
    buckets = TokenBuckets(10, max_keys=1_000, monotonic_s=clock)
    buckets.take("a", 1_000)
    for number in range(10_000):
        assert buckets.wait_s("a") > 90
        assert passed(buckets, f"other {number}", 20) <= 11, "a new key may be dropped"
        assert len(buckets) <= 1_000
