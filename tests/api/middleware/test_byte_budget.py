"""Bytes held by callers: one bound for all, a share for each."""

from __future__ import annotations

import pytest

from hookline_service.api.middleware.byte_budget import ByteBudget
from hookline_service.domain.errors import Reason, ResourceExhaustedError


def budget() -> ByteBudget:
    return ByteBudget("requests", "HOOKLINE_MAX_REQUEST_BYTES", 1_000)


def test_one_caller_gets_four_fifths_and_leaves_capacity_to_others() -> None:
    held = budget()
    for _ in range(8):
        held.take("one", 100)
    with pytest.raises(ResourceExhaustedError) as refused:
        held.take("one", 100)
    assert refused.value.reason is Reason.OVERLOADED
    assert refused.value.retry_after_s
    assert refused.value.metadata == {"limit": "HOOKLINE_MAX_REQUEST_BYTES", "maximum": "1000"}
    held.take("two", 100)
    held.check("three")
    with pytest.raises(ResourceExhaustedError):
        held.take("three", 101)


def test_released_bytes_can_be_taken_again() -> None:
    held = budget()
    held.take("one", 1_000)
    with pytest.raises(ResourceExhaustedError):
        held.check("one")
    held.give("one", 1_000)
    held.check("one")
    assert held.held_bytes == 0
    held.take("two", 1_000)


def test_bytes_that_may_not_be_refused_are_counted() -> None:
    held = budget()
    held.take("one", 2_000, may_refuse=False)
    assert held.held_bytes == 2_000
    with pytest.raises(ResourceExhaustedError):
        held.take("two", 1)
