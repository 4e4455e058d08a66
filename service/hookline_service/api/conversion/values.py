"""Conversions of times, durations and enums between the domain and protobuf."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar  # noqa: TID251 - for a class of the stubs alone

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from hookline_service.domain.errors import Violation

if TYPE_CHECKING:
    from google.protobuf.internal.enum_type_wrapper import _EnumTypeWrapper

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_SECOND = -62_135_596_800
_LAST_SECOND = 253_402_300_799
_NANOS_MAX = 999_999_999
_DURATION_SECONDS_MAX = 315_576_000_000

_Value = TypeVar("_Value", bound=StrEnum)
_Number = TypeVar("_Number", bound=int)


def timestamp_of(moment: datetime) -> Timestamp:
    """Return a time as a Timestamp, in microseconds."""
    since = moment - _EPOCH
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1_000)


def timestamp_of_ms(unix_ms: int) -> Timestamp:
    """Return Unix milliseconds as a Timestamp."""
    seconds, ms = divmod(unix_ms, 1_000)
    return Timestamp(seconds=seconds, nanos=ms * 1_000_000)


def timestamp_of_us(unix_us: int) -> Timestamp:
    """Return Unix microseconds as a Timestamp."""
    seconds, us = divmod(unix_us, 1_000_000)
    return Timestamp(seconds=seconds, nanos=us * 1_000)


def datetime_in(message: Timestamp, field: str, violations: list[Violation]) -> datetime | None:
    """Return a Timestamp truncated to microseconds; None and a violation if it is invalid."""
    seconds, nanos = message.seconds, message.nanos
    if _FIRST_SECOND <= seconds <= _LAST_SECOND and 0 <= nanos <= _NANOS_MAX:
        return _EPOCH + timedelta(seconds=seconds, microseconds=nanos // 1_000)
    violations.append(
        Violation(field, "must be in the years 1 to 9999, with nanos from 0 to 999,999,999")
    )
    return None


def duration_of(seconds: float) -> Duration:
    """Return seconds as a Duration, rounded to microseconds."""
    whole, us = divmod(round(seconds * 1_000_000), 1_000_000)
    return Duration(seconds=whole, nanos=us * 1_000)


def duration_of_us(latency_us: int) -> Duration:
    """Return non-negative microseconds as a Duration."""
    seconds, us = divmod(latency_us, 1_000_000)
    return Duration(seconds=seconds, nanos=us * 1_000)


def seconds_in(message: Duration, field: str, violations: list[Violation]) -> float:
    """Return the seconds of a Duration; adds a violation if it is invalid."""
    seconds, nanos = message.seconds, message.nanos
    if abs(seconds) > _DURATION_SECONDS_MAX or abs(nanos) > _NANOS_MAX or seconds * nanos < 0:
        violations.append(
            Violation(
                field,
                "must be a duration: nanos are below one second and have the sign of the seconds",
            )
        )
        return 0.0
    return seconds + nanos / 1e9


def seconds_between(
    message: Duration, least_s: float, most_s: float, field: str, violations: list[Violation]
) -> float:
    """Return the seconds of a Duration; adds a violation if they are out of bounds."""
    count = len(violations)
    seconds = seconds_in(message, field, violations)
    if len(violations) == count and not least_s <= seconds <= most_s:
        violations.append(Violation(field, f"must be between {least_s:.15g}s and {most_s:.15g}s"))
    return seconds


def enum_of(enum: _EnumTypeWrapper[_Number], prefix: str, value: StrEnum | None) -> _Number:
    """Return the number of a domain value, `DELIVERY_STATE_` + `PENDING`; unspecified for None."""
    return enum.Value(f"{prefix}{'UNSPECIFIED' if value is None else value.value}")


def enum_in(
    number: _Number,
    enum: _EnumTypeWrapper[_Number],
    prefix: str,
    values: type[_Value],
    field: str,
    violations: list[Violation],
) -> _Value | None:
    """Return the domain value of an enum number; None for 0. Adds a violation for an unknown one.

    proto3 enums are open: an unknown number arrives as it was sent.
    """
    if number == 0 or not check_enum(number, enum, field, violations):
        return None
    return values(enum.Name(number).removeprefix(prefix))


def check_enum(
    number: _Number, enum: _EnumTypeWrapper[_Number], field: str, violations: list[Violation]
) -> bool:
    """Return whether the contract defines the number; adds a violation otherwise."""
    if number in enum.values():
        return True
    violations.append(Violation(field, f"{number} is not a value of the enum"))
    return False
