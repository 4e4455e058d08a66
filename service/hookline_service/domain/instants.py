"""Conversions of Unix milliseconds (in ids) and microseconds (in attempts) to `datetime`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def from_unix_ms(unix_ms: int) -> datetime:
    """Return the exact time of Unix milliseconds."""
    return _EPOCH + timedelta(milliseconds=unix_ms)


def from_unix_us(unix_us: int) -> datetime:
    """Return the exact time of Unix microseconds."""
    return _EPOCH + timedelta(microseconds=unix_us)
