"""Conversion of times, durations, enums and names between the contract and the domain."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from hookline.v1.attempt_pb2 import AttemptOutcome as AttemptOutcomeEnum
from hookline.v1.delivery_pb2 import DeliveryState as DeliveryStateEnum
from hookline.v1.delivery_pb2 import DeliveryStateReason as DeliveryStateReasonEnum
from hookline_service.api.conversion.names import (
    event_type_in,
    tenant_and_id_in,
    tenant_and_uuid_in,
    tenant_id_in,
)
from hookline_service.api.conversion.values import (
    datetime_in,
    duration_of,
    duration_of_us,
    enum_in,
    enum_of,
    seconds_in,
    timestamp_of,
    timestamp_of_ms,
    timestamp_of_us,
)
from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.domain.delivery import DeliveryState, DeliveryStateReason
from hookline_service.domain.errors import Reason, Violation
from hookline_service.domain.ids import format_type_id

moments = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001 (hypothesis adds it)


@given(moments)
def test_datetime_round_trips(moment: datetime) -> None:
    violations: list[Violation] = []
    message = timestamp_of(moment)
    assert message.ToDatetime(UTC) == moment
    assert datetime_in(message, "t", violations) == moment
    assert violations == []


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**31), 2**31 - 1))
def test_every_timestamp_is_a_datetime_or_a_violation(seconds: int, nanos: int) -> None:
    violations: list[Violation] = []
    message = Timestamp(seconds=seconds, nanos=nanos)
    moment = datetime_in(message, "t", violations)
    assert (moment is None) == bool(violations)
    if moment is not None:
        exact = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
        assert moment - exact == timedelta(microseconds=nanos // 1_000)


def test_numbers_become_timestamps() -> None:
    assert timestamp_of_ms(-1) == Timestamp(seconds=-1, nanos=999_000_000)
    assert timestamp_of_us(1_000_001) == Timestamp(seconds=1, nanos=1_000)


@given(st.integers(0, 10**12))
def test_duration_round_trips(microseconds: int) -> None:
    violations: list[Violation] = []
    message = duration_of_us(microseconds)
    assert message.ToMicroseconds() == microseconds
    assert seconds_in(message, "d", violations) == pytest.approx(microseconds / 1e6)
    assert duration_of(microseconds / 1e6).ToMicroseconds() == microseconds
    assert violations == []


@pytest.mark.parametrize(
    "seconds,nanos", [(1, -1), (-1, 1), (0, 1_000_000_000), (315_576_000_001, 0)]
)
def test_invalid_duration_is_a_violation(seconds: int, nanos: int) -> None:
    violations: list[Violation] = []
    seconds_in(Duration(seconds=seconds, nanos=nanos), "d", violations)
    assert [violation.field for violation in violations] == ["d"]


def test_domain_values_and_proto_numbers_map_one_to_one() -> None:
    kinds: list[tuple[Any, str, type[StrEnum]]] = [
        (DeliveryStateEnum, "DELIVERY_STATE_", DeliveryState),
        (DeliveryStateReasonEnum, "DELIVERY_STATE_REASON_", DeliveryStateReason),
        (AttemptOutcomeEnum, "ATTEMPT_OUTCOME_", AttemptOutcome),
    ]
    for enum, prefix, values in kinds:
        violations: list[Violation] = []
        numbers = [enum_of(enum, prefix, value) for value in values]
        assert sorted([0, *numbers]) == sorted(enum.values())
        back = [enum_in(n, enum, prefix, values, "e", violations) for n in numbers]
        assert back == list(values)
        assert enum_of(enum, prefix, None) == 0
        assert enum_in(0, enum, prefix, values, "e", violations) is None
        assert violations == []
        for number in (-1, max(numbers) + 1, 2**31 - 1):
            assert enum_in(number, enum, prefix, values, "e", violations) is None
        assert [violation.field for violation in violations] == ["e"] * 3


@given(st.uuids())
def test_names_give_their_ids(uuid: UUID) -> None:
    violations: list[Violation] = []
    name = f"tenants/a-1/events/{format_type_id('evt', uuid)}"
    assert tenant_and_uuid_in(name, "events", "evt", violations) == ("a-1", uuid)
    assert tenant_and_id_in("tenants/a/subscriptions/b", "subscriptions", violations) == ("a", "b")
    assert tenant_id_in("tenants/a", violations) == "a"
    assert tenant_id_in("tenants/-", violations, across=True) == "-"
    assert event_type_in("eventTypes/order.created", violations) == "order.created"
    assert violations == []


@given(st.text())
def test_any_text_as_a_name_is_parsed_or_refused_with_its_field(text: str) -> None:
    for read in (
        lambda found: tenant_id_in(text, found),
        lambda found: tenant_and_id_in(text, "subscriptions", found),
        lambda found: tenant_and_uuid_in(text, "events", "evt", found),
        lambda found: event_type_in(text, found),
    ):
        violations: list[Violation] = []
        read(violations)
        for violation in violations:
            required = violation.reason is Reason.FIELD_REQUIRED
            assert required == (text == "")
            assert violation.field in {"tenant", "name"}
