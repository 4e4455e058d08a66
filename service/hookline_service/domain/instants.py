"""Instants as numbers and as `datetime`: ids carry milliseconds, attempts microseconds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def from_unix_ms(unix_ms: int) -> datetime:
    """The instant of Unix milliseconds, exactly."""
    return _EPOCH + timedelta(milliseconds=unix_ms)


def from_unix_us(unix_us: int) -> datetime:
    """The instant of Unix microseconds, exactly."""
    return _EPOCH + timedelta(microseconds=unix_us)
