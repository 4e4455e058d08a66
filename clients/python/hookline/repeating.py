"""When a publish whose events have keys may be tried again, and how long to wait until then.

Owns the decision alone: who repeats, and for how long in all, is the caller's.
"""

from __future__ import annotations

import random
from typing import Final

import grpc

from hookline.errors import (
    AbortedError,
    DeadlineExceededError,
    HooklineError,
    ResourceExhaustedError,
    UnavailableError,
)

MIN_BACKOFF_S: Final = 0.1
MAX_BACKOFF_S: Final = 5.0


def wait_before_repeating(error: HooklineError, backoff_s: float) -> float | None:
    """Seconds until a keyed publish may be tried again, or None where that cannot help.

    What the service advises is obeyed; without advice it is up to `backoff_s`, at random.
    """
    if error.retry_forbidden:
        return None
    if isinstance(error, ResourceExhaustedError):
        return error.retry_after_s  # a quota comes with no such advice, and does not pass by itself
    if _may_pass(error):
        jittered_s = backoff_s * random.uniform(0.5, 1.0)  # noqa: S311 - spreads, hides nothing
        return jittered_s if error.retry_after_s is None else error.retry_after_s
    return None


def _may_pass(error: HooklineError) -> bool:
    if isinstance(error, AbortedError | DeadlineExceededError | UnavailableError):
        return True
    # A database that broke off, and a node that ended its calls: the events may be stored.
    return error.reason == "DATABASE_UNAVAILABLE" or error.code is grpc.StatusCode.CANCELLED
