"""Times, states and attempts as short ASCII text, in this machine's time zone.

Depends on the contract's messages, and on no connection.
"""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from hookline.v1.attempt_pb2 import Attempt, AttemptOutcome
from hookline.v1.delivery_pb2 import Delivery, DeliveryState

_UNITS_S = (("d", 86_400), ("h", 3_600), ("min", 60))
_NO_FRACTION = 100


def last_part(name: str) -> str:
    """Return the id in a resource's name: `evt_1` of `tenants/acme/events/evt_1`."""
    return name.rpartition("/")[2]


def plain(text: str) -> str:
    """Escape what a terminal would interpret, so that foreign text stays on one line."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def duration(seconds: float) -> str:
    """Format the absolute value, such as `350 ms`, `4.2 s`, `3 min`, `2.5 h`, `12 d`."""
    seconds = abs(seconds)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for unit, length_s in _UNITS_S:
        if seconds >= length_s:
            count = seconds / length_s
            return f"{count:,.0f} {unit}" if count >= _NO_FRACTION else f"{count:.3g} {unit}"
    return f"{seconds:.1f} s"


def time_of(moment: Timestamp) -> str:
    """Format as `14:03:05.120`, with the date if it is not today's."""
    local = moment.ToDatetime(UTC).astimezone()
    today = datetime.now(UTC).astimezone().date()
    form = "%H:%M:%S" if local.date() == today else "%Y-%m-%d %H:%M:%S"
    return f"{local:{form}}.{local.microsecond // 1000:03}"


def until(moment: Timestamp) -> str:
    """Format as `in 4.2 s`, or `3 min ago`."""
    left_s = _left_s(moment)
    return f"in {duration(left_s)}" if left_s >= 0 else f"{duration(left_s)} ago"


def has_passed(moment: Timestamp) -> bool:
    """Whether a time is in the past, by this machine's clock."""
    return _left_s(moment) < 0


def _left_s(moment: Timestamp) -> float:
    return (moment.ToDatetime(UTC) - datetime.now(UTC)).total_seconds()


def state_of(delivery: Delivery) -> str:
    """Format as `SUCCEEDED after 3 attempts`."""
    state = DeliveryState.Name(delivery.state).removeprefix("DELIVERY_STATE_")
    count = delivery.attempt_count
    return f"{state} after {count} {'attempt' if count == 1 else 'attempts'}"


def wording_of_attempt(attempt: Attempt) -> str:
    """Format as `accepted with 200`, `HTTP error 500`, `timeout: no answer within 15 s`."""
    if attempt.outcome == AttemptOutcome.ATTEMPT_OUTCOME_HTTP_ERROR:
        return f"HTTP error {attempt.http_status}"
    outcome = AttemptOutcome.Name(attempt.outcome).removeprefix("ATTEMPT_OUTCOME_")
    text = outcome.lower().replace("_", " ")
    if attempt.http_status:
        return f"{text} with {attempt.http_status}"
    return f"{text}: {attempt.error}" if attempt.error else text
