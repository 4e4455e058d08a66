"""The enums of the contract and of the domain have the same values."""

from enum import StrEnum

import pytest

from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.domain.delivery import DeliveryState, DeliveryStateReason
from hookline_service.domain.errors import Reason
from hookline_service.domain.event import EventTypeState
from hookline_service.domain.subscription import (
    PayloadFormat,
    SignatureScheme,
    SubscriptionState,
    SubscriptionStateReason,
)
from tests.protos import contract


@pytest.mark.parametrize(
    "engine",
    [
        AttemptOutcome,
        DeliveryState,
        DeliveryStateReason,
        EventTypeState,
        PayloadFormat,
        SignatureScheme,
        SubscriptionState,
        SubscriptionStateReason,
        pytest.param(Reason, id="ErrorReason"),
    ],
)
def test_contract_and_domain_enums_have_the_same_values(engine: type[StrEnum]) -> None:
    enum = contract.enums()["ErrorReason" if engine is Reason else engine.__name__]
    prefix = enum.value[0].name.removesuffix("UNSPECIFIED")
    in_contract = {value.name.removeprefix(prefix) for value in enum.value} - {"UNSPECIFIED"}
    assert {member.value for member in engine} == in_contract
