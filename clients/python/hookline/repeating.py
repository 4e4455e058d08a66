"""The decision whether a failed publish with idempotency keys is repeated, and after which delay.

The callers repeat the call and enforce the total timeout.
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
    """Return the seconds until a keyed publish can be repeated; None for a permanent error.

    It is the delay that the service gives; otherwise `backoff_s` with jitter.
    """
    if error.retry_forbidden:
        return None
    if isinstance(error, ResourceExhaustedError):
        return error.retry_after_s  # a quota has no delay: repeating cannot help
    if _is_transient(error):
        jittered_s = backoff_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
        return jittered_s if error.retry_after_s is None else error.retry_after_s
    return None


def _is_transient(error: HooklineError) -> bool:
    if isinstance(error, AbortedError | DeadlineExceededError | UnavailableError):
        return True
    # A lost database connection, or a node that cancelled its calls: the events may be stored.
    return error.reason == "DATABASE_UNAVAILABLE" or error.code is grpc.StatusCode.CANCELLED
