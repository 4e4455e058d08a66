"""Translation of exceptions: status and details, without the text of unexpected ones."""

from __future__ import annotations

import logging

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookline.v1.error_reason_pb2 import ErrorReason
from hookline_service.api.middleware.errors import not_implemented, refusal_of
from hookline_service.domain.errors import (
    AbortedError,
    AlreadyExistsError,
    Code,
    FailedPreconditionError,
    HooklineError,
    InvalidArgumentError,
    NotFoundError,
    Reason,
    ResourceExhaustedError,
    UnavailableError,
    UnimplementedError,
    Violation,
    invalid,
    over_limit,
)
from hookline_service.store.database import ContentionError, OutcomeUnknownError, RejectedError
from tests.api.refusals import Refused, read_refusal

SECRET = "postgresql://admin:hunter2@db.internal/"


def refused(error: BaseException, *, repeatable: bool = True) -> Refused:
    refusal = refusal_of(error, repeatable=repeatable)
    return read_refusal(refusal.code, refusal.message, dict(refusal.trailers))


@pytest.mark.parametrize(
    "kind",
    [
        InvalidArgumentError,
        NotFoundError,
        AlreadyExistsError,
        FailedPreconditionError,
        AbortedError,
        ResourceExhaustedError,
        UnavailableError,
        UnimplementedError,
        HooklineError,
    ],
)
def test_a_known_error_is_sent_with_code_reason_and_message(kind: type[HooklineError]) -> None:
    answer = refused(kind("no such thing", Reason.EVENT_NOT_FOUND, metadata={"name": "x"}))
    assert answer.code.name == kind.code
    assert (answer.message, answer.reason) == ("no such thing", "EVENT_NOT_FOUND")
    assert (answer.domain, answer.metadata) == ("hookline", {"name": "x"})


def test_every_code_is_a_status_and_every_reason_is_in_the_contract() -> None:
    assert {code.value for code in Code} <= {code.name for code in grpc.StatusCode}
    in_contract = {name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()}  # noqa: SIM118 (no mapping)
    assert {reason.value for reason in Reason} == in_contract - {"UNSPECIFIED"}


def test_all_violations_are_sent_at_once() -> None:
    violations = [
        Violation("a", "is required", Reason.FIELD_REQUIRED),
        over_limit("b[2].c", 3_000, "bytes", "HOOKLINE_MAX_DATA_BYTES", 2_000),
    ]
    answer = refused(invalid(violations))
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    assert answer.violations == {"a": "FIELD_REQUIRED", "b[2].c": "LIMIT_EXCEEDED"}
    assert answer.reason == "FIELD_INVALID"
    assert answer.metadata == {"limit": "HOOKLINE_MAX_DATA_BYTES", "maximum": "2000"}
    assert answer.descriptions[1] == "has 3,000 bytes; HOOKLINE_MAX_DATA_BYTES allows 2,000"
    assert answer.message == "a: is required (and 1 more)"


def test_violations_of_one_kind_give_their_reason_to_the_whole() -> None:
    answer = refused(invalid([Violation("a", "x", Reason.HEADER_INVALID)] * 2))
    assert answer.reason == "HEADER_INVALID"


@given(
    st.lists(st.tuples(st.text(max_size=900), st.text(max_size=900)), min_size=1, max_size=40),
    st.dictionaries(st.text(max_size=30), st.text(max_size=3_000), max_size=3),
)
def test_details_stay_below_four_kibibytes(
    faults: list[tuple[str, str]], metadata: dict[str, str]
) -> None:
    error = invalid([Violation(field, description) for field, description in faults])
    error.metadata.update(metadata)
    answer = refused(error)
    assert answer.status_bytes < 4_096
    shown = len(answer.descriptions)
    omitted = int(answer.metadata.get("omitted_violations", 0))
    assert shown + omitted == len(faults)


def test_an_overload_refusal_says_when_to_retry() -> None:
    answer = refused(
        ResourceExhaustedError(
            "too much is queued",
            Reason.OVERLOADED,
            metadata={"limit": "HOOKLINE_MAX_QUEUED_PUBLISH_EVENTS"},
            retry_after_s=0.25,
        )
    )
    assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (answer.retry_s, answer.pushback_ms) == (0.25, "250")
    assert answer.quota == ["HOOKLINE_MAX_QUEUED_PUBLISH_EVENTS"]


def test_a_permanent_error_advises_no_retry() -> None:
    answer = refused(NotFoundError("x", Reason.TENANT_NOT_FOUND))
    assert (answer.retry_s, answer.pushback_ms, answer.quota) == (None, None, [])


def test_a_lost_answer_is_unavailable_only_where_repeating_is_safe() -> None:
    lost = OutcomeUnknownError(SECRET)
    safe, unsafe = refused(lost), refused(lost, repeatable=False)
    assert (safe.code, safe.retry_s) == (grpc.StatusCode.UNAVAILABLE, 1.0)
    assert (unsafe.code, unsafe.retry_s) == (grpc.StatusCode.UNKNOWN, None)
    assert safe.reason == unsafe.reason == "DATABASE_UNAVAILABLE"
    assert "may have been made" in unsafe.message
    assert SECRET not in safe.message + unsafe.message


def test_contention_is_aborted() -> None:
    answer = refused(ContentionError(SECRET))
    assert (answer.code, answer.reason) == (grpc.StatusCode.ABORTED, "CONCURRENT_CHANGE")
    assert SECRET not in answer.message


@pytest.mark.parametrize(
    "error", [RuntimeError(SECRET), RejectedError(SECRET, "42P01"), KeyError(SECRET)]
)
def test_an_unexpected_error_is_logged_and_not_sent(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        answer = refused(error)
    assert (answer.code, answer.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert SECRET not in answer.message
    assert SECRET in caplog.text


def test_an_unimplemented_refusal_names_the_rpc() -> None:
    answer = refused(not_implemented("filter", field="filter"))
    assert (answer.code, answer.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED")
    assert answer.metadata == {"field": "filter"}
    assert refused(not_implemented("WatchDeliveries")).metadata == {}
