"""Times, states and attempts as text."""

from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from hookline.v1.attempt_pb2 import (
    ATTEMPT_OUTCOME_HTTP_ERROR,
    ATTEMPT_OUTCOME_TIMEOUT,
    ATTEMPT_OUTCOME_TLS_FAILED,
    Attempt,
)
from hookline.v1.delivery_pb2 import DELIVERY_STATE_PENDING, DELIVERY_STATE_SUCCEEDED, Delivery
from hookline_service.cli.wording import (
    duration,
    last_part,
    plain,
    state_of,
    time_of,
    until,
    wording_of_attempt,
)


def stamp(moment: datetime) -> Timestamp:
    value = Timestamp()
    value.FromDatetime(moment)
    return value


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "0 ms"),
        (0.0004, "0 ms"),
        (0.25, "250 ms"),
        (-0.25, "250 ms"),
        (1, "1.0 s"),
        (59.94, "59.9 s"),
        (60, "1 min"),
        (150, "2.5 min"),
        (3_600, "1 h"),
        (86_400 * 12.5, "12.5 d"),
        (86_400 * 999.7, "1,000 d"),
        (86_400 * 36_500, "36,500 d"),
    ],
)
def test_duration_is_formatted(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_time_of_today_has_no_date() -> None:
    now = datetime.now(UTC).astimezone()
    noon = now.replace(hour=12, minute=0, second=1, microsecond=7_000)
    assert time_of(stamp(noon)) == "12:00:01.007"
    long_ago = time_of(stamp(noon - timedelta(days=400)))
    assert long_ago.startswith(f"{(noon - timedelta(days=400)).date()} ")


def test_until_distinguishes_past_and_future() -> None:
    now = datetime.now(UTC)
    assert until(stamp(now + timedelta(seconds=90))).startswith("in 1.5")
    assert until(stamp(now - timedelta(hours=2))) == "2 h ago"


def test_states_and_attempts_are_formatted() -> None:
    assert state_of(Delivery(state=DELIVERY_STATE_SUCCEEDED, attempt_count=1)) == (
        "SUCCEEDED after 1 attempt"
    )
    assert state_of(Delivery(state=DELIVERY_STATE_PENDING, attempt_count=0)) == (
        "PENDING after 0 attempts"
    )
    refused = Attempt(outcome=ATTEMPT_OUTCOME_HTTP_ERROR, http_status=503, error="answered 503")
    assert wording_of_attempt(refused) == "HTTP error 503"
    assert wording_of_attempt(Attempt(outcome=ATTEMPT_OUTCOME_TLS_FAILED)) == "tls failed"
    late = Attempt(outcome=ATTEMPT_OUTCOME_TIMEOUT, error="no answer in time")
    assert wording_of_attempt(late) == "timeout: no answer in time"


def test_last_part_of_a_name_is_shown() -> None:
    assert last_part("tenants/acme/events/evt_1") == "evt_1"
    assert last_part("evt_1") == "evt_1"


@pytest.mark.parametrize(
    "text, escaped",
    [
        ("Bestellung 7, größer", "Bestellung 7, größer"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("one\ntwo\ttabbed", "one\\ntwo\\ttabbed"),
        ("\u202eback\x9b1m\x00", "\\u202eback\\x9b1m\\x00"),
        (r"a\x1b", r"a\x1b"),
    ],
)
def test_foreign_text_is_escaped_for_a_terminal(text: str, escaped: str) -> None:
    assert plain(text) == escaped
