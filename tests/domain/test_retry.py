"""Retry schedules, jitter, and the parsing of `Retry-After`."""

from datetime import UTC, datetime
from email.utils import format_datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookline_service.domain.retry import (
    MAX_RETRY_AFTER_S,
    RetrySchedule,
    doubling,
    parse_retry_after,
)

NOW_S = datetime(2026, 1, 1, 12, tzinfo=UTC).timestamp()


def test_default_schedule_has_these_delays() -> None:
    """0, 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h, 24 h."""
    minute, hour = 60.0, 3_600.0
    assert RetrySchedule().delays_s == (
        0, 5, 5 * minute, 30 * minute, 2 * hour, 5 * hour, 10 * hour, 14 * hour, 20 * hour,
        24 * hour,
    )  # fmt: skip
    assert RetrySchedule().max_attempts == 10


@given(st.integers(1, 9), st.floats(0, 1, exclude_max=True))
def test_jitter_subtracts_at_most_a_fifth(attempts_spent: int, unit: float) -> None:
    schedule = RetrySchedule()
    base_s = schedule.delays_s[attempts_spent]
    assert 0.8 * base_s <= schedule.delay_s(attempts_spent, unit) <= base_s


def test_jitter_is_uniform_over_its_range() -> None:
    schedule = RetrySchedule((0.0, 100.0))
    assert [schedule.delay_s(1, unit) for unit in (0.0, 0.5)] == pytest.approx([80.0, 90.0])


def test_a_longer_budget_repeats_the_last_delay() -> None:
    schedule = RetrySchedule((0.0, 10.0, 20.0))
    assert [schedule.delay_s(spent, 0.0) for spent in (1, 2, 3, 50)] == [8.0, 16.0, 16.0, 16.0]


@pytest.mark.parametrize(
    "max_attempts, delays_s",
    [
        (1, (0.0,)),
        (2, (0.0, 3.0)),
        (6, (0.0, 3.0, 6.0, 12.0, 20.0, 20.0)),
    ],
)
def test_backoff_doubles_up_to_its_ceiling(max_attempts: int, delays_s: tuple[float, ...]) -> None:
    assert doubling(max_attempts, 3.0, 20.0).delays_s == delays_s


@given(st.integers(1, 100), st.floats(0.1, 604_800), st.floats(0.1, 604_800))
def test_doubling_backoff_never_decreases_or_exceeds_its_ceiling(
    max_attempts: int, min_backoff_s: float, max_backoff_s: float
) -> None:
    delays_s = doubling(max_attempts, min_backoff_s, max_backoff_s).delays_s
    assert len(delays_s) == max_attempts
    assert all(a <= b for a, b in pairwise(delays_s))
    assert max(delays_s) <= max_backoff_s


@pytest.mark.parametrize(
    "value, seconds",
    [
        (b"0", 0.0),
        (b"120", 120.0),
        (b" 120\t", 120.0),
        (b"0120", 120.0),
        (b"86400", 86_400.0),
        (b"86401", MAX_RETRY_AFTER_S),
        (b"9" * 60, MAX_RETRY_AFTER_S),
        (b"Thu, 01 Jan 2026 12:01:00 GMT", 60.0),
        (b"Thursday, 01-Jan-26 12:01:00 GMT", 60.0),
        (b"Thu Jan  1 12:01:00 2026", 60.0),
        (b"Thu, 01 Jan 2026 11:59:00 GMT", 0.0),
        (b"Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER_S),
        (b"", None),
        (b" ", None),
        (b"-1", None),
        (b"+1", None),
        (b"1.5", None),
        (b"1e3", None),
        (b"0x10", None),
        (b"1,2", None),
        (b"soon", None),
        ("\u0661\u0662".encode(), None),
        (b"\xb2", None),
        (b"120\x00", None),
        (b"9" * 65, None),
        (b"Thu, 99 Jan 2026 12:01:00 GMT", None),
        (b"Thu, 01 Jan 99999999999999 00:00:00 GMT", None),
    ],
)
def test_retry_after_is_parsed(value: bytes, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW_S) == seconds


@given(st.binary(max_size=80))
def test_any_retry_after_text_parses_to_none_or_a_bounded_delay(value: bytes) -> None:
    seconds = parse_retry_after(value, NOW_S)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER_S


@given(st.text(alphabet="0123456789 ,:+-JanGMTThudec()", max_size=40))
def test_any_date_like_retry_after_parses_to_none_or_a_bounded_delay(text: str) -> None:
    seconds = parse_retry_after(text.encode(), NOW_S)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER_S


@given(st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1)))  # noqa: DTZ001 - UTC is put on
def test_every_http_date_format_is_parsed(moment: datetime) -> None:
    moment = moment.replace(tzinfo=UTC, microsecond=0)
    wanted = min(max(moment.timestamp() - NOW_S, 0.0), MAX_RETRY_AFTER_S)
    value = format_datetime(moment, usegmt=True).encode()
    assert parse_retry_after(value, NOW_S) == wanted
