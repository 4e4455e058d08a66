"""The state reasons of pending deliveries in GetDelivery and ListDeliveries."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from hookline.v1.delivery_pb2 import DeliveryState, DeliveryStateReason
from hookline.v1.delivery_service_pb2 import ListDeliveriesRequest
from hookline.v1.event_pb2 import Event
from hookline.v1.operations_service_pb2 import GetStatusRequest
from hookline_service.pipeline.dispatch.lane import CIRCUIT_FAILURES
from tests.api.conftest import Api
from tests.api.publishing import order, publish
from tests.pipeline.receiver import Receiver
from tests.waiting import until


async def subscribe(api: Api, receiver: Receiver, **columns: object) -> None:
    tenant_uid: UUID = await api.rows.connection.fetchval(
        "SELECT tenant_uid FROM tenants WHERE tenant_id = 'acme'"
    )
    await api.rig.subscription(tenant_uid, receiver.url, **columns)


async def reasons_of(api: Api, *names: str) -> dict[str, str]:
    found = {}
    for name in names:
        listed = await api.deliveries.ListDeliveries(
            ListDeliveriesRequest(tenant="tenants/acme", event=name)
        )
        (delivery,) = listed.deliveries
        state = DeliveryState.Name(delivery.state).removeprefix("DELIVERY_STATE_")
        reason = DeliveryStateReason.Name(delivery.state_reason)
        found[name] = f"{state} {reason.removeprefix('DELIVERY_STATE_REASON_')}"
    return found


async def published(api: Api, *events: Event) -> list[str]:
    return [result.name for result in (await publish(api, *events)).results]


async def test_delivery_behind_another_of_its_key_is_blocked_by_order(
    api: Api, receiver: Receiver
) -> None:
    await subscribe(api, receiver, ordered=True)
    receiver.gate = asyncio.Event()
    names = await published(
        api, order(ordering_key="a"), order(ordering_key="a"), order(ordering_key="b"), order()
    )
    await receiver.wait_for(3)

    assert list((await reasons_of(api, *names)).values()) == [
        "PENDING UNSPECIFIED",
        "PENDING BLOCKED_BY_ORDER",
        "PENDING UNSPECIFIED",
        "PENDING UNSPECIFIED",
    ]

    receiver.gate.set()
    await until(lambda: api.rig.recorder.recorded == 4, "all are recorded")
    assert set((await reasons_of(api, *names)).values()) == {"SUCCEEDED UNSPECIFIED"}


async def test_delivery_to_a_failing_target_shows_an_open_circuit(
    api: Api, receiver: Receiver
) -> None:
    await subscribe(api, receiver, schedule_s=[0.0, 3_600.0])
    receiver.answers = 500
    failed = await published(api, *[order()] * CIRCUIT_FAILURES)
    await until(lambda: api.rig.recorder.recorded == CIRCUIT_FAILURES, "the circuit is open")
    (waits,) = await published(api, order())

    assert await reasons_of(api, waits, failed[0]) == {
        waits: "PENDING CIRCUIT_OPEN",
        failed[0]: "PENDING UNSPECIFIED",  # it is not due: next_attempt_time says all
    }


@pytest.mark.parametrize("limit", [{"max_in_flight": 1}, {"max_per_second": 0.001}])
async def test_waiting_delivery_is_rate_limited_and_one_in_flight_is_not(
    api: Api, receiver: Receiver, limit: dict[str, object]
) -> None:
    await subscribe(api, receiver, **limit)
    receiver.gate = asyncio.Event()
    names = await published(api, order(), order())
    await receiver.wait_for(1)

    async def is_reported() -> bool:
        reasons = await reasons_of(api, *names)
        return sorted(reasons.values()) == ["PENDING RATE_LIMITED", "PENDING UNSPECIFIED"]

    await until(is_reported, "the other waits in memory")
    receiver.gate.set()


async def test_a_lane_reports_the_due_time_of_its_oldest_delivery(
    api: Api, receiver: Receiver
) -> None:
    await subscribe(api, receiver, max_in_flight=1)
    receiver.gate = asyncio.Event()
    await publish(api, order(), order())
    await receiver.wait_for(1)

    (lane,) = (await api.operations.GetStatus(GetStatusRequest())).top_lanes

    oldest = await api.rows.connection.fetchval("SELECT min(due_at) FROM pending_deliveries")
    assert lane.oldest_due_time.ToMicroseconds() == round(oldest.timestamp() * 1_000_000)
    receiver.gate.set()
    await until(lambda: api.rig.recorder.recorded == 2, "both are recorded")
    (lane,) = (await api.operations.GetStatus(GetStatusRequest())).top_lanes
    assert not lane.HasField("oldest_due_time")
